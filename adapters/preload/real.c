/* SPDX-License-Identifier: MIT
 *
 * The real functions, and how the shim comes to life.
 *
 * dlsym(RTLD_NEXT) finds them: another preloaded library keeps its place in the
 * chain. It runs once, normally in this object's constructor; a socket or a set
 * that is made earlier (other libraries' constructors come first) starts it too.
 * What is called before that, by a malloc that reads its configuration for
 * instance, is served by raw system calls: the table's first contents. `state`
 * keeps a second caller out; it goes on with what there is.
 *
 * Inside another library (RP_SHIM_INSIDE: these names are hidden there, and only that
 * library's own calls come here) real is what the program has in libc's place, so
 * that a preloaded shim is met, and does the work.
 *
 * The fork handlers are registered by pthread_atfork, not by interposing fork:
 * forkpty and daemon fork inside libc. Registered this early they run last
 * before the fork and first in the child, so the program's own handlers may use
 * epoll.
 */
#include "preload.h"

#include <dlfcn.h>
#include <link.h>
#include <string.h>
#include <sys/prctl.h>

struct rp_shim rp_shim;
__thread pid_t rp_shim_vfork_owner;

#ifdef RP_SHIM_INSIDE
#define REAL RTLD_DEFAULT
#else
#define REAL RTLD_NEXT
#endif

/* A program that is linked with the shim may be started under another one, and the
 * first in the loader's order is the one that the calls reach. Which that is says a note
 * that each shim has. */
#define NOTE_NAME "ringpoll"
#define NOTE_TYPE 2u
#ifdef RP_SHIM_INSIDE
/* Another shim sees all calls of the program, and is worth more than one that sees a
 * library's: this one has no note, and gives way to any. */
static const char rp_shim_note[1];
#else
extern const char rp_shim_note[] __attribute__((visibility("hidden")));
__asm__(".pushsection .note.ringpoll, \"a\", %note\n"
        ".balign 4\n"
        ".hidden rp_shim_note\n"
        ".globl rp_shim_note\n"
        "rp_shim_note: .long 9, 0, 2\n" /* name and desc bytes, type */
        ".asciz \"" NOTE_NAME "\"\n"
        ".balign 4\n"
        ".popsection\n");
#endif

/* 1: this shim's note; -1: another one's. */
static int look_at_object(struct dl_phdr_info *object, size_t size, void *unused)
{
    (void)size;
    (void)unused;
    for (int i = 0; i < object->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &object->dlpi_phdr[i];
        const char *at = (const char *)(object->dlpi_addr + part->p_vaddr);
        if (part->p_type != PT_NOTE || part->p_align > 4)
            continue;
        for (size_t left = part->p_memsz, step; left >= sizeof(ElfW(Nhdr)); at += step, left -= step) {
            const ElfW(Nhdr) *note = (const void *)at;
            step = sizeof *note + ((note->n_namesz + 3u) & ~(size_t)3) + ((note->n_descsz + 3u) & ~(size_t)3);
            if (step > left)
                break;
            if (note->n_type == NOTE_TYPE && note->n_namesz == sizeof NOTE_NAME &&
                memcmp(note + 1, NOTE_NAME, sizeof NOTE_NAME) == 0)
                return at == rp_shim_note ? 1 : -1;
        }
    }
    return 0;
}
static bool is_first(void)
{
    return dl_iterate_phdr(look_at_object, NULL) >= 0;
}

enum { START_NOT, START_UNDERWAY, START_DONE };
static int state;

/* ------------------------------------------------------- raw system calls */

#if defined(__x86_64__) && defined(__LP64__)
long rp_raw(long number, long a, long b, long c, long d, long e, long f)
{
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    long result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}
#elif defined(__aarch64__)
long rp_raw(long number, long a, long b, long c, long d, long e, long f)
{
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc 0"
                     : "+r"(x0)
                     : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                     : "memory");
    return x0;
}
#else
/* Elsewhere libc's own syscall(), which the first call finds. */
static long early_syscall(long number, ...)
{
    va_list list;
    va_start(list, number);
    long a = va_arg(list, long), b = va_arg(list, long), c = va_arg(list, long);
    long d = va_arg(list, long), e = va_arg(list, long), f = va_arg(list, long);
    va_end(list);
    long (*found)(long, ...);
    *(void **)(void *)&found = dlsym(RTLD_NEXT, "syscall");
    if (!found)
        return rp_fail(ENOSYS);
    __atomic_store_n((void **)(void *)&rp_real.syscall, *(void **)(void *)&found, __ATOMIC_RELEASE);
    return found(number, a, b, c, d, e, f);
}
#define EARLY_SYSCALL_IS_LIBCS
long rp_raw(long number, long a, long b, long c, long d, long e, long f)
{
    int saved = errno;
    long result = rp_real.syscall(number, a, b, c, d, e, f);
    if (result == -1)
        result = -errno;
    errno = saved;
    return result;
}
#endif

#define RAW(number, ...) rp_answer(RAW_6(number, __VA_ARGS__, 0, 0, 0, 0, 0, 0))
#define RAW_6(number, a, b, c, d, e, f, ...) \
    rp_raw(number, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

static int early_close(int fd)
{
    return (int)RAW(SYS_close, fd);
}
static ssize_t early_read(int fd, void *buffer, size_t length)
{
    return RAW(SYS_read, fd, buffer, length);
}
static ssize_t early_write(int fd, const void *buffer, size_t length)
{
    return RAW(SYS_write, fd, buffer, length);
}
static ssize_t early_readv(int fd, const struct iovec *iov, int count)
{
    return RAW(SYS_readv, fd, iov, count);
}
static ssize_t early_recvmsg(int fd, struct msghdr *message, int flags)
{
    return RAW(SYS_recvmsg, fd, message, flags);
}
static ssize_t early_sendmsg(int fd, const struct msghdr *message, int flags)
{
    return RAW(SYS_sendmsg, fd, message, flags);
}
static ssize_t early_sendto(int fd, const void *buffer, size_t length, int flags, __CONST_SOCKADDR_ARG address,
                            socklen_t address_length)
{
    return RAW(SYS_sendto, fd, buffer, length, flags, *(const struct sockaddr *const *)(const void *)&address,
               address_length);
}
static ssize_t early_writev(int fd, const struct iovec *iov, int count)
{
    return RAW(SYS_writev, fd, iov, count);
}
static int early_getsockopt(int fd, int level, int name, void *restrict value, socklen_t *restrict length)
{
    return (int)RAW(SYS_getsockopt, fd, level, name, value, length);
}
static int early_fcntl(int fd, int command, ...)
{
    va_list list;
    va_start(list, command);
    long argument = va_arg(list, long);
    va_end(list);
#ifdef SYS_fcntl64
    return (int)RAW(SYS_fcntl64, fd, command, argument);
#else
    return (int)RAW(SYS_fcntl, fd, command, argument);
#endif
}
static int early_ioctl(int fd, unsigned long request, ...)
{
    va_list list;
    va_start(list, request);
    long argument = va_arg(list, long);
    va_end(list);
    return (int)RAW(SYS_ioctl, fd, request, argument);
}
static int early_dup(int fd)
{
    return (int)RAW(SYS_dup, fd);
}
static int early_dup3(int from, int to, int flags)
{
    return (int)RAW(SYS_dup3, from, to, flags);
}
static int early_dup2(int from, int to)
{
    if (from == to)
        return early_fcntl(from, F_GETFD, 0L) < 0 ? -1 : to;
    return early_dup3(from, to, 0);
}
static int early_pipe2(int fds[2], int flags)
{
    return (int)RAW(SYS_pipe2, fds, flags);
}
static int early_pipe(int fds[2])
{
    return early_pipe2(fds, 0);
}
static int early_eventfd(unsigned initial, int flags)
{
    return (int)RAW(SYS_eventfd2, initial, flags);
}
static int early_poll(struct pollfd *fds, nfds_t count, int timeout)
{
    struct timespec storage;
    const struct timespec *time = rp_shim_milliseconds(timeout, &storage);
    return (int)RAW(SYS_ppoll, fds, count, time, 0, 8);
}
static int early_prctl(int option, ...)
{
    va_list list;
    va_start(list, option);
    unsigned long a = va_arg(list, unsigned long), b = va_arg(list, unsigned long);
    unsigned long c = va_arg(list, unsigned long), d = va_arg(list, unsigned long);
    va_end(list);
    return (int)RAW(SYS_prctl, option, a, b, c, d);
}
static int early_close_range(unsigned first, unsigned last, int flags)
{
#ifdef SYS_close_range
    return (int)RAW(SYS_close_range, first, last, flags);
#else
    (void)first, (void)last, (void)flags;
    return rp_fail(ENOSYS);
#endif
}
static int early_epoll_create1(int flags)
{
    return (int)RAW(SYS_epoll_create1, flags);
}
static int early_epoll_ctl(int epfd, int op, int fd, struct epoll_event *event)
{
    return (int)RAW(SYS_epoll_ctl, epfd, op, fd, event);
}
static int early_epoll_pwait(int epfd, struct epoll_event *events, int max, int timeout, const sigset_t *mask)
{
    return (int)RAW(SYS_epoll_pwait, epfd, events, max, timeout, mask, 8);
}
static int early_epoll_pwait2(int epfd, struct epoll_event *events, int max, const struct timespec *timeout,
                              const sigset_t *mask)
{
#ifdef SYS_epoll_pwait2
    int64_t time[2] = {0, 0}; /* 64 bits on every machine */
    if (timeout) {
        time[0] = timeout->tv_sec;
        time[1] = timeout->tv_nsec;
    }
    return (int)RAW(SYS_epoll_pwait2, epfd, events, max, timeout ? time : NULL, mask, 8);
#else
    (void)epfd, (void)events, (void)max, (void)timeout, (void)mask;
    return rp_fail(ENOSYS);
#endif
}
__attribute__((noreturn)) static void early_exit_now(int status)
{
    for (;;)
        rp_raw(SYS_exit_group, status, 0, 0, 0, 0, 0);
}

/* 32-bit x86 and s390 multiplex their socket calls: too rare to do by hand. */
#ifdef SYS_accept4
static ssize_t early_recvfrom(int fd, void *buffer, size_t length, int flags, struct sockaddr *address,
                              socklen_t *address_length)
{
    return RAW(SYS_recvfrom, fd, buffer, length, flags, address, address_length);
}
static ssize_t early_send(int fd, const void *buffer, size_t length, int flags)
{
    return RAW(SYS_sendto, fd, buffer, length, flags, NULL, 0);
}
static ssize_t early_recv(int fd, void *buffer, size_t length, int flags)
{
    return early_recvfrom(fd, buffer, length, flags, NULL, NULL);
}
static int early_socket(int domain, int type, int protocol)
{
    return (int)RAW(SYS_socket, domain, type, protocol);
}
static int early_socketpair(int domain, int type, int protocol, int fds[2])
{
    return (int)RAW(SYS_socketpair, domain, type, protocol, fds);
}
static int early_connect(int fd, const struct sockaddr *address, socklen_t length)
{
    return (int)RAW(SYS_connect, fd, address, length);
}
static int early_listen(int fd, int backlog)
{
    return (int)RAW(SYS_listen, fd, backlog);
}
static int early_accept4(int fd, struct sockaddr *address, socklen_t *length, int flags)
{
    return (int)RAW(SYS_accept4, fd, address, length, flags);
}
static int early_accept(int fd, struct sockaddr *address, socklen_t *length)
{
    return early_accept4(fd, address, length, 0);
}
static int early_setsockopt(int fd, int level, int name, const void *value, socklen_t length)
{
    return (int)RAW(SYS_setsockopt, fd, level, name, value, length);
}
#else
#error "no socket system calls of their own on this architecture: not supported"
#endif

#ifndef EARLY_SYSCALL_IS_LIBCS
static long early_syscall(long number, ...)
{
    va_list list;
    va_start(list, number);
    long a = va_arg(list, long), b = va_arg(list, long), c = va_arg(list, long);
    long d = va_arg(list, long), e = va_arg(list, long), f = va_arg(list, long);
    va_end(list);
    return rp_answer(rp_raw(number, a, b, c, d, e, f));
}
#endif

/* fcntl and fcntl64 differ in nothing on 64-bit targets. */
#define early_fcntl64 early_fcntl

struct rp_real rp_real = {
#define EARLY(member, symbol, type) .member = early_##member,
    RP_REAL_EARLY(EARLY)
    RP_REAL_EARLY_NEWER(EARLY)
#undef EARLY
};

/* ------------------------------------------------------------------ start */

#define RESOLVE(member, symbol, type)                                                                            \
    {                                                                                                            \
        void *found = dlsym(REAL, symbol);                                                                  \
        if (found)                                                                                               \
            __atomic_store_n((void **)(void *)&rp_real.member, found, __ATOMIC_RELEASE);                         \
    }

/* A name that is found costs dlsym no allocation. */
static void resolve(void)
{
    RP_REAL_EARLY(RESOLVE)
    RP_REAL_LATE(RESOLVE)
}

/* Two generations of condition variables live in glibc, and its older dlsym gives the
 * first. What stands before libc in the chain keeps its place. */
static void resolve_default_versions(void)
{
#if defined(__GLIBC__) && (defined(__x86_64__) || defined(__i386__))
#define FIRST_VERSION (sizeof(void *) == 8 ? "GLIBC_2.2.5" : "GLIBC_2.0")
#define RESOLVE_DEFAULT(name)                                                                                    \
    if ((void *)(uintptr_t)rp_real.name == dlvsym(REAL, #name, FIRST_VERSION)) {                            \
        void *found = dlvsym(REAL, #name, "GLIBC_2.3.2");                                                   \
        if (found)                                                                                               \
            __atomic_store_n((void **)(void *)&rp_real.name, found, __ATOMIC_RELEASE);                           \
    }
    RESOLVE_DEFAULT(pthread_cond_wait)
    RESOLVE_DEFAULT(pthread_cond_timedwait)
#endif
}

/* One that is not makes it compose an error text, by malloc: a malloc that is in
 * the middle of its own set-up (jemalloc calls syscall() there, with its lock
 * held) would never come back. So these wait for the constructor. */
static void resolve_newer(void)
{
    RP_REAL_EARLY_NEWER(RESOLVE)
    RP_REAL_NEWER(RESOLVE)
    resolve_default_versions();
    dlerror();
}

static void fork_prepare(void)
{
    rp_shim_flush();
    if (rp_shim_active())
        ringpoll_fork_prepare();
}
static void fork_parent(void)
{
    if (rp_shim_active())
        ringpoll_fork_parent();
}
static void fork_child(void)
{
    if (rp_shim_active()) {
        ringpoll_fork_child();
        rp_shim_wait_forked();
    }
    rp_report_forked();
}

void rp_shim_start(void)
{
    int expected = START_NOT;
    if (__atomic_load_n(&state, __ATOMIC_ACQUIRE) != START_NOT ||
        !__atomic_compare_exchange_n(&state, &expected, START_UNDERWAY, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        return;
    int saved = errno;
    resolve();
    const char *word = secure_getenv("RINGPOLL");
    bool off = (word && strcmp(word, "off") == 0) || !is_first();
    RP_SHIM_SET(require, word && strcmp(word, "require") == 0);
    word = secure_getenv("RINGPOLL_PROFILE");
    /* "safe" is the default, and what a word that is none means. Inside a library that
     * keeps its writes' meaning itself, sends are batched, too. */
    RP_SHIM_SET(adopts, !word || strcmp(word, "readiness") != 0);
    RP_SHIM_SET(accepts, word && strcmp(word, "throughput") == 0);
    RP_SHIM_SET(batches, RP_SHIM_IS(accepts));
#ifdef RP_SHIM_INSIDE
    if (!word || !*word)
        RP_SHIM_SET(batches, true);
    word = secure_getenv(rp_shim_inside_switch);
    off = off || (word && strcmp(word, "0") == 0);
#endif
    rp_report_start();
    /* Without the handlers a child would take its parent's sets for its own. */
    if (pthread_atfork(fork_prepare, fork_parent, fork_child))
        off = true;
    RP_SHIM_SET(short_cut, RAW(SYS_prctl, PR_GET_SECCOMP, 0, 0, 0, 0) == 0);
    if (!off)
        RP_SHIM_SET(can_cancel, rp_shim_wait_start());
    __atomic_store_n(&rp_shim.on, !off, __ATOMIC_RELEASE);
    __atomic_store_n(&rp_shim.ready, true, __ATOMIC_RELEASE);
    __atomic_store_n(&state, START_DONE, __ATOMIC_RELEASE);
    errno = saved;
}

__attribute__((constructor)) static void on_load(void)
{
    rp_shim_start();
    int saved = errno;
    resolve_newer();
    errno = saved;
}
