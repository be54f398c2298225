/* SPDX-License-Identifier: MIT
 *
 * ringpoll-bench: the measuring programs behind `ringpoll bench`.
 *
 *  readiness   what an unmodified epoll program costs on a ring that polls for it
 *  completion  what it costs when the ring receives and sends for it, by profile
 *
 *  memory      what an idle connection of such a program costs its process
 *  libuv       what programs on libuv cost on one that was built --with-uring, against
 *              the stock one
 *
 * All are against the same program on kernel epoll. See worker.c for what is
 * measured, and point.c for how sides are compared.
 *
 * Exit status: 0 measured, 1 a proof failed (or nothing could be measured), 2 the
 * command line is wrong.
 */
#include <errno.h>
#include <fnmatch.h>
#include <getopt.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "cycles.h"
#include "point.h"
#include "program.h"
#include "report.h"
#include "worker.h"

#define IDLE_CONNECTIONS 10000

static const char usage_text[] =
    "Usage: ringpoll bench [all|readiness|completion|memory|libuv] [OPTION]...\n"
    "Measures what epoll programs cost on a ring, and the same ones on kernel epoll:\n"
    "one thread, client and program in lock-step, only the program by the clock.\n"
    "\n"
    "  readiness       the ring polls, the program reads and writes\n"
    "  completion      the ring receives, accepts and sends, as the profile allows\n"
    "  memory          what an idle connection costs the process, in bytes\n"
    "  libuv           a libuv that was built --with-uring, beside a stock one\n"
    "\n"
    "  --profile=LIST  the shim's profiles to measure, separated by commas: readiness,\n"
    "                  safe, throughput; may be given more than once (default: readiness\n"
    "                  for the first, all of them for the others)\n"
    "  --points=LIST   only these points: names or patterns, separated by commas; a\n"
    "                  bare word stands for all points that begin with it\n"
    "  --sizes=LIST    messages of these bytes (65 to 64K) in place of 1K,4K,16K,64K\n"
    "  --list          print the names of the points and end\n"
    "  --quick         fewer and shorter blocks, and the most telling points unless\n"
    "                  others are asked for\n"
    "  --cpu=N         the CPU that the measured processes run on (default: the last)\n"
    "  --idle=N        connections of the points with idle ones (default 10000)\n"
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
    "  --report=FILE   also write a page (HTML) with plots and tables\n"
    "  --tree=DIR      of libuv: the tree where it was built; $RINGPOLL_LIBUV_DIR says the\n"
    "                  same. The stock one is $RINGPOLL_LIBUV_STOCK, DIR/../stock, or the\n"
    "                  installed one. Without a tree these points are no part of 'all'\n"
    "  --help          print this and end\n"
    "\n"
    "The shim is found beside the program; RINGPOLL_PRELOAD=PATH names another one.\n"
    "RINGPOLL_MASK is passed on. Exit status: 0 measured, 1 a proof failed, 2 usage.\n";

/* One sentence that names the word. Words that are not quite text are shown with
 * '?' where they are not. */
__attribute__((format(printf, 2, 3))) static int usage_error(const char *word, const char *format, ...)
{
    char shown[256];
    va_list arguments;
    snprintf(shown, sizeof shown, "%s", word);
    for (char *byte = shown; *byte != '\0'; byte++)
        if ((unsigned char)*byte < 0x20 || *byte == 0x7f)
            *byte = '?';
    fprintf(stderr, "ringpoll-bench: '%s' ", shown);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputs(" (see 'ringpoll bench all --help').\n", stderr);
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

/* Of the points that are selected, those that the list names stay so. 0, or -1 with
 * *ret_bad a pattern that names none of them. */
static int select_points(bool *selected, char *list, const char **ret_bad)
{
    bool eligible[POINTS_MAX];
    char *rest = list;
    memcpy(eligible, selected, sizeof eligible);
    for (unsigned i = 0; i < points_count; i++)
        selected[i] = false;
    for (char *pattern = strtok_r(list, ",", &rest); pattern != NULL; pattern = strtok_r(NULL, ",", &rest)) {
        bool any = false;
        for (unsigned i = 0; i < points_count; i++)
            if (eligible[i] && matches(points[i].name, pattern))
                selected[i] = any = true;
        if (!any) {
            *ret_bad = pattern;
            return -1;
        }
    }
    return 0;
}

/* ------------------------------------------------------------ circumstances */

/* All fds that may be had: workers inherit the limit. Returns how many of those
 * that are wanted fit beside the rest. */
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

/* ---------------------------------------------------------------- requests */

struct request {
    struct plan plan;
    bool benches[BENCHES];
    bool profiles[PROFILES]; /* asked for */
    enum { AGAINST_RING, SELF_EPOLL, SELF_RING, AGAINST_OFF } comparison;
    bool quick, json, calls, list;
    char *points;
    const char *save, *page, *steps_to;
};

enum { OPTION_POINTS = 256, OPTION_LIST, OPTION_QUICK, OPTION_CPU, OPTION_IDLE, OPTION_SELF, OPTION_OFF, OPTION_CALLS,
       OPTION_STEPS, OPTION_JSON, OPTION_SAVE, OPTION_PROFILE, OPTION_REPORT, OPTION_SIZES, OPTION_TREE };

static const struct option options[] = {
    {"points", required_argument, NULL, OPTION_POINTS}, {"list", no_argument, NULL, OPTION_LIST},
    {"quick", no_argument, NULL, OPTION_QUICK},         {"cpu", required_argument, NULL, OPTION_CPU},
    {"idle", required_argument, NULL, OPTION_IDLE},     {"self", optional_argument, NULL, OPTION_SELF},
    {"off", no_argument, NULL, OPTION_OFF},             {"calls", no_argument, NULL, OPTION_CALLS},
    {"json", no_argument, NULL, OPTION_JSON},           {"save", required_argument, NULL, OPTION_SAVE},
    {"profile", required_argument, NULL, OPTION_PROFILE}, {"report", required_argument, NULL, OPTION_REPORT},
    {"steps", optional_argument, NULL, OPTION_STEPS},   {"sizes", required_argument, NULL, OPTION_SIZES},
    {"tree", required_argument, NULL, OPTION_TREE},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

/* NULL, or the word that is no profile. */
static const char *take_profiles(bool *profiles, char *list)
{
    char *rest = list;
    char *word = strtok_r(list, ",", &rest);
    if (word == NULL)
        return "";
    for (; word != NULL; word = strtok_r(NULL, ",", &rest)) {
        unsigned profile = 0;
        while (profile < PROFILES && strcmp(word, profile_name((enum profile)profile)) != 0)
            profile++;
        if (profile == PROFILES)
            return word;
        profiles[profile] = true;
    }
    return NULL;
}

/* NULL, or the word that is no size of a message. */
static const char *take_sizes(struct plan *plan, char *list)
{
    char *rest = list;
    char *word = strtok_r(list, ",", &rest);
    if (word == NULL)
        return "";
    for (plan->sizes_count = 0; word != NULL; word = strtok_r(NULL, ",", &rest)) {
        char *end;
        unsigned long size = strtoul(word, &end, 10);
        if (*end == 'K' && size <= READ_SIZE_MAX) {
            size *= 1024;
            end++;
        }
        if (*end != '\0' || size <= REQUEST_SIZE || size > READ_SIZE_MAX || plan->sizes_count == SIZES_MAX)
            return word;
        plan->sizes[plan->sizes_count++] = (uint32_t)size;
    }
    return NULL;
}

static void set_columns(struct request *request)
{
    static const bool defaults[BENCHES][PROFILES] = {
        [BENCH_READINESS] = {[PROFILE_READINESS] = true},
        [BENCH_COMPLETION] = {[PROFILE_READINESS] = true, [PROFILE_SAFE] = true, [PROFILE_THROUGHPUT] = true},
        [BENCH_MEMORY_USE] = {[PROFILE_READINESS] = true, [PROFILE_SAFE] = true, [PROFILE_THROUGHPUT] = true},
    };
    bool asked = false;
    for (unsigned i = 0; i < PROFILES; i++)
        asked |= request->profiles[i];
    for (unsigned bench = 0; bench < BENCHES; bench++) {
        const bool *profiles = asked ? request->profiles : defaults[bench];
        struct column *columns = request->plan.of[bench].columns;
        unsigned width = 0;
        columns[width++] = (struct column){.side = SIDE_EPOLL};
        for (unsigned i = 0; i < PROFILES; i++)
            if (profiles[i])
                columns[width++] = (struct column){.side = SIDE_RING, .profile = (enum profile)i};
        switch (request->comparison) {
        case SELF_EPOLL:
            columns[1] = columns[0];
            width = 2;
            break;
        case SELF_RING: /* the last profile that is asked for */
            columns[0] = columns[1] = columns[width - 1];
            width = 2;
            break;
        case AGAINST_OFF:
            columns[1] = (struct column){.side = SIDE_OFF};
            width = 2;
            break;
        default:
            break;
        }
        request->plan.of[bench].width = width;
    }
}

/* The word that getopt_long() did not take. */
static const char *wrong_option(char **argv)
{
    static char text[3] = "-?";
    if (strncmp(argv[optind - 1], "--", 2) == 0)
        return argv[optind - 1];
    text[1] = (char)optopt;
    return optopt != 0 ? text : argv[optind - 1];
}

/* -1: go on; otherwise the exit status. */
static int parse(int argc, char **argv, struct request *request)
{
    const char *bad;
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
                return usage_error(optarg, "is not a CPU that this process may use");
            request->plan.cpu = (int)cpu;
            break;
        }
        case OPTION_IDLE: {
            long idle = strtol(optarg, &end, 10);
            if (*end != '\0' || end == optarg || idle < 1 || idle > 1000000)
                return usage_error(optarg, "is not a number of connections, 1 to 1000000");
            request->plan.idle = (uint32_t)idle;
            break;
        }
        case OPTION_PROFILE:
            if ((bad = take_profiles(request->profiles, optarg)) != NULL)
                return usage_error(bad, "is not a profile; they are readiness, safe and throughput");
            break;
        case OPTION_TREE:
            if (setenv("RINGPOLL_LIBUV_DIR", optarg, 1) != 0 || libuv_path(SIDE_TREE) == NULL)
                return usage_error(optarg, "is no tree where libuv was built");
            break;
        case OPTION_SIZES:
            if ((bad = take_sizes(&request->plan, optarg)) != NULL)
                return usage_error(bad, "is not the size of a message, 65 to 64K, or one too many");
            break;
        case OPTION_SELF:
            if (optarg != NULL && strcmp(optarg, "ring") == 0)
                request->comparison = SELF_RING;
            else if (optarg == NULL || strcmp(optarg, "epoll") == 0)
                request->comparison = SELF_EPOLL;
            else
                return usage_error(optarg, "is not a side; --self takes epoll or ring");
            break;
        case OPTION_OFF:
            request->comparison = AGAINST_OFF;
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
        case OPTION_REPORT:
            request->page = optarg;
            break;
        case 'h':
            fputs(usage_text, stdout);
            return 0;
        case ':':
            return usage_error(argv[optind - 1], "needs a value");
        default:
            return usage_error(wrong_option(argv), "is not an option of ringpoll bench");
        }
    }
    if (optind < argc)
        return usage_error(argv[optind], "is one argument too many");
    return -1;
}

typedef void write_results(FILE *out, const struct plan *plan, const struct circumstances *circumstances);

/* A file that is opened before anything is measured: minutes are not to be lost
 * for a path that cannot be written. NULL when none is asked for. 0 or -1. */
static int open_file(const char *path, FILE **ret_file)
{
    *ret_file = NULL;
    if (path == NULL || (*ret_file = fopen(path, "we")) != NULL)
        return 0;
    fprintf(stderr, "ringpoll-bench: %s: %s\n", path, strerror(errno));
    return -1;
}

static int save(FILE *file, const char *path, write_results *write, const struct request *request,
                const struct circumstances *circumstances)
{
    if (file == NULL)
        return 0;
    write(file, &request->plan, circumstances);
    if (fclose(file) == 0)
        return 0;
    fprintf(stderr, "ringpoll-bench: %s: %s\n", path, strerror(errno));
    return 1;
}

static bool ends_in(const char *path, const char *ending)
{
    size_t length = strlen(path), wanted = strlen(ending);
    return length > wanted && strcmp(path + length - wanted, ending) == 0;
}

/* "about 3 min left", by what the points so far took. */
static void tell_progress(unsigned at, unsigned wanted, const char *name, uint64_t began)
{
    char left[48] = "";
    double seconds = at > 1 ? (double)(wall_ns() - began) / 1e9 / (at - 1) * (wanted - at + 1) : 0;
    if (seconds >= 90)
        snprintf(left, sizeof left, " (about %.0f min left)", seconds / 60);
    else if (seconds >= 5)
        snprintf(left, sizeof left, " (about %.0f s left)", seconds);
    if (isatty(STDERR_FILENO))
        fprintf(stderr, "\r\033[K%u of %u: %s%s", at, wanted, name, left);
    else if (wanted > 4)
        fprintf(stderr, "%u of %u: %s%s\n", at, wanted, name, left);
}

/* Somebody has seen enough: what was measured until then is told. */
static volatile sig_atomic_t interrupted;

static void on_interrupt(int number)
{
    (void)number;
    interrupted = 1;
}

static void heed_interrupts(void)
{
    struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = (int)SA_RESETHAND};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
}

static int measure_all(struct request *request, const bool *selected)
{
    char failure[512] = "";
    unsigned wanted = 0, done = 0;
    int status = 0;
    const char *clear = isatty(STDERR_FILENO) ? "\r\033[K" : "";
    uint64_t began = wall_ns();
    /* The workers' turns are short: on a busy machine most of the time would be
     * spent between them. */
    (void)setpriority(PRIO_PROCESS, 0, -10);
    for (unsigned i = 0; i < points_count; i++)
        wanted += selected[i];
    for (unsigned i = 0; i < points_count && !interrupted; i++) {
        if (!selected[i])
            continue;
        tell_progress(++done, wanted, points[i].name, began);
        if (point_measure(&points[i], &request->plan, failure, sizeof failure) != 0) {
            if (!interrupted)
                fprintf(stderr, "%sringpoll-bench: %s\n", clear, failure);
            status = 1;
        }
    }
    fputs(clear, stderr);
    if (interrupted) {
        fprintf(stderr, "ringpoll-bench: interrupted at point %u of %u\n", done, wanted);
        status = 1;
    }
    return status;
}

static void print_results(const struct request *request, const struct circumstances *circumstances)
{
    if (request->json) {
        report_json(stdout, &request->plan, circumstances);
        return;
    }
    report_table(stdout);
    if (request->calls) {
        fputc('\n', stdout);
        report_calls(stdout);
    }
    if (request->plan.steps) {
        fputc('\n', stdout);
        report_steps(stdout);
    }
}

static const char *title_of(const struct request *request)
{
    static const char *const titles[BENCHES] = {"Readiness", "Completion", "Memory", "libuv"};
    const char *title = NULL;
    for (unsigned i = 0; i < BENCHES; i++)
        if (request->benches[i])
            title = title == NULL ? titles[i] : "All measurements";
    return title;
}

static int bench(struct request *request, const char *command)
{
    static bool selected[POINTS_MAX];
    struct circumstances circumstances = {.command = command, .title = title_of(request)};
    const char *bad = NULL;
    FILE *saved, *page;
    uint32_t fds = raise_fd_limit(2 * request->plan.idle);
    uint32_t wanted = request->plan.idle;
    request->plan.both_ends = fds / 2;
    if (fds < request->plan.idle)
        request->plan.idle = fds;
    set_columns(request);
    points_init(&request->plan);
    for (unsigned i = 0; i < points_count; i++)
        selected[i] = request->benches[group_bench(points[i].group)] &&
                      !(request->quick && points[i].long_only && request->points == NULL);
    if (request->points != NULL && select_points(selected, request->points, &bad) != 0)
        return usage_error(bad, "is the name of no point here; --list prints them");
    if (request->list) {
        for (unsigned i = 0; i < points_count; i++)
            if (selected[i])
                puts(points[i].name);
        return 0;
    }
    bool idles = false;
    for (unsigned i = 0; i < points_count; i++)
        idles |= selected[i] && (points[i].group == GROUP_IDLE || points[i].group == GROUP_MEMORY);
    if (idles && request->plan.both_ends < wanted)
        fprintf(stderr, "ringpoll-bench: RLIMIT_NOFILE allows %u idle connections, and %u where both ends are in one "
                "process\n", request->plan.idle, request->plan.both_ends);
    if (request->quick) {
        request->plan.pairs = 2;
        request->plan.blocks = 8;
        request->plan.block_ms = 5;
    }
    if (program_libevent == NULL)
        fprintf(stderr, "ringpoll-bench: built without libevent: its points are of the hand-written loop, or missing\n");
    if (program_libuv == NULL && request->benches[BENCH_COMPLETION])
        fprintf(stderr, "ringpoll-bench: built without libuv: its points are missing\n");
    if (open_file(request->steps_to, &request->plan.dump) != 0 || open_file(request->save, &saved) != 0 ||
        open_file(request->page, &page) != 0)
        return 1;
    heed_interrupts();
    circumstances_find(&circumstances);
    int status = measure_all(request, selected);
    print_results(request, &circumstances);
    status |= save(saved, request->save, request->save != NULL && ends_in(request->save, ".json") ? report_json
                                                                                                 : report_markdown,
                   request, &circumstances);
    status |= save(page, request->page, report_page, request, &circumstances);
    if (fflush(stdout) != 0 || (request->plan.dump != NULL && fclose(request->plan.dump) != 0))
        status = 1;
    return status;
}

/* --------------------------------------------------------------------- main */

int main(int argc, char **argv)
{
    static char command[1024];
    static struct request request = {
        .plan = {.pairs = 5, .blocks = 16, .block_ms = 10, .idle = IDLE_CONNECTIONS,
                 .sizes = {1024, 4096, 16384, 65536}, .sizes_count = 4}};
    size_t used = (size_t)snprintf(command, sizeof command, "ringpoll bench");
    int status = worker_or_idler(argc, argv);
    if (status >= 0)
        return status;
    for (int i = 1; i < argc && used < sizeof command; i++)
        used += (size_t)snprintf(command + used, sizeof command - used, " %s", argv[i]);
    bool named = argc > 1 && argv[1][0] != '-';
    bool all = !named || strcmp(argv[1], "all") == 0;
    bool known = all;
    for (unsigned i = 0; i < BENCHES; i++) {
        request.benches[i] = (all && i != BENCH_LIBUV_TREE) || (named && strcmp(argv[1], bench_names[i]) == 0);
        known |= request.benches[i];
    }
    if (!known)
        return usage_error(argv[1], "is not a measurement; they are readiness, completion, memory, libuv and all");
    request.plan.cpu = last_cpu();
    status = parse(argc - named, argv + named, &request);
    if (status < 0 && all && libuv_path(SIDE_TREE) != NULL)
        request.benches[BENCH_LIBUV_TREE] = true;
    return status >= 0 ? status : bench(&request, command);
}
