/* SPDX-License-Identifier: MIT
 *
 * Finds libevent's inside, makes sure of it, and swaps the backend of a base.
 *
 * The swap: our struct eventop goes into the base, then the public event_reinit()
 * does all the work. It calls dealloc (the first one goes on to the backend that was
 * there), init, and add for every fd; events, signals and the notification of other
 * threads move over by libevent's own hand.
 *
 * Sure of it, once per process, before the first swap: the version is one of layout.h;
 * every symbol is there; and a base of our own shows at each pinned offset what the
 * public functions say of it: the method by name and features, the number of events,
 * of priorities, its flags, the loop that runs, and a lock where locks are in use.
 * A libevent that was configured --with-uring tells all that itself (tree.c).
 */
#include "backend.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <event2/event.h>
#include <ringpoll/event.h>

struct event_inside event_inside;
const struct event_layout *event_layout;

static int known = 1; /* 1: not looked yet; 0, or why not */
static bool have_symbols;
static __thread bool looking; /* the base of our own comes by here where bases get us by themselves */
static pthread_mutex_t known_lock = PTHREAD_MUTEX_INITIALIZER;

static int field(struct event_base *base, uint16_t at)
{
    int value;
    memcpy(&value, (const char *)base + at, sizeof value);
    return value;
}

static bool find_symbols(void)
{
    const struct {
        const char *name;
        void *to;
    } symbols[] = {
        {"event_get_version_number", &event_inside.version},
        {"event_base_get_method", &event_inside.method},
        {"event_base_get_features", &event_inside.features},
        {"event_reinit", &event_inside.reinit},
        {"event_base_loop", &event_inside.loop},
        {"event_base_loopcontinue", &event_inside.loop_continue},
        {"event_base_get_num_events", &event_inside.count},
        {"event_base_get_npriorities", &event_inside.priorities},
        {"event_base_priority_init", &event_inside.priority_init},
        {"event_base_new", &event_inside.base_new},
        {"event_base_new_with_config", &event_inside.base_new_with_config},
        {"event_base_free", &event_inside.base_free},
        {"event_config_new", &event_inside.config_new},
        {"event_config_set_flag", &event_inside.config_flag},
        {"event_config_free", &event_inside.config_free},
        {"event_base_once", &event_inside.once},
        {"evmap_io_active_", &event_inside.io_active},
        {"evsig_init_", &event_inside.signals_init},
        {"evsig_dealloc_", &event_inside.signals_dealloc},
        {"evthread_lock_fns_", &event_inside.locks},
    };
    for (unsigned i = 0; i < sizeof symbols / sizeof symbols[0]; i++) {
        void *found = dlsym(RTLD_DEFAULT, symbols[i].name);
        if (!found)
            return false;
        memcpy(symbols[i].to, &found, sizeof found);
    }
    return true;
}

static bool names_itself(struct event_base *base)
{
    const struct eventop *op = event_head(base)->op;
    return op && event_head(base)->state && op->name == event_inside.method(base) &&
           op->features == event_inside.features(base) && op->init && op->add && op->del && op->dispatch && op->dealloc;
}

struct look {
    struct event_base *base;
    int running;
};

static void look_inside(int fd, short events, void *argument)
{
    struct look *look = argument;
    (void)fd;
    (void)events;
    look->running = field(look->base, event_layout->running);
}

/* A base that nobody else knows. */
static bool shows_what_it_says(struct event_base *base)
{
    static const struct timeval now;
    struct look look = {.base = base, .running = -1};
    const struct event_layout *layout = event_layout;
    bool locks = event_inside.locks->lock != NULL;
    if (!names_itself(base) || field(base, layout->flags) != EVENT_BASE_FLAG_IGNORE_ENV || (*(void **)((char *)base + layout->lock) != NULL) != locks ||
        event_inside.priority_init(base, 7) != 0 || field(base, layout->priorities) != 7 ||
        event_inside.priorities(base) != 7)
        return false;
    int before = event_inside.count(base, EVENT_BASE_COUNT_ADDED);
    if (field(base, layout->count) != before || field(base, layout->running) != 0 ||
        event_inside.once(base, -1, EV_TIMEOUT, look_inside, &look, &now) != 0)
        return false;
    /* A timeout of zero is active at once, another one is added. */
    struct timeval later = {3600, 0};
    if (event_inside.once(base, -1, EV_TIMEOUT, look_inside, &look, &later) != 0)
        return false;
    int after = event_inside.count(base, EVENT_BASE_COUNT_ADDED);
    if (after <= before || field(base, layout->count) != after || event_inside.loop(base, EVLOOP_ONCE) < 0)
        return false;
    return look.running == 1 && field(base, layout->running) == 0;
}

static int look_at_libevent(void)
{
    have_symbols = find_symbols();
    if (!have_symbols)
        return -ENOTSUP;
    for (unsigned i = 0; i < sizeof event_layouts / sizeof event_layouts[0]; i++)
        if (event_layouts[i].version == (event_inside.version() & 0xffffff00u) &&
            event_layouts[i].pointer == sizeof(void *))
            event_layout = &event_layouts[i];
    if (!event_layout)
        return -ENOTSUP;
    struct event_config *config = event_inside.config_new();
    struct event_base *base = config && event_inside.config_flag(config, EVENT_BASE_FLAG_IGNORE_ENV) == 0
                                  ? event_inside.base_new_with_config(config) : NULL;
    if (config)
        event_inside.config_free(config);
    if (!base)
        return -ENOMEM;
    bool fine = shows_what_it_says(base);
    event_inside.base_free(base);
    if (!fine)
        event_layout = NULL;
    return fine ? 0 : -ENOTSUP;
}

static void in_child(void)
{
    event_forks++;
    ringpoll_fork_child();
}

int event_know(void)
{
    if (looking)
        return -ENOTSUP;
    pthread_mutex_lock(&known_lock);
    if (known == 1) {
        looking = true;
        int error = look_at_libevent();
        looking = false;
        if (error == 0)
            error = -pthread_atfork(ringpoll_fork_prepare, ringpoll_fork_parent, in_child);
        if (error != -ENOMEM)
            known = error;
        pthread_mutex_unlock(&known_lock);
        return error;
    }
    int error = known;
    pthread_mutex_unlock(&known_lock);
    return error;
}

int event_know_tree(const struct ringpoll_event_tree *tree)
{
    static struct event_layout layout;
    if (looking)
        return -ENOTSUP;
    pthread_mutex_lock(&known_lock);
    int error = known == 0 ? 0 : -pthread_atfork(ringpoll_fork_prepare, ringpoll_fork_parent, in_child);
    if (known != 0 && error == 0) {
        have_symbols = find_symbols(); /* a static program shows none: then nothing is installed later */
        layout = (struct event_layout){
            .pointer = sizeof(void *),
            .count = tree->count,
            .running = tree->running,
            .priorities = tree->priorities,
            .lock = tree->lock,
            .flags = tree->flags,
        };
        event_inside.io_active = tree->io_active;
        event_inside.loop_continue = tree->loop_continue;
        event_inside.signals_init = tree->signals_init;
        event_inside.signals_dealloc = tree->signals_dealloc;
        event_inside.locks = tree->locks;
        event_layout = &layout;
        known = 0;
    }
    pthread_mutex_unlock(&known_lock);
    return error;
}

bool event_is_ours(const struct event_base *base)
{
    return base && event_head((struct event_base *)(uintptr_t)base)->op == &event_backend;
}

bool event_is_refused(struct event_base *base)
{
    int flags = field(base, event_layout->flags);
    if (flags & RINGPOLL_EVENT_NO_URING)
        return true;
    return !(flags & EVENT_BASE_FLAG_IGNORE_ENV) && (secure_getenv("EVENT_NOURING") || secure_getenv("EVENT_NOIO_URING"));
}

int ringpoll_event_install(struct event_base *base)
{
    if (!base)
        return -EINVAL;
    int error = event_know();
    if (error < 0)
        return error;
    if (event_is_refused(base))
        return -ENOTSUP;
    if (event_is_ours(base))
        return 0;
    if (!have_symbols || !names_itself(base))
        return -ENOTSUP;
    if (field(base, event_layout->running))
        return -EBUSY;
    struct event_swap swap = {.before = event_head(base)->op};
    error = event_state_new(&swap.prepared);
    if (error < 0)
        return error;
    /* libevent's handlers write to a pair of sockets that is made anew meanwhile. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    /* event_reinit() closes that pair and keeps its numbers, which the backend that ends closes
     * once more: another thread's by then. So the pair ends before. */
    event_inside.signals_dealloc(base);
    event_swap = &swap;
    event_head(base)->op = &event_backend;
    event_inside.reinit(base); /* what it could not add again was closed before */
    event_swap = NULL;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return 0;
}

static bool avoids(const struct event_config *config)
{
    const struct event_avoided *each = *(struct event_avoided *const *)config;
    for (; each; each = each->next)
        if (each->method && strcmp(each->method, event_backend.name) == 0)
            return true;
    return false;
}

struct event_base *ringpoll_event_base_new(const struct event_config *config)
{
    bool is_known = event_know() == 0;
    if (!event_inside.base_new || !event_inside.base_new_with_config) /* no libevent in this process */
        return NULL;
    struct event_base *base = config ? event_inside.base_new_with_config(config) : event_inside.base_new();
    /* Who asks for FDS gets a backend that has it: of ours nobody asked that. */
    bool wanted = base && is_known && !(config && avoids(config)) && !(event_inside.features(base) & EV_FEATURE_FDS);
    if (wanted)
        (void)ringpoll_event_install(base);
    return base;
}

int ringpoll_event_set(struct event_base *base)
{
    if (!event_layout || !event_is_ours(base))
        return -EINVAL;
    return event_state_set(event_head(base)->state, base);
}
