/* SPDX-License-Identifier: MIT
 *
 * Between install.c, which finds libevent's inside and swaps, and backend.c, which is
 * what stands there afterwards.
 */
#ifndef RP_EVENT_BACKEND_H
#define RP_EVENT_BACKEND_H

#include <stdbool.h>

#include "layout.h"

#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

/* libevent's own, by dlsym: programs link libevent or libevent_core. */
struct event_inside {
    uint32_t (*version)(void);
    const char *(*method)(const struct event_base *base);
    int (*features)(const struct event_base *base);
    int (*reinit)(struct event_base *base);
    int (*loop)(struct event_base *base, int flags);
    int (*loop_continue)(struct event_base *base); /* NULL: not to be had */
    int (*count)(struct event_base *base, unsigned what);
    int (*priorities)(struct event_base *base);
    int (*priority_init)(struct event_base *base, int count);
    struct event_base *(*base_new)(void);
    struct event_base *(*base_new_with_config)(const struct event_config *config);
    void (*base_free)(struct event_base *base);
    struct event_config *(*config_new)(void);
    int (*config_flag)(struct event_config *config, int flag);
    void (*config_free)(struct event_config *config);
    int (*once)(struct event_base *base, int fd, short events, void (*callback)(int, short, void *), void *argument,
                const struct timeval *timeout);
    int (*signals_init)(struct event_base *base);
    void (*signals_dealloc)(struct event_base *base);
    /* What each turn asks for, together. */
    void (*io_active)(struct event_base *base, int fd, short events);
    const struct event_locks *locks;
};
extern struct event_inside event_inside;
extern const struct event_layout *event_layout; /* of the libevent that is loaded */
/* Finds it and makes sure of it, once; 0, -ENOTSUP or -ENOMEM. */
int event_know(void);
/* The base's own lock, where it has one. */
void event_lock(struct event_base *base, bool on);
extern unsigned event_forks; /* that led to this process */

/* install.c: a libevent that tells of itself, instead of one that is looked into; the
 * lines of `tree` are what counts. 0, or why not. */
struct ringpoll_event_tree;
int event_know_tree(const struct ringpoll_event_tree *tree);
/* The program refuses the method for this base. */
bool event_is_refused(struct event_base *base);
/* The base has our backend. */
bool event_is_ours(const struct event_base *base);

/* The two fields that every struct event_base begins with. */
struct event_base_head {
    const struct eventop *op;
    void *state;
};
static inline struct event_base_head *event_head(struct event_base *base)
{
    return (struct event_base_head *)base;
}

/* The backend, made before libevent asks for it: in event_reinit() an init that fails
 * ends the process. 0, or why not. */
struct event_state;
int event_state_new(struct event_state **ret_state);
void event_state_free(struct event_state *state);
/* Its set, in which something may be declared from now on. */
int event_state_set(struct event_state *state, struct event_base *base);
/* Made when asked for; NULL: no memory. */
struct event_outputs;
struct event_outputs *event_state_outputs(struct event_state *state, struct event_base *base);
/* Made by the parent of this process. */
bool event_state_is_inherited(const struct event_state *state);

/* backend.c's. The first init takes `prepared` of the calling thread, the first dealloc
 * before that calls the one that was there. */
extern const struct eventop event_backend;
struct event_swap {
    const struct eventop *before;
    struct event_state *prepared;
};
extern __thread struct event_swap *event_swap;

#endif
