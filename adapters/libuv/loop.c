/* SPDX-License-Identifier: MIT
 *
 * A set under a libuv loop.
 *
 * libuv sleeps in its own epoll_wait. What wakes it for us are two fds, each watched by a
 * uv_poll_t: the set's own, for what kernel epoll serves, and the one that ringpoll_sleep_fd()
 * names, an eventfd registered with the ring, where there is one. Around that sleep stand a prepare and a check handle:
 *
 *   prepare  what the program wants of its handles by now goes to the set; one wait that does
 *            not block submits it all, sends included. Events found, callbacks due, or a set
 *            that is not ready for a sleep: an idle handle is started, so that libuv does not
 *            sleep. Otherwise the sleep is exact (see backend/outer.c).
 *   check    one more such wait, unless prepare has found events; they are dispatched. What
 *            the callbacks wrote is flushed, and then write callbacks are called.
 *
 * On a ring a wait that has nothing to do makes no system call. On kernel epoll prepare
 * makes none, and check only after a wake-up.
 *
 * What a callback between our prepare and libuv's sleep changes (other prepare handles, say)
 * starts the idle handle: state_touch().
 *
 * Who lives how long: the state until nobody holds it (handles, attaches); then the set ends
 * at once, and the state's libuv handles are closed; their close callbacks free it. None
 * of them keeps the loop alive, but for `prepare`, which is referenced while a handle of ours
 * does (`keeps`).
 *
 * A fork's child that calls uv_loop_fork() goes on: its copy of the set is on kernel epoll, as
 * any child's of ringpoll is, and the next prepare polls that. Where the parent's set was on
 * kernel epoll already, the instance is the parent's, too, which loses what the child takes
 * out: so the child gives the number up, and all handles go to a set of its own. libuv
 * may still poll that number: `held` keeps it from being another file's until prepare.
 */
#include "inside.h"
#include "tray.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

static pthread_mutex_t states_lock = PTHREAD_MUTEX_INITIALIZER;
static struct uv_state *states;
static const struct timespec no_time;
static __thread char thread_mark;
static unsigned forks; /* between us and the process that began */

static void on_fork_child(void)
{
    ringpoll_fork_child();
    forks++;
}

static int know_forks(void)
{
    static bool known;
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    int error = 0;
    pthread_mutex_lock(&lock);
    if (!known)
        error = -pthread_atfork(ringpoll_fork_prepare, ringpoll_fork_parent, on_fork_child);
    known = error == 0;
    pthread_mutex_unlock(&lock);
    return error;
}

/* ---------------------------------------------------------------- the turn */

static void on_wake(uv_poll_t *poll, int status, int events)
{
    struct waker *waker = (struct waker *)poll;
    (void)status;
    (void)events;
    if (waker->state)
        waker->state->woken = true;
}

static void on_idle(uv_idle_t *idle)
{
    (void)idle;
}

static void on_waker_closed(uv_handle_t *handle)
{
    free(handle);
}

static void end_waker(struct waker **waker)
{
    if (!*waker)
        return;
    (*waker)->state = NULL;
    uv_close((uv_handle_t *)&(*waker)->poll, on_waker_closed);
    *waker = NULL;
}

static int make_waker(struct uv_state *state, int fd, struct waker **ret_waker)
{
    struct waker *waker = calloc(1, sizeof *waker);
    if (!waker)
        return UV_ENOMEM;
    int error = uv_poll_init(state->loop, &waker->poll, fd);
    if (error < 0) {
        free(waker);
        return error;
    }
    error = uv_poll_start(&waker->poll, UV_READABLE, on_wake);
    uv_unref((uv_handle_t *)&waker->poll);
    waker->state = state;
    if (error < 0)
        end_waker(&waker);
    else
        *ret_waker = waker;
    return error;
}

static int poll_fd(struct uv_state *state, int fd)
{
    int error = 0;
    if (!state->set_waker)
        error = make_waker(state, state->set, &state->set_waker);
    if (error == 0 && state->wake_fd != fd) {
        end_waker(&state->waker);
        state->wake_fd = -1;
        error = fd == state->set ? 0 : make_waker(state, fd, &state->waker);
        if (error == 0)
            state->wake_fd = fd;
    }
    return error;
}

static void stay_awake(struct uv_state *state)
{
    uv_idle_start(&state->idle, on_idle);
}

void state_touch(struct uv_state *state)
{
    if (state->asleep)
        stay_awake(state);
}

void state_keep(struct uv_state *state, bool on)
{
    if (on && state->keeps++ == 0)
        uv_ref((uv_handle_t *)&state->prepare);
    else if (!on && --state->keeps == 0)
        uv_unref((uv_handle_t *)&state->prepare);
}

static int make_set(void)
{
    struct ringpoll_options options = {
        .size = sizeof options,
        .flags = RINGPOLL_CLOEXEC | RINGPOLL_DECLARED | RINGPOLL_BATCH | RINGPOLL_ACCEPT,
    };
    return ringpoll_create(&options);
}

static __attribute__((noinline)) void leave_parents_set(struct uv_state *state)
{
    struct ringpoll_stats stats = {.size = sizeof stats};
    state->forks = forks;
    if (ringpoll_get_stats(state->set, &stats) < 0 || stats.engine != RINGPOLL_ENGINE_KERNEL)
        return;
    int set = make_set(), old = state->set;
    if (set < 0)
        return;
    ringpoll_close(old);
    if (state->set_waker && state->held < 0 && dup3(state->reserve_fd, old, O_CLOEXEC) == old)
        state->held = old;
    if (state->held < 0) {
        end_waker(&state->waker);
        end_waker(&state->set_waker);
    }
    state->set = set;
    state->wake_fd = -1;
    for (unsigned slot = 0; slot < FD_SLOTS; slot++)
        for (struct handle *handle = state->by_fd[slot]; handle; handle = handle->next_by_fd) {
            handle->registered = 0;
            handle_changed(handle);
        }
}

void state_see_fork(struct uv_state *state)
{
    if (state->forks != forks)
        leave_parents_set(state);
}

/* libuv shall not poll a number that was given up. */
static void drop_held(struct uv_state *state)
{
    if (state->held < 0)
        return;
    end_waker(&state->waker);
    end_waker(&state->set_waker);
    close(state->held);
    state->held = -1;
}

static void sync_all(struct uv_state *state)
{
    state_see_fork(state);
    while (state->dirty)
        handle_sync(state->dirty); /* which takes it out */
}

static void look(struct uv_state *state)
{
    int count = ringpoll_wait(state->set, state->events, TURN_EVENTS, &no_time, NULL);
    state->count = count > 0 ? count : 0;
}

/* Those that are due now; what they cause is the next turn's. */
static bool run_deferred(struct uv_state *state)
{
    struct handle *handle = state->deferred;
    if (!handle)
        return false;
    ringpoll_flush();
    state->deferred = NULL;
    state->deferred_tail = &state->deferred;
    while (handle) {
        struct handle *next = handle->next_deferred;
        handle->is_deferred = false;
        handle_due(handle);
        handle = next;
    }
    return true;
}

static bool is_on_ring(const struct uv_state *state)
{
    return state->wake_fd != state->set;
}

static void on_prepare(uv_prepare_t *prepare)
{
    struct uv_state *state = prepare->data;
    __atomic_store_n(&state->runner, &thread_mark, __ATOMIC_RELAXED);
    bool ran = run_deferred(state);
    sync_all(state);
    drop_held(state);
    state->count = 0;
    int fd = -EAGAIN;
    for (int turn = 0; turn < 4 && fd == -EAGAIN && state->count == 0; turn++) {
        if (turn > 0 || is_on_ring(state))
            look(state);
        if (state->count == 0)
            fd = ringpoll_sleep_fd(state->set, state->woken);
    }
    if (fd >= 0)
        state->woken = false;
    __atomic_store_n(&state->asleep, true, __ATOMIC_RELEASE);
    if (fd < 0 || ran || state->deferred || poll_fd(state, fd) < 0)
        stay_awake(state);
}

static void on_check(uv_check_t *check)
{
    struct uv_state *state = check->data;
    bool was_awake = uv_is_active((uv_handle_t *)&state->idle) != 0;
    __atomic_store_n(&state->asleep, false, __ATOMIC_RELEASE);
    if (was_awake)
        uv_idle_stop(&state->idle);
    if (state->count == 0) {
        sync_all(state);
        if (is_on_ring(state) || state->woken || was_awake)
            look(state);
    }
    state->handles++; /* callbacks may end the last request */
    for (int i = 0; i < state->count; i++)
        if (state->events[i].data.ptr == state)
            fs_event(state);
        else
            handle_event(state->events[i].data.ptr, state->events[i].events);
    state->count = 0;
    run_deferred(state);
    state_put(state);
}

/* -------------------------------------------------------------- its life */

static void on_part_closed(uv_handle_t *part)
{
    struct uv_state *state = part->data;
    if (--state->closing == 0)
        free(state);
}

static void end_state(struct uv_state *state)
{
    pthread_mutex_lock(&states_lock);
    for (struct uv_state **at = &states; *at; at = &(*at)->next)
        if (*at == state) {
            *at = state->next;
            break;
        }
    pthread_mutex_unlock(&states_lock);
    drop_held(state);
    end_waker(&state->waker);
    end_waker(&state->set_waker);
    tray_free(state->tray);
    ringpoll_close(state->set);
    if (state->reserve_fd >= 0)
        close(state->reserve_fd);
    state->closing = 3;
    uv_close((uv_handle_t *)&state->prepare, on_part_closed);
    uv_close((uv_handle_t *)&state->check, on_part_closed);
    uv_close((uv_handle_t *)&state->idle, on_part_closed);
}

static struct uv_state *find(const uv_loop_t *loop)
{
    pthread_mutex_lock(&states_lock);
    struct uv_state *state = states;
    while (state && state->loop != loop)
        state = state->next;
    pthread_mutex_unlock(&states_lock);
    return state;
}

static bool runs_elsewhere(const struct uv_state *state)
{
    return __atomic_load_n(&state->asleep, __ATOMIC_ACQUIRE) &&
           __atomic_load_n(&state->runner, __ATOMIC_RELAXED) != &thread_mark;
}

static int make_state(uv_loop_t *loop, struct uv_state **ret_state)
{
    struct uv_state *state = know_forks() == 0 ? calloc(1, sizeof *state) : NULL;
    if (!state)
        return UV_ENOMEM;
    state->loop = loop;
    state->wake_fd = state->held = -1;
    state->deferred_tail = &state->deferred;
    state->forks = forks;
    state->set = make_set();
    if (state->set < 0) {
        int error = state->set;
        free(state);
        return error;
    }
    state->reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    /* None of these can fail. */
    uv_prepare_init(loop, &state->prepare);
    uv_check_init(loop, &state->check);
    uv_idle_init(loop, &state->idle);
    state->prepare.data = state->check.data = state->idle.data = state;
    uv_prepare_start(&state->prepare, on_prepare);
    uv_check_start(&state->check, on_check);
    uv_unref((uv_handle_t *)&state->prepare);
    uv_unref((uv_handle_t *)&state->check);
    uv_unref((uv_handle_t *)&state->idle);
    stay_awake(state); /* made in another prepare's callback: ours does not run in this iteration */
    pthread_mutex_lock(&states_lock);
    state->next = states;
    states = state;
    pthread_mutex_unlock(&states_lock);
    *ret_state = state;
    return 0;
}

static int find_or_make(uv_loop_t *loop, struct uv_state **ret_state)
{
    if (!loop)
        return UV_EINVAL;
    struct uv_state *state = find(loop);
    if (!state) {
        int error = make_state(loop, &state);
        if (error < 0)
            return error;
    } else if (runs_elsewhere(state)) {
        return UV_EBUSY;
    }
    *ret_state = state;
    return 0;
}

int state_get(uv_loop_t *loop, struct uv_state **ret_state)
{
    int error = find_or_make(loop, ret_state);
    if (error == 0)
        (*ret_state)->handles++;
    return error;
}

void state_put(struct uv_state *state)
{
    if (--state->handles == 0 && state->attached == 0)
        end_state(state);
}

int ringpoll_uv_attach(uv_loop_t *loop)
{
    struct uv_state *state;
    int error = find_or_make(loop, &state);
    if (error == 0)
        state->attached++;
    return error;
}

int ringpoll_uv_detach(uv_loop_t *loop)
{
    struct uv_state *state = loop ? find(loop) : NULL;
    if (!state || state->attached == 0)
        return UV_EINVAL;
    if (runs_elsewhere(state))
        return UV_EBUSY;
    if (--state->attached == 0 && state->handles == 0)
        end_state(state);
    return 0;
}

int ringpoll_uv_set(const uv_loop_t *loop)
{
    const struct uv_state *state = loop ? find(loop) : NULL;
    return state ? state->set : UV_EINVAL;
}

int ringpoll_uv_owns(const uv_handle_t *handle)
{
    if (handle->type == UV_POLL)
        return ((const uv_poll_t *)handle)->poll_cb == on_wake;
    if (handle->type == UV_PREPARE)
        return ((const uv_prepare_t *)handle)->prepare_cb == on_prepare;
    if (handle->type == UV_CHECK)
        return ((const uv_check_t *)handle)->check_cb == on_check;
    const struct uv_state *state = handle->type == UV_IDLE ? find(handle->loop) : NULL;
    return state && (handle == (const uv_handle_t *)&state->idle || handle->data == state);
}
