/* SPDX-License-Identifier: MIT
 *
 * Registered files: a table of the ring's, whose slots stand for fds in SQEs
 * (RINGPOLL_FIXED_FILES).
 *
 * A filled slot holds its file open, as an armed poll does: it is cleared before
 * the fd is closed. So a slot belongs to a stream that is adopted, and goes with the
 * end of the receive, which every way out of adoption waits for. Only sends name it:
 * they end inside the enter that submits them. A receive that did would hold the file
 * of every slot that is cleared after it (before Linux 6.13).
 *
 * Filling and clearing are a system call each, so only streams that have paid get
 * one. Where the table is full, or the kernel refuses, the fd itself does.
 *
 * Owner thread, under the lock of the set.
 */
#ifndef RP_FILES_H
#define RP_FILES_H

#include <stdint.h>

#include "ring.h"

#define RP_FILES_COUNT 1024u

struct rp_files {
    uint16_t *next;     /* free list, number + 1; NULL: no table */
    uint32_t count;
    uint32_t used;
    uint16_t free_head; /* number + 1, 0: none */
};

/* Registers a table of `count` (at most 65535) empty slots; 0 or -errno. */
int rp_files_init(struct rp_files *files, struct rp_ring *ring, uint32_t count);
void rp_files_fini(struct rp_files *files, struct rp_ring *ring);
/* In a fork's child: the table is the parent's. */
void rp_files_abandon(struct rp_files *files);
/* A slot, number + 1, that stands for `fd` from now on; 0: none is to be had. */
uint16_t rp_files_fill(struct rp_files *files, struct rp_ring *ring, int fd);
/* The file is let go of when this returns. */
void rp_files_clear(struct rp_files *files, struct rp_ring *ring, uint16_t slot);

#endif
