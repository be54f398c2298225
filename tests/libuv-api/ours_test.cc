/* SPDX-License-Identifier: MIT
 *
 * What libuv has no counterpart of: the loop's set, lent buffers, and what the ring spares.
 */
#include <errno.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include <ringpoll/uv.h>

namespace {

struct ringpoll_stats stats_of(int set)
{
    struct ringpoll_stats stats = {};
    stats.size = sizeof stats;
    EXPECT_EQ(ringpoll_get_stats(set, &stats), 0);
    return stats;
}

bool has_ring(uint64_t needed)
{
    struct ringpoll_probe probe = {};
    probe.size = sizeof probe;
    return ringpoll_get_probe(&probe) == 0 && (probe.usable & needed) == needed;
}

void tcp_pair(int fds[2])
{
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in name = {};
    socklen_t length = sizeof name;
    name.sin_family = AF_INET;
    name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ASSERT_EQ(bind(listener, (struct sockaddr *)&name, sizeof name), 0);
    ASSERT_EQ(listen(listener, 1), 0);
    getsockname(listener, (struct sockaddr *)&name, &length);
    fds[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ASSERT_EQ(connect(fds[1], (struct sockaddr *)&name, sizeof name), 0);
    fds[0] = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    ::close(listener);
}

constexpr uint64_t completes = RINGPOLL_FEATURE_DEFER | RINGPOLL_FEATURE_BUF_RING | RINGPOLL_FEATURE_MULTISHOT_RECV |
                               RINGPOLL_FEATURE_RECV_END;

class Loop : public ::testing::Test {
public:
    void SetUp() override
    {
        signal(SIGPIPE, SIG_IGN);
        ASSERT_EQ(uv_loop_init(&loop_), 0);
    }
    void TearDown() override
    {
        uv_run(&loop_, UV_RUN_DEFAULT);
        EXPECT_EQ(uv_loop_close(&loop_), 0);
    }
    void pair(ringpoll_uv_pipe_t *pipe, int *ret_peer)
    {
        int fds[2] = {-1, -1};
        ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
        ASSERT_EQ(ringpoll_uv_pipe_init(&loop_, pipe, 0), 0);
        ASSERT_EQ(ringpoll_uv_pipe_open(pipe, fds[0]), 0);
        *ret_peer = fds[1];
    }
    uv_loop_t loop_;
};

/* ------------------------------------------------------------ attach, detach */

TEST_F(Loop, AttachIsCountedAndTheLastDetachEndsTheSet)
{
    EXPECT_EQ(ringpoll_uv_attach(nullptr), UV_EINVAL);
    EXPECT_EQ(ringpoll_uv_detach(nullptr), UV_EINVAL);
    EXPECT_EQ(ringpoll_uv_detach(&loop_), UV_EINVAL);
    EXPECT_EQ(ringpoll_uv_set(&loop_), UV_EINVAL);
    ASSERT_EQ(ringpoll_uv_attach(&loop_), 0);
    ASSERT_EQ(ringpoll_uv_attach(&loop_), 0);
    int set = ringpoll_uv_set(&loop_);
    ASSERT_GE(set, 0);
    EXPECT_EQ(uv_run(&loop_, UV_RUN_DEFAULT), 0) << "an attach keeps no loop alive";
    EXPECT_EQ(uv_loop_close(&loop_), UV_EBUSY);
    EXPECT_EQ(ringpoll_uv_detach(&loop_), 0);
    EXPECT_EQ(ringpoll_uv_set(&loop_), set);
    EXPECT_EQ(ringpoll_uv_detach(&loop_), 0);
    EXPECT_EQ(ringpoll_uv_set(&loop_), UV_EINVAL);
    EXPECT_EQ(ringpoll_uv_detach(&loop_), UV_EINVAL);
    EXPECT_EQ(fcntl(set, F_GETFD), -1);
}

TEST_F(Loop, TheLastHandleTakesTheSetAlong)
{
    for (int round = 0; round < 10; round++) {
        ringpoll_uv_tcp_t tcp[2];
        for (auto &each : tcp)
            ASSERT_EQ(ringpoll_uv_tcp_init(&loop_, &each), 0);
        EXPECT_GE(ringpoll_uv_set(&loop_), 0);
        ringpoll_uv_close((ringpoll_uv_handle_t *)&tcp[0], nullptr);
        uv_run(&loop_, UV_RUN_DEFAULT);
        EXPECT_GE(ringpoll_uv_set(&loop_), 0);
        ringpoll_uv_close((ringpoll_uv_handle_t *)&tcp[1], nullptr);
        uv_run(&loop_, UV_RUN_DEFAULT);
        EXPECT_EQ(ringpoll_uv_set(&loop_), UV_EINVAL);
    }
}

TEST_F(Loop, ADetachWithHandlesOpenLeavesThemTheSet)
{
    ringpoll_uv_pipe_t pipe;
    int peer;
    ASSERT_EQ(ringpoll_uv_attach(&loop_), 0);
    pair(&pipe, &peer);
    EXPECT_EQ(ringpoll_uv_detach(&loop_), 0);
    EXPECT_GE(ringpoll_uv_set(&loop_), 0);
    uv_buf_t buf = uv_buf_init((char *)"hello", 5);
    EXPECT_EQ(ringpoll_uv_try_write((ringpoll_uv_stream_t *)&pipe, &buf, 1), 5);
    uv_run(&loop_, UV_RUN_NOWAIT);
    char got[8];
    EXPECT_EQ(recv(peer, got, sizeof got, MSG_DONTWAIT), 5);
    ringpoll_uv_close((ringpoll_uv_handle_t *)&pipe, nullptr);
    ::close(peer);
    uv_run(&loop_, UV_RUN_DEFAULT);
}

TEST_F(Loop, ALoopThatAnotherThreadRunsIsBusy)
{
    ringpoll_uv_tcp_t tcp;
    ASSERT_EQ(ringpoll_uv_attach(&loop_), 0);
    uv_async_t end;
    uv_async_init(&loop_, &end, [](uv_async_t *async) { uv_close((uv_handle_t *)async, nullptr); });
    std::atomic<bool> runs{false};
    uv_prepare_t prepare;
    uv_prepare_init(&loop_, &prepare);
    prepare.data = &runs;
    uv_prepare_start(&prepare, [](uv_prepare_t *self) { *(std::atomic<bool> *)self->data = true; });
    uv_unref((uv_handle_t *)&prepare);
    std::thread runner([&] { uv_run(&loop_, UV_RUN_DEFAULT); });
    int attached = 1;
    while (!runs)
        std::this_thread::yield();
    while (ringpoll_uv_attach(&loop_) == 0) /* until it sleeps */
        attached++;
    EXPECT_EQ(ringpoll_uv_tcp_init(&loop_, &tcp), UV_EBUSY);
    EXPECT_EQ(ringpoll_uv_detach(&loop_), UV_EBUSY);
    uv_async_send(&end);
    runner.join();
    uv_close((uv_handle_t *)&prepare, nullptr);
    while (attached-- > 0)
        EXPECT_EQ(ringpoll_uv_detach(&loop_), 0);
    uv_run(&loop_, UV_RUN_DEFAULT);
}

TEST_F(Loop, WhatIsOursUnderneathIsKnown)
{
    ringpoll_uv_pipe_t pipe;
    int peer;
    pair(&pipe, &peer);
    uv_run(&loop_, UV_RUN_NOWAIT);
    uv_timer_t timer;
    uv_idle_t idle;
    uv_timer_init(&loop_, &timer);
    uv_idle_init(&loop_, &idle);
    uv_walk(&loop_, [](uv_handle_t *handle, void *) {
        if (!ringpoll_uv_owns(handle) && !uv_is_closing(handle))
            uv_close(handle, nullptr);
    }, nullptr);
    EXPECT_TRUE(uv_is_closing((uv_handle_t *)&timer));
    EXPECT_TRUE(uv_is_closing((uv_handle_t *)&idle));
    uv_run(&loop_, UV_RUN_NOWAIT);
    ringpoll_uv_close((ringpoll_uv_handle_t *)&pipe, nullptr);
    ::close(peer);
    uv_run(&loop_, UV_RUN_DEFAULT);
}

TEST_F(Loop, PipesThatPassHandlesAreRefused)
{
    ringpoll_uv_pipe_t pipe;
    EXPECT_EQ(ringpoll_uv_pipe_init(&loop_, &pipe, 1), UV_ENOTSUP);
}

/* ------------------------------------------------- what the set does not take */

struct Failing {
    int calls = 0, written = 1, ended = 1;
    ssize_t status = 0;
    static void alloc(ringpoll_uv_handle_t *, size_t, uv_buf_t *buf)
    {
        static char room[64];
        *buf = uv_buf_init(room, sizeof room);
    }
    static Failing *of(void *handle) { return (Failing *)((ringpoll_uv_handle_t *)handle)->data; }
    void note(ssize_t result)
    {
        calls++;
        status = result;
    }
};

TEST_F(Loop, AFileThatCannotBeWatchedIsItsReadersErrorAndTheLoopEnds)
{
    char name[] = "/tmp/ringpoll-uv-XXXXXX";
    int plain = mkostemp(name, O_CLOEXEC);
    ASSERT_GE(plain, 0);
    unlink(name);
    for (int fd : {open("/dev/null", O_RDWR | O_CLOEXEC), plain}) {
        ringpoll_uv_pipe_t pipe;
        Failing failing;
        ASSERT_EQ(ringpoll_uv_pipe_init(&loop_, &pipe, 0), 0);
        ASSERT_EQ(ringpoll_uv_pipe_open(&pipe, fd), 0);
        pipe.data = &failing;
        auto *stream = (ringpoll_uv_stream_t *)&pipe;
        for (int round = 1; round <= 2; round++) {
            ASSERT_EQ(ringpoll_uv_read_start(stream, Failing::alloc,
                [](ringpoll_uv_stream_t *self, ssize_t nread, const uv_buf_t *) { Failing::of(self)->note(nread); }), 0);
            uv_run(&loop_, UV_RUN_DEFAULT);
            EXPECT_EQ(failing.calls, round);
            EXPECT_EQ(failing.status, UV_EPERM);
            EXPECT_FALSE(ringpoll_uv_is_active((ringpoll_uv_handle_t *)&pipe));
        }
        ringpoll_uv_write_t req;
        req.data = &failing;
        uv_buf_t buf = uv_buf_init((char *)"bytes", 5);
        ASSERT_EQ(ringpoll_uv_write(&req, stream, &buf, 1, [](ringpoll_uv_write_t *self, int status) {
            ((Failing *)self->data)->written = status;
        }), 0);
        uv_run(&loop_, UV_RUN_DEFAULT);
        EXPECT_EQ(failing.written, 0);
        ringpoll_uv_close((ringpoll_uv_handle_t *)&pipe, nullptr);
        uv_run(&loop_, UV_RUN_DEFAULT);
    }
}

/* EEXIST stands for all that the set may answer. */
TEST_F(Loop, WhatTheSetRefusesIsToldToWhoWaits)
{
    ASSERT_EQ(ringpoll_uv_attach(&loop_), 0);
    int set = ringpoll_uv_set(&loop_);
    uv_os_fd_t fd;
    struct epoll_event none = {};
    none.data.ptr = nullptr;
    auto take = [&](void *handle) {
        ASSERT_EQ(ringpoll_uv_fileno((ringpoll_uv_handle_t *)handle, &fd), 0);
        ASSERT_EQ(ringpoll_ctl(set, EPOLL_CTL_ADD, fd, &none), 0);
    };
    auto end = [&](void *handle) {
        EXPECT_FALSE(ringpoll_uv_is_active((ringpoll_uv_handle_t *)handle));
        EXPECT_EQ(ringpoll_ctl(set, EPOLL_CTL_DEL, fd, nullptr), 0);
        ringpoll_uv_close((ringpoll_uv_handle_t *)handle, nullptr);
        uv_run(&loop_, UV_RUN_DEFAULT);
    };
    struct sockaddr_in address;
    uv_ip4_addr("127.0.0.1", 0, &address);

    ringpoll_uv_tcp_t tcp;
    Failing listener;
    tcp.data = &listener;
    ASSERT_EQ(ringpoll_uv_tcp_init(&loop_, &tcp), 0);
    ASSERT_EQ(ringpoll_uv_tcp_bind(&tcp, (struct sockaddr *)&address, 0), 0);
    take(&tcp);
    for (int round = 1; round <= 2; round++) {
        ASSERT_EQ(ringpoll_uv_listen((ringpoll_uv_stream_t *)&tcp, 4,
            [](ringpoll_uv_stream_t *self, int status) { Failing::of(self)->note(status); }), 0);
        uv_run(&loop_, UV_RUN_DEFAULT);
        EXPECT_EQ(listener.calls, round);
        EXPECT_EQ(listener.status, UV_EEXIST);
    }
    int length = sizeof address;
    ASSERT_EQ(ringpoll_uv_tcp_getsockname(&tcp, (struct sockaddr *)&address, &length), 0);

    ringpoll_uv_tcp_t client;
    Failing connecting;
    int listening = fd;
    ringpoll_uv_connect_t req;
    req.data = &connecting;
    ASSERT_EQ(ringpoll_uv_tcp_init(&loop_, &client), 0);
    ASSERT_EQ(ringpoll_uv_tcp_connect(&req, &client, (struct sockaddr *)&address,
        [](ringpoll_uv_connect_t *self, int status) { ((Failing *)self->data)->note(status); }), 0);
    take(&client);
    uv_run(&loop_, UV_RUN_DEFAULT);
    EXPECT_EQ(connecting.calls, 1);
    EXPECT_EQ(connecting.status, UV_EEXIST);
    end(&client);
    fd = listening;
    end(&tcp);

    ringpoll_uv_udp_t udp;
    Failing receiver;
    udp.data = &receiver;
    ASSERT_EQ(ringpoll_uv_udp_init(&loop_, &udp), 0);
    address.sin_port = 0;
    ASSERT_EQ(ringpoll_uv_udp_bind(&udp, (struct sockaddr *)&address, 0), 0);
    take(&udp);
    ASSERT_EQ(ringpoll_uv_udp_recv_start(&udp, Failing::alloc,
        [](ringpoll_uv_udp_t *self, ssize_t nread, const uv_buf_t *, const struct sockaddr *, unsigned) {
            Failing::of(self)->note(nread);
        }), 0);
    uv_run(&loop_, UV_RUN_DEFAULT);
    EXPECT_EQ(receiver.calls, 1);
    EXPECT_EQ(receiver.status, UV_EEXIST);
    end(&udp);

    ringpoll_uv_pipe_t pipe;
    int peer;
    Failing stream;
    pair(&pipe, &peer);
    pipe.data = &stream;
    take(&pipe);
    std::string much(8u << 20, 'm');
    uv_buf_t buf = uv_buf_init(much.data(), (unsigned)much.size());
    ringpoll_uv_write_t write;
    ringpoll_uv_shutdown_t ending;
    write.data = ending.data = &stream;
    ASSERT_EQ(ringpoll_uv_read_start((ringpoll_uv_stream_t *)&pipe, Failing::alloc,
        [](ringpoll_uv_stream_t *self, ssize_t nread, const uv_buf_t *) { Failing::of(self)->note(nread); }), 0);
    ASSERT_EQ(ringpoll_uv_write(&write, (ringpoll_uv_stream_t *)&pipe, &buf, 1,
        [](ringpoll_uv_write_t *self, int status) { ((Failing *)self->data)->written = status; }), 0);
    ASSERT_EQ(ringpoll_uv_shutdown(&ending, (ringpoll_uv_stream_t *)&pipe,
        [](ringpoll_uv_shutdown_t *self, int status) { ((Failing *)self->data)->ended = status; }), 0);
    uv_run(&loop_, UV_RUN_DEFAULT);
    EXPECT_EQ(stream.calls, 1);
    EXPECT_EQ(stream.status, UV_EEXIST);
    EXPECT_EQ(stream.written, UV_EEXIST);
    EXPECT_EQ(stream.ended, UV_EEXIST);
    end(&pipe);
    ::close(peer);
    EXPECT_EQ(ringpoll_uv_detach(&loop_), 0);
}

/* -------------------------------------------------------------- lent buffers */

struct Borrower {
    ringpoll_uv_pipe_t pipe;
    std::vector<struct ringpoll_buffer> kept;
    std::string got;
    ssize_t status = 0;
    bool keeps = false;
    ringpoll_uv_stream_t *stream() { return (ringpoll_uv_stream_t *)&pipe; }
    int start()
    {
        pipe.data = this;
        return ringpoll_uv_read_start_borrowed(
            stream(), [](ringpoll_uv_stream_t *stream, ssize_t nread, struct ringpoll_buffer *buffer) {
                auto *self = (Borrower *)stream->data;
                if (nread < 0) {
                    EXPECT_EQ(buffer, nullptr);
                    self->status = nread;
                    return;
                }
                EXPECT_EQ((size_t)nread, buffer->length);
                self->got.append((char *)buffer->data, buffer->length);
                if (self->keeps)
                    self->kept.push_back(*buffer);
                else
                    ringpoll_return(buffer);
            });
    }
};

TEST_F(Loop, BorrowedReadsBringAllBytesAndTheEnd)
{
    Borrower borrower;
    int peer;
    pair(&borrower.pipe, &peer);
    ASSERT_EQ(borrower.start(), 0);
    EXPECT_EQ(borrower.start(), UV_EALREADY);
    std::string sent;
    for (int i = 0; i < 3000; i++)
        sent += std::to_string(i) + (i % 40 == 0 ? std::string(5000, 'x') : " ");
    std::thread writer([&] {
        for (size_t at = 0; at < sent.size();) {
            ssize_t n = ::write(peer, sent.data() + at, std::min<size_t>(sent.size() - at, 1 + at % 20000));
            ASSERT_GT(n, 0);
            at += (size_t)n;
        }
        ::close(peer);
    });
    uv_run(&loop_, UV_RUN_DEFAULT);
    writer.join();
    EXPECT_EQ(borrower.status, UV_EOF);
    EXPECT_EQ(borrower.got, sent);
    ringpoll_uv_close((ringpoll_uv_handle_t *)&borrower.pipe, nullptr);
    uv_run(&loop_, UV_RUN_DEFAULT);
}

TEST_F(Loop, ABorrowedBufferOutlivesStreamAndLoop)
{
    std::vector<struct ringpoll_buffer> kept;
    std::string sent;
    {
        Borrower borrower;
        uv_loop_t loop;
        int fds[2] = {-1, -1};
        ASSERT_EQ(uv_loop_init(&loop), 0);
        tcp_pair(fds);
        ASSERT_EQ(ringpoll_uv_pipe_init(&loop, &borrower.pipe, 0), 0);
        ASSERT_EQ(ringpoll_uv_pipe_open(&borrower.pipe, fds[0]), 0);
        borrower.keeps = true;
        ASSERT_EQ(borrower.start(), 0);
        for (int i = 0; i < 40; i++) {
            std::string piece = std::to_string(i) + ";";
            sent += piece;
            ASSERT_EQ(::write(fds[1], piece.data(), piece.size()), (ssize_t)piece.size());
            while (borrower.got.size() < sent.size())
                uv_run(&loop, UV_RUN_ONCE);
        }
        if (has_ring(completes)) {
            EXPECT_GT(stats_of(ringpoll_uv_set(&loop)).received, 10u);
        }
        ringpoll_uv_close((ringpoll_uv_handle_t *)&borrower.pipe, nullptr);
        uv_run(&loop, UV_RUN_DEFAULT);
        ASSERT_EQ(uv_loop_close(&loop), 0);
        ::close(fds[1]);
        kept = borrower.kept;
    }
    std::string got;
    for (auto &buffer : kept)
        got.append((char *)buffer.data, buffer.length);
    EXPECT_EQ(got, sent);
    std::thread([&] {
        for (auto &buffer : kept)
            ringpoll_return(&buffer);
    }).join();
}

/* ---------------------------------------------------------------- its calls */

/* A server of 64 connections; their other ends write all before the loop runs, and read all
 * after. Beside what the stats count, a turn may read the eventfd, once, and libuv has an epoll_wait. */
TEST_F(Loop, AnEchoOf64ConnectionsCostsATenthOfACallEach)
{
    if (!has_ring(completes))
        GTEST_SKIP() << "no ring that receives";
    constexpr int count = 64, rounds = 200;
    struct Echo {
        ringpoll_uv_pipe_t pipe;
        ringpoll_uv_write_t req;
        char room[256];
        int *answered;
    };
    std::vector<Echo> echoes(count);
    std::vector<int> peers(count);
    int answered = 0, turns = 0;
    for (size_t i = 0; i < count; i++) {
        Echo *echo = &echoes[i];
        pair(&echo->pipe, &peers[i]);
        echo->pipe.data = echo->req.data = echo;
        echo->answered = &answered;
        ASSERT_EQ(ringpoll_uv_read_start((ringpoll_uv_stream_t *)&echo->pipe,
            [](ringpoll_uv_handle_t *handle, size_t, uv_buf_t *buf) {
                *buf = uv_buf_init(((Echo *)handle->data)->room, sizeof(Echo::room));
            },
            [](ringpoll_uv_stream_t *stream, ssize_t nread, const uv_buf_t *buf) {
                uv_buf_t out = uv_buf_init(buf->base, (unsigned)nread);
                if (nread == 0)
                    return;
                EXPECT_EQ(ringpoll_uv_write(&((Echo *)stream->data)->req, stream, &out, 1,
                    [](ringpoll_uv_write_t *req, int status) {
                        EXPECT_EQ(status, 0);
                        ++*((Echo *)req->data)->answered;
                    }), 0);
            }), 0);
    }
    struct ringpoll_stats before = {};
    int set = ringpoll_uv_set(&loop_);
    char bytes[64] = {};
    for (int round = 0; round < rounds + 50; round++) {
        if (round == 50) { /* all are adopted by now */
            before = stats_of(set);
            turns = 0;
        }
        answered = 0;
        for (int fd : peers)
            ASSERT_EQ(::send(fd, bytes, sizeof bytes, 0), (ssize_t)sizeof bytes);
        for (; answered < count; turns++)
            uv_run(&loop_, UV_RUN_ONCE);
        for (int fd : peers)
            ASSERT_EQ(::recv(fd, bytes, sizeof bytes, MSG_DONTWAIT), (ssize_t)sizeof bytes);
    }
    struct ringpoll_stats after = stats_of(set);
    EXPECT_EQ(after.engine, RINGPOLL_ENGINE_RING);
    double requests = (double)rounds * count;
    EXPECT_GE((double)(after.calls_saved - before.calls_saved), requests * 1.99) << "of a read and a write each";
    EXPECT_LE((double)(after.enters - before.enters + after.kernel_waits - before.kernel_waits) + 2.0 * turns,
              requests * 0.1);
    for (auto &echo : echoes)
        ringpoll_uv_close((ringpoll_uv_handle_t *)&echo.pipe, nullptr);
    uv_run(&loop_, UV_RUN_DEFAULT);
    for (int fd : peers)
        ::close(fd);
}

} // namespace
