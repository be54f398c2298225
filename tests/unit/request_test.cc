/* SPDX-License-Identifier: MIT
 *
 * File requests: on the real kernel, on rings that misbehave (short results, errors, no
 * memory, a full CQ, cancels that come late, a ring that breaks), and without a ring. The
 * bytes are the caller's: each test ends with memory that nobody writes to any more.
 */
#include <errno.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "nop.h"
#include "public_api.h"

extern "C" {
#include "set.h"
}

namespace {

const uint64_t mark = 0x7a11;

struct {
    std::function<void(struct rp_sqe *)> edit; /* of each before it is taken */
    std::function<bool(unsigned min_complete, int *ret_answer)> instead; /* of an enter */
    std::function<bool()> no_memory;
    struct rp_set *set;
} faults;

int watched_enter(int fd, unsigned to_submit, unsigned min_complete, unsigned flags, const void *arg, size_t size)
{
    int answer = 0;
    if (faults.instead && faults.instead(min_complete, &answer))
        return answer;
    if (faults.edit && faults.set) {
        struct rp_ring *ring = &faults.set->ring;
        uint32_t head = __atomic_load_n(ring->sq_head, __ATOMIC_ACQUIRE);
        for (unsigned i = 0; i < to_submit; i++)
            faults.edit(&ring->sqes[(head + i) & ring->sq_mask]);
    }
    return rp_sys_kernel.uring_enter(fd, to_submit, min_complete, flags, arg, size);
}

void *watched_pages(size_t length)
{
    return faults.no_memory && faults.no_memory() ? nullptr : rp_sys_kernel.pages(length);
}

char text(uint64_t at)
{
    return (char)('a' + at % 7919 % 26 + at / 7919 % 3);
}

class Requests : public testing::Test {
protected:
    void SetUp() override
    {
        table_ = rp_sys_kernel;
        table_.uring_enter = watched_enter;
        table_.pages = watched_pages;
        rp_sys = &table_;
        options_ = {};
        options_.size = sizeof options_;
        options_.flags = RINGPOLL_REQUIRE | RINGPOLL_CLOEXEC;
        int fd = ringpoll_create(&options_);
        if (fd < 0)
            GTEST_SKIP() << "no ring: errno " << -fd;
        ringpoll_close(fd);
        options_.flags = RINGPOLL_TRACKED | RINGPOLL_CLOEXEC;
        make_file();
        make_set();
    }
    void TearDown() override
    {
        faults = {};
        if (set_ >= 0)
            ringpoll_close(set_);
        if (file_ >= 0)
            close(file_);
        rp_sys = &rp_sys_kernel;
        patience_ = usual_patience_;
    }
    void make_set()
    {
        set_ = ringpoll_create(&options_);
        ASSERT_GE(set_, 0);
        faults.set = rp_set_of(set_);
    }
    void make_fifo(std::string *ret_name)
    {
        const char *where = getenv("TMPDIR");
        *ret_name = std::string(where ? where : "/tmp") + "/ringpoll-fifo-XXXXXX";
        close(mkstemp(ret_name->data()));
        unlink(ret_name->c_str());
        ASSERT_EQ(mkfifo(ret_name->c_str(), 0600), 0);
    }
    static struct ringpoll_request open_of(const std::string &name)
    {
        struct ringpoll_request request = {};
        request.size = sizeof request;
        request.operation = RINGPOLL_REQUEST_OPEN;
        request.path = name.c_str();
        request.flags = O_RDONLY | O_CLOEXEC;
        request.data.u64 = mark;
        return request;
    }
    void make_file()
    {
        const char *where = getenv("TMPDIR");
        std::string name = std::string(where ? where : ".") + "/ringpoll-request-XXXXXX";
        file_ = mkostemp(name.data(), O_CLOEXEC);
        ASSERT_GE(file_, 0);
        unlink(name.c_str());
        std::string bytes(1 << 20, '\0');
        for (size_t i = 0; i < bytes.size(); i++)
            bytes[i] = text(i);
        ASSERT_EQ(pwrite(file_, bytes.data(), bytes.size(), 0), (ssize_t)bytes.size());
    }
    int ask(uint32_t operation, void *user, const struct iovec *iov, uint32_t count, int64_t offset,
            uint64_t *ret_id = nullptr, int fd = -1)
    {
        struct ringpoll_request request = {};
        request.size = sizeof request;
        request.operation = operation;
        request.fd = fd < 0 ? file_ : fd;
        request.count = count;
        request.iov = iov;
        request.offset = offset;
        request.user = user;
        request.data.u64 = mark;
        return ringpoll_request_submit(set_, &request, ret_id);
    }
    int wait(int max = 8, int timeout_ms = -1)
    {
        struct timespec time = {timeout_ms / 1000, timeout_ms % 1000 * 1000000L};
        count_ = ringpoll_wait(set_, events_, max, timeout_ms < 0 ? nullptr : &time, nullptr);
        return count_;
    }
    bool told() const
    {
        int times = 0;
        for (int i = 0; i < count_; i++)
            times += events_[i].data.u64 == mark && events_[i].events == EPOLLIN;
        EXPECT_LE(times, 1);
        return times == 1;
    }
    /* Waits until so many results are there. */
    std::vector<struct ringpoll_completion> results(size_t wanted)
    {
        std::vector<struct ringpoll_completion> all;
        while (all.size() < wanted && wait() >= 0) {
            struct ringpoll_completion some[3];
            int count;
            bool any = false;
            while ((count = ringpoll_request_take(set_, some, 3)) > 0) {
                all.insert(all.end(), some, some + count);
                any = true;
            }
            EXPECT_EQ(any, told());
        }
        return all;
    }
    struct ringpoll_stats stats()
    {
        struct ringpoll_stats all = {};
        all.size = sizeof all;
        EXPECT_EQ(ringpoll_get_stats(set_, &all), 0);
        return all;
    }
    static bool is_text(const char *bytes, size_t length, uint64_t at)
    {
        for (size_t i = 0; i < length; i++)
            if (bytes[i] != text(at + i))
                return false;
        return true;
    }
    /* A set that has its ring already. */
    void run_in()
    {
        char byte;
        struct iovec iov = {&byte, 1};
        ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, nullptr, &iov, 1, 0), 0);
        ASSERT_EQ(results(1).size(), 1u);
        ASSERT_EQ(stats().engine, RINGPOLL_ENGINE_RING);
    }
    /* A read that stays in the kernel until the pipe has a byte, or is cancelled. */
    void ask_for_what_does_not_come(struct iovec *iov, uint64_t *ret_id = nullptr)
    {
        ASSERT_EQ(pipe2(pipe_, O_CLOEXEC), 0);
        ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, this, iov, 1, 0, ret_id, pipe_[0]), 0);
        wait(8, 0);
        ASSERT_FALSE(told());
    }
    void end_pipe()
    {
        close(pipe_[0]);
        close(pipe_[1]);
    }

    struct rp_sys table_;
    struct ringpoll_options options_;
    struct epoll_event events_[64];
    int set_ = -1, file_ = -1, count_ = 0, pipe_[2];
    uint64_t &patience_ = rp_request_patience_ns, usual_patience_ = patience_;
};

TEST_F(Requests, AFewCachedReadsAreMadeByTheWaitItself)
{
    char bytes[2][4096];
    struct iovec iov[2] = {{bytes[0], 4096}, {bytes[1], 4096}};
    run_in();
    uint64_t before = stats().requests_at_once;
    ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, &bytes[0], &iov[0], 1, 4096), 0);
    ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, &bytes[1], &iov[1], 1, 100), 0);
    EXPECT_EQ(ringpoll_request_take(set_, nullptr, 0), 0); /* nothing has begun */
    auto all = results(2);
    ASSERT_EQ(all.size(), 2u);
    EXPECT_EQ(all[0].user, &bytes[0]);
    EXPECT_EQ(all[0].result, 4096);
    EXPECT_EQ(all[1].result, 4096);
    EXPECT_TRUE(is_text(bytes[0], 4096, 4096));
    EXPECT_TRUE(is_text(bytes[1], 4096, 100));
    EXPECT_LE(stats().requests_at_once - before, 2u); /* where the file system can do that */
}

TEST_F(Requests, ManyGoOutWithOneEnterAndEachGetsItsOwn)
{
    std::vector<std::string> bytes(200, std::string(512, '\0'));
    std::vector<struct iovec> iov(200);
    run_in();
    uint64_t before = stats().sqes;
    for (unsigned i = 0; i < 200; i++) {
        iov[i] = {bytes[i].data(), 512};
        ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, &bytes[i], &iov[i], 1, i * 1000), 0);
    }
    auto all = results(200);
    ASSERT_EQ(all.size(), 200u);
    EXPECT_GE(stats().sqes - before, 200u);
    for (auto &one : all)
        EXPECT_EQ(one.result, 512);
    for (unsigned i = 0; i < 200; i++)
        EXPECT_TRUE(is_text(bytes[i].data(), 512, i * 1000)) << i;
}

TEST_F(Requests, MoreThanTheSubmissionQueueHolds)
{
    if (set_ >= 0)
        ringpoll_close(set_);
    options_.sq_entries = 8;
    options_.cq_entries = 8;
    make_set();
    std::vector<std::string> bytes(700, std::string(64, '\0'));
    std::vector<struct iovec> iov(700);
    for (unsigned i = 0; i < 700; i++) {
        iov[i] = {bytes[i].data(), 64};
        ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, &bytes[i], &iov[i], 1, i * 64), 0);
    }
    EXPECT_EQ(results(700).size(), 700u);
    for (unsigned i = 0; i < 700; i++)
        EXPECT_TRUE(is_text(bytes[i].data(), 64, i * 64)) << i;
}

TEST_F(Requests, ReadsEndAtTheFilesEnd)
{
    for (unsigned many : {1u, 20u}) {
        std::vector<std::string> bytes(many, std::string(4096, '\0'));
        std::vector<struct iovec> iov(many);
        for (unsigned i = 0; i < many; i++) {
            iov[i] = {bytes[i].data(), 4096};
            ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, nullptr, &iov[i], 1, (1 << 20) - 1000), 0);
        }
        for (auto &one : results(many))
            EXPECT_EQ(one.result, 1000);
        ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, nullptr, &iov[0], 1, 2 << 20), 0);
        for (auto &one : results(1))
            EXPECT_EQ(one.result, 0);
    }
}

TEST_F(Requests, AReadOfNothingIsDone)
{
    struct iovec iov = {nullptr, 0};
    ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, nullptr, &iov, 1, 0), 0);
    EXPECT_EQ(results(1).at(0).result, 0);
}

TEST_F(Requests, ReadsAtTheCurrentPositionFollowEachOther)
{
    std::vector<std::string> bytes(50, std::string(100, '\0'));
    std::vector<struct iovec> iov(50);
    lseek(file_, 5000, SEEK_SET);
    for (unsigned i = 0; i < 50; i++) {
        iov[i] = {bytes[i].data(), 100};
        ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, nullptr, &iov[i], 1, -1), 0);
    }
    EXPECT_EQ(results(50).size(), 50u);
    for (unsigned i = 0; i < 50; i++)
        EXPECT_TRUE(is_text(bytes[i].data(), 100, 5000 + i * 100)) << i;
    EXPECT_EQ(lseek(file_, 0, SEEK_CUR), 10000);
}

TEST_F(Requests, ReadsAtTheCurrentPositionThatAreNotCachedGoOneByOne)
{
    std::vector<std::string> bytes(8, std::string(20000, '\0'));
    std::vector<struct iovec> iov(8);
    fdatasync(file_);
    posix_fadvise(file_, 0, 0, POSIX_FADV_DONTNEED);
    lseek(file_, 0, SEEK_SET);
    for (unsigned i = 0; i < 8; i++) {
        iov[i] = {bytes[i].data(), 20000};
        ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, &bytes[i], &iov[i], 1, -1), 0);
    }
    auto all = results(8);
    ASSERT_EQ(all.size(), 8u);
    for (unsigned i = 0; i < 8; i++) {
        EXPECT_EQ(all[i].user, &bytes[i]);
        EXPECT_EQ(all[i].result, 20000);
        EXPECT_TRUE(is_text(bytes[i].data(), 20000, i * 20000)) << i;
    }
}

TEST_F(Requests, WhatIsNotCachedIsReadToo)
{
    std::vector<std::string> bytes(30, std::string(30000, '\0'));
    std::vector<struct iovec> iov(30);
    fdatasync(file_);
    posix_fadvise(file_, 0, 0, POSIX_FADV_DONTNEED);
    for (unsigned i = 0; i < 30; i++) {
        iov[i] = {bytes[i].data(), 30000};
        ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, nullptr, &iov[i], 1, (29 - i) * 30000), 0);
    }
    for (auto &one : results(30))
        EXPECT_EQ(one.result, 30000);
    for (unsigned i = 0; i < 30; i++)
        EXPECT_TRUE(is_text(bytes[i].data(), 30000, (29 - i) * 30000)) << i;
}

TEST_F(Requests, LargeOnesAreCopiedByAWorkerAndTheWaitSleepsMeanwhile)
{
    std::string bytes(1 << 20, '\0');
    struct iovec iov = {bytes.data(), bytes.size()};
    unsigned by_worker = 0;
    run_in();
    faults.edit = [&](struct rp_sqe *sqe) { by_worker += sqe->opcode == RP_IORING_OP_READ && (sqe->flags & RP_SQE_ASYNC); };
    ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, nullptr, &iov, 1, 0), 0);
    EXPECT_EQ(results(1).at(0).result, 1 << 20);
    EXPECT_EQ(by_worker, 1u);
    EXPECT_TRUE(is_text(bytes.data(), bytes.size(), 0));
}

TEST_F(Requests, OneWaitReadsNoMoreThanItsShareOfManyAndOthersAreHeardBetween)
{
    std::vector<std::string> bytes(100, std::string(65536, '\0'));
    std::vector<struct iovec> iov(100);
    int other = eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC);
    struct epoll_event event = {};
    event.events = EPOLLIN;
    event.data.u64 = 1;
    ASSERT_EQ(ringpoll_ctl(set_, EPOLL_CTL_ADD, other, &event), 0);
    for (unsigned i = 0; i < 100; i++) {
        iov[i] = {bytes[i].data(), 65536};
        ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, nullptr, &iov[i], 1, i % 15 * 65536), 0);
    }
    size_t have = 0;
    unsigned waits = 0;
    while (have < 100) {
        waits++;
        ASSERT_GE(wait(), 1);
        bool heard = false;
        for (int i = 0; i < count_; i++)
            heard = heard || events_[i].data.u64 == 1;
        EXPECT_TRUE(heard); /* level-triggered, and never read */
        struct ringpoll_completion some[200];
        int count = ringpoll_request_take(set_, some, 200);
        EXPECT_LE(count, 18);
        have += (size_t)count;
    }
    EXPECT_GE(waits, 6u);
    ringpoll_close(other);
}

TEST_F(Requests, SeveralPiecesAndWrites)
{
    char one[100], two[300];
    memset(one, '1', sizeof one);
    memset(two, '2', sizeof two);
    struct iovec iov[2] = {{one, sizeof one}, {two, sizeof two}};
    ASSERT_EQ(ask(RINGPOLL_REQUEST_WRITE, nullptr, iov, 2, 1000), 0);
    EXPECT_EQ(results(1).at(0).result, 400);
    memset(one, 0, sizeof one);
    memset(two, 0, sizeof two);
    ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, nullptr, iov, 2, 1000), 0);
    EXPECT_EQ(results(1).at(0).result, 400);
    EXPECT_EQ(std::string(one, sizeof one), std::string(100, '1'));
    EXPECT_EQ(std::string(two, sizeof two), std::string(300, '2'));
    EXPECT_EQ(ask(RINGPOLL_REQUEST_READ, nullptr, iov, 2, -1), -ENOTSUP);
}

TEST_F(Requests, OpenCloseSyncRenameAndUnlink)
{
    const char *where = getenv("TMPDIR");
    std::string name = std::string(where ? where : ".") + "/ringpoll-request-XXXXXX";
    int fd = mkostemp(name.data(), O_CLOEXEC);
    ASSERT_GE(fd, 0);
    close(fd);
    std::string second = name + ".2";
    struct ringpoll_request request = {};
    request.size = sizeof request;
    request.data.u64 = mark;
    auto answer = [&] {
        EXPECT_EQ(ringpoll_request_submit(set_, &request, nullptr), 0);
        auto all = results(1);
        return all.empty() ? -99 : all[0].result;
    };
    request.operation = RINGPOLL_REQUEST_RENAME;
    request.path = name.c_str();
    request.second_path = second.c_str();
    EXPECT_EQ(answer(), 0);
    EXPECT_EQ(answer(), -ENOENT);
    request.operation = RINGPOLL_REQUEST_OPEN;
    request.path = second.c_str();
    request.flags = O_RDWR | O_CLOEXEC;
    request.fd = (int)answer();
    ASSERT_GE(request.fd, 0);
    EXPECT_EQ(fcntl(request.fd, F_GETFD), FD_CLOEXEC);
    request.operation = RINGPOLL_REQUEST_FSYNC;
    request.flags = 0;
    EXPECT_EQ(answer(), 0);
    request.flags = 1;
    EXPECT_EQ(answer(), 0);
    request.flags = 2;
    EXPECT_EQ(ringpoll_request_submit(set_, &request, nullptr), -EINVAL);
    request.flags = 0;
    request.operation = RINGPOLL_REQUEST_CLOSE;
    EXPECT_EQ(answer(), 0);
    EXPECT_EQ(fcntl(request.fd, F_GETFD), -1);
    EXPECT_EQ(answer(), -EBADF);
    request.fd = set_;
    EXPECT_EQ(ringpoll_request_submit(set_, &request, nullptr), -ENOTSUP);
    request.operation = RINGPOLL_REQUEST_UNLINK;
    EXPECT_EQ(answer(), 0);
    EXPECT_EQ(answer(), -ENOENT);
}

/* A watched fd: as by ringpoll_close(), its peer hears of it. */
TEST_F(Requests, ACloseEndsTheWatchesOfTheFd)
{
    int ends[2];
    ASSERT_EQ(pipe2(ends, O_CLOEXEC | O_NONBLOCK), 0);
    ringpoll_fd_opened(ends[1], RINGPOLL_FD_PIPE | RINGPOLL_FD_NONBLOCK);
    struct epoll_event event = {};
    event.events = EPOLLOUT;
    event.data.u64 = 1;
    ASSERT_EQ(ringpoll_ctl(set_, EPOLL_CTL_ADD, ends[1], &event), 0);
    EXPECT_EQ(wait(), 1);
    struct ringpoll_request request = {};
    request.size = sizeof request;
    request.operation = RINGPOLL_REQUEST_CLOSE;
    request.fd = ends[1];
    request.data.u64 = mark;
    ASSERT_EQ(ringpoll_request_submit(set_, &request, nullptr), 0);
    EXPECT_EQ(results(1).at(0).result, 0);
    char byte;
    EXPECT_EQ(read(ends[0], &byte, 1), 0); /* the end */
    close(ends[0]);
}

TEST_F(Requests, AnOpenOfAFifoWaitsForItsOtherEnd)
{
    std::string name;
    make_fifo(&name);
    struct ringpoll_request request = open_of(name);
    ASSERT_EQ(ringpoll_request_submit(set_, &request, nullptr), 0);
    EXPECT_EQ(wait(8, 30), 0);
    int other = open(name.c_str(), O_WRONLY | O_CLOEXEC);
    ASSERT_GE(other, 0);
    int fd = (int)results(1).at(0).result;
    EXPECT_GE(fd, 0);
    EXPECT_EQ(fcntl(fd, F_GETFL) & O_NONBLOCK, 0);
    close(other);
    close(fd);
    /* And one that never comes is no obstacle to the end of the set. */
    ASSERT_EQ(ringpoll_request_submit(set_, &request, nullptr), 0);
    wait(8, 0);
    ringpoll_close(set_);
    set_ = -1;
    unlink(name.c_str());
}

TEST_F(Requests, ErrorsAreResults)
{
    char byte;
    struct iovec iov = {&byte, 1}, bad = {(void *)8, 4096};
    int directory = open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, nullptr, &iov, 1, 0, nullptr, directory), 0);
    EXPECT_EQ(results(1).at(0).result, -EISDIR);
    ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, nullptr, &iov, 1, 0, nullptr, 99999), 0);
    EXPECT_EQ(results(1).at(0).result, -EBADF);
    ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, nullptr, &bad, 1, 0), 0);
    EXPECT_EQ(results(1).at(0).result, -EFAULT);
    close(directory);
}

TEST_F(Requests, WhatIsAskedWronglyIsRefused)
{
    struct iovec iov = {nullptr, 0};
    struct ringpoll_request request = {};
    request.size = sizeof request;
    request.operation = RINGPOLL_REQUEST_READ;
    request.fd = file_;
    request.count = 1;
    request.iov = &iov;
    auto with = [&](std::function<void(struct ringpoll_request *)> change) {
        struct ringpoll_request wrong = request;
        change(&wrong);
        return ringpoll_request_submit(set_, &wrong, nullptr);
    };
    EXPECT_EQ(with([](auto *r) { r->size--; }), -EINVAL);
    EXPECT_EQ(with([](auto *r) { r->operation = 0; }), -EINVAL);
    EXPECT_EQ(with([](auto *r) { r->operation = 8; }), -EINVAL);
    EXPECT_EQ(with([](auto *r) { r->count = 0; }), -EINVAL);
    EXPECT_EQ(with([](auto *r) { r->count = 1025; }), -EINVAL);
    EXPECT_EQ(with([](auto *r) { r->offset = -2; }), -EINVAL);
    EXPECT_EQ(with([](auto *r) { r->reserved = 1; }), -EINVAL);
    EXPECT_EQ(ringpoll_request_submit(-1, &request, nullptr), -EBADF);
    EXPECT_EQ(ringpoll_request_submit(file_, &request, nullptr), -EINVAL);
    EXPECT_EQ(ringpoll_request_cancel(set_, 0, 2), -EINVAL);
    EXPECT_EQ(ringpoll_request_cancel(set_, 12345, 0), -ENOENT);
    EXPECT_EQ(ringpoll_request_take(file_, nullptr, 1), -EINVAL);
}

TEST_F(Requests, OneThatHasNotBegunIsCancelledAtOnceAndItsBytesStay)
{
    char bytes[100] = "mine", other[100];
    struct iovec iov = {bytes, sizeof bytes}, second = {other, sizeof other};
    uint64_t id = 0;
    ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, bytes, &iov, 1, 0, &id), 0);
    ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, other, &second, 1, 0), 0);
    EXPECT_EQ(ringpoll_request_cancel(set_, id, RINGPOLL_REQUEST_UNSTARTED), 0);
    EXPECT_EQ(ringpoll_request_cancel(set_, id, 0), -EBUSY);
    auto all = results(2);
    ASSERT_EQ(all.size(), 2u);
    EXPECT_EQ(all[0].user, bytes);
    EXPECT_EQ(all[0].result, -ECANCELED);
    EXPECT_EQ(all[1].result, 100);
    EXPECT_STREQ(bytes, "mine");
    EXPECT_EQ(ringpoll_request_cancel(set_, id, 0), -ENOENT);
}

TEST_F(Requests, OneThatTheKernelHasIsCancelledOrSaysThatItHasBegun)
{
    char byte = 'x';
    struct iovec iov = {&byte, 1};
    uint64_t id = 0;
    ask_for_what_does_not_come(&iov, &id);
    EXPECT_EQ(ringpoll_request_cancel(set_, id, RINGPOLL_REQUEST_UNSTARTED), -EBUSY);
    EXPECT_EQ(ringpoll_request_cancel(set_, id, 0), -EINPROGRESS);
    EXPECT_EQ(ringpoll_request_cancel(set_, id, 0), -EBUSY);
    auto all = results(1);
    EXPECT_EQ(all.at(0).result, -ECANCELED);
    EXPECT_EQ(all.at(0).user, this);
    end_pipe();
}

TEST_F(Requests, ACancelThatComesLateLeavesTheResult)
{
    char byte = 'x';
    struct iovec iov = {&byte, 1};
    uint64_t id = 0;
    ask_for_what_does_not_come(&iov, &id);
    faults.edit = [](struct rp_sqe *sqe) {
        if (sqe->opcode == RP_IORING_OP_ASYNC_CANCEL)
            turn_into_nop(sqe, -EALREADY);
    };
    EXPECT_EQ(ringpoll_request_cancel(set_, id, 0), -EINPROGRESS);
    EXPECT_EQ(wait(8, 0), 0);
    ASSERT_EQ(write(pipe_[1], "y", 1), 1);
    EXPECT_EQ(results(1).at(0).result, 1);
    EXPECT_EQ(byte, 'y');
    end_pipe();
}

TEST_F(Requests, AnEventOfAnFdAndTheResultsComeTogether)
{
    char byte;
    struct iovec iov = {&byte, 1};
    int other = eventfd(1, EFD_NONBLOCK | EFD_CLOEXEC);
    ringpoll_fd_opened(other, RINGPOLL_FD_EVENTFD | RINGPOLL_FD_NONBLOCK);
    struct epoll_event event = {};
    event.events = EPOLLIN;
    event.data.u64 = 1;
    ASSERT_EQ(ringpoll_ctl(set_, EPOLL_CTL_ADD, other, &event), 0);
    ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, nullptr, &iov, 1, 0), 0);
    EXPECT_EQ(wait(), 2);
    EXPECT_TRUE(told());
    EXPECT_EQ(wait(), 2); /* as long as nobody takes them */
    /* With room for one, each has its turn. */
    bool seen[2] = {false, false};
    for (int i = 0; i < 3; i++) {
        EXPECT_EQ(wait(1), 1);
        seen[told()] = true;
    }
    EXPECT_TRUE(seen[0] && seen[1]);
    struct ringpoll_completion one;
    EXPECT_EQ(ringpoll_request_take(set_, &one, 1), 1);
    EXPECT_EQ(wait(), 1);
    EXPECT_FALSE(told());
    ringpoll_close(other);
}

TEST_F(Requests, ASleepingWaitIsEndedByAResult)
{
    char byte = 0;
    struct iovec iov = {&byte, 1};
    ask_for_what_does_not_come(&iov);
    std::thread other([this] { EXPECT_EQ(write(pipe_[1], "z", 1), 1); });
    EXPECT_EQ(results(1).at(0).result, 1);
    EXPECT_EQ(byte, 'z');
    other.join();
    end_pipe();
}

/* ------------------------------------------------------------- without a ring */

TEST_F(Requests, ASetThatLeavesItsRingHasLetGoOfAllBytesAndTellsSo)
{
    char bytes[2][64] = {"mine", "too"};
    struct iovec iov[2] = {{bytes[0], 64}, {bytes[1], 64}};
    ask_for_what_does_not_come(&iov[0]);
    ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, nullptr, &iov[1], 1, 0), 0);
    EXPECT_EQ(ringpoll_demote(set_), 0);
    EXPECT_EQ(write(pipe_[1], "late", 4), 4); /* for nobody */
    struct pollfd look = {set_, POLLIN, 0};
    EXPECT_EQ(poll(&look, 1, 0), 1); /* whoever polls the identity hears of them */
    auto all = results(2);
    ASSERT_EQ(all.size(), 2u);
    EXPECT_EQ(all[0].result, -ENOTSUP);
    EXPECT_EQ(all[1].result, -ENOTSUP);
    EXPECT_EQ(poll(&look, 1, 0), 0);
    EXPECT_EQ(wait(8, 0), 0);
    EXPECT_STREQ(bytes[0], "mine");
    EXPECT_STREQ(bytes[1], "too");
    EXPECT_EQ(ask(RINGPOLL_REQUEST_READ, nullptr, &iov[0], 1, 0), -ENOTSUP);
    EXPECT_EQ(stats().ops_in_flight, 0u);
    end_pipe();
}

TEST_F(Requests, ASetThatIsClosedHasLetGoOfAllBytes)
{
    char byte = 'x';
    struct iovec iov = {&byte, 1};
    ask_for_what_does_not_come(&iov);
    ringpoll_close(set_);
    set_ = -1;
    EXPECT_EQ(write(pipe_[1], "y", 1), 1);
    char rest = 0;
    EXPECT_EQ(read(pipe_[0], &rest, 1), 1); /* it is still there */
    EXPECT_EQ(rest, 'y');
    EXPECT_EQ(byte, 'x');
    end_pipe();
}

TEST_F(Requests, AnotherThreadTakesNoneAndMayDemoteTheSetMeanwhile)
{
    char byte = 'x';
    struct iovec iov = {&byte, 1};
    ask_for_what_does_not_come(&iov);
    std::thread other([&] {
        EXPECT_EQ(ask(RINGPOLL_REQUEST_READ, nullptr, &iov, 1, 0), -ENOTSUP);
        EXPECT_EQ(ringpoll_demote(set_), 0);
    });
    EXPECT_EQ(results(1).at(0).result, -ENOTSUP);
    other.join();
    EXPECT_EQ(stats().engine, RINGPOLL_ENGINE_KERNEL);
    end_pipe();
}

TEST_F(Requests, WithoutARingNothingIsTakenOrTheFirstWaitSaysSo)
{
    for (const char *mask : {"no-uring", "as-5.19", "as-5.10"}) {
        ringpoll_close(set_);
        ASSERT_EQ(ringpoll_mask_parse(mask, &options_.masked_features, nullptr, nullptr), 0);
        make_set();
        char byte = 'x';
        struct iovec iov = {&byte, 1};
        int error = ask(RINGPOLL_REQUEST_READ, nullptr, &iov, 1, 0); /* some is known when the set is made */
        EXPECT_TRUE(error == 0 || error == -ENOTSUP) << error;
        if (error == 0) {
            EXPECT_EQ(results(1).at(0).result, -ENOTSUP) << mask;
        }
        EXPECT_EQ(ask(RINGPOLL_REQUEST_READ, nullptr, &iov, 1, 0), -ENOTSUP) << mask;
        EXPECT_EQ(byte, 'x');
    }
}

TEST_F(Requests, WhenTheRingIsRefusedTheFirstWaitSaysSo)
{
    ringpoll_close(set_);
    options_.sq_entries = 16; /* of which none is kept */
    make_set();
    table_.uring_setup = [](unsigned, struct rp_params *) { return -ENFILE; };
    char byte = 'x';
    struct iovec iov = {&byte, 1};
    ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, nullptr, &iov, 1, 0), 0);
    EXPECT_EQ(results(1).at(0).result, -ENOTSUP);
    EXPECT_EQ(ask(RINGPOLL_REQUEST_READ, nullptr, &iov, 1, 0), -ENOTSUP);
    EXPECT_EQ(byte, 'x');
}

TEST_F(Requests, AnOldKernelsRingTakesNone)
{
    ringpoll_close(set_);
    options_.flags |= RINGPOLL_ANY_RING;
    ASSERT_EQ(ringpoll_mask_parse("as-5.13", &options_.masked_features, nullptr, nullptr), 0);
    make_set();
    char byte = 'x';
    struct iovec iov = {&byte, 1};
    ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, nullptr, &iov, 1, 0), 0);
    EXPECT_EQ(results(1).at(0).result, -ENOTSUP);
    EXPECT_EQ(ask(RINGPOLL_REQUEST_READ, nullptr, &iov, 1, 0), -ENOTSUP);
}

TEST_F(Requests, AChildGetsNothingOfItsParentsButAWord)
{
    /* Shared with the child: what the kernel does with the parent's bytes shows in both. */
    char *shared = (char *)mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    ASSERT_NE(shared, MAP_FAILED);
    struct iovec iov = {shared, 1};
    ask_for_what_does_not_come(&iov);
    ringpoll_fork_prepare();
    pid_t child = fork();
    if (child == 0) {
        ringpoll_fork_child();
        struct ringpoll_completion one = {};
        bool good = wait(8, 0) == 1 && told() && ringpoll_request_take(set_, &one, 1) == 1 &&
                    one.result == -ECANCELED && one.user == this &&
                    ask(RINGPOLL_REQUEST_READ, nullptr, &iov, 1, 0) == -ENOTSUP && wait(8, 0) == 0;
        _exit(good ? 0 : 1);
    }
    ringpoll_fork_parent();
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    ASSERT_EQ(write(pipe_[1], "p", 1), 1);
    EXPECT_EQ(results(1).at(0).result, 1);
    EXPECT_EQ(shared[0], 'p');
    end_pipe();
    munmap(shared, 4096);
}

/* ------------------------------------------------------ a kernel that misbehaves */

TEST_F(Requests, ShortResultsAndErrorsArriveAsTheyCame)
{
    std::vector<std::string> bytes(20, std::string(100, '\0'));
    std::vector<struct iovec> iov(20);
    std::map<void *, int64_t> expected;
    static const int answers[] = {37, -EIO, -ENOMEM, -EINTR, -EAGAIN, -ECANCELED, 0};
    unsigned turn = 0;
    run_in();
    faults.edit = [&](struct rp_sqe *sqe) {
        if (sqe->opcode != RP_IORING_OP_READ)
            return;
        int answer = answers[turn++ % 7];
        auto *request = (struct rp_request *)rp_op_find(&faults.set->ops, sqe->user_data)->owner;
        expected[request->user] = answer == -ECANCELED ? -ENOTSUP : answer;
        turn_into_nop(sqe, answer);
    };
    for (unsigned i = 0; i < 20; i++) {
        iov[i] = {bytes[i].data(), 100};
        ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, &bytes[i], &iov[i], 1, 0), 0);
    }
    auto all = results(20);
    ASSERT_EQ(all.size(), 20u);
    for (auto &one : all)
        EXPECT_EQ(one.result, expected[one.user]);
}

TEST_F(Requests, WhereNoMemoryIsNothingIsLost)
{
    /* The n-th allocation fails, until none does. */
    for (unsigned n = 1;; n++) {
        ringpoll_close(set_);
        make_set();
        unsigned left = n;
        bool failed = false;
        faults.no_memory = [&] { return left > 0 && --left == 0 && (failed = true); };
        char bytes[300];
        struct iovec iov[300];
        unsigned taken = 0;
        for (unsigned i = 0; i < 300; i++) {
            iov[i] = {&bytes[i], 1};
            int error = ask(RINGPOLL_REQUEST_READ, nullptr, &iov[i], 1, i);
            ASSERT_TRUE(error == 0 || error == -ENOTSUP) << error;
            taken += error == 0;
        }
        unsigned done = 0;
        while (done < taken && wait() >= 0) {
            struct ringpoll_completion one;
            while (ringpoll_request_take(set_, &one, 1) == 1) {
                EXPECT_TRUE(one.result == 1 || one.result == -ENOTSUP) << one.result;
                done++;
            }
        }
        EXPECT_EQ(done, taken);
        faults.no_memory = nullptr;
        if (!failed) {
            EXPECT_GT(n, 2u);
            break;
        }
        ASSERT_LT(n, 100u);
    }
}

TEST_F(Requests, ARingThatBreaksGivesAnswersToAll)
{
    char bytes[20][100];
    struct iovec iov[20];
    run_in();
    for (unsigned i = 0; i < 20; i++) {
        iov[i] = {bytes[i], 100};
        ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, nullptr, &iov[i], 1, 0), 0);
    }
    faults.instead = [](unsigned, int *ret_answer) {
        *ret_answer = -EPERM;
        return true;
    };
    auto all = results(20);
    ASSERT_EQ(all.size(), 20u);
    for (auto &one : all)
        EXPECT_TRUE(one.result == -ENOTSUP || one.result == -EIO) << one.result;
    EXPECT_EQ(stats().engine, RINGPOLL_ENGINE_KERNEL);
}

TEST_F(Requests, ALostCompletionEndsTheRingAndNoRequestIsLeftWithoutAnAnswer)
{
    char byte = 'x';
    struct iovec iov = {&byte, 1};
    ask_for_what_does_not_come(&iov);
    bool said = false;
    faults.instead = [&](unsigned, int *ret_answer) {
        *ret_answer = -EBADR;
        return !said && (said = true);
    };
    EXPECT_EQ(results(1).at(0).result, -ENOTSUP);
    EXPECT_EQ(stats().engine, RINGPOLL_ENGINE_KERNEL);
    end_pipe();
}

/* The kernel knows nothing of it, and its word on the cancel stays in the CQ: a wait for more
 * is not told that the time is over. */
TEST_F(Requests, ALostCompletionThatNeverComesIsNotWaitedForForEver)
{
    char byte = 'x';
    struct iovec iov = {&byte, 1};
    run_in();
    patience_ = 20000000;
    faults.edit = [](struct rp_sqe *sqe) {
        if (sqe->opcode == RP_IORING_OP_READ)
            sqe->user_data = RP_OP_NONE;
    };
    ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, nullptr, &iov, 1, 0, nullptr, file_), 0);
    for (int i = 0; i < 8; i++) /* more than are tried at once */
        ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, nullptr, &iov, 1, 0), 0);
    EXPECT_EQ(wait(8, 0), 0);
    bool said = false;
    faults.instead = [&](unsigned, int *ret_answer) {
        *ret_answer = -EBADR;
        return !said && (said = true);
    };
    for (auto &one : results(9))
        EXPECT_EQ(one.result, -EIO);
    EXPECT_EQ(stats().engine, RINGPOLL_ENGINE_KERNEL);
}

TEST_F(Requests, NoOtherSetGetsARingThatStillHasARequest)
{
    char byte = 'x', bytes[8];
    struct iovec iov = {&byte, 1}, second = {bytes, sizeof bytes};
    run_in();
    ask_for_what_does_not_come(&iov);
    patience_ = 20000000;
    faults.edit = [](struct rp_sqe *sqe) {
        if (sqe->opcode == RP_IORING_OP_ASYNC_CANCEL && (uint8_t)sqe->addr == RP_OP_REQUEST)
            turn_into_nop(sqe, -ENOENT);
    };
    bool said = false;
    faults.instead = [&](unsigned, int *ret_answer) {
        *ret_answer = -EBADR;
        return !said && (said = true);
    };
    EXPECT_EQ(results(1).at(0).result, -EIO);
    faults = {};
    int first = set_, first_pipe[2] = {pipe_[0], pipe_[1]};
    make_set();
    run_in();
    ask_for_what_does_not_come(&second);
    ASSERT_EQ(write(first_pipe[1], "x", 1), 1);
    EXPECT_EQ(wait(8, 0), 0);
    ASSERT_EQ(write(pipe_[1], "second", 6), 6);
    EXPECT_EQ(results(1).at(0).result, 6);
    EXPECT_EQ(std::string(bytes, 6), "second");
    end_pipe();
    close(first_pipe[0]);
    close(first_pipe[1]);
    ringpoll_close(first);
}

TEST_F(Requests, WhereThereIsNoMemoryForAWhileTheRingIsNotGivenUpBeforeItsRequests)
{
    char byte = 'x';
    struct iovec iov = {&byte, 1};
    run_in();
    ask_for_what_does_not_come(&iov);
    unsigned left = 0;
    bool begun = false;
    faults.instead = [&](unsigned, int *ret_answer) {
        struct rp_requests *all = &faults.set->requested;
        if (!begun && all->count[RP_REQUEST_CANCELING] > 0) {
            begun = true;
            left = 300;
        }
        *ret_answer = -EAGAIN;
        return left > 0 && left-- > 0;
    };
    EXPECT_EQ(ringpoll_demote(set_), 0);
    EXPECT_TRUE(begun);
    EXPECT_EQ(results(1).at(0).result, -ENOTSUP);
    end_pipe();
}

TEST_F(Requests, ALostCompletionIsNotForgottenOverWhatComesAfterIt)
{
    char byte = 'x', other = 'o';
    struct iovec iov = {&byte, 1}, second = {&other, 1};
    uint64_t id = 0;
    run_in();
    ask_for_what_does_not_come(&iov);
    rp_set_lock(faults.set);
    rp_request_lost_one(faults.set); /* as the last enter of a turn tells it */
    rp_set_unlock(faults.set);
    ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, &other, &second, 1, 0, &id), 0);
    EXPECT_EQ(ringpoll_request_cancel(set_, id, 0), 0);
    auto all = results(2);
    ASSERT_EQ(all.size(), 2u);
    EXPECT_EQ(all[0].user, &other);
    EXPECT_EQ(all[0].result, -ECANCELED);
    EXPECT_EQ(all[1].result, -ENOTSUP);
    EXPECT_EQ(stats().engine, RINGPOLL_ENGINE_KERNEL);
    end_pipe();
}

/* -------------------------------------------------- what waits for another one */

TEST_F(Requests, AnOuterLoopSleepsWhileOneWaitsForAnotherAtTheCurrentPosition)
{
    char bytes[2] = {'x', 'x'};
    struct iovec iov[2] = {{&bytes[0], 1}, {&bytes[1], 1}};
    run_in();
    ASSERT_EQ(pipe2(pipe_, O_CLOEXEC), 0);
    for (unsigned i = 0; i < 2; i++)
        ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, &bytes[i], &iov[i], 1, -1, nullptr, pipe_[0]), 0);
    int fd = -EAGAIN;
    for (unsigned turn = 0; turn < 50 && fd == -EAGAIN; turn++) {
        EXPECT_EQ(wait(8, 0), 0);
        fd = ringpoll_sleep_fd(set_, 0);
    }
    ASSERT_GE(fd, 0);
    for (unsigned i = 0; i < 2; i++) {
        EXPECT_EQ(faults.set->requested.count[RP_REQUEST_QUEUED], 1 - i);
        ASSERT_EQ(write(pipe_[1], "ab" + i, 1), 1);
        struct pollfd look = {fd, POLLIN, 0};
        EXPECT_EQ(poll(&look, 1, 10000), 1);
        auto all = results(1);
        ASSERT_EQ(all.size(), 1u);
        EXPECT_EQ(all[0].user, &bytes[i]);
        EXPECT_EQ(all[0].result, 1);
        fd = -EAGAIN;
        for (unsigned turn = 0; turn < 50 && fd == -EAGAIN; turn++) {
            EXPECT_EQ(wait(8, 0), 0);
            fd = ringpoll_sleep_fd(set_, 1);
        }
        ASSERT_GE(fd, 0);
    }
    EXPECT_EQ(std::string(bytes, 2), "ab");
    end_pipe();
}

TEST_F(Requests, AnotherFilesCurrentPositionIsNotWaitedForButTheSameFilesIs)
{
    char byte = 'x', written[] = "written", more[] = "more";
    struct iovec iov = {&byte, 1}, first = {written, 7}, second = {more, 4};
    run_in();
    ASSERT_EQ(pipe2(pipe_, O_CLOEXEC), 0);
    ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, this, &iov, 1, -1, nullptr, pipe_[0]), 0);
    wait(8, 0);
    ASSERT_EQ(faults.set->requested.count[RP_REQUEST_INFLIGHT], 1u);
    int same = fcntl(file_, F_DUPFD_CLOEXEC, 0);
    ASSERT_GE(same, 0);
    lseek(file_, 100, SEEK_SET);
    unsigned most = 0;
    faults.edit = [&](struct rp_sqe *sqe) {
        if (sqe->opcode == RP_IORING_OP_WRITE)
            sqe->flags |= RP_SQE_ASYNC;
        unsigned at_once = 0;
        for (struct rp_request *other = faults.set->requested.at_position; other; other = other->next_at_position)
            at_once += other->operation == RINGPOLL_REQUEST_WRITE;
        most = std::max(most, at_once);
    };
    ASSERT_EQ(ask(RINGPOLL_REQUEST_WRITE, written, &first, 1, -1), 0);
    ASSERT_EQ(ask(RINGPOLL_REQUEST_WRITE, more, &second, 1, -1, nullptr, same), 0);
    auto all = results(2);
    ASSERT_EQ(all.size(), 2u);
    EXPECT_EQ(all[0].user, written);
    EXPECT_EQ(all[0].result, 7);
    EXPECT_EQ(all[1].result, 4);
    EXPECT_EQ(most, 1u);
    char is[11];
    ASSERT_EQ(pread(file_, is, 11, 100), 11);
    EXPECT_EQ(std::string(is, 11), "writtenmore");
    ASSERT_EQ(write(pipe_[1], "p", 1), 1);
    EXPECT_EQ(results(1).at(0).user, this);
    close(same);
    end_pipe();
}

/* A small one that waits for its share of a turn is before a large one. */
TEST_F(Requests, NoneIsOvertakenAtTheCurrentPosition)
{
    std::string small(65536, '\0'), large(200000, '\0');
    struct iovec iov[2] = {{small.data(), small.size()}, {large.data(), large.size()}};
    std::vector<std::string> bytes(16, std::string(65536, '\0'));
    std::vector<struct iovec> others(16);
    run_in();
    lseek(file_, 0, SEEK_SET);
    for (unsigned i = 0; i < 16; i++) {
        others[i] = {bytes[i].data(), bytes[i].size()};
        ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, nullptr, &others[i], 1, 0), 0);
    }
    for (unsigned i = 0; i < 2; i++)
        ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, nullptr, &iov[i], 1, -1), 0);
    EXPECT_EQ(results(18).size(), 18u);
    EXPECT_TRUE(is_text(small.data(), small.size(), 0));
    EXPECT_TRUE(is_text(large.data(), large.size(), 65536));
}

TEST_F(Requests, ThoseThatAreBeyondATurnsShareBeginThoughTheOthersDoNotEnd)
{
    std::vector<std::string> bytes(16, std::string(65536, '\0'));
    std::vector<struct iovec> iov(16);
    char small[100];
    struct iovec last = {small, sizeof small};
    int pipes[16][2];
    run_in();
    for (unsigned i = 0; i < 16; i++) {
        ASSERT_EQ(pipe2(pipes[i], O_CLOEXEC), 0);
        iov[i] = {bytes[i].data(), bytes[i].size()};
        ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, nullptr, &iov[i], 1, 0, nullptr, pipes[i][0]), 0);
    }
    ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, small, &last, 1, 300), 0);
    auto all = results(1);
    ASSERT_EQ(all.size(), 1u);
    EXPECT_EQ(all[0].user, small);
    EXPECT_EQ(all[0].result, 100);
    EXPECT_TRUE(is_text(small, sizeof small, 300));
    ringpoll_close(set_);
    set_ = -1;
    for (auto &ends : pipes) {
        close(ends[0]);
        close(ends[1]);
    }
}

TEST_F(Requests, APipesReadIsDoneWithWhatIsThere)
{
    char bytes[100];
    struct iovec iov = {bytes, sizeof bytes};
    run_in();
    ASSERT_EQ(pipe2(pipe_, O_CLOEXEC), 0);
    for (unsigned i = 0; i < 3; i++) {
        ASSERT_EQ(write(pipe_[1], "ten bytes.", 10), 10);
        ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, nullptr, &iov, 1, -1, nullptr, pipe_[0]), 0);
        auto all = results(1);
        ASSERT_EQ(all.size(), 1u);
        EXPECT_EQ(all[0].result, 10);
        EXPECT_EQ(std::string(bytes, 10), "ten bytes.");
    }
    end_pipe();
}

TEST_F(Requests, APacketOfAPipeIsOneRead)
{
    char bytes[2][100];
    struct iovec iov[2] = {{bytes[0], 100}, {bytes[1], 100}};
    run_in();
    ASSERT_EQ(pipe2(pipe_, O_CLOEXEC | O_DIRECT), 0);
    ASSERT_EQ(write(pipe_[1], "first", 5), 5);
    ASSERT_EQ(write(pipe_[1], "next", 4), 4);
    for (unsigned i = 0; i < 2; i++)
        ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, bytes[i], &iov[i], 1, -1, nullptr, pipe_[0]), 0);
    auto all = results(2);
    ASSERT_EQ(all.size(), 2u);
    EXPECT_EQ(all[0].result, 5);
    EXPECT_EQ(all[1].result, 4);
    end_pipe();
}

/* A part was cached, and the SQ has no room for the rest yet. */
TEST_F(Requests, WhatWasReadAtTheCurrentPositionIsToldWhateverComesThen)
{
    char bytes[100];
    struct iovec iov = {bytes, sizeof bytes};
    auto part_of = [&](int64_t offset, uint64_t *ret_id) {
        ASSERT_EQ(ask(RINGPOLL_REQUEST_READ, nullptr, &iov, 1, offset, ret_id), 0);
        struct rp_request *request = faults.set->requested.last[RP_REQUEST_QUEUED];
        request->had = (uint64_t)pread(file_, bytes, 10, 0);
        if (offset < 0)
            lseek(file_, 10, SEEK_SET);
    };
    uint64_t id = 0;
    run_in();
    part_of(-1, &id);
    EXPECT_EQ(ringpoll_request_cancel(set_, id, 0), -EBUSY);
    EXPECT_EQ(results(1).at(0).result, 10);
    part_of(-1, &id);
    EXPECT_EQ(ringpoll_request_cancel(set_, id, RINGPOLL_REQUEST_UNSTARTED), -EBUSY);
    EXPECT_EQ(results(1).at(0).result, 100);
    EXPECT_TRUE(is_text(bytes, 100, 0));
    part_of(0, &id);
    EXPECT_EQ(ringpoll_request_cancel(set_, id, RINGPOLL_REQUEST_UNSTARTED), 0);
    EXPECT_EQ(results(1).at(0).result, -ECANCELED);
    part_of(-1, &id);
    part_of(0, &id);
    EXPECT_EQ(ringpoll_demote(set_), 0);
    auto all = results(2);
    ASSERT_EQ(all.size(), 2u);
    EXPECT_EQ(all[0].result, 10);
    EXPECT_EQ(all[1].result, -ENOTSUP);
}

TEST_F(Requests, AnOpenThatWaitsIsCancelled)
{
    std::string name;
    make_fifo(&name);
    struct ringpoll_request request = open_of(name);
    uint64_t id = 0;
    run_in();
    ASSERT_EQ(ringpoll_request_submit(set_, &request, &id), 0);
    EXPECT_EQ(wait(8, 30), 0); /* whether a worker has begun makes no difference */
    EXPECT_EQ(ringpoll_request_cancel(set_, id, 0), -EINPROGRESS);
    EXPECT_EQ(results(1).at(0).result, -ECANCELED);
    ASSERT_EQ(ringpoll_request_submit(set_, &request, &id), 0);
    EXPECT_EQ(wait(8, 30), 0);
    EXPECT_EQ(ringpoll_demote(set_), 0);
    EXPECT_EQ(results(1).at(0).result, -ENOTSUP);
    unlink(name.c_str());
}

/* A cancelled worker's word, given in its name. */
TEST_F(Requests, AnInterruptedWorkersWordIsThatOfACancel)
{
    static const int answers[] = {-EINTR, -512, -513, -514, -516, -ECANCELED, -EIO};
    char byte = 'x';
    struct iovec iov = {&byte, 1};
    run_in();
    for (int answer : answers)
        for (bool closes : {false, true}) {
            uint64_t id = 0;
            ask_for_what_does_not_come(&iov, &id);
            rp_set_lock(faults.set);
            struct rp_request *request = faults.set->requested.first[RP_REQUEST_INFLIGHT];
            request->operation = closes ? RINGPOLL_REQUEST_CLOSE : request->operation;
            rp_set_unlock(faults.set);
            EXPECT_EQ(ringpoll_request_cancel(set_, id, 0), -EINPROGRESS);
            struct rp_op *op = request->op;
            uint64_t user_data = rp_op_user_data(&faults.set->ops, op);
            faults.edit = [&](struct rp_sqe *sqe) {
                if (sqe->opcode == RP_IORING_OP_ASYNC_CANCEL) {
                    turn_into_nop(sqe, answer); /* in the request's name, which itself stays */
                    sqe->user_data = user_data;
                }
            };
            int64_t result = results(1).at(0).result;
            faults.edit = nullptr;
            if (answer == -EIO || answer == -ECANCELED)
                EXPECT_EQ(result, answer);
            else
                EXPECT_EQ(result, closes ? -EINTR : -ECANCELED) << answer;
            end_pipe();
            EXPECT_EQ(wait(8, 0), 0); /* the read itself, which now is at its end */
        }
}

} // namespace
