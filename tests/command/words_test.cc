/* SPDX-License-Identifier: MIT
 *
 * What can be typed wrong is answered by one sentence and exit status 2; what
 * is asked for help gets it on stdout and 0.
 */
#include "command.h"

#include <cstdlib>
#include <fcntl.h>
#include <unistd.h>

#include <gtest/gtest.h>
#include <ringpoll/ringpoll.h>

namespace {

bool contains(const std::string &text, const std::string &part)
{
    return text.find(part) != std::string::npos;
}

struct Wrong {
    const char *name;
    Words words, environment;
    Words told; /* all of these stand in the sentence */
};

class WrongWord : public testing::TestWithParam<Wrong> {};

void PrintTo(const Wrong &wrong, std::ostream *to)
{
    *to << wrong.name;
}

const Wrong wrong_words[] = {
    {"Command", {"frobnicate"}, {}, {"'frobnicate'", "run", "probe", "stat", "bench", "integrate"}},
    {"LongOption", {"--frobnicate"}, {}, {"'--frobnicate'"}},
    {"ShortOption", {"-q"}, {}, {"'-q'"}},
    {"RunNothing", {"run"}, {}, {"needs a program"}},
    {"RunNothingAfterDashes", {"run", "--require", "--"}, {}, {"needs a program"}},
    {"RunLongOption", {"run", "--frob", "true"}, {}, {"'--frob'", "ringpoll run"}},
    {"RunShortOption", {"run", "--require", "-qh", "true"}, {}, {"'-q'", "ringpoll run"}},
    {"RunProfile", {"run", "--profile=fast", "true"}, {}, {"'fast'", "readiness", "safe", "throughput"}},
    {"RunProfileEmpty", {"run", "--profile=", "true"}, {}, {"''", "readiness", "safe", "throughput"}},
    {"RunProfileCase", {"run", "--profile=Safe", "true"}, {}, {"'Safe'"}},
    {"RunProfileMissing", {"run", "--profile"}, {}, {"'--profile'", "needs a value"}},
    {"RunRequireValue", {"run", "--require=yes", "true"}, {}, {"--require", "no value"}},
    {"RunStatsEmpty", {"run", "--stats=", "true"}, {}, {"--stats"}},
    {"RunMode", {"run", "true"}, {"RINGPOLL=on"}, {"RINGPOLL", "'on'", "off", "auto", "require"}},
    {"RunProfileVariable", {"run", "true"}, {"RINGPOLL_PROFILE=x"}, {"RINGPOLL_PROFILE", "'x'", "readiness"}},
    {"RunMask", {"run", "true"}, {"RINGPOLL_MASK=no-defer,no-such"}, {"RINGPOLL_MASK", "'no-such'", "as-6.1", "defer"}},
    {"RunMaskKernel", {"run", "true"}, {"RINGPOLL_MASK=as-4.9"}, {"'as-4.9'", "as-5.10"}},
    {"RunMaskWithoutNo", {"run", "true"}, {"RINGPOLL_MASK=defer"}, {"'defer'", "no-NAME"}},
    {"RunMaskBlank", {"run", "true"}, {"RINGPOLL_MASK=no-defer, no-coop"}, {"' no-coop'"}},
    {"RunMaskOff", {"run", "true"}, {"RINGPOLL_MASK=x", "RINGPOLL=off"}, {"'x'"}},
    {"RunWrongBeforeMissing", {"run", "/no/such/program"}, {"RINGPOLL=on"}, {"'on'"}},
    {"ProbeOption", {"probe", "--xml"}, {}, {"'--xml'", "ringpoll probe"}},
    {"ProbeArgument", {"probe", "defer"}, {}, {"'defer'"}},
    {"ProbeMask", {"probe"}, {"RINGPOLL_MASK=no-thing"}, {"'no-thing'"}},
    {"StatNothing", {"stat"}, {}, {"needs one process id or program name"}},
    {"StatTwo", {"stat", "1", "2"}, {}, {"needs one"}},
    {"StatEmpty", {"stat", ""}, {}, {"needs one"}},
    {"StatOption", {"stat", "--xml", "1"}, {}, {"'--xml'", "ringpoll stat"}},
    {"StatNumber", {"stat", "0"}, {}, {"'0'", "process id"}},
    {"StatNumberTooBig", {"stat", "99999999999999999999"}, {}, {"process id"}},
    {"StatWatch", {"stat", "--watch=soon", "1"}, {}, {"--watch", "'soon'"}},
    {"StatWatchZero", {"stat", "--watch=0", "1"}, {}, {"--watch", "'0'"}},
    {"StatWatchNan", {"stat", "--watch=nan", "1"}, {}, {"'nan'"}},
    {"StatWatchEmpty", {"stat", "--watch=", "1"}, {}, {"--watch"}},
    {"StatJsonValue", {"stat", "--json=1", "1"}, {}, {"--json", "no value"}},
    {"IntegrateNothing", {"integrate"}, {}, {"libevent", "directory"}},
    {"IntegrateNowhere", {"integrate", "libevent"}, {}, {"libevent", "directory"}},
    {"IntegrateTwice", {"integrate", "libevent", "a", "b"}, {}, {"directory"}},
    {"IntegrateOther", {"integrate", "libfrob", "."}, {}, {"'libfrob'", "libevent"}},
    {"IntegrateOption", {"integrate", "--force", "libevent", "."}, {}, {"'--force'", "ringpoll integrate"}},
    {"IntegrateValue", {"integrate", "--dry-run=1", "libevent", "."}, {}, {"--dry-run", "no value"}},
    {"ProbeMode", {"probe"}, {"RINGPOLL=maybe"}, {"'maybe'"}},
};

} // namespace

TEST_P(WrongWord, GetsOneSentenceThatNamesItAndStatusTwo)
{
    const Wrong &wrong = GetParam();
    Outcome outcome = ringpoll(wrong.words, wrong.environment);
    EXPECT_TRUE(outcome.exited_with(2)) << outcome.story();
    EXPECT_EQ(outcome.out, "");
    EXPECT_EQ(outcome.complaints(), 1u) << outcome.story();
    EXPECT_EQ(outcome.err.compare(0, 10, "ringpoll: "), 0) << outcome.story();
    for (const std::string &word : wrong.told)
        EXPECT_TRUE(contains(outcome.err, word)) << word << " in\n" << outcome.story();
}
INSTANTIATE_TEST_SUITE_P(Command, WrongWord, testing::ValuesIn(wrong_words),
                         [](const auto &wrong) { return std::string(wrong.param.name); });

TEST(Mask, EveryAcceptedWordIsNamedWhenOneIsWrong)
{
    Outcome outcome = ringpoll({"run", "true"}, {"RINGPOLL_MASK=?"});
    ASSERT_TRUE(outcome.exited_with(2)) << outcome.story();
    for (unsigned i = 0; i < RINGPOLL_FEATURE_COUNT; i++)
        EXPECT_TRUE(contains(outcome.err, std::string(" ") + ringpoll_feature_name(i))) << outcome.story();
}

TEST(Sentence, StaysOneLineWhateverTheWordHolds)
{
    Outcome outcome = ringpoll({"two\nlines\033[31m"});
    EXPECT_TRUE(outcome.exited_with(2));
    EXPECT_EQ(outcome.complaints(), 1u) << outcome.story();
    EXPECT_FALSE(contains(outcome.err, "\033"));
}

TEST(Sentence, OfAVeryLongWordIsCutAndEnds)
{
    Outcome outcome = ringpoll({std::string(100000, 'x')});
    EXPECT_TRUE(outcome.exited_with(2));
    EXPECT_EQ(outcome.complaints(), 1u);
    EXPECT_LT(outcome.err.size(), 10000u);
    EXPECT_EQ(outcome.err.back(), '\n');
}

TEST(Help, IsOnStandardOutput)
{
    for (const Words &words : {Words{"--help"}, {"-h"}, {"help"}, {"run", "--help"}, {"run", "-h"}, {"help", "run"},
                               {"probe", "--help"}, {"help", "probe"}, {"stat", "--help"}, {"help", "stat"},
                               {"bench", "--help"}, {"help", "bench"}, {"integrate", "--help"}, {"help", "integrate"}}) {
        Outcome outcome = ringpoll(words);
        EXPECT_TRUE(outcome.exited_with(0)) << outcome.story();
        EXPECT_EQ(outcome.out.compare(0, 16, "Usage: ringpoll "), 0) << outcome.story();
        EXPECT_EQ(outcome.err, "");
        for (size_t begin = 0, end; (end = outcome.out.find('\n', begin)) != std::string::npos; begin = end + 1)
            EXPECT_LE(end - begin, 80u) << outcome.out.substr(begin, end - begin);
    }
}

TEST(Help, OfASubcommandNamesWhatItTakes)
{
    Outcome outcome = ringpoll({"run", "--help"});
    for (const char *word : {"--profile", "--require", "--stats", "RINGPOLL_MASK", "125", "126", "127"})
        EXPECT_TRUE(contains(outcome.out, word)) << word;
}

TEST(Help, ThatCannotBeWrittenIsAFailure)
{
    Start how;
    how.words = {command(), "--help"};
    how.in_child = [] { dup2(open("/dev/full", O_WRONLY), STDOUT_FILENO); };
    Outcome outcome = start(how);
    EXPECT_TRUE(outcome.exited_with(1)) << outcome.story();
    EXPECT_EQ(outcome.complaints(), 1u);
}

TEST(Usage, IsOnStandardErrorWhenThereIsNoCommand)
{
    Start without_name; /* an empty argv[0] is no crash either */
    without_name.words = {command()};
    Outcome outcome = start(without_name);
    EXPECT_TRUE(outcome.exited_with(2)) << outcome.story();
    EXPECT_EQ(outcome.out, "");
    EXPECT_TRUE(contains(outcome.err, "Usage: ringpoll ")) << outcome.story();
}

TEST(Version, IsTheLibrarys)
{
    std::string expected = std::string("ringpoll ") + ringpoll_version() + "\n";
    for (const char *word : {"--version", "-V"}) {
        Outcome outcome = ringpoll({word});
        EXPECT_TRUE(outcome.exited_with(0)) << outcome.story();
        EXPECT_EQ(outcome.out.compare(0, expected.size(), expected), 0) << outcome.story();
        EXPECT_EQ(outcome.err, "");
    }
}

/* -------------------------------------------------------------------- bench */

TEST(Bench, BecomesTheDriverWithAllArguments)
{
    Outcome outcome = ringpoll({"bench", "argv", "--quick", "--", "a b"}, {"RINGPOLL_BENCH=" + helper(),
                                                                          "RINGPOLL_PRELOAD=" + helper()});
    EXPECT_TRUE(outcome.exited_with(0)) << outcome.story();
    EXPECT_EQ(outcome.out, "[" + helper() + "]\n[argv]\n[--quick]\n[--]\n[a b]\n");
}

TEST(Bench, TellsTheDriverWhichShimIsMeant)
{
    if (shim().empty())
        GTEST_SKIP() << "the shim has not been built";
    Scratch scratch;
    scratch.make_directories("build/adapters/preload/.libs");
    scratch.make_directories("build/tools");
    Start how;
    how.words = {scratch.copy(command(), "build/tools/ringpoll", 0755), "bench", "env", "RINGPOLL_PRELOAD"};
    how.environment = {"RINGPOLL_PRELOAD", "RINGPOLL_BENCH=" + helper()};
    std::string there = scratch.copy(shim(), "build/adapters/preload/.libs/libringpoll-preload.so", 0755);
    Outcome outcome = start(how);
    EXPECT_EQ(outcome.out, "RINGPOLL_PRELOAD=" + there + "\n") << outcome.story();
}

TEST(Bench, WithoutADriverSaysWhereItShouldBe)
{
    Scratch scratch;
    Outcome outcome = ringpoll({"bench", "readiness"}, {"RINGPOLL_BENCH=" + scratch.file("nothing")});
    EXPECT_TRUE(outcome.exited_with(127)) << outcome.story();
    EXPECT_EQ(outcome.complaints(), 1u);
    EXPECT_TRUE(contains(outcome.err, scratch.file("nothing"))) << outcome.story();
}
