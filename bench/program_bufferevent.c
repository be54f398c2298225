/* SPDX-License-Identifier: MIT
 *
 * The echo server as most programs on libevent write it: a socket bufferevent per
 * connection, whose read callback moves all of the input to the output. libevent
 * writes that when its loop finds the socket writable, in a later turn.
 *
 * And the same program with the base, the bufferevents and the listener of
 * libringpoll-event, which is all that differs.
 */
#include "program.h"

#include <stddef.h>

#ifdef BENCH_HAVE_LIBEVENT

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/listener.h>

#include <ringpoll/event.h>

struct connection {
    struct program *program;
    struct bufferevent *bufferevent;
    bool unsent; /* counted in program->unsent */
    struct connection *next, **link;
};

struct state {
    struct bufferevent *(*bufferevent_new)(struct event_base *base, evutil_socket_t fd, int options);
    struct event_base *base;
    struct evconnlistener *listener;
    struct connection *connections;
    int error;
};

static void end_connection(struct connection *connection)
{
    *connection->link = connection->next;
    if (connection->next != NULL)
        connection->next->link = connection->link;
    bufferevent_free(connection->bufferevent); /* closes, too */
    connection->program->unsent -= connection->unsent;
    connection->program->closed++;
    free(connection);
}

static void on_read(struct bufferevent *bufferevent, void *argument)
{
    struct connection *connection = argument;
    struct program *program = connection->program;
    struct evbuffer *input = bufferevent_get_input(bufferevent);
    size_t length = evbuffer_get_length(input);
    program->received += length;
    if (program->discard) {
        evbuffer_drain(input, length);
        return;
    }
    program->unsent += !connection->unsent;
    connection->unsent = true;
    if (bufferevent_write_buffer(bufferevent, input) != 0)
        program->errors++;
}

/* The output is empty. (It is at the beginning, too, and that is told.) */
static void on_written(struct bufferevent *bufferevent, void *argument)
{
    struct connection *connection = argument;
    (void)bufferevent;
    if (!connection->unsent)
        return;
    connection->program->unsent--;
    connection->unsent = false;
    if (connection->program->close_after_reply)
        end_connection(connection);
}

static void on_event(struct bufferevent *bufferevent, short what, void *argument)
{
    struct connection *connection = argument;
    (void)bufferevent;
    if (what & BEV_EVENT_ERROR)
        connection->program->errors++;
    if (what & (BEV_EVENT_ERROR | BEV_EVENT_EOF))
        end_connection(connection);
}

static void on_accept(struct evconnlistener *listener, evutil_socket_t fd, struct sockaddr *address, int length,
                      void *argument)
{
    struct program *program = argument;
    struct state *state = program->state;
    struct connection *connection = calloc(1, sizeof *connection);
    (void)listener;
    (void)address;
    (void)length;
    if (connection != NULL)
        connection->bufferevent = state->bufferevent_new(state->base, fd, BEV_OPT_CLOSE_ON_FREE);
    if (connection == NULL || connection->bufferevent == NULL) {
        state->error = -ENOMEM;
        free(connection);
        close(fd);
        return;
    }
    connection->program = program;
    bufferevent_setcb(connection->bufferevent, on_read, on_written, on_event, connection);
    connection->next = state->connections;
    connection->link = &state->connections;
    if (connection->next != NULL)
        connection->next->link = &connection->next;
    state->connections = connection;
    if (bufferevent_enable(connection->bufferevent, EV_READ | EV_WRITE) != 0)
        state->error = -EIO;
    program->accepted++;
}

static void on_accept_error(struct evconnlistener *listener, void *argument)
{
    struct program *program = argument;
    struct state *state = program->state;
    (void)listener;
    state->error = errno != 0 ? -errno : -EIO;
}

static int bufferevent_turn(struct program *program, bool wait)
{
    struct state *state = program->state;
    if (event_base_loop(state->base, wait ? EVLOOP_ONCE : EVLOOP_NONBLOCK) != 0)
        return -EIO;
    return state->error;
}

static void bufferevent_close(struct program *program)
{
    struct state *state = program->state;
    if (state == NULL)
        return;
    while (state->connections != NULL)
        end_connection(state->connections);
    if (state->listener != NULL)
        evconnlistener_free(state->listener);
    if (state->base != NULL)
        event_base_free(state->base);
    free(state);
    program->state = NULL;
}

static int open_either(struct program *program, int listener, bool ring)
{
    struct event_config *config = event_config_new();
    struct state *state = calloc(1, sizeof *state);
    program->state = state;
    if (state == NULL || config == NULL) {
        if (config != NULL)
            event_config_free(config);
        free(state);
        program->state = NULL;
        return -ENOMEM;
    }
    event_config_set_flag(config, EVENT_BASE_FLAG_IGNORE_ENV);
    state->base = event_base_new_with_config(config);
    event_config_free(config);
    if (state->base == NULL || strcmp(event_base_get_method(state->base), "epoll") != 0 ||
        (ring && ringpoll_event_install(state->base) != 0)) {
        bufferevent_close(program);
        return -ENOTSUP;
    }
    state->bufferevent_new = ring ? ringpoll_bufferevent_socket_new : bufferevent_socket_new;
    state->listener = (ring ? ringpoll_listener_new : evconnlistener_new)(
        state->base, on_accept, program, LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC, 0, listener);
    if (state->listener == NULL) {
        bufferevent_close(program);
        return -EIO;
    }
    evconnlistener_set_error_cb(state->listener, on_accept_error);
    return 0;
}

static int bufferevent_open(struct program *program, int listener)
{
    return open_either(program, listener, false);
}

static int ring_bufferevent_open(struct program *program, int listener)
{
    return open_either(program, listener, true);
}

static const char *ring_bufferevent_describe(void)
{
    static char text[64];
    snprintf(text, sizeof text, "libevent %s, ringpoll's bufferevents", event_get_version());
    return text;
}

static const char *bufferevent_describe(void)
{
    static char text[64];
    snprintf(text, sizeof text, "libevent %s, bufferevents", event_get_version());
    return text;
}

static const struct program_ops ops = {
    .name = "bufferevent",
    .open = bufferevent_open,
    .turn = bufferevent_turn,
    .close = bufferevent_close,
    .describe = bufferevent_describe,
};
const struct program_ops *const program_bufferevent = &ops;

static const struct program_ops ring_ops = {
    .name = "ring",
    .open = ring_bufferevent_open,
    .turn = bufferevent_turn,
    .close = bufferevent_close,
    .describe = ring_bufferevent_describe,
};
const struct program_ops *const program_ring_bufferevent = &ring_ops;

#else

const struct program_ops *const program_bufferevent = NULL;
const struct program_ops *const program_ring_bufferevent = NULL;

#endif
