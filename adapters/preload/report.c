/* SPDX-License-Identifier: MIT
 *
 * What RINGPOLL_STATS asks for: one report at the end of a process, lines of
 * "key value", a blank line after the last, written by a single write(2) so that
 * the reports of several processes never mix.
 *
 *   RINGPOLL_STATS=FILE    appended to, made if it is not there; %p in its name
 *                          is the process id
 *   RINGPOLL_STATS=stderr  or a number: that file descriptor
 *
 * A process that made no epoll instance, and waited on none that it inherited, has
 * nothing to say, and says nothing: the environment reaches every child of a shell
 * script. A process that dies by a signal, or execs, does not report. Under secure execution (a setuid program)
 * the variable is not there: nobody makes such a program write files.
 */
#include "preload.h"

#include <string.h>

#define PATH_ROOM 4096

static char path[PATH_ROOM]; /* empty: not asked for */
static int target = -1;      /* an fd number instead */
static int written;
static uint64_t waits_of_parent; /* what our count began with */

/* A report being put together; what does not fit is left out. */
struct text {
    char bytes[4096];
    size_t length;
};

static void add(struct text *text, const char *string)
{
    size_t length = strlen(string);
    if (length > sizeof text->bytes - text->length)
        length = sizeof text->bytes - text->length;
    memcpy(text->bytes + text->length, string, length);
    text->length += length;
}

static void add_number(struct text *text, uint64_t number)
{
    char digits[24];
    size_t at = sizeof digits - 1;
    digits[at] = '\0';
    do
        digits[--at] = (char)('0' + number % 10);
    while (number /= 10);
    add(text, digits + at);
}

static void line(struct text *text, const char *key, const char *value)
{
    add(text, key);
    add(text, " ");
    add(text, value);
    add(text, "\n");
}

static void number_line(struct text *text, const char *key, uint64_t value)
{
    add(text, key);
    add(text, " ");
    add_number(text, value);
    add(text, "\n");
}

/* The name that a manual page has for it; strerrorname_np is too new. */
static const char *error_name(int error)
{
    static const struct {
        int error;
        const char *name;
    } names[] = {{0, "none"},          {EPERM, "EPERM"},   {ENOSYS, "ENOSYS"}, {ENOMEM, "ENOMEM"},
                 {EMFILE, "EMFILE"},   {ENFILE, "ENFILE"}, {EINVAL, "EINVAL"}, {EACCES, "EACCES"},  {EBUSY, "EBUSY"},
                 {EAGAIN, "EAGAIN"},   {EFAULT, "EFAULT"}, {EBADF, "EBADF"},   {EOPNOTSUPP, "EOPNOTSUPP"},
                 {EOVERFLOW, "EOVERFLOW"}};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (names[i].error == error)
            return names[i].name;
    return NULL;
}

static void add_error(struct text *text, int error)
{
    const char *name = error_name(error);
    if (name) {
        add(text, name);
    } else {
        add(text, "errno ");
        add_number(text, (uint64_t)error);
    }
}

/* Which switch says no. Asking means trying, which a filter may answer by
 * killing: not once one was announced. */
static const char *knob(void)
{
    struct ringpoll_probe probe = {.size = sizeof probe};
    if (RP_SHIM_IS(restricted) || ringpoll_get_probe(&probe) < 0)
        return NULL;
    if (probe.error == 0 && probe.masked)
        return ringpoll_knob_text(RINGPOLL_KNOB_MASK);
    return ringpoll_knob_text(probe.knob);
}

static bool is_number(const char *word)
{
    for (const char *at = word; *at; at++)
        if (*at < '0' || *at > '9' || at - word > 8)
            return false;
    return *word != '\0';
}

void rp_report_start(void)
{
    const char *word = secure_getenv("RINGPOLL_STATS");
    if (!word || !*word)
        return;
    if (strcmp(word, "stderr") == 0) {
        target = 2;
    } else if (is_number(word)) {
        target = atoi(word);
    } else {
        /* The program may have gone elsewhere by the time it ends. */
        size_t length = 0;
        if (*word != '/' && rp_raw(SYS_getcwd, (long)path, PATH_ROOM / 2, 0, 0, 0, 0) > 0) {
            length = strlen(path);
            path[length++] = '/';
        }
        if (strlen(word) >= PATH_ROOM - length)
            path[0] = '\0';
        else
            memcpy(path + length, word, strlen(word) + 1);
    }
}

static uint64_t waits(void)
{
    struct ringpoll_stats stats = {.size = sizeof stats};
    return ringpoll_get_stats(-1, &stats) == 0 ? stats.waits : 0;
}

void rp_report_forked(void)
{
    RP_SHIM_SET(made_epoll, false);
    __atomic_store_n(&written, 0, __ATOMIC_RELAXED);
    if (RP_SHIM_IS(any_set) && (target >= 0 || path[0]))
        waits_of_parent = waits();
}

static int open_target(void)
{
    char expanded[PATH_ROOM + 32];
    struct text number = {.length = 0};
    add_number(&number, (uint64_t)rp_raw(SYS_getpid, 0, 0, 0, 0, 0, 0));
    size_t out = 0;
    for (const char *at = path; *at && out < PATH_ROOM; at++) {
        if (at[0] == '%' && at[1] == 'p') {
            if (out + number.length >= sizeof expanded)
                return -1;
            memcpy(expanded + out, number.bytes, number.length);
            out += number.length;
            at++;
        } else {
            expanded[out++] = *at;
        }
    }
    expanded[out] = '\0';
    return (int)rp_raw(SYS_openat, AT_FDCWD, (long)expanded, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY,
                       0644, 0, 0);
}

static void compose(struct text *text)
{
    char program[1024];
    long length = rp_raw(SYS_readlinkat, AT_FDCWD, (long)"/proc/self/exe", (long)program, sizeof program - 1, 0, 0);
    program[length > 0 ? length : 0] = '\0';
    line(text, "ringpoll", ringpoll_version());
    number_line(text, "pid", (uint64_t)rp_raw(SYS_getpid, 0, 0, 0, 0, 0, 0));
    line(text, "program", program[0] ? program : "unknown");

    struct ringpoll_stats stats = {.size = sizeof stats};
    if (!RP_SHIM_IS(on)) {
        line(text, "engine", ringpoll_engine_text(RINGPOLL_ENGINE_KERNEL));
        line(text, "reason", "RINGPOLL=off");
        return;
    }
    int error = ringpoll_get_stats(-1, &stats);
    if (error < 0) {
        add(text, "error ");
        add_error(text, -error);
        add(text, "\n");
        return;
    }
    line(text, "engine", ringpoll_engine_text(stats.engine));
    line(text, "reason", ringpoll_reason_text(stats.reason));
    add(text, "error ");
    add_error(text, -stats.error);
    add(text, "\n");
    const char *why = stats.reason == RINGPOLL_REASON_NO_RING ? knob() : NULL;
    line(text, "knob", why ? why : stats.reason == RINGPOLL_REASON_NO_RING ? "unknown" : "none");
#define NUMBER(name) number_line(text, #name, stats.name)
    NUMBER(sets);
    NUMBER(rings);
    NUMBER(sets_made);
    NUMBER(rings_made);
    NUMBER(waits);
    NUMBER(events);
    NUMBER(enters);
    NUMBER(rechecks);
    NUMBER(rechecked_fds);
    NUMBER(kernel_waits);
    NUMBER(kernel_ctls);
    NUMBER(sqes);
    NUMBER(cqes);
    NUMBER(polls_armed);
    NUMBER(watches_ring);
    NUMBER(watches_kernel);
    NUMBER(cancels_on_close);
    NUMBER(handovers);
    NUMBER(stale_cqes);
    NUMBER(rearms);
    NUMBER(cq_overflows);
    NUMBER(ops_in_flight);
    NUMBER(demotions);
    NUMBER(adopted);
    NUMBER(adoptions);
    NUMBER(received);
    NUMBER(receives_ended);
    NUMBER(starved);
    NUMBER(calls_saved);
    NUMBER(sends_batched);
    NUMBER(accepting);
    NUMBER(listeners_adopted);
    NUMBER(accepted);
    NUMBER(requests);
    NUMBER(requests_at_once);
    NUMBER(sends_zc);
    NUMBER(sends_zc_copied);
#undef NUMBER
    number_line(text, "kernel_sets", stats.kernel_sets[0]);
    for (unsigned reason = 1; reason < RINGPOLL_REASON_SLOTS; reason++) {
        static const char *const names[RINGPOLL_REASON_SLOTS] = {
            [RINGPOLL_REASON_ASKED] = "kernel_sets_asked",
            [RINGPOLL_REASON_NO_RING] = "kernel_sets_no_ring",
            [RINGPOLL_REASON_OLD_KERNEL] = "kernel_sets_old_kernel",
            [RINGPOLL_REASON_NESTED] = "kernel_sets_nested",
            [RINGPOLL_REASON_WAITERS] = "kernel_sets_waiters",
            [RINGPOLL_REASON_FORK] = "kernel_sets_fork",
            [RINGPOLL_REASON_RESTRICTED] = "kernel_sets_restricted",
            [RINGPOLL_REASON_UNFIT] = "kernel_sets_unfit",
            [RINGPOLL_REASON_SHARED] = "kernel_sets_shared",
        };
        if (stats.kernel_sets[reason] > 0 && names[reason])
            number_line(text, names[reason], stats.kernel_sets[reason]);
    }
}

void rp_report_write(void)
{
    if (target < 0 && !path[0])
        return;
    if (!RP_SHIM_IS(made_epoll) && (!RP_SHIM_IS(any_set) || waits() == waits_of_parent))
        return;
    if (__atomic_exchange_n(&written, 1, __ATOMIC_RELAXED))
        return;
    struct text text;
    text.length = 0;
    compose(&text);
    add(&text, "\n");
    int fd = target >= 0 ? target : open_target();
    if (fd < 0)
        return;
    rp_raw(SYS_write, fd, (long)text.bytes, (long)text.length, 0, 0, 0);
    if (target < 0)
        rp_raw(SYS_close, fd, 0, 0, 0, 0, 0);
}

_Noreturn void rp_report_no_ring(int error)
{
    struct text text;
    text.length = 0;
    const char *why = knob();
    add(&text, "ringpoll: RINGPOLL=require, but there is no io_uring here (io_uring_setup: ");
    add_error(&text, -error);
    add(&text, "; ");
    add(&text, why ? why : "reason unknown");
    add(&text, ")\n");
    rp_raw(SYS_write, 2, (long)text.bytes, (long)text.length, 0, 0, 0);
    for (;;)
        rp_real.exit_now(125);
}
