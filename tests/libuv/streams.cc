/* SPDX-License-Identifier: MIT
 *
 * Streams: what programs lean on.
 */
#include "support.h"

#include <sys/socket.h>
#include <unistd.h>

namespace {

struct Reader {
    std::string bytes;
    std::vector<std::string> calls;
    ssize_t ended = 0;
    bool stop_after_each = false;
    char buffer[65536];
};

void on_alloc(uv_handle_t *handle, size_t, uv_buf_t *buffer)
{
    auto *reader = static_cast<Reader *>(handle->data);
    reader->calls.push_back("alloc");
    *buffer = uv_buf_init(reader->buffer, sizeof reader->buffer);
}

void on_read(uv_stream_t *stream, ssize_t got, const uv_buf_t *buffer)
{
    auto *reader = static_cast<Reader *>(stream->data);
    reader->calls.push_back("read");
    if (got > 0)
        reader->bytes.append(buffer->base, static_cast<size_t>(got));
    if (got < 0)
        reader->ended = got;
    if (reader->stop_after_each)
        uv_read_stop(stream);
}

class Streams : public LoopTest {
protected:
    uv_pipe_t stream_;
    Reader reader_;
    int peer_ = -1;

    void SetUp() override
    {
        uv_os_sock_t pair[2]; /* libuv's own: its birth is known */
        LoopTest::SetUp();
        ASSERT_EQ(uv_socketpair(SOCK_STREAM, 0, pair, UV_NONBLOCK_PIPE, 0), 0);
        peer_ = pair[1];
        ASSERT_EQ(uv_pipe_init(&loop_, &stream_, 0), 0);
        ASSERT_EQ(uv_pipe_open(&stream_, pair[0]), 0);
        stream_.data = &reader_;
    }

    void TearDown() override
    {
        LoopTest::TearDown();
        if (peer_ >= 0)
            close(peer_);
    }

    uv_stream_t *stream() { return reinterpret_cast<uv_stream_t *>(&stream_); }

    void send_and_wait(const std::string &text)
    {
        size_t wanted = reader_.bytes.size() + text.size();
        ASSERT_EQ(::send(peer_, text.data(), text.size(), MSG_NOSIGNAL), static_cast<ssize_t>(text.size()));
        run_until([&] { return reader_.bytes.size() >= wanted; });
    }
};

/* bind9 asserts it; uvloop has one buffer for all. */
TEST_F(Streams, EachAllocIsFollowedAtOnceByItsRead)
{
    ASSERT_EQ(uv_read_start(stream(), on_alloc, on_read), 0);
    for (int i = 0; i < 64; i++)
        send_and_wait("message");
    for (size_t i = 0; i + 1 < reader_.calls.size(); i++)
        ASSERT_NE(reader_.calls[i], reader_.calls[i + 1]) << i;
    EXPECT_EQ(reader_.calls.front(), "alloc");
    EXPECT_EQ(reader_.calls.back(), "read");
}

} // namespace
