/* SPDX-License-Identifier: MIT
 *
 * Batched sends; the states and the promises stand in send.h.
 */
#include "send.h"

#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "fdtab.h"
#include "set.h"
#include "stream.h"

#define ARENA_BYTES (256u * 1024u)
/* A write of this size pays its own call: copying it costs as much (measured with
 * `ringpoll bench completion --sizes=…`). */
#define DIRECT_BYTES 2048u
/* One that stands behind a small one would pay two: the most that is queued of one. */
#define QUEUED_BYTES 16384u
/* How long the end of a ring, and a fork, wait for a peer that does not read. */
uint64_t rp_send_last_wait_ns = UINT64_C(5000000000);

static const uint8_t edges[RP_SEND_STATES] = {
    [RP_SEND_IDLE] = 1u << RP_SEND_BATCHED | 1u << RP_SEND_BLOCKED | 1u << RP_SEND_LENDING,
    [RP_SEND_BATCHED] = 1u << RP_SEND_SENDING | 1u << RP_SEND_IDLE | 1u << RP_SEND_BLOCKED,
    [RP_SEND_SENDING] = 1u << RP_SEND_IDLE | 1u << RP_SEND_BLOCKED,
    [RP_SEND_BLOCKED] = 1u << RP_SEND_BATCHED | 1u << RP_SEND_IDLE,
    [RP_SEND_LENDING] = 1u << RP_SEND_IDLE | 1u << RP_SEND_BLOCKED,
};

static inline void take_out(struct rp_stream **list, struct rp_stream *stream)
{
    while (*list && *list != stream)
        list = &(*list)->send.next;
    if (*list)
        *list = stream->send.next;
    stream->send.next = NULL;
}

/* IDLE → BATCHED. */
static inline void batch(struct rp_set *set, struct rp_stream *stream)
{
    if (!set->batched)
        rp_self.batched++;
    stream->send.next = set->batched;
    set->batched = stream;
    stream->send.state = RP_SEND_BATCHED;
}

/* Makes every edge but the three that are hot, where a stream is the first of its list or
 * in none, and keeps the two lists. */
static bool step(struct rp_set *set, struct rp_stream *stream, enum rp_send_state to)
{
    struct rp_send *send = &stream->send;
    if (!(edges[send->state] >> to & 1u))
        return false;
    if (send->state == RP_SEND_BATCHED) {
        take_out(&set->batched, stream);
        if (!set->batched && rp_set_is_mine(set) && rp_self.batched > 0)
            rp_self.batched--;
    } else if (send->state == RP_SEND_SENDING) {
        take_out(&set->sending, stream);
    }
    if (to == RP_SEND_BATCHED) {
        batch(set, stream);
    } else if (to == RP_SEND_SENDING) {
        send->next = set->sending;
        set->sending = stream;
    }
    send->state = (uint8_t)to;
    if (to != RP_SEND_BATCHED && to != RP_SEND_SENDING && !set->batched && !set->sending)
        set->arena.used = 0;
    return true;
}

/* Streams that have a rest. */
static uint32_t rests;

/* ------------------------------------------------------------------- bytes */

/* Moves `length` bytes behind the rest; false: no memory. */
static bool add_to_rest(struct rp_set *set, struct rp_send *send, const unsigned char *bytes, uint32_t length)
{
    if (!send->rest) {
        /* A slice can be longer than the limit by what was already in the rest: never. */
        send->rest = rp_sys_pages(set->send_limit);
        send->rest_at = 0;
        if (!send->rest)
            return false;
        __atomic_fetch_add(&rests, 1, __ATOMIC_RELAXED);
    }
    if (send->rest_at + send->rest_length + length > set->send_limit) {
        memmove(send->rest, send->rest + send->rest_at, send->rest_length);
        send->rest_at = 0;
    }
    memcpy(send->rest + send->rest_at + send->rest_length, bytes, length);
    send->rest_length += length;
    return true;
}

void rp_send_break_connection(struct rp_stream *stream, int error)
{
    struct sockaddr nowhere = {.sa_family = AF_UNSPEC};
    if (!stream->error)
        stream->error = error;
    if (stream->is_unix || rp_sys_call(SYS_connect, stream->fd, (long)&nowhere, sizeof nowhere, 0, 0, 0) < 0)
        rp_sys_call(SYS_shutdown, stream->fd, SHUT_RDWR, 0, 0, 0, 0);
}

static void free_rest(struct rp_set *set, struct rp_send *send)
{
    if (send->rest) {
        rp_sys_pages_free(send->rest, set->send_limit);
        __atomic_fetch_sub(&rests, 1, __ATOMIC_RELAXED);
    }
    send->rest = NULL;
    send->rest_at = send->rest_length = 0;
}

void rp_send_after_fork(struct rp_send *send)
{
    if (send->rest)
        rests--;
    memset(send, 0, sizeof *send);
}

void rp_send_arena_free(struct rp_set *set)
{
    if (set->arena.bytes)
        rp_sys_pages_free(set->arena.bytes, set->arena.size);
    memset(&set->arena, 0, sizeof set->arena);
}

/* The first `sent` bytes of what waits have gone. */
static void consume(struct rp_set *set, struct rp_send *send, uint32_t sent)
{
    if (send->rest_length) {
        uint32_t piece = sent < send->rest_length ? sent : send->rest_length;
        send->rest_at += piece;
        send->rest_length -= piece;
        sent -= piece;
        if (send->rest_length == 0)
            free_rest(set, send);
    }
    send->at += sent;
    send->length -= sent;
}

/* --------------------------------------------------------------- the batch */

static void wait_for_room(struct rp_set *set, struct rp_stream *stream);

/* There is room again. */
static void tell_writable(struct rp_set *set, struct rp_stream *stream)
{
    struct rp_watch *watch = stream->watch;
    if (!stream->send.was_blocked)
        return;
    stream->send.was_blocked = false;
    if (watch)
        watch->spent &= ~(uint32_t)(EPOLLOUT | EPOLLWRNORM);
    if (!watch || watch->deleted || watch->disabled || !(watch->events & EPOLLOUT))
        return;
    watch->mask = (watch->ready == RP_READY_IDLE ? 0 : watch->mask) | EPOLLOUT | EPOLLWRNORM;
    rp_watch_to_ready(set, watch, RP_READY_CANDIDATE);
}

int rp_send_submit(struct rp_set *set)
{
    struct rp_ring *ring = &set->ring;
    const uint8_t skip = ring->features & RINGPOLL_FEATURE_CQE_SKIP ? RP_SQE_CQE_SKIP_SUCCESS : 0;
    struct rp_stream *stream;
    if (!set->batched)
        return 0;
    while ((stream = set->batched) != NULL) {
        struct rp_send *send = &stream->send;
        const bool rest = send->rest_length > 0;
        const uint32_t length = rest ? send->rest_length : send->length;
        struct rp_sqe *sqe = rp_ring_get_sqe(ring);
        if (!sqe)
            return -EBUSY;
        struct rp_op *op = rp_op_new(&set->ops, RP_OP_SEND, stream);
        if (!op) {
            sqe->opcode = RP_IORING_OP_NOP;
            return -ENOMEM;
        }
        if (set->files.free_head && !stream->slot && stream->pays && rp_stream_is_armed(stream))
            stream->slot = rp_files_fill(&set->files, ring, stream->fd);
        sqe->opcode = RP_IORING_OP_SEND;
        sqe->flags = stream->slot ? skip | RP_SQE_FIXED_FILE : skip;
        sqe->fd = stream->slot ? stream->slot - 1 : stream->fd;
        sqe->addr = (uint64_t)(uintptr_t)(rest ? send->rest + send->rest_at : set->arena.bytes + send->at);
        sqe->len = length;
        sqe->op_flags = MSG_DONTWAIT | MSG_WAITALL | MSG_NOSIGNAL;
        sqe->user_data = rp_op_user_data(&set->ops, op);
        /* BATCHED → SENDING */
        set->batched = send->next;
        send->next = set->sending;
        set->sending = stream;
        send->state = RP_SEND_SENDING;
        send->op = op;
        send->sqe_at = ring->sqe_tail - 1;
        send->asked = length;
        set->stats.sends_batched++;
    }
    if (rp_set_is_mine(set) && rp_self.batched > 0)
        rp_self.batched--;
    return 0;
}

void rp_send_clear_slot(struct rp_set *set, struct rp_stream *stream)
{
    struct rp_send *send = &stream->send;
    if (!stream->slot)
        return;
    if (send->state == RP_SEND_SENDING && (int32_t)(send->sqe_at - set->ring.sqe_head) >= 0) {
        struct rp_sqe *sqe = &set->ring.sqes[send->sqe_at & set->ring.sq_mask];
        sqe->fd = stream->fd;
        sqe->flags &= (uint8_t)~RP_SQE_FIXED_FILE;
    }
    rp_files_clear(&set->files, &set->ring, stream->slot);
    stream->slot = 0;
}

/* What was asked for is out, or as much of it as the kernel took. */
static void sent(struct rp_set *set, struct rp_stream *stream, uint32_t bytes)
{
    struct rp_send *send = &stream->send;
    consume(set, send, bytes);
    if (rp_send_waiting(send) == 0) {
        send->length = 0;
        step(set, stream, RP_SEND_IDLE);
        tell_writable(set, stream);
        rp_stream_send_over(set, stream);
        return;
    }
    /* The arena is for one turn. */
    if (send->length > 0 && !add_to_rest(set, send, set->arena.bytes + send->at, send->length)) {
        rp_send_break_connection(stream, ENOMEM);
    }
    send->length = 0;
    send->was_blocked = true;
    step(set, stream, RP_SEND_BLOCKED);
    wait_for_room(set, stream);
}

void rp_send_settle(struct rp_set *set)
{
    uint32_t taken = set->ring.sqe_head;
    /* A completion that says "short" may be among those the kernel holds back. */
    if (__atomic_load_n(set->ring.sq_flags, __ATOMIC_RELAXED) & RP_SQ_CQ_OVERFLOW)
        return;
    struct rp_stream **at = &set->sending, *stream;
    while ((stream = *at) != NULL) {
        struct rp_send *send = &stream->send;
        if ((int32_t)(send->sqe_at - taken) >= 0) {
            at = &send->next;
            continue;
        }
        rp_op_end(&set->ops, send->op);
        send->op = NULL;
        /* The stream may be over with its last byte, where it is not ARMED. */
        if (!rp_stream_is_well(stream) || send->rest_length || send->was_blocked) {
            sent(set, stream, send->asked);
            continue;
        }
        /* SENDING → IDLE */
        *at = send->next;
        send->next = NULL;
        send->state = RP_SEND_IDLE;
        send->length = 0;
    }
    if (!set->batched && !set->sending)
        set->arena.used = 0;
}

/* Its completion finds nobody. False: no room in the SQ to cancel it. */
static bool orphan_poll(struct rp_set *set, struct rp_send *send)
{
    if (!rp_op_cancel(&set->ops, &set->ring, send->op, RP_OP_ORPHANED))
        return false;
    send->op = NULL;
    return true;
}

/* BLOCKED: a poll tells of room. RDHUP comes with each, asked for or not, and would
 * end a one-shot poll of a half-closed connection at once, for ever: such a one gets
 * a multishot poll, which tells of it once. */
static void wait_for_room(struct rp_set *set, struct rp_stream *stream)
{
    struct rp_send *send = &stream->send;
    if (send->op)
        return;
    struct rp_sqe *sqe = rp_ring_get_sqe(&set->ring);
    struct rp_op *op = sqe ? rp_op_new(&set->ops, RP_OP_SEND, stream) : NULL;
    if (!op) {
        if (sqe)
            sqe->opcode = RP_IORING_OP_NOP;
        set->unpolled = true; /* the next turn tries again */
        return;
    }
    sqe->opcode = RP_IORING_OP_POLL_ADD;
    sqe->fd = stream->fd;
    sqe->poll32_events = rp_poll_word(EPOLLOUT);
    sqe->len = send->half_closed ? RP_POLL_ADD_MULTI : 0;
    sqe->user_data = rp_op_user_data(&set->ops, op);
    send->op = op;
    send->sqe_at = set->ring.sqe_tail - 1;
}

void rp_send_expect_room(struct rp_set *set, struct rp_stream *stream)
{
    stream->send.was_blocked = true;
    if (stream->send.state != RP_SEND_IDLE)
        return;
    step(set, stream, RP_SEND_BLOCKED);
    wait_for_room(set, stream);
}

/* There is room, or an error: the rest goes out, or the program is told. */
static void unblock(struct rp_set *set, struct rp_stream *stream)
{
    struct rp_send *send = &stream->send;
    if (send->op && !orphan_poll(set, send)) {
        send->has_room = set->unpolled = true;
        return;
    }
    send->has_room = false;
    if (send->rest_length > 0) {
        step(set, stream, RP_SEND_BATCHED);
        return;
    }
    step(set, stream, RP_SEND_IDLE);
    tell_writable(set, stream);
    rp_stream_send_over(set, stream);
}

void rp_send_poll_all(struct rp_set *set)
{
    set->unpolled = false;
    for (struct rp_stream *stream = set->streams, *next; stream; stream = next) {
        next = stream->next;
        if (stream->send.state != RP_SEND_BLOCKED)
            continue;
        if (stream->send.has_room)
            unblock(set, stream);
        else
            wait_for_room(set, stream);
    }
}

void rp_send_completed(struct rp_set *set, struct rp_op *op, int result, uint32_t flags)
{
    struct rp_stream *stream = op->owner;
    struct rp_send *send = &stream->send;
    if (!(flags & RP_CQE_F_MORE)) {
        rp_op_end(&set->ops, op);
        send->op = NULL;
    }
    if (send->state == RP_SEND_BLOCKED) { /* the poll */
        bool only_half_closed = result >= 0 && !(result & (EPOLLOUT | EPOLLERR | EPOLLHUP));
        send->half_closed = send->half_closed || only_half_closed;
        if (result != -ECANCELED && !only_half_closed)
            unblock(set, stream);
        else if (!send->op)
            wait_for_room(set, stream);
        return;
    }
    if (send->state != RP_SEND_SENDING)
        return;
    if (result >= 0 || result == -EAGAIN || result == -EINTR || result == -ENOBUFS || result == -ENOMEM ||
        result == -ECANCELED) {
        sent(set, stream, result > 0 ? (uint32_t)result : 0);
        return;
    }
    /* Broken: what waited is lost, as it is in the kernel's own buffer. */
    consume(set, send, rp_send_waiting(send));
    if (result != -EPIPE && !stream->error)
        stream->error = -result;
    step(set, stream, RP_SEND_IDLE);
    send->was_blocked = true;
    tell_writable(set, stream);
    rp_stream_send_over(set, stream);
}

int rp_send_flush(struct rp_set *set)
{
    for (int turn = 0; turn < 64 && (set->batched || set->sending); turn++) {
        int error = rp_set_enter_and_reap(set);
        if (error < 0)
            return error;
    }
    return 0;
}

/* By plain calls, whichever thread: nothing of this stream is in an enter. */
static void push(struct rp_set *set, struct rp_stream *stream)
{
    struct rp_send *send = &stream->send;
    while (rp_send_waiting(send) > 0) {
        const unsigned char *bytes = send->rest_length ? send->rest + send->rest_at : set->arena.bytes + send->at;
        uint32_t length = send->rest_length ? send->rest_length : send->length;
        long result = rp_sys_call(SYS_sendto, stream->fd, (long)bytes, length, MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0);
        if (result == -EINTR)
            continue;
        if (result == -EAGAIN)
            return;
        if (result < 0) {
            if (result != -EPIPE && !stream->error)
                stream->error = (int)-result;
            result = (long)rp_send_waiting(send);
        }
        consume(set, send, (uint32_t)result);
    }
    if (send->state == RP_SEND_BATCHED)
        step(set, stream, RP_SEND_IDLE);
}

bool rp_send_drain(struct rp_set *set, struct rp_stream *stream, bool wait)
{
    struct rp_send *send = &stream->send;
    uint64_t until = wait ? rp_sys_now_ns() + rp_send_last_wait_ns : 0;
    if (send->state == RP_SEND_SENDING) {
        if (rp_set_is_mine(set) && !set->owner_inside)
            (void)rp_send_flush(set);
        else
            rp_set_ask_owner(set);
    }
    if (send->state == RP_SEND_SENDING)
        return false;
    push(set, stream);
    while (wait && rp_send_waiting(send) > 0 && rp_sys_now_ns() < until) {
        struct pollfd look = {.fd = stream->fd, .events = POLLOUT};
        struct timespec a_while = {0, rp_send_last_wait_ns < 100000000 ? (long)rp_send_last_wait_ns : 100000000};
        rp_sys_poll(&look, 1, &a_while);
        push(set, stream);
    }
    return rp_send_waiting(send) == 0;
}

void rp_send_end(struct rp_set *set, struct rp_stream *stream)
{
    if (!rp_send_drain(set, stream, true))
        rp_send_break_connection(stream, ETIMEDOUT);
    rp_send_forget(set, stream);
}

void rp_send_forget(struct rp_set *set, struct rp_stream *stream)
{
    struct rp_send *send = &stream->send;
    if (send->op) {
        /* The poll; its completion finds nobody. */
        if (set->ring.fd >= 0 && rp_set_is_mine(set)) {
            if (send->op->state == RP_OP_QUEUED && (int32_t)(send->sqe_at - set->ring.sqe_head) >= 0) {
                rp_ring_take_back(&set->ring, send->sqe_at);
                rp_op_step(&set->ops, send->op, RP_OP_FREE);
            } else {
                while (send->op && !orphan_poll(set, send))
                    if (rp_set_enter_and_reap(set) < 0)
                        break;
            }
        }
        /* Not ours to cancel: it holds the file until it fires, or the ring ends. */
        if (send->op && send->op->state != RP_OP_FREE && send->op->owner == stream)
            rp_op_step(&set->ops, send->op, RP_OP_ORPHANED);
        send->op = NULL;
    }
    free_rest(set, send);
    send->length = 0;
    if (send->state == RP_SEND_SENDING || send->state == RP_SEND_BATCHED || send->state == RP_SEND_BLOCKED)
        step(set, stream, RP_SEND_IDLE);
}

/* ------------------------------------------------------- what programs call */

static uint32_t total(const struct iovec *iov, size_t count)
{
    size_t sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += iov[i].iov_len < QUEUED_BYTES ? iov[i].iov_len : QUEUED_BYTES;
    return sum < QUEUED_BYTES ? (uint32_t)sum : QUEUED_BYTES;
}

static void gather(unsigned char *to, const struct iovec *iov, uint32_t length)
{
    for (size_t i = 0; length > 0; i++) {
        uint32_t piece = iov[i].iov_len < length ? (uint32_t)iov[i].iov_len : length;
        memcpy(to, iov[i].iov_base, piece);
        to += piece;
        length -= piece;
    }
}

/* The call itself, now; nothing of this stream waits. */
static long send_now(struct rp_set *set, struct rp_stream *stream, const struct iovec *iov, size_t count, size_t asked,
                     int flags)
{
    struct msghdr message = {.msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = count};
    long result = count == 1 ? rp_sys_call(SYS_sendto, stream->fd, (long)iov->iov_base, (long)iov->iov_len,
                                           flags | MSG_DONTWAIT, 0, 0)
                             : rp_sys_call(SYS_sendmsg, stream->fd, (long)&message, flags | MSG_DONTWAIT, 0, 0, 0);
    if (result == -EAGAIN || (result >= 0 && (size_t)result < asked)) {
        stream->send.was_blocked = true;
        if (stream->send.state == RP_SEND_IDLE)
            step(set, stream, RP_SEND_BLOCKED);
        wait_for_room(set, stream);
    }
    return result;
}

/* Behind what the stream has in the arena. False: no room there. */
static bool add_to_arena(struct rp_set *set, struct rp_stream *stream, const struct iovec *iov, uint32_t length)
{
    struct rp_arena *arena = &set->arena;
    struct rp_send *send = &stream->send;
    if (!arena->bytes) {
        arena->bytes = rp_sys_pages(ARENA_BYTES);
        if (!arena->bytes)
            return false;
        arena->size = ARENA_BYTES;
    }
    bool extends = send->length > 0 && send->at + send->length == arena->used;
    uint32_t moves = extends ? 0 : send->length;
    if (arena->used + moves + length > arena->size)
        return false;
    if (!extends) {
        memcpy(arena->bytes + arena->used, arena->bytes + send->at, moves);
        send->at = arena->used;
        arena->used += moves;
    }
    gather(arena->bytes + arena->used, iov, length);
    arena->used += length;
    send->length += length;
    return true;
}

/* A flush did not take what the stream has in the arena: the kernel refused the enter, for
 * now or for good. */
static inline bool is_stuck(const struct rp_send *send)
{
    return send->state == RP_SEND_BATCHED || send->state == RP_SEND_SENDING;
}

/* No room: EPOLLOUT tells when there is. */
static long refuse(struct rp_send *send)
{
    send->was_blocked = true;
    return -EAGAIN;
}

static long send_locked(struct rp_set *set, struct rp_stream *stream, const struct iovec *iov, size_t count, int flags)
{
    struct rp_send *send = &stream->send;
    struct rp_fd *entry = rp_fd_peek(stream->fd);
    bool nonblocking = (flags & MSG_DONTWAIT) || (rp_fd_flags(entry) & RINGPOLL_FD_NONBLOCK);
    uint32_t length = total(iov, count);

    if (stream->error) {
        long result = -stream->error;
        stream->error = 0;
        return result;
    }
    if (length == 0)
        return RINGPOLL_PASS;
    /* The owner, outside: everything else drains and calls the kernel. */
    if (!rp_set_is_mine(set) || set->owner_inside || set->ring.fd < 0 || !nonblocking ||
        (flags & ~(MSG_DONTWAIT | MSG_NOSIGNAL)) || !rp_stream_batches(stream) ||
        (rp_fd_flags(entry) & RP_FD_SHUT)) {
        if (!rp_send_is_idle(send) && !rp_send_drain(set, stream, !nonblocking))
            return -EAGAIN;
        return RINGPOLL_PASS;
    }
    if (send->state == RP_SEND_SENDING) /* kept by an SQ or a CQ that was full */
        (void)rp_send_flush(set);
    if (send->rest_length > 0 || send->state == RP_SEND_SENDING) {
        uint32_t room = send->state == RP_SEND_SENDING ? 0 : set->send_limit - send->rest_length;
        if (length > room)
            length = room;
        if (length == 0)
            return refuse(send);
        if (send->rest_at + send->rest_length + length > set->send_limit) {
            memmove(send->rest, send->rest + send->rest_at, send->rest_length);
            send->rest_at = 0;
        }
        gather(send->rest + send->rest_at + send->rest_length, iov, length);
        send->rest_length += length;
        rp_stream_saved(set, stream, 0);
        return length;
    }
    if (send->state == RP_SEND_BLOCKED || length >= (send->state == RP_SEND_IDLE ? DIRECT_BYTES : QUEUED_BYTES) ||
        length > set->send_limit || (send->state == RP_SEND_IDLE && set->turn_events <= 1)) {
        if (set->batched)
            (void)rp_send_flush(set);
        if (is_stuck(send))
            return refuse(send);
        if (send->rest_length > 0 || !rp_stream_batches(stream) || stream->error)
            return send_locked(set, stream, iov, count, flags);
        size_t asked = 0;
        for (size_t i = 0; i < count; i++)
            asked += iov[i].iov_len;
        return send_now(set, stream, iov, count, asked, flags);
    }
    if (send->length + length > set->send_limit || !add_to_arena(set, stream, iov, length)) {
        (void)rp_send_flush(set);
        if (is_stuck(send))
            return refuse(send);
        if (send->rest_length > 0 || send->state != RP_SEND_IDLE || !rp_stream_batches(stream) || stream->error)
            return send_locked(set, stream, iov, count, flags);
        if (!add_to_arena(set, stream, iov, length))
            return send_now(set, stream, iov, count, length, flags);
    }
    if (send->state == RP_SEND_IDLE)
        step(set, stream, RP_SEND_BATCHED);
    rp_stream_saved(set, stream, length);
    return length;
}

/* What makes up a busy server's life: the owner's write to a socket that has nothing
 * waiting. The first small one of a turn that had several events is batched; in a turn
 * of one event, and with nothing to be overtaken, the call is the program's own (which
 * ringpoll_fd_full() hears of where it is refused). UNUSUAL: nothing was done, and
 * send_locked() shall see to it. */
#define UNUSUAL INT64_MIN
static inline int64_t send_as_usual(struct rp_set *set, struct rp_stream *stream, uint32_t fd_flags,
                                    const void *buffer, size_t length, int flags)
{
    struct rp_send *send = &stream->send;
    struct rp_arena *arena = &set->arena;
    if (!rp_stream_is_well(stream) || send->state != RP_SEND_IDLE || set->owner_inside ||
        ((fd_flags | (flags & MSG_DONTWAIT ? RINGPOLL_FD_NONBLOCK : 0)) & (RINGPOLL_FD_NONBLOCK | RP_FD_SHUT)) !=
            RINGPOLL_FD_NONBLOCK)
        return UNUSUAL;
    if (set->turn_events <= 1)
        return set->batched ? UNUSUAL : RINGPOLL_PASS;
    if (length > arena->size - arena->used)
        return UNUSUAL;
    memcpy(arena->bytes + arena->used, buffer, length);
    send->at = arena->used;
    send->length = (uint32_t)length;
    arena->used += (uint32_t)length;
    batch(set, stream);
    rp_stream_saved(set, stream, (uint32_t)length);
    return (int64_t)length;
}

static inline int64_t send_quickly(const struct rp_fd *entry, struct rp_stream *stream, const void *buffer,
                                   size_t length, int flags)
{
    struct rp_set *set = __atomic_load_n(&stream->set, __ATOMIC_RELAXED);
    if (length - 1 >= DIRECT_BYTES - 1 || ((flags & ~(MSG_DONTWAIT | MSG_NOSIGNAL)) | rp_self.locks_held) != 0 ||
        RP_READ_ONCE(set->owner) != rp_self.id || /* 0 would have no ring, and the stream not be ARMED */
        !(set->flags & RINGPOLL_BATCH))
        return UNUSUAL;
    rp_set_lock(set);
    int64_t result = entry->stream == stream && stream->set == set
                         ? send_as_usual(set, stream, rp_fd_flags(entry), buffer, length, flags) : UNUSUAL;
    rp_set_unlock(set);
    return result;
}

static inline struct rp_stream *stream_of(int fd, struct rp_fd **ret_entry)
{
    *ret_entry = rp_fd_peek(fd);
    return *ret_entry ? __atomic_load_n(&(*ret_entry)->stream, __ATOMIC_ACQUIRE) : NULL;
}

/* What is not as usual. */
static __attribute__((noinline)) long send_at_length(struct rp_stream *stream, int fd, const struct iovec *iov,
                                                     int count, int flags)
{
    if (count <= 0 || rp_self.locks_held)
        return RINGPOLL_PASS;
    if (count == 1 && iov->iov_len == 0 && stream->is_unix) /* takes no error, as TCP's does */
        return RINGPOLL_PASS;
    if (!(__atomic_load_n(&stream->set, __ATOMIC_RELAXED)->flags & RINGPOLL_BATCH)) {
        int error = __atomic_load_n(&stream->error, __ATOMIC_RELAXED) ? ringpoll_try_error(fd) : 0;
        return error ? -error : RINGPOLL_PASS;
    }
    stream = rp_stream_lock(fd);
    if (!stream)
        return RINGPOLL_PASS;
    struct rp_set *set = stream->set;
    stream->held++;
    long result = send_locked(set, stream, iov, (size_t)count, flags);
    stream->held--;
    rp_stream_send_over(set, stream);
    rp_set_unlock(set);
    return result;
}

static __attribute__((noinline)) long send_one_at_length(struct rp_stream *stream, int fd, const void *buffer,
                                                         size_t length, int flags)
{
    struct iovec iov = {.iov_base = (void *)(uintptr_t)buffer, .iov_len = length};
    return send_at_length(stream, fd, &iov, 1, flags);
}

/* Apart from its callers, so that a write to a socket that is not adopted costs some
 * loads and nothing else. */
static __attribute__((noinline)) long send_by_stream(int fd, const void *buffer, size_t length, int flags,
                                                     const struct rp_fd *entry, struct rp_stream *stream)
{
    int64_t result = send_quickly(entry, stream, buffer, length, flags);
    return RP_LIKELY(result != UNUSUAL) ? (long)result : send_one_at_length(stream, fd, buffer, length, flags);
}

/* The kernel sends, and there is no error that it does not know of. */
static inline bool is_plain(const struct rp_stream *stream)
{
    return !stream || (!(__atomic_load_n(&stream->set, __ATOMIC_RELAXED)->flags & RINGPOLL_BATCH) &&
                       !RP_READ_ONCE(stream->error));
}

long ringpoll_try_sendv(int fd, const struct iovec *iov, int count, int flags)
{
    struct rp_fd *entry;
    struct rp_stream *stream = stream_of(fd, &entry);
    if (is_plain(stream))
        return RINGPOLL_PASS;
    return count == 1 ? send_by_stream(fd, iov->iov_base, iov->iov_len, flags, entry, stream)
                      : send_at_length(stream, fd, iov, count, flags);
}

long ringpoll_try_send(int fd, const void *buffer, size_t length, int flags)
{
    struct rp_fd *entry;
    struct rp_stream *stream = stream_of(fd, &entry);
    return is_plain(stream) ? RINGPOLL_PASS : send_by_stream(fd, buffer, length, flags, entry, stream);
}

/* ---------------------------------------------------------- zero-copy sends */

size_t rp_send_zc_least = 49152;
enum rp_send_zc_trial rp_send_zc_trial;

#define ZC_MOST_BYTES (1u << 30)
#define ZC_MOST_PIECES 1024
/* So many connections in a row that are copied, and the set does without for so many sends,
 * and for twice as many each time that it goes on so. */
#define ZC_COPIED_ROW 4u
#define ZC_GAP_FIRST 256u
#define ZC_GAP_MOST 65536u

static void zc_pause(struct rp_set *set)
{
    uint32_t gap = set->zc_gap ? set->zc_gap : ZC_GAP_FIRST;
    set->zc_pause = gap;
    set->zc_gap = gap < ZC_GAP_MOST ? gap * 2 : gap;
    set->zc_copied_row = 0;
}

void rp_send_zc_told(struct rp_set *set, int fd, bool copied)
{
    struct rp_fd *entry = rp_fd_peek(fd);
    bool asked = entry && (rp_fd_flags(entry) & RP_FD_ZC_ASKED);
    set->stats.sends_zc_copied += copied;
    if (rp_send_zc_trial == RP_SEND_ZC_EVER)
        copied = false;
    if (asked)
        rp_fd_set_flags(entry, copied ? RP_FD_ZC_COPIES : RP_FD_ZC_GOOD, copied ? RP_FD_ZC_GOOD | RP_FD_ZC_ASKED : RP_FD_ZC_ASKED);
    else if (copied && entry && (rp_fd_flags(entry) & RP_FD_ZC_GOOD)) /* its route is another now */
        rp_fd_set_flags(entry, RP_FD_ZC_COPIES, RP_FD_ZC_GOOD);
    if (!copied)
        set->zc_copied_row = set->zc_gap = 0;
    else if (++set->zc_copied_row >= ZC_COPIED_ROW)
        zc_pause(set);
}

/* Whether the peer is another machine, as far as addresses tell. */
static bool is_far(int fd)
{
    union {
        struct sockaddr any;
        struct sockaddr_in in;
        struct sockaddr_in6 in6;
    } peer, own;
    static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
    static const uint8_t loopback[16] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1};
    unsigned peer_length = sizeof peer, own_length = sizeof own;
    memset(&peer, 0, sizeof peer);
    memset(&own, 0, sizeof own);
    if (rp_sys_call(SYS_getpeername, fd, (long)&peer, (long)&peer_length, 0, 0, 0) < 0 ||
        rp_sys_call(SYS_getsockname, fd, (long)&own, (long)&own_length, 0, 0, 0) < 0 ||
        peer.any.sa_family != own.any.sa_family)
        return false;
    if (peer.any.sa_family == AF_INET) {
        const uint8_t *address = (const uint8_t *)&peer.in.sin_addr;
        return address[0] != 127 && memcmp(address, &own.in.sin_addr, 4) != 0;
    }
    if (peer.any.sa_family == AF_INET6) {
        const uint8_t *address = (const uint8_t *)&peer.in6.sin6_addr;
        bool is_mapped = memcmp(address, mapped, sizeof mapped) == 0;
        return memcmp(address, loopback, sizeof loopback) != 0 && !(is_mapped && address[12] == 127) &&
               memcmp(address, &own.in6.sin6_addr, sizeof loopback) != 0;
    }
    return false;
}

/* Looked at without a lock, by the owner. */
static bool may_lend(const struct rp_set *set, uint32_t fd_flags)
{
    return rp_set_is_mine(set) && rp_set_engine(set) == RINGPOLL_ENGINE_RING && set->tells &&
           (set->ring.features & RINGPOLL_FEATURE_SEND_ZC) && (fd_flags & RINGPOLL_FD_KIND) == RINGPOLL_FD_TCP &&
           (fd_flags & RINGPOLL_FD_CONNECTED) && !(fd_flags & (RP_FD_ZC_COPIES | RP_FD_ZC_ASKED | RP_FD_SHUT | RP_FD_SHARED)) &&
           set->zc_pause == 0;
}

/* Its connection is watched by this set, alone. */
static struct rp_set *set_of(const struct rp_fd *entry)
{
    struct rp_watch *watch = __atomic_load_n(&entry->watches, __ATOMIC_ACQUIRE);
    return watch ? __atomic_load_n(&watch->set, __ATOMIC_ACQUIRE) : NULL;
}

size_t ringpoll_zc_least(int fd)
{
    struct rp_fd *entry = rp_fd_peek(fd);
    struct rp_set *set = entry ? set_of(entry) : NULL;
    if (!set)
        return SIZE_MAX;
    uint32_t flags = rp_fd_flags(entry);
    if (!may_lend(set, flags)) {
        if (set->zc_pause > 0 && rp_set_is_mine(set))
            set->zc_pause--;
        return SIZE_MAX;
    }
    if (!(flags & RP_FD_FAR) && rp_send_zc_trial == RP_SEND_ZC_AS_DUE) {
        bool far = is_far(fd);
        rp_fd_set_flags(entry, far ? RP_FD_FAR : RP_FD_ZC_COPIES, 0);
        if (!far)
            return SIZE_MAX;
    }
    return rp_send_zc_least;
}

/* One SQE in an enter of its own; *answer is known after this, or the kernel never had it:
 * -EAGAIN, or it is not known what was taken: 0. */
static int lend(struct rp_set *set, int fd, const struct iovec *iov, int count, const struct msghdr *message,
                struct rp_loan *loan, const struct rp_loan_answer *answer)
{
    struct rp_ring *ring = &set->ring;
    struct rp_sqe *sqe = rp_ring_get_sqe(ring);
    if (!sqe && rp_set_enter_and_reap(set) == 0)
        sqe = rp_ring_get_sqe(ring);
    struct rp_op *op = sqe ? rp_op_new(&set->ops, RP_OP_LOAN, loan) : NULL;
    if (!op) {
        if (sqe)
            sqe->opcode = RP_IORING_OP_NOP;
        return -EAGAIN;
    }
    sqe->opcode = count == 1 ? RP_IORING_OP_SEND_ZC : RP_IORING_OP_SENDMSG_ZC;
    sqe->fd = fd;
    sqe->ioprio = RP_SEND_ZC_REPORT_USAGE;
    sqe->addr = (uint64_t)(uintptr_t)(count == 1 ? iov->iov_base : (const void *)message);
    sqe->len = count == 1 ? (uint32_t)iov->iov_len : 1;
    sqe->op_flags = MSG_DONTWAIT | MSG_WAITALL | MSG_NOSIGNAL;
    sqe->user_data = rp_op_user_data(&set->ops, op);
    uint32_t at = ring->sqe_tail - 1;
    set->loans++;
    for (int turn = 0; turn < 64 && !answer->known; turn++)
        if (rp_set_enter_and_reap(set) < 0)
            break;
    if (!answer->known && (int32_t)(at - ring->sqe_head) >= 0) {
        rp_ring_take_back(ring, at);
        rp_op_end(&set->ops, op);
        set->loans--;
        return -EAGAIN;
    }
    return 0;
}

/* The kernel has no room, or had none for all. */
static void lent_short(struct rp_set *set, struct rp_watch *watch, struct rp_stream *stream)
{
    if (stream && (set->flags & RINGPOLL_BATCH) && stream->send.state == RP_SEND_LENDING) {
        stream->send.was_blocked = true;
        step(set, stream, RP_SEND_BLOCKED);
        wait_for_room(set, stream);
    } else if (watch) { /* its poll tells of room, unless that is there already */
        watch->spent &= ~(uint32_t)(EPOLLOUT | EPOLLWRNORM);
        watch->recheck = true;
        rp_set_dirty(set, watch);
    }
}

static long send_zc_locked(struct rp_set *set, struct rp_fd *entry, int fd, const struct iovec *iov, int count,
                           size_t length, void (*release)(void *), void *argument)
{
    struct rp_watch *watch = rp_fd_watch_of(entry, set);
    if (!watch || watch->deleted || watch->home != RP_HOME_RING || set->owner_inside || set->ring.fd < 0 ||
        rp_fd_set_at(entry, 1))
        return RINGPOLL_PASS;
    if (set->batched || set->sending) {
        (void)rp_send_flush(set);
        if (set->batched || set->sending)
            return RINGPOLL_PASS;
    }
    struct rp_stream *stream = watch->stream;
    if (stream && (stream->error || stream->closed || stream->lingers || !rp_send_is_idle(&stream->send)))
        return RINGPOLL_PASS;
    struct rp_loan_answer answer = {false, 0};
    struct rp_loan *loan = rp_loan_new(fd, release, argument, &answer);
    if (!loan)
        return RINGPOLL_PASS;
    const struct msghdr message = {.msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = (size_t)count};
    if (stream) {
        stream->held++;
        step(set, stream, RP_SEND_LENDING);
    }
    bool asks = !(rp_fd_flags(entry) & RP_FD_ZC_GOOD); /* the word may come in the same enter */
    rp_fd_set_flags(entry, asks ? RP_FD_ZC_ASKED : 0, 0);
    int error = lend(set, fd, iov, count, &message, loan, &answer);
    long result = answer.known ? answer.result : (long)length;
    if (error < 0) {
        rp_loan_drop(loan);
        result = RINGPOLL_PASS;
    } else if (!answer.known) {
        /* Nobody knows what was taken: what is written next must not follow it. */
        struct rp_stream unnamed = {.fd = fd};
        loan->answer = NULL;
        rp_send_break_connection(stream ? stream : &unnamed, EIO);
    } else if (result > 0) {
        set->stats.sends_zc++;
    } else if (result == -EINVAL || result == -EOPNOTSUPP) { /* this kernel, or this socket */
        rp_fd_set_flags(entry, RP_FD_ZC_COPIES, 0);
        result = RINGPOLL_PASS;
    } else if (result == -ENOMEM || result == -ENOBUFS) { /* RLIMIT_MEMLOCK, say */
        zc_pause(set);
        result = RINGPOLL_PASS;
    } else if (result == -EINTR || result == -ECANCELED || result == -EPIPE) { /* which a plain call tells as it should */
        result = RINGPOLL_PASS;
    } else if (result == 0) {
        result = -EAGAIN;
    }
    if (result <= 0)
        rp_fd_set_flags(entry, 0, asks ? RP_FD_ZC_ASKED : 0);
    if (result == -EAGAIN || (result > 0 && (size_t)result < length))
        lent_short(set, rp_fd_watch_of(entry, set), stream);
    if (stream) {
        if (stream->send.state == RP_SEND_LENDING)
            step(set, stream, RP_SEND_IDLE);
        stream->held--;
        rp_stream_send_over(set, stream);
    }
    return result;
}

long ringpoll_try_sendv_zc(int fd, const struct iovec *iov, int count, int flags, void (*release)(void *argument),
                           void *argument)
{
    struct rp_fd *entry = rp_fd_peek(fd);
    struct rp_set *set = entry && !rp_self.locks_held ? set_of(entry) : NULL;
    size_t length = 0;
    if (!set || count <= 0 || count > ZC_MOST_PIECES || (flags & ~(MSG_DONTWAIT | MSG_NOSIGNAL)) ||
        !((flags & MSG_DONTWAIT) || (rp_fd_flags(entry) & RINGPOLL_FD_NONBLOCK)))
        return RINGPOLL_PASS;
    rp_process_check();
    for (int i = 0; i < count; i++) {
        if (iov[i].iov_len > ZC_MOST_BYTES - length)
            return RINGPOLL_PASS;
        length += iov[i].iov_len;
    }
    if (length < rp_send_zc_least || length < ringpoll_zc_least(fd))
        return RINGPOLL_PASS;
    rp_set_lock(set);
    long result = set_of(entry) == set && may_lend(set, rp_fd_flags(entry))
                      ? send_zc_locked(set, entry, fd, iov, count, length, release, argument) : RINGPOLL_PASS;
    rp_set_unlock(set);
    return result;
}

static __attribute__((noinline)) void flush_sets(void)
{
    uint32_t refused = 0; /* by the kernel, for now */
    rp_lock(&rp_sets_lock);
    for (struct rp_set *set = rp_sets; set; set = set->next_set) {
        if (!__atomic_load_n(&set->batched, __ATOMIC_RELAXED) || !rp_set_is_mine(set))
            continue;
        rp_lock(&set->lock);
        if (set->in_use && set->ring.fd >= 0 && !set->owner_inside) {
            (void)rp_send_flush(set);
            refused += set->batched != NULL;
        }
        rp_unlock(&set->lock);
    }
    rp_unlock(&rp_sets_lock);
    rp_self.batched = refused;
}

int ringpoll_flush(void)
{
    if (rp_self.batched && !rp_self.locks_held)
        flush_sets();
    return (int)__atomic_load_n(&rests, __ATOMIC_RELAXED);
}

static int flush_fd(int fd, bool wait)
{
    struct rp_fd *entry = rp_fd_peek(fd);
    if (!entry || !__atomic_load_n(&entry->stream, __ATOMIC_RELAXED) || rp_self.locks_held)
        return 0;
    struct rp_stream *stream = rp_stream_lock(fd);
    if (!stream)
        return 0;
    struct rp_set *set = stream->set;
    stream->held++;
    bool done = rp_send_waiting(&stream->send) == 0 || rp_send_drain(set, stream, wait);
    stream->held--;
    rp_stream_send_over(set, stream);
    rp_set_unlock(set);
    return done ? 0 : -EAGAIN;
}

int ringpoll_fd_flush(int fd)
{
    return flush_fd(fd, !ringpoll_fd_is_nonblock(fd));
}

/* The kernel has something to say beside bytes that are left: it says all, then. */
static bool kernel_tells(const struct rp_watch *watch)
{
    struct pollfd look = {.fd = watch->fd, .events = (short)(rp_watch_interest(watch) & 0xffffu)};
    static const struct timespec now = {0, 0};
    return rp_sys_poll(&look, 1, &now) == 1;
}

/* Edges of bytes that are left, in whatever set, are made anew. */
static void tell_left_again(struct rp_fd *entry)
{
    for (unsigned at = 0; !rp_self.locks_held; at++) {
        struct rp_set *set = rp_fd_set_at(entry, at);
        if (!set)
            return;
        rp_set_lock(set);
        struct rp_watch *watch = set->left ? rp_fd_watch_of(entry, set) : NULL;
        if (watch && watch->left && rp_watch_is_edge(watch) && !kernel_tells(watch))
            rp_left_renew(set, watch);
        rp_set_unlock(set);
    }
}

/* The call that comes makes the kernel tell whoever watches the socket, once more; a
 * receive does not hear of that. */
static void tell_again(int fd)
{
    struct rp_fd *entry = rp_fd_peek(fd);
    if (!entry)
        return;
    if (__atomic_load_n(&entry->stream, __ATOMIC_RELAXED))
        tell_left_again(entry);
    struct rp_stream *stream = rp_self.locks_held ? NULL : rp_stream_lock(fd);
    if (!stream)
        return;
    struct rp_watch *watch = stream->watch;
    if (watch && rp_watch_is_edge(watch)) {
        watch->recheck = true;
        rp_set_dirty(stream->set, watch);
    }
    rp_set_unlock(stream->set);
}

void ringpoll_fd_shutdown(int fd, int how)
{
    if (how == SHUT_RD) { /* TCP: bytes may follow this end, which a receive takes for the last */
        ringpoll_fd_release(fd, 0);
    } else {
        struct rp_fd *entry = rp_fd_peek(fd);
        (void)flush_fd(fd, true);
        if (entry && rp_fd_flags(entry))
            rp_fd_set_flags(entry, RP_FD_SHUT, 0);
    }
    tell_again(fd);
}

void ringpoll_fd_full(int fd)
{
    struct rp_fd *entry = rp_fd_peek(fd);
    if (!entry || rp_self.locks_held)
        return;
    struct rp_watch *watch = RP_READ_ONCE(entry->watches);
    struct rp_set *of = watch ? __atomic_load_n(&watch->set, __ATOMIC_ACQUIRE) : NULL;
    if (of && rp_set_is_mine(of) && !RP_READ_ONCE(watch->next_of_fd)) /* OUT is news when it comes again */
        watch->spent &= ~(uint32_t)(EPOLLOUT | EPOLLWRNORM);
    if (!__atomic_load_n(&entry->stream, __ATOMIC_RELAXED))
        return;
    struct rp_stream *stream = rp_stream_lock(fd);
    if (!stream)
        return;
    struct rp_set *set = stream->set;
    if ((set->flags & RINGPOLL_BATCH) && rp_set_is_mine(set) && !set->owner_inside && set->ring.fd >= 0 &&
        stream->send.state == RP_SEND_IDLE)
        rp_send_expect_room(set, stream);
    rp_set_unlock(set);
}
