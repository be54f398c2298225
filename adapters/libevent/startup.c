/* SPDX-License-Identifier: MIT
 *
 * By LD_PRELOAD: every event_base that the program makes has the backend "io_uring",
 * unless its config avoids that, or the program chose a backend by avoiding others.
 * For those who cannot recompile, and for libevent's own suite.
 *
 * $EVENT_NOEPOLL is no such choice: tmux sets it by itself, since epoll does not take
 * /dev/null, and gets poll(2). This backend takes it.
 *
 * With RINGPOLL_EVENT_COMPLETION=1 in the environment its bufferevents of type socket and
 * its listeners are libringpoll-event's, too, also those that libevent itself makes
 * (evhttp): it calls these by name.
 */
#include <dlfcn.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/listener.h>
#include <ringpoll/event.h>

#include "layout.h"

static void next(const char *name, void *to)
{
    void *found = dlsym(RTLD_NEXT, name);
    memcpy(to, &found, sizeof found);
}

static bool is_replaced(const char *method)
{
    return strncmp(method, "epoll", strlen("epoll")) == 0 || /* tor's is "epoll (with changelist)" */
           (strcmp(method, "poll") == 0 && secure_getenv("EVENT_NOEPOLL") != NULL);
}

/* The base does not tell afterwards. In the layouts of layout.h a config begins with the list. */
static bool is_avoided(const struct event_config *config)
{
    uint32_t (*version_of)(void);
    next("event_get_version_number", &version_of);
    if (!config || !version_of || version_of() >> 16 != 0x0201)
        return false;
    for (const struct event_avoided *each = *(struct event_avoided *const *)config; each; each = each->next)
        if (each->method && strcmp(each->method, "io_uring") == 0)
            return true;
    return false;
}

static bool completes(void)
{
    static int wanted = -1;
    if (wanted < 0) {
        const char *value = secure_getenv("RINGPOLL_EVENT_COMPLETION");
        wanted = value && strcmp(value, "1") == 0;
    }
    return wanted;
}

RINGPOLL_API struct event_base *event_base_new_with_config(const struct event_config *config)
{
    static struct event_base *(*real)(const struct event_config *config);
    static const char *(*method_of)(const struct event_base *base);
    if (!real)
        next("event_base_new_with_config", &real);
    if (!method_of)
        next("event_base_get_method", &method_of);
    struct event_base *base = real ? real(config) : NULL;
    if (base && method_of && is_replaced(method_of(base)) && !is_avoided(config))
        (void)ringpoll_event_install(base);
    return base;
}

RINGPOLL_API struct bufferevent *bufferevent_socket_new(struct event_base *base, evutil_socket_t fd, int options)
{
    static struct bufferevent *(*real)(struct event_base *base, evutil_socket_t fd, int options);
    static __thread bool inside; /* where a plain one is what ours falls back to */
    if (!real)
        next("bufferevent_socket_new", &real);
    if (inside || !completes() || ringpoll_event_set(base) < 0)
        return real(base, fd, options);
    inside = true;
    struct bufferevent *bev = ringpoll_bufferevent_socket_new(base, fd, options);
    inside = false;
    return bev ? bev : real(base, fd, options);
}

RINGPOLL_API struct evconnlistener *evconnlistener_new(struct event_base *base, evconnlistener_cb on_accept,
                                                       void *argument, unsigned flags, int backlog, evutil_socket_t fd)
{
    static struct evconnlistener *(*real)(struct event_base *base, evconnlistener_cb on_accept, void *argument,
                                          unsigned flags, int backlog, evutil_socket_t fd);
    static __thread bool inside;
    if (!real)
        next("evconnlistener_new", &real);
    if (inside || !completes() || ringpoll_event_set(base) < 0)
        return real(base, on_accept, argument, flags, backlog, fd);
    inside = true;
    struct evconnlistener *listener = ringpoll_listener_new(base, on_accept, argument, flags, backlog, fd);
    inside = false;
    return listener ? listener : real(base, on_accept, argument, flags, backlog, fd);
}
