/* SPDX-License-Identifier: MIT
 *
 * See report.h. The verdicts are those bars of the project that these figures
 * can speak to; they are printed, and do not change the exit status: a measured
 * answer that one does not like is still an answer.
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
};

void circumstances_find(struct circumstances *circumstances, enum side sides[2])
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
    bool shimmed = sides[0] != SIDE_EPOLL || sides[1] != SIDE_EPOLL;
    const char *slash = shim != NULL ? strrchr(shim, '/') : NULL;
    snprintf(circumstances->shim, sizeof circumstances->shim, "%s",
             !shimmed || shim == NULL ? "none" : slash != NULL ? slash + 1 : shim);
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

static const char *program_of(enum group group)
{
    for (unsigned i = 0; i < points_count; i++)
        if (points[i].group == group && points[i].done)
            return points[i].figures[0].program;
    return "";
}

static double mean_ratio(enum group group, unsigned at_least, double *ret_worst, double *ret_best)
{
    double sum = 0, worst = 0, best = 1e9;
    unsigned count = 0;
    for (unsigned i = 0; i < points_count; i++) {
        if (points[i].group != group || !points[i].done || points[i].workload.connections < at_least)
            continue;
        double value = points[i].ratio.value;
        sum += value;
        count++;
        worst = value > worst ? value : worst;
        best = value < best ? value : best;
    }
    *ret_worst = worst;
    *ret_best = best;
    return count > 0 ? sum / count : 0;
}

static void two(FILE *out, bool known, double left, double right, int width)
{
    if (known)
        fprintf(out, "  %*.2f %*.2f", width, left, width, right);
    else
        fprintf(out, "  %*s", 2 * width + 1, "not avail.");
}

static void pair_table(FILE *out, enum group group, const struct plan *plan)
{
    const char *left = side_name(plan->sides[0]), *right = side_name(plan->sides[1]);
    double worst, best;
    fprintf(out, "%s: %s\n%s\n\n", groups[group].name, program_of(group), groups[group].title);
    fprintf(out, "  %-16s %8s %8s  %6s  %-13s  %-13s  %-11s  %6s\n", "", left, right, "ratio", "95 %", "calls/request",
            "beside/turn", "whole");
    for (unsigned i = 0; i < points_count; i++) {
        const struct point *point = &points[i];
        if (point->group != group || !point->done)
            continue;
        const struct figure *a = &point->figures[0], *b = &point->figures[1];
        fprintf(out, "  %-16s %8.0f %8.0f  %6.3f  %.3f-%.3f  ", point->name, a->clock, b->clock, point->ratio.value,
                point->ratio.low, point->ratio.high);
        two(out, a->counted && b->counted, a->calls, b->calls, 6);
        two(out, a->counted && b->counted, a->beside, b->beside, 5);
        fprintf(out, "  %6.3f\n", point->whole_ratio);
    }
    if (done_in(group) > 1) {
        double mean = mean_ratio(group, 1, &worst, &best);
        fprintf(out, "  %-16s %8s %8s  %6.3f  from %.3f to %.3f\n", "mean", "", "", mean, best, worst);
    }
    fputc('\n', out);
}

static void idle_table(FILE *out, const struct plan *plan)
{
    const char *left = side_name(plan->sides[0]), *right = side_name(plan->sides[1]);
    fprintf(out, "%s: %s\n%s\n\n", groups[GROUP_IDLE].name, program_of(GROUP_IDLE), groups[GROUP_IDLE].title);
    fprintf(out, "  %-12s %6s  %-23s  %-23s  %s\n", "", "", left, right, "ratio");
    fprintf(out, "  %-12s %6s  %7s %7s %7s  %7s %7s %7s  %7s %7s\n", "", "idle", "alone", "among", "ratio", "alone",
            "among", "ratio", "alone", "among");
    for (unsigned i = 0; i < points_count; i++) {
        const struct point *point = &points[i];
        const struct figure *f = point->figures;
        if (point->group != GROUP_IDLE || !point->done)
            continue;
        fprintf(out, "  %-12s %6u  %7.0f %7.0f %7.3f  %7.0f %7.0f %7.3f  %7.3f %7.3f\n", point->name,
                point->workload.idle, f[0].clock, f[2].clock, point->idle[0].value, f[1].clock, f[3].clock,
                point->idle[1].value, point->alone.value, point->ratio.value);
    }
    fputc('\n', out);
}

static void verdict(FILE *out, const char *text, double value, double bar)
{
    fprintf(out, "  %-3s  %-66s  %.3f\n", value <= bar ? "yes" : "NO", text, value);
}

static void verdicts(FILE *out, const struct plan *plan)
{
    double worst, best;
    unsigned judged = done_in(GROUP_ECHO) + done_in(GROUP_RAW) + done_in(GROUP_CHURN) + done_in(GROUP_IDLE);
    if (plan->sides[0] != SIDE_EPOLL || plan->sides[1] != SIDE_RING || judged == 0)
        return;
    fprintf(out, "bars\n\n");
    if (done_in(GROUP_ECHO) > 0) {
        double mean = mean_ratio(GROUP_ECHO, 1, &worst, &best);
        verdict(out, "echo: at most 1.02 of kernel epoll at every point", worst, 1.02);
        if (done_in(GROUP_ECHO) == 8)
            verdict(out, "echo: 3 % below it on the mean of all points", mean, 0.97);
    }
    if (done_in(GROUP_RAW) > 0) {
        (void)mean_ratio(GROUP_RAW, 8, &worst, &best);
        if (worst > 0)
            verdict(out, "raw: 1 to 9 % below at 8 connections and more", worst, 0.99);
    }
    if (done_in(GROUP_CHURN) > 0) {
        (void)mean_ratio(GROUP_CHURN, 1, &worst, &best);
        verdict(out, "churn: at most 1.02 of epoll's", worst, 1.02);
    }
    if (done_in(GROUP_IDLE) > 0) {
        worst = 0;
        for (unsigned i = 0; i < points_count; i++)
            if (points[i].group == GROUP_IDLE && points[i].done && points[i].idle[1].value > worst)
                worst = points[i].idle[1].value;
        verdict(out, "idle: active connections within 10 % of the same alone", worst, 1.10);
    }
    worst = 0;
    for (unsigned i = 0; i < points_count; i++) {
        const struct point *point = &points[i];
        if ((point->group == GROUP_ECHO || point->group == GROUP_RAW) && point->done && point->figures[1].counted &&
            point->figures[1].beside > worst)
            worst = point->figures[1].beside;
    }
    if (worst > 0)
        verdict(out, "one system call per turn beside the program's reads and writes", worst, 1.0);
    fputc('\n', out);
}

void report_table(FILE *out, const struct plan *plan)
{
    bool instructions = false;
    for (unsigned i = 0; i < GROUPS; i++) {
        if (done_in((enum group)i) == 0)
            continue;
        if (i == GROUP_IDLE)
            idle_table(out, plan);
        else
            pair_table(out, (enum group)i, plan);
    }
    verdicts(out, plan);
    fprintf(out,
            "%s per request: median over blocks of the median round; ratio: median of the ratios of\n"
            "neighbouring blocks. The clock runs while the program does; whole is the same ratio with the\n"
            "client's sends and receives. Every reply was taken without waiting once the clock stood.\n",
            BENCH_CLOCK_UNIT);
    for (unsigned i = 0; i < points_count; i++)
        for (unsigned lane = 0; points[i].done && lane < 2; lane++)
            if (points[i].figures[lane].instructions > 0)
                instructions = true;
    if (!instructions) {
        fprintf(out, "Instructions per request: not available (no hardware counter on this machine).\n");
        return;
    }
    fprintf(out, "\nInstructions per request\n\n");
    for (unsigned i = 0; i < points_count; i++)
        if (points[i].done)
            fprintf(out, "  %-16s %8.0f %8.0f  %6.3f\n", points[i].name, points[i].figures[0].instructions,
                    points[i].figures[1].instructions,
                    points[i].figures[1].instructions / points[i].figures[0].instructions);
}

void report_calls(FILE *out, const struct plan *plan)
{
    fprintf(out, "System calls per request, by name\n\n");
    for (unsigned i = 0; i < points_count; i++) {
        const struct point *point = &points[i];
        for (unsigned lane = 0; point->done && lane < point->lanes; lane++) {
            const struct figure *figure = &point->figures[lane];
            if (!figure->counted)
                continue;
            fprintf(out, "  %-16s %-8s %-6s", point->name, side_name(plan->sides[lane % 2]),
                    point->lanes == 4 ? (lane < 2 ? "alone" : "among") : "");
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
            fputc('\n', out);
        }
    }
    fputc('\n', out);
}

void report_steps(FILE *out, const struct plan *plan)
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
            fprintf(out, "  %-16s %-8s %-6s %7.1f:", point->name, side_name(plan->sides[lane % 2]),
                    point->lanes == 4 ? (lane < 2 ? "alone" : "among") : "", sum / requests);
            for (unsigned object = 0; object < OBJECTS_MAX && figure->objects[object].steps > 0; object++)
                fprintf(out, " %s %.1f", figure->objects[object].name,
                        (double)figure->objects[object].steps / requests);
            fputc('\n', out);
        }
    }
    fputc('\n', out);
}

/* ------------------------------------------------------------- JSON and files */

static void json_string(FILE *out, const char *text)
{
    fputc('"', out);
    for (; *text != '\0'; text++) {
        if (*text == '"' || *text == '\\')
            fputc('\\', out);
        if ((unsigned char)*text < 0x20)
            fprintf(out, "\\u%04x", *text);
        else
            fputc(*text, out);
    }
    fputc('"', out);
}

static void json_ratio(FILE *out, const char *name, const struct ratio *ratio)
{
    fprintf(out, ", \"%s\": {\"median\": %.5f, \"low95\": %.5f, \"high95\": %.5f}", name, ratio->value, ratio->low,
            ratio->high);
}

static void json_lane(FILE *out, const struct point *point, unsigned lane, const struct plan *plan)
{
    const struct figure *figure = &point->figures[lane];
    fprintf(out, "%s\n       {\"side\": \"%s\", \"idle\": %u, \"clock\": %.1f, \"whole\": %.1f", lane > 0 ? "," : "",
            side_name(plan->sides[lane % 2]), point->lanes == 4 && lane < 2 ? 0 : point->workload.idle, figure->clock,
            figure->whole);
    fprintf(out, ", \"ring\": %s", figure->held_ring ? "true" : "false");
    if (figure->instructions > 0)
        fprintf(out, ", \"instructions\": %.1f", figure->instructions);
    else
        fprintf(out, ", \"instructions\": null");
    if (figure->stepped_requests > 0) {
        fprintf(out, ", \"user_instructions\": {");
        for (unsigned object = 0; object < OBJECTS_MAX && figure->objects[object].steps > 0; object++) {
            fprintf(out, "%s", object > 0 ? ", " : "");
            json_string(out, figure->objects[object].name);
            fprintf(out, ": %.2f", (double)figure->objects[object].steps / figure->stepped_requests);
        }
        fprintf(out, "}");
    }
    if (!figure->counted) {
        fprintf(out, ", \"calls\": null}");
        return;
    }
    fprintf(out, ", \"calls\": %.4f, \"beside_per_turn\": %.4f, \"turns_per_round\": %.3f, \"reads_in_vain\": %.4f",
            figure->calls, figure->beside, figure->turns, figure->spurious);
    fprintf(out, ", \"by_name\": {");
    bool first = true;
    for (long number = 0; number < COUNT_NUMBERS; number++) {
        const char *name = count_name(number);
        if (figure->counts.calls[number] == 0)
            continue;
        fprintf(out, "%s", first ? "" : ", ");
        if (name != NULL)
            fprintf(out, "\"%s\"", name);
        else
            fprintf(out, "\"call-%ld\"", number);
        fprintf(out, ": %.4f", (double)figure->counts.calls[number] / figure->counted_requests);
        first = false;
    }
    fprintf(out, "}}");
}

void report_json(FILE *out, const struct plan *plan, const struct circumstances *circumstances)
{
    bool first = true;
    fprintf(out, "{\"bench\": \"readiness\", \"date\": ");
    json_string(out, circumstances->date);
    fprintf(out, ", \"kernel\": ");
    json_string(out, circumstances->kernel);
    fprintf(out, ", \"processor\": ");
    json_string(out, circumstances->processor);
    fprintf(out, ", \"command\": ");
    json_string(out, circumstances->command);
    fprintf(out, ", \"mask\": ");
    json_string(out, circumstances->mask);
    fprintf(out, ", \"unit\": \"%s\", \"sides\": [\"%s\", \"%s\"], \"points\": [", BENCH_CLOCK_UNIT,
            side_name(plan->sides[0]), side_name(plan->sides[1]));
    for (unsigned i = 0; i < points_count; i++) {
        const struct point *point = &points[i];
        if (!point->done)
            continue;
        fprintf(out, "%s\n    {\"name\": \"%s\", \"program\": ", first ? "" : ",", point->name);
        json_string(out, point->figures[0].program);
        fprintf(out, ", \"connections\": %u, \"blocks\": %u", point->workload.connections, point->blocks);
        json_ratio(out, "ratio", &point->ratio);
        fprintf(out, ", \"whole_ratio\": %.5f", point->whole_ratio);
        if (point->lanes == 4) {
            json_ratio(out, "ratio_alone", &point->alone);
            json_ratio(out, "idle_ratio_0", &point->idle[0]);
            json_ratio(out, "idle_ratio_1", &point->idle[1]);
        }
        fprintf(out, ",\n     \"lanes\": [");
        for (unsigned lane = 0; lane < point->lanes; lane++)
            json_lane(out, point, lane, plan);
        fprintf(out, "]}");
        first = false;
    }
    fprintf(out, "\n]}\n");
}

void report_markdown(FILE *out, const struct plan *plan, const struct circumstances *circumstances)
{
    fprintf(out, "# Readiness, %s\n\n", circumstances->date);
    fprintf(out, "- kernel: %s\n- processor: %s, %u CPUs, pinned to number %d\n", circumstances->kernel,
            circumstances->processor, circumstances->cpus, plan->cpu);
    fprintf(out, "- command: `%s`\n", circumstances->command);
    for (unsigned side = 0; side < 2; side++) {
        static const char *const environments[] = {
            [SIDE_EPOLL] = "nothing preloaded",
            [SIDE_RING] = "RINGPOLL=require RINGPOLL_PROFILE=readiness",
            [SIDE_OFF] = "RINGPOLL=off",
        };
        fprintf(out, "- %s side %s: %s", side == 0 ? "first" : "second", side_name(plan->sides[side]),
                environments[plan->sides[side]]);
        if (plan->sides[side] != SIDE_EPOLL)
            fprintf(out, ", %s, RINGPOLL_MASK %s", circumstances->shim, circumstances->mask);
        fputc('\n', out);
    }
    fprintf(out, "- %u pairs of processes per point, %u blocks of %.0f ms each\n\n```\n", plan->pairs, plan->blocks,
            plan->block_ms);
    report_table(out, plan);
    fprintf(out, "\n");
    report_calls(out, plan);
    if (plan->steps)
        report_steps(out, plan);
    fprintf(out, "```\n");
}
