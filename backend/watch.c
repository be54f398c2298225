/* SPDX-License-Identifier: MIT
 *
 * Readiness translation: interest ↔ POLL_ADD. The states and the reasons stand
 * in watch.h.
 */
#include "watch.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "fdtab.h"
#include "lock.h"
#include "set.h"
#include "stream.h"

/* ----------------------------------------------------------------- records */

static struct rp_lock pool_lock;
static struct rp_watch *pool;

#define POOL_GROWTH 64u
/* What is looked at without the lock stands before this offset (watch.h). */
#define LOOKED_AT (offsetof(struct rp_watch, next_of_fd) + sizeof(struct rp_watch *))
_Static_assert(sizeof(struct rp_watch) <= 192, "three cache lines: there may be many of them");

/* Somebody may still be looking at what the record was. */
static void clear(struct rp_watch *watch)
{
    typedef uintptr_t __attribute__((may_alias)) word;
    _Static_assert(LOOKED_AT % sizeof(word) == 0, "whole words");
#pragma GCC unroll 20
    for (size_t i = 0; i < LOOKED_AT / sizeof(word); i++)
        RP_WRITE_ONCE(((word *)watch)[i], 0);
    memset((char *)watch + LOOKED_AT, 0, sizeof *watch - LOOKED_AT);
    RP_WRITE_ONCE(watch->fd, -1);
}

struct rp_watch *rp_watch_alloc(void)
{
    rp_lock(&pool_lock);
    if (!pool) {
        struct rp_watch *made = rp_sys_pages(sizeof(struct rp_watch) * POOL_GROWTH);
        for (unsigned i = 0; made && i < POOL_GROWTH; i++) {
            made[i].next_of_set = pool;
            pool = &made[i];
        }
    }
    struct rp_watch *watch = pool;
    if (watch)
        pool = watch->next_of_set;
    rp_unlock(&pool_lock);
    if (watch)
        clear(watch);
    return watch;
}

void rp_watch_release(struct rp_watch *watch)
{
    __atomic_store_n(&watch->set, NULL, __ATOMIC_RELEASE);
    rp_lock(&pool_lock);
    watch->next_of_set = pool;
    pool = watch;
    rp_unlock(&pool_lock);
}

/* -------------------------------------------------------------- ready list */

void rp_watch_to_ready(struct rp_set *set, struct rp_watch *watch, enum rp_ready ready)
{
    if (watch->ready == RP_READY_IDLE)
        rp_ready_add(set, watch);
    RP_WRITE_ONCE(watch->ready, (uint8_t)ready);
}

static inline void to_idle(struct rp_set *set, struct rp_watch *watch)
{
    if (watch->ready != RP_READY_IDLE) {
        rp_ready_remove(set, watch);
        RP_WRITE_ONCE(watch->ready, RP_READY_IDLE);
    }
}

void rp_watch_to_idle(struct rp_set *set, struct rp_watch *watch)
{
    to_idle(set, watch);
}

/* ------------------------------------------------------------------- proof */

static bool is_stream(uint8_t kind)
{
    return kind == RINGPOLL_FD_TCP || kind == RINGPOLL_FD_UNIX;
}

static bool is_socket(const struct rp_watch *watch)
{
    return is_stream(watch->kind);
}

/* The interest is about reading alone, so that a drained fd has nothing to
 * report. */
static inline bool wants_reading_only(const struct rp_watch *watch)
{
    return (RP_READ_ONCE(watch->events) & RP_POLL_BITS & ~(uint32_t)EPOLLRDHUP) == EPOLLIN;
}

/* A bare wake-up that comes while QUIET may be believed. */
static inline bool trusts_wakeups(const struct rp_set *set, const struct rp_watch *watch, const struct rp_fd *entry)
{
    if (!set->tells || !entry || RP_READ_ONCE(entry->epoch) != RP_READ_ONCE(rp_fork_epoch))
        return false;
    uint32_t flags = rp_fd_flags(entry);
    if ((flags & (RP_FD_HINTED | RP_FD_ALONG | RP_FD_SHARED)) != RP_FD_HINTED)
        return false;
    return watch->kind == RINGPOLL_FD_TCP || (watch->kind == RINGPOLL_FD_UNIX && (flags & RINGPOLL_FD_NONBLOCK));
}

/* A read that two spared calls are not worth; the events to go without another one
 * until a receive is tried. What is smaller, and does not pay either, a try finds out. */
#define BIG_READ(kind) (2 * (long)rp_stream_worth((kind) == RINGPOLL_FD_UNIX))
#define AFTER_BIG_READ 4u

/* An AF_UNIX fd that gave a short read and nothing to prove it by. */
static bool look_proves(struct rp_watch *watch)
{
    if (watch->look_in > 0) {
        watch->look_in--;
        return false;
    }
    struct pollfd look = {.fd = RP_READ_ONCE(watch->fd), .events = POLLIN};
    static const struct timespec now = {0, 0};
    RP_COUNT(watch->set->stats.rechecks, 1); /* not under the lock */
    RP_COUNT(watch->set->stats.rechecked_fds, 1);
    watch->look_gap = watch->look_gap < 64 ? (uint8_t)(watch->look_gap * 2 + 1) : 127;
    watch->look_in = watch->look_gap;
    return rp_sys_poll(&look, 1, &now) == 0;
}

/* The owner read from the fd. Not under the lock: `events`, `kind` and `fd` may be
 * changed meanwhile, by a ctl or a close that makes the watch dirty, which the next
 * wait sees to; the rest is the owner's. */
static void note_read(struct rp_watch *watch, uint8_t kind, bool drained, bool was_short)
{
    struct rp_set *set = watch->set;
    if (was_short && !drained && set->tells) {
        if (kind == RINGPOLL_FD_TCP)
            drained = watch->bare <= 1 && !watch->urgent;
        else if (kind == RINGPOLL_FD_UNIX) {
            drained = watch->single;
            if (drained)
                watch->look_gap = watch->look_in = 0;
            else if (watch->op && wants_reading_only(watch) && !rp_ring_wants_enter(&set->ring))
                drained = look_proves(watch);
        }
    }
    if (!drained) {
        watch->quiet = false;
        return;
    }
    if (set->flags & RINGPOLL_ADOPT) {
        watch->empty = true;
        if (rp_watch_is_edge(watch) && watch->adopt_in == 0 && !watch->stream && !watch->dirty) {
            rp_set_lock(set);
            rp_set_dirty(set, watch);
            rp_set_unlock(set);
        }
    }
    if (!wants_reading_only(watch) ||
        (watch->ready != RP_READY_IDLE && (watch->mask & ~(uint32_t)(EPOLLIN | EPOLLRDNORM | EPOLLRDBAND)))) {
        watch->quiet = false;
        return;
    }
    to_idle(set, watch);
    watch->single = watch->urgent = false;
    watch->bare = 0;
    watch->quiet = watch->armed && !rp_ring_wants_enter(&set->ring);
}

int ringpoll_fd_is_stream_on_ring(int fd)
{
    struct rp_fd *entry = rp_fd_peek(fd);
    struct rp_watch *watch = entry ? RP_READ_ONCE(entry->watches) : NULL;
    return watch && RP_READ_ONCE(watch->home) == RP_HOME_RING && is_stream(RP_READ_ONCE(watch->kind));
}

/* What makes up a busy server's life: the owner's read brought less than it had room for, of a
 * socket of its own that it watches for reading, and that proves the socket drained. What
 * note_read() would do, in a line. False: it is not as simple as that, and nothing was done. */
static inline bool read_as_usual(struct rp_fd *entry, struct rp_watch *watch, int fd, size_t asked, long result)
{
    struct rp_set *set = __atomic_load_n(&watch->set, __ATOMIC_ACQUIRE);
    if (result <= 0 || (size_t)result >= asked || RP_READ_ONCE(watch->fd) != fd || !set ||
        RP_READ_ONCE(watch->next_of_fd) || rp_set_engine(set) != RINGPOLL_ENGINE_RING ||
        RP_READ_ONCE(set->owner) != rp_self.id || /* neither is 0: it has a ring */
        RP_READ_ONCE(watch->home) != RP_HOME_RING || rp_self.locks_held)
        return false;
    if (RP_UNLIKELY(!(rp_fd_flags(entry) & RP_FD_HINTED)))
        __atomic_fetch_or(&entry->flags, RP_FD_HINTED, __ATOMIC_RELAXED);
    uint8_t kind = RP_READ_ONCE(watch->kind);
    uint32_t events = RP_READ_ONCE(watch->events);
    if (!set->tells || (kind == RINGPOLL_FD_TCP ? watch->bare > 1 || watch->urgent
                                                : kind != RINGPOLL_FD_UNIX || !watch->single))
        return false;
    if ((set->flags & RINGPOLL_ADOPT) && (result >= BIG_READ(RINGPOLL_FD_UNIX) || (events & EPOLLET)))
        return false;
    if ((events & RP_POLL_BITS & ~(uint32_t)EPOLLRDHUP) != EPOLLIN)
        return false;
    if (watch->ready != RP_READY_IDLE) {
        if (watch->mask & ~(uint32_t)(EPOLLIN | EPOLLRDNORM | EPOLLRDBAND))
            return false;
        rp_ready_remove(set, watch);
        RP_WRITE_ONCE(watch->ready, RP_READY_IDLE);
    }
    if (kind == RINGPOLL_FD_UNIX)
        watch->look_gap = watch->look_in = 0;
    watch->empty = true;
    watch->single = watch->urgent = false;
    watch->bare = 0;
    watch->quiet = watch->armed && !rp_ring_wants_enter(&set->ring);
    return true;
}

static __attribute__((noinline)) void read_at_length(struct rp_fd *entry, struct rp_watch *watch, int fd,
                                                     size_t asked, long result)
{
    struct rp_set *set = __atomic_load_n(&watch->set, __ATOMIC_ACQUIRE);
    if (RP_READ_ONCE(watch->fd) != fd) /* recycled since it was looked up, maybe for another fd of ours */
        return;
    if (!(rp_fd_flags(entry) & RP_FD_HINTED))
        rp_fd_set_flags(entry, RP_FD_HINTED, 0);
    bool others = RP_READ_ONCE(watch->next_of_fd) != NULL; /* of whatever engine: any of them may be on a ring */
    if (!others && (!set || rp_set_engine(set) != RINGPOLL_ENGINE_RING || RP_READ_ONCE(watch->home) != RP_HOME_RING))
        return;
    if (others || !rp_set_is_mine(set) || rp_self.locks_held) {
        /* Somebody else reads along: its wake-ups prove nothing from now on. */
        rp_fd_set_flags(entry, RP_FD_ALONG, 0);
        return;
    }
    uint8_t kind = RP_READ_ONCE(watch->kind);
    if (result >= BIG_READ(kind) && (set->flags & RINGPOLL_ADOPT) && !watch->stream && watch->adopt_in < AFTER_BIG_READ)
        watch->adopt_in = watch->adopt_gap > AFTER_BIG_READ ? watch->adopt_gap : AFTER_BIG_READ;
    bool drained = asked > 0 && (result == -EAGAIN || (result > 0 && kind == RINGPOLL_FD_EVENTFD));
    note_read(watch, kind, drained, result > 0 && (size_t)result < asked);
}

void ringpoll_fd_read(int fd, size_t asked, long result)
{
    struct rp_fd *entry = rp_fd_peek(fd);
    struct rp_watch *watch = entry ? RP_READ_ONCE(entry->watches) : NULL;
    if (watch && RP_UNLIKELY(!read_as_usual(entry, watch, fd, asked, result)))
        read_at_length(entry, watch, fd, asked, result);
}

/* What a poll completion says about the watch; see watch.h. */
static void note_event(struct rp_set *set, struct rp_watch *watch, uint32_t bits, bool oneshot)
{
    uint32_t interest = rp_watch_interest(watch);
    bool bare = is_socket(watch) ? (bits & EPOLLRDBAND) != 0 : true;
    bool proves = false;

    if (watch->disabled || watch->deleted || watch->home != RP_HOME_RING) {
        /* A disabled one-shot need not hear: one completion in vain is what the
         * program may cost us, not one per packet. */
        rp_set_dirty(set, watch);
        return;
    }
    watch->hung |= (bits & (EPOLLRDHUP | EPOLLHUP)) != 0;
    if (bits & EPOLLIN) {
        watch->empty = false;
        /* An edge that was reported would be reported again by a receive that finds
         * the same bytes: edge-triggered ones are adopted when they are empty. */
        if (watch->adopt_in > 0 && --watch->adopt_in == 0 && !rp_watch_is_edge(watch))
            rp_set_dirty(set, watch);
    }
    if (watch->spent) {
        uint32_t spent = watch->spent;
        watch->spent = 0;
        if (watch->ready == RP_READY_IDLE && !(bits & interest & ~spent))
            return;
    }
    if (rp_stream_is_armed(watch->stream)) { /* the poll is there for OUT alone */
        watch->quiet = watch->single = false;
        watch->mask = (watch->ready == RP_READY_IDLE ? 0 : watch->mask) | bits;
        rp_watch_to_ready(set, watch, RP_READY_CANDIDATE);
        return;
    }
    if (watch->kind == RINGPOLL_FD_TCP) {
        if (!bare) {
            watch->urgent = (bits & EPOLLPRI) != 0;
            watch->bare = 0;
        } else if (watch->bare < 255) {
            watch->bare++;
        }
    }
    if (bare && is_socket(watch))
        bits &= ~(uint32_t)(EPOLLPRI | EPOLLRDBAND) | (interest & EPOLLPRI);
    if ((bits & interest) == 0) {
        /* Of a level-triggered poll that is armed for more than is wanted, or
         * RDHUP, which the kernel reports unasked. */
        if ((watch->armed & ~(uint32_t)(EPOLLRDBAND | EPOLLPRI)) & ~interest)
            rp_set_dirty(set, watch);
        if (oneshot) { /* deaf to what came behind it */
            watch->mask = ~0u;
            rp_watch_to_ready(set, watch, RP_READY_CANDIDATE);
        }
        return;
    }
    if (wants_reading_only(watch) && !watch->left) {
        if (!bare) /* the state, unless it is the one other wake-up that a reader hears: ERR alone */
            proves = set->tells && bits != EPOLLERR && !(watch->armed & EPOLLOUT);
        else if ((bits & ~(uint32_t)(EPOLLIN | EPOLLRDNORM | EPOLLRDBAND)) == 0 && watch->quiet && !oneshot &&
                 !watch->hung) /* an end that is known is true as well (shutdown(SHUT_RD): bytes may follow) */
            proves = trusts_wakeups(set, watch, rp_fd_peek(watch->fd));
    }
    bool first = watch->ready == RP_READY_IDLE;
    watch->single = first && bare && watch->quiet && is_socket(watch) && proves;
    watch->quiet = false;
    /* Bytes and nothing else, before and now: what is in the list for them need not be
     * asked once more. An error or an end can come in a completion of its own. */
    bool only_bytes = ((bits | watch->mask) & ~(uint32_t)(EPOLLIN | EPOLLRDNORM)) == 0;
    if (proves && (watch->ready == RP_READY_IDLE || (!bare && only_bytes) ||
                   (watch->ready == RP_READY_CERTAIN && watch->certain_in == set->wait_serial))) {
        watch->mask = bits;
        watch->certain_in = set->wait_serial;
        rp_watch_to_ready(set, watch, RP_READY_CERTAIN);
        return;
    }
    watch->mask = (watch->ready == RP_READY_IDLE ? 0 : watch->mask) | bits;
    rp_watch_to_ready(set, watch, RP_READY_CANDIDATE);
}

/* What makes up a busy server's life: a bare wake-up of a quiet socket that is watched
 * for reading. What note_event() would do, in a line. False: it is not as simple as that,
 * and nothing was done. */
static inline bool completed_as_usual(struct rp_set *set, struct rp_watch *watch, int result, uint32_t flags,
                                      enum rp_ready then)
{
    const int optional = EPOLLRDNORM | EPOLLPRI;
    if (!(flags & RP_CQE_F_MORE) || (result & ~optional) != (EPOLLIN | EPOLLRDBAND) || watch->unusual ||
        !watch->quiet || watch->ready != RP_READY_IDLE || watch->stream || !wants_reading_only(watch) ||
        !is_socket(watch) || !trusts_wakeups(set, watch, rp_fd_peek(watch->fd)))
        return false;
    watch->quiet = false;
    watch->single = true;
    watch->bare = 1; /* QUIET: it was 0 */
    watch->mask = (uint32_t)result & (EPOLLIN | EPOLLRDNORM);
    if (then == RP_READY_IDLE)
        return true;
    watch->certain_in = set->wait_serial;
    rp_ready_add(set, watch);
    RP_WRITE_ONCE(watch->ready, (uint8_t)then);
    return true;
}

static __attribute__((noinline)) void completed_at_length(struct rp_set *set, struct rp_watch *watch, int result,
                                                          uint32_t flags)
{
    bool oneshot = watch->armed_oneshot;
    if (!(flags & RP_CQE_F_MORE)) {
        rp_op_step(&set->ops, watch->op, RP_OP_FREE);
        if (!watch->armed_oneshot) {
            set->stats.rearms++;
            set->edge_ended |= rp_watch_is_edge(watch);
        }
        watch->op = NULL;
        watch->armed = 0;
        watch->armed_oneshot = false;
        if (watch->fresh > 0)
            watch->fresh--;
        rp_set_dirty(set, watch);
    }
    if (result >= 0) {
        note_event(set, watch, (uint32_t)result, oneshot);
        return;
    }
    watch->quiet = watch->single = false;
    switch (result) {
    case -ECANCELED: /* not by us, else the op had no owner: arm again, and what it was to tell is yet to be told */
        watch->recheck = true;
        break;
    case -EBADF: /* closed unseen before the SQE was taken: epoll had let it go */
        RP_WRITE_ONCE(watch->deleted, true);
        rp_watch_to_idle(set, watch);
        break;
    default: /* this file cannot be polled by a ring */
        if (!watch->deleted && rp_set_move_to_kernel(set, watch) != 0) {
            RP_WRITE_ONCE(watch->deleted, true);
            rp_watch_to_idle(set, watch);
        }
        break;
    }
}

void rp_watch_completed(struct rp_set *set, struct rp_watch *watch, int result, uint32_t flags)
{
    if (RP_UNLIKELY(!completed_as_usual(set, watch, result, flags, RP_READY_CERTAIN)))
        completed_at_length(set, watch, result, flags);
}

bool rp_watch_completed_alone(struct rp_set *set, struct rp_watch *watch, int result, uint32_t flags)
{
    return !(watch->events & EPOLLONESHOT) &&
           completed_as_usual(set, watch, result, flags,
                              rp_watch_is_edge(watch) ? RP_READY_IDLE : RP_READY_CANDIDATE);
}

/* ------------------------------------------------------------------ arming */

bool rp_watch_in_flight(const struct rp_watch *watch)
{
    /* Another thread may ask, and the head move on as the owner's enter returns. */
    return watch->op && (watch->op->state == RP_OP_INFLIGHT ||
                         (int32_t)(watch->sqe_at - RP_READ_ONCE(watch->set->ring.sqe_head)) < 0);
}

/* Ops become INFLIGHT when somebody looks: an enter does not know whose SQEs it
 * handed over. */
static void settle(struct rp_set *set, struct rp_watch *watch)
{
    if (watch->op->state == RP_OP_QUEUED && rp_watch_in_flight(watch))
        rp_op_step(&set->ops, watch->op, RP_OP_INFLIGHT);
}

int rp_watch_disarm(struct rp_set *set, struct rp_watch *watch, struct rp_op **ret_op)
{
    struct rp_op *op = watch->op;
    struct rp_ring *ring = &set->ring;

    if (ret_op)
        *ret_op = NULL;
    if (!op)
        return 0;
    settle(set, watch);
    if (op->state == RP_OP_QUEUED) {
        rp_ring_take_back(ring, watch->sqe_at);
        rp_op_step(&set->ops, op, RP_OP_FREE);
    } else {
        if (!rp_op_cancel(&set->ops, ring, op, RP_OP_ORPHANED))
            return -EBUSY;
        if (ret_op)
            *ret_op = op;
    }
    watch->op = NULL;
    watch->armed = 0;
    watch->armed_oneshot = false;
    return 0;
}

static bool is_writable(const struct rp_watch *watch)
{
    struct pollfd look = {.fd = watch->fd, .events = POLLOUT};
    static const struct timespec now = {0, 0};
    return rp_sys_poll(&look, 1, &now) == 1 && (look.revents & POLLOUT);
}

/* An edge-triggered poll will be armed anew though nobody asked for a look: an
 * OUT that was reported is not to be reported again. It was, if nothing is on its
 * way and the socket is writable. */
static void note_spent_out(struct rp_set *set, struct rp_watch *watch)
{
    struct rp_ring *ring = &set->ring;
    if (!rp_watch_is_edge(watch) || watch->recheck || !(watch->events & watch->armed & EPOLLOUT) ||
        (rp_ring_wants_enter(ring) && !rp_ring_is_up_in_vain(ring)) || rp_ring_peek(ring) ||
        !rp_watch_in_flight(watch) || watch->ready != RP_READY_IDLE)
        return;
    if (is_writable(watch))
        watch->spent |= EPOLLOUT | EPOLLWRNORM;
}

/* Whether an OUT was reported is known only when nothing is on its way: asks for that
 * a few times in each wait. True: enter, and come again. */
static bool is_unsure_of_out(struct rp_set *set, struct rp_watch *watch)
{
    if (!rp_watch_is_edge(watch) || watch->recheck || !(watch->events & watch->armed & EPOLLOUT) ||
        (!rp_ring_wants_enter(&set->ring) && !rp_ring_peek(&set->ring) && rp_watch_in_flight(watch)))
        return false;
    if (watch->asked_in != set->wait_serial)
        watch->asked = 0;
    watch->asked_in = set->wait_serial;
    return watch->asked++ < (rp_ring_is_up_in_vain(&set->ring) ? 1 : 4);
}

/* The receive takes over from the poll. */
static int adopt(struct rp_set *set, struct rp_watch *watch)
{
    if (!rp_stream_is_free(set, watch))
        return -EAGAIN;
    if (watch->op) {
        if (is_unsure_of_out(set, watch))
            return -EBUSY;
        note_spent_out(set, watch);
        int error = rp_watch_disarm(set, watch, NULL);
        if (error < 0)
            return error;
    } else if (!rp_watch_is_edge(watch) && (watch->events & (EPOLLOUT | EPOLLWRNORM | EPOLLWRBAND))) {
        watch->recheck = true; /* the poll that would have been armed now was to look */
    }
    int error = rp_stream_arm(set, watch);
    if (error < 0 || !(watch->events & EPOLLOUT))
        return error;
    /* The poll that would have told of OUT has gone. Level-triggered, a look decides
     * what stands in for it. Batched sends know of OUT from now on, but not that the
     * program waits for it, or has not been told. */
    bool edge = rp_watch_is_edge(watch);
    if ((set->flags & RINGPOLL_BATCH) && ((edge && !(watch->spent & EPOLLOUT)) || !is_writable(watch)))
        rp_send_expect_room(set, watch->stream);
    if (edge && (set->flags & RINGPOLL_BATCH))
        watch->spent &= ~(uint32_t)(EPOLLOUT | EPOLLWRNORM);
    if (!edge && watch->ready == RP_READY_IDLE) {
        watch->mask = ~0u;
        rp_watch_to_ready(set, watch, RP_READY_CANDIDATE);
    }
    return error;
}

static int arm_poll(struct rp_set *set, struct rp_watch *watch, uint32_t want, bool oneshot)
{
    struct rp_sqe *sqe = rp_ring_get_sqe(&set->ring);
    if (!sqe)
        return -EBUSY;
    struct rp_op *op = rp_op_new(&set->ops, RP_OP_POLL, watch);
    if (!op) {
        sqe->opcode = RP_IORING_OP_NOP;
        return -ENOMEM;
    }
    sqe->opcode = RP_IORING_OP_POLL_ADD;
    sqe->fd = watch->fd;
    sqe->poll32_events = rp_poll_word(want);
    sqe->len = oneshot ? 0 : RP_POLL_ADD_MULTI;
    sqe->user_data = rp_op_user_data(&set->ops, op);
    watch->op = op;
    watch->sqe_at = set->ring.sqe_tail - 1;
    watch->armed = want;
    watch->armed_oneshot = oneshot;
    return 0;
}

/* Beside a receive, which tells of bytes, ends and errors, a poll only has to
 * tell of OUT: edge-triggered always, level-triggered where a look found the
 * socket full. */
static int arm_beside_stream(struct rp_set *set, struct rp_watch *watch)
{
    bool edge = rp_watch_is_edge(watch);
    uint32_t want = watch->events & (EPOLLOUT | EPOLLWRNORM | EPOLLWRBAND);
    int error = 0;
    if (set->flags & RINGPOLL_BATCH) /* the send queue knows */
        want = 0;
    if (want && !edge && !watch->blocked)
        want = 0;
    if (!(watch->events & EPOLLOUT))
        watch->blocked = false;
    if (watch->stream->state == RP_STREAM_ARMED && !rp_stream_may_stay(watch))
        rp_stream_leave(set, watch->stream);
    if (watch->op && (edge ? watch->armed != want || watch->armed_oneshot : (watch->armed & want) != want))
        error = rp_watch_disarm(set, watch, NULL);
    if (error == 0 && want && !watch->op)
        error = arm_poll(set, watch, want, false);
    if (error < 0)
        return error;
    if (watch->recheck) {
        watch->recheck = false;
        watch->mask = ~0u;
        watch->quiet = watch->single = false;
        rp_watch_to_ready(set, watch, RP_READY_CANDIDATE);
    }
    return 0;
}

int rp_watch_arm(struct rp_set *set, struct rp_watch *watch)
{
    bool recheck = watch->recheck;
    bool edge = rp_watch_is_edge(watch);

    if (watch->stream)
        rp_stream_turn_over(set, watch->stream);
    if (watch->home == RP_HOME_KERNEL && (set->flags & RINGPOLL_ACCEPT) && rp_accept_wanted(set, watch)) {
        int error = rp_accept_arm(set, watch);
        if (error == 0 || error == -EBUSY)
            return error;
    }
    if (watch->kind == RP_KIND_LISTENER && watch->home == RP_HOME_RING && !watch->deleted)
        return rp_accept_rearm(set, watch);
    if (watch->home != RP_HOME_RING || watch->deleted || watch->disabled) {
        int error = rp_watch_disarm(set, watch, NULL);
        if (error == 0)
            watch->recheck = false;
        if (watch->home != RP_HOME_RING) {
            rp_watch_to_idle(set, watch);
            watch->quiet = watch->single = false;
        }
        return error;
    }
    if (recheck || watch->ready != RP_READY_IDLE) /* not reported yet: the look below is what reports it */
        watch->spent = 0;
    else if (watch->ended && edge && (!watch->op || !(watch->armed & EPOLLIN)) && watch->ready == RP_READY_IDLE)
        watch->spent |= watch->mask & ~(uint32_t)(EPOLLOUT | EPOLLWRNORM | EPOLLWRBAND);
    if (rp_stream_wanted(set, watch)) {
        int error = adopt(set, watch);
        if (error == -EBUSY)
            return error;
        if (error == 0 && watch->stream->first) { /* looks at the file itself */
            watch->recheck = false;
            return 0;
        }
        /* A level-triggered one counts on its next poll to look; a receive looks for
         * bytes alone. */
        if (error == 0 && !edge && (watch->events & (EPOLLOUT | EPOLLWRNORM | EPOLLWRBAND)))
            watch->recheck = true;
    }
    if (watch->stream && rp_stream_is_armed(watch->stream))
        return arm_beside_stream(set, watch);
    uint32_t want = rp_watch_interest(watch);
    /* A poll for PRI alone never hears of it (6.18): RDBAND, which comes with
     * the same wake-up, does. */
    if (is_socket(watch) && (want & (EPOLLIN | EPOLLPRI)))
        want |= EPOLLRDBAND | EPOLLPRI;
    if (watch->op) {
        bool fits = edge ? watch->armed == want && !watch->armed_oneshot : (watch->armed & want) == want;
        /* Armed for more than is wanted, and it told us so: see note_event. */
        if (fits && watch->armed != want && !recheck)
            fits = false;
        if (fits) {
            watch->recheck = false;
            if (recheck) {
                watch->mask = ~0u;
                watch->quiet = watch->single = false;
                rp_watch_to_ready(set, watch, RP_READY_CANDIDATE);
            }
            return 0;
        }
        if (is_unsure_of_out(set, watch))
            return -EBUSY;
        note_spent_out(set, watch);
        int error = rp_watch_disarm(set, watch, NULL);
        if (error != 0)
            return error;
    }
    /* One-shot only where RDHUP, which comes unasked, implies a wanted bit:
     * else a half-closed peer would complete it again and again. */
    bool oneshot = !edge && (watch->events & EPOLLIN) && (watch->fresh > 0 || (watch->events & EPOLLONESHOT));
    /* What was reported may have been used up since: then OUT is news again. */
    if ((watch->spent & EPOLLOUT) && !is_writable(watch))
        watch->spent &= ~(uint32_t)(EPOLLOUT | EPOLLWRNORM);
    int error = arm_poll(set, watch, want, oneshot);
    if (error < 0)
        return error;
    watch->recheck = false;
    watch->blocked = false;
    /* Bytes in the queue the kernel knows nothing of. */
    if (watch->stream && rp_stream_bits(watch->stream)) {
        if (watch->ready == RP_READY_IDLE && (recheck || !edge)) {
            watch->mask = ~0u;
            rp_watch_to_ready(set, watch, RP_READY_CANDIDATE);
        }
        return 0;
    }
    /* The kernel looks at the file as it arms the poll: that is the check. One
     * that stands in the ready list keeps its place, and is looked at there. */
    if (edge)
        rp_watch_to_idle(set, watch);
    watch->single = watch->urgent = false;
    watch->bare = 0;
    watch->quiet = true;
    return 0;
}

/* --------------------------------------------------------------- re-checks */

#define CHECK_CHUNK 128u

/* Closed unseen: epoll had let it go. */
static void forget_closed(struct rp_set *set, struct rp_watch *watch)
{
    RP_WRITE_ONCE(watch->deleted, true);
    rp_watch_to_idle(set, watch);
    rp_set_dirty(set, watch);
}

/* poll(2) refuses more fds than RLIMIT_NOFILE, which a sandbox may have set to
 * nothing at all; epoll does not care, so those are its from now on. */
static void check_without_poll(struct rp_set *set, struct rp_watch **watches, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        int error = rp_set_move_to_kernel(set, watches[i]);
        if (error == 0)
            set->hidden_ready = true; /* is to be looked at, that is */
        else if (error == -EBADF)
            forget_closed(set, watches[i]);
    }
}

static void check_chunk(struct rp_set *set, struct pollfd *fds, struct rp_watch **watches, unsigned count)
{
    static const struct timespec now = {0, 0};
    int result = rp_sys_poll(fds, count, &now);

    set->stats.rechecks++;
    set->stats.rechecked_fds += count;
    if (result == -EINVAL) {
        check_without_poll(set, watches, count);
        return;
    }
    bool wakeup_pending = rp_ring_wants_enter(&set->ring);
    for (unsigned i = 0; i < count; i++) {
        struct rp_watch *watch = watches[i];
        uint32_t revents = result < 0 ? 0 : (uint32_t)(uint16_t)fds[i].revents;
        if (result < 0) {
            /* ENOMEM: look again in the next wait rather than lose one. */
            continue;
        }
        if (revents & POLLNVAL) {
            forget_closed(set, watch);
            continue;
        }
        watch->urgent = (revents & POLLPRI) != 0;
        watch->bare = 0;
        if (watch->stream) {
            if (!(revents & POLLOUT) && (watch->events & EPOLLOUT) && !watch->blocked && !rp_watch_is_edge(watch)) {
                watch->blocked = true;
                rp_set_dirty(set, watch);
            }
            revents |= rp_stream_bits(watch->stream);
        } else if (watch->left == RP_LEFT_NEWS || (watch->left && (revents & rp_watch_interest(watch)))) {
            revents |= rp_left_bits_at(watch->fd); /* bytes that another set received */
            watch->left = rp_watch_is_edge(watch) && (revents & rp_watch_interest(watch)) ? RP_LEFT_TOLD : RP_LEFT_NEWS;
        }
        if (revents & rp_watch_interest(watch)) {
            watch->mask = revents;
            watch->certain_in = set->wait_serial;
            watch->single = watch->quiet = false;
            RP_WRITE_ONCE(watch->ready, RP_READY_CERTAIN);
        } else {
            rp_watch_to_idle(set, watch);
            watch->single = false;
            watch->quiet = watch->op && !wakeup_pending;
        }
    }
}

/* Of an adopted fd that is watched for reading alone the receive has said all. */
static bool decided_by_stream(struct rp_set *set, struct rp_watch *watch)
{
    uint32_t knows = EPOLLIN | EPOLLRDNORM | EPOLLRDHUP | (set->flags & RINGPOLL_BATCH ? EPOLLOUT | EPOLLWRNORM : 0);
    if (watch->stream->state != RP_STREAM_ARMED || (watch->events & RP_POLL_BITS & ~knows))
        return false;
    watch->mask = rp_stream_bits(watch->stream);
    if (watch->mask & rp_watch_interest(watch)) {
        watch->certain_in = set->wait_serial;
        watch->ready = RP_READY_CERTAIN;
    } else {
        rp_watch_to_idle(set, watch);
    }
    return true;
}

static short look_for(const struct rp_watch *watch)
{
    return (short)((rp_watch_interest(watch) | EPOLLRDHUP | (watch->kind == RINGPOLL_FD_TCP ? EPOLLPRI : 0)) & 0xffffu);
}

uint32_t rp_watch_look(struct rp_set *set, struct rp_watch *watch)
{
    static const struct timespec now = {0, 0};
    if (watch->ready != RP_READY_CANDIDATE || watch->stream || !watch->op || !is_socket(watch) ||
        watch->home != RP_HOME_RING || watch->deleted || watch->disabled || watch->left ||
        (watch->events & (EPOLLET | EPOLLONESHOT)))
        return 0;
    struct pollfd look = {.fd = watch->fd, .events = look_for(watch)};
    int result = rp_sys_poll(&look, 1, &now);
    uint32_t bits = result > 0 ? (uint32_t)(uint16_t)look.revents : 0;
    uint32_t told = bits & rp_watch_interest(watch);
    if (result < 0 || (bits & POLLNVAL))
        return 0;
    set->stats.rechecks++;
    set->stats.rechecked_fds++;
    watch->urgent = (bits & POLLPRI) != 0;
    watch->bare = 0;
    watch->single = watch->quiet = false;
    if (told) {
        watch->mask = bits;
    } else {
        to_idle(set, watch);
        watch->quiet = !rp_ring_wants_enter(&set->ring);
    }
    return told;
}

void rp_watch_check(struct rp_set *set, unsigned limit)
{
    struct pollfd fds[CHECK_CHUNK];
    struct rp_watch *watches[CHECK_CHUNK];
    unsigned count = 0;
    struct rp_watch *next;

    for (struct rp_watch *watch = set->ready_head; watch && limit > 0; watch = next, limit--) {
        next = watch->next_ready;
        if (watch->ready == RP_READY_CERTAIN && watch->certain_in == set->wait_serial)
            continue;
        if (watch->stream ? decided_by_stream(set, watch)
                          : watch->kind == RP_KIND_LISTENER && rp_accept_decides(set, watch))
            continue;
        fds[count].fd = watch->fd;
        fds[count].events = look_for(watch);
        fds[count].revents = 0;
        watches[count++] = watch;
        if (count == CHECK_CHUNK) {
            check_chunk(set, fds, watches, count);
            count = 0;
        }
    }
    if (count)
        check_chunk(set, fds, watches, count);
}
