/* SPDX-License-Identifier: MIT
 *
 * Results as JSON, and as a dated Markdown file.
 */
#include <string.h>

#include "cycles.h"
#include "program.h"
#include "report.h"

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

static void json_lane(FILE *out, const struct point *point, unsigned lane)
{
    const struct figure *figure = &point->figures[lane];
    const struct column *column = &point->columns[lane % point->width];
    bool loaded = lane + point->width >= point->lanes;
    fprintf(out, "%s\n       {\"column\": \"%s\", \"side\": \"%s\"", lane > 0 ? "," : "", column_name(column),
            side_name(column->side));
    if (side_has_shim(column->side))
        fprintf(out, ", \"profile\": \"%s\"", profile_name(column->profile));
    fprintf(out, ", \"idle\": %u, \"clock\": %.1f, \"whole\": %.1f", loaded ? point->workload.idle : 0, figure->clock,
            figure->whole);
    if (lane % point->width > 0 && point->blocks > 0) {
        json_ratio(out, "to_first", loaded ? &point->ratios[lane % point->width] : &point->alone[lane]);
        if (loaded)
            fprintf(out, ", \"whole_to_first\": %.5f", point->whole_ratios[lane % point->width]);
    }
    if (loaded && point->lanes > point->width)
        json_ratio(out, "to_without_idle", &point->idle[lane % point->width]);
    if (figure->memory > 0)
        fprintf(out, ", \"memory\": %.1f", figure->memory);
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
    fprintf(out, ", \"flushes_per_round\": %.3f", figure->flushes);
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
    fprintf(out, "{\"date\": ");
    json_string(out, circumstances->date);
    fprintf(out, ", \"kernel\": ");
    json_string(out, circumstances->kernel);
    fprintf(out, ", \"processor\": ");
    json_string(out, circumstances->processor);
    fprintf(out, ", \"command\": ");
    json_string(out, circumstances->command);
    fprintf(out, ", \"mask\": ");
    json_string(out, circumstances->mask);
    fprintf(out, ", \"unit\": \"%s\", \"cpu\": %d, \"points\": [", BENCH_CLOCK_UNIT, plan->cpu);
    for (unsigned i = 0; i < points_count; i++) {
        const struct point *point = &points[i];
        if (!point->done)
            continue;
        fprintf(out, "%s\n    {\"bench\": \"%s\", \"name\": \"%s\", \"program\": ", first ? "" : ",",
                bench_names[group_bench(point->group)], point->name);
        json_string(out, point->figures[0].program);
        fprintf(out, ", \"connections\": %u, \"message\": %u, \"blocks\": %u,\n     \"lanes\": [",
                point->workload.connections, point->workload.message > 0 ? point->workload.message : REQUEST_SIZE,
                point->blocks);
        for (unsigned lane = 0; lane < point->lanes; lane++)
            json_lane(out, point, lane);
        fprintf(out, "]}");
        first = false;
    }
    fprintf(out, "\n]}\n");
}

void report_markdown(FILE *out, const struct plan *plan, const struct circumstances *circumstances)
{
    bool shimmed = false;
    fprintf(out, "# %s, %s\n\n", circumstances->title, circumstances->date);
    fprintf(out, "- kernel: %s\n- processor: %s, %u CPUs, pinned to number %d\n", circumstances->kernel,
            circumstances->processor, circumstances->cpus, plan->cpu);
    fprintf(out, "- command: `%s`\n", circumstances->command);
    fprintf(out, "- epoll: nothing preloaded\n");
    for (unsigned i = 0; i < points_count; i++)
        for (unsigned c = 0; c < points[i].width; c++)
            shimmed |= points[i].done && side_has_shim(points[i].columns[c].side);
    if (shimmed)
        fprintf(out, "- the others: %s with RINGPOLL=require and RINGPOLL_PROFILE of the column's name (\"off\": "
                "RINGPOLL=off), RINGPOLL_MASK %s\n", circumstances->shim, circumstances->mask);
    fprintf(out, "- %u times fresh processes per point, %u blocks of %.0f ms from each\n\n```\n", plan->pairs,
            plan->blocks, plan->block_ms);
    report_table(out);
    fprintf(out, "\n");
    report_calls(out);
    if (plan->steps)
        report_steps(out);
    fprintf(out, "```\n");
}
