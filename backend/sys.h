/* SPDX-License-Identifier: MIT
 *
 * System calls, raw: none goes through libc's wrappers, so that the LD_PRELOAD
 * shim never meets itself, errno is never touched and every answer is -errno.
 * The io_uring calls sit behind a table that tests replace by a fake kernel;
 * the rest are plain functions.
 */
#ifndef RP_SYS_H
#define RP_SYS_H

#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/types.h>
#include <time.h>

struct rp_params; /* abi.h */

struct rp_sys {
    int (*uring_setup)(unsigned entries, struct rp_params *params);
    int (*uring_enter)(int fd, unsigned to_submit, unsigned min_complete, unsigned flags, const void *arg,
                       size_t arg_size);
    int (*uring_register)(int fd, unsigned opcode, const void *arg, unsigned nr_args);
    /* *ret_address is set on success only. Shared, populated, read-write, not
     * inherited by forked children (MADV_DONTFORK). */
    int (*map)(int fd, uint64_t offset, size_t length, void **ret_address);
    void (*unmap)(void *address, size_t length);
    /* Private anonymous memory, zeroed, NULL when there is none: what
     * rp_sys_pages() and rp_sys_pages_wipe_on_fork() are made of, and where
     * tests let the n-th allocation fail. */
    void *(*pages)(size_t length);
};

extern const struct rp_sys rp_sys_kernel; /* the real one */
extern const struct rp_sys *rp_sys;       /* in use; tests point it elsewhere */

/* Any other system call: its answer, or -errno. */
long rp_sys_call(long number, long a, long b, long c, long d, long e, long f);

int rp_sys_close(int fd);
/* F_DUPFD_CLOEXEC above where programs count; closes fd either way. */
int rp_sys_dup_high(int fd);
int rp_sys_dup3(int from, int to, int flags);
int rp_sys_fcntl(int fd, int cmd, long arg);
int rp_sys_eventfd(unsigned initial, int flags);
long rp_sys_read(int fd, void *buffer, size_t length);
long rp_sys_write(int fd, const void *buffer, size_t length);
int rp_sys_getsockopt(int fd, int level, int name, void *value, unsigned *length);
int rp_sys_getpeername_connected(int fd); /* 1 connected, 0 not, -errno */
int rp_sys_fstat_inode(int fd, uint64_t *ret_inode); /* st_ino */
int rp_sys_fstat_mode(int fd, unsigned *ret_mode); /* st_mode */
int rp_sys_poll(struct pollfd *fds, unsigned count, const struct timespec *timeout);
int rp_sys_epoll_create1(int flags);
int rp_sys_epoll_ctl(int epfd, int op, int fd, struct epoll_event *event);
/* Uses epoll_pwait2 where there is one, else epoll_pwait with the time rounded
 * up to milliseconds. */
int rp_sys_epoll_wait(int epfd, struct epoll_event *events, int max, const struct timespec *timeout,
                      const sigset_t *sigmask);
int rp_sys_gettid(void);
int rp_sys_getpid(void);
/* For loops that watch another processor's memory. */
static inline void rp_sys_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}
/* SIG_SETMASK; *ret_before may be NULL. */
void rp_sys_set_sigmask(const sigset_t *mask, sigset_t *ret_before);
/* All signals are blocked: takes those that are pending and that the kernel would have
 * dropped under the mask `unless_in`, since the program ignores them. */
void rp_sys_drop_ignored_signals(const sigset_t *unless_in);
uint64_t rp_sys_now_ns(void); /* CLOCK_MONOTONIC, through the vDSO (libc's clock_gettime) */
void *rp_sys_pages(size_t length);          /* zeroed anonymous private memory, NULL on failure */
void *rp_sys_pages_wipe_on_fork(size_t length);
void rp_sys_pages_free(void *address, size_t length);
void rp_sys_futex_wait(uint32_t *word, uint32_t value);
/* False: nobody woke us within the time. */
bool rp_sys_futex_wait_for(uint32_t *word, uint32_t value, uint32_t seconds);
void rp_sys_futex_wake_all(uint32_t *word);

#endif
