/* SPDX-License-Identifier: MIT
 *
 * What a program costs on the ring, in system calls: counted, never timed, so
 * that the promise can be tested on any machine. (Cycles are `ringpoll bench
 * readiness`, whose workers these are.)
 *
 * The counted process is this binary again: as a worker of the bench, or, with
 * --changes, as a small program of its own. It runs under the shim with
 * RINGPOLL=require and is traced by its parent between two marks.
 */
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>
#include <vector>

#include <gtest/gtest.h>
#include <ringpoll/ringpoll.h>

#include "bench/count.h"
#include "bench/lane.h"
#include "bench/worker.h"

namespace {

constexpr long nr_uring_setup = 425, nr_uring_enter = 426;

/* "" if io_uring, the shim and ptrace are all to be had, or what is not. */
std::string missing()
{
#ifdef RINGPOLL_WITHOUT_URING
    return "built without io_uring";
#endif
    const char *sanitizers = getenv("RINGPOLL_SANITIZE");
    if (sanitizers != nullptr && *sanitizers != '\0')
        return "a sanitizer's own system calls would be counted";
    char nothing[120] = {};
    long rc = raw_call(nr_uring_setup, 0, (long)nothing, 0, 0, 0, 0);
    if (rc == -ENOSYS || rc == -EPERM)
        return "this kernel, or a filter, has no io_uring";
    if (shim_path() == nullptr)
        return "libringpoll-preload.so is not built";
    return "";
}

#define NEEDS_EVERYTHING() \
    do { \
        std::string lacks = missing(); \
        if (!lacks.empty()) \
            GTEST_SKIP() << lacks; \
    } while (0)

std::string calls_by_name(const struct call_counts &counts)
{
    std::string text;
    for (long number = 0; number < COUNT_NUMBERS; number++) {
        if (counts.calls[number] == 0)
            continue;
        const char *name = count_name(number);
        text += name != nullptr ? name : "call-" + std::to_string(number);
        text += " " + std::to_string(counts.calls[number]) + ", ";
    }
    return text + "in " + std::to_string(counts.spans) + " spans";
}

uint64_t polls(const struct call_counts &counts)
{
    uint64_t sum = counts.calls[SYS_ppoll];
#ifdef SYS_poll
    sum += counts.calls[SYS_poll];
#endif
    return sum;
}

/* The shim makes those of a stream socket on the ring by socket calls. */
uint64_t reads_of(const struct call_counts &counts)
{
    return counts.calls[SYS_read] + counts.calls[SYS_recvfrom];
}

uint64_t writes_of(const struct call_counts &counts)
{
    return counts.calls[SYS_write] + counts.calls[SYS_sendto];
}

uint64_t epoll_waits(const struct call_counts &counts)
{
    uint64_t sum = counts.calls[SYS_epoll_pwait] + counts.calls[441];
#ifdef SYS_epoll_wait
    sum += counts.calls[SYS_epoll_wait];
#endif
    return sum;
}

struct Counted {
    bool available = false; /* ptrace worked */
    struct call_counts counts = {};
    struct answer answer = {};
    bool held_ring = false;
};

/* Runs a worker of the bench on one side and counts `rounds` rounds. */
Counted count(enum side side, struct workload workload, uint32_t rounds, enum profile profile = PROFILE_READINESS)
{
    Counted counted;
    struct lane lane = {};
    struct answer answer = {};
    lane.side = side;
    lane.profile = profile;
    lane.workload = workload;
    EXPECT_EQ(lane_start(&lane), 0) << lane.failure;
    if (lane.failure[0] == '\0') {
        /* The steady state: everything armed as it will stay. */
        EXPECT_EQ(lane_order(&lane, WORKER_BLOCK, 8, &answer), 0) << lane.failure;
        if (lane.failure[0] == '\0') {
            counted.available = lane_count(&lane, rounds, &counted.counts, &counted.answer) == 0;
            counted.held_ring = lane_holds_ring(&lane);
        }
    }
    EXPECT_EQ(lane_stop(&lane), 0) << lane.failure;
    return counted;
}

struct workload echo(enum bench_program program, uint32_t family, uint32_t connections)
{
    struct workload workload = {};
    workload.program = program;
    workload.family = family;
    workload.kind = BENCH_ECHO;
    workload.connections = connections;
    /* Nothing is timed, so any CPU will do that this process may use. */
    workload.cpu = -1;
    return workload;
}

enum bench_program libevent_or_raw()
{
#ifdef BENCH_HAVE_LIBEVENT
    return BENCH_LIBEVENT;
#else
    return BENCH_RAW;
#endif
}

#define COUNT_OR_SKIP(counted) \
    do { \
        if (HasFailure()) \
            return; \
        if (!(counted).available) \
            GTEST_SKIP() << "ptrace is not to be had"; \
    } while (0)

/* ------------------------------------------------------------- steady state */

struct Case {
    enum bench_program program;
    uint32_t family, connections, threads;
};

class SteadyEcho : public testing::TestWithParam<Case> {};

TEST_P(SteadyEcho, OneCallPerTurnBesideTheProgramsReadsAndWrites)
{
    NEEDS_EVERYTHING();
    const Case &c = GetParam();
    const uint32_t rounds = c.connections < 64 ? 40 : 10;
    struct workload workload = echo(c.program, c.family, c.connections);
    workload.threads = c.threads;
    Counted ring = count(SIDE_RING, workload, rounds);
    COUNT_OR_SKIP(ring);
    const std::string calls = calls_by_name(ring.counts);
    EXPECT_TRUE(ring.held_ring);
    EXPECT_EQ(ring.answer.turns, rounds) << "all requests of a round are ready: one turn\n" << calls;
    EXPECT_EQ(reads_of(ring.counts), (uint64_t)rounds * c.connections) << calls;
    EXPECT_EQ(writes_of(ring.counts), (uint64_t)rounds * c.connections) << calls;
    EXPECT_EQ(ring.counts.calls[nr_uring_enter], ring.answer.turns) << calls;
    EXPECT_EQ(polls(ring.counts), 0u) << "drained connections need no re-check\n" << calls;
    EXPECT_EQ(ring.counts.total - count_reads_and_writes(&ring.counts), ring.answer.turns) << calls;
    EXPECT_EQ(ring.answer.spurious, 0u) << "nothing is reported that is not there";
}

INSTANTIATE_TEST_SUITE_P(
    Programs, SteadyEcho,
    testing::ValuesIn([] {
        std::vector<Case> cases;
        for (uint32_t family : {AF_INET, AF_UNIX}) {
            for (uint32_t connections : {1u, 8u, 64u, 256u}) {
                cases.push_back({BENCH_RAW, family, connections, 0});
                if (libevent_or_raw() == BENCH_LIBEVENT)
                    cases.push_back({BENCH_LIBEVENT, family, connections, 0});
            }
            cases.push_back({libevent_or_raw(), family, 64, 1});
        }
        return cases;
    }()),
    [](const testing::TestParamInfo<Case> &tested) {
        const Case &c = tested.param;
        return std::string(c.program == BENCH_RAW ? "Raw" : "Libevent") + (c.family == AF_INET ? "Tcp" : "Unix") +
               std::to_string(c.connections) + (c.threads > 0 ? "TwoThreads" : "");
    });

class Families : public testing::TestWithParam<uint32_t> {};
INSTANTIATE_TEST_SUITE_P(Both, Families, testing::Values((uint32_t)AF_INET, (uint32_t)AF_UNIX),
                         [](const testing::TestParamInfo<uint32_t> &tested) {
                             return std::string(tested.param == AF_INET ? "Tcp" : "Unix");
                         });

TEST_P(Families, OneActiveConnectionAmongIdleOnesCostsOneCallPerTurn)
{
    NEEDS_EVERYTHING();
    const uint32_t rounds = 40;
    struct workload workload = echo(libevent_or_raw(), GetParam(), 1);
    workload.idle = 300;
    Counted ring = count(SIDE_RING, workload, rounds);
    COUNT_OR_SKIP(ring);
    const std::string calls = calls_by_name(ring.counts);
    EXPECT_EQ(ring.answer.turns, rounds);
    EXPECT_EQ(ring.counts.total, 3u * rounds) << calls;
    EXPECT_EQ(ring.counts.calls[nr_uring_enter], rounds) << calls;
}

TEST_P(Families, APartialReadCostsOneRecheckPerTurnForAllConnectionsTogether)
{
    NEEDS_EVERYTHING();
    const uint32_t rounds = 10, connections = 64;
    struct workload workload = echo(libevent_or_raw(), GetParam(), connections);
    workload.read_size = 32; /* half a request: the program must be told again */
    Counted ring = count(SIDE_RING, workload, rounds);
    COUNT_OR_SKIP(ring);
    const std::string calls = calls_by_name(ring.counts);
    EXPECT_EQ(ring.answer.turns, 2u * rounds) << calls;
    EXPECT_EQ(reads_of(ring.counts), 2u * rounds * connections) << calls;
    EXPECT_LE(ring.counts.calls[nr_uring_enter], ring.answer.turns) << calls;
    EXPECT_LE(polls(ring.counts), ring.answer.turns) << calls;
    EXPECT_EQ(epoll_waits(ring.counts), 0u) << calls;
    EXPECT_LE(ring.counts.total - count_reads_and_writes(&ring.counts), 2 * ring.answer.turns) << calls;
    EXPECT_EQ(ring.answer.spurious, 0u) << "what was read to its end is not reported again";
}

/* -------------------------------------------------------------- completion */

struct Stream {
    enum bench_program program;
    uint32_t family;
};

class Completion : public testing::TestWithParam<Stream> {
protected:
    static constexpr uint32_t connections = 64, rounds = 20;
    /* "" if the ring can receive for a program here, or what is not. */
    static std::string lacks()
    {
        struct ringpoll_probe probe = {};
        probe.size = sizeof probe;
        const uint64_t wanted = RINGPOLL_FEATURE_DEFER | RINGPOLL_FEATURE_BUF_RING | RINGPOLL_FEATURE_MULTISHOT_RECV;
        if (missing() != "")
            return missing();
        if (ringpoll_get_probe(&probe) != 0 || (probe.usable & wanted) != wanted)
            return "this kernel, or the mask, has no multishot receives";
        return "";
    }
    Counted run(enum profile profile)
    {
        return count(SIDE_RING, echo(GetParam().program, GetParam().family, connections), rounds, profile);
    }
};

TEST_P(Completion, SafeReceivesWithoutACall)
{
    if (!lacks().empty())
        GTEST_SKIP() << lacks();
    Counted ring = run(PROFILE_SAFE);
    COUNT_OR_SKIP(ring);
    const std::string calls = calls_by_name(ring.counts);
    EXPECT_TRUE(ring.held_ring);
    EXPECT_EQ(count_reads_and_writes(&ring.counts), (uint64_t)rounds * connections) << "the replies alone\n" << calls;
    EXPECT_LE(ring.counts.total - count_reads_and_writes(&ring.counts), ring.answer.turns) << calls;
    EXPECT_EQ(ring.answer.flushes, 0u) << "a direct send is there when the call returns";
    EXPECT_EQ(ring.answer.spurious, 0u);
}

TEST_P(Completion, ThroughputMakesAtMostOneCallForTenRequests)
{
    if (!lacks().empty())
        GTEST_SKIP() << lacks();
    Counted ring = run(PROFILE_THROUGHPUT);
    COUNT_OR_SKIP(ring);
    const std::string calls = calls_by_name(ring.counts);
    EXPECT_TRUE(ring.held_ring);
    EXPECT_LE(ring.counts.total, (uint64_t)rounds * connections / 10) << calls;
    EXPECT_LE(ring.answer.flushes, (uint64_t)rounds) << "replies leave with the next turn at the latest";
    EXPECT_EQ(ring.answer.spurious, 0u);
}

const char *stream_name(enum bench_program program)
{
    return program == BENCH_RAW          ? "Raw"
           : program == BENCH_LIBEVENT   ? "Libevent"
           : program == BENCH_LIBUV      ? "Libuv"
                                         : "Bufferevent";
}

INSTANTIATE_TEST_SUITE_P(
    Programs, Completion, testing::ValuesIn([] {
        std::vector<Stream> streams;
        for (uint32_t family : {AF_INET, AF_UNIX})
            for (enum bench_program program : {BENCH_RAW, BENCH_LIBEVENT, BENCH_BUFFEREVENT, BENCH_LIBUV})
                if (bench_program(program) != nullptr)
                    streams.push_back({program, family});
        return streams;
    }()),
    [](const testing::TestParamInfo<Stream> &tested) {
        return std::string(stream_name(tested.param.program)) + (tested.param.family == AF_INET ? "Tcp" : "Unix");
    });

/* ------------------------------------------------------------------- churn */

class Churn : public testing::TestWithParam<std::tuple<enum bench_kind, uint32_t, uint32_t>> {};

TEST_P(Churn, AConnectionThatLivesForOneRequestCostsNoMoreCallsThanOnEpoll)
{
    NEEDS_EVERYTHING();
    struct workload workload = echo(libevent_or_raw(), std::get<1>(GetParam()), std::get<2>(GetParam()));
    workload.kind = std::get<0>(GetParam());
    const uint32_t rounds = workload.connections < 64 ? 20 : 5;
    Counted ring = count(SIDE_RING, workload, rounds);
    COUNT_OR_SKIP(ring);
    Counted epoll = count(SIDE_EPOLL, workload, rounds);
    COUNT_OR_SKIP(epoll);
    EXPECT_EQ(epoll.counts.calls[SYS_close], (uint64_t)rounds * workload.connections);
    EXPECT_EQ(ring.counts.calls[SYS_close], (uint64_t)rounds * workload.connections);
    EXPECT_LE(ring.counts.total, epoll.counts.total)
        << "ring:  " << calls_by_name(ring.counts) << "\nepoll: " << calls_by_name(epoll.counts);
}

INSTANTIATE_TEST_SUITE_P(Connections, Churn,
                         testing::Combine(testing::Values(BENCH_CHURN, BENCH_CHURN_EOF),
                                          testing::Values((uint32_t)AF_INET, (uint32_t)AF_UNIX),
                                          testing::Values(1u, 8u, 64u)),
                         [](const testing::TestParamInfo<Churn::ParamType> &tested) {
                             return std::string(std::get<0>(tested.param) == BENCH_CHURN ? "ProgramCloses"
                                                                                      : "ClientCloses") +
                                    (std::get<1>(tested.param) == AF_INET ? "Tcp" : "Unix") +
                                    std::to_string(std::get<2>(tested.param));
                         });

/* ------------------------------------------------------ changes between waits */

enum Changes {
    ADD_DEL_ADD,     /* not watched before */
    ADD_DEL,         /* nothing is left of it */
    DEL_ADD,         /* watched before and after */
    MOD_AND_BACK,
    MOD_TO_THE_SAME,
    MANY_ADD_DEL_ADD, /* 64 fds at once */
    CHANGES,
};

void must(bool held)
{
    if (!held)
        _exit(3);
}

void change(int epfd, int op, int fd, uint32_t events)
{
    struct epoll_event event = {};
    event.events = events;
    event.data.fd = fd;
    must(epoll_ctl(epfd, op, fd, &event) == 0);
}

void wait_finds_nothing(int epfd)
{
    struct epoll_event event;
    must(epoll_wait(epfd, &event, 1, 0) == 0);
}

/* The counted program: nothing is ever readable, so that all calls are the
 * changes' own and the wait's. */
int changes_main(enum Changes what, int go)
{
    const int pairs = what == MANY_ADD_DEL_ADD ? 64 : 1;
    const int spans = 20;
    std::vector<int> fds;
    char byte;
    alarm(60);
    int epfd = epoll_create1(EPOLL_CLOEXEC);
    must(epfd >= 0);
    for (int i = 0; i < pairs; i++) {
        int pair[2];
        must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) == 0);
        fds.push_back(pair[0]);
    }
    bool before = what == DEL_ADD || what == MOD_AND_BACK || what == MOD_TO_THE_SAME;
    for (int fd : fds)
        if (before)
            change(epfd, EPOLL_CTL_ADD, fd, EPOLLIN);
    /* A set is given its ring by the first wait that has something to watch. */
    int other[2];
    must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, other) == 0);
    change(epfd, EPOLL_CTL_ADD, other[0], EPOLLIN);
    for (int i = 0; i < 3; i++)
        wait_finds_nothing(epfd);
    change(epfd, EPOLL_CTL_DEL, other[0], 0);
    wait_finds_nothing(epfd);
    must(read(go, &byte, 1) == 1);
    for (int span = 0; span < spans; span++) {
        mark_begin();
        for (int fd : fds) {
            switch (what) {
            case ADD_DEL_ADD:
            case MANY_ADD_DEL_ADD:
                change(epfd, EPOLL_CTL_ADD, fd, EPOLLIN);
                change(epfd, EPOLL_CTL_DEL, fd, 0);
                change(epfd, EPOLL_CTL_ADD, fd, EPOLLIN);
                break;
            case ADD_DEL:
                change(epfd, EPOLL_CTL_ADD, fd, EPOLLIN);
                change(epfd, EPOLL_CTL_DEL, fd, 0);
                break;
            case DEL_ADD:
                change(epfd, EPOLL_CTL_DEL, fd, 0);
                change(epfd, EPOLL_CTL_ADD, fd, EPOLLIN);
                break;
            case MOD_TO_THE_SAME:
                change(epfd, EPOLL_CTL_MOD, fd, EPOLLIN);
                break;
            case MOD_AND_BACK:
                change(epfd, EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLRDHUP);
                change(epfd, EPOLL_CTL_MOD, fd, EPOLLIN);
                break;
            default:
                must(false);
            }
        }
        wait_finds_nothing(epfd);
        mark_end();
        for (int fd : fds)
            if (!before && what != ADD_DEL)
                change(epfd, EPOLL_CTL_DEL, fd, 0);
        wait_finds_nothing(epfd);
        wait_finds_nothing(epfd);
    }
    mark_done();
    return 0;
}

/* Counts such a program under the shim. -1: ptrace is not to be had. */
int count_changes(enum Changes what, struct call_counts *counts)
{
    int go[2];
    if (pipe2(go, 0) != 0)
        return -1;
    std::string preload = std::string("LD_PRELOAD=") + shim_path();
    std::string number = std::to_string(what), fd = std::to_string(go[0]);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        close(go[1]);
        putenv((char *)preload.c_str());
        putenv((char *)"RINGPOLL=require");
        execl("/proc/self/exe", "cost_test", "--changes", number.c_str(), fd.c_str(), (char *)nullptr);
        _exit(127);
    }
    close(go[0]);
    int status = 0;
    int rc = count_attach(pid);
    EXPECT_EQ(write(go[1], "g", 1), 1);
    if (rc == 0)
        rc = count_until_done(pid, counts, &status);
    close(go[1]);
    EXPECT_NE(rc, -ESRCH) << "the program ended early, status " << status;
    if (rc != -ESRCH) {
        EXPECT_EQ(waitpid(pid, &status, 0), pid);
        EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "status " << status;
    }
    return rc == 0 ? 0 : -1;
}

void expect_calls_per_span(enum Changes what, uint64_t most)
{
    NEEDS_EVERYTHING();
    struct call_counts counts = {};
    int rc = count_changes(what, &counts);
    if (testing::Test::HasFailure())
        return;
    if (rc != 0)
        GTEST_SKIP() << "ptrace is not to be had";
    EXPECT_EQ(counts.spans, 20u);
    EXPECT_EQ(counts.calls[SYS_epoll_ctl], 0u) << calls_by_name(counts);
    EXPECT_LE(counts.calls[nr_uring_enter], counts.spans) << calls_by_name(counts);
    EXPECT_LE(counts.total, most * counts.spans) << calls_by_name(counts);
}

TEST(ChangesBetweenWaits, AddDelAddCostsNothingBesideTheWait)
{
    expect_calls_per_span(ADD_DEL_ADD, 1);
}

TEST(ChangesBetweenWaits, AddDelCostsNothingBesideTheWait)
{
    expect_calls_per_span(ADD_DEL, 1);
}

TEST(ChangesBetweenWaits, AddDelAddOfManyCostsNothingBesideTheWait)
{
    expect_calls_per_span(MANY_ADD_DEL_ADD, 1);
}

/* Here a second call is allowed: the fd may have become ready since its poll was
 * armed, and a new registration has to tell. */
TEST(ChangesBetweenWaits, DelAddOfAWatchedFdCostsAtMostARecheck)
{
    expect_calls_per_span(DEL_ADD, 2);
}

TEST(ChangesBetweenWaits, ModAndBackCostsAtMostARecheck)
{
    expect_calls_per_span(MOD_AND_BACK, 2);
}

/* libuv does so once per request. An fd that has nothing to tell will by itself. */
TEST(ChangesBetweenWaits, ModOfAnIdleFdToWhatItIsCostsNothingBesideTheWait)
{
    expect_calls_per_span(MOD_TO_THE_SAME, 1);
}

} // namespace

int main(int argc, char **argv)
{
    int status = worker_or_idler(argc, argv);
    if (status >= 0)
        return status;
    if (argc == 4 && strcmp(argv[1], "--changes") == 0)
        return changes_main((enum Changes)atoi(argv[2]), atoi(argv[3]));
    testing::InitGoogleTest(&argc, argv);
    int rc = RUN_ALL_TESTS();
    const testing::UnitTest &all = *testing::UnitTest::GetInstance();
    /* Nothing that ran is nothing that was shown. */
    if (rc == 0 && all.test_to_run_count() > 0 && all.skipped_test_count() == all.test_to_run_count())
        return 77;
    return rc;
}
