/* SPDX-License-Identifier: MIT
 *
 * Calls before which batched writes go out: those that can block, since what they
 * wait for may be an answer to what was written, and those that tell somebody else
 * something that comes after it. Only profile "throughput" batches; in any other,
 * and before the first set, each of these is one test and a jump; with nothing held
 * back it is one look at a variable of the thread more.
 *
 * Locks are taken without a flush where they are free. They are also what is called
 * earliest of all, by a malloc that is being set up or other libraries' constructors:
 * so they find their real function by themselves and start nothing.
 *
 * Not here: what wakes another thread of the program (it shares memory anyway, and
 * what it writes is not ordered behind what this one has written), futexes by inline
 * assembler, stdio's own reads and writes, and death by a signal. The manual says so.
 */
#include "preload.h"

#include <dlfcn.h>

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
FLUSHED(int, pthread_cond_clockwait, ENOSYS,
        (pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex, clockid_t clock,
         const struct timespec *restrict time),
        (condition, mutex, clock, time))
FLUSHED(int, pthread_join, ENOSYS, (pthread_t thread, void **result), (thread, result))
FLUSHED(int, pthread_timedjoin_np, ENOSYS, (pthread_t thread, void **result, const struct timespec *time),
        (thread, result, time))
FLUSHED(int, pthread_clockjoin_np, ENOSYS,
        (pthread_t thread, void **result, clockid_t clock, const struct timespec *time),
        (thread, result, clock, time))
FLUSHED(int, pthread_barrier_wait, ENOSYS, (pthread_barrier_t *barrier), (barrier))
FLUSHED(int, sem_wait, rp_fail(ENOSYS), (sem_t *semaphore), (semaphore))
FLUSHED(int, sem_timedwait, rp_fail(ENOSYS), (sem_t *restrict semaphore, const struct timespec *restrict time),
        (semaphore, time))
FLUSHED(int, sem_clockwait, rp_fail(ENOSYS),
        (sem_t *restrict semaphore, clockid_t clock, const struct timespec *restrict time), (semaphore, clock, time))
FLUSHED(int, thrd_sleep, -2, (const struct timespec *time, struct timespec *left), (time, left))
FLUSHED(int, thrd_join, thrd_error, (thrd_t thread, int *result), (thread, result))
FLUSHED(int, cnd_wait, thrd_error, (cnd_t *condition, mtx_t *mutex), (condition, mutex))
FLUSHED(int, cnd_timedwait, thrd_error,
        (cnd_t *restrict condition, mtx_t *restrict mutex, const struct timespec *restrict time),
        (condition, mutex, time))

FLUSHED(int, getaddrinfo, EAI_SYSTEM,
        (const char *restrict node, const char *restrict service, const struct addrinfo *restrict hints,
         struct addrinfo **restrict result),
        (node, service, hints, result))
FLUSHED(struct hostent *, gethostbyname, NULL, (const char *name), (name))
FLUSHED(struct hostent *, gethostbyname2, NULL, (const char *name, int family), (name, family))
FLUSHED(struct hostent *, gethostbyaddr, NULL, (const void *address, socklen_t length, int family),
        (address, length, family))
FLUSHED(int, gethostbyname_r, ENOSYS,
        (const char *restrict name, struct hostent *restrict host, char *restrict buffer, size_t size,
         struct hostent **restrict result, int *restrict error),
        (name, host, buffer, size, result, error))
FLUSHED(int, gethostbyname2_r, ENOSYS,
        (const char *restrict name, int family, struct hostent *restrict host, char *restrict buffer, size_t size,
         struct hostent **restrict result, int *restrict error),
        (name, family, host, buffer, size, result, error))
FLUSHED(int, gethostbyaddr_r, ENOSYS,
        (const void *restrict address, socklen_t length, int family, struct hostent *restrict host,
         char *restrict buffer, size_t size, struct hostent **restrict result, int *restrict error),
        (address, length, family, host, buffer, size, result, error))
FLUSHED(int, getnameinfo, EAI_SYSTEM,
        (const struct sockaddr *restrict address, socklen_t length, char *restrict host, socklen_t host_length,
         char *restrict service, socklen_t service_length, int flags),
        (address, length, host, host_length, service, service_length, flags))

FLUSHED(int, flock, rp_fail(ENOSYS), (int fd, int operation), (fd, operation))
FLUSHED(int, lockf, rp_fail(ENOSYS), (int fd, int command, off_t length), (fd, command, length))
FLUSHED(int, lockf64, rp_fail(ENOSYS), (int fd, int command, off64_t length), (fd, command, length))
FLUSHED(int, fsync, rp_fail(ENOSYS), (int fd), (fd))
FLUSHED(int, fdatasync, rp_fail(ENOSYS), (int fd), (fd))
FLUSHED(int, tcdrain, rp_fail(ENOSYS), (int fd), (fd))
FLUSHED(int, aio_suspend, rp_fail(ENOSYS),
        (const struct aiocb *const list[], int count, const struct timespec *restrict time), (list, count, time))
FLUSHED(int, pclose, rp_fail(ENOSYS), (FILE *stream), (stream))

FLUSHED(int, msgsnd, rp_fail(ENOSYS), (int queue, const void *message, size_t length, int flags),
        (queue, message, length, flags))
FLUSHED(ssize_t, msgrcv, rp_fail(ENOSYS), (int queue, void *message, size_t length, long type, int flags),
        (queue, message, length, type, flags))
FLUSHED(int, semop, rp_fail(ENOSYS), (int semaphores, struct sembuf *operations, size_t count),
        (semaphores, operations, count))
FLUSHED(int, semtimedop, rp_fail(ENOSYS),
        (int semaphores, struct sembuf *operations, size_t count, const struct timespec *time),
        (semaphores, operations, count, time))
FLUSHED(int, mq_send, rp_fail(ENOSYS), (mqd_t queue, const char *message, size_t length, unsigned priority),
        (queue, message, length, priority))
FLUSHED(int, mq_timedsend, rp_fail(ENOSYS),
        (mqd_t queue, const char *message, size_t length, unsigned priority, const struct timespec *time),
        (queue, message, length, priority, time))
FLUSHED(ssize_t, mq_receive, rp_fail(ENOSYS), (mqd_t queue, char *message, size_t length, unsigned *priority),
        (queue, message, length, priority))
FLUSHED(ssize_t, mq_timedreceive, rp_fail(ENOSYS),
        (mqd_t queue, char *restrict message, size_t length, unsigned *restrict priority,
         const struct timespec *restrict time),
        (queue, message, length, priority, time))

FLUSHED(int, kill, rp_fail(ENOSYS), (pid_t pid, int number), (pid, number))
FLUSHED(int, killpg, rp_fail(ENOSYS), (pid_t group, int number), (group, number))
FLUSHED(int, tgkill, rp_fail(ENOSYS), (pid_t group, pid_t thread, int number), (group, thread, number))
FLUSHED(int, raise, rp_fail(ENOSYS), (int number), (number))
FLUSHED(int, sigqueue, rp_fail(ENOSYS), (pid_t pid, int number, const union sigval value), (pid, number, value))
FLUSHED(int, pthread_kill, ENOSYS, (pthread_t thread, int number), (thread, number))
FLUSHED(int, pthread_sigqueue, ENOSYS, (pthread_t thread, int number, const union sigval value),
        (thread, number, value))

/* Into a pipe, whose reader hears of it. */
FLUSHED(ssize_t, tee, rp_fail(ENOSYS), (int from, int to, size_t length, unsigned flags), (from, to, length, flags))
FLUSHED(ssize_t, vmsplice, rp_fail(ENOSYS), (int fd, const struct iovec *iov, size_t count, unsigned flags),
        (fd, iov, count, flags))

/* ------------------------------------------------------------------- locks */

/* A name that is found costs dlsym no allocation and no lock but the loader's. */
static __attribute__((noinline)) void *find(void *at, const char *symbol)
{
    void *found = dlsym(RTLD_NEXT, symbol);
    __atomic_store_n((void **)at, found, __ATOMIC_RELEASE);
    return found;
}
#define LOCK_IS_THERE(member) (LIKELY(rp_real.member) || find((void *)&rp_real.member, #member))

/* `attempt` answers at once, as the call itself would; EBUSY: it would block. */
#define FLUSHED_LOCK(name, attempt, parameters, arguments, lock)                                                 \
    EXPORT int name parameters                                                                                   \
    {                                                                                                            \
        if (UNLIKELY(rp_shim.batches) && rp_shim_watching() && LOCK_IS_THERE(attempt)) {                         \
            int result = rp_real.attempt(lock);                                                                  \
            if (LIKELY(result != EBUSY))                                                                         \
                return result;                                                                                   \
            ringpoll_flush();                                                                                    \
        }                                                                                                        \
        return LOCK_IS_THERE(name) ? rp_real.name arguments : ENOSYS;                                            \
    }

FLUSHED_LOCK(pthread_mutex_lock, pthread_mutex_trylock, (pthread_mutex_t *mutex), (mutex), mutex)
FLUSHED_LOCK(pthread_mutex_timedlock, pthread_mutex_trylock,
             (pthread_mutex_t *restrict mutex, const struct timespec *restrict time), (mutex, time), mutex)
FLUSHED_LOCK(pthread_mutex_clocklock, pthread_mutex_trylock,
             (pthread_mutex_t *restrict mutex, clockid_t clock, const struct timespec *restrict time),
             (mutex, clock, time), mutex)
FLUSHED_LOCK(pthread_rwlock_rdlock, pthread_rwlock_tryrdlock, (pthread_rwlock_t *lock), (lock), lock)
FLUSHED_LOCK(pthread_rwlock_wrlock, pthread_rwlock_trywrlock, (pthread_rwlock_t *lock), (lock), lock)
FLUSHED_LOCK(pthread_rwlock_timedrdlock, pthread_rwlock_tryrdlock,
             (pthread_rwlock_t *restrict lock, const struct timespec *restrict time), (lock, time), lock)
FLUSHED_LOCK(pthread_rwlock_timedwrlock, pthread_rwlock_trywrlock,
             (pthread_rwlock_t *restrict lock, const struct timespec *restrict time), (lock, time), lock)
FLUSHED_LOCK(pthread_rwlock_clockrdlock, pthread_rwlock_tryrdlock,
             (pthread_rwlock_t *restrict lock, clockid_t clock, const struct timespec *restrict time),
             (lock, clock, time), lock)
FLUSHED_LOCK(pthread_rwlock_clockwrlock, pthread_rwlock_trywrlock,
             (pthread_rwlock_t *restrict lock, clockid_t clock, const struct timespec *restrict time),
             (lock, clock, time), lock)
FLUSHED(int, mtx_lock, thrd_error, (mtx_t *mutex), (mutex))
FLUSHED(int, mtx_timedlock, thrd_error, (mtx_t *restrict mutex, const struct timespec *restrict time), (mutex, time))

/* ------------------------------------------------------------------ the end
 *
 * What the program's own exit handlers do can take its time. */

EXPORT void exit(int status)
{
    rp_shim_flush();
    if (RP_LATE(exit))
        rp_real.exit(status);
    _exit(status);
}

EXPORT void quick_exit(int status)
{
    rp_shim_flush();
    if (RP_LATE(quick_exit))
        rp_real.quick_exit(status);
    _exit(status);
}

EXPORT void abort(void)
{
    rp_shim_flush();
    if (LOCK_IS_THERE(abort))
        rp_real.abort();
    __builtin_trap();
}

/* What this fd still has to send comes before its end. */
EXPORT int shutdown(int fd, int how)
{
    rp_shim_flush();
    if (rp_shim_watching())
        ringpoll_fd_shutdown(fd, how);
    if (UNLIKELY(rp_shim.accepts) && rp_shim_watching() && how != SHUT_WR && rp_shim_is_listener(fd))
        rp_shim_before_listener_ends(fd);
    return RP_LATE(shutdown) ? rp_real.shutdown(fd, how) : rp_fail(ENOSYS);
}
