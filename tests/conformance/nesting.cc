/* SPDX-License-Identifier: MIT
 *
 * A set is a file itself: it can be polled, selected and put into another set,
 * and is readable when a wait on it would find something.
 */
#include <sys/select.h>

#include "conformance.h"

using namespace support;

CONFORMANCE(Nesting);
CONFORMANCE(PolledSet);

static bool selects_readable(int fd)
{
    fd_set read_set;
    FD_ZERO(&read_set);
    FD_SET(fd, &read_set);
    struct timeval zero = {0, 0};
    return select(fd + 1, &read_set, nullptr, nullptr, &zero) == 1 && FD_ISSET(fd, &read_set);
}

/* -------------------------------------------------------------------- nesting */

TEST_P(Nesting, TheOuterReportsWhatTheInnerHas)
{
    int inner = new_set(), outer = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(inner, p.a, in_), 0);
    ASSERT_EQ(add(outer, inner, in_), 0);
    EXPECT_EQ(ready(outer), Events());
    put(p.b, 1, p.a);
    for (int i = 0; i < 3; i++)
        EXPECT_EQ(ready(outer), (Events{{(uint64_t)inner, in_}}));
    EXPECT_EQ(ready(inner), (Events{{(uint64_t)p.a, in_}}));
    EXPECT_EQ(ready(outer), (Events{{(uint64_t)inner, in_}}));
    drain(p.a);
    EXPECT_EQ(ready(inner), Events());
    EXPECT_EQ(ready(outer), Events());
}

TEST_P(Nesting, AfterTheInnerWasUsedAlone)
{
    int inner = new_set(), outer = new_set();
    Pair p = tcp(), q = unix_stream();
    ASSERT_EQ(add(inner, p.a, in_), 0);
    ASSERT_EQ(add(inner, q.a, in_ | et_), 0);
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(inner), (Events{{(uint64_t)p.a, in_}}));
    drain(p.a);
    ASSERT_EQ(add(outer, inner, in_), 0);
    EXPECT_EQ(ready(outer), Events());
    put(q.b, 1, q.a);
    EXPECT_EQ(ready(outer), (Events{{(uint64_t)inner, in_}}));
    EXPECT_EQ(ready(inner), (Events{{(uint64_t)q.a, in_}}));
    EXPECT_EQ(ready(outer), Events()) << "the edge is spent";
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(outer), (Events{{(uint64_t)inner, in_}}));
    EXPECT_EQ(ready(inner), (Events{{(uint64_t)p.a, in_}}));
}

TEST_P(Nesting, OfAnInnerWithAPendingEventReportsItAtOnce)
{
    int inner = new_set(), outer = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(inner, p.a, in_ | et_), 0);
    EXPECT_EQ(ready(inner), Events());
    put(p.b, 1, p.a);
    ASSERT_EQ(add(outer, inner, in_), 0);
    EXPECT_EQ(ready(outer), (Events{{(uint64_t)inner, in_}}));
    EXPECT_EQ(ready(inner), (Events{{(uint64_t)p.a, in_}}));
    EXPECT_EQ(ready(outer), Events());
}

TEST_P(Nesting, WakesASleepingOuter)
{
    int inner = new_set(), outer = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(inner, p.a, in_), 0);
    EXPECT_EQ(ready(inner), Events());
    ASSERT_EQ(add(outer, inner, in_), 0);
    Waiter waiter([&] { return next(outer); });
    ASSERT_TRUE(waiter.asleep());
    put(p.b, 1, -1);
    EXPECT_EQ(waiter.result(), (Events{{(uint64_t)inner, in_}}));
    EXPECT_EQ(ready(inner), (Events{{(uint64_t)p.a, in_}}));
}

TEST_P(Nesting, AnAddToTheInnerWakesTheOuter)
{
    int inner = new_set(), outer = new_set();
    int counter = eventfd(1);
    ASSERT_EQ(add(outer, inner, in_), 0);
    Waiter waiter([&] { return next(outer); });
    ASSERT_TRUE(waiter.asleep());
    ASSERT_EQ(add(inner, counter, in_), 0);
    EXPECT_EQ(waiter.result(), (Events{{(uint64_t)inner, in_}}));
}

TEST_P(Nesting, AnOuterEdgeComesOncePerInnerWakeUp)
{
    int inner = new_set(), outer = new_set();
    Pair p = unix_stream();
    ASSERT_EQ(add(inner, p.a, in_), 0);
    ASSERT_EQ(add(outer, inner, in_ | et_), 0);
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(outer), (Events{{(uint64_t)inner, in_}}));
    EXPECT_EQ(ready(outer), Events());
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(outer), (Events{{(uint64_t)inner, in_}}));
}

TEST_P(Nesting, OtherFdsOfTheOuterGoOn)
{
    int inner = new_set(), outer = new_set();
    Pair p = tcp(), q = tcp();
    ASSERT_EQ(add(outer, q.a, in_), 0);
    EXPECT_EQ(ready(outer), Events());
    ASSERT_EQ(add(outer, inner, in_), 0);
    ASSERT_EQ(add(inner, p.a, in_), 0);
    put(q.b, 1, q.a);
    EXPECT_EQ(ready(outer), (Events{{(uint64_t)q.a, in_}}));
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(outer).size(), 2u);
    drain(q.a);
    EXPECT_EQ(ready(outer), (Events{{(uint64_t)inner, in_}}));
}

TEST_P(Nesting, AClosedInnerIsGone)
{
    int inner = new_set(), outer = new_set();
    ASSERT_EQ(add(inner, eventfd(1), in_), 0);
    ASSERT_EQ(add(outer, inner, in_), 0);
    EXPECT_EQ(ready(outer), (Events{{(uint64_t)inner, in_}}));
    ASSERT_EQ(e().close(inner), 0);
    EXPECT_EQ(ready(outer), Events());
}

TEST_P(Nesting, ThreeDeep)
{
    int a = new_set(), b = new_set(), c = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(a, b, in_), 0);
    ASSERT_EQ(add(b, c, in_), 0);
    ASSERT_EQ(add(c, p.a, in_), 0);
    EXPECT_EQ(ready(a), Events());
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(a), (Events{{(uint64_t)b, in_}}));
    EXPECT_EQ(ready(b), (Events{{(uint64_t)c, in_}}));
    EXPECT_EQ(ready(c), (Events{{(uint64_t)p.a, in_}}));
}

TEST_P(Nesting, ALoopIsEloop)
{
    int a = new_set(), b = new_set();
    ASSERT_EQ(add(a, b, in_), 0);
    EXPECT_EQ(add(b, a, in_), -ELOOP);
    EXPECT_EQ(ready(a), Events());
}

TEST_P(Nesting, TooDeepIsEloop)
{
    int sets[8];
    for (int &set : sets)
        set = new_set();
    int depth = 0, result = 0;
    while (depth < 7) {
        result = add(sets[depth + 1], sets[depth], in_);
        if (result != 0)
            break;
        depth++;
    }
    EXPECT_EQ(result, -ELOOP);
    EXPECT_EQ(depth, 4) << "EP_MAX_NESTS";
}

TEST_P(Nesting, RemovingTheInnerEndsIt)
{
    int inner = new_set(), outer = new_set();
    ASSERT_EQ(add(inner, eventfd(1), in_), 0);
    ASSERT_EQ(add(outer, inner, in_), 0);
    EXPECT_EQ(ready(outer).size(), 1u);
    ASSERT_EQ(del(outer, inner), 0);
    EXPECT_EQ(ready(outer), Events());
    EXPECT_EQ(ready(inner).size(), 1u);
    EXPECT_EQ(del(outer, inner), -ENOENT);
}

TEST_P(Nesting, AnEdgeOutOfReachThatIsPendingIsSeenByTheOuter)
{
    int inner = new_set(), outer = new_set();
    Pair p = unix_stream(), q = tcp();
    ASSERT_EQ(add_as(inner, p.b, in_ | out_ | et_, 10), 0);
    int copy = e().dup(p.b);
    ASSERT_EQ(e().close(p.b), 0);
    ASSERT_EQ(add_as(inner, p.a, in_ | out_ | et_, 23), 0);
    ASSERT_EQ(add_as(inner, q.a, in_ | out_ | et_, 24), 0);
    EXPECT_EQ(ready(inner), (Events{{10, out_}, {23, out_}, {24, out_}}));
    put(p.a, 1, copy);
    for (uint32_t flags : {in_, in_ | et_}) {
        ASSERT_EQ(add(outer, inner, flags), 0);
        EXPECT_EQ(ready(outer), (Events{{(uint64_t)inner, in_}}));
        EXPECT_EQ(poll_now(inner), POLLIN);
        ASSERT_EQ(del(outer, inner), 0);
    }
    EXPECT_EQ(ready(inner), (Events{{10, in_ | out_}}));
    EXPECT_EQ(poll_now(inner), 0);
    EXPECT_EQ(ready(inner), Events());
    ASSERT_EQ(add(outer, inner, in_ | et_), 0);
    EXPECT_EQ(ready(outer), Events());
    put(q.b, 1, q.a);
    EXPECT_EQ(ready(outer), (Events{{(uint64_t)inner, in_}}));
    EXPECT_EQ(ready(inner), (Events{{24, in_ | out_}}));
}

TEST_P(Nesting, ThroughADisabledOneShotItIsALoopStill)
{
    int inner = new_set(), outer = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(inner, eventfd(1), in_), 0);
    ASSERT_EQ(add(outer, p.a, in_), 0);
    EXPECT_EQ(ready(outer), Events());
    ASSERT_EQ(add(outer, inner, in_ | once_), 0);
    EXPECT_EQ(ready(outer), (Events{{(uint64_t)inner, in_}}));
    EXPECT_EQ(ready(outer), Events());
    EXPECT_EQ(add(inner, outer, in_), -ELOOP);
    EXPECT_EQ(ready(outer), Events());
    ASSERT_EQ(mod(outer, inner, in_ | once_), 0);
    EXPECT_EQ(ready(outer), (Events{{(uint64_t)inner, in_}}));
    ASSERT_EQ(del(outer, inner), 0);
    EXPECT_EQ(add(inner, outer, in_), 0);
}

TEST_P(Nesting, OfASetWithEdgesIsNoDeeperThanWithout)
{
    int sets[5];
    for (int &set : sets) {
        set = new_set();
        ASSERT_EQ(add(set, eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC | EFD_SEMAPHORE), in_ | et_), 0);
        ASSERT_EQ(add(set, tcp().a, in_ | et_), 0);
        EXPECT_EQ(ready(set), Events());
    }
    for (int i = 0; i < 4; i++)
        EXPECT_EQ(add(sets[i + 1], sets[i], in_ | et_), 0) << i;
    EXPECT_EQ(add(new_set(), sets[4], in_), -ELOOP);
}

/* ----------------------------------------------------------------- polled sets */

TEST_P(PolledSet, IsReadableWhileItHasEvents)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    e().will_be_polled(set);
    EXPECT_EQ(poll_now(set), 0);
    EXPECT_FALSE(selects_readable(set));
    put(p.b, 1, p.a);
    EXPECT_EQ(poll_now(set), POLLIN);
    EXPECT_TRUE(selects_readable(set));
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    EXPECT_EQ(poll_now(set), POLLIN);
    drain(p.a);
    EXPECT_EQ(poll_now(set), 0);
    EXPECT_FALSE(selects_readable(set));
}

TEST_P(PolledSet, AfterItWasWaitedOn)
{
    int set = new_set();
    Pair p = tcp(), q = unix_stream();
    ASSERT_EQ(add(set, p.a, in_), 0);
    ASSERT_EQ(add(set, q.a, in_ | et_), 0);
    EXPECT_EQ(ready(set), Events());
    e().will_be_polled(set);
    EXPECT_EQ(poll_now(set), 0);
    put(p.b, 1, p.a);
    EXPECT_EQ(poll_now(set), POLLIN);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    drain(p.a);
    EXPECT_EQ(poll_now(set), 0);
    put(q.b, 1, q.a);
    EXPECT_TRUE(selects_readable(set));
    EXPECT_EQ(ready(set), (Events{{(uint64_t)q.a, in_}}));
    EXPECT_FALSE(selects_readable(set));
}

TEST_P(PolledSet, APendingEdgeIsSeenByPollAndThenByTheWait)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_ | et_), 0);
    EXPECT_EQ(ready(set), Events());
    put(p.b, 1, p.a);
    e().will_be_polled(set);
    EXPECT_EQ(poll_now(set), POLLIN);
    EXPECT_EQ(poll_now(set), POLLIN);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    EXPECT_EQ(poll_now(set), 0);
}

TEST_P(PolledSet, ASleepingPollIsWoken)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_EQ(ready(set), Events());
    e().will_be_polled(set);
    std::thread poller([&] { EXPECT_TRUE(settle(set, POLLIN)); });
    put(p.b, 1, -1);
    poller.join();
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
}

TEST_P(PolledSet, IsNeverWritable)
{
    int set = new_set();
    ASSERT_EQ(add(set, eventfd(1), in_ | out_), 0);
    e().will_be_polled(set);
    struct pollfd one = {set, POLLOUT, 0};
    EXPECT_EQ(::poll(&one, 1, 0), 0);
}

TEST_P(PolledSet, IsNotReadableForAnEventWhoseFileHasGone)
{
    /* One-shot and edge-triggered: what moves the first to kernel epoll takes the
     * second's event along, which nobody can put back: its number is closed. */
    int set = new_set();
    Pair p = tcp(), q = tcp();
    int copy = e().dup(p.a);
    ASSERT_EQ(add(set, q.a, out_ | et_ | once_), 0);
    ASSERT_EQ(add(set, p.a, out_ | rdhup_ | et_), 0);
    EXPECT_EQ(ready(set).size(), 2u);
    EXPECT_EQ(e().close(p.b), 0);
    EXPECT_TRUE(settle(p.a, POLLRDHUP));
    EXPECT_EQ(e().close(p.a), 0);
    EXPECT_EQ(e().close(q.b), 0);
    EXPECT_TRUE(settle(q.a, POLLRDHUP));
    e().dup(q.a);
    EXPECT_EQ(e().close(copy), 0);
    e().will_be_polled(set);
    EXPECT_EQ(poll_now(set), 0);
    EXPECT_EQ(ready(set), Events());
}
