/* SPDX-License-Identifier: MIT
 *
 * Calls before which batched writes go out: those that can block, since what they
 * wait for may be an answer to what was written, and those that tell somebody else
 * something that comes after it. Only profile "throughput" batches; in any other,
 * and before the first set, each of these is one test and a jump.
 *
 * Not here: pthread_mutex_lock (malloc replacements call it before anything can be
 * resolved; who holds a mutex while he waits for this thread's peer is in trouble
 * anyway), raw futexes, stdio's own writes, and death by SIGKILL. The manual says so.
 */
#include "preload.h"

#include <netdb.h>
#include <semaphore.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/wait.h>

/* Name, result, what to answer where libc has no such function, parameters and
 * arguments. */
#define FLUSHED(result, name, missing, parameters, arguments) \
    EXPORT result name parameters                             \
    {                                                         \
        rp_shim_flush();                                      \
        return RP_LATE(name) ? rp_real.name arguments : (missing); \
    }

FLUSHED(int, nanosleep, rp_fail(ENOSYS), (const struct timespec *time, struct timespec *left), (time, left))
FLUSHED(int, clock_nanosleep, ENOSYS,
        (clockid_t clock, int flags, const struct timespec *time, struct timespec *left), (clock, flags, time, left))
FLUSHED(int, usleep, rp_fail(ENOSYS), (useconds_t time), (time))
FLUSHED(unsigned, sleep, 0, (unsigned seconds), (seconds))
FLUSHED(int, pause, rp_fail(ENOSYS), (void), ())
FLUSHED(int, sigsuspend, rp_fail(ENOSYS), (const sigset_t *mask), (mask))
FLUSHED(int, sigwait, ENOSYS, (const sigset_t *restrict set, int *restrict number), (set, number))
FLUSHED(int, sigwaitinfo, rp_fail(ENOSYS), (const sigset_t *restrict set, siginfo_t *restrict info), (set, info))
FLUSHED(int, sigtimedwait, rp_fail(ENOSYS),
        (const sigset_t *restrict set, siginfo_t *restrict info, const struct timespec *restrict time),
        (set, info, time))

FLUSHED(pid_t, wait, rp_fail(ENOSYS), (int *status), (status))
FLUSHED(pid_t, waitpid, rp_fail(ENOSYS), (pid_t pid, int *status, int options), (pid, status, options))
FLUSHED(pid_t, wait3, rp_fail(ENOSYS), (int *status, int options, struct rusage *usage), (status, options, usage))
FLUSHED(pid_t, wait4, rp_fail(ENOSYS), (pid_t pid, int *status, int options, struct rusage *usage),
        (pid, status, options, usage))
FLUSHED(int, waitid, rp_fail(ENOSYS), (idtype_t type, id_t id, siginfo_t *info, int options),
        (type, id, info, options))

FLUSHED(int, pthread_cond_wait, ENOSYS,
        (pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex), (condition, mutex))
FLUSHED(int, pthread_cond_timedwait, ENOSYS,
        (pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex, const struct timespec *restrict time),
        (condition, mutex, time))
FLUSHED(int, pthread_join, ENOSYS, (pthread_t thread, void **result), (thread, result))
FLUSHED(int, pthread_barrier_wait, ENOSYS, (pthread_barrier_t *barrier), (barrier))
FLUSHED(int, sem_wait, rp_fail(ENOSYS), (sem_t *semaphore), (semaphore))
FLUSHED(int, sem_timedwait, rp_fail(ENOSYS), (sem_t *restrict semaphore, const struct timespec *restrict time),
        (semaphore, time))

FLUSHED(int, getaddrinfo, EAI_SYSTEM,
        (const char *restrict node, const char *restrict service, const struct addrinfo *restrict hints,
         struct addrinfo **restrict result),
        (node, service, hints, result))
FLUSHED(struct hostent *, gethostbyname, NULL, (const char *name), (name))
FLUSHED(int, getnameinfo, EAI_SYSTEM,
        (const struct sockaddr *restrict address, socklen_t length, char *restrict host, socklen_t host_length,
         char *restrict service, socklen_t service_length, int flags),
        (address, length, host, host_length, service, service_length, flags))

FLUSHED(int, flock, rp_fail(ENOSYS), (int fd, int operation), (fd, operation))
FLUSHED(int, fsync, rp_fail(ENOSYS), (int fd), (fd))
FLUSHED(int, fdatasync, rp_fail(ENOSYS), (int fd), (fd))
FLUSHED(int, kill, rp_fail(ENOSYS), (pid_t pid, int number), (pid, number))

/* What this fd still has to send comes before its end. */
EXPORT int shutdown(int fd, int how)
{
    rp_shim_flush();
    if (UNLIKELY(rp_shim.batches) && rp_shim_watching() && how != SHUT_RD)
        ringpoll_fd_finish(fd);
    if (UNLIKELY(rp_shim.accepts) && rp_shim_watching() && how != SHUT_WR && rp_shim_is_listener(fd))
        rp_shim_before_listener_ends(fd);
    return RP_LATE(shutdown) ? rp_real.shutdown(fd, how) : rp_fail(ENOSYS);
}
