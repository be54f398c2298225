/* SPDX-License-Identifier: MIT
 *
 * Calls that go to the kernel itself, with bytes in the library or writes that have
 * yet to go out, and what else becomes of such a socket: other programs, other sets,
 * none.
 */
#include "stream.h"

#include <spawn.h>
#include <sys/mman.h>

using namespace support;

STREAM(Calls, ALL_SHAPES);
STREAM(CallsLevel, LEVEL_SHAPES);
STREAM(CallsTcp, {true, 0}, {true, et_});
STREAM(CallsUnix, {false, 0}, {false, et_});

namespace {

#ifndef TCP_ULP
#define TCP_ULP 31
#endif

struct Pipe {
    Pipe() { EXPECT_EQ(pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0); }
    ~Pipe()
    {
        close(ends[0]);
        close(ends[1]);
    }
    int out() const { return ends[0]; }
    int in() const { return ends[1]; }
    int ends[2];
};

/* All that comes, to the end. */
std::string read_all(int fd)
{
    std::string text;
    char bytes[4096];
    for (ssize_t count; (count = read(fd, bytes, sizeof bytes)) > 0;)
        text.append(bytes, (size_t)count);
    return text;
}

/* Exactly `count`, which are on their way. */
std::string read_exactly(int fd, size_t count)
{
    std::string text(count, 0);
    size_t got = 0;
    struct pollfd look = {fd, POLLIN, 0};
    while (got < count && past::poll(&look, 1, 20000) == 1) {
        ssize_t one = read(fd, &text[got], count - got);
        if (one <= 0)
            break;
        got += (size_t)one;
    }
    text.resize(got);
    return text;
}

int file_of(const std::string &text)
{
    int fd = memfd_create("text", MFD_CLOEXEC);
    EXPECT_EQ(pwrite(fd, text.data(), text.size(), 0), (ssize_t)text.size());
    return fd;
}

} // namespace

/* A second fd that is always ready: */
#define IN_COMPANY(name)                                                                                          \
    int name = own(eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK));                                                       \
    do {                                                                                                          \
        struct epoll_event always = {};                                                                           \
        always.events = in_;                                                                                      \
        always.data.fd = name;                                                                                    \
        ASSERT_EQ(epoll_ctl(set_, EPOLL_CTL_ADD, name, &always), 0);                                              \
    } while (0)
/* a turn of two events. What is written to `a` after it waits for its end in a profile
 * that batches. */
#define A_BUSY_TURN()                                                                                             \
    do {                                                                                                          \
        struct epoll_event both[4];                                                                               \
        send(1);                                                                                                  \
        ASSERT_EQ(epoll_wait(set_, both, 4, 20000), 2);                                                           \
        ASSERT_EQ(drain(), -EAGAIN);                                                                              \
        rearm();                                                                                                  \
    } while (0)

/* ------------------------------------------------------------------ set-up */

TEST_P(CallsTcp, AnUpperLayerIsRefusedWhileBytesAreQueuedAndChangesNothing)
{
    FOR_EVERYWHERE(where)
    {
        begin();
        place(100, where);
        EXPECT_EQ(R(setsockopt(a_, SOL_TCP, TCP_ULP, "nosuch", 6)), -ENOENT);
        if (where != Where::kernel && adopts_this()) {
            EXPECT_EQ(R(setsockopt(a_, SOL_TCP, TCP_ULP, "tls", 3)), -ENOENT) << "as a kernel without TLS";
        }
        EXPECT_EQ(state(), in_);
        EXPECT_BYTES(R(read(a_, bytes_, 60)), 60);
        EXPECT_EQ(R(setsockopt(a_, SOL_TCP, TCP_ULP, "nosuch", 6)), -ENOENT);
        send(20);
        EXPECT_EQ(state(20000), in_);
        EXPECT_BYTES(R(read(a_, bytes_, 1000)), 60);
        EXPECT_EQ(R(read(a_, bytes_, 1000)), -EAGAIN);
        reset(b_);
        end_arrived(true);
        EXPECT_EQ(R(read(a_, bytes_, 1000)), -ECONNRESET);
    }
}

TEST_P(CallsTcp, ALowWaterMarkHoldsForWhatComesAfterIt)
{
    begin();
    int most = 100;
    EXPECT_EQ(R(setsockopt(a_, SOL_SOCKET, SO_RCVLOWAT, &most, sizeof most)), 0);
    for (int round = 0; round < 5; round++) {
        send(50);
        EXPECT_EQ(wait(), 0u) << "too few";
        EXPECT_EQ(state(), 0u);
        send(49);
        EXPECT_EQ(wait(), 0u) << "one too few";
        send(1);
        EXPECT_EQ(wait(20000), in_);
        EXPECT_EQ(state(), in_);
        EXPECT_BYTES(R(read(a_, bytes_, 70)), 70);
        EXPECT_EQ(state(), 0u) << "30 are left";
        EXPECT_BYTES(R(read(a_, bytes_, 70)), 30);
    }
    most = 1;
    EXPECT_EQ(R(setsockopt(a_, SOL_SOCKET, SO_RCVLOWAT, &most, sizeof most)), 0);
    send(1);
    EXPECT_EQ(wait(20000), in_);
    EXPECT_BYTES(R(read(a_, bytes_, 70)), 1);
}

/* docs/design.md, known differences: what is in the library then is reported all the same. */
TEST_P(CallsTcp, ALowWaterMarkThatIsSetAboveWhatIsThere)
{
    FOR_EVERYWHERE(where)
    {
        begin();
        place(50, where);
        int most = 100;
        EXPECT_EQ(R(setsockopt(a_, SOL_SOCKET, SO_RCVLOWAT, &most, sizeof most)), 0);
        EXPECT_EQ(state(), where != Where::kernel && adopts_this() ? in_ : 0u);
        EXPECT_BYTES(R(read(a_, bytes_, 1000)), 50);
        send(99);
        EXPECT_EQ(state(), 0u);
        send(1);
        EXPECT_EQ(state(20000), in_);
        EXPECT_BYTES(R(read(a_, bytes_, 1000)), 100);
    }
}

TEST_P(Calls, ABlockingReadWaitsForTheLowWaterMark)
{
    begin();
    set_blocking(true);
    int most = 80;
    EXPECT_EQ(R(setsockopt(a_, SOL_SOCKET, SO_RCVLOWAT, &most, sizeof most)), 0);
    send(50);
    pid_t reader = this_thread();
    Worker worker([&] {
        until_it_sleeps(reader);
        send(80); /* TCP compares with what is unread then: 50 were taken out */
    });
    EXPECT_BYTES(R(recv(a_, bytes_, 1000, 0)), 130);
    worker.join();
    EXPECT_EQ(R(recv(a_, bytes_, 1000, MSG_DONTWAIT)), -EAGAIN);
}

TEST_P(Calls, AReceiveTimeoutEndsAReadThatWantsMore)
{
    FOR_EVERYWHERE(where)
    {
        begin();
        place(300, where);
        struct timeval time = {0, 20000}, none = {0, 0};
        EXPECT_EQ(R(setsockopt(a_, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time)), 0);
        set_blocking(true);
        EXPECT_BYTES(R(recv(a_, bytes_, 1000, MSG_WAITALL)), 300);
        EXPECT_EQ(R(recv(a_, bytes_, 1000, MSG_WAITALL)), -EAGAIN);
        EXPECT_EQ(R(recv(a_, bytes_, 1000, 0)), -EAGAIN);
        EXPECT_EQ(R(read(a_, bytes_, 1000)), -EAGAIN);
        EXPECT_EQ(R(setsockopt(a_, SOL_SOCKET, SO_RCVTIMEO, &none, sizeof none)), 0);
        send(10);
        EXPECT_BYTES(R(read(a_, bytes_, 1000)), 10);
    }
}

/* ------------------------------------------------------------------ splice */

TEST_P(Calls, ASpliceTakesTheBytesInTheirOrder)
{
    FOR_EVERYWHERE(where)
    {
        begin();
        Pipe pipe;
        EXPECT_EQ(R(splice(a_, nullptr, pipe.in(), nullptr, 100, SPLICE_F_NONBLOCK)), -EAGAIN);
        place(1000, where);
        EXPECT_EQ(R(splice(a_, nullptr, pipe.in(), nullptr, 300, SPLICE_F_NONBLOCK)), 300);
        EXPECT_TRUE(read_exactly(pipe.out(), 300) == expected(300));
        EXPECT_BYTES(R(read(a_, bytes_, 100)), 100);
        EXPECT_EQ(state() & in_, in_);
        std::string all;
        while (all.size() < 600) { /* how many at once is nobody's promise */
            long one = R(splice(a_, nullptr, pipe.in(), nullptr, 10000, SPLICE_F_NONBLOCK));
            ASSERT_GT(one, 0);
            all += read_exactly(pipe.out(), (size_t)one);
        }
        EXPECT_TRUE(all == expected(600));
        EXPECT_EQ(R(splice(a_, nullptr, pipe.in(), nullptr, 100, SPLICE_F_NONBLOCK)), -EAGAIN);
        EXPECT_EQ(state(), 0u);
        EXPECT_EQ(shutdown(b_, SHUT_WR), 0);
        end_arrived();
        EXPECT_EQ(R(splice(a_, nullptr, pipe.in(), nullptr, 100, SPLICE_F_NONBLOCK)), 0);
    }
}

TEST_P(Calls, ASpliceThatCannotBeTakesNothing)
{
    FOR_EVERYWHERE(where)
    {
        begin();
        place(100, where);
        Pipe pipe;
        off64_t offset = 0;
        int file = own(file_of("")), others[2];
        connect_pair(others);
        EXPECT_EQ(R(splice(a_, nullptr, others[0], nullptr, 10, 0)), -EINVAL) << "no pipe";
        EXPECT_EQ(R(splice(a_, nullptr, file, nullptr, 10, 0)), -EINVAL) << "no pipe";
        EXPECT_EQ(R(splice(a_, nullptr, pipe.out(), nullptr, 10, 0)), -EBADF) << "its other end";
        EXPECT_EQ(R(splice(a_, &offset, pipe.in(), nullptr, 10, 0)), -EINVAL) << "a place in a socket";
        EXPECT_EQ(R(splice(a_, nullptr, pipe.in(), &offset, 10, 0)), -ESPIPE) << "a place in a pipe";
        EXPECT_EQ(R(splice(a_, nullptr, -1, nullptr, 10, 0)), -EBADF);
        EXPECT_EQ(R(splice(a_, nullptr, pipe.in(), nullptr, 10, 0x4000)), -EINVAL) << "a flag that is none";
        EXPECT_EQ(R(splice(a_, nullptr, pipe.in(), nullptr, 0, 0)), 0);
        char some[4096] = {};
        while (write(pipe.in(), some, sizeof some) > 0)
            continue;
        EXPECT_EQ(R(splice(a_, nullptr, pipe.in(), nullptr, 10, SPLICE_F_NONBLOCK)), -EAGAIN) << "a full pipe";
        EXPECT_BYTES(R(read(a_, bytes_, 1000)), 100);
        EXPECT_EQ(R(recv(others[1], bytes_, 1000, 0)), -EAGAIN);
        EXPECT_EQ(lseek(file, 0, SEEK_END), 0);
    }
}

/* One pipe is the source of another and of the socket; what was written before goes first. */
TEST_P(Calls, ATeeAndASpliceBehindWritesComeBehindThem)
{
    begin();
    IN_COMPANY(company);
    for (int round = 0; round < 5; round++) {
        Pipe one, other;
        A_BUSY_TURN();
        EXPECT_EQ(R(write(a_, "written, ", 9)), 9);
        ASSERT_EQ(write(one.in(), "spliced, ", 9), 9);
        EXPECT_EQ(R(tee(one.out(), other.in(), 100, 0)), 9);
        EXPECT_EQ(R(splice(one.out(), nullptr, a_, nullptr, 100, 0)), 9);
        EXPECT_EQ(R(write(a_, "and ", 4)), 4);
        EXPECT_EQ(R(splice(other.out(), nullptr, a_, nullptr, 100, 0)), 9);
        EXPECT_EQ(R(write(a_, "written", 7)), 7);
        EXPECT_EQ(wait(0, company), in_);
        EXPECT_EQ(read_exactly(b_, 38), "written, spliced, and spliced, written");
    }
}

/* ------------------------------------------------------------------- sends */

TEST_P(Calls, AFileBehindWritesComesBehindThem)
{
    begin();
    IN_COMPANY(company);
    std::string text = text_of(7, 5000);
    int file = own(file_of(text));
    for (int round = 0; round < 5; round++) {
        off_t offset = 0;
        A_BUSY_TURN();
        EXPECT_EQ(R(write(a_, "head", 4)), 4);
        EXPECT_EQ(R(sendfile(a_, file, &offset, 5000)), 5000);
        EXPECT_EQ(offset, 5000);
        EXPECT_EQ(R(::send(a_, "tail", 4, MSG_NOSIGNAL)), 4);
        EXPECT_EQ(R(sendfile(a_, file, &offset, 5000)), 0) << "the file's end";
        EXPECT_EQ(wait(0, company), in_);
        EXPECT_TRUE(read_exactly(b_, 5008) == "head" + text + "tail");
    }
}

/* As many as there is room for; their lengths say what went, to the byte. */
TEST_P(Calls, SendmmsgIntoASocketThatFillsTellsHowFarItCame)
{
    begin();
    int least = 1;
    ASSERT_EQ(setsockopt(a_, SOL_SOCKET, SO_SNDBUF, &least, sizeof least), 0);
    IN_COMPANY(company);
    constexpr unsigned many = 1024;
    static struct mmsghdr messages[many];
    std::string text = text_of(99, many * 1000);
    struct iovec iov[many];
    memset(messages, 0, sizeof messages);
    for (unsigned i = 0; i < many; i++) {
        iov[i] = {&text[i * 1000], 1000};
        messages[i].msg_hdr.msg_iov = &iov[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    A_BUSY_TURN();
    EXPECT_EQ(R(write(a_, "head", 4)), 4);
    long went = R(sendmmsg(a_, messages, many, MSG_DONTWAIT));
    ASSERT_GT(went, 0);
    ASSERT_LT(went, (long)many);
    size_t sum = 0;
    for (long i = 0; i < went; i++) {
        EXPECT_TRUE(messages[i].msg_len == 1000 || i == went - 1) << i;
        sum += messages[i].msg_len;
    }
    long next = R(sendmmsg(a_, messages, many, MSG_DONTWAIT));
    for (long i = 0; i < next; i++) /* there may have come room */
        sum += messages[i].msg_len;
    EXPECT_TRUE(next > 0 || next == -EAGAIN) << next;
    if (next < 0) {
        EXPECT_EQ(read_exactly(b_, 4), "head");
        EXPECT_TRUE(read_exactly(b_, sum) == text.substr(0, sum));
        EXPECT_EQ(R(recv(b_, bytes_, 10, MSG_DONTWAIT)), -EAGAIN) << "and not one more";
        modify(in_ | out_);
        EXPECT_EQ(wait(20000) & out_, out_);
        EXPECT_EQ(wait(0, company), in_);
    }
}

TEST_P(Calls, SendmmsgBehindWritesComesBehindThem)
{
    begin();
    IN_COMPANY(company);
    for (int round = 0; round < 5; round++) {
        struct iovec iov[2] = {{(void *)"two ", 4}, {(void *)"three ", 6}};
        struct mmsghdr messages[2] = {};
        for (int i = 0; i < 2; i++) {
            messages[i].msg_hdr.msg_iov = &iov[i];
            messages[i].msg_hdr.msg_iovlen = 1;
        }
        A_BUSY_TURN();
        EXPECT_EQ(R(write(a_, "one ", 4)), 4);
        EXPECT_EQ(R(sendmmsg(a_, messages, 2, 0)), 2);
        EXPECT_EQ(messages[0].msg_len, 4u);
        EXPECT_EQ(messages[1].msg_len, 6u);
        EXPECT_EQ(R(write(a_, "four", 4)), 4);
        EXPECT_EQ(wait(0, company), in_);
        EXPECT_EQ(read_exactly(b_, 18), "one two three four");
    }
}

/* What was written counts, wherever it is. */
TEST_P(CallsUnix, SiocoutqCountsWritesOfThisTurn)
{
    begin();
    IN_COMPANY(company);
    for (int round = 0; round < 5; round++) {
        int before = -1, behind = -1, after = -1;
        A_BUSY_TURN();
        EXPECT_EQ(R(ioctl(a_, SIOCOUTQ, &before)), 0);
        EXPECT_EQ(R(write(a_, bytes_, 100)), 100);
        EXPECT_EQ(R(ioctl(a_, SIOCOUTQ, &behind)), 0);
        EXPECT_EQ(read_exactly(b_, 100).size(), 100u);
        EXPECT_EQ(R(ioctl(a_, SIOCOUTQ, &after)), 0);
        EXPECT_EQ(before, 0);
        EXPECT_GE(behind, 100);
        EXPECT_EQ(after, 0);
        EXPECT_EQ(wait(0, company), in_);
    }
}

/* -------------------------------------------------------------- other sets */

TEST_P(Calls, RemovedFromItsSetItIsAPlainSocket)
{
    FOR_EVERYWHERE(where)
    {
        for (bool again : {false, true}) {
            begin();
            place(300, where);
            ASSERT_EQ(R(epoll_ctl(set_, EPOLL_CTL_DEL, a_, nullptr)), 0);
            EXPECT_EQ(wait(), 0u);
            struct pollfd look = {a_, POLLIN, 0};
            EXPECT_EQ(R(poll(&look, 1, 0)), 1);
            EXPECT_BYTES(R(read(a_, bytes_, 100)), 100);
            send(50);
            EXPECT_EQ(wait(), 0u);
            if (again) {
                struct epoll_event event = {};
                event.events = in_ | trigger();
                event.data.fd = a_;
                EXPECT_EQ(R(epoll_ctl(set_, EPOLL_CTL_MOD, a_, &event)), -ENOENT);
                EXPECT_EQ(R(epoll_ctl(set_, EPOLL_CTL_ADD, a_, &event)), 0);
                EXPECT_EQ(R(epoll_ctl(set_, EPOLL_CTL_ADD, a_, &event)), -EEXIST);
                EXPECT_EQ(wait(20000), in_);
                EXPECT_EQ(wait(), level() ? in_ : 0u);
            } else {
                EXPECT_EQ(R(epoll_ctl(set_, EPOLL_CTL_DEL, a_, nullptr)), -ENOENT);
            }
            EXPECT_BYTES(R(recv(a_, bytes_, 1000, 0)), 250);
            EXPECT_EQ(R(read(a_, bytes_, 100)), -EAGAIN);
            EXPECT_EQ(R(poll(&look, 1, 0)), 0);
            EXPECT_EQ(R(write(a_, "out", 3)), 3);
            EXPECT_EQ(read_exactly(b_, 3), "out");
            EXPECT_EQ(shutdown(b_, SHUT_WR), 0);
            end_arrived();
            EXPECT_EQ(R(read(a_, bytes_, 100)), 0);
            EXPECT_EQ(again ? state() & in_ : wait(), again ? in_ : 0u) << "the end";
        }
    }
}

TEST_P(CallsLevel, TwoSetsTellOfTheSameBytesUntilTheyAreRead)
{
    FOR_EVERYWHERE(where)
    {
        begin();
        place(300, where);
        int second = own(epoll_create1(EPOLL_CLOEXEC));
        struct epoll_event event = {}, got = {};
        event.events = in_;
        ASSERT_EQ(R(epoll_ctl(second, EPOLL_CTL_ADD, a_, &event)), 0);
        for (int round = 0; round < 3; round++) {
            EXPECT_EQ(wait(), in_) << round;
            EXPECT_EQ(epoll_wait(second, &got, 1, 0), 1) << round;
            EXPECT_EQ(got.events, in_);
            EXPECT_BYTES(R(read(a_, bytes_, 100)), 100);
        }
        EXPECT_EQ(wait(), 0u);
        EXPECT_EQ(epoll_wait(second, &got, 1, 0), 0);
        send(10);
        EXPECT_EQ(epoll_wait(second, &got, 1, 20000), 1);
        EXPECT_EQ(wait(20000), in_);
        EXPECT_BYTES(R(read(a_, bytes_, 100)), 10);
        ASSERT_EQ(R(epoll_ctl(second, EPOLL_CTL_DEL, a_, nullptr)), 0);
        send(10);
        EXPECT_EQ(wait(20000), in_);
        EXPECT_EQ(epoll_wait(second, &got, 1, 0), 0);
        EXPECT_BYTES(R(read(a_, bytes_, 100)), 10);
    }
}

/* ---------------------------------------------------------- other programs */

/* What is in the kernel, and what comes, is the child's for the asking; the socket is
 * this program's all the same. */
TEST_P(Calls, ASpawnedProgramReadsWhatCameBeforeAndAfter)
{
    begin();
    place(1000, Where::kernel);
    ASSERT_EQ(fcntl(a_, F_SETFD, 0), 0);
    set_blocking(true);
    int output[2];
    ASSERT_EQ(pipe2(output, O_CLOEXEC), 0);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, output[1], 1);
    std::string number = std::to_string(a_);
    char read_word[] = "--read", count[] = "1500", path[] = "/proc/self/exe";
    char *arguments[] = {path, read_word, &number[0], count, nullptr};
    pid_t child;
    ASSERT_EQ(posix_spawn(&child, path, &actions, nullptr, arguments, environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    close(output[1]);
    std::string first = read_exactly(output[0], 1000);
    EXPECT_TRUE(first == expected(1000)) << first.size();
    send(500);
    EXPECT_TRUE(read_all(output[0]) == expected(500));
    close(output[0]);
    EXPECT_TRUE(child_is_content(child));
    set_blocking(false);
    EXPECT_EQ(R(read(a_, bytes_, 100)), -EAGAIN);
    rearm();
    send(10);
    EXPECT_EQ(wait(20000), in_);
    EXPECT_BYTES(R(read(a_, bytes_, 100)), 10);
    EXPECT_EQ(R(write(a_, "out", 3)), 3);
    EXPECT_EQ(read_exactly(b_, 3), "out");
}

/* The process that has the socket adopted becomes another program, which has the socket
 * and is sent more by somebody else.
 *
 * docs/design.md, known differences: what the library has received goes with the process
 * that received it. */
TEST_P(Calls, AProgramThatTakesThisOnesPlaceReadsWhatIsInTheKernelAndWhatComes)
{
    for (Where where : {Where::kernel, Where::library}) {
        int output[2], channel[2];
        ASSERT_EQ(pipe2(output, O_CLOEXEC), 0);
        ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, channel), 0);
        pid_t child = fork();
        if (child == 0) {
            begin();
            IN_CHILD(!HasFailure());
            if (where == Where::library)
                place(700, where);
            send(where == Where::library ? 300 : 1000);
            IN_CHILD(fcntl(a_, F_SETFL, O_RDWR) == 0);
            alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof b_)] = {};
            struct iovec iov = {&taken_, sizeof taken_};
            struct msghdr message = {};
            message.msg_iov = &iov;
            message.msg_iovlen = 1;
            message.msg_control = control;
            message.msg_controllen = sizeof control;
            struct cmsghdr *header = CMSG_FIRSTHDR(&message);
            header->cmsg_level = SOL_SOCKET;
            header->cmsg_type = SCM_RIGHTS;
            header->cmsg_len = CMSG_LEN(sizeof b_);
            memcpy(CMSG_DATA(header), &b_, sizeof b_);
            IN_CHILD(sendmsg(channel[1], &message, 0) == (ssize_t)sizeof taken_);
            IN_CHILD(fcntl(a_, F_SETFD, 0) == 0 && dup2(output[1], 1) == 1 && !HasFailure());
            std::string number = std::to_string(a_);
            const char *count = where == Where::library && adopts_this() ? "800" : "1500";
            execl("/proc/self/exe", "stream", "--read", number.c_str(), count, (char *)nullptr);
            _exit(99);
        }
        close(output[1]);
        close(channel[1]);
        alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof b_)];
        struct iovec iov = {&taken_, sizeof taken_};
        struct msghdr message = {};
        message.msg_iov = &iov;
        message.msg_iovlen = 1;
        message.msg_control = control;
        message.msg_controllen = sizeof control;
        int peer = -1;
        if (recvmsg(channel[0], &message, MSG_CMSG_CLOEXEC) == (ssize_t)sizeof taken_ && CMSG_FIRSTHDR(&message)) {
            memcpy(&peer, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof peer);
            if (where == Where::library && adopts_this())
                expected(700); /* gone */
            size_t before = where == Where::library && adopts_this() ? 300 : 1000;
            EXPECT_TRUE(read_exactly(output[0], before) == expected(before));
            std::string more = coming(500);
            EXPECT_EQ(::send(peer, more.data(), 500, MSG_NOSIGNAL), 500);
            EXPECT_TRUE(read_all(output[0]) == more);
            EXPECT_EQ(R(read(peer, bytes_, 10)), 0) << "it has left, and with it the socket";
            close(peer);
        }
        EXPECT_TRUE(child_is_content(child));
        EXPECT_GE(peer, 0);
        close(output[0]);
        close(channel[0]);
    }
}

/* What daemon() leaves goes on with the socket, wherever its bytes are. */
TEST_P(Calls, ADaemonGoesOnWithItsSocket)
{
    FOR_EVERYWHERE(where)
    {
        Pipe report;
        fcntl(report.out(), F_SETFL, 0);
        pid_t child = fork();
        if (child == 0) {
            begin();
            place(300, where);
            IN_CHILD(!HasFailure());
            IN_CHILD(daemon(1, 1) == 0); /* its caller leaves */
            long first = R(read(a_, bytes_, 100));
            bool right = first == 100 && std::string(bytes_, 100) == expected(100);
            send(50);
            right = right && (state(20000) & in_) == in_;
            long rest = R(read(a_, bytes_, 1000));
            right = right && rest == 250 && std::string(bytes_, 250) == expected(250);
            right = right && R(read(a_, bytes_, 1000)) == -EAGAIN && wait() == 0;
            right = right && write(a_, "out", 3) == 3 && read_exactly(b_, 3) == "out";
            close_now(b_);
            end_arrived();
            right = right && (state(20000) & in_) && R(read(a_, bytes_, 1000)) == 0 && !HasFailure();
            ssize_t ignored = write(report.in(), right ? "right" : "wrong", 5);
            (void)ignored;
            _exit(0);
        }
        close(report.ends[1]);
        report.ends[1] = -1;
        EXPECT_TRUE(child_is_content(child));
        EXPECT_EQ(read_all(report.out()), "right");
    }
}
