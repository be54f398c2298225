/* SPDX-License-Identifier: MIT
 *
 * What a libevent calls that was configured --with-uring (ringpoll/libevent.h): its
 * first backend, and the objects that complete on the ring.
 */
#include "backend.h"

#include <errno.h>
#include <stdbool.h>

#include <event2/event.h>
#include <ringpoll/event.h>

/* Whether a ring can be had is tried once: later, a set that gets none is kernel epoll
 * inside. The ring that is made for it stays with the thread for its next set. */
static bool can_have_ring(void)
{
    static bool can; /* atomic */
    if (__atomic_load_n(&can, __ATOMIC_RELAXED))
        return true;
    struct ringpoll_options options = {.size = sizeof options, .flags = RINGPOLL_CLOEXEC | RINGPOLL_REQUIRE};
    int set = ringpoll_create(&options);
    if (set < 0)
        return false;
    ringpoll_close(set);
    __atomic_store_n(&can, true, __ATOMIC_RELAXED);
    return true;
}

void *ringpoll_event_tree_init(struct event_base *base, const struct ringpoll_event_tree *tree)
{
    struct event_state *state;
    if (!base || !tree || tree->size != sizeof *tree || event_know_tree(tree) < 0 || event_is_refused(base) ||
        !can_have_ring() || event_state_new(&state) < 0)
        return NULL;
    event_head(base)->op = &event_backend;
    event_inside.signals_init(base);
    return state;
}

/* Each may come back here for an object of libevent's own to start from. */
static __thread bool making;

struct bufferevent *ringpoll_event_tree_bufferevent(struct event_base *base, int fd, int options)
{
    if (making || !event_is_ours(base))
        return NULL;
    making = true;
    struct bufferevent *made = ringpoll_bufferevent_socket_new(base, fd, options);
    making = false;
    return made;
}

struct evconnlistener *ringpoll_event_tree_listener(
    struct event_base *base, void (*callback)(struct evconnlistener *, int, struct sockaddr *, int, void *),
    void *argument, unsigned flags, int backlog, int fd)
{
    if (making || !event_is_ours(base))
        return NULL;
    making = true;
    struct evconnlistener *made = ringpoll_listener_new(base, callback, argument, flags, backlog, fd);
    making = false;
    return made;
}
