/* SPDX-License-Identifier: MIT
 *
 * The fixture, and main(): see stream.h. The program is also what its tests of
 * exec start ("--read FD COUNT": reads, and writes it to standard output).
 */
#include "stream.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>

#include <fstream>

using namespace support;

std::ostream &operator<<(std::ostream &out, const Shape &shape)
{
    return out << (shape.tcp ? "tcp" : "unix")
               << (shape.trigger == et_ ? "_edge" : shape.trigger == once_ ? "_oneshot" : "_level");
}

const char *name_of(Where where)
{
    return where == Where::kernel ? "in the kernel" : where == Where::library ? "in the library" : "in both";
}

long checked(long result, const char *file, int line)
{
    if (result < 0)
        return -errno;
    if (errno != 4095)
        ADD_FAILURE_AT(file, line) << "a call that succeeded changed errno to " << errno;
    return result;
}

/* ---------------------------------------------------------- past the shim */

namespace past {

template <typename Function> static Function *libc_function(const char *name)
{
    static void *libc = dlopen("libc.so.6", RTLD_NOW | RTLD_NOLOAD);
    void *at = libc != nullptr ? dlsym(libc, name) : dlsym(RTLD_NEXT, name);
    if (at == nullptr)
        abort();
    return (Function *)at;
}

int poll(struct pollfd *fds, nfds_t count, int timeout)
{
    static auto *real = libc_function<int(struct pollfd *, nfds_t, int)>("poll");
    return real(fds, count, timeout);
}

int unread(int fd)
{
    static auto *real = libc_function<int(int, unsigned long, ...)>("ioctl");
    int count = -1;
    return real(fd, FIONREAD, &count) == 0 ? count : -1;
}

} // namespace past

/* ------------------------------------------------------------- the fixture */

bool Stream::adopts()
{
    const char *word = getenv("RINGPOLL_TEST_EXPECT");
    return word != nullptr && strncmp(word, "adopt", 5) == 0;
}

bool Stream::adopts_this()
{
    return adopts() && (tcp() || strcmp(getenv("RINGPOLL_TEST_EXPECT"), "adopt-tcp") != 0);
}

void Stream::SetUp()
{
    signal(SIGPIPE, SIG_IGN);
    /* What is made once per process, and kept. */
    static bool warm = false;
    if (!warm) {
        warm = true;
        begin();
        end();
    }
    fds_before_ = open_fds();
}

void Stream::end()
{
    /* Sets first for every other test: they take different ways. */
    if (strlen(::testing::UnitTest::GetInstance()->current_test_info()->name()) % 2)
        std::reverse(owned_.begin(), owned_.end());
    for (int fd : owned_)
        EXPECT_EQ(close(fd), 0) << "fd " << fd;
    owned_.clear();
}

void Stream::TearDown()
{
    end();
    std::map<int, std::string> after = open_fds();
    for (auto &entry : after)
        if (fds_before_.count(entry.first) == 0)
            ADD_FAILURE() << "left open: " << entry.first << " " << entry.second;
    for (auto &entry : fds_before_)
        if (after.count(entry.first) == 0)
            ADD_FAILURE() << "closed behind the test's back: " << entry.first << " " << entry.second;
}

int Stream::own(int fd)
{
    EXPECT_GE(fd, 0) << strerrorname_np(errno);
    owned_.push_back(fd);
    return fd;
}

int Stream::close_now(int fd)
{
    for (auto at = owned_.begin(); at != owned_.end(); ++at)
        if (*at == fd) {
            owned_.erase(at);
            break;
        }
    return close(fd);
}

void Stream::reset(int fd)
{
    struct linger at_once = {1, 0};
    EXPECT_EQ(setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once), 0);
    EXPECT_EQ(close_now(fd), 0);
}

void Stream::connect_pair(int fds[2])
{
    if (!tcp()) {
        ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
        own(fds[0]);
        own(fds[1]);
        return;
    }
    struct sockaddr_in address = {};
    address.sin_family = AF_INET;
    /* All of 127/8: no port is ever used up. */
    static uint32_t host = (uint32_t)getpid() * 64;
    address.sin_addr.s_addr = htonl(0x7f000002u + host++ % 0xfffff0u);
    socklen_t length = sizeof address;
    int on = 1, listening = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ASSERT_EQ(bind(listening, (struct sockaddr *)&address, length), 0);
    ASSERT_EQ(listen(listening, 1), 0);
    ASSERT_EQ(getsockname(listening, (struct sockaddr *)&address, &length), 0);
    fds[1] = own(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    ASSERT_EQ(connect(fds[1], (struct sockaddr *)&address, length), 0);
    ASSERT_EQ(fcntl(fds[1], F_SETFL, O_RDWR | O_NONBLOCK), 0);
    fds[0] = own(accept4(listening, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    ASSERT_EQ(close(listening), 0);
    for (int i = 0; i < 2; i++)
        ASSERT_EQ(setsockopt(fds[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on), 0);
}

void Stream::begin(uint32_t events)
{
    int fds[2];
    end();
    set_ = own(epoll_create1(EPOLL_CLOEXEC));
    connect_pair(fds);
    a_ = fds[0];
    b_ = fds[1];
    sent_ = taken_ = 0;
    blocking_ = false;
    events_ = events | trigger();
    struct epoll_event event = {};
    event.events = events_;
    event.data.fd = a_;
    ASSERT_EQ(epoll_ctl(set_, EPOLL_CTL_ADD, a_, &event), 0);
    adopt();
}

bool Stream::is_adopted()
{
    send(1);
    EXPECT_TRUE(wait(20000) & in_);
    bool adopted = past::unread(a_) == 0;
    drain();
    rearm();
    return adopted;
}

void Stream::adopt()
{
    /* The library lets a socket be after it has seen reasons to; so it may take
     * many rounds. One reason goes when the loop has company: events of two fds. */
    bool adopted = false;
    int company = -1;
    for (int round = 0; round < (adopts_this() ? 600 : 3) && !adopted && !HasFatalFailure(); round++) {
        if (round == 10) {
            struct epoll_event event = {};
            event.events = in_;
            event.data.fd = company = eventfd(1, EFD_CLOEXEC);
            ASSERT_EQ(epoll_ctl(set_, EPOLL_CTL_ADD, company, &event), 0);
        }
        adopted = is_adopted();
    }
    if (company >= 0) {
        ASSERT_EQ(close(company), 0);
    }
    ASSERT_TRUE(adopted || !adopts_this()) << "the library does not receive for this socket";
    ASSERT_FALSE(adopted && !adopts_this()) << "this kernel's receives may miss an end";
}

std::string text_of(uint64_t from, size_t count)
{
    std::string text(count, 0);
    for (size_t i = 0; i < count; i++) {
        uint64_t at = from + i;
        text[i] = (char)(at * 131 + (at >> 8) * 29 + (at >> 16) * 7);
    }
    return text;
}

/* What TCP_INFO says after the fields that glibc knows. */
static uint64_t received_by(int fd, int *ret_state)
{
    union {
        struct tcp_info info;
        char bytes[512];
    } all = {};
    socklen_t length = sizeof all;
    uint64_t received = ~0ull;
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &all, &length) == 0)
        memcpy(&received, all.bytes + 128, sizeof received);
    *ret_state = all.info.tcpi_state;
    return received;
}

void Stream::arrived()
{
    int64_t deadline = now_ns() + 20000000000LL;
    int state;
    while (tcp() && received_by(a_, &state) < sent_ && state != TCP_CLOSE)
        ASSERT_LT(now_ns(), deadline) << "bytes got lost on their way";
}

void Stream::send(size_t count)
{
    while (count > 0) {
        std::string text = text_of(sent_, count);
        ssize_t done = ::send(b_, text.data(), count, MSG_NOSIGNAL);
        ASSERT_GT(done, 0) << strerrorname_np(errno);
        sent_ += (uint64_t)done;
        count -= (size_t)done;
    }
    arrived();
}

void Stream::end_arrived(bool reset)
{
    int64_t deadline = now_ns() + 20000000000LL;
    for (int state = 0; tcp();) {
        received_by(a_, &state);
        if (state == TCP_CLOSE || (!reset && (state == TCP_CLOSE_WAIT || state == TCP_LAST_ACK ||
                                              state == TCP_CLOSING || state == TCP_TIME_WAIT)))
            break;
        ASSERT_LT(now_ns(), deadline) << "the end got lost on its way";
    }
}

void Stream::place(size_t count, Where where)
{
    size_t first = where == Where::both ? count / 2 : count;
    bool empty = taken_ == sent_;
    if (empty && where != Where::kernel)
        adopt();
    rearm();
    send(first);
    if (where != Where::kernel) {
        EXPECT_TRUE(wait(20000) & in_);
        if (adopts_this() && empty) {
            EXPECT_EQ(past::unread(a_), 0) << "the library did not receive";
        }
    }
    if (first < count)
        send(count - first);
}

std::string Stream::coming(size_t count, size_t after) const
{
    return text_of(taken_ + after, count);
}

std::string Stream::expected(size_t count)
{
    std::string text = coming(count);
    taken_ += count;
    return text;
}

long Stream::drain()
{
    for (;;) {
        ssize_t count = blocking_ ? recv(a_, bytes_, sizeof bytes_, MSG_DONTWAIT) : read(a_, bytes_, sizeof bytes_);
        if (count <= 0)
            return count < 0 ? -errno : 0;
        EXPECT_LE(taken_ + (uint64_t)count, sent_) << "more than was sent";
        EXPECT_TRUE(std::string(bytes_, (size_t)count) == expected((size_t)count)) << "other bytes than were sent";
    }
}

void Stream::set_blocking(bool blocking)
{
    int flags = fcntl(a_, F_GETFL);
    ASSERT_EQ(fcntl(a_, F_SETFL, blocking ? flags & ~O_NONBLOCK : flags | O_NONBLOCK), 0);
    blocking_ = blocking;
}

uint32_t Stream::wait(int timeout_ms, int fd)
{
    struct epoll_event events[8];
    int count = epoll_wait(set_, events, 8, timeout_ms);
    EXPECT_GE(count, 0) << strerrorname_np(errno);
    uint32_t bits = 0;
    for (int i = 0; i < count; i++)
        if (events[i].data.fd == (fd < 0 ? a_ : fd))
            bits |= events[i].events;
    return bits;
}

void Stream::modify(uint32_t events)
{
    events_ = events | trigger();
    struct epoll_event event = {};
    event.events = events_;
    event.data.fd = a_;
    ASSERT_EQ(epoll_ctl(set_, EPOLL_CTL_MOD, a_, &event), 0);
}

void Stream::rearm()
{
    if (once())
        modify(events_);
}

uint32_t Stream::state(int timeout_ms)
{
    if (!level())
        modify(events_);
    return wait(timeout_ms);
}

/* ----------------------------------------------------------------- threads */

bool until_it_sleeps(pid_t tid)
{
    std::string directory = "/proc/self/task/" + std::to_string(tid);
    int64_t deadline = now_ns() + 20000000000LL;
    for (; now_ns() < deadline; sched_yield()) {
        std::ifstream call(directory + "/syscall");
        std::string word, line;
        if (!(call >> word) || word == "running" || strtol(word.c_str(), nullptr, 10) == SYS_futex)
            continue;
        std::ifstream stat(directory + "/stat");
        std::getline(stat, line);
        size_t end = line.rfind(')');
        if (end != std::string::npos && end + 2 < line.size() && line[end + 2] == 'S')
            return true;
    }
    return false;
}

Worker::Worker(std::function<void()> body) : done_(std::make_shared<std::atomic<bool>>(false))
{
    auto tid = std::make_shared<std::atomic<pid_t>>(0);
    thread_ = std::thread([done = done_, tid, body] {
        *tid = this_thread();
        body();
        *done = true;
    });
    while ((tid_ = *tid) == 0)
        sched_yield();
}

bool Worker::join()
{
    int64_t deadline = now_ns() + 20000000000LL;
    while (!done()) {
        if (now_ns() > deadline) {
            fprintf(stderr, "a thread of the test hangs\n");
            abort();
        }
        sched_yield();
    }
    thread_.join();
    return true;
}

Worker::~Worker()
{
    if (thread_.joinable())
        join();
}

testing::AssertionResult child_is_content(pid_t child)
{
    int status = 0;
    if (waitpid(child, &status, 0) != child)
        return testing::AssertionFailure() << "waitpid: " << strerrorname_np(errno);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return testing::AssertionSuccess();
    if (WIFSIGNALED(status))
        return testing::AssertionFailure() << "the child died of signal " << WTERMSIG(status);
    return testing::AssertionFailure() << "the child failed near line " << WEXITSTATUS(status) - 1 << " (mod 250)";
}

/* -------------------------------------------------------------------- main */

static int read_and_write(int fd, size_t count)
{
    char bytes[65536];
    while (count > 0) {
        ssize_t got = read(fd, bytes, std::min(count, sizeof bytes));
        if (got <= 0 || write(1, bytes, (size_t)got) != got)
            return 1;
        count -= (size_t)got;
    }
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 4 && strcmp(argv[1], "--read") == 0)
        return read_and_write(atoi(argv[2]), strtoul(argv[3], nullptr, 10));
    ::testing::InitGoogleTest(&argc, argv);
    return RUN_ALL_TESTS();
}
