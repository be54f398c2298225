/* SPDX-License-Identifier: MIT
 *
 * What bufferevent.c and listener.c share: libevent's functions for such objects, found
 * and verified by objects.c.
 */
#ifndef RP_EVENT_OBJECTS_H
#define RP_EVENT_OBJECTS_H

#include <stdbool.h>
#include <sys/uio.h>

#include <event2/buffer.h>

#include "backend.h"

struct event_outputs;

struct object_inside {
    void *(*calloc)(size_t count, size_t size);
    void (*free)(void *memory);
    int (*assign)(struct event *event, struct event_base *base, evutil_socket_t fd, short events,
                  void (*callback)(evutil_socket_t, short, void *), void *argument);
    int (*add)(struct event *event, const struct timeval *timeout);
    int (*del)(struct event *event);
    int (*pending)(const struct event *event, short events, struct timeval *ret_timeout);
    void (*active)(struct event *event, int what, short calls);
    size_t (*event_size)(void);
    void (*debug_unassign)(struct event *event);
    void (*callback_init)(struct event_callback *callback, uint8_t priority,
                          void (*function)(struct event_callback *, void *), void *argument);
    int (*callback_schedule)(struct event_base *base, struct event_callback *callback);
    int (*callback_later)(struct event_base *base, struct event_callback *callback); /* base locked; in the next turn */

    int (*got_break)(struct event_base *base);

    struct bufferevent *(*socket_new)(struct event_base *base, evutil_socket_t fd, int options);
    void (*bev_free)(struct bufferevent *bev);
    int (*bev_connect)(struct bufferevent *bev, const struct sockaddr *address, int length);
    int (*bev_setfd)(struct bufferevent *bev, evutil_socket_t fd);
    int (*bev_enable)(struct bufferevent *bev, short events);
    int (*bev_disable)(struct bufferevent *bev, short events);
    int (*bev_set_max_read)(struct bufferevent *bev, size_t size);
    int (*bev_set_max_write)(struct bufferevent *bev, size_t size);
    int (*bev_options)(struct bufferevent *bev);
    void (*bev_incref)(struct bufferevent *bev);
    int (*bev_init)(struct bufferevent_inside *inside, struct event_base *base, const struct bufferevent_ops *ops,
                    int options);
    void (*bev_hold)(struct bufferevent *bev);   /* takes the lock and a reference */
    int (*bev_let_go)(struct bufferevent *bev);  /* gives up both */
    int (*bev_add_event)(struct event *event, const struct timeval *timeout);
    int (*bev_adjust_timeouts)(struct bufferevent *bev);
    void (*bev_run_read)(struct bufferevent *bev, int options);
    void (*bev_run_write)(struct bufferevent *bev, int options);
    void (*bev_run_event)(struct bufferevent *bev, short what, int options);
    void (*bev_suspend_read)(struct bufferevent *bev, uint16_t why);
    void (*bev_unsuspend_read)(struct bufferevent *bev, uint16_t why);
    void (*bev_suspend_write)(struct bufferevent *bev, uint16_t why);
    void (*bev_unsuspend_write)(struct bufferevent *bev, uint16_t why);
    ptrdiff_t (*bev_read_max)(struct bufferevent_inside *inside);
    ptrdiff_t (*bev_write_max)(struct bufferevent_inside *inside);
    int (*bev_was_read)(struct bufferevent_inside *inside, ptrdiff_t bytes);
    int (*bev_was_written)(struct bufferevent_inside *inside, ptrdiff_t bytes);
    const struct sockaddr *(*bev_address)(struct bufferevent *bev);
    int (*bev_set_address)(struct bufferevent *bev, struct sockaddr *address, size_t length);
    void (*bev_set_address_of)(struct bufferevent *bev, evutil_socket_t fd);
    int (*finished_connecting)(evutil_socket_t fd);
    void (*cancel_lookup)(void *request);

    struct evbuffer *(*buffer_new)(void);
    void (*buffer_free)(struct evbuffer *buffer);
    size_t (*buffer_length)(const struct evbuffer *buffer);
    int (*buffer_freeze)(struct evbuffer *buffer, int at_front);
    int (*buffer_unfreeze)(struct evbuffer *buffer, int at_front);
    int (*buffer_drain)(struct evbuffer *buffer, size_t bytes);
    int (*buffer_peek)(struct evbuffer *buffer, ssize_t length, struct evbuffer_ptr *from, struct evbuffer_iovec *vec,
                       int count);
    int (*buffer_reserve)(struct evbuffer *buffer, ssize_t size, struct evbuffer_iovec *vec, int count);
    int (*buffer_commit)(struct evbuffer *buffer, struct evbuffer_iovec *vec, int count);
    int (*buffer_move)(struct evbuffer *from, struct evbuffer *to, size_t bytes);
    int (*buffer_refer)(struct evbuffer *buffer, const void *data, size_t length,
                        void (*cleanup)(const void *, size_t, void *), void *argument);
    int (*buffer_put_before)(struct evbuffer *buffer, struct evbuffer *before);
    int (*buffer_find)(struct evbuffer *buffer, struct evbuffer_ptr *at, size_t position, enum evbuffer_ptr_how how);
    struct evbuffer_cb_entry *(*buffer_on_change)(struct evbuffer *buffer, evbuffer_cb_func function, void *argument);

    struct evconnlistener *(*listener_new)(struct event_base *base, evconnlistener_cb on_accept, void *argument,
                                           unsigned flags, int backlog, evutil_socket_t fd);
    struct evconnlistener *(*listener_new_bind)(struct event_base *base, evconnlistener_cb on_accept, void *argument,
                                                unsigned flags, int backlog, const struct sockaddr *address, int length);
    void (*listener_free)(struct evconnlistener *listener);
    int (*listener_enable)(struct evconnlistener *listener);
    void (*listener_set_error)(struct evconnlistener *listener, evconnlistener_errorcb on_error);
    int (*make_reuseable)(evutil_socket_t fd);
    int (*make_reuseable_port)(evutil_socket_t fd);
    int (*make_deferred)(evutil_socket_t fd);
    int (*make_ipv6only)(evutil_socket_t fd);
    const struct bufferevent_ops *socket_ops;
};
extern struct object_inside inside;
extern size_t object_lookup_at; /* where a bufferevent keeps the request for an address by name */
extern unsigned object_reference_flags; /* of chains of the program's memory; 0: chains are not known */

/* 0: they are as layout.h says. -ENOTSUP, -ENOMEM: not so, or not known. libevent itself
 * is known (install.c). */
int objects_know(void);

/* Whether objects of ours can work for this base: 0; 1: it is not on the ring, a plain one
 * shall be made; or a negative errno. */
int objects_fit(struct event_base *base, struct event_outputs **ret_outputs);

/* A socket as it is for ringpoll_fd_opened(): its kind and RINGPOLL_FD_NONBLOCK; 0: none that
 * the ring could do better than a poll; or a negative errno (-ENOTSOCK, -EBADF). Inside the
 * callback of a listener of ours its new connection is known without a call. */
int object_kind(int fd);
struct object_accepted {
    int fd, kind;
};
extern __thread struct object_accepted object_accepted;

/* Whether the base has events on it, whoever's. Any thread. */
bool event_is_registered(struct event_base *base, int fd);
/* The same, of an fd that the library was made to forget: it knows of them again. */
bool event_register_again(struct event_base *base, int fd);

/* While set: a backend_del() does not make the ring let go of the fd. */
extern __thread bool event_del_keeps;

/* The outputs of a base, see bufferevent.c. They outlive event_reinit(). */
struct event_outputs *event_outputs_new(struct event_base *base);
void event_outputs_free(struct event_outputs *outputs);

static inline void object_lock(void *lock)
{
    if (lock)
        event_inside.locks->lock(0, lock);
}
static inline void object_unlock(void *lock)
{
    if (lock)
        event_inside.locks->unlock(0, lock);
}

#endif
