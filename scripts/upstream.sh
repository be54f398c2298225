#!/bin/bash
# SPDX-License-Identifier: MIT
#
# Runs another project's own test suite on epoll and on every way that ringpoll has
# into it, and compares, test by test.
#
#   scripts/upstream.sh [OPTION]… libevent
#
#   --quick         the fast groups of tests, without the debug mode and the thread
#                   sanitizer: about three minutes, and part of scripts/test.sh
#   --save          the page goes to docs/results/upstream-libevent-DATE.md, too
#   --ways=LIST     some of: epoll startup uring replacing redirected
#                   shim-readiness shim-safe shim-throughput off
#   --tests=GLOB    the tests that fit alone, as in --tests='http/*'
#   --source=DIR    this source instead of the distribution's
#   --help
#
# The distribution's source comes by `apt-get source`, through a private list that is
# made from this machine's own configuration of apt. Of it three trees are built: stock;
# prepared by `ringpoll integrate` and configured --with-uring; stock sources, linked by
# `pkg-config --libs ringpoll-epoll`. Everything lies in build/upstream, and is used
# again. Each failure is compared with the run on epoll beside it, and run again on
# both; what is known to fail stands, with the reason, in tests/upstream/libevent.known.
#
# The last line is "N passed, N failed, N skipped"; failed is what epoll does not fail.
# Exit 0 when nothing is, 77 where the source cannot be had.
set -u
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
exec < /dev/null

quick=no save=no source= project=
runner_options=()
while [ $# -gt 0 ]; do
    case $1 in
        --quick) quick=yes; runner_options+=(--quick --modes plain) ;;
        --save) save=yes ;;
        --ways=* | --tests=*) runner_options+=("$1") ;;
        --source=*) source=$(cd "${1#*=}" 2> /dev/null && pwd) || die "there is no directory '${1#*=}'" ;;
        --help | -h) sed -n '3,/^set/ { s/^# \{0,1\}//; /^set/!p }' "${BASH_SOURCE[0]}"; exit 0 ;;
        libevent) project=$1 ;;
        *) die "'$1' is no option and no project; the project is libevent (see --help)" ;;
    esac
    shift
done
[ -n "$project" ] || die "whose tests? 'libevent' (see --help)"
unset RINGPOLL RINGPOLL_MASK RINGPOLL_PROFILE RINGPOLL_STATS RINGPOLL_MACROS LD_PRELOAD LD_LIBRARY_PATH
export LC_ALL=C

work=$top/build
place=$work/upstream/$project
mkdir -p "$place"
install_missing required "${build_needs[@]}" python3:python3
install_missing wanted dpkg-source:dpkg-dev '/usr/include/openssl/ssl.h:libssl-dev' '/usr/include/zlib.h:zlib1g-dev' \
    '/usr/include/event2/event.h:libevent-dev' strace:strace
generate_configure

if [ -z "$source" ]; then
    say "the source of $project"
    if ! fetch_source "$project" "$place"; then
        echo "skipped: the source of $project cannot be had here"
        exit 77
    fi
    source=$place/source
    version=$(sed -n '1s/.*(\(.*\)).*/\1/p' "$source/debian/changelog")
else
    version=$(sed -n 's/^AC_INIT(libevent, *\(.*\))/\1/p' "$source/configure.ac")
fi
echo "$project $version"

# ringpoll NAME FLAG…: built and installed to $place/NAME.
ringpoll() {
    local name=$1
    shift
    configure_tree "$place/build-$name" "--prefix=$place/$name" --disable-tests "$@" &&
        make_tree "$place/build-$name" all && make_tree "$place/build-$name" install
}

# libevent NAME PREPARE CFLAGS FLAG…: a copy of the source, prepared, built; only if what
# it is built of has changed.
libevent() {
    local name=$1 prepare=$2 cflags=$3 tree=$place/$1 of
    shift 3
    of="$version $* $cflags $(cat "$top/tools/integrate.c" "$top/m4/ringpoll.m4" "$top"/adapters/libevent/include/ringpoll/*.h |
        cksum)"
    [ "$(cat "$tree.of" 2> /dev/null)" != "$of" ] || return 0
    rm -rf "$tree" "$tree.of"
    cp -a "$source" "$tree"
    if ! (cd "$tree" && $prepare && autoreconf -fi && ./configure -q --disable-samples CFLAGS="$cflags" "$@" &&
        make -s -j "$jobs") > "$tree.out" 2>&1; then
        tail -n 30 "$tree.out"
        return 1
    fi
    echo "$of" > "$tree.of"
}

say "ringpoll, and three trees of $project"
began=$SECONDS
prefix=$place/prefix
ringpoll prefix || die "ringpoll does not build"
redirect="$(PKG_CONFIG_PATH=$prefix/lib/pkgconfig pkg-config --libs ringpoll-epoll) -Wl,-rpath,$prefix/lib"
libevent stock true '-O1 -g' || die "$project does not build"
libevent uring "$prefix/bin/ringpoll integrate libevent ." '-O1 -g' "--with-uring=$prefix" ||
    die "$project --with-uring does not build"
libevent redirected true '-O1 -g' "LIBS=$redirect" || die "$project does not build with ringpoll-epoll"
"$prefix/bin/ringpoll" integrate libevent "$place/uring" | grep 'nothing changed' ||
    die "a tree that was prepared is not known as one"
if [ $quick = no ] && [ ! -e "$place/no-tsan" ]; then
    # The libraries with the sanitizer, too; EVENT_NOURING makes it the run on epoll.
    thread="-fsanitize=thread"
    if ringpoll tsan-prefix --disable-static --enable-sanitize=thread 'CFLAGS=-O1 -g' &&
        libevent tsan "$place/tsan-prefix/bin/ringpoll integrate libevent ." "-O1 -g $thread" \
            "--with-uring=$place/tsan-prefix" "LDFLAGS=$thread"; then
        runner_options+=("--tsan=$place/tsan" "--tsan-prefix=$place/tsan-prefix")
    else
        echo "skipped: the thread sanitizer's trees do not build"
    fi
fi
echo "building took $((SECONDS - began)) s"

say "the suite of $project"
page=$place/page.md
python3 "$top/tests/upstream/libevent.py" --stock "$place/stock" --uring "$place/uring" --redirected "$place/redirected" \
    --prefix "$prefix" --known "$top/tests/upstream/libevent.known" --version "$version" --logs "$place/logs" \
    --page "$page" --jobs "$jobs" "${runner_options[@]}"
status=$?
if [ $save = yes ] && [ -s "$page" ]; then
    cp "$page" "$top/docs/results/upstream-$project-$(date -u +%F).md"
fi
exit $status
