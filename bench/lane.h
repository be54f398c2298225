/* SPDX-License-Identifier: MIT
 *
 * One side of a comparison: a worker process with its environment. The program
 * that starts lanes is executed again as their worker, so its main() begins with
 * worker_or_idler().
 */
#ifndef BENCH_LANE_H
#define BENCH_LANE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#include "count.h"
#include "worker.h"

#ifdef __cplusplus
extern "C" {
#endif

enum side {
    SIDE_EPOLL, /* nothing preloaded */
    SIDE_RING,  /* the shim, RINGPOLL=require */
    SIDE_OFF,   /* the shim, RINGPOLL=off: what interposition alone costs */
    SIDE_STOCK, /* nothing preloaded, stock libuv */
    SIDE_TREE,  /* nothing preloaded, a libuv that was built --with-uring */
};
const char *side_name(enum side side);
static inline bool side_has_shim(enum side side)
{
    return side == SIDE_RING || side == SIDE_OFF;
}
/* What the shim does for a program: RINGPOLL_PROFILE. */
enum profile { PROFILE_READINESS, PROFILE_SAFE, PROFILE_THROUGHPUT, PROFILES };
const char *profile_name(enum profile profile);

struct lane {
    enum side side;
    enum profile profile;  /* if side_has_shim(side) */
    struct workload workload;
    pid_t pid, idler;      /* 0: not running */
    int control, idler_control;
    struct hello hello;
    char failure[256];     /* "": none */
};

/* Where the shim is: $RINGPOLL_PRELOAD, the build tree, or the installed one.
 * NULL when there is none. */
const char *shim_path(void);

/* The directory of SIDE_STOCK's libuv.so.1, and of SIDE_TREE's: of the trees
 * $RINGPOLL_LIBUV_STOCK (or "stock" beside the other one) and $RINGPOLL_LIBUV_DIR. NULL: it
 * is not there; SIDE_STOCK then has the installed one. */
const char *libuv_path(enum side side);

/* All of these: 0, or -1 with lane->failure set. */
int lane_start(struct lane *lane);
int lane_order(struct lane *lane, enum worker_command command, uint32_t rounds, struct answer *ret_answer);
/* Counts system calls over `rounds` rounds. 1: ptrace is not to be had. */
int lane_count(struct lane *lane, uint32_t rounds, struct call_counts *ret_counts, struct answer *ret_answer);
/* Steps through `rounds` rounds and sums up the instructions in user space, by
 * object file, in the order of their sizes; the bench itself, the program's own
 * code, is "program". 1: not to be had here. `dump`, if not NULL, gets a line for
 * each instruction: object, offset in the file's image, times. */
#define OBJECTS_MAX 12
struct object_steps {
    char name[64];
    uint64_t steps;
};
int lane_count_steps(struct lane *lane, uint32_t rounds, struct object_steps ret_objects[OBJECTS_MAX], FILE *dump);
/* Whether the worker holds a ring right now. */
bool lane_holds_ring(const struct lane *lane);
/* Asks it to end, and sees that it does. NULL-safe for one that never started. */
int lane_stop(struct lane *lane);

#ifdef __cplusplus
}
#endif

#endif
