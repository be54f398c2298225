/* SPDX-License-Identifier: MIT
 *
 * The public header, first and alone, in strict C++17; then both languages have
 * to mean the same by it.
 */
#include <ringpoll/ringpoll.h>

#include <gtest/gtest.h>

extern "C" const char *version_seen_from_c(void);
extern "C" unsigned long sizes_seen_from_c(int which);

TEST(PublicHeader, LinksFromBothLanguages)
{
    EXPECT_STREQ(version_seen_from_c(), ringpoll_version());
}

TEST(PublicHeader, HasTheSameStructuresInBothLanguages)
{
    EXPECT_EQ(sizes_seen_from_c(0), sizeof(struct ringpoll_options));
    EXPECT_EQ(sizes_seen_from_c(1), sizeof(struct ringpoll_probe));
    EXPECT_EQ(sizes_seen_from_c(2), sizeof(struct ringpoll_stats));
}

/* What a program compiled against 0.1 has in its memory: it may grow, never move. */
TEST(PublicHeader, StructuresAreLaidOutAsReleased)
{
    EXPECT_EQ(offsetof(struct ringpoll_options, size), 0u);
    EXPECT_EQ(offsetof(struct ringpoll_options, flags), 4u);
    EXPECT_EQ(offsetof(struct ringpoll_options, sq_thread_idle_ms), 20u);
    EXPECT_EQ(offsetof(struct ringpoll_options, masked_features), 24u);
    EXPECT_EQ(offsetof(struct ringpoll_options, buffers), 32u);
    EXPECT_EQ(sizeof(struct ringpoll_options), 48u);
    EXPECT_EQ(offsetof(struct ringpoll_probe, kernel), 16u);
    EXPECT_EQ(offsetof(struct ringpoll_probe, feature_error), 40u);
    EXPECT_EQ(sizeof(struct ringpoll_probe), 40u + 64u * 4u);
    EXPECT_EQ(offsetof(struct ringpoll_stats, engine), 4u);
    EXPECT_EQ(offsetof(struct ringpoll_stats, sets), 16u);
}
