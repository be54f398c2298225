/* SPDX-License-Identifier: MIT
 *
 * A scenario is a small program that is run on plain epoll and under the shim,
 * and must do the same on both: it ends with 0 if every promise was kept, and
 * what it prints on its standard output is compared.
 *
 * Each runs in a process of its own (`scenarios NAME`), since most of them do to
 * it what cannot be undone. Nothing here knows the library: no scenario asks
 * under what it runs, except those that are about the shim alone.
 */
#ifndef TESTS_PRELOAD_SCENARIO_H
#define TESTS_PRELOAD_SCENARIO_H

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

struct Scenario {
    const char *name;
    void (*run)();
    /* Events must have come over a ring where there is one: without this a shim
     * that did nothing would pass. */
    bool rides_the_ring;
    Scenario *next;
    Scenario(const char *name_, void (*run_)(), bool rides);
};

#define SCENARIO(name)                                                                                           \
    static void scenario_##name();                                                                               \
    static Scenario registered_##name(#name, scenario_##name, true);                                             \
    static void scenario_##name()
/* One in which no ring need be made, or whose process reports no numbers. */
#define SCENARIO_WITHOUT_RING(name)                                                                              \
    static void scenario_##name();                                                                               \
    static Scenario registered_##name(#name, scenario_##name, false);                                            \
    static void scenario_##name()

#define MUST(condition)                                                                                          \
    do {                                                                                                         \
        if (!(condition))                                                                                        \
            broken(__FILE__, __LINE__, #condition);                                                              \
    } while (0)
/* The two sides are numbers. */
#define SAME(actual, expected)                                                                                   \
    do {                                                                                                         \
        long actual_ = (long)(actual), expected_ = (long)(expected);                                             \
        if (actual_ != expected_)                                                                                \
            differs(__FILE__, __LINE__, #actual, actual_, expected_);                                            \
    } while (0)

[[noreturn]] void broken(const char *file, int line, const char *what);
[[noreturn]] void differs(const char *file, int line, const char *what, long actual, long expected);

/* The arguments behind the scenario's name. */
extern char **scenario_arguments;
extern const char *scenario_program;
bool under_shim(); /* RINGPOLL_PRELOAD_TEST_SHIM is set: the library is below */

/* ---- the pieces that they are made of */
void socket_pair(int fds[2]);          /* AF_UNIX, non-blocking */
void tcp_pair(int fds[2]);             /* loopback; both non-blocking */
int listener(unsigned short *port);    /* 127.0.0.1, 0 in *port: any */
int epoll_of(int fd, uint32_t events); /* a new set that watches fd, data = fd */
void add(int epfd, int fd, uint32_t events);
/* The events of fd in the next wait that has any, at most `timeout_ms` long; 0
 * when it ended without. Another fd's event is a failure. */
uint32_t next_event(int epfd, int fd, int timeout_ms = 5000);
/* A wait that has an event, so that the set has its ring from now on. */
void warm_up(int epfd);
void must_have_fin(int peer);          /* EOF arrives, within 5 s */
int ended(pid_t pid);                  /* waits; exit status, or 256 + signal */

#endif
