/* SPDX-License-Identifier: MIT
 *
 * What the tests of libuv share. They know nothing of ringpoll: what the two libraries
 * answer is to be the same, and where a test may only be asked of one, it says why.
 */
#ifndef TESTS_LIBUV_SUPPORT_H
#define TESTS_LIBUV_SUPPORT_H

#include <gtest/gtest.h>
#include <stdlib.h>
#include <string.h>
#include <uv.h>

#include <functional>
#include <string>
#include <vector>

inline bool on_tree()
{
    const char *side = getenv("RINGPOLL_TEST_SIDE");
    return side != nullptr && strcmp(side, "tree") == 0;
}

/* A loop of its own for each test, that has nothing left at its end. */
class LoopTest : public ::testing::Test {
protected:
    uv_loop_t loop_;

    void SetUp() override { ASSERT_EQ(uv_loop_init(&loop_), 0); }

    void TearDown() override
    {
        uv_walk(&loop_, [](uv_handle_t *handle, void *) {
            if (!uv_is_closing(handle))
                uv_close(handle, nullptr);
        }, nullptr);
        uv_run(&loop_, UV_RUN_DEFAULT);
        EXPECT_EQ(uv_loop_close(&loop_), 0);
    }

    /* Runs the loop until that is so. Ends, and fails, after thirty seconds. */
    void run_until(const std::function<bool()> &done)
    {
        uv_timer_t limit;
        bool late = false;
        uv_timer_init(&loop_, &limit);
        limit.data = &late;
        uv_timer_start(&limit, [](uv_timer_t *timer) { *static_cast<bool *>(timer->data) = true; }, 30000, 0);
        while (!done() && !late)
            uv_run(&loop_, UV_RUN_ONCE);
        EXPECT_FALSE(late) << "what was waited for did not come";
        uv_close(reinterpret_cast<uv_handle_t *>(&limit), nullptr);
        uv_run(&loop_, UV_RUN_NOWAIT);
    }

    /* Turns of the loop that do not wait. */
    void turn(unsigned times = 1)
    {
        while (times-- > 0)
            uv_run(&loop_, UV_RUN_NOWAIT);
    }
};

#endif
