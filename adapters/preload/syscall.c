/* SPDX-License-Identifier: MIT
 *
 * syscall(): the same calls by number. libuv closes by it, libseccomp installs
 * its filter by it, and liburing-free users of io_uring make their ring by it.
 *
 * A ring that the program drives itself could change an epoll set behind the
 * library's back (IORING_OP_EPOLL_CTL), which is what libuv's does, so
 * io_uring_setup answers ENOSYS here: everybody who tries it copes with a kernel
 * that has none.
 *
 * These are raw calls: no cancellation point, sizes of kernel types as they
 * came. Numbers that the shim has no interest in go on with all six arguments.
 */
#include "preload.h"

#define KERNEL_SIGSET 8
#define SECCOMP_STRICT 0
#define SECCOMP_FILTER 1
#define NUMBER_IO_URING_SETUP 425

static long pass(long number, long a, long b, long c, long d, long e, long f)
{
    return rp_real.syscall(number, a, b, c, d, e, f);
}

/* 64 bits on every machine, unlike libc's. */
struct kernel_timespec {
    int64_t tv_sec, tv_nsec;
};

/* epoll_wait by number. */
static long wait_by_number(long a, long b, long c, const struct timespec *timeout, long mask, long size)
{
    if (mask && size != KERNEL_SIGSET)
        return rp_fail(EINVAL);
    sigset_t wide;
    const sigset_t *set = NULL;
    if (mask) {
        /* libc's sigset_t is larger; only the kernel's part is looked at. */
        sigemptyset(&wide);
        *(uint64_t *)(void *)&wide = *(const uint64_t *)(void *)mask;
        set = &wide;
    }
    return rp_answer(ringpoll_wait((int)a, (struct epoll_event *)b, (int)c, timeout, set));
}

/* Those that matter to whoever has the library's attention; false: not one of
 * them, or nothing but a notice was due. */
/* Where the library receives, what reads or asks what is unread goes by libc's
 * name. */
static bool stream_by_number(long number, long a, long b, long c, long d, long e, long f, long *result)
{
    switch (number) {
    case SYS_read:
        *result = read((int)a, (void *)b, (size_t)c);
        return true;
    case SYS_readv:
        *result = readv((int)a, (const struct iovec *)b, (int)c);
        return true;
    case SYS_recvfrom:
        *result = recvfrom((int)a, (void *)b, (size_t)c, (int)d, (struct sockaddr *)e, (socklen_t *)f);
        return true;
    case SYS_recvmsg:
        *result = recvmsg((int)a, (struct msghdr *)b, (int)c);
        return true;
    case SYS_recvmmsg:
        *result = recvmmsg((int)a, (struct mmsghdr *)b, (unsigned)c, (int)d, (struct timespec *)e);
        return true;
    case SYS_write:
        *result = write((int)a, (const void *)b, (size_t)c);
        return true;
    case SYS_writev:
        *result = writev((int)a, (const struct iovec *)b, (int)c);
        return true;
    case SYS_sendto:
        *result = sendto((int)a, (const void *)b, (size_t)c, (int)d, (const struct sockaddr *)e, (socklen_t)f);
        return true;
    case SYS_sendmsg:
        *result = sendmsg((int)a, (const struct msghdr *)b, (int)c);
        return true;
    case SYS_sendmmsg:
        *result = sendmmsg((int)a, (struct mmsghdr *)b, (unsigned)c, (int)d);
        return true;
    case SYS_splice:
        *result = splice((int)a, (off64_t *)b, (int)c, (off64_t *)d, (size_t)e, (unsigned)f);
        return true;
    case SYS_ioctl:
        *result = ioctl((int)a, (unsigned long)b, (void *)c);
        return true;
    case SYS_getsockopt:
        *result = getsockopt((int)a, (int)b, (int)c, (void *)d, (socklen_t *)e);
        return true;
    case SYS_setsockopt:
        *result = setsockopt((int)a, (int)b, (int)c, (const void *)d, (socklen_t)e);
        return true;
#ifdef SYS_poll
    case SYS_poll:
        *result = poll((struct pollfd *)a, (nfds_t)b, (int)c);
        return true;
#endif
    case SYS_ppoll:
        *result = ppoll((struct pollfd *)a, (nfds_t)b, (const struct timespec *)c, (const sigset_t *)d);
        return true;
#ifdef SYS_select
    case SYS_select:
        *result = select((int)a, (fd_set *)b, (fd_set *)c, (fd_set *)d, (struct timeval *)e);
        return true;
#endif
    default:
        return false;
    }
}

static bool by_number(long number, long a, long b, long c, long d, long e, long f, long *result)
{
    struct timespec storage;
    switch (number) {
    case SYS_close:
        *result = rp_shim_before_close((int)a) ? pass(number, a, b, c, d, e, f) : rp_fail(EBADF);
        return true;
#ifdef SYS_close_range
    case SYS_close_range:
        *result = rp_answer(rp_shim_close_range((unsigned)a, (unsigned)b, (unsigned)c));
        return true;
#endif
    case SYS_dup:
        if (ringpoll_fd_is_internal((int)a)) {
            *result = rp_fail(EBADF);
            return true;
        }
        *result = pass(number, a, b, c, d, e, f);
        if (*result >= 0)
            rp_shim_after_dup((int)a, (int)*result);
        return true;
#ifdef SYS_dup2
    case SYS_dup2:
        *result = dup2((int)a, (int)b);
        return true;
#endif
    case SYS_dup3:
        *result = dup3((int)a, (int)b, (int)c);
        return true;
    case SYS_fcntl:
#ifdef SYS_fcntl64
    case SYS_fcntl64:
#endif
        if (!rp_shim_before_fcntl((int)a, (int)b)) {
            *result = rp_fail(EBADF);
            return true;
        }
        *result = pass(number, a, b, c, d, e, f);
        rp_shim_after_fcntl((int)a, (int)b, c, (int)*result);
        return true;
    case SYS_ioctl:
        *result = pass(number, a, b, c, d, e, f);
        if (b == FIONBIO && *result == 0)
            ringpoll_fd_nonblock((int)a, *(const int *)c != 0);
        return true;

#ifdef SYS_epoll_create
    case SYS_epoll_create:
        *result = (int)a <= 0 ? rp_fail(EINVAL) : rp_shim_epoll_create(0);
        return true;
#endif
    case SYS_epoll_create1:
        *result = rp_shim_epoll_create((int)a);
        return true;
    case SYS_epoll_ctl:
        *result = rp_shim_epoll_ctl((int)a, (int)b, (int)c, (struct epoll_event *)d);
        return true;
#ifdef SYS_epoll_wait
    case SYS_epoll_wait:
        *result = wait_by_number(a, b, c, rp_shim_milliseconds((int)d, &storage), 0, 0);
        return true;
#endif
    case SYS_epoll_pwait:
        *result = wait_by_number(a, b, c, rp_shim_milliseconds((int)d, &storage), e, f);
        return true;
#ifdef SYS_epoll_pwait2
    case SYS_epoll_pwait2:
        if (d) {
            const struct kernel_timespec *timeout = (const struct kernel_timespec *)d;
            storage.tv_sec = (time_t)timeout->tv_sec;
            storage.tv_nsec = (long)timeout->tv_nsec;
        }
        *result = wait_by_number(a, b, c, d ? &storage : NULL, e, f);
        return true;
#endif

    case SYS_socket:
        *result = pass(number, a, b, c, d, e, f);
        if (*result >= 0)
            ringpoll_fd_opened((int)*result, rp_shim_socket_kind((int)a, (int)b, (int)c) | rp_shim_socket_flags((int)b));
        return true;
#ifdef SYS_accept
    case SYS_accept:
#endif
    case SYS_accept4:
    {
        int flags = number == SYS_accept4 ? (int)d : 0, made;
        if (rp_shim_answers_accept((int)a, (struct sockaddr *)b, (socklen_t *)c, flags, &made)) {
            *result = made;
            return true;
        }
        *result = pass(number, a, b, c, d, e, f);
        rp_shim_accepted((int)a, (int)*result, flags, b != 0);
        return true;
    }
    case SYS_connect: {
        *result = pass(number, a, b, c, d, e, f);
        int saved = errno;
        rp_shim_after_connect((int)a, (size_t)c >= sizeof(sa_family_t) ? (const struct sockaddr *)b : NULL,
                              *result == 0 ? 0 : saved);
        errno = saved;
        return true;
    }
    case SYS_listen:
        *result = pass(number, a, b, c, d, e, f);
        if (*result == 0 && rp_shim.accepts)
            ringpoll_fd_listening((int)a, (int)b);
        else if (*result == 0)
            ringpoll_fd_leave((int)a);
        return true;

    case SYS_read:
        *result = pass(number, a, b, c, d, e, f);
        rp_shim_after_read((int)a, (size_t)c, *result);
        return true;
    case SYS_readv:
        *result = pass(number, a, b, c, d, e, f);
        rp_shim_after_readv((int)a, (const struct iovec *)b, (int)c, *result);
        return true;
    case SYS_recvfrom:
        *result = pass(number, a, b, c, d, e, f);
        rp_shim_after_recv((int)a, (size_t)c, (int)d, *result);
        return true;
    case SYS_recvmsg:
        *result = pass(number, a, b, c, d, e, f);
        rp_shim_after_recvmsg((int)a, (const struct msghdr *)b, (int)c, *result);
        return true;
    case SYS_sendmsg:
        if (b)
            rp_shim_before_sendmsg((const struct msghdr *)b);
        return false;
    case SYS_sendmmsg:
        for (long i = 0; b && i < c; i++)
            rp_shim_before_sendmsg(&((const struct mmsghdr *)b)[i].msg_hdr);
        return false;
#ifdef SYS_poll
    case SYS_poll:
#endif
    case SYS_ppoll:
        rp_shim_before_poll((const struct pollfd *)a, (nfds_t)b);
        return false;

#ifdef SYS_fork
    case SYS_fork:
#endif
#ifdef SYS_clone3
    case SYS_clone3:
#endif
#ifdef SYS_vfork
    case SYS_vfork:
#endif
    case SYS_clone:
        rp_shim_before_child();
        return false;
    case SYS_execve:
#ifdef SYS_execveat
    case SYS_execveat:
#endif
        rp_shim_before_exec();
        return false;
    case SYS_exit_group:
        rp_shim_before_exit();
        return false;

    case SYS_prctl:
        if (a == PR_SET_SECCOMP)
            rp_shim_before_filter();
        return false;
#ifdef SYS_seccomp
    case SYS_seccomp:
        if (a == SECCOMP_STRICT || a == SECCOMP_FILTER)
            rp_shim_before_filter();
        return false;
#endif
    case SYS_setuid:
    case SYS_setgid:
    case SYS_setreuid:
    case SYS_setregid:
    case SYS_setresuid:
    case SYS_setresgid:
    case SYS_setfsuid:
    case SYS_setfsgid:
    case SYS_setgroups:
#ifdef SYS_setuid32
    case SYS_setuid32:
    case SYS_setgid32:
    case SYS_setreuid32:
    case SYS_setregid32:
    case SYS_setresuid32:
    case SYS_setresgid32:
    case SYS_setfsuid32:
    case SYS_setfsgid32:
    case SYS_setgroups32:
#endif
        rp_shim_new_credentials();
        return false;
    case NUMBER_IO_URING_SETUP: /* see above */
        *result = rp_fail(ENOSYS);
        return true;
    default:
        return false;
    }
}

/* Calls that neither block nor tell anybody anything, and those that flush by
 * themselves. */
static bool keeps_batch(long number, long operation)
{
    switch (number) {
    case SYS_futex:
        switch (operation & 0x7f) {
        case 0: case 6: case 9: case 11: case 13: /* the waits: WAIT, LOCK_PI, WAIT_BITSET, WAIT_REQUEUE_PI, LOCK_PI2 */
            return false;
        default:
            return true;
        }
    case SYS_epoll_ctl: case SYS_epoll_create1: case SYS_epoll_pwait:
#ifdef SYS_epoll_wait
    case SYS_epoll_wait: case SYS_epoll_create:
#endif
#ifdef SYS_epoll_pwait2
    case SYS_epoll_pwait2:
#endif
    case SYS_gettid: case SYS_getpid: case SYS_getppid: case SYS_getuid: case SYS_geteuid: case SYS_getgid:
    case SYS_getegid: case SYS_getcpu: case SYS_getrandom: case SYS_clock_gettime: case SYS_gettimeofday:
    case SYS_sched_yield: case SYS_membarrier: case SYS_mmap: case SYS_munmap: case SYS_madvise: case SYS_mprotect:
    case SYS_fcntl: case SYS_socket:
        return true;
    default:
        return false;
    }
}

EXPORT long syscall(long number, ...)
{
    va_list list;
    va_start(list, number);
    long a = va_arg(list, long), b = va_arg(list, long), c = va_arg(list, long);
    long d = va_arg(list, long), e = va_arg(list, long), f = va_arg(list, long);
    va_end(list);
    long result;
    if (rp_shim_active()) {
        if (UNLIKELY(rp_shim.adopts) && stream_by_number(number, a, b, c, d, e, f, &result))
            return result;
        if (UNLIKELY(rp_shim.batches) && !keeps_batch(number, b))
            rp_shim_flush();
        if (by_number(number, a, b, c, d, e, f, &result))
            return result;
    }
    return rp_real.syscall(number, a, b, c, d, e, f);
}
