/* SPDX-License-Identifier: MIT
 *
 * A base that uses its set directly, and how it leaves that: in processes of their own, since
 * the first object of a process ends it for all bases.
 */
#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/thread.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <string>
#include <thread>

#include <ringpoll/event.h>
#include <ringpoll/ringpoll.h>

#include "tests/support/asleep.h"

namespace {

/* What is wrong, or "". */
using Body = std::function<std::string()>;

std::string in_a_process(const Body &body)
{
    int out[2];
    if (pipe(out) != 0)
        return "no pipe";
    pid_t child = fork();
    if (child == 0) {
        alarm(20);
        std::string said = body();
        (void)!write(out[1], said.data(), said.size());
        _exit(said.empty() ? 0 : 1);
    }
    close(out[1]);
    std::string said;
    char bytes[256];
    for (ssize_t got; (got = read(out[0], bytes, sizeof bytes)) > 0;)
        said.append(bytes, (size_t)got);
    close(out[0]);
    int status = 0;
    waitpid(child, &status, 0);
    if (!WIFEXITED(status))
        return said + " (signal " + std::to_string(WTERMSIG(status)) + ")";
    return said;
}

#define SAY_UNLESS(condition) \
    if (!(condition))         \
    return std::string(#condition) + ", line " + std::to_string(__LINE__)

struct Pair {
    int fds[2];
    std::atomic<int> seen{0};
    struct event *event = nullptr;
    Pair() { EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0); }
    static void call(evutil_socket_t fd, short, void *argument)
    {
        char byte;
        auto *pair = static_cast<Pair *>(argument);
        while (recv((int)fd, &byte, 1, 0) == 1)
            pair->seen++;
    }
    bool watch(struct event_base *base)
    {
        event = event_new(base, fds[0], EV_READ | EV_PERSIST, call, this);
        return event && event_add(event, nullptr) == 0;
    }
    bool poke() const { return send(fds[1], "e", 1, 0) == 1; }
};

struct ringpoll_stats all_stats()
{
    struct ringpoll_stats stats = {};
    stats.size = sizeof stats;
    EXPECT_EQ(ringpoll_get_stats(-1, &stats), 0);
    return stats;
}

struct event_base *ring_base()
{
    struct event_base *base = event_base_new();
    return base && ringpoll_event_install(base) == 0 ? base : nullptr;
}

/* A bufferevent that answers what comes. */
void echo(struct bufferevent *bev, void *)
{
    bufferevent_write_buffer(bev, bufferevent_get_input(bev));
}

bool answers(int fd, const char *word)
{
    char bytes[64];
    size_t length = strlen(word);
    struct pollfd look = {fd, POLLIN, 0};
    return send(fd, word, length, 0) == (ssize_t)length && poll(&look, 1, 10000) == 1 &&
           recv(fd, bytes, sizeof bytes, 0) == (ssize_t)length && memcmp(bytes, word, length) == 0;
}

TEST(Direct, IsCountedFromTheFirstTurnAndAtTheEnd)
{
    EXPECT_EQ(in_a_process([]() -> std::string {
        uint64_t kernel_sets = all_stats().kernel_sets[0], waits = all_stats().waits, events = all_stats().events, ctls = all_stats().kernel_ctls;
        struct event_base *base = ring_base();
        Pair pair;
        SAY_UNLESS(base && pair.watch(base));
        event_base_loop(base, EVLOOP_NONBLOCK);
        SAY_UNLESS(all_stats().waits == waits + 1 && all_stats().kernel_waits >= 1);
        SAY_UNLESS(all_stats().kernel_sets[0] == kernel_sets + 1);
        for (int i = 0; i < 3000; i++) {
            SAY_UNLESS(pair.poke());
            event_base_loop(base, EVLOOP_ONCE);
        }
        SAY_UNLESS(pair.seen == 3000);
        SAY_UNLESS(all_stats().waits >= waits + 2001);
        event_free(pair.event);
        event_base_free(base);
        SAY_UNLESS(all_stats().waits == waits + 3001 && all_stats().events == events + 3000);
        SAY_UNLESS(all_stats().kernel_ctls >= ctls + 2);
        return "";
    }), "");
}

TEST(Direct, EndsWithTheFirstObjectAndLosesNothing)
{
    EXPECT_EQ(in_a_process([]() -> std::string {
        struct event_base *base = ring_base(), *other = ring_base();
        Pair before, of_other, after, edge, objects;
        SAY_UNLESS(base && other && before.watch(base) && of_other.watch(other));
        edge.event = event_new(base, edge.fds[0], EV_READ | EV_PERSIST | EV_ET, Pair::call, &edge);
        SAY_UNLESS(edge.event && event_add(edge.event, nullptr) == 0);
        event_base_loop(base, EVLOOP_NONBLOCK);
        event_base_loop(other, EVLOOP_NONBLOCK);
        SAY_UNLESS(all_stats().rings_made == 0);
        SAY_UNLESS(before.poke() && of_other.poke() && edge.poke()); /* there when it leaves */
        struct bufferevent *bev = ringpoll_bufferevent_socket_new(base, objects.fds[0], BEV_OPT_CLOSE_ON_FREE);
        SAY_UNLESS(bev);
        bufferevent_setcb(bev, echo, nullptr, nullptr, nullptr);
        SAY_UNLESS(bufferevent_enable(bev, EV_READ | EV_WRITE) == 0 && after.watch(base));
        for (int i = 0; i < 100; i++) {
            event_base_loop(base, EVLOOP_NONBLOCK);
            event_base_loop(other, EVLOOP_NONBLOCK);
            SAY_UNLESS(before.seen == i + 1 && of_other.seen == i + 1 && after.seen == i && edge.seen == i + 1);
            SAY_UNLESS(before.poke() && of_other.poke() && after.poke() && edge.poke());
        }
        struct ringpoll_stats stats = {};
        stats.size = sizeof stats;
        SAY_UNLESS(ringpoll_get_stats(ringpoll_event_set(base), &stats) == 0 && stats.rings_made == 1);
        SAY_UNLESS(stats.watches_kernel >= 3); /* those from before are known to be there */
        event_del(before.event);
        SAY_UNLESS(event_add(before.event, nullptr) == 0);
        event_base_loop(base, EVLOOP_NONBLOCK);
        SAY_UNLESS(before.seen == 101 && after.seen == 100 && edge.seen == 101);
        char bytes[8] = "";
        SAY_UNLESS(send(objects.fds[1], "word", 4, 0) == 4);
        for (int i = 0; i < 10; i++)
            event_base_loop(base, EVLOOP_NONBLOCK);
        SAY_UNLESS(recv(objects.fds[1], bytes, sizeof bytes, 0) == 4 && strcmp(bytes, "word") == 0);
        bufferevent_free(bev);
        for (Pair *pair : {&before, &of_other, &after, &edge})
            event_free(pair->event);
        event_base_free(base);
        event_base_free(other);
        return "";
    }), "");
}

TEST(Direct, ALoopThatSleepsIsWakedForAnotherThreadsFirstObject)
{
    EXPECT_EQ(in_a_process([]() -> std::string {
        evthread_use_pthreads();
        struct event_base *base = ring_base();
        Pair before, objects;
        SAY_UNLESS(base && before.watch(base));
        std::atomic<int> tid{0};
        std::thread loop([&] {
            tid = (int)syscall(SYS_gettid);
            event_base_loop(base, EVLOOP_NO_EXIT_ON_EMPTY);
        });
        SAY_UNLESS(before.poke());
        while (tid == 0 || before.seen == 0 || !is_asleep("/proc/self/task/" + std::to_string(tid.load())))
            sched_yield();
        struct bufferevent *bev = ringpoll_bufferevent_socket_new(base, objects.fds[0],
                                                                  BEV_OPT_THREADSAFE | BEV_OPT_CLOSE_ON_FREE);
        SAY_UNLESS(bev);
        bufferevent_setcb(bev, echo, nullptr, nullptr, nullptr);
        SAY_UNLESS(bufferevent_enable(bev, EV_READ | EV_WRITE) == 0);
        for (int i = 0; i < 20; i++)
            SAY_UNLESS(answers(objects.fds[1], "word"));
        SAY_UNLESS(all_stats().rings_made >= 1);
        event_base_loopexit(base, nullptr);
        loop.join();
        SAY_UNLESS(before.seen == 1);
        return "";
    }), "");
}

TEST(Direct, ChildrenHaveTheirOwn)
{
    EXPECT_EQ(in_a_process([]() -> std::string {
        struct event_base *base = ring_base();
        Pair pair;
        SAY_UNLESS(base && pair.watch(base));
        event_base_loop(base, EVLOOP_NONBLOCK);
        pid_t child = fork();
        if (child == 0) { /* without event_reinit(), its del is no business of the parent's */
            bool fine = pair.poke();
            event_base_loop(base, EVLOOP_ONCE);
            fine = fine && pair.seen == 1 && event_del(pair.event) == 0;
            _exit(fine ? 0 : 1);
        }
        int status = -1;
        SAY_UNLESS(waitpid(child, &status, 0) == child && status == 0);
        SAY_UNLESS(pair.poke());
        event_base_loop(base, EVLOOP_ONCE);
        SAY_UNLESS(pair.seen == 1);
        return "";
    }), "");
}

TEST(Direct, SleepsAsLongAsEpollDoes)
{
    EXPECT_EQ(in_a_process([]() -> std::string {
        for (bool precise : {false, true}) {
            struct event_config *config = event_config_new();
            SAY_UNLESS(config && (!precise || event_config_set_flag(config, EVENT_BASE_FLAG_PRECISE_TIMER) == 0));
            struct event_base *base = event_base_new_with_config(config);
            event_config_free(config);
            SAY_UNLESS(base && ringpoll_event_install(base) == 0);
            struct timespec from, to;
            struct timeval time = {0, 20500};
            clock_gettime(CLOCK_MONOTONIC, &from);
            event_base_loopexit(base, &time);
            event_base_dispatch(base);
            clock_gettime(CLOCK_MONOTONIC, &to);
            int64_t took = (to.tv_sec - from.tv_sec) * INT64_C(1000000000) + to.tv_nsec - from.tv_nsec;
            SAY_UNLESS(took >= 20000000 && took < 5000000000);
            event_base_free(base);
        }
        return "";
    }), "");
}

TEST(Direct, CountsAreTakenFromDeclaredSetsAlone)
{
    struct ringpoll_options options = {};
    options.size = sizeof options;
    int plain = ringpoll_create(&options), pipes[2];
    ASSERT_GE(plain, 0);
    ASSERT_EQ(pipe(pipes), 0);
    EXPECT_EQ(ringpoll_count_plain(plain, 1, 1, 1, 1), -EINVAL);
    EXPECT_EQ(ringpoll_count_plain(pipes[0], 1, 1, 1, 1), -EINVAL);
    EXPECT_EQ(ringpoll_count_plain(-1, 1, 1, 1, 1), -EBADF);
    ringpoll_close(plain);
    options.flags = RINGPOLL_DECLARED | RINGPOLL_BATCH;
    int declared = ringpoll_create(&options);
    ASSERT_GE(declared, 0);
    struct ringpoll_stats stats = {};
    stats.size = sizeof stats;
    EXPECT_EQ(ringpoll_count_plain(declared, 3, 2, 1, 5), 0);
    EXPECT_EQ(ringpoll_count_plain(declared, 0, 0, 0, -7), 0) << "some were closed without DEL";
    ASSERT_EQ(ringpoll_get_stats(declared, &stats), 0);
    EXPECT_EQ(stats.waits, 3u);
    EXPECT_EQ(stats.kernel_waits, 3u);
    EXPECT_EQ(stats.events, 2u);
    EXPECT_EQ(stats.kernel_ctls, 1u);
    EXPECT_EQ(stats.watches_kernel, 0u);
    ringpoll_close(declared);
    close(pipes[0]);
    close(pipes[1]);
}

} // namespace
