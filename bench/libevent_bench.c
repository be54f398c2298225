/* SPDX-License-Identifier: MIT
 *
 * libevent-bench [--quick] [--calls] [NAME…]: libevent's own loads, on its epoll, on our
 * base and, for evhttp, on our base with our bufferevents and listener, in one process
 * that is pinned to a CPU. All sides are open at once (if there are fds enough) and take
 * turns in blocks, in random order; a ratio is the median of those of neighbouring blocks, epoll's cycles over ours:
 * above 1 is cheaper. System calls are counted from outside, in a child
 * for each side; --calls names them.
 *
 * Names are as printed: pipes/100/1/100, cascade/1000, http/100, …; a word stands for all
 * that begin with it.
 */
#include "libevent_bench.h"

#include <math.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <event2/event.h>
#include <ringpoll/event.h>

#include "count.h"
#include "cycles.h"

enum side { EPOLL, BASE, OBJECTS, SIDES };
static const char *const side_names[] = {"epoll", "our base", "our objects"};
#define BLOCKS_MAX 400

static const struct shape {
    const struct load_ops *ops;
    uint32_t n, active, writes;
    unsigned sides;
    double bar;       /* times cheaper; 0: none */
    double calls_bar; /* system calls per unit; 0: none. Both are the last side's */
} shapes[] = {
    {&load_pipes, 100, 1, 100, 2, 1.0, 0},     {&load_pipes, 1000, 100, 1000, 2, 1.0, 0},
    {&load_pipes, 5000, 100, 5000, 2, 1.0, 0}, {&load_cascade, 100, 0, 0, 2, 1.0, 0},
    {&load_cascade, 1000, 0, 0, 2, 1.0, 0},    {&load_cascade, 5000, 0, 0, 2, 1.0, 0},
    {&load_http, 1, 0, 0, 3, 0, 0},            {&load_http, 100, 0, 0, 3, 1.2, 0.2},
    {&load_http_close, 1, 0, 0, 3, 0, 0},      {&load_http_close, 100, 0, 0, 3, 1.2, 3},
};
#define SHAPES (sizeof shapes / sizeof shapes[0])

uint64_t load_begin(struct load *load)
{
    if (load->counting)
        mark_begin();
    return cycles_now();
}

void load_end(struct load *load, uint64_t began)
{
    load->ticks += cycles_now() - began;
    if (load->counting)
        mark_end();
}

static void name_of(const struct shape *shape, char *name, size_t size)
{
    if (shape->active)
        snprintf(name, size, "%s/%u/%u/%u", shape->ops->name, shape->n, shape->active, shape->writes);
    else
        snprintf(name, size, "%s/%u", shape->ops->name, shape->n);
}

static int open_side(struct load *load, const struct shape *shape, unsigned side)
{
    memset(load, 0, sizeof *load);
    load->ops = shape->ops;
    load->n = shape->n;
    load->active = shape->active;
    load->writes = shape->writes;
    load->side = side;
    load->objects = side == OBJECTS;
    load->base = side != EPOLL ? ringpoll_event_base_new(NULL) : event_base_new();
    const char *method = load->base ? event_base_get_method(load->base) : "none";
    if (strcmp(method, side != EPOLL ? "io_uring" : "epoll") != 0) {
        snprintf(load->failure, sizeof load->failure, "the method is %s", method);
        return -1;
    }
    return load->ops->open(load);
}

static void close_side(struct load *load)
{
    load->ops->close(load);
    if (load->base)
        event_base_free(load->base);
    load->base = NULL;
}

/* Median of `rounds` rounds, per unit; < 0: failed. */
static double block(struct load *load, unsigned rounds)
{
    double ticks[64];
    for (unsigned i = 0; i < rounds; i++) {
        load->ticks = 0;
        if (load->ops->round(load) != 0)
            return -1;
        unsigned at = i;
        double value = (double)load->ticks / load->ops->units(load);
        for (; at > 0 && ticks[at - 1] > value; at--)
            ticks[at] = ticks[at - 1];
        ticks[at] = value;
    }
    return ticks[rounds / 2];
}

static int by_value(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

static double median(double *values, unsigned count)
{
    qsort(values, count, sizeof values[0], by_value);
    return values[count / 2];
}

static bool calls_wanted;
static unsigned fds_most;

/* System calls per unit by the clock; < 0: not to be had. */
static double count_calls(const struct shape *shape, unsigned side)
{
    const unsigned rounds = 16;
    int go[2];
    struct load load;
    struct call_counts counts;
    if (pipe(go) != 0)
        return -1;
    pid_t pid = fork();
    if (pid == 0) {
        char byte;
        int failed = read(go[0], &byte, 1) != 1 || open_side(&load, shape, side) != 0;
        for (unsigned i = 0; !failed && i < 4; i++)
            failed = load.ops->round(&load) != 0;
        load.counting = true;
        for (unsigned i = 0; !failed && i < rounds; i++)
            failed = load.ops->round(&load) != 0;
        mark_done();
        _exit(failed);
    }
    int rc = pid < 0 ? -1 : count_attach(pid), status = 0;
    if (rc == 0 && write(go[1], "x", 1) == 1)
        rc = count_until_done(pid, &counts, NULL);
    close(go[0]);
    close(go[1]);
    if (pid > 0)
        waitpid(pid, &status, 0);
    load = (struct load){.ops = shape->ops, .n = shape->n, .active = shape->active, .writes = shape->writes};
    for (long call = 0; calls_wanted && rc == 0 && call < COUNT_NUMBERS; call++)
        if (counts.calls[call])
            fprintf(stderr, "  %-12s %-20s %.4f\n", side_names[side],
                    count_name(call) ? count_name(call) : "?", (double)counts.calls[call] / rounds / shape->ops->units(&load));
    return rc == 0 && status == 0 ? (double)counts.total / rounds / shape->ops->units(&load) : -1;
}

static int measure(const struct shape *shape, const char *name, unsigned blocks)
{
    static double values[SIDES][BLOCKS_MAX], ratios[BLOCKS_MAX];
    struct load loads[SIDES];
    double calls[SIDES], ratio = 0;
    bool one_at_a_time = shape->n * 2 * shape->sides + 100 > fds_most; /* made anew for each block */
    int rc = 0;
    for (unsigned side = 0; side < shape->sides; side++)
        calls[side] = count_calls(shape, side);
    for (unsigned side = 0; side < shape->sides; side++)
        if (open_side(&loads[side], shape, side) != 0)
            rc = -1;
        else if (one_at_a_time)
            close_side(&loads[side]);
    for (unsigned i = 0; rc == 0 && i < blocks + 2; i++) {
        unsigned first = (unsigned)random() % shape->sides;
        for (unsigned k = 0; k < shape->sides && rc == 0; k++) {
            unsigned side = (first + k) % shape->sides;
            if (one_at_a_time && (open_side(&loads[side], shape, side) != 0 || block(&loads[side], 2) < 0))
                rc = -1;
            double value = rc == 0 ? block(&loads[side], 7) : -1;
            if (value < 0)
                rc = -1;
            if (one_at_a_time && rc == 0)
                close_side(&loads[side]);
            if (i >= 2) /* the first ones warm up */
                values[side][i - 2] = value;
        }
    }
    for (unsigned side = 0; side < shape->sides; side++) {
        if (loads[side].failure[0])
            fprintf(stderr, "%s, %s: %s\n", name, side_names[side], loads[side].failure);
        if (!one_at_a_time || rc != 0)
            close_side(&loads[side]);
    }
    if (rc != 0)
        return -1;
    for (unsigned side = 0; side < shape->sides; side++) {
        printf("| %s | %s |", side ? "" : name, side_names[side]);
        if (calls[side] < 0)
            printf(" - |");
        else
            printf(" %.2f |", calls[side]);
        for (unsigned i = 0; i < blocks; i++)
            ratios[i] = values[0][i] / values[side][i];
        double own[BLOCKS_MAX];
        memcpy(own, values[side], blocks * sizeof own[0]);
        double reach = 0.98 * sqrt(blocks);
        unsigned low = (unsigned)((blocks - 1) / 2.0 - reach), high = (unsigned)((blocks - 1) / 2.0 + reach + 1);
        ratio = median(ratios, blocks);
        printf(" %.0f |", median(own, blocks));
        if (side == EPOLL)
            printf(" | | |\n");
        else
            printf(" %.3f | %.3f to %.3f |", ratio, ratios[low], ratios[high < blocks ? high : blocks - 1]);
        if (side != EPOLL && side + 1 < shape->sides)
            printf(" |\n");
    }
    if (shape->bar > 0)
        printf(" %s %.1f", ratio < shape->bar ? "below" : "at least", shape->bar);
    if (shape->calls_bar > 0)
        printf(", calls %s %.1f", calls[shape->sides - 1] > shape->calls_bar ? "above" : "at most", shape->calls_bar);
    printf(" |\n");
    fflush(stdout);
    return 0;
}

static bool is_chosen(const char *name, int argc, char **argv)
{
    bool any = false;
    for (int i = 1; i < argc; i++) {
        size_t length = strlen(argv[i]);
        if (argv[i][0] == '-')
            continue;
        any = true;
        if (strncmp(name, argv[i], length) == 0 && (name[length] == '\0' || name[length] == '/'))
            return true;
    }
    return !any;
}

int main(int argc, char **argv)
{
    struct rlimit limit;
    cpu_set_t cpus;
    unsigned blocks = 100;
    int failed = 0, last = 0;
    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--quick") == 0)
            blocks = 30;
        else if (strcmp(argv[i], "--calls") == 0)
            calls_wanted = true;
        else if (argv[i][0] == '-') {
            fprintf(stderr, "libevent-bench [--quick] [--calls] [NAME...]\n");
            return 2;
        }
    signal(SIGPIPE, SIG_IGN);
    srandom((unsigned)time(NULL));
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
        fds_most = limit.rlim_cur > 1000000 ? 1000000 : (unsigned)limit.rlim_cur;
    }
    if (sched_getaffinity(0, sizeof cpus, &cpus) == 0) {
        for (int i = 0; i < CPU_SETSIZE; i++)
            if (CPU_ISSET(i, &cpus))
                last = i;
        CPU_ZERO(&cpus);
        CPU_SET(last, &cpus);
        sched_setaffinity(0, sizeof cpus, &cpus);
    }
    (void)setpriority(PRIO_PROCESS, 0, -10);
    printf("libevent %s\n\n"
           "| load | on | calls per unit | %s per unit | times cheaper | 95 %% | bar |\n"
           "|---|---|---|---|---|---|---|\n", event_get_version(), BENCH_CLOCK_UNIT);
    for (unsigned i = 0; i < SHAPES; i++) {
        char name[64];
        name_of(&shapes[i], name, sizeof name);
        if (is_chosen(name, argc, argv) && measure(&shapes[i], name, blocks) != 0)
            failed++;
    }
    return failed ? 1 : 0;
}
