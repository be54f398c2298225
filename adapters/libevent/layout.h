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
