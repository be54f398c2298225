/* SPDX-License-Identifier: MIT
 *
 * Streams: each body with libuv's own handles, and with libringpoll-uv's on the same loop
 * of a stock libuv, over TCP and AF_UNIX.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "engines.h"

namespace {

std::string text(size_t length, unsigned seed)
{
    std::string made(length, ' ');
    for (size_t i = 0; i < length; i++)
        made[i] = (char)('!' + (i * 31 + seed * 7 + i / 97) % 90);
    return made;
}

int open_fds()
{
    int count = 0;
    for (int fd = 0; fd < 1024; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

/* One stream of an engine, with closures for callbacks. */
template <class E>
struct Stream {
    union {
        typename E::Tcp tcp;
        typename E::Pipe pipe;
    };
    struct Write {
        typename E::Write req; /* first */
        std::string bytes;
        std::function<void(int)> on_written;
    };
    typename E::Connect connect_req;
    typename E::Shutdown shutdown_req;
    std::function<void(ssize_t, const char *)> on_read;
    std::function<void()> on_alloc, on_close, on_dead;
    std::function<void(int)> on_connection, on_connect, on_shutdown;
    char room[65536];
    size_t room_size = sizeof room;
    int pending_writes = 0;
    bool asked = false, closed = false;

    Stream() { memset(&tcp, 0, sizeof tcp > sizeof pipe ? sizeof tcp : sizeof pipe); }
    typename E::Stream *stream() { return (typename E::Stream *)&tcp; }
    typename E::Handle *handle() { return (typename E::Handle *)&tcp; }
    void init(uv_loop_t *loop, bool is_unix)
    {
        ASSERT_EQ(is_unix ? E::pipe_init(loop, &pipe, 0) : E::tcp_init(loop, &tcp), 0);
        (is_unix ? pipe.data : tcp.data) = this;
    }
    static Stream *of(void *user) { return (Stream *)((typename E::Handle *)user)->data; }
    int read_start()
    {
        return E::read_start(
            stream(),
            [](typename E::Handle *handle, size_t, uv_buf_t *buf) {
                Stream *self = of(handle);
                EXPECT_FALSE(self->asked) << "an alloc_cb without its read_cb";
                self->asked = true;
                if (self->on_alloc)
                    self->on_alloc();
                *buf = uv_buf_init(self->room, (unsigned)self->room_size);
            },
            [](typename E::Stream *stream, ssize_t nread, const uv_buf_t *buf) {
                Stream *self = of(stream);
                EXPECT_TRUE(self->asked || nread == UV_EOF);
                self->asked = false;
                EXPECT_FALSE(self->closed);
                if (nread != 0 && self->on_read)
                    self->on_read(nread, buf->base);
            });
    }
    int write(std::string bytes, std::function<void(int)> on_written = nullptr)
    {
        auto *write = new Write{{}, std::move(bytes), std::move(on_written)};
        uv_buf_t buf = uv_buf_init(write->bytes.data(), (unsigned)write->bytes.size());
        write->req.data = this;
        int result = E::write(&write->req, stream(), &buf, 1, [](typename E::Write *req, int status) {
            std::unique_ptr<Write> done((Write *)req);
            auto *self = (Stream *)req->data;
            EXPECT_EQ(req->handle, self->stream());
            self->pending_writes--;
            EXPECT_FALSE(self->closed) << "a write callback after the close callback";
            if (done->on_written)
                done->on_written(status);
        });
        if (result == 0)
            pending_writes++;
        else
            delete write;
        return result;
    }
    int shutdown(std::function<void(int)> then)
    {
        on_shutdown = std::move(then);
        shutdown_req.data = this;
        return E::shutdown(&shutdown_req, stream(), [](typename E::Shutdown *req, int status) {
            ((Stream *)req->data)->on_shutdown(status);
        });
    }
    void close(std::function<void()> then = nullptr)
    {
        on_close = std::move(then);
        E::close(handle(), [](typename E::Handle *handle) {
            Stream *self = of(handle);
            EXPECT_FALSE(self->closed);
            EXPECT_EQ(self->pending_writes, 0);
            self->closed = true;
            if (self->on_close)
                self->on_close();
        });
    }
    bool closing() { return closed || E::is_closing(handle()); }
};

template <class T>
class Streams : public ::testing::Test, protected WatchedLoop {
public:
    using E = typename T::Engine;
    using S = Stream<E>;
    static constexpr bool is_unix = T::is_unix;

    void SetUp() override
    {
        signal(SIGPIPE, SIG_IGN);
        ASSERT_EQ(uv_loop_init(&loop_), 0); /* the first one leaves fds of the process behind */
        ASSERT_EQ(uv_loop_close(&loop_), 0);
        fds_ = open_fds();
        make_loop();
        path_ = "/tmp/ringpoll-uv-" + std::to_string(getpid());
        unlink(path_.c_str());
    }
    void TearDown() override
    {
        for (auto &stream : streams_)
            if (!stream->closing())
                stream->close();
        end_loop();
        for (int fd : peers_)
            ::close(fd);
        EXPECT_EQ(open_fds(), fds_);
    }
    S *make(uv_loop_t *loop = nullptr)
    {
        streams_.emplace_back(new S);
        streams_.back()->init(loop ? loop : &loop_, is_unix);
        return streams_.back().get();
    }
    /* A listener that hands each connection on. */
    S *serve(std::function<void(S *)> on_client, int backlog = 128)
    {
        S *server = make();
        bind(server);
        server->on_connection = [this, server, on_client](int status) {
            ASSERT_EQ(status, 0);
            S *client = make();
            ASSERT_EQ(E::accept(server->stream(), client->stream()), 0);
            on_client(client);
        };
        listen(server, backlog);
        return server;
    }
    void bind(S *server)
    {
        if (is_unix) {
            ASSERT_EQ(E::pipe_bind(&server->pipe, path_.c_str()), 0);
            return;
        }
        struct sockaddr_in address;
        uv_ip4_addr("127.0.0.1", 0, &address);
        ASSERT_EQ(E::tcp_bind(&server->tcp, (struct sockaddr *)&address, 0), 0);
        int length = sizeof address_;
        ASSERT_EQ(E::tcp_getsockname(&server->tcp, (struct sockaddr *)&address_, &length), 0);
    }
    void listen(S *server, int backlog)
    {
        ASSERT_EQ(E::listen(server->stream(), backlog, [](typename E::Stream *stream, int status) {
            S::of(stream)->on_connection(status);
        }), 0);
    }
    /* A plain, blocking socket, connected to what was bound last. */
    int peer()
    {
        int fd = socket(is_unix ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        struct sockaddr_un name = {};
        name.sun_family = AF_UNIX;
        strcpy(name.sun_path, path_.c_str());
        EXPECT_EQ(is_unix ? ::connect(fd, (struct sockaddr *)&name, sizeof name)
                       : ::connect(fd, (struct sockaddr *)&address_, sizeof address_), 0) << strerror(errno);
        peers_.push_back(fd);
        return fd;
    }
    void forget_peer(int fd)
    {
        peers_.erase(std::find(peers_.begin(), peers_.end(), fd));
        ::close(fd);
    }
    int connect(S *client, std::function<void(int)> then)
    {
        client->on_connect = std::move(then);
        client->connect_req.data = client;
        auto call = [](typename E::Connect *req, int status) { ((S *)req->data)->on_connect(status); };
        if (is_unix) {
            E::pipe_connect(&client->connect_req, &client->pipe, path_.c_str(), call);
            return 0;
        }
        return E::tcp_connect(&client->connect_req, &client->tcp, (struct sockaddr *)&address_, call);
    }
    /* One end in the loop, by the number `as` where that is not -1; the other a plain one. */
    S *pair(int *ret_peer, int as = -1)
    {
        int fds[2];
        if (is_unix) {
            EXPECT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
        } else {
            int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
            struct sockaddr_in name = {};
            socklen_t length = sizeof name;
            name.sin_family = AF_INET;
            name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
            EXPECT_EQ(::bind(listener, (struct sockaddr *)&name, sizeof name), 0);
            EXPECT_EQ(::listen(listener, 1), 0);
            getsockname(listener, (struct sockaddr *)&name, &length);
            fds[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
            EXPECT_EQ(::connect(fds[1], (struct sockaddr *)&name, sizeof name), 0);
            fds[0] = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
            ::close(listener);
        }
        if (as >= 0) {
            EXPECT_EQ(dup2(fds[0], as), as);
            ::close(fds[0]);
            fds[0] = as;
        }
        S *stream = make();
        EXPECT_EQ(is_unix ? E::pipe_open(&stream->pipe, fds[0]) : E::tcp_open(&stream->tcp, fds[0]), 0);
        peers_.push_back(fds[1]);
        *ret_peer = fds[1];
        return stream;
    }
    std::vector<std::unique_ptr<S>> streams_;
    std::vector<int> peers_;
    std::string path_;
    struct sockaddr_in address_ = {};
    int fds_ = 0;
};

template <class E, bool U>
struct Case {
    using Engine = E;
    static constexpr bool is_unix = U;
};
using Cases = ::testing::Types<Case<Stock, false>, Case<Stock, true>, Case<Ours, false>, Case<Ours, true>>;
struct Names {
    template <class T>
    static std::string GetName(int)
    {
        return std::string(T::Engine::is_ours ? "Ours" : "Stock") + (T::is_unix ? "Unix" : "Tcp");
    }
};
TYPED_TEST_SUITE(Streams, Cases, Names);

#define TYPES                                                                                                      \
    using E = typename TypeParam::Engine;                                                                          \
    using S = Stream<E>;                                                                                           \
    (void)sizeof(E);                                                                                               \
    (void)sizeof(S)

/* ------------------------------------------------------------------- echoes */

TYPED_TEST(Streams, AnEchoServerAnswersManyClients)
{
    TYPES;
    constexpr int clients = 16, rounds = 50;
    int done = 0;
    S *server = this->serve([](S *client) {
        client->on_read = [client](ssize_t nread, const char *bytes) {
            if (nread < 0)
                client->close();
            else
                EXPECT_EQ(client->write(std::string(bytes, (size_t)nread)), 0);
        };
        EXPECT_EQ(client->read_start(), 0);
    });
    for (int i = 0; i < clients; i++) {
        S *client = this->make();
        auto round = std::make_shared<int>(0);
        auto got = std::make_shared<std::string>();
        client->on_read = [=, &done](ssize_t nread, const char *bytes) {
            ASSERT_GT(nread, 0);
            got->append(bytes, (size_t)nread);
            std::string sent = text(64 + (size_t)*round, (unsigned)i);
            if (got->size() < sent.size())
                return;
            EXPECT_EQ(*got, sent);
            got->clear();
            if (++*round < rounds) {
                client->write(text(64 + (size_t)*round, (unsigned)i));
                return;
            }
            client->close();
            if (++done == clients)
                server->close();
        };
        EXPECT_EQ(this->connect(client, [=](int status) {
            ASSERT_EQ(status, 0);
            EXPECT_EQ(client->read_start(), 0);
            client->write(text(64, (unsigned)i));
        }), 0);
    }
    this->run();
    EXPECT_EQ(done, clients);
}

TYPED_TEST(Streams, LargeTransfersInBothDirectionsArriveWhole)
{
    TYPES;
    constexpr size_t total = 8u << 20;
    std::mt19937 random(7);
    std::string sent[2] = {text(total, 1), text(total, 2)}, got[2];
    S *ends[2] = {};
    int over = 0;
    auto start = [&](S *end, int which) {
        ends[which] = end;
        end->on_read = [&, end, which](ssize_t nread, const char *bytes) {
            if (nread > 0) {
                got[which].append(bytes, (size_t)nread);
                return;
            }
            EXPECT_EQ(nread, UV_EOF);
            if (++over == 2)
                for (S *each : ends)
                    each->close();
        };
        end->room_size = 1 + random() % sizeof end->room;
        EXPECT_EQ(end->read_start(), 0);
        for (size_t at = 0; at < total;) {
            size_t length = std::min<size_t>(1 + random() % 200000, total - at);
            EXPECT_EQ(end->write(sent[which].substr(at, length), [](int status) { EXPECT_EQ(status, 0); }), 0);
            at += length;
        }
        EXPECT_EQ(end->shutdown([](int status) { EXPECT_EQ(status, 0); }), 0);
    };
    S *server = nullptr;
    server = this->serve([&](S *client) {
        server->close();
        start(client, 0);
    });
    S *client = this->make();
    this->connect(client, [&](int status) {
        ASSERT_EQ(status, 0);
        start(client, 1);
    });
    this->run();
    EXPECT_EQ(got[0], sent[1]);
    EXPECT_EQ(got[1], sent[0]);
}

TYPED_TEST(Streams, APumpWithReadStopAndStartLosesNothing)
{
    TYPES;
    int peer;
    S *stream = this->pair(&peer);
    constexpr size_t total = 3u << 20;
    std::string sent = text(total, 3), got;
    std::thread writer([&] {
        for (size_t at = 0; at < total;) {
            ssize_t n = ::write(peer, sent.data() + at, std::min<size_t>(total - at, 7001));
            ASSERT_GT(n, 0);
            at += (size_t)n;
        }
        ::shutdown(peer, SHUT_WR);
    });
    uv_timer_t later;
    uv_timer_init(&this->loop_, &later);
    later.data = stream;
    int reads = 0;
    stream->on_read = [&](ssize_t nread, const char *bytes) {
        if (nread < 0) {
            EXPECT_EQ(nread, UV_EOF);
            stream->close();
            uv_close((uv_handle_t *)&later, nullptr);
            return;
        }
        got.append(bytes, (size_t)nread);
        if (++reads % 5 == 0) {
            E::read_stop(stream->stream());
            uv_timer_start(&later, [](uv_timer_t *timer) {
                EXPECT_EQ(((S *)timer->data)->read_start(), 0);
            }, 0, 0);
        } else if (reads % 3 == 0) {
            E::read_stop(stream->stream());
            EXPECT_EQ(stream->read_start(), 0);
        }
    };
    EXPECT_EQ(stream->read_start(), 0);
    EXPECT_EQ(stream->read_start(), UV_EALREADY);
    this->run();
    writer.join();
    EXPECT_EQ(got, sent);
}

TYPED_TEST(Streams, NothingIsReadAfterReadStop)
{
    TYPES;
    int peer;
    S *stream = this->pair(&peer);
    int got = 0;
    stream->on_read = [&](ssize_t nread, const char *) {
        got += (int)nread;
        E::read_stop(stream->stream());
    };
    for (int round = 1; round <= 20; round++) {
        ASSERT_EQ(::write(peer, "12345", 5), 5);
        ASSERT_EQ(stream->read_start(), 0);
        this->run_until([&] { return got == 5 * round; });
        ASSERT_EQ(::write(peer, "67890", 5), 5);
        for (int turn = 0; turn < 3; turn++)
            uv_run(&this->loop_, UV_RUN_NOWAIT);
        EXPECT_EQ(got, 5 * round);
        ASSERT_EQ(stream->read_start(), 0);
        got -= 5;
        this->run_until([&] { return got == 5 * round; });
    }
}

/* -------------------------------------------------------------------- writes */

TYPED_TEST(Streams, WriteCallbacksComeInOrderAndNeverInsideTheCall)
{
    TYPES;
    int peer;
    S *stream = this->pair(&peer);
    std::vector<int> order;
    bool inside = false;
    std::string sent;
    for (int i = 0; i < 50; i++) {
        std::string piece = text(1 + (size_t)i * 10, (unsigned)i);
        sent += piece;
        inside = true;
        EXPECT_EQ(stream->write(piece, [&, i](int status) {
            EXPECT_FALSE(inside);
            EXPECT_EQ(status, 0);
            order.push_back(i);
        }), 0);
        inside = false;
    }
    EXPECT_EQ(stream->write("", [&](int status) {
        EXPECT_EQ(status, 0);
        order.push_back(50);
    }), 0);
    this->run();
    ASSERT_EQ(order.size(), 51u);
    for (int i = 0; i < 51; i++)
        EXPECT_EQ(order[(size_t)i], i);
    std::string got(sent.size(), 0);
    ASSERT_EQ(recv(peer, got.data(), got.size(), MSG_WAITALL), (ssize_t)sent.size());
    EXPECT_EQ(got, sent);
}

TYPED_TEST(Streams, AWriteFromAWriteCallbackGoesOn)
{
    TYPES;
    int peer, round = 0;
    S *stream = this->pair(&peer);
    std::function<void(int)> next = [&](int status) {
        EXPECT_EQ(status, 0);
        if (++round < 100) {
            EXPECT_EQ(stream->write(std::to_string(round % 10), next), 0);
        }
    };
    EXPECT_EQ(stream->write("0", next), 0);
    this->run();
    std::string got(100, 0);
    ASSERT_EQ(recv(peer, got.data(), got.size(), MSG_WAITALL), 100);
    for (size_t i = 0; i < 100; i++)
        EXPECT_EQ(got[i], (char)('0' + i % 10));
}

TYPED_TEST(Streams, WriteThenCloseDelivers)
{
    TYPES;
    int peer;
    S *stream = this->pair(&peer);
    int status = 1;
    EXPECT_EQ(stream->write("good-bye", [&](int result) { status = result; }), 0);
    stream->close();
    this->run();
    EXPECT_EQ(status, 0);
    char got[16];
    ASSERT_EQ(recv(peer, got, sizeof got, 0), 8);
    EXPECT_EQ(memcmp(got, "good-bye", 8), 0);
    EXPECT_EQ(recv(peer, got, sizeof got, 0), 0);
}

TYPED_TEST(Streams, ACloseCancelsWhatTheKernelDidNotTake)
{
    TYPES;
    int peer, canceled = 0, written = 0;
    S *stream = this->pair(&peer);
    for (int i = 0; i < 40; i++)
        EXPECT_EQ(stream->write(std::string(1u << 20, 'x'), [&](int status) {
            EXPECT_TRUE(status == 0 || status == UV_ECANCELED) << status;
            EXPECT_TRUE(status == UV_ECANCELED || canceled == 0);
            (status == 0 ? written : canceled)++;
        }), 0);
    EXPECT_GT(E::write_queue_size(stream->stream()), 20u << 20);
    for (int turn = 0; turn < 3; turn++)
        uv_run(&this->loop_, UV_RUN_NOWAIT);
    bool closed = false;
    stream->close([&] {
        closed = true;
        EXPECT_EQ(canceled + written, 40);
    });
    EXPECT_FALSE(closed);
    this->run();
    EXPECT_TRUE(closed);
    EXPECT_GT(canceled, 20);
}

TYPED_TEST(Streams, AFullPeerHoldsWritesBackUntilItReads)
{
    TYPES;
    int peer, written = 0;
    S *stream = this->pair(&peer);
    std::string sent;
    for (int i = 0; i < 64; i++) {
        std::string piece = text(100000, (unsigned)i);
        sent += piece;
        stream->write(piece, [&, i](int status) {
            EXPECT_EQ(status, 0);
            EXPECT_EQ(written++, i);
        });
    }
    for (int turn = 0; turn < 3; turn++)
        uv_run(&this->loop_, UV_RUN_NOWAIT);
    EXPECT_LT(written, 64);
    EXPECT_EQ(E::try_write(stream->stream(), nullptr, 0), UV_EAGAIN);
    std::string got(sent.size(), 0);
    std::thread reader([&] { ASSERT_EQ(recv(peer, got.data(), got.size(), MSG_WAITALL), (ssize_t)got.size()); });
    this->run();
    reader.join();
    EXPECT_EQ(written, 64);
    EXPECT_EQ(E::write_queue_size(stream->stream()), 0u);
    EXPECT_EQ(got, sent);
}

TYPED_TEST(Streams, TryWriteWritesAtMostWhatThereIsRoomFor)
{
    TYPES;
    int peer;
    S *stream = this->pair(&peer);
    std::string block(300000, 'b');
    size_t sent = 0;
    int result;
    for (;;) {
        uv_buf_t buf = uv_buf_init(block.data(), (unsigned)block.size());
        result = E::try_write(stream->stream(), &buf, 1);
        if (result < 0)
            break;
        sent += (size_t)result;
        ASSERT_LT(sent, 64u << 20);
    }
    EXPECT_EQ(result, UV_EAGAIN);
    for (int turn = 0; turn < 2; turn++)
        uv_run(&this->loop_, UV_RUN_NOWAIT);
    size_t got = 0;
    while (got < sent) {
        ssize_t n = recv(peer, block.data(), block.size(), MSG_DONTWAIT);
        if (n < 0) {
            uv_run(&this->loop_, UV_RUN_NOWAIT);
            continue;
        }
        got += (size_t)n;
    }
    EXPECT_EQ(got, sent);
}

TYPED_TEST(Streams, AWriteToAPeerThatIsGoneFails)
{
    TYPES;
    int peer, failed = 0, tries = 0;
    S *stream = this->pair(&peer);
    this->forget_peer(peer);
    std::function<void(int)> next = [&](int status) {
        EXPECT_TRUE(status == 0 || status == UV_EPIPE || status == UV_ECONNRESET) << status;
        failed += status < 0;
        if (status == 0 && ++tries < 1000)
            stream->write("more", next);
    };
    EXPECT_EQ(stream->write("more", next), 0);
    this->run();
    EXPECT_EQ(failed, 1);
}

/* ---------------------------------------------------------------------- ends */

TYPED_TEST(Streams, AHalfCloseStillAnswers)
{
    TYPES;
    std::string got;
    S *server = nullptr;
    server = this->serve([&](S *client) {
        server->close();
        client->on_read = [&, client](ssize_t nread, const char *bytes) {
            if (nread > 0) {
                got.append(bytes, (size_t)nread);
                return;
            }
            EXPECT_EQ(nread, UV_EOF);
            EXPECT_EQ(client->write("answer to " + got), 0);
            EXPECT_EQ(client->shutdown([client](int status) {
                EXPECT_EQ(status, 0);
                client->close();
            }), 0);
            EXPECT_EQ(client->write("too late"), UV_EPIPE);
        };
        client->read_start();
    });
    S *client = this->make();
    std::string answer;
    this->connect(client, [&](int status) {
        ASSERT_EQ(status, 0);
        client->on_read = [&](ssize_t nread, const char *bytes) {
            if (nread > 0) {
                answer.append(bytes, (size_t)nread);
                return;
            }
            EXPECT_EQ(nread, UV_EOF);
            client->close();
        };
        client->read_start();
        client->write("question");
        EXPECT_EQ(client->shutdown([](int result) { EXPECT_EQ(result, 0); }), 0);
    });
    this->run();
    EXPECT_EQ(answer, "answer to question");
}

TYPED_TEST(Streams, AnEndIsToldOnceAndStopsReading)
{
    TYPES;
    int peer, ends = 0;
    S *stream = this->pair(&peer);
    stream->on_read = [&](ssize_t nread, const char *) {
        if (nread < 0) {
            EXPECT_EQ(nread, UV_EOF);
            ends++;
        }
    };
    ASSERT_EQ(::write(peer, "last", 4), 4);
    ::shutdown(peer, SHUT_WR);
    stream->read_start();
    this->run(); /* which ends, since nothing is active */
    EXPECT_EQ(ends, 1);
    EXPECT_FALSE(E::is_active(stream->handle()));
    EXPECT_TRUE(E::is_writable(stream->stream()));
    EXPECT_EQ(stream->write("still"), 0);
    this->run();
    char got[8];
    EXPECT_EQ(recv(peer, got, sizeof got, 0), 5);
}

TYPED_TEST(Streams, AResetIsAnError)
{
    TYPES;
    if (TypeParam::is_unix)
        return;
    int peer;
    S *stream = this->pair(&peer);
    ssize_t error = 0;
    std::string got;
    stream->on_read = [&](ssize_t nread, const char *bytes) {
        if (nread > 0)
            got.append(bytes, (size_t)nread);
        else
            error = nread;
    };
    stream->read_start();
    for (int i = 0; i < 5; i++) {
        ASSERT_EQ(::write(peer, "x", 1), 1);
        this->run_until([&] { return got.size() == (size_t)i + 1; });
    }
    struct linger linger = {1, 0};
    setsockopt(peer, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    this->forget_peer(peer);
    this->run();
    EXPECT_EQ(error, UV_ECONNRESET);
    EXPECT_EQ(stream->write("no"), UV_EPIPE);
}

TYPED_TEST(Streams, CloseResetResets)
{
    TYPES;
    if (TypeParam::is_unix)
        return;
    int peer;
    S *stream = this->pair(&peer);
    bool closed = false;
    stream->on_close = [&] { closed = true; };
    ASSERT_EQ(E::tcp_close_reset(&stream->tcp, [](typename E::Handle *handle) {
        S *self = S::of(handle);
        self->closed = true;
        self->on_close();
    }), 0);
    this->run();
    EXPECT_TRUE(closed);
    char byte;
    EXPECT_EQ(recv(peer, &byte, 1, 0), -1);
    EXPECT_EQ(errno, ECONNRESET);
}

/* --------------------------------------------------------------- connections */

TYPED_TEST(Streams, AConnectToNobodyIsRefused)
{
    TYPES;
    if (!TypeParam::is_unix) { /* a port that was just free */
        S *server = this->make();
        this->bind(server);
        server->close();
        this->run();
    }
    S *client = this->make();
    int status = 1, written = 1;
    EXPECT_EQ(this->connect(client, [&](int result) { status = result; }), 0);
    EXPECT_EQ(status, 1) << "inside the call";
    if (!TypeParam::is_unix) {
        EXPECT_EQ(client->write("nobody hears", [&](int result) { written = result; }), 0);
    }
    this->run();
    EXPECT_EQ(status, TypeParam::is_unix ? UV_ENOENT : UV_ECONNREFUSED);
    EXPECT_EQ(written, TypeParam::is_unix ? 1 : UV_ECANCELED);
}

/* From a parent, say. */
TYPED_TEST(Streams, AListenerThatWasOpenedElsewhereListens)
{
    TYPES;
    int fd = socket(TypeParam::is_unix ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_un name = {};
    name.sun_family = AF_UNIX;
    strcpy(name.sun_path, this->path_.c_str());
    struct sockaddr_in &address = this->address_;
    socklen_t length = sizeof address;
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ASSERT_EQ(TypeParam::is_unix ? ::bind(fd, (struct sockaddr *)&name, sizeof name)
                                 : ::bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    if (!TypeParam::is_unix)
        getsockname(fd, (struct sockaddr *)&address, &length);
    ASSERT_EQ(::listen(fd, 4), 0);
    S *server = this->make();
    ASSERT_EQ(TypeParam::is_unix ? E::pipe_open(&server->pipe, fd) : E::tcp_open(&server->tcp, fd), 0);
    int told = 0;
    server->on_connection = [&](int status) {
        EXPECT_EQ(status, 0);
        S *client = this->make();
        ASSERT_EQ(E::accept(server->stream(), client->stream()), 0);
        client->write("hello", [client](int) { client->close(); });
        if (++told == 3)
            server->close();
    };
    this->listen(server, 4);
    int peers[3];
    for (int &peer : peers)
        peer = this->peer();
    this->run();
    EXPECT_EQ(told, 3);
    char bytes[8];
    for (int peer : peers)
        EXPECT_EQ(recv(peer, bytes, sizeof bytes, 0), 5);
    unlink(this->path_.c_str());
}

TYPED_TEST(Streams, APipesConnectAlwaysCallsBack)
{
    TYPES;
    if (!TypeParam::is_unix)
        return;
    S *server = this->serve([](S *client) {
        client->on_read = [client](ssize_t, const char *) { client->close(); };
        client->read_start();
    });
    S *client = this->make();
    int first = 1, second = 1, third = 1;
    this->connect(client, [&](int status) { first = status; });
    this->run_until([&] { return first != 1; });
    EXPECT_EQ(first, 0);
    this->connect(client, [&](int status) { second = status; });
    EXPECT_EQ(second, 1) << "inside the call";
    this->run_until([&] { return second != 1; });
    EXPECT_EQ(second, UV_EISCONN);
    if (E::is_ours) { /* libuv forgets the first of two, and a listener's */
        typename E::Connect req[4];
        std::vector<int> told;
        S *twice = this->make();
        this->connect(twice, [&](int status) { third = status; });
        S *targets[4] = {twice, twice, server, client};
        for (int i = 0; i < 4; i++) {
            if (i == 3)
                client->close();
            req[i].data = &told;
            E::pipe_connect(&req[i], &targets[i]->pipe, this->path_.c_str(), [](typename E::Connect *self, int status) {
                ((std::vector<int> *)self->data)->push_back(status);
            });
        }
        EXPECT_TRUE(told.empty());
        this->run_until([&] { return third != 1 && told.size() == 4; });
        EXPECT_EQ(third, 0);
        std::sort(told.begin(), told.end());
        std::vector<int> expected = {UV_EALREADY, UV_EALREADY, UV_EINVAL, UV_ECANCELED};
        std::sort(expected.begin(), expected.end());
        EXPECT_EQ(told, expected);
        twice->close();
    } else {
        client->close();
    }
    server->close();
    this->run();
}

TYPED_TEST(Streams, OptionsThatAreSetBeforeThereIsASocketAreItsOwn)
{
    TYPES;
    if (TypeParam::is_unix)
        return;
    auto has = [](S *stream, bool wanted) {
        uv_os_fd_t fd = -1;
        int nodelay = -1, keepalive = -1;
        socklen_t length = sizeof(int);
        ASSERT_EQ(E::fileno(stream->handle(), &fd), 0);
        ASSERT_EQ(getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &nodelay, &length), 0);
        ASSERT_EQ(getsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &keepalive, &length), 0);
        EXPECT_EQ(nodelay != 0, wanted);
        EXPECT_EQ(keepalive, wanted);
    };
    auto ask = [](S *stream) {
        EXPECT_EQ(E::tcp_nodelay(&stream->tcp, 1), 0);
        EXPECT_EQ(E::tcp_keepalive(&stream->tcp, 1, 60), 0);
    };
    S *server = this->make(), *accepted = this->make(), *client = this->make(), *opened = this->make();
    S *plain = this->make();
    for (S *stream : {server, accepted, client, opened, plain})
        ask(stream);
    EXPECT_EQ(E::tcp_nodelay(&plain->tcp, 0), 0);
    EXPECT_EQ(E::tcp_keepalive(&plain->tcp, 0, 0), 0);
    this->bind(server);
    has(server, true);
    struct sockaddr_in address = this->address_;
    this->bind(plain);
    has(plain, false);
    this->address_ = address;
    int done = 0;
    server->on_connection = [&](int status) {
        ASSERT_EQ(status, 0);
        ASSERT_EQ(E::accept(server->stream(), accepted->stream()), 0);
        has(accepted, true);
        done++;
    };
    this->listen(server, 4);
    EXPECT_EQ(this->connect(client, [&](int status) {
        EXPECT_EQ(status, 0);
        done++;
    }), 0);
    has(client, true);
    ASSERT_EQ(E::tcp_open(&opened->tcp, socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)), 0);
    has(opened, true);
    this->run_until([&] { return done == 2; });
}

TYPED_TEST(Streams, ReadsAndTheEndMayBeAskedForBeforeTheConnectionIsThere)
{
    TYPES;
    bool writes[] = {true, false};
    for (bool with_bytes : writes) {
        if (!with_bytes && !E::is_ours)
            continue; /* libuv 1.44 forgets an end that stands alone */
        std::string got, answer;
        S *server = nullptr;
        server = this->serve([&](S *client) {
            server->close();
            client->on_read = [&, client](ssize_t nread, const char *bytes) {
                if (nread > 0) {
                    got.append(bytes, (size_t)nread);
                    return;
                }
                EXPECT_EQ(nread, UV_EOF);
                client->write("answer", [client](int) { client->close(); });
            };
            client->read_start();
        });
        S *client = this->make();
        std::vector<std::string> told;
        client->on_read = [&](ssize_t nread, const char *bytes) {
            if (nread > 0)
                answer.append(bytes, (size_t)nread);
            else
                client->close();
        };
        EXPECT_EQ(this->connect(client, [&](int status) {
            EXPECT_EQ(status, 0);
            told.push_back("connected");
        }), 0);
        EXPECT_EQ(client->read_start(), 0);
        EXPECT_EQ(client->read_start(), UV_EALREADY);
        if (with_bytes) {
            EXPECT_EQ(client->write("question", [&](int status) {
                EXPECT_EQ(status, 0);
                told.push_back("written");
            }), 0);
        }
        EXPECT_EQ(client->shutdown([&](int status) {
            EXPECT_EQ(status, 0);
            told.push_back("ended");
        }), 0);
        EXPECT_EQ(client->write("too late"), UV_EPIPE);
        EXPECT_EQ(client->shutdown_req.handle, client->stream());
        this->run();
        EXPECT_EQ(got, with_bytes ? "question" : "");
        EXPECT_EQ(answer, "answer");
        EXPECT_EQ(told, with_bytes ? (std::vector<std::string>{"connected", "written", "ended"})
                                   : (std::vector<std::string>{"connected", "ended"}));
    }
}

TYPED_TEST(Streams, ARefusedConnectEndsWhatWasAskedForMeanwhile)
{
    TYPES;
    if (TypeParam::is_unix) { /* where it is known inside the call */
        S *client = this->make();
        int status = 1;
        this->connect(client, [&](int result) { status = result; });
        EXPECT_EQ(client->read_start(), UV_ENOTCONN);
        this->run();
        EXPECT_EQ(status, UV_ENOENT);
        return;
    }
    if (!E::is_ours)
        return; /* libuv 1.44 leaves the request pending */
    S *server = this->make();
    this->bind(server);
    server->close();
    this->run();
    S *client = this->make();
    std::vector<int> told;
    auto note = [&](int status) { told.push_back(status); };
    client->on_read = [](ssize_t, const char *) { FAIL() << "there was no connection"; };
    EXPECT_EQ(this->connect(client, note), 0);
    EXPECT_EQ(client->read_start(), 0);
    EXPECT_EQ(client->write("nobody hears", note), 0);
    EXPECT_EQ(client->shutdown(note), 0);
    this->run();
    EXPECT_EQ(told, (std::vector<int>{UV_ECONNREFUSED, UV_ECANCELED, UV_ECANCELED}));
    EXPECT_FALSE(E::is_active(client->handle()));
    EXPECT_EQ(client->read_start(), UV_ENOTCONN);
    EXPECT_EQ(client->shutdown(note), UV_ENOTCONN);
}

TYPED_TEST(Streams, ACloseWhileConnectingCancels)
{
    TYPES;
    S *server = this->serve([](S *client) { client->close(); });
    S *client = this->make();
    int status = 1;
    bool closed = false;
    EXPECT_EQ(this->connect(client, [&](int result) {
        EXPECT_FALSE(closed);
        status = result;
    }), 0);
    client->close([&] {
        closed = true;
        server->close();
    });
    this->run();
    EXPECT_TRUE(closed);
    EXPECT_EQ(status, UV_ECANCELED);
}

TYPED_TEST(Streams, WritesBeforeTheConnectionIsThereFollowIt)
{
    TYPES;
    std::string got;
    S *server = nullptr;
    server = this->serve([&](S *client) {
        server->close();
        client->on_read = [&, client](ssize_t nread, const char *bytes) {
            if (nread > 0)
                got.append(bytes, (size_t)nread);
            else
                client->close();
        };
        client->read_start();
    });
    S *client = this->make();
    std::vector<std::string> told;
    this->connect(client, [&](int status) {
        EXPECT_EQ(status, 0);
        told.push_back("connected");
    });
    EXPECT_EQ(client->write("early ", [&](int status) {
        EXPECT_EQ(status, 0);
        told.push_back("written");
    }), 0);
    EXPECT_EQ(client->write("bird", [&](int) { client->close(); }), 0);
    this->run();
    EXPECT_EQ(got, "early bird");
    EXPECT_EQ(told, (std::vector<std::string>{"connected", "written"}));
}

TYPED_TEST(Streams, AConnectionThatIsNotAcceptedHoldsTheOthersBack)
{
    TYPES;
    S *server = this->make();
    int told = 0;
    this->bind(server);
    server->on_connection = [&](int status) {
        EXPECT_EQ(status, 0);
        told++;
    };
    this->listen(server, 16);
    for (int i = 0; i < 8; i++)
        this->peer();
    for (int turn = 0; turn < 5; turn++)
        uv_run(&this->loop_, UV_RUN_NOWAIT);
    EXPECT_EQ(told, 1);
    for (int i = 1; i <= 8; i++) {
        S *client = this->make();
        ASSERT_EQ(E::accept(server->stream(), client->stream()), 0);
        EXPECT_EQ(client->write(std::to_string(i)), 0);
        if (i < 8)
            this->run_until([&] { return told == i + 1; });
    }
    S *extra = this->make();
    EXPECT_EQ(E::accept(server->stream(), extra->stream()), UV_EAGAIN);
    EXPECT_EQ(told, 8);
    uv_run(&this->loop_, UV_RUN_NOWAIT);
    for (size_t i = 0; i < 8; i++) {
        char byte = 0;
        EXPECT_EQ(recv(this->peers_[i], &byte, 1, 0), 1);
        EXPECT_EQ(byte, (char)('1' + i));
    }
}

TYPED_TEST(Streams, AListenerThatClosesLetsItsPortGo)
{
    TYPES;
    for (int round = 0; round < 30; round++) {
        S *server = this->make();
        if (TypeParam::is_unix || round == 0)
            this->bind(server);
        else
            ASSERT_EQ(E::tcp_bind(&server->tcp, (struct sockaddr *)&this->address_, 0), 0);
        int told = 0;
        server->on_connection = [&](int status) {
            ASSERT_EQ(status, 0) << round;
            S *client = this->make();
            E::accept(server->stream(), client->stream());
            client->close();
            told++;
        };
        this->listen(server, 16);
        for (int i = 0; i < 3; i++)
            this->peer();
        this->run_until([&] { return told == 3; });
        server->close();
        this->run();
        while (!this->peers_.empty())
            this->forget_peer(this->peers_.back());
    }
}

TYPED_TEST(Streams, WithoutNumbersLeftConnectionsAreLetGoAndTheServerLives)
{
    TYPES;
    int told = 0;
    S *server = this->serve([&](S *client) {
        told++;
        client->close();
    });
    uv_run(&this->loop_, UV_RUN_NOWAIT);
    int first = this->peer();
    this->run_until([&] { return told == 1; });
    (void)first;
    int waiting[2];
    for (int &fd : waiting)
        fd = socket(TypeParam::is_unix ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct rlimit before, none;
    getrlimit(RLIMIT_NOFILE, &before);
    none = before;
    int next = dup(0);
    ::close(next);
    none.rlim_cur = (rlim_t)next;
    struct sockaddr_un name = {};
    name.sun_family = AF_UNIX;
    strcpy(name.sun_path, this->path_.c_str());
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
    for (int fd : waiting)
        ASSERT_EQ(TypeParam::is_unix ? ::connect(fd, (struct sockaddr *)&name, sizeof name)
                                  : ::connect(fd, (struct sockaddr *)&this->address_, sizeof this->address_), 0);
    for (int turn = 0; turn < 5; turn++)
        uv_run(&this->loop_, UV_RUN_NOWAIT);
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
    for (int fd : waiting) {
        struct pollfd look = {fd, POLLIN, 0};
        EXPECT_EQ(poll(&look, 1, 5000), 1) << "left hanging";
        ::close(fd);
    }
    int so_far = told;
    this->peer();
    this->run_until([&] { return told == so_far + 1; });
    server->close();
    this->run();
}

TYPED_TEST(Streams, NamesAreThoseOfTheSocket)
{
    TYPES;
    S *server = this->serve([](S *client) { client->close(); });
    S *client = this->make();
    this->connect(client, [&](int status) {
        ASSERT_EQ(status, 0);
        if (TypeParam::is_unix) {
            char name[128];
            size_t size = sizeof name;
            EXPECT_EQ(E::pipe_getpeername(&client->pipe, name, &size), 0);
            EXPECT_EQ(std::string(name, size), this->path_);
            size = 3;
            EXPECT_EQ(E::pipe_getsockname(&server->pipe, name, &size), UV_ENOBUFS);
            EXPECT_EQ(size, this->path_.size() + 1);
        } else {
            struct sockaddr_in name = {};
            int length = sizeof name;
            EXPECT_EQ(E::tcp_getpeername(&client->tcp, (struct sockaddr *)&name, &length), 0);
            EXPECT_EQ(name.sin_port, this->address_.sin_port);
            EXPECT_EQ(E::tcp_nodelay(&client->tcp, 1), 0);
            EXPECT_EQ(E::tcp_keepalive(&client->tcp, 1, 60), 0);
        }
        uv_os_fd_t fd = -1;
        EXPECT_EQ(E::fileno(client->handle(), &fd), 0);
        EXPECT_GE(fd, 0);
        client->close();
        EXPECT_EQ(E::fileno(client->handle(), &fd), UV_EBADF);
        server->close();
    });
    this->run();
}

/* ------------------------------------------------------------------ closing */

TYPED_TEST(Streams, AStreamMayBeClosedInEachOfItsCallbacks)
{
    TYPES;
    for (int where = 0; where < 4; where++) {
        int peer;
        S *stream = this->pair(&peer);
        bool closed = false, called = false;
        auto end = [&] {
            EXPECT_FALSE(called) << where;
            called = true;
            stream->close([&] { closed = true; });
        };
        stream->on_read = [&](ssize_t nread, const char *) {
            if ((where == 0 && nread > 0) || (where == 1 && nread == UV_EOF))
                end();
        };
        ASSERT_EQ(::write(peer, "some bytes", 10), 10);
        stream->read_start();
        if (where == 1)
            ::shutdown(peer, SHUT_WR);
        if (where == 2) {
            stream->write("a", [&](int) { end(); });
            stream->write("b", [&](int status) { EXPECT_EQ(status, 0); });
        }
        if (where == 3)
            stream->shutdown([&](int) { end(); });
        this->run();
        EXPECT_TRUE(closed) << where;
    }
}

TYPED_TEST(Streams, NothingIsCalledAfterTheCloseCallback)
{
    TYPES;
    for (int round = 0; round < 20; round++) {
        int peer;
        S *stream = this->pair(&peer);
        stream->on_read = [](ssize_t, const char *) {};
        stream->read_start();
        for (int i = 0; i < round; i++) {
            ASSERT_EQ(::write(peer, "x", 1), 1);
            uv_run(&this->loop_, UV_RUN_NOWAIT);
        }
        ASSERT_EQ(::write(peer, "y", 1), 1);
        EXPECT_FALSE(E::is_closing(stream->handle()));
        stream->close(); /* the fixture's callbacks look at `closed` */
        EXPECT_TRUE(E::is_closing(stream->handle()));
        this->run();
        EXPECT_TRUE(stream->closed);
        this->forget_peer(peer);
    }
}

TYPED_TEST(Streams, StreamsThatCloseEachOtherInOneTurn)
{
    TYPES;
    constexpr int count = 20;
    int peers[count], closed = 0;
    S *all[count];
    for (int i = 0; i < count; i++)
        all[i] = this->pair(&peers[i]);
    for (int i = 0; i < count; i++) {
        all[i]->on_read = [&](ssize_t nread, const char *) {
            EXPECT_GT(nread, 0);
            for (S *each : all)
                if (!each->closing())
                    each->close([&] { closed++; });
        };
        all[i]->read_start();
        ASSERT_EQ(::write(peers[i], "x", 1), 1);
    }
    this->run();
    EXPECT_EQ(closed, count);
}

TYPED_TEST(Streams, ACloseLeavesTheStandardNumbersOpen)
{
    TYPES;
    int saved = fcntl(0, F_DUPFD_CLOEXEC, 3), peer;
    S *stream = this->pair(&peer, 0);
    size_t got = 0;
    stream->on_read = [&](ssize_t nread, const char *) { got += (size_t)nread; };
    stream->read_start();
    for (size_t i = 1; i <= 5; i++) { /* until it is adopted */
        ASSERT_EQ(::write(peer, "x", 1), 1);
        this->run_until([&] { return got == i; });
    }
    EXPECT_EQ(stream->write("last", [](int status) { EXPECT_EQ(status, 0); }), 0);
    stream->close();
    this->run();
    EXPECT_EQ(::send(0, "!", 1, MSG_NOSIGNAL), 1) << strerror(errno);
    char bytes[8] = {};
    EXPECT_EQ(recv(peer, bytes, 5, MSG_WAITALL), 5);
    EXPECT_STREQ(bytes, "last!");
    ASSERT_EQ(::write(peer, "y", 1), 1);
    EXPECT_EQ(recv(0, bytes, sizeof bytes, 0), 1);
    if (saved >= 0) {
        dup2(saved, 0);
        ::close(saved);
    } else {
        ::close(0);
    }
}

/* As by a server that answers the head of a request and hangs up on the rest. */
TYPED_TEST(Streams, AnAnswerThatIsFollowedByACloseArrivesThoughBytesWereUnread)
{
    TYPES;
    constexpr int count = 3;
    for (int round = 0; round < 10; round++) {
        int peers[count], answered = 0;
        S *all[count];
        for (int i = 0; i < count; i++) {
            S *stream = all[i] = this->pair(&peers[i]);
            stream->room_size = 1024;
            size_t begun = (size_t)round;
            auto got = std::make_shared<size_t>(0);
            stream->on_read = [&, stream, begun, got](ssize_t nread, const char *) {
                ASSERT_GT(nread, 0);
                *got += (size_t)nread;
                if (*got > begun) {
                    EXPECT_EQ(stream->write(std::string(100, 'a')), 0);
                    stream->close();
                    answered++;
                }
            };
            stream->read_start();
            for (size_t sent = 1; sent <= begun; sent++) { /* it may be adopted, or not yet */
                ASSERT_EQ(::write(peers[i], "x", 1), 1);
                this->run_until([&] { return *got == sent; });
            }
        }
        std::string request(3072, 'r');
        for (int fd : peers)
            ASSERT_EQ(::write(fd, request.data(), request.size()), (ssize_t)request.size());
        this->run_until([&] { return answered == count; });
        this->run();
        char bytes[200];
        for (int fd : peers) {
            EXPECT_EQ(recv(fd, bytes, 100, MSG_WAITALL), 100) << "in round " << round;
            this->forget_peer(fd);
        }
    }
}

TYPED_TEST(Streams, AnFdThatAStreamHasIsRefused)
{
    TYPES;
    int peer;
    S *stream = this->pair(&peer), *other = this->make();
    stream->on_read = [](ssize_t, const char *) {};
    stream->read_start();
    uv_os_fd_t fd = -1;
    ASSERT_EQ(E::fileno(stream->handle(), &fd), 0);
    EXPECT_EQ(TypeParam::is_unix ? E::pipe_open(&other->pipe, fd) : E::tcp_open(&other->tcp, fd), UV_EEXIST);
    stream->close();
    this->run();
    int again[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, again), 0);
    int wanted = again[0] == fd ? fd : dup2(again[0], fd);
    if (wanted != again[0])
        ::close(again[0]);
    EXPECT_EQ(TypeParam::is_unix ? E::pipe_open(&other->pipe, fd) : E::tcp_open(&other->tcp, fd), 0);
    ::close(again[1]);
}

/* ------------------------------------------------------------------- the loop */

TYPED_TEST(Streams, ALoopWithNothingActiveEnds)
{
    TYPES;
    int peer;
    S *stream = this->pair(&peer);
    EXPECT_FALSE(E::is_active(stream->handle()));
    this->run();
    stream->read_start();
    EXPECT_TRUE(E::is_active(stream->handle()));
    EXPECT_TRUE(E::has_ref(stream->handle()));
    EXPECT_NE(uv_run(&this->loop_, UV_RUN_NOWAIT), 0);
    E::unref(stream->handle());
    EXPECT_FALSE(E::has_ref(stream->handle()));
    this->run();
    E::ref(stream->handle());
    EXPECT_NE(uv_run(&this->loop_, UV_RUN_NOWAIT), 0);
    E::read_stop(stream->stream());
    EXPECT_EQ(uv_run(&this->loop_, UV_RUN_NOWAIT), 0);
    EXPECT_EQ(uv_loop_close(&this->loop_), UV_EBUSY);
}

TYPED_TEST(Streams, AnUnreferencedStreamIsServedWhileOthersKeepTheLoop)
{
    TYPES;
    int peer;
    S *stream = this->pair(&peer);
    int got = 0;
    stream->on_read = [&](ssize_t nread, const char *) {
        got += (int)nread;
        this->keep_loop(false);
    };
    stream->read_start();
    E::unref(stream->handle());
    this->keep_loop(true);
    ASSERT_EQ(::write(peer, "bytes", 5), 5);
    this->run();
    EXPECT_EQ(got, 5);
}

TYPED_TEST(Streams, AStoppedLoopGoesOnWhereItStopped)
{
    TYPES;
    int peer;
    S *stream = this->pair(&peer);
    std::string got;
    stream->on_read = [&](ssize_t nread, const char *bytes) {
        got.append(bytes, (size_t)nread);
        uv_stop(&this->loop_);
    };
    stream->read_start();
    for (int i = 0; i < 30; i++) {
        char byte = (char)('a' + i % 26);
        ASSERT_EQ(::write(peer, &byte, 1), 1);
        this->run();
        ASSERT_EQ(got.size(), (size_t)i + 1);
        EXPECT_EQ(got.back(), byte);
    }
}

/* A prepare handle of the program runs behind ours, and right before the sleep. */
TYPED_TEST(Streams, AWriteRightBeforeTheSleepGoesOut)
{
    TYPES;
    int peer;
    S *stream = this->pair(&peer);
    std::string got;
    stream->on_read = [&](ssize_t nread, const char *bytes) { got.append(bytes, (size_t)nread); };
    stream->read_start();
    for (int i = 0; i < 10; i++) { /* until it is adopted */
        ASSERT_EQ(::write(peer, "x", 1), 1);
        this->run_until([&] { return got.size() == (size_t)i + 1; });
    }
    uv_prepare_t before, after;
    uv_prepare_init(&this->loop_, &before);
    uv_prepare_init(&this->loop_, &after);
    before.data = after.data = stream;
    auto write = [](uv_prepare_t *prepare) {
        S *self = (S *)prepare->data;
        uv_prepare_stop(prepare);
        self->write("!", [self](int status) {
            EXPECT_EQ(status, 0);
            E::read_stop(self->stream());
        });
    };
    uv_prepare_start(&before, write);
    this->run();
    stream->read_start();
    uv_prepare_start(&after, write);
    this->run();
    char bytes[2];
    EXPECT_EQ(recv(peer, bytes, 2, MSG_WAITALL), 2);
    uv_close((uv_handle_t *)&before, nullptr);
    uv_close((uv_handle_t *)&after, nullptr);
    this->run();
}

/* The loop's first handle of all, behind the place where our prepare would have run. */
TYPED_TEST(Streams, AHandleThatIsMadeInAPrepareCallbackIsServed)
{
    TYPES;
    struct Context {
        std::function<void()> begin;
    } context;
    int peer = -1, got = 0;
    context.begin = [&] {
        S *stream = this->pair(&peer);
        stream->on_read = [&got, stream](ssize_t nread, const char *) {
            got += (int)nread;
            stream->close();
        };
        stream->read_start();
        ASSERT_EQ(::write(peer, "x", 1), 1);
    };
    uv_prepare_t prepare;
    uv_prepare_init(&this->loop_, &prepare);
    prepare.data = &context;
    uv_prepare_start(&prepare, [](uv_prepare_t *self) {
        uv_prepare_stop(self);
        ((Context *)self->data)->begin();
    });
    this->run();
    EXPECT_EQ(got, 1);
    uv_close((uv_handle_t *)&prepare, nullptr);
    this->run();
}

TYPED_TEST(Streams, TimersAndAsyncsOfTheLoopRunBesideThem)
{
    TYPES;
    int peer, fired = 0, woken = 0;
    S *stream = this->pair(&peer);
    size_t got = 0;
    stream->on_read = [&](ssize_t nread, const char *) { got += (size_t)nread; };
    stream->read_start();
    uv_timer_t timer;
    uv_async_t async;
    uv_timer_init(&this->loop_, &timer);
    timer.data = &fired;
    uv_timer_start(&timer, [](uv_timer_t *self) { ++*(int *)self->data; }, 1, 1);
    uv_async_init(&this->loop_, &async, [](uv_async_t *self) { ++*(int *)self->data; });
    async.data = &woken;
    std::thread other([&] {
        for (int i = 0; i < 50; i++) {
            EXPECT_EQ(::write(peer, "x", 1), 1);
            uv_async_send(&async);
            usleep(200);
        }
    });
    this->run_until([&] { return got == 50 && fired >= 3 && woken > 0; });
    other.join();
    uv_close((uv_handle_t *)&timer, nullptr);
    uv_close((uv_handle_t *)&async, nullptr);
    E::read_stop(stream->stream());
    this->run();
}

/* Another thread's bytes come while the loop is about to sleep: each one wakes it. */
TYPED_TEST(Streams, NoWakeUpIsLost)
{
    TYPES;
    constexpr int pairs = 8, rounds = 4000;
    int peers[pairs];
    S *all[pairs];
    size_t echoed = 0;
    for (int i = 0; i < pairs; i++) {
        S *stream = all[i] = this->pair(&peers[i]);
        stream->on_read = [&, stream](ssize_t nread, const char *bytes) {
            if (nread < 0) {
                stream->close();
                return;
            }
            echoed += (size_t)nread;
            stream->write(std::string(bytes, (size_t)nread));
        };
        stream->read_start();
    }
    std::thread other([&] {
        std::mt19937 random(3);
        for (int round = 0; round < rounds; round++) {
            int first = (int)(random() % pairs), count = 1 + (int)(random() % 3);
            for (int i = 0; i < count; i++)
                ASSERT_EQ(::send(peers[(first + i) % pairs], "x", 1, 0), 1);
            for (int i = 0; i < count; i++) {
                char byte;
                struct pollfd look = {peers[(first + i) % pairs], POLLIN, 0};
                ASSERT_EQ(poll(&look, 1, 10000), 1) << "a lost wake-up in round " << round;
                ASSERT_EQ(recv(look.fd, &byte, 1, 0), 1);
            }
        }
        for (int fd : peers)
            ::shutdown(fd, SHUT_WR);
    });
    this->run();
    other.join();
    EXPECT_GE(echoed, (size_t)rounds);
}

TYPED_TEST(Streams, TwoLoopsInTwoThreads)
{
    TYPES;
    auto serve = [&](unsigned seed) {
        uv_loop_t loop;
        ASSERT_EQ(uv_loop_init(&loop), 0);
        int fds[2];
        ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
        auto ends = std::make_unique<S[]>(2);
        std::string sent = text(200000, seed), got;
        for (int i = 0; i < 2; i++) {
            ends[i].init(&loop, true);
            ASSERT_EQ(E::pipe_open(&ends[i].pipe, fds[i]), 0);
        }
        ends[0].on_read = [&](ssize_t nread, const char *bytes) {
            if (nread > 0) {
                got.append(bytes, (size_t)nread);
            } else {
                ends[0].close();
                ends[1].close();
            }
        };
        ends[0].read_start();
        size_t at = 0;
        std::function<void(int)> next = [&](int status) {
            EXPECT_EQ(status, 0);
            if (at == sent.size()) {
                ends[1].shutdown([](int) {});
                return;
            }
            size_t length = std::min<size_t>(777, sent.size() - at);
            at += length;
            ends[1].write(sent.substr(at - length, length), next);
        };
        next(0);
        uv_run(&loop, UV_RUN_DEFAULT);
        EXPECT_EQ(uv_loop_close(&loop), 0);
        EXPECT_EQ(got, sent);
    };
    std::thread other(serve, 1);
    serve(2);
    other.join();
}

/* A loop that was made here, and runs there. */
TYPED_TEST(Streams, ALoopRunsInAnotherThreadThanItWasMadeIn)
{
    TYPES;
    int peer;
    S *stream = this->pair(&peer);
    stream->on_read = [&](ssize_t nread, const char *bytes) {
        if (nread > 0)
            stream->write(std::string(bytes, (size_t)nread));
        else
            stream->close();
    };
    stream->read_start();
    std::thread runner([&] { this->run(); });
    for (int i = 0; i < 100; i++) {
        char byte = (char)i, back = 0;
        ASSERT_EQ(::write(peer, &byte, 1), 1);
        ASSERT_EQ(recv(peer, &back, 1, 0), 1);
        EXPECT_EQ(back, byte);
    }
    ::shutdown(peer, SHUT_WR);
    runner.join();
    EXPECT_TRUE(stream->closed);
}

TYPED_TEST(Streams, AChildGoesOnAfterUvLoopFork)
{
    TYPES;
    int peer;
    S *stream = this->pair(&peer);
    int got = 0;
    stream->on_read = [&](ssize_t nread, const char *bytes) {
        if (nread > 0) {
            got += (int)nread;
            stream->write(std::string(bytes, (size_t)nread));
        }
    };
    stream->read_start();
    ASSERT_EQ(::write(peer, "p", 1), 1);
    this->run_until([&] { return got == 1; });
    uv_run(&this->loop_, UV_RUN_NOWAIT);
    char byte = 0;
    ASSERT_EQ(recv(peer, &byte, 1, 0), 1);
    pid_t child = fork();
    if (child == 0) {
        alarm(10);
        if (uv_loop_fork(&this->loop_) != 0)
            _exit(1);
        while (got < 2)
            uv_run(&this->loop_, UV_RUN_ONCE);
        uv_run(&this->loop_, UV_RUN_NOWAIT);
        _exit(0);
    }
    ASSERT_EQ(::write(peer, "c", 1), 1);
    ASSERT_EQ(recv(peer, &byte, 1, 0), 1);
    EXPECT_EQ(byte, 'c');
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
}

/* Whatever the child does to what it has inherited, before uv_loop_fork() or behind it. */
TYPED_TEST(Streams, AParentIsServedOnWhenItsChildEndsItsCopies)
{
    TYPES;
    for (bool tells : {true, false}) {
        if (!tells && !E::is_ours)
            continue; /* libuv's own child takes its parent's fds out */
        int peers[2], told = 0;
        S *streams[2];
        std::string got[2];
        for (int i = 0; i < 2; i++) {
            streams[i] = this->pair(&peers[i]);
            streams[i]->on_read = [&, i](ssize_t nread, const char *bytes) {
                ASSERT_GT(nread, 0);
                got[i].append(bytes, (size_t)nread);
            };
            streams[i]->read_start();
        }
        S *server = this->serve([&](S *client) {
            told++;
            client->close();
        });
        for (int i = 0; i < 2; i++)
            ASSERT_EQ(::write(peers[i], "p", 1), 1);
        this->peer();
        this->run_until([&] { return got[0] == "p" && got[1] == "p" && told == 1; });
        uv_run(&this->loop_, UV_RUN_NOWAIT);
        pid_t child = fork();
        if (child == 0) {
            alarm(10);
            if (tells && uv_loop_fork(&this->loop_) != 0)
                _exit(1);
            E::read_stop(streams[1]->stream());
            streams[0]->close();
            if (!TypeParam::is_unix) /* where it would remove the name */
                server->close();
            if (tells) {
                for (int turn = 0; turn < 3; turn++)
                    uv_run(&this->loop_, UV_RUN_NOWAIT);
                streams[1]->read_start();
                for (int turn = 0; turn < 3; turn++)
                    uv_run(&this->loop_, UV_RUN_NOWAIT);
                streams[1]->close();
                for (int turn = 0; turn < 3; turn++)
                    uv_run(&this->loop_, UV_RUN_NOWAIT);
            }
            _exit(0);
        }
        int status = 0;
        ASSERT_EQ(waitpid(child, &status, 0), child);
        EXPECT_EQ(status, 0);
        for (int i = 0; i < 2; i++)
            ASSERT_EQ(::write(peers[i], "q", 1), 1);
        this->peer();
        this->run_until([&] { return got[0] == "pq" && got[1] == "pq" && told == 2; });
        for (S *stream : {streams[0], streams[1], server})
            stream->close();
        this->run();
    }
}

} // namespace
