/* SPDX-License-Identifier: MIT
 *
 * File requests: reads and writes of files (and open, close, fsync, rename, unlink) that the
 * ring makes for the caller, into and out of the caller's own memory.
 *
 *   FREE ──submit──→ QUEUED ──the owner's wait──→ INFLIGHT ──completion──→ DONE ──taken──→ FREE
 *                      │ └─ cached, or nothing to wait for ──────────────────↑
 *                      ├─ cancelled, or the ring goes ───────────────────────┤
 *                      │                   INFLIGHT ──cancel──→ CANCELING ───┘
 *
 * One enum, one step(): a request stands in the list of its state.
 *
 * Who owns what. The record is the set's. The bytes are the caller's, and the kernel's from
 * QUEUED to DONE: this is the one exception to the rule that no SQE points into memory of
 * the caller's. So a ring never ends before the kernel has let go of all of it: it is asked
 * to cancel, and its last completion is waited for, but one that may be lost for a while
 * only (-EIO; closing the ring ends it then). The array of iovecs is read until then,
 * too. After a fork the child's copies are nobody's: they are DONE there, ECANCELED.
 *
 * Who may do what. Where the set has no ring yet any thread submits, and the first wait
 * makes the ring; then its owner alone. Where no ring is to be had, or it goes, what the
 * kernel has not begun is DONE with -ENOTSUP: the caller makes it by other means.
 *
 * How it is read. With few requests in a turn a read is tried by preadv2(RWF_NOWAIT): of
 * cached bytes that costs less than a submission. With more, one enter makes them all,
 * inside the call as far as the bytes are cached; what is not cached waits without a
 * thread (on file systems that can do that). Above RP_REQUEST_INLINE bytes a kernel worker
 * copies, so that the loop never does for long, and so it is not given more than
 * RP_REQUEST_TURN bytes in one turn: the rest stays QUEUED for the next.
 *
 * An open is a kernel worker's from the start: tried in the call, io_uring's opens a FIFO
 * without waiting for its other end. What else is no read goes where the kernel sends it.
 *
 * Of requests at the current position (offset -1) one is in the ring at a time: io_uring
 * takes the position when it begins, and writes it back when it is done. Two fds may be
 * names of one file, so that this goes for all that are on a disk together; for pipes and
 * terminals, which may keep one for long, by fd. The rest is QUEUED, and no reason for a
 * turn: request_queued is set where a flush would find something to begin.
 */
#ifndef RP_REQUEST_H
#define RP_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/uio.h>

struct rp_set;
struct rp_op;

/* Up to so many in a turn are tried at once. */
#define RP_REQUEST_FEW 4u
#define RP_REQUEST_INLINE 65536u
#define RP_REQUEST_TURN 1048576u

enum rp_request_state {
    RP_REQUEST_FREE,
    RP_REQUEST_QUEUED,
    RP_REQUEST_INFLIGHT,
    RP_REQUEST_CANCELING,
    RP_REQUEST_DONE,
    RP_REQUEST_STATES
};

/* Looked up where it matters. */
enum rp_request_place { RP_REQUEST_UNKNOWN, RP_REQUEST_DISK, RP_REQUEST_ELSEWHERE };

struct rp_request {
    struct rp_request *next, *before; /* in the list of its state */
    struct rp_op *op;                 /* INFLIGHT, CANCELING */
    const struct iovec *iov;
    void *user;
    int64_t offset; /* -1: the current position */
    int64_t result; /* DONE */
    uint64_t bytes; /* asked for */
    uint64_t had;   /* of them, read already, by preadv2 */
    struct rp_request *next_at_position;
    int32_t fd;
    uint32_t count;
    uint32_t slot, generation;
    const char *path, *second_path;
    uint32_t flags, mode;
    uint8_t state;   /* enum rp_request_state */
    uint8_t operation; /* RINGPOLL_REQUEST_* */
    bool asked;      /* the caller has cancelled it */
    uint8_t place;   /* enum rp_request_place */
};

struct rp_requests { /* a part of rp_set; under its lock */
    struct rp_request *first[RP_REQUEST_STATES], *last[RP_REQUEST_STATES];
    uint32_t count[RP_REQUEST_STATES];
    struct rp_request **pages; /* RP_REQUEST_PAGE records each; they never move */
    uint32_t pages_used;
    struct rp_request *at_position; /* in flight with offset -1, a list */
    epoll_data_t data;              /* of the event by which a wait tells */
    bool told;                      /* the wake fd stands in the identity, for those that are DONE */
    bool first_turn;                /* of waits that have room for one event */
    bool lost;                      /* a completion, maybe of one of these */
};
#define RP_REQUEST_PAGE 64u
#define RP_REQUEST_PAGES 512u

/* What is QUEUED becomes SQEs, or is DONE. 0 or a negative errno that means that this ring
 * is of no use any more. Owner. */
int rp_request_flush(struct rp_set *set);
void rp_request_completed(struct rp_set *set, struct rp_op *op, int result);
/* The kernel has dropped a completion, and it may have been one of these: the ring goes. */
void rp_request_lost_one(struct rp_set *set);
/* The kernel has some: leaving the ring would wait for them. */
bool rp_request_is_under_way(const struct rp_set *set);
/* Before the ring ends, or where there is none to be had. Returns when the kernel has
 * nothing any more, or has not answered for so long after it dropped a completion, or for
 * want of memory: then ops stay, so that the ring is closed. Owner, or no ring. */
extern uint64_t rp_request_patience_ns; /* less in tests */
void rp_request_end_all(struct rp_set *set);
/* Those that are DONE are to be told to who polls the identity. No ring. */
void rp_request_tell(struct rp_set *set);
/* In a fork's child. */
void rp_request_after_fork(struct rp_set *set);
void rp_request_free_all(struct rp_set *set);

#endif
