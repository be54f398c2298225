/* SPDX-License-Identifier: MIT
 *
 * What was measured, as a table for people and as JSON for programs. Only
 * points that are done are shown.
 */
#ifndef BENCH_REPORT_H
#define BENCH_REPORT_H

#include <stdio.h>

#include "point.h"

struct circumstances {
    const char *command; /* as it was called */
    const char *title;   /* what it was called for: "Completion" */
    char date[32], kernel[208], processor[128], shim[4096], mask[256];
    unsigned cpus;
};
void circumstances_find(struct circumstances *circumstances);

void report_table(FILE *out);
void report_json(FILE *out, const struct plan *plan, const struct circumstances *circumstances);
/* Every system call by name, per request. */
void report_calls(FILE *out);
/* Instructions in user space per request, by object, if they were counted. */
void report_steps(FILE *out);
/* A file of docs/results/: circumstances, table and calls, as Markdown. */
void report_markdown(FILE *out, const struct plan *plan, const struct circumstances *circumstances);

/* A page that needs no other file: plots, tables, circumstances. */
void report_page(FILE *out, const struct plan *plan, const struct circumstances *circumstances);

/* What a group is called, what it is in a few words, and the program of its first
 * point. */
const char *group_name(enum group group);
const char *group_title(enum group group);
const char *group_program(enum group group);

/* bars.c: which bars of the project hold, those that these figures can speak to. */
enum verdict { VERDICT_HOLDS, VERDICT_FAILS };
struct bar {
    enum verdict verdict;
    char text[128];
    double value, wanted;
    double low, high; /* 95 % of the value; both 0: it has no such interval */
};
#define BARS_MAX 64
unsigned bars_find(enum bench bench, struct bar bars[BARS_MAX]);

#endif
