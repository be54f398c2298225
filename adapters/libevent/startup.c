/* SPDX-License-Identifier: MIT
 *
 * By LD_PRELOAD: every event_base that the program makes has the backend "io_uring",
 * unless its config avoids that, or the program chose a backend by avoiding others.
 * For those who cannot recompile, and for libevent's own suite.
 *
 * $EVENT_NOEPOLL is no such choice: tmux sets it by itself, since epoll does not take
 * /dev/null, and gets poll(2). This backend takes it.
 */
#include <dlfcn.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <event2/event.h>
#include <ringpoll/event.h>

#include "layout.h"

static bool is_replaced(const char *method)
{
    return strncmp(method, "epoll", strlen("epoll")) == 0 || /* tor's is "epoll (with changelist)" */
           (strcmp(method, "poll") == 0 && secure_getenv("EVENT_NOEPOLL") != NULL);
}

/* The base does not tell afterwards. In the layouts of layout.h a config begins with the list. */
static bool is_avoided(const struct event_config *config)
{
    uint32_t (*version_of)(void);
    void *found = dlsym(RTLD_NEXT, "event_get_version_number");
    memcpy(&version_of, &found, sizeof found);
    if (!config || !found || version_of() >> 16 != 0x0201)
        return false;
    for (const struct event_avoided *each = *(struct event_avoided *const *)config; each; each = each->next)
        if (each->method && strcmp(each->method, "io_uring") == 0)
            return true;
    return false;
}

RINGPOLL_API struct event_base *event_base_new_with_config(const struct event_config *config)
{
    static struct event_base *(*real)(const struct event_config *config);
    if (!real) {
        void *found = dlsym(RTLD_NEXT, "event_base_new_with_config");
        memcpy(&real, &found, sizeof found);
    }
    static const char *(*method_of)(const struct event_base *base);
    if (!method_of) {
        void *found = dlsym(RTLD_NEXT, "event_base_get_method");
        memcpy(&method_of, &found, sizeof found);
    }
    struct event_base *base = real ? real(config) : NULL;
    if (base && method_of && is_replaced(method_of(base)) && !is_avoided(config))
        (void)ringpoll_event_install(base);
    return base;
}
