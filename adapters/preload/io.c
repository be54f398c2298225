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

void rp_shim_after_recvmsg(int fd, const struct msghdr *message, int flags, long result)
{
    if (!rp_shim_watching())
        return;
    if (result >= 0 && message->msg_controllen)
        ringpoll_fds_shared(message);
    /* On failure the kernel may not even have been able to read `message`. */
    bool plain = result >= 0 && (flags & ~PLAIN_FLAGS) == 0;
    tell(fd, plain ? length_of(message->msg_iov, message->msg_iovlen) : result < 0 && !(flags & ~PLAIN_FLAGS), result);
}

/* ------------------------------------------------------------------ reads */

/* A call that may be answered without the kernel is a cancellation point still. */
static inline bool answered(long result, ssize_t *ret_result)
{
    if (LIKELY(result == RINGPOLL_PASS))
        return false;
    if (UNLIKELY(rp_shim.any_cancel))
        pthread_testcancel();
    *ret_result = rp_answer(result);
    return true;
}

/* A read that may block waits for what somebody else does with our bytes. */
static inline void before_real_read(int fd)
{
    rp_shim_flush_if_blocking(fd);
}

static inline bool answers_recv(int fd, void *buffer, size_t length, int flags, ssize_t *ret_result)
{
    if (LIKELY(!rp_shim.adopts) || !rp_shim_watching())
        return false;
    if (answered(ringpoll_try_recv(fd, buffer, length, flags), ret_result))
        return true;
    if (!(flags & MSG_DONTWAIT))
        before_real_read(fd);
    return false;
}

/* Writes: the library may take the bytes, or an error that it has kept is this
 * call's. Where it does neither, what it holds back of other fds goes out first. */
static inline bool answers_send(int fd, const void *buffer, size_t length, int flags, ssize_t *ret_result)
{
    if (LIKELY(!rp_shim.adopts) || !rp_shim_watching())
        return false;
    if (answered(ringpoll_try_send(fd, buffer, length, flags), ret_result))
        return true;
    if (rp_shim.batches)
        ringpoll_flush();
    return false;
}

static inline bool answers_sendv(int fd, const struct iovec *iov, int count, int flags, ssize_t *ret_result)
{
    if (LIKELY(!rp_shim.adopts) || !rp_shim_watching())
        return false;
    if (answered(ringpoll_try_sendv(fd, iov, count, flags), ret_result))
        return true;
    if (rp_shim.batches)
        ringpoll_flush();
    return false;
}

/* A write by means that the library knows nothing of: everything before it first. */
static inline bool write_refused(int fd, ssize_t *ret_result)
{
    int error;
    if (LIKELY(!rp_shim.adopts) || !rp_shim_watching())
        return false;
    error = ringpoll_try_error(fd);
    if (error == 0 && rp_shim.batches) {
        ringpoll_flush();
        error = -ringpoll_fd_flush(fd);
    }
    if (LIKELY(error == 0))
        return false;
    errno = error;
    *ret_result = -1;
    return true;
}

static inline ssize_t wrote(int fd, size_t asked, ssize_t result)
{
    if (UNLIKELY(rp_shim.batches) && rp_shim_watching() &&
        (result < 0 ? errno == EAGAIN : (size_t)result < asked))
        ringpoll_fd_full(fd);
    return result;
}

/* Where the bytes came from the library, so does the address. A TCP socket gives
 * none; an AF_UNIX one its peer's, if that is bound. */
static void peer_address(int fd, struct sockaddr *address, socklen_t *length)
{
    struct sockaddr_storage peer;
    socklen_t room = *length, got = sizeof peer;
    *length = 0;
    if (rp_raw(SYS_getpeername, fd, (long)&peer, (long)&got, 0, 0, 0) < 0 || peer.ss_family != AF_UNIX ||
        got <= sizeof peer.ss_family)
        return;
    memcpy(address, &peer, got < room ? got : room);
    *length = got;
}

/* Without a set that the library might know of, now or when it comes back. */
static __attribute__((noinline)) ssize_t read_plainly(int fd, void *buffer, size_t length)
{
    ssize_t result = rp_real.read(fd, buffer, length);
    if (rp_shim_watching())
        tell(fd, length, result);
    return result;
}

/* Not a socket that a ring polls, after all, or nobody knows of it. */
static __attribute__((noinline)) ssize_t read_itself(int fd, void *buffer, size_t length)
{
    ssize_t result = rp_real.read(fd, buffer, length);
    tell(fd, length, result);
    return result;
}

static __attribute__((noinline)) ssize_t write_itself(int fd, const void *buffer, size_t length)
{
    return wrote(fd, length, rp_real.write(fd, buffer, length));
}

/* By the profile, the library may answer. */
static inline bool answers_read(int fd, void *buffer, size_t length, ssize_t *ret_result)
{
    if (answered(ringpoll_try_recv(fd, buffer, length, 0), ret_result))
        return true;
    if (UNLIKELY(rp_shim.batches) && !ringpoll_fd_is_nonblock(fd))
        ringpoll_flush();
    return false;
}

EXPORT ssize_t read(int fd, void *buffer, size_t length)
{
    ssize_t result;
    if (UNLIKELY(length == 0 || !rp_shim_watching()))
        return read_plainly(fd, buffer, length);
    if (rp_shim.adopts && answers_read(fd, buffer, length, &result))
        return result;
    if (UNLIKELY(!RP_SHIM_IS(short_cut) || !ringpoll_fd_is_stream_on_ring(fd)))
        return read_itself(fd, buffer, length);
    result = rp_real.recv(fd, buffer, length, 0);
    if (UNLIKELY(result < 0) && errno == ENOTSOCK)
        return read_itself(fd, buffer, length);
    tell(fd, length, result);
    return result;
}

EXPORT ssize_t write(int fd, const void *buffer, size_t length)
{
    ssize_t result;
    if (UNLIKELY(!rp_shim_watching()))
        return write_itself(fd, buffer, length);
    if (rp_shim.adopts) {
        if (answered(ringpoll_try_send(fd, buffer, length, 0), &result))
            return result;
        if (rp_shim.batches)
            ringpoll_flush();
    }
    if (UNLIKELY(length == 0 || !RP_SHIM_IS(short_cut) || !ringpoll_fd_is_stream_on_ring(fd)))
        return write_itself(fd, buffer, length);
    result = rp_real.send(fd, buffer, length, 0);
    if (UNLIKELY(result < 0) && errno == ENOTSOCK)
        return write_itself(fd, buffer, length);
    return wrote(fd, length, result);
}

EXPORT ssize_t readv(int fd, const struct iovec *iov, int count)
{
    ssize_t result;
    if (rp_shim.adopts && rp_shim_watching() && answered(ringpoll_try_readv(fd, iov, count), &result))
        return result;
    before_real_read(fd);
    if (count > 0 && count <= 1024 && rp_shim_watching() && rp_shim.short_cut && ringpoll_fd_is_stream_on_ring(fd)) {
        struct msghdr message = {.msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = (size_t)count};
        if (count == 1 && iov->iov_len > 0)
            result = rp_real.recv(fd, iov->iov_base, iov->iov_len, 0);
        else if (length_of(iov, (size_t)count) > 0)
            result = rp_real.recvmsg(fd, &message, 0);
        else
            result = rp_real.readv(fd, iov, count);
        if (UNLIKELY(result < 0) && errno == ENOTSOCK)
            result = rp_real.readv(fd, iov, count);
    } else
        result = rp_real.readv(fd, iov, count);
    rp_shim_after_readv(fd, iov, count, result);
    return result;
}

EXPORT ssize_t recv(int fd, void *buffer, size_t length, int flags)
{
    ssize_t result;
    if (answers_recv(fd, buffer, length, flags, &result))
        return result;
    result = rp_real.recv(fd, buffer, length, flags);
    if (rp_shim_watching())
        tell(fd, flags & ~PLAIN_FLAGS ? 0 : length, result);
    return result;
}

EXPORT ssize_t recvfrom(int fd, void *restrict buffer, size_t length, int flags, __SOCKADDR_ARG address,
                        socklen_t *restrict address_length)
{
    ssize_t result;
    if (answers_recv(fd, buffer, length, flags, &result)) {
        struct sockaddr *to = *(struct sockaddr **)(void *)&address;
        if (result >= 0 && to && address_length)
            peer_address(fd, to, address_length);
        return result;
    }
    result = rp_real.recvfrom(fd, buffer, length, flags, address, address_length);
    rp_shim_after_recv(fd, length, flags, result);
    return result;
}

EXPORT ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    ssize_t result;
    if (rp_shim.adopts && rp_shim_watching() && message) {
        socklen_t room = message->msg_namelen;
        if (answered(ringpoll_try_recvmsg(fd, message, flags), &result)) {
            if (result >= 0 && message->msg_name) {
                message->msg_namelen = room;
                peer_address(fd, message->msg_name, &message->msg_namelen);
            }
            if (result >= 0 && message->msg_controllen)
                ringpoll_fds_shared(message);
            return result;
        }
    }
    before_real_read(fd);
    result = rp_real.recvmsg(fd, message, flags);
    rp_shim_after_recvmsg(fd, message, flags, result);
    return result;
}

EXPORT int recvmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags, struct timespec *timeout)
{
    if (!RP_LATE(recvmmsg))
        return rp_fail(ENOSYS);
    unsigned done = 0;
    if (rp_shim.adopts && rp_shim_watching() && messages) {
        ringpoll_fd_release(fd, 0);
        if (ringpoll_fd_pending(fd) && count > 0) { /* unlike recvmsg, it looks for an error before it reads */
            int error = ringpoll_try_error(fd);
            socklen_t size = sizeof error;
            if (error == 0)
                rp_raw(SYS_getsockopt, fd, SOL_SOCKET, SO_ERROR, (long)&error, (long)&size, 0);
            if (error)
                return rp_fail(error);
        }
        for (ssize_t length; done < count && ringpoll_fd_pending(fd); done++) {
            int how = flags & ~MSG_WAITFORONE;
            if (done > 0) {
                /* An error waits for the next call where this one has something to tell. */
                char byte;
                if (ringpoll_try_recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0)
                    return (int)done;
                how |= flags & MSG_WAITFORONE ? MSG_DONTWAIT : 0;
            }
            if (!answered(ringpoll_try_recvmsg(fd, &messages[done].msg_hdr, how), &length))
                break;
            if (length < 0)
                return -1;
            messages[done].msg_len = (unsigned)length;
            if (messages[done].msg_hdr.msg_controllen)
                ringpoll_fds_shared(&messages[done].msg_hdr);
        }
        if (done > 0) {
            /* Beside the library's, what the kernel has. */
            struct pollfd look = {.fd = fd, .events = POLLIN};
            struct timespec now = {0, 0};
            rp_raw(SYS_ppoll, (long)&look, 1, (long)&now, 0, 8, 0);
            if (done == count || (look.revents & POLLERR))
                return (int)done;
            messages += done;
            count -= done;
            flags |= flags & MSG_WAITFORONE ? MSG_DONTWAIT : 0;
        }
    }
    if (!(flags & MSG_DONTWAIT))
        before_real_read(fd);
    int saved = errno;
    int result = rp_real.recvmmsg(fd, messages, count, flags, timeout);
    if (done > 0 && result < 0) {
        errno = saved;
        return (int)done;
    }
    if (rp_shim_watching()) {
        for (int i = 0; i < result; i++)
            if (messages[i].msg_hdr.msg_controllen)
                ringpoll_fds_shared(&messages[i].msg_hdr);
        tell(fd, 0, result);
    }
    return result < 0 ? result : result + (int)done;
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
    ssize_t result;
    if (length > 0 && length <= size && answers_recv(fd, buffer, length, 0, &result))
        return result;
    result = RP_LATE(read_chk) ? rp_real.read_chk(fd, buffer, length, size) : rp_real.read(fd, buffer, length);
    rp_shim_after_read(fd, length, result);
    return result;
}

EXPORT ssize_t fortified_recv(int fd, void *buffer, size_t length, size_t size, int flags)
{
    ssize_t result;
    if (length <= size && answers_recv(fd, buffer, length, flags, &result))
        return result;
    result = RP_LATE(recv_chk) ? rp_real.recv_chk(fd, buffer, length, size, flags)
                                       : rp_real.recv(fd, buffer, length, flags);
    rp_shim_after_recv(fd, length, flags, result);
    return result;
}

EXPORT ssize_t fortified_recvfrom(int fd, void *buffer, size_t length, size_t size, int flags,
                                  struct sockaddr *address, socklen_t *address_length)
{
    ssize_t result;
    if (length <= size && answers_recv(fd, buffer, length, flags, &result)) {
        if (result >= 0 && address && address_length)
            peer_address(fd, address, address_length);
        return result;
    }
    result = RP_LATE(recvfrom_chk)
                         ? rp_real.recvfrom_chk(fd, buffer, length, size, flags, address, address_length)
                         : rp_real.recvfrom(fd, buffer, length, flags, address, address_length);
    rp_shim_after_recv(fd, length, flags, result);
    return result;
}

/* ------------------------------------------------------------- passed fds */

void rp_shim_before_sendmsg(const struct msghdr *message)
{
    if (UNLIKELY(message->msg_controllen != 0))
        ringpoll_fds_shared(message); /* a set moves to its identity, all of it */
}

EXPORT ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    ssize_t taken;
    if (message && message->msg_controllen) {
        if (rp_shim_active())
            rp_shim_before_sendmsg(message);
        if (write_refused(fd, &taken))
            return taken;
    } else if (message && !message->msg_name && message->msg_iovlen > 0 && message->msg_iovlen <= 1024 &&
               answers_sendv(fd, message->msg_iov, (int)message->msg_iovlen, flags, &taken)) {
        return taken;
    } else if (message && message->msg_name) {
        rp_shim_flush();
    }
    ssize_t result = rp_real.sendmsg(fd, message, flags);
    return wrote(fd, UNLIKELY(rp_shim.batches) && result >= 0 ? length_of(message->msg_iov, message->msg_iovlen) : 0,
                 result);
}

EXPORT int sendmmsg(int fd, struct mmsghdr *messages, unsigned count, int flags)
{
    if (!RP_LATE(sendmmsg))
        return rp_fail(ENOSYS);
    if (messages && rp_shim_active())
        for (unsigned i = 0; i < count; i++)
            rp_shim_before_sendmsg(&messages[i].msg_hdr);
    ssize_t failed;
    if (count > 0 && write_refused(fd, &failed))
        return (int)failed;
    return (int)wrote(fd, count, rp_real.sendmmsg(fd, messages, count, flags));
}

/* ------------------------------------------------------------------ writes */

EXPORT ssize_t send(int fd, const void *buffer, size_t length, int flags)
{
    ssize_t taken;
    if (answers_send(fd, buffer, length, flags, &taken))
        return taken;
    return wrote(fd, length, rp_real.send(fd, buffer, length, flags));
}

EXPORT ssize_t sendto(int fd, const void *buffer, size_t length, int flags, __CONST_SOCKADDR_ARG address,
                      socklen_t address_length)
{
    ssize_t taken;
    if (*(const struct sockaddr *const *)(const void *)&address != NULL)
        rp_shim_flush();
    else if (answers_send(fd, buffer, length, flags, &taken))
        return taken;
    return wrote(fd, length, rp_real.sendto(fd, buffer, length, flags, address, address_length));
}

EXPORT ssize_t writev(int fd, const struct iovec *iov, int count)
{
    ssize_t taken;
    /* (Of nothing it does nothing: other than sendmsg it takes no error.) */
    bool nothing = (uintptr_t)iov >= 4096 && count > 0 && rp_shim.adopts && iov->iov_len == 0 &&
                   length_of(iov, (size_t)count) == 0;
    if (!nothing && count > 0 && count <= 1024 && answers_sendv(fd, iov, count, 0, &taken))
        return taken;
    ssize_t result;
    if (count > 0 && count <= 1024 && rp_shim_watching() && rp_shim.short_cut && ringpoll_fd_is_stream_on_ring(fd)) {
        struct msghdr message = {.msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = (size_t)count};
        if (count == 1 && iov->iov_len > 0)
            result = rp_real.send(fd, iov->iov_base, iov->iov_len, 0);
        else if (length_of(iov, (size_t)count) > 0)
            result = rp_real.sendmsg(fd, &message, 0);
        else
            result = rp_real.writev(fd, iov, count);
        if (LIKELY(result >= 0) || errno != ENOTSOCK)
            return wrote(fd, UNLIKELY(rp_shim.batches) && result >= 0 ? length_of(iov, (size_t)count) : 0, result);
    }
    result = rp_real.writev(fd, iov, count);
    return wrote(fd, UNLIKELY(rp_shim.batches) && result >= 0 ? length_of(iov, (size_t)count) : 0, result);
}

EXPORT ssize_t sendfile(int to, int from, off_t *offset, size_t count)
{
    ssize_t failed;
    if (write_refused(to, &failed))
        return failed;
    return RP_LATE(sendfile) ? wrote(to, count, rp_real.sendfile(to, from, offset, count)) : rp_fail(ENOSYS);
}

EXPORT ssize_t sendfile64(int to, int from, off64_t *offset, size_t count)
{
    ssize_t failed;
    if (write_refused(to, &failed))
        return failed;
    return RP_LATE(sendfile64) ? wrote(to, count, rp_real.sendfile64(to, from, offset, count)) : rp_fail(ENOSYS);
}

/* A read that says nothing of whether more is there, but takes what a wake-up told of. */
static ssize_t spliced(int from, ssize_t result)
{
    if (rp_shim_watching())
        tell(from, 0, result);
    return result;
}

#define SPLICE_FLAGS ((unsigned)(SPLICE_F_MOVE | SPLICE_F_NONBLOCK | SPLICE_F_MORE | SPLICE_F_GIFT))

/* From a socket into a pipe: first what the library has. */
EXPORT ssize_t splice(int from, off64_t *from_offset, int to, off64_t *to_offset, size_t length, unsigned flags)
{
    if (!RP_LATE(splice))
        return rp_fail(ENOSYS);
    ssize_t failed;
    if (LIKELY(!rp_shim.adopts) || !rp_shim_watching() || length == 0)
        return spliced(from, rp_real.splice(from, from_offset, to, to_offset, length, flags));
    if (write_refused(to, &failed))
        return failed;
    ringpoll_fd_release(from, 0);
    /* What cannot be, the kernel says before it takes anything. */
    if (ringpoll_fd_pending(from) && !from_offset && !to_offset && !(flags & ~SPLICE_FLAGS) &&
        rp_raw(SYS_fcntl, to, F_GETPIPE_SZ, 0, 0, 0, 0) >= 0) {
        char bytes[4096]; /* PIPE_BUF: all of it or nothing, where the pipe is not blocking */
        long got = ringpoll_try_recv(from, bytes, length < sizeof bytes ? length : sizeof bytes,
                                     MSG_PEEK | MSG_DONTWAIT);
        if (got > 0) {
            struct pollfd look = {.fd = to, .events = POLLOUT};
            struct timespec now = {0, 0};
            if ((flags & SPLICE_F_NONBLOCK) && rp_raw(SYS_ppoll, (long)&look, 1, (long)&now, 0, 8, 0) == 0)
                return rp_fail(EAGAIN);
            got = rp_answer(rp_raw(SYS_write, to, (long)bytes, got, 0, 0, 0));
            if (got > 0)
                ringpoll_try_recv(from, bytes, (size_t)got, MSG_DONTWAIT);
            return got;
        }
        if (got < 0 && got != RINGPOLL_PASS) {
            ringpoll_try_error(from);
            return rp_answer(got);
        }
    }
    return wrote(to, length, spliced(from, rp_real.splice(from, from_offset, to, to_offset, length, flags)));
}

/* ------------------------------------------------------ poll and its like
 *
 * A set becomes what it looks like. An adopted socket is given back, and what the
 * library has of it is reported beside what the kernel says. */

bool rp_shim_before_poll(const struct pollfd *fds, nfds_t count)
{
    bool pending = false;
    if (LIKELY(!rp_shim_watching()))
        return false;
    if (rp_shim.batches)
        ringpoll_flush();
    for (nfds_t i = 0; fds && i < count; i++) {
        if (fds[i].fd < 0)
            continue;
        if (UNLIKELY(ringpoll_fd_is_set(fds[i].fd)))
            ringpoll_demote(fds[i].fd);
        else if (rp_shim.adopts) {
            ringpoll_fd_release(fds[i].fd, 0);
            pending |= (ringpoll_fd_pending(fds[i].fd) & (uint32_t)(fds[i].events | POLLERR | POLLHUP)) != 0;
        }
    }
    return pending;
}

/* What the library has is added to what the kernel said. */
int rp_shim_after_poll(struct pollfd *fds, nfds_t count, int result)
{
    if (result < 0)
        return result;
    for (nfds_t i = 0; i < count; i++) {
        if (fds[i].fd < 0 || (fds[i].revents & POLLNVAL))
            continue;
        uint32_t bits = ringpoll_fd_pending(fds[i].fd) & (uint32_t)(fds[i].events | POLLERR | POLLHUP);
        if (bits && !fds[i].revents)
            result++;
        fds[i].revents = (short)(fds[i].revents | (short)bits);
    }
    return result;
}

/* The same for sets of bits: those among `asked` that are pending. */
static bool bits_pending(int count, const fd_set *asked, unsigned long *ret_words)
{
    const unsigned bits = 8 * sizeof(unsigned long);
    const unsigned long *words = (const unsigned long *)asked;
    bool any = false;
    for (unsigned i = 0; words && (int)(i * bits) < count; i++) {
        ret_words[i] = 0;
        for (unsigned long word = words[i]; word; word &= word - 1) {
            unsigned fd = i * bits + (unsigned)__builtin_ctzl(word);
            if ((int)fd >= count)
                break;
            ringpoll_fd_release((int)fd, 0);
            if (ringpoll_fd_pending((int)fd)) {
                ret_words[i] |= 1ul << (fd % bits);
                any = true;
            }
        }
    }
    return any;
}

static int after_select(int count, fd_set *reads, const unsigned long *pending, int result)
{
    const unsigned bits = 8 * sizeof(unsigned long);
    unsigned long *words = (unsigned long *)reads;
    for (unsigned i = 0; result >= 0 && (int)(i * bits) < count; i++) {
        result += __builtin_popcountl(pending[i] & ~words[i]);
        words[i] |= pending[i];
    }
    return result;
}

/* More than that many fds in a select are asked of the kernel alone. */
#define MOST_SELECTED 65536

static void before_select(int count, const fd_set *reads, const fd_set *writes, const fd_set *others)
{
    if (LIKELY(!rp_shim_watching()))
        return;
    if (rp_shim.batches)
        ringpoll_flush();
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
    if (UNLIKELY(rp_shim_before_poll(fds, count)))
        return rp_shim_after_poll(fds, count, rp_real.poll(fds, count, 0));
    return rp_real.poll(fds, count, timeout);
}

EXPORT int plain_ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask)
{
    static const struct timespec now = {0, 0};
    bool pending = rp_shim_before_poll(fds, count);
    int result = RP_LATE(ppoll) ? rp_real.ppoll(fds, count, pending ? &now : timeout, mask) : rp_fail(ENOSYS);
    return UNLIKELY(pending) ? rp_shim_after_poll(fds, count, result) : result;
}

EXPORT int fortified_poll(struct pollfd *fds, nfds_t count, int timeout, size_t size)
{
    bool pending = rp_shim_before_poll(fds, count);
    timeout = pending ? 0 : timeout;
    int result = RP_LATE(poll_chk) ? rp_real.poll_chk(fds, count, timeout, size) : rp_real.poll(fds, count, timeout);
    return UNLIKELY(pending) ? rp_shim_after_poll(fds, count, result) : result;
}

EXPORT int fortified_ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask,
                           size_t size)
{
    static const struct timespec now = {0, 0};
    bool pending = rp_shim_before_poll(fds, count);
    timeout = pending ? &now : timeout;
    int result = RP_LATE(ppoll_chk) ? rp_real.ppoll_chk(fds, count, timeout, mask, size)
                 : RP_LATE(ppoll)   ? rp_real.ppoll(fds, count, timeout, mask)
                                    : rp_fail(ENOSYS);
    return UNLIKELY(pending) ? rp_shim_after_poll(fds, count, result) : result;
}

EXPORT int select(int count, fd_set *restrict reads, fd_set *restrict writes, fd_set *restrict others,
                  struct timeval *restrict timeout)
{
    before_select(count, reads, writes, others);
    if (!RP_LATE(select))
        return rp_fail(ENOSYS);
    if (UNLIKELY(rp_shim.adopts) && rp_shim_watching() && reads && count > 0 && count <= MOST_SELECTED) {
        unsigned long pending[MOST_SELECTED / (8 * sizeof(unsigned long))];
        struct timeval now = {0, 0};
        if (bits_pending(count, reads, pending))
            return after_select(count, reads, pending, rp_real.select(count, reads, writes, others, &now));
    }
    return rp_real.select(count, reads, writes, others, timeout);
}

EXPORT int pselect(int count, fd_set *restrict reads, fd_set *restrict writes, fd_set *restrict others,
                   const struct timespec *restrict timeout, const sigset_t *restrict mask)
{
    before_select(count, reads, writes, others);
    if (!RP_LATE(pselect))
        return rp_fail(ENOSYS);
    if (UNLIKELY(rp_shim.adopts) && rp_shim_watching() && reads && count > 0 && count <= MOST_SELECTED) {
        unsigned long pending[MOST_SELECTED / (8 * sizeof(unsigned long))];
        struct timespec now = {0, 0};
        if (bits_pending(count, reads, pending))
            return after_select(count, reads, pending, rp_real.pselect(count, reads, writes, others, &now, mask));
    }
    return rp_real.pselect(count, reads, writes, others, timeout, mask);
}

ALSO_KNOWN_AS(read, "__read");
ALSO_KNOWN_AS(recv, "__recv");
ALSO_KNOWN_AS(select, "__select");
EXPORT extern int also_poll(struct pollfd *fds, nfds_t count, int timeout) __asm__("__poll")
    __attribute__((alias("poll")));
