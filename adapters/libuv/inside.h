/* SPDX-License-Identifier: MIT
 *
 * What loop.c, handle.c, stream.c and udp.c share. How a loop's turn goes stands in
 * loop.c, what a handle is in handle.c.
 */
#ifndef RP_UV_INSIDE_H
#define RP_UV_INSIDE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#include <ringpoll/uv.h>

struct handle;

/* ------------------------------------------------------------------ loop.c */

#define TURN_EVENTS 256
#define FD_SLOTS 256

struct waker { /* lives on until libuv has closed it */
    uv_poll_t poll;
    struct uv_state *state; /* NULL: closing */
};

struct uv_state {
    uv_loop_t *loop;
    int set;
    unsigned forks;         /* at which `set` was made, or looked at */
    int held;               /* a number that is still polled by libuv, of a set that was given up; or -1 */
    int wake_fd;            /* what `waker` polls beside the set, which `set_waker` does; or -1; or the set */
    struct waker *waker, *set_waker;
    uv_prepare_t prepare;
    uv_check_t check;
    uv_idle_t idle;         /* while started, libuv does not sleep */
    unsigned closing;       /* of these three, those that are not closed yet */
    unsigned attached, handles;
    unsigned keeps;         /* handles that keep the loop alive */
    const void *runner;     /* the thread, by an address of its own; atomic */
    bool asleep;            /* between our prepare and our check; atomic */
    bool woken;             /* one of them was seen readable */
    int reserve_fd;         /* given up for a moment where a listener meets EMFILE */
    struct handle *dirty;   /* whose interest may differ from what the set has */
    struct handle *deferred, **deferred_tail; /* with callbacks due */
    struct handle *by_fd[FD_SLOTS]; /* those that have an fd, by `next_by_fd` */
    int count;              /* events[], to be dispatched by our check */
    struct epoll_event events[TURN_EVENTS];
    struct tray *tray;      /* for datagrams; NULL: not needed yet */
    struct uv_state *next;
};

/* The loop's, made where there is none; a reference for a handle. A negative UV_E…. */
int state_get(uv_loop_t *loop, struct uv_state **ret_state);
void state_put(struct uv_state *state);
/* Our part of the turn sees to it before libuv sleeps. */
void state_touch(struct uv_state *state);
void state_keep(struct uv_state *state, bool on);
/* Before anything is done to the set: it may be a parent's. */
void state_see_fork(struct uv_state *state);

/* ---------------------------------------------------------------- handle.c */

enum handle_type { TYPE_TCP, TYPE_PIPE, TYPE_UDP };
enum handle_state {
    HANDLE_FRESH,      /* no fd */
    HANDLE_OPEN,       /* an fd, not connected */
    HANDLE_LISTENING,
    HANDLE_CONNECTING,
    HANDLE_CONNECTED,
    HANDLE_CLOSING,
    HANDLE_STATES
};
enum reading { READING_NOT, READING_COPIES, READING_BORROWS };
enum output { OUTPUT_OPEN, OUTPUT_ENDING, OUTPUT_ENDED };

struct connect_request; /* stream.c */
struct letter; /* tray.h */

/* Begins a ringpoll_uv_write_t, a ringpoll_uv_udp_send_t. */
struct request {
    void *data, *user;
    struct request *next;
    uv_buf_t *bufs;     /* few, or the heap's */
    uint32_t count, at; /* bufs[at] is the first with bytes to go */
    int error;
    uv_buf_t few[4];
};
struct queue {
    struct request *first, **last;
};

struct handle {
    ringpoll_uv_handle_t *user;
    struct uv_state *loop;
    uv_idle_t life;         /* never started: open as long as we are, so that libuv knows, and closes us */
    uint8_t type, state, reading, output;
    bool referenced, keeps;
    bool readable, writable; /* as far as this side knows */
    bool is_dirty, is_deferred;
    bool declared;          /* to the set, which may adopt it */
    bool is_socket;
    int fd;
    int delayed_error;      /* a UV_E…, of bind or connect, to be told later */
    int wait_error;         /* a UV_E…: the set did not take the fd; to be told instead of events */
    bool deaf;              /* LISTENING, and its error was told */
    bool connect_is_over;   /* CONNECTING: its callback is due */
    uint32_t registered;    /* EPOLL bits that the set has; 0: none */
    uint32_t requests;      /* pending */
    struct handle *next_dirty, *next_deferred, *prev_dirty, *next_by_fd;
    ringpoll_uv_close_cb on_close;
    struct queue waiting, written; /* requests: with bytes to go; with a callback due */
    size_t waiting_bytes;
    /* streams */
    ringpoll_uv_alloc_cb on_alloc;
    ringpoll_uv_read_cb on_read;
    ringpoll_uv_borrow_cb on_borrow;
    ringpoll_uv_connection_cb on_connection;
    ringpoll_uv_connect_t *connecting;
    struct connect_request *refused; /* connects that cannot be: with callbacks due */
    ringpoll_uv_shutdown_t *ending;
    int accepted_fd;        /* LISTENING: a connection that the program has yet to accept, or -1 */
    bool nodelay, keepalive; /* asked for; a socket that comes later gets them */
    char *path;             /* a bound pipe's, to be unlinked; or NULL */
    /* datagrams */
    ringpoll_uv_udp_recv_cb on_receive;
    size_t waiting_count;
    struct letter *kept;
    bool udp_connected;
    bool starved;           /* the program had no memory for what is kept */
    bool blocked;           /* sends wait for room */
};

static inline struct handle *handle_of(const void *user)
{
    return ((const ringpoll_uv_handle_t *)user)->inside;
}
/* NULL: it is closing. */
static inline struct handle *open_handle_of(const void *user)
{
    struct handle *handle = handle_of(user);
    return handle && handle->state != HANDLE_CLOSING ? handle : NULL;
}

int handle_new(uv_loop_t *loop, void *user, enum handle_type type);
/* Makes every edge of `state`. */
bool handle_step(struct handle *handle, enum handle_state to);
/* After anything that changes what the handle waits for, or whether it is active. */
void handle_changed(struct handle *handle);
/* handle_due() in our part of the turn. */
void handle_defer(struct handle *handle);
bool handle_is_active(const struct handle *handle);
void handle_sync(struct handle *handle);
/* Whether a handle of this loop has it: it cannot be watched twice. */
bool handle_has_fd(const struct uv_state *state, int fd);
/* An fd that this library made, or was given: non-blocking, FD_CLOEXEC as it is. */
void handle_take_fd(struct handle *handle, int fd, uint32_t kind);
void handle_event(struct handle *handle, uint32_t events);
void handle_due(struct handle *handle);
int handle_sockname(const void *user, struct sockaddr *name, int *length);
int handle_peername(const void *user, struct sockaddr *name, int *length);

/* --------------------------------------------------------------- request.c */

void queue_init(struct queue *queue);
/* Copies the list of buffers: UV_ENOMEM, or it waits. */
int request_wait(struct handle *handle, struct request *request, const uv_buf_t *bufs, uint32_t count);
/* waiting → written */
void request_finish_first(struct handle *handle, int error);
/* written → the program's: `call` calls back. */
void requests_tell(struct handle *handle, void (*call)(struct request *request));

/* ---------------------------------------------------------------- stream.c */

uint32_t stream_interest(const struct handle *handle);
bool stream_is_active(const struct handle *handle);
void stream_event(struct handle *handle, uint32_t events);
void stream_due(struct handle *handle);
/* What the stream waits for will not come: told to whom it concerns. */
void stream_failed(struct handle *handle, int error);
/* fd and what came with it are gone in a moment. */
void stream_closing(struct handle *handle);
/* Callbacks of what is pending: UV_ECANCELED. */
void stream_closed(struct handle *handle);

/* -------------------------------------------------------------------- fs.c */

/* The set has results: the event's data is the state. */
void fs_event(struct uv_state *state);

/* ------------------------------------------------------------------- udp.c */

uint32_t udp_interest(const struct handle *handle);
bool udp_is_active(const struct handle *handle);
void udp_event(struct handle *handle, uint32_t events);
void udp_due(struct handle *handle);
void udp_failed(struct handle *handle, int error);
void udp_closing(struct handle *handle);
void udp_closed(struct handle *handle);

#endif
