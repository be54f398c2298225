/* SPDX-License-Identifier: MIT
 *
 * What `ringpoll run` promises: the program runs as it would alone, with the
 * shim in it where that is possible; and who asked for something that cannot be
 * had is told so in one sentence and by the exit status.
 */
#include "command.h"

#include <climits>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <elf.h>
#include <fcntl.h>
#include <fstream>
#include <grp.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <gtest/gtest.h>
#include <ringpoll/ringpoll.h>

namespace {

#define NEED_SHIM()                                                                                           \
    if (shim().empty())                                                                                       \
    GTEST_SKIP() << "the shim has not been built"

#define NEED_RING()                                                                                           \
    NEED_SHIM();                                                                                              \
    if (!ringpoll({"probe"}).exited_with(0))                                                                  \
    GTEST_SKIP() << "this kernel gives no ring: see ringpoll probe"

#define NEED_ROOT()                                                                                           \
    if (geteuid() != 0)                                                                                       \
    GTEST_SKIP() << "needs root"

bool contains(const std::string &text, const std::string &part)
{
    return text.find(part) != std::string::npos;
}

/* `ringpoll run words…`, starting in `directory`. */
Outcome run_in(const std::string &directory, const Words &words, const Words &environment = {})
{
    Start how;
    how.words = {command(), "run"};
    how.words.insert(how.words.end(), words.begin(), words.end());
    how.environment = environment;
    how.directory = directory;
    return start(how);
}

Outcome run(const Words &words, const Words &environment = {})
{
    return run_in("", words, environment);
}

/* A program without a dynamic loader, which exits with 42; "" when the machine
 * cannot make one. */
std::string static_program(const Scratch &scratch)
{
    std::string source = scratch.write("static.c", "int main(void) { return 42; }\n", 0644);
    std::string program = scratch.file("static");
    const char *cc = getenv("CC");
    std::string line = std::string(cc != nullptr ? cc : "cc") + " -static -o " + program + " " + source +
                       " >/dev/null 2>&1";
    return system(line.c_str()) == 0 ? program : "";
}

void become_nobody()
{
    if (setgroups(0, nullptr) != 0 || setgid(65534) != 0 || setuid(65534) != 0)
        _exit(203);
}

/* The command with its shim and a copy of the helper where nobody may go. */
struct Nobody {
    Scratch scratch;
    std::string command_copy, helper_copy;
    Words environment;

    Nobody()
    {
        command_copy = scratch.copy(command(), "ringpoll", 0755);
        helper_copy = scratch.copy(helper(), "helper", 0755);
        environment = {"RINGPOLL_PRELOAD=" + scratch.copy(shim(), "shim.so", 0644)};
    }
    bool honours_setuid() const
    {
        struct statvfs fs;
        return statvfs(scratch.path().c_str(), &fs) == 0 && (fs.f_flag & ST_NOSUID) == 0;
    }
    Outcome start_as_nobody(const Words &words, std::function<void()> first = {}) const
    {
        Start how;
        how.words = {command_copy};
        how.words.insert(how.words.end(), words.begin(), words.end());
        how.environment = environment;
        how.in_child = [first] {
            if (first)
                first();
            become_nobody();
        };
        return start(how);
    }
};

} // namespace

/* ------------------------------------------------------- passing it through */

class ExitStatus : public testing::TestWithParam<int> {};

TEST_P(ExitStatus, IsTheProgramsOwn)
{
    NEED_SHIM();
    Outcome outcome = run({"--", helper(), "exit", std::to_string(GetParam())});
    EXPECT_TRUE(outcome.exited_with(GetParam())) << outcome.story();
    EXPECT_EQ(outcome.err, "");
}
INSTANTIATE_TEST_SUITE_P(Run, ExitStatus, testing::Values(0, 1, 2, 77, 124, 125, 126, 127, 128, 255));

class Killed : public testing::TestWithParam<int> {};

TEST_P(Killed, GivesTheSameWaitStatusAsWithoutTheCommand)
{
    NEED_SHIM();
    for (bool with_command : {false, true}) {
        Start how;
        how.words = {helper(), "wait"};
        if (with_command)
            how.words.insert(how.words.begin(), {command(), "run", "--"});
        how.when_ready = [](pid_t pid) { kill(pid, GetParam()); };
        Outcome outcome = start(how);
        EXPECT_TRUE(outcome.killed_by(GetParam())) << outcome.story();
        EXPECT_EQ(outcome.out, "ready\n");
        EXPECT_EQ(outcome.err, "");
    }
}
INSTANTIATE_TEST_SUITE_P(Run, Killed, testing::Values(SIGTERM, SIGINT, SIGHUP, SIGKILL, SIGUSR1, SIGPIPE, SIGRTMIN));

TEST(Run, TheProgramHasTheProcessSignalsAndFdsOfTheCommand)
{
    NEED_SHIM();
    Outcome outcomes[2];
    for (int with_command = 0; with_command < 2; with_command++) {
        Start how;
        how.words = {helper(), "process"};
        if (with_command)
            how.words.insert(how.words.begin(), {command(), "run", "--stats=/dev/null", "--"});
        how.in_child = [] {
            sigset_t set;
            sigemptyset(&set);
            sigaddset(&set, SIGUSR2);
            sigprocmask(SIG_BLOCK, &set, nullptr);
            signal(SIGQUIT, SIG_IGN);
            dup2(STDIN_FILENO, 9);
        };
        Outcome &outcome = outcomes[with_command];
        outcome = start(how);
        ASSERT_TRUE(outcome.exited_with(0)) << outcome.story();
        std::string pid = "pid " + std::to_string(outcome.pid) + "\n";
        ASSERT_EQ(outcome.out.compare(0, pid.size(), pid), 0) << outcome.story();
        outcome.out.erase(0, pid.size());
        EXPECT_TRUE(contains(outcome.out, "fd 9\n"));
    }
    EXPECT_EQ(outcomes[0].out, outcomes[1].out);
}

TEST(Run, ArgumentsArriveAsTheyWereTyped)
{
    NEED_SHIM();
    std::string expected = "[" + helper() + "]\n[argv]\n[--stats]\n[--]\n[]\n[a b]\n[--help]\n[-x]\n[tab\t*]\n";
    Words arguments = {"argv", "--stats", "--", "", "a b", "--help", "-x", "tab\t*"};
    for (Words words : {Words{"--", helper()}, Words{helper()}, Words{"--profile", "safe", helper()}}) {
        words.insert(words.end(), arguments.begin(), arguments.end());
        Outcome outcome = run(words);
        EXPECT_TRUE(outcome.exited_with(0)) << outcome.story();
        EXPECT_EQ(outcome.out, expected);
        EXPECT_EQ(outcome.err, "");
    }
}

TEST(Run, AProgramFromPathSeesItsNameAsTyped)
{
    NEED_SHIM();
    Scratch scratch;
    scratch.copy(helper(), "some-program", 0755);
    Outcome outcome = run({"some-program", "argv"}, {"PATH=/nonexistent:" + scratch.path()});
    EXPECT_TRUE(outcome.exited_with(0)) << outcome.story();
    EXPECT_EQ(outcome.out, "[some-program]\n[argv]\n");
}

/* ------------------------------------------------------------------- search */

TEST(Search, GoesOnAfterAFileThatMayNotBeExecuted)
{
    NEED_SHIM();
    Scratch first, second;
    first.write("some-program", "#!/bin/sh\nexit 1\n", 0644);
    second.copy(helper(), "some-program", 0755);
    Outcome outcome = run({"some-program", "exit", "5"}, {"PATH=" + first.path() + ":" + second.path()});
    EXPECT_TRUE(outcome.exited_with(5)) << outcome.story();
}

TEST(Search, AnEmptyElementOfPathIsTheCurrentDirectory)
{
    NEED_SHIM();
    Scratch scratch;
    scratch.copy(helper(), "some-program", 0755);
    for (const char *path : {"PATH=", "PATH=:/nonexistent", "PATH=/nonexistent:", "PATH=/x::/y"}) {
        Outcome outcome = run_in(scratch.path(), {"some-program", "exit", "6"}, {path});
        EXPECT_TRUE(outcome.exited_with(6)) << path << outcome.story();
    }
}

TEST(Search, WithoutPathTheStandardDirectoriesAreSearched)
{
    NEED_SHIM();
    EXPECT_TRUE(run({"sh", "-c", "exit 7"}, {"PATH"}).exited_with(7));
}

TEST(Search, TellsWhatIsMissingFromWhatCannotBeExecuted)
{
    Scratch scratch;
    scratch.write("text", "#!/bin/sh\n", 0644);
    scratch.make_directories("directory");
    struct {
        const char *word, *path;
        int status;
    } const cases[] = {
        {"no-such-program-anywhere", "PATH=/usr/bin:/bin", 127},
        {"", nullptr, 127},
        {"./nothing", nullptr, 127},
        {"./text/below", nullptr, 127},
        {"./text", nullptr, 126},
        {"./directory", nullptr, 126},
        {"text", "PATH=.", 126},
        {"/etc/passwd", nullptr, 126},
    };
    for (const auto &c : cases) {
        Outcome outcome = run_in(scratch.path(), {"--", c.word}, c.path != nullptr ? Words{c.path} : Words{});
        EXPECT_TRUE(outcome.exited_with(c.status)) << c.word << outcome.story();
        EXPECT_EQ(outcome.complaints(), 1u) << outcome.story();
        EXPECT_TRUE(contains(outcome.err, std::string("'") + c.word + "'")) << outcome.story();
        EXPECT_EQ(outcome.out, "");
    }
}

/* ------------------------------------------------------------------ scripts */

TEST(Script, RunsByItsInterpreter)
{
    NEED_SHIM();
    Scratch scratch;
    std::string script = scratch.write("script", "#!/bin/sh -e\necho \"$0 $1\"\nexit 3\n", 0755);
    Outcome outcome = run({script, "x"});
    EXPECT_TRUE(outcome.exited_with(3)) << outcome.story();
    EXPECT_EQ(outcome.out, script + " x\n");
    EXPECT_EQ(outcome.err, "");
}

TEST(Script, WithoutInterpreterLineIsTheShells)
{
    NEED_SHIM();
    Scratch scratch;
    std::string script = scratch.write("script", "echo \"$0 $2\"\nexit 4\n", 0755);
    Outcome outcome = run({script, "x", "y"});
    EXPECT_TRUE(outcome.exited_with(4)) << outcome.story();
    EXPECT_EQ(outcome.out, script + " y\n");
}

TEST(Script, WithAMissingInterpreterSaysWhichOne)
{
    NEED_SHIM();
    Scratch scratch;
    std::string script = scratch.write("script", "#!/no/such/interpreter -x\n", 0755);
    Outcome outcome = run({script});
    EXPECT_TRUE(outcome.exited_with(126)) << outcome.story();
    EXPECT_EQ(outcome.complaints(), 1u);
    EXPECT_TRUE(contains(outcome.err, "'/no/such/interpreter'")) << outcome.story();
}

TEST(Script, ThatIsItsOwnInterpreterEnds)
{
    NEED_SHIM();
    Scratch scratch;
    std::string script = scratch.write("script", "#!" + scratch.file("script") + "\n", 0755);
    Outcome outcome = run({script});
    EXPECT_TRUE(outcome.exited_with(126)) << outcome.story();
    EXPECT_EQ(outcome.complaints(), 1u);
}

TEST(Script, OfAStaticInterpreterIsToldOfThat)
{
    NEED_SHIM();
    Scratch scratch;
    std::string interpreter = static_program(scratch);
    if (interpreter.empty())
        GTEST_SKIP() << "cannot link a static program here";
    std::string direct = scratch.write("direct", "#! " + interpreter + " -x \n", 0755);
    std::string twice = scratch.write("twice", "#!" + direct + "\n", 0755);
    std::string by_env = scratch.write("by-env", "#!/usr/bin/env static\n", 0755);
    std::string by_env_s = scratch.write("by-env-s", "#!/usr/bin/env -S static -x\n", 0755);
    for (const std::string &script : {direct, twice, by_env, by_env_s}) {
        Outcome outcome = run({script}, {"PATH=" + scratch.path() + ":/usr/bin:/bin"});
        EXPECT_TRUE(outcome.exited_with(42)) << script << outcome.story();
        EXPECT_EQ(outcome.complaints(), 1u) << outcome.story();
        EXPECT_TRUE(contains(outcome.err, "'" + interpreter + "' is statically linked")) << outcome.story();
    }
}

/* ---------------------------------------------------------------- obstacles */

TEST(Obstacle, AStaticProgramRunsOnEpollAndIsToldOfInOneSentence)
{
    NEED_SHIM();
    Scratch scratch;
    std::string program = static_program(scratch);
    if (program.empty())
        GTEST_SKIP() << "cannot link a static program here";
    Outcome outcome = run({program});
    EXPECT_TRUE(outcome.exited_with(42)) << outcome.story();
    EXPECT_EQ(outcome.complaints(), 1u) << outcome.story();
    EXPECT_TRUE(contains(outcome.err, "'" + program + "' is statically linked")) << outcome.story();
    EXPECT_TRUE(contains(outcome.err, "runs on epoll")) << outcome.story();
}

TEST(Obstacle, AStaticProgramIsRefusedWhereARingIsRequired)
{
    Scratch scratch;
    std::string program = static_program(scratch);
    if (program.empty())
        GTEST_SKIP() << "cannot link a static program here";
    for (const Outcome &outcome : {run({"--require", program}), run({program}, {"RINGPOLL=require"})}) {
        EXPECT_TRUE(outcome.exited_with(125)) << outcome.story();
        EXPECT_EQ(outcome.complaints(), 1u) << outcome.story();
        EXPECT_TRUE(contains(outcome.err, "a ring is required")) << outcome.story();
    }
}

TEST(Obstacle, AStaticProgramIsNotMentionedWhenRingpollIsOff)
{
    Scratch scratch;
    std::string program = static_program(scratch);
    if (program.empty())
        GTEST_SKIP() << "cannot link a static program here";
    Outcome outcome = run({program}, {"RINGPOLL=off"});
    EXPECT_TRUE(outcome.exited_with(42)) << outcome.story();
    EXPECT_EQ(outcome.err, "");
}

TEST(Obstacle, TheLoaderItselfIsNone)
{
    NEED_SHIM();
    std::string maps = read_file("/proc/self/maps"), loader;
    size_t end = maps.find("/ld-");
    if (end == std::string::npos)
        GTEST_SKIP() << "no dynamic loader is mapped";
    size_t begin = maps.rfind(' ', end) + 1;
    loader = maps.substr(begin, maps.find('\n', begin) - begin);
    Outcome outcome = run({loader, helper(), "maps", shim()});
    EXPECT_TRUE(outcome.exited_with(0)) << outcome.story();
    EXPECT_EQ(outcome.err, "");
}

TEST(Obstacle, AProgramForAnotherMachineIsToldOf)
{
    NEED_SHIM();
    Scratch scratch;
    std::string image = read_file(helper());
    Elf64_Half machine = EM_S390 + 1; /* nobody's */
    memcpy(&image[offsetof(Elf64_Ehdr, e_machine)], &machine, sizeof(machine));
    std::string program = scratch.write("foreign", image, 0755);
    Outcome outcome = run({program, "exit", "0"});
    EXPECT_TRUE(outcome.exited_with(126)) << outcome.story();
    EXPECT_TRUE(contains(outcome.err, "'" + program + "' is built for another machine")) << outcome.story();
    EXPECT_TRUE(contains(outcome.err, strerror(ENOEXEC))) << outcome.story();
    Outcome required = run({"--require", program});
    EXPECT_TRUE(required.exited_with(125)) << required.story();
    EXPECT_EQ(required.complaints(), 1u) << required.story();
}

TEST(Obstacle, AProgramOfAnotherLibcIsStartedWithoutTheShim)
{
    NEED_SHIM();
    if (sizeof(void *) != 8)
        GTEST_SKIP() << "written for 64-bit ELF";
    /* The helper with another name for its loader, of the same length. */
    Scratch scratch;
    std::string image = read_file(helper());
    const Elf64_Ehdr *header = reinterpret_cast<const Elf64_Ehdr *>(image.data());
    const Elf64_Phdr *segments = reinterpret_cast<const Elf64_Phdr *>(image.data() + header->e_phoff);
    std::string loader;
    for (int i = 0; i < header->e_phnum; i++) {
        if (segments[i].p_type != PT_INTERP)
            continue;
        loader = image.c_str() + segments[i].p_offset;
        std::string other = "/tmp/rp-" + std::to_string(getpid());
        if (other.size() >= loader.size())
            GTEST_SKIP() << "the loader's name is too short to be replaced";
        std::string padded = other;
        padded.resize(segments[i].p_filesz, '\0');
        std::string changed = image;
        changed.replace(segments[i].p_offset, padded.size(), padded);
        std::string program = scratch.write("program", changed, 0755);

        Outcome missing = run({program, "exit", "0"});
        EXPECT_TRUE(missing.exited_with(126)) << missing.story();
        EXPECT_EQ(missing.complaints(), 1u) << missing.story();
        EXPECT_TRUE(contains(missing.err, "'" + other + "'")) << missing.story();

        /* A copy: the same file by another name would be known as the same. */
        std::ofstream(other, std::ios::binary) << read_file(loader);
        chmod(other.c_str(), 0755);
        Outcome outcome = run({program, "env", "LD_PRELOAD"});
        Outcome required = run({"--require", program, "exit", "0"});
        unlink(other.c_str());
        EXPECT_TRUE(outcome.exited_with(0)) << outcome.story();
        EXPECT_EQ(outcome.out, "LD_PRELOAD is unset\n");
        EXPECT_EQ(outcome.complaints(), 1u) << outcome.story();
        EXPECT_TRUE(contains(outcome.err, "another C library")) << outcome.story();
        EXPECT_TRUE(required.exited_with(125)) << required.story();
        return;
    }
    GTEST_SKIP() << "the helper has no dynamic loader";
}

TEST(Obstacle, ASetuidProgramRunsWithItsPrivilegeAndIsToldOf)
{
    NEED_ROOT();
    NEED_SHIM();
    Nobody nobody;
    if (!nobody.honours_setuid())
        GTEST_SKIP() << "the directory for temporary files is mounted nosuid";
    chmod(nobody.helper_copy.c_str(), 04755);
    Outcome outcome = nobody.start_as_nobody({"run", nobody.helper_copy, "secure"});
    EXPECT_TRUE(outcome.exited_with(0)) << outcome.story();
    EXPECT_EQ(outcome.complaints(), 1u) << outcome.story();
    EXPECT_TRUE(contains(outcome.err, "is setuid")) << outcome.story();
    /* "Nothing is preloaded" is what the loader does, not only what we say. */
    Outcome mapped = nobody.start_as_nobody({"run", nobody.helper_copy, "maps", "/shim.so"});
    EXPECT_TRUE(mapped.exited_with(1)) << mapped.story();
    Outcome required = nobody.start_as_nobody({"run", "--require", nobody.helper_copy, "secure"});
    EXPECT_TRUE(required.exited_with(125)) << required.story();
    /* Without new privileges the bit means nothing, and the shim is loaded. */
    Outcome bound = nobody.start_as_nobody({"run", nobody.helper_copy, "maps", "/shim.so"},
                                           [] { prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); });
    EXPECT_TRUE(bound.exited_with(0)) << bound.story();
    EXPECT_EQ(bound.err, "");
}

TEST(Obstacle, ASetuidProgramOfTheCallersOwnIsNone)
{
    NEED_ROOT();
    NEED_SHIM();
    Nobody nobody;
    chmod(nobody.helper_copy.c_str(), 04755);
    Outcome outcome = run({nobody.helper_copy, "secure"});
    EXPECT_TRUE(outcome.exited_with(1)) << outcome.story();
    EXPECT_EQ(outcome.err, "");
}

TEST(Obstacle, ASetgidProgramIsToldOf)
{
    NEED_ROOT();
    NEED_SHIM();
    Nobody nobody;
    if (!nobody.honours_setuid())
        GTEST_SKIP() << "the directory for temporary files is mounted nosuid";
    chmod(nobody.helper_copy.c_str(), 02755);
    Outcome outcome = nobody.start_as_nobody({"run", nobody.helper_copy, "secure"});
    EXPECT_TRUE(outcome.exited_with(0)) << outcome.story();
    EXPECT_EQ(outcome.complaints(), 1u) << outcome.story();
    EXPECT_TRUE(contains(outcome.err, "is setgid")) << outcome.story();
}

TEST(Obstacle, AProgramWithFileCapabilitiesIsToldOf)
{
    NEED_ROOT();
    NEED_SHIM();
    Nobody nobody;
    if (!nobody.honours_setuid())
        GTEST_SKIP() << "the directory for temporary files is mounted nosuid";
    /* VFS_CAP_REVISION_2, effective; permitted CAP_NET_BIND_SERVICE. */
    const unsigned char value[20] = {1, 0, 0, 2, 0, 4};
    if (setxattr(nobody.helper_copy.c_str(), "security.capability", value, sizeof(value), 0) != 0)
        GTEST_SKIP() << "no file capabilities here: " << strerror(errno);
    Outcome outcome = nobody.start_as_nobody({"run", nobody.helper_copy, "secure"});
    EXPECT_TRUE(outcome.exited_with(0)) << outcome.story();
    EXPECT_EQ(outcome.complaints(), 1u) << outcome.story();
    EXPECT_TRUE(contains(outcome.err, "has file capabilities")) << outcome.story();
    Outcome as_root = run({nobody.helper_copy, "secure"});
    EXPECT_TRUE(as_root.exited_with(1)) << as_root.story();
    EXPECT_EQ(as_root.err, "");
}

TEST(Obstacle, AnUnreadableProgramRuns)
{
    NEED_ROOT();
    NEED_SHIM();
    Nobody nobody;
    chmod(nobody.helper_copy.c_str(), 0711);
    Outcome outcome = nobody.start_as_nobody({"run", nobody.helper_copy, "exit", "8"});
    EXPECT_TRUE(outcome.exited_with(8)) << outcome.story();
    EXPECT_EQ(outcome.err, "");
}

/* ------------------------------------------------------------- environment */

TEST(Preload, TheShimIsInTheProgram)
{
    NEED_SHIM();
    Outcome outcome = run({helper(), "maps", shim()});
    EXPECT_TRUE(outcome.exited_with(0)) << outcome.story();
    EXPECT_EQ(outcome.err, "");
}

TEST(Preload, GoesBeforeWhatIsThereAndOnlyOnce)
{
    NEED_SHIM();
    /* A second copy stands for somebody else's library. */
    Scratch scratch;
    std::string other = scratch.copy(shim(), "other.so", 0644);
    Outcome first = run({helper(), "env", "LD_PRELOAD"}, {"LD_PRELOAD=" + other});
    EXPECT_EQ(first.out, "LD_PRELOAD=" + shim() + ":" + other + "\n") << first.story();
    for (const std::string &value : {other + ":" + shim(), shim() + " " + other, shim()}) {
        Outcome outcome = run({helper(), "env", "LD_PRELOAD"}, {"LD_PRELOAD=" + value});
        EXPECT_EQ(outcome.out, "LD_PRELOAD=" + value + "\n") << outcome.story();
    }
    Outcome nested = run({"--", command(), "run", "--", helper(), "env", "LD_PRELOAD"});
    EXPECT_EQ(nested.out, "LD_PRELOAD=" + shim() + "\n") << nested.story();
    Outcome empty = run({helper(), "env", "LD_PRELOAD"}, {"LD_PRELOAD="});
    EXPECT_EQ(empty.out, "LD_PRELOAD=" + shim() + "\n") << empty.story();
}

TEST(Preload, IsLeftAloneWhenRingpollIsOff)
{
    Outcome outcome = run({helper(), "env", "LD_PRELOAD", "RINGPOLL"}, {"RINGPOLL=off"});
    EXPECT_TRUE(outcome.exited_with(0)) << outcome.story();
    EXPECT_EQ(outcome.out, "LD_PRELOAD is unset\nRINGPOLL=off\n");
    EXPECT_EQ(outcome.err, "");
    Outcome stats = run({"--stats", helper(), "exit", "0"}, {"RINGPOLL=off"});
    EXPECT_TRUE(stats.exited_with(0));
    EXPECT_EQ(stats.complaints(), 1u) << stats.story();
}

TEST(Preload, TheNamedShimIsTakenAndMadeAbsolute)
{
    NEED_SHIM();
    Scratch scratch;
    std::string copy = scratch.copy(shim(), "copy.so", 0644);
    Outcome outcome = run_in(scratch.path(), {helper(), "env", "LD_PRELOAD"}, {"RINGPOLL_PRELOAD=./copy.so"});
    EXPECT_EQ(outcome.out, "LD_PRELOAD=" + copy + "\n") << outcome.story();
}

TEST(Preload, ANamedShimThatCannotBeUsedIsARefusal)
{
    Scratch scratch;
    scratch.make_directories("with blank");
    std::string blank = scratch.write("with blank/shim.so", "x", 0644);
    std::string colon = scratch.write("a:b.so", "x", 0644);
    for (const std::string &path : {scratch.file("nothing.so"), scratch.path(), blank, colon}) {
        Outcome outcome = run({helper(), "exit", "0"}, {"RINGPOLL_PRELOAD=" + path});
        EXPECT_TRUE(outcome.exited_with(125)) << outcome.story();
        EXPECT_EQ(outcome.complaints(), 1u) << outcome.story();
        EXPECT_TRUE(contains(outcome.err, path)) << outcome.story();
    }
}

TEST(Preload, IsFoundInTheBuildTree)
{
    NEED_SHIM();
    Scratch scratch;
    scratch.make_directories("build/adapters/preload/.libs");
    scratch.make_directories("build/tools/.libs");
    std::string there = scratch.copy(shim(), "build/adapters/preload/.libs/libringpoll-preload.so", 0755);
    for (const char *name : {"build/tools/ringpoll", "build/tools/.libs/lt-ringpoll"}) {
        Start how;
        how.words = {scratch.copy(command(), name, 0755), "run", helper(), "env", "LD_PRELOAD"};
        how.environment = {"RINGPOLL_PRELOAD"};
        Outcome outcome = start(how);
        EXPECT_EQ(outcome.out, "LD_PRELOAD=" + there + "\n") << outcome.story();
    }
}

TEST(Preload, IsFoundInAStagedAndInAMovedInstallation)
{
    NEED_SHIM();
    Scratch scratch;
    std::string stage = "stage";
    scratch.make_directories(stage + RINGPOLL_BINDIR);
    scratch.make_directories(stage + RINGPOLL_PKGLIBDIR);
    Start how;
    how.words = {scratch.copy(command(), stage + RINGPOLL_BINDIR + "/ringpoll", 0755), "run", helper(), "env",
                 "LD_PRELOAD"};
    how.environment = {"RINGPOLL_PRELOAD"};
    std::string staged = scratch.copy(shim(), stage + RINGPOLL_PKGLIBDIR + "/libringpoll-preload.so", 0755);
    Outcome outcome = start(how);
    EXPECT_EQ(outcome.out, "LD_PRELOAD=" + staged + "\n") << outcome.story();
}

TEST(Preload, AnIncompleteInstallationIsARefusal)
{
    if (access(RINGPOLL_PKGLIBDIR "/libringpoll-preload.so", F_OK) == 0)
        GTEST_SKIP() << "a shim is installed in " RINGPOLL_PKGLIBDIR;
    Scratch scratch;
    Start how;
    how.words = {scratch.copy(command(), "ringpoll", 0755), "run", helper(), "exit", "0"};
    how.environment = {"RINGPOLL_PRELOAD"};
    Outcome outcome = start(how);
    EXPECT_TRUE(outcome.exited_with(125)) << outcome.story();
    EXPECT_EQ(outcome.complaints(), 1u) << outcome.story();
    EXPECT_TRUE(contains(outcome.err, RINGPOLL_PKGLIBDIR)) << outcome.story();
}

TEST(Variables, AreSetByTheOptionsAndOtherwiseLeftAlone)
{
    NEED_SHIM();
    Scratch scratch;
    const Words question = {helper(), "env", "RINGPOLL", "RINGPOLL_PROFILE", "RINGPOLL_MASK", "RINGPOLL_STATS"};
    auto ask = [&](Words options, const Words &environment) {
        options.insert(options.end(), question.begin(), question.end());
        Outcome outcome = run_in(scratch.path(), options, environment);
        EXPECT_TRUE(outcome.exited_with(0)) << outcome.story();
        return outcome.out;
    };
    EXPECT_EQ(ask({}, {}), "RINGPOLL is unset\nRINGPOLL_PROFILE is unset\nRINGPOLL_MASK is unset\n"
                           "RINGPOLL_STATS is unset\n");
    EXPECT_EQ(ask({"--profile=throughput", "--stats=out"}, {}),
              "RINGPOLL is unset\nRINGPOLL_PROFILE=throughput\nRINGPOLL_MASK is unset\nRINGPOLL_STATS=" +
                  scratch.file("out") + "\n");
    EXPECT_EQ(ask({}, {"RINGPOLL=auto", "RINGPOLL_PROFILE=safe", "RINGPOLL_MASK=as-6.1,no-sqpoll",
                       "RINGPOLL_STATS=/dev/null"}),
              "RINGPOLL=auto\nRINGPOLL_PROFILE=safe\nRINGPOLL_MASK=as-6.1,no-sqpoll\nRINGPOLL_STATS=/dev/null\n");
    EXPECT_EQ(ask({"--profile", "readiness", "--stats=/dev/null"},
                  {"RINGPOLL_PROFILE=wrong", "RINGPOLL_STATS=/elsewhere"}),
              "RINGPOLL is unset\nRINGPOLL_PROFILE=readiness\nRINGPOLL_MASK is unset\nRINGPOLL_STATS=/dev/null\n");
    EXPECT_EQ(ask({"--stats=stderr"}, {"RINGPOLL=", "RINGPOLL_MASK=", "RINGPOLL_PROFILE="}).substr(0, 10),
              "RINGPOLL=\n");
}

/* A staged installation with files of programs, and a user. */
class Programs : public testing::Test {
protected:
    void SetUp() override
    {
        NEED_SHIM();
        for (const char *directory : {RINGPOLL_BINDIR, RINGPOLL_PKGLIBDIR, RINGPOLL_PKGDATADIR, RINGPOLL_CONFDIR})
            scratch.make_directories(std::string("stage") + directory);
        scratch.make_directories("home/.config/ringpoll");
        scratch.make_directories("xdg/ringpoll");
        staged = scratch.copy(command(), "stage" RINGPOLL_BINDIR "/ringpoll", 0755);
        scratch.copy(shim(), "stage" RINGPOLL_PKGLIBDIR "/libringpoll-preload.so", 0755);
        program = scratch.copy(helper(), "some-server", 0755);
    }
    void ours(const std::string &text) { scratch.write("stage" RINGPOLL_PKGDATADIR "/programs.conf", text, 0644); }
    void systems(const std::string &text) { scratch.write("stage" RINGPOLL_CONFDIR "/programs.conf", text, 0644); }
    std::string users(const std::string &text)
    {
        return scratch.write("home/.config/ringpoll/programs.conf", text, 0644);
    }
    Outcome run_staged(const Words &options = {}, const Words &environment = {}, const Words &command_line = {})
    {
        Start how;
        how.words = {staged, "run"};
        how.words.insert(how.words.end(), options.begin(), options.end());
        const Words words = command_line.empty() ? Words{program, "env", "RINGPOLL_PROFILE"} : command_line;
        how.words.insert(how.words.end(), words.begin(), words.end());
        how.environment = {"RINGPOLL_PRELOAD", "XDG_CONFIG_HOME", "HOME=" + scratch.file("home")};
        how.environment.insert(how.environment.end(), environment.begin(), environment.end());
        return start(how);
    }
    std::string profile(const Words &options = {}, const Words &environment = {}, const Words &command_line = {})
    {
        Outcome outcome = run_staged(options, environment, command_line);
        EXPECT_TRUE(outcome.exited_with(0)) << outcome.story();
        EXPECT_EQ(outcome.complaints(), 0u) << outcome.story();
        return outcome.out;
    }
    Scratch scratch;
    std::string staged, program;
};

TEST_F(Programs, AProgramThatIsNamedNowhereHasTheDefault)
{
    EXPECT_EQ(profile(), "RINGPOLL_PROFILE is unset\n");
    ours("another-server profile=throughput\n");
    EXPECT_EQ(profile(), "RINGPOLL_PROFILE is unset\n");
}

TEST_F(Programs, TheUsersFileGoesBeforeTheSystemsAndThatBeforeOurs)
{
    ours("# a comment\n\n  some-server\tprofile=throughput # why\n");
    EXPECT_EQ(profile(), "RINGPOLL_PROFILE=throughput\n");
    systems("some-server profile=safe\n");
    EXPECT_EQ(profile(), "RINGPOLL_PROFILE=safe\n");
    users("another profile=throughput\nsome-server profile=readiness"); /* no newline at the end */
    EXPECT_EQ(profile(), "RINGPOLL_PROFILE=readiness\n");
    scratch.write("xdg/ringpoll/programs.conf", "some-server profile=safe\n", 0644);
    EXPECT_EQ(profile({}, {"XDG_CONFIG_HOME=" + scratch.file("xdg")}), "RINGPOLL_PROFILE=safe\n");
    EXPECT_EQ(profile({}, {"XDG_CONFIG_HOME="}), "RINGPOLL_PROFILE=readiness\n");
    EXPECT_EQ(profile({}, {"XDG_CONFIG_HOME", "HOME"}), "RINGPOLL_PROFILE=safe\n");
}

TEST_F(Programs, TheOptionAndTheVariableGoBeforeTheFiles)
{
    users("some-server profile=throughput\n");
    EXPECT_EQ(profile({}, {"RINGPOLL_PROFILE=safe"}), "RINGPOLL_PROFILE=safe\n");
    EXPECT_EQ(profile({}, {"RINGPOLL_PROFILE="}), "RINGPOLL_PROFILE=throughput\n");
    EXPECT_EQ(profile({"--profile=readiness"}, {"RINGPOLL_PROFILE=safe"}), "RINGPOLL_PROFILE=readiness\n");
}

TEST_F(Programs, TheFirstLineThatFitsCountsAndNamesMayHaveWildcards)
{
    users("some-*r profile=readiness\nsome-server profile=throughput\n");
    EXPECT_EQ(profile(), "RINGPOLL_PROFILE=readiness\n");
    users("some profile=readiness\n[rs]ome-serve? profile=throughput\n");
    EXPECT_EQ(profile(), "RINGPOLL_PROFILE=throughput\n");
}

TEST_F(Programs, AScriptIsKnownByItsOwnNameAndElseByItsInterpreters)
{
    Outcome outcome = run_staged({}, {}, {scratch.write("shell", "#!/bin/sh\necho $RINGPOLL_PROFILE\n", 0755)});
    EXPECT_EQ(outcome.out, "\n") << outcome.story();
    users("shell profile=readiness\nsh profile=throughput\ndash profile=throughput\nbash profile=throughput\n");
    outcome = run_staged({}, {}, {scratch.file("shell")});
    EXPECT_EQ(outcome.out, "readiness\n") << outcome.story();
    users("sh profile=throughput\ndash profile=throughput\nbash profile=throughput\n");
    outcome = run_staged({}, {}, {scratch.file("shell")});
    EXPECT_EQ(outcome.out, "throughput\n") << outcome.story();
}

TEST_F(Programs, ABadLineIsOneSentenceWithItsFileAndNumber)
{
    for (const std::string line : {"some-server", "some-server profile=fast", "some-server profile=", "some-server safe",
                                   "some-server profile=safe profile=safe", "profile=safe", "/bin/x profile=safe",
                                   "other threads=3"}) {
        std::string file = users("# a comment\nsome-server profile=safe\n" + line + "\n");
        Outcome outcome = run_staged();
        EXPECT_TRUE(outcome.exited_with(2)) << line << outcome.story();
        EXPECT_EQ(outcome.out, "") << line;
        EXPECT_EQ(outcome.complaints(), 1u) << line << outcome.story();
        EXPECT_TRUE(contains(outcome.err, file + ":3: ")) << line << outcome.story();
        EXPECT_TRUE(contains(outcome.err, "readiness, safe or throughput")) << line << outcome.story();
        /* Whoever says what he wants needs no file. */
        EXPECT_EQ(profile({"--profile=safe"}), "RINGPOLL_PROFILE=safe\n") << line;
    }
}

TEST_F(Programs, OursIsGoodAndKnowsMemcached)
{
    const char *top = getenv("top_srcdir");
    std::string text = read_file(std::string(top != nullptr ? top : ".") + "/tools/programs.conf");
    ASSERT_NE(text, "");
    ours(text);
    EXPECT_EQ(profile(), "RINGPOLL_PROFILE is unset\n"); /* and no sentence */
    std::string memcached = scratch.copy(helper(), "memcached", 0755);
    EXPECT_EQ(profile({}, {}, {memcached, "env", "RINGPOLL_PROFILE"}), "RINGPOLL_PROFILE=throughput\n");
}

TEST(Stats, AloneGoToStandardError)
{
    NEED_SHIM();
    Outcome outcome = run({"--stats", helper(), "env", "RINGPOLL_STATS"});
    EXPECT_TRUE(outcome.exited_with(0)) << outcome.story();
    EXPECT_EQ(outcome.out, "RINGPOLL_STATS=stderr\n");
}

TEST(Stats, AreReportedAtExitAndTellOfTheRing)
{
    NEED_RING();
    Scratch scratch;
    Outcome outcome = run({"--require", "--stats", helper(), "epoll", "100"});
    EXPECT_TRUE(outcome.exited_with(0)) << outcome.story();
    EXPECT_TRUE(contains(outcome.err, "ring")) << outcome.story();
    outcome = run_in(scratch.path(), {"--require", "--stats=report-%p", helper(), "epoll", "100"});
    EXPECT_TRUE(outcome.exited_with(0)) << outcome.story();
    EXPECT_EQ(outcome.err, "");
    std::string report = read_file(scratch.file("report-" + std::to_string(outcome.pid)));
    EXPECT_TRUE(contains(report, "ring")) << report;
}

TEST(Stats, OnlyNamesThatCanBeWrittenAreAccepted)
{
    Scratch scratch;
    for (const std::string &name : {scratch.file("no/such/file"), scratch.path() + "/", std::string()}) {
        Outcome outcome = run({"--stats=" + name, helper(), "exit", "0"});
        EXPECT_TRUE(outcome.exited_with(2)) << name << outcome.story();
        EXPECT_EQ(outcome.complaints(), 1u) << outcome.story();
    }
}

/* ------------------------------------------------------------------ require */

TEST(Stats, AWritableFileInADirectoryThatIsNotIsAccepted)
{
    NEED_ROOT();
    NEED_SHIM();
    Nobody nobody;
    std::string file = nobody.scratch.write("report", "", 0666);
    Outcome outcome = nobody.start_as_nobody({"run", "--stats=" + file, nobody.helper_copy, "exit", "0"});
    EXPECT_TRUE(outcome.exited_with(0)) << outcome.story();
    chmod(file.c_str(), 0644);
    for (const std::string &wrong : {file, nobody.scratch.file("new")}) {
        outcome = nobody.start_as_nobody({"run", "--stats=" + wrong, nobody.helper_copy, "exit", "0"});
        EXPECT_TRUE(outcome.exited_with(2)) << outcome.story();
        EXPECT_EQ(outcome.complaints(), 1u) << outcome.story();
    }
}

TEST(Require, RunsOnARingWhereThereIsOne)
{
    NEED_RING();
    for (const Outcome &outcome : {run({"--require", helper(), "epoll", "100"}),
                                   run({"--require", helper(), "epoll", "100"}, {"RINGPOLL=off"}),
                                   run({helper(), "epoll", "100"}, {"RINGPOLL=require"})}) {
        EXPECT_TRUE(outcome.exited_with(0)) << outcome.story();
        EXPECT_EQ(outcome.err, "");
    }
}

TEST(Require, RefusesWhereThereIsNone)
{
    for (const Outcome &outcome :
         {run({"--require", helper(), "exit", "0"}, {"RINGPOLL_MASK=no-uring"}),
          run({helper(), "exit", "0"}, {"RINGPOLL_MASK=no-uring", "RINGPOLL=require"})}) {
        EXPECT_TRUE(outcome.exited_with(125)) << outcome.story();
        EXPECT_EQ(outcome.complaints(), 1u) << outcome.story();
        EXPECT_TRUE(contains(outcome.err, "a ring is required and cannot be had")) << outcome.story();
    }
}

TEST(Require, AgreesWithTheProbe)
{
    NEED_SHIM();
    for (const char *mask : {"RINGPOLL_MASK=", "RINGPOLL_MASK=no-uring", "RINGPOLL_MASK=as-6.1",
                             "RINGPOLL_MASK=as-5.19", "RINGPOLL_MASK=as-5.13", "RINGPOLL_MASK=as-5.10"}) {
        bool probe = ringpoll({"probe"}, {mask}).exited_with(0);
        Outcome outcome = run({"--require", helper(), "exit", "9"}, {mask});
        EXPECT_TRUE(outcome.exited_with(probe ? 9 : 125)) << mask << outcome.story();
    }
}

TEST(Auto, RunsOnEpollWithoutAWordWhereThereIsNoRing)
{
    NEED_SHIM();
    Outcome outcome = run({helper(), "epoll", "100"}, {"RINGPOLL_MASK=no-uring"});
    EXPECT_TRUE(outcome.exited_with(0)) << outcome.story();
    EXPECT_EQ(outcome.err, "");
}
