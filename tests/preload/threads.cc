/* SPDX-License-Identifier: MIT
 *
 * Cancellation, signal handlers, other threads' closes, passed fds, and the
 * other ways to wait for a set.
 */
#include "scenario.h"
#include "tests/support/asleep.h"

#include <atomic>
#include <dlfcn.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>

struct Waiter {
    int epfd = -1;
    int timeout_ms = -1;
    bool disabled = false;
    std::atomic<pid_t> tid{0};
    std::atomic<bool> cleaned{false};
    std::atomic<int> result{-2};
};

static void clean(void *at)
{
    static_cast<Waiter *>(at)->cleaned = true;
}

static void *waits(void *at)
{
    Waiter *waiter = static_cast<Waiter *>(at);
    epoll_event event = {};
    if (waiter->disabled)
        pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, nullptr);
    pthread_cleanup_push(clean, waiter);
    waiter->tid = static_cast<pid_t>(syscall(SYS_gettid));
    waiter->result = epoll_wait(waiter->epfd, &event, 1, waiter->timeout_ms);
    pthread_cleanup_pop(0);
    return nullptr;
}

/* Asleep in a system call, or not there any more. */
static void wait_until_asleep(const Waiter &waiter)
{
    while (waiter.tid == 0)
        sched_yield();
    std::string directory = "/proc/self/task/" + std::to_string(waiter.tid.load());
    while (access(directory.c_str(), F_OK) == 0 && !is_asleep(directory))
        sched_yield();
}

static void quiet_set(int fds[2], int *epfd)
{
    socket_pair(fds);
    *epfd = epoll_of(fds[0], EPOLLIN);
}

SCENARIO(CancelEndsAWaitThatSleeps)
{
    for (int round = 0; round < 30; round++) {
        int fds[2];
        Waiter waiter;
        quiet_set(fds, &waiter.epfd);
        waiter.timeout_ms = round % 2 ? -1 : 50000;
        pthread_t thread;
        void *answer;
        SAME(pthread_create(&thread, nullptr, waits, &waiter), 0);
        wait_until_asleep(waiter);
        SAME(pthread_cancel(thread), 0);
        SAME(pthread_join(thread, &answer), 0);
        MUST(answer == PTHREAD_CANCELED);
        MUST(waiter.cleaned);
        SAME(waiter.result, -2);
        /* The set is whole: this thread can use it now. */
        SAME(write(fds[1], "x", 1), 1);
        SAME(next_event(waiter.epfd, fds[0]), EPOLLIN);
        char byte;
        SAME(read(fds[0], &byte, 1), 1); /* unread, it would be a reset */
        close(fds[0]);
        must_have_fin(fds[1]);
        close(fds[1]);
        close(waiter.epfd);
    }
}

/* At whatever instant it comes: between the look and the sleep too. */
SCENARIO(CancelAtAnyInstantEndsAWait)
{
    int fds[2];
    int epfd;
    quiet_set(fds, &epfd);
    for (int round = 0; round < 200; round++) {
        Waiter waiter;
        waiter.epfd = epfd;
        pthread_t thread;
        void *answer;
        SAME(pthread_create(&thread, nullptr, waits, &waiter), 0);
        while (waiter.tid == 0)
            sched_yield();
        for (volatile int spin = 0; spin < round * 50; spin = spin + 1) {
        }
        SAME(pthread_cancel(thread), 0);
        SAME(pthread_join(thread, &answer), 0);
        MUST(answer == PTHREAD_CANCELED);
        MUST(waiter.cleaned);
    }
    SAME(write(fds[1], "x", 1), 1);
    SAME(next_event(epfd, fds[0]), EPOLLIN);
}

static void *busy_waits(void *at)
{
    Waiter *waiter = static_cast<Waiter *>(at);
    epoll_event event = {};
    pthread_cleanup_push(clean, waiter);
    waiter->tid = static_cast<pid_t>(syscall(SYS_gettid));
    for (;;)
        if (epoll_wait(waiter->epfd, &event, 1, -1) == 1)
            waiter->result = waiter->result + 1;
    pthread_cleanup_pop(0);
    return nullptr;
}

SCENARIO(CancelEndsAWaitThatAlwaysHasEvents)
{
    int fds[2];
    Waiter waiter;
    quiet_set(fds, &waiter.epfd);
    SAME(write(fds[1], "x", 1), 1);
    pthread_t thread;
    void *answer;
    SAME(pthread_create(&thread, nullptr, busy_waits, &waiter), 0);
    while (waiter.result < 100)
        sched_yield();
    SAME(pthread_cancel(thread), 0);
    SAME(pthread_join(thread, &answer), 0);
    MUST(answer == PTHREAD_CANCELED);
    MUST(waiter.cleaned);
}

/* Switched off, cancellation is not noticed: neither ended nor interrupted. */
SCENARIO(CancelDoesNotReachAThreadThatRefusesIt)
{
    int fds[2];
    Waiter waiter;
    quiet_set(fds, &waiter.epfd);
    waiter.disabled = true;
    pthread_t thread;
    void *answer;
    SAME(pthread_create(&thread, nullptr, waits, &waiter), 0);
    wait_until_asleep(waiter);
    SAME(pthread_cancel(thread), 0);
    SAME(write(fds[1], "x", 1), 1);
    SAME(pthread_join(thread, &answer), 0);
    MUST(answer == nullptr);
    SAME(waiter.result, 1);
}

static void *waits_cancelled(void *at)
{
    Waiter *waiter = static_cast<Waiter *>(at);
    epoll_event event = {};
    pthread_cleanup_push(clean, waiter);
    pthread_cancel(pthread_self());
    waiter->result = epoll_wait(waiter->epfd, &event, 1, 0);
    pthread_cleanup_pop(0);
    return nullptr;
}

SCENARIO(AWaitActsUponAnEarlierCancel)
{
    int fds[2];
    Waiter waiter;
    quiet_set(fds, &waiter.epfd);
    warm_up(waiter.epfd);
    SAME(write(fds[1], "x", 1), 1);
    pthread_t thread;
    void *answer;
    SAME(pthread_create(&thread, nullptr, waits_cancelled, &waiter), 0);
    SAME(pthread_join(thread, &answer), 0);
    MUST(answer == PTHREAD_CANCELED);
    SAME(waiter.result, -2);
    SAME(next_event(waiter.epfd, fds[0]), EPOLLIN);
}

static void *closes_cancelled(void *at)
{
    pthread_cancel(pthread_self());
    close(*static_cast<int *>(at));
    return nullptr;
}

/* A close that a cancel forestalls leaves the fd open, so also registered. */
SCENARIO(ACancelledCloseClosesNothing)
{
    int fds[2], epfd;
    quiet_set(fds, &epfd);
    warm_up(epfd);
    pthread_t thread;
    void *answer;
    SAME(pthread_create(&thread, nullptr, closes_cancelled, &fds[0]), 0);
    SAME(pthread_join(thread, &answer), 0);
    MUST(answer == PTHREAD_CANCELED);
    SAME(write(fds[1], "x", 1), 1);
    SAME(next_event(epfd, fds[0]), EPOLLIN);
}

/* ---------------------------------------------------------- other threads */

SCENARIO(AnotherThreadsCloseSendsFinAtOnce)
{
    int fds[2], other[2];
    tcp_pair(fds);
    socket_pair(other);
    Waiter waiter;
    waiter.epfd = epoll_of(fds[0], EPOLLIN);
    add(waiter.epfd, other[0], EPOLLIN);
    pthread_t thread;
    SAME(pthread_create(&thread, nullptr, waits, &waiter), 0);
    wait_until_asleep(waiter);
    SAME(close(fds[0]), 0);
    must_have_fin(fds[1]);
    SAME(write(other[1], "x", 1), 1);
    SAME(pthread_join(thread, nullptr), 0);
    SAME(waiter.result, 1);
}

/* The ring's thread cannot be woken: that would take an fd, and there is none. */
SCENARIO(AnotherThreadsCloseWithoutAFreeFdSendsFin)
{
    int fds[2], other[2];
    tcp_pair(fds);
    socket_pair(other);
    Waiter waiter;
    waiter.epfd = epoll_of(fds[0], EPOLLIN);
    add(waiter.epfd, other[0], EPOLLIN);
    pthread_t thread;
    SAME(pthread_create(&thread, nullptr, waits, &waiter), 0);
    wait_until_asleep(waiter);
    rlimit before, limit;
    SAME(getrlimit(RLIMIT_NOFILE, &before), 0);
    limit = before;
    limit.rlim_cur = 3;
    SAME(setrlimit(RLIMIT_NOFILE, &limit), 0);
    SAME(close(fds[0]), 0);
    must_have_fin(fds[1]);
    SAME(write(other[1], "x", 1), 1);
    SAME(pthread_join(thread, nullptr), 0);
    SAME(waiter.result, 1);
    SAME(setrlimit(RLIMIT_NOFILE, &before), 0);
}

/* ----------------------------------------------- waits that are left by a jump */

static sigjmp_buf out_of_the_wait;

static void jumps(int)
{
    siglongjmp(out_of_the_wait, 1);
}

/* The wait lets a pending signal in, whose handler jumps over it. */
static void leave_a_wait(int epfd)
{
    struct sigaction action = {};
    action.sa_handler = jumps;
    SAME(sigaction(SIGUSR1, &action, nullptr), 0);
    sigset_t none, usr1;
    sigemptyset(&none);
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    SAME(pthread_sigmask(SIG_BLOCK, &usr1, nullptr), 0);
    SAME(pthread_kill(pthread_self(), SIGUSR1), 0);
    if (sigsetjmp(out_of_the_wait, 1) == 0) {
        epoll_event event = {};
        epoll_pwait(epfd, &event, 1, -1, &none);
        MUST(!"it returned");
    }
}

SCENARIO(AWaitThatIsLeftByAJumpLosesNothing)
{
    const uint32_t kinds[] = {EPOLLIN, EPOLLIN | static_cast<uint32_t>(EPOLLET), EPOLLIN | static_cast<uint32_t>(EPOLLONESHOT)};
    for (uint32_t flags : kinds) {
        int fds[2], later[2];
        socket_pair(fds);
        tcp_pair(later);
        int epfd = epoll_of(fds[0], flags);
        warm_up(epfd);
        for (int turn = 0; turn < 3; turn++) {
            leave_a_wait(epfd);
            char taken;
            SAME(write(fds[1], "x", 1), 1);
            SAME(next_event(epfd, fds[0]), EPOLLIN);
            SAME(read(fds[0], &taken, 1), 1);
            SAME(next_event(epfd, fds[0], 0), 0);
            epoll_event event = {};
            event.events = flags;
            event.data.fd = fds[0];
            SAME(epoll_ctl(epfd, EPOLL_CTL_MOD, fds[0], &event), 0);
        }
        leave_a_wait(epfd);
        add(epfd, later[0], EPOLLIN);
        SAME(write(later[1], "x", 1), 1);
        SAME(next_event(epfd, later[0]), EPOLLIN);
        char byte;
        SAME(read(later[0], &byte, 1), 1);
        leave_a_wait(epfd);
        close(fds[0]);
        close(epfd);
        must_have_fin(fds[1]);
        close(fds[1]);
        close(later[0]);
        must_have_fin(later[1]);
        close(later[1]);
    }
}

static void *closes(void *at)
{
    SAME(close(*static_cast<int *>(at)), 0);
    return nullptr;
}

/* The ring's thread seems to be in its wait, and is not. */
SCENARIO(AnotherThreadsCloseAfterAJumpSendsFin)
{
    for (int family = 0; family < 2; family++) {
        int fds[2], more[2];
        family ? tcp_pair(fds) : socket_pair(fds);
        socket_pair(more);
        int epfd = epoll_of(fds[0], EPOLLIN);
        add(epfd, more[0], EPOLLIN);
        warm_up(epfd);
        leave_a_wait(epfd);
        pthread_t thread;
        SAME(pthread_create(&thread, nullptr, closes, &fds[0]), 0);
        SAME(pthread_join(thread, nullptr), 0);
        must_have_fin(fds[1]);
        close(fds[1]);
        /* The set itself, by another one. */
        SAME(pthread_create(&thread, nullptr, closes, &epfd), 0);
        SAME(pthread_join(thread, nullptr), 0);
        close(more[0]);
        must_have_fin(more[1]);
        close(more[1]);
    }
}

static void *waits_a_moment(void *at)
{
    Waiter *waiter = static_cast<Waiter *>(at);
    epoll_event event = {};
    waiter->result = epoll_wait(waiter->epfd, &event, 1, 5000);
    return nullptr;
}

SCENARIO(AnotherThreadsWaitAfterAJumpSeesEvents)
{
    int fds[2];
    socket_pair(fds);
    Waiter waiter;
    waiter.epfd = epoll_of(fds[0], EPOLLIN);
    warm_up(waiter.epfd);
    leave_a_wait(waiter.epfd);
    SAME(write(fds[1], "x", 1), 1);
    pthread_t thread;
    SAME(pthread_create(&thread, nullptr, waits_a_moment, &waiter), 0);
    SAME(pthread_join(thread, nullptr), 0);
    SAME(waiter.result, 1);
    SAME(next_event(waiter.epfd, fds[0]), EPOLLIN);
}

/* -------------------------------------------------------------- two waiters */

SCENARIO(TwoThreadsWaitOnOneSet)
{
    int fds[2];
    socket_pair(fds);
    int epfd = epoll_of(fds[0], EPOLLIN);
    warm_up(epfd);
    Waiter waiters[2];
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
        waiters[i].epfd = epfd;
        SAME(pthread_create(&threads[i], nullptr, waits, &waiters[i]), 0);
        wait_until_asleep(waiters[i]);
    }
    /* Nobody reads it, so both see it. */
    SAME(write(fds[1], "x", 1), 1);
    for (int i = 0; i < 2; i++) {
        SAME(pthread_join(threads[i], nullptr), 0);
        SAME(waiters[i].result, 1);
    }
    char byte;
    SAME(read(fds[0], &byte, 1), 1);
    close(fds[0]);
    must_have_fin(fds[1]);
}

/* ----------------------------------------------------------------- signals */

static int handler_epfd, handler_pair[2], handler_extra = -1;
static volatile sig_atomic_t handler_runs;
static std::atomic<int> handler_errors; /* a bit for each step that failed */

/* What a handler may do with epoll: any of it, at any time. */
static void handler_works(int)
{
    int saved = errno;
    char byte;
    epoll_event event = {};
    handler_runs = handler_runs + 1;
    switch (handler_runs % 6) {
    case 0: {
        int copy = dup(handler_pair[0]);
        if (copy < 0 || close(copy) != 0)
            handler_errors |= 1;
        break;
    }
    case 1: {
        int fds[2];
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds) == 0) {
            event.events = EPOLLIN;
            event.data.fd = fds[0];
            if (epoll_ctl(handler_epfd, EPOLL_CTL_ADD, fds[0], &event) != 0)
                handler_errors |= 2;
            if (close(fds[0]) != 0 || close(fds[1]) != 0)
                handler_errors |= 4;
        }
        break;
    }
    case 2:
        if (read(handler_pair[0], &byte, 1) != -1 || errno != EAGAIN)
            handler_errors |= 8;
        break;
    case 3:
        event.events = EPOLLIN | EPOLLRDHUP;
        event.data.fd = handler_pair[0];
        if (epoll_ctl(handler_epfd, EPOLL_CTL_MOD, handler_pair[0], &event) != 0)
            handler_errors |= 16;
        break;
    case 4:
        if (handler_extra >= 0) {
            if (close(handler_extra) != 0)
                handler_errors |= 32;
            handler_extra = -1;
        }
        break;
    case 5:
        if (fcntl(handler_pair[0], F_SETFL, O_NONBLOCK) != 0)
            handler_errors |= 64;
        break;
    }
    errno = saved;
}

static void pump_with_handlers(int rounds)
{
    int fds[2];
    tcp_pair(fds);
    handler_epfd = epoll_of(fds[0], EPOLLIN);
    socket_pair(handler_pair);
    add(handler_epfd, handler_pair[0], EPOLLIN);
    warm_up(handler_epfd);
    struct sigaction action = {};
    action.sa_handler = handler_works;
    SAME(sigaction(SIGALRM, &action, nullptr), 0);
    itimerval often = {{0, 150}, {0, 150}};
    SAME(setitimer(ITIMER_REAL, &often, nullptr), 0);
    for (int round = 0; round < rounds; round++) {
        char byte;
        if (handler_extra < 0) {
            int extra[2];
            socket_pair(extra);
            add(handler_epfd, extra[0], EPOLLIN);
            close(extra[1]); /* HUP, so that it is in the middle of things */
            SAME(epoll_ctl(handler_epfd, EPOLL_CTL_DEL, extra[0], nullptr), 0);
            epoll_event event = {};
            event.data.fd = extra[0]; /* only HUP and ERR */
            event.events = EPOLLET;
            SAME(epoll_ctl(handler_epfd, EPOLL_CTL_ADD, extra[0], &event), 0);
            handler_extra = extra[0];
        }
        while (write(fds[1], "x", 1) != 1)
            SAME(errno, EINTR);
        for (;;) {
            epoll_event events[4];
            int count = epoll_wait(handler_epfd, events, 4, 5000);
            if (count < 0) {
                SAME(errno, EINTR);
                continue;
            }
            MUST(count > 0);
            bool found = false;
            for (int i = 0; i < count; i++)
                found = found || events[i].data.fd == fds[0];
            if (found)
                break;
        }
        while (read(fds[0], &byte, 1) != 1)
            SAME(errno, EINTR);
    }
    itimerval never = {};
    SAME(setitimer(ITIMER_REAL, &never, nullptr), 0);
    SAME(handler_errors, 0);
    MUST(handler_runs > 50);
    close(fds[0]);
    must_have_fin(fds[1]);
}

SCENARIO(HandlersMayUseEpollAtAnyInstant)
{
    pump_with_handlers(6000);
}

static void *idles(void *at)
{
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
    char byte;
    SAME(read(*static_cast<int *>(at), &byte, 1), 0);
    return nullptr;
}

SCENARIO(HandlersMayUseEpollInAThreadedProgram)
{
    int ends[2];
    SAME(pipe(ends), 0);
    pthread_t thread;
    SAME(pthread_create(&thread, nullptr, idles, &ends[0]), 0);
    pump_with_handlers(6000);
    close(ends[1]);
    SAME(pthread_join(thread, nullptr), 0);
}

/* ------------------------------------------------------------- passed fds */

static void pass_fd(int over, int fd)
{
    char byte = 'f', room[CMSG_SPACE(sizeof fd)] = {};
    iovec iov = {&byte, 1};
    msghdr message = {};
    message.msg_iov = &iov;
    message.msg_iovlen = 1;
    message.msg_control = room;
    message.msg_controllen = sizeof room;
    cmsghdr *control = CMSG_FIRSTHDR(&message);
    control->cmsg_level = SOL_SOCKET;
    control->cmsg_type = SCM_RIGHTS;
    control->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(control), &fd, sizeof fd);
    SAME(sendmsg(over, &message, 0), 1);
}

static int take_fd(int over)
{
    char byte, room[CMSG_SPACE(sizeof(int))] = {};
    iovec iov = {&byte, 1};
    msghdr message = {};
    message.msg_iov = &iov;
    message.msg_iovlen = 1;
    message.msg_control = room;
    message.msg_controllen = sizeof room;
    SAME(recvmsg(over, &message, MSG_CMSG_CLOEXEC), 1);
    cmsghdr *control = CMSG_FIRSTHDR(&message);
    MUST(control && control->cmsg_type == SCM_RIGHTS);
    int fd;
    memcpy(&fd, CMSG_DATA(control), sizeof fd);
    return fd;
}

SCENARIO(APassedSetWorksInTheOtherProcess)
{
    int channel[2], fds[2];
    SAME(socketpair(AF_UNIX, SOCK_STREAM, 0, channel), 0);
    pid_t child = fork();
    if (child == 0) {
        int epfd = take_fd(channel[1]);
        epoll_event event = {};
        SAME(epoll_wait(epfd, &event, 1, 5000), 1);
        SAME(event.events, EPOLLIN);
        SAME(event.data.fd, 4711);
        _exit(0);
    }
    socket_pair(fds);
    int epfd = epoll_create1(0);
    epoll_event event = {};
    event.events = EPOLLIN;
    event.data.fd = 4711;
    SAME(epoll_ctl(epfd, EPOLL_CTL_ADD, fds[0], &event), 0);
    warm_up(epfd);
    pass_fd(channel[0], epfd);
    SAME(write(fds[1], "x", 1), 1);
    SAME(ended(child), 0);
    SAME(next_event(epfd, 4711), EPOLLIN);
}

/* Edge-triggered, and of a kind that no ring serves: a listener. */
SCENARIO(APassedSetReportsEdgesOfListenersInTheOtherProcess)
{
    int channel[2];
    SAME(socketpair(AF_UNIX, SOCK_STREAM, 0, channel), 0);
    pid_t child = fork();
    if (child == 0) {
        int epfd = take_fd(channel[1]);
        epoll_event event = {};
        SAME(epoll_wait(epfd, &event, 1, 5000), 1);
        SAME(event.events, EPOLLIN);
        SAME(event.data.u64, 4711);
        SAME(epoll_wait(epfd, &event, 1, 0), 0);
        _exit(0);
    }
    unsigned short port = 0;
    int server = listener(&port), epfd = epoll_create1(0);
    epoll_event event = {};
    event.events = EPOLLIN | EPOLLET;
    event.data.u64 = 4711;
    SAME(epoll_ctl(epfd, EPOLL_CTL_ADD, server, &event), 0);
    warm_up(epfd);
    pass_fd(channel[0], epfd);
    int client = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(port);
    SAME(connect(client, reinterpret_cast<sockaddr *>(&address), sizeof address), 0);
    SAME(ended(child), 0);
}

SCENARIO(APassedSocketStaysRegisteredAfterItsClose)
{
    int channel[2], fds[2];
    SAME(socketpair(AF_UNIX, SOCK_STREAM, 0, channel), 0);
    tcp_pair(fds);
    int epfd = epoll_of(fds[0], EPOLLIN);
    warm_up(epfd);
    pass_fd(channel[0], fds[0]);
    int was = fds[0];
    SAME(close(fds[0]), 0);
    SAME(write(fds[1], "x", 1), 1);
    SAME(next_event(epfd, was), EPOLLIN);
    SAME(dup(0), was); /* so that it does not come back under its old number */
    int back = take_fd(channel[1]);
    char byte;
    SAME(read(back, &byte, 1), 1);
    SAME(next_event(epfd, was, 0), 0);
    add(epfd, back, EPOLLIN | EPOLLET);
    SAME(epoll_ctl(epfd, EPOLL_CTL_DEL, back, nullptr), 0);
    SAME(close(back), 0);
    must_have_fin(fds[1]);
}

/* ------------------------------------------------------ other ways to wait */

typedef int poll_chk_function(pollfd *, nfds_t, int, size_t);
typedef int ppoll_chk_function(pollfd *, nfds_t, const timespec *, const sigset_t *, size_t);

SCENARIO(ASetCanBePolled)
{
    auto poll_chk = reinterpret_cast<poll_chk_function *>(dlsym(RTLD_DEFAULT, "__poll_chk"));
    auto ppoll_chk = reinterpret_cast<ppoll_chk_function *>(dlsym(RTLD_DEFAULT, "__ppoll_chk"));
    MUST(poll_chk && ppoll_chk);
    for (int way = 0; way < 9; way++) {
        int fds[2];
        socket_pair(fds);
        int epfd = epoll_of(fds[0], EPOLLIN);
        warm_up(epfd);
        for (int ready = 0; ready < 2; ready++) {
            pollfd look = {epfd, POLLIN, 0};
            timespec no_time = {0, 0};
            timeval nothing = {0, 0};
            fd_set set;
            FD_ZERO(&set);
            FD_SET(epfd, &set);
            epoll_event event = {};
            event.events = EPOLLIN;
            event.data.fd = epfd;
            int outer = epoll_create1(0);
            if (ready)
                SAME(write(fds[1], "x", 1), 1);
            switch (way) {
            case 0: SAME(poll(&look, 1, 0), ready); break;
            case 1: SAME(ppoll(&look, 1, &no_time, nullptr), ready); break;
            case 2: SAME(select(epfd + 1, &set, nullptr, nullptr, &nothing), ready); break;
            case 3: SAME(pselect(epfd + 1, nullptr, nullptr, &set, &no_time, nullptr), 0); break;
            case 4: SAME(poll_chk(&look, 1, 0, sizeof look), ready); break;
            case 5: SAME(ppoll_chk(&look, 1, &no_time, nullptr, sizeof look), ready); break;
            case 6: SAME(syscall(SYS_ppoll, &look, 1, &no_time, nullptr, 8), ready); break;
            case 7:
                SAME(epoll_ctl(outer, EPOLL_CTL_ADD, epfd, &event), 0);
                SAME(next_event(outer, epfd, 0), ready ? static_cast<uint32_t>(EPOLLIN) : 0u);
                break;
            case 8:
                SAME(pselect(epfd + 1, &set, nullptr, nullptr, &no_time, nullptr), ready);
                break;
            }
            close(outer);
        }
        SAME(next_event(epfd, fds[0]), EPOLLIN);
        close(epfd);
        close(fds[0]);
        close(fds[1]);
    }
}

SCENARIO(EpollByNumberIsEpoll)
{
    int fds[2];
    socket_pair(fds);
    int epfd = static_cast<int>(syscall(SYS_epoll_create1, EPOLL_CLOEXEC));
    MUST(epfd >= 0);
    epoll_event event = {};
    event.events = EPOLLIN;
    event.data.u64 = 0x1122334455667788;
    SAME(syscall(SYS_epoll_ctl, epfd, EPOLL_CTL_ADD, fds[0], &event), 0);
    SAME(write(fds[1], "x", 1), 1);
    uint64_t mask = 0;
    timespec second = {1, 0};
    for (int way = 0; way < 4; way++) {
        epoll_event got = {};
        long count = -1;
        switch (way) {
        case 0: count = syscall(SYS_epoll_pwait, epfd, &got, 1, 1000, nullptr, 8); break;
        case 1: count = syscall(SYS_epoll_pwait, epfd, &got, 1, -1, &mask, 8); break;
        case 2: count = syscall(SYS_epoll_pwait2, epfd, &got, 1, &second, &mask, 8); break;
        case 3: count = epoll_wait(epfd, &got, 1, 1000); break;
        }
        SAME(count, 1);
        MUST(got.data.u64 == event.data.u64);
    }
    SAME(syscall(SYS_epoll_pwait, epfd, &event, 1, 0, &mask, 4), -1);
    SAME(errno, EINVAL);
    SAME(syscall(SYS_epoll_ctl, epfd, EPOLL_CTL_DEL, 999, nullptr), -1);
    SAME(errno, EBADF);
    SAME(syscall(SYS_dup, 999), -1);
    SAME(errno, EBADF);
}

/* ------------------------------------------------------------ loaded code */

/* A library that makes and uses a set of its own, by dlopen. */
SCENARIO(ALibraryThatIsLoadedLateUsesEpoll)
{
    const char *path = getenv("RINGPOLL_PRELOAD_TEST_MODULE");
    MUST(path != nullptr);
    void *module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!module)
        fprintf(stderr, "%s\n", dlerror());
    MUST(module != nullptr);
    auto round_trip = reinterpret_cast<int (*)()>(dlsym(module, "round_trip"));
    MUST(round_trip != nullptr);
    SAME(round_trip(), 0);
    SAME(dlclose(module), 0);
    warm_up(epoll_create1(0));
}

/* Static constructors run before main, and some event loops are made there. */
static struct Early {
    int fds[2] = {-1, -1};
    int epfd = -1;
    Early()
    {
        if (!getenv("RINGPOLL_PRELOAD_TEST_EARLY"))
            return;
        socket_pair(fds);
        epfd = epoll_of(fds[0], EPOLLIN);
        warm_up(epfd);
    }
} early;

SCENARIO_WITHOUT_RING(uses_the_early_set)
{
    MUST(early.epfd >= 0);
    SAME(write(early.fds[1], "x", 1), 1);
    SAME(next_event(early.epfd, early.fds[0]), EPOLLIN);
}

SCENARIO_WITHOUT_RING(ASetFromAStaticConstructorWorks)
{
    setenv("RINGPOLL_PRELOAD_TEST_EARLY", "1", 1);
    execl("/proc/self/exe", scenario_program, "uses_the_early_set", static_cast<char *>(nullptr));
}

/* All six arguments of an unknown call arrive. (i386's first mmap takes a structure.) */
#ifdef SYS_mmap2
#define MMAP_NUMBER SYS_mmap2
#else
#define MMAP_NUMBER SYS_mmap
#endif
SCENARIO_WITHOUT_RING(SyscallPassesSixArguments)
{
    int file = open("/proc/self/exe", O_RDONLY);
    long page = sysconf(_SC_PAGESIZE);
    long address = syscall(MMAP_NUMBER, 0L, page, 1L /* PROT_READ */, 2L /* MAP_PRIVATE */, static_cast<long>(file), 0L);
    MUST(address != -1);
    SAME(memcmp(reinterpret_cast<void *>(address), "\177ELF", 4), 0);
    SAME(syscall(SYS_munmap, address, page), 0);
    SAME(syscall(MMAP_NUMBER, 0L, page, 1L, 2L, -1L, 0L), -1);
    SAME(errno, EBADF);
    SAME(syscall(SYS_getpid), getpid());
}

/* The shim's own: a program's ring could change a set unseen. */
SCENARIO_WITHOUT_RING(AProgramsOwnRingIsRefusedUnderTheShim)
{
    char parameters[120] = {};
    long fd = syscall(425, 4, parameters);
    if (under_shim() && !(getenv("RINGPOLL") && strcmp(getenv("RINGPOLL"), "off") == 0)) {
        SAME(fd, -1);
        SAME(errno, ENOSYS);
    }
}
