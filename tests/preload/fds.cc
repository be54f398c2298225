/* SPDX-License-Identifier: MIT
 *
 * The life of fds under the shim: close in all its forms, duplicates, numbers
 * that the library would like for itself.
 */
#include "scenario.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>

static void still_works(int epfd, int fds[2])
{
    char byte;
    for (int round = 0; round < 3; round++) {
        SAME(write(fds[1], "y", 1), 1);
        SAME(next_event(epfd, fds[0]), EPOLLIN);
        SAME(read(fds[0], &byte, 1), 1);
        SAME(next_event(epfd, fds[0], 0), 0);
    }
}

/* A set whose fds are all below 20, with its ring, and a way to close the rest. */
template <typename Close> static void close_the_rest(Close close_from)
{
    int fds[2];
    socket_pair(fds);
    int epfd = epoll_of(fds[0], EPOLLIN);
    warm_up(epfd);
    still_works(epfd, fds);
    MUST(epfd < 20);
    for (int fd = 100; fd < 120; fd++)
        SAME(dup2(fds[1], fd), fd);
    close_from(20);
    for (int fd = 100; fd < 120; fd++)
        SAME(fcntl(fd, F_GETFD), -1);
    still_works(epfd, fds);
    close_from(20);
    still_works(epfd, fds);
    /* The other end really is closed everywhere. */
    close(fds[1]);
    SAME(next_event(epfd, fds[0]), EPOLLIN | EPOLLHUP);
}

SCENARIO(CloseLoopLeavesTheSetWorking)
{
    close_the_rest([](int low) {
        for (int fd = low; fd < 1400; fd++) {
            int result = close(fd);
            MUST(result == 0 || errno == EBADF);
            if (fd >= 960)
                SAME(result, -1);
        }
    });
}

SCENARIO(CloseLoopBySyscallLeavesTheSetWorking)
{
    close_the_rest([](int low) {
        for (int fd = low; fd < 1400; fd++) {
            long result = syscall(SYS_close, fd);
            MUST(result == 0 || errno == EBADF);
        }
    });
}

SCENARIO(CloseRangeLeavesTheSetWorking)
{
    close_the_rest([](int low) { SAME(close_range(low, ~0u, 0), 0); });
}

SCENARIO(CloseRangeInPiecesLeavesTheSetWorking)
{
    close_the_rest([](int low) {
        for (unsigned first = low; first < 1400; first += 50)
            SAME(close_range(first, first + 49, 0), 0);
    });
}

SCENARIO(CloseRangeBySyscallLeavesTheSetWorking)
{
    close_the_rest([](int low) { SAME(syscall(SYS_close_range, low, ~0u, 0), 0); });
}

SCENARIO(ClosefromLeavesTheSetWorking)
{
    close_the_rest([](int low) { closefrom(low); });
}

/* As many programs do it: whatever is listed is closed. */
SCENARIO(ClosingAllOfProcSelfFdLeavesTheSetWorking)
{
    close_the_rest([](int low) {
        DIR *directory = opendir("/proc/self/fd");
        MUST(directory != nullptr);
        while (dirent *entry = readdir(directory)) {
            int fd = atoi(entry->d_name);
            if (fd >= low && fd != dirfd(directory))
                close(fd);
        }
        closedir(directory);
    });
}

SCENARIO(CloseRangeClosesTheSetsToo)
{
    int fds[2], again[2];
    tcp_pair(fds);
    int epfd = epoll_of(fds[0], EPOLLIN);
    warm_up(epfd);
    SAME(dup2(fds[1], 2000), 2000);
    SAME(close_range(3, 1999, 0), 0);
    SAME(epoll_ctl(epfd, EPOLL_CTL_DEL, fds[0], nullptr), -1);
    SAME(errno, EBADF);
    must_have_fin(2000);
    /* The next set begins from nothing. */
    socket_pair(again);
    int next = epoll_of(again[0], EPOLLIN);
    warm_up(next);
    still_works(next, again);
}

SCENARIO(CloseRangeMarksAndRefusesAsTheKernelDoes)
{
    int fds[2];
    socket_pair(fds);
    int epfd = epoll_of(fds[0], EPOLLIN);
    warm_up(epfd);
    SAME(close_range(10, 5, 0), -1);
    SAME(errno, EINVAL);
    SAME(close_range(3, 500, 1 << 20), -1);
    SAME(errno, EINVAL);
    SAME(close_range(3, 500, CLOSE_RANGE_CLOEXEC), 0);
    SAME(fcntl(fds[0], F_GETFD), FD_CLOEXEC);
    still_works(epfd, fds);
    SAME(close_range(fds[1], fds[1], CLOSE_RANGE_UNSHARE), 0);
    SAME(next_event(epfd, fds[0]), EPOLLIN | EPOLLHUP);
}

/* The numbers that the library keeps its own fds under are anybody's. */
SCENARIO(Dup2OntoEveryNumberWorks)
{
    int fds[2];
    socket_pair(fds);
    int epfd = epoll_of(fds[0], EPOLLIN);
    warm_up(epfd);
    for (int fd = 940; fd < 1100; fd++) {
        SAME(dup2(fds[1], fd), fd);
        SAME(write(fd, "z", 1), 1);
        SAME(next_event(epfd, fds[0]), EPOLLIN);
        char byte;
        SAME(read(fds[0], &byte, 1), 1);
    }
    for (int fd = 940; fd < 1100; fd++)
        SAME(close(fd), 0);
    still_works(epfd, fds);
}

SCENARIO(AFailedDup2LeavesItsTargetWatched)
{
    int fds[2];
    socket_pair(fds);
    int epfd = epoll_of(fds[0], EPOLLIN);
    warm_up(epfd);
    SAME(dup2(777, fds[0]), -1);
    SAME(errno, EBADF);
    SAME(dup2(-1, fds[0]), -1);
    SAME(dup3(fds[1], fds[0], 0x7777), -1);
    SAME(errno, EINVAL);
    SAME(dup3(fds[0], fds[0], 0), -1);
    SAME(errno, EINVAL);
    SAME(dup2(fds[0], fds[0]), fds[0]);
    SAME(dup2(fds[0], -5), -1);
    SAME(errno, EBADF);
    SAME(dup2(fds[0], 1 << 30), -1);
    SAME(errno, EBADF);
    still_works(epfd, fds);
}

SCENARIO(Dup2OverAWatchedSocketSendsItsFin)
{
    int fds[2], other[2];
    tcp_pair(fds);
    socket_pair(other);
    int epfd = epoll_of(fds[0], EPOLLIN);
    warm_up(epfd);
    SAME(next_event(epfd, fds[0], 0), 0);
    SAME(dup2(other[0], fds[0]), fds[0]);
    must_have_fin(fds[1]);
    SAME(write(other[1], "x", 1), 1);
    SAME(next_event(epfd, -1, 0), 0); /* the new file is not registered */
}

SCENARIO(DuplicatesKeepARegistrationAlive)
{
    int fds[2];
    tcp_pair(fds);
    int epfd = epoll_of(fds[0], EPOLLIN);
    warm_up(epfd);
    int copies[] = {dup(fds[0]), fcntl(fds[0], F_DUPFD, 50), fcntl(fds[0], F_DUPFD_CLOEXEC, 60),
                    dup3(fds[0], 70, O_CLOEXEC), static_cast<int>(syscall(SYS_dup, fds[0]))};
    for (int copy : copies)
        MUST(copy >= 0);
    int was = fds[0];
    SAME(close(fds[0]), 0);
    SAME(write(fds[1], "x", 1), 1);
    SAME(next_event(epfd, was), EPOLLIN);
    char byte;
    SAME(read(copies[0], &byte, 1), 1);
    SAME(next_event(epfd, was, 0), 0);
    for (int copy : copies)
        SAME(close(copy), 0);
    must_have_fin(fds[1]);
    SAME(next_event(epfd, was, 0), 0);
}

SCENARIO(TheSetAnswersToAllItsNames)
{
    int fds[2];
    socket_pair(fds);
    int epfd = epoll_of(fds[0], EPOLLIN);
    warm_up(epfd);
    int copy = dup(epfd), other = fcntl(epfd, F_DUPFD_CLOEXEC, 40);
    SAME(dup2(epfd, 41), 41);
    still_works(copy, fds);
    still_works(other, fds);
    SAME(close(epfd), 0);
    still_works(41, fds);
    SAME(close(copy), 0);
    SAME(close(41), 0);
    still_works(other, fds);
    SAME(close(other), 0);
    epoll_event event = {};
    SAME(epoll_wait(other, &event, 1, 0), -1);
    SAME(errno, EBADF);
}

template <typename Close> static void close_sends_fin(Close close_it)
{
    int fds[2];
    tcp_pair(fds);
    int epfd = epoll_of(fds[0], EPOLLIN | EPOLLRDHUP);
    warm_up(epfd);
    SAME(write(fds[1], "x", 1), 1);
    SAME(next_event(epfd, fds[0]), EPOLLIN);
    char byte;
    SAME(read(fds[0], &byte, 1), 1);
    SAME(next_event(epfd, fds[0], 0), 0);
    close_it(fds[0]);
    must_have_fin(fds[1]);
}

SCENARIO(CloseSendsFin)
{
    close_sends_fin([](int fd) { SAME(close(fd), 0); });
}
SCENARIO(SyscallCloseSendsFin)
{
    close_sends_fin([](int fd) { SAME(syscall(SYS_close, fd), 0); });
}
SCENARIO(FdopenAndFcloseSendFin)
{
    close_sends_fin([](int fd) {
        FILE *stream = fdopen(fd, "r+");
        MUST(stream != nullptr);
        SAME(fclose(stream), 0);
    });
}
SCENARIO(FreopenSendsFin)
{
    close_sends_fin([](int fd) {
        FILE *stream = fdopen(fd, "r+");
        MUST(stream != nullptr);
        MUST(freopen("/dev/null", "r", stream) == stream);
        SAME(fclose(stream), 0);
    });
}
SCENARIO(CloseRangeSendsFin)
{
    close_sends_fin([](int fd) { SAME(close_range(fd, fd, 0), 0); });
}
SCENARIO(Dup3SendsFin)
{
    close_sends_fin([](int fd) {
        int null = open("/dev/null", O_RDONLY);
        SAME(dup3(null, fd, O_CLOEXEC), fd);
    });
}
SCENARIO(SyscallDup2SendsFin)
{
    close_sends_fin([](int fd) {
        int null = open("/dev/null", O_RDONLY);
        SAME(syscall(SYS_dup3, null, fd, 0), fd);
    });
}

SCENARIO(AStreamOnAWatchedSocketStaysWatched)
{
    int fds[2];
    socket_pair(fds);
    int epfd = epoll_of(fds[0], EPOLLIN);
    warm_up(epfd);
    SAME(write(fds[1], "one\n", 4), 4);
    SAME(next_event(epfd, fds[0]), EPOLLIN);
    FILE *stream = fdopen(fds[0], "r+");
    char text[16];
    MUST(fgets(text, sizeof text, stream) != nullptr);
    SAME(next_event(epfd, fds[0], 0), 0);
    SAME(write(fds[1], "two\n", 4), 4);
    SAME(next_event(epfd, fds[0]), EPOLLIN);
    MUST(fgets(text, sizeof text, stream) != nullptr);
    SAME(strcmp(text, "two\n"), 0);
    SAME(fclose(stream), 0);
    must_have_fin(fds[1]);
}

/* The same number, another file, watched again, many times. */
SCENARIO(ReusedNumbersAreNewFds)
{
    int epfd = epoll_create1(0);
    for (int round = 0; round < 300; round++) {
        int fds[2];
        if (round % 3 == 0) {
            tcp_pair(fds);
        } else if (round % 3 == 1) {
            socket_pair(fds);
        } else {
            SAME(pipe2(fds, O_NONBLOCK), 0);
        }
        add(epfd, fds[0], EPOLLIN);
        SAME(next_event(epfd, fds[0], 0), 0);
        SAME(write(fds[1], "x", 1), 1);
        SAME(next_event(epfd, fds[0]), EPOLLIN);
        if (round % 2) {
            close(fds[1]);
            close(fds[0]);
        } else {
            close(fds[0]);
            close(fds[1]);
        }
        SAME(next_event(epfd, -1, 0), 0);
    }
}

SCENARIO(EveryReadCallLeavesNoStaleEvent)
{
    int fds[2];
    tcp_pair(fds);
    int epfd = epoll_of(fds[0], EPOLLIN);
    char buffer[16];
    iovec iov[2] = {{buffer, 2}, {buffer + 2, 14}};
    for (int round = 0; round < 60; round++) {
        SAME(write(fds[1], "abc", 3), 3);
        SAME(next_event(epfd, fds[0]), EPOLLIN);
        msghdr message = {};
        message.msg_iov = iov;
        message.msg_iovlen = 2;
        mmsghdr many[2] = {};
        many[0].msg_hdr = many[1].msg_hdr = message;
        /* Neither a look nor half a read makes it go away. */
        SAME(recv(fds[0], buffer, 16, MSG_PEEK), 3);
        SAME(next_event(epfd, fds[0], 0), EPOLLIN);
        SAME(recv(fds[0], buffer, 1, 0), 1);
        SAME(next_event(epfd, fds[0], 0), EPOLLIN);
        switch (round % 8) {
        case 0: SAME(read(fds[0], buffer, 16), 2); break;
        case 1: SAME(readv(fds[0], iov, 2), 2); break;
        case 2: SAME(recv(fds[0], buffer, 16, MSG_DONTWAIT), 2); break;
        case 3: SAME(recvfrom(fds[0], buffer, 16, 0, nullptr, nullptr), 2); break;
        case 4: SAME(recvmsg(fds[0], &message, 0), 2); break;
        case 5: SAME(recvmmsg(fds[0], many, 2, MSG_DONTWAIT, nullptr), 1); break;
        case 6: SAME(syscall(SYS_read, fds[0], buffer, 16), 2); break;
        case 7: SAME(syscall(SYS_recvfrom, fds[0], buffer, 16, 0, nullptr, nullptr), 2); break;
        }
        SAME(next_event(epfd, fds[0], 0), 0);
        errno = 0;
        SAME(read(fds[0], buffer, 16), -1);
        SAME(errno, EAGAIN);
        SAME(next_event(epfd, fds[0], 0), 0);
    }
}

/* Closed where nobody looks, by a system call of the program's own, and made anew
 * as something that is no socket. */
SCENARIO(ANumberThatWasReplacedUnseenIsReadAndWritten)
{
#if defined(__x86_64__)
    int fds[2], ends[2];
    socket_pair(fds);
    int epfd = epoll_of(fds[0], EPOLLIN | EPOLLET);
    warm_up(epfd);
    for (int round = 0; round < 3; round++) {
        char byte;
        SAME(write(fds[1], "y", 1), 1);
        SAME(next_event(epfd, fds[0]), EPOLLIN);
        SAME(read(fds[0], &byte, 1), 1);
    }
    SAME(pipe(ends), 0);
    long result = SYS_dup2;
    asm volatile("syscall" : "+a"(result) : "D"(ends[1]), "S"(fds[0]) : "rcx", "r11", "memory");
    SAME(result, fds[0]);
    SAME(write(fds[0], "pipe", 4), 4);
    char text[8];
    SAME(read(ends[0], text, sizeof text), 4);
    errno = 0;
    SAME(read(fds[0], text, sizeof text), -1); /* the end for writing */
    SAME(errno, EBADF);
#else
    warm_up(epoll_create1(0));
#endif
}

SCENARIO(HintsLeaveErrnoAlone)
{
    int fds[2];
    socket_pair(fds);
    int epfd = epoll_of(fds[0], EPOLLIN);
    warm_up(epfd);
    char byte;
    errno = 4711;
    SAME(write(fds[1], "xx", 2), 2);
    SAME(next_event(epfd, fds[0]), EPOLLIN);
    SAME(read(fds[0], &byte, 1), 1);
    SAME(recv(fds[0], &byte, 1, 0), 1);
    int copy = dup(fds[0]);
    SAME(close(copy), 0);
    SAME(fcntl(fds[0], F_SETFL, O_NONBLOCK), 0);
    int on = 1;
    SAME(ioctl(fds[0], FIONBIO, &on), 0);
    SAME(errno, 4711);
    SAME(read(999, &byte, 1), -1);
    SAME(errno, EBADF);
    SAME(read(fds[0], nullptr, 0), 0);
    SAME(recvmsg(fds[0], nullptr, 0), -1);
    MUST(errno == EFAULT);
    iovec *volatile nowhere = nullptr; /* unseen by the compiler, which warns of it */
    SAME(readv(fds[0], nowhere, 1), -1);
    SAME(errno, EFAULT);
    SAME(sendmsg(fds[0], nullptr, 0), -1);
    SAME(errno, EFAULT);
}

SCENARIO(PlainErrorsAreTheKernels)
{
    epoll_event event = {};
    SAME(epoll_create(0), -1);
    SAME(errno, EINVAL);
    SAME(epoll_create(-1), -1);
    SAME(errno, EINVAL);
    SAME(epoll_create1(1), -1);
    SAME(errno, EINVAL);
    int epfd = epoll_create(1);
    MUST(epfd >= 0);
    SAME(fcntl(epfd, F_GETFD), 0);
    int other = epoll_create1(EPOLL_CLOEXEC);
    SAME(fcntl(other, F_GETFD), FD_CLOEXEC);
    warm_up(epfd);
    SAME(epoll_wait(epfd, &event, 0, 0), -1);
    SAME(errno, EINVAL);
    volatile int negative = -1; /* unseen by the compiler, which warns of it */
    SAME(epoll_wait(epfd, &event, negative, 0), -1);
    SAME(errno, EINVAL);
    SAME(epoll_wait(0, &event, 1, 0), -1);
    SAME(errno, EINVAL);
    SAME(epoll_wait(-1, &event, 1, 0), -1);
    SAME(errno, EBADF);
    SAME(epoll_ctl(epfd, EPOLL_CTL_ADD, epfd, &event), -1);
    SAME(errno, EINVAL);
    SAME(epoll_ctl(epfd, EPOLL_CTL_ADD, 999, &event), -1);
    SAME(errno, EBADF);
    timespec bad = {0, 2000000000};
    SAME(epoll_pwait2(epfd, &event, 1, &bad, nullptr), -1);
    SAME(errno, EINVAL);
    sigset_t mask;
    sigemptyset(&mask);
    SAME(epoll_pwait(epfd, &event, 1, 0, &mask), 0);
    timespec soon = {0, 1000000};
    SAME(epoll_pwait2(epfd, &event, 1, &soon, &mask), 0);
    int file = open("/proc/self/exe", O_RDONLY);
    SAME(epoll_ctl(epfd, EPOLL_CTL_ADD, file, &event), -1);
    SAME(errno, EPERM);
}

SCENARIO(EveryKindOfFdIsWatched)
{
    int epfd = epoll_create1(0);
    warm_up(epfd);
    unsigned short port = 0;
    int server = listener(&port);
    add(epfd, server, EPOLLIN);
    SAME(next_event(epfd, server, 0), 0);
    int fds[2];
    SAME(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fds), 0);
    add(epfd, fds[0], EPOLLIN);
    SAME(write(fds[1], "x", 1), 1);
    SAME(next_event(epfd, fds[0]), EPOLLIN);
    close(fds[0]);
    int event = eventfd(0, EFD_NONBLOCK), semaphore = eventfd(2, EFD_SEMAPHORE);
    uint64_t value = 1;
    add(epfd, event, EPOLLIN);
    SAME(next_event(epfd, event, 0), 0);
    SAME(write(event, &value, 8), 8);
    SAME(next_event(epfd, event), EPOLLIN);
    SAME(read(event, &value, 8), 8);
    SAME(next_event(epfd, event, 0), 0);
    add(epfd, semaphore, EPOLLIN);
    SAME(next_event(epfd, semaphore, 0), EPOLLIN);
    SAME(read(semaphore, &value, 8), 8);
    SAME(next_event(epfd, semaphore, 0), EPOLLIN);
    SAME(read(semaphore, &value, 8), 8);
    SAME(next_event(epfd, semaphore, 0), 0);
    int ends[2];
    SAME(pipe(ends), 0);
    add(epfd, ends[0], EPOLLIN);
    SAME(write(ends[1], "x", 1), 1);
    SAME(next_event(epfd, ends[0]), EPOLLIN);
    close(ends[1]);
    SAME(next_event(epfd, ends[0]), EPOLLIN | EPOLLHUP);
    close(ends[0]);
    SAME(next_event(epfd, -1, 0), 0);
}

/* So few numbers that the library's own must lie among the program's. */
SCENARIO_WITHOUT_RING(ASmallFdLimitIsEnough)
{
    rlimit limit = {16, 16};
    SAME(setrlimit(RLIMIT_NOFILE, &limit), 0);
    int fds[2];
    socket_pair(fds);
    int epfd = epoll_of(fds[0], EPOLLIN);
    still_works(epfd, fds);
    /* Whatever is left can be used up, and the set goes on. */
    int count = 0;
    while (dup(0) >= 0)
        count++;
    SAME(errno, EMFILE);
    MUST(count > 3);
    still_works(epfd, fds);
    SAME(epoll_create1(0), -1);
    SAME(errno, EMFILE);
}

/* As a sandbox does it: what is open stays open, and epoll does not mind. */
SCENARIO(ALimitBelowWhatIsOpenChangesNothing)
{
    for (unsigned round = 0; round < 4; round++) {
        rlim_t low = round & 1 ? 2 : 0;
        const int count = 5;
        int pairs[count][2], edges[2];
        socket_pair(edges);
        int epfd = epoll_create1(0);
        for (int i = 0; i < count; i++) {
            i % 2 ? tcp_pair(pairs[i]) : socket_pair(pairs[i]);
            add(epfd, pairs[i][0], EPOLLIN);
        }
        add(epfd, edges[0], EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET);
        SAME(next_event(epfd, edges[0]), EPOLLOUT);
        if (round & 2) /* which home is asked first alternates */
            SAME(next_event(epfd, edges[0], 0), 0);
        rlimit before, limit;
        SAME(getrlimit(RLIMIT_NOFILE, &before), 0);
        limit = before;
        limit.rlim_cur = low;
        SAME(setrlimit(RLIMIT_NOFILE, &limit), 0);
        for (int turn = 0; turn < 5; turn++) {
            for (int i = 0; i < count; i++)
                SAME(write(pairs[i][1], "abc", 3), 3);
            SAME(write(edges[1], "x", 1), 1);
            bool edge = false;
            /* Byte by byte: all are reported in one wait until all is read. */
            for (int left = 3; left > 0; left--) {
                int ready = 0;
                for (int waits = 0; ready < count && waits < (left == 3 ? 100 : 1); waits++) {
                    epoll_event events[16];
                    int got = epoll_wait(epfd, events, 16, left == 3 ? 5000 : 0);
                    MUST(got > 0);
                    ready = 0;
                    for (int i = 0; i < got; i++) {
                        if (events[i].data.fd != edges[0]) {
                            SAME(events[i].events, EPOLLIN);
                            ready++;
                            continue;
                        }
                        SAME(events[i].events, EPOLLIN | EPOLLOUT);
                        MUST(!edge);
                        edge = true;
                    }
                }
                SAME(ready, count);
                char byte;
                for (int i = 0; i < count; i++)
                    SAME(read(pairs[i][0], &byte, 1), 1);
            }
            MUST(edge);
            char byte;
            SAME(read(edges[0], &byte, 1), 1);
            epoll_event event;
            SAME(epoll_wait(epfd, &event, 1, 0), 0);
        }
        SAME(setrlimit(RLIMIT_NOFILE, &before), 0);
        for (int i = 0; i < count; i++) {
            close(pairs[i][0]);
            must_have_fin(pairs[i][1]);
            close(pairs[i][1]);
        }
        close(edges[0]);
        close(edges[1]);
        close(epfd);
    }
}

SCENARIO(ManySetsLeaveNothingBehind)
{
    auto open_fds = [] {
        int count = 0;
        DIR *directory = opendir("/proc/self/fd");
        while (readdir(directory))
            count++;
        closedir(directory);
        return count;
    };
    {
        int first = epoll_create1(0);
        warm_up(first);
        close(first);
    }
    int before = open_fds();
    for (int round = 0; round < 200; round++) {
        int fds[2];
        socket_pair(fds);
        int epfd = epoll_of(fds[0], EPOLLIN);
        still_works(epfd, fds);
        if (round % 2)
            close(epfd);
        close(fds[0]);
        close(fds[1]);
        if (round % 2 == 0)
            close(epfd);
    }
    SAME(open_fds(), before);
}
