/* SPDX-License-Identifier: MIT
 *
 * Bufferevents and listeners: each body with libevent's own on its epoll, and with
 * libringpoll-event's on the ring.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/bufferevent_struct.h>
#include <event2/dns.h>
#include <event2/event.h>
#include <event2/http.h>
#include <event2/listener.h>
#include <event2/thread.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#ifdef HAVE_LIBEVENT_OPENSSL
#include <event2/bufferevent_ssl.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#endif

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <ringpoll/event.h>

namespace {

struct Callbacks {
    std::function<void(struct bufferevent *)> on_read, on_write;
    std::function<void(struct bufferevent *, short)> on_event;
    void set(struct bufferevent *bev)
    {
        bufferevent_setcb(bev, read, write, event, this);
    }
    static void read(struct bufferevent *bev, void *self)
    {
        if (static_cast<Callbacks *>(self)->on_read)
            static_cast<Callbacks *>(self)->on_read(bev);
    }
    static void write(struct bufferevent *bev, void *self)
    {
        if (static_cast<Callbacks *>(self)->on_write)
            static_cast<Callbacks *>(self)->on_write(bev);
    }
    static void event(struct bufferevent *bev, short what, void *self)
    {
        if (static_cast<Callbacks *>(self)->on_event)
            static_cast<Callbacks *>(self)->on_event(bev, what);
    }
};

std::string text(size_t length, unsigned seed)
{
    std::string made(length, ' ');
    for (size_t i = 0; i < length; i++)
        made[i] = (char)('!' + (i * 31 + seed * 7 + i / 97) % 90);
    return made;
}

std::string take(struct evbuffer *buffer)
{
    std::string all(evbuffer_get_length(buffer), '\0');
    evbuffer_remove(buffer, all.data(), all.size());
    return all;
}

class Objects : public ::testing::TestWithParam<std::tuple<const char *, int>> {
public: /* for callbacks without a class */
    void SetUp() override
    {
        signal(SIGPIPE, SIG_IGN);
        base_ = new_base();
        ASSERT_NE(base_, nullptr);
    }
    void TearDown() override
    {
        for (auto *bev : bevs_)
            bufferevent_free(bev);
        if (base_) {
            event_base_loop(base_, EVLOOP_NONBLOCK); /* where they are finalized */
            event_base_free(base_);
        }
        for (int fd : fds_)
            close(fd);
    }
    /* On the ring, of a kernel whose rings receive, send and accept. */
    bool completes() const
    {
        struct ringpoll_probe probe = {};
        probe.size = sizeof probe;
        uint64_t needed = RINGPOLL_FEATURE_DEFER | RINGPOLL_FEATURE_BUF_RING | RINGPOLL_FEATURE_MULTISHOT_RECV |
                          RINGPOLL_FEATURE_MULTISHOT_ACCEPT;
        if (family() == AF_UNIX)
            needed |= RINGPOLL_FEATURE_RECV_END;
        return on_ring() && ringpoll_get_probe(&probe) == 0 && (probe.usable & needed) == needed;
    }
    bool on_ring() const { return strcmp(std::get<0>(GetParam()), "ring") == 0; }
    int family() const { return std::get<1>(GetParam()); }
    struct event_base *new_base()
    {
        struct event_base *base = event_base_new();
        if (on_ring()) {
            EXPECT_EQ(ringpoll_event_install(base), 0);
        }
        return base;
    }
    struct bufferevent *make(struct event_base *base, int fd, int options = BEV_OPT_CLOSE_ON_FREE)
    {
        return on_ring() ? ringpoll_bufferevent_socket_new(base, fd, options) : bufferevent_socket_new(base, fd, options);
    }
    struct bufferevent *keep(int fd, int options = BEV_OPT_CLOSE_ON_FREE)
    {
        struct bufferevent *bev = make(base_, fd, options);
        EXPECT_NE(bev, nullptr) << strerror(errno);
        bevs_.push_back(bev);
        return bev;
    }
    void forget(struct bufferevent *bev)
    {
        bevs_.erase(std::find(bevs_.begin(), bevs_.end(), bev));
    }
    /* Two connected stream sockets, non-blocking; the caller has them. */
    void connected(int fds[2])
    {
        if (family() == AF_UNIX) {
            ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
            return;
        }
        struct sockaddr_in address = {};
        socklen_t length = sizeof address;
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
        ASSERT_EQ(bind(listener, (struct sockaddr *)&address, sizeof address), 0);
        ASSERT_EQ(listen(listener, 1), 0);
        getsockname(listener, (struct sockaddr *)&address, &length);
        fds[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        ASSERT_EQ(connect(fds[0], (struct sockaddr *)&address, sizeof address), 0);
        fds[1] = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
        ASSERT_GE(fds[1], 0);
        fcntl(fds[0], F_SETFL, O_NONBLOCK);
        for (int i = 0; i < 2; i++)
            setsockopt(fds[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        close(listener);
    }
    /* Turns of the loop until `done`, with an end to the patience. */
    void run_until(const std::function<bool()> &done)
    {
        struct timeval tick = {0, 2000};
        for (int turn = 0; !done() && turn < 5000; turn++) {
            event_base_once(base_, -1, EV_TIMEOUT, [](evutil_socket_t, short, void *) {}, nullptr, &tick);
            event_base_loop(base_, EVLOOP_ONCE);
        }
        EXPECT_TRUE(done());
    }
    void run(int turns)
    {
        for (int i = 0; i < turns; i++)
            event_base_loop(base_, EVLOOP_NONBLOCK);
    }
    void send_all(int fd, const std::string &bytes)
    {
        size_t at = 0;
        for (int turn = 0; at < bytes.size() && turn < 100000; turn++) {
            ssize_t sent = write(fd, bytes.data() + at, bytes.size() - at);
            if (sent > 0)
                at += (size_t)sent;
            else
                event_base_loop(base_, EVLOOP_NONBLOCK);
        }
        ASSERT_EQ(at, bytes.size());
    }
    std::string receive(int fd, size_t length)
    {
        std::string got;
        char bytes[65536];
        for (int turn = 0; got.size() < length && turn < 100000; turn++) {
            ssize_t count = read(fd, bytes, sizeof bytes);
            if (count > 0)
                got.append(bytes, (size_t)count);
            else if (count == 0)
                break;
            else
                event_base_loop(base_, EVLOOP_NONBLOCK);
        }
        return got;
    }
    bool sees_end(int fd)
    {
        struct pollfd look = {fd, POLLIN | POLLRDHUP, 0};
        return poll(&look, 1, 1000) == 1 && (look.revents & (POLLRDHUP | POLLHUP));
    }
    struct ringpoll_stats stats(struct event_base *base)
    {
        struct ringpoll_stats stats = {};
        stats.size = sizeof stats;
        if (on_ring()) {
            EXPECT_EQ(ringpoll_get_stats(ringpoll_event_set(base), &stats), 0);
        }
        return stats;
    }
    /* Small messages until the ring receives for `bev`, whose read callback is the caller's. */
    void warm_up(int peer, const std::function<size_t()> &read_so_far, size_t *ret_sent)
    {
        for (int i = 0; i < 8; i++) {
            ASSERT_EQ(write(peer, "warm", 4), 4);
            *ret_sent += 4;
            run_until([&] { return read_so_far() >= *ret_sent; });
        }
    }
    struct event_base *base_ = nullptr;
    std::vector<struct bufferevent *> bevs_;
    std::vector<int> fds_;
};

#define RING_ONLY() \
    if (!on_ring()) \
    GTEST_SKIP() << "about the ring alone"

/* ------------------------------------------------------------------------ bytes */

TEST_P(Objects, AnEchoOfAllSizesComesBackWhole)
{
    int fds[2];
    connected(fds);
    fds_.push_back(fds[1]);
    struct bufferevent *bev = keep(fds[0]);
    Callbacks callbacks;
    callbacks.on_read = [](struct bufferevent *self) { bufferevent_write_buffer(self, bufferevent_get_input(self)); };
    callbacks.set(bev);
    bufferevent_enable(bev, EV_READ | EV_WRITE);
    for (unsigned i = 0; i < 60; i++) {
        std::string sent = text(1 + (size_t)i * i * 37, i);
        send_all(fds[1], sent);
        ASSERT_EQ(receive(fds[1], sent.size()), sent) << i;
    }
    std::string big = text(700000, 9);
    std::thread sender([&] {
        for (size_t at = 0; at < big.size();) {
            struct pollfd room = {fds[1], POLLOUT, 0};
            poll(&room, 1, 1000);
            ssize_t sent = write(fds[1], big.data() + at, big.size() - at);
            at += sent > 0 ? (size_t)sent : 0;
        }
    });
    EXPECT_EQ(receive(fds[1], big.size()), big);
    sender.join();
    for (unsigned i = 0; i < 30; i++) {
        std::string sent = text(64, i);
        send_all(fds[1], sent);
        ASSERT_EQ(receive(fds[1], sent.size()), sent) << i;
    }
    if (completes()) {
        EXPECT_GT(stats(base_).received, 0u) << "the ring never received";
    }
}

TEST_P(Objects, ManyConnectionsAtOnce)
{
    const int count = 40;
    std::vector<int> peers;
    Callbacks callbacks;
    callbacks.on_read = [](struct bufferevent *self) { bufferevent_write_buffer(self, bufferevent_get_input(self)); };
    for (int i = 0; i < count; i++) {
        int fds[2];
        connected(fds);
        fds_.push_back(fds[1]);
        peers.push_back(fds[1]);
        struct bufferevent *bev = keep(fds[0]);
        callbacks.set(bev);
        bufferevent_enable(bev, EV_READ | EV_WRITE);
    }
    for (unsigned round = 0; round < 20; round++) {
        for (int i = 0; i < count; i++)
            send_all(peers[(size_t)i], text(1 + round * 61 + (unsigned)i, round));
        for (int i = 0; i < count; i++) {
            std::string want = text(1 + round * 61 + (unsigned)i, round);
            ASSERT_EQ(receive(peers[(size_t)i], want.size()), want) << round << " " << i;
        }
    }
    if (completes()) {
        EXPECT_GT(stats(base_).sends_batched, 0u) << "no write was batched";
    }
}

/* A promise of the header: what was received is not copied into the input. */
TEST_P(Objects, TheInputHasTheReceivedBufferItself)
{
    RING_ONLY();
    if (!completes())
        GTEST_SKIP() << "this kernel's rings do not receive";
    int fds[2];
    connected(fds);
    fds_.push_back(fds[1]);
    struct bufferevent *bev = keep(fds[0]);
    size_t read = 0, sent = 0;
    Callbacks callbacks;
    callbacks.on_read = [&](struct bufferevent *self) { read += take(bufferevent_get_input(self)).size(); };
    callbacks.set(bev);
    bufferevent_enable(bev, EV_READ);
    warm_up(fds[1], [&] { return read; }, &sent);
    struct evbuffer_iovec first = {}, again = {};
    callbacks.on_read = [&](struct bufferevent *self) {
        evbuffer_peek(bufferevent_get_input(self), -1, nullptr, first.iov_base ? &again : &first, 1);
        take(bufferevent_get_input(self));
    };
    ASSERT_EQ(write(fds[1], "one", 3), 3);
    run_until([&] { return first.iov_base != nullptr; });
    ASSERT_EQ(write(fds[1], "two", 3), 3);
    run_until([&] { return again.iov_base != nullptr; });
    auto distance = (size_t)std::abs((char *)again.iov_base - (char *)first.iov_base);
    EXPECT_EQ(distance % (81 * 64), 0u) << "not buffers of one pool";
    EXPECT_EQ(std::string((char *)again.iov_base, 3), "two");
}

TEST_P(Objects, ReceivedBytesOutliveTheBufferevent)
{
    int fds[2];
    connected(fds);
    fds_.push_back(fds[1]);
    struct bufferevent *bev = make(base_, fds[0]);
    struct evbuffer *kept = evbuffer_new();
    size_t read = 0, sent = 0;
    Callbacks callbacks;
    callbacks.on_read = [&](struct bufferevent *self) {
        read += evbuffer_get_length(bufferevent_get_input(self));
        bufferevent_read_buffer(self, kept);
    };
    callbacks.set(bev);
    bufferevent_enable(bev, EV_READ);
    warm_up(fds[1], [&] { return read; }, &sent);
    std::string last = text(3000, 5);
    send_all(fds[1], last);
    run_until([&] { return read >= sent + last.size(); });
    bufferevent_free(bev);
    event_base_loop(base_, EVLOOP_NONBLOCK);
    event_base_free(base_);
    base_ = nullptr;
    std::string all = take(kept);
    EXPECT_EQ(all.substr(sent), last);
    evbuffer_free(kept);
}

TEST_P(Objects, MoreUnreadInputThanTheRingHasBuffersIsFine)
{
    std::vector<int> peers;
    size_t read = 0, sent = 0;
    Callbacks callbacks;
    callbacks.on_read = [&](struct bufferevent *) {};
    std::vector<struct bufferevent *> all;
    for (int i = 0; i < 8; i++) {
        int fds[2];
        connected(fds);
        fds_.push_back(fds[1]);
        peers.push_back(fds[1]);
        all.push_back(keep(fds[0]));
        callbacks.set(all.back());
        bufferevent_enable(all.back(), EV_READ);
    }
    auto length = [&] {
        size_t sum = 0;
        for (auto *bev : all)
            sum += evbuffer_get_length(bufferevent_get_input(bev));
        return sum;
    };
    for (int i = 0; i < 200; i++) {
        for (int peer : peers)
            ASSERT_EQ(write(peer, "drop", 4), 4);
        sent += 4 * peers.size();
        run_until([&] { return length() == sent; });
    }
    (void)read;
    for (auto *bev : all) {
        std::string want;
        for (int i = 0; i < 200; i++)
            want += "drop";
        EXPECT_EQ(take(bufferevent_get_input(bev)), want);
    }
}

/* ------------------------------------------------------------------------- ends */

TEST_P(Objects, ThePeerSeesTheCloseAfterFree)
{
    for (int warm = 0; warm < 2; warm++) {
        int fds[2];
        connected(fds);
        struct bufferevent *bev = make(base_, fds[0]);
        size_t read = 0, sent = 0;
        Callbacks callbacks;
        callbacks.on_read = [&](struct bufferevent *self) { read += take(bufferevent_get_input(self)).size(); };
        callbacks.set(bev);
        bufferevent_enable(bev, EV_READ | EV_WRITE);
        if (warm)
            warm_up(fds[1], [&] { return read; }, &sent);
        else
            run(2);
        bufferevent_free(bev);
        event_base_loop(base_, EVLOOP_NONBLOCK);
        EXPECT_TRUE(sees_end(fds[1])) << (warm ? "while the ring receives" : "while it polls");
        close(fds[1]);
    }
}

/* Without BEV_OPT_CLOSE_ON_FREE, and without a word to anybody. */
TEST_P(Objects, ThePeerSeesTheProgramsOwnClose)
{
    for (int how = 0; how < 3; how++) {
        int fds[2];
        connected(fds);
        struct bufferevent *bev = make(base_, fds[0], 0);
        size_t read = 0, sent = 0;
        Callbacks callbacks;
        callbacks.on_read = [&](struct bufferevent *self) { read += take(bufferevent_get_input(self)).size(); };
        callbacks.set(bev);
        bufferevent_enable(bev, EV_READ | EV_WRITE);
        warm_up(fds[1], [&] { return read; }, &sent);
        if (how == 0)
            bufferevent_free(bev);
        else if (how == 1)
            bufferevent_setfd(bev, -1);
        else
            bufferevent_disable(bev, EV_READ | EV_WRITE);
        close(fds[0]);
        EXPECT_TRUE(sees_end(fds[1])) << how;
        if (how > 0)
            bufferevent_free(bev);
        event_base_loop(base_, EVLOOP_NONBLOCK);
        close(fds[1]);
    }
}

TEST_P(Objects, ANumberThatComesBackHasNothingOfTheOldOne)
{
    for (int how = 0; how < 2; how++) {
        int fds[2], next[2];
        connected(fds);
        struct bufferevent *bev = make(base_, fds[0], 0);
        size_t read = 0, sent = 0;
        Callbacks callbacks;
        callbacks.on_read = [&](struct bufferevent *self) { read += take(bufferevent_get_input(self)).size(); };
        callbacks.set(bev);
        bufferevent_enable(bev, EV_READ | EV_WRITE);
        warm_up(fds[1], [&] { return read; }, &sent);
        bufferevent_disable(bev, EV_READ | EV_WRITE);
        ASSERT_EQ(write(fds[1], "old", 3), 3);
        close(fds[0]);
        connected(next);
        if (next[0] != fds[0]) {
            ASSERT_EQ(dup2(next[0], fds[0]), fds[0]);
            close(next[0]);
        }
        if (how == 0) { /* a bufferevent again */
            bufferevent_setfd(bev, fds[0]);
            std::string got;
            callbacks.on_read = [&](struct bufferevent *self) { got += take(bufferevent_get_input(self)); };
            bufferevent_enable(bev, EV_READ | EV_WRITE);
            ASSERT_EQ(write(next[1], "new", 3), 3);
            run_until([&] { return got.size() >= 3; });
            EXPECT_EQ(got, "new");
            bufferevent_free(bev);
        } else { /* a plain event */
            bufferevent_free(bev);
            int calls = 0;
            struct event *event = event_new(base_, fds[0], EV_READ | EV_PERSIST, [](evutil_socket_t, short, void *count) {
                ++*static_cast<int *>(count);
            }, &calls);
            event_add(event, nullptr);
            run(3);
            EXPECT_EQ(calls, 0);
            ASSERT_EQ(write(next[1], "new", 3), 3);
            run_until([&] { return calls > 0; });
            char bytes[16];
            EXPECT_EQ(::read(fds[0], bytes, sizeof bytes), 3);
            event_free(event);
        }
        run(1);
        close(fds[0]);
        close(fds[1]);
        close(next[1]);
    }
}

TEST_P(Objects, AnEndComesAfterTheLastByte)
{
    for (size_t length : {5u, 5000u, 100000u}) {
        int fds[2];
        connected(fds);
        struct bufferevent *bev = make(base_, fds[0]);
        std::string got;
        short what = 0;
        Callbacks callbacks;
        callbacks.on_read = [&](struct bufferevent *self) { got += take(bufferevent_get_input(self)); };
        callbacks.on_event = [&](struct bufferevent *, short event) { what |= event; };
        callbacks.set(bev);
        bufferevent_enable(bev, EV_READ | EV_WRITE);
        size_t sent = 0;
        warm_up(fds[1], [&] { return got.size(); }, &sent);
        std::string last = text(length, 3);
        send_all(fds[1], last);
        shutdown(fds[1], SHUT_WR);
        run_until([&] { return what != 0; });
        EXPECT_EQ(what, BEV_EVENT_READING | BEV_EVENT_EOF);
        EXPECT_EQ(got.substr(sent), last);
        EXPECT_EQ(bufferevent_get_enabled(bev), EV_WRITE) << "reading is over, writing is not";
        bufferevent_write(bev, "bye", 3);
        EXPECT_EQ(receive(fds[1], 3), "bye");
        bufferevent_free(bev);
        run(1);
        close(fds[1]);
    }
}

TEST_P(Objects, AResetIsAnErrorWithItsErrno)
{
    if (family() == AF_UNIX)
        GTEST_SKIP() << "TCP";
    int fds[2], error = 0;
    connected(fds);
    struct bufferevent *bev = keep(fds[0]);
    size_t read = 0, sent = 0;
    short what = 0;
    Callbacks callbacks;
    callbacks.on_read = [&](struct bufferevent *self) { read += take(bufferevent_get_input(self)).size(); };
    callbacks.on_event = [&](struct bufferevent *, short event) {
        what = event;
        error = EVUTIL_SOCKET_ERROR();
    };
    callbacks.set(bev);
    bufferevent_enable(bev, EV_READ);
    warm_up(fds[1], [&] { return read; }, &sent);
    struct linger at_once = {1, 0};
    setsockopt(fds[1], SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(fds[1]);
    run_until([&] { return what != 0; });
    EXPECT_EQ(what, BEV_EVENT_READING | BEV_EVENT_ERROR);
    EXPECT_EQ(error, ECONNRESET);
}

TEST_P(Objects, AWriteToAPeerThatHasGoneIsAnError)
{
    int fds[2];
    connected(fds);
    struct bufferevent *bev = keep(fds[0]);
    short what = 0;
    Callbacks callbacks;
    callbacks.on_event = [&](struct bufferevent *, short event) { what = event; };
    callbacks.set(bev);
    bufferevent_enable(bev, EV_WRITE);
    run(2);
    close(fds[1]);
    for (int i = 0; i < 100 && what == 0; i++) {
        bufferevent_write(bev, "anybody?", 8);
        run(2);
        usleep(1000);
    }
    EXPECT_EQ(what, BEV_EVENT_WRITING | BEV_EVENT_ERROR);
    EXPECT_EQ(bufferevent_get_enabled(bev) & EV_WRITE, 0);
}

TEST_P(Objects, FreeInEachCallbackIsFine)
{
    for (int where = 0; where < 3; where++) {
        int fds[2];
        connected(fds);
        struct bufferevent *bev = make(base_, fds[0]);
        bool freed = false;
        Callbacks callbacks;
        auto end = [&](struct bufferevent *self) {
            bufferevent_write(self, "x", 1);
            bufferevent_free(self);
            freed = true;
        };
        size_t read = 0, sent = 0;
        callbacks.on_read = [&](struct bufferevent *self) { read += take(bufferevent_get_input(self)).size(); };
        callbacks.set(bev);
        bufferevent_enable(bev, EV_READ | EV_WRITE);
        warm_up(fds[1], [&] { return read; }, &sent);
        if (where == 0)
            callbacks.on_read = end;
        else if (where == 1)
            callbacks.on_write = end;
        else
            callbacks.on_event = [&](struct bufferevent *self, short) { end(self); };
        if (where == 1)
            bufferevent_write(bev, "y", 1);
        else if (where == 0)
            ASSERT_EQ(write(fds[1], "z", 1), 1);
        else
            shutdown(fds[1], SHUT_WR);
        run_until([&] { return freed; });
        run(2);
        EXPECT_TRUE(sees_end(fds[1]));
        close(fds[1]);
    }
}

/* ---------------------------------------------------------- timeouts and limits */

TEST_P(Objects, AReadTimeoutFires)
{
    int fds[2];
    connected(fds);
    fds_.push_back(fds[1]);
    struct bufferevent *bev = keep(fds[0]);
    size_t read = 0, sent = 0;
    short what = 0;
    Callbacks callbacks;
    callbacks.on_read = [&](struct bufferevent *self) { read += take(bufferevent_get_input(self)).size(); };
    callbacks.on_event = [&](struct bufferevent *, short event) { what = event; };
    callbacks.set(bev);
    bufferevent_enable(bev, EV_READ | EV_WRITE);
    warm_up(fds[1], [&] { return read; }, &sent);
    struct timeval soon = {0, 30000};
    bufferevent_set_timeouts(bev, &soon, nullptr);
    run_until([&] { return what != 0; });
    EXPECT_EQ(what, BEV_EVENT_READING | BEV_EVENT_TIMEOUT);
    EXPECT_EQ(bufferevent_get_enabled(bev) & EV_READ, 0);
    what = 0;
    bufferevent_enable(bev, EV_READ);
    ASSERT_EQ(write(fds[1], "back", 4), 4);
    sent += 4;
    run_until([&] { return read == sent; });
    EXPECT_EQ(what, 0);
}

TEST_P(Objects, AWriteTimeoutFires)
{
    int fds[2];
    connected(fds);
    fds_.push_back(fds[1]);
    struct bufferevent *bev = keep(fds[0]);
    short what = 0;
    Callbacks callbacks;
    callbacks.on_event = [&](struct bufferevent *, short event) { what = event; };
    callbacks.set(bev);
    struct timeval soon = {0, 30000};
    bufferevent_set_timeouts(bev, nullptr, &soon);
    bufferevent_enable(bev, EV_WRITE);
    std::string much(16 << 20, 'm');
    bufferevent_write(bev, much.data(), much.size());
    run_until([&] { return what != 0; });
    EXPECT_EQ(what, BEV_EVENT_WRITING | BEV_EVENT_TIMEOUT);
    EXPECT_GT(evbuffer_get_length(bufferevent_get_output(bev)), 0u);
}

TEST_P(Objects, AHighWatermarkHolds)
{
    for (size_t high : {100u, 1000u, 10000u}) {
        int fds[2];
        connected(fds);
        struct bufferevent *bev = make(base_, fds[0]);
        std::string got;
        size_t sent = 0, most = 0;
        Callbacks callbacks;
        callbacks.on_read = [&](struct bufferevent *self) {
            size_t length = evbuffer_get_length(bufferevent_get_input(self));
            most = length > most ? length : most;
            got += take(bufferevent_get_input(self));
        };
        callbacks.set(bev);
        bufferevent_enable(bev, EV_READ);
        warm_up(fds[1], [&] { return got.size(); }, &sent);
        bufferevent_setwatermark(bev, EV_READ, 0, high);
        got.clear();
        /* Nobody takes it. (A callback that leaves it would be called without end.) */
        bufferevent_setcb(bev, nullptr, nullptr, nullptr, nullptr);
        std::string bytes = text(30000, (unsigned)high);
        send_all(fds[1], bytes);
        run_until([&] { return evbuffer_get_length(bufferevent_get_input(bev)) >= high; });
        run(5);
        EXPECT_EQ(evbuffer_get_length(bufferevent_get_input(bev)), high) << "more than the mark";
        callbacks.set(bev);
        most = 0;
        got += take(bufferevent_get_input(bev));
        run_until([&] { return got.size() >= bytes.size(); });
        EXPECT_EQ(got, bytes);
        EXPECT_LE(most, high);
        bufferevent_free(bev);
        run(1);
        close(fds[1]);
    }
}

TEST_P(Objects, ALowWatermarkWaits)
{
    int fds[2], calls = 0;
    connected(fds);
    fds_.push_back(fds[1]);
    struct bufferevent *bev = keep(fds[0]);
    Callbacks callbacks;
    callbacks.on_read = [&](struct bufferevent *) { calls++; };
    callbacks.set(bev);
    bufferevent_setwatermark(bev, EV_READ, 10, 0);
    bufferevent_enable(bev, EV_READ);
    for (int i = 1; i <= 9; i++) {
        ASSERT_EQ(write(fds[1], "x", 1), 1);
        run_until([&] { return evbuffer_get_length(bufferevent_get_input(bev)) == (size_t)i; });
    }
    EXPECT_EQ(calls, 0);
    ASSERT_EQ(write(fds[1], "x", 1), 1);
    run_until([&] { return calls > 0; });
    EXPECT_EQ(calls, 1);
}

TEST_P(Objects, AWriteWatermarkDecidesWhoIsTold)
{
    int fds[2], calls = 0;
    connected(fds);
    fds_.push_back(fds[1]);
    struct bufferevent *bev = keep(fds[0]);
    Callbacks callbacks;
    callbacks.on_write = [&](struct bufferevent *self) {
        calls++;
        EXPECT_LE(evbuffer_get_length(bufferevent_get_output(self)), 1000u);
    };
    callbacks.set(bev);
    bufferevent_setwatermark(bev, EV_WRITE, 1000, 0);
    std::string bytes = text(2000000, 1);
    bufferevent_write(bev, bytes.data(), bytes.size());
    EXPECT_EQ(receive(fds[1], bytes.size()), bytes);
    run_until([&] { return calls > 0; });
}

TEST_P(Objects, ALimitOfASingleReadHolds)
{
    int fds[2];
    connected(fds);
    fds_.push_back(fds[1]);
    struct bufferevent *bev = keep(fds[0]);
    std::string got;
    size_t sent = 0, most = 0;
    Callbacks callbacks;
    callbacks.on_read = [&](struct bufferevent *self) {
        size_t length = evbuffer_get_length(bufferevent_get_input(self));
        most = length > most ? length : most;
        got += take(bufferevent_get_input(self));
    };
    callbacks.set(bev);
    bufferevent_enable(bev, EV_READ);
    warm_up(fds[1], [&] { return got.size(); }, &sent);
    bufferevent_set_max_single_read(bev, 50);
    most = 0;
    for (unsigned i = 0; i < 20; i++) {
        std::string bytes = text(333, i);
        got.clear();
        send_all(fds[1], bytes);
        run_until([&] { return got.size() == bytes.size(); });
        EXPECT_EQ(got, bytes);
    }
    EXPECT_EQ(most, 50u);
    EXPECT_EQ(bufferevent_get_max_single_read(bev), 50);
}

TEST_P(Objects, ARateLimitHoldsForReading)
{
    int fds[2];
    connected(fds);
    fds_.push_back(fds[1]);
    struct bufferevent *bev = keep(fds[0]);
    std::string got;
    size_t sent = 0, most = 0;
    Callbacks callbacks;
    callbacks.on_read = [&](struct bufferevent *self) {
        size_t length = evbuffer_get_length(bufferevent_get_input(self));
        most = length > most ? length : most;
        got += take(bufferevent_get_input(self));
    };
    callbacks.set(bev);
    bufferevent_enable(bev, EV_READ);
    warm_up(fds[1], [&] { return got.size(); }, &sent);
    struct timeval tick = {0, 20000};
    struct ev_token_bucket_cfg *limit = ev_token_bucket_cfg_new(500, 500, 500, 500, &tick);
    ASSERT_EQ(bufferevent_set_rate_limit(bev, limit), 0);
    most = 0;
    got.clear();
    std::string bytes = text(3000, 4);
    send_all(fds[1], bytes);
    run_until([&] { return got.size() == bytes.size(); });
    EXPECT_EQ(got, bytes);
    EXPECT_LE(most, 500u);
    bufferevent_set_rate_limit(bev, nullptr);
    ev_token_bucket_cfg_free(limit);
}

TEST_P(Objects, ARateLimitHoldsForWriting)
{
    int fds[2];
    connected(fds);
    fds_.push_back(fds[1]);
    struct bufferevent *bev = keep(fds[0]);
    struct timeval tick = {0, 20000};
    struct ev_token_bucket_cfg *limit = ev_token_bucket_cfg_new(500, 500, 500, 500, &tick);
    ASSERT_EQ(bufferevent_set_rate_limit(bev, limit), 0);
    bufferevent_enable(bev, EV_WRITE);
    std::string bytes = text(3000, 4), got;
    bufferevent_write(bev, bytes.data(), bytes.size());
    run(1);
    int waiting = 0;
    ioctl(fds[1], FIONREAD, &waiting);
    EXPECT_LE(waiting, 500);
    EXPECT_GE(evbuffer_get_length(bufferevent_get_output(bev)), bytes.size() - 500);
    char room[4096];
    run_until([&] {
        ssize_t count = read(fds[1], room, sizeof room);
        if (count > 0)
            got.append(room, (size_t)count);
        EXPECT_LE(count, 1000) << "two ticks at the most";
        return got.size() == bytes.size();
    });
    EXPECT_EQ(got, bytes);
    bufferevent_set_rate_limit(bev, nullptr);
    ev_token_bucket_cfg_free(limit);
}

TEST_P(Objects, AGroupOfRateLimitsIsShared)
{
    struct timeval tick = {0, 20000};
    struct ev_token_bucket_cfg *limit = ev_token_bucket_cfg_new(1000, 1000, 1000, 1000, &tick);
    struct bufferevent_rate_limit_group *group = bufferevent_rate_limit_group_new(base_, limit);
    std::vector<int> peers;
    std::string got[4];
    Callbacks callbacks[4];
    std::vector<struct bufferevent *> members;
    for (int i = 0; i < 4; i++) {
        int fds[2];
        connected(fds);
        fds_.push_back(fds[1]);
        peers.push_back(fds[1]);
        members.push_back(keep(fds[0]));
        callbacks[i].on_read = [&got, i](struct bufferevent *self) { got[i] += take(bufferevent_get_input(self)); };
        callbacks[i].set(members.back());
        EXPECT_EQ(bufferevent_add_to_rate_limit_group(members.back(), group), 0);
        bufferevent_enable(members.back(), EV_READ);
    }
    std::string bytes = text(1500, 4);
    for (int peer : peers)
        send_all(peer, bytes);
    run_until([&] {
        for (int i = 0; i < 4; i++)
            if (got[i].size() < bytes.size())
                return false;
        return true;
    });
    for (int i = 0; i < 4; i++)
        EXPECT_EQ(got[i], bytes);
    uint64_t read = 0, written = 0;
    bufferevent_rate_limit_group_get_totals(group, &read, &written);
    EXPECT_EQ(read, 4 * bytes.size());
    for (auto *bev : members)
        bufferevent_remove_from_rate_limit_group(bev);
    bufferevent_rate_limit_group_free(group);
    ev_token_bucket_cfg_free(limit);
}

TEST_P(Objects, DisabledReadingDeliversNothingAndLosesNothing)
{
    int fds[2];
    connected(fds);
    fds_.push_back(fds[1]);
    struct bufferevent *bev = keep(fds[0]);
    std::string got, want;
    size_t sent = 0;
    Callbacks callbacks;
    callbacks.on_read = [&](struct bufferevent *self) { got += take(bufferevent_get_input(self)); };
    callbacks.set(bev);
    bufferevent_enable(bev, EV_READ | EV_WRITE);
    warm_up(fds[1], [&] { return got.size(); }, &sent);
    got.clear();
    for (unsigned i = 0; i < 40; i++) {
        std::string bytes = text(1 + i * 97, i);
        want += bytes;
        if (i % 3 == 0)
            send_all(fds[1], bytes);
        bufferevent_disable(bev, i % 2 ? EV_READ : EV_READ | EV_WRITE);
        size_t before = got.size();
        if (i % 3 != 0)
            send_all(fds[1], bytes);
        run(2);
        EXPECT_EQ(got.size(), before);
        EXPECT_EQ(evbuffer_get_length(bufferevent_get_input(bev)), 0u);
        bufferevent_enable(bev, EV_READ | EV_WRITE);
        run_until([&] { return got.size() == want.size(); });
    }
    EXPECT_EQ(got, want);
}

/* evhttp does so in each request, and enables it again with its answer, or later. */
TEST_P(Objects, ReadingDisabledInACallbackStaysSoAfterIt)
{
    int fds[2];
    connected(fds);
    fds_.push_back(fds[1]);
    struct bufferevent *bev = keep(fds[0]);
    std::string got, want;
    size_t sent = 0;
    Callbacks callbacks;
    callbacks.on_read = [&](struct bufferevent *self) { got += take(bufferevent_get_input(self)); };
    callbacks.set(bev);
    bufferevent_enable(bev, EV_READ | EV_WRITE);
    warm_up(fds[1], [&] { return got.size(); }, &sent);
    got.clear();
    bool enables = false;
    callbacks.on_read = [&](struct bufferevent *self) {
        got += take(bufferevent_get_input(self));
        bufferevent_disable(self, EV_READ);
        if (enables)
            bufferevent_enable(self, EV_READ);
    };
    for (unsigned i = 0; i < 60; i++) {
        std::string bytes = text(1 + i * 97, i);
        enables = i % 3 == 0;
        want += bytes;
        send_all(fds[1], bytes);
        run_until([&] { return got.size() >= want.size() || !(bufferevent_get_enabled(bev) & EV_READ); });
        if (!enables) {
            size_t before = got.size();
            want += "more";
            send_all(fds[1], "more");
            run(3);
            EXPECT_EQ(got.size(), before) << i;
            EXPECT_EQ(evbuffer_get_length(bufferevent_get_input(bev)), 0u) << i;
            enables = true;
            bufferevent_enable(bev, EV_READ);
        }
        run_until([&] { return got.size() >= want.size(); });
        ASSERT_EQ(got, want) << i;
    }
}

TEST_P(Objects, AReadTimeoutRestsWhileACallbackHasReadingDisabled)
{
    int fds[2];
    connected(fds);
    fds_.push_back(fds[1]);
    struct bufferevent *bev = keep(fds[0]);
    size_t read = 0, sent = 0;
    int timeouts = 0;
    struct timeval soon = {0, 20000};
    Callbacks callbacks;
    callbacks.on_read = [&](struct bufferevent *self) { read += take(bufferevent_get_input(self)).size(); };
    callbacks.on_event = [&](struct bufferevent *, short what) { timeouts += (what & BEV_EVENT_TIMEOUT) != 0; };
    callbacks.set(bev);
    bufferevent_enable(bev, EV_READ | EV_WRITE);
    warm_up(fds[1], [&] { return read; }, &sent);
    callbacks.on_read = [&](struct bufferevent *self) {
        read += take(bufferevent_get_input(self)).size();
        bufferevent_set_timeouts(self, &soon, nullptr);
        bufferevent_disable(self, EV_READ);
    };
    ASSERT_EQ(write(fds[1], "last", 4), 4);
    run_until([&] { return read == sent + 4; });
    bool passed = false;
    struct timeval later = {0, 80000};
    event_base_once(base_, -1, EV_TIMEOUT, [](evutil_socket_t, short, void *flag) { *static_cast<bool *>(flag) = true; },
                    &passed, &later);
    run_until([&] { return passed; });
    EXPECT_EQ(timeouts, 0);
    bufferevent_enable(bev, EV_READ);
    run_until([&] { return timeouts > 0; });
}

TEST_P(Objects, ThePeerSeesACloseInACallbackThatDisabledReading)
{
    for (int how = 0; how < 6; how++) {
        int fds[2];
        connected(fds);
        struct bufferevent *bev = make(base_, fds[0], 0);
        size_t read = 0, sent = 0;
        bool closed = false;
        Callbacks callbacks;
        callbacks.on_read = [&](struct bufferevent *self) { read += take(bufferevent_get_input(self)).size(); };
        callbacks.set(bev);
        bufferevent_enable(bev, EV_READ | EV_WRITE);
        warm_up(fds[1], [&] { return read; }, &sent);
        callbacks.on_read = [&](struct bufferevent *self) {
            bufferevent_disable(self, EV_READ);
            switch (how) {
            case 0:
                bufferevent_free(self);
                break;
            case 1:
                bufferevent_setfd(self, -1);
                break;
            case 2:
                bufferevent_disable(self, EV_WRITE);
                break;
            case 3:
                bufferevent_disable(self, EV_READ | EV_WRITE);
                break;
            case 4:
                EXPECT_EQ(bufferevent_getfd(self), fds[0]);
                break;
            default: /* in two halves */
                bufferevent_enable(self, EV_READ);
                bufferevent_disable(self, EV_WRITE);
                bufferevent_disable(self, EV_READ);
                bufferevent_disable(self, EV_WRITE);
            }
            close(fds[0]);
            EXPECT_TRUE(sees_end(fds[1])) << how;
            closed = true;
        };
        ASSERT_EQ(write(fds[1], "last", 4), 4);
        run_until([&] { return closed; });
        if (how > 0)
            bufferevent_free(bev);
        run(2);
        close(fds[1]);
    }
}

TEST_P(Objects, DisabledWritingSendsNothing)
{
    int fds[2];
    connected(fds);
    fds_.push_back(fds[1]);
    struct bufferevent *bev = keep(fds[0]);
    bufferevent_enable(bev, EV_WRITE);
    bufferevent_write(bev, "a", 1);
    EXPECT_EQ(receive(fds[1], 1), "a");
    bufferevent_disable(bev, EV_WRITE);
    bufferevent_write(bev, "b", 1);
    run(3);
    char byte;
    EXPECT_EQ(read(fds[1], &byte, 1), -1);
    bufferevent_enable(bev, EV_WRITE);
    EXPECT_EQ(receive(fds[1], 1), "b");
    bufferevent_write(bev, "c", 1); /* and taken back before the loop has come by */
    bufferevent_disable(bev, EV_WRITE);
    run(3);
    EXPECT_EQ(read(fds[1], &byte, 1), -1);
    EXPECT_EQ(evbuffer_get_length(bufferevent_get_output(bev)), 1u);
}

TEST_P(Objects, AnEventOfTheProgramsOwnOnTheFdGoesOn)
{
    int fds[2], calls = 0;
    connected(fds);
    fds_.push_back(fds[1]);
    struct bufferevent *bev = keep(fds[0]);
    size_t read = 0, sent = 0;
    Callbacks callbacks;
    callbacks.on_read = [&](struct bufferevent *self) { read += take(bufferevent_get_input(self)).size(); };
    callbacks.set(bev);
    bufferevent_enable(bev, EV_READ | EV_WRITE);
    warm_up(fds[1], [&] { return read; }, &sent);
    struct event *event = event_new(base_, fds[0], EV_READ | EV_PERSIST, [](evutil_socket_t fd, short, void *count) {
        char byte;
        *static_cast<int *>(count) += recv(fd, &byte, 1, MSG_DONTWAIT) == 1;
    }, &calls);
    event_add(event, nullptr);
    bufferevent_disable(bev, EV_READ | EV_WRITE);
    for (int i = 1; i <= 6; i++) {
        ASSERT_EQ(write(fds[1], "x", 1), 1);
        run_until([&] { return calls == i; });
    }
    event_free(event);
    bufferevent_enable(bev, EV_READ);
    ASSERT_EQ(write(fds[1], "back", 4), 4);
    run_until([&] { return read == sent + 4; });
}

/* ----------------------------------------------------------- the rest of the calls */

TEST_P(Objects, ItIsOfTypeSocket)
{
    int fds[2], next[2];
    connected(fds);
    connected(next);
    fds_.insert(fds_.end(), {fds[0], fds[1], next[1]});
    struct bufferevent *bev = keep(fds[0], BEV_OPT_CLOSE_ON_FREE);
    EXPECT_EQ(bufferevent_getfd(bev), fds[0]);
    EXPECT_EQ(bufferevent_get_base(bev), base_);
    EXPECT_EQ(bufferevent_get_underlying(bev), nullptr);
    EXPECT_EQ(bufferevent_get_enabled(bev), EV_WRITE);
    EXPECT_EQ(bufferevent_priority_set(bev, 0), 0);
    EXPECT_EQ(bufferevent_get_priority(bev), 0);
    EXPECT_EQ(bufferevent_flush(bev, EV_READ | EV_WRITE, BEV_FLUSH), 0);
    size_t low = 1, high = 1;
    bufferevent_setwatermark(bev, EV_READ, 3, 7);
    EXPECT_EQ(bufferevent_getwatermark(bev, EV_READ, &low, &high), 0);
    EXPECT_EQ(low, 3u);
    EXPECT_EQ(high, 7u);
    bufferevent_lock(bev);
    bufferevent_unlock(bev);
    bufferevent_incref(bev);
    EXPECT_EQ(bufferevent_decref(bev), 0);
    EXPECT_EQ(bufferevent_setfd(bev, next[0]), 0);
    EXPECT_EQ(bufferevent_getfd(bev), next[0]);
    EXPECT_EQ(bufferevent_socket_get_dns_error(bev), 0);
    EXPECT_EQ(bufferevent_get_max_to_read(bev), 16384);
    EXPECT_EQ(bufferevent_get_max_to_write(bev), 16384);
}

TEST_P(Objects, AnotherFdGoesOnWithTheOutput)
{
    int fds[2], next[2];
    connected(fds);
    connected(next);
    fds_.insert(fds_.end(), {fds[0], fds[1], next[1]});
    struct bufferevent *bev = keep(fds[0], 0);
    std::string got;
    size_t sent = 0;
    Callbacks callbacks;
    callbacks.on_read = [&](struct bufferevent *self) { got += take(bufferevent_get_input(self)); };
    callbacks.set(bev);
    bufferevent_enable(bev, EV_READ | EV_WRITE);
    warm_up(fds[1], [&] { return got.size(); }, &sent);
    bufferevent_disable(bev, EV_WRITE);
    bufferevent_write(bev, "kept", 4);
    EXPECT_EQ(bufferevent_setfd(bev, next[0]), 0);
    bufferevent_enable(bev, EV_WRITE);
    EXPECT_EQ(receive(next[1], 4), "kept");
    got.clear();
    ASSERT_EQ(write(next[1], "here", 4), 4);
    run_until([&] { return got.size() == 4; });
    EXPECT_EQ(got, "here");
    fds_.push_back(next[0]);
}

TEST_P(Objects, DeferredAndUnlockedCallbacksCome)
{
    for (int options : {BEV_OPT_DEFER_CALLBACKS + 0, BEV_OPT_THREADSAFE | BEV_OPT_DEFER_CALLBACKS | BEV_OPT_UNLOCK_CALLBACKS,
                        BEV_OPT_THREADSAFE + 0}) {
        int fds[2];
        connected(fds);
        struct bufferevent *bev = make(base_, fds[0], options | BEV_OPT_CLOSE_ON_FREE);
        Callbacks callbacks;
        callbacks.on_read = [](struct bufferevent *self) { bufferevent_write_buffer(self, bufferevent_get_input(self)); };
        callbacks.set(bev);
        bufferevent_enable(bev, EV_READ | EV_WRITE);
        for (unsigned i = 0; i < 20; i++) {
            std::string bytes = text(1 + i * 200, i);
            send_all(fds[1], bytes);
            ASSERT_EQ(receive(fds[1], bytes.size()), bytes);
        }
        bufferevent_free(bev);
        run(2);
        EXPECT_TRUE(sees_end(fds[1]));
        close(fds[1]);
    }
    errno = 0;
    EXPECT_EQ(make(base_, -1, BEV_OPT_UNLOCK_CALLBACKS), nullptr);
}

TEST_P(Objects, AnotherThreadWrites)
{
    int fds[2];
    connected(fds);
    fds_.push_back(fds[1]);
    struct bufferevent *bev = keep(fds[0], BEV_OPT_CLOSE_ON_FREE | BEV_OPT_THREADSAFE);
    std::atomic<size_t> read{0};
    size_t sent = 0;
    Callbacks callbacks;
    callbacks.on_read = [&](struct bufferevent *self) { read += take(bufferevent_get_input(self)).size(); };
    callbacks.set(bev);
    bufferevent_enable(bev, EV_READ | EV_WRITE);
    warm_up(fds[1], [&] { return read.load(); }, &sent);
    std::string want;
    for (unsigned i = 0; i < 200; i++)
        want += text(1 + i % 300, i);
    std::thread other([&] {
        for (unsigned i = 0; i < 200; i++) {
            std::string bytes = text(1 + i % 300, i);
            bufferevent_write(bev, bytes.data(), bytes.size());
            if (i % 10 == 0) {
                bufferevent_disable(bev, EV_READ);
                bufferevent_enable(bev, EV_READ);
            }
        }
    });
    EXPECT_EQ(receive(fds[1], want.size()), want);
    other.join();
}

/* As libevent's loop does between two events. */
TEST_P(Objects, AfterALoopbreakNoCallbackComes)
{
    const int count = 6;
    std::vector<int> peers;
    int calls = 0;
    Callbacks callbacks;
    callbacks.on_write = [&](struct bufferevent *) {
        calls++;
        event_base_loopbreak(base_);
    };
    for (int i = 0; i < count; i++) {
        int fds[2];
        connected(fds);
        fds_.push_back(fds[1]);
        peers.push_back(fds[1]);
        struct bufferevent *bev = keep(fds[0]);
        callbacks.set(bev);
        bufferevent_write(bev, "once", 4);
    }
    for (int i = 1; i <= count; i++) {
        event_base_loop(base_, EVLOOP_ONCE);
        EXPECT_EQ(calls, i);
    }
    for (int peer : peers)
        EXPECT_EQ(receive(peer, 4), "once");
}

TEST_P(Objects, AFileGoesOut)
{
    int fds[2];
    connected(fds);
    fds_.push_back(fds[1]);
    struct bufferevent *bev = keep(fds[0]);
    bufferevent_enable(bev, EV_WRITE);
    char name[] = "/tmp/ringpoll-test-XXXXXX";
    int file = mkstemp(name);
    ASSERT_GE(file, 0);
    unlink(name);
    std::string bytes = text(300000, 8);
    ASSERT_EQ(write(file, bytes.data(), bytes.size()), (ssize_t)bytes.size());
    bufferevent_write(bev, "head", 4);
    ASSERT_EQ(evbuffer_add_file(bufferevent_get_output(bev), file, 0, (ev_off_t)bytes.size()), 0);
    bufferevent_write(bev, "tail", 4);
    EXPECT_EQ(receive(fds[1], bytes.size() + 8), "head" + bytes + "tail");
}

/* What libevent's own never does: it reads once. */
TEST_P(Objects, ABlockingSocketDoesNotBlockTheLoop)
{
    int fds[2];
    connected(fds);
    fds_.push_back(fds[1]);
    fcntl(fds[0], F_SETFL, 0);
    struct bufferevent *bev = keep(fds[0]);
    std::atomic<size_t> read{0};
    Callbacks callbacks;
    callbacks.on_read = [&](struct bufferevent *self) { read += take(bufferevent_get_input(self)).size(); };
    callbacks.set(bev);
    bufferevent_enable(bev, EV_READ);
    /* Among them what fills the room that an evbuffer makes. */
    for (size_t length : {4096u, 4048u, 8144u, 16384u, 16336u, 32720u, 65488u, 65536u}) {
        read = 0;
        size_t seen = 0;
        send_all(fds[1], text(length, 1));
        std::thread helper([&] { /* frees a loop that is stuck */
            for (int i = 0; i < 2000 && read < length; i++)
                usleep(1000);
            seen = read;
            if (seen < length) {
                EXPECT_EQ(write(fds[1], "x", 1), 1);
            }
        });
        run_until([&] { return read >= length; });
        helper.join();
        EXPECT_EQ(seen, length);
    }
}

/* In a callback of the input's, which runs while bytes are read. */
TEST_P(Objects, NothingIsReadBehindADisable)
{
    for (int how = 0; how < 2; how++) {
        int fds[2];
        connected(fds);
        fds_.push_back(fds[1]);
        struct bufferevent *bev = keep(fds[0]);
        struct Tools {
            struct bufferevent *bev;
            size_t read = 0, stopped_at = 0;
            bool stops = false;
        } tools;
        tools.bev = bev;
        evbuffer_add_cb(bufferevent_get_input(bev), [](struct evbuffer *buffer, const struct evbuffer_cb_info *info, void *argument) {
            auto *is = static_cast<Tools *>(argument);
            if (info->n_added == 0 || !is->stops)
                return;
            is->stops = false;
            is->stopped_at = evbuffer_get_length(buffer);
            bufferevent_disable(is->bev, EV_READ);
        }, &tools);
        size_t sent = 0;
        Callbacks callbacks;
        callbacks.on_read = [&](struct bufferevent *self) { tools.read += take(bufferevent_get_input(self)).size(); };
        callbacks.set(bev);
        bufferevent_enable(bev, EV_READ);
        if (how == 1)
            warm_up(fds[1], [&] { return tools.read; }, &sent);
        bufferevent_setcb(bev, nullptr, nullptr, nullptr, nullptr);
        tools.stops = true;
        std::string bytes = text(60000, 3);
        send_all(fds[1], bytes);
        run_until([&] { return tools.stopped_at > 0; });
        run(3);
        EXPECT_EQ(evbuffer_get_length(bufferevent_get_input(bev)), tools.stopped_at);
        bufferevent_enable(bev, EV_READ);
        run_until([&] { return evbuffer_get_length(bufferevent_get_input(bev)) == bytes.size(); });
        EXPECT_EQ(take(bufferevent_get_input(bev)), bytes);
    }
}

TEST_P(Objects, AWriteTimeoutBeginsAnewWithAnEnable)
{
    int fds[2];
    connected(fds);
    fds_.push_back(fds[1]);
    struct bufferevent *bev = keep(fds[0]);
    short what = 0;
    Callbacks callbacks;
    callbacks.on_event = [&](struct bufferevent *, short event) { what = event; };
    callbacks.set(bev);
    struct timeval hour = {3600, 0};
    bufferevent_set_timeouts(bev, nullptr, &hour);
    bufferevent_enable(bev, EV_WRITE);
    std::string much(16 << 20, 'm');
    bufferevent_write(bev, much.data(), much.size());
    run(5);
    struct timeval before = {}, after = {};
    ASSERT_TRUE(event_pending(&bev->ev_write, EV_WRITE | EV_TIMEOUT, &before));
    usleep(20000);
    run(1); /* the base's clock */
    bufferevent_enable(bev, EV_WRITE);
    ASSERT_TRUE(event_pending(&bev->ev_write, EV_WRITE | EV_TIMEOUT, &after));
    struct timeval moved;
    evutil_timersub(&after, &before, &moved);
    EXPECT_GT(moved.tv_sec * 1000000 + moved.tv_usec, 5000);
}

TEST_P(Objects, AWriteThatUsesUpTheRateIsTold)
{
    for (int how = 0; how < 2; how++) {
        int fds[2], writes = 0;
        connected(fds);
        struct bufferevent *bev = make(base_, fds[0]);
        Callbacks callbacks;
        struct timeval tick = {3600, 0};
        struct ev_token_bucket_cfg *limit = ev_token_bucket_cfg_new(500, 500, 500, 500, &tick);
        struct bufferevent_rate_limit_group *group = nullptr;
        if (how == 0) {
            ASSERT_EQ(bufferevent_set_rate_limit(bev, limit), 0);
        } else {
            group = bufferevent_rate_limit_group_new(base_, limit);
            ASSERT_EQ(bufferevent_add_to_rate_limit_group(bev, group), 0);
        }
        bufferevent_enable(bev, EV_WRITE);
        run(2);
        callbacks.on_write = [&](struct bufferevent *) { writes++; };
        callbacks.set(bev);
        std::string bytes = text(500, 4);
        bufferevent_write(bev, bytes.data(), bytes.size());
        EXPECT_EQ(receive(fds[1], bytes.size()), bytes);
        run_until([&] { return writes > 0; });
        EXPECT_EQ(writes, 1);
        bufferevent_write(bev, "more", 4);
        run(3);
        EXPECT_EQ(writes, 1);
        EXPECT_EQ(evbuffer_get_length(bufferevent_get_output(bev)), 4u);
        if (group) {
            bufferevent_remove_from_rate_limit_group(bev);
            bufferevent_rate_limit_group_free(group);
        } else {
            bufferevent_set_rate_limit(bev, nullptr);
        }
        EXPECT_EQ(receive(fds[1], 4), "more");
        run_until([&] { return writes == 2; });
        bufferevent_free(bev);
        run(1);
        ev_token_bucket_cfg_free(limit);
        close(fds[1]);
    }
}

/* Where nothing of a bufferevent is added and nothing waits, the program may close the fd. */
TEST_P(Objects, AClosedNumberIsNobodysWhereNothingIsAdded)
{
    for (int how = 0; how < 8; how++) {
        int fds[2], next[2], neighbours[2][2];
        connected(fds);
        connected(neighbours[0]);
        connected(neighbours[1]);
        struct bufferevent *first = make(base_, fds[0], 0);
        bufferevent_enable(first, EV_WRITE);
        if (how & 1) { /* it was full once */
            std::string much = text(8 << 20, 1);
            bufferevent_write(first, much.data(), much.size());
            EXPECT_EQ(receive(fds[1], much.size()), much);
        } else {
            bufferevent_write(first, "x", 1);
            EXPECT_EQ(receive(fds[1], 1), "x");
        }
        run(3);
        close(fds[0]);
        close(fds[1]);
        connected(next);
        if (next[0] != fds[0]) {
            ASSERT_EQ(dup2(next[0], fds[0]), fds[0]);
            close(next[0]);
        }
        struct Reader {
            size_t read = 0;
        } reader;
        Callbacks callbacks, neighbour;
        callbacks.on_read = [&](struct bufferevent *self) { reader.read += take(bufferevent_get_input(self)).size(); };
        struct bufferevent *second = nullptr, *around[2];
        struct event *event = nullptr;
        for (int i = 0; i < 2; i++) {
            around[i] = make(base_, neighbours[i][0]);
            neighbour.set(around[i]);
            bufferevent_enable(around[i], EV_READ);
        }
        if (how & 4) {
            event = event_new(base_, fds[0], EV_READ | EV_PERSIST, [](evutil_socket_t fd, short, void *argument) {
                char bytes[64];
                ssize_t count = ::read(fd, bytes, sizeof bytes);
                static_cast<Reader *>(argument)->read += count > 0 ? (size_t)count : 0;
            }, &reader);
            event_add(event, nullptr);
        } else {
            second = make(base_, fds[0], 0);
            callbacks.set(second);
            bufferevent_enable(second, EV_READ | EV_WRITE);
        }
        size_t sent = 0;
        warm_up(next[1], [&] { return reader.read; }, &sent);
        /* With bytes for it on their way: in a callback before its own. */
        neighbour.on_read = [&](struct bufferevent *self) {
            take(bufferevent_get_input(self));
            if (!first)
                return;
            if (how & 2)
                bufferevent_setfd(first, -1);
            bufferevent_free(first);
            first = nullptr;
        };
        for (int i = 0; i < 3; i++) {
            ASSERT_EQ(write(neighbours[0][1], "a", 1), 1);
            ASSERT_EQ(write(next[1], "more", 4), 4);
            ASSERT_EQ(write(neighbours[1][1], "b", 1), 1);
            sent += 4;
            run_until([&] { return !first && reader.read == sent; });
            ASSERT_EQ(reader.read, sent) << how;
        }
        if (second)
            bufferevent_free(second);
        if (event)
            event_free(event);
        for (int i = 0; i < 2; i++) {
            bufferevent_free(around[i]);
            close(neighbours[i][1]);
        }
        run(1);
        close(fds[0]);
        close(next[1]);
    }
}

TEST_P(Objects, AnEventOfTheProgramsOwnStandsBesideABufferevent)
{
    for (int how = 0; how < 4; how++) {
        int fds[2], calls = 0;
        connected(fds);
        struct bufferevent *bev = make(base_, fds[0], 0);
        struct event *event = event_new(base_, fds[0], EV_READ | EV_PERSIST, [](evutil_socket_t, short, void *count) {
            ++*static_cast<int *>(count);
        }, &calls);
        size_t read = 0, sent = 0;
        Callbacks callbacks;
        callbacks.on_read = [&](struct bufferevent *self) { read += take(bufferevent_get_input(self)).size(); };
        callbacks.set(bev);
        event_add(event, nullptr);
        run(2);
        bufferevent_enable(bev, how == 0 ? EV_WRITE : EV_READ | EV_WRITE);
        bufferevent_write(bev, "out", 3);
        EXPECT_EQ(receive(fds[1], 3), "out");
        if (how > 0) /* both hear of it */
            for (int i = 1; i < 8; i++) {
                ASSERT_EQ(write(fds[1], "four", 4), 4);
                sent += 4;
                run_until([&] { return calls >= i && read == sent; });
                ASSERT_EQ(read, sent) << how;
            }
        if (how == 2)
            bufferevent_setfd(bev, -1);
        else if (how == 3)
            bufferevent_free(bev);
        else
            bufferevent_disable(bev, EV_READ | EV_WRITE);
        run(2);
        for (int i = 0; i < 3; i++) {
            int before = calls;
            char bytes[8];
            ASSERT_EQ(write(fds[1], "own", 3), 3);
            run_until([&] { return calls > before; });
            EXPECT_EQ(::read(fds[0], bytes, sizeof bytes), 3) << how;
        }
        event_free(event);
        if (how != 3)
            bufferevent_free(bev);
        run(1);
        close(fds[0]);
        close(fds[1]);
    }
}

/* --------------------------------------------------------------------- connecting */

class Connects : public Objects {
protected:
    struct Server {
        struct evconnlistener *listener = nullptr;
        std::vector<struct bufferevent *> served;
        Callbacks callbacks;
        Connects *test = nullptr;
    } server_;
    std::string path_;
    struct sockaddr_storage address_ = {};
    socklen_t address_length_ = 0;

    static void accepted(struct evconnlistener *listener, evutil_socket_t fd, struct sockaddr *, int, void *argument)
    {
        auto *server = static_cast<Server *>(argument);
        struct bufferevent *bev = server->test->make(evconnlistener_get_base(listener), fd);
        server->callbacks.set(bev);
        bufferevent_enable(bev, EV_READ | EV_WRITE);
        server->served.push_back(bev);
    }
    struct evconnlistener *listen_on(unsigned flags, evconnlistener_cb callback, void *argument, int backlog = -1)
    {
        struct evconnlistener *made;
        if (family() == AF_UNIX) {
            auto *address = (struct sockaddr_un *)&address_;
            address->sun_family = AF_UNIX;
            static int serial;
            snprintf(address->sun_path + 1, sizeof address->sun_path - 1, "ringpoll-test-%d-%d", getpid(), serial++);
            address_length_ = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(address->sun_path + 1));
        } else if (address_length_ == 0) {
            auto *address = (struct sockaddr_in *)&address_;
            address->sin_family = AF_INET;
            address->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
            address_length_ = sizeof *address;
        }
        made = (on_ring() ? ringpoll_listener_new_bind : evconnlistener_new_bind)(
            base_, callback, argument, flags, backlog, (struct sockaddr *)&address_, (int)address_length_);
        if (made && family() == AF_INET)
            getsockname(evconnlistener_get_fd(made), (struct sockaddr *)&address_, &address_length_);
        return made;
    }
    void serve()
    {
        server_.test = this;
        server_.callbacks.on_read = [](struct bufferevent *self) {
            bufferevent_write_buffer(self, bufferevent_get_input(self));
        };
        server_.listener = listen_on(LEV_OPT_CLOSE_ON_FREE | LEV_OPT_CLOSE_ON_EXEC, accepted, &server_);
        ASSERT_NE(server_.listener, nullptr) << strerror(errno);
    }
    int dial()
    {
        int fd = socket(family(), SOCK_STREAM | SOCK_CLOEXEC, 0);
        EXPECT_EQ(connect(fd, (struct sockaddr *)&address_, address_length_), 0) << strerror(errno);
        fcntl(fd, F_SETFL, O_NONBLOCK);
        return fd;
    }
    void TearDown() override
    {
        for (auto *bev : server_.served)
            bufferevent_free(bev);
        if (server_.listener)
            evconnlistener_free(server_.listener);
        Objects::TearDown();
    }
};

TEST_P(Connects, AConnectIsToldAndWritesGoOut)
{
    serve();
    struct bufferevent *client = keep(-1);
    std::string got;
    short what = 0;
    int writes = 0;
    Callbacks callbacks;
    callbacks.on_read = [&](struct bufferevent *self) { got += take(bufferevent_get_input(self)); };
    callbacks.on_event = [&](struct bufferevent *, short event) { what |= event; };
    callbacks.on_write = [&](struct bufferevent *) { writes++; };
    callbacks.set(client);
    bufferevent_enable(client, EV_READ | EV_WRITE);
    bufferevent_write(client, "early", 5);
    ASSERT_EQ(bufferevent_socket_connect(client, (struct sockaddr *)&address_, (int)address_length_), 0);
    run_until([&] { return got.size() == 5; });
    EXPECT_EQ(got, "early");
    EXPECT_EQ(what, BEV_EVENT_CONNECTED);
    EXPECT_EQ(writes, 1);
    for (unsigned i = 0; i < 20; i++) {
        std::string bytes = text(1 + i * 300, i);
        got.clear();
        bufferevent_write(client, bytes.data(), bytes.size());
        run_until([&] { return got.size() == bytes.size(); });
        ASSERT_EQ(got, bytes);
    }
}

TEST_P(Connects, AConnectWithoutOutputTellsOfNoWrite)
{
    serve();
    struct bufferevent *client = keep(-1);
    short what = 0;
    int writes = 0;
    Callbacks callbacks;
    callbacks.on_event = [&](struct bufferevent *, short event) { what |= event; };
    callbacks.on_write = [&](struct bufferevent *) { writes++; };
    callbacks.set(client);
    ASSERT_EQ(bufferevent_socket_connect(client, (struct sockaddr *)&address_, (int)address_length_), 0);
    run_until([&] { return what != 0; });
    run(3);
    EXPECT_EQ(what, BEV_EVENT_CONNECTED);
    EXPECT_EQ(writes, family() == AF_UNIX) << "connected at once: libevent calls it for that";
}

TEST_P(Connects, ARefusedConnectIsAnError)
{
    if (family() == AF_UNIX)
        GTEST_SKIP() << "refused at once";
    serve();
    evconnlistener_free(server_.listener);
    server_.listener = nullptr;
    run(2);
    struct bufferevent *client = keep(-1);
    short what = 0;
    Callbacks callbacks;
    callbacks.on_event = [&](struct bufferevent *, short event) { what = event; };
    callbacks.set(client);
    bufferevent_enable(client, EV_READ | EV_WRITE);
    ASSERT_EQ(bufferevent_socket_connect(client, (struct sockaddr *)&address_, (int)address_length_), 0);
    run_until([&] { return what != 0; });
    EXPECT_EQ(what, BEV_EVENT_ERROR);
}

TEST_P(Connects, AConnectByNameFindsItsAddress)
{
    if (family() == AF_UNIX)
        GTEST_SKIP() << "has no names";
    serve();
    struct bufferevent *client = keep(-1);
    std::string got;
    Callbacks callbacks;
    short what = 0;
    callbacks.on_read = [&](struct bufferevent *self) { got += take(bufferevent_get_input(self)); };
    callbacks.on_event = [&](struct bufferevent *, short event) { what |= event; };
    callbacks.set(client);
    bufferevent_enable(client, EV_READ | EV_WRITE);
    bufferevent_write(client, "named", 5);
    int port = ntohs(((struct sockaddr_in *)&address_)->sin_port);
    ASSERT_EQ(bufferevent_socket_connect_hostname(client, nullptr, AF_INET, "127.0.0.1", port), 0);
    run_until([&] { return got.size() == 5; });
    EXPECT_EQ(what, BEV_EVENT_CONNECTED);
    EXPECT_EQ(bufferevent_socket_get_dns_error(client), 0);
    EXPECT_EQ(bufferevent_socket_connect_hostname(client, nullptr, AF_INET, "127.0.0.1", 0), -1);
}

/* ---------------------------------------------------------------------- listeners */

TEST_P(Connects, ConnectionsComeWithTheirAddresses)
{
    struct Seen {
        int count = 0, bad = 0;
    } seen;
    server_.listener = listen_on(LEV_OPT_CLOSE_ON_FREE, [](struct evconnlistener *, evutil_socket_t fd, struct sockaddr *address, int length, void *argument) {
        auto *saw = static_cast<Seen *>(argument);
        struct sockaddr_storage peer = {};
        socklen_t peer_length = sizeof peer;
        getpeername(fd, (struct sockaddr *)&peer, &peer_length);
        saw->count++;
        saw->bad += peer_length != (socklen_t)length || memcmp(&peer, address, (size_t)length) != 0 ||
                    !(fcntl(fd, F_GETFL) & O_NONBLOCK);
        close(fd);
    }, &seen);
    ASSERT_NE(server_.listener, nullptr);
    int fds[2]; /* a listener alone needs no ring */
    connected(fds);
    fds_.push_back(fds[1]);
    bufferevent_enable(keep(fds[0]), EV_READ);
    for (int round = 0; round < 10; round++) {
        std::vector<int> dialled;
        for (int i = 0; i < 5; i++)
            dialled.push_back(dial());
        run_until([&] { return seen.count == (round + 1) * 5; });
        for (int fd : dialled) {
            EXPECT_TRUE(sees_end(fd));
            close(fd);
        }
    }
    EXPECT_EQ(seen.bad, 0);
    if (completes()) {
        EXPECT_GT(stats(base_).accepted, 0u) << "the ring never accepted";
    }
}

TEST_P(Connects, TheFlagsOfAcceptedSocketsAreThoseAskedFor)
{
    for (unsigned flags : {0u, LEV_OPT_LEAVE_SOCKETS_BLOCKING + 0u, LEV_OPT_CLOSE_ON_EXEC + 0u}) {
        std::vector<std::pair<int, int>> seen;
        address_length_ = 0;
        address_ = {};
        struct evconnlistener *listener = listen_on(flags | LEV_OPT_CLOSE_ON_FREE, [](struct evconnlistener *, evutil_socket_t fd, struct sockaddr *, int, void *argument) {
            static_cast<std::vector<std::pair<int, int>> *>(argument)->push_back({fcntl(fd, F_GETFL) & O_NONBLOCK, fcntl(fd, F_GETFD)});
            close(fd);
        }, &seen);
        for (size_t i = 1; i <= 8; i++) {
            int fd = dial();
            run_until([&] { return seen.size() == i; });
            close(fd);
        }
        for (auto &each : seen) {
            EXPECT_EQ(each.first != 0, !(flags & LEV_OPT_LEAVE_SOCKETS_BLOCKING));
            EXPECT_EQ(each.second != 0, (flags & LEV_OPT_CLOSE_ON_EXEC) != 0);
        }
        evconnlistener_free(listener);
    }
}

TEST_P(Connects, ADisabledListenerKeepsItsConnections)
{
    int count = 0;
    server_.listener = listen_on(LEV_OPT_CLOSE_ON_FREE | LEV_OPT_DISABLED, [](struct evconnlistener *, evutil_socket_t fd, struct sockaddr *, int, void *argument) {
        ++*static_cast<int *>(argument);
        close(fd);
    }, &count);
    std::vector<int> dialled{dial()};
    run(3);
    EXPECT_EQ(count, 0);
    EXPECT_EQ(evconnlistener_enable(server_.listener), 0);
    for (int i = 1; i < 8; i++) {
        run_until([&] { return count == i; });
        dialled.push_back(dial());
    }
    run_until([&] { return count == 8; });
    for (int round = 0; round < 5; round++) {
        dialled.push_back(dial());
        EXPECT_EQ(evconnlistener_disable(server_.listener), 0);
        int before = count;
        dialled.push_back(dial());
        run(3);
        EXPECT_EQ(count, before);
        EXPECT_EQ(evconnlistener_enable(server_.listener), 0);
        run_until([&] { return count == before + 2; });
    }
    for (int fd : dialled)
        close(fd);
}

TEST_P(Connects, AListenerMayBeDisabledOrFreedInItsCallback)
{
    struct Both {
        int count = 0;
        bool free_it = false;
        struct evconnlistener *listener;
    } both;
    auto on_accept = [](struct evconnlistener *listener, evutil_socket_t fd, struct sockaddr *, int, void *argument) {
        auto *is = static_cast<Both *>(argument);
        is->count++;
        close(fd);
        if (is->free_it) {
            evconnlistener_free(listener);
            is->listener = nullptr;
        } else {
            evconnlistener_disable(listener);
        }
    };
    both.listener = listen_on(LEV_OPT_CLOSE_ON_FREE, on_accept, &both);
    std::vector<int> dialled;
    for (int round = 1; round <= 8; round++) {
        dialled.push_back(dial());
        dialled.push_back(dial());
        evconnlistener_enable(both.listener);
        run_until([&] { return both.count == round; });
        run(2);
        EXPECT_EQ(both.count, round);
    }
    both.free_it = true;
    evconnlistener_enable(both.listener);
    run_until([&] { return both.count == 9; });
    run(2);
    EXPECT_EQ(both.listener, nullptr);
    EXPECT_EQ(both.count, 9);
    for (size_t i = 9; i < dialled.size(); i++)
        EXPECT_TRUE(sees_end(dialled[i])) << "the queue is closed with its listener: " << i;
    for (int fd : dialled)
        close(fd);
}

TEST_P(Connects, AnErrorOfAcceptIsToldWithItsErrno)
{
    server_.listener = listen_on(LEV_OPT_CLOSE_ON_FREE, [](struct evconnlistener *, evutil_socket_t fd, struct sockaddr *, int, void *) {
        close(fd);
    }, nullptr);
    static int error;
    error = 0;
    evconnlistener_set_error_cb(server_.listener, [](struct evconnlistener *listener, void *) {
        error = EVUTIL_SOCKET_ERROR();
        evconnlistener_disable(listener);
    });
    int fd = dial();
    std::vector<int> used;
    for (int next; (next = open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0;)
        used.push_back(next);
    ASSERT_EQ(errno, EMFILE);
    for (int turn = 0; error == 0 && turn < 100; turn++)
        event_base_loop(base_, EVLOOP_NONBLOCK);
    for (int each : used)
        close(each);
    EXPECT_EQ(error, EMFILE);
    close(fd);
}

TEST_P(Connects, ACallbackThatIsSetLaterGetsTheConnections)
{
    int count = 0;
    server_.listener = listen_on(LEV_OPT_CLOSE_ON_FREE | LEV_OPT_THREADSAFE, nullptr, nullptr);
    int fd = dial();
    run(2);
    evconnlistener_set_cb(server_.listener, [](struct evconnlistener *, evutil_socket_t accepted_fd, struct sockaddr *, int, void *argument) {
        ++*static_cast<int *>(argument);
        close(accepted_fd);
    }, &count);
    run_until([&] { return count == 1; });
    EXPECT_EQ(evconnlistener_get_base(server_.listener), base_);
    close(fd);
}

TEST_P(Connects, APortIsFreeRightAfterTheBase)
{
    if (family() == AF_UNIX)
        GTEST_SKIP() << "TCP";
    for (int i = 0; i < 20; i++) {
        int count = 0;
        struct evconnlistener *listener = listen_on(LEV_OPT_CLOSE_ON_FREE | LEV_OPT_REUSEABLE, [](struct evconnlistener *, evutil_socket_t fd, struct sockaddr *, int, void *argument) {
            ++*static_cast<int *>(argument);
            struct linger at_once = {1, 0};
            setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
            close(fd);
        }, &count);
        ASSERT_NE(listener, nullptr) << "round " << i << ": " << strerror(errno);
        for (int n = 1; n <= 6; n++) {
            int fd = dial();
            run_until([&] { return count == n; });
            close(fd);
        }
        evconnlistener_free(listener);
        event_base_free(base_);
        base_ = new_base();
    }
}

TEST_P(Connects, ANumberOfAFailedConnectIsNobodys)
{
    if (family() == AF_UNIX)
        GTEST_SKIP() << "refused at once";
    serve();
    evconnlistener_free(server_.listener);
    server_.listener = nullptr;
    run(2);
    struct bufferevent *client = make(base_, -1, 0);
    short what = 0;
    Callbacks callbacks;
    callbacks.on_event = [&](struct bufferevent *, short event) { what = event; };
    callbacks.set(client);
    bufferevent_enable(client, EV_READ | EV_WRITE);
    ASSERT_EQ(bufferevent_socket_connect(client, (struct sockaddr *)&address_, (int)address_length_), 0);
    run_until([&] { return what != 0; });
    int fd = bufferevent_getfd(client), next[2];
    close(fd);
    connected(next);
    if (next[0] != fd) {
        ASSERT_EQ(dup2(next[0], fd), fd);
        close(next[0]);
    }
    struct bufferevent *second = make(base_, fd, 0);
    size_t read = 0, sent = 0;
    Callbacks others;
    others.on_read = [&](struct bufferevent *self) { read += take(bufferevent_get_input(self)).size(); };
    others.set(second);
    bufferevent_enable(second, EV_READ | EV_WRITE);
    run(2);
    bufferevent_free(client);
    run(2);
    for (int i = 0; i < 8; i++) {
        ASSERT_EQ(write(next[1], "more", 4), 4);
        sent += 4;
        run_until([&] { return read == sent; });
        ASSERT_EQ(read, sent);
    }
    bufferevent_free(second);
    run(1);
    close(fd);
    close(next[1]);
}

/* Without LEV_OPT_CLOSE_ON_FREE the program goes on with it. */
TEST_P(Connects, AListenerThatIsFreedLeavesItsFdListening)
{
    int pair[2]; /* a listener alone needs no ring */
    connected(pair);
    fds_.push_back(pair[1]);
    bufferevent_enable(keep(pair[0]), EV_READ);
    for (int how = 0; how < 4; how++) {
        address_length_ = 0;
        address_ = {};
        std::atomic<int> count{0};
        auto on_accept = [](struct evconnlistener *, evutil_socket_t fd, struct sockaddr *, int, void *argument) {
            ++*static_cast<std::atomic<int> *>(argument);
            close(fd);
        };
        struct evconnlistener *listener = listen_on(LEV_OPT_THREADSAFE, on_accept, &count);
        ASSERT_NE(listener, nullptr);
        int fd = evconnlistener_get_fd(listener);
        std::vector<int> dialled;
        for (int i = 1; i <= 8; i++) {
            dialled.push_back(dial());
            run_until([&] { return count == i; });
        }
        std::function<void()> end = [&] {
            if (how % 2 == 0)
                evconnlistener_free(listener);
            else
                std::thread([&] { evconnlistener_free(listener); }).join();
        };
        if (how < 2) {
            end();
        } else { /* while the loop is in a callback */
            event_base_once(base_, -1, EV_TIMEOUT, [](evutil_socket_t, short, void *argument) {
                (*static_cast<std::function<void()> *>(argument))();
            }, &end, nullptr);
        }
        run(2);
        int before = count;
        dialled.push_back(dial());
        listener = (on_ring() ? ringpoll_listener_new : evconnlistener_new)(base_, on_accept, &count, LEV_OPT_CLOSE_ON_FREE, 0, fd);
        ASSERT_NE(listener, nullptr) << strerror(errno);
        dialled.push_back(dial());
        run_until([&] { return count == before + 2; });
        ASSERT_EQ(count, before + 2) << how;
        evconnlistener_free(listener);
        for (int each : dialled)
            close(each);
    }
    if (completes()) {
        EXPECT_GT(stats(base_).accepted, 0u) << "the ring never accepted";
    }
}

/* ----------------------------------------------------------------- on top of them */

TEST_P(Objects, AFilterOnTop)
{
    int fds[2];
    connected(fds);
    fds_.push_back(fds[1]);
    struct bufferevent *under = make(base_, fds[0]);
    auto turn_over = [](struct evbuffer *from, struct evbuffer *to, ev_ssize_t, enum bufferevent_flush_mode, void *) {
        std::string bytes = take(from);
        for (auto &byte : bytes)
            byte = (char)(byte ^ 0x20);
        evbuffer_add(to, bytes.data(), bytes.size());
        return bytes.empty() ? BEV_NEED_MORE : BEV_OK;
    };
    struct bufferevent *filter = bufferevent_filter_new(under, turn_over, turn_over, BEV_OPT_CLOSE_ON_FREE, nullptr, nullptr);
    ASSERT_NE(filter, nullptr);
    bevs_.push_back(filter);
    Callbacks callbacks;
    std::string seen;
    callbacks.on_read = [&](struct bufferevent *self) {
        std::string bytes = take(bufferevent_get_input(self));
        seen += bytes;
        bufferevent_write(self, bytes.data(), bytes.size());
    };
    callbacks.set(filter);
    bufferevent_enable(filter, EV_READ | EV_WRITE);
    for (unsigned i = 0; i < 30; i++) {
        std::string bytes = text(1 + i * 211, i);
        send_all(fds[1], bytes);
        ASSERT_EQ(receive(fds[1], bytes.size()), bytes) << i;
    }
    EXPECT_EQ(seen[0], (char)(text(1, 0)[0] ^ 0x20));
}

#ifdef HAVE_LIBEVENT_OPENSSL
/* A key and a certificate of our own. */
SSL_CTX *new_context(bool server)
{
    static EVP_PKEY *key;
    static X509 *certificate;
    if (!key) {
        key = EVP_EC_gen("P-256");
        certificate = X509_new();
        X509_set_version(certificate, 2);
        ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
        X509_gmtime_adj(X509_getm_notBefore(certificate), -3600);
        X509_gmtime_adj(X509_getm_notAfter(certificate), 3600);
        X509_set_pubkey(certificate, key);
        X509_NAME *name = X509_get_subject_name(certificate);
        X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)"here", -1, -1, 0);
        X509_set_issuer_name(certificate, name);
        X509_sign(certificate, key, EVP_sha256());
    }
    SSL_CTX *context = SSL_CTX_new(server ? TLS_server_method() : TLS_client_method());
    if (server) {
        SSL_CTX_use_certificate(context, certificate);
        SSL_CTX_use_PrivateKey(context, key);
    }
    return context;
}

TEST_P(Objects, TlsOnTop)
{
    int fds[2];
    connected(fds);
    SSL_CTX *contexts[2] = {new_context(true), new_context(false)};
    struct bufferevent *ends[2];
    Callbacks callbacks[2];
    std::string got;
    bool connected_ends[2] = {false, false}, ended = false;
    for (int i = 0; i < 2; i++) {
        struct bufferevent *under = make(base_, fds[i]);
        ends[i] = bufferevent_openssl_filter_new(base_, under, SSL_new(contexts[i]),
                                                 i == 0 ? BUFFEREVENT_SSL_ACCEPTING : BUFFEREVENT_SSL_CONNECTING,
                                                 BEV_OPT_CLOSE_ON_FREE);
        ASSERT_NE(ends[i], nullptr);
        bufferevent_openssl_set_allow_dirty_shutdown(ends[i], 1);
        callbacks[i].on_event = [&, i](struct bufferevent *, short what) {
            connected_ends[i] |= (what & BEV_EVENT_CONNECTED) != 0;
            ended |= (what & (BEV_EVENT_EOF | BEV_EVENT_ERROR)) != 0;
        };
        callbacks[i].set(ends[i]);
        bufferevent_enable(ends[i], EV_READ | EV_WRITE);
    }
    callbacks[0].on_read = [](struct bufferevent *self) { bufferevent_write_buffer(self, bufferevent_get_input(self)); };
    callbacks[1].on_read = [&](struct bufferevent *self) { got += take(bufferevent_get_input(self)); };
    run_until([&] { return connected_ends[0] && connected_ends[1]; });
    for (unsigned i = 0; i < 40; i++) {
        std::string bytes = text(1 + i * i * 41, i);
        got.clear();
        bufferevent_write(ends[1], bytes.data(), bytes.size());
        run_until([&] { return got.size() >= bytes.size(); });
        ASSERT_EQ(got, bytes) << i;
    }
    EXPECT_FALSE(ended);
    bufferevent_free(ends[0]);
    run_until([&] { return ended; });
    bufferevent_free(ends[1]);
    run(2);
    for (auto *context : contexts)
        SSL_CTX_free(context);
}
/* One connection, each end with a bufferevent of its own kind: the filter form over a socket
 * bufferevent (which completes on the ring), or the form that has the socket itself, and plain
 * events of the base. */
struct TlsPair {
    TlsPair(Objects *test, struct event_base *base, int fds[2], bool filter_server, bool filter_client, int options)
    {
        bool filters[2] = {filter_server, filter_client};
        for (int i = 0; i < 2; i++) {
            contexts[i] = new_context(i == 0);
            SSL *ssl = SSL_new(contexts[i]);
            auto state = i == 0 ? BUFFEREVENT_SSL_ACCEPTING : BUFFEREVENT_SSL_CONNECTING;
            ends[i] = filters[i] ? bufferevent_openssl_filter_new(base, test->make(base, fds[i]), ssl, state,
                                                                  options | BEV_OPT_CLOSE_ON_FREE)
                                 : bufferevent_openssl_socket_new(base, fds[i], ssl, state, options | BEV_OPT_CLOSE_ON_FREE);
            EXPECT_NE(ends[i], nullptr);
            bufferevent_openssl_set_allow_dirty_shutdown(ends[i], 1);
            callbacks[i].on_event = [this, i](struct bufferevent *, short what) {
                up[i] |= (what & BEV_EVENT_CONNECTED) != 0;
                ended[i] |= (what & BEV_EVENT_EOF) != 0;
                failed[i] |= (what & (BEV_EVENT_ERROR | BEV_EVENT_TIMEOUT)) != 0;
            };
            callbacks[i].on_read = [this, i](struct bufferevent *self) { got[i] += take(bufferevent_get_input(self)); };
            callbacks[i].set(ends[i]);
            bufferevent_enable(ends[i], EV_READ | EV_WRITE);
        }
    }
    ~TlsPair()
    {
        for (auto *end : ends)
            if (end)
                bufferevent_free(end);
        for (auto *context : contexts)
            SSL_CTX_free(context);
    }
    void free(int end)
    {
        bufferevent_free(ends[end]);
        ends[end] = nullptr;
    }
    void send(int end, const std::string &bytes) { bufferevent_write(ends[end], bytes.data(), bytes.size()); }
    SSL_CTX *contexts[2];
    struct bufferevent *ends[2];
    Callbacks callbacks[2];
    std::string got[2];
    bool up[2] = {false, false}, ended[2] = {false, false}, failed[2] = {false, false};
};

TEST_P(Objects, TlsOfEachKindBothWaysAndItsClose)
{
    for (int how = 0; how < 8; how++) {
        int fds[2];
        connected(fds);
        auto pair = std::make_unique<TlsPair>(this, base_, fds, how & 1, how & 2, how & 4 ? BEV_OPT_DEFER_CALLBACKS : 0);
        run_until([&] { return pair->up[0] && pair->up[1]; });
        for (unsigned i = 0; i < 24; i++) { /* in turns */
            std::string bytes = text(1 + i * i * 41, i);
            int from = (int)(i & 1), to = 1 - from;
            pair->got[to].clear();
            pair->send(from, bytes);
            run_until([&] { return pair->got[to].size() >= bytes.size(); });
            ASSERT_EQ(pair->got[to], bytes) << how << ", " << i;
        }
        std::string big[2] = {text(1500000, 1), text(1100000, 2)}; /* at once, and more than the sockets hold */
        for (int i = 0; i < 2; i++)
            pair->got[i].clear();
        for (int i = 0; i < 2; i++)
            pair->send(i, big[i]);
        run_until([&] { return pair->got[0].size() >= big[1].size() && pair->got[1].size() >= big[0].size(); });
        EXPECT_EQ(pair->got[0], big[1]) << how;
        EXPECT_EQ(pair->got[1], big[0]) << how;
        EXPECT_FALSE(pair->failed[0] || pair->failed[1] || pair->ended[0] || pair->ended[1]) << how;
        int leaves = how / 2 % 2;
        pair->free(leaves);
        run_until([&] { return pair->ended[1 - leaves] || pair->failed[1 - leaves]; }); /* OpenSSL 3: an error */
        pair.reset();
        run(2);
    }
}

/* A peer that writes its first bytes before anybody reads, and one that goes away in the midst
 * of the handshake. */
TEST_P(Objects, TlsPeersThatComeAndGoAtAnyTime)
{
    for (int how = 0; how < 8; how++) {
        int fds[2];
        connected(fds);
        auto pair = std::make_unique<TlsPair>(this, base_, fds, how & 1, how & 2, 0);
        pair->send(1, "early");
        if (how & 4)
            run(how / 2);
        else
            run_until([&] { return pair->got[0] == "early"; });
        pair->free(1);
        run_until([&] { return pair->ended[0] || pair->failed[0]; });
        pair.reset();
        run(2);
    }
}

/* As servers with a base in each thread do, connections being made in another. */
TEST_P(Objects, TlsInSeveralThreads)
{
    std::vector<std::thread> threads;
    std::atomic<int> whole{0};
    SSL_CTX_free(new_context(true)); /* whose key is everybody's */
    for (int which = 0; which < 3; which++)
        threads.emplace_back([&, which] {
            struct event_base *base = new_base();
            for (int round = 0; round < 6; round++) {
                int fds[2];
                connected(fds);
                auto pair = std::make_unique<TlsPair>(this, base, fds, (which + round) & 1, round & 2, 0);
                std::string bytes[2] = {text(30000 + (size_t)round * 777, 1), text(9, 2)};
                for (int i = 0; i < 2; i++)
                    pair->send(i, bytes[i]);
                for (int turn = 0; turn < 20000 && !(pair->got[0] == bytes[1] && pair->got[1] == bytes[0]); turn++) {
                    struct timeval tick = {0, 5000};
                    event_base_once(base, -1, EV_TIMEOUT, [](evutil_socket_t, short, void *) {}, nullptr, &tick);
                    event_base_loop(base, EVLOOP_ONCE);
                }
                whole += pair->got[0] == bytes[1] && pair->got[1] == bytes[0];
                pair.reset();
                event_base_loop(base, EVLOOP_NONBLOCK);
            }
            event_base_free(base);
        });
    for (auto &thread : threads)
        thread.join();
    EXPECT_EQ(whole, 18);
}
#endif

/* Both ends with libevent's evhttp: what it does to its bufferevents is its own. */
TEST_P(Connects, EvhttpServesKeepAliveClients)
{
    if (family() == AF_UNIX)
        GTEST_SKIP() << "TCP";
    struct evhttp *http = evhttp_new(base_);
    struct Tools {
        Connects *test;
        int requests = 0;
        std::string answer;
    } tools;
    tools.test = this;
    evhttp_set_bevcb(http, [](struct event_base *base, void *argument) {
        return static_cast<Tools *>(argument)->test->make(base, -1);
    }, &tools);
    evhttp_set_gencb(http, [](struct evhttp_request *request, void *argument) {
        auto *is = static_cast<Tools *>(argument);
        is->requests++;
        struct evbuffer *reply = evbuffer_new();
        std::string body = text(1 + (size_t)is->requests * 997, 1);
        evbuffer_add(reply, body.data(), body.size());
        evhttp_send_reply(request, 200, "OK", reply);
        evbuffer_free(reply);
    }, &tools);
    server_.listener = listen_on(LEV_OPT_CLOSE_ON_FREE, nullptr, nullptr);
    ASSERT_NE(evhttp_bind_listener(http, server_.listener), nullptr);
    server_.listener = nullptr; /* http's */
    int port = ntohs(((struct sockaddr_in *)&address_)->sin_port);
    struct bufferevent *bev = make(base_, -1, 0);
    struct evhttp_connection *client = evhttp_connection_base_bufferevent_new(base_, nullptr, bev, "127.0.0.1", (ev_uint16_t)port);
    for (int i = 1; i <= 30; i++) {
        bool done = false;
        struct Answer {
            bool *done;
            std::string body;
            int code = 0;
        } answer{&done, "", 0};
        struct evhttp_request *request = evhttp_request_new([](struct evhttp_request *got, void *argument) {
            auto *is = static_cast<Answer *>(argument);
            *is->done = true;
            if (got) {
                is->code = evhttp_request_get_response_code(got);
                is->body = take(evhttp_request_get_input_buffer(got));
            }
        }, &answer);
        evhttp_add_header(evhttp_request_get_output_headers(request), "Host", "here");
        ASSERT_EQ(evhttp_make_request(client, request, EVHTTP_REQ_GET, "/"), 0);
        run_until([&] { return done; });
        ASSERT_EQ(answer.code, 200) << i;
        ASSERT_EQ(answer.body, text(1 + (size_t)i * 997, 1)) << i;
    }
    EXPECT_EQ(tools.requests, 30);
    evhttp_connection_free(client);
    run(2);
    evhttp_free(http);
}

TEST_P(Connects, EvhttpClosesItsOwnFdWithSendsInFlight)
{
    if (family() == AF_UNIX)
        GTEST_SKIP() << "TCP";
    struct evhttp *http = evhttp_new(base_);
    evhttp_set_bevcb(http, [](struct event_base *base, void *argument) {
        return static_cast<Connects *>(argument)->make(base, -1, 0);
    }, static_cast<Connects *>(this));
    evhttp_set_timeout(http, 1);
    evhttp_set_gencb(http, [](struct evhttp_request *request, void *) {
        struct evbuffer *reply = evbuffer_new();
        std::string body = text(200, 1);
        evbuffer_add(reply, body.data(), body.size());
        evhttp_add_header(evhttp_request_get_output_headers(request), "Connection", "close");
        evhttp_send_reply(request, 200, "OK", reply);
        evbuffer_free(reply);
    }, nullptr);
    server_.listener = listen_on(LEV_OPT_CLOSE_ON_FREE, nullptr, nullptr);
    ASSERT_NE(evhttp_bind_listener(http, server_.listener), nullptr);
    server_.listener = nullptr;
    for (int round = 0; round < 30; round++) {
        std::vector<int> clients;
        for (int i = 0; i < 4; i++) {
            clients.push_back(dial());
            std::string request = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
            ASSERT_EQ(write(clients.back(), request.data(), request.size()), (ssize_t)request.size());
        }
        for (int fd : clients) {
            std::string got = receive(fd, 1 << 20); /* to its end */
            ASSERT_NE(got.find(text(200, 1)), std::string::npos) << round << ": " << got;
            char byte;
            EXPECT_EQ(read(fd, &byte, 1), 0);
            close(fd);
        }
    }
    evhttp_free(http);
}

/* What it has not given to the kernel yet when it closes would be lost. */
TEST_P(Connects, EvhttpAnswersOfAllSizesAreWholeWhenItCloses)
{
    if (family() == AF_UNIX)
        GTEST_SKIP() << "TCP";
    struct evhttp *http = evhttp_new(base_);
    struct Tools {
        Connects *test;
        size_t length = 0;
    } tools;
    tools.test = this;
    evhttp_set_bevcb(http, [](struct event_base *base, void *argument) {
        return static_cast<Tools *>(argument)->test->make(base, -1, 0);
    }, &tools);
    evhttp_set_gencb(http, [](struct evhttp_request *request, void *argument) {
        struct evbuffer *reply = evbuffer_new();
        std::string body = text(static_cast<Tools *>(argument)->length, 3);
        evbuffer_add(reply, body.data(), body.size());
        evhttp_add_header(evhttp_request_get_output_headers(request), "Connection", "close");
        evhttp_send_reply(request, 200, "OK", reply);
        evbuffer_free(reply);
    }, &tools);
    server_.listener = listen_on(LEV_OPT_CLOSE_ON_FREE, nullptr, nullptr);
    ASSERT_NE(evhttp_bind_listener(http, server_.listener), nullptr);
    server_.listener = nullptr;
    for (size_t length : {1u, 1024u, 1900u, 2100u, 20000u, 70000u, 3000000u}) {
        tools.length = length;
        for (unsigned round = 0; round < 6; round++) {
            std::vector<int> clients;
            for (unsigned i = 0; i < 1 + round; i++) {
                clients.push_back(dial());
                std::string request = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
                /* Sometimes in two pieces: the second finds a poll. */
                size_t piece = round % 2 ? 9 : request.size();
                ASSERT_EQ(write(clients.back(), request.data(), piece), (ssize_t)piece);
                if (piece < request.size()) {
                    run(3);
                    ASSERT_GT(write(clients.back(), request.data() + piece, request.size() - piece), 0);
                }
            }
            for (int fd : clients) {
                std::string got = receive(fd, 1u << 30); /* to its end */
                ASSERT_GE(got.size(), length);
                EXPECT_EQ(got.compare(got.size() - length, length, text(length, 3)), 0) << length << ", " << round;
                char byte;
                EXPECT_EQ(read(fd, &byte, 1), 0);
                close(fd);
            }
        }
    }
    evhttp_free(http);
}

/* -------------------------------------------------------------------------- bases */

TEST_P(Objects, WorkerBasesMadeInTheMainThreadWork)
{
    const int workers = 3;
    struct event_base *bases[workers];
    struct bufferevent *bevs[workers];
    int peers[workers];
    Callbacks callbacks;
    callbacks.on_read = [](struct bufferevent *self) { bufferevent_write_buffer(self, bufferevent_get_input(self)); };
    std::vector<std::thread> threads;
    for (int i = 0; i < workers; i++) {
        int fds[2];
        connected(fds);
        bases[i] = new_base();
        bevs[i] = make(bases[i], fds[0], BEV_OPT_CLOSE_ON_FREE | BEV_OPT_THREADSAFE);
        callbacks.set(bevs[i]);
        bufferevent_enable(bevs[i], EV_READ | EV_WRITE);
        peers[i] = fds[1];
        fcntl(peers[i], F_SETFL, 0);
    }
    for (int i = 0; i < workers; i++)
        threads.emplace_back([&, i] { event_base_loop(bases[i], EVLOOP_NO_EXIT_ON_EMPTY); });
    for (unsigned round = 0; round < 50; round++)
        for (int i = 0; i < workers; i++) {
            std::string bytes = text(1 + round * 51, round), got(bytes.size(), '\0');
            ASSERT_EQ(write(peers[i], bytes.data(), bytes.size()), (ssize_t)bytes.size());
            ASSERT_EQ(recv(peers[i], got.data(), got.size(), MSG_WAITALL), (ssize_t)got.size());
            ASSERT_EQ(got, bytes);
        }
    for (int i = 0; i < workers; i++) {
        bufferevent_free(bevs[i]); /* from here */
        EXPECT_TRUE(sees_end(peers[i]));
        event_base_loopbreak(bases[i]);
        threads[(size_t)i].join();
        event_base_free(bases[i]);
        close(peers[i]);
    }
}

TEST_P(Objects, AChildGoesOnAfterReinit)
{
    int fds[2];
    connected(fds);
    fds_.push_back(fds[1]);
    struct bufferevent *bev = keep(fds[0]);
    size_t read = 0, sent = 0;
    Callbacks callbacks;
    callbacks.on_read = [&](struct bufferevent *self) { read += take(bufferevent_get_input(self)).size(); };
    callbacks.set(bev);
    bufferevent_enable(bev, EV_READ | EV_WRITE);
    warm_up(fds[1], [&] { return read; }, &sent);
    pid_t child = fork();
    if (child == 0) {
        errno = 0;
        if (on_ring() && (make(base_, -1) || errno != ECHILD))
            _exit(1);
        if (event_reinit(base_) != 0)
            _exit(2);
        struct bufferevent *own = make(base_, -1);
        if (!own)
            _exit(3);
        bufferevent_free(own);
        callbacks.on_read = [&](struct bufferevent *self) { bufferevent_write_buffer(self, bufferevent_get_input(self)); };
        for (int i = 0; i < 5; i++) {
            char got[8] = {};
            if (write(fds[1], "child", 5) != 5 || receive(fds[1], 5) != "child")
                _exit(4);
            (void)got;
        }
        _exit(0);
    }
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0) << WEXITSTATUS(status);
    ASSERT_EQ(write(fds[1], "parent", 6), 6);
    sent += 6;
    run_until([&] { return read == sent; });
}

INSTANTIATE_TEST_SUITE_P(All, Objects, ::testing::Combine(::testing::Values("epoll", "ring"), ::testing::Values(AF_INET, AF_UNIX)),
                         [](const auto &info) { return std::string(std::get<0>(info.param)) + (std::get<1>(info.param) == AF_UNIX ? "Unix" : "Tcp"); });
INSTANTIATE_TEST_SUITE_P(All, Connects, ::testing::Combine(::testing::Values("epoll", "ring"), ::testing::Values(AF_INET, AF_UNIX)),
                         [](const auto &info) { return std::string(std::get<0>(info.param)) + (std::get<1>(info.param) == AF_UNIX ? "Unix" : "Tcp"); });

/* ---------------------------------------------------------------------- bad input */

TEST(BadInput, IsRefusedWithItsErrno)
{
    struct event_base *ring = ringpoll_event_base_new(nullptr);
    errno = 0;
    EXPECT_EQ(ringpoll_bufferevent_socket_new(nullptr, -1, 0), nullptr);
    EXPECT_EQ(errno, EINVAL);
    errno = 0;
    EXPECT_EQ(ringpoll_listener_new(nullptr, nullptr, nullptr, 0, -1, 0), nullptr);
    EXPECT_EQ(errno, EINVAL);
    errno = 0;
    EXPECT_EQ(ringpoll_listener_new_bind(nullptr, nullptr, nullptr, 0, -1, nullptr, 0), nullptr);
    EXPECT_EQ(errno, EINVAL);
    int file = open("/dev/null", O_RDWR | O_CLOEXEC);
    errno = 0;
    EXPECT_EQ(ringpoll_bufferevent_socket_new(ring, file, 0), nullptr);
    EXPECT_EQ(errno, ENOTSOCK);
    errno = 0;
    EXPECT_EQ(ringpoll_listener_new(ring, nullptr, nullptr, 0, -1, file), nullptr);
    EXPECT_EQ(errno, ENOTSOCK);
    close(file);
    errno = 0;
    EXPECT_EQ(ringpoll_bufferevent_socket_new(ring, file, 0), nullptr);
    EXPECT_EQ(errno, EBADF);
    errno = 0;
    EXPECT_EQ(ringpoll_listener_new(ring, nullptr, nullptr, 0, -1, -1), nullptr);
    EXPECT_EQ(errno, EBADF);
    struct sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(0x01020304);
    errno = 0;
    EXPECT_EQ(ringpoll_listener_new_bind(ring, nullptr, nullptr, 0, -1, (struct sockaddr *)&address, sizeof address), nullptr);
    EXPECT_EQ(errno, EADDRNOTAVAIL);
    errno = 0;
    EXPECT_EQ(ringpoll_listener_new_bind(ring, nullptr, nullptr, 0, 0, (struct sockaddr *)&address, sizeof address), nullptr);
    EXPECT_EQ(errno, EINVAL);
    EXPECT_EQ(event_base_get_num_events(ring, EVENT_BASE_COUNT_ADDED), event_base_get_num_events(ring, EVENT_BASE_COUNT_VIRTUAL) + event_base_get_num_events(ring, EVENT_BASE_COUNT_ADDED));
    event_base_free(ring);
}

TEST(BadInput, ABaseThatIsNotOnTheRingGetsPlainObjects)
{
    struct event_base *base = event_base_new();
    int fds[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
    struct bufferevent *bev = ringpoll_bufferevent_socket_new(base, fds[0], BEV_OPT_CLOSE_ON_FREE);
    ASSERT_NE(bev, nullptr);
    EXPECT_EQ(bufferevent_base_set(base, bev), 0) << "libevent's own";
    bufferevent_free(bev);
    struct sockaddr_in address = {};
    address.sin_family = AF_INET;
    struct evconnlistener *listener = ringpoll_listener_new_bind(base, nullptr, nullptr, LEV_OPT_CLOSE_ON_FREE, -1, (struct sockaddr *)&address, sizeof address);
    ASSERT_NE(listener, nullptr);
    evconnlistener_free(listener);
    event_base_free(base);
    close(fds[1]);
}

} // namespace

int main(int argc, char **argv)
{
    evthread_use_pthreads();
    ::testing::InitGoogleTest(&argc, argv);
    return RUN_ALL_TESTS();
}
