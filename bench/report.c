/* SPDX-License-Identifier: MIT
 *
 * See report.h. Readiness is told as ours to epoll's, which is to be at most
 * about 1; completion as epoll's to ours, which is how many times cheaper.
 */
#include "report.h"

#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include "cycles.h"
#include "program.h"

static const struct {
    const char *name, *title;
} groups[GROUPS] = {
    [GROUP_ECHO] = {"echo", "level-triggered persistent events, read() and write(), 64 bytes"},
    [GROUP_RAW] = {"raw", "a hand-written level-triggered epoll_wait loop, the same service"},
    [GROUP_THREADS] = {"threads", "as the first table, in a process that has a second thread (information)"},
    [GROUP_FLOOR] = {"floor", "no library on either side: what polls on a ring cost in this kernel (information)"},
    [GROUP_CHURN] = {"churn", "accept, a request, a reply, close; churn-eof: the client closes first"},
    [GROUP_IDLE] = {"idle", "active connections among idle ones whose peers live in a second process"},
    [GROUP_BUFFEREVENT] = {"bufferevent", "a socket bufferevent per connection, the read callback moves input to output"},
    [GROUP_EVENT] = {"event", "a level-triggered persistent event per connection, read() and write()"},
    [GROUP_LIBUV] = {"libuv", "uv_read_start() and uv_write() on a stream per connection"},
    [GROUP_LOOP] = {"loop", "a hand-written level-triggered epoll_wait loop, read() and write()"},
    [GROUP_HAND] = {"hand", "no shim: that loop; one on the library's public interface; one written for a ring by hand"},
    [GROUP_LIBEVENT] = {"libevent", "no shim: libevent's own bufferevents and listener on epoll; libringpoll-event's on the ring"},
    [GROUP_HANDLES] = {"handles", "no shim: libuv's own handles on epoll; libringpoll-uv's on the ring"},
    [GROUP_MEMORY] = {"memory", "private bytes of the process per connection that has echoed 12 requests and idles"},
    [GROUP_TREE] = {"libuv", "stock libuv on epoll, and libuv that was built --with-uring, by LD_LIBRARY_PATH"},
};

const char *group_name(enum group group)
{
    return groups[group].name;
}

const char *group_title(enum group group)
{
    return groups[group].title;
}

void circumstances_find(struct circumstances *circumstances)
{
    struct utsname system;
    time_t now = time(NULL);
    struct tm local;
    char line[256];
    const char *shim = shim_path();
    const char *mask = getenv("RINGPOLL_MASK");
    gmtime_r(&now, &local);
    strftime(circumstances->date, sizeof circumstances->date, "%Y-%m-%d %H:%M UTC", &local);
    if (uname(&system) == 0)
        snprintf(circumstances->kernel, sizeof circumstances->kernel, "%s %s %s", system.sysname, system.release,
                 system.machine);
    snprintf(circumstances->processor, sizeof circumstances->processor, "unknown");
    FILE *file = fopen("/proc/cpuinfo", "re");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        char *colon = strchr(line, ':');
        if (colon != NULL && strncmp(line, "model name", 10) == 0) {
            line[strcspn(line, "\n")] = '\0';
            snprintf(circumstances->processor, sizeof circumstances->processor, "%s", colon + 2);
            break;
        }
    }
    if (file != NULL)
        fclose(file);
    circumstances->cpus = (unsigned)sysconf(_SC_NPROCESSORS_ONLN);
    /* A result file tells which library, not where somebody's build lay. */
    const char *slash = shim != NULL ? strrchr(shim, '/') : NULL;
    snprintf(circumstances->shim, sizeof circumstances->shim, "%s",
             shim == NULL ? "none" : slash != NULL ? slash + 1 : shim);
    snprintf(circumstances->mask, sizeof circumstances->mask, "%s", mask != NULL && *mask != '\0' ? mask : "none");
}

/* ------------------------------------------------------------------- table */

static unsigned done_in(enum group group)
{
    unsigned count = 0;
    for (unsigned i = 0; i < points_count; i++)
        count += points[i].group == group && points[i].done;
    return count;
}

const char *group_program(enum group group)
{
    for (unsigned i = 0; i < points_count; i++)
        if (points[i].group == group && points[i].done)
            return points[i].figures[0].program;
    return "";
}

static void two(FILE *out, bool known, double left, double right, int width)
{
    if (known)
        fprintf(out, "  %*.2f %*.2f", width, left, width, right);
    else
        fprintf(out, "  %*s", 2 * width + 1, "not avail.");
}

static const struct point *first_in(enum group group)
{
    for (unsigned i = 0; i < points_count; i++)
        if (points[i].group == group && points[i].done)
            return &points[i];
    return NULL;
}

static void head(FILE *out, enum group group, const struct column *column)
{
    fprintf(out, "%s: %s", groups[group].name, group_program(group));
    if (column != NULL && column->side == SIDE_RING && column->profile != PROFILE_READINESS)
        fprintf(out, ", profile %s", profile_name(column->profile));
    fprintf(out, "\n%s\n\n", groups[group].title);
}

/* One column against the first. */
static void pair_table(FILE *out, enum group group, unsigned column)
{
    const struct column *columns = first_in(group)->columns;
    double sum = 0, worst = 0, best = 1e9;
    unsigned count = 0;
    head(out, group, &columns[column]);
    fprintf(out, "  %-16s %8s %8s  %6s  %-13s  %-13s  %-11s  %6s\n", "", column_short_name(&columns[0]),
            column_short_name(&columns[column]), "ratio", "95 %", "calls/request", "beside/turn", "whole");
    for (unsigned i = 0; i < points_count; i++) {
        const struct point *point = &points[i];
        if (point->group != group || !point->done)
            continue;
        const struct figure *a = &point->figures[0], *b = &point->figures[column];
        const struct ratio *ratio = &point->ratios[column];
        fprintf(out, "  %-16s %8.0f %8.0f  %6.3f  %.3f-%.3f  ", point->name, a->clock, b->clock, ratio->value,
                ratio->low, ratio->high);
        two(out, a->counted && b->counted, a->calls, b->calls, 6);
        two(out, a->counted && b->counted, a->beside, b->beside, 5);
        fprintf(out, "  %6.3f\n", point->whole_ratios[column]);
        sum += ratio->value;
        count++;
        worst = ratio->value > worst ? ratio->value : worst;
        best = ratio->value < best ? ratio->value : best;
    }
    if (count > 1)
        fprintf(out, "  %-16s %8s %8s  %6.3f  from %.3f to %.3f\n", "mean", "", "", sum / count, best, worst);
    fputc('\n', out);
}

static void idle_table(FILE *out, unsigned column)
{
    const struct column *columns = first_in(GROUP_IDLE)->columns;
    unsigned width = first_in(GROUP_IDLE)->width;
    head(out, GROUP_IDLE, &columns[column]);
    fprintf(out, "  %-12s %6s  %-23s  %-23s  %s\n", "", "", column_short_name(&columns[0]),
            column_short_name(&columns[column]), "ratio");
    fprintf(out, "  %-12s %6s  %7s %7s %7s  %7s %7s %7s  %7s %7s\n", "", "idle", "alone", "among", "ratio", "alone",
            "among", "ratio", "alone", "among");
    for (unsigned i = 0; i < points_count; i++) {
        const struct point *point = &points[i];
        const struct figure *f = point->figures;
        if (point->group != GROUP_IDLE || !point->done)
            continue;
        fprintf(out, "  %-12s %6u  %7.0f %7.0f %7.3f  %7.0f %7.0f %7.3f  %7.3f %7.3f\n", point->name,
                point->workload.idle, f[0].clock, f[width].clock, point->idle[0].value, f[column].clock,
                f[width + column].clock, point->idle[column].value, point->alone[column].value,
                point->ratios[column].value);
    }
    fputc('\n', out);
}

/* All columns beside each other. */
static void wide_table(FILE *out, enum group group)
{
    const struct column *columns = first_in(group)->columns;
    unsigned width = first_in(group)->width;
    head(out, group, NULL);
    fprintf(out, "  %-18s %-*s %-*s  %s\n", "", (int)(10 * width), " " BENCH_CLOCK_UNIT " per request",
            (int)(7 * (width - 1)), width > 2 ? " times cheaper" : " times", " calls per request");
    fprintf(out, "  %-18s", "");
    for (unsigned c = 0; c < width; c++)
        fprintf(out, " %9s", column_short_name(&columns[c]));
    fputc(' ', out);
    for (unsigned c = 1; c < width; c++)
        fprintf(out, " %6s", column_short_name(&columns[c]));
    fputs("  ", out);
    for (unsigned c = 0; c < width; c++)
        fprintf(out, " %6s", column_short_name(&columns[c]));
    fputc('\n', out);
    for (unsigned i = 0; i < points_count; i++) {
        const struct point *point = &points[i];
        if (point->group != group || !point->done)
            continue;
        const char *slash = strchr(point->name, '/');
        fprintf(out, "  %-18s", slash + 1);
        for (unsigned c = 0; c < width; c++)
            fprintf(out, " %9.0f", point->figures[c].clock);
        fputc(' ', out);
        for (unsigned c = 1; c < width; c++)
            fprintf(out, " %6.3f", 1 / point->ratios[c].value);
        fputs("  ", out);
        for (unsigned c = 0; c < width; c++)
            if (point->figures[c].counted)
                fprintf(out, " %6.2f", point->figures[c].calls);
            else
                fprintf(out, " %6s", "-");
        fputc('\n', out);
    }
    fputc('\n', out);
}

/* A column's own: beyond what the program has on epoll. */
static void memory_table(FILE *out)
{
    const struct column *columns = first_in(GROUP_MEMORY)->columns;
    unsigned width = first_in(GROUP_MEMORY)->width;
    fprintf(out, "memory: %s\n\n", groups[GROUP_MEMORY].title);
    fprintf(out, "  %-26s %-*s  %s\n", "", (int)(8 * width), " bytes per connection", "the library's own");
    fprintf(out, "  %-26s", "");
    for (unsigned c = 0; c < width; c++)
        fprintf(out, " %7s", column_short_name(&columns[c]));
    fputs("  ", out);
    for (unsigned c = 1; c < width; c++)
        fprintf(out, " %7s", column_short_name(&columns[c]));
    fputc('\n', out);
    for (unsigned i = 0; i < points_count; i++) {
        const struct point *point = &points[i];
        if (point->group != GROUP_MEMORY || !point->done)
            continue;
        fprintf(out, "  %-26s", point->name);
        for (unsigned c = 0; c < width; c++)
            fprintf(out, " %7.0f", point->figures[c].memory);
        fputs("  ", out);
        for (unsigned c = 1; c < width; c++)
            fprintf(out, " %7.0f", point->figures[c].memory - point->figures[0].memory);
        fputc('\n', out);
    }
    fputc('\n', out);
}

static void verdicts(FILE *out, enum bench bench)
{
    static struct bar bars[BARS_MAX];
    unsigned count = bars_find(bench, bars);
    if (count == 0)
        return;
    fprintf(out, "bars of %s\n\n", bench_names[bench]);
    for (unsigned i = 0; i < count; i++) {
        fprintf(out, "  %-3s  %-76s  %.3f", bars[i].verdict == VERDICT_HOLDS ? "yes" : "NO", bars[i].text,
                bars[i].value);
        if (bars[i].low < bars[i].high)
            fprintf(out, "  %.3f-%.3f", bars[i].low, bars[i].high);
        fputc('\n', out);
    }
    fputc('\n', out);
}

static bool any_done(enum bench bench)
{
    for (unsigned i = 0; i < GROUPS; i++)
        if (group_bench((enum group)i) == bench && done_in((enum group)i) > 0)
            return true;
    return false;
}

static void instructions_table(FILE *out)
{
    bool known = false;
    for (unsigned i = 0; i < points_count; i++)
        known |= points[i].done && points[i].figures[0].instructions > 0;
    if (!known) {
        fprintf(out, "Instructions per request: not available (no hardware counter on this machine).\n");
        return;
    }
    fprintf(out, "\nInstructions per request\n\n");
    for (unsigned i = 0; i < points_count; i++) {
        if (!points[i].done || points[i].group == GROUP_MEMORY)
            continue;
        fprintf(out, "  %-28s", points[i].name);
        for (unsigned c = 0; c < points[i].width; c++)
            fprintf(out, " %8.0f", points[i].figures[c].instructions);
        fputc('\n', out);
    }
}

void report_table(FILE *out)
{
    for (unsigned i = 0; i < GROUPS; i++) {
        enum group group = (enum group)i;
        if (done_in(group) == 0)
            continue;
        if (group == GROUP_MEMORY) {
            memory_table(out);
            continue;
        }
        if (group_bench(group) == BENCH_COMPLETION || group == GROUP_TREE) {
            wide_table(out, group);
            continue;
        }
        for (unsigned column = 1; column < first_in(group)->width; column++)
            if (group == GROUP_IDLE)
                idle_table(out, column);
            else
                pair_table(out, group, column);
    }
    for (unsigned bench = 0; bench < BENCHES; bench++)
        verdicts(out, (enum bench)bench);
    if (!any_done(BENCH_READINESS) && !any_done(BENCH_COMPLETION) && !any_done(BENCH_LIBUV_TREE))
        return;
    fprintf(out,
            "%s per request: median over blocks of the median round; ratios: median of the ratios of\n"
            "neighbouring blocks. The clock runs while the program does, and every reply was taken without\n"
            "waiting once the clock stood.\n",
            BENCH_CLOCK_UNIT);
    if (any_done(BENCH_READINESS))
        fprintf(out,
                "ratio: the ring's to epoll's, less is better; whole is the same with the client's sends and\n"
                "receives.\n");
    if (any_done(BENCH_COMPLETION))
        fprintf(out,
                "times cheaper: epoll's to the ring's, more is better. ready, safe, thru: the shim's profiles\n"
                "readiness, safe and throughput. bulk: a request is 1 MiB that the program reads and discards;\n"
                "churn: accept, a request, a reply, close; churn-eof: the client closes first.\n");
    if (any_done(BENCH_LIBUV_TREE))
        fprintf(out,
                "times: stock's to the tree's, more is better. udp: datagrams of so many sockets to one; pound: the\n"
                "client connects and closes, so often per round; async: uv_async_send() on so many handles and\n"
                "their callbacks; turns: of a loop that an idle handle keeps from sleeping. calls of the last two\n"
                "are per callback.\n");
    instructions_table(out);
}

static void lane_head(FILE *out, const struct point *point, unsigned lane)
{
    fprintf(out, "  %-28s %-10s", point->name, column_name(&point->columns[lane % point->width]));
    if (point->lanes > point->width)
        fprintf(out, " %s", lane < point->width ? "alone" : "among");
}

void report_calls(FILE *out)
{
    fprintf(out, "System calls per request, by name\n\n");
    for (unsigned i = 0; i < points_count; i++) {
        const struct point *point = &points[i];
        for (unsigned lane = 0; point->done && lane < point->lanes; lane++) {
            const struct figure *figure = &point->figures[lane];
            if (!figure->counted)
                continue;
            lane_head(out, point, lane);
            for (long number = 0; number < COUNT_NUMBERS; number++) {
                const char *name = count_name(number);
                if (figure->counts.calls[number] == 0)
                    continue;
                if (name != NULL)
                    fprintf(out, " %s", name);
                else
                    fprintf(out, " call-%ld", number);
                fprintf(out, " %.3f", (double)figure->counts.calls[number] / figure->counted_requests);
            }
            if (figure->spurious > 0)
                fprintf(out, " (reads in vain %.3f)", figure->spurious);
            if (figure->flushes > 0)
                fprintf(out, " (turns to bring replies out, per round: %.2f)", figure->flushes);
            fputc('\n', out);
        }
    }
    fputc('\n', out);
}

void report_steps(FILE *out)
{
    fprintf(out, "Instructions in user space per request, by object (stepped through)\n\n");
    for (unsigned i = 0; i < points_count; i++) {
        const struct point *point = &points[i];
        for (unsigned lane = 0; point->done && lane < point->lanes; lane++) {
            const struct figure *figure = &point->figures[lane];
            double requests = figure->stepped_requests, sum = 0;
            if (figure->stepped_requests == 0)
                continue;
            for (unsigned object = 0; object < OBJECTS_MAX; object++)
                sum += (double)figure->objects[object].steps;
            lane_head(out, point, lane);
            fprintf(out, " %7.1f:", sum / requests);
            for (unsigned object = 0; object < OBJECTS_MAX && figure->objects[object].steps > 0; object++)
                fprintf(out, " %s %.1f", figure->objects[object].name,
                        (double)figure->objects[object].steps / requests);
            fputc('\n', out);
        }
    }
    fputc('\n', out);
}
