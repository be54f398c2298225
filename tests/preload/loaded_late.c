/* SPDX-License-Identifier: MIT
 *
 * A library that is loaded when the program is long running: one round over a
 * set of its own.
 */
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

int round_trip(void);

__attribute__((visibility("default"))) int round_trip(void)
{
    int fds[2];
    struct epoll_event event = {.events = EPOLLIN}, got;
    char byte;
    int epfd = epoll_create1(EPOLL_CLOEXEC);
    if (epfd < 0 || socketpair(AF_UNIX, SOCK_STREAM, 0, fds))
        return 1;
    event.data.fd = fds[0];
    if (epoll_ctl(epfd, EPOLL_CTL_ADD, fds[0], &event) || write(fds[1], "m", 1) != 1)
        return 2;
    if (epoll_wait(epfd, &got, 1, 5000) != 1 || got.data.fd != fds[0] || got.events != EPOLLIN)
        return 3;
    if (read(fds[0], &byte, 1) != 1 || epoll_wait(epfd, &got, 1, 0) != 0)
        return 4;
    close(fds[0]);
    close(fds[1]);
    return close(epfd) ? 5 : 0;
}
