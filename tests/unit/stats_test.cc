/* SPDX-License-Identifier: MIT
 *
 * Where a set is not on a ring, the stats say why: each reason, of the set itself
 * and counted for the process; and what ringpoll_get_stats() takes and refuses.
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <functional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "public_api.h"

namespace {

const struct timespec at_once = {0, 0};

struct ringpoll_stats stats_of(int set)
{
    struct ringpoll_stats stats = {};
    stats.size = sizeof stats;
    EXPECT_EQ(ringpoll_get_stats(set, &stats), 0);
    return stats;
}

int make_set(uint32_t flags = 0, uint64_t masked = 0)
{
    struct ringpoll_options options = {};
    options.size = sizeof options;
    options.flags = RINGPOLL_CLOEXEC | flags;
    options.masked_features = masked;
    return ringpoll_create(&options);
}

int add(int set, int fd)
{
    struct epoll_event event = {};
    event.events = EPOLLIN;
    event.data.fd = fd;
    return ringpoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
}

int look(int set)
{
    struct epoll_event event;
    return ringpoll_wait(set, &event, 1, &at_once, nullptr);
}

bool gives_rings()
{
    struct ringpoll_probe probe = {};
    probe.size = sizeof probe;
    ringpoll_get_probe(&probe);
    uint64_t needed = RINGPOLL_FEATURE_DEFER | RINGPOLL_FEATURE_MULTISHOT_POLL | RINGPOLL_FEATURE_EXT_ARG;
    return (probe.usable & needed) == needed;
}

#define NEEDS_A_RING()                                                                                           \
    if (!gives_rings())                                                                                          \
    GTEST_SKIP() << "this kernel gives no ring: see ringpoll probe"

/* A set and a connection in it, both closed at the end. */
class Stats : public testing::Test {
protected:
    void SetUp() override { ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends_), 0); }
    void TearDown() override
    {
        for (int fd : made_)
            EXPECT_EQ(ringpoll_close(fd), 0);
        EXPECT_EQ(ringpoll_close(ends_[0]), 0);
        EXPECT_EQ(ringpoll_close(ends_[1]), 0);
        struct ringpoll_stats all = stats_of(-1);
        EXPECT_EQ(all.sets, 0u);
        EXPECT_EQ(all.rings, 0u);
        EXPECT_EQ(all.ops_in_flight, 0u);
    }
    int keep(int fd)
    {
        EXPECT_GE(fd, 0);
        made_.push_back(fd);
        return fd;
    }
    int set_with_connection(uint32_t flags = 0, uint64_t masked = 0)
    {
        int set = keep(make_set(flags, masked));
        EXPECT_EQ(add(set, ends_[0]), 0);
        return set;
    }
    int set_on_ring()
    {
        int set = set_with_connection();
        EXPECT_EQ(look(set), 0);
        EXPECT_EQ(stats_of(set).engine, RINGPOLL_ENGINE_RING);
        return set;
    }
    /* The set is on kernel epoll, and the process has one more of its kind, also
     * when the set has gone. */
    void must_have_reason(int set, uint32_t reason, const struct ringpoll_stats &before)
    {
        struct ringpoll_stats own = stats_of(set), all = stats_of(-1);
        EXPECT_EQ(own.engine, RINGPOLL_ENGINE_KERNEL);
        EXPECT_STREQ(ringpoll_reason_text(own.reason), ringpoll_reason_text(reason));
        EXPECT_EQ(own.kernel_sets[reason], 1u);
        EXPECT_EQ(own.kernel_sets[0], 1u);
        EXPECT_EQ(all.kernel_sets[reason], before.kernel_sets[reason] + 1);
        EXPECT_EQ(all.kernel_sets[0], before.kernel_sets[0] + 1);
        for (unsigned i = 1; i < RINGPOLL_REASON_SLOTS; i++) {
            if (i == reason)
                continue;
            EXPECT_EQ(own.kernel_sets[i], 0u) << i;
            EXPECT_EQ(all.kernel_sets[i], before.kernel_sets[i]) << i;
        }
        EXPECT_EQ(ringpoll_close(set), 0);
        made_.erase(std::find(made_.begin(), made_.end(), set));
        all = stats_of(-1);
        EXPECT_EQ(all.kernel_sets[reason], before.kernel_sets[reason] + 1) << "forgotten with the set";
        EXPECT_EQ(all.kernel_sets[0], before.kernel_sets[0] + 1);
    }
    /* In a process of its own, whose exit status is the number of failures. */
    void in_child(const std::function<void()> &body)
    {
        pid_t child = fork();
        if (child == 0) {
            body();
            fflush(stdout);
            _exit(HasFailure() ? 1 : 0);
        }
        int status = -1;
        ASSERT_EQ(waitpid(child, &status, 0), child);
        EXPECT_EQ(status, 0);
    }
    int ends_[2] = {-1, -1};
    std::vector<int> made_;
};

using Reason = Stats;

} // namespace

TEST_F(Reason, OfASetOnARingIsNone)
{
    NEEDS_A_RING();
    struct ringpoll_stats before = stats_of(-1);
    int set = keep(make_set());
    EXPECT_EQ(stats_of(set).engine, RINGPOLL_ENGINE_NEW);
    EXPECT_EQ(stats_of(set).reason, RINGPOLL_REASON_NONE);
    EXPECT_EQ(add(set, ends_[0]), 0);
    EXPECT_EQ(look(set), 0);
    struct ringpoll_stats own = stats_of(set);
    EXPECT_EQ(own.engine, RINGPOLL_ENGINE_RING);
    EXPECT_EQ(own.reason, RINGPOLL_REASON_NONE);
    EXPECT_EQ(own.kernel_sets[0], 0u);
    EXPECT_EQ(stats_of(-1).kernel_sets[0], before.kernel_sets[0]);
}

TEST_F(Reason, Asked)
{
    struct ringpoll_stats before = stats_of(-1);
    must_have_reason(set_with_connection(RINGPOLL_KERNEL), RINGPOLL_REASON_ASKED, before);
}

TEST_F(Reason, NoRing)
{
    struct ringpoll_stats before = stats_of(-1);
    int set = set_with_connection(0, RINGPOLL_FEATURE_URING);
    EXPECT_EQ(look(set), 0);
    EXPECT_LT(stats_of(set).error, 0);
    must_have_reason(set, RINGPOLL_REASON_NO_RING, before);
}

TEST_F(Reason, OldKernel)
{
    NEEDS_A_RING();
    struct ringpoll_stats before = stats_of(-1);
    int set = set_with_connection(0, RINGPOLL_FEATURE_DEFER);
    EXPECT_EQ(look(set), 0);
    must_have_reason(set, RINGPOLL_REASON_OLD_KERNEL, before);
}

TEST_F(Reason, Nested)
{
    NEEDS_A_RING();
    struct ringpoll_stats before = stats_of(-1);
    int inner = set_on_ring(), outer = keep(make_set());
    EXPECT_EQ(add(outer, inner), 0);
    must_have_reason(inner, RINGPOLL_REASON_NESTED, before);
}

TEST_F(Reason, Waiters)
{
    NEEDS_A_RING();
    struct ringpoll_stats before = stats_of(-1);
    int set = set_on_ring();
    std::thread([set] { EXPECT_EQ(look(set), 0); }).join();
    must_have_reason(set, RINGPOLL_REASON_WAITERS, before);
}

TEST_F(Reason, Fork)
{
    NEEDS_A_RING();
    int set = set_on_ring();
    ringpoll_fork_prepare();
    in_child([&] {
        ringpoll_fork_child();
        EXPECT_EQ(look(set), 0);
        struct ringpoll_stats own = stats_of(set);
        EXPECT_EQ(own.engine, RINGPOLL_ENGINE_KERNEL);
        EXPECT_EQ(own.reason, RINGPOLL_REASON_FORK);
        EXPECT_EQ(own.kernel_sets[RINGPOLL_REASON_FORK], 1u);
    });
    ringpoll_fork_parent();
    EXPECT_EQ(stats_of(set).engine, RINGPOLL_ENGINE_RING);
}

TEST_F(Reason, Restricted)
{
    NEEDS_A_RING();
    in_child([&] { /* it is for good */
        struct ringpoll_stats before = stats_of(-1);
        int set = set_on_ring();
        ringpoll_process_restricted(1);
        must_have_reason(set, RINGPOLL_REASON_RESTRICTED, before);
        before = stats_of(-1);
        must_have_reason(set_with_connection(), RINGPOLL_REASON_RESTRICTED, before);
    });
}

TEST_F(Reason, UnfitSoFar)
{
    struct ringpoll_stats before = stats_of(-1);
    int semaphore = keep(eventfd(1, EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC)), set = keep(make_set());
    EXPECT_EQ(add(set, semaphore), 0);
    EXPECT_EQ(look(set), 1);
    must_have_reason(set, RINGPOLL_REASON_UNFIT, before);
}

TEST_F(Reason, UnfitNoMoreOnceThereIsAConnection)
{
    NEEDS_A_RING();
    struct ringpoll_stats before = stats_of(-1);
    int semaphore = keep(eventfd(0, EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC)), set = keep(make_set());
    EXPECT_EQ(add(set, semaphore), 0);
    EXPECT_EQ(look(set), 0);
    EXPECT_EQ(stats_of(set).reason, RINGPOLL_REASON_UNFIT);
    EXPECT_EQ(add(set, ends_[0]), 0);
    EXPECT_EQ(look(set), 0);
    EXPECT_EQ(stats_of(set).engine, RINGPOLL_ENGINE_RING);
    EXPECT_EQ(stats_of(set).reason, RINGPOLL_REASON_NONE);
    EXPECT_EQ(stats_of(-1).kernel_sets[0], before.kernel_sets[0]);
}

TEST_F(Reason, UnfitForGood)
{
    NEEDS_A_RING();
    struct ringpoll_stats before = stats_of(-1);
    int set = set_on_ring();
    for (int i = 0; i < 2; i++)
        EXPECT_EQ(add(set, keep(eventfd(1, EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC))), 0);
    for (int turn = 0; turn < 20000 && stats_of(set).engine == RINGPOLL_ENGINE_RING; turn++)
        EXPECT_EQ(look(set), 1);
    must_have_reason(set, RINGPOLL_REASON_UNFIT, before);
}

/* As a loop that serves datagrams, and has an eventfd and a pipe to be woken by. */
TEST_F(Reason, UnfitForGoodWhereTheRingHasNothingButWakers)
{
    NEEDS_A_RING();
    struct ringpoll_stats before = stats_of(-1);
    int wakes = keep(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)), set = keep(make_set(RINGPOLL_TRACKED));
    ringpoll_fd_opened(wakes, RINGPOLL_FD_EVENTFD | RINGPOLL_FD_NONBLOCK);
    EXPECT_EQ(add(set, wakes), 0);
    int pipe[2];
    ASSERT_EQ(pipe2(pipe, O_NONBLOCK | O_CLOEXEC), 0);
    for (int end : pipe)
        ringpoll_fd_opened(keep(end), RINGPOLL_FD_PIPE | RINGPOLL_FD_NONBLOCK);
    EXPECT_EQ(add(set, pipe[0]), 0);
    EXPECT_EQ(add(set, keep(eventfd(1, EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC))), 0);
    EXPECT_EQ(look(set), 1);
    EXPECT_EQ(stats_of(set).engine, RINGPOLL_ENGINE_RING);
    for (int turn = 0; turn < 300 && stats_of(set).engine == RINGPOLL_ENGINE_RING; turn++)
        EXPECT_EQ(look(set), 1);
    must_have_reason(set, RINGPOLL_REASON_UNFIT, before);
}

TEST_F(Reason, OfASetThatAnotherThreadClosesIsNone)
{
    NEEDS_A_RING();
    struct ringpoll_stats before = stats_of(-1);
    int set = make_set();
    EXPECT_EQ(add(set, ends_[0]), 0);
    EXPECT_EQ(look(set), 0);
    std::thread([set] { EXPECT_EQ(ringpoll_close(set), 0); }).join();
    EXPECT_EQ(stats_of(-1).kernel_sets[0], before.kernel_sets[0]);
    EXPECT_EQ(look(keep(make_set())), 0); /* the owner comes by, and ends it */
}

TEST_F(Reason, Shared)
{
    NEEDS_A_RING();
    struct ringpoll_stats before = stats_of(-1);
    int set = set_on_ring();
    ringpoll_fd_shared(set);
    must_have_reason(set, RINGPOLL_REASON_SHARED, before);
}

TEST_F(Reason, EachHasAPhraseOfItsOwn)
{
    std::set<std::string> phrases;
    for (uint32_t reason = RINGPOLL_REASON_NONE; reason <= RINGPOLL_REASON_SHARED; reason++)
        phrases.insert(ringpoll_reason_text(reason));
    EXPECT_EQ(phrases.size(), RINGPOLL_REASON_SHARED + 1u);
    EXPECT_EQ(phrases.count("unknown"), 0u);
    EXPECT_STREQ(ringpoll_reason_text(4711), "unknown");
    EXPECT_STREQ(ringpoll_engine_text(4711), "unknown");
    EXPECT_LT(RINGPOLL_REASON_SHARED, RINGPOLL_REASON_SLOTS);
}

TEST_F(Stats, OfWhatIsNoSetAreRefused)
{
    struct ringpoll_stats stats = {};
    stats.size = sizeof stats;
    EXPECT_EQ(ringpoll_get_stats(ends_[0], &stats), -EINVAL);
    EXPECT_EQ(ringpoll_get_stats(4711, &stats), -EBADF);
    EXPECT_EQ(ringpoll_get_stats(-2, &stats), -EBADF);
}

TEST_F(Stats, TakeTheSizeOfAnOlderHeaderAndWriteNoMore)
{
    int set = set_with_connection(RINGPOLL_KERNEL);
    union {
        struct ringpoll_stats stats;
        unsigned char bytes[sizeof(struct ringpoll_stats) + 64];
    } room;
    for (uint32_t size : {16u, 40u, (uint32_t)offsetof(struct ringpoll_stats, kernel_sets)}) {
        memset(&room, 0xa5, sizeof room);
        room.stats.size = size;
        EXPECT_EQ(ringpoll_get_stats(set, &room.stats), 0) << size;
        EXPECT_EQ(room.stats.size, size);
        EXPECT_EQ(room.stats.engine, RINGPOLL_ENGINE_KERNEL);
        for (size_t i = size; i < sizeof room; i++)
            ASSERT_EQ(room.bytes[i], 0xa5) << size << ": byte " << i;
    }
    for (uint32_t size : {0u, 8u, 15u, (uint32_t)sizeof(struct ringpoll_stats) + 8}) {
        memset(&room, 0xa5, sizeof room);
        room.stats.size = size;
        EXPECT_EQ(ringpoll_get_stats(set, &room.stats), -EINVAL) << size;
        for (size_t i = 4; i < sizeof room; i++)
            ASSERT_EQ(room.bytes[i], 0xa5) << "touched on failure: byte " << i;
    }
}

/* Keeping a machine awake while an event is unread is more than a poll does. */
TEST_F(Stats, ShowThatWhatKeepsTheMachineAwakeIsKernelEpolls)
{
    NEEDS_A_RING();
    int set = set_on_ring();
    EXPECT_EQ(stats_of(set).watches_ring, 1u);
    struct epoll_event event = {};
    event.events = EPOLLIN | static_cast<uint32_t>(EPOLLWAKEUP);
    event.data.fd = ends_[0];
    EXPECT_EQ(ringpoll_ctl(set, EPOLL_CTL_MOD, ends_[0], &event), 0);
    EXPECT_EQ(look(set), 0);
    EXPECT_EQ(stats_of(set).watches_ring, 0u);
    EXPECT_EQ(stats_of(set).watches_kernel, 1u);
    event.data.fd = ends_[1];
    EXPECT_EQ(ringpoll_ctl(set, EPOLL_CTL_ADD, ends_[1], &event), 0);
    EXPECT_EQ(stats_of(set).watches_kernel, 2u);
    EXPECT_EQ(write(ends_[1], "x", 1), 1);
    struct epoll_event got = {};
    EXPECT_EQ(ringpoll_wait(set, &got, 1, &at_once, nullptr), 1);
    EXPECT_EQ(got.events, static_cast<uint32_t>(EPOLLIN));
    EXPECT_EQ(got.data.fd, ends_[0]);
    char byte;
    EXPECT_EQ(read(ends_[0], &byte, 1), 1);
    EXPECT_EQ(look(set), 0);
}

TEST_F(Stats, OfTheProcessAreTheSumOfItsSets)
{
    struct ringpoll_stats before = stats_of(-1);
    int one = set_with_connection(), other = keep(make_set(RINGPOLL_KERNEL));
    for (int i = 0; i < 3; i++)
        EXPECT_EQ(look(one), 0);
    EXPECT_EQ(look(other), 0);
    struct ringpoll_stats all = stats_of(-1);
    EXPECT_EQ(all.sets, 2u);
    EXPECT_EQ(all.sets_made, before.sets_made + 2);
    EXPECT_EQ(all.waits, before.waits + 4);
    EXPECT_EQ(stats_of(one).waits + stats_of(other).waits, 4u);
    EXPECT_EQ(all.enters - before.enters, stats_of(one).enters + stats_of(other).enters);
}
