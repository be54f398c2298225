/* SPDX-License-Identifier: MIT
 *
 * Two more programs on libuv, for what its handles with fds are no part of.
 *
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
    uv_idle_t idle;
    uv_async_t *asyncs;
    uint32_t awaited; /* callbacks of asyncs */
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

static const struct program_ops async = {.name = "libuv", .open = async_open, .turn = async_turn,
                                         .close = loop_close, .describe = describe};
static const struct program_ops turns = {.name = "libuv", .open = turns_open, .turn = loop_turn,
                                         .close = loop_close, .describe = describe};
const struct program_ops *const program_libuv_async = &async;
const struct program_ops *const program_libuv_turns = &turns;

#else

const struct program_ops *const program_libuv_async = NULL;
const struct program_ops *const program_libuv_turns = NULL;

#endif
