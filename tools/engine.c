/* SPDX-License-Identifier: MIT
 *
 * What a set would run on: found out by making one, watching something, waiting
 * and looking what became of it, rather than by guessing from features. `probe`
 * reports it and `run --require` decides by it, so they cannot disagree.
 */
#include "command.h"

#include <string.h>
#include <sys/socket.h>

#include <ringpoll/ringpoll.h>

void find_engine(struct engine *engine)
{
    struct ringpoll_options options = {.size = sizeof(options), .flags = RINGPOLL_CLOEXEC | RINGPOLL_TRACKED};
    int pair[2] = {-1, -1};
    memset(engine, 0, sizeof(*engine));
    int set = ringpoll_create(&options);
    if (set < 0) {
        engine->reason = RINGPOLL_REASON_NO_RING;
        engine->error = set;
        return;
    }
    /* The kind of fd that a ring always serves: a set without one makes none. */
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) == 0) {
        struct epoll_event event = {.events = EPOLLIN};
        ringpoll_fd_opened(pair[0], RINGPOLL_FD_UNIX | RINGPOLL_FD_CONNECTED | RINGPOLL_FD_NONBLOCK);
        ringpoll_ctl(set, EPOLL_CTL_ADD, pair[0], &event);
    }
    struct epoll_event happened;
    struct timespec at_once = {0, 0};
    struct ringpoll_stats stats = {.size = sizeof(stats)};
    ringpoll_wait(set, &happened, 1, &at_once, NULL);
    if (ringpoll_get_stats(set, &stats) == 0) {
        engine->is_ring = stats.engine == RINGPOLL_ENGINE_RING;
        engine->reason = stats.reason;
        engine->error = stats.reason == RINGPOLL_REASON_NO_RING ? stats.error : 0;
    }
    for (int i = 0; i < 2; i++) {
        if (pair[i] >= 0)
            ringpoll_close(pair[i]);
    }
    ringpoll_close(set);
}
