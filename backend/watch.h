/* SPDX-License-Identifier: MIT
 *
 * One fd in one set: the interest of the program, and how it is met.
 *
 * Home. A watch lives in one of two places. HOME_KERNEL: the set's identity, a
 * kernel epoll instance, has the registration, with the program's own data, and
 * reports it; the record here only serves to rebuild it. HOME_RING: a poll on
 * the ring (watch->op) is, or will be, armed for it.
 *
 * Readiness of a HOME_RING watch (owner thread only, one enum):
 *
 *   IDLE ──completion, or MOD──→ CANDIDATE ──poll(2) says yes──→ CERTAIN
 *     ↑                             │ poll(2) says no               │
 *     ├─────────────────────────────┘                               │
 *     ├──────────────edge-triggered, one-shot: delivered────────────┤
 *     │               level-triggered: delivered → CANDIDATE ←──────┘
 *     └── read to the bottom (see below), from any state
 *   IDLE ──completion that proves itself──→ CERTAIN
 *   CANDIDATE ──completion that is the state, all of it about bytes──→ CERTAIN
 *
 * CANDIDATE and CERTAIN watches stand in the set's ready list, in the order in
 * which they became so; a delivered level-triggered one goes to its end, which
 * is what makes small maxevents fair. CERTAIN holds for the wait in which it
 * was found out (`certain_in`), and is CANDIDATE in the next.
 *
 * When does a completion prove itself? A multishot poll posts the bits of *one*
 * wake-up if there was one since the last completion, and asks the file if there
 * were more. Sockets wake with IN|RDNORM|RDBAND|PRI and never report RDBAND
 * when asked (see kernel: sock_def_readable, tcp_poll, unix_poll), so the ring
 * asks for RDBAND too: with it the completion is a bare wake-up, without it is
 * the file's state at this very enter. The latter is exact. A bare wake-up is
 * exact (of a multishot poll; a one-shot one is deaf to what follows) if the
 * program cannot have read what caused it, that is, if it came
 * after the watch was QUIET: seen drained, or just armed, with no wake-up on its
 * way (the ring's TASKRUN flag clear after the read). TCP wakes under the lock
 * that a read takes, so that flag cannot lag; AF_UNIX wakes after it, so there
 * only fds with O_NONBLOCK are trusted, whose readers take the (very rare) EAGAIN
 * that epoll would have spared them. Pipes and eventfds are never trusted: a
 * write of zero to an eventfd wakes too.
 *
 * When is an fd seen drained? EAGAIN. Or a short read, where nothing can hide
 * behind it. A FIN cannot: it makes a completion with RDHUP of its own. On TCP
 * the urgent mark can: it takes two wake-ups to arrive, so at most one bare one
 * since the last look that showed no PRI (`bare`, `urgent`) is proof. On AF_UNIX
 * a passed fd can, at the end of any buffer: there the proof is that since QUIET
 * exactly one bare wake-up came (SINGLE), which is one buffer; where several
 * came, a look right after the short read (poll(2), tried ever more seldom when
 * it fails to help) makes the fd QUIET again. Everything else is looked at by
 * one poll(2) over all CANDIDATEs before the next report.
 *
 * Any bit other than IN (and the PRI of bare wake-ups) in a completion (HUP, ERR, RDHUP, OUT beside IN) makes
 * a CANDIDATE: a wake-up carries only its own bits where epoll reports all.
 *
 * Arming. Level-triggered watches are first armed by one-shot polls: a
 * connection that lives for one request (and its end) then needs no cancel
 * before its close. From their second event on they are multishot, like edge-triggered ones from
 * the start. A level-triggered poll may stay armed for more than is wanted (OUT
 * that went) until that posts a completion in vain; an edge-triggered one is
 * armed for exactly what is wanted. Changes go to the set's dirty list and are
 * compared with what is armed once per wait.
 *
 * Who touches what: `deleted`, `events`, `data`, the dirty list and the set's
 * list of watches under the set's lock, by any thread. Readiness, the ready
 * list, op and armed by the owner thread alone: op and armed under the lock, the
 * rest also when a read is reported, without it. Looked at without the lock
 * (once.h): `set`, `home`, `next_of_fd`, `kind`, `fd`, `events`, `deleted`;
 * `ready` by others than the owner. Records are recycled, never given back, so
 * that a look at a stale one is harmless.
 */
#ifndef RP_WATCH_H
#define RP_WATCH_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>

#include "op.h"

struct rp_set;
struct rp_stream;
struct rp_fd;

enum rp_home { RP_HOME_RING, RP_HOME_KERNEL };
#define RP_KIND_LISTENER 15u /* beside RINGPOLL_FD_KIND: adopted once, see accept.h */

enum rp_ready { RP_READY_IDLE, RP_READY_CANDIDATE, RP_READY_CERTAIN };

struct rp_watch {
    /* What every event touches, two cache lines; that of an adopted fd the first alone. */
    struct rp_stream *stream; /* adopted: receives stand in for the poll for reading */
    struct rp_watch *next_ready, *prev_ready; /* where `ready` is not IDLE */
    epoll_data_t data;
    uint32_t events;     /* the program's, flags included */
    uint32_t mask;       /* what was last seen of it, asked for or not: an end that is known
                            forbids to call the fd drained */
    uint32_t certain_in; /* CERTAIN: in this wait of the set */
    uint32_t armed;      /* poll bits of op */
    int fd;
    uint8_t home;        /* enum rp_home */
    uint8_t ready;       /* enum rp_ready */
    uint8_t kind;        /* RINGPOLL_FD_KIND of the fd */
    bool quiet;
    union {
        struct {
            bool deleted;        /* DEL came; a later ADD may revive it */
            bool disabled;       /* one-shot, reported */
            bool armed_oneshot;
            bool urgent;         /* TCP: PRI was seen */
            bool hung;           /* a poll told of an end: a receive would only find it again */
            uint8_t left;        /* enum rp_left */
            uint8_t adopt_in;    /* events to go until it is adopted, see stream.h */
            bool single;         /* never while quiet */
        };
        uint64_t unusual;        /* all of these at a look: 0 of most */
    };
    struct rp_set *set;  /* NULL: free record */
    struct rp_op *op;    /* armed or queued poll, or NULL */
    struct rp_watch *next_of_fd;             /* fdtab */
    /* The rest: nobody looks at it without the lock. */
    uint8_t bare;        /* TCP: bare wake-ups since a look without PRI */
    bool empty;          /* no bytes since a read found none */
    uint8_t look_in, look_gap; /* AF_UNIX: unproven short reads to go until, and between, looks */
    uint8_t adopt_gap;
    bool dirty;          /* stands in the dirty list */
    bool recheck;        /* dirty: becomes CANDIDATE */
    struct rp_watch *next_dirty, *prev_dirty;
    struct rp_watch *next_of_set, *prev_of_set; /* all watches of the set; next: free list */
    struct rp_watch *next_left, *prev_left; /* where `left` is not NOT */
    struct rp_stream *ghost; /* `left`, and its number is closed: whose bytes they are, if that is yet */
    int ghost_fd;            /* and the number, which may come back */
    union {
        uint32_t ghost_serial; /* what the stream's was then */
        uint32_t asked_in;     /* no ghost: in this wait of the set the ring was asked, so often, what is on its way */
    };
    uint32_t sqe_at;     /* its SQE's position, to take it back while it is QUEUED */
    uint32_t spent;      /* edge-triggered: bits that were reported; the next poll's first completion may
                            repeat them, having looked at the file */
    uint8_t asked;
    uint8_t fresh;       /* one-shot polls to go before a multishot one */
    bool ended;          /* a receive found the end or an error: no more of them */
    bool blocked;        /* adopted, level-triggered: OUT is wanted and was not there */
    bool leaves;         /* dirty: the owner shall move it to kernel epoll */
    bool returns;        /* in kernel epoll: the next ring gets it, see rp_set_go_away() */
    uint8_t place;       /* in kernel epoll: 0 the identity, or which annex, see demote.c */
    bool seen;           /* in the kernel's list, there */
    uint8_t silent;      /* on its way to kernel epoll, see demote.c */
    /* Left by a signal handler inside a critical section, see set.c */
    bool closed_in_handler, modified_in_handler, deleted_in_handler;
    uint32_t handler_events;
    epoll_data_t handler_data;
} __attribute__((aligned(64)));

/* The poll bits (no flags) of an interest. */
#define RP_POLL_BITS \
    (EPOLLIN | EPOLLPRI | EPOLLOUT | EPOLLRDNORM | EPOLLRDBAND | EPOLLWRNORM | EPOLLWRBAND | EPOLLMSG | EPOLLRDHUP)

static inline uint32_t rp_watch_interest(const struct rp_watch *watch)
{
    return (watch->events & RP_POLL_BITS) | EPOLLERR | EPOLLHUP;
}
static inline bool rp_watch_is_edge(const struct rp_watch *watch)
{
    return (watch->events & EPOLLET) != 0;
}

/* One-shot polls of a new one (`fresh`), and events to go until it is adopted (`adopt_in`):
 * a request and the end of its connection are not worth it. */
#define RP_WATCH_FRESH 2u
#define RP_WATCH_ADOPT_IN 2u

/* A zeroed record, or NULL. Any thread. */
struct rp_watch *rp_watch_alloc(void);
void rp_watch_release(struct rp_watch *watch);

/* Owner thread, set locked. */
void rp_watch_to_ready(struct rp_set *set, struct rp_watch *watch, enum rp_ready ready);
void rp_watch_to_idle(struct rp_set *set, struct rp_watch *watch);
/* A completion of its poll. */
void rp_watch_completed(struct rp_set *set, struct rp_watch *watch, int result, uint32_t flags);
/* The same where it is all there is to tell in this wait, and the report with it: EPOLLIN.
 * False: it is not as simple as that, and nothing was done. */
bool rp_watch_completed_alone(struct rp_set *set, struct rp_watch *watch, int result, uint32_t flags);
/* Makes what is armed fit what is wanted. -EBUSY: the SQ is full, enter and
 * call again; -ENOMEM: no slot. */
int rp_watch_arm(struct rp_set *set, struct rp_watch *watch);
/* The kernel has its poll. */
bool rp_watch_in_flight(const struct rp_watch *watch);
/* Cancels its poll, if any, and leaves the op to its completion. -EBUSY as
 * above. Returns the op that the completion of which frees the file, NULL when
 * the kernel never had it, through *ret_op. */
int rp_watch_disarm(struct rp_set *set, struct rp_watch *watch, struct rp_op **ret_op);
/* Asks poll(2) about the CANDIDATEs among the first `limit` of the ready list. */
void rp_watch_check(struct rp_set *set, unsigned limit);
/* The same for a level-triggered socket that is the whole list: the bits of the interest that
 * are there. None: it is IDLE now, or it is not that simple, and rp_watch_check() shall see to it. */
uint32_t rp_watch_look(struct rp_set *set, struct rp_watch *watch);
#endif
