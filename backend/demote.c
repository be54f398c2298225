/* SPDX-License-Identifier: MIT
 *
 * From the ring to kernel epoll: one watch, or a set as a whole and for good;
 * and what a fork's child does with the set of its parent.
 */
#include "set.h"

#include <errno.h>
#include <string.h>
#include <sys/syscall.h>

static const struct timespec no_time = {0, 0};

/* ---------------------------------------------------------------- one watch */

/* The edge-triggered watch has reported what there is. */
static bool is_spent_edge(const struct rp_watch *watch)
{
    return watch->home == RP_HOME_RING && rp_watch_is_edge(watch) && !(watch->events & EPOLLONESHOT) &&
           RP_READ_ONCE(watch->ready) == RP_READY_IDLE &&
           (rp_watch_in_flight(watch) || rp_stream_is_armed(watch->stream)) && !watch->dirty;
}

/* Nothing has happened that the ring has not told us. */
static bool ring_is_quiet(struct rp_set *set)
{
    return set->ring.fd >= 0 && (set->ring.features & RINGPOLL_FEATURE_TASKRUN_FLAG) &&
           !rp_ring_wants_enter(&set->ring) && !rp_ring_peek(&set->ring);
}

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
    if (rp_set_enter_and_reap(set) < 0 || watch->ready != RP_READY_IDLE)
        rp_sys_epoll_ctl(set->hidden, EPOLL_CTL_MOD, watch->fd, event);
}

int rp_set_move_to_kernel(struct rp_set *set, struct rp_watch *watch)
{
    if (watch->home == RP_HOME_KERNEL)
        return 0;
    int error = rp_set_make_hidden(set);
    if (error < 0)
        return error;
    struct epoll_event event = {.events = watch->events, .data = watch->data};
    if (watch->stream && rp_set_is_mine(set))
        rp_stream_end_receive(set, watch->stream);
    bool spent = is_spent_edge(watch) && ring_is_quiet(set);
    error = rp_set_kernel_ctl(set, set->hidden, EPOLL_CTL_ADD, watch->fd, &event);
    if (error < 0)
        return error;
    if (spent)
        swallow_edge(set, watch, &event);
    set->stats.handovers++;
    RP_WRITE_ONCE(watch->home, RP_HOME_KERNEL);
    set->ring_watches--;
    watch->disabled = false;
    rp_watch_to_idle(set, watch);
    watch->quiet = watch->single = false;
    rp_set_note_left(set, watch);
    rp_set_dirty(set, watch);
    return 0;
}

/* ------------------------------------------------------------------ the set */

/* The identity's file is shared with the process that we were forked from:
 * every name gets a kernel epoll instance of our own. */
static void replace_identity(struct rp_set *set)
{
    int fresh = rp_sys_epoll_create1(EPOLL_CLOEXEC);
    if (fresh < 0)
        return;
    unsigned seen = 0;
    for (unsigned page = 0; page < RP_FD_PAGES && seen < set->names; page++) {
        struct rp_fd *entries = __atomic_load_n(&rp_fd_pages[page], __ATOMIC_ACQUIRE);
        if (!entries)
            continue;
        for (unsigned i = 0; i < RP_FD_PAGE; i++) {
            if (RP_READ_ONCE(entries[i].set) != set)
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
    rp_set_kernel_ctl(set, set->identity, EPOLL_CTL_ADD, watch->fd, &event);
}

static void move_all(struct rp_set *set, uint32_t reason)
{
    /* What an edge-triggered watch of the hidden instance has reported only the
     * kernel knows: those stay there, and that instance is nested in the identity
     * (unless the identity shall serve another process, or there was no report). */
    bool may_stay = reason != RINGPOLL_REASON_SHARED && reason != RINGPOLL_REASON_FORK && !set->identity_foreign;
    bool nest = set->ghosts;
    if (rp_set_engine(set) == RINGPOLL_ENGINE_NEW && RP_READ_ONCE(set->stats.events) == 0)
        may_stay = false;
    for (struct rp_watch *watch = set->watches; watch && may_stay; watch = watch->next_of_set)
        if (watch->home == RP_HOME_KERNEL && !watch->deleted && (watch->events & EPOLLET))
            watch->stays = nest = true;

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
                    rp_set_kernel_ctl(set, set->identity, EPOLL_CTL_MOD, watch->fd, &event);
                }
    }
    for (struct rp_watch *watch = set->watches; watch; watch = watch->next_of_set) {
        if (watch->deleted)
            continue;
        if (watch->stays) {
            RP_COUNT(set->leftovers, 1);
            continue;
        }
        if (watch->home == RP_HOME_KERNEL && (watch->events & EPOLLONESHOT) && hidden_disabled(set, watch))
            watch->disabled = true;
        if (nest && watch->home == RP_HOME_KERNEL)
            rp_sys_epoll_ctl(set->hidden, EPOLL_CTL_DEL, watch->fd, NULL);
        if (watch->disabled) {
            RP_COUNT(set->leftovers, 1);
            continue;
        }
        if (!quiet || !is_spent_edge(watch))
            add_to_identity(set, watch);
    }
    /* Registrations whose number is closed can be moved by nobody. They stay in
     * the hidden instance, and that is nested in the identity. */
    if (nest && set->hidden >= 0) {
        struct epoll_event event = {.events = EPOLLIN, .data = {.ptr = set}};
        bool nested = rp_set_kernel_ctl(set, set->identity, EPOLL_CTL_ADD, set->hidden, &event) == 0;
        RP_WRITE_ONCE(set->hidden_nested, nested);
    }
}

void rp_set_unnest(struct rp_set *set)
{
    if (!set->hidden_nested || set->identity_foreign)
        return;
    for (struct rp_watch *watch = set->watches, *next; watch; watch = next) {
        next = watch->next_of_set;
        if (!watch->stays || watch->deleted)
            continue;
        watch->stays = false;
        watch->disabled = (watch->events & EPOLLONESHOT) && hidden_disabled(set, watch);
        rp_set_kernel_ctl(set, set->hidden, EPOLL_CTL_DEL, watch->fd, NULL);
        if (watch->disabled)
            continue;
        add_to_identity(set, watch);
        RP_WRITE_ONCE(set->leftovers, set->leftovers - 1);
        if (!set->zombie)
            rp_set_forget_watch(set, watch);
    }
    /* Its fd stays: another thread's wait may be about to look into it. */
    if (!set->ghosts)
        rp_set_kernel_ctl(set, set->identity, EPOLL_CTL_DEL, set->hidden, NULL);
}

void rp_set_demote(struct rp_set *set, uint32_t reason, int error)
{
    if (set->inherited)
        rp_set_adopt_inherited(set);
    uint32_t engine = rp_set_engine(set);
    if (engine == RINGPOLL_ENGINE_KERNEL)
        return;
    bool mine = engine == RINGPOLL_ENGINE_NEW || rp_set_is_mine(set);
    bool ends_now = mine && !set->owner_inside;
    if (set->identity_foreign)
        replace_identity(set);
    /* What is on its way to us tells fresh edges from spent ones. */
    if (engine == RINGPOLL_ENGINE_RING && ends_now && error == 0)
        (void)rp_set_enter_and_reap(set);
    move_all(set, reason);
    set->reason = reason;
    set->error = error;
    set->stats.demotions++;
    if (!ends_now) { /* before the engine: the owner looks at both without the lock */
        RP_WRITE_ONCE(set->zombie, true);
        __atomic_fetch_add(&rp_zombies, 1, __ATOMIC_RELAXED);
    }
    __atomic_store_n(&set->engine, RINGPOLL_ENGINE_KERNEL, __ATOMIC_RELEASE);
    if (ends_now) {
        rp_set_end_ring(set);
        rp_set_note_all_left(set);
        for (struct rp_watch *watch = set->watches, *next; watch; watch = next) {
            next = watch->next_of_set;
            if ((!watch->disabled && !watch->stays && !watch->left) || watch->deleted)
                rp_set_forget_watch(set, watch);
        }
        /* A wait that began while NEW sits in the hidden instance: out with it. */
        if (set->waiters > 0)
            rp_set_wake_owner(set);
        else
            rp_set_close_hidden(set);
        return;
    }
    if (set->owner_inside) {
        if (mine)
            rp_set_wake_owner(set); /* a signal handler: the wait ends by itself */
        else
            rp_set_ask_owner(set);
    }
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
        RP_WRITE_ONCE(set->zombie, false);
        __atomic_fetch_sub(&rp_zombies, 1, __ATOMIC_RELAXED);
    }
    rp_stream_after_fork(set);
    rp_buffers_abandon(&set->buffers);
    for (struct rp_watch *watch = set->watches, *next; watch; watch = next) {
        next = watch->next_of_set;
        rp_watch_to_idle(set, watch);
        watch->op = NULL;
        watch->armed = 0;
        watch->armed_oneshot = watch->quiet = watch->single = false;
        if (watch->deleted || (engine == RINGPOLL_ENGINE_KERNEL && !watch->disabled && !watch->left))
            rp_set_forget_watch(set, watch);
    }
    set->left_told = false;
    set->hidden_op = NULL;
    set->hidden_armed = set->hidden_ready = set->wake_sent = set->owner_inside = set->requests = false;
    set->waiters = 0;
    set->serviced = 0;
    RP_WRITE_ONCE(set->owner, 0);
    set->identity_foreign = true;
    if (engine != RINGPOLL_ENGINE_KERNEL)
        set->inherited = true;
    else
        rp_set_close_hidden(set);
}

void rp_set_adopt_inherited(struct rp_set *set)
{
    set->inherited = false;
    bool had_ring = rp_set_engine(set) == RINGPOLL_ENGINE_RING;
    int parents = set->hidden;
    if (parents >= 0 && !had_ring) {
        /* NEW: the child may yet have a ring of its own. */
        RP_WRITE_ONCE(set->hidden, -1);
        if (rp_set_make_hidden(set) == 0) {
            for (struct rp_watch *watch = set->watches; watch; watch = watch->next_of_set) {
                struct epoll_event event = {.events = watch->events, .data = watch->data};
                if (watch->home == RP_HOME_KERNEL)
                    rp_set_kernel_ctl(set, set->hidden, EPOLL_CTL_ADD, watch->fd, &event);
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
