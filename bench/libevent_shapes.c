/* SPDX-License-Identifier: MIT
 *
 * The shapes of libevent's own test/bench and test/bench_cascade, on socket pairs.
 *
 * pipes n/active/writes: n pairs are watched for reading, for good. A byte goes into
 * `active` of them; who reads one writes one to the next pair, `writes` times in all.
 * By the clock are the turns of the loop until every byte was read. In each round all
 * events are deleted and added again before, as there; that is not by the clock.
 *
 * cascade n: n pairs, each watched once. A byte goes into the first; who reads it
 * writes one to the next. By the clock is all from the first byte to the last event,
 * and with it the end of each watch.
 */
#include "libevent_bench.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <event2/event.h>
#include <event2/event_struct.h>

struct shape {
    struct load *load;
    int (*fds)[2];
    struct event **events;
    struct place {
        struct shape *shape;
        uint32_t number;
    } *places;
    uint32_t left, written, seen;
};

static void shape_close(struct load *load)
{
    struct shape *shape = load->state;
    if (!shape)
        return;
    for (uint32_t i = 0; i < load->n; i++) {
        if (shape->events && shape->events[i])
            event_free(shape->events[i]);
        if (shape->fds && shape->fds[i][0] >= 0) {
            close(shape->fds[i][0]);
            close(shape->fds[i][1]);
        }
    }
    free(shape->fds);
    free(shape->events);
    free(shape->places);
    free(shape);
    load->state = NULL;
}

static int open_with(struct load *load, short what, event_callback_fn on_byte)
{
    struct shape *shape = calloc(1, sizeof *shape);
    if (!shape)
        return -1;
    load->state = shape;
    shape->load = load;
    shape->fds = calloc(load->n, sizeof shape->fds[0]);
    shape->events = calloc(load->n, sizeof(struct event *));
    shape->places = calloc(load->n, sizeof shape->places[0]);
    for (uint32_t i = 0; shape->fds && i < load->n; i++)
        shape->fds[i][0] = -1;
    for (uint32_t i = 0; shape->fds && shape->events && shape->places && i < load->n; i++) {
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, shape->fds[i]) != 0) {
            snprintf(load->failure, sizeof load->failure, "pair %u of %u: %s", i, load->n, strerror(errno));
            return -1;
        }
        shape->places[i] = (struct place){shape, i};
        shape->events[i] = event_new(load->base, shape->fds[i][0], what, on_byte, &shape->places[i]);
        if (!shape->events[i])
            return -1;
    }
    return shape->places ? 0 : -1;
}

static void write_to(struct shape *shape, uint32_t number)
{
    if (send(shape->fds[number][1], "e", 1, 0) == 1)
        shape->written++;
}

/* ------------------------------------------------------------------- pipes */

static void on_byte(evutil_socket_t fd, short what, void *argument)
{
    struct place *place = argument;
    struct shape *shape = place->shape;
    char byte;
    (void)what;
    if (recv((int)fd, &byte, 1, 0) == 1)
        shape->seen++;
    if (shape->left == 0)
        return;
    shape->left--;
    write_to(shape, place->number + 1 < shape->load->n ? place->number + 1 : 0);
}

static int pipes_open(struct load *load)
{
    return open_with(load, EV_READ | EV_PERSIST, on_byte);
}

static int pipes_round(struct load *load)
{
    struct shape *shape = load->state;
    for (uint32_t i = 0; i < load->n; i++) {
        event_del(shape->events[i]);
        if (event_add(shape->events[i], NULL) != 0)
            return -1;
    }
    event_base_loop(load->base, EVLOOP_ONCE | EVLOOP_NONBLOCK);
    shape->written = shape->seen = 0;
    shape->left = load->writes;
    for (uint32_t i = 0; i < load->active; i++)
        write_to(shape, i * (load->n / load->active));
    uint64_t began = load_begin(load);
    for (unsigned turn = 0; turn < 1000000 && shape->seen != shape->written; turn++)
        event_base_loop(load->base, EVLOOP_ONCE | EVLOOP_NONBLOCK);
    load_end(load, began);
    if (shape->seen == load->active + load->writes)
        return 0;
    snprintf(load->failure, sizeof load->failure, "%u of %u bytes were read", shape->seen, load->active + load->writes);
    return -1;
}

static uint32_t pipes_units(const struct load *load)
{
    return load->active + load->writes;
}

const struct load_ops load_pipes = {"pipes", pipes_open, pipes_round, shape_close, pipes_units};

/* ----------------------------------------------------------------- cascade */

static void on_its_turn(evutil_socket_t fd, short what, void *argument)
{
    struct place *place = argument;
    struct shape *shape = place->shape;
    char byte;
    (void)what;
    if (recv((int)fd, &byte, 1, 0) == 1)
        shape->seen++;
    if (place->number + 1 < shape->load->n)
        write_to(shape, place->number + 1);
}

static int cascade_open(struct load *load)
{
    return open_with(load, EV_READ, on_its_turn);
}

static int cascade_round(struct load *load)
{
    struct shape *shape = load->state;
    for (uint32_t i = 0; i < load->n; i++)
        if (event_add(shape->events[i], NULL) != 0)
            return -1;
    event_base_loop(load->base, EVLOOP_ONCE | EVLOOP_NONBLOCK);
    shape->written = shape->seen = 0;
    uint64_t began = load_begin(load);
    write_to(shape, 0);
    event_base_dispatch(load->base);
    load_end(load, began);
    if (shape->seen == load->n)
        return 0;
    snprintf(load->failure, sizeof load->failure, "%u of %u bytes were read", shape->seen, load->n);
    return -1;
}

static uint32_t cascade_units(const struct load *load)
{
    return load->n;
}

const struct load_ops load_cascade = {"cascade", cascade_open, cascade_round, shape_close, cascade_units};
