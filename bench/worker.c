/* SPDX-License-Identifier: MIT
 *
 * A round, in lock-step:
 *
 *     clock stands    the client sends one request on each of N connections
 *     clock runs      the program's loop turns until it has written N replies
 *     clock stands    the client takes N replies without waiting, and checks them
 *
 * A reply that is not there although the program has written it (a batched send
 * leaves with the next wait) costs the program another turn, one that does not
 * wait, with the clock running; and so on until all are there. No reply ever
 * leaves while the clock stands. With large messages there is one turn at a time,
 * and the client takes what there is after each of them.
 *
 * What a round yields is ticks / N, and what a block of rounds yields is their
 * median: a round that was interrupted does not move it. A churn round has the
 * client connect before, and see the end of the connection after; where the
 * client closes first, the clock runs twice.
 *
 * A worker that hangs is ended by its own alarm, so that nobody has to guess how
 * long to wait for it.
 */
#include "worker.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/perf_event.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <unistd.h>

#include "client.h"
#include "count.h"
#include "cycles.h"
#include "program.h"

#define ORDER_LIMIT_S 60
#define TRACED_ORDER_LIMIT_S 600
/* More turns than it can take to bring a reply out. */
#define FLUSHES_MAX 64
/* Messages above this do not come and go as a whole. */
#define LARGE_MESSAGE 16384u
/* Turns that read nothing (a bufferevent only writes in some) until one knows that
 * nothing moves any more. */
#define LARGE_IDLE_TURNS_MAX 1000

enum edges { EDGES_CLOCK, EDGES_MARKS, EDGES_INSTRUCTIONS };

struct worker {
    struct workload workload;
    struct program program;
    struct client client;
    enum edges edges; /* what is done where the clock starts and stops */
    int counter_fd;   /* instructions; -1 */
    uint64_t ticks;   /* of this round */
    uint64_t flushes;
    char failure[128];
};

static int fail(struct worker *worker, const char *what, int error)
{
    if (worker->failure[0] == '\0') {
        if (error < 0)
            snprintf(worker->failure, sizeof worker->failure, "%s: %s", what, strerror(-error));
        else
            snprintf(worker->failure, sizeof worker->failure, "%s", what);
    }
    return -1;
}

/* ------------------------------------------------------------------ rounds */

/* The program, by the clock, until one of its counters has reached the target, or,
 * without a counter, for one turn that does not wait. */
static int run(struct program *program, const uint64_t *counter, uint64_t target)
{
    return counter != NULL ? program_run(program, counter, target) : program_turn(program, false);
}

static int measured_run(struct worker *worker, const uint64_t *counter, uint64_t target)
{
    int rc;
    switch (worker->edges) {
    case EDGES_MARKS:
        mark_begin();
        rc = run(&worker->program, counter, target);
        mark_end();
        break;
    case EDGES_INSTRUCTIONS:
        raw_call(SYS_ioctl, worker->counter_fd, PERF_EVENT_IOC_ENABLE, 0, 0, 0, 0);
        rc = run(&worker->program, counter, target);
        raw_call(SYS_ioctl, worker->counter_fd, PERF_EVENT_IOC_DISABLE, 0, 0, 0, 0);
        break;
    default: {
        uint64_t start = cycles_now();
        rc = run(&worker->program, counter, target);
        worker->ticks += cycles_now() - start;
        break;
    }
    }
    return rc == 0 ? 0 : fail(worker, "the program's loop failed", rc);
}

/* Has the client take all of something, with turns of the program in between. */
static int take_all(struct worker *worker, int (*take_some)(struct client *), const char *missing)
{
    for (unsigned flushes = 0;; flushes++) {
        int rc = take_some(&worker->client);
        if (rc <= 0)
            return rc;
        if (flushes == FLUSHES_MAX)
            return client_missing(&worker->client, missing);
        if (measured_run(worker, NULL, 0) != 0)
            return -1;
        worker->flushes++;
    }
}

/* A message may be more than one write gets rid of, and an AF_UNIX socket is not
 * writable again before its peer has read: the client takes after each turn. */
static int round_of_large_echo(struct worker *worker)
{
    struct program *program = &worker->program;
    struct client *client = &worker->client;
    uint64_t sent = 0, received = program->received;
    unsigned idle_turns = 0;
    int missing;
    client_begin(client);
    do {
        uint64_t before = program->received;
        if (client_send_some(client, &sent) != 0 || measured_run(worker, NULL, 0) != 0)
            return -1;
        missing = client_take(client);
        idle_turns = program->received == before ? idle_turns + 1 : 0;
        if (missing > 0 && idle_turns > LARGE_IDLE_TURNS_MAX)
            return client_missing(client, "a reply does not come");
    } while (missing > 0);
    if (missing == 0 && program->received != received + sent)
        return fail(worker, "the program has read other bytes than were sent", 0);
    return missing;
}

static int round_of_echo(struct worker *worker)
{
    struct program *program = &worker->program;
    struct client *client = &worker->client;
    if (client->message > LARGE_MESSAGE)
        return round_of_large_echo(worker);
    if (client_send_all(client) != 0)
        return -1;
    uint64_t bytes = (uint64_t)client->active * client->message;
    if (measured_run(worker, &program->received, program->received + bytes) != 0)
        return -1;
    return take_all(worker, client_take, "a reply was not there when the clock stopped");
}

/* What does not fit into the kernel is sent when the program has read the rest. */
static int round_of_bulk(struct worker *worker)
{
    struct program *program = &worker->program;
    struct client *client = &worker->client;
    client_begin(client);
    while (!client_has_sent_all(client)) {
        uint64_t target = program->received;
        if (client_send_some(client, &target) != 0 || measured_run(worker, &program->received, target) != 0)
            return -1;
    }
    return 0;
}

static int round_of_churn(struct worker *worker)
{
    struct program *program = &worker->program;
    struct client *client = &worker->client;
    uint64_t all_received = program->received + (uint64_t)client->connections * client->message;
    uint64_t all_closed = program->closed + client->connections;
    if (client_connect_all(client) != 0 || client_send_all(client) != 0)
        return -1;
    if (worker->workload.kind == BENCH_CHURN) {
        if (measured_run(worker, &program->closed, all_closed) != 0)
            return -1;
        if (take_all(worker, client_take, "a reply was not there when the clock stopped") != 0)
            return -1;
        return take_all(worker, client_see_closed, "a closed connection's end was not there when the clock stopped");
    }
    if (measured_run(worker, &program->received, all_received) != 0)
        return -1;
    if (take_all(worker, client_take, "a reply was not there when the clock stopped") != 0)
        return -1;
    client_close_all(client);
    return measured_run(worker, &program->closed, all_closed);
}

/* All ends are there before the program accepts the first. */
static int round_of_pound(struct worker *worker)
{
    struct client *client = &worker->client;
    uint64_t all_closed = worker->program.closed + client->connections;
    if (client_connect_all(client) != 0)
        return -1;
    client_close_all(client);
    return measured_run(worker, &worker->program.closed, all_closed);
}

static int round_alone(struct worker *worker)
{
    struct program *program = &worker->program;
    return measured_run(worker, &program->received, program->received + worker->workload.connections);
}

static int one_round(struct worker *worker)
{
    uint64_t errors = worker->program.errors;
    worker->ticks = 0;
    int rc;
    switch (worker->workload.kind) {
    case BENCH_BULK:
        rc = round_of_bulk(worker);
        break;
    case BENCH_CHURN:
    case BENCH_CHURN_EOF:
        rc = round_of_churn(worker);
        break;
    case BENCH_POUND:
        rc = round_of_pound(worker);
        break;
    case BENCH_ALONE:
        rc = round_alone(worker);
        break;
    default:
        rc = round_of_echo(worker);
    }
    if (rc != 0)
        return fail(worker, worker->client.failure, 0);
    if (worker->program.errors != errors)
        return fail(worker, "the program met an error on a connection", 0);
    return 0;
}

/* ------------------------------------------------------------------ orders */

static int by_value(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

static double median(double *values, uint32_t count)
{
    qsort(values, count, sizeof values[0], by_value);
    return count % 2 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

static int run_block(struct worker *worker, uint32_t rounds, struct answer *answer)
{
    uint32_t warm_up = rounds / 16 + 2;
    double per = worker->workload.connections;
    double *clocks = malloc(rounds * sizeof clocks[0]);
    double *wholes = malloc(rounds * sizeof wholes[0]);
    int rc = clocks != NULL && wholes != NULL && rounds > 0 ? 0 : fail(worker, "no memory for the rounds", -ENOMEM);
    for (uint32_t i = 0; rc == 0 && i < warm_up; i++)
        rc = one_round(worker);
    uint64_t turns = worker->program.turns, spurious = worker->program.spurious, flushes = worker->flushes;
    for (uint32_t i = 0; rc == 0 && i < rounds; i++) {
        uint64_t start = cycles_now();
        rc = one_round(worker);
        wholes[i] = (double)(cycles_now() - start) / per;
        clocks[i] = (double)worker->ticks / per;
    }
    if (rc == 0) {
        answer->turns = worker->program.turns - turns;
        answer->spurious = worker->program.spurious - spurious;
        answer->flushes = worker->flushes - flushes;
        answer->clock = median(clocks, rounds);
        answer->whole = median(wholes, rounds);
    }
    free(clocks);
    free(wholes);
    return rc;
}

static int run_counted(struct worker *worker, uint32_t rounds, struct answer *answer)
{
    int rc = 0;
    for (int i = 0; rc == 0 && i < 3; i++)
        rc = one_round(worker);
    uint64_t turns = worker->program.turns, spurious = worker->program.spurious, flushes = worker->flushes;
    worker->edges = EDGES_MARKS;
    for (uint32_t i = 0; rc == 0 && i < rounds; i++)
        rc = one_round(worker);
    worker->edges = EDGES_CLOCK;
    mark_done();
    answer->turns = worker->program.turns - turns;
    answer->spurious = worker->program.spurious - spurious;
    answer->flushes = worker->flushes - flushes;
    return rc;
}

/* Anonymous memory of this process, bytes; 0: the kernel does not tell. */
static uint64_t anonymous_memory(void)
{
    static char text[4096];
    uint64_t bytes = 0;
    long fd = raw_call(SYS_openat, AT_FDCWD, (long)"/proc/self/smaps_rollup", O_RDONLY | O_CLOEXEC, 0, 0, 0);
    if (fd < 0)
        return 0;
    long got = raw_call(SYS_read, fd, (long)text, sizeof text - 1, 0, 0, 0);
    raw_call(SYS_close, fd, 0, 0, 0, 0, 0);
    text[got > 0 ? got : 0] = '\0';
    const char *line = strstr(text, "\nAnonymous:");
    if (line != NULL)
        bytes = strtoull(line + strlen("\nAnonymous:"), NULL, 10) * 1024;
    return bytes;
}

/* Some connections come first, so that what is there once is there when the
 * counting begins: a pool of buffers is not a connection's. */
#define MEMORY_FIRST 512u
#define MEMORY_AT_ONCE 64u

static int run_memory(struct worker *worker, uint32_t rounds, struct answer *answer)
{
    struct client *client = &worker->client;
    uint64_t before = 0;
    client->fds_above = (int)client->connections + 400;
    for (uint32_t begin = 0; begin < client->connections; begin += MEMORY_AT_ONCE) {
        if (begin == MEMORY_FIRST && (before = anonymous_memory()) == 0)
            return fail(worker, "/proc/self/smaps_rollup is not to be had", 0);
        client->first = begin;
        client->active = client->connections - begin < MEMORY_AT_ONCE ? client->connections - begin : MEMORY_AT_ONCE;
        if (client_connect_active(client) != 0)
            return fail(worker, client->failure, 0);
        int rc = program_run(&worker->program, &worker->program.accepted, begin + client->active);
        if (rc != 0)
            return fail(worker, "the program did not accept", rc);
        for (uint32_t round = 0; round < rounds; round++)
            if (one_round(worker) != 0)
                return -1;
    }
    if (client->connections > MEMORY_FIRST)
        answer->memory = ((double)anonymous_memory() - (double)before) / (client->connections - MEMORY_FIRST);
    return 0;
}

static int run_instructions(struct worker *worker, uint32_t rounds, struct answer *answer)
{
    struct perf_event_attr attr;
    uint64_t count = 0;
    int rc = 0;
    memset(&attr, 0, sizeof attr);
    attr.size = sizeof attr;
    attr.type = PERF_TYPE_HARDWARE;
    attr.config = PERF_COUNT_HW_INSTRUCTIONS;
    attr.disabled = 1;
    worker->counter_fd = (int)raw_call(SYS_perf_event_open, (long)&attr, 0, -1, -1, PERF_FLAG_FD_CLOEXEC, 0);
    if (worker->counter_fd < 0)
        return 0; /* no such counter on this machine: `instructions` stays 0 */
    for (int i = 0; rc == 0 && i < 3; i++)
        rc = one_round(worker);
    worker->edges = EDGES_INSTRUCTIONS;
    for (uint32_t i = 0; rc == 0 && i < rounds; i++)
        rc = one_round(worker);
    worker->edges = EDGES_CLOCK;
    if (raw_call(SYS_read, worker->counter_fd, (long)&count, sizeof count, 0, 0, 0) == (long)sizeof count)
        answer->instructions = (double)count / rounds / worker->workload.connections;
    raw_call(SYS_close, worker->counter_fd, 0, 0, 0, 0, 0);
    worker->counter_fd = -1;
    return rc;
}

/* ------------------------------------------------------------------- start */

static void *sleeper(void *argument)
{
    sem_t *never = argument;
    for (;;)
        sem_wait(never);
    return NULL;
}

static int make_listener(struct worker *worker, struct hello *hello)
{
    socklen_t length = 0;
    memset(&hello->address, 0, sizeof hello->address);
    if (worker->workload.family == AF_INET) {
        struct sockaddr_in *address = (struct sockaddr_in *)&hello->address;
        address->sin_family = AF_INET;
        address->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        length = sizeof *address;
    } else {
        hello->address.ss_family = AF_UNIX; /* and no name: the kernel gives an abstract one */
        length = sizeof hello->address.ss_family;
    }
    int yes = 1;
    bool datagrams = worker->workload.kind == BENCH_DATAGRAMS;
    int listener = socket((int)worker->workload.family,
                          (datagrams ? SOCK_DGRAM : SOCK_STREAM) | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener < 0)
        return fail(worker, "socket", -errno);
    /* Connections inherit it, at no cost to any of them: a reply in two parts
     * would otherwise wait for its acknowledgement. */
    if (worker->workload.family == AF_INET && !datagrams)
        (void)setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    hello->address_length = sizeof hello->address;
    if (bind(listener, (struct sockaddr *)&hello->address, length) != 0 ||
        (!datagrams && listen(listener, 4096) != 0) ||
        getsockname(listener, (struct sockaddr *)&hello->address, &hello->address_length) != 0) {
        int error = errno;
        close(listener);
        return fail(worker, "bind and listen", -error);
    }
    return listener;
}

const struct program_ops *bench_program(uint32_t program)
{
    switch (program) {
    case BENCH_LIBEVENT:
        return program_libevent;
    case BENCH_RAW:
        return &program_raw;
    case BENCH_FLOOR:
        return &program_floor;
    case BENCH_BUFFEREVENT:
        return program_bufferevent;
    case BENCH_LIBUV:
        return program_libuv;
    case BENCH_RING:
        return &program_ring;
    case BENCH_API:
        return &program_api;
    case BENCH_RING_BUFFEREVENT:
        return program_ring_bufferevent;
    case BENCH_RING_LIBUV:
        return program_ring_libuv;
    case BENCH_LIBUV_DATAGRAMS:
        return program_libuv_datagrams;
    case BENCH_RING_LIBUV_DATAGRAMS:
        return program_ring_libuv_datagrams;
    case BENCH_LIBUV_ASYNC:
        return program_libuv_async;
    case BENCH_LIBUV_TURNS:
        return program_libuv_turns;
    default:
        return NULL;
    }
}

static int start(struct worker *worker, struct hello *hello)
{
    static sem_t never;
    const struct workload *workload = &worker->workload;
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    if (workload->cpu >= 0)
        CPU_SET((unsigned)workload->cpu, &cpus);
    if (workload->cpu >= 0 && sched_setaffinity(0, sizeof cpus, &cpus) != 0)
        return fail(worker, "this CPU is not to be had", -errno);
    /* Fewer interruptions on a shared machine; without the right to it, more. */
    (void)setpriority(PRIO_PROCESS, 0, -10);
    sem_init(&never, 0, 0);
    for (uint32_t i = 0; i < workload->threads; i++) {
        pthread_t thread;
        int rc = pthread_create(&thread, NULL, sleeper, &never);
        if (rc != 0)
            return fail(worker, "pthread_create", -rc);
        pthread_detach(thread);
    }
    worker->program.ops = bench_program(workload->program);
    if (worker->program.ops == NULL)
        return fail(worker, "built without this program's library", 0);
    worker->program.read_size = workload->read_size > 0 ? workload->read_size : READ_SIZE;
    if (worker->program.read_size > READ_SIZE_MAX)
        return fail(worker, "no program reads that much at once", 0);
    worker->program.close_after_reply = workload->kind == BENCH_CHURN;
    worker->program.discard = workload->kind == BENCH_BULK;
    int listener = make_listener(worker, hello);
    if (listener < 0)
        return -1;
    int rc = worker->program.ops->open(&worker->program, listener);
    if (rc != 0)
        return fail(worker, "the program did not start", rc);
    snprintf(hello->program, sizeof hello->program, "%s", worker->program.ops->describe());
    if (client_init(&worker->client, (int)workload->family, &hello->address, hello->address_length,
                    workload->connections, workload->message > 0 ? workload->message : REQUEST_SIZE) != 0)
        return fail(worker, worker->client.failure, 0);
    worker->client.type = workload->kind == BENCH_DATAGRAMS ? SOCK_DGRAM : SOCK_STREAM;
    return 0;
}

static int connect_for_echo(struct worker *worker)
{
    uint32_t kind = worker->workload.kind;
    if (kind != BENCH_ECHO && kind != BENCH_BULK && kind != BENCH_DATAGRAMS)
        return 0;
    if (client_connect_all(&worker->client) != 0)
        return fail(worker, worker->client.failure, 0);
    if (kind == BENCH_DATAGRAMS) {
        /* A loop that has nothing for a ring is a while on one: the server is measured as
         * it is after that. */
        worker->client.active = 1;
        for (int i = 0; i < 5000; i++)
            if (round_of_echo(worker) != 0)
                return fail(worker, worker->client.failure, 0);
        worker->client.active = worker->client.connections;
        return 0;
    }
    int rc = program_run(&worker->program, &worker->program.accepted,
                         worker->program.accepted + worker->client.connections);
    return rc == 0 ? 0 : fail(worker, "the program did not accept", rc);
}

static int take(int control, void *message, size_t size)
{
    long got;
    do
        got = raw_call(SYS_recvfrom, control, (long)message, (long)size, MSG_WAITALL, 0, 0);
    while (got == -EINTR);
    return got == (long)size ? 0 : -1;
}

static int give(int control, const void *message, size_t size)
{
    return raw_call(SYS_sendto, control, (long)message, (long)size, MSG_NOSIGNAL, 0, 0) == (long)size ? 0 : -1;
}

int worker_main(int control)
{
    static struct worker worker;
    struct hello hello;
    struct order order;
    worker.counter_fd = -1;
    memset(&hello, 0, sizeof hello);
    if (take(control, &worker.workload, sizeof worker.workload) != 0)
        return 1;
    alarm(ORDER_LIMIT_S);
    if (start(&worker, &hello) != 0 || connect_for_echo(&worker) != 0) {
        hello.error = 1;
        memcpy(hello.message, worker.failure, sizeof hello.message);
        (void)give(control, &hello, sizeof hello);
        return 1;
    }
    if (give(control, &hello, sizeof hello) != 0)
        return 1;
    for (;;) {
        struct answer answer;
        int rc = 0;
        memset(&answer, 0, sizeof answer);
        alarm(0);
        if (take(control, &order, sizeof order) != 0)
            return 1;
        alarm(order.command == WORKER_COUNT ? TRACED_ORDER_LIMIT_S : ORDER_LIMIT_S);
        uint64_t began = wall_ns();
        answer.rounds = order.rounds;
        answer.requests = (uint64_t)order.rounds * worker.workload.connections;
        switch (order.command) {
        case WORKER_ACCEPT:
            rc = program_run(&worker.program, &worker.program.accepted, worker.program.accepted + order.rounds);
            break;
        case WORKER_BLOCK:
            rc = run_block(&worker, order.rounds, &answer);
            break;
        case WORKER_COUNT:
            rc = run_counted(&worker, order.rounds, &answer);
            break;
        case WORKER_MEMORY:
            rc = run_memory(&worker, order.rounds, &answer);
            break;
        case WORKER_INSTRUCTIONS:
            rc = run_instructions(&worker, order.rounds, &answer);
            break;
        default:
            break;
        }
        answer.error = rc;
        answer.elapsed_ns = wall_ns() - began;
        memcpy(answer.message, worker.failure, sizeof answer.message);
        if (order.command == WORKER_QUIT) {
            client_fini(&worker.client);
            worker.program.ops->close(&worker.program);
            (void)give(control, &answer, sizeof answer);
            return 0;
        }
        if (give(control, &answer, sizeof answer) != 0 || rc != 0)
            return 1;
    }
}

int idler_main(int control, int family, const struct sockaddr_storage *address, socklen_t length, uint32_t count)
{
    struct client client;
    char byte = 1;
    if (client_init(&client, family, address, length, count, REQUEST_SIZE) != 0 || client_connect_all(&client) != 0) {
        fprintf(stderr, "ringpoll-bench: idle connections: %s\n", client.failure);
        return 1;
    }
    if (give(control, &byte, 1) != 0)
        return 1;
    (void)take(control, &byte, 1); /* until the driver closes its end */
    client_fini(&client);
    return 0;
}

static int idler(int argc, char **argv)
{
    struct sockaddr_storage address;
    uint8_t *bytes = (uint8_t *)&address;
    socklen_t length = 0;
    if (argc != 6)
        return 2; /* role, control, family, count, address in hexadecimal */
    memset(&address, 0, sizeof address);
    for (const char *hex = argv[5]; hex[0] != '\0' && hex[1] != '\0' && length < sizeof address; hex += 2) {
        char byte[3] = {hex[0], hex[1], '\0'};
        bytes[length++] = (uint8_t)strtoul(byte, NULL, 16);
    }
    return idler_main(atoi(argv[2]), atoi(argv[3]), &address, length, (uint32_t)strtoul(argv[4], NULL, 10));
}

int worker_or_idler(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "--worker") == 0)
        return worker_main(atoi(argv[2]));
    if (argc >= 2 && strcmp(argv[1], "--idler") == 0)
        return idler(argc, argv);
    return -1;
}
