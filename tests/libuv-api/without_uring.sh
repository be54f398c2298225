#!/bin/bash
# SPDX-License-Identifier: MIT
#
# The bodies of libuv-api where no ring can be had, and on rings as older kernels have them.
set -u
here=${top_builddir:-.}/tests/libuv-api
result=0
for program in others_test ours_test streams_test; do
    [ -x "$here/$program" ] || { echo "skipped: $program was not built"; exit 77; }
done
for mask in no-uring no-defer no-multishot-recv as-5.13; do
    for program in others_test ours_test streams_test; do
        echo "== $program, RINGPOLL_MASK=$mask"
        RINGPOLL_MASK=$mask "$here/$program" --gtest_filter='-*Stock*' || result=1
    done
done
exit $result
