/* SPDX-License-Identifier: MIT
 *
 * The random driver: the same script of operations in two worlds
 * (support/differential.h), one on the kernel's epoll and one on ringpoll, and
 * every answer compared.
 *
 * What makes the answers comparable:
 *  - After each operation the world waits until the kernel has delivered its
 *    effect to the other end (settle_…): data by the receiver's count, FIN, RST
 *    and connections by the state of the sockets. TCP also acknowledges, late
 *    and with a wake-up, what was sent by shutdown: that is hurried.
 *  - The order of events is free, so a wait has room for all, or is repeated
 *    with little room until everything has had its turn; sets are compared.
 *  - Of docs/design.md's known differences two can be met here, by operations of
 *    another thread than a ring's: an edge that was reported may be reported again,
 *    once per such an operation, or where the library receives (explained() sees to
 *    that, and lets nothing be missing); and a socket of AF_UNIX with unread bytes ends instead of resetting
 *    its peer, so such a close is preceded by a read of them.
 *  - Where the library receives before the program reads, room is told of when it does
 *    (told_of_room()), an edge that says nothing new may be missing (is_no_news()), and a
 *    one-shot of a closed number is told once more (is_unreachable()); no buffer is ever
 *    full there. Where it batches writes, one to a peer that has gone is taken.
 *
 * Environment: RINGPOLL_TEST_ENGINE (what to compare with the kernel),
 * RINGPOLL_DIFFERENTIAL_SEED (by the clock when unset; run.sh sets one),
 * RINGPOLL_DIFFERENTIAL_OPS (50,000 when unset), RINGPOLL_DIFFERENTIAL_RUN (the name of
 * this run, told when it fails),
 * RINGPOLL_DIFFERENTIAL_SCRIPT (a file with a script, as printed: replayed, and
 * nothing else), RINGPOLL_TEST_PRELOAD (the shim, for the engine "shim"),
 * RINGPOLL_DIFFERENTIAL_WITHOUT ("nesting,threads,dup,VERB…": to look beyond a
 * known difference), RINGPOLL_DIFFERENTIAL_RECEIVES (set where the shim receives
 * before the program reads: then the second difference can be met by any close).
 */
#include <errno.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <condition_variable>
#include <map>
#include <random>
#include <set>
#include <sstream>
#include <thread>

#include "support/differential.h"
#include "support/engine.h"

using namespace support;

namespace {

constexpr int slots = 24;
constexpr size_t tcp_unread_max = 32768; /* stays below any window: never blocks, never shrinks */

/* ---------------------------------------------------------------- event words */

const std::pair<const char *, uint32_t> event_words[] = {
    {"in", EPOLLIN},         {"out", EPOLLOUT},     {"pri", EPOLLPRI},
    {"err", EPOLLERR},       {"hup", EPOLLHUP},     {"rdhup", EPOLLRDHUP},
    {"rdnorm", EPOLLRDNORM}, {"wrnorm", EPOLLWRNORM}, {"wrband", EPOLLWRBAND},
    {"rdband", EPOLLRDBAND}, {"et", EPOLLET},       {"once", EPOLLONESHOT},
    {"exclusive", EPOLLEXCLUSIVE}, {"wakeup", EPOLLWAKEUP},
};

std::string event_text(uint32_t events)
{
    std::string text;
    for (auto &word : event_words)
        if (events & word.second)
            text += (text.empty() ? "" : "|") + std::string(word.first);
    return text.empty() ? "0" : text;
}

uint32_t event_bits(const std::string &text)
{
    uint32_t bits = 0;
    std::stringstream words(text);
    for (std::string one; std::getline(words, one, '|');)
        for (auto &word : event_words)
            if (one == word.first)
                bits |= word.second;
    return bits;
}

std::string result_text(long result)
{
    if (result >= 0)
        return std::to_string(result);
    const char *name = strerrorname_np((int)-result);
    return name != nullptr ? name : std::to_string(result);
}

/* ------------------------------------------------------------------- a world */

enum class What { set, tcp, unix_stream, pipe_reader, pipe_writer, udp, datagram, eventfd, timer, listener, fresh };

/* An open file of the world, whatever fds name it. */
struct File {
    What what;
    int refs = 0;
    File *peer = nullptr;      /* NULL for what has none; it may be closed (refs 0) */
    size_t received = 0;       /* TCP: bytes that the peer has sent here, urgent ones too */
    size_t cost = 0;           /* AF_UNIX: what was sent here since it was empty may take of the buffer */
    size_t unread = 0;         /* TCP: of them, not yet read (an upper bound). UDP: datagrams */
    bool fin_sent = false, reset = false, accepted = true;
    std::vector<File *> pending; /* listener: connections that nobody accepted yet */
    struct sockaddr_in address;  /* listener */
};

/* Runs one function at a time in a thread of its own, for operations that are
 * marked to come from another thread. */
class OtherThread {
public:
    OtherThread() : thread_([this] { loop(); }) {}
    ~OtherThread()
    {
        {
            std::lock_guard<std::mutex> guard(lock_);
            over_ = true;
        }
        changed_.notify_all();
        thread_.join();
    }
    void run(const std::function<void()> &job)
    {
        std::unique_lock<std::mutex> guard(lock_);
        job_ = &job;
        changed_.notify_all();
        changed_.wait(guard, [this] { return job_ == nullptr; });
    }

private:
    void loop()
    {
        std::unique_lock<std::mutex> guard(lock_);
        for (;;) {
            changed_.wait(guard, [this] { return job_ != nullptr || over_; });
            if (job_ == nullptr)
                return;
            (*job_)();
            job_ = nullptr;
            changed_.notify_all();
        }
    }
    std::mutex lock_;
    std::condition_variable changed_;
    const std::function<void()> *job_ = nullptr;
    bool over_ = false;
    std::thread thread_;
};

class World : public Player {
public:
    explicit World(Engine &engine) : e(engine)
    {
        for (auto &slot : slots_)
            slot = {-1, nullptr};
    }

    std::string play(const std::string &line) override
    {
        std::stringstream words(line);
        std::string verb;
        words >> verb;
        bool elsewhere = !verb.empty() && verb[0] == '@';
        if (elsewhere)
            verb.erase(0, 1);
        std::vector<std::string> arguments;
        for (std::string word; words >> word;)
            arguments.push_back(word);
        arguments.resize(5);
        std::string answer;
        std::function<void()> job = [&] { answer = operation(verb, arguments); };
        elsewhere_ = elsewhere;
        strange_ |= elsewhere && (verb == "wait" || verb == "rounds");
        if (!elsewhere) {
            job();
        } else {
            if (other_ == nullptr)
                other_ = std::make_unique<OtherThread>();
            other_->run(job);
        }
        return answer;
    }

    /* Closes everything; the sockets by reset, so that no port stays occupied. */
    void end() override
    {
        struct linger linger = {1, 0};
        for (auto &slot : slots_)
            if (slot.fd >= 0) {
                if (slot.file->what == What::tcp)
                    setsockopt(slot.fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
                e.close(slot.fd);
                slot.fd = -1;
            }
        other_.reset();
        /* A set that another thread closed ends as its owner comes by. */
        int last = e.create(EPOLL_CLOEXEC);
        if (last >= 0)
            e.close(last);
    }

private:
    struct Slot {
        int fd;
        File *file;
    };

    Engine &e;
    std::array<Slot, slots> slots_;
    std::vector<std::unique_ptr<File>> files_;
    std::unique_ptr<OtherThread> other_;
    bool elsewhere_ = false; /* this operation is another thread's */
    bool strange_ = false;   /* a ring may be another thread's: then all others' are */
    bool receives_ = getenv("RINGPOLL_DIFFERENTIAL_RECEIVES") != nullptr;

    File *new_file(What what)
    {
        files_.push_back(std::make_unique<File>());
        files_.back()->what = what;
        return files_.back().get();
    }

    Slot *slot(const std::string &word)
    {
        int number = atoi(word.c_str());
        return &slots_[(size_t)(number < 0 || number >= slots ? 0 : number)];
    }

    void put(Slot *into, int fd, File *file)
    {
        into->fd = fd;
        into->file = file;
        file->refs++;
    }

    int fd_of(const File *file)
    {
        for (auto &each : slots_)
            if (each.fd >= 0 && each.file == file)
                return each.fd;
        return -1;
    }

    /* ------------------------------------------------------------- settling */

    /* Until `done`, a tenth of a second at most: what does not come by then is
     * compared as it is. */
    template <typename Done> static void settle_until(Done done)
    {
        int64_t deadline = now_ns() + 100000000;
        while (!done() && now_ns() < deadline)
            sched_yield();
    }

    static bool tcp_info(int fd, struct tcp_info *info, uint64_t *ret_received)
    {
        /* tcpi_bytes_received comes after the fields that glibc knows. */
        union {
            struct tcp_info info;
            char bytes[512];
        } all = {};
        socklen_t length = sizeof all;
        if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &all, &length) != 0)
            return false;
        *info = all.info;
        memcpy(ret_received, all.bytes + 128, sizeof *ret_received);
        return true;
    }

    static int tcp_state(int fd)
    {
        struct tcp_info info;
        uint64_t received;
        return tcp_info(fd, &info, &received) ? info.tcpi_state : -1;
    }

    void settle_data(File *to)
    {
        int fd = fd_of(to);
        if (fd < 0)
            return;
        settle_until([&] {
            struct tcp_info info;
            uint64_t received = 0;
            return !tcp_info(fd, &info, &received) || received >= to->received || info.tcpi_state == TCP_CLOSE;
        });
    }

    static void settle_poll(int fd, short bits)
    {
        if (fd >= 0)
            settle_until([&] { return (poll_now(fd) & bits) == bits; });
    }

    /* A FIN or RST of `from` has just left for its peer. */
    void settle_end(File *from)
    {
        File *to = from->peer;
        int to_fd = to != nullptr && to->accepted ? fd_of(to) : -1, from_fd = fd_of(from);
        if (to_fd >= 0) {
            settle_poll(to_fd, POLLRDHUP);
            int on = 1;
            setsockopt(to_fd, IPPROTO_TCP, TCP_QUICKACK, &on, sizeof on);
        }
        bool both = from->fin_sent && to != nullptr && (to->fin_sent || to->refs == 0);
        if (from_fd >= 0 && (to_fd >= 0 || both))
            settle_until([&] {
                int state = tcp_state(from_fd);
                return state < 0 || state == TCP_CLOSE || (!both && state == TCP_FIN_WAIT2);
            });
        if (both && to_fd >= 0)
            settle_until([&] { return tcp_state(to_fd) == TCP_CLOSE || tcp_state(to_fd) < 0; });
    }

    void dropped(File *file)
    {
        if (--file->refs > 0)
            return;
        if (file->what == What::tcp) {
            file->fin_sent = true;
            settle_end(file);
        } else if (file->what == What::listener) {
            for (File *client : file->pending)
                settle_poll(fd_of(client), POLLHUP);
        }
    }

    /* ----------------------------------------------------------- operations */

    using Arguments = std::vector<std::string>;

    std::string make_pair(const std::string &verb, const Arguments &a)
    {
        Slot *first = slot(a[0]), *second = slot(a[1]);
        if (first->fd >= 0 || second->fd >= 0 || first == second)
            return "taken";
        int fds[2] = {-1, -1}, result = 0;
        What one = What::unix_stream, two = What::unix_stream;
        if (verb == "unix") {
            result = e.socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, fds);
        } else if (verb == "datagram") {
            one = two = What::datagram;
            result = e.socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, fds);
        } else if (verb == "pipe") {
            one = What::pipe_reader;
            two = What::pipe_writer;
            result = e.pipe(fds, O_NONBLOCK | O_CLOEXEC);
        } else {
            one = two = verb == "udp" ? What::udp : What::tcp;
            result = verb == "udp" ? make_udp(fds) : make_tcp(fds);
        }
        if (result != 0)
            return result_text(result);
        File *left = new_file(one), *right = new_file(two);
        left->peer = right;
        right->peer = left;
        put(first, fds[0], left);
        put(second, fds[1], right);
        return "0";
    }

    /* Somewhere in 127/8, so that ports never run out. */
    static struct sockaddr_in somewhere()
    {
        static uint32_t count = 0;
        struct sockaddr_in address = {};
        address.sin_family = AF_INET;
        uint32_t host = (uint32_t)getpid() * 4096 + count++;
        address.sin_addr.s_addr = htonl(0x7f000002u + host % 0xfffff0u);
        return address;
    }

    int make_listener(struct sockaddr_in *ret_address)
    {
        int fd = e.socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC);
        struct sockaddr_in address = somewhere();
        if (fd < 0)
            return fd;
        socklen_t length = sizeof address;
        if (bind(fd, (struct sockaddr *)&address, length) != 0 || e.listen(fd, 64) != 0 ||
            getsockname(fd, (struct sockaddr *)&address, &length) != 0) {
            e.close(fd);
            return -errno;
        }
        *ret_address = address;
        return fd;
    }

    int make_connection(const struct sockaddr_in &address)
    {
        int fd = e.socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC), on = 1;
        if (fd < 0)
            return fd;
        int result = e.connect(fd, (const struct sockaddr *)&address, sizeof address);
        if (result != 0 && result != -EINPROGRESS) {
            e.close(fd);
            return result;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        settle_poll(fd, POLLOUT);
        return fd;
    }

    int make_tcp(int fds[2])
    {
        struct sockaddr_in address;
        int listening = make_listener(&address), on = 1;
        if (listening < 0)
            return listening;
        fds[0] = make_connection(address);
        settle_poll(listening, POLLIN);
        fds[1] = e.accept(listening);
        e.close(listening);
        if (fds[0] < 0 || fds[1] < 0)
            return -EIO;
        setsockopt(fds[1], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        return 0;
    }

    int make_udp(int fds[2])
    {
        struct sockaddr_in address[2];
        for (int i = 0; i < 2; i++) {
            fds[i] = e.socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC);
            address[i] = somewhere();
            socklen_t length = sizeof address[i];
            if (fds[i] < 0 || bind(fds[i], (struct sockaddr *)&address[i], length) != 0 ||
                getsockname(fds[i], (struct sockaddr *)&address[i], &length) != 0)
                return -errno;
        }
        for (int i = 0; i < 2; i++)
            e.connect(fds[i], (struct sockaddr *)&address[1 - i], sizeof address[0]);
        return 0;
    }

    std::string make_one(const std::string &verb, const Arguments &a)
    {
        Slot *into = slot(a[0]);
        if (into->fd >= 0)
            return "taken";
        int fd;
        What what;
        struct sockaddr_in address = {};
        unsigned initial = (unsigned)atoi(a[1].c_str());
        if (verb == "set") {
            what = What::set;
            fd = e.create(EPOLL_CLOEXEC);
        } else if (verb == "eventfd" || verb == "semaphore") {
            what = What::eventfd;
            fd = e.eventfd(initial, EFD_NONBLOCK | EFD_CLOEXEC | (verb == "semaphore" ? EFD_SEMAPHORE : 0));
        } else if (verb == "timer") {
            what = What::timer;
            fd = e.timerfd(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
        } else if (verb == "fresh") {
            what = What::fresh;
            fd = e.socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC);
        } else {
            what = What::listener;
            fd = make_listener(&address);
        }
        if (fd < 0)
            return result_text(fd);
        File *file = new_file(what);
        file->address = address;
        put(into, fd, file);
        return "0";
    }

    std::string connect(const Arguments &a)
    {
        Slot *into = slot(a[0]), *to = slot(a[1]);
        if (into->fd >= 0)
            return "taken";
        if (to->fd < 0 || to->file->what != What::listener || to->file->pending.size() >= 16)
            return "none";
        int fd = make_connection(to->file->address);
        if (fd < 0)
            return result_text(fd);
        File *client = new_file(What::tcp), *server = new_file(What::tcp);
        client->peer = server;
        server->peer = client;
        server->accepted = false;
        to->file->pending.push_back(client);
        put(into, fd, client);
        settle_until([&] {
            struct tcp_info info;
            uint64_t received;
            return !tcp_info(to->fd, &info, &received) || info.tcpi_unacked == to->file->pending.size();
        });
        return "0";
    }

    std::string accept(const Arguments &a)
    {
        Slot *into = slot(a[0]), *from = slot(a[1]);
        if (into->fd >= 0)
            return "taken";
        if (from->fd < 0 || from->file->what != What::listener)
            return "none";
        int fd = e.accept(from->fd), on = 1;
        if (fd < 0)
            return result_text(fd);
        if (from->file->pending.empty()) {
            e.close(fd);
            return "too many";
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        File *client = from->file->pending.front(), *server = client->peer;
        from->file->pending.erase(from->file->pending.begin());
        server->accepted = true;
        put(into, fd, server);
        if (client->refs == 0)
            settle_poll(fd, POLLRDHUP);
        return "0";
    }

    std::string duplicate(const std::string &verb, const Arguments &a)
    {
        Slot *from = slot(a[0]), *to = slot(a[1]);
        if (verb == "dup") {
            if (to->fd >= 0)
                return "taken";
            int fd = from->fd < 0 ? -EBADF : e.dup(from->fd);
            if (fd < 0)
                return result_text(fd);
            put(to, fd, from->file);
            return "0";
        }
        if (from->fd < 0 || to->fd < 0)
            return "none";
        if ((elsewhere_ || strange_ || receives_) && from->file != to->file)
            empty(to);
        int result = e.dup2(from->fd, to->fd);
        if (result != to->fd)
            return result_text(result);
        File *before = to->file;
        to->file = from->file;
        to->file->refs++;
        dropped(before);
        return "0";
    }

    void empty(Slot *which)
    {
        static thread_local char bytes[70000];
        flush();
        if (which->file->what == What::unix_stream && which->file->refs == 1)
            while (e.recv(which->fd, bytes, sizeof bytes, MSG_DONTWAIT) > 0)
                ;
    }

    /* What this thread wrote may wait for its turn to end, and be what it reads. */
    void flush()
    {
        if (receives_)
            usleep(0);
    }

    std::string close(const std::string &verb, const Arguments &a)
    {
        Slot *which = slot(a[0]);
        if (which->fd < 0)
            return "none";
        File *file = which->file;
        struct linger linger = {1, 0};
        if (elsewhere_ || strange_ || receives_)
            empty(which);
        if (verb == "reset" && (file->what == What::tcp || file->what == What::fresh))
            setsockopt(which->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
        int fd = which->fd;
        which->fd = -1;
        int result = e.close(fd);
        dropped(file);
        return result_text(result);
    }

    std::string ctl(const std::string &verb, const Arguments &a)
    {
        Slot *set = slot(a[0]), *fd = slot(a[1]);
        /* An empty slot is a number that is never open. */
        int set_fd = set->fd >= 0 ? set->fd : 800, watched = fd->fd >= 0 ? fd->fd : 801;
        struct epoll_event event = {};
        event.events = event_bits(a[2]);
        event.data.u64 = strtoull(a[3].c_str(), nullptr, 10);
        int op = verb == "add" ? EPOLL_CTL_ADD : verb == "mod" ? EPOLL_CTL_MOD : EPOLL_CTL_DEL;
        return result_text(e.ctl(set_fd, op, watched, verb == "del" ? nullptr : &event));
    }

    std::string wait(const std::string &verb, const Arguments &a)
    {
        Slot *set = slot(a[0]);
        int fd = set->fd >= 0 ? set->fd : 800, room = atoi(a[1].c_str());
        struct epoll_event events[256];
        if (room < 1 || room > 256)
            room = 256;
        std::set<std::pair<uint64_t, uint32_t>> seen;
        bool repeats = false;
        /* With little room: until nothing is left, or until each of at most 64
         * registrations must have had two turns. */
        int turns = verb == "rounds" ? 128 / room + 2 : 1;
        for (int turn = 0; turn < turns; turn++) {
            int count = e.wait_ms(fd, events, room, 0);
            if (count < 0)
                return result_text(count);
            if (count == 0)
                break;
            std::set<uint64_t> once;
            for (int i = 0; i < count; i++) {
                uint64_t data = events[i].data.u64; /* the structure is packed: no references */
                seen.insert({data, (uint32_t)events[i].events});
                repeats = repeats || !once.insert(data).second;
            }
        }
        std::string text;
        for (auto &one : seen)
            text += std::to_string(one.first) + ":" + event_text(one.second) + " ";
        return text + (repeats ? "(twice in one wait)" : "") + ".";
    }

    /* What a read has taken, for the count that keeps TCP's window open. */
    static void took(File *file, ssize_t count)
    {
        if (count > 0)
            file->unread -= std::min(file->unread, file->what == What::udp ? 1 : (size_t)count);
    }

    std::string take(const std::string &verb, const Arguments &a)
    {
        Slot *from = slot(a[0]);
        if (from->fd < 0)
            return "none";
        static thread_local char bytes[70000];
        size_t length = std::min((size_t)strtoul(a[1].c_str(), nullptr, 10), sizeof bytes);
        File *file = from->file;
        ssize_t count = 0;
        flush();
        if (verb == "read") {
            count = e.read(from->fd, bytes, length);
            took(file, count);
        } else if (verb == "rawread") { /* by nobody's leave: no report, no interposed name */
            count = syscall(SYS_read, from->fd, bytes, length);
            count = count < 0 ? -errno : count;
            took(file, count);
        } else if (verb == "recv") {
            count = e.recv(from->fd, bytes, length, MSG_DONTWAIT);
            took(file, count);
        } else if (verb == "peek") {
            count = e.recv(from->fd, bytes, length, MSG_PEEK | MSG_DONTWAIT);
        } else if (verb == "readoob") {
            count = e.recv(from->fd, bytes, 1, MSG_OOB | MSG_DONTWAIT);
        } else { /* drain */
            std::string total;
            ssize_t sum = 0;
            int reads = 0;
            do {
                count = e.read(from->fd, bytes, sizeof bytes);
                took(file, count);
                sum += count > 0 ? count : 0;
            } while (count > 0 && ++reads < 1000);
            return std::to_string(sum) + " then " + result_text(count);
        }
        return result_text(count);
    }

    std::string give(const std::string &verb, const Arguments &a)
    {
        Slot *into = slot(a[0]);
        if (into->fd < 0)
            return "none";
        static const char bytes[70000] = {};
        size_t length = std::min((size_t)strtoul(a[1].c_str(), nullptr, 10), sizeof bytes);
        File *file = into->file, *peer = file->peer;
        if (file->what == What::eventfd) {
            uint64_t by = verb == "fill" ? UINT64_MAX - 1 : length % 5;
            return result_text(e.write(into->fd, &by, sizeof by));
        }
        if (verb == "fill") {
            if (file->what != What::unix_stream && file->what != What::pipe_writer &&
                file->what != What::datagram)
                return "unfit";
            ssize_t count, sum = 0;
            while ((count = e.write(into->fd, bytes, 4096)) > 0)
                sum += count;
            return std::to_string(sum) + " then " + result_text(count);
        }
        if (receives_ && file->what == What::unix_stream && verb != "oob") {
            /* Where the library receives there is room for more: never so much that it counts. */
            if (peer->unread == 0)
                peer->cost = 0;
            if (peer->refs > 0 && peer->cost + length + 1024 > 45000)
                return "full";
            ssize_t count = e.write(into->fd, bytes, length);
            if (count > 0) {
                peer->unread += (size_t)count;
                peer->cost += (size_t)count + 1024;
            }
            return result_text(count);
        }
        if (file->what != What::tcp && file->what != What::udp)
            return verb == "oob" ? "unfit" : result_text(e.write(into->fd, bytes, length));
        if (!peer->accepted || (file->what == What::udp ? peer->unread > 0 : peer->unread + length > tcp_unread_max))
            return "full";
        if (verb == "oob" && file->what != What::tcp)
            return "unfit";
        ssize_t count = e.send(into->fd, bytes, verb == "oob" ? 1 : length, verb == "oob" ? MSG_OOB : 0);
        if (count < 0 || (count == 0 && file->what == What::tcp))
            return result_text(count);
        if (file->what == What::udp) {
            if (peer->refs > 0) {
                peer->unread = 1;
                settle_poll(fd_of(peer), POLLIN);
            } else {
                settle_poll(into->fd, POLLERR);
            }
        } else if (peer->refs > 0) {
            peer->received += (size_t)count;
            peer->unread += (size_t)count;
            settle_data(peer);
            if (verb == "oob")
                settle_poll(fd_of(peer), POLLPRI);
        } else {
            settle_poll(into->fd, POLLHUP);
        }
        return result_text(count);
    }

    std::string shutdown(const Arguments &a)
    {
        Slot *which = slot(a[0]);
        if (which->fd < 0)
            return "none";
        File *file = which->file;
        if ((file->what == What::tcp && !file->peer->accepted) || file->what == What::udp ||
            file->what == What::listener)
            return "unfit";
        int how = a[1] == "rd" ? SHUT_RD : a[1] == "wr" ? SHUT_WR : SHUT_RDWR;
        int result = e.shutdown(which->fd, how);
        if (result == 0 && file->what == What::tcp && how != SHUT_RD && !file->fin_sent) {
            file->fin_sent = true;
            settle_end(file);
        }
        return result_text(result);
    }

    std::string timer(const std::string &verb, const Arguments &a)
    {
        Slot *which = slot(a[0]);
        if (which->fd < 0 || which->file->what != What::timer)
            return "none";
        struct itimerspec when = {{0, 0}, {0, verb == "expire" ? 1 : 0}};
        timerfd_settime(which->fd, 0, &when, nullptr);
        if (verb == "expire")
            settle_poll(which->fd, POLLIN);
        return "0";
    }

    std::string poll_slot(const Arguments &a)
    {
        Slot *which = slot(a[0]);
        if (which->fd < 0)
            return "none";
        if (which->file->what == What::set)
            e.will_be_polled(which->fd);
        return event_text((uint32_t)(unsigned short)poll_now(which->fd));
    }

    std::string operation(const std::string &verb, const Arguments &a)
    {
        if (verb == "tcp" || verb == "unix" || verb == "pipe" || verb == "udp" || verb == "datagram")
            return make_pair(verb, a);
        if (verb == "set" || verb == "eventfd" || verb == "semaphore" || verb == "timer" || verb == "fresh" ||
            verb == "listener")
            return make_one(verb, a);
        if (verb == "connect")
            return connect(a);
        if (verb == "accept")
            return accept(a);
        if (verb == "dup" || verb == "dup2")
            return duplicate(verb, a);
        if (verb == "close" || verb == "reset")
            return close(verb, a);
        if (verb == "add" || verb == "mod" || verb == "del")
            return ctl(verb, a);
        if (verb == "wait" || verb == "rounds")
            return wait(verb, a);
        if (verb == "read" || verb == "rawread" || verb == "recv" || verb == "peek" || verb == "readoob" ||
            verb == "drain")
            return take(verb, a);
        if (verb == "write" || verb == "oob" || verb == "fill")
            return give(verb, a);
        if (verb == "shutdown")
            return shutdown(a);
        if (verb == "expire" || verb == "disarm")
            return timer(verb, a);
        if (verb == "poll")
            return poll_slot(a);
        return "unknown operation";
    }
};

/* --------------------------------------------------------------- the generator */

class Generator {
public:
    explicit Generator(uint64_t seed) : random_(seed) {}

    /* One episode: its own mood (how many fds, which kinds, how often threads,
     * nesting, small reads), so that rare combinations meet often enough. */
    Script episode()
    {
        Script script;
        used_ = 6 + below(slots - 6);
        kinds_.fill(Kind_::empty);
        copied_.fill(false);
        nesting_ = one_in(8);
        sharing_ = one_in(4);
        threads_ = one_in(4) ? 3 + below(20) : 0;
        if (without_.find("threads") != std::string::npos)
            threads_ = 0;
        foreign_waits_ = threads_ != 0 && one_in(4);
        edge_bias_ = below(4);
        odd_flags_ = one_in(3);
        data_ = 1;
        int length = 20 + below(one_in(3) ? 600 : 120);
        script.push_back("set 0");
        kinds_[0] = Kind_::set;
        if (one_in(3)) {
            script.push_back("set 1");
            kinds_[1] = Kind_::set;
        }
        while ((int)script.size() < length)
            script.push_back(operation());
        return script;
    }

private:
    enum class Kind_ { empty, set, stream, tcp, reader, writer, message, counter, timer, listener };

    std::mt19937_64 random_;
    int used_ = 0;
    std::array<Kind_, slots> kinds_;
    std::array<bool, slots> copied_{};
    bool nesting_ = false, sharing_ = false, foreign_waits_ = false, odd_flags_ = false;
    int threads_ = 0, edge_bias_ = 0;
    uint64_t data_ = 1;
    std::string without_ = getenv("RINGPOLL_DIFFERENTIAL_WITHOUT") ? getenv("RINGPOLL_DIFFERENTIAL_WITHOUT") : "";

    int below(int limit) { return (int)(random_() % (uint64_t)limit); }
    bool one_in(int chances) { return below(chances) == 0; }

    int any() { return below(used_); }
    int with(std::initializer_list<Kind_> wanted)
    {
        std::vector<int> found;
        for (int i = 0; i < used_; i++)
            if (std::find(wanted.begin(), wanted.end(), kinds_[(size_t)i]) != wanted.end())
                found.push_back(i);
        return found.empty() ? any() : found[(size_t)below((int)found.size())];
    }
    int empty() { return with({Kind_::empty}); }
    int set() { return one_in(50) ? any() : with({Kind_::set}); }
    int file()
    {
        return one_in(40) ? any()
                          : with({Kind_::stream, Kind_::tcp, Kind_::tcp, Kind_::reader, Kind_::writer,
                                  Kind_::message, Kind_::counter, Kind_::timer, Kind_::listener});
    }

    std::string flags()
    {
        uint32_t bits = 0;
        static const uint32_t usual[] = {EPOLLIN, EPOLLIN, EPOLLIN, EPOLLIN | EPOLLOUT, EPOLLOUT,
                                         EPOLLIN | EPOLLRDHUP, EPOLLIN | EPOLLOUT | EPOLLRDHUP, 0};
        bits = usual[below(8)];
        if (one_in(8))
            bits |= EPOLLPRI;
        if (one_in(10))
            bits |= EPOLLRDHUP;
        if (below(4) < edge_bias_)
            bits |= EPOLLET;
        if (one_in(6))
            bits |= EPOLLONESHOT;
        if (odd_flags_) {
            if (one_in(6))
                bits |= EPOLLEXCLUSIVE;
            if (one_in(8))
                bits |= EPOLLRDNORM;
            if (one_in(8))
                bits |= EPOLLWRNORM | EPOLLWRBAND;
            if (one_in(10))
                bits |= EPOLLWAKEUP;
            if (one_in(10))
                bits |= EPOLLERR | EPOLLHUP;
        }
        return event_text(bits);
    }

    std::string make()
    {
        int first = empty();
        kinds_[(size_t)first] = Kind_::counter; /* so that the next empty() is another */
        auto pair = [&](const char *verb, Kind_ a, Kind_ b) {
            int second = empty();
            kinds_[(size_t)first] = a;
            kinds_[(size_t)second] = b;
            return std::string(verb) + " " + std::to_string(first) + " " + std::to_string(second);
        };
        auto single = [&](const std::string &verb, Kind_ kind, const std::string &rest) {
            kinds_[(size_t)first] = kind;
            return verb + " " + std::to_string(first) + rest;
        };
        switch (below(16)) {
        case 0: case 1: case 2: case 3: return pair("tcp", Kind_::tcp, Kind_::tcp);
        case 4: case 5: case 6: return pair("unix", Kind_::stream, Kind_::stream);
        case 7: case 8: return pair("pipe", Kind_::reader, Kind_::writer);
        case 9: return pair("udp", Kind_::message, Kind_::message);
        case 10: return pair("datagram", Kind_::message, Kind_::message);
        case 11: return single("eventfd", Kind_::counter, " " + std::to_string(below(3)));
        case 12: return single("semaphore", Kind_::counter, " " + std::to_string(below(3)));
        case 13: return single("timer", Kind_::timer, "");
        case 14: return single(one_in(4) ? "fresh" : "listener", Kind_::listener, "");
        default:
            return one_in(3) || nesting_ ? single("set", Kind_::set, "") : single("eventfd", Kind_::counter, " 1");
        }
    }

    std::string amount()
    {
        static const int sizes[] = {1, 1, 2, 7, 64, 100, 1000, 4096, 5000, 20000};
        return std::to_string(sizes[below(10)]);
    }

    /* Something that the run was asked to leave out. */
    bool left_out(const std::string &text) const
    {
        if (without_.empty())
            return false;
        std::stringstream words(text);
        std::string verb;
        int first = 0, second = 0;
        words >> verb >> first >> second;
        auto without = [&](const char *what) { return without_.find(what) != std::string::npos; };
        auto is_set = [&](int number) { return kinds_[(size_t)number % slots] == Kind_::set; };
        if (without("nesting") && (verb == "poll" || (verb == "add" && (is_set(second) || second < 2))))
            return true;
        if (without("dup") && (verb == "dup" || verb == "dup2"))
            return true;
        /* A number is closed, or given to another file, while its own file lives on. */
        if (without("ghosts") && (verb == "close" || verb == "reset" || verb == "dup2") &&
            copied_[(size_t)(verb == "dup2" ? second : first) % slots])
            return true;
        return without(verb.c_str());
    }

    std::string operation()
    {
        std::string text = pick();
        for (int i = 0; i < 100 && left_out(text); i++)
            text = pick();
        note_copies(text);
        bool waits = text.compare(0, 4, "wait") == 0 || text.compare(0, 6, "rounds") == 0;
        if (threads_ != 0 && below(100) < threads_ && (!waits || (foreign_waits_ && one_in(6))))
            text = "@" + text;
        return text;
    }

    /* Numbers that share their file, or did once: the flag goes with the next file. */
    void note_copies(const std::string &text)
    {
        std::stringstream words(text);
        std::string verb;
        int first = 0, second = 0;
        words >> verb >> first >> second;
        if (verb == "dup" || verb == "dup2") {
            copied_[(size_t)first % slots] = copied_[(size_t)second % slots] = true;
        } else if (verb == "close" || verb == "reset") {
            copied_[(size_t)first % slots] = false;
        }
    }

    static std::string s(int number) { return " " + std::to_string(number); }

    std::string duplicate()
    {
        int from = one_in(10) ? any() : file();
        if (one_in(4))
            return "dup2" + s(from) + s(kinds_[(size_t)from] == Kind_::set ? with({Kind_::set}) : file());
        int to = empty();
        kinds_[(size_t)to] = kinds_[(size_t)from];
        return "dup" + s(from) + s(to);
    }

    std::string close()
    {
        int victim = one_in(25) ? with({Kind_::set}) : file();
        bool resets = kinds_[(size_t)victim] == Kind_::tcp && one_in(3);
        kinds_[(size_t)victim] = Kind_::empty;
        return (resets ? "reset" : "close") + s(victim);
    }

    std::string pick()
    {
        /* Files of many numbers: duplicated, closed, duplicated back, and the like. */
        if (sharing_ && one_in(5))
            return one_in(2) ? duplicate() : close();
        int dice = below(100);
        if (dice < 9)
            return make();
        if (dice < 21) {
            int what = nesting_ && one_in(5) ? with({Kind_::set}) : file();
            return "add" + s(set()) + s(what) + " " + flags() + s((int)data_++);
        }
        if (dice < 27)
            return "mod" + s(set()) + s(file()) + " " + flags() + s((int)data_++);
        if (dice < 30)
            return "del" + s(set()) + s(file());
        if (dice < 50)
            return "wait" + s(set()) + " 256";
        if (dice < 53)
            return "rounds" + s(set()) + s(1 + below(5));
        if (dice < 66) {
            int to = with({Kind_::tcp, Kind_::stream, Kind_::writer, Kind_::message, Kind_::counter});
            return "write" + s(to) + " " + amount();
        }
        if (dice < 80) {
            int from = with({Kind_::tcp, Kind_::stream, Kind_::reader, Kind_::message, Kind_::counter, Kind_::timer});
            static const char *const verbs[] = {"read", "read", "read", "drain", "drain", "recv", "rawread", "peek"};
            return verbs[below(8)] + s(from) + " " + (kinds_[(size_t)from] == Kind_::counter ||
                                                              kinds_[(size_t)from] == Kind_::timer
                                                          ? "8"
                                                          : amount());
        }
        if (dice < 82)
            return (one_in(2) ? "oob" : "readoob") + s(with({Kind_::tcp})) + " 1";
        if (dice < 84)
            return "fill" + s(with({Kind_::stream, Kind_::writer, Kind_::counter, Kind_::message}));
        if (dice < 87) {
            static const char *const hows[] = {" wr", " wr", " rd", " rdwr"};
            return "shutdown" + s(with({Kind_::tcp, Kind_::stream})) + hows[below(4)];
        }
        if (dice < 89)
            return (one_in(4) ? "disarm" : "expire") + s(with({Kind_::timer}));
        if (dice < 91) {
            int listening = with({Kind_::listener}), into = empty();
            kinds_[(size_t)into] = Kind_::tcp;
            return (one_in(2) ? "connect" : "accept") + s(into) + s(listening);
        }
        if (dice < 94)
            return duplicate();
        if (nesting_ && dice < 96)
            return "poll" + s(any());
        return close();
    }
};

/* -------------------------------------------------------------- the comparison */

/* Which answers of a script are those of the kernel, or as good: see the file's head. */
class EdgeJudge : public Judge {
public:
    bool explained(const std::string &line, const std::string &kernels, const std::string &ours) override
    {
        std::stringstream words(line);
        std::string verb, set, fd, events, data;
        words >> verb >> set >> fd >> events >> data;
        bool elsewhere = verb[0] == '@';
        verb.erase(0, elsewhere);
        foreign_ |= elsewhere;
        if (verb == "add" || verb == "mod")
            registered_[data] = fd;
        else if (verb == "close" || verb == "reset" || verb == "dup2")
            for (auto &one : registered_)
                if (one.second == (verb == "dup2" ? fd : set))
                    closed_.insert(one.first);
        if (elsewhere)
            for (auto &one : edges_)
                one.second.again++;
        note_held(elsewhere, verb, set, fd, kernels);
        if ((verb == "add" || verb == "mod") && (event_bits(events) & (EPOLLET | EPOLLONESHOT)) == EPOLLET) {
            edges_[data] = {};
            for (auto &one : held_)
                edges_[data].again += one.second;
        }
        if (verb == "set" && kernels == "0")
            sets_.insert(set);
        if ((verb == "add" || verb == "mod") && sets_.count(fd) != 0)
            nested_.insert(data);
        /* A set may say so of one of them. */
        bool of_a_set = std::any_of(edges_.begin(), edges_.end(), [this](const auto &one) {
            bool of_a_socket = one.second.file != 0 && one.second.file != a_set;
            return one.second.reported && (one.second.again > 0 || (receives_ && of_a_socket));
        });
        note_files(verb, set, fd, kernels);
        if ((verb == "add" || verb == "mod") && (event_bits(events) & EPOLLONESHOT) && streams_.count(fd) != 0)
            once_[data] = {fd};
        if (edges_.count(data) != 0 && (verb == "add" || verb == "mod"))
            edges_[data].file = streams_.count(fd) != 0 ? streams_[fd] : sets_.count(fd) != 0 ? a_set : 0;
        if (verb == "poll" && kernels == "0" && ours == "in")
            return of_a_set;
        /* A write that is batched learns of the peer's end by the next call. */
        if (verb == "write" && kernels == "EPIPE" && ours == fd)
            return batches_ && streams_.count(set) != 0;
        if (verb != "wait" && verb != "rounds")
            return kernels == ours;
        std::set<std::string> theirs = parts(kernels), mine = parts(ours);
        bool fine = true;
        for (auto &part : theirs) {
            auto edge = edges_.find(part.substr(0, part.find(':')));
            if (mine.count(part) != 0)
                continue;
            if (edge == edges_.end() ||
                (!told_of_room(&edge->second, part) &&
                 !(is_no_news(edge->second, part) && tells_nothing_of(mine, edge->first))))
                fine = false;
        }
        for (auto &part : mine) {
            auto edge = edges_.find(part.substr(0, part.find(':')));
            if (theirs.count(part) == 0 && !(of_a_set && nested_.count(part.substr(0, part.find(':'))) != 0) &&
                !is_unreachable(part.substr(0, part.find(':'))) &&
                !(foreign_ && closed_.count(part.substr(0, part.find(':'))) != 0) &&
                (edge == edges_.end() || !edge->second.reported || (!receives_ && edge->second.again-- <= 0)))
                fine = false;
            if (edge != edges_.end()) {
                edge->second.told |= event_bits(part.substr(part.find(':') + 1));
                if (theirs.count(part) == 0)
                    edge->second.extra.push_back(part);
                edge->second.reported = true;
            }
        }
        for (auto &part : theirs)
            if (once_.count(part.substr(0, part.find(':'))) != 0)
                once_[part.substr(0, part.find(':'))].reported = true;
        for (auto &part : theirs)
            if (edges_.count(part.substr(0, part.find(':'))) != 0) {
                Edge &edge = edges_[part.substr(0, part.find(':'))];
                edge.room = edge.news = edge.wrote = false;
            }
        return fine;
    }

private:
    /* A ring that another thread owns holds a closed file until that comes by: what was
     * registered under several numbers is reported so long; and its end may tell the peer's
     * edge again, also one that was made meanwhile. */
    bool foreign_ = false;
    std::map<std::string, std::set<std::string>> sets_of_; /* by slot */
    std::map<std::string, int> held_;                      /* closed files, by set */
    void note_held(bool elsewhere, const std::string &verb, const std::string &first, const std::string &second,
                   const std::string &answer)
    {
        if (verb == "wait" || verb == "rounds")
            held_.erase(first);
        if (answer != "0")
            return;
        if (verb == "add")
            sets_of_[second].insert(first);
        else if (verb == "del" && sets_of_.count(second) != 0)
            sets_of_[second].erase(first);
        else if (verb == "close" || verb == "reset" || verb == "dup2") {
            const std::string &closed = verb == "dup2" ? second : first;
            if (elsewhere)
                for (auto &set : sets_of_[closed])
                    held_[set]++;
            sets_of_.erase(closed);
        }
    }
    std::map<std::string, std::string> registered_; /* by data: slot */
    std::set<std::string> closed_;

    static constexpr int a_set = 1 << 30;
    struct Edge {
        bool reported = false;
        int again = 0; /* at most so often */
        std::vector<std::string> extra; /* reports that the kernel did not make */
        int file = 0; /* a connected socket, a_set, or 0: something else */
        bool room = false, news = false; /* since its last report its peer has read, or done something else, */
        uint32_t told = 0;               /* by us, since it became true: another edge of it says nothing new */
        bool wrote = false;              /* or it has itself written, which can bring an end or an error */
    };

    /* An edge of a socket that the kernel made as the program read what the other end had
     * sent: the library had made that room, and told of it, when it received. Nothing is
     * ever full here ("fill" is left out), so that nobody waits for it. */
    bool told_of_room(Edge *edge, const std::string &part)
    {
        /* A set that has such a one tells of it by IN. */
        const uint32_t room = edge->file == a_set ? EPOLLIN | EPOLLRDNORM : EPOLLOUT | EPOLLWRNORM | EPOLLWRBAND;
        uint32_t bits = event_bits(part.substr(part.find(':') + 1));
        if (!receives_ || edge->file == 0 || !(bits & room))
            return false;
        auto same = std::find(edge->extra.begin(), edge->extra.end(), part);
        if (same != edge->extra.end()) {
            edge->extra.erase(same);
            return true;
        }
        if (edge->wrote && (bits & (EPOLLERR | EPOLLHUP | EPOLLRDHUP)))
            return false;
        return edge->room && ((edge->file != a_set && (bits & ~room) == 0) || !edge->news);
    }

    /* The kernel's edge of a wake-up that changed nothing: docs/design.md, "Known differences" 12. */
    bool is_no_news(const Edge &edge, const std::string &part) const
    {
        return receives_ && edge.file > 0 && edge.file != a_set &&
               !(event_bits(part.substr(part.find(':') + 1)) & ~edge.told);
    }
    static bool tells_nothing_of(const std::set<std::string> &parts, const std::string &data)
    {
        auto at = parts.lower_bound(data + ":");
        return at == parts.end() || at->compare(0, data.size() + 1, data + ":") != 0;
    }

    struct Once {
        std::string slot;
        bool reported = false, closed = false;
    };
    std::map<std::string, Once> once_; /* one-shots of connected sockets, by data */

    /* A one-shot that was reported for bytes in the library after its number was closed: it
     * could not be disabled, and is reported once more. */
    bool is_unreachable(const std::string &data)
    {
        auto one = once_.find(data);
        if (!receives_ || one == once_.end() || !one->second.reported || !one->second.closed)
            return false;
        once_.erase(one);
        return true;
    }

    /* Which slots are connected sockets, and what happened to their peers. */
    void note_files(const std::string &verb, const std::string &first, const std::string &second,
                    const std::string &answer)
    {
        auto file = streams_.find(first), touched = streams_.find(verb == "dup2" ? second : first);
        if (verb == "dup2" && (answer != "0" || first == second)) /* nothing was closed */
            touched = streams_.end();
        bool reads = verb == "read" || verb == "rawread" || verb == "recv" || verb == "drain";
        for (auto &one : edges_) {
            one.second.room = one.second.room || (one.second.file == a_set && reads);
            one.second.news = one.second.news || (one.second.file == a_set && !reads && verb != "wait" &&
                                                  verb != "rounds" && verb != "peek" && verb != "poll");
        }
        if (touched != streams_.end() && (reads || verb == "write" || verb == "oob" || verb == "shutdown" ||
                                       verb == "close" || verb == "reset" || verb == "dup2")) {
            bool closes = verb == "close" || verb == "reset" || verb == "dup2";
            bool one_of_several = closes && touched->second >= 0 &&
                                  std::count_if(streams_.begin(), streams_.end(),
                                                [&](const auto &one) { return one.second == touched->second; }) > 1;
            /* Of a pair 2n and 2n + 1; which ones connect and accept have joined is not known. */
            for (auto &one : edges_) {
                bool is_peer = (touched->second ^ 1) == one.second.file || (touched->second < 0 && one.second.file < 0);
                one.second.room = one.second.room || (is_peer && reads);
                bool own = touched->second == one.second.file;
                if (is_peer && verb == "write") { /* behind an end there is nothing new to read */
                    if (!(one.second.told & (EPOLLRDHUP | EPOLLHUP)))
                        one.second.told &= EPOLLOUT | EPOLLWRNORM | EPOLLWRBAND;
                } else if ((is_peer || own) && !reads && verb != "write" && !one_of_several) {
                    /* What follows both ends is an error, and nothing else. */
                    bool quietly = verb == "shutdown" && second == "rd" && is_peer; /* it reads no more, and says so */
                    one.second.told &= quietly ? ~(uint32_t)(EPOLLERR | EPOLLHUP)
                                       : closes && (one.second.told & EPOLLHUP) ? ~(uint32_t)EPOLLERR : 0u;
                }
                one.second.wrote = one.second.wrote || (own && verb == "write");
                one.second.news = one.second.news || (!reads && is_peer && !one_of_several) ||
                                  (!reads && verb != "write" && own);
            }
        }
        for (auto &one : once_)
            one.second.closed |= one.second.slot == (verb == "dup2" ? second : first) && answer == "0" &&
                                 (verb == "close" || verb == "reset" || verb == "dup2");
        if ((verb == "tcp" || verb == "unix") && answer == "0") {
            files_ += 2;
            streams_[first] = files_;
            streams_[second] = files_ + 1;
        } else if ((verb == "connect" || verb == "accept") && answer == "0") {
            streams_[first] = -1;
        } else if ((verb == "close" || verb == "reset") && answer == "0") {
            streams_.erase(first);
        } else if ((verb == "dup" || verb == "dup2") && answer == "0" && first != second) {
            streams_.erase(second);
            if (file != streams_.end())
                streams_[second] = file->second;
        }
    }
    std::map<std::string, int> streams_;
    int files_ = 0;
    bool batches_ = getenv("RINGPOLL_PROFILE") != nullptr && strcmp(getenv("RINGPOLL_PROFILE"), "throughput") == 0;
    std::set<std::string> sets_, nested_; /* slots that were sets; what was registered of them, by data */
    std::map<std::string, Edge> edges_; /* by data */
    bool receives_ = getenv("RINGPOLL_DIFFERENTIAL_RECEIVES") != nullptr;

    static std::set<std::string> parts(const std::string &answer)
    {
        std::stringstream words(answer);
        std::set<std::string> all;
        for (std::string word; words >> word;)
            all.insert(word);
        return all;
    }
};

LastWords last_words;

} // namespace

TEST(Differential, TheSameScriptHasTheSameAnswers)
{
    std::string engine = chosen_engines().at(0);
    Comparison comparison(engine, [] { return std::make_unique<EdgeJudge>(); });
    const char *file = getenv("RINGPOLL_DIFFERENTIAL_SCRIPT");
    if (file != nullptr && *file != 0) {
        Script script = script_from(file);
        ASSERT_FALSE(script.empty()) << file;
        bool differs = comparison.real_difference(script);
        comparison.show(script);
        EXPECT_FALSE(differs);
        return;
    }

    uint64_t seed = number_from("RINGPOLL_DIFFERENTIAL_SEED", (uint64_t)now_ns(CLOCK_REALTIME) / 1000);
    uint64_t wanted = number_from("RINGPOLL_DIFFERENTIAL_OPS", 50000), played = 0, episodes = 0;
    printf("kernel against %s, seed %llu, %llu operations\n", engine.c_str(), (unsigned long long)seed,
           (unsigned long long)wanted);
    fflush(stdout);
    last_words.begin(seed, wanted);
    Generator generator(seed);
    int differences = 0;
    while (played < wanted && differences < 3) {
        Script script = generator.episode();
        played += script.size();
        episodes++;
        if (comparison.first_difference(script) < 0 || !comparison.real_difference(script))
            continue;
        differences++;
        last_words.difference(played - script.size() + 1, script, comparison);
        Script small = comparison.minimise(script);
        /* What is left may have become a race of the kernel's own. */
        if (comparison.real_difference(small))
            script = small;
        printf("difference %d, episode %llu of seed %llu:\n", differences, (unsigned long long)episodes,
               (unsigned long long)seed);
        comparison.show(script);
        fflush(stdout);
        ADD_FAILURE() << "the kernel and " << engine << " differ";
    }
    printf("%llu operations in %llu episodes, %d differences, %llu explained, %llu unsettled, "
           "%llu completions\n",
           (unsigned long long)played, (unsigned long long)episodes, differences,
           (unsigned long long)comparison.explained, (unsigned long long)comparison.unsettled,
           (unsigned long long)comparison.other.completions);
    EXPECT_LT(comparison.unsettled, episodes / 20 + 3) << "the kernel often disagrees with itself";
    const char *expected = getenv("RINGPOLL_TEST_EXPECT");
    if (differences == 0 && engine != "shim" && expected != nullptr && strcmp(expected, "ring") == 0) {
        EXPECT_GT(comparison.other.completions, 0u) << "this run was to be on a ring";
    }
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN);
    if (argc == 3 && strcmp(argv[1], "--serve") == 0) {
        auto engine = make_engine(argv[2]);
        if (engine == nullptr || (strcmp(argv[2], "shim") == 0) != shim_is_loaded())
            return 3;
        return serve([&] { return std::make_unique<World>(*engine); }, [&] { return engine->held(); });
    }
    ::testing::InitGoogleTest(&argc, argv);
    int failed = RUN_ALL_TESTS();
    last_words.say(failed != 0);
    return failed;
}
