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
    /* Takes over `listener`, non-blocking and listening, or bound where the program is one
     * of datagrams. 0 or -errno. */
    int (*open)(struct program *program, int listener);
    /* One iteration of its loop: handles all that is ready, and with `wait` waits
     * until something is. 0 or -errno. */
    int (*turn)(struct program *program, bool wait);
    /* Ends all: connections, listener, loop. */
    void (*close)(struct program *program);
    /* What the loop is made of, with its version. */
    const char *(*describe)(void);
};

struct program {
    const struct program_ops *ops;
    void *state;
    bool close_after_reply;
    bool discard;       /* read, and write nothing */
    uint32_t read_size; /* bytes asked of one read(), where the program has a say in it */
    uint64_t accepted, closed, turns;
    uint64_t received; /* bytes read and, unless they are discarded, given to a write */
    uint64_t unsent;   /* such writes that its library has yet to make */
    uint64_t spurious; /* reads that had nothing to read */
    uint64_t errors;   /* short writes, errors of read() and write() */
};

/* A request, and so a reply, is this long unless a point says otherwise. */
#define REQUEST_SIZE 64
/* What a program asks read() for, as many do, and the most that one asks for. */
#define READ_SIZE 4096
#define READ_SIZE_MAX 65536
/* Where a program reads to. What the kernel copies to costs some 3 % more where it does not begin
 * a cache line, and where a heap or a stack begins differs between processes. */
#define READ_ALIGNMENT 64

extern const struct program_ops program_raw;
extern const struct program_ops program_floor;
extern const struct program_ops program_ring;
extern const struct program_ops program_api;
/* NULL where the bench was built without libevent, or libuv. */
extern const struct program_ops *const program_libevent;
extern const struct program_ops *const program_bufferevent;
extern const struct program_ops *const program_ring_bufferevent;
extern const struct program_ops *const program_libuv;
extern const struct program_ops *const program_libuv_datagrams;
extern const struct program_ops *const program_ring_libuv;
extern const struct program_ops *const program_ring_libuv_datagrams;
extern const struct program_ops *const program_libuv_async;
extern const struct program_ops *const program_libuv_turns;
/* What one turn of program_libuv_async sends on. */
#define BENCH_ASYNCS 1024u

static inline int program_turn(struct program *program, bool wait)
{
    program->turns++;
    return program->ops->turn(program, wait);
}

/* Turns until *counter, one of the program's own, has reached `target` and all
 * that is to be written has been, as far as the program can tell. */
static inline int program_run(struct program *program, const uint64_t *counter, uint64_t target)
{
    int rc = 0;
    while (rc == 0 && (*counter < target || program->unsent > 0))
        rc = program_turn(program, true);
    return rc;
}

#endif
