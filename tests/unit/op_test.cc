/* SPDX-License-Identifier: MIT
 *
 * Operation slots: every edge, legal or not; generations; memory.
 */
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>
#include <vector>

extern "C" {
#include "op.h"
}
#include "sim/fake_kernel.h"

namespace {

constexpr rp_op_state states[] = {RP_OP_FREE, RP_OP_QUEUED, RP_OP_INFLIGHT, RP_OP_CANCELING, RP_OP_ORPHANED};
const char *const names[] = {"FREE", "QUEUED", "INFLIGHT", "CANCELING", "ORPHANED"};

const std::set<std::pair<int, int>> legal = {
    {RP_OP_FREE, RP_OP_QUEUED},        {RP_OP_QUEUED, RP_OP_INFLIGHT},    {RP_OP_QUEUED, RP_OP_FREE},
    {RP_OP_QUEUED, RP_OP_ORPHANED},    {RP_OP_INFLIGHT, RP_OP_CANCELING}, {RP_OP_INFLIGHT, RP_OP_FREE},
    {RP_OP_INFLIGHT, RP_OP_ORPHANED},  {RP_OP_CANCELING, RP_OP_FREE},     {RP_OP_CANCELING, RP_OP_ORPHANED},
    {RP_OP_ORPHANED, RP_OP_FREE},
};

class Op : public testing::Test {
protected:
    Op() { rp_op_table_init(&table); }
    ~Op() override { rp_op_table_fini(&table); }

    rp_op *make(void *owner = nullptr) { return rp_op_new(&table, RP_OP_TEST, owner); }
    /* A fresh op, brought to `state` by legal edges. */
    rp_op *in_state(rp_op_state state)
    {
        rp_op *op = make(this);
        if (state == RP_OP_QUEUED)
            return op;
        if (state == RP_OP_INFLIGHT || state == RP_OP_CANCELING)
            rp_op_step(&table, op, RP_OP_INFLIGHT);
        if (state != RP_OP_INFLIGHT)
            rp_op_step(&table, op, state);
        return op;
    }
    uint32_t slots() const { return table.pages_used * RP_OP_PAGE; }
    uint32_t counted() const
    {
        uint32_t sum = 0;
        for (uint32_t count : table.count)
            sum += count;
        return sum;
    }

    rp_op_table table;
};

TEST_F(Op, ATableNeedsNoMemoryUntilItIsUsed)
{
    EXPECT_EQ(table.pages, nullptr);
    EXPECT_EQ(rp_op_busy(&table), 0u);
    EXPECT_EQ(rp_op_find(&table, (uint64_t{1} << 40) | RP_OP_TEST), nullptr);
}

TEST_F(Op, EveryLegalEdgeIsTakenAndCounted)
{
    for (const auto &edge : legal) {
        if (edge.first == RP_OP_FREE)
            continue; /* rp_op_new() alone takes it */
        rp_op *op = in_state(static_cast<rp_op_state>(edge.first));
        uint32_t from = table.count[edge.first], to = table.count[edge.second];
        rp_op_step(&table, op, static_cast<rp_op_state>(edge.second));
        EXPECT_EQ(op->state, edge.second);
        EXPECT_EQ(table.count[edge.first], from - 1) << names[edge.first];
        EXPECT_EQ(table.count[edge.second], to + 1) << names[edge.second];
        EXPECT_EQ(counted(), slots());
        if (op->state != RP_OP_FREE)
            rp_op_step(&table, op, RP_OP_FREE);
    }
    EXPECT_EQ(rp_op_busy(&table), 0u);
}

#if !defined(NDEBUG) && GTEST_HAS_DEATH_TEST
using OpDeathTest = Op;

TEST_F(OpDeathTest, EveryOtherEdgeIsABug)
{
    testing::GTEST_FLAG(death_test_style) = "fast";
    for (rp_op_state from : states)
        for (rp_op_state to : states) {
            if (legal.count({from, to}))
                continue;
            EXPECT_DEATH(rp_op_step(&table, in_state(from), to), "legal") << names[from] << " -> " << names[to];
        }
    EXPECT_DEATH(rp_op_step(&table, make(), RP_OP_STATES), "legal");
}

TEST_F(OpDeathTest, AnOpOfKindNoneIsABug)
{
    EXPECT_DEATH(rp_op_new(&table, RP_OP_NONE, nullptr), "NONE");
}
#endif

TEST_F(Op, ANewOneIsQueuedAndOwned)
{
    int owner;
    rp_op *op = rp_op_new(&table, RP_OP_POLL, &owner);
    ASSERT_NE(op, nullptr);
    EXPECT_EQ(op->state, RP_OP_QUEUED);
    EXPECT_EQ(op->kind, RP_OP_POLL);
    EXPECT_EQ(op->owner, &owner);
    EXPECT_EQ(rp_op_busy(&table), 1u);
}

TEST_F(Op, OrphansAndFreeOnesHaveNoOwner)
{
    rp_op *op = make(this);
    rp_op_step(&table, op, RP_OP_ORPHANED);
    EXPECT_EQ(op->owner, nullptr);
    rp_op *other = make(this);
    rp_op_step(&table, other, RP_OP_FREE);
    EXPECT_EQ(other->owner, nullptr);
}

TEST_F(Op, IsFoundByItsUserDataInEveryStateButFree)
{
    for (rp_op_state state : states) {
        if (state == RP_OP_FREE)
            continue;
        rp_op *op = in_state(state);
        EXPECT_EQ(rp_op_find(&table, rp_op_user_data(&table, op)), op) << names[state];
    }
    EXPECT_EQ(table.stale, 0u);
}

TEST_F(Op, AStaleGenerationIsCountedAndNotFound)
{
    rp_op *op = make();
    uint64_t user_data = rp_op_user_data(&table, op);
    rp_op_step(&table, op, RP_OP_FREE);
    EXPECT_EQ(rp_op_find(&table, user_data), nullptr);
    EXPECT_EQ(table.stale, 1u);

    rp_op *next = make();
    ASSERT_EQ(next, op) << "the last one freed is the first one used";
    EXPECT_EQ(rp_op_find(&table, user_data), nullptr);
    EXPECT_EQ(table.stale, 2u);
    EXPECT_EQ(rp_op_find(&table, rp_op_user_data(&table, next)), next);
}

TEST_F(Op, AFenceIsNotedAndNeitherFoundNorStale)
{
    make();
    EXPECT_EQ(table.fence_passed, 0u);
    for (uint32_t number : {1u, 2u, 0x12345678u, 0xffffffffu, 0u}) {
        EXPECT_EQ(rp_op_find(&table, rp_op_fence_user_data(number)), nullptr);
        EXPECT_EQ(table.fence_passed, number);
    }
    EXPECT_EQ(table.stale, 0u);
}

TEST_F(Op, AFreeSlotIsNotFoundByAGuess)
{
    rp_op *op = make();
    rp_op_step(&table, op, RP_OP_FREE);
    EXPECT_EQ(rp_op_find(&table, rp_op_user_data(&table, op)), nullptr) << "of a life that is yet to come";
    EXPECT_EQ(table.stale, 1u);
}

TEST_F(Op, AnotherKindIsStale)
{
    rp_op *op = make();
    uint64_t user_data = rp_op_user_data(&table, op);
    EXPECT_EQ(rp_op_find(&table, (user_data & ~uint64_t{0xff}) | RP_OP_POLL), nullptr);
    EXPECT_EQ(table.stale, 1u);
}

TEST_F(Op, NobodysCompletionsAreNeitherFoundNorCounted)
{
    make();
    EXPECT_EQ(rp_op_find(&table, RP_OP_NONE), nullptr);
    EXPECT_EQ(rp_op_find(&table, ~uint64_t{0xff}), nullptr);
    EXPECT_EQ(table.stale, 0u);
}

TEST_F(Op, AnySixtyFourBitsAreSafeToAsk)
{
    std::mt19937_64 random(20261123);
    for (int i = 0; i < 300; i++)
        make();
    uint64_t asked = 0;
    for (int i = 0; i < 200000; i++) {
        uint64_t user_data = random();
        if (i % 2) /* a slot that exists, at least */
            user_data = (user_data & ~(uint64_t{0xffffffff} << 8)) | (random() % slots()) << 8;
        rp_op *op = rp_op_find(&table, user_data);
        if (op) {
            EXPECT_EQ(rp_op_user_data(&table, op), user_data);
        } else if ((user_data & 0xff) != RP_OP_NONE && (user_data & 0xff) != RP_OP_FENCE) {
            asked++;
        }
    }
    EXPECT_EQ(table.stale, asked);
}

TEST_F(Op, UserDataIsNeverZeroAndNeverTheSameTwice)
{
    std::set<uint64_t> seen;
    for (int i = 0; i < 20000; i++) {
        rp_op *op = make();
        uint64_t user_data = rp_op_user_data(&table, op);
        EXPECT_NE(user_data, 0u);
        EXPECT_TRUE(seen.insert(user_data).second);
        if (i % 3)
            rp_op_step(&table, op, RP_OP_FREE);
    }
}

TEST_F(Op, GenerationsComeRoundWithoutZero)
{
    rp_op *op = make();
    op->generation = 0xffffff;
    uint64_t last = rp_op_user_data(&table, op);
    EXPECT_EQ(rp_op_find(&table, last), op);
    rp_op_step(&table, op, RP_OP_FREE);
    rp_op *again = make();
    ASSERT_EQ(again, op);
    EXPECT_EQ(again->generation, 1u);
    EXPECT_EQ(rp_op_find(&table, rp_op_user_data(&table, again)), again);
    EXPECT_EQ(rp_op_find(&table, last), nullptr);
}

TEST_F(Op, SlotsNeverMove)
{
    std::vector<rp_op *> ops;
    std::vector<uint64_t> user_data;
    for (uint32_t i = 0; i < 200000; i++) { /* more than the first page of pointers holds */
        rp_op *op = make();
        ASSERT_NE(op, nullptr);
        EXPECT_EQ(op->state, RP_OP_QUEUED);
        ops.push_back(op);
        user_data.push_back(rp_op_user_data(&table, op));
    }
    EXPECT_GT(table.pages_used, 512u);
    for (uint32_t i = 0; i < ops.size(); i++)
        ASSERT_EQ(rp_op_find(&table, user_data[i]), ops[i]);
    EXPECT_EQ(rp_op_busy(&table), ops.size());
    EXPECT_EQ(counted(), slots());
    for (rp_op *op : ops)
        rp_op_step(&table, op, RP_OP_FREE);
    EXPECT_EQ(rp_op_busy(&table), 0u);
    uint32_t pages = table.pages_used;
    for (uint32_t i = 0; i < ops.size(); i++)
        make();
    EXPECT_EQ(table.pages_used, pages) << "freed slots are used again";
}

TEST_F(Op, ARandomLifeKeepsTheCountsRight)
{
    std::mt19937 random(7);
    std::map<rp_op *, rp_op_state> live;
    for (int i = 0; i < 100000; i++) {
        if (live.empty() || random() % 3 == 0) {
            rp_op *op = make(this);
            ASSERT_TRUE(live.emplace(op, RP_OP_QUEUED).second) << "a busy slot was handed out";
            continue;
        }
        auto at = live.begin();
        std::advance(at, random() % std::min<size_t>(live.size(), 50));
        auto to = static_cast<rp_op_state>(random() % RP_OP_STATES);
        if (!legal.count({at->second, to}) || to == RP_OP_QUEUED)
            continue;
        rp_op_step(&table, at->first, to);
        if (to == RP_OP_FREE)
            live.erase(at);
        else
            at->second = to;
    }
    EXPECT_EQ(rp_op_busy(&table), live.size());
    EXPECT_EQ(counted(), slots());
}

TEST_F(Op, WithoutMemoryThereIsNoneAndTheTableStaysWhole)
{
    for (unsigned n = 1;; n++) {
        sim::FakeKernel kernel;
        rp_op_table small;
        rp_op_table_init(&small);
        kernel.fail_allocation = n;
        unsigned made = 0, refused = 0;
        for (unsigned i = 0; i < 140000; i++) { /* through the growth of the page list */
            if (rp_op_new(&small, RP_OP_TEST, nullptr))
                made++;
            else
                refused++;
        }
        EXPECT_EQ(rp_op_busy(&small), made);
        EXPECT_EQ(refused, kernel.allocation_failed ? 1u : 0u) << "allocation " << n;
        bool failed = kernel.allocation_failed;
        rp_op_table_fini(&small);
        EXPECT_EQ(small.pages, nullptr);
        if (!failed)
            break;
        n += n > 8 && n < 500 ? 97 : 0; /* all the first ones, and a few of the hundreds of pages */
        ASSERT_LT(n, 5000u);
    }
}

TEST_F(Op, EndingATableTwiceOrNoTableIsFine)
{
    make();
    rp_op_table_fini(&table);
    rp_op_table_fini(&table);
    rp_op_table_fini(nullptr);
}

} // namespace
