/* SPDX-License-Identifier: MIT
 *
 * One measured process: program and client in one thread, pinned to one CPU. The
 * driver starts it (once plainly, once under the shim), tells it over a
 * socketpair what to do, and reads one answer per order. The socketpair is no
 * part of the program's loop and is only touched while the clock stands.
 */
#ifndef BENCH_WORKER_H
#define BENCH_WORKER_H

#include <stdint.h>
#include <sys/socket.h>

enum bench_program {
    BENCH_LIBEVENT, /* a plain event per connection */
    BENCH_RAW,
    BENCH_FLOOR,    /* written for polls on a ring */
    BENCH_BUFFEREVENT,
    BENCH_LIBUV,
    BENCH_RING,     /* written for completions on a ring */
    BENCH_API,      /* on the library's public interface */
    BENCH_RING_BUFFEREVENT, /* libringpoll-event's objects */
    BENCH_RING_LIBUV, /* libringpoll-uv's handles */
    BENCH_LIBUV_DATAGRAMS,
    BENCH_RING_LIBUV_DATAGRAMS,
    BENCH_LIBUV_ASYNC,
    BENCH_LIBUV_TURNS,
    BENCH_PROGRAMS,
};
enum bench_kind {
    BENCH_ECHO,      /* a request, a reply, on connections that stay */
    BENCH_CHURN,     /* accept, a request, a reply, the program closes */
    BENCH_CHURN_EOF, /* accept, a request, a reply, the client closes, the program sees it and closes */
    BENCH_BULK,      /* bytes that the program reads and discards */
    BENCH_POUND,     /* the client connects and closes, the program accepts, sees it and closes */
    BENCH_DATAGRAMS, /* as BENCH_ECHO, by datagrams, to one socket of the program */
    BENCH_ALONE,     /* no client: the program's loop, for itself */
    BENCH_MEMORY,    /* connections that have echoed some requests, and then idle */
};

/* What a worker does. The whole is the first message of the driver. */
struct workload {
    uint32_t program; /* enum bench_program */
    uint32_t family;  /* AF_INET or AF_UNIX */
    uint32_t kind;    /* enum bench_kind */
    uint32_t connections;
    uint32_t idle;    /* connections that a second process holds and never uses */
    uint32_t message; /* bytes of a request; 0: REQUEST_SIZE */
    uint32_t threads; /* beside the measured one, asleep */
    uint32_t read_size; /* what the program asks of one read(); 0: as most do */
    int32_t cpu;      /* to be pinned to; -1: none */
};

struct hello {
    int32_t error; /* 0: the listener is up */
    socklen_t address_length;
    struct sockaddr_storage address;
    char program[64];
    char message[128];
};

enum worker_command {
    WORKER_ACCEPT, /* accept `rounds` idle connections */
    WORKER_BLOCK,  /* `rounds` rounds by the clock, after some to warm up */
    WORKER_COUNT,  /* `rounds` rounds between marks, then mark_done() */
    WORKER_MEMORY, /* what a connection costs that has echoed and idles, in bytes */
    WORKER_INSTRUCTIONS, /* `rounds` rounds by the instruction counter */
    WORKER_QUIT,
};
struct order {
    uint32_t command, rounds;
};

struct answer {
    int32_t error;      /* 0, or -errno; then `message` says what failed */
    uint32_t rounds;
    uint64_t requests;  /* in all measured rounds */
    uint64_t turns;     /* of the program's loop in them */
    uint64_t flushes;   /* those of them that only brought replies out */
    uint64_t spurious;  /* reads in vain */
    uint64_t elapsed_ns; /* of the whole order */
    double clock;       /* per request, median of the rounds: the program */
    double whole;       /* the same with the client's sending and receiving */
    double instructions; /* per request; 0: not available */
    double memory;      /* private bytes of the process per connection */
    char message[128];
};

#ifdef __cplusplus
extern "C" {
#endif

struct program_ops;
/* NULL: not built. */
const struct program_ops *bench_program(uint32_t program);

/* The worker's main(): speaks on `control` until told to quit. */
int worker_main(int control);
/* The second process of a workload with idle connections: makes `count` to
 * `address`, says so with one byte on `control`, and holds them until that
 * ends. */
int idler_main(int control, int family, const struct sockaddr_storage *address, socklen_t length, uint32_t count);
/* A process that lanes execute hands its command line to this first: the exit
 * status if it is meant to be a worker or an idler, -1 if it is not. */
int worker_or_idler(int argc, char **argv);

#ifdef __cplusplus
}
#endif

#endif
