#!/bin/bash
# SPDX-License-Identifier: MIT
#
# Installs what is missing, builds, and runs every test there is:
#
#   build/plain     all warnings fatal; make check (unit, conformance, shim,
#                   command, real programs), then a million differential
#                   operations on the library and as many on the shim, on sets
#                   and on streams (profiles safe and throughput)
#   build/asan      address and undefined-behaviour sanitizers: unit, conformance,
#                   streams, the handles for libuv
#   build/tsan      thread sanitizer: the same
#   build/no-uring  --with-uring=no: conformance
#   build/clang     compiles with clang, where there is one
#   build/cross-*   compiles for aarch64 and for 32-bit x86, where there are compilers
#   build/dist      make distcheck; the tarball against the list of files in git;
#                   make install, a program that is built by pkg-config against
#                   what was installed, one whose configure script has
#                   --with-uring, make uninstall; what configure refuses
#   build/upstream  libevent's and libuv's own suites on the ways in, beside epoll:
#                   scripts/upstream.sh --quick; then the distribution's programs
#                   on the libevent and the libuv that this has built --with-uring
#   and that all this leaves nothing behind in the sources
#
#   scripts/test.sh [STAGE…]    only these: plain asan tsan no-uring clang cross
#                               dist upstream
#
# The last line is "N passed, N failed, N skipped". Exit 0 when nothing failed
# and something ran. RINGPOLL_DIFFERENTIAL_OPS overrides the length of the
# differential run of build/plain.
set -u
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
exec < /dev/null

stages=${*:-plain asan tsan no-uring clang cross dist upstream}
for stage in $stages; do
    case $stage in
        plain | asan | tsan | no-uring | clang | cross | dist | upstream) ;;
        *) die "no stage is called '$stage': plain asan tsan no-uring clang cross dist upstream" ;;
    esac
done
wanted() { [[ " $stages " == *" $1 "* ]]; }

# What the caller's environment says about the shim is not for the tests.
unset RINGPOLL RINGPOLL_MASK RINGPOLL_PROFILE RINGPOLL_STATS LD_PRELOAD UV_USE_RINGPOLL EVENT_NOURING EVENT_NOIO_URING \
    RINGPOLL_LIBEVENT_DIR RINGPOLL_LIBUV_DIR RINGPOLL_LIBUV_STOCK RINGPOLL_TEST_MODES RINGPOLL_TEST_CASES
export LC_ALL=C
plain_ops=${RINGPOLL_DIFFERENTIAL_OPS:-1000000}

work=$top/build
mkdir -p "$work"
# A tarball, a copy without git, a clone of somebody else's: what git would have
# to say is then not asked.
in_git() { [ "$(git -C "$top" rev-parse --show-toplevel 2> /dev/null)" = "$top" ]; }
untracked() { git -C "$top" status --porcelain --untracked-files=all 2> /dev/null | grep '^??' | sort; }
untracked_before=$(untracked)
started=$SECONDS

testsuite_of_python() { python3 -c 'import sys; print("libpython%d.%d-testsuite" % sys.version_info[:2])'; }
install_missing required "${build_needs[@]}" g++:g++ '/usr/include/gtest/gtest.h:libgtest-dev' python3:python3 \
    timeout:coreutils
install_missing wanted '/usr/include/event2/event.h:libevent-dev' '/usr/include/uv.h:libuv1-dev' \
    '/usr/include/liburing.h:liburing-dev' memcached:memcached redis-server:redis-server \
    redis-benchmark:redis-tools nginx:nginx haproxy:haproxy node:nodejs tmux:tmux wrk:wrk strace:strace \
    tor:tor transmission-daemon:transmission-daemon pgbouncer:pgbouncer sslsplit:sslsplit turnserver:coturn \
    named:bind9 rndc:bind9-utils dnsperf:dnsperf kresd:knot-resolver nvim:neovim lua5.1:lua5.1 \
    '/usr/lib/*/lua/5.1/luv.so:lua-luv' /usr/lib/python3/dist-packages/uvloop/__init__.py:python3-uvloop \
    '/usr/lib/postgresql/*/bin/postgres:postgresql' openssl:openssl dbus-daemon:dbus-daemon dbus-monitor:dbus-bin \
    mosquitto:mosquitto mosquitto_pub:mosquitto-clients lighttpd:lighttpd apache2:apache2-bin '/usr/sbin/php-fpm*:php-fpm' \
    "/usr/lib/python3*/test/test_epoll.py:$(testsuite_of_python)"
generate_configure

# check_tree NAME TARGETS CONFIGURE-FLAGS…: configure, build, test, count.
check_tree() {
    local name=$1 targets=$2 tree=$work/$1 begin=$SECONDS
    shift 2
    say "$name: configure $*"
    if ! configure_tree "$tree" "$@" || ! make_tree "$tree" all; then
        count failed "build/$name does not build"
        return
    fi
    find "$tree" -name '*.trs' -delete
    # The harness fails when a test does; the logs tell more, so its own word
    # matters only when they are silent.
    # shellcheck disable=SC2086
    if ! make -C "$tree" -j "$jobs" -k $targets > "$tree/check.out" 2>&1; then
        if ! grep -q '^# TOTAL' "$tree/check.out"; then
            grep -nE 'error|undefined reference|\*\*\*' "$tree/check.out" | head -n 20
            tail -n 40 "$tree/check.out"
            count failed "build/$name: the tests do not build"
        elif grep -qE '^make.*\*\*\* .*\.(l?o|test)\]|No rule to make target' "$tree/check.out"; then
            grep -nE 'error|\*\*\*' "$tree/check.out" | head -n 20
            count failed "build/$name: not all tests build"
        fi
    fi
    local before=$((total_passed + total_failed))
    tally_tree "$tree"
    [ $((total_passed + total_failed)) -gt "$before" ] || count failed "build/$name ran no test"
    echo "build/$name took $((SECONDS - begin)) s"
}

export RINGPOLL_DIFFERENTIAL_OPS=30000
if wanted plain; then
    check_tree plain check --enable-werror 'CXXFLAGS=-O1 -g1'
    why_skipped "$work/plain"

    # The long differential runs go where everything is in play; the other engines
    # had the short one above.
    # long_runs OPERATIONS RUN…
    long_runs() {
        local operations=$1 before=$((total_passed + total_failed))
        shift
        find "$work/plain" -name '*.trs' -delete
        RINGPOLL_DIFFERENTIAL_OPS=$operations make -C "$work/plain" -j "$jobs" -k check-TESTS "TESTS=$*" \
            check_PROGRAMS= check_SCRIPTS= dist_check_SCRIPTS= > "$work/plain/long.out" 2>&1
        tally_tree "$work/plain"
        [ $((total_passed + total_failed)) -gt "$before" ] || count failed "the long differential run did not run"
    }
    begin=$SECONDS
    say "plain: $plain_ops differential operations on the library and on the shim with profile readiness"
    long_runs "$plain_ops" tests/conformance/differential-native--full.run \
        tests/conformance/differential-shim-readiness--full.run
    stream_ops=$((plain_ops / 5))
    say "plain: $stream_ops where the ring receives and sends: events, then streams"
    long_runs "$stream_ops" tests/conformance/differential-shim--full.run \
        tests/conformance/differential-shim-throughput--full.run \
        tests/stream/differential-shim--full.run tests/stream/differential-throughput--full.run
    echo "the long differential run took $((SECONDS - begin)) s"
fi
if wanted asan; then
    # The shim is loaded before the runtime it needs, which comes with the
    # program: that order is meant.
    export ASAN_OPTIONS=verify_asan_link_order=0:detect_stack_use_after_return=1:abort_on_error=0
    export UBSAN_OPTIONS=print_stacktrace=1
    check_tree asan check-rooms --disable-static --enable-sanitize=address,undefined 'CFLAGS=-O1 -g' 'CXXFLAGS=-O0 -g1'
fi
if wanted tsan; then
    export TSAN_OPTIONS=halt_on_error=0:second_deadlock_stack=1
    check_tree tsan check-rooms --disable-static --enable-sanitize=thread 'CFLAGS=-O1 -g' 'CXXFLAGS=-O0 -g1'
fi
unset ASAN_OPTIONS UBSAN_OPTIONS TSAN_OPTIONS
if wanted no-uring; then
    export RINGPOLL_TEST_NO_URING=1
    check_tree no-uring 'check-rooms ROOMS=conformance' --disable-static --with-uring=no --enable-werror 'CXXFLAGS=-O0'
    unset RINGPOLL_TEST_NO_URING
fi
if wanted clang; then
    say "clang"
    if ! have clang; then
        count skipped "there is no clang"
    elif configure_tree "$work/clang" CC=clang --disable-tests --enable-werror && make_tree "$work/clang" all; then
        count ok "it compiles with clang"
    else
        count failed "it compiles with clang"
    fi
fi
if wanted cross; then
    # The first has the system call instruction written out as x86-64 has, the
    # second stands for all machines that have not, and for 32 bits.
    for machine in aarch64 i686; do
        say "cross: $machine"
        if ! have "$machine-linux-gnu-gcc"; then
            count skipped "there is no $machine-linux-gnu-gcc"
        elif configure_tree "$work/cross-$machine" "--host=$machine-linux-gnu" --disable-tests --enable-werror \
            --with-libevent=no --with-libuv=no && make_tree "$work/cross-$machine" all; then
            count ok "it compiles for $machine"
        else
            count failed "it compiles for $machine"
        fi
    done
fi

# ------------------------------------------------- the tarball, the installation

# Runs NAME COMMAND…: counts it, and shows what it printed when it fails.
try() {
    local name=$1
    shift
    if "$@" > "$work/try.out" 2>&1; then
        count ok "$name"
    else
        tail -n 40 "$work/try.out"
        count failed "$name"
    fi
}

tarball_is_complete() { # DIRECTORY
    local tarball lost
    tarball=$(find "$1" -maxdepth 1 -name 'ringpoll-*.tar.gz' | head -n 1)
    [ -n "$tarball" ] || { echo "there is no tarball"; return 1; }
    lost=$(comm -23 <(git -C "$top" ls-files | grep -vxF .gitignore | sort) \
        <(tar tzf "$tarball" | sed 's,^[^/]*/,,' | sort))
    [ -z "$lost" ] || { printf 'git has these, the tarball does not (EXTRA_DIST):\n%s\n' "$lost"; return 1; }
}

# What a stranger does who has only what was installed.
consumer() { # PREFIX shared|static COMPILER STANDARD
    local prefix=$1 kind=$2 compiler=$3 standard=$4 program=$work/consumer-$2
    local -a static=()
    [ "$kind" = shared ] || static=(-static)
    export PKG_CONFIG_PATH=$prefix/lib/pkgconfig
    cat > "$program.c" << 'END'
#include <ringpoll/ringpoll.h>
#include <stdio.h>
#include <unistd.h>

int main(void)
{
    int ends[2], set = ringpoll_create(NULL);
    struct epoll_event event = {}, got = {};
    struct timespec soon = {5, 0};
    event.events = EPOLLIN;
    event.data.u64 = 42;
    if (set < 0 || pipe(ends) || ringpoll_ctl(set, EPOLL_CTL_ADD, ends[0], &event) || write(ends[1], "x", 1) != 1)
        return 1;
    if (ringpoll_wait(set, &got, 1, &soon, NULL) != 1 || got.data.u64 != 42 || got.events != EPOLLIN)
        return 2;
    printf("%s\n", ringpoll_version());
    return ringpoll_close(ends[0]) || ringpoll_close(set);
}
END
    # shellcheck disable=SC2046
    "$compiler" "-std=$standard" -D_GNU_SOURCE -Wall -Wextra -Werror -Wno-missing-field-initializers \
        $([ "$compiler" = g++ ] && echo -x c++) "$program.c" -x none "${static[@]}" -o "$program" \
        $(pkg-config --cflags --libs ${static:+--static} ringpoll) || return 1
    [ "$(LD_LIBRARY_PATH=$prefix/lib "$program")" = "$(pkg-config --modversion ringpoll)" ]
}

installed_command_runs() { # PREFIX
    "$1/bin/ringpoll" --version && "$1/bin/ringpoll" run -- python3 -c '
import os, select
reader, writer = os.pipe()
poll = select.epoll()
poll.register(reader, select.EPOLLIN)
os.write(writer, b"x")
assert poll.poll(5) == [(reader, select.EPOLLIN)]
'
}

# What cannot be had is refused where somebody asked for it, by one sentence that
# names the option, and is done without where nobody did.
refuses() { # OPTION WORD [VARIABLE=VALUE…]
    local tree=$work/refused option=$1 word=$2
    shift 2
    rm -rf "$tree"
    mkdir -p "$tree"
    if (cd "$tree" && env "$@" "$top/configure" -q --disable-tests "$option") > "$tree/out" 2>&1; then
        echo "configure takes $option"
        return 1
    fi
    [ "$(grep -c '^configure: error: ' "$tree/out")" -eq 1 ] && grep -qF -- "${option%%=*}" "$tree/out" &&
        grep -qF -- "$word" "$tree/out" || { cat "$tree/out"; return 1; }
}

configures_without_packages() {
    local tree=$work/refused
    rm -rf "$tree"
    mkdir -p "$tree"
    (cd "$tree" && PKG_CONFIG_LIBDIR=/nonexistent "$top/configure" -q --disable-tests) > "$tree/out" 2>&1 &&
        grep -qE '^ +libevent +no$' "$tree/out" && grep -qE '^ +libuv +no$' "$tree/out" || { cat "$tree/out"; return 1; }
}

# A program of somebody else with one line more in its configure.ac.
with_uring() { # PREFIX FLAG on-a-ring|on-epoll
    local tree=$work/with-uring served=$3
    rm -rf "$tree"
    cp -r "$top/examples/epoll" "$tree"
    "$1/bin/ringpoll" probe > "$work/probe.out" || served=on-epoll
    (cd "$tree" && ACLOCAL_PATH=$1/share/aclocal autoreconf -fi && ./configure -q "$2" && make -s &&
        ./client.py ./shout "$served" && RINGPOLL=off ./client.py ./shout on-epoll)
}
with_uring_and_run() { # PREFIX
    (cd "$work/with-uring" && "$1/bin/ringpoll" run -- ./client.py ./shout)
}
with_uring_is_refused() { # PREFIX
    local tree=$work/with-uring
    # Also where pkg-config would find another one.
    ! (cd "$tree" && ./configure -q --with-uring=perhaps) &&
        ! (cd "$tree" && PKG_CONFIG_PATH=$1/lib/pkgconfig ./configure -q --with-uring=/nonexistent)
}

nothing_is_left() { # PREFIX
    local left
    left=$(find "$1" ! -type d)
    [ -z "$left" ] || { printf 'uninstall leaves:\n%s\n' "$left"; return 1; }
}

if wanted dist; then
    say "the tarball and the installation"
    tree=$work/dist prefix=$work/dist/prefix
    rm -rf "$prefix"
    if ! configure_tree "$tree" "--prefix=$prefix" --disable-tests; then
        count failed "build/dist: configure"
    else
        try "make distcheck" make_tree "$tree" distcheck DISTCHECK_CONFIGURE_FLAGS='--disable-tests --enable-werror'
        if in_git; then
            try "the tarball has every file that git has" tarball_is_complete "$tree"
        else
            count skipped "the tarball has every file that git has (this is no git tree)"
        fi
        try "make install" make_tree "$tree" install
        try "a C11 program builds by pkg-config and runs" consumer "$prefix" shared gcc gnu11
        try "the same with the static library" consumer "$prefix" static gcc gnu11
        try "the same in C++17" consumer "$prefix" shared g++ gnu++17
        try "the installed command runs a program" installed_command_runs "$prefix"
        try "a program is configured --with-uring and runs on a ring" with_uring "$prefix" "--with-uring=$prefix" on-a-ring
        try "the same by pkg-config's path alone" with_uring "$prefix" "PKG_CONFIG_PATH=$prefix/lib/pkgconfig" on-a-ring
        try "under ringpoll run it has one shim" with_uring_and_run "$prefix"
        try "the same --without-uring runs on epoll" with_uring "$prefix" --without-uring on-epoll
        try "its configure refuses what it does not find" with_uring_is_refused "$prefix"
        rm -rf "$work/with-uring"
        if [ -e "$prefix/lib/pkgconfig/ringpoll-event.pc" ]; then
            try "libevent's examples build by pkg-config and run" python3 "$top/tests/libevent/examples_test.py" "$prefix"
        else
            count skipped "libevent's examples build by pkg-config and run (there is no libevent)"
        fi
        if [ -e "$prefix/lib/pkgconfig/ringpoll-uv.pc" ]; then
            try "libuv's examples build by pkg-config and run" python3 "$top/tests/libuv-api/examples_test.py" "$prefix"
        else
            count skipped "libuv's examples build by pkg-config and run (there is no libuv)"
        fi
        try "make uninstall" make_tree "$tree" uninstall
        try "make uninstall leaves nothing" nothing_is_left "$prefix"
    fi
    try "configure does without what is not there" configures_without_packages
    for package in libevent libuv; do
        try "--with-$package=yes fails without it" refuses "--with-$package=yes" "does not find" PKG_CONFIG_LIBDIR=/nonexistent
        try "--with-$package=perhaps is refused" refuses "--with-$package=perhaps" '"perhaps"'
    done
    try "--with-uring=yes fails where there can be none" refuses --with-uring=yes "cannot have io_uring" CPPFLAGS=-D__alpha__
    try "--with-uring=perhaps is refused" refuses --with-uring=perhaps '"perhaps"'
    try "--enable-sanitize=bogus is refused" refuses --enable-sanitize=bogus '"bogus"'
    try "--enable-sanitize=address,thread is refused" refuses --enable-sanitize=address,thread '"address,thread"'
    rm -rf "$work/refused"
fi
if wanted upstream; then
    # A test of theirs that fails here and not on epoll is a failed one of ours.
    for project in libevent libuv; do
        "$top/scripts/upstream.sh" --quick "$project" 2>&1 | tee "$work/upstream.out"
        if [ "${PIPESTATUS[0]}" -eq 77 ]; then
            count skipped "$project's own suite"
        elif tail -n 1 "$work/upstream.out" |
            grep -qE "^upstream $project: [0-9]+ passed, [0-9]+ failed, [0-9]+ skipped\$"; then
            read -r _ _ p _ f _ s _ < <(tail -n 1 "$work/upstream.out")
            total_passed=$((total_passed + p)) total_failed=$((total_failed + f)) total_skipped=$((total_skipped + s))
            [ "$f" -eq 0 ] || failures+=("$project's own suite: $(grep -oE '^(\*\*.*\*\*|NOT OK: .*|\[  FAILED  \] [A-Za-z][^ ,]*)' "$work/upstream.out" |
                sort -u | tr '\n' ' ')")
        else
            count failed "$project's own suite did not run"
        fi
    done

    # Programs of the distribution, on the libraries that were just built --with-uring.
    export RINGPOLL_LIBEVENT_DIR=$work/upstream/libevent/uring/.libs RINGPOLL_LIBUV_DIR=$work/upstream/libuv/uring/.libs
    [ -e "$RINGPOLL_LIBEVENT_DIR/libevent.so" ] || unset RINGPOLL_LIBEVENT_DIR
    [ -e "$RINGPOLL_LIBUV_DIR/libuv.so.1" ] || unset RINGPOLL_LIBUV_DIR
    for program in coturn memcached pgbouncer sslsplit terminal tor transmission luv named node uvloop; do
        say "$program on a library --with-uring"
        top_builddir=$work/upstream/build-prefix RINGPOLL_TEST_MODES=epoll,built,off \
            python3 "$top/tests/programs/${program}_test.py" > "$work/upstream.out" 2>&1
        if [ $? -eq 77 ]; then
            count skipped "$program on a library --with-uring: $(grep -m 1 skipped: "$work/upstream.out" ||
                tail -n 1 "$work/upstream.out")"
        elif tail -n 1 "$work/upstream.out" | grep -qE '^[a-z]+: [0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$'; then
            read -r _ p _ f _ s _ < <(tail -n 1 "$work/upstream.out")
            tail -n 1 "$work/upstream.out"
            total_passed=$((total_passed + p)) total_failed=$((total_failed + f)) total_skipped=$((total_skipped + s))
            [ "$f" -eq 0 ] || grep -A 20 -E 'FAILED|differs: ' "$work/upstream.out"
            [ "$f" -eq 0 ] || failures+=("$program on a library --with-uring")
        else
            tail -n 20 "$work/upstream.out"
            count failed "$program on a library --with-uring"
        fi
    done
    unset RINGPOLL_LIBEVENT_DIR RINGPOLL_LIBUV_DIR
fi
if in_git; then
    litter=$(comm -13 <(echo "$untracked_before") <(untracked))
    if [ -z "$litter" ]; then
        count ok "building and testing leaves nothing in the sources"
    else
        sed 's/^/    /' <<< "$litter"
        count failed "building and testing leaves nothing in the sources"
    fi
fi

say "all took $((SECONDS - started)) s"
say_failures
echo "$total_passed passed, $total_failed failed, $total_skipped skipped"
[ "$total_failed" -eq 0 ] && [ "$total_passed" -gt 0 ]
