/* SPDX-License-Identifier: MIT
 *
 * The fixture of the stream tests: one body, kernel sockets against adopted ones.
 *
 * The program is written against libc alone. It runs as it is, where the kernel
 * is the oracle, and under the shim with a profile that adopts sockets, where
 * every call must have the same result, the same bytes and the same errno. Where
 * ringpoll is documented to differ, the body asks adopts() and says so at that line.
 *
 * begin() makes a pair of connected sockets, registers one of them, `a`, in a set,
 * and plays a few rounds of request and answer, after which the library receives
 * for it. That it does is asserted: the kernel then has nothing unread although
 * epoll_wait has reported bytes. How the test sees that, and how it waits for
 * bytes to arrive without touching the state of the socket, goes by libc's own
 * functions, which the shim does not stand before.
 *
 * Bytes may lie in three places when the program asks for them: in the kernel, in
 * the library, or the first ones there and the rest here. Bodies about reading run
 * for all three (everywhere).
 */
#ifndef TESTS_STREAM_H
#define TESTS_STREAM_H

#include <errno.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "support/engine.h"

constexpr uint32_t in_ = EPOLLIN, out_ = EPOLLOUT, hup_ = EPOLLHUP, err_ = EPOLLERR, rdhup_ = EPOLLRDHUP,
                   et_ = (uint32_t)EPOLLET, once_ = (uint32_t)EPOLLONESHOT;

struct Shape {
    bool tcp;
    uint32_t trigger; /* 0, EPOLLET or EPOLLONESHOT */
};
std::ostream &operator<<(std::ostream &out, const Shape &shape);

enum class Where { kernel, library, both };
constexpr Where everywhere[] = {Where::kernel, Where::library, Where::both};
const char *name_of(Where where);

/* The result of a call, or a negative errno. A call that succeeds leaves errno
 * alone. */
long checked(long result, const char *file, int line);
#define R(call) (errno = 4095, checked((long)(call), __FILE__, __LINE__))

/* libc's functions, past any shim. */
namespace past {
int poll(struct pollfd *fds, nfds_t count, int timeout);
int unread(int fd); /* FIONREAD, as the kernel has it */
} // namespace past

class Stream : public ::testing::TestWithParam<Shape> {
protected:
    void SetUp() override;
    void TearDown() override;

    bool tcp() const { return GetParam().tcp; }
    uint32_t trigger() const { return GetParam().trigger; }
    bool level() const { return trigger() == 0; }
    bool edge() const { return trigger() == et_; }
    bool once() const { return trigger() == once_; }
    /* The library is below, and this run's profile and mask let it adopt. */
    static bool adopts(); /* this run, if not each kind of socket */
    bool adopts_this();   /* sockets of this test's kind */

    /* A pair, `a` registered and adopted, nothing unread; what there was before is
     * closed. */
    void begin(uint32_t events = in_);
    /* The same in two steps, and for other fds. */
    void connect_pair(int fds[2]);
    void adopt();
    /* Whether a's bytes come by way of the library now: sends one and takes it. */
    bool is_adopted();

    /* Closed by end() and TearDown. */
    int own(int fd);
    void end();
    int close_now(int fd);
    void reset(int fd); /* closes by RST */

    /* `count` bytes from b, which have arrived when this returns. */
    void send(size_t count);
    void arrived();
    /* A FIN or RST of b has arrived. */
    void end_arrived(bool reset = false);
    /* `count` bytes that lie there; the set has been asked unless that is the kernel. */
    void place(size_t count, Where where);
    /* The next `count` bytes that a is to read. */
    std::string expected(size_t count);
    /* The same without moving on. */
    std::string coming(size_t count, size_t after = 0) const;
    /* a's bytes: read() until EAGAIN or the end, checked. The last result. */
    long drain();
    void set_blocking(bool blocking); /* a */

    /* One wait; the bits reported for `fd` (a if < 0), 0 if none. */
    uint32_t wait(int timeout_ms = 0, int fd = -1);
    /* What epoll has to say now, whatever was reported before. */
    uint32_t state(int timeout_ms = 0);
    void modify(uint32_t events);
    void rearm();

    int set_ = -1, a_ = -1, b_ = -1;
    uint32_t events_ = 0;
    uint64_t sent_ = 0, taken_ = 0;  /* bytes of b's to a */
    bool blocking_ = false;
    char bytes_[1 << 17];

private:
    std::map<int, std::string> fds_before_;
    std::vector<int> owned_;
};

/* bytes `from` … of the endless text that b sends. */
std::string text_of(uint64_t from, size_t count);

/* Returns when `tid` of this process sleeps in a system call other than futex. */
bool until_it_sleeps(pid_t tid);

/* A thread of the test; joined with a limit, so that a hang is a failure. */
class Worker {
public:
    explicit Worker(std::function<void()> body);
    ~Worker();
    bool sleeps() { return until_it_sleeps(tid_); }
    bool done() const { return *done_; }
    bool join();
    pthread_t handle() { return thread_.native_handle(); }

private:
    std::shared_ptr<std::atomic<bool>> done_;
    pid_t tid_ = 0;
    std::thread thread_;
};

/* In a child: leaves with the number of the line that was wrong. */
#define IN_CHILD(condition)                                                                                       \
    do {                                                                                                          \
        if (!(condition))                                                                                         \
            _exit(__LINE__ % 250 + 1);                                                                            \
    } while (0)
testing::AssertionResult child_is_content(pid_t child);

#define FOR_EVERYWHERE(where)                                                                                     \
    for (Where where : everywhere)                                                                                \
        if (::testing::ScopedTrace trace(__FILE__, __LINE__, name_of(where)); true)
#define EXPECT_BYTES(result, count)                                                                               \
    do {                                                                                                          \
        ASSERT_EQ((long)(result), (long)(count));                                                                 \
        EXPECT_TRUE(std::string(bytes_, (size_t)(count)) == expected((size_t)(count))) << "other bytes";          \
    } while (0)

#define STREAM(suite, ...)                                                                                        \
    class suite : public Stream {};                                                                               \
    INSTANTIATE_TEST_SUITE_P(, suite, ::testing::ValuesIn(std::vector<Shape>{__VA_ARGS__}),                       \
                             [](const auto &shape) { return testing::PrintToString(shape.param); })
#define ALL_SHAPES {true, 0}, {true, et_}, {true, once_}, {false, 0}, {false, et_}, {false, once_}
#define LEVEL_SHAPES {true, 0}, {false, 0}

#endif
