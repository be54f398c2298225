/* SPDX-License-Identifier: MIT
 *
 * How a stream ends: FIN, RST, shutdown here and there, errors; what each read,
 * write and wait says before and after.
 */
#include "stream.h"

using namespace support;

STREAM(End, ALL_SHAPES);
STREAM(Reset, {true, 0}, {true, et_}, {true, once_});
STREAM(UnixEnd, {false, 0}, {false, et_}, {false, once_});
STREAM(Close, LEVEL_SHAPES);

namespace {
std::atomic<int> pipes_broken{0};
void count_broken_pipe(int)
{
    pipes_broken++;
}

/* SIGPIPE is counted while this lives. */
class BrokenPipes {
public:
    BrokenPipes()
    {
        pipes_broken = 0;
        signal(SIGPIPE, count_broken_pipe);
    }
    ~BrokenPipes() { signal(SIGPIPE, SIG_IGN); }
    int count() { return pipes_broken.exchange(0); }
};

int error_of(int fd)
{
    int error = -1;
    socklen_t length = sizeof error;
    EXPECT_EQ(R(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length)), 0);
    EXPECT_EQ(length, sizeof error);
    return error;
}
} // namespace

TEST_P(End, AHalfCloseIsReadAfterTheBytes)
{
    for (uint32_t events : {in_, in_ | rdhup_})
        FOR_EVERYWHERE(where)
        {
            begin(events);
            place(100, where);
            ASSERT_EQ(::shutdown(b_, SHUT_WR), 0);
            end_arrived();
            EXPECT_EQ(state(), events);
            EXPECT_BYTES(R(read(a_, bytes_, 60)), 60);
            EXPECT_EQ(state(), events);
            int count = -1;
            EXPECT_EQ(R(ioctl(a_, FIONREAD, &count)), 0);
            EXPECT_EQ(count, 40);
            EXPECT_BYTES(R(read(a_, bytes_, 60)), 40);
            EXPECT_EQ(R(read(a_, bytes_, 60)), 0);
            EXPECT_EQ(state(), events);
            EXPECT_EQ(R(recv(a_, bytes_, 60, MSG_PEEK)), 0);
            EXPECT_EQ(R(recv(a_, bytes_, 60, MSG_DONTWAIT)), 0);
            EXPECT_EQ(state(), events);
            EXPECT_EQ(R(ioctl(a_, FIONREAD, &count)), 0);
            EXPECT_EQ(count, 0);
            /* The other half is open. */
            EXPECT_EQ(R(write(a_, "answer", 6)), 6);
            EXPECT_EQ(read(b_, bytes_, 10), 6);
        }
}

TEST_P(End, AHalfCloseAloneIsReported)
{
    for (uint32_t events : {in_, in_ | rdhup_, in_ | out_ | rdhup_}) {
        begin(events);
        ASSERT_EQ(::shutdown(b_, SHUT_WR), 0);
        end_arrived();
        EXPECT_EQ(wait(20000), events);
        EXPECT_EQ(wait(), level() ? events : 0u);
        EXPECT_EQ(R(read(a_, bytes_, 10)), 0);
        EXPECT_EQ(state(), events);
        EXPECT_EQ(error_of(a_), 0);
    }
}

TEST_P(End, BytesAndTheEndInOneTurn)
{
    for (uint32_t events : {in_, in_ | rdhup_}) {
        begin(events);
        send(30);
        ASSERT_EQ(::shutdown(b_, SHUT_WR), 0);
        end_arrived();
        EXPECT_EQ(wait(20000), events);
        EXPECT_BYTES(R(read(a_, bytes_, 100)), 30);
        EXPECT_EQ(R(read(a_, bytes_, 100)), 0);
        EXPECT_EQ(state(), events);
    }
}

TEST_P(End, AnEdgeAfterTheBytesWereRead)
{
    begin(in_ | rdhup_);
    send(30);
    EXPECT_EQ(wait(20000), in_);
    EXPECT_EQ(drain(), -EAGAIN);
    rearm();
    EXPECT_EQ(wait(), 0u);
    ASSERT_EQ(::shutdown(b_, SHUT_WR), 0);
    end_arrived();
    EXPECT_EQ(wait(20000), in_ | rdhup_);
    EXPECT_EQ(R(read(a_, bytes_, 10)), 0);
    EXPECT_EQ(wait(), level() ? in_ | rdhup_ : 0u);
}

TEST_P(End, ThePeerClosesWithNothingUnread)
{
    for (uint32_t events : {in_, in_ | rdhup_, in_ | out_}) {
        begin(events);
        send(30);
        ASSERT_EQ(close_now(b_), 0);
        end_arrived();
        uint32_t bits = events | (tcp() ? 0 : hup_);
        EXPECT_EQ(wait(20000), bits);
        EXPECT_BYTES(R(read(a_, bytes_, 10)), 10);
        EXPECT_EQ(state(), bits);
        EXPECT_BYTES(R(read(a_, bytes_, 100)), 20);
        EXPECT_EQ(R(read(a_, bytes_, 100)), 0);
        EXPECT_EQ(state(), bits);
    }
}

TEST_P(End, AWriteToAPeerThatHasGone)
{
    BrokenPipes broken;
    begin(in_ | rdhup_);
    send(30);
    ASSERT_EQ(close_now(b_), 0);
    end_arrived();
    if (tcp()) {
        EXPECT_EQ(R(write(a_, "x", 1)), 1);
        end_arrived(true);
        EXPECT_EQ(broken.count(), 0);
        EXPECT_EQ(R(write(a_, "x", 1)), -EPIPE);
        EXPECT_EQ(broken.count(), 1);
        /* A FIN, then a RST: EPIPE is what tcp_reset() sets. */
        EXPECT_EQ(error_of(a_), 0);
    } else {
        EXPECT_EQ(R(write(a_, "x", 1)), -EPIPE);
        EXPECT_EQ(broken.count(), 1);
        EXPECT_EQ(R(::send(a_, "x", 1, MSG_NOSIGNAL)), -EPIPE);
        EXPECT_EQ(broken.count(), 0);
    }
    EXPECT_BYTES(R(read(a_, bytes_, 100)), 30);
    EXPECT_EQ(R(read(a_, bytes_, 100)), 0);
    EXPECT_EQ(R(read(a_, bytes_, 100)), 0);
}

TEST_P(End, ShutdownOfTheReadSideHere)
{
    FOR_EVERYWHERE(where)
    {
        begin(in_ | rdhup_);
        place(30, where);
        EXPECT_EQ(R(::shutdown(a_, SHUT_RD)), 0);
        EXPECT_EQ(state(), in_ | rdhup_);
        EXPECT_BYTES(R(read(a_, bytes_, 10)), 10);
        EXPECT_BYTES(R(read(a_, bytes_, 100)), 20);
        EXPECT_EQ(R(read(a_, bytes_, 100)), 0);
        EXPECT_EQ(state(), in_ | rdhup_);
        if (tcp()) { /* which goes on to receive */
            send(5);
            EXPECT_BYTES(R(read(a_, bytes_, 100)), 5);
            EXPECT_EQ(R(read(a_, bytes_, 100)), 0);
        } else {
            EXPECT_EQ(R(::send(b_, "x", 1, MSG_NOSIGNAL)), -EPIPE);
        }
    }
}

TEST_P(End, ShutdownOfTheWriteSideHere)
{
    BrokenPipes broken;
    FOR_EVERYWHERE(where)
    {
        begin(in_ | rdhup_);
        place(30, where);
        EXPECT_EQ(R(::shutdown(a_, SHUT_WR)), 0);
        EXPECT_EQ(R(write(a_, "x", 1)), -EPIPE);
        EXPECT_EQ(broken.count(), 1);
        EXPECT_BYTES(R(read(a_, bytes_, 100)), 30);
        EXPECT_EQ(R(read(a_, bytes_, 100)), -EAGAIN);
        EXPECT_EQ(state(), 0u);
        rearm();
        send(5);
        EXPECT_EQ(wait(20000), in_);
        EXPECT_BYTES(R(read(a_, bytes_, 100)), 5);
        rearm();
        ASSERT_EQ(::shutdown(b_, SHUT_WR), 0);
        EXPECT_EQ(wait(20000), in_ | rdhup_ | hup_);
        EXPECT_EQ(R(read(a_, bytes_, 100)), 0);
    }
}

TEST_P(End, ShutdownOfBothSidesHere)
{
    FOR_EVERYWHERE(where)
    {
        begin(in_ | rdhup_);
        place(30, where);
        EXPECT_EQ(R(::shutdown(a_, SHUT_RDWR)), 0);
        EXPECT_EQ(state() & (in_ | rdhup_), in_ | rdhup_);
        EXPECT_BYTES(R(read(a_, bytes_, 100)), 30);
        EXPECT_EQ(R(read(a_, bytes_, 100)), 0);
        EXPECT_EQ(R(::send(a_, "x", 1, MSG_NOSIGNAL)), -EPIPE);
    }
}

/* --------------------------------------------------------------------- RST */

TEST_P(Reset, BytesThenTheErrorThenTheEnd)
{
    for (uint32_t events : {in_, in_ | rdhup_, in_ | out_ | rdhup_})
        FOR_EVERYWHERE(where)
        {
            begin(events);
            place(30, where);
            reset(b_);
            end_arrived(true);
            EXPECT_EQ(state(), events | err_ | hup_);
            EXPECT_BYTES(R(read(a_, bytes_, 10)), 10);
            EXPECT_EQ(state(), events | err_ | hup_);
            EXPECT_BYTES(R(read(a_, bytes_, 100)), 20);
            EXPECT_EQ(state(), events | err_ | hup_);
            EXPECT_EQ(R(read(a_, bytes_, 100)), -ECONNRESET);
            EXPECT_EQ(state(), events | hup_);
            EXPECT_EQ(R(read(a_, bytes_, 100)), 0);
            EXPECT_EQ(R(read(a_, bytes_, 100)), 0);
            EXPECT_EQ(error_of(a_), 0);
            EXPECT_EQ(state(), events | hup_);
        }
}

TEST_P(Reset, SeenByAWaitFirst)
{
    for (bool bytes_first : {false, true}) {
        begin(in_ | rdhup_);
        if (bytes_first)
            send(30);
        reset(b_);
        end_arrived(true);
        EXPECT_EQ(wait(20000), in_ | rdhup_ | err_ | hup_);
        EXPECT_EQ(state(), in_ | rdhup_ | err_ | hup_);
        if (bytes_first)
            EXPECT_BYTES(R(read(a_, bytes_, 100)), 30);
        EXPECT_EQ(R(read(a_, bytes_, 100)), -ECONNRESET);
        EXPECT_EQ(R(read(a_, bytes_, 100)), 0);
        EXPECT_EQ(state(), in_ | rdhup_ | hup_);
    }
}

TEST_P(Reset, PeekTakesTheErrorToo)
{
    for (bool wait_first : {false, true}) {
        begin(in_ | rdhup_);
        reset(b_);
        end_arrived(true);
        if (wait_first) {
            EXPECT_EQ(wait(20000), in_ | rdhup_ | err_ | hup_);
        }
        EXPECT_EQ(R(recv(a_, bytes_, 100, MSG_PEEK)), -ECONNRESET);
        EXPECT_EQ(R(recv(a_, bytes_, 100, MSG_PEEK)), 0);
        EXPECT_EQ(R(read(a_, bytes_, 100)), 0);
    }
}

TEST_P(Reset, SoErrorTellsOnce)
{
    for (bool wait_first : {false, true}) {
        begin(in_ | rdhup_);
        send(30);
        reset(b_);
        end_arrived(true);
        if (wait_first) {
            EXPECT_EQ(wait(20000), in_ | rdhup_ | err_ | hup_);
        }
        EXPECT_EQ(error_of(a_), ECONNRESET);
        EXPECT_EQ(error_of(a_), 0);
        EXPECT_EQ(state(), in_ | rdhup_ | hup_);
        EXPECT_BYTES(R(read(a_, bytes_, 100)), 30);
        EXPECT_EQ(R(read(a_, bytes_, 100)), 0);
    }
}

TEST_P(Reset, AShortSoErrorIsCutAsByTheKernel)
{
    begin(in_);
    reset(b_);
    end_arrived(true);
    EXPECT_TRUE(wait(20000) & err_);
    char two[4] = {0x55, 0x55, 0x55, 0x55};
    socklen_t length = 2;
    EXPECT_EQ(R(getsockopt(a_, SOL_SOCKET, SO_ERROR, two, &length)), 0);
    EXPECT_EQ(length, 2u);
    EXPECT_EQ(two[0], (char)ECONNRESET);
    EXPECT_EQ(two[2], 0x55);
    EXPECT_EQ(R(read(a_, bytes_, 100)), 0);
}

TEST_P(Reset, AWriteIsToldFirst)
{
    BrokenPipes broken;
    using Write = std::function<long(int)>;
    const Write writes[] = {
        [](int fd) { return R(write(fd, "x", 1)); },
        [](int fd) { return R(::send(fd, "x", 1, 0)); },
        [](int fd) { return R(sendto(fd, "x", 1, 0, nullptr, 0)); },
        [](int fd) {
            struct iovec vector = {(void *)"x", 1};
            return R(writev(fd, &vector, 1));
        },
        [](int fd) {
            struct iovec vector = {(void *)"x", 1};
            struct msghdr message = {};
            message.msg_iov = &vector;
            message.msg_iovlen = 1;
            return R(sendmsg(fd, &message, 0));
        },
        [](int fd) {
            struct iovec vector = {(void *)"x", 1};
            struct mmsghdr message = {};
            message.msg_hdr.msg_iov = &vector;
            message.msg_hdr.msg_iovlen = 1;
            return R(sendmmsg(fd, &message, 1, 0));
        },
        [](int fd) {
            int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
            long result = R(sendfile(fd, file, nullptr, 1));
            close(file);
            return result;
        },
    };
    for (const Write &write_one : writes)
        for (bool wait_first : {false, true}) {
            SCOPED_TRACE(&write_one - writes);
            begin(in_ | rdhup_);
            send(30);
            reset(b_);
            end_arrived(true);
            if (wait_first) {
                EXPECT_EQ(wait(20000), in_ | rdhup_ | err_ | hup_);
            }
            EXPECT_EQ(write_one(a_), -ECONNRESET);
            EXPECT_EQ(broken.count(), 0);
            EXPECT_EQ(write_one(a_), -EPIPE);
            EXPECT_EQ(broken.count(), 1);
            EXPECT_BYTES(R(read(a_, bytes_, 100)), 30);
            EXPECT_EQ(R(read(a_, bytes_, 100)), 0);
        }
}

TEST_P(Reset, AfterAHalfClose)
{
    begin(in_ | rdhup_);
    send(30);
    ASSERT_EQ(::shutdown(b_, SHUT_WR), 0);
    end_arrived();
    EXPECT_EQ(wait(20000), in_ | rdhup_);
    EXPECT_EQ(R(write(a_, "x", 1)), 1);
    reset(b_);
    end_arrived(true);
    EXPECT_EQ(state(), in_ | rdhup_ | err_ | hup_);
    EXPECT_BYTES(R(read(a_, bytes_, 100)), 30);
    EXPECT_EQ(R(read(a_, bytes_, 100)), 0);
    EXPECT_EQ(error_of(a_), EPIPE);
    EXPECT_EQ(R(read(a_, bytes_, 100)), 0);
}

/* An AF_UNIX peer that goes without having read all makes it a reset. */
TEST_P(UnixEnd, ThePeerClosesWithUnreadBytes)
{
    FOR_EVERYWHERE(where)
    {
        begin(in_ | rdhup_);
        place(30, where);
        EXPECT_EQ(R(write(a_, "unread", 6)), 6);
        ASSERT_EQ(close_now(b_), 0);
        EXPECT_EQ(state(), in_ | rdhup_ | err_ | hup_);
        EXPECT_BYTES(R(read(a_, bytes_, 10)), 10);
        EXPECT_EQ(state(), in_ | rdhup_ | err_ | hup_);
        EXPECT_BYTES(R(read(a_, bytes_, 100)), 20);
        EXPECT_EQ(R(read(a_, bytes_, 100)), -ECONNRESET);
        EXPECT_EQ(state(), in_ | rdhup_ | hup_);
        EXPECT_EQ(R(read(a_, bytes_, 100)), 0);
    }
}

/* ------------------------------------------------------------------ close */

TEST_P(Close, WithNothingUnreadThePeerReadsTheEndAtOnce)
{
    for (bool wait_first : {false, true}) {
        begin();
        if (wait_first) {
            EXPECT_EQ(wait(), 0u);
        }
        EXPECT_EQ(R(write(a_, "bye", 3)), 3);
        EXPECT_EQ(R(close_now(a_)), 0);
        struct pollfd look = {b_, POLLIN | POLLRDHUP, 0};
        do
            ASSERT_EQ(past::poll(&look, 1, 20000), 1) << "no FIN";
        while (!(look.revents & POLLRDHUP));
        EXPECT_EQ(R(read(b_, bytes_, 10)), 3);
        EXPECT_EQ(R(read(b_, bytes_, 10)), 0);
        EXPECT_EQ(wait(), 0u);
    }
}

TEST_P(Close, WithUnreadBytesThePeerIsReset)
{
    FOR_EVERYWHERE(where)
    {
        begin();
        place(30, where);
        EXPECT_EQ(R(close_now(a_)), 0);
        struct pollfd look = {b_, POLLIN | POLLRDHUP, 0};
        do
            ASSERT_EQ(past::poll(&look, 1, 20000), 1) << "no end";
        while (!(look.revents & POLLHUP));
        /* What the library has received of an AF_UNIX stream nobody can put back:
         * design.md, known differences. */
        bool differs = adopts_this() && !tcp() && where == Where::library;
        EXPECT_EQ(R(read(b_, bytes_, 10)), differs ? 0 : -ECONNRESET);
        EXPECT_EQ(R(read(b_, bytes_, 10)), 0);
    }
}

TEST_P(Close, AfterAllWasReadThePeerIsNotReset)
{
    begin();
    for (size_t count : {1, 100, 4096, 10000}) {
        place(count, Where::library);
        EXPECT_EQ(drain(), -EAGAIN);
    }
    EXPECT_EQ(R(close_now(a_)), 0);
    struct pollfd look = {b_, POLLIN | POLLRDHUP, 0};
    ASSERT_EQ(past::poll(&look, 1, 20000), 1);
    EXPECT_EQ(R(read(b_, bytes_, 10)), 0);
}

TEST_P(Close, OfAPairWhoseBothEndsAreAdopted)
{
    begin();
    struct epoll_event event = {};
    event.events = in_;
    event.data.fd = b_;
    ASSERT_EQ(epoll_ctl(set_, EPOLL_CTL_ADD, b_, &event), 0);
    for (int i = 0; i < 20; i++) {
        ASSERT_EQ(write(a_, "ping", 4), 4);
        while (!(wait(20000, b_) & in_))
            ;
        EXPECT_EQ(read(b_, bytes_, 10), 4);
        EXPECT_EQ(R(read(b_, bytes_, 10)), -EAGAIN);
    }
    EXPECT_EQ(R(close_now(a_)), 0);
    EXPECT_EQ(wait(20000, b_), in_ | (tcp() ? 0 : hup_));
    EXPECT_EQ(R(read(b_, bytes_, 10)), 0);
}
