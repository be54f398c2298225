/* SPDX-License-Identifier: MIT
 *
 * Datagrams: what programs lean on.
 */
#include "support.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <deque>
#include <memory>
#include <thread>

namespace {

struct Came {
    ssize_t got;
    unsigned flags;
    std::string bytes;
    uint16_t port; /* of the sender; 0: no address */
};

struct Receiver {
    std::vector<Came> came;
    std::vector<int> errors;
    unsigned ends = 0;   /* "nothing more to read" */
    unsigned chunks_freed = 0;
    char last = 0;       /* 'a'lloc or 'r'ecv */
    bool out_of_turn = false;
    size_t room = 65536;
    std::vector<char> buffer;
    std::function<void(uv_udp_t *)> then = [](uv_udp_t *) {};

    std::vector<std::string> texts() const
    {
        std::vector<std::string> all;
        for (const Came &one : came)
            all.push_back(one.bytes);
        return all;
    }
};

Receiver *receiver_of(void *handle)
{
    return static_cast<Receiver *>(static_cast<uv_handle_t *>(handle)->data);
}

void on_alloc(uv_handle_t *handle, size_t, uv_buf_t *buffer)
{
    Receiver *receiver = receiver_of(handle);
    receiver->out_of_turn |= receiver->last == 'a';
    receiver->last = 'a';
    receiver->buffer.resize(receiver->room);
    *buffer = uv_buf_init(receiver->buffer.data(), static_cast<unsigned>(receiver->room));
}

void on_recv(uv_udp_t *handle, ssize_t got, const uv_buf_t *buffer, const sockaddr *address, unsigned flags)
{
    Receiver *receiver = receiver_of(handle);
    receiver->out_of_turn |= receiver->last != 'a' && !(flags & (UV_UDP_MMSG_CHUNK | UV_UDP_MMSG_FREE));
    receiver->last = 'r';
    if (flags & UV_UDP_MMSG_FREE) {
        receiver->chunks_freed++;
    } else if (got < 0) {
        receiver->errors.push_back(static_cast<int>(got));
    } else if (got == 0 && address == nullptr) {
        receiver->ends++;
    } else {
        uint16_t port = 0;
        if (address->sa_family == AF_INET)
            port = ntohs(reinterpret_cast<const sockaddr_in *>(address)->sin_port);
        if (address->sa_family == AF_INET6)
            port = ntohs(reinterpret_cast<const sockaddr_in6 *>(address)->sin6_port);
        receiver->came.push_back({got, flags, std::string(buffer->base, static_cast<size_t>(got)), port});
        receiver->then(handle);
    }
}

std::string numbered(int i)
{
    return "datagram " + std::to_string(i);
}

std::vector<std::string> numbers(int begin, int end)
{
    std::vector<std::string> all;
    for (int i = begin; i < end; i++)
        all.push_back(numbered(i));
    return all;
}

/* A plain socket of the test's own. */
class Peer {
public:
    explicit Peer(int family = AF_INET) : fd_(socket(family, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0))
    {
        sockaddr_storage any = {};
        any.ss_family = static_cast<sa_family_t>(family);
        if (family == AF_INET)
            reinterpret_cast<sockaddr_in *>(&any)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        else
            reinterpret_cast<sockaddr_in6 *>(&any)->sin6_addr = in6addr_loopback;
        bound_ = fd_ >= 0 && bind(fd_, reinterpret_cast<sockaddr *>(&any), sizeof any) == 0;
    }
    ~Peer() { shut(); }
    Peer(const Peer &) = delete;
    Peer &operator=(const Peer &) = delete;

    void shut()
    {
        if (fd_ >= 0)
            close(fd_);
        fd_ = -1;
    }
    bool bound() const { return bound_; }
    int fd() const { return fd_; }
    sockaddr_storage name() const
    {
        sockaddr_storage name = {};
        socklen_t length = sizeof name;
        getsockname(fd_, reinterpret_cast<sockaddr *>(&name), &length);
        return name;
    }
    uint16_t port() const
    {
        sockaddr_storage own = name(); /* the port is at the same place in both families */
        return ntohs(reinterpret_cast<sockaddr_in *>(&own)->sin_port);
    }
    void send(const sockaddr_storage &to, const std::string &text) const
    {
        socklen_t length = to.ss_family == AF_INET ? sizeof(sockaddr_in) : sizeof(sockaddr_in6);
        ASSERT_EQ(sendto(fd_, text.data(), text.size(), 0, reinterpret_cast<const sockaddr *>(&to), length),
                  static_cast<ssize_t>(text.size()));
    }
    /* "": nothing is there. */
    std::string take() const
    {
        char bytes[65536];
        ssize_t got = recv(fd_, bytes, sizeof bytes, MSG_DONTWAIT);
        return got < 0 ? "" : std::string(bytes, static_cast<size_t>(got));
    }

private:
    int fd_;
    bool bound_;
};

struct Request {
    uv_udp_send_t send;
    std::string text;
    int status = 1;
};

class Datagrams : public LoopTest {
protected:
    uv_udp_t handle_;
    Receiver receiver_;
    sockaddr_storage address_ = {};
    std::deque<Request> requests_;
    std::vector<Request *> sent_;

    void SetUp() override
    {
        LoopTest::SetUp();
        open(AF_INET, 0);
    }

    void open(int family, unsigned flags)
    {
        ASSERT_EQ(uv_udp_init_ex(&loop_, &handle_, flags), 0);
        handle_.data = &receiver_;
        sockaddr_storage any = {};
        if (family == AF_INET)
            uv_ip4_addr("127.0.0.1", 0, reinterpret_cast<sockaddr_in *>(&any));
        else
            uv_ip6_addr("::1", 0, reinterpret_cast<sockaddr_in6 *>(&any));
        ASSERT_EQ(uv_udp_bind(&handle_, reinterpret_cast<sockaddr *>(&any), 0), 0);
        int length = sizeof address_;
        ASSERT_EQ(uv_udp_getsockname(&handle_, reinterpret_cast<sockaddr *>(&address_), &length), 0);
        int most = 4 << 20;
        uv_recv_buffer_size(reinterpret_cast<uv_handle_t *>(&handle_), &most);
    }
    void start() { ASSERT_EQ(uv_udp_recv_start(&handle_, on_alloc, on_recv), 0); }

    /* Several handles of one process: batches have grown to their full size. */
    void warm_up(const Peer &peer)
    {
        start();
        for (int round = 0; round < 8; round++) {
            size_t wanted = receiver_.came.size() + 64;
            for (int i = 0; i < 64; i++)
                peer.send(address_, "warm up");
            run_until([&] { return receiver_.came.size() >= wanted; });
        }
        receiver_.came.clear();
        uv_udp_recv_stop(&handle_);
    }

    Request *send(const Peer &to, const std::string &text)
    {
        requests_.emplace_back();
        Request *request = &requests_.back();
        request->text = text;
        request->send.data = this;
        uv_buf_t buffer = uv_buf_init(const_cast<char *>(request->text.data()), static_cast<unsigned>(text.size()));
        sockaddr_storage name = to.name();
        EXPECT_EQ(uv_udp_send(&request->send, &handle_, &buffer, 1, reinterpret_cast<sockaddr *>(&name),
                              [](uv_udp_send_t *send, int status) {
                                  auto *request = reinterpret_cast<Request *>(send);
                                  request->status = status;
                                  static_cast<Datagrams *>(send->data)->sent_.push_back(request);
                              }), 0);
        return request;
    }
};

TEST_F(Datagrams, ManyOfManySendersComeInTheirOrder)
{
    std::vector<std::unique_ptr<Peer>> peers;
    start();
    for (int i = 0; i < 48; i++)
        peers.push_back(std::make_unique<Peer>());
    std::vector<std::string> texts;
    std::vector<uint16_t> ports;
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < 48; i++) {
            texts.push_back(numbered(round * 48 + i));
            ports.push_back(peers[static_cast<size_t>(i)]->port());
            peers[static_cast<size_t>(i)]->send(address_, texts.back());
        }
        if (round % 4 == 3) /* more may not have room in the socket */
            run_until([&] { return receiver_.came.size() == texts.size(); });
    }
    run_until([&] { return receiver_.came.size() == texts.size(); });
    EXPECT_EQ(receiver_.texts(), texts);
    for (size_t i = 0; i < ports.size(); i++)
        ASSERT_EQ(receiver_.came[i].port, ports[i]) << i;
    EXPECT_FALSE(receiver_.out_of_turn) << "an alloc_cb was not followed at once by its recv_cb";
    EXPECT_TRUE(receiver_.errors.empty());
}

TEST_F(Datagrams, ThatAllHasBeenReadIsSaid)
{
    Peer peer;
    start();
    peer.send(address_, "one");
    peer.send(address_, "two");
    run_until([&] { return receiver_.ends > 0; });
    EXPECT_EQ(receiver_.texts(), (std::vector<std::string>{"one", "two"}));
}

TEST_F(Datagrams, WhoStopsInTheCallbackLosesNothing)
{
    Peer peer;
    warm_up(peer);
    receiver_.then = [](uv_udp_t *handle) { uv_udp_recv_stop(handle); };
    for (int i = 0; i < 100; i++)
        peer.send(address_, numbered(i));
    for (size_t i = 1; i <= 100; i++) {
        start();
        run_until([&] { return receiver_.came.size() >= i; });
        turn(3);
        ASSERT_EQ(receiver_.came.size(), i) << "a handle that was stopped received";
        ASSERT_FALSE(uv_is_active(reinterpret_cast<uv_handle_t *>(&handle_)));
    }
    EXPECT_EQ(receiver_.texts(), numbers(0, 100));
    EXPECT_FALSE(receiver_.out_of_turn);
}

TEST_F(Datagrams, WhatIsLeftComesBeforeWhatCameLater)
{
    Peer peer;
    warm_up(peer);
    bool once = true;
    receiver_.then = [&](uv_udp_t *handle) {
        if (receiver_.came.size() == 10 && once)
            uv_udp_recv_stop(handle);
    };
    for (int i = 0; i < 50; i++)
        peer.send(address_, numbered(i));
    start();
    run_until([&] { return receiver_.came.size() >= 10; });
    for (int i = 50; i < 90; i++)
        peer.send(address_, numbered(i));
    turn(2);
    EXPECT_EQ(receiver_.came.size(), 10u);
    once = false;
    start();
    run_until([&] { return receiver_.came.size() >= 90; });
    EXPECT_EQ(receiver_.texts(), numbers(0, 90));
}

TEST_F(Datagrams, WhatIsLeftComesWithoutAnotherDatagram)
{
    Peer peer;
    warm_up(peer);
    receiver_.then = [](uv_udp_t *handle) { uv_udp_recv_stop(handle); };
    peer.send(address_, numbered(0));
    peer.send(address_, numbered(1));
    start();
    run_until([&] { return receiver_.came.size() == 1; });
    start();
    run_until([&] { return receiver_.came.size() == 2; });
    EXPECT_EQ(receiver_.texts(), numbers(0, 2));
}

TEST_F(Datagrams, WhoStopsAndStartsInTheCallbackGoesOn)
{
    Peer peer;
    warm_up(peer);
    receiver_.then = [](uv_udp_t *handle) {
        uv_udp_recv_stop(handle);
        ASSERT_EQ(uv_udp_recv_start(handle, on_alloc, on_recv), 0);
    };
    for (int i = 0; i < 100; i++)
        peer.send(address_, numbered(i));
    start();
    run_until([&] { return receiver_.came.size() == 100; });
    EXPECT_EQ(receiver_.texts(), numbers(0, 100));
}

TEST_F(Datagrams, NothingComesAfterACloseInTheCallback)
{
    Peer peer;
    warm_up(peer);
    bool closed = false;
    receiver_.then = [&](uv_udp_t *handle) {
        handle->data = &receiver_;
        uv_close(reinterpret_cast<uv_handle_t *>(handle), nullptr);
        closed = true;
    };
    for (int i = 0; i < 20; i++)
        peer.send(address_, numbered(i));
    start();
    run_until([&] { return closed; });
    turn(3);
    EXPECT_EQ(receiver_.came.size(), 1u);
}

TEST_F(Datagrams, AHandleThatLeftSomethingCanBeClosed)
{
    Peer peer;
    warm_up(peer);
    receiver_.then = [](uv_udp_t *handle) { uv_udp_recv_stop(handle); };
    for (int i = 0; i < 20; i++)
        peer.send(address_, numbered(i));
    start();
    run_until([&] { return receiver_.came.size() == 1; });
    start();
    uv_close(reinterpret_cast<uv_handle_t *>(&handle_), nullptr);
    turn(3);
    EXPECT_EQ(receiver_.came.size(), 1u);
}

TEST_F(Datagrams, ASmallBufferIsToldOf)
{
    Peer peer;
    warm_up(peer);
    receiver_.room = 10;
    peer.send(address_, std::string(3000, 'x'));
    peer.send(address_, "0123456789");
    peer.send(address_, "0123456789a");
    start();
    run_until([&] { return receiver_.came.size() == 3; });
    EXPECT_EQ(receiver_.came[0].bytes, "xxxxxxxxxx");
    EXPECT_EQ(receiver_.came[0].flags, static_cast<unsigned>(UV_UDP_PARTIAL));
    EXPECT_EQ(receiver_.came[1].flags, 0u);
    EXPECT_EQ(receiver_.came[2].bytes, "0123456789");
    EXPECT_EQ(receiver_.came[2].flags, static_cast<unsigned>(UV_UDP_PARTIAL));
}

TEST_F(Datagrams, OfEverySizeTheyComeWhole)
{
    const size_t sizes[] = {0, 1, 2047, 2048, 2049, 9000, 65507, 3, 65507, 2048, 40000, 0, 65000, 65507};
    Peer peer;
    warm_up(peer);
    std::vector<std::string> texts;
    for (size_t size : sizes) {
        std::string text(size, '\0');
        for (size_t i = 0; i < size; i++)
            text[i] = static_cast<char>(i * 7 + texts.size());
        peer.send(address_, text);
        texts.push_back(text);
    }
    start();
    run_until([&] { return receiver_.came.size() == texts.size(); });
    for (size_t i = 0; i < texts.size(); i++) {
        EXPECT_TRUE(receiver_.came[i].bytes == texts[i]) << i;
        EXPECT_EQ(receiver_.came[i].flags, 0u) << i;
        EXPECT_EQ(receiver_.came[i].port, peer.port()) << i;
    }
}

TEST_F(Datagrams, LargeOnesThatAreLeftComeWhole)
{
    Peer peer;
    warm_up(peer);
    receiver_.then = [](uv_udp_t *handle) { uv_udp_recv_stop(handle); };
    for (int i = 0; i < 8; i++)
        peer.send(address_, std::string(9000u * static_cast<unsigned>(i), static_cast<char>('a' + i)));
    for (size_t i = 0; i < 8; i++) {
        start();
        run_until([&] { return receiver_.came.size() == i + 1; });
        EXPECT_TRUE(receiver_.came[i].bytes == std::string(9000 * i, static_cast<char>('a' + i))) << i;
    }
}

TEST_F(Datagrams, OthersHaveATurnBeforeAllIsRead)
{
    Peer peer;
    warm_up(peer);
    uv_check_t check;
    size_t before = 0, most = 0;
    struct Seen {
        Receiver *receiver;
        size_t *before, *most;
    } seen = {&receiver_, &before, &most};
    uv_check_init(&loop_, &check);
    check.data = &seen;
    uv_check_start(&check, [](uv_check_t *handle) {
        auto *seen = static_cast<Seen *>(handle->data);
        size_t now = seen->receiver->came.size();
        if (now - *seen->before > *seen->most)
            *seen->most = now - *seen->before;
        *seen->before = now;
    });
    for (int i = 0; i < 300; i++)
        peer.send(address_, numbered(i));
    start();
    run_until([&] { return receiver_.came.size() == 300; });
    EXPECT_LE(most, on_tree() ? 64u : 32u);
    EXPECT_EQ(receiver_.texts(), numbers(0, 300));
    uv_close(reinterpret_cast<uv_handle_t *>(&check), nullptr);
    turn();
}

TEST_F(Datagrams, ARefusedDatagramIsAnErrorOfTheNextReceive)
{
    auto gone = std::make_unique<Peer>();
    sockaddr_storage name = gone->name();
    ASSERT_EQ(uv_udp_connect(&handle_, reinterpret_cast<sockaddr *>(&name)), 0);
    start();
    uv_buf_t buffer = uv_buf_init(const_cast<char *>("hello"), 5);
    ASSERT_EQ(uv_udp_try_send(&handle_, &buffer, 1, nullptr), 5);
    EXPECT_EQ(gone->take(), "hello");
    gone->shut();
    ASSERT_EQ(uv_udp_try_send(&handle_, &buffer, 1, nullptr), 5);
    run_until([&] { return !receiver_.errors.empty(); });
    EXPECT_EQ(receiver_.errors, std::vector<int>{UV_ECONNREFUSED});
    /* and it goes on */
    turn(3);
    EXPECT_EQ(receiver_.errors.size(), 1u);
}

TEST_F(Datagrams, AnErrorOfTheQueueIsToldWhereItWasAskedFor)
{
    uv_udp_t handle;
    Receiver receiver;
    sockaddr_storage any = {};
    uv_ip4_addr("127.0.0.1", 0, reinterpret_cast<sockaddr_in *>(&any));
    ASSERT_EQ(uv_udp_init(&loop_, &handle), 0);
    handle.data = &receiver;
    ASSERT_EQ(uv_udp_bind(&handle, reinterpret_cast<sockaddr *>(&any), UV_UDP_LINUX_RECVERR), 0);
    ASSERT_EQ(uv_udp_recv_start(&handle, on_alloc, on_recv), 0);
    Peer gone;
    sockaddr_storage name = gone.name();
    gone.shut();
    uv_buf_t buffer = uv_buf_init(const_cast<char *>("hello"), 5);
    ASSERT_EQ(uv_udp_try_send(&handle, &buffer, 1, reinterpret_cast<sockaddr *>(&name)), 5);
    run_until([&] { return !receiver.errors.empty(); });
    EXPECT_EQ(receiver.errors.front(), UV_ECONNREFUSED);
    uv_close(reinterpret_cast<uv_handle_t *>(&handle), nullptr);
    turn();
}

TEST_F(Datagrams, OverIPv6)
{
    uv_close(reinterpret_cast<uv_handle_t *>(&handle_), nullptr);
    turn();
    Peer peer(AF_INET6);
    if (!peer.bound())
        GTEST_SKIP() << "no IPv6 here";
    open(AF_INET6, 0);
    warm_up(peer);
    for (int i = 0; i < 100; i++)
        peer.send(address_, numbered(i));
    start();
    run_until([&] { return receiver_.came.size() == 100; });
    EXPECT_EQ(receiver_.texts(), numbers(0, 100));
    EXPECT_EQ(receiver_.came[50].port, peer.port());
    Request *request = send(peer, "reply");
    run_until([&] { return request->status != 1; });
    EXPECT_EQ(peer.take(), "reply");
}

/* One of AF_UNIX may be larger than any of UDP. */
TEST_F(Datagrams, OfAfUnixAsLargeAsTheyMayBe)
{
    int pair[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, pair), 0);
    uv_udp_t handle;
    Receiver receiver;
    receiver.room = 200000;
    ASSERT_EQ(uv_udp_init(&loop_, &handle), 0);
    handle.data = &receiver;
    ASSERT_EQ(uv_udp_open(&handle, pair[0]), 0);
    ASSERT_EQ(uv_udp_recv_start(&handle, on_alloc, on_recv), 0);
    const std::string large(120000, 'L');
    int most = 1 << 20;
    setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &most, sizeof most);
    for (size_t i = 1; i <= 3; i++) {
        ASSERT_EQ(::send(pair[1], large.data(), large.size(), 0), static_cast<ssize_t>(large.size()));
        run_until([&] { return receiver.came.size() == i; });
        EXPECT_TRUE(receiver.came.back().bytes == large);
        EXPECT_EQ(receiver.came.back().flags, 0u);
    }
    uv_close(reinterpret_cast<uv_handle_t *>(&handle), nullptr);
    turn();
    close(pair[1]);
}

TEST_F(Datagrams, WhoAskedForChunksHasThem)
{
    uv_close(reinterpret_cast<uv_handle_t *>(&handle_), nullptr);
    turn();
    open(AF_INET, UV_UDP_RECVMMSG);
    ASSERT_TRUE(uv_udp_using_recvmmsg(&handle_));
    Peer peer;
    receiver_.room = 4 * 65536;
    for (int i = 0; i < 10; i++)
        peer.send(address_, numbered(i));
    start();
    run_until([&] { return receiver_.came.size() == 10; });
    EXPECT_EQ(receiver_.texts(), numbers(0, 10));
    for (const Came &one : receiver_.came)
        EXPECT_EQ(one.flags, static_cast<unsigned>(UV_UDP_MMSG_CHUNK));
    EXPECT_GT(receiver_.chunks_freed, 0u);
}

TEST_F(Datagrams, WhoAsksForManyGetsFewAndManyInTheirOrder)
{
    uv_close(reinterpret_cast<uv_handle_t *>(&handle_), nullptr);
    turn();
    open(AF_INET, UV_UDP_RECVMMSG);
    Peer peer;
    receiver_.room = 20 * 65536;
    start();
    int sent = 0;
    for (int count : {1, 1, 2, 20, 60, 64, 64, 1, 1, 1, 1, 1, 1, 3, 5, 40, 1}) {
        unsigned ends = receiver_.ends;
        for (int i = 0; i < count; i++)
            peer.send(address_, numbered(sent++));
        /* After many, others have a turn first, and then there may be nothing to be said. */
        run_until([&] {
            return receiver_.came.size() == static_cast<size_t>(sent) && (count > 5 || receiver_.ends > ends);
        });
    }
    EXPECT_EQ(receiver_.texts(), numbers(0, sent));
    EXPECT_FALSE(receiver_.out_of_turn);
    EXPECT_TRUE(receiver_.errors.empty());
}

TEST_F(Datagrams, WhatComesWhileACallbackRunsIsNotMissed)
{
    for (unsigned flags : {0u, static_cast<unsigned>(UV_UDP_RECVMMSG)}) {
        uv_close(reinterpret_cast<uv_handle_t *>(&handle_), nullptr);
        turn();
        receiver_ = Receiver();
        receiver_.room = 4 * 65536;
        open(AF_INET, flags);
        Peer peer;
        start();
        int sent = 0;
        auto one_by_one = [&](int until) {
            while (sent < until) { /* a second look at the socket is in vain each time */
                peer.send(address_, numbered(sent++));
                run_until([&] { return receiver_.came.size() == static_cast<size_t>(sent); });
            }
        };
        for (int round = 1; round <= 3; round++) {
            one_by_one(round * 200 - 150);
            receiver_.then = [&](uv_udp_t *) {
                if (sent < round * 200)
                    peer.send(address_, numbered(sent++));
            };
            peer.send(address_, numbered(sent++));
            run_until([&] { return receiver_.came.size() == static_cast<size_t>(round) * 200; });
            receiver_.then = [](uv_udp_t *) {};
        }
        EXPECT_EQ(receiver_.texts(), numbers(0, 600));
        EXPECT_FALSE(receiver_.out_of_turn);
    }
}

TEST_F(Datagrams, WhoAsksForManyHearsOfARefusedOne)
{
    uv_close(reinterpret_cast<uv_handle_t *>(&handle_), nullptr);
    turn();
    open(AF_INET, UV_UDP_RECVMMSG);
    receiver_.room = 4 * 65536;
    auto gone = std::make_unique<Peer>();
    sockaddr_storage name = gone->name();
    ASSERT_EQ(uv_udp_connect(&handle_, reinterpret_cast<sockaddr *>(&name)), 0);
    start();
    gone->send(address_, "first");
    run_until([&] { return receiver_.came.size() == 1; });
    gone->shut();
    uv_buf_t buffer = uv_buf_init(const_cast<char *>("hello"), 5);
    ASSERT_EQ(uv_udp_try_send(&handle_, &buffer, 1, nullptr), 5);
    run_until([&] { return !receiver_.errors.empty(); });
    EXPECT_EQ(receiver_.errors, std::vector<int>{UV_ECONNREFUSED});
}

TEST_F(Datagrams, AnotherLoopInTheCallbackReceivesToo)
{
    Peer peer;
    uv_loop_t inner;
    uv_udp_t second;
    Receiver other;
    sockaddr_storage name = {};
    int length = sizeof name;
    ASSERT_EQ(uv_loop_init(&inner), 0);
    ASSERT_EQ(uv_udp_init(&inner, &second), 0);
    second.data = &other;
    uv_ip4_addr("127.0.0.1", 0, reinterpret_cast<sockaddr_in *>(&name));
    ASSERT_EQ(uv_udp_bind(&second, reinterpret_cast<sockaddr *>(&name), 0), 0);
    ASSERT_EQ(uv_udp_getsockname(&second, reinterpret_cast<sockaddr *>(&name), &length), 0);
    ASSERT_EQ(uv_udp_recv_start(&second, on_alloc, on_recv), 0);
    warm_up(peer);
    receiver_.then = [&](uv_udp_t *) {
        size_t wanted = other.came.size() + 2;
        peer.send(name, numbered(static_cast<int>(wanted) - 2));
        peer.send(name, numbered(static_cast<int>(wanted) - 1));
        for (int i = 0; i < 1000 && other.came.size() < wanted; i++)
            uv_run(&inner, UV_RUN_ONCE);
    };
    for (int i = 0; i < 30; i++)
        peer.send(address_, numbered(i));
    start();
    run_until([&] { return receiver_.came.size() == 30; });
    EXPECT_EQ(receiver_.texts(), numbers(0, 30));
    EXPECT_EQ(other.texts(), numbers(0, 60));
    uv_close(reinterpret_cast<uv_handle_t *>(&second), nullptr);
    uv_run(&inner, UV_RUN_DEFAULT);
    EXPECT_EQ(uv_loop_close(&inner), 0);
}

TEST_F(Datagrams, AReplyToEachOfMany)
{
    Peer peer;
    warm_up(peer);
    start();
    receiver_.then = [&](uv_udp_t *) { send(peer, receiver_.came.back().bytes); };
    std::vector<std::string> replies;
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < 64; i++)
            peer.send(address_, numbered(round * 64 + i));
        run_until([&] {
            for (std::string one; !(one = peer.take()).empty();)
                replies.push_back(one);
            return replies.size() == static_cast<size_t>(round + 1) * 64 && sent_.size() == replies.size();
        });
    }
    EXPECT_EQ(replies, numbers(0, 640));
    for (size_t i = 0; i < sent_.size(); i++) {
        ASSERT_EQ(sent_[i], &requests_[i]) << "callbacks of sends in another order";
        ASSERT_EQ(sent_[i]->status, 0);
    }
    EXPECT_EQ(uv_udp_get_send_queue_count(&handle_), 0u);
}

TEST_F(Datagrams, ASendIsCountedUntilItsCallback)
{
    Peer peer;
    for (int i = 0; i < 5; i++)
        send(peer, "0123456789");
    EXPECT_EQ(uv_udp_get_send_queue_count(&handle_), 5u);
    EXPECT_EQ(uv_udp_get_send_queue_size(&handle_), 50u);
    EXPECT_TRUE(sent_.empty()) << "a callback inside of its call";
    EXPECT_EQ(peer.take(), "0123456789") << "the first leaves at once";
    run_until([&] { return sent_.size() == 5; });
    EXPECT_EQ(uv_udp_get_send_queue_count(&handle_), 0u);
    EXPECT_EQ(uv_udp_get_send_queue_size(&handle_), 0u);
}

TEST_F(Datagrams, ATryNeverOvertakes)
{
    Peer peer;
    sockaddr_storage name = peer.name();
    uv_buf_t buffer = uv_buf_init(const_cast<char *>("tried"), 5);
    auto *to = reinterpret_cast<sockaddr *>(&name);
    EXPECT_EQ(uv_udp_try_send(&handle_, &buffer, 1, to), 5);
    EXPECT_EQ(peer.take(), "tried") << "a try is synchronous";
    send(peer, "first");
    send(peer, "second");
    EXPECT_EQ(uv_udp_try_send(&handle_, &buffer, 1, to), UV_EAGAIN);
    run_until([&] { return sent_.size() == 2; });
    EXPECT_EQ(uv_udp_try_send(&handle_, &buffer, 1, to), 5);
    EXPECT_EQ(peer.take(), "first");
    EXPECT_EQ(peer.take(), "second");
    EXPECT_EQ(peer.take(), "tried");
}

TEST_F(Datagrams, EachSendHasItsOwnStatus)
{
    Peer peer;
    for (int i = 0; i < 100; i++)
        send(peer, i == 50 ? std::string(65508, 'x') : numbered(i));
    run_until([&] { return sent_.size() == 100; });
    for (size_t i = 0; i < 100; i++) {
        ASSERT_EQ(sent_[i], &requests_[i]) << "callbacks of sends in another order";
        /* libuv's own gives the error to all that it tried to send by that call. */
        if (i == 50 || on_tree()) {
            EXPECT_EQ(sent_[i]->status, i == 50 ? UV_EMSGSIZE : 0) << i;
        }
    }
}

TEST_F(Datagrams, ACloseCancelsWhatWasNotSent)
{
    Peer peer;
    for (int i = 0; i < 10; i++)
        send(peer, numbered(i));
    uv_close(reinterpret_cast<uv_handle_t *>(&handle_), nullptr);
    run_until([&] { return sent_.size() == 10; });
    for (size_t i = 0; i < 10; i++) {
        EXPECT_EQ(sent_[i], &requests_[i]);
        EXPECT_EQ(sent_[i]->status, i == 0 ? 0 : UV_ECANCELED) << i;
    }
    EXPECT_EQ(peer.take(), numbered(0));
    EXPECT_EQ(peer.take(), "");
}

TEST_F(Datagrams, WhatIsLeftStaysTheParents)
{
    Peer peer;
    warm_up(peer);
    receiver_.then = [](uv_udp_t *handle) { uv_udp_recv_stop(handle); };
    for (int i = 0; i < 5; i++)
        peer.send(address_, numbered(i));
    start();
    run_until([&] { return receiver_.came.size() == 1; });
    receiver_.then = [](uv_udp_t *) {};
    pid_t child = fork();
    if (child == 0) {
        size_t before = receiver_.came.size();
        bool good = uv_loop_fork(&loop_) == 0;
        if (on_tree()) { /* what is left is in the library, not in the kernel that both share */
            good = good && uv_udp_recv_start(&handle_, on_alloc, on_recv) == 0;
            uv_run(&loop_, UV_RUN_NOWAIT);
            uv_run(&loop_, UV_RUN_NOWAIT);
            good = good && receiver_.came.size() == before;
        }
        _exit(good ? 0 : 1);
    }
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    start();
    run_until([&] { return receiver_.came.size() == 5; });
    EXPECT_EQ(receiver_.texts(), numbers(0, 5));
}

TEST_F(Datagrams, AChildThatGoesOnReceives)
{
    Peer peer;
    warm_up(peer);
    pid_t child = fork();
    if (child == 0) {
        bool good = uv_loop_fork(&loop_) == 0 && uv_udp_recv_start(&handle_, on_alloc, on_recv) == 0;
        for (int i = 0; good && i < 50; i++)
            peer.send(address_, numbered(i));
        for (int i = 0; good && i < 1000 && receiver_.came.size() < 50; i++)
            uv_run(&loop_, UV_RUN_ONCE);
        _exit(good && receiver_.texts() == numbers(0, 50) ? 0 : 1);
    }
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
}

TEST_F(Datagrams, ThreadsHaveLoopsOfTheirOwn)
{
    std::vector<std::thread> threads;
    std::vector<int> good(4);
    for (int &mine : good)
        threads.emplace_back([&mine] {
            uv_loop_t loop;
            uv_udp_t handle;
            Receiver receiver;
            Peer peer;
            sockaddr_storage name = {};
            int length = sizeof name;
            uv_ip4_addr("127.0.0.1", 0, reinterpret_cast<sockaddr_in *>(&name));
            uv_loop_init(&loop);
            uv_udp_init(&loop, &handle);
            handle.data = &receiver;
            uv_udp_bind(&handle, reinterpret_cast<sockaddr *>(&name), 0);
            uv_udp_getsockname(&handle, reinterpret_cast<sockaddr *>(&name), &length);
            uv_udp_recv_start(&handle, on_alloc, on_recv);
            for (int round = 0; round < 20; round++) {
                for (int i = 0; i < 40; i++)
                    peer.send(name, numbered(round * 40 + i));
                while (receiver.came.size() < static_cast<size_t>(round + 1) * 40)
                    uv_run(&loop, UV_RUN_ONCE);
            }
            uv_close(reinterpret_cast<uv_handle_t *>(&handle), nullptr);
            uv_run(&loop, UV_RUN_DEFAULT);
            mine = receiver.texts() == numbers(0, 800) && uv_loop_close(&loop) == 0;
        });
    for (std::thread &thread : threads)
        thread.join();
    EXPECT_EQ(good, std::vector<int>(4, 1));
}

/* An operation that is in flight on a bound socket would keep the port for milliseconds. */
TEST_F(Datagrams, AKilledServerFreesItsPortsAtOnce)
{
    for (int i = 0; i < 20; i++) {
        int ready[2];
        ASSERT_EQ(pipe(ready), 0);
        pid_t child = fork();
        if (child == 0) {
            uv_loop_t loop;
            uv_udp_t handle;
            uv_tcp_t listener;
            Receiver receiver;
            sockaddr_storage names[2] = {};
            int length = sizeof names[0];
            uv_loop_init(&loop);
            uv_udp_init(&loop, &handle);
            uv_tcp_init(&loop, &listener);
            handle.data = &receiver;
            uv_ip4_addr("127.0.0.1", 0, reinterpret_cast<sockaddr_in *>(&names[0]));
            names[1] = names[0];
            uv_udp_bind(&handle, reinterpret_cast<sockaddr *>(&names[0]), 0);
            uv_udp_getsockname(&handle, reinterpret_cast<sockaddr *>(&names[0]), &length);
            uv_tcp_bind(&listener, reinterpret_cast<sockaddr *>(&names[1]), 0);
            uv_tcp_getsockname(&listener, reinterpret_cast<sockaddr *>(&names[1]), &length);
            uv_listen(reinterpret_cast<uv_stream_t *>(&listener), 16, [](uv_stream_t *, int) {});
            uv_udp_recv_start(&handle, on_alloc, on_recv);
            receiver.then = [&](uv_udp_t *) {
                if (receiver.came.size() == 50)
                    (void)!write(ready[1], names, sizeof names);
            };
            Peer peer;
            for (int k = 0; k < 50; k++)
                peer.send(names[0], "busy");
            uv_run(&loop, UV_RUN_DEFAULT);
            _exit(1);
        }
        sockaddr_storage names[2] = {};
        close(ready[1]);
        ASSERT_EQ(read(ready[0], names, sizeof names), static_cast<ssize_t>(sizeof names));
        close(ready[0]);
        ASSERT_EQ(kill(child, SIGKILL), 0);
        ASSERT_EQ(waitpid(child, nullptr, 0), child);
        int udp = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), tcp = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        EXPECT_EQ(bind(udp, reinterpret_cast<sockaddr *>(&names[0]), sizeof(sockaddr_in)), 0) << strerror(errno);
        EXPECT_EQ(bind(tcp, reinterpret_cast<sockaddr *>(&names[1]), sizeof(sockaddr_in)), 0) << strerror(errno);
        close(udp);
        close(tcp);
    }
}

TEST_F(Datagrams, ALoopThatIsToStayOnEpollReceives)
{
    const auto UV_LOOP_EPOLL_OF_THE_TREE = static_cast<uv_loop_option>(0x72700001);
    int rc = uv_loop_configure(&loop_, UV_LOOP_EPOLL_OF_THE_TREE);
    if (rc == UV_ENOSYS && !on_tree())
        GTEST_SKIP() << "an option of the tree's";
    ASSERT_EQ(rc, 0);
    Peer peer;
    warm_up(peer);
    for (int i = 0; i < 100; i++)
        peer.send(address_, numbered(i));
    start();
    run_until([&] { return receiver_.came.size() == 100; });
    EXPECT_EQ(receiver_.texts(), numbers(0, 100));
}

} // namespace
