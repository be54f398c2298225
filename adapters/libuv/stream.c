/* SPDX-License-Identifier: MIT
 *
 * Streams: TCP, and AF_UNIX (or whatever else a pipe handle was opened with).
 *
 * Reading. libuv's order is kept: the program is asked for memory, the bytes are received into it (out of the
 * library's queue, where the ring has brought them, or by recv), and read_cb follows at once.
 * What a program that has stopped reading does not take stays in that queue, or in the
 * kernel. read_start_borrowed hands the library's buffers out instead, and one of its own making
 * where the ring does not receive (the first bytes of a connection, big messages).
 *
 * Writing. A write that finds nothing before it is handed to the ring, or to the kernel, inside
 * the call; what is not taken waits with its request, in order (request.c). Callbacks come in our
 * turn, after the flush.
 *
 * A shutdown goes through OUTPUT_ENDING: nothing waits any more, and the library holds no bytes
 * back for this fd; then the kernel is told (OUTPUT_ENDED), and the callback is called.
 *
 * A listener takes one connection and tells the program. Where that does not accept it in the
 * callback, the next is not asked for until it does.
 */
#include "inside.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#define SUGGESTED (64u * 1024u)
#define TURN_READS 32
#define TURN_WRITES 32
#define MOST_VECTORS 1024u

struct write_request { /* is a ringpoll_uv_write_t */
    struct request request;
    ringpoll_uv_write_cb on_written;
};
struct connect_request { /* is a ringpoll_uv_connect_t */
    void *data;
    ringpoll_uv_stream_t *user;
    ringpoll_uv_connect_cb on_connect;
    struct connect_request *next; /* refused */
    int error;
};
struct shutdown_request {
    void *data;
    ringpoll_uv_stream_t *user;
    ringpoll_uv_shutdown_cb on_shutdown;
};
_Static_assert(sizeof(struct write_request) <= sizeof(ringpoll_uv_write_t), "a write request has room");
_Static_assert(sizeof(struct connect_request) <= sizeof(ringpoll_uv_connect_t), "a connect request has room");
_Static_assert(sizeof(uv_buf_t) == sizeof(struct iovec), "uv_buf_t is struct iovec");

static int set_option(int fd, int level, int name, int value)
{
    return setsockopt(fd, level, name, &value, sizeof value) < 0 ? -errno : 0;
}

static int set_nodelay(int fd, bool on)
{
    return set_option(fd, IPPROTO_TCP, TCP_NODELAY, on);
}

static int set_keepalive(int fd, bool on, unsigned delay)
{
    int error = set_option(fd, SOL_SOCKET, SO_KEEPALIVE, on);
    if (error < 0 || !on)
        return error;
    if ((error = set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, (int)delay)) < 0 ||
        (error = set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, 1)) < 0)
        return error;
    return set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, 10);
}

/* What was asked of the handle before there was a socket; the delay is libuv's then. */
static int set_asked(const struct handle *handle, int fd)
{
    int error = handle->nodelay ? set_nodelay(fd, true) : 0;
    return error == 0 && handle->keepalive ? set_keepalive(fd, true, 60) : error;
}

/* There is a connection, or may be one in a moment: reads and ends can be asked for. */
static bool is_coming(const struct handle *handle)
{
    return handle->state == HANDLE_CONNECTED || handle->state == HANDLE_CONNECTING;
}

/* ------------------------------------------------------------------ requests */

static void finish_first(struct handle *handle, int error)
{
    request_finish_first(handle, error);
    handle_defer(handle);
}

static void call_back(struct request *request)
{
    struct write_request *write = (struct write_request *)request;
    if (write->on_written)
        write->on_written((ringpoll_uv_write_t *)request, request->error);
}

static void tell_written(struct handle *handle)
{
    requests_tell(handle, call_back);
}

/* ------------------------------------------------------------------ interest */

uint32_t stream_interest(const struct handle *handle)
{
    switch (handle->state) {
    case HANDLE_LISTENING:
        return handle->accepted_fd < 0 && !handle->deaf ? EPOLLIN : 0u;
    case HANDLE_CONNECTING:
        return handle->connect_is_over ? 0u : EPOLLOUT;
    case HANDLE_CONNECTED:
        return (handle->reading != READING_NOT ? EPOLLIN : 0u) |
               (handle->waiting.first || handle->output == OUTPUT_ENDING ? EPOLLOUT : 0u);
    default:
        return 0;
    }
}

bool stream_is_active(const struct handle *handle)
{
    return (handle->state == HANDLE_LISTENING && !handle->deaf) || handle->state == HANDLE_CONNECTING ||
           (handle->state == HANDLE_CONNECTED &&
            (handle->reading != READING_NOT || handle->waiting.first || handle->output == OUTPUT_ENDING));
}

/* ------------------------------------------------------------------- writing */

static ssize_t write_plainly(const struct handle *handle, const struct iovec *iov, int vectors)
{
    if (!handle->is_socket)
        return writev(handle->fd, iov, vectors);
    if (vectors == 1) /* cheaper than the same by sendmsg */
        return send(handle->fd, iov->iov_base, iov->iov_len, MSG_NOSIGNAL);
    struct msghdr message = {.msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = (size_t)vectors};
    return sendmsg(handle->fd, &message, MSG_NOSIGNAL);
}

static long write_vectors(struct handle *handle, const uv_buf_t *bufs, unsigned count)
{
    const struct iovec *iov = (const struct iovec *)bufs;
    int vectors = (int)(count < MOST_VECTORS ? count : MOST_VECTORS);
    long result = handle->declared ? ringpoll_try_sendv(handle->fd, iov, vectors, MSG_NOSIGNAL) : RINGPOLL_PASS;
    while (result == RINGPOLL_PASS || result == -EINTR) {
        result = write_plainly(handle, iov, vectors);
        if (result < 0)
            result = -errno;
    }
    if (result == -EAGAIN && handle->declared)
        ringpoll_fd_full(handle->fd);
    return result == -ENOBUFS ? -EAGAIN : result;
}

static void write_waiting(struct handle *handle)
{
    for (int turn = 0; turn < TURN_WRITES && handle->waiting.first; turn++) {
        struct request *request = handle->waiting.first;
        long sent = write_vectors(handle, request->bufs + request->at, request->count - request->at);
        if (sent == -EAGAIN)
            return;
        if (sent < 0) {
            finish_first(handle, (int)sent);
            continue;
        }
        handle->waiting_bytes -= (size_t)sent;
        size_t left = (size_t)sent;
        while (request->at < request->count && left >= request->bufs[request->at].len)
            left -= request->bufs[request->at++].len;
        if (request->at == request->count) {
            finish_first(handle, 0);
            continue;
        }
        request->bufs[request->at].base += left;
        request->bufs[request->at].len -= left;
    }
}

int ringpoll_uv_write(ringpoll_uv_write_t *req, ringpoll_uv_stream_t *stream, const uv_buf_t *bufs, unsigned nbufs,
                      ringpoll_uv_write_cb on_written)
{
    struct handle *handle = open_handle_of(stream);
    if (!handle || handle->fd < 0)
        return UV_EBADF;
    if (!handle->writable)
        return UV_EPIPE;
    struct write_request *write = (struct write_request *)req;
    bool alone = !handle->waiting.first;
    int error = request_wait(handle, &write->request, bufs, nbufs);
    if (error < 0)
        return error;
    write->on_written = on_written;
    if (alone && handle->state == HANDLE_CONNECTED)
        write_waiting(handle);
    handle_changed(handle);
    return 0;
}

int ringpoll_uv_try_write(ringpoll_uv_stream_t *stream, const uv_buf_t *bufs, unsigned nbufs)
{
    struct handle *handle = open_handle_of(stream);
    if (!handle || handle->fd < 0)
        return UV_EBADF;
    if (!handle->writable)
        return UV_EPIPE;
    if (handle->state != HANDLE_CONNECTED || handle->waiting.first)
        return UV_EAGAIN;
    long sent = write_vectors(handle, bufs, nbufs);
    state_touch(handle->loop);
    return (int)sent;
}

static void tell_shutdown(struct handle *handle, enum output output, int error)
{
    struct shutdown_request *request = (struct shutdown_request *)handle->ending;
    handle->output = (uint8_t)output;
    handle->ending = NULL;
    handle->requests--;
    handle_changed(handle);
    if (request->on_shutdown)
        request->on_shutdown((ringpoll_uv_shutdown_t *)request, error);
}

/* OUTPUT_ENDING → OUTPUT_ENDED, once there is nothing before the end. */
static void end_output(struct handle *handle)
{
    if (handle->output != OUTPUT_ENDING || handle->waiting.first || handle->written.first)
        return;
    if (handle->declared && ringpoll_fd_flush(handle->fd) == -EAGAIN) {
        ringpoll_fd_full(handle->fd);
        return;
    }
    if (handle->declared)
        ringpoll_fd_shutdown(handle->fd, SHUT_WR);
    tell_shutdown(handle, OUTPUT_ENDED, shutdown(handle->fd, SHUT_WR) < 0 ? -errno : 0);
}

int ringpoll_uv_shutdown(ringpoll_uv_shutdown_t *req, ringpoll_uv_stream_t *stream, ringpoll_uv_shutdown_cb on_shutdown)
{
    struct handle *handle = open_handle_of(stream);
    if (!handle || !is_coming(handle) || !handle->writable || handle->output != OUTPUT_OPEN)
        return UV_ENOTCONN;
    struct shutdown_request *request = (struct shutdown_request *)req;
    request->user = stream;
    request->on_shutdown = on_shutdown;
    handle->ending = req;
    handle->output = OUTPUT_ENDING;
    handle->writable = false;
    handle->requests++;
    handle_defer(handle);
    handle_changed(handle);
    return 0;
}

/* ------------------------------------------------------------------- reading */

static long read_plainly(struct handle *handle, void *memory, size_t length)
{
    ssize_t got;
    do
        got = handle->is_socket ? recv(handle->fd, memory, length, 0) : read(handle->fd, memory, length);
    while (got < 0 && errno == EINTR);
    long result = got < 0 ? -errno : got;
    if (handle->declared)
        ringpoll_fd_read(handle->fd, length, result);
    return result;
}

static void stop_reading(struct handle *handle)
{
    handle->reading = READING_NOT;
    handle_changed(handle);
}

/* No bytes but an end, or an error. */
static void tell_end(struct handle *handle, long result, const uv_buf_t *buf)
{
    uint8_t how = handle->reading;
    int status = result == 0 ? UV_EOF : (int)result;
    ringpoll_uv_stream_t *user = (ringpoll_uv_stream_t *)handle->user;
    if (result < 0)
        handle->readable = handle->writable = false;
    stop_reading(handle);
    if (how == READING_BORROWS)
        handle->on_borrow(user, status, NULL);
    else
        handle->on_read(user, status, buf);
}

/* True: there may be more. */
static bool read_a_copy(struct handle *handle)
{
    uv_buf_t buf = uv_buf_init(NULL, 0);
    handle->on_alloc(handle->user, SUGGESTED, &buf);
    if (!buf.base || buf.len == 0) {
        handle->on_read((ringpoll_uv_stream_t *)handle->user, UV_ENOBUFS, &buf);
        return false;
    }
    if (handle->state == HANDLE_CLOSING) { /* by on_alloc: a strange program, but it gets its memory back */
        handle->on_read((ringpoll_uv_stream_t *)handle->user, 0, &buf);
        return false;
    }
    long got = handle->declared ? ringpoll_try_recv(handle->fd, buf.base, buf.len, MSG_DONTWAIT) : RINGPOLL_PASS;
    if (got == RINGPOLL_PASS)
        got = read_plainly(handle, buf.base, buf.len);
    if (got == -EAGAIN || got > 0) {
        bool more = got == (long)buf.len;
        handle->on_read((ringpoll_uv_stream_t *)handle->user, got > 0 ? got : 0, &buf);
        return more;
    }
    tell_end(handle, got, &buf);
    return false;
}

static bool read_a_loan(struct handle *handle)
{
    struct ringpoll_buffer buffer;
    long got = handle->declared ? ringpoll_borrow(handle->fd, &buffer, MSG_DONTWAIT) : RINGPOLL_PASS;
    bool plain = got == RINGPOLL_PASS, more = !plain;
    if (plain) {
        got = ringpoll_buffer_new(SUGGESTED, &buffer);
        if (got == 0) {
            got = read_plainly(handle, buffer.data, buffer.length);
            more = got == (long)buffer.length;
            buffer.length = got > 0 ? (size_t)got : 0;
        }
        if (got <= 0 && buffer.pool)
            ringpoll_return(&buffer);
    }
    if (got == -EAGAIN)
        return false;
    if (got <= 0) {
        tell_end(handle, got, NULL);
        return false;
    }
    handle->on_borrow((ringpoll_uv_stream_t *)handle->user, got, &buffer);
    return more;
}

static void read_what_came(struct handle *handle)
{
    for (int turn = 0; turn < TURN_READS && handle->state == HANDLE_CONNECTED; turn++) {
        bool more;
        if (handle->reading == READING_COPIES)
            more = read_a_copy(handle);
        else if (handle->reading == READING_BORROWS)
            more = read_a_loan(handle);
        else
            return;
        if (!more)
            return;
    }
}

static int start_reading(ringpoll_uv_stream_t *stream, enum reading how, ringpoll_uv_alloc_cb on_alloc,
                         ringpoll_uv_read_cb on_read, ringpoll_uv_borrow_cb on_borrow)
{
    struct handle *handle = handle_of(stream);
    if (!handle || (how == READING_COPIES ? !on_alloc || !on_read : !on_borrow) || handle->state == HANDLE_CLOSING)
        return UV_EINVAL;
    if (handle->reading != READING_NOT)
        return UV_EALREADY;
    if (!handle->readable || !is_coming(handle))
        return UV_ENOTCONN;
    handle->reading = (uint8_t)how;
    handle->on_alloc = on_alloc;
    handle->on_read = on_read;
    handle->on_borrow = on_borrow;
    handle_changed(handle);
    return 0;
}

int ringpoll_uv_read_start(ringpoll_uv_stream_t *stream, ringpoll_uv_alloc_cb on_alloc, ringpoll_uv_read_cb on_read)
{
    return start_reading(stream, READING_COPIES, on_alloc, on_read, NULL);
}

int ringpoll_uv_read_start_borrowed(ringpoll_uv_stream_t *stream, ringpoll_uv_borrow_cb on_read)
{
    return start_reading(stream, READING_BORROWS, NULL, NULL, on_read);
}

int ringpoll_uv_read_stop(ringpoll_uv_stream_t *stream)
{
    struct handle *handle = open_handle_of(stream);
    if (handle && handle->reading != READING_NOT)
        stop_reading(handle);
    return 0;
}

/* ---------------------------------------------------------------- connecting */

static void connected(struct handle *handle)
{
    handle_step(handle, HANDLE_CONNECTED);
    handle->readable = handle->writable = true;
}

/* UV_ECANCELED for all that waits to be written. */
static void cancel_waiting(struct handle *handle, int error)
{
    while (handle->waiting.first)
        finish_first(handle, error);
}

static void finish_connect(struct handle *handle)
{
    struct connect_request *request = (struct connect_request *)handle->connecting;
    int error = handle->delayed_error;
    if (error == 0 && !handle->connect_is_over) {
        socklen_t length = sizeof error;
        if (getsockopt(handle->fd, SOL_SOCKET, SO_ERROR, &error, &length) < 0)
            error = errno;
        if (error == EINPROGRESS)
            return;
        error = -error;
    }
    handle->delayed_error = 0;
    handle->connect_is_over = false;
    handle->connecting = NULL;
    handle->requests--;
    if (error == 0) {
        connected(handle);
        if (handle->declared)
            ringpoll_fd_connected(handle->fd);
        handle->writable = handle->output == OUTPUT_OPEN;
        write_waiting(handle);
        if (handle->output == OUTPUT_ENDING)
            handle_defer(handle);
    } else {
        handle_step(handle, HANDLE_OPEN);
        handle->readable = handle->writable = false;
        handle->reading = READING_NOT;
    }
    handle_changed(handle);
    if (request->on_connect)
        request->on_connect((ringpoll_uv_connect_t *)request, error);
    if (error < 0 && handle->state != HANDLE_CLOSING) {
        cancel_waiting(handle, UV_ECANCELED);
        tell_written(handle);
    }
    if (error < 0 && handle->state != HANDLE_CLOSING && handle->output == OUTPUT_ENDING)
        tell_shutdown(handle, OUTPUT_OPEN, UV_ECANCELED);
}

static void begin_connect(struct handle *handle, ringpoll_uv_connect_t *req, ringpoll_uv_stream_t *user,
                          ringpoll_uv_connect_cb on_connect)
{
    struct connect_request *request = (struct connect_request *)req;
    request->user = user;
    request->on_connect = on_connect;
    handle->connecting = req;
    handle->readable = handle->writable = true; /* as in libuv, which queues writes from here on */
    handle->requests++;
}

/* A connect that cannot be, and is to call back. */
static void refuse_connect(struct handle *handle, ringpoll_uv_connect_t *req, ringpoll_uv_connect_cb on_connect,
                           int error)
{
    struct connect_request *request = (struct connect_request *)req, **at = &handle->refused;
    request->user = (ringpoll_uv_stream_t *)handle->user;
    request->on_connect = on_connect;
    request->error = error;
    request->next = NULL;
    while (*at)
        at = &(*at)->next;
    *at = request;
    handle->requests++;
    handle_defer(handle);
    handle_changed(handle);
}

static void tell_refused(struct handle *handle)
{
    struct connect_request *request = handle->refused, *next;
    handle->refused = NULL;
    for (; request; request = next) {
        next = request->next;
        handle->requests--;
        handle_changed(handle);
        if (request->on_connect)
            request->on_connect((ringpoll_uv_connect_t *)request,
                                handle->state == HANDLE_CLOSING ? UV_ECANCELED : request->error);
    }
}

/* ----------------------------------------------------------------- listening */

static uint32_t kind_of(const struct handle *handle)
{
    return handle->type == TYPE_TCP ? RINGPOLL_FD_TCP : RINGPOLL_FD_UNIX;
}

static int need_socket(struct handle *handle, int family)
{
    if (handle->fd >= 0)
        return 0;
    int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    int error = set_asked(handle, fd);
    if (error < 0) {
        close(fd);
        return error;
    }
    handle_take_fd(handle, fd, kind_of(handle));
    handle_step(handle, HANDLE_OPEN);
    return 0;
}

/* One more connection cannot be had for want of a number: all that wait are let go. */
static long refuse_waiting(struct handle *handle)
{
    struct uv_state *state = handle->loop;
    if (state->reserve_fd < 0)
        return -EMFILE;
    close(state->reserve_fd);
    int fd;
    do {
        fd = accept4(handle->fd, NULL, NULL, SOCK_CLOEXEC);
        if (fd >= 0)
            close(fd);
    } while (fd >= 0 || errno == EINTR);
    long result = -errno;
    state->reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    return result;
}

static long accept_next(struct handle *handle)
{
    int flags = SOCK_NONBLOCK | SOCK_CLOEXEC;
    long result = ringpoll_try_accept(handle->fd, NULL, NULL, flags);
    if (result == RINGPOLL_PASS) {
        int fd = accept4(handle->fd, NULL, NULL, flags);
        result = fd < 0 ? -errno : fd;
        ringpoll_fd_accepted(handle->fd, (int)result, flags, 0);
    }
    if (result == -EMFILE || result == -ENFILE) {
        long rest = refuse_waiting(handle);
        return rest == -EAGAIN ? -EAGAIN : result;
    }
    return result;
}

static void accept_what_came(struct handle *handle)
{
    ringpoll_uv_stream_t *user = (ringpoll_uv_stream_t *)handle->user;
    while (handle->state == HANDLE_LISTENING && handle->accepted_fd < 0) {
        long result = accept_next(handle);
        if (result == -EAGAIN)
            return;
        if (result == -ECONNABORTED || result == -EINTR)
            continue;
        if (result < 0) {
            handle->on_connection(user, (int)result);
            break;
        }
        handle->accepted_fd = (int)result;
        handle->on_connection(user, 0);
    }
    if (handle->state == HANDLE_LISTENING)
        handle_changed(handle);
}

int ringpoll_uv_listen(ringpoll_uv_stream_t *stream, int backlog, ringpoll_uv_connection_cb on_connection)
{
    struct handle *handle = open_handle_of(stream);
    if (!handle || handle->type == TYPE_UDP)
        return UV_EINVAL;
    if (handle->delayed_error)
        return handle->delayed_error;
    if (handle->state == HANDLE_FRESH && handle->type == TYPE_TCP) {
        int error = need_socket(handle, AF_INET);
        if (error < 0)
            return error;
    }
    if (handle->state != HANDLE_OPEN && handle->state != HANDLE_LISTENING)
        return UV_EINVAL;
    if (listen(handle->fd, backlog) < 0)
        return -errno;
    ringpoll_fd_listening(handle->fd, backlog);
    handle->on_connection = on_connection;
    handle->deaf = false;
    handle_step(handle, HANDLE_LISTENING);
    handle_changed(handle);
    return 0;
}

int ringpoll_uv_accept(ringpoll_uv_stream_t *server, ringpoll_uv_stream_t *client)
{
    struct handle *from = open_handle_of(server), *to = open_handle_of(client);
    if (!from || !to || to->type == TYPE_UDP || to->loop != from->loop)
        return UV_EINVAL;
    if (from->accepted_fd < 0)
        return UV_EAGAIN;
    if (to->state != HANDLE_FRESH)
        return UV_EBUSY;
    int error = set_asked(to, from->accepted_fd);
    if (error < 0)
        return error;
    handle_take_fd(to, from->accepted_fd, kind_of(from) | RINGPOLL_FD_CONNECTED);
    connected(to);
    from->accepted_fd = -1;
    handle_changed(from);
    return 0;
}

/* --------------------------------------------------------------- from outside */

void stream_event(struct handle *handle, uint32_t events)
{
    if (handle->state == HANDLE_LISTENING) {
        accept_what_came(handle);
        return;
    }
    if (handle->state == HANDLE_CONNECTING) {
        if (events & (EPOLLOUT | EPOLLERR | EPOLLHUP))
            finish_connect(handle);
        return;
    }
    if (events & (EPOLLIN | EPOLLERR | EPOLLHUP | EPOLLRDHUP))
        read_what_came(handle);
    if (handle->state == HANDLE_CONNECTED && (events & (EPOLLOUT | EPOLLERR | EPOLLHUP))) {
        write_waiting(handle);
        if (handle->output == OUTPUT_ENDING && !handle->waiting.first)
            handle_defer(handle);
        handle_changed(handle);
    }
}

void stream_due(struct handle *handle)
{
    if (handle->state == HANDLE_CONNECTING && (handle->connect_is_over || handle->delayed_error))
        finish_connect(handle);
    tell_refused(handle);
    tell_written(handle);
    if (handle->state == HANDLE_CONNECTED)
        end_output(handle);
}

void stream_failed(struct handle *handle, int error)
{
    uv_buf_t none = uv_buf_init(NULL, 0);
    ringpoll_uv_stream_t *user = (ringpoll_uv_stream_t *)handle->user;
    uint8_t how = handle->reading;
    switch (handle->state) {
    case HANDLE_LISTENING:
        handle->deaf = true;
        handle_changed(handle);
        handle->on_connection(user, error);
        break;
    case HANDLE_CONNECTING:
        handle->delayed_error = error;
        finish_connect(handle);
        break;
    case HANDLE_CONNECTED:
        cancel_waiting(handle, error);
        if (how != READING_NOT)
            stop_reading(handle);
        if (how == READING_BORROWS)
            handle->on_borrow(user, error, NULL);
        else if (how == READING_COPIES)
            handle->on_read(user, error, &none);
        if (handle->state == HANDLE_CONNECTED)
            tell_written(handle);
        if (handle->state == HANDLE_CONNECTED && handle->output == OUTPUT_ENDING)
            tell_shutdown(handle, OUTPUT_ENDED, error);
        break;
    default:
        break;
    }
}

void stream_closing(struct handle *handle)
{
    handle->reading = READING_NOT;
    handle->readable = handle->writable = false;
    if (handle->accepted_fd >= 0)
        ringpoll_close(handle->accepted_fd);
    handle->accepted_fd = -1;
    if (handle->path)
        unlink(handle->path);
}

void stream_closed(struct handle *handle)
{
    struct connect_request *connecting = (struct connect_request *)handle->connecting;
    struct shutdown_request *ending = (struct shutdown_request *)handle->ending;
    handle->connecting = NULL;
    handle->ending = NULL;
    if (connecting && connecting->on_connect)
        connecting->on_connect((ringpoll_uv_connect_t *)connecting, UV_ECANCELED);
    tell_refused(handle);
    while (handle->waiting.first)
        request_finish_first(handle, UV_ECANCELED);
    tell_written(handle);
    if (ending && ending->on_shutdown)
        ending->on_shutdown((ringpoll_uv_shutdown_t *)ending, UV_ECANCELED);
}

int ringpoll_uv_is_readable(const ringpoll_uv_stream_t *stream)
{
    const struct handle *handle = open_handle_of(stream);
    return handle && handle->readable;
}

int ringpoll_uv_is_writable(const ringpoll_uv_stream_t *stream)
{
    const struct handle *handle = open_handle_of(stream);
    return handle && handle->writable;
}

size_t ringpoll_uv_stream_get_write_queue_size(const ringpoll_uv_stream_t *stream)
{
    const struct handle *handle = handle_of(stream);
    return handle ? handle->waiting_bytes : 0;
}

/* ----------------------------------------------------------------------- TCP */

int ringpoll_uv_tcp_init(uv_loop_t *loop, ringpoll_uv_tcp_t *tcp)
{
    return handle_new(loop, tcp, TYPE_TCP);
}

static int make_nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || (!(flags & O_NONBLOCK) && fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0))
        return -errno;
    return flags & O_ACCMODE;
}

int ringpoll_uv_tcp_open(ringpoll_uv_tcp_t *tcp, uv_os_sock_t fd)
{
    struct handle *handle = open_handle_of(tcp);
    if (!handle || handle->state != HANDLE_FRESH)
        return handle ? UV_EBUSY : UV_EINVAL;
    if (handle_has_fd(handle->loop, fd))
        return UV_EEXIST;
    int family = 0;
    socklen_t length = sizeof family;
    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &length) < 0)
        return -errno;
    int error = make_nonblocking(fd);
    if (error < 0 || (error = set_asked(handle, fd)) < 0)
        return error;
    struct sockaddr_storage peer;
    length = sizeof peer;
    bool has_peer = getpeername(fd, (struct sockaddr *)&peer, &length) == 0;
    handle_take_fd(handle, fd, (family == AF_UNIX ? RINGPOLL_FD_UNIX : RINGPOLL_FD_TCP) |
                                   (has_peer ? RINGPOLL_FD_CONNECTED : 0u));
    if (has_peer)
        connected(handle);
    else
        handle_step(handle, HANDLE_OPEN);
    return 0;
}

static socklen_t length_of(const struct sockaddr *address)
{
    return address->sa_family == AF_INET ? sizeof(struct sockaddr_in)
         : address->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6) : 0;
}

int ringpoll_uv_tcp_bind(ringpoll_uv_tcp_t *tcp, const struct sockaddr *address, unsigned flags)
{
    struct handle *handle = open_handle_of(tcp);
    socklen_t length = address ? length_of(address) : 0;
    int on = 1;
    if (!handle || length == 0 || ((flags & UV_TCP_IPV6ONLY) && address->sa_family != AF_INET6))
        return UV_EINVAL;
    int error = need_socket(handle, address->sa_family);
    if (error < 0)
        return error;
    if (setsockopt(handle->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0)
        return -errno;
    on = (flags & UV_TCP_IPV6ONLY) != 0;
    if (address->sa_family == AF_INET6 && setsockopt(handle->fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on) < 0)
        return -errno;
    error = bind(handle->fd, address, length) < 0 ? -errno : 0;
    if (error < 0 && error != -EADDRINUSE)
        return error == -EAFNOSUPPORT ? UV_EINVAL : error;
    handle->delayed_error = error; /* listen and connect tell of it, as libuv's do */
    return 0;
}

int ringpoll_uv_tcp_connect(ringpoll_uv_connect_t *req, ringpoll_uv_tcp_t *tcp, const struct sockaddr *address,
                            ringpoll_uv_connect_cb on_connect)
{
    struct handle *handle = open_handle_of(tcp);
    socklen_t length = address ? length_of(address) : 0;
    if (!handle || length == 0)
        return UV_EINVAL;
    if (handle->connecting)
        return UV_EALREADY;
    if (handle->state != HANDLE_FRESH && handle->state != HANDLE_OPEN)
        return handle->state == HANDLE_CONNECTED ? UV_EISCONN : UV_EINVAL;
    int error = need_socket(handle, address->sa_family);
    if (error < 0)
        return error;
    bool over = handle->delayed_error != 0;
    if (!over) {
        int result;
        do
            result = connect(handle->fd, address, length);
        while (result < 0 && errno == EINTR);
        if (result < 0 && errno == ECONNREFUSED)
            handle->delayed_error = UV_ECONNREFUSED;
        else if (result < 0 && errno != EINPROGRESS)
            return -errno;
        over = result == 0 || handle->delayed_error;
    }
    begin_connect(handle, req, (ringpoll_uv_stream_t *)tcp, on_connect);
    handle_step(handle, HANDLE_CONNECTING);
    handle->connect_is_over = over;
    if (over)
        handle_defer(handle);
    handle_changed(handle);
    return 0;
}

int ringpoll_uv_tcp_nodelay(ringpoll_uv_tcp_t *tcp, int enable)
{
    struct handle *handle = open_handle_of(tcp);
    int error = !handle ? UV_EBADF : handle->fd >= 0 ? set_nodelay(handle->fd, enable != 0) : 0;
    if (error == 0)
        handle->nodelay = enable != 0;
    return error;
}

int ringpoll_uv_tcp_keepalive(ringpoll_uv_tcp_t *tcp, int enable, unsigned delay)
{
    struct handle *handle = open_handle_of(tcp);
    int error = !handle ? UV_EBADF : handle->fd >= 0 ? set_keepalive(handle->fd, enable != 0, delay) : 0;
    if (error == 0)
        handle->keepalive = enable != 0;
    return error;
}

int ringpoll_uv_tcp_getsockname(const ringpoll_uv_tcp_t *tcp, struct sockaddr *name, int *length)
{
    return handle_sockname(tcp, name, length);
}

int ringpoll_uv_tcp_getpeername(const ringpoll_uv_tcp_t *tcp, struct sockaddr *name, int *length)
{
    return handle_peername(tcp, name, length);
}

int ringpoll_uv_tcp_close_reset(ringpoll_uv_tcp_t *tcp, ringpoll_uv_close_cb on_close)
{
    struct handle *handle = open_handle_of(tcp);
    struct linger linger = {.l_onoff = 1};
    if (!handle || handle->output == OUTPUT_ENDING)
        return UV_EINVAL;
    if (handle->fd >= 0 && setsockopt(handle->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger) < 0)
        return -errno;
    ringpoll_uv_close((ringpoll_uv_handle_t *)tcp, on_close);
    return 0;
}

/* ---------------------------------------------------------------------- pipes */

int ringpoll_uv_pipe_init(uv_loop_t *loop, ringpoll_uv_pipe_t *pipe, int ipc)
{
    return ipc ? UV_ENOTSUP : handle_new(loop, pipe, TYPE_PIPE);
}

int ringpoll_uv_pipe_open(ringpoll_uv_pipe_t *pipe, uv_file fd)
{
    struct handle *handle = open_handle_of(pipe);
    if (!handle || handle->state != HANDLE_FRESH)
        return handle ? UV_EBUSY : UV_EINVAL;
    if (handle_has_fd(handle->loop, fd))
        return UV_EEXIST;
    int mode = make_nonblocking(fd), family = 0;
    if (mode < 0)
        return mode;
    socklen_t length = sizeof family;
    uint32_t kind = RINGPOLL_FD_OTHER;
    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &length) == 0)
        kind = family == AF_UNIX ? RINGPOLL_FD_UNIX : RINGPOLL_FD_TCP;
    struct sockaddr_storage peer;
    length = sizeof peer;
    if (kind == RINGPOLL_FD_UNIX && getpeername(fd, (struct sockaddr *)&peer, &length) < 0) {
        handle_take_fd(handle, fd, kind); /* to be listened with, or connected */
        handle_step(handle, HANDLE_OPEN);
        return 0;
    }
    handle_take_fd(handle, fd, kind | (kind == RINGPOLL_FD_OTHER ? 0u : RINGPOLL_FD_CONNECTED));
    connected(handle);
    handle->readable = mode != O_WRONLY;
    handle->writable = mode != O_RDONLY;
    return 0;
}

static int address_of(const char *name, struct sockaddr_un *ret_address)
{
    size_t length = strlen(name);
    if (length == 0)
        return UV_EINVAL;
    memset(ret_address, 0, sizeof *ret_address);
    if (length >= sizeof ret_address->sun_path)
        length = sizeof ret_address->sun_path - 1; /* cut, as libuv does */
    memcpy(ret_address->sun_path, name, length);
    ret_address->sun_family = AF_UNIX;
    return 0;
}

int ringpoll_uv_pipe_bind(ringpoll_uv_pipe_t *pipe, const char *name)
{
    struct handle *handle = open_handle_of(pipe);
    struct sockaddr_un address;
    if (!handle || handle->state != HANDLE_FRESH || !name)
        return UV_EINVAL;
    int error = address_of(name, &address);
    char *path = error == 0 ? strdup(address.sun_path) : NULL;
    if (!path)
        return error < 0 ? error : UV_ENOMEM;
    error = need_socket(handle, AF_UNIX);
    if (error == 0 && bind(handle->fd, (struct sockaddr *)&address, sizeof address) < 0)
        error = errno == ENOENT ? UV_EACCES : -errno;
    if (error < 0)
        free(path);
    else
        handle->path = path;
    return error;
}

void ringpoll_uv_pipe_connect(ringpoll_uv_connect_t *req, ringpoll_uv_pipe_t *pipe, const char *name,
                              ringpoll_uv_connect_cb on_connect)
{
    struct handle *handle = handle_of(pipe);
    if (handle->state != HANDLE_FRESH && handle->state != HANDLE_OPEN) {
        refuse_connect(handle, req, on_connect,
                       handle->state == HANDLE_CONNECTING  ? UV_EALREADY
                       : handle->state != HANDLE_CONNECTED ? UV_EINVAL
                       : handle->is_socket                 ? UV_EISCONN
                                                           : UV_ENOTSOCK);
        return;
    }
    struct sockaddr_un address;
    int error = address_of(name, &address);
    if (error == 0)
        error = need_socket(handle, AF_UNIX);
    if (error == 0) {
        int result;
        do
            result = connect(handle->fd, (struct sockaddr *)&address, sizeof address);
        while (result < 0 && errno == EINTR);
        error = result < 0 && errno != EINPROGRESS ? -errno : 0;
    }
    begin_connect(handle, req, (ringpoll_uv_stream_t *)pipe, on_connect);
    handle_step(handle, HANDLE_CONNECTING);
    if (error < 0)
        handle->readable = handle->writable = false;
    handle->delayed_error = error;
    handle->connect_is_over = true; /* there is no third way for AF_UNIX */
    handle_defer(handle);
    handle_changed(handle);
}

static int path_of(const void *user, char *name, size_t *size, int (*ask)(const void *, struct sockaddr *, int *))
{
    struct sockaddr_un address = {0};
    int length = sizeof address;
    int error = ask(user, (struct sockaddr *)&address, &length);
    if (error < 0) {
        *size = 0;
        return error;
    }
    size_t header = offsetof(struct sockaddr_un, sun_path);
    size_t bytes = (size_t)length > header ? (size_t)length - header : 0;
    if (bytes > 0 && address.sun_path[0] != 0)
        bytes = strnlen(address.sun_path, bytes);
    if (bytes >= *size) {
        *size = bytes + 1;
        return UV_ENOBUFS;
    }
    memcpy(name, address.sun_path, bytes);
    name[bytes] = 0;
    *size = bytes;
    return 0;
}

int ringpoll_uv_pipe_getsockname(const ringpoll_uv_pipe_t *pipe, char *name, size_t *size)
{
    return path_of(pipe, name, size, handle_sockname);
}

int ringpoll_uv_pipe_getpeername(const ringpoll_uv_pipe_t *pipe, char *name, size_t *size)
{
    return path_of(pipe, name, size, handle_peername);
}
