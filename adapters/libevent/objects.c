/* SPDX-License-Identifier: MIT
 *
 * Finds what of libevent bufferevents and listeners of our own lean on, and makes sure
 * of it, once per process, before the first is made: every symbol is there; and a plain
 * bufferevent and a plain listener of libevent's, made on a base that nobody else knows,
 * show at each pinned place what the public functions do to them.
 */
#include "objects.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <event2/event.h>
#include <event2/util.h>
#include <ringpoll/event.h>

struct object_inside inside;
size_t object_lookup_at;
unsigned object_reference_flags;
__thread struct object_accepted object_accepted = {-1, 0};

static int known = 1; /* 1: not looked yet; 0, or why not */
static pthread_mutex_t known_lock = PTHREAD_MUTEX_INITIALIZER;

static bool find_symbols(void)
{
    const struct {
        const char *name;
        void *to;
    } symbols[] = {
        {"event_mm_calloc_", &inside.calloc},
        {"event_mm_free_", &inside.free},
        {"event_assign", &inside.assign},
        {"event_add", &inside.add},
        {"event_del", &inside.del},
        {"event_pending", &inside.pending},
        {"event_active", &inside.active},
        {"event_get_struct_event_size", &inside.event_size},
        {"event_debug_unassign", &inside.debug_unassign},
        {"event_deferred_cb_init_", &inside.callback_init},
        {"event_deferred_cb_schedule_", &inside.callback_schedule},
        {"event_callback_activate_later_nolock_", &inside.callback_later},
        {"event_base_got_break", &inside.got_break},
        {"bufferevent_socket_new", &inside.socket_new},
        {"bufferevent_free", &inside.bev_free},
        {"bufferevent_socket_connect", &inside.bev_connect},
        {"bufferevent_setfd", &inside.bev_setfd},
        {"bufferevent_enable", &inside.bev_enable},
        {"bufferevent_disable", &inside.bev_disable},
        {"bufferevent_set_max_single_read", &inside.bev_set_max_read},
        {"bufferevent_set_max_single_write", &inside.bev_set_max_write},
        {"bufferevent_get_options_", &inside.bev_options},
        {"bufferevent_incref", &inside.bev_incref},
        {"bufferevent_init_common_", &inside.bev_init},
        {"bufferevent_incref_and_lock_", &inside.bev_hold},
        {"bufferevent_decref_and_unlock_", &inside.bev_let_go},
        {"bufferevent_add_event_", &inside.bev_add_event},
        {"bufferevent_generic_adj_existing_timeouts_", &inside.bev_adjust_timeouts},
        {"bufferevent_run_readcb_", &inside.bev_run_read},
        {"bufferevent_run_writecb_", &inside.bev_run_write},
        {"bufferevent_run_eventcb_", &inside.bev_run_event},
        {"bufferevent_suspend_read_", &inside.bev_suspend_read},
        {"bufferevent_unsuspend_read_", &inside.bev_unsuspend_read},
        {"bufferevent_suspend_write_", &inside.bev_suspend_write},
        {"bufferevent_unsuspend_write_", &inside.bev_unsuspend_write},
        {"bufferevent_get_read_max_", &inside.bev_read_max},
        {"bufferevent_get_write_max_", &inside.bev_write_max},
        {"bufferevent_decrement_read_buckets_", &inside.bev_was_read},
        {"bufferevent_decrement_write_buckets_", &inside.bev_was_written},
        {"bufferevent_socket_get_conn_address_", &inside.bev_address},
        {"bufferevent_socket_set_conn_address_", &inside.bev_set_address},
        {"bufferevent_socket_set_conn_address_fd_", &inside.bev_set_address_of},
        {"evutil_socket_finished_connecting_", &inside.finished_connecting},
        {"evutil_getaddrinfo_cancel_async_", &inside.cancel_lookup},
        {"evbuffer_new", &inside.buffer_new},
        {"evbuffer_free", &inside.buffer_free},
        {"evbuffer_get_length", &inside.buffer_length},
        {"evbuffer_freeze", &inside.buffer_freeze},
        {"evbuffer_unfreeze", &inside.buffer_unfreeze},
        {"evbuffer_drain", &inside.buffer_drain},
        {"evbuffer_peek", &inside.buffer_peek},
        {"evbuffer_reserve_space", &inside.buffer_reserve},
        {"evbuffer_commit_space", &inside.buffer_commit},
        {"evbuffer_remove", &inside.buffer_take},
        {"evbuffer_remove_buffer", &inside.buffer_move},
        {"evbuffer_add_reference", &inside.buffer_refer},
        {"evbuffer_prepend_buffer", &inside.buffer_put_before},
        {"evbuffer_set_flags", &inside.buffer_set_flags},
        {"evbuffer_write_atmost", &inside.buffer_write},
        {"evbuffer_file_segment_new", &inside.segment_new},
        {"evbuffer_file_segment_free", &inside.segment_free},
        {"evbuffer_add_file_segment", &inside.buffer_add_segment},
        {"evbuffer_ptr_set", &inside.buffer_find},
        {"evbuffer_add_cb", &inside.buffer_on_change},
        {"evconnlistener_new", &inside.listener_new},
        {"evconnlistener_new_bind", &inside.listener_new_bind},
        {"evconnlistener_free", &inside.listener_free},
        {"evconnlistener_enable", &inside.listener_enable},
        {"evconnlistener_set_error_cb", &inside.listener_set_error},
        {"evutil_make_listen_socket_reuseable", &inside.make_reuseable},
        {"evutil_make_listen_socket_reuseable_port", &inside.make_reuseable_port},
        {"evutil_make_tcp_listen_socket_deferred", &inside.make_deferred},
        {"evutil_make_listen_socket_ipv6only", &inside.make_ipv6only},
        {"bufferevent_ops_socket", &inside.socket_ops},
    };
    bool all = true;
    for (unsigned i = 0; i < sizeof symbols / sizeof symbols[0]; i++) {
        void *found = dlsym(RTLD_DEFAULT, symbols[i].name);
        all = all && found;
        memcpy(symbols[i].to, &found, sizeof found);
    }
    return all;
}

/* The peer's address and what stands behind it, by its size and place. */
static bool finds_address(struct bufferevent *bev)
{
    struct sockaddr_storage address;
    static const size_t sizes[] = {sizeof address, sizeof(struct sockaddr_in6)};
    memset(&address, 0, sizeof address);
    size_t at = (size_t)((const char *)inside.bev_address(bev) - (const char *)bev), size = 0;
    for (unsigned i = 0; i < 2 && size == 0; i++)
        if (inside.bev_set_address(bev, (struct sockaddr *)&address, sizes[i]) == 0)
            size = sizes[i];
    object_lookup_at = (at + size + sizeof(void *) - 1) / sizeof(void *) * sizeof(void *);
    return at == offsetof(struct bufferevent_inside, address) && size > 0 &&
           object_lookup_at + sizeof(void *) <= sizeof(struct bufferevent_inside);
}

static bool bufferevent_shows(struct bufferevent *bev, int fd, int options)
{
    const struct bufferevent_inside *shown = (const struct bufferevent_inside *)bev;
    const struct bufferevent_ops *ops = bev->be_ops;
    union bufferevent_argument argument = {.fd = -1};
    bool locks = event_inside.locks->lock != NULL;
    if (ops != inside.socket_ops || !ops->type || strcmp(ops->type, "socket") != 0 || ops->offset != 0 ||
        !ops->enable || !ops->disable || ops->unlink || !ops->destruct ||
        ops->adjust_timeouts != inside.bev_adjust_timeouts || !ops->flush || !ops->control ||
        ops->control(bev, CONTROL_GET_FD, &argument) != 0 || argument.fd != fd || bev->ev_read.ev_fd != fd)
        return false;
    if (shown->options != options || inside.bev_options(bev) != options || shown->references != 1 ||
        (shown->lock != NULL) != locks || shown->own_lock != locks || shown->rate_limits || shown->watermarks)
        return false;
    inside.bev_incref(bev);
    if (shown->references != 2)
        return false;
    inside.bev_hold(bev);
    inside.bev_let_go(bev);
    ((struct bufferevent_inside *)bev)->references--;
    if (inside.bev_set_max_read(bev, 12345) != 0 || shown->max_read != 12345 ||
        inside.bev_set_max_write(bev, 54321) != 0 || shown->max_write != 54321)
        return false;
    inside.bev_suspend_read(bev, SUSPEND_LOOKUP);
    inside.bev_suspend_write(bev, SUSPEND_LOOKUP | SUSPEND_WATERMARK);
    if (shown->read_suspended != SUSPEND_LOOKUP || shown->write_suspended != (SUSPEND_LOOKUP | SUSPEND_WATERMARK))
        return false;
    inside.bev_unsuspend_read(bev, SUSPEND_LOOKUP);
    inside.bev_unsuspend_write(bev, SUSPEND_LOOKUP | SUSPEND_WATERMARK);
    if (shown->read_suspended || shown->write_suspended || shown->connecting || shown->refused ||
        inside.bev_connect(bev, NULL, 0) != 0 || !shown->connecting || shown->refused)
        return false;
    return finds_address(bev);
}

static void nothing(struct evconnlistener *listener, int fd, struct sockaddr *address, int length, void *argument)
{
    (void)listener;
    (void)fd;
    (void)address;
    (void)length;
    (void)argument;
}
static void no_error(struct evconnlistener *listener, void *argument)
{
    (void)listener;
    (void)argument;
}

static bool listener_shows(struct event_base *base, struct evconnlistener *listener, int fd, unsigned flags)
{
    const struct listener_inside *shown = (const struct listener_inside *)listener;
    bool locks = event_inside.locks->lock != NULL;
    if (!shown->ops || !shown->ops->enable || !shown->ops->disable || !shown->ops->destroy || shown->ops->shutdown ||
        (shown->lock != NULL) != locks || shown->on_accept != nothing || shown->on_error || shown->argument != &known ||
        shown->flags != flags || shown->references != 1 || shown->accept_flags != (SOCK_NONBLOCK | SOCK_CLOEXEC) ||
        shown->enabled || shown->ops->fd(listener) != fd || shown->ops->base(listener) != base)
        return false;
    inside.listener_set_error(listener, no_error);
    return shown->on_error == no_error && inside.listener_enable(listener) == 0 && shown->enabled;
}

/* A piece of memory and one of a file, which nobody reads. Where there is no sendfile(2) the
 * file cannot be added. */
static bool buffer_shows(int fd)
{
    struct evbuffer *buffer = inside.buffer_new();
    struct evbuffer_file_segment *segment = buffer ? inside.segment_new(fd, 0, 16, 0) : NULL;
    bool shows = false;
    if (segment && inside.buffer_refer(buffer, "ab", 2, NULL, NULL) == 0) {
        struct evbuffer_ptr at;
        inside.buffer_set_flags(buffer, EVBUFFER_FLAG_DRAINS_TO_FD);
        bool has_file = inside.buffer_add_segment(buffer, segment, 0, 16) == 0;
        const struct buffer_chain *chain = inside.buffer_find(buffer, &at, 0, EVBUFFER_PTR_SET) == 0
                                               ? at.internal_.chain : NULL;
        shows = chain && chain->length == 2 && !(chain->flags & CHAIN_SENDFILE);
        if (shows && has_file)
            shows = chain->next && chain->next->length == 16 && (chain->next->flags & CHAIN_SENDFILE) && !chain->next->next;
    }
    if (segment)
        inside.segment_free(segment);
    if (buffer)
        inside.buffer_free(buffer);
    return shows;
}

static void keep(const void *data, size_t length, void *argument)
{
    (void)data;
    (void)length;
    (void)argument;
}

/* What no layout is needed for goes on without it. */
static void look_at_chains(void)
{
    static const char programs[7];
    struct evbuffer *buffer = inside.buffer_new();
    struct evbuffer_iovec room;
    struct evbuffer_ptr at;
    if (buffer && inside.buffer_reserve(buffer, 100, &room, 1) == 1) {
        room.iov_len = 100;
        if (inside.buffer_commit(buffer, &room, 1) == 0 &&
            inside.buffer_refer(buffer, programs, sizeof programs, keep, &known) == 0 &&
            inside.buffer_find(buffer, &at, 0, EVBUFFER_PTR_SET) == 0) {
            const struct buffer_chain *own = at.internal_.chain, *other = own->next;
            if (own->capacity >= 100 && own->misalign == 0 && own->length == 100 && own->flags == 0 &&
                own->references == 1 && own->bytes == (const unsigned char *)(own + 1) && own->bytes == room.iov_base &&
                other && !other->next && other->capacity == sizeof programs && other->misalign == 0 &&
                other->length == sizeof programs && other->flags != 0 && other->references == 1 &&
                other->bytes == (const unsigned char *)programs) {
                const struct buffer_reference *reference = (const struct buffer_reference *)(other + 1);
                if (reference->cleanup == keep && reference->argument == &known)
                    object_reference_flags = other->flags;
            }
        }
    }
    if (buffer)
        inside.buffer_free(buffer);
}

static int look(void)
{
    if (!find_symbols() || !event_inside.config_free || !event_inside.locks ||
        inside.event_size() != sizeof(struct event))
        return -ENOTSUP;
    struct event_config *config = event_inside.config_new();
    struct event_base *base = config && event_inside.config_flag(config, EVENT_BASE_FLAG_IGNORE_ENV) == 0
                                  ? event_inside.base_new_with_config(config) : NULL;
    if (config)
        event_inside.config_free(config);
    int fds[2] = {-1, -1}, options = BEV_OPT_DEFER_CALLBACKS | (event_inside.locks->lock ? BEV_OPT_THREADSAFE : 0);
    unsigned flags = LEV_OPT_THREADSAFE | LEV_OPT_CLOSE_ON_EXEC | LEV_OPT_DISABLED;
    if (!base || socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) < 0) {
        if (base)
            event_inside.base_free(base);
        return -ENOMEM;
    }
    struct bufferevent *bev = inside.socket_new(base, fds[0], options);
    struct evconnlistener *listener = inside.listener_new(base, nothing, &known, flags, 0, fds[1]);
    int error = !bev || !listener ? -ENOMEM
                : bufferevent_shows(bev, fds[0], options) && listener_shows(base, listener, fds[1], flags) &&
                          buffer_shows(fds[0]) ? 0 : -ENOTSUP;
    if (error == 0)
        look_at_chains();
    if (bev)
        inside.bev_free(bev);
    if (listener)
        inside.listener_free(listener);
    event_inside.base_free(base);
    close(fds[0]);
    close(fds[1]);
    return error;
}

int objects_know(void)
{
    static __thread bool looking; /* our own plain objects come by here where all are made ours */
    int error = event_know();
    if (error < 0 || looking)
        return error < 0 ? error : -ENOTSUP;
    pthread_mutex_lock(&known_lock);
    error = known;
    if (error == 1) {
        int before = errno;
        looking = true;
        error = look();
        looking = false;
        if (error != -ENOMEM)
            known = error;
        errno = before;
    }
    pthread_mutex_unlock(&known_lock);
    return error;
}

int objects_fit(struct event_base *base, struct event_outputs **ret_outputs)
{
    if (!base)
        return -EINVAL;
    int error = event_know();
    if (error < 0 || event_head(base)->op != &event_backend) {
        if (!inside.socket_new)
            find_symbols();
        return 1;
    }
    struct event_state *state = event_head(base)->state;
    if (event_state_is_inherited(state))
        return -ECHILD;
    (void)event_state_set(state, base);
    error = objects_know();
    if (error == 0 && ret_outputs && !(*ret_outputs = event_state_outputs(state, base)))
        error = -ENOMEM;
    return error;
}

int object_kind(int fd)
{
    if (fd == object_accepted.fd)
        return object_accepted.kind;
    int type = 0, domain = 0, flags;
    socklen_t length = sizeof type;
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) < 0)
        return -errno;
    length = sizeof domain;
    if (type != SOCK_STREAM || getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) < 0 ||
        (flags = fcntl(fd, F_GETFL)) < 0)
        return 0;
    int kind = domain == AF_UNIX ? (int)RINGPOLL_FD_UNIX : 0;
    if (domain == AF_INET || domain == AF_INET6) {
        int protocol = 0;
        length = sizeof protocol;
        if (getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &length) == 0 && protocol == IPPROTO_TCP)
            kind = (int)RINGPOLL_FD_TCP;
    }
    return kind ? kind | (flags & O_NONBLOCK ? (int)RINGPOLL_FD_NONBLOCK : 0) : 0;
}
