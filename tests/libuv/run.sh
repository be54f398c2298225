#!/bin/sh
# SPDX-License-Identifier: MIT
#
# run.sh PROGRAM stock|tree [gtest options]: PROGRAM on a stock libuv (the built tree
# $RINGPOLL_LIBUV_STOCK, or the installed one) or on the tree $RINGPOLL_LIBUV_DIR, which was
# configured --with-uring. Exits 77 where that is not to be had, and fails where the tree's
# libuv uses no ring though it could.
set -u
program=$1 side=$2
shift 2
unset RINGPOLL RINGPOLL_STATS RINGPOLL_PROFILE RINGPOLL_MASK UV_USE_RINGPOLL LD_PRELOAD LD_LIBRARY_PATH
case ${RINGPOLL_SANITIZE:-} in
?*) echo "SKIP: a sanitizer's runtime does not meet another build's libuv"; exit 77 ;;
esac
RINGPOLL_TEST_SIDE=$side
export RINGPOLL_TEST_SIDE
if [ "$side" = stock ]; then
    [ -z "${RINGPOLL_LIBUV_STOCK-}" ] || LD_LIBRARY_PATH=$RINGPOLL_LIBUV_STOCK/.libs
    export LD_LIBRARY_PATH
    exec "$program" "$@"
fi
library=${RINGPOLL_LIBUV_DIR-}/.libs/libuv.so.1
if [ -z "${RINGPOLL_LIBUV_DIR-}" ] || [ ! -r "$library" ]; then
    echo "SKIP: RINGPOLL_LIBUV_DIR names no libuv that was built --with-uring: '${RINGPOLL_LIBUV_DIR-}'"
    exit 77
fi
stats=$(mktemp) || exit 99
trap 'rm -f "$stats"' EXIT
LD_LIBRARY_PATH=$RINGPOLL_LIBUV_DIR/.libs RINGPOLL_STATS=$stats "$program" "$@"
status=$?
if [ "$status" = 0 ] && [ $# = 0 ] && [ "$(cat /proc/sys/kernel/io_uring_disabled 2>/dev/null || echo 0)" = 0 ] &&
    ! grep -q '^adoptions [1-9]' "$stats"; then
    echo "FAIL: no socket was adopted; the library says:"
    cat "$stats"
    exit 1
fi
exit "$status"
