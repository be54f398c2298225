/* SPDX-License-Identifier: MIT
 *
 * ringpoll-bench: the measuring programs behind `ringpoll bench`. So far there
 * is one, readiness: what an unmodified epoll program costs on a ring, against
 * itself on kernel epoll. See worker.c for what is measured, and point.c for how
 * two sides are compared.
 *
 * Exit status: 0 measured, 1 a proof failed (or nothing could be measured), 2 the
 * command line is wrong.
 */
#include <errno.h>
#include <fnmatch.h>
#include <getopt.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "point.h"
#include "program.h"
#include "report.h"
#include "worker.h"

#define IDLE_CONNECTIONS 10000

static const char usage_text[] =
    "Usage: ringpoll bench readiness [OPTION]...\n"
    "Measures what epoll programs cost on a ring, against themselves on kernel epoll:\n"
    "one thread, client and program in lock-step, only the program by the clock.\n"
    "\n"
    "  --points=LIST   only these points: names or patterns, separated by commas; a\n"
    "                  bare word stands for all points that begin with it\n"
    "  --list          print the names of the points and end\n"
    "  --quick         fewer and shorter blocks, and no idle points unless asked for\n"
    "  --cpu=N         the CPU that the measured processes run on (default: the last)\n"
    "  --idle=N        connections of the idle points (default 10000)\n"
    "  --self[=SIDE]   the same side twice, epoll or ring: how far the figures are to\n"
    "                  be trusted\n"
    "  --off           the shim switched off, in place of the ring: what interposing\n"
    "                  alone costs\n"
    "  --calls         print every system call by name, too\n"
    "  --steps[=FILE]  step through some requests and print the instructions in user\n"
    "                  space by object; FILE gets each of them (for addr2line)\n"
    "  --json          print JSON in place of tables\n"
    "  --save=FILE     also write a dated result file (Markdown; JSON if FILE ends in\n"
    "                  .json)\n"
    "  --help          print this and end\n"
    "\n"
    "The shim is found beside the program; RINGPOLL_PRELOAD=PATH names another one.\n"
    "RINGPOLL_MASK is passed on. Exit status: 0 measured, 1 a proof failed, 2 usage.\n";

static int usage_error(const char *what, const char *which)
{
    fprintf(stderr, "ringpoll-bench: %s%s%s\nTry 'ringpoll bench readiness --help'.\n", what, which != NULL ? ": " : "",
            which != NULL ? which : "");
    return 2;
}

/* ------------------------------------------------------------------ points */

static bool matches(const char *name, const char *pattern)
{
    size_t length = strlen(pattern);
    if (strpbrk(pattern, "*?[") != NULL)
        return fnmatch(pattern, name, 0) == 0;
    return strncmp(name, pattern, length) == 0 && (name[length] == '\0' || name[length] == '/');
}

/* Clears what no pattern of the list names. 0, or -1 with *ret_bad a pattern that
 * names nothing. */
static int select_points(bool *selected, char *list, const char **ret_bad)
{
    char *rest = list;
    for (unsigned i = 0; i < points_count; i++)
        selected[i] = false;
    for (char *pattern = strtok_r(list, ",", &rest); pattern != NULL; pattern = strtok_r(NULL, ",", &rest)) {
        bool any = false;
        for (unsigned i = 0; i < points_count; i++)
            if (matches(points[i].name, pattern))
                selected[i] = any = true;
        if (!any) {
            *ret_bad = pattern;
            return -1;
        }
    }
    return 0;
}

/* ------------------------------------------------------------ circumstances */

/* All fds that may be had: workers inherit the limit. Returns how many idle
 * connections fit beside the rest. */
static uint32_t raise_fd_limit(uint32_t wanted)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
        return 0;
    limit.rlim_cur = limit.rlim_max;
    (void)setrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur == RLIM_INFINITY || limit.rlim_cur >= (rlim_t)wanted + 1000)
        return wanted;
    return limit.rlim_cur > 1000 ? (uint32_t)limit.rlim_cur - 1000 : 0;
}

static int last_cpu(void)
{
    cpu_set_t cpus;
    int last = 0;
    if (sched_getaffinity(0, sizeof cpus, &cpus) == 0)
        for (int i = 0; i < CPU_SETSIZE; i++)
            if (CPU_ISSET(i, &cpus))
                last = i;
    return last;
}

static bool cpu_allowed(long cpu)
{
    cpu_set_t cpus;
    return sched_getaffinity(0, sizeof cpus, &cpus) == 0 && cpu >= 0 && cpu < CPU_SETSIZE && CPU_ISSET(cpu, &cpus);
}

static int save(const char *path, const struct plan *plan, const struct circumstances *circumstances)
{
    size_t length = strlen(path);
    FILE *file = fopen(path, "we");
    if (file == NULL) {
        fprintf(stderr, "ringpoll-bench: %s: %s\n", path, strerror(errno));
        return 1;
    }
    if (length > 5 && strcmp(path + length - 5, ".json") == 0)
        report_json(file, plan, circumstances);
    else
        report_markdown(file, plan, circumstances);
    if (fclose(file) != 0) {
        fprintf(stderr, "ringpoll-bench: %s: %s\n", path, strerror(errno));
        return 1;
    }
    return 0;
}

/* --------------------------------------------------------------- readiness */

struct request {
    struct plan plan;
    bool quick, json, calls, list;
    char *points;
    const char *save, *steps_to;
};

enum { OPTION_POINTS = 256, OPTION_LIST, OPTION_QUICK, OPTION_CPU, OPTION_IDLE, OPTION_SELF, OPTION_OFF, OPTION_CALLS,
       OPTION_STEPS, OPTION_JSON, OPTION_SAVE };

static const struct option options[] = {
    {"points", required_argument, NULL, OPTION_POINTS}, {"list", no_argument, NULL, OPTION_LIST},
    {"quick", no_argument, NULL, OPTION_QUICK},         {"cpu", required_argument, NULL, OPTION_CPU},
    {"idle", required_argument, NULL, OPTION_IDLE},     {"self", optional_argument, NULL, OPTION_SELF},
    {"off", no_argument, NULL, OPTION_OFF},             {"calls", no_argument, NULL, OPTION_CALLS},
    {"json", no_argument, NULL, OPTION_JSON},           {"save", required_argument, NULL, OPTION_SAVE},
    {"steps", optional_argument, NULL, OPTION_STEPS},   {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

/* -1: go on; otherwise the exit status. */
static int parse(int argc, char **argv, struct request *request)
{
    int option;
    char *end;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "+:h", options, NULL)) != -1) {
        switch (option) {
        case OPTION_POINTS:
            request->points = optarg;
            break;
        case OPTION_LIST:
            request->list = true;
            break;
        case OPTION_QUICK:
            request->quick = true;
            break;
        case OPTION_CPU: {
            long cpu = strtol(optarg, &end, 10);
            if (*end != '\0' || end == optarg || !cpu_allowed(cpu))
                return usage_error("no CPU of this process", optarg);
            request->plan.cpu = (int)cpu;
            break;
        }
        case OPTION_IDLE: {
            long idle = strtol(optarg, &end, 10);
            if (*end != '\0' || end == optarg || idle < 1 || idle > 1000000)
                return usage_error("not a number of connections", optarg);
            request->plan.idle = (uint32_t)idle;
            break;
        }
        case OPTION_SELF:
            if (optarg != NULL && strcmp(optarg, "ring") == 0)
                request->plan.sides[0] = request->plan.sides[1] = SIDE_RING;
            else if (optarg == NULL || strcmp(optarg, "epoll") == 0)
                request->plan.sides[0] = request->plan.sides[1] = SIDE_EPOLL;
            else
                return usage_error("--self takes epoll or ring", optarg);
            break;
        case OPTION_OFF:
            request->plan.sides[0] = SIDE_EPOLL;
            request->plan.sides[1] = SIDE_OFF;
            break;
        case OPTION_CALLS:
            request->calls = true;
            break;
        case OPTION_STEPS:
            request->plan.steps = true;
            request->steps_to = optarg;
            break;
        case OPTION_JSON:
            request->json = true;
            break;
        case OPTION_SAVE:
            request->save = optarg;
            break;
        case 'h':
            fputs(usage_text, stdout);
            return 0;
        case ':':
            return usage_error("an option lacks its value", argv[optind - 1]);
        default:
            return usage_error("not an option of this command", argv[optind - 1]);
        }
    }
    if (optind < argc)
        return usage_error("too many arguments", argv[optind]);
    return -1;
}

static int measure_all(struct request *request, const bool *selected)
{
    char failure[512] = "";
    unsigned wanted = 0, done = 0;
    int status = 0;
    bool progress = isatty(STDERR_FILENO);
    for (unsigned i = 0; i < points_count; i++)
        wanted += selected[i];
    for (unsigned i = 0; i < points_count; i++) {
        if (!selected[i])
            continue;
        done++;
        if (progress)
            fprintf(stderr, "\r\033[K%u of %u: %s", done, wanted, points[i].name);
        else if (wanted > 4)
            fprintf(stderr, "%u of %u: %s\n", done, wanted, points[i].name);
        if (point_measure(&points[i], &request->plan, failure, sizeof failure) != 0) {
            fprintf(stderr, "%sringpoll-bench: %s\n", progress ? "\r\033[K" : "", failure);
            status = 1;
        }
    }
    if (progress)
        fprintf(stderr, "\r\033[K");
    return status;
}

static int readiness(int argc, char **argv, const char *command)
{
    static bool selected[POINTS_MAX];
    struct circumstances circumstances = {.command = command};
    struct request request = {
        .plan = {.sides = {SIDE_EPOLL, SIDE_RING}, .pairs = 5, .blocks = 16, .block_ms = 10, .idle = IDLE_CONNECTIONS}};
    const char *bad = NULL;
    request.plan.cpu = last_cpu();
    int status = parse(argc, argv, &request);
    if (status >= 0)
        return status;
    uint32_t idle = raise_fd_limit(request.plan.idle);
    if (idle < request.plan.idle)
        fprintf(stderr, "ringpoll-bench: RLIMIT_NOFILE allows %u idle connections, not %u\n", idle, request.plan.idle);
    request.plan.idle = idle;
    points_init(idle);
    if (request.list) {
        for (unsigned i = 0; i < points_count; i++)
            puts(points[i].name);
        return 0;
    }
    if (request.quick) {
        request.plan.pairs = 2;
        request.plan.blocks = 8;
        request.plan.block_ms = 5;
    }
    for (unsigned i = 0; i < points_count; i++)
        selected[i] = !(request.quick && points[i].group == GROUP_IDLE);
    if (request.points != NULL && select_points(selected, request.points, &bad) != 0)
        return usage_error("no point has this name (--list prints all)", bad);
    if (program_libevent == NULL)
        fprintf(stderr, "ringpoll-bench: built without libevent: every point is of the hand-written loop\n");
    if (request.steps_to != NULL && (request.plan.dump = fopen(request.steps_to, "we")) == NULL) {
        fprintf(stderr, "ringpoll-bench: %s: %s\n", request.steps_to, strerror(errno));
        return 1;
    }
    signal(SIGPIPE, SIG_IGN);
    circumstances_find(&circumstances, request.plan.sides);
    status = measure_all(&request, selected);
    if (request.json) {
        report_json(stdout, &request.plan, &circumstances);
    } else {
        report_table(stdout, &request.plan);
        if (request.calls) {
            fputc('\n', stdout);
            report_calls(stdout, &request.plan);
        }
        if (request.plan.steps) {
            fputc('\n', stdout);
            report_steps(stdout, &request.plan);
        }
    }
    if (request.save != NULL && status == 0)
        status = save(request.save, &request.plan, &circumstances);
    if (fflush(stdout) != 0 || (request.plan.dump != NULL && fclose(request.plan.dump) != 0))
        status = 1;
    return status;
}

/* --------------------------------------------------------------------- main */

int main(int argc, char **argv)
{
    static char command[1024];
    size_t used = (size_t)snprintf(command, sizeof command, "ringpoll bench");
    int status = worker_or_idler(argc, argv);
    if (status >= 0)
        return status;
    for (int i = 1; i < argc && used < sizeof command; i++)
        used += (size_t)snprintf(command + used, sizeof command - used, " %s", argv[i]);
    if (argc < 2)
        return usage_error("which bench? There is one: readiness", NULL);
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        fputs(usage_text, stdout);
        return 0;
    }
    if (strcmp(argv[1], "readiness") != 0)
        return usage_error("there is no bench of this name (there is one: readiness)", argv[1]);
    return readiness(argc - 1, argv + 1, command);
}
