/* SPDX-License-Identifier: MIT
 *
 * What of libevent's inside this library leans on: one line per version and data
 * model, and nothing that install.c does not verify in the running process.
 */
#ifndef RP_EVENT_LAYOUT_H
#define RP_EVENT_LAYOUT_H

#include <stddef.h>
#include <stdint.h>
#include <sys/time.h>

#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/bufferevent_struct.h>
#include <event2/event_struct.h>
#include <event2/listener.h>

struct event_base;
struct event_config;

/* libevent's event-internal.h: the same in 2.1 and 2.2. */
struct eventop {
    const char *name;
    void *(*init)(struct event_base *base);
    int (*add)(struct event_base *base, int fd, short old, short events, void *fdinfo);
    int (*del)(struct event_base *base, int fd, short old, short events, void *fdinfo);
    int (*dispatch)(struct event_base *base, struct timeval *timeout);
    void (*dealloc)(struct event_base *base);
    int need_reinit;
    int features;
    size_t fdinfo_len;
};

/* Where struct event_base has what, in bytes. evsel and evbase come first. */
struct event_layout {
    uint32_t version; /* event_get_version_number() >> 8 << 8 */
    uint16_t pointer; /* sizeof(void *) */
    uint16_t count, running, priorities, lock, flags;
};

static const struct event_layout event_layouts[] = {
    {0x02010c00, 8, 208, 240, 256, 432, 464}, /* 2.1.12 */
};

/* struct event_config begins with the list of methods to avoid. */
struct event_avoided {
    struct event_avoided *next;
    void *previous;
    const char *method;
};

/* What stands behind a bufferevent of every type in 2.1, as far as it is the same in all
 * builds: the address of the peer comes next, of 28 bytes or (Debian) 128, and the request
 * for it by name after that. objects.c measures that. */
struct bufferevent_inside {
    struct bufferevent bev;
    void *watermarks;
    unsigned own_lock : 1, read_pending : 1, write_pending : 1, connecting : 1, refused : 1;
    short event_pending;
    uint16_t read_suspended, write_suspended; /* SUSPEND_ bits */
    int errno_pending, dns_error;
    struct event_callback deferred;
    int options, references;
    void *lock;
    ptrdiff_t max_read, max_write;
    void *rate_limits;
    char address[128 + sizeof(void *)];
};
#define SUSPEND_WATERMARK 0x01u
#define SUSPEND_LOOKUP 0x08u

/* A piece of a buffer, in 2.1. Behind it stand its bytes, or, of such as are the program's,
 * what gives those back. */
struct buffer_chain {
    struct buffer_chain *next;
    size_t capacity;
    int64_t misalign; /* what was taken from the front */
    size_t length;
    unsigned flags;
    int references;
    unsigned char *bytes;
};
struct buffer_reference {
    evbuffer_ref_cleanup_cb cleanup;
    void *argument;
};

enum bufferevent_control { CONTROL_SET_FD, CONTROL_GET_FD, CONTROL_UNDERLYING, CONTROL_CANCEL_ALL };
union bufferevent_argument {
    void *pointer;
    evutil_socket_t fd;
};
struct bufferevent_ops {
    const char *type;
    off_t offset; /* of the bufferevent in what is allocated */
    int (*enable)(struct bufferevent *bev, short events);
    int (*disable)(struct bufferevent *bev, short events);
    void (*unlink)(struct bufferevent *bev);   /* the last reference has gone */
    void (*destruct)(struct bufferevent *bev); /* and no callback runs any more */
    int (*adjust_timeouts)(struct bufferevent *bev);
    int (*flush)(struct bufferevent *bev, short events, enum bufferevent_flush_mode mode);
    int (*control)(struct bufferevent *bev, enum bufferevent_control what, union bufferevent_argument *argument);
};

struct listener_ops {
    int (*enable)(struct evconnlistener *listener);
    int (*disable)(struct evconnlistener *listener);
    void (*destroy)(struct evconnlistener *listener); /* the last reference has gone; locked */
    void (*shutdown)(struct evconnlistener *listener);
    evutil_socket_t (*fd)(struct evconnlistener *listener);
    struct event_base *(*base)(struct evconnlistener *listener);
};
struct listener_inside {
    const struct listener_ops *ops;
    void *lock;
    evconnlistener_cb on_accept;
    evconnlistener_errorcb on_error;
    void *argument;
    unsigned flags;
    short references;
    int accept_flags;
    unsigned enabled : 1;
};

/* evthread_lock_fns_ */
struct event_locks {
    int version;
    unsigned types;
    void *(*alloc)(unsigned type);
    void (*free)(void *lock, unsigned type);
    int (*lock)(unsigned mode, void *lock);
    int (*unlock)(unsigned mode, void *lock);
};

#endif
