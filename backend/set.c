/* SPDX-License-Identifier: MIT
 *
 * The epoll-shaped set.
 *
 * What it is. The fd that the program holds is a kernel epoll instance, the
 * identity. One of three engines serves the set, and it only moves forward:
 *
 *   NEW ──first wait with something for the ring──→ RING ──demotion──→ KERNEL
 *    └───────────────no ring to be had, asked for, demotion──────────────↗
 *
 * KERNEL: the identity has all registrations and every call is passed on to it.
 * NEW, RING: the identity is empty. Watches that the ring cannot serve exactly
 * (watch.h: HOME_KERNEL) live in a second kernel epoll instance, the hidden
 * one, with the program's own data; the ring polls it by a one-shot poll that is
 * armed again with each wait, which looks at it as it does so. While NEW, waits
 * go to the hidden instance, until there is a watch for the ring.
 *
 * Who owns what. The thread whose wait makes the ring owns it: SQ, CQ, ops,
 * the ready list. All else is under the set's lock, which the owner does not
 * hold while it is inside a blocking enter; `owner_inside` says so.
 *  - Other threads' changes go to the dirty list while the owner is outside, and
 *    to the hidden instance while it is inside: that wakes it.
 *  - A close by another thread needs the owner to cancel. Inside, it is woken,
 *    cancels and says so (`serviced`); outside, the cancel stands in the dirty
 *    list for its next wait and the socket is shut down at once, so that the
 *    peer gets its FIN now.
 *  - A second waiter, a poll or nesting of the identity, a passed identity: the
 *    set is demoted. Whoever finds that out registers everything in the
 *    identity; the ring itself, which only its owner may touch, is a *zombie*
 *    until that thread comes by (any call of the library, or its end).
 *
 * Waking the owner: an eventfd that is readable for ever (one per process) is
 * put into the hidden instance, and taken out again by the owner.
 *
 * Signal handlers may call what they could call with epoll. One that interrupts
 * a blocking enter finds the set unlocked and the queues whole: it is treated
 * like another thread as far as changes go (the enter may not have begun), and
 * as the owner for cancels. One that interrupts a critical section of its own
 * thread (rp_self.locks_held) leaves a mark on the fd's watches and
 * rp_self.deferred; the work is done when the section ends.
 *
 * What the ring's answers mean stands at enter_and_reap().
 */
#include "set.h"

#include <errno.h>
#include <limits.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stddef.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "probe.h"

struct rp_lock rp_sets_lock;
struct rp_set *rp_sets;
struct rp_set *rp_newest_set;
struct ringpoll_stats rp_stats_retired;
unsigned rp_zombies;
bool rp_process_no_rings;

static int wake_fd = -1;
static int sets_in_use;
static struct rp_lock wake_lock;    /* leaf: wake_fd, sets_in_use */
static struct rp_lock retired_lock; /* leaf: rp_stats_retired, rp_newest_set */
static pthread_key_t thread_key;
static pthread_once_t thread_key_once = PTHREAD_ONCE_INIT;
static bool thread_key_made;
static int ring_refused; /* the negative errno of a kernel that gives no rings, or 0 */
static void end_kept_rings(void);

#define DEFAULT_SQ_ENTRIES 256u
#define DEFAULT_CQ_ENTRIES 4096u
/* A set's fds may be better off on kernel epoll: looked at after so many
 * events, if more than three quarters of which came from there. */
#define UNFIT_WINDOW 4096u

static const struct timespec no_time = {0, 0};

/* -------------------------------------------------------------- the thread */

/* A thread ends: its rings must not outlive it with polls in flight (they would
 * complete with ECANCELED at best), and nobody else may touch them. */
static void thread_ends(void *unused)
{
    (void)unused;
    rp_lock(&rp_sets_lock);
    for (struct rp_set *set = rp_sets; set; set = set->next_set) {
        rp_lock(&set->lock);
        if (set->in_use && rp_set_is_mine(set) && rp_set_engine(set) == RINGPOLL_ENGINE_RING)
            rp_set_demote(set, RINGPOLL_REASON_WAITERS, 0);
        rp_unlock(&set->lock);
    }
    rp_unlock(&rp_sets_lock);
    rp_set_end_zombies();
    end_kept_rings();
}

static void make_thread_key(void)
{
    thread_key_made = pthread_key_create(&thread_key, thread_ends) == 0;
}

uint64_t rp_self_new_id(void)
{
    static uint64_t last;
    rp_self.id = __atomic_add_fetch(&last, 1, __ATOMIC_RELAXED);
    return rp_self.id;
}

/* -------------------------------------------------------------- the object */

static bool is_ending(const struct rp_set *set)
{
    return set->names == 0;
}

static struct rp_set *set_new(void)
{
    struct rp_set *set = NULL;
    rp_lock(&rp_sets_lock);
    for (set = rp_sets; set; set = set->next_set) {
        rp_lock(&set->lock); /* whoever ended it may not have unlocked it yet */
        bool ended = !set->in_use;
        if (ended)
            set->in_use = true;
        rp_unlock(&set->lock);
        if (ended) {
            memset((char *)set + offsetof(struct rp_set, engine), 0, sizeof *set - offsetof(struct rp_set, engine));
            break;
        }
    }
    if (!set) {
        set = rp_sys_pages(sizeof *set);
        if (set) {
            set->next_set = rp_sets;
            __atomic_store_n(&rp_sets, set, __ATOMIC_RELEASE);
        }
    }
    if (set) {
        set->in_use = true;
        set->identity = set->hidden = set->ring.fd = -1;
        rp_lock(&retired_lock);
        rp_newest_set = set;
        rp_unlock(&retired_lock);
        rp_lock(&wake_lock);
        sets_in_use++;
        rp_unlock(&wake_lock);
    }
    rp_unlock(&rp_sets_lock);
    return set;
}

static void add_stats(struct ringpoll_stats *sum, const struct rp_set *set)
{
    sum->sets_made++;
    sum->rings_made += set->stats.rings_made;
    sum->waits += set->stats.waits;
    sum->events += set->stats.events;
    sum->enters += set->stats.enters + set->ring.enters;
    sum->rechecks += set->stats.rechecks;
    sum->rechecked_fds += set->stats.rechecked_fds;
    sum->kernel_waits += set->stats.kernel_waits;
    sum->kernel_ctls += set->stats.kernel_ctls;
    sum->sqes += set->stats.sqes + set->ring.sqes_submitted;
    sum->cqes += set->stats.cqes + set->ring.cqes_reaped;
    sum->cancels_on_close += set->stats.cancels_on_close;
    sum->handovers += set->stats.handovers;
    sum->stale_cqes += set->stats.stale_cqes + set->ops.stale;
    sum->rearms += set->stats.rearms;
    sum->cq_overflows += set->stats.cq_overflows + set->ring.overflows;
    sum->demotions += set->stats.demotions;
    sum->ops_in_flight += rp_op_busy(&set->ops);
    sum->polls_armed += set->ops.count[RP_OP_QUEUED] + set->ops.count[RP_OP_INFLIGHT];
}

/* The last of it: everything has been cancelled, no name is left. */
static void set_free(struct rp_set *set)
{
    rp_lock(&wake_lock);
    if (--sets_in_use == 0 && wake_fd >= 0) {
        rp_fd_internal(wake_fd, false);
        rp_sys_close(wake_fd);
        wake_fd = -1;
    }
    rp_unlock(&wake_lock);
    rp_lock(&retired_lock);
    add_stats(&rp_stats_retired, set);
    rp_stats_retired.polls_armed = rp_stats_retired.ops_in_flight = 0;
    if (rp_newest_set == set) {
        rp_stats_retired.engine = set->engine;
        rp_stats_retired.reason = set->reason;
        rp_stats_retired.error = set->error;
        rp_newest_set = NULL;
    }
    rp_unlock(&retired_lock);
    while (set->watches)
        rp_set_forget_watch(set, set->watches);
    if (set->hidden >= 0) {
        rp_fd_internal(set->hidden, false);
        rp_sys_close(set->hidden);
        set->hidden = -1;
    }
    __atomic_store_n(&set->owner, 0, __ATOMIC_RELAXED);
    set->in_use = false;
}

static void link_watch(struct rp_set *set, struct rp_watch *watch, struct rp_fd *entry)
{
    watch->set = set;
    watch->prev_of_set = NULL;
    watch->next_of_set = set->watches;
    if (set->watches)
        set->watches->prev_of_set = watch;
    set->watches = watch;
    if (watch->home == RP_HOME_RING)
        set->ring_watches++;
    rp_fd_link(entry, watch);
}

static void undirty(struct rp_set *set, struct rp_watch *watch)
{
    if (!watch->dirty)
        return;
    if (watch->prev_dirty)
        watch->prev_dirty->next_dirty = watch->next_dirty;
    else
        set->dirty = watch->next_dirty;
    if (watch->next_dirty)
        watch->next_dirty->prev_dirty = watch->prev_dirty;
    else
        set->dirty_tail = watch->prev_dirty;
    watch->next_dirty = watch->prev_dirty = NULL;
    watch->dirty = false;
}

void rp_set_dirty(struct rp_set *set, struct rp_watch *watch)
{
    if (watch->dirty)
        return;
    watch->dirty = true;
    watch->next_dirty = NULL;
    watch->prev_dirty = set->dirty ? set->dirty_tail : NULL;
    if (set->dirty)
        set->dirty_tail->next_dirty = watch;
    else
        set->dirty = watch;
    set->dirty_tail = watch;
}

/* Takes the record out of everything and recycles it. Its op, if any, has been
 * orphaned. Owner thread, or no ring. */
void rp_set_forget_watch(struct rp_set *set, struct rp_watch *watch)
{
    undirty(set, watch);
    rp_watch_to_idle(set, watch);
    if (watch->prev_of_set)
        watch->prev_of_set->next_of_set = watch->next_of_set;
    else
        set->watches = watch->next_of_set;
    if (watch->next_of_set)
        watch->next_of_set->prev_of_set = watch->prev_of_set;
    if (watch->home == RP_HOME_RING)
        set->ring_watches--;
    if (watch->fd >= 0) {
        struct rp_fd *entry = rp_fd_peek(watch->fd);
        if (entry)
            rp_fd_unlink(entry, watch);
    }
    rp_watch_release(watch);
}

/* The record of fd in this set: the live one, else a deleted one that awaits
 * its disarming. */
static struct rp_watch *find(struct rp_set *set, int fd)
{
    struct rp_fd *entry = rp_fd_peek(fd);
    struct rp_watch *found = NULL;
    if (!entry || !__atomic_load_n(&entry->watches, __ATOMIC_ACQUIRE))
        return NULL;
    rp_lock(&rp_fdtab_lock);
    for (struct rp_watch *watch = entry->watches; watch; watch = watch->next_of_fd)
        if (watch->set == set && (!found || found->deleted))
            found = watch;
    rp_unlock(&rp_fdtab_lock);
    return found;
}

static int make_hidden(struct rp_set *set)
{
    if (set->hidden >= 0)
        return 0;
    int fd = rp_sys_epoll_create1(EPOLL_CLOEXEC);
    if (fd >= 0)
        fd = rp_sys_dup_high(fd);
    if (fd < 0)
        return fd;
    rp_fd_internal(fd, true);
    set->hidden = fd;
    return 0;
}

static int kernel_ctl(struct rp_set *set, int epfd, int op, int fd, struct epoll_event *event)
{
    set->stats.kernel_ctls++;
    return rp_sys_epoll_ctl(epfd, op, fd, event);
}

/* The edge-triggered watch has reported what there is. */
static bool is_spent_edge(const struct rp_watch *watch)
{
    return watch->home == RP_HOME_RING && rp_watch_is_edge(watch) && !(watch->events & EPOLLONESHOT) &&
           watch->ready == RP_READY_IDLE && rp_watch_in_flight(watch) && !watch->dirty;
}

/* Nothing has happened that the ring has not told us. */
static bool ring_is_quiet(struct rp_set *set)
{
    return set->ring.fd >= 0 && (set->ring.features & RINGPOLL_FEATURE_TASKRUN_FLAG) &&
           !rp_ring_wants_enter(&set->ring) && !rp_ring_peek(&set->ring);
}

static int enter_and_reap(struct rp_set *set);

/* Registering a ready fd makes an edge; this one was reported before. The kernel
 * gives it up only by a wait, which takes others' events along: level-triggered
 * ones it keeps by itself, the rest are put back by MOD. */
static void swallow_edge(struct rp_set *set, struct rp_watch *watch, struct epoll_event *event)
{
    struct epoll_event got[64];
    int count = rp_sys_epoll_wait(set->hidden, got, 64, &no_time, NULL);
    bool swallowed = false;
    for (int i = 0; i < count; i++) {
        if (!swallowed && got[i].data.u64 == event->data.u64) {
            swallowed = true;
            continue;
        }
        for (struct rp_watch *other = set->watches; other; other = other->next_of_set) {
            struct epoll_event again = {.events = other->events, .data = other->data};
            if (other != watch && other->home == RP_HOME_KERNEL && !other->deleted &&
                (other->events & (EPOLLET | EPOLLONESHOT)) && other->data.u64 == got[i].data.u64)
                rp_sys_epoll_ctl(set->hidden, EPOLL_CTL_MOD, other->fd, &again);
        }
    }
    /* Something came meanwhile: a second report is better than none. */
    if (enter_and_reap(set) < 0 || watch->ready != RP_READY_IDLE)
        rp_sys_epoll_ctl(set->hidden, EPOLL_CTL_MOD, watch->fd, event);
}

int rp_set_move_to_kernel(struct rp_set *set, struct rp_watch *watch)
{
    if (watch->home == RP_HOME_KERNEL)
        return 0;
    int error = make_hidden(set);
    if (error < 0)
        return error;
    struct epoll_event event = {.events = watch->events, .data = watch->data};
    bool spent = is_spent_edge(watch) && ring_is_quiet(set);
    error = kernel_ctl(set, set->hidden, EPOLL_CTL_ADD, watch->fd, &event);
    if (error < 0)
        return error;
    if (spent)
        swallow_edge(set, watch, &event);
    set->stats.handovers++;
    watch->home = RP_HOME_KERNEL;
    set->ring_watches--;
    watch->disabled = false;
    rp_watch_to_idle(set, watch);
    watch->quiet = watch->single = false;
    rp_set_dirty(set, watch);
    return 0;
}

/* --------------------------------------------------------------- kept rings
 *
 * When a ring's file goes, the kernel sends the thread that used it a work item
 * 13 to 20 ms later (io_tctx_exit_cb), and whatever the thread waits in then
 * returns EINTR without a signal: epoll_wait, io_uring_enter, a recv with a
 * timeout. So a ring that is empty is kept for the thread's next set, as a
 * registered ring without an fd of its own, and ends with the thread. */

#define KEPT_RINGS 16
#define KEPT_RINGS_A_THREAD 2
#define NO_FD INT_MAX /* ring.fd of such a ring: made, but only registered */

static struct {
    uint64_t owner;
    struct rp_ring ring;
    struct rp_ring_options options;
} kept[KEPT_RINGS];
static struct rp_lock kept_lock; /* leaf */

static bool same_options(const struct rp_ring_options *a, const struct rp_ring_options *b)
{
    return a->sq_entries == b->sq_entries && a->cq_entries == b->cq_entries && a->features == b->features &&
           !a->sqpoll && !b->sqpoll;
}

static bool keep_ring(struct rp_set *set, bool with_fd)
{
    struct rp_ring *ring = &set->ring;
    if (rp_op_busy(&set->ops) > 0 || rp_ring_queued(ring) > 0 ||
        set->ring_options.sqpoll || rp_process_no_rings || !thread_key_made)
        return false;
    if (ring->fd != NO_FD && !with_fd) {
        if (ring->enter_fd == ring->fd)
            rp_ring_register_fd(ring);
        if (ring->enter_fd == ring->fd)
            return false;
    }
    bool done = false;
    int mine = 0;
    rp_lock(&kept_lock);
    for (unsigned i = 0; i < KEPT_RINGS; i++)
        mine += kept[i].owner == rp_self.id;
    for (unsigned i = 0; i < KEPT_RINGS && !done && mine < KEPT_RINGS_A_THREAD; i++) {
        if (kept[i].owner)
            continue;
        kept[i].owner = rp_self.id;
        kept[i].options = set->ring_options;
        kept[i].ring = *ring;
        if (ring->fd != NO_FD && with_fd) {
            rp_fd_internal(ring->fd, true);
        } else if (ring->fd != NO_FD) {
            rp_fd_internal(ring->fd, false);
            rp_sys_close(ring->fd);
            kept[i].ring.fd = NO_FD;
        }
        kept[i].ring.enters = kept[i].ring.sqes_submitted = kept[i].ring.cqes_reaped = kept[i].ring.overflows = 0;
        done = true;
    }
    rp_unlock(&kept_lock);
    return done;
}

static bool take_kept_ring(struct rp_set *set)
{
    bool found = false;
    rp_lock(&kept_lock);
    for (unsigned i = 0; i < KEPT_RINGS && !found; i++)
        if (kept[i].owner == rp_self_id() && same_options(&kept[i].options, &set->ring_options)) {
            set->ring = kept[i].ring;
            kept[i].owner = 0;
            found = true;
        }
    rp_unlock(&kept_lock);
    return found;
}

static void end_kept_rings(void)
{
    rp_lock(&kept_lock);
    for (unsigned i = 0; i < KEPT_RINGS; i++)
        if (kept[i].owner == rp_self.id) {
            if (kept[i].ring.fd != NO_FD)
                rp_fd_internal(kept[i].ring.fd, false);
            rp_ring_fini(&kept[i].ring);
            kept[i].owner = 0;
        }
    rp_unlock(&kept_lock);
}

/* In a fork's child: they are the parent's, and so is their memory. */
void rp_set_forget_kept_rings(void)
{
    kept_lock.word = wake_lock.word = retired_lock.word = 0;
    for (unsigned i = 0; i < KEPT_RINGS; i++)
        if (kept[i].owner && kept[i].ring.fd != NO_FD)
            rp_sys_close(kept[i].ring.fd);
    memset(kept, 0, sizeof kept);
}

/* ----------------------------------------------------------- waking the owner */

static void wake_owner(struct rp_set *set)
{
    if (set->wake_sent || set->hidden < 0)
        return;
    rp_lock(&wake_lock);
    if (wake_fd < 0) {
        int fd = rp_sys_eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
        if (fd >= 0)
            fd = rp_sys_dup_high(fd);
        if (fd >= 0)
            rp_fd_internal(fd, true);
        wake_fd = fd;
    }
    rp_unlock(&wake_lock);
    struct epoll_event event = {.events = EPOLLIN, .data = {.ptr = &wake_fd}};
    set->wake_sent = wake_fd >= 0 && kernel_ctl(set, set->hidden, EPOLL_CTL_ADD, wake_fd, &event) == 0;
}

/* The owner, back outside: first of all. */
static void take_wake(struct rp_set *set)
{
    if (!set->wake_sent)
        return;
    kernel_ctl(set, set->hidden, EPOLL_CTL_DEL, wake_fd, NULL);
    set->wake_sent = false;
}

static void say_serviced(struct rp_set *set)
{
    __atomic_fetch_add(&set->serviced, 1, __ATOMIC_RELEASE);
    rp_sys_futex_wake_all(&set->serviced);
}

/* Another thread asks the owner, which is inside, to flush and enter; returns
 * when it has. Drops the lock meanwhile. */
static void ask_owner(struct rp_set *set)
{
    uint32_t before = __atomic_load_n(&set->serviced, __ATOMIC_ACQUIRE);
    set->requests = true;
    wake_owner(set);
    rp_set_unlock(set);
    while (__atomic_load_n(&set->serviced, __ATOMIC_ACQUIRE) == before)
        rp_sys_futex_wait(&set->serviced, before);
    rp_set_lock(set);
}

/* ------------------------------------------------------------ the ring's turn */

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
        rp_ring_seen(ring);
        count++;
        struct rp_op *op = rp_op_find(&set->ops, user_data);
        if (!op)
            continue;
        if (op->state == RP_OP_ORPHANED) {
            if (!(flags & RP_CQE_F_MORE))
                rp_op_step(&set->ops, op, RP_OP_FREE);
        } else if (op->kind == RP_OP_KERNEL) {
            if (op->state == RP_OP_QUEUED)
                rp_op_step(&set->ops, op, RP_OP_INFLIGHT);
            rp_op_step(&set->ops, op, RP_OP_FREE);
            set->hidden_op = NULL;
            set->hidden_armed = false;
            set->hidden_ready = true;
        } else {
            rp_watch_completed(set, op->owner, result, flags);
        }
    }
    return count;
}

/* A completion was lost: every poll may be the one. */
static void recheck_all(struct rp_set *set)
{
    set->stats.cq_overflows++;
    for (struct rp_watch *watch = set->watches; watch; watch = watch->next_of_set) {
        watch->recheck = true;
        rp_set_dirty(set, watch);
    }
    set->hidden_ready = true;
}

/* Enters without blocking, and reaps. 0, or a negative errno that means that
 * this ring is of no use any more. */
static int enter_and_reap(struct rp_set *set)
{
    for (int attempts = 0; attempts < 1000; attempts++) {
        int result = rp_ring_enter(&set->ring, 0, NULL, NULL);
        unsigned reaped = reap(set);
        switch (result) {
        case -EINTR:
        case -ETIME:
            return 0;
        case -EBUSY:  /* the CQ overflowed and was just reaped */
        case -EAGAIN: /* no memory for requests, for now */
            if (result == -EAGAIN && reaped == 0 && attempts > 100)
                return result;
            continue;
        case -EBADR:
            recheck_all(set);
            return 0;
        default:
            if (result < 0)
                return result;
            if (rp_ring_queued(&set->ring) == 0)
                return 0;
        }
    }
    return -EAGAIN;
}

/* The dirty list: what is armed becomes what is wanted. */
static int flush_dirty(struct rp_set *set)
{
    struct rp_watch *watch;
    while ((watch = set->dirty) != NULL) {
        int error;
        if (watch->deleted) {
            error = rp_watch_disarm(set, watch, NULL);
            if (error == 0) {
                rp_set_forget_watch(set, watch);
                continue;
            }
        } else {
            error = rp_watch_arm(set, watch);
            if (error == 0) {
                undirty(set, watch);
                continue;
            }
            if (error == -ENOMEM) {
                undirty(set, watch);
                if (rp_set_move_to_kernel(set, watch) < 0)
                    return error;
                continue;
            }
        }
        error = enter_and_reap(set); /* the SQ is full */
        if (error < 0)
            return error;
    }
    return 0;
}

/* Level-triggered by arming it anew: the kernel looks whether anything in the
 * hidden instance is ready. */
static int arm_hidden(struct rp_set *set)
{
    if (set->hidden_armed || set->hidden_ready)
        return 0;
    struct rp_sqe *sqe = rp_ring_get_sqe(&set->ring);
    if (!sqe) {
        int error = enter_and_reap(set);
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

static bool fits_sets(uint64_t features, uint32_t flags)
{
    uint64_t needed = RINGPOLL_FEATURE_MULTISHOT_POLL | RINGPOLL_FEATURE_EXT_ARG | RINGPOLL_FEATURE_NODROP;
    if (!(flags & (RINGPOLL_ANY_RING | RINGPOLL_SQPOLL)))
        needed |= RINGPOLL_FEATURE_DEFER | RINGPOLL_FEATURE_TASKRUN_FLAG;
    return (features & needed) == needed;
}

/* An old kernel's ring, which nobody will use, was just ended: see "kept rings"
 * for what that does. Its interrupt is waited for here, once per process. */
static void await_late_interrupt(void)
{
    static const struct timespec while_ns = {0, 30000000};
    struct epoll_event unused;
    int fd = rp_sys_epoll_create1(EPOLL_CLOEXEC);
    if (fd < 0)
        return;
    rp_sys_epoll_wait(fd, &unused, 1, &while_ns, NULL);
    rp_sys_close(fd);
}

/* The ring of a set, from those kept or a new one. */
static int get_ring(struct rp_set *set)
{
    static bool unfit; /* this kernel's rings, found out the hard way */
    struct rp_ring_options options = set->ring_options;
    if (!fits_sets(options.features, set->flags) || __atomic_load_n(&unfit, __ATOMIC_RELAXED))
        return -EOPNOTSUPP;
    pthread_once(&thread_key_once, make_thread_key);
    if (take_kept_ring(set))
        return 0;
    options.single_thread = rp_single_threaded();
    int error = rp_ring_init(&set->ring, &options);
    if (error == -ENOSYS || error == -EPERM || error == -EACCES)
        __atomic_store_n(&ring_refused, error, __ATOMIC_RELAXED); /* it will say so for ever */
    if (error < 0)
        return error;
    set->stats.rings_made++;
    if (!fits_sets(set->ring.features, set->flags)) {
        rp_ring_fini(&set->ring);
        if (!(set->flags & (RINGPOLL_ANY_RING | RINGPOLL_SQPOLL)))
            __atomic_store_n(&unfit, true, __ATOMIC_RELAXED);
        await_late_interrupt();
        return -EOPNOTSUPP;
    }
    return 0;
}

static int make_ring(struct rp_set *set)
{
    int error = make_hidden(set);
    if (error == 0)
        error = get_ring(set);
    if (error < 0)
        return error;
    uint64_t tells = RINGPOLL_FEATURE_DEFER | RINGPOLL_FEATURE_TASKRUN_FLAG;
    set->tells = (set->ring.features & tells) == tells;
    rp_fd_internal(set->ring.fd, true);
    rp_op_table_init(&set->ops);
    __atomic_store_n(&set->owner, rp_self_id(), __ATOMIC_RELAXED);
    if (thread_key_made)
        pthread_setspecific(thread_key, set);
    __atomic_store_n(&set->engine, RINGPOLL_ENGINE_RING, __ATOMIC_RELEASE);
    for (struct rp_watch *watch = set->watches; watch; watch = watch->next_of_set)
        if (watch->home == RP_HOME_RING)
            rp_set_dirty(set, watch);
    return 0;
}

/* Cancels all and waits for all, then unmaps: the order that frees files, and
 * so listeners' ports and peers' FINs, at once. */
void rp_set_end_ring(struct rp_set *set)
{
    struct rp_ring *ring = &set->ring;
    if (ring->fd < 0)
        return;
    for (struct rp_watch *watch = set->watches; watch; watch = watch->next_of_set)
        while (rp_watch_disarm(set, watch, NULL) == -EBUSY)
            if (enter_and_reap(set) < 0)
                break;
    if (set->hidden_op && set->hidden_armed) {
        struct rp_sqe *sqe = rp_ring_get_sqe(ring);
        if (!sqe && enter_and_reap(set) == 0)
            sqe = rp_ring_get_sqe(ring);
        if (sqe && set->hidden_op) {
            sqe->opcode = RP_IORING_OP_ASYNC_CANCEL;
            sqe->fd = -1;
            sqe->addr = rp_op_user_data(&set->ops, set->hidden_op);
            rp_op_step(&set->ops, set->hidden_op, RP_OP_ORPHANED);
        } else if (sqe) {
            sqe->opcode = RP_IORING_OP_NOP;
        }
    }
    set->hidden_op = NULL;
    set->hidden_armed = set->hidden_ready = false;
    for (int turns = 0; turns < 4096 && rp_op_busy(&set->ops) > 0; turns++)
        if (enter_and_reap(set) < 0)
            break;
    for (struct rp_watch *watch = set->watches; watch; watch = watch->next_of_set) {
        rp_watch_to_idle(set, watch);
        watch->quiet = watch->single = false;
    }
    set->stats.enters += ring->enters;
    set->stats.sqes += ring->sqes_submitted;
    set->stats.cqes += ring->cqes_reaped;
    set->stats.cq_overflows += ring->overflows;
    set->stats.stale_cqes += set->ops.stale;
    if (!keep_ring(set, false)) {
        if (ring->fd != NO_FD)
            rp_fd_internal(ring->fd, false);
        rp_ring_fini(ring); /* closing NO_FD is EBADF, and nothing else */
    }
    memset(ring, 0, sizeof *ring);
    ring->fd = -1;
    rp_op_table_fini(&set->ops);
    set->zombie = false;
}

static void close_hidden(struct rp_set *set);

void rp_set_end_zombies(void)
{
    if (__atomic_load_n(&rp_zombies, __ATOMIC_RELAXED) == 0 || rp_self.locks_held)
        return;
    rp_lock(&rp_sets_lock);
    for (struct rp_set *set = rp_sets; set; set = set->next_set) {
        rp_lock(&set->lock);
        if (set->in_use && set->zombie && rp_set_is_mine(set) && !set->owner_inside) {
            __atomic_fetch_sub(&rp_zombies, 1, __ATOMIC_RELAXED);
            rp_set_end_ring(set);
            for (struct rp_watch *watch = set->watches, *next; watch; watch = next) {
                next = watch->next_of_set;
                if ((!watch->disabled && !watch->stays) || watch->deleted)
                    rp_set_forget_watch(set, watch);
            }
            if (set->waiters == 0)
                close_hidden(set);
            if (is_ending(set))
                set_free(set);
        }
        rp_unlock(&set->lock);
    }
    rp_unlock(&rp_sets_lock);
}

/* ---------------------------------------------------------------- demotion */

/* The identity's file is shared with the process that we were forked from:
 * every name gets a kernel epoll instance of our own. */
static void replace_identity(struct rp_set *set)
{
    int fresh = rp_sys_epoll_create1(EPOLL_CLOEXEC);
    if (fresh < 0)
        return;
    unsigned seen = 0;
    for (unsigned page = 0; page < RP_FD_PAGES && seen < set->names; page++) {
        if (!rp_fd_pages[page])
            continue;
        for (unsigned i = 0; i < RP_FD_PAGE; i++) {
            if (rp_fd_pages[page][i].set != set)
                continue;
            int name = (int)(page * RP_FD_PAGE + i);
            int cloexec = rp_sys_fcntl(name, 1 /* F_GETFD */, 0) & 1;
            rp_sys_dup3(fresh, name, cloexec ? EPOLL_CLOEXEC : 0);
            seen++;
        }
    }
    rp_sys_close(fresh);
    set->identity_foreign = false;
}

/* Disabled one-shots in the hidden instance: only the kernel knows. Its list
 * says `events: 40000000` (one-shot and nothing else) of those. */
static bool hidden_disabled(struct rp_set *set, const struct rp_watch *watch)
{
    char path[64] = "/proc/self/fdinfo/", text[4096];
    size_t at = strlen(path);
    char digits[12];
    int count = 0, number = set->hidden;
    do
        digits[count++] = (char)('0' + number % 10);
    while ((number /= 10) > 0);
    while (count > 0)
        path[at++] = digits[--count];
    path[at] = 0;
    long fd = rp_sys_call(SYS_openat, -100 /* AT_FDCWD */, (long)path, 02000000 /* O_CLOEXEC */, 0, 0, 0);
    if (fd < 0)
        return false;
    bool disabled = false;
    size_t have = 0;
    long got;
    while ((got = rp_sys_read((int)fd, text + have, sizeof text - 1 - have)) > 0) {
        have += (size_t)got;
        text[have] = 0;
        char *line = text, *end;
        while ((end = strchr(line, '\n')) != NULL) {
            *end = 0;
            char *word = strstr(line, "tfd:");
            char *events = strstr(line, "events:");
            if (word && events) {
                int tfd = 0;
                uint32_t bits = 0;
                for (word += 4; *word == ' '; word++)
                    ;
                for (; *word >= '0' && *word <= '9'; word++)
                    tfd = tfd * 10 + (*word - '0');
                for (events += 7; *events == ' '; events++)
                    ;
                for (; *events && *events != ' '; events++)
                    bits = bits * 16 + (uint32_t)(*events <= '9' ? *events - '0' : (*events | 32) - 'a' + 10);
                if (tfd == watch->fd && (bits & EPOLLONESHOT) &&
                    !(bits & ~(uint32_t)(EPOLLONESHOT | EPOLLET | EPOLLWAKEUP | EPOLLEXCLUSIVE)))
                    disabled = true;
            }
            line = end + 1;
        }
        have = strlen(line);
        memmove(text, line, have);
        if (have == sizeof text - 1)
            have = 0;
    }
    rp_sys_close((int)fd);
    return disabled;
}

/* Registers every watch in the identity. A disabled one-shot cannot be: kernel
 * epoll has that state, but no way to make it. Its record stays (`leftovers`)
 * until MOD, DEL or close. */
static void add_to_identity(struct rp_set *set, struct rp_watch *watch)
{
    struct epoll_event event = {.events = watch->events, .data = watch->data};
    kernel_ctl(set, set->identity, EPOLL_CTL_ADD, watch->fd, &event);
}

static void move_all(struct rp_set *set, uint32_t reason)
{
    /* What an edge-triggered watch of the hidden instance has reported only the
     * kernel knows: those stay there, and that instance is nested in the identity
     * (unless the identity shall serve another process). */
    bool may_stay = reason != RINGPOLL_REASON_SHARED && reason != RINGPOLL_REASON_FORK && !set->identity_foreign;
    for (struct rp_watch *watch = set->watches; watch && may_stay; watch = watch->next_of_set)
        if (watch->home == RP_HOME_KERNEL && !watch->deleted && (watch->events & EPOLLET))
            watch->stays = set->ghosts = true;

    struct epoll_event spent[64];
    bool quiet = ring_is_quiet(set);

    /* Registering an edge-triggered fd that is ready makes an edge. Those that
     * were reported already are registered first and their edges thrown away,
     * unless something happened meanwhile: a second report is better than none. */
    if (quiet) {
        bool any = false;
        for (struct rp_watch *watch = set->watches; watch; watch = watch->next_of_set)
            if (!watch->deleted && !watch->disabled && is_spent_edge(watch)) {
                add_to_identity(set, watch);
                any = true;
            }
        for (int turn = 0; any && turn < 1024; turn++)
            if (rp_sys_epoll_wait(set->identity, spent, 64, &no_time, NULL) <= 0)
                break;
        if (any && !ring_is_quiet(set))
            for (struct rp_watch *watch = set->watches; watch; watch = watch->next_of_set)
                if (!watch->deleted && !watch->disabled && is_spent_edge(watch)) {
                    struct epoll_event event = {.events = watch->events, .data = watch->data};
                    kernel_ctl(set, set->identity, EPOLL_CTL_MOD, watch->fd, &event);
                }
    }
    for (struct rp_watch *watch = set->watches; watch; watch = watch->next_of_set) {
        if (watch->deleted)
            continue;
        if (watch->stays) {
            set->leftovers++;
            continue;
        }
        if (watch->home == RP_HOME_KERNEL && (watch->events & EPOLLONESHOT) && hidden_disabled(set, watch))
            watch->disabled = true;
        if (set->ghosts && watch->home == RP_HOME_KERNEL)
            rp_sys_epoll_ctl(set->hidden, EPOLL_CTL_DEL, watch->fd, NULL);
        if (watch->disabled) {
            set->leftovers++;
            continue;
        }
        if (!quiet || !is_spent_edge(watch))
            add_to_identity(set, watch);
    }
    /* Registrations whose number is closed can be moved by nobody. They stay in
     * the hidden instance, and that is nested in the identity. */
    if (set->ghosts && set->hidden >= 0) {
        struct epoll_event event = {.events = EPOLLIN, .data = {.ptr = set}};
        set->hidden_nested = kernel_ctl(set, set->identity, EPOLL_CTL_ADD, set->hidden, &event) == 0;
    }
}

/* Of a set without a ring: unless it is nested, the hidden instance has served. */
static void close_hidden(struct rp_set *set)
{
    if (set->hidden < 0 || set->hidden_nested)
        return;
    rp_fd_internal(set->hidden, false);
    rp_sys_close(set->hidden);
    set->hidden = -1;
}

void rp_set_demote(struct rp_set *set, uint32_t reason, int error)
{
    if (set->inherited)
        rp_set_adopt_inherited(set);
    uint32_t engine = rp_set_engine(set);
    if (engine == RINGPOLL_ENGINE_KERNEL)
        return;
    bool mine = engine == RINGPOLL_ENGINE_NEW || rp_set_is_mine(set);
    if (set->identity_foreign)
        replace_identity(set);
    /* What is on its way to us tells fresh edges from spent ones. */
    if (engine == RINGPOLL_ENGINE_RING && mine && error == 0 && !set->owner_inside)
        (void)enter_and_reap(set);
    move_all(set, reason);
    set->reason = reason;
    set->error = error;
    set->stats.demotions++;
    __atomic_store_n(&set->engine, RINGPOLL_ENGINE_KERNEL, __ATOMIC_RELEASE);
    if (mine && !set->owner_inside) {
        rp_set_end_ring(set);
        for (struct rp_watch *watch = set->watches, *next; watch; watch = next) {
            next = watch->next_of_set;
            if ((!watch->disabled && !watch->stays) || watch->deleted)
                rp_set_forget_watch(set, watch);
        }
        /* A wait that began while NEW sits in the hidden instance: out with it. */
        if (set->waiters > 0)
            wake_owner(set);
        else
            close_hidden(set);
        return;
    }
    set->zombie = true;
    __atomic_fetch_add(&rp_zombies, 1, __ATOMIC_RELAXED);
    if (set->owner_inside) {
        if (mine)
            wake_owner(set); /* a signal handler: the wait ends by itself */
        else
            ask_owner(set);
    }
}

/* ---------------------------------------------------------------- children */

void rp_set_after_fork(struct rp_set *set)
{
    set->lock.word = 0;
    if (!set->in_use)
        return;
    uint32_t engine = rp_set_engine(set);
    if (set->ring.fd >= 0) {
        rp_fd_internal(set->ring.fd, false);
        rp_ring_abandon(&set->ring);
        memset(&set->ring, 0, sizeof set->ring);
        set->ring.fd = -1;
        rp_op_table_fini(&set->ops);
    }
    if (set->zombie) {
        set->zombie = false;
        __atomic_fetch_sub(&rp_zombies, 1, __ATOMIC_RELAXED);
    }
    for (struct rp_watch *watch = set->watches, *next; watch; watch = next) {
        next = watch->next_of_set;
        rp_watch_to_idle(set, watch);
        watch->op = NULL;
        watch->armed = 0;
        watch->armed_oneshot = watch->quiet = watch->single = false;
        if (watch->deleted || (engine == RINGPOLL_ENGINE_KERNEL && !watch->disabled))
            rp_set_forget_watch(set, watch);
    }
    set->hidden_op = NULL;
    set->hidden_armed = set->hidden_ready = set->wake_sent = set->owner_inside = set->requests = false;
    set->waiters = 0;
    set->serviced = 0;
    __atomic_store_n(&set->owner, 0, __ATOMIC_RELAXED);
    if (engine != RINGPOLL_ENGINE_KERNEL)
        set->inherited = set->identity_foreign = true;
    else
        close_hidden(set);
}

void rp_set_adopt_inherited(struct rp_set *set)
{
    set->inherited = false;
    bool had_ring = rp_set_engine(set) == RINGPOLL_ENGINE_RING;
    int parents = set->hidden;
    if (parents >= 0 && !had_ring) {
        /* NEW: the child may yet have a ring of its own. */
        set->hidden = -1;
        if (make_hidden(set) == 0) {
            for (struct rp_watch *watch = set->watches; watch; watch = watch->next_of_set) {
                struct epoll_event event = {.events = watch->events, .data = watch->data};
                if (watch->home == RP_HOME_KERNEL)
                    kernel_ctl(set, set->hidden, EPOLL_CTL_ADD, watch->fd, &event);
            }
        }
        rp_fd_internal(parents, false);
        rp_sys_close(parents);
    }
    if (had_ring) {
        __atomic_store_n(&set->engine, RINGPOLL_ENGINE_NEW, __ATOMIC_RELEASE);
        rp_set_demote(set, RINGPOLL_REASON_FORK, 0);
    }
}

/* ---------------------------------------------------------------- creating */

static int check_options(const struct ringpoll_options *given, struct ringpoll_options *ret_options)
{
    struct ringpoll_options options = {.size = sizeof options};
    if (given) {
        size_t size = given->size;
        if (size < 8)
            return -EINVAL;
        if (size > sizeof options) {
            const unsigned char *bytes = (const unsigned char *)given;
            if (size > 4096)
                return -EINVAL;
            for (size_t i = sizeof options; i < size; i++)
                if (bytes[i] != 0)
                    return -EINVAL;
            size = sizeof options;
        }
        memcpy(&options, given, size);
    }
    uint32_t known = RINGPOLL_CLOEXEC | RINGPOLL_KERNEL | RINGPOLL_REQUIRE | RINGPOLL_TRACKED | RINGPOLL_ANY_RING |
                     RINGPOLL_SQPOLL | RINGPOLL_SQ_AFF;
    if (options.flags & ~known)
        return -EINVAL;
    if ((options.flags & RINGPOLL_KERNEL) && (options.flags & (RINGPOLL_REQUIRE | RINGPOLL_SQPOLL)))
        return -EINVAL;
    if ((options.flags & RINGPOLL_SQ_AFF) && !(options.flags & RINGPOLL_SQPOLL))
        return -EINVAL;
    if (options.sq_entries > 32768 || options.cq_entries > 65536)
        return -EINVAL;
    if (options.sq_entries == 0)
        options.sq_entries = DEFAULT_SQ_ENTRIES;
    if (options.cq_entries == 0)
        options.cq_entries = options.sq_entries > DEFAULT_CQ_ENTRIES ? options.sq_entries : DEFAULT_CQ_ENTRIES;
    if (options.cq_entries < options.sq_entries)
        return -EINVAL;
    *ret_options = options;
    return 0;
}

int ringpoll_create(const struct ringpoll_options *given)
{
    struct ringpoll_options options;
    int error = check_options(given, &options);
    if (error < 0)
        return error;
    rp_process_check();
    rp_set_end_zombies();

    uint64_t masked = rp_probe_masked() | options.masked_features;
    struct rp_ring_options ring_options = {
        .sq_entries = options.sq_entries,
        .cq_entries = options.cq_entries,
        .sqpoll = (options.flags & RINGPOLL_SQPOLL) != 0,
        .sq_aff = (options.flags & RINGPOLL_SQ_AFF) != 0,
        .sq_thread_cpu = options.sq_thread_cpu,
        .sq_thread_idle_ms = options.sq_thread_idle_ms ? options.sq_thread_idle_ms : 1000,
        .features = rp_probe_close_over(~UINT64_C(0), masked),
    };
    bool kernel = (options.flags & RINGPOLL_KERNEL) != 0;
    uint32_t reason = kernel ? RINGPOLL_REASON_ASKED : RINGPOLL_REASON_NONE;
#ifdef RINGPOLL_WITHOUT_URING
    ring_options.features = 0;
#endif
    int refused = __atomic_load_n(&ring_refused, __ATOMIC_RELAXED);
    if (!kernel && (refused || !(ring_options.features & RINGPOLL_FEATURE_URING))) {
        kernel = true;
        reason = RINGPOLL_REASON_NO_RING;
        error = refused ? refused : -ENOSYS;
    }
    if (!kernel && rp_process_no_rings) {
        kernel = true;
        reason = RINGPOLL_REASON_RESTRICTED;
        error = -EPERM;
    }
    if ((options.flags & RINGPOLL_REQUIRE) && kernel)
        return error;
    int fd = rp_sys_epoll_create1(options.flags & RINGPOLL_CLOEXEC ? EPOLL_CLOEXEC : 0);
    if (fd < 0)
        return fd;
    struct rp_fd *entry = rp_fd_get(fd);
    struct rp_set *set = entry ? set_new() : NULL;
    if (!set) {
        rp_sys_close(fd);
        return -ENOMEM;
    }
    set->flags = options.flags;
    set->ring_options = ring_options;
    set->identity = fd;
    set->names = 1;
    set->reason = reason;
    set->error = error;
    set->engine = kernel ? RINGPOLL_ENGINE_KERNEL : RINGPOLL_ENGINE_NEW;
    rp_process_made_set();
    if (options.flags & RINGPOLL_REQUIRE) {
        /* Made to see whether it can be, and kept for the first wait. */
        error = get_ring(set);
        if (error == 0 && !keep_ring(set, true))
            rp_ring_fini(&set->ring);
        memset(&set->ring, 0, sizeof set->ring);
        set->ring.fd = -1;
        if (error < 0) {
            rp_lock(&set->lock);
            set_free(set);
            rp_unlock(&set->lock);
            rp_sys_close(fd);
            return error;
        }
    }
    rp_fd_opened(fd, RP_FD_KNOWN);
    __atomic_store_n(&entry->set, set, __ATOMIC_RELEASE);
    return fd;
}

/* ------------------------------------------------------------------- ctl */

/* Is this fd one that the ring serves as epoll would? *ret_kind only when so. */
static bool fits_ring(const struct rp_set *set, int fd, uint32_t events, uint8_t *ret_kind)
{
    struct rp_fd *entry = rp_fd_peek(fd);
    uint32_t flags = entry ? rp_fd_flags(entry) : 0;

    if ((flags & RP_FD_SHARED) && !(set->flags & RINGPOLL_TRACKED))
        return false;
    if ((events & EPOLLEXCLUSIVE) || (flags & (RP_FD_LEAVE | RP_FD_INTERNAL)) || (entry && entry->set))
        return false;
    if (set->flags & RINGPOLL_TRACKED) {
        uint32_t kind = flags & RINGPOLL_FD_KIND;
        if (!(flags & RP_FD_KNOWN) || kind == RINGPOLL_FD_OTHER)
            return false;
        if ((kind == RINGPOLL_FD_TCP || kind == RINGPOLL_FD_UNIX) && !(flags & RINGPOLL_FD_CONNECTED))
            return false;
        /* Its registration may outlive this number: kernel epoll's business. */
        if (rp_fd_shared(entry))
            return false;
        *ret_kind = (uint8_t)kind;
        return true;
    }
    /* Untracked: nothing is known of the number, so ask what it is now. */
    int type = 0, protocol = 0, domain = 0;
    unsigned length = sizeof type;
    if (rp_sys_getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) == 0) {
        length = sizeof domain;
        if (type != SOCK_STREAM || rp_sys_getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) < 0)
            return false;
        if (domain == AF_UNIX) {
            *ret_kind = RINGPOLL_FD_UNIX;
            return rp_sys_getpeername_connected(fd) == 1;
        }
        length = sizeof protocol;
        if ((domain != AF_INET && domain != AF_INET6) ||
            rp_sys_getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &length) < 0 || protocol != IPPROTO_TCP)
            return false;
        uint8_t state = 0; /* tcpi_state: 1 established, 2 SYN sent, 7 closed, 10 listening */
        length = sizeof state;
        *ret_kind = RINGPOLL_FD_TCP;
        return rp_sys_getsockopt(fd, IPPROTO_TCP, 11 /* TCP_INFO */, &state, &length) == 0 && state != 7 &&
               state != 10;
    }
    unsigned mode;
    *ret_kind = RINGPOLL_FD_PIPE;
    return rp_sys_fstat_mode(fd, &mode) == 0 && S_ISFIFO(mode);
}

static int record_kernel_watch(struct rp_set *set, int fd, const struct epoll_event *event)
{
    struct rp_fd *entry = rp_fd_get(fd);
    struct rp_watch *watch = entry ? rp_watch_alloc() : NULL;
    if (!watch)
        return -ENOMEM;
    watch->fd = fd;
    watch->home = RP_HOME_KERNEL;
    watch->events = event->events;
    watch->data = event->data;
    link_watch(set, watch, entry);
    return 0;
}

static int add_to_kernel(struct rp_set *set, int fd, struct epoll_event *event)
{
    int error = make_hidden(set);
    if (error < 0 && rp_set_engine(set) == RINGPOLL_ENGINE_NEW) {
        /* No fd left for the hidden instance: the identity serves. */
        rp_set_demote(set, RINGPOLL_REASON_NO_RING, error);
        return kernel_ctl(set, set->identity, EPOLL_CTL_ADD, fd, event);
    }
    if (error == 0)
        error = kernel_ctl(set, set->hidden, EPOLL_CTL_ADD, fd, event);
    if (error == 0) {
        error = record_kernel_watch(set, fd, event);
        if (error < 0)
            kernel_ctl(set, set->hidden, EPOLL_CTL_DEL, fd, NULL);
    }
    return error;
}

static int ctl_add(struct rp_set *set, bool inside, struct rp_watch *watch, int fd, struct epoll_event *event)
{
    uint8_t kind = 0;
    if (watch && !watch->deleted) {
        if (watch->home == RP_HOME_RING)
            return -EEXIST;
        /* The kernel knows better: the record may be of a file that was closed
         * unseen. */
        int error = kernel_ctl(set, set->hidden, EPOLL_CTL_ADD, fd, event);
        if (error == 0) {
            watch->events = event->events;
            watch->data = event->data;
        }
        return error;
    }
    if (inside || !fits_ring(set, fd, event->events, &kind))
        return add_to_kernel(set, fd, event);
    if (!watch) {
        struct rp_fd *entry = rp_fd_get(fd);
        watch = entry ? rp_watch_alloc() : NULL;
        if (!watch)
            return -ENOMEM;
        if (!(rp_fd_flags(entry) & RP_FD_KNOWN))
            entry->epoch = __atomic_load_n(&rp_fork_epoch, __ATOMIC_RELAXED);
        watch->fd = fd;
        watch->home = RP_HOME_RING;
        watch->fresh = 2;
        link_watch(set, watch, entry);
    }
    watch->kind = kind;
    watch->deleted = watch->disabled = false;
    watch->recheck = true;
    watch->events = event->events;
    watch->data = event->data;
    rp_set_dirty(set, watch);
    return 0;
}

static int ctl_mod(struct rp_set *set, bool inside, struct rp_watch *watch, int fd, struct epoll_event *event)
{
    if (watch->home == RP_HOME_KERNEL) {
        int error = kernel_ctl(set, set->hidden, EPOLL_CTL_MOD, fd, event);
        if (error == 0) {
            watch->events = event->events;
            watch->data = event->data;
        }
        return error;
    }
    if (event->events & EPOLLEXCLUSIVE)
        return -EINVAL;
    struct rp_fd *entry = rp_fd_peek(fd);
    if (inside || (entry && (rp_fd_flags(entry) & RP_FD_LEAVE))) {
        int error = add_to_kernel(set, fd, event);
        if (error == 0) {
            watch->deleted = true;
            rp_set_dirty(set, watch);
        }
        return error;
    }
    watch->events = event->events;
    watch->data = event->data;
    watch->disabled = false;
    watch->recheck = true;
    rp_set_dirty(set, watch);
    return 0;
}

static int ctl_del(struct rp_set *set, struct rp_watch *watch, int fd)
{
    if (watch->home == RP_HOME_KERNEL) {
        int error = kernel_ctl(set, set->hidden, EPOLL_CTL_DEL, fd, NULL);
        if (!watch->op)
            rp_set_forget_watch(set, watch);
        else {
            watch->deleted = true;
            rp_set_dirty(set, watch);
        }
        return error;
    }
    watch->deleted = true;
    rp_set_dirty(set, watch);
    return 0;
}

/* Engine KERNEL with records of disabled one-shots and of what stayed behind. */
static int ctl_leftover(struct rp_set *set, int epfd, int op, int fd, struct epoll_event *event)
{
    struct rp_watch *watch = find(set, fd);
    if (watch && watch->stays && !watch->deleted) {
        int result = kernel_ctl(set, set->hidden, op, fd, event);
        if (result == 0 && op == EPOLL_CTL_DEL) {
            set->leftovers--;
            rp_set_forget_watch(set, watch);
        }
        return result;
    }
    if (!watch || watch->deleted || !watch->disabled)
        return kernel_ctl(set, epfd, op, fd, event);
    if (op == EPOLL_CTL_ADD)
        return -EEXIST;
    int error = 0;
    if (op == EPOLL_CTL_MOD)
        error = event->events & EPOLLEXCLUSIVE ? -EINVAL : kernel_ctl(set, epfd, EPOLL_CTL_ADD, fd, event);
    if (error == 0) {
        set->leftovers--;
        watch->disabled = false;
        watch->deleted = true;
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
    struct rp_watch *watch = entry ? entry->watches : NULL;
    while (watch && (watch->set != set || watch->deleted || watch->deleted_in_handler))
        watch = watch->next_of_fd;
    if (!watch || watch->home == RP_HOME_KERNEL || rp_set_engine(set) == RINGPOLL_ENGINE_KERNEL) {
        bool hidden = set->hidden >= 0 && rp_set_engine(set) != RINGPOLL_ENGINE_KERNEL;
        return rp_sys_epoll_ctl(hidden ? set->hidden : epfd, op, fd, event);
    }
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

int ringpoll_ctl(int epfd, int op, int fd, struct epoll_event *event)
{
    struct rp_set *set = rp_set_of(epfd);
    struct rp_set *target = rp_set_of(fd);
    /* A set that is watched lives in its identity, before the kernel looks for
     * loops in it. Not for a call that is bound to fail. */
    if (target && target != set && op == EPOLL_CTL_ADD && (uintptr_t)event >= 4096 &&
        !(event->events & EPOLLEXCLUSIVE) && (set || is_epoll(epfd)))
        ringpoll_demote(fd);
    if (!set || (rp_set_engine(set) == RINGPOLL_ENGINE_KERNEL && set->leftovers == 0))
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

    int result;
    rp_set_lock(set);
    if (set->inherited)
        rp_set_adopt_inherited(set);
    if (rp_set_engine(set) == RINGPOLL_ENGINE_KERNEL) {
        result = ctl_leftover(set, epfd, op, fd, event);
        rp_set_unlock(set);
        return result;
    }
    bool inside = set->owner_inside || (set->waiters > 0 && rp_set_engine(set) == RINGPOLL_ENGINE_NEW);
    struct rp_watch *watch = find(set, fd);
    if (op == EPOLL_CTL_ADD)
        result = ctl_add(set, inside, watch, fd, event);
    else if (!watch || watch->deleted) /* ENOENT, EBADF or EPERM: it knows */
        result = kernel_ctl(set, set->hidden >= 0 ? set->hidden : epfd, op, fd, event);
    else if (op == EPOLL_CTL_MOD)
        result = ctl_mod(set, inside, watch, fd, event);
    else
        result = ctl_del(set, watch, fd);
    rp_set_unlock(set);
    return result;
}

/* ------------------------------------------------------------------- wait */

static unsigned take_hidden(struct rp_set *set, struct epoll_event *events, unsigned room)
{
    int count = rp_sys_epoll_wait(set->hidden, events, (int)room, &no_time, NULL);
    set->stats.kernel_waits++;
    set->hidden_ready = count == (int)room;
    set->unfit_kernel += count > 0 ? (uint32_t)count : 0;
    return count > 0 ? (unsigned)count : 0;
}

static unsigned take_ready(struct rp_set *set, struct epoll_event *events, unsigned room)
{
    unsigned todo = set->ready_count, taken = 0;
    while (todo > 0 && taken < room) {
        unsigned window = todo < room - taken ? todo : room - taken;
        unsigned before = set->ready_count;
        rp_watch_check(set, window);
        unsigned gone = before - set->ready_count;
        todo -= gone;
        for (window -= gone; window > 0; window--, todo--) {
            struct rp_watch *watch = set->ready_head;
            uint32_t mask = watch->mask & rp_watch_interest(watch);
            bool certain = watch->ready == RP_READY_CERTAIN && watch->certain_in == set->wait_serial;
            rp_watch_to_idle(set, watch);
            if (watch->deleted)
                continue;
            if (!certain) { /* poll(2) failed: another time */
                rp_watch_to_ready(set, watch, RP_READY_CANDIDATE);
                continue;
            }
            if (mask == 0)
                continue;
            events[taken].events = mask;
            events[taken].data = watch->data;
            taken++;
            if (watch->events & EPOLLONESHOT)
                watch->disabled = true;
            else if (!rp_watch_is_edge(watch) && watch->op)
                rp_watch_to_ready(set, watch, RP_READY_CANDIDATE);
            /* level-triggered without a poll: arming one will look */
        }
    }
    return taken;
}

static unsigned collect(struct rp_set *set, struct epoll_event *events, unsigned room)
{
    unsigned count = 0;
    bool hidden_first = set->hidden_first;
    if (set->hidden_ready && hidden_first)
        count = take_hidden(set, events, room);
    if (count < room && set->ready_count)
        count += take_ready(set, events + count, room - count);
    if (set->hidden_ready && !hidden_first && count < room)
        count += take_hidden(set, events + count, room - count);
    set->hidden_first = !hidden_first;
    return count;
}

/* In the hidden or the identity instance; set unlocked. */
static int wait_in_kernel(struct rp_set *set, int epfd, struct epoll_event *events, int max,
                          const struct timespec *timeout, const sigset_t *sigmask)
{
    int count;
    bool again;
    do {
        again = false;
        count = rp_sys_epoll_wait(epfd, events, max, timeout, sigmask);
        __atomic_fetch_add(&set->stats.kernel_waits, 1, __ATOMIC_RELAXED);
        if (!__atomic_load_n(&set->hidden_nested, __ATOMIC_RELAXED) || epfd == set->hidden)
            break;
        for (int i = 0; i < count; i++) {
            if (events[i].data.ptr != set)
                continue;
            /* The nested instance: what is in it instead. */
            events[i] = events[count - 1];
            int more = rp_sys_epoll_wait(set->hidden, events + count - 1, max - count + 1, &no_time, NULL);
            count += (more > 0 ? more : 0) - 1;
            again = count == 0 && !(timeout && timeout->tv_sec == 0 && timeout->tv_nsec == 0);
            break;
        }
    } while (again);
    return count;
}

static struct timespec time_left(uint64_t deadline_ns)
{
    uint64_t now = rp_sys_now_ns();
    uint64_t left = deadline_ns > now ? deadline_ns - now : 0;
    return (struct timespec){.tv_sec = (time_t)(left / 1000000000u), .tv_nsec = (long)(left % 1000000000u)};
}

/* One wait of the owner on its ring. Locked, and unlocked only inside the
 * blocking enter. Returns events, 0, a negative errno, or AGAIN when the set is
 * on another engine now. */
#define AGAIN (-4095)

static int wait_on_ring(struct rp_set *set, struct epoll_event *events, int max, const struct timespec *timeout,
                        uint64_t deadline_ns, const sigset_t *sigmask)
{
    struct rp_ring *ring = &set->ring;
    bool poll_only = timeout && timeout->tv_sec == 0 && timeout->tv_nsec == 0;
    struct timespec left = timeout ? *timeout : no_time;
    int result = 0;

    set->wait_serial++;
    if (ring->enter_fd != ring->fd && ring->fd != NO_FD && !rp_single_threaded())
        rp_ring_unregister_fd(ring);
    for (;;) {
        unsigned reaped = 0;
        bool blocked = false, got_any = false;
        int entered = 0;
        if (set->requests || set->wake_sent) {
            bool asked = set->requests;
            take_wake(set);
            set->requests = false;
            if (set->zombie || is_ending(set)) {
                say_serviced(set);
                return AGAIN;
            }
            if (asked) {
                result = flush_dirty(set);
                for (int turn = 0; result == 0 && turn < 64 && set->ops.count[RP_OP_ORPHANED] > 0; turn++)
                    result = enter_and_reap(set);
                say_serviced(set);
                if (result < 0)
                    break;
            }
        }
        if (set->dirty && (result = flush_dirty(set)) < 0)
            break;
        if ((result = arm_hidden(set)) < 0)
            break;
        if (set->ready_count || set->hidden_ready || poll_only) {
            if (rp_ring_queued(ring) || rp_ring_wants_enter(ring) ||
                (!set->ready_count && !set->hidden_ready && !(ring->features & RINGPOLL_FEATURE_TASKRUN_FLAG))) {
                uint64_t before = ring->cqes_reaped;
                result = enter_and_reap(set);
                if (result < 0)
                    break;
                reaped = (unsigned)(ring->cqes_reaped - before);
            } else {
                reap(set);
            }
        } else if (rp_ring_peek(ring)) {
            reap(set);
        } else {
            blocked = true;
            set->owner_inside = true;
            rp_set_unlock(set);
            /* What a signal handler left (see ctl_in_handler) is dirty now. */
            bool enters = __atomic_load_n(&set->dirty, __ATOMIC_RELAXED) == NULL;
            if (enters)
                entered = rp_ring_enter(ring, 1, timeout ? &left : NULL, sigmask);
            rp_set_lock(set);
            set->owner_inside = false;
            if (!enters)
                continue;
            if (ring->fd < 0 || set->zombie || is_ending(set)) {
                if (set->requests) {
                    take_wake(set);
                    set->requests = false;
                    say_serviced(set);
                }
                return AGAIN;
            }
            reaped = reap(set);
            got_any = reaped > 0;
            if (entered == -EBADR) {
                recheck_all(set);
            } else if (entered < 0 && entered != -EINTR && entered != -ETIME && entered != -EBUSY &&
                       entered != -EAGAIN) {
                result = entered;
                break;
            }
        }
        /* An enter leaves work behind only if there was more than it may run
         * (20 items at least): then the rest belongs to this turn. What else is
         * pending came later, and waits for the next. With nothing found and no
         * time to wait, whatever is there counts. */
        result = 0;
        for (unsigned turn = 0; result == 0 && turn < 4096 && rp_ring_wants_enter(ring) &&
                                (reaped >= 20 || (poll_only && !set->ready_count && turn < 64));
             turn++) {
            uint64_t before = ring->cqes_reaped;
            result = enter_and_reap(set);
            reaped = (unsigned)(ring->cqes_reaped - before);
        }
        if (result < 0)
            break;
        if (set->wake_sent || set->requests)
            continue;
        unsigned count = collect(set, events, (unsigned)max);
        if (count > 0)
            return (int)count;
        if (poll_only)
            return 0;
        if (blocked) {
            if (entered == -EINTR)
                return -EINTR;
            if (entered == -ETIME)
                return 0;
            if (timeout) {
                left = time_left(deadline_ns);
                if ((left.tv_sec | left.tv_nsec) == 0)
                    return 0;
            }
            /* An enter that submitted something, or that sees CQEs held back,
             * hides the signal that ended it. */
            if (entered >= 0 && !got_any)
                return -EINTR;
        } else if (timeout) {
            left = time_left(deadline_ns);
            if ((left.tv_sec | left.tv_nsec) == 0)
                return 0;
        }
        set->wait_serial++;
    }
    /* This ring is of no use any more (a filter, another kernel's idea): the
     * set goes on without it. */
    rp_set_demote(set, result == -EPERM || result == -EACCES ? RINGPOLL_REASON_RESTRICTED : RINGPOLL_REASON_NO_RING,
                  result);
    return AGAIN;
}

/* Not a server that has only begun to accept. */
static bool mostly_kernel_watches(const struct rp_set *set)
{
    unsigned kernel = 0;
    for (const struct rp_watch *watch = set->watches; watch; watch = watch->next_of_set)
        kernel += watch->home == RP_HOME_KERNEL && !watch->deleted;
    return kernel > set->ring_watches;
}

int ringpoll_wait(int epfd, struct epoll_event *events, int max, const struct timespec *timeout,
                  const sigset_t *sigmask)
{
    struct rp_set *set = rp_set_of(epfd);
    uint64_t deadline_ns = 0;

    if (!set)
        return rp_sys_epoll_wait(epfd, events, max, timeout, sigmask);
    if (rp_set_engine(set) == RINGPOLL_ENGINE_KERNEL && !set->zombie)
        goto kernel;
    if (timeout && (timeout->tv_sec < 0 || timeout->tv_nsec < 0 || timeout->tv_nsec >= 1000000000))
        return -EINVAL;
    if (max <= 0 || max > (int)(INT_MAX / sizeof(struct epoll_event)))
        return -EINVAL;
    if ((uintptr_t)events < 4096) {
        /* EFAULT, but only when there is an event, which then is not lost. */
        ringpoll_demote(epfd);
        goto kernel;
    }
    if (rp_self.locks_held)
        return rp_sys_epoll_wait(epfd, events, max, timeout, sigmask);
    rp_process_check();
    if (timeout && (timeout->tv_sec | timeout->tv_nsec) != 0) {
        uint64_t seconds = (uint64_t)timeout->tv_sec > 1000000000u ? 1000000000u : (uint64_t)timeout->tv_sec;
        deadline_ns = rp_sys_now_ns() + seconds * 1000000000u + (uint64_t)timeout->tv_nsec;
    }

    rp_set_lock(set);
    set->stats.waits++;
    if (set->inherited)
        rp_set_adopt_inherited(set);
    if (rp_process_no_rings && rp_set_engine(set) != RINGPOLL_ENGINE_KERNEL)
        rp_set_demote(set, RINGPOLL_REASON_RESTRICTED, -EPERM);
    if (set->waiters > 0 ||
        (rp_set_engine(set) == RINGPOLL_ENGINE_RING && !rp_set_is_mine(set)))
        rp_set_demote(set, RINGPOLL_REASON_WAITERS, 0);
    set->waiters++;
    int result = AGAIN;
    while (result == AGAIN) {
        uint32_t engine = rp_set_engine(set);
        if (engine == RINGPOLL_ENGINE_NEW && set->ring_watches > 0) {
            int error = make_ring(set);
            if (error < 0)
                rp_set_demote(set, error == -EOPNOTSUPP ? RINGPOLL_REASON_OLD_KERNEL : RINGPOLL_REASON_NO_RING, error);
            continue;
        }
        if (engine == RINGPOLL_ENGINE_RING) {
            result = wait_on_ring(set, events, max, timeout, deadline_ns, sigmask);
            continue;
        }
        if (is_ending(set)) {
            result = -EBADF;
            break;
        }
        int fd = epfd;
        if (engine == RINGPOLL_ENGINE_NEW) {
            int error = make_hidden(set);
            if (error < 0) {
                rp_set_demote(set, RINGPOLL_REASON_NO_RING, error);
                continue;
            }
            fd = set->hidden;
        }
        struct timespec left = timeout ? (deadline_ns ? time_left(deadline_ns) : no_time) : no_time;
        rp_set_unlock(set);
        rp_set_end_zombies();
        result = wait_in_kernel(set, fd, events, max, timeout ? &left : NULL, sigmask);
        rp_set_lock(set);
        if (engine == RINGPOLL_ENGINE_NEW && set->wake_sent) {
            /* Demoted meanwhile: what is ours is not the program's. */
            int left_over = 0;
            for (int i = 0; i < result; i++)
                if (events[i].data.ptr != &wake_fd)
                    events[left_over++] = events[i];
            if (result > 0)
                result = left_over > 0 ? left_over : AGAIN;
        }
    }
    set->waiters--;
    if (set->waiters == 0 && rp_set_engine(set) == RINGPOLL_ENGINE_KERNEL && !set->zombie && set->hidden >= 0) {
        if (set->wake_sent && set->hidden_nested)
            take_wake(set);
        set->wake_sent = false;
        close_hidden(set);
    }
    if (result > 0) {
        set->stats.events += (uint64_t)result;
        set->unfit_total += (uint32_t)result;
        if (set->unfit_total >= UNFIT_WINDOW) {
            if (set->unfit_kernel > UNFIT_WINDOW / 4 * 3 && rp_set_engine(set) == RINGPOLL_ENGINE_RING &&
                mostly_kernel_watches(set))
                rp_set_demote(set, RINGPOLL_REASON_UNFIT, 0);
            set->unfit_total = set->unfit_kernel = 0;
        }
    }
    if (is_ending(set) && set->waiters == 0 && !set->zombie && set->ring.fd < 0)
        set_free(set);
    rp_set_unlock(set);
    if (rp_zombies)
        rp_set_end_zombies();
    return result;

kernel:
    result = wait_in_kernel(set, epfd, events, max, timeout, sigmask);
    if (result > 0)
        __atomic_fetch_add(&set->stats.events, (uint64_t)result, __ATOMIC_RELAXED);
    __atomic_fetch_add(&set->stats.waits, 1, __ATOMIC_RELAXED);
    return result;
}

/* ------------------------------------------------------------------ closes */

/* The file outlives its close for a moment: what the peer is to hear of the close
 * goes out now. On TCP a reset where close would send one (SO_LINGER of zero, or
 * unread bytes), which a disconnect does. An AF_UNIX peer hears of an end where
 * unread bytes would have made it a reset: the one thing that differs. */
static void end_connection(int fd, uint8_t kind)
{
    struct linger linger = {0, 0};
    unsigned length = sizeof linger;
    int unread = 0;
    if (kind == RINGPOLL_FD_TCP) {
        rp_sys_getsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, &length);
        rp_sys_call(SYS_ioctl, fd, FIONREAD, (long)&unread, 0, 0, 0);
        if (unread > 0 || (linger.l_onoff && linger.l_linger == 0)) {
            struct sockaddr nowhere = {.sa_family = AF_UNSPEC};
            rp_sys_call(SYS_connect, fd, (long)&nowhere, sizeof nowhere, 0, 0, 0);
            return;
        }
    }
    if (kind == RINGPOLL_FD_TCP || kind == RINGPOLL_FD_UNIX)
        rp_sys_call(SYS_shutdown, fd, SHUT_RDWR, 0, 0, 0, 0);
}

void rp_set_fd_closing(struct rp_set *set, struct rp_watch *watch, struct rp_fd *entry)
{
    uint32_t engine = rp_set_engine(set);
    struct rp_op *op = NULL;

    if (rp_fd_shared(entry) && !watch->deleted)
        set->ghosts = true; /* if it is registered in the hidden instance, or will be in a moment */
    if (watch->home == RP_HOME_KERNEL && !watch->op) {
        set->leftovers -= watch->stays;
        rp_set_forget_watch(set, watch);
        return;
    }
    if (engine == RINGPOLL_ENGINE_KERNEL && watch->disabled && !watch->deleted)
        set->leftovers--;
    if (set->ring.fd < 0) { /* NEW, or a leftover */
        if (engine == RINGPOLL_ENGINE_NEW && rp_fd_shared(entry) && !watch->deleted && !watch->disabled)
            rp_set_move_to_kernel(set, watch);
        rp_set_forget_watch(set, watch);
        return;
    }
    /* Others hold the file: epoll goes on reporting it, under a number that is
     * gone. Kernel epoll can say that, we cannot. */
    if (engine == RINGPOLL_ENGINE_RING && watch->home == RP_HOME_RING && rp_fd_shared(entry) && !watch->deleted &&
        !watch->disabled)
        rp_set_move_to_kernel(set, watch);
    if (rp_set_is_mine(set)) {
        bool armed = watch->op != NULL;
        while (rp_watch_disarm(set, watch, &op) == -EBUSY)
            if (enter_and_reap(set) < 0)
                break;
        /* It may have completed while room was made. */
        rp_set_forget_watch(set, watch);
        if (op) {
            set->stats.cancels_on_close += armed;
            uint32_t generation = op->generation;
            for (int turn = 0; turn < 256 && op->state == RP_OP_ORPHANED && op->generation == generation; turn++)
                if (enter_and_reap(set) < 0)
                    break;
        }
        if (set->owner_inside && (set->ready_count || set->hidden_ready || set->dirty))
            wake_owner(set); /* we are its signal handler, and took its completions */
        return;
    }
    /* Another thread's ring. The record goes to the owner. */
    watch->deleted = true;
    rp_set_dirty(set, watch);
    rp_fd_unlink(entry, watch);
    int fd = watch->fd;
    watch->fd = -1;
    if (!watch->op)
        return;
    set->stats.cancels_on_close++;
    if (set->owner_inside)
        ask_owner(set);
    else if (!rp_fd_shared(entry))
        end_connection(fd, watch->kind);
}

void rp_set_name_closing(struct rp_set *set, int fd)
{
    if (--set->names > 0) {
        if (set->identity != fd)
            return;
        for (unsigned page = 0; page < RP_FD_PAGES; page++)
            for (unsigned i = 0; rp_fd_pages[page] && i < RP_FD_PAGE; i++)
                if (rp_fd_pages[page][i].set == set && (int)(page * RP_FD_PAGE + i) != fd) {
                    set->identity = (int)(page * RP_FD_PAGE + i);
                    return;
                }
        return;
    }
    uint32_t engine = rp_set_engine(set);
    if (engine == RINGPOLL_ENGINE_RING && !rp_set_is_mine(set)) {
        set->zombie = true;
        __atomic_fetch_add(&rp_zombies, 1, __ATOMIC_RELAXED);
        __atomic_store_n(&set->engine, RINGPOLL_ENGINE_KERNEL, __ATOMIC_RELEASE);
        if (set->owner_inside)
            ask_owner(set);
        return;
    }
    if (set->zombie) /* its owner will end it */
        return;
    if (engine == RINGPOLL_ENGINE_RING)
        rp_set_end_ring(set);
    if (set->waiters == 0)
        set_free(set);
}

int ringpoll_demote(int epfd)
{
    struct rp_set *set = rp_set_of(epfd);
    if (!set)
        return rp_sys_fcntl(epfd, 1 /* F_GETFD */, 0) < 0 ? -EBADF : -EINVAL;
    if (rp_set_engine(set) == RINGPOLL_ENGINE_KERNEL || rp_self.locks_held)
        return 0;
    rp_process_check();
    rp_set_lock(set);
    rp_set_demote(set, RINGPOLL_REASON_NESTED, 0);
    rp_set_unlock(set);
    return 0;
}

static bool move_fd(int *at, int number)
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
    *at = copy;
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
    rp_lock(&wake_lock);
    moved = move_fd(&wake_fd, fd);
    rp_unlock(&wake_lock);
    rp_lock(&rp_sets_lock);
    for (struct rp_set *set = rp_sets; set && !moved; set = set->next_set) {
        rp_lock(&set->lock);
        if (set->in_use) {
            bool enters_by_it = set->ring.enter_fd == fd && set->ring.fd == fd;
            moved = move_fd(&set->hidden, fd);
            if (!moved && set->ring.fd == fd && (moved = move_fd(&set->ring.fd, fd)) && enters_by_it)
                set->ring.enter_fd = set->ring.fd;
        }
        rp_unlock(&set->lock);
    }
    rp_unlock(&rp_sets_lock);
    return moved ? 0 : -EBUSY;
}

/* ------------------------------------------------------------------- stats */

int ringpoll_stats(int epfd, struct ringpoll_stats *stats)
{
    struct ringpoll_stats sum = {.size = sizeof sum};
    uint32_t size = stats->size;
    if (size < 16 || size > sizeof sum)
        return -EINVAL;
    if (rp_self.locks_held) /* a signal handler inside our own critical section */
        return -EBUSY;
    if (epfd != -1) {
        struct rp_set *set = rp_set_of(epfd);
        if (!set)
            return rp_sys_fcntl(epfd, 1 /* F_GETFD */, 0) < 0 ? -EBADF : -EINVAL;
        rp_set_lock(set);
        add_stats(&sum, set);
        sum.engine = set->engine;
        sum.reason = set->reason;
        sum.error = set->error;
        sum.sets = 1;
        sum.rings = set->ring.fd >= 0;
        for (struct rp_watch *watch = set->watches; watch; watch = watch->next_of_set)
            if (!watch->deleted)
                *(watch->home == RP_HOME_RING ? &sum.watches_ring : &sum.watches_kernel) += 1;
        rp_set_unlock(set);
    } else {
        rp_lock(&rp_sets_lock);
        rp_lock(&retired_lock);
        sum = rp_stats_retired;
        if (rp_newest_set) {
            sum.engine = rp_newest_set->engine;
            sum.reason = rp_newest_set->reason;
            sum.error = rp_newest_set->error;
        }
        rp_unlock(&retired_lock);
        for (struct rp_set *set = rp_sets; set; set = set->next_set) {
            rp_lock(&set->lock);
            if (set->in_use) {
                add_stats(&sum, set);
                sum.sets++;
                sum.rings += set->ring.fd >= 0;
                for (struct rp_watch *watch = set->watches; watch; watch = watch->next_of_set)
                    if (!watch->deleted)
                        *(watch->home == RP_HOME_RING ? &sum.watches_ring : &sum.watches_kernel) += 1;
            }
            rp_unlock(&set->lock);
        }
        rp_unlock(&rp_sets_lock);
    }
    memcpy(stats, &sum, size);
    stats->size = size;
    return 0;
}
