/* SPDX-License-Identifier: MIT
 *
 * Bytes that outlive their place: states, list and owner stand in left.h.
 */
#include "left.h"

#include "set.h"

static const struct timespec no_time = {0, 0};

/* -------------------------------------------------------------------- what is there */

uint32_t rp_left_bits_at(int fd)
{
    struct rp_fd *entry = rp_fd_peek(fd);
    if (!entry)
        return 0;
    return rp_stream_bits(__atomic_load_n(&entry->stream, __ATOMIC_RELAXED)) |
           (rp_fd_flags(entry) & RP_FD_LISTENER ? rp_accept_bits(fd) : 0);
}

static uint32_t bits_of(const struct rp_watch *watch)
{
    const struct rp_stream *ghost = watch->ghost;
    if (!ghost)
        return rp_left_bits_at(watch->fd);
    return RP_READ_ONCE(ghost->serial) == watch->ghost_serial && RP_READ_ONCE(ghost->state) != RP_STREAM_FREE
               ? rp_stream_bits(ghost) : 0;
}

/* The registration can report something at all. */
static bool is_enabled(const struct rp_watch *watch)
{
    return !watch->deleted && !watch->disabled;
}

uint32_t rp_left_news(const struct rp_watch *watch)
{
    return watch->left == RP_LEFT_NEWS && is_enabled(watch) ? bits_of(watch) & rp_watch_interest(watch) : 0;
}

/* ------------------------------------------------------------------- the list */

static void link_last(struct rp_set *set, struct rp_watch *watch)
{
    watch->next_left = NULL;
    watch->prev_left = set->left ? set->left_tail : NULL;
    if (set->left)
        set->left_tail->next_left = watch;
    else
        RP_WRITE_ONCE(set->left, watch);
    set->left_tail = watch;
}

static void unlink_left(struct rp_set *set, struct rp_watch *watch)
{
    if (watch->prev_left)
        watch->prev_left->next_left = watch->next_left;
    else
        RP_WRITE_ONCE(set->left, watch->next_left);
    if (watch->next_left)
        watch->next_left->prev_left = watch->prev_left;
    else
        set->left_tail = watch->prev_left;
    watch->next_left = watch->prev_left = NULL;
}

static void tell(struct rp_set *set, bool on)
{
    set->left_told = on;
    if (on)
        rp_set_raise(set);
    else
        rp_set_lower(set);
}

static bool any_news(const struct rp_set *set)
{
    for (const struct rp_watch *watch = set->left; watch; watch = watch->next_left)
        if (rp_left_news(watch))
            return true;
    return false;
}

void rp_left_settle(struct rp_set *set)
{
    tell(set, any_news(set));
}

void rp_left_note(struct rp_set *set, struct rp_watch *watch)
{
    if (watch->left != RP_LEFT_NOT || watch->deleted || !bits_of(watch))
        return;
    watch->left = RP_LEFT_NEWS;
    link_last(set, watch);
    if (rp_left_news(watch))
        tell(set, true);
}

void rp_left_note_all(struct rp_set *set)
{
    for (struct rp_watch *watch = set->watches; watch; watch = watch->next_of_set)
        rp_left_note(set, watch);
}

void rp_left_renew(struct rp_set *set, struct rp_watch *watch)
{
    if (watch->left == RP_LEFT_NOT)
        return;
    watch->left = RP_LEFT_NEWS;
    if (rp_left_news(watch))
        tell(set, true);
}

void rp_left_told(struct rp_watch *watch)
{
    if (watch->left == RP_LEFT_NEWS)
        watch->left = RP_LEFT_TOLD;
}

void rp_left_forget(struct rp_set *set, struct rp_watch *watch)
{
    if (watch->left == RP_LEFT_NOT)
        return;
    watch->left = RP_LEFT_NOT;
    unlink_left(set, watch);
    if (!set->left)
        tell(set, false);
}

/* --------------------------------------------------------------------- ghosts */

bool rp_left_make_ghost(struct rp_set *set, struct rp_watch *watch, struct rp_fd *entry)
{
    struct rp_stream *stream = __atomic_load_n(&entry->stream, __ATOMIC_RELAXED);
    if (watch->left == RP_LEFT_NOT || !is_enabled(watch) || watch->home != RP_HOME_KERNEL || !stream ||
        stream->copies == 0)
        return false;
    rp_stream_unwatch(set, watch);
    rp_fd_unlink(entry, watch);
    watch->ghost = stream;
    watch->ghost_serial = stream->serial;
    watch->ghost_fd = watch->fd;
    RP_WRITE_ONCE(watch->fd, -1);
    return true;
}

void rp_left_recall_ghost(struct rp_set *set, int fd)
{
    struct rp_fd *entry = rp_fd_peek(fd);
    struct rp_stream *stream = entry ? __atomic_load_n(&entry->stream, __ATOMIC_RELAXED) : NULL;
    for (struct rp_watch *watch = stream ? set->left : NULL; watch; watch = watch->next_left) {
        if (watch->ghost != stream || watch->ghost_fd != fd || watch->deleted ||
            watch->ghost_serial != stream->serial)
            continue;
        watch->ghost = NULL;
        RP_WRITE_ONCE(watch->fd, fd);
        rp_fd_link(entry, watch);
        return;
    }
}

/* ---------------------------------------------------------------------- waits */

bool rp_left_comes_last(struct rp_set *set)
{
    bool last = set->left_last && any_news(set);
    set->left_last = !last;
    return last;
}

/* All of it was read: nothing keeps a record that was kept for that. */
static void drop(struct rp_set *set, struct rp_watch *watch)
{
    rp_left_forget(set, watch);
    if (watch->ghost && !rp_set_may_forget(set, watch)) {
        RP_WRITE_ONCE(watch->deleted, true);
        rp_set_dirty(set, watch);
    } else if (watch->ghost ||
               (rp_set_engine(set) == RINGPOLL_ENGINE_KERNEL && !watch->disabled && !set->zombie)) {
        rp_set_forget_watch(set, watch);
    }
}

/* Reported, with these bits: the state after it. */
static void report(struct rp_set *set, struct rp_watch *watch)
{
    unlink_left(set, watch);
    link_last(set, watch);
    if (watch->events & (EPOLLET | EPOLLONESHOT))
        rp_left_told(watch);
    if (!(watch->events & EPOLLONESHOT) || watch->ghost)
        return;
    if (watch->home == RP_HOME_RING) {
        watch->disabled = true;
        return;
    }
    /* As a stand-in, see demote.c: an error or an end it can yet report, to us. */
    struct epoll_event none = {.events = EPOLLONESHOT, .data = rp_set_mark(set)};
    rp_set_kernel_ctl(set, rp_set_kernel_fd(set), EPOLL_CTL_MOD, watch->fd, &none);
}

unsigned rp_left_take(struct rp_set *set, struct epoll_event *events, unsigned room)
{
    unsigned count = 0;
    struct rp_watch *last = set->left_tail, *next;
    for (struct rp_watch *watch = set->left; watch && count < room; watch = next) {
        next = watch == last ? NULL : watch->next_left;
        if (!bits_of(watch)) {
            drop(set, watch);
            continue;
        }
        uint32_t bits = rp_left_news(watch);
        if (!bits)
            continue;
        /* What the kernel has to say beside it comes in the same event. */
        struct pollfd look = {.fd = watch->ghost ? RP_READ_ONCE(watch->ghost->fd) : watch->fd,
                              .events = (short)(rp_watch_interest(watch) & 0xffffu)};
        if (rp_sys_poll(&look, 1, &no_time) == 1 && !(look.revents & POLLNVAL))
            bits |= (uint32_t)(uint16_t)look.revents & rp_watch_interest(watch);
        events[count++] = (struct epoll_event){.events = bits, .data = watch->data};
        report(set, watch);
    }
    rp_left_settle(set);
    return count;
}

void rp_left_add(struct rp_set *set, struct epoll_event *events, unsigned count)
{
    for (struct rp_watch *watch = set->left; watch; watch = watch->next_left) {
        uint32_t bits = is_enabled(watch) ? bits_of(watch) & rp_watch_interest(watch) : 0;
        for (unsigned i = 0; bits && i < count; i++) {
            if (events[i].data.u64 != watch->data.u64)
                continue;
            events[i].events |= bits;
            if (watch->events & (EPOLLET | EPOLLONESHOT))
                rp_left_told(watch);
        }
    }
}

unsigned rp_left_merge(struct epoll_event *events, unsigned at, unsigned left, unsigned count)
{
    unsigned kept = at;
    for (unsigned i = at; i < at + left; i++) {
        bool again = false;
        for (unsigned j = 0; j < count && !again; j++) {
            again = (j < at || j >= at + left) && events[j].data.u64 == events[i].data.u64;
            if (again)
                events[j].events |= events[i].events;
        }
        if (!again)
            events[kept++] = events[i];
    }
    for (unsigned i = at + left; i < count; i++)
        events[kept++] = events[i];
    return kept;
}
