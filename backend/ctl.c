/* SPDX-License-Identifier: MIT
 *
 * epoll_ctl: which home a watch gets, and what other threads and signal
 * handlers may do to it.
 */
#include "set.h"

#include <errno.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>

static const struct timespec no_time = {0, 0};

bool rp_set_fits_ring(const struct rp_set *set, int fd, uint32_t events, uint8_t *ret_kind)
{
    struct rp_fd *entry = rp_fd_peek(fd);
    uint32_t flags = entry ? rp_fd_flags(entry) : 0;

    if ((flags & RP_FD_SHARED) && !(set->flags & RINGPOLL_TRACKED))
        return false;
    if ((events & (EPOLLEXCLUSIVE | EPOLLWAKEUP)) || (flags & (RP_FD_LEAVE | RP_FD_INTERNAL)) || (entry && RP_READ_ONCE(entry->set)))
        return false;
    if (set->flags & (RINGPOLL_TRACKED | RINGPOLL_DECLARED)) {
        if (!(set->flags & RINGPOLL_TRACKED) && !(flags & RINGPOLL_FD_DECLARED)) /* see is_plain() */
            return false;
        uint32_t kind = flags & RINGPOLL_FD_KIND;
        if (!(flags & RP_FD_KNOWN) || kind == RINGPOLL_FD_OTHER)
            return false;
        if ((kind == RINGPOLL_FD_TCP || kind == RINGPOLL_FD_UNIX) && !(flags & RINGPOLL_FD_CONNECTED))
            return false;
        if (kind == RINGPOLL_FD_PIPE && !rp_single_threaded()) /* see rp_set_has_company() */
            return false;
        if (kind == RINGPOLL_FD_EVENTFD && set->outer >= 0) /* see outer.c */
            return false;
        /* Its registration may outlive this number, or its wake-ups prove nothing:
         * kernel epoll's business. */
        if (rp_fd_shared(entry) || (flags & RP_FD_ALONG))
            return false;
        *ret_kind = (uint8_t)kind;
        return true;
    }
    /* Untracked: nothing is known of the number, so ask what it is now. Of TCP its
     * number and a TCP_INFO prove the rest (a raw socket has none, MPTCP another
     * number): two calls, since this comes with each ADD. */
    int type = 0, protocol = 0, domain = 0;
    unsigned length = sizeof protocol;
    if (rp_sys_getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &length) == 0) {
        if (protocol == IPPROTO_TCP) {
            uint8_t state = 0; /* tcpi_state: 1 established, 2 SYN sent, 7 closed, 10 listening */
            length = sizeof state;
            *ret_kind = RINGPOLL_FD_TCP;
            return rp_sys_getsockopt(fd, IPPROTO_TCP, 11 /* TCP_INFO */, &state, &length) == 0 && state != 7 &&
                   state != 10;
        }
        length = sizeof type;
        if (protocol != 0 || rp_sys_getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) < 0 || type != SOCK_STREAM)
            return false;
        length = sizeof domain;
        *ret_kind = RINGPOLL_FD_UNIX;
        return rp_sys_getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) == 0 && domain == AF_UNIX &&
               rp_sys_getpeername_connected(fd) == 1;
    }
    unsigned mode;
    *ret_kind = RINGPOLL_FD_PIPE;
    return rp_single_threaded() && rp_sys_fstat_mode(fd, &mode) == 0 && S_ISFIFO(mode);
}

static int record_kernel_watch(struct rp_set *set, int fd, const struct epoll_event *event)
{
    struct rp_fd *entry = rp_fd_get(fd);
    struct rp_watch *watch = entry ? rp_watch_alloc() : NULL;
    if (!watch)
        return -ENOMEM;
    RP_WRITE_ONCE(watch->fd, fd);
    RP_WRITE_ONCE(watch->home, RP_HOME_KERNEL);
    RP_WRITE_ONCE(watch->events, event->events);
    watch->data = event->data;
    rp_set_link_watch(set, watch, entry);
    return 0;
}

static int add_to_kernel(struct rp_set *set, int fd, struct epoll_event *event)
{
    int error = rp_set_kernel_ctl(set, rp_set_kernel_fd(set), EPOLL_CTL_ADD, fd, event);
    if (error == 0) {
        error = record_kernel_watch(set, fd, event);
        if (error < 0)
            rp_set_kernel_ctl(set, rp_set_kernel_fd(set), EPOLL_CTL_DEL, fd, NULL);
        else
            rp_left_note(set, rp_set_find(set, fd));
    }
    return error;
}

/* It is on the ring from now on, as fresh as ADD makes it. */
static void enter_ring(struct rp_set *set, struct rp_watch *watch, uint8_t kind)
{
    RP_WRITE_ONCE(watch->kind, kind);
    RP_WRITE_ONCE(watch->deleted, false);
    watch->disabled = watch->ended = watch->hung = false;
    watch->recheck = true;
    rp_set_dirty(set, watch);
}

/* What would be the ring's, had it not left it for a while, or another thread's wait not begun
 * without one. Level-triggered alone: its state is what a look finds. */
static int add_to_return(struct rp_set *set, int fd, struct epoll_event *event)
{
    int error = add_to_kernel(set, fd, event);
    if (error == 0 && !(event->events & (EPOLLET | EPOLLONESHOT))) {
        rp_set_find(set, fd)->returns = true;
        set->returning++;
        set->plainly = false;
    }
    return error;
}

void rp_set_return_watches(struct rp_set *set)
{
    for (struct rp_watch *watch = set->watches; watch; watch = watch->next_of_set) {
        uint8_t kind;
        if (!watch->returns || watch->deleted || watch->left != RP_LEFT_NOT || watch->place != 0)
            continue;
        watch->returns = false;
        set->returning--;
        if ((watch->events & (EPOLLET | EPOLLONESHOT)) || watch->fd < 0 ||
            !rp_set_fits_ring(set, watch->fd, watch->events, &kind) ||
            rp_set_kernel_ctl(set, rp_set_kernel_fd(set), EPOLL_CTL_DEL, watch->fd, NULL) < 0)
            continue;
        RP_WRITE_ONCE(watch->home, RP_HOME_RING);
        set->ring_watches++;
        watch->adopt_in = RP_WATCH_ADOPT_IN;
        watch->adopt_gap = 1;
        enter_ring(set, watch, kind);
    }
}

static int ctl_add(struct rp_set *set, bool inside, struct rp_watch *watch, int fd, struct epoll_event *event)
{
    uint8_t kind = 0;
    bool left_elsewhere = false; /* bytes that another set received */
    if (watch && !watch->deleted) {
        if (watch->home == RP_HOME_RING)
            return -EEXIST;
        /* The kernel knows better: the record may be of a file that was closed
         * unseen. */
        int error = rp_set_kernel_ctl(set, rp_set_kernel_fd(set), EPOLL_CTL_ADD, fd, event);
        if (error == 0) {
            RP_WRITE_ONCE(watch->events, event->events);
            watch->data = event->data;
            watch->place = 0;
        }
        return error;
    }
    if (!rp_set_fits_ring(set, fd, event->events, &kind))
        return add_to_kernel(set, fd, event);
    bool is_new = rp_set_engine(set) == RINGPOLL_ENGINE_NEW;
    if (is_new && (set->flags & RINGPOLL_DECLARED) && (inside || set->away_for > 0))
        return add_to_return(set, fd, event);
    if (inside)
        return add_to_kernel(set, fd, event);
    if (!watch) {
        struct rp_fd *entry = rp_fd_get(fd);
        watch = entry ? rp_watch_alloc() : NULL;
        if (!watch)
            return -ENOMEM;
        if (!(rp_fd_flags(entry) & RP_FD_KNOWN))
            RP_WRITE_ONCE(entry->epoch, RP_READ_ONCE(rp_fork_epoch));
        RP_WRITE_ONCE(watch->fd, fd);
        RP_WRITE_ONCE(watch->home, RP_HOME_RING);
        watch->fresh = RP_WATCH_FRESH;
        if (set->flags & RINGPOLL_ADOPT) {
            watch->adopt_in = RP_WATCH_ADOPT_IN;
            watch->adopt_gap = 1;
        }
        rp_set_link_watch(set, watch, entry);
    }
    struct rp_stream *stream = rp_fd_peek(fd)->stream;
    if (stream && stream->set == set && !stream->watch) { /* removed and added again */
        stream->watch = watch;
        watch->stream = stream;
    }
    if (stream && stream->set != set)
        left_elsewhere = true;
    RP_WRITE_ONCE(watch->events, event->events);
    watch->data = event->data;
    enter_ring(set, watch, kind);
    rp_left_renew(set, watch);
    if (left_elsewhere)
        rp_left_note(set, watch);
    return 0;
}

static int ctl_mod(struct rp_set *set, bool inside, struct rp_watch *watch, int fd, struct epoll_event *event)
{
    if (watch->home == RP_HOME_KERNEL) {
        int error = rp_set_kernel_ctl(set, rp_set_kernel_fd(set), EPOLL_CTL_MOD, fd, event);
        if (error == 0) {
            RP_WRITE_ONCE(watch->events, event->events);
            watch->data = event->data;
            rp_left_renew(set, watch);
        }
        return error;
    }
    if (event->events & EPOLLEXCLUSIVE)
        return -EINVAL;
    struct rp_fd *entry = rp_fd_peek(fd);
    if (inside || (event->events & EPOLLWAKEUP) || (entry && (rp_fd_flags(entry) & RP_FD_LEAVE))) {
        int error = add_to_kernel(set, fd, event);
        if (error == 0) {
            RP_WRITE_ONCE(watch->deleted, true);
            rp_set_dirty(set, watch);
        }
        return error;
    }
    RP_WRITE_ONCE(watch->events, event->events);
    watch->data = event->data;
    watch->disabled = false;
    watch->recheck = true;
    rp_left_renew(set, watch);
    rp_set_dirty(set, watch);
    return 0;
}

static int ctl_del(struct rp_set *set, struct rp_watch *watch, int fd)
{
    if (watch->home == RP_HOME_KERNEL) {
        int error = rp_set_kernel_ctl(set, rp_set_kernel_fd(set), EPOLL_CTL_DEL, fd, NULL);
        if (rp_set_may_forget(set, watch))
            rp_set_forget_watch(set, watch);
        else {
            watch->place = 0;
            RP_WRITE_ONCE(watch->deleted, true);
            rp_set_dirty(set, watch);
        }
        return error;
    }
    RP_WRITE_ONCE(watch->deleted, true);
    rp_set_dirty(set, watch);
    return 0;
}

/* Engine KERNEL with records of disabled one-shots that the kernel has not, or with
 * bytes in the library that it knows nothing of. */
static int ctl_leftover(struct rp_set *set, int epfd, int op, int fd, struct epoll_event *event)
{
    struct rp_watch *watch = rp_set_find(set, fd);
    if (watch && watch->left && !watch->deleted && !watch->disabled) {
        int result = rp_set_kernel_ctl(set, epfd, op, fd, event);
        if (result == 0 && op == EPOLL_CTL_DEL) {
            rp_set_forget_watch(set, watch);
        } else if (result == 0) {
            RP_WRITE_ONCE(watch->events, event->events);
            watch->data = event->data;
            rp_left_renew(set, watch);
        }
        return result;
    }
    if (!watch || watch->deleted || !watch->disabled)
        return rp_set_kernel_ctl(set, epfd, op, fd, event);
    if (op == EPOLL_CTL_ADD)
        return -EEXIST;
    int error = 0;
    if (op == EPOLL_CTL_MOD)
        error = event->events & EPOLLEXCLUSIVE ? -EINVAL : rp_set_kernel_ctl(set, epfd, EPOLL_CTL_ADD, fd, event);
    if (error == 0) {
        RP_WRITE_ONCE(set->leftovers, set->leftovers - 1);
        watch->disabled = false;
        RP_WRITE_ONCE(watch->deleted, true);
        if (!set->zombie)
            rp_set_forget_watch(set, watch);
    }
    return error;
}

/* From a signal handler that interrupted a critical section of its own thread:
 * no lock can be taken. The lists can be read (they are changed by one store
 * each), kernel epoll can be told, and the rest waits for the section's end. */
static int ctl_in_handler(struct rp_set *set, int epfd, int op, int fd, struct epoll_event *event)
{
    struct rp_fd *entry = rp_fd_peek(fd);
    struct rp_watch *watch = entry ? __atomic_load_n(&entry->watches, __ATOMIC_ACQUIRE) : NULL;
    while (watch && (__atomic_load_n(&watch->set, __ATOMIC_ACQUIRE) != set || RP_READ_ONCE(watch->deleted) ||
                     watch->deleted_in_handler || watch->closed_in_handler))
        watch = RP_READ_ONCE(watch->next_of_fd);
    if (!watch || RP_READ_ONCE(watch->home) == RP_HOME_KERNEL || rp_set_engine(set) == RINGPOLL_ENGINE_KERNEL)
        return rp_set_kernel_ctl(set, epfd, op, fd, event);
    if (op == EPOLL_CTL_ADD)
        return -EEXIST;
    if (op == EPOLL_CTL_MOD) {
        watch->handler_events = event->events;
        watch->handler_data = event->data;
        watch->modified_in_handler = true;
    } else {
        watch->deleted_in_handler = true;
    }
    rp_self.deferred = 1;
    return 0;
}

/* A wait that must fail with EFAULT, or find nothing: EINVAL is for other files. */
static bool is_epoll(int fd)
{
    int result = rp_sys_epoll_wait(fd, NULL, 1, &no_time, NULL);
    return result != -EINVAL && result != -EBADF;
}

/* EINVAL, whatever is registered: MOD with EXCLUSIVE, or ADD beside bits that
 * EXCLUSIVE does not go with. */
static bool exclusive_is_wrong(int op, const struct epoll_event *event)
{
    const uint32_t allowed = EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP | EPOLLWAKEUP | EPOLLET | EPOLLEXCLUSIVE;
    return op != EPOLL_CTL_DEL && (event->events & EPOLLEXCLUSIVE) &&
           (op == EPOLL_CTL_MOD || (event->events & ~allowed));
}

/* What libraries do once or twice per request: MOD, by the owner, of an adopted
 * level-triggered fd, to hear of OUT or not to: nothing that is armed has to change,
 * the next wait looks. Or MOD to what it is already (libuv): where the fd is quiet
 * (watch.h) its poll will tell of whatever is to come. False: the long way. */
static inline __attribute__((always_inline)) bool mod_as_usual(struct rp_set *set, int fd,
                                                               const struct epoll_event *event)
{
    const uint32_t usual = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLERR | EPOLLHUP;
    struct rp_fd *entry = rp_fd_peek(fd);
    if (!entry || (event->events & ~usual) || !(event->events & EPOLLIN))
        return false;
    bool done = false;
    rp_set_lock(set);
    struct rp_watch *watch = entry->watches;
    if (watch && watch->set == set && !watch->next_of_fd && !watch->deleted && !watch->disabled && !watch->dirty &&
        !watch->blocked && !watch->op && !(watch->events & ~usual) && watch->home == RP_HOME_RING && watch->stream &&
        watch->stream->state == RP_STREAM_ARMED && !set->owner_inside &&
        rp_set_engine(set) == RINGPOLL_ENGINE_RING) {
        watch->events = event->events;
        watch->data = event->data;
        watch->mask = ~0u;
        watch->certain_in = set->wait_serial - 1;
        set->judged_mods++;
        bool looks = (event->events & EPOLLOUT) || watch->stream->head;
        if (looks && watch->ready == RP_READY_IDLE)
            rp_ready_add(set, watch);
        else if (!looks && watch->ready != RP_READY_IDLE)
            rp_ready_remove(set, watch);
        RP_WRITE_ONCE(watch->ready, looks ? RP_READY_CANDIDATE : RP_READY_IDLE);
        done = true;
    } else if (watch && watch->set == set && !watch->next_of_fd && watch->quiet && watch->events == event->events &&
               watch->home == RP_HOME_RING && watch->ready == RP_READY_IDLE && watch->op &&
               !watch->deleted && !watch->disabled && !watch->dirty && !watch->stream && set->tells &&
               !set->owner_inside && rp_set_engine(set) == RINGPOLL_ENGINE_RING) {
        watch->data = event->data;
        done = true;
    }
    rp_set_unlock(set);
    return done;
}

/* Of the fds of a RINGPOLL_DECLARED set that are not declared nobody reports the reads, so that
 * a ring would look at each again in each turn, by a call that kernel epoll needs not. They are
 * *plain*: the identity's, with no record of them, and cost what they cost there. */
static inline __attribute__((always_inline)) bool is_plain(const struct rp_set *set, int fd)
{
    if (!(set->flags & RINGPOLL_DECLARED))
        return false;
    const struct rp_fd *entry = rp_fd_peek(fd);
    if (entry && ((rp_fd_flags(entry) & (RINGPOLL_FD_DECLARED | RP_FD_LISTENER)) || RP_READ_ONCE(entry->watches) ||
                  RP_READ_ONCE(entry->stream) || RP_READ_ONCE(entry->set)))
        return false;
    return !RP_READ_ONCE(set->inherited) && RP_READ_ONCE(set->annex_count) == 0;
}

/* One that was closed without DEL stays counted: it is asked which kind there is more of. */
static inline void count_plain(struct rp_set *set, int op, int result)
{
    if (op == EPOLL_CTL_ADD && result == 0)
        RP_COUNT(set->plain, 1);
    else if (op == EPOLL_CTL_DEL && (result == 0 || result == -EBADF) && RP_READ_ONCE(set->plain) > 0)
        RP_COUNT(set->plain, -1u);
}

static __attribute__((noinline)) int ctl_plain(int epfd, int op, int fd, struct epoll_event *event, struct rp_set *set)
{
    int result = rp_sys_epoll_ctl(epfd, op, fd, event);
    count_plain(set, op, result);
    RP_COUNT(set->plain_ctls, 1);
    if (RP_UNLIKELY(RP_READ_ONCE(set->plain_ctls) >= 1024))
        rp_set_count_plain(set);
    return result;
}

static __attribute__((noinline)) int ctl_at_length(int epfd, int op, int fd, struct epoll_event *event,
                                                   struct rp_set *set)
{
    struct rp_set *target = rp_set_of(fd);
    /* A set that is watched lives in its identity, before the kernel looks for
     * loops in it. Not for a call that is bound to fail. */
    if (target && target != set && op == EPOLL_CTL_ADD && (uintptr_t)event >= 4096 &&
        !(event->events & EPOLLEXCLUSIVE) && (set || is_epoll(epfd)))
        ringpoll_demote(fd);
    /* Of what kernel epoll alone watches there is no record: nobody shall take its bytes.
     * Those that were taken are told of as long as they last. */
    if (op == EPOLL_CTL_ADD && (!set || rp_set_engine(set) == RINGPOLL_ENGINE_KERNEL)) {
        ringpoll_fd_release(fd, 1);
        if (set && rp_left_bits_at(fd) && (uintptr_t)event >= 4096 && !rp_self.locks_held &&
            !exclusive_is_wrong(op, event)) {
            rp_set_lock(set);
            struct rp_watch *before = rp_set_find(set, fd);
            int added = before ? 1 : add_to_kernel(set, fd, event);
            rp_set_unlock(set);
            if (added <= 0)
                return added;
        }
    }
    if (!set || (rp_set_engine(set) == RINGPOLL_ENGINE_KERNEL && RP_READ_ONCE(set->leftovers) == 0 &&
                 !RP_READ_ONCE(set->left) && RP_READ_ONCE(set->annex_count) == 0))
        return rp_sys_epoll_ctl(epfd, op, fd, event);
    /* What is wrong beyond doubt, the kernel shall name: the identity is a real
     * epoll fd. */
    if (fd < 0 || (op != EPOLL_CTL_ADD && op != EPOLL_CTL_MOD && op != EPOLL_CTL_DEL) ||
        (op != EPOLL_CTL_DEL && (uintptr_t)event < 4096))
        return rp_sys_epoll_ctl(epfd, op, fd, event);
    rp_process_check();
    if (target == set || exclusive_is_wrong(op, event))
        return rp_sys_epoll_ctl(epfd, op, fd, event);
    if (rp_self.locks_held)
        return ctl_in_handler(set, epfd, op, fd, event);
    rp_set_end_zombies();

    /* Two sets see the same bytes: none of them may take them away. */
    struct rp_fd *entry = rp_fd_peek(fd);
    struct rp_stream *stream = entry ? __atomic_load_n(&entry->stream, __ATOMIC_RELAXED) : NULL;
    if (op == EPOLL_CTL_ADD && stream && __atomic_load_n(&stream->set, __ATOMIC_RELAXED) != set)
        ringpoll_fd_release(fd, 1);
    /* And an accept that waits, as exclusively as EXCLUSIVE does, would take wake-ups along
     * when it is cancelled. */
    struct rp_watch *watching = entry && op == EPOLL_CTL_ADD && (rp_fd_flags(entry) & RP_FD_LISTENER)
                                    ? RP_READ_ONCE(entry->watches) : NULL;
    if (watching && (RP_READ_ONCE(watching->set) != set || (event->events & EPOLLEXCLUSIVE)))
        rp_accept_release(fd, true);

    int result;
    rp_set_lock(set);
    if (set->inherited)
        rp_set_adopt_inherited(set);
    if (set->left)
        rp_left_recall_ghost(set, fd);
    if (rp_set_engine(set) == RINGPOLL_ENGINE_KERNEL) {
        result = ctl_leftover(set, epfd, op, fd, event);
        rp_set_unlock(set);
        return result;
    }
    bool inside = set->owner_inside || (set->waiters > 0 && rp_set_engine(set) == RINGPOLL_ENGINE_NEW) ||
                  (set->sleeper && set->sleeper != rp_self.id);
    struct rp_watch *watch = rp_set_find(set, fd);
    if (op == EPOLL_CTL_ADD)
        result = ctl_add(set, inside, watch, fd, event);
    else if (!watch || watch->deleted) { /* plain, or ENOENT, EBADF, EPERM: it knows */
        result = rp_set_kernel_ctl(set, rp_set_kernel_fd(set), op, fd, event);
        if (op == EPOLL_CTL_DEL)
            count_plain(set, op, result);
    } else if (op == EPOLL_CTL_MOD)
        result = ctl_mod(set, inside, watch, fd, event);
    else
        result = ctl_del(set, watch, fd);
    rp_set_unlock(set);
    return result;
}

static __attribute__((noinline)) int ctl_of_record(int epfd, int op, int fd, struct epoll_event *event, struct rp_set *set)
{
    if (op == EPOLL_CTL_MOD && set && (uintptr_t)event >= 4096 && rp_set_is_mine(set) && !rp_self.locks_held &&
        mod_as_usual(set, fd, event))
        return 0;
    return ctl_at_length(epfd, op, fd, event, set);
}

int ringpoll_ctl(int epfd, int op, int fd, struct epoll_event *event)
{
    struct rp_set *set = rp_set_of(epfd);
    if (set && is_plain(set, fd))
        return ctl_plain(epfd, op, fd, event, set);
    return ctl_of_record(epfd, op, fd, event, set);
}
