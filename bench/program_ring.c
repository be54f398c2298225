/* SPDX-License-Identifier: MIT
 *
 * The floor of completion: an echo server written for a ring by hand. A multishot
 * receive per connection into provided buffers, the reply sent from the buffer
 * that it came in, all sends handed over with the wait for what comes next,
 * registered files: one enter per turn, and nothing beside it.
 *
 * It takes what a server for everybody cannot. A send is MSG_DONTWAIT and tells
 * nothing unless it fails, so that its buffer is free when the enter returns: one
 * that the kernel cut short would go unnoticed (here it would not: the client
 * compares). Passed file descriptors on AF_UNIX would be lost; where
 * RINGPOLL_BENCH_RECVMSG is set it receives by RECVMSG with room for them, as whoever
 * may be sent some has to.
 */
#include "program.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ring.h"

#define FILES_MAX 4096u
#define BUFFERS 1024u
/* An odd number of cache lines, so that the first ones spread over the cache. */
#define BUFFER_BYTES 4096u
#define BUFFER_STRIDE (BUFFER_BYTES + 64u)
#define CONTROL_BYTES 64u

enum kind { KIND_LISTENER, KIND_CONNECTION, KIND_SEND };

struct state {
    struct rp_ring ring;
    int listener;
    unsigned header_bytes; /* before the bytes of a message; 0: not by RECVMSG */
    int fds[FILES_MAX]; /* by slot */
    unsigned count;
    struct rp_buf_ring *entries;
    unsigned char *data;
    unsigned made; /* buffers below have been given: one per connection, so that they stay warm */
    uint16_t tail;
    uint16_t sending[BUFFERS]; /* buffers of the sends that are queued */
    unsigned sending_count;
};

static void give(struct state *state, unsigned buffer)
{
    struct rp_buf *entry = &state->entries->bufs[state->tail++ & (BUFFERS - 1)];
    entry->addr = (uint64_t)(uintptr_t)(state->data + (size_t)buffer * BUFFER_STRIDE);
    entry->len = BUFFER_BYTES;
    entry->bid = (uint16_t)buffer;
}

static void publish(struct state *state)
{
    __atomic_store_n(&state->entries->bufs[0].tail, state->tail, __ATOMIC_RELEASE);
}

static void give_another(struct state *state)
{
    if (state->made == BUFFERS)
        return;
    give(state, state->made++);
    publish(state);
}

/* Hands everything over. The sends have happened when it returns. */
static int enter(struct state *state, unsigned min_complete)
{
    int rc = rp_ring_enter(&state->ring, min_complete, NULL, NULL);
    if (rc < 0 && rc != -EINTR)
        return rc;
    if (rp_ring_queued(&state->ring) > 0 || state->sending_count == 0)
        return 0;
    for (unsigned i = state->sending_count; i > 0; i--)
        give(state, state->sending[i - 1]);
    state->sending_count = 0;
    publish(state);
    return 0;
}

static int get_sqe(struct state *state, struct rp_sqe **ret_sqe)
{
    while ((*ret_sqe = rp_ring_get_sqe(&state->ring)) == NULL) {
        int rc = enter(state, 0);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int poll_listener(struct state *state)
{
    struct rp_sqe *sqe;
    int rc = get_sqe(state, &sqe);
    if (rc < 0)
        return rc;
    sqe->opcode = RP_IORING_OP_POLL_ADD;
    sqe->fd = state->listener;
    sqe->poll32_events = rp_poll_word(EPOLLIN);
    sqe->len = RP_POLL_ADD_MULTI;
    sqe->user_data = KIND_LISTENER;
    return 0;
}

static int receive(struct state *state, unsigned slot)
{
    static const struct msghdr header = {.msg_controllen = CONTROL_BYTES};
    struct rp_sqe *sqe;
    int rc = get_sqe(state, &sqe);
    if (rc < 0)
        return rc;
    sqe->opcode = RP_IORING_OP_RECV;
    if (state->header_bytes > 0) {
        sqe->opcode = RP_IORING_OP_RECVMSG;
        sqe->addr = (uint64_t)(uintptr_t)&header;
        sqe->len = 1;
    }
    sqe->fd = (int)slot;
    sqe->flags = RP_SQE_FIXED_FILE | RP_SQE_BUFFER_SELECT;
    sqe->ioprio = RP_RECV_MULTISHOT;
    sqe->user_data = (uint64_t)slot << 32 | KIND_CONNECTION;
    return 0;
}

static int accept_all(struct program *program)
{
    struct state *state = program->state;
    for (;;) {
        int fd = accept4(state->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return errno == EAGAIN || errno == EINTR ? 0 : -errno;
        struct rp_rsrc_update update = {.offset = state->count, .data = (uint64_t)(uintptr_t)&fd};
        int rc = state->count < FILES_MAX
                     ? rp_ring_register(&state->ring, RP_REGISTER_FILES_UPDATE, &update, 1)
                     : -EMFILE;
        if (rc < 0) {
            close(fd);
            return rc;
        }
        state->fds[state->count] = fd;
        give_another(state);
        rc = receive(state, state->count++);
        if (rc < 0)
            return rc;
        program->accepted++;
    }
}

static int received(struct program *program, unsigned slot, int result, uint32_t flags)
{
    struct state *state = program->state;
    struct rp_sqe *sqe;
    if (result == -ENOBUFS) { /* the bytes are still in the socket */
        give_another(state);
        return 0;
    }
    result = result < 0 ? result : result - (int)state->header_bytes;
    if (result <= 0) /* no connection of this program ends */
        return result < 0 ? result : -EIO;
    unsigned buffer = flags >> RP_CQE_BUFFER_SHIFT;
    program->received += (uint64_t)result;
    if (program->discard) {
        give(state, buffer);
        publish(state);
        return 0;
    }
    int rc = get_sqe(state, &sqe);
    if (rc < 0)
        return rc;
    sqe->opcode = RP_IORING_OP_SEND;
    sqe->fd = (int)slot;
    sqe->flags = RP_SQE_FIXED_FILE | RP_SQE_CQE_SKIP_SUCCESS;
    sqe->addr = (uint64_t)(uintptr_t)(state->data + (size_t)buffer * BUFFER_STRIDE + state->header_bytes);
    sqe->len = (uint32_t)result;
    sqe->msg_flags = MSG_DONTWAIT | MSG_NOSIGNAL;
    sqe->user_data = KIND_SEND;
    state->sending[state->sending_count++] = (uint16_t)buffer;
    return 0;
}

static int ring_turn(struct program *program, bool wait)
{
    struct state *state = program->state;
    struct rp_ring *ring = &state->ring;
    struct rp_cqe *cqe;
    int rc = enter(state, wait);
    while (rc == 0 && rp_ring_wants_enter(ring))
        rc = enter(state, 0);
    while (rc == 0 && (cqe = rp_ring_peek(ring)) != NULL) {
        enum kind kind = (enum kind)(cqe->user_data & 0xff);
        unsigned slot = (unsigned)(cqe->user_data >> 32);
        int result = cqe->res;
        uint32_t flags = cqe->flags;
        rp_ring_seen(ring);
        if (kind == KIND_CONNECTION) {
            rc = received(program, slot, result, flags);
            if (rc == 0 && !(flags & RP_CQE_F_MORE))
                rc = receive(state, slot);
        } else if (kind == KIND_LISTENER) {
            rc = result < 0 ? result : accept_all(program);
            if (rc == 0 && !(flags & RP_CQE_F_MORE))
                rc = poll_listener(state);
        } else {
            program->errors++; /* a send that failed */
        }
    }
    return rc;
}

static void ring_close(struct program *program)
{
    struct state *state = program->state;
    if (state == NULL)
        return;
    rp_ring_fini(&state->ring);
    for (unsigned i = 0; i < state->count; i++)
        close(state->fds[i]);
    if (state->listener >= 0)
        close(state->listener);
    if (state->entries != NULL)
        munmap(state->entries, BUFFERS * sizeof(struct rp_buf));
    if (state->data != NULL)
        munmap(state->data, (size_t)BUFFERS * BUFFER_STRIDE);
    free(state);
    program->state = NULL;
}

static void *pages(size_t bytes)
{
    void *mapped = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return mapped != MAP_FAILED ? mapped : NULL;
}

static int ring_open(struct program *program, int listener)
{
    struct rp_ring_options options = {
        .sq_entries = 512, .cq_entries = 4096, .features = UINT64_MAX, .single_thread = true};
    struct rp_rsrc_register files = {.nr = FILES_MAX, .flags = RP_RSRC_REGISTER_SPARSE};
    struct state *state = calloc(1, sizeof *state);
    if (state == NULL)
        return -ENOMEM;
    state->listener = listener;
    if (getenv("RINGPOLL_BENCH_RECVMSG") != NULL)
        state->header_bytes = (unsigned)sizeof(struct rp_recvmsg_out) + CONTROL_BYTES;
    int rc = rp_ring_init(&state->ring, &options);
    if (rc < 0) {
        free(state);
        return rc;
    }
    program->state = state;
    state->entries = pages(BUFFERS * sizeof(struct rp_buf));
    state->data = pages((size_t)BUFFERS * BUFFER_STRIDE);
    struct rp_buf_reg buffers = {.ring_addr = (uint64_t)(uintptr_t)state->entries, .ring_entries = BUFFERS};
    rc = state->entries != NULL && state->data != NULL ? 0 : -ENOMEM;
    if (rc == 0)
        rc = rp_ring_register(&state->ring, RP_REGISTER_PBUF_RING, &buffers, 1);
    if (rc >= 0)
        rc = rp_ring_register(&state->ring, RP_REGISTER_FILES2, &files, sizeof files);
    if (rc >= 0)
        rc = poll_listener(state);
    if (rc < 0) {
        ring_close(program);
        return rc;
    }
    return 0;
}

static const char *ring_describe(void)
{
    return "the same loop on epoll_wait, and written for a ring by hand";
}

const struct program_ops program_ring = {
    .name = "ring",
    .open = ring_open,
    .turn = ring_turn,
    .close = ring_close,
    .describe = ring_describe,
};
