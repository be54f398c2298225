/* SPDX-License-Identifier: MIT
 *
 * An echo server straight on epoll: level-triggered, one read and one write per
 * event, a closed fd leaves its set by being closed.
 */
#include "program.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define EVENTS_PER_WAIT 512

struct state {
    int epfd, listener;
    uint8_t *is_open; /* by fd, so that close() can end what is left */
    int is_open_size;
    struct epoll_event events[EVENTS_PER_WAIT];
};

static void end_connection(struct program *program, int fd)
{
    struct state *state = program->state;
    state->is_open[fd] = 0;
    close(fd);
    program->closed++;
}

static int accept_all(struct program *program)
{
    struct state *state = program->state;
    for (;;) {
        struct epoll_event event = {.events = EPOLLIN};
        int fd = accept4(state->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return errno == EAGAIN || errno == EINTR || errno == ECONNABORTED ? 0 : -errno;
        if (fd >= state->is_open_size) {
            int size = fd * 2 + 64;
            uint8_t *grown = realloc(state->is_open, (size_t)size);
            if (grown == NULL) {
                close(fd);
                return -ENOMEM;
            }
            for (int i = state->is_open_size; i < size; i++)
                grown[i] = 0;
            state->is_open = grown;
            state->is_open_size = size;
        }
        event.data.fd = fd;
        if (epoll_ctl(state->epfd, EPOLL_CTL_ADD, fd, &event) != 0) {
            int error = errno;
            close(fd);
            return -error;
        }
        state->is_open[fd] = 1;
        program->accepted++;
    }
}

static void serve(struct program *program, int fd)
{
    _Alignas(READ_ALIGNMENT) char buffer[READ_SIZE_MAX];
    ssize_t got = read(fd, buffer, program->read_size);
    if (got <= 0) {
        if (got < 0 && errno == EAGAIN) {
            program->spurious++;
            return;
        }
        if (got < 0)
            program->errors++;
        end_connection(program, fd);
        return;
    }
    program->received += (uint64_t)got;
    if (!program->discard && write(fd, buffer, (size_t)got) != got)
        program->errors++;
    if (program->close_after_reply)
        end_connection(program, fd);
}

static int raw_turn(struct program *program, bool wait)
{
    struct state *state = program->state;
    int ready = epoll_wait(state->epfd, state->events, EVENTS_PER_WAIT, wait ? -1 : 0);
    if (ready < 0)
        return errno == EINTR ? 0 : -errno;
    for (int i = 0; i < ready; i++) {
        if (state->events[i].data.fd != state->listener) {
            serve(program, state->events[i].data.fd);
        } else {
            int rc = accept_all(program);
            if (rc != 0)
                return rc;
        }
    }
    return 0;
}

static void raw_close(struct program *program)
{
    struct state *state = program->state;
    if (state == NULL)
        return;
    for (int fd = 0; fd < state->is_open_size; fd++)
        if (state->is_open[fd])
            close(fd);
    if (state->listener >= 0)
        close(state->listener);
    if (state->epfd >= 0)
        close(state->epfd);
    free(state->is_open);
    free(state);
    program->state = NULL;
}

static int raw_open(struct program *program, int listener)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
    struct state *state = calloc(1, sizeof *state);
    if (state == NULL)
        return -ENOMEM;
    program->state = state;
    state->listener = listener;
    state->epfd = epoll_create1(EPOLL_CLOEXEC);
    if (state->epfd < 0 || epoll_ctl(state->epfd, EPOLL_CTL_ADD, listener, &event) != 0) {
        int error = errno;
        raw_close(program);
        return -error;
    }
    return 0;
}

static const char *raw_describe(void)
{
    return "a hand-written loop on epoll_wait";
}

const struct program_ops program_raw = {
    .name = "loop",
    .open = raw_open,
    .turn = raw_turn,
    .close = raw_close,
    .describe = raw_describe,
};
