/* SPDX-License-Identifier: MIT
 *
 * Adopted sockets: what they are, their states and who owns what stand in
 * stream.h. First the receive, then what the program calls.
 */
#include "stream.h"

#include <errno.h>
#include <limits.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "fdtab.h"
#include "set.h"
#include "watch.h"

#define DEFAULT_BUFFERS 512u
#define CONTROL_AT ((uint32_t)sizeof(struct rp_recvmsg_out))
#define UNIX_PAYLOAD_AT (CONTROL_AT + RP_BUFFER_CONTROL)
/* ----------------------------------------------------------------- records */

static struct rp_lock pool_lock; /* leaf */
static struct rp_stream *pool;
#define POOL_GROWTH 64u /* whole pages */

static const uint8_t edges[RP_STREAM_STATES] = {
    [RP_STREAM_FREE] = 1u << RP_STREAM_PLAIN,
    [RP_STREAM_PLAIN] = 1u << RP_STREAM_ARMED | 1u << RP_STREAM_FREE,
    [RP_STREAM_ARMED] = 1u << RP_STREAM_PLAIN | 1u << RP_STREAM_LEAVING | 1u << RP_STREAM_CANCELING,
    [RP_STREAM_LEAVING] = 1u << RP_STREAM_PLAIN | 1u << RP_STREAM_CANCELING,
    [RP_STREAM_CANCELING] = 1u << RP_STREAM_PLAIN,
};

/* Makes every edge; false, and nothing done, where there is none. */
static bool step(struct rp_stream *stream, enum rp_stream_state to)
{
    struct rp_set *set = stream->set;
    if (!(edges[stream->state] >> to & 1u))
        return false;
    if (stream->state == RP_STREAM_LEAVING) {
        if (stream->prev_leaving)
            stream->prev_leaving->next_leaving = stream->next_leaving;
        else
            set->leaving = stream->next_leaving;
        if (stream->next_leaving)
            stream->next_leaving->prev_leaving = stream->prev_leaving;
        stream->next_leaving = stream->prev_leaving = NULL;
    }
    if (to == RP_STREAM_LEAVING) {
        stream->prev_leaving = NULL;
        stream->next_leaving = set->leaving;
        if (set->leaving)
            set->leaving->prev_leaving = stream;
        set->leaving = stream;
    }
    __atomic_store_n(&stream->state, (uint8_t)to, __ATOMIC_RELAXED);
    return true;
}

static struct rp_stream *stream_new(struct rp_set *set, struct rp_watch *watch, struct rp_fd *entry)
{
    rp_lock(&pool_lock);
    if (!pool) {
        struct rp_stream *made = rp_sys_pages(sizeof(struct rp_stream) * POOL_GROWTH);
        for (unsigned i = 0; made && i < POOL_GROWTH; i++) {
            made[i].next = pool;
            pool = &made[i];
        }
    }
    struct rp_stream *stream = pool;
    if (stream)
        pool = stream->next;
    rp_unlock(&pool_lock);
    if (!stream)
        return NULL;
    uint32_t serial = stream->serial + 1;
    memset(stream, 0, sizeof *stream);
    stream->serial = serial;
    stream->set = set;
    stream->watch = watch;
    stream->pool = set->buffers.pool;
    stream->fd = watch->fd;
    stream->is_unix = watch->kind == RINGPOLL_FD_UNIX;
    stream->gain = watch->adopt_gap <= 4 ? RP_STREAM_GAIN_FIRST : RP_STREAM_GAIN_FIRST / 8;
    step(stream, RP_STREAM_PLAIN);
    stream->next = set->streams;
    if (set->streams)
        set->streams->prev = stream;
    set->streams = stream;
    watch->stream = stream;
    set->stats.adopted++;
    set->stats.adoptions++;
    __atomic_store_n(&entry->stream, stream, __ATOMIC_RELEASE);
    return stream;
}

void rp_stream_passed(int fd)
{
    struct rp_fd *entry = rp_fd_peek(fd);
    struct rp_stream *stream = entry ? __atomic_load_n(&entry->stream, __ATOMIC_ACQUIRE) : NULL;
    if (stream)
        RP_WRITE_ONCE(stream->passed, true);
}

void rp_stream_duplicated(int from, int to)
{
    struct rp_fd *target = rp_fd_peek(to);
    if (rp_self.locks_held || !target) { /* not counted */
        rp_stream_passed(from);
        return;
    }
    struct rp_stream *stream = rp_stream_lock(from);
    if (!stream)
        return;
    if (stream->copies < UINT16_MAX) {
        stream->copies++;
        __atomic_store_n(&target->stream, stream, __ATOMIC_RELEASE);
    } else {
        stream->passed = true;
    }
    rp_set_unlock(stream->set);
}

/* A number that has it, or -1. */
static int find_name(const struct rp_stream *stream)
{
    for (unsigned page = 0; page < RP_FD_PAGES; page++) {
        struct rp_fd *entries = __atomic_load_n(&rp_fd_pages[page], __ATOMIC_ACQUIRE);
        for (unsigned i = 0; entries && i < RP_FD_PAGE; i++)
            if (__atomic_load_n(&entries[i].stream, __ATOMIC_RELAXED) == stream)
                return (int)(page * RP_FD_PAGE + i);
    }
    return -1;
}

static void forget_name(const struct rp_stream *stream, int fd)
{
    struct rp_fd *entry = rp_fd_peek(fd);
    if (entry && __atomic_load_n(&entry->stream, __ATOMIC_RELAXED) == stream)
        __atomic_store_n(&entry->stream, NULL, __ATOMIC_RELEASE);
}

bool rp_stream_name_closing(struct rp_stream *stream, int fd)
{
    if (stream->copies == 0)
        return false;
    forget_name(stream, fd);
    stream->copies--;
    if (stream->watch && stream->watch->fd == fd) {
        stream->watch->stream = NULL;
        stream->watch = NULL;
    }
    struct rp_fd *entry = rp_fd_peek(stream->fd);
    if (!entry || __atomic_load_n(&entry->stream, __ATOMIC_RELAXED) != stream)
        RP_WRITE_ONCE(stream->fd, find_name(stream));
    return true;
}

static void stream_free(struct rp_set *set, struct rp_stream *stream)
{
    forget_name(stream, stream->fd);
    for (; stream->copies > 0; stream->copies--)
        forget_name(stream, find_name(stream));
    if (stream->watch)
        stream->watch->stream = NULL;
    if (stream->prev)
        stream->prev->next = stream->next;
    else
        set->streams = stream->next;
    if (stream->next)
        stream->next->prev = stream->prev;
    if (stream->holds_pool)
        rp_pool_put(stream->pool);
    step(stream, RP_STREAM_FREE);
    set->stats.adopted--;
    rp_lock(&pool_lock);
    stream->next = pool;
    pool = stream;
    rp_unlock(&pool_lock);
}

/* A PLAIN stream with nothing left in it is over: its fd is as it was. True: it
 * was that. Not while somebody waits for its end: he looks at it yet. */
static bool end_if_empty(struct rp_set *set, struct rp_stream *stream)
{
    if (stream->state != RP_STREAM_PLAIN || stream->first || stream->head || stream->error || stream->held ||
        !rp_send_is_idle(&stream->send) || stream->send.op)
        return false;
    if (stream->lingers) {
        rp_fd_internal(stream->fd, false);
        rp_sys_close(stream->fd);
    }
    stream_free(set, stream);
    if (set->left_told)
        rp_left_settle(set);
    return true;
}

void rp_stream_send_over(struct rp_set *set, struct rp_stream *stream)
{
    if (stream->closed)
        stream->error = 0;
    end_if_empty(set, stream);
}

/* Of a stream that is held. */
static struct rp_set *lock_set_of(struct rp_stream *stream)
{
    for (;;) {
        struct rp_set *set = __atomic_load_n(&stream->set, __ATOMIC_RELAXED);
        rp_set_lock(set);
        if (__atomic_load_n(&stream->set, __ATOMIC_RELAXED) == set)
            return set;
        rp_set_unlock(set);
    }
}

struct rp_stream *rp_stream_lock(int fd)
{
    struct rp_fd *entry = rp_fd_peek(fd);
    struct rp_stream *stream = entry ? __atomic_load_n(&entry->stream, __ATOMIC_ACQUIRE) : NULL;
    while (stream) {
        struct rp_set *set = __atomic_load_n(&stream->set, __ATOMIC_RELAXED);
        rp_set_lock(set);
        struct rp_stream *now = __atomic_load_n(&entry->stream, __ATOMIC_ACQUIRE);
        if (now == stream && stream->set == set)
            return stream;
        rp_set_unlock(set);
        stream = now;
    }
    return NULL;
}

/* ------------------------------------------------------------------- queue */

static void append(struct rp_stream *stream, uint32_t number, uint32_t at, uint32_t length, uint32_t control)
{
    struct rp_segment *segment = &stream->pool->segments[number];
    segment->at = at;
    segment->length = length;
    segment->control = (uint16_t)control;
    segment->next = 0;
    if (stream->tail)
        stream->pool->segments[stream->tail - 1].next = (uint16_t)(number + 1);
    else
        stream->head = (uint16_t)(number + 1);
    stream->tail = (uint16_t)(number + 1);
    stream->bytes += length;
    stream->gain -= (int32_t)length;
}

/* The fds that came with a segment nobody will ask for: closed, as the kernel does. */
static void close_passed(const struct rp_stream *stream, uint32_t number, struct rp_segment *segment)
{
    const unsigned char *bytes = rp_pool_bytes(stream->pool, number) + CONTROL_AT;
    uint32_t left = segment->control;
    while (left >= sizeof(struct cmsghdr)) {
        struct cmsghdr header;
        memcpy(&header, bytes, sizeof header);
        if (header.cmsg_len < sizeof header || header.cmsg_len > left)
            break;
        if (header.cmsg_level == SOL_SOCKET && header.cmsg_type == SCM_RIGHTS)
            for (size_t at = CMSG_LEN(0); at + sizeof(int) <= header.cmsg_len; at += sizeof(int)) {
                int fd;
                memcpy(&fd, bytes + at, sizeof fd);
                rp_sys_close(fd);
            }
        size_t whole = CMSG_ALIGN(header.cmsg_len);
        if (whole >= left)
            break;
        bytes += whole;
        left -= (uint32_t)whole;
    }
    segment->control = 0;
}

/* The first segment leaves the queue. */
static uint32_t unlink_first(struct rp_stream *stream)
{
    uint32_t number = stream->head - 1u;
    struct rp_segment *segment = &stream->pool->segments[number];
    stream->head = segment->next;
    if (!stream->head)
        stream->tail = 0;
    stream->bytes -= segment->length;
    return number;
}

static void drop_first(struct rp_set *set, struct rp_stream *stream)
{
    uint32_t number = unlink_first(stream);
    struct rp_segment *segment = &stream->pool->segments[number];
    if (segment->control)
        close_passed(stream, number, segment);
    rp_buffers_recycle(&set->buffers, stream->pool, number);
}

/* ------------------------------------------------------------- the receive */

/* The next try comes later than this one did. */
static void put_off(struct rp_watch *watch)
{
    if (!watch)
        return;
    watch->adopt_gap = watch->adopt_gap < 64 ? (uint8_t)(watch->adopt_gap * 2 + 2) : 255;
    watch->adopt_in = watch->adopt_gap;
}

bool rp_stream_may_stay(const struct rp_watch *watch)
{
    struct rp_fd *entry = rp_fd_peek(watch->fd);
    return entry && !rp_fd_shared(entry) && !(rp_fd_flags(entry) & (RP_FD_LEAVE | RP_FD_PLAIN)) &&
           entry->watches == watch && !watch->next_of_fd &&
           !(watch->events & (EPOLLPRI | EPOLLRDBAND | EPOLLMSG | EPOLLWRNORM | EPOLLWRBAND));
}

/* Reads and sends alone, of a connection that nothing has come by yet, and that the caller
 * declared: no other reader is to be feared, and a program that speaks first, or waits for
 * room, has other wishes. */
static bool is_first(const struct rp_set *set, const struct rp_watch *watch)
{
    return (set->flags & RINGPOLL_DECLARED) && watch->fresh == RP_WATCH_FRESH && watch->kind == RINGPOLL_FD_TCP &&
           watch->adopt_in == RP_WATCH_ADOPT_IN && !watch->stream && !watch->op && watch->ready == RP_READY_IDLE &&
           !(watch->events & (EPOLLET | EPOLLONESHOT)) &&
           (watch->events & RP_POLL_BITS & ~(uint32_t)EPOLLRDHUP) == EPOLLIN;
}

bool rp_stream_wanted(const struct rp_set *set, const struct rp_watch *watch)
{
    if (!(set->flags & RINGPOLL_ADOPT) || (watch->adopt_in > 0 && !is_first(set, watch)) || watch->ended || watch->hung || set->alone_left || set->no_streams ||
        !set->tells ||
        (watch->kind != RINGPOLL_FD_TCP && watch->kind != RINGPOLL_FD_UNIX) || !(watch->events & EPOLLIN) ||
        !rp_stream_may_stay(watch))
        return false;
    struct rp_fd *entry = rp_fd_peek(watch->fd);
    if (!(rp_fd_flags(entry) & RINGPOLL_FD_CONNECTED) || entry->stream != watch->stream ||
        ((set->flags & RINGPOLL_DECLARED) && !(rp_fd_flags(entry) & RINGPOLL_FD_DECLARED)))
        return false;
    if (watch->kind == RINGPOLL_FD_UNIX && !(set->ring.features & RINGPOLL_FEATURE_RECV_END))
        return false;
    /* Not where the receive would tell again of bytes that were reported: but those
     * that the adoption itself has just come across were not. */
    if (rp_watch_is_edge(watch) && !watch->empty && !watch->recheck && !watch->stream &&
        (watch->ready == RP_READY_IDLE || watch->asked_in != set->wait_serial))
        return false;
    return !watch->stream || (watch->stream->state == RP_STREAM_PLAIN && !watch->stream->ended);
}

#define JUDGED_TURNS 256u
#define ALONE_TURNS 16384u
#define ALONE_TURNS_MOST 262144u

/* Adoption begins at an event that counts adopt_in down to nothing. What came there
 * while the set was alone found it closed, and has to come there again. */
static void try_again(struct rp_set *set)
{
    for (struct rp_watch *watch = set->watches; watch; watch = watch->next_of_set)
        if (watch->home == RP_HOME_RING && watch->adopt_in == 0 && !rp_stream_is_armed(watch->stream))
            watch->adopt_in = 1;
}

void rp_stream_judge(struct rp_set *set, int events)
{
    if (events <= 0)
        return;
    if (set->alone_left) {
        /* Company: 16 turns of several events within 256 end it. */
        set->alone_left--;
        set->judged_single += events > 1;
        if (++set->judged >= JUDGED_TURNS || set->judged_single >= 16) {
            if (set->judged_single >= 16)
                set->alone_left = set->alone_gap = 0;
            set->judged = set->judged_single = 0;
        }
        if (set->alone_left == 0)
            try_again(set);
        return;
    }
    set->judged_single += events == 1;
    if (++set->judged < JUDGED_TURNS)
        return;
    uint64_t saved = set->stats.calls_saved - set->judged_saved;
    if (set->judged_single >= JUDGED_TURNS / 16 * 15 && saved + set->judged_mods < JUDGED_TURNS / 8 * 9) {
        set->alone_gap = set->alone_gap ? set->alone_gap * 2 : ALONE_TURNS;
        if (set->alone_gap > ALONE_TURNS_MOST)
            set->alone_gap = ALONE_TURNS_MOST;
        set->alone_left = set->alone_gap;
        for (struct rp_stream *stream = set->streams; stream; stream = stream->next)
            rp_stream_leave(set, stream);
    } else {
        set->alone_gap = 0;
    }
    set->judged = set->judged_single = set->judged_mods = 0;
    set->judged_saved = set->stats.calls_saved;
}

/* What a set needs before its first adoption. */
static int prepare(struct rp_set *set)
{
    if (set->buffers.pool)
        return 0;
    uint64_t needed = RINGPOLL_FEATURE_BUF_RING | RINGPOLL_FEATURE_MULTISHOT_RECV;
    int error = (set->ring.features & needed) == needed ? 0 : -EOPNOTSUPP;
    if (error == 0)
        error = rp_buffers_init(&set->buffers, &set->ring, set->buffer_count ? set->buffer_count : DEFAULT_BUFFERS);
    if (error < 0)
        set->no_streams = true;
    else if (set->flags & RINGPOLL_FIXED_FILES)
        (void)rp_files_init(&set->files, &set->ring, RP_FILES_COUNT);
    return error;
}

bool rp_stream_is_free(const struct rp_set *set, struct rp_watch *watch)
{
    const struct rp_stream *stream = watch->stream;
    if (!stream || !stream->head || stream->pool == set->buffers.pool)
        return true;
    put_off(watch);
    return false;
}

int rp_stream_arm(struct rp_set *set, struct rp_watch *watch)
{
    struct rp_stream *stream = watch->stream;
    if (rp_stream_is_armed(stream))
        return stream->state == RP_STREAM_ARMED ? 0 : -EAGAIN;
    int error = prepare(set);
    if (error < 0)
        return error;
    if (stream && stream->pool != set->buffers.pool) { /* see rp_stream_is_free() */
        if (stream->holds_pool)
            rp_pool_put(stream->pool);
        stream->holds_pool = false;
        stream->pool = set->buffers.pool;
    }
    bool first = watch->adopt_in > 0;
    struct rp_sqe *sqe = rp_ring_get_sqe(&set->ring);
    if (!sqe)
        return -EBUSY;
    sqe->opcode = RP_IORING_OP_NOP;
    if (!stream)
        stream = stream_new(set, watch, rp_fd_peek(watch->fd));
    struct rp_op *op = stream ? rp_op_new(&set->ops, RP_OP_RECV, stream) : NULL;
    if (!op) {
        sqe->user_data = 0;
        if (stream)
            end_if_empty(set, stream);
        return -ENOMEM;
    }
    if (stream->is_unix) {
        static const struct rp_sqe_msghdr { /* struct msghdr, by words */
            uint64_t name, namelen, iov, iovlen, control, controllen, flags;
        } header = {.controllen = RP_BUFFER_CONTROL};
        sqe->opcode = RP_IORING_OP_RECVMSG;
        sqe->addr = (uint64_t)(uintptr_t)&header;
        sqe->len = 1;
        sqe->op_flags = MSG_CMSG_CLOEXEC;
    } else {
        sqe->opcode = RP_IORING_OP_RECV;
    }
    sqe->fd = watch->fd;
    sqe->ioprio = first ? 0 : RP_RECV_MULTISHOT;
    sqe->flags = RP_SQE_BUFFER_SELECT;
    sqe->buf_group = RP_BUFFERS_GROUP;
    sqe->user_data = rp_op_user_data(&set->ops, op);
    stream->op = op;
    stream->first = first;
    stream->sqe_at = set->ring.sqe_tail - 1;
    step(stream, RP_STREAM_ARMED);
    return 0;
}

void rp_stream_turn_over(struct rp_set *set, struct rp_stream *stream)
{
    if (!stream->first || stream->state != RP_STREAM_PLAIN)
        return;
    stream->first = false;
    end_if_empty(set, stream);
}

static inline bool in_flight(const struct rp_set *set, const struct rp_stream *stream)
{
    return stream->op->state != RP_OP_QUEUED || (int32_t)(stream->sqe_at - set->ring.sqe_head) < 0;
}

/* The receive is over. */
static void receive_ended(struct rp_set *set, struct rp_stream *stream)
{
    stream->op = NULL;
    rp_send_clear_slot(set, stream);
    step(stream, RP_STREAM_PLAIN);
    struct rp_watch *watch = stream->watch;
    if (!watch)
        return;
    rp_set_dirty(set, watch); /* polls take over */
    /* An edge is told with what the poll finds now, not once more after it. */
    set->handed_back |= rp_watch_is_edge(watch) || (watch->ready == RP_READY_IDLE && !stream->first);
    /* With batched sends no poll told of OUT, and this one must not tell again. */
    if ((set->flags & RINGPOLL_BATCH) && rp_watch_is_edge(watch) && !watch->recheck && !watch->op &&
        stream->send.state != RP_SEND_BLOCKED)
        watch->spent |= EPOLLOUT | EPOLLWRNORM;
}

/* Something for the program came by the stream: the watch reports it. */
static void report(struct rp_set *set, struct rp_stream *stream, bool exact)
{
    struct rp_watch *watch = stream->watch;
    if (!watch || watch->deleted || watch->disabled)
        return;
    if (exact && !(watch->events & (EPOLLIN | EPOLLRDNORM))) /* bytes wake nobody else */
        return;
    if (watch->home == RP_HOME_KERNEL) { /* moved while the receive was yet to end: news for it */
        rp_left_note(set, watch);
        rp_left_renew(set, watch);
        return;
    }
    watch->quiet = watch->single = false;
    if (exact && (watch->events & EPOLLIN) &&
        (watch->events & RP_POLL_BITS & ~(uint32_t)(EPOLLIN | EPOLLRDNORM | EPOLLRDHUP)) == 0 &&
        (watch->ready == RP_READY_IDLE ||
         (watch->ready == RP_READY_CERTAIN && watch->certain_in == set->wait_serial))) {
        watch->mask = EPOLLIN | EPOLLRDNORM | (watch->ready == RP_READY_IDLE ? 0 : watch->mask);
        watch->certain_in = set->wait_serial;
        rp_watch_to_ready(set, watch, RP_READY_CERTAIN);
        return;
    }
    watch->mask = (watch->ready == RP_READY_IDLE ? 0 : watch->mask) | EPOLLIN | EPOLLRDNORM;
    rp_watch_to_ready(set, watch, RP_READY_CANDIDATE);
}

/* Puts what a completion brought into the queue. True: it was the end. */
static bool take_buffer(struct rp_set *set, struct rp_stream *stream, uint32_t number, uint32_t result)
{
    uint32_t at = 0, length = result, control = 0;
    if (stream->is_unix) {
        struct rp_recvmsg_out out;
        memcpy(&out, rp_pool_bytes(stream->pool, number), sizeof out);
        at = UNIX_PAYLOAD_AT;
        length = result > at ? result - at : 0;
        if (length > out.payloadlen)
            length = out.payloadlen;
        stream->gain -= (int32_t)rp_stream_worth(true); /* RECVMSG itself */
        control = out.controllen <= RP_BUFFER_CONTROL ? out.controllen : RP_BUFFER_CONTROL;
    }
    if (length == 0) {
        rp_buffers_recycle(&set->buffers, stream->pool, number);
        return true;
    }
    append(stream, number, at, length, control);
    return false;
}

static void note_ended(struct rp_stream *stream)
{
    stream->ended = true;
    if (stream->watch)
        stream->watch->ended = true;
}

/* What makes up a busy server's life: a receive has brought some bytes, the first in the
 * queue, for a watch that waits for nothing else, and goes on. What comes below would do
 * the same. False: it is not as simple as that, and nothing was done. */
static inline bool completed_as_usual(struct rp_set *set, struct rp_stream *stream, int result, uint32_t flags)
{
    const uint32_t usual = RP_CQE_F_MORE | RP_CQE_F_BUFFER;
    struct rp_watch *watch = stream->watch;
    if ((flags & usual) != usual || result <= 0 || !rp_stream_is_well(stream) || stream->head || !watch ||
        watch->unusual || watch->ready != RP_READY_IDLE || watch->home != RP_HOME_RING ||
        (watch->events & RP_POLL_BITS & ~(uint32_t)EPOLLRDHUP) != EPOLLIN)
        return false;
    uint32_t number = flags >> RP_CQE_BUFFER_SHIFT, at = 0, length = (uint32_t)result, cost = length;
    if (stream->is_unix) {
        const struct rp_recvmsg_out *out = (const void *)rp_pool_bytes(stream->pool, number);
        at = UNIX_PAYLOAD_AT;
        if (out->controllen != 0 || length <= at)
            return false;
        length = length - at < out->payloadlen ? length - at : out->payloadlen;
        cost = length + rp_stream_worth(true); /* RECVMSG itself */
    }
    if (length == 0 || length >= set->stream_bytes || stream->gain < (int32_t)cost)
        return false;
    rp_buffers_taken(&set->buffers);
    set->stats.received++;
    stream->pool->segments[number] = (struct rp_segment){.at = at, .length = length};
    stream->head = stream->tail = (uint16_t)(number + 1);
    stream->bytes = length;
    stream->gain -= (int32_t)cost;
    watch->quiet = false;
    watch->mask = EPOLLIN | EPOLLRDNORM;
    watch->certain_in = set->wait_serial;
    rp_ready_add(set, watch);
    RP_WRITE_ONCE(watch->ready, RP_READY_CERTAIN);
    return true;
}

static __attribute__((noinline)) void completed_at_length(struct rp_set *set, struct rp_op *op, int result,
                                                          uint32_t flags)
{
    struct rp_stream *stream = op->owner;
    bool final = !(flags & RP_CQE_F_MORE);
    bool came = false, end = result == 0;

    if (flags & RP_CQE_F_BUFFER) {
        rp_buffers_taken(&set->buffers);
        if (result >= 0 && !stream->closed) {
            end = take_buffer(set, stream, flags >> RP_CQE_BUFFER_SHIFT, (uint32_t)result);
            came = !end;
        } else {
            rp_buffers_recycle(&set->buffers, stream->pool, flags >> RP_CQE_BUFFER_SHIFT);
        }
    }
    if (final) {
        rp_op_step(&set->ops, op, RP_OP_FREE);
        stream->first = stream->first && came;
        if (stream->state == RP_STREAM_ARMED && !stream->first)
            set->stats.receives_ended++;
        receive_ended(set, stream);
        if (stream->first && stream->watch) { /* as a poll that told of bytes */
            stream->watch->fresh--;
            stream->watch->adopt_in--;
        }
    }
    if (came) {
        struct rp_watch *watch = stream->watch;
        set->stats.received++;
        report(set, stream, true);
        if (stream->state == RP_STREAM_ARMED &&
            (stream->bytes >= set->stream_bytes || stream->gain < 0 || !watch || watch->disabled ||
             !(watch->events & EPOLLIN))) {
            if (watch && stream->pays)
                watch->adopt_gap = 1;
            put_off(watch);
            step(stream, RP_STREAM_LEAVING);
        }
        return;
    }
    if (!final)
        return;
    if (end) {
        note_ended(stream);
        report(set, stream, false);
        /* The poll that takes over looks at the file, and finds what was just said. */
        if (stream->watch && rp_watch_is_edge(stream->watch))
            stream->watch->spent |= EPOLLIN | EPOLLRDNORM | EPOLLRDHUP;
    } else if (result == -ENOBUFS) {
        set->stats.starved++;
        if (!rp_buffers_starved(&set->buffers))
            put_off(stream->watch);
        /* Its bytes are in the kernel, and were not told of. Edge-triggered, what is
         * armed next tells, and must be the only one. */
        if (stream->watch && !rp_watch_is_edge(stream->watch))
            report(set, stream, false);
    } else if (result == -EINVAL || result == -EOPNOTSUPP) {
        set->no_streams = true; /* this kernel's receives are not what we take them for */
    } else if (result < 0 && result != -ECANCELED && result != -EINTR && result != -EAGAIN && result != -ENOMEM) {
        stream->error = -result;
        note_ended(stream);
        report(set, stream, false);
    }
    end_if_empty(set, stream);
}

void rp_stream_completed(struct rp_set *set, struct rp_op *op, int result, uint32_t flags)
{
    if (RP_UNLIKELY(!completed_as_usual(set, op->owner, result, flags)))
        completed_at_length(set, op, result, flags);
}

/* Takes back what the kernel has not seen, or queues its cancel. */
static int cancel(struct rp_set *set, struct rp_stream *stream)
{
    if (!in_flight(set, stream)) {
        rp_ring_take_back(&set->ring, stream->sqe_at);
        rp_op_step(&set->ops, stream->op, RP_OP_FREE);
        receive_ended(set, stream);
        end_if_empty(set, stream);
        return 0;
    }
    if (!rp_op_cancel(&set->ops, &set->ring, stream->op, RP_OP_CANCELING))
        return -EBUSY;
    step(stream, RP_STREAM_CANCELING);
    return 0;
}

int rp_stream_flush_leaving(struct rp_set *set)
{
    while (set->leaving) {
        int error = cancel(set, set->leaving);
        if (error < 0)
            return error;
    }
    return 0;
}

bool rp_stream_any_leaves_silently(const struct rp_set *set)
{
    for (const struct rp_stream *stream = set->leaving; stream; stream = stream->next_leaving)
        if (!stream->head && stream->watch)
            return true;
    return false;
}

void rp_stream_leave(struct rp_set *set, struct rp_stream *stream)
{
    stream->first = false;
    if (stream->state == RP_STREAM_ARMED)
        step(stream, RP_STREAM_LEAVING);
    (void)set;
}

/* Not the owner, who is outside: what has come for this stream is taken out of the
 * CQ, which nobody moves meanwhile, and the rest of the CQ stays for the owner. */
static void steal_completions(struct rp_set *set, struct rp_stream *stream)
{
    struct rp_ring *ring = &set->ring;
    uint64_t wanted = rp_op_user_data(&set->ops, stream->op);
    uint32_t tail = __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE);
    for (uint32_t at = ring->cq_next; at != tail; at++) {
        struct rp_cqe *cqe = &ring->cqes[at & ring->cq_mask];
        if (cqe->user_data != wanted || !(cqe->flags & RP_CQE_F_BUFFER) || cqe->res < 0)
            continue;
        /* The last completion stays, as an end without a buffer: it ends the op. */
        rp_buffers_taken(&set->buffers);
        bool end = take_buffer(set, stream, cqe->flags >> RP_CQE_BUFFER_SHIFT, (uint32_t)cqe->res);
        cqe->flags &= RP_CQE_F_MORE;
        cqe->res = end ? 0 : -ECANCELED;
        if (cqe->flags & RP_CQE_F_MORE)
            cqe->user_data = 0;
    }
}

void rp_stream_end_receive(struct rp_set *set, struct rp_stream *stream)
{
    rp_stream_leave(set, stream);
    if (!rp_stream_is_armed(stream))
        return;
    stream->held++;
    if (rp_set_is_mine(set) && set->ring.fd >= 0) {
        for (int turn = 0; turn < 1024 && rp_stream_is_armed(stream); turn++)
            if (rp_set_enter_and_reap(set) < 0)
                break;
        if (set->owner_inside && (set->ready_count || set->hidden_ready || set->dirty))
            rp_set_wake_owner(set); /* we are its signal handler, and took its completions */
    } else {
        if (set->owner_inside)
            rp_set_ask_owner(set);
        if (rp_stream_is_armed(stream))
            steal_completions(set, stream);
    }
    stream->held--;
}

void rp_stream_end_all(struct rp_set *set)
{
    if (set->batched || set->sending)
        (void)rp_send_flush(set);
    for (struct rp_stream *stream = set->streams, *next; stream; stream = next) {
        next = stream->next;
        rp_stream_leave(set, stream);
        end_if_empty(set, stream);
    }
    for (int turn = 0; turn < 4096; turn++) {
        bool any = false;
        for (struct rp_stream *stream = set->streams; stream && !any; stream = stream->next)
            any = rp_stream_is_armed(stream);
        if (!any || rp_set_enter_and_reap(set) < 0)
            break;
    }
}

void rp_stream_abandon_receives(struct rp_set *set)
{
    for (struct rp_stream *stream = set->streams, *next; stream; stream = next) {
        next = stream->next;
        stream->first = false;
        if (rp_stream_is_armed(stream)) {
            stream->op = NULL;
            stream->slot = 0;
            step(stream, RP_STREAM_PLAIN);
            /* What it received may be among the completions that the kernel kept back. Then
             * nobody shall read what came behind it. */
            if (rp_ring_is_overflown(&set->ring)) {
                unsigned char bytes[1024];
                rp_send_break_connection(stream, EIO);
                while (rp_sys_call(SYS_recvfrom, stream->fd, (long)bytes, sizeof bytes, MSG_DONTWAIT, 0, 0) > 0)
                    ;
            }
            end_if_empty(set, stream);
        }
    }
}

void rp_stream_release_all(struct rp_set *set)
{
    for (struct rp_stream *stream = set->streams; stream; stream = stream->next)
        if (!rp_send_is_idle(&stream->send) && !stream->lingers)
            rp_send_drain(set, stream, true);
    if (rp_set_is_mine(set) || set->ring.fd < 0) {
        rp_stream_end_all(set);
        return;
    }
    for (struct rp_stream *stream = set->streams; stream; stream = stream->next)
        rp_stream_leave(set, stream);
    if (set->leaving && set->owner_inside)
        rp_set_ask_owner(set);
    for (struct rp_stream *stream = set->streams; stream; stream = stream->next)
        if (rp_stream_is_armed(stream))
            steal_completions(set, stream);
}

void rp_stream_unwatch(struct rp_set *set, struct rp_watch *watch)
{
    struct rp_stream *stream = watch->stream;
    if (!stream)
        return;
    watch->stream = NULL;
    stream->watch = NULL;
    rp_stream_leave(set, stream);
    end_if_empty(set, stream);
}

/* The program closes it, but the peer has not taken all that was written: as the
 * kernel does it, that goes on behind the program's back, on a number of our own,
 * and the end of the stream comes after it. */
static void linger(struct rp_stream *stream)
{
    int copy = rp_sys_fcntl(stream->fd, 1030 /* F_DUPFD_CLOEXEC */, 3);
    if (copy >= 0)
        copy = rp_sys_dup_high(copy);
    if (copy < 0)
        return;
    struct rp_fd *entry = rp_fd_peek(stream->fd);
    if (entry && entry->stream == stream)
        __atomic_store_n(&entry->stream, NULL, __ATOMIC_RELEASE);
    rp_fd_internal(copy, true);
    stream->fd = copy;
    stream->lingers = true;
}

bool rp_stream_closing(struct rp_set *set, struct rp_stream *stream)
{
    rp_stream_end_receive(set, stream);
    return rp_stream_orphan(set, stream);
}

bool rp_stream_orphan(struct rp_set *set, struct rp_stream *stream)
{
    struct rp_fd *entry = rp_fd_peek(stream->fd);
    bool unread = stream->head != 0;
    while (stream->head)
        drop_first(set, stream);
    if (!rp_send_is_idle(&stream->send)) {
        if (unread || stream->error)
            rp_send_forget(set, stream);
        else if (!rp_send_drain(set, stream, false))
            linger(stream);
    }
    stream->error = 0;
    stream->closed = true;
    if (entry && entry->stream == stream)
        __atomic_store_n(&entry->stream, NULL, __ATOMIC_RELEASE);
    if (stream->watch)
        stream->watch->stream = NULL;
    stream->watch = NULL;
    rp_stream_leave(set, stream);
    end_if_empty(set, stream);
    return unread;
}

void rp_stream_after_fork(struct rp_set *set)
{
    for (struct rp_stream *stream = set->streams, *next; stream; stream = next) {
        next = stream->next;
        stream->first = false;
        stream->op = NULL;
        stream->slot = 0;
        stream->held = 0;
        rp_send_after_fork(&stream->send); /* the parent sends it */
        if (stream->state != RP_STREAM_PLAIN)
            step(stream, RP_STREAM_PLAIN);
        end_if_empty(set, stream);
    }
    set->batched = set->sending = NULL;
    set->arena.used = 0;
    set->unpolled = false;
    rp_stream_keep_pool(set);
}

/* Streams whose set is gone: bytes that the program may still read. */
static struct rp_set limbo = {.identity = -1, .hidden = -1, .ring = {.fd = -1}};

void rp_stream_to_limbo(struct rp_set *set)
{
    if (!set->streams)
        return;
    rp_lock(&limbo.lock);
    for (struct rp_stream *stream = set->streams, *next; stream; stream = next) {
        next = stream->next;
        stream->first = false;
        stream->watch = NULL;
        stream->prev = NULL;
        stream->next = limbo.streams;
        if (limbo.streams)
            limbo.streams->prev = stream;
        limbo.streams = stream;
        limbo.stats.adopted++;
        __atomic_store_n(&stream->set, &limbo, __ATOMIC_RELAXED);
    }
    set->streams = NULL;
    set->stats.adopted = 0;
    rp_unlock(&limbo.lock);
}

void rp_stream_limbo_fork(enum rp_stream_fork when)
{
    if (when == RP_STREAM_FORK_PREPARE)
        rp_lock(&limbo.lock);
    else if (when == RP_STREAM_FORK_PARENT)
        rp_unlock(&limbo.lock);
    else
        limbo.lock.word = pool_lock.word = 0;
}

void rp_stream_keep_pool(struct rp_set *set)
{
    for (struct rp_stream *stream = set->streams; stream; stream = stream->next)
        if (stream->pool == set->buffers.pool && !stream->holds_pool) {
            rp_pool_get(stream->pool);
            stream->holds_pool = true;
        }
}

/* ------------------------------------------------------- what programs call */

static bool is_nonblocking(int fd, int flags)
{
    struct rp_fd *entry = rp_fd_peek(fd);
    return (flags & MSG_DONTWAIT) || (entry && (rp_fd_flags(entry) & RINGPOLL_FD_NONBLOCK));
}

/* The queue was read to its end: until more comes there is nothing to report,
 * where the watch asks for nothing but bytes. Owner. */
static inline void note_drained(struct rp_set *set, struct rp_stream *stream)
{
    struct rp_watch *watch = stream->watch;
    if (watch && rp_stream_batches(stream) && watch->ready != RP_READY_IDLE &&
        (watch->events & RP_POLL_BITS & ~(uint32_t)(EPOLLIN | EPOLLRDNORM | EPOLLRDHUP)) == 0) {
        rp_ready_remove(set, watch);
        RP_WRITE_ONCE(watch->ready, RP_READY_IDLE);
    }
}

struct place { /* where the bytes go */
    const struct iovec *iov;
    size_t count, index, at;
};

/* The next up to `length` bytes of room; NULL: full. */
static unsigned char *room(struct place *place, uint32_t length, uint32_t *ret_length)
{
    while (place->index < place->count && place->at == place->iov[place->index].iov_len) {
        place->index++;
        place->at = 0;
    }
    if (place->index == place->count)
        return NULL;
    size_t left = place->iov[place->index].iov_len - place->at;
    *ret_length = left < length ? (uint32_t)left : length;
    return (unsigned char *)place->iov[place->index].iov_base + place->at;
}

/* Copies from the queue, which is left as it was with MSG_PEEK; else what was read to
 * its end stays in it, empty, for drop_read(). A segment that came with fds begins
 * a read of its own, and the message that it came by ends one (af_unix does both);
 * such a message goes on in the next segment where it filled its own.
 * *ret_control: the segment whose control data go with these bytes, number + 1;
 * *ret_ends: more of them would not have been read by this call. */
static long copy_queue(struct rp_stream *stream, struct place *place, size_t wanted, int flags, uint32_t *ret_control,
                       bool *ret_ends)
{
    long copied = 0;
    uint32_t next = stream->head;
    bool peek = (flags & MSG_PEEK) != 0;
    *ret_control = 0;
    *ret_ends = false;
    if (wanted == 0 && next && stream->pool->segments[next - 1].control)
        *ret_control = next; /* they come even with no byte */
    while (next && (size_t)copied < wanted) {
        uint32_t number = next - 1;
        struct rp_segment *segment = &stream->pool->segments[number];
        if (segment->control) {
            if (copied > 0) {
                *ret_ends = true;
                break;
            }
            *ret_control = next;
        }
        uint32_t at = segment->at, length = segment->length, piece;
        while (length > 0 && (size_t)copied < wanted) {
            if (flags & MSG_TRUNC && !stream->is_unix) { /* TCP: thrown away */
                piece = wanted - (size_t)copied < length ? (uint32_t)(wanted - (size_t)copied) : length;
            } else {
                unsigned char *to = room(place, length, &piece);
                if (!to)
                    break;
                memcpy(to, rp_pool_bytes(stream->pool, number) + at, piece);
                place->at += piece;
            }
            at += piece;
            length -= piece;
            copied += piece;
        }
        next = segment->next;
        if (!peek) {
            stream->bytes -= segment->length - length;
            segment->at = at;
            segment->length = length;
        }
        if (length > 0)
            break;
        if (*ret_control && at < RP_BUFFER_STRIDE) {
            *ret_ends = true;
            break;
        }
    }
    return copied;
}

static void drop_read(struct rp_set *set, struct rp_stream *stream)
{
    while (stream->head && stream->pool->segments[stream->head - 1].length == 0)
        drop_first(set, stream);
}

/* Control data of the segment that was just read, as recvmsg gives them. The
 * fds are the program's now, or closed where it left no room; a peek gets
 * duplicates. */
static void give_control(struct rp_stream *stream, uint32_t number, struct msghdr *message, int flags)
{
    struct rp_segment *segment = &stream->pool->segments[number];
    const unsigned char *bytes = rp_pool_bytes(stream->pool, number) + CONTROL_AT;
    size_t have = 0, capacity = message && message->msg_control ? message->msg_controllen : 0;
    bool peek = (flags & MSG_PEEK) != 0;
    struct cmsghdr header;
    if (segment->control < sizeof header || (peek && !message))
        return;
    memcpy(&header, bytes, sizeof header);
    if (header.cmsg_level != SOL_SOCKET || header.cmsg_type != SCM_RIGHTS) {
        segment->control = 0;
        return;
    }
    size_t fds = (header.cmsg_len - CMSG_LEN(0)) / sizeof(int);
    size_t fit = capacity < CMSG_LEN(sizeof(int)) ? 0 : (capacity - CMSG_LEN(0)) / sizeof(int);
    if (fit > fds)
        fit = fds;
    unsigned char *to = capacity ? message->msg_control : NULL;
    for (size_t i = 0; i < fds; i++) {
        int fd;
        memcpy(&fd, bytes + CMSG_LEN(0) + i * sizeof fd, sizeof fd);
        if (i >= fit) {
            if (!peek)
                rp_sys_close(fd);
            continue;
        }
        if (peek) {
            fd = rp_sys_fcntl(fd, flags & MSG_CMSG_CLOEXEC ? 1030 /* F_DUPFD_CLOEXEC */ : 0 /* F_DUPFD */, 0);
            if (fd < 0) { /* none left */
                fit = i;
                continue;
            }
        } else if (!(flags & MSG_CMSG_CLOEXEC)) { /* it came with the flag */
            rp_sys_fcntl(fd, 2 /* F_SETFD */, 0);
        }
        memcpy(to + CMSG_LEN(0) + i * sizeof fd, &fd, sizeof fd);
    }
    if (fit) {
        header.cmsg_len = CMSG_LEN(fit * sizeof(int));
        memcpy(to, &header, sizeof header);
        have = CMSG_SPACE(fit * sizeof(int)) < capacity ? CMSG_SPACE(fit * sizeof(int)) : capacity;
    }
    if (message) {
        message->msg_controllen = have;
        if (fit < fds)
            message->msg_flags |= MSG_CTRUNC;
    }
    if (!peek)
        segment->control = 0;
}

/* Bytes behind the queue, straight from the kernel; no receive is there. */
static long receive_rest(int fd, struct place *place, size_t left, int flags)
{
    struct iovec rest[16];
    size_t count = 0;
    if (flags & MSG_TRUNC)
        return rp_sys_call(SYS_recvfrom, fd, 0, (long)left, flags, 0, 0);
    for (size_t i = place->index; i < place->count && count < 16; i++, count++) {
        rest[count] = place->iov[i];
        if (i == place->index) {
            rest[count].iov_base = (char *)rest[count].iov_base + place->at;
            rest[count].iov_len -= place->at;
        }
    }
    struct msghdr message = {.msg_iov = rest, .msg_iovlen = count};
    return rp_sys_call(SYS_recvmsg, fd, (long)&message, flags, 0, 0, 0);
}

/* All that has come for it is in the queue after this, however much else there was. A ring
 * that fails at that will not say what it holds: the set goes on without it, as in a wait. */
static void catch_up(struct rp_set *set, struct rp_stream *stream)
{
    int error = 0;
    stream->held++;
    set->ring.barren = 0; /* enters before this one's question prove nothing */
    for (unsigned turn = 0; turn < 4096 && rp_stream_is_armed(stream); turn++)
        if ((!rp_ring_wants_enter(&set->ring) && !rp_ring_peek(&set->ring)) ||
            (error = rp_set_enter_and_reap(set)) < 0 || rp_ring_is_up_in_vain(&set->ring))
            break;
    if (error < 0)
        rp_set_give_up_ring(set, error);
    stream->held--;
}

#define ANSWERED_FLAGS \
    (MSG_DONTWAIT | MSG_NOSIGNAL | MSG_PEEK | MSG_TRUNC | MSG_WAITALL | MSG_CMSG_CLOEXEC | MSG_NOSIGNAL)

/* The one read that all the others are. `wanted` is the room in iov. */
static long receive(int fd, const struct iovec *iov, size_t count, size_t wanted, int flags, struct msghdr *message)
{
    struct rp_fd *entry = rp_fd_peek(fd);
    if (!entry || !__atomic_load_n(&entry->stream, __ATOMIC_RELAXED))
        return RINGPOLL_PASS;
    /* A signal handler inside the library: the queue may be in any state. */
    if (rp_self.locks_held)
        return is_nonblocking(fd, flags) ? -EAGAIN : -EINTR;
    struct rp_stream *stream = rp_stream_lock(fd);
    if (!stream)
        return RINGPOLL_PASS;
    struct rp_set *set = stream->set;
    bool nonblocking = is_nonblocking(fd, flags);
    long result;
    if (stream->is_unix) /* means nothing there */
        flags &= ~MSG_TRUNC;

    if (!rp_set_is_mine(set) || set->owner_inside || set->ring.fd < 0) {
        /* Another thread, or a signal handler inside a wait: both read by plain
         * calls from now on. */
        rp_fd_set_flags(entry, RP_FD_PLAIN, 0);
        rp_stream_end_receive(set, stream);
        if (entry->stream != stream) {
            rp_set_unlock(set);
            return RINGPOLL_PASS;
        }
    } else if ((flags & ~ANSWERED_FLAGS) || (!nonblocking && stream->bytes < wanted && (flags & MSG_WAITALL))) {
        rp_stream_end_receive(set, stream);
    } else if (stream->bytes < wanted && stream->state != RP_STREAM_PLAIN) {
        catch_up(set, stream);
    }
    if (flags & ~ANSWERED_FLAGS) { /* OOB, ERRQUEUE: the kernel's own business */
        if (!rp_stream_is_armed(stream))
            end_if_empty(set, stream);
        rp_set_unlock(set);
        return RINGPOLL_PASS;
    }
    if (!stream->head && !stream->error) {
        bool armed = stream->state == RP_STREAM_ARMED && in_flight(set, stream);
        if (armed && nonblocking && wanted > 0) {
            note_drained(set, stream);
            rp_stream_saved(set, stream, 0);
            result = -EAGAIN;
        } else {
            if (armed)
                rp_stream_end_receive(set, stream);
            result = RINGPOLL_PASS;
            if (stream->head || stream->error)
                result = 0; /* it came meanwhile */
            else if (stream->state == RP_STREAM_PLAIN)
                end_if_empty(set, stream);
        }
        if (result != 0) {
            rp_set_unlock(set);
            return result;
        }
    }
    if (!stream->head) {
        result = -stream->error; /* a peek takes it, too */
        stream->error = 0;
        end_if_empty(set, stream);
        rp_stream_saved(set, stream, 0);
        rp_set_unlock(set);
        return result;
    }
    struct place place = {.iov = iov, .count = count};
    uint32_t control;
    bool ends;
    result = copy_queue(stream, &place, wanted, flags, &control, &ends);
    if (message) {
        message->msg_namelen = 0;
        message->msg_flags = flags & MSG_CMSG_CLOEXEC;
    }
    if (control) {
        give_control(stream, control - 1, message, flags);
    } else if (message) {
        message->msg_controllen = 0;
    }
    if (!(flags & MSG_PEEK))
        drop_read(set, stream);
    /* All that the kernel has belongs to this read as well. */
    bool all = flags & MSG_PEEK ? (size_t)result == stream->bytes : !stream->head;
    bool free = !rp_stream_is_armed(stream) || (stream->state == RP_STREAM_LEAVING && !rp_set_is_mine(set));
    if (all && !stream->error && !ends && (size_t)result < wanted && free) {
        bool wait = (flags & MSG_WAITALL) && !nonblocking;
        if (wait) {
            stream->held++;
            rp_set_unlock(set);
        }
        long more = receive_rest(fd, &place, wanted - (size_t)result, wait ? flags : flags | MSG_DONTWAIT);
        if (wait) {
            set = lock_set_of(stream);
            stream->held--;
        }
        if (more > 0)
            result += more;
        else if (more < 0 && more != -EAGAIN && more != -EINTR && !stream->closed)
            stream->error = (int)-more; /* the next call's: this one has something to tell */
        end_if_empty(set, stream);
    } else {
        if (!stream->head && rp_set_is_mine(set))
            note_drained(set, stream);
        rp_stream_saved(set, stream, 0);
        end_if_empty(set, stream);
    }
    rp_set_unlock(set);
    return result;
}

/* ---- what makes up a busy server's life. Nothing was done where the answer is UNUSUAL, and
 * receive() shall see to it. `buffer` is the first of the places, `wanted` the sum of them. */
#define UNUSUAL LONG_MIN

static inline bool may_be_usual(const struct rp_set *set, size_t length, int flags)
{
    /* Nobody's set has no ring, and nobody is 0: then the stream is not ARMED. */
    return length > 0 && ((flags & ~(MSG_DONTWAIT | MSG_NOSIGNAL)) | rp_self.locks_held) == 0 &&
           RP_READ_ONCE(set->owner) == rp_self.id;
}

static inline bool is_quiet_now(const struct rp_ring *ring)
{
    return !rp_ring_wants_enter(ring) && !rp_ring_peek(ring);
}

/* The owner reads the one buffer that came, and there is no more. */
static inline __attribute__((always_inline)) long read_the_one(const struct rp_fd *entry, struct rp_stream *stream,
                                                               void *buffer, size_t length, size_t wanted, int flags)
{
    struct rp_set *set = __atomic_load_n(&stream->set, __ATOMIC_RELAXED);
    if (!may_be_usual(set, length, flags))
        return UNUSUAL;
    rp_set_lock(set);
    uint32_t first = stream->head;
    if (first == 0 || !rp_stream_is_well(stream) || set->owner_inside || entry->stream != stream || stream->set != set)
        goto unusual;
    struct rp_segment *segment = &stream->pool->segments[first - 1];
    uint32_t here = segment->length;
    if (length < here || segment->control || segment->next || (wanted > here && !is_quiet_now(&set->ring)))
        goto unusual;
    memcpy(buffer, rp_pool_bytes(stream->pool, first - 1) + segment->at, here);
    stream->head = stream->tail = 0;
    stream->bytes = 0;
    segment->next = set->buffers.free_head; /* as rp_buffers_recycle(): the pool is the ring's */
    set->buffers.free_head = (uint16_t)first;
    note_drained(set, stream);
    rp_stream_saved(set, stream, 0);
    rp_set_unlock(set);
    return (long)here;
unusual:
    rp_set_unlock(set);
    return UNUSUAL;
}

/* There is nothing, or more than that. */
static __attribute__((noinline)) long read_some(const struct rp_fd *entry, struct rp_stream *stream, void *buffer,
                                                size_t length, size_t wanted, int flags)
{
    struct rp_set *set = __atomic_load_n(&stream->set, __ATOMIC_RELAXED);
    long result = UNUSUAL;
    if (!may_be_usual(set, length, flags))
        return UNUSUAL;
    rp_set_lock(set);
    uint32_t first = stream->head;
    if (stream->state != RP_STREAM_ARMED || stream->error || set->owner_inside || entry->stream != stream ||
        stream->set != set) {
        ;
    } else if (first == 0) {
        if (is_quiet_now(&set->ring) && in_flight(set, stream) && is_nonblocking(stream->fd, flags)) {
            note_drained(set, stream);
            result = -EAGAIN;
        }
    } else {
        struct rp_segment *segment = &stream->pool->segments[first - 1];
        const unsigned char *bytes = rp_pool_bytes(stream->pool, first - 1) + segment->at;
        uint32_t here = segment->length;
        if (segment->control) {
            ;
        } else if (length < here && wanted == length) {
            memcpy(buffer, bytes, length);
            segment->at += (uint32_t)length;
            segment->length -= (uint32_t)length;
            stream->bytes -= (uint32_t)length;
            result = (long)length;
        } else if (length == here && wanted == length) {
            memcpy(buffer, bytes, length);
            stream->head = segment->next;
            stream->bytes -= here;
            rp_buffers_recycle(&set->buffers, stream->pool, first - 1);
            if (!stream->head) {
                stream->tail = 0;
                note_drained(set, stream);
            }
            result = (long)length;
        }
    }
    if (result != UNUSUAL)
        rp_stream_saved(set, stream, 0);
    rp_set_unlock(set);
    return result;
}

static inline struct rp_stream *stream_of(int fd, struct rp_fd **ret_entry)
{
    *ret_entry = rp_fd_peek(fd);
    return *ret_entry ? __atomic_load_n(&(*ret_entry)->stream, __ATOMIC_ACQUIRE) : NULL;
}

static __attribute__((noinline)) long receive_one(int fd, void *buffer, size_t length, int flags,
                                                  const struct rp_fd *entry, struct rp_stream *stream)
{
    long result = read_some(entry, stream, buffer, length, length, flags);
    struct iovec iov = {.iov_base = buffer, .iov_len = length};
    return result != UNUSUAL ? result : receive(fd, &iov, 1, length, flags, NULL);
}

/* Apart from its caller, so that a read of a socket that is not adopted costs some
 * loads and nothing else. */
static __attribute__((noinline)) long receive_by_stream(int fd, void *buffer, size_t length, int flags,
                                                        const struct rp_fd *entry, struct rp_stream *stream)
{
    long result = read_the_one(entry, stream, buffer, length, length, flags);
    return RP_LIKELY(result != UNUSUAL) ? result : receive_one(fd, buffer, length, flags, entry, stream);
}

long ringpoll_try_recv(int fd, void *buffer, size_t length, int flags)
{
    struct rp_fd *entry;
    struct rp_stream *stream = stream_of(fd, &entry);
    return stream ? receive_by_stream(fd, buffer, length, flags, entry, stream) : RINGPOLL_PASS;
}

static long room_of(const struct iovec *iov, size_t count)
{
    size_t sum = 0;
    for (size_t i = 0; i < count; i++) {
        if (iov[i].iov_len > (size_t)LONG_MAX - sum)
            return -EINVAL;
        sum += iov[i].iov_len;
    }
    return (long)sum;
}

long ringpoll_try_readv(int fd, const struct iovec *iov, int count)
{
    struct rp_fd *entry;
    struct rp_stream *stream = stream_of(fd, &entry);
    long result;
    if (!stream || count <= 0 || count > 1024)
        return RINGPOLL_PASS;
    long wanted = room_of(iov, (size_t)count);
    if (wanted > 0 &&
        ((result = read_the_one(entry, stream, iov->iov_base, iov->iov_len, (size_t)wanted, 0)) != UNUSUAL ||
         (result = read_some(entry, stream, iov->iov_base, iov->iov_len, (size_t)wanted, 0)) != UNUSUAL))
        return result;
    if (wanted == 0) /* does nothing at all */
        return RINGPOLL_PASS;
    return wanted < 0 ? wanted : receive(fd, iov, (size_t)count, (size_t)wanted, 0, NULL);
}

long ringpoll_try_recvmsg(int fd, struct msghdr *message, int flags)
{
    struct rp_fd *entry = rp_fd_peek(fd);
    if (!entry || !__atomic_load_n(&entry->stream, __ATOMIC_RELAXED) || message->msg_iovlen > 1024)
        return RINGPOLL_PASS;
    long wanted = room_of(message->msg_iov, message->msg_iovlen);
    return wanted < 0 ? wanted : receive(fd, message->msg_iov, message->msg_iovlen, (size_t)wanted, flags, message);
}

/* Locked, by the owner; something is queued. */
static inline long borrow_first(struct rp_set *set, struct rp_stream *stream, struct ringpoll_buffer *ret_buffer)
{
    uint32_t number = unlink_first(stream);
    struct rp_segment *segment = &stream->pool->segments[number];
    if (segment->control)
        close_passed(stream, number, segment);
    rp_pool_get(stream->pool);
    *ret_buffer = (struct ringpoll_buffer){
        .data = rp_pool_bytes(stream->pool, number) + segment->at,
        .length = segment->length,
        .pool = stream->pool,
        .number = number,
    };
    long length = segment->length;
    stream->gain += segment->length; /* nobody copies it */
    if (!stream->head)
        note_drained(set, stream);
    rp_stream_saved(set, stream, 0);
    end_if_empty(set, stream);
    return length;
}

/* See receive_quickly(). */
static inline bool borrow_quickly(const struct rp_fd *entry, struct rp_stream *stream,
                                  struct ringpoll_buffer *ret_buffer, long *ret_result)
{
    struct rp_set *set = __atomic_load_n(&stream->set, __ATOMIC_RELAXED);
    if (rp_self.locks_held || !rp_set_is_mine(set))
        return false;
    rp_set_lock(set);
    bool done = entry->stream == stream && stream->set == set && stream->head;
    if (done)
        *ret_result = borrow_first(set, stream, ret_buffer);
    rp_set_unlock(set);
    return done;
}

long ringpoll_borrow(int fd, struct ringpoll_buffer *ret_buffer, int flags)
{
    for (;;) {
        struct rp_fd *entry;
        struct rp_stream *stream = stream_of(fd, &entry);
        long length;
        if (!stream)
            return RINGPOLL_PASS;
        if (borrow_quickly(entry, stream, ret_buffer, &length))
            return length;
        stream = rp_self.locks_held ? NULL : rp_stream_lock(fd);
        if (stream && stream->head && rp_set_is_mine(stream->set)) {
            struct rp_set *set = stream->set;
            length = borrow_first(set, stream, ret_buffer);
            rp_set_unlock(set);
            return length;
        }
        if (stream)
            rp_set_unlock(stream->set);
        /* Nothing yet, an error, or somebody else's thread: recv() knows what to say. */
        char byte;
        long result = ringpoll_try_recv(fd, &byte, 1, (flags & MSG_DONTWAIT) | MSG_PEEK);
        if (result <= 0 || !stream) {
            if (result < 0 && result != -EAGAIN && result != -EINTR && result != RINGPOLL_PASS)
                ringpoll_try_error(fd);
            return result > 0 ? RINGPOLL_PASS : result;
        }
        if (!rp_set_is_mine(__atomic_load_n(&stream->set, __ATOMIC_RELAXED)))
            return RINGPOLL_PASS;
    }
}

int ringpoll_buffer_new(size_t length, struct ringpoll_buffer *ret_buffer)
{
    size_t room;
    struct rp_pool *lone = rp_pool_lone(length, &room);
    if (!lone)
        return -ENOMEM;
    *ret_buffer = (struct ringpoll_buffer){.data = lone->data, .length = room, .pool = lone};
    return 0;
}

void ringpoll_return(struct ringpoll_buffer *buffer)
{
    if (!buffer->pool)
        return;
    rp_pool_return(buffer->pool, buffer->number);
    buffer->pool = NULL;
}

void ringpoll_return_at(void *of_pool, const void *address)
{
    const struct rp_pool *of = of_pool;
    rp_pool_return(of_pool, (uint32_t)((size_t)((const unsigned char *)address - of->data) / RP_BUFFER_STRIDE));
}

/* The owner asks, and all that has come is in the queue. */
static inline __attribute__((always_inline)) bool unread_as_usual(const struct rp_fd *entry, struct rp_stream *stream,
                                                                  int *ret_bytes)
{
    struct rp_set *set = __atomic_load_n(&stream->set, __ATOMIC_RELAXED);
    if (!may_be_usual(set, 1, 0))
        return false;
    rp_set_lock(set);
    bool usual = entry->stream == stream && stream->set == set && stream->state == RP_STREAM_ARMED &&
                 !set->owner_inside && in_flight(set, stream) && is_quiet_now(&set->ring);
    if (usual) {
        *ret_bytes = (int)stream->bytes;
        rp_stream_saved(set, stream, 0);
    }
    rp_set_unlock(set);
    return usual;
}

static __attribute__((noinline)) int unread_at_length(int fd, int *ret_bytes)
{
    if (rp_self.locks_held)
        return 0;
    struct rp_stream *stream = rp_stream_lock(fd);
    if (!stream)
        return 0;
    struct rp_set *set = stream->set;
    if (!rp_set_is_mine(set) || set->owner_inside || set->ring.fd < 0)
        rp_stream_end_receive(set, stream);
    else
        catch_up(set, stream);
    *ret_bytes = (int)stream->bytes;
    int whole = stream->state == RP_STREAM_ARMED && in_flight(set, stream);
    if (whole)
        rp_stream_saved(set, stream, 0);
    end_if_empty(set, stream);
    rp_set_unlock(set);
    return whole ? 2 : 1;
}

int ringpoll_try_unread(int fd, int *ret_bytes)
{
    struct rp_fd *entry;
    struct rp_stream *stream = stream_of(fd, &entry);
    if (!stream)
        return 0;
    return RP_LIKELY(unread_as_usual(entry, stream, ret_bytes)) ? 2 : unread_at_length(fd, ret_bytes);
}

int ringpoll_try_error(int fd)
{
    struct rp_fd *entry = rp_fd_peek(fd);
    struct rp_stream *stream = entry ? __atomic_load_n(&entry->stream, __ATOMIC_ACQUIRE) : NULL;
    /* What has not been reaped the kernel still knows. */
    if (!stream || !__atomic_load_n(&stream->error, __ATOMIC_RELAXED) || rp_self.locks_held)
        return 0;
    stream = rp_stream_lock(fd);
    if (!stream)
        return 0;
    struct rp_set *set = stream->set;
    int error = stream->error;
    stream->error = 0;
    end_if_empty(set, stream);
    rp_set_unlock(set);
    return error;
}

/* Another thread may have looked at the flags just before they said that nobody shall adopt it, and
 * be about to. */
static void await_adoption(const struct rp_fd *entry)
{
    struct rp_set *set;
    for (unsigned at = 0; RP_READ_ONCE(entry->watches) && (set = rp_fd_set_at(entry, at)) != NULL; at++) {
        if (rp_set_is_mine(set))
            continue;
        rp_set_lock(set);
        rp_set_unlock(set);
    }
}

void ringpoll_fd_release(int fd, int for_good)
{
    struct rp_fd *entry = rp_fd_peek(fd);
    if (!entry)
        return;
    if (for_good && rp_fd_flags(entry))
        rp_fd_set_flags(entry, RP_FD_PLAIN, 0);
    if (rp_fd_flags(entry) & RP_FD_LISTENER)
        rp_accept_release(fd, for_good);
    if (rp_self.locks_held)
        return;
    if (for_good && !__atomic_load_n(&entry->stream, __ATOMIC_ACQUIRE))
        await_adoption(entry);
    struct rp_stream *stream = rp_stream_lock(fd);
    if (!stream)
        return;
    struct rp_set *set = stream->set;
    if (stream->watch)
        put_off(stream->watch);
    rp_stream_end_receive(set, stream);
    if (entry->stream == stream)
        end_if_empty(set, stream);
    rp_set_unlock(set);
}

uint32_t ringpoll_fd_pending(int fd)
{
    struct rp_fd *entry = rp_fd_peek(fd);
    if (entry && (rp_fd_flags(entry) & RP_FD_LISTENER))
        return rp_accept_bits(fd);
    if (!entry || !__atomic_load_n(&entry->stream, __ATOMIC_RELAXED) || rp_self.locks_held)
        return 0;
    struct rp_stream *stream = rp_stream_lock(fd);
    if (!stream)
        return 0;
    uint32_t bits = rp_stream_bits(stream);
    rp_set_unlock(stream->set);
    return bits;
}
