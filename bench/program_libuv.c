/* SPDX-License-Identifier: MIT
 *
 * The same service by libuv's streams: uv_read_start(), and for each piece that
 * comes a write request of its own that its callback frees. A piece is read into
 * the connection's buffer, or into a fresh one while a write still has that.
 *
 * One turn is uv_run(UV_RUN_ONCE). libuv tries a write at once; only one that it
 * could not finish is waited for.
 */
#include "program.h"

#include <stddef.h>

#ifdef BENCH_HAVE_LIBUV

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <uv.h>

union handle {
    uv_handle_t handle;
    uv_stream_t stream;
    uv_tcp_t tcp;
    uv_pipe_t pipe;
};

struct connection {
    union handle handle;
    struct program *program;
    struct connection *next, **link;
    bool lent; /* `buffer` is a write's */
    bool ending;
    _Alignas(READ_ALIGNMENT) char buffer[READ_SIZE_MAX];
};

struct request {
    uv_write_t write;
    struct connection *connection;
    char *bytes;
    bool unsent; /* counted in program->unsent */
};

struct state {
    uv_loop_t loop;
    union handle listener;
    int family;
    bool listener_open;
    struct connection *connections;
    int error;
};

static int handle_init(struct state *state, union handle *handle)
{
    return state->family == AF_UNIX ? uv_pipe_init(&state->loop, &handle->pipe, 0)
                                    : uv_tcp_init(&state->loop, &handle->tcp);
}

static void on_closed(uv_handle_t *handle)
{
    struct connection *connection = handle->data;
    connection->program->closed++;
    free(connection);
}

static void end_connection(struct connection *connection)
{
    if (connection->ending)
        return;
    connection->ending = true;
    *connection->link = connection->next;
    if (connection->next != NULL)
        connection->next->link = connection->link;
    uv_close(&connection->handle.handle, on_closed);
}

static void give_back(struct connection *connection, char *bytes)
{
    if (bytes == connection->buffer)
        connection->lent = false;
    else
        free(bytes);
}

static void on_written(uv_write_t *write, int status)
{
    struct request *request = write->data;
    struct connection *connection = request->connection;
    struct program *program = connection->program;
    if (status < 0)
        program->errors++;
    program->unsent -= request->unsent;
    give_back(connection, request->bytes);
    free(request);
    if (program->close_after_reply)
        end_connection(connection);
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer)
{
    struct connection *connection = handle->data;
    char *bytes = connection->lent ? malloc(suggested) : connection->buffer;
    if (bytes == connection->buffer)
        suggested = sizeof connection->buffer;
    connection->lent |= bytes == connection->buffer;
    *buffer = uv_buf_init(bytes, bytes != NULL ? (unsigned)suggested : 0);
}

static void on_read(uv_stream_t *stream, ssize_t got, const uv_buf_t *buffer)
{
    struct connection *connection = stream->data;
    struct program *program = connection->program;
    struct request *request = NULL;
    if (got > 0) {
        program->received += (uint64_t)got;
        if (!program->discard)
            request = malloc(sizeof *request);
    }
    if (request != NULL) {
        uv_buf_t bytes = uv_buf_init(buffer->base, (unsigned)got);
        request->write.data = request;
        request->connection = connection;
        request->bytes = buffer->base;
        request->unsent = false;
        if (uv_write(&request->write, stream, &bytes, 1, on_written) == 0) {
            request->unsent = uv_stream_get_write_queue_size(stream) > 0;
            program->unsent += request->unsent;
            return;
        }
        program->errors++;
        free(request);
    } else if (got == 0) {
        program->spurious++; /* EAGAIN */
    }
    if (buffer->base != NULL)
        give_back(connection, buffer->base);
    if (got < 0) {
        if (got != UV_EOF)
            program->errors++;
        end_connection(connection);
    }
}

static void on_connection(uv_stream_t *listener, int status)
{
    struct program *program = listener->data;
    struct state *state = program->state;
    struct connection *connection = status == 0 ? aligned_alloc(READ_ALIGNMENT, sizeof *connection) : NULL;
    if (connection == NULL) {
        state->error = status != 0 ? status : -ENOMEM;
        return;
    }
    connection->program = program;
    connection->lent = connection->ending = false;
    int rc = handle_init(state, &connection->handle);
    if (rc != 0) {
        state->error = rc;
        free(connection);
        return;
    }
    connection->handle.handle.data = connection;
    connection->next = state->connections;
    connection->link = &state->connections;
    if (connection->next != NULL)
        connection->next->link = &connection->next;
    state->connections = connection;
    rc = uv_accept(listener, &connection->handle.stream);
    if (rc == 0)
        rc = uv_read_start(&connection->handle.stream, on_alloc, on_read);
    if (rc != 0)
        state->error = rc;
    program->accepted++;
}

static int libuv_turn(struct program *program, bool wait)
{
    struct state *state = program->state;
    uv_run(&state->loop, wait ? UV_RUN_ONCE : UV_RUN_NOWAIT);
    return state->error;
}

static void libuv_close(struct program *program)
{
    struct state *state = program->state;
    if (state == NULL)
        return;
    while (state->connections != NULL)
        end_connection(state->connections);
    if (state->listener_open)
        uv_close(&state->listener.handle, NULL);
    uv_run(&state->loop, UV_RUN_DEFAULT);
    uv_loop_close(&state->loop);
    free(state);
    program->state = NULL;
}

static int libuv_open(struct program *program, int listener)
{
    struct state *state = calloc(1, sizeof *state);
    socklen_t length = sizeof state->family;
    if (state == NULL)
        return -ENOMEM;
    int rc = uv_loop_init(&state->loop);
    if (rc != 0) {
        free(state);
        return rc;
    }
    program->state = state;
    if (getsockopt(listener, SOL_SOCKET, SO_DOMAIN, &state->family, &length) != 0)
        rc = -errno;
    if (rc == 0)
        rc = handle_init(state, &state->listener);
    if (rc == 0) {
        state->listener_open = true;
        state->listener.handle.data = program;
        rc = state->family == AF_UNIX ? uv_pipe_open(&state->listener.pipe, listener)
                                      : uv_tcp_open(&state->listener.tcp, listener);
    }
    if (rc == 0)
        rc = uv_listen(&state->listener.stream, 4096, on_connection);
    if (rc != 0)
        libuv_close(program);
    return rc;
}

static const char *libuv_describe(void)
{
    static char text[64];
    snprintf(text, sizeof text, "libuv %s, streams", uv_version_string());
    return text;
}

static const struct program_ops ops = {
    .name = "libuv",
    .open = libuv_open,
    .turn = libuv_turn,
    .close = libuv_close,
    .describe = libuv_describe,
};
const struct program_ops *const program_libuv = &ops;

#else

const struct program_ops *const program_libuv = NULL;

#endif
