/* SPDX-License-Identifier: MIT
 *
 * A TCP connection whose packets nobody copies. Between two sockets of one machine the kernel
 * copies, sooner or later, what a zero-copy send has sent; so the peer is made up, in a network
 * namespace of the calling thread's own (root): the connection is put into being established by
 * TCP_REPAIR, its packets leave by an `ifb` device, which drops what nobody redirected to it, and
 * what the peer would acknowledge is written into a `tun` device.
 */
#ifndef BENCH_MADE_UP_PEER_H
#define BENCH_MADE_UP_PEER_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct made_up_peer {
    int fd, tun;       /* the connection, non-blocking; the caller closes both, also on failure; -1: none */
    uint32_t sequence; /* acknowledged */
    char refused[256];
};

/* The calling thread is in a namespace of its own after this. 0; -1: `refused` says what was. */
int made_up_connect(struct made_up_peer *peer, unsigned mtu);
/* So many more bytes have arrived. */
int made_up_acknowledge(struct made_up_peer *peer, uint32_t bytes);

#ifdef __cplusplus
}
#endif

#endif
