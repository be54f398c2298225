/* SPDX-License-Identifier: MIT
 *
 * The programs under test: echo servers as people write them, each around its
 * own event loop, none of which knows anything of ringpoll or of being measured.
 * What they count (replies, closes, turns) is what the harness waits for.
 *
 * The program lives in the same thread as its client. The harness calls turn()
 * while the clock runs and everything else while it stands.
 */
#ifndef BENCH_PROGRAM_H
#define BENCH_PROGRAM_H

#include <stdbool.h>
#include <stdint.h>

struct program;

struct program_ops {
    const char *name;
    /* Takes over `listener`, non-blocking and listening. 0 or -errno. */
    int (*open)(struct program *program, int listener);
    /* One iteration of its loop: waits until something is ready and handles all
     * of that. 0 or -errno. */
    int (*turn)(struct program *program);
    /* Ends all: connections, listener, loop. */
    void (*close)(struct program *program);
    /* What the loop is made of, with its version. */
    const char *(*describe)(void);
};

struct program {
    const struct program_ops *ops;
    void *state;
    bool close_after_reply;
    uint32_t read_size; /* bytes asked of one read() */
    uint64_t accepted, replied, closed, turns;
    uint64_t spurious; /* reads that had nothing to read */
    uint64_t errors;   /* short writes, errors of read() and write() */
};

/* A request, and so a reply, is this long. */
#define REQUEST_SIZE 64
/* What a program asks read() for, as many do. */
#define READ_SIZE 4096

extern const struct program_ops program_raw;
extern const struct program_ops program_floor;
/* NULL where the bench was built without libevent. */
extern const struct program_ops *const program_libevent;

/* Turns until *counter, one of the program's own, has reached `target`. */
static inline int program_run(struct program *program, const uint64_t *counter, uint64_t target)
{
    while (*counter < target) {
        int rc = program->ops->turn(program);
        if (rc != 0)
            return rc;
        program->turns++;
    }
    return 0;
}

#endif
