/* SPDX-License-Identifier: MIT
 *
 * The floor: the same echo server written for a ring by hand, on this project's
 * ring layer and nothing else. One multishot poll per connection, one enter per
 * turn, one read and one write per completion, no look at anything twice: what
 * is left is what the kernel takes for polls on a ring. It serves connections
 * that stay; it has no answer to half of what epoll promises.
 */
#include "program.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <ringpoll/ringpoll.h>

#include "ring.h"

struct state {
    struct rp_ring ring;
    int listener;
    int *fds;
    unsigned count, room;
};

static int arm(struct state *state, int fd)
{
    struct rp_sqe *sqe;
    while ((sqe = rp_ring_get_sqe(&state->ring)) == NULL) {
        int rc = rp_ring_enter(&state->ring, 0, NULL, NULL);
        if (rc < 0)
            return rc;
    }
    sqe->opcode = RP_IORING_OP_POLL_ADD;
    sqe->fd = fd;
    sqe->poll32_events = rp_poll_word(EPOLLIN);
    sqe->len = RP_POLL_ADD_MULTI;
    sqe->user_data = (uint64_t)fd;
    return 0;
}

static int accept_all(struct program *program)
{
    struct state *state = program->state;
    for (;;) {
        int fd = accept4(state->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return errno == EAGAIN || errno == EINTR ? 0 : -errno;
        if (state->count == state->room) {
            unsigned room = state->room * 2 + 64;
            int *grown = realloc(state->fds, room * sizeof grown[0]);
            if (grown == NULL) {
                close(fd);
                return -ENOMEM;
            }
            state->fds = grown;
            state->room = room;
        }
        state->fds[state->count++] = fd;
        int rc = arm(state, fd);
        if (rc < 0)
            return rc;
        program->accepted++;
    }
}

static int serve(struct program *program, int fd)
{
    _Alignas(READ_ALIGNMENT) char buffer[READ_SIZE_MAX];
    ssize_t got = read(fd, buffer, program->read_size);
    if (got <= 0)
        return got < 0 && errno == EAGAIN ? 0 : -EIO; /* no connection of this program ends */
    program->received += (uint64_t)got;
    if (!program->discard && write(fd, buffer, (size_t)got) != got)
        program->errors++;
    return 0;
}

static int floor_turn(struct program *program, bool wait)
{
    struct state *state = program->state;
    struct rp_ring *ring = &state->ring;
    struct rp_cqe *cqe;
    int rc = rp_ring_enter(ring, wait, NULL, NULL);
    while (rc >= 0 && rp_ring_wants_enter(ring))
        rc = rp_ring_enter(ring, 0, NULL, NULL);
    if (rc < 0)
        return rc == -EINTR ? 0 : rc;
    while ((cqe = rp_ring_peek(ring)) != NULL) {
        int fd = (int)cqe->user_data;
        int result = cqe->res;
        uint32_t flags = cqe->flags;
        rp_ring_seen(ring);
        if (result < 0)
            return result;
        rc = fd == state->listener ? accept_all(program) : serve(program, fd);
        if (rc == 0 && !(flags & RP_CQE_F_MORE))
            rc = arm(state, fd);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static void floor_close(struct program *program)
{
    struct state *state = program->state;
    if (state == NULL)
        return;
    rp_ring_fini(&state->ring);
    for (unsigned i = 0; i < state->count; i++)
        close(state->fds[i]);
    if (state->listener >= 0)
        close(state->listener);
    free(state->fds);
    free(state);
    program->state = NULL;
}

static int floor_open(struct program *program, int listener)
{
    struct rp_ring_options options = {
        .sq_entries = 256, .cq_entries = 4096, .features = UINT64_MAX, .single_thread = true};
    struct state *state = calloc(1, sizeof *state);
    if (state == NULL)
        return -ENOMEM;
    state->listener = listener;
    int rc = rp_ring_init(&state->ring, &options);
    if (rc < 0) {
        free(state);
        return rc;
    }
    program->state = state;
    rc = arm(state, listener);
    if (rc < 0)
        floor_close(program);
    return rc;
}

static const char *floor_describe(void)
{
    return "the same loop on epoll_wait, and written for a ring by hand";
}

const struct program_ops program_floor = {
    .name = "floor",
    .open = floor_open,
    .turn = floor_turn,
    .close = floor_close,
    .describe = floor_describe,
};
