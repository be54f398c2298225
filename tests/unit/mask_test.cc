/* SPDX-License-Identifier: MIT
 *
 * Feature names, mask words, and what a mask takes with it.
 */
#include <errno.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <set>
#include <string>

#include "public_api.h"

extern "C" {
#include "probe.h"
}

namespace {

constexpr uint64_t all = all_features;

uint64_t parse(const char *text)
{
    uint64_t mask = 0xdead;
    EXPECT_EQ(ringpoll_mask_parse(text, &mask, nullptr, nullptr), 0) << text;
    return mask;
}

std::string bad_word(const char *text)
{
    uint64_t mask = 0xdead;
    const char *word = nullptr;
    size_t length = 0;
    EXPECT_EQ(ringpoll_mask_parse(text, &mask, &word, &length), -EINVAL) << text;
    EXPECT_EQ(mask, 0xdeadu) << "an out parameter is left alone on failure";
    return word ? std::string(word, length) + "@" + std::to_string(word - text) : "";
}

TEST(FeatureNames, EachBitHasOneOfItsOwn)
{
    std::set<std::string> names;
    for (unsigned i = 0; i < RINGPOLL_FEATURE_COUNT; i++) {
        const char *name = ringpoll_feature_name(i);
        ASSERT_NE(name, nullptr) << i;
        EXPECT_TRUE(names.insert(name).second) << name;
        EXPECT_EQ(std::string(name).find_first_not_of("abcdefghijklmnopqrstuvwxyz-"), std::string::npos) << name;
    }
    EXPECT_EQ(ringpoll_feature_name(RINGPOLL_FEATURE_COUNT), nullptr);
    EXPECT_EQ(ringpoll_feature_name(~0u), nullptr);
    EXPECT_STREQ(ringpoll_feature_name(0), "uring");
    EXPECT_STREQ(ringpoll_feature_name(1), "defer");
    EXPECT_STREQ(ringpoll_feature_name(13), "multishot-poll");
    EXPECT_STREQ(ringpoll_feature_name(28), "resize");
    EXPECT_STREQ(ringpoll_feature_name(29), "recv-end");
}

TEST(MaskWords, EveryFeatureCanBeTakenAwayByItsName)
{
    for (unsigned i = 0; i < RINGPOLL_FEATURE_COUNT; i++) {
        std::string word = std::string("no-") + ringpoll_feature_name(i);
        EXPECT_EQ(parse(word.c_str()), UINT64_C(1) << i) << word;
    }
}

TEST(MaskWords, AddUp)
{
    EXPECT_EQ(parse("no-defer,no-multishot-poll"), RINGPOLL_FEATURE_DEFER | RINGPOLL_FEATURE_MULTISHOT_POLL);
    EXPECT_EQ(parse("no-defer,no-defer"), RINGPOLL_FEATURE_DEFER);
}

TEST(MaskWords, NothingIsNoMask)
{
    EXPECT_EQ(parse(""), 0u);
}

TEST(MaskWords, ReleasesLackWhatCameAfterThem)
{
    uint64_t as_6_1 = parse("as-6.1"), as_5_19 = parse("as-5.19"), as_5_13 = parse("as-5.13"),
             as_5_10 = parse("as-5.10");
    EXPECT_EQ(as_6_1 & ~as_5_19, 0u);
    EXPECT_EQ(as_5_19 & ~as_5_13, 0u);
    EXPECT_EQ(as_5_13 & ~as_5_10, 0u);

    EXPECT_EQ(as_6_1, RINGPOLL_FEATURE_NO_SQARRAY | RINGPOLL_FEATURE_NO_IOWAIT | RINGPOLL_FEATURE_ABS_TIMER |
                          RINGPOLL_FEATURE_READ_MULTISHOT | RINGPOLL_FEATURE_RECV_BUNDLE | RINGPOLL_FEATURE_NAPI |
                          RINGPOLL_FEATURE_RESIZE | RINGPOLL_FEATURE_RECV_END | RINGPOLL_FEATURE_SEND_ZC);
    EXPECT_EQ(as_5_19 & ~as_6_1, RINGPOLL_FEATURE_DEFER | RINGPOLL_FEATURE_SINGLE_ISSUER |
                                     RINGPOLL_FEATURE_SYNC_CANCEL | RINGPOLL_FEATURE_MULTISHOT_RECV);
    EXPECT_EQ(as_5_13 & ~as_5_19,
              RINGPOLL_FEATURE_COOP | RINGPOLL_FEATURE_TASKRUN_FLAG | RINGPOLL_FEATURE_SUBMIT_ALL |
                  RINGPOLL_FEATURE_REGISTERED_RING | RINGPOLL_FEATURE_CQE_SKIP | RINGPOLL_FEATURE_CANCEL_FD |
                  RINGPOLL_FEATURE_MULTISHOT_ACCEPT | RINGPOLL_FEATURE_BUF_RING | RINGPOLL_FEATURE_SPARSE_FILES);
    EXPECT_EQ(as_5_10 & ~as_5_13, RINGPOLL_FEATURE_EXT_ARG | RINGPOLL_FEATURE_MULTISHOT_POLL |
                                      RINGPOLL_FEATURE_POLL_UPDATE | RINGPOLL_FEATURE_SQPOLL);
    EXPECT_EQ(all & ~as_5_10, RINGPOLL_FEATURE_URING | RINGPOLL_FEATURE_CQSIZE | RINGPOLL_FEATURE_CLAMP |
                                  RINGPOLL_FEATURE_NODROP);
}

TEST(MaskWords, AWrongOneIsPointedAt)
{
    EXPECT_EQ(bad_word("no-such-thing"), "no-such-thing@0");
    EXPECT_EQ(bad_word("no-defer,defer"), "defer@9");
    EXPECT_EQ(bad_word("no-defer,nodefer,no-coop"), "nodefer@9");
    EXPECT_EQ(bad_word("no-"), "no-@0");
    EXPECT_EQ(bad_word("no"), "no@0");
    EXPECT_EQ(bad_word("no-defe"), "no-defe@0");
    EXPECT_EQ(bad_word("no-deferr"), "no-deferr@0");
    EXPECT_EQ(bad_word("no-sqarray"), "no-sqarray@0") << "the feature is no-sqarray, its word no-no-sqarray";
    EXPECT_EQ(bad_word("as-6.2"), "as-6.2@0");
    EXPECT_EQ(bad_word("NO-DEFER"), "NO-DEFER@0");
    EXPECT_EQ(bad_word(" no-defer"), " no-defer@0");
    EXPECT_EQ(bad_word(","), "@0");
    EXPECT_EQ(bad_word("no-defer,"), "@9");
    EXPECT_EQ(bad_word("no-defer,,no-coop"), "@9");
    EXPECT_EQ(bad_word(std::string(100000, 'x').c_str()), std::string(100000, 'x') + "@0");
}

TEST(MaskWords, TheWhereaboutsOfAWrongOneNeedNotBeAskedFor)
{
    uint64_t mask = 1;
    EXPECT_EQ(ringpoll_mask_parse("nonsense", &mask, nullptr, nullptr), -EINVAL);
    EXPECT_EQ(mask, 1u);
}

/* What a child of this process, with RINGPOLL_MASK so, finds its mask to be:
 * it is read once per process. */
uint64_t masked_in_child(const char *value)
{
    int fds[2];
    if (pipe(fds) != 0)
        return ~UINT64_C(0);
    pid_t child = fork();
    if (child == 0) {
        if (value)
            setenv("RINGPOLL_MASK", value, 1);
        else
            unsetenv("RINGPOLL_MASK");
        uint64_t first = rp_probe_masked();
        setenv("RINGPOLL_MASK", "no-uring", 1);
        uint64_t second = rp_probe_masked();
        if (first != second)
            first = ~UINT64_C(1);
        _exit(write(fds[1], &first, sizeof(first)) == sizeof(first) ? 0 : 1);
    }
    uint64_t result = ~UINT64_C(0);
    close(fds[1]);
    EXPECT_EQ(read(fds[0], &result, sizeof(result)), static_cast<ssize_t>(sizeof(result)));
    close(fds[0]);
    int status = 0;
    waitpid(child, &status, 0);
    return result;
}

TEST(MaskOfTheEnvironment, IsReadOnce)
{
    EXPECT_EQ(masked_in_child(nullptr), 0u);
    EXPECT_EQ(masked_in_child(""), 0u);
    EXPECT_EQ(masked_in_child("no-defer"), RINGPOLL_FEATURE_DEFER);
    EXPECT_EQ(masked_in_child("as-5.19"), parse("as-5.19"));
}

TEST(MaskOfTheEnvironment, KeepsWhatIsRightAboutAWrongOne)
{
    EXPECT_EQ(masked_in_child("bogus,no-defer,,no-coop,"), RINGPOLL_FEATURE_DEFER | RINGPOLL_FEATURE_COOP);
    EXPECT_EQ(masked_in_child("bogus"), 0u);
}

/* In a child: this process must not have read its mask before. */
TEST(MaskOfTheEnvironment, StandsInTheProbeBesideWhatTheKernelHas)
{
    pid_t child = fork();
    if (child == 0) {
        setenv("RINGPOLL_MASK", "as-5.19,bogus", 1);
        struct ringpoll_probe probe = {};
        probe.size = sizeof(probe);
        uint64_t masked = 0;
        if (ringpoll_get_probe(&probe) != 0 || ringpoll_mask_parse("as-5.19", &masked, nullptr, nullptr) != 0)
            _exit(1);
        if (probe.masked != masked)
            _exit(2);
        if (probe.usable != rp_probe_close_over(probe.kernel, masked))
            _exit(3);
        if (probe.error == 0 && !(probe.kernel & RINGPOLL_FEATURE_CQSIZE))
            _exit(4);
        _exit(0);
    }
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0) << "exit " << WEXITSTATUS(status);
}

TEST(CloseOver, TakesAwayWhatStandsOnTheMissing)
{
    EXPECT_EQ(rp_probe_close_over(all, 0), all);
    EXPECT_EQ(rp_probe_close_over(all, RINGPOLL_FEATURE_URING), 0u);
    EXPECT_EQ(rp_probe_close_over(all, all), 0u);
    EXPECT_EQ(rp_probe_close_over(0, 0), 0u);
    EXPECT_EQ(rp_probe_close_over(all, RINGPOLL_FEATURE_SINGLE_ISSUER),
              all & ~(RINGPOLL_FEATURE_SINGLE_ISSUER | RINGPOLL_FEATURE_DEFER | RINGPOLL_FEATURE_RESIZE |
                      RINGPOLL_FEATURE_RECV_END));
    EXPECT_EQ(rp_probe_close_over(all, RINGPOLL_FEATURE_DEFER),
              all & ~(RINGPOLL_FEATURE_DEFER | RINGPOLL_FEATURE_RESIZE |
                      RINGPOLL_FEATURE_RECV_END));
    EXPECT_EQ(rp_probe_close_over(all, RINGPOLL_FEATURE_MULTISHOT_POLL),
              all & ~(RINGPOLL_FEATURE_MULTISHOT_POLL | RINGPOLL_FEATURE_POLL_UPDATE));
    EXPECT_EQ(rp_probe_close_over(all, RINGPOLL_FEATURE_BUF_RING),
              all & ~(RINGPOLL_FEATURE_BUF_RING | RINGPOLL_FEATURE_MULTISHOT_RECV | RINGPOLL_FEATURE_READ_MULTISHOT |
                      RINGPOLL_FEATURE_RECV_BUNDLE | RINGPOLL_FEATURE_RECV_END));
    EXPECT_EQ(rp_probe_close_over(all, RINGPOLL_FEATURE_EXT_ARG),
              all & ~(RINGPOLL_FEATURE_EXT_ARG | RINGPOLL_FEATURE_ABS_TIMER));
}

TEST(CloseOver, KeepsTheTaskrunFlagBesideEitherOfItsTwo)
{
    EXPECT_TRUE(rp_probe_close_over(all, RINGPOLL_FEATURE_COOP) & RINGPOLL_FEATURE_TASKRUN_FLAG);
    EXPECT_TRUE(rp_probe_close_over(all, RINGPOLL_FEATURE_DEFER) & RINGPOLL_FEATURE_TASKRUN_FLAG);
    EXPECT_FALSE(rp_probe_close_over(all, RINGPOLL_FEATURE_COOP | RINGPOLL_FEATURE_DEFER) &
                 RINGPOLL_FEATURE_TASKRUN_FLAG);
    EXPECT_FALSE(rp_probe_close_over(all, RINGPOLL_FEATURE_COOP | RINGPOLL_FEATURE_SINGLE_ISSUER) &
                 RINGPOLL_FEATURE_TASKRUN_FLAG);
}

TEST(CloseOver, DropsBitsThatAreNoFeatures)
{
    EXPECT_EQ(rp_probe_close_over(~UINT64_C(0), 0), all);
}

TEST(CloseOver, IsItsOwnClosure)
{
    for (unsigned i = 0; i < RINGPOLL_FEATURE_COUNT; i++) {
        uint64_t once = rp_probe_close_over(all, UINT64_C(1) << i);
        EXPECT_EQ(rp_probe_close_over(once, 0), once) << ringpoll_feature_name(i);
    }
}

} // namespace
