/* SPDX-License-Identifier: MIT
 *
 * `ringpoll stat`: what the library does in running programs, once or again and
 * again, for people and (--json) for programs.
 */
#include "look.h"

#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct request {
    const char *who;
    pid_t pid; /* 0: `who` is a name */
    bool json, fds, watch;
    double interval;
};

/* ----------------------------------------------------------------- showing */

static const struct counter {
    const char *name, *label; /* the last have none: they are for programs only */
    size_t at;
} counters[] = {
#define COUNTER(name, label) {#name, label, offsetof(struct ringpoll_stats, name)}
    COUNTER(waits, "waits"),
    COUNTER(events, "events"),
    COUNTER(calls_saved, "system calls saved"),
    COUNTER(enters, "io_uring_enter"),
    COUNTER(rechecks, "poll"),
    COUNTER(kernel_waits, "epoll_wait"),
    COUNTER(kernel_ctls, "epoll_ctl"),
    COUNTER(sqes, "submitted to the ring"),
    COUNTER(cqes, "completed by it"),
    COUNTER(received, "receives with bytes"),
    COUNTER(sends_batched, "sends batched"),
    COUNTER(sends_zc, "zero-copy sends"),
    COUNTER(sends_zc_copied, "of them copied"),
    COUNTER(accepted, "accepted by it"),
    COUNTER(requests, "file requests"),
    COUNTER(listeners_adopted, "listeners adopted"),
    COUNTER(adoptions, "adoptions"),
    COUNTER(receives_ended, "receives ended"),
    COUNTER(starved, "ENOBUFS (no buffer)"),
    COUNTER(rearms, "polls armed again"),
    COUNTER(cancels_on_close, "cancels on close"),
    COUNTER(handovers, "fds fallen back"),
    COUNTER(demotions, "sets fallen back"),
    COUNTER(cq_overflows, "CQ overflows"),
    COUNTER(stale_cqes, NULL),
    COUNTER(rechecked_fds, NULL),
    COUNTER(requests_at_once, NULL),
    COUNTER(polls_armed, NULL),
    COUNTER(ops_in_flight, NULL),
    COUNTER(sets_made, NULL),
    COUNTER(rings_made, NULL),
#undef COUNTER
};
#define COUNTERS (sizeof(counters) / sizeof(counters[0]))
#define SET_COLUMNS 8 /* in the table for people */

static uint64_t value_of(const struct ringpoll_stats *stats, size_t counter)
{
    return *(const uint64_t *)((const char *)stats + counters[counter].at);
}

static const char *profile_of(const struct rp_set *set)
{
    return set->flags & RINGPOLL_BATCH ? "throughput" : set->flags & RINGPOLL_ADOPT ? "safe" : "readiness";
}

/* A child's copy that it has not used yet has its parent's ring. */
static const char *engine_of(const struct seen_set *set)
{
    static const char *const words[] = {"new", "ring", "kernel"};
    return set->copy.inherited ? "parent" : words[set->stats.engine];
}

static const char *home_of(const struct seen_fd *fd)
{
    return fd->set < 0 ? "none" : fd->on_ring ? "ring" : "epoll";
}

/* `before`: the same a while ago, or NULL. With rates, the sets' columns are those. */
static void print_counters(const struct subject *now, const struct subject *before, double lasted, bool rates)
{
    struct column {
        const struct ringpoll_stats *now, *before;
    } columns[1 + SET_COLUMNS] = {{&now->sum, before != NULL ? &before->sum : NULL}};
    size_t count = 1;
    printf("\n  %-20s %12s%s", "", "all", rates ? "      all /s" : "");
    for (size_t i = 0; i < now->set_count && i < SET_COLUMNS; i++, count++) {
        columns[count].now = &now->sets[i].stats;
        for (size_t k = 0; before != NULL && k < before->set_count; k++) {
            if (before->sets[k].address == now->sets[i].address)
                columns[count].before = &before->sets[k].stats;
        }
        char head[32];
        snprintf(head, sizeof(head), "set %d%s", now->sets[i].copy.identity, rates ? " /s" : "");
        printf(" %11s", head);
    }
    for (size_t i = 0; i < COUNTERS && counters[i].label != NULL; i++) {
        printf("\n  %-20s %12" PRIu64, counters[i].label, value_of(&now->sum, i));
        for (size_t k = rates ? 0 : 1; k < count; k++) {
            uint64_t value = value_of(columns[k].now, i);
            if (!rates)
                printf(" %11" PRIu64, value);
            else if (columns[k].before == NULL || value < value_of(columns[k].before, i)) /* new, or anew */
                printf(" %11s", "-");
            else
                printf(" %11.0f", (double)(value - value_of(columns[k].before, i)) / lasted);
        }
    }
    puts(now->set_count > SET_COLUMNS ? "\n  (and more sets: see --json)" : "");
}

static void print_people(const struct snapshot *now, const struct snapshot *before, const struct request *request)
{
    for (size_t i = 0; i < now->count; i++) {
        const struct subject *subject = now->subjects[i], *old = NULL;
        for (size_t k = 0; k < before->count; k++) {
            if (before->subjects[k]->pid == subject->pid && before->subjects[k]->anchor.self == subject->anchor.self)
                old = before->subjects[k];
        }
        printf("%s%s (%d), ringpoll %s, %" PRIu64 " set%s, %" PRIu64 " on a ring%s\n", i > 0 ? "\n" : "",
               subject->name, (int)subject->pid, rp_anchor.version, subject->sum.sets,
               subject->sum.sets == 1 ? "" : "s", subject->sum.rings,
               subject->whole ? "" : " (not all of it could be read)");
        for (size_t k = 0; k < subject->set_count; k++) {
            const struct seen_set *set = &subject->sets[k];
            printf("  set %d (%s): ", set->copy.identity, profile_of(&set->copy));
            if (set->copy.inherited)
                puts("the parent's, not used by this process yet");
            else if (set->stats.engine == RINGPOLL_ENGINE_KERNEL)
                printf("kernel epoll, since %s\n", ringpoll_reason_text(set->stats.reason));
            else
                printf("%s; fds: %" PRIu64 " on the ring (%" PRIu64 " adopted), %" PRIu64 " on kernel epoll; "
                       "in flight: %" PRIu64 "\n", engine_of(set), set->on_ring, set->adopted, set->on_kernel,
                       set->stats.ops_in_flight);
        }
        print_counters(subject, old, now->taken - before->taken, request->watch);
        if (!request->fds)
            continue;
        printf("\n  %7s %5s  %-8s %-7s %9s %9s  %s\n", "fd", "set", "kind", "on", "unread", "unsent", "adopted");
        for (size_t k = 0; k < subject->fd_count; k++) {
            const struct seen_fd *fd = &subject->fds[k];
            char set[16] = "-";
            if (fd->set >= 0)
                snprintf(set, sizeof(set), "%d", fd->set);
            printf("  %7d %5s  %-8s %-7s %9" PRIu32 " %9" PRIu32 "  %s%s\n", fd->fd, set, fd->kind,
                   home_of(fd), fd->unread, fd->unsent, fd->adopted ? "yes" : "no: ",
                   fd->adopted ? "" : fd->why);
        }
    }
}

static void print_json_counters(const struct ringpoll_stats *stats)
{
    fputs("\"counters\": {", stdout);
    for (size_t i = 0; i < COUNTERS; i++)
        printf("%s\"%s\": %" PRIu64, i > 0 ? ", " : "", counters[i].name, value_of(stats, i));
    putchar('}');
}

/* One line. */
static void print_json(const struct snapshot *now, const struct request *request)
{
    printf("{\"ringpoll\": \"%s\", \"time\": %.3f, \"processes\": [", rp_anchor.version, now->at);
    for (size_t i = 0; i < now->count; i++) {
        const struct subject *subject = now->subjects[i];
        printf("%s{\"pid\": %d, \"program\": ", i > 0 ? ", " : "", (int)subject->pid);
        json_string(subject->name);
        fputs(", \"library\": ", stdout);
        json_string(subject->file);
        printf(", \"complete\": %s, \"rings\": %" PRIu64 ", ", subject->whole ? "true" : "false", subject->sum.rings);
        print_json_counters(&subject->sum);
        fputs(", \"sets\": [", stdout);
        for (size_t k = 0; k < subject->set_count; k++) {
            const struct seen_set *set = &subject->sets[k];
            char buffer[ERRNO_NAME_SIZE];
            printf("%s{\"fd\": %d, \"engine\": ", k > 0 ? ", " : "", set->copy.identity);
            json_string(engine_of(set));
            fputs(", \"reason\": ", stdout);
            json_string(set->stats.reason != 0 ? ringpoll_reason_text(set->stats.reason) : NULL);
            fputs(", \"error\": ", stdout);
            json_string(set->copy.error != 0 ? errno_name(set->copy.error, buffer, sizeof(buffer)) : NULL);
            printf(", \"profile\": \"%s\", \"fds_on_ring\": %" PRIu64 ", \"fds_adopted\": %" PRIu64
                   ", \"fds_on_epoll\": ", profile_of(&set->copy), set->on_ring, set->adopted);
            if (set->copy.engine == RINGPOLL_ENGINE_KERNEL && !request->fds)
                fputs("null", stdout);
            else
                printf("%" PRIu64, set->on_kernel);
            printf(", \"buffers\": {\"made\": %" PRIu32 ", \"in_kernel\": %" PRIu32 ", \"wanted\": %" PRIu32 "}, ",
                   set->copy.buffers.made, set->copy.buffers.given, set->copy.buffers.target);
            print_json_counters(&set->stats);
            putchar('}');
        }
        fputs("]", stdout);
        for (size_t k = 0; k < subject->fd_count; k++) {
            const struct seen_fd *fd = &subject->fds[k];
            printf("%s{\"fd\": %d, \"set\": ", k > 0 ? ", " : ", \"fds\": [", fd->fd);
            printf(fd->set >= 0 ? "%d" : "null", fd->set);
            printf(", \"kind\": \"%s\", \"on\": \"%s\", \"adopted\": %s, \"why\": ", fd->kind, home_of(fd),
                   fd->adopted ? "true" : "false");
            json_string(fd->adopted ? NULL : fd->why);
            printf(", \"unread\": %" PRIu32 ", \"unsent\": %" PRIu32 "}", fd->unread, fd->unsent);
        }
        fputs(subject->fd_count > 0 ? "]}" : request->fds ? ", \"fds\": []}" : "}", stdout);
    }
    fputs("]}\n", stdout);
}

/* ------------------------------------------------------------- the command */

static int print_help(void)
{
    fputs("Usage: ringpoll stat [OPTION]... PID|PROGRAM\n"
          "Show what ringpoll does in a running program: which of its epoll sets are on a\n"
          "ring, system calls saved, and why an fd is not adopted. The program is not\n"
          "slowed down by it.\n\n"
          "      --fds              list the fds, too\n"
          "      --json             for programs: one object in a line\n"
          "      --watch[=SECONDS]  again every SECONDS (2), with rates, until interrupted\n"
          "                         or the program ends\n"
          "  -h, --help             print this and exit\n\n"
          "PROGRAM is a name as ps(1) has it, or that of the executable file: all of its\n"
          "processes are shown.\n\n"
          "Exit status: 0 if there was something to show, 1 if there is no such process\n"
          "or no ringpoll in it, 2 for a wrong option, 125 if it may not be looked into or\n"
          "has another version of ringpoll in it. See ringpoll-stat(1).\n",
          stdout);
    return finish_output();
}

static bool parse_interval(const char *text, double *interval)
{
    char *end = NULL;
    if (text == NULL)
        return true;
    *interval = isdigit((unsigned char)*text) || *text == '.' ? strtod(text, &end) : 0;
    if (end != NULL && *end == '\0' && *interval >= 0.01 && *interval <= 86400)
        return true;
    complain("--watch: '%s' is not a number of seconds from 0.01 to 86400.", text);
    return false;
}

int stat_main(int argc, char **argv)
{
    enum { HELP = 0x100, FDS, JSON, WATCH };
    static const struct option options[] = {
        {"fds", no_argument, NULL, FDS},
        {"help", no_argument, NULL, HELP},
        {"json", no_argument, NULL, JSON},
        {"watch", optional_argument, NULL, WATCH},
        {NULL, 0, NULL, 0},
    };
    struct request request = {.interval = 2};
    int opt;
    while ((opt = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
        switch (opt) {
        case 'h':
        case HELP:
            return print_help();
        case FDS:
            request.fds = true;
            break;
        case JSON:
            request.json = true;
            break;
        case WATCH:
            request.watch = true;
            if (!parse_interval(optarg, &request.interval))
                return STATUS_USAGE;
            break;
        default:
            return complain_of_option("stat", opt, argv);
        }
    }
    if (optind + 1 != argc || *argv[optind] == '\0') {
        complain("'ringpoll stat' needs one process id or program name (see 'ringpoll stat --help').");
        return STATUS_USAGE;
    }
    request.who = argv[optind];
    if (strspn(request.who, "0123456789") == strlen(request.who)) {
        errno = 0;
        long number = strtol(request.who, NULL, 10);
        if (errno != 0 || number <= 0 || number > INT_MAX) {
            complain("'%s' is not a process id.", request.who);
            return STATUS_USAGE;
        }
        request.pid = (pid_t)number;
    }
    bool redraw = request.watch && !request.json && isatty(STDOUT_FILENO);
    struct snapshot now, before = {.count = 0};
    int status = take_snapshot(&now, request.pid, request.who, request.fds, false);
    setvbuf(stdout, NULL, _IOFBF, 1 << 16); /* a screen at once */
    while (status == STATUS_OK) {
        if (redraw)
            fputs("\033[H\033[J", stdout);
        else if (before.count > 0 && !request.json)
            putchar('\n');
        if (request.json)
            print_json(&now, &request);
        else
            print_people(&now, &before, &request);
        status = finish_output();
        if (!request.watch || status != STATUS_OK)
            return status == STATUS_OK ? STATUS_OK : STATUS_REFUSED;
        free_snapshot(&before);
        before = now;
        struct timespec pause = {.tv_sec = (time_t)request.interval};
        pause.tv_nsec = (long)((request.interval - (double)pause.tv_sec) * 1e9);
        nanosleep(&pause, NULL);
        if (take_snapshot(&now, request.pid, request.who, request.fds, true) != STATUS_OK)
            break; /* it has ended */
    }
    return status;
}
