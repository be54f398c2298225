/* SPDX-License-Identifier: MIT
 *
 * Which features this kernel really has, found by trying, minus the masked.
 * Found once per process, lazily, in one of two depths: the cheap one (what a
 * ring for readiness needs, from one io_uring_setup and REGISTER_PROBE) and the
 * full one behind ringpoll_get_probe().
 */
#ifndef RP_PROBE_H
#define RP_PROBE_H

#include <stdbool.h>
#include <stdint.h>

struct rp_ring;

/* The mask of $RINGPOLL_MASK (0 when unset; words that are wrong are ignored
 * here: the command checks them). Read once. */
uint64_t rp_probe_masked(void);
/* features & ~masked, and without what depends on something missing. */
uint64_t rp_probe_close_over(uint64_t features, uint64_t masked);
/* RINGPOLL_FEATURE_RECV_END, tried once per process on this ring, which has nothing in
 * flight: to end one of its own would be seen by the program, see owner.c. */
bool rp_probe_recv_end(struct rp_ring *ring);
/* RINGPOLL_KNOB_* for a negative errno of io_uring_setup. */
uint32_t rp_probe_knob(int error);

#endif
