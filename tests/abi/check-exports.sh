#!/bin/bash
# SPDX-License-Identifier: MIT
#
# What the built libraries export is what tests/abi/*.symbols declare: nothing
# gone, nothing leaked. A program that was linked yesterday starts tomorrow, and
# the shim interposes no libc name by accident.
#
#   check-exports.sh             compares; run by make check
#   check-exports.sh --declare   writes what is exported now into the lists
#
# Needs top_builddir and top_srcdir in the environment, or to be started in the
# top build directory of a tree that was built inside itself.
set -u
export LC_ALL=C

builddir=${top_builddir:-.}
srcdir=${top_srcdir:-.}
passed=0 failed=0 skipped=0

verdict() { # ok|not SENTENCE
    case $1 in
        ok) passed=$((passed + 1)); echo "ok: $2" ;;
        not) failed=$((failed + 1)); echo "NOT OK: $2" ;;
        skip) skipped=$((skipped + 1)); echo "skipped: $2" ;;
    esac
}

# The dynamic symbols a library defines, as name or name@@VERSION. Absolute ones
# (A) are the version nodes themselves.
exports_of() {
    nm -D --defined-only --with-symbol-versions "$1" | awk '$(NF - 1) != "A" { print $NF }' | sort -u
}

check_library() { # LIBRARY LIST
    local library=$1 list=$2 name=${2##*/}
    if [ ! -e "$library" ]; then
        verdict skip "${library#"$builddir"/} is not built"
        return
    fi
    if [ "${declare:-no}" = yes ]; then
        {
            echo "# The dynamic symbols of ${library##*/}, compared by tests/abi/check-exports.sh."
            exports_of "$library"
        } > "$list"
        echo "declared: $(grep -vc '^#' "$list") symbols in $list"
        return
    fi
    if [ ! -e "$list" ]; then
        verdict not "there is no list for ${library##*/}: make one by check-exports.sh --declare"
        return
    fi
    local difference
    difference=$(diff <(grep -v '^#' "$list" | sort -u) <(exports_of "$library"))
    if [ -z "$difference" ]; then
        verdict ok "${library##*/} exports what $name declares"
        return
    fi
    verdict not "${library##*/} does not export what $name declares ('<' declared, '>' exported):"
    sed -n '/^[<>]/ s/^/    /p' <<< "$difference"
    echo "    If the change is meant: a name that is added goes into the library's symbol map and into"
    echo "    tests/abi/$name (tests/abi/check-exports.sh --declare writes it); a name that is removed"
    echo "    or changed needs a new version node and a new -version-info as well."
}

# Each function of the public header, and only those, is in the list.
check_header() {
    local difference
    difference=$(diff \
        <(grep -v '^#' "$srcdir/tests/abi/libringpoll.symbols" | sed 's/@.*//' | sort -u) \
        <(cat "$srcdir"/backend/include/ringpoll/*.h | grep -o '^RINGPOLL_API [^(]*(' |
            grep -o 'ringpoll_[a-z0-9_]*' | sort -u))
    if [ -z "$difference" ]; then
        verdict ok "the public headers declare what libringpoll.symbols lists"
    else
        verdict not "the public headers and libringpoll.symbols differ ('<' listed, '>' in a header):"
        sed -n '/^[<>]/ s/^/    /p' <<< "$difference"
    fi
}

# "No dependency but libc". A sanitizer's runtime is one exception; the shim's
# libgcc_s the other: it is what a cancelled thread is unwound with, and libc loads
# it for that anyway.
check_needed() { # LIBRARY [ALSO]
    local library=$1 foreign
    [ -e "$library" ] || return
    if [ -n "${RINGPOLL_SANITIZE:-}" ]; then
        verdict skip "what ${library##*/} links, in a sanitizer build"
        return
    fi
    foreign=$(objdump -p "$library" | awk '$1 == "NEEDED" { print $2 }' |
        grep -vE '^(libc|ld-linux.*|ld64|libdl|libpthread'"${2:+|$2}"')\.so(\.[0-9]+)?$')
    if [ -z "$foreign" ]; then
        verdict ok "${library##*/} needs no library but libc${2:+ and $2}"
    else
        verdict not "${library##*/} needs more than libc:"
        sed "s/^/    /" <<< "$foreign"
    fi
}

check_soname() {
    local library=$builddir/backend/.libs/libringpoll.so soname
    [ -e "$library" ] || return
    soname=$(objdump -p "$library" | awk '$1 == "SONAME" { print $2 }')
    if [ "$soname" = libringpoll.so.0 ]; then
        verdict ok "the soname is libringpoll.so.0"
    else
        verdict not "the soname is $soname, and was libringpoll.so.0"
    fi
}

# What a program links by the flags of ringpoll-epoll: the shim's soname, and no name
# that could keep one of libc's versions from it.
check_link() {
    local library=$builddir/adapters/preload/libringpoll-epoll.so
    [ -e "$linked" ] || return
    if [ "$(objdump -p "$library" | awk '$1 == "SONAME" { print $2 }')" = \
        "$(objdump -p "$linked" | awk '$1 == "SONAME" { print $2 }')" ]; then
        verdict ok "libringpoll-epoll.so has the soname of libringpoll-shim.so"
    else
        verdict not "libringpoll-epoll.so has not the soname of libringpoll-shim.so"
    fi
    if [ -z "$(exports_of "$library" 2> /dev/null)" ]; then
        verdict ok "libringpoll-epoll.so exports nothing"
    else
        verdict not "libringpoll-epoll.so exports something"
    fi
}

for tool in nm objdump; do
    if ! command -v "$tool" > /dev/null; then
        echo "skipped: $tool is missing"
        exit 77
    fi
done
case ${1:-} in
    --declare) declare=yes ;;
    '') ;;
    *) echo "usage: check-exports.sh [--declare]" >&2; exit 2 ;;
esac

core=$builddir/backend/.libs/libringpoll.so
shim=$builddir/adapters/preload/.libs/libringpoll-preload.so
linked=$builddir/adapters/preload/.libs/libringpoll-shim.so
event=$builddir/adapters/libevent/.libs/libringpoll-event.so
uv=$builddir/adapters/libuv/.libs/libringpoll-uv.so
check_library "$core" "$srcdir/tests/abi/libringpoll.symbols"
check_library "$shim" "$srcdir/tests/abi/libringpoll-preload.symbols"
check_library "$linked" "$srcdir/tests/abi/libringpoll-preload.symbols"
check_library "$event" "$srcdir/tests/abi/libringpoll-event.symbols"
check_library "$uv" "$srcdir/tests/abi/libringpoll-uv.symbols"
[ "${declare:-no}" = yes ] && exit 0
check_header
check_needed "$core"
check_needed "$shim" libgcc_s
check_needed "$linked" libgcc_s
check_link
check_needed "$event" libringpoll
check_needed "$uv" 'libringpoll|libuv'
check_soname

echo "abi: $passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ]
