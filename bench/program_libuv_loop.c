/* SPDX-License-Identifier: MIT
 *
 * Three more programs on libuv, for what its streams are no part of.
 *
 *  datagrams   each datagram goes back to its sender by uv_udp_send(), in a request of
 *              its own that the callback frees
 *  async       a turn sends on each of 1024 uv_async_t, and hears of them
 *  turns       an idle handle keeps the loop from sleeping: what a turn costs
 */
#include "program.h"

#include <stddef.h>

#ifdef BENCH_HAVE_LIBUV

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <uv.h>

#define ASYNCS BENCH_ASYNCS

struct state {
    uv_loop_t loop;
    uv_udp_t udp;
    uv_idle_t idle;
    uv_async_t *asyncs;
    uint32_t awaited; /* callbacks of asyncs */
    char buffer[65536];
};

struct reply {
    uv_udp_send_t send;
    struct program *program;
    char bytes[];
};

static struct state *make_state(struct program *program, int *ret_rc)
{
    struct state *state = calloc(1, sizeof *state);
    *ret_rc = state == NULL ? UV_ENOMEM : uv_loop_init(&state->loop);
    if (*ret_rc == 0) {
        program->state = state;
        return state;
    }
    free(state);
    return NULL;
}

static void end_each(uv_handle_t *handle, void *unused)
{
    (void)unused;
    if (!uv_is_closing(handle))
        uv_close(handle, NULL);
}

static void loop_close(struct program *program)
{
    struct state *state = program->state;
    if (state == NULL)
        return;
    uv_walk(&state->loop, end_each, NULL);
    uv_run(&state->loop, UV_RUN_DEFAULT);
    uv_loop_close(&state->loop);
    free(state->asyncs);
    free(state);
    program->state = NULL;
}

static const char *describe(void)
{
    static char text[64];
    snprintf(text, sizeof text, "libuv %s", uv_version_string());
    return text;
}

/* --------------------------------------------------------------- datagrams */

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

static int datagrams_open(struct program *program, int bound)
{
    int rc;
    struct state *state = make_state(program, &rc);
    if (state == NULL)
        return rc;
    rc = uv_udp_init(&state->loop, &state->udp);
    state->udp.data = program;
    if (rc == 0)
        rc = uv_udp_open(&state->udp, bound);
    if (rc == 0)
        rc = uv_udp_recv_start(&state->udp, on_alloc, on_datagram);
    if (rc != 0)
        loop_close(program);
    return rc;
}

static int loop_turn(struct program *program, bool wait)
{
    struct state *state = program->state;
    uv_run(&state->loop, wait ? UV_RUN_ONCE : UV_RUN_NOWAIT);
    return 0;
}

/* ------------------------------------------------------------------- async */

static void on_async(uv_async_t *async)
{
    struct program *program = async->data;
    struct state *state = program->state;
    program->received++;
    state->awaited--;
}

static int async_open(struct program *program, int listener)
{
    int rc;
    struct state *state = make_state(program, &rc);
    if (state == NULL)
        return rc;
    state->asyncs = calloc(ASYNCS, sizeof state->asyncs[0]);
    if (state->asyncs == NULL)
        rc = UV_ENOMEM;
    for (uint32_t i = 0; rc == 0 && i < ASYNCS; i++) {
        rc = uv_async_init(&state->loop, &state->asyncs[i], on_async);
        state->asyncs[i].data = program;
    }
    if (rc != 0)
        loop_close(program);
    else
        close(listener);
    return rc;
}

static int async_turn(struct program *program, bool wait)
{
    struct state *state = program->state;
    for (uint32_t i = 0; state->awaited == 0 && i < ASYNCS; i++)
        uv_async_send(&state->asyncs[i]);
    if (state->awaited == 0)
        state->awaited = ASYNCS;
    return loop_turn(program, wait);
}

/* ------------------------------------------------------------------- turns */

static void on_idle(uv_idle_t *idle)
{
    struct program *program = idle->data;
    program->received++;
}

static int turns_open(struct program *program, int listener)
{
    int rc;
    struct state *state = make_state(program, &rc);
    if (state == NULL)
        return rc;
    uv_idle_init(&state->loop, &state->idle);
    state->idle.data = program;
    uv_idle_start(&state->idle, on_idle);
    close(listener);
    return 0;
}

static const struct program_ops datagrams = {.name = "libuv", .open = datagrams_open, .turn = loop_turn,
                                             .close = loop_close, .describe = describe};
static const struct program_ops async = {.name = "libuv", .open = async_open, .turn = async_turn,
                                         .close = loop_close, .describe = describe};
static const struct program_ops turns = {.name = "libuv", .open = turns_open, .turn = loop_turn,
                                         .close = loop_close, .describe = describe};
const struct program_ops *const program_libuv_datagrams = &datagrams;
const struct program_ops *const program_libuv_async = &async;
const struct program_ops *const program_libuv_turns = &turns;

#else

const struct program_ops *const program_libuv_datagrams = NULL;
const struct program_ops *const program_libuv_async = NULL;
const struct program_ops *const program_libuv_turns = NULL;

#endif
