/* SPDX-License-Identifier: MIT
 *
 * A point of the comparison and its figures. Two lanes run what the point says,
 * one per side; a point with idle connections has four, since each side is also
 * compared with itself without them.
 */
#ifndef BENCH_POINT_H
#define BENCH_POINT_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "lane.h"

enum group {
    GROUP_ECHO,    /* libevent: what the bars are about */
    GROUP_RAW,     /* a hand-written loop */
    GROUP_THREADS, /* libevent in a process that has a second thread */
    GROUP_FLOOR,   /* the second side is no shim, but a loop written for a ring */
    GROUP_CHURN,
    GROUP_IDLE,
    GROUPS,
};

#define LANES_MAX 4

struct figure {
    double clock;           /* median over blocks, per request */
    double whole;           /* with the client's part */
    double instructions;    /* per request; 0: not available */
    bool counted;
    double calls;           /* system calls per request */
    double beside;          /* per turn, beside the program's reads and writes */
    double turns;           /* per round, in the counted run */
    double spurious;        /* reads in vain per request */
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
    /* results */
    bool done;
    unsigned lanes;       /* 2, or 4: side 0, side 1, and both again with the idle ones */
    struct figure figures[LANES_MAX];
    struct ratio ratio;   /* side 1 to side 0; with idle connections if there are any */
    struct ratio alone;   /* GROUP_IDLE: the same without idle connections */
    struct ratio idle[2]; /* GROUP_IDLE: with to without, per side */
    double whole_ratio;
    unsigned blocks;
};

struct plan {
    enum side sides[2];
    unsigned pairs;  /* worker processes per side and point, one after another */
    unsigned blocks; /* per pair */
    double block_ms;
    int cpu;
    uint32_t idle;   /* connections of the idle points */
    bool steps;  /* step through some rounds, too */
    FILE *dump;  /* NULL, or where each instruction goes */
};

/* Measures it. 0, or -1 with a sentence in `failure`. */
int point_measure(struct point *point, const struct plan *plan, char *failure, size_t failure_size);

/* The points there are. */
#define POINTS_MAX 64
extern struct point points[POINTS_MAX];
extern unsigned points_count;
/* Fills the table; `idle` connections for the idle points, 0: no such points.
 * Where there is no libevent, every point is of the hand-written loop. */
void points_init(uint32_t idle);

#endif
