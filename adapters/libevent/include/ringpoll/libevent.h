/* SPDX-License-Identifier: MIT
 *
 * For libevent's own source alone: event.c of a tree that `ringpoll integrate libevent`
 * has prepared includes this file behind its own headers, and puts ringpoll_tree_ops
 * before its other backends. All that this library has to know of struct event_base
 * is told here by the compiler that lays it out, so that every version and every
 * configuration of such a tree fits.
 *
 * The ops below only begin: where a ring can be had and nobody refuses it, init puts
 * this library's own into the base, and libevent calls those from then on. Otherwise
 * it answers NULL, and libevent goes on to its next backend, which is epoll.
 */
#ifndef RINGPOLL_LIBEVENT_H
#define RINGPOLL_LIBEVENT_H

#include <stddef.h>

#include <ringpoll/event.h>

static void *ringpoll_tree_init(struct event_base *base)
{
    struct ringpoll_event_tree tree = {
        .size = sizeof tree,
        .count = offsetof(struct event_base, event_count),
        .running = offsetof(struct event_base, running_loop),
        .priorities = offsetof(struct event_base, nactivequeues),
        .flags = offsetof(struct event_base, flags),
        .io_active = evmap_io_active_,
        .loop_continue = event_base_loopcontinue,
        .signals_init = evsig_init_,
        .signals_dealloc = evsig_dealloc_,
    };
#ifndef EVENT__DISABLE_THREAD_SUPPORT
    tree.lock = offsetof(struct event_base, th_base_lock);
    tree.locks = &evthread_lock_fns_;
#endif
    return ringpoll_event_tree_init(base, &tree);
}

static const struct eventop ringpoll_tree_ops = {
    .name = "io_uring",
    .init = ringpoll_tree_init,
    .need_reinit = 1,
    .features = EV_FEATURE_ET | EV_FEATURE_O1 | EV_FEATURE_EARLY_CLOSE,
};

#endif
