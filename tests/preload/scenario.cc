/* SPDX-License-Identifier: MIT */
#include "scenario.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <sys/wait.h>

static Scenario *all;
char **scenario_arguments;
const char *scenario_program;

Scenario::Scenario(const char *name_, void (*run_)(), bool rides) : name(name_), run(run_), rides_the_ring(rides)
{
    next = all;
    all = this;
}

void broken(const char *file, int line, const char *what)
{
    fprintf(stderr, "%s:%d: %s does not hold (errno %d)\n", file, line, what, errno);
    _exit(1);
}

void differs(const char *file, int line, const char *what, long actual, long expected)
{
    fprintf(stderr, "%s:%d: %s is %ld, not %ld (errno %d)\n", file, line, what, actual, expected, errno);
    _exit(1);
}

bool under_shim()
{
    return getenv("RINGPOLL_PRELOAD_TEST_SHIM") != nullptr;
}

void socket_pair(int fds[2])
{
    SAME(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
}

int listener(unsigned short *port)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    MUST(fd >= 0);
    int on = 1;
    SAME(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on), 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(*port);
    SAME(bind(fd, reinterpret_cast<sockaddr *>(&address), sizeof address), 0);
    SAME(listen(fd, 64), 0);
    socklen_t length = sizeof address;
    SAME(getsockname(fd, reinterpret_cast<sockaddr *>(&address), &length), 0);
    *port = ntohs(address.sin_port);
    return fd;
}

void tcp_pair(int fds[2])
{
    unsigned short port = 0;
    int server = listener(&port);
    fds[0] = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(port);
    SAME(connect(fds[0], reinterpret_cast<sockaddr *>(&address), sizeof address), 0);
    fds[1] = accept4(server, nullptr, nullptr, SOCK_NONBLOCK);
    MUST(fds[1] >= 0);
    SAME(fcntl(fds[0], F_SETFL, fcntl(fds[0], F_GETFL) | O_NONBLOCK), 0);
    close(server);
}

void add(int epfd, int fd, uint32_t events)
{
    epoll_event event = {};
    event.events = events;
    event.data.fd = fd;
    SAME(epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &event), 0);
}

int epoll_of(int fd, uint32_t events)
{
    int epfd = epoll_create1(EPOLL_CLOEXEC);
    MUST(epfd >= 0);
    add(epfd, fd, events);
    return epfd;
}

uint32_t next_event(int epfd, int fd, int timeout_ms)
{
    epoll_event event = {};
    int count = epoll_wait(epfd, &event, 1, timeout_ms);
    MUST(count >= 0);
    if (count == 0)
        return 0;
    SAME(event.data.fd, fd);
    return event.events;
}

void warm_up(int epfd)
{
    int fds[2];
    char byte;
    socket_pair(fds);
    add(epfd, fds[0], EPOLLIN);
    SAME(write(fds[1], "x", 1), 1);
    SAME(next_event(epfd, fds[0]), EPOLLIN);
    SAME(read(fds[0], &byte, 1), 1);
    SAME(epoll_ctl(epfd, EPOLL_CTL_DEL, fds[0], nullptr), 0);
    close(fds[0]);
    close(fds[1]);
}

void must_have_fin(int peer)
{
    pollfd look = {peer, POLLIN, 0};
    SAME(poll(&look, 1, 5000), 1);
    char bytes[256];
    ssize_t count;
    while ((count = read(peer, bytes, sizeof bytes)) > 0) {
    }
    SAME(count, 0);
}

int ended(pid_t pid)
{
    int status = 0;
    MUST(pid > 0);
    while (waitpid(pid, &status, 0) != pid)
        SAME(errno, EINTR);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
}

int main(int argc, char **argv)
{
    scenario_program = argv[0];
    if (argc == 2 && strcmp(argv[1], "--list") == 0) {
        for (Scenario *at = all; at; at = at->next)
            printf("%s %d\n", at->name, at->rides_the_ring);
        return 0;
    }
    for (Scenario *at = all; argc > 1 && at; at = at->next) {
        if (strcmp(at->name, argv[1]) != 0)
            continue;
        scenario_arguments = argv + 2;
        alarm(60); /* a hang is a failure, by SIGALRM */
        at->run();
        return 0;
    }
    fprintf(stderr, "usage: scenarios --list | NAME\n");
    return 2;
}
