/* SPDX-License-Identifier: MIT
 *
 * A server that sends back what it gets, in capitals: plain epoll, with nothing of
 * ringpoll in it. One thread, level-triggered, non-blocking; a connection whose peer
 * does not read is not read from.
 *
 *     shout PORT         on 127.0.0.1, until SIGTERM; port 0: any, it says which
 */
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

struct connection {
    int fd;
    int is_full;       /* its peer does not read: watched for writing */
    size_t begin, end; /* of what is still to be sent */
    char bytes[4096];
};

static int epfd;

static void watch(int op, int fd, uint32_t events, void *data)
{
    struct epoll_event event = {.events = events, .data.ptr = data};
    if (epoll_ctl(epfd, op, fd, &event) != 0) {
        perror("epoll_ctl");
        exit(1);
    }
}

static void end(struct connection *connection)
{
    close(connection->fd);
    free(connection);
}

/* False: it is over. */
static int serve(struct connection *connection)
{
    for (;;) {
        while (connection->begin < connection->end) {
            ssize_t sent = write(connection->fd, connection->bytes + connection->begin,
                                 connection->end - connection->begin);
            if (sent < 0 && errno != EAGAIN)
                return 0;
            if ((sent < 0) != connection->is_full) {
                connection->is_full = sent < 0;
                watch(EPOLL_CTL_MOD, connection->fd, sent < 0 ? EPOLLOUT : EPOLLIN, connection);
            }
            if (sent < 0)
                return 1;
            connection->begin += (size_t)sent;
        }
        ssize_t got = read(connection->fd, connection->bytes, sizeof connection->bytes);
        if (got <= 0)
            return got < 0 && errno == EAGAIN;
        for (ssize_t i = 0; i < got; i++)
            connection->bytes[i] = (char)toupper((unsigned char)connection->bytes[i]);
        connection->begin = 0;
        connection->end = (size_t)got;
    }
}

static void welcome(int listener)
{
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        struct connection *connection = calloc(1, sizeof *connection);
        if (!connection) {
            close(fd);
            continue;
        }
        connection->fd = fd;
        watch(EPOLL_CTL_ADD, fd, EPOLLIN, connection);
    }
}

int main(int argc, char **argv)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), yes = 1;
    sigset_t ends;
    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    sigprocmask(SIG_BLOCK, &ends, NULL);
    signal(SIGPIPE, SIG_IGN);
    int signals = signalfd(-1, &ends, SFD_NONBLOCK | SFD_CLOEXEC);
    address.sin_port = htons((uint16_t)(argc > 1 ? atoi(argv[1]) : 0));
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    epfd = epoll_create1(EPOLL_CLOEXEC);
    if (signals < 0 || epfd < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) != 0 ||
        listen(listener, 128) != 0 || getsockname(listener, (struct sockaddr *)&address, &length) != 0) {
        perror("shout");
        return 1;
    }
    watch(EPOLL_CTL_ADD, listener, EPOLLIN, &listener);
    watch(EPOLL_CTL_ADD, signals, EPOLLIN, &signals);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        struct epoll_event events[64];
        int count = epoll_wait(epfd, events, 64, -1);
        for (int i = 0; i < count; i++) {
            if (events[i].data.ptr == &signals)
                return 0;
            if (events[i].data.ptr == &listener)
                welcome(listener);
            else if (!serve(events[i].data.ptr))
                end(events[i].data.ptr);
        }
    }
}
