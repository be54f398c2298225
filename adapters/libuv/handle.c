/* SPDX-License-Identifier: MIT
 *
 * What all handles have in common.
 *
 *   FRESH ──open, bind──→ OPEN ──listen──→ LISTENING
 *     │ └──connect──→ CONNECTING ←──connect──┘ (OPEN)
 *     │                  │ └──refused──→ OPEN
 *     └──open, accept──→ CONNECTED ←──┘
 *                        close, from all → CLOSING ──the close callback──→ freed
 *
 * The caller's struct has one pointer, to the record here, which is made by init and goes
 * right before the close callback. `life`, a handle of libuv's that is never started, is open
 * exactly as long: libuv counts it, so that uv_loop_close() says UV_EBUSY, and its close
 * callback is where ours is called, in the loop's own phase of closing and in its order.
 *
 * What a handle waits for (EPOLL bits) follows from its fields. Whoever changes them calls
 * handle_changed(); the set hears of it before its next wait, so that a stop and a start in
 * one turn are nothing. Where the set refuses, the error is told in the handle's turn, to whom
 * waits, and nobody waits any more. The fd leaves the set and is closed inside the close call.
 *
 * A callback is called from handle_event(), handle_due() and stream_closed() alone. It may
 * close the handle, but the record stays until the loop's phase of closing.
 */
#include "inside.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

static const uint8_t edges[HANDLE_STATES] = {
    [HANDLE_FRESH] = 1u << HANDLE_OPEN | 1u << HANDLE_CONNECTING | 1u << HANDLE_CONNECTED | 1u << HANDLE_CLOSING,
    [HANDLE_OPEN] = 1u << HANDLE_LISTENING | 1u << HANDLE_CONNECTING | 1u << HANDLE_CONNECTED | 1u << HANDLE_CLOSING,
    [HANDLE_LISTENING] = 1u << HANDLE_LISTENING | 1u << HANDLE_CLOSING,
    [HANDLE_CONNECTING] = 1u << HANDLE_CONNECTED | 1u << HANDLE_OPEN | 1u << HANDLE_CLOSING,
    [HANDLE_CONNECTED] = 1u << HANDLE_CLOSING,
    [HANDLE_CLOSING] = 0,
};

bool handle_step(struct handle *handle, enum handle_state to)
{
    if (!(edges[handle->state] >> to & 1u))
        return false;
    handle->state = (uint8_t)to;
    return true;
}

int handle_new(uv_loop_t *loop, void *user, enum handle_type type)
{
    ringpoll_uv_handle_t *public = user;
    struct uv_state *state = NULL;
    struct handle *handle = calloc(1, sizeof *handle);
    int error = handle ? state_get(loop, &state) : UV_ENOMEM;
    if (error < 0) {
        free(handle);
        return error;
    }
    handle->user = public;
    handle->loop = state;
    handle->type = (uint8_t)type;
    handle->referenced = true;
    handle->fd = handle->accepted_fd = -1;
    queue_init(&handle->waiting);
    queue_init(&handle->written);
    uv_idle_init(loop, &handle->life);
    handle->life.data = state;
    uv_unref((uv_handle_t *)&handle->life);
    public->loop = loop;
    public->inside = handle;
    return 0;
}

static uint32_t interest(const struct handle *handle)
{
    return handle->type == TYPE_UDP ? udp_interest(handle) : stream_interest(handle);
}

bool handle_is_active(const struct handle *handle)
{
    return handle->state != HANDLE_CLOSING &&
           (handle->type == TYPE_UDP ? udp_is_active(handle) : stream_is_active(handle));
}

static void undirty(struct handle *handle)
{
    if (!handle->is_dirty)
        return;
    *(handle->prev_dirty ? &handle->prev_dirty->next_dirty : &handle->loop->dirty) = handle->next_dirty;
    if (handle->next_dirty)
        handle->next_dirty->prev_dirty = handle->prev_dirty;
    handle->is_dirty = false;
}

void handle_changed(struct handle *handle)
{
    struct uv_state *state = handle->loop;
    bool keeps = handle->state != HANDLE_CLOSING &&
                 (handle->requests > 0 || (handle->referenced && handle_is_active(handle)));
    if (keeps != handle->keeps) {
        handle->keeps = keeps;
        state_keep(state, keeps);
    }
    if (handle->is_dirty || handle->state == HANDLE_CLOSING || handle->wait_error ||
        interest(handle) == handle->registered)
        return;
    handle->prev_dirty = NULL;
    handle->next_dirty = state->dirty;
    if (state->dirty)
        state->dirty->prev_dirty = handle;
    state->dirty = handle;
    handle->is_dirty = true;
    state_touch(state);
}

void handle_defer(struct handle *handle)
{
    struct uv_state *state = handle->loop;
    if (handle->is_deferred)
        return;
    handle->is_deferred = true;
    handle->next_deferred = NULL;
    *state->deferred_tail = handle;
    state->deferred_tail = &handle->next_deferred;
    state_touch(state);
}

void handle_sync(struct handle *handle)
{
    undirty(handle);
    uint32_t wanted = interest(handle);
    if (wanted == handle->registered || handle->fd < 0)
        return;
    struct epoll_event event = {.events = wanted, .data.ptr = handle};
    int op = wanted == 0 ? EPOLL_CTL_DEL : handle->registered == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
    int error = ringpoll_ctl(handle->loop->set, op, handle->fd, &event);
    if (error == 0 || op == EPOLL_CTL_DEL) {
        handle->registered = wanted;
        return;
    }
    handle->wait_error = error; /* no memory, no epoll for this file */
    handle_defer(handle);
}

static struct handle **slot_of(struct uv_state *state, int fd)
{
    return &state->by_fd[(unsigned)fd % FD_SLOTS];
}

bool handle_has_fd(const struct uv_state *state, int fd)
{
    const struct handle *handle = fd >= 0 ? state->by_fd[(unsigned)fd % FD_SLOTS] : NULL;
    while (handle && handle->fd != fd)
        handle = handle->next_by_fd;
    return handle != NULL;
}

void handle_take_fd(struct handle *handle, int fd, uint32_t kind)
{
    struct handle **slot = slot_of(handle->loop, fd);
    handle->next_by_fd = *slot;
    *slot = handle;
    handle->fd = fd;
    handle->is_socket = (kind & RINGPOLL_FD_KIND) != RINGPOLL_FD_OTHER;
    handle->declared = handle->is_socket;
    if (handle->declared)
        ringpoll_fd_opened(fd, kind | RINGPOLL_FD_NONBLOCK | RINGPOLL_FD_DECLARED);
}

void handle_event(struct handle *handle, uint32_t events)
{
    if (handle->state == HANDLE_CLOSING)
        return;
    if (handle->type == TYPE_UDP)
        udp_event(handle, events);
    else
        stream_event(handle, events);
}

void handle_due(struct handle *handle)
{
    int error = handle->wait_error;
    handle->wait_error = 0;
    if (error && handle->state != HANDLE_CLOSING) {
        if (handle->type == TYPE_UDP)
            udp_failed(handle, error);
        else
            stream_failed(handle, error);
        handle_changed(handle);
    }
    if (handle->state == HANDLE_CLOSING)
        return;
    if (handle->type == TYPE_UDP)
        udp_due(handle);
    else
        stream_due(handle);
}

/* It was closed behind our check: nobody has come by since. */
static void undefer(struct handle *handle)
{
    struct uv_state *state = handle->loop;
    struct handle **at = &state->deferred;
    while (handle->is_deferred && *at != handle)
        at = &(*at)->next_deferred;
    if (!handle->is_deferred)
        return;
    *at = handle->next_deferred;
    if (state->deferred_tail == &handle->next_deferred)
        state->deferred_tail = at;
    handle->is_deferred = false;
}

static void on_life_over(uv_handle_t *life)
{
    struct handle *handle = (struct handle *)((char *)life - offsetof(struct handle, life));
    struct uv_state *state = handle->loop;
    ringpoll_uv_handle_t *user = handle->user;
    ringpoll_uv_close_cb on_close = handle->on_close;
    undefer(handle);
    if (handle->type == TYPE_UDP)
        udp_closed(handle);
    else
        stream_closed(handle);
    user->inside = NULL;
    free(handle->path);
    free(handle);
    if (on_close)
        on_close(user);
    state_put(state);
}

/* As libuv, which leaves standard input, output and error to the process. */
static void let_go(struct handle *handle)
{
    int fd = handle->fd;
    struct handle **at = slot_of(handle->loop, fd);
    while (*at != handle)
        at = &(*at)->next_by_fd;
    *at = handle->next_by_fd;
    handle->fd = -1;
    if (fd > STDERR_FILENO)
        ringpoll_close(fd);
    else
        ringpoll_fd_forget(fd);
}

void ringpoll_uv_close(ringpoll_uv_handle_t *user, ringpoll_uv_close_cb on_close)
{
    struct handle *handle = handle_of(user);
    if (!handle || handle->state == HANDLE_CLOSING)
        return;
    state_see_fork(handle->loop);
    handle_step(handle, HANDLE_CLOSING);
    handle->on_close = on_close;
    handle_changed(handle);
    undirty(handle);
    if (handle->fd >= 0) {
        if (handle->declared) /* what is written goes out, also before the reset that unread bytes cause */
            ringpoll_fd_flush(handle->fd);
        if (handle->registered)
            ringpoll_ctl(handle->loop->set, EPOLL_CTL_DEL, handle->fd, NULL);
        if (handle->type == TYPE_UDP)
            udp_closing(handle);
        else
            stream_closing(handle);
        let_go(handle);
    }
    uv_close((uv_handle_t *)&handle->life, on_life_over);
    state_touch(handle->loop);
}

int ringpoll_uv_is_active(const ringpoll_uv_handle_t *user)
{
    const struct handle *handle = handle_of(user);
    return handle && handle_is_active(handle);
}

int ringpoll_uv_is_closing(const ringpoll_uv_handle_t *user)
{
    const struct handle *handle = handle_of(user);
    return !handle || handle->state == HANDLE_CLOSING;
}

void ringpoll_uv_ref(ringpoll_uv_handle_t *user)
{
    struct handle *handle = handle_of(user);
    handle->referenced = true;
    handle_changed(handle);
}

void ringpoll_uv_unref(ringpoll_uv_handle_t *user)
{
    struct handle *handle = handle_of(user);
    handle->referenced = false;
    handle_changed(handle);
}

int ringpoll_uv_has_ref(const ringpoll_uv_handle_t *user)
{
    const struct handle *handle = handle_of(user);
    return handle && handle->referenced;
}

int ringpoll_uv_fileno(const ringpoll_uv_handle_t *user, uv_os_fd_t *ret_fd)
{
    const struct handle *handle = handle_of(user);
    if (!handle || handle->fd < 0)
        return UV_EBADF;
    *ret_fd = handle->fd;
    return 0;
}

static int name_of(const void *user, struct sockaddr *name, int *length,
                   int (*ask)(int, struct sockaddr *, socklen_t *))
{
    const struct handle *handle = handle_of(user);
    if (!handle || handle->fd < 0)
        return UV_EBADF;
    socklen_t room = (socklen_t)*length;
    if (ask(handle->fd, name, &room) < 0)
        return -errno;
    *length = (int)room;
    return 0;
}

static int ask_sockname(int fd, struct sockaddr *name, socklen_t *length)
{
    return getsockname(fd, name, length);
}

static int ask_peername(int fd, struct sockaddr *name, socklen_t *length)
{
    return getpeername(fd, name, length);
}

int handle_sockname(const void *user, struct sockaddr *name, int *length)
{
    return name_of(user, name, length, ask_sockname);
}

int handle_peername(const void *user, struct sockaddr *name, int *length)
{
    return name_of(user, name, length, ask_peername);
}
