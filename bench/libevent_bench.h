/* SPDX-License-Identifier: MIT
 *
 * What libevent's own benchmark programs and an HTTP server ask of a base, as loads
 * that can be run on any base: on libevent's epoll, and on ours. One round after
 * another; what is by the clock is said with each.
 */
#ifndef BENCH_LIBEVENT_BENCH_H
#define BENCH_LIBEVENT_BENCH_H

#include <stdbool.h>
#include <stdint.h>

struct event_base;

struct load {
    const struct load_ops *ops;
    uint32_t n, active, writes; /* the shape */
    struct event_base *base;
    bool counting;              /* marks around what is by the clock (count.h) */
    bool objects;               /* our bufferevents and listener, too (http) */
    unsigned side;
    uint64_t ticks;             /* by the clock, since somebody set it to 0 */
    void *state;
    char failure[128];
};

struct load_ops {
    const char *name;
    /* Makes all but the base. 0, or -1 with `failure` set: so for all of them. */
    int (*open)(struct load *load);
    int (*round)(struct load *load);
    void (*close)(struct load *load);
    /* What a figure is divided by: events, or requests, of a round. */
    uint32_t (*units)(const struct load *load);
};

extern const struct load_ops load_pipes, load_cascade, load_http, load_http_close;

/* The clock, and the marks. */
uint64_t load_begin(struct load *load);
void load_end(struct load *load, uint64_t began);

#endif
