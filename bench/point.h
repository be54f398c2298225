/* SPDX-License-Identifier: MIT
 *
 * A point of the comparison and its figures. Several lanes run what the point
 * says, one per column: the first is what the others are compared with. A point
 * with idle connections has twice as many, since each column is also compared
 * with itself without them.
 */
#ifndef BENCH_POINT_H
#define BENCH_POINT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "lane.h"

enum bench { BENCH_READINESS, BENCH_COMPLETION, BENCH_MEMORY_USE, BENCH_LIBUV_TREE, BENCHES };
extern const char *const bench_names[BENCHES];

enum group {
    /* readiness */
    GROUP_ECHO,    /* libevent: what the bars are about */
    GROUP_RAW,     /* a hand-written loop */
    GROUP_THREADS, /* libevent in a process that has a second thread */
    GROUP_FLOOR,   /* the second side is no shim, but a loop written for a ring */
    GROUP_CHURN,
    GROUP_IDLE,
    /* completion */
    GROUP_BUFFEREVENT,
    GROUP_EVENT,
    GROUP_LIBUV,
    GROUP_LOOP,
    GROUP_HAND,    /* without the shim: on our public interface, and for a ring by hand */
    GROUP_LIBEVENT, /* without the shim: libevent's bufferevents on epoll, and ours on the ring */
    GROUP_HANDLES, /* without the shim: libuv's handles on epoll, and ours on the ring */
    /* memory */
    GROUP_MEMORY,
    /* libuv */
    GROUP_TREE,    /* stock libuv, and one that was built --with-uring */
    GROUPS,
};
enum bench group_bench(enum group group);

/* Who runs a lane. */
struct column {
    enum side side;
    enum profile profile;
    bool other_program; /* runs `program` instead of the point's */
    uint32_t program;
};
/* "epoll", "safe", …; for narrow tables, at most five characters. */
const char *column_name(const struct column *column);
const char *column_short_name(const struct column *column);

#define COLUMNS_MAX 5
#define LANES_MAX (2 * COLUMNS_MAX)

struct figure {
    double clock;           /* median over blocks, per request */
    double whole;           /* with the client's part */
    double instructions;    /* per request; 0: not available */
    double memory;          /* GROUP_MEMORY: bytes per connection; all else here is 0 */
    bool counted;
    double calls;           /* system calls per request */
    double beside;          /* per turn, beside the program's reads and writes */
    double turns;           /* per round, in the counted run */
    double spurious;        /* reads in vain per request */
    double flushes;         /* turns per round that only brought replies out */
    uint32_t counted_requests;
    uint32_t stepped_requests; /* 0: not asked for, or not available */
    struct object_steps objects[OBJECTS_MAX];
    struct call_counts counts;
    bool held_ring;
    char program[64];
};

struct ratio {
    double value;     /* median of the paired ratios */
    double low, high; /* 95 % of the median, by order statistics */
};

struct point {
    char name[48];
    enum group group;
    struct workload workload;
    bool long_only;       /* left out of a quick run unless it is asked for */
    struct column columns[COLUMNS_MAX];
    unsigned width;       /* how many columns */
    /* results */
    bool done;
    unsigned lanes;       /* `width`, or twice that: without and with idle connections */
    struct figure figures[LANES_MAX];
    /* The column to the first one (to 1 of that itself); with idle connections if there are any. */
    struct ratio ratios[COLUMNS_MAX];
    double whole_ratios[COLUMNS_MAX];
    struct ratio alone[COLUMNS_MAX]; /* GROUP_IDLE: the same without idle connections */
    struct ratio idle[COLUMNS_MAX];  /* GROUP_IDLE: with to without, per column */
    unsigned blocks;
};

#define SIZES_MAX 8

struct plan {
    struct {
        struct column columns[COLUMNS_MAX];
        unsigned width;
    } of[BENCHES];
    unsigned pairs;  /* worker processes per column and point, one after another */
    unsigned blocks; /* per one of those */
    double block_ms;
    int cpu;
    uint32_t idle;   /* connections of the idle points */
    uint32_t both_ends; /* the same where one process has both ends of each */
    uint32_t sizes[SIZES_MAX]; /* of the points with larger messages, bytes */
    unsigned sizes_count;
    bool steps;      /* step through some rounds, too */
    FILE *dump;      /* NULL, or where each instruction goes */
};

/* Measures it. 0, or -1 with a sentence in `failure`. */
int point_measure(struct point *point, const struct plan *plan, char *failure, size_t failure_size);

/* The points there are. */
#define POINTS_MAX 320
extern struct point points[POINTS_MAX];
extern unsigned points_count;
/* Fills the table; idle and both_ends 0: no such points.
 * Where there is no libevent or libuv, readiness is of the hand-written loop, and
 * completion lacks the points of that library. */
void points_init(const struct plan *plan);

#endif
