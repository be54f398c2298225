/* SPDX-License-Identifier: MIT
 *
 * Runs each scenario (scenario.h) on plain epoll and under the shim, and holds
 * one against the other; and what is the shim's own: its environment variables,
 * its report, its names.
 *
 * The shim under test is $RINGPOLL_PRELOAD, or the one of this build tree.
 */
#include <gtest/gtest.h>

#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <dirent.h>
#include <dlfcn.h>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <vector>

namespace {

using Environment = std::map<std::string, std::string>;

std::string directory_of_this_program()
{
    char path[PATH_MAX] = "";
    if (readlink("/proc/self/exe", path, sizeof path - 1) < 0)
        return ".";
    std::string directory = path;
    directory.erase(directory.rfind('/'));
    size_t libs = directory.rfind("/.libs");
    if (libs != std::string::npos && libs + 6 == directory.size())
        directory.erase(libs);
    return directory;
}

std::string in_build_tree(const char *path)
{
    return directory_of_this_program() + "/" + path;
}

std::string shim()
{
    const char *path = getenv("RINGPOLL_PRELOAD");
    return path && *path ? path : in_build_tree("../../adapters/preload/.libs/libringpoll-preload.so");
}

struct Outcome {
    int status = -1; /* exit status, or 256 + signal */
    std::string out, err;
};

/* Runs a program to its end, with nothing of ours in its environment but what is
 * given, and no fd above 2; as another user, if one is named. */
Outcome run(const std::vector<std::string> &arguments, const Environment &extra, const char *directory = nullptr,
            uid_t user = 0)
{
    Outcome outcome;
    int out[2], err[2];
    if (pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC))
        return outcome;
    std::vector<char *> argv;
    for (const std::string &argument : arguments)
        argv.push_back(const_cast<char *>(argument.c_str()));
    argv.push_back(nullptr);
    pid_t child = fork();
    if (child == 0) {
        setpgid(0, 0);
        int null = open("/dev/null", O_RDONLY);
        dup2(null, 0);
        dup2(out[1], 1);
        dup2(err[1], 2);
        close_range(3, ~0u, 0);
        for (const char *name : {"LD_PRELOAD", "RINGPOLL", "RINGPOLL_MASK", "RINGPOLL_STATS", "RINGPOLL_PROFILE"})
            unsetenv(name);
        for (const auto &[name, value] : extra)
            setenv(name.c_str(), value.c_str(), 1);
        if (directory && chdir(directory))
            _exit(126);
        if (user && (setgroups(0, nullptr) || setgid(user) || setuid(user)))
            _exit(126);
        execv(argv[0], argv.data());
        _exit(127);
    }
    close(out[1]);
    close(err[1]);
    pollfd ends[2] = {{out[0], POLLIN, 0}, {err[0], POLLIN, 0}};
    while (ends[0].fd >= 0 || ends[1].fd >= 0) {
        int ready = poll(ends, 2, 90000);
        if (ready == 0) {
            outcome.err += "[hangs: ended with all its children]\n";
            kill(-child, SIGKILL);
            break;
        }
        if (ready < 0)
            continue;
        for (int i = 0; i < 2; i++) {
            char bytes[4096];
            if (ends[i].fd < 0 || !ends[i].revents)
                continue;
            ssize_t count = read(ends[i].fd, bytes, sizeof bytes);
            if (count <= 0)
                ends[i].fd = -1;
            else
                (i ? outcome.err : outcome.out).append(bytes, static_cast<size_t>(count));
        }
    }
    close(out[0]);
    close(err[0]);
    int status = 0;
    waitpid(child, &status, 0);
    outcome.status = WIFEXITED(status) ? WEXITSTATUS(status) : 256 + WTERMSIG(status);
    return outcome;
}

/* A directory that goes away with all that is in it. */
class Scratch {
public:
    Scratch()
    {
        char name[] = "/tmp/ringpoll-preload-XXXXXX";
        path_ = mkdtemp(name);
        chmod(name, 0777); /* some programs end as somebody else */
    }
    ~Scratch()
    {
        if (DIR *directory = opendir(path_.c_str())) {
            while (dirent *entry = readdir(directory))
                unlink((path_ + "/" + entry->d_name).c_str());
            closedir(directory);
        }
        rmdir(path_.c_str());
    }
    std::string file(const std::string &name) const { return path_ + "/" + name; }
    const std::string &path() const { return path_; }

private:
    std::string path_;
};

std::string contents(const std::string &path)
{
    std::string text;
    char bytes[4096];
    if (FILE *file = fopen(path.c_str(), "r")) {
        for (size_t count; (count = fread(bytes, 1, sizeof bytes, file)) > 0;)
            text.append(bytes, count);
        fclose(file);
    }
    return text;
}

using Report = std::map<std::string, std::string>;

std::vector<Report> reports_in(const std::string &text)
{
    std::vector<Report> reports(1);
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
        size_t space = line.find(' ');
        if (line.empty())
            reports.emplace_back();
        else
            reports.back()[line.substr(0, space)] = space == std::string::npos ? "" : line.substr(space + 1);
    }
    if (reports.back().empty())
        reports.pop_back();
    return reports;
}

long number(const Report &report, const std::string &key)
{
    auto found = report.find(key);
    return found == report.end() ? -1 : atol(found->second.c_str());
}

bool kernel_has_io_uring()
{
    char parameters[120] = {};
    long fd = syscall(425, 2, parameters);
    if (fd >= 0)
        close(static_cast<int>(fd));
    return fd >= 0;
}

bool skipped_for_want_of_a_ring;

#define NEEDS_A_RING()                                                                                           \
    do {                                                                                                         \
        if (!kernel_has_io_uring()) {                                                                            \
            skipped_for_want_of_a_ring = true;                                                                   \
            GTEST_SKIP() << "this kernel gives no io_uring: " << strerror(errno);                                \
        }                                                                                                        \
    } while (0)

Environment shim_environment(const Environment &extra = {})
{
    Environment environment = extra;
    environment.emplace("LD_PRELOAD", shim());
    environment["RINGPOLL_PRELOAD_TEST_SHIM"] = "1";
    environment["RINGPOLL_PRELOAD_TEST_MODULE"] = in_build_tree(".libs/loaded_late.so");
    return environment;
}

Outcome run_scenario(const std::string &name, Environment environment)
{
    environment["RINGPOLL_PRELOAD_TEST_MODULE"] = in_build_tree(".libs/loaded_late.so");
    return run({in_build_tree("scenarios"), name}, environment);
}

/* -------------------------------------------------------------- scenarios */

struct Listed {
    std::string name;
    bool rides_the_ring;
};

/* Names that begin with a small letter are second halves of others; "Flush…" are the
 * flush points of batched writes. */
std::vector<Listed> listed_scenarios(bool flush_points)
{
    std::vector<Listed> list;
    std::istringstream lines(run({in_build_tree("scenarios"), "--list"}, {}).out);
    std::string name;
    for (int rides; lines >> name >> rides;)
        if (isupper(static_cast<unsigned char>(name[0])) && (name.compare(0, 5, "Flush") == 0) == flush_points)
            list.push_back({name, rides != 0});
    std::reverse(list.begin(), list.end());
    return list;
}

void PrintTo(const Listed &listed, std::ostream *stream)
{
    *stream << listed.name;
}

/* What a scenario does on plain epoll, found out once. */
const Outcome &on_epoll(const std::string &name)
{
    static std::map<std::string, Outcome> known;
    auto found = known.find(name);
    if (found == known.end())
        found = known.emplace(name, run_scenario(name, {})).first;
    return found->second;
}

class Scenario : public testing::TestWithParam<Listed> {
protected:
    void must_be_as_on_epoll(const Environment &environment)
    {
        const Outcome &plain = on_epoll(GetParam().name);
        Outcome shimmed = run_scenario(GetParam().name, shim_environment(environment));
        EXPECT_EQ(plain.status, 0) << plain.err;
        EXPECT_EQ(shimmed.status, 0) << shimmed.err;
        EXPECT_EQ(shimmed.out, plain.out);
        EXPECT_EQ(shimmed.err, plain.err);
    }
};

TEST_P(Scenario, IsOnTheRingAsOnEpoll)
{
    NEEDS_A_RING();
    Scratch scratch;
    std::string stats = scratch.file("stats");
    must_be_as_on_epoll({{"RINGPOLL", "require"}, {"RINGPOLL_STATS", stats}});
    if (!GetParam().rides_the_ring)
        return;
    bool rode = false;
    for (const Report &report : reports_in(contents(stats)))
        rode = rode || (number(report, "rings_made") > 0 && number(report, "cqes") > 0);
    EXPECT_TRUE(rode) << contents(stats);
}

TEST_P(Scenario, IsInReadinessAsOnEpoll)
{
    must_be_as_on_epoll({{"RINGPOLL_PROFILE", "readiness"}});
}

TEST_P(Scenario, IsInThroughputAsOnEpoll)
{
    must_be_as_on_epoll({{"RINGPOLL_PROFILE", "throughput"}});
}

TEST_P(Scenario, IsOnAnOldKernelAsOnEpoll)
{
    must_be_as_on_epoll({{"RINGPOLL_MASK", "as-5.10"}});
}

TEST_P(Scenario, IsWithoutARingAsOnEpoll)
{
    must_be_as_on_epoll({{"RINGPOLL_MASK", "no-uring"}});
}

TEST_P(Scenario, IsSwitchedOffAsOnEpoll)
{
    must_be_as_on_epoll({{"RINGPOLL", "off"}});
}

INSTANTIATE_TEST_SUITE_P(Shim, Scenario, testing::ValuesIn(listed_scenarios(false)),
                         [](const testing::TestParamInfo<Listed> &info) { return info.param.name; });

class FlushPoint : public Scenario {};

TEST_P(FlushPoint, SendsWhatWasHeldBack)
{
    NEEDS_A_RING();
    must_be_as_on_epoll({{"RINGPOLL", "require"},
                         {"RINGPOLL_PROFILE", "throughput"},
                         {"RINGPOLL_PRELOAD_TEST_BATCHES", "1"}});
}

INSTANTIATE_TEST_SUITE_P(Shim, FlushPoint, testing::ValuesIn(listed_scenarios(true)),
                         [](const testing::TestParamInfo<Listed> &info) { return info.param.name; });

/* ------------------------------------------------------------ environment */

TEST(Require, EndsTheProgramWithOneSentenceWhereThereIsNoRing)
{
    Outcome outcome = run_scenario("CloseSendsFin", shim_environment({{"RINGPOLL", "require"}, {"RINGPOLL_MASK", "no-uring"}}));
    EXPECT_EQ(outcome.status, 125);
    EXPECT_EQ(outcome.err.rfind("ringpoll: RINGPOLL=require, but ", 0), 0u) << outcome.err;
    EXPECT_EQ(std::count(outcome.err.begin(), outcome.err.end(), '\n'), 1) << outcome.err;
}

TEST(Require, NamesTheFilterThatForbidsTheRing)
{
    NEEDS_A_RING();
    Outcome outcome = run({in_build_tree("scenarios"), "under_an_inherited_filter", "require"}, shim_environment());
    EXPECT_EQ(outcome.status, 125);
    EXPECT_NE(outcome.err.find("EPERM"), std::string::npos) << outcome.err;
    EXPECT_NE(outcome.err.find("seccomp"), std::string::npos) << outcome.err;
}

TEST(Auto, RunsOnEpollUnderAnInheritedFilterAndSaysWhy)
{
    Scratch scratch;
    Environment environment = shim_environment({{"RINGPOLL_STATS", scratch.file("stats")}});
    Outcome outcome = run({in_build_tree("scenarios"), "under_an_inherited_filter", "auto"}, environment);
    EXPECT_EQ(outcome.status, 0) << outcome.err;
    EXPECT_EQ(outcome.err, "");
    std::vector<Report> reports = reports_in(contents(scratch.file("stats")));
    ASSERT_EQ(reports.size(), 1u);
    EXPECT_EQ(reports[0]["error"], "EPERM");
    if (kernel_has_io_uring()) {
        EXPECT_NE(reports[0]["knob"].find("seccomp"), std::string::npos) << reports[0]["knob"];
    }
    EXPECT_EQ(number(reports[0], "rings_made"), 0);
}

TEST(Require, ToleratesSetsThatHaveAReason)
{
    NEEDS_A_RING();
    for (const char *name : {"ASetCanBePolled", "AForkedChildUsesTheInheritedSet", "AFilterFromTheBeginning"}) {
        Outcome outcome = run_scenario(name, shim_environment({{"RINGPOLL", "require"}}));
        EXPECT_EQ(outcome.status, 0) << name << ": " << outcome.err;
    }
}

TEST(Unknown, WordsMeanAuto)
{
    NEEDS_A_RING();
    Scratch scratch;
    Outcome outcome = run_scenario("CloseSendsFin", shim_environment({{"RINGPOLL", "perhaps"},
                                                                      {"RINGPOLL_PROFILE", "fastest"},
                                                                      {"RINGPOLL_STATS", scratch.file("stats")}}));
    EXPECT_EQ(outcome.status, 0) << outcome.err;
    EXPECT_EQ(outcome.err, "");
    std::vector<Report> reports = reports_in(contents(scratch.file("stats")));
    ASSERT_EQ(reports.size(), 1u);
    EXPECT_GT(number(reports[0], "rings_made"), 0);
}

TEST(Off, MakesNoRingAndSaysSo)
{
    Scratch scratch;
    Outcome outcome =
        run_scenario("CloseSendsFin", shim_environment({{"RINGPOLL", "off"}, {"RINGPOLL_STATS", scratch.file("stats")}}));
    EXPECT_EQ(outcome.status, 0) << outcome.err;
    std::vector<Report> reports = reports_in(contents(scratch.file("stats")));
    ASSERT_EQ(reports.size(), 1u);
    EXPECT_EQ(reports[0]["reason"], "RINGPOLL=off");
}

TEST(Stats, GoToTheFileWhereTheProgramWasStarted)
{
    NEEDS_A_RING();
    Scratch scratch;
    Outcome outcome = run({in_build_tree("scenarios"), "DaemonGoesOn"},
                          shim_environment({{"RINGPOLL_STATS", "stats-%p"}}), scratch.path().c_str());
    EXPECT_EQ(outcome.status, 0) << outcome.err;
    /* The daemon, which went on after its parent: one file, its own number. */
    int files = 0;
    DIR *directory = opendir(scratch.path().c_str());
    while (dirent *entry = readdir(directory)) {
        if (strncmp(entry->d_name, "stats-", 6) != 0)
            continue;
        std::vector<Report> reports = reports_in(contents(scratch.file(entry->d_name)));
        ASSERT_EQ(reports.size(), 1u);
        EXPECT_EQ(reports[0]["pid"], entry->d_name + 6);
        files++;
    }
    closedir(directory);
    EXPECT_GE(files, 1);
}

TEST(Stats, AreOneReportPerProcessAndAppended)
{
    NEEDS_A_RING();
    Scratch scratch;
    Environment environment = shim_environment({{"RINGPOLL_STATS", scratch.file("stats")}});
    for (int round = 0; round < 3; round++)
        EXPECT_EQ(run_scenario("AForkedChildClosesWhatItInherited", environment).status, 0);
    std::vector<Report> reports = reports_in(contents(scratch.file("stats")));
    ASSERT_EQ(reports.size(), 6u); /* the child makes a set of its own */
    std::set<std::string> pids;
    for (Report &report : reports) {
        pids.insert(report["pid"]);
        EXPECT_NE(report["program"].find("scenarios"), std::string::npos);
        for (const char *key : {"ringpoll", "engine", "reason", "error", "knob", "sets_made", "waits", "events",
                                "enters", "cqes", "polls_armed", "ops_in_flight", "kernel_waits", "demotions", "adopted",
                                "adoptions", "received", "receives_ended", "starved", "calls_saved"})
            EXPECT_TRUE(report.count(key)) << key;
    }
    EXPECT_EQ(pids.size(), 6u);
}

/* A program that cannot be accelerated runs, and the report says why. */
TEST(Stats, SayWhySetsAreOnKernelEpoll)
{
    struct {
        const char *scenario, *mask, *key;
        bool needs_ring;
    } const cases[] = {
        {"CloseSendsFin", "no-uring", "kernel_sets_no_ring", false},
        {"CloseSendsFin", "as-5.19", "kernel_sets_old_kernel", true},
        {"ASetCanBePolled", "", "kernel_sets_nested", true},
        {"AForkedChildUsesTheInheritedSet", "", "kernel_sets_fork", true},
        {"AFilterThatRefusesTheRing", "", "kernel_sets_restricted", true},
        {"APassedSetWorksInTheOtherProcess", "", "kernel_sets_shared", true},
        {"TwoThreadsWaitOnOneSet", "", "kernel_sets_waiters", true},
    };
    for (const auto &c : cases) {
        if (c.needs_ring && !kernel_has_io_uring())
            continue;
        Scratch scratch;
        Outcome outcome = run_scenario(
            c.scenario, shim_environment({{"RINGPOLL_MASK", c.mask}, {"RINGPOLL_STATS", scratch.file("stats")}}));
        EXPECT_EQ(outcome.status, 0) << c.scenario << ": " << outcome.err;
        long sets = 0;
        for (const Report &report : reports_in(contents(scratch.file("stats")))) {
            sets += std::max(number(report, c.key), 0L);
            EXPECT_GE(number(report, "kernel_sets"), number(report, c.key));
        }
        EXPECT_GT(sets, 0) << c.scenario << " has no " << c.key << ":\n" << contents(scratch.file("stats"));
    }
}

TEST(Stats, GoToStandardErrorOrANumberWhenToldSo)
{
    for (const char *where : {"stderr", "2"}) {
        Outcome outcome = run_scenario("CloseSendsFin", shim_environment({{"RINGPOLL_STATS", where}}));
        EXPECT_EQ(outcome.status, 0);
        EXPECT_EQ(reports_in(outcome.err).size(), 1u) << outcome.err;
    }
    Outcome outcome = run_scenario("CloseSendsFin", shim_environment({{"RINGPOLL_STATS", "1"}}));
    EXPECT_EQ(reports_in(outcome.out).size(), 1u) << outcome.out;
}

TEST(Stats, OfAProgramWithoutEpollAreNothing)
{
    Outcome outcome = run({"/bin/true"}, shim_environment({{"RINGPOLL_STATS", "stderr"}}));
    EXPECT_EQ(outcome.status, 0);
    EXPECT_EQ(outcome.err, "");
}

TEST(Stats, ThatCannotBeWrittenChangeNothing)
{
    Outcome outcome = run_scenario("CloseSendsFin", shim_environment({{"RINGPOLL_STATS", "/no/such/place/stats"}}));
    EXPECT_EQ(outcome.status, 0) << outcome.err;
    EXPECT_EQ(outcome.err, "");
}

/* -------------------------------------------------------- secure execution
 *
 * The loader drops LD_PRELOAD for a program that gains privileges by being
 * started; the shim gets into one by /etc/ld.so.preload, or because the program
 * was linked with it. The latter is done here, since it needs nothing but a
 * directory: what the caller's environment asks for must then mean nothing. */

/* Ends with 77 where no ring is mapped while it waits, 0 where one is, 78 where
 * it is not what it should be; anything else is a failure. */
const char privileged_program[] = R"(
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    char line[1024], byte;
    int ends[2], set = epoll_create1(EPOLL_CLOEXEC), shim = 0, ring = 0;
    struct epoll_event event = {.events = EPOLLIN, .data = {.u64 = 42}}, got;
    if (set < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) ||
        epoll_ctl(set, EPOLL_CTL_ADD, ends[0], &event))
        return 1;
    for (int i = 0; i < 3; i++)
        if (write(ends[1], "x", 1) != 1 || epoll_wait(set, &got, 1, 5000) != 1 || got.data.u64 != 42 ||
            read(ends[0], &byte, 1) != 1)
            return 2;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof line, maps)) {
        shim |= strstr(line, "libringpoll-preload.so") != NULL;
        ring |= strstr(line, "io_uring") != NULL;
    }
    if (!shim || (argc > 1 && atoi(argv[1]) != (getauxval(AT_SECURE) != 0)))
        return 78;
    return ring ? 0 : 77;
}
)";

std::string linked_with_the_shim(const Scratch &scratch)
{
    std::string source = scratch.file("privileged.c"), program = scratch.file("privileged");
    std::string library = scratch.file("libringpoll-preload.so");
    if (FILE *file = fopen(source.c_str(), "w")) {
        fputs(privileged_program, file);
        fclose(file);
    }
    const char *cc = getenv("CC");
    std::string line = "cp '" + shim() + "' '" + library + "' && chmod 755 '" + library + "' && " + (cc ? cc : "cc") +
                       " -D_GNU_SOURCE -o '" + program + "' '" + source + "' -Wl,--no-as-needed '" + library +
                       "' -Wl,-rpath,'" + scratch.path() + "' 2>&1";
    std::string told;
    if (FILE *stream = popen(line.c_str(), "r")) {
        char bytes[512];
        while (fgets(bytes, sizeof bytes, stream))
            told += bytes;
        if (pclose(stream) == 0)
            return program;
    }
    printf("%s", told.c_str());
    return "";
}

TEST(Secure, VariablesMeanNothingInAProgramThatGainsPrivileges)
{
    NEEDS_A_RING();
    if (geteuid() != 0)
        GTEST_SKIP() << "a setuid program for somebody else takes root to make";
    Scratch scratch;
    struct statvfs filesystem;
    if (statvfs(scratch.path().c_str(), &filesystem) != 0 || (filesystem.f_flag & ST_NOSUID))
        GTEST_SKIP() << "/tmp is mounted nosuid";
    std::string program = linked_with_the_shim(scratch);
    if (program.empty())
        GTEST_SKIP() << "no compiler to make a program with";
    chmod(scratch.path().c_str(), 0777);
    std::string stats = scratch.file("stats");
    auto run_as_nobody = [&](const char *secure, Environment environment) {
        unlink(stats.c_str());
        environment["RINGPOLL_STATS"] = stats;
        return run({program, secure}, environment, nullptr, 65534);
    };
    const Environment off = {{"RINGPOLL", "off"}};
    const Environment refused = {{"RINGPOLL", "require"}, {"RINGPOLL_MASK", "no-uring"}};
    const Environment masked = {{"RINGPOLL_MASK", "no-uring"}};

    /* Unprivileged: each of them is obeyed. */
    chmod(program.c_str(), 0755);
    Outcome outcome = run_as_nobody("0", {});
    ASSERT_EQ(outcome.status, 0) << outcome.err;
    EXPECT_EQ(access(stats.c_str(), F_OK), 0);
    EXPECT_EQ(run_as_nobody("0", off).status, 77);
    EXPECT_EQ(run_as_nobody("0", masked).status, 77);
    EXPECT_EQ(run_as_nobody("0", refused).status, 125);

    /* The same, setuid to root. */
    chmod(program.c_str(), 04755);
    for (const Environment &environment : {Environment(), off, masked, refused}) {
        outcome = run_as_nobody("1", environment);
        EXPECT_EQ(outcome.status, 0) << outcome.err;
        EXPECT_EQ(outcome.err, "");
        EXPECT_NE(access(stats.c_str(), F_OK), 0) << "it wrote where its caller wanted";
    }
    for (const char *descriptor : {"stderr", "2"}) {
        outcome = run({program, "1"}, {{"RINGPOLL_STATS", descriptor}}, nullptr, 65534);
        EXPECT_EQ(outcome.status, 0);
        EXPECT_EQ(outcome.err, "");
    }
}

/* ------------------------------------------------------------ the company */

TEST(Lazy, AProgramThatNeverWaitsMakesNoRingAndOpensNothing)
{
    Outcome plain = run({"/bin/ls", "/proc/self/fd"}, {});
    Outcome shimmed = run({"/bin/ls", "/proc/self/fd"}, shim_environment({{"RINGPOLL", "require"}}));
    EXPECT_EQ(shimmed.status, 0) << shimmed.err;
    EXPECT_EQ(shimmed.out, plain.out);
}

/* A malloc that calls back into the shim while it is being set up. */
TEST(OtherMallocs, ComeUpBeforeAndBehindTheShim)
{
    const char *found = nullptr;
    for (const char *path : {"/usr/lib/x86_64-linux-gnu/libjemalloc.so.2", "/usr/lib/aarch64-linux-gnu/libjemalloc.so.2",
                             "/usr/lib/libjemalloc.so.2"})
        if (access(path, R_OK) == 0)
            found = path;
    if (!found)
        GTEST_SKIP() << "libjemalloc is not installed";
    for (const std::string &order : {shim() + " " + found, std::string(found) + " " + shim()}) {
        Outcome outcome = run_scenario("AVforkChildEditsNothingOfItsParents", shim_environment({{"LD_PRELOAD", order}}));
        EXPECT_EQ(outcome.status, 0) << order << ": " << outcome.err;
    }
}

/* ------------------------------------------------------------------ names */

std::set<std::string> names_of(const std::string &command)
{
    std::set<std::string> names;
    if (FILE *stream = popen(command.c_str(), "r")) {
        char line[1024];
        while (fgets(line, sizeof line, stream)) {
            std::istringstream words(line);
            std::string word, last;
            while (words >> word)
                last = word;
            last.erase(std::min(last.find('@'), last.size()));
            if (!last.empty() && last.back() != ':')
                names.insert(last);
        }
        pclose(stream);
    }
    return names;
}

TEST(Names, ThatAreExportedAreAllLibcs)
{
    std::set<std::string> exported = names_of("nm -D --defined-only '" + shim() + "' 2>/dev/null");
    if (exported.empty())
        GTEST_SKIP() << "there is no nm";
    const std::set<std::string> newer = {"pidfd_spawn", "pidfd_spawnp"}; /* glibc 2.39 */
    for (const std::string &name : exported)
        EXPECT_TRUE(dlsym(RTLD_DEFAULT, name.c_str()) || newer.count(name)) << name;
    EXPECT_GT(exported.size(), 70u);
}

TEST(Names, ThatTheLibraryCallsAreNoneOfThem)
{
    std::set<std::string> exported = names_of("nm -D --defined-only '" + shim() + "' 2>/dev/null");
    std::set<std::string> called = names_of("nm -u '" + in_build_tree("../../backend/.libs/libringpoll-core.a") + "' 2>/dev/null");
    if (exported.empty() || called.empty())
        GTEST_SKIP() << "there is no nm";
    for (const std::string &name : called)
        EXPECT_FALSE(exported.count(name)) << "the library calls " << name << ", and would meet the shim's";
}

} // namespace

int main(int argc, char **argv)
{
    const char *sanitizers = getenv("RINGPOLL_SANITIZE");
    if (sanitizers && *sanitizers) {
        printf("skipped: a sanitizer's runtime has to come before the shim (%s)\n", sanitizers);
        return 77;
    }
    testing::InitGoogleTest(&argc, argv);
    if (access(shim().c_str(), R_OK)) {
        fprintf(stderr, "there is no shim at %s\n", shim().c_str());
        return 1;
    }
    int result = RUN_ALL_TESTS();
    /* A kernel without io_uring must not look green. */
    return result == 0 && skipped_for_want_of_a_ring ? 77 : result;
}
