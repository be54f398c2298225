/* SPDX-License-Identifier: MIT
 *
 * The manual and the things it is about name the same words: a function, an
 * option or a variable that is added without its paragraph is found here.
 */
#include "command.h"

#include <cctype>
#include <cstdlib>
#include <filesystem>
#include <set>
#include <sstream>
#include <unistd.h>

#include <gtest/gtest.h>
#include <ringpoll/ringpoll.h>

namespace {

std::string source(const std::string &name)
{
    const char *top = getenv("top_srcdir");
    return std::string(top != nullptr ? top : ".") + "/" + name;
}

std::string page(const std::string &name)
{
    std::string text = read_file(source("docs/man/" + name));
    EXPECT_NE(text, "") << name;
    return text;
}

std::string header()
{
    return read_file(source("backend/include/ringpoll/ringpoll.h"));
}

/* All words in text that begin so and go on with letters, digits, '_' or '-'. */
std::set<std::string> words(const std::string &text, const std::string &begin)
{
    std::set<std::string> result;
    for (size_t at = 0; (at = text.find(begin, at)) != std::string::npos;) {
        size_t end = at + begin.size();
        while (end < text.size() &&
               (isalnum(static_cast<unsigned char>(text[end])) || text[end] == '_' || text[end] == '-'))
            end++;
        bool whole = at == 0 || !(isalnum(static_cast<unsigned char>(text[at - 1])) || text[at - 1] == '_' ||
                                  text[at - 1] == '-');
        if (whole && end > at + begin.size())
            result.insert(text.substr(at, end - at));
        at = end;
    }
    return result;
}

/* Whether `word` stands in text and ends there. */
bool names(const std::string &text, const std::string &word)
{
    return words(text, word.substr(0, word.size() - 1)).count(word) != 0;
}

std::set<std::string> public_functions(const std::string &of)
{
    std::set<std::string> result;
    std::istringstream text(of);
    for (std::string line; std::getline(text, line);) {
        size_t parenthesis = line.find('(');
        if (line.compare(0, 13, "RINGPOLL_API ") != 0 || parenthesis == std::string::npos)
            continue;
        size_t begin = line.find_last_of(" *", parenthesis) + 1;
        result.insert(line.substr(begin, parenthesis - begin));
    }
    return result;
}

/* In `manual`, with a page of each one's own that leads there. */
void expect_described(const std::set<std::string> &functions, const std::string &manual)
{
    std::string text = page(manual);
    const char *build = getenv("top_builddir");
    for (const std::string &function : functions) {
        bool synopsis = text.find(".Fn " + function + " ") != std::string::npos ||
                        text.find(".Fo " + function + "\n") != std::string::npos;
        EXPECT_TRUE(synopsis) << function << " is not in the synopsis";
        size_t description = text.find(".Sh DESCRIPTION");
        EXPECT_TRUE(names(text.substr(description), function)) << function << " is not described";
        if (build != nullptr) {
            EXPECT_EQ(read_file(std::string(build) + "/docs/man/" + function + ".3"), ".so man3/" + manual + "\n")
                << function << " has no page: see docs/man/Makefile.inc";
        }
    }
}

} // namespace

TEST(Manual, DescribesEveryPublicFunction)
{
    std::set<std::string> functions = public_functions(header());
    ASSERT_GE(functions.size(), 30u);
    expect_described(functions, "ringpoll.3");
}

/* What libevent itself calls is named, and no more. */
TEST(Manual, DescribesEveryFunctionForLibevent)
{
    std::set<std::string> functions, all = public_functions(read_file(source("adapters/libevent/include/ringpoll/event.h")));
    std::string text = page("ringpoll-event.3");
    for (const std::string &function : all) {
        if (function.compare(0, 20, "ringpoll_event_tree_") != 0)
            functions.insert(function);
        else
            EXPECT_TRUE(names(text, function)) << function;
    }
    ASSERT_GE(functions.size(), 6u);
    expect_described(functions, "ringpoll-event.3");
}

/* Those that are libuv's with a prefix are named, and are libuv's. */
TEST(Manual, NamesEveryFunctionForLibuv)
{
    std::set<std::string> functions = public_functions(read_file(source("adapters/libuv/include/ringpoll/uv.h")));
    std::string text = page("ringpoll-uv.3");
    const char *build = getenv("top_builddir");
    ASSERT_GE(functions.size(), 40u);
    for (const std::string &function : functions) {
        EXPECT_TRUE(names(text, function)) << function;
        if (build != nullptr) {
            EXPECT_EQ(read_file(std::string(build) + "/docs/man/" + function + ".3"), ".so man3/ringpoll-uv.3\n")
                << function << " has no page: see docs/man/Makefile.inc";
        }
    }
}

TEST(Manual, DescribesEveryFlagOfASet)
{
    std::string text = header(), described = page("ringpoll.3");
    size_t begin = text.find("#define RINGPOLL_CLOEXEC"), end = text.find("struct ringpoll_options {");
    ASSERT_LT(begin, end);
    std::string part = text.substr(begin, end - begin);
    for (size_t at = 0; (at = part.find("#define ", at)) != std::string::npos; at++) {
        std::string flag = part.substr(at + 8, part.find(' ', at + 8) - at - 8);
        EXPECT_TRUE(names(described, flag)) << flag;
    }
}

TEST(Manual, DescribesEveryCounter)
{
    std::string text = header(), described = page("ringpoll.3");
    size_t begin = text.find("struct ringpoll_stats {"), end = text.find("};", begin);
    std::string part = text.substr(begin, end - begin);
    size_t counters = 0;
    for (size_t at = part.find("uint64_t "); at != std::string::npos; at = part.find("uint64_t ", at + 1)) {
        std::string line = part.substr(at + 9, part.find(';', at) - at - 9);
        for (size_t from = 0; from < line.size();) {
            size_t comma = std::min(line.find(", ", from), line.size());
            std::string counter = line.substr(from, comma - from);
            counter.erase(std::min(counter.find('['), counter.size())); /* an array */
            EXPECT_TRUE(names(described, counter)) << counter;
            counters++;
            from = comma + 2;
        }
    }
    EXPECT_GE(counters, 20u);
}

TEST(Manual, DescribesEveryOptionAndVariableOfTheCommand)
{
    struct {
        const char *page;
        Words words;
    } const commands[] = {
        {"ringpoll.1", {"--help"}},
        {"ringpoll-run.1", {"run", "--help"}},
        {"ringpoll-probe.1", {"probe", "--help"}},
        {"ringpoll-stat.1", {"stat", "--help"}},
        {"ringpoll-bench.1", {"bench", "--help"}},
        {"ringpoll-integrate.1", {"integrate", "--help"}},
        {"ringpoll-bench.1", {"bench", "readiness", "--help"}},
    };
    for (const auto &command : commands) {
        std::string help = ringpoll(command.words).out, text = page(command.page);
        for (const std::string &option : words(help, "--")) {
            bool described = text.find("Fl -" + option.substr(2)) != std::string::npos ||
                             text.find(", -" + option.substr(2)) != std::string::npos;
            EXPECT_TRUE(described) << command.page << ": " << option;
        }
        for (const std::string &variable : words(help, "RINGPOLL_")) /* "" without a bench driver */
            EXPECT_TRUE(names(text, variable)) << command.page << ": " << variable;
    }
}

TEST(Manual, DescribesEveryVariableOfTheShim)
{
    std::string text = page("ringpoll.7");
    size_t variables = 0;
    for (const auto &entry : std::filesystem::directory_iterator(source("adapters/preload"))) {
        if (entry.path().extension() != ".c")
            continue;
        std::string code = read_file(entry.path().string());
        static const std::string call = "getenv(\"";
        for (size_t at = 0; (at = code.find(call, at)) != std::string::npos;) {
            at += call.size();
            std::string variable = code.substr(at, code.find('"', at) - at);
            EXPECT_TRUE(names(text, variable)) << variable;
            variables++;
        }
    }
    EXPECT_GE(variables, 1u);
}

TEST(Manual, DescribesEveryReasonOfTheReport)
{
    std::string code = read_file(source("adapters/preload/report.c")), text = page("ringpoll-run.1");
    size_t reasons = 0;
    for (const std::string &key : words(code, "kernel_sets_")) {
        std::string end = key.substr(key.find("_sets_") + 5);
        EXPECT_TRUE(text.find(" " + end) != std::string::npos || text.find(key) != std::string::npos) << key;
        reasons++;
    }
    EXPECT_EQ(reasons, RINGPOLL_REASON_SHARED + 0u);
}

TEST(Manual, DescribesEveryReasonThatStatGives)
{
    std::string code = read_file(source("tools/look.c")), text = page("ringpoll-stat.1");
    size_t reasons = 0;
    for (const std::string call : {"return \"", "why = \""}) {
        for (size_t at = 0; (at = code.find(call, at)) != std::string::npos; reasons++) {
            at += call.size();
            std::string reason = code.substr(at, code.find('"', at) - at);
            bool described = text.find("Li " + reason + "\n") != std::string::npos ||
                             text.find("Li " + reason + " , Li") != std::string::npos;
            EXPECT_TRUE(described) << reason;
        }
    }
    EXPECT_GE(reasons, 20u);
}

TEST(Manual, PagesAreWellFormed)
{
    std::string lint;
    for (const char *where : {"/usr/bin/mandoc", "/usr/local/bin/mandoc"}) {
        if (access(where, X_OK) == 0)
            lint = where;
    }
    if (lint.empty())
        GTEST_SKIP() << "no mandoc";
    for (const char *name : {"ringpoll.1", "ringpoll-run.1", "ringpoll-probe.1", "ringpoll-stat.1",
                             "ringpoll-bench.1", "ringpoll-integrate.1", "ringpoll.3", "ringpoll.7"}) {
        Start how;
        how.words = {lint, "-T", "lint", "-W", "warning", source(std::string("docs/man/") + name)};
        Outcome outcome = start(how);
        EXPECT_TRUE(outcome.exited_with(0)) << outcome.story();
        EXPECT_EQ(outcome.out, "");
    }
}
