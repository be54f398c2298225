/* SPDX-License-Identifier: MIT
 *
 * Completion translation: a connected stream socket whose bytes the ring
 * receives before the program asks for them.
 *
 * An fd is *adopted* when a multishot receive stands in for the poll of its
 * watch. What it brings waits in the stream's queue, and read, recv, FIONREAD
 * and their kin are answered from there, exactly as the kernel would have:
 *
 *  - in order: the queue first, the kernel after it, and never the kernel while
 *    a receive is with it;
 *  - EAGAIN without a system call only if the receive is with the kernel, the CQ
 *    is empty and TASKRUN is clear. A DEFER_TASKRUN ring receives nothing but
 *    inside its owner's own enter, and the flag is up before the peer's send
 *    returns, so nothing can have come. That is why only such rings adopt.
 *
 * The receive:
 *
 *   PLAIN ──armed──→ ARMED ──its last completion (end, error, no buffer)──→ PLAIN
 *                      │ └──the owner cancels──→ CANCELING ──the last one──→ PLAIN
 *                      └──not the owner, or not now──→ LEAVING ──its cancel goes out──↗
 *
 * PLAIN: no receive is with the kernel; what is queued is served, then plain
 * calls are exact. A PLAIN stream that has nothing queued and no error left is
 * ended, and the fd is what it was before. LEAVING ones are cancelled before
 * anything else that the owner hands to the kernel: an enter submits before it
 * runs what is pending, so that a receive that was told to leave receives no
 * more. That is what lets another thread read the fd at once, while the owner
 * is outside.
 *
 * An end of file, an error and a want of buffers all end the receive and leave
 * the rest to polls and plain calls: the kernel repeats an end for ever. Only an
 * error has to be kept (`error`), since the completion took it away.
 *
 * The first bytes of a connection that the caller declared (RINGPOLL_DECLARED) are
 * received, too, where a poll would tell of them: by a receive that is not multishot, and
 * so needs no cancel where the connection lives for one request. It is over with what it
 * brings, and the stream is PLAIN, but stays (`first`) until the next wait arms the poll:
 * in that turn its sends are batched as those of an ARMED one, since nothing else is
 * armed that could tell of OUT.
 *
 * Whether it pays: a receive spares a call and costs a copy, as a batched send
 * does. A call is worth the copy of so many bytes (measured, see
 * rp_stream_worth()). A stream keeps the sum, `gain`: each call that was answered
 * adds to it, each byte that was copied takes from it. At first it has what an
 * adoption and its end cost; below nothing the fd goes back to polls. There, a
 * big read puts the next adoption off, so that it comes back after some small ones,
 * not before.
 *
 * Who gives up adoption, and for how long: watch->adopt_in counts the events to
 * go until the next try. It doubles with every reason to leave that the program
 * gave (big reads, a queue that nobody empties, no buffers), and is short again
 * after an adoption that paid; a call that the queue cannot answer for good sets
 * RP_FD_PLAIN.
 *
 * All of this is under the lock of the set that the stream belongs to (stream->
 * set, for its life); a stream without a set's ring is PLAIN for good. fdtab's
 * entry->stream names it; records are recycled, never given back, so that a look
 * at a stale one is harmless: lock, then compare.
 */
#ifndef RP_STREAM_H
#define RP_STREAM_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/uio.h>

#include "buffers.h"
#include "op.h"
#include "send.h"

struct rp_set;
struct rp_watch;
struct rp_fd;

enum rp_stream_state { RP_STREAM_FREE, RP_STREAM_PLAIN, RP_STREAM_ARMED, RP_STREAM_LEAVING, RP_STREAM_CANCELING,
                       RP_STREAM_STATES };

/* What forbids the short ways, all of it at a look: see rp_stream_is_well(). */
#define RP_STREAM_MOOD                                                                                              \
    {                                                                                                               \
        int error;     /* a positive errno that the program has yet to see, or 0 */                                 \
        uint8_t state; /* enum rp_stream_state */                                                                   \
        bool closed;   /* its fd is: whatever comes is dropped */                                                   \
        bool lingers;  /* closed with bytes to send: `fd` is a duplicate of our own */                              \
        bool ended;    /* end of file or error: the kernel will say nothing new */                                  \
    }
union rp_stream_mood {
    struct RP_STREAM_MOOD;
    uint64_t mood;
};

struct rp_stream {
    /* What every receive and read touches, one cache line; */
    struct rp_set *set;
    struct rp_watch *watch; /* of that set, or NULL: removed, the bytes remain */
    struct rp_op *op;       /* the receive; NULL when PLAIN */
    struct rp_pool *pool;   /* of the queued buffers */
    int fd;
    uint32_t sqe_at;        /* the SQE's position, to take it back while it is QUEUED */
    uint32_t bytes;         /* queued */
    uint16_t head, tail;    /* segments, number + 1 */
    union {
        struct RP_STREAM_MOOD;
        uint64_t mood;
    };
    int32_t gain;           /* what receives and batched sends are worth so far, see above */
    uint16_t slot;          /* ARMED to CANCELING: in the table of files, number + 1; 0: none */
    bool is_unix;
    bool pays;              /* `gain` was at its most */
    bool first;             /* see above; ARMED: that receive; PLAIN: in its turn */
    /* what every write does, another. */
    struct rp_send send;
    bool holds_pool;        /* its own reference: the ring has gone */
    uint8_t held;           /* callers that hold on to it while it may end */
    uint16_t copies;        /* numbers beside `fd` that have it: duplicates made while bytes were queued */
    bool passed;            /* somebody may have the file that is not counted there */
    uint16_t closed_in_handler; /* numbers that were closed where the lock could not be had: yet to be done */
    uint32_t serial;        /* of this use of the record */
    struct rp_stream *next, *prev;                 /* of the set; next: free list */
    struct rp_stream *next_leaving, *prev_leaving; /* LEAVING ones of the set */
} __attribute__((aligned(64)));

/* A spared call is worth the copy of so many bytes. Measured with `ringpoll bench
 * completion --sizes=…`, on a processor with cheap calls: where they cost more, more
 * would pay, and little is lost. On AF_UNIX a receive loses one call to begin with, by
 * being a RECVMSG: one that spares a single call gains nothing. */
static inline uint32_t rp_stream_worth(bool is_unix)
{
    return is_unix ? 768 : 1280;
}

/* `gain` at first (as much as an adoption and its end cost; less where that was lost
 * before), and at most. */
#define RP_STREAM_GAIN_FIRST 8192
#define RP_STREAM_GAIN_MOST 16384

/* ARMED, and open, without an end or an error. */
static inline bool rp_stream_is_well(const struct rp_stream *stream)
{
    union rp_stream_mood well;
    well.mood = 0;
    well.state = RP_STREAM_ARMED;
    return stream->mood == well.mood;
}

/* Its writes may be batched: no poll is armed, or none that tells of more than bytes. */
static inline bool rp_stream_batches(const struct rp_stream *stream)
{
    return stream->state == RP_STREAM_ARMED || (stream->first && stream->state == RP_STREAM_PLAIN);
}

/* Whether this watch's fd should be adopted, now that it is armed anew. */
bool rp_stream_wanted(const struct rp_set *set, const struct rp_watch *watch);
/* Whether an adopted one may stay so. */
bool rp_stream_may_stay(const struct rp_watch *watch);
/* A stream's bytes are in the buffers of one ring: while there are some of an earlier one the
 * next has to wait, and false puts it off. */
bool rp_stream_is_free(const struct rp_set *set, struct rp_watch *watch);
/* Adopts it (first making what the set needs for that) and queues the receive. 0;
 * -EBUSY: the SQ is full, enter and call again; another errno: stay with polls. */
int rp_stream_arm(struct rp_set *set, struct rp_watch *watch);
/* Its poll will be armed: no more `first`. May end the stream. */
void rp_stream_turn_over(struct rp_set *set, struct rp_stream *stream);
/* At the end of each wait that had `events`: a loop that does nothing for its one
 * event but to read it once is cheaper off by polls. */
void rp_stream_judge(struct rp_set *set, int events);
/* A completion of a receive. */
void rp_stream_completed(struct rp_set *set, struct rp_op *op, int result, uint32_t flags);

/* `to` is a duplicate of `from`, whose queue, if there is one, is that of both. */
void rp_stream_duplicated(int from, int to);
/* Its file is another process's too, or may be. */
void rp_stream_passed(int fd);
/* One of the numbers that have it is about to be closed, or (-1) has been, and names it no
 * more. False: it is the last. */
bool rp_stream_name_closing(struct rp_stream *stream, int fd);

static inline bool rp_stream_is_armed(const struct rp_stream *stream)
{
    return stream && stream->state >= RP_STREAM_ARMED;
}

/* The receive shall end. Owner: asks for it now, with the next enter at the
 * latest; others: LEAVING. Returns at once. */
void rp_stream_leave(struct rp_set *set, struct rp_stream *stream);
/* Its last batched byte is out. May end the stream. */
void rp_stream_send_over(struct rp_set *set, struct rp_stream *stream);
/* Cancels for LEAVING ones; -EBUSY: the SQ is full. Owner. */
int rp_stream_flush_leaving(struct rp_set *set);
/* Whether one of these has nothing queued that would be reported anyway. */
bool rp_stream_any_leaves_silently(const struct rp_set *set);
/* Leaves and returns when the receive is over, or (not the owner) when what it
 * brought is queued and it can bring no more. May drop and retake the lock. */
void rp_stream_end_receive(struct rp_set *set, struct rp_stream *stream);
/* All of the set's, by whatever thread, as rp_stream_end_receive(). */
void rp_stream_release_all(struct rp_set *set);
/* All of the set's. Owner. */
void rp_stream_end_all(struct rp_set *set);
/* The ring goes, and would not end these: it takes them along. Owner. */
void rp_stream_abandon_receives(struct rp_set *set);
/* The watch goes; its stream stays as long as bytes are left. */
void rp_stream_unwatch(struct rp_set *set, struct rp_watch *watch);
/* The fd is about to be closed by the owner, or by anybody where no receive is with
 * the kernel: drops what is queued. True: some bytes were never read. */
bool rp_stream_closing(struct rp_set *set, struct rp_stream *stream);
/* The same by another thread, while the owner is outside and a receive is with the
 * kernel: that is cancelled by the owner's next enter, and its bytes are dropped. */
bool rp_stream_orphan(struct rp_set *set, struct rp_stream *stream);
/* After a fork, in the child: no receive is ours; what was queued stays. */
void rp_stream_after_fork(struct rp_set *set);
/* The ring goes: queued bytes keep the pool. */
void rp_stream_keep_pool(struct rp_set *set);

/* The set goes; its streams stay as long as they have bytes. */
void rp_stream_to_limbo(struct rp_set *set);
/* Their lock, around a fork. */
enum rp_stream_fork { RP_STREAM_FORK_PREPARE, RP_STREAM_FORK_PARENT, RP_STREAM_FORK_CHILD };
void rp_stream_limbo_fork(enum rp_stream_fork when);

/* fdtab's, locked: the stream of this fd, with its set's lock held; NULL: none,
 * nothing locked. */
struct rp_stream *rp_stream_lock(int fd);

#endif
