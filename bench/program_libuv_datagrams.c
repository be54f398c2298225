/* SPDX-License-Identifier: MIT
 *
 * A socket of libuv's: each datagram goes back to its sender by uv_udp_send(), in a request
 * of its own that the callback frees.
 */
#include "program.h"

#include <stddef.h>

#ifdef BENCH_HAVE_LIBUV

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <uv.h>

struct state {
    uv_loop_t loop;
    uv_udp_t udp;
    char buffer[65536];
};

struct reply {
    uv_udp_send_t send;
    struct program *program;
    char bytes[];
};

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buffer)
{
    struct program *program = handle->data;
    struct state *state = program->state;
    (void)suggested;
    *buffer = uv_buf_init(state->buffer, sizeof state->buffer);
}

static void on_sent(uv_udp_send_t *send, int status)
{
    struct reply *reply = send->data;
    reply->program->errors += status < 0;
    reply->program->unsent--;
    free(reply);
}

static void on_datagram(uv_udp_t *udp, ssize_t got, const uv_buf_t *buffer, const struct sockaddr *from, unsigned flags)
{
    struct program *program = udp->data;
    (void)flags;
    if (got < 0 || from == NULL) {
        program->errors += got < 0;
        program->spurious += got == 0;
        return;
    }
    program->received += (uint64_t)got;
    struct reply *reply = malloc(sizeof *reply + (size_t)got);
    if (reply == NULL) {
        program->errors++;
        return;
    }
    memcpy(reply->bytes, buffer->base, (size_t)got);
    uv_buf_t bytes = uv_buf_init(reply->bytes, (unsigned)got);
    reply->program = program;
    reply->send.data = reply;
    program->unsent++;
    if (uv_udp_send(&reply->send, udp, &bytes, 1, from, on_sent) != 0) {
        program->errors++;
        program->unsent--;
        free(reply);
    }
}

static void datagrams_close(struct program *program)
{
    struct state *state = program->state;
    if (state == NULL)
        return;
    uv_close((uv_handle_t *)&state->udp, NULL);
    uv_run(&state->loop, UV_RUN_DEFAULT);
    uv_loop_close(&state->loop);
    free(state);
    program->state = NULL;
}

static int datagrams_open(struct program *program, int bound)
{
    struct state *state = calloc(1, sizeof *state);
    int rc = state == NULL ? UV_ENOMEM : uv_loop_init(&state->loop);
    if (rc == 0 && (rc = uv_udp_init(&state->loop, &state->udp)) != 0)
        uv_loop_close(&state->loop);
    if (rc != 0) {
        free(state);
        return rc;
    }
    program->state = state;
    state->udp.data = program;
    rc = uv_udp_open(&state->udp, bound);
    if (rc == 0)
        rc = uv_udp_recv_start(&state->udp, on_alloc, on_datagram);
    if (rc != 0)
        datagrams_close(program);
    return rc;
}

static int datagrams_turn(struct program *program, bool wait)
{
    struct state *state = program->state;
    uv_run(&state->loop, wait ? UV_RUN_ONCE : UV_RUN_NOWAIT);
    return 0;
}

static const char *datagrams_describe(void)
{
    static char text[64];
    snprintf(text, sizeof text, "libuv %s, datagrams", uv_version_string());
    return text;
}

static const struct program_ops datagrams = {
    .name = "libuv",
    .open = datagrams_open,
    .turn = datagrams_turn,
    .close = datagrams_close,
    .describe = datagrams_describe,
};
const struct program_ops *const program_libuv_datagrams = &datagrams;

#else

const struct program_ops *const program_libuv_datagrams = NULL;

#endif
