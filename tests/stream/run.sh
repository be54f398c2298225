#!/bin/sh
# SPDX-License-Identifier: MIT
#
# One run of a stream test: run.sh PROGRAM ENGINE [MASK] [gtest options]. The engine
# "kernel" is the program as it is, "shim" the same under LD_PRELOAD with the
# profile "safe", "throughput" with that profile. Fails a shim run that adopted no socket though it could have, or
# that held one at its end; exits 77 where this kernel has no io_uring.
set -u
program=$1 engine=$2 mask=${3-}
shift 2
[ $# -gt 0 ] && shift
unset RINGPOLL RINGPOLL_STATS RINGPOLL_PROFILE RINGPOLL_MASK
RINGPOLL_DIFFERENTIAL_RUN=tests/stream/differential-$engine--${mask:-full}.run
export RINGPOLL_DIFFERENTIAL_RUN

# A ring without DEFER_TASKRUN adopts nothing.
profile=safe
[ "$engine" = throughput ] && profile=throughput engine=shim
case $engine/$mask in
shim/full | shim/) expect=adopt ;;
shim/as-6.1) expect=adopt-tcp ;; # its receives on AF_UNIX may miss an end
*) expect=kernel ;;
esac
[ -n "${RINGPOLL_TEST_NO_URING-}" ] && expect=kernel # built --with-uring=no
if [ "$expect" != kernel ] && [ "$(cat /proc/sys/kernel/io_uring_disabled 2>/dev/null || echo 0)" = 2 ]; then
    echo "SKIP: kernel.io_uring_disabled is 2"
    exit 77
fi
RINGPOLL_TEST_EXPECT=$expect
export RINGPOLL_TEST_EXPECT
[ "$engine" = shim ] || exec "$program" "$@"

[ -r "${RINGPOLL_PRELOAD:-}" ] || { echo "SKIP: no shim at '${RINGPOLL_PRELOAD:-}'"; exit 77; }
preload=$RINGPOLL_PRELOAD
# The address sanitizer's runtime wants to be the first of all libraries, the thread
# sanitizer's stands behind the shim: see tests/conformance/run.sh.
case ${RINGPOLL_SANITIZE:-} in
*address*) preload="$(${CC:-cc} -print-file-name=libasan.so) $preload" ;;
esac
[ "$mask" = full ] && mask=
RINGPOLL_MASK=$mask RINGPOLL_PROFILE=$profile
RINGPOLL=auto
[ "$expect" != kernel ] && RINGPOLL=require
case $program in
*differential) # it starts one process under the shim and one without
    # The same scripts in each run, so that a test fails for what was changed. New ones, by
    # hand: RINGPOLL_DIFFERENTIAL_SEED=$RANDOM before any of these runs.
    RINGPOLL_DIFFERENTIAL_SEED=${RINGPOLL_DIFFERENTIAL_SEED-20261126}
    export RINGPOLL_DIFFERENTIAL_SEED
    RINGPOLL_TEST_PRELOAD=$preload RINGPOLL_TEST_MODE=$RINGPOLL
    export RINGPOLL_TEST_PRELOAD RINGPOLL_TEST_MODE RINGPOLL_PROFILE RINGPOLL_MASK
    unset RINGPOLL
    exec "$program" "$@"
    ;;
esac
export RINGPOLL_PROFILE RINGPOLL_MASK RINGPOLL
stats=$(mktemp) || exit 99
trap 'rm -f "$stats"' EXIT
RINGPOLL_STATS=$stats LD_PRELOAD=$preload "$program" "$@"
status=$?
# The first report of this process; its children write their own.
count() { awk -v key="$1" '$1 == key { n += $2 } END { print n + 0 }' "$stats"; }
echo "shim: $(count adoptions) adoptions, $(count received) receives, $(count starved) starved," \
    "$(count calls_saved) calls saved"
if [ "$status" = 0 ]; then
    if [ "$expect" != kernel ] && [ "$(count adoptions)" -eq 0 ]; then
        echo "FAIL: no socket was adopted; the shim says:"
        cat "$stats"
        exit 1
    fi
    if [ "$expect" = kernel ] && [ "$(count adoptions)" -gt 0 ]; then
        echo "FAIL: sockets were adopted on a ring that cannot"
        exit 1
    fi
    if [ "$(count ops_in_flight)" -gt 0 ] || [ "$(count adopted)" -gt 0 ]; then
        echo "FAIL: something is held at the end:"
        cat "$stats"
        exit 1
    fi
fi
exit "$status"
