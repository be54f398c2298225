/* SPDX-License-Identifier: MIT
 *
 * Several threads and one set: epoll_ctl while another thread waits, several
 * waiters, and threads that take turns or end.
 */
#include "conformance.h"

using namespace support;

CONFORMANCE(Concurrent);
CONFORMANCE(Waiters);

TEST_P(Concurrent, AnAddOfAReadyFdWakesTheWaiter)
{
    int set = new_set();
    ASSERT_EQ(add(set, tcp().a, in_), 0);
    Pair p = tcp();
    put(p.b, 1, p.a);
    Waiter waiter([&] { return next(set); });
    ASSERT_TRUE(waiter.asleep());
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_EQ(waiter.result(), (Events{{(uint64_t)p.a, in_}}));
}

TEST_P(Concurrent, AnAddToAnEmptySetWakesTheWaiter)
{
    int set = new_set();
    Pair p = unix_stream();
    Waiter waiter([&] { return next(set); });
    ASSERT_TRUE(waiter.asleep());
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_FALSE(waiter.done());
    put(p.b, 1, p.a);
    EXPECT_EQ(waiter.result(), (Events{{(uint64_t)p.a, in_}}));
}

TEST_P(Concurrent, AModThatMakesItReadyWakesTheWaiter)
{
    int set = new_set();
    Pair p = unix_stream();
    ASSERT_EQ(add(set, p.a, in_), 0);
    Waiter waiter([&] { return next(set); });
    ASSERT_TRUE(waiter.asleep());
    ASSERT_EQ(mod(set, p.a, in_ | out_), 0);
    EXPECT_EQ(waiter.result(), (Events{{(uint64_t)p.a, out_}}));
}

TEST_P(Concurrent, AModOfADisabledOneShotWakesTheWaiter)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_ | once_), 0);
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    Waiter waiter([&] { return next(set); });
    ASSERT_TRUE(waiter.asleep());
    ASSERT_EQ(mod(set, p.a, in_ | once_), 0);
    EXPECT_EQ(waiter.result(), (Events{{(uint64_t)p.a, in_}}));
}

TEST_P(Concurrent, AModThatRemovesInterestIsObeyedByASleepingWaiter)
{
    int set = new_set();
    Pair p = tcp();
    int stop = eventfd();
    ASSERT_EQ(add(set, p.a, in_), 0);
    ASSERT_EQ(add(set, stop, in_), 0);
    Waiter waiter([&] { return next(set); });
    ASSERT_TRUE(waiter.asleep());
    ASSERT_EQ(mod(set, p.a, 0), 0);
    put(p.b, 1, p.a);
    kick(stop);
    EXPECT_EQ(waiter.result(), (Events{{(uint64_t)stop, in_}}));
}

TEST_P(Concurrent, ADelAndAddByAnotherThreadIsSeen)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add_as(set, p.a, in_ | et_, 1), 0);
    Waiter waiter([&] { return next(set); });
    ASSERT_TRUE(waiter.asleep());
    ASSERT_EQ(del(set, p.a), 0);
    ASSERT_EQ(add_as(set, p.a, in_ | et_, 2), 0);
    EXPECT_EQ(add_as(set, p.a, in_ | et_, 3), -EEXIST);
    put(p.b, 1, -1);
    EXPECT_EQ(waiter.result(), (Events{{2, in_}}));
}

TEST_P(Concurrent, ManyThreadsChangeWhileOneWaits)
{
    int set = new_set();
    int stop = eventfd();
    ASSERT_EQ(add_as(set, stop, in_, ~0ull - 1), 0);
    std::atomic<int> working{4};
    Waiter waiter([&] {
        for (;;)
            for (auto &event : next(set)) {
                if (event.data == ~0ull - 1)
                    return Events();
                if (event.data == ~0ull)
                    return Events{event};
            }
    });
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; t++)
        threads.emplace_back([&, t] {
            for (int i = 0; i < 200; i++) {
                Pair p = (i + t) % 2 ? tcp() : unix_stream();
                EXPECT_EQ(add(set, p.a, in_ | (i % 3 ? et_ : once_)), 0);
                put(p.b, 1, p.a);
                EXPECT_EQ(mod(set, p.a, in_ | out_ | et_), 0);
                if (i % 2) {
                    EXPECT_EQ(del(set, p.a), 0);
                }
                EXPECT_EQ(e().close(p.a), 0);
                EXPECT_TRUE(settle(p.b, POLLRDHUP, 5));
                EXPECT_EQ(e().close(p.b), 0);
            }
            working--;
        });
    for (auto &thread : threads)
        thread.join();
    kick(stop);
    EXPECT_EQ(waiter.result(), Events());
    EXPECT_EQ(ready(set), (Events{{~0ull - 1, in_}}));
}

TEST_P(Concurrent, NoWakeUpIsLostBetweenThreads)
{
    /* One thread hands fds to the other, as an accepting thread does. */
    int set = new_set();
    constexpr int count = 300;
    std::vector<Pair> pairs;
    for (int i = 0; i < count; i++)
        pairs.push_back(i % 2 ? tcp() : unix_stream());
    Waiter waiter([&] {
        std::set<uint64_t> seen;
        while (seen.size() < count) {
            Events events = next(set, 7);
            if (events.empty())
                return Events{{0, (uint32_t)seen.size()}};
            for (auto &event : events)
                if (event.events == in_)
                    seen.insert(event.data);
                else
                    return Events{event};
        }
        return Events();
    });
    for (int i = 0; i < count; i++) {
        Pair &p = pairs[(size_t)i];
        ASSERT_EQ(add(set, p.a, in_ | et_), 0);
        put(p.b, 1, -1);
    }
    EXPECT_EQ(waiter.result(), Events());
}

TEST_P(Concurrent, ADuplicatedFdIsClosedBeforeTheWaiterReadsOthers)
{
    int set = new_set();
    std::vector<Pair> pairs;
    Events all, left;
    for (int i = 0; i < 20; i++) {
        pairs.push_back(i % 2 ? tcp() : unix_stream());
        int fd = pairs.back().a;
        ASSERT_EQ(add(set, fd, in_), 0);
        all.push_back({(uint64_t)fd, in_});
        if (i % 2 == 0)
            left.push_back(all.back());
    }
    std::sort(all.begin(), all.end());
    std::sort(left.begin(), left.end());
    /* `closed` orders nothing: a race detector shall see what the library leaves unordered. */
    std::atomic<bool> reported{false}, closed{false};
    Waiter waiter([&] {
        for (int round = 0; round < 4; round++) { /* polls stay armed from the second on */
            for (auto &p : pairs) {
                drain(p.a);
                put(p.b, 1, p.a);
            }
            EXPECT_EQ(gather(set, all.size()), all);
        }
        reported = true;
        while (!closed.load(std::memory_order_relaxed))
            sched_yield();
        for (size_t i = 1; i < pairs.size(); i += 2)
            drain(pairs[i].a);
        Events some = gather(set, left.size());
        for (size_t i = 0; i < pairs.size(); i += 2)
            EXPECT_EQ(e().close(pairs[i].b), 0);
        return some;
    });
    while (!reported)
        sched_yield();
    std::vector<int> copies;
    for (size_t i = 0; i < pairs.size(); i += 2) {
        copies.push_back(e().dup(pairs[i].a));
        EXPECT_EQ(e().close(pairs[i].a), 0);
    }
    closed.store(true, std::memory_order_relaxed);
    EXPECT_EQ(waiter.result(), left) << "a registration lasts as long as its file";
    for (int copy : copies)
        EXPECT_EQ(e().close(copy), 0);
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Concurrent, AllIsChangedBeforeTheWaiterReadsOthers)
{
    for (bool is_polled : {false, true}) {
        int set = new_set();
        std::vector<Pair> pairs;
        Events expected;
        for (int i = 0; i < 20; i++) {
            pairs.push_back(i % 2 ? tcp() : unix_stream());
            put(pairs.back().b, 1, pairs.back().a);
            if (i % 4 == 3)
                expected.push_back({(uint64_t)pairs.back().a, in_ | out_});
        }
        std::sort(expected.begin(), expected.end());
        std::atomic<bool> reported{false}, changed{false}; /* as above */
        Waiter waiter([&] {
            for (auto &p : pairs)
                EXPECT_EQ(add(set, p.a, in_), 0);
            EXPECT_EQ(next(set, 4).size(), 4u); /* the others are known, and not reported yet */
            reported = true;
            while (!changed.load(std::memory_order_relaxed))
                sched_yield();
            for (size_t i = 0; i < pairs.size(); i += 4)
                drain(pairs[i].a);
            return gather(set, expected.size());
        });
        while (!reported)
            sched_yield();
        for (size_t i = 0; i < pairs.size(); i += 4) {
            EXPECT_EQ(del(set, pairs[i + 1].a), 0);
            EXPECT_EQ(e().close(pairs[i + 2].a), 0);
            EXPECT_EQ(mod(set, pairs[i + 3].a, in_ | out_), 0);
        }
        if (is_polled) {
            e().will_be_polled(set);
            EXPECT_EQ(poll_now(set) & POLLIN, POLLIN);
        }
        changed.store(true, std::memory_order_relaxed);
        EXPECT_EQ(waiter.result(), expected);
        EXPECT_EQ(e().close(set), 0);
    }
}

TEST_P(Concurrent, AReadByAnotherThreadLeavesNoStaleEvent)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    for (int i = 0; i < 10; i++) {
        put(p.b, 10, p.a);
        EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
        put(p.b, 10, p.a);
        std::thread([&] { drain(p.a); }).join();
        EXPECT_EQ(ready(set), Events());
    }
}

/* -------------------------------------------------------------- several waiters */

TEST_P(Concurrent, AnotherThreadsDupRepeatsNoEdge)
{
    int set = new_set();
    Pair p = unix_stream();
    ASSERT_EQ(add(set, p.a, in_ | out_ | et_), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, out_}}));
    std::thread([&] { e().dup(p.a); }).join();
    EXPECT_EQ(ready(set), Events());
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_ | out_}}));
}

TEST_P(Concurrent, AnotherThreadsDupEnablesNoOneShot)
{
    int set = new_set();
    Pair p = tcp(), q = tcp();
    ASSERT_EQ(add(set, p.a, in_ | once_), 0);
    ASSERT_EQ(add(set, q.a, in_), 0);
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    put(q.b, 1, q.a); /* something that the set's thread has not heard of */
    std::thread([&] { e().dup(p.a); }).join();
    EXPECT_EQ(ready(set), (Events{{(uint64_t)q.a, in_}}));
}

TEST_P(Waiters, ASecondOneIsToldOfNoEdgeAgain)
{
    int set = new_set();
    Pair p = unix_stream();
    ASSERT_EQ(add(set, p.a, in_ | out_ | et_), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, out_}}));
    Events second;
    std::thread([&] { second = ready(set); }).join();
    /* Another thread cannot see whether such a ring has something to tell. */
    bool tells = e().name() != std::string("sqpoll") && e().name() != std::string("sqaff") &&
                 e().name() != std::string("anyring");
    EXPECT_TRUE(second.empty() || !tells);
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_ | out_}}));
}

TEST_P(Waiters, TwoOfThemOneEventWakesAtLeastOne)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_ | et_), 0);
    Waiter first([&] { return next(set); }), second([&] { return next(set); });
    ASSERT_TRUE(first.asleep());
    ASSERT_TRUE(second.asleep());
    put(p.b, 1, -1);
    while (!first.done() && !second.done())
        sched_yield();
    Waiter &winner = first.done() ? first : second, &other = first.done() ? second : first;
    EXPECT_EQ(winner.result(), (Events{{(uint64_t)p.a, in_}}));
    EXPECT_FALSE(other.done()) << "an edge wakes one";
    put(p.b, 1, -1);
    EXPECT_EQ(other.result(), (Events{{(uint64_t)p.a, in_}}));
}

TEST_P(Waiters, ASecondOneAfterTheFirstSleepsGetsItsEvents)
{
    int set = new_set();
    Pair p = tcp(), q = unix_stream();
    ASSERT_EQ(add(set, p.a, in_ | once_), 0);
    ASSERT_EQ(add(set, q.a, in_ | once_), 0);
    Waiter first([&] { return next(set, 1); });
    ASSERT_TRUE(first.asleep());
    Waiter second([&] { return next(set, 1); });
    ASSERT_TRUE(second.asleep());
    ASSERT_TRUE(first.asleep());
    put(p.b, 1, p.a);
    put(q.b, 1, q.a);
    Events all = first.result(), more = second.result();
    all.insert(all.end(), more.begin(), more.end());
    std::sort(all.begin(), all.end());
    Events expected = {{(uint64_t)p.a, in_}, {(uint64_t)q.a, in_}};
    std::sort(expected.begin(), expected.end());
    EXPECT_EQ(all, expected);
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Waiters, AZeroTimeoutWaitBesideASleepingOneSeesWhatIsThere)
{
    int set = new_set();
    Pair p = tcp();
    int stop = eventfd();
    ASSERT_EQ(add(set, stop, in_ | once_), 0);
    Waiter waiter([&] { return next(set, 1); });
    ASSERT_TRUE(waiter.asleep());
    EXPECT_EQ(ready(set), Events());
    ASSERT_TRUE(waiter.asleep());
    kick(stop);
    EXPECT_EQ(waiter.result(), (Events{{(uint64_t)stop, in_}}));
    ASSERT_EQ(add(set, p.a, in_), 0);
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
}

TEST_P(Waiters, ASecondOneComesAsTheFirstIsInterruptedAndNothingIsLost)
{
    /* The first one's wait ends while the second one has everything moved to kernel
     * epoll, which many spent edges make a matter of milliseconds: what the first
     * one's wait had brought to the kernel becomes known in the middle of it. */
    constexpr uint64_t many = 1000, late = many + 1, stopped = ~0ull;
    struct sigaction action = {}, before;
    action.sa_handler = [](int) {};
    sigaction(SIGUSR1, &action, &before);
    for (int round = 0; round < 8; round++) {
        int set = new_set(), last = eventfd();
        std::vector<int> counters;
        for (uint64_t i = 0; i < many; i++) {
            counters.push_back(eventfd(1));
            ASSERT_EQ(add_as(set, counters.back(), in_ | et_, i), 0);
        }
        std::atomic<bool> gathered{false};
        Waiter waiter([&] {
            EXPECT_EQ(gather(set, many).size(), many);
            gathered = true;
            EXPECT_EQ(add_as(set, last, in_ | et_, late), 0);
            for (;;)
                for (auto &event : next(set))
                    if (event.data == late || (event.data == stopped && event.events != EINTR))
                        return Events{event};
        });
        /* It may sleep while it gathers, too: where another thread fills the queue. */
        for (int64_t start = now_ns(); !gathered && now_ns() < start + INT64_C(20000000000);)
            std::this_thread::yield();
        ASSERT_TRUE(waiter.asleep());
        std::atomic<bool> go{false};
        std::thread interrupter([&] {
            while (!go)
                continue;
            for (int64_t start = now_ns(); now_ns() < start + round * 50000;)
                continue;
            pthread_kill(waiter.handle(), SIGUSR1);
        });
        go = true;
        Events again = ready(set, many);
        interrupter.join();
        if (!e().ringpoll()) { /* docs/design.md, "Known differences", 1 */
            EXPECT_EQ(again, Events());
        }
        kick(last);
        EXPECT_EQ(waiter.result(), (Events{{late, in_}}));
        if (Waiter::lost)
            return;
        for (int counter : counters)
            EXPECT_EQ(e().close(counter), 0);
        EXPECT_EQ(e().close(last), 0);
        EXPECT_EQ(e().close(set), 0);
    }
    sigaction(SIGUSR1, &before, nullptr);
}

TEST_P(Waiters, TakingTurnsLoseNothing)
{
    int set = new_set();
    Pair p = tcp(), q = unix_stream();
    ASSERT_EQ(add(set, p.a, in_ | et_), 0);
    ASSERT_EQ(add(set, q.a, in_), 0);
    for (int i = 0; i < 10; i++) {
        put(p.b, 1, p.a);
        std::thread([&] { EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}})); }).join();
        put(q.b, 1, q.a);
        EXPECT_EQ(ready(set), (Events{{(uint64_t)q.a, in_}}));
        drain(q.a);
        std::thread([&] { EXPECT_EQ(ready(set), Events()); }).join();
    }
}

TEST_P(Waiters, TheFirstThreadEndsAndAnotherGoesOn)
{
    int set = new_set();
    Pair p = tcp(), q = unix_stream();
    struct sockaddr_in address;
    int listening = listener(&address);
    std::thread([&] {
        ASSERT_EQ(add(set, p.a, in_), 0);
        ASSERT_EQ(add(set, q.a, in_ | et_), 0);
        ASSERT_EQ(add(set, listening, in_), 0);
        EXPECT_EQ(ready(set), Events());
    }).join();
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    put(q.b, 1, q.a);
    EXPECT_EQ(ready(set).size(), 2u);
    drain(p.a);
    EXPECT_EQ(ready(set), Events());
    connected_to(address);
    ASSERT_TRUE(settle(listening, POLLIN));
    EXPECT_EQ(ready(set), (Events{{(uint64_t)listening, in_}}));
    ASSERT_EQ(e().close(p.a), 0);
    EXPECT_TRUE(settle(p.b, POLLRDHUP, 5));
}

TEST_P(Waiters, EventsThatCameWhenTheFirstThreadHadEndedAreThere)
{
    int set = new_set();
    std::vector<Pair> pairs;
    Events expected;
    std::thread([&] {
        for (int i = 0; i < 30; i++) {
            pairs.push_back(i % 2 ? tcp() : unix_stream());
            ASSERT_EQ(add(set, pairs.back().a, in_ | et_), 0);
            expected.push_back({(uint64_t)pairs.back().a, in_});
        }
        EXPECT_EQ(ready(set), Events());
    }).join();
    for (auto &p : pairs)
        put(p.b, 1, p.a);
    std::sort(expected.begin(), expected.end());
    EXPECT_EQ(ready(set), expected);
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Waiters, CloseOfAFdWhoseSetsFirstThreadHasEnded)
{
    int set = new_set();
    Pair p = tcp(), q = unix_stream();
    std::thread([&] {
        ASSERT_EQ(add(set, p.a, in_), 0);
        ASSERT_EQ(add(set, q.a, in_), 0);
        EXPECT_EQ(ready(set), Events());
    }).join();
    ASSERT_EQ(e().close(p.a), 0);
    EXPECT_TRUE(settle(p.b, POLLRDHUP, 5));
    ASSERT_EQ(e().close(q.a), 0);
    EXPECT_EQ(poll_now(q.b) & POLLHUP, POLLHUP);
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Waiters, AThreadPoolServesEveryRequestOnce)
{
    int set = new_set();
    constexpr int connections = 20, requests = 50, threads = 4;
    std::vector<Pair> pairs;
    for (int i = 0; i < connections; i++) {
        pairs.push_back(i % 2 ? tcp() : unix_stream());
        ASSERT_EQ(add(set, pairs.back().a, in_ | et_ | once_), 0);
    }
    int stop = eventfd();
    ASSERT_EQ(add(set, stop, in_), 0);
    std::atomic<int> served{0}, wrong{0};
    std::vector<std::thread> pool;
    for (int t = 0; t < threads; t++)
        pool.emplace_back([&] {
            for (;;)
                for (auto &event : next(set, 3)) {
                    if (event.data == (uint64_t)stop)
                        return;
                    char byte;
                    int fd = (int)event.data;
                    if (event.events != in_ || e().read(fd, &byte, 1) != 1 || e().write(fd, &byte, 1) != 1)
                        wrong++;
                    served++;
                    mod(set, fd, in_ | et_ | once_);
                }
        });
    for (int i = 0; i < requests; i++)
        for (auto &p : pairs) {
            put(p.b, 1, -1);
            ASSERT_TRUE(settle(p.b, POLLIN));
            drain(p.b);
        }
    kick(stop);
    for (auto &thread : pool)
        thread.join();
    EXPECT_EQ(served, connections * requests);
    EXPECT_EQ(wrong, 0);
}

TEST_P(Waiters, EachThreadHasASetOfItsOwn)
{
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; t++)
        threads.emplace_back([&] {
            int set = new_set();
            Pair p = tcp();
            EXPECT_EQ(add(set, p.a, in_), 0);
            for (int i = 0; i < 200; i++) {
                put(p.b, 1, -1);
                EXPECT_EQ(next(set), (Events{{(uint64_t)p.a, in_}}));
                EXPECT_EQ(drain(p.a), 1u);
            }
            EXPECT_EQ(e().close(p.a), 0);
            EXPECT_TRUE(settle(p.b, POLLRDHUP, 5));
            EXPECT_EQ(e().close(p.b), 0);
            EXPECT_EQ(e().close(set), 0);
        });
    for (auto &thread : threads)
        thread.join();
}

TEST_P(Waiters, AThreadEndsWithItsSetOpen)
{
    int set = -1;
    Pair p = tcp();
    std::thread([&] {
        set = new_set();
        ASSERT_EQ(add(set, p.a, in_), 0);
        EXPECT_EQ(ready(set), Events());
    }).join();
    ASSERT_EQ(e().close(set), 0);
    ASSERT_EQ(e().close(p.a), 0);
    EXPECT_TRUE(settle(p.b, POLLRDHUP, 5));
}
