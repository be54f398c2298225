/* SPDX-License-Identifier: MIT
 *
 * Provided buffers: what multishot receives put their bytes into.
 *
 * Two objects, because received bytes may outlive the ring they came by:
 *
 *  - the *pool* is memory and the table of its buffers. It is counted: the set
 *    holds one reference, each borrowed buffer another, each stream that has
 *    bytes left when the set goes a third. The last one frees it.
 *  - the *buffers* are the ring that the kernel takes them from, registered with
 *    one io_uring, under the lock of that ring's set.
 *
 * A buffer is in one place at a time:
 *
 *   FREE ──given──→ KERNEL ──a completion names it──→ QUEUED (a stream's) ──read──→ FREE
 *                                                        └──borrowed──→ LENT ──returned──→ FREE
 *
 * A *lone* buffer is a pool of one that no ring ever had (`count` 0), for plain reads beside
 * those: LENT from the beginning. Some that came back are kept for the next.
 *
 * Freed ones are given again all together, before the ring is entered, the last one
 * freed first: it is in the cache. As many are given as were ever needed at once
 * (`target`), to which each receive that finds none (ENOBUFS) adds one: twice as many
 * as are needed, turn by turn, cost 150 cycles per message (measured, 64 connections);
 * memory that was never given is never touched. Between two
 * buffers lie an odd number of cache lines, so that their first lines, which small
 * messages live in, spread over the whole cache.
 */
#ifndef RP_BUFFERS_H
#define RP_BUFFERS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "abi.h"
#include "lock.h"
#include "ring.h"

/* Payload per buffer, and what a RECVMSG puts before it: its header (16 bytes), and room
 * for as many passed fds as one message can have (253: 1032 bytes), and for the payload
 * to begin a cache line. */
#define RP_BUFFER_CONTROL 1072u
#define RP_BUFFER_BYTES 4096u
#define RP_BUFFER_STRIDE (81u * 64u)
#define RP_BUFFERS_GROUP 0

/* Bytes of a buffer that nobody has read yet. */
struct rp_segment {
    uint32_t at, length; /* from the buffer's begin */
    uint16_t next;       /* in a stream's queue or a free list: number + 1, 0: none */
    uint16_t control;    /* bytes of control data at 16, AF_UNIX */
};

struct rp_pool {
    uint32_t references; /* atomic */
    uint32_t count;      /* buffers there is room for */
    size_t mapped;
    struct rp_lock lock; /* leaf: returned */
    uint32_t returned;   /* list of lent buffers that came back, number + 1. Peeked at unlocked */
    uint32_t returned_here; /* the same, by the thread that has the ring: nobody else touches it */
    uint64_t owner;      /* rp_self.id of that thread */
    struct rp_segment *segments;
    unsigned char *data;
};

struct rp_buffers {
    struct rp_pool *pool; /* NULL: not made */
    struct rp_buf_ring *ring;
    size_t ring_bytes;
    uint32_t mask;
    uint16_t tail;
    uint16_t free_head;  /* number + 1 */
    uint32_t made;       /* numbers below have been used */
    uint32_t given;      /* with the kernel */
    uint32_t target;     /* as many should be */
};

static inline unsigned char *rp_pool_bytes(const struct rp_pool *pool, uint32_t number)
{
    return pool->data + (size_t)number * RP_BUFFER_STRIDE;
}

/* Registers a buffer ring of up to `count` (a power of two, at most 32768) with
 * the ring; 0 or -errno. Owner thread. */
int rp_buffers_init(struct rp_buffers *buffers, struct rp_ring *ring, uint32_t count);
/* Nothing of the ring is in flight. Borrowed and queued buffers stay readable. */
void rp_buffers_fini(struct rp_buffers *buffers, struct rp_ring *ring);
/* In a fork's child: the ring is the parent's, the pool a copy. */
void rp_buffers_abandon(struct rp_buffers *buffers);

/* A completion named buffer `number`. */
static inline void rp_buffers_taken(struct rp_buffers *buffers)
{
    buffers->given--;
}
/* → FREE: it was read to its end (or the ring is gone: then nothing happens). */
static inline void rp_buffers_recycle(struct rp_buffers *buffers, struct rp_pool *pool, uint32_t number)
{
    if (buffers->pool != pool) /* of a ring that has gone */
        return;
    pool->segments[number].next = buffers->free_head;
    buffers->free_head = (uint16_t)(number + 1);
}
/* A receive found none. False: all there are were in use. */
bool rp_buffers_starved(struct rp_buffers *buffers);
/* Before an enter: takes back what was lent and has been returned, and gives what is free. */
void rp_buffers_refill_at_length(struct rp_buffers *buffers);
static inline void rp_buffers_refill(struct rp_buffers *buffers)
{
    struct rp_pool *pool = buffers->pool;
    if (pool && ((buffers->free_head && buffers->given < buffers->target) ||
                 pool->returned_here || __atomic_load_n(&pool->returned, __ATOMIC_RELAXED)))
        rp_buffers_refill_at_length(buffers);
}

/* A lone one with room for so many bytes, or NULL. Any thread. */
struct rp_pool *rp_pool_lone(size_t bytes, size_t *ret_room);
void rp_pool_get(struct rp_pool *pool);
void rp_pool_put(struct rp_pool *pool);
/* A lent buffer comes back; any thread. Gives up the loan's reference. */
void rp_pool_return(struct rp_pool *pool, uint32_t number);

#endif
