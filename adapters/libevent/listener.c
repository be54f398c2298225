/* SPDX-License-Identifier: MIT
 *
 * A listener whose connections the ring accepts.
 *
 * To libevent it is an evconnlistener with operations of our own: the same structure, one
 * persistent event on the fd, the same loop of accepts and the same order of locks and
 * callbacks. The listener is declared to ringpoll while the event is added, so that after
 * some accepts a multishot accept stands in for the poll, and a connection is taken from
 * the library's queue.
 *
 * Who owns a connection: the library until accept hands it out, then who is called. A
 * listener that is disabled keeps what is queued, as the kernel keeps its backlog, and goes
 * on with it when it is enabled; one that is freed resets it, as a close does, also where
 * the fd stays open: it may be closed next without a word. What comes then waits in the
 * kernel, but for what comes before the loop's next turn where another thread frees it.
 */
#include "objects.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <event2/event.h>
#include <event2/thread.h>
#include <event2/util.h>
#include <ringpoll/event.h>

struct ring_listener {
    struct listener_inside inside; /* first: libevent knows no other */
    struct event event;
    struct event_base *base;
    int backlog;
    int kind; /* for ringpoll_fd_opened(); 0: never declared */
    bool declared;
};

static struct ring_listener *of(struct evconnlistener *listener)
{
    return (struct ring_listener *)listener;
}

static void declare(struct ring_listener *ring)
{
    int fd = ring->event.ev_fd;
    if (ring->declared || ring->kind == 0)
        return;
    ringpoll_fd_opened(fd, (uint32_t)ring->kind | RINGPOLL_FD_DECLARED);
    ringpoll_fd_listening(fd, ring->backlog);
    ring->declared = true;
}

static int ring_enable(struct evconnlistener *listener)
{
    struct ring_listener *ring = of(listener);
    declare(ring);
    return inside.add(&ring->event, NULL);
}

static int ring_disable(struct evconnlistener *listener)
{
    struct ring_listener *ring = of(listener);
    if (ring->declared)
        ringpoll_fd_release(ring->event.ev_fd, 0);
    event_del_keeps = ring->declared;
    int result = inside.del(&ring->event);
    event_del_keeps = false;
    return result;
}

static void ring_destroy(struct evconnlistener *listener)
{
    struct ring_listener *ring = of(listener);
    int fd = ring->event.ev_fd;
    inside.del(&ring->event);
    if (ring->inside.flags & LEV_OPT_CLOSE_ON_FREE)
        ringpoll_close(fd);
    else if (ring->declared) /* the program goes on with it, or closes it without a word */
        ringpoll_fd_forget(fd);
    inside.debug_unassign(&ring->event);
}

static evutil_socket_t ring_fd(struct evconnlistener *listener)
{
    return of(listener)->event.ev_fd;
}

static struct event_base *ring_base(struct evconnlistener *listener)
{
    return of(listener)->base;
}

static const struct listener_ops ring_ops = {
    .enable = ring_enable,
    .disable = ring_disable,
    .destroy = ring_destroy,
    .fd = ring_fd,
    .base = ring_base,
};

/* Gives up a reference and the lock; true: that was the last. */
static bool let_go(struct ring_listener *ring)
{
    void *lock = ring->inside.lock;
    if (--ring->inside.references > 0) {
        object_unlock(lock);
        return false;
    }
    ring_destroy((struct evconnlistener *)ring);
    object_unlock(lock);
    if (lock)
        event_inside.locks->free(lock, EVTHREAD_LOCKTYPE_RECURSIVE);
    inside.free(ring);
    return true;
}

static long accept_next(struct ring_listener *ring, int fd, struct sockaddr_storage *address, socklen_t *length)
{
    int flags = ring->inside.accept_flags;
    long result = ringpoll_try_accept(fd, (struct sockaddr *)address, length, flags);
    if (result != RINGPOLL_PASS)
        return result;
    result = accept4(fd, (struct sockaddr *)address, length, flags);
    if (result < 0)
        result = -errno;
    if (ring->declared)
        ringpoll_fd_accepted(fd, (int)result, flags, 1);
    return result;
}

static bool comes_again(long error)
{
    return error == -EAGAIN || error == -EINTR || error == -ECONNABORTED;
}

static void on_connections(evutil_socket_t fd, short events, void *argument)
{
    struct ring_listener *ring = argument;
    struct evconnlistener *listener = argument;
    long result;
    (void)events;
    object_lock(ring->inside.lock);
    for (;;) {
        struct sockaddr_storage address;
        socklen_t length = sizeof address;
        result = accept_next(ring, (int)fd, &address, &length);
        if (result < 0)
            break;
        if (length == 0) { /* gone before it was accepted */
            ringpoll_close((int)result);
            continue;
        }
        if (!ring->inside.on_accept) {
            ringpoll_close((int)result);
            object_unlock(ring->inside.lock);
            return;
        }
        ring->inside.references++;
        evconnlistener_cb on_accept = ring->inside.on_accept;
        void *user = ring->inside.argument;
        struct object_accepted outer = object_accepted;
        object_accepted.fd = (int)result;
        object_accepted.kind = ring->kind == 0 ? 0 : (ring->kind & (int)RINGPOLL_FD_KIND) |
                               (ring->inside.accept_flags & SOCK_NONBLOCK ? (int)RINGPOLL_FD_NONBLOCK : 0);
        if (object_accepted.kind == 0)
            object_accepted.fd = -1;
        object_unlock(ring->inside.lock);
        on_accept(listener, (evutil_socket_t)result, (struct sockaddr *)&address, (int)length, user);
        object_accepted = outer;
        object_lock(ring->inside.lock);
        if (ring->inside.references == 1) {
            let_go(ring);
            return;
        }
        ring->inside.references--;
        if (!ring->inside.enabled) {
            object_unlock(ring->inside.lock);
            return;
        }
    }
    if (comes_again(result) || !ring->inside.on_error) {
        object_unlock(ring->inside.lock);
        return;
    }
    ring->inside.references++;
    evconnlistener_errorcb on_error = ring->inside.on_error;
    void *user = ring->inside.argument;
    object_unlock(ring->inside.lock);
    errno = (int)-result;
    on_error(listener, user);
    object_lock(ring->inside.lock);
    let_go(ring);
}

/* Of one that listens already. */
static int backlog_of(int fd, int kind)
{
    struct tcp_info info = {0};
    socklen_t length = sizeof info;
    if ((kind & (int)RINGPOLL_FD_KIND) == (int)RINGPOLL_FD_TCP && getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) == 0)
        return (int)info.tcpi_sacked; /* the limit of its backlog */
    return SOMAXCONN;
}

struct evconnlistener *ringpoll_listener_new(struct event_base *base, evconnlistener_cb on_accept, void *argument,
                                             unsigned flags, int backlog, evutil_socket_t fd)
{
    int fits = objects_fit(base, NULL);
    if (fits == 1)
        return inside.listener_new ? inside.listener_new(base, on_accept, argument, flags, backlog, fd) : NULL;
    int kind = fits == 0 ? object_kind((int)fd) : 0;
    if (fits < 0 || kind < 0) {
        errno = fits < 0 ? -fits : -kind;
        return NULL;
    }
    if (backlog != 0 && listen((int)fd, backlog > 0 ? backlog : 128) < 0)
        return NULL;
    struct ring_listener *ring = inside.calloc(1, sizeof *ring);
    if (!ring) {
        errno = ENOMEM;
        return NULL;
    }
    ring->inside = (struct listener_inside){
        .ops = &ring_ops,
        .on_accept = on_accept,
        .argument = argument,
        .flags = flags,
        .references = 1,
        .accept_flags = (flags & LEV_OPT_LEAVE_SOCKETS_BLOCKING ? 0 : SOCK_NONBLOCK) |
                        (flags & LEV_OPT_CLOSE_ON_EXEC ? SOCK_CLOEXEC : 0),
    };
    if ((flags & LEV_OPT_THREADSAFE) && event_inside.locks->alloc)
        ring->inside.lock = event_inside.locks->alloc(EVTHREAD_LOCKTYPE_RECURSIVE);
    ring->base = base;
    ring->kind = kind & (int)RINGPOLL_FD_NONBLOCK ? kind : 0;
    ring->backlog = backlog > 0 ? backlog : backlog < 0 ? 128 : backlog_of((int)fd, kind);
    inside.assign(&ring->event, base, fd, EV_READ | EV_PERSIST, on_connections, ring);
    struct evconnlistener *listener = (struct evconnlistener *)ring;
    if (!(flags & LEV_OPT_DISABLED))
        inside.listener_enable(listener);
    return listener;
}

struct evconnlistener *ringpoll_listener_new_bind(struct event_base *base, evconnlistener_cb on_accept, void *argument,
                                                  unsigned flags, int backlog, const struct sockaddr *address,
                                                  int length)
{
    int fits = objects_fit(base, NULL), on = 1;
    if (fits == 1)
        return inside.listener_new_bind
                   ? inside.listener_new_bind(base, on_accept, argument, flags, backlog, address, length) : NULL;
    if (fits < 0 || backlog == 0) {
        errno = fits < 0 ? -fits : EINVAL;
        return NULL;
    }
    int fd = socket(address ? address->sa_family : AF_UNSPEC,
                    SOCK_STREAM | SOCK_NONBLOCK | (flags & LEV_OPT_CLOSE_ON_EXEC ? SOCK_CLOEXEC : 0), 0);
    if (fd < 0)
        return NULL;
    struct evconnlistener *listener = NULL;
    if (setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on) == 0 &&
        (!(flags & LEV_OPT_REUSEABLE) || inside.make_reuseable(fd) == 0) &&
        (!(flags & LEV_OPT_REUSEABLE_PORT) || inside.make_reuseable_port(fd) == 0) &&
        (!(flags & LEV_OPT_DEFERRED_ACCEPT) || inside.make_deferred(fd) == 0) &&
        (!(flags & LEV_OPT_BIND_IPV6ONLY) || inside.make_ipv6only(fd) == 0) &&
        (!address || bind(fd, address, (socklen_t)length) == 0))
        listener = ringpoll_listener_new(base, on_accept, argument, flags, backlog, fd);
    if (!listener) {
        int error = errno;
        close(fd);
        errno = error;
    }
    return listener;
}
