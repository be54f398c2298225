#!/bin/bash
# SPDX-License-Identifier: MIT
#
# Runs another project's own test suite on epoll and on every way that ringpoll has
# into it, and compares, test by test.
#
#   scripts/upstream.sh [OPTION]… libevent|libuv
#
#   --quick         about three minutes, and part of scripts/test.sh. libevent: the fast
#                   groups of tests, without the debug mode and the thread sanitizer;
#                   libuv: two ways, one user
#   --save          the page goes to docs/results/upstream-PROJECT-DATE.md, too
#   --ways=LIST     some of: epoll uring off shim-readiness shim-safe shim-throughput,
#                   of libevent also startup completion replacing redirected, of
#                   libuv also uring-throughput
#   --tests=GLOB    of libevent, the tests that fit alone, as in --tests='http/*'
#   --jobs=N        of libevent, so many tests at a time (one per processor): they sleep
#                   more than they work
#   --source=DIR    this source instead of the distribution's
#   --help
#
# The distribution's source comes by `apt-get source`, through a private list that is
# made from this machine's own configuration of apt. Of it trees are built: stock;
# prepared by `ringpoll integrate` and configured --with-uring; of libevent also stock
# sources, linked by `pkg-config --libs ringpoll-epoll`. Everything lies in build/upstream,
# and is used again. Each failure is compared with the run on epoll beside it, and run
# again on both; what is known to fail stands, with the reason, in
# tests/upstream/PROJECT.known. libuv's suite runs as root and as nobody, where one is root.
#
# Of libuv, tests/libuv follows, on the stock library and on the tree's; each failure counts.
#
# The last line is "N passed, N failed, N skipped"; failed is what epoll does not fail.
# Exit 0 when nothing is, 77 where the source cannot be had.
set -u
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
exec < /dev/null

quick=no save=no source= project= at_a_time=$jobs
runner_options=()
while [ $# -gt 0 ]; do
    case $1 in
        --quick) quick=yes; runner_options+=(--quick) ;;
        --save) save=yes ;;
        --ways=* | --tests=*) runner_options+=("$1") ;;
        --jobs=*) at_a_time=${1#*=} ;;
        --source=*) source=$(cd "${1#*=}" 2> /dev/null && pwd) || die "there is no directory '${1#*=}'" ;;
        --help | -h) sed -n '3,/^set/ { s/^# \{0,1\}//; /^set/!p }' "${BASH_SOURCE[0]}"; exit 0 ;;
        libevent | libuv) project=$1 ;;
        *) die "'$1' is no option and no project; the projects are libevent and libuv (see --help)" ;;
    esac
    shift
done
[[ $at_a_time =~ ^[1-9][0-9]?$ ]] || die "--jobs takes a number from 1 to 99"
[ -n "$project" ] || die "whose tests? 'libevent' or 'libuv' (see --help)"
unset RINGPOLL RINGPOLL_MASK RINGPOLL_PROFILE RINGPOLL_STATS RINGPOLL_MACROS LD_PRELOAD LD_LIBRARY_PATH \
    UV_USE_RINGPOLL EVENT_NOURING EVENT_NOIO_URING
export LC_ALL=C

work=$top/build
shared=$work/upstream place=$shared/$project
mkdir -p "$place"
install_missing required "${build_needs[@]}" python3:python3
install_missing wanted dpkg-source:dpkg-dev '/usr/include/openssl/ssl.h:libssl-dev' '/usr/include/zlib.h:zlib1g-dev' \
    '/usr/include/event2/event.h:libevent-dev' strace:strace g++:g++ '/usr/include/gtest/gtest.h:libgtest-dev'
generate_configure

if [ -z "$source" ]; then
    say "the source of $project"
    package=$project
    [ "$project" != libuv ] || package=libuv1
    if ! fetch_source "$package" "$place"; then
        echo "skipped: the source of $project cannot be had here"
        exit 77
    fi
    source=$place/source
    version=$(sed -n '1s/.*(\(.*\)).*/\1/p' "$source/debian/changelog")
else
    version=$(sed -nE "s/^AC_INIT\(\[?$project\]?, *\[?([^],)]*).*/\1/p" "$source/configure.ac")
fi
echo "$project $version"

# ringpoll NAME FLAG…: built and installed to build/upstream/NAME, for all projects.
ringpoll() {
    local name=$1
    shift
    configure_tree "$shared/build-$name" "--prefix=$shared/$name" --disable-tests "$@" &&
        make_tree "$shared/build-$name" all && make_tree "$shared/build-$name" install
}

# tree NAME PREPARE CFLAGS FLAG…: a copy of the source, prepared, built; only if what
# it is built of has changed.
tree() {
    local name=$1 prepare=$2 cflags=$3 tree=$place/$1 of
    shift 3
    of="$version $* $cflags"
    [ "$prepare" = true ] || of+=" $(cat "$top/tools/integrate.c" "$top/m4/ringpoll.m4" \
        "$top"/adapters/lib*/include/ringpoll/*.h | cksum)"
    # Of libuv's, the library has ringpoll inside.
    [ "$prepare" = true ] || [ "$project" = libevent ] || of+=$(cksum < "$prefix/lib/libringpoll-uv-tree.a")
    [ "$(cat "$tree.of" 2> /dev/null)" != "$of" ] || return 0
    rm -rf "$tree" "$tree.of"
    cp -a "$source" "$tree"
    if ! (cd "$tree" && $prepare && "make_$project" "$cflags" "$@") > "$tree.out" 2>&1; then
        tail -n 30 "$tree.out"
        return 1
    fi
    echo "$of" > "$tree.of"
}
make_libevent() {
    local cflags=$1
    shift
    autoreconf -fi && ./configure -q --disable-samples CFLAGS="$cflags" "$@" && make -s -j "$jobs"
}
make_libuv() {
    local cflags=$1
    shift
    sh autogen.sh && ./configure -q --disable-static CFLAGS="$cflags" "$@" && make -s -j "$jobs" &&
        make -s -j "$jobs" test/run-tests
}

say "ringpoll, and the trees of $project"
began=$SECONDS
prefix=$shared/prefix
cflags='-O1 -g'
[ "$project" != libuv ] || cflags='-O2 -g' # what `ringpoll bench libuv` compares
ringpoll prefix || die "ringpoll does not build"
tree stock true "$cflags" || die "$project does not build"
tree uring "$prefix/bin/ringpoll integrate $project ." "$cflags" "--with-uring=$prefix" ||
    die "$project --with-uring does not build"
"$prefix/bin/ringpoll" integrate "$project" "$place/uring" | grep 'nothing changed' ||
    die "a tree that was prepared is not known as one"
if [ "$project" = libevent ]; then
    redirect="$(PKG_CONFIG_PATH=$prefix/lib/pkgconfig pkg-config --libs ringpoll-epoll) -Wl,-rpath,$prefix/lib"
    tree redirected true '-O1 -g' "LIBS=$redirect" || die "$project does not build with ringpoll-epoll"
    runner_options+=(--redirected "$place/redirected" --jobs "$at_a_time")
    [ $quick = no ] || runner_options+=(--modes plain)
fi
if [ "$project" = libevent ] && [ $quick = no ] && [ ! -e "$place/no-tsan" ]; then
    # The libraries with the sanitizer, too; EVENT_NOURING makes it the run on epoll.
    thread="-fsanitize=thread"
    if ringpoll tsan-prefix --disable-static --enable-sanitize=thread 'CFLAGS=-O1 -g' &&
        tree tsan "$shared/tsan-prefix/bin/ringpoll integrate libevent ." "-O1 -g $thread" \
            "--with-uring=$shared/tsan-prefix" "LDFLAGS=$thread"; then
        runner_options+=("--tsan=$place/tsan" "--tsan-prefix=$shared/tsan-prefix")
    else
        echo "skipped: the thread sanitizer's trees do not build"
    fi
fi
echo "building took $((SECONDS - began)) s"

say "the suite of $project"
page=$place/page.md
python3 "$top/tests/upstream/$project.py" --stock "$place/stock" --uring "$place/uring" --prefix "$prefix" \
    --known "$top/tests/upstream/$project.known" --version "$version" --logs "$place/logs" --page "$page" \
    "${runner_options[@]}" | tee "$place/suite.out"
status=${PIPESTATUS[0]}
if [ $save = yes ] && [ -s "$page" ]; then
    cp "$page" "$top/docs/results/upstream-$project-$(date -u +%F).md"
fi

# What programs lean on in libuv: tests of our own, on both libraries.
if [ "$project" = libuv ] && read -r _ _ passed _ failed _ skipped _ < <(tail -n 1 "$place/suite.out") &&
    [[ $passed =~ ^[0-9]+$ ]]; then
    say "tests/libuv, on the stock library and on the tree's"
    export RINGPOLL_LIBUV_DIR=$place/uring RINGPOLL_LIBUV_STOCK=$place/stock
    gtest=$(pkg-config --cflags --libs gtest_main 2> /dev/null) || gtest='-lgtest -lgtest_main -pthread'
    # shellcheck disable=SC2086
    if ! have g++ || ! have /usr/include/gtest/gtest.h; then
        echo "skipped: no GoogleTest here"
        skipped=$((skipped + 1))
    elif ! g++ -std=c++17 -O0 -D_GNU_SOURCE -I"$place/uring/include" "$top"/tests/libuv/*.cc -o "$place/libuv_test" \
        -L"$place/stock/.libs" -luv $gtest; then
        echo "NOT OK: tests/libuv does not build"
        failed=$((failed + 1)) status=1
    else
        for side in stock tree; do
            timeout -k 10 600 "$top/tests/libuv/run.sh" "$place/libuv_test" $side > "$place/logs/tests-$side.log" 2>&1
            result=$?
            case $result in 0) result=PASS ;; 77) result=SKIP ;; *) result=FAIL status=1 ;; esac
            read -r p f s < <(tally_log $result "$place/logs/tests-$side.log")
            passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
            echo "tests/libuv, $side: $p passed, $f failed, $s skipped"
            [ $result != FAIL ] || { grep -B 8 '^\[  FAILED' "$place/logs/tests-$side.log" ||
                tail -n 20 "$place/logs/tests-$side.log"; }
        done
    fi
    echo "upstream libuv: $passed passed, $failed failed, $skipped skipped"
fi
exit "$status"
