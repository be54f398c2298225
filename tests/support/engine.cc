/* SPDX-License-Identifier: MIT
 *
 * The engines. The one thing to know here is the order around a close: an
 * engine reports (on_closing) before it closes, because io_uring pins the file
 * of a poll in flight, and forgets the fd before both, because another thread
 * may be given the same number the moment it is free.
 */
#include "asleep.h"
#include "engine.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <fstream>
#include <sstream>

#ifndef TESTS_WITHOUT_RINGPOLL
#include <ringpoll/ringpoll.h>
#endif

namespace support {

namespace {

long result_of(long value)
{
    return value < 0 ? -errno : value;
}

/* ------------------------------------------------- libc's calls: kernel, shim */

class LibcEngine : public Engine {
public:
    explicit LibcEngine(bool shim) : shim_(shim) {}
    const char *name() const override { return shim_ ? "shim" : "kernel"; }
    bool ringpoll() const override { return shim_; }

    int create(int flags) override
    {
        int fd = (int)result_of(epoll_create1(flags));
        if (fd >= 0) {
            std::lock_guard<std::mutex> guard(lock_);
            open_[fd] = true;
        }
        return fd;
    }

    int ctl(int epfd, int op, int fd, struct epoll_event *event) override
    {
        return (int)result_of(epoll_ctl(epfd, op, fd, event));
    }

    int wait(int epfd, struct epoll_event *events, int max, const struct timespec *timeout,
             const sigset_t *mask) override
    {
        return (int)result_of(epoll_pwait2(epfd, events, max, timeout, mask));
    }

    int wait_ms(int epfd, struct epoll_event *events, int max, int timeout_ms, const sigset_t *mask) override
    {
        if (mask != nullptr)
            return (int)result_of(epoll_pwait(epfd, events, max, timeout_ms, mask));
        return (int)result_of(epoll_wait(epfd, events, max, timeout_ms));
    }

private:
    bool shim_;
};

/* --------------------------------------------------------------- native API */

#ifndef TESTS_WITHOUT_RINGPOLL

class NativeEngine : public Engine {
public:
    NativeEngine(const char *name, uint32_t flags, uint32_t sq_thread_idle_ms = 0)
        : name_(name), flags_(flags), sq_thread_idle_ms_(sq_thread_idle_ms)
    {
    }
    const char *name() const override { return name_; }
    bool native() const override { return true; }

    int create(int flags) override
    {
        struct ringpoll_options options = {};
        options.size = sizeof options;
        options.flags = flags_;
        options.sq_thread_idle_ms = sq_thread_idle_ms_;
        if (flags_ & RINGPOLL_SQ_AFF)
            options.sq_thread_cpu = first_cpu();
        if (flags & EPOLL_CLOEXEC)
            options.flags |= RINGPOLL_CLOEXEC;
        if (flags & ~EPOLL_CLOEXEC)
            options.flags |= 1u << 31; /* a bit that has no meaning, as in the caller's flags */
        int fd = ringpoll_create(&options);
        if (fd >= 0) {
            std::lock_guard<std::mutex> guard(lock_);
            open_[fd] = true;
        }
        return fd;
    }

    int ctl(int epfd, int op, int fd, struct epoll_event *event) override
    {
        return ringpoll_ctl(epfd, op, fd, event);
    }

    int wait(int epfd, struct epoll_event *events, int max, const struct timespec *timeout,
             const sigset_t *mask) override
    {
        return ringpoll_wait(epfd, events, max, timeout, mask);
    }

    int wait_ms(int epfd, struct epoll_event *events, int max, int timeout_ms, const sigset_t *mask) override
    {
        struct timespec timeout = {timeout_ms / 1000, (timeout_ms % 1000) * 1000000L};
        return ringpoll_wait(epfd, events, max, timeout_ms < 0 ? nullptr : &timeout, mask);
    }

    void before_exec() override { ringpoll_exec_prepare(); }
    void will_be_polled(int set) override { ringpoll_demote(set); }

    Held held() const override
    {
        struct ringpoll_stats stats = {};
        stats.size = sizeof stats;
        Held held;
        if (ringpoll_get_stats(-1, &stats) != 0)
            return held;
        held.sets = stats.sets;
        held.rings = stats.rings;
        held.ops_in_flight = stats.ops_in_flight;
        held.polls_armed = stats.polls_armed;
        held.rings_made = stats.rings_made;
        held.sets_made = stats.sets_made;
        held.cqes = stats.cqes;
        held.cq_overflows = stats.cq_overflows;
        held.counted = true;
        return held;
    }

protected:
    void on_opened(int fd, Kind kind, bool nonblock, bool connected) override
    {
        bool declares = (flags_ & RINGPOLL_DECLARED) && (kind == Kind::tcp || kind == Kind::unix_stream) &&
                        made_.fetch_add(1) % 3 != 0;
        if (!tracked() && !declares)
            return;
        uint32_t word = RINGPOLL_FD_OTHER;
        if (kind == Kind::tcp)
            word = RINGPOLL_FD_TCP;
        else if (kind == Kind::unix_stream)
            word = RINGPOLL_FD_UNIX;
        else if (kind == Kind::pipe)
            word = RINGPOLL_FD_PIPE;
        else if (kind == Kind::eventfd)
            word = RINGPOLL_FD_EVENTFD;
        if (nonblock)
            word |= RINGPOLL_FD_NONBLOCK;
        if (connected)
            word |= RINGPOLL_FD_CONNECTED;
        if (declares) {
            word |= RINGPOLL_FD_DECLARED;
            std::lock_guard<std::mutex> guard(declared_lock_);
            declared_.insert(fd);
        }
        ringpoll_fd_opened(fd, word);
    }
    void on_connected(int fd) override
    {
        if (reports(fd))
            ringpoll_fd_connected(fd);
    }
    void on_nonblock(int fd, bool on) override
    {
        if (reports(fd))
            ringpoll_fd_nonblock(fd, on);
    }
    /* An untracked caller too owes the closes, and whatever lets somebody else
     * hold the file: see the head of ringpoll.h. */
    void on_closing(int fd) override
    {
        ringpoll_fd_closing(fd);
        std::lock_guard<std::mutex> guard(declared_lock_);
        declared_.erase(fd);
    }
    void on_closing_range(unsigned first, unsigned last) override { ringpoll_fd_closing_range(first, last); }
    void on_duplicated(int from, int to) override { ringpoll_fd_duplicated(from, to); }
    void on_shared(int fd) override { ringpoll_fd_shared(fd); }
    void on_leave(int fd) override
    {
        if (reports(fd))
            ringpoll_fd_leave(fd);
    }
    void on_read(int fd, size_t asked, long result) override
    {
        if (reports(fd))
            ringpoll_fd_read(fd, asked, result);
    }
    void on_fork_prepare() override { ringpoll_fork_prepare(); }
    void on_fork_parent() override { ringpoll_fork_parent(); }
    void on_fork_child() override { ringpoll_fork_child(); }

private:
    bool tracked() const { return (flags_ & RINGPOLL_TRACKED) != 0; }
    bool reports(int fd)
    {
        if (tracked())
            return true;
        std::lock_guard<std::mutex> guard(declared_lock_);
        return declared_.count(fd) != 0;
    }
    static uint32_t first_cpu()
    {
        cpu_set_t allowed;
        sched_getaffinity(0, sizeof allowed, &allowed);
        uint32_t cpu = 0;
        while (cpu < CPU_SETSIZE && !CPU_ISSET(cpu, &allowed))
            cpu++;
        return cpu;
    }

    const char *name_;
    uint32_t flags_;
    uint32_t sq_thread_idle_ms_;
    /* "declared": two of three sockets are. */
    std::atomic<unsigned> made_{0};
    std::mutex declared_lock_;
    std::set<int> declared_;
};

#endif

} // namespace

std::unique_ptr<Engine> make_engine(const std::string &name)
{
    if (name == "kernel" || name == "shim")
        return std::make_unique<LibcEngine>(name == "shim");
#ifndef TESTS_WITHOUT_RINGPOLL
    if (name == "native")
        return std::make_unique<NativeEngine>("native", RINGPOLL_TRACKED);
    if (name == "untracked")
        return std::make_unique<NativeEngine>("untracked", 0);
    if (name == "declared")
        return std::make_unique<NativeEngine>("declared", RINGPOLL_DECLARED | RINGPOLL_ADOPT);
    if (name == "anyring")
        return std::make_unique<NativeEngine>("anyring", RINGPOLL_TRACKED | RINGPOLL_ANY_RING);
    if (name == "sqpoll")
        return std::make_unique<NativeEngine>("sqpoll", RINGPOLL_TRACKED | RINGPOLL_SQPOLL);
    if (name == "sqaff") /* whose thread shares a processor with the test, and mostly sleeps */
        return std::make_unique<NativeEngine>("sqaff", RINGPOLL_TRACKED | RINGPOLL_SQPOLL | RINGPOLL_SQ_AFF, 1);
#endif
    return nullptr;
}

std::vector<std::string> chosen_engines()
{
    const char *text = getenv("RINGPOLL_TEST_ENGINE");
    std::stringstream words(text != nullptr && *text != 0 ? text : "kernel");
    std::vector<std::string> engines;
    for (std::string word; std::getline(words, word, ',');)
        engines.push_back(word);
    return engines;
}

bool shim_is_loaded()
{
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);)
        if (line.find("libringpoll-preload") != std::string::npos)
            return true;
    return false;
}

/* -------------------------------------------------------------- making fds */

int Engine::made(int fd, Kind kind, unsigned nonblock, bool connected)
{
    if (fd < 0)
        return -errno;
    {
        std::lock_guard<std::mutex> guard(lock_);
        open_[fd] = false;
    }
    on_opened(fd, kind, nonblock != 0, connected);
    return fd;
}

int Engine::copied(int from, int to)
{
    std::lock_guard<std::mutex> guard(lock_);
    auto found = open_.find(from);
    open_[to] = found != open_.end() && found->second;
    return to;
}

void Engine::forget(int fd)
{
    std::lock_guard<std::mutex> guard(lock_);
    open_.erase(fd);
}

std::vector<int> Engine::still_open()
{
    std::lock_guard<std::mutex> guard(lock_);
    std::vector<int> fds;
    for (auto &entry : open_)
        fds.push_back(entry.first);
    return fds;
}

bool Engine::is_set(int fd)
{
    std::lock_guard<std::mutex> guard(lock_);
    auto found = open_.find(fd);
    return found != open_.end() && found->second;
}

static Kind socket_kind(int domain, int type, int protocol)
{
    if ((type & 0xf) != SOCK_STREAM)
        return Kind::other;
    if (domain == AF_UNIX)
        return Kind::unix_stream;
    if ((domain == AF_INET || domain == AF_INET6) && (protocol == 0 || protocol == 6))
        return Kind::tcp;
    return Kind::other;
}

int Engine::socket(int domain, int type, int protocol)
{
    return made(::socket(domain, type, protocol), socket_kind(domain, type, protocol), type & SOCK_NONBLOCK,
                false);
}

int Engine::socketpair(int domain, int type, int out[2])
{
    if (::socketpair(domain, type, 0, out) != 0)
        return -errno;
    made(out[0], socket_kind(domain, type, 0), type & SOCK_NONBLOCK, true);
    made(out[1], socket_kind(domain, type, 0), type & SOCK_NONBLOCK, true);
    return 0;
}

int Engine::pipe(int out[2], int flags)
{
    if (pipe2(out, flags) != 0)
        return -errno;
    made(out[0], Kind::pipe, flags & O_NONBLOCK, false);
    made(out[1], Kind::pipe, flags & O_NONBLOCK, false);
    return 0;
}

int Engine::eventfd(unsigned initial, int flags)
{
    return made(::eventfd(initial, flags), flags & EFD_SEMAPHORE ? Kind::other : Kind::eventfd,
                flags & EFD_NONBLOCK, false);
}

int Engine::timerfd(int clock, int flags)
{
    return made(timerfd_create(clock, flags), Kind::other, flags & TFD_NONBLOCK, false);
}

int Engine::signalfd(const sigset_t *mask, int flags)
{
    return made(::signalfd(-1, mask, flags), Kind::other, flags & SFD_NONBLOCK, false);
}

int Engine::inotify(int flags)
{
    return made(inotify_init1(flags), Kind::other, flags & IN_NONBLOCK, false);
}

int Engine::open(const char *path, int flags, int mode)
{
    return made(::open(path, flags, mode), Kind::other, flags & O_NONBLOCK, false);
}

int Engine::accept(int listener, int flags)
{
    struct sockaddr_storage address;
    socklen_t length = sizeof address;
    int fd = accept4(listener, (struct sockaddr *)&address, &length, flags);
    Kind kind = Kind::other;
    if (fd >= 0) {
        int domain = 0, type = 0, protocol = 0;
        socklen_t size = sizeof domain;
        getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size);
        getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size);
        getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &size);
        kind = socket_kind(domain, type, protocol);
    }
    return made(fd, kind, flags & SOCK_NONBLOCK, true);
}

int Engine::connect(int fd, const struct sockaddr *address, socklen_t length)
{
    int result = (int)result_of(::connect(fd, address, length));
    if (result == 0 || result == -EINPROGRESS)
        on_connected(fd);
    return result;
}

int Engine::listen(int fd, int backlog)
{
    int result = (int)result_of(::listen(fd, backlog));
    if (result == 0)
        on_leave(fd);
    return result;
}

int Engine::set_nonblock(int fd, bool on)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0)
        return -errno;
    int result = (int)result_of(fcntl(fd, F_SETFL, on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK));
    if (result == 0)
        on_nonblock(fd, on);
    return result;
}

/* ------------------------------------------------- duplicating and closing */

int Engine::dup(int fd)
{
    int to = ::dup(fd);
    if (to < 0)
        return -errno;
    on_duplicated(fd, to);
    return copied(fd, to);
}

int Engine::dupfd(int fd, int least)
{
    int to = fcntl(fd, F_DUPFD_CLOEXEC, least);
    if (to < 0)
        return -errno;
    on_duplicated(fd, to);
    return copied(fd, to);
}

int Engine::dup2(int from, int to)
{
    if (from != to && fcntl(from, F_GETFD) >= 0) {
        forget(to);
        on_closing(to);
    }
    if (::dup2(from, to) < 0)
        return -errno;
    if (from != to)
        on_duplicated(from, to);
    return copied(from, to);
}

int Engine::close(int fd)
{
    forget(fd);
    on_closing(fd);
    return (int)result_of(::close(fd));
}

int Engine::close_in_handler(int fd)
{
    on_closing(fd);
    return (int)result_of(::close(fd));
}

int Engine::close_range(unsigned first, unsigned last)
{
    {
        std::lock_guard<std::mutex> guard(lock_);
        open_.erase(open_.lower_bound((int)first), open_.upper_bound((int)(last > INT_MAX ? INT_MAX : last)));
    }
    on_closing_range(first, last);
    return (int)result_of(::close_range(first, last, 0));
}

int Engine::send_fd(int over, int fd, const void *bytes, size_t length)
{
    char control[CMSG_SPACE(sizeof(int))] = {};
    struct iovec vector = {const_cast<void *>(bytes), length};
    struct msghdr message = {};
    message.msg_iov = &vector;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    on_shared(fd);
    return (int)result_of(sendmsg(over, &message, MSG_NOSIGNAL));
}

ssize_t Engine::recv_fd(int over, void *bytes, size_t length, int *ret_fd)
{
    char control[CMSG_SPACE(sizeof(int))] = {};
    struct iovec vector = {bytes, length};
    struct msghdr message = {};
    message.msg_iov = &vector;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    ssize_t count = result_of(recvmsg(over, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT));
    on_read(over, 0, count);
    *ret_fd = -1;
    if (count < 0)
        return count;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header != nullptr;
         header = CMSG_NXTHDR(&message, header))
        if (header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS) {
            int fd;
            memcpy(&fd, CMSG_DATA(header), sizeof fd);
            *ret_fd = made(fd, Kind::other, 0, false);
            on_shared(fd); /* whoever sent it may have it still */
        }
    return count;
}

/* ------------------------------------------------------------ moving bytes */

ssize_t Engine::read(int fd, void *buffer, size_t length)
{
    ssize_t count = result_of(::read(fd, buffer, length));
    on_read(fd, length, count);
    return count;
}

ssize_t Engine::recv(int fd, void *buffer, size_t length, int flags)
{
    ssize_t count = result_of(::recv(fd, buffer, length, flags));
    on_read(fd, flags & ~(MSG_DONTWAIT | MSG_NOSIGNAL) ? 0 : length, count);
    return count;
}

ssize_t Engine::write(int fd, const void *buffer, size_t length)
{
    return result_of(::write(fd, buffer, length));
}

ssize_t Engine::send(int fd, const void *buffer, size_t length, int flags)
{
    return result_of(::send(fd, buffer, length, flags | MSG_NOSIGNAL));
}

int Engine::shutdown(int fd, int how)
{
    return (int)result_of(::shutdown(fd, how));
}

pid_t Engine::fork()
{
    on_fork_prepare();
    pid_t pid = ::fork();
    if (pid == 0) {
        on_fork_child();
        open_.clear();
        return 0;
    }
    on_fork_parent();
    return (pid_t)result_of(pid);
}

/* --------------------------------------------------------------- processes */

std::map<int, std::string> open_fds(size_t *ret_rings)
{
    std::map<int, std::string> fds;
    size_t rings = 0;
    int directory = (int)syscall(SYS_openat, AT_FDCWD, "/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0)
        return fds;
    struct Entry {
        uint64_t inode;
        int64_t offset;
        uint16_t length;
        uint8_t type;
        char name[];
    };
    static thread_local char buffer[32768];
    for (;;) {
        long count = syscall(SYS_getdents64, directory, buffer, sizeof buffer);
        if (count <= 0)
            break;
        for (long at = 0; at < count;) {
            auto *entry = (Entry *)(buffer + at);
            at += entry->length;
            if (entry->name[0] == '.')
                continue;
            int fd = atoi(entry->name);
            if (fd == directory)
                continue;
            char path[64], target[256];
            snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
            ssize_t length = readlink(path, target, sizeof target - 1);
            std::string file = length > 0 ? std::string(target, (size_t)length) : "?";
            if (file == "anon_inode:[io_uring]")
                rings++;
            else
                fds[fd] = file;
        }
    }
    /* Not close(): this number was never reported to anybody. */
    syscall(SYS_close, directory);
    if (ret_rings)
        *ret_rings = rings;
    return fds;
}

pid_t this_thread()
{
    return (pid_t)syscall(SYS_gettid);
}

static bool waits(const std::string &directory)
{
    std::ifstream file(directory + "/syscall");
    std::string word;
    if (!(file >> word) || word == "running")
        return false;
    long number = strtol(word.c_str(), nullptr, 10);
    bool waiting = number == SYS_epoll_pwait || number == SYS_epoll_pwait2 || number == SYS_io_uring_enter;
#ifdef SYS_epoll_wait
    waiting = waiting || number == SYS_epoll_wait;
#endif
    return waiting && is_asleep(directory);
}

static bool until_it_waits_in(const std::string &directory)
{
    int64_t deadline = now_ns() + 20000000000LL;
    while (now_ns() < deadline) {
        if (waits(directory))
            return true;
        sched_yield();
    }
    return false;
}

bool until_it_waits(pid_t tid)
{
    return until_it_waits_in("/proc/self/task/" + std::to_string(tid));
}

bool until_process_waits(pid_t pid)
{
    return until_it_waits_in("/proc/" + std::to_string(pid));
}

bool settle(int fd, short bits, int seconds)
{
    int64_t deadline = now_ns() + seconds * 1000000000LL;
    for (;;) {
        struct pollfd one = {fd, bits, 0};
        int left = (int)((deadline - now_ns()) / 1000000);
        if (left <= 0)
            return false;
        int count = ::poll(&one, 1, left);
        if (count < 0 && errno != EINTR)
            return false;
        if (count == 1 && (one.revents & bits) == bits)
            return true;
        if (count == 1)
            sched_yield();
    }
}

short poll_now(int fd)
{
    struct pollfd one = {fd, POLLIN | POLLOUT | POLLPRI | POLLRDHUP, 0};
    ::poll(&one, 1, 0);
    return one.revents;
}

int64_t now_ns(int clock)
{
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

} // namespace support
