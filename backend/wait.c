/* SPDX-License-Identifier: MIT
 *
 * epoll_wait: the turn of a ring, the list of what is ready, and waits in kernel
 * epoll. What the ring's answers mean stands at rp_set_enter_and_reap() and at
 * wait_on_ring().
 */
#include "set.h"

#include <errno.h>
#include <limits.h>

/* A set's fds may be better off on kernel epoll: looked at after so many events, the first
 * times after fewer, if more than three quarters of them came from there. */
#define UNFIT_WINDOW 4096u
/* What plain waits count goes into the stats when it has more bits than these. */
#define PLAIN_BITS 10

static const struct timespec no_time = {0, 0};

/* ------------------------------------------------------------ the ring's turn */

/* What is no watch's poll, or that of one that has gone. */
static __attribute__((noinline)) void completed(struct rp_set *set, uint64_t user_data, int result, uint32_t flags)
{
    struct rp_op *op = rp_op_find(&set->ops, user_data);
    if (!op)
        return;
    if (op->state == RP_OP_ORPHANED) {
        if (!(flags & RP_CQE_F_MORE))
            rp_op_step(&set->ops, op, RP_OP_FREE);
    } else if (op->kind == RP_OP_SEND) {
        rp_send_completed(set, op, result, flags);
    } else if (op->kind == RP_OP_ACCEPT) {
        rp_accept_completed(set, op, result, flags);
    } else if (op->kind == RP_OP_REQUEST) {
        rp_request_completed(set, op, result);
    } else if (op->kind == RP_OP_LOAN) {
        rp_loan_completed(set, &set->ops, op, result, flags);
    } else if (op->kind == RP_OP_KERNEL) {
        rp_op_step(&set->ops, op, RP_OP_FREE);
        set->hidden_op = NULL;
        set->hidden_armed = false;
        set->hidden_ready = true;
    }
}

/* All that the CQ holds goes into ready list and op table. */
static unsigned reap(struct rp_set *set)
{
    struct rp_ring *ring = &set->ring;
    struct rp_cqe *cqe;
    unsigned count = 0;

    while ((cqe = rp_ring_peek(ring)) != NULL) {
        uint64_t user_data = cqe->user_data;
        int result = cqe->res;
        uint32_t flags = cqe->flags;
        rp_ring_take(ring);
        count++;
        struct rp_op *op = rp_op_peek(&set->ops, user_data);
        if (op && op->kind == RP_OP_POLL && op->state != RP_OP_ORPHANED)
            rp_watch_completed(set, op->owner, result, flags);
        else if (op && op->kind == RP_OP_RECV && op->state != RP_OP_ORPHANED)
            rp_stream_completed(set, op, result, flags);
        else
            completed(set, user_data, result, flags);
    }
    if (count > 0)
        rp_ring_give_back(ring);
    return count;
}

/* A completion was lost: every poll may be the one. */
static void recheck_all(struct rp_set *set)
{
    set->stats.cq_overflows++;
    rp_request_lost_one(set);
    for (struct rp_watch *watch = set->watches; watch; watch = watch->next_of_set) {
        watch->recheck = true;
        rp_set_dirty(set, watch);
    }
    set->hidden_ready = true;
}

/* This ring is of no use any more. */
static bool is_fatal(int entered)
{
    return entered < 0 && entered != -EINTR && entered != -ETIME && entered != -EBUSY && entered != -EAGAIN;
}

/* SQPOLL: another thread does it all, so what it is to have done is followed by
 * a fence, and that is waited for. */
static int pass_fence(struct rp_set *set)
{
    struct rp_ring *ring = &set->ring;
    bool queued = false, handed_over = false, passed = false;

    for (unsigned attempts = 0; attempts < 1000000; attempts++) {
        if (!queued)
            queued = rp_ring_fence(ring, rp_op_fence_user_data(set->fence + 1));
        int result = rp_ring_enter(ring, handed_over && !passed, NULL, NULL);
        if (queued && !handed_over) {
            handed_over = true;
            set->fence++;
            /* It mostly takes less time than a call that sleeps. */
            for (unsigned spins = 0; spins < 300 && rp_ring_thread_is_awake(ring); spins++) {
                rp_sys_relax();
                if (rp_ring_peek(ring) && reap(set) > 0 && set->ops.fence_passed == set->fence)
                    break;
            }
        }
        reap(set);
        if (result == -EBADR)
            recheck_all(set);
        else if (is_fatal(result))
            return result;
        passed = handed_over && set->ops.fence_passed == set->fence;
        if (passed && !rp_ring_is_overflown(ring))
            return 0;
    }
    return -EAGAIN;
}

int rp_set_enter_and_reap(struct rp_set *set)
{
    if (set->ring.setup_flags & RP_SETUP_SQPOLL)
        return pass_fence(set);
    uint64_t reaped_before = set->ring.cqes_reaped;
    for (int attempts = 0; attempts < 1000; attempts++) {
        if (set->leaving) /* as far as there is room; the rest after this enter */
            (void)rp_stream_flush_leaving(set);
        if (set->accepts_leaving)
            (void)rp_accept_flush_leaving(set);
        if (set->batched)
            (void)rp_send_submit(set);
        rp_buffers_refill(&set->buffers);
        int result = rp_ring_enter(&set->ring, 0, NULL, NULL);
        unsigned reaped = reap(set);
        if (set->sending)
            rp_send_settle(set);
        switch (result) {
        case -EINTR: /* of an enter that does not wait nobody has seen these; it did nothing */
        case -ETIME:
            continue;
        case -EBUSY:  /* the CQ overflowed and was just reaped */
        case -EAGAIN: /* no memory for requests, for now */
            if (result == -EAGAIN && reaped == 0 && attempts > 100)
                return result;
            continue;
        case -EBADR: /* told once */
            recheck_all(set);
            continue;
        default:
            if (result < 0)
                return result;
            if (rp_ring_queued(&set->ring) == 0 && !set->leaving && !set->accepts_leaving && !set->batched &&
                (!rp_ring_is_overflown(&set->ring) || (set->tells && reaped == 0))) {
                bool in_vain = set->ring.cqes_reaped == reaped_before && rp_ring_wants_enter(&set->ring);
                set->ring.barren = in_vain ? set->ring.barren + 1 : 0;
                return 0;
            }
        }
    }
    return -EAGAIN;
}

int rp_set_await_orphans(struct rp_set *set, int turns)
{
    int result = 0;
    for (; result == 0 && turns > 0 &&
           (set->leaving || set->accepts_leaving || set->ops.count[RP_OP_ORPHANED] + set->ops.count[RP_OP_CANCELING] > 0);
         turns--)
        result = rp_set_enter_and_reap(set);
    /* SQPOLL: its thread lets go of a file after it has posted the completion. */
    if (result == 0 && (set->ring.setup_flags & RP_SETUP_SQPOLL))
        result = rp_set_enter_and_reap(set);
    return result;
}

/* The dirty list: what is armed becomes what is wanted. More watches than the SQ holds,
 * all of them ready, would complete and be dirty again as fast as they are armed: then
 * the rest is left to the next turn, and what is ready is reported first. */
static int flush_dirty(struct rp_set *set)
{
    struct rp_watch *watch;
    unsigned enters_left = 64 + set->ring_watches / set->ring.sq_entries * 8;
    while ((watch = set->dirty) != NULL && enters_left > 0) {
        int error;
        if (watch->leaves) {
            watch->leaves = false;
            rp_set_leave_ring(set, watch, false);
            continue;
        }
        if (watch->deleted) {
            error = rp_watch_disarm(set, watch, NULL);
            if (error == 0) {
                rp_set_forget_watch(set, watch);
                continue;
            }
        } else {
            error = rp_watch_arm(set, watch);
            if (error == 0) {
                rp_set_undirty(set, watch);
                continue;
            }
            if (error == -ENOMEM) {
                rp_set_undirty(set, watch);
                if (rp_set_move_to_kernel(set, watch) < 0)
                    return error;
                continue;
            }
        }
        enters_left--;
        error = rp_set_enter_and_reap(set); /* the SQ is full */
        if (error < 0)
            return error;
    }
    return 0;
}

/* Level-triggered by arming it anew: the kernel looks whether anything in the
 * identity is ready. */
static int arm_hidden(struct rp_set *set)
{
    if (set->hidden_armed || set->hidden_ready)
        return 0;
    struct rp_sqe *sqe = rp_ring_get_sqe(&set->ring);
    if (!sqe) {
        int error = rp_set_enter_and_reap(set);
        if (error < 0)
            return error;
        sqe = rp_ring_get_sqe(&set->ring);
        if (!sqe)
            return -EAGAIN;
    }
    struct rp_op *op = rp_op_new(&set->ops, RP_OP_KERNEL, set);
    if (!op) {
        sqe->opcode = RP_IORING_OP_NOP;
        return -ENOMEM;
    }
    sqe->opcode = RP_IORING_OP_POLL_ADD;
    sqe->fd = set->hidden;
    sqe->poll32_events = rp_poll_word(EPOLLIN);
    sqe->user_data = rp_op_user_data(&set->ops, op);
    set->hidden_op = op;
    set->hidden_armed = true;
    return 0;
}

/* ------------------------------------------------------------------- wait */

/* Takes out what the library itself has registered. True in *ret_annexes: something
 * is ready in one of them. */
static int without_marks(struct epoll_event *events, int count, bool *ret_annexes)
{
    int kept = 0;
    for (int i = 0; i < count; i++) {
        if (events[i].data.ptr == &rp_annex_mark)
            *ret_annexes = true;
        else if (events[i].data.ptr != &rp_wake_fd)
            events[kept++] = events[i];
    }
    return kept;
}

/* Those that find no room come again: annexes stand in the identity level-triggered. */
static int take_annexes(struct rp_set *set, struct epoll_event *events, int room)
{
    int taken = 0;
    bool unused = false;
    for (unsigned i = 0; i < set->annex_count && taken < room; i++) {
        unsigned turn = (set->annex_first + i) % set->annex_count;
        int count = rp_sys_epoll_wait(set->annexes[turn], events + taken, room - taken, &no_time, NULL);
        taken += without_marks(events + taken, count, &unused);
    }
    set->annex_first = (set->annex_first + 1) % RP_ANNEXES;
    return taken;
}

/* Among them *ret_left at *ret_at of bytes that are left, the first or the last in turn. */
static unsigned take_hidden(struct rp_set *set, struct epoll_event *events, unsigned room, unsigned *ret_left,
                            unsigned *ret_at)
{
    bool left_last = rp_left_comes_last(set);
    unsigned taken = *ret_left = set->left && !left_last ? rp_left_take(set, events, room) : 0;
    *ret_at = 0;
    set->hidden_ready = taken == room;
    for (int turn = 0; taken < room && turn < 64; turn++) {
        int count = rp_sys_epoll_wait(set->hidden, events + taken, (int)(room - taken), &no_time, NULL);
        RP_COUNT(set->stats.kernel_waits, 1);
        if (count <= 0)
            break;
        set->hidden_ready = count == (int)(room - taken);
        bool annexes = false;
        int kept = set->marked ? without_marks(events + taken, count, &annexes) : count;
        if (annexes)
            kept += take_annexes(set, events + taken + kept, (int)(room - taken) - kept);
        taken += (unsigned)kept;
        if (kept > 0 || !set->hidden_ready)
            break;
    }
    if (set->left)
        rp_left_add(set, events + *ret_left, taken - *ret_left);
    if (left_last) {
        *ret_at = taken;
        taken += *ret_left = rp_left_take(set, events + taken, room - taken);
    }
    set->hidden_ready = taken == room;
    set->unfit_kernel += taken;
    return taken;
}

/* Those at the list's head have been dealt with, up to this one, and stay in it: they go
 * to its end. */
static void put_last(struct rp_set *set, struct rp_watch *first_left)
{
    struct rp_watch *first = set->ready_head, *last = first_left->prev_ready;
    if (!last)
        return;
    last->next_ready = NULL;
    first_left->prev_ready = NULL;
    first->prev_ready = set->ready_tail;
    set->ready_tail->next_ready = first;
    set->ready_head = first_left;
    set->ready_tail = last;
}

static unsigned take_ready(struct rp_set *set, struct epoll_event *events, unsigned room)
{
    unsigned todo = set->ready_count, looked_at = 0;
    struct rp_watch *watch = set->ready_head;
    struct epoll_event *event = events, *end = events + room;
    if (todo == 1 && watch->ready == RP_READY_CANDIDATE) {
        uint32_t mask = rp_watch_look(set, watch);
        if (mask) { /* and stays CANDIDATE */
            event->events = mask;
            event->data = watch->data;
            return 1;
        }
        todo = set->ready_count;
    }
    while (todo > 0 && event < end) {
        bool certain = watch->ready == RP_READY_CERTAIN && watch->certain_in == set->wait_serial;
        if (!certain && looked_at == 0) {
            /* One look at all that may be reported. It finds some that are not to be. */
            unsigned window = todo < (unsigned)(end - event) ? todo : (unsigned)(end - event);
            unsigned before = set->ready_count;
            put_last(set, watch);
            rp_watch_check(set, window);
            unsigned gone = before - set->ready_count;
            todo -= gone;
            looked_at = window - gone;
            watch = set->ready_head;
            if (!watch)
                break;
            continue;
        }
        looked_at -= looked_at > 0;
        todo--;
        struct rp_watch *next = watch->next_ready;
        struct rp_stream *stream = watch->stream;
        uint32_t interest = rp_watch_interest(watch), mask = watch->mask & interest;
        bool stays = !certain; /* poll(2) failed: another time */
        if (watch->deleted | (watch->home != RP_HOME_RING)) { /* another thread did that */
            stays = false;
        } else if (certain && mask != 0) {
            /* An error that a read has taken along meanwhile, say. */
            if (stream && (stream->error || (interest & (EPOLLOUT | EPOLLWRNORM))))
                mask |= rp_stream_bits(stream) & interest;
            event->events = mask;
            event->data = watch->data;
            event++;
            if (!(watch->events & (EPOLLONESHOT | EPOLLET))) /* without a poll: arming one will look */
                stays = stream || watch->op || watch->kind == RP_KIND_LISTENER;
            else if (watch->events & EPOLLONESHOT)
                watch->disabled = true;
        }
        if (!stays)
            rp_ready_remove(set, watch);
        RP_WRITE_ONCE(watch->ready, stays ? RP_READY_CANDIDATE : RP_READY_IDLE);
        watch = next;
        if (!watch)
            break;
    }
    if (watch)
        put_last(set, watch);
    return (unsigned)(event - events);
}

/* What is ready, the ring's and the kernel's, each first in its turn. */
static __attribute__((noinline)) unsigned collect_both(struct rp_set *set, struct epoll_event *events, unsigned room)
{
    unsigned count = 0, left = 0, left_at = 0;
    bool hidden_first = set->hidden_first, hidden_done = false;
    if (set->hidden_ready && hidden_first && count < room) {
        count += take_hidden(set, events + count, room - count, &left, &left_at);
        hidden_done = true;
    }
    if (count < room && set->ready_count)
        count += take_ready(set, events + count, room - count);
    if (set->hidden_ready && !hidden_done && count < room) {
        unsigned before = count;
        count += take_hidden(set, events + count, room - count, &left, &left_at);
        left_at += before;
    }
    set->hidden_first = !hidden_first;
    return left > 0 ? rp_left_merge(events, left_at, left, count) : count;
}

static unsigned collect(struct rp_set *set, struct epoll_event *events, unsigned room)
{
    if (RP_UNLIKELY(set->hidden_ready))
        return collect_both(set, events, room);
    set->hidden_first = !set->hidden_first;
    return take_ready(set, events, room);
}

static bool is_zero(const struct timespec *time)
{
    return (time->tv_sec | time->tv_nsec) == 0;
}

/* What the program asked for. */
struct wait {
    int epfd, max;
    struct epoll_event *events;
    const struct timespec *timeout; /* NULL: for ever */
    const sigset_t *sigmask;
    /* The time runs from when it is first asked for, which is before the first sleep: a
     * wait that finds something at once needs no clock. 0: not asked for yet. */
    uint64_t deadline_ns;
    bool holds_signals; /* the program's own mask is in `before` meanwhile */
    sigset_t before;
};

/* Of a wait with a timeout. */
static struct timespec time_left(struct wait *wait)
{
    const struct timespec *timeout = wait->timeout;
    if (is_zero(timeout))
        return no_time;
    uint64_t now = rp_sys_now_ns();
    if (wait->deadline_ns == 0) {
        uint64_t seconds = (uint64_t)timeout->tv_sec > 1000000000u ? 1000000000u : (uint64_t)timeout->tv_sec;
        wait->deadline_ns = now + seconds * 1000000000u + (uint64_t)timeout->tv_nsec;
        return *timeout;
    }
    uint64_t left = wait->deadline_ns > now ? wait->deadline_ns - now : 0;
    return (struct timespec){.tv_sec = (time_t)(left / 1000000000u), .tv_nsec = (long)(left % 1000000000u)};
}

/* A counter that several threads may have at once. */
static inline void count_among_others(uint64_t *counter, uint64_t by)
{
    if (rp_single_threaded())
        RP_COUNT(*counter, by);
    else
        __atomic_fetch_add(counter, by, __ATOMIC_RELAXED);
}

/* In the identity; set unlocked. */
static int wait_in_kernel(struct rp_set *set, int epfd, struct epoll_event *events, int max,
                          const struct timespec *timeout, const sigset_t *sigmask)
{
    struct timespec left = timeout ? *timeout : no_time;
    struct wait wait = {.timeout = timeout}; /* of which only the clock matters */
    bool blocks = !timeout || !is_zero(timeout);
    bool takes = max > 0 && (uintptr_t)events >= 4096 && !rp_self.locks_held;
    int given = 0;

    if (timeout && blocks && RP_READ_ONCE(set->marked))
        left = time_left(&wait);
    for (int turn = 0;; turn++) {
        bool left_last = false;
        if (takes && RP_READ_ONCE(set->left)) {
            rp_set_lock(set);
            left_last = rp_left_comes_last(set);
            if (!left_last)
                given = (int)rp_left_take(set, events, (unsigned)max);
            rp_set_unlock(set);
            if (given == max)
                return given;
            blocks = blocks && given == 0;
        }
        int count = rp_sys_epoll_wait(epfd, events + given, max - given,
                                      !blocks || left_last ? &no_time : (timeout ? &left : NULL), sigmask);
        count_among_others(&set->stats.kernel_waits, 1);
        if (count == 0 && left_last)
            continue; /* first, then */
        if (count <= 0)
            return given > 0 ? given : count;
        if (!RP_READ_ONCE(set->marked))
            return given + count;
        bool annexes = false;
        int kept = without_marks(events + given, count, &annexes);
        if (annexes && takes) {
            rp_set_lock(set);
            kept += take_annexes(set, events + given + kept, max - given - kept);
            rp_set_unlock(set);
        }
        if (takes && RP_READ_ONCE(set->left)) {
            rp_set_lock(set);
            rp_left_add(set, events + given, (unsigned)kept);
            rp_set_unlock(set);
        }
        if (left_last) {
            rp_set_lock(set);
            given = (int)rp_left_take(set, events + kept, (unsigned)(max - kept));
            rp_set_unlock(set);
            if (kept + given > 0)
                return (int)rp_left_merge(events, (unsigned)kept, (unsigned)given, (unsigned)(kept + given));
            continue;
        }
        if (given > 0)
            return (int)rp_left_merge(events, 0, (unsigned)given, (unsigned)(given + kept));
        if (kept > 0 || (!blocks && count < max) || RP_READ_ONCE(set->request_done)) /* which wait_on() tells of */
            return kept;
        if (!takes && turn > 64) /* a signal handler in the midst of our own work */
            return -EINTR;
        if (wait.deadline_ns)
            left = time_left(&wait);
    }
}

#define AGAIN (-4095)

/* What other threads asked of the owner. 0, AGAIN (the set is on another engine
 * now) or a negative errno. */
static int serve_requests(struct rp_set *set)
{
    int result = 0;
    bool asked = set->requests;
    rp_set_take_wake(set);
    set->requests = false;
    if (set->demote_reason != RINGPOLL_REASON_NONE && !set->zombie && !rp_set_is_ending(set))
        rp_set_demote(set, set->demote_reason, 0);
    if (rp_set_engine(set) != RINGPOLL_ENGINE_RING || rp_set_is_ending(set)) {
        rp_set_say_serviced(set);
        return AGAIN;
    }
    if (asked) {
        result = flush_dirty(set);
        if (result == 0)
            result = rp_set_await_orphans(set, 64);
        rp_set_say_serviced(set);
    }
    return result;
}

/* Where there is nothing to be done for who asked, but that it shall know. */
static void answer_requests(struct rp_set *set)
{
    rp_set_take_wake(set);
    if (set->requests) {
        set->requests = false;
        rp_set_say_serviced(set);
    }
}

/* While the owner was inside: is the ring gone, or to go? */
static bool is_no_more(struct rp_set *set)
{
    if (set->ring.fd >= 0 && !set->zombie && !rp_set_is_ending(set))
        return false;
    answer_requests(set);
    return true;
}

/* A filter, another kernel's idea: the set goes on without its ring. */
void rp_set_give_up_ring(struct rp_set *set, int error)
{
    answer_requests(set);
    rp_set_demote(set, error == -EPERM || error == -EACCES ? RINGPOLL_REASON_RESTRICTED : RINGPOLL_REASON_NO_RING,
                  error);
}

/* What was left to do goes out, or is queued for the enter that comes. 0, AGAIN (the set
 * is on another engine now) or a negative errno. */
static __attribute__((noinline)) int begin_turn(struct rp_set *set)
{
    int result = 0;
    if ((set->requests || set->wake_sent) && (result = serve_requests(set)) != 0)
        return result;
    if (set->dirty && (result = flush_dirty(set)) < 0)
        return result;
    if (set->leaving) {
        /* What takes over from a receive that has nothing to tell looks at the file
         * in this turn, too: others may be ready, and it be reported with them. */
        bool silent = rp_stream_any_leaves_silently(set);
        while (result == 0 && set->leaving && rp_stream_flush_leaving(set) < 0)
            result = rp_set_enter_and_reap(set);
        if (result == 0 && silent && (result = rp_set_enter_and_reap(set)) == 0 && set->dirty)
            result = flush_dirty(set);
    }
    while (result == 0 && set->accepts_leaving && rp_accept_flush_leaving(set) < 0)
        result = rp_set_enter_and_reap(set);
    for (unsigned turn = 0; result == 0 && set->unpolled; turn++) {
        rp_send_poll_all(set);
        if (set->unpolled) /* the SQ is full, or there is no memory: nobody would hear of room */
            result = turn < 64 ? rp_set_enter_and_reap(set) : -ENOMEM;
    }
    while (result == 0 && set->batched && rp_send_submit(set) < 0)
        result = rp_set_enter_and_reap(set);
    if (result == 0 && set->request_queued)
        result = rp_request_flush(set);
    return result < 0 ? result : arm_hidden(set);
}

/* Sleeps in the ring, until something completes. False: it did not, since a signal handler
 * has left something to be done first (see ctl_in_handler). Unlocks meanwhile. */
static inline bool sleep_in_ring(struct rp_set *set, const struct timespec *timeout, const sigset_t *sigmask,
                                 int *ret_entered)
{
    set->owner_inside = true;
    rp_set_unlock(set);
    bool enters = RP_READ_ONCE(set->dirty) == NULL;
    if (enters)
        *ret_entered = rp_ring_enter(&set->ring, 1, timeout, sigmask);
    rp_set_lock(set);
    set->owner_inside = false;
    return enters;
}

/* After a sleep that ended with one completion, a bare wake-up: that is the report. False:
 * it is not as simple as that, and nothing was done. */
static inline bool report_alone(struct rp_set *set, struct epoll_event *event)
{
    struct rp_ring *ring = &set->ring;
    uint32_t at = ring->cq_next;
    if (ring->fd < 0 || __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE) - at != 1 ||
        (set->requests | set->wake_sent | set->zombie) || set->dirty || set->sending || rp_set_is_ending(set))
        return false;
    const struct rp_cqe *cqe = &ring->cqes[at & ring->cq_mask];
    struct rp_op *op = rp_op_peek(&set->ops, cqe->user_data);
    if (!op || op->kind != RP_OP_POLL || op->state == RP_OP_ORPHANED ||
        !rp_watch_completed_alone(set, op->owner, cqe->res, cqe->flags))
        return false;
    const struct rp_watch *watch = op->owner;
    rp_ring_seen(ring);
    event->events = EPOLLIN;
    event->data = watch->data;
    return true;
}

/* What has completed meanwhile, without sleeping; *ret_reaped of it. 0 or a negative errno. */
static int look_in_ring(struct rp_set *set, unsigned *ret_reaped)
{
    uint64_t before = set->ring.cqes_reaped;
    int result = rp_set_enter_and_reap(set);
    *ret_reaped = (unsigned)(set->ring.cqes_reaped - before);
    return result;
}

/* An enter leaves work behind only if there was more than it may run (20 items at least):
 * then the rest belongs to this turn. What else is pending came later, and waits for the
 * next. With nothing found and no time to wait, whatever is there counts. */
static inline bool is_unfinished(const struct rp_set *set, unsigned reaped, bool poll_only)
{
    return rp_ring_wants_enter(&set->ring) &&
           (reaped >= 20 || (poll_only && !set->ready_count && !rp_ring_is_up_in_vain(&set->ring)));
}

static __attribute__((noinline)) int finish_turn(struct rp_set *set, unsigned reaped, bool poll_only)
{
    int result = 0;
    for (unsigned turn = 0;
         result == 0 && turn < (reaped >= 20 ? 4096u : 64u) && is_unfinished(set, reaped, poll_only); turn++)
        result = look_in_ring(set, &reaped);
    return result;
}

/* What takes over from a receive may find what came behind it, and others be ready: it is
 * reported with them. */
static __attribute__((noinline)) int take_over(struct rp_set *set)
{
    int result = 0;
    set->handed_back = false;
    if (set->dirty && (result = flush_dirty(set)) == 0 && rp_ring_queued(&set->ring))
        result = rp_set_enter_and_reap(set);
    return result;
}

/* One wait of the owner on its ring. Locked, and unlocked only inside the
 * blocking enter. Returns events, 0, a negative errno, or AGAIN when the set is
 * on another engine now. */
static int wait_on_ring(struct rp_set *set, struct wait *wait)
{
    struct rp_ring *ring = &set->ring;
    const struct timespec *timeout = wait->timeout;
    bool poll_only = timeout && is_zero(timeout), looked_again = false, interrupted = false;
    struct timespec left;
    int result = 0;

    set->wait_serial++;
    if (RP_UNLIKELY(!set->in_company && !rp_single_threaded()))
        rp_set_has_company(set);
    if (RP_UNLIKELY(set->accepts_armed))
        rp_accept_turn(set);
    for (;;) {
        unsigned reaped = 0;
        bool slept = false, got_any = false;
        int entered = 0;
        if (!rp_set_is_at_rest(set) && (result = begin_turn(set)) != 0) {
            if (result == AGAIN)
                return interrupted ? -EINTR : AGAIN;
            break;
        }
        rp_buffers_refill(&set->buffers);
        bool looks = set->ready_count || (set->hidden_ready | poll_only | interrupted | set->request_done |
                                          set->request_queued); /* more than a turn's share */
        if (looks ? rp_ring_queued(ring) || rp_ring_wants_enter(ring) : set->sending && rp_ring_peek(ring)) {
            if ((result = look_in_ring(set, &reaped)) < 0)
                break;
            if (!looks)
                reaped = 0;
        } else if (looks || rp_ring_peek(ring)) {
            reap(set);
        } else {
            if (timeout)
                left = time_left(wait);
            if (RP_UNLIKELY(!sleep_in_ring(set, timeout ? &left : NULL, wait->sigmask, &entered)))
                continue;
            if (entered >= 0 && report_alone(set, wait->events))
                return 1;
            slept = true;
            /* Was it a signal, and maybe its handler that demoted the set, or closed it? */
            interrupted = entered == -EINTR;
            if (RP_UNLIKELY(is_no_more(set))) {
                interrupted = interrupted || (entered >= 0 && ring->fd >= 0 && !rp_ring_peek(ring));
                return interrupted ? -EINTR : AGAIN;
            }
            reaped = reap(set);
            if (set->sending)
                rp_send_settle(set);
            got_any = reaped > 0;
            if (entered == -EBADR) {
                recheck_all(set);
            } else if (is_fatal(entered)) {
                result = entered;
                break;
            }
        }
        if (RP_UNLIKELY(is_unfinished(set, reaped, poll_only)) && (result = finish_turn(set, reaped, poll_only)) < 0)
            break;
        if (RP_UNLIKELY(set->wake_sent | set->requests))
            continue;
        if (RP_UNLIKELY(set->handed_back) && (result = take_over(set)) < 0)
            break;
        unsigned count = collect(set, wait->events, (unsigned)wait->max);
        if (RP_LIKELY(count > 0))
            return (int)count;
        if (set->request_done) /* which the caller adds */
            return 0;
        if (poll_only) {
            if (!set->dirty || looked_again)
                return 0;
            looked_again = true; /* a receive has just ended: what takes over looks at the file */
            continue;
        }
        if (interrupted)
            return -EINTR;
        if (slept && entered == -ETIME)
            return 0;
        if (timeout) {
            left = time_left(wait);
            if (is_zero(&left))
                return 0;
        }
        /* An enter that submitted something, or that sees CQEs held back,
         * hides the signal that ended it. */
        if (slept && entered >= 0 && !got_any)
            return -EINTR;
        if (RP_UNLIKELY(rp_self.due)) { /* it may be long before the next event */
            rp_set_unlock(set);
            bool over = rp_loan_collect() && (set->flags & RINGPOLL_DECLARED);
            rp_set_lock(set);
            if (over)
                wait->timeout = &no_time;
            if (is_no_more(set) || over)
                return AGAIN;
        }
        set->wait_serial++;
    }
    rp_set_give_up_ring(set, result);
    return AGAIN;
}

/* Edge-triggered polls that the kernel ended because the CQ was full are armed
 * anew here, so that the look which comes with that goes into the same report. */
static int settle(struct rp_set *set)
{
    int result = 0;
    for (unsigned turn = 0; turn < 64; turn++) {
        set->edge_ended = false;
        if ((set->dirty && (result = flush_dirty(set)) < 0) || (result = arm_hidden(set)) < 0 ||
            (result = rp_set_enter_and_reap(set)) < 0 || !set->edge_ended)
            break;
    }
    return result;
}

/* The same on a ring that does not tell what is on its way: whether anything has
 * happened is asked before each report, and before each sleep. Nothing is queued
 * when it sleeps, so the kernel says EINTR and ETIME when it means them. */
static int wait_on_mute_ring(struct rp_set *set, struct wait *wait)
{
    struct rp_ring *ring = &set->ring;
    const struct timespec *timeout = wait->timeout;
    bool over = timeout && is_zero(timeout);
    struct timespec left = timeout ? time_left(wait) : no_time;
    int result = 0, entered = 0;

    if (!set->in_company && !rp_single_threaded())
        rp_set_has_company(set);
    for (;;) {
        set->wait_serial++;
        if (set->requests || set->wake_sent) {
            result = serve_requests(set);
            if (result == AGAIN)
                return entered == -EINTR ? -EINTR : AGAIN;
            if (result < 0)
                break;
        }
        if ((result = settle(set)) < 0)
            break;
        unsigned count = collect(set, wait->events, (unsigned)wait->max);
        if (count > 0)
            return (int)count;
        if (over)
            return entered == -EINTR ? -EINTR : 0;
        /* Not with a poll to arm, or with what poll(2) had no memory to look at. */
        if (!set->dirty && set->hidden_armed && set->ready_count == 0) {
            set->owner_inside = true;
            rp_set_unlock(set);
            /* What a signal handler left (see ctl_in_handler) is dirty now. */
            bool enters = RP_READ_ONCE(set->dirty) == NULL;
            if (enters && wait->holds_signals)
                rp_sys_drop_ignored_signals(&wait->before);
            if (enters)
                entered = rp_ring_enter(ring, 1, timeout ? &left : NULL, wait->sigmask);
            rp_set_lock(set);
            set->owner_inside = false;
            if (!enters)
                continue;
            /* A signal, whose handler demoted the set, or closed it: that is EINTR. */
            if (is_no_more(set))
                return entered == -EINTR ? -EINTR : AGAIN;
            reap(set);
            if (entered == -EBADR) {
                recheck_all(set);
            } else if (is_fatal(entered)) {
                result = entered;
                break;
            }
        }
        if (timeout)
            left = time_left(wait);
        over = entered == -EINTR || entered == -ETIME || (timeout && is_zero(&left));
    }
    rp_set_give_up_ring(set, result);
    return AGAIN;
}

/* Not a server that has only begun to accept. Eventfds and pipes are no reason to keep a ring: many a loop has some to be woken by, and
 * hears nothing of them for long. */
static bool mostly_kernel_watches(const struct rp_set *set)
{
    unsigned kernel = RP_READ_ONCE(set->plain), wakers = 0;
    for (const struct rp_watch *watch = set->watches; watch; watch = watch->next_of_set) {
        kernel += watch->home == RP_HOME_KERNEL && !watch->deleted;
        wakers += watch->home == RP_HOME_RING && !watch->deleted &&
                  (watch->kind == RINGPOLL_FD_EVENTFD || watch->kind == RINGPOLL_FD_PIPE);
    }
    return kernel + wakers > set->ring_watches || set->ring_watches == 0;
}

/* SQPOLL: a fence may sleep. A signal that comes meanwhile is kept for the sleep
 * that it shall interrupt, and one that comes with an event for after the call,
 * as the kernel's epoll does. What the program does wrong itself is not held. The
 * kernel drops an ignored signal where it is sent, but keeps it where it is held, and
 * would interrupt the sleep for it: those are taken away before the sleep. */
static __attribute__((noinline)) void hold_signals(struct wait *wait)
{
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT};
    sigset_t all;
    sigfillset(&all);
    for (unsigned i = 0; i < sizeof faults / sizeof faults[0]; i++)
        sigdelset(&all, faults[i]);
    rp_sys_set_sigmask(&all, &wait->before);
    if (!wait->sigmask)
        wait->sigmask = &wait->before;
    wait->holds_signals = true;
}

static __attribute__((noinline)) void judge_fitness(struct rp_set *set)
{
    bool unfit = set->unfit_kernel > set->unfit_total / 4 * 3 && mostly_kernel_watches(set);
    if (!unfit)
        set->away_gap = 0;
    else if (!(set->flags & RINGPOLL_DECLARED))
        rp_set_demote(set, RINGPOLL_REASON_UNFIT, 0);
    else if (set->waiters == 0)
        (void)rp_set_go_away(set);
    if (set->unfit_window < UNFIT_WINDOW)
        set->unfit_window *= 4;
    set->unfit_total = set->unfit_kernel = 0;
}

static inline void count_events(struct rp_set *set, int result)
{
    RP_COUNT(set->stats.events, (uint64_t)result);
    if (RP_UNLIKELY(rp_set_engine(set) != RINGPOLL_ENGINE_RING)) {
        set->away_for -= set->away_for < (uint32_t)result ? set->away_for : (uint32_t)result;
        return;
    }
    set->unfit_total += (uint32_t)result;
    if (RP_UNLIKELY(set->unfit_total >= set->unfit_window) && !rp_request_is_under_way(set))
        judge_fitness(set);
}

/* Engine NEW: the set gets its ring, if there is anything for it. KERNEL: the wait is the
 * kernel's own. Events, 0, a negative errno, or AGAIN when it is on another engine now. */
static __attribute__((noinline)) int wait_without_ring(struct rp_set *set, struct wait *wait)
{
    if (rp_set_engine(set) == RINGPOLL_ENGINE_NEW &&
        (set->ring_watches > 0 || set->request_queued || (set->returning > 0 && set->away_for == 0))) {
        int error = rp_set_make_ring(set);
        if (error < 0)
            rp_set_demote(set, error == -EOPNOTSUPP ? RINGPOLL_REASON_OLD_KERNEL : RINGPOLL_REASON_NO_RING, error);
        else if (!set->tells)
            rp_request_end_all(set);
        if (set->request_done)
            wait->timeout = &no_time;
        return AGAIN;
    }
    if (rp_set_is_ending(set))
        return -EBADF;
    struct timespec left = wait->timeout ? time_left(wait) : no_time;
    /* A wait of our own that is not over: we are a signal handler inside it, or
     * have jumped out of it. Its wake-up is not for this one, which would turn
     * round it for ever. */
    bool wakes_outer = set->wake_sent && set->owner_inside && rp_set_is_mine(set);
    if (wakes_outer)
        rp_set_take_wake(set);
    rp_set_unlock(set);
    rp_set_end_zombies();
    const struct timespec *timeout = RP_READ_ONCE(set->request_done) ? &no_time : wait->timeout ? &left : NULL;
    int result = wait_in_kernel(set, wait->epfd, wait->events, wait->max, timeout, wait->sigmask);
    rp_set_lock(set);
    if (wakes_outer && set->zombie && set->owner_inside)
        rp_set_wake_owner(set);
    return result;
}

/* What a wait finds that is not the owner's of a ring. */
static __attribute__((noinline)) void take_in(struct rp_set *set)
{
    if (set->inherited)
        rp_set_adopt_inherited(set);
    if (RP_READ_ONCE(rp_process_no_rings) && rp_set_engine(set) != RINGPOLL_ENGINE_KERNEL)
        rp_set_demote(set, RINGPOLL_REASON_RESTRICTED, -EPERM);
    if (set->waiters > 0 ||
        (rp_set_engine(set) == RINGPOLL_ENGINE_RING && !rp_set_is_mine(set)))
        rp_set_demote(set, RINGPOLL_REASON_WAITERS, 0);
}

/* File requests are there: a wait keeps room for the event that tells of them, and does not
 * sleep where some are done. True: that event is all this time, since there is room for one
 * only, and the turn is its. */
static __attribute__((noinline)) bool make_room(struct rp_set *set, struct wait *wait)
{
    if (set->request_done)
        wait->timeout = &no_time;
    if (wait->max > 1)
        wait->max--;
    else if (set->request_done)
        return set->requested.first_turn = !set->requested.first_turn;
    return false;
}

static __attribute__((noinline)) int add_request_event(struct rp_set *set, struct wait *wait, int count, int max)
{
    if (count == max || (count < 0 && count != -EINTR))
        return count;
    count = count < 0 ? 0 : count;
    wait->events[count].events = EPOLLIN;
    wait->events[count].data = set->requested.data;
    return count + 1;
}

static int wait_on(struct rp_set *set, struct wait *wait)
{
    int result = AGAIN;

    if (RP_UNLIKELY(set->flags & RINGPOLL_SQPOLL))
        hold_signals(wait);
    rp_set_lock(set);
    RP_COUNT(set->stats.waits, 1);
    if (RP_UNLIKELY((set->inherited | RP_READ_ONCE(rp_process_no_rings)) || set->waiters > 0 || !rp_set_is_mine(set)))
        take_in(set);
    set->sleeper = 0;
    set->waiters++;
    int max = wait->max;
    if (RP_UNLIKELY(set->any_requests) && make_room(set, wait))
        result = 0;
    while (result == AGAIN) {
        if (RP_UNLIKELY(rp_set_engine(set) != RINGPOLL_ENGINE_RING))
            result = wait_without_ring(set, wait);
        else if (RP_LIKELY(set->tells))
            result = wait_on_ring(set, wait);
        else
            result = wait_on_mute_ring(set, wait);
    }
    set->waiters--;
    if (RP_UNLIKELY(set->request_done))
        result = add_request_event(set, wait, result, max);
    if (RP_UNLIKELY(rp_set_engine(set) == RINGPOLL_ENGINE_KERNEL) && set->waiters == 0 && !set->zombie &&
        set->hidden >= 0) {
        rp_set_take_wake(set);
        rp_set_close_hidden(set);
    }
    set->turn_events = result > 0 ? (unsigned)result : 0;
    if (result > 0) {
        if (set->flags & RINGPOLL_ADOPT)
            rp_stream_judge(set, result);
        count_events(set, result);
    }
    if (RP_UNLIKELY(rp_set_engine(set) == RINGPOLL_ENGINE_NEW))
        set->plainly = set->returning == 0 || set->away_for > 0;
    if (RP_UNLIKELY(rp_set_is_ending(set)) && set->waiters == 0 && !set->zombie && set->ring.fd < 0)
        rp_set_free(set);
    rp_set_unlock(set);
    if (RP_UNLIKELY(RP_READ_ONCE(rp_zombies)))
        rp_set_end_zombies();
    if (RP_UNLIKELY(wait->holds_signals))
        rp_sys_set_sigmask(&wait->before, NULL);
    return result;
}

static __attribute__((noinline)) int wait_as_kernel(struct rp_set *set, int epfd, struct epoll_event *events, int max,
                                                    const struct timespec *timeout, const sigset_t *sigmask)
{
    int result = wait_in_kernel(set, epfd, events, max, timeout, sigmask);
    if (result > 0)
        count_among_others(&set->stats.events, (uint64_t)result);
    count_among_others(&set->stats.waits, 1);
    return result;
}

/* What came along in a plain wait with marks of ours, or for bytes that the library has. Events,
 * or AGAIN where that was all. */
static __attribute__((noinline)) int sort_plain(struct rp_set *set, struct epoll_event *events, int count, int max)
{
    bool annexes = false;
    int kept = without_marks(events, count, &annexes);
    rp_set_lock(set);
    if (annexes)
        kept += take_annexes(set, events + kept, max - kept);
    if (set->left)
        rp_left_add(set, events, (unsigned)kept);
    rp_set_unlock(set);
    return kept > 0 ? kept : AGAIN;
}

static __attribute__((noinline)) int wait_at_length(struct rp_set *set, int epfd, struct epoll_event *events, int max,
                                                    const struct timespec *timeout, const sigset_t *sigmask)
{
    if (RP_UNLIKELY(rp_self.batched) && (!set || !set->batched || rp_self.batched > 1) && !rp_self.locks_held)
        ringpoll_flush();
    /* What a release does the program may have to see to before it sleeps: one that declares its
     * fds knows of that, one that believes in epoll does not. */
    if (RP_UNLIKELY(rp_self.to_collect) && rp_loan_collect() && set && (set->flags & RINGPOLL_DECLARED))
        timeout = &no_time;
    if (RP_UNLIKELY(!set))
        return rp_sys_epoll_wait(epfd, events, max, timeout, sigmask);
    /* What is left there, see left.h, comes along. */
    if (rp_set_engine(set) == RINGPOLL_ENGINE_KERNEL && !RP_READ_ONCE(set->zombie) &&
        !RP_READ_ONCE(set->request_done))
        return wait_as_kernel(set, epfd, events, max, timeout, sigmask);
    if (timeout && (timeout->tv_sec < 0 || timeout->tv_nsec < 0 || timeout->tv_nsec >= 1000000000))
        return -EINVAL;
    if (RP_UNLIKELY(max <= 0 || max > (int)(INT_MAX / sizeof(struct epoll_event))))
        return -EINVAL;
    if (RP_UNLIKELY((uintptr_t)events < 4096)) {
        /* EFAULT, but only when there is an event, which then is not lost. */
        ringpoll_demote(epfd);
        return wait_as_kernel(set, epfd, events, max, timeout, sigmask);
    }
    if (RP_UNLIKELY(rp_self.locks_held))
        return rp_sys_epoll_wait(epfd, events, max, timeout, sigmask);
    rp_process_check();
    struct wait wait;
    wait.epfd = epfd;
    wait.max = max;
    wait.events = events;
    wait.timeout = timeout;
    wait.sigmask = sigmask;
    wait.deadline_ns = 0;
    wait.holds_signals = false; /* `before` is not worth the clearing */
    int result = wait_on(set, &wait);
    if (RP_UNLIKELY(rp_self.to_collect))
        (void)rp_loan_collect();
    return result;
}

/* Whether a wait of a RINGPOLL_DECLARED set may be plain; then it has begun. A signal handler
 * that comes after the store to `waiters` knows where this thread is, and what it did before
 * that is seen: without other threads that takes no lock. */
static inline bool begin_plain_wait(struct rp_set *set)
{
    _Static_assert(RINGPOLL_ENGINE_NEW == 0, "all of these at a look");
    unsigned others = (unsigned)set->waiters;
    RP_WRITE_ONCE(set->waiters, (int)others + 1);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    uint64_t more = others | set->ring_watches | RP_READ_ONCE(set->engine) | set->unusual | (uintptr_t)set->left |
                    (set->names == 0) | !set->plainly;
    if (RP_UNLIKELY(more))
        RP_WRITE_ONCE(set->waiters, (int)others);
    else
        set->sleeper = 0;
    return RP_LIKELY(!more);
}

/* Where there are other threads, or something beside the events. */
static __attribute__((noinline)) int end_plain_wait(struct rp_set *set, int result, int epfd, struct epoll_event *events,
                                                    int max, const struct timespec *timeout, const sigset_t *sigmask)
{
    if (RP_READ_ONCE(set->marked) && result > 0)
        result = sort_plain(set, events, result, max);
    uint32_t told = result > 0 ? (uint32_t)result : 0;
    rp_set_lock(set);
    set->waiters--;
    RP_COUNT(set->plain_waits, 1);
    RP_COUNT(set->plain_events, told);
    if ((RP_READ_ONCE(set->plain_waits) | RP_READ_ONCE(set->plain_events)) >> PLAIN_BITS)
        rp_set_count_plain(set);
    if (set->away_for) {
        set->away_for -= set->away_for < told ? set->away_for : told;
        set->plainly = set->returning == 0 || set->away_for > 0;
    }
    if (rp_set_is_ending(set) && set->waiters == 0 && !set->zombie && set->ring.fd < 0) {
        rp_set_free(set);
        result = result == AGAIN ? -EBADF : result;
    }
    rp_set_unlock(set);
    return result != AGAIN ? result : wait_at_length(set, epfd, events, max, timeout, sigmask);
}

/* Engine NEW, and plain fds alone: a wait of the kernel's own, and what keeps the set right
 * around it. */
static __attribute__((noinline)) int wait_plainly(struct rp_set *set, int epfd, struct epoll_event *events, int max,
                                                  const struct timespec *timeout, const sigset_t *sigmask)
{
    bool begun;
    if (RP_LIKELY(rp_single_threaded())) {
        begun = begin_plain_wait(set);
    } else {
        rp_set_end_zombies();
        rp_set_lock(set);
        begun = begin_plain_wait(set);
        rp_set_unlock(set);
    }
    if (RP_UNLIKELY(!begun))
        return wait_at_length(set, epfd, events, max, timeout, sigmask);
    int result = rp_sys_epoll_wait(epfd, events, max, timeout, sigmask);
    if (RP_UNLIKELY(!rp_single_threaded()) ||
        RP_UNLIKELY(set->marked | set->away_for | (set->names == 0) | (set->plain_waits | set->plain_events) >> PLAIN_BITS))
        return end_plain_wait(set, result, epfd, events, max, timeout, sigmask);
    set->waiters--;
    RP_COUNT(set->plain_waits, 1);
    RP_COUNT(set->plain_events, result > 0 ? (uint32_t)result : 0);
    return result;
}

int ringpoll_wait(int epfd, struct epoll_event *events, int max, const struct timespec *timeout,
                  const sigset_t *sigmask)
{
    struct rp_set *set = rp_set_of(epfd);
    if (set && rp_set_engine(set) == RINGPOLL_ENGINE_NEW && (set->flags & RINGPOLL_DECLARED) &&
        !(rp_self.locks_held | (int)rp_self.batched | (int)rp_self.to_collect))
        return wait_plainly(set, epfd, events, max, timeout, sigmask);
    return wait_at_length(set, epfd, events, max, timeout, sigmask);
}
