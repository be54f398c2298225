/* SPDX-License-Identifier: MIT
 *
 * Sets whose ring has a kernel thread (RINGPOLL_SQPOLL), beyond what epoll
 * promises (tests/conformance runs all of that): which ring they get, and when
 * that thread lets go of a file.
 */
#include <gtest/gtest.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "public_api.h"

namespace {

class SqpollSet : public testing::Test {
protected:
    void SetUp() override
    {
        set = make();
        if (set < 0)
            GTEST_SKIP() << "no such ring here: " << strerror(-set);
        ASSERT_EQ(pipe(ends), 0);
        ringpoll_fd_opened(ends[0], RINGPOLL_FD_PIPE);
        before = made();
        watch_and_wait();
    }
    void TearDown() override
    {
        if (set >= 0) {
            ringpoll_close(set);
            close(ends[0]);
            close(ends[1]);
        }
    }
    static int make()
    {
        struct ringpoll_options options = {};
        options.size = sizeof options;
        options.flags = RINGPOLL_SQPOLL | RINGPOLL_TRACKED | RINGPOLL_REQUIRE;
        options.sq_thread_idle_ms = 1;
        return ringpoll_create(&options);
    }
    static struct ringpoll_stats stats()
    {
        struct ringpoll_stats stats = {};
        stats.size = sizeof stats;
        EXPECT_EQ(ringpoll_get_stats(-1, &stats), 0);
        return stats;
    }
    static uint64_t made() { return stats().rings_made; }
    void watch_and_wait()
    {
        struct epoll_event event = {};
        event.events = EPOLLIN;
        struct timespec now = {0, 0};
        ASSERT_EQ(ringpoll_ctl(set, EPOLL_CTL_ADD, ends[0], &event), 0);
        ASSERT_EQ(ringpoll_wait(set, &event, 1, &now, nullptr), 0);
        ASSERT_EQ(stats().rings, 1u);
    }
    void another_set()
    {
        ASSERT_EQ(ringpoll_close(set), 0);
        set = make();
        ASSERT_GE(set, 0);
        watch_and_wait();
    }

    int set = -1, ends[2] = {-1, -1};
    uint64_t before = 0;
};

/* A ring that ends interrupts its thread's waits for a while: see owner.c. */
TEST_F(SqpollSet, HandsItsRingToTheNext)
{
    for (int i = 0; i < 10; i++)
        another_set();
    EXPECT_EQ(made(), before);
}

TEST_F(SqpollSet, GetsANewRingOnceCredentialsHaveChanged)
{
    ringpoll_process_restricted(0); /* ends the ring of a set that lives */
    EXPECT_EQ(stats().rings, 0u);
    another_set();
    EXPECT_EQ(made(), before + 1);
    ASSERT_EQ(ringpoll_close(set), 0);
    ringpoll_process_restricted(0); /* and what was kept of one that is gone */
    set = make();
    ASSERT_GE(set, 0);
    watch_and_wait();
    EXPECT_EQ(made(), before + 2);
    another_set();
    EXPECT_EQ(made(), before + 2);
}

/* Its thread would hold the file a moment longer than the completion says. */
TEST_F(SqpollSet, FreesAFileBeforeItsCloseReturns)
{
    for (int i = 0; i < 200 && !HasFailure(); i++) {
        struct pollfd writer = {ends[1], POLLOUT, 0};
        ringpoll_fd_closing(ends[0]);
        close(ends[0]);
        EXPECT_EQ(poll(&writer, 1, 0), 1);
        EXPECT_TRUE(writer.revents & POLLERR) << "turn " << i;
        close(ends[1]);
        ASSERT_EQ(pipe(ends), 0);
        ringpoll_fd_opened(ends[0], RINGPOLL_FD_PIPE);
        watch_and_wait();
    }
}

} // namespace
