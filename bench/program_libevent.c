/* SPDX-License-Identifier: MIT
 *
 * The same echo server on an unmodified libevent: an evconnlistener, and for
 * each connection one level-triggered, persistent read event whose callback
 * calls read() and write(). One turn is event_base_loop(EVLOOP_ONCE).
 */
#include "program.h"

#include <stddef.h>

#ifdef BENCH_HAVE_LIBEVENT

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <event2/event.h>
#include <event2/listener.h>

struct connection {
    struct program *program;
    struct event *event;
    struct connection *next, **link;
};

struct state {
    struct event_base *base;
    struct evconnlistener *listener;
    struct connection *connections;
    int error;
};

static void end_connection(struct connection *connection)
{
    int fd = event_get_fd(connection->event);
    *connection->link = connection->next;
    if (connection->next != NULL)
        connection->next->link = connection->link;
    event_free(connection->event);
    close(fd);
    connection->program->closed++;
    free(connection);
}

static void on_readable(evutil_socket_t fd, short what, void *argument)
{
    struct connection *connection = argument;
    struct program *program = connection->program;
    _Alignas(READ_ALIGNMENT) char buffer[READ_SIZE_MAX];
    ssize_t got = read(fd, buffer, program->read_size);
    (void)what;
    if (got <= 0) {
        if (got < 0 && errno == EAGAIN) {
            program->spurious++;
            return;
        }
        if (got < 0)
            program->errors++;
        end_connection(connection);
        return;
    }
    program->received += (uint64_t)got;
    if (!program->discard && write(fd, buffer, (size_t)got) != got)
        program->errors++;
    if (program->close_after_reply)
        end_connection(connection);
}

static void on_accept(struct evconnlistener *listener, evutil_socket_t fd, struct sockaddr *address, int length,
                      void *argument)
{
    struct program *program = argument;
    struct state *state = program->state;
    struct connection *connection = malloc(sizeof *connection);
    (void)listener;
    (void)address;
    (void)length;
    if (connection == NULL) {
        state->error = -ENOMEM;
        close(fd);
        return;
    }
    connection->program = program;
    connection->event = event_new(state->base, fd, EV_READ | EV_PERSIST, on_readable, connection);
    if (connection->event == NULL || event_add(connection->event, NULL) != 0) {
        state->error = -ENOMEM;
        if (connection->event != NULL)
            event_free(connection->event);
        free(connection);
        close(fd);
        return;
    }
    connection->next = state->connections;
    connection->link = &state->connections;
    if (connection->next != NULL)
        connection->next->link = &connection->next;
    state->connections = connection;
    program->accepted++;
}

static void on_accept_error(struct evconnlistener *listener, void *argument)
{
    struct program *program = argument;
    struct state *state = program->state;
    (void)listener;
    state->error = errno != 0 ? -errno : -EIO;
}

static int libevent_turn(struct program *program, bool wait)
{
    struct state *state = program->state;
    if (event_base_loop(state->base, wait ? EVLOOP_ONCE : EVLOOP_NONBLOCK) != 0)
        return -EIO;
    return state->error;
}

static void libevent_close(struct program *program)
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

static int libevent_open(struct program *program, int listener)
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
    /* What somebody's environment says of libevent is not what is measured. */
    event_config_set_flag(config, EVENT_BASE_FLAG_IGNORE_ENV);
    state->base = event_base_new_with_config(config);
    event_config_free(config);
    if (state->base == NULL || strcmp(event_base_get_method(state->base), "epoll") != 0) {
        libevent_close(program);
        return -ENOTSUP;
    }
    state->listener = evconnlistener_new(state->base, on_accept, program,
                                         LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC, 0, listener);
    if (state->listener == NULL) {
        libevent_close(program);
        return -EIO;
    }
    evconnlistener_set_error_cb(state->listener, on_accept_error);
    return 0;
}

static const char *libevent_describe(void)
{
    static char text[64];
    snprintf(text, sizeof text, "libevent %s", event_get_version());
    return text;
}

static const struct program_ops ops = {
    .name = "event",
    .open = libevent_open,
    .turn = libevent_turn,
    .close = libevent_close,
    .describe = libevent_describe,
};
const struct program_ops *const program_libevent = &ops;

#else

const struct program_ops *const program_libevent = NULL;

#endif
