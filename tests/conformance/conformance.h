/* SPDX-License-Identifier: MIT
 *
 * The fixture of the conformance tests: short words for what every body does,
 * and the assertion that holds after every body: nothing is held.
 *
 * A body runs on whatever Engine it is given. It must say what the kernel's
 * epoll does and nothing else; where ringpoll is documented to differ, the body
 * asks e.ringpoll() and says so at that line.
 *
 * After the body the fixture closes what is open, sets first for every other
 * test and last for the rest (a set that goes with its watches armed and a fd
 * that goes while it is watched take different paths), and then wants the
 * process's table of fds as it was, and no operation in flight.
 */
#ifndef TESTS_CONFORMANCE_H
#define TESTS_CONFORMANCE_H

#include <errno.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <future>
#include <ostream>
#include <thread>

#include "support/engine.h"

/* One event, printable. */
struct Event {
    uint64_t data;
    uint32_t events;
    bool operator==(const Event &other) const { return data == other.data && events == other.events; }
    bool operator<(const Event &other) const
    {
        return data != other.data ? data < other.data : events < other.events;
    }
};
std::ostream &operator<<(std::ostream &out, const Event &event);
using Events = std::vector<Event>;

/* Two ends. For a pipe, a reads and b writes. */
struct Pair {
    int a, b;
};

constexpr uint32_t in_ = EPOLLIN, out_ = EPOLLOUT, hup_ = EPOLLHUP, err_ = EPOLLERR, rdhup_ = EPOLLRDHUP,
                   pri_ = EPOLLPRI, et_ = (uint32_t)EPOLLET, once_ = (uint32_t)EPOLLONESHOT,
                   exclusive_ = (uint32_t)EPOLLEXCLUSIVE, wakeup_ = (uint32_t)EPOLLWAKEUP;

class Conformance : public ::testing::TestWithParam<std::string> {
protected:
    void SetUp() override;
    void TearDown() override;

    /* A set, close-on-exec. */
    int new_set();
    /* ctl, with the fd as data. Results as the engine gives them. */
    int add(int set, int fd, uint32_t events) { return add_as(set, fd, events, (uint64_t)fd); }
    int mod(int set, int fd, uint32_t events) { return ctl(set, EPOLL_CTL_MOD, fd, events, (uint64_t)fd); }
    int del(int set, int fd) { return e().ctl(set, EPOLL_CTL_DEL, fd, nullptr); }
    int add_as(int set, int fd, uint32_t events, uint64_t data)
    {
        return ctl(set, EPOLL_CTL_ADD, fd, events, data);
    }
    int ctl(int set, int op, int fd, uint32_t events, uint64_t data);

    /* What one wait with a timeout of 0 gives, sorted. An error is one event
     * with data ~0 and the errno. */
    Events ready(int set, int max = 64);
    /* What one wait with a timeout that a test never reaches gives, likewise. */
    Events next(int set, int max = 64);
    /* next(), until `count` different data have been seen: every event, repeats included. */
    Events gather(int set, size_t count, int max = 64);

    Pair tcp(bool inet6 = false);
    Pair unix_stream(bool nonblock = true);
    Pair unix_datagram();
    Pair udp();
    Pair pipe(int flags = O_NONBLOCK | O_CLOEXEC);
    int eventfd(unsigned initial = 0, int flags = EFD_NONBLOCK | EFD_CLOEXEC);
    int listener(struct sockaddr_in *ret_address, int backlog = 64);
    int connected_to(const struct sockaddr_in &address);

    /* Writes all of `length` bytes and returns when the other end could read. */
    void put(int to, size_t length, int arrives_at);
    void put_text(int to, const char *text, int arrives_at);
    /* Reads to EAGAIN or the end of file; the number of bytes. */
    size_t drain(int fd);
    /* Writes until EAGAIN; the number of bytes. */
    size_t fill(int fd);
    /* Closes by RST. */
    void reset(int fd);

    support::Engine &e() { return *engine_; }
    void kick(int eventfd, uint64_t by = 1);
    uint64_t take(int eventfd);

    std::unique_ptr<support::Engine> engine_;

private:
    std::map<int, std::string> fds_before_;
};

/* A thread that is known to be inside a wait. `body` runs in the thread. */
class Waiter {
public:
    explicit Waiter(std::function<Events()> body);
    ~Waiter();
    /* Returns when the thread sleeps in its wait. */
    testing::AssertionResult asleep();
    bool done();
    /* Its result; fails the test after 20 s (the thread is then lost). */
    Events result();
    pid_t tid() const { return tid_; }
    pthread_t handle() { return thread_.native_handle(); }
    /* Some thread was not woken and is still in there. */
    static bool lost;

private:
    /* Outlives the Waiter when the thread is lost. */
    struct State {
        std::promise<pid_t> tid;
        std::promise<Events> promise;
    };
    std::shared_ptr<State> state_ = std::make_shared<State>();
    pid_t tid_ = 0;
    std::future<Events> future_;
    std::thread thread_;
};

#define CONFORMANCE(suite)                                                                                        \
    class suite : public Conformance {};                                                                          \
    INSTANTIATE_TEST_SUITE_P(, suite, ::testing::ValuesIn(support::chosen_engines()),                             \
                             [](const auto &engine) { return engine.param; })

#endif
