/* SPDX-License-Identifier: MIT
 *
 * Closes: of a watched fd, of a name of the set, of a number that the library
 * itself sits on.
 */
#include "set.h"

#include <errno.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

/* The file outlives its close for a moment: what the peer is to hear of the close
 * goes out now. On TCP a reset where close would send one (SO_LINGER of zero, or
 * unread bytes), which a disconnect does. An AF_UNIX peer hears of an end where
 * unread bytes would have made it a reset: the one thing that differs. */
static void end_connection(int fd, uint8_t kind, bool dropped)
{
    struct linger linger = {0, 0};
    unsigned length = sizeof linger;
    int unread = 0, at_mark = 0;
    if (kind == RINGPOLL_FD_TCP) {
        rp_sys_getsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, &length);
        rp_sys_call(SYS_ioctl, fd, FIONREAD, (long)&unread, 0, 0, 0);
        rp_sys_call(SYS_ioctl, fd, SIOCATMARK, (long)&at_mark, 0, 0, 0); /* it counts no urgent byte */
        if (dropped || unread > 0 || at_mark || (linger.l_onoff && linger.l_linger == 0)) {
            struct sockaddr nowhere = {.sa_family = AF_UNSPEC};
            rp_sys_call(SYS_connect, fd, (long)&nowhere, sizeof nowhere, 0, 0, 0);
            return;
        }
    }
    if (kind == RINGPOLL_FD_TCP || kind == RINGPOLL_FD_UNIX)
        rp_sys_call(SYS_shutdown, fd, SHUT_RDWR, 0, 0, 0, 0);
}

/* Bytes that the program never read are a reset for the peer: those in the kernel
 * by themselves, those in the queue by a linger of zero. (On AF_UNIX nothing does
 * that: there the peer reads an end.) */
void rp_set_stream_closing(struct rp_set *set, struct rp_stream *stream, const struct rp_fd *entry)
{
    int fd = stream->fd;
    bool is_unix = stream->is_unix;
    /* Duplicates are counted, and have been closed. */
    bool passed = RP_READ_ONCE(stream->passed) || RP_READ_ONCE(entry->epoch) != RP_READ_ONCE(rp_fork_epoch);
    if (rp_stream_closing(set, stream) && !is_unix && !passed && !rp_self.forgets) {
        struct linger at_once = {1, 0};
        rp_sys_call(SYS_setsockopt, fd, SOL_SOCKET, SO_LINGER, (long)&at_once, sizeof at_once, 0);
    }
}

/* Its file outlives the close, its registrations shall not: what is done to the file
 * now would be reported. */
static void unregister(int fd)
{
    rp_lock(&rp_sets_lock);
    for (struct rp_set *set = rp_sets; set; set = set->next_set) {
        rp_lock(&set->lock);
        if (set->in_use && !set->inherited && !rp_set_is_ending(set))
            rp_set_kernel_ctl(set, rp_set_kernel_fd(set), EPOLL_CTL_DEL, fd, NULL);
        rp_unlock(&set->lock);
    }
    rp_unlock(&rp_sets_lock);
}

bool rp_set_cancel(struct rp_set *set, struct rp_watch *watch)
{
    struct rp_op *op = NULL;
    while (rp_watch_disarm(set, watch, &op) == -EBUSY)
        if (rp_set_enter_and_reap(set) < 0)
            break;
    if (!op)
        return false;
    uint32_t generation = op->generation;
    for (int turn = 0; turn < 256 && op->state == RP_OP_ORPHANED && op->generation == generation; turn++)
        if (rp_set_enter_and_reap(set) < 0)
            break;
    if (set->ring.setup_flags & RP_SETUP_SQPOLL)
        (void)rp_set_enter_and_reap(set); /* see rp_set_await_orphans() */
    return true;
}

/* A poll that was given up, for a receive say, may be yet to end, and hold the file. */
static void await_given_up(struct rp_set *set)
{
    if (set->ops.count[RP_OP_ORPHANED] > 0 && set->ring.fd >= 0 && rp_set_is_mine(set))
        (void)rp_set_await_orphans(set, 16);
}

void rp_set_fd_closing(struct rp_set *set, struct rp_watch *watch, struct rp_fd *entry)
{
    bool unread = false, receives = false;

    if (watch->stream) {
        struct rp_stream *stream = watch->stream;
        if (!rp_set_is_mine(set) && set->owner_inside)
            rp_stream_end_receive(set, stream);
        /* The lock was dropped: it may be somebody else's by now. The caller looks again. */
        if (rp_fd_watch_of(entry, set) != watch)
            return;
        if (watch->stream != stream)
            ; /* ended meanwhile */
        else if (stream->copies > 0) /* others have it: ringpoll_fd_closing() sees to the number */
            rp_stream_unwatch(set, watch);
        else if (rp_set_is_mine(set) || !rp_stream_is_armed(stream)) {
            rp_set_stream_closing(set, stream, entry);
        } else {
            receives = true;
            unread = rp_stream_orphan(set, stream);
        }
    }
    /* Others hold the file: epoll goes on reporting it, under a number that is
     * gone. Kernel epoll can say that, we cannot. */
    if (rp_fd_shared(entry) && rp_set_leave_ring(set, watch, true))
        return; /* we are called again */
    if (rp_set_engine(set) == RINGPOLL_ENGINE_KERNEL && watch->disabled && !watch->deleted)
        RP_COUNT(set->leftovers, -1u);
    if (rp_fd_shared(entry) && rp_left_make_ghost(set, watch, entry))
        return;
    if (!receives && rp_set_may_forget(set, watch)) {
        rp_set_forget_watch(set, watch);
        await_given_up(set);
        return;
    }
    if (rp_set_is_mine(set)) {
        set->stats.cancels_on_close += rp_set_cancel(set, watch);
        rp_set_forget_watch(set, watch);
        await_given_up(set);
        if (set->owner_inside && (set->ready_count || set->hidden_ready || set->dirty))
            rp_set_wake_owner(set); /* we are its signal handler, and took its completions */
        return;
    }
    /* Another thread's ring. The record goes to the owner. */
    RP_WRITE_ONCE(watch->deleted, true);
    rp_set_dirty(set, watch);
    rp_fd_unlink(entry, watch);
    int fd = watch->fd;
    RP_WRITE_ONCE(watch->fd, -1);
    if (!watch->op && !receives)
        return;
    set->stats.cancels_on_close++;
    rp_set_nudge(set);
    uint8_t kind = watch->kind;
    if (set->owner_inside && rp_set_ask_owner(set))
        return;
    if (rp_fd_shared(entry) || rp_self.forgets)
        return;
    rp_set_unlock(set);
    unregister(fd);
    struct rp_stream *elsewhere = rp_stream_lock(fd); /* bytes that another set received */
    if (elsewhere) {
        unread = unread || elsewhere->head;
        rp_set_unlock(elsewhere->set);
    }
    rp_set_lock(set);
    end_connection(fd, kind, unread);
}

void rp_set_name_closing(struct rp_set *set, int fd)
{
    if (--set->names > 0) {
        if (set->identity != fd)
            return;
        for (unsigned page = 0; page < RP_FD_PAGES; page++) {
            struct rp_fd *entries = __atomic_load_n(&rp_fd_pages[page], __ATOMIC_ACQUIRE);
            for (unsigned i = 0; entries && i < RP_FD_PAGE; i++)
                if (RP_READ_ONCE(entries[i].set) == set && (int)(page * RP_FD_PAGE + i) != fd) {
                    set->identity = (int)(page * RP_FD_PAGE + i);
                    return;
                }
        }
        return;
    }
    uint32_t engine = rp_set_engine(set);
    bool mine = rp_set_is_mine(set);
    if (engine == RINGPOLL_ENGINE_RING && (!mine || set->owner_inside)) {
        RP_WRITE_ONCE(set->zombie, true);
        __atomic_fetch_add(&rp_zombies, 1, __ATOMIC_RELAXED);
        __atomic_store_n(&set->engine, RINGPOLL_ENGINE_KERNEL, __ATOMIC_RELEASE);
        if (set->owner_inside) {
            if (mine)
                rp_set_wake_owner(set); /* a signal handler: the wait ends by itself */
            else
                rp_set_ask_owner(set);
        } else {
            rp_set_nudge(set); /* it may sleep in another loop */
        }
        return;
    }
    if (set->zombie) /* its owner will end it */
        return;
    if (engine == RINGPOLL_ENGINE_RING)
        rp_set_end_ring(set);
    if (set->waiters == 0)
        rp_set_free(set);
}

bool rp_set_move_fd(int *at, int number)
{
    if (*at != number)
        return false;
    int copy = rp_sys_fcntl(number, 0 /* F_DUPFD */, number + 1);
    copy = copy < 0 ? rp_sys_fcntl(number, 0, 3) : copy;
    if (copy < 0)
        return false;
    rp_sys_fcntl(copy, 2 /* F_SETFD */, 1);
    rp_fd_internal(copy, true);
    rp_fd_internal(number, false);
    RP_WRITE_ONCE(*at, copy);
    rp_sys_close(number);
    return true;
}

int ringpoll_fd_vacate(int fd)
{
    bool moved = false;
    if (!ringpoll_fd_is_internal(fd))
        return 0;
    if (rp_self.locks_held)
        return -EBUSY;
    rp_lock(&rp_wake_lock);
    moved = rp_set_move_fd(&rp_wake_fd, fd);
    rp_unlock(&rp_wake_lock);
    rp_lock(&rp_sets_lock);
    for (struct rp_set *set = rp_sets; set && !moved; set = set->next_set) {
        rp_lock(&set->lock);
        if (set->in_use) {
            bool enters_by_it = set->ring.enter_fd == fd && set->ring.fd == fd;
            moved = rp_set_move_fd(&set->hidden, fd);
            for (unsigned i = 0; i < set->annex_count && !moved; i++)
                moved = rp_set_move_fd(&set->annexes[i], fd);
            if (!moved && set->ring.fd == fd && (moved = rp_set_move_fd(&set->ring.fd, fd)) && enters_by_it)
                RP_WRITE_ONCE(set->ring.enter_fd, set->ring.fd);
        }
        rp_unlock(&set->lock);
    }
    rp_unlock(&rp_sets_lock);
    return moved || rp_loan_vacate(fd) ? 0 : rp_accept_vacate(fd);
}
