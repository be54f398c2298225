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
    char date[32], kernel[208], processor[128], shim[4096], mask[256];
    unsigned cpus;
};
void circumstances_find(struct circumstances *circumstances, enum side sides[2]);

void report_table(FILE *out, const struct plan *plan);
void report_json(FILE *out, const struct plan *plan, const struct circumstances *circumstances);
/* Every system call by name, per request. */
void report_calls(FILE *out, const struct plan *plan);
/* Instructions in user space per request, by object, if they were counted. */
void report_steps(FILE *out, const struct plan *plan);
/* A file of docs/results/: circumstances, table and calls, as Markdown. */
void report_markdown(FILE *out, const struct plan *plan, const struct circumstances *circumstances);

#endif
