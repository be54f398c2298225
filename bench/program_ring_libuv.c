/* SPDX-License-Identifier: MIT
 *
 * program_libuv.c on the handles of libringpoll-uv, under the same libuv.
 */
#ifdef BENCH_HAVE_LIBUV
#include "uv_names.h"
#endif

#define program_libuv program_ring_libuv

#include "program_libuv.c"
