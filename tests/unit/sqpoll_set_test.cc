/* SPDX-License-Identifier: MIT
 *
 * Sets whose ring has a kernel thread (RINGPOLL_SQPOLL), beyond what epoll
 * promises (tests/conformance runs all of that): which ring they get, and when
 * that thread lets go of a file.
 */
#include <errno.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "inside.h"
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

/* A wait holds all signals while it hands over to the kernel's thread. An ignored one
 * that comes then is kept by the kernel, which drops it otherwise. */
class SqpollSignals : public SqpollSet, public testing::WithParamInterface<int> {
protected:
    int wait_with_one(const sigset_t *sigmask)
    {
        struct timespec soon = {0, 20000000};
        struct epoll_event event;
        inside_raise_in_next_enter(set, GetParam());
        int result = ringpoll_wait(set, &event, 1, &soon, sigmask);
        EXPECT_EQ(inside_raised(), 1);
        return result;
    }
    static bool is_pending()
    {
        sigset_t pending;
        sigpending(&pending);
        return sigismember(&pending, GetParam()) == 1;
    }
};

TEST_P(SqpollSignals, ThatAreIgnoredDoNotInterruptAWaitThatHoldsThem)
{
    auto before = signal(GetParam(), SIG_IGN);
    EXPECT_EQ(wait_with_one(nullptr), 0);
    EXPECT_FALSE(is_pending());
    signal(GetParam(), before);
}

TEST_P(SqpollSignals, ThatAreHandledInterruptAWaitThatHoldsThem)
{
    static volatile sig_atomic_t caught;
    caught = 0;
    auto before = signal(GetParam(), [](int) { caught = caught + 1; });
    EXPECT_EQ(wait_with_one(nullptr), -EINTR);
    EXPECT_EQ(caught, 1);
    signal(GetParam(), before);
}

TEST_P(SqpollSignals, ThatTheProgramItselfHoldsAreLeftAlone)
{
    sigset_t one, old;
    sigemptyset(&one);
    sigaddset(&one, GetParam());
    pthread_sigmask(SIG_BLOCK, &one, &old);
    auto before = signal(GetParam(), SIG_IGN);
    EXPECT_EQ(wait_with_one(nullptr), 0);
    EXPECT_TRUE(is_pending());
    struct timespec now = {0, 0};
    EXPECT_EQ(sigtimedwait(&one, nullptr, &now), GetParam());
    pthread_sigmask(SIG_SETMASK, &old, nullptr);
    signal(GetParam(), before);
}

INSTANTIATE_TEST_SUITE_P(All, SqpollSignals, testing::Values(SIGUSR1, SIGCHLD, SIGRTMIN + 1),
                         [](const testing::TestParamInfo<int> &info) { return "of" + std::to_string(info.param); });

} // namespace
