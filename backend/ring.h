/* SPDX-License-Identifier: MIT
 *
 * One io_uring: the only file pair that touches SQ and CQ memory and barriers.
 * Nothing here knows what an operation means. A ring belongs to the thread that
 * made it; no function may be called by another thread.
 */
#ifndef RP_RING_H
#define RP_RING_H

#include <limits.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include "abi.h"

struct rp_ring_options {
    unsigned sq_entries, cq_entries;
    bool sqpoll, sq_aff;
    unsigned sq_thread_cpu, sq_thread_idle_ms;
    uint64_t features; /* RINGPOLL_FEATURE_* that may be used */
    bool single_thread; /* the process has one thread: register the ring fd */
    uint32_t credentials; /* SQPOLL: those its thread has, by rp_process_credentials */
};

#define RP_RING_NO_FD INT_MAX

struct rp_ring {
    int fd;              /* -1: not made; RP_RING_NO_FD: closed, and reached as a registered ring */
    int enter_fd;        /* fd, or the registered index */
    unsigned enter_flags; /* always or-ed in: REGISTERED_RING, NO_IOWAIT */
    unsigned setup_flags;
    unsigned kernel_features; /* IORING_FEAT_* */
    uint64_t features;        /* RINGPOLL_FEATURE_* this ring really runs with */
    /* submission */
    uint32_t *sq_head, *sq_tail, *sq_flags, *sq_array;
    struct rp_sqe *sqes;
    uint32_t sq_mask, sq_entries;
    uint32_t sqe_tail;  /* ours: next to fill */
    uint32_t sqe_head;  /* ours: first not yet handed to the kernel */
    /* completion */
    uint32_t *cq_head, *cq_tail, *cq_overflow;
    struct rp_cqe *cqes;
    uint32_t cq_mask, cq_entries;
    uint32_t cq_next;    /* ours: next to read */
    uint32_t cq_held_max; /* CQEs that we read but let the kernel count, see rp_ring_seen */
    /* mappings */
    void *map_sq, *map_cq, *map_sqes;
    size_t map_sq_size, map_cq_size, map_sqes_size;
    uint32_t barren;     /* enters in a row that brought nothing and left TASKRUN up */
    /* counters, for stats */
    uint64_t enters, sqes_submitted, cqes_reaped, overflows;
};

/* Makes a ring, descending the flag ladder on EINVAL (DEFER_TASKRUN |
 * SINGLE_ISSUER, COOP_TASKRUN | TASKRUN_FLAG, SINGLE_ISSUER…, none; then without
 * SUBMIT_ALL, CLAMP, CQSIZE, NO_SQARRAY) and halving sq_entries and cq_entries
 * on ENOMEM. 0 or -errno; nothing is left behind on failure. */
int rp_ring_init(struct rp_ring *ring, const struct rp_ring_options *options);
/* Unmaps and closes. The caller has seen to it that nothing is in flight. NULL
 * and never-made rings are fine. */
void rp_ring_fini(struct rp_ring *ring);
/* After a fork, in the child: closes the inherited fd, touches nothing else. */
void rp_ring_abandon(struct rp_ring *ring);
/* Registers the ring fd with the calling thread, where that is possible. */
void rp_ring_register_fd(struct rp_ring *ring);
/* Gives up the registered ring fd (the process has got a second thread). */
void rp_ring_unregister_fd(struct rp_ring *ring);

/* io_uring_register(2) on it. */
int rp_ring_register(struct rp_ring *ring, unsigned opcode, const void *arg, unsigned count);

/* A zeroed SQE to fill, or NULL when the SQ is full (then enter first). It is
 * queued from this moment on. */
static inline struct rp_sqe *rp_ring_get_sqe(struct rp_ring *ring)
{
    uint32_t head = ring->sqe_head;
    if (ring->setup_flags & RP_SETUP_SQPOLL)
        head = __atomic_load_n(ring->sq_head, __ATOMIC_ACQUIRE);
    if (ring->sqe_tail - head >= ring->sq_entries)
        return NULL;
    struct rp_sqe *sqe = &ring->sqes[ring->sqe_tail & ring->sq_mask];
    memset(sqe, 0, sizeof *sqe);
    ring->sqe_tail++;
    return sqe;
}
/* The one at this position, which the kernel has not taken, does nothing. */
static inline void rp_ring_take_back(struct rp_ring *ring, uint32_t at)
{
    struct rp_sqe *sqe = &ring->sqes[at & ring->sq_mask];
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = RP_IORING_OP_NOP;
}
/* SQEs filled and not yet taken by the kernel. */
static inline unsigned rp_ring_queued(const struct rp_ring *ring)
{
    return ring->sqe_tail - ring->sqe_head;
}

/* Hands all queued SQEs to the kernel, runs pending task work (GETEVENTS is
 * always passed) and waits until the CQ holds `min_complete` completions.
 * `timeout` is relative, NULL for ever (ignored when min_complete is 0);
 * `sigmask` NULL leaves the mask alone; both need EXT_ARG. Returns the number
 * of SQEs taken, or -errno: -EINTR, -ETIME, -EBUSY, -EAGAIN (task memory; SQEs
 * stay queued), -EBADR (a completion was dropped), -EEXIST (another thread's
 * ring), -EPERM, -EBADFD, -ENXIO. Each meaning stands at its place in ring.c.
 * Where SQEs were taken or CQEs are held back (rp_ring_seen), EINTR and ETIME are
 * hidden: then a wait that ends with nothing new in the CQ was one of the two.
 * SQPOLL is woken when it sleeps. */
int rp_ring_enter(struct rp_ring *ring, unsigned min_complete, const struct timespec *timeout,
                  const sigset_t *sigmask);

/* SQPOLL: the kernel's thread takes SQEs and runs what wake-ups left for it
 * later than they come, and nothing tells that it has. A fence is queued like an
 * SQE; its completion, with this user_data, comes after those of everything that
 * was queued or had happened before it was handed over. False: the SQ is full. */
bool rp_ring_fence(struct rp_ring *ring, uint64_t user_data);
/* SQPOLL: its thread is up, and may be spun for. */
static inline bool rp_ring_thread_is_awake(const struct rp_ring *ring)
{
    return (__atomic_load_n(ring->sq_flags, __ATOMIC_RELAXED) & RP_SQ_NEED_WAKEUP) == 0;
}

/* Work waits that only an enter with GETEVENTS runs (TASKRUN), or the kernel
 * holds completions back (CQ_OVERFLOW). Always false on a ring without
 * TASKRUN_FLAG and overflow. */
static inline bool rp_ring_wants_enter(const struct rp_ring *ring)
{
    return (__atomic_load_n(ring->sq_flags, __ATOMIC_ACQUIRE) & (RP_SQ_TASKRUN | RP_SQ_CQ_OVERFLOW)) != 0;
}

/* Completions did not fit into the CQ, and the kernel keeps them. */
static inline bool rp_ring_is_overflown(const struct rp_ring *ring)
{
    return (__atomic_load_n(ring->sq_flags, __ATOMIC_ACQUIRE) & RP_SQ_CQ_OVERFLOW) != 0;
}

/* What comes up while pending work runs (a receive makes room, which wakes the other
 * end's poll on this ring; another CPU queues a piece, and sets the flag only after it
 * has run) leaves TASKRUN up with nothing behind it, until something else happens (6.18).
 * To be asked by who has just entered, and has set `barren` to 0 before where it must be
 * sure: twice in vain is enough. */
static inline bool rp_ring_is_up_in_vain(const struct rp_ring *ring)
{
    return ring->barren >= 2 && !rp_ring_is_overflown(ring);
}

/* The CQE at the head or NULL. It stays valid until rp_ring_seen(). */
static inline struct rp_cqe *rp_ring_peek(const struct rp_ring *ring)
{
    uint32_t head = ring->cq_next;
    if (head == __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE))
        return NULL;
    return &ring->cqes[head & ring->cq_mask];
}
/* The head that the kernel sees stays up to cq_held_max entries behind what was
 * read. A DEFER_TASKRUN enter runs at most max(20, min_complete) items of
 * pending work; with entries held back, min_complete can be large and yet be
 * met, so that one enter runs as many as there were (64 pending: 1 enter, not
 * 4). See rp_ring_enter(). */
static inline void rp_ring_give_back(struct rp_ring *ring)
{
    if (ring->cq_next - *ring->cq_head > ring->cq_held_max)
        __atomic_store_n(ring->cq_head, ring->cq_next - ring->cq_held_max, __ATOMIC_RELEASE);
}
/* The CQE that rp_ring_peek() gave was read. Once for several: rp_ring_take() for each, and
 * rp_ring_give_back() after the last. */
static inline void rp_ring_take(struct rp_ring *ring)
{
    ring->cqes_reaped++;
    ring->cq_next++;
}
static inline void rp_ring_seen(struct rp_ring *ring)
{
    rp_ring_take(ring);
    rp_ring_give_back(ring);
}
static inline uint32_t rp_ring_held(const struct rp_ring *ring)
{
    return ring->cq_next - *ring->cq_head;
}

#endif
