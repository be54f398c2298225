/* SPDX-License-Identifier: MIT
 *
 * The program under test: an epoll server as people write them, which knows nothing
 * of ringpoll. "echo" gives back what it reads; "proxy" connects each client to an
 * upstream and carries bytes both ways. Buffers are small, so that a slow reader
 * holds back the other side: interest in reading ends when the buffer is full, and
 * interest in writing begins when a write was short (level-triggered), or both are
 * remembered (edge-triggered). An end of file is passed on after the last byte.
 *
 *   program echo|proxy level|edge tcp|unix [NAME [UPSTREAM]]
 *
 * It prints the port that it listens on ("-" for AF_UNIX, where NAME is its abstract
 * name), and ends by SIGTERM. How a connection reads and writes, and how much at once,
 * goes by its number: every call that people use for it has its turn.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

struct connection {
    int fd;
    unsigned number;
    struct connection *peer; /* echo: itself */
    uint32_t interest;
    bool readable, writable, connecting;
    bool ended;              /* read to its end */
    bool shut;               /* and that was passed on to it */
    bool dead;
    struct connection *next_dead;
    size_t used, at, room;   /* bytes to be written to it, in a ring */
    char *out;
};

static int set, listener;
static bool edge, proxy, local;
static const char *upstream_name = "";
static struct connection *dead;
static volatile sig_atomic_t stop;

static void on_term(int signal)
{
    (void)signal;
    stop = 1;
}

static void die(const char *what)
{
    perror(what);
    exit(1);
}

/* ------------------------------------------------------------ one connection */

static long read_some(struct connection *c, char *to, size_t room)
{
    static const size_t sizes[] = {16384, 512, 65536, 4096, 1000};
    size_t size = sizes[c->number % 5];
    if (size > room)
        size = room;
    struct iovec iov[2] = {{to, size / 3}, {to + size / 3, size - size / 3}};
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = 2};
    switch (c->number % 4) {
    case 0:
        return read(c->fd, to, size);
    case 1:
        return recv(c->fd, to, size, 0);
    case 2:
        return readv(c->fd, iov, 2);
    default:
        return recvmsg(c->fd, &message, 0);
    }
}

static long write_some(struct connection *c, const char *from, size_t size)
{
    struct iovec iov[2] = {{(char *)(uintptr_t)from, size / 2}, {(char *)(uintptr_t)from + size / 2, size - size / 2}};
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = 2};
    switch (c->number / 2 % 4) {
    case 0:
        return write(c->fd, from, size);
    case 1:
        return send(c->fd, from, size, MSG_NOSIGNAL);
    case 2:
        return writev(c->fd, iov, 2);
    default:
        return sendmsg(c->fd, &message, MSG_NOSIGNAL);
    }
}

static void kill_one(struct connection *c)
{
    if (c->dead)
        return;
    c->dead = true;
    close(c->fd);
    c->next_dead = dead;
    dead = c;
}

static void kill_both(struct connection *c)
{
    kill_one(c->peer);
    kill_one(c);
}

static void bury(void)
{
    while (dead) {
        struct connection *c = dead;
        dead = c->next_dead;
        free(c->out);
        free(c);
    }
}

static struct connection *connection_new(int fd, unsigned number)
{
    static const size_t rooms[] = {4096, 32768, 2000, 131072};
    struct connection *c = calloc(1, sizeof *c);
    if (!c)
        die("calloc");
    c->fd = fd;
    c->number = number;
    c->peer = c;
    c->room = rooms[number / 3 % 4];
    c->out = malloc(c->room);
    int on = 1, bytes = number % 3 ? 16384 : 65536;
    if (!c->out)
        die("malloc");
    if (!local)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    return c;
}

static void watch(struct connection *c, int op)
{
    struct epoll_event event = {.events = c->interest, .data.ptr = c};
    if (epoll_ctl(set, op, c->fd, &event) < 0)
        die("epoll_ctl");
}

/* Level-triggered: what it waits for now. */
static void update(struct connection *c)
{
    uint32_t wanted = 0;
    if (c->dead || edge)
        return;
    if (!c->ended && !c->connecting && c->peer->used < c->peer->room)
        wanted |= EPOLLIN;
    if (c->used > 0 || c->connecting)
        wanted |= EPOLLOUT;
    if (wanted != c->interest) {
        c->interest = wanted;
        watch(c, EPOLL_CTL_MOD);
    }
}

/* From `c` to its peer. False: the connection is over. */
static bool pump(struct connection *c)
{
    struct connection *to = c->peer;
    bool progress = true;
    for (unsigned turn = 0; progress && (edge || turn < 2); turn++) {
        progress = false;
        if (c->readable && !c->ended && to->used < to->room) {
            size_t end = (to->at + to->used) % to->room;
            size_t piece = end < to->at ? to->at - end : to->room - end;
            long got = read_some(c, to->out + end, piece);
            if (got > 0) {
                to->used += (size_t)got;
                progress = true;
            } else if (got == 0) {
                c->ended = progress = true;
            } else if (errno == EAGAIN) {
                c->readable = false;
            } else if (errno != EINTR) {
                return false;
            }
        }
        if (to->used > 0 && to->writable) {
            size_t piece = to->used < to->room - to->at ? to->used : to->room - to->at;
            long put = write_some(to, to->out + to->at, piece);
            if (put > 0) {
                to->at = (to->at + (size_t)put) % to->room;
                to->used -= (size_t)put;
                progress = true;
            } else if (put < 0 && errno == EAGAIN) {
                to->writable = false;
            } else if (put < 0 && errno != EINTR) {
                return false;
            }
        }
    }
    if (c->ended && to->used == 0 && !to->shut && !to->connecting) {
        to->shut = true;
        if (c == to || c->shut)
            return false; /* both ways are over: close */
        if (shutdown(to->fd, SHUT_WR) < 0)
            return false;
    }
    return true;
}

static void on_event(struct connection *c, uint32_t events)
{
    if (c->dead)
        return;
    if (c->connecting && (events & (EPOLLOUT | EPOLLERR | EPOLLHUP))) {
        int error = 0;
        socklen_t length = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &length);
        if (error) {
            kill_both(c);
            return;
        }
        c->connecting = false;
    }
    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLERR | EPOLLHUP))
        c->readable = true;
    if (events & (EPOLLOUT | EPOLLERR | EPOLLHUP))
        c->writable = true;
    if (!edge) /* it tries, and waits when that was short */
        c->writable = c->peer->writable = true;
    if (c->peer->connecting)
        c->peer->writable = false;
    if ((events & (EPOLLIN | EPOLLRDHUP | EPOLLERR | EPOLLHUP) || (edge && c->readable)) && !pump(c)) {
        kill_both(c);
        return;
    }
    if ((c->used > 0 || c->peer->ended || edge) && !pump(c->peer)) {
        kill_both(c);
        return;
    }
    if ((events & EPOLLERR) && !c->ended && c->peer->used == c->peer->room)
        kill_both(c); /* nothing more can be learnt by reading */
    update(c);
    update(c->peer);
}

/* ---------------------------------------------------------------- addresses */

static socklen_t address_of(const char *name, unsigned number, struct sockaddr_storage *ret_address)
{
    memset(ret_address, 0, sizeof *ret_address);
    if (local) {
        struct sockaddr_un *un = (struct sockaddr_un *)ret_address;
        un->sun_family = AF_UNIX;
        size_t length = strlen(name);
        if (length > sizeof un->sun_path - 1)
            length = sizeof un->sun_path - 1;
        memcpy(un->sun_path + 1, name, length);
        return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + length);
    }
    struct sockaddr_in *in = (struct sockaddr_in *)ret_address;
    in->sin_family = AF_INET;
    /* Many addresses of this machine: no port is ever used up. */
    in->sin_addr.s_addr = htonl(0x7f000001u + number % 200);
    in->sin_port = htons((uint16_t)atoi(name));
    return sizeof *in;
}

static void connect_upstream(struct connection *client, unsigned number)
{
    struct sockaddr_storage address;
    socklen_t length = address_of(upstream_name, number, &address);
    int fd = socket(local ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("socket");
    struct connection *c = connection_new(fd, number + 7);
    c->peer = client;
    client->peer = c;
    if (connect(fd, (struct sockaddr *)&address, length) < 0) {
        if (errno != EINPROGRESS && errno != EAGAIN)
            die("connect");
        c->connecting = true;
    }
    c->writable = !c->connecting;
    c->interest = edge ? EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET : c->connecting ? EPOLLOUT : EPOLLIN;
    watch(c, EPOLL_CTL_ADD);
}

static void on_accept(void)
{
    static unsigned number;
    for (unsigned i = 0; i < 64; i++) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EAGAIN || errno == ECONNABORTED || errno == EINTR)
                return;
            die("accept4");
        }
        struct connection *c = connection_new(fd, number++);
        c->writable = true;
        if (proxy)
            connect_upstream(c, c->number);
        c->interest = edge ? EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET : EPOLLIN;
        watch(c, EPOLL_CTL_ADD);
    }
}

int main(int argc, char **argv)
{
    if (argc < 4)
        return 2;
    proxy = strcmp(argv[1], "proxy") == 0;
    edge = strcmp(argv[2], "edge") == 0;
    local = strcmp(argv[3], "unix") == 0;
    upstream_name = argc > 5 ? argv[5] : "";
    signal(SIGPIPE, SIG_IGN);
    struct sigaction action = {.sa_handler = on_term};
    sigaction(SIGTERM, &action, NULL);

    struct sockaddr_storage address;
    socklen_t length = address_of(local ? argv[4] : "0", 0, &address);
    listener = socket(local ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (bind(listener, (struct sockaddr *)&address, length) < 0 || listen(listener, 4096) < 0)
        die("listen");
    length = sizeof address;
    if (getsockname(listener, (struct sockaddr *)&address, &length) < 0)
        die("getsockname");
    set = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    if (set < 0 || epoll_ctl(set, EPOLL_CTL_ADD, listener, &event) < 0)
        die("epoll");
    if (local)
        puts("-");
    else
        printf("%d\n", ntohs(((struct sockaddr_in *)&address)->sin_port));
    fflush(stdout);

    while (!stop) {
        struct epoll_event events[64];
        int count = epoll_wait(set, events, 64, -1);
        if (count < 0 && errno != EINTR)
            die("epoll_wait");
        for (int i = 0; i < count; i++) {
            if (events[i].data.ptr)
                on_event(events[i].data.ptr, events[i].events);
            else
                on_accept();
        }
        bury();
    }
    close(listener);
    close(set);
    return 0;
}
