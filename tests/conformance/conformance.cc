/* SPDX-License-Identifier: MIT
 *
 * The fixture, and main(): see conformance.h. The program also plays the other
 * program for the tests of exec ("--exec-wait FD").
 */
#include "conformance.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

#include <fstream>

using namespace support;

std::ostream &operator<<(std::ostream &out, const Event &event)
{
    static const struct {
        uint32_t bit;
        const char *name;
    } names[] = {{EPOLLIN, "IN"},         {EPOLLOUT, "OUT"},       {EPOLLPRI, "PRI"},      {EPOLLERR, "ERR"},
                 {EPOLLHUP, "HUP"},       {EPOLLRDHUP, "RDHUP"},   {EPOLLRDNORM, "RDNORM"}, {EPOLLRDBAND, "RDBAND"},
                 {EPOLLWRNORM, "WRNORM"}, {EPOLLWRBAND, "WRBAND"}, {EPOLLMSG, "MSG"}};
    if (event.data == ~0ull)
        return out << "error " << strerrorname_np((int)event.events);
    out << event.data << ":";
    const char *between = "";
    uint32_t left = event.events;
    for (auto &name : names)
        if (left & name.bit) {
            out << between << name.name;
            between = "|";
            left &= ~name.bit;
        }
    if (left != 0)
        out << between << "0x" << std::hex << left << std::dec;
    return out;
}

/* --------------------------------------------------------------- the fixture */

void Conformance::SetUp()
{
    signal(SIGPIPE, SIG_IGN);
    engine_ = make_engine(GetParam());
    ASSERT_NE(engine_, nullptr) << "no such engine: " << GetParam();
    ASSERT_EQ(GetParam() == "shim", shim_is_loaded())
        << "the engine \"shim\", and no other, runs under LD_PRELOAD";
    /* What is made once per process and kept is there from now on. */
    static bool warm = false;
    if (!warm) {
        int set = new_set();
        int counter = eventfd(1);
        ASSERT_EQ(add(set, counter, EPOLLIN), 0);
        ready(set);
        e().close(counter);
        e().close(set);
        warm = true;
    }
    fds_before_ = open_fds();
}

void Conformance::TearDown()
{
    if (engine_ == nullptr)
        return;
    if (Waiter::lost) { /* a thread still uses the engine */
        engine_.release();
        return;
    }
    const auto *info = ::testing::UnitTest::GetInstance()->current_test_info();
    bool sets_first = strlen(info->name()) % 2 == 0;
    std::vector<int> fds = e().still_open();
    std::stable_sort(fds.begin(), fds.end(),
                     [&](int left, int right) { return e().is_set(left) > e().is_set(right); });
    if (!sets_first)
        std::reverse(fds.begin(), fds.end());
    for (int fd : fds)
        EXPECT_EQ(e().close(fd), 0) << "fd " << fd;

    size_t rings;
    std::map<int, std::string> after = open_fds(&rings);
    EXPECT_LE(rings, 64u); /* empty ones, which wait for their thread's next set */
    for (auto &entry : after)
        if (fds_before_.count(entry.first) == 0)
            ADD_FAILURE() << "left open: " << entry.first << " " << entry.second;
        else
            EXPECT_EQ(fds_before_[entry.first], entry.second) << "another file behind fd " << entry.first;
    for (auto &entry : fds_before_)
        if (after.count(entry.first) == 0)
            ADD_FAILURE() << "closed behind the test's back: " << entry.first << " " << entry.second;

    Held held = e().held();
    EXPECT_EQ(held.ops_in_flight, 0u);
    EXPECT_EQ(held.polls_armed, 0u);
    EXPECT_EQ(held.rings, 0u);
    EXPECT_EQ(held.sets, 0u);
}

int Conformance::new_set()
{
    int set = e().create(EPOLL_CLOEXEC);
    EXPECT_GE(set, 0) << strerrorname_np(-set);
    return set;
}

int Conformance::ctl(int set, int op, int fd, uint32_t events, uint64_t data)
{
    struct epoll_event event = {};
    event.events = events;
    event.data.u64 = data;
    return e().ctl(set, op, fd, &event);
}

static Events sorted(const struct epoll_event *events, int count)
{
    if (count < 0)
        return {{~0ull, (uint32_t)-count}};
    Events result;
    for (int i = 0; i < count; i++)
        result.push_back({events[i].data.u64, events[i].events});
    std::sort(result.begin(), result.end());
    return result;
}

Events Conformance::ready(int set, int max)
{
    std::vector<struct epoll_event> events((size_t)max);
    return sorted(events.data(), e().wait_ms(set, events.data(), max, 0));
}

Events Conformance::next(int set, int max)
{
    std::vector<struct epoll_event> events((size_t)max);
    return sorted(events.data(), e().wait_ms(set, events.data(), max, 20000));
}

Events Conformance::gather(int set, size_t count, int max)
{
    Events all;
    std::set<uint64_t> seen;
    while (seen.size() < count) {
        Events some = next(set, max);
        if (some.empty() || some[0].data == ~0ull) {
            ADD_FAILURE() << "a wait gave " << ::testing::PrintToString(some);
            break;
        }
        for (auto &event : some)
            seen.insert(event.data);
        all.insert(all.end(), some.begin(), some.end());
    }
    std::sort(all.begin(), all.end());
    return all;
}

int Conformance::listener(struct sockaddr_in *ret_address, int backlog)
{
    int fd = e().socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC);
    EXPECT_GE(fd, 0);
    /* An address of this process's own, where nobody else's connection takes a port that it
     * gave up and binds again. */
    struct sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(0x7f800000u | ((uint32_t)getpid() & 0x3fffffu) << 1 | 1u);
    EXPECT_EQ(::bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    EXPECT_EQ(e().listen(fd, backlog), 0);
    socklen_t length = sizeof address;
    EXPECT_EQ(getsockname(fd, (struct sockaddr *)&address, &length), 0);
    *ret_address = address;
    return fd;
}

int Conformance::connected_to(const struct sockaddr_in &address)
{
    int fd = e().socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC);
    EXPECT_GE(fd, 0);
    int result = e().connect(fd, (const struct sockaddr *)&address, sizeof address);
    EXPECT_TRUE(result == 0 || result == -EINPROGRESS) << strerrorname_np(-result);
    EXPECT_TRUE(settle(fd, POLLOUT));
    return fd;
}

Pair Conformance::tcp(bool inet6)
{
    int on = 1;
    struct sockaddr_storage address = {};
    socklen_t length = sizeof address;
    int domain = inet6 ? AF_INET6 : AF_INET;
    address.ss_family = (sa_family_t)domain;
    if (inet6)
        ((struct sockaddr_in6 *)&address)->sin6_addr = in6addr_loopback;
    else
        ((struct sockaddr_in *)&address)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int listening = e().socket(domain, SOCK_STREAM | SOCK_CLOEXEC);
    EXPECT_GE(listening, 0);
    EXPECT_EQ(::bind(listening, (struct sockaddr *)&address, length), 0);
    EXPECT_EQ(e().listen(listening, 1), 0);
    EXPECT_EQ(getsockname(listening, (struct sockaddr *)&address, &length), 0);
    Pair pair;
    pair.a = e().socket(domain, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC);
    int result = e().connect(pair.a, (struct sockaddr *)&address, length);
    EXPECT_TRUE(result == 0 || result == -EINPROGRESS) << strerrorname_np(-result);
    pair.b = e().accept(listening);
    EXPECT_GE(pair.b, 0);
    EXPECT_TRUE(settle(pair.a, POLLOUT));
    setsockopt(pair.a, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(pair.b, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    EXPECT_EQ(e().close(listening), 0);
    return pair;
}

Pair Conformance::unix_stream(bool nonblock)
{
    int fds[2] = {-1, -1};
    EXPECT_EQ(e().socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | (nonblock ? SOCK_NONBLOCK : 0), fds), 0);
    return {fds[0], fds[1]};
}

Pair Conformance::unix_datagram()
{
    int fds[2] = {-1, -1};
    EXPECT_EQ(e().socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, fds), 0);
    return {fds[0], fds[1]};
}

Pair Conformance::udp()
{
    int fds[2];
    struct sockaddr_in address[2] = {};
    for (int i = 0; i < 2; i++) {
        fds[i] = e().socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC);
        address[i].sin_family = AF_INET;
        address[i].sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        EXPECT_EQ(::bind(fds[i], (struct sockaddr *)&address[i], sizeof address[i]), 0);
        socklen_t length = sizeof address[i];
        EXPECT_EQ(getsockname(fds[i], (struct sockaddr *)&address[i], &length), 0);
    }
    for (int i = 0; i < 2; i++)
        EXPECT_EQ(e().connect(fds[i], (struct sockaddr *)&address[1 - i], sizeof address[0]), 0);
    return {fds[0], fds[1]};
}

Pair Conformance::pipe(int flags)
{
    int fds[2] = {-1, -1};
    EXPECT_EQ(e().pipe(fds, flags), 0);
    return {fds[0], fds[1]};
}

int Conformance::eventfd(unsigned initial, int flags)
{
    int fd = e().eventfd(initial, flags);
    EXPECT_GE(fd, 0);
    return fd;
}

void Conformance::put(int to, size_t length, int arrives_at)
{
    std::vector<char> bytes(length, 'x');
    ASSERT_EQ(e().write(to, bytes.data(), length), (ssize_t)length);
    if (arrives_at >= 0) {
        ASSERT_TRUE(settle(arrives_at, POLLIN));
    }
}

void Conformance::put_text(int to, const char *text, int arrives_at)
{
    ASSERT_EQ(e().write(to, text, strlen(text)), (ssize_t)strlen(text));
    if (arrives_at >= 0) {
        ASSERT_TRUE(settle(arrives_at, POLLIN));
    }
}

size_t Conformance::drain(int fd)
{
    char bytes[65536];
    size_t total = 0;
    for (;;) {
        ssize_t count = e().read(fd, bytes, sizeof bytes);
        if (count == -EINTR)
            continue;
        if (count <= 0)
            return total;
        total += (size_t)count;
    }
}

size_t Conformance::fill(int fd)
{
    static const char bytes[65536] = {};
    size_t total = 0, piece = sizeof bytes;
    for (;;) {
        ssize_t count = e().write(fd, bytes, piece);
        if (count == -EINTR)
            continue;
        if (count > 0)
            total += (size_t)count;
        else if (piece > 1)
            piece /= 2;
        else
            return total;
    }
}

void Conformance::reset(int fd)
{
    struct linger linger = {1, 0};
    EXPECT_EQ(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger), 0);
    EXPECT_EQ(e().close(fd), 0);
}

void Conformance::kick(int fd, uint64_t by)
{
    ASSERT_EQ(e().write(fd, &by, sizeof by), (ssize_t)sizeof by);
}

uint64_t Conformance::take(int fd)
{
    uint64_t value = 0;
    ssize_t count = e().read(fd, &value, sizeof value);
    return count == (ssize_t)sizeof value ? value : 0;
}

/* ---------------------------------------------------------------- the waiter */

Waiter::Waiter(std::function<Events()> body) : future_(state_->promise.get_future())
{
    std::shared_ptr<State> state = state_;
    thread_ = std::thread([state, body] {
        state->tid.set_value(this_thread());
        state->promise.set_value(body());
    });
    tid_ = state->tid.get_future().get();
}

Waiter::~Waiter()
{
    if (thread_.joinable())
        result();
}

testing::AssertionResult Waiter::asleep()
{
    if (until_it_waits(tid_))
        return testing::AssertionSuccess();
    return testing::AssertionFailure() << "the thread does not sleep in a wait";
}

bool Waiter::done()
{
    return future_.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
}

Events Waiter::result()
{
    if (future_.wait_for(std::chrono::seconds(20)) != std::future_status::ready) {
        ADD_FAILURE() << "the waiting thread was not woken";
        lost = true;
        thread_.detach();
        return {};
    }
    thread_.join();
    return future_.get();
}

bool Waiter::lost = false;

/* ---------------------------------------------------------------------- main */

/* The program after exec: waits once on the fd that it has inherited and says
 * what came, as "data:events" words. */
static int exec_wait(int set)
{
    struct epoll_event events[16];
    int count = epoll_wait(set, events, 16, 20000);
    if (count < 0)
        return 100;
    for (int i = 0; i < count; i++)
        printf("%llu:%x ", (unsigned long long)events[i].data.u64, events[i].events);
    printf("\n");
    return count;
}

/* Says at the end what carried the events, and fails a run that was to be on a
 * ring and was not: a kernel without io_uring must not look green. */
class Carrier : public ::testing::Environment {
public:
    void TearDown() override
    {
        const char *expected = getenv("RINGPOLL_TEST_EXPECT");
        for (auto &name : chosen_engines()) {
            auto engine = make_engine(name);
            Held held = engine != nullptr ? engine->held() : Held();
            if (!held.counted)
                continue;
            printf("%s: %llu sets, %llu rings, %llu completions, %llu overflows\n", name.c_str(),
                   (unsigned long long)held.sets_made, (unsigned long long)held.rings_made,
                   (unsigned long long)held.cqes, (unsigned long long)held.cq_overflows);
            bool filtered = ::testing::UnitTest::GetInstance()->test_to_run_count() < 100;
            if (expected != nullptr && strcmp(expected, "ring") == 0 && !filtered) {
                EXPECT_GT(held.cqes, 0u) << "this run was to be on a ring";
            }
            if (expected != nullptr && strcmp(expected, "kernel") == 0) {
                EXPECT_EQ(held.rings_made, 0u) << "this run was to be without a ring";
            }
            break; /* the counters are the process's */
        }
    }
};

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "--exec-wait") == 0)
        return exec_wait(atoi(argv[2]));
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    ::testing::InitGoogleTest(&argc, argv);
    ::testing::AddGlobalTestEnvironment(new Carrier);
    return RUN_ALL_TESTS();
}
