dnl SPDX-License-Identifier: MIT
dnl
dnl The option shapes that configure.ac uses more than once.

dnl RP_WITH_MODULE(NAME, PREFIX, MODULES)
dnl
dnl --with-NAME=auto|yes|no by pkg-config. Sets rp_have_NAME to yes or no,
dnl PREFIX_CFLAGS, PREFIX_LIBS and the conditional HAVE_PREFIX. Only an explicit
dnl yes makes a missing module an error.
AC_DEFUN([RP_WITH_MODULE], [
AC_ARG_WITH([$1],
    [AS_HELP_STRING([--with-$1=auto|yes|no], [use $1, found by pkg-config @<:@auto@:>@])],
    [], [with_$1=auto])
rp_have_$1=no
AS_CASE([$with_$1],
    [no], [],
    [auto|yes], [PKG_CHECK_MODULES([$2], [$3], [rp_have_$1=yes], [rp_have_$1=no])],
    [AC_MSG_ERROR([--with-$1 takes auto, yes or no, not "$with_$1"])])
AS_IF([test "$with_$1$rp_have_$1" = yesno],
    [AC_MSG_ERROR([--with-$1=yes, but pkg-config does not find $3])])
AM_CONDITIONAL([HAVE_$2], [test "$rp_have_$1" = yes])
])

dnl RP_APPEND_FLAG(VARIABLE, FLAG, [LINK])
dnl
dnl Appends a flag that the C compiler accepts; with LINK, one that has to link.
AC_DEFUN([RP_APPEND_FLAG], [
AS_VAR_PUSHDEF([rp_cache], [rp_cv_flag_$2])
AC_CACHE_CHECK([whether $CC accepts $2], [rp_cache], [
    rp_saved_CFLAGS=$CFLAGS
    CFLAGS="$CFLAGS -Werror $2"
    m4_ifval([$3],
        [AC_LINK_IFELSE([AC_LANG_PROGRAM()], [AS_VAR_SET([rp_cache], [yes])], [AS_VAR_SET([rp_cache], [no])])],
        [AC_COMPILE_IFELSE([AC_LANG_PROGRAM()], [AS_VAR_SET([rp_cache], [yes])], [AS_VAR_SET([rp_cache], [no])])])
    CFLAGS=$rp_saved_CFLAGS])
AS_VAR_IF([rp_cache], [yes], [AS_VAR_APPEND([$1], [" $2"])])
AS_VAR_POPDEF([rp_cache])
])

dnl RP_ENABLE_SANITIZE
dnl
dnl --enable-sanitize=WORDS: address, undefined, thread; thread goes alone, since
dnl its runtime and the others' exclude each other. Sets RP_SANITIZE_FLAGS,
dnl RP_SANITIZE (the words) and the conditional SANITIZE.
AC_DEFUN([RP_ENABLE_SANITIZE], [
AC_ARG_ENABLE([sanitize],
    [AS_HELP_STRING([--enable-sanitize=LIST], [address,undefined or thread @<:@no@:>@])],
    [], [enable_sanitize=no])
RP_SANITIZE_FLAGS=
RP_SANITIZE=
AS_CASE([$enable_sanitize],
    [no], [],
    [address|undefined|thread|address,undefined|undefined,address], [
        RP_SANITIZE=$enable_sanitize
        RP_SANITIZE_FLAGS="-fsanitize=$enable_sanitize -fno-omit-frame-pointer"
        AS_CASE([$enable_sanitize], [*undefined*],
            [RP_SANITIZE_FLAGS="$RP_SANITIZE_FLAGS -fno-sanitize-recover=undefined"])
        rp_saved_CFLAGS=$CFLAGS
        CFLAGS="$CFLAGS $RP_SANITIZE_FLAGS"
        AC_MSG_CHECKING([whether $CC links with -fsanitize=$enable_sanitize])
        AC_LINK_IFELSE([AC_LANG_PROGRAM()], [AC_MSG_RESULT([yes])],
            [AC_MSG_RESULT([no])
             AC_MSG_ERROR([--enable-sanitize=$enable_sanitize: $CC cannot do that here])])
        CFLAGS=$rp_saved_CFLAGS],
    [AC_MSG_ERROR([--enable-sanitize takes address,undefined or thread, not "$enable_sanitize"])])
# The vptr check opens a pipe to look at memory, and fails tests that leave no fd.
RP_SANITIZE_CXXFLAGS=$RP_SANITIZE_FLAGS
AS_CASE([$enable_sanitize], [*undefined*], [RP_SANITIZE_CXXFLAGS="$RP_SANITIZE_FLAGS -fno-sanitize=vptr"])
AC_SUBST([RP_SANITIZE_FLAGS])
AC_SUBST([RP_SANITIZE])
AM_CONDITIONAL([SANITIZE], [test -n "$RP_SANITIZE"])
])
