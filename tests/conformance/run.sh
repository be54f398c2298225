#!/bin/sh
# SPDX-License-Identifier: MIT
#
# One run of a conformance program: run.sh PROGRAM ENGINE [MASK] [more gtest or
# program options]. The engine "shim" is the plain program under LD_PRELOAD, in the
# default profile; "shim-readiness" and "shim-throughput" in the others.
# Fails a run that should have been carried by a ring and was not; exits 77
# where this kernel has no io_uring for a run that needs one.
set -u
program=$1 engine=$2 mask=${3-}
shift 2
[ $# -gt 0 ] && shift
unset RINGPOLL RINGPOLL_STATS RINGPOLL_PROFILE
RINGPOLL_DIFFERENTIAL_RUN=tests/conformance/differential-$engine--${mask:-full}.run
export RINGPOLL_DIFFERENTIAL_RUN
case $engine in
shim-*)
    RINGPOLL_PROFILE=${engine#shim-} engine=shim
    export RINGPOLL_PROFILE
    ;;
esac

RINGPOLL_TEST_ENGINE=$engine
RINGPOLL_MASK=$mask
[ "$mask" = full ] && RINGPOLL_MASK=
export RINGPOLL_TEST_ENGINE RINGPOLL_MASK

# What should carry the events. A ring without DEFER_TASKRUN is for those who
# ask for it.
case $engine/$RINGPOLL_MASK in
kernel/* | */no-uring) expect=kernel ;;
anyring/as-5.10 | sq*/as-5.10 | declared/*) expect=either ;;
anyring/* | sq*/* | */ | */as-6.1) expect=ring ;;
*) expect=kernel ;;
esac
[ -n "${RINGPOLL_TEST_NO_URING-}" ] && expect=kernel # built --with-uring=no
if [ "$expect" = ring ] && [ "$(cat /proc/sys/kernel/io_uring_disabled 2>/dev/null || echo 0)" = 2 ]; then
    echo "SKIP: kernel.io_uring_disabled is 2"
    exit 77
fi
RINGPOLL_TEST_EXPECT=$expect
export RINGPOLL_TEST_EXPECT

# What is known to differ and can be met here, the driver knows: see its head.
case $program in
*differential)
    without=
    case $engine in native | declared) without=rawread ;; esac # it reports all reads, or none
    if [ "$engine" = shim ] && [ "${RINGPOLL_PROFILE-}" != readiness ]; then
        without=fill,oob # docs/design.md, "Known differences" 12
        RINGPOLL_DIFFERENTIAL_RECEIVES=yes
        export RINGPOLL_DIFFERENTIAL_RECEIVES
    fi
    # The same scripts in each run, so that a test fails for what was changed. New ones, by
    # hand: RINGPOLL_DIFFERENTIAL_SEED=$RANDOM before any of these runs.
    RINGPOLL_DIFFERENTIAL_SEED=${RINGPOLL_DIFFERENTIAL_SEED-20261126}
    export RINGPOLL_DIFFERENTIAL_SEED
    RINGPOLL_DIFFERENTIAL_WITHOUT=${RINGPOLL_DIFFERENTIAL_WITHOUT-$without}
    export RINGPOLL_DIFFERENTIAL_WITHOUT
    ;;
esac

if [ "$engine" != shim ]; then
    exec "$program" "$@"
fi

[ -r "${RINGPOLL_PRELOAD:-}" ] || { echo "SKIP: no shim at '${RINGPOLL_PRELOAD:-}'"; exit 77; }
preload=$RINGPOLL_PRELOAD
# The address sanitizer's runtime wants to be the first of all libraries. The thread
# sanitizer's comes with the program, and has to stand behind the shim: what is called
# from inside one of its blocking functions is to it no code of the program's, and
# the locks that are taken there do not count.
case ${RINGPOLL_SANITIZE:-} in
*address*) preload="$(${CC:-cc} -print-file-name=libasan.so) $preload" ;;
esac
case $program in
*differential) # it starts one process under the shim and one without
    RINGPOLL_TEST_PRELOAD=$preload
    export RINGPOLL_TEST_PRELOAD
    exec "$program" "$@"
    ;;
esac
stats=$(mktemp) || exit 99
trap 'rm -f "$stats"' EXIT
RINGPOLL=auto RINGPOLL_STATS=$stats LD_PRELOAD=$preload "$program" "$@"
status=$?
if [ "$status" = 0 ]; then
    rings=$(awk '$1 == "rings_made" { n += $2 } END { print n + 0 }' "$stats")
    cqes=$(awk '$1 == "cqes" { n += $2 } END { print n + 0 }' "$stats")
    adoptions=$(awk '$1 == "adoptions" { n += $2 } END { print n + 0 }' "$stats")
    echo "shim: $rings rings, $cqes completions, $adoptions adoptions"
    if [ "$expect" = ring ] && [ "$cqes" -eq 0 ] && [ $# -eq 0 ]; then
        echo "FAIL: this run was to be on a ring; the shim says:"
        cat "$stats"
        exit 1
    fi
    if [ "${RINGPOLL_PROFILE-}" = readiness ] && [ "$adoptions" -gt 0 ]; then
        echo "FAIL: the profile readiness adopts nothing"
        exit 1
    fi
    if [ "${RINGPOLL_PROFILE-}" != readiness ] && [ "$expect" = ring ] && [ "$adoptions" -eq 0 ] && [ $# -eq 0 ]; then
        echo "FAIL: this run was to adopt sockets and did not"
        exit 1
    fi
fi
exit "$status"
