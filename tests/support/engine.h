/* SPDX-License-Identifier: MIT
 *
 * One body, several engines.
 *
 * A conformance test says what epoll promises; an Engine is something that is
 * supposed to keep the promise: the kernel (the oracle), the kernel's calls
 * with the preload shim underneath, or the library's own API with one set of
 * options. Every call that a test makes on an fd goes through its Engine, for
 * two reasons: a program that uses the library's API has to report what it does
 * to its fds (RINGPOLL_TRACKED), and whatever a test leaves open is known and
 * can be closed, so that "nothing is held" can be asserted after every test.
 *
 * Conventions: results are >= 0 or a negative errno, whatever the engine; a
 * count of bytes is a count. The plain libc call is made in one place
 * (engine.cc); the native engines differ only in the four calls on sets and in
 * the protected on_… functions, which report to the library.
 *
 * Any thread may call any function.
 */
#ifndef TESTS_SUPPORT_ENGINE_H
#define TESTS_SUPPORT_ENGINE_H

#include <signal.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <time.h>

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

namespace support {

/* What the engine has done to io_uring so far; all zero where nobody counts. */
struct Held {
    uint64_t sets = 0, rings = 0, ops_in_flight = 0, polls_armed = 0;
    uint64_t rings_made = 0, cqes = 0, cq_overflows = 0, sets_made = 0;
    bool counted = false;
};

enum class Kind { other, tcp, unix_stream, pipe, eventfd };

class Engine {
public:
    virtual ~Engine() = default;
    virtual const char *name() const = 0;
    /* The library's own API, not libc's calls. */
    virtual bool native() const { return false; }
    /* The library is somewhere below, so what it documents as different is. */
    virtual bool ringpoll() const { return native(); }
    virtual Held held() const { return {}; }

    /* Sets. */
    virtual int create(int flags) = 0;
    virtual int ctl(int epfd, int op, int fd, struct epoll_event *event) = 0;
    virtual int wait(int epfd, struct epoll_event *events, int max, const struct timespec *timeout,
                     const sigset_t *mask) = 0;
    /* epoll_wait and epoll_pwait: milliseconds, -1 for ever. */
    virtual int wait_ms(int epfd, struct epoll_event *events, int max, int timeout_ms,
                        const sigset_t *mask = nullptr) = 0;

    /* Making fds. Streams and sockets are non-blocking unless said otherwise. */
    int socket(int domain, int type, int protocol = 0);
    int socketpair(int domain, int type, int out[2]);
    int pipe(int out[2], int flags);
    int eventfd(unsigned initial, int flags);
    int timerfd(int clock, int flags);
    int signalfd(const sigset_t *mask, int flags);
    int inotify(int flags);
    int open(const char *path, int flags, int mode = 0600);
    int accept(int listener, int flags = SOCK_NONBLOCK | SOCK_CLOEXEC);
    int connect(int fd, const struct sockaddr *address, socklen_t length);
    int listen(int fd, int backlog);
    int set_nonblock(int fd, bool on);

    /* Duplicating and closing. */
    int dup(int fd);
    int dup2(int from, int to);
    int dupfd(int fd, int least); /* F_DUPFD_CLOEXEC */
    int close(int fd);
    /* The same from a signal handler; the test says forget() when that is over. */
    int close_in_handler(int fd);
    void forget(int fd);
    int close_range(unsigned first, unsigned last);
    /* Over an AF_UNIX socket, with `bytes` of data. */
    int send_fd(int over, int fd, const void *bytes, size_t length);
    ssize_t recv_fd(int over, void *bytes, size_t length, int *ret_fd);

    /* Moving bytes. */
    ssize_t read(int fd, void *buffer, size_t length);
    ssize_t recv(int fd, void *buffer, size_t length, int flags);
    ssize_t write(int fd, const void *buffer, size_t length);
    ssize_t send(int fd, const void *buffer, size_t length, int flags);
    int shutdown(int fd, int how);

    /* fork(2) with the handlers that a native caller owes; 0 in the child. The
     * child forgets what the parent has to close. */
    pid_t fork();
    /* The set's fd is about to be watched by something that the library does not
     * see (poll, select): a native caller owes a ringpoll_demote(). */
    virtual void will_be_polled(int) {}
    /* In a process that will exec now. */
    virtual void before_exec() {}

    /* Every fd that was made and not closed, in the order of their numbers. */
    std::vector<int> still_open();
    bool is_set(int fd);

protected:
    int made(int fd, Kind kind, unsigned nonblock, bool connected);
    int copied(int from, int to);

    virtual void on_opened(int, Kind, bool /*nonblock*/, bool /*connected*/) {}
    virtual void on_connected(int) {}
    virtual void on_nonblock(int, bool) {}
    virtual void on_closing(int) {}
    virtual void on_closing_range(unsigned, unsigned) {}
    virtual void on_duplicated(int, int) {}
    virtual void on_shared(int) {}
    virtual void on_leave(int) {}
    virtual void on_read(int, size_t, long) {}
    virtual void on_fork_prepare() {}
    virtual void on_fork_parent() {}
    virtual void on_fork_child() {}

    std::mutex lock_;
    std::map<int, bool> open_; /* fd → it is a set */
};

/* "kernel", "shim", "native", "untracked", "declared", "anyring", "sqpoll", "sqaff". NULL for any
 * other word. */
std::unique_ptr<Engine> make_engine(const std::string &name);
/* $RINGPOLL_TEST_ENGINE split at commas; "kernel" when it is unset. */
std::vector<std::string> chosen_engines();
/* The preload shim is in this process. */
bool shim_is_loaded();

/* ------------------------------------------------------------- processes */

/* Number → what /proc says it is ("socket:[123]"), of every fd of the process.
 * Read with plain system calls, so that a shim cannot hide anything. */
std::map<int, std::string> open_fds(size_t *ret_rings = nullptr);

pid_t this_thread();
/* Returns when `tid` of this process sleeps in a wait for events (epoll_wait in
 * any form, or io_uring_enter); false after 20 s. This is how a test knows
 * that the other thread is inside the call, without sleeping. */
bool until_it_waits(pid_t tid);
/* The same for another process. */
bool until_process_waits(pid_t pid);

/* poll(2) until all of `bits` are in revents; false after `seconds`. This is
 * how a test knows that the kernel has delivered something. */
bool settle(int fd, short bits, int seconds = 20);
/* poll(2), now. */
short poll_now(int fd);

int64_t now_ns(int clock = CLOCK_MONOTONIC);

} // namespace support

#endif
