/* SPDX-License-Identifier: MIT
 *
 * epoll_wait(2), epoll_pwait(2), epoll_pwait2(2): time, signals and masks.
 *
 * Times are checked in one direction only: a wait is never early. That it is
 * not late is left to whoever has a machine of his own.
 */
#include <limits>
#include <sys/time.h>

#include "conformance.h"

using namespace support;

CONFORMANCE(Timeout);
CONFORMANCE(Signals);

/* -------------------------------------------------------------------- timeout */

TEST_P(Timeout, ZeroReturnsAtOnce)
{
    int set = new_set();
    ASSERT_EQ(add(set, eventfd(), in_), 0);
    for (int i = 0; i < 100; i++)
        EXPECT_EQ(ready(set), Events());
}

TEST_P(Timeout, OfMillisecondsIsNotEarly)
{
    int set = new_set();
    ASSERT_EQ(add(set, tcp().a, in_), 0);
    struct epoll_event event;
    for (int ms : {1, 2, 7, 30}) {
        int64_t start = now_ns();
        EXPECT_EQ(e().wait_ms(set, &event, 1, ms), 0);
        EXPECT_GE(now_ns() - start, ms * 1000000LL) << ms;
    }
}

TEST_P(Timeout, OfNanosecondsIsNotEarly)
{
    int set = new_set();
    ASSERT_EQ(add(set, tcp().a, in_), 0);
    struct epoll_event event;
    for (long ns : {1L, 999L, 50000L, 1500000L, 20999999L}) {
        struct timespec timeout = {0, ns};
        int64_t start = now_ns();
        EXPECT_EQ(e().wait(set, &event, 1, &timeout, nullptr), 0);
        EXPECT_GE(now_ns() - start, ns) << ns;
    }
}

TEST_P(Timeout, OnAnEmptySetIsNotEarly)
{
    int set = new_set();
    struct epoll_event event;
    int64_t start = now_ns();
    EXPECT_EQ(e().wait_ms(set, &event, 1, 20), 0);
    EXPECT_GE(now_ns() - start, 20000000);
}

TEST_P(Timeout, IsNotCutShortByAnEventThatWasConsumed)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_EQ(ready(set), Events());
    put(p.b, 1, p.a);
    drain(p.a);
    struct epoll_event event;
    int64_t start = now_ns();
    EXPECT_EQ(e().wait_ms(set, &event, 1, 20), 0);
    EXPECT_GE(now_ns() - start, 20000000);
}

TEST_P(Timeout, IsNotCutShortByAWakeUpOfNoInterest)
{
    /* Reads by the peer wake a unix socket for OUT; the watch wants IN. */
    int set = new_set();
    Pair p = unix_stream();
    ASSERT_EQ(add(set, p.a, in_ | et_), 0);
    EXPECT_EQ(ready(set), Events());
    fill(p.a);
    drain(p.b);
    struct epoll_event event;
    int64_t start = now_ns();
    EXPECT_EQ(e().wait_ms(set, &event, 1, 20), 0);
    EXPECT_GE(now_ns() - start, 20000000);
}

TEST_P(Timeout, DoesNotDelayAnEventThatIsThere)
{
    int set = new_set();
    int counter = eventfd(1);
    ASSERT_EQ(add(set, counter, in_), 0);
    struct epoll_event event;
    int64_t start = now_ns();
    EXPECT_EQ(e().wait_ms(set, &event, 1, 1000000), 1);
    EXPECT_EQ(e().wait_ms(set, &event, 1, -1), 1);
    struct timespec day = {86400, 0};
    EXPECT_EQ(e().wait(set, &event, 1, &day, nullptr), 1);
    EXPECT_LT(now_ns() - start, 100LL * 1000000000);
}

TEST_P(Timeout, ForEverIsEndedByAnEvent)
{
    int set = new_set();
    int counter = eventfd();
    ASSERT_EQ(add(set, counter, in_), 0);
    struct epoll_event event = {};
    Waiter waiter([&] {
        int count = e().wait_ms(set, &event, 1, -1);
        return Events{{event.data.u64, (uint32_t)count}};
    });
    ASSERT_TRUE(waiter.asleep());
    kick(counter);
    EXPECT_EQ(waiter.result(), (Events{{(uint64_t)counter, 1}}));
}

TEST_P(Timeout, ForEverByANullTimespec)
{
    int set = new_set();
    int counter = eventfd();
    ASSERT_EQ(add(set, counter, in_), 0);
    struct epoll_event event = {};
    Waiter waiter([&] {
        int count = e().wait(set, &event, 1, nullptr, nullptr);
        return Events{{event.data.u64, (uint32_t)count}};
    });
    ASSERT_TRUE(waiter.asleep());
    kick(counter);
    EXPECT_EQ(waiter.result(), (Events{{(uint64_t)counter, 1}}));
}

TEST_P(Timeout, AnyNegativeNumberIsForEver)
{
    int set = new_set();
    int counter = eventfd();
    ASSERT_EQ(add(set, counter, in_), 0);
    struct epoll_event event = {};
    Waiter waiter([&] {
        int count = e().wait_ms(set, &event, 1, -77);
        return Events{{event.data.u64, (uint32_t)count}};
    });
    ASSERT_TRUE(waiter.asleep());
    kick(counter);
    EXPECT_EQ(waiter.result(), (Events{{(uint64_t)counter, 1}}));
}

TEST_P(Timeout, AHugeTimespecIsNoError)
{
    int set = new_set();
    int counter = eventfd();
    ASSERT_EQ(add(set, counter, in_), 0);
    struct epoll_event event = {};
    Waiter waiter([&] {
        struct timespec timeout = {std::numeric_limits<time_t>::max(), 999999999};
        int count = e().wait(set, &event, 1, &timeout, nullptr);
        return Events{{event.data.u64, (uint32_t)count}};
    });
    ASSERT_TRUE(waiter.asleep());
    kick(counter);
    EXPECT_EQ(waiter.result(), (Events{{(uint64_t)counter, 1}}));
}

TEST_P(Timeout, TheTimespecIsNotWrittenTo)
{
    int set = new_set();
    ASSERT_EQ(add(set, eventfd(1), in_), 0);
    struct epoll_event event;
    struct timespec timeout = {5, 17};
    ASSERT_EQ(e().wait(set, &event, 1, &timeout, nullptr), 1);
    EXPECT_EQ(timeout.tv_sec, 5);
    EXPECT_EQ(timeout.tv_nsec, 17);
}

/* -------------------------------------------------------------------- signals */

namespace {

std::atomic<int> caught{0};

void on_signal(int)
{
    caught++;
}

/* A handler for SIGUSR1 while the object lives. */
class Handler {
public:
    explicit Handler(int flags)
    {
        caught = 0;
        struct sigaction action = {};
        action.sa_handler = on_signal;
        action.sa_flags = flags;
        sigaction(SIGUSR1, &action, &before_);
    }
    ~Handler() { sigaction(SIGUSR1, &before_, nullptr); }

private:
    struct sigaction before_;
};

/* SIGUSR1 blocked in this thread while the object lives. */
class Blocked {
public:
    Blocked()
    {
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, SIGUSR1);
        pthread_sigmask(SIG_BLOCK, &set, &before);
    }
    ~Blocked() { pthread_sigmask(SIG_SETMASK, &before, nullptr); }
    sigset_t before;
};

bool is_blocked(int signal)
{
    sigset_t now;
    pthread_sigmask(SIG_BLOCK, nullptr, &now);
    return sigismember(&now, signal) == 1;
}

} // namespace

TEST_P(Signals, InterruptAWait)
{
    Handler handler(0);
    int set = new_set();
    ASSERT_EQ(add(set, tcp().a, in_), 0);
    struct epoll_event event;
    Waiter waiter([&] { return Events{{0, (uint32_t)-e().wait_ms(set, &event, 1, -1)}}; });
    ASSERT_TRUE(waiter.asleep());
    pthread_kill(waiter.handle(), SIGUSR1);
    EXPECT_EQ(waiter.result(), (Events{{0, EINTR}}));
    EXPECT_EQ(caught, 1);
}

TEST_P(Signals, InterruptAWaitAlthoughTheHandlerRestarts)
{
    Handler handler(SA_RESTART);
    int set = new_set();
    ASSERT_EQ(add(set, tcp().a, in_), 0);
    struct epoll_event event;
    Waiter waiter([&] { return Events{{0, (uint32_t)-e().wait_ms(set, &event, 1, -1)}}; });
    ASSERT_TRUE(waiter.asleep());
    pthread_kill(waiter.handle(), SIGUSR1);
    EXPECT_EQ(waiter.result(), (Events{{0, EINTR}}));
}

TEST_P(Signals, InterruptAWaitWithATimeout)
{
    Handler handler(0);
    int set = new_set();
    ASSERT_EQ(add(set, tcp().a, in_), 0);
    struct epoll_event event;
    Waiter waiter([&] { return Events{{0, (uint32_t)-e().wait_ms(set, &event, 1, 600000)}}; });
    ASSERT_TRUE(waiter.asleep());
    pthread_kill(waiter.handle(), SIGUSR1);
    EXPECT_EQ(waiter.result(), (Events{{0, EINTR}}));
}

TEST_P(Signals, InterruptAWaitOnAnEmptySet)
{
    Handler handler(0);
    int set = new_set();
    struct epoll_event event;
    Waiter waiter([&] { return Events{{0, (uint32_t)-e().wait_ms(set, &event, 1, -1)}}; });
    ASSERT_TRUE(waiter.asleep());
    pthread_kill(waiter.handle(), SIGUSR1);
    EXPECT_EQ(waiter.result(), (Events{{0, EINTR}}));
}

TEST_P(Signals, ThatAreIgnoredDoNotInterrupt)
{
    signal(SIGUSR1, SIG_IGN);
    int set = new_set();
    int counter = eventfd();
    ASSERT_EQ(add(set, counter, in_), 0);
    Waiter waiter([&] { return next(set); });
    ASSERT_TRUE(waiter.asleep());
    pthread_kill(waiter.handle(), SIGUSR1);
    ASSERT_TRUE(waiter.asleep());
    kick(counter);
    EXPECT_EQ(waiter.result(), (Events{{(uint64_t)counter, in_}}));
    signal(SIGUSR1, SIG_DFL);
}

TEST_P(Signals, ThatAreBlockedDoNotInterrupt)
{
    Handler handler(0);
    int set = new_set();
    int counter = eventfd();
    ASSERT_EQ(add(set, counter, in_), 0);
    Waiter waiter([&] {
        Blocked blocked;
        Events events = next(set);
        EXPECT_EQ(caught, 0);
        return events;
    });
    ASSERT_TRUE(waiter.asleep());
    pthread_kill(waiter.handle(), SIGUSR1);
    kick(counter);
    EXPECT_EQ(waiter.result(), (Events{{(uint64_t)counter, in_}}));
    EXPECT_EQ(caught, 1);
}

TEST_P(Signals, TheMaskLetsOneInDuringTheWaitOnly)
{
    Handler handler(0);
    int set = new_set();
    ASSERT_EQ(add(set, tcp().a, in_), 0);
    struct epoll_event event;
    Waiter waiter([&] {
        Blocked blocked;
        int result = e().wait_ms(set, &event, 1, -1, &blocked.before);
        EXPECT_EQ(caught, 1);
        EXPECT_TRUE(is_blocked(SIGUSR1));
        return Events{{0, (uint32_t)-result}};
    });
    ASSERT_TRUE(waiter.asleep());
    pthread_kill(waiter.handle(), SIGUSR1);
    EXPECT_EQ(waiter.result(), (Events{{0, EINTR}}));
}

TEST_P(Signals, TheMaskKeepsOneOutDuringTheWait)
{
    Handler handler(0);
    int set = new_set();
    int counter = eventfd();
    ASSERT_EQ(add(set, counter, in_), 0);
    Waiter waiter([&] {
        sigset_t mask;
        sigemptyset(&mask);
        sigaddset(&mask, SIGUSR1);
        struct epoll_event event = {};
        int result = e().wait_ms(set, &event, 1, -1, &mask);
        EXPECT_FALSE(is_blocked(SIGUSR1));
        return Events{{event.data.u64, (uint32_t)result}};
    });
    ASSERT_TRUE(waiter.asleep());
    pthread_kill(waiter.handle(), SIGUSR1);
    EXPECT_TRUE(waiter.asleep());
    EXPECT_EQ(caught, 0);
    kick(counter);
    EXPECT_EQ(waiter.result(), (Events{{(uint64_t)counter, 1}}));
    EXPECT_EQ(caught, 1);
}

TEST_P(Signals, APendingOneThatTheMaskLetsInIsEintrAtOnce)
{
    Handler handler(0);
    int set = new_set();
    ASSERT_EQ(add(set, tcp().a, in_), 0);
    Blocked blocked;
    struct epoll_event event;
    for (int i = 1; i <= 20; i++) {
        pthread_kill(pthread_self(), SIGUSR1);
        EXPECT_EQ(e().wait_ms(set, &event, 1, 600000, &blocked.before), -EINTR);
        EXPECT_EQ(caught, i);
    }
}

TEST_P(Signals, APendingOneDoesNotHideAnEventThatIsThere)
{
    Handler handler(0);
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    put(p.b, 1, p.a);
    Blocked blocked;
    struct epoll_event event;
    for (int i = 1; i <= 5; i++) {
        pthread_kill(pthread_self(), SIGUSR1);
        EXPECT_EQ(e().wait_ms(set, &event, 1, 600000, &blocked.before), 1);
    }
    /* With events the mask's job is done: the signal may stay pending. */
}

TEST_P(Signals, APendingOneIsNotDeliveredByAWaitThatReturnsEvents)
{
    Handler handler(0);
    int set = new_set();
    ASSERT_EQ(add(set, eventfd(1), in_), 0);
    Blocked blocked;
    struct epoll_event event;
    pthread_kill(pthread_self(), SIGUSR1);
    EXPECT_EQ(e().wait_ms(set, &event, 1, -1, &blocked.before), 1);
    EXPECT_EQ(caught, 0);
    sigset_t pending;
    sigpending(&pending);
    EXPECT_EQ(sigismember(&pending, SIGUSR1), 1);
}

TEST_P(Signals, AZeroTimeoutWithAPendingOneIsZero)
{
    Handler handler(0);
    int set = new_set();
    ASSERT_EQ(add(set, tcp().a, in_), 0);
    Blocked blocked;
    struct epoll_event event;
    pthread_kill(pthread_self(), SIGUSR1);
    EXPECT_EQ(e().wait_ms(set, &event, 1, 0, &blocked.before), 0);
    EXPECT_EQ(caught, 0);
}

TEST_P(Signals, TheMaskIsBackAfterATimeout)
{
    int set = new_set();
    ASSERT_EQ(add(set, tcp().a, in_), 0);
    sigset_t mask;
    sigfillset(&mask);
    struct epoll_event event;
    EXPECT_EQ(e().wait_ms(set, &event, 1, 5, &mask), 0);
    EXPECT_FALSE(is_blocked(SIGUSR1));
    EXPECT_EQ(e().wait_ms(set, &event, 1, 0, &mask), 0);
    EXPECT_FALSE(is_blocked(SIGUSR1));
}

TEST_P(Signals, TheMaskIsBackAfterAnError)
{
    sigset_t mask;
    sigfillset(&mask);
    struct epoll_event event;
    EXPECT_EQ(e().wait_ms(eventfd(), &event, 1, 0, &mask), -EINVAL);
    EXPECT_FALSE(is_blocked(SIGUSR1));
}

TEST_P(Signals, TheMaskWorksWithNanoseconds)
{
    Handler handler(0);
    int set = new_set();
    ASSERT_EQ(add(set, unix_stream().a, in_), 0);
    Blocked blocked;
    struct epoll_event event;
    pthread_kill(pthread_self(), SIGUSR1);
    struct timespec timeout = {600, 1};
    EXPECT_EQ(e().wait(set, &event, 1, &timeout, &blocked.before), -EINTR);
    EXPECT_EQ(caught, 1);
}

TEST_P(Signals, AStormLosesNoEventAndInventsNone)
{
    Handler handler(SA_RESTART);
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_ | et_), 0);
    constexpr int rounds = 200;
    std::atomic<int> seen{0};
    Waiter waiter([&] {
        while (seen < rounds) {
            struct epoll_event event;
            int count = e().wait_ms(set, &event, 1, 20000);
            if (count == 1) {
                drain(p.a);
                seen++;
            } else if (count != -EINTR) {
                return Events{{~0ull, (uint32_t)-count}};
            }
        }
        return Events();
    });
    for (int i = 0; i < rounds; i++) {
        put(p.b, 1, -1);
        while (seen == i && !waiter.done()) {
            pthread_kill(waiter.handle(), SIGUSR1);
            sched_yield();
        }
    }
    EXPECT_EQ(waiter.result(), Events());
}

TEST_P(Signals, AHandlerMayChangeTheSetItInterrupts)
{
    /* epoll_ctl is not on the list of async-signal-safe functions, but it is a
     * plain system call and programs rely on it, as on write(2) to wake. */
    static int set, counter;
    static Engine *engine;
    set = new_set();
    counter = eventfd(1);
    engine = &e();
    ASSERT_EQ(add(set, tcp().a, in_), 0);
    struct sigaction action = {}, before;
    action.sa_handler = [](int) {
        struct epoll_event event = {};
        event.events = EPOLLIN;
        event.data.fd = counter;
        engine->ctl(set, EPOLL_CTL_ADD, counter, &event);
    };
    sigaction(SIGUSR2, &action, &before);
    struct epoll_event event;
    Waiter waiter([&] { return Events{{0, (uint32_t)-e().wait_ms(set, &event, 1, -1)}}; });
    ASSERT_TRUE(waiter.asleep());
    pthread_kill(waiter.handle(), SIGUSR2);
    Events result = waiter.result();
    sigaction(SIGUSR2, &before, nullptr);
    ASSERT_EQ(result.size(), 1u);
    EXPECT_TRUE(result[0].events == EINTR || result[0].events == (uint32_t)-1) << result[0].events;
    EXPECT_EQ(ready(set), (Events{{(uint64_t)counter, in_}}));
}

TEST_P(Signals, AHandlerMayPollTheSetItInterrupts)
{
    static int set;
    static Engine *engine;
    set = new_set();
    engine = &e();
    Pair p = tcp(), q = unix_stream();
    struct sockaddr_in address;
    int listening = listener(&address);
    ASSERT_EQ(add(set, p.a, in_), 0);
    ASSERT_EQ(add(set, q.a, in_ | et_), 0);
    ASSERT_EQ(add(set, listening, in_ | et_), 0);
    struct sigaction action = {}, before;
    action.sa_handler = [](int) {
        int saved = errno;
        engine->will_be_polled(set);
        poll_now(set);
        errno = saved;
    };
    sigaction(SIGUSR2, &action, &before);
    Waiter waiter([&] { return next(set); });
    ASSERT_TRUE(waiter.asleep());
    pthread_kill(waiter.handle(), SIGUSR2);
    EXPECT_EQ(waiter.result(), (Events{{~0ull, EINTR}}));
    sigaction(SIGUSR2, &before, nullptr);
    EXPECT_EQ(ready(set), Events());
    put(q.b, 1, q.a);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)q.a, in_}}));
    connected_to(address);
    EXPECT_EQ(next(set), (Events{{(uint64_t)listening, in_}}));
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
}

TEST_P(Signals, AHandlerMayCloseTheSetItInterrupts)
{
    static int set;
    static Engine *engine;
    set = new_set();
    engine = &e();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    struct sigaction action = {}, before;
    action.sa_handler = [](int) {
        int saved = errno;
        engine->close_in_handler(set);
        errno = saved;
    };
    sigaction(SIGUSR2, &action, &before);
    Waiter waiter([&] { return next(set); });
    ASSERT_TRUE(waiter.asleep());
    pthread_kill(waiter.handle(), SIGUSR2);
    EXPECT_EQ(waiter.result(), (Events{{~0ull, EINTR}}));
    sigaction(SIGUSR2, &before, nullptr);
    e().forget(set);
    EXPECT_EQ(ready(set), (Events{{~0ull, EBADF}}));
    ASSERT_EQ(e().close(p.a), 0);
    EXPECT_TRUE(settle(p.b, POLLRDHUP, 5));
}

TEST_P(Signals, ATimerOfTheProcessInterruptsTheOnlyThread)
{
    Handler handler(0);
    int set = new_set();
    ASSERT_EQ(add(set, tcp().a, in_), 0);
    struct sigaction action = {}, before;
    action.sa_handler = on_signal;
    sigaction(SIGALRM, &action, &before);
    struct itimerval timer = {{0, 0}, {0, 10000}};
    setitimer(ITIMER_REAL, &timer, nullptr);
    struct epoll_event event;
    EXPECT_EQ(e().wait_ms(set, &event, 1, 20000), -EINTR);
    sigaction(SIGALRM, &before, nullptr);
    EXPECT_EQ(caught, 1);
}

/* ---------------------------------------------------------------- without end */

CONFORMANCE(Endless);

/* One event at a time, which is there already or not drained yet. */
TEST_P(Endless, TellsWhatIsThereHoweverItWasReadBefore)
{
    for (bool is_tcp : {true, false})
        for (uint32_t flags : {0u, et_, once_}) {
            int set = new_set();
            Pair p = is_tcp ? tcp() : unix_stream();
            uint64_t data = (uint64_t)p.a;
            char bytes[200];
            auto told = [&] {
                struct epoll_event event = {};
                EXPECT_EQ(e().wait(set, &event, 1, nullptr, nullptr), 1);
                EXPECT_EQ(event.data.u64, data);
                if (flags & once_) {
                    EXPECT_EQ(ready(set), Events());
                    EXPECT_EQ(mod(set, p.a, in_ | rdhup_ | flags), 0);
                }
                return event.events;
            };
            ASSERT_EQ(add(set, p.a, in_ | rdhup_ | flags), 0);
            for (unsigned round = 0; round < 50; round++) {
                SCOPED_TRACE(testing::Message() << (is_tcp ? "tcp" : "unix") << " flags " << flags << " round " << round);
                put(p.b, 100, p.a);
                EXPECT_EQ(told(), in_);
                switch (round % 5) {
                case 0: /* short: drained */
                    EXPECT_EQ(e().read(p.a, bytes, sizeof bytes), 100);
                    break;
                case 1: /* all, which does not show */
                    EXPECT_EQ(e().read(p.a, bytes, 100), 100);
                    EXPECT_EQ(ready(set), Events());
                    break;
                case 2: /* a part, and the rest later */
                    EXPECT_EQ(e().read(p.a, bytes, 60), 60);
                    if (flags == 0) {
                        EXPECT_EQ(told(), in_);
                    }
                    drain(p.a);
                    break;
                case 3: /* not at all, and more comes */
                    put(p.b, 50, p.a);
                    EXPECT_EQ(told(), in_);
                    EXPECT_EQ(e().read(p.a, bytes, sizeof bytes), 150);
                    break;
                default:
                    drain(p.a);
                }
                if (flags == 0) {
                    EXPECT_EQ(ready(set), Events());
                }
            }
            put(p.b, 10, p.a);
            EXPECT_EQ(e().close(p.b), 0);
            ASSERT_TRUE(settle(p.a, POLLRDHUP));
            EXPECT_EQ(told(), in_ | rdhup_ | (is_tcp ? 0u : (uint32_t)EPOLLHUP));
            EXPECT_EQ(e().close(p.a), 0);
            EXPECT_EQ(e().close(set), 0);
        }
}
