/* SPDX-License-Identifier: MIT
 *
 * Counts the system calls that one thread makes between two marks, from
 * outside, by ptrace: exact, and nothing has to be built into what is counted.
 * Shared by the bench and by tests/integration.
 *
 * The counted thread encloses what matters in mark_begin() and mark_end(), as
 * often as it likes, and says mark_done() once. The counting process is its
 * parent:
 *
 *     count_attach(pid)            the thread sleeps, or runs before its first mark
 *     ... tell it to go on ...
 *     count_until_done(pid, &counts)
 *
 * The marks are system call numbers that no kernel has: they answer ENOSYS, and
 * only the tracer makes anything of them.
 */
#ifndef BENCH_COUNT_H
#define BENCH_COUNT_H

#include <stdint.h>
#include <sys/types.h>

#include "rawcall.h"

#ifdef __cplusplus
extern "C" {
#endif

#define COUNT_MARK_BEGIN 0x0b5e001L
#define COUNT_MARK_END 0x0b5e002L
#define COUNT_MARK_DONE 0x0b5e003L

static inline void mark_begin(void)
{
    raw_call(COUNT_MARK_BEGIN, 0, 0, 0, 0, 0, 0);
}
static inline void mark_end(void)
{
    raw_call(COUNT_MARK_END, 0, 0, 0, 0, 0, 0);
}
static inline void mark_done(void)
{
    raw_call(COUNT_MARK_DONE, 0, 0, 0, 0, 0, 0);
}

#define COUNT_NUMBERS 512
struct call_counts {
    uint64_t calls[COUNT_NUMBERS]; /* by system call number */
    uint64_t beyond;               /* numbers above those */
    uint64_t total;
    uint64_t spans;                /* pairs of marks */
};

/* Begins to trace thread `pid`, a descendant. 0, or -errno: -EPERM where ptrace
 * is forbidden. */
int count_attach(pid_t pid);
/* Counts until mark_done(), then lets the thread go on untraced. 0; -ESRCH: it
 * ended before (and has not been waited for: waitpid() still tells how, unless
 * *ret_status, which may be NULL, was given and has it); -errno of ptrace. */
int count_until_done(pid_t pid, struct call_counts *counts, int *ret_status);

/* Instructions in user space between the marks, by where they are. */
struct step_counts {
    struct step {
        uint64_t address, count;
    } *steps;         /* `room` of them, a hash table; count 0: empty */
    uint64_t room, used, total, spans;
};
/* As count_until_done(), one instruction at a time: thousands of times slower,
 * and the same on every run. -ENOTSUP where this is not built for the
 * architecture; -ENOMEM. The caller ends it by step_counts_free(). */
int count_steps_until_done(pid_t pid, struct step_counts *counts);
void step_counts_free(struct step_counts *counts);

/* "epoll_wait"; NULL for a number that this table does not know. */
const char *count_name(long number);
/* The sum over the calls that only move the program's own bytes. */
uint64_t count_reads_and_writes(const struct call_counts *counts);

#ifdef __cplusplus
}
#endif

#endif
