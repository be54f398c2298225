/* SPDX-License-Identifier: MIT
 *
 * RINGPOLL_FIXED_FILES: a slot of the ring's table holds its file open, so every way
 * out of adoption has to clear it.
 */
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include <ringpoll/ringpoll.h>

#include "inside.h"

namespace {

class FixedFiles : public testing::TestWithParam<int> {
protected:
    struct Pair {
        int ours = -1, peer = -1;
    };

    void SetUp() override
    {
        struct ringpoll_probe probe = {};
        probe.size = sizeof probe;
        uint64_t needed = RINGPOLL_FEATURE_DEFER | RINGPOLL_FEATURE_BUF_RING | RINGPOLL_FEATURE_MULTISHOT_RECV |
                          RINGPOLL_FEATURE_SPARSE_FILES;
        if (ringpoll_get_probe(&probe) != 0 || (probe.usable & needed) != needed)
            GTEST_SKIP() << "this kernel adopts nothing";
        struct ringpoll_options options = {};
        options.size = sizeof options;
        options.flags = RINGPOLL_FIXED_FILES;
        set_ = ringpoll_create(&options);
        ASSERT_GE(set_, 0);
        for (int i = 0; i < 3; i++)
            add();
    }

    void TearDown() override
    {
        for (Pair &pair : pairs_) {
            if (pair.ours >= 0)
                ringpoll_close(pair.ours);
            if (pair.peer >= 0)
                close(pair.peer);
        }
        if (set_ >= 0)
            ringpoll_close(set_);
    }

    void add()
    {
        Pair pair;
        if (GetParam() == AF_UNIX) {
            int fds[2];
            ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds), 0);
            pair = {fds[0], fds[1]};
        } else {
            struct sockaddr_in address = {};
            socklen_t length = sizeof address;
            address.sin_family = AF_INET;
            address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
            int listener = socket(AF_INET, SOCK_STREAM, 0);
            ASSERT_EQ(bind(listener, (struct sockaddr *)&address, sizeof address), 0);
            ASSERT_EQ(listen(listener, 1), 0);
            ASSERT_EQ(getsockname(listener, (struct sockaddr *)&address, &length), 0);
            pair.peer = socket(AF_INET, SOCK_STREAM, 0);
            ASSERT_EQ(connect(pair.peer, (struct sockaddr *)&address, sizeof address), 0);
            pair.ours = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK);
            close(listener);
        }
        ringpoll_fd_opened(pair.ours, (GetParam() == AF_UNIX ? RINGPOLL_FD_UNIX : RINGPOLL_FD_TCP) |
                                          RINGPOLL_FD_CONNECTED | RINGPOLL_FD_NONBLOCK);
        struct epoll_event event = {};
        event.events = EPOLLIN;
        event.data.u64 = pairs_.size();
        ASSERT_EQ(ringpoll_ctl(set_, EPOLL_CTL_ADD, pair.ours, &event), 0);
        pairs_.push_back(pair);
    }

    long receive(int fd, char *bytes, size_t size)
    {
        long got = ringpoll_try_recv(fd, bytes, size, 0);
        if (got == RINGPOLL_PASS) {
            got = recv(fd, bytes, size, 0);
            got = got < 0 ? -errno : got;
            ringpoll_fd_read(fd, size, got);
        }
        return got;
    }

    /* A request and its answer on all that are open. */
    void round()
    {
        size_t open = 0, answered = 0;
        for (Pair &pair : pairs_)
            if (pair.ours >= 0 && pair.peer >= 0) {
                ASSERT_EQ(send(pair.peer, "request", 7, 0), 7);
                open++;
            }
        while (answered < open) {
            struct epoll_event events[16];
            struct timespec time = {5, 0};
            int count = ringpoll_wait(set_, events, 16, &time, nullptr);
            ASSERT_GT(count, 0);
            for (int i = 0; i < count; i++) {
                int fd = pairs_[events[i].data.u64].ours;
                char bytes[64];
                long got = receive(fd, bytes, sizeof bytes);
                if (got == -EAGAIN)
                    continue;
                ASSERT_EQ(got, 7);
                long sent = ringpoll_try_send(fd, "answer", 6, MSG_NOSIGNAL);
                if (sent == RINGPOLL_PASS)
                    sent = send(fd, "answer", 6, MSG_NOSIGNAL);
                ASSERT_EQ(sent, 6);
                answered++;
            }
        }
        ringpoll_flush();
        for (Pair &pair : pairs_)
            if (pair.ours >= 0 && pair.peer >= 0) {
                char bytes[64];
                ASSERT_EQ(recv(pair.peer, bytes, sizeof bytes, 0), 6);
                ASSERT_EQ(std::string(bytes, 6), "answer");
            }
    }

    void rounds_until(unsigned slots)
    {
        for (int i = 0; i < 64 && inside_slots_used(set_) < slots; i++)
            round();
        ASSERT_EQ(inside_slots_used(set_), slots);
    }

    void expect_end_at_once(int peer)
    {
        char byte;
        EXPECT_EQ(recv(peer, &byte, 1, MSG_DONTWAIT), 0) << strerror(errno);
    }

    int set_ = -1;
    std::vector<Pair> pairs_;
};

TEST_P(FixedFiles, BusySocketsGetASlotAndTheirAnswersArrive)
{
    rounds_until(3);
    for (int i = 0; i < 20; i++)
        round();
    for (Pair &pair : pairs_)
        EXPECT_TRUE(inside_has_slot(pair.ours));
}

TEST_P(FixedFiles, ThePeerOfAClosedSocketReadsTheEndAtOnce)
{
    rounds_until(3);
    ringpoll_close(pairs_[1].ours);
    pairs_[1].ours = -1;
    expect_end_at_once(pairs_[1].peer);
    EXPECT_EQ(inside_slots_used(set_), 2u);
    round();
}

TEST_P(FixedFiles, ACloseRightAfterABatchedWriteSendsItAndTheEnd)
{
    rounds_until(3);
    for (int i = 0; i < 2; i++)
        ASSERT_EQ(send(pairs_[(size_t)i].peer, "request", 7, 0), 7);
    struct epoll_event events[16];
    struct timespec time = {5, 0};
    ASSERT_EQ(ringpoll_wait(set_, events, 16, &time, nullptr), 2);
    char bytes[64];
    ASSERT_EQ(receive(pairs_[0].ours, bytes, sizeof bytes), 7);
    ASSERT_EQ(receive(pairs_[1].ours, bytes, sizeof bytes), 7);
    ASSERT_EQ(ringpoll_try_send(pairs_[0].ours, "last", 4, MSG_NOSIGNAL), 4);
    ringpoll_close(pairs_[0].ours);
    pairs_[0].ours = -1;
    ASSERT_EQ(recv(pairs_[0].peer, bytes, sizeof bytes, MSG_DONTWAIT), 4);
    expect_end_at_once(pairs_[0].peer);
}

TEST_P(FixedFiles, ASlotIsUsedAgain)
{
    for (int turn = 0; turn < 5; turn++) {
        rounds_until(3);
        ringpoll_close(pairs_.back().ours);
        close(pairs_.back().peer);
        pairs_.pop_back();
        EXPECT_EQ(inside_slots_used(set_), 2u);
        add();
    }
    rounds_until(3);
}

TEST_P(FixedFiles, WhereTheTableIsFullTheFdItselfDoes)
{
    round();
    round();
    for (int i = 0; i < 3 && !inside_has_table(set_); i++)
        round();
    inside_fill_table(set_, pairs_[0].peer);
    unsigned full = inside_slots_used(set_);
    EXPECT_EQ(full, 1024u);
    for (int i = 0; i < 40; i++)
        round();
    EXPECT_EQ(inside_slots_used(set_), full);
    EXPECT_FALSE(inside_has_slot(pairs_[0].ours) || inside_has_slot(pairs_[1].ours));
    ringpoll_close(pairs_[1].ours);
    pairs_[1].ours = -1;
    expect_end_at_once(pairs_[1].peer);
}

TEST_P(FixedFiles, UnadoptionClearsTheSlot)
{
    rounds_until(3);
    ringpoll_fd_release(pairs_[0].ours, 1);
    EXPECT_EQ(inside_slots_used(set_), 2u);
    /* Nobody is asked when it is closed by other means. */
    close(pairs_[0].ours);
    expect_end_at_once(pairs_[0].peer);
    ringpoll_fd_closing(pairs_[0].ours);
    pairs_[0].ours = -1;
    round();
}

TEST_P(FixedFiles, TheEndOfTheSetLetsGoOfTheFiles)
{
    rounds_until(3);
    ringpoll_close(set_);
    set_ = -1;
    close(pairs_[0].ours);
    expect_end_at_once(pairs_[0].peer);
    pairs_[0].ours = -1;
}

TEST_P(FixedFiles, ADemotedSetLetsGoOfTheFiles)
{
    rounds_until(3);
    ASSERT_EQ(ringpoll_demote(set_), 0);
    EXPECT_FALSE(inside_has_table(set_));
    close(pairs_[0].ours);
    expect_end_at_once(pairs_[0].peer);
    ringpoll_fd_closing(pairs_[0].ours);
    pairs_[0].ours = -1;
    round();
}

TEST_P(FixedFiles, AnotherThreadsCloseEndsTheStreamToo)
{
    rounds_until(3);
    std::thread([&] { ringpoll_close(pairs_[0].ours); }).join();
    pairs_[0].ours = -1;
    expect_end_at_once(pairs_[0].peer);
    round();
    EXPECT_EQ(inside_slots_used(set_), 2u);
}

TEST_P(FixedFiles, AForksChildHasNoneAndTheParentsCloseIsSeen)
{
    rounds_until(3);
    int go[2];
    ASSERT_EQ(pipe(go), 0);
    pid_t child = fork();
    if (child == 0) {
        struct epoll_event event;
        struct timespec now = {0, 0};
        ringpoll_wait(set_, &event, 1, &now, nullptr); /* the set becomes its own */
        bool none = !inside_has_slot(pairs_[0].ours) && !inside_has_table(set_);
        char byte = 0;
        (void)!read(go[0], &byte, 1);
        _exit(none ? 0 : 1);
    }
    ASSERT_GT(child, 0);
    ringpoll_close(pairs_[0].ours);
    pairs_[0].ours = -1;
    char byte;
    EXPECT_EQ(recv(pairs_[0].peer, &byte, 1, MSG_DONTWAIT), -1); /* the child has it open */
    ASSERT_EQ(write(go[1], "x", 1), 1);
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    expect_end_at_once(pairs_[0].peer);
    for (int fd : go)
        close(fd);
}

INSTANTIATE_TEST_SUITE_P(, FixedFiles, testing::Values(AF_INET, AF_UNIX),
                         [](const testing::TestParamInfo<int> &info) {
                             return info.param == AF_UNIX ? "unix" : "tcp";
                         });

} // namespace
