/* SPDX-License-Identifier: MIT
 *
 * The backend "io_uring" of an event_base: libevent's struct eventop on one set.
 *
 * libevent calls add and del when the interest in an fd really changes, with the
 * base's lock held, from any thread; dispatch with the lock held, which it gives up
 * while it waits. `old` is the interest before, `events` what changes. So what this
 * file keeps is little: the set, the room for events, and the fds that no epoll takes.
 *
 * Those are regular files and some devices (EPERM). libevent's epoll refuses them;
 * poll(2), which programs fall back to for that reason, says that they are always
 * ready. So does this backend: they are *constant*, and while there are any, dispatch
 * does not sleep.
 *
 * The close of an fd is not reported to anybody. libevent's rule is that event_del()
 * comes first, and that is where the poll on the ring ends: when del returns, the ring
 * holds the file no more.
 *
 * As long as no object of ours was made in the process, and no set of a base given away,
 * there is nothing that a ring could complete, and each set is the kernel epoll instance
 * that its number names. It is used *directly* then, by epoll_wait(2) and epoll_ctl(2), which
 * is what libevent's own backend does, with less around it. From the first object on every
 * base asks the library, for good, since another's fds may have to be known; a loop that
 * sleeps directly on the base of that object is waked. What was added directly is *plain*
 * to the library (backend/ctl.c), as it would have been. The library is told now and then
 * how much there was, for `ringpoll stat`.
 *
 *   DIRECT --an object, a set given away, a fork--> ASKING
 *
 * Forks: event_reinit() calls dealloc, then init, then add for every fd, with no
 * interest for many of them. A child that goes on without event_reinit() has a copy of
 * the set on kernel epoll, as any child of ringpoll has.
 */
#include "backend.h"
#include "objects.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include <event2/event.h>
#include <ringpoll/ringpoll.h>

#define FIRST_ROOM 32
#define MOST_ROOM 4096

struct event_state {
    int set;
    bool direct; /* DIRECT, unless the process has left that */
    unsigned waits, happened, ctls; /* direct ones that the library does not know of yet */
    unsigned tell_at; /* so many waits */
    int registrations;
    unsigned forks; /* of the process, when it was made */
    void *lock; /* of the base, which has it from its first turn on at the latest; or NULL */
    bool in_use; /* there was a turn */
    bool precise;
    struct event_outputs *outputs; /* of objects of ours, or NULL */
    uint8_t *registered;           /* by fd: what its events want, whoever's they are */
    unsigned registered_room;
    struct epoll_event *events;
    int room;
    /* Constant fds: what is wanted of each. */
    struct constant {
        int fd;
        short events;
    } *constants;
    unsigned constant_count, constant_room;
};

__thread struct event_swap *event_swap;
__thread bool event_del_keeps;
static bool declares; /* atomic; something in this process may be declared */
unsigned event_forks;

/* event_reinit() calls dealloc and init at once; event_base_free() dealloc alone. */
static __thread struct {
    struct event_base *base;
    struct event_outputs *outputs;
} left_over;

int event_state_new(struct event_state **ret_state)
{
    struct ringpoll_options options = {.size = sizeof options, .flags = RINGPOLL_CLOEXEC | RINGPOLL_DECLARED | RINGPOLL_BATCH | RINGPOLL_ACCEPT};
    struct event_state *state = calloc(1, sizeof *state);
    if (!state)
        return -ENOMEM;
    state->room = FIRST_ROOM;
    state->forks = event_forks;
    state->direct = true;
    state->events = calloc(FIRST_ROOM, sizeof *state->events);
    state->set = state->events ? ringpoll_create(&options) : -ENOMEM;
    if (state->set < 0) {
        int error = state->set;
        free(state->events);
        free(state);
        return error;
    }
    *ret_state = state;
    return 0;
}

/* --------------------------------------------------------------------- direct */

#define TOLD_EACH 1024u

static __attribute__((noinline)) void tell(struct event_state *state)
{
    (void)ringpoll_count_plain(state->set, state->waits, state->happened, state->ctls, state->registrations);
    state->waits = state->happened = state->ctls = 0;
    state->tell_at = TOLD_EACH;
    state->registrations = 0;
}

static __attribute__((noinline)) void end_direct(struct event_state *state)
{
    tell(state);
    __atomic_store_n(&state->direct, false, __ATOMIC_RELAXED);
}

static inline bool is_direct(struct event_state *state)
{
    if (LIKELY(state->direct && !__atomic_load_n(&declares, __ATOMIC_RELAXED) && state->forks == event_forks))
        return true;
    if (state->direct)
        end_direct(state);
    return false;
}

void event_state_free(struct event_state *state)
{
    if (!state)
        return;
    if (state->direct && state->forks == event_forks)
        tell(state);
    ringpoll_close(state->set);
    free(state->constants);
    free(state->registered);
    free(state->events);
    free(state);
}

int event_state_set(struct event_state *state, struct event_base *base)
{
    if (!__atomic_load_n(&declares, __ATOMIC_RELAXED))
        __atomic_store_n(&declares, true, __ATOMIC_RELAXED);
    /* Its loop, if another thread's, has asked before it slept, or is waked: this locks. */
    if (__atomic_load_n(&state->direct, __ATOMIC_RELAXED) && event_inside.loop_continue)
        (void)event_inside.loop_continue(base);
    return state->set;
}

struct event_outputs *event_state_outputs(struct event_state *state, struct event_base *base)
{
    if (!state->outputs)
        state->outputs = event_outputs_new(base);
    return state->outputs;
}

bool event_state_is_inherited(const struct event_state *state)
{
    return state->forks != event_forks;
}

static void *backend_init(struct event_base *base)
{
    struct event_state *state = NULL;
    if (event_swap) {
        state = event_swap->prepared;
        event_swap->prepared = NULL;
    } else if (event_state_new(&state) < 0) {
        return NULL;
    }
    if (!event_swap && left_over.base == base) { /* another base may have its address */
        state->outputs = left_over.outputs;
        left_over.base = NULL;
        left_over.outputs = NULL;
    }
    event_inside.signals_init(base);
    return state;
}

static void backend_dealloc(struct event_base *base)
{
    if (event_swap && event_swap->before) { /* what we take the place of ends */
        const struct eventop *before = event_swap->before;
        event_swap->before = NULL;
        if (before->dealloc)
            before->dealloc(base);
        return;
    }
    struct event_state *state = event_head(base)->state;
    event_inside.signals_dealloc(base);
    if (state->outputs && event_outputs_are_unused(state->outputs)) { /* as event_base_free() leaves it */
        event_outputs_free(state->outputs);
    } else if (state->outputs) {
        event_outputs_free(left_over.outputs);
        left_over.base = base;
        left_over.outputs = state->outputs;
    }
    event_state_free(state);
    event_head(base)->state = NULL;
    static const struct timespec now = {0, 0};
    (void)ringpoll_zc_reclaim(&now); /* output that was sent without a copy; the rest when this thread comes by */
}

/* ------------------------------------------------------------------ constants */

static struct constant *constant_of(struct event_state *state, int fd)
{
    for (unsigned i = 0; i < state->constant_count; i++)
        if (state->constants[i].fd == fd)
            return &state->constants[i];
    return NULL;
}

static int add_constant(struct event_state *state, int fd, short events)
{
    struct constant *constant = constant_of(state, fd);
    if (!constant) {
        if (state->constant_count == state->constant_room) {
            unsigned room = state->constant_room ? state->constant_room * 2 : 4;
            struct constant *more = realloc(state->constants, room * sizeof *more);
            if (!more)
                return -ENOMEM;
            state->constants = more;
            state->constant_room = room;
        }
        constant = &state->constants[state->constant_count++];
        constant->fd = fd;
    }
    constant->events = events;
    return 0;
}

static bool del_constant(struct event_state *state, int fd, short left)
{
    struct constant *constant = constant_of(state, fd);
    if (!constant)
        return false;
    constant->events = left;
    if ((left & (EV_READ | EV_WRITE)) == 0)
        *constant = state->constants[--state->constant_count];
    return true;
}

/* -------------------------------------------------------------------- changes */

_Static_assert(EV_READ >> 1 == EPOLLIN && EV_WRITE == EPOLLOUT && EV_CLOSED << 6 == EPOLLRDHUP && (uint32_t)EV_ET << 26 == EPOLLET,
               "the same bits elsewhere");
static inline uint32_t bits_of(short events)
{
    uint32_t bits = (uint16_t)events;
    return (bits & EV_READ) >> 1 | (bits & EV_WRITE) | (bits & EV_CLOSED) << 6 | (bits & EV_ET) << 26;
}

/* epoll_ctl(2), 0 or -errno. */
static inline int ctl_directly(struct event_state *state, int op, int fd, struct epoll_event *event)
{
    int error = epoll_ctl(state->set, op, fd, event);
    if (UNLIKELY(error < 0))
        error = -errno;
    if (op == EPOLL_CTL_ADD)
        state->registrations += error == 0;
    else if (op == EPOLL_CTL_DEL)
        state->registrations -= error == 0 || error == -EBADF;
    if (UNLIKELY(++state->ctls >= TOLD_EACH))
        tell(state);
    return error;
}

static inline int ctl(struct event_state *state, int op, int fd, short events)
{
    struct epoll_event event = {.events = bits_of(events), .data.fd = fd};
    return LIKELY(is_direct(state)) ? ctl_directly(state, op, fd, &event) : ringpoll_ctl(state->set, op, fd, &event);
}

static __attribute__((noinline)) bool make_room_for(struct event_state *state, int fd)
{
    unsigned room = fd < 512 ? 1024 : (unsigned)fd * 2;
    uint8_t *more = realloc(state->registered, room);
    if (!more)
        return false;
    memset(more + state->registered_room, 0, room - state->registered_room);
    state->registered = more;
    state->registered_room = room;
    return true;
}

static inline bool note(struct event_state *state, int fd, short events)
{
    if (UNLIKELY((unsigned)fd >= state->registered_room) && (events == 0 || !make_room_for(state, fd)))
        return events == 0;
    state->registered[fd] = (uint8_t)events;
    return true;
}

static short wanted_of(struct event_base *base, int fd)
{
    const struct event_state *state = event_head(base)->state;
    return (unsigned)fd < state->registered_room ? state->registered[fd] : 0;
}

bool event_is_registered(struct event_base *base, int fd)
{
    event_lock(base, true);
    bool is = wanted_of(base, fd) != 0;
    event_lock(base, false);
    return is;
}

bool event_register_again(struct event_base *base, int fd)
{
    event_lock(base, true);
    short wanted = wanted_of(base, fd);
    if (wanted)
        (void)ctl(event_head(base)->state, EPOLL_CTL_ADD, fd, wanted);
    event_lock(base, false);
    return wanted != 0;
}

static int fail(int error)
{
    errno = -error;
    return -1;
}

static int backend_add(struct event_base *base, int fd, short old, short events, void *fdinfo)
{
    struct event_state *state = event_head(base)->state;
    short wanted = (short)((old | events) & (EV_READ | EV_WRITE | EV_CLOSED | EV_ET));
    (void)fdinfo;
    if ((wanted & (EV_READ | EV_WRITE | EV_CLOSED)) == 0) /* event_reinit, of a slot without events */
        return 0;
    if (!note(state, fd, wanted))
        return fail(-ENOMEM);
    if (state->constant_count > 0 && constant_of(state, fd))
        return add_constant(state, fd, wanted);
    bool again = (old & (EV_READ | EV_WRITE | EV_CLOSED)) != 0;
    int error = ctl(state, again ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd, wanted);
    /* The number was closed without event_del(), or given to another file: as epoll's. */
    if (error == -ENOENT && again)
        error = ctl(state, EPOLL_CTL_ADD, fd, wanted);
    else if (error == -EEXIST && !again)
        error = ctl(state, EPOLL_CTL_MOD, fd, wanted);
    if (error == -EPERM)
        error = add_constant(state, fd, wanted);
    if (error < 0)
        (void)note(state, fd, (short)(old & (EV_READ | EV_WRITE | EV_CLOSED | EV_ET)));
    return error < 0 ? fail(error) : 0;
}

static int backend_del(struct event_base *base, int fd, short old, short events, void *fdinfo)
{
    struct event_state *state = event_head(base)->state;
    short left = (short)(old & ~events & (EV_READ | EV_WRITE | EV_CLOSED));
    (void)fdinfo;
    (void)note(state, fd, (short)(left ? left | (events & EV_ET) : 0));
    if (state->constant_count > 0 && del_constant(state, fd, left))
        return 0;
    if (left != 0) {
        left = (short)(left | (events & EV_ET));
        int error = ctl(state, EPOLL_CTL_MOD, fd, left);
        if (error == -ENOENT)
            error = ctl(state, EPOLL_CTL_ADD, fd, left);
        return error < 0 ? fail(error) : 0;
    }
    int error = ctl(state, EPOLL_CTL_DEL, fd, 0);
    if (!state->direct && !event_del_keeps)
        ringpoll_fd_forget(fd); /* it may be closed next, and nobody will tell us */
    /* Closed before it was deleted: that is over, too. */
    return error < 0 && error != -ENOENT && error != -EBADF && error != -EPERM ? fail(error) : 0;
}

/* ------------------------------------------------------------------- the loop */

static inline void *lock_of(struct event_base *base)
{
    return event_inside.locks ? *(void **)((char *)base + event_layout->lock) : NULL;
}

void event_lock(struct event_base *base, bool on)
{
    void *lock = lock_of(base);
    if (!lock)
        return;
    if (on)
        event_inside.locks->lock(0, lock);
    else
        event_inside.locks->unlock(0, lock);
}

static short meaning_of(uint32_t bits)
{
    if ((bits & EPOLLERR) || ((bits & EPOLLHUP) && !(bits & EPOLLRDHUP)))
        return EV_READ | EV_WRITE;
    return (short)((bits & EPOLLIN ? EV_READ : 0) | (bits & EPOLLOUT ? EV_WRITE : 0) |
                   (bits & EPOLLRDHUP ? EV_CLOSED : 0));
}

static bool is_precise(const struct event_base *base)
{
    int flags;
    memcpy(&flags, (const char *)base + event_layout->flags, sizeof flags);
    return (flags & EVENT_BASE_FLAG_PRECISE_TIMER) != 0;
}

#define LONGEST_SECONDS (35 * 60) /* epoll's milliseconds, in libevent */

/* As libevent's epoll: whole milliseconds. */
static inline int milliseconds_of(const struct timeval *timeout)
{
    return timeout->tv_sec > LONGEST_SECONDS ? LONGEST_SECONDS * 1000
                                             : (int)(timeout->tv_sec * 1000 + (timeout->tv_usec + 999) / 1000);
}

static __attribute__((noinline)) void begin_use(struct event_base *base, struct event_state *state)
{
    state->lock = lock_of(base);
    state->precise = is_precise(base);
    state->in_use = true;
    if (state->direct && state->lock && !event_inside.loop_continue) /* another thread could not wake it */
        end_direct(state);
}

/* epoll_wait(2), or -errno. */
static int wait_directly(struct event_state *state, const struct timeval *timeout)
{
    (void)ringpoll_flush(); /* of sets that the program has beside libevent */
    int count = epoll_wait(state->set, state->events, state->room,
                           state->constant_count > 0 ? 0 : timeout ? milliseconds_of(timeout) : -1);
    if (count < 0)
        return -errno;
    state->happened += (unsigned)count;
    return count;
}

static __attribute__((noinline)) int wait_by_library(struct event_state *state, const struct timeval *timeout)
{
    struct timespec time = {0, 0};
    if (timeout && state->constant_count == 0) {
        time = (struct timespec){timeout->tv_sec, timeout->tv_usec * 1000};
        /* As epoll's, which is also the cheaper call, unless asked for more. */
        if (!state->precise) {
            int milliseconds = milliseconds_of(timeout);
            time = (struct timespec){milliseconds / 1000, milliseconds % 1000 * 1000000L};
        }
    }
    return ringpoll_wait(state->set, state->events, state->room, timeout || state->constant_count > 0 ? &time : NULL, NULL);
}

static int backend_dispatch(struct event_base *base, struct timeval *timeout)
{
    struct event_state *state = event_head(base)->state;
    struct epoll_event *events = state->events;

    if (!state->in_use)
        begin_use(base, state);
    bool direct = is_direct(state) && !(state->precise && timeout && timeout->tv_usec);
    void *lock = state->lock;
    if (lock)
        event_inside.locks->unlock(0, lock);
    int count = direct ? wait_directly(state, timeout) : wait_by_library(state, timeout);
    if (lock)
        event_inside.locks->lock(0, lock);
    if (direct && ++state->waits >= state->tell_at) /* the first one is told at once */
        tell(state);
    if (count < 0 && count != -EINTR)
        return fail(count);
    for (int i = 0; i < count; i++) {
        short what = meaning_of(events[i].events);
        if (what)
            event_inside.io_active(base, events[i].data.fd, (short)(what | EV_ET));
    }
    for (unsigned i = 0; i < state->constant_count; i++)
        event_inside.io_active(base, state->constants[i].fd, (short)(state->constants[i].events | EV_ET));
    if (count == state->room && state->room < MOST_ROOM) {
        struct epoll_event *more = realloc(state->events, 2 * (size_t)state->room * sizeof *more);
        if (more) {
            state->events = more;
            state->room *= 2;
        }
    }
    return 0;
}

const struct eventop event_backend = {
    .name = "io_uring",
    .init = backend_init,
    .add = backend_add,
    .del = backend_del,
    .dispatch = backend_dispatch,
    .dealloc = backend_dealloc,
    .need_reinit = 1,
    .features = EV_FEATURE_ET | EV_FEATURE_O1 | EV_FEATURE_EARLY_CLOSE,
    .fdinfo_len = 0,
};
