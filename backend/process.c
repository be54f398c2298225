/* SPDX-License-Identifier: MIT
 *
 * What the program does to its fds and to itself, as far as sets must know:
 * births, duplicates, closes; children, exec, filters, the end.
 *
 * Children. A page that the kernel wipes on fork tells a child that it is one,
 * even when the fork was made by a bare clone. The child closes its copies of
 * the parent's ring fds (they would keep the parent's polls, and with them its
 * connections, alive), forgets what was armed and marks its sets inherited.
 *
 * Signal handlers. closing() may come while this thread holds a lock. Then the
 * fd's watches are only marked; rp_process_deferred() forgets them when the
 * interrupted section ends. See lock.h.
 */
#include <errno.h>
#include <string.h>

#include "fdtab.h"
#include "lock.h"
#include "set.h"
#include "watch.h"

uint32_t *rp_process_alive; /* 1 here, 0 in a child that nobody announced */
static struct rp_lock alive_lock;

/* ------------------------------------------------------------------ births */

void ringpoll_fd_opened(int fd, uint32_t kind_and_flags)
{
    struct rp_fd *entry = rp_fd_get(fd);
    if (!entry)
        return;
    /* A number that still has watches was closed unseen. */
    if (RP_READ_ONCE(entry->stream) && !rp_self.locks_held) {
        /* The new file is none of theirs. */
        struct rp_stream *stream = rp_stream_lock(fd);
        if (stream) {
            rp_fd_set_flags(entry, RP_FD_SHARED, 0);
            rp_send_forget(stream->set, stream);
            rp_set_unlock(stream->set);
        }
    }
    if (RP_READ_ONCE(entry->watches) || RP_READ_ONCE(entry->set) || RP_READ_ONCE(entry->stream) ||
        (rp_fd_flags(entry) & RP_FD_LISTENER))
        ringpoll_fd_forget(fd);
    rp_fd_opened(fd, RP_FD_KNOWN | (kind_and_flags & (RINGPOLL_FD_KIND | RINGPOLL_FD_CONNECTED | RINGPOLL_FD_NONBLOCK | RINGPOLL_FD_DECLARED)));
}

static void change_flags(int fd, uint32_t on, uint32_t off)
{
    struct rp_fd *entry = rp_fd_peek(fd);
    if (entry && (rp_fd_flags(entry) || RP_READ_ONCE(entry->watches)))
        rp_fd_set_flags(entry, on, off);
}

void ringpoll_fd_connected(int fd)
{
    change_flags(fd, RINGPOLL_FD_CONNECTED, RP_FD_ZC); /* to somebody else than before, maybe */
}

void ringpoll_fd_nonblock(int fd, int on)
{
    change_flags(fd, on ? RINGPOLL_FD_NONBLOCK : 0, on ? 0 : RINGPOLL_FD_NONBLOCK);
}

/* The file may be somebody else's too from now on, so that its registrations may
 * outlive their numbers: they go to kernel epoll while it is known what they have
 * reported. */
static void leave_rings(struct rp_fd *entry)
{
    if (rp_self.locks_held || !__atomic_load_n(&entry->watches, __ATOMIC_ACQUIRE))
        return;
    rp_process_check();
    for (unsigned at = 0;; at++) {
        struct rp_set *set = rp_fd_set_at(entry, at);
        if (!set)
            return;
        rp_set_lock(set);
        struct rp_watch *watch = rp_fd_watch_of(entry, set);
        if (watch)
            rp_set_leave_ring(set, watch, false);
        rp_set_unlock(set);
    }
}

void ringpoll_fd_shared(int fd)
{
    struct rp_set *set = rp_set_of(fd);
    if (set && !rp_self.locks_held) {
        /* Another process can only wait on the identity itself. */
        rp_process_check();
        rp_set_lock(set);
        rp_set_demote(set, RINGPOLL_REASON_SHARED, 0);
        rp_set_pass(set);
        rp_set_unlock(set);
        return;
    }
    struct rp_fd *entry = rp_fd_get(fd);
    if (!entry)
        return;
    rp_fd_set_flags(entry, RP_FD_SHARED, 0);
    ringpoll_fd_release(fd, 1);
    rp_stream_passed(fd);
    leave_rings(entry);
}

void ringpoll_fd_duplicated(int from, int to)
{
    struct rp_fd *source = rp_fd_get(from);
    if (!source || from == to)
        return;
    struct rp_set *set = __atomic_load_n(&source->set, __ATOMIC_ACQUIRE);
    uint32_t flags = rp_fd_flags(source);
    struct rp_fd *target = rp_fd_get(to);
    if (!target)
        return;
    if (set) {
        rp_set_lock(set);
        set->names++;
        rp_set_unlock(set);
        rp_fd_opened(to, RP_FD_KNOWN);
        __atomic_store_n(&target->set, set, __ATOMIC_RELEASE);
        return;
    }
    rp_fd_set_flags(source, RP_FD_SHARED, 0);
    ringpoll_fd_release(from, 1);
    rp_fd_opened(to, (flags & ~(uint32_t)RP_FD_INTERNAL) | RP_FD_SHARED);
    RP_WRITE_ONCE(target->epoch, RP_READ_ONCE(source->epoch));
    rp_stream_duplicated(from, to);
    if (flags & RP_FD_LISTENER)
        rp_accept_duplicated(from, to);
    leave_rings(source);
}

void ringpoll_fd_leave(int fd)
{
    struct rp_fd *entry = rp_fd_get(fd);
    if (!entry)
        return;
    rp_fd_set_flags(entry, RP_FD_LEAVE, 0);
    ringpoll_fd_release(fd, 1);
    leave_rings(entry);
}

int ringpoll_fd_is_internal(int fd)
{
    struct rp_fd *entry = rp_fd_peek(fd);
    return entry && (rp_fd_flags(entry) & RP_FD_INTERNAL) != 0;
}

int ringpoll_fd_is_nonblock(int fd)
{
    struct rp_fd *entry = rp_fd_peek(fd);
    return entry && (rp_fd_flags(entry) & RINGPOLL_FD_NONBLOCK) != 0;
}

int ringpoll_fd_is_set(int fd)
{
    return rp_set_of(fd) != NULL;
}

/* ------------------------------------------------------------------ closes */

static void close_deferred(struct rp_fd *entry)
{
    struct rp_watch *watch = __atomic_load_n(&entry->watches, __ATOMIC_ACQUIRE);
    for (; watch; watch = RP_READ_ONCE(watch->next_of_fd))
        watch->closed_in_handler = true;
    rp_self.deferred = 1;
}

void ringpoll_fd_closing(int fd)
{
    struct rp_fd *entry = rp_fd_peek(fd);
    if (!entry)
        return;
    uint32_t flags = rp_fd_flags(entry);
    if (flags & RP_FD_INTERNAL)
        return;
    if (flags & RP_FD_LISTENER)
        rp_accept_closing(fd);
    if (__atomic_load_n(&entry->watches, __ATOMIC_ACQUIRE)) {
        if (rp_self.locks_held) {
            close_deferred(entry);
        } else {
            rp_process_check();
            for (;;) {
                struct rp_set *set = rp_fd_set_at(entry, 0);
                if (!set)
                    break;
                rp_set_lock(set);
                struct rp_watch *watch = rp_fd_watch_of(entry, set);
                if (watch)
                    rp_set_fd_closing(set, watch, entry);
                rp_set_unlock(set);
            }
        }
    }
    /* Bytes of an fd that no set watches any more. */
    if (__atomic_load_n(&entry->stream, __ATOMIC_RELAXED) && rp_self.locks_held) {
        struct rp_stream *stream = __atomic_exchange_n(&entry->stream, NULL, __ATOMIC_ACQ_REL);
        if (stream) {
            __atomic_fetch_add(&stream->closed_in_handler, 1, __ATOMIC_RELAXED);
            rp_self.deferred = 1;
        }
    } else if (__atomic_load_n(&entry->stream, __ATOMIC_RELAXED)) {
        struct rp_stream *stream = rp_stream_lock(fd);
        if (stream) {
            struct rp_set *owner = stream->set;
            if (rp_stream_name_closing(stream, fd))
                ; /* others have them too */
            else if (rp_set_is_mine(owner) || owner->owner_inside || !rp_stream_is_armed(stream))
                rp_set_stream_closing(owner, stream, entry);
            else
                rp_stream_orphan(owner, stream);
            rp_set_unlock(owner);
        }
    }
    struct rp_set *set = __atomic_load_n(&entry->set, __ATOMIC_ACQUIRE);
    if (set && rp_self.locks_held) {
        __atomic_store_n(&entry->set, NULL, __ATOMIC_RELEASE);
        __atomic_fetch_add(&set->closed_in_handler, 1, __ATOMIC_ACQ_REL);
        rp_self.deferred = 1;
    } else if (set) {
        rp_process_check();
        __atomic_store_n(&entry->set, NULL, __ATOMIC_RELEASE);
        rp_set_lock(set);
        rp_set_name_closing(set, fd);
        rp_set_unlock(set);
    }
    if (flags)
        __atomic_store_n(&entry->flags, 0, __ATOMIC_RELEASE);
    if (RP_READ_ONCE(rp_zombies))
        rp_set_end_zombies();
}

void ringpoll_fd_forget(int fd)
{
    const struct rp_fd *entry = rp_fd_peek(fd);
    if (!entry || (!rp_fd_flags(entry) && !RP_READ_ONCE(entry->watches) && !RP_READ_ONCE(entry->stream) &&
                   !RP_READ_ONCE(entry->set)))
        return;
    bool before = rp_self.forgets;
    rp_self.forgets = true;
    ringpoll_fd_closing(fd);
    rp_self.forgets = before;
}

void ringpoll_fd_closing_range(unsigned first, unsigned last)
{
    for (unsigned page = first / RP_FD_PAGE; page < RP_FD_PAGES && page <= last / RP_FD_PAGE; page++) {
        if (!__atomic_load_n(&rp_fd_pages[page], __ATOMIC_ACQUIRE))
            continue;
        for (unsigned i = 0; i < RP_FD_PAGE; i++) {
            unsigned fd = page * RP_FD_PAGE + i;
            if (fd >= first && fd <= last)
                ringpoll_fd_closing((int)fd);
        }
    }
}

int ringpoll_close(int fd)
{
    if (fd < 0 || ringpoll_fd_is_internal(fd))
        return -EBADF;
    ringpoll_fd_closing(fd);
    return rp_sys_close(fd);
}

/* Names of sets that a handler closed: with one lock at a time, since the end of a
 * set may have to wait for its owner. */
static void close_names(void)
{
    for (;;) {
        rp_lock(&rp_sets_lock);
        struct rp_set *set = rp_sets;
        while (set && __atomic_load_n(&set->closed_in_handler, __ATOMIC_ACQUIRE) == 0)
            set = set->next_set;
        rp_unlock(&rp_sets_lock);
        if (!set)
            return;
        rp_lock(&set->lock);
        if (__atomic_load_n(&set->closed_in_handler, __ATOMIC_ACQUIRE) > 0) {
            __atomic_fetch_sub(&set->closed_in_handler, 1, __ATOMIC_ACQ_REL);
            rp_set_name_closing(set, rp_set_of(set->identity) == set ? -1 : set->identity);
        }
        rp_unlock(&set->lock);
    }
}

void rp_process_deferred(void)
{
    rp_self.deferred = 0;
    rp_lock(&rp_sets_lock);
    for (struct rp_set *set = rp_sets; set; set = set->next_set) {
        rp_lock(&set->lock);
        for (struct rp_watch *watch = set->watches, *next; watch && set->in_use; watch = next) {
            next = watch->next_of_set;
            if (watch->modified_in_handler && !watch->closed_in_handler && !watch->deleted_in_handler) {
                RP_WRITE_ONCE(watch->events, watch->handler_events);
                watch->data = watch->handler_data;
                watch->disabled = false;
                watch->recheck = true;
                rp_set_dirty(set, watch);
            }
            if (watch->deleted_in_handler && !watch->closed_in_handler) {
                RP_WRITE_ONCE(watch->deleted, true);
                rp_set_dirty(set, watch);
            }
            watch->modified_in_handler = watch->deleted_in_handler = false;
            if (!watch->closed_in_handler)
                continue;
            watch->closed_in_handler = false;
            if (watch->home == RP_HOME_KERNEL && !watch->op)
                rp_set_forget_watch(set, watch);
            else {
                /* The file is gone already: no hand-over, only the cancel. */
                struct rp_fd *entry = rp_fd_peek(watch->fd);
                if (entry)
                    rp_fd_unlink(entry, watch);
                RP_WRITE_ONCE(watch->fd, -1);
                RP_WRITE_ONCE(watch->deleted, true);
                struct rp_stream *stream = watch->stream; /* its number: see below */
                if (stream && stream->copies == 0 && __atomic_load_n(&stream->closed_in_handler, __ATOMIC_RELAXED) == 0) {
                    rp_send_forget(set, stream);
                    rp_stream_orphan(set, stream);
                } else if (stream) {
                    stream->watch = NULL;
                    watch->stream = NULL;
                }
                rp_set_dirty(set, watch);
                if (set->ring.fd >= 0 && rp_set_is_mine(set) && watch->op) {
                    struct rp_op *op = NULL;
                    if (rp_watch_disarm(set, watch, &op) == 0)
                        rp_ring_enter(&set->ring, 0, NULL, NULL);
                }
            }
        }
        for (struct rp_stream *stream = set->streams, *next; stream && set->in_use; stream = next) {
            next = stream->next;
            bool last = false;
            while (!last && __atomic_load_n(&stream->closed_in_handler, __ATOMIC_RELAXED) > 0) {
                __atomic_fetch_sub(&stream->closed_in_handler, 1, __ATOMIC_RELAXED);
                last = !rp_stream_name_closing(stream, -1);
            }
            if (last) {
                rp_send_forget(set, stream);
                rp_stream_orphan(set, stream);
            }
        }
        rp_unlock(&set->lock);
    }
    rp_unlock(&rp_sets_lock);
    close_names();
}

/* ---------------------------------------------------------------- children */

void rp_process_made_set(void)
{
    if (__atomic_load_n(&rp_process_alive, __ATOMIC_ACQUIRE))
        return;
    rp_lock(&alive_lock);
    if (!rp_process_alive) {
        uint32_t *page = rp_sys_pages_wipe_on_fork(4096);
        if (page) {
            *page = 1;
            __atomic_store_n(&rp_process_alive, page, __ATOMIC_RELEASE);
        }
    }
    rp_unlock(&alive_lock);
}

void rp_process_become_child(void)
{
    rp_sets_lock.word = rp_fdtab_lock.word = alive_lock.word = 0;
    rp_stream_limbo_fork(RP_STREAM_FORK_CHILD);
    rp_self.batched = 0;
    if (rp_self.forking) { /* else a signal handler forked, and who it interrupted will let go of them */
        rp_self.locks_held = 0;
        rp_self.deferred = 0;
        rp_self.forking = false;
    }
    __atomic_fetch_add(&rp_fork_epoch, 1, __ATOMIC_RELAXED);
    rp_self.id = 0;
    rp_set_forget_kept_rings();
    rp_loan_after_fork();
    for (struct rp_set *set = rp_sets; set; set = set->next_set)
        rp_set_after_fork(set);
    rp_accept_after_fork();
    if (rp_process_alive)
        *rp_process_alive = 1;
}

/* Whoever goes on with these fds, here or in another program, gets from the kernel
 * what the program has not been told of. */
static void release_all(bool may_exec)
{
    if (rp_self.locks_held)
        return;
    rp_lock(&rp_sets_lock);
    for (struct rp_set *set = rp_sets; set; set = set->next_set) {
        rp_lock(&set->lock);
        if (set->in_use && set->streams)
            rp_stream_release_all(set);
        if (set->in_use && (set->flags & RINGPOLL_ACCEPT))
            rp_accept_share_all(set, may_exec);
        rp_unlock(&set->lock);
    }
    rp_unlock(&rp_sets_lock);
}

/* All locks, so that the child finds every table whole. */
void ringpoll_fork_prepare(void)
{
    if (rp_self.locks_held) /* a signal handler forks inside our section: the child repairs */
        return;
    rp_process_check();
    release_all(false);
    rp_lock(&rp_sets_lock);
    for (struct rp_set *set = rp_sets; set; set = set->next_set)
        rp_lock(&set->lock);
    rp_stream_limbo_fork(RP_STREAM_FORK_PREPARE);
    rp_accept_limbo_fork(RP_ACCEPT_FORK_PREPARE);
    rp_loan_fork(true);
    rp_lock(&rp_fdtab_lock);
    rp_self.forking = true;
}

void ringpoll_fork_parent(void)
{
    __atomic_fetch_add(&rp_fork_epoch, 1, __ATOMIC_RELAXED);
    if (!rp_self.forking)
        return;
    rp_self.forking = false;
    rp_unlock(&rp_fdtab_lock);
    rp_loan_fork(false);
    rp_accept_limbo_fork(RP_ACCEPT_FORK_PARENT);
    rp_stream_limbo_fork(RP_STREAM_FORK_PARENT);
    for (struct rp_set *set = rp_sets; set; set = set->next_set)
        rp_unlock(&set->lock);
    rp_unlock(&rp_sets_lock);
}

void ringpoll_fork_child(void)
{
    rp_process_become_child();
}

void ringpoll_fork_elsewhere(void)
{
    release_all(true);
    __atomic_fetch_add(&rp_fork_epoch, 1, __ATOMIC_RELAXED);
}

/* ------------------------------------------------- exec, filters, the end */

void ringpoll_exec_prepare(void)
{
    rp_process_check();
    if (rp_self.locks_held)
        return;
    release_all(true);
    rp_lock(&rp_sets_lock);
    for (struct rp_set *set = rp_sets; set; set = set->next_set) {
        rp_lock(&set->lock);
        if (set->in_use && set->identity >= 0 && (rp_sys_fcntl(set->identity, 1 /* F_GETFD */, 0) & 1) == 0) {
            rp_set_demote(set, RINGPOLL_REASON_SHARED, 0);
            rp_set_pass(set);
        }
        rp_unlock(&set->lock);
    }
    rp_unlock(&rp_sets_lock);
}

void ringpoll_process_restricted(int for_good)
{
    rp_process_check();
    if (for_good)
        __atomic_store_n(&rp_process_no_rings, true, __ATOMIC_RELEASE);
    __atomic_fetch_add(&rp_process_credentials, 1, __ATOMIC_RELAXED);
    if (rp_self.locks_held)
        return;
    rp_lock(&rp_sets_lock);
    for (struct rp_set *set = rp_sets; set; set = set->next_set) {
        rp_lock(&set->lock);
        if (set->in_use && !set->inherited && rp_set_engine(set) == RINGPOLL_ENGINE_RING &&
            (for_good || (set->flags & RINGPOLL_SQPOLL)))
            rp_set_demote(set, RINGPOLL_REASON_RESTRICTED, -EPERM);
        rp_unlock(&set->lock);
    }
    rp_unlock(&rp_sets_lock);
}

void ringpoll_process_exiting(void)
{
    uint32_t *page = __atomic_load_n(&rp_process_alive, __ATOMIC_ACQUIRE);
    if (!page || RP_READ_ONCE(*page) == 0 || rp_self.locks_held)
        return;
    rp_lock(&rp_sets_lock);
    for (struct rp_set *set = rp_sets; set; set = set->next_set) {
        rp_lock(&set->lock);
        if (set->in_use && (set->flags & RINGPOLL_ACCEPT)) {
            rp_accept_end_all(set);
            rp_accept_drop_all(set);
        }
        if (set->in_use && set->ring.fd >= 0 && rp_set_is_mine(set)) {
            /* The set stays usable for what still runs: on kernel epoll. */
            if (rp_set_engine(set) == RINGPOLL_ENGINE_RING)
                rp_set_demote(set, RINGPOLL_REASON_ASKED, 0);
            else
                rp_set_end_ring(set);
        }
        rp_unlock(&set->lock);
    }
    rp_unlock(&rp_sets_lock);
}
