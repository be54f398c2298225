/* SPDX-License-Identifier: MIT
 *
 * The epoll-shaped set.
 *
 * What it is. The fd that the program holds is a kernel epoll instance, the
 * identity. One of three engines serves the set, and it only moves forward:
 *
 *   NEW ──first wait with something for the ring──→ RING ──demotion──→ KERNEL
 *    │↖──────────RINGPOLL_DECLARED: it does not pay───┘                     │
 *    └───────────────no ring to be had, asked for, demotion────────────────↗
 *
 * KERNEL: the identity has all registrations and every call is passed on to it.
 * NEW, RING: the identity has those that the ring cannot serve exactly (watch.h:
 * HOME_KERNEL), and the ring polls it by a one-shot poll that is armed again with
 * each wait, which looks at it as it does so. It enters it there by a number that
 * no close loop of the program can hit (`hidden`). While NEW, waits go to the
 * identity, until there is a watch for the ring. That a set's kernel epoll is its
 * identity, and not a second instance behind it, is what makes demotion exact: all
 * that only the kernel knows (which edges were reported, which one-shots are
 * disabled, what is registered under a number that is closed) stays as it is, and
 * loops and depths of nesting are the kernel's own.
 *
 * Who owns what. The thread whose wait makes the ring owns it: SQ, CQ, ops,
 * the ready list. All else is under the set's lock, which the owner does not
 * hold while it is inside a blocking enter; `owner_inside` says so.
 *  - Other threads' changes go to the dirty list while the owner is outside, and
 *    to the identity while it is inside: that wakes it.
 *  - A close by another thread needs the owner to cancel. Inside, it is woken,
 *    cancels and says so (`serviced`); outside, the cancel stands in the dirty
 *    list for its next wait and the socket is shut down at once, so that the
 *    peer gets its FIN now.
 *  - A second waiter, a poll or nesting of the identity, a passed identity: the
 *    set is demoted. An owner that is inside is asked to do it. Else whoever finds
 *    that out registers everything in the identity; the ring itself, which only its
 *    owner may touch, is a *zombie* until that thread comes by (any call of the
 *    library, or its end).
 *
 * Waking the owner: an eventfd that is readable for ever (one per process) is
 * put into the identity, and taken out again by the owner.
 *
 * Signal handlers may call what they could call with epoll. One that interrupts
 * a blocking enter finds the set unlocked and the queues whole: it is treated
 * like another thread as far as changes go (the enter may not have begun), and
 * as the owner for cancels. One that interrupts a critical section of its own
 * thread (rp_self.locks_held) leaves a mark on the fd's watches, its stream or
 * the set that it names, and rp_self.deferred; the work is done when the section
 * ends.
 *
 * Where things are: set.h, "between the files of the set".
 */
#include "set.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "probe.h"

struct rp_lock rp_sets_lock;
struct rp_set *rp_sets;
struct rp_set *rp_newest_set;
bool rp_process_no_rings;
uint32_t rp_process_credentials;

static int sets_in_use; /* under rp_wake_lock */

#define DEFAULT_SQ_ENTRIES 256u
#define DEFAULT_CQ_ENTRIES 4096u
/* See stream.c: what is above reads big messages, which are cheaper read at once. */
#define DEFAULT_STREAM_BYTES 8192u
#define DEFAULT_SEND_BYTES 65536u

_Static_assert(offsetof(struct rp_set, left) == 128 && offsetof(struct rp_set, plain_events) < 192, "see set.h");

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
        set->identity = set->hidden = set->ring.fd = set->outer = -1;
        set->unfit_window = RP_UNFIT_FIRST_WINDOW;
        rp_lock(&rp_retired_lock);
        rp_newest_set = set;
        rp_unlock(&rp_retired_lock);
        rp_lock(&rp_wake_lock);
        sets_in_use++;
        rp_unlock(&rp_wake_lock);
    }
    rp_unlock(&rp_sets_lock);
    return set;
}

/* The last of it: everything has been cancelled, no name is left. */
void rp_set_free(struct rp_set *set)
{
    rp_lock(&rp_wake_lock);
    if (--sets_in_use == 0 && rp_wake_fd >= 0) {
        rp_fd_internal(rp_wake_fd, false);
        rp_sys_close(rp_wake_fd);
        rp_wake_fd = -1;
    }
    rp_unlock(&rp_wake_lock);
    rp_lock(&rp_retired_lock);
    rp_stats_add(&rp_stats_retired, set);
    rp_stats_retired.polls_armed = rp_stats_retired.ops_in_flight = rp_stats_retired.adopted = 0;
    if (rp_newest_set == set) {
        rp_stats_retired.engine = rp_stats_engine(set, &rp_stats_retired.reason);
        rp_stats_retired.error = set->error;
        rp_newest_set = NULL;
    }
    rp_unlock(&rp_retired_lock);
    while (set->watches)
        rp_set_forget_watch(set, set->watches);
    rp_stream_to_limbo(set);
    rp_accept_to_limbo(set);
    rp_set_end_outer(set, true);
    rp_set_close_hidden(set);
    rp_set_close_annexes(set);
    rp_request_free_all(set);
    RP_WRITE_ONCE(set->owner, 0);
    set->in_use = false;
}

void rp_set_link_watch(struct rp_set *set, struct rp_watch *watch, struct rp_fd *entry)
{
    watch->prev_of_set = NULL;
    watch->next_of_set = set->watches;
    if (set->watches)
        set->watches->prev_of_set = watch;
    set->watches = watch;
    if (watch->home == RP_HOME_RING)
        set->ring_watches++;
    __atomic_store_n(&watch->set, set, __ATOMIC_RELEASE);
    rp_fd_link(entry, watch);
}

void rp_set_undirty(struct rp_set *set, struct rp_watch *watch)
{
    if (!watch->dirty)
        return;
    if (watch->prev_dirty)
        watch->prev_dirty->next_dirty = watch->next_dirty;
    else
        RP_WRITE_ONCE(set->dirty, watch->next_dirty);
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
        RP_WRITE_ONCE(set->dirty, watch);
    set->dirty_tail = watch;
}

/* Takes the record out of everything and recycles it. Its op, if any, has been
 * orphaned. Owner thread, or no ring. */
void rp_set_forget_watch(struct rp_set *set, struct rp_watch *watch)
{
    rp_set_undirty(set, watch);
    rp_watch_to_idle(set, watch);
    rp_stream_unwatch(set, watch);
    if (set->flags & RINGPOLL_ACCEPT)
        rp_accept_unwatch(set, watch);
    rp_left_forget(set, watch);
    if (watch->prev_of_set)
        watch->prev_of_set->next_of_set = watch->next_of_set;
    else
        set->watches = watch->next_of_set;
    if (watch->next_of_set)
        watch->next_of_set->prev_of_set = watch->prev_of_set;
    if (watch->home == RP_HOME_RING)
        set->ring_watches--;
    set->returning -= watch->returns;
    if (watch->fd >= 0) {
        struct rp_fd *entry = rp_fd_peek(watch->fd);
        if (entry)
            rp_fd_unlink(entry, watch);
    }
    rp_watch_release(watch);
}

void rp_set_forget_watches(struct rp_set *set)
{
    for (struct rp_watch *watch = set->watches, *next; watch; watch = next) {
        next = watch->next_of_set;
        if ((!watch->disabled && !watch->left) || watch->deleted)
            rp_set_forget_watch(set, watch);
    }
}

/* The record of fd in this set: the live one, else a deleted one that awaits
 * its disarming. */
struct rp_watch *rp_set_find(struct rp_set *set, int fd)
{
    struct rp_fd *entry = rp_fd_peek(fd);
    struct rp_watch *found = NULL, *first = entry ? __atomic_load_n(&entry->watches, __ATOMIC_ACQUIRE) : NULL;
    /* Ours come and go under the lock that the caller has: one that is found is there. */
    if (!first || (__atomic_load_n(&first->set, __ATOMIC_ACQUIRE) == set && !RP_READ_ONCE(first->deleted)))
        return first;
    rp_lock(&rp_fdtab_lock);
    for (struct rp_watch *watch = entry->watches; watch; watch = watch->next_of_fd)
        if (watch->set == set && (!found || found->deleted))
            found = watch;
    rp_unlock(&rp_fdtab_lock);
    return found;
}

int rp_set_make_hidden(struct rp_set *set)
{
    if (set->hidden >= 0)
        return 0;
    int fd = rp_sys_fcntl(set->identity, 1030 /* F_DUPFD_CLOEXEC */, 3);
    if (fd >= 0)
        fd = rp_sys_dup_high(fd);
    if (fd < 0)
        return fd;
    rp_fd_internal(fd, true);
    RP_WRITE_ONCE(set->hidden, fd);
    return 0;
}

int rp_set_kernel_ctl(struct rp_set *set, int epfd, int op, int fd, struct epoll_event *event)
{
    RP_COUNT(set->stats.kernel_ctls, 1);
    for (unsigned i = 0; i < set->annex_count && fd != rp_wake_fd; i++) {
        if (op == EPOLL_CTL_ADD) {
            if (rp_set_has_registered(set, set->annexes[i], fd))
                return -EEXIST;
            continue;
        }
        int result = rp_sys_epoll_ctl(set->annexes[i], op, fd, event);
        if (result != -ENOENT)
            return result;
    }
    return rp_sys_epoll_ctl(epfd, op, fd, event);
}

char rp_annex_mark;

void rp_set_close_annexes(struct rp_set *set)
{
    for (unsigned i = 0; i < set->annex_count; i++) {
        rp_fd_internal(set->annexes[i], false);
        rp_sys_close(set->annexes[i]);
    }
    RP_WRITE_ONCE(set->annex_count, 0);
}

void rp_set_close_hidden(struct rp_set *set)
{
    if (set->hidden < 0)
        return;
    rp_fd_internal(set->hidden, false);
    rp_sys_close(set->hidden);
    RP_WRITE_ONCE(set->hidden, -1);
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
    if (options.flags & RINGPOLL_FIXED_FILES)
        options.flags |= RINGPOLL_BATCH;
    if (options.flags & (RINGPOLL_BATCH | RINGPOLL_ACCEPT))
        options.flags |= RINGPOLL_ADOPT;
    if ((options.flags & RINGPOLL_ADOPT) && !(options.flags & RINGPOLL_DECLARED))
        options.flags |= RINGPOLL_TRACKED;
    if (options.buffers > 32768 || (options.buffers & (options.buffers - 1)) || (options.buffers && options.buffers < 8))
        return -EINVAL;
    if (options.send_bytes > 1u << 24)
        return -EINVAL;
    uint32_t known = RINGPOLL_CLOEXEC | RINGPOLL_KERNEL | RINGPOLL_REQUIRE | RINGPOLL_TRACKED | RINGPOLL_ANY_RING |
                     RINGPOLL_SQPOLL | RINGPOLL_SQ_AFF | RINGPOLL_ADOPT | RINGPOLL_BATCH | RINGPOLL_ACCEPT |
                     RINGPOLL_FIXED_FILES | RINGPOLL_DECLARED;
    if (options.flags & ~known)
        return -EINVAL;
    if ((options.flags & RINGPOLL_DECLARED) &&
        (!(options.flags & RINGPOLL_ADOPT) || (options.flags & RINGPOLL_TRACKED)))
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
    int refused = rp_ring_refusal();
    if (!kernel && (refused || !(ring_options.features & RINGPOLL_FEATURE_URING))) {
        kernel = true;
        reason = RINGPOLL_REASON_NO_RING;
        error = refused ? refused : -ENOSYS;
    }
    if (!kernel && RP_READ_ONCE(rp_process_no_rings)) {
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
    rp_lock(&set->lock); /* it stands in the list of all sets */
    set->flags = options.flags;
    set->buffer_count = options.buffers;
    set->send_limit = options.send_bytes ? (options.send_bytes + 4095u) & ~4095u : DEFAULT_SEND_BYTES;
    set->stream_bytes = options.stream_bytes ? options.stream_bytes : DEFAULT_STREAM_BYTES;
    set->ring_options = ring_options;
    set->identity = fd;
    set->names = 1;
    set->reason = reason;
    set->error = error;
    __atomic_store_n(&set->engine, kernel ? RINGPOLL_ENGINE_KERNEL : RINGPOLL_ENGINE_NEW, __ATOMIC_RELEASE);
    rp_unlock(&set->lock);
    rp_process_made_set();
    if (options.flags & RINGPOLL_REQUIRE) {
        /* Made to see whether it can be, and kept for the first wait. */
        error = rp_set_try_ring(set);
        if (error < 0) {
            rp_lock(&set->lock);
            rp_set_free(set);
            rp_unlock(&set->lock);
            rp_sys_close(fd);
            return error;
        }
    }
    rp_fd_opened(fd, RP_FD_KNOWN);
    __atomic_store_n(&entry->set, set, __ATOMIC_RELEASE);
    return fd;
}
