/* SPDX-License-Identifier: MIT
 *
 * A set inside another loop: the thread that waits on it sleeps in that loop's own call,
 * by an fd, and asks the set by waits that do not block.
 *
 * A ring with DEFER_TASKRUN never wakes a poll of its own fd. An eventfd that is registered
 * with it is signalled when something is left to be run while there was nothing, and again
 * by every enter that brings completions. From that follows the order that loses nothing:
 *
 *   1. nothing is left to be done before a sleep, nothing waits to be read in the CQ;
 *   2. the eventfd is emptied, if there was an enter since that was done last, or it has
 *      been seen readable;
 *   3. TASKRUN is looked at: what came before 2 has set it before it signalled, and what
 *      comes after 2 makes the eventfd readable. Up in vain (see ring.h) it proves nothing:
 *      then enters tell, and what comes during those has signalled after 2.
 *
 * One thing does not signal it: what an eventfd's own write wakes. The kernel puts such a
 * signal off (no eventfd is signalled inside another's), and does so once per ring (6.18):
 * the second is lost. So eventfds leave the ring, and the outer loop polls the identity, too,
 * which is kernel epoll's all the way.
 *
 * Where TASKRUN does not tell (rings without DEFER_TASKRUN, SQPOLL) this cannot be had, and
 * the set moves to kernel epoll, whose own fd the outer loop polls.
 *
 * A thread that sleeps so is outside, for all that others have to know, but does not come by
 * soon: what they leave to it is followed by a nudge, and new registrations of theirs go
 * to the identity, as when it is inside.
 */
#include "set.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>

#define NEVER UINT64_MAX

void rp_set_nudge(struct rp_set *set)
{
    static const uint64_t one = 1;
    if (set->sleeper && set->sleeper != rp_self.id && set->outer >= 0)
        (void)rp_sys_write(set->outer, &one, sizeof one);
}

static int make_outer(struct rp_set *set)
{
    if (set->outer < 0) {
        int fd = rp_sys_eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        if (fd >= 0)
            fd = rp_sys_dup_high(fd);
        if (fd < 0)
            return fd;
        rp_fd_internal(fd, true);
        set->outer = fd;
        for (struct rp_watch *watch = set->watches; watch; watch = watch->next_of_set)
            if (watch->kind == RINGPOLL_FD_EVENTFD)
                rp_set_leave_ring(set, watch, false);
    }
    if (!set->outer_registered) {
        int32_t fd = set->outer;
        int error = rp_ring_register(&set->ring, RP_REGISTER_EVENTFD, &fd, 1);
        if (error < 0)
            return error;
        set->outer_registered = true;
        set->outer_enters = NEVER;
    }
    return 0;
}

void rp_set_end_outer(struct rp_set *set, bool for_good)
{
    if (set->outer_registered && set->ring.fd >= 0)
        (void)rp_ring_register(&set->ring, RP_UNREGISTER_EVENTFD, NULL, 0);
    set->outer_registered = false;
    if (!for_good || set->outer < 0)
        return;
    rp_fd_internal(set->outer, false);
    rp_sys_close(set->outer);
    set->outer = -1;
}

/* In the child, whose loop may go on to poll this number: another file. */
void rp_set_outer_after_fork(struct rp_set *set)
{
    set->outer_registered = false;
    set->sleeper = 0;
    if (set->outer < 0)
        return;
    int fresh = rp_sys_eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
    if (fresh < 0)
        return;
    (void)rp_sys_dup3(fresh, set->outer, EFD_CLOEXEC);
    rp_sys_close(fresh);
}

static bool has_anything(const struct rp_set *set)
{
    return !rp_set_is_at_rest(set) || set->ready_count > 0 || set->hidden_ready || set->sending || set->request_done ||
           rp_ring_queued(&set->ring) > 0 || rp_ring_peek(&set->ring);
}

/* 0; -EAGAIN: there is something; else the ring is of no use for this. */
static int settle_for_sleep(struct rp_set *set, bool woken)
{
    struct rp_ring *ring = &set->ring;
    int error = set->tells ? make_outer(set) : -EOPNOTSUPP;
    if (error < 0)
        return error;
    if (has_anything(set))
        return -EAGAIN;
    if (woken || set->outer_enters != ring->enters) {
        uint64_t count;
        (void)rp_sys_read(set->outer, &count, sizeof count);
        set->outer_enters = ring->enters;
    }
    ring->barren = 0;
    while (rp_ring_wants_enter(ring) && !rp_ring_is_up_in_vain(ring)) {
        error = rp_set_enter_and_reap(set);
        if (error < 0)
            return error == -EAGAIN ? -EIO : error;
        if (has_anything(set))
            return -EAGAIN;
    }
    return 0;
}

int ringpoll_sleep_fd(int epfd, int woken)
{
    struct rp_set *set = rp_set_of(epfd);
    if (!set)
        return rp_sys_fcntl(epfd, 1 /* F_GETFD */, 0) < 0 ? -EBADF : -EINVAL;
    if (rp_self.locks_held) /* a signal handler in the midst of our own work */
        return -EAGAIN;
    rp_process_check();
    (void)ringpoll_flush(); /* other sets' sends */
    rp_set_lock(set);
    int result = epfd;
    uint32_t engine = rp_set_engine(set);
    if (set->inherited || (engine == RINGPOLL_ENGINE_NEW && (set->ring_watches > 0 || set->request_queued || set->request_done)) ||
        (engine == RINGPOLL_ENGINE_RING && RP_READ_ONCE(rp_process_no_rings)) ||
        (engine == RINGPOLL_ENGINE_KERNEL && set->zombie && rp_set_is_mine(set))) {
        result = -EAGAIN; /* a wait sees to that */
    } else if (engine == RINGPOLL_ENGINE_RING) {
        int error = rp_set_is_mine(set) ? settle_for_sleep(set, woken != 0) : -EOPNOTSUPP;
        if (error == 0)
            result = set->outer;
        else if (error == -EAGAIN)
            result = error;
        else
            rp_set_demote(set, RINGPOLL_REASON_NESTED, 0);
    }
    set->sleeper = result >= 0 ? rp_self_id() : 0;
    rp_set_unlock(set);
    return result;
}
