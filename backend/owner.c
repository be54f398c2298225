/* SPDX-License-Identifier: MIT
 *
 * The thread that owns a ring: how it gets the ring, keeps it, is woken inside a
 * wait by others, and ends it. Who owns what stands in set.c.
 */
#include "set.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>

#include "probe.h"

unsigned rp_zombies;
int rp_wake_fd = -1;
struct rp_lock rp_wake_lock;

static pthread_key_t thread_key;
static pthread_once_t thread_key_once = PTHREAD_ONCE_INIT;
static bool thread_key_made;
static int ring_refused; /* the negative errno of a kernel that gives no rings, or 0 */
static void end_kept_rings(void);

/* -------------------------------------------------------------- the thread */

/* A thread ends: its rings must not outlive it with polls in flight (they would
 * complete with ECANCELED at best), and nobody else may touch them. */
static void thread_ends(void *unused)
{
    (void)unused;
    rp_lock(&rp_sets_lock);
    for (struct rp_set *set = rp_sets; set; set = set->next_set) {
        rp_lock(&set->lock);
        if (set->in_use && rp_set_is_mine(set)) {
            set->owner_inside = false; /* left by siglongjmp, if at all */
            if (rp_set_engine(set) == RINGPOLL_ENGINE_RING)
                rp_set_demote(set, RINGPOLL_REASON_WAITERS, 0);
        }
        rp_unlock(&set->lock);
    }
    rp_unlock(&rp_sets_lock);
    rp_set_end_zombies();
    rp_loan_end_all();
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

/* --------------------------------------------------------------- kept rings
 *
 * When a ring's file goes, the kernel sends the thread that used it a work item
 * 13 to 20 ms later (io_tctx_exit_cb), and whatever the thread waits in then
 * returns EINTR without a signal: epoll_wait, io_uring_enter, a recv with a
 * timeout. So a ring that is empty is kept for the thread's next set, and ends with
 * the thread. As a registered ring without an fd of its own, while the thread has
 * slots for that, which are 16; then with the fd that it had. A thread never keeps
 * more than it once had sets at a time. */

#define KEPT_RINGS_A_THREAD 64u

struct kept {
    struct kept *next; /* never unlinked */
    uint64_t owner;    /* 0: free */
    struct rp_ring ring;
    struct rp_ring_options options;
};

static struct kept *kept;
static struct rp_lock kept_lock; /* leaf */

static bool same_options(const struct rp_ring_options *a, const struct rp_ring_options *b)
{
    return a->sq_entries == b->sq_entries && a->cq_entries == b->cq_entries && a->features == b->features &&
           a->sqpoll == b->sqpoll &&
           (!a->sqpoll || (a->sq_aff == b->sq_aff && a->sq_thread_cpu == b->sq_thread_cpu &&
                           a->sq_thread_idle_ms == b->sq_thread_idle_ms && a->credentials == b->credentials));
}

/* The kernel's thread of such a ring goes on with them. */
static bool has_old_credentials(const struct rp_ring_options *options)
{
    return options->sqpoll && options->credentials != RP_READ_ONCE(rp_process_credentials);
}

/* One to keep a ring of this thread in; locked. */
static struct kept *place_to_keep(void)
{
    struct kept *place = NULL;
    unsigned mine = 0;
    for (struct kept *one = kept; one; one = one->next) {
        mine += one->owner == rp_self_id();
        if (one->owner == 0)
            place = one;
    }
    if (mine >= KEPT_RINGS_A_THREAD)
        return NULL;
    if (!place && (place = rp_sys_pages(sizeof *place)) != NULL) {
        place->next = kept;
        kept = place;
    }
    return place;
}

bool rp_set_keep_ring(struct rp_ring *ring, const struct rp_ring_options *options, bool with_fd)
{
    if (rp_ring_queued(ring) > 0 || RP_READ_ONCE(rp_process_no_rings) || !thread_key_made ||
        has_old_credentials(options))
        return false;
    if (ring->fd != RP_RING_NO_FD && !with_fd && ring->enter_fd == ring->fd)
        rp_ring_register_fd(ring);
    if (ring->enter_fd == ring->fd) /* no slot is left */
        with_fd = true;
    rp_lock(&kept_lock);
    struct kept *place = place_to_keep();
    if (place) {
        place->options = *options;
        place->ring = *ring;
        if (ring->fd != RP_RING_NO_FD && with_fd) {
            rp_fd_internal(ring->fd, true);
        } else if (ring->fd != RP_RING_NO_FD) {
            rp_fd_internal(ring->fd, false);
            rp_sys_close(ring->fd);
            place->ring.fd = RP_RING_NO_FD;
        }
        place->ring.enters = place->ring.sqes_submitted = place->ring.cqes_reaped = place->ring.overflows = 0;
        RP_WRITE_ONCE(place->owner, rp_self_id());
    }
    rp_unlock(&kept_lock);
    return place != NULL;
}

static void end_kept_ring(struct kept *one)
{
    if (one->ring.fd != RP_RING_NO_FD)
        rp_fd_internal(one->ring.fd, false);
    rp_ring_fini(&one->ring);
    one->owner = 0;
}

static bool take_kept_ring(struct rp_set *set)
{
    bool found = false;
    rp_lock(&kept_lock);
    for (struct kept *one = kept; one; one = one->next) {
        if (one->owner != rp_self_id())
            continue;
        if (has_old_credentials(&one->options)) {
            end_kept_ring(one);
        } else if (!found && same_options(&one->options, &set->ring_options)) {
            set->ring = one->ring;
            one->owner = 0;
            found = true;
        }
    }
    rp_unlock(&kept_lock);
    return found;
}

static void end_kept_rings(void)
{
    rp_lock(&kept_lock);
    for (struct kept *one = kept; one; one = one->next)
        if (one->owner == rp_self.id)
            end_kept_ring(one);
    rp_unlock(&kept_lock);
}

/* In a fork's child: they are the parent's, and so is their memory. */
void rp_set_forget_kept_rings(void)
{
    kept_lock.word = rp_wake_lock.word = rp_retired_lock.word = 0;
    for (struct kept *one = kept; one; one = one->next) {
        if (one->owner && one->ring.fd != RP_RING_NO_FD)
            rp_sys_close(one->ring.fd);
        one->owner = 0;
    }
}

/* ----------------------------------------------------------- waking the owner */

/* Makes the identity readable, or no longer so: with an eventfd that always is, one
 * per process. */
void rp_set_raise(struct rp_set *set)
{
    if (set->raised)
        return;
    rp_lock(&rp_wake_lock);
    if (rp_wake_fd < 0) {
        int fd = rp_sys_eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
        if (fd >= 0)
            fd = rp_sys_dup_high(fd);
        if (fd >= 0)
            rp_fd_internal(fd, true);
        rp_wake_fd = fd;
    }
    rp_unlock(&rp_wake_lock);
    struct epoll_event event = {.events = EPOLLIN, .data = rp_set_mark(set)};
    set->raised =
        rp_wake_fd >= 0 && rp_set_kernel_ctl(set, rp_set_kernel_fd(set), EPOLL_CTL_ADD, rp_wake_fd, &event) == 0;
}

void rp_set_lower(struct rp_set *set)
{
    if (!set->raised || set->wake_sent || set->left_told || set->requested.told)
        return;
    rp_set_kernel_ctl(set, rp_set_kernel_fd(set), EPOLL_CTL_DEL, rp_wake_fd, NULL);
    set->raised = false;
}

void rp_set_wake_owner(struct rp_set *set)
{
    if (set->wake_sent || set->hidden < 0)
        return;
    rp_set_raise(set);
    set->wake_sent = set->raised;
}

/* The owner, back outside: first of all. */
void rp_set_take_wake(struct rp_set *set)
{
    set->wake_sent = false;
    rp_set_lower(set);
}

void rp_set_say_serviced(struct rp_set *set)
{
    __atomic_fetch_add(&set->serviced, 1, __ATOMIC_RELEASE);
    rp_sys_futex_wake_all(&set->serviced);
}

/* An owner that is inside answers within microseconds. One that does not answer
 * at all has left its wait by siglongjmp, or stays in a signal handler. */
#define PATIENCE_S 1

/* Another thread asks the owner, which is inside, to flush and enter; returns true
 * when it has. Drops the lock meanwhile. False: it cannot be woken (no fd is left
 * for that), or it does not come; it will find the request when it does. */
bool rp_set_ask_owner(struct rp_set *set)
{
    uint32_t before = __atomic_load_n(&set->serviced, __ATOMIC_ACQUIRE);
    set->requests = true;
    rp_set_wake_owner(set);
    if (!set->wake_sent)
        return false;
    rp_set_unlock(set);
    bool in_time = true;
    while (in_time && __atomic_load_n(&set->serviced, __ATOMIC_ACQUIRE) == before)
        in_time = rp_sys_futex_wait_for(&set->serviced, before, PATIENCE_S);
    rp_set_lock(set);
    if (in_time || __atomic_load_n(&set->serviced, __ATOMIC_ACQUIRE) != before)
        return true;
    /* Outside, for all that others have to know: should it be inside after all, it
     * is on its way out, since the wake fd stays until it takes it. */
    set->owner_inside = false;
    return false;
}

/* ------------------------------------------------------------------ the ring */

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
    set->ring_options.credentials = RP_READ_ONCE(rp_process_credentials);
    struct rp_ring_options options = set->ring_options;
    if (!fits_sets(options.features, set->flags) || RP_READ_ONCE(unfit))
        return -EOPNOTSUPP;
    pthread_once(&thread_key_once, make_thread_key);
    if (take_kept_ring(set))
        return 0;
    options.single_thread = rp_single_threaded();
    int error = rp_ring_init(&set->ring, &options);
    if (error == -ENOSYS || error == -EPERM || error == -EACCES)
        RP_WRITE_ONCE(ring_refused, error); /* it will say so for ever */
    if (error < 0)
        return error;
    set->stats.rings_made++;
    if (!fits_sets(set->ring.features, set->flags)) {
        rp_ring_fini(&set->ring);
        if (!(set->flags & (RINGPOLL_ANY_RING | RINGPOLL_SQPOLL)))
            RP_WRITE_ONCE(unfit, true);
        await_late_interrupt();
        return -EOPNOTSUPP;
    }
    return 0;
}

int rp_ring_refusal(void)
{
    return RP_READ_ONCE(ring_refused);
}

int rp_set_try_ring(struct rp_set *set)
{
    int error = get_ring(set);
    if (error == 0 && !rp_set_keep_ring(&set->ring, &set->ring_options, true))
        rp_ring_fini(&set->ring);
    memset(&set->ring, 0, sizeof set->ring);
    set->ring.fd = -1;
    return error;
}

int rp_set_make_ring(struct rp_set *set)
{
    int error = rp_set_make_hidden(set);
    if (error == 0)
        error = get_ring(set);
    if (error < 0)
        return error;
    uint64_t tells = RINGPOLL_FEATURE_DEFER | RINGPOLL_FEATURE_TASKRUN_FLAG;
    set->tells = (set->ring.features & tells) == tells;
    uint64_t receives = RINGPOLL_FEATURE_DEFER | RINGPOLL_FEATURE_MULTISHOT_RECV;
    if ((set->flags & RINGPOLL_ADOPT) && (set->ring.features & receives) == receives &&
        (set->ring_options.features & RINGPOLL_FEATURE_RECV_END) && rp_probe_recv_end(&set->ring))
        set->ring.features |= RINGPOLL_FEATURE_RECV_END;
    rp_fd_internal(set->ring.fd, true);
    rp_op_table_init(&set->ops);
    RP_WRITE_ONCE(set->owner, rp_self_id());
    if (thread_key_made)
        pthread_setspecific(thread_key, set);
    __atomic_store_n(&set->engine, RINGPOLL_ENGINE_RING, __ATOMIC_RELEASE);
    set->unfit_window = RP_UNFIT_FIRST_WINDOW;
    set->unfit_total = set->unfit_kernel = set->away_for = 0;
    set->judged = set->judged_single = set->judged_mods = set->alone_left = 0;
    set->judged_saved = set->stats.calls_saved;
    if (set->returning > 0)
        rp_set_return_watches(set);
    for (struct rp_watch *watch = set->watches; watch; watch = watch->next_of_set)
        if (watch->home == RP_HOME_RING)
            rp_set_dirty(set, watch);
    return 0;
}

/* An idle thread's registration would keep a closed ring alive. And a pipe that is
 * closed by another thread must tell its other end at once, which only a cancel by
 * us could do and no shutdown can: pipes are kernel epoll's in such a process. */
void rp_set_has_company(struct rp_set *set)
{
    struct rp_ring *ring = &set->ring;
    set->in_company = true;
    if (ring->enter_fd != ring->fd && ring->fd != RP_RING_NO_FD)
        rp_ring_unregister_fd(ring);
    for (struct rp_watch *watch = set->watches; watch; watch = watch->next_of_set)
        if (watch->kind == RINGPOLL_FD_PIPE)
            rp_set_leave_ring(set, watch, false);
}

/* Cancels all and waits for all, then unmaps: the order that frees files, and
 * so listeners' ports and peers' FINs, at once. */
void rp_set_end_ring(struct rp_set *set)
{
    struct rp_ring *ring = &set->ring;
    rp_request_end_all(set);
    if (ring->fd < 0)
        return;
    rp_set_end_outer(set, false);
    rp_stream_end_all(set);
    rp_accept_end_all(set);
    for (struct rp_stream *stream = set->streams, *next_stream; stream; stream = next_stream) {
        next_stream = stream->next;
        if (!rp_send_is_idle(&stream->send)) {
            rp_send_end(set, stream);
            rp_stream_send_over(set, stream);
        }
    }
    for (struct rp_watch *watch = set->watches; watch; watch = watch->next_of_set)
        while (rp_watch_disarm(set, watch, NULL) == -EBUSY)
            if (rp_set_enter_and_reap(set) < 0)
                break;
    if (set->hidden_op && set->hidden_armed && !rp_op_cancel(&set->ops, ring, set->hidden_op, RP_OP_ORPHANED) &&
        rp_set_enter_and_reap(set) == 0 && set->hidden_op)
        (void)rp_op_cancel(&set->ops, ring, set->hidden_op, RP_OP_ORPHANED);
    set->hidden_op = NULL;
    set->hidden_armed = set->hidden_ready = false;
    for (int turns = 0; turns < 4096 && rp_op_busy(&set->ops) > set->loans; turns++)
        if (rp_set_enter_and_reap(set) < 0)
            break;
    (void)rp_set_await_orphans(set, 1); /* there are none; their files are free then */
    rp_stream_abandon_receives(set);
    rp_stream_keep_pool(set);
    rp_buffers_fini(&set->buffers, ring);
    rp_files_fini(&set->files, ring);
    rp_send_arena_free(set);
    for (struct rp_watch *watch = set->watches; watch; watch = watch->next_of_set) {
        rp_watch_to_idle(set, watch);
        watch->quiet = watch->single = false;
        watch->op = NULL; /* of a ring that broke: its table goes */
        watch->armed = 0;
        watch->armed_oneshot = false;
    }
    set->stats.enters += ring->enters;
    set->stats.sqes += ring->sqes_submitted;
    set->stats.cqes += ring->cqes_reaped;
    set->stats.cq_overflows += ring->overflows;
    set->stats.stale_cqes += set->ops.stale;
    bool lingers = set->loans > 0 && rp_loan_linger(set);
    if (!lingers && (rp_op_busy(&set->ops) > 0 || !rp_set_keep_ring(ring, &set->ring_options, false))) {
        if (ring->fd != RP_RING_NO_FD)
            rp_fd_internal(ring->fd, false);
        rp_ring_fini(ring); /* closing RP_RING_NO_FD is EBADF, and nothing else */
    }
    memset(ring, 0, sizeof *ring);
    ring->fd = -1;
    rp_op_table_fini(&set->ops);
    RP_WRITE_ONCE(set->zombie, false);
}

void rp_set_end_zombies(void)
{
    if (RP_READ_ONCE(rp_zombies) == 0 || rp_self.locks_held)
        return;
    rp_lock(&rp_sets_lock);
    for (struct rp_set *set = rp_sets; set; set = set->next_set) {
        rp_lock(&set->lock);
        if (set->in_use && set->zombie && rp_set_is_mine(set) && !set->owner_inside) {
            __atomic_fetch_sub(&rp_zombies, 1, __ATOMIC_RELAXED);
            rp_set_end_ring(set);
            rp_request_tell(set);
            rp_left_note_all(set);
            rp_set_forget_watches(set);
            if (set->waiters == 0)
                rp_set_close_hidden(set);
            if (rp_set_is_ending(set))
                rp_set_free(set);
        }
        rp_unlock(&set->lock);
    }
    rp_unlock(&rp_sets_lock);
}
