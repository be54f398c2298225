/* SPDX-License-Identifier: MIT
 *
 * Outputs of completion bufferevents that are sent without a copy. It links the library's
 * archive, where a variable for tests allows that on loopback.
 */
#include <arpa/inet.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <thread>
#include <vector>

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wshadow"
#include <ringpoll/event.h>
#include <ringpoll/ringpoll.h>
#pragma GCC diagnostic pop

extern "C" {
extern int rp_send_zc_trial; /* enum rp_send_zc_trial: 0 as due, 2 ever */
}

namespace {

char text(size_t at)
{
    return (char)('a' + (at * 2654435761u >> 7) % 26);
}

/* Memory of the program's in an output, scribbled over when it is given back. */
struct Piece {
    std::vector<char> bytes;
    unsigned given_back = 0;
};
void give_back(const void *, size_t, void *argument)
{
    Piece *piece = static_cast<Piece *>(argument);
    piece->given_back++;
    memset(piece->bytes.data(), '#', piece->bytes.size());
}

class ZeroCopyOutput : public testing::Test {
public:
    void SetUp() override
    {
        struct ringpoll_probe probe = {};
        probe.size = sizeof probe;
        uint64_t needed = RINGPOLL_FEATURE_DEFER | RINGPOLL_FEATURE_MULTISHOT_RECV | RINGPOLL_FEATURE_SEND_ZC;
        if (ringpoll_get_probe(&probe) != 0 || (probe.usable & needed) != needed)
            GTEST_SKIP() << "this kernel has no zero-copy sends for rings";
        rp_send_zc_trial = 2;
        signal(SIGPIPE, SIG_IGN);
        /* Nothing else here refers to it, and all that the adapter calls is to be the archive's. */
        ASSERT_EQ(ringpoll_ctl(-1, EPOLL_CTL_DEL, -1, nullptr), -EBADF);
        base_ = ringpoll_event_base_new(nullptr);
        ASSERT_NE(base_, nullptr);
        int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        struct sockaddr_in address = {};
        socklen_t length = sizeof address;
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        ASSERT_EQ(bind(listener, (struct sockaddr *)&address, length), 0);
        ASSERT_EQ(listen(listener, 1), 0);
        ASSERT_EQ(getsockname(listener, (struct sockaddr *)&address, &length), 0);
        peer_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        ASSERT_EQ(connect(peer_, (struct sockaddr *)&address, length), 0);
        int fd = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
        ASSERT_GE(fd, 0);
        close(listener);
        bev_ = ringpoll_bufferevent_socket_new(base_, fd, BEV_OPT_CLOSE_ON_FREE);
        ASSERT_NE(bev_, nullptr);
        ASSERT_EQ(ringpoll_bufferevent_set_zero_copy(bev_, 1), 0);
        bufferevent_setcb(bev_, nullptr, on_written, nullptr, this);
        ASSERT_EQ(bufferevent_enable(bev_, EV_READ | EV_WRITE), 0);
        event_base_loop(base_, EVLOOP_NONBLOCK);
    }

    void TearDown() override
    {
        if (bev_)
            bufferevent_free(bev_);
        if (base_) {
            event_base_loop(base_, EVLOOP_NONBLOCK);
            event_base_free(base_);
        }
        if (peer_ >= 0)
            close(peer_);
        struct timespec a_while = {5, 0};
        EXPECT_EQ(ringpoll_zc_reclaim(&a_while), 0);
        rp_send_zc_trial = 0;
    }

    static void on_written(struct bufferevent *bev, void *argument)
    {
        auto *self = static_cast<ZeroCopyOutput *>(argument);
        self->told++;
        EXPECT_EQ(evbuffer_get_length(bufferevent_get_output(bev)), 0u);
    }

    struct ringpoll_stats stats()
    {
        struct ringpoll_stats stats = {};
        stats.size = sizeof stats;
        EXPECT_EQ(ringpoll_get_stats(-1, &stats), 0);
        return stats;
    }

    void add(Piece &piece, size_t length)
    {
        piece.bytes.resize(length);
        for (size_t i = 0; i < length; i++)
            piece.bytes[i] = text(written_++);
        ASSERT_EQ(evbuffer_add_reference(bufferevent_get_output(bev_), piece.bytes.data(), length, give_back, &piece), 0);
    }

    void add_copied(size_t length)
    {
        std::string bytes(length, ' ');
        for (char &byte : bytes)
            byte = text(written_++);
        ASSERT_EQ(bufferevent_write(bev_, bytes.data(), length), 0);
    }

    /* How much it got, which is what was written. */
    ssize_t peer_takes(size_t most)
    {
        std::vector<char> bytes(most);
        ssize_t got = recv(peer_, bytes.data(), bytes.size(), MSG_DONTWAIT);
        for (ssize_t i = 0; i < got; i++) {
            if (bytes[(size_t)i] != text(read_ + (size_t)i)) {
                ADD_FAILURE() << "byte " << read_ + (size_t)i << " is " << bytes[(size_t)i];
                break;
            }
        }
        read_ += got > 0 ? (size_t)got : 0;
        return got;
    }

    /* The loop turns until the peer has it all, which reads `most` at once, and slowly. */
    void run(size_t most = 1 << 16)
    {
        for (int turns = 0; turns < 100000 && read_ < written_ && !HasFailure(); turns++) {
            event_base_loop(base_, EVLOOP_NONBLOCK);
            ssize_t got = peer_takes(most);
            if (got <= 0 && turns > 100) {
                struct pollfd look = {peer_, POLLIN, 0};
                poll(&look, 1, 1);
            }
        }
        ASSERT_EQ(read_, written_);
    }

    void all_given_back(std::vector<Piece> &pieces)
    {
        for (int i = 0; i < 5000; i++) {
            struct timespec a_moment = {0, 1000000};
            if (ringpoll_zc_reclaim(&a_moment) == 0)
                break;
        }
        event_base_loop(base_, EVLOOP_NONBLOCK);
        for (size_t i = 0; i < pieces.size(); i++)
            EXPECT_EQ(pieces[i].given_back, 1u) << i;
    }

    struct event_base *base_ = nullptr;
    struct bufferevent *bev_ = nullptr;
    int peer_ = -1;
    unsigned told = 0;
    size_t written_ = 0, read_ = 0;
};

TEST_F(ZeroCopyOutput, ArrivesWholeAndMemoryIsGivenBackOnce)
{
    std::vector<Piece> pieces(60);
    unsigned before = 0;
    for (size_t i = 0; i < pieces.size(); i++) {
        add_copied(1 + i * 100);
        add(pieces[i], 60000 + i * 3001);
        if (i % 3 == 0)
            add_copied(70000);
        before = told;
        run();
        ASSERT_FALSE(HasFatalFailure());
        for (int turns = 0; turns < 10 && told == before; turns++)
            event_base_loop(base_, EVLOOP_NONBLOCK);
        EXPECT_GT(told, before);
    }
    EXPECT_GT(stats().sends_zc, 0u);
    all_given_back(pieces);
}

TEST_F(ZeroCopyOutput, OfAChainThatIsTakenInPartsTheRestFollows)
{
    int small = 30000;
    ASSERT_EQ(setsockopt(bufferevent_getfd(bev_), SOL_SOCKET, SO_SNDBUF, &small, sizeof small), 0);
    std::vector<Piece> pieces(4);
    uint64_t before = stats().sends_zc;
    for (Piece &piece : pieces)
        add(piece, 700000);
    add_copied(100);
    run(20000);
    EXPECT_GT(stats().sends_zc, before);
    all_given_back(pieces);
}

TEST_F(ZeroCopyOutput, MemoryIsHeldBeyondTheBuffereventAndTheBase)
{
    std::vector<Piece> pieces(1);
    add(pieces[0], 100000);
    event_base_loop(base_, EVLOOP_NONBLOCK);
    bufferevent_free(bev_);
    bev_ = nullptr;
    event_base_loop(base_, EVLOOP_NONBLOCK);
    event_base_free(base_);
    base_ = nullptr;
    std::string bytes(1 << 16, ' ');
    for (ssize_t got; (got = recv(peer_, &bytes[0], bytes.size(), 0)) > 0; read_ += (size_t)got)
        for (ssize_t i = 0; i < got; i++)
            ASSERT_EQ(bytes[(size_t)i], text(read_ + (size_t)i));
    EXPECT_GT(read_, 0u);
    struct timespec a_while = {5, 0};
    EXPECT_EQ(ringpoll_zc_reclaim(&a_while), 0);
    EXPECT_EQ(pieces[0].given_back, 1u);
}

TEST_F(ZeroCopyOutput, AConnectionThatBreaksGivesAllBackOnce)
{
    std::vector<Piece> pieces(20);
    for (Piece &piece : pieces)
        add(piece, 300000);
    event_base_loop(base_, EVLOOP_NONBLOCK);
    struct linger at_once = {1, 0};
    setsockopt(peer_, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(peer_);
    peer_ = -1;
    for (int i = 0; i < 10; i++)
        event_base_loop(base_, EVLOOP_NONBLOCK);
    bufferevent_free(bev_);
    bev_ = nullptr;
    event_base_loop(base_, EVLOOP_NONBLOCK);
    all_given_back(pieces);
}

/* Memory of which libevent will not say when it is done with it is the program's again when
 * the output is empty. */
class ZeroCopyOutputOf : public ZeroCopyOutput, public testing::WithParamInterface<int> {};
TEST_P(ZeroCopyOutputOf, MemoryThatIsNotGivenBackIsReadNoMoreOnceItIsWritten)
{
    int much = 400000;
    ASSERT_EQ(setsockopt(bufferevent_getfd(bev_), SOL_SOCKET, SO_SNDBUF, &much, sizeof much), 0);
    std::vector<char> bytes(250000);
    for (char &byte : bytes)
        byte = text(written_++);
    struct evbuffer *output = bufferevent_get_output(bev_), *shared = evbuffer_new();
    if (GetParam() == 0) {
        ASSERT_EQ(evbuffer_add_reference(output, bytes.data(), bytes.size(), nullptr, nullptr), 0);
    } else {
        ASSERT_EQ(evbuffer_add_reference(shared, bytes.data(), bytes.size(), nullptr, nullptr), 0);
        ASSERT_EQ(evbuffer_add_buffer_reference(output, shared), 0);
    }
    for (int turns = 0; turns < 1000 && evbuffer_get_length(output) > 0; turns++)
        event_base_loop(base_, EVLOOP_NONBLOCK);
    ASSERT_EQ(evbuffer_get_length(output), 0u) << "the socket's buffer takes it all";
    std::fill(bytes.begin(), bytes.end(), '#');
    run();
    evbuffer_free(shared);
}
INSTANTIATE_TEST_SUITE_P(References, ZeroCopyOutputOf, testing::Values(0, 1));

/* What the program does when it has its memory again, the loop sees to at once. */
TEST_F(ZeroCopyOutput, WhatGivingBackMakesActiveDoesNotWaitForAnotherEvent)
{
    struct Seen {
        struct event *event, *guard;
        struct event_base *base;
        bool ran, late;
    } seen = {};
    seen.base = base_;
    seen.event = event_new(base_, -1, 0, [](evutil_socket_t, short, void *argument) {
        auto *noted = static_cast<Seen *>(argument);
        noted->ran = true;
        event_base_loopexit(noted->base, nullptr); /* after the guard, if that is due */
    }, &seen);
    std::string bytes(200000, 'x');
    ASSERT_EQ(evbuffer_add_reference(bufferevent_get_output(bev_), bytes.data(), bytes.size(), [](const void *, size_t, void *argument) {
        event_active(static_cast<Seen *>(argument)->event, EV_TIMEOUT, 1);
    }, &seen), 0);
    seen.guard = evtimer_new(base_, [](evutil_socket_t, short, void *argument) {
        static_cast<Seen *>(argument)->late = true;
        event_base_loopbreak(static_cast<Seen *>(argument)->base);
    }, &seen);
    struct timeval far = {10, 0}; /* that a failure ends */
    ASSERT_EQ(evtimer_add(seen.guard, &far), 0);
    std::thread reader([&] {
        std::string got(1 << 16, ' ');
        size_t all = 0;
        for (ssize_t count; all < bytes.size() && (count = recv(peer_, &got[0], got.size(), 0)) > 0;)
            all += (size_t)count;
        EXPECT_EQ(all, bytes.size());
    });
    event_base_dispatch(base_);
    reader.join();
    EXPECT_TRUE(seen.ran);
    EXPECT_FALSE(seen.late);
    event_free(seen.guard);
    event_free(seen.event);
}

/* A callback on the output may do what it likes, that included. */
TEST_F(ZeroCopyOutput, ACallbackOfTheOutputThatReclaimsTakesNothingAwayTooEarly)
{
    int small = 30000;
    ASSERT_EQ(setsockopt(bufferevent_getfd(bev_), SOL_SOCKET, SO_SNDBUF, &small, sizeof small), 0);
    evbuffer_add_cb(bufferevent_get_output(bev_), [](struct evbuffer *, const struct evbuffer_cb_info *info, void *argument) {
        struct timespec a_moment = {0, 1000000};
        for (int i = 0; i < 1000 && info->n_deleted > 0 && ringpoll_zc_reclaim(&a_moment) > 0; i++)
            static_cast<ZeroCopyOutput *>(argument)->peer_takes(1 << 16);
    }, this);
    std::vector<Piece> pieces(3);
    uint64_t before = stats().sends_zc;
    for (Piece &piece : pieces)
        add(piece, 700000);
    run(20000);
    EXPECT_GT(stats().sends_zc, before);
    all_given_back(pieces);
}

/* However many sends a chain took, giving it back takes no more stack. */
TEST_F(ZeroCopyOutput, AChainOfManySendsIsGivenBackWithoutNesting)
{
    struct Deep {
        const char *from;
        size_t bytes;
    } deep = {};
    char here = 0;
    deep.from = &here;
    int small = 30000;
    ASSERT_EQ(setsockopt(bufferevent_getfd(bev_), SOL_SOCKET, SO_SNDBUF, &small, sizeof small), 0);
    std::vector<char> bytes(8 << 20);
    for (char &byte : bytes)
        byte = text(written_++);
    uint64_t before = stats().sends_zc;
    ASSERT_EQ(evbuffer_add_reference(bufferevent_get_output(bev_), bytes.data(), bytes.size(), [](const void *, size_t, void *argument) {
        char there = 0;
        auto *noted = static_cast<Deep *>(argument);
        noted->bytes = (size_t)((uintptr_t)noted->from - (uintptr_t)&there);
    }, &deep), 0);
    run();
    EXPECT_GT(stats().sends_zc, before + 30);
    struct timespec a_while = {5, 0};
    EXPECT_EQ(ringpoll_zc_reclaim(&a_while), 0);
    EXPECT_GT(deep.bytes, 0u);
    EXPECT_LT(deep.bytes, 4096u);
}

TEST_F(ZeroCopyOutput, ALimitOfTheProgramsMeansNone)
{
    std::vector<Piece> pieces(2);
    uint64_t before = stats().sends_zc;
    ASSERT_EQ(bufferevent_set_max_single_write(bev_, 100000), 0);
    for (Piece &piece : pieces)
        add(piece, 100000);
    run();
    EXPECT_EQ(stats().sends_zc, before);
    all_given_back(pieces);
}

TEST_F(ZeroCopyOutput, IsOffUntilItIsAskedFor)
{
    ASSERT_EQ(ringpoll_bufferevent_set_zero_copy(bev_, 0), 0);
    std::vector<Piece> pieces(2);
    uint64_t before = stats().sends_zc;
    for (Piece &piece : pieces)
        add(piece, 100000);
    run();
    EXPECT_EQ(stats().sends_zc, before);
    struct bufferevent *other = ringpoll_bufferevent_socket_new(base_, -1, 0), *pair[2];
    ASSERT_EQ(bufferevent_pair_new(base_, 0, pair), 0);
    EXPECT_EQ(ringpoll_bufferevent_set_zero_copy(other, 1), 0);
    EXPECT_EQ(ringpoll_bufferevent_set_zero_copy(pair[0], 1), -ENOTSUP);
    EXPECT_EQ(ringpoll_bufferevent_set_zero_copy(nullptr, 1), -EINVAL);
    for (struct bufferevent *bev : {other, pair[0], pair[1]})
        bufferevent_free(bev);
    all_given_back(pieces);
}

TEST_F(ZeroCopyOutput, IsOffOnLoopback)
{
    rp_send_zc_trial = 0;
    std::vector<Piece> pieces(5);
    uint64_t before = stats().sends_zc;
    for (Piece &piece : pieces)
        add(piece, 100000);
    run();
    EXPECT_EQ(stats().sends_zc, before);
    for (Piece &piece : pieces)
        EXPECT_EQ(piece.given_back, 1u) << "at once";
}

} // namespace
