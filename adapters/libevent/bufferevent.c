/* SPDX-License-Identifier: MIT
 *
 * A bufferevent of type socket whose bytes the ring carries.
 *
 * To libevent it is what its own socket bufferevent is: the same structure, the two events
 * ev_read and ev_write on the fd, the same rules of timeouts, suspensions, limits and
 * callbacks; whatever works on it by those goes on to work. Three things differ.
 *
 * Input. The fd is *declared* to ringpoll while one of the events is added, or output waits,
 * so that the ring may receive for it; not beside an event of the program's own on it. A buffer that came is borrowed and stands in the input by reference,
 * without a copy; it goes back when libevent drops it, whoever has it by then, base or no
 * base. What the ring does not receive (the first bytes of a connection, big messages) is
 * read straight into the input, as much at once as there is: not 4096 bytes at a time, and
 * without FIONREAD.
 *
 * A watermark or a limit may want less than what was received. The rest waits in `ahead`, a
 * buffer of our own, and is read first, by ev_read made active once more. When reading ends
 * (disable, a suspension, another fd, free) the receive ends at once, and what came by then
 * goes there too: after that nothing in the library stands for this number, which the
 * program may close without a word to us (evhttp does). An error that came along is kept in
 * `error`.
 *
 * One end of reading can wait: a callback of this very bufferevent disables reading alone.
 * evhttp does so in each request, and enables it again with its answer; a receive that
 * ended each time would be armed and cancelled for ever. It is `postponed` until reading
 * is enabled (then nothing happened), writing is disabled too, somebody asks for the fd,
 * or the callback returns. Nothing is received meanwhile, since the loop does not run.
 *
 * Output. Nothing is written where the bytes are added, and no event is added for them:
 *
 *   IDLE ──bytes, or enable──→ WAITING ──given to the ring──→ SENT ──taken──→ IDLE
 *     ↑                           ↑                            └──not all of it──→ BLOCKED
 *     └──disabled, suspended, another fd, freed── from all      ←──ev_write: room (to WAITING)
 *
 * WAITING and SENT stand in the base's lists, and each holds a reference. One callback per
 * base, which runs when what is active now has run, gives all that waits to the ring, sends
 * it by one call, and then tells who has been served: a write callback means that the kernel
 * has the bytes. What it did not take is not taken out of the output (or, of a small write
 * that fell short, waits in the library), and ev_write, with the write timeout, waits for
 * room; connections in progress do so too, exactly as libevent's.
 *
 * Where the program asks for it (ringpoll_bufferevent_set_zero_copy()) much output at once goes to another
 * machine without being copied, if the kernel can do that (ringpoll_try_sendv_zc()): its chains leave the output with what the kernel has taken, and are
 * *held* until it has let go of them; of a chain that it took a part of, the rest is in the output
 * again, by reference. A write callback still means that the kernel has the bytes; chains
 * of the program's own memory (evbuffer_add_reference()) are given back later than that, and
 * where no function is to hear of it they are copied.
 *
 * Locks: the bufferevent's, then the lists' (outputs->lock, a leaf, only where libevent has
 * locks). All fields below are under the former, the links under the latter.
 */
#include "objects.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <event2/event.h>
#include <ringpoll/event.h>

enum output_state { OUTPUT_IDLE, OUTPUT_WAITING, OUTPUT_SENT, OUTPUT_BLOCKED, OUTPUT_STATES };

struct ring_bufferevent {
    struct bufferevent_inside inside; /* first: libevent knows no other */
    struct evbuffer *ahead;           /* NULL: nothing is */
    struct event_outputs *outputs;
    struct ring_bufferevent *next, *prev; /* listed */
    uint32_t read_size;               /* of plain reads */
    int kind;                         /* for ringpoll_fd_opened(); 0: never declared */
    int error;                        /* a positive errno that a read will report */
    int write_error;                  /* SENT: the write's */
    uint8_t output;                   /* enum output_state */
    bool declared;
    bool tells;                       /* SENT: the write callback is due; WAITING: even if nothing is written */
    bool blocked;                     /* SENT: the kernel took less */
    bool doubtful;                    /* what was taken from it may not have gone out yet */
    bool listed;                      /* under the lists' lock. WAITING or SENT and not listed: run_outputs() has it */
    bool cancelled;                   /* bufferevent_free() was called */
    bool postponed;                   /* the end of reading is, see above; ev_read is added yet */
    bool lends;                       /* output may be sent without a copy */
};

/* Whose callback this thread is in. */
static __thread struct ring_bufferevent *called;

/* So much is read or written at once where the program has set no limit. */
#define READ_LEAST 4096u
#define READ_MOST (128u * 1024u - 256u)
#define TURN_MOST (64u * 1024u) /* written; read: READ_MOST, so that a message of this size shows it was all */
/* libevent's own limit, which is no wish of the program's. */
#define LIMIT_UNSET 16384
#define VECTORS 16
/* Output that may be sent without a copy, at least (ringpoll_zc_least() says more) and at once. */
#define LENT_LEAST (32u * 1024u)
#define LENT_MOST (256u * 1024u)

static struct ring_bufferevent *of(struct bufferevent *bev)
{
    return (struct ring_bufferevent *)bev;
}

static evutil_socket_t fd_of(const struct ring_bufferevent *ring)
{
    return ring->inside.bev.ev_read.ev_fd;
}

/* As bufferevent_incref_and_lock_() and its counterpart, which also ends what has no
 * reference left. */
static inline void hold(struct ring_bufferevent *ring)
{
    object_lock(ring->inside.lock);
    ring->inside.references++;
}

static inline void drop(struct ring_bufferevent *ring)
{
    if (ring->inside.references == 1) {
        inside.bev_let_go(&ring->inside.bev);
        return;
    }
    ring->inside.references--;
    object_unlock(ring->inside.lock);
}

/* --------------------------------------------------------- the outputs of a base */

struct event_outputs {
    struct event_base *base;
    struct event_callback callback;
    pthread_mutex_t lock;
    unsigned users; /* atomic */
    bool runs; /* the callback does, and sees to what comes to wait meanwhile */
    struct list {
        struct ring_bufferevent *first, *last;
        unsigned count;
    } waiting, sent;
};

static void lock_outputs(struct event_outputs *outputs, bool on)
{
    if (!event_inside.locks->lock)
        return;
    if (on)
        pthread_mutex_lock(&outputs->lock);
    else
        pthread_mutex_unlock(&outputs->lock);
}

static struct list *list_of(struct event_outputs *outputs, uint8_t state)
{
    return state == OUTPUT_WAITING ? &outputs->waiting : state == OUTPUT_SENT ? &outputs->sent : NULL;
}

static const uint8_t edges[OUTPUT_STATES] = {
    [OUTPUT_IDLE] = 1u << OUTPUT_WAITING | 1u << OUTPUT_BLOCKED,
    [OUTPUT_WAITING] = 1u << OUTPUT_SENT | 1u << OUTPUT_IDLE,
    [OUTPUT_SENT] = 1u << OUTPUT_IDLE, /* and on from there */
    [OUTPUT_BLOCKED] = 1u << OUTPUT_WAITING | 1u << OUTPUT_IDLE,
};

static void unlist(struct list *list, struct ring_bufferevent *ring)
{
    *(ring->prev ? &ring->prev->next : &list->first) = ring->next;
    *(ring->next ? &ring->next->prev : &list->last) = ring->prev;
    list->count--;
    ring->listed = false;
}

static void enlist(struct list *list, struct ring_bufferevent *ring)
{
    ring->next = NULL;
    ring->prev = list->last;
    *(list->last ? &list->last->next : &list->first) = ring;
    list->last = ring;
    list->count++;
    ring->listed = true;
}

/* Makes every edge. Who is listed has a reference more: taken and given up here, by a
 * caller that has the lock and a reference of its own. */
static bool step(struct ring_bufferevent *ring, enum output_state to)
{
    struct event_outputs *outputs = ring->outputs;
    if (!(edges[ring->output] >> to & 1u))
        return false;
    if (!ring->listed && to != OUTPUT_WAITING && to != OUTPUT_SENT) {
        ring->output = (uint8_t)to;
        return true;
    }
    lock_outputs(outputs, true);
    if (ring->listed) {
        unlist(list_of(outputs, ring->output), ring);
        ring->inside.references--;
    }
    bool schedule = to == OUTPUT_WAITING && !outputs->runs && outputs->waiting.count + outputs->sent.count == 0;
    ring->output = (uint8_t)to;
    if (list_of(outputs, ring->output)) {
        enlist(list_of(outputs, ring->output), ring);
        ring->inside.references++;
    }
    lock_outputs(outputs, false);
    if (schedule)
        inside.callback_schedule(outputs->base, &outputs->callback);
    return true;
}

/* The first of a list leaves it, held and locked, if it is yet what it was there; NULL:
 * try the next. */
static struct ring_bufferevent *take_first(struct event_outputs *outputs, enum output_state state)
{
    struct list *list = list_of(outputs, (uint8_t)state);
    lock_outputs(outputs, true);
    struct ring_bufferevent *ring = list->first;
    if (ring)
        unlist(list, ring);
    lock_outputs(outputs, false);
    if (!ring)
        return NULL;
    hold(ring);
    ring->inside.references--; /* the list's; before we had the lock it kept it alive */
    if (ring->output == state && !ring->listed)
        return ring;
    drop(ring);
    return NULL;
}

static void run_outputs(struct event_callback *callback, void *argument);

struct event_outputs *event_outputs_new(struct event_base *base)
{
    struct event_outputs *outputs = calloc(1, sizeof *outputs);
    if (!outputs)
        return NULL;
    outputs->base = base;
    pthread_mutex_init(&outputs->lock, NULL);
    inside.callback_init(&outputs->callback, 0, run_outputs, outputs);
    return outputs;
}

void event_outputs_free(struct event_outputs *outputs)
{
    if (!outputs)
        return;
    pthread_mutex_destroy(&outputs->lock);
    free(outputs);
}

bool event_outputs_are_unused(const struct event_outputs *outputs)
{
    return __atomic_load_n(&outputs->users, __ATOMIC_ACQUIRE) == 0 && !outputs->runs &&
           !(outputs->callback.evcb_flags & (EVLIST_ACTIVE | EVLIST_ACTIVE_LATER));
}

/* ------------------------------------------------------------- declared or not */

/* Not beside an event of the program's own, which reads by itself, and would be forgotten. */
static void declare(struct ring_bufferevent *ring)
{
    if (ring->declared || ring->kind == 0 || event_is_registered(ring->inside.bev.ev_base, fd_of(ring)))
        return;
    ringpoll_fd_opened(fd_of(ring), (uint32_t)ring->kind | RINGPOLL_FD_CONNECTED | RINGPOLL_FD_DECLARED);
    ring->declared = true;
}

static void give_back(const void *data, size_t length, void *pool)
{
    (void)length;
    ringpoll_return_at(pool, data);
}

static bool have_ahead(struct ring_bufferevent *ring)
{
    if (!ring->ahead)
        ring->ahead = inside.buffer_new();
    return ring->ahead != NULL;
}

static bool is_waiting_to_be_read(const struct ring_bufferevent *ring)
{
    return ring->error || (ring->ahead && inside.buffer_length(ring->ahead) > 0);
}

/* No receive is with the kernel after this, and nothing in the library. */
static void end_receive(struct ring_bufferevent *ring, bool for_good)
{
    struct ringpoll_buffer buffer;
    evutil_socket_t fd = fd_of(ring);
    long result;
    if (!ring->declared)
        return;
    ringpoll_fd_release(fd, for_good);
    while ((result = ringpoll_borrow(fd, &buffer, MSG_DONTWAIT)) > 0)
        if (ring->error || !have_ahead(ring) || /* nothing comes behind what is lost */
            inside.buffer_refer(ring->ahead, buffer.data, buffer.length, give_back, buffer.pool) < 0) {
            ringpoll_return(&buffer);
            ring->error = ring->error ? ring->error : ENOMEM;
        }
    /* Another thread than the loop's may not borrow. */
    for (struct evbuffer_iovec room; result == RINGPOLL_PASS && !ring->error;) {
        if (!have_ahead(ring) || inside.buffer_reserve(ring->ahead, READ_LEAST, &room, 1) != 1)
            break;
        result = ringpoll_try_recv(fd, room.iov_base, room.iov_len, MSG_DONTWAIT);
        if (result <= 0)
            break;
        room.iov_len = (size_t)result;
        inside.buffer_commit(ring->ahead, &room, 1);
        result = RINGPOLL_PASS;
    }
    if (result < 0 && result != RINGPOLL_PASS && result != -EAGAIN && result != -EINTR && !ring->error)
        ring->error = (int)-result;
}

/* Neither event is added any more in a moment: the caller deletes them, and then calls
 * forget(). `closed`: so is the fd, maybe: by the program, who did not say so. False: bytes
 * that were taken for written are with the ring yet, and the fd stays what it is. */
static bool let_go(struct ring_bufferevent *ring, bool closed)
{
    if (!ring->declared)
        return true;
    end_receive(ring, true);
    if (closed)
        ringpoll_fd_opened(fd_of(ring), RINGPOLL_FD_OTHER); /* what is left concerns nobody */
    else if (ringpoll_fd_flush(fd_of(ring)) < 0)
        return false;
    ring->declared = false;
    return true;
}

/* Not where the program has an event of its own on the fd. */
static void forget(struct ring_bufferevent *ring, bool was_declared)
{
    if (was_declared && !ring->declared && !event_is_registered(ring->inside.bev.ev_base, fd_of(ring)))
        ringpoll_fd_forget(fd_of(ring));
}

/* Where neither event is added and nothing waits to be written, the program may close the fd
 * without a word, and the number be another's before it frees us. */
static void rest(struct ring_bufferevent *ring)
{
    struct bufferevent *bev = &ring->inside.bev;
    if (!ring->declared || ring->output != OUTPUT_IDLE || inside.pending(&bev->ev_read, EV_READ, NULL) ||
        inside.pending(&bev->ev_write, EV_WRITE, NULL) || ringpoll_fd_flush(fd_of(ring)) < 0)
        return;
    end_receive(ring, true);
    ring->declared = false;
    forget(ring, true);
}

static bool is_reading(const struct ring_bufferevent *ring)
{
    return (ring->inside.bev.enabled & EV_READ) && !ring->inside.read_suspended;
}

/* ----------------------------------------------------------------------- reading */

static void read_on(struct ring_bufferevent *ring)
{
    struct bufferevent *bev = &ring->inside.bev;
    if (is_waiting_to_be_read(ring) && (bev->enabled & EV_READ) && !ring->inside.read_suspended)
        inside.active(&bev->ev_read, EV_READ, 1);
}

/* Up to `most` bytes, into the input (unfrozen): how many, 0 at the end, or -errno.
 * *ret_more: there was no room for more. */
static long read_plainly(struct ring_bufferevent *ring, size_t most, bool *ret_more)
{
    struct evbuffer *input = ring->inside.bev.input;
    evutil_socket_t fd = fd_of(ring);
    struct evbuffer_iovec room[2];
    size_t asked = 0, wanted = ring->read_size < most ? ring->read_size : most;
    int count = inside.buffer_reserve(input, (ssize_t)wanted, room, 2);
    if (count <= 0)
        return -ENOMEM;
    for (int i = 0; i < count; i++) {
        if (room[i].iov_len > most - asked)
            room[i].iov_len = most - asked;
        asked += room[i].iov_len;
    }
    /* Another thread's loop may have received some, which nobody else may borrow. */
    long result = ringpoll_try_readv(fd, (struct iovec *)room, count);
    if (result == RINGPOLL_PASS) {
        ssize_t got = readv(fd, (struct iovec *)room, count);
        result = got < 0 ? -errno : got;
        ringpoll_fd_read(fd, asked, result);
    }
    *ret_more = ring->kind != 0 && result == (long)asked; /* another read of a blocking one might wait */
    if (result <= 0)
        return result;
    size_t left = (size_t)result;
    for (int i = 0; i < count; i++) {
        if (room[i].iov_len > left)
            room[i].iov_len = left;
        left -= room[i].iov_len;
    }
    inside.buffer_commit(input, room, count);
    if ((size_t)result == asked && ring->read_size < READ_MOST)
        ring->read_size = ring->read_size * 4 < READ_MOST ? ring->read_size * 4 : READ_MOST;
    else if ((size_t)result < ring->read_size / 8 && ring->read_size > READ_LEAST)
        ring->read_size = ring->read_size / 2 > READ_LEAST ? ring->read_size / 2 : READ_LEAST;
    return result;
}

/* A part of a chain is copied, for which evbuffer_remove_buffer() may find no memory, and does
 * not say so. */
static long read_ahead(struct ring_bufferevent *ring, size_t most)
{
    struct evbuffer *input = ring->inside.bev.input;
    size_t length = inside.buffer_length(ring->ahead);
    if (length <= most)
        return inside.buffer_move(ring->ahead, input, length);
    struct evbuffer_iovec room;
    if (inside.buffer_reserve(input, (ssize_t)most, &room, 1) != 1)
        return -ENOMEM;
    int taken = inside.buffer_take(ring->ahead, room.iov_base, most);
    room.iov_len = taken > 0 ? (size_t)taken : 0;
    return inside.buffer_commit(input, &room, 1) < 0 ? -ENOMEM : taken;
}

/* The same from wherever the next bytes are. *ret_more: there may be more of them. */
static long read_next(struct ring_bufferevent *ring, size_t most, bool *ret_more)
{
    struct evbuffer *input = ring->inside.bev.input;
    struct ringpoll_buffer buffer;
    *ret_more = true;
    if (ring->ahead && inside.buffer_length(ring->ahead) > 0)
        return read_ahead(ring, most);
    if (ring->error) {
        int error = ring->error;
        ring->error = 0;
        return -error;
    }
    long result = ringpoll_borrow(fd_of(ring), &buffer, MSG_DONTWAIT);
    if (result == RINGPOLL_PASS)
        return read_plainly(ring, most, ret_more);
    if (result <= 0)
        return result;
    *ret_more = result >= (long)READ_LEAST;
    struct evbuffer *to = (size_t)result <= most ? input : have_ahead(ring) ? ring->ahead : NULL;
    if (!to || inside.buffer_refer(to, buffer.data, buffer.length, give_back, buffer.pool) < 0) {
        ringpoll_return(&buffer);
        return -ENOMEM;
    }
    return to == input ? result : read_ahead(ring, most);
}

static int disable_now(struct ring_bufferevent *ring, short events);

static void settle(struct ring_bufferevent *ring)
{
    if (ring->postponed)
        disable_now(ring, EV_READ);
}

/* One of the program's callbacks: EV_READ's, EV_WRITE's, or the third, which hears of `what`. */
static void call(struct ring_bufferevent *ring, short which, short what)
{
    struct ring_bufferevent *outer = called;
    called = ring;
    if (which == EV_READ)
        inside.bev_run_read(&ring->inside.bev, 0);
    else if (which == EV_WRITE)
        inside.bev_run_write(&ring->inside.bev, 0);
    else
        inside.bev_run_event(&ring->inside.bev, what, 0);
    called = outer;
    settle(ring);
}

static void write_now(struct ring_bufferevent *ring);
static void write_waiting(struct event_outputs *outputs);

static void on_readable(evutil_socket_t fd, short events, void *argument)
{
    struct bufferevent *bev = argument;
    struct ring_bufferevent *ring = of(bev);
    short what = BEV_EVENT_READING;
    struct event_outputs *outputs = ring->outputs;
    ptrdiff_t most = -1, limit;
    long total = 0, result = 0;

    hold(ring);
    if (events == EV_TIMEOUT) {
        what |= BEV_EVENT_TIMEOUT;
        goto failed;
    }
    if (bev->wm_read.high != 0) {
        most = (ptrdiff_t)bev->wm_read.high - (ptrdiff_t)inside.buffer_length(bev->input);
        if (most <= 0) {
            inside.bev_suspend_read(bev, SUSPEND_WATERMARK);
            goto done;
        }
    }
    limit = !ring->inside.rate_limits && ring->inside.max_read == LIMIT_UNSET ? (ptrdiff_t)READ_MOST
                                                                              : inside.bev_read_max(&ring->inside);
    if (most < 0 || most > limit)
        most = limit;
    if (ring->inside.read_suspended)
        goto done;

    inside.buffer_unfreeze(bev->input, 0);
    /* A callback of the input's may suspend reading, end it, or change the fd. */
    for (bool more = true; more && total < most; total += result) {
        if ((result = read_next(ring, (size_t)(most - total), &more)) <= 0)
            break;
        more = more && !ring->inside.read_suspended && (bev->enabled & EV_READ) && !ring->cancelled && fd_of(ring) == fd;
    }
    inside.buffer_freeze(bev->input, 0);

    if (total > 0) {
        if (result < 0 && result != -EAGAIN && result != -EINTR)
            ring->error = (int)-result; /* the bytes before it come first */
        inside.bev_was_read(&ring->inside, total);
        if (inside.buffer_length(bev->input) >= bev->wm_read.low)
            call(ring, EV_READ, 0);
        read_on(ring);
        if (ring->output == OUTPUT_WAITING && ring->listed)
            write_now(ring);
        goto done;
    }
    if (result == -EAGAIN || result == -EINTR || most == 0)
        goto done;
    if (result == -ECONNREFUSED) { /* on_writable() has more to say */
        ring->inside.refused = 1;
        goto done;
    }
    errno = (int)-result;
    what |= result < 0 ? BEV_EVENT_ERROR : BEV_EVENT_EOF;
failed:
    inside.bev_disable(bev, EV_READ);
    if (result < 0)
        errno = (int)-result;
    call(ring, 0, what);
done:
    drop(ring);
    if (outputs->waiting.count > 0)
        write_waiting(outputs);
}

/* ----------------------------------------------------------------------- writing */

static bool may_write(const struct ring_bufferevent *ring)
{
    return (ring->inside.bev.enabled & EV_WRITE) && !ring->inside.write_suspended && !ring->inside.connecting &&
           !ring->cancelled && fd_of(ring) >= 0;
}

/* The base's callback will see to it. `tells`: even with nothing to write. */
static void wait_to_write(struct ring_bufferevent *ring, bool tells)
{
    ring->tells |= tells && ring->output != OUTPUT_SENT;
    step(ring, OUTPUT_WAITING);
}

static void stop_writing(struct ring_bufferevent *ring)
{
    step(ring, OUTPUT_IDLE);
    ring->tells = ring->blocked = false;
    ring->write_error = 0;
}

static long write_vectors(evutil_socket_t fd, const struct iovec *iov, int count)
{
    long result = ringpoll_try_sendv(fd, iov, count, 0);
    if (result != RINGPOLL_PASS)
        return result;
    ssize_t sent = writev(fd, iov, count);
    return sent < 0 ? -errno : sent;
}

/* The first bytes of the output, as far as they are in memory: how many pieces. 0: a file's
 * come first, see write_file(). */
static int peek_memory(struct evbuffer *output, size_t most, struct evbuffer_iovec *vec)
{
    struct evbuffer_ptr at;
    int count = inside.buffer_peek(output, (ssize_t)most, NULL, vec, VECTORS), i = 0;
    if (count > VECTORS)
        count = VECTORS;
    if (count <= 0 || inside.buffer_find(output, &at, 0, EVBUFFER_PTR_SET) < 0)
        return 0;
    while (i < count && vec[i].iov_len == 0) /* not pointed to */
        i++;
    int first = i;
    for (const struct buffer_chain *chain = at.internal_.chain; chain && i < count; chain = chain->next, i++)
        if (chain->flags & CHAIN_SENDFILE)
            return i == first ? 0 : i;
    return count;
}

/* By sendfile(2), as libevent's own, where a program's buffer (EVBUFFER_FLAG_DRAINS_TO_FD) had
 * a file in it. What is written leaves the output. */
static long write_file(struct ring_bufferevent *ring, size_t most)
{
    struct evbuffer *output = ring->inside.bev.output;
    if (ringpoll_fd_flush(fd_of(ring)) < 0)
        return -EAGAIN;
    inside.buffer_unfreeze(output, 1);
    errno = 0;
    long result = inside.buffer_write(output, fd_of(ring), (ssize_t)most);
    int error = errno; /* 0 with one: no room; without: the file has become shorter */
    inside.buffer_freeze(output, 1);
    return result > 0 ? result : -error;
}

/* Chains that the kernel sends from; each reference into them keeps them, too. */
struct held {
    struct evbuffer *chains; /* nobody else has it, so that it needs no lock */
    unsigned references;
};

static void let_go_of(void *argument)
{
    struct held *held = argument;
    if (__atomic_sub_fetch(&held->references, 1, __ATOMIC_ACQ_REL) > 0)
        return;
    inside.buffer_free(held->chains);
    free(held);
}

static void end_reference(const void *data, size_t length, void *argument)
{
    (void)data;
    (void)length;
    let_go_of(argument);
}

/* Who has the bytes of the last chain held: the first of those that took parts of it. The rest
 * refers to that one, so that they end side by side and not one inside the other. */
static struct held *first_of_last(struct held *held, size_t at)
{
    struct evbuffer_ptr last;
    if (inside.buffer_find(held->chains, &last, at, EVBUFFER_PTR_SET) < 0 || !last.internal_.chain)
        return held;
    const struct buffer_chain *chain = last.internal_.chain;
    const struct buffer_reference *reference = (const struct buffer_reference *)(chain + 1);
    return chain->flags == object_reference_flags && reference->cleanup == end_reference ? reference->argument : held;
}

/* `taken` bytes have left the output, in these pieces, which are whole chains (but for the
 * last, maybe): 0, or -ENOMEM: what is left of a chain is lost. */
static int hold_chains(struct ring_bufferevent *ring, struct held *held, const struct evbuffer_iovec *vec, size_t taken)
{
    struct evbuffer *output = ring->inside.bev.output;
    size_t whole = 0;
    int error = 0, i = 0;
    while (whole < taken)
        whole += vec[i++].iov_len;
    size_t left = whole - taken;
    held->references++; /* ours: the program's callbacks on the output may reclaim, or wait */
    inside.buffer_unfreeze(output, 1);
    inside.buffer_move(output, held->chains, whole);
    if (left > 0) {
        const char *from = (const char *)vec[i - 1].iov_base + (vec[i - 1].iov_len - left);
        struct held *first = first_of_last(held, whole - vec[i - 1].iov_len);
        struct evbuffer *rest = inside.buffer_new();
        if (!rest || inside.buffer_refer(rest, from, left, end_reference, first) < 0)
            error = -ENOMEM;
        else
            __atomic_add_fetch(&first->references, 1, __ATOMIC_RELAXED);
        if (rest && error == 0 && inside.buffer_put_before(output, rest) < 0)
            error = -ENOMEM;
        if (rest)
            inside.buffer_free(rest);
    }
    inside.buffer_freeze(output, 1);
    let_go_of(held);
    return error;
}

/* How many of these pieces, from the first on, libevent keeps until it frees their chains: memory
 * of its own, and of the program's, where a function is to hear of that. What it only has the
 * address of (no function, chains that another buffer shares, files) may change once it is
 * written. */
static int count_kept(struct evbuffer *output, const struct evbuffer_iovec *vec, int count)
{
    struct evbuffer_ptr at;
    if (object_reference_flags == 0 || inside.buffer_find(output, &at, 0, EVBUFFER_PTR_SET) < 0)
        return 0;
    const struct buffer_chain *chain = at.internal_.chain;
    int kept = 0;
    for (; kept < count; kept++) {
        if (vec[kept].iov_len == 0)
            continue;
        while (chain && chain->length == 0)
            chain = chain->next;
        if (!chain || chain->length != vec[kept].iov_len || chain->bytes + chain->misalign != vec[kept].iov_base)
            break;
        bool own = chain->flags == 0 && chain->bytes == (const unsigned char *)(chain + 1);
        if (!own && (chain->flags != object_reference_flags || !((const struct buffer_reference *)(chain + 1))->cleanup))
            break;
        chain = chain->next;
    }
    return kept;
}

/* Without a copy: how much was taken of *ret_asked, or what write_vectors() answers, or RINGPOLL_PASS. */
static long lend_output(struct ring_bufferevent *ring, size_t *ret_asked)
{
    struct evbuffer_iovec vec[VECTORS], asked[VECTORS];
    size_t sum = 0, least = ringpoll_zc_least(fd_of(ring));
    if (inside.buffer_length(ring->inside.bev.output) < least)
        return RINGPOLL_PASS;
    int count = inside.buffer_peek(ring->inside.bev.output, LENT_MOST, NULL, vec, VECTORS);
    count = count_kept(ring->inside.bev.output, vec, count < VECTORS ? count : VECTORS);
    for (int i = 0; i < count; i++) {
        asked[i] = vec[i];
        if (asked[i].iov_len > LENT_MOST - sum)
            asked[i].iov_len = LENT_MOST - sum;
        sum += asked[i].iov_len;
    }
    struct held *held = sum >= least ? calloc(1, sizeof *held) : NULL;
    if (!held)
        return RINGPOLL_PASS;
    held->references = 1;
    held->chains = inside.buffer_new();
    long result = held->chains ? ringpoll_try_sendv_zc(fd_of(ring), (struct iovec *)asked, count, 0, let_go_of, held)
                               : RINGPOLL_PASS;
    *ret_asked = sum;
    if (result > 0) {
        int error = hold_chains(ring, held, vec, (size_t)result);
        if (error < 0)
            ring->write_error = -error;
        return result;
    }
    if (held->chains)
        inside.buffer_free(held->chains);
    free(held);
    return result;
}

/* Gives the ring, or the kernel, what the limits allow. True: it took less. */
static bool write_some(struct ring_bufferevent *ring)
{
    struct bufferevent *bev = &ring->inside.bev;
    evutil_socket_t fd = fd_of(ring);
    size_t left = inside.buffer_length(bev->output), written = 0;
    bool unlimited = !ring->inside.rate_limits && ring->inside.max_write == LIMIT_UNSET, blocked = false;
    bool lends = unlimited && ring->lends;
    ptrdiff_t limit = unlimited ? (ptrdiff_t)TURN_MOST : inside.bev_write_max(&ring->inside);
    if (ring->inside.write_suspended) { /* now, or by the limit that was asked for: who resumes it enables it */
        stop_writing(ring);
        return false;
    }
    if (limit < 0)
        limit = 0;
    if (left > (size_t)limit)
        left = (size_t)limit;
    while (left > 0 && !blocked) {
        struct evbuffer_iovec vec[VECTORS];
        size_t asked = 0;
        if (lends && left >= LENT_LEAST) {
            long lent = lend_output(ring, &asked);
            if (lent != RINGPOLL_PASS) {
                blocked = lent < (long)asked || ring->write_error;
                if (lent < 0 && lent != -EAGAIN)
                    ring->write_error = (int)-lent;
                written += lent > 0 ? (size_t)lent : 0;
                left -= lent > 0 && (size_t)lent < left ? (size_t)lent : left;
                continue;
            }
            asked = 0;
            lends = false;
        }
        int count = peek_memory(bev->output, left, vec);
        for (int i = 0; i < count; i++) {
            if (vec[i].iov_len > left - asked)
                vec[i].iov_len = left - asked;
            asked += vec[i].iov_len;
        }
        long result = count > 0 ? write_vectors(fd, (struct iovec *)vec, count) : write_file(ring, left);
        if (result > 0) {
            if (count > 0) {
                inside.buffer_unfreeze(bev->output, 1);
                inside.buffer_drain(bev->output, (size_t)result);
                inside.buffer_freeze(bev->output, 1);
            }
            written += (size_t)result;
            left -= (size_t)result < left ? (size_t)result : left;
            blocked = (size_t)result < asked;
        } else {
            blocked = true;
            if (result != -EAGAIN && result != -EINTR)
                ring->write_error = result == 0 ? EPIPE : (int)-result;
        }
    }
    if (written > 0) {
        ring->tells = true;
        inside.bev_was_written(&ring->inside, (ptrdiff_t)written);
    }
    return blocked && !ring->write_error;
}

/* What was SENT: the bufferevent is held. True: a callback was called. */
static bool end_write(struct ring_bufferevent *ring, bool blocked)
{
    struct bufferevent *bev = &ring->inside.bev;
    bool tells = ring->tells;
    int error = ring->write_error;
    ring->tells = false;
    ring->write_error = 0;
    step(ring, OUTPUT_IDLE);
    if (ring->cancelled || fd_of(ring) < 0)
        return false;
    if (error) {
        inside.bev_disable(bev, EV_WRITE);
        errno = error;
        call(ring, 0, BEV_EVENT_WRITING | BEV_EVENT_ERROR);
        return true;
    }
    size_t left = inside.buffer_length(bev->output);
    if (blocked && may_write(ring)) {
        ringpoll_fd_full(fd_of(ring));
        if (inside.bev_add_event(&bev->ev_write, &bev->timeout_write) == 0)
            step(ring, OUTPUT_BLOCKED);
    } else if (left > 0 && may_write(ring)) { /* a limit, or it came later: in the next turn */
        wait_to_write(ring, false);
    }
    if (!tells || left > bev->wm_write.low)
        return false;
    call(ring, EV_WRITE, 0);
    return true;
}

static void write_now(struct ring_bufferevent *ring)
{
    struct bufferevent *bev = &ring->inside.bev;
    if (may_write(ring)) {
        step(ring, OUTPUT_SENT);
        ring->blocked = write_some(ring);
        return;
    }
    stop_writing(ring);
    /* An enable, then a connect: it is ev_write that tells of that. */
    if (ring->inside.connecting && !ring->cancelled && (bev->enabled & EV_WRITE) && !ring->inside.write_suspended)
        inside.bev_add_event(&bev->ev_write, &bev->timeout_write);
}

/* Also at the end of each read callback: what it has just made is in the cache. Nothing is
 * told before the base's callback runs. */
static void write_waiting(struct event_outputs *outputs)
{
    for (unsigned left = outputs->waiting.count; left > 0; left--) {
        struct ring_bufferevent *ring = take_first(outputs, OUTPUT_WAITING);
        if (ring) {
            write_now(ring);
            drop(ring);
        }
    }
}

/* Once in each turn of the loop: what comes to wait meanwhile waits for the next. */
static void run_outputs(struct event_callback *callback, void *argument)
{
    struct event_outputs *outputs = argument;
    struct ring_bufferevent *ring;
    lock_outputs(outputs, true);
    outputs->runs = true;
    lock_outputs(outputs, false);
    write_waiting(outputs);
    bool all = ringpoll_flush() == 0;
    for (unsigned left = outputs->sent.count; left > 0; left--) {
        if (!(ring = take_first(outputs, OUTPUT_SENT)))
            continue;
        if (!all || ring->doubtful)
            ring->doubtful = ring->declared && ringpoll_fd_flush(fd_of(ring)) < 0;
        bool told = end_write(ring, ring->blocked || ring->doubtful);
        if (!is_reading(ring))
            rest(ring);
        drop(ring);
        if (told && inside.got_break(outputs->base)) /* the rest in the next loop */
            break;
    }
    lock_outputs(outputs, true);
    outputs->runs = false;
    bool again = outputs->waiting.count + outputs->sent.count > 0;
    lock_outputs(outputs, false);
    if (again) {
        event_lock(outputs->base, true);
        inside.callback_later(outputs->base, callback);
        event_lock(outputs->base, false);
    }
}

static void on_writable(evutil_socket_t fd, short events, void *argument)
{
    struct bufferevent *bev = argument;
    struct ring_bufferevent *ring = of(bev);
    bool connected = false;

    hold(ring);
    if (events == EV_TIMEOUT) {
        inside.bev_disable(bev, EV_WRITE);
        call(ring, 0, BEV_EVENT_WRITING | BEV_EVENT_TIMEOUT);
        goto done;
    }
    if (ring->inside.connecting) {
        int answer = inside.finished_connecting(fd);
        if (ring->inside.refused) {
            ring->inside.refused = 0;
            answer = -1;
        }
        if (answer == 0)
            goto done;
        ring->inside.connecting = 0;
        if (answer < 0) {
            int error = errno;
            inside.del(&bev->ev_write);
            inside.del(&bev->ev_read);
            rest(ring);
            errno = error;
            call(ring, 0, BEV_EVENT_ERROR);
            goto done;
        }
        connected = true;
        inside.bev_set_address_of(bev, fd);
        call(ring, 0, BEV_EVENT_CONNECTED);
    }
    inside.del(&bev->ev_write);
    if (connected)
        stop_writing(ring);
    if (ring->output == OUTPUT_BLOCKED)
        step(ring, OUTPUT_IDLE);
    if (may_write(ring) && (!connected || inside.buffer_length(bev->output) > 0))
        wait_to_write(ring, !connected);
    if (!is_reading(ring))
        rest(ring);
done:
    drop(ring);
}

static void on_output_changed(struct evbuffer *buffer, const struct evbuffer_cb_info *change, void *argument)
{
    struct ring_bufferevent *ring = argument;
    struct bufferevent *bev = &ring->inside.bev;
    (void)buffer;
    if (change->n_added == 0 || !(bev->enabled & EV_WRITE) || ring->inside.write_suspended ||
        ring->output == OUTPUT_BLOCKED)
        return;
    if (may_write(ring))
        wait_to_write(ring, false);
    else if (!ring->cancelled && !inside.pending(&bev->ev_write, EV_WRITE, NULL))
        inside.bev_add_event(&bev->ev_write, &bev->timeout_write);
}

/* -------------------------------------------------------------------- operations */

static int ring_enable(struct bufferevent *bev, short events)
{
    struct ring_bufferevent *ring = of(bev);
    if ((events & (EV_READ | EV_WRITE)) && fd_of(ring) >= 0)
        declare(ring);
    if (events & EV_READ) {
        ring->postponed = false;
        if (inside.bev_add_event(&bev->ev_read, &bev->timeout_read) < 0)
            return -1;
        if (is_waiting_to_be_read(ring))
            inside.active(&bev->ev_read, EV_READ, 1);
    }
    if (!(events & EV_WRITE))
        return 0;
    if (!may_write(ring) || ring->output == OUTPUT_BLOCKED) /* its timeout begins anew */
        return inside.bev_add_event(&bev->ev_write, &bev->timeout_write);
    wait_to_write(ring, true);
    return 0;
}

static int disable_now(struct ring_bufferevent *ring, short events)
{
    struct bufferevent *bev = &ring->inside.bev;
    int result = 0;
    if (ring->postponed)
        events |= EV_READ;
    ring->postponed = false;
    bool ends_write = (events & EV_WRITE) && !ring->inside.connecting;
    bool was_declared = ring->declared;
    if (events & EV_READ)
        end_receive(ring, false);
    /* A suspension, by a limit that is used up, maybe by this very write: what went before is told. */
    if (ends_write && !(ring->output == OUTPUT_SENT && (bev->enabled & EV_WRITE)))
        stop_writing(ring);
    bool reads = !(events & EV_READ) && inside.pending(&bev->ev_read, EV_READ, NULL);
    bool writes = !ends_write && inside.pending(&bev->ev_write, EV_WRITE, NULL);
    event_del_keeps = !reads && !writes && !let_go(ring, false);
    if ((events & EV_READ) && inside.del(&bev->ev_read) < 0)
        result = -1;
    if (ends_write && inside.del(&bev->ev_write) < 0)
        result = -1;
    event_del_keeps = false;
    forget(ring, was_declared);
    return result;
}

static int ring_disable(struct bufferevent *bev, short events)
{
    struct ring_bufferevent *ring = of(bev);
    if (called == ring && ring->declared && !(events & EV_WRITE) && inside.pending(&bev->ev_read, EV_READ, NULL)) {
        ring->postponed = true;
        return 0;
    }
    return disable_now(ring, events);
}

static void assign(struct ring_bufferevent *ring, evutil_socket_t fd)
{
    struct bufferevent *bev = &ring->inside.bev;
    inside.assign(&bev->ev_read, bev->ev_base, fd, EV_READ | EV_PERSIST | EV_FINALIZE, on_readable, bev);
    inside.assign(&bev->ev_write, bev->ev_base, fd, EV_WRITE | EV_PERSIST | EV_FINALIZE, on_writable, bev);
}

static void take_fd(struct ring_bufferevent *ring, int kind)
{
    ring->kind = kind > 0 && (kind & RINGPOLL_FD_NONBLOCK) ? kind : 0;
    ring->read_size = READ_LEAST;
}

static void *lookup_of(struct ring_bufferevent *ring)
{
    void *request;
    memcpy(&request, (char *)ring + object_lookup_at, sizeof request);
    return request;
}

static void set_fd(struct bufferevent *bev, evutil_socket_t fd)
{
    struct ring_bufferevent *ring = of(bev);
    bool was_declared = ring->declared;
    /* The same number is the same file as long as it is to be read: else it may have been closed. */
    bool is_same = fd >= 0 && fd == fd_of(ring) && ((bev->enabled & EV_READ) || ring->postponed);
    ring->postponed = false;
    stop_writing(ring);
    event_del_keeps = !let_go(ring, !is_same);
    inside.del(&bev->ev_read);
    inside.del(&bev->ev_write);
    event_del_keeps = false;
    if (was_declared && !ring->declared && !event_register_again(bev->ev_base, fd_of(ring)))
        ringpoll_fd_forget(fd_of(ring));
    if (ring->ahead && !is_same)
        inside.buffer_drain(ring->ahead, inside.buffer_length(ring->ahead));
    if (!is_same)
        ring->error = 0;
    inside.buffer_unfreeze(bev->input, 0);
    inside.buffer_unfreeze(bev->output, 1);
    assign(ring, fd);
    take_fd(ring, fd >= 0 ? object_kind((int)fd) : 0);
    if (fd >= 0)
        inside.bev_enable(bev, bev->enabled);
    inside.cancel_lookup(lookup_of(ring));
}

static int ring_control(struct bufferevent *bev, enum bufferevent_control what, union bufferevent_argument *argument)
{
    struct ring_bufferevent *ring = of(bev);
    bool was_declared;
    switch (what) {
    case CONTROL_SET_FD:
        object_lock(ring->inside.lock);
        set_fd(bev, argument->fd);
        object_unlock(ring->inside.lock);
        return 0;
    case CONTROL_GET_FD: /* who asks may close it */
        if (called == ring)
            settle(ring);
        argument->fd = fd_of(ring);
        return 0;
    case CONTROL_CANCEL_ALL: /* bufferevent_free(): what the program does to its fd next nobody tells us */
        ring->cancelled = true;
        ring->postponed = false;
        stop_writing(ring);
        was_declared = ring->declared;
        event_del_keeps = !let_go(ring, false);
        inside.del(&bev->ev_read);
        inside.del(&bev->ev_write);
        event_del_keeps = false;
        forget(ring, was_declared);
        return -1;
    default:
        return -1;
    }
}

static int ring_flush(struct bufferevent *bev, short events, enum bufferevent_flush_mode mode)
{
    (void)bev;
    (void)events;
    (void)mode;
    return 0;
}

static void ring_destruct(struct bufferevent *bev)
{
    struct ring_bufferevent *ring = of(bev);
    evutil_socket_t fd = fd_of(ring);
    if ((ring->inside.options & BEV_OPT_CLOSE_ON_FREE) && fd >= 0)
        ringpoll_close((int)fd);
    else if (ring->declared && !event_is_registered(bev->ev_base, fd)) /* it may be another's by now */
        ringpoll_fd_forget((int)fd);
    inside.cancel_lookup(lookup_of(ring));
    if (ring->ahead)
        inside.buffer_free(ring->ahead);
    __atomic_sub_fetch(&ring->outputs->users, 1, __ATOMIC_RELEASE);
}

static const struct bufferevent_ops *ring_ops(void)
{
    static struct bufferevent_ops ops = {
        .type = "socket",
        .enable = ring_enable,
        .disable = ring_disable,
        .destruct = ring_destruct,
        .flush = ring_flush,
        .control = ring_control,
    };
    __atomic_store_n(&ops.adjust_timeouts, inside.bev_adjust_timeouts, __ATOMIC_RELAXED);
    return &ops;
}

struct bufferevent *ringpoll_bufferevent_socket_new(struct event_base *base, evutil_socket_t fd, int options)
{
    struct event_outputs *outputs = NULL;
    int fits = objects_fit(base, &outputs);
    if (fits == 1)
        return inside.socket_new ? inside.socket_new(base, fd, options) : NULL;
    int kind = fits == 0 && fd >= 0 ? object_kind((int)fd) : 0;
    struct ring_bufferevent *ring = NULL;
    if (fits < 0 || kind < 0) {
        errno = fits < 0 ? -fits : -kind;
        return NULL;
    }
    ring = inside.calloc(1, sizeof *ring);
    if (!ring) {
        errno = ENOMEM;
        return NULL;
    }
    if (inside.bev_init(&ring->inside, base, ring_ops(), options) < 0) {
        inside.free(ring);
        errno = (options & (BEV_OPT_UNLOCK_CALLBACKS | BEV_OPT_DEFER_CALLBACKS)) == BEV_OPT_UNLOCK_CALLBACKS ? EINVAL : ENOMEM;
        return NULL;
    }
    ring->outputs = outputs;
    __atomic_add_fetch(&outputs->users, 1, __ATOMIC_RELAXED);
    assign(ring, fd);
    take_fd(ring, kind);
    inside.buffer_on_change(ring->inside.bev.output, on_output_changed, ring);
    inside.buffer_freeze(ring->inside.bev.input, 0);
    inside.buffer_freeze(ring->inside.bev.output, 1);
    return &ring->inside.bev;
}

int ringpoll_bufferevent_set_zero_copy(struct bufferevent *bev, int on)
{
    if (!bev)
        return -EINVAL;
    if (bev->be_ops != ring_ops())
        return -ENOTSUP;
    struct ring_bufferevent *ring = of(bev);
    hold(ring);
    ring->lends = on != 0;
    drop(ring);
    return 0;
}
