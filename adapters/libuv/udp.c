/* SPDX-License-Identifier: MIT
 *
 * Datagrams. The set tells when there are any (its kernel epoll does: a bound socket on a
 * ring would keep its port beyond a kill). They are received many at a time into memory of
 * the loop's, and handed on one by one: alloc_cb, a copy, recv_cb. What a program that stops in
 * the midst of that does not take, or has no memory for, waits in `kept`, and comes first when it starts again,
 * or in the next turn.
 *
 * Sends of a turn wait for our part of it (request.c) and go out many at a time, in order, or with a
 * close.
 */
#include "inside.h"
#include "tray.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#define SUGGESTED 65536u
#define TURN_BATCHES 2

struct send_request { /* is a ringpoll_uv_udp_send_t */
    struct request request;
    ringpoll_uv_udp_send_cb on_sent;
    socklen_t address_length;
    struct sockaddr_storage address;
};
_Static_assert(sizeof(struct send_request) <= sizeof(ringpoll_uv_udp_send_t), "a send request has room");

uint32_t udp_interest(const struct handle *handle)
{
    if (handle->state != HANDLE_OPEN)
        return 0;
    return (handle->reading != READING_NOT && !handle->kept ? EPOLLIN : 0u) | (handle->blocked ? EPOLLOUT : 0u);
}

bool udp_is_active(const struct handle *handle)
{
    return handle->state == HANDLE_OPEN && (handle->reading != READING_NOT || handle->waiting.first);
}

/* ------------------------------------------------------------------ receiving */

static void keep(struct handle *handle, const struct tray *tray, unsigned slot)
{
    struct letter *kept = tray_letter(tray, slot);
    if (!kept) /* as a full socket buffer does */
        return;
    struct letter **at = &handle->kept;
    while (*at)
        at = &(*at)->next;
    *at = kept;
}

/* False: the program had none, and was told. */
static bool ask_for_memory(struct handle *handle, uv_buf_t *ret_buf)
{
    *ret_buf = uv_buf_init(NULL, 0);
    handle->on_alloc(handle->user, SUGGESTED, ret_buf);
    if (ret_buf->base && ret_buf->len > 0)
        return true;
    handle->on_receive((ringpoll_uv_udp_t *)handle->user, UV_ENOBUFS, ret_buf, NULL, 0);
    return false;
}

static void tell_received(const struct handle *handle, const uv_buf_t *buf, size_t taken, bool cut,
                          const union peer *peer)
{
    handle->on_receive((ringpoll_uv_udp_t *)handle->user, (ssize_t)taken, buf, &peer->any, cut ? UV_UDP_PARTIAL : 0);
}

static bool hand_on_letter(struct handle *handle, const struct letter *letter)
{
    uv_buf_t buf;
    if (!ask_for_memory(handle, &buf))
        return false;
    size_t taken = letter->length < buf.len ? letter->length : buf.len;
    memcpy(buf.base, letter->bytes, taken);
    tell_received(handle, &buf, taken, letter->cut || taken < letter->length, &letter->peer);
    return true;
}

static bool hand_on(struct handle *handle, const struct tray *tray, unsigned slot)
{
    uv_buf_t buf;
    if (!ask_for_memory(handle, &buf))
        return false;
    size_t taken = tray_copy(tray, slot, buf.base, buf.len);
    tell_received(handle, &buf, taken, tray_is_cut(tray, slot) || taken < tray->messages[slot].msg_len, &tray->peers[slot]);
    return true;
}

static bool takes(const struct handle *handle)
{
    return handle->state == HANDLE_OPEN && handle->reading != READING_NOT;
}

static void hand_on_kept(struct handle *handle)
{
    while (handle->kept && takes(handle)) {
        struct letter *first = handle->kept;
        if (!hand_on_letter(handle, first)) {
            handle->starved = true;
            break;
        }
        handle->kept = first->next;
        free(first);
    }
    if (handle->kept && takes(handle))
        handle_defer(handle);
    if (handle->state == HANDLE_OPEN)
        handle_changed(handle);
}

static void tell_error(struct handle *handle, int error)
{
    uv_buf_t buf = uv_buf_init(NULL, 0);
    handle->on_alloc(handle->user, SUGGESTED, &buf);
    handle->on_receive((ringpoll_uv_udp_t *)handle->user, buf.base ? error : UV_ENOBUFS, &buf, NULL, 0);
}

static void receive(struct handle *handle)
{
    struct uv_state *state = handle->loop;
    if (!state->tray && !(state->tray = tray_new())) {
        tell_error(handle, UV_ENOMEM);
        return;
    }
    struct tray *tray = state->tray;
    for (int turn = 0; turn < TURN_BATCHES && takes(handle) && !handle->kept; turn++) {
        int count;
        do
            count = recvmmsg(handle->fd, tray_offer(tray), TRAY_SLOTS, MSG_DONTWAIT, NULL);
        while (count < 0 && errno == EINTR);
        if (count < 0) {
            if (errno != EAGAIN)
                tell_error(handle, -errno);
            return;
        }
        tray_took(tray, (unsigned)count);
        for (; tray->begin < tray->end; tray->begin++) {
            unsigned slot = tray->begin;
            if (tray->messages[slot].msg_hdr.msg_namelen == 0) /* of AF_UNIX, from one that has no name */
                tray->peers[slot].any.sa_family = AF_UNSPEC;
            bool taken = takes(handle) && !handle->kept && hand_on(handle, tray, slot);
            if (!taken && handle->state != HANDLE_CLOSING)
                keep(handle, tray, slot);
        }
        if (takes(handle) && handle->kept) {
            handle->starved = true;
            handle_defer(handle);
        }
        if (count < (int)TRAY_SLOTS)
            return;
    }
}

/* -------------------------------------------------------------------- sending */

static void finish_first(struct handle *handle, int error)
{
    request_finish_first(handle, error);
    handle->waiting_count--;
}

static void send_waiting(struct handle *handle)
{
    handle->blocked = false;
    while (handle->waiting.first) {
        struct mmsghdr messages[TRAY_SLOTS];
        unsigned count = 0;
        for (struct request *request = handle->waiting.first; request && count < TRAY_SLOTS; request = request->next) {
            struct send_request *send = (struct send_request *)request;
            messages[count++].msg_hdr = (struct msghdr){
                .msg_name = send->address_length ? &send->address : NULL,
                .msg_namelen = send->address_length,
                .msg_iov = (struct iovec *)request->bufs,
                .msg_iovlen = request->count,
            };
        }
        int sent;
        do
            sent = sendmmsg(handle->fd, messages, count, MSG_NOSIGNAL | MSG_DONTWAIT);
        while (sent < 0 && errno == EINTR);
        if (sent < 0 && (errno == EAGAIN || errno == ENOBUFS)) {
            handle->blocked = true;
            break;
        }
        if (sent < 0)
            finish_first(handle, -errno);
        for (int i = 0; i < sent; i++)
            finish_first(handle, 0);
    }
}

static void call_back(struct request *request)
{
    struct send_request *send = (struct send_request *)request;
    if (send->on_sent)
        send->on_sent((ringpoll_uv_udp_send_t *)request, request->error);
}

/* --------------------------------------------------------------- from outside */

void udp_event(struct handle *handle, uint32_t events)
{
    if (events & (EPOLLIN | EPOLLERR | EPOLLHUP))
        receive(handle);
    if (handle->state == HANDLE_OPEN && (events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) && handle->waiting.first)
        handle_defer(handle);
    if (handle->state == HANDLE_OPEN)
        handle_changed(handle);
}

void udp_due(struct handle *handle)
{
    send_waiting(handle);
    handle_changed(handle);
    requests_tell(handle, call_back);
    if (!takes(handle) || !handle->kept)
        return;
    if (handle->starved) { /* there was no memory a moment ago */
        handle->starved = false;
        handle_defer(handle);
    } else {
        hand_on_kept(handle);
    }
}

void udp_failed(struct handle *handle, int error)
{
    if (handle->blocked)
        while (handle->waiting.first)
            finish_first(handle, error);
    handle->blocked = false;
    if (takes(handle)) {
        handle->reading = READING_NOT;
        handle_changed(handle);
        tell_error(handle, error);
    }
}

void udp_closing(struct handle *handle)
{
    handle->reading = READING_NOT;
    if (handle->waiting.first)
        send_waiting(handle);
}

void udp_closed(struct handle *handle)
{
    while (handle->waiting.first)
        finish_first(handle, UV_ECANCELED);
    requests_tell(handle, call_back);
    while (handle->kept) {
        struct letter *first = handle->kept;
        handle->kept = first->next;
        free(first);
    }
}

/* --------------------------------------------------------------------- calls */

int ringpoll_uv_udp_init(uv_loop_t *loop, ringpoll_uv_udp_t *udp)
{
    return handle_new(loop, udp, TYPE_UDP);
}

static void take_socket(struct handle *handle, int fd)
{
    handle_take_fd(handle, fd, RINGPOLL_FD_OTHER);
    handle_step(handle, HANDLE_OPEN);
}

static int need_socket(struct handle *handle, int family)
{
    if (handle->fd >= 0)
        return 0;
    int fd = socket(family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    take_socket(handle, fd);
    return 0;
}

static socklen_t length_of(const struct sockaddr *address)
{
    return address->sa_family == AF_INET ? sizeof(struct sockaddr_in)
         : address->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6)
         : address->sa_family == AF_UNIX ? sizeof(struct sockaddr_un) : 0;
}

int ringpoll_uv_udp_open(ringpoll_uv_udp_t *udp, uv_os_sock_t fd)
{
    struct handle *handle = open_handle_of(udp);
    if (!handle || handle->state != HANDLE_FRESH)
        return handle ? UV_EBUSY : UV_EINVAL;
    if (handle_has_fd(handle->loop, fd))
        return UV_EEXIST;
    int flags = fcntl(fd, F_GETFL), type = 0;
    socklen_t length = sizeof type;
    if (flags < 0 || getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) < 0 ||
        (!(flags & O_NONBLOCK) && fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0))
        return -errno;
    if (type != SOCK_DGRAM)
        return UV_EINVAL;
    take_socket(handle, fd);
    struct sockaddr_storage peer;
    length = sizeof peer;
    handle->udp_connected = getpeername(fd, (struct sockaddr *)&peer, &length) == 0;
    return 0;
}

int ringpoll_uv_udp_bind(ringpoll_uv_udp_t *udp, const struct sockaddr *address, unsigned flags)
{
    struct handle *handle = open_handle_of(udp);
    socklen_t length = address ? length_of(address) : 0;
    int on = 1;
    if (!handle || length == 0 || (flags & ~(unsigned)(UV_UDP_IPV6ONLY | UV_UDP_REUSEADDR)) ||
        ((flags & UV_UDP_IPV6ONLY) && address->sa_family != AF_INET6))
        return UV_EINVAL;
    int error = need_socket(handle, address->sa_family);
    if (error < 0)
        return error;
    if (((flags & UV_UDP_REUSEADDR) && setsockopt(handle->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0) ||
        ((flags & UV_UDP_IPV6ONLY) && setsockopt(handle->fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on) < 0))
        return -errno;
    if (bind(handle->fd, address, length) < 0)
        return errno == EAFNOSUPPORT ? UV_EINVAL : -errno;
    return 0;
}

/* As libuv: to any address, before the first use. */
static int need_bound(struct handle *handle, int family)
{
    if (handle->fd >= 0)
        return 0;
    struct sockaddr_storage any = {.ss_family = (sa_family_t)family};
    if (family != AF_INET && family != AF_INET6)
        return need_socket(handle, family);
    return ringpoll_uv_udp_bind((ringpoll_uv_udp_t *)handle->user, (struct sockaddr *)&any, 0);
}

/* What was sent before goes where it was meant to go. */
static void send_before_change(struct handle *handle)
{
    if (handle->waiting.first && !handle->blocked) {
        send_waiting(handle);
        handle_defer(handle);
        handle_changed(handle);
    }
}

int ringpoll_uv_udp_connect(ringpoll_uv_udp_t *udp, const struct sockaddr *address)
{
    struct handle *handle = open_handle_of(udp);
    if (!handle)
        return UV_EINVAL;
    if (!address) {
        struct sockaddr none = {.sa_family = AF_UNSPEC};
        if (!handle->udp_connected)
            return UV_ENOTCONN;
        send_before_change(handle);
        if (connect(handle->fd, &none, sizeof none) < 0 && errno != EAFNOSUPPORT)
            return -errno;
        handle->udp_connected = false;
        return 0;
    }
    if (handle->udp_connected)
        return UV_EISCONN;
    socklen_t length = length_of(address);
    int error = length == 0 ? UV_EINVAL : need_bound(handle, address->sa_family);
    if (error < 0)
        return error;
    send_before_change(handle);
    int result;
    do
        result = connect(handle->fd, address, length);
    while (result < 0 && errno == EINTR);
    if (result < 0)
        return -errno;
    handle->udp_connected = true;
    return 0;
}

/* The address fits the handle's state: its length, or a UV_E…. */
static int destination(const struct handle *handle, const struct sockaddr *address)
{
    if (handle->udp_connected)
        return address ? UV_EISCONN : 0;
    socklen_t length = address ? length_of(address) : 0;
    return !address ? UV_EDESTADDRREQ : length == 0 ? UV_EINVAL : (int)length;
}

int ringpoll_uv_udp_send(ringpoll_uv_udp_send_t *req, ringpoll_uv_udp_t *udp, const uv_buf_t *bufs, unsigned nbufs,
                         const struct sockaddr *address, ringpoll_uv_udp_send_cb on_sent)
{
    struct handle *handle = open_handle_of(udp);
    if (!handle || nbufs < 1)
        return UV_EINVAL;
    int length = destination(handle, address);
    int error = length < 0 ? length : address ? need_bound(handle, address->sa_family) : 0;
    if (error < 0)
        return error;
    struct send_request *send = (struct send_request *)req;
    if ((error = request_wait(handle, &send->request, bufs, nbufs)) < 0)
        return error;
    if (address)
        memcpy(&send->address, address, (size_t)length);
    send->address_length = (socklen_t)length;
    send->on_sent = on_sent;
    handle->waiting_count++;
    if (!handle->blocked)
        handle_defer(handle);
    handle_changed(handle);
    return 0;
}

int ringpoll_uv_udp_try_send(ringpoll_uv_udp_t *udp, const uv_buf_t *bufs, unsigned nbufs,
                             const struct sockaddr *address)
{
    struct handle *handle = open_handle_of(udp);
    if (!handle || nbufs < 1)
        return UV_EINVAL;
    int length = destination(handle, address);
    if (length < 0)
        return length;
    if (handle->waiting.first)
        return UV_EAGAIN;
    int error = address ? need_bound(handle, address->sa_family) : 0;
    if (error < 0)
        return error;
    struct msghdr message = {
        .msg_name = (void *)(uintptr_t)address,
        .msg_namelen = (socklen_t)length,
        .msg_iov = (struct iovec *)(uintptr_t)bufs,
        .msg_iovlen = nbufs,
    };
    ssize_t sent;
    do
        sent = sendmsg(handle->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (sent < 0 && errno == EINTR);
    if (sent < 0)
        return errno == ENOBUFS ? UV_EAGAIN : -errno;
    return (int)sent;
}

int ringpoll_uv_udp_recv_start(ringpoll_uv_udp_t *udp, ringpoll_uv_alloc_cb on_alloc,
                               ringpoll_uv_udp_recv_cb on_receive)
{
    struct handle *handle = open_handle_of(udp);
    if (!handle || !on_alloc || !on_receive)
        return UV_EINVAL;
    if (handle->reading != READING_NOT)
        return UV_EALREADY;
    int error = need_bound(handle, AF_INET);
    if (error < 0)
        return error;
    handle->on_alloc = on_alloc;
    handle->on_receive = on_receive;
    handle->reading = READING_COPIES;
    if (handle->kept)
        handle_defer(handle);
    handle_changed(handle);
    return 0;
}

int ringpoll_uv_udp_recv_stop(ringpoll_uv_udp_t *udp)
{
    struct handle *handle = open_handle_of(udp);
    if (handle && handle->reading != READING_NOT) {
        handle->reading = READING_NOT;
        handle_changed(handle);
    }
    return 0;
}

int ringpoll_uv_udp_getsockname(const ringpoll_uv_udp_t *udp, struct sockaddr *name, int *length)
{
    return handle_sockname(udp, name, length);
}

int ringpoll_uv_udp_getpeername(const ringpoll_uv_udp_t *udp, struct sockaddr *name, int *length)
{
    return handle_peername(udp, name, length);
}

size_t ringpoll_uv_udp_get_send_queue_size(const ringpoll_uv_udp_t *udp)
{
    const struct handle *handle = handle_of(udp);
    return handle ? handle->waiting_bytes : 0;
}

size_t ringpoll_uv_udp_get_send_queue_count(const ringpoll_uv_udp_t *udp)
{
    const struct handle *handle = handle_of(udp);
    return handle ? handle->waiting_count : 0;
}
