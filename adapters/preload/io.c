/* SPDX-License-Identifier: MIT
 *
 * Reads, passed fds, and the other ways to wait.
 *
 * What a read returned is a hint for the library and nothing more: it comes
 * after the real call, touches neither result nor errno, and one that is missed
 * (pread on a pipe, splice, stdio) only costs a look at an fd that is empty.
 * Writes are of no interest in themselves.
 *
 * read() and write() of a stream socket that a ring polls are made by recv() and
 * send() with no flags: the same to the byte and the errno, cancellation and
 * SIGPIPE included, and 130 to 180 cycles cheaper each (6.18: they do not go by
 * way of the file layer). Not for length 0, where read() does nothing and recv()
 * may do something, and not under a seccomp filter, which may know read() alone.
 * ENOTSOCK tells of a number that was closed and made anew by means that nobody
 * sees: then the real call is made after all, and nothing has happened before.
 */
#include "preload.h"

#include <string.h>

/* The library leaves errno alone. */
static inline void tell(int fd, size_t asked, long result)
{
    ringpoll_fd_read(fd, asked, UNLIKELY(result < 0) ? -errno : result);
}

/* `result` as libc gives it: -1 and errno. */
void rp_shim_after_read(int fd, size_t asked, long result)
{
    if (rp_shim_watching())
        tell(fd, asked, result);
}

#define PLAIN_FLAGS (MSG_DONTWAIT | MSG_NOSIGNAL | MSG_CMSG_CLOEXEC)

void rp_shim_after_recv(int fd, size_t asked, int flags, long result)
{
    if (rp_shim_watching())
        tell(fd, flags & ~PLAIN_FLAGS ? 0 : asked, result);
}

static size_t length_of(const struct iovec *iov, size_t count)
{
    size_t sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += iov[i].iov_len;
    return sum;
}

/* A failed call may have failed because `iov` cannot be read. */
void rp_shim_after_readv(int fd, const struct iovec *iov, int count, long result)
{
    if (rp_shim_watching())
        tell(fd, result >= 0 ? length_of(iov, (size_t)count) : count > 0, result);
}

/* The fds that came in a message. Another process has them too. */
static void received_fds(const struct msghdr *message)
{
    struct msghdr *walk = (struct msghdr *)message;
    for (struct cmsghdr *at = CMSG_FIRSTHDR(walk); at; at = CMSG_NXTHDR(walk, at)) {
        if (at->cmsg_level != SOL_SOCKET || at->cmsg_type != SCM_RIGHTS || at->cmsg_len < CMSG_LEN(0))
            continue;
        size_t count = (at->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(at) + i * sizeof fd, sizeof fd);
            ringpoll_fd_shared(fd);
        }
    }
}

void rp_shim_after_recvmsg(int fd, const struct msghdr *message, int flags, long result)
{
    if (!rp_shim_watching())
        return;
    if (result >= 0 && message->msg_controllen)
        received_fds(message);
    /* On failure the kernel may not even have been able to read `message`. */
    bool plain = result >= 0 && (flags & ~PLAIN_FLAGS) == 0;
    tell(fd, plain ? length_of(message->msg_iov, message->msg_iovlen) : result < 0 && !(flags & ~PLAIN_FLAGS), result);
}

/* ------------------------------------------------------------------ reads */

static inline bool by_socket_call(int fd, size_t length)
{
    return length > 0 && rp_shim_watching() && RP_SHIM_IS(short_cut) && ringpoll_fd_is_stream_on_ring(fd);
}

EXPORT ssize_t read(int fd, void *buffer, size_t length)
{
    ssize_t result;
    if (!by_socket_call(fd, length) ||
        ((result = rp_real.recv(fd, buffer, length, 0)) < 0 && UNLIKELY(errno == ENOTSOCK)))
        result = rp_real.read(fd, buffer, length);
    if (rp_shim_watching())
        tell(fd, length, result);
    return result;
}

EXPORT ssize_t write(int fd, const void *buffer, size_t length)
{
    if (by_socket_call(fd, length)) {
        ssize_t result = rp_real.send(fd, buffer, length, 0);
        if (LIKELY(result >= 0) || errno != ENOTSOCK)
            return result;
    }
    return rp_real.write(fd, buffer, length);
}

EXPORT ssize_t readv(int fd, const struct iovec *iov, int count)
{
    ssize_t result = rp_real.readv(fd, iov, count);
    rp_shim_after_readv(fd, iov, count, result);
    return result;
}

EXPORT ssize_t recv(int fd, void *buffer, size_t length, int flags)
{
    ssize_t result = rp_real.recv(fd, buffer, length, flags);
    if (rp_shim_watching())
        tell(fd, flags & ~PLAIN_FLAGS ? 0 : length, result);
    return result;
}

EXPORT ssize_t recvfrom(int fd, void *restrict buffer, size_t length, int flags, __SOCKADDR_ARG address,
                        socklen_t *restrict address_length)
{
    ssize_t result = rp_real.recvfrom(fd, buffer, length, flags, address, address_length);
    rp_shim_after_recv(fd, length, flags, result);
    return result;
}

EXPORT ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    ssize_t result = rp_real.recvmsg(fd, message, flags);
    rp_shim_after_recvmsg(fd, message, flags, result);
    return result;
}

EXPORT int recvmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags, struct timespec *timeout)
{
    if (!RP_LATE(recvmmsg))
        return rp_fail(ENOSYS);
    int result = rp_real.recvmmsg(fd, messages, count, flags, timeout);
    if (rp_shim_watching()) {
        for (int i = 0; i < result; i++)
            if (messages[i].msg_hdr.msg_controllen)
                received_fds(&messages[i].msg_hdr);
        tell(fd, 0, result);
    }
    return result;
}

/* Fortified programs call the first five of these instead. Their own check, which
 * ends the program, is the real function's. poll and ppoll are defined by way of
 * a label since libc's declarations say that they only write what they are given. */
ssize_t fortified_read(int fd, void *buffer, size_t length, size_t size) __asm__("__read_chk");
ssize_t fortified_recv(int fd, void *buffer, size_t length, size_t size, int flags) __asm__("__recv_chk");
ssize_t fortified_recvfrom(int fd, void *buffer, size_t length, size_t size, int flags, struct sockaddr *address,
                           socklen_t *address_length) __asm__("__recvfrom_chk");
int fortified_poll(struct pollfd *fds, nfds_t count, int timeout, size_t size) __asm__("__poll_chk");
int plain_poll(struct pollfd *fds, nfds_t count, int timeout) __asm__("poll");
int plain_ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout,
                const sigset_t *mask) __asm__("ppoll");
int fortified_ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask,
                    size_t size) __asm__("__ppoll_chk");

EXPORT ssize_t fortified_read(int fd, void *buffer, size_t length, size_t size)
{
    ssize_t result =
        RP_LATE(read_chk) ? rp_real.read_chk(fd, buffer, length, size) : rp_real.read(fd, buffer, length);
    rp_shim_after_read(fd, length, result);
    return result;
}

EXPORT ssize_t fortified_recv(int fd, void *buffer, size_t length, size_t size, int flags)
{
    ssize_t result = RP_LATE(recv_chk) ? rp_real.recv_chk(fd, buffer, length, size, flags)
                                       : rp_real.recv(fd, buffer, length, flags);
    rp_shim_after_recv(fd, length, flags, result);
    return result;
}

EXPORT ssize_t fortified_recvfrom(int fd, void *buffer, size_t length, size_t size, int flags,
                                  struct sockaddr *address, socklen_t *address_length)
{
    ssize_t result = RP_LATE(recvfrom_chk)
                         ? rp_real.recvfrom_chk(fd, buffer, length, size, flags, address, address_length)
                         : rp_real.recvfrom(fd, buffer, length, flags, address, address_length);
    rp_shim_after_recv(fd, length, flags, result);
    return result;
}

/* ------------------------------------------------------------- passed fds */

void rp_shim_before_sendmsg(const struct msghdr *message)
{
    if (LIKELY(message->msg_controllen == 0) || !message->msg_control)
        return;
    struct msghdr *walk = (struct msghdr *)message;
    for (struct cmsghdr *at = CMSG_FIRSTHDR(walk); at; at = CMSG_NXTHDR(walk, at)) {
        if (at->cmsg_level != SOL_SOCKET || at->cmsg_type != SCM_RIGHTS || at->cmsg_len < CMSG_LEN(0))
            continue;
        size_t count = (at->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(at) + i * sizeof fd, sizeof fd);
            ringpoll_fd_shared(fd); /* a set moves to its identity, all of it */
        }
    }
}

EXPORT ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    if (message && message->msg_controllen && rp_shim_active())
        rp_shim_before_sendmsg(message);
    return rp_real.sendmsg(fd, message, flags);
}

EXPORT int sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags)
{
    if (!RP_LATE(sendmmsg))
        return rp_fail(ENOSYS);
    if (messages && rp_shim_active())
        for (unsigned i = 0; i < count; i++)
            rp_shim_before_sendmsg(&messages[i].msg_hdr);
    return rp_real.sendmmsg(fd, messages, count, flags);
}

/* ------------------------------------------------------ poll and its like */

void rp_shim_before_poll(const struct pollfd *fds, nfds_t count)
{
    if (LIKELY(!rp_shim_watching()) || !fds)
        return;
    for (nfds_t i = 0; i < count; i++)
        if (fds[i].fd >= 0 && UNLIKELY(ringpoll_fd_is_set(fds[i].fd)))
            ringpoll_demote(fds[i].fd);
}

static void before_select(int count, const fd_set *reads, const fd_set *writes, const fd_set *others)
{
    if (LIKELY(!rp_shim_watching()))
        return;
    const fd_set *sets[] = {reads, writes, others};
    unsigned bits = 8 * sizeof(unsigned long);
    for (unsigned which = 0; which < 3; which++) {
        /* Programs pass sets that are larger than FD_SETSIZE: words, not FD_ISSET. */
        const unsigned long *words = (const unsigned long *)sets[which];
        if (!words)
            continue;
        for (unsigned fd = 0; (int)fd < count; fd++) {
            unsigned long word = words[fd / bits] >> (fd % bits);
            if (!word)
                fd |= bits - 1;
            else if ((word & 1) && UNLIKELY(ringpoll_fd_is_set((int)fd)))
                ringpoll_demote((int)fd);
        }
    }
}

EXPORT int plain_poll(struct pollfd *fds, nfds_t count, int timeout)
{
    rp_shim_before_poll(fds, count);
    return rp_real.poll(fds, count, timeout);
}

EXPORT int plain_ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask)
{
    rp_shim_before_poll(fds, count);
    return RP_LATE(ppoll) ? rp_real.ppoll(fds, count, timeout, mask) : rp_fail(ENOSYS);
}

EXPORT int fortified_poll(struct pollfd *fds, nfds_t count, int timeout, size_t size)
{
    rp_shim_before_poll(fds, count);
    return RP_LATE(poll_chk) ? rp_real.poll_chk(fds, count, timeout, size) : rp_real.poll(fds, count, timeout);
}

EXPORT int fortified_ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask,
                           size_t size)
{
    rp_shim_before_poll(fds, count);
    if (RP_LATE(ppoll_chk))
        return rp_real.ppoll_chk(fds, count, timeout, mask, size);
    return RP_LATE(ppoll) ? rp_real.ppoll(fds, count, timeout, mask) : rp_fail(ENOSYS);
}

EXPORT int select(int count, fd_set *restrict reads, fd_set *restrict writes, fd_set *restrict others,
                  struct timeval *restrict timeout)
{
    before_select(count, reads, writes, others);
    return RP_LATE(select) ? rp_real.select(count, reads, writes, others, timeout) : rp_fail(ENOSYS);
}

EXPORT int pselect(int count, fd_set *restrict reads, fd_set *restrict writes, fd_set *restrict others,
                   const struct timespec *restrict timeout, const sigset_t *restrict mask)
{
    before_select(count, reads, writes, others);
    return RP_LATE(pselect) ? rp_real.pselect(count, reads, writes, others, timeout, mask) : rp_fail(ENOSYS);
}

ALSO_KNOWN_AS(read, "__read");
ALSO_KNOWN_AS(recv, "__recv");
ALSO_KNOWN_AS(select, "__select");
EXPORT extern int also_poll(struct pollfd *fds, nfds_t count, int timeout) __asm__("__poll")
    __attribute__((alias("poll")));
