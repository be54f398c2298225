/* SPDX-License-Identifier: MIT
 *
 * Adopted sockets by the library's own API: what the shim's tests cannot reach.
 */
#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <vector>
#include <thread>

#include <gtest/gtest.h>

#include <ringpoll/ringpoll.h>

namespace {

class Adopted : public testing::Test {
protected:
    void SetUp() override
    {
        struct ringpoll_probe probe = {};
        probe.size = sizeof probe;
        uint64_t needed = RINGPOLL_FEATURE_DEFER | RINGPOLL_FEATURE_BUF_RING | RINGPOLL_FEATURE_MULTISHOT_RECV;
        if (ringpoll_get_probe(&probe) != 0 || (probe.usable & needed) != needed)
            GTEST_SKIP() << "this kernel adopts nothing";
        make(0);
    }

    void TearDown() override
    {
        for (int fd : {a_, b_, set_})
            if (fd >= 0)
                ringpoll_close(fd);
    }

    void make(uint32_t flags)
    {
        struct ringpoll_options options = {};
        options.size = sizeof options;
        options.flags = RINGPOLL_ADOPT | flags;
        options.buffers = 8;
        set_ = ringpoll_create(&options);
        ASSERT_GE(set_, 0);
        int fds[2];
        ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
        a_ = fds[0];
        b_ = fds[1];
        ringpoll_fd_opened(a_, RINGPOLL_FD_UNIX | RINGPOLL_FD_CONNECTED | RINGPOLL_FD_NONBLOCK);
        struct epoll_event event = {};
        event.events = EPOLLIN;
        ASSERT_EQ(ringpoll_ctl(set_, EPOLL_CTL_ADD, a_, &event), 0);
        for (int i = 0; i < 8 && stats().adopted == 0; i++) {
            ASSERT_EQ(write(b_, "x", 1), 1);
            ASSERT_EQ(wait(1000), 1);
            ASSERT_EQ(take(), "x");
            wait(0);
        }
        ASSERT_EQ(stats().adopted, 1u);
    }

    struct ringpoll_stats stats()
    {
        struct ringpoll_stats stats = {};
        stats.size = sizeof stats;
        EXPECT_EQ(ringpoll_get_stats(set_, &stats), 0);
        return stats;
    }

    int wait(int ms)
    {
        struct timespec time = {ms / 1000, ms % 1000 * 1000000};
        struct epoll_event event = {};
        return ringpoll_wait(set_, &event, 1, &time, nullptr);
    }

    /* What there is, by whichever call gives it. */
    std::string take()
    {
        std::string all;
        char bytes[64];
        for (;;) {
            long got = ringpoll_try_recv(a_, bytes, sizeof bytes, 0);
            if (got == RINGPOLL_PASS) {
                got = read(a_, bytes, sizeof bytes);
                ringpoll_fd_read(a_, sizeof bytes, got < 0 ? -errno : got);
                if (got < 0)
                    got = -errno;
            }
            if (got <= 0)
                return all;
            all.append(bytes, (size_t)got);
        }
    }

    int set_ = -1, a_ = -1, b_ = -1;
};

TEST_F(Adopted, BytesAreBorrowedWithoutACopy)
{
    ASSERT_EQ(write(b_, "hello", 5), 5);
    ASSERT_EQ(wait(1000), 1);
    struct ringpoll_buffer buffer = {};
    ASSERT_EQ(ringpoll_borrow(a_, &buffer, 0), 5);
    EXPECT_EQ(std::string((char *)buffer.data, buffer.length), "hello");
    struct ringpoll_buffer none = {};
    EXPECT_EQ(ringpoll_borrow(a_, &none, 0), -EAGAIN);
    ringpoll_return(&buffer);
    ringpoll_return(&buffer); /* once is enough, twice does no harm */
    EXPECT_EQ(wait(0), 0);
}

TEST_F(Adopted, ABorrowedBufferOutlivesSetAndSocket)
{
    ASSERT_EQ(write(b_, "still here", 10), 10);
    ASSERT_EQ(wait(1000), 1);
    struct ringpoll_buffer buffer = {};
    ASSERT_EQ(ringpoll_borrow(a_, &buffer, 0), 10);
    EXPECT_EQ(ringpoll_close(set_), 0);
    EXPECT_EQ(ringpoll_close(a_), 0);
    set_ = a_ = -1;
    EXPECT_EQ(std::string((char *)buffer.data, buffer.length), "still here");
    std::thread([&] { ringpoll_return(&buffer); }).join();
}

TEST_F(Adopted, LentBuffersThatComeBackAreUsedAgain)
{
    for (int round = 0; round < 100; round++) {
        ASSERT_EQ(write(b_, &round, sizeof round), (ssize_t)sizeof round);
        ASSERT_EQ(wait(1000), 1);
        struct ringpoll_buffer buffer = {};
        long got = ringpoll_borrow(a_, &buffer, 0);
        if (got == RINGPOLL_PASS) { /* given back to plain reads for a while */
            int seen = -1;
            ASSERT_EQ(read(a_, &seen, sizeof seen), (ssize_t)sizeof seen);
            ringpoll_fd_read(a_, sizeof seen, sizeof seen);
            EXPECT_EQ(seen, round);
            continue;
        }
        ASSERT_EQ(got, (long)sizeof round);
        EXPECT_EQ(memcmp(buffer.data, &round, sizeof round), 0);
        std::thread([&] { ringpoll_return(&buffer); }).join();
    }
}

TEST_F(Adopted, WhenAllBuffersAreLentTheKernelKeepsTheRest)
{
    std::vector<struct ringpoll_buffer> lent;
    std::string expected, seen;
    for (int round = 0; round < 40; round++) {
        std::string word = std::to_string(round) + ",";
        expected += word;
        ASSERT_EQ(write(b_, word.data(), word.size()), (ssize_t)word.size());
        ASSERT_EQ(wait(1000), 1) << round;
        struct ringpoll_buffer buffer = {};
        long got;
        while ((got = ringpoll_borrow(a_, &buffer, 0)) > 0) {
            seen.append((char *)buffer.data, buffer.length);
            lent.push_back(buffer);
        }
        if (got == RINGPOLL_PASS)
            seen += take();
    }
    EXPECT_EQ(seen, expected);
    EXPECT_LE(lent.size(), 8u);
    for (auto &buffer : lent)
        ringpoll_return(&buffer);
}

TEST_F(Adopted, BytesThatWereReceivedOutliveTheirSet)
{
    ASSERT_EQ(write(b_, "one", 3), 3);
    ASSERT_EQ(wait(1000), 1);
    EXPECT_EQ(ringpoll_close(set_), 0);
    set_ = -1;
    ASSERT_EQ(write(b_, "two", 3), 3);
    EXPECT_EQ(take(), "onetwo");
}

TEST_F(Adopted, ASecondSetHearsOfWhatTheFirstReceived)
{
    ASSERT_EQ(write(b_, "one", 3), 3);
    ASSERT_EQ(wait(1000), 1);
    struct ringpoll_options options = {};
    options.size = sizeof options;
    options.flags = RINGPOLL_ADOPT;
    int second = ringpoll_create(&options);
    struct epoll_event event = {}, out = {};
    event.events = EPOLLIN;
    ASSERT_EQ(ringpoll_ctl(second, EPOLL_CTL_ADD, a_, &event), 0);
    struct timespec now = {0, 0};
    EXPECT_EQ(ringpoll_wait(second, &out, 1, &now, nullptr), 1);
    EXPECT_EQ(out.events, (uint32_t)EPOLLIN);
    EXPECT_EQ(take(), "one");
    EXPECT_EQ(ringpoll_wait(second, &out, 1, &now, nullptr), 0);
    EXPECT_EQ(wait(0), 0);
    ringpoll_close(second);
}

TEST_F(Adopted, DemotionReportsWhatIsInTheLibrary)
{
    ASSERT_EQ(write(b_, "one", 3), 3);
    ASSERT_EQ(wait(1000), 1);
    ASSERT_EQ(ringpoll_demote(set_), 0);
    /* The identity itself is readable: whoever polls it comes to wait. */
    struct epoll_event event = {}, out = {};
    int outer = epoll_create1(0);
    event.events = EPOLLIN;
    ASSERT_EQ(epoll_ctl(outer, EPOLL_CTL_ADD, set_, &event), 0);
    EXPECT_EQ(epoll_wait(outer, &out, 1, 0), 1);
    EXPECT_EQ(wait(0), 1);
    EXPECT_EQ(wait(1000), 1);
    EXPECT_EQ(take(), "one");
    EXPECT_EQ(wait(0), 0);
    EXPECT_EQ(epoll_wait(outer, &out, 1, 0), 0);
    ASSERT_EQ(write(b_, "two", 3), 3);
    EXPECT_EQ(wait(1000), 1);
    EXPECT_EQ(take(), "two");
    close(outer);
}

TEST_F(Adopted, AnotherThreadReadsInOrder)
{
    ASSERT_EQ(write(b_, "one", 3), 3);
    ASSERT_EQ(wait(1000), 1);
    ASSERT_EQ(write(b_, "two", 3), 3);
    std::string seen;
    std::thread([&] { seen = take(); }).join();
    EXPECT_EQ(seen, "onetwo");
    ASSERT_EQ(write(b_, "three", 5), 5);
    EXPECT_EQ(wait(1000), 1);
    std::thread([&] { seen = take(); }).join();
    EXPECT_EQ(seen, "three");
    EXPECT_EQ(wait(0), 0);
}

TEST_F(Adopted, BytesAreReportedByASetThatLeftItsRingBeforeTheSocketCameBack)
{
    ASSERT_EQ(write(b_, "one", 3), 3);
    ASSERT_EQ(wait(1000), 1);
    ASSERT_EQ(ringpoll_ctl(set_, EPOLL_CTL_DEL, a_, nullptr), 0);
    ASSERT_EQ(ringpoll_demote(set_), 0);
    struct epoll_event event = {};
    event.events = EPOLLIN;
    ASSERT_EQ(ringpoll_ctl(set_, EPOLL_CTL_ADD, a_, &event), 0);
    EXPECT_EQ(ringpoll_ctl(set_, EPOLL_CTL_ADD, a_, &event), -EEXIST);
    EXPECT_EQ(wait(0), 1);
    EXPECT_EQ(take(), "one");
    EXPECT_EQ(wait(0), 0);
    EXPECT_EQ(ringpoll_ctl(set_, EPOLL_CTL_DEL, a_, nullptr), 0);
}

} // namespace
