/* SPDX-License-Identifier: MIT
 *
 * System calls without libc.
 *
 * Why: this library also lives inside a preloaded shim that interposes close,
 * dup, epoll_wait, syscall and many more. A call through libc's names would
 * come back to the shim; a call by instruction cannot. It also leaves errno
 * alone (a program may be between a failed call and its look at errno when one
 * of its signal handlers calls us), and is no cancellation point.
 *
 * On x86-64 and aarch64 the instruction stands here. Elsewhere libc's syscall()
 * does the work, with errno put back. The shim has a function of that name, so
 * libc's is asked for as the next one.
 *
 * What goes through rp_sys (io_uring, its mappings, memory) is what tests
 * replace by a fake kernel. Memory is in the table so that every allocation of
 * the library can be made to fail in turn.
 */
#include "sys.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "abi.h"

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif
#ifndef AT_EMPTY_PATH
#define AT_EMPTY_PATH 0x1000
#endif
#ifndef SYS_epoll_pwait2
#define SYS_epoll_pwait2 441 /* Linux 5.11, the same everywhere */
#endif

/* ------------------------------------------------------- the instruction */

#if defined(__x86_64__) && !defined(__ILP32__)

static inline long call6(long number, long a, long b, long c, long d, long e, long f)
{
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

static inline long call4(long number, long a, long b, long c, long d)
{
    long result;
    register long r10 __asm__("r10") = d;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
                     : "rcx", "r11", "memory");
    return result;
}

#elif defined(__aarch64__) && !defined(__ILP32__)

static inline long call6(long number, long a, long b, long c, long d, long e, long f)
{
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc #0"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                     : "memory", "cc");
    return x0;
}

static inline long call4(long number, long a, long b, long c, long d)
{
    return call6(number, a, b, c, d, 0, 0);
}

#else

#include <dlfcn.h>

static long (*libc_syscall)(long, ...);

static inline long call6(long number, long a, long b, long c, long d, long e, long f)
{
    int saved = errno;
    long (*call)(long, ...) = __atomic_load_n(&libc_syscall, __ATOMIC_RELAXED);
    if (!call) {
        *(void **)(void *)&call = dlsym(RTLD_NEXT, "syscall");
        if (!call) /* no dynamic libc: not supported on these machines */
            return -ENOSYS;
        __atomic_store_n(&libc_syscall, call, __ATOMIC_RELAXED);
    }
    long result = call(number, a, b, c, d, e, f);
    if (result == -1)
        result = -errno;
    errno = saved;
    return result;
}

static inline long call4(long number, long a, long b, long c, long d)
{
    return call6(number, a, b, c, d, 0, 0);
}

#endif

long rp_sys_call(long number, long a, long b, long c, long d, long e, long f)
{
    return call6(number, a, b, c, d, e, f);
}

/* mmap answers an address or -errno in the last page of the address space. */
static bool is_error(long result)
{
    return (unsigned long)result >= (unsigned long)-4095L;
}

/* Memory that one thread gives back and another gets: the kernel's own lock orders
 * that, which no race detector sees that does not know these calls. */
static uint32_t memory_changed;

static void *map_memory(size_t length, int protection, int flags, int fd, uint64_t offset, int *ret_error)
{
#if defined(SYS_mmap2)
    /* 32-bit machines count in units of 4096 bytes; a ring's offsets are multiples. */
    long result = call6(SYS_mmap2, 0, (long)length, protection, flags, fd, (long)(offset >> 12));
#else
    long result = call6(SYS_mmap, 0, (long)length, protection, flags, fd, (long)offset);
#endif
    if (is_error(result)) {
        *ret_error = (int)result;
        return NULL;
    }
    (void)__atomic_load_n(&memory_changed, __ATOMIC_ACQUIRE);
    return (void *)result;
}

/* --------------------------------------------------------- the real table */

static int kernel_uring_setup(unsigned entries, struct rp_params *params)
{
#ifdef RINGPOLL_WITHOUT_URING
    (void)entries;
    (void)params;
    return -ENOSYS;
#else
    return (int)call4(RP_SYS_IO_URING_SETUP, (long)entries, (long)params, 0, 0);
#endif
}

static int kernel_uring_enter(int fd, unsigned to_submit, unsigned min_complete, unsigned flags, const void *arg,
                              size_t arg_size)
{
    return (int)call6(RP_SYS_IO_URING_ENTER, fd, (long)to_submit, (long)min_complete, (long)flags, (long)arg,
                      (long)arg_size);
}

static int kernel_uring_register(int fd, unsigned opcode, const void *arg, unsigned nr_args)
{
    return (int)call4(RP_SYS_IO_URING_REGISTER, fd, (long)opcode, (long)arg, (long)nr_args);
}

static void kernel_unmap(void *address, size_t length)
{
    __atomic_fetch_add(&memory_changed, 1, __ATOMIC_RELEASE);
    if (address)
        call4(SYS_munmap, (long)address, (long)length, 0, 0);
}

/* POPULATE: the first turn of a loop should not pay for page faults. DONTFORK:
 * a child that writes to its parent's queues would submit in its name. */
static int kernel_map(int fd, uint64_t offset, size_t length, void **ret_address)
{
    int error = 0;
    void *address = map_memory(length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, offset, &error);
    if (!address)
        return error;
    long result = call4(SYS_madvise, (long)address, (long)length, MADV_DONTFORK, 0);
    if (result < 0) {
        kernel_unmap(address, length);
        return (int)result;
    }
    *ret_address = address;
    return 0;
}

static void *kernel_pages(size_t length)
{
    int error;
    return map_memory(length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0, &error);
}

const struct rp_sys rp_sys_kernel = {
    .uring_setup = kernel_uring_setup,
    .uring_enter = kernel_uring_enter,
    .uring_register = kernel_uring_register,
    .map = kernel_map,
    .unmap = kernel_unmap,
    .pages = kernel_pages,
};
const struct rp_sys *rp_sys = &rp_sys_kernel;

/* ------------------------------------------------------------ descriptors */

int rp_sys_close(int fd)
{
    return (int)call4(SYS_close, fd, 0, 0, 0);
}

/* Programs count on small numbers: they expect the lowest free one, keep tables
 * by fd, use select() up to 1023. So the library's own live just below 1024,
 * where a table of files that big is rarely grown for them; under a smaller
 * limit, in its last quarter or where there is room at all. */
int rp_sys_dup_high(int fd)
{
    struct {
        uint64_t current, maximum;
    } limit = {1024, 1024};
    long from = 960;
    if (call4(SYS_prlimit64, 0, RLIMIT_NOFILE, 0, (long)&limit) == 0) {
        if (limit.current < 128)
            from = (long)(limit.current - limit.current / 4);
        else if (limit.current - 32 < 960)
            from = (long)limit.current - 32;
    }
    long result;
    do {
        result = call4(SYS_fcntl, fd, F_DUPFD_CLOEXEC, from, 0);
        from /= 2; /* EMFILE: full above; EINVAL: the limit has shrunk meanwhile */
    } while ((result == -EMFILE || result == -EINVAL) && from >= 3);
    call4(SYS_close, fd, 0, 0, 0);
    return (int)result;
}

int rp_sys_dup3(int from, int to, int flags)
{
    return (int)call4(SYS_dup3, from, to, flags, 0);
}

int rp_sys_fcntl(int fd, int cmd, long arg)
{
    return (int)call4(SYS_fcntl, fd, cmd, arg, 0);
}

int rp_sys_eventfd(unsigned initial, int flags)
{
    return (int)call4(SYS_eventfd2, (long)initial, flags, 0, 0);
}

long rp_sys_read(int fd, void *buffer, size_t length)
{
    return call4(SYS_read, fd, (long)buffer, (long)length, 0);
}

long rp_sys_write(int fd, const void *buffer, size_t length)
{
    return call4(SYS_write, fd, (long)buffer, (long)length, 0);
}

int rp_sys_getsockopt(int fd, int level, int name, void *value, unsigned *length)
{
    return (int)call6(SYS_getsockopt, fd, level, name, (long)value, (long)length, 0);
}

int rp_sys_getpeername_connected(int fd)
{
    struct sockaddr_storage peer;
    unsigned length = sizeof(peer);
    long result = call4(SYS_getpeername, fd, (long)&peer, (long)&length, 0);
    if (result == -ENOTCONN)
        return 0;
    return result < 0 ? (int)result : 1;
}

static int fstat_of(int fd, uint64_t *ret_inode, unsigned *ret_mode)
{
#if defined(__x86_64__) || defined(__aarch64__)
    /* Here the kernel's structure is libc's. */
    struct stat status;
    long result = call4(SYS_fstat, fd, (long)&status, 0, 0);
    if (result < 0)
        return (int)result;
    *ret_inode = status.st_ino;
    *ret_mode = status.st_mode;
#else
    struct statx status;
    long result = call6(SYS_statx, fd, (long)"", AT_EMPTY_PATH, STATX_TYPE | STATX_MODE | STATX_INO, (long)&status, 0);
    if (result < 0)
        return (int)result;
    *ret_inode = status.stx_ino;
    *ret_mode = status.stx_mode;
#endif
    return 0;
}

int rp_sys_fstat_inode(int fd, uint64_t *ret_inode)
{
    unsigned mode;
    return fstat_of(fd, ret_inode, &mode);
}

int rp_sys_fstat_mode(int fd, unsigned *ret_mode)
{
    uint64_t inode;
    return fstat_of(fd, &inode, ret_mode);
}

/* ---------------------------------------------------------------- waiting */

/* The kernel's ppoll writes the time that is left into its argument: hence a
 * copy, beside the width. */
int rp_sys_poll(struct pollfd *fds, unsigned count, const struct timespec *timeout)
{
    struct rp_timespec left = {0, 0};
#ifdef SYS_poll /* with no time to copy in and out */
    if (timeout && (timeout->tv_sec | timeout->tv_nsec) == 0)
        return (int)call6(SYS_poll, (long)fds, (long)count, 0, 0, 0, 0);
#endif
    if (timeout) {
        left.tv_sec = timeout->tv_sec;
        left.tv_nsec = timeout->tv_nsec;
    }
#if defined(SYS_ppoll_time64)
    const long number = SYS_ppoll_time64;
#else
    const long number = SYS_ppoll;
#endif
    return (int)call6(number, (long)fds, (long)count, timeout ? (long)&left : 0, 0, RP_SIGSET_BYTES, 0);
}

int rp_sys_epoll_create1(int flags)
{
    return (int)call4(SYS_epoll_create1, flags, 0, 0, 0);
}

int rp_sys_epoll_ctl(int epfd, int op, int fd, struct epoll_event *event)
{
    return (int)call4(SYS_epoll_ctl, epfd, op, fd, (long)event);
}

/* 1: the kernel has no epoll_pwait2 (ENOSYS), or a filter older than it says
 * EPERM, which epoll itself never does there. */
static int no_pwait2;

int rp_sys_epoll_wait(int epfd, struct epoll_event *events, int max, const struct timespec *timeout,
                      const sigset_t *sigmask)
{
    long milliseconds = -1;
    if (timeout) {
        if (timeout->tv_sec == 0 && timeout->tv_nsec == 0) {
            milliseconds = 0;
        } else if (timeout->tv_sec >= 0 && timeout->tv_sec < 1000000 && timeout->tv_nsec >= 0 &&
                   timeout->tv_nsec < 1000000000 && timeout->tv_nsec % 1000000 == 0) { /* cheaper than pwait2 */
            milliseconds = (long)timeout->tv_sec * 1000 + timeout->tv_nsec / 1000000;
        } else {
            if (!__atomic_load_n(&no_pwait2, __ATOMIC_RELAXED)) {
                struct rp_timespec time = {timeout->tv_sec, timeout->tv_nsec};
                long result = call6(SYS_epoll_pwait2, epfd, (long)events, max, (long)&time, (long)sigmask,
                                    RP_SIGSET_BYTES);
                if (result != -ENOSYS && result != -EPERM)
                    return (int)result;
                __atomic_store_n(&no_pwait2, 1, __ATOMIC_RELAXED);
            }
            if (timeout->tv_sec < 0 || timeout->tv_nsec < 0 || timeout->tv_nsec >= 1000000000)
                return -EINVAL;
            if (timeout->tv_sec > INT_MAX / 1000 - 1)
                milliseconds = INT_MAX;
            else
                milliseconds = (long)timeout->tv_sec * 1000 + (timeout->tv_nsec + 999999) / 1000000;
        }
    }
    return (int)call6(SYS_epoll_pwait, epfd, (long)events, max, milliseconds, (long)sigmask, RP_SIGSET_BYTES);
}

void rp_sys_futex_wait(uint32_t *word, uint32_t value)
{
#if defined(SYS_futex)
    call6(SYS_futex, (long)word, FUTEX_WAIT_PRIVATE, (long)value, 0, 0, 0);
#else
    call6(SYS_futex_time64, (long)word, FUTEX_WAIT_PRIVATE, (long)value, 0, 0, 0);
#endif
}

bool rp_sys_futex_wait_for(uint32_t *word, uint32_t value, uint32_t seconds)
{
#if defined(SYS_futex)
    const long time[2] = {(long)seconds, 0}; /* the kernel's older structure, where there are two */
    return call6(SYS_futex, (long)word, FUTEX_WAIT_PRIVATE, (long)value, (long)time, 0, 0) != -ETIMEDOUT;
#else
    const struct rp_timespec time = {seconds, 0};
    return call6(SYS_futex_time64, (long)word, FUTEX_WAIT_PRIVATE, (long)value, (long)&time, 0, 0) != -ETIMEDOUT;
#endif
}

void rp_sys_futex_wake_all(uint32_t *word)
{
#if defined(SYS_futex)
    call6(SYS_futex, (long)word, FUTEX_WAKE_PRIVATE, INT_MAX, 0, 0, 0);
#else
    call6(SYS_futex_time64, (long)word, FUTEX_WAKE_PRIVATE, INT_MAX, 0, 0, 0);
#endif
}

/* ------------------------------------------------------- process and time */

void rp_sys_set_sigmask(const sigset_t *mask, sigset_t *ret_before)
{
    call4(SYS_rt_sigprocmask, SIG_SETMASK, (long)mask, (long)ret_before, RP_SIGSET_BYTES);
}

/* As far as it is read here, what the kernel's struct sigaction begins with on each
 * machine of ours; the rest is left room for. */
struct kernel_sigaction {
    void (*handler)(int);
    unsigned long rest[15];
};

static bool is_ignored(int number)
{
    struct kernel_sigaction action;
    if (call4(SYS_rt_sigaction, number, 0, (long)&action, RP_SIGSET_BYTES) != 0)
        return false;
    return action.handler == SIG_IGN ||
           (action.handler == SIG_DFL &&
            (number == SIGCHLD || number == SIGURG || number == SIGWINCH || number == SIGCONT));
}

void rp_sys_drop_ignored_signals(const sigset_t *unless_in)
{
    sigset_t none, pending;
    sigemptyset(&none);
    pending = none;
    /* glibc's sigisemptyset() overlooks signals from 33 on. */
    if (call4(SYS_rt_sigpending, (long)&pending, RP_SIGSET_BYTES, 0, 0) != 0 ||
        memcmp(&pending, &none, RP_SIGSET_BYTES) == 0)
        return;
    const struct timespec now = {0};
    for (int number = 1; number <= (int)RP_SIGSET_BYTES * 8; number++) {
        if (sigismember(&pending, number) != 1 || sigismember(unless_in, number) == 1 || !is_ignored(number))
            continue;
        sigset_t one;
        sigemptyset(&one);
        sigaddset(&one, number);
        while (call4(SYS_rt_sigtimedwait, (long)&one, 0, (long)&now, RP_SIGSET_BYTES) > 0)
            ;
    }
}

int rp_sys_gettid(void)
{
    return (int)call4(SYS_gettid, 0, 0, 0, 0);
}

int rp_sys_getpid(void)
{
    return (int)call4(SYS_getpid, 0, 0, 0, 0);
}

uint64_t rp_sys_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now); /* cannot fail: the clock exists, the pointer is good */
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ----------------------------------------------------------------- memory */

void *rp_sys_pages(size_t length)
{
    return rp_sys->pages(length);
}

void *rp_sys_pages_wipe_on_fork(size_t length)
{
    void *address = rp_sys->pages(length);
    if (!address)
        return NULL;
    if (call4(SYS_madvise, (long)address, (long)length, MADV_WIPEONFORK, 0) < 0) { /* before 4.14 */
        rp_sys_pages_free(address, length);
        return NULL;
    }
    return address;
}

void rp_sys_pages_free(void *address, size_t length)
{
    kernel_unmap(address, length);
}
