/* SPDX-License-Identifier: MIT
 *
 * The bench driver's own words: what can be typed wrong, and what it lists. Nothing
 * is measured here.
 */
#include "command.h"
#include "json.h"

#include <cstdlib>
#include <sstream>
#include <vector>

#include <gtest/gtest.h>

namespace {

bool contains(const std::string &text, const std::string &part)
{
    return text.find(part) != std::string::npos;
}

std::string driver()
{
    const char *top = getenv("top_builddir");
    return std::string(top != nullptr ? top : ".") + "/bench/ringpoll-bench";
}

Outcome bench(const Words &words)
{
    Words all = {"bench"};
    all.insert(all.end(), words.begin(), words.end());
    return ringpoll(all, {"RINGPOLL_BENCH=" + driver(), "RINGPOLL_PRELOAD=" + helper()});
}

std::vector<std::string> points(const Words &words)
{
    Words all = words;
    all.push_back("--list");
    Outcome outcome = bench(all);
    EXPECT_TRUE(outcome.exited_with(0)) << outcome.story();
    std::vector<std::string> names;
    std::istringstream text(outcome.out);
    for (std::string line; std::getline(text, line);)
        names.push_back(line);
    return names;
}

struct Wrong {
    const char *name;
    Words words;
    Words told; /* all of these stand in the sentence */
};

void PrintTo(const Wrong &wrong, std::ostream *to)
{
    *to << wrong.name;
}

class WrongBench : public testing::TestWithParam<Wrong> {};

const Wrong wrong_words[] = {
    {"Name", {"speed"}, {"'speed'", "readiness", "completion", "memory", "all"}},
    {"NameNotQuiteText", {"two\nlines\033"}, {"'two?lines?'"}},
    {"LongOption", {"completion", "--frob"}, {"'--frob'"}},
    {"ShortOption", {"completion", "-qh"}, {"'-q'"}},
    {"OptionWithoutName", {"--frob"}, {"'--frob'"}},
    {"TooMany", {"completion", "readiness"}, {"'readiness'"}},
    {"Profile", {"completion", "--profile=fast"}, {"'fast'", "readiness", "safe", "throughput"}},
    {"ProfileInList", {"completion", "--profile=safe,Safe"}, {"'Safe'", "throughput"}},
    {"ProfileEmpty", {"readiness", "--profile="}, {"''", "readiness, safe and throughput"}},
    {"ProfileMissing", {"readiness", "--profile"}, {"'--profile'", "needs a value"}},
    {"Point", {"completion", "--points=echo"}, {"'echo'", "--list"}},
    {"PointOfTheOther", {"readiness", "--points=raw,bufferevent"}, {"'bufferevent'"}},
    {"Cpu", {"all", "--cpu=none"}, {"'none'"}},
    {"ReportMissing", {"all", "--report"}, {"'--report'", "needs a value"}},
    {"Idle", {"all", "--idle=0"}, {"'0'"}},
    {"Side", {"all", "--self=poll"}, {"'poll'", "epoll", "ring"}},
};

TEST_P(WrongBench, GetsOneSentenceThatNamesItAndStatusTwo)
{
    const Wrong &wrong = GetParam();
    Outcome outcome = bench(wrong.words);
    EXPECT_TRUE(outcome.exited_with(2)) << outcome.story();
    EXPECT_EQ(outcome.out, "");
    EXPECT_EQ(outcome.complaints(), 1u) << outcome.story();
    for (const std::string &word : wrong.told)
        EXPECT_TRUE(contains(outcome.err, word)) << word << " in\n" << outcome.story();
}
INSTANTIATE_TEST_SUITE_P(Command, WrongBench, testing::ValuesIn(wrong_words),
                         [](const auto &wrong) { return std::string(wrong.param.name); });

TEST(BenchList, IsOfTheMeasurementThatIsNamed)
{
    std::vector<std::string> readiness = points({"readiness"}), completion = points({"completion"});
    std::vector<std::string> all = readiness, memory = points({"memory"});
    all.insert(all.end(), completion.begin(), completion.end());
    all.insert(all.end(), memory.begin(), memory.end());
    EXPECT_FALSE(readiness.empty());
    EXPECT_FALSE(completion.empty());
    EXPECT_EQ(points({"all"}), all);
    EXPECT_EQ(points({}), all) << "without a name it is all";
}

TEST(BenchList, IsNarrowedByNamesAndPatterns)
{
    EXPECT_EQ(points({"completion", "--points=loop/tcp/64B"}),
              (std::vector<std::string>{"loop/tcp/64B/1", "loop/tcp/64B/8", "loop/tcp/64B/64", "loop/tcp/64B/256"}));
    EXPECT_EQ(points({"completion", "--points=loop/*/64K/1"}),
              (std::vector<std::string>{"loop/tcp/64K/1", "loop/unix/64K/1"}));
    EXPECT_LT(points({"completion", "--quick"}).size(), points({"completion"}).size());
}

TEST(BenchReport, ThatCannotBeWrittenIsAFailureBeforeAnythingIsMeasured)
{
    Scratch scratch;
    std::string path = scratch.file("nothing") + "/page.html";
    Outcome outcome = bench({"completion", "--report", path});
    EXPECT_TRUE(outcome.exited_with(1)) << outcome.story();
    EXPECT_EQ(outcome.out, "");
    EXPECT_EQ(outcome.complaints(), 1u) << outcome.story();
    EXPECT_TRUE(contains(outcome.err, path)) << outcome.story();
}

/* Epoll against itself: it needs no ring. */
TEST(BenchReport, IsAPageThatNeedsNothingElse)
{
    Scratch scratch;
    std::string path = scratch.file("page.html");
    Outcome outcome = bench({"completion", "--quick", "--self=epoll", "--points=loop/unix/64B/1,loop/unix/64B/8",
                             "--json", "--report=" + path});
    ASSERT_TRUE(outcome.exited_with(0)) << outcome.story();
    json::Value all = json::Reader(outcome.out).whole();
    ASSERT_EQ(all["points"].array.size(), 2u) << outcome.out;
    EXPECT_EQ(all["points"].array[1]["name"].string, "loop/unix/64B/8");
    EXPECT_EQ(all["points"].array[1]["lanes"].array.size(), 2u);
    std::string page = read_file(path);
    EXPECT_EQ(page.compare(0, 15, "<!doctype html>"), 0);
    for (const char *part : {"<svg", "</html>", "loop/unix/64B/8", "AF_UNIX, 64 bytes: times cheaper"})
        EXPECT_TRUE(contains(page, part)) << part;
    for (const char *part : {"http:", "https:", "src=", "href=", "url(", "<script", "nan"})
        EXPECT_FALSE(contains(page, part)) << part;
}

} // namespace
