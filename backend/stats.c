/* SPDX-License-Identifier: MIT
 *
 * Words for what the counters and reasons say. The counters themselves live in
 * each set (set.c adds them up).
 */
#include "ringpoll/ringpoll.h"

const char *ringpoll_reason_text(uint32_t reason)
{
    static const char *const texts[] = {
        [RINGPOLL_REASON_NONE] = "none",
        [RINGPOLL_REASON_ASKED] = "kernel epoll was asked for",
        [RINGPOLL_REASON_NO_RING] = "the kernel gives no ring",
        [RINGPOLL_REASON_OLD_KERNEL] = "this kernel's rings interrupt other calls (no DEFER_TASKRUN)",
        [RINGPOLL_REASON_NESTED] = "the epoll fd is watched by another epoll, poll or select",
        [RINGPOLL_REASON_WAITERS] = "more than one thread waits",
        [RINGPOLL_REASON_FORK] = "inherited from the parent process",
        [RINGPOLL_REASON_RESTRICTED] = "io_uring was forbidden (seccomp filter or credentials)",
        [RINGPOLL_REASON_UNFIT] = "its fds are better served by kernel epoll",
        [RINGPOLL_REASON_SHARED] = "the epoll fd was passed on or survives exec",
    };
    return reason < sizeof texts / sizeof texts[0] ? texts[reason] : "unknown";
}

const char *ringpoll_engine_text(uint32_t engine)
{
    static const char *const texts[] = {
        [RINGPOLL_ENGINE_NEW] = "new",
        [RINGPOLL_ENGINE_RING] = "ring",
        [RINGPOLL_ENGINE_KERNEL] = "kernel epoll",
    };
    return engine < sizeof texts / sizeof texts[0] ? texts[engine] : "unknown";
}
