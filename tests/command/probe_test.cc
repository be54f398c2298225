/* SPDX-License-Identifier: MIT
 *
 * What `ringpoll probe` promises: each feature is yes, no or masked, a no has
 * its errno and, for the ring as a whole, the setting that explains it; and the
 * two forms of the answer and the exit status agree.
 */
#include "command.h"
#include "json.h"

#include <cerrno>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <gtest/gtest.h>
#include <ringpoll/ringpoll.h>

namespace {

bool contains(const std::string &text, const std::string &part)
{
    return text.find(part) != std::string::npos;
}

const Words generations = {"as-6.1", "as-5.19", "as-5.13", "as-5.10"};

struct Answer {
    Outcome outcome;
    json::Value value;

    const json::Value &feature(const std::string &name) const
    {
        for (const json::Value &one : value["features"].array) {
            if (one["name"].string == name)
                return one;
        }
        throw std::runtime_error("no feature " + name);
    }
    std::string state(const std::string &name) const { return feature(name)["state"].string; }
};

Answer probe_as(const Start &how)
{
    Answer answer;
    answer.outcome = start(how);
    answer.value = json::read(answer.outcome.out);
    return answer;
}

Answer probe(const Words &environment = {}, std::function<void()> in_child = {})
{
    Start how;
    how.words = {command(), "probe", "--json"};
    how.environment = environment;
    how.in_child = in_child;
    return probe_as(how);
}

/* What must hold of each answer. */
void expect_consistent(const Answer &answer)
{
    const json::Value &value = answer.value;
    bool on_ring = value["sets"]["engine"].string == "ring";
    EXPECT_TRUE(answer.outcome.exited_with(on_ring ? 0 : 1)) << answer.outcome.story();
    EXPECT_EQ(answer.outcome.err, "");
    EXPECT_EQ(value["ringpoll"].string, ringpoll_version());
    ASSERT_EQ(value["features"].array.size(), static_cast<size_t>(RINGPOLL_FEATURE_COUNT));
    for (unsigned i = 0; i < RINGPOLL_FEATURE_COUNT; i++) {
        const json::Value &feature = value["features"].array[i];
        const std::string &state = feature["state"].string;
        EXPECT_EQ(feature["name"].string, ringpoll_feature_name(i));
        EXPECT_EQ(state == "yes", feature["usable"].boolean);
        SCOPED_TRACE(feature["name"].string);
        EXPECT_TRUE(!feature["masked"].boolean || state == "masked");
        EXPECT_TRUE(state != "yes" || feature["kernel"].boolean);
        EXPECT_TRUE(state != "no" || feature["errno"].number != 0) << "a no without an errno";
        EXPECT_EQ(feature["errno"].number == 0, feature["error"].kind == json::Value::Null);
    }
    if (on_ring) {
        EXPECT_EQ(answer.state("uring"), "yes");
        EXPECT_EQ(value["sets"]["reason"].kind, json::Value::Null);
    } else {
        EXPECT_NE(value["sets"]["reason"].string, "");
    }
    EXPECT_EQ(value["io_uring"]["state"].string, answer.state("uring"));
    EXPECT_EQ(value["io_uring"]["state"].string == "yes", value["io_uring"]["knob"].string == "none");
    EXPECT_EQ(value["io_uring"]["state"].string == "yes", value["io_uring"]["explanation"].kind == json::Value::Null);
    EXPECT_EQ(value["mask"]["words"].array.size(), static_cast<size_t>(RINGPOLL_FEATURE_COUNT));
    EXPECT_EQ(value["mask"]["kernels"].object.size(), generations.size());
}

/* Where there is no ring anyway, nothing else can be blamed. */
#define NEED_RING()                                                                                           \
    if (probe().state("uring") != "yes")                                                                      \
    GTEST_SKIP() << "no ring here even without it: see ringpoll probe"

/* Makes the kernel answer io_uring_setup() with `error`. */
void forbid_uring(int error)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 425, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<unsigned>(error)),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof(code) / sizeof(code[0]), code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
        _exit(204);
}

} // namespace

TEST(Probe, IsConsistentAndNamesTheRunningKernel)
{
    Answer answer = probe();
    expect_consistent(answer);
    struct utsname name;
    ASSERT_EQ(uname(&name), 0);
    EXPECT_EQ(answer.value["kernel"]["release"].string, name.release);
    EXPECT_EQ(answer.value["kernel"]["machine"].string, name.machine);
    EXPECT_EQ(answer.value["mask"]["RINGPOLL_MASK"].kind, json::Value::Null);
}

TEST(Probe, NamesTheLimitsItRunsUnder)
{
    Answer answer = probe({}, [] {
        struct rlimit files = {777, 777}, memlock = {65536, 65536};
        setrlimit(RLIMIT_NOFILE, &files);
        setrlimit(RLIMIT_MEMLOCK, &memlock);
    });
    expect_consistent(answer);
    EXPECT_EQ(answer.value["settings"]["open_files"].number, 777);
    EXPECT_EQ(answer.value["settings"]["memlock_bytes"].number, 65536);
}

TEST(Probe, EveryMaskWordTakesItsFeatureAway)
{
    for (unsigned i = 0; i < RINGPOLL_FEATURE_COUNT; i++) {
        std::string name = ringpoll_feature_name(i);
        Answer answer = probe({"RINGPOLL_MASK=no-" + name});
        SCOPED_TRACE("no-" + name);
        expect_consistent(answer);
        EXPECT_EQ(answer.state(name), "masked");
        EXPECT_EQ(answer.value["mask"]["RINGPOLL_MASK"].string, "no-" + name);
    }
}

TEST(Probe, AKernelsWordIsTheSumOfItsParts)
{
    Answer plain = probe();
    for (const std::string &word : generations) {
        SCOPED_TRACE(word);
        Answer answer = probe({"RINGPOLL_MASK=" + word});
        expect_consistent(answer);
        std::string parts;
        const json::Value &taken = plain.value["mask"]["kernels"][word];
        ASSERT_FALSE(taken.array.empty());
        for (const json::Value &part : taken.array) {
            parts += (parts.empty() ? "" : ",") + part.string;
            EXPECT_EQ(answer.state(part.string.substr(3)), "masked") << part.string;
        }
        Answer by_parts = probe({"RINGPOLL_MASK=" + parts});
        for (unsigned i = 0; i < RINGPOLL_FEATURE_COUNT; i++)
            EXPECT_EQ(answer.state(ringpoll_feature_name(i)), by_parts.state(ringpoll_feature_name(i)));
    }
}

TEST(Probe, WithoutTheRingEverythingIsMaskedAndTheStatusIsOne)
{
    Answer answer = probe({"RINGPOLL_MASK=no-uring"});
    expect_consistent(answer);
    EXPECT_TRUE(answer.outcome.exited_with(1));
    EXPECT_EQ(answer.value["io_uring"]["knob"].string, "mask");
    for (const json::Value &feature : answer.value["features"].array)
        EXPECT_NE(feature["state"].string, "yes") << feature["name"].string;
}

TEST(Probe, SetsDoNotRunOnARingWithoutDeferredTaskWork)
{
    Answer answer = probe({"RINGPOLL_MASK=no-defer"});
    expect_consistent(answer);
    EXPECT_EQ(answer.value["sets"]["engine"].string, "kernel");
}

TEST(Probe, WhenRingpollIsOffSetsRunOnEpollThoughTheFeaturesAreThere)
{
    Answer plain = probe(), off = probe({"RINGPOLL=off"});
    expect_consistent(off);
    EXPECT_TRUE(off.outcome.exited_with(1)) << off.outcome.story();
    EXPECT_EQ(off.state("uring"), plain.state("uring"));
}

TEST(Probe, BlamesTheSeccompFilterThatForbidsTheRing)
{
    NEED_RING();
    for (int error : {EPERM, ENOSYS, EACCES}) {
        Answer answer = probe({}, [error] { forbid_uring(error); });
        SCOPED_TRACE(strerror(error));
        expect_consistent(answer);
        EXPECT_TRUE(answer.outcome.exited_with(1));
        EXPECT_EQ(answer.state("uring"), "no");
        EXPECT_EQ(answer.value["io_uring"]["errno"].number, error);
        EXPECT_EQ(answer.value["io_uring"]["knob"].string, "seccomp");
        EXPECT_EQ(answer.value["settings"]["seccomp"].string, "filter");
        EXPECT_EQ(answer.value["sets"]["errno"].number, error);
    }
}

/* The sysctl is the machine's, so the process gets another file in its place, and
 * a filter for the kernel's answer. */
TEST(Probe, BlamesTheSysctlThatForbidsTheRing)
{
    NEED_RING();
    if (geteuid() != 0)
        GTEST_SKIP() << "needs root";
    for (const char *value : {"1", "2"}) {
        Scratch scratch;
        std::string file = scratch.write("value", std::string(value) + "\n", 0644);
        Start how;
        how.words = {helper(), "exit", "0"};
        how.in_child = [&file] {
            if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
                mount(file.c_str(), "/proc/sys/kernel/io_uring_disabled", nullptr, MS_BIND, nullptr) != 0)
                _exit(77);
            forbid_uring(EPERM);
        };
        if (start(how).exited_with(77))
            GTEST_SKIP() << "no mount namespaces, or no such sysctl here";
        how.words = {command(), "probe", "--json"};
        Answer answer = probe_as(how);
        expect_consistent(answer);
        EXPECT_TRUE(answer.outcome.exited_with(1));
        EXPECT_EQ(answer.value["io_uring"]["error"].string, "EPERM");
        EXPECT_EQ(answer.value["io_uring"]["knob"].string, "sysctl");
        EXPECT_EQ(answer.value["settings"]["io_uring_disabled"].number, atoi(value));
        std::string told = std::string("kernel.io_uring_disabled is ") + value;
        EXPECT_TRUE(contains(answer.value["io_uring"]["explanation"].string, told))
            << answer.value["io_uring"]["explanation"].string;
    }
}

/* What kernels before 5.12 answer, which charge a ring to the limit. */
TEST(Probe, BlamesTheLimitOfLockedMemory)
{
    NEED_RING();
    Answer answer = probe({}, [] {
        struct rlimit memlock = {0, 0};
        setrlimit(RLIMIT_MEMLOCK, &memlock);
        forbid_uring(ENOMEM);
    });
    expect_consistent(answer);
    EXPECT_TRUE(answer.outcome.exited_with(1));
    EXPECT_EQ(answer.value["io_uring"]["error"].string, "ENOMEM");
    EXPECT_EQ(answer.value["io_uring"]["knob"].string, "memlock");
    EXPECT_EQ(answer.value["settings"]["memlock_bytes"].number, 0);
}

TEST(Probe, BlamesTheLimitOfFilesThatLeavesNoneForTheRing)
{
    NEED_RING();
    Answer answer = probe({}, [] {
        /* stdin, stdout and stderr are all there may be, once the loader has
         * read the libraries one by one through a fourth. */
        struct rlimit files = {4, 4};
        setrlimit(RLIMIT_NOFILE, &files);
    });
    EXPECT_EQ(answer.value["settings"]["open_files"].number, 4);
    if (answer.state("uring") == "no") {
        EXPECT_EQ(answer.value["io_uring"]["error"].string, "EMFILE");
        EXPECT_EQ(answer.value["io_uring"]["knob"].string, "files");
    }
    EXPECT_TRUE(answer.outcome.exited_with(answer.value["sets"]["engine"].string == "ring" ? 0 : 1));
}

TEST(Probe, ForPeopleSaysTheSameAsForPrograms)
{
    for (const char *mask : {"RINGPOLL_MASK=", "RINGPOLL_MASK=as-5.13,no-clamp", "RINGPOLL_MASK=no-uring"}) {
        Answer answer = probe({mask});
        Outcome people = ringpoll({"probe"}, {mask});
        EXPECT_EQ(people.status, answer.outcome.status);
        EXPECT_EQ(people.err, "");
        for (const json::Value &feature : answer.value["features"].array) {
            std::string line = "\n" + feature["name"].string + " ";
            size_t at = people.out.find(line);
            ASSERT_NE(at, std::string::npos) << feature["name"].string << people.story();
            at = people.out.find_first_not_of(' ', at + line.size());
            EXPECT_EQ(people.out.compare(at, feature["state"].string.size(), feature["state"].string), 0) << line;
        }
        for (const std::string &word : generations)
            EXPECT_TRUE(contains(people.out, word)) << word;
        bool on_ring = answer.value["sets"]["engine"].string == "ring";
        EXPECT_TRUE(contains(people.out, on_ring ? "run on a ring" : "run on kernel epoll")) << people.story();
    }
}

TEST(Probe, LeavesNoFdOrChildBehind)
{
    /* With two fds to spare it would fail if it kept the rings that it makes. */
    Answer answer = probe({}, [] {
        struct rlimit files = {32, 32};
        setrlimit(RLIMIT_NOFILE, &files);
    });
    EXPECT_EQ(answer.outcome.status, probe().outcome.status);
}

TEST(ProbeJson, IsAcceptedByAnotherReaderToo)
{
    if (access("/usr/bin/python3", X_OK) != 0)
        GTEST_SKIP() << "no python3";
    Scratch scratch;
    std::string file = scratch.write("answer", probe().outcome.out, 0644);
    Start how;
    how.words = {"/usr/bin/python3", "-m", "json.tool", file};
    Outcome outcome = start(how);
    EXPECT_TRUE(outcome.exited_with(0)) << outcome.story();
}
