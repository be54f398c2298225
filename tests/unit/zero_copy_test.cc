/* SPDX-License-Identifier: MIT
 *
 * Zero-copy sends (send.h, loan.h) by the library's own API, on connections of loopback
 * where that is allowed by a variable for tests. The kernel is the real one behind a layer
 * that changes what it is asked (a shorter send, a NOP with an errno), keeps its
 * notifications for later (they come back by IORING_OP_MSG_RING, as a completion like any
 * other), loses them, answers enters with errors, and lets the n-th allocation fail.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "bench/made_up_peer.h"
#include "nop.h"
#include "public_api.h"

extern "C" {
#include "probe.h"
#include "set.h"
#include "sys.h"
}

namespace {

/* ------------------------------------------------------------------ the layer */

struct Kept {
    uint64_t user_data;
    int32_t result;
    uint32_t flags;
};

struct Layer {
    struct rp_set *set = nullptr;
    std::function<void(struct rp_sqe *)> edit; /* each zero-copy send that goes in */
    bool keeps_notifications = false; /* deliver() may be another thread's */
    bool loses_first = false;       /* the first completion of such a send */
    int enter_error = 0;            /* what enters answer, before they do anything */
    unsigned enters_before_error = 0;
    std::vector<Kept> kept;
    unsigned fail_allocation = 0;
    bool allocation_failed = false;
    unsigned sends = 0, messages = 0;
} layer;

bool is_zero_copy(const struct rp_sqe *sqe)
{
    return sqe->opcode == RP_IORING_OP_SEND_ZC || sqe->opcode == RP_IORING_OP_SENDMSG_ZC;
}

int layered_enter(int fd, unsigned to_submit, unsigned min_complete, unsigned flags, const void *arg, size_t size)
{
    /* Of the set's ring alone, which is its thread's. */
    struct rp_ring *ring = layer.set && fd >= 0 && layer.set->ring.fd == fd ? &layer.set->ring : nullptr;
    if (ring) {
        for (uint32_t at = ring->sqe_head; at != ring->sqe_tail; at++) {
            struct rp_sqe *sqe = &ring->sqes[at & ring->sq_mask];
            if (!is_zero_copy(sqe))
                continue;
            layer.sends++;
            layer.messages += sqe->opcode == RP_IORING_OP_SENDMSG_ZC;
            if (layer.edit)
                layer.edit(sqe);
        }
    }
    if (layer.enter_error && layer.enters_before_error-- == 0) {
        layer.enters_before_error = 0;
        return layer.enter_error;
    }
    int result = rp_sys_kernel.uring_enter(fd, to_submit, min_complete, flags, arg, size);
    if (!ring)
        return result;
    for (uint32_t at = ring->cq_next; at != __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE); at++) {
        struct rp_cqe *cqe = &ring->cqes[at & ring->cq_mask];
        if ((uint8_t)cqe->user_data != RP_OP_LOAN)
            continue;
        bool notifies = (cqe->flags & RP_CQE_F_NOTIF) != 0;
        bool keeps = notifies && __atomic_load_n(&layer.keeps_notifications, __ATOMIC_RELAXED);
        if (keeps)
            layer.kept.push_back({cqe->user_data, cqe->res, cqe->flags});
        if (keeps || (!notifies && layer.loses_first)) {
            cqe->user_data = 0;
            cqe->flags = 0;
        }
    }
    return result;
}

/* Rings keep their fds, which deliver() needs. */
int layered_register(int fd, unsigned opcode, const void *arg, unsigned count)
{
    return opcode == RP_REGISTER_RING_FDS ? -EINVAL : rp_sys_kernel.uring_register(fd, opcode, arg, count);
}

void *layered_pages(size_t length)
{
    if (layer.fail_allocation > 0 && --layer.fail_allocation == 0) {
        layer.allocation_failed = true;
        return nullptr;
    }
    return rp_sys_kernel.pages(length);
}

/* What was kept comes, to the ring of this fd. */
void deliver(int ring_fd, int result = 0)
{
    struct rp_ring_options options = {};
    options.sq_entries = 8;
    options.cq_entries = 8;
    options.features = RINGPOLL_FEATURE_URING;
    struct rp_ring ring;
    ASSERT_EQ(rp_ring_init(&ring, &options), 0);
    __atomic_store_n(&layer.keeps_notifications, false, __ATOMIC_RELAXED);
    for (const Kept &one : layer.kept) {
        struct rp_sqe *sqe = rp_ring_get_sqe(&ring);
        sqe->opcode = RP_IORING_OP_MSG_RING;
        sqe->fd = ring_fd;
        sqe->len = (uint32_t)(result ? result : one.result);
        sqe->off = one.user_data;
        sqe->op_flags = 2; /* IORING_MSG_RING_FLAGS_PASS, 6.3 */
        sqe->file_index = (uint32_t)one.flags;
        ASSERT_EQ(rp_ring_enter(&ring, 1, nullptr, nullptr), 1);
        struct rp_cqe *cqe = rp_ring_peek(&ring);
        ASSERT_NE(cqe, nullptr);
        ASSERT_EQ(cqe->res, 0) << ring_fd;
        rp_ring_seen(&ring);
    }
    layer.kept.clear();
    rp_ring_fini(&ring);
}

/* ------------------------------------------------------------------ memory */

/* Bytes that are lent, and scribbled over the moment they are released. */
struct Lent {
    std::vector<char> bytes;
    unsigned released = 0;
    std::thread::id by;
};

void release(void *argument)
{
    Lent *lent = static_cast<Lent *>(argument);
    __atomic_add_fetch(&lent->released, 1, __ATOMIC_RELAXED); /* another thread may look */
    lent->by = std::this_thread::get_id();
    memset(lent->bytes.data(), '#', lent->bytes.size());
}

char text(size_t at)
{
    return (char)('a' + (at * 2654435761u >> 7) % 26);
}

Lent make_lent(size_t from, size_t length)
{
    Lent lent;
    lent.bytes.resize(length);
    for (size_t i = 0; i < length; i++)
        lent.bytes[i] = text(from + i);
    return lent;
}

/* ------------------------------------------------------------------ the fixture */

class ZeroCopy : public testing::Test {
protected:
    void SetUp() override
    {
        struct ringpoll_probe probe = {};
        probe.size = sizeof probe;
        ASSERT_EQ(ringpoll_get_probe(&probe), 0);
        if (!kernel_adopts() || !(probe.usable & RINGPOLL_FEATURE_SEND_ZC))
            GTEST_SKIP() << "this kernel has no zero-copy sends for rings";
        layered_ = rp_sys_kernel;
        layered_.uring_enter = layered_enter;
        layered_.pages = layered_pages;
        layered_.uring_register = layered_register;
        rp_sys = &layered_;
        rp_send_zc_trial = RP_SEND_ZC_EVER;
        make();
    }

    void TearDown() override
    {
        for (int fd : {a_, b_, set_})
            if (fd >= 0)
                ringpoll_close(fd);
        layer = Layer();
        struct timespec no_time = {};
        ringpoll_zc_reclaim(&no_time);
        rp_sys = &rp_sys_kernel;
        rp_send_zc_trial = RP_SEND_ZC_AS_DUE;
    }

    /* For all of a send, whatever the kernel would begin with. */
    static void give_room(int fd)
    {
        int bytes = 200000;
        ASSERT_EQ(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes), 0);
    }

    static void connect_pair(int *ret_a, int *ret_b)
    {
        int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        struct sockaddr_in address = {};
        socklen_t length = sizeof address;
        address.sin_family = AF_INET;
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        ASSERT_EQ(bind(listener, (struct sockaddr *)&address, length), 0);
        ASSERT_EQ(listen(listener, 1), 0);
        ASSERT_EQ(getsockname(listener, (struct sockaddr *)&address, &length), 0);
        *ret_b = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        ASSERT_EQ(connect(*ret_b, (struct sockaddr *)&address, length), 0);
        *ret_a = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
        ASSERT_GE(*ret_a, 0);
        close(listener);
        give_room(*ret_a);
    }

    void make(uint64_t masked = 0, uint32_t events = EPOLLIN)
    {
        for (int *fd : {&a_, &b_, &set_}) {
            if (*fd >= 0)
                ringpoll_close(*fd);
            *fd = -1;
        }
        struct ringpoll_options options = {};
        options.size = sizeof options;
        options.flags = RINGPOLL_ADOPT | RINGPOLL_BATCH | (declared_ ? RINGPOLL_DECLARED : 0);
        options.buffers = 8;
        options.masked_features = masked;
        set_ = ringpoll_create(&options);
        ASSERT_GE(set_, 0);
        layer.set = rp_set_of(set_);
        connect_pair(&a_, &b_);
        adopt(a_, b_, events);
    }

    void adopt(int a, int b, uint32_t events = EPOLLIN)
    {
        ringpoll_fd_opened(a, RINGPOLL_FD_TCP | RINGPOLL_FD_CONNECTED | RINGPOLL_FD_NONBLOCK |
                                  (declared_ ? RINGPOLL_FD_DECLARED : 0));
        struct epoll_event event = {};
        event.events = events;
        event.data.fd = a;
        ASSERT_EQ(ringpoll_ctl(set_, EPOLL_CTL_ADD, a, &event), 0);
        uint64_t before = stats().adopted;
        for (int i = 0; i < 8 && stats().adopted == before; i++) {
            ASSERT_EQ(write(b, "x", 1), 1);
            ASSERT_EQ(wait(1000), 1);
            char byte;
            long got = ringpoll_recv(a, &byte, 1, 0);
            ASSERT_EQ(got, 1);
            ASSERT_EQ(ringpoll_recv(a, &byte, 1, 0), -EAGAIN);
            wait(0);
        }
        ASSERT_EQ(stats().adopted, before + 1);
    }

    struct ringpoll_stats stats()
    {
        struct ringpoll_stats stats = {};
        stats.size = sizeof stats;
        EXPECT_EQ(ringpoll_get_stats(set_, &stats), 0);
        return stats;
    }

    int wait(int ms, uint32_t *ret_events = nullptr)
    {
        struct timespec time = {ms / 1000, ms % 1000 * 1000000};
        struct epoll_event event = {};
        int count = ringpoll_wait(set_, &event, 1, &time, nullptr);
        if (ret_events)
            *ret_events = count == 1 ? event.events : 0;
        return count;
    }

    long send(Lent &lent, unsigned pieces = 1)
    {
        std::vector<struct iovec> iov(pieces);
        size_t each = lent.bytes.size() / pieces;
        for (unsigned i = 0; i < pieces; i++)
            iov[i] = {lent.bytes.data() + i * each, i + 1 < pieces ? each : lent.bytes.size() - i * each};
        return ringpoll_try_sendv_zc(a_, iov.data(), (int)pieces, MSG_NOSIGNAL, release, &lent);
    }

    /* What the peer has, up to so many bytes, is text from `from` on. */
    size_t peer_reads(size_t from, size_t most = SIZE_MAX)
    {
        std::vector<char> bytes(1 << 16);
        size_t all = 0;
        while (all < most) {
            size_t left = most - all;
            ssize_t got = recv(b_, bytes.data(), left < bytes.size() ? left : bytes.size(), MSG_DONTWAIT);
            if (got <= 0)
                break;
            for (ssize_t i = 0; i < got; i++) {
                if (bytes[(size_t)i] != text(from + all + (size_t)i)) {
                    ADD_FAILURE() << "byte " << from + all + (size_t)i << " is not what was written";
                    return all;
                }
            }
            all += (size_t)got;
        }
        return all;
    }

    /* The same, of so many bytes, within seconds. */
    size_t peer_gets(size_t from, size_t length)
    {
        size_t all = 0;
        while (all < length && !HasFailure()) {
            struct pollfd look = {b_, POLLIN, 0};
            if (poll(&look, 1, 5000) != 1)
                break;
            size_t got = peer_reads(from + all, length - all);
            if (got == 0)
                break;
            all += got;
        }
        return all;
    }

    /* It is taken, has arrived, and the kernel's notification is kept back. */
    void send_and_keep(Lent &lent)
    {
        layer.keeps_notifications = true;
        ASSERT_EQ(send(lent), (long)lent.bytes.size());
        ASSERT_EQ(peer_gets(0, lent.bytes.size()), lent.bytes.size());
        for (int i = 0; i < 5000 && layer.kept.empty(); i++)
            wait(1);
        ASSERT_EQ(layer.kept.size(), 1u);
    }

    /* All that the kernel has let go of. */
    int reclaim(int ms)
    {
        struct timespec time = {ms / 1000, ms % 1000 * 1000000};
        return ringpoll_zc_reclaim(&time);
    }

    static constexpr size_t size_ = 65536;
    int set_ = -1, a_ = -1, b_ = -1;
    bool declared_ = false; /* what make() makes */
    struct rp_sys layered_;
};

/* ------------------------------------------------------------------ what it does */

TEST_F(ZeroCopy, BytesArriveInOrderAndMemoryIsReleasedOnce)
{
    std::vector<Lent> lent(40);
    size_t written = 0, read = 0, lent_bytes = 0;
    unsigned taken = 0;
    for (unsigned round = 0; round < 40; round++) {
        /* Some that are batched, as in a turn of several events, one that is not. */
        rp_set_of(set_)->turn_events = 3;
        for (unsigned i = 0; i < round % 4; i++) {
            std::string small(100 + 17 * round, ' ');
            for (size_t at = 0; at < small.size(); at++)
                small[at] = text(written + at);
            ASSERT_EQ(ringpoll_send(a_, small.data(), small.size(), 0), (long)small.size());
            written += small.size();
        }
        lent[round] = make_lent(written, size_ + round * 1000);
        long result = send(lent[round], 1 + round % 5);
        ASSERT_EQ(result, (long)lent[round].bytes.size()) << round;
        written += (size_t)result;
        lent_bytes += (size_t)result;
        taken++;
        read += peer_gets(read, written - read);
        ASSERT_EQ(read, written);
        EXPECT_EQ(reclaim(5000), 0); /* the next one may be made only when the kernel has told */
        EXPECT_EQ(lent[round].released, 1u);
    }
    for (Lent &one : lent)
        EXPECT_EQ(one.released, 1u);
    EXPECT_EQ(stats().sends_zc, taken);
    EXPECT_EQ(stats().sends_zc_copied, taken) << "loopback copies";
    EXPECT_EQ(layer.sends, taken);
    EXPECT_GT(layer.messages, 0u);
    EXPECT_EQ(rp_set_of(set_)->loans, 0u);
}

TEST_F(ZeroCopy, IsOffOnLoopback)
{
    rp_send_zc_trial = RP_SEND_ZC_AS_DUE;
    Lent lent = make_lent(0, size_);
    EXPECT_EQ(ringpoll_zc_least(a_), SIZE_MAX);
    EXPECT_EQ(send(lent), RINGPOLL_PASS);
    EXPECT_EQ(layer.sends, 0u);
    EXPECT_EQ(stats().sends_zc, 0u);
    EXPECT_EQ(lent.released, 0u);
}

TEST_F(ZeroCopy, IsOffBelowTheLeastSizeAndWithoutTheFeature)
{
    Lent small = make_lent(0, rp_send_zc_least - 1), lent = make_lent(0, size_);
    EXPECT_EQ(ringpoll_zc_least(a_), rp_send_zc_least);
    EXPECT_EQ(send(small), RINGPOLL_PASS);
    make(RINGPOLL_FEATURE_SEND_ZC);
    EXPECT_EQ(ringpoll_zc_least(a_), SIZE_MAX);
    EXPECT_EQ(send(lent), RINGPOLL_PASS);
    EXPECT_EQ(layer.sends, 0u);
}

TEST_F(ZeroCopy, IsOffForAnotherThreadAndForABlockingSocket)
{
    Lent lent = make_lent(0, size_);
    std::thread([&] { EXPECT_EQ(send(lent), RINGPOLL_PASS); }).join();
    ringpoll_fd_nonblock(a_, 0);
    EXPECT_EQ(send(lent), RINGPOLL_PASS);
    EXPECT_EQ(layer.sends, 0u);
}

TEST_F(ZeroCopy, AConnectionThatIsCopiedGoesBackToPlainSends)
{
    rp_send_zc_trial = RP_SEND_ZC_ANYWHERE;
    Lent first = make_lent(0, size_), second = make_lent(size_, size_);
    ASSERT_EQ(send(first), (long)size_);
    EXPECT_EQ(peer_gets(0, size_), size_);
    EXPECT_EQ(reclaim(5000), 0);
    EXPECT_EQ(first.released, 1u);
    EXPECT_EQ(ringpoll_zc_least(a_), SIZE_MAX);
    EXPECT_EQ(send(second), RINGPOLL_PASS);
    EXPECT_EQ(stats().sends_zc_copied, 1u);
}

TEST_F(ZeroCopy, OneIsMadeBeforeTheKernelsFirstWord)
{
    Lent first = make_lent(0, size_), second = make_lent(size_, size_);
    send_and_keep(first);
    EXPECT_EQ(send(second), RINGPOLL_PASS);
    deliver(rp_set_of(set_)->ring.fd);
    EXPECT_EQ(wait(0), 0);
    EXPECT_EQ(first.released, 1u);
    ASSERT_EQ(send(second), (long)size_);
    EXPECT_EQ(peer_gets(size_, size_), size_);
    EXPECT_EQ(reclaim(5000), 0);
}

TEST_F(ZeroCopy, AfterSomeConnectionsThatAreCopiedTheSetPauses)
{
    rp_send_zc_trial = RP_SEND_ZC_ANYWHERE;
    for (int i = 0; i < 4; i++) {
        if (i > 0) {
            ringpoll_close(a_);
            ringpoll_close(b_);
            connect_pair(&a_, &b_);
            adopt(a_, b_);
        }
        Lent lent = make_lent(0, size_);
        ASSERT_EQ(send(lent), (long)size_) << i;
        EXPECT_EQ(peer_gets(0, size_), size_);
        EXPECT_EQ(reclaim(5000), 0);
    }
    ringpoll_close(a_);
    ringpoll_close(b_);
    connect_pair(&a_, &b_);
    adopt(a_, b_);
    unsigned refused = 0;
    while (ringpoll_zc_least(a_) == SIZE_MAX && refused < 10000)
        refused++;
    EXPECT_EQ(refused, 256u);
    EXPECT_EQ(stats().sends_zc_copied, 4u);
}

/* ------------------------------------------------------------------ notifications */

TEST_F(ZeroCopy, MemoryIsReleasedInsideAWaitThatGoesOn)
{
    Lent lent = make_lent(0, size_);
    send_and_keep(lent);
    EXPECT_EQ(wait(0), 0);
    EXPECT_EQ(lent.released, 0u);
    int ring_fd = rp_set_of(set_)->ring.fd;
    std::thread other([&] {
        struct rp_set *set = rp_set_of(set_);
        for (bool inside = false; !inside; std::this_thread::yield()) {
            rp_set_lock(set);
            inside = set->owner_inside;
            rp_set_unlock(set);
        }
        deliver(ring_fd);
        while (__atomic_load_n(&lent.released, __ATOMIC_RELAXED) == 0)
            std::this_thread::yield();
        EXPECT_EQ(write(b_, "x", 1), 1);
    });
    EXPECT_EQ(wait(-1000), -EINVAL);
    struct epoll_event event;
    EXPECT_EQ(ringpoll_wait(set_, &event, 1, nullptr, nullptr), 1);
    other.join();
    EXPECT_EQ(lent.released, 1u);
    EXPECT_EQ(lent.by, std::this_thread::get_id());
}

TEST_F(ZeroCopy, MemoryIsReleasedInAPlainWaitOfAnotherSet)
{
    Lent lent = make_lent(0, size_);
    send_and_keep(lent);
    struct ringpoll_options options = {};
    options.size = sizeof options;
    options.flags = RINGPOLL_DECLARED | RINGPOLL_BATCH;
    int other = ringpoll_create(&options), fd = eventfd(0, EFD_NONBLOCK);
    ASSERT_GE(other, 0);
    struct epoll_event event = {};
    event.events = EPOLLIN;
    ASSERT_EQ(ringpoll_ctl(other, EPOLL_CTL_ADD, fd, &event), 0);
    struct timespec no_time = {};
    for (int i = 0; i < 3; i++)
        EXPECT_EQ(ringpoll_wait(other, &event, 1, &no_time, nullptr), 0);
    int ring_fd = rp_set_of(set_)->ring.fd;
    EXPECT_EQ(ringpoll_close(set_), 0);
    set_ = -1;
    EXPECT_EQ(ringpoll_wait(other, &event, 1, &no_time, nullptr), 0);
    EXPECT_EQ(lent.released, 0u);
    deliver(ring_fd);
    EXPECT_EQ(ringpoll_wait(other, &event, 1, &no_time, nullptr), 0);
    EXPECT_EQ(lent.released, 1u);
    ringpoll_close(fd);
    ringpoll_close(other);
}

TEST_F(ZeroCopy, MemoryIsHeldWhenTheFdIsClosed)
{
    Lent lent = make_lent(0, size_);
    send_and_keep(lent);
    EXPECT_EQ(ringpoll_close(a_), 0);
    a_ = -1;
    EXPECT_EQ(wait(0), 0);
    EXPECT_EQ(lent.released, 0u);
    deliver(rp_set_of(set_)->ring.fd);
    EXPECT_EQ(reclaim(5000), 0);
    EXPECT_EQ(lent.released, 1u);
}

TEST_F(ZeroCopy, MemoryIsHeldWhenTheWatchIsDeleted)
{
    Lent lent = make_lent(0, size_), next = make_lent(size_, size_);
    send_and_keep(lent);
    ASSERT_EQ(ringpoll_ctl(set_, EPOLL_CTL_DEL, a_, nullptr), 0);
    EXPECT_EQ(wait(0), 0);
    EXPECT_EQ(send(next), RINGPOLL_PASS) << "it is no set's";
    EXPECT_EQ(lent.released, 0u);
    deliver(rp_set_of(set_)->ring.fd);
    EXPECT_EQ(wait(0), 0);
    EXPECT_EQ(lent.released, 1u);
}

TEST_F(ZeroCopy, MemoryIsHeldWhenTheSetIsClosed)
{
    Lent lent = make_lent(0, size_);
    send_and_keep(lent);
    int ring_fd = rp_set_of(set_)->ring.fd;
    EXPECT_EQ(ringpoll_close(set_), 0);
    set_ = -1;
    EXPECT_EQ(reclaim(0), 1);
    EXPECT_EQ(lent.released, 0u);
    deliver(ring_fd);
    EXPECT_EQ(reclaim(5000), 0);
    EXPECT_EQ(lent.released, 1u);
    EXPECT_EQ(rp_loan_lingering_ops(), 0u) << "the ring waits for the next set";
}

TEST_F(ZeroCopy, MemoryIsHeldWhenTheSetGoesToKernelEpollAndReleasedInItsWaits)
{
    Lent lent = make_lent(0, size_), next = make_lent(size_, size_);
    send_and_keep(lent);
    int ring_fd = rp_set_of(set_)->ring.fd;
    EXPECT_EQ(ringpoll_demote(set_), 0);
    EXPECT_EQ(wait(0), 0);
    EXPECT_EQ(lent.released, 0u);
    EXPECT_EQ(send(next), RINGPOLL_PASS);
    deliver(ring_fd);
    EXPECT_EQ(wait(0), 0);
    EXPECT_EQ(lent.released, 1u);
    EXPECT_EQ(reclaim(0), 0);
}

TEST_F(ZeroCopy, MemoryIsHeldWhenADeclaredSetLeavesItsRingAndReleasedInItsWaits)
{
    declared_ = true;
    make();
    Lent lent = make_lent(0, size_);
    send_and_keep(lent);
    int ring_fd = rp_set_of(set_)->ring.fd, ends[2];
    struct epoll_event event = {};
    event.events = EPOLLIN;
    ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
    ASSERT_EQ(ringpoll_ctl(set_, EPOLL_CTL_ADD, ends[0], &event), 0);
    ASSERT_EQ(ringpoll_ctl(set_, EPOLL_CTL_ADD, ends[1], &event), 0); /* never told of, the other half of the majority */
    for (int turn = 0; turn < 10000 && stats().rings == 1; turn++) {
        char byte = 0;
        ASSERT_EQ(write(ends[1], &byte, 1), 1);
        ASSERT_EQ(wait(1000), 1);
        ASSERT_EQ(read(ends[0], &byte, 1), 1);
    }
    EXPECT_EQ(stats().rings, 0u);
    EXPECT_EQ(wait(0), 0);
    EXPECT_EQ(lent.released, 0u);
    deliver(ring_fd);
    EXPECT_EQ(wait(0), 0);
    EXPECT_EQ(lent.released, 1u);
    EXPECT_EQ(reclaim(0), 0);
    close(ends[0]);
    close(ends[1]);
}

TEST_F(ZeroCopy, AThreadThatEndsWaitsAMomentAndReleasesWhatComes)
{
    Lent lent = make_lent(0, size_);
    std::thread([&] {
        make();
        ASSERT_EQ(send(lent), (long)size_);
    }).join();
    EXPECT_EQ(lent.released, 1u);
    EXPECT_EQ(peer_gets(0, size_), size_);
}

TEST_F(ZeroCopy, AThreadThatEndsReleasesNothingThatTheKernelHas)
{
    Lent lent = make_lent(0, size_);
    std::thread([&] {
        make();
        send_and_keep(lent);
    }).join();
    EXPECT_EQ(lent.released, 0u);
}

TEST_F(ZeroCopy, AChildReleasesNothingAndTheParentOnce)
{
    Lent lent = make_lent(0, size_);
    send_and_keep(lent);
    ringpoll_fork_prepare();
    pid_t child = fork();
    if (child == 0) {
        ringpoll_fork_child();
        struct timespec short_time = {0, 10000000};
        struct epoll_event event;
        int left = ringpoll_zc_reclaim(&short_time);
        (void)ringpoll_wait(set_, &event, 1, &short_time, nullptr);
        _exit(left == 0 && lent.released == 0 && lent.bytes[0] == text(0) ? 0 : 1);
    }
    ringpoll_fork_parent();
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    EXPECT_EQ(lent.released, 0u);
    deliver(rp_set_of(set_)->ring.fd);
    EXPECT_EQ(reclaim(5000), 0);
    EXPECT_EQ(lent.released, 1u);
}

/* In the thread that sent, the kernel waits in execve() for the peer, deaf to SIGKILL (6.18). */
TEST_F(ZeroCopy, AnotherThreadMayExecWhileTheKernelHasTheMemory)
{
    Lent lent = make_lent(0, 300000);
    int much = 400000;
    ASSERT_EQ(setsockopt(a_, SOL_SOCKET, SO_SNDBUF, &much, sizeof much), 0);
    ringpoll_fork_prepare();
    pid_t child = fork();
    if (child == 0) {
        ringpoll_fork_child();
        close(b_);
        struct ringpoll_options options = {};
        options.size = sizeof options;
        options.flags = RINGPOLL_ADOPT | RINGPOLL_BATCH;
        set_ = ringpoll_create(&options);
        ringpoll_fd_opened(a_, RINGPOLL_FD_TCP | RINGPOLL_FD_CONNECTED | RINGPOLL_FD_NONBLOCK);
        struct epoll_event event = {};
        event.events = EPOLLIN;
        if (ringpoll_ctl(set_, EPOLL_CTL_ADD, a_, &event) != 0 || wait(0) != 0 || send(lent) <= 0 || reclaim(0) != 1)
            _exit(1);
        std::thread([] {
            ringpoll_exec_prepare();
            execl("/bin/sh", "sh", "-c", "exit 42", (char *)nullptr);
            _exit(2);
        }).join();
        _exit(3);
    }
    ringpoll_fork_parent();
    int ended = (int)syscall(SYS_pidfd_open, child, 0), status = -1;
    struct pollfd look = {ended, POLLIN, 0};
    EXPECT_EQ(poll(&look, 1, 10000), 1) << "it waits for us to read";
    close(ended);
    ringpoll_close(a_);
    a_ = -1;
    close(b_); /* should it wait */
    b_ = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 42);
}

TEST_F(ZeroCopy, ANotificationThatIsLostReleasesNothing)
{
    Lent lent = make_lent(0, size_);
    std::thread([&] { /* what it leaves behind ends with it */
        make();
        send_and_keep(lent);
        layer.kept.clear();
        layer.keeps_notifications = false;
        EXPECT_EQ(reclaim(20), 1);
        EXPECT_EQ(ringpoll_close(set_), 0);
        set_ = -1;
        EXPECT_EQ(reclaim(20), 1);
    }).join();
    EXPECT_EQ(lent.released, 0u);
}

/* ------------------------------------------------------------------ what goes wrong */

TEST_F(ZeroCopy, AShortOneGoesOnWhereItEndedWhenThereIsRoom)
{
    make(0, EPOLLIN | EPOLLOUT | EPOLLET);
    uint32_t events = 0;
    while (wait(0, &events) == 1)
        ;
    layer.edit = [](struct rp_sqe *sqe) { sqe->len = 5000; };
    Lent lent = make_lent(0, size_);
    ASSERT_EQ(send(lent), 5000);
    layer.edit = nullptr;
    EXPECT_EQ(wait(5000, &events), 1);
    EXPECT_TRUE(events & EPOLLOUT) << events;
    Lent rest = make_lent(5000, size_ - 5000);
    ASSERT_EQ(send(rest), (long)rest.bytes.size());
    EXPECT_EQ(peer_gets(0, size_), size_);
    EXPECT_EQ(reclaim(5000), 0);
    EXPECT_EQ(lent.released, 1u);
    EXPECT_EQ(rest.released, 1u);
}

TEST_F(ZeroCopy, AFullSocketRefusesAndTellsOfRoom)
{
    make(0, EPOLLIN | EPOLLOUT | EPOLLET);
    int small = 16384;
    setsockopt(a_, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    setsockopt(b_, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    std::vector<Lent> all(200);
    size_t written = 0;
    long result = 0;
    unsigned used = 0;
    for (; used < all.size(); used++) {
        all[used] = make_lent(written, size_);
        if ((result = send(all[used])) < (long)size_)
            break;
        written += (size_t)result;
        rp_fd_set_flags(rp_fd_peek(a_), RP_FD_ZC_GOOD, RP_FD_ZC_ASKED); /* the peer does not read, nor acknowledge */
    }
    ASSERT_LT(used, all.size());
    if (result > 0) {
        written += (size_t)result;
        all[++used] = make_lent(written, size_);
        EXPECT_EQ(send(all[used]), RINGPOLL_PASS) << "it is BLOCKED, which a plain write finds out";
    } else {
        EXPECT_EQ(result, -EAGAIN);
    }
    uint32_t events = 0;
    size_t read = peer_reads(0);
    for (int i = 0; i < 100 && !(events & EPOLLOUT); i++) {
        wait(50, &events);
        read += peer_reads(read);
    }
    EXPECT_TRUE(events & EPOLLOUT);
    for (int i = 0; i < 1000 && read < written; i++) {
        wait(1);
        read += peer_reads(read);
    }
    EXPECT_EQ(read, written);
    EXPECT_EQ(reclaim(5000), 0);
    unsigned released = 0;
    for (Lent &one : all) {
        EXPECT_LE(one.released, 1u);
        released += one.released;
    }
    EXPECT_EQ(released, stats().sends_zc);
}

TEST_F(ZeroCopy, WantOfMemoryMeansAPlainSendAndAPause)
{
    for (int error : {-ENOMEM, -ENOBUFS}) {
        make();
        layer.edit = [error](struct rp_sqe *sqe) { turn_into_nop(sqe, error); };
        Lent lent = make_lent(0, size_);
        EXPECT_EQ(send(lent), RINGPOLL_PASS);
        layer.edit = nullptr;
        EXPECT_EQ(ringpoll_zc_least(a_), SIZE_MAX);
        EXPECT_EQ(ringpoll_send(a_, lent.bytes.data(), size_, 0), (long)size_);
        EXPECT_EQ(peer_gets(0, size_), size_);
        EXPECT_EQ(reclaim(0), 0);
        EXPECT_EQ(lent.released, 0u);
    }
}

TEST_F(ZeroCopy, AKernelThatDoesNotKnowItIsAskedOnce)
{
    for (int error : {-EINVAL, -EOPNOTSUPP}) {
        make();
        layer.sends = 0;
        layer.edit = [error](struct rp_sqe *sqe) { turn_into_nop(sqe, error); };
        Lent lent = make_lent(0, size_);
        EXPECT_EQ(send(lent), RINGPOLL_PASS);
        EXPECT_EQ(send(lent), RINGPOLL_PASS);
        EXPECT_EQ(layer.sends, 1u);
        EXPECT_EQ(lent.released, 0u);
    }
}

TEST_F(ZeroCopy, AnErrorOfTheConnectionIsTheAnswer)
{
    struct linger at_once = {1, 0};
    setsockopt(b_, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    layer.edit = [](struct rp_sqe *sqe) { turn_into_nop(sqe, -ECONNRESET); };
    Lent lent = make_lent(0, size_);
    EXPECT_EQ(send(lent), -ECONNRESET);
    layer.edit = [](struct rp_sqe *sqe) { turn_into_nop(sqe, -EPIPE); };
    EXPECT_EQ(send(lent), RINGPOLL_PASS) << "a plain call knows whether to raise SIGPIPE";
    EXPECT_EQ(lent.released, 0u);
    EXPECT_EQ(reclaim(0), 0);
}

TEST_F(ZeroCopy, AResetReleasesTheMemory)
{
    Lent first = make_lent(0, size_), second = make_lent(size_, 4 << 20);
    ASSERT_EQ(send(first), (long)size_);
    EXPECT_EQ(reclaim(5000), 0);
    long result = send(second);
    ASSERT_GT(result, 0);
    struct linger at_once = {1, 0};
    setsockopt(b_, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(b_);
    b_ = -1;
    EXPECT_EQ(reclaim(5000), 0);
    EXPECT_EQ(second.released, 1u);
}

TEST_F(ZeroCopy, AnEnterThatTakesNothingMeansAPlainSend)
{
    layer.enter_error = -EAGAIN;
    Lent lent = make_lent(0, size_);
    EXPECT_EQ(send(lent), RINGPOLL_PASS);
    layer.enter_error = 0;
    EXPECT_EQ(ringpoll_send(a_, lent.bytes.data(), size_, 0), (long)size_);
    wait(0);
    EXPECT_EQ(peer_gets(0, size_), size_) << "once";
    EXPECT_EQ(reclaim(0), 0);
    EXPECT_EQ(lent.released, 0u);
}

TEST_F(ZeroCopy, ARingThatBreaksBeforeItTakesItMeansAPlainSend)
{
    layer.enter_error = -EIO;
    Lent lent = make_lent(0, size_);
    EXPECT_EQ(send(lent), RINGPOLL_PASS);
    EXPECT_EQ(ringpoll_send(a_, lent.bytes.data(), size_, 0), (long)size_);
    EXPECT_EQ(peer_gets(0, size_), size_) << "once";
    EXPECT_EQ(lent.released, 0u);
}

/* Nobody knows what the kernel took: the connection breaks, and the memory stays lent. */
TEST_F(ZeroCopy, AnAnswerThatIsLostBreaksTheConnectionAndHoldsTheMemory)
{
    layer.loses_first = true;
    layer.keeps_notifications = true;
    Lent lent = make_lent(0, size_);
    EXPECT_EQ(send(lent), (long)size_);
    layer.loses_first = false;
    EXPECT_EQ(lent.released, 0u);
    char byte = 'x';
    EXPECT_EQ(ringpoll_send(a_, &byte, 1, MSG_NOSIGNAL), -EIO);
    EXPECT_EQ(reclaim(10), 1);
    EXPECT_EQ(lent.released, 0u);
    deliver(rp_set_of(set_)->ring.fd);
    EXPECT_EQ(reclaim(5000), 0);
    EXPECT_EQ(lent.released, 1u);
}

TEST_F(ZeroCopy, WantOfMemoryInTheLibraryMeansAPlainSend)
{
    bool failed = true;
    for (unsigned n = 1; failed && n < 50; n++) {
        layer.allocation_failed = false;
        layer.fail_allocation = n;
        std::vector<Lent> lent(300);
        size_t written = 0, read = 0;
        unsigned taken = 0;
        for (Lent &one : lent) {
            one = make_lent(written, size_);
            long result = send(one);
            taken += result > 0;
            if (result == RINGPOLL_PASS) {
                result = ringpoll_send(a_, one.bytes.data(), one.bytes.size(), 0);
            }
            ASSERT_EQ(result, (long)size_);
            written += size_;
            read += peer_gets(read, written - read);
            ASSERT_EQ(read, written);
            EXPECT_EQ(reclaim(5000), 0);
        }
        layer.fail_allocation = 0;
        failed = layer.allocation_failed;
        EXPECT_EQ(reclaim(5000), 0);
        unsigned released = 0;
        for (Lent &one : lent)
            released += one.released;
        EXPECT_EQ(released, taken);
        make();
    }
    EXPECT_FALSE(failed);
}

/* ------------------------------------------------------- between network namespaces */

/* A thread in a network namespace of its own; the other end of its only link is another's.
 * Where that is not to be had (root, ip, veth): a reason. */
class Far : public ZeroCopy {
protected:
    static bool command(const std::string &line)
    {
        return system((line + " 2>/dev/null").c_str()) == 0;
    }

    static std::string place_of_this_thread()
    {
        return "/proc/" + std::to_string(getpid()) + "/task/" + std::to_string(gettid()) + "/ns/net";
    }

    /* Runs `near` in one and a listener, which hands its connections to b_, in the other. */
    void between_namespaces(const std::function<void()> &near)
    {
        std::string refused, place;
        int listener = -1;
        std::mutex lock;
        std::condition_variable changed;
        bool moved = false, ready = false;
        std::thread far([&] {
            bool own = unshare(CLONE_NEWNET) == 0;
            std::unique_lock<std::mutex> held(lock);
            place = own ? place_of_this_thread() : "none";
            if (!own)
                refused = std::string("unshare(CLONE_NEWNET): ") + strerror(errno);
            changed.notify_all();
            changed.wait(held, [&] { return moved; });
            if (refused.empty() && !command("ip addr add 10.78.0.2/24 dev v1 && ip link set v1 up && ip link set lo up"))
                refused = "ip addr add";
            if (refused.empty()) {
                struct sockaddr_in address = {};
                address.sin_family = AF_INET;
                address.sin_port = htons(7003);
                address.sin_addr.s_addr = htonl(0x0a4e0002u);
                listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
                if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 8) != 0)
                    refused = std::string("listen: ") + strerror(errno);
            }
            ready = true;
            changed.notify_all();
        });
        std::thread([&] {
            {
                std::unique_lock<std::mutex> held(lock);
                changed.wait(held, [&] { return !place.empty(); });
                if (refused.empty() && unshare(CLONE_NEWNET) != 0)
                    refused = std::string("unshare(CLONE_NEWNET): ") + strerror(errno);
                if (refused.empty() && !command("ip link add v0 type veth peer name v1 && ip link set v1 netns " + place +
                                                " && ip addr add 10.78.0.1/24 dev v0 && ip link set v0 up && ip link set lo up"))
                    refused = "no pair of veth devices";
                moved = true;
                changed.notify_all();
                changed.wait(held, [&] { return ready; });
            }
            if (refused.empty()) {
                listener_ = listener;
                near();
            }
        }).join();
        far.join();
        if (listener >= 0)
            close(listener);
        if (!refused.empty())
            GTEST_SKIP() << refused;
    }

    void connect_far()
    {
        for (int *fd : {&a_, &b_}) {
            if (*fd >= 0)
                ringpoll_close(*fd);
            *fd = -1;
        }
        struct sockaddr_in address = {};
        address.sin_family = AF_INET;
        address.sin_port = htons(7003);
        address.sin_addr.s_addr = htonl(0x0a4e0002u);
        a_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        ASSERT_EQ(connect(a_, (struct sockaddr *)&address, sizeof address), 0);
        fcntl(a_, F_SETFL, O_NONBLOCK);
        b_ = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
        ASSERT_GE(b_, 0);
        give_room(a_);
        adopt(a_, b_);
    }

    int listener_ = -1;
};

TEST_F(Far, AKernelThatCopiesIsAskedOncePerConnectionAndThenNotForAWhile)
{
    rp_send_zc_trial = RP_SEND_ZC_AS_DUE;
    std::vector<Lent> lent(5);
    between_namespaces([&] {
        make();
        for (unsigned i = 0; i < 4; i++) {
            connect_far();
            ASSERT_FALSE(HasFatalFailure());
            ASSERT_EQ(ringpoll_zc_least(a_), rp_send_zc_least);
            lent[i] = make_lent(0, size_);
            ASSERT_EQ(send(lent[i]), (long)size_);
            EXPECT_EQ(peer_gets(0, size_), size_);
            EXPECT_EQ(reclaim(5000), 0);
            EXPECT_EQ(lent[i].released, 1u);
            EXPECT_EQ(ringpoll_zc_least(a_), SIZE_MAX) << "it has been told";
            EXPECT_EQ(stats().sends_zc_copied, i + 1);
        }
        connect_far();
        ASSERT_FALSE(HasFatalFailure());
        lent[4] = make_lent(0, size_);
        EXPECT_EQ(send(lent[4]), RINGPOLL_PASS) << "four in a row were enough";
        ringpoll_close(set_);
        set_ = -1;
    });
}

/* An address of this machine's own that is not 127.0.0.1 is no other machine. */
TEST_F(Far, AnAddressOfOnesOwnIsLoopbackToo)
{
    rp_send_zc_trial = RP_SEND_ZC_AS_DUE;
    std::string refused;
    std::thread([&] {
        if (unshare(CLONE_NEWNET) != 0 || !command("ip link set lo up && ip addr add 10.79.0.1/32 dev lo")) {
            refused = "no network namespace";
            return;
        }
        make();
        for (int *fd : {&a_, &b_}) {
            ringpoll_close(*fd);
            *fd = -1;
        }
        struct sockaddr_in address = {};
        address.sin_family = AF_INET;
        address.sin_port = htons(7004);
        address.sin_addr.s_addr = htonl(0x0a4f0001u);
        int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        ASSERT_EQ(bind(listener, (struct sockaddr *)&address, sizeof address), 0);
        ASSERT_EQ(listen(listener, 1), 0);
        b_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        ASSERT_EQ(connect(b_, (struct sockaddr *)&address, sizeof address), 0);
        a_ = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
        close(listener);
        adopt(a_, b_);
        EXPECT_EQ(ringpoll_zc_least(a_), SIZE_MAX);
        ringpoll_close(set_);
        set_ = -1;
    }).join();
    if (!refused.empty())
        GTEST_SKIP() << refused;
}

TEST_F(Far, WhereNothingIsCopiedMemoryIsHeldUntilThePeerAcknowledges)
{
    rp_send_zc_trial = RP_SEND_ZC_AS_DUE;
    struct made_up_peer peer;
    bool made = false;
    std::vector<Lent> lent(8);
    std::thread([&] {
        made = made_up_connect(&peer, 1500) == 0;
        if (!made)
            return;
        make();
        ringpoll_close(a_);
        a_ = peer.fd;
        ringpoll_fd_opened(a_, RINGPOLL_FD_TCP | RINGPOLL_FD_CONNECTED | RINGPOLL_FD_NONBLOCK);
        struct epoll_event event = {};
        event.events = EPOLLIN;
        ASSERT_EQ(ringpoll_ctl(set_, EPOLL_CTL_ADD, a_, &event), 0);
        EXPECT_EQ(wait(0), 0);
        lent[0] = make_lent(0, size_);
        ASSERT_EQ(send(lent[0], 3), (long)size_);
        EXPECT_EQ(ringpoll_zc_least(a_), SIZE_MAX) << "before the kernel's first word";
        EXPECT_EQ(wait(0), 0);
        EXPECT_EQ(lent[0].released, 0u);
        ASSERT_EQ(made_up_acknowledge(&peer, size_), 0) << peer.refused;
        EXPECT_EQ(reclaim(5000), 0);
        EXPECT_EQ(lent[0].released, 1u);
        /* It does not copy: several at once from now on. */
        for (unsigned i = 1; i < 5; i++) {
            lent[i] = make_lent(0, size_);
            ASSERT_EQ(send(lent[i], i), (long)size_);
        }
        EXPECT_EQ(wait(0), 0);
        ASSERT_EQ(made_up_acknowledge(&peer, 2 * size_ + 1), 0);
        for (int i = 0; i < 5000 && lent[2].released == 0; i++)
            wait(1);
        EXPECT_EQ(lent[1].released, 1u);
        EXPECT_EQ(lent[2].released, 1u);
        EXPECT_EQ(lent[3].released, 0u) << "of which a part is yet to be acknowledged";
        EXPECT_EQ(stats().sends_zc, 5u);
        EXPECT_EQ(stats().sends_zc_copied, 0u);
        /* Fd, watch and set go, and the peer has not acknowledged. */
        EXPECT_EQ(ringpoll_close(a_), 0);
        a_ = -1;
        EXPECT_EQ(ringpoll_close(set_), 0);
        set_ = -1;
        EXPECT_EQ(reclaim(1), 2);
        EXPECT_EQ(lent[3].released + lent[4].released, 0u);
        ASSERT_EQ(made_up_acknowledge(&peer, 2 * size_ - 1), 0);
        EXPECT_EQ(reclaim(5000), 0);
        EXPECT_EQ(lent[3].released, 1u);
        EXPECT_EQ(lent[4].released, 1u);
        close(peer.tun);
    }).join();
    if (!made) {
        for (int fd : {peer.fd, peer.tun})
            if (fd >= 0)
                close(fd);
        GTEST_SKIP() << peer.refused;
    }
}

} // namespace
