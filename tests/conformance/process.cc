/* SPDX-License-Identifier: MIT
 *
 * fork, exec and passing: a set is a file that processes share. A child's wait
 * sees what is ready; what it does to itself leaves the parent alone.
 *
 * A failed expectation in a child is its exit status, which the parent asserts.
 */
#include "conformance.h"

#include <limits.h>
#include <spawn.h>

using namespace support;

CONFORMANCE(Fork);
CONFORMANCE(Exec);

namespace {

/* In the child: leaves with the number of the line that was wrong. */
#define CHECK_IN_CHILD(condition)                                                                                 \
    do {                                                                                                          \
        if (!(condition))                                                                                         \
            _exit(__LINE__ % 250 + 1);                                                                            \
    } while (0)

testing::AssertionResult child_is_content(pid_t child)
{
    int status = 0;
    if (waitpid(child, &status, 0) != child)
        return testing::AssertionFailure() << "waitpid: " << strerrorname_np(errno);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return testing::AssertionSuccess();
    if (WIFSIGNALED(status))
        return testing::AssertionFailure() << "the child died of signal " << WTERMSIG(status);
    return testing::AssertionFailure() << "the child failed near line " << WEXITSTATUS(status) - 1 << " (mod 250)";
}

} // namespace

TEST_P(Fork, AChildSeesWhatIsReady)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_EQ(ready(set), Events());
    put(p.b, 1, p.a);
    pid_t child = e().fork();
    if (child == 0) {
        CHECK_IN_CHILD(ready(set) == (Events{{(uint64_t)p.a, in_}}));
        CHECK_IN_CHILD(ready(set) == (Events{{(uint64_t)p.a, in_}}));
        drain(p.a);
        CHECK_IN_CHILD(ready(set) == Events());
        _exit(0);
    }
    EXPECT_TRUE(child_is_content(child));
    EXPECT_EQ(ready(set), Events());
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
}

TEST_P(Fork, AChildWakesForLaterEvents)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_EQ(ready(set), Events());
    pid_t child = e().fork();
    if (child == 0) {
        CHECK_IN_CHILD(next(set) == (Events{{(uint64_t)p.a, in_}}));
        _exit(0);
    }
    EXPECT_TRUE(until_process_waits(child));
    put(p.b, 1, p.a);
    EXPECT_TRUE(child_is_content(child));
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
}

TEST_P(Fork, TheParentIsNotDisturbedByAChildThatCloses)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_EQ(ready(set), Events());
    pid_t child = e().fork();
    if (child == 0) {
        CHECK_IN_CHILD(e().close(set) == 0);
        CHECK_IN_CHILD(e().close(p.a) == 0);
        CHECK_IN_CHILD(e().close(p.b) == 0);
        _exit(0);
    }
    EXPECT_TRUE(child_is_content(child));
    EXPECT_EQ(ready(set), Events());
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    drain(p.a);
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Fork, TheParentIsNotDisturbedByAChildThatClosesBeforeItsFirstWait)
{
    int set = new_set();
    Pair p = tcp();
    int semaphore = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC | EFD_SEMAPHORE);
    ASSERT_EQ(add(set, semaphore, in_), 0);
    ASSERT_EQ(add(set, p.a, in_), 0);
    pid_t child = e().fork();
    if (child == 0) {
        CHECK_IN_CHILD(e().close(p.a) == 0);
        CHECK_IN_CHILD(e().close(semaphore) == 0);
        _exit(0);
    }
    EXPECT_TRUE(child_is_content(child));
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    ASSERT_EQ(del(set, p.a), 0);
    EXPECT_EQ(ready(set), Events());
    kick(semaphore);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)semaphore, in_}}));
}

TEST_P(Fork, TheParentIsNotDisturbedByAChildThatExits)
{
    int set = new_set();
    Pair p = tcp(), q = unix_stream();
    ASSERT_EQ(add(set, p.a, in_ | et_), 0);
    ASSERT_EQ(add(set, q.a, in_), 0);
    EXPECT_EQ(ready(set), Events());
    for (int i = 0; i < 5; i++) {
        pid_t child = e().fork();
        if (child == 0)
            _exit(0);
        put(p.b, 1, p.a);
        EXPECT_TRUE(child_is_content(child));
        EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
        EXPECT_EQ(ready(set), Events());
    }
}

TEST_P(Fork, TheParentIsNotDisturbedByAChildThatIsKilled)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_EQ(ready(set), Events());
    pid_t child = e().fork();
    if (child == 0) {
        next(set);
        _exit(1);
    }
    EXPECT_TRUE(until_process_waits(child));
    kill(child, SIGKILL);
    ASSERT_EQ(waitpid(child, nullptr, 0), child);
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
}

TEST_P(Fork, AChildSeesWhatIsReadyInASetOlderThanOthersThatCameAndWent)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_EQ(ready(set), Events());
    for (int i = 0; i < 3; i++) {
        int other = new_set();
        ASSERT_EQ(add(other, p.a, in_), 0);
        EXPECT_EQ(ready(other), Events());
        EXPECT_EQ(e().close(other), 0);
    }
    int last = new_set();
    put(p.b, 1, p.a);
    pid_t child = e().fork();
    if (child == 0) {
        CHECK_IN_CHILD(ready(set) == (Events{{(uint64_t)p.a, in_}}));
        CHECK_IN_CHILD(ready(last) == Events());
        _exit(0);
    }
    EXPECT_TRUE(child_is_content(child));
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
}

TEST_P(Fork, AChildMayCloseAndAddItsOwn)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_EQ(ready(set), Events());
    pid_t child = e().fork();
    if (child == 0) {
        CHECK_IN_CHILD(e().close(set) == 0);
        int own = e().create(EPOLL_CLOEXEC);
        CHECK_IN_CHILD(own == set);
        int fds[2];
        CHECK_IN_CHILD(e().socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, fds) == 0);
        CHECK_IN_CHILD(add(own, fds[0], in_) == 0);
        CHECK_IN_CHILD(add(own, p.a, in_) == 0);
        CHECK_IN_CHILD(ready(own) == Events());
        CHECK_IN_CHILD(e().write(fds[1], "x", 1) == 1);
        CHECK_IN_CHILD(ready(own) == (Events{{(uint64_t)fds[0], in_}}));
        for (int i = 0; i < 100; i++) {
            CHECK_IN_CHILD(drain(fds[0]) > 0);
            CHECK_IN_CHILD(ready(own) == Events());
            CHECK_IN_CHILD(e().write(fds[1], "x", 1) == 1);
            CHECK_IN_CHILD(ready(own) == (Events{{(uint64_t)fds[0], in_}}));
        }
        _exit(0);
    }
    EXPECT_TRUE(child_is_content(child));
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
}

TEST_P(Fork, ASetMadeBeforeAndUsedOnlyByTheChild)
{
    /* The way of daemons: make, fork, and go on in the child. */
    int set = new_set();
    Pair p = tcp();
    struct sockaddr_in address;
    int listening = listener(&address);
    ASSERT_EQ(add(set, p.a, in_), 0);
    ASSERT_EQ(add(set, listening, in_), 0);
    pid_t child = e().fork();
    if (child == 0) {
        for (int i = 0; i < 50; i++) {
            CHECK_IN_CHILD(next(set) == (Events{{(uint64_t)p.a, in_}}));
            CHECK_IN_CHILD(drain(p.a) == 1);
            CHECK_IN_CHILD(e().write(p.a, "y", 1) == 1);
        }
        _exit(0);
    }
    for (int i = 0; i < 50; i++) {
        ASSERT_EQ(e().write(p.b, "x", 1), 1);
        char byte;
        ASSERT_TRUE(settle(p.b, POLLIN));
        ASSERT_EQ(e().read(p.b, &byte, 1), 1);
    }
    EXPECT_TRUE(child_is_content(child));
}

TEST_P(Fork, ACloseInTheParentLeavesTheChildsRegistration)
{
    int set = new_set();
    Pair p = tcp();
    int gate[2];
    ASSERT_EQ(::pipe(gate), 0);
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_EQ(ready(set), Events());
    pid_t child = e().fork();
    if (child == 0) {
        char byte;
        ::close(gate[1]);
        CHECK_IN_CHILD(::read(gate[0], &byte, 1) == 0);
        CHECK_IN_CHILD(next(set) == (Events{{(uint64_t)p.a, in_}}));
        _exit(0);
    }
    ASSERT_EQ(e().close(p.a), 0);
    EXPECT_EQ(poll_now(p.b) & POLLRDHUP, 0) << "the child still has it";
    put(p.b, 1, -1);
    ::close(gate[0]);
    ::close(gate[1]);
    EXPECT_TRUE(child_is_content(child));
    EXPECT_TRUE(settle(p.b, POLLRDHUP, 5));
}

TEST_P(Fork, TheFileLivesInTheParentsSetWhileTheChildHasIt)
{
    int set = new_set();
    Pair p = tcp();
    int gate[2];
    ASSERT_EQ(::pipe(gate), 0);
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_EQ(ready(set), Events());
    pid_t child = e().fork();
    if (child == 0) {
        char byte;
        ::close(gate[1]);
        CHECK_IN_CHILD(::read(gate[0], &byte, 1) == 0);
        _exit(0);
    }
    ::close(gate[0]);
    ASSERT_EQ(e().close(p.a), 0);
    put(p.b, 1, -1);
    EXPECT_EQ(next(set), (Events{{(uint64_t)p.a, in_}})) << "the child's copy keeps the registration alive";
    ::close(gate[1]);
    EXPECT_TRUE(child_is_content(child));
    EXPECT_TRUE(settle(p.b, POLLRDHUP, 5));
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Fork, OfAThreadWhileAnotherWaits)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    Waiter waiter([&] { return next(set); });
    ASSERT_TRUE(waiter.asleep());
    for (int i = 0; i < 5; i++) {
        pid_t child = e().fork();
        if (child == 0) {
            CHECK_IN_CHILD(ready(set) == Events());
            CHECK_IN_CHILD(e().close(set) == 0);
            _exit(0);
        }
        EXPECT_TRUE(child_is_content(child));
    }
    EXPECT_FALSE(waiter.done());
    put(p.b, 1, -1);
    EXPECT_EQ(waiter.result(), (Events{{(uint64_t)p.a, in_}}));
}

TEST_P(Fork, AGrandchildSeesWhatIsReady)
{
    int set = new_set();
    Pair p = unix_stream();
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_EQ(ready(set), Events());
    put(p.b, 1, p.a);
    pid_t child = e().fork();
    if (child == 0) {
        CHECK_IN_CHILD(ready(set) == (Events{{(uint64_t)p.a, in_}}));
        pid_t grandchild = e().fork();
        if (grandchild == 0) {
            CHECK_IN_CHILD(ready(set) == (Events{{(uint64_t)p.a, in_}}));
            _exit(0);
        }
        CHECK_IN_CHILD(child_is_content(grandchild));
        CHECK_IN_CHILD(ready(set) == (Events{{(uint64_t)p.a, in_}}));
        _exit(0);
    }
    EXPECT_TRUE(child_is_content(child));
}

TEST_P(Fork, AnExitingProcessFreesItsListenersPortAtOnce)
{
    for (bool by_signal : {false, true}) {
        int report[2];
        ASSERT_EQ(::pipe(report), 0);
        pid_t child = e().fork();
        if (child == 0) {
            struct sockaddr_in address;
            int set = new_set(), listening = listener(&address);
            Pair p = unix_stream();
            CHECK_IN_CHILD(add(set, listening, in_) == 0);
            CHECK_IN_CHILD(add(set, p.a, in_) == 0);
            CHECK_IN_CHILD(ready(set) == Events());
            CHECK_IN_CHILD(::write(report[1], &address, sizeof address) == (ssize_t)sizeof address);
            if (by_signal)
                next(set);
            _exit(0);
        }
        struct sockaddr_in address = {};
        ASSERT_EQ(::read(report[0], &address, sizeof address), (ssize_t)sizeof address);
        if (by_signal) {
            EXPECT_TRUE(until_process_waits(child));
            kill(child, SIGKILL);
        }
        ASSERT_EQ(waitpid(child, nullptr, 0), child);
        int again = e().socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC);
        EXPECT_EQ(::bind(again, (struct sockaddr *)&address, sizeof address), 0)
            << (by_signal ? "after SIGKILL" : "after exit");
        e().close(again);
        ::close(report[0]);
        ::close(report[1]);
    }
}

TEST_P(Fork, AnExitingProcessEndsItsConnections)
{
    int server_end;
    struct sockaddr_in address;
    int listening = listener(&address);
    int report[2];
    ASSERT_EQ(::pipe(report), 0);
    pid_t child = e().fork();
    if (child == 0) {
        int set = new_set();
        int fd = connected_to(address);
        CHECK_IN_CHILD(add(set, fd, in_) == 0);
        CHECK_IN_CHILD(ready(set) == Events());
        CHECK_IN_CHILD(::write(report[1], "r", 1) == 1);
        next(set);
        _exit(0);
    }
    ASSERT_TRUE(settle(listening, POLLIN));
    server_end = e().accept(listening);
    ASSERT_GE(server_end, 0);
    char byte; /* SQPOLL: a wait without time may sleep too */
    EXPECT_EQ(::read(report[0], &byte, 1), 1);
    ::close(report[0]);
    ::close(report[1]);
    EXPECT_TRUE(until_process_waits(child));
    put(server_end, 1, -1);
    EXPECT_TRUE(child_is_content(child));
    EXPECT_TRUE(settle(server_end, POLLRDHUP, 5));
}

/* ----------------------------------------------------------------------- exec */

namespace {

/* Runs this program again as "--exec-wait FD" in a child and returns what it
 * printed. `ready` runs in the parent once the child waits, or has ended. */
std::string run_exec_wait(Engine &engine, int set, int *ret_status, const std::function<void()> &when_it_waits)
{
    char self[PATH_MAX] = {};
    if (readlink("/proc/self/exe", self, sizeof self - 1) <= 0)
        return "no /proc";
    int out[2];
    if (::pipe(out) != 0)
        return "no pipe";
    char number[16];
    snprintf(number, sizeof number, "%d", set);
    pid_t child = engine.fork();
    if (child == 0) {
        ::dup2(out[1], 1);
        ::close(out[0]);
        if (out[1] != 1)
            ::close(out[1]);
        engine.before_exec();
        execl(self, self, "--exec-wait", number, (char *)nullptr);
        _exit(101);
    }
    ::close(out[1]);
    if (when_it_waits) {
        EXPECT_TRUE(until_process_waits(child));
        when_it_waits();
    }
    std::string text;
    char bytes[1000];
    for (ssize_t count; (count = ::read(out[0], bytes, sizeof bytes)) > 0;)
        text.append(bytes, (size_t)count);
    ::close(out[0]);
    waitpid(child, ret_status, 0);
    return text;
}

} // namespace

TEST_P(Exec, AnInheritedSetReportsWhatIsReady)
{
    int set = e().create(0);
    Pair p = tcp();
    ASSERT_EQ(fcntl(p.a, F_SETFD, 0), 0);
    ASSERT_EQ(add_as(set, p.a, in_, 42), 0);
    EXPECT_EQ(ready(set), Events());
    put(p.b, 1, p.a);
    int status = 0;
    EXPECT_EQ(run_exec_wait(e(), set, &status, nullptr), "42:1 \n");
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 1) << status;
    EXPECT_EQ(ready(set), (Events{{42, in_}}));
}

TEST_P(Exec, AnInheritedSetWakesForLaterEvents)
{
    int set = e().create(0);
    Pair p = unix_stream();
    ASSERT_EQ(fcntl(p.a, F_SETFD, 0), 0);
    ASSERT_EQ(add_as(set, p.a, in_, 43), 0);
    EXPECT_EQ(ready(set), Events());
    int status = 0;
    EXPECT_EQ(run_exec_wait(e(), set, &status, [&] { put(p.b, 1, p.a); }), "43:1 \n");
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 1) << status;
    EXPECT_EQ(ready(set), (Events{{43, in_}}));
}

TEST_P(Exec, AFdThatDoesNotSurviveIsStillWatchedWhileTheParentHasIt)
{
    int set = e().create(0);
    Pair p = tcp();
    ASSERT_EQ(add_as(set, p.a, in_, 44), 0); /* close-on-exec */
    EXPECT_EQ(ready(set), Events());
    put(p.b, 1, p.a);
    int status = 0;
    EXPECT_EQ(run_exec_wait(e(), set, &status, nullptr), "44:1 \n");
    EXPECT_EQ(ready(set), (Events{{44, in_}}));
}

TEST_P(Exec, TheParentGoesOnAfterwards)
{
    int set = e().create(0);
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_ | et_), 0);
    int counter = eventfd(1, 0);
    ASSERT_EQ(add_as(set, counter, in_, 45), 0);
    EXPECT_EQ(ready(set).size(), 1u);
    int status = 0;
    run_exec_wait(e(), set, &status, nullptr);
    EXPECT_EQ(take(counter), 1u);
    for (int i = 0; i < 5; i++) {
        put(p.b, 1, p.a);
        EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
        EXPECT_EQ(ready(set), Events());
    }
    ASSERT_EQ(e().close(p.a), 0);
    EXPECT_TRUE(settle(p.b, POLLIN, 5));
}

TEST_P(Exec, OfAnotherProgramFromABusyServerLeavesItsConnectionsAlone)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_EQ(ready(set), Events());
    for (int i = 0; i < 5; i++) {
        pid_t child;
        char *arguments[] = {(char *)"true", nullptr};
        ASSERT_EQ(posix_spawnp(&child, "true", nullptr, nullptr, arguments, environ), 0);
        put(p.b, 1, p.a);
        EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
        EXPECT_TRUE(child_is_content(child));
        drain(p.a);
        EXPECT_EQ(ready(set), Events());
    }
    ASSERT_EQ(e().close(p.a), 0);
    EXPECT_TRUE(settle(p.b, POLLRDHUP, 5));
}

TEST_P(Exec, ASetPassedToAnotherProcessReportsThere)
{
    int set = new_set();
    Pair p = tcp(), carrier = unix_stream(false);
    ASSERT_EQ(add(set, p.a, in_), 0);
    pid_t child = e().fork();
    if (child == 0) {
        CHECK_IN_CHILD(e().close(set) == 0);
        char byte;
        int received = -1;
        CHECK_IN_CHILD(settle(carrier.b, POLLIN));
        CHECK_IN_CHILD(e().recv_fd(carrier.b, &byte, 1, &received) == 1);
        CHECK_IN_CHILD(received >= 0);
        CHECK_IN_CHILD(next(received) == (Events{{(uint64_t)p.a, in_}}));
        _exit(0);
    }
    ASSERT_EQ(e().send_fd(carrier.a, set, "x", 1), 1);
    put(p.b, 1, p.a);
    EXPECT_TRUE(child_is_content(child));
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
}
