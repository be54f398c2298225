/* SPDX-License-Identifier: MIT
 *
 * The life of fds: epoll watches a file by one of its numbers, and a
 * registration ends when the last number of the file is closed, not before
 * ("Questions and answers" of epoll(7)). And what the peer sees: a close takes
 * effect at once, however the fd was watched.
 */
#include <sys/syscall.h>

#include "conformance.h"

using namespace support;

CONFORMANCE(Close);
CONFORMANCE(Duplicate);
CONFORMANCE(Reuse);
CONFORMANCE(SetLife);
CONFORMANCE(Unread);

/* ---------------------------------------------------------------------- close */

TEST_P(Close, EndsTheRegistration)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    ASSERT_EQ(e().close(p.a), 0);
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Close, OfAFdWithAPendingEventTakesTheEventAlong)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_ | et_), 0);
    EXPECT_EQ(ready(set), Events());
    put(p.b, 1, p.a);
    ASSERT_EQ(e().close(p.a), 0);
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Close, GivesTheTcpPeerItsFinAtOnce)
{
    int set = new_set();
    for (uint32_t flags : {in_, in_ | et_, in_ | once_, in_ | exclusive_, in_ | out_ | rdhup_, 0u}) {
        Pair p = tcp();
        ASSERT_EQ(add(set, p.a, flags), 0);
        ready(set);
        ASSERT_EQ(e().close(p.a), 0);
        EXPECT_TRUE(settle(p.b, POLLIN | POLLRDHUP, 5)) << "flags " << flags;
        char byte;
        EXPECT_EQ(e().recv(p.b, &byte, 1, MSG_DONTWAIT), 0);
    }
}

TEST_P(Close, GivesTheUnixPeerItsEndAtOnce)
{
    int set = new_set();
    for (uint32_t flags : {in_, in_ | et_, in_ | once_, in_ | out_ | rdhup_}) {
        Pair p = unix_stream();
        ASSERT_EQ(add(set, p.a, flags), 0);
        ready(set);
        ASSERT_EQ(e().close(p.a), 0);
        EXPECT_EQ(poll_now(p.b) & (POLLHUP | POLLRDHUP), POLLHUP | POLLRDHUP) << "flags " << flags;
    }
}

TEST_P(Close, OfAPipesWriterEndsTheReaderAtOnce)
{
    int set = new_set();
    Pair p = pipe();
    ASSERT_EQ(add(set, p.b, out_ | et_), 0);
    ready(set);
    ASSERT_EQ(e().close(p.b), 0);
    EXPECT_EQ(poll_now(p.a) & POLLHUP, POLLHUP);
}

TEST_P(Close, RightAfterTheAddWithoutAWait)
{
    int set = new_set();
    for (int i = 0; i < 20; i++) {
        Pair p = tcp();
        ASSERT_EQ(add(set, p.a, in_ | out_), 0);
        ASSERT_EQ(e().close(p.a), 0);
        EXPECT_TRUE(settle(p.b, POLLRDHUP, 5));
        EXPECT_EQ(ready(set), Events());
    }
}

TEST_P(Close, AfterTheReportOfAnEventBeforeTheNextWait)
{
    int set = new_set();
    for (int i = 0; i < 20; i++) {
        Pair p = unix_stream();
        ASSERT_EQ(add(set, p.a, in_), 0);
        put(p.b, 1, p.a);
        EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
        ASSERT_EQ(e().close(p.a), 0);
        EXPECT_EQ(poll_now(p.b) & POLLHUP, POLLHUP);
        ASSERT_EQ(e().close(p.b), 0);
        EXPECT_EQ(ready(set), Events());
    }
}

TEST_P(Close, ByAnotherThreadWhileOneWaits)
{
    int set = new_set();
    Pair p = tcp();
    int stop = eventfd();
    ASSERT_EQ(add(set, p.a, in_), 0);
    ASSERT_EQ(add(set, stop, in_), 0);
    Waiter waiter([&] { return next(set); });
    ASSERT_TRUE(waiter.asleep());
    ASSERT_EQ(e().close(p.a), 0);
    EXPECT_TRUE(settle(p.b, POLLRDHUP, 5)) << "the waiting thread must not hold the file";
    EXPECT_FALSE(waiter.done()) << "and is not woken by it";
    kick(stop);
    EXPECT_EQ(waiter.result(), (Events{{(uint64_t)stop, in_}}));
}

TEST_P(Close, ByAnotherThreadWhileTheOwnerIsElsewhere)
{
    int set = new_set();
    Pair p = tcp(), q = unix_stream();
    ASSERT_EQ(add(set, p.a, in_), 0);
    ASSERT_EQ(add(set, q.a, in_), 0);
    EXPECT_EQ(ready(set), Events());
    std::thread([&] {
        EXPECT_EQ(e().close(p.a), 0);
        EXPECT_EQ(e().close(q.a), 0);
        EXPECT_TRUE(settle(p.b, POLLRDHUP, 5));
        EXPECT_TRUE(settle(q.b, POLLHUP, 5));
    }).join();
    EXPECT_EQ(ready(set), Events());
}

/* A pipe cannot be shut down in the place of a close that has to wait. */
TEST_P(Close, OfAPipesWriterByAnotherThreadEndsTheReaderAtOnce)
{
    int set = new_set();
    Pair early = pipe(), late = pipe();
    ASSERT_EQ(add(set, early.b, out_ | et_), 0);
    ready(set);
    std::thread([] {}).join(); /* from now on there are other threads */
    EXPECT_EQ(ready(set), Events());
    ASSERT_EQ(add(set, late.b, out_ | et_), 0);
    ready(set);
    std::thread([&] {
        EXPECT_EQ(e().close(early.b), 0);
        EXPECT_EQ(poll_now(early.a) & POLLHUP, POLLHUP);
        EXPECT_EQ(e().close(late.b), 0);
        EXPECT_EQ(poll_now(late.a) & POLLHUP, POLLHUP);
    }).join();
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Close, ByAnotherThreadThatReadFromItToo)
{
    int set = new_set();
    Pair p = tcp(), q = unix_stream();
    ASSERT_EQ(add(set, p.a, in_), 0);
    ASSERT_EQ(add(set, q.a, in_), 0);
    EXPECT_EQ(ready(set), Events());
    put(p.b, 1, p.a);
    put(q.b, 1, q.a);
    std::thread([&] {
        for (int fd : {p.a, q.a}) {
            EXPECT_EQ(drain(fd), 1u);
            EXPECT_EQ(e().close(fd), 0);
        }
        EXPECT_TRUE(settle(p.b, POLLRDHUP, 5));
        EXPECT_TRUE(settle(q.b, POLLHUP, 5));
    }).join();
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Close, OfManyInARangeEndsThemAll)
{
    int set = new_set();
    int low = 600;
    std::vector<int> peers;
    for (int i = 0; i < 10; i++) {
        Pair p = tcp();
        ASSERT_GE(e().dup2(p.a, low + i), 0);
        ASSERT_EQ(e().close(p.a), 0);
        ASSERT_EQ(add(set, low + i, in_), 0);
        peers.push_back(p.b);
    }
    EXPECT_EQ(ready(set), Events());
    ASSERT_EQ(e().close_range((unsigned)low, (unsigned)low + 9), 0);
    for (int peer : peers)
        EXPECT_TRUE(settle(peer, POLLRDHUP, 5));
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Close, OfAClosedFdIsEbadf)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_EQ(ready(set), Events());
    ASSERT_EQ(e().close(p.a), 0);
    EXPECT_EQ(e().close(p.a), -EBADF);
    EXPECT_EQ(e().close(-1), -EBADF);
}

/* ------------------------------------------------------------------ duplicate */

TEST_P(Duplicate, KeepsTheRegistrationAliveAfterTheClose)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_EQ(ready(set), Events());
    int copy = e().dup(p.a);
    ASSERT_EQ(e().close(p.a), 0);
    EXPECT_EQ(ready(set), Events());
    put(p.b, 1, copy);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}})) << "under the number it was added by";
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    EXPECT_EQ(del(set, p.a), -EBADF) << "and out of reach";
    EXPECT_EQ(del(set, copy), -ENOENT);
    drain(copy);
    EXPECT_EQ(ready(set), Events());
    ASSERT_EQ(e().close(copy), 0);
    EXPECT_TRUE(settle(p.b, POLLRDHUP, 5));
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Duplicate, MadeBeforeTheAddKeepsItAliveToo)
{
    int set = new_set();
    Pair p = unix_stream();
    int copy = e().dup(p.a);
    ASSERT_EQ(add(set, p.a, in_ | et_), 0);
    EXPECT_EQ(ready(set), Events());
    put(p.b, 1, copy);
    ASSERT_EQ(e().close(p.a), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    EXPECT_EQ(ready(set), Events());
    put(p.b, 1, copy);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    ASSERT_EQ(e().close(copy), 0);
    EXPECT_EQ(poll_now(p.b) & POLLHUP, POLLHUP);
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Duplicate, ClosingTheCopyChangesNothing)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_EQ(ready(set), Events());
    int copy = e().dup(p.a);
    ASSERT_EQ(e().close(copy), 0);
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    ASSERT_EQ(e().close(p.a), 0);
    EXPECT_EQ(ready(set), Events());
    EXPECT_TRUE(settle(p.b, POLLIN, 5));
}

TEST_P(Duplicate, BothCanBeRegistered)
{
    int set = new_set();
    Pair p = tcp();
    int copy = e().dup(p.a);
    ASSERT_EQ(add(set, p.a, in_), 0);
    ASSERT_EQ(add(set, copy, out_), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)copy, out_}}));
    put(p.b, 1, p.a);
    Events both = {{(uint64_t)p.a, in_}, {(uint64_t)copy, out_}};
    std::sort(both.begin(), both.end());
    EXPECT_EQ(ready(set), both);
    ASSERT_EQ(mod(set, copy, in_), 0);
    for (auto &event : both)
        event.events = in_;
    EXPECT_EQ(ready(set), both);
    drain(copy);
    EXPECT_EQ(ready(set), Events());
    ASSERT_EQ(e().close(p.a), 0);
    put(p.b, 1, copy);
    EXPECT_EQ(ready(set), both) << "both registrations live as long as the file";
    ASSERT_EQ(e().close(copy), 0);
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Duplicate, ReadingThroughTheCopyLeavesNoStaleEvent)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    int copy = e().dup(p.a);
    for (int i = 0; i < 10; i++) {
        put(p.b, 10, p.a);
        EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
        drain(copy);
        EXPECT_EQ(ready(set), Events());
        put(p.b, 10, p.a);
        drain(copy);
        EXPECT_EQ(ready(set), Events());
    }
}

TEST_P(Duplicate, AnOneShotIsDisabledForGoodOnceItsNumberIsGone)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_ | once_), 0);
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    int copy = e().dup(p.a);
    ASSERT_EQ(e().close(p.a), 0);
    put(p.b, 1, copy);
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Duplicate, ADisabledOneShotIsStillThereUnderItsNumber)
{
    int set = new_set();
    /* A file that has nothing to report is the harder one to disable. */
    for (bool drained : {false, true})
        for (Pair p : {tcp(), unix_stream(), pipe()}) {
            int other = eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC | EFD_SEMAPHORE);
            ASSERT_EQ(add_as(set, p.a, in_ | once_, 1), 0);
            put(p.b, 1, p.a);
            EXPECT_EQ(ready(set), (Events{{1, in_}}));
            ASSERT_EQ(add_as(set, other, in_ | once_, 2), 0);
            if (drained)
                drain(p.a);
            int copy = e().dup(p.a);
            EXPECT_EQ(add(set, p.a, in_), -EEXIST);
            ASSERT_EQ(e().close(p.a), 0);
            EXPECT_EQ(ready(set), (Events{{2, in_}}));
            put(p.b, 1, copy);
            EXPECT_EQ(ready(set), Events());
            ASSERT_EQ(e().dup(copy), p.a);
            EXPECT_EQ(add(set, p.a, in_), -EEXIST);
            EXPECT_EQ(ready(set), Events());
            ASSERT_EQ(ctl(set, EPOLL_CTL_MOD, p.a, in_ | once_, 3), 0);
            EXPECT_EQ(ready(set), (Events{{3, in_}}));
            EXPECT_EQ(ready(set), Events());
            ASSERT_EQ(del(set, p.a), 0);
            EXPECT_EQ(del(set, p.a), -ENOENT);
            ASSERT_EQ(e().close(p.a), 0);
            ASSERT_EQ(e().close(copy), 0);
            ASSERT_EQ(e().close(other), 0);
        }
}

TEST_P(Duplicate, ADisabledOneShotDoesNotTellOfTheEnd)
{
    int set = new_set();
    Pair p = pipe(), q = tcp(), r = unix_stream();
    for (const Pair &pair : {p, q, r}) {
        ASSERT_EQ(add(set, pair.a, in_ | once_), 0);
        put(pair.b, 1, pair.a);
        EXPECT_EQ(ready(set), (Events{{(uint64_t)pair.a, in_}}));
        drain(pair.a);
        ASSERT_GE(e().dup(pair.a), 0);
        ASSERT_EQ(e().close(pair.b), 0);
        EXPECT_TRUE(settle(pair.a, pair.a == p.a ? POLLHUP : POLLIN | POLLRDHUP, 5));
        EXPECT_EQ(ready(set, 1), Events());
        EXPECT_EQ(ready(set), Events());
        EXPECT_EQ(add(set, pair.a, in_), -EEXIST);
        ASSERT_EQ(mod(set, pair.a, in_ | once_), 0);
        EXPECT_EQ(ready(set).size(), 1u);
    }
}

TEST_P(Duplicate, WhatAnEdgeHasReportedStaysReported)
{
    int set = new_set();
    for (Pair p : {tcp(), unix_stream(), pipe()}) {
        ASSERT_EQ(add(set, p.a, in_ | out_ | rdhup_ | et_), 0);
        put(p.b, 1, p.a);
        ASSERT_EQ(ready(set).size(), 1u);
        int copy = e().dup(p.a);
        EXPECT_EQ(ready(set), Events()) << "after the dup";
        ASSERT_EQ(e().close(p.a), 0);
        EXPECT_EQ(ready(set), Events()) << "after the close";
        ASSERT_EQ(e().dup(copy), p.a);
        EXPECT_EQ(ready(set), Events()) << "after it came back";
        put(p.b, 1, copy);
        EXPECT_EQ(ready(set).size(), 1u);
        EXPECT_EQ(ready(set), Events());
    }
}

TEST_P(Duplicate, OfASpentEdgeTakesNoEventOfOthersAlong)
{
    int set = new_set(), ready_ones = 0;
    Pair p = tcp(), ghost = tcp(), silent = tcp();
    /* Kinds that kernel epoll serves, and a registration that is out of reach. */
    auto semaphore = [&](unsigned count) { return eventfd(count, EFD_NONBLOCK | EFD_CLOEXEC | EFD_SEMAPHORE); };
    ASSERT_EQ(add(set, p.a, in_ | out_ | et_), 0);
    ASSERT_EQ(add(set, silent.a, in_), 0);
    EXPECT_EQ(ready(set).size(), 1u);
    ASSERT_EQ(add_as(set, ghost.a, in_ | et_, 1000), 0);
    int copy = e().dup(ghost.a);
    ASSERT_EQ(e().close(ghost.a), 0);
    put(ghost.b, 1, copy);
    for (uint32_t flags : {in_, in_ | et_, in_ | once_, in_ | et_ | once_, in_ | exclusive_ | et_})
        for (int i = 0; i < 40; i++) {
            ASSERT_EQ(add_as(set, semaphore(1), flags, 2000 + (uint64_t)ready_ones), 0);
            ready_ones++;
        }
    e().dup(p.a);
    Events all = ready(set, 256);
    ASSERT_EQ(all.size(), (size_t)ready_ones + 1) << "each once, and the edge not again";
    for (int i = 0; i <= ready_ones; i++)
        EXPECT_EQ(all[(size_t)i], (Event{i == 0 ? 1000 : 1999 + (uint64_t)i, in_}));
    EXPECT_EQ(ready(set, 256).size(), 40u) << "the level-triggered ones";
    put(silent.b, 1, silent.a);
    EXPECT_EQ(ready(set, 256).size(), 41u);
}

/* A spent edge of a number that is duplicated now, beside a pending event of a number
 * that is closed: nobody could put that back. */
struct OutOfReach {
    int set, copy;
    Pair spent;
};

class ClosedNumber : public Conformance {
protected:
    OutOfReach make(uint32_t flags)
    {
        OutOfReach at = {new_set(), -1, tcp()};
        int ghost = eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC | EFD_SEMAPHORE);
        EXPECT_EQ(add(at.set, at.spent.a, in_ | out_ | et_), 0);
        EXPECT_EQ(ready(at.set), (Events{{(uint64_t)at.spent.a, out_}}));
        EXPECT_EQ(add_as(at.set, ghost, flags, 1000), 0);
        at.copy = e().dup(ghost);
        EXPECT_EQ(e().close(ghost), 0);
        EXPECT_GE(e().dup(at.spent.a), 0);
        return at;
    }
};
INSTANTIATE_TEST_SUITE_P(, ClosedNumber, ::testing::ValuesIn(support::chosen_engines()),
                         [](const auto &engine) { return engine.param; });

TEST_P(ClosedNumber, ItsEventIsGivenAsItIsThen)
{
    OutOfReach at = make(in_ | out_ | et_);
    kick(at.copy, UINT64_MAX - 2);
    EXPECT_EQ(ready(at.set), (Events{{1000, in_}})) << "OUT has gone since";
    EXPECT_EQ(ready(at.set), Events());
}

TEST_P(ClosedNumber, ThatWasDrainedIsNotReported)
{
    for (uint32_t flags : {in_ | et_, in_ | once_}) {
        OutOfReach at = make(flags);
        take(at.copy);
        EXPECT_EQ(ready(at.set), Events());
        kick(at.copy);
        EXPECT_EQ(ready(at.set), (Events{{1000, in_}}));
        kick(at.copy);
        EXPECT_EQ(ready(at.set), flags & once_ ? Events() : (Events{{1000, in_}}));
    }
}

TEST_P(ClosedNumber, WhoseFileHasGoneIsNotReported)
{
    OutOfReach at = make(in_ | et_);
    ASSERT_EQ(e().close(at.copy), 0);
    EXPECT_EQ(ready(at.set), Events());
}

TEST_P(ClosedNumber, BesideItAMovedOneGoesOnReporting)
{
    OutOfReach at = make(in_ | et_);
    EXPECT_EQ(ready(at.set), (Events{{1000, in_}}));
    put(at.spent.b, 1, at.spent.a);
    EXPECT_EQ(ready(at.set, 1), (Events{{(uint64_t)at.spent.a, in_ | out_}}));
    Waiter waiter([&] { return next(at.set); });
    ASSERT_TRUE(waiter.asleep());
    put(at.spent.b, 1, at.spent.a);
    EXPECT_EQ(waiter.result(), (Events{{(uint64_t)at.spent.a, in_ | out_}}));
    e().will_be_polled(at.set);
    EXPECT_EQ(poll_now(at.set) & POLLIN, 0);
    put(at.spent.b, 1, at.spent.a);
    EXPECT_EQ(poll_now(at.set) & POLLIN, POLLIN);
    EXPECT_EQ(ready(at.set), (Events{{(uint64_t)at.spent.a, in_ | out_}}));
}

TEST_P(ClosedNumber, BesideItAMovedOneCanBeChanged)
{
    for (bool polled : {false, true}) {
        OutOfReach at = make(in_ | et_);
        int fd = at.spent.a;
        if (polled)
            e().will_be_polled(at.set);
        EXPECT_EQ(add(at.set, fd, in_), -EEXIST);
        EXPECT_EQ(mod(at.set, fd, in_ | exclusive_), -EINVAL);
        EXPECT_EQ(mod(at.set, fd, out_ | once_), 0);
        EXPECT_EQ(ready(at.set), (Events{{(uint64_t)fd, out_}, {1000, in_}}));
        EXPECT_EQ(ready(at.set), Events());
        EXPECT_EQ(mod(at.set, fd, out_), 0);
        EXPECT_EQ(ready(at.set), (Events{{(uint64_t)fd, out_}}));
        EXPECT_EQ(ready(at.set), (Events{{(uint64_t)fd, out_}}));
        EXPECT_EQ(del(at.set, fd), 0);
        EXPECT_EQ(del(at.set, fd), -ENOENT);
        EXPECT_EQ(mod(at.set, fd, out_), -ENOENT);
        EXPECT_EQ(ready(at.set), Events());
        EXPECT_EQ(add(at.set, fd, out_), 0);
        EXPECT_EQ(ready(at.set), (Events{{(uint64_t)fd, out_}}));
        EXPECT_EQ(del(at.set, fd), 0);
    }
}

TEST_P(ClosedNumber, BesideItAMovedOneOutlivesItsOwn)
{
    OutOfReach at = make(in_ | et_);
    int fd = at.spent.a, copy = e().dup(fd);
    ASSERT_EQ(e().close(fd), 0);
    EXPECT_EQ(ready(at.set), (Events{{1000, in_}}));
    put(at.spent.b, 1, copy);
    EXPECT_EQ(ready(at.set), (Events{{(uint64_t)fd, in_ | out_}}));
    ASSERT_EQ(e().dup2(copy, fd), fd);
    EXPECT_EQ(add(at.set, fd, in_), -EEXIST) << "it is the same file under the same number";
    EXPECT_EQ(mod(at.set, fd, in_), 0);
    EXPECT_EQ(ready(at.set), (Events{{(uint64_t)fd, in_}}));
    EXPECT_EQ(del(at.set, fd), 0);
    EXPECT_EQ(ready(at.set), Events());
}

TEST_P(ClosedNumber, BesideItADisabledOneShotStaysDisabled)
{
    OutOfReach at = make(in_ | et_);
    Pair p = tcp();
    ASSERT_EQ(add(at.set, p.a, in_ | once_), 0);
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(at.set), (Events{{(uint64_t)p.a, in_}, {1000, in_}}));
    kick(at.copy);
    e().dup(p.a);
    EXPECT_EQ(ready(at.set), (Events{{1000, in_}}));
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(at.set), Events());
    EXPECT_EQ(mod(at.set, p.a, in_ | once_), 0);
    EXPECT_EQ(ready(at.set), (Events{{(uint64_t)p.a, in_}}));
    EXPECT_EQ(ready(at.set), Events());
}

TEST_P(ClosedNumber, BesideItManyMovesAreEachSilent)
{
    OutOfReach at = make(in_ | et_);
    for (int i = 0; i < 40; i++) {
        Pair p = unix_stream();
        ASSERT_EQ(add(at.set, p.a, in_ | et_), 0);
        put(p.b, 1, p.a);
        EXPECT_EQ(ready(at.set).back().data, i % 8 == 0 ? 1000u : (uint64_t)p.a) << i;
        if (i % 8 == 0) {
            EXPECT_EQ(ready(at.set), Events());
        }
        int copy = e().dup(p.a);
        EXPECT_EQ(ready(at.set), Events()) << i;
        put(p.b, 1, p.a);
        EXPECT_EQ(ready(at.set), (Events{{(uint64_t)p.a, in_}})) << i;
        if (i % 8 == 7) {
            kick(at.copy);
        } else if (i % 4 == 3) {
            ASSERT_EQ(e().close(p.a), 0);
        }
        ASSERT_EQ(e().close(copy), 0);
    }
}

TEST_P(ClosedNumber, BesideItAnAddThatFailsWakesNobody)
{
    OutOfReach at = make(in_ | et_);
    int outer = new_set();
    ASSERT_EQ(add(outer, at.set, in_ | et_), 0);
    EXPECT_EQ(ready(outer).size(), 1u);
    Pair p = unix_stream();
    ASSERT_EQ(e().close(p.b), 0);
    ASSERT_EQ(add(at.set, p.a, in_), 0);
    EXPECT_EQ(ready(outer).size(), 1u);
    EXPECT_EQ(add(at.set, p.a, in_), -EEXIST);
    EXPECT_EQ(ready(outer), Events());
}

/* Who else waits on the set is no client of the library. */
TEST_P(ClosedNumber, BesideItAPassedSetTellsOfTheProgramsDataAlone)
{
    OutOfReach at = make(in_ | et_);
    Pair over = unix_stream();
    int received = -1;
    char byte = 0;
    ASSERT_EQ(e().send_fd(over.a, at.set, "x", 1), 1);
    ASSERT_EQ(e().recv_fd(over.b, &byte, 1, &received), 1);
    put(at.spent.b, 1, at.spent.a);
    struct epoll_event events[8];
    long count = syscall(SYS_epoll_pwait, received, events, 8, 0, nullptr, 8);
    ASSERT_GE(count, 1);
    bool told = false;
    for (long i = 0; i < count; i++) {
        EXPECT_TRUE(events[i].data.u64 == 1000 || events[i].data.u64 == (uint64_t)at.spent.a);
        told = told || events[i].data.u64 == (uint64_t)at.spent.a;
    }
    EXPECT_TRUE(told);
}

TEST_P(Duplicate, OfASpentEdgeBesideAnotherOneWithTheSameData)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add_as(set, p.a, in_ | et_, 7), 0);
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(set), (Events{{7, in_}}));
    int other = eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC | EFD_SEMAPHORE);
    ASSERT_EQ(add_as(set, other, in_ | et_, 7), 0);
    e().dup(p.a);
    take(other);
    EXPECT_EQ(ready(set), Events());
    kick(other);
    EXPECT_EQ(ready(set), (Events{{7, in_}}));
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Duplicate, AnEdgeThatNobodySawSurvivesTheClose)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_ | et_), 0);
    EXPECT_EQ(ready(set), Events());
    int copy = e().dup(p.a);
    put(p.b, 1, p.a);
    ASSERT_EQ(e().close(p.a), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    ASSERT_EQ(e().close(copy), 0);
}

TEST_P(Duplicate, TheCloseLeavesAnExclusiveEdgeOfAnotherFdAlone)
{
    int set = new_set();
    Pair p = tcp(), q = udp(), r = udp();
    ASSERT_EQ(add(set, p.a, in_ | et_), 0);
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    int copy = e().dup(p.a);
    ASSERT_EQ(add(set, q.a, out_ | et_ | exclusive_), 0);
    ASSERT_EQ(add(set, r.a, out_ | et_ | exclusive_), 0);
    Events seen = ready(set, 1);
    ASSERT_EQ(seen.size(), 1u);
    ASSERT_EQ(e().close(p.a), 0);
    Events others = ready(set);
    seen.insert(seen.end(), others.begin(), others.end());
    std::sort(seen.begin(), seen.end());
    EXPECT_EQ(seen, (Events{{(uint64_t)q.a, out_}, {(uint64_t)r.a, out_}}));
    ASSERT_EQ(e().close(copy), 0);
}

TEST_P(Duplicate, Dup2OverAWatchedFdEndsItsRegistration)
{
    int set = new_set();
    Pair p = tcp(), q = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_EQ(ready(set), Events());
    ASSERT_EQ(e().dup2(q.a, p.a), p.a);
    EXPECT_TRUE(settle(p.b, POLLRDHUP, 5)) << "the old file is gone";
    put(q.b, 1, q.a);
    EXPECT_EQ(ready(set), Events()) << "the new one was not added";
    EXPECT_EQ(mod(set, p.a, in_), -ENOENT);
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
}

TEST_P(Duplicate, Dup2OntoItselfChangesNothing)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_EQ(ready(set), Events());
    ASSERT_EQ(e().dup2(p.a, p.a), p.a);
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
}

TEST_P(Duplicate, AFailingDup2ChangesNothing)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_EQ(ready(set), Events());
    EXPECT_EQ(e().dup2(5000, p.a), -EBADF);
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
}

TEST_P(Duplicate, ByFcntlIsADuplicateToo)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_EQ(ready(set), Events());
    int copy = e().dupfd(p.a, 500);
    ASSERT_GE(copy, 500);
    ASSERT_EQ(e().close(p.a), 0);
    put(p.b, 1, copy);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    ASSERT_EQ(e().close(copy), 0);
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Duplicate, InFlightOverAUnixSocketKeepsTheFileAlive)
{
    int set = new_set();
    Pair p = tcp(), carrier = unix_stream();
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_EQ(ready(set), Events());
    ASSERT_EQ(e().send_fd(carrier.a, p.a, "x", 1), 1);
    ASSERT_EQ(e().close(p.a), 0);
    EXPECT_EQ(poll_now(p.b) & POLLRDHUP, 0);
    put(p.b, 1, -1);
    EXPECT_EQ(next(set), (Events{{(uint64_t)p.a, in_}}));
    char byte;
    int received = -1;
    ASSERT_EQ(e().recv_fd(carrier.b, &byte, 1, &received), 1);
    ASSERT_GE(received, 0);
    drain(received);
    EXPECT_EQ(ready(set), Events());
    ASSERT_EQ(e().close(received), 0);
    EXPECT_TRUE(settle(p.b, POLLRDHUP, 5));
    EXPECT_EQ(ready(set), Events());
}

/* ---------------------------------------------------------------------- reuse */

TEST_P(Reuse, OfANumberStartsWithoutARegistration)
{
    int set = new_set();
    for (int i = 0; i < 20; i++) {
        Pair p = tcp();
        ASSERT_EQ(add_as(set, p.a, in_, 1), 0);
        ready(set);
        ASSERT_EQ(e().close(p.a), 0);
        Pair q = unix_stream();
        int again = q.a == p.a ? q.a : q.b;
        ASSERT_EQ(again, p.a) << "the lowest free number is given";
        put(again == q.a ? q.b : q.a, 1, again);
        EXPECT_EQ(ready(set), Events());
        EXPECT_EQ(mod(set, again, in_), -ENOENT);
        ASSERT_EQ(add_as(set, again, in_, 2), 0);
        EXPECT_EQ(ready(set), (Events{{2, in_}}));
        e().close(p.b);
        e().close(q.a);
        e().close(q.b);
        EXPECT_EQ(ready(set), Events());
    }
}

TEST_P(Reuse, WhileTheOldFileLivesOnGivesTwoRegistrationsUnderOneNumber)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add_as(set, p.a, in_, 1), 0);
    EXPECT_EQ(ready(set), Events());
    int copy = e().dup(p.a);
    ASSERT_EQ(e().close(p.a), 0);
    int counter = eventfd(1);
    ASSERT_EQ(counter, p.a);
    ASSERT_EQ(add_as(set, counter, in_, 2), 0);
    EXPECT_EQ(ready(set), (Events{{2, in_}}));
    put(p.b, 1, copy);
    EXPECT_EQ(ready(set), (Events{{1, in_}, {2, in_}}));
    ASSERT_EQ(del(set, counter), 0);
    EXPECT_EQ(ready(set), (Events{{1, in_}}));
    ASSERT_EQ(e().close(counter), 0);
    ASSERT_EQ(e().dup2(copy, p.a), p.a);
    ASSERT_EQ(mod(set, p.a, out_), 0) << "the same file under the same number: within reach again";
    EXPECT_EQ(ready(set).size(), 1u);
    ASSERT_EQ(del(set, p.a), 0);
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Reuse, ByTheSameFileFindsTheOldRegistration)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add_as(set, p.a, in_, 7), 0);
    EXPECT_EQ(ready(set), Events());
    int copy = e().dup(p.a);
    ASSERT_EQ(e().close(p.a), 0);
    ASSERT_EQ(e().dup(copy), p.a);
    EXPECT_EQ(add(set, p.a, in_), -EEXIST);
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(set), (Events{{7, in_}}));
    ASSERT_EQ(del(set, p.a), 0);
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Reuse, UnderLoadMixesNothingUp)
{
    int set = new_set();
    for (int i = 0; i < 300; i++) {
        Pair p = i % 3 == 0 ? tcp() : i % 3 == 1 ? unix_stream() : pipe();
        ASSERT_EQ(add_as(set, p.a, in_, (uint64_t)i), 0);
        if (i % 2)
            ready(set);
        put(p.b, 1, p.a);
        ASSERT_EQ(ready(set), (Events{{(uint64_t)i, in_}}));
        if (i % 5 == 0)
            put(p.b, 1, p.a);
        ASSERT_EQ(e().close(p.a), 0);
        ASSERT_EQ(e().close(p.b), 0);
    }
    EXPECT_EQ(ready(set), Events());
}

/* --------------------------------------------------------------- life of a set */

TEST_P(SetLife, ADuplicateIsTheSameSet)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_EQ(ready(set), Events());
    int copy = e().dup(set);
    ASSERT_GE(copy, 0);
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(copy), (Events{{(uint64_t)p.a, in_}}));
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    ASSERT_EQ(mod(copy, p.a, in_ | out_), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_ | out_}}));
    EXPECT_EQ(add(copy, p.a, in_), -EEXIST);
    ASSERT_EQ(del(copy, p.a), 0);
    EXPECT_EQ(del(set, p.a), -ENOENT);
    EXPECT_EQ(ready(set), Events());
}

TEST_P(SetLife, ClosingOneDuplicateLeavesTheOther)
{
    int set = new_set();
    Pair p = tcp(), q = unix_stream();
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_EQ(ready(set), Events());
    int copy = e().dup(set);
    ASSERT_EQ(e().close(set), 0);
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(copy), (Events{{(uint64_t)p.a, in_}}));
    ASSERT_EQ(add(copy, q.a, in_), 0);
    put(q.b, 1, q.a);
    EXPECT_EQ(ready(copy).size(), 2u);
    ASSERT_EQ(e().close(q.a), 0);
    EXPECT_EQ(ready(copy), (Events{{(uint64_t)p.a, in_}}));
    EXPECT_EQ(poll_now(q.b) & POLLHUP, POLLHUP);
}

TEST_P(SetLife, Dup2OfASetOverAnotherEndsThatOne)
{
    int first = new_set(), second = new_set();
    Pair p = tcp();
    ASSERT_EQ(add_as(first, p.a, in_, 1), 0);
    ASSERT_EQ(add_as(second, p.a, in_, 2), 0);
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(first), (Events{{1, in_}}));
    EXPECT_EQ(ready(second), (Events{{2, in_}}));
    ASSERT_EQ(e().dup2(first, second), second);
    EXPECT_EQ(ready(second), (Events{{1, in_}}));
    ASSERT_EQ(e().close(first), 0);
    EXPECT_EQ(ready(second), (Events{{1, in_}}));
}

TEST_P(SetLife, CloseWithEverythingArmedFreesEverything)
{
    int set = new_set();
    std::vector<Pair> pairs;
    for (int i = 0; i < 50; i++) {
        pairs.push_back(i % 2 ? tcp() : unix_stream());
        ASSERT_EQ(add(set, pairs.back().a, in_ | (i % 3 ? et_ : 0u)), 0);
    }
    EXPECT_EQ(ready(set), Events());
    ASSERT_EQ(e().close(set), 0);
    for (auto &p : pairs) {
        ASSERT_EQ(e().close(p.a), 0);
        EXPECT_TRUE(settle(p.b, POLLRDHUP, 5));
    }
}

TEST_P(SetLife, CloseLeavesTheWatchedFdsAlone)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_EQ(ready(set), Events());
    ASSERT_EQ(e().close(set), 0);
    put(p.b, 10, p.a);
    EXPECT_EQ(drain(p.a), 10u);
    EXPECT_EQ(poll_now(p.b) & (POLLHUP | POLLRDHUP), 0);
}

TEST_P(SetLife, CloseByAThreadThatIsNotTheWaiter)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_EQ(ready(set), Events());
    std::thread([&] { EXPECT_EQ(e().close(set), 0); }).join();
    ASSERT_EQ(e().close(p.a), 0);
    EXPECT_TRUE(settle(p.b, POLLRDHUP, 5));
}

TEST_P(SetLife, AClosedSetIsEbadf)
{
    int set = new_set();
    int counter = eventfd(1);
    ASSERT_EQ(add(set, counter, in_), 0);
    EXPECT_EQ(ready(set).size(), 1u);
    ASSERT_EQ(e().close(set), 0);
    EXPECT_EQ(ready(set), (Events{{~0ull, EBADF}}));
    EXPECT_EQ(mod(set, counter, in_), -EBADF);
}

TEST_P(SetLife, ItsNumberMayBecomeAnythingElse)
{
    int set = new_set();
    int counter = eventfd(1);
    ASSERT_EQ(add(set, counter, in_), 0);
    EXPECT_EQ(ready(set).size(), 1u);
    ASSERT_EQ(e().close(set), 0);
    Pair p = unix_stream();
    ASSERT_TRUE(p.a == set || p.b == set);
    EXPECT_EQ(ready(set), (Events{{~0ull, EINVAL}}));
    EXPECT_EQ(add(set, counter, in_), -EINVAL);
    int other = new_set();
    EXPECT_EQ(ready(other), Events());
    ASSERT_EQ(add(other, set, in_ | rdhup_), 0);
    ASSERT_EQ(e().close(set == p.a ? p.b : p.a), 0);
    EXPECT_EQ(ready(other), (Events{{(uint64_t)set, in_ | hup_ | rdhup_}}));
}

TEST_P(SetLife, ManySetsComeAndGo)
{
    Pair p = tcp();
    put(p.b, 1, p.a);
    for (int i = 0; i < 200; i++) {
        int set = new_set();
        ASSERT_EQ(add(set, p.a, in_), 0);
        ASSERT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
        ASSERT_EQ(e().close(set), 0);
    }
}

TEST_P(SetLife, ManySetsAtOnce)
{
    Pair p = tcp();
    std::vector<int> sets;
    for (int i = 0; i < 40; i++) {
        sets.push_back(new_set());
        ASSERT_EQ(add_as(sets.back(), p.a, in_, (uint64_t)i), 0);
        EXPECT_EQ(ready(sets.back()), Events());
    }
    put(p.b, 1, p.a);
    for (int i = 0; i < 40; i++)
        EXPECT_EQ(ready(sets[(size_t)i]), (Events{{(uint64_t)i, in_}}));
    ASSERT_EQ(e().close(p.a), 0);
    for (int set : sets)
        EXPECT_EQ(ready(set), Events());
    EXPECT_TRUE(settle(p.b, POLLRDHUP, 5));
}

/* The kernel interrupts what a thread waits in 13 to 20 ms after a ring of its own has ended. */
TEST_P(SetLife, TheEndOfManySetsInterruptsNoLaterWait)
{
    Pair p = tcp();
    std::vector<int> sets;
    for (int i = 0; i < 40; i++) {
        sets.push_back(new_set());
        ASSERT_EQ(add(sets.back(), p.a, in_), 0);
        EXPECT_EQ(ready(sets.back()), Events());
    }
    for (int set : sets)
        ASSERT_EQ(e().close(set), 0);
    int kernels = (int)syscall(SYS_epoll_create1, EPOLL_CLOEXEC);
    struct epoll_event event;
    EXPECT_EQ(syscall(SYS_epoll_pwait, kernels, &event, 1, 100, nullptr, 8), 0) << strerrorname_np(errno);
    ::close(kernels);
}

TEST_P(SetLife, ItSeesReadsThatNobodyReports)
{
    /* By the raw system call, and by a thread that knows nothing of the set. */
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    char bytes[100];
    for (int i = 0; i < 20; i++) {
        put(p.b, 10, p.a);
        EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
        ASSERT_EQ(syscall(SYS_read, p.a, bytes, sizeof bytes), 10);
        EXPECT_EQ(ready(set), Events());
        put(p.b, 10, p.a);
        EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
        std::thread([&] { ASSERT_EQ(::recv(p.a, bytes, sizeof bytes, 0), 10); }).join();
        EXPECT_EQ(ready(set), Events());
    }
}

/* The one by another thread while its owner is busy: what is done for the peer's sake
 * must not be heard of in other sets. */
TEST_P(Close, ByAnotherThreadLeavesNothingInASecondSet)
{
    for (bool is_tcp : {true, false}) {
        int set = new_set(), second = new_set();
        Pair p = is_tcp ? tcp() : unix_stream();
        ASSERT_EQ(add(set, p.a, in_ | et_), 0);
        ASSERT_EQ(add(second, p.a, in_ | rdhup_), 0);
        e().will_be_polled(second);
        EXPECT_EQ(ready(set), Events());
        EXPECT_EQ(ready(second), Events());
        std::thread([&] { EXPECT_EQ(e().close(p.a), 0); }).join();
        EXPECT_TRUE(settle(p.b, POLLRDHUP));
        EXPECT_EQ(ready(second), Events());
    }
}

TEST_P(Close, ByAnotherThreadResetsThePeerOfAnUnreadUrgentByte)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_EQ(ready(set), Events());
    ASSERT_EQ(e().send(p.b, "x", 1, MSG_OOB), 1);
    EXPECT_TRUE(settle(p.a, POLLPRI));
    std::thread([&] { EXPECT_EQ(e().close(p.a), 0); }).join();
    EXPECT_TRUE(settle(p.b, POLLERR));
    char byte;
    EXPECT_EQ(e().recv(p.b, &byte, 1, 0), -ECONNRESET);
}

/* ------------------------------------------------------- bytes that wait to be read
 *
 * What a library may have received by now is what the kernel would still have. */

/* Bytes that were reported, twice, and not read. */
#define WITH_UNREAD(p, set, flags, text)                                                                          \
    ASSERT_EQ(add(set, (p).a, flags), 0);                                                                         \
    put_text((p).b, text, (p).a);                                                                                 \
    EXPECT_EQ(ready(set).size(), 1u);                                                                             \
    EXPECT_EQ(ready(set).size(), 1u)

TEST_P(Unread, OutIsReportedAfterTheyWereRead)
{
    for (bool is_tcp : {true, false}) {
        int set = new_set();
        Pair p = is_tcp ? tcp() : unix_stream();
        ASSERT_EQ(add(set, p.a, in_ | out_ | rdhup_), 0);
        for (int i = 0; i < 8; i++) {
            put(p.b, 1, p.a);
            EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_ | out_}}));
            EXPECT_EQ(drain(p.a), 1u);
            EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, out_}})) << i;
            EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, out_}})) << i;
        }
    }
}

TEST_P(Unread, ADuplicateReadsThem)
{
    for (bool is_tcp : {true, false}) {
        int set = new_set();
        Pair p = is_tcp ? tcp() : unix_stream();
        char bytes[8] = {};
        WITH_UNREAD(p, set, in_, "abcd");
        int copy = e().dup(p.a), third = e().dup(copy);
        ASSERT_EQ(e().read(copy, bytes, 1), 1);
        EXPECT_EQ(bytes[0], 'a');
        ASSERT_EQ(e().read(p.a, bytes, 1), 1);
        EXPECT_EQ(bytes[0], 'b');
        ASSERT_EQ(e().close(p.a), 0);
        ASSERT_EQ(add(set, third, in_), 0);
        ASSERT_EQ(e().close(copy), 0);
        EXPECT_EQ(ready(set).back(), (Event{(uint64_t)third, in_}));
        ASSERT_EQ(e().read(third, bytes, sizeof bytes), 2);
        EXPECT_EQ(bytes[0], 'c');
        EXPECT_EQ(ready(set), Events());
        put(p.b, 1, third);
        EXPECT_EQ(drain(third), 1u);
        ASSERT_EQ(e().close(third), 0);
        EXPECT_TRUE(settle(p.b, POLLRDHUP)) << "the last name takes the file along";
    }
}

TEST_P(Unread, AResetBehindThemIsTold)
{
    int set = new_set();
    Pair p = tcp();
    char bytes[16];
    WITH_UNREAD(p, set, in_, "abcd");
    e().dup(p.a); /* so that the kernel has it again */
    reset(p.b);
    EXPECT_TRUE(settle(p.a, POLLHUP));
    ssize_t count = e().read(p.a, bytes, sizeof bytes);
    EXPECT_TRUE(count == 4 || count == -ECONNRESET);
    if (count == 4) {
        EXPECT_EQ(e().read(p.a, bytes, sizeof bytes), -ECONNRESET);
    }
    EXPECT_EQ(e().read(p.a, bytes, sizeof bytes), 0);
}

/* A read finds the reset behind the byte, and may take it along: the event that is on
 * its way tells of it all the same. */
TEST_P(Unread, AResetThatAReadMetIsInTheNextEvent)
{
    int set = new_set();
    Pair p = tcp();
    char bytes[64];
    ASSERT_EQ(add(set, p.a, in_), 0);
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    put(p.a, 2, p.b);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    ASSERT_EQ(mod(set, p.a, in_ | et_), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    ASSERT_EQ(e().close(p.b), 0); /* with unread bytes */
    EXPECT_TRUE(settle(p.a, POLLHUP));
    ASSERT_EQ(e().read(p.a, bytes, sizeof bytes), 1);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_ | err_ | hup_}}));
    EXPECT_EQ(e().read(p.a, bytes, sizeof bytes), -ECONNRESET);
}

TEST_P(Unread, OneRegistrationIsOneEvent)
{
    int set = new_set(), second = new_set();
    Pair p = tcp();
    WITH_UNREAD(p, set, in_, "abcd");
    ASSERT_EQ(add(second, p.a, in_ | rdhup_), 0);
    ASSERT_EQ(e().close(p.b), 0);
    EXPECT_TRUE(settle(p.a, POLLRDHUP));
    EXPECT_EQ(ready(second), (Events{{(uint64_t)p.a, in_ | rdhup_}}));
    EXPECT_EQ(ready(second, 2), (Events{{(uint64_t)p.a, in_ | rdhup_}}));
    e().dup(p.a);
    EXPECT_EQ(ready(set, 2), (Events{{(uint64_t)p.a, in_}}));
    EXPECT_EQ(ready(set, 2), (Events{{(uint64_t)p.a, in_}}));
}

TEST_P(Unread, AWriteAfterShutdownFails)
{
    int set = new_set();
    Pair p = tcp(), q = unix_stream();
    ASSERT_EQ(e().shutdown(p.a, SHUT_WR), 0);
    WITH_UNREAD(p, set, in_, "abcd");
    ASSERT_EQ(add(set, q.a, out_), 0);
    EXPECT_EQ(ready(set).size(), 2u);
    EXPECT_EQ(e().write(p.a, "x", 1), -EPIPE);
    Pair r = tcp();
    int other = new_set();
    WITH_UNREAD(r, other, in_, "abcd");
    ASSERT_EQ(e().shutdown(r.a, SHUT_WR), 0);
    EXPECT_EQ(e().write(r.a, "x", 1), -EPIPE);
    EXPECT_EQ(drain(r.a), 4u);
}

TEST_P(Unread, AShutdownMakesTheEdgeAnew)
{
    int set = new_set();
    Pair p = unix_stream();
    put(p.b, 1, p.a);
    ASSERT_EQ(add(set, p.a, in_ | et_), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    ASSERT_EQ(mod(set, p.a, in_ | et_), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    ASSERT_EQ(e().shutdown(p.a, SHUT_WR), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
}

TEST_P(Unread, OfADisabledOneShotStayUntoldWhenItIsDuplicated)
{
    int set = new_set();
    Pair p = unix_stream();
    WITH_UNREAD(p, set, in_, "abcd");
    ASSERT_EQ(mod(set, p.a, in_ | once_), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    e().dup(p.a);
    EXPECT_EQ(ready(set), Events());
    ASSERT_EQ(mod(set, p.a, in_ | once_), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Unread, ASetThatIsWatchedHearsOfThemToo)
{
    int outer = new_set(), watched = new_set(), set = new_set();
    ASSERT_EQ(add(outer, watched, in_), 0);
    Pair p = tcp();
    ASSERT_EQ(add(watched, p.a, in_), 0);
    WITH_UNREAD(p, set, in_, "abcd");
    EXPECT_EQ(ready(watched), (Events{{(uint64_t)p.a, in_}}));
    EXPECT_EQ(ready(outer), (Events{{(uint64_t)watched, in_}}));
    EXPECT_EQ(drain(p.a), 4u);
    EXPECT_EQ(ready(watched), Events());
}

TEST_P(Unread, ASetOnKernelEpollHearsOfThoseThatWereThere)
{
    int outer = new_set(), watched = new_set(), set = new_set();
    ASSERT_EQ(add(outer, watched, in_), 0);
    Pair p = tcp();
    WITH_UNREAD(p, set, in_, "abcd");
    ASSERT_EQ(add(watched, p.a, in_), 0);
    EXPECT_EQ(ready(watched), (Events{{(uint64_t)p.a, in_}}));
    EXPECT_EQ(ready(outer), (Events{{(uint64_t)watched, in_}}));
    EXPECT_EQ(add(watched, p.a, in_), -EEXIST);
    EXPECT_EQ(drain(p.a), 4u);
    EXPECT_EQ(ready(watched), Events());
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(watched), (Events{{(uint64_t)p.a, in_}}));
    EXPECT_EQ(del(watched, p.a), 0);
    EXPECT_EQ(ready(watched), Events());
}

TEST_P(Unread, TheEndBehindThoseThatNobodyWantsIsReportedAtOnce)
{
    for (bool is_tcp : {true, false}) {
        int set = new_set();
        Pair p = is_tcp ? tcp() : unix_stream();
        ASSERT_EQ(add(set, p.a, in_), 0);
        EXPECT_EQ(ready(set), Events());
        ASSERT_EQ(mod(set, p.a, 0), 0);
        EXPECT_EQ(ready(set), Events());
        put(p.b, 1, p.a);
        ASSERT_EQ(e().shutdown(p.a, SHUT_RDWR), 0);
        ASSERT_EQ(e().close(p.b), 0);
        EXPECT_TRUE(settle(p.a, POLLHUP));
        EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, hup_}}));
    }
}

/* Registrations of a number that is closed while a duplicate lives. */
TEST_P(Unread, AClosedNumberGoesOnTellingOfThem)
{
    for (bool is_tcp : {true, false}) {
        int set = new_set();
        Pair p = is_tcp ? tcp() : unix_stream();
        uint64_t data = (uint64_t)p.a;
        WITH_UNREAD(p, set, in_, "abcd");
        EXPECT_EQ(ready(set), (Events{{data, in_}}));
        int copy = e().dup(p.a);
        ASSERT_EQ(e().close(p.a), 0);
        EXPECT_EQ(ready(set), (Events{{data, in_}}));
        EXPECT_EQ(ready(set), (Events{{data, in_}}));
        EXPECT_EQ(drain(copy), 4u);
        EXPECT_EQ(ready(set), Events());
        put(p.b, 1, copy);
        EXPECT_EQ(ready(set), (Events{{data, in_}}));
        EXPECT_EQ(drain(copy), 1u);
        ASSERT_EQ(e().close(copy), 0);
        EXPECT_EQ(ready(set), Events());
    }
}

TEST_P(Unread, AClosedNumberIsForgottenWithThem)
{
    for (bool is_tcp : {true, false}) {
        int set = new_set(), second = new_set();
        Pair p = is_tcp ? tcp() : unix_stream();
        uint64_t data = (uint64_t)p.a;
        WITH_UNREAD(p, set, in_, "abcd");
        EXPECT_EQ(ready(set), (Events{{data, in_}}));
        ASSERT_EQ(add(second, p.a, in_), 0);
        EXPECT_EQ(ready(second), (Events{{data, in_}}));
        int copy = e().dup(p.a);
        ASSERT_EQ(e().close(p.a), 0);
        EXPECT_EQ(ready(set), (Events{{data, in_}}));
        EXPECT_EQ(ready(second), (Events{{data, in_}}));
        ASSERT_EQ(e().close(copy), 0);
        EXPECT_EQ(ready(set), Events());
        EXPECT_EQ(ready(second), Events());
        EXPECT_TRUE(settle(p.b, POLLIN));
    }
}

TEST_P(Unread, ANumberThatComesBackReachesItsRegistration)
{
    for (bool is_tcp : {true, false}) {
        int set = new_set();
        Pair p = is_tcp ? tcp() : unix_stream();
        uint64_t data = (uint64_t)p.a;
        WITH_UNREAD(p, set, in_, "abcd");
        EXPECT_EQ(ready(set), (Events{{data, in_}}));
        int copy = e().dup(p.a);
        ASSERT_EQ(e().close(p.a), 0);
        EXPECT_EQ(ready(set), (Events{{data, in_}}));
        ASSERT_EQ(e().dup(copy), p.a);
        EXPECT_EQ(add(set, p.a, in_), -EEXIST);
        EXPECT_EQ(ready(set), (Events{{data, in_}}));
        ASSERT_EQ(mod(set, p.a, out_), 0);
        EXPECT_EQ(ready(set), (Events{{data, out_}}));
        ASSERT_EQ(mod(set, p.a, in_), 0);
        EXPECT_EQ(ready(set), (Events{{data, in_}}));
        ASSERT_EQ(del(set, p.a), 0);
        EXPECT_EQ(ready(set), Events());
        EXPECT_EQ(drain(copy), 4u);
    }
}

TEST_P(Unread, AClosedNumberOfAnEdgeTellsOnce)
{
    for (bool is_tcp : {true, false}) {
        for (bool told : {true, false}) {
            int set = new_set();
            Pair p = is_tcp ? tcp() : unix_stream(), other = tcp();
            uint64_t data = (uint64_t)p.a;
            ASSERT_EQ(add(set, other.a, in_), 0);
            ASSERT_EQ(add(set, p.a, in_ | et_), 0);
            for (int i = 0; i < 8; i++) {
                put(p.b, 1, p.a);
                EXPECT_EQ(ready(set), (Events{{data, in_}}));
                EXPECT_EQ(drain(p.a), 1u);
                put(other.b, 1, other.a);
                EXPECT_EQ(ready(set).size(), 1u);
                EXPECT_EQ(drain(other.a), 1u);
            }
            put(p.b, 4, p.a);
            if (told) {
                EXPECT_EQ(ready(set), (Events{{data, in_}}));
            }
            int copy = e().dup(p.a);
            ASSERT_EQ(e().close(p.a), 0);
            EXPECT_EQ(ready(set), told ? Events() : (Events{{data, in_}}));
            EXPECT_EQ(ready(set), Events());
            put(p.b, 1, copy);
            EXPECT_EQ(ready(set), (Events{{data, in_}}));
            EXPECT_EQ(ready(set), Events());
            EXPECT_EQ(drain(copy), 5u);
        }
    }
}

/* Somebody else is ready, and reported at once: that takes nothing of it away. */
TEST_P(Unread, TheEndBehindReportedOnesIsReportedWithOthers)
{
    for (bool is_tcp : {true, false}) {
        for (int waits = 1; waits < 5; waits++) {
            int set = new_set();
            Pair p = is_tcp ? tcp() : unix_stream(), other = unix_stream();
            ASSERT_EQ(e().close(other.b), 0);
            ASSERT_EQ(add(set, other.a, 0), 0);
            ASSERT_EQ(add(set, p.a, in_ | out_ | EPOLLRDNORM), 0);
            put(p.b, 7, p.a);
            for (int i = 0; i < waits; i++)
                EXPECT_EQ(ready(set).size(), 2u);
            ASSERT_EQ(mod(set, p.a, in_ | et_), 0);
            for (int i = 0; i < 2; i++)
                ready(set);
            std::thread([&] { EXPECT_EQ(e().shutdown(p.b, SHUT_RDWR), 0); }).join();
            EXPECT_TRUE(settle(p.a, POLLRDHUP));
            EXPECT_EQ(ready(set).size(), 2u) << waits;
        }
    }
}

TEST_P(Unread, TheLastOfSeveralNumbersResetsThePeer)
{
    for (int last = 0; last < 3; last++) {
        int set = new_set();
        Pair p = tcp();
        WITH_UNREAD(p, set, in_, "abcd");
        EXPECT_EQ(ready(set).size(), 1u);
        int numbers[3] = {p.a, e().dup(p.a), -1};
        numbers[2] = e().dup(numbers[1]);
        for (int i = 1; i < 4; i++) {
            EXPECT_EQ(poll_now(p.b) & POLLERR, 0);
            ASSERT_EQ(e().close(numbers[(last + i) % 3]), 0);
        }
        EXPECT_TRUE(settle(p.b, POLLERR));
        char byte;
        EXPECT_EQ(e().recv(p.b, &byte, 1, MSG_DONTWAIT), -ECONNRESET);
    }
}
