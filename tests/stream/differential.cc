/* SPDX-License-Identifier: MIT
 *
 * The random driver of streams: one script of calls on sockets in two worlds
 * (support/differential.h), one on the kernel alone and one under the shim with a
 * profile that adopts sockets; every answer compared, byte for byte and errno for
 * errno.
 *
 * What makes the answers comparable:
 *  - What a socket is sent is a text of its own, so the bytes of every read are
 *    the same in both worlds exactly if their positions are. A read answers with
 *    its result and a digest of the bytes.
 *  - Writes in a row are left alone (they are what a profile batches). Before
 *    anything else the world lets them go out (a poll(2) of nothing), and waits
 *    until the kernel has delivered them, as it does for FINs and RSTs. It asks
 *    for that by libc's own functions, which no shim stands before.
 *  - Only so much lies unread that no buffer is ever full, but in "flow", which
 *    lets it fill up, and answers only whether all arrived in order: how much a
 *    full socket takes is nobody's promise.
 *  - A blocking call is made only where it can be satisfied.
 *
 * What docs/design.md says is different is left out ("unfit"), each where its
 * operation is.
 *
 * Environment: as for tests/conformance/differential.cc.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/sockios.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <array>
#include <atomic>
#include <condition_variable>
#include <map>
#include <mutex>
#include <random>
#include <set>
#include <sstream>
#include <thread>

#include "support/differential.h"

using namespace support;

extern "C" {
ssize_t __read_chk(int fd, void *buffer, size_t length, size_t size);
ssize_t __recv_chk(int fd, void *buffer, size_t length, size_t size, int flags);
ssize_t __recvfrom_chk(int fd, void *buffer, size_t length, size_t size, int flags, struct sockaddr *address,
                       socklen_t *address_length);
}

namespace {

constexpr int slots = 16;
constexpr size_t unread_max = 24576, messages_cost_max = 45000, small_cost_max = 12000;

/* ---------------------------------------------------------------- words */

struct Word {
    const char *text;
    uint32_t bits;
};

const Word event_words[] = {
    {"in", EPOLLIN},     {"out", EPOLLOUT}, {"pri", EPOLLPRI}, {"err", EPOLLERR},     {"hup", EPOLLHUP},
    {"rdhup", EPOLLRDHUP}, {"et", EPOLLET}, {"once", EPOLLONESHOT}, {"rdnorm", EPOLLRDNORM}, {"wrnorm", EPOLLWRNORM},
    {"wrband", EPOLLWRBAND}, {"rdband", EPOLLRDBAND},
};
const Word flag_words[] = {
    {"peek", MSG_PEEK},       {"dontwait", MSG_DONTWAIT}, {"nosignal", MSG_NOSIGNAL}, {"waitall", MSG_WAITALL},
    {"trunc", MSG_TRUNC},     {"oob", MSG_OOB},           {"cloexec", MSG_CMSG_CLOEXEC}, {"one", MSG_WAITFORONE},
    {"ctrunc", MSG_CTRUNC},   {"eor", MSG_EOR},           {"more", MSG_MORE},
};

template <size_t count> std::string text_of_bits(const Word (&words)[count], uint32_t bits)
{
    std::string text;
    for (const Word &word : words) {
        if (bits & word.bits)
            text += (text.empty() ? "" : "|") + std::string(word.text);
        bits &= ~word.bits;
    }
    if (bits != 0)
        text += "|" + std::to_string(bits);
    return text.empty() ? "0" : text;
}

template <size_t count> uint32_t bits_of_text(const Word (&words)[count], const std::string &text)
{
    uint32_t bits = 0;
    std::stringstream each(text);
    for (std::string one; std::getline(each, one, '|');)
        for (const Word &word : words)
            if (one == word.text)
                bits |= word.bits;
    return bits;
}

std::string result_text(long result)
{
    if (result >= 0)
        return std::to_string(result);
    const char *name = strerrorname_np((int)-result);
    return name != nullptr ? name : std::to_string(result);
}

long answer_of(long result)
{
    return result < 0 ? -errno : result;
}

std::string digest(const void *bytes, size_t count)
{
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < count; i++)
        hash = (hash ^ ((const unsigned char *)bytes)[i]) * 16777619u;
    char text[16];
    snprintf(text, sizeof text, "%06x", hash & 0xffffff);
    return text;
}

/* ---------------------------------------------------------- past the shim */

namespace past {
template <typename Function> Function *libc_function(const char *name)
{
    static void *libc = dlopen("libc.so.6", RTLD_NOW | RTLD_NOLOAD);
    void *at = libc != nullptr ? dlsym(libc, name) : dlsym(RTLD_NEXT, name);
    if (at == nullptr)
        abort();
    return (Function *)at;
}
int poll(struct pollfd *fds, nfds_t count, int timeout)
{
    static auto *real = libc_function<int(struct pollfd *, nfds_t, int)>("poll");
    return real(fds, count, timeout);
}
int getsockopt(int fd, int level, int name, void *value, socklen_t *length)
{
    static auto *real = libc_function<int(int, int, int, void *, socklen_t *)>("getsockopt");
    return real(fd, level, name, value, length);
}
int setsockopt(int fd, int level, int name, const void *value, socklen_t length)
{
    static auto *real = libc_function<int(int, int, int, const void *, socklen_t)>("setsockopt");
    return real(fd, level, name, value, length);
}
} // namespace past

std::atomic<int> pipes_broken{0};
void on_broken_pipe(int)
{
    pipes_broken++;
}

/* This run is about batched sends (in both worlds, so that both do the same). */
bool batches()
{
    static const bool is = getenv("RINGPOLL_PROFILE") && strcmp(getenv("RINGPOLL_PROFILE"), "throughput") == 0;
    return is;
}

/* ------------------------------------------------------------------- a world */

enum class What { set, stream, eventfd };

struct File { /* an open file of the world, whatever fds name it */
    What what;
    bool tcp = false;
    unsigned key = 0; /* of its text */
    int refs = 0;
    File *peer = nullptr;
    uint64_t written = 0;  /* of its text, accepted */
    uint64_t received = 0; /* TCP: what its peer has sent, urgent bytes too */
    size_t unread = 0, cost = 0; /* an upper bound; what it may cost the peer's buffer */
    bool fin_sent = false, reset = false, no_more_reads = false, blocking = false, urgent = false, small = false,
         without_urgency = false, sealed = false, holds_fds = false, failed = false, shut_here = false, told_of_out = false;
    int low_water = 1, timeout_ms = 0;
};

/* byte `at` of a file's text */
char letter(unsigned key, uint64_t at)
{
    return (char)(key * 17 + at * 131 + (at >> 8) * 29 + (at >> 16) * 7);
}

class OtherThread { /* runs one function at a time */
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

using Arguments = std::vector<std::string>;
char buffer[1 << 19];

class World : public Player {
public:
    World()
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
        Arguments arguments;
        for (std::string word; words >> word;)
            arguments.push_back(word);
        arguments.resize(6);
        if (unsettled_ && (!writes(verb) || elsewhere)) {
            if (verb != "turn")
                flush();
            if (verb != "turn")
                settle();
        }
        std::string answer;
        pipes_broken = 0;
        std::function<void()> job = [&] { answer = operation(verb, arguments); };
        if (!elsewhere) {
            job();
        } else {
            if (other_ == nullptr)
                other_ = std::make_unique<OtherThread>();
            other_->run(job);
        }
        if (elsewhere && unsettled_) {
            flush();
            settle();
        }
        if (pipes_broken > 0)
            answer += " and SIGPIPE";
        return answer;
    }

    void end() override
    {
        for (auto &slot : slots_)
            if (slot.fd >= 0) {
                if (slot.file->what == What::stream && slot.file->tcp)
                    linger_not(slot.fd);
                ::close(slot.fd);
                slot.fd = -1;
            }
        other_.reset();
    }

private:
    struct Slot {
        int fd;
        File *file;
    };

    std::array<Slot, slots> slots_;
    std::vector<std::unique_ptr<File>> files_;
    std::unique_ptr<OtherThread> other_;
    bool forked_ = false;
    bool unsettled_ = false; /* writes that may not have gone out or arrived */

    static void linger_not(int fd)
    {
        struct linger linger = {1, 0};
        ::setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    }

    static int number(const std::string &word) { return atoi(word.c_str()); }

    Slot *slot(const std::string &word)
    {
        int at = number(word);
        return &slots_[(size_t)(at < 0 || at >= slots ? 0 : at)];
    }

    Slot *stream(const std::string &word)
    {
        Slot *at = slot(word);
        return at->fd >= 0 && at->file->what == What::stream ? at : nullptr;
    }

    File *new_file(What what)
    {
        files_.push_back(std::make_unique<File>());
        files_.back()->what = what;
        files_.back()->key = (unsigned)files_.size();
        return files_.back().get();
    }

    static void put(Slot *into, int fd, File *file)
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

    template <typename Done> static void settle_until(Done done)
    {
        int64_t deadline = now_ns() + 100000000;
        while (!done() && now_ns() < deadline)
            sched_yield();
    }

    static int tcp_state(int fd, uint64_t *ret_received = nullptr)
    {
        /* tcpi_bytes_received comes after the fields that glibc knows. */
        union {
            struct tcp_info info;
            char bytes[512];
        } all = {};
        socklen_t length = sizeof all;
        if (past::getsockopt(fd, IPPROTO_TCP, TCP_INFO, &all, &length) != 0)
            return -1;
        if (ret_received != nullptr)
            memcpy(ret_received, all.bytes + 128, sizeof *ret_received);
        return all.info.tcpi_state;
    }

    /* What the program wrote goes out: any call that can block does that. */
    static void flush()
    {
        struct pollfd nothing = {-1, 0, 0};
        ::poll(&nothing, 1, 0);
    }

    /* It has arrived. */
    void settle()
    {
        unsettled_ = false;
        for (auto &each : slots_) {
            if (each.fd < 0 || each.file->what != What::stream || !each.file->tcp || each.file->reset)
                continue;
            File *file = each.file;
            settle_until([&] {
                uint64_t received = 0;
                int state = tcp_state(each.fd, &received);
                return state < 0 || state == TCP_CLOSE || received >= file->received;
            });
        }
    }

    /* A FIN of `from` has just left for its peer. */
    void settle_end(File *from)
    {
        if (!from->tcp)
            return;
        File *to = from->peer;
        int to_fd = fd_of(to), from_fd = fd_of(from), on = 1;
        if (to_fd >= 0) {
            settle_until([&] {
                struct pollfd one = {to_fd, POLLRDHUP, 0};
                return past::poll(&one, 1, 0) == 1 && (one.revents & POLLRDHUP);
            });
            past::setsockopt(to_fd, IPPROTO_TCP, TCP_QUICKACK, &on, sizeof on);
        }
        bool both = from->fin_sent && (to->fin_sent || to->refs == 0);
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
        if (--file->refs > 0 || file->what != What::stream)
            return;
        file->fin_sent = true;
        settle_end(file);
    }

    /* --------------------------------------------------------------- making */

    static struct sockaddr_in somewhere()
    {
        static uint32_t count = 0;
        struct sockaddr_in address = {};
        address.sin_family = AF_INET;
        uint32_t host = (uint32_t)getpid() * 4096 + count++;
        address.sin_addr.s_addr = htonl(0x7f000002u + host % 0xfffff0u);
        return address;
    }

    static bool make_tcp(int fds[2], bool small)
    {
        struct sockaddr_in address = somewhere();
        socklen_t length = sizeof address;
        int listening = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1, least = 8192;
        if (small)
            setsockopt(listening, SOL_SOCKET, SO_RCVBUF, &least, sizeof least);
        if (bind(listening, (struct sockaddr *)&address, length) != 0 || listen(listening, 1) != 0 ||
            getsockname(listening, (struct sockaddr *)&address, &length) != 0)
            return false;
        fds[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (small)
            setsockopt(fds[0], SOL_SOCKET, SO_RCVBUF, &least, sizeof least);
        if (connect(fds[0], (struct sockaddr *)&address, length) != 0)
            return false;
        fcntl(fds[0], F_SETFL, O_RDWR | O_NONBLOCK);
        fds[1] = accept4(listening, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
        ::close(listening);
        for (int i = 0; i < 2; i++) {
            setsockopt(fds[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
            if (small)
                setsockopt(fds[i], SOL_SOCKET, SO_SNDBUF, &least, sizeof least);
        }
        return fds[1] >= 0;
    }

    std::string make(const std::string &verb, const Arguments &a)
    {
        Slot *first = slot(a[0]), *second = slot(a[1]);
        if (first->fd >= 0)
            return "taken";
        if (verb == "set" || verb == "event") {
            int fd = verb == "set" ? epoll_create1(EPOLL_CLOEXEC)
                                   : eventfd((unsigned)number(a[1]), EFD_NONBLOCK | EFD_CLOEXEC);
            if (fd < 0)
                return result_text(-errno);
            put(first, fd, new_file(verb == "set" ? What::set : What::eventfd));
            return "0";
        }
        if (second->fd >= 0 || first == second)
            return "taken";
        int fds[2];
        bool small = a[2] == "small";
        if (verb == "unix" ? socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds) != 0
                           : !make_tcp(fds, small))
            return result_text(-errno);
        File *left = new_file(What::stream), *right = new_file(What::stream);
        left->peer = right;
        right->peer = left;
        left->tcp = right->tcp = verb == "tcp";
        left->small = right->small = small;
        put(first, fds[0], left);
        put(second, fds[1], right);
        return "0";
    }

    /* ----------------------------------------------------------------- sets */

    std::string ctl(const std::string &verb, const Arguments &a)
    {
        Slot *set = slot(a[0]), *fd = slot(a[1]);
        int set_fd = set->fd >= 0 ? set->fd : 800, watched = fd->fd >= 0 ? fd->fd : 801;
        uint32_t bits = bits_of_text(event_words, a[2]);
        if (fd->fd >= 0 && fd->file->what == What::set)
            return "nested";
        if (fd->fd >= 0 && (bits & EPOLLET) && (bits & (EPOLLOUT | EPOLLWRNORM | EPOLLWRBAND)))
            fd->file->told_of_out = true;
        /* A receive passes the urgent mark unseen. Who waits for PRI is not adopted. */
        if (fd->fd >= 0 && fd->file->urgent)
            bits |= EPOLLPRI;
        else if (fd->fd >= 0 && verb != "del" && !(bits & EPOLLPRI))
            fd->file->without_urgency = true;
        /* Batched sends tell of OUT where the socket was full; and a one-shot is used up by
         * an edge of OUT too many, see EdgeJudge. */
        if (fd->fd >= 0 && fd->file->what == What::stream && !fd->file->tcp && verb != "del" && (bits & EPOLLET) &&
            (batches() || (bits & EPOLLONESHOT)))
            bits &= ~(uint32_t)(EPOLLOUT | EPOLLWRNORM | EPOLLWRBAND);
        struct epoll_event event = {};
        event.events = bits;
        event.data.u64 = strtoull(a[3].c_str(), nullptr, 10);
        int op = verb == "add" ? EPOLL_CTL_ADD : verb == "mod" ? EPOLL_CTL_MOD : EPOLL_CTL_DEL;
        return result_text(answer_of(epoll_ctl(set_fd, op, watched, verb == "del" ? nullptr : &event)));
    }

    static long wait_now(int fd, std::map<uint64_t, uint32_t> *seen)
    {
        struct epoll_event events[64];
        int count = epoll_wait(fd, events, 64, 0);
        for (int i = 0; i < count; i++)
            (*seen)[events[i].data.u64] |= events[i].events;
        return answer_of(count);
    }

    /* "turn": with what was written only now on its way, so two waits answer as one. */
    std::string wait(const std::string &verb, const Arguments &a)
    {
        Slot *set = slot(a[0]);
        int fd = set->fd >= 0 ? set->fd : 800;
        std::map<uint64_t, uint32_t> seen;
        long result = wait_now(fd, &seen);
        if (verb == "turn") {
            flush();
            settle();
            result = std::min(wait_now(fd, &seen), result);
        }
        if (result < 0)
            return result_text(result);
        std::string text;
        for (auto &one : seen)
            text += std::to_string(one.first) + ":" + text_of_bits(event_words, one.second) + " ";
        return text + ".";
    }

    /* ---------------------------------------------------------------- reads */

    /* What a read of `length` bytes has to find so that it need not block. */
    static bool would_block(const File *file, size_t length, int flags)
    {
        if (!file->blocking || (flags & MSG_DONTWAIT))
            return false;
        size_t need = flags & MSG_WAITALL ? length : std::min(length, (size_t)file->low_water);
        return file->unread < std::max(need, (size_t)1) && !at_end(file) && file->timeout_ms == 0;
    }

    static bool at_end(const File *file)
    {
        return file->no_more_reads || file->reset || file->peer->fin_sent || file->peer->refs == 0;
    }

    static void took(File *file, long count, int flags)
    {
        if (count > 0 && !(flags & (MSG_PEEK | MSG_OOB)))
            file->unread -= std::min(file->unread, (size_t)count);
        if (file->unread == 0) {
            file->cost = 0;
            file->holds_fds = false;
        }
    }

    std::string bytes_text(long result, int flags, const File *file)
    {
        std::string text = result_text(result);
        if (result > 0 && !((flags & MSG_TRUNC) && file->tcp))
            text += " " + digest(buffer, (size_t)result);
        return text;
    }

    /* The fds in a message: eventfds, told by what is in them; closed. */
    static std::string control_text(struct msghdr *message)
    {
        std::string text;
        for (struct cmsghdr *at = CMSG_FIRSTHDR(message); at != nullptr; at = CMSG_NXTHDR(message, at)) {
            if (at->cmsg_level != SOL_SOCKET || at->cmsg_type != SCM_RIGHTS) {
                text += " control:" + std::to_string(at->cmsg_type);
                continue;
            }
            for (size_t i = 0; i < (at->cmsg_len - CMSG_LEN(0)) / sizeof(int); i++) {
                int fd;
                uint64_t value = 0;
                memcpy(&fd, CMSG_DATA(at) + i * sizeof fd, sizeof fd);
                if (::read(fd, &value, sizeof value) != sizeof value)
                    value = 999;
                text += " fd:" + std::to_string(value) + (fcntl(fd, F_GETFD) ? "c" : "");
                ::close(fd);
            }
        }
        return text;
    }

    std::string take(const std::string &verb, const Arguments &a)
    {
        Slot *from = slot(a[0]);
        if (from->fd < 0)
            return "none";
        File *file = from->file;
        int fd = from->fd, flags = (int)bits_of_text(flag_words, a[2]), parts = std::max(1, number(a[3]));
        size_t length = std::min((size_t)number(a[1]), (size_t)65536);
        if (file->what == What::set)
            return "none";
        if (file->what == What::eventfd)
            return result_text(answer_of(::read(fd, buffer, 8)));
        if (flags & MSG_OOB)
            flags &= ~MSG_WAITALL;
        bool without_flags = verb == "read" || verb == "readv" || verb == "readchk" || verb == "sysread";
        if (without_flags)
            flags = 0;
        /* 0 bytes: recv() waits for something as well. */
        bool each_waits = verb == "mrecv"; /* the last of four, too, however little there is */
        if (would_block(file, each_waits ? length * 4 : length, each_waits ? flags | MSG_WAITALL : flags)) {
            if (without_flags)
                return "blocks";
            flags |= MSG_DONTWAIT;
        }
        errno = 0;
        long result = -1;
        std::string more;
        memset(buffer, 0, std::min(length, (size_t)64));
        struct iovec iov[8];
        size_t piece = length / (size_t)(parts > 8 ? 8 : parts), at = 0;
        int count = parts > 8 ? 8 : parts;
        for (int i = 0; i < count; i++) {
            iov[i] = {buffer + at, i == count - 1 ? length - at : piece};
            at += iov[i].iov_len;
        }
        struct sockaddr_storage address;
        socklen_t address_length = sizeof address;
        if (verb == "read") {
            result = answer_of(::read(fd, buffer, length));
        } else if (verb == "readchk") {
            result = answer_of(__read_chk(fd, buffer, length, sizeof buffer));
        } else if (verb == "sysread") {
            result = answer_of(syscall(SYS_read, fd, buffer, length));
        } else if (verb == "readv") {
            result = answer_of(::readv(fd, iov, count));
        } else if (verb == "recv") {
            result = answer_of(::recv(fd, buffer, length, flags));
        } else if (verb == "recvchk") {
            result = answer_of(__recv_chk(fd, buffer, length, sizeof buffer, flags));
        } else if (verb == "recvfrom") {
            result = answer_of(::recvfrom(fd, buffer, length, flags, (struct sockaddr *)&address, &address_length));
            if (result >= 0)
                more = " from:" + std::to_string(address_length);
        } else if (verb == "recvfromchk") {
            result = answer_of(__recvfrom_chk(fd, buffer, length, sizeof buffer, flags, nullptr, nullptr));
        } else if (verb == "recvmsg") {
            char control[256];
            struct msghdr message = {};
            message.msg_iov = iov;
            message.msg_iovlen = (size_t)count;
            message.msg_control = number(a[4]) ? control : nullptr;
            message.msg_controllen = std::min((size_t)number(a[4]), sizeof control);
            message.msg_name = &address;
            message.msg_namelen = sizeof address;
            message.msg_flags = 0x5555;
            result = answer_of(::recvmsg(fd, &message, flags));
            if (result >= 0)
                more = " flags:" + text_of_bits(flag_words, (uint32_t)message.msg_flags) +
                       " name:" + std::to_string(message.msg_namelen) +
                       " control:" + std::to_string(message.msg_controllen) + control_text(&message);
        } else { /* mrecv */
            struct mmsghdr messages[4] = {};
            struct iovec places[4];
            char control[4][64];
            for (size_t i = 0; i < 4; i++) {
                places[i] = {buffer + i * length, length};
                messages[i].msg_hdr.msg_iov = &places[i];
                messages[i].msg_hdr.msg_iovlen = 1;
                messages[i].msg_hdr.msg_control = control[i];
                messages[i].msg_hdr.msg_controllen = number(a[4]) ? sizeof control[i] : 0;
            }
            long filled = answer_of(::recvmmsg(fd, messages, (unsigned)std::min(parts, 4), flags, nullptr));
            std::string text = result_text(filled);
            for (long i = 0; i < filled; i++) {
                text += " " + std::to_string(messages[i].msg_len) + " " +
                        ((flags & MSG_TRUNC) && file->tcp ? "" : digest(places[i].iov_base, messages[i].msg_len)) +
                        " flags:" + text_of_bits(flag_words, (uint32_t)messages[i].msg_hdr.msg_flags) +
                        control_text(&messages[i].msg_hdr);
                took(file, messages[i].msg_len, flags);
            }
            return text;
        }
        took(file, result, flags);
        return bytes_text(result, flags, file) + more;
    }

    /* Into a pipe. How much one call takes goes by pages; all of them together take all. */
    std::string splice_out(const Arguments &a)
    {
        Slot *from = stream(a[0]);
        int ends[2];
        if (from == nullptr)
            return "none";
        File *file = from->file;
        size_t length = std::min((size_t)number(a[1]), (size_t)32768), sum = 0;
        if (length == 0 || would_block(file, 1, 0))
            return "blocks";
        if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0)
            return "no pipe";
        long result, first = 1;
        for (bool begun = false; sum < length; begun = true) {
            if (begun && would_block(file, 1, 0))
                break;
            result = answer_of(::splice(from->fd, nullptr, ends[1], nullptr, length - sum, SPLICE_F_NONBLOCK));
            if (!begun)
                first = result;
            if (result <= 0)
                break;
            long got = ::read(ends[0], buffer + sum, (size_t)result);
            if (got != result)
                return "the pipe has other bytes";
            took(file, got, 0);
            sum += (size_t)got;
        }
        ::close(ends[0]);
        ::close(ends[1]);
        return first <= 0 ? result_text(first) : std::to_string(sum) + " " + digest(buffer, sum);
    }

    std::string ask(const std::string &verb, const Arguments &a)
    {
        Slot *at = slot(a[0]);
        if (at->fd < 0 || at->file->what == What::set)
            return "none";
        int fd = at->fd;
        if (verb == "fionread") {
            int count = -7;
            long result = answer_of(ioctl(fd, FIONREAD, &count));
            return result_text(result) + " " + std::to_string(count);
        }
        if (verb == "outq") {
            int count = -7;
            return result_text(answer_of(ioctl(fd, SIOCOUTQ, &count)));
        }
        if (verb == "atmark") {
            int mark = -7;
            if (at->file->what != What::stream || !at->file->tcp)
                return "unfit";
            long result = answer_of(ioctl(fd, SIOCATMARK, &mark));
            return result_text(result) + " " + std::to_string(mark);
        }
        if (verb == "error") {
            int error = -7;
            socklen_t length = sizeof error;
            long result = answer_of(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length));
            return result_text(result) + " " + result_text(-error);
        }
        short bits = (short)bits_of_text(event_words, a[1]);
        if (verb == "poll" || verb == "ppoll") {
            struct pollfd one[2] = {{fd, bits, 0}, {-1, 0, 0}};
            struct timespec now = {0, 0};
            long result = answer_of(verb == "poll" ? ::poll(one, 2, 0) : ::ppoll(one, 2, &now, nullptr));
            return result_text(result) + " " + text_of_bits(event_words, (uint32_t)(unsigned short)one[0].revents);
        }
        fd_set reads, writes_, others;
        FD_ZERO(&reads);
        FD_ZERO(&writes_);
        FD_ZERO(&others);
        FD_SET(fd, &reads);
        FD_SET(fd, &writes_);
        FD_SET(fd, &others);
        struct timeval now = {0, 0};
        bool all = number(a[1]);
        long result = answer_of(::select(fd + 1, &reads, all ? &writes_ : nullptr, all ? &others : nullptr, &now));
        return result_text(result) + " " + std::to_string(FD_ISSET(fd, &reads) != 0) +
               std::to_string(all && FD_ISSET(fd, &writes_)) + std::to_string(all && FD_ISSET(fd, &others));
    }

    /* --------------------------------------------------------------- writes */

public:
    static bool writes(const std::string &verb)
    {
        static const char *const all[] = {"write", "send", "writev", "sendto", "sendmsg", "msend", "pass", "sendfile",
                                          "splicein"};
        return std::find(std::begin(all), std::end(all), verb) != std::end(all);
    }

private:
    static size_t cost_of(size_t length)
    {
        if (length > 8192)
            return length + 2000;
        size_t size = 1024;
        while (size < length + 704)
            size *= 2;
        return size + 256;
    }

    void fill_text(const File *file, size_t length)
    {
        for (size_t i = 0; i < length; i++)
            buffer[i] = letter(file->key, file->written + i);
    }

    std::string give(const std::string &verb, const Arguments &a)
    {
        Slot *to = slot(a[0]);
        if (to->fd < 0 || to->file->what == What::set)
            return "none";
        File *file = to->file, *peer = file->peer;
        int fd = to->fd, flags = (int)bits_of_text(flag_words, a[2]) & (MSG_DONTWAIT | MSG_NOSIGNAL | MSG_OOB);
        int parts = std::min(8, std::max(1, number(a[3])));
        size_t most = file->small ? 2000 : unread_max, length = std::min((size_t)number(a[1]), most);
        if (file->what == What::eventfd) {
            uint64_t by = length % 5;
            return result_text(answer_of(::write(fd, &by, sizeof by)));
        }
        if ((flags & MSG_OOB) && (!file->tcp || verb != "send" || peer->blocking || peer->without_urgency))
            return "unfit";
        bool gone = peer->refs == 0 || peer->no_more_reads || file->fin_sent || file->reset || peer->reset;
        /* A batched send fails with the next call. */
        if (gone && batches() && !file->shut_here)
            return "unfit";
        size_t cost = verb == "writev" || verb == "write" || verb == "send" || verb == "sendto" || verb == "sendmsg"
                          ? cost_of(length)
                          : cost_of(length / (size_t)parts) * (size_t)parts + 4096;
        /* Where a message with fds ends the library cannot know if it needed two buffers. */
        peer->sealed = peer->sealed && peer->unread > 0;
        if (!gone && (peer->sealed || peer->unread + length > most ||
                      peer->cost + cost > (file->small ? small_cost_max : messages_cost_max)))
            return "full";
        if (unsettled_ && gone) {
            flush();
            settle();
        }
        fill_text(file, length);
        struct iovec iov[8];
        size_t piece = length / (size_t)parts, at = 0;
        for (int i = 0; i < parts; i++) {
            iov[i] = {buffer + at, i == parts - 1 ? length - at : piece};
            at += iov[i].iov_len;
        }
        errno = 0;
        long result = -1, sum = -1;
        if (verb == "write") {
            result = answer_of(::write(fd, buffer, length));
        } else if (verb == "send") {
            result = answer_of(::send(fd, buffer, length, flags));
        } else if (verb == "sendto") {
            result = answer_of(::sendto(fd, buffer, length, flags, nullptr, 0));
        } else if (verb == "writev") {
            result = answer_of(::writev(fd, iov, parts));
        } else if (verb == "sendmsg") {
            struct msghdr message = {};
            message.msg_iov = iov;
            message.msg_iovlen = (size_t)parts;
            result = answer_of(::sendmsg(fd, &message, flags));
        } else if (verb == "pass") { /* an eventfd goes along */
            /* Where other bytes come before it the library gets both at once. */
            if (file->tcp || length == 0 || peer->unread > 0)
                return "unfit";
            int fds[2] = {eventfd((unsigned)(file->written % 900) + 1, EFD_NONBLOCK | EFD_CLOEXEC),
                          eventfd((unsigned)(file->written % 900) + 2, EFD_NONBLOCK | EFD_CLOEXEC)};
            alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof fds)] = {};
            size_t room = (size_t)(parts > 1 ? 2 : 1) * sizeof(int);
            struct msghdr message = {};
            message.msg_iov = iov;
            message.msg_iovlen = (size_t)parts;
            message.msg_control = control;
            message.msg_controllen = CMSG_SPACE(room);
            struct cmsghdr *header = CMSG_FIRSTHDR(&message);
            header->cmsg_level = SOL_SOCKET;
            header->cmsg_type = SCM_RIGHTS;
            header->cmsg_len = CMSG_LEN(room);
            memcpy(CMSG_DATA(header), fds, room);
            result = answer_of(::sendmsg(fd, &message, flags));
            peer->sealed = result > 4000;
            peer->holds_fds = true;
            ::close(fds[0]);
            ::close(fds[1]);
        } else if (verb == "msend") {
            struct mmsghdr messages[8] = {};
            for (int i = 0; i < parts; i++) {
                messages[i].msg_hdr.msg_iov = &iov[i];
                messages[i].msg_hdr.msg_iovlen = 1;
            }
            result = answer_of(::sendmmsg(fd, messages, (unsigned)parts, flags));
            sum = 0;
            for (long i = 0; i < result; i++)
                sum += messages[i].msg_len;
        } else if (verb == "sendfile") {
            int file_fd = memfd_create("text", MFD_CLOEXEC); /* its pages go, not a copy: another each time */
            off_t offset = 0;
            if (length == 0 || pwrite(file_fd, buffer, length, 0) != (ssize_t)length) {
                ::close(file_fd);
                return "no file";
            }
            result = answer_of(::sendfile(fd, file_fd, &offset, length));
            ::close(file_fd);
        } else { /* splicein */
            int ends[2];
            if (length == 0 || pipe2(ends, O_CLOEXEC) != 0)
                return "no pipe";
            long written = ::write(ends[1], buffer, length);
            result = written != (long)length ? -EPIPE
                                             : answer_of(::splice(ends[0], nullptr, fd, nullptr, length, 0));
            ::close(ends[0]);
            ::close(ends[1]);
        }
        if (sum < 0)
            sum = result;
        if (sum > 0) {
            file->written += (uint64_t)sum;
            if (!gone) {
                peer->received += (uint64_t)sum;
                peer->unread += (size_t)sum;
                peer->cost += cost;
            }
            unsettled_ = true;
        }
        if (sum > 0 && (flags & MSG_OOB)) {
            peer->urgent = true;
            peer->unread--;
            flush();
            settle();
            settle_until([&] {
                struct pollfd one = {fd_of(peer), POLLPRI, 0};
                return one.fd < 0 || (past::poll(&one, 1, 0) == 1 && (one.revents & POLLPRI));
            });
        }
        if (gone && file->tcp && sum > 0) { /* its answer is a RST, but where the peer has only shut its reads down */
            file->failed = true;
            flush();
            if (peer->refs == 0)
                settle_until([&] {
                    int state = tcp_state(fd);
                    return state < 0 || state == TCP_CLOSE;
                });
            else
                peer->received += (uint64_t)sum, peer->unread += (size_t)sum, peer->cost += cost;
            settle();
        }
        return result_text(result) + (verb == "msend" ? " of " + std::to_string(sum) : "");
    }

    /* Until `total` bytes went from here to the peer: writes as much as goes, reads
     * when it is full, or all the time. Both ends' events are let go by. */
    std::string flow(const Arguments &a)
    {
        Slot *from = stream(a[0]);
        if (from == nullptr)
            return "none";
        File *file = from->file, *peer = file->peer;
        int to_fd = fd_of(peer);
        if (to_fd < 0 || file->blocking || peer->blocking || peer->urgent || peer->low_water > 1 || file->fin_sent ||
            file->reset || peer->reset || peer->no_more_reads)
            return "unfit";
        size_t total = std::min((size_t)number(a[1]), (size_t)2000000), piece = std::max(1, number(a[2])),
               bite = std::max(1, number(a[3])), sent = 0;
        bool until_full = number(a[4]);
        uint64_t position = file->written - peer->unread, end = file->written + total;
        if (!file->small && file->tcp)
            until_full = false;
        int64_t deadline = now_ns() + 20000000000LL;
        static char bytes[65536];
        for (bool reading = !until_full; position < end; reading = !until_full || sent == total || reading) {
            if (now_ns() > deadline)
                return "stuck after " + std::to_string(sent) + " written, " + std::to_string(end - position) + " unread";
            while (sent < total) {
                size_t length = std::min(std::min(piece, total - sent), sizeof bytes);
                fill_text(file, length);
                long done = answer_of(::write(from->fd, buffer, length));
                if (done <= 0 && done != -EAGAIN)
                    return "write: " + result_text(done);
                if (done > 0) {
                    sent += (size_t)done;
                    file->written += (uint64_t)done;
                    peer->received += (uint64_t)done;
                }
                reading = reading || done < (long)length;
                if (done < (long)length || !until_full)
                    break;
            }
            wait_all();
            while (reading || sent == total) {
                long got = answer_of(::read(to_fd, bytes, std::min(bite, sizeof bytes)));
                if (got == -EAGAIN)
                    break;
                if (got <= 0)
                    return "read: " + result_text(got);
                for (long i = 0; i < got; i++)
                    if (bytes[i] != letter(file->key, position + (uint64_t)i))
                        return "another byte";
                position += (uint64_t)got;
                if (!until_full)
                    break;
            }
        }
        peer->unread = 0;
        peer->cost = 0;
        settle();
        wait_all();
        wait_all();
        return "ok";
    }

    void wait_all()
    {
        std::map<uint64_t, uint32_t> seen;
        flush();
        for (auto &each : slots_)
            if (each.fd >= 0 && each.file->what == What::set)
                wait_now(each.fd, &seen);
    }

    /* ------------------------------------------------------------------ ends */

    std::string shutdown(const Arguments &a)
    {
        Slot *at = stream(a[0]);
        if (at == nullptr)
            return "none";
        File *file = at->file;
        int how = a[1] == "rd" ? SHUT_RD : a[1] == "wr" ? SHUT_WR : SHUT_RDWR;
        if (file->unread > 0 || at_end(file) || (!file->tcp && file->peer->unread > 0)) /* a wake-up, of no meaning: an edge for who was told before */
            return "unfit";
        if (batches() && file->told_of_out) /* and so is this */
            return "unfit";
        long result = answer_of(::shutdown(at->fd, how));
        if (result != 0)
            return result_text(result);
        if (how != SHUT_WR) {
            file->no_more_reads = true;
            if (!file->tcp) /* the peer cannot write any more */
                file->peer->fin_sent = true;
        }
        if (how != SHUT_RD) {
            file->shut_here = true;
            if (!file->tcp)
                file->peer->no_more_reads = true;
            if (!file->fin_sent) {
                file->fin_sent = true;
                settle_end(file);
            }
        }
        return "0";
    }

    std::string close(const std::string &verb, const Arguments &a)
    {
        Slot *at = slot(a[0]);
        if (at->fd < 0)
            return "none";
        File *file = at->file;
        bool last = file->refs == 1, is_stream = file->what == What::stream;
        std::string before;
        if (is_stream && last && (!file->tcp || (forked_ && verb != "reset")) && file->unread > 0) {
            /* What the library has received of an AF_UNIX stream nobody can put back,
             * so the peer would not be told that it was not read; nor that of a socket
             * that a child may have. */
            long result = answer_of(::recv(at->fd, buffer, sizeof buffer, MSG_DONTWAIT));
            while (result > 0) {
                took(file, result, 0);
                before += result_text(result) + " ";
                before = before.size() > 200 ? before.substr(0, 200) : before;
                result = answer_of(::recv(at->fd, buffer, sizeof buffer, MSG_DONTWAIT));
            }
            before = "drained ";
        }
        if (is_stream && last && file->tcp && (verb == "reset" || file->unread > 0 || file->urgent)) {
            /* Whatever is unread, so that it is a RST for certain. */
            if (verb == "reset" || file->urgent)
                linger_not(at->fd);
            file->reset = true;
        }
        int fd = at->fd;
        at->fd = -1;
        long result = answer_of(::close(fd));
        if (is_stream && last && file->tcp && file->reset) {
            int peer_fd = fd_of(file->peer);
            file->refs--;
            file->fin_sent = true;
            file->peer->reset = file->peer->failed = true;
            if (peer_fd >= 0)
                settle_until([&] {
                    int state = tcp_state(peer_fd);
                    return state < 0 || state == TCP_CLOSE;
                });
        } else {
            dropped(file);
        }
        return before + result_text(result);
    }

    /* --------------------------------------------------------------- numbers */

    std::string duplicate(const std::string &verb, const Arguments &a)
    {
        Slot *from = slot(a[0]), *to = slot(a[1]);
        if (from->fd < 0 || from->file->what == What::set)
            return "none";
        if (to->fd >= 0)
            return "taken";
        /* What the library has is read by the number it came for. */
        if (from->file->unread > 0)
            return "unread";
        /* Nor does the number that it is passed as see an error that the library has. */
        if (verb == "passself" && from->file->what == What::stream && from->file->failed)
            return "unfit";
        /* Fds that are on their way have their numbers already: the next one is another. */
        for (auto &each : slots_)
            if (each.fd >= 0 && each.file->holds_fds && each.file->unread > 0)
                return "unfit";
        int fd;
        if (verb == "dup") {
            fd = ::dup(from->fd);
        } else if (verb == "dup2") {
            int target = open("/dev/null", O_RDONLY | O_CLOEXEC);
            fd = ::dup2(from->fd, target);
        } else { /* pass it to ourselves */
            int pair[2];
            if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0)
                return "no pair";
            alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof fd)] = {};
            char byte = 'x';
            struct iovec iov = {&byte, 1};
            struct msghdr message = {};
            message.msg_iov = &iov;
            message.msg_iovlen = 1;
            message.msg_control = control;
            message.msg_controllen = sizeof control;
            struct cmsghdr *header = CMSG_FIRSTHDR(&message);
            header->cmsg_level = SOL_SOCKET;
            header->cmsg_type = SCM_RIGHTS;
            header->cmsg_len = CMSG_LEN(sizeof fd);
            memcpy(CMSG_DATA(header), &from->fd, sizeof fd);
            fd = -1;
            if (::sendmsg(pair[0], &message, 0) == 1 && ::recvmsg(pair[1], &message, MSG_CMSG_CLOEXEC) == 1 &&
                (header = CMSG_FIRSTHDR(&message)) != nullptr)
                memcpy(&fd, CMSG_DATA(header), sizeof fd);
            ::close(pair[0]);
            ::close(pair[1]);
        }
        if (fd < 0)
            return result_text(-errno);
        put(to, fd, from->file);
        return "0";
    }

    /* The number now means another file: what was there is closed by that. */
    std::string replace(const Arguments &a)
    {
        Slot *from = slot(a[0]), *to = slot(a[1]);
        if (from->fd < 0 || to->fd < 0 || from->file == to->file || from->file->what != What::stream ||
            to->file->what != What::stream)
            return "none";
        File *before = to->file;
        if (before->unread > 0 || before->urgent || from->file->unread > 0)
            return "unread";
        long result = answer_of(::dup2(from->fd, to->fd));
        to->file = from->file;
        to->file->refs++;
        dropped(before);
        return result == to->fd ? "0" : result_text(result);
    }

    /* A child goes on with the socket, or the parent does. */
    std::string fork(const Arguments &a)
    {
        Slot *at = stream(a[0]);
        if (at == nullptr)
            return "none";
        File *file = at->file, *peer = file->peer;
        std::string how = a[2];
        size_t length = std::min((size_t)number(a[1]), (size_t)16384);
        int peer_fd = fd_of(peer), go[2], answers[2];
        bool later = how == "later";
        /* What the library has both have; only one may go on. */
        if (how == "away" ? file->refs != 1 : later && file->unread > 0)
            return "unfit";
        if (later && (peer_fd < 0 || peer->fin_sent || at_end(file) || file->reset || peer->blocking || file->told_of_out))
            return "unfit"; /* (an edge whose cause the child has taken is another that means nothing) */
        if (pipe2(go, O_CLOEXEC) != 0 || pipe2(answers, O_CLOEXEC) != 0)
            return "no pipe";
        forked_ = true;
        pid_t child = ::fork();
        if (child == 0) {
            std::string text = "idle";
            char byte;
            ssize_t ignored = ::read(go[0], &byte, 1);
            if (how != "idle") {
                long result = answer_of(::recv(at->fd, buffer, how == "away" ? sizeof buffer : length, MSG_DONTWAIT));
                text = bytes_text(result, 0, file);
                /* What the library has goes unread without a reset, see close(). */
                while (how == "away" && result > 0)
                    result = answer_of(::recv(at->fd, buffer, sizeof buffer, MSG_DONTWAIT));
            }
            ignored = ::write(answers[1], text.data(), text.size());
            (void)ignored;
            _exit(0);
        }
        ::close(answers[1]);
        ::close(go[0]);
        if (later) {
            fill_text(peer, length);
            long done = ::send(peer_fd, buffer, length, MSG_DONTWAIT | MSG_NOSIGNAL);
            if (done > 0) {
                peer->written += (uint64_t)done;
                file->received += (uint64_t)done;
                file->unread += (size_t)done;
            }
            flush();
            settle();
        }
        std::string text;
        if (how == "away") { /* the child's is the last */
            ::close(at->fd);
            at->fd = -1;
        }
        ssize_t ignored = ::write(go[1], "x", 1);
        (void)ignored;
        char bytes[256];
        for (ssize_t count; (count = ::read(answers[0], bytes, sizeof bytes)) > 0;)
            text.append(bytes, (size_t)count);
        ::close(answers[0]);
        ::close(go[1]);
        int status = 0;
        waitpid(child, &status, 0);
        if (later)
            took(file, atol(text.c_str()), 0);
        if (how == "away") {
            file->unread = 0;
            dropped(file);
        }
        return text + (status == 0 ? "" : " the child died");
    }

    /* --------------------------------------------------------------- options */

    std::string option(const std::string &verb, const Arguments &a)
    {
        Slot *at = stream(a[0]);
        if (at == nullptr)
            return "none";
        File *file = at->file;
        int fd = at->fd, value = number(a[1]);
        if (verb == "block" || verb == "fionbio") {
            if (value && file->urgent)
                return "unfit";
            file->blocking = value != 0;
            if (verb == "fionbio") {
                int on = !value;
                return result_text(answer_of(ioctl(fd, FIONBIO, &on)));
            }
            return result_text(answer_of(fcntl(fd, F_SETFL, O_RDWR | (value ? 0 : O_NONBLOCK))));
        }
        if (verb == "lowat") {
            if (file->unread > 0 || at_end(file)) /* a wake-up, of no meaning */
                return "unfit";
            file->low_water = std::max(value, 1);
            return result_text(answer_of(setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &value, sizeof value)));
        }
        if (verb == "timeout") {
            struct timeval time = {0, (value ? 1 : 0) * 1000};
            file->timeout_ms = value ? 1 : 0;
            return result_text(answer_of(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time)));
        }
        int on = 1;
        return result_text(answer_of(setsockopt(fd, SOL_SOCKET, value % 2 ? SO_KEEPALIVE : SO_PRIORITY, &on, sizeof on)));
    }

    std::string operation(const std::string &verb, const Arguments &a)
    {
        if (verb == "tcp" || verb == "unix" || verb == "set" || verb == "event")
            return make(verb, a);
        if (verb == "add" || verb == "mod" || verb == "del")
            return ctl(verb, a);
        if (verb == "wait" || verb == "turn")
            return wait(verb, a);
        if (verb == "read" || verb == "readchk" || verb == "sysread" || verb == "readv" || verb == "recv" ||
            verb == "recvchk" || verb == "recvfrom" || verb == "recvfromchk" || verb == "recvmsg" || verb == "mrecv")
            return take(verb, a);
        if (verb == "spliceout")
            return splice_out(a);
        if (verb == "fionread" || verb == "outq" || verb == "atmark" || verb == "error" || verb == "poll" ||
            verb == "ppoll" || verb == "select")
            return ask(verb, a);
        if (writes(verb))
            return give(verb, a);
        if (verb == "flow")
            return flow(a);
        if (verb == "shutdown")
            return shutdown(a);
        if (verb == "close" || verb == "reset")
            return close(verb, a);
        if (verb == "dup" || verb == "dup2" || verb == "passself")
            return duplicate(verb, a);
        if (verb == "replace")
            return replace(a);
        if (verb == "fork")
            return fork(a);
        if (verb == "block" || verb == "fionbio" || verb == "lowat" || verb == "timeout" || verb == "option")
            return option(verb, a);
        return "unknown operation";
    }
};

/* ------------------------------------------------------------------ the judge */

/* Edge-triggered sockets.
 *
 * An AF_UNIX socket wakes whoever waits for OUT at each byte that its peer takes. Where
 * the peer is adopted that is when the ring receives, not when the program reads; and an
 * adoption may tell of OUT once more. So of an AF_UNIX watch that asks for OUT such an
 * edge, with whatever else is true then, may come at other times. With batched sends an
 * edge of any socket that is given back may be told once more.
 *
 * The kernel's edge for a wake-up whose cause the program has already taken, or that
 * changed nothing, says only what is true anyway: it may be missing where each of its
 * bits was told by us since it became true. No edge that says something new may be. (No
 * socket is full here but in "flow", so OUT became true when the watch was made, or at an
 * end.) */
class EdgeJudge : public Judge {
public:
    bool explained(const std::string &line, const std::string &kernels, const std::string &ours) override
    {
        std::stringstream words(line);
        std::string verb, a[4];
        words >> verb >> a[0] >> a[1] >> a[2] >> a[3];
        if (verb[0] == '@')
            verb.erase(0, 1);
        if (verb == "wait" || verb == "turn")
            return same_events(kernels, ours);
        unsigned at = (unsigned)atoi(a[0].c_str()) % slots, to = (unsigned)atoi(a[1].c_str()) % slots;
        if (kernels != ours)
            return false;
        bool done = kernels == "0", made = verb == "unix" || verb == "tcp";
        if (verb == "event" && done) {
            files_[at] = 0;
        } else if (made && done) {
            count_ += 2;
            files_[at] = count_;
            files_[to] = count_ + 1;
            if (verb == "unix")
                unix_.insert({count_, count_ + 1});
        } else if ((verb == "add" || verb == "mod") && done) {
            uint32_t bits = bits_of_text(event_words, a[2]);
            watches_[strtoull(a[3].c_str(), nullptr, 10)] = {
                files_[to], (bits & EPOLLET) && !(bits & EPOLLONESHOT) && files_[to] > 0,
                (bits & EPOLLET) && (batches() || ((bits & out) && unix_.count(files_[to]) > 0)), 0};
        } else if (verb == "flow") { /* lets events go by */
            for (auto &each : watches_)
                each.second.told = ~0u;
        } else if (World::writes(verb)) {
            size_t sum = kernels.find(" of ");
            long bytes = atol(kernels.c_str() + (sum == std::string::npos ? 0 : sum + 4));
            for (auto &each : watches_) /* behind an end there is nothing new to read */
                if (each.second.file == (files_[at] ^ 1) && bytes > 0 &&
                    !(each.second.told & (EPOLLRDHUP | EPOLLHUP)))
                    each.second.told &= out;
        } else if (verb == "fork" && (a[2] == "idle" || a[2] == "later")) { /* nothing, or bytes from the peer */
            for (auto &each : watches_)
                if (each.second.file == files_[at] && a[2] == "later")
                    each.second.told &= out;
        } else if (kernels != "none" && kernels != "unfit" && kernels != "unread" &&
                   (verb == "shutdown" || verb == "close" || verb == "reset" || verb == "fork" || verb == "replace")) {
            unsigned file = files_[verb == "replace" ? to : at];
            /* What follows both ends is an error, and nothing else. */
            bool closes = verb == "close" || verb == "reset";
            forget(file, false);
            forget(file ^ 1, closes);
        }
        if ((verb == "dup" || verb == "dup2" || verb == "passself" || verb == "replace") && done)
            files_[to] = files_[at];
        return true;
    }

private:
    static constexpr uint32_t out = EPOLLOUT | EPOLLWRNORM | EPOLLWRBAND;
    struct Watch {
        unsigned file;
        bool may_lack, may_add;
        uint32_t told;
    };
    std::map<uint64_t, Watch> watches_;
    std::array<unsigned, slots> files_{};
    std::set<unsigned> unix_;
    unsigned count_ = 2; /* a pair's differ in the last bit */

    void forget(unsigned file, bool keeps_ends)
    {
        for (auto &each : watches_)
            if (each.second.file == file)
                each.second.told &= keeps_ends && (each.second.told & EPOLLHUP) ? ~(uint32_t)EPOLLERR : 0u;
    }

    static std::map<uint64_t, uint32_t> events_of(const std::string &text)
    {
        std::map<uint64_t, uint32_t> events;
        std::stringstream each(text);
        for (std::string one; each >> one;)
            if (one.find(':') != std::string::npos)
                events[strtoull(one.c_str(), nullptr, 10)] = bits_of_text(event_words, one.substr(one.find(':') + 1));
        return events;
    }

    bool same_events(const std::string &kernels, const std::string &ours)
    {
        if (kernels == ours && kernels.find(':') == std::string::npos)
            return true;
        if (kernels.empty() || ours.empty() || kernels.back() != '.' || ours.back() != '.')
            return kernels == ours;
        auto theirs = events_of(kernels), mine = events_of(ours);
        for (auto &each : watches_) {
            uint32_t their = theirs[each.first], my = mine[each.first];
            each.second.told |= my;
            if (their == my)
                continue;
            if ((my & ~their) && !(each.second.may_add && (batches() || (my & out))))
                return false;
            if ((their & ~my) && !(each.second.may_lack && (my == 0 || each.second.may_add) && !(their & ~each.second.told)))
                return false;
        }
        for (auto *events : {&theirs, &mine}) /* of no stream */
            for (auto &each : *events)
                if (!watches_.count(each.first) && theirs[each.first] != mine[each.first])
                    return false;
        return true;
    }
};

/* --------------------------------------------------------------- the generator */

class Generator {
public:
    explicit Generator(uint64_t seed) : random_(seed) {}

    /* One episode: its own mood, so that rare combinations meet often enough, and
     * so that what takes a socket from the library for good is not everywhere. */
    Script episode()
    {
        Script script;
        queue_.clear();
        used_ = 5 + below(slots - 5);
        kinds_.fill(Kind::empty);
        peers_.fill(-1);
        data_ = 1;
        edges_ = below(3);
        threads_ = one_in(5) ? 4 + below(15) : 0;
        releases_ = one_in(3) ? 0 : one_in(2) ? 3 : 20;
        urgent_ = one_in(8);
        blocking_ = one_in(4);
        numbers_ = one_in(5);
        forks_ = one_in(8);
        tcp_share_ = below(4);
        int length = 20 + below(one_in(3) ? 500 : 150);
        script.push_back("set 0");
        kinds_[0] = Kind::set;
        if (one_in(5)) {
            script.push_back("set 1");
            kinds_[1] = Kind::set;
        }
        if (!one_in(3)) { /* company, so that turns have more than one event */
            script.push_back("event 2 1");
            script.push_back("add 0 2 in 1000");
            kinds_[2] = Kind::counter;
        }
        while ((int)script.size() < length) {
            while (queue_.empty())
                next();
            std::string text = queue_.front();
            queue_.erase(queue_.begin());
            if (!left_out(text))
                script.push_back(text);
        }
        return script;
    }

private:
    enum class Kind { empty, set, tcp, unix_stream, counter };

    std::mt19937_64 random_;
    Script queue_;
    int used_ = 0, edges_ = 0, threads_ = 0, releases_ = 0, tcp_share_ = 0;
    bool urgent_ = false, blocking_ = false, numbers_ = false, forks_ = false;
    uint64_t data_ = 1;
    std::array<Kind, slots> kinds_;
    std::array<int, slots> peers_;
    std::string without_ = getenv("RINGPOLL_DIFFERENTIAL_WITHOUT") ? getenv("RINGPOLL_DIFFERENTIAL_WITHOUT") : "";

    int below(int limit) { return (int)(random_() % (uint64_t)limit); }
    bool one_in(int chances) { return below(chances) == 0; }
    static std::string s(int value) { return " " + std::to_string(value); }

    int with(std::initializer_list<Kind> wanted)
    {
        std::vector<int> found;
        for (int i = 0; i < used_; i++)
            if (std::find(wanted.begin(), wanted.end(), kinds_[(size_t)i]) != wanted.end())
                found.push_back(i);
        return found.empty() ? below(used_) : found[(size_t)below((int)found.size())];
    }
    int socket() { return one_in(60) ? below(used_) : with({Kind::tcp, Kind::unix_stream}); }
    int set() { return one_in(60) ? below(used_) : with({Kind::set}); }
    int peer_of(int at) { return peers_[(size_t)at] >= 0 ? peers_[(size_t)at] : socket(); }

    bool left_out(const std::string &text) const
    {
        std::string verb = text.substr(text[0] == '@', text.find(' ') - (text[0] == '@'));
        return !without_.empty() && ("," + without_ + ",").find("," + verb + ",") != std::string::npos;
    }

    void say(const std::string &text)
    {
        static const char *const others[] = {"read",  "recv", "readv", "recvmsg", "write", "send",
                                             "writev", "poll", "fionread", "sysread"};
        bool may = false;
        for (const char *verb : others)
            may = may || text.compare(0, strlen(verb) + 1, std::string(verb) + " ") == 0;
        queue_.push_back((may && threads_ && below(100) < threads_ ? "@" : "") + text);
    }

    std::string flags_of_interest()
    {
        static const char *const usual[] = {"in", "in", "in", "in", "in|rdhup", "in|rdhup", "in|out", "in|out|rdhup",
                                            "out", "in|rdnorm", "0"};
        std::string text = usual[below(11)];
        if (below(3) < edges_)
            text += "|et";
        if (one_in(7))
            text += "|once";
        if (urgent_ && one_in(3))
            text += "|pri";
        return text;
    }

    std::string amount()
    {
        static const int sizes[] = {1, 1, 2, 7, 64, 100, 100, 1000, 4096, 5000, 9000, 20000};
        return s(sizes[below(12)]);
    }

    std::string read_flags()
    {
        static const char *const one[] = {"0", "0", "0", "dontwait", "dontwait", "nosignal", "peek", "peek", "waitall",
                                          "trunc", "peek|trunc", "peek|waitall", "waitall|dontwait", "cloexec",
                                          "peek|dontwait"};
        return std::string(" ") + one[below(15)];
    }

    std::string read_of(int from)
    {
        static const char *const verbs[] = {"read", "read", "read", "recv", "recv", "recv", "readv", "recvmsg", "recvmsg",
                                            "recvfrom", "recvchk", "readchk", "recvfromchk", "mrecv", "sysread"};
        std::string verb = verbs[below(15)];
        bool deliberate = one_in(20);
        std::string length = deliberate ? " 0" : one_in(3) ? " 65536" : amount();
        static const int controls[] = {0, 0, 256, 256, 16, 20, 24, 28, 12};
        return verb + s(from) + length + (one_in(2) ? " 0" : read_flags()) + s(1 + below(5)) + s(controls[below(9)]);
    }

    std::string write_of(int to)
    {
        static const char *const verbs[] = {"write", "write", "write", "send", "send", "writev", "sendmsg", "sendto",
                                            "msend", "sendfile", "splicein", "pass"};
        static const char *const flags[] = {" 0", " 0", " dontwait", " nosignal", " dontwait|nosignal"};
        std::string verb = verbs[below(12)];
        return verb + s(to) + (one_in(40) ? " 0" : amount()) + flags[below(5)] + s(1 + below(4));
    }

    void make()
    {
        std::vector<int> free;
        for (int i = 0; i < used_; i++)
            if (kinds_[(size_t)i] == Kind::empty)
                free.push_back(i);
        if (free.size() < 2)
            return;
        int first = free[0], second = free[1];
        bool tcp = below(4) < tcp_share_;
        kinds_[(size_t)first] = kinds_[(size_t)second] = tcp ? Kind::tcp : Kind::unix_stream;
        peers_[(size_t)first] = second;
        peers_[(size_t)second] = first;
        say((tcp ? "tcp" : "unix") + s(first) + s(second) + (tcp && one_in(4) ? " small" : ""));
        if (!one_in(6))
            add(first);
        if (one_in(3))
            add(second);
        if (!one_in(5))
            converse(first);
    }

    void add(int what) { say("add" + s(set()) + s(what) + " " + flags_of_interest() + s((int)data_++)); }

    /* What makes the library adopt. */
    void converse(int at)
    {
        int from = peer_of(at), into = one_in(10) ? set() : 0;
        for (int i = 1 + below(one_in(2) ? 40 : 6); i > 0; i--) {
            say("write" + s(from) + s(1 + below(100)));
            say((one_in(3) ? "turn" : "wait") + s(into));
            say("read" + s(at) + " 65536");
            if (one_in(2))
                say("read" + s(at) + " 65536");
            if (one_in(2))
                say(write_of(at));
        }
    }

    void next()
    {
        int dice = below(1000);
        bool few = std::count(kinds_.begin(), kinds_.end(), Kind::empty) > slots - 6;
        if (few && one_in(3))
            return make();
        if (dice < 30)
            return make();
        if (dice < 70)
            return converse(socket());
        if (dice < 110)
            return add(one_in(8) ? with({Kind::counter}) : socket());
        if (dice < 150)
            return say("mod" + s(set()) + s(socket()) + " " + flags_of_interest() + s((int)data_++));
        if (dice < 165)
            return say("del" + s(set()) + s(socket()));
        if (dice < 330)
            return say((one_in(3) ? "turn" : "wait") + s(set()));
        if (dice < 560)
            return say(write_of(socket()));
        if (dice < 800)
            return say(read_of(socket()));
        if (dice < 830)
            return say("fionread" + s(socket()));
        if (dice < 840)
            return say("error" + s(socket()));
        if (dice < 850)
            return say("outq" + s(socket()));
        if (dice < 860)
            return say("flow" + s(socket()) + s(1 + below(one_in(4) ? 1000000 : 60000)) +
                       s(1 + below(one_in(2) ? 4000 : 65536)) + s(500 + below(65000)) + s(below(2)));
        if (dice < 862)
            return say("option" + s(socket()) + s(below(2)));
        if (dice < 882) {
            static const char *const hows[] = {" wr", " wr", " wr", " rd", " rdwr"};
            return say("shutdown" + s(socket()) + hows[below(5)]);
        }
        if (dice < 912) {
            int victim = one_in(20) ? set() : one_in(10) ? with({Kind::counter}) : socket();
            bool reset = kinds_[(size_t)victim] == Kind::tcp && one_in(3);
            kinds_[(size_t)victim] = Kind::empty;
            return say((reset ? "reset" : "close") + s(victim));
        }
        if (dice < 912 + releases_) {
            static const char *const bits[] = {" in", " in|out", " out", " in|rdhup|pri", " 0"};
            switch (below(4)) {
            case 0: return say("poll" + s(socket()) + bits[below(5)]);
            case 1: return say("ppoll" + s(socket()) + bits[below(5)]);
            case 2: return say("select" + s(socket()) + s(below(2)));
            default: return say("spliceout" + s(socket()) + amount());
            }
        }
        if (urgent_ && dice < 950) {
            switch (below(4)) {
            case 0: case 1: return say("send" + s(with({Kind::tcp})) + s(1 + below(3)) + " oob");
            case 2: return say("recv" + s(with({Kind::tcp})) + " 1 oob");
            default: return say("atmark" + s(with({Kind::tcp})));
            }
        }
        if (blocking_ && dice < 970) {
            switch (below(5)) {
            case 0: return say("lowat" + s(socket()) + s(below(3) * 50));
            case 1: return say("timeout" + s(socket()) + s(below(2)));
            case 2: return say("fionbio" + s(socket()) + s(below(2)));
            default: return say("block" + s(socket()) + s(below(2)));
            }
        }
        if (numbers_ && dice < 990) {
            int from = socket(), to = with({Kind::empty});
            if (one_in(5))
                return say("replace" + s(from) + s(socket()));
            if (kinds_[(size_t)to] == Kind::empty) {
                kinds_[(size_t)to] = kinds_[(size_t)from];
                peers_[(size_t)to] = peers_[(size_t)from];
            }
            static const char *const verbs[] = {"dup", "dup2", "passself"};
            return say(verbs[below(3)] + s(from) + s(to));
        }
        if (forks_ && dice < 996) {
            static const char *const hows[] = {" idle", " later", " away"};
            int at = socket(), how = below(3);
            if (how == 2)
                kinds_[(size_t)at] = Kind::empty;
            return say("fork" + s(at) + s(1 + below(5000)) + hows[how]);
        }
        return say("wait" + s(set()));
    }
};

uint64_t reported(const std::string &path, const std::string &key)
{
    std::ifstream lines(path);
    uint64_t sum = 0;
    for (std::string line; std::getline(lines, line);) {
        std::stringstream words(line);
        std::string word;
        uint64_t value = 0;
        if (words >> word >> value && word == key)
            sum += value;
    }
    return sum;
}

LastWords last_words;

} // namespace

TEST(Differential, TheSameCallsHaveTheSameAnswers)
{
    if (getenv("RINGPOLL_TEST_PRELOAD") == nullptr)
        GTEST_SKIP() << "compares with the shim: tests/stream/run.sh PROGRAM shim";
    Comparison comparison("shim", [] { return std::make_unique<EdgeJudge>(); });
    const char *file = getenv("RINGPOLL_DIFFERENTIAL_SCRIPT");
    if (file != nullptr && *file != 0) {
        Script script = script_from(file);
        ASSERT_FALSE(script.empty()) << file;
        bool differs = comparison.real_difference(script);
        comparison.show(script);
        EXPECT_FALSE(differs);
        return;
    }
    char stats[] = "/tmp/ringpoll-stats-XXXXXX";
    int stats_fd = mkstemp(stats);
    ASSERT_GE(stats_fd, 0);
    ::close(stats_fd);
    comparison.other.stats = stats;

    uint64_t seed = number_from("RINGPOLL_DIFFERENTIAL_SEED", (uint64_t)now_ns(CLOCK_REALTIME) / 1000);
    uint64_t wanted = number_from("RINGPOLL_DIFFERENTIAL_OPS", 30000), played = 0, episodes = 0;
    const char *profile = getenv("RINGPOLL_PROFILE");
    printf("kernel against the shim, profile %s, seed %llu, %llu operations\n", profile ? profile : "(none)",
           (unsigned long long)seed, (unsigned long long)wanted);
    fflush(stdout);
    last_words.begin(seed, wanted);
    Generator generator(seed);
    int differences = 0;
    while (played < wanted && differences < 3) {
        Script script = generator.episode();
        played += script.size();
        episodes++;
        if (comparison.first_difference(script) < 0) {
            if (!comparison.kernel_log.empty() && comparison.kernel_log.back() == "HANGS") {
                comparison.show(script);
                ADD_FAILURE() << "the script hangs the kernel's world";
            }
            continue;
        }
        if (!comparison.real_difference(script))
            continue;
        differences++;
        last_words.difference(played - script.size() + 1, script, comparison);
        Script small = comparison.minimise(script);
        if (comparison.real_difference(small))
            script = small;
        printf("difference %d, episode %llu of seed %llu:\n", differences, (unsigned long long)episodes,
               (unsigned long long)seed);
        comparison.show(script);
        fflush(stdout);
        ADD_FAILURE() << "the kernel and the shim differ";
    }
    comparison.other.finish();
    uint64_t adoptions = reported(stats, "adoptions"), received = reported(stats, "received"),
             batched = reported(stats, "sends_batched"), saved = reported(stats, "calls_saved");
    unlink(stats);
    printf("%llu operations in %llu episodes, %d differences, %llu unsettled, %llu edges explained; %llu adoptions, %llu receives, %llu "
           "batched sends, %llu calls saved\n",
           (unsigned long long)played, (unsigned long long)episodes, differences,
           (unsigned long long)comparison.unsettled, (unsigned long long)comparison.explained,
           (unsigned long long)adoptions, (unsigned long long)received,
           (unsigned long long)batched, (unsigned long long)saved);
    EXPECT_LT(comparison.unsettled, episodes / 20 + 3) << "the kernel often disagrees with itself";
    const char *expected = getenv("RINGPOLL_TEST_EXPECT");
    if (differences == 0 && expected != nullptr && strcmp(expected, "adopt") == 0) {
        EXPECT_GT(adoptions, episodes / 4) << "this run was to be about adopted sockets";
        if (profile != nullptr && strcmp(profile, "throughput") == 0) {
            EXPECT_GT(batched, episodes / 4) << "this run was to be about batched sends, too";
        }
    }
}

int main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "--serve") == 0) {
        signal(SIGPIPE, on_broken_pipe);
        return serve([] { return std::make_unique<World>(); }, [] { return Held(); });
    }
    signal(SIGPIPE, SIG_IGN);
    ::testing::InitGoogleTest(&argc, argv);
    int failed = RUN_ALL_TESTS();
    last_words.say(failed != 0);
    return failed;
}
