/* SPDX-License-Identifier: MIT
 *
 * Which points there are.
 */
#include "point.h"

#include <string.h>

#include "program.h"

#define KIB 1024u
#define MIB (1024u * 1024u)

struct point points[POINTS_MAX];
unsigned points_count;

const char *const bench_names[BENCHES] = {[BENCH_READINESS] = "readiness", [BENCH_COMPLETION] = "completion",
                                          [BENCH_MEMORY_USE] = "memory",
                                          [BENCH_LIBUV_TREE] = "libuv"};

enum bench group_bench(enum group group)
{
    return group < GROUP_BUFFEREVENT ? BENCH_READINESS : group < GROUP_MEMORY ? BENCH_COMPLETION
           : group == GROUP_MEMORY    ? BENCH_MEMORY_USE
                                      : BENCH_LIBUV_TREE;
}

const char *column_name(const struct column *column)
{
    if (column->other_program)
        return bench_program(column->program)->name;
    return column->side == SIDE_RING ? profile_name(column->profile) : side_name(column->side);
}

const char *column_short_name(const struct column *column)
{
    static const char *const shorter[] = {"ready", "safe", "thru"};
    if (column->side == SIDE_RING && !column->other_program)
        return shorter[column->profile];
    return column->side == SIDE_OFF ? "off" : column_name(column);
}

static const uint32_t families[] = {AF_INET, AF_UNIX};

static const char *family_name(uint32_t family)
{
    return family == AF_INET ? "tcp" : "unix";
}

static struct point *add(const struct plan *plan, enum group group, struct workload workload)
{
    struct point *point = &points[points_count++];
    point->group = group;
    point->workload = workload;
    memcpy(point->columns, plan->of[group_bench(group)].columns, sizeof point->columns);
    point->width = plan->of[group_bench(group)].width;
    point->long_only = group == GROUP_IDLE;
    return point;
}

/* -------------------------------------------------------------- readiness */

static void add_readiness(const struct plan *plan, enum group group, const char *prefix, struct workload workload)
{
    struct point *point = add(plan, group, workload);
    snprintf(point->name, sizeof point->name, "%s/%s/%u", prefix, family_name(workload.family), workload.connections);
    if (group == GROUP_FLOOR) {
        point->width = 2;
        point->columns[0] = (struct column){.side = SIDE_EPOLL};
        point->columns[1] = (struct column){.side = SIDE_EPOLL, .other_program = true, .program = BENCH_FLOOR};
    }
    /* Without libevent its loop is not to be had, and the raw one stands in. */
    if (program_libevent == NULL)
        point->workload.program = BENCH_RAW;
}

static void readiness_points(const struct plan *plan)
{
    static const uint32_t sizes[] = {1, 8, 64, 256};
    static const uint32_t churn_sizes[] = {1, 8, 64};
    static const struct {
        enum group group;
        const char *name;
        struct workload workload;
    } echoes[] = {
        {GROUP_ECHO, "echo", {.program = BENCH_LIBEVENT, .kind = BENCH_ECHO}},
        {GROUP_RAW, "raw", {.program = BENCH_RAW, .kind = BENCH_ECHO}},
        {GROUP_THREADS, "threads", {.program = BENCH_LIBEVENT, .kind = BENCH_ECHO, .threads = 1}},
        {GROUP_FLOOR, "floor", {.program = BENCH_RAW, .kind = BENCH_ECHO}},
    };
    static const struct {
        const char *name;
        enum bench_kind kind;
    } churns[] = {{"churn", BENCH_CHURN}, {"churn-eof", BENCH_CHURN_EOF}};
    for (unsigned i = 0; i < sizeof echoes / sizeof echoes[0]; i++)
        for (unsigned family = 0; family < 2; family++)
            for (unsigned size = 0; size < 4; size++) {
                struct workload workload = echoes[i].workload;
                workload.family = families[family];
                workload.connections = sizes[size];
                add_readiness(plan, echoes[i].group, echoes[i].name, workload);
            }
    for (unsigned i = 0; i < 2; i++)
        for (unsigned family = 0; family < 2; family++)
            for (unsigned size = 0; size < 3; size++) {
                struct workload workload = {.program = BENCH_LIBEVENT, .kind = churns[i].kind};
                workload.family = families[family];
                workload.connections = churn_sizes[size];
                add_readiness(plan, GROUP_CHURN, churns[i].name, workload);
            }
    for (unsigned family = 0; plan->idle > 0 && family < 2; family++) {
        struct workload workload = {.program = BENCH_LIBEVENT, .kind = BENCH_ECHO, .connections = 16};
        workload.family = families[family];
        workload.idle = plan->idle;
        add_readiness(plan, GROUP_IDLE, "idle", workload);
    }
}

/* ------------------------------------------------------------- completion */

static void add_completion(const struct plan *plan, enum group group, uint32_t program, uint32_t family,
                           enum bench_kind kind, uint32_t message, uint32_t connections)
{
    struct workload workload = {
        .program = program, .family = family, .kind = kind, .message = message, .connections = connections};
    char size[24];
    /* Who expects large messages asks for much at once. */
    if (message > REQUEST_SIZE)
        workload.read_size = READ_SIZE_MAX;
    if (kind == BENCH_BULK)
        snprintf(size, sizeof size, "bulk");
    else if (kind != BENCH_ECHO)
        snprintf(size, sizeof size, kind == BENCH_CHURN ? "churn" : "churn-eof");
    else if (message % KIB == 0)
        snprintf(size, sizeof size, "%uK", message / KIB);
    else
        snprintf(size, sizeof size, "%uB", message);
    struct point *point = add(plan, group, workload);
    snprintf(point->name, sizeof point->name, "%s/%s/%s/%u", bench_program(program)->name, family_name(family), size,
             connections);
    switch (kind) {
    case BENCH_ECHO:
        point->long_only = message > REQUEST_SIZE && (connections == 1 || message < 16 * KIB);
        break;
    case BENCH_CHURN_EOF:
        point->long_only = true;
        break;
    default:
        point->long_only = connections != 1 && connections != 64;
    }
}

static void completion_points(const struct plan *plan)
{
    static const uint32_t few_to_many[] = {1, 8, 64, 256};
    static const uint32_t short_lived[] = {1, 8, 64};
    static const struct {
        enum group group;
        uint32_t program;
    } programs[] = {{GROUP_BUFFEREVENT, BENCH_BUFFEREVENT},
                    {GROUP_EVENT, BENCH_LIBEVENT},
                    {GROUP_LIBUV, BENCH_LIBUV},
                    {GROUP_LOOP, BENCH_RAW}};
    for (unsigned i = 0; i < sizeof programs / sizeof programs[0]; i++)
        for (unsigned f = 0; f < 2; f++) {
            enum group group = programs[i].group;
            uint32_t program = programs[i].program, family = families[f];
            if (bench_program(program) == NULL)
                continue;
            for (unsigned n = 0; n < 4; n++)
                add_completion(plan, group, program, family, BENCH_ECHO, REQUEST_SIZE, few_to_many[n]);
            for (unsigned n = 0; n < plan->sizes_count; n++)
                add_completion(plan, group, program, family, BENCH_ECHO, plan->sizes[n], 1);
            for (unsigned n = 0; n < plan->sizes_count; n++)
                add_completion(plan, group, program, family, BENCH_ECHO, plan->sizes[n], 64);
            add_completion(plan, group, program, family, BENCH_BULK, MIB, 1);
            add_completion(plan, group, program, family, BENCH_BULK, MIB, 8);
            for (unsigned n = 0; n < 3; n++)
                add_completion(plan, group, program, family, BENCH_CHURN, REQUEST_SIZE, short_lived[n]);
            for (unsigned n = 0; n < 3; n++)
                add_completion(plan, group, program, family, BENCH_CHURN_EOF, REQUEST_SIZE, short_lived[n]);
        }
}

static void hand_points(const struct plan *plan)
{
    static const uint32_t connections[] = {1, 8, 64, 256};
    for (unsigned f = 0; f < 2; f++)
        for (unsigned n = 0; n < 4; n++) {
            struct workload workload = {.program = BENCH_RAW, .kind = BENCH_ECHO, .family = families[f],
                                        .message = REQUEST_SIZE, .connections = connections[n]};
            struct point *point = add(plan, GROUP_HAND, workload);
            snprintf(point->name, sizeof point->name, "hand/%s/%uB/%u", family_name(workload.family), REQUEST_SIZE,
                     connections[n]);
            point->width = 3;
            point->columns[0] = (struct column){.side = SIDE_EPOLL};
            point->columns[1] = (struct column){.side = SIDE_EPOLL, .other_program = true, .program = BENCH_API};
            point->columns[2] = (struct column){.side = SIDE_EPOLL, .other_program = true, .program = BENCH_RING};
        }
}

static void libevent_point(const struct plan *plan, uint32_t family, enum bench_kind kind, uint32_t message,
                           uint32_t connections)
{
    add_completion(plan, GROUP_LIBEVENT, BENCH_BUFFEREVENT, family, kind, message, connections);
    struct point *point = &points[points_count - 1];
    const char *rest = strchr(point->name, '/');
    char name[sizeof point->name];
    snprintf(name, sizeof name, "libevent%s", rest ? rest : "");
    memcpy(point->name, name, sizeof name);
    point->width = 2;
    point->columns[0] = (struct column){.side = SIDE_EPOLL};
    point->columns[1] = (struct column){.side = SIDE_EPOLL, .other_program = true, .program = BENCH_RING_BUFFEREVENT};
    point->long_only = false;
}

static void libevent_points(const struct plan *plan)
{
    static const uint32_t connections[] = {1, 8, 64, 256}, messages[] = {4 * KIB, 16 * KIB, 64 * KIB};
    for (unsigned f = 0; program_ring_bufferevent != NULL && f < 2; f++) {
        for (unsigned n = 0; n < 4; n++)
            libevent_point(plan, families[f], BENCH_ECHO, REQUEST_SIZE, connections[n]);
        for (unsigned m = 0; m < 3; m++)
            for (unsigned n = 0; n < 4; n += 2)
                libevent_point(plan, families[f], BENCH_ECHO, messages[m], connections[n]);
        libevent_point(plan, families[f], BENCH_CHURN, REQUEST_SIZE, 64);
    }
}

static void handle_point(const struct plan *plan, const char *name, struct workload workload, uint32_t ours)
{
    struct point *point = add(plan, GROUP_HANDLES, workload);
    if (workload.message > REQUEST_SIZE)
        point->workload.read_size = READ_SIZE_MAX;
    snprintf(point->name, sizeof point->name, "handles/%s/%u", name, workload.connections);
    point->width = 2;
    point->columns[0] = (struct column){.side = SIDE_EPOLL};
    point->columns[1] = (struct column){.side = SIDE_EPOLL, .other_program = true, .program = ours};
}

static void handle_points(const struct plan *plan)
{
    static const uint32_t connections[] = {1, 8, 64};
    for (unsigned f = 0; program_ring_libuv != NULL && f < 2; f++)
        for (unsigned m = 0; m < 2; m++)
            for (unsigned n = 0; n < 3; n++) {
                struct workload workload = {.program = BENCH_LIBUV, .kind = BENCH_ECHO, .family = families[f],
                                            .message = m == 0 ? REQUEST_SIZE : 64 * KIB, .connections = connections[n]};
                char name[24];
                snprintf(name, sizeof name, "%s/%s", family_name(families[f]), m == 0 ? "64B" : "64K");
                handle_point(plan, name, workload, BENCH_RING_LIBUV);
            }
    for (unsigned n = 0; program_ring_libuv != NULL && n < 3; n++) {
        struct workload workload = {.program = BENCH_LIBUV_DATAGRAMS, .kind = BENCH_DATAGRAMS, .family = AF_INET,
                                    .message = REQUEST_SIZE, .connections = connections[n]};
        handle_point(plan, "udp/64B", workload, BENCH_RING_LIBUV_DATAGRAMS);
    }
}

/* ----------------------------------------------------------------- memory */

static void memory_points(const struct plan *plan)
{
    /* The program's own memory is the same on all sides: the least of it will do. */
    for (unsigned f = 0; plan->both_ends >= 1000 && f < 2; f++) {
        struct workload workload = {.program = BENCH_RAW, .kind = BENCH_MEMORY, .family = families[f],
                                    .connections = plan->both_ends};
        struct point *point = add(plan, GROUP_MEMORY, workload);
        snprintf(point->name, sizeof point->name, "memory/%s/%u", family_name(families[f]), plan->both_ends);
    }
}

/* ------------------------------------------------------------------ libuv */

static void tree_point(const struct plan *plan, const char *name, struct workload workload)
{
    struct point *point = add(plan, GROUP_TREE, workload);
    if (workload.message > REQUEST_SIZE)
        point->workload.read_size = READ_SIZE_MAX;
    snprintf(point->name, sizeof point->name, "libuv/%s/%u", name, workload.connections);
    point->width = 2;
    point->columns[0] = (struct column){.side = SIDE_STOCK};
    point->columns[1] = (struct column){.side = SIDE_TREE};
}

static void tree_points(const struct plan *plan)
{
    static const struct {
        const char *name;
        struct workload workload;
    } of_streams[] = {
        {"64B", {.kind = BENCH_ECHO, .message = REQUEST_SIZE, .connections = 1}},
        {"64B", {.kind = BENCH_ECHO, .message = REQUEST_SIZE, .connections = 64}},
        {"64K", {.kind = BENCH_ECHO, .message = 64 * KIB, .connections = 1}},
        {"64K", {.kind = BENCH_ECHO, .message = 64 * KIB, .connections = 64}},
        {"bulk", {.kind = BENCH_BULK, .message = MIB, .connections = 8}},
        {"pound", {.kind = BENCH_POUND, .message = REQUEST_SIZE, .connections = 100}},
    };
    for (unsigned f = 0; f < 2; f++)
        for (unsigned i = 0; i < sizeof of_streams / sizeof of_streams[0]; i++) {
            struct workload workload = of_streams[i].workload;
            char name[24];
            snprintf(name, sizeof name, "%s/%s", family_name(families[f]), of_streams[i].name);
            workload.program = BENCH_LIBUV;
            workload.family = families[f];
            tree_point(plan, name, workload);
        }
    struct workload udp = {.program = BENCH_LIBUV_DATAGRAMS, .kind = BENCH_DATAGRAMS, .family = AF_INET,
                           .message = REQUEST_SIZE};
    for (udp.connections = 1; udp.connections <= 64; udp.connections *= 8)
        tree_point(plan, "udp/64B", udp);
    tree_point(plan, "async", (struct workload){.program = BENCH_LIBUV_ASYNC, .kind = BENCH_ALONE, .family = AF_INET,
                                                .message = REQUEST_SIZE, .connections = BENCH_ASYNCS});
    tree_point(plan, "turns", (struct workload){.program = BENCH_LIBUV_TURNS, .kind = BENCH_ALONE, .family = AF_INET,
                                                .message = REQUEST_SIZE, .connections = 64});
}

void points_init(const struct plan *plan)
{
    points_count = 0;
    readiness_points(plan);
    completion_points(plan);
    hand_points(plan);
    libevent_points(plan);
    handle_points(plan);
    memory_points(plan);
    if (program_libuv != NULL)
        tree_points(plan);
}
