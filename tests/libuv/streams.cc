/* SPDX-License-Identifier: MIT
 *
 * Streams: what programs lean on, over TCP and AF_UNIX. The far end is a plain socket of
 * the test's own.
 */
#include "support.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <thread>

namespace {

struct Reader {
    std::string bytes;
    ssize_t ended = 0;
    char last = 0; /* 'a'lloc or 'r'ead */
    bool out_of_turn = false;
    std::function<void(uv_stream_t *)> then = [](uv_stream_t *) {};
    char buffer[65536];
};

void on_alloc(uv_handle_t *handle, size_t, uv_buf_t *buffer)
{
    auto *reader = static_cast<Reader *>(handle->data);
    reader->out_of_turn |= reader->last == 'a';
    reader->last = 'a';
    *buffer = uv_buf_init(reader->buffer, sizeof reader->buffer);
}

void on_read(uv_stream_t *stream, ssize_t got, const uv_buf_t *buffer)
{
    auto *reader = static_cast<Reader *>(stream->data);
    reader->out_of_turn |= reader->last == 'r';
    reader->last = 'r';
    if (got > 0)
        reader->bytes.append(buffer->base, static_cast<size_t>(got));
    if (got < 0)
        reader->ended = got;
    reader->then(stream);
}

struct Write {
    uv_write_t request;
    std::string text;
    int status = 1;
};

union Handle {
    uv_handle_t handle;
    uv_stream_t stream;
    uv_tcp_t tcp;
    uv_pipe_t pipe;
};

class Streams : public LoopTest, public ::testing::WithParamInterface<int> {
protected:
    Handle listener_, stream_;
    Reader reader_;
    std::deque<Write> writes_;
    int peer_ = -1;
    bool accepted_ = false;
    sockaddr_storage address_ = {};
    socklen_t length_ = 0;

    void SetUp() override
    {
        LoopTest::SetUp();
        init(&listener_);
        init(&stream_);
        stream_.handle.data = &reader_;
        listener_.handle.data = this;
        if (GetParam() == AF_INET) {
            auto *any = reinterpret_cast<sockaddr_in *>(&address_);
            uv_ip4_addr("127.0.0.1", 0, any);
            ASSERT_EQ(uv_tcp_bind(&listener_.tcp, reinterpret_cast<sockaddr *>(any), 0), 0);
            int length = sizeof address_;
            ASSERT_EQ(uv_tcp_getsockname(&listener_.tcp, reinterpret_cast<sockaddr *>(&address_), &length), 0);
            length_ = static_cast<socklen_t>(length);
        } else {
            auto *name = reinterpret_cast<sockaddr_un *>(&address_);
            name->sun_family = AF_UNIX;
            snprintf(name->sun_path, sizeof name->sun_path, "%s/libuv-test-%d-%p", testing::TempDir().c_str(), getpid(),
                     static_cast<void *>(this));
            ASSERT_EQ(uv_pipe_bind(&listener_.pipe, name->sun_path), 0);
            length_ = sizeof *name;
        }
        ASSERT_EQ(uv_listen(&listener_.stream, 128, [](uv_stream_t *listener, int status) {
            auto *self = static_cast<Streams *>(listener->data);
            if (status == 0 && !self->accepted_)
                self->accepted_ = uv_accept(listener, &self->stream_.stream) == 0;
        }), 0);
        peer_ = connected();
        run_until([&] { return accepted_; });
    }

    void TearDown() override
    {
        LoopTest::TearDown();
        hang_up();
    }

    void init(Handle *handle)
    {
        if (GetParam() == AF_INET)
            ASSERT_EQ(uv_tcp_init(&loop_, &handle->tcp), 0);
        else
            ASSERT_EQ(uv_pipe_init(&loop_, &handle->pipe, 0), 0);
    }
    int connected()
    {
        int fd = socket(GetParam(), SOCK_STREAM | SOCK_CLOEXEC, 0);
        EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr *>(&address_), length_), 0) << strerror(errno);
        return fd;
    }
    void hang_up()
    {
        if (peer_ >= 0)
            close(peer_);
        peer_ = -1;
    }
    void start() { ASSERT_EQ(uv_read_start(&stream_.stream, on_alloc, on_read), 0); }
    int fd()
    {
        uv_os_fd_t fd = -1;
        EXPECT_EQ(uv_fileno(&stream_.handle, &fd), 0);
        return fd;
    }
    void peer_sends(const std::string &text)
    {
        ASSERT_EQ(::send(peer_, text.data(), text.size(), MSG_NOSIGNAL), static_cast<ssize_t>(text.size()));
    }
    void send_and_wait(const std::string &text)
    {
        size_t wanted = reader_.bytes.size() + text.size();
        peer_sends(text);
        run_until([&] { return reader_.bytes.size() >= wanted; });
    }
    /* As many reads and writes as it takes until the loop does for the stream what it
     * does for one in use. */
    void warm_up()
    {
        start();
        for (int i = 0; i < 32; i++) {
            send_and_wait("to and fro");
            Write *one = write("to and fro");
            run_until([&] { return one->status != 1; });
            ASSERT_EQ(peer_reads(10), "to and fro");
        }
        reader_.bytes.clear();
    }
    Write *write(const std::string &text)
    {
        writes_.emplace_back();
        Write *one = &writes_.back();
        one->text = text;
        uv_buf_t buffer = uv_buf_init(const_cast<char *>(one->text.data()), static_cast<unsigned>(text.size()));
        EXPECT_EQ(uv_write(&one->request, &stream_.stream, &buffer, 1, [](uv_write_t *request, int status) {
            reinterpret_cast<Write *>(request)->status = status;
        }), 0);
        return one;
    }
    long try_write(const std::string &text)
    {
        uv_buf_t buffer = uv_buf_init(const_cast<char *>(text.data()), static_cast<unsigned>(text.size()));
        return uv_try_write(&stream_.stream, &buffer, 1);
    }
    /* Blocks: what was written is on its way already. */
    std::string peer_reads(size_t length)
    {
        std::string text(length, '\0');
        pollfd look = {peer_, POLLIN, 0};
        size_t have = 0;
        while (have < length && poll(&look, 1, 10000) == 1) {
            ssize_t got = recv(peer_, &text[have], length - have, 0);
            if (got <= 0)
                break;
            have += static_cast<size_t>(got);
        }
        text.resize(have);
        return text;
    }
};

INSTANTIATE_TEST_SUITE_P(Both, Streams, ::testing::Values(AF_INET, AF_UNIX),
                         [](const auto &info) { return std::string(info.param == AF_INET ? "Tcp" : "Unix"); });

/* bind9 asserts it; uvloop has one buffer for all. */
TEST_P(Streams, EachAllocIsFollowedAtOnceByItsRead)
{
    std::string all;
    start();
    for (int i = 0; i < 200; i++) {
        std::string text(static_cast<size_t>(1 + i * 37), static_cast<char>('a' + i % 26));
        send_and_wait(text);
        all += text;
    }
    EXPECT_TRUE(reader_.bytes == all);
    EXPECT_FALSE(reader_.out_of_turn);
    EXPECT_EQ(reader_.last, 'r');
}

TEST_P(Streams, WhoStopsInTheCallbackHearsNothingUntilItStarts)
{
    warm_up();
    uv_read_stop(&stream_.stream);
    reader_.then = [](uv_stream_t *stream) { uv_read_stop(stream); };
    std::string all;
    for (int i = 0; i < 50; i++) {
        std::string text = "piece " + std::to_string(i) + ";";
        peer_sends(text);
        turn(2);
        ASSERT_EQ(reader_.bytes, all) << "a stream that was stopped was read";
        all += text;
        start();
        run_until([&] { return reader_.bytes == all; });
    }
    hang_up();
    turn(2);
    EXPECT_EQ(reader_.ended, 0);
    start();
    run_until([&] { return reader_.ended != 0; });
    EXPECT_EQ(reader_.ended, UV_EOF);
}

TEST_P(Streams, WhatComesAfterAStopCanBeReadPastTheLoop)
{
    warm_up();
    for (int i = 0; i < 20; i++) {
        send_and_wait("by the loop");
        uv_read_stop(&stream_.stream);
        turn(i % 2);
        peer_sends("past it");
        turn(i % 3);
        pollfd look = {fd(), POLLIN, 0};
        ASSERT_EQ(poll(&look, 1, 10000), 1);
        char bytes[64];
        ASSERT_EQ(recv(fd(), bytes, sizeof bytes, 0), 7) << i;
        EXPECT_EQ(std::string(bytes, 7), "past it");
        start();
    }
    reader_.bytes.clear();
    send_and_wait("by the loop again");
    EXPECT_EQ(reader_.bytes, "by the loop again");
}

/* As uvloop does. */
TEST_P(Streams, WhoseQueueIsEmptyMayWriteToTheFd)
{
    warm_up();
    std::string all;
    for (int i = 0; i < 50; i++) {
        Write *one = write("by the loop " + std::to_string(i) + ";");
        all += one->text;
        run_until([&] { return one->status != 1; });
        ASSERT_EQ(one->status, 0);
        ASSERT_EQ(uv_stream_get_write_queue_size(&stream_.stream), 0u);
        std::string text = "past it " + std::to_string(i) + ";";
        ASSERT_EQ(::send(fd(), text.data(), text.size(), MSG_NOSIGNAL), static_cast<ssize_t>(text.size()));
        all += text;
    }
    EXPECT_EQ(peer_reads(all.size()), all);
}

TEST_P(Streams, AWriteAndAClose)
{
    warm_up();
    for (int i = 0; i < 10; i++)
        write("written");
    uv_close(&stream_.handle, nullptr);
    run_until([&] { return writes_.back().status != 1; });
    /* On both sides the first were the kernel's before the close. */
    EXPECT_EQ(peer_reads(7), "written");
    char byte;
    std::string rest = peer_reads(63);
    EXPECT_EQ(rest.size() % 7, 0u);
    EXPECT_EQ(recv(peer_, &byte, 1, 0), 0) << "there is no end";
}

TEST_P(Streams, WritesAndAShutdownDeliverAll)
{
    warm_up();
    std::string all;
    for (int i = 0; i < 100; i++)
        all += write(std::string(static_cast<size_t>(1 + i * 11), static_cast<char>('a' + i % 26)))->text;
    uv_shutdown_t shutdown;
    bool shut = false;
    shutdown.data = &shut;
    ASSERT_EQ(uv_shutdown(&shutdown, &stream_.stream, [](uv_shutdown_t *request, int status) {
        EXPECT_EQ(status, 0);
        *static_cast<bool *>(request->data) = true;
    }), 0);
    run_until([&] { return shut; });
    for (size_t i = writes_.size() - 100; i < writes_.size(); i++)
        EXPECT_EQ(writes_[i].status, 0) << "a shutdown before a write's callback";
    EXPECT_TRUE(peer_reads(all.size()) == all);
    char byte;
    EXPECT_EQ(recv(peer_, &byte, 1, 0), 0);
}

TEST_P(Streams, ATryIsSynchronousAndInItsPlace)
{
    warm_up();
    EXPECT_EQ(try_write("tried"), 5);
    if (GetParam() == AF_UNIX) { /* TCP may hold back what follows something that is not acknowledged */
        char bytes[64];
        ASSERT_EQ(recv(peer_, bytes, sizeof bytes, MSG_DONTWAIT), 5) << "it was not there at once";
    } else {
        ASSERT_EQ(peer_reads(5), "tried");
    }
    Write *one = write("written");
    run_until([&] { return one->status != 1; });
    EXPECT_EQ(try_write("tried"), 5);
    EXPECT_EQ(peer_reads(12), "writtentried");
    /* and never before what waits */
    const std::string large(8 << 20, 'L');
    one = write(large);
    EXPECT_GT(uv_stream_get_write_queue_size(&stream_.stream), 0u);
    EXPECT_EQ(try_write("tried"), UV_EAGAIN);
    std::string read;
    std::thread reader([&] { read = peer_reads(large.size()); });
    run_until([&] { return one->status != 1; });
    reader.join();
    EXPECT_TRUE(read == large);
    EXPECT_EQ(try_write("tried"), 5);
    EXPECT_EQ(peer_reads(5), "tried");
}

TEST_P(Streams, WithoutFdsConnectionsWaitOrEnd)
{
    warm_up();
    struct rlimit before, few;
    ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
    int first = connected(), second = connected();
    int lowest = dup(0);
    few = before;
    few.rlim_cur = static_cast<rlim_t>(lowest);
    close(lowest);
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
    turn(5); /* nothing aborts, nothing spins */
    send_and_wait("others go on");
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
    EXPECT_EQ(reader_.bytes, "others go on");
    turn(5);
    close(first);
    close(second);
}

TEST_P(Streams, AConnectionThatIsPassedOnWorksThere)
{
    warm_up();
    uv_os_sock_t pair[2];
    uv_pipe_t from, to;
    ASSERT_EQ(uv_socketpair(SOCK_STREAM, 0, pair, UV_NONBLOCK_PIPE, UV_NONBLOCK_PIPE), 0);
    ASSERT_EQ(uv_pipe_init(&loop_, &from, 1), 0);
    ASSERT_EQ(uv_pipe_init(&loop_, &to, 1), 0);
    ASSERT_EQ(uv_pipe_open(&from, pair[0]), 0);
    ASSERT_EQ(uv_pipe_open(&to, pair[1]), 0);
    uv_read_stop(&stream_.stream);
    Write two;
    uv_buf_t buffer = uv_buf_init(const_cast<char *>("handle"), 6);
    ASSERT_EQ(uv_write2(&two.request, reinterpret_cast<uv_stream_t *>(&from), &buffer, 1, &stream_.stream,
                        [](uv_write_t *request, int status) { reinterpret_cast<Write *>(request)->status = status; }), 0);
    Reader passed;
    to.data = &passed;
    ASSERT_EQ(uv_read_start(reinterpret_cast<uv_stream_t *>(&to), on_alloc, on_read), 0);
    run_until([&] { return passed.bytes == "handle" && two.status != 1; });
    ASSERT_EQ(uv_pipe_pending_count(&to), 1);
    EXPECT_EQ(uv_pipe_pending_type(&to), GetParam() == AF_INET ? UV_TCP : UV_NAMED_PIPE);
    Handle there;
    init(&there);
    Reader reader;
    there.handle.data = &reader;
    ASSERT_EQ(uv_accept(reinterpret_cast<uv_stream_t *>(&to), &there.stream), 0);
    uv_close(&stream_.handle, nullptr);
    ASSERT_EQ(uv_read_start(&there.stream, on_alloc, on_read), 0);
    for (int i = 0; i < 20; i++) {
        size_t wanted = reader.bytes.size() + 5;
        peer_sends("there");
        run_until([&] { return reader.bytes.size() >= wanted; });
    }
    EXPECT_EQ(reader.bytes.size(), 100u);
    uv_buf_t back = uv_buf_init(const_cast<char *>("and back"), 8);
    EXPECT_EQ(uv_try_write(&there.stream, &back, 1), 8);
    EXPECT_EQ(peer_reads(8), "and back");
    uv_close(&there.handle, nullptr);
    uv_close(reinterpret_cast<uv_handle_t *>(&from), nullptr);
    uv_close(reinterpret_cast<uv_handle_t *>(&to), nullptr);
    turn(2);
}

TEST_P(Streams, AChildThatForksTheLoopServesAndItsParentToo)
{
    warm_up();
    pid_t child = fork();
    if (child == 0) { /* the connection is left to the parent */
        bool good = uv_loop_fork(&loop_) == 0;
        uv_read_stop(&stream_.stream);
        Reader reader;
        int pair[2];
        good = good && uv_socketpair(SOCK_STREAM, 0, pair, UV_NONBLOCK_PIPE, 0) == 0;
        uv_pipe_t pipe;
        uv_pipe_init(&loop_, &pipe, 0);
        pipe.data = &reader;
        good = good && uv_pipe_open(&pipe, pair[0]) == 0 &&
               uv_read_start(reinterpret_cast<uv_stream_t *>(&pipe), on_alloc, on_read) == 0;
        for (int i = 0; good && i < 30; i++) {
            good = ::send(pair[1], "child", 5, MSG_NOSIGNAL) == 5;
            for (int k = 0; good && k < 1000 && reader.bytes.size() < static_cast<size_t>(i + 1) * 5; k++)
                uv_run(&loop_, UV_RUN_ONCE);
        }
        _exit(good && reader.bytes.size() == 150 ? 0 : 1);
    }
    int status = -1;
    for (int i = 0; i < 30; i++)
        send_and_wait("parent");
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    EXPECT_EQ(reader_.bytes.size(), 180u);
    send_and_wait("and on");
}

TEST_P(Streams, AChildThatNeverRunsTheLoopTakesNothing)
{
    warm_up();
    pid_t child = fork();
    if (child == 0) {
        char bytes[64];
        close(fd());
        _exit(read(-1, bytes, sizeof bytes) == -1 ? 0 : 1);
    }
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    for (int i = 0; i < 30; i++)
        send_and_wait("parent");
    EXPECT_EQ(reader_.bytes.size(), 180u);
}

TEST_P(Streams, AnFdThatAnotherThreadClosedIsNoReasonToAbort)
{
    warm_up();
    int number = fd();
    std::thread([number] { close(number); }).join();
    turn(5);
    hang_up();
    turn(5);
    uv_close(&stream_.handle, nullptr);
    turn(2);
}

TEST_F(LoopTest, APollThatWasStoppedKnowsNothingOfTheNextFdOfItsNumber)
{
    for (int round = 0; round < 20; round++) {
        uv_os_sock_t pair[2], other[2];
        uv_poll_t poll;
        unsigned events = 0;
        ASSERT_EQ(uv_socketpair(SOCK_STREAM, 0, pair, UV_NONBLOCK_PIPE, UV_NONBLOCK_PIPE), 0);
        ASSERT_EQ(uv_poll_init(&loop_, &poll, pair[0]), 0);
        poll.data = &events;
        auto on_poll = [](uv_poll_t *poll, int status, int events) {
            EXPECT_EQ(status, 0);
            *static_cast<unsigned *>(poll->data) += static_cast<unsigned>(events != 0);
        };
        ASSERT_EQ(uv_poll_start(&poll, UV_READABLE, on_poll), 0);
        ASSERT_EQ(::send(pair[1], "x", 1, MSG_NOSIGNAL), 1);
        run_until([&] { return events > 0; });
        uv_poll_stop(&poll);
        bool closed = false;
        poll.data = &closed;
        uv_close(reinterpret_cast<uv_handle_t *>(&poll),
                 [](uv_handle_t *handle) { *static_cast<bool *>(handle->data) = true; });
        int number = pair[0];
        close(pair[0]); /* at once, as may be */
        ASSERT_EQ(uv_socketpair(SOCK_STREAM, 0, other, UV_NONBLOCK_PIPE, UV_NONBLOCK_PIPE), 0);
        ASSERT_TRUE(other[0] == number || other[1] == number);
        int reused = other[0] == number ? 0 : 1;
        uv_poll_t next;
        unsigned seen = 0;
        ASSERT_EQ(uv_poll_init(&loop_, &next, other[reused]), 0);
        next.data = &seen;
        ASSERT_EQ(uv_poll_start(&next, UV_READABLE, on_poll), 0);
        ::send(pair[1], "y", 1, MSG_NOSIGNAL);
        turn(3);
        EXPECT_TRUE(closed);
        EXPECT_EQ(seen, 0u) << "an event of the fd before";
        ASSERT_EQ(::send(other[1 - reused], "z", 1, MSG_NOSIGNAL), 1);
        run_until([&] { return seen > 0; });
        uv_close(reinterpret_cast<uv_handle_t *>(&next), nullptr);
        turn(2);
        close(other[0]);
        close(other[1]);
        close(pair[1]);
    }
}

} // namespace
