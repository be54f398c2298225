# serial 1
dnl SPDX-License-Identifier: MIT
dnl
dnl ringpoll.m4: the option --with-uring of a program's configure script.
dnl
dnl     AC_PROG_CC
dnl     …
dnl     RINGPOLL_WITH_URING
dnl
dnl and nothing else: the program's sources and Makefile.am stay as they are. Its
dnl users then say
dnl
dnl     ./configure --with-uring=auto   on io_uring, where ringpoll is installed
dnl     ./configure --with-uring=yes    and fail where it is not; also --with-uring
dnl     ./configure --with-uring=no     on epoll; also --without-uring
dnl     ./configure --with-uring=/DIR   with the ringpoll that was installed there
dnl                                     (an absolute path), or fail
dnl
dnl RINGPOLL_WITH_URING([DEFAULT], [ACTION-IF-WITH], [ACTION-IF-WITHOUT])
dnl
dnl For a program that calls epoll itself, or by way of a library. DEFAULT is what
dnl holds where nobody said anything: auto (if left out), yes, no. Puts the flags of
dnl the pkg-config module ringpoll-epoll before LIBS, and so before libc: the
dnl program's calls, and those of its libraries, then meet ringpoll first. So it comes
dnl after the compiler checks; checks behind it run with ringpoll under them.
dnl
dnl RINGPOLL_CHECK_URING([DEFAULT], [MODULE], [ACTION-IF-WITH], [ACTION-IF-WITHOUT])
dnl
dnl The option and the search alone, for a program that uses the API: MODULE is
dnl ringpoll or ringpoll-event. LIBS is left alone.
dnl
dnl Both set and substitute RINGPOLL_CFLAGS and RINGPOLL_LIBS (empty without), define
dnl HAVE_RINGPOLL (with), and set the shell variable ringpoll_have_uring to yes or no.
dnl RINGPOLL_LIBS has a run path too, unless ringpoll is in /lib or /usr/lib. The variables RINGPOLL_CFLAGS and RINGPOLL_LIBS, where the user sets
dnl them, are taken instead of what pkg-config says.

AC_DEFUN([RINGPOLL_CHECK_URING], [
AC_REQUIRE([AC_PROG_CC])
AC_ARG_VAR([PKG_CONFIG], [path of pkg-config])
AC_ARG_VAR([RINGPOLL_CFLAGS], [C compiler flags for ringpoll, instead of pkg-config's])
AC_ARG_VAR([RINGPOLL_LIBS], [linker flags for ringpoll, instead of pkg-config's])
AC_ARG_WITH([uring],
    [AS_HELP_STRING([--with-uring@<:@=auto|yes|no|DIR@:>@],
        [run on io_uring, by the ringpoll that pkg-config finds, or that is installed in DIR
         @<:@]m4_default([$1], [auto])[@:>@])],
    [], [with_uring=]m4_default([$1], [auto]))
ringpoll_have_uring=no
AS_CASE([$with_uring],
    [no|auto|yes|/*], [],
    [AC_MSG_ERROR([--with-uring takes auto, yes, no or an absolute directory, not "$with_uring"])])
AS_IF([test "x$with_uring" = xno], [
    RINGPOLL_CFLAGS=
    RINGPOLL_LIBS=
], [
    test -n "$PKG_CONFIG" || AC_PATH_TOOL([PKG_CONFIG], [pkg-config])
    ringpoll_module=m4_default([$2], [ringpoll])
    ringpoll_path=$PKG_CONFIG_PATH
    ringpoll_there=yes
    AS_CASE([$with_uring], [/*], [
        ringpoll_there=no
        for ringpoll_dir in "$with_uring"/share "$with_uring"/lib/* "$with_uring"/lib64 "$with_uring"/lib; do
            AS_IF([test -f "$ringpoll_dir/pkgconfig/$ringpoll_module.pc"],
                [ringpoll_there=yes
                 ringpoll_path=$ringpoll_dir/pkgconfig${ringpoll_path:+:$ringpoll_path}])
        done])
    AC_MSG_CHECKING([for $ringpoll_module])
    ringpoll_run_path=
    AS_IF([test -z "$RINGPOLL_LIBS"], [
        ringpoll_query="env PKG_CONFIG_PATH=$ringpoll_path $PKG_CONFIG"
        AS_IF([test -n "$PKG_CONFIG" && test $ringpoll_there = yes && $ringpoll_query --exists $ringpoll_module], [
            RINGPOLL_CFLAGS=`$ringpoll_query --cflags $ringpoll_module`
            RINGPOLL_LIBS=`$ringpoll_query --libs $ringpoll_module`
            ringpoll_libdir=`$ringpoll_query --variable=libdir $ringpoll_module`
            AS_CASE([$ringpoll_libdir], [/lib*|/usr/lib*|""], [],
                [ringpoll_run_path=" -Wl,-rpath,$ringpoll_libdir"])])])
    AS_IF([test -n "$RINGPOLL_LIBS"], [
        RINGPOLL_LIBS=$RINGPOLL_LIBS$ringpoll_run_path
        ringpoll_saved_LIBS=$LIBS
        ringpoll_saved_CPPFLAGS=$CPPFLAGS
        LIBS="$RINGPOLL_LIBS $LIBS"
        CPPFLAGS="$CPPFLAGS $RINGPOLL_CFLAGS"
        AC_LINK_IFELSE([AC_LANG_PROGRAM()], [ringpoll_have_uring=yes])
        LIBS=$ringpoll_saved_LIBS
        CPPFLAGS=$ringpoll_saved_CPPFLAGS])
    AC_MSG_RESULT([$ringpoll_have_uring])
    AS_IF([test $ringpoll_have_uring = no], [
        AS_IF([test "x$with_uring" != xauto],
            [AC_MSG_ERROR([--with-uring=$with_uring, but $ringpoll_module is not found, or does not link])])
        RINGPOLL_CFLAGS=
        RINGPOLL_LIBS=])
])
AS_IF([test $ringpoll_have_uring = yes],
    [AC_DEFINE([HAVE_RINGPOLL], [1], [Define if ringpoll puts this on io_uring])
    $3],
    [m4_default([$4], [:])])
])

AC_DEFUN([RINGPOLL_WITH_URING], [
RINGPOLL_CHECK_URING([$1], [ringpoll-epoll],
    [LIBS="$RINGPOLL_LIBS $LIBS"
    $2], [$3])
])
