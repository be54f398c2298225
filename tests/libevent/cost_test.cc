/* SPDX-License-Identifier: MIT
 *
 * What libevent's loads cost in system calls: counted, never timed. evhttp with a bufferevent
 * and a listener of libringpoll-event's, and plain events of a base of ours. The loads are those of bench/libevent-bench, so that both
 * tell of the same thing.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include <string>

#include <event2/event.h>
#include <gtest/gtest.h>
#include <ringpoll/event.h>

#include "bench/count.h"
extern "C" {
#include "bench/libevent_bench.h"

uint64_t load_begin(struct load *load)
{
    if (load->counting)
        mark_begin();
    return 0;
}

void load_end(struct load *load, uint64_t)
{
    if (load->counting)
        mark_end();
}
}

namespace {

constexpr uint32_t connections = 100;

/* "" if there is all that this needs, or what there is not. */
std::string missing()
{
    const char *sanitizers = getenv("RINGPOLL_SANITIZE");
    if (sanitizers != nullptr && *sanitizers != '\0')
        return "a sanitizer's own system calls would be counted";
    struct ringpoll_probe probe = {};
    probe.size = sizeof probe;
    uint64_t needed = RINGPOLL_FEATURE_DEFER | RINGPOLL_FEATURE_BUF_RING | RINGPOLL_FEATURE_MULTISHOT_RECV |
                      RINGPOLL_FEATURE_MULTISHOT_ACCEPT;
    if (ringpoll_get_probe(&probe) != 0 || (probe.usable & needed) != needed)
        return "this kernel's rings do not receive, send and accept";
    return "";
}

/* Since 6.7 a ring asks a socket for its peer's address. */
bool asks_for_addresses()
{
    struct utsname name;
    int major = 0, minor = 0;
    return uname(&name) == 0 && sscanf(name.release, "%d.%d", &major, &minor) == 2 &&
           (major > 6 || (major == 6 && minor >= 7));
}

enum side { EPOLL, OUR_BASE, OUR_OBJECTS };

class Cost : public testing::Test {
protected:
    void SetUp() override
    {
        std::string lacks = missing();
        if (!lacks.empty())
            GTEST_SKIP() << lacks;
    }
    /* Some rounds of this load, in a child. */
    void count(const struct load_ops *ops, enum side side, uint32_t n = connections, uint32_t active = 0,
               uint32_t writes = 0)
    {
        int go[2], status = 0;
        const unsigned warm_up = 12, rounds = 8;
        counts_ = {};
        ASSERT_EQ(pipe(go), 0);
        pid_t pid = fork();
        if (pid == 0) {
            struct load load = {};
            char byte;
            signal(SIGPIPE, SIG_IGN);
            int failed = read(go[0], &byte, 1) != 1;
            load.ops = ops;
            load.n = n;
            load.active = active;
            load.writes = writes;
            load.side = side;
            load.objects = side == OUR_OBJECTS;
            load.base = side != EPOLL ? ringpoll_event_base_new(nullptr) : event_base_new();
            failed = failed || ops->open(&load) != 0;
            for (unsigned i = 0; i < warm_up + rounds && !failed; i++) {
                load.counting = i >= warm_up;
                failed = ops->round(&load) != 0;
            }
            if (failed)
                fprintf(stderr, "%s\n", load.failure);
            mark_done();
            _exit(failed);
        }
        int error = pid < 0 ? -EAGAIN : count_attach(pid);
        EXPECT_EQ(write(go[1], "x", 1), 1);
        if (error == 0)
            error = count_until_done(pid, &counts_, nullptr);
        close(go[0]);
        close(go[1]);
        if (pid > 0)
            waitpid(pid, &status, 0);
        if (error == -EPERM)
            GTEST_SKIP() << "ptrace is forbidden";
        ASSERT_EQ(error, 0);
        ASSERT_EQ(status, 0);
        struct load of = {};
        of.n = n;
        of.active = active;
        of.writes = writes;
        requests_ = rounds * ops->units(&of);
    }
    double per_request(long number) const { return (double)counts_.calls[number] / requests_; }
    double total() const { return (double)counts_.total / requests_; }
    std::string by_name() const
    {
        std::string text;
        for (long number = 0; number < COUNT_NUMBERS; number++)
            if (counts_.calls[number] > 0)
                text += std::string(count_name(number) ? count_name(number) : "?") + " " +
                        std::to_string(per_request(number)) + ", ";
        return text + "per request";
    }
    /* The load on our base makes the calls that it makes on libevent's epoll, and no other. */
    void must_cost_the_same(const struct load_ops *ops, uint32_t n, uint32_t active = 0, uint32_t writes = 0)
    {
        count(ops, EPOLL, n, active, writes);
        if (IsSkipped() || HasFatalFailure())
            return;
        struct call_counts epoll = counts_;
        std::string before = by_name();
        count(ops, OUR_BASE, n, active, writes);
        for (struct call_counts *counts : {&epoll, &counts_}) { /* the same by three names */
#ifdef SYS_epoll_wait
            counts->calls[SYS_epoll_pwait] += counts->calls[SYS_epoll_wait];
            counts->calls[SYS_epoll_wait] = 0;
#endif
            counts->calls[SYS_epoll_pwait] += counts->calls[441]; /* epoll_pwait2 */
            counts->calls[441] = 0;
        }
        for (long number = 0; number < COUNT_NUMBERS; number++)
            EXPECT_EQ(counts_.calls[number], epoll.calls[number]) << number << "; epoll: " << before << "; ours: " << by_name();
    }
    struct call_counts counts_ = {};
    double requests_ = 1;
};

TEST_F(Cost, APersistentEventCostsTheCallsOfEpoll)
{
    must_cost_the_same(&load_pipes, 100, 1, 100);
    must_cost_the_same(&load_pipes, 400, 100, 400);
}

TEST_F(Cost, AnEventThatIsThereOnceCostsTheCallsOfEpoll)
{
    must_cost_the_same(&load_cascade, 100);
}

TEST_F(Cost, EvhttpOnLibeventsOwnObjectsCostsTheCallsOfEpoll)
{
    must_cost_the_same(&load_http, connections);
}

TEST_F(Cost, IsCountedAtAll)
{
    count(&load_http, EPOLL);
    if (!IsSkipped()) {
        EXPECT_GE(total(), 5) << by_name();
    }
}

TEST_F(Cost, ARequestOnAConnectionThatStaysMakesNoCallOfItsOwn)
{
    count(&load_http, OUR_OBJECTS);
    if (IsSkipped())
        return;
    EXPECT_LE(total(), 0.2) << by_name();
    for (long number : {(long)SYS_readv, (long)SYS_writev, (long)SYS_recvfrom, (long)SYS_sendmsg, (long)SYS_epoll_ctl,
                        (long)SYS_getsockopt})
        EXPECT_EQ(counts_.calls[number], 0u) << by_name();
}

TEST_F(Cost, AConnectionForARequestMakesThoseOfItsEndAlone)
{
    count(&load_http_close, OUR_OBJECTS);
    if (IsSkipped())
        return;
    /* Both are evhttp's own. */
    EXPECT_EQ(per_request(SYS_shutdown), 1) << by_name();
    EXPECT_EQ(per_request(SYS_close), 1) << by_name();
    for (long number : {(long)SYS_readv, (long)SYS_writev, (long)SYS_recvfrom, (long)SYS_sendmsg, (long)SYS_epoll_ctl,
                        (long)SYS_accept4})
        EXPECT_EQ(counts_.calls[number], 0u) << by_name();
    EXPECT_LE(total(), asks_for_addresses() ? 3 : 3.5) << by_name();
    if (asks_for_addresses()) {
        EXPECT_LE(per_request(SYS_getsockopt), 0.05) << by_name();
    }
}

} // namespace
