/* SPDX-License-Identifier: MIT
 *
 * Sets on the real kernel, in orders of events that only the inside can force:
 * what threads and signal handlers do to each other, above all. What can be had
 * from outside stands in tests/conformance.
 */
#include <errno.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <thread>
#include <vector>

#include "public_api.h"

extern "C" {
#include "set.h"
}

namespace {

std::function<bool(unsigned min_complete, int *ret_answer)> on_enter; /* true: no call, this answer */

int watched_enter(int fd, unsigned to_submit, unsigned min_complete, unsigned flags, const void *arg, size_t size)
{
    int answer = 0;
    if (on_enter && on_enter(min_complete, &answer))
        return answer;
    return rp_sys_kernel.uring_enter(fd, to_submit, min_complete, flags, arg, size);
}

class Set : public testing::Test {
protected:
    void SetUp() override
    {
        table_ = rp_sys_kernel;
        table_.uring_enter = watched_enter;
        rp_sys = &table_;
        struct ringpoll_options options = {};
        options.size = sizeof options;
        options.flags = RINGPOLL_REQUIRE | RINGPOLL_CLOEXEC;
        int fd = ringpoll_create(&options);
        if (fd < 0)
            GTEST_SKIP() << "no ring: errno " << -fd;
        ringpoll_close(fd);
    }
    void TearDown() override
    {
        on_enter = nullptr;
        rp_sys = &rp_sys_kernel;
    }
    int new_set()
    {
        struct ringpoll_options options = {};
        options.size = sizeof options;
        options.flags = RINGPOLL_TRACKED | RINGPOLL_CLOEXEC;
        int fd = ringpoll_create(&options);
        EXPECT_GE(fd, 0);
        return fd;
    }
    int new_eventfd(unsigned initial)
    {
        int fd = eventfd(initial, EFD_NONBLOCK | EFD_CLOEXEC);
        ringpoll_fd_opened(fd, RINGPOLL_FD_EVENTFD | RINGPOLL_FD_NONBLOCK);
        return fd;
    }
    int add(int set, int fd)
    {
        struct epoll_event event = {};
        event.events = EPOLLIN;
        event.data.fd = fd;
        return ringpoll_ctl(set, EPOLL_CTL_ADD, fd, &event);
    }
    template <typename Look> bool locked(struct rp_set *set, Look look)
    {
        rp_set_lock(set);
        bool answer = look();
        rp_set_unlock(set);
        return answer;
    }
    static void on_this_cpu(int cpu, bool only_when_idle)
    {
        cpu_set_t cpus;
        CPU_ZERO(&cpus);
        CPU_SET(cpu, &cpus);
        sched_setaffinity(0, sizeof cpus, &cpus);
        struct sched_param none = {};
        if (only_when_idle)
            sched_setscheduler(0, SCHED_IDLE, &none);
    }
private:
    struct rp_sys table_;
};

TEST_F(Set, WhoAsksTheOwnerIsAnsweredAlthoughTheSetIsAnotherBefore)
{
    /* One CPU, and the owner goes first: it has said that it is done, ended the
     * set, made its place a new one and waits there, before the other can look.
     * Which must not go on to wait, and then take the new owner for lost. */
    int cpu = sched_getcpu(), set = new_set(), fd = new_eventfd(0);
    struct rp_set *place = rp_set_of(set);
    std::vector<int> more;
    std::thread owner([&] {
        on_this_cpu(cpu, false);
        struct epoll_event event;
        EXPECT_EQ(add(set, fd), 0);
        EXPECT_EQ(ringpoll_wait(set, &event, 1, nullptr, nullptr), -EBADF);
        do
            more.push_back(new_set());
        while (rp_set_of(more.back()) != place && more.size() < 100);
        EXPECT_EQ(rp_set_of(more.back()), place);
        EXPECT_EQ(add(more.back(), fd), 0);
        EXPECT_EQ(ringpoll_wait(more.back(), &event, 1, nullptr, nullptr), 1);
    });
    std::thread asker([&] {
        on_this_cpu(cpu, true);
        while (!locked(place, [&] { return place->owner_inside; }))
            sched_yield();
        EXPECT_EQ(ringpoll_close(set), 0);
    });
    asker.join();
    while (locked(place, [&] { return place->waiters == 0; }))
        sched_yield();
    EXPECT_TRUE(locked(place, [&] { return place->owner_inside; }));
    EXPECT_EQ(eventfd_write(fd, 1), 0);
    owner.join();
    for (int each : more)
        EXPECT_EQ(ringpoll_close(each), 0);
    EXPECT_EQ(ringpoll_close(fd), 0);
}

TEST_F(Set, WhoAsksTheOwnerIsAnsweredThoughItsRingIsOfNoUseAnyMore)
{
    int set = new_set(), fd = new_eventfd(0), stop = new_eventfd(1);
    struct rp_set *place = rp_set_of(set);
    std::atomic<bool> inside{false};
    on_enter = [&](unsigned min_complete, int *ret_answer) {
        if (min_complete == 0)
            return false;
        inside = true;
        while (!locked(place, [&] { return place->requests; }))
            sched_yield();
        *ret_answer = -EPERM; /* a filter has come */
        return true;
    };
    std::thread owner([&] {
        struct epoll_event event = {};
        struct timespec now = {0, 0};
        EXPECT_EQ(add(set, fd), 0);
        EXPECT_EQ(ringpoll_wait(set, &event, 1, &now, nullptr), 0);
        EXPECT_EQ(ringpoll_wait(set, &event, 1, nullptr, nullptr), 1);
        EXPECT_EQ(event.data.fd, stop);
    });
    while (!inside)
        sched_yield();
    uint32_t before = place->serviced;
    EXPECT_EQ(ringpoll_close(fd), 0);
    EXPECT_EQ(__atomic_load_n(&place->serviced, __ATOMIC_ACQUIRE), before + 1);
    EXPECT_EQ(add(set, stop), 0);
    owner.join();
    EXPECT_EQ(ringpoll_close(stop), 0);
    EXPECT_EQ(ringpoll_close(set), 0);
}

TEST_F(Set, AnFdThatLeavesTheRingAsItsPollCompletesIsReportedOnce)
{
    int set = new_set(), fd = new_eventfd(0), other = new_eventfd(0);
    EXPECT_EQ(add(set, fd), 0);
    EXPECT_EQ(add(set, other), 0);
    struct epoll_event events[8] = {};
    struct timespec now = {0, 0};
    EXPECT_EQ(ringpoll_wait(set, events, 8, &now, nullptr), 0);
    EXPECT_EQ(eventfd_write(fd, 1), 0); /* its completion is on its way */
    ringpoll_fd_leave(fd);
    EXPECT_EQ(ringpoll_close(other), 0); /* takes completions */
    EXPECT_EQ(ringpoll_wait(set, events, 8, &now, nullptr), 1);
    EXPECT_EQ(events[0].data.fd, fd);
    EXPECT_EQ(ringpoll_wait(set, events, 8, &now, nullptr), 1);
    EXPECT_EQ(ringpoll_close(fd), 0);
    EXPECT_EQ(ringpoll_close(set), 0);
}

TEST_F(Set, ASetIsStillKnownWhenAnotherTookThePlaceOfAnEndedOne)
{
    auto sets = [] {
        struct ringpoll_stats stats = {};
        stats.size = sizeof stats;
        EXPECT_EQ(ringpoll_get_stats(-1, &stats), 0);
        return stats.sets;
    };
    std::vector<int> fds;
    for (int i = 0; i < 5; i++)
        fds.push_back(new_set());
    for (int fd : fds) {
        EXPECT_EQ(ringpoll_close(fd), 0);
        EXPECT_EQ(sets(), 4u);
        fd = new_set();
        EXPECT_EQ(sets(), 5u);
    }
    for (int fd : fds)
        EXPECT_EQ(ringpoll_close(fd), 0);
    EXPECT_EQ(sets(), 0u);
}

TEST_F(Set, TheStatsOfAllAreTakenWhileSetsComeAndGo)
{
    std::atomic<bool> over{false};
    std::thread reader([&] {
        while (!over) {
            struct ringpoll_stats stats = {};
            stats.size = sizeof stats;
            EXPECT_EQ(ringpoll_get_stats(-1, &stats), 0);
        }
    });
    for (int i = 0; i < 300; i++) {
        int set = new_set(), fd = new_eventfd(1);
        struct epoll_event event = {};
        EXPECT_EQ(add(set, fd), 0);
        EXPECT_EQ(ringpoll_wait(set, &event, 1, nullptr, nullptr), 1);
        if (i % 2) {
            EXPECT_EQ(ringpoll_demote(set), 0);
        }
        EXPECT_EQ(ringpoll_close(fd), 0);
        EXPECT_EQ(ringpoll_close(set), 0);
    }
    over = true;
    reader.join();
}

sigjmp_buf out_of_the_wait;

TEST_F(Set, AWaitThatWasLeftByALongjmpHoldsNothingWhenTheSetIsClosedAndTheThreadEnds)
{
#ifdef __SANITIZE_THREAD__
    GTEST_SKIP() << "the thread sanitizer runs handlers when it is their turn, not inside the wait";
#endif
    int fd = new_eventfd(0);
    std::thread([&] {
        int set = new_set();
        EXPECT_EQ(add(set, fd), 0);
        sigset_t blocked, inside;
        sigemptyset(&blocked);
        sigaddset(&blocked, SIGUSR1);
        pthread_sigmask(SIG_BLOCK, &blocked, &inside);
        sigdelset(&inside, SIGUSR1);
        struct sigaction action = {}, before;
        action.sa_handler = [](int) { siglongjmp(out_of_the_wait, 1); };
        sigaction(SIGUSR1, &action, &before);
        struct epoll_event event;
        struct timespec now = {0, 0};
        EXPECT_EQ(ringpoll_wait(set, &event, 1, &now, nullptr), 0);
        if (sigsetjmp(out_of_the_wait, 1) == 0) {
            raise(SIGUSR1);
            ringpoll_wait(set, &event, 1, nullptr, &inside); /* the signal comes in there, and nowhere else */
            ADD_FAILURE() << "the handler did not leave the wait";
        }
        sigaction(SIGUSR1, &before, nullptr);
        EXPECT_EQ(ringpoll_close(set), 0);
    }).join();
    struct ringpoll_stats stats = {};
    stats.size = sizeof stats;
    EXPECT_EQ(ringpoll_get_stats(-1, &stats), 0);
    EXPECT_EQ(stats.sets, 0u);
    EXPECT_EQ(stats.rings, 0u);
    EXPECT_EQ(stats.ops_in_flight, 0u);
    EXPECT_EQ(ringpoll_close(fd), 0);
}

/* A signal handler that interrupts the library while it holds a lock: what it closes
 * then is closed when the lock is free. */
TEST_F(Set, ASetThatAHandlerClosesInsideTheLibraryIsClosedWhenTheLibraryIsDone)
{
    int fd = new_eventfd(1);
    for (bool on_ring : {false, true}) {
        int set = new_set(), name = -1;
        EXPECT_EQ(add(set, fd), 0);
        struct epoll_event event = {};
        if (on_ring) {
            EXPECT_EQ(ringpoll_wait(set, &event, 1, nullptr, nullptr), 1);
        } else {
            name = dup(set);
            ringpoll_fd_duplicated(set, name);
        }
        struct rp_set *place = rp_set_of(set);
        rp_set_lock(place);
        EXPECT_EQ(ringpoll_close(set), 0);
        EXPECT_EQ(rp_set_of(set), nullptr);
        EXPECT_TRUE(place->in_use);
        rp_set_unlock(place);
        if (name >= 0) {
            EXPECT_TRUE(place->in_use) << "it has another name";
            EXPECT_EQ(ringpoll_wait(name, &event, 1, nullptr, nullptr), 1);
            EXPECT_EQ(ringpoll_close(name), 0);
        }
        EXPECT_FALSE(place->in_use);
    }
    EXPECT_EQ(ringpoll_close(fd), 0);
}

/* And what it closes and opens anew there has the number, but nothing else of the old. */
TEST_F(Set, AHandlerMayAddANumberThatItClosedInsideTheLibrary)
{
    int set = new_set(), fd = new_eventfd(1);
    ASSERT_EQ(add(set, fd), 0);
    struct epoll_event event = {};
    ASSERT_EQ(ringpoll_wait(set, &event, 1, nullptr, nullptr), 1);
    struct rp_set *place = rp_set_of(set);
    rp_set_lock(place);
    EXPECT_EQ(ringpoll_close(fd), 0);
    int again = new_eventfd(0);
    EXPECT_EQ(again, fd);
    EXPECT_EQ(add(set, again), 0);
    EXPECT_EQ(add(set, again), -EEXIST);
    rp_set_unlock(place);
    struct timespec now = {0, 0};
    EXPECT_EQ(ringpoll_wait(set, &event, 1, &now, nullptr), 0);
    eventfd_write(again, 1);
    EXPECT_EQ(ringpoll_wait(set, &event, 1, nullptr, nullptr), 1);
    EXPECT_EQ(ringpoll_ctl(set, EPOLL_CTL_DEL, again, nullptr), 0);
    EXPECT_EQ(ringpoll_wait(set, &event, 1, &now, nullptr), 0);
    EXPECT_EQ(ringpoll_close(again), 0);
    EXPECT_EQ(ringpoll_close(set), 0);
}

TEST_F(Set, AForkBySomebodyWhoInterruptedALockLeavesItLocked)
{
    int set = new_set();
    struct rp_set *place = rp_set_of(set);
    rp_lock(&place->lock);
    rp_lock(&rp_fdtab_lock);
    /* A signal handler that forks, here. */
    ringpoll_fork_prepare();
    ringpoll_fork_parent();
    EXPECT_EQ(rp_self.locks_held, 2);
    EXPECT_NE(rp_fdtab_lock.word, 0u);
    EXPECT_NE(place->lock.word, 0u);
    if (rp_self.locks_held == 2) {
        rp_unlock(&rp_fdtab_lock);
        rp_unlock(&place->lock);
    }
    rp_self.locks_held = 0;
    EXPECT_EQ(ringpoll_close(set), 0);
}

/* ------------------------------------------------- asleep in another loop */

bool is_readable(int fd, int timeout_ms)
{
    struct pollfd look = {fd, POLLIN, 0};
    return poll(&look, 1, timeout_ms) == 1;
}

/* A connected socket, whose other end is returned; the set may have it on its ring. */
int new_pair(int *ret_fd)
{
    int fds[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
    ringpoll_fd_opened(fds[0], RINGPOLL_FD_UNIX | RINGPOLL_FD_CONNECTED | RINGPOLL_FD_NONBLOCK);
    *ret_fd = fds[0];
    return fds[1];
}

const struct timespec no_time_at_all = {0, 0};

TEST_F(Set, AnOuterLoopSleepsByAnFdThatTellsOfWhatComes)
{
    int set = new_set(), fd, peer = new_pair(&fd);
    struct epoll_event event = {};
    EXPECT_EQ(ringpoll_sleep_fd(set, 0), set) << "no ring yet";
    ASSERT_EQ(add(set, fd), 0);
    EXPECT_EQ(ringpoll_sleep_fd(set, 0), -EAGAIN) << "a wait makes the ring";
    ASSERT_EQ(ringpoll_wait(set, &event, 1, &no_time_at_all, nullptr), 0);
    int wake = ringpoll_sleep_fd(set, 0);
    ASSERT_GE(wake, 0);
    EXPECT_NE(wake, set);
    EXPECT_TRUE(ringpoll_fd_is_internal(wake));
    for (int round = 0; round < 100; round++) {
        char byte;
        EXPECT_FALSE(is_readable(wake, 0));
        ASSERT_EQ(write(peer, "x", 1), 1);
        EXPECT_TRUE(is_readable(wake, 0)) << round;
        ASSERT_EQ(ringpoll_wait(set, &event, 1, &no_time_at_all, nullptr), 1);
        EXPECT_EQ(ringpoll_sleep_fd(set, 1), -EAGAIN) << "it may be ready yet";
        ASSERT_EQ(read(fd, &byte, 1), 1);
        ASSERT_EQ(ringpoll_wait(set, &event, 1, &no_time_at_all, nullptr), 0);
        ASSERT_EQ(ringpoll_sleep_fd(set, 1), wake);
    }
    EXPECT_EQ(ringpoll_sleep_fd(fd, 0), -EINVAL);
    EXPECT_EQ(ringpoll_sleep_fd(-1, 0), -EBADF);
    ringpoll_close(fd);
    ringpoll_close(peer);
    ringpoll_close(set);
    EXPECT_FALSE(ringpoll_fd_is_internal(wake));
}

/* Of sockets on the ring, and of eventfds, which are not. */
TEST_F(Set, NothingThatComesAroundSuchASleepIsLost)
{
    constexpr int count = 40; /* one enter runs 20 */
    int set = new_set(), fds[count], peers[count];
    for (int i = 0; i < count; i++) {
        peers[i] = i % 4 == 0 ? fds[i] = new_eventfd(0) : new_pair(&fds[i]);
        ASSERT_EQ(add(set, fds[i]), 0);
    }
    std::atomic<long> sent{0}, got{0};
    std::atomic<bool> over{false};
    constexpr long rounds = 2000;
    std::thread other([&] {
        unsigned seed = 1;
        const uint64_t one = 1;
        for (long round = 0; round < rounds && !testing::Test::HasFailure(); round++) {
            int many = 1 + rand_r(&seed) % (round % 50 == 0 ? count : 3), first = rand_r(&seed) % count;
            sent += many;
            for (int i = 0; i < many; i++) {
                int at = (first + i) % count;
                EXPECT_GT(write(peers[at], &one, at % 4 == 0 ? sizeof one : 1), 0);
            }
            while (round % 4 != 3 && got < sent && !testing::Test::HasFailure())
                sched_yield();
        }
        over = true;
    });
    bool woken = false;
    while (!(over && got == sent) && !testing::Test::HasFailure()) {
        struct epoll_event events[8];
        int n = ringpoll_wait(set, events, 8, &no_time_at_all, nullptr);
        for (int i = 0; i < n; i++) {
            union {
                uint64_t value;
                char bytes[64];
            } room;
            ssize_t length = read(events[i].data.fd, &room, sizeof room);
            bool counts = (std::find(fds, fds + count, events[i].data.fd) - fds) % 4 == 0;
            if (length > 0)
                got += counts ? (long)room.value : length;
        }
        int wake = n == 0 ? ringpoll_sleep_fd(set, woken) : -EAGAIN;
        if (wake < 0)
            continue;
        EXPECT_NE(wake, set);
        long before = got;
        struct pollfd look[2] = {{wake, POLLIN, 0}, {set, POLLIN, 0}};
        woken = poll(look, 2, before == sent ? 1 : 10000) > 0;
        if (!woken && before != sent) { /* it has come right behind the poll, or was lost */
            EXPECT_GT(poll(look, 2, 10000), 0) << "asleep with " << sent - got << " to come";
        }
    }
    other.join();
    for (int i = 0; i < count; i++) {
        ringpoll_close(fds[i]);
        if (i % 4 != 0)
            ringpoll_close(peers[i]);
    }
    ringpoll_close(set);
}

TEST_F(Set, ADemotionByAnotherThreadEndsSuchASleep)
{
    int set = new_set(), fd, peer = new_pair(&fd);
    struct epoll_event event = {};
    ASSERT_EQ(add(set, fd), 0);
    ASSERT_EQ(ringpoll_wait(set, &event, 1, &no_time_at_all, nullptr), 0);
    int wake = ringpoll_sleep_fd(set, 0);
    ASSERT_NE(wake, set);
    std::thread([&] { EXPECT_EQ(ringpoll_demote(set), 0); }).join();
    EXPECT_TRUE(is_readable(wake, 10000));
    ASSERT_EQ(ringpoll_wait(set, &event, 1, &no_time_at_all, nullptr), 0);
    EXPECT_EQ(ringpoll_sleep_fd(set, 1), set);
    EXPECT_FALSE(is_readable(set, 0));
    ASSERT_EQ(write(peer, "x", 1), 1);
    EXPECT_TRUE(is_readable(set, 0));
    ringpoll_close(fd);
    ringpoll_close(peer);
    ringpoll_close(set);
}

TEST_F(Set, ALoneBufferIsReturnedLikeABorrowedOne)
{
    struct ringpoll_buffer some[12], big;
    for (auto &each : some) {
        ASSERT_EQ(ringpoll_buffer_new(100, &each), 0);
        ASSERT_GE(each.length, 100u);
        memset(each.data, 'x', each.length);
    }
    ASSERT_EQ(ringpoll_buffer_new(1u << 20, &big), 0);
    EXPECT_GE(big.length, 1u << 20);
    memset(big.data, 'y', big.length);
    ringpoll_return(&big);
    EXPECT_EQ(big.pool, nullptr);
    for (size_t i = 0; i < 11; i++)
        ringpoll_return(&some[i]);
    ringpoll_return_at(some[11].pool, (char *)some[11].data + 50);
    EXPECT_EQ(ringpoll_buffer_new(SIZE_MAX, &big), -ENOMEM);
}

} // namespace
