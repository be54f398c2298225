/* SPDX-License-Identifier: MIT
 *
 * The ring on the fake kernel: every rung of the ladder, every size, every
 * errno, and what no real kernel does on demand.
 */
#include <errno.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "public_api.h"

extern "C" {
#include "ring.h"
}
#include "sim/fake_kernel.h"

namespace {

rp_ring_options plain_options(unsigned sq = 8, unsigned cq = 32)
{
    rp_ring_options options = {};
    options.sq_entries = sq;
    options.cq_entries = cq;
    options.features = all_features;
    return options;
}

class SimRing : public testing::Test {
protected:
    ~SimRing() override
    {
        rp_ring_fini(&ring);
        EXPECT_EQ(kernel.mappings(), 0u) << "a mapping was left";
        EXPECT_EQ(kernel.ring_fds(), 0u) << "a registered ring was left";
        EXPECT_EQ(kernel.rings(), 0u) << "a ring fd was left";
    }
    void start(rp_ring_options options = plain_options())
    {
        ASSERT_EQ(rp_ring_init(&ring, &options), 0);
        kernel.enters.clear();
    }
    rp_sqe *nop(uint64_t user_data)
    {
        rp_sqe *sqe = rp_ring_get_sqe(&ring);
        if (sqe) {
            sqe->opcode = RP_IORING_OP_NOP;
            sqe->user_data = user_data;
        }
        return sqe;
    }
    rp_sqe *poll(uint64_t user_data)
    {
        rp_sqe *sqe = nop(user_data);
        if (sqe)
            sqe->opcode = RP_IORING_OP_POLL_ADD;
        return sqe;
    }
    std::vector<uint64_t> reap()
    {
        std::vector<uint64_t> seen;
        while (rp_cqe *cqe = rp_ring_peek(&ring)) {
            seen.push_back(cqe->user_data);
            rp_ring_seen(&ring);
        }
        return seen;
    }

    sim::FakeKernel kernel;
    rp_ring ring = [] {
        rp_ring none = {};
        none.fd = -1;
        return none;
    }();
};

/* ------------------------------------------------------------------ ladder */

struct Release {
    unsigned version;
    unsigned setup_flags; /* what is to come out */
    unsigned attempts;
};

class SimLadder : public testing::TestWithParam<Release> {};

TEST_P(SimLadder, FindsTheBestThatTheReleaseHasOneStepAtATime)
{
    sim::FakeKernel kernel(GetParam().version);
    rp_ring ring;
    rp_ring_options options = plain_options();
    ASSERT_EQ(rp_ring_init(&ring, &options), 0);
    EXPECT_EQ(ring.setup_flags, GetParam().setup_flags);
    EXPECT_EQ(kernel.setups.size(), GetParam().attempts);
    for (size_t i = 1; i < kernel.setups.size(); i++)
        EXPECT_NE(kernel.setups[i].flags, kernel.setups[i - 1].flags) << "an attempt that could not end otherwise";

    rp_sqe *sqe = rp_ring_get_sqe(&ring);
    ASSERT_NE(sqe, nullptr);
    sqe->user_data = 77;
    EXPECT_EQ(rp_ring_enter(&ring, 1, nullptr, nullptr), 1);
    rp_cqe *cqe = rp_ring_peek(&ring);
    ASSERT_NE(cqe, nullptr);
    EXPECT_EQ(cqe->user_data, 77u);
    rp_ring_seen(&ring);
    EXPECT_EQ(rp_ring_peek(&ring), nullptr);
    rp_ring_fini(&ring);
    EXPECT_EQ(kernel.mappings(), 0u);
    EXPECT_EQ(kernel.rings(), 0u);
}

constexpr unsigned sizes = RP_SETUP_CQSIZE | RP_SETUP_CLAMP;
constexpr unsigned coop = RP_SETUP_COOP_TASKRUN | RP_SETUP_TASKRUN_FLAG;
constexpr unsigned defer = RP_SETUP_DEFER_TASKRUN | RP_SETUP_SINGLE_ISSUER | RP_SETUP_TASKRUN_FLAG;

INSTANTIATE_TEST_SUITE_P(
    Releases, SimLadder,
    testing::Values(Release{618, sizes | RP_SETUP_SUBMIT_ALL | defer | RP_SETUP_NO_SQARRAY, 1},
                    Release{606, sizes | RP_SETUP_SUBMIT_ALL | defer | RP_SETUP_NO_SQARRAY, 1},
                    Release{601, sizes | RP_SETUP_SUBMIT_ALL | defer, 2},
                    Release{600, sizes | RP_SETUP_SUBMIT_ALL | coop | RP_SETUP_SINGLE_ISSUER, 3},
                    Release{519, sizes | RP_SETUP_SUBMIT_ALL | coop, 4},
                    Release{518, sizes | RP_SETUP_SUBMIT_ALL, 5}, Release{517, sizes, 6}, Release{513, sizes, 6},
                    Release{510, sizes, 6}, Release{506, sizes, 6}, Release{505, RP_SETUP_CQSIZE, 7},
                    Release{504, 0, 8}, Release{501, 0, 8}),
    [](const auto &test) { return "Linux" + std::to_string(test.param.version); });

TEST(SimRingFeatures, SayWhatCameOutOnEachRelease)
{
    struct {
        unsigned version;
        uint64_t has, lacks;
    } const expected[] = {
        {618, all_features & ~(RINGPOLL_FEATURE_COOP | RINGPOLL_FEATURE_SQPOLL | RINGPOLL_FEATURE_REGISTERED_RING |
                              RINGPOLL_FEATURE_RECV_END), 0},
        {601, RINGPOLL_FEATURE_DEFER | RINGPOLL_FEATURE_MULTISHOT_RECV | RINGPOLL_FEATURE_SYNC_CANCEL,
         RINGPOLL_FEATURE_NO_SQARRAY | RINGPOLL_FEATURE_NO_IOWAIT | RINGPOLL_FEATURE_READ_MULTISHOT |
             RINGPOLL_FEATURE_ABS_TIMER | RINGPOLL_FEATURE_RESIZE | RINGPOLL_FEATURE_NAPI},
        {519, RINGPOLL_FEATURE_COOP | RINGPOLL_FEATURE_BUF_RING | RINGPOLL_FEATURE_CANCEL_FD,
         RINGPOLL_FEATURE_DEFER | RINGPOLL_FEATURE_SINGLE_ISSUER | RINGPOLL_FEATURE_SYNC_CANCEL},
        {513, RINGPOLL_FEATURE_MULTISHOT_POLL | RINGPOLL_FEATURE_POLL_UPDATE | RINGPOLL_FEATURE_EXT_ARG,
         RINGPOLL_FEATURE_CQE_SKIP | RINGPOLL_FEATURE_COOP | RINGPOLL_FEATURE_BUF_RING},
        {510, RINGPOLL_FEATURE_NODROP | RINGPOLL_FEATURE_CQSIZE,
         RINGPOLL_FEATURE_EXT_ARG | RINGPOLL_FEATURE_MULTISHOT_POLL},
        {501, RINGPOLL_FEATURE_URING, all_features & ~RINGPOLL_FEATURE_URING},
    };
    for (const auto &release : expected) {
        sim::FakeKernel kernel(release.version);
        rp_ring ring;
        rp_ring_options options = plain_options();
        ASSERT_EQ(rp_ring_init(&ring, &options), 0) << release.version;
        EXPECT_EQ(ring.features & release.has, release.has) << release.version;
        EXPECT_EQ(ring.features & release.lacks, 0u) << release.version;
        rp_ring_fini(&ring);
    }
}

/* What the mask takes away is neither asked of the kernel nor said to be there. */
TEST(SimRingMask, MakesANewKernelTreatedAsAnOldOne)
{
    struct {
        const char *mask;
        unsigned flags;
    } const expected[] = {
        {"no-defer", sizes | RP_SETUP_SUBMIT_ALL | coop | RP_SETUP_SINGLE_ISSUER | RP_SETUP_NO_SQARRAY},
        {"no-single-issuer", sizes | RP_SETUP_SUBMIT_ALL | coop | RP_SETUP_NO_SQARRAY},
        {"no-coop", sizes | RP_SETUP_SUBMIT_ALL | defer | RP_SETUP_NO_SQARRAY},
        {"no-defer,no-coop", sizes | RP_SETUP_SUBMIT_ALL | RP_SETUP_SINGLE_ISSUER | RP_SETUP_NO_SQARRAY},
        {"no-taskrun-flag", (sizes | RP_SETUP_SUBMIT_ALL | defer | RP_SETUP_NO_SQARRAY) & ~RP_SETUP_TASKRUN_FLAG},
        {"no-defer,no-taskrun-flag", sizes | RP_SETUP_SUBMIT_ALL | RP_SETUP_COOP_TASKRUN | RP_SETUP_SINGLE_ISSUER |
                                         RP_SETUP_NO_SQARRAY},
        {"no-cqsize,no-clamp", RP_SETUP_SUBMIT_ALL | defer | RP_SETUP_NO_SQARRAY},
        {"no-submit-all,no-no-sqarray", sizes | defer},
        {"as-6.1", sizes | RP_SETUP_SUBMIT_ALL | defer},
        {"as-5.19", sizes | RP_SETUP_SUBMIT_ALL | coop},
        {"as-5.13", sizes},
        {"as-5.10", sizes},
    };
    for (const auto &mask : expected) {
        SCOPED_TRACE(mask.mask);
        uint64_t masked = 0;
        ASSERT_EQ(ringpoll_mask_parse(mask.mask, &masked, nullptr, nullptr), 0);
        sim::FakeKernel kernel;
        rp_ring ring;
        rp_ring_options options = plain_options();
        options.single_thread = true;
        options.features &= ~masked;
        ASSERT_EQ(rp_ring_init(&ring, &options), 0);
        EXPECT_EQ(kernel.setups.size(), 1u);
        EXPECT_EQ(ring.setup_flags, mask.flags);
        EXPECT_EQ(ring.features & masked, 0u);
        if (masked & RINGPOLL_FEATURE_REGISTERED_RING) {
            EXPECT_EQ(kernel.ring_fds(), 0u);
        }
        rp_ring_enter(&ring, 0, nullptr, nullptr);
        EXPECT_EQ((kernel.enters.back().flags & RP_ENTER_NO_IOWAIT) != 0, !(masked & RINGPOLL_FEATURE_NO_IOWAIT));
        rp_ring_fini(&ring);
    }
}

TEST_F(SimRing, WithoutUringInTheFeaturesNoneIsMade)
{
    rp_ring_options options = plain_options();
    options.features &= ~RINGPOLL_FEATURE_URING;
    EXPECT_EQ(rp_ring_init(&ring, &options), -ENOSYS);
    EXPECT_TRUE(kernel.setups.empty());
}

TEST_F(SimRing, AnyErrorButEinvalAndEnomemIsFinal)
{
    for (int error : {-EPERM, -ENOSYS, -EMFILE, -ENFILE, -EACCES, -EFAULT}) {
        kernel.setups.clear();
        kernel.on_setup = [error](const sim::SetupCall &) { return error; };
        rp_ring_options options = plain_options();
        EXPECT_EQ(rp_ring_init(&ring, &options), error);
        EXPECT_EQ(kernel.setups.size(), 1u);
        EXPECT_EQ(ring.fd, -1);
    }
}

TEST_F(SimRing, WithoutDeferAndWithCoopMaskedTheRestOfTheFlagsStays)
{
    kernel.setup_flags &= ~RP_SETUP_DEFER_TASKRUN;
    rp_ring_options options = plain_options();
    options.features &= ~RINGPOLL_FEATURE_COOP;
    start(options);
    EXPECT_EQ(ring.setup_flags, sizes | RP_SETUP_SUBMIT_ALL | RP_SETUP_SINGLE_ISSUER);
}

TEST_F(SimRing, EinvalToTheLastIsTheAnswerInTheEnd)
{
    kernel.on_setup = [](const sim::SetupCall &) { return -EINVAL; };
    rp_ring_options options = plain_options();
    EXPECT_EQ(rp_ring_init(&ring, &options), -EINVAL);
    EXPECT_EQ(kernel.setups.size(), 8u);
    EXPECT_EQ(kernel.setups.back().flags, 0u);
}

TEST_F(SimRing, AnErrorBelowTheFirstRungIsFinalToo)
{
    kernel.setup_flags &= ~RP_SETUP_NO_SQARRAY;
    kernel.on_setup = [](const sim::SetupCall &call) { return call.flags & RP_SETUP_NO_SQARRAY ? 0 : -EPERM; };
    rp_ring_options options = plain_options();
    EXPECT_EQ(rp_ring_init(&ring, &options), -EPERM);
    EXPECT_EQ(kernel.setups.size(), 2u);
}

/* ------------------------------------------------------------------- sizes */

TEST_F(SimRing, IsHalvedUntilItFitsTheMemory)
{
    kernel.memory_limit = 20000;
    start(plain_options(256, 4096));
    EXPECT_LT(ring.sq_entries, 256u);
    EXPECT_LT(ring.cq_entries, 4096u);
    EXPECT_GE(ring.cq_entries, ring.sq_entries);
    EXPECT_EQ(ring.setup_flags & RP_SETUP_DEFER_TASKRUN, RP_SETUP_DEFER_TASKRUN) << "size is not flags";
    EXPECT_EQ(ring.setup_flags & RP_SETUP_CQSIZE, RP_SETUP_CQSIZE);
}

TEST_F(SimRing, HalvingAndTheLadderDoNotRepeatEachOther)
{
    kernel.setup_flags &= ~(RP_SETUP_NO_SQARRAY | RP_SETUP_DEFER_TASKRUN);
    kernel.memory_limit = 20000;
    start(plain_options(256, 4096));
    unsigned refused = 0;
    for (const auto &setup : kernel.setups)
        refused += setup.result == -EINVAL;
    EXPECT_EQ(refused, 2u);
}

TEST_F(SimRing, WithoutMemoryForTheSmallestItIsEnomem)
{
    kernel.memory_limit = 100;
    rp_ring_options options = plain_options(256, 4096);
    EXPECT_EQ(rp_ring_init(&ring, &options), -ENOMEM);
    EXPECT_LT(kernel.setups.size(), 20u);
    EXPECT_EQ(kernel.setups.back().entries, 8u);
    EXPECT_EQ(ring.fd, -1);
}

TEST_F(SimRing, NumbersOutOfRangeAreBroughtInAlsoWithoutClamp)
{
    for (bool clamp : {true, false}) {
        rp_ring_options options = plain_options(~0u, ~0u);
        if (!clamp)
            options.features &= ~RINGPOLL_FEATURE_CLAMP;
        ASSERT_EQ(rp_ring_init(&ring, &options), 0);
        EXPECT_EQ(ring.sq_entries, 32768u);
        EXPECT_EQ(ring.cq_entries, 65536u);
        rp_ring_fini(&ring);
    }
    rp_ring_options options = plain_options(0, 0);
    ASSERT_EQ(rp_ring_init(&ring, &options), 0);
    EXPECT_EQ(ring.sq_entries, 1u);
    EXPECT_EQ(ring.cq_entries, 1u);
}

TEST_F(SimRing, TheCompletionQueueIsNeverSmallerThanTheOther)
{
    start(plain_options(64, 8));
    EXPECT_EQ(ring.sq_entries, 64u);
    EXPECT_EQ(ring.cq_entries, 64u);
}

TEST_F(SimRing, EveryAllocationMayFailInTurn)
{
    for (bool single : {true, false}) {
        if (!single) { /* before 5.4 */
            kernel.features &= ~RP_FEAT_SINGLE_MMAP;
            kernel.setup_flags &= ~RP_SETUP_NO_SQARRAY;
        }
        unsigned n = 1;
        for (;; n++) {
            kernel.allocation_failed = false;
            kernel.fail_allocation = n;
            kernel.setups.clear();
            rp_ring_options options = plain_options(8, 16); /* the smallest: no second try */
            int result = rp_ring_init(&ring, &options);
            if (!kernel.allocation_failed) {
                EXPECT_EQ(result, 0);
                break;
            }
            EXPECT_EQ(result, -ENOMEM) << "allocation " << n;
            EXPECT_EQ(ring.fd, -1);
            EXPECT_EQ(kernel.mappings(), 0u) << "allocation " << n;
            EXPECT_EQ(kernel.rings(), 0u) << "allocation " << n;
            ASSERT_LT(n, 100u);
        }
        EXPECT_EQ(n, single ? 4u : 5u);
        rp_ring_fini(&ring);
    }
}

TEST_F(SimRing, AFailedMappingIsTriedAgainAtHalfTheSize)
{
    kernel.fail_allocation = 2;
    start(plain_options(64, 256));
    EXPECT_EQ(ring.sq_entries, 32u);
    EXPECT_EQ(ring.cq_entries, 128u);
    EXPECT_EQ(kernel.rings(), 1u) << "the first one must be gone";
}

TEST_F(SimRing, ItsFdStaysOutOfTheProgramsNumbers)
{
    start();
    EXPECT_GE(ring.fd, 900);
    EXPECT_EQ(fcntl(ring.fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    int lowest = open("/dev/null", O_RDONLY | O_CLOEXEC);
    EXPECT_LT(lowest, ring.fd);
    close(lowest);
}

TEST_F(SimRing, WithoutADescriptorThereIsNoRingAndNoLeak)
{
    struct rlimit saved, tight;
    ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &saved), 0);
    int lowest = open("/dev/null", O_RDONLY | O_CLOEXEC);
    close(lowest);
    tight = saved;
    tight.rlim_cur = static_cast<rlim_t>(lowest) + 1; /* room for the ring, none to move it */
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &tight), 0);
    rp_ring_options options = plain_options();
    int result = rp_ring_init(&ring, &options);
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &saved), 0);
    EXPECT_EQ(result, -EMFILE);
}

/* -------------------------------------------------------------- submission */

TEST_F(SimRing, AnSqeIsZeroedAndSeenByTheKernelOnlyAtEnter)
{
    start();
    nop(1)->addr = 0x1234;
    EXPECT_EQ(rp_ring_queued(&ring), 1u);
    EXPECT_TRUE(kernel.submitted.empty());
    EXPECT_EQ(*ring.sq_tail, 0u) << "not published before enter";
    EXPECT_EQ(rp_ring_enter(&ring, 0, nullptr, nullptr), 1);
    EXPECT_EQ(rp_ring_queued(&ring), 0u);
    for (int i = 0; i < 8; i++) { /* round to the same place */
        rp_sqe *sqe = rp_ring_get_sqe(&ring);
        ASSERT_NE(sqe, nullptr);
        EXPECT_EQ(sqe->addr, 0u);
        EXPECT_EQ(sqe->user_data, 0u);
    }
}

TEST_F(SimRing, AQueuedSqeCanBeChangedUntilEnter)
{
    start();
    rp_sqe *sqe = poll(1);
    sqe->opcode = RP_IORING_OP_NOP;
    sqe->user_data = 2;
    EXPECT_EQ(rp_ring_enter(&ring, 0, nullptr, nullptr), 1);
    EXPECT_EQ(reap(), std::vector<uint64_t>{2});
}

TEST_F(SimRing, WhenFullThereIsNoSqeUntilTheNextEnter)
{
    start();
    for (unsigned i = 0; i < 8; i++)
        ASSERT_NE(nop(i), nullptr);
    EXPECT_EQ(nop(8), nullptr);
    EXPECT_EQ(rp_ring_queued(&ring), 8u);
    EXPECT_EQ(rp_ring_enter(&ring, 0, nullptr, nullptr), 8);
    EXPECT_NE(nop(8), nullptr);
}

TEST_F(SimRing, OrderIsKeptRoundTheEnds)
{
    for (bool array : {false, true}) {
        rp_ring_options options = plain_options(4, 16);
        if (array)
            options.features &= ~RINGPOLL_FEATURE_NO_SQARRAY;
        ASSERT_EQ(rp_ring_init(&ring, &options), 0);
        uint64_t next = 0, seen = 0;
        for (unsigned turn = 0; turn < 1000; turn++) {
            unsigned count = turn % 5; /* 0..4 of 4 */
            for (unsigned i = 0; i < count; i++)
                ASSERT_NE(nop(next++), nullptr);
            ASSERT_EQ(rp_ring_enter(&ring, 0, nullptr, nullptr), static_cast<int>(count));
            for (uint64_t user_data : reap())
                ASSERT_EQ(user_data, seen++);
        }
        EXPECT_EQ(seen, next);
        rp_ring_fini(&ring);
    }
}

TEST_F(SimRing, TheIndicesMayWrapTheirThirtyTwoBits)
{
    start(plain_options(4, 8));
    /* As after four billion operations. */
    *ring.sq_head = *ring.sq_tail = ring.sqe_head = ring.sqe_tail = 0xfffffffeu;
    *ring.cq_head = *ring.cq_tail = ring.cq_next = 0xfffffffdu;
    uint64_t next = 0, seen = 0;
    for (unsigned turn = 0; turn < 8; turn++) {
        for (unsigned i = 0; i < 4; i++)
            ASSERT_NE(nop(next++), nullptr);
        ASSERT_EQ(nop(99), nullptr);
        ASSERT_EQ(rp_ring_enter(&ring, 4, nullptr, nullptr), 4);
        for (uint64_t user_data : reap())
            ASSERT_EQ(user_data, seen++);
    }
    EXPECT_EQ(seen, 32u);
    EXPECT_EQ(ring.sqes_submitted, 32u);
    EXPECT_EQ(ring.cqes_reaped, 32u);
}

TEST_F(SimRing, GoesOnAfterABatchThatWasTakenInPart)
{
    start();
    kernel.take_at_most = {3, 1};
    for (uint64_t i = 0; i < 6; i++)
        nop(i);
    EXPECT_EQ(rp_ring_enter(&ring, 6, nullptr, nullptr), 6);
    EXPECT_EQ(kernel.enters.size(), 3u);
    EXPECT_EQ(rp_ring_queued(&ring), 0u);
    EXPECT_EQ(reap().size(), 6u);
}

TEST_F(SimRing, ABadSqeWithoutSubmitAllDoesNotHoldUpTheOthers)
{
    rp_ring_options options = plain_options();
    options.features &= ~RINGPOLL_FEATURE_SUBMIT_ALL;
    start(options);
    nop(1);
    nop(2)->opcode = 250;
    nop(3);
    EXPECT_EQ(rp_ring_enter(&ring, 3, nullptr, nullptr), 3);
    EXPECT_EQ(reap(), (std::vector<uint64_t>{1, 2, 3}));
}

TEST_F(SimRing, EagainLeavesTheSqesQueued)
{
    start();
    kernel.take_at_most = {0};
    nop(1);
    nop(2);
    EXPECT_EQ(rp_ring_enter(&ring, 0, nullptr, nullptr), -EAGAIN);
    EXPECT_EQ(rp_ring_queued(&ring), 2u);
    EXPECT_EQ(rp_ring_enter(&ring, 0, nullptr, nullptr), 2);
    EXPECT_EQ(reap(), (std::vector<uint64_t>{1, 2}));
}

TEST_F(SimRing, EagainAfterAPartTellsThePart)
{
    start();
    kernel.take_at_most = {1, 0};
    nop(1);
    nop(2);
    EXPECT_EQ(rp_ring_enter(&ring, 1, nullptr, nullptr), 1);
    EXPECT_EQ(rp_ring_queued(&ring), 1u);
    EXPECT_EQ(rp_ring_enter(&ring, 1, nullptr, nullptr), 1);
    EXPECT_EQ(reap(), (std::vector<uint64_t>{1, 2}));
}

TEST_F(SimRing, ErrorsOfEnterArePassedOnAndCostNoSqe)
{
    start();
    for (int error : {-EINTR, -ETIME, -EAGAIN, -EBUSY, -EBADR, -EEXIST, -EPERM, -EBADFD, -ENXIO, -EFAULT, -EBADF}) {
        nop(static_cast<uint64_t>(-error));
        kernel.enter_errors = {error};
        EXPECT_EQ(rp_ring_enter(&ring, 0, nullptr, nullptr), error);
        EXPECT_EQ(rp_ring_queued(&ring), 1u);
        EXPECT_EQ(rp_ring_enter(&ring, 0, nullptr, nullptr), 1);
        EXPECT_EQ(reap(), std::vector<uint64_t>{static_cast<uint64_t>(-error)});
    }
}

/* ----------------------------------------------------------------- waiting */

TEST_F(SimRing, AWaitWithoutTimeAndMaskPassesNoArgument)
{
    start();
    nop(1);
    rp_ring_enter(&ring, 1, nullptr, nullptr);
    ASSERT_EQ(kernel.enters.size(), 1u);
    EXPECT_FALSE(kernel.enters[0].has_arg);
    EXPECT_EQ(kernel.enters[0].arg_size, 0u);
    EXPECT_EQ(kernel.enters[0].flags, RP_ENTER_GETEVENTS | RP_ENTER_NO_IOWAIT);
}

TEST_F(SimRing, ALookPassesNoArgumentEither)
{
    start();
    struct timespec time = {1, 2};
    sigset_t mask;
    sigemptyset(&mask);
    EXPECT_EQ(rp_ring_enter(&ring, 0, &time, &mask), 0);
    EXPECT_FALSE(kernel.enters[0].has_arg);
    EXPECT_EQ(kernel.enters[0].flags & RP_ENTER_EXT_ARG, 0u);
    EXPECT_EQ(kernel.enters[0].flags & RP_ENTER_GETEVENTS, RP_ENTER_GETEVENTS);
}

TEST_F(SimRing, TimeArrivesToTheNanosecond)
{
    start();
    struct timespec time = {3, 123456789};
    EXPECT_EQ(rp_ring_enter(&ring, 1, &time, nullptr), -ETIME);
    ASSERT_TRUE(kernel.enters[0].timeout_ns.has_value());
    EXPECT_EQ(*kernel.enters[0].timeout_ns, 3123456789);
    EXPECT_FALSE(kernel.enters[0].has_sigmask);
}

TEST_F(SimRing, TheMaskAloneNeedsNoExtArg)
{
    start();
    sigset_t mask;
    sigemptyset(&mask);
    EXPECT_EQ(rp_ring_enter(&ring, 1, nullptr, &mask), -EINTR);
    EXPECT_TRUE(kernel.enters[0].has_sigmask);
    EXPECT_EQ(kernel.enters[0].flags & RP_ENTER_EXT_ARG, 0u);
    EXPECT_EQ(kernel.enters[0].arg_size, RP_SIGSET_BYTES);

    struct timespec time = {0, 1};
    EXPECT_EQ(rp_ring_enter(&ring, 1, &time, &mask), -ETIME);
    EXPECT_TRUE(kernel.enters[1].has_sigmask);
    EXPECT_EQ(kernel.enters[1].flags & RP_ENTER_EXT_ARG, RP_ENTER_EXT_ARG);
}

TEST_F(SimRing, AnEnterThatSubmittedHidesTheEndOfItsWait)
{
    start();
    poll(1);
    struct timespec time = {0, 1};
    EXPECT_EQ(rp_ring_enter(&ring, 1, &time, nullptr), 1);
    EXPECT_EQ(rp_ring_peek(&ring), nullptr);
    EXPECT_EQ(kernel.pending(), 1u);
}

TEST_F(SimRing, AWaitEndsWithWhatBecomesReadyInIt)
{
    start();
    poll(1);
    poll(2);
    kernel.on_idle = [this] { return kernel.complete(2, 1) || kernel.complete(1, 1); };
    EXPECT_EQ(rp_ring_enter(&ring, 2, nullptr, nullptr), 2);
    EXPECT_EQ(reap(), (std::vector<uint64_t>{2, 1}));
}

TEST_F(SimRing, TaskWorkIsSeenWithoutACallAndRunByOne)
{
    start();
    poll(1);
    rp_ring_enter(&ring, 0, nullptr, nullptr);
    EXPECT_FALSE(rp_ring_wants_enter(&ring));
    kernel.complete(1, 1);
    EXPECT_TRUE(rp_ring_wants_enter(&ring));
    EXPECT_EQ(rp_ring_peek(&ring), nullptr) << "DEFER_TASKRUN: not before an enter";
    EXPECT_EQ(rp_ring_enter(&ring, 0, nullptr, nullptr), 0);
    EXPECT_FALSE(rp_ring_wants_enter(&ring));
    EXPECT_EQ(reap(), std::vector<uint64_t>{1});
}

TEST_F(SimRing, TaskrunStaysUpUntilAllWorkWasRun)
{
    start(plain_options(8, 128));
    for (uint64_t i = 0; i < 64; i++)
        kernel.post(i, 0);
    size_t seen = 0, first = 0;
    while (rp_ring_wants_enter(&ring)) {
        ASSERT_EQ(rp_ring_enter(&ring, 0, nullptr, nullptr), 0);
        size_t count = reap().size();
        ASSERT_GT(count, 0u);
        first = first ? first : count;
        seen += count;
    }
    EXPECT_EQ(first, 20u) << "one enter runs no more";
    EXPECT_EQ(seen, 64u);
}

/* Read entries that the kernel still counts stand for a large min_complete. */
TEST_F(SimRing, OnceABusyOneEnterRunsAllThatWaits)
{
    start(plain_options(8, 1024));
    unsigned turns = 0;
    for (unsigned round = 0; round < 50; round++) {
        for (uint64_t i = 0; i < 64; i++)
            kernel.post(i, 0);
        turns = 0;
        std::vector<uint64_t> seen;
        while (rp_ring_wants_enter(&ring)) {
            ASSERT_EQ(rp_ring_enter(&ring, 0, nullptr, nullptr), 0);
            for (uint64_t user_data : reap())
                seen.push_back(user_data);
            turns++;
        }
        ASSERT_EQ(seen.size(), 64u);
        for (uint64_t i = 0; i < 64; i++)
            ASSERT_EQ(seen[i], i);
    }
    EXPECT_EQ(turns, 1u);
}

/* It lasts as long as ever, but as the queue is not empty to the kernel, how it
 * ended is hidden: nothing new means interrupted, or over. */
TEST_F(SimRing, EntriesThatAreHeldDoNotEndAWait)
{
    start(plain_options(8, 1024));
    for (uint64_t i = 0; i < 100; i++)
        kernel.post(i, 0);
    while (rp_ring_wants_enter(&ring)) {
        rp_ring_enter(&ring, 0, nullptr, nullptr);
        reap();
    }
    struct timespec time = {0, 1};
    unsigned asked = 0;
    kernel.on_idle = [&asked] { return asked++ == 3; };
    EXPECT_EQ(rp_ring_enter(&ring, 1, &time, nullptr), 0);
    EXPECT_EQ(rp_ring_enter(&ring, 1, nullptr, nullptr), 0);
    EXPECT_EQ(asked, 2u) << "both waited";
    EXPECT_EQ(rp_ring_peek(&ring), nullptr);
    poll(7);
    kernel.on_idle = [this] { return kernel.complete(7, 1); };
    EXPECT_EQ(rp_ring_enter(&ring, 1, nullptr, nullptr), 1);
    EXPECT_EQ(reap(), std::vector<uint64_t>{7});
}

TEST_F(SimRing, EntriesThatAreHeldLeaveTheQueueItsRoom)
{
    start(plain_options(8, 16));
    uint64_t next = 0, seen = 0;
    for (unsigned round = 0; round < 200; round++) {
        for (unsigned i = 0; i < 12; i++) /* three quarters: what is promised to be free */
            kernel.post(next++, 0);
        do {
            ASSERT_EQ(rp_ring_enter(&ring, 0, nullptr, nullptr), 0);
            for (uint64_t user_data : reap())
                ASSERT_EQ(user_data, seen++);
        } while (rp_ring_wants_enter(&ring));
    }
    EXPECT_EQ(seen, next);
    EXPECT_EQ(ring.overflows, 0u);
}

/* ---------------------------------------------------------------- overflow */

TEST_F(SimRing, NothingIsLostWhenTheCompletionQueueOverflows)
{
    start(plain_options(8, 8));
    uint64_t submitted = 0;
    for (int turn = 0; turn < 5; turn++) {
        for (int i = 0; i < 8; i++)
            ASSERT_NE(nop(submitted++), nullptr);
        EXPECT_EQ(rp_ring_enter(&ring, 0, nullptr, nullptr), 8);
    }
    EXPECT_TRUE(rp_ring_wants_enter(&ring));
    uint64_t seen = 0;
    while (seen < submitted) {
        for (uint64_t user_data : reap())
            ASSERT_EQ(user_data, seen++);
        if (!rp_ring_wants_enter(&ring))
            break;
        EXPECT_EQ(rp_ring_enter(&ring, 0, nullptr, nullptr), 0);
    }
    EXPECT_EQ(seen, submitted);
    EXPECT_FALSE(rp_ring_wants_enter(&ring));
    EXPECT_GT(ring.overflows, 0u);
    EXPECT_EQ(*ring.cq_overflow, 0u) << "held back is not dropped";
}

TEST_F(SimRing, EbusyBeforeTheBacklogIsReapedIsPassedOn)
{
    kernel.submit_needs_empty_backlog = true;
    start(plain_options(8, 8));
    for (uint64_t i = 0; i < 8; i++)
        nop(i);
    EXPECT_EQ(rp_ring_enter(&ring, 0, nullptr, nullptr), 8);
    for (uint64_t i = 8; i < 16; i++)
        nop(i);
    EXPECT_EQ(rp_ring_enter(&ring, 0, nullptr, nullptr), 8);
    nop(16);
    EXPECT_EQ(rp_ring_enter(&ring, 0, nullptr, nullptr), -EBUSY);
    EXPECT_EQ(rp_ring_queued(&ring), 1u);
    uint64_t seen = 0;
    for (int turn = 0; turn < 10 && seen < 17; turn++) {
        seen += reap().size();
        rp_ring_enter(&ring, 0, nullptr, nullptr);
    }
    EXPECT_EQ(seen, 17u);
    EXPECT_EQ(rp_ring_queued(&ring), 0u);
}

TEST_F(SimRing, ALostCompletionIsEbadrOnce)
{
    start(plain_options(8, 8));
    kernel.no_memory_for_overflow = true;
    for (uint64_t i = 0; i < 8; i++)
        nop(i);
    EXPECT_EQ(rp_ring_enter(&ring, 0, nullptr, nullptr), 8);
    nop(8);
    rp_ring_enter(&ring, 0, nullptr, nullptr); /* the count hides it */
    EXPECT_EQ(*ring.cq_overflow, 1u);
    nop(9);
    rp_ring_enter(&ring, 0, nullptr, nullptr);
    kernel.no_memory_for_overflow = false;
    reap();
    EXPECT_EQ(rp_ring_enter(&ring, 0, nullptr, nullptr), 0);
}

TEST_F(SimRing, ALostCompletionIsToldByAnEnterThatSubmitsNothing)
{
    start(plain_options(8, 8));
    kernel.no_memory_for_overflow = true;
    for (uint64_t i = 0; i < 9; i++)
        kernel.post(i, 0);
    EXPECT_EQ(rp_ring_enter(&ring, 0, nullptr, nullptr), -EBADR);
    EXPECT_EQ(reap().size(), 8u);
    EXPECT_EQ(rp_ring_enter(&ring, 0, nullptr, nullptr), 0);
}

/* --------------------------------------------------------- registered ring */

TEST_F(SimRing, TheRegisteredFdIsUsedWhileThereIsOneThread)
{
    rp_ring_options options = plain_options();
    options.single_thread = true;
    start(options);
    EXPECT_EQ(kernel.ring_fds(), 1u);
    EXPECT_TRUE(ring.features & RINGPOLL_FEATURE_REGISTERED_RING);
    nop(1);
    EXPECT_EQ(rp_ring_enter(&ring, 1, nullptr, nullptr), 1);
    EXPECT_EQ(kernel.enters.back().flags & RP_ENTER_REGISTERED_RING, RP_ENTER_REGISTERED_RING);
    EXPECT_EQ(kernel.enters.back().fd, ring.enter_fd);
    EXPECT_NE(ring.enter_fd, ring.fd);

    rp_ring_unregister_fd(&ring);
    EXPECT_EQ(kernel.ring_fds(), 0u);
    EXPECT_FALSE(ring.features & RINGPOLL_FEATURE_REGISTERED_RING);
    nop(2);
    EXPECT_EQ(rp_ring_enter(&ring, 1, nullptr, nullptr), 1);
    EXPECT_EQ(kernel.enters.back().flags & RP_ENTER_REGISTERED_RING, 0u);
    EXPECT_EQ(kernel.enters.back().fd, ring.fd);
    rp_ring_unregister_fd(&ring);
    EXPECT_EQ(kernel.ring_fds(), 0u);
}

TEST_F(SimRing, ARingWithoutAnFdGivesUpItsSlotByItself)
{
    rp_ring_options options = plain_options();
    options.single_thread = true;
    start(options);
    close(ring.fd);
    ring.fd = RP_RING_NO_FD;
    nop(1);
    EXPECT_EQ(rp_ring_enter(&ring, 1, nullptr, nullptr), 1);
    rp_ring_fini(&ring);
    EXPECT_EQ(kernel.ring_fds(), 0u);
    EXPECT_EQ(ring.fd, -1);
}

TEST_F(SimRing, WithSeveralThreadsTheFdIsNotRegistered)
{
    start();
    EXPECT_EQ(kernel.ring_fds(), 0u);
    EXPECT_EQ(ring.enter_fd, ring.fd);
    EXPECT_FALSE(ring.features & RINGPOLL_FEATURE_REGISTERED_RING);
}

TEST_F(SimRing, WithoutAFreeSlotThePlainFdDoes)
{
    kernel.max_ring_fds = 0;
    rp_ring_options options = plain_options();
    options.single_thread = true;
    start(options);
    EXPECT_EQ(ring.enter_fd, ring.fd);
    EXPECT_EQ(rp_ring_enter(&ring, 0, nullptr, nullptr), 0);
}

/* ------------------------------------------------------------------ SQPOLL */

class SimSqpoll : public SimRing {
protected:
    void start_sqpoll(bool affinity = false)
    {
        rp_ring_options options = plain_options();
        options.sqpoll = true;
        options.sq_aff = affinity;
        options.sq_thread_cpu = 1;
        options.sq_thread_idle_ms = 42;
        start(options);
    }
};

TEST_F(SimSqpoll, IsAskedForWithItsCpuAndItsPatience)
{
    start_sqpoll(true);
    const sim::SetupCall &setup = kernel.setups.back();
    EXPECT_EQ(setup.flags & (RP_SETUP_SQPOLL | RP_SETUP_SQ_AFF), RP_SETUP_SQPOLL | RP_SETUP_SQ_AFF);
    EXPECT_EQ(setup.flags & (RP_SETUP_DEFER_TASKRUN | RP_SETUP_COOP_TASKRUN | RP_SETUP_TASKRUN_FLAG), 0u);
    EXPECT_EQ(setup.sq_thread_cpu, 1u);
    EXPECT_EQ(setup.sq_thread_idle, 42u);
    EXPECT_TRUE(ring.features & RINGPOLL_FEATURE_SQPOLL);
    EXPECT_FALSE(ring.features & (RINGPOLL_FEATURE_DEFER | RINGPOLL_FEATURE_COOP));
}

TEST_F(SimSqpoll, WithoutAffinityNoCpuIsNamed)
{
    start_sqpoll(false);
    EXPECT_EQ(kernel.setups.back().flags & RP_SETUP_SQ_AFF, 0u);
    EXPECT_EQ(kernel.setups.back().sq_thread_cpu, 0u);
}

TEST_F(SimSqpoll, IsNeverTheDefault)
{
    start();
    EXPECT_EQ(ring.setup_flags & RP_SETUP_SQPOLL, 0u);
}

TEST_F(SimSqpoll, MaskedItIsARingWithout)
{
    rp_ring_options options = plain_options();
    options.sqpoll = true;
    options.features &= ~RINGPOLL_FEATURE_SQPOLL;
    start(options);
    EXPECT_EQ(ring.setup_flags & RP_SETUP_SQPOLL, 0u);
    EXPECT_FALSE(ring.features & RINGPOLL_FEATURE_SQPOLL);
}

TEST_F(SimSqpoll, RefusedItIsTheKernelsAnswer)
{
    kernel.on_setup = [](const sim::SetupCall &call) { return call.flags & RP_SETUP_SQPOLL ? -EPERM : 0; };
    rp_ring_options options = plain_options();
    options.sqpoll = true;
    EXPECT_EQ(rp_ring_init(&ring, &options), -EPERM);
}

TEST_F(SimSqpoll, OnAKernelThatNeedsRegisteredFilesIsRefusedAndLeavesNothing)
{
    kernel.features &= ~RP_FEAT_SQPOLL_NONFIXED;
    rp_ring_options options = plain_options();
    options.sqpoll = true;
    EXPECT_EQ(rp_ring_init(&ring, &options), -EINVAL);
}

TEST_F(SimSqpoll, AnAwakeThreadNeedsNoCall)
{
    start_sqpoll();
    nop(1);
    EXPECT_EQ(rp_ring_enter(&ring, 0, nullptr, nullptr), 1);
    EXPECT_TRUE(kernel.enters.empty());
    kernel.run_sq_thread(false);
    EXPECT_EQ(reap(), std::vector<uint64_t>{1});
    nop(2);
    kernel.on_idle = [] { return false; };
    EXPECT_EQ(rp_ring_enter(&ring, 0, nullptr, nullptr), 1);
    kernel.run_sq_thread(false);
    EXPECT_EQ(rp_ring_enter(&ring, 1, nullptr, nullptr), 0) << "what waits in the CQ needs no call";
    EXPECT_TRUE(kernel.enters.empty());
}

TEST_F(SimSqpoll, ASleepingThreadIsWoken)
{
    start_sqpoll();
    kernel.run_sq_thread(true);
    nop(1);
    EXPECT_EQ(rp_ring_enter(&ring, 0, nullptr, nullptr), 1);
    ASSERT_EQ(kernel.enters.size(), 1u);
    EXPECT_EQ(kernel.enters[0].flags & RP_ENTER_SQ_WAKEUP, RP_ENTER_SQ_WAKEUP);
    EXPECT_TRUE(kernel.sq_thread_woken());
    kernel.run_sq_thread(false);
    EXPECT_EQ(reap(), std::vector<uint64_t>{1});
}

TEST_F(SimSqpoll, WhatWasPublishedIsNoLongerOurs)
{
    start_sqpoll();
    nop(1);
    EXPECT_EQ(rp_ring_queued(&ring), 1u);
    rp_ring_enter(&ring, 0, nullptr, nullptr);
    EXPECT_EQ(rp_ring_queued(&ring), 0u);
    EXPECT_EQ(*ring.sq_head, 0u) << "the thread has not come to it yet";
}

TEST_F(SimSqpoll, AFullQueueIsWaitedFor)
{
    start_sqpoll();
    for (uint64_t i = 0; i < 8; i++)
        ASSERT_NE(nop(i), nullptr);
    EXPECT_EQ(nop(8), nullptr);
    EXPECT_EQ(rp_ring_enter(&ring, 0, nullptr, nullptr), 8);
    ASSERT_EQ(kernel.enters.size(), 1u);
    EXPECT_EQ(kernel.enters[0].flags & RP_ENTER_SQ_WAIT, RP_ENTER_SQ_WAIT);
    EXPECT_NE(nop(8), nullptr);
    EXPECT_EQ(reap().size(), 8u);
}

TEST_F(SimSqpoll, AThreadThatSleepsWithNothingToTakeIsLeftAsleep)
{
    start_sqpoll();
    kernel.run_sq_thread(true);
    struct timespec time = {0, 1000};
    EXPECT_EQ(rp_ring_enter(&ring, 1, &time, nullptr), -ETIME);
    ASSERT_EQ(kernel.enters.size(), 1u);
    EXPECT_EQ(kernel.enters[0].flags & RP_ENTER_SQ_WAKEUP, 0u) << "what it waits for wakes it";
}

TEST_F(SimSqpoll, AFenceIsALinkBehindAllThatIsQueued)
{
    start_sqpoll();
    nop(7);
    ASSERT_TRUE(rp_ring_fence(&ring, 99));
    ASSERT_EQ(rp_ring_queued(&ring), 3u);
    EXPECT_EQ(ring.sqes[1].opcode, RP_IORING_OP_NOP);
    EXPECT_EQ(ring.sqes[1].flags, RP_SQE_IO_LINK | RP_SQE_CQE_SKIP_SUCCESS);
    EXPECT_EQ(ring.sqes[2].opcode, RP_IORING_OP_NOP);
    EXPECT_EQ(ring.sqes[2].flags, 0);
    rp_ring_enter(&ring, 0, nullptr, nullptr);
    kernel.run_sq_thread(false);
    EXPECT_EQ(reap(), (std::vector<uint64_t>{7, 99}));
}

TEST_F(SimSqpoll, WithoutCqeSkipAFencesFirstHalfIsOfNoKind)
{
    rp_ring_options options = plain_options();
    options.sqpoll = true;
    options.features &= ~RINGPOLL_FEATURE_CQE_SKIP;
    start(options);
    ASSERT_TRUE(rp_ring_fence(&ring, 99));
    rp_ring_enter(&ring, 0, nullptr, nullptr);
    kernel.run_sq_thread(false);
    EXPECT_EQ(reap(), (std::vector<uint64_t>{0, 99}));
}

TEST_F(SimSqpoll, AFenceWithoutRoomFillsTheQueueSoThatItCanBeWaitedFor)
{
    start_sqpoll();
    for (uint64_t i = 1; i < 8; i++)
        ASSERT_NE(nop(i), nullptr);
    EXPECT_FALSE(rp_ring_fence(&ring, 99));
    EXPECT_FALSE(rp_ring_fence(&ring, 99));
    EXPECT_EQ(rp_ring_queued(&ring), 8u);
    rp_ring_enter(&ring, 0, nullptr, nullptr);
    ASSERT_EQ(kernel.enters.size(), 1u);
    EXPECT_EQ(kernel.enters[0].flags & RP_ENTER_SQ_WAIT, RP_ENTER_SQ_WAIT);
    ASSERT_TRUE(rp_ring_fence(&ring, 99));
    rp_ring_enter(&ring, 0, nullptr, nullptr);
    kernel.run_sq_thread(false);
    EXPECT_EQ(reap().back(), 99u);
}

TEST_F(SimSqpoll, TheSmallestQueueHasRoomForAFence)
{
    rp_ring_options options = plain_options(1, 1);
    options.sqpoll = true;
    start(options);
    EXPECT_TRUE(rp_ring_fence(&ring, 99));
}

TEST_F(SimSqpoll, WaitsLikeAnyOther)
{
    start_sqpoll();
    struct timespec time = {0, 1000};
    EXPECT_EQ(rp_ring_enter(&ring, 1, &time, nullptr), -ETIME);
    EXPECT_EQ(rp_ring_enter(&ring, 1, nullptr, nullptr), -EINTR);
    poll(1);
    kernel.on_idle = [this] { return kernel.complete(1, 1); };
    EXPECT_EQ(rp_ring_enter(&ring, 1, nullptr, nullptr), 1);
    EXPECT_EQ(reap(), std::vector<uint64_t>{1});
}

TEST_F(SimSqpoll, HeldBackCompletionsAreFetched)
{
    rp_ring_options options = plain_options(8, 8);
    options.sqpoll = true;
    start(options);
    for (uint64_t i = 0; i < 12; i++)
        kernel.post(i, 0);
    EXPECT_EQ(reap().size(), 8u);
    EXPECT_TRUE(rp_ring_wants_enter(&ring));
    EXPECT_EQ(rp_ring_enter(&ring, 0, nullptr, nullptr), 0);
    EXPECT_EQ(reap().size(), 4u);
    EXPECT_EQ(ring.overflows, 1u);
}

/* --------------------------------------------------------------------- end */

TEST_F(SimRing, EndingNoRingIsFine)
{
    rp_ring_fini(nullptr);
    rp_ring_fini(&ring);
    rp_ring_abandon(&ring);
    rp_ring_unregister_fd(&ring);
}

TEST_F(SimRing, EndingTwiceIsEndingOnce)
{
    start();
    rp_ring_fini(&ring);
    EXPECT_EQ(ring.fd, -1);
    rp_ring_fini(&ring);
}

TEST(SimRingAbandon, ClosesTheNumberAndTouchesNothingElse)
{
    sim::FakeKernel kernel;
    rp_ring ring;
    rp_ring_options options = plain_options();
    options.single_thread = true;
    ASSERT_EQ(rp_ring_init(&ring, &options), 0);
    int fd = ring.fd;
    size_t mappings = kernel.mappings(), registers = kernel.registers.size();
    rp_ring_abandon(&ring);
    EXPECT_EQ(ring.fd, -1);
    EXPECT_EQ(fcntl(fd, F_GETFD), -1);
    EXPECT_EQ(kernel.mappings(), mappings) << "they are the parent's";
    EXPECT_EQ(kernel.registers.size(), registers);
    EXPECT_TRUE(kernel.enters.empty());
}

/* Random turns of submit, complete, reap and trouble: nothing lost, nothing twice. */
TEST(SimRingModel, NoCompletionIsLostOrInventedUnderRandomTrouble)
{
    for (unsigned seed = 1; seed <= 40; seed++) {
        SCOPED_TRACE(seed);
        srand(seed);
        static const unsigned versions[] = {510, 513, 519, 600, 601, 618};
        sim::FakeKernel kernel(versions[seed % 6]);
        rp_ring ring;
        rp_ring_options options = plain_options(1u << (rand() % 5), 1u << (rand() % 6));
        ASSERT_EQ(rp_ring_init(&ring, &options), 0);
        std::set<uint64_t> expected, armed;
        uint64_t next = 1;
        auto reap = [&] {
            while (rp_cqe *cqe = rp_ring_peek(&ring)) {
                ASSERT_EQ(expected.erase(cqe->user_data), 1u) << cqe->user_data;
                rp_ring_seen(&ring);
            }
        };
        for (int turn = 0; turn < 3000; turn++) {
            switch (rand() % 6) {
            case 0:
            case 1:
                if (rp_sqe *sqe = rp_ring_get_sqe(&ring)) {
                    bool waits = rand() % 2;
                    sqe->opcode = waits ? RP_IORING_OP_POLL_ADD : RP_IORING_OP_NOP;
                    sqe->user_data = next;
                    expected.insert(next);
                    if (waits)
                        armed.insert(next);
                    next++;
                }
                break;
            case 2:
                if (!armed.empty() && kernel.complete(*armed.begin(), 1))
                    armed.erase(armed.begin());
                break;
            case 3:
                reap();
                break;
            default: {
                static const int errors[] = {0, 0, 0, -EINTR, -EAGAIN, -EBUSY};
                kernel.enter_errors = {errors[rand() % 6]};
                if (rand() % 4 == 0)
                    kernel.take_at_most = {static_cast<unsigned>(rand() % 4)};
                struct timespec time = {0, 1};
                rp_ring_enter(&ring, 0, rand() % 2 ? &time : nullptr, nullptr);
                kernel.take_at_most.clear();
            }
            }
        }
        kernel.enter_errors.clear();
        for (int turn = 0; turn < 10000 && !expected.empty(); turn++) {
            rp_ring_enter(&ring, 0, nullptr, nullptr);
            for (auto at = armed.begin(); at != armed.end();)
                at = kernel.complete(*at, 1) ? armed.erase(at) : std::next(at);
            reap();
        }
        EXPECT_TRUE(expected.empty()) << expected.size();
        EXPECT_EQ(kernel.pending(), 0u);
        EXPECT_EQ(ring.cqes_reaped, next - 1);
        EXPECT_EQ(ring.sqes_submitted, next - 1);
        rp_ring_fini(&ring);
    }
}

} // namespace
