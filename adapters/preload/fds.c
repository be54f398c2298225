/* SPDX-License-Identifier: MIT
 *
 * The life of an fd: born, duplicated, changed, closed.
 *
 * A close must be seen, or the peer waits for its FIN for ever: a poll in flight
 * holds the file. A birth that is missed only costs speed, since the library
 * serves an unknown fd by kernel epoll; so only the kinds that it can serve
 * better are reported, and timerfds, files and the like come and go unnoticed.
 *
 * Notices of what may fail are given only when it cannot fail any more: dup2
 * onto a watched fd from a bad one leaves the watched one open, and its
 * registration must stay. Where the notice has to come first (a close), the call
 * that follows cannot fail but by the fd's not being open.
 */
#include "preload.h"

#include <linux/sockios.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/resource.h>

#ifndef SOL_TCP
#define SOL_TCP 6
#endif
#define TCP_UPPER_LAYER_PROTOCOL 31 /* TCP_ULP */
#ifndef CLOSE_RANGE_UNSHARE
#define CLOSE_RANGE_UNSHARE (1u << 1)
#endif
#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC (1u << 2)
#endif
#ifndef F_SETSIG
#define F_SETSIG 10
#endif
#ifndef F_SETOWN_EX
#define F_SETOWN_EX 15
#endif

/* ------------------------------------------------------------------ birth */

uint32_t rp_shim_socket_kind(int domain, int type, int protocol)
{
    if ((type & 0xf) != SOCK_STREAM)
        return RINGPOLL_FD_OTHER;
    if ((domain == AF_INET || domain == AF_INET6) && (protocol == 0 || protocol == IPPROTO_TCP))
        return RINGPOLL_FD_TCP;
    return domain == AF_UNIX ? RINGPOLL_FD_UNIX : RINGPOLL_FD_OTHER;
}

uint32_t rp_shim_socket_flags(int type)
{
    return type & SOCK_NONBLOCK ? RINGPOLL_FD_NONBLOCK : 0;
}

/* What a listener's connections are, kind + 1, learnt at its first accept. */
#define LISTENERS 65536
static uint8_t listener_kinds[LISTENERS];

static void forget_listener(int fd)
{
    if ((unsigned)fd < LISTENERS && __atomic_load_n(&listener_kinds[fd], __ATOMIC_RELAXED))
        __atomic_store_n(&listener_kinds[fd], 0, __ATOMIC_RELAXED);
}

static int socket_option(int fd, int name)
{
    int value = -1;
    socklen_t length = sizeof value;
    return rp_raw(SYS_getsockopt, fd, SOL_SOCKET, name, (long)&value, (long)&length, 0) < 0 ? -1 : value;
}

static uint32_t kind_of_accepted(int listener)
{
    bool in_range = (unsigned)listener < LISTENERS;
    if (in_range) {
        uint8_t known = __atomic_load_n(&listener_kinds[listener], __ATOMIC_RELAXED);
        if (known)
            return known - 1u;
    }
    int type = socket_option(listener, SO_TYPE);
    uint32_t kind = RINGPOLL_FD_OTHER;
    if (type >= 0)
        kind = rp_shim_socket_kind(socket_option(listener, SO_DOMAIN), type, socket_option(listener, SO_PROTOCOL));
    if (in_range)
        __atomic_store_n(&listener_kinds[listener], (uint8_t)(kind + 1), __ATOMIC_RELAXED);
    return kind;
}

bool rp_shim_is_listener(int fd)
{
    return (unsigned)fd >= LISTENERS || __atomic_load_n(&listener_kinds[fd], __ATOMIC_RELAXED) != 0;
}

/* A TCP listener resets what nobody has accepted; an AF_UNIX one gives it out still. */
void rp_shim_before_listener_ends(int fd)
{
    struct linger at_once = {1, 0};
    long queued;
    ringpoll_fd_release(fd, 0);
    if ((unsigned)fd >= LISTENERS || __atomic_load_n(&listener_kinds[fd], __ATOMIC_RELAXED) != RINGPOLL_FD_TCP + 1)
        return;
    while (ringpoll_fd_pending(fd) && (queued = ringpoll_try_accept(fd, NULL, NULL, 0)) >= 0) {
        rp_raw(SYS_setsockopt, queued, SOL_SOCKET, SO_LINGER, (long)&at_once, sizeof at_once, 0);
        ringpoll_close((int)queued);
    }
}

void rp_shim_after_accept(int listener, int fd, int flags)
{
    ringpoll_fd_opened(fd, kind_of_accepted(listener) | RINGPOLL_FD_CONNECTED | rp_shim_socket_flags(flags));
}

EXPORT int socket(int domain, int type, int protocol)
{
    int fd = rp_real.socket(domain, type, protocol);
    if (fd >= 0 && rp_shim_awake())
        ringpoll_fd_opened(fd, rp_shim_socket_kind(domain, type, protocol) | rp_shim_socket_flags(type));
    return fd;
}

EXPORT int socketpair(int domain, int type, int protocol, int fds[2])
{
    int result = rp_real.socketpair(domain, type, protocol, fds);
    if (result == 0 && rp_shim_awake()) {
        uint32_t what = rp_shim_socket_kind(domain, type, protocol) | rp_shim_socket_flags(type);
        ringpoll_fd_opened(fds[0], what | RINGPOLL_FD_CONNECTED);
        ringpoll_fd_opened(fds[1], what | RINGPOLL_FD_CONNECTED);
    }
    return result;
}

/* From the library's queue, where it accepts for this listener. */
bool rp_shim_answers_accept(int fd, struct sockaddr *address, socklen_t *length, int flags, int *ret_fd)
{
    if (LIKELY(!rp_shim.accepts) || !rp_shim_watching())
        return false;
    long result = ringpoll_try_accept(fd, address, length, flags);
    if (result == RINGPOLL_PASS)
        return false;
    if (UNLIKELY(rp_shim.any_cancel))
        pthread_testcancel();
    *ret_fd = (int)rp_answer(result);
    return true;
}

void rp_shim_accepted(int fd, int result, int flags, bool with_address)
{
    if (result >= 0)
        rp_shim_after_accept(fd, result, flags);
    if (rp_shim.accepts && rp_shim_watching())
        ringpoll_fd_accepted(fd, result >= 0 ? result : -errno, flags, with_address);
}

static struct sockaddr *address_of(__SOCKADDR_ARG address)
{
    return *(struct sockaddr **)(void *)&address;
}

EXPORT int accept(int fd, __SOCKADDR_ARG address, socklen_t *restrict length)
{
    int made;
    if (rp_shim_answers_accept(fd, address_of(address), length, 0, &made))
        return made;
    rp_shim_flush_if_blocking(fd);
    made = rp_real.accept(fd, address, length);
    if (rp_shim_active())
        rp_shim_accepted(fd, made, 0, address_of(address) != NULL);
    return made;
}

EXPORT int accept4(int fd, __SOCKADDR_ARG address, socklen_t *restrict length, int flags)
{
    int made;
    if (rp_shim_answers_accept(fd, address_of(address), length, flags, &made))
        return made;
    rp_shim_flush_if_blocking(fd);
    made = rp_real.accept4(fd, address, length, flags);
    if (rp_shim_active())
        rp_shim_accepted(fd, made, flags, address_of(address) != NULL);
    return made;
}

/* `error`: 0, or connect's errno. */
void rp_shim_after_connect(int fd, const struct sockaddr *address, int error)
{
    if (error == 0 && address && address->sa_family == AF_UNSPEC)
        ringpoll_fd_leave(fd); /* disconnected: may listen or connect anew */
    else if (error == 0 || error == EINPROGRESS || error == EINTR || error == EALREADY || error == EISCONN)
        ringpoll_fd_connected(fd);
}

EXPORT int connect(int fd, __CONST_SOCKADDR_ARG address, socklen_t length)
{
    rp_shim_flush();
    int result = rp_real.connect(fd, address, length);
    if (rp_shim_active()) {
        int saved = errno;
        const struct sockaddr *to = NULL;
        if (length >= sizeof to->sa_family)
            to = *(const struct sockaddr *const *)(const void *)&address;
        rp_shim_after_connect(fd, to, result == 0 ? 0 : saved);
        errno = saved;
    }
    return result;
}

EXPORT int listen(int fd, int backlog)
{
    int result = rp_real.listen(fd, backlog);
    if (result == 0 && rp_shim_active()) {
        if (rp_shim.accepts)
            ringpoll_fd_listening(fd, backlog);
        else
            ringpoll_fd_leave(fd);
    }
    return result;
}

/* Options that change nothing about what a read returns, or when. */
static bool keeps_reads(int level, int name)
{
    if (level == SOL_SOCKET)
        switch (name) {
        case SO_KEEPALIVE: case SO_LINGER: case SO_SNDBUF: case SO_RCVBUF: case SO_SNDBUFFORCE: case SO_RCVBUFFORCE:
        case SO_REUSEADDR: case SO_REUSEPORT: case SO_SNDTIMEO: case SO_RCVTIMEO: case SO_PRIORITY: case SO_MARK:
        case SO_BROADCAST: case SO_DONTROUTE: case SO_INCOMING_CPU: case SO_BUSY_POLL: case SO_MAX_PACING_RATE:
        case SO_SNDLOWAT: case SO_BINDTODEVICE:
            return true;
        default:
            return false;
        }
    if (level == SOL_TCP)
        switch (name) {
        case TCP_NODELAY: case TCP_CORK: case TCP_QUICKACK: case TCP_KEEPIDLE: case TCP_KEEPINTVL: case TCP_KEEPCNT:
        case TCP_USER_TIMEOUT: case TCP_CONGESTION: case TCP_DEFER_ACCEPT: case TCP_LINGER2: case TCP_MAXSEG:
        case TCP_SYNCNT: case TCP_WINDOW_CLAMP: case TCP_FASTOPEN: case TCP_NOTSENT_LOWAT:
            return true;
        default:
            return false;
        }
    return level == IPPROTO_IP || level == IPPROTO_IPV6; /* TOS, TTL, V6ONLY: packets, not the stream */
}

/* Kernel TLS cuts reads at record boundaries: a short one proves nothing. And it
 * decrypts what the kernel has: with bytes in the library it must not begin, and
 * the program is told what a kernel without TLS says. */
int rp_shim_before_setsockopt(int fd, int level, int name)
{
    if (level == SOL_TCP && UNLIKELY(name == TCP_UPPER_LAYER_PROTOCOL)) {
        ringpoll_fd_leave(fd);
        return ringpoll_fd_pending(fd) ? ENOENT : 0;
    }
    if (rp_shim.adopts && !keeps_reads(level, name))
        ringpoll_fd_release(fd, 1);
    return 0;
}

EXPORT int setsockopt(int fd, int level, int name, const void *value, socklen_t length)
{
    rp_shim_flush();
    if (rp_shim_active()) {
        int error = rp_shim_before_setsockopt(fd, level, name);
        if (UNLIKELY(error))
            return rp_fail(error);
    }
    return rp_real.setsockopt(fd, level, name, value, length);
}

/* An error that the library has taken away is told here, and once. */
EXPORT int getsockopt(int fd, int level, int name, void *restrict value, socklen_t *restrict length)
{
    int error;
    if (level == SOL_TCP && name == TCP_INFO) /* how much is on its way */
        rp_shim_flush();
    if (level == SOL_SOCKET && name == SO_ERROR && rp_shim.adopts && rp_shim_watching() && value && length &&
        (int)*length >= 0 && (error = ringpoll_try_error(fd)) != 0) {
        if (*length > sizeof error)
            *length = sizeof error;
        memcpy(value, &error, *length);
        return 0;
    }
    return rp_real.getsockopt(fd, level, name, value, length);
}

static void pipe_opened(const int fds[2], int flags)
{
    uint32_t what = RINGPOLL_FD_PIPE | RINGPOLL_FD_CONNECTED | (flags & O_NONBLOCK ? RINGPOLL_FD_NONBLOCK : 0);
    ringpoll_fd_opened(fds[0], what);
    ringpoll_fd_opened(fds[1], what);
}

EXPORT int pipe(int fds[2])
{
    int result = rp_real.pipe(fds);
    if (result == 0 && rp_shim_active())
        pipe_opened(fds, 0);
    return result;
}

EXPORT int pipe2(int fds[2], int flags)
{
    int result = rp_real.pipe2(fds, flags);
    if (result == 0 && rp_shim_active())
        pipe_opened(fds, flags);
    return result;
}

EXPORT int eventfd(unsigned initial, int flags)
{
    int fd = rp_real.eventfd(initial, flags);
    if (fd >= 0 && rp_shim_active())
        ringpoll_fd_opened(fd, (flags & EFD_SEMAPHORE ? RINGPOLL_FD_OTHER : RINGPOLL_FD_EVENTFD) |
                                   (flags & EFD_NONBLOCK ? RINGPOLL_FD_NONBLOCK : 0));
    return fd;
}

/* ------------------------------------------------------------ duplication */

/* dup2 and dup3 name a number, and the library may be using it: then it moves. */
static bool make_room(int to)
{
    return LIKELY(!ringpoll_fd_is_internal(to)) || ringpoll_fd_vacate(to) == 0;
}

/* The limit of fds; prlimit64's structure has 64 bits on every machine. */
static bool limit_of_fds(uint64_t *ret_current, uint64_t *ret_maximum)
{
    uint64_t limit[2];
    if (rp_raw(SYS_prlimit64, 0, RLIMIT_NOFILE, 0, (long)limit, 0, 0) < 0)
        return false;
    *ret_current = limit[0];
    *ret_maximum = limit[1];
    return true;
}

bool rp_shim_before_dup_onto(int from, int to)
{
    uint64_t current, maximum;
    /* The call will fail by itself, and leave `to` open. */
    if (from < 0 || to < 0 || ringpoll_fd_is_internal(from) ||
        rp_raw(SYS_fcntl, from, F_GETFD, 0, 0, 0, 0) < 0 ||
        (limit_of_fds(&current, &maximum) && (uint64_t)to >= current)) {
        errno = EBADF;
        return false;
    }
    if (!make_room(to)) {
        errno = EBUSY;
        return false;
    }
    forget_listener(to);
    ringpoll_fd_closing(to);
    return true;
}

void rp_shim_after_dup(int from, int to)
{
    ringpoll_fd_duplicated(from, to);
}

EXPORT int dup(int fd)
{
    if (!rp_shim_active())
        return rp_real.dup(fd);
    if (ringpoll_fd_is_internal(fd))
        return rp_fail(EBADF);
    int made = rp_real.dup(fd);
    if (made >= 0)
        rp_shim_after_dup(fd, made);
    return made;
}

EXPORT int dup2(int from, int to)
{
    if (!rp_shim_active())
        return rp_real.dup2(from, to);
    if (from == to)
        return ringpoll_fd_is_internal(from) ? rp_fail(EBADF) : rp_real.dup2(from, to);
    if (!rp_shim_before_dup_onto(from, to))
        return -1;
    int made = rp_real.dup2(from, to);
    if (made >= 0)
        rp_shim_after_dup(from, made);
    return made;
}

EXPORT int dup3(int from, int to, int flags)
{
    if (!rp_shim_active() || from == to || (flags & ~O_CLOEXEC))
        return rp_real.dup3(from, to, flags);
    if (!rp_shim_before_dup_onto(from, to))
        return -1;
    int made = rp_real.dup3(from, to, flags);
    if (made >= 0)
        rp_shim_after_dup(from, made);
    return made;
}

bool rp_shim_before_fcntl(int fd, int command)
{
    if (command == F_SETLKW || command == F_OFD_SETLKW)
        rp_shim_flush();
    if (UNLIKELY(ringpoll_fd_is_internal(fd)))
        return false;
    if (command == F_SETOWN || command == F_SETOWN_EX || command == F_SETSIG) {
        if (ringpoll_fd_is_set(fd))
            ringpoll_demote(fd);
        else if (rp_shim.adopts) /* it hears of every byte by a signal */
            ringpoll_fd_release(fd, 1);
    }
    return true;
}

void rp_shim_after_fcntl(int fd, int command, long argument, int result)
{
    if (result < 0)
        return;
    if (command == F_DUPFD || command == F_DUPFD_CLOEXEC)
        rp_shim_after_dup(fd, result);
    else if (command == F_SETFL)
        ringpoll_fd_nonblock(fd, (argument & O_NONBLOCK) != 0);
}

static int do_fcntl(__typeof__(fcntl) *real, int fd, int command, void *argument)
{
    if (!rp_shim_active())
        return real(fd, command, argument);
    if (!rp_shim_before_fcntl(fd, command))
        return rp_fail(EBADF);
    int result = real(fd, command, argument);
    rp_shim_after_fcntl(fd, command, (long)argument, result);
    return result;
}

/* As libc does it: the third argument is one word, whatever it means. */
EXPORT int fcntl(int fd, int command, ...)
{
    va_list list;
    va_start(list, command);
    void *argument = va_arg(list, void *);
    va_end(list);
    return do_fcntl(rp_real.fcntl, fd, command, argument);
}

EXPORT int fcntl64(int fd, int command, ...)
{
    va_list list;
    va_start(list, command);
    void *argument = va_arg(list, void *);
    va_end(list);
    return do_fcntl(rp_real.fcntl64, fd, command, argument);
}

EXPORT int ioctl(int fd, unsigned long request, ...)
{
    va_list list;
    va_start(list, request);
    void *argument = va_arg(list, void *);
    va_end(list);
    int result, unread = 0, known = 0;
    if (rp_shim.adopts && rp_shim_watching()) {
        if (request == FIONREAD && argument && (known = ringpoll_try_unread(fd, &unread)) == 2) {
            *(int *)argument = unread;
            return 0;
        }
        if (request == SIOCOUTQ || request == SIOCOUTQNSD)
            rp_shim_flush();
        if (request == SIOCATMARK || request == FIOASYNC)
            ringpoll_fd_release(fd, 1);
    }
    result = rp_real.ioctl(fd, request, argument);
    if (known == 1 && result == 0)
        *(int *)argument += unread;
    if (request == FIONBIO && result == 0 && rp_shim_active())
        ringpoll_fd_nonblock(fd, *(const int *)argument != 0);
    return result;
}

/* ------------------------------------------------------------------ close */

bool rp_shim_before_close(int fd)
{
    if (UNLIKELY(ringpoll_fd_is_internal(fd)))
        return false;
    rp_shim_flush();
    forget_listener(fd);
    ringpoll_fd_closing(fd);
    return true;
}

EXPORT int close(int fd)
{
    if (!rp_shim_active())
        return rp_real.close(fd);
    /* Cancelled here, the fd stays open: then its registrations must, too. */
    if (!rp_shim_single_threaded())
        pthread_testcancel();
    if (!rp_shim_before_close(fd))
        return rp_fail(EBADF);
    return rp_real.close(fd);
}

/* The highest fd number that can be open: the library's own lie below it. */
static unsigned highest_fd(void)
{
    uint64_t current, maximum;
    return limit_of_fds(&current, &maximum) && maximum <= 1u << 22 ? (unsigned)maximum : 1u << 22;
}

/* One by one, where there is no close_range (before 5.9, or filtered). */
static int close_each(unsigned first, unsigned last)
{
    for (unsigned fd = first; fd <= last; fd++)
        rp_raw(SYS_close, (int)fd, 0, 0, 0, 0, 0);
    return 0;
}

static int close_piece(unsigned first, unsigned last, unsigned flags)
{
    if (first > last)
        return 0;
#ifdef SYS_close_range
    long result = rp_raw(SYS_close_range, first, last, flags, 0, 0, 0);
    return (int)result;
#else
    (void)flags;
    return -ENOSYS;
#endif
}

/* The library's own fds cut the range into pieces. */
static int close_around(unsigned first, unsigned last, unsigned flags,
                        int (*close_one)(unsigned, unsigned, unsigned))
{
    unsigned top = highest_fd();
    unsigned begin = first;
    for (unsigned fd = first; fd <= last && fd <= top; fd++) {
        if (LIKELY(!ringpoll_fd_is_internal((int)fd)))
            continue;
        if (begin < fd) {
            int result = close_one(begin, fd - 1, flags);
            if (result < 0)
                return result;
        }
        begin = fd + 1;
    }
    return begin <= last ? close_one(begin, last, flags) : 0;
}

static int close_each_piece(unsigned first, unsigned last, unsigned flags)
{
    unsigned top = highest_fd();
    (void)flags;
    return close_each(first, last < top ? last : top);
}

int rp_shim_close_range(unsigned first, unsigned last, unsigned flags)
{
    /* Marking for exec closes nothing; bad arguments are the kernel's to refuse. */
    if (first > last || (flags & ~CLOSE_RANGE_UNSHARE))
        return (int)rp_raw(SYS_close_range, first, last, flags, 0, 0, 0);
    /* Found out before anything is given up for closed. */
    int possible = close_piece(~0u, ~0u, 0);
    if (possible < 0)
        return possible;
    rp_shim_flush();
    for (unsigned fd = first; fd <= last && fd < LISTENERS; fd++)
        forget_listener((int)fd);
    ringpoll_fd_closing_range(first, last);
    return close_around(first, last, flags, close_piece);
}

EXPORT int close_range(unsigned first, unsigned last, int flags)
{
    if (!rp_shim_active())
        return rp_real.close_range(first, last, flags);
    return (int)rp_answer(rp_shim_close_range(first, last, (unsigned)flags));
}

EXPORT void closefrom(int low)
{
    if (!rp_shim_active()) {
        if (RP_LATE(closefrom))
            rp_real.closefrom(low);
        else
            close_each_piece(low < 0 ? 0 : (unsigned)low, ~0u, 0);
        return;
    }
    unsigned first = low < 0 ? 0 : (unsigned)low;
    if (rp_shim_close_range(first, ~0u, 0) == 0)
        return;
    ringpoll_fd_closing_range(first, ~0u);
    close_around(first, ~0u, 0, close_each_piece);
}

/* ------------------------------------------------------------------ stdio */

/* stdio closes, and reads, by calls that nobody can interpose. */
static int descriptor_of(FILE *stream)
{
    int saved = errno;
    int fd = fileno_unlocked(stream);
    errno = saved;
    return fd;
}

EXPORT int fclose(FILE *stream)
{
    if (RP_LATE(fclose) && rp_shim_active()) {
        int fd = descriptor_of(stream);
        if (fd >= 0)
            rp_shim_before_close(fd);
    }
    return rp_real.fclose(stream);
}

EXPORT FILE *fdopen(int fd, const char *mode)
{
    if (RP_LATE(fdopen) && rp_shim_active()) {
        if (ringpoll_fd_is_internal(fd)) {
            errno = EBADF;
            return NULL;
        }
        ringpoll_fd_leave(fd);
    }
    return rp_real.fdopen(fd, mode);
}

static void before_freopen(FILE *stream)
{
    if (!rp_shim_active())
        return;
    int fd = descriptor_of(stream);
    if (fd >= 0)
        rp_shim_before_close(fd);
}

EXPORT FILE *freopen(const char *restrict path, const char *restrict mode, FILE *restrict stream)
{
    if (RP_LATE(freopen))
        before_freopen(stream);
    return rp_real.freopen(path, mode, stream);
}

EXPORT FILE *freopen64(const char *restrict path, const char *restrict mode, FILE *restrict stream)
{
    if (RP_LATE(freopen64))
        before_freopen(stream);
    return rp_real.freopen64(path, mode, stream);
}

ALSO_KNOWN_AS(close, "__close");
ALSO_KNOWN_AS(fcntl, "__fcntl");
ALSO_KNOWN_AS(dup2, "__dup2");
ALSO_KNOWN_AS(connect, "__connect");
ALSO_KNOWN_AS(socket, "__socket");
ALSO_KNOWN_AS(pipe, "__pipe");
