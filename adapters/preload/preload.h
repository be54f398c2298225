/* SPDX-License-Identifier: MIT
 *
 * The LD_PRELOAD shim: libc's names on one side, ringpoll.h on the other.
 *
 * Why it exists: a program written for epoll runs on a ring without being built
 * again. The shim owns no policy. It translates epoll's five calls, and tells
 * the library what the program does to its fds, its process and its rights; what
 * the library makes of that is the library's business. It uses the public header
 * alone.
 *
 * Rules that hold in every file here:
 *
 *  1. The real function does the work. A call is passed on with the arguments
 *     that came, and its result and errno go back untouched (hints are given
 *     after a read, notices before a close). So a call that is a cancellation
 *     point stays one, and one that is async-signal-safe stays so: nothing here
 *     allocates, locks or waits on that way.
 *
 *  2. Three states in which everything passes straight through:
 *     - RINGPOLL=off; or another shim stands before this one;
 *     - before rp_shim_start() has found the real functions (another library's
 *       constructor, or a malloc that is being set up by our own dlsym): the
 *       table then holds raw system calls for what can be called that early;
 *     - in a vfork child, which runs in its parent's memory with fds of its own:
 *       what it closes is still open in the parent, whose tables must not hear
 *       of it. See rp_shim_in_vfork_child().
 *
 *  3. The library itself makes raw system calls and never meets these names;
 *     the shim calls libc by rp_real only. tests/preload checks both objects'
 *     undefined symbols.
 *
 *  4. Nothing is resolved, opened or made in a program that makes no set, apart
 *     from the table of real functions.
 */
#ifndef RP_PRELOAD_H
#define RP_PRELOAD_H

/* Fortified headers define read() and friends inline, and the 64-bit off_t
 * renames fcntl to fcntl64: both would be in the way of defining them. */
#undef _FORTIFY_SOURCE
#undef _FILE_OFFSET_BITS
#undef _TIME_BITS
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <errno.h>
#include <fcntl.h>
#include <aio.h>
#include <grp.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/fsuid.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <netdb.h>
#include <semaphore.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <termios.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

#include <ringpoll/ringpoll.h>

#if defined(__has_include)
#if __has_include(<sys/single_threaded.h>)
#include <sys/single_threaded.h>
#define RP_SHIM_HAVE_SINGLE_THREADED 1
#endif
#endif

#ifdef RP_SHIM_INSIDE /* see real.c */
#define EXPORT __attribute__((visibility("hidden")))
#else
#define EXPORT __attribute__((visibility("default")))
#endif
/* libc's second name for a function, which a few libraries (libnsl) call. */
#if defined(__has_attribute)
#if __has_attribute(copy)
#define COPY_ATTRIBUTES(function) , copy(function)
#endif
#endif
#ifndef COPY_ATTRIBUTES
#define COPY_ATTRIBUTES(function)
#endif
#define ALSO_KNOWN_AS(function, label)                                                                           \
    EXPORT extern __typeof__(function) also_##function __asm__(label)                                            \
        __attribute__((alias(#function) COPY_ATTRIBUTES(function)))
#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

/* Nothing below is visible outside: no detour over the GOT. */
#pragma GCC visibility push(hidden)

/* Names that older libcs lack, or that only fortified programs call. */
ssize_t read_chk_t(int fd, void *buffer, size_t length, size_t size);
ssize_t recv_chk_t(int fd, void *buffer, size_t length, size_t size, int flags);
ssize_t recvfrom_chk_t(int fd, void *buffer, size_t length, size_t size, int flags, struct sockaddr *address,
                       socklen_t *address_length);
int poll_chk_t(struct pollfd *fds, nfds_t count, int timeout, size_t size);
int ppoll_chk_t(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask,
                size_t size);
int epoll_pwait2_t(int epfd, struct epoll_event *events, int max, const struct timespec *timeout,
                   const sigset_t *mask);
int close_range_t(unsigned first, unsigned last, int flags);
void closefrom_t(int low);
pid_t bare_fork_t(void);
int cond_clockwait_t(pthread_cond_t *condition, pthread_mutex_t *mutex, clockid_t clock, const struct timespec *time);
int sem_clockwait_t(sem_t *semaphore, clockid_t clock, const struct timespec *time);
int mutex_clocklock_t(pthread_mutex_t *mutex, clockid_t clock, const struct timespec *time);
int rwlock_clocklock_t(pthread_rwlock_t *lock, clockid_t clock, const struct timespec *time);
int clockjoin_t(pthread_t thread, void **result, clockid_t clock, const struct timespec *time);
int tgkill_t(pid_t group, pid_t thread, int number);
int execveat_t(int dirfd, const char *path, char *const argv[], char *const envp[], int flags);
int spawn_pidfd_t(int *pidfd, const char *path, const void *actions, const void *attributes, char *const argv[],
                  char *const envp[]);

/* Every real function: member, symbol, type. Those under EARLY have a raw system
 * call in their place until they are resolved, the others NULL. Those under NEWER
 * may be missing from an older libc; see resolve() for why that matters. */
#define RP_REAL_EARLY(X)                                                                                         \
    X(close, "close", close)                                                                                     \
    X(read, "read", read)                                                                                        \
    X(write, "write", write)                                                                                     \
    X(send, "send", send)                                                                                        \
    X(readv, "readv", readv)                                                                                     \
    X(recv, "recv", recv)                                                                                        \
    X(recvfrom, "recvfrom", recvfrom)                                                                            \
    X(recvmsg, "recvmsg", recvmsg)                                                                               \
    X(sendmsg, "sendmsg", sendmsg)                                                                               \
    X(fcntl, "fcntl", fcntl)                                                                                     \
    X(fcntl64, "fcntl64", fcntl)                                                                                 \
    X(ioctl, "ioctl", ioctl)                                                                                     \
    X(dup, "dup", dup)                                                                                           \
    X(dup2, "dup2", dup2)                                                                                        \
    X(dup3, "dup3", dup3)                                                                                        \
    X(socket, "socket", socket)                                                                                  \
    X(socketpair, "socketpair", socketpair)                                                                      \
    X(connect, "connect", connect)                                                                               \
    X(listen, "listen", listen)                                                                                  \
    X(accept, "accept", accept)                                                                                  \
    X(accept4, "accept4", accept4)                                                                               \
    X(setsockopt, "setsockopt", setsockopt)                                                                      \
    X(pipe, "pipe", pipe)                                                                                        \
    X(pipe2, "pipe2", pipe2)                                                                                     \
    X(eventfd, "eventfd", eventfd)                                                                               \
    X(sendto, "sendto", sendto)                                                                                  \
    X(writev, "writev", writev)                                                                                  \
    X(getsockopt, "getsockopt", getsockopt)                                                                      \
    X(poll, "poll", poll)                                                                                        \
    X(prctl, "prctl", prctl)                                                                                     \
    X(epoll_create1, "epoll_create1", epoll_create1)                                                             \
    X(epoll_ctl, "epoll_ctl", epoll_ctl)                                                                         \
    X(epoll_pwait, "epoll_pwait", epoll_pwait)                                                                   \
    X(syscall, "syscall", syscall)                                                                               \
    X(exit_now, "_exit", _exit)

#define RP_REAL_EARLY_NEWER(X)                                                                                   \
    X(close_range, "close_range", close_range_t)                                                                 \
    X(epoll_pwait2, "epoll_pwait2", epoll_pwait2_t)

#define RP_REAL_LATE(X)                                                                                          \
    X(read_chk, "__read_chk", read_chk_t)                                                                        \
    X(recv_chk, "__recv_chk", recv_chk_t)                                                                        \
    X(recvfrom_chk, "__recvfrom_chk", recvfrom_chk_t)                                                            \
    X(nanosleep, "nanosleep", nanosleep)                                                                         \
    X(clock_nanosleep, "clock_nanosleep", clock_nanosleep)                                                       \
    X(usleep, "usleep", usleep)                                                                                  \
    X(sleep, "sleep", sleep)                                                                                     \
    X(pause, "pause", pause)                                                                                     \
    X(sigsuspend, "sigsuspend", sigsuspend)                                                                      \
    X(sigwait, "sigwait", sigwait)                                                                               \
    X(sigwaitinfo, "sigwaitinfo", sigwaitinfo)                                                                   \
    X(sigtimedwait, "sigtimedwait", sigtimedwait)                                                                \
    X(wait, "wait", wait)                                                                                        \
    X(waitpid, "waitpid", waitpid)                                                                               \
    X(wait3, "wait3", wait3)                                                                                     \
    X(wait4, "wait4", wait4)                                                                                     \
    X(waitid, "waitid", waitid)                                                                                  \
    X(pthread_cond_wait, "pthread_cond_wait", pthread_cond_wait)                                                 \
    X(pthread_cond_timedwait, "pthread_cond_timedwait", pthread_cond_timedwait)                                  \
    X(pthread_join, "pthread_join", pthread_join)                                                                \
    X(pthread_barrier_wait, "pthread_barrier_wait", pthread_barrier_wait)                                        \
    X(sem_wait, "sem_wait", sem_wait)                                                                            \
    X(sem_timedwait, "sem_timedwait", sem_timedwait)                                                             \
    X(getaddrinfo, "getaddrinfo", getaddrinfo)                                                                   \
    X(gethostbyname, "gethostbyname", gethostbyname)                                                             \
    X(getnameinfo, "getnameinfo", getnameinfo)                                                                   \
    X(pthread_mutex_lock, "pthread_mutex_lock", pthread_mutex_lock)                                              \
    X(pthread_mutex_trylock, "pthread_mutex_trylock", pthread_mutex_trylock)                                     \
    X(pthread_mutex_timedlock, "pthread_mutex_timedlock", pthread_mutex_timedlock)                               \
    X(pthread_rwlock_rdlock, "pthread_rwlock_rdlock", pthread_rwlock_rdlock)                                     \
    X(pthread_rwlock_wrlock, "pthread_rwlock_wrlock", pthread_rwlock_wrlock)                                     \
    X(pthread_rwlock_tryrdlock, "pthread_rwlock_tryrdlock", pthread_rwlock_tryrdlock)                            \
    X(pthread_rwlock_trywrlock, "pthread_rwlock_trywrlock", pthread_rwlock_trywrlock)                            \
    X(pthread_rwlock_timedrdlock, "pthread_rwlock_timedrdlock", pthread_rwlock_timedrdlock)                      \
    X(pthread_rwlock_timedwrlock, "pthread_rwlock_timedwrlock", pthread_rwlock_timedwrlock)                      \
    X(pthread_timedjoin_np, "pthread_timedjoin_np", pthread_timedjoin_np)                                        \
    X(pthread_kill, "pthread_kill", pthread_kill)                                                                \
    X(pthread_sigqueue, "pthread_sigqueue", pthread_sigqueue)                                                    \
    X(sigqueue, "sigqueue", sigqueue)                                                                            \
    X(raise, "raise", raise)                                                                                     \
    X(killpg, "killpg", killpg)                                                                                  \
    X(abort, "abort", abort)                                                                                     \
    X(exit, "exit", exit)                                                                                        \
    X(quick_exit, "quick_exit", quick_exit)                                                                      \
    X(pclose, "pclose", pclose)                                                                                  \
    X(lockf, "lockf", lockf)                                                                                     \
    X(lockf64, "lockf64", lockf64)                                                                               \
    X(gethostbyname2, "gethostbyname2", gethostbyname2)                                                          \
    X(gethostbyaddr, "gethostbyaddr", gethostbyaddr)                                                             \
    X(gethostbyname_r, "gethostbyname_r", gethostbyname_r)                                                       \
    X(gethostbyname2_r, "gethostbyname2_r", gethostbyname2_r)                                                    \
    X(gethostbyaddr_r, "gethostbyaddr_r", gethostbyaddr_r)                                                       \
    X(msgsnd, "msgsnd", msgsnd)                                                                                  \
    X(msgrcv, "msgrcv", msgrcv)                                                                                  \
    X(semop, "semop", semop)                                                                                     \
    X(semtimedop, "semtimedop", semtimedop)                                                                      \
    X(tcdrain, "tcdrain", tcdrain)                                                                               \
    X(tee, "tee", tee)                                                                                           \
    X(vmsplice, "vmsplice", vmsplice)                                                                            \
    X(flock, "flock", flock)                                                                                     \
    X(fsync, "fsync", fsync)                                                                                     \
    X(fdatasync, "fdatasync", fdatasync)                                                                         \
    X(kill, "kill", kill)                                                                                        \
    X(shutdown, "shutdown", shutdown)                                                                            \
    X(splice, "splice", splice)                                                                                  \
    X(sendfile, "sendfile", sendfile)                                                                            \
    X(sendfile64, "sendfile64", sendfile64)                                                                      \
    X(recvmmsg, "recvmmsg", recvmmsg)                                                                            \
    X(sendmmsg, "sendmmsg", sendmmsg)                                                                            \
    X(epoll_wait, "epoll_wait", epoll_wait)                                                                      \
    X(ppoll, "ppoll", ppoll)                                                                                     \
    X(select, "select", select)                                                                                  \
    X(pselect, "pselect", pselect)                                                                               \
    X(poll_chk, "__poll_chk", poll_chk_t)                                                                        \
    X(ppoll_chk, "__ppoll_chk", ppoll_chk_t)                                                                     \
    X(fclose, "fclose", fclose)                                                                                  \
    X(fdopen, "fdopen", fdopen)                                                                                  \
    X(freopen, "freopen", freopen)                                                                               \
    X(freopen64, "freopen64", freopen)                                                                           \
    X(clone, "clone", clone)                                                                                     \
    X(posix_spawn, "posix_spawn", posix_spawn)                                                                   \
    X(posix_spawnp, "posix_spawnp", posix_spawnp)                                                                \
    X(system, "system", system)                                                                                  \
    X(popen, "popen", popen)                                                                                     \
    X(daemon, "daemon", daemon)                                                                                  \
    X(execve, "execve", execve)                                                                                  \
    X(execv, "execv", execv)                                                                                     \
    X(execvp, "execvp", execvp)                                                                                  \
    X(execvpe, "execvpe", execvpe)                                                                               \
    X(fexecve, "fexecve", fexecve)                                                                               \
    X(setuid, "setuid", setuid)                                                                                  \
    X(setgid, "setgid", setgid)                                                                                  \
    X(seteuid, "seteuid", seteuid)                                                                               \
    X(setegid, "setegid", setegid)                                                                               \
    X(setreuid, "setreuid", setreuid)                                                                            \
    X(setregid, "setregid", setregid)                                                                            \
    X(setresuid, "setresuid", setresuid)                                                                         \
    X(setresgid, "setresgid", setresgid)                                                                         \
    X(setfsuid, "setfsuid", setfsuid)                                                                            \
    X(setfsgid, "setfsgid", setfsgid)                                                                            \
    X(setgroups, "setgroups", setgroups)                                                                         \
    X(initgroups, "initgroups", initgroups)                                                                      \
    X(pthread_cancel, "pthread_cancel", pthread_cancel)

#define RP_REAL_NEWER(X)                                                                                         \
    X(pthread_cond_clockwait, "pthread_cond_clockwait", cond_clockwait_t)                                        \
    X(sem_clockwait, "sem_clockwait", sem_clockwait_t)                                                           \
    X(pthread_mutex_clocklock, "pthread_mutex_clocklock", mutex_clocklock_t)                                     \
    X(pthread_rwlock_clockrdlock, "pthread_rwlock_clockrdlock", rwlock_clocklock_t)                              \
    X(pthread_rwlock_clockwrlock, "pthread_rwlock_clockwrlock", rwlock_clocklock_t)                              \
    X(pthread_clockjoin_np, "pthread_clockjoin_np", clockjoin_t)                                                 \
    X(tgkill, "tgkill", tgkill_t)                                                                                \
    X(mq_send, "mq_send", mq_send)                                                                               \
    X(mq_timedsend, "mq_timedsend", mq_timedsend)                                                                \
    X(mq_receive, "mq_receive", mq_receive)                                                                      \
    X(mq_timedreceive, "mq_timedreceive", mq_timedreceive)                                                       \
    X(aio_suspend, "aio_suspend", aio_suspend)                                                                   \
    X(thrd_sleep, "thrd_sleep", thrd_sleep)                                                                      \
    X(thrd_join, "thrd_join", thrd_join)                                                                         \
    X(mtx_lock, "mtx_lock", mtx_lock)                                                                            \
    X(mtx_timedlock, "mtx_timedlock", mtx_timedlock)                                                             \
    X(cnd_wait, "cnd_wait", cnd_wait)                                                                            \
    X(cnd_timedwait, "cnd_timedwait", cnd_timedwait)                                                             \
    X(closefrom, "closefrom", closefrom_t)                                                                       \
    X(bare_fork, "_Fork", bare_fork_t)                                                                           \
    X(pidfd_spawn, "pidfd_spawn", spawn_pidfd_t)                                                                 \
    X(pidfd_spawnp, "pidfd_spawnp", spawn_pidfd_t)                                                               \
    X(execveat, "execveat", execveat_t)

struct rp_real {
#define MEMBER(member, symbol, type) __typeof__(type) *member;
    RP_REAL_EARLY(MEMBER)
    RP_REAL_EARLY_NEWER(MEMBER)
    RP_REAL_LATE(MEMBER)
    RP_REAL_NEWER(MEMBER)
#undef MEMBER
};
extern struct rp_real rp_real;

/* Written once by rp_shim_start(), but for the any_… and `restricted`, which go
 * from false to true, `short_cut`, which goes the other way, and `made_epoll`. Any
 * thread looks at them, at any time and without a lock: by RP_SHIM_IS and
 * RP_SHIM_SET alone. */
struct rp_shim {
    bool ready;      /* the real functions are there */
    bool on;         /* ready, and not RINGPOLL=off */
    bool require;    /* RINGPOLL=require */
    bool any_set;    /* this process, or its parents, made one: reads and polls matter */
    bool made_epoll; /* this very process made an epoll instance: it reports at its end */
    bool restricted; /* a seccomp filter was announced: never try io_uring_setup again */
    bool short_cut;  /* no seccomp filter: a stream socket may be read by recv(), see io.c */
    bool adopts;     /* the profile lets the ring receive */
    bool batches;    /* and send */
    bool accepts;    /* and accept */
    bool any_cancel; /* pthread_cancel was called */
    bool can_cancel; /* the thread key that wait.c needs */
};
extern struct rp_shim rp_shim;
#define RP_SHIM_IS(what) __atomic_load_n(&rp_shim.what, __ATOMIC_RELAXED)
#define RP_SHIM_SET(what, value) __atomic_store_n(&rp_shim.what, (value), __ATOMIC_RELAXED)

/* 0, or the thread that called vfork and has not been resumed yet. */
extern __thread pid_t rp_shim_vfork_owner;

/* Finds the real functions and reads the environment. Any number of times, from
 * anywhere; returns at once while another call is on its way. */
void rp_shim_start(void);
bool rp_shim_in_vfork_child(void);

/* The library wants to hear of what this thread does. */
static inline bool rp_shim_active(void)
{
    return LIKELY(RP_SHIM_IS(on)) && (LIKELY(rp_shim_vfork_owner == 0) || !rp_shim_in_vfork_child());
}
/* The same where something begins that the library has to know. Before that, a
 * close or a fcntl is none of its business, and may come out of a malloc that is
 * being set up: those never start the shim. */
static inline bool rp_shim_awake(void)
{
    if (UNLIKELY(!RP_SHIM_IS(ready)))
        rp_shim_start();
    return rp_shim_active();
}
/* The same for the hot paths that matter only once there is a set. */
static inline bool rp_shim_watching(void)
{
    return RP_SHIM_IS(any_set) && (LIKELY(rp_shim_vfork_owner == 0) || !rp_shim_in_vfork_child());
}

/* Batched writes go out. */
static inline void rp_shim_flush(void)
{
    if (UNLIKELY(rp_shim.batches) && rp_shim_watching())
        ringpoll_flush();
}

/* The same before a call that blocks unless `fd` has O_NONBLOCK. */
static inline void rp_shim_flush_if_blocking(int fd)
{
    if (UNLIKELY(rp_shim.batches) && rp_shim_watching() && !ringpoll_fd_is_nonblock(fd))
        ringpoll_flush();
}

static inline bool rp_shim_single_threaded(void)
{
#ifdef RP_SHIM_HAVE_SINGLE_THREADED
    return __libc_single_threaded;
#else
    return false;
#endif
}

/* A member of RP_REAL_LATE or _NEWER; NULL where libc has none. */
#define RP_LATE(member) (LIKELY(rp_real.member) ? rp_real.member : (rp_shim_start(), rp_real.member))

static inline int rp_fail(int error)
{
    errno = error;
    return -1;
}
/* -errno → libc's convention. */
static inline long rp_answer(long result)
{
    if (UNLIKELY(result < 0)) {
        errno = (int)-result;
        return -1;
    }
    return result;
}

/* A system call that no interposed name sees: the result, or -errno. */
long rp_raw(long number, long a, long b, long c, long d, long e, long f);

/* ---- shared between libc's name and the same call by way of syscall() */
int rp_shim_epoll_create(int flags);
int rp_shim_epoll_ctl(int epfd, int op, int fd, struct epoll_event *event);
static inline const struct timespec *rp_shim_milliseconds(int timeout, struct timespec *storage)
{
    if (timeout < 0)
        return NULL;
    storage->tv_sec = (unsigned)timeout / 1000;
    storage->tv_nsec = (long)((unsigned)timeout % 1000 * 1000000);
    return storage;
}
void rp_shim_wait_forked(void);        /* wait.c, in a fork's child */
bool rp_shim_wait_start(void);         /* wait.c, from rp_shim_start() */

bool rp_shim_before_close(int fd);     /* false: the library's own, answer EBADF */
/* Skips the library's own; 0 or -errno. */
int rp_shim_close_range(unsigned first, unsigned last, unsigned flags);
/* What dup2 and dup3 need before and after; false with errno set. */
bool rp_shim_before_dup_onto(int from, int to);
void rp_shim_after_dup(int from, int to);
bool rp_shim_before_fcntl(int fd, int command); /* false: answer EBADF */
void rp_shim_after_fcntl(int fd, int command, long argument, int result);
void rp_shim_after_accept(int listener, int fd, int flags);
/* Before and after accept4. `result` is libc's. */
bool rp_shim_is_listener(int fd); /* or may be one */
void rp_shim_before_listener_ends(int fd); /* shutdown */
bool rp_shim_answers_accept(int fd, struct sockaddr *address, socklen_t *length, int flags, int *ret_fd);
void rp_shim_accepted(int fd, int result, int flags, bool with_address);
void rp_shim_after_connect(int fd, const struct sockaddr *address, int error);
uint32_t rp_shim_socket_kind(int domain, int type, int protocol);
uint32_t rp_shim_socket_flags(int type);

void rp_shim_after_read(int fd, size_t asked, long result);
void rp_shim_after_readv(int fd, const struct iovec *iov, int count, long result);
void rp_shim_after_recv(int fd, size_t asked, int flags, long result);
void rp_shim_after_recvmsg(int fd, const struct msghdr *message, int flags, long result);
void rp_shim_before_sendmsg(const struct msghdr *message);
/* True: the library has something for one of them. Then the call must not wait, and
 * its result goes through the second. */
bool rp_shim_before_poll(const struct pollfd *fds, nfds_t count);
int rp_shim_after_poll(struct pollfd *fds, nfds_t count, int result);
int rp_shim_before_setsockopt(int fd, int level, int name); /* 0, or the errno to fail with */

void rp_shim_before_child(void); /* one that no fork handler sees */
void rp_shim_before_exec(void);
void rp_shim_before_exit(void);
void rp_shim_before_filter(void); /* a seccomp filter */
void rp_shim_new_credentials(void);

/* ---- report.c */
void rp_report_start(void);   /* reads RINGPOLL_STATS */
void rp_report_write(void);   /* once per process */
void rp_report_forked(void);
/* Ends the process: a ring was required, and io_uring_setup said `error`. */
_Noreturn void rp_report_no_ring(int error);

#ifdef RP_SHIM_INSIDE
/* Of the library that it is inside: the variable that says 0 for epoll. */
extern const char rp_shim_inside_switch[];
#endif

#pragma GCC visibility pop

#endif
