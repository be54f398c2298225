/* SPDX-License-Identifier: MIT
 *
 * The bars of the project. They are printed, and do not change the exit status: a
 * measured answer that one does not like is still an answer.
 *
 * Every "at least 1.0" carries 2 % for noise.
 */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "report.h"

#define NOISE 0.98

struct list {
    struct bar *bars;
    unsigned count;
};

/* A value that is known as it is. */
static struct ratio exactly(double value)
{
    return (struct ratio){value, value, value};
}

/* How many times cheaper. */
static struct ratio inverse(const struct ratio *ratio)
{
    return (struct ratio){1 / ratio->value, 1 / ratio->high, 1 / ratio->low};
}

__attribute__((format(printf, 5, 6))) static void judge(struct list *list, bool at_most, struct ratio value,
                                                        double wanted, const char *text, ...)
{
    va_list arguments;
    if (list->count == BARS_MAX)
        return;
    struct bar *bar = &list->bars[list->count++];
    bar->verdict = (at_most ? value.value <= wanted : value.value >= wanted) ? VERDICT_HOLDS : VERDICT_FAILS;
    bar->value = value.value;
    bar->low = value.low;
    bar->high = value.high;
    bar->wanted = wanted;
    va_start(arguments, text);
    vsnprintf(bar->text, sizeof bar->text, text, arguments);
    va_end(arguments);
}

/* -------------------------------------------------------------- readiness */

struct spread {
    unsigned count;
    struct ratio worst;
    double mean;
};

static struct spread ratios_of(enum group group, unsigned column, unsigned at_least)
{
    struct spread spread = {0, {0, 0, 0}, 0};
    for (unsigned i = 0; i < points_count; i++) {
        const struct point *point = &points[i];
        if (point->group != group || !point->done || point->workload.connections < at_least)
            continue;
        double value = point->ratios[column].value;
        spread.mean = (spread.mean * spread.count + value) / (spread.count + 1);
        if (value > spread.worst.value)
            spread.worst = point->ratios[column];
        spread.count++;
    }
    return spread;
}

static void readiness(struct list *list, const struct column *columns, unsigned column)
{
    char profile[32] = "";
    if (columns[column].profile != PROFILE_READINESS)
        snprintf(profile, sizeof profile, " (%s)", profile_name(columns[column].profile));
    struct spread spread = ratios_of(GROUP_ECHO, column, 1);
    if (spread.count > 0)
        judge(list, true, spread.worst, 1.02, "echo: at most 1.02 of kernel epoll at every point%s", profile);
    if (spread.count == 8)
        judge(list, true, exactly(spread.mean), 0.97, "echo: 3 %% below it on the mean of all points%s", profile);
    spread = ratios_of(GROUP_RAW, column, 8);
    if (spread.count > 0)
        judge(list, true, spread.worst, 0.99, "raw: 1 to 9 %% below at 8 connections and more%s", profile);
    spread = ratios_of(GROUP_CHURN, column, 1);
    if (spread.count > 0)
        judge(list, true, spread.worst, 1.02, "churn: at most 1.02 of epoll's%s", profile);
    struct ratio idle = exactly(0);
    for (unsigned i = 0; i < points_count; i++)
        if (points[i].group == GROUP_IDLE && points[i].done && points[i].idle[column].value > idle.value)
            idle = points[i].idle[column];
    if (idle.value > 0)
        judge(list, true, idle, 1.10, "idle: active connections within 10 %% of the same alone%s", profile);
    double beside = 0;
    for (unsigned i = 0; i < points_count; i++) {
        const struct point *point = &points[i];
        if ((point->group == GROUP_ECHO || point->group == GROUP_RAW) && point->done &&
            point->figures[column].counted && point->figures[column].beside > beside)
            beside = point->figures[column].beside;
    }
    if (beside > 0)
        judge(list, true, exactly(beside), 1.0, "one system call per turn beside the program's reads and writes%s",
              profile);
}

/* ------------------------------------------------------------- completion */

static bool is_of(const struct point *point, enum bench_kind kind, uint32_t message, uint32_t connections)
{
    return point->done && group_bench(point->group) == BENCH_COMPLETION && point->workload.kind == kind &&
           (message == 0 || point->workload.message == message) &&
           (connections == 0 || point->workload.connections == connections);
}

/* A group whose other columns are other programs. */
static bool is_without_shim(const struct point *point)
{
    return point->group == GROUP_HAND || point->group == GROUP_LIBEVENT || point->group == GROUP_HANDLES;
}

/* How many times cheaper the worst such point is; NULL: none was measured. */
static const struct point *cheaper(unsigned column, bool (*wanted)(const struct point *point),
                                   struct ratio *ret_worst)
{
    const struct point *worst = NULL;
    for (unsigned i = 0; i < points_count; i++) {
        const struct point *point = &points[i];
        if (!point->done || group_bench(point->group) != BENCH_COMPLETION || is_without_shim(point) ||
            !wanted(point) || (worst != NULL && point->ratios[column].value <= worst->ratios[column].value))
            continue;
        worst = point;
    }
    if (worst != NULL)
        *ret_worst = inverse(&worst->ratios[column]);
    return worst;
}

static bool one_connection(const struct point *point)
{
    return is_of(point, BENCH_ECHO, 64, 1);
}

static bool large_messages(const struct point *point)
{
    return is_of(point, BENCH_ECHO, 0, 0) && point->workload.message > 64;
}

static bool bulk(const struct point *point)
{
    return is_of(point, BENCH_BULK, 0, 0);
}

/* At 64 connections, like all that is not told about other numbers of them. */
static void by_hand(struct list *list)
{
    for (unsigned i = 0; i < points_count; i++) {
        const struct point *point = &points[i];
        if (point->group == GROUP_HAND && point->done && point->workload.connections == 64)
            judge(list, true, exactly(point->ratios[1].value / point->ratios[2].value), 1.05,
                  "a loop on our interface over %s: within 5 %% of one for a ring by hand",
                  point->workload.family == AF_INET ? "TCP" : "AF_UNIX");
    }
}

static void libevent_objects(struct list *list)
{
    for (unsigned i = 0; i < points_count; i++) {
        const struct point *point = &points[i];
        bool tcp = point->workload.family == AF_INET;
        uint32_t message = point->workload.message;
        if (point->group != GROUP_LIBEVENT || !point->done || point->workload.kind != BENCH_ECHO)
            continue;
        double wanted = message == 65536 ? 5 : message == 16384 ? 3 : tcp ? 1.60 : 2.05;
        if (message == 16384 || message == 65536 || (message == 64 && point->workload.connections == 64))
            judge(list, false, inverse(&point->ratios[1]), wanted, "%s: at least %.2f", point->name, wanted);
    }
}

static void libuv_handles(struct list *list)
{
    for (unsigned i = 0; i < points_count; i++)
        if (points[i].group == GROUP_HANDLES && points[i].done)
            judge(list, false, inverse(&points[i].ratios[1]), NOISE, "%s: at least 1.0", points[i].name);
}

static void memory(struct list *list, const struct column *columns, unsigned column)
{
    for (unsigned i = 0; i < points_count; i++) {
        const struct point *point = &points[i];
        if (point->group == GROUP_MEMORY && point->done && columns[column].profile != PROFILE_READINESS)
            judge(list, true, exactly(point->figures[column].memory - point->figures[0].memory), 512,
                  "%s: %s: at most 512 bytes per connection", profile_name(columns[column].profile), point->name);
    }
}

static bool churn(const struct point *point)
{
    return is_of(point, BENCH_CHURN, 0, 0) || is_of(point, BENCH_CHURN_EOF, 0, 0);
}

static void completion(struct list *list, const struct column *columns, unsigned column)
{
    static const struct {
        enum group group;
        const char *name;
        struct {
            double safe, throughput;
        } tcp, unix_;
    } echoes[] = {
        {GROUP_BUFFEREVENT, "bufferevent", {1.37, 1.56}, {1.68, 1.90}},
        {GROUP_EVENT, "event", {1.0, 1.10}, {1.0, 1.13}},
        {GROUP_LIBUV, "libuv", {1.08, 1.28}, {1.17, 1.32}},
    };
    enum profile profile = columns[column].profile;
    const char *name = profile_name(profile);
    const struct point *at;
    struct ratio worst;
    for (unsigned i = 0; i < points_count; i++) {
        const struct point *point = &points[i];
        bool tcp = point->workload.family == AF_INET;
        if (!is_of(point, BENCH_ECHO, 64, 64) || profile == PROFILE_READINESS)
            continue;
        for (unsigned e = 0; e < sizeof echoes / sizeof echoes[0]; e++) {
            if (point->group != echoes[e].group)
                continue;
            double safe = tcp ? echoes[e].tcp.safe : echoes[e].unix_.safe;
            double throughput = tcp ? echoes[e].tcp.throughput : echoes[e].unix_.throughput;
            double wanted = profile == PROFILE_SAFE ? safe : throughput;
            judge(list, false, inverse(&point->ratios[column]), wanted > 1 ? wanted : NOISE,
                  "%s: %s over %s, 64 B, 64 connections: at least %.2f", name, echoes[e].name,
                  tcp ? "TCP" : "AF_UNIX", wanted);
            if (profile == PROFILE_THROUGHPUT && point->figures[column].counted)
                judge(list, true, exactly(point->figures[column].calls), 0.1,
                      "%s: %s over %s, 64 connections: at most 0.1 calls per request", name, echoes[e].name,
                      tcp ? "TCP" : "AF_UNIX");
        }
    }
    static const struct {
        bool (*wanted)(const struct point *point);
        const char *text;
    } nowhere_dearer[] = {{one_connection, "one connection"}, {large_messages, "1 to 64 KiB"}, {bulk, "one-way bulk"}};
    for (unsigned i = 0; i < 3; i++) {
        if ((at = cheaper(column, nowhere_dearer[i].wanted, &worst)) != NULL)
            judge(list, false, worst, NOISE, "%s: %s: at least 1.0 (worst: %s)", name, nowhere_dearer[i].text,
                  at->name);
    }
    if (profile != PROFILE_READINESS && (at = cheaper(column, churn, &worst)) != NULL)
        judge(list, false, worst, profile == PROFILE_SAFE ? NOISE : 1.1, "%s: churn: at least %s (worst: %s)", name,
              profile == PROFILE_SAFE ? "1.0" : "1.1", at->name);
}

static void of_tree(struct list *list)
{
    static const struct {
        const char *begin;
        double wanted;
    } wants[] = {{"libuv/tcp/64B/64", 1.30}, {"libuv/unix/64B/64", 1.38}, {"libuv/udp/64B/64", 1.10}, {"libuv/udp", 0},
                 {"libuv/", 1.0}};
    for (unsigned i = 0; i < points_count; i++) {
        const struct point *point = &points[i];
        unsigned w = 0;
        if (point->group != GROUP_TREE || !point->done)
            continue;
        while (strncmp(point->name, wants[w].begin, strlen(wants[w].begin)) != 0)
            w++;
        double wanted = wants[w].wanted;
        if (wanted > 0)
            judge(list, false, inverse(&point->ratios[1]), wanted > 1 ? wanted : NOISE, "%s: at least %.2f", point->name,
                  wanted);
        if (wanted > 1 && point->workload.family == AF_INET && point->figures[1].counted)
            judge(list, true, exactly(point->figures[1].calls), 0.1, "%s: at most 0.1 calls per request", point->name);
    }
}

unsigned bars_find(enum bench bench, struct bar bars[BARS_MAX])
{
    struct list list = {bars, 0};
    const struct point *any = NULL;
    if (bench == BENCH_LIBUV_TREE) {
        of_tree(&list);
        return list.count;
    }
    for (unsigned i = 0; i < points_count && any == NULL; i++)
        if (points[i].done && group_bench(points[i].group) == bench && points[i].group != GROUP_FLOOR &&
            !is_without_shim(&points[i]))
            any = &points[i];
    if (bench == BENCH_COMPLETION) {
        by_hand(&list);
        libevent_objects(&list);
        libuv_handles(&list);
    }
    if (any == NULL || any->columns[0].side != SIDE_EPOLL)
        return list.count;
    for (unsigned column = 1; column < any->width; column++) {
        if (any->columns[column].side != SIDE_RING)
            continue;
        if (bench == BENCH_READINESS)
            readiness(&list, any->columns, column);
        else if (bench == BENCH_MEMORY_USE)
            memory(&list, any->columns, column);
        else
            completion(&list, any->columns, column);
    }
    return list.count;
}
