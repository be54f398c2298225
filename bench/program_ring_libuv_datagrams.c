/* SPDX-License-Identifier: MIT
 *
 * program_libuv_datagrams.c on the handles of libringpoll-uv, under the same libuv.
 */
#ifdef BENCH_HAVE_LIBUV
#include "uv_names.h"
#endif

#define program_libuv_datagrams program_ring_libuv_datagrams

#include "program_libuv_datagrams.c"
