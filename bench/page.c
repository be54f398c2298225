/* SPDX-License-Identifier: MIT
 *
 * The results as one page that needs nothing else: plots drawn as SVG, tables, and
 * what they were measured on.
 *
 * A plot is of one group over one family, a line per column. What it costs is one
 * plot, how many times cheaper than epoll the next: where costs span decades (over
 * message sizes), a few percent show only there.
 */
#include <math.h>
#include <string.h>

#include "cycles.h"
#include "program.h"
#include "report.h"

/* --------------------------------------------------------------------- text */

static void text(FILE *out, const char *bytes)
{
    for (; *bytes != '\0'; bytes++)
        switch (*bytes) {
        case '<':
            fputs("&lt;", out);
            break;
        case '>':
            fputs("&gt;", out);
            break;
        case '&':
            fputs("&amp;", out);
            break;
        case '"':
            fputs("&quot;", out);
            break;
        default:
            fputc((unsigned char)*bytes < 0x20 ? ' ' : *bytes, out);
        }
}

/* "950", "12.3 k", "1.2 M": three digits. */
static void number(char *room, size_t size, double value)
{
    static const char *const units[] = {"", " k", " M", " G"};
    unsigned unit = 0;
    while (value >= 999.5 && unit < 3) {
        value /= 1000;
        unit++;
    }
    snprintf(room, size, "%.3g%s", value, units[unit]);
}

static void bytes_number(char *room, size_t size, uint32_t bytes)
{
    if (bytes % 1024 == 0)
        snprintf(room, size, "%u K", bytes / 1024);
    else
        snprintf(room, size, "%u", bytes);
}

static const char style[] =
    ":root{color-scheme:light dark;--ink:#1f2933;--dim:#66727f;--line:#d5dae0;--paper:#fff;--good:#15803d;--bad:#b91c1c;"
    "--c0:#6b7280;--c1:#2563eb;--c2:#15a34a;--c3:#d97706;--c4:#9333ea}\n"
    "@media(prefers-color-scheme:dark){:root{--ink:#e5e9ee;--dim:#9aa5b1;--line:#3a434d;--paper:#14181d;--good:#4ade80;"
    "--bad:#f87171;--c0:#9ca3af;--c1:#60a5fa;--c2:#4ade80;--c3:#fbbf24;--c4:#c084fc}}\n"
    "body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:78rem;margin:2rem auto;"
    "padding:0 1rem}\n"
    "h1,h2{line-height:1.2}h2{margin-top:2.5rem;border-top:1px solid var(--line);padding-top:1.5rem}\n"
    "p,dl{max-width:52rem}.dim,dt{color:var(--dim)}dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem}"
    "dd{margin:0;overflow-wrap:anywhere}\n"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:13px}\n"
    "th,td{padding:.15rem .6rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}"
    "th:first-child,td:first-child,td.words{text-align:left}th{font-weight:600}td.words{white-space:normal}\n"
    "th.begin,td.begin{border-left:2px solid var(--line)}\n"
    ".scroll{overflow-x:auto}.plots{display:flex;flex-wrap:wrap;gap:1rem;margin:1rem 0}\n"
    ".yes{color:var(--good);font-weight:600}.no{color:var(--bad);font-weight:600}\n"
    "figure{margin:0}figcaption{font-size:13px;font-weight:600}svg{display:block;max-width:100%;height:auto}\n"
    "svg text{font:11px system-ui,sans-serif;fill:var(--dim)}svg .grid{stroke:var(--line)}svg .one{stroke:var(--dim)}\n"
    "svg .l{fill:none;stroke-width:2}\n"
    ".s0{stroke:var(--c0);stroke-dasharray:6 3}.s1{stroke:var(--c1)}.s2{stroke:var(--c2)}.s3{stroke:var(--c3)}"
    ".s4{stroke:var(--c4)}\n"
    ".f0{fill:var(--c0)}.f1{fill:var(--c1)}.f2{fill:var(--c2)}.f3{fill:var(--c3)}.f4{fill:var(--c4)}\n"
    ".key{font-size:13px}.key span{margin-right:1.2rem}.key i{display:inline-block;width:1.4em;height:0;border-top:3px "
    "solid;vertical-align:middle;margin-right:.4em}\n"
    ".k0{border-color:var(--c0)!important}.k1{border-color:var(--c1)!important}.k2{border-color:var(--c2)!important}"
    ".k3{border-color:var(--c3)!important}.k4{border-color:var(--c4)!important}\n";

/* -------------------------------------------------------------------- plots */

#define PLOT_WIDTH 372
#define PLOT_HEIGHT 232
#define LEFT 50
#define RIGHT 10
#define TOP 8
#define BOTTOM 38
#define ALONG_MAX 16

struct plot {
    char title[96];
    const char *x_title;
    bool in_bytes;   /* what x is */
    bool log_y;
    bool with_one;   /* a line at 1 */
    unsigned first, columns, count;
    uint32_t x[ALONG_MAX];
    double y[COLUMNS_MAX][ALONG_MAX];
};

static double x_of(const struct plot *plot, uint32_t x)
{
    double low = log2(plot->x[0]), high = log2(plot->x[plot->count - 1]);
    return LEFT + 8 + (log2(x) - low) / (high - low) * (PLOT_WIDTH - LEFT - RIGHT - 16);
}

struct range {
    double low, high;
    bool log;
};

static double y_of(const struct range *range, double y)
{
    double part = range->log ? (log(y) - log(range->low)) / (log(range->high) - log(range->low))
                             : (y - range->low) / (range->high - range->low);
    return TOP + (1 - part) * (PLOT_HEIGHT - TOP - BOTTOM);
}

static void y_line(FILE *out, const struct range *range, double y, const char *label, const char *class)
{
    double at = y_of(range, y);
    fprintf(out, "<line class=\"%s\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>", class, LEFT, PLOT_WIDTH - RIGHT, at,
            at);
    if (label != NULL)
        fprintf(out, "<text x=\"%d\" y=\"%.1f\" text-anchor=\"end\">%s</text>\n", LEFT - 5, at + 4, label);
}

/* Where the axis ends and where its lines are. */
static struct range draw_y_axis(FILE *out, const struct plot *plot)
{
    struct range range = {plot->with_one ? 1 : 1e300, plot->with_one ? 1 : 0, plot->log_y};
    char label[24];
    for (unsigned c = plot->first; c < plot->columns; c++)
        for (unsigned i = 0; i < plot->count; i++) {
            range.low = fmin(range.low, plot->y[c][i]);
            range.high = fmax(range.high, plot->y[c][i]);
        }
    if (plot->log_y) {
        range.low = pow(10, floor(log10(range.low)));
        range.high = pow(10, ceil(log10(range.high)));
        if (range.high <= range.low)
            range.high = range.low * 10;
        for (double y = range.low; y <= range.high * 1.01; y *= 10) {
            number(label, sizeof label, y);
            y_line(out, &range, y, label, "grid");
        }
        return range;
    }
    if (!plot->with_one)
        range.low = 0;
    double rough = fmax(range.high - range.low, 0.05) / 4, step = pow(10, floor(log10(rough)));
    step *= rough / step > 5 ? 10 : rough / step > 2 ? 5 : rough / step > 1 ? 2 : 1;
    range.low = floor(range.low / step + 1e-9) * step;
    range.high = ceil(range.high / step - 1e-9) * step;
    if (range.high <= range.low)
        range.high = range.low + step;
    for (double y = range.low; y <= range.high + step / 2; y += step) {
        if (plot->with_one)
            snprintf(label, sizeof label, "%.*f", step < 0.1 ? 2 : 1, y);
        else
            number(label, sizeof label, y);
        y_line(out, &range, y, label, "grid");
    }
    if (plot->with_one)
        y_line(out, &range, 1, NULL, "one");
    return range;
}

static void draw(FILE *out, const struct plot *plot, const struct column *columns)
{
    if (plot->count < 2)
        return;
    fputs("<figure><figcaption>", out);
    text(out, plot->title);
    fprintf(out, "</figcaption>\n<svg role=\"img\" viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\">\n", PLOT_WIDTH,
            PLOT_HEIGHT, PLOT_WIDTH, PLOT_HEIGHT);
    struct range range = draw_y_axis(out, plot);
    for (unsigned i = 0; i < plot->count; i++) {
        char label[24];
        if (plot->in_bytes)
            bytes_number(label, sizeof label, plot->x[i]);
        else
            snprintf(label, sizeof label, "%u", plot->x[i]);
        fprintf(out, "<text x=\"%.1f\" y=\"%d\" text-anchor=\"middle\">%s</text>\n", x_of(plot, plot->x[i]),
                PLOT_HEIGHT - BOTTOM + 16, label);
    }
    fprintf(out, "<text x=\"%d\" y=\"%d\" text-anchor=\"middle\">%s</text>\n", (PLOT_WIDTH + LEFT - RIGHT) / 2,
            PLOT_HEIGHT - 5, plot->x_title);
    for (unsigned c = plot->first; c < plot->columns; c++) {
        fprintf(out, "<polyline class=\"l s%u\" points=\"", c);
        for (unsigned i = 0; i < plot->count; i++)
            fprintf(out, "%.1f,%.1f ", x_of(plot, plot->x[i]), y_of(&range, plot->y[c][i]));
        fputs("\"/>\n", out);
        for (unsigned i = 0; i < plot->count; i++) {
            char value[24];
            if (plot->with_one)
                snprintf(value, sizeof value, "%.3f", plot->y[c][i]);
            else
                snprintf(value, sizeof value, "%.0f", plot->y[c][i]);
            fprintf(out, "<circle class=\"f%u\" cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\"><title>%s: %s</title></circle>\n", c,
                    x_of(plot, plot->x[i]), y_of(&range, plot->y[c][i]), column_name(&columns[c]), value);
        }
    }
    fputs("</svg></figure>\n", out);
}

static uint32_t message_of(const struct point *point)
{
    return point->workload.message > 0 ? point->workload.message : REQUEST_SIZE;
}

/* What a plot goes along: connections for small messages, or sizes for so many
 * connections. */
struct along {
    enum bench_kind kind;
    bool sizes;
    uint32_t connections; /* with `sizes` */
};

static bool is_along(const struct point *point, const struct along *along)
{
    if (point->workload.kind != (uint32_t)along->kind || point->workload.idle > 0)
        return false;
    return along->sizes ? point->workload.connections == along->connections : message_of(point) == REQUEST_SIZE;
}

static void collect(struct plot *plot, enum group group, uint32_t family, const struct along *along, bool ratios)
{
    plot->count = 0;
    for (unsigned i = 0; i < points_count && plot->count < ALONG_MAX; i++) {
        const struct point *point = &points[i];
        if (point->group != group || !point->done || point->workload.family != family || !is_along(point, along))
            continue;
        unsigned at = plot->count++;
        plot->columns = point->width;
        plot->x[at] = along->sizes ? message_of(point) : point->workload.connections;
        for (unsigned c = 0; c < point->width; c++)
            plot->y[c][at] = ratios ? 1 / point->ratios[c].value : point->figures[c].clock;
    }
}

static void plot_pair(FILE *out, enum group group, uint32_t family, const struct along *along,
                      const struct column *columns)
{
    struct plot plot = {.x_title = along->sizes ? "bytes per message" : "connections", .in_bytes = along->sizes};
    char what[48];
    if (along->sizes)
        snprintf(what, sizeof what, "%u connection%s", along->connections, along->connections > 1 ? "s" : "");
    else
        snprintf(what, sizeof what, "%s64 bytes",
                 along->kind == BENCH_CHURN       ? "churn, "
                 : along->kind == BENCH_CHURN_EOF ? "churn-eof, "
                                                  : "");
    collect(&plot, group, family, along, false);
    plot.log_y = along->sizes;
    snprintf(plot.title, sizeof plot.title, "%s, %s: %s per request", family == AF_INET ? "TCP" : "AF_UNIX", what,
             BENCH_CLOCK_UNIT);
    draw(out, &plot, columns);
    collect(&plot, group, family, along, true);
    plot.log_y = false;
    plot.with_one = true;
    plot.first = 1;
    snprintf(plot.title, sizeof plot.title, "%s, %s: times cheaper than %s", family == AF_INET ? "TCP" : "AF_UNIX",
             what, column_name(&columns[0]));
    draw(out, &plot, columns);
}

static void plots(FILE *out, enum group group, const struct column *columns, unsigned width)
{
    static const struct along alongs[] = {{BENCH_ECHO, false, 0},
                                          {BENCH_ECHO, true, 64},
                                          {BENCH_ECHO, true, 1},
                                          {BENCH_CHURN, false, 0},
                                          {BENCH_CHURN_EOF, false, 0}};
    fputs("<p class=\"key\">", out);
    for (unsigned c = 0; c < width; c++)
        fprintf(out, "<span><i class=\"k%u\"></i>%s</span>", c, column_name(&columns[c]));
    fputs("</p>\n<div class=\"plots\">\n", out);
    for (unsigned a = 0; a < sizeof alongs / sizeof alongs[0]; a++) {
        plot_pair(out, group, AF_INET, &alongs[a], columns);
        plot_pair(out, group, AF_UNIX, &alongs[a], columns);
    }
    fputs("</div>\n", out);
}

/* ------------------------------------------------------------------- tables */

static void column_heads(FILE *out, const struct column *columns, unsigned first, unsigned width)
{
    for (unsigned c = first; c < width; c++)
        fprintf(out, "<th%s>%s</th>", c == first ? " class=\"begin\"" : "", column_name(&columns[c]));
}

static void table(FILE *out, enum group group, const struct column *columns, unsigned width)
{
    fprintf(out,
            "<div class=\"scroll\"><table><thead><tr><th></th><th class=\"begin\" colspan=\"%u\">%s per request</th>"
            "<th class=\"begin\" colspan=\"%u\">times cheaper (95 %%)</th>"
            "<th class=\"begin\" colspan=\"%u\">system calls per request</th></tr>\n<tr><th></th>",
            width, BENCH_CLOCK_UNIT, width - 1, width);
    column_heads(out, columns, 0, width);
    column_heads(out, columns, 1, width);
    column_heads(out, columns, 0, width);
    fputs("</tr></thead>\n<tbody>\n", out);
    for (unsigned i = 0; i < points_count; i++) {
        const struct point *point = &points[i];
        unsigned loaded = point->lanes - point->width;
        if (point->group != group || !point->done)
            continue;
        fprintf(out, "<tr><td>%s", point->name);
        if (point->workload.idle > 0)
            fprintf(out, ", %u idle", point->workload.idle);
        fputs("</td>", out);
        for (unsigned c = 0; c < width; c++)
            fprintf(out, "<td%s>%.0f</td>", c == 0 ? " class=\"begin\"" : "", point->figures[loaded + c].clock);
        for (unsigned c = 1; c < width; c++) {
            const struct ratio *ratio = &point->ratios[c];
            fprintf(out, "<td%s>%.3f <span class=\"dim\">%.3f–%.3f</span></td>", c == 1 ? " class=\"begin\"" : "",
                    1 / ratio->value, 1 / ratio->high, 1 / ratio->low);
        }
        for (unsigned c = 0; c < width; c++) {
            const struct figure *figure = &point->figures[loaded + c];
            const char *begin = c == 0 ? " class=\"begin\"" : "";
            if (figure->counted)
                fprintf(out, "<td%s>%.2f</td>", begin, figure->calls);
            else
                fprintf(out, "<td%s>–</td>", begin);
        }
        fputs("</tr>\n", out);
    }
    fputs("</tbody></table></div>\n", out);
}

static void memory_table(FILE *out, const struct column *columns, unsigned width)
{
    fprintf(out,
            "<div class=\"scroll\"><table><thead><tr><th></th><th class=\"begin\" colspan=\"%u\">bytes per connection"
            "</th><th class=\"begin\" colspan=\"%u\">the library's own</th></tr>\n<tr><th></th>",
            width, width - 1);
    column_heads(out, columns, 0, width);
    column_heads(out, columns, 1, width);
    fputs("</tr></thead>\n<tbody>\n", out);
    for (unsigned i = 0; i < points_count; i++) {
        const struct point *point = &points[i];
        if (point->group != GROUP_MEMORY || !point->done)
            continue;
        fprintf(out, "<tr><td>%s</td>", point->name);
        for (unsigned c = 0; c < width; c++)
            fprintf(out, "<td%s>%.0f</td>", c == 0 ? " class=\"begin\"" : "", point->figures[c].memory);
        for (unsigned c = 1; c < width; c++)
            fprintf(out, "<td%s>%.0f</td>", c == 1 ? " class=\"begin\"" : "",
                    point->figures[c].memory - point->figures[0].memory);
        fputs("</tr>\n", out);
    }
    fputs("</tbody></table></div>\n", out);
}

static void bars(FILE *out)
{
    static struct bar found[BARS_MAX];
    bool any = false;
    for (unsigned bench = 0; bench < BENCHES; bench++) {
        unsigned count = bars_find((enum bench)bench, found);
        if (count > 0 && !any) {
            fputs("<h2>The project's bars</h2>\n<div class=\"scroll\"><table>"
                  "<thead><tr><th>bar</th><th>measured (95 %)</th><th>holds</th></tr></thead><tbody>\n",
                  out);
            any = true;
        }
        for (unsigned i = 0; i < count; i++) {
            fputs("<tr><td class=\"words\">", out);
            text(out, found[i].text);
            fprintf(out, "</td><td>%.3f", found[i].value);
            if (found[i].low < found[i].high)
                fprintf(out, " <span class=\"dim\">%.3f–%.3f</span>", found[i].low, found[i].high);
            fprintf(out, "</td><td class=\"%s\">%s</td></tr>\n", found[i].verdict == VERDICT_HOLDS ? "yes" : "no",
                    found[i].verdict == VERDICT_HOLDS ? "yes" : "no");
        }
    }
    if (any)
        fputs("</tbody></table></div>\n", out);
}

static void fact(FILE *out, const char *name, const char *value)
{
    fprintf(out, "<dt>%s</dt><dd>", name);
    text(out, value);
    fputs("</dd>\n", out);
}

void report_page(FILE *out, const struct plan *plan, const struct circumstances *circumstances)
{
    char line[256];
    fprintf(out,
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
            "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">"
            "<title>ringpoll bench, %s</title>\n<style>\n%s</style></head>\n<body>\n"
            "<h1>ringpoll bench</h1>\n<dl>\n",
            circumstances->date, style);
    fact(out, "date", circumstances->date);
    fact(out, "kernel", circumstances->kernel);
    snprintf(line, sizeof line, "%s, %u CPUs, pinned to number %d", circumstances->processor, circumstances->cpus,
             plan->cpu);
    fact(out, "processor", line);
    fact(out, "command", circumstances->command);
    fact(out, "library", circumstances->shim);
    fact(out, "RINGPOLL_MASK", circumstances->mask);
    snprintf(line, sizeof line, "%u times fresh processes per point, %u blocks of %.0f ms from each", plan->pairs,
             plan->blocks, plan->block_ms);
    fact(out, "measured", line);
    fputs("</dl>\n", out);
    fprintf(out,
            "<p>One thread, pinned to one CPU, is both the client and the program under test: an unmodified one, once "
            "on kernel epoll and once more with each profile of the shim. In each round the client sends one request "
            "on each connection while the clock stands; then the clock runs until every reply has reached the client. "
            "A cost is the median over blocks of the median round, in %s per request; a ratio is the median of the "
            "ratios of neighbouring blocks, which take turns in random order, with the interval that holds it with "
            "95&nbsp;%% confidence. Above 1 the ring is cheaper.</p>\n",
            BENCH_CLOCK_UNIT);
    bars(out);
    for (unsigned i = 0; i < GROUPS; i++) {
        const struct point *first = NULL;
        for (unsigned p = 0; p < points_count && first == NULL; p++)
            if (points[p].group == (enum group)i && points[p].done)
                first = &points[p];
        if (first == NULL)
            continue;
        fprintf(out, "<h2>%s: %s</h2>\n<p>", bench_names[group_bench((enum group)i)], group_name((enum group)i));
        text(out, group_program((enum group)i));
        fputs(": ", out);
        text(out, group_title((enum group)i));
        fputs(".</p>\n", out);
        if (i == GROUP_MEMORY) {
            memory_table(out, first->columns, first->width);
            continue;
        }
        plots(out, (enum group)i, first->columns, first->width);
        table(out, (enum group)i, first->columns, first->width);
    }
    fputs("<h2>To repeat it</h2>\n<p>Run <code>", out);
    text(out, circumstances->command);
    fputs("</code>. The machine need not be idle, but a quieter one gives narrower intervals; with <code>--self</code> "
          "the same side is measured twice, and every ratio should be 1. Cycles are ticks of the time stamp counter: "
          "figures of two machines do not compare, ratios do, roughly.</p>\n</body></html>\n",
          out);
}
