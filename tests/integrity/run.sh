#!/bin/sh
# SPDX-License-Identifier: MIT
#
# run.sh DIRECTORY kernel|readiness|safe|throughput [SEED]: both shapes, both kinds of
# sockets, level- and edge-triggered. $RINGPOLL_INTEGRITY_BYTES (320 MB) is the sum over
# the eight, $RINGPOLL_INTEGRITY_CONNECTIONS (500) are open at a time. Fails when a byte
# is wrong, when something hangs, when the program ends badly, when the shim holds a
# socket or an operation at its end, or when it received nothing where it should.
set -u
directory=$1 engine=$2 seed=${3:-$$}
bytes=$((${RINGPOLL_INTEGRITY_BYTES:-320000000} / 8))
connections=${RINGPOLL_INTEGRITY_CONNECTIONS:-500}
unset RINGPOLL RINGPOLL_STATS RINGPOLL_PROFILE RINGPOLL_MASK RINGPOLL_TEST_PRELOAD LD_PRELOAD

stats=$(mktemp) || exit 99
trap 'rm -f "$stats"' EXIT
if [ "$engine" != kernel ]; then
    [ -r "${RINGPOLL_PRELOAD:-}" ] || { echo "SKIP: no shim at '${RINGPOLL_PRELOAD:-}'"; exit 77; }
    if [ "$(cat /proc/sys/kernel/io_uring_disabled 2>/dev/null || echo 0)" = 2 ]; then
        echo "SKIP: kernel.io_uring_disabled is 2"
        exit 77
    fi
    RINGPOLL_TEST_PRELOAD=$RINGPOLL_PRELOAD
    case ${RINGPOLL_SANITIZE:-} in
    *address*) RINGPOLL_TEST_PRELOAD="$(${CC:-cc} -print-file-name=libasan.so) $RINGPOLL_PRELOAD" ;;
    *thread*) RINGPOLL_TEST_PRELOAD="$(${CC:-cc} -print-file-name=libtsan.so) $RINGPOLL_PRELOAD" ;;
    esac
    RINGPOLL=auto RINGPOLL_PROFILE=$engine RINGPOLL_STATS=$stats
    export RINGPOLL_TEST_PRELOAD RINGPOLL RINGPOLL_PROFILE RINGPOLL_STATS
fi
count() { awk -v key="$1" '$1 == key { n += $2 } END { print n + 0 }' "$stats"; }
# A ring without DEFER_TASKRUN adopts nothing; nor does one that is not there.
adopts=no
case $engine in safe | throughput) adopts=yes ;; esac
for shape in echo proxy; do
    for domain in tcp unix; do
        for trigger in level edge; do
            : >"$stats"
            "$directory/driver" "$directory/program" "$shape" "$trigger" "$domain" --bytes "$bytes" \
                --connections "$connections" --seed "$seed" || exit 1
            [ "$engine" = kernel ] && continue
            echo "    $(count adoptions) adoptions, $(count received) receives, $(count starved) starved," \
                "$(count calls_saved) calls saved"
            if [ "$(count ops_in_flight)" -gt 0 ] || [ "$(count adopted)" -gt 0 ]; then
                echo "FAIL: something is held at the end:"
                cat "$stats"
                exit 1
            fi
            if [ "$adopts" = yes ] && [ "$(count adoptions)" -eq 0 ] && [ "$(count enters)" -gt 0 ] &&
                [ "$(uname -r | awk -F. '{ print ($1 * 100 + $2 >= 601) }')" = 1 ]; then
                echo "FAIL: no socket was adopted; the shim says:"
                cat "$stats"
                exit 1
            fi
        done
    done
done
