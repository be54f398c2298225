/* SPDX-License-Identifier: MIT
 *
 * Reads and writes of any fd, for programs that use the library by its header:
 * the try functions first, then the system call, and what the library has to be
 * told of it. A program under the shim never comes here.
 */
#include <errno.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "fdtab.h"
#include "ringpoll/ringpoll.h"
#include "sys.h"

/* Beside these a read says nothing of whether more is there. */
#define PLAIN_FLAGS (MSG_DONTWAIT | MSG_NOSIGNAL | MSG_CMSG_CLOEXEC)

void ringpoll_fds_shared(const struct msghdr *message)
{
    struct msghdr *walk = (struct msghdr *)(uintptr_t)message;
    if (message->msg_controllen == 0 || !message->msg_control)
        return;
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

/* Of iovecs that the kernel has accepted. */
static size_t room_of(const struct iovec *iov, size_t count)
{
    size_t sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += iov[i].iov_len;
    return sum;
}

/* A call that may sleep: what is held back goes first. */
static void before_read(int fd, int flags)
{
    if (!(flags & MSG_DONTWAIT) && !ringpoll_fd_is_nonblock(fd))
        ringpoll_flush();
}

static long after_write(int fd, size_t asked, long result)
{
    if (result == -EAGAIN || (result >= 0 && (size_t)result < asked))
        ringpoll_fd_full(fd);
    return result;
}

long ringpoll_recv(int fd, void *buffer, size_t length, int flags)
{
    long result = ringpoll_try_recv(fd, buffer, length, flags);
    if (result != RINGPOLL_PASS)
        return result;
    before_read(fd, flags);
    result = rp_sys_call(SYS_recvfrom, fd, (long)buffer, (long)length, flags, 0, 0);
    ringpoll_fd_read(fd, flags & ~PLAIN_FLAGS ? 0 : length, result);
    return result;
}

long ringpoll_read(int fd, void *buffer, size_t length)
{
    /* Of length 0 recv takes note of an error, and read does not. */
    if (length > 0 && ringpoll_fd_is_stream_on_ring(fd))
        return ringpoll_recv(fd, buffer, length, 0);
    long result = length > 0 ? ringpoll_try_recv(fd, buffer, length, 0) : RINGPOLL_PASS;
    if (result != RINGPOLL_PASS)
        return result;
    before_read(fd, 0);
    result = rp_sys_call(SYS_read, fd, (long)buffer, (long)length, 0, 0, 0);
    ringpoll_fd_read(fd, length, result);
    return result;
}

long ringpoll_readv(int fd, const struct iovec *iov, int count)
{
    long result = ringpoll_try_readv(fd, iov, count);
    if (result != RINGPOLL_PASS)
        return result;
    before_read(fd, 0);
    result = rp_sys_call(SYS_readv, fd, (long)iov, count, 0, 0, 0);
    ringpoll_fd_read(fd, result >= 0 ? room_of(iov, (size_t)count) : count > 0, result);
    return result;
}

long ringpoll_recvmsg(int fd, struct msghdr *message, int flags)
{
    long result = ringpoll_try_recvmsg(fd, message, flags);
    bool answered = result != RINGPOLL_PASS;
    if (!answered) {
        before_read(fd, flags);
        result = rp_sys_call(SYS_recvmsg, fd, (long)message, flags, 0, 0, 0);
    }
    if (result >= 0)
        ringpoll_fds_shared(message);
    if (answered)
        return result;
    ringpoll_fd_read(fd, flags & ~PLAIN_FLAGS ? 0 : result >= 0 ? room_of(message->msg_iov, message->msg_iovlen) : 1,
                     result);
    return result;
}

long ringpoll_send(int fd, const void *buffer, size_t length, int flags)
{
    long result = ringpoll_try_send(fd, buffer, length, flags);
    if (result != RINGPOLL_PASS)
        return result;
    ringpoll_flush();
    return after_write(fd, length, rp_sys_call(SYS_sendto, fd, (long)buffer, (long)length, flags, 0, 0));
}

long ringpoll_write(int fd, const void *buffer, size_t length)
{
    if (length > 0 && ringpoll_fd_is_stream_on_ring(fd))
        return ringpoll_send(fd, buffer, length, 0);
    long result = ringpoll_try_send(fd, buffer, length, 0);
    if (result != RINGPOLL_PASS)
        return result;
    ringpoll_flush();
    return after_write(fd, length, rp_sys_call(SYS_write, fd, (long)buffer, (long)length, 0, 0, 0));
}

long ringpoll_writev(int fd, const struct iovec *iov, int count)
{
    /* Of nothing it does nothing: other than sendmsg it takes no error. */
    bool some = count > 0 && count <= 1024 && (iov->iov_len > 0 || room_of(iov, (size_t)count) > 0);
    long result = some ? ringpoll_try_sendv(fd, iov, count, 0) : RINGPOLL_PASS;
    if (result != RINGPOLL_PASS)
        return result;
    ringpoll_flush();
    result = rp_sys_call(SYS_writev, fd, (long)iov, count, 0, 0, 0);
    return after_write(fd, result >= 0 ? room_of(iov, (size_t)count) : 0, result);
}

long ringpoll_sendmsg(int fd, const struct msghdr *message, int flags)
{
    bool plain = message->msg_controllen == 0 && !message->msg_name;
    if (plain && message->msg_iovlen > 0 && message->msg_iovlen <= 1024) {
        long result = ringpoll_try_sendv(fd, message->msg_iov, (int)message->msg_iovlen, flags);
        if (result != RINGPOLL_PASS)
            return result;
    }
    ringpoll_fds_shared(message);
    ringpoll_flush();
    long result = ringpoll_try_error(fd);
    if (result > 0)
        return -result;
    /* What comes with it must not overtake what waits. */
    result = ringpoll_fd_flush(fd);
    if (result < 0)
        return result;
    result = rp_sys_call(SYS_sendmsg, fd, (long)message, flags, 0, 0, 0);
    return after_write(fd, result >= 0 ? room_of(message->msg_iov, message->msg_iovlen) : 0, result);
}

/* What the connections of this listener are. */
static uint32_t kind_of_connections(int listener)
{
    const struct rp_fd *entry = rp_fd_peek(listener);
    if (entry && (rp_fd_flags(entry) & RP_FD_KNOWN))
        return rp_fd_flags(entry) & RINGPOLL_FD_KIND;
    int domain = 0, type = 0, protocol = 0;
    unsigned length = sizeof domain;
    if (rp_sys_getsockopt(listener, SOL_SOCKET, SO_DOMAIN, &domain, &length) < 0 ||
        rp_sys_getsockopt(listener, SOL_SOCKET, SO_TYPE, &type, &length) < 0 || type != SOCK_STREAM)
        return RINGPOLL_FD_OTHER;
    if (domain == AF_UNIX)
        return RINGPOLL_FD_UNIX;
    if ((domain != AF_INET && domain != AF_INET6) ||
        rp_sys_getsockopt(listener, SOL_SOCKET, SO_PROTOCOL, &protocol, &length) < 0 || protocol != IPPROTO_TCP)
        return RINGPOLL_FD_OTHER;
    return RINGPOLL_FD_TCP;
}

long ringpoll_accept(int fd, struct sockaddr *address, socklen_t *length, int flags)
{
    long result = ringpoll_try_accept(fd, address, length, flags);
    if (result != RINGPOLL_PASS)
        return result;
    before_read(fd, 0);
    result = rp_sys_call(SYS_accept4, fd, (long)address, (long)length, flags, 0, 0);
    if (result >= 0)
        ringpoll_fd_opened((int)result, kind_of_connections(fd) | RINGPOLL_FD_CONNECTED |
                                            (flags & SOCK_NONBLOCK ? RINGPOLL_FD_NONBLOCK : 0));
    ringpoll_fd_accepted(fd, (int)result, flags, address != NULL);
    return result;
}
