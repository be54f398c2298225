/* SPDX-License-Identifier: MIT
 *
 * Raw system calls: each answers what libc's wrapper would, as -errno.
 */
#include <errno.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

extern "C" {
#include "abi.h"
#include "sys.h"
}

namespace {

class Limit {
public:
    explicit Limit(rlim_t files)
    {
        getrlimit(RLIMIT_NOFILE, &saved_);
        struct rlimit tight = saved_;
        tight.rlim_cur = files;
        setrlimit(RLIMIT_NOFILE, &tight);
    }
    ~Limit() { setrlimit(RLIMIT_NOFILE, &saved_); }

private:
    struct rlimit saved_;
};

/* i386's first mmap takes a structure. */
#ifdef SYS_mmap2
#define MMAP_NUMBER SYS_mmap2
#else
#define MMAP_NUMBER SYS_mmap
#endif

TEST(Sys, PassesSixArgumentsInTheirOrder)
{
    void *address = reinterpret_cast<void *>(rp_sys_call(MMAP_NUMBER, 0, 4096, PROT_READ | PROT_WRITE,
                                                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    ASSERT_LT(reinterpret_cast<unsigned long>(address), -4095ul);
    *static_cast<char *>(address) = 1;
    EXPECT_EQ(rp_sys_call(SYS_munmap, reinterpret_cast<long>(address), 4096, 0, 0, 0, 0), 0);
    EXPECT_EQ(rp_sys_call(SYS_getpid, 0, 0, 0, 0, 0, 0), getpid());
    EXPECT_EQ(rp_sys_call(1000000, 0, 0, 0, 0, 0, 0), -ENOSYS);
}

TEST(Sys, ErrorsAreNegativeAndErrnoIsLeftAlone)
{
    errno = 4711;
    char byte;
    unsigned mode = 99, length = sizeof(int);
    int value;
    EXPECT_EQ(rp_sys_close(-1), -EBADF);
    EXPECT_EQ(rp_sys_dup_high(-1), -EBADF);
    EXPECT_EQ(rp_sys_dup3(-1, 100, 0), -EBADF);
    EXPECT_EQ(rp_sys_fcntl(-1, F_GETFL, 0), -EBADF);
    EXPECT_EQ(rp_sys_eventfd(0, -1), -EINVAL);
    EXPECT_EQ(rp_sys_read(-1, &byte, 1), -EBADF);
    EXPECT_EQ(rp_sys_write(-1, &byte, 1), -EBADF);
    EXPECT_EQ(rp_sys_getsockopt(-1, SOL_SOCKET, SO_TYPE, &value, &length), -EBADF);
    EXPECT_EQ(rp_sys_getpeername_connected(-1), -EBADF);
    EXPECT_EQ(rp_sys_fstat_mode(-1, &mode), -EBADF);
    EXPECT_EQ(mode, 99u) << "out parameters are left alone on failure";
    EXPECT_EQ(rp_sys_epoll_create1(-1), -EINVAL);
    EXPECT_EQ(rp_sys_epoll_ctl(-1, EPOLL_CTL_ADD, 0, nullptr), -EFAULT);
    EXPECT_EQ(rp_sys_epoll_wait(-1, nullptr, 1, nullptr, nullptr) < 0, true);
    EXPECT_EQ(rp_sys_poll(nullptr, 1, nullptr), -EFAULT);
    EXPECT_EQ(errno, 4711);
}

TEST(Sys, ItsDescriptorsStandAboveTheProgramsAndAreCloseOnExec)
{
    int low = open("/dev/null", O_RDONLY | O_CLOEXEC);
    ASSERT_GE(low, 0);
    int high = rp_sys_dup_high(low);
    ASSERT_GE(high, 960);
    EXPECT_EQ(fcntl(high, F_GETFD), FD_CLOEXEC);
    EXPECT_EQ(fcntl(low, F_GETFD), -1) << "the low number is free again";
    EXPECT_EQ(rp_sys_close(high), 0);
}

TEST(Sys, UnderAnyLimitOnFilesThereIsADescriptor)
{
    for (rlim_t limit : {64, 100, 128, 256, 512, 1000, 1024, 1100}) {
        Limit tight(limit);
        int low = open("/dev/null", O_RDONLY | O_CLOEXEC);
        ASSERT_GE(low, 0);
        int high = rp_sys_dup_high(low);
        EXPECT_GT(high, low) << limit;
        EXPECT_LT(high, static_cast<int>(limit));
        EXPECT_GE(high, static_cast<int>(limit / 2)) << "under " << limit << " files";
        rp_sys_close(high);
    }
}

TEST(Sys, WhenItsHeightsAreTakenALowerOneDoes)
{
    Limit tight(64);
    std::vector<int> taken;
    int probe = open("/dev/null", O_RDONLY | O_CLOEXEC);
    for (int fd = fcntl(probe, F_DUPFD_CLOEXEC, 40); fd >= 0; fd = fcntl(probe, F_DUPFD_CLOEXEC, 40))
        taken.push_back(fd);
    int moved = rp_sys_dup_high(dup(probe));
    EXPECT_GE(moved, 3);
    EXPECT_LT(moved, 40);
    rp_sys_close(moved);
    for (int fd : taken)
        close(fd);
    close(probe);
}

TEST(Sys, WhenAllAreTakenItIsEmfileAndTheOldOneIsClosed)
{
    std::vector<int> taken;
    int last;
    {
        Limit tight(64);
        for (int fd = open("/dev/null", O_RDONLY | O_CLOEXEC); fd >= 0; fd = dup(taken.back()))
            taken.push_back(fd);
        last = taken.back();
        EXPECT_EQ(rp_sys_dup_high(last), -EMFILE);
        EXPECT_EQ(fcntl(last, F_GETFD), -1);
    }
    for (int fd : taken)
        if (fd != last)
            close(fd);
}

TEST(Sys, ConnectedIsToldFromNotConnected)
{
    int pair[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    EXPECT_EQ(rp_sys_getpeername_connected(pair[0]), 1);
    close(pair[0]);
    close(pair[1]);
    int alone = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    EXPECT_EQ(rp_sys_getpeername_connected(alone), 0);
    close(alone);
    int file = open("/dev/null", O_RDONLY | O_CLOEXEC);
    EXPECT_EQ(rp_sys_getpeername_connected(file), -ENOTSOCK);
    unsigned mode = 0;
    EXPECT_EQ(rp_sys_fstat_mode(file, &mode), 0);
    EXPECT_TRUE(S_ISCHR(mode));
    close(file);
}

TEST(Sys, EpollWaitTakesItsTimeToTheNanosecondAndNoLess)
{
    int epfd = rp_sys_epoll_create1(EPOLL_CLOEXEC);
    ASSERT_GE(epfd, 0);
    struct epoll_event event;
    for (long ns : {0L, 1L, 1500000L, 999999L, 5000000L}) {
        struct timespec time = {0, ns};
        uint64_t before = rp_sys_now_ns();
        EXPECT_EQ(rp_sys_epoll_wait(epfd, &event, 1, &time, nullptr), 0);
        EXPECT_GE(rp_sys_now_ns() - before, static_cast<uint64_t>(ns));
    }
    struct timespec wrong = {0, 1000000000};
    EXPECT_EQ(rp_sys_epoll_wait(epfd, &event, 1, &wrong, nullptr), -EINVAL);
    wrong = {-1, 0};
    EXPECT_EQ(rp_sys_epoll_wait(epfd, &event, 1, &wrong, nullptr), -EINVAL);

    int ready = rp_sys_eventfd(1, EFD_CLOEXEC);
    struct epoll_event interest = {};
    interest.events = EPOLLIN;
    interest.data.u64 = 0x123456789abcdefull;
    EXPECT_EQ(rp_sys_epoll_ctl(epfd, EPOLL_CTL_ADD, ready, &interest), 0);
    EXPECT_EQ(rp_sys_epoll_wait(epfd, &event, 1, nullptr, nullptr), 1);
    EXPECT_EQ(event.data.u64, 0x123456789abcdefull);
    rp_sys_close(ready);
    rp_sys_close(epfd);
}

TEST(Sys, PollLeavesItsTimeoutAlone)
{
    int ready = rp_sys_eventfd(1, EFD_CLOEXEC);
    struct pollfd poll = {ready, POLLIN, 0};
    const struct timespec time = {5, 6};
    EXPECT_EQ(rp_sys_poll(&poll, 1, &time), 1);
    EXPECT_EQ(poll.revents, POLLIN);
    EXPECT_EQ(time.tv_sec, 5);
    EXPECT_EQ(time.tv_nsec, 6);
    EXPECT_EQ(rp_sys_poll(&poll, 1, nullptr), 1);
    rp_sys_close(ready);
}

TEST(Sys, PagesAreZeroedAndWipedInAChildWhereAskedFor)
{
    auto *plain = static_cast<unsigned *>(rp_sys_pages(8192));
    auto *wiped = static_cast<unsigned *>(rp_sys_pages_wipe_on_fork(4096));
    ASSERT_NE(plain, nullptr);
    ASSERT_NE(wiped, nullptr);
    for (int i = 0; i < 2048; i++)
        ASSERT_EQ(plain[i], 0u);
    plain[0] = wiped[0] = 42;
    pid_t child = fork();
    if (child == 0)
        _exit(plain[0] == 42 && wiped[0] == 0 ? 0 : 1);
    int status = -1;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_EQ(status, 0);
    EXPECT_EQ(wiped[0], 42u);
    rp_sys_pages_free(plain, 8192);
    rp_sys_pages_free(wiped, 4096);
    rp_sys_pages_free(nullptr, 4096);
    EXPECT_EQ(rp_sys_pages(SIZE_MAX / 8 * 7), nullptr);
}

TEST(Sys, AFutexHoldsAndWakesAll)
{
    uint32_t word = 1;
    rp_sys_futex_wait(&word, 0); /* another value: comes back at once */
    std::atomic<int> woken{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; i++)
        threads.emplace_back([&] {
            while (__atomic_load_n(&word, __ATOMIC_ACQUIRE) == 1)
                rp_sys_futex_wait(&word, 1);
            woken++;
        });
    __atomic_store_n(&word, 2, __ATOMIC_RELEASE);
    rp_sys_futex_wake_all(&word);
    for (std::thread &thread : threads)
        thread.join();
    EXPECT_EQ(woken, 4);
}

TEST(Sys, AFutexTellsThatItsTimeIsUp)
{
    uint32_t word = 1;
    EXPECT_TRUE(rp_sys_futex_wait_for(&word, 0, 1000)); /* another value */
    EXPECT_FALSE(rp_sys_futex_wait_for(&word, 1, 0));
    std::thread waker([&word] {
        __atomic_store_n(&word, 2, __ATOMIC_RELEASE);
        rp_sys_futex_wake_all(&word);
    });
    while (__atomic_load_n(&word, __ATOMIC_ACQUIRE) == 1)
        EXPECT_TRUE(rp_sys_futex_wait_for(&word, 1, 1000));
    waker.join();
}

TEST(Sys, NamesThisThreadAndProcess)
{
    EXPECT_EQ(rp_sys_getpid(), getpid());
    EXPECT_EQ(rp_sys_gettid(), static_cast<int>(syscall(SYS_gettid)));
    uint64_t before = rp_sys_now_ns();
    EXPECT_LE(before, rp_sys_now_ns());
}

} // namespace
