/* SPDX-License-Identifier: MIT
 *
 * The ring on the kernel of this machine, under every mask that changes how it
 * is made. Skipped, and said so, where there is no io_uring.
 */
#include <errno.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <set>
#include <string>
#include <thread>
#include <vector>

#include "public_api.h"

extern "C" {
#include "probe.h"
#include "ring.h"
#include "sys.h"
}

namespace {

int open_fds()
{
    int count = 0;
    for (int fd = 0; fd < 4096; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

class Ring : public testing::Test {
protected:
    void SetUp() override
    {
        fds_before = open_fds();
        ring.fd = -1;
        rp_ring_options options = plain();
        int result = rp_ring_init(&ring, &options);
        if (result < 0)
            GTEST_SKIP() << "no io_uring here: " << strerror(-result) << ", because of "
                         << ringpoll_knob_text(rp_probe_knob(result));
        rp_ring_fini(&ring);
        ASSERT_EQ(pipe2(pipe, O_CLOEXEC | O_NONBLOCK), 0);
    }
    void TearDown() override
    {
        rp_ring_fini(&ring);
        close(pipe[0]);
        close(pipe[1]);
        EXPECT_EQ(open_fds(), fds_before) << "an fd was left";
    }
    static rp_ring_options plain(const char *mask = "", unsigned sq = 8, unsigned cq = 32)
    {
        rp_ring_options options = {};
        uint64_t masked = 0;
        EXPECT_EQ(ringpoll_mask_parse(mask, &masked, nullptr, nullptr), 0) << mask;
        options.sq_entries = sq;
        options.cq_entries = cq;
        options.features = rp_probe_close_over(all_features, masked);
        return options;
    }
    void start(const rp_ring_options &options) { ASSERT_EQ(rp_ring_init(&ring, &options), 0); }

    rp_sqe *sqe(rp_opcode opcode, uint64_t user_data)
    {
        rp_sqe *entry = rp_ring_get_sqe(&ring);
        if (entry) {
            entry->opcode = static_cast<uint8_t>(opcode);
            entry->fd = -1;
            entry->user_data = user_data;
        }
        return entry;
    }
    rp_sqe *poll_in(int fd, uint64_t user_data, unsigned flags = 0)
    {
        rp_sqe *entry = sqe(RP_IORING_OP_POLL_ADD, user_data);
        entry->fd = fd;
        entry->poll32_events = rp_poll_word(POLLIN);
        entry->len = flags;
        return entry;
    }
    /* The next completion, at most ten seconds from now. */
    rp_cqe next()
    {
        uint64_t deadline_ns = rp_sys_now_ns() + 10000000000u;
        while (rp_sys_now_ns() < deadline_ns) {
            if (rp_cqe *head = rp_ring_peek(&ring)) {
                rp_cqe cqe = *head;
                rp_ring_seen(&ring);
                return cqe;
            }
            if (ring.features & RINGPOLL_FEATURE_EXT_ARG) {
                struct timespec patience = {10, 0};
                rp_ring_enter(&ring, 1, &patience, nullptr);
            } else {
                rp_ring_enter(&ring, 0, nullptr, nullptr);
                struct pollfd ready = {ring.fd, POLLIN, 0};
                ::poll(&ready, 1, 10);
            }
        }
        ADD_FAILURE() << "no completion came";
        return {};
    }
    /* Nothing in flight before the ring is unmapped. */
    void cancel(uint64_t user_data)
    {
        sqe(RP_IORING_OP_ASYNC_CANCEL, 0xffff)->addr = user_data;
        std::set<uint64_t> missing = {user_data, 0xffff};
        while (!missing.empty() && !HasFailure())
            missing.erase(next().user_data);
    }
    void feed() { ASSERT_EQ(write(pipe[1], "x", 1), 1); }
    void drain()
    {
        char bytes[64];
        while (read(pipe[0], bytes, sizeof(bytes)) > 0) {
        }
    }

    rp_ring ring = {};
    int pipe[2] = {-1, -1};
    int fds_before = 0;
};

/* ------------------------------------------------------------------- masks */

class MaskedRing : public Ring, public testing::WithParamInterface<const char *> {};

TEST_P(MaskedRing, PollsAndWaitsAndKeepsWithinItsMask)
{
    rp_ring_options options = plain(GetParam());
    options.single_thread = true;
    start(options);
    EXPECT_EQ(ring.features & ~options.features, 0u);
    EXPECT_EQ((ring.setup_flags & RP_SETUP_DEFER_TASKRUN) != 0, (options.features & RINGPOLL_FEATURE_DEFER) != 0);
    EXPECT_EQ((ring.enter_flags & RP_ENTER_REGISTERED_RING) != 0,
              (options.features & RINGPOLL_FEATURE_REGISTERED_RING) != 0);

    sqe(RP_IORING_OP_NOP, 1);
    rp_cqe cqe = next();
    EXPECT_EQ(cqe.user_data, 1u);
    EXPECT_EQ(cqe.res, 0);

    poll_in(pipe[0], 2);
    EXPECT_EQ(rp_ring_enter(&ring, 0, nullptr, nullptr), 1);
    EXPECT_EQ(rp_ring_peek(&ring), nullptr);
    feed();
    cqe = next();
    EXPECT_EQ(cqe.user_data, 2u);
    EXPECT_EQ(cqe.res & POLLIN, POLLIN);

    drain();
    poll_in(pipe[0], 3);
    ASSERT_GE(rp_ring_enter(&ring, 0, nullptr, nullptr), 0);
    cancel(3);
}

TEST_P(MaskedRing, TurnsRoundItsEndsAThousandTimes)
{
    start(plain(GetParam(), 4, 8));
    uint64_t made = 0, seen = 0;
    for (int turn = 0; turn < 1000; turn++) {
        for (int i = 0; i < turn % 5; i++)
            ASSERT_NE(sqe(RP_IORING_OP_NOP, made++), nullptr);
        ASSERT_GE(rp_ring_enter(&ring, 0, nullptr, nullptr), 0);
        while (rp_cqe *cqe = rp_ring_peek(&ring)) {
            ASSERT_EQ(cqe->user_data, seen++);
            rp_ring_seen(&ring);
        }
    }
    EXPECT_EQ(seen, made);
    EXPECT_EQ(ring.sqes_submitted, made);
    EXPECT_EQ(ring.cqes_reaped, made);
}

INSTANTIATE_TEST_SUITE_P(Masks, MaskedRing,
                         testing::Values("", "as-6.1", "as-5.19", "as-5.13", "as-5.10", "no-defer", "no-coop",
                                         "no-single-issuer", "no-defer,no-coop", "no-taskrun-flag", "no-submit-all",
                                         "no-cqsize", "no-clamp", "no-no-sqarray", "no-registered-ring",
                                         "no-no-iowait", "no-ext-arg"),
                         [](const auto &test) {
                             std::string name = *test.param ? test.param : "nothing";
                             for (char &c : name)
                                 c = isalnum(static_cast<unsigned char>(c)) ? c : '_';
                             return name;
                         });

TEST_F(Ring, WithoutUringInItsFeaturesThereIsNone)
{
    rp_ring_options options = plain("no-uring");
    EXPECT_EQ(rp_ring_init(&ring, &options), -ENOSYS);
}

TEST_F(Ring, HasTheSizesThatWereAskedFor)
{
    start(plain("", 256, 4096));
    EXPECT_EQ(ring.sq_entries, 256u);
    EXPECT_EQ(ring.cq_entries, 4096u);
}

/* -------------------------------------------------------------- multishot */

TEST_F(Ring, AMultishotPollCompletesOncePerWakeUp)
{
    start(plain());
    if (!(ring.features & RINGPOLL_FEATURE_MULTISHOT_POLL))
        GTEST_SKIP() << "no multishot poll";
    poll_in(pipe[0], 5, RP_POLL_ADD_MULTI);
    ASSERT_EQ(rp_ring_enter(&ring, 0, nullptr, nullptr), 1);
    for (int i = 0; i < 3; i++) {
        feed();
        rp_cqe cqe = next();
        EXPECT_EQ(cqe.user_data, 5u);
        EXPECT_EQ(cqe.res & POLLIN, POLLIN);
        EXPECT_EQ(cqe.flags & RP_CQE_F_MORE, RP_CQE_F_MORE);
        drain();
    }
    cancel(5);
}

TEST_F(Ring, TaskrunRisesWithoutACallAndOneEnterClearsIt)
{
    start(plain());
    if (!(ring.features & RINGPOLL_FEATURE_TASKRUN_FLAG) || !(ring.features & RINGPOLL_FEATURE_DEFER))
        GTEST_SKIP() << "no DEFER_TASKRUN with TASKRUN_FLAG";
    poll_in(pipe[0], 1);
    ASSERT_EQ(rp_ring_enter(&ring, 0, nullptr, nullptr), 1);
    EXPECT_FALSE(rp_ring_wants_enter(&ring));
    feed();
    EXPECT_TRUE(rp_ring_wants_enter(&ring));
    EXPECT_EQ(rp_ring_peek(&ring), nullptr);
    EXPECT_EQ(rp_ring_enter(&ring, 0, nullptr, nullptr), 0);
    EXPECT_FALSE(rp_ring_wants_enter(&ring));
    EXPECT_EQ(next().user_data, 1u);
}

/* Of 64 that are pending, the first enter runs 20; once the ring has been busy,
 * one runs all. */
TEST_F(Ring, AllPendingWorkIsRunInTheEndAndThenByOneEnter)
{
    start(plain("", 128, 1024));
    if (!(ring.features & RINGPOLL_FEATURE_DEFER))
        GTEST_SKIP() << "no DEFER_TASKRUN";
    std::vector<int> events;
    for (int i = 0; i < 64; i++)
        events.push_back(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    unsigned enters = 0;
    for (int round = 0; round < 20; round++) {
        for (size_t i = 0; i < events.size(); i++)
            poll_in(events[i], i);
        ASSERT_EQ(rp_ring_enter(&ring, 0, nullptr, nullptr), 64);
        for (int event : events)
            ASSERT_EQ(eventfd_write(event, 1), 0);
        std::set<uint64_t> seen;
        enters = 0;
        while (rp_ring_wants_enter(&ring)) {
            ASSERT_EQ(rp_ring_enter(&ring, 0, nullptr, nullptr), 0);
            enters++;
            while (rp_cqe *cqe = rp_ring_peek(&ring)) {
                seen.insert(cqe->user_data);
                rp_ring_seen(&ring);
            }
        }
        EXPECT_EQ(seen.size(), 64u);
        for (int event : events) {
            eventfd_t value;
            eventfd_read(event, &value);
        }
    }
    EXPECT_EQ(enters, 1u);
    for (int event : events)
        close(event);
}

/* ----------------------------------------------------------------- waiting */

TEST_F(Ring, AWaitLastsItsTimeAndNoLess)
{
    start(plain());
    if (!(ring.features & RINGPOLL_FEATURE_EXT_ARG))
        GTEST_SKIP() << "no EXT_ARG";
    for (long ns : {1L, 1000L, 1000000L, 20000000L}) {
        struct timespec time = {0, ns};
        uint64_t before = rp_sys_now_ns();
        EXPECT_EQ(rp_ring_enter(&ring, 1, &time, nullptr), -ETIME);
        EXPECT_GE(rp_sys_now_ns() - before, static_cast<uint64_t>(ns));
    }
}

TEST_F(Ring, WithEntriesHeldAWaitLastsAsLong)
{
    start(plain("", 64, 1024));
    if (!(ring.features & RINGPOLL_FEATURE_EXT_ARG))
        GTEST_SKIP() << "no EXT_ARG";
    for (uint64_t i = 0; i < 50; i++)
        sqe(RP_IORING_OP_NOP, i);
    for (uint64_t i = 0; i < 50; i++)
        ASSERT_EQ(next().user_data, i);
    struct timespec time = {0, 20000000};
    uint64_t before = rp_sys_now_ns();
    int result = rp_ring_enter(&ring, 1, &time, nullptr);
    EXPECT_TRUE(result == -ETIME || (result == 0 && rp_ring_held(&ring))) << result;
    EXPECT_GE(rp_sys_now_ns() - before, 20000000u);
    EXPECT_EQ(rp_ring_peek(&ring), nullptr);

    poll_in(pipe[0], 77);
    ASSERT_EQ(rp_ring_enter(&ring, 0, nullptr, nullptr), 1);
    feed();
    EXPECT_EQ(next().user_data, 77u);
}

TEST_F(Ring, ALookNeverWaits)
{
    start(plain());
    struct timespec hour = {3600, 0};
    EXPECT_EQ(rp_ring_enter(&ring, 0, &hour, nullptr), 0); /* or this test never ends */
}

TEST_F(Ring, AnEnterThatSubmittedHidesTheEndOfItsWait)
{
    start(plain());
    if (!(ring.features & RINGPOLL_FEATURE_EXT_ARG))
        GTEST_SKIP() << "no EXT_ARG";
    poll_in(pipe[0], 1);
    struct timespec time = {0, 1000000};
    EXPECT_EQ(rp_ring_enter(&ring, 1, &time, nullptr), 1);
    EXPECT_EQ(rp_ring_peek(&ring), nullptr);
    cancel(1);
}

TEST_F(Ring, ATimeoutRequestEndsWithEtime)
{
    start(plain());
    rp_timespec time = {0, 1000000};
    rp_sqe *entry = sqe(RP_IORING_OP_TIMEOUT, 9);
    entry->addr = reinterpret_cast<uintptr_t>(&time);
    entry->len = 1;
    rp_cqe cqe = next();
    EXPECT_EQ(cqe.user_data, 9u);
    EXPECT_EQ(cqe.res, -ETIME);
}

volatile sig_atomic_t signals_seen;
void on_signal(int)
{
    signals_seen = signals_seen + 1;
}

/* ThreadSanitizer keeps a signal back until the next call that it knows to
 * block; the ring's are none. For the kernel SIGALRM is blocked here. */
int handled()
{
    ::poll(nullptr, 0, 0);
    return signals_seen;
}

/* SIGALRM blocked and pending, or about to come, as a test needs it. */
class RingSignals : public Ring {
protected:
    void SetUp() override
    {
        Ring::SetUp();
        if (IsSkipped())
            return;
        signals_seen = 0;
        struct sigaction action = {};
        action.sa_handler = on_signal; /* no SA_RESTART, which would change nothing either */
        sigaction(SIGALRM, &action, &old_action);
        sigemptyset(&alarm_only);
        sigaddset(&alarm_only, SIGALRM);
        pthread_sigmask(SIG_BLOCK, &alarm_only, &old_mask);
        open_mask = old_mask;
        sigdelset(&open_mask, SIGALRM);
        prepared = true;
    }
    void TearDown() override
    {
        if (prepared) {
            struct itimerval off = {};
            setitimer(ITIMER_REAL, &off, nullptr);
            pthread_sigmask(SIG_SETMASK, &old_mask, nullptr); /* one may be pending: the handler takes it */
            sigaction(SIGALRM, &old_action, nullptr);
        }
        Ring::TearDown();
    }
    struct sigaction old_action = {};
    sigset_t alarm_only, old_mask, open_mask;
    bool prepared = false;
};

TEST_F(RingSignals, TheMaskHoldsForTheWaitAndOnlyForIt)
{
    start(plain());
    raise(SIGALRM);
    EXPECT_EQ(handled(), 0);
    EXPECT_EQ(rp_ring_enter(&ring, 1, nullptr, &open_mask), -EINTR) << "pending before: as by epoll_pwait";
    EXPECT_EQ(handled(), 1);
    sigset_t now;
    pthread_sigmask(SIG_SETMASK, nullptr, &now);
    EXPECT_EQ(sigismember(&now, SIGALRM), 1) << "the mask of before is back";
}

TEST_F(RingSignals, MaskAndTimeGoTogether)
{
    start(plain());
    if (!(ring.features & RINGPOLL_FEATURE_EXT_ARG))
        GTEST_SKIP() << "no EXT_ARG";
    struct timespec patience = {10, 0};
    raise(SIGALRM);
    EXPECT_EQ(rp_ring_enter(&ring, 1, &patience, &open_mask), -EINTR);
    EXPECT_EQ(handled(), 1);

    struct timespec shortly = {0, 1000000};
    sigset_t closed = open_mask;
    sigaddset(&closed, SIGALRM);
    raise(SIGALRM);
    EXPECT_EQ(rp_ring_enter(&ring, 1, &shortly, &closed), -ETIME) << "a masked signal ends no wait";
    EXPECT_EQ(handled(), 1);
    pthread_sigmask(SIG_SETMASK, &old_mask, nullptr);
    EXPECT_EQ(handled(), 2);
}

TEST_F(RingSignals, ASignalEndsAWaitThatIsUnderWay)
{
    start(plain());
    struct itimerval soon = {{0, 2000}, {0, 2000}}; /* again and again: one may come before the wait */
    setitimer(ITIMER_REAL, &soon, nullptr);
    EXPECT_EQ(rp_ring_enter(&ring, 1, nullptr, &open_mask), -EINTR);
    EXPECT_GE(handled(), 1);
}

TEST_F(RingSignals, WhatIsReadyComesBeforeASignal)
{
    start(plain());
    sqe(RP_IORING_OP_NOP, 1);
    raise(SIGALRM);
    EXPECT_EQ(rp_ring_enter(&ring, 1, nullptr, &open_mask), 1);
    EXPECT_NE(rp_ring_peek(&ring), nullptr);
    pthread_sigmask(SIG_SETMASK, &old_mask, nullptr);
    EXPECT_EQ(handled(), 1) << "late at the latest, never lost";
}

TEST_F(Ring, ErrnoIsLeftAlone)
{
    start(plain());
    struct timespec time = {0, 1};
    errno = 4711;
    rp_ring_enter(&ring, 1, ring.features & RINGPOLL_FEATURE_EXT_ARG ? &time : nullptr, nullptr);
    rp_sys_close(-1);
    rp_sys_read(-1, nullptr, 0);
    rp_sys_epoll_wait(-1, nullptr, 0, nullptr, nullptr);
    EXPECT_EQ(errno, 4711);
}

/* ------------------------------------------------------------- full queues */

TEST_F(Ring, WhenFullThereIsNoSqeUntilTheNextEnter)
{
    start(plain("", 8, 32));
    for (uint64_t i = 0; i < 8; i++)
        ASSERT_NE(sqe(RP_IORING_OP_NOP, i), nullptr);
    EXPECT_EQ(rp_ring_get_sqe(&ring), nullptr);
    EXPECT_EQ(rp_ring_queued(&ring), 8u);
    EXPECT_EQ(rp_ring_enter(&ring, 0, nullptr, nullptr), 8);
    EXPECT_NE(sqe(RP_IORING_OP_NOP, 8), nullptr);
    for (uint64_t i = 0; i < 9; i++)
        EXPECT_EQ(next().user_data, i);
}

TEST_F(Ring, NothingIsLostWhenTheCompletionQueueOverflows)
{
    for (const char *mask : {"", "no-defer", "as-5.13", "as-5.10"}) {
        SCOPED_TRACE(mask);
        start(plain(mask, 8, 8));
        if (!(ring.features & RINGPOLL_FEATURE_NODROP))
            GTEST_SKIP() << "no NODROP";
        uint64_t made = 0, seen = 0;
        bool held_back = false;
        for (int turn = 0; turn < 10; turn++) {
            while (rp_ring_get_sqe(&ring) != nullptr) {
                rp_sqe *last = &ring.sqes[(ring.sqe_tail - 1) & ring.sq_mask];
                last->user_data = made++;
            }
            int result = rp_ring_enter(&ring, 0, nullptr, nullptr);
            ASSERT_TRUE(result == 8 || result == -EBUSY) << result;
            held_back |= rp_ring_wants_enter(&ring);
            if (result == -EBUSY)
                break;
        }
        EXPECT_TRUE(held_back);
        for (int turn = 0; turn < 1000 && seen < made; turn++) {
            while (rp_cqe *cqe = rp_ring_peek(&ring)) {
                ASSERT_EQ(cqe->user_data, seen++);
                rp_ring_seen(&ring);
            }
            ASSERT_GE(rp_ring_enter(&ring, 0, nullptr, nullptr), 0);
        }
        EXPECT_EQ(seen, made);
        EXPECT_GT(ring.overflows, 0u);
        rp_ring_fini(&ring);
    }
}

TEST_F(Ring, ABadSqeFailsAloneWithAndWithoutSubmitAll)
{
    for (const char *mask : {"", "no-submit-all"}) {
        SCOPED_TRACE(mask);
        start(plain(mask));
        sqe(RP_IORING_OP_NOP, 1);
        sqe(RP_IORING_OP_NOP, 2)->opcode = 250;
        sqe(RP_IORING_OP_NOP, 3);
        EXPECT_EQ(rp_ring_enter(&ring, 3, nullptr, nullptr), 3);
        EXPECT_EQ(next().res, 0);
        rp_cqe bad = next();
        EXPECT_EQ(bad.user_data, 2u);
        EXPECT_EQ(bad.res, -EINVAL);
        EXPECT_EQ(next().user_data, 3u);
        rp_ring_fini(&ring);
    }
}

/* ---------------------------------------------------------- threads, forks */

TEST_F(Ring, TheRegisteredFdCanBeGivenUpInBetween)
{
    rp_ring_options options = plain();
    options.single_thread = true;
    start(options);
    if (!(ring.features & RINGPOLL_FEATURE_REGISTERED_RING))
        GTEST_SKIP() << "no registered ring fds";
    EXPECT_NE(ring.enter_fd, ring.fd);
    sqe(RP_IORING_OP_NOP, 1);
    EXPECT_EQ(next().user_data, 1u);
    rp_ring_unregister_fd(&ring);
    EXPECT_EQ(ring.enter_fd, ring.fd);
    sqe(RP_IORING_OP_NOP, 2);
    EXPECT_EQ(next().user_data, 2u);
}

TEST_F(Ring, MoreRingsThanRegisteredSlotsAllWork)
{
    std::vector<rp_ring> rings(20);
    rp_ring_options options = plain();
    options.single_thread = true;
    unsigned registered = 0;
    for (rp_ring &one : rings) {
        ASSERT_EQ(rp_ring_init(&one, &options), 0);
        registered += (one.enter_flags & RP_ENTER_REGISTERED_RING) != 0;
        rp_sqe *entry = rp_ring_get_sqe(&one);
        entry->opcode = RP_IORING_OP_NOP;
        EXPECT_EQ(rp_ring_enter(&one, 1, nullptr, nullptr), 1);
        EXPECT_NE(rp_ring_peek(&one), nullptr);
        rp_ring_seen(&one);
    }
    EXPECT_LE(registered, 16u);
    for (rp_ring &one : rings)
        rp_ring_fini(&one);
    /* The slots are free again. */
    ASSERT_EQ(rp_ring_init(&ring, &options), 0);
    EXPECT_EQ((ring.enter_flags & RP_ENTER_REGISTERED_RING) != 0, registered > 0);
}

TEST_F(Ring, AnotherThreadIsToldEexist)
{
    start(plain());
    if (!(ring.features & RINGPOLL_FEATURE_DEFER))
        GTEST_SKIP() << "no DEFER_TASKRUN";
    int result = 0;
    std::thread([&] { result = rp_sys->uring_enter(ring.fd, 0, 0, RP_ENTER_GETEVENTS, nullptr, 0); }).join();
    EXPECT_EQ(result, -EEXIST);
}

TEST_F(Ring, AForkedChildHasTheNumberAndNotTheMemory)
{
    start(plain());
    sqe(RP_IORING_OP_NOP, 1);
    pid_t child = fork();
    if (child == 0) {
        void *map = ring.map_sq;
        unsigned char residence;
        if (mincore(map, 4096, &residence) == 0 || errno != ENOMEM)
            _exit(1);
        int fd = ring.fd;
        rp_ring_abandon(&ring);
        _exit(fcntl(fd, F_GETFD) == -1 && ring.fd == -1 ? 0 : 2);
    }
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0) << "1: mapped in the child; 2: the number stayed open";
    EXPECT_EQ(next().user_data, 1u) << "and the parent's goes on";
}

/* ------------------------------------------------------------------ SQPOLL */

class Sqpoll : public Ring, public testing::WithParamInterface<bool> {
protected:
    rp_ring_options sqpoll(unsigned idle_ms)
    {
        rp_ring_options options = plain();
        options.sqpoll = true;
        options.sq_aff = GetParam();
        options.sq_thread_idle_ms = idle_ms;
        cpu_set_t allowed;
        sched_getaffinity(0, sizeof(allowed), &allowed);
        while (GetParam() && !CPU_ISSET(options.sq_thread_cpu, &allowed))
            options.sq_thread_cpu++;
        return options;
    }
    bool sleeps() const { return __atomic_load_n(ring.sq_flags, __ATOMIC_ACQUIRE) & RP_SQ_NEED_WAKEUP; }
};

TEST_P(Sqpoll, WorksAwakeAndWokenFromSleep)
{
    start(sqpoll(1));
    EXPECT_TRUE(ring.features & RINGPOLL_FEATURE_SQPOLL);
    EXPECT_EQ((ring.setup_flags & RP_SETUP_SQ_AFF) != 0, GetParam());
    for (uint64_t i = 0; i < 20; i++) {
        if (i % 2)
            while (!sleeps()) /* the thing that is waited for */
                sched_yield();
        sqe(RP_IORING_OP_NOP, i);
        ASSERT_EQ(next().user_data, i);
    }
}

TEST_P(Sqpoll, PollsAndWaitsAndFillsItsQueue)
{
    start(sqpoll(1));
    poll_in(pipe[0], 1);
    ASSERT_EQ(rp_ring_enter(&ring, 0, nullptr, nullptr), 1);
    struct timespec time = {0, 2000000};
    EXPECT_EQ(rp_ring_enter(&ring, 1, &time, nullptr), -ETIME);
    feed();
    EXPECT_EQ(next().user_data, 1u);
    uint64_t made = 100, seen = 100;
    while (made < 1100) {
        while (made < 1100 && sqe(RP_IORING_OP_NOP, made))
            made++;
        ASSERT_GE(rp_ring_enter(&ring, 0, nullptr, nullptr), 0);
        while (rp_cqe *cqe = rp_ring_peek(&ring)) {
            ASSERT_EQ(cqe->user_data, seen++);
            rp_ring_seen(&ring);
        }
    }
    while (seen < made && !HasFailure())
        ASSERT_EQ(next().user_data, seen++);
}

/* Its thread runs what wake-ups leave for it some time later, at most 32 at a
 * go: a fence comes behind all of it. */
TEST_P(Sqpoll, AFenceComesBehindAllThatHadHappened)
{
    rp_ring_options options = sqpoll(1);
    options.sq_entries = 64;
    options.cq_entries = 256;
    start(options);
    constexpr unsigned count = 100;
    std::vector<int> fds;
    for (unsigned i = 0; i < count; i++) {
        fds.push_back(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
        ASSERT_GE(fds.back(), 0);
        rp_sqe *entry;
        while ((entry = sqe(RP_IORING_OP_POLL_ADD, 1000 + i)) == nullptr)
            ASSERT_GE(rp_ring_enter(&ring, 0, nullptr, nullptr), 0);
        entry->fd = fds.back();
        entry->poll32_events = rp_poll_word(POLLIN);
        entry->len = RP_POLL_ADD_MULTI;
    }
    for (unsigned turn = 0; turn < 200 && !HasFailure(); turn++) {
        if (turn % 10 == 9)
            while (!sleeps())
                sched_yield();
        unsigned kicked = turn % 3 == 0 ? count : turn % 3 == 1 ? 1 : 37;
        for (unsigned i = 0; i < kicked; i++)
            ASSERT_EQ(eventfd_write(fds[i], 1), 0);
        while (!rp_ring_fence(&ring, 1))
            ASSERT_GE(rp_ring_enter(&ring, 0, nullptr, nullptr), 0);
        rp_ring_enter(&ring, 0, nullptr, nullptr);
        std::set<uint64_t> seen;
        for (rp_cqe cqe = next(); cqe.user_data != 1 && !HasFailure(); cqe = next())
            if (cqe.user_data != 0) /* 0: the fence's first half, without CQE_SKIP */
                seen.insert(cqe.user_data);
        EXPECT_EQ(seen.size(), kicked) << "turn " << turn;
        EXPECT_EQ(rp_ring_peek(&ring), nullptr);
        eventfd_t value;
        for (unsigned i = 0; i < kicked; i++)
            ASSERT_EQ(eventfd_read(fds[i], &value), 0);
    }
    for (unsigned i = 0; i < count; i++) {
        rp_sqe *entry;
        while ((entry = sqe(RP_IORING_OP_ASYNC_CANCEL, 2)) == nullptr)
            ASSERT_GE(rp_ring_enter(&ring, 0, nullptr, nullptr), 0);
        entry->addr = 1000 + i;
    }
    for (unsigned ended = 0; ended < count && !HasFailure();)
        ended += next().user_data >= 1000;
    for (int fd : fds)
        close(fd);
}

INSTANTIATE_TEST_SUITE_P(Affinity, Sqpoll, testing::Bool(),
                         [](const auto &test) { return test.param ? "OnOneCpu" : "Anywhere"; });

TEST_F(Ring, SqpollOnACpuThatIsNotThereIsEinval)
{
    rp_ring_options options = plain();
    options.sqpoll = options.sq_aff = true;
    options.sq_thread_cpu = 100000;
    EXPECT_EQ(rp_ring_init(&ring, &options), -EINVAL);
}

} // namespace
