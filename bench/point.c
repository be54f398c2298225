/* SPDX-License-Identifier: MIT
 *
 * How sides are compared on a machine that is not quiet. The workers of all
 * columns are alive at once and pinned to the same CPU; they take turns in blocks
 * of some milliseconds, each time in random order. What the machine does meanwhile
 * (frequency, neighbours) happens to all, and the figure that is judged is the
 * median of the ratios of neighbouring blocks. The processes are replaced by a fresh one several times, because where a process's pages
 * happen to lie in the caches moves its figures by a percent for its whole life.
 */
#include "point.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cycles.h"
#include "program.h"

#define SAMPLES_MAX 4096

/* Short connections are bounded in number: each leaves a TIME_WAIT behind. */
#define CHURN_PER_BLOCK 200
#define ROUNDS_MIN 8
#define ROUNDS_MAX 50000

struct samples {
    unsigned count;
    double clock[LANES_MAX][SAMPLES_MAX];
    double whole[LANES_MAX][SAMPLES_MAX];
};

static int by_value(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

static struct ratio median_of(const double *values, unsigned count)
{
    static double sorted[SAMPLES_MAX];
    struct ratio ratio;
    memcpy(sorted, values, count * sizeof sorted[0]);
    qsort(sorted, count, sizeof sorted[0], by_value);
    ratio.value = count % 2 ? sorted[count / 2] : (sorted[count / 2 - 1] + sorted[count / 2]) / 2;
    /* The number of values below the median is binomial: its 95 % gives ranks. */
    double reach = 0.98 * sqrt(count);
    int low = (int)floor((count - 1) / 2.0 - reach), high = (int)ceil((count - 1) / 2.0 + reach);
    ratio.low = sorted[low < 0 ? 0 : low];
    ratio.high = sorted[high >= (int)count ? (int)count - 1 : high];
    return ratio;
}

static struct ratio ratio_of(const double *over, const double *under, unsigned count)
{
    static double ratios[SAMPLES_MAX];
    for (unsigned i = 0; i < count; i++)
        ratios[i] = over[i] / under[i];
    return median_of(ratios, count);
}

static void shuffle(unsigned *order, unsigned count, uint64_t *random)
{
    for (unsigned i = count; i > 1; i--) {
        *random = *random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        unsigned other = (unsigned)((*random >> 33) % i);
        unsigned kept = order[i - 1];
        order[i - 1] = order[other];
        order[other] = kept;
    }
}

/* How many rounds make a block of the wanted length. */
static int calibrate(struct lane *lane, const struct plan *plan, uint32_t *ret_rounds)
{
    struct answer answer;
    uint32_t rounds = 4;
    for (int i = 0; i < 3; i++) {
        if (lane_order(lane, WORKER_BLOCK, rounds, &answer) != 0)
            return -1;
        double per_round = (double)answer.elapsed_ns / (rounds + rounds / 16 + 2);
        double wanted = plan->block_ms * 1e6 / per_round;
        rounds = wanted < ROUNDS_MIN ? ROUNDS_MIN : wanted > ROUNDS_MAX ? ROUNDS_MAX : (uint32_t)wanted;
        bool churn = lane->workload.kind == BENCH_CHURN || lane->workload.kind == BENCH_CHURN_EOF;
        churn |= lane->workload.kind == BENCH_POUND;
        if (churn && rounds * lane->workload.connections > CHURN_PER_BLOCK)
            rounds = CHURN_PER_BLOCK / lane->workload.connections;
        if (rounds < ROUNDS_MIN)
            rounds = churn ? ROUNDS_MIN / 2 : ROUNDS_MIN;
    }
    *ret_rounds = rounds;
    return 0;
}

static int step_through(struct lane *lane, const struct point *point, const struct plan *plan, struct figure *figure)
{
    /* A step takes tens of microseconds; a few requests tell all there is. */
    uint32_t rounds = 64 / lane->workload.connections;
    rounds = rounds < 1 ? 1 : rounds > 8 ? 8 : rounds;
    if (plan->dump != NULL)
        fprintf(plan->dump, "# %s %s %s, %u requests: object, offset, times\n", point->name, side_name(lane->side),
                side_has_shim(lane->side) ? profile_name(lane->profile) : "", rounds * lane->workload.connections);
    int rc = lane_count_steps(lane, rounds, figure->objects, plan->dump);
    if (rc == 0)
        figure->stepped_requests = rounds * lane->workload.connections;
    return rc < 0 ? -1 : 0;
}

static int see_ring(struct lane *lane, struct figure *figure)
{
    figure->held_ring = lane_holds_ring(lane);
    memcpy(figure->program, lane->hello.program, sizeof figure->program);
    if (lane->side == SIDE_RING && !figure->held_ring) {
        snprintf(lane->failure, sizeof lane->failure, "ring side: the worker holds no ring: it ran on kernel epoll");
        return -1;
    }
    return 0;
}

static int look_inside(struct lane *lane, const struct point *point, const struct plan *plan, struct figure *figure)
{
    struct answer answer;
    uint32_t rounds = 400 / lane->workload.connections;
    if (rounds < 8)
        rounds = 8;
    int rc = lane_count(lane, rounds, &figure->counts, &answer);
    if (rc < 0)
        return -1;
    figure->counted = rc == 0;
    figure->counted_requests = rounds * lane->workload.connections;
    if (figure->counted) {
        uint64_t own = count_reads_and_writes(&figure->counts);
        figure->calls = (double)figure->counts.total / figure->counted_requests;
        figure->turns = (double)answer.turns / rounds;
        figure->beside = (double)(figure->counts.total - own) / (double)answer.turns;
        figure->spurious = (double)answer.spurious / figure->counted_requests;
        figure->flushes = (double)answer.flushes / rounds;
    }
    if (lane_order(lane, WORKER_INSTRUCTIONS, rounds * 4, &answer) != 0)
        return -1;
    figure->instructions = answer.instructions;
    if (plan->steps && step_through(lane, point, plan, figure) != 0)
        return -1;
    return see_ring(lane, figure);
}

static int measure_pair(struct point *point, const struct plan *plan, struct lane *lanes, struct samples *samples,
                        bool last, uint64_t *random)
{
    unsigned order[LANES_MAX];
    uint32_t rounds = 0;
    for (unsigned i = 0; i < point->lanes; i++) {
        uint32_t own_rounds;
        order[i] = i;
        if (calibrate(&lanes[i], plan, &own_rounds) != 0)
            return -1;
        rounds = rounds > own_rounds ? rounds : own_rounds;
    }
    for (unsigned block = 0; block < plan->blocks && samples->count < SAMPLES_MAX; block++) {
        shuffle(order, point->lanes, random);
        for (unsigned i = 0; i < point->lanes; i++) {
            struct answer answer;
            if (lane_order(&lanes[order[i]], WORKER_BLOCK, rounds, &answer) != 0)
                return -1;
            samples->clock[order[i]][samples->count] = answer.clock;
            samples->whole[order[i]][samples->count] = answer.whole;
        }
        samples->count++;
    }
    for (unsigned i = 0; last && i < point->lanes; i++)
        if (look_inside(&lanes[i], point, plan, &point->figures[i]) != 0)
            return -1;
    return 0;
}

static void set_up_lanes(const struct point *point, const struct plan *plan, struct lane *lanes)
{
    memset(lanes, 0, LANES_MAX * sizeof lanes[0]);
    for (unsigned i = 0; i < point->lanes; i++) {
        const struct column *column = &point->columns[i % point->width];
        lanes[i].side = column->side;
        lanes[i].profile = column->profile;
        lanes[i].workload = point->workload;
        lanes[i].workload.cpu = plan->cpu;
        if (column->other_program)
            lanes[i].workload.program = column->program;
        if (i + point->width < point->lanes)
            lanes[i].workload.idle = 0;
    }
}

static void sum_up(struct point *point, const struct samples *samples)
{
    unsigned loaded = point->lanes - point->width; /* the first lane that has what the point says */
    for (unsigned i = 0; i < point->lanes; i++) {
        point->figures[i].clock = median_of(samples->clock[i], samples->count).value;
        point->figures[i].whole = median_of(samples->whole[i], samples->count).value;
    }
    for (unsigned i = 0; i < point->width; i++) {
        point->ratios[i] = ratio_of(samples->clock[loaded + i], samples->clock[loaded], samples->count);
        point->whole_ratios[i] = ratio_of(samples->whole[loaded + i], samples->whole[loaded], samples->count).value;
        point->alone[i] = ratio_of(samples->clock[i], samples->clock[0], samples->count);
        point->idle[i] = ratio_of(samples->clock[loaded + i], samples->clock[i], samples->count);
    }
    point->blocks = samples->count;
    point->done = true;
}

static int stop(const struct point *point, struct lane *lane, char *failure, size_t failure_size)
{
    int rc = lane_stop(lane);
    if (lane->failure[0] != '\0')
        snprintf(failure, failure_size, "%s, %s", point->name, lane->failure);
    return rc;
}

/* Nothing is timed: one process after the other. */
static int measure_memory(struct point *point, const struct plan *plan, char *failure, size_t failure_size)
{
    /* As many requests as it takes until all is as it will stay. */
    const uint32_t rounds = 12;
    struct lane lanes[LANES_MAX];
    set_up_lanes(point, plan, lanes);
    for (unsigned i = 0; i < point->lanes; i++) {
        struct figure *figure = &point->figures[i];
        struct answer answer;
        int rc = lane_start(&lanes[i]);
        if (rc == 0)
            rc = lane_order(&lanes[i], WORKER_MEMORY, rounds, &answer);
        if (rc == 0) {
            figure->memory = answer.memory;
            rc = see_ring(&lanes[i], figure);
        }
        if (stop(point, &lanes[i], failure, failure_size) != 0 || rc != 0)
            return -1;
    }
    point->done = true;
    return 0;
}

int point_measure(struct point *point, const struct plan *plan, char *failure, size_t failure_size)
{
    static struct samples samples;
    static uint64_t random;
    int rc = 0;
    random ^= wall_ns();
    samples.count = 0;
    point->lanes = point->workload.idle > 0 ? 2 * point->width : point->width;
    if (point->workload.kind == BENCH_MEMORY)
        return measure_memory(point, plan, failure, failure_size);
    for (unsigned pair = 0; rc == 0 && pair < plan->pairs; pair++) {
        struct lane lanes[LANES_MAX];
        unsigned order[LANES_MAX], started = 0;
        set_up_lanes(point, plan, lanes);
        /* Which one is the elder is left to chance too. */
        for (unsigned i = 0; i < point->lanes; i++)
            order[i] = i;
        shuffle(order, point->lanes, &random);
        for (; rc == 0 && started < point->lanes; started++)
            rc = lane_start(&lanes[order[started]]);
        if (rc == 0)
            rc = measure_pair(point, plan, lanes, &samples, pair + 1 == plan->pairs, &random);
        for (unsigned i = 0; i < started; i++) {
            int stopped = stop(point, &lanes[order[i]], failure, failure_size);
            if (rc == 0)
                rc = stopped;
        }
    }
    if (rc != 0)
        return -1;
    sum_up(point, &samples);
    return 0;
}
