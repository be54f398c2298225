/* SPDX-License-Identifier: MIT
 *
 * A tracer that does nothing but count. PTRACE_SEIZE (and not ATTACH) because
 * it takes the one thread that is named, sends no SIGSTOP and lets signals pass
 * as they are; PTRACE_GET_SYSCALL_INFO because it tells entry from exit without
 * a state of our own and has the number on every architecture.
 */
#include "count.h"

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>

/* <linux/ptrace.h> cannot stand beside <sys/ptrace.h> everywhere, so the layout
 * of PTRACE_GET_SYSCALL_INFO's answer (Linux 5.3) is written down here. */
#define GET_SYSCALL_INFO 0x420e
#define SYSCALL_INFO_ENTRY 1
struct syscall_info {
    uint8_t op, pad[3];
    uint32_t arch;
    uint64_t instruction_pointer, stack_pointer;
    uint64_t number, args[6];
    uint64_t room[4];
};

#define STOP_EVENT(status) ((status) >> 16)

static long trace(int request, pid_t pid, unsigned long address, unsigned long data)
{
    /* glibc wants an enum, musl an int, and both take what the kernel takes. */
    return ptrace((__typeof__(PTRACE_TRACEME))request, pid, (void *)address, (void *)data) < 0 ? -errno : 0;
}

static int wait_stop(pid_t pid, int *ret_status)
{
    while (waitpid(pid, ret_status, __WALL) != pid)
        if (errno != EINTR)
            return -errno;
    return WIFSTOPPED(*ret_status) ? 0 : -ESRCH;
}

int count_attach(pid_t pid)
{
    int status;
    long rc = trace(PTRACE_SEIZE, pid, 0, PTRACE_O_TRACESYSGOOD);
    if (rc != 0)
        return (int)rc;
    rc = trace(PTRACE_INTERRUPT, pid, 0, 0);
    if (rc == 0)
        rc = wait_stop(pid, &status);
    if (rc == 0)
        rc = trace(PTRACE_SYSCALL, pid, 0, 0);
    return (int)rc;
}

int count_until_done(pid_t pid, struct call_counts *counts, int *ret_status)
{
    int counting = 0;
    memset(counts, 0, sizeof *counts);
    for (;;) {
        int status = 0;
        int pass_on = 0;
        int rc = wait_stop(pid, &status);
        if (rc == -ESRCH && ret_status != NULL)
            *ret_status = status;
        if (rc != 0)
            return rc;
        if (WSTOPSIG(status) == (SIGTRAP | 0x80)) {
            struct syscall_info info;
            memset(&info, 0, sizeof info);
            long rc2 = trace(GET_SYSCALL_INFO, pid, sizeof info, (unsigned long)&info);
            if (rc2 != 0) {
                (void)trace(PTRACE_DETACH, pid, 0, 0);
                return (int)rc2;
            }
            if (info.op == SYSCALL_INFO_ENTRY) {
                if (info.number == COUNT_MARK_DONE)
                    return (int)trace(PTRACE_DETACH, pid, 0, 0);
                if (info.number == COUNT_MARK_BEGIN) {
                    counting = 1;
                } else if (info.number == COUNT_MARK_END) {
                    counts->spans += (uint64_t)counting;
                    counting = 0;
                } else if (counting) {
                    counts->total++;
                    if (info.number < COUNT_NUMBERS)
                        counts->calls[info.number]++;
                    else
                        counts->beyond++;
                }
            }
        } else if (STOP_EVENT(status) == 0) {
            pass_on = WSTOPSIG(status); /* a signal on its way to the thread */
        }
        rc = (int)trace(PTRACE_SYSCALL, pid, 0, (unsigned long)pass_on);
        if (rc != 0 && rc != -ESRCH)
            return rc;
    }
}

/* ------------------------------------------------------------ instructions */

void step_counts_free(struct step_counts *counts)
{
    free(counts->steps);
    memset(counts, 0, sizeof *counts);
}

#if defined(__x86_64__)

static struct step *find_step(struct step_counts *counts, uint64_t address)
{
    uint64_t at = address * UINT64_C(0x9e3779b97f4a7c15) >> 20 & (counts->room - 1);
    while (counts->steps[at].count != 0 && counts->steps[at].address != address)
        at = (at + 1) & (counts->room - 1);
    return &counts->steps[at];
}

static int note_step(struct step_counts *counts, uint64_t address)
{
    if (counts->used * 2 >= counts->room) {
        struct step_counts grown = *counts;
        grown.room = counts->room > 0 ? counts->room * 2 : 4096;
        grown.steps = calloc(grown.room, sizeof grown.steps[0]);
        if (grown.steps == NULL)
            return -ENOMEM;
        for (uint64_t i = 0; i < counts->room; i++)
            if (counts->steps[i].count != 0)
                *find_step(&grown, counts->steps[i].address) = counts->steps[i];
        free(counts->steps);
        *counts = grown;
    }
    struct step *step = find_step(counts, address);
    counts->used += step->count == 0;
    step->address = address;
    step->count++;
    counts->total++;
    return 0;
}

/* Single steps from a span's first mark to the instruction that is its second:
 * no system call of the thread is seen as such meanwhile, so the mark is
 * recognised by its number, which is in the register before the call. */
int count_steps_until_done(pid_t pid, struct step_counts *counts)
{
    int counting = 0;
    memset(counts, 0, sizeof *counts);
    for (;;) {
        struct user_regs_struct registers;
        int status = 0;
        int pass_on = 0;
        int rc = wait_stop(pid, &status);
        if (rc == 0)
            rc = (int)trace(PTRACE_GETREGS, pid, 0, (unsigned long)&registers);
        if (rc != 0)
            return rc;
        if (WSTOPSIG(status) == (SIGTRAP | 0x80)) {
            bool entry = registers.rax == (unsigned long)-ENOSYS;
            if (entry && registers.orig_rax == COUNT_MARK_DONE)
                return (int)trace(PTRACE_DETACH, pid, 0, 0);
            /* Its return is the next stop; the first step comes after that. */
            if (registers.orig_rax == COUNT_MARK_BEGIN)
                counting++;
        } else if (WSTOPSIG(status) == SIGTRAP && STOP_EVENT(status) == 0) {
            if (registers.rax == COUNT_MARK_END) {
                counting = 0;
                counts->spans++;
            } else if ((rc = note_step(counts, registers.rip)) != 0) {
                (void)trace(PTRACE_DETACH, pid, 0, 0);
                return rc;
            }
        } else if (STOP_EVENT(status) == 0) {
            pass_on = WSTOPSIG(status);
        }
        /* Entry and return of the mark's call both stop: two of them. */
        rc = (int)trace(counting >= 2 ? PTRACE_SINGLESTEP : PTRACE_SYSCALL, pid, 0, (unsigned long)pass_on);
        if (rc != 0 && rc != -ESRCH)
            return rc;
    }
}

#else

int count_steps_until_done(pid_t pid, struct step_counts *counts)
{
    memset(counts, 0, sizeof *counts);
    (void)trace(PTRACE_DETACH, pid, 0, 0);
    return -ENOTSUP;
}

#endif

/* ------------------------------------------------------------------- names */

static const struct {
    long number;
    const char *name;
} names[] = {
    {SYS_read, "read"},
    {SYS_write, "write"},
    {SYS_readv, "readv"},
    {SYS_writev, "writev"},
    {SYS_recvfrom, "recvfrom"},
    {SYS_recvmmsg, "recvmmsg"},
    {SYS_sendmmsg, "sendmmsg"},
    {SYS_sendto, "sendto"},
    {SYS_recvmsg, "recvmsg"},
    {SYS_sendmsg, "sendmsg"},
    {SYS_accept4, "accept4"},
#ifdef SYS_accept
    {SYS_accept, "accept"},
#endif
    {SYS_close, "close"},
    {SYS_shutdown, "shutdown"},
    {SYS_fcntl, "fcntl"},
    {SYS_ioctl, "ioctl"},
#ifdef SYS_poll
    {SYS_poll, "poll"},
#endif
    {SYS_ppoll, "ppoll"},
    {SYS_epoll_ctl, "epoll_ctl"},
#ifdef SYS_epoll_wait
    {SYS_epoll_wait, "epoll_wait"},
#endif
    {SYS_epoll_pwait, "epoll_pwait"},
    {441, "epoll_pwait2"},
    {425, "io_uring_setup"},
    {426, "io_uring_enter"},
    {427, "io_uring_register"},
    {SYS_eventfd2, "eventfd2"},
    {SYS_futex, "futex"},
    {SYS_setsockopt, "setsockopt"},
    {SYS_getsockopt, "getsockopt"},
    {SYS_getsockname, "getsockname"},
    {SYS_getpeername, "getpeername"},
    {SYS_clock_gettime, "clock_gettime"},
    {SYS_brk, "brk"},
    {SYS_mmap, "mmap"},
    {SYS_munmap, "munmap"},
    {SYS_madvise, "madvise"},
    {SYS_mprotect, "mprotect"},
    {SYS_rt_sigprocmask, "rt_sigprocmask"},
    {SYS_getpid, "getpid"},
    {SYS_gettid, "gettid"},
    {SYS_sched_yield, "sched_yield"},
};

const char *count_name(long number)
{
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (names[i].number == number)
            return names[i].name;
    return NULL;
}

uint64_t count_reads_and_writes(const struct call_counts *counts)
{
    return counts->calls[SYS_read] + counts->calls[SYS_write] + counts->calls[SYS_readv] +
           counts->calls[SYS_writev] + counts->calls[SYS_recvfrom] + counts->calls[SYS_sendto] +
           counts->calls[SYS_recvmsg] + counts->calls[SYS_sendmsg];
}
