/* SPDX-License-Identifier: MIT
 *
 * Children, exec, rights, and the end of the process.
 *
 * fork has its handlers in real.c. What they cannot see is told beforehand: a
 * child that shares all fds until it execs (vfork, posix_spawn, system, popen),
 * one that is a copy but runs no handlers (_Fork, clone). The library's memory
 * is wiped in such a copy, so it never takes a ring for its own.
 *
 * vfork's child returns from vfork() in its parent's stack frame, so nothing
 * written in C can stand between: vfork.S keeps the return address in a
 * register across the system call and calls the two functions here around it.
 * The child shares this thread's variables as well; it is told apart by its
 * thread id, also in a signal handler that runs in the parent the moment it is
 * resumed, when the child's traces are still in memory.
 */
#include "preload.h"

bool rp_shim_in_vfork_child(void)
{
    return rp_raw(SYS_gettid, 0, 0, 0, 0, 0, 0) != rp_shim_vfork_owner;
}

/* --------------------------------------------------------------- children */

void rp_shim_before_child(void)
{
    rp_shim_flush();
    if (rp_shim_active())
        ringpoll_fork_elsewhere();
}

void rp_shim_vfork_prepare(void);
long rp_shim_vfork_done(long result);

void rp_shim_vfork_prepare(void)
{
    rp_shim_before_child();
    /* A vfork in a vfork child leaves its parent as the owner. */
    if (rp_shim_vfork_owner == 0)
        rp_shim_vfork_owner = (pid_t)rp_raw(SYS_gettid, 0, 0, 0, 0, 0, 0);
}

/* Runs in the child first, then in the parent. */
long rp_shim_vfork_done(long result)
{
    if (result != 0 && !rp_shim_in_vfork_child())
        rp_shim_vfork_owner = 0;
    return rp_answer(result);
}

#if (defined(__x86_64__) && defined(__LP64__)) || defined(__aarch64__)
#define RP_VFORK_IN_ASSEMBLER 1
#else
/* POSIX allows a vfork that is a fork, and there it is. */
EXPORT pid_t vfork(void)
{
    return fork();
}
#endif

EXPORT pid_t bare_fork(void) __asm__("_Fork");
EXPORT pid_t bare_fork(void)
{
    rp_shim_before_child();
    return RP_LATE(bare_fork) ? rp_real.bare_fork() : fork();
}

struct clone_start {
    int (*function)(void *);
    void *argument;
};

static int clone_child(void *at)
{
    struct clone_start start = *(struct clone_start *)at;
    if (rp_shim_active()) {
        ringpoll_fork_child();
        rp_shim_wait_forked();
        rp_report_forked();
    }
    return start.function(start.argument);
}

EXPORT int clone(int (*function)(void *), void *stack, int flags, void *argument, ...)
{
    va_list list;
    va_start(list, argument);
    void *parent_tid = va_arg(list, void *), *tls = va_arg(list, void *), *child_tid = va_arg(list, void *);
    va_end(list);
    if (!RP_LATE(clone))
        return rp_fail(ENOSYS);
    if (!rp_shim_active() || (flags & CLONE_THREAD) || !function || !stack)
        return rp_real.clone(function, stack, flags, argument, parent_tid, tls, child_tid);
    if (!(flags & CLONE_VM)) {
        /* A fork by another name; the child has a copy of this frame. */
        struct clone_start start = {function, argument};
        ringpoll_fork_prepare();
        int pid = rp_real.clone(clone_child, stack, flags, &start, parent_tid, tls, child_tid);
        ringpoll_fork_parent();
        return pid;
    }
    if (!(flags & CLONE_VFORK) || (flags & CLONE_FILES)) {
        rp_shim_before_child();
        return rp_real.clone(function, stack, flags, argument, parent_tid, tls, child_tid);
    }
    rp_shim_vfork_prepare();
    int pid = rp_real.clone(function, stack, flags, argument, parent_tid, tls, child_tid);
    if (!rp_shim_in_vfork_child())
        rp_shim_vfork_owner = 0;
    return pid;
}

EXPORT int posix_spawn(pid_t *restrict pid, const char *restrict path,
                       const posix_spawn_file_actions_t *restrict actions,
                       const posix_spawnattr_t *restrict attributes, char *const argv[restrict],
                       char *const envp[restrict])
{
    rp_shim_before_child();
    return RP_LATE(posix_spawn) ? rp_real.posix_spawn(pid, path, actions, attributes, argv, envp) : ENOSYS;
}

EXPORT int posix_spawnp(pid_t *restrict pid, const char *restrict file,
                        const posix_spawn_file_actions_t *restrict actions,
                        const posix_spawnattr_t *restrict attributes, char *const argv[restrict],
                        char *const envp[restrict])
{
    rp_shim_before_child();
    return RP_LATE(posix_spawnp) ? rp_real.posix_spawnp(pid, file, actions, attributes, argv, envp) : ENOSYS;
}

/* glibc 2.39. */
int pidfd_spawn(int *pidfd, const char *path, const void *actions, const void *attributes, char *const argv[],
                char *const envp[]);
int pidfd_spawnp(int *pidfd, const char *file, const void *actions, const void *attributes, char *const argv[],
                 char *const envp[]);

EXPORT int pidfd_spawn(int *pidfd, const char *path, const void *actions, const void *attributes,
                       char *const argv[], char *const envp[])
{
    rp_shim_before_child();
    return RP_LATE(pidfd_spawn) ? rp_real.pidfd_spawn(pidfd, path, actions, attributes, argv, envp) : ENOSYS;
}

EXPORT int pidfd_spawnp(int *pidfd, const char *file, const void *actions, const void *attributes,
                        char *const argv[], char *const envp[])
{
    rp_shim_before_child();
    return RP_LATE(pidfd_spawnp) ? rp_real.pidfd_spawnp(pidfd, file, actions, attributes, argv, envp) : ENOSYS;
}

EXPORT int system(const char *command)
{
    rp_shim_before_child();
    return RP_LATE(system) ? rp_real.system(command) : rp_fail(ENOSYS);
}

EXPORT FILE *popen(const char *command, const char *mode)
{
    rp_shim_before_child();
    if (RP_LATE(popen))
        return rp_real.popen(command, mode);
    errno = ENOSYS;
    return NULL;
}

/* It forks inside libc, which runs the handlers, and then replaces 0, 1 and 2 by
 * calls that cannot be seen. */
EXPORT int daemon(int keep_directory, int keep_files)
{
    if (!RP_LATE(daemon))
        return rp_fail(ENOSYS);
    int result = rp_real.daemon(keep_directory, keep_files);
    if (result == 0 && !keep_files && rp_shim_active())
        ringpoll_fd_closing_range(0, 2);
    return result;
}

/* ------------------------------------------------------------------- exec */

void rp_shim_before_exec(void)
{
    rp_shim_flush();
    if (rp_shim_active() && RP_SHIM_IS(any_set))
        ringpoll_exec_prepare();
}

EXPORT int execve(const char *path, char *const argv[], char *const envp[])
{
    rp_shim_before_exec();
    return RP_LATE(execve) ? rp_real.execve(path, argv, envp) : rp_fail(ENOSYS);
}

EXPORT int execv(const char *path, char *const argv[])
{
    rp_shim_before_exec();
    return RP_LATE(execv) ? rp_real.execv(path, argv) : rp_fail(ENOSYS);
}

EXPORT int execvp(const char *file, char *const argv[])
{
    rp_shim_before_exec();
    return RP_LATE(execvp) ? rp_real.execvp(file, argv) : rp_fail(ENOSYS);
}

EXPORT int execvpe(const char *file, char *const argv[], char *const envp[])
{
    rp_shim_before_exec();
    return RP_LATE(execvpe) ? rp_real.execvpe(file, argv, envp) : rp_fail(ENOSYS);
}

EXPORT int fexecve(int fd, char *const argv[], char *const envp[])
{
    rp_shim_before_exec();
    return RP_LATE(fexecve) ? rp_real.fexecve(fd, argv, envp) : rp_fail(ENOSYS);
}

EXPORT int execveat(int directory, const char *path, char *const argv[], char *const envp[], int flags)
{
    rp_shim_before_exec();
    return RP_LATE(execveat) ? rp_real.execveat(directory, path, argv, envp, flags) : rp_fail(ENOSYS);
}

/* The list forms: how many there are must be known before they can be copied,
 * and execl may be called where malloc may not. */
static size_t count_arguments(va_list list)
{
    size_t count = 1;
    while (va_arg(list, char *))
        count++;
    return count;
}

#define COLLECT_ARGUMENTS(first)                                                                                 \
    va_list list;                                                                                                \
    va_start(list, first);                                                                                       \
    size_t count = count_arguments(list);                                                                        \
    va_end(list);                                                                                                \
    char *argv[count + 1];                                                                                       \
    va_start(list, first);                                                                                       \
    argv[0] = (char *)(first);                                                                                   \
    for (size_t i = 1; i <= count; i++)                                                                          \
    argv[i] = va_arg(list, char *)

EXPORT int execl(const char *path, const char *first, ...)
{
    COLLECT_ARGUMENTS(first);
    va_end(list);
    return execv(path, argv);
}

EXPORT int execlp(const char *file, const char *first, ...)
{
    COLLECT_ARGUMENTS(first);
    va_end(list);
    return execvp(file, argv);
}

EXPORT int execle(const char *path, const char *first, ...)
{
    COLLECT_ARGUMENTS(first);
    char *const *envp = va_arg(list, char *const *);
    va_end(list);
    return execve(path, argv, envp);
}

/* ----------------------------------------------------------------- rights */

void rp_shim_new_credentials(void)
{
    if (rp_shim_active() && RP_SHIM_IS(any_set))
        ringpoll_process_restricted(0);
}

void rp_shim_before_filter(void)
{
    if (!rp_shim_active())
        return;
    RP_SHIM_SET(restricted, true);
    RP_SHIM_SET(short_cut, false);
    ringpoll_process_restricted(1);
}

#define CREDENTIALS(name, parameters, arguments)                                                                 \
    EXPORT int name parameters                                                                                   \
    {                                                                                                            \
        rp_shim_new_credentials();                                                                               \
        return RP_LATE(name) ? rp_real.name arguments : rp_fail(ENOSYS);                                         \
    }
CREDENTIALS(setuid, (uid_t uid), (uid))
CREDENTIALS(setgid, (gid_t gid), (gid))
CREDENTIALS(seteuid, (uid_t uid), (uid))
CREDENTIALS(setegid, (gid_t gid), (gid))
CREDENTIALS(setreuid, (uid_t real, uid_t effective), (real, effective))
CREDENTIALS(setregid, (gid_t real, gid_t effective), (real, effective))
CREDENTIALS(setresuid, (uid_t real, uid_t effective, uid_t saved), (real, effective, saved))
CREDENTIALS(setresgid, (gid_t real, gid_t effective, gid_t saved), (real, effective, saved))
CREDENTIALS(setfsuid, (uid_t uid), (uid))
CREDENTIALS(setfsgid, (gid_t gid), (gid))
CREDENTIALS(setgroups, (size_t count, const gid_t *groups), (count, groups))
CREDENTIALS(initgroups, (const char *user, gid_t group), (user, group))

EXPORT int prctl(int option, ...)
{
    va_list list;
    va_start(list, option);
    unsigned long a = va_arg(list, unsigned long), b = va_arg(list, unsigned long);
    unsigned long c = va_arg(list, unsigned long), d = va_arg(list, unsigned long);
    va_end(list);
    if (option == PR_SET_SECCOMP)
        rp_shim_before_filter();
    return rp_real.prctl(option, a, b, c, d);
}

/* ---------------------------------------------------------------- the end */

void rp_shim_before_exit(void)
{
    if (rp_shim_vfork_owner && rp_shim_in_vfork_child())
        return;
    /* First, since the library gives up its rings in the next step. */
    rp_report_write();
    if (RP_SHIM_IS(on) && RP_SHIM_IS(any_set))
        ringpoll_process_exiting();
}

EXPORT void _exit(int status)
{
    rp_shim_before_exit();
    for (;;)
        rp_real.exit_now(status);
}

EXPORT void _Exit(int status)
{
    _exit(status);
}

/* exit() ends here, after the program's own exit handlers; quick_exit() ends in
 * libc's inner _exit, and registers nothing of the kind. */
__attribute__((destructor)) static void on_unload(void)
{
    rp_shim_before_exit();
}

__attribute__((constructor)) static void register_quick_exit(void)
{
    at_quick_exit(rp_shim_before_exit);
}

ALSO_KNOWN_AS(clone, "__clone");
#if !defined(RP_VFORK_IN_ASSEMBLER)
ALSO_KNOWN_AS(vfork, "__vfork");
#endif
