/* SPDX-License-Identifier: MIT
 *
 * An event_base on libevent's epoll and on the backend "io_uring": the same bodies.
 */
#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/listener.h>
#include <event2/thread.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include <ringpoll/event.h>

/* libevent's calls of it come here, too. */
static std::atomic<int> closes_in_vain;
extern "C" int close(int fd)
{
    int result = (int)syscall(SYS_close, fd);
    closes_in_vain += result < 0 && errno == EBADF;
    return result;
}

namespace {

class Base : public ::testing::TestWithParam<const char *> {
protected:
    void SetUp() override
    {
        signal(SIGPIPE, SIG_IGN);
        base_ = new_base();
        ASSERT_NE(base_, nullptr);
    }
    void TearDown() override
    {
        for (auto *event : events_)
            event_free(event);
        if (base_)
            event_base_free(base_);
        for (int fd : fds_)
            close(fd);
    }
    bool on_ring() const { return strcmp(GetParam(), "io_uring") == 0; }
    struct event_base *new_base()
    {
        struct event_base *base = event_base_new();
        EXPECT_STREQ(event_base_get_method(base), "epoll");
        if (on_ring()) {
            EXPECT_EQ(ringpoll_event_install(base), 0);
            EXPECT_STREQ(event_base_get_method(base), "io_uring");
        }
        return base;
    }
    void pair(int fds[2])
    {
        ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
        fds_.push_back(fds[0]);
        fds_.push_back(fds[1]);
    }
    static void call(evutil_socket_t fd, short what, void *argument)
    {
        (*static_cast<std::function<void(int, short)> *>(argument))((int)fd, what);
    }
    struct event *watch(int fd, short what, std::function<void(int, short)> *then, const struct timeval *timeout = nullptr)
    {
        struct event *event = event_new(base_, fd, what, call, then);
        EXPECT_EQ(event_add(event, timeout), 0);
        events_.push_back(event);
        return event;
    }
    struct event_base *base_ = nullptr;
    std::vector<struct event *> events_;
    std::vector<int> fds_;
};

TEST_P(Base, ReadsWritesAndEndsAreReported)
{
    int fds[2];
    pair(fds);
    std::string seen;
    std::function<void(int, short)> on_event = [&](int fd, short what) {
        char bytes[16];
        ssize_t got = what & EV_READ ? read(fd, bytes, sizeof bytes) : -1;
        if (got > 0)
            seen.append(bytes, (size_t)got);
        if (what & EV_CLOSED)
            seen += "!";
    };
    int writable = 0;
    std::function<void(int, short)> on_writable = [&](int, short) { writable++; };
    watch(fds[0], EV_READ | EV_PERSIST, &on_event);
    watch(fds[1], EV_WRITE, &on_writable);
    EXPECT_EQ(event_base_loop(base_, EVLOOP_NONBLOCK), 0);
    EXPECT_EQ(writable, 1);
    for (const char *word : {"one", "two", "three"}) {
        ASSERT_EQ(write(fds[1], word, strlen(word)), (ssize_t)strlen(word));
        EXPECT_EQ(event_base_loop(base_, EVLOOP_ONCE), 0);
    }
    EXPECT_EQ(seen, "onetwothree");
    EXPECT_EQ(writable, 1);
}

TEST_P(Base, AnEndIsClosedWhereThatIsAskedFor)
{
    int fds[2], closed = 0;
    pair(fds);
    std::function<void(int, short)> on_closed = [&](int, short what) { closed += (what & EV_CLOSED) != 0; };
    watch(fds[0], EV_CLOSED, &on_closed);
    EXPECT_EQ(event_base_loop(base_, EVLOOP_NONBLOCK), 0);
    EXPECT_EQ(closed, 0);
    shutdown(fds[1], SHUT_WR);
    event_base_loop(base_, EVLOOP_ONCE);
    EXPECT_EQ(closed, 1);
}

TEST_P(Base, AnEdgeIsReportedOnce)
{
    int fds[2], calls = 0;
    pair(fds);
    std::function<void(int, short)> count = [&](int, short what) { calls += (what & EV_ET) != 0; };
    watch(fds[0], EV_READ | EV_ET | EV_PERSIST, &count);
    ASSERT_EQ(write(fds[1], "x", 1), 1);
    for (int i = 0; i < 3; i++)
        event_base_loop(base_, EVLOOP_NONBLOCK);
    EXPECT_EQ(calls, 1);
    ASSERT_EQ(write(fds[1], "x", 1), 1);
    event_base_loop(base_, EVLOOP_ONCE);
    EXPECT_EQ(calls, 2);
}

/* del must let go of the file: the program closes it next, and tells nobody. */
TEST_P(Base, AFileThatIsClosedAfterItsEventIsFree)
{
    int fds[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
    std::function<void(int, short)> nothing = [](int, short) {};
    struct event *event = event_new(base_, fds[0], EV_READ | EV_PERSIST, call, &nothing);
    for (int i = 0; i < 2; i++) {
        EXPECT_EQ(event_add(event, nullptr), 0);
        event_base_loop(base_, EVLOOP_NONBLOCK);
        EXPECT_EQ(event_del(event), 0);
    }
    event_free(event);
    EXPECT_EQ(close(fds[0]), 0);
    struct pollfd look = {fds[1], POLLIN | POLLRDHUP, 0};
    EXPECT_EQ(poll(&look, 1, 0), 1) << "the peer sees no end";
    EXPECT_EQ(look.revents & POLLRDHUP, POLLRDHUP);
    close(fds[1]);
}

TEST_P(Base, TimeoutsComeInTheirOrder)
{
    std::string order;
    std::function<void(int, short)> a = [&](int, short) { order += "a"; }, b = [&](int, short) { order += "b"; };
    struct timeval soon = {0, 1000}, later = {0, 3000};
    watch(-1, 0, &b, &later);
    watch(-1, 0, &a, &soon);
    EXPECT_EQ(event_base_dispatch(base_), 1);
    EXPECT_EQ(order, "ab");
}

TEST_P(Base, ASignalIsAnEvent)
{
    int caught = 0;
    std::function<void(int, short)> on_signal = [&](int number, short what) {
        caught += number == SIGUSR1 && (what & EV_SIGNAL);
    };
    watch(SIGUSR1, EV_SIGNAL | EV_PERSIST, &on_signal);
    for (int i = 1; i <= 3; i++) {
        raise(SIGUSR1);
        event_base_loop(base_, EVLOOP_ONCE);
        EXPECT_EQ(caught, i);
    }
}

TEST_P(Base, AnotherThreadAddsAndWakes)
{
    int fds[2], calls = 0;
    pair(fds);
    std::function<void(int, short)> on_read = [&](int fd, short) {
        char byte;
        calls += read(fd, &byte, 1) == 1;
        event_base_loopbreak(base_);
    };
    std::function<void(int, short)> never = [](int, short) {};
    struct timeval long_time = {20, 0};
    watch(-1, EV_PERSIST, &never, &long_time);
    std::thread other([&] {
        watch(fds[0], EV_READ | EV_PERSIST, &on_read);
        EXPECT_EQ(write(fds[1], "x", 1), 1);
    });
    EXPECT_EQ(event_base_dispatch(base_), 0);
    other.join();
    EXPECT_EQ(calls, 1);
}

/* event_del() is no close: the connection must not hear of it. */
TEST_P(Base, AnotherThreadDeletesWhatLivesOn)
{
    int fds[2], calls = 0;
    pair(fds);
    std::function<void(int, short)> on_read = [&](int fd, short) {
        char byte;
        calls += read(fd, &byte, 1) == 1;
    };
    struct event *event = watch(fds[0], EV_READ | EV_PERSIST, &on_read);
    for (int i = 1; i <= 4; i++) {
        ASSERT_EQ(write(fds[1], "x", 1), 1);
        event_base_loop(base_, EVLOOP_ONCE);
        ASSERT_EQ(calls, i);
    }
    std::thread other([&] { EXPECT_EQ(event_del(event), 0); }); /* this one is busy */
    other.join();
    struct pollfd look = {fds[1], POLLIN | POLLRDHUP, 0};
    EXPECT_EQ(poll(&look, 1, 0), 0);
    ASSERT_EQ(write(fds[0], "y", 1), 1);
    ASSERT_EQ(write(fds[1], "x", 1), 1);
    event_base_loop(base_, EVLOOP_NONBLOCK);
    EXPECT_EQ(calls, 4);
    EXPECT_EQ(event_add(event, nullptr), 0);
    event_base_loop(base_, EVLOOP_ONCE);
    EXPECT_EQ(calls, 5);
}

TEST_P(Base, AChildGoesOnAfterReinit)
{
    int fds[2], calls = 0;
    pair(fds);
    std::function<void(int, short)> on_read = [&](int fd, short) {
        char byte;
        calls += read(fd, &byte, 1) == 1;
    };
    watch(fds[0], EV_READ | EV_PERSIST, &on_read);
    event_base_loop(base_, EVLOOP_NONBLOCK);
    pid_t child = fork();
    if (child == 0) {
        if (event_reinit(base_) != 0 || strcmp(event_base_get_method(base_), GetParam()) != 0 ||
            write(fds[1], "x", 1) != 1)
            _exit(1);
        event_base_loop(base_, EVLOOP_ONCE);
        _exit(calls == 1 ? 0 : 2);
    }
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    ASSERT_EQ(write(fds[1], "x", 1), 1);
    event_base_loop(base_, EVLOOP_ONCE);
    EXPECT_EQ(calls, 1);
}

TEST_P(Base, AListenersPortIsFreeRightAfterTheBase)
{
    struct sockaddr_in address = {};
    socklen_t length = sizeof address;
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    for (int i = 0; i < 20; i++) {
        struct event_base *base = new_base();
        struct evconnlistener *listener =
            evconnlistener_new_bind(base, [](struct evconnlistener *, evutil_socket_t, struct sockaddr *, int, void *) {},
                                    nullptr, LEV_OPT_CLOSE_ON_FREE, -1, (struct sockaddr *)&address, sizeof address);
        ASSERT_NE(listener, nullptr) << "round " << i << ": " << strerror(errno);
        getsockname(evconnlistener_get_fd(listener), (struct sockaddr *)&address, &length);
        event_base_loop(base, EVLOOP_NONBLOCK);
        evconnlistener_free(listener);
        event_base_free(base);
    }
}

TEST_P(Base, BuffereventsEcho)
{
    int fds[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
    struct bufferevent *echo = bufferevent_socket_new(base_, fds[0], BEV_OPT_CLOSE_ON_FREE);
    bufferevent_setcb(echo, [](struct bufferevent *self, void *) {
        bufferevent_write_buffer(self, bufferevent_get_input(self));
    }, nullptr, nullptr, nullptr);
    bufferevent_enable(echo, EV_READ | EV_WRITE);
    std::string sent, got;
    for (int i = 0; i < 50; i++) {
        std::string word(1 + (size_t)i * 97 % 3000, (char)('a' + i % 26));
        sent += word;
        ASSERT_EQ(write(fds[1], word.data(), word.size()), (ssize_t)word.size());
        for (int turn = 0; got.size() < sent.size() && turn < 100; turn++) {
            char bytes[4096];
            event_base_loop(base_, EVLOOP_NONBLOCK);
            for (ssize_t count; (count = read(fds[1], bytes, sizeof bytes)) > 0;)
                got.append(bytes, (size_t)count);
        }
    }
    EXPECT_EQ(got, sent);
    bufferevent_free(echo);
    event_base_loop(base_, EVLOOP_NONBLOCK); /* where it is finalized */
    char byte;
    EXPECT_EQ(read(fds[1], &byte, 1), 0) << "bufferevent_free() closes";
    close(fds[1]);
}

INSTANTIATE_TEST_SUITE_P(Backends, Base, ::testing::Values("epoll", "io_uring"),
                         [](const auto &info) { return std::string(info.param); });

/* ------------------------------------------------------------------- installing */

TEST(Install, MovesWhatIsRegistered)
{
    struct event_base *base = event_base_new();
    int fds[2], reads = 0, signals = 0, timeouts = 0;
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
    auto add_one = [](evutil_socket_t, short, void *count) { ++*static_cast<int *>(count); };
    struct event *on_read = event_new(base, fds[0], EV_READ | EV_ET | EV_PERSIST, add_one, &reads);
    struct event *on_signal = evsignal_new(base, SIGUSR2, add_one, &signals);
    struct event *on_time = evtimer_new(base, add_one, &timeouts);
    struct timeval soon = {0, 2000};
    event_add(on_read, nullptr);
    event_add(on_signal, nullptr);
    event_add(on_time, &soon);
    ASSERT_EQ(write(fds[1], "x", 1), 1);
    EXPECT_EQ(ringpoll_event_install(base), 0);
    EXPECT_EQ(ringpoll_event_install(base), 0) << "a second time changes nothing";
    EXPECT_STREQ(event_base_get_method(base), "io_uring");
    EXPECT_EQ(event_base_get_features(base), EV_FEATURE_ET | EV_FEATURE_O1 | EV_FEATURE_EARLY_CLOSE);
    raise(SIGUSR2);
    for (int turn = 0; turn < 1000 && !(reads && signals && timeouts); turn++)
        event_base_loop(base, EVLOOP_ONCE);
    EXPECT_EQ(reads, 1);
    EXPECT_EQ(signals, 1);
    EXPECT_EQ(timeouts, 1);
    EXPECT_GE(ringpoll_event_set(base), 0);
    for (auto *event : {on_read, on_signal, on_time})
        event_free(event);
    event_base_free(base);
    close(fds[0]);
    close(fds[1]);
}

TEST(Install, RefusesWhatItMust)
{
    EXPECT_EQ(ringpoll_event_install(nullptr), -EINVAL);
    EXPECT_EQ(ringpoll_event_set(nullptr), -EINVAL);
    struct event_base *base = event_base_new();
    EXPECT_EQ(ringpoll_event_set(base), -EINVAL);
    int answer = 1;
    struct Both {
        struct event_base *base;
        int *answer;
    } both = {base, &answer};
    struct timeval now = {0, 0};
    event_base_once(base, -1, EV_TIMEOUT, [](evutil_socket_t, short, void *argument) {
        Both *inside = static_cast<Both *>(argument);
        *inside->answer = ringpoll_event_install(inside->base);
    }, &both, &now);
    event_base_loop(base, EVLOOP_ONCE);
    EXPECT_EQ(answer, -EBUSY);
    EXPECT_STREQ(event_base_get_method(base), "epoll");
    setenv("EVENT_NOIO_URING", "1", 1);
    EXPECT_EQ(ringpoll_event_install(base), -ENOTSUP);
    unsetenv("EVENT_NOIO_URING");
    EXPECT_STREQ(event_base_get_method(base), "epoll");
    event_base_free(base);
}

TEST(Install, ANewBaseHonoursItsConfig)
{
    struct event_base *base = ringpoll_event_base_new(nullptr);
    EXPECT_STREQ(event_base_get_method(base), "io_uring");
    event_base_free(base);
    struct event_config *config = event_config_new();
    base = ringpoll_event_base_new(config);
    EXPECT_STREQ(event_base_get_method(base), "io_uring");
    event_base_free(base);
    event_config_avoid_method(config, "epoll");
    event_config_avoid_method(config, "io_uring");
    base = ringpoll_event_base_new(config);
    EXPECT_STREQ(event_base_get_method(base), "poll");
    event_base_free(base);
    event_config_free(config);
    config = event_config_new();
    event_config_require_features(config, EV_FEATURE_FDS);
    base = ringpoll_event_base_new(config);
    EXPECT_STREQ(event_base_get_method(base), "poll");
    event_base_free(base);
    event_config_free(config);
}

/* epoll takes no regular file; poll(2), and this backend, call it ready. */
TEST(Install, IsRefusedWhereTheProgramOrItsUserSaysSo)
{
    for (const char *variable : {"EVENT_NOURING", "EVENT_NOIO_URING"}) {
        setenv(variable, "1", 1);
        struct event_base *base = ringpoll_event_base_new(nullptr);
        EXPECT_STREQ(event_base_get_method(base), "epoll") << variable;
        EXPECT_EQ(ringpoll_event_install(base), -ENOTSUP) << variable;
        event_base_free(base);
        struct event_config *config = event_config_new();
        event_config_set_flag(config, EVENT_BASE_FLAG_IGNORE_ENV);
        base = ringpoll_event_base_new(config);
        EXPECT_STREQ(event_base_get_method(base), "io_uring") << variable;
        event_base_free(base);
        event_config_free(config);
        unsetenv(variable);
    }
    struct event_config *config = event_config_new();
    event_config_set_flag(config, RINGPOLL_EVENT_NO_URING);
    struct event_base *base = ringpoll_event_base_new(config);
    EXPECT_STREQ(event_base_get_method(base), "epoll");
    EXPECT_EQ(ringpoll_event_install(base), -ENOTSUP);
    event_base_free(base);
    event_config_free(config);
}

/* What a libevent calls that was configured --with-uring; scripts/upstream.sh builds one. */
/* Plain events cost what they cost on epoll: there is a ring only while there is something to complete. */
TEST(Engine, ABaseHasARingFromItsFirstObjectToItsLast)
{
    struct ringpoll_probe probe = {};
    probe.size = sizeof probe;
    uint64_t needed = RINGPOLL_FEATURE_DEFER | RINGPOLL_FEATURE_BUF_RING | RINGPOLL_FEATURE_MULTISHOT_RECV |
                      RINGPOLL_FEATURE_RECV_END;
    if (ringpoll_get_probe(&probe) != 0 || (probe.usable & needed) != needed)
        GTEST_SKIP() << "this kernel's rings do not receive";
    struct event_base *base = ringpoll_event_base_new(nullptr);
    ASSERT_NE(base, nullptr);
    EXPECT_STREQ(event_base_get_method(base), "io_uring");
    auto stats = [base] {
        struct ringpoll_stats stats = {};
        stats.size = sizeof stats;
        EXPECT_EQ(ringpoll_get_stats(ringpoll_event_set(base), &stats), 0);
        return stats;
    };
    int plain[2], reads = 0;
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, plain), 0);
    struct event *event = event_new(base, plain[0], EV_READ | EV_PERSIST, [](evutil_socket_t fd, short, void *count) {
        char byte;
        *(int *)count += read((int)fd, &byte, 1) == 1;
    }, &reads);
    ASSERT_EQ(event_add(event, nullptr), 0);
    auto busy = [&](int turns) {
        for (int turn = 0, before = reads; turn < turns; turn++, before = reads) {
            ASSERT_EQ(write(plain[1], "x", 1), 1);
            ASSERT_EQ(event_base_loop(base, EVLOOP_ONCE), 0);
            ASSERT_EQ(reads, before + 1);
        }
    };
    for (int time = 0; time < 3; time++) {
        busy(300);
        EXPECT_EQ(stats().rings, 0u) << time;
        EXPECT_STREQ(event_base_get_method(base), "io_uring");
        int pairs[4][2];
        struct bufferevent *objects[4];
        for (int i = 0; i < 4; i++) {
            ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pairs[i]), 0);
            objects[i] = ringpoll_bufferevent_socket_new(base, pairs[i][0], BEV_OPT_CLOSE_ON_FREE);
            ASSERT_NE(objects[i], nullptr);
            bufferevent_setcb(objects[i], [](struct bufferevent *object, void *) {
                bufferevent_write_buffer(object, bufferevent_get_input(object));
            }, nullptr, nullptr, nullptr);
            ASSERT_EQ(bufferevent_enable(objects[i], EV_READ), 0);
        }
        for (int round = 0; round < 20; round++) {
            for (auto &pair : pairs)
                ASSERT_EQ(write(pair[1], "echo", 4), 4);
            for (int i = 0, echoed = 0; i < 100 && echoed < 4; i++) {
                event_base_loop(base, EVLOOP_NONBLOCK);
                for (auto &pair : pairs) {
                    char bytes[8];
                    echoed += read(pair[1], bytes, sizeof bytes) == 4;
                }
                ASSERT_TRUE(echoed == 4 || i < 99) << echoed;
            }
        }
        EXPECT_EQ(stats().rings, 1u) << time;
        EXPECT_EQ(stats().adopted, 4u) << time;
        busy(100);
        for (int i = 0; i < 4; i++) {
            bufferevent_free(objects[i]);
            char byte;
            for (int turn = 0; turn < 100 && read(pairs[i][1], &byte, 1) != 0; turn++)
                event_base_loop(base, EVLOOP_NONBLOCK);
            EXPECT_EQ(read(pairs[i][1], &byte, 1), 0) << "the peer sees the end";
            close(pairs[i][1]);
        }
        busy(2 * 4096);
    }
    EXPECT_EQ(stats().rings, 0u);
    event_free(event);
    event_base_free(base);
    close(plain[0]);
    close(plain[1]);
}

TEST(Engine, ObjectsOfABaseThatHasLeftItsRingWorkOn)
{
    struct event_base *base = ringpoll_event_base_new(nullptr);
    ASSERT_NE(base, nullptr);
    constexpr int PLAIN = 8;
    int plain[PLAIN][2], reads = 0, pairs[2][2];
    struct event *events[PLAIN];
    for (int i = 0; i < PLAIN; i++) {
        ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, plain[i]), 0);
        events[i] = event_new(base, plain[i][0], EV_READ | EV_PERSIST, [](evutil_socket_t fd, short, void *count) {
            char byte;
            *(int *)count += read((int)fd, &byte, 1) == 1;
        }, &reads);
        ASSERT_EQ(event_add(events[i], nullptr), 0);
    }
    auto busy = [&](int turns) {
        for (int turn = 0, before = reads; turn < turns; turn++, before = reads) {
            ASSERT_EQ(write(plain[turn % PLAIN][1], "x", 1), 1);
            while (reads == before)
                ASSERT_EQ(event_base_loop(base, EVLOOP_ONCE), 0);
        }
    };
    struct bufferevent *objects[2];
    std::string got;
    for (int i = 0; i < 2; i++) {
        ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pairs[i]), 0);
        objects[i] = ringpoll_bufferevent_socket_new(base, pairs[i][0], BEV_OPT_CLOSE_ON_FREE);
        ASSERT_NE(objects[i], nullptr);
        bufferevent_setcb(objects[i], [](struct bufferevent *object, void *) {
            bufferevent_write_buffer(object, bufferevent_get_input(object));
        }, nullptr, nullptr, nullptr);
        ASSERT_EQ(bufferevent_enable(objects[i], EV_READ), 0);
    }
    auto echo = [&](int i, size_t size) {
        std::string text(size, (char)('a' + i)), back;
        char bytes[65536];
        for (size_t sent = 0, turn = 0; back.size() < size && turn < 100000; turn++) {
            ssize_t put = sent < size ? write(pairs[i][1], text.data() + sent, size - sent) : 0;
            sent += put > 0 ? (size_t)put : 0;
            event_base_loop(base, EVLOOP_NONBLOCK);
            ssize_t taken = read(pairs[i][1], bytes, sizeof bytes);
            back.append(bytes, taken > 0 ? (size_t)taken : 0);
        }
        EXPECT_EQ(back, text);
    };
    for (int round = 0; round < 20; round++)
        echo(round % 2, 5);
    for (int time = 0; time < 3; time++) { /* on the ring, away, on the next */
        busy(time == 1 ? 20000 : 700);
        if (time < 2) {
            struct ringpoll_stats stats = {};
            stats.size = sizeof stats;
            EXPECT_EQ(ringpoll_get_stats(ringpoll_event_set(base), &stats), 0);
            EXPECT_EQ(stats.rings, 0u) << time;
        }
        echo(0, 10);
        echo(0, 300000);
        bufferevent_disable(objects[1], EV_READ);
        ASSERT_EQ(write(pairs[1][1], "later", 5), 5);
        busy(10);
        bufferevent_enable(objects[1], EV_READ);
        char bytes[8];
        ssize_t size = -1;
        for (int turn = 0; turn < 1000 && size < 0; turn++) {
            event_base_loop(base, EVLOOP_NONBLOCK);
            size = read(pairs[1][1], bytes, sizeof bytes);
        }
        EXPECT_EQ(size, 5);
    }
    busy(700);
    for (int i = 0; i < 2; i++) {
        char byte;
        ssize_t end = -1;
        bufferevent_free(objects[i]);
        for (int turn = 0; turn < 100 && end != 0; turn++) {
            event_base_loop(base, EVLOOP_NONBLOCK);
            end = read(pairs[i][1], &byte, 1);
        }
        EXPECT_EQ(end, 0) << "the peer sees the end";
        close(pairs[i][1]);
    }
    for (int i = 0; i < PLAIN; i++) {
        event_free(events[i]);
        close(plain[i][0]);
        close(plain[i][1]);
    }
    event_base_free(base);
}

TEST(Tree, TakesNothingThatItDoesNotKnow)
{
    struct event_base *base = event_base_new();
    struct ringpoll_event_tree tree = {};
    EXPECT_EQ(ringpoll_event_tree_init(nullptr, &tree), nullptr);
    EXPECT_EQ(ringpoll_event_tree_init(base, nullptr), nullptr);
    tree.size = sizeof tree + 8;
    EXPECT_EQ(ringpoll_event_tree_init(base, &tree), nullptr);
    EXPECT_STREQ(event_base_get_method(base), "epoll");
    event_base_free(base);
}

TEST(Tree, ObjectsOfABaseOnEpollAreLibeventsOwn)
{
    struct event_base *base = event_base_new();
    EXPECT_EQ(ringpoll_event_tree_bufferevent(base, -1, 0), nullptr);
    EXPECT_EQ(ringpoll_event_tree_bufferevent(nullptr, -1, 0), nullptr);
    EXPECT_EQ(ringpoll_event_tree_listener(base, nullptr, nullptr, 0, 0, -1), nullptr);
    event_base_free(base);
}

/* In between another thread may have got the number: event_reinit() closes the pair of the
 * signals and does not say so to who ends the backend. */
TEST(Install, ClosesNothingTwice)
{
    ASSERT_EQ(close(-1), -1);
    ASSERT_GT(closes_in_vain.exchange(0), 0) << "nothing is seen here";
    for (bool has_signal : {false, true}) {
        struct event_base *base = event_base_new();
        int signals = 0;
        struct event *event = evsignal_new(base, SIGUSR1, [](evutil_socket_t, short, void *count) {
            ++*static_cast<int *>(count);
        }, &signals);
        if (has_signal) {
            ASSERT_EQ(event_add(event, nullptr), 0);
        }
        ASSERT_EQ(ringpoll_event_install(base), 0);
        EXPECT_STREQ(event_base_get_method(base), "io_uring");
        EXPECT_EQ(closes_in_vain.exchange(0), 0) << (has_signal ? "with a signal" : "without a signal");
        if (!has_signal) {
            ASSERT_EQ(event_add(event, nullptr), 0);
        }
        raise(SIGUSR1);
        event_base_loop(base, EVLOOP_ONCE);
        EXPECT_EQ(signals, 1);
        event_free(event);
        event_base_free(base);
        EXPECT_EQ(closes_in_vain.exchange(0), 0);
    }
}

TEST(Install, ARegularFileIsAlwaysReady)
{
    struct event_base *base = ringpoll_event_base_new(nullptr);
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC), calls = 0;
    struct event *event = event_new(base, fd, EV_READ | EV_PERSIST, [](evutil_socket_t, short, void *count) {
        ++*static_cast<int *>(count);
    }, &calls);
    EXPECT_EQ(event_add(event, nullptr), 0);
    for (int i = 0; i < 3; i++)
        event_base_loop(base, EVLOOP_ONCE);
    EXPECT_EQ(calls, 3);
    EXPECT_EQ(event_del(event), 0);
    EXPECT_EQ(event_base_loop(base, EVLOOP_NONBLOCK), 1);
    event_free(event);
    event_base_free(base);
    close(fd);
}

} // namespace

int main(int argc, char **argv)
{
    evthread_use_pthreads();
    ::testing::InitGoogleTest(&argc, argv);
    return RUN_ALL_TESTS();
}
