/* SPDX-License-Identifier: MIT
 *
 * Datagrams and files: each body with libuv's own and with libringpoll-uv's.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "engines.h"

namespace {

template <class E>
class Others : public ::testing::Test, protected WatchedLoop {
public:
    struct Udp {
        typename E::Udp udp;
        std::function<void(ssize_t, const char *, const struct sockaddr *, unsigned)> on_receive;
        char room[65536];
        size_t room_size = sizeof room;
        bool closed = false;
        struct Send {
            typename E::UdpSend req; /* first */
            std::string bytes;
            std::function<void(int)> on_sent;
        };
        int receive()
        {
            udp.data = this;
            return E::udp_recv_start(
                &udp,
                [](typename E::Handle *handle, size_t, uv_buf_t *buf) {
                    Udp *self = (Udp *)handle->data;
                    *buf = uv_buf_init(self->room, (unsigned)self->room_size);
                },
                [](typename E::Udp *handle, ssize_t nread, const uv_buf_t *buf, const struct sockaddr *address,
                   unsigned flags) {
                    Udp *self = (Udp *)handle->data;
                    EXPECT_FALSE(self->closed);
                    if (nread != 0 || address)
                        self->on_receive(nread, buf->base, address, flags);
                });
        }
        int send(std::string bytes, const struct sockaddr_in *to, std::function<void(int)> on_sent = nullptr)
        {
            auto *send = new Send{{}, std::move(bytes), std::move(on_sent)};
            uv_buf_t buf = uv_buf_init(send->bytes.data(), (unsigned)send->bytes.size());
            int result = E::udp_send(&send->req, &udp, &buf, 1, (const struct sockaddr *)to,
                                     [](typename E::UdpSend *req, int status) {
                std::unique_ptr<Send> done((Send *)req);
                if (done->on_sent)
                    done->on_sent(status);
            });
            if (result < 0)
                delete send;
            return result;
        }
        void close()
        {
            udp.data = this;
            E::close((typename E::Handle *)&udp, [](typename E::Handle *handle) { ((Udp *)handle->data)->closed = true; });
        }
    };
    void SetUp() override
    {
        signal(SIGPIPE, SIG_IGN);
        make_loop();
    }
    void TearDown() override
    {
        for (auto &udp : udps_)
            if (!udp->closed && !E::is_closing((typename E::Handle *)&udp->udp))
                udp->close();
        end_loop();
    }
    Udp *make()
    {
        udps_.emplace_back(new Udp);
        EXPECT_EQ(E::udp_init(&loop_, &udps_.back()->udp), 0);
        return udps_.back().get();
    }
    struct sockaddr_in bound(Udp *udp)
    {
        struct sockaddr_in address;
        uv_ip4_addr("127.0.0.1", 0, &address);
        EXPECT_EQ(E::udp_bind(&udp->udp, (struct sockaddr *)&address, 0), 0);
        int length = sizeof address;
        EXPECT_EQ(E::udp_getsockname(&udp->udp, (struct sockaddr *)&address, &length), 0);
        return address;
    }
    std::vector<std::unique_ptr<Udp>> udps_;
};
struct Names {
    template <class E>
    static std::string GetName(int)
    {
        return E::is_ours ? "Ours" : "Stock";
    }
};
using Engines = ::testing::Types<Stock, Ours>;
TYPED_TEST_SUITE(Others, Engines, Names);

/* --------------------------------------------------------------- datagrams */

TYPED_TEST(Others, ADatagramServerAnswersEachSender)
{
    using E = TypeParam;
    auto *server = this->make();
    struct sockaddr_in address = this->bound(server);
    server->on_receive = [=](ssize_t nread, const char *bytes, const struct sockaddr *from, unsigned flags) {
        ASSERT_GE(nread, 0);
        EXPECT_EQ(flags, 0u);
        server->send("re: " + std::string(bytes, (size_t)nread), (const struct sockaddr_in *)from);
    };
    ASSERT_EQ(server->receive(), 0);
    EXPECT_EQ(server->receive(), UV_EALREADY);
    constexpr int clients = 5, rounds = 100;
    std::set<std::string> got;
    for (int i = 0; i < clients; i++) {
        auto *client = this->make();
        client->on_receive = [&, client, i, address](ssize_t nread, const char *bytes, const struct sockaddr *, unsigned) {
            ASSERT_GT(nread, 0);
            EXPECT_TRUE(got.emplace(bytes, (size_t)nread).second);
            int round = (int)got.size();
            if (round < clients * rounds)
                client->send(std::to_string(i) + "," + std::to_string(round), &address);
        };
        EXPECT_EQ(client->send(std::to_string(i) + " begins", &address), 0);
        ASSERT_EQ(client->receive(), 0);
    }
    this->run_until([&] { return got.size() >= clients * rounds; });
    EXPECT_TRUE(E::is_active((typename E::Handle *)&server->udp));
}

TYPED_TEST(Others, DatagramsOfATurnKeepTheirOrderAndTheirEdges)
{
    auto *to = this->make(), *from = this->make();
    struct sockaddr_in address = this->bound(to);
    std::vector<std::string> got;
    std::vector<int> told;
    to->on_receive = [&](ssize_t nread, const char *bytes, const struct sockaddr *, unsigned) {
        got.emplace_back(bytes, (size_t)nread);
    };
    to->receive();
    bool inside = true;
    for (int i = 0; i < 100; i++)
        EXPECT_EQ(from->send(std::string((size_t)i, (char)('a' + i % 26)), &address, [&, i](int status) {
            EXPECT_FALSE(inside);
            EXPECT_EQ(status, 0);
            told.push_back(i);
        }), 0);
    inside = false;
    this->run_until([&] { return got.size() == 100; });
    this->run_until([&] { return told.size() == 100; });
    for (int i = 0; i < 100; i++) {
        EXPECT_EQ(got[(size_t)i], std::string((size_t)i, (char)('a' + i % 26)));
        EXPECT_EQ(told[(size_t)i], i);
    }
}

TYPED_TEST(Others, AStopInTheMidstOfManyDatagramsLosesNone)
{
    using E = TypeParam;
    auto *to = this->make();
    struct sockaddr_in address = this->bound(to);
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), got = 0;
    to->on_receive = [&](ssize_t nread, const char *bytes, const struct sockaddr *, unsigned) {
        ASSERT_EQ(nread, (ssize_t)sizeof got);
        EXPECT_EQ(memcmp(bytes, &got, sizeof got), 0);
        if (++got % 3 == 0) {
            EXPECT_EQ(E::udp_recv_stop(&to->udp), 0);
        }
    };
    for (int i = 0; i < 50; i++)
        ASSERT_EQ(sendto(fd, &i, sizeof i, 0, (struct sockaddr *)&address, sizeof address), (ssize_t)sizeof i);
    while (got < 50) {
        int before = got;
        int started = to->receive();
        EXPECT_TRUE(started == 0 || started == UV_EALREADY);
        this->run_until([&] { return got > before; });
        for (int turn = 0; turn < 2; turn++)
            uv_run(&this->loop_, UV_RUN_NOWAIT);
        EXPECT_LE(got, before + 3);
    }
    ::close(fd);
}

TYPED_TEST(Others, ARefusedAllocationLosesNoDatagram)
{
    using E = TypeParam;
    constexpr int count = 40;
    auto *to = this->make();
    struct sockaddr_in address = this->bound(to);
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), got = 0, refused = 0, in_turn = 0;
    to->room_size = 0;
    to->on_receive = [&](ssize_t nread, const char *bytes, const struct sockaddr *, unsigned) {
        if (nread < 0) {
            EXPECT_EQ(nread, UV_ENOBUFS);
            EXPECT_EQ(++in_turn, 1) << "it is told once";
            refused++;
            if (refused % 3 == 0)
                to->room_size = sizeof to->room;
            if (refused % 4 == 0) {
                EXPECT_EQ(E::udp_recv_stop(&to->udp), 0);
            }
            return;
        }
        ASSERT_EQ(nread, (ssize_t)sizeof got);
        EXPECT_EQ(memcmp(bytes, &got, sizeof got), 0);
        if (++got % 5 == 0)
            to->room_size = 0;
    };
    for (int i = 0; i < count; i++)
        ASSERT_EQ(sendto(fd, &i, sizeof i, 0, (struct sockaddr *)&address, sizeof address), (ssize_t)sizeof i);
    for (int turn = 0; got < count && turn < 1000; turn++) {
        in_turn = 0;
        int started = to->receive();
        ASSERT_TRUE(started == 0 || started == UV_EALREADY);
        uv_run(&this->loop_, UV_RUN_NOWAIT);
    }
    EXPECT_EQ(got, count);
    EXPECT_GE(refused, count / 5);
    ::close(fd);
}

TYPED_TEST(Others, ADatagramThatIsTooLongIsPartial)
{
    auto *to = this->make(), *from = this->make();
    struct sockaddr_in address = this->bound(to);
    to->room_size = 10;
    bool done = false;
    to->on_receive = [&](ssize_t nread, const char *bytes, const struct sockaddr *, unsigned flags) {
        EXPECT_EQ(nread, 10);
        EXPECT_EQ(memcmp(bytes, "0123456789", 10), 0);
        EXPECT_EQ(flags, (unsigned)UV_UDP_PARTIAL);
        done = true;
    };
    to->receive();
    from->send("0123456789abcdef", &address);
    this->run_until([&] { return done; });
}

TYPED_TEST(Others, AConnectedDatagramSocketNeedsNoAddress)
{
    using E = TypeParam;
    auto *to = this->make(), *from = this->make();
    struct sockaddr_in address = this->bound(to);
    int got = 0;
    to->on_receive = [&](ssize_t, const char *, const struct sockaddr *, unsigned) { got++; };
    to->receive();
    EXPECT_EQ(from->send("x", nullptr), UV_EDESTADDRREQ);
    ASSERT_EQ(E::udp_connect(&from->udp, (struct sockaddr *)&address), 0);
    EXPECT_EQ(E::udp_connect(&from->udp, (struct sockaddr *)&address), UV_EISCONN);
    EXPECT_EQ(from->send("x", &address), UV_EISCONN);
    EXPECT_EQ(from->send("x", nullptr), 0);
    uv_buf_t buf = uv_buf_init((char *)"y", 1);
    this->run_until([&] { return got == 1; });
    EXPECT_EQ(E::udp_try_send(&from->udp, &buf, 1, nullptr), 1);
    this->run_until([&] { return got == 2; });
    struct sockaddr_in peer = {};
    int length = sizeof peer;
    EXPECT_EQ(E::udp_getpeername(&from->udp, (struct sockaddr *)&peer, &length), 0);
    EXPECT_EQ(peer.sin_port, address.sin_port);
    EXPECT_EQ(E::udp_connect(&from->udp, nullptr), 0);
    EXPECT_EQ(E::udp_connect(&from->udp, nullptr), UV_ENOTCONN);
}

TYPED_TEST(Others, AChangeOfPeerDoesNotOvertakeWhatWasSent)
{
    using E = TypeParam;
    auto *from = this->make();
    typename TestFixture::Udp *to[2] = {this->make(), this->make()};
    struct sockaddr_in addresses[2];
    std::vector<std::string> got[2];
    int sent = 0;
    for (int i = 0; i < 2; i++) {
        addresses[i] = this->bound(to[i]);
        to[i]->on_receive = [&, i](ssize_t nread, const char *bytes, const struct sockaddr *, unsigned) {
            got[i].emplace_back(bytes, (size_t)nread);
        };
        to[i]->receive();
    }
    auto count = [&](int status) {
        EXPECT_EQ(status, 0);
        sent++;
    };
    int sends = E::is_ours ? 3 : 1; /* libuv keeps a second one back, and sends it to the wrong peer */
    std::vector<std::string> expected[2];
    for (int round = 0; round < 4; round++) {
        int which = round % 2;
        ASSERT_EQ(E::udp_connect(&from->udp, (struct sockaddr *)&addresses[which]), 0);
        for (int i = 0; i < sends; i++) {
            expected[which].push_back(std::to_string(round) + "," + std::to_string(i));
            EXPECT_EQ(from->send(expected[which].back(), nullptr, count), 0);
        }
        ASSERT_EQ(E::udp_connect(&from->udp, nullptr), 0);
        EXPECT_EQ(sent, round * sends) << "a callback inside a call";
        if (round % 3 == 1) {
            ASSERT_EQ(E::udp_connect(&from->udp, (struct sockaddr *)&addresses[1 - which]), 0);
        }
        this->run_until([&] { return sent == (round + 1) * sends; });
        if (round % 3 == 1) {
            ASSERT_EQ(E::udp_connect(&from->udp, nullptr), 0);
        }
    }
    this->run_until([&] { return got[0].size() + got[1].size() == 4u * (size_t)sends; });
    EXPECT_EQ(got[0], expected[0]);
    EXPECT_EQ(got[1], expected[1]);
}

TYPED_TEST(Others, ADatagramThatIsSentRightBeforeTheCloseArrives)
{
    using E = TypeParam;
    auto *to = this->make(), *from = this->make();
    struct sockaddr_in address = this->bound(to);
    int got = 0, status = 1;
    to->on_receive = [&](ssize_t, const char *, const struct sockaddr *, unsigned) { got++; };
    to->receive();
    EXPECT_EQ(from->send("last words", &address, [&](int result) { status = result; }), 0);
    from->close();
    this->run_until([&] { return got == 1 && from->closed; });
    EXPECT_EQ(status, 0);
    to->close(); /* with the loop's own datagrams around */
    EXPECT_FALSE(E::is_active((typename E::Handle *)&to->udp));
    this->run();
}

TYPED_TEST(Others, ADatagramThatIsTooBigIsItsOwnErrorAlone)
{
    if (!TypeParam::is_ours)
        return; /* libuv 1.44 gives its error to those behind it, too */
    auto *to = this->make(), *from = this->make();
    struct sockaddr_in address = this->bound(to);
    int got = 0;
    std::vector<int> statuses;
    auto note = [&](int status) { statuses.push_back(status); };
    to->on_receive = [&](ssize_t, const char *, const struct sockaddr *, unsigned) { got++; };
    to->receive();
    from->send("one", &address, note);
    from->send(std::string(70000, 'x'), &address, note);
    from->send("two", &address, note);
    this->run_until([&] { return got == 2 && statuses.size() == 3; });
    EXPECT_EQ(statuses, (std::vector<int>{0, UV_EMSGSIZE, 0}));
}

/* ------------------------------------------------------------------- files */

template <class E>
struct FileCall {
    typename E::Fs req; /* first */
    std::function<void(ssize_t)> on_done;
    static void done(typename E::Fs *req)
    {
        std::unique_ptr<FileCall> call((FileCall *)req);
        ssize_t result = (ssize_t)req->result;
        if constexpr (!E::is_ours)
            uv_fs_req_cleanup(req);
        call->on_done(result);
    }
};

TYPED_TEST(Others, FilesAreWrittenAndReadInPieces)
{
    using E = TypeParam;
    char name[] = "/tmp/ringpoll-uv-XXXXXX";
    int fd = mkostemp(name, O_CLOEXEC);
    ASSERT_GE(fd, 0);
    unlink(name);
    constexpr int pieces = 200, size = 3000;
    std::vector<std::string> wrote, got(pieces, std::string(size, 0));
    int done = 0;
    bool inside = true;
    for (int i = 0; i < pieces; i++)
        wrote.push_back(std::string(size / 2, (char)('a' + i % 26)) + std::string(size / 2, (char)('A' + i % 26)));
    for (int i = 0; i < pieces; i++) {
        uv_buf_t bufs[2] = {uv_buf_init(&wrote[(size_t)i][0], size / 2), uv_buf_init(&wrote[(size_t)i][size / 2], size / 2)};
        auto *call = new FileCall<E>{{}, [&](ssize_t result) {
            EXPECT_FALSE(inside);
            EXPECT_EQ(result, size);
            done++;
        }};
        ASSERT_EQ(E::fs_write(&this->loop_, &call->req, fd, bufs, 2, (int64_t)i * size, FileCall<E>::done), 0);
    }
    inside = false;
    this->run();
    EXPECT_EQ(done, pieces);
    inside = true;
    for (int i = 0; i < pieces; i++) {
        uv_buf_t buf = uv_buf_init(&got[(size_t)i][0], size);
        auto *call = new FileCall<E>{{}, [&](ssize_t result) {
            EXPECT_FALSE(inside);
            EXPECT_EQ(result, size);
            done++;
        }};
        ASSERT_EQ(E::fs_read(&this->loop_, &call->req, fd, &buf, 1, (int64_t)i * size, FileCall<E>::done), 0);
    }
    inside = false;
    this->run();
    EXPECT_EQ(done, 2 * pieces);
    EXPECT_EQ(got, wrote);
    /* The end, an error, and the synchronous form. */
    char byte;
    uv_buf_t buf = uv_buf_init(&byte, 1);
    std::vector<ssize_t> results;
    auto note = [&](ssize_t result) { results.push_back(result); };
    auto *end = new FileCall<E>{{}, note};
    ASSERT_EQ(E::fs_read(&this->loop_, &end->req, fd, &buf, 1, pieces * size, FileCall<E>::done), 0);
    this->run();
    auto *bad = new FileCall<E>{{}, note};
    ASSERT_EQ(E::fs_read(&this->loop_, &bad->req, 20000, &buf, 1, 0, FileCall<E>::done), 0);
    this->run();
    EXPECT_EQ(results, (std::vector<ssize_t>{0, UV_EBADF}));
    typename E::Fs now;
    EXPECT_EQ(E::fs_read(&this->loop_, &now, fd, &buf, 1, 0, nullptr), 1);
    EXPECT_EQ(byte, 'a');
    ::close(fd);
}

TYPED_TEST(Others, AFileIsReadFromItsPosition)
{
    using E = TypeParam;
    char name[] = "/tmp/ringpoll-uv-XXXXXX";
    int fd = mkostemp(name, O_CLOEXEC);
    unlink(name);
    ASSERT_EQ(write(fd, "abcdefgh", 8), 8);
    lseek(fd, 0, SEEK_SET);
    std::string got;
    for (int i = 0; i < 4; i++) {
        char two[2];
        uv_buf_t buf = uv_buf_init(two, 2);
        auto *call = new FileCall<E>{{}, [&](ssize_t result) { got.append(two, (size_t)result); }};
        ASSERT_EQ(E::fs_read(&this->loop_, &call->req, fd, &buf, 1, -1, FileCall<E>::done), 0);
        this->run();
    }
    EXPECT_EQ(got, "abcdefgh");
    ::close(fd);
}

TYPED_TEST(Others, FilesAndDatagramsShareATurn)
{
    using E = TypeParam;
    int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC), reads = 0, got = 0;
    auto *to = this->make(), *from = this->make();
    struct sockaddr_in address = this->bound(to);
    to->on_receive = [&](ssize_t, const char *, const struct sockaddr *, unsigned) { got++; };
    to->receive();
    constexpr unsigned size = 4096;
    std::vector<std::string> rooms(50, std::string(size, 'x')); /* the pool has several threads */
    for (int i = 0; i < 50; i++) {
        uv_buf_t buf = uv_buf_init(&rooms[(size_t)i][0], size);
        auto *call = new FileCall<E>{{}, [&](ssize_t result) {
            EXPECT_EQ(result, (ssize_t)size);
            reads++;
        }};
        ASSERT_EQ(E::fs_read(&this->loop_, &call->req, zero, &buf, 1, 0, FileCall<E>::done), 0);
        from->send("x", &address);
        if (i % 10 == 9)
            this->run_until([&] { return reads == i + 1 && got == i + 1; });
    }
    ::close(zero);
}

TEST(OurFiles, ARequestThatHasNotBegunIsCancelled)
{
    uv_loop_t loop;
    ASSERT_EQ(uv_loop_init(&loop), 0);
    int zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
    char byte;
    uv_buf_t buf = uv_buf_init(&byte, 1);
    ringpoll_uv_fs_t req;
    ssize_t status = -99;
    req.data = &status;
    ASSERT_EQ(ringpoll_uv_fs_read(&loop, &req, zero, &buf, 1, 0, [](ringpoll_uv_fs_t *done) {
        *(ssize_t *)done->data = done->result;
    }), 0);
    int result = ringpoll_uv_fs_cancel(&req);
    EXPECT_TRUE(result == 0 || result == UV_EBUSY);
    EXPECT_EQ(status, -99) << "inside the call";
    uv_run(&loop, UV_RUN_DEFAULT);
    EXPECT_EQ(status, result == 0 ? UV_ECANCELED : 1);
    EXPECT_EQ(ringpoll_uv_fs_cancel(&req), UV_EBUSY);
    EXPECT_EQ(uv_loop_close(&loop), 0);
    ::close(zero);
}

} // namespace
