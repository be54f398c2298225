/* SPDX-License-Identifier: MIT
 *
 * own-code: what a library's own code costs per request, without its system calls. With a
 * loop written for a ring by hand (`ringpoll bench completion`, `hand/…`) it makes the floor:
 * what the same program would cost on a ring if nothing of ringpoll's stood between.
 *
 *   own-code [--tcp] [--rounds=N]
 *
 * Two ways, since neither is the truth alone. "stubbed": every call of the loop is answered
 * from memory, so that the code runs with warm caches: the least that it can cost. "in
 * place": the calls are made, on 64 connections with a client outside the clock, and the
 * time between the calls is added up: what it costs where the kernel has had the caches in
 * between, clock readings and the C library's wrappers taken out as far as they can be
 * measured. Each by the programs of `ringpoll bench`, on a stock library, on epoll.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include "cycles.h"
#include "program.h"

#define CONNECTIONS 64
#define FDS 1024
#define ROUNDS_MAX 9999
#define TURNS 8 /* of a block */

static bool stubbed, timed;
static struct registered {
    uint32_t events; /* 0: none */
    epoll_data_t data;
} fds[FDS];
static int accepted[CONNECTIONS], accepted_count;
static uint64_t outside, calls; /* timed: in system calls, and their number */

static uint64_t ticks(void)
{
#if defined(__x86_64__) || defined(__i386__)
    return __builtin_ia32_rdtsc();
#else
    return cycles_now();
#endif
}

/* --------------------------- what the library calls; the linker finds these before libc's */

static long made(long number, long a, long b, long c, long d)
{
    if (!timed)
        return syscall(number, a, b, c, d, 0L, 8L);
    uint64_t begin = ticks();
    long result = syscall(number, a, b, c, d, 0L, 8L);
    outside += ticks() - begin;
    calls++;
    return result;
}

/* A loop that waits to write is answered first, as the kernel would in the turn after. */
static int ready(struct epoll_event *events, int max)
{
    int count = 0;
    for (uint32_t bit = EPOLLOUT; bit != 0 && count == 0; bit = bit == EPOLLOUT ? EPOLLIN : 0)
        for (int i = 0; i < accepted_count && count < max; i++)
            if (fds[accepted[i]].events & bit)
                events[count++] = (struct epoll_event){.events = bit, .data = fds[accepted[i]].data};
    return count;
}

#pragma GCC visibility push(default)

int epoll_ctl(int epfd, int op, int fd, struct epoll_event *event)
{
    if (fd >= 0 && fd < FDS) {
        fds[fd].events = op == EPOLL_CTL_DEL ? 0 : event->events;
        if (op != EPOLL_CTL_DEL)
            fds[fd].data = event->data;
    }
    return stubbed ? 0 : (int)made(SYS_epoll_ctl, epfd, op, fd, (long)event);
}

int epoll_wait(int epfd, struct epoll_event *events, int max, int timeout)
{
    return stubbed ? ready(events, max) : (int)made(SYS_epoll_pwait, epfd, (long)events, max, timeout);
}

int epoll_pwait(int epfd, struct epoll_event *events, int max, int timeout, const sigset_t *mask)
{
    (void)mask; /* the programs have none */
    return epoll_wait(epfd, events, max, timeout);
}

ssize_t read(int fd, void *buffer, size_t length)
{
    return stubbed ? REQUEST_SIZE : made(SYS_read, fd, (long)buffer, (long)length, 0);
}

ssize_t write(int fd, const void *buffer, size_t length)
{
    return stubbed ? (ssize_t)length : made(SYS_write, fd, (long)buffer, (long)length, 0);
}

ssize_t readv(int fd, const struct iovec *iov, int count)
{
    return stubbed ? REQUEST_SIZE : made(SYS_readv, fd, (long)iov, count, 0);
}

ssize_t writev(int fd, const struct iovec *iov, int count)
{
    ssize_t sum = 0;
    for (int i = 0; stubbed && i < count; i++)
        sum += (ssize_t)iov[i].iov_len;
    return stubbed ? sum : made(SYS_writev, fd, (long)iov, count, 0);
}

int ioctl(int fd, unsigned long request, ...)
{
    va_list list;
    va_start(list, request);
    void *argument = va_arg(list, void *);
    va_end(list);
    if (stubbed && request == FIONREAD) {
        *(int *)argument = REQUEST_SIZE;
        return 0;
    }
    return (int)made(SYS_ioctl, fd, (long)request, (long)argument, 0);
}

int accept4(int fd, struct sockaddr *address, socklen_t *length, int flags)
{
    int result = (int)made(SYS_accept4, fd, (long)address, (long)length, flags);
    if (result >= 0 && result < FDS && accepted_count < CONNECTIONS)
        accepted[accepted_count++] = result;
    return result;
}

#pragma GCC visibility pop

/* ------------------------------------------------------------------ the measuring */

static int clients[CONNECTIONS];

static void fail(const char *what)
{
    fprintf(stderr, "own-code: %s: %s\n", what, strerror(errno));
    exit(1);
}

static struct program *begin(const struct program_ops *ops, bool tcp)
{
    static struct program program;
    union {
        struct sockaddr any;
        struct sockaddr_in in;
        struct sockaddr_un un;
    } name = {.any = {.sa_family = tcp ? AF_INET : AF_UNIX}};
    socklen_t length = sizeof name;
    int listener = socket(name.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    memset(&program, 0, sizeof program);
    memset(fds, 0, sizeof fds);
    accepted_count = 0;
    program.ops = ops;
    program.read_size = READ_SIZE;
    if (tcp)
        name.in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (listener < 0 || bind(listener, &name.any, tcp ? sizeof name.in : sizeof(sa_family_t)) != 0 ||
        listen(listener, CONNECTIONS) != 0 || getsockname(listener, &name.any, &length) != 0 ||
        (errno = -ops->open(&program, listener)) != 0)
        fail("a listener");
    for (int i = 0; i < CONNECTIONS; i++) {
        clients[i] = socket(name.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (clients[i] < 0 || connect(clients[i], &name.any, length) != 0)
            fail("a connection");
        if (tcp)
            setsockopt(clients[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    }
    if (program_run(&program, &program.accepted, CONNECTIONS) != 0)
        fail("accepting");
    return &program;
}

static void end(struct program *program)
{
    program->ops->close(program);
    for (int i = 0; i < CONNECTIONS; i++)
        close(clients[i]);
}

/* Requests of all clients, and what answering them took without what is not the library's. */
static double block(struct program *program, bool stub, double per_call)
{
    char bytes[REQUEST_SIZE] = {0};
    double own = 0;
    for (int turn = 0; turn < TURNS; turn++) {
        for (int i = 0; !stub && i < CONNECTIONS; i++)
            if (send(clients[i], bytes, sizeof bytes, MSG_NOSIGNAL) != (ssize_t)sizeof bytes)
                fail("a request");
        stubbed = stub;
        timed = !stub;
        outside = calls = 0;
        uint64_t from = ticks();
        int rc = program_run(program, &program->received, program->received + CONNECTIONS * REQUEST_SIZE);
        own += (double)(ticks() - from - outside) - (double)calls * per_call;
        stubbed = timed = false;
        if (rc != 0 || program->errors != 0)
            fail("a turn");
        for (int i = 0; !stub && i < CONNECTIONS; i++)
            if (recv(clients[i], bytes, sizeof bytes, MSG_DONTWAIT | MSG_WAITALL) != (ssize_t)sizeof bytes)
                fail("a reply inside the clock");
    }
    return own / (TURNS * CONNECTIONS);
}

static int by_value(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

static double median(double *values, int count)
{
    qsort(values, (size_t)count, sizeof values[0], by_value);
    return values[count / 2];
}

/* What reading the clock leaves outside of "outside" for each call. */
static double cost_of_clock(void)
{
    static double values[ROUNDS_MAX];
    for (int round = 0; round < ROUNDS_MAX; round++) {
        uint64_t sum = 0, from = ticks();
        for (int i = 0; i < 64; i++) {
            uint64_t begin_of_call = ticks();
            sum += ticks() - begin_of_call;
        }
        values[round] = (double)(ticks() - from - sum) / 64;
    }
    return median(values, ROUNDS_MAX);
}

int main(int argc, char **argv)
{
    int rounds = 999;
    bool tcp = false;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--tcp") == 0) {
            tcp = true;
        } else if (sscanf(argv[i], "--rounds=%d", &rounds) != 1 || rounds < 1 || rounds > ROUNDS_MAX) {
            fprintf(stderr, "own-code: not %s: own-code [--tcp] [--rounds=1 to %d]\n", argv[i], ROUNDS_MAX);
            return 2;
        }
    }
    const struct program_ops *const all[] = {program_bufferevent, program_libevent, program_libuv, &program_raw};
    static double values[2][ROUNDS_MAX];
    double clock = cost_of_clock();
    printf("%s per request, %s, %d connections, medians of %d\n\n  %-40s %10s %10s\n", BENCH_CLOCK_UNIT,
           tcp ? "TCP" : "AF_UNIX", CONNECTIONS, rounds, "own code of", "stubbed", "in place");
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        if (all[i] == NULL)
            continue;
        struct program *program = begin(all[i], tcp);
        for (int round = -2; round < rounds; round++)
            for (int stub = 0; stub < 2; stub++) {
                double value = block(program, stub, clock);
                if (round >= 0)
                    values[stub][round] = value;
            }
        end(program);
        printf("  %-12s %-27s %10.0f %10.0f\n", all[i]->name, all[i]->describe(), median(values[1], rounds),
               median(values[0], rounds));
        fflush(stdout);
    }
    return 0;
}
