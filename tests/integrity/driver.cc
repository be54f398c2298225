/* SPDX-License-Identifier: MIT
 *
 * The far ends of the program under test (program.c), on plain kernel epoll, in a
 * process of their own: they make the bytes of many connections, of random sizes and
 * with random pauses, and check each that comes back by making it again.
 *
 *   driver PROGRAM echo|proxy level|edge tcp|unix [--bytes N] [--connections N]
 *          [--seed N]
 *
 * "echo": what comes must be what was sent. "proxy": the client and the upstream are
 * both here, each sends a text of its own, and must get the other's. Of the
 * connections a third is killed at a random moment, by a close or a reset; of those
 * whatever arrives must be a correct beginning, and the other end must learn of it.
 * All others must be whole to the end of file, in both directions.
 *
 * $RINGPOLL_TEST_PRELOAD is the program's LD_PRELOAD, and nobody else's. Byte i of a
 * text is a function of its seed and i, so nothing is kept.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <deque>
#include <map>
#include <memory>
#include <queue>
#include <string>
#include <vector>

namespace {

/* --------------------------------------------------------------- the texts */

uint64_t mixed(uint64_t value)
{
    value += 0x9e3779b97f4a7c15u;
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9u;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebu;
    return value ^ (value >> 31);
}

void make_text(uint64_t seed, uint64_t from, unsigned char *to, size_t count)
{
    while (count > 0) {
        uint64_t word = mixed(seed + from / 8 * 0x9e3779b97f4a7c15u);
        unsigned char bytes[8];
        memcpy(bytes, &word, 8);
        size_t at = from % 8, piece = 8 - at < count ? 8 - at : count;
        memcpy(to, bytes + at, piece);
        to += piece;
        from += piece;
        count -= piece;
    }
}

struct Random {
    uint64_t state;
    uint64_t next() { return mixed(state++); }
    uint64_t below(uint64_t limit) { return next() % limit; }
    bool chance(unsigned of) { return below(of) == 0; }
    /* Each power of two is as likely as any other. */
    uint64_t size(uint64_t most)
    {
        uint64_t limit = uint64_t(2) << below(64 - (uint64_t)__builtin_clzll(most));
        return 1 + below(limit < most ? limit : most);
    }
};

[[noreturn]] void fail(const char *what)
{
    fprintf(stderr, "FAIL: %s\n", what);
    exit(1);
}

uint64_t now_ms()
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000 + (uint64_t)time.tv_nsec / 1000000;
}

/* --------------------------------------------------------------- endpoints */

struct Endpoint {
    int fd = -1;
    Endpoint *other = nullptr; /* whose text comes here; echo: itself */
    uint64_t id = 0;           /* of the connection */
    uint64_t text = 0, sent = 0, total = 0, received = 0;
    uint64_t kill_at = UINT64_MAX; /* `sent` at which it goes */
    uint64_t window = 1, phase_left = 0;
    uint64_t paused_until = 0;
    bool readable = false, writable = false;
    bool shut = false, ended = false, over = false, killed = false, queued = false;
    Random random{0};
};

struct Connection {
    Endpoint ends[2];
    bool upstream_seen = false;
};

struct Driver {
    bool proxy = false, edge = false, local = false;
    uint64_t bytes = 64 << 20, seed = 1;
    unsigned connections = 500;
    std::string name, port, upstream_name, upstream_port;

    int set = -1, upstream = -1;
    uint64_t made = 0, finished = 0, killed = 0, checked = 0, planned = 0, alive = 0;
    std::map<uint64_t, std::unique_ptr<Connection>> all;
    std::deque<Endpoint *> ready;
    struct Later {
        uint64_t at, id;
        int end;
        bool operator<(const Later &than) const { return at > than.at; }
    };
    std::priority_queue<Later> later;
    std::map<int, Endpoint *> greeting_; /* accepted upstream, id not known yet: by fd */
    Random random{0};
    pid_t child = -1;

    void queue(Endpoint *end)
    {
        if (!end->queued && !end->over) {
            end->queued = true;
            ready.push_back(end);
        }
    }
    void watch(int fd, uint64_t id, int end)
    {
        struct epoll_event event = {};
        event.events = EPOLLIN | EPOLLOUT | EPOLLET;
        event.data.u64 = id << 1 | (uint64_t)end;
        if (epoll_ctl(set, EPOLL_CTL_ADD, fd, &event) < 0)
            fail("epoll_ctl");
    }
    void over(Endpoint *end)
    {
        if (end->over)
            return;
        end->over = true;
        if (end->fd >= 0)
            close(end->fd);
        end->fd = -1;
        Connection *connection = all.at(end->id).get();
        Endpoint &a = connection->ends[0], &b = connection->ends[1];
        if (!proxy || (a.over && b.over)) {
            finished++;
            alive--;
        } else if (proxy && !connection->upstream_seen && end == &a) {
            b.over = true; /* its greeting was never read, and maybe never will be */
            finished++;
            alive--;
        }
    }
    bool is_done(const Connection &connection) const
    {
        return connection.ends[0].over && (!proxy || connection.ends[1].over);
    }

    [[noreturn]] void wrong(const Endpoint *end, const char *what)
    {
        fprintf(stderr, "FAIL: connection %llu, end %d: %s; sent %llu of %llu, received %llu of %llu (%llu sent)%s, seed %llu\n",
                (unsigned long long)end->id, end == &all.at(end->id)->ends[1], what, (unsigned long long)end->sent,
                (unsigned long long)end->total, (unsigned long long)end->received,
                (unsigned long long)end->other->total, (unsigned long long)end->other->sent,
                end->other->killed || end->killed ? ", killed" : "", (unsigned long long)seed);
        exit(1);
    }

    void start_one();
    void accept_upstream();
    void greet(int fd);
    void new_phase(Endpoint *end);
    void kill_end(Endpoint *end);
    bool read_some(Endpoint *end);
    bool write_some(Endpoint *end);
    void step(Endpoint *end);
    void run();
    int start_program(const char *path, char **argv);
    socklen_t address_of(const std::string &where, struct sockaddr_storage *address, uint32_t host);
};

constexpr uint64_t upstream_key = UINT64_MAX;
constexpr uint64_t greeting_key = uint64_t(1) << 62;

socklen_t Driver::address_of(const std::string &where, struct sockaddr_storage *address, uint32_t host)
{
    memset(address, 0, sizeof *address);
    if (local) {
        auto *un = (struct sockaddr_un *)address;
        un->sun_family = AF_UNIX;
        memcpy(un->sun_path + 1, where.data(), where.size());
        return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + where.size());
    }
    auto *in = (struct sockaddr_in *)address;
    in->sin_family = AF_INET;
    in->sin_addr.s_addr = htonl(host);
    in->sin_port = htons((uint16_t)atoi(where.c_str()));
    return sizeof *in;
}

void Driver::new_phase(Endpoint *end)
{
    Random &r = end->random;
    /* Small requests one by one, some at once, or as much as goes. */
    switch (r.below(4)) {
    case 0:
    case 1:
        end->window = r.size(2000);
        break;
    case 2:
        end->window = r.size(20000);
        break;
    default:
        end->window = r.size(1 << 20);
    }
    end->phase_left = r.size(20) * end->window;
    if (r.chance(4))
        end->paused_until = now_ms() + r.below(4);
}

void Driver::start_one()
{
    uint64_t id = made++;
    auto connection = std::make_unique<Connection>();
    uint64_t most = bytes / connections * 2;
    if (most < (1 << 20))
        most = 1 << 20;
    for (int i = 0; i < 2; i++) {
        Endpoint &end = connection->ends[i];
        end.id = id;
        end.random.state = seed * 1000003 + id * 7919 + (uint64_t)i * 31;
        end.text = mixed(seed + id * 2 + (uint64_t)i);
        end.total = 8 + (random.chance(2) ? random.size(most) : 1 + random.below(most));
        end.other = proxy ? &connection->ends[1 - i] : &end;
        if (random.chance(proxy ? 6 : 3)) {
            end.kill_at = 8 + random.below(end.total);
            if (i == 0 || proxy)
                end.killed = false;
        }
        new_phase(&end);
    }
    Endpoint &a = connection->ends[0];
    a.fd = socket(local ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (a.fd < 0)
        fail("socket");
    struct sockaddr_storage address;
    int on = 1, small = (int)random.size(65536) + (local ? 2000 : 20000); /* below, TCP waits for its timers */
    if (!local) {
        setsockopt(a.fd, IPPROTO_IP, 24 /* IP_BIND_ADDRESS_NO_PORT */, &on, sizeof on);
        socklen_t length = address_of("0", &address, 0x7f010001u + (uint32_t)(id % 60000));
        if (bind(a.fd, (struct sockaddr *)&address, length) < 0)
            fail("bind");
        setsockopt(a.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    }
    if (random.chance(2))
        setsockopt(a.fd, SOL_SOCKET, random.chance(2) ? SO_RCVBUF : SO_SNDBUF, &small, sizeof small);
    socklen_t length = address_of(local ? name : port, &address, 0x7f000001u);
    if (connect(a.fd, (struct sockaddr *)&address, length) < 0)
        fail(strerror(errno));
    fcntl(a.fd, F_SETFL, O_RDWR | O_NONBLOCK);
    a.readable = a.writable = true;
    planned += proxy ? a.total + connection->ends[1].total : a.total;
    alive++;
    Endpoint *end = &a;
    all[id] = std::move(connection);
    watch(end->fd, id, 0);
    queue(end);
}

/* The first eight bytes of a client's text to its upstream are its number. */
void Driver::accept_upstream()
{
    for (;;) {
        int fd = accept4(upstream, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        struct epoll_event event = {};
        event.events = EPOLLIN;
        event.data.u64 = greeting_key | (uint64_t)fd;
        if (epoll_ctl(set, EPOLL_CTL_ADD, fd, &event) < 0)
            fail("epoll_ctl");
    }
}

void Driver::greet(int fd)
{
    uint64_t id;
    unsigned char bytes[8];
    long got = recv(fd, bytes, 8, MSG_PEEK);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0) { /* killed before it said who it is */
        close(fd);
        return;
    }
    if (got < 8)
        return;
    if (recv(fd, &id, 8, 0) != 8 || id >= made || !all.count(id)) {
        if (id >= made)
            fail("an upstream connection begins with other bytes than its client's");
        close(fd);
        return;
    }
    Connection *connection = all.at(id).get();
    Endpoint *end = &connection->ends[1];
    epoll_ctl(set, EPOLL_CTL_DEL, fd, nullptr);
    if (end->over) { /* the client has gone meanwhile */
        close(fd);
        return;
    }
    if (connection->upstream_seen)
        fail("two upstream connections of one client");
    connection->upstream_seen = true;
    end->fd = fd;
    end->received = 8;
    end->readable = end->writable = true;
    watch(fd, id, 1);
    queue(end);
}

void Driver::kill_end(Endpoint *end)
{
    struct linger at_once = {1, 0};
    if (!end->random.chance(3))
        setsockopt(end->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    end->killed = true;
    killed++;
    over(end);
}

bool Driver::read_some(Endpoint *end)
{
    static unsigned char got[1 << 17], wanted[1 << 17];
    size_t size = (size_t)end->random.size(sizeof got);
    long count = recv(end->fd, got, size, 0);
    if (count < 0 && errno == EAGAIN) {
        end->readable = false;
        return false;
    }
    bool mine_to_break = end->other->killed || end->killed || (proxy && all.at(end->id)->ends[0].killed);
    if (count < 0) {
        if (!mine_to_break)
            wrong(end, strerror(errno));
        over(end);
        return false;
    }
    if (count == 0) {
        if (!mine_to_break && end->received != end->other->total)
            wrong(end, "an end of file too early");
        end->ended = true;
        end->readable = false;
        if (mine_to_break || end->shut)
            over(end);
        return false;
    }
    make_text(end->other->text, end->received, wanted, (size_t)count);
    if (proxy && end == &all.at(end->id)->ends[1] && end->received < 8)
        fail("greeting");
    if (memcmp(got, wanted, (size_t)count) != 0)
        wrong(end, "other bytes than were sent");
    end->received += (uint64_t)count;
    checked += (uint64_t)count;
    if (end->received > end->other->sent)
        wrong(end, "more bytes than were sent");
    return true;
}

bool Driver::write_some(Endpoint *end)
{
    static unsigned char text[1 << 17];
    if (end->sent == end->total)
        return false;
    uint64_t seen = end->received < end->other->total ? end->received : UINT64_MAX / 2;
    uint64_t room = seen + end->window > end->sent ? seen + end->window - end->sent : 0;
    uint64_t size = end->random.size(sizeof text);
    if (size > room)
        size = room;
    if (size > end->total - end->sent)
        size = end->total - end->sent;
    if (end->sent < 8)
        size = 8 - end->sent; /* who it is */
    if (size == 0)
        return false;
    make_text(end->text, end->sent, text, size);
    bool greets = proxy && end == &all.at(end->id)->ends[0] && end->sent < 8;
    if (greets)
        memcpy(text, (const char *)&end->id + end->sent, size);
    long count = send(end->fd, text, size, MSG_NOSIGNAL);
    if (count < 0 && errno == EAGAIN) {
        end->writable = false;
        return false;
    }
    if (count < 0) {
        if (!end->other->killed)
            wrong(end, strerror(errno));
        end->sent = end->total; /* what can still be read is read to its end */
        end->shut = true;
        return end->readable;
    }
    end->sent += (uint64_t)count;
    end->phase_left -= (uint64_t)count < end->phase_left ? (uint64_t)count : end->phase_left;
    if (end->phase_left == 0)
        new_phase(end);
    if (end->sent >= end->kill_at) {
        kill_end(end);
        return false;
    }
    if (end->sent == end->total) {
        end->shut = true;
        shutdown(end->fd, SHUT_WR);
        if (end->ended)
            over(end);
    }
    return true;
}

void Driver::step(Endpoint *end)
{
    bool more = false;
    for (int turn = 0; turn < 4 && !end->over; turn++) {
        if (end->paused_until) {
            uint64_t now = now_ms();
            if (now < end->paused_until) {
                later.push({end->paused_until, end->id, end == &all.at(end->id)->ends[1]});
                return;
            }
            end->paused_until = 0;
        }
        more = false;
        if (end->readable && !end->ended)
            more = read_some(end);
        if (!end->over && end->writable)
            more |= write_some(end);
        if (!more)
            break;
    }
    if (more)
        queue(end);
}

void Driver::run()
{
    const uint64_t stall_ms = getenv("RINGPOLL_TEST_STALL_MS") ? strtoull(getenv("RINGPOLL_TEST_STALL_MS"), nullptr, 0) : 60000;
    uint64_t last_progress = now_ms(), last_checked = 0, last_finished = 0;
    signal(SIGPIPE, SIG_IGN);
    random.state = seed * 77;
    while (planned < bytes || alive > 0) {
        while (alive < connections && planned < bytes)
            start_one();
        struct epoll_event events[256];
        int timeout = !ready.empty() ? 0 : later.empty() ? 1000 : 1;
        int count = epoll_wait(set, events, 256, timeout);
        for (int i = 0; i < count; i++) {
            uint64_t key = events[i].data.u64;
            if (key == upstream_key) {
                accept_upstream();
                continue;
            }
            if (key & greeting_key) {
                greet((int)(key & ~greeting_key));
                continue;
            }
            auto found = all.find(key >> 1);
            if (found == all.end())
                continue;
            Endpoint *end = &found->second->ends[key & 1];
            if (events[i].events & ~(uint32_t)EPOLLOUT)
                end->readable = true;
            if (events[i].events & (EPOLLOUT | EPOLLERR | EPOLLHUP))
                end->writable = true;
            if (!end->paused_until)
                queue(end);
        }
        uint64_t now = now_ms();
        while (!later.empty() && later.top().at <= now) {
            auto found = all.find(later.top().id);
            if (found != all.end())
                queue(&found->second->ends[later.top().end]);
            later.pop();
        }
        std::vector<uint64_t> touched;
        for (size_t todo = ready.size(); todo > 0; todo--) {
            Endpoint *end = ready.front();
            ready.pop_front();
            end->queued = false;
            touched.push_back(end->id);
            if (!end->over)
                step(end);
            /* It may go on once more has come here. */
            if (!end->over && end->other != end && !end->other->over && end->other->fd >= 0 && end->other->killed)
                queue(end->other);
        }
        for (uint64_t id : touched) {
            auto found = all.find(id);
            if (found != all.end() && is_done(*found->second) && !found->second->ends[0].queued &&
                !found->second->ends[1].queued)
                all.erase(found);
        }
        if (checked != last_checked || finished != last_finished) {
            last_checked = checked;
            last_finished = finished;
            last_progress = now;
        } else if (now - last_progress > stall_ms) {
            unsigned told = 0;
            for (auto &entry : all)
                for (Endpoint &end : entry.second->ends)
                    if (!end.over && end.fd >= 0 && told++ < 10)
                        fprintf(stderr, "  connection %llu: sent %llu of %llu, received %llu of %llu (%llu sent)%s%s%s%s\n",
                                (unsigned long long)end.id, (unsigned long long)end.sent, (unsigned long long)end.total,
                                (unsigned long long)end.received, (unsigned long long)end.other->total,
                                (unsigned long long)end.other->sent, end.shut ? ", shut" : "",
                                end.ended ? ", ended" : "", end.readable ? ", readable" : "",
                                end.writable ? ", writable" : "");
            fprintf(stderr, "seed %llu\n", (unsigned long long)seed);
            if (getenv("RINGPOLL_TEST_HANG"))
                pause();
            fail("nothing has moved for a minute");
        }
        int status;
        if (waitpid(child, &status, WNOHANG) == child)
            fail("the program has ended");
    }
}

/* Starts it, and reads where it listens. */
int Driver::start_program(const char *path, char **argv)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) < 0)
        fail("pipe2");
    child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(fds[1], 1);
        const char *preload = getenv("RINGPOLL_TEST_PRELOAD");
        if (preload)
            setenv("LD_PRELOAD", preload, 1);
        const char *args[] = {path, argv[0], argv[1], argv[2], name.c_str(),
                              local ? upstream_name.c_str() : upstream_port.c_str(), nullptr};
        execv(path, (char **)args);
        perror(path);
        _exit(127);
    }
    close(fds[1]);
    FILE *out = fdopen(fds[0], "r");
    char line[64] = "";
    if (!out || !fgets(line, sizeof line, out))
        fail("the program did not start");
    fclose(out);
    line[strcspn(line, "\n")] = 0;
    port = line;
    return 0;
}

} // namespace

int main(int argc, char **argv)
{
    static Driver driver;
    if (argc < 5) {
        fprintf(stderr, "usage: driver PROGRAM echo|proxy level|edge tcp|unix [--bytes N] [--connections N] [--seed N]\n");
        return 2;
    }
    driver.proxy = strcmp(argv[2], "proxy") == 0;
    driver.edge = strcmp(argv[3], "edge") == 0;
    driver.local = strcmp(argv[4], "unix") == 0;
    for (int i = 5; i + 1 < argc; i += 2) {
        std::string option = argv[i];
        uint64_t value = strtoull(argv[i + 1], nullptr, 0);
        if (option == "--bytes")
            driver.bytes = value;
        else if (option == "--connections")
            driver.connections = (unsigned)value;
        else if (option == "--seed")
            driver.seed = value;
        else
            return 2;
    }
    driver.name = "ringpoll-integrity-" + std::to_string(getpid());
    driver.upstream_name = driver.name + "-upstream";
    driver.set = epoll_create1(EPOLL_CLOEXEC);
    if (driver.proxy) {
        struct sockaddr_storage address;
        socklen_t length = driver.address_of(driver.local ? driver.upstream_name : "0", &address, INADDR_ANY);
        driver.upstream = socket(driver.local ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (bind(driver.upstream, (struct sockaddr *)&address, length) < 0 || listen(driver.upstream, 4096) < 0)
            fail("listen");
        length = sizeof address;
        getsockname(driver.upstream, (struct sockaddr *)&address, &length);
        driver.upstream_port = std::to_string(ntohs(((struct sockaddr_in *)&address)->sin_port));
        struct epoll_event event = {};
        event.events = EPOLLIN;
        event.data.u64 = upstream_key;
        epoll_ctl(driver.set, EPOLL_CTL_ADD, driver.upstream, &event);
    }
    driver.start_program(argv[1], argv + 2);
    driver.run();
    kill(driver.child, SIGTERM);
    int status = 0;
    if (waitpid(driver.child, &status, 0) != driver.child || status != 0) {
        fprintf(stderr, "FAIL: the program ended with status %#x\n", (unsigned)status);
        return 1;
    }
    printf("%s %s %s: %llu bytes checked, %llu connections (%u at a time), %llu killed, seed %llu\n", argv[2], argv[3],
           argv[4], (unsigned long long)driver.checked, (unsigned long long)driver.made, driver.connections,
           (unsigned long long)driver.killed, (unsigned long long)driver.seed);
    return 0;
}
