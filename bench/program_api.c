/* SPDX-License-Identifier: MIT
 *
 * The hand-written loop once more, on the library's public interface alone: what a
 * program costs that was written for it, without a shim in between.
 */
#include "program.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <ringpoll/ringpoll.h>

#define EVENTS_PER_WAIT 512

struct state {
    int set, listener;
    uint32_t kind;
    uint8_t *is_open; /* by fd, so that close() can end what is left */
    int is_open_size;
    struct epoll_event events[EVENTS_PER_WAIT];
};

static void end_connection(struct program *program, int fd)
{
    struct state *state = program->state;
    state->is_open[fd] = 0;
    ringpoll_close(fd);
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
        ringpoll_fd_opened(fd, state->kind | RINGPOLL_FD_CONNECTED | RINGPOLL_FD_NONBLOCK);
        if (fd >= state->is_open_size) {
            int size = fd * 2 + 64;
            uint8_t *grown = realloc(state->is_open, (size_t)size);
            if (grown == NULL) {
                ringpoll_close(fd);
                return -ENOMEM;
            }
            for (int i = state->is_open_size; i < size; i++)
                grown[i] = 0;
            state->is_open = grown;
            state->is_open_size = size;
        }
        event.data.fd = fd;
        int rc = ringpoll_ctl(state->set, EPOLL_CTL_ADD, fd, &event);
        if (rc < 0) {
            ringpoll_close(fd);
            return rc;
        }
        state->is_open[fd] = 1;
        program->accepted++;
    }
}

static long receive(int fd, void *buffer, size_t size)
{
    long got = ringpoll_try_recv(fd, buffer, size, 0);
    if (got != RINGPOLL_PASS)
        return got;
    got = recv(fd, buffer, size, 0);
    if (got < 0)
        got = -errno;
    ringpoll_fd_read(fd, size, got);
    return got;
}

static long reply(int fd, const void *buffer, size_t size)
{
    long sent = ringpoll_try_send(fd, buffer, size, MSG_NOSIGNAL);
    if (sent != RINGPOLL_PASS)
        return sent;
    sent = send(fd, buffer, size, MSG_NOSIGNAL);
    return sent < 0 ? -errno : sent;
}

static void serve(struct program *program, int fd)
{
    _Alignas(READ_ALIGNMENT) char buffer[READ_SIZE_MAX];
    long got = receive(fd, buffer, program->read_size);
    if (got <= 0) {
        if (got == -EAGAIN) {
            program->spurious++;
            return;
        }
        if (got < 0)
            program->errors++;
        end_connection(program, fd);
        return;
    }
    program->received += (uint64_t)got;
    if (!program->discard && reply(fd, buffer, (size_t)got) != got)
        program->errors++;
    if (program->close_after_reply)
        end_connection(program, fd);
}

static int api_turn(struct program *program, bool wait)
{
    static const struct timespec at_once;
    struct state *state = program->state;
    int ready = ringpoll_wait(state->set, state->events, EVENTS_PER_WAIT, wait ? NULL : &at_once, NULL);
    if (ready < 0)
        return ready == -EINTR ? 0 : ready;
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

static void api_close(struct program *program)
{
    struct state *state = program->state;
    if (state == NULL)
        return;
    for (int fd = 0; fd < state->is_open_size; fd++)
        if (state->is_open[fd])
            ringpoll_close(fd);
    if (state->listener >= 0)
        ringpoll_close(state->listener);
    if (state->set >= 0)
        ringpoll_close(state->set);
    free(state->is_open);
    free(state);
    program->state = NULL;
}

static int api_open(struct program *program, int listener)
{
    /* Registered files, as the loop that is written for a ring has them. */
    struct ringpoll_options options = {
        .size = sizeof options,
        .flags = RINGPOLL_CLOEXEC | RINGPOLL_REQUIRE | RINGPOLL_ADOPT | RINGPOLL_BATCH | RINGPOLL_FIXED_FILES,
    };
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
    int family = 0;
    socklen_t length = sizeof family;
    struct state *state = calloc(1, sizeof *state);
    if (state == NULL)
        return -ENOMEM;
    program->state = state;
    state->listener = listener;
    int rc = getsockopt(listener, SOL_SOCKET, SO_DOMAIN, &family, &length) != 0 ? -errno : 0;
    state->kind = family == AF_UNIX ? RINGPOLL_FD_UNIX : RINGPOLL_FD_TCP;
    state->set = rc == 0 ? ringpoll_create(&options) : -1;
    if (rc == 0 && state->set < 0)
        rc = state->set;
    if (rc == 0)
        rc = ringpoll_ctl(state->set, EPOLL_CTL_ADD, listener, &event);
    if (rc < 0)
        api_close(program);
    return rc;
}

static const char *api_describe(void)
{
    return "a loop on the library's public interface";
}

const struct program_ops program_api = {
    .name = "api",
    .open = api_open,
    .turn = api_turn,
    .close = api_close,
    .describe = api_describe,
};
