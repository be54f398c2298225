/* SPDX-License-Identifier: MIT
 *
 * Adopted sockets by the library's own API: what the shim's tests cannot reach.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <vector>
#include <thread>

#include <gtest/gtest.h>

#include "public_api.h"

extern "C" {
#include "set.h"
}

namespace {

class Adopted : public testing::Test {
protected:
    void SetUp() override
    {
        if (!kernel_adopts())
            GTEST_SKIP() << "this kernel adopts nothing";
        make(0);
    }

    void TearDown() override
    {
        for (int fd : {a_, b_, set_})
            if (fd >= 0)
                ringpoll_close(fd);
    }

    void make(uint32_t flags)
    {
        struct ringpoll_options options = {};
        options.size = sizeof options;
        options.flags = RINGPOLL_ADOPT | flags;
        options.buffers = 8;
        set_ = ringpoll_create(&options);
        ASSERT_GE(set_, 0);
        int fds[2];
        ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
        a_ = fds[0];
        b_ = fds[1];
        ringpoll_fd_opened(a_, RINGPOLL_FD_UNIX | RINGPOLL_FD_CONNECTED | RINGPOLL_FD_NONBLOCK);
        struct epoll_event event = {};
        event.events = EPOLLIN;
        ASSERT_EQ(ringpoll_ctl(set_, EPOLL_CTL_ADD, a_, &event), 0);
        for (int i = 0; i < 8 && stats().adopted == 0; i++) {
            ASSERT_EQ(write(b_, "x", 1), 1);
            ASSERT_EQ(wait(1000), 1);
            ASSERT_EQ(take(), "x");
            wait(0);
        }
        ASSERT_EQ(stats().adopted, 1u);
    }

    struct ringpoll_stats stats()
    {
        struct ringpoll_stats stats = {};
        stats.size = sizeof stats;
        EXPECT_EQ(ringpoll_get_stats(set_, &stats), 0);
        return stats;
    }

    int wait(int ms)
    {
        struct timespec time = {ms / 1000, ms % 1000 * 1000000};
        struct epoll_event event = {};
        return ringpoll_wait(set_, &event, 1, &time, nullptr);
    }

    /* What there is, by whichever call gives it. */
    std::string take()
    {
        std::string all;
        char bytes[64];
        for (;;) {
            long got = ringpoll_try_recv(a_, bytes, sizeof bytes, 0);
            if (got == RINGPOLL_PASS) {
                got = read(a_, bytes, sizeof bytes);
                ringpoll_fd_read(a_, sizeof bytes, got < 0 ? -errno : got);
                if (got < 0)
                    got = -errno;
            }
            if (got <= 0)
                return all;
            all.append(bytes, (size_t)got);
        }
    }

    int set_ = -1, a_ = -1, b_ = -1;
};

TEST_F(Adopted, BytesAreBorrowedWithoutACopy)
{
    ASSERT_EQ(write(b_, "hello", 5), 5);
    ASSERT_EQ(wait(1000), 1);
    struct ringpoll_buffer buffer = {};
    ASSERT_EQ(ringpoll_borrow(a_, &buffer, 0), 5);
    EXPECT_EQ(std::string((char *)buffer.data, buffer.length), "hello");
    struct ringpoll_buffer none = {};
    EXPECT_EQ(ringpoll_borrow(a_, &none, 0), -EAGAIN);
    ringpoll_return(&buffer);
    ringpoll_return(&buffer); /* once is enough, twice does no harm */
    EXPECT_EQ(wait(0), 0);
}

/* The kernel may set it after the enter that ran the work, and no enter takes it back. */
TEST_F(Adopted, ATaskrunFlagWithoutWorkCostsAReadFewEnters)
{
    ASSERT_EQ(write(b_, "hello", 5), 5);
    ASSERT_EQ(wait(1000), 1);
    struct ringpoll_stats before = stats();
    __atomic_fetch_or(const_cast<uint32_t *>(rp_set_of(set_)->ring.sq_flags), RP_SQ_TASKRUN, __ATOMIC_RELEASE);
    char bytes[64];
    EXPECT_EQ(ringpoll_try_recv(a_, bytes, sizeof bytes, 0), 5);
    EXPECT_LE(stats().enters - before.enters, 8u);
}

TEST_F(Adopted, ABorrowedBufferOutlivesSetAndSocket)
{
    ASSERT_EQ(write(b_, "still here", 10), 10);
    ASSERT_EQ(wait(1000), 1);
    struct ringpoll_buffer buffer = {};
    ASSERT_EQ(ringpoll_borrow(a_, &buffer, 0), 10);
    EXPECT_EQ(ringpoll_close(set_), 0);
    EXPECT_EQ(ringpoll_close(a_), 0);
    set_ = a_ = -1;
    EXPECT_EQ(std::string((char *)buffer.data, buffer.length), "still here");
    std::thread([&] { ringpoll_return(&buffer); }).join();
}

TEST_F(Adopted, ABufferIsReturnedByAnyAddressInIt)
{
    for (int round = 0; round < 100; round++) { /* there are eight */
        ASSERT_EQ(write(b_, "hello", 5), 5);
        ASSERT_EQ(wait(1000), 1);
        struct ringpoll_buffer buffer = {};
        ASSERT_EQ(ringpoll_borrow(a_, &buffer, 0), 5) << round;
        ringpoll_return_at(buffer.pool, (char *)buffer.data + round % 5);
    }
}

/* Only what is declared is adopted; of the rest nobody need report anything. */
TEST_F(Adopted, ASetOfDeclaredOnesLeavesAllOthersAlone)
{
    struct ringpoll_options options = {};
    options.size = sizeof options;
    options.flags = RINGPOLL_DECLARED;
    EXPECT_EQ(ringpoll_create(&options), -EINVAL) << "of what kind?";
    options.flags = RINGPOLL_DECLARED | RINGPOLL_TRACKED | RINGPOLL_ADOPT;
    EXPECT_EQ(ringpoll_create(&options), -EINVAL);
    options.flags = RINGPOLL_DECLARED | RINGPOLL_BATCH | RINGPOLL_ACCEPT;
    int set = ringpoll_create(&options);
    ASSERT_GE(set, 0);
    for (uint32_t declared : {0u, RINGPOLL_FD_DECLARED}) {
        int fds[2];
        ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
        if (declared)
            ringpoll_fd_opened(fds[0], RINGPOLL_FD_UNIX | RINGPOLL_FD_CONNECTED | RINGPOLL_FD_NONBLOCK | declared);
        struct epoll_event event = {};
        event.events = EPOLLIN;
        ASSERT_EQ(ringpoll_ctl(set, EPOLL_CTL_ADD, fds[0], &event), 0);
        struct ringpoll_stats stats = {};
        stats.size = sizeof stats;
        for (int round = 0; round < 20; round++) {
            char byte;
            ASSERT_EQ(write(fds[1], "x", 1), 1);
            ASSERT_EQ(ringpoll_wait(set, &event, 1, nullptr, nullptr), 1);
            long got = ringpoll_try_recv(fds[0], &byte, 1, 0);
            if (got == RINGPOLL_PASS)
                got = read(fds[0], &byte, 1);
            ASSERT_EQ(got, 1);
            ringpoll_fd_read(fds[0], 16, 1);
        }
        ASSERT_EQ(ringpoll_get_stats(set, &stats), 0);
        EXPECT_EQ(stats.adopted, declared ? 1u : 0u);
        EXPECT_EQ(stats.watches_ring, declared ? 1u : 0u) << "others are kernel epoll's";
        EXPECT_EQ(ringpoll_close(fds[0]), 0);
        close(fds[1]);
    }
    EXPECT_EQ(ringpoll_close(set), 0);
}

/* A connection that nothing has come by, declared, in a set that batches. */
class First : public testing::Test {
protected:
    void SetUp() override
    {
        if (!kernel_adopts())
            GTEST_SKIP() << "this kernel adopts nothing";
        struct ringpoll_options options = {};
        options.size = sizeof options;
        options.flags = RINGPOLL_DECLARED | RINGPOLL_BATCH | RINGPOLL_ACCEPT;
        set_ = ringpoll_create(&options);
        ASSERT_GE(set_, 0);
        struct sockaddr_in address = {};
        socklen_t length = sizeof address;
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        ASSERT_EQ(bind(listener, (struct sockaddr *)&address, sizeof address), 0);
        ASSERT_EQ(listen(listener, 1), 0);
        getsockname(listener, (struct sockaddr *)&address, &length);
        b_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        ASSERT_EQ(connect(b_, (struct sockaddr *)&address, sizeof address), 0);
        a_ = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
        fcntl(b_, F_SETFL, O_NONBLOCK);
        close(listener);
        ringpoll_fd_opened(a_, RINGPOLL_FD_TCP | RINGPOLL_FD_CONNECTED | RINGPOLL_FD_NONBLOCK | RINGPOLL_FD_DECLARED);
        watch(EPOLL_CTL_ADD, EPOLLIN);
        EXPECT_EQ(wait(0), 0);
        EXPECT_EQ(stats().adopted, 1u);
    }
    void TearDown() override
    {
        for (int fd : {a_, b_, set_})
            if (fd >= 0)
                ringpoll_close(fd);
    }
    void watch(int op, uint32_t events)
    {
        struct epoll_event event = {};
        event.events = events;
        ASSERT_EQ(ringpoll_ctl(set_, op, a_, &event), 0);
    }
    uint32_t wait(int ms)
    {
        struct timespec time = {ms / 1000, ms % 1000 * 1000000};
        struct epoll_event event = {};
        return ringpoll_wait(set_, &event, 1, &time, nullptr) == 1 ? event.events : 0;
    }
    struct ringpoll_stats stats()
    {
        struct ringpoll_stats stats = {};
        stats.size = sizeof stats;
        EXPECT_EQ(ringpoll_get_stats(set_, &stats), 0);
        return stats;
    }
    /* One read, as a program makes it; -errno. */
    long read_one(char *bytes, size_t size)
    {
        long got = ringpoll_try_recv(a_, bytes, size, 0);
        if (got != RINGPOLL_PASS)
            return got;
        got = read(a_, bytes, size);
        got = got < 0 ? -errno : got;
        ringpoll_fd_read(a_, size, got);
        return got;
    }
    std::string take()
    {
        std::string all;
        char bytes[8192];
        for (long got; (got = read_one(bytes, sizeof bytes)) > 0;)
            all.append(bytes, (size_t)got);
        return all;
    }
    long put(const std::string &bytes)
    {
        struct iovec iov = {const_cast<char *>(bytes.data()), bytes.size()};
        rp_set_of(set_)->turn_events = 2; /* so that it is batched */
        long sent = ringpoll_try_sendv(a_, &iov, 1, 0);
        if (sent != RINGPOLL_PASS)
            return sent;
        sent = write(a_, bytes.data(), bytes.size());
        return sent < 0 ? -errno : sent;
    }
    int set_ = -1, a_ = -1, b_ = -1;
};

TEST_F(First, BytesAreReceivedAndTheAnswerIsBatchedWithNothingLeftArmed)
{
    char bytes[64] = {};
    ASSERT_EQ(write(b_, "hello", 5), 5);
    ASSERT_EQ(wait(1000), (uint32_t)EPOLLIN);
    EXPECT_EQ(stats().received, 1u);
    ASSERT_EQ(ringpoll_try_recv(a_, bytes, sizeof bytes, 0), 5);
    EXPECT_STREQ(bytes, "hello");
    EXPECT_EQ(put("world"), 5);
    EXPECT_EQ(read(b_, bytes, sizeof bytes), -1) << "with the next wait, or a flush";
    EXPECT_EQ(ringpoll_flush(), 0);
    EXPECT_EQ(read(b_, bytes, sizeof bytes), 5);
    EXPECT_EQ(stats().sends_batched, 1u);
    struct ringpoll_stats before = stats();
    EXPECT_EQ(ringpoll_close(a_), 0);
    a_ = -1;
    EXPECT_EQ(stats().enters, before.enters) << "there was nothing to cancel";
    EXPECT_EQ(read(b_, bytes, sizeof bytes), 0);
    EXPECT_EQ(stats().adopted, 0u);
}

TEST_F(First, WhatComesLaterComesWhole)
{
    std::string got, want;
    for (int round = 0; round < 20; round++) {
        std::string text(1 + (size_t)round * 37, (char)('a' + round));
        want += text;
        ASSERT_EQ(write(b_, text.data(), text.size()), (ssize_t)text.size());
        ASSERT_EQ(wait(1000), (uint32_t)EPOLLIN) << round;
        got += take();
        EXPECT_EQ(wait(0), 0u) << round << ": it was drained";
        ASSERT_EQ(put(text), (long)text.size());
        ringpoll_flush();
        std::string back(text.size(), ' ');
        ASSERT_EQ(read(b_, back.data(), back.size()), (ssize_t)text.size());
        EXPECT_EQ(back, text);
    }
    EXPECT_EQ(got, want);
}

TEST_F(First, MoreThanABufferIsReportedUntilItWasRead)
{
    std::string got, want(100000, ' ');
    for (size_t i = 0; i < want.size(); i++)
        want[i] = (char)('a' + i % 23 + i / 1000 % 3);
    ASSERT_EQ(write(b_, want.data(), want.size()), (ssize_t)want.size());
    while (got.size() < want.size()) {
        char bytes[777];
        ASSERT_EQ(wait(1000), (uint32_t)EPOLLIN) << "after " << got.size();
        long count = read_one(bytes, sizeof bytes);
        ASSERT_GT(count, 0);
        got.append(bytes, (size_t)count);
    }
    EXPECT_EQ(got, want);
    EXPECT_EQ(wait(0), 0u);
}

TEST_F(First, AnEndWithoutBytesIsReportedUntilItIsSeen)
{
    char byte;
    shutdown(b_, SHUT_WR);
    for (int i = 0; i < 3; i++)
        EXPECT_EQ(wait(1000) & (EPOLLIN | EPOLLHUP), (uint32_t)EPOLLIN);
    EXPECT_EQ(read_one(&byte, 1), 0);
}

TEST_F(First, AnEndBehindTheBytesComesAfterThem)
{
    char byte;
    ASSERT_EQ(write(b_, "last", 4), 4);
    shutdown(b_, SHUT_WR);
    ASSERT_TRUE(wait(1000) & EPOLLIN);
    EXPECT_EQ(take(), "last");
    ASSERT_TRUE(wait(1000) & EPOLLIN);
    EXPECT_EQ(read_one(&byte, 1), 0);
}

TEST_F(First, AResetIsTheReadsError)
{
    struct linger at_once = {1, 0};
    char byte;
    setsockopt(b_, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(b_);
    b_ = -1;
    EXPECT_TRUE(wait(1000) & EPOLLIN);
    EXPECT_EQ(read_one(&byte, 1), -ECONNRESET);
}

TEST_F(First, RemovedBeforeAnythingCameItIsThePrograms)
{
    char bytes[16];
    watch(EPOLL_CTL_DEL, 0);
    ringpoll_fd_forget(a_);
    ASSERT_EQ(write(b_, "plain", 5), 5);
    EXPECT_EQ(wait(0), 0u);
    EXPECT_EQ(read(a_, bytes, sizeof bytes), 5);
}

TEST_F(First, RemovedInItsTurnWithAnAnswerWaitingNothingIsLost)
{
    char bytes[16];
    ASSERT_EQ(write(b_, "hello", 5), 5);
    ASSERT_TRUE(wait(1000) & EPOLLIN);
    EXPECT_EQ(take(), "hello");
    EXPECT_EQ(put("answer"), 6);
    watch(EPOLL_CTL_DEL, 0);
    EXPECT_EQ(ringpoll_fd_flush(a_), 0);
    EXPECT_EQ(read(b_, bytes, sizeof bytes), 6);
    EXPECT_EQ(wait(0), 0u);
}

TEST_F(First, AnAnswerThatFindsNoRoomGoesOutInOrder)
{
    char bytes[65536];
    std::string got;
    ASSERT_EQ(write(b_, "hello", 5), 5);
    ASSERT_TRUE(wait(1000) & EPOLLIN);
    EXPECT_EQ(take(), "hello");
    memset(bytes, 'x', sizeof bytes);
    size_t filled = 0;
    for (ssize_t sent; (sent = write(a_, bytes, sizeof bytes)) > 0;) /* full, unseen */
        filled += (size_t)sent;
    EXPECT_EQ(put("answer"), 6);
    EXPECT_EQ(ringpoll_flush(), 1);
    watch(EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
    EXPECT_EQ(wait(0), 0u) << "no room, no bytes";
    for (int turn = 0; turn < 10000 && got.size() < filled + 6; turn++) {
        ssize_t count = read(b_, bytes, sizeof bytes);
        if (count > 0)
            got.append(bytes, (size_t)count);
        wait(0);
    }
    ASSERT_EQ(got.size(), filled + 6);
    EXPECT_EQ(got.substr(filled), "answer");
    EXPECT_EQ(wait(1000), (uint32_t)EPOLLOUT);
    EXPECT_EQ(ringpoll_fd_flush(a_), 0);
}

TEST_F(First, AWriteBehindABatchedOneStaysBehindIt)
{
    ASSERT_EQ(write(b_, "hello", 5), 5);
    ASSERT_TRUE(wait(1000) & EPOLLIN);
    EXPECT_EQ(take(), "hello");
    EXPECT_EQ(put("one "), 4);
    EXPECT_EQ(put("two "), 4);
    std::string big(5000, 'b');
    EXPECT_EQ(put(big), (long)big.size());
    EXPECT_EQ(wait(0), 0u); /* the poll takes over; what waited has gone */
    EXPECT_EQ(put("three"), 5);
    ringpoll_flush();
    std::string got(8192, ' ');
    ssize_t count = read(b_, got.data(), got.size());
    got.resize(count > 0 ? (size_t)count : 0);
    EXPECT_EQ(got, "one two " + big + "three");
}

TEST_F(First, DemotionInItsTurnLosesNothing)
{
    char bytes[16];
    ASSERT_EQ(write(b_, "hello", 5), 5);
    ASSERT_TRUE(wait(1000) & EPOLLIN);
    EXPECT_EQ(put("answer"), 6);
    ringpoll_demote(set_);
    EXPECT_TRUE(wait(1000) & EPOLLIN);
    EXPECT_EQ(take(), "hello");
    EXPECT_EQ(read(b_, bytes, sizeof bytes), 6);
    ASSERT_EQ(write(b_, "more", 4), 4);
    EXPECT_TRUE(wait(1000) & EPOLLIN);
    EXPECT_EQ(take(), "more");
}

TEST_F(First, AnotherThreadReadsAndWritesInOrder)
{
    ASSERT_EQ(write(b_, "hello", 5), 5);
    ASSERT_TRUE(wait(1000) & EPOLLIN);
    EXPECT_EQ(put("one "), 4);
    std::thread([&] {
        EXPECT_EQ(take(), "hello");
        EXPECT_EQ(put("two"), 3);
    }).join();
    char bytes[16] = {};
    EXPECT_EQ(read(b_, bytes, sizeof bytes), 7);
    EXPECT_STREQ(bytes, "one two");
}

/* Their addresses come by one enter, not by a call for each. */
TEST_F(First, ManyAcceptedConnectionsHaveTheirAddresses)
{
    struct ringpoll_probe probe = {};
    probe.size = sizeof probe;
    if (ringpoll_get_probe(&probe) != 0 || !(probe.usable & RINGPOLL_FEATURE_MULTISHOT_ACCEPT))
        GTEST_SKIP() << "this kernel's rings accept nothing";
    for (int family : {AF_INET, AF_INET6}) {
        struct sockaddr_storage address = {};
        socklen_t length = family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
        address.ss_family = (sa_family_t)family;
        if (family == AF_INET)
            ((struct sockaddr_in *)&address)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        else
            ((struct sockaddr_in6 *)&address)->sin6_addr = in6addr_loopback;
        int listener = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (listener < 0 || bind(listener, (struct sockaddr *)&address, length) != 0) {
            close(listener);
            continue; /* no IPv6 here */
        }
        ASSERT_EQ(listen(listener, 128), 0);
        getsockname(listener, (struct sockaddr *)&address, &length);
        ringpoll_fd_opened(listener, RINGPOLL_FD_TCP | RINGPOLL_FD_NONBLOCK | RINGPOLL_FD_DECLARED);
        ringpoll_fd_listening(listener, 128);
        struct epoll_event event = {};
        event.events = EPOLLIN;
        ASSERT_EQ(ringpoll_ctl(set_, EPOLL_CTL_ADD, listener, &event), 0);
        for (unsigned round = 0; round < 12; round++) {
            const unsigned most = 1 + round * 9; /* more than one enter asks for, at last */
            std::vector<int> clients, taken;
            for (unsigned i = 0; i < most; i++) {
                clients.push_back(socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
                ASSERT_EQ(connect(clients.back(), (struct sockaddr *)&address, length), 0);
            }
            /* One has gone by then: its address is the kernel's to tell, or it is not given at all. */
            if (round % 3 == 2) {
                struct linger at_once = {1, 0};
                setsockopt(clients[most / 2], SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
                close(clients[most / 2]);
                clients[most / 2] = -1;
            }
            for (unsigned turn = 0; turn < 1000 && taken.size() < most; turn++) {
                struct timespec now = {0, 1000000};
                if (ringpoll_wait(set_, &event, 1, &now, nullptr) <= 0)
                    continue;
                for (;;) {
                    struct sockaddr_storage peer, real;
                    socklen_t size = sizeof peer, real_size = sizeof real;
                    memset(&peer, 0x55, sizeof peer);
                    int fd = (int)ringpoll_accept(listener, (struct sockaddr *)&peer, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
                    if (fd < 0)
                        break;
                    taken.push_back(fd);
                    EXPECT_EQ(size, family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6));
                    if (getpeername(fd, (struct sockaddr *)&real, &real_size) == 0) {
                        EXPECT_EQ(memcmp(&peer, &real, real_size), 0) << round << ": " << taken.size();
                    }
                }
                if (round % 3 == 2 && taken.size() + 1 == most)
                    break;
            }
            EXPECT_GE(taken.size() + (round % 3 == 2), most);
            for (int fd : taken)
                ringpoll_close(fd);
            for (int fd : clients)
                if (fd >= 0)
                    close(fd);
        }
        ringpoll_close(listener);
    }
}

/* Sets of which what is not declared is plain: kernel epoll's, at its cost. */
class Declared : public testing::Test {
protected:
    static constexpr int PLAIN = 16;
    void SetUp() override
    {
        if (!kernel_adopts())
            GTEST_SKIP() << "this kernel adopts nothing";
        struct ringpoll_options options = {};
        options.size = sizeof options;
        options.flags = RINGPOLL_DECLARED | RINGPOLL_BATCH | RINGPOLL_ACCEPT;
        set_ = ringpoll_create(&options);
        ASSERT_GE(set_, 0);
        for (auto &pair : plain_) {
            ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
            add(pair[0]);
        }
    }
    void TearDown() override
    {
        for (auto &pair : plain_) {
            ringpoll_ctl(set_, EPOLL_CTL_DEL, pair[0], nullptr);
            close(pair[0]);
            close(pair[1]);
        }
        for (int fd : others_)
            ringpoll_close(fd);
        ringpoll_close(set_);
    }
    void add(int fd, uint32_t events = EPOLLIN)
    {
        struct epoll_event event = {};
        event.events = events;
        event.data.fd = fd;
        ASSERT_EQ(ringpoll_ctl(set_, EPOLL_CTL_ADD, fd, &event), 0);
    }
    int declare(int *ret_peer)
    {
        int fds[2];
        if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) != 0)
            abort();
        ringpoll_fd_opened(fds[0], RINGPOLL_FD_UNIX | RINGPOLL_FD_CONNECTED | RINGPOLL_FD_NONBLOCK | RINGPOLL_FD_DECLARED);
        others_.push_back(fds[0]);
        others_.push_back(fds[1]);
        *ret_peer = fds[1];
        return fds[0];
    }
    void close_declared()
    {
        for (int fd : others_)
            ringpoll_close(fd);
        others_.clear();
    }
    struct ringpoll_stats stats()
    {
        struct ringpoll_stats stats = {};
        stats.size = sizeof stats;
        EXPECT_EQ(ringpoll_get_stats(set_, &stats), 0);
        return stats;
    }
    static std::string read_all(int fd)
    {
        std::string all;
        char bytes[64];
        for (;;) {
            long got = ringpoll_try_recv(fd, bytes, sizeof bytes, 0);
            if (got == RINGPOLL_PASS) {
                got = read(fd, bytes, sizeof bytes);
                got = got < 0 ? -errno : got;
                ringpoll_fd_read(fd, sizeof bytes, got);
            }
            if (got <= 0)
                return all;
            all.append(bytes, (size_t)got);
        }
    }
    /* What one wait tells of this fd. */
    uint32_t told_of(int fd, int ms = 0)
    {
        struct epoll_event events[64];
        struct timespec time = {ms / 1000, ms % 1000 * 1000000};
        int count = ringpoll_wait(set_, events, 64, &time, nullptr);
        for (int i = 0; i < count; i++)
            if (events[i].data.fd == fd)
                return events[i].events;
        return 0;
    }
    /* So many events of plain fds, each of a turn of its own, each told once. */
    void busy(int turns)
    {
        struct timespec time = {5, 0};
        for (int turn = 0; turn < turns; turn++) {
            struct epoll_event event = {};
            int *pair = plain_[turn % PLAIN];
            char byte;
            ASSERT_EQ(write(pair[1], "x", 1), 1);
            ASSERT_EQ(ringpoll_wait(set_, &event, 1, &time, nullptr), 1);
            ASSERT_EQ(event.data.fd, pair[0]);
            ASSERT_EQ(event.events, (uint32_t)EPOLLIN);
            ASSERT_EQ(read(pair[0], &byte, 1), 1);
        }
    }
    int set_ = -1, plain_[PLAIN][2];
    std::vector<int> others_;
};

TEST_F(Declared, PlainFdsAreKernelEpollsAndCauseNoRing)
{
    busy(1000);
    struct ringpoll_stats now = stats();
    EXPECT_EQ(now.rings, 0u);
    EXPECT_EQ(now.engine, RINGPOLL_ENGINE_KERNEL);
    EXPECT_EQ(now.enters + now.rechecks, 0u);
    EXPECT_EQ(now.waits, 1000u);
    EXPECT_EQ(now.events, 1000u);
    EXPECT_EQ(now.kernel_waits, now.waits) << "a call each, and no other";
    EXPECT_EQ(now.kernel_ctls, (uint64_t)PLAIN);
    EXPECT_EQ(now.watches_kernel, (uint64_t)PLAIN);
    struct epoll_event event = {};
    EXPECT_EQ(ringpoll_ctl(set_, EPOLL_CTL_ADD, plain_[0][0], &event), -EEXIST);
    EXPECT_EQ(ringpoll_ctl(set_, EPOLL_CTL_DEL, plain_[0][0], nullptr), 0);
    EXPECT_EQ(ringpoll_ctl(set_, EPOLL_CTL_DEL, plain_[0][0], nullptr), -ENOENT);
    EXPECT_EQ(ringpoll_ctl(set_, EPOLL_CTL_MOD, plain_[0][0], &event), -ENOENT);
    EXPECT_EQ(ringpoll_ctl(set_, EPOLL_CTL_ADD, -1, &event), -EBADF);
    EXPECT_EQ(ringpoll_ctl(set_, EPOLL_CTL_ADD, set_, &event), -EINVAL);
    EXPECT_EQ(stats().watches_kernel, PLAIN - 1u);
    add(plain_[0][0]);
    busy(PLAIN);
}

TEST_F(Declared, TheRingComesWithWhatIsDeclaredAndGoesWithIt)
{
    for (int time = 0; time < 3; time++) {
        int peer;
        busy(300);
        EXPECT_EQ(stats().rings, 0u) << time;
        int fd = declare(&peer);
        add(fd);
        for (int round = 0; round < 8; round++) {
            ASSERT_EQ(write(peer, "bytes", 5), 5);
            EXPECT_EQ(told_of(fd, 1000), (uint32_t)EPOLLIN) << time;
            EXPECT_EQ(read_all(fd), "bytes");
        }
        EXPECT_EQ(stats().rings, 1u) << time;
        EXPECT_EQ(stats().adopted, 1u) << time << ": whatever was before";
        busy(100);
        EXPECT_EQ(stats().rings, 1u) << time;
        close_declared();
        busy(4 * 4096);
    }
}

/* Each ring costs some calls at its begin and its end, and in its first turns. */
TEST_F(Declared, ARingForShortGuestsIsNotMadeTimeAndAgain)
{
    for (int guest = 0; guest < 100; guest++) {
        int peer, fd = declare(&peer);
        add(fd);
        ASSERT_EQ(write(peer, "bytes", 5), 5);
        EXPECT_EQ(told_of(fd, 1000), (uint32_t)EPOLLIN);
        EXPECT_EQ(read_all(fd), "bytes");
        close_declared();
        busy(300);
    }
    EXPECT_LE(stats().demotions, 4u);
}

/* A ring that is mostly idle costs each turn a call. */
TEST_F(Declared, ARingThatDoesNotPayIsLeftForAWhileAndLosesNothing)
{
    int peer, later_peer;
    int fd = declare(&peer);
    add(fd);
    for (int round = 0; round < 8; round++) {
        ASSERT_EQ(write(peer, "bytes", 5), 5);
        EXPECT_EQ(told_of(fd, 1000), (uint32_t)EPOLLIN);
        EXPECT_EQ(read_all(fd), "bytes");
    }
    EXPECT_EQ(stats().adopted, 1u);
    busy(600);
    struct ringpoll_stats away = stats();
    EXPECT_EQ(away.rings, 0u);
    EXPECT_EQ(away.adopted, 0u);
    /* There it is told of, and one that is declared now as well. */
    int later = declare(&later_peer);
    add(later);
    EXPECT_EQ(told_of(fd), 0u);
    ASSERT_EQ(write(peer, "more", 4), 4);
    ASSERT_EQ(write(later_peer, "first", 5), 5);
    EXPECT_EQ(told_of(fd), (uint32_t)EPOLLIN);
    EXPECT_EQ(told_of(later), (uint32_t)EPOLLIN) << "level-triggered";
    EXPECT_EQ(read_all(later), "first");
    EXPECT_EQ(read_all(fd), "more");
    busy(1000);
    EXPECT_EQ(stats().enters, away.enters);
    /* After that both are on a ring again, which has its chance. */
    for (int turns = 0; turns < 20000 && stats().rings == 0; turns += 100)
        busy(100);
    EXPECT_EQ(stats().rings, 1u);
    for (int round = 0; round < 200; round++) {
        ASSERT_EQ(write(peer, "more", 4), 4);
        ASSERT_EQ(write(later_peer, "again", 5), 5);
        EXPECT_EQ(told_of(fd, 1000), (uint32_t)EPOLLIN);
        EXPECT_EQ(read_all(fd), "more");
        EXPECT_EQ(read_all(later), "again");
    }
    EXPECT_EQ(stats().adopted, 2u);
    /* And leaves it again, with bytes that the ring has received, and nobody has read. */
    ASSERT_EQ(write(later_peer, "late", 4), 4);
    EXPECT_EQ(told_of(later, 1000), (uint32_t)EPOLLIN);
    struct epoll_event none = {}, readable = {};
    readable.events = EPOLLIN;
    readable.data.fd = later;
    ASSERT_EQ(ringpoll_ctl(set_, EPOLL_CTL_MOD, later, &none), 0);
    for (int turns = 0; turns < 20000 && stats().rings == 1; turns += 100)
        busy(100);
    EXPECT_EQ(stats().rings, 0u);
    ASSERT_EQ(ringpoll_ctl(set_, EPOLL_CTL_MOD, later, &readable), 0);
    EXPECT_EQ(told_of(later), (uint32_t)EPOLLIN);
    ASSERT_EQ(write(later_peer, "r", 1), 1);
    EXPECT_EQ(told_of(later), (uint32_t)EPOLLIN);
    EXPECT_EQ(read_all(later), "later");
    EXPECT_EQ(told_of(later), 0u);
    shutdown(peer, SHUT_WR);
    EXPECT_TRUE(told_of(fd) & EPOLLIN);
    EXPECT_EQ(read_all(fd), "");
}

TEST_F(Declared, AChildHasItsOwnCopyOfPlainFdsToo)
{
    for (bool on_ring : {false, true}) {
        int peer = -1, fd = -1;
        if (on_ring)
            add(fd = declare(&peer));
        busy(PLAIN);
        EXPECT_EQ(stats().rings, on_ring ? 1u : 0u);
        ringpoll_fork_prepare();
        pid_t child = fork();
        if (child == 0) {
            ringpoll_fork_child();
            busy(PLAIN);
            bool fine = told_of(plain_[0][0]) == 0;
            if (on_ring)
                fine = fine && write(peer, "x", 1) == 1 && told_of(fd, 1000) == EPOLLIN && read_all(fd) == "x";
            /* What it deletes is its own. */
            fine = fine && ringpoll_ctl(set_, EPOLL_CTL_DEL, plain_[1][0], nullptr) == 0;
            _exit(fine && !HasFailure() ? 0 : 1);
        }
        ringpoll_fork_parent();
        int status = -1;
        ASSERT_EQ(waitpid(child, &status, 0), child);
        EXPECT_EQ(status, 0) << on_ring;
        busy(PLAIN);
        EXPECT_EQ(stats().rings, on_ring ? 1u : 0u);
    }
}

/* What only the kernel knows of a plain fd. */
TEST_F(Declared, AChildsCopyIsOfTheSameFilesInTheSameState)
{
    auto in_child = [&](auto &&act) {
        ringpoll_fork_prepare();
        pid_t child = fork();
        if (child == 0) {
            ringpoll_fork_child();
            act();
            _exit(HasFailure() ? 1 : 0);
        }
        ringpoll_fork_parent();
        int status = -1;
        EXPECT_EQ(waitpid(child, &status, 0), child);
        EXPECT_EQ(status, 0);
    };
    int once[2], large[2], gone[2], reused[2];
    for (int *pair : {once, large, gone, reused}) {
        ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
        others_.insert(others_.end(), {pair[0], pair[1]});
    }
    struct epoll_event event = {};
    /* A one-shot that has told. */
    add(once[0], EPOLLIN | EPOLLONESHOT);
    ASSERT_EQ(write(once[1], "x", 1), 1);
    EXPECT_EQ(told_of(once[0], 1000), (uint32_t)EPOLLIN);
    /* Data of 64 bits. */
    event.events = EPOLLIN | EPOLLEXCLUSIVE;
    event.data.u64 = UINT64_C(0xfedcba9876543210);
    ASSERT_EQ(ringpoll_ctl(set_, EPOLL_CTL_ADD, large[0], &event), 0);
    /* A number whose file lives on, and another that has the number now. */
    add(gone[0]);
    int kept = dup(gone[0]);
    ASSERT_EQ(dup2(reused[0], gone[0]), gone[0]);
    others_.push_back(kept);

    in_child([&] {
        char byte;
        ASSERT_EQ(write(reused[1], "x", 1), 1);
        EXPECT_EQ(told_of(gone[0]), 0u) << "nobody asked for this file";
        ASSERT_EQ(read(gone[0], &byte, 1), 1);
        struct epoll_event told[2] = {};
        struct timespec second = {1, 0};
        ASSERT_EQ(write(large[1], "x", 1), 1);
        ASSERT_EQ(ringpoll_wait(set_, told, 2, &second, nullptr), 1);
        EXPECT_EQ(told[0].data.u64, UINT64_C(0xfedcba9876543210));
        EXPECT_EQ(told[0].events, (uint32_t)EPOLLIN);
        ASSERT_EQ(read(large[0], &byte, 1), 1);
        shutdown(once[1], SHUT_RDWR);
        in_child([&] {
            EXPECT_EQ(told_of(once[0]), 0u) << "disabled";
            struct epoll_event again = {};
            again.events = EPOLLIN | EPOLLONESHOT;
            again.data.fd = once[0];
            ASSERT_EQ(ringpoll_ctl(set_, EPOLL_CTL_MOD, once[0], &again), 0);
            EXPECT_EQ(told_of(once[0]), (uint32_t)(EPOLLIN | EPOLLHUP));
            EXPECT_EQ(told_of(once[0]), 0u);
        });
        EXPECT_EQ(told_of(once[0]), 0u) << "disabled";
    });
}

/* The wait of another thread's: plain fds need nobody's help, a declared one is told of at once
 * and gets its ring with the next turn. */
TEST_F(Declared, AnotherThreadAddsBesideAWaitInKernelEpoll)
{
    int peer, fd = declare(&peer), told = 0, extra[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, extra), 0);
    others_.insert(others_.end(), {extra[0], extra[1]});
    busy(3);
    std::thread other([&] {
        /* It is in its wait, or will be: both are fine. */
        add(extra[0]);
        add(fd);
        EXPECT_EQ(write(extra[1], "x", 1), 1);
        EXPECT_EQ(write(peer, "x", 1), 1);
    });
    for (int turn = 0; turn < 1000 && told != 3; turn++) {
        struct epoll_event events[8];
        struct timespec second = {1, 0};
        int count = ringpoll_wait(set_, events, 8, &second, nullptr);
        for (int i = 0; i < count; i++) {
            told |= events[i].data.fd == fd ? 1 : events[i].data.fd == extra[0] ? 2 : 0;
            EXPECT_EQ(read_all(events[i].data.fd), "x");
        }
    }
    other.join();
    EXPECT_EQ(told, 3);
    for (int round = 0; round < 8; round++) {
        ASSERT_EQ(write(peer, "bytes", 5), 5);
        EXPECT_EQ(told_of(fd, 1000), (uint32_t)EPOLLIN);
        EXPECT_EQ(read_all(fd), "bytes");
    }
    EXPECT_EQ(stats().adopted, 1u);
}

/* The next ring's receives come behind what an earlier one has left, which nobody has read. */
TEST_F(Declared, BytesOfAnEarlierRingStayWhatTheyAre)
{
    int peer, fd = declare(&peer);
    add(fd);
    for (int round = 0; round < 8; round++) {
        ASSERT_EQ(write(peer, "bytes", 5), 5);
        EXPECT_EQ(told_of(fd, 1000), (uint32_t)EPOLLIN);
        EXPECT_EQ(read_all(fd), "bytes");
    }
    ASSERT_EQ(stats().adopted, 1u);
    std::string written = "unread";
    ASSERT_EQ(write(peer, written.data(), written.size()), (ssize_t)written.size());
    EXPECT_EQ(told_of(fd, 1000), (uint32_t)EPOLLIN);
    ASSERT_EQ(ringpoll_ctl(set_, EPOLL_CTL_DEL, fd, nullptr), 0);
    for (int turns = 0; turns < 20000 && stats().rings == 1; turns += 100)
        busy(100);
    EXPECT_EQ(stats().rings, 0u);
    add(fd);
    for (int round = 0; round < 30; round++) {
        char byte = (char)('a' + round % 26);
        ASSERT_EQ(write(peer, &byte, 1), 1);
        EXPECT_EQ(told_of(fd, 1000), (uint32_t)EPOLLIN);
        written += byte;
    }
    EXPECT_EQ(stats().rings, 1u);
    EXPECT_EQ(read_all(fd), written);
    EXPECT_EQ(told_of(fd), 0u);
    for (int round = 0; round < 60; round++) {
        ASSERT_EQ(write(peer, "bytes", 5), 5);
        EXPECT_EQ(told_of(fd, 1000), (uint32_t)EPOLLIN);
        EXPECT_EQ(read_all(fd), "bytes");
    }
    EXPECT_EQ(stats().adopted, 1u);
}

TEST_F(Declared, AListenerIsAdoptedByTheNextRingAsWell)
{
    struct ringpoll_probe probe = {};
    probe.size = sizeof probe;
    if (ringpoll_get_probe(&probe) != 0 || !(probe.usable & RINGPOLL_FEATURE_MULTISHOT_ACCEPT))
        GTEST_SKIP() << "this kernel's rings accept nothing";
    struct sockaddr_in address = {};
    socklen_t length = sizeof address;
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int peer, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    ASSERT_EQ(bind(listener, (struct sockaddr *)&address, length), 0);
    ASSERT_EQ(listen(listener, 16), 0);
    getsockname(listener, (struct sockaddr *)&address, &length);
    ringpoll_fd_opened(listener, RINGPOLL_FD_TCP | RINGPOLL_FD_NONBLOCK | RINGPOLL_FD_DECLARED);
    ringpoll_fd_listening(listener, 16);
    others_.push_back(listener);
    add(listener);
    add(declare(&peer)); /* so that there is a ring */
    auto accept_one = [&] {
        int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), taken = -1;
        EXPECT_EQ(connect(client, (struct sockaddr *)&address, length), 0);
        EXPECT_EQ(told_of(listener, 1000), (uint32_t)EPOLLIN);
        taken = ringpoll_accept(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
        EXPECT_GE(taken, 0);
        EXPECT_EQ(ringpoll_accept(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC), -EAGAIN);
        ringpoll_close(taken);
        close(client);
    };
    for (int time = 0; time < 2; time++) {
        for (int round = 0; round < 64 && stats().accepting == 0; round++)
            accept_one();
        EXPECT_EQ(stats().accepting, 1u) << time;
        for (int turns = 0; turns < 20000 && stats().rings == 1; turns += 100)
            busy(100);
        EXPECT_EQ(stats().rings, 0u) << time;
        for (int round = 0; round < 8; round++)
            accept_one();
        for (int turns = 0; turns < 80000 && stats().rings == 0; turns += 100)
            busy(100);
        EXPECT_EQ(stats().rings, 1u) << time;
    }
}

/* A thread with two sets: what it wrote by one goes out before it sleeps on the other. */
TEST(TwoSets, AWaitOnOneSendsWhatIsBatchedInTheOther)
{
    if (!kernel_adopts())
        GTEST_SKIP() << "this kernel adopts nothing";
    int sets[2], fds[2][3][2];
    for (int s = 0; s < 2; s++) {
        struct ringpoll_options options = {};
        options.size = sizeof options;
        options.flags = RINGPOLL_ADOPT | RINGPOLL_BATCH;
        sets[s] = ringpoll_create(&options);
        ASSERT_GE(sets[s], 0);
        for (auto &pair : fds[s]) {
            ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
            ringpoll_fd_opened(pair[0], RINGPOLL_FD_UNIX | RINGPOLL_FD_CONNECTED | RINGPOLL_FD_NONBLOCK);
            struct epoll_event event = {};
            event.events = EPOLLIN;
            ASSERT_EQ(ringpoll_ctl(sets[s], EPOLL_CTL_ADD, pair[0], &event), 0);
        }
    }
    struct timespec now = {};
    struct epoll_event events[8];
    char byte;
    for (int round = 0; round < 40; round++) {
        for (int s = 0; s < 2; s++) {
            for (auto &pair : fds[s])
                ASSERT_EQ(write(pair[1], "x", 1), 1);
            ASSERT_EQ(ringpoll_wait(sets[s], events, 8, &now, nullptr), 3);
        }
        for (auto &set : fds)
            for (auto &pair : set) {
                long got = ringpoll_try_recv(pair[0], &byte, 1, 0);
                if (got == RINGPOLL_PASS)
                    ringpoll_fd_read(pair[0], 1, got = read(pair[0], &byte, 1));
                ASSERT_EQ(got, 1);
                if (ringpoll_try_send(pair[0], "y", 1, 0) == RINGPOLL_PASS) {
                    ASSERT_EQ(send(pair[0], "y", 1, 0), 1);
                }
            }
        ASSERT_EQ(ringpoll_wait(sets[0], events, 8, &now, nullptr), 0);
        for (auto &pair : fds[1])
            ASSERT_EQ(read(pair[1], &byte, 1), 1) << "round " << round << ": it stayed behind";
        ASSERT_EQ(ringpoll_wait(sets[1], events, 8, &now, nullptr), 0);
        for (auto &pair : fds[0])
            ASSERT_EQ(read(pair[1], &byte, 1), 1);
    }
    struct ringpoll_stats stats = {};
    stats.size = sizeof stats;
    ASSERT_EQ(ringpoll_get_stats(sets[1], &stats), 0);
    EXPECT_GT(stats.sends_batched, 0u);
    for (int s = 0; s < 2; s++) {
        for (auto &pair : fds[s]) {
            ringpoll_close(pair[0]);
            close(pair[1]);
        }
        ringpoll_close(sets[s]);
    }
}

/* What it says of closes is not so for one that lives on. */
TEST_F(Adopted, AForgottenConnectionGoesOn)
{
    ASSERT_EQ(write(b_, "unread", 6), 6);
    ASSERT_EQ(wait(1000), 1);
    std::thread other([&] { ringpoll_fd_forget(a_); }); /* the owner is busy outside */
    other.join();
    EXPECT_EQ(wait(0), 0);
    ASSERT_EQ(write(b_, "more", 4), 4);
    char bytes[16];
    EXPECT_EQ(read(a_, bytes, sizeof bytes), 4);
    EXPECT_EQ(write(a_, "back", 4), 4);
    EXPECT_EQ(read(b_, bytes, sizeof bytes), 4);
    EXPECT_EQ(close(a_), 0);
    a_ = -1;
    EXPECT_EQ(read(b_, bytes, sizeof bytes), 0) << "nothing holds it";
}

TEST_F(Adopted, AFlushSaysWhatDidNotGoOut)
{
    ringpoll_close(a_);
    ringpoll_close(b_);
    ringpoll_close(set_);
    make(RINGPOLL_BATCH);
    EXPECT_EQ(ringpoll_flush(), 0);
    rp_set_of(set_)->turn_events = 2; /* so that the next write is batched */
    ASSERT_EQ(ringpoll_try_send(a_, "small", 5, 0), 5);
    EXPECT_EQ(ringpoll_flush(), 0);
    char bytes[4096] = {};
    EXPECT_EQ(read(b_, bytes, sizeof bytes), 5);
    while (write(a_, bytes, sizeof bytes) > 0) /* full, unseen */
        continue;
    rp_set_of(set_)->turn_events = 2;
    ASSERT_EQ(ringpoll_try_send(a_, "small", 5, 0), 5);
    EXPECT_EQ(ringpoll_flush(), 1);
    EXPECT_EQ(ringpoll_fd_flush(a_), -EAGAIN);
    while (read(b_, bytes, sizeof bytes) > 0)
        continue;
    EXPECT_EQ(ringpoll_fd_flush(a_), 0);
    EXPECT_EQ(ringpoll_flush(), 0);
    EXPECT_EQ(read(b_, bytes, sizeof bytes), 5);
}

TEST_F(Adopted, LentBuffersThatComeBackAreUsedAgain)
{
    for (int round = 0; round < 100; round++) {
        ASSERT_EQ(write(b_, &round, sizeof round), (ssize_t)sizeof round);
        ASSERT_EQ(wait(1000), 1);
        struct ringpoll_buffer buffer = {};
        long got = ringpoll_borrow(a_, &buffer, 0);
        if (got == RINGPOLL_PASS) { /* given back to plain reads for a while */
            int seen = -1;
            ASSERT_EQ(read(a_, &seen, sizeof seen), (ssize_t)sizeof seen);
            ringpoll_fd_read(a_, sizeof seen, sizeof seen);
            EXPECT_EQ(seen, round);
            continue;
        }
        ASSERT_EQ(got, (long)sizeof round);
        EXPECT_EQ(memcmp(buffer.data, &round, sizeof round), 0);
        std::thread([&] { ringpoll_return(&buffer); }).join();
    }
}

TEST_F(Adopted, WhenAllBuffersAreLentTheKernelKeepsTheRest)
{
    std::vector<struct ringpoll_buffer> lent;
    std::string expected, seen;
    for (int round = 0; round < 40; round++) {
        std::string word = std::to_string(round) + ",";
        expected += word;
        ASSERT_EQ(write(b_, word.data(), word.size()), (ssize_t)word.size());
        ASSERT_EQ(wait(1000), 1) << round;
        struct ringpoll_buffer buffer = {};
        long got;
        while ((got = ringpoll_borrow(a_, &buffer, 0)) > 0) {
            seen.append((char *)buffer.data, buffer.length);
            lent.push_back(buffer);
        }
        if (got == RINGPOLL_PASS)
            seen += take();
    }
    EXPECT_EQ(seen, expected);
    EXPECT_LE(lent.size(), 8u);
    for (auto &buffer : lent)
        ringpoll_return(&buffer);
}

TEST_F(Adopted, BytesThatWereReceivedOutliveTheirSet)
{
    ASSERT_EQ(write(b_, "one", 3), 3);
    ASSERT_EQ(wait(1000), 1);
    EXPECT_EQ(ringpoll_close(set_), 0);
    set_ = -1;
    ASSERT_EQ(write(b_, "two", 3), 3);
    EXPECT_EQ(take(), "onetwo");
}

TEST_F(Adopted, BigMessagesAreReadDirectlyAndSmallOnesAreReceivedAgain)
{
    std::string big(3000, 'b'), small(10, 's');
    auto exchange = [&](const std::string &message) {
        char bytes[4096];
        ASSERT_EQ(write(b_, message.data(), message.size()), (ssize_t)message.size());
        ASSERT_EQ(wait(1000), 1);
        long got = ringpoll_try_recv(a_, bytes, sizeof bytes, 0);
        if (got == RINGPOLL_PASS) {
            got = read(a_, bytes, sizeof bytes);
            ringpoll_fd_read(a_, sizeof bytes, got);
        }
        ASSERT_EQ(got, (long)message.size());
        ASSERT_EQ(std::string(bytes, message.size()), message);
    };
    for (int i = 0; i < 32 && stats().adopted > 0; i++)
        exchange(big);
    EXPECT_EQ(stats().adopted, 0u);
    uint64_t adoptions = stats().adoptions;
    for (int i = 0; i < 100; i++) /* fewer than it takes to see that the socket is alone */
        exchange(big);
    EXPECT_EQ(stats().adoptions, adoptions) << "a receive was tried although nothing had changed";
    for (int i = 0; i < 32 && stats().adopted == 0; i++)
        exchange(small);
    EXPECT_EQ(stats().adopted, 1u);
    for (int i = 0; i < 50; i++)
        exchange(small);
    EXPECT_EQ(stats().adoptions, adoptions + 1);
}

TEST_F(Adopted, BigMessagesThatAreReadInPiecesAreReceived)
{
    std::string message(3000, 'p');
    uint64_t adoptions = stats().adoptions;
    for (int i = 0; i < 100; i++) {
        ASSERT_EQ(write(b_, message.data(), message.size()), (ssize_t)message.size());
        ASSERT_EQ(wait(1000), 1);
        EXPECT_EQ(take(), message);
    }
    EXPECT_EQ(stats().adopted, 1u);
    EXPECT_EQ(stats().adoptions, adoptions);
}

TEST_F(Adopted, ALonelySetGoesBackToPollsAndComesBackWithCompany)
{
    int more[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, more), 0);
    ringpoll_fd_opened(more[0], RINGPOLL_FD_UNIX | RINGPOLL_FD_CONNECTED | RINGPOLL_FD_NONBLOCK);
    struct epoll_event event = {};
    event.events = EPOLLIN;
    event.data.fd = 1;
    ASSERT_EQ(ringpoll_ctl(set_, EPOLL_CTL_ADD, more[0], &event), 0);
    /* One read for each event, as a program with a big buffer does. */
    auto turn = [&](bool both) {
        struct timespec second = {1, 0};
        struct epoll_event events[2];
        EXPECT_EQ(write(b_, "x", 1), 1);
        if (both) {
            EXPECT_EQ(write(more[1], "x", 1), 1);
        }
        int count = ringpoll_wait(set_, events, 2, &second, nullptr);
        EXPECT_EQ(count, both ? 2 : 1);
        for (int fd : {a_, more[0]}) {
            char bytes[64];
            if (fd != a_ && !both)
                continue;
            long got = ringpoll_try_recv(fd, bytes, sizeof bytes, 0);
            if (got == RINGPOLL_PASS) {
                got = read(fd, bytes, sizeof bytes);
                ringpoll_fd_read(fd, sizeof bytes, got < 0 ? -errno : got);
            }
            EXPECT_EQ(got, 1);
        }
    };
    for (int i = 0; i < 64; i++)
        turn(true);
    EXPECT_EQ(stats().adopted, 2u);
    for (int i = 0; i < 1024; i++)
        turn(false);
    EXPECT_EQ(stats().adopted, 0u);
    for (int i = 0; i < 64; i++)
        turn(true);
    EXPECT_EQ(stats().adopted, 2u);
    for (int fd : more)
        ringpoll_close(fd);
}

TEST_F(Adopted, ASecondSetHearsOfWhatTheFirstReceived)
{
    ASSERT_EQ(write(b_, "one", 3), 3);
    ASSERT_EQ(wait(1000), 1);
    struct ringpoll_options options = {};
    options.size = sizeof options;
    options.flags = RINGPOLL_ADOPT;
    int second = ringpoll_create(&options);
    struct epoll_event event = {}, out = {};
    event.events = EPOLLIN;
    ASSERT_EQ(ringpoll_ctl(second, EPOLL_CTL_ADD, a_, &event), 0);
    struct timespec now = {0, 0};
    EXPECT_EQ(ringpoll_wait(second, &out, 1, &now, nullptr), 1);
    EXPECT_EQ(out.events, (uint32_t)EPOLLIN);
    EXPECT_EQ(take(), "one");
    EXPECT_EQ(ringpoll_wait(second, &out, 1, &now, nullptr), 0);
    EXPECT_EQ(wait(0), 0);
    ringpoll_close(second);
}

TEST_F(Adopted, DemotionReportsWhatIsInTheLibrary)
{
    ASSERT_EQ(write(b_, "one", 3), 3);
    ASSERT_EQ(wait(1000), 1);
    ASSERT_EQ(ringpoll_demote(set_), 0);
    /* The identity itself is readable: whoever polls it comes to wait. */
    struct epoll_event event = {}, out = {};
    int outer = epoll_create1(0);
    event.events = EPOLLIN;
    ASSERT_EQ(epoll_ctl(outer, EPOLL_CTL_ADD, set_, &event), 0);
    EXPECT_EQ(epoll_wait(outer, &out, 1, 0), 1);
    EXPECT_EQ(wait(0), 1);
    EXPECT_EQ(wait(1000), 1);
    EXPECT_EQ(take(), "one");
    EXPECT_EQ(wait(0), 0);
    EXPECT_EQ(epoll_wait(outer, &out, 1, 0), 0);
    ASSERT_EQ(write(b_, "two", 3), 3);
    EXPECT_EQ(wait(1000), 1);
    EXPECT_EQ(take(), "two");
    close(outer);
}

TEST_F(Adopted, AnotherThreadReadsInOrder)
{
    ASSERT_EQ(write(b_, "one", 3), 3);
    ASSERT_EQ(wait(1000), 1);
    ASSERT_EQ(write(b_, "two", 3), 3);
    std::string seen;
    std::thread([&] { seen = take(); }).join();
    EXPECT_EQ(seen, "onetwo");
    ASSERT_EQ(write(b_, "three", 5), 5);
    EXPECT_EQ(wait(1000), 1);
    std::thread([&] { seen = take(); }).join();
    EXPECT_EQ(seen, "three");
    EXPECT_EQ(wait(0), 0);
}

/* The calls that need no second one: on a socket that is adopted, and on any other fd. */
TEST_F(Adopted, TheCallsWithoutTryReadAndWriteAnyFd)
{
    int pipe_ends[2], plain[2];
    ASSERT_EQ(pipe2(pipe_ends, O_NONBLOCK | O_CLOEXEC), 0);
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, plain), 0);
    const struct {
        const char *name;
        int in, out;
        bool is_socket;
    } fds[] = {{"adopted", a_, b_, true}, {"a pipe", pipe_ends[0], pipe_ends[1], false},
               {"a socket", plain[0], plain[1], true}};
    for (auto &at : fds) {
        SCOPED_TRACE(at.name);
        char bytes[16], more[16];
        struct iovec iov[2] = {{bytes, 2}, {more, sizeof more}};
        struct msghdr message = {};
        message.msg_iov = iov;
        message.msg_iovlen = 2;
        auto put = [&] {
            ASSERT_EQ(ringpoll_write(at.out, "hello", 5), 5);
            if (at.in == a_) {
                ASSERT_EQ(wait(1000), 1);
            }
        };
        EXPECT_EQ(ringpoll_read(at.in, bytes, sizeof bytes), -EAGAIN);
        EXPECT_EQ(ringpoll_readv(at.in, iov, 2), -EAGAIN);
        put();
        EXPECT_EQ(ringpoll_read(at.in, bytes, 0), 0);
        EXPECT_EQ(ringpoll_read(at.in, bytes, 3), 3);
        EXPECT_EQ(std::string(bytes, 3), "hel");
        EXPECT_EQ(ringpoll_readv(at.in, iov, 2), 2);
        EXPECT_EQ(std::string(bytes, 2), "lo");
        if (!at.is_socket) {
            EXPECT_EQ(ringpoll_recv(at.in, bytes, 1, 0), -ENOTSOCK);
            EXPECT_EQ(ringpoll_send(at.out, bytes, 1, 0), -ENOTSOCK);
            continue;
        }
        put();
        EXPECT_EQ(ringpoll_recv(at.in, bytes, 1, MSG_PEEK), 1);
        EXPECT_EQ(ringpoll_recvmsg(at.in, &message, 0), 5);
        EXPECT_EQ(std::string(bytes, 2) + std::string(more, 3), "hello");
        struct iovec words[2] = {{const_cast<char *>("one "), 4}, {const_cast<char *>("two"), 3}};
        struct msghdr reply = {};
        reply.msg_iov = words;
        reply.msg_iovlen = 2;
        EXPECT_EQ(ringpoll_writev(at.in, words, 2), 7);
        EXPECT_EQ(ringpoll_sendmsg(at.in, &reply, MSG_NOSIGNAL), 7);
        EXPECT_EQ(ringpoll_send(at.in, " three", 6, MSG_NOSIGNAL), 6);
        char got[32];
        EXPECT_EQ(ringpoll_read(at.out, got, sizeof got), 20);
        EXPECT_EQ(std::string(got, 20), "one twoone two three");
        ASSERT_EQ(shutdown(at.out, SHUT_WR), 0);
        if (at.in == a_)
            wait(1000);
        EXPECT_EQ(ringpoll_read(at.in, bytes, sizeof bytes), 0);
    }
    EXPECT_EQ(ringpoll_read(-1, pipe_ends, 1), -EBADF);
    EXPECT_EQ(ringpoll_write(-1, pipe_ends, 1), -EBADF);
    for (int fd : {pipe_ends[0], pipe_ends[1], plain[0], plain[1]})
        close(fd);
}

TEST_F(Adopted, AnFdThatIsPassedIsSharedOnBothSides)
{
    int passed[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, passed), 0);
    ringpoll_fd_opened(passed[0], RINGPOLL_FD_UNIX | RINGPOLL_FD_CONNECTED | RINGPOLL_FD_NONBLOCK);
    struct epoll_event event = {};
    event.events = EPOLLIN;
    ASSERT_EQ(ringpoll_ctl(set_, EPOLL_CTL_ADD, passed[0], &event), 0);
    EXPECT_EQ(ringpoll_fd_is_stream_on_ring(passed[0]), 1);
    alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))];
    char byte = 'x';
    struct iovec iov = {&byte, 1};
    struct msghdr message = {};
    message.msg_iov = &iov;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &passed[0], sizeof(int));
    EXPECT_EQ(ringpoll_sendmsg(b_, &message, 0), 1);
    EXPECT_EQ(wait(1000), 1);
    EXPECT_EQ(ringpoll_fd_is_stream_on_ring(passed[0]), 0) << "kernel epoll has it now";
    memset(control, 0, sizeof control);
    message.msg_controllen = sizeof control;
    ASSERT_EQ(ringpoll_recvmsg(a_, &message, 0), 1);
    int got = -1;
    header = CMSG_FIRSTHDR(&message);
    ASSERT_NE(header, nullptr);
    memcpy(&got, CMSG_DATA(header), sizeof got);
    EXPECT_EQ(ringpoll_write(passed[1], "y", 1), 1);
    EXPECT_EQ(ringpoll_read(got, &byte, 1), 1);
    EXPECT_EQ(byte, 'y');
    for (int fd : {got, passed[0], passed[1]})
        ringpoll_close(fd);
}

TEST_F(Adopted, AcceptTakesConnectionsOfAnyListenerAndKnowsThem)
{
    for (bool by_ring : {false, true}) {
        SCOPED_TRACE(by_ring);
        struct ringpoll_options options = {};
        options.size = sizeof options;
        options.flags = by_ring ? RINGPOLL_ACCEPT : RINGPOLL_ADOPT;
        int set = ringpoll_create(&options), listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        ASSERT_GE(set, 0);
        ringpoll_fd_opened(listener, RINGPOLL_FD_TCP | RINGPOLL_FD_NONBLOCK);
        struct sockaddr_in address = {};
        socklen_t length = sizeof address;
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        ASSERT_EQ(bind(listener, (struct sockaddr *)&address, sizeof address), 0);
        ASSERT_EQ(listen(listener, 64), 0);
        ringpoll_fd_listening(listener, 64);
        ASSERT_EQ(getsockname(listener, (struct sockaddr *)&address, &length), 0);
        struct epoll_event event = {};
        event.events = EPOLLIN;
        ASSERT_EQ(ringpoll_ctl(set, EPOLL_CTL_ADD, listener, &event), 0);
        int idle[2]; /* what makes the set a ring's */
        ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, idle), 0);
        ringpoll_fd_opened(idle[0], RINGPOLL_FD_UNIX | RINGPOLL_FD_CONNECTED | RINGPOLL_FD_NONBLOCK);
        ASSERT_EQ(ringpoll_ctl(set, EPOLL_CTL_ADD, idle[0], &event), 0);
        for (int round = 0; round < 32; round++) {
            int clients[2];
            for (int &client : clients) {
                client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
                ASSERT_EQ(connect(client, (struct sockaddr *)&address, sizeof address), 0);
            }
            struct timespec soon = {5, 0};
            ASSERT_EQ(ringpoll_wait(set, &event, 1, &soon, nullptr), 1);
            for (int client : clients) {
                struct sockaddr_in peer = {}, mine = {};
                length = sizeof peer;
                long made = ringpoll_accept(listener, (struct sockaddr *)&peer, &length, SOCK_NONBLOCK | SOCK_CLOEXEC);
                ASSERT_GE(made, 0);
                EXPECT_EQ(length, sizeof peer);
                ASSERT_EQ(getsockname(client, (struct sockaddr *)&mine, &length), 0);
                EXPECT_EQ(peer.sin_port, mine.sin_port);
                EXPECT_EQ(ringpoll_fd_is_nonblock((int)made), 1);
                EXPECT_EQ(ringpoll_ctl(set, EPOLL_CTL_ADD, (int)made, &event), 0);
                EXPECT_EQ(ringpoll_fd_is_stream_on_ring((int)made), 1);
                EXPECT_EQ(ringpoll_close((int)made), 0);
                EXPECT_EQ(close(client), 0);
            }
            EXPECT_EQ(ringpoll_accept(listener, nullptr, nullptr, 0), -EAGAIN);
        }
        struct ringpoll_stats stats = {};
        stats.size = sizeof stats;
        EXPECT_EQ(ringpoll_get_stats(set, &stats), 0);
        EXPECT_EQ(stats.accepted > 0, by_ring);
        for (int fd : {listener, idle[0], idle[1], set})
            EXPECT_EQ(ringpoll_close(fd), 0);
    }
    EXPECT_EQ(ringpoll_accept(-1, nullptr, nullptr, 0), -EBADF);
    EXPECT_EQ(ringpoll_accept(a_, nullptr, nullptr, 0), -EINVAL);
}

TEST_F(Adopted, BytesAreReportedByASetThatLeftItsRingBeforeTheSocketCameBack)
{
    ASSERT_EQ(write(b_, "one", 3), 3);
    ASSERT_EQ(wait(1000), 1);
    ASSERT_EQ(ringpoll_ctl(set_, EPOLL_CTL_DEL, a_, nullptr), 0);
    ASSERT_EQ(ringpoll_demote(set_), 0);
    struct epoll_event event = {};
    event.events = EPOLLIN;
    ASSERT_EQ(ringpoll_ctl(set_, EPOLL_CTL_ADD, a_, &event), 0);
    EXPECT_EQ(ringpoll_ctl(set_, EPOLL_CTL_ADD, a_, &event), -EEXIST);
    EXPECT_EQ(wait(0), 1);
    EXPECT_EQ(take(), "one");
    EXPECT_EQ(wait(0), 0);
    EXPECT_EQ(ringpoll_ctl(set_, EPOLL_CTL_DEL, a_, nullptr), 0);
}

/* A handler that interrupts the library closes one of two numbers: the other reads. */
TEST_F(Adopted, ANumberThatAHandlerClosesInsideTheLibraryTakesNoBytesAlong)
{
    ASSERT_EQ(write(b_, "one", 3), 3);
    ASSERT_EQ(wait(1000), 1);
    for (bool the_first : {false, true}) {
        int copy = dup(a_);
        ringpoll_fd_duplicated(a_, copy);
        struct rp_set *place = rp_set_of(set_);
        rp_set_lock(place);
        EXPECT_EQ(ringpoll_close(the_first ? a_ : copy), 0);
        rp_set_unlock(place);
        if (the_first)
            a_ = copy;
        char byte = 0;
        EXPECT_EQ(ringpoll_try_recv(a_, &byte, 1, 0), 1);
        EXPECT_EQ(byte, the_first ? 'n' : 'o');
    }
    EXPECT_EQ(take(), "e");
    EXPECT_EQ(stats().adopted, 0u);
}

TEST_F(Adopted, NumbersThatAHandlerClosesInsideTheLibraryEndWithTheLast)
{
    ASSERT_EQ(write(b_, "one", 3), 3);
    ASSERT_EQ(wait(1000), 1);
    int copy = dup(a_);
    ringpoll_fd_duplicated(a_, copy);
    struct rp_set *place = rp_set_of(set_);
    rp_set_lock(place);
    EXPECT_EQ(ringpoll_close(a_), 0);
    EXPECT_EQ(ringpoll_close(copy), 0);
    rp_set_unlock(place);
    a_ = -1;
    EXPECT_EQ(wait(0), 0);
    EXPECT_EQ(stats().adopted, 0u);
    char byte;
    EXPECT_LE(read(b_, &byte, 1), 0) << "its end has come";
}

/* An edge that was reported stays so, one that was not does not: whatever of its bytes
 * is in the library, on its way there, or yet to come. */
TEST_F(Adopted, DemotionOfAnEdgeLosesNoNews)
{
    for (int error : {0, -EIO})
        for (bool reported : {false, true})
            for (bool more : {false, true}) {
                TearDown();
                make(0);
                struct epoll_event event = {};
                event.events = EPOLLIN | EPOLLET;
                ASSERT_EQ(ringpoll_ctl(set_, EPOLL_CTL_MOD, a_, &event), 0);
                wait(0);
                ASSERT_EQ(write(b_, "one", 3), 3);
                if (reported) {
                    ASSERT_EQ(wait(1000), 1);
                    ASSERT_EQ(wait(0), 0);
                }
                if (more) {
                    ASSERT_EQ(write(b_, "two", 3), 3);
                }
                struct rp_set *place = rp_set_of(set_);
                rp_set_lock(place);
                rp_set_demote(place, RINGPOLL_REASON_NO_RING, error);
                rp_set_unlock(place);
                struct epoll_event events[4];
                struct timespec now = {};
                auto wait_now = [&] { return ringpoll_wait(set_, events, 4, &now, nullptr); };
                int told = wait_now();
                if (!reported || more || error == 0) {
                    EXPECT_EQ(told, !reported || more) << error << reported << more;
                }
                EXPECT_EQ(wait_now(), 0) << error << reported << more;
                ASSERT_EQ(write(b_, "three", 5), 5);
                EXPECT_EQ(wait_now(), 1);
                EXPECT_EQ(take(), more ? "onetwothree" : "onethree");
                EXPECT_EQ(wait_now(), 0);
            }
}

/* Another thread demotes the set, and its owner has yet to end the ring, whose receives
 * take what comes until then. */
TEST_F(Adopted, DemotionByAnotherThreadLosesNoNews)
{
    for (bool queued : {true, false})
        for (bool more : {false, true}) {
            TearDown();
            make(0);
            struct epoll_event event = {}, events[4];
            event.events = EPOLLIN | EPOLLET;
            struct timespec now = {};
            auto wait_now = [&] { return ringpoll_wait(set_, events, 4, &now, nullptr); };
            ASSERT_EQ(ringpoll_ctl(set_, EPOLL_CTL_MOD, a_, &event), 0);
            wait_now();
            if (queued) {
                ASSERT_EQ(write(b_, "one", 3), 3);
                ASSERT_EQ(wait_now(), 1);
                ASSERT_EQ(wait_now(), 0);
            }
            std::thread([&] { EXPECT_EQ(ringpoll_demote(set_), 0); }).join();
            if (more) {
                ASSERT_EQ(write(b_, "two", 3), 3);
            }
            EXPECT_EQ(wait_now(), more) << queued;
            EXPECT_EQ(wait_now(), 0);
            EXPECT_EQ(take(), std::string(queued ? "one" : "") + (more ? "two" : ""));
            ASSERT_EQ(write(b_, "three", 5), 5);
            EXPECT_EQ(wait_now(), 1);
            EXPECT_EQ(take(), "three");
        }
}

int refuse_to_enter(int, unsigned, unsigned, unsigned, const void *, size_t)
{
    return -EIO;
}

/* A ring that takes no more calls, with a receive that can be neither ended nor waited for:
 * its bytes are read, in order, and what comes is told of. */
TEST_F(Adopted, ARingThatBreaksLosesNoBytes)
{
    for (uint32_t trigger : {0u, (uint32_t)EPOLLET})
        for (bool reported : {false, true})
            for (bool more : {false, true}) {
                TearDown();
                make(0);
                struct epoll_event event = {}, events[4];
                event.events = EPOLLIN | trigger;
                struct timespec now = {};
                auto wait_now = [&] { return ringpoll_wait(set_, events, 4, &now, nullptr); };
                ASSERT_EQ(ringpoll_ctl(set_, EPOLL_CTL_MOD, a_, &event), 0);
                wait_now();
                if (reported) {
                    ASSERT_EQ(write(b_, "one", 3), 3);
                    ASSERT_EQ(wait_now(), 1);
                }
                if (more) {
                    ASSERT_EQ(write(b_, "two", 3), 3);
                }
                struct rp_sys table = rp_sys_kernel;
                table.uring_enter = refuse_to_enter;
                rp_sys = &table;
                int first = wait_now(), second = first > 0 ? 0 : wait_now();
                EXPECT_TRUE(first + second > 0 || !(more || (reported && !trigger))) << reported << more;
                EXPECT_EQ(take(), std::string(reported ? "one" : "") + (more ? "two" : ""));
                for (int i = 0; i < 3; i++) {
                    ASSERT_EQ(write(b_, "three", 5), 5);
                    EXPECT_EQ(wait_now(), 1);
                    EXPECT_EQ(take(), "three");
                    EXPECT_EQ(wait_now(), 0);
                }
                EXPECT_EQ(stats().engine, (uint32_t)RINGPOLL_ENGINE_KERNEL);
                EXPECT_EQ(stats().adopted, 0u);
                rp_sys = &rp_sys_kernel;
            }
}

/* Both ends in one set: the receive makes room, which wakes the other end's poll inside
 * the same enter. The kernel runs that too, and leaves the flag for it up, with nothing
 * behind it (6.18), until something else happens. */
TEST_F(Adopted, AFlagThatStaysUpIsAskedAboutAFewTimesAndNoMore)
{
    ringpoll_fd_opened(b_, RINGPOLL_FD_UNIX | RINGPOLL_FD_CONNECTED | RINGPOLL_FD_NONBLOCK);
    struct epoll_event event = {}, events[4];
    event.events = EPOLLOUT | EPOLLET;
    ASSERT_EQ(ringpoll_ctl(set_, EPOLL_CTL_ADD, b_, &event), 0);
    struct timespec now = {};
    unsigned stayed_up = 0;
    for (int i = 0; i < 20; i++) {
        ASSERT_EQ(write(b_, "some bytes", 10), 10);
        ASSERT_EQ(ringpoll_wait(set_, events, 4, &now, nullptr), 2);
        struct rp_ring *ring = &rp_set_of(set_)->ring;
        stayed_up += rp_ring_wants_enter(ring);
        uint64_t before = ring->enters;
        EXPECT_EQ(take(), "some bytes"); /* and an EAGAIN */
        EXPECT_LE(ring->enters - before, 4u);
        before = ring->enters;
        EXPECT_EQ(ringpoll_wait(set_, events, 4, &now, nullptr), 0);
        EXPECT_LE(ring->enters - before, 4u);
    }
    printf("the flag stayed up %u times\n", stayed_up);
    ringpoll_ctl(set_, EPOLL_CTL_DEL, b_, nullptr);
}

struct Late { /* writes as soon as the ring has been told to receive no more */
    int fd = -1;
    unsigned enters = 0;
} late;
int enter_and_write(int fd, unsigned to_submit, unsigned min_complete, unsigned flags, const void *arg, size_t size)
{
    int result = rp_sys_kernel.uring_enter(fd, to_submit, min_complete, flags, arg, size);
    if (late.fd >= 0 && to_submit > 0 && late.enters-- == 0) {
        EXPECT_EQ(write(late.fd, "late", 4), 4);
        late.fd = -1;
    }
    return result;
}

/* The poll for OUT beside a receive hears nothing of bytes. */
TEST_F(Adopted, BytesThatComeDuringAMoveAreReported)
{
    for (uint32_t bits : {(uint32_t)EPOLLIN, (uint32_t)(EPOLLIN | EPOLLOUT)})
        for (unsigned enters = 0; enters < 3; enters++) {
            TearDown();
            make(0);
            struct epoll_event event = {}, events[4];
            event.events = bits | EPOLLET;
            struct timespec now = {};
            ASSERT_EQ(ringpoll_ctl(set_, EPOLL_CTL_MOD, a_, &event), 0);
            ringpoll_wait(set_, events, 4, &now, nullptr);
            EXPECT_EQ(ringpoll_wait(set_, events, 4, &now, nullptr), 0);
            struct rp_sys table = rp_sys_kernel;
            table.uring_enter = enter_and_write;
            rp_sys = &table;
            late.fd = b_;
            late.enters = enters;
            int copy = dup(a_);
            ringpoll_fd_duplicated(a_, copy);
            rp_sys = &rp_sys_kernel;
            bool came = late.fd < 0;
            late.fd = -1;
            if (!came) {
                ASSERT_EQ(write(b_, "late", 4), 4);
            }
            ASSERT_EQ(ringpoll_wait(set_, events, 4, &now, nullptr), 1) << bits << " " << enters << came;
            EXPECT_EQ(events[0].events, bits);
            EXPECT_EQ(take(), "late");
            ringpoll_close(copy);
        }
}

} // namespace
