/* SPDX-License-Identifier: MIT
 *
 * What a set would run on: found out by making one, watching something, waiting
 * and looking what became of it, rather than by guessing from features. `probe`
 * reports it and `run --require` decides by it, so they cannot disagree.
 */
#include "command.h"

#include <string.h>
#include <sys/eventfd.h>

#include <ringpoll/ringpoll.h>

void find_engine(struct engine *engine)
{
    struct ringpoll_options options = {.size = sizeof(options), .flags = RINGPOLL_CLOEXEC};
    memset(engine, 0, sizeof(*engine));
    int set = ringpoll_create(&options);
    if (set < 0) {
        engine->reason = RINGPOLL_REASON_NO_RING;
        engine->error = set;
        return;
    }
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN};
    struct timespec at_once = {0, 0};
    struct ringpoll_stats stats = {.size = sizeof(stats)};
    if (fd >= 0)
        ringpoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
    ringpoll_wait(set, &event, 1, &at_once, NULL);
    if (ringpoll_stats(set, &stats) == 0) {
        engine->is_ring = stats.engine == RINGPOLL_ENGINE_RING;
        engine->reason = stats.reason;
        engine->error = stats.reason == RINGPOLL_REASON_NO_RING ? stats.error : 0;
    }
    if (fd >= 0)
        ringpoll_close(fd);
    ringpoll_close(set);
}
