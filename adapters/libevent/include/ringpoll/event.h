/* SPDX-License-Identifier: MIT
 *
 * ringpoll under a stock libevent: an event_base whose backend is "io_uring".
 *
 *     struct event_base *base = event_base_new();
 *     ringpoll_event_install(base);        // or stay on epoll: both work
 *
 * What is registered moves over, and everything else is libevent's own: events,
 * signals, timeouts, priorities, evthread, event_reinit() after a fork,
 * event_base_free(). Below, each base has one set of ringpoll.h.
 *
 * libevent's internals are pinned per version (2.1.12) and verified in
 * the running process before anything is touched; what is not known is refused, and
 * the base stays as it was. Where there is no io_uring the backend is in place all
 * the same and runs on kernel epoll.
 *
 * Ownership: the base has the set; event_base_free() ends it. As with epoll, an fd
 * that is closed is taken out by event_del() before, since a poll on a ring holds
 * its file.
 */
#ifndef RINGPOLL_EVENT_H
#define RINGPOLL_EVENT_H

#include <ringpoll/ringpoll.h>

#ifdef __cplusplus
extern "C" {
#endif

#include <event2/listener.h>
#include <event2/util.h>

struct bufferevent;
struct event_base;
struct event_config;
struct evconnlistener;
struct sockaddr;

/* For event_config_set_flag(): bases of this config have no ring. */
#define RINGPOLL_EVENT_NO_URING 0x40000000

/* Puts the backend "io_uring" into `base`. Any thread that may call event_reinit() on
 * it: none runs its loop, and none else uses it meanwhile. No callback runs. Signals of
 * the calling thread are held back while it works.
 *
 *  0         event_base_get_method() answers "io_uring"; also where it did before
 *  -EINVAL   `base` is NULL
 *  -EBUSY    its loop is running
 *  -ENOTSUP  another version or build of libevent than this library knows, or the
 *            program refuses the method: $EVENT_NOURING, $EVENT_NOIO_URING or
 *            RINGPOLL_EVENT_NO_URING in the base's config
 *  -EMFILE, -ENFILE, -ENOMEM: as by epoll_create1(2)
 * With an error nothing has changed. */
RINGPOLL_API int ringpoll_event_install(struct event_base *base);

/* event_base_new_with_config() (event_base_new(), where `config` is NULL) and
 * ringpoll_event_install(), unless the config avoids the method "io_uring" or asks for
 * a feature that it has not (EV_FEATURE_FDS). The base is the caller's; on whatever
 * backend libevent chose, where the install is refused. NULL where libevent makes
 * none. `config` stays the caller's. */
RINGPOLL_API struct event_base *ringpoll_event_base_new(const struct event_config *config);

/* The set of this base, for ringpoll_get_stats() and nothing else; -EINVAL: it has
 * none. */
RINGPOLL_API int ringpoll_event_set(struct event_base *base);

/* ------------------------------------------------------- completion objects
 *
 * A bufferevent and a listener whose bytes and connections the ring brings. They are
 * what libevent's own are (type socket; struct evconnlistener): bufferevent_* and
 * evconnlistener_* work on them with the same rules and from the same threads, and free
 * them. On a base that is not on the ring (ringpoll_event_install() was refused) plain ones
 * are made, with libevent's own errors.
 *
 * What differs: reads and writes are not cut at 4096 and 16384 bytes, unless the program
 * asks for a limit (bufferevent_set_max_single_read(), a rate limit, a high watermark).
 * Received bytes stand in the input by reference and may be kept by whoever takes the
 * evbuffer's chains, also when the bufferevent and its base are gone. Bytes are received
 * before they are asked for: who takes the fd away from a bufferevent that reads
 * (bufferevent_setfd(), bufferevent_free() without BEV_OPT_CLOSE_ON_FREE) and reads it by other
 * means may miss some. bufferevent_base_set() refuses, as it does for filters.
 *
 * NULL with errno, and nothing changed:
 *  EINVAL    `base` is NULL, or the options contradict each other
 *  ECHILD    `base` is the parent's: event_reinit() comes first
 *  ENOTSOCK, EBADF: `fd` is none, and not -1
 *  ENOTSUP   the inside of libevent's objects is not what this library knows
 *  ENOMEM    no memory */

/* bufferevent_socket_new(). */
RINGPOLL_API struct bufferevent *ringpoll_bufferevent_socket_new(struct event_base *base, evutil_socket_t fd,
                                                                 int options);
/* Whether this bufferevent may send without a copy; at first it may not. Where it may, output of 48
 * KiB and more at once, to another machine, is sent so (Linux 6.2; ringpoll_try_sendv_zc() in
 * ringpoll.h): its chains, and what evbuffer_add_reference() put there with a cleanup function, are
 * given back in a later turn of the loop, when the peer has acknowledged them. The write callback is
 * not put off by that. It is not the default, because an execve() by the thread of the loop then waits,
 * in the kernel, until the peers have acknowledged all. From any thread, as other calls on a
 * bufferevent. 0; -EINVAL: NULL; -ENOTSUP: not made by the function above, or on a base that has no ring. */
RINGPOLL_API int ringpoll_bufferevent_set_zero_copy(struct bufferevent *bev, int on);
/* evconnlistener_new() and evconnlistener_new_bind(): also the errno of listen(2), socket(2),
 * bind(2). */
RINGPOLL_API struct evconnlistener *ringpoll_listener_new(struct event_base *base, evconnlistener_cb on_accept,
                                                          void *argument, unsigned flags, int backlog,
                                                          evutil_socket_t fd);
RINGPOLL_API struct evconnlistener *ringpoll_listener_new_bind(struct event_base *base, evconnlistener_cb on_accept,
                                                               void *argument, unsigned flags, int backlog,
                                                               const struct sockaddr *address, int length);

/* ------------------------------------------ called by libevent itself
 *
 * By a libevent that was configured --with-uring: see ringpoll/libevent.h and
 * ringpoll-integrate(1). Not for programs. */

/* Offsets of fields of struct event_base, and functions of libevent. */
struct ringpoll_event_tree {
    uint32_t size; /* sizeof(struct ringpoll_event_tree) */
    uint16_t count, running, priorities, flags, lock;
    uint16_t reserved;
    void (*io_active)(struct event_base *base, int fd, short events);
    int (*loop_continue)(struct event_base *base);
    int (*signals_init)(struct event_base *base);
    void (*signals_dealloc)(struct event_base *base);
    const void *locks; /* NULL: built without threads */
};

/* eventop's init: what becomes base->evbase, after base->evsel was set; or NULL, with
 * nothing changed, where the program refuses the method (see ringpoll_event_install)
 * or no ring can be had. */
RINGPOLL_API void *ringpoll_event_tree_init(struct event_base *base, const struct ringpoll_event_tree *tree);

/* What bufferevent_socket_new() and evconnlistener_new() ask first: an object that
 * completes on the ring, or NULL, with nothing changed: on another backend, or where
 * none can be had. */
RINGPOLL_API struct bufferevent *ringpoll_event_tree_bufferevent(struct event_base *base, int fd, int options);
RINGPOLL_API struct evconnlistener *ringpoll_event_tree_listener(
    struct event_base *base, void (*callback)(struct evconnlistener *, int, struct sockaddr *, int, void *),
    void *argument, unsigned flags, int backlog, int fd);

#ifdef __cplusplus
}
#endif

#endif
