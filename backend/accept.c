/* SPDX-License-Identifier: MIT
 *
 * Adopted listeners: what they are, their states and who owns what stand in accept.h.
 */
#include "accept.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/syscall.h>

#include "fdtab.h"
#include "set.h"
#include "watch.h"

/* Plain accepts before the first adoption, and the most before another. */
#define FIRST_ADOPTION 3
#define LAST_ADOPTION 16384
/* Waits that the program may leave its queue alone. */
#define IDLE_TURNS 4u
/* fds that are to be free beside the backlog. */
#define SPARE_FDS 64u
#define ACCEPT_FLAGS (SOCK_NONBLOCK | SOCK_CLOEXEC)
#define SO_PEERNAME_ 28
/* Peers' addresses that the ring is asked for at once; fewer are worth their calls. */
#define ASKED_MOST 64u
#define ASKED_LEAST 3u

/* ----------------------------------------------------------------- records */

#define ACCEPTORS 64u
static struct rp_acceptor acceptors[ACCEPTORS];
static uint32_t acceptors_used; /* so many have ever been */
static struct rp_lock table_lock; /* leaf */
/* The set of those that no set watches, or whose set is gone. */
static struct rp_set limbo = {.identity = -1, .hidden = -1, .ring = {.fd = -1}};

static const uint8_t edges[RP_ACCEPTOR_STATES] = {
    [RP_ACCEPTOR_FREE] = 1u << RP_ACCEPTOR_LEARNING,
    [RP_ACCEPTOR_LEARNING] = 1u << RP_ACCEPTOR_ARMED | 1u << RP_ACCEPTOR_FREE,
    [RP_ACCEPTOR_ARMED] = 1u << RP_ACCEPTOR_LEARNING | 1u << RP_ACCEPTOR_LEAVING | 1u << RP_ACCEPTOR_CANCELING,
    [RP_ACCEPTOR_LEAVING] = 1u << RP_ACCEPTOR_LEARNING | 1u << RP_ACCEPTOR_CANCELING,
    [RP_ACCEPTOR_CANCELING] = 1u << RP_ACCEPTOR_LEARNING,
};

/* Makes every edge; false, and nothing done, where there is none. */
static bool step(struct rp_acceptor *acceptor, enum rp_acceptor_state to)
{
    struct rp_set *set = acceptor->set;
    if (!(edges[acceptor->state] >> to & 1u))
        return false;
    if (acceptor->state == RP_ACCEPTOR_LEAVING)
        set->accepts_leaving--;
    if (to == RP_ACCEPTOR_LEAVING)
        set->accepts_leaving++;
    if (to == RP_ACCEPTOR_ARMED) {
        set->accepts_armed++;
        set->stats.accepting++;
    } else if (to == RP_ACCEPTOR_LEARNING && acceptor->state != RP_ACCEPTOR_FREE) {
        set->accepts_armed--;
        set->stats.accepting--;
    }
    __atomic_store_n(&acceptor->state, (uint8_t)to, __ATOMIC_RELEASE); /* FREE: to who takes it next */
    return true;
}

static bool is_armed(const struct rp_acceptor *acceptor)
{
    return RP_READ_ONCE(acceptor->state) >= RP_ACCEPTOR_ARMED;
}

static uint32_t queued(const struct rp_acceptor *acceptor)
{
    return RP_READ_ONCE(acceptor->tail) - RP_READ_ONCE(acceptor->head);
}

static struct rp_acceptor *find(int fd)
{
    struct rp_fd *entry = rp_fd_peek(fd);
    if (!entry || !(rp_fd_flags(entry) & RP_FD_LISTENER))
        return NULL;
    uint32_t used = __atomic_load_n(&acceptors_used, __ATOMIC_ACQUIRE);
    for (uint32_t i = 0; i < used; i++)
        if ((RP_READ_ONCE(acceptors[i].fd) == fd || RP_READ_ONCE(acceptors[i].alias) == fd) &&
            RP_READ_ONCE(acceptors[i].state) != RP_ACCEPTOR_FREE && !RP_READ_ONCE(acceptors[i].closed))
            return &acceptors[i];
    return NULL;
}

/* That of this fd, with its set locked; NULL: none, nothing locked. */
static struct rp_acceptor *lock(int fd)
{
    for (;;) {
        struct rp_acceptor *acceptor = find(fd);
        if (!acceptor)
            return NULL;
        struct rp_set *set = __atomic_load_n(&acceptor->set, __ATOMIC_ACQUIRE);
        rp_set_lock(set);
        if (__atomic_load_n(&acceptor->set, __ATOMIC_RELAXED) == set && find(fd) == acceptor)
            return acceptor;
        rp_set_unlock(set);
    }
}

static struct rp_acceptor *acceptor_new(int fd, uint32_t kind, uint32_t backlog)
{
    struct rp_acceptor *acceptor = NULL;
    rp_lock(&table_lock);
    for (uint32_t i = 0; i < ACCEPTORS && !acceptor; i++)
        if (__atomic_load_n(&acceptors[i].state, __ATOMIC_ACQUIRE) == RP_ACCEPTOR_FREE)
            acceptor = &acceptors[i];
    if (acceptor) {
        size_t looked_at = offsetof(struct rp_acceptor, held);
        memset((char *)acceptor + looked_at, 0, sizeof *acceptor - looked_at);
        RP_WRITE_ONCE(acceptor->closed, false);
        RP_WRITE_ONCE(acceptor->head, 0);
        RP_WRITE_ONCE(acceptor->tail, 0);
        RP_WRITE_ONCE(acceptor->alias, -1);
        acceptor->kind = kind;
        acceptor->backlog = backlog;
        acceptor->adopt_in = acceptor->adopt_gap = FIRST_ADOPTION;
        __atomic_store_n(&acceptor->set, &limbo, __ATOMIC_RELEASE);
        RP_WRITE_ONCE(acceptor->fd, fd);
        step(acceptor, RP_ACCEPTOR_LEARNING);
        if ((uint32_t)(acceptor - acceptors) >= acceptors_used)
            __atomic_store_n(&acceptors_used, (uint32_t)(acceptor - acceptors) + 1, __ATOMIC_RELEASE);
    }
    rp_unlock(&table_lock);
    return acceptor;
}

/* Its fd is closed, its queue empty, its accept over. */
static void end_if_closed(struct rp_acceptor *acceptor)
{
    if (!acceptor->closed || acceptor->state != RP_ACCEPTOR_LEARNING || acceptor->held)
        return;
    RP_WRITE_ONCE(acceptor->fd, -1);
    RP_WRITE_ONCE(acceptor->alias, -1);
    step(acceptor, RP_ACCEPTOR_FREE);
}

/* ------------------------------------------------------------------- queue */

/* As the kernel ends what stands in a backlog: by a reset. (On AF_UNIX nothing does
 * that from here: an AF_UNIX peer reads an end.) */
static void reset(int fd)
{
    struct linger at_once = {1, 0};
    rp_fd_internal(fd, false);
    rp_sys_call(SYS_setsockopt, fd, SOL_SOCKET, SO_LINGER, (long)&at_once, sizeof at_once, 0);
    rp_sys_close(fd);
}

static bool has_room(struct rp_acceptor *acceptor)
{
    uint32_t count = queued(acceptor);
    if (count < acceptor->room)
        return true;
    uint32_t larger = acceptor->room ? acceptor->room * 2 : 512;
    struct rp_connection *queue = rp_sys_pages(larger * sizeof *queue);
    if (!queue)
        return false;
    for (uint32_t i = 0; i < count; i++)
        queue[(acceptor->head + i) & (larger - 1)] =
            acceptor->queue[(acceptor->head + i) & (acceptor->room - 1)];
    if (acceptor->queue)
        rp_sys_pages_free(acceptor->queue, acceptor->room * sizeof *queue);
    acceptor->queue = queue;
    acceptor->room = larger;
    return true;
}

static void push(struct rp_acceptor *acceptor, int fd)
{
    if (acceptor->closed || !has_room(acceptor)) {
        if (fd >= 0)
            reset(fd);
        return;
    }
    if (fd >= 0) {
        rp_fd_internal(fd, true);
        if ((uint32_t)fd > acceptor->highest)
            acceptor->highest = (uint32_t)fd;
    }
    acceptor->queue[acceptor->tail & (acceptor->room - 1)] = (struct rp_connection){.fd = fd};
    RP_WRITE_ONCE(acceptor->tail, acceptor->tail + 1);
}

static struct rp_connection pop(struct rp_acceptor *acceptor)
{
    struct rp_connection connection = acceptor->queue[acceptor->head & (acceptor->room - 1)];
    RP_WRITE_ONCE(acceptor->head, acceptor->head + 1);
    acceptor->taken++;
    return connection;
}

static void reset_queue(struct rp_acceptor *acceptor)
{
    while (queued(acceptor) > 0) {
        struct rp_connection connection = pop(acceptor);
        if (connection.fd >= 0)
            reset(connection.fd);
    }
}

/* ---------------------------------------------------------------- adoption */

/* The next adoption comes later than this one did. */
static void put_off(struct rp_acceptor *acceptor)
{
    acceptor->adopt_gap =
        acceptor->adopt_gap < LAST_ADOPTION / 4 ? (uint16_t)(acceptor->adopt_gap * 4) : LAST_ADOPTION;
    acceptor->adopt_in = acceptor->adopt_gap;
}

static bool has_fds(const struct rp_acceptor *acceptor)
{
    return acceptor->highest + acceptor->backlog + SPARE_FDS < acceptor->limit;
}

static uint32_t limit_of_fds(void)
{
    uint64_t limit[2] = {0, 0};
    if (rp_sys_call(SYS_prlimit64, 0, 7 /* RLIMIT_NOFILE */, 0, (long)limit, 0, 0) < 0)
        return 0;
    return limit[0] < 1u << 30 ? (uint32_t)limit[0] : 1u << 30;
}

static bool may_stay(const struct rp_watch *watch)
{
    const uint32_t usual = EPOLLIN | EPOLLRDNORM | EPOLLRDHUP | EPOLLERR | EPOLLHUP | EPOLLET;
    struct rp_fd *entry = rp_fd_peek(watch->fd);
    uint32_t flags = entry ? rp_fd_flags(entry) : 0;
    return entry && !rp_fd_shared(entry) && (flags & RP_FD_LISTENER) && (flags & RINGPOLL_FD_NONBLOCK) &&
           !(flags & (RP_FD_LEAVE | RP_FD_PLAIN)) && entry->watches == watch && !watch->next_of_fd &&
           (watch->events & EPOLLIN) && !(watch->events & ~usual);
}

bool rp_accept_wanted(const struct rp_set *set, const struct rp_watch *watch)
{
    if (!(set->flags & RINGPOLL_ACCEPT) || !set->tells || set->no_accepts || watch->deleted || watch->disabled)
        return false;
    struct rp_acceptor *acceptor = find(watch->fd);
    return acceptor && acceptor->set == set && acceptor->state == RP_ACCEPTOR_LEARNING &&
           acceptor->adopt_in == 0 && queued(acceptor) == 0 && may_stay(watch) && has_fds(acceptor) &&
           (watch->home == RP_HOME_RING || !rp_watch_is_edge(watch) || acceptor->drained);
}

void ringpoll_fd_listening(int fd, int backlog)
{
    struct rp_fd *entry = rp_fd_get(fd);
    if (!entry)
        return;
    rp_accept_release(fd, false);
    uint32_t kind = rp_fd_flags(entry) & RINGPOLL_FD_KIND;
    if (rp_fd_flags(entry) & RP_FD_LISTENER) { /* listens anew */
        struct rp_acceptor *acceptor = rp_self.locks_held ? NULL : lock(fd);
        if (acceptor) {
            acceptor->backlog = backlog < 0 || backlog > 65535 ? 65535u : (uint32_t)backlog;
            rp_set_unlock(acceptor->set);
        }
        return;
    }
    bool stays = (rp_fd_flags(entry) & RP_FD_LEAVE) != 0;
    ringpoll_fd_leave(fd); /* registered before it listened: kernel epoll serves it */
    if (stays || (kind != RINGPOLL_FD_TCP && kind != RINGPOLL_FD_UNIX) || rp_self.locks_held || rp_fd_shared(entry) ||
        !acceptor_new(fd, kind, backlog < 0 || backlog > 65535 ? 65535u : (uint32_t)backlog))
        return;
    rp_fd_set_flags(entry, RP_FD_LISTENER, RP_FD_LEAVE | RP_FD_PLAIN | RINGPOLL_FD_CONNECTED);
}

/* Larger numbers mean this one. */
static uint32_t capped(uint32_t backlog)
{
    char text[16] = "";
    uint32_t most = 0;
    if (backlog <= 128)
        return backlog;
    long fd = rp_sys_call(SYS_openat, -100 /* AT_FDCWD */, (long)"/proc/sys/net/core/somaxconn", 02000000, 0, 0, 0);
    if (fd < 0)
        return backlog;
    long length = rp_sys_read((int)fd, text, sizeof text - 1);
    rp_sys_close((int)fd);
    for (long i = 0; i < length && text[i] >= '0' && text[i] <= '9'; i++)
        most = most * 10 + (uint32_t)(text[i] - '0');
    return most > 0 && most < backlog ? most : backlog;
}

void ringpoll_fd_accepted(int fd, int result, int flags, int with_address)
{
    struct rp_fd *entry = rp_fd_peek(fd);
    if (!entry || !(rp_fd_flags(entry) & RP_FD_LISTENER) || rp_self.locks_held ||
        (rp_fd_flags(entry) & (RP_FD_PLAIN | RP_FD_LEAVE)) || (result < 0 && result != -EAGAIN))
        return;
    struct rp_watch *watch = RP_READ_ONCE(entry->watches);
    struct rp_set *set = watch ? __atomic_load_n(&watch->set, __ATOMIC_ACQUIRE) : NULL;
    if (!set || !(set->flags & RINGPOLL_ACCEPT))
        return;
    if (rp_set_engine(set) != RINGPOLL_ENGINE_RING)
        return;
    if (!rp_set_is_mine(set) || RP_READ_ONCE(watch->next_of_fd)) {
        rp_fd_set_flags(entry, RP_FD_PLAIN, 0);
        return;
    }
    struct rp_acceptor *acceptor = lock(fd);
    if (!acceptor)
        return;
    if (acceptor->set == &limbo && acceptor->state == RP_ACCEPTOR_LEARNING && queued(acceptor) == 0) {
        /* This set's from now on. */
        rp_set_unlock(&limbo);
        rp_set_lock(set);
        rp_lock(&limbo.lock);
        if (find(fd) == acceptor && acceptor->set == &limbo)
            __atomic_store_n(&acceptor->set, set, __ATOMIC_RELEASE);
        rp_unlock(&limbo.lock);
        rp_set_unlock(set);
        acceptor = lock(fd);
        if (!acceptor)
            return;
    }
    if (acceptor->set != set) {
        rp_set_unlock(acceptor->set);
        return;
    }
    if (result >= 0) {
        acceptor->drained = false;
        acceptor->wanted_flags = flags;
        acceptor->wants_address = with_address;
        acceptor->highest = (uint32_t)result;
        if (acceptor->adopt_in > 0 && --acceptor->adopt_in == 0) {
            acceptor->limit = limit_of_fds();
            acceptor->backlog = capped(acceptor->backlog);
            if (!has_fds(acceptor))
                put_off(acceptor);
        }
    } else {
        acceptor->drained = true;
    }
    watch = rp_fd_watch_of(entry, set);
    if (watch && watch->home == RP_HOME_KERNEL && !watch->dirty && rp_accept_wanted(set, watch))
        rp_set_dirty(set, watch);
    rp_set_unlock(set);
}

int rp_accept_arm(struct rp_set *set, struct rp_watch *watch)
{
    struct rp_acceptor *acceptor = find(watch->fd);
    if (!(set->ring.features & RINGPOLL_FEATURE_MULTISHOT_ACCEPT)) {
        set->no_accepts = true;
        return -EOPNOTSUPP;
    }
    struct rp_sqe *sqe = rp_ring_get_sqe(&set->ring);
    if (!sqe)
        return -EBUSY;
    sqe->opcode = RP_IORING_OP_NOP;
    struct rp_op *op = rp_op_new(&set->ops, RP_OP_ACCEPT, acceptor);
    if (!op) {
        put_off(acceptor);
        return -ENOMEM;
    }
    if (watch->home == RP_HOME_KERNEL) {
        int error = rp_set_kernel_ctl(set, rp_set_kernel_fd(set), EPOLL_CTL_DEL, watch->fd, NULL);
        if (error < 0) {
            rp_op_step(&set->ops, op, RP_OP_FREE);
            put_off(acceptor);
            return error;
        }
        RP_WRITE_ONCE(watch->home, RP_HOME_RING);
        set->ring_watches++;
    }
    RP_WRITE_ONCE(watch->kind, RP_KIND_LISTENER);
    watch->recheck = false;
    acceptor->flags = acceptor->wanted_flags;
    acceptor->with_address = acceptor->wants_address;
    acceptor->idle_turns = 0;
    acceptor->taken_before = acceptor->taken - 1;
    acceptor->known_length = 0;
    sqe->opcode = RP_IORING_OP_ACCEPT;
    sqe->fd = watch->fd;
    sqe->ioprio = RP_ACCEPT_MULTISHOT;
    sqe->accept_flags = (uint32_t)acceptor->flags;
    if (acceptor->with_address) {
        acceptor->address_length = sizeof acceptor->address;
        sqe->addr = (uint64_t)(uintptr_t)&acceptor->address;
        sqe->addr2 = (uint64_t)(uintptr_t)&acceptor->address_length;
    }
    sqe->user_data = rp_op_user_data(&set->ops, op);
    acceptor->op = op;
    acceptor->sqe_at = set->ring.sqe_tail - 1;
    step(acceptor, RP_ACCEPTOR_ARMED);
    set->stats.listeners_adopted++;
    return 0;
}

static void leave(struct rp_acceptor *acceptor)
{
    if (acceptor->state == RP_ACCEPTOR_ARMED)
        step(acceptor, RP_ACCEPTOR_LEAVING);
}

int rp_accept_rearm(struct rp_set *set, struct rp_watch *watch)
{
    struct rp_acceptor *acceptor = find(watch->fd);
    if (acceptor && is_armed(acceptor)) {
        if (acceptor->state == RP_ACCEPTOR_ARMED && !may_stay(watch))
            leave(acceptor);
        if (watch->recheck) {
            watch->recheck = false;
            watch->mask = ~0u;
            if (queued(acceptor) > 0)
                rp_watch_to_ready(set, watch, RP_READY_CANDIDATE);
        }
        return 0;
    }
    if (rp_accept_wanted(set, watch)) {
        int error = rp_accept_arm(set, watch);
        if (error == 0 || error == -EBUSY)
            return error;
    }
    rp_watch_to_idle(set, watch);
    int error = rp_set_move_to_kernel(set, watch);
    if (error < 0) { /* closed unseen: epoll had let it go */
        RP_WRITE_ONCE(watch->deleted, true);
        rp_set_dirty(set, watch);
    }
    return 0;
}

static bool in_flight(const struct rp_set *set, const struct rp_acceptor *acceptor)
{
    return acceptor->op->state != RP_OP_QUEUED || (int32_t)(acceptor->sqe_at - set->ring.sqe_head) < 0;
}

/* The live watch of its listener in its set. */
static struct rp_watch *watch_of(struct rp_set *set, const struct rp_acceptor *acceptor)
{
    struct rp_watch *watch = acceptor->closed ? NULL : rp_set_find(set, acceptor->fd);
    return watch && !watch->deleted ? watch : NULL;
}

static void accept_ended(struct rp_set *set, struct rp_acceptor *acceptor)
{
    acceptor->op = NULL;
    step(acceptor, RP_ACCEPTOR_LEARNING);
    struct rp_watch *watch = watch_of(set, acceptor);
    if (watch) /* kernel epoll takes over */
        rp_set_dirty(set, watch);
    end_if_closed(acceptor);
}

static void note_address(struct rp_set *set, struct rp_acceptor *acceptor)
{
    bool alone = acceptor->came_at != set->ring.enters;
    acceptor->came_at = set->ring.enters;
    acceptor->known_length = 0;
    /* Of several of one enter the last one's is there; an AF_UNIX one may have been cut to
     * the length of the one before it. */
    if (acceptor->with_address && (alone || acceptor->kind == RINGPOLL_FD_TCP)) {
        acceptor->addressed = acceptor->tail;
        if (alone && acceptor->kind == RINGPOLL_FD_TCP) /* the others of this enter find it reset */
            acceptor->inet_length = acceptor->address_length;
        acceptor->known_length = acceptor->kind == RINGPOLL_FD_TCP ? acceptor->inet_length : acceptor->address_length;
    }
    acceptor->address_length = sizeof acceptor->address;
}

/* Something for the program came: the watch reports it. */
static void report(struct rp_set *set, struct rp_acceptor *acceptor)
{
    struct rp_watch *watch = watch_of(set, acceptor);
    if (!watch)
        return;
    if (watch->home != RP_HOME_RING) { /* registered anew meanwhile */
        rp_left_note(set, watch);
        return;
    }
    watch->mask = EPOLLIN | EPOLLRDNORM;
    watch->certain_in = set->wait_serial;
    rp_watch_to_ready(set, watch, RP_READY_CERTAIN);
}

void rp_accept_completed(struct rp_set *set, struct rp_op *op, int result, uint32_t flags)
{
    struct rp_acceptor *acceptor = op->owner;
    bool final = !(flags & RP_CQE_F_MORE);
    if (result >= 0 || result == -ECONNABORTED) {
        if (result >= 0) {
            note_address(set, acceptor);
            set->stats.accepted++;
        }
        push(acceptor, result);
        report(set, acceptor);
        if (acceptor->state == RP_ACCEPTOR_ARMED && !has_fds(acceptor)) {
            put_off(acceptor);
            leave(acceptor);
        }
    } else if (acceptor->state == RP_ACCEPTOR_ARMED) {
        if (result == -EINVAL || result == -EOPNOTSUPP)
            acceptor->adopt_gap = LAST_ADOPTION;
        put_off(acceptor);
    }
    if (!final)
        return;
    rp_op_step(&set->ops, op, RP_OP_FREE);
    accept_ended(set, acceptor);
}

/* Takes back what the kernel has not seen, or queues its cancel. */
static int cancel(struct rp_set *set, struct rp_acceptor *acceptor)
{
    if (!in_flight(set, acceptor)) {
        rp_ring_take_back(&set->ring, acceptor->sqe_at);
        rp_op_step(&set->ops, acceptor->op, RP_OP_FREE);
        accept_ended(set, acceptor);
        return 0;
    }
    if (!rp_op_cancel(&set->ops, &set->ring, acceptor->op, RP_OP_CANCELING))
        return -EBUSY;
    step(acceptor, RP_ACCEPTOR_CANCELING);
    return 0;
}

int rp_accept_flush_leaving(struct rp_set *set)
{
    for (uint32_t i = 0; i < acceptors_used && set->accepts_leaving; i++) {
        struct rp_acceptor *acceptor = &acceptors[i];
        if (RP_READ_ONCE(acceptor->state) != RP_ACCEPTOR_LEAVING || acceptor->set != set)
            continue;
        int error = cancel(set, acceptor);
        if (error < 0)
            return error;
    }
    return 0;
}

void rp_accept_turn(struct rp_set *set)
{
    for (uint32_t i = 0; i < acceptors_used; i++) {
        struct rp_acceptor *acceptor = &acceptors[i];
        if (RP_READ_ONCE(acceptor->state) != RP_ACCEPTOR_ARMED || acceptor->set != set)
            continue;
        uint32_t count = queued(acceptor);
        if (count > 0 && acceptor->taken == acceptor->taken_before)
            acceptor->idle_turns++;
        else
            acceptor->idle_turns = 0;
        acceptor->taken_before = acceptor->taken;
        if (acceptor->idle_turns > IDLE_TURNS || count > RP_ACCEPT_QUEUED) {
            put_off(acceptor);
            leave(acceptor);
        }
    }
}

bool rp_accept_decides(struct rp_set *set, struct rp_watch *watch)
{
    struct rp_acceptor *acceptor = find(watch->fd);
    if (!acceptor || !is_armed(acceptor))
        return false;
    watch->mask = queued(acceptor) > 0 ? EPOLLIN | EPOLLRDNORM : 0;
    if (watch->mask & rp_watch_interest(watch)) {
        watch->certain_in = set->wait_serial;
        RP_WRITE_ONCE(watch->ready, RP_READY_CERTAIN);
    } else {
        rp_watch_to_idle(set, watch);
    }
    return true;
}

/* -------------------------------------------------------------- giving back */

/* Not the owner, who is outside: see stream.c. */
static void steal_completions(struct rp_set *set, struct rp_acceptor *acceptor)
{
    struct rp_ring *ring = &set->ring;
    uint64_t wanted = rp_op_user_data(&set->ops, acceptor->op);
    uint32_t tail = __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE);
    for (uint32_t at = ring->cq_next; at != tail; at++) {
        struct rp_cqe *cqe = &ring->cqes[at & ring->cq_mask];
        if (cqe->user_data != wanted || (cqe->res < 0 && cqe->res != -ECONNABORTED))
            continue;
        acceptor->known_length = 0;
        set->stats.accepted++;
        push(acceptor, cqe->res);
        /* The last completion stays, as a cancelled one: it ends the op. */
        cqe->res = -ECANCELED;
        if (cqe->flags & RP_CQE_F_MORE)
            cqe->user_data = 0;
    }
}

static void end(struct rp_set *set, struct rp_acceptor *acceptor)
{
    if (!is_armed(acceptor))
        return;
    leave(acceptor);
    acceptor->held++;
    if (rp_set_is_mine(set) && set->ring.fd >= 0) {
        for (int turn = 0; turn < 1024 && is_armed(acceptor); turn++)
            if (rp_set_enter_and_reap(set) < 0)
                break;
        if (set->owner_inside && (set->ready_count || set->hidden_ready || set->dirty))
            rp_set_wake_owner(set); /* we are its signal handler, and took its completions */
    } else {
        struct rp_watch *watch = watch_of(set, acceptor);
        if (watch)
            rp_set_dirty(set, watch);
        if (set->owner_inside)
            rp_set_ask_owner(set);
        if (is_armed(acceptor))
            steal_completions(set, acceptor);
    }
    acceptor->held--;
    end_if_closed(acceptor);
}

void rp_accept_end(struct rp_set *set, int fd)
{
    struct rp_acceptor *acceptor = find(fd);
    if (acceptor && acceptor->set == set)
        end(set, acceptor);
}

void rp_accept_end_all(struct rp_set *set)
{
    for (uint32_t i = 0; i < acceptors_used; i++)
        if (is_armed(&acceptors[i]) && acceptors[i].set == set)
            end(set, &acceptors[i]);
}

void rp_accept_unwatch(struct rp_set *set, struct rp_watch *watch)
{
    struct rp_acceptor *acceptor = watch->fd >= 0 ? find(watch->fd) : NULL;
    if (!acceptor || acceptor->set != set)
        return;
    struct rp_watch *other = watch_of(set, acceptor);
    if (acceptor->state == RP_ACCEPTOR_ARMED && watch->home == RP_HOME_RING) {
        put_off(acceptor);
        leave(acceptor);
    }
    if (other && other != watch)
        rp_left_note(set, other);
}

void rp_accept_to_limbo(struct rp_set *set)
{
    for (uint32_t i = 0; i < acceptors_used; i++)
        if (RP_READ_ONCE(acceptors[i].state) != RP_ACCEPTOR_FREE && acceptors[i].set == set) {
            rp_lock(&limbo.lock);
            __atomic_store_n(&acceptors[i].set, &limbo, __ATOMIC_RELEASE);
            rp_unlock(&limbo.lock);
        }
}

void rp_accept_share_all(struct rp_set *set, bool cloexec)
{
    rp_accept_end_all(set);
    for (uint32_t i = 0; i < acceptors_used; i++) {
        struct rp_acceptor *acceptor = &acceptors[i];
        if (RP_READ_ONCE(acceptor->state) == RP_ACCEPTOR_FREE || acceptor->set != set)
            continue;
        for (uint32_t at = acceptor->head; at != acceptor->tail; at++) {
            struct rp_connection *connection = &acceptor->queue[at & (acceptor->room - 1)];
            connection->shared = true;
            if (connection->fd < 0 || !cloexec || (acceptor->flags & SOCK_CLOEXEC))
                continue;
            connection->cloexec = true;
            rp_sys_fcntl(connection->fd, 2 /* F_SETFD */, 1);
        }
    }
}

void rp_accept_drop_all(struct rp_set *set)
{
    for (uint32_t i = 0; i < acceptors_used; i++)
        if (RP_READ_ONCE(acceptors[i].state) != RP_ACCEPTOR_FREE && acceptors[i].set == set)
            reset_queue(&acceptors[i]);
}

uint32_t rp_accept_bits(int fd)
{
    struct rp_acceptor *acceptor = find(fd);
    return acceptor && queued(acceptor) > 0 ? EPOLLIN | EPOLLRDNORM : 0;
}

bool rp_accept_is_armed(int fd)
{
    struct rp_acceptor *acceptor = find(fd);
    return acceptor && is_armed(acceptor);
}

void rp_accept_release(int fd, bool for_good)
{
    struct rp_fd *entry = rp_fd_peek(fd);
    if (!entry || !(rp_fd_flags(entry) & RP_FD_LISTENER))
        return;
    if (for_good)
        rp_fd_set_flags(entry, RP_FD_PLAIN, 0);
    if (rp_self.locks_held || !rp_accept_is_armed(fd))
        return;
    struct rp_acceptor *acceptor = lock(fd);
    if (!acceptor)
        return;
    struct rp_set *set = acceptor->set;
    put_off(acceptor);
    end(set, acceptor);
    rp_set_unlock(set);
}

void rp_accept_closing(int fd)
{
    struct rp_fd *entry = rp_fd_peek(fd);
    if (!entry || !(rp_fd_flags(entry) & RP_FD_LISTENER) || rp_self.locks_held)
        return;
    struct rp_acceptor *acceptor = lock(fd);
    if (!acceptor)
        return;
    struct rp_set *set = acceptor->set;
    bool was_armed = is_armed(acceptor);
    end(set, acceptor);
    set->stats.cancels_on_close += was_armed;
    if (acceptor->alias == fd) {
        RP_WRITE_ONCE(acceptor->alias, -1);
    } else if (acceptor->fd == fd && acceptor->alias >= 0 && queued(acceptor) > 0) {
        RP_WRITE_ONCE(acceptor->fd, acceptor->alias); /* a duplicate goes on with it */
        RP_WRITE_ONCE(acceptor->alias, -1);
    } else if (acceptor->fd == fd) {
        if (is_armed(acceptor) && !rp_fd_shared(entry) && !rp_self.forgets) /* its owner is busy: nobody shall connect any more */
            rp_sys_call(SYS_shutdown, fd, SHUT_RDWR, 0, 0, 0, 0);
        reset_queue(acceptor);
        RP_WRITE_ONCE(acceptor->closed, true);
        end_if_closed(acceptor);
    }
    rp_fd_set_flags(entry, 0, RP_FD_LISTENER);
    rp_set_unlock(set);
}

void rp_accept_duplicated(int from, int to)
{
    if (rp_self.locks_held)
        return;
    struct rp_acceptor *acceptor = lock(from);
    if (!acceptor)
        return;
    if (queued(acceptor) > 0)
        RP_WRITE_ONCE(acceptor->alias, to);
    else
        rp_fd_set_flags(rp_fd_peek(to), 0, RP_FD_LISTENER);
    rp_set_unlock(acceptor->set);
}

int rp_accept_vacate(int fd)
{
    int result = -EBUSY;
    for (uint32_t i = 0; i < acceptors_used && result < 0; i++) {
        struct rp_acceptor *acceptor = &acceptors[i];
        if (RP_READ_ONCE(acceptor->state) == RP_ACCEPTOR_FREE || queued(acceptor) == 0)
            continue;
        struct rp_set *set = __atomic_load_n(&acceptor->set, __ATOMIC_ACQUIRE);
        rp_set_lock(set);
        for (uint32_t at = acceptor->head; acceptor->set == set && at != acceptor->tail; at++) {
            struct rp_connection *connection = &acceptor->queue[at & (acceptor->room - 1)];
            if (connection->fd != fd)
                continue;
            bool cloexec = (acceptor->flags & SOCK_CLOEXEC) || connection->cloexec;
            int copy = rp_sys_fcntl(fd, cloexec ? 1030 /* F_DUPFD_CLOEXEC */ : 0 /* F_DUPFD */, fd + 1);
            if (copy < 0)
                break;
            rp_fd_internal(copy, true);
            rp_fd_internal(fd, false);
            connection->fd = copy;
            rp_sys_close(fd);
            result = 0;
            break;
        }
        rp_set_unlock(set);
    }
    return result;
}

void rp_accept_after_fork(void)
{
    table_lock.word = limbo.lock.word = 0;
    for (uint32_t i = 0; i < acceptors_used; i++) {
        struct rp_acceptor *acceptor = &acceptors[i];
        if (acceptor->state == RP_ACCEPTOR_FREE)
            continue;
        while (queued(acceptor) > 0) {
            struct rp_connection connection = pop(acceptor);
            if (connection.fd < 0)
                continue;
            rp_fd_internal(connection.fd, false);
            rp_sys_close(connection.fd);
        }
        struct rp_fd *entry = rp_fd_peek(acceptor->fd);
        if (entry)
            rp_fd_set_flags(entry, RP_FD_LEAVE, RP_FD_LISTENER);
        acceptor->op = NULL;
        acceptor->held = 0;
        acceptor->closed = true;
        if (acceptor->state != RP_ACCEPTOR_LEARNING)
            step(acceptor, RP_ACCEPTOR_LEARNING);
        acceptor->set->accepts_armed = acceptor->set->accepts_leaving = 0;
        end_if_closed(acceptor);
    }
}

void rp_accept_limbo_fork(enum rp_accept_fork when)
{
    if (when == RP_ACCEPT_FORK_PREPARE) {
        rp_lock(&limbo.lock);
        rp_lock(&table_lock);
    } else {
        rp_unlock(&table_lock);
        rp_unlock(&limbo.lock);
    }
}

/* ------------------------------------------------------- what programs call */

/* The peer's address, as accept gives it, where getpeername refuses to (a peer that has
 * gone). -ENOTCONN: accept would not have given the connection. */
static int peer_address(struct rp_acceptor *acceptor, int fd, struct sockaddr_storage *ret_address)
{
    unsigned length = sizeof *ret_address;
    if (acceptor->kind == RINGPOLL_FD_TCP) {
        int error = -EINVAL;
        for (unsigned size = acceptor->inet_length ? acceptor->inet_length : 28; error == -EINVAL && size >= 16;
             size -= 12) { /* sockaddr_in6, sockaddr_in */
            length = size;
            error = rp_sys_getsockopt(fd, SOL_SOCKET, SO_PEERNAME_, ret_address, &length);
        }
        if (error == 0)
            acceptor->inet_length = length;
        return error < 0 ? error : (int)length;
    }
    long error = rp_sys_call(SYS_getpeername, fd, (long)ret_address, (long)&length, 0, 0, 0);
    return error < 0 ? (int)error : (int)length;
}

/* What the ring answered for this place in the queue, or NULL. */
static const union rp_peer_name *name_at(const struct rp_acceptor *acceptor, uint32_t at)
{
    uint32_t place = at - acceptor->asked_from;
    return place < acceptor->asked && acceptor->names[place].family != AF_UNSPEC ? &acceptor->names[place] : NULL;
}

/* The next in the queue is behind those that were asked for last, and enough stand there. */
static bool may_ask_names(const struct rp_set *set, const struct rp_acceptor *acceptor)
{
    return !set->no_names && acceptor->inet_length > 0 && acceptor->inet_length <= sizeof *acceptor->names &&
           acceptor->head - acceptor->asked_from >= acceptor->asked && queued(acceptor) >= ASKED_LEAST;
}

/* The addresses of all that stand in the queue, by one enter: a call for each would be the
 * one that accepting costs. */
static void ask_names(struct rp_set *set, struct rp_acceptor *acceptor)
{
    struct rp_ring *ring = &set->ring;
    uint32_t count = queued(acceptor) < ASKED_MOST ? queued(acceptor) : ASKED_MOST, first = ring->sqe_tail, n = 0;
    struct rp_sqe *sqe;
    if (!acceptor->names && !(acceptor->names = rp_sys_pages(ASKED_MOST * sizeof *acceptor->names)))
        return;
    memset(acceptor->names, 0, ASKED_MOST * sizeof *acceptor->names);
    for (; n < count && (sqe = rp_ring_get_sqe(ring)) != NULL; n++) {
        int fd = acceptor->queue[(acceptor->head + n) & (acceptor->room - 1)].fd;
        sqe->opcode = fd < 0 ? RP_IORING_OP_NOP : RP_IORING_OP_URING_CMD;
        if (ring->features & RINGPOLL_FEATURE_CQE_SKIP)
            sqe->flags = RP_SQE_CQE_SKIP_SUCCESS;
        if (fd < 0)
            continue;
        sqe->fd = fd;
        sqe->cmd_op = RP_SOCKET_GETSOCKOPT;
        sqe->level = SOL_SOCKET;
        sqe->optname = SO_PEERNAME_;
        sqe->optlen = acceptor->inet_length;
        sqe->addr3 = (uint64_t)(uintptr_t)&acceptor->names[n];
    }
    (void)rp_set_enter_and_reap(set);
    for (uint32_t at = first; at != first + n; at++)
        if ((int32_t)(at - ring->sqe_head) >= 0) /* refused: they shall not write there later */
            rp_ring_take_back(ring, at);
    acceptor->asked_from = acceptor->head;
    acceptor->asked = n;
    set->no_names = n > 0 && (int32_t)(first + n - ring->sqe_head) <= 0; /* an older kernel answers none */
    for (uint32_t i = 0; i < n && set->no_names; i++)
        set->no_names = name_at(acceptor, acceptor->head + i) == NULL;
}

/* The first in the queue becomes the program's. Locked. */
static long hand_out(struct rp_set *set, struct rp_acceptor *acceptor, bool mine, struct sockaddr *address,
                     unsigned *length, int flags, bool *ret_shared)
{
    bool known = mine && acceptor->known_length > 0 && acceptor->addressed == acceptor->head;
    if (address && !known && mine && may_ask_names(set, acceptor))
        ask_names(set, acceptor);
    const union rp_peer_name *name = known ? NULL : name_at(acceptor, acceptor->head);
    struct rp_connection connection = pop(acceptor);
    int fd = connection.fd, asked_before = acceptor->flags;
    set->stats.calls_saved++;
    *ret_shared = connection.shared;
    if (fd < 0)
        return fd;
    if (address) {
        struct sockaddr_storage peer;
        const void *from = &acceptor->address;
        int have = (int)acceptor->known_length, room = (uintptr_t)length < 4096 ? -1 : (int)*length;
        if (name) {
            from = name;
            have = (int)acceptor->inet_length;
        } else if (!known) {
            from = &peer;
            have = room < 0 ? 0 : peer_address(acceptor, fd, &peer);
        }
        if (room < 0 || have < 0) { /* the connection is lost, as by the kernel */
            rp_fd_internal(fd, false);
            rp_sys_close(fd);
            return have < 0 ? -ECONNABORTED : (uintptr_t)length < 4096 ? -EFAULT : -EINVAL;
        }
        memcpy(address, from, (size_t)(have < room ? have : room));
        *length = (unsigned)have;
    }
    if ((flags ^ asked_before) & SOCK_NONBLOCK)
        rp_sys_fcntl(fd, 4 /* F_SETFL */, flags & SOCK_NONBLOCK ? 04000 /* O_NONBLOCK */ : 0);
    if (((asked_before & SOCK_CLOEXEC) || connection.cloexec) != !!(flags & SOCK_CLOEXEC))
        rp_sys_fcntl(fd, 2 /* F_SETFD */, flags & SOCK_CLOEXEC ? 1 : 0);
    if (flags != asked_before && acceptor->state == RP_ACCEPTOR_ARMED) { /* learn anew */
        acceptor->wanted_flags = flags;
        put_off(acceptor);
        leave(acceptor);
    }
    return fd;
}

long ringpoll_try_accept(int fd, struct sockaddr *address, unsigned *length, int flags)
{
    struct rp_acceptor *acceptor = find(fd);
    if (!acceptor || (flags & ~ACCEPT_FLAGS) || (!is_armed(acceptor) && queued(acceptor) == 0))
        return RINGPOLL_PASS;
    struct rp_fd *entry = rp_fd_peek(fd);
    bool nonblocking = (rp_fd_flags(entry) & RINGPOLL_FD_NONBLOCK) != 0;
    /* A signal handler inside the library: the queue may be in any state. */
    if (rp_self.locks_held)
        return nonblocking ? -EAGAIN : -EINTR;
    acceptor = lock(fd);
    if (!acceptor)
        return RINGPOLL_PASS;
    struct rp_set *set = acceptor->set;
    bool mine = rp_set_is_mine(set) && !set->owner_inside && set->ring.fd >= 0;
    acceptor->held++;
    if (!mine) {
        if (is_armed(acceptor))
            rp_fd_set_flags(entry, RP_FD_PLAIN, 0);
        end(set, acceptor);
    } else if (queued(acceptor) == 0) {
        if (is_armed(acceptor) && (rp_ring_wants_enter(&set->ring) || rp_ring_peek(&set->ring)))
            (void)rp_set_enter_and_reap(set);
        if (queued(acceptor) == 0 && acceptor->state == RP_ACCEPTOR_ARMED && in_flight(set, acceptor) && nonblocking) {
            struct rp_watch *watch = watch_of(set, acceptor);
            if (watch)
                rp_watch_to_idle(set, watch);
            set->stats.calls_saved++;
            acceptor->held--;
            rp_set_unlock(set);
            return -EAGAIN;
        }
        if (queued(acceptor) == 0)
            end(set, acceptor);
    }
    long result = RINGPOLL_PASS;
    bool shared = false;
    uint32_t kind = acceptor->kind;
    if (queued(acceptor) > 0)
        result = hand_out(set, acceptor, mine, address, length, flags, &shared);
    acceptor->held--;
    end_if_closed(acceptor);
    rp_set_unlock(set);
    if (result < 0)
        return result;
    rp_fd_internal((int)result, false);
    ringpoll_fd_opened((int)result, kind | RINGPOLL_FD_CONNECTED | (flags & SOCK_NONBLOCK ? RINGPOLL_FD_NONBLOCK : 0));
    if (shared)
        rp_fd_set_flags(rp_fd_peek((int)result), RP_FD_SHARED, 0);
    return result;
}
