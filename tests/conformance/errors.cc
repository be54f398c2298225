/* SPDX-License-Identifier: MIT
 *
 * The ERRORS sections of epoll_create(2), epoll_ctl(2) and epoll_wait(2), and
 * which error wins where two apply.
 */
#include <sys/resource.h>

#include "conformance.h"

using namespace support;

CONFORMANCE(CreateErrors);
CONFORMANCE(CtlErrors);
CONFORMANCE(WaitErrors);

/* A number that is no open fd. */
static int closed_fd()
{
    int fd = ::dup(0);
    ::close(fd);
    return fd;
}

/* --------------------------------------------------------------- epoll_create */

TEST_P(CreateErrors, UnknownFlagIsEinval)
{
    EXPECT_EQ(e().create(0x4), -EINVAL);
    EXPECT_EQ(e().create(EPOLL_CLOEXEC | 0x1), -EINVAL);
}

TEST_P(CreateErrors, OldCreateWantsAPositiveSize)
{
    if (e().native())
        GTEST_SKIP() << "a call of libc's";
    EXPECT_EQ(epoll_create(0), -1);
    EXPECT_EQ(errno, EINVAL);
    EXPECT_EQ(epoll_create(-1), -1);
    EXPECT_EQ(errno, EINVAL);
    int set = epoll_create(1);
    ASSERT_GE(set, 0);
    EXPECT_EQ(fcntl(set, F_GETFD), 0);
    EXPECT_EQ(::close(set), 0);
}

TEST_P(CreateErrors, CloexecIsSetWhenAskedForOnly)
{
    int with = e().create(EPOLL_CLOEXEC), without = e().create(0);
    EXPECT_EQ(fcntl(with, F_GETFD), FD_CLOEXEC);
    EXPECT_EQ(fcntl(without, F_GETFD), 0);
}

TEST_P(CreateErrors, NoFreeNumberIsEmfile)
{
    struct rlimit before, low;
    ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
    low = before;
    low.rlim_cur = (rlim_t)closed_fd();
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
    int result = e().create(EPOLL_CLOEXEC);
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
    EXPECT_EQ(result, -EMFILE);
}

TEST_P(CreateErrors, TheLastFreeNumberIsEnough)
{
    /* Whatever the library wants for itself, the program's own fd comes first
     * and the set works. */
    int counter = eventfd(1);
    struct rlimit before, low;
    ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
    low = before;
    low.rlim_cur = (rlim_t)closed_fd() + 1;
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
    int set = e().create(EPOLL_CLOEXEC);
    int added = set < 0 ? set : add(set, counter, in_);
    Events events = set < 0 ? Events() : ready(set);
    ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
    ASSERT_GE(set, 0) << strerrorname_np(-set);
    EXPECT_EQ(added, 0);
    EXPECT_EQ(events, (Events{{(uint64_t)counter, in_}}));
}

TEST_P(CreateErrors, TheSetIsAnEpollFdToTheRestOfTheWorld)
{
    int set = new_set();
    char path[64], target[64] = {};
    snprintf(path, sizeof path, "/proc/self/fd/%d", set);
    ASSERT_GT(readlink(path, target, sizeof target - 1), 0);
    EXPECT_STREQ(target, "anon_inode:[eventpoll]");
}

TEST_P(CreateErrors, ASetCannotBeReadOrWritten)
{
    int set = new_set();
    char byte = 0;
    EXPECT_EQ(e().read(set, &byte, 1), -EINVAL);
    EXPECT_EQ(e().write(set, &byte, 1), -EINVAL);
}

/* ------------------------------------------------------------------ epoll_ctl */

TEST_P(CtlErrors, BadSetIsEbadf)
{
    int counter = eventfd(), bad = closed_fd();
    EXPECT_EQ(add(bad, counter, in_), -EBADF);
    EXPECT_EQ(mod(bad, counter, in_), -EBADF);
    EXPECT_EQ(del(bad, counter), -EBADF);
    EXPECT_EQ(add(-1, counter, in_), -EBADF);
    EXPECT_EQ(add(1 << 30, counter, in_), -EBADF);
}

TEST_P(CtlErrors, BadFdIsEbadf)
{
    int set = new_set(), bad = closed_fd();
    EXPECT_EQ(add(set, bad, in_), -EBADF);
    EXPECT_EQ(mod(set, bad, in_), -EBADF);
    EXPECT_EQ(del(set, bad), -EBADF);
    EXPECT_EQ(add(set, -1, in_), -EBADF);
    EXPECT_EQ(add(set, 1 << 30, in_), -EBADF);
    EXPECT_EQ(del(set, INT32_MIN), -EBADF);
}

TEST_P(CtlErrors, AClosedFdIsEbadfEvenIfItWasWatched)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_EQ(ready(set), Events());
    ASSERT_EQ(e().close(p.a), 0);
    EXPECT_EQ(mod(set, p.a, in_), -EBADF);
    EXPECT_EQ(del(set, p.a), -EBADF);
    EXPECT_EQ(add(set, p.a, in_), -EBADF);
}

TEST_P(CtlErrors, ASetThatIsNoSetIsEinval)
{
    int counter = eventfd(), other = eventfd();
    Pair p = unix_stream();
    EXPECT_EQ(add(counter, other, in_), -EINVAL);
    EXPECT_EQ(mod(p.a, other, in_), -EINVAL);
    EXPECT_EQ(del(p.a, other), -EINVAL);
}

TEST_P(CtlErrors, TheSetItselfIsEinval)
{
    int set = new_set();
    EXPECT_EQ(add(set, set, in_), -EINVAL);
    EXPECT_EQ(mod(set, set, in_), -EINVAL);
    EXPECT_EQ(del(set, set), -EINVAL);
}

TEST_P(CtlErrors, ADuplicateOfTheSetItselfIsEinval)
{
    int set = new_set(), copy = e().dup(set);
    EXPECT_EQ(add(set, copy, in_), -EINVAL);
    EXPECT_EQ(add(copy, set, in_), -EINVAL);
}

TEST_P(CtlErrors, UnknownOperationIsEinval)
{
    int set = new_set(), counter = eventfd();
    EXPECT_EQ(ctl(set, 0, counter, in_, 0), -EINVAL);
    EXPECT_EQ(ctl(set, 4, counter, in_, 0), -EINVAL);
    EXPECT_EQ(ctl(set, -1, counter, in_, 0), -EINVAL);
    EXPECT_EQ(ctl(set, 1000000, counter, in_, 0), -EINVAL);
    ASSERT_EQ(add(set, counter, in_), 0);
    EXPECT_EQ(ctl(set, 77, counter, in_, 0), -EINVAL);
}

TEST_P(CtlErrors, TwiceIsEexist)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_EQ(add(set, p.a, out_), -EEXIST);
    EXPECT_EQ(ready(set), Events()) << "the first registration stands";
    EXPECT_EQ(add(set, p.a, out_), -EEXIST);
}

TEST_P(CtlErrors, WhatIsNotThereIsEnoent)
{
    int set = new_set();
    Pair p = tcp();
    EXPECT_EQ(mod(set, p.a, in_), -ENOENT);
    EXPECT_EQ(del(set, p.a), -ENOENT);
    ASSERT_EQ(add(set, p.a, in_), 0);
    ASSERT_EQ(del(set, p.a), 0);
    EXPECT_EQ(mod(set, p.a, in_), -ENOENT);
    EXPECT_EQ(del(set, p.a), -ENOENT);
}

TEST_P(CtlErrors, ARegularFileIsEperm)
{
    int set = new_set();
    char path[] = "/tmp/conformance.XXXXXX";
    int made = mkstemp(path);
    ASSERT_GE(made, 0);
    int file = e().open(path, O_RDWR | O_CLOEXEC);
    unlink(path);
    ::close(made);
    EXPECT_EQ(add(set, file, in_), -EPERM);
    EXPECT_EQ(mod(set, file, in_), -EPERM);
    EXPECT_EQ(del(set, file), -EPERM);
}

TEST_P(CtlErrors, ADirectoryIsEperm)
{
    int set = new_set();
    EXPECT_EQ(add(set, e().open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC), in_), -EPERM);
}

TEST_P(CtlErrors, DevNullIsEperm)
{
    int set = new_set();
    EXPECT_EQ(add(set, e().open("/dev/null", O_RDWR | O_CLOEXEC), in_), -EPERM);
}

TEST_P(CtlErrors, APathOnlyFdIsEbadf)
{
    int set = new_set();
    EXPECT_EQ(add(set, e().open("/", O_PATH | O_CLOEXEC), in_), -EBADF);
}

TEST_P(CtlErrors, NullEventIsEfault)
{
    int set = new_set(), counter = eventfd();
    EXPECT_EQ(e().ctl(set, EPOLL_CTL_ADD, counter, nullptr), -EFAULT);
    ASSERT_EQ(add(set, counter, in_), 0);
    EXPECT_EQ(e().ctl(set, EPOLL_CTL_MOD, counter, nullptr), -EFAULT);
    EXPECT_EQ(e().ctl(set, EPOLL_CTL_DEL, counter, nullptr), 0);
}

TEST_P(CtlErrors, LowPointerIsEfault)
{
    int set = new_set(), counter = eventfd();
    auto *low = (struct epoll_event *)(uintptr_t)16;
    EXPECT_EQ(e().ctl(set, EPOLL_CTL_ADD, counter, low), -EFAULT);
    ASSERT_EQ(add(set, counter, in_), 0);
    EXPECT_EQ(e().ctl(set, EPOLL_CTL_MOD, counter, low), -EFAULT);
    EXPECT_EQ(e().ctl(set, EPOLL_CTL_DEL, counter, low), 0);
}

TEST_P(CtlErrors, EfaultWinsOverEverything)
{
    EXPECT_EQ(e().ctl(closed_fd(), EPOLL_CTL_ADD, closed_fd(), nullptr), -EFAULT);
    EXPECT_EQ(e().ctl(eventfd(), EPOLL_CTL_MOD, eventfd(), nullptr), -EFAULT);
    EXPECT_EQ(e().ctl(closed_fd(), 77, closed_fd(), nullptr), -EFAULT) << "only DEL needs no event";
}

TEST_P(CtlErrors, EbadfWinsOverEinvalAndEperm)
{
    int counter = eventfd();
    int directory = e().open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int bad = closed_fd();
    EXPECT_EQ(ctl(counter, 77, bad, in_, 0), -EBADF);
    EXPECT_EQ(add(bad, bad, in_), -EBADF);
    EXPECT_EQ(add(bad, directory, in_), -EBADF);
}

TEST_P(CtlErrors, EpermWinsOverEinval)
{
    int set = new_set();
    int directory = e().open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    EXPECT_EQ(ctl(set, 77, directory, in_, 0), -EPERM);
    EXPECT_EQ(add(eventfd(), directory, in_), -EPERM);
    EXPECT_EQ(add(set, directory, in_ | once_ | exclusive_), -EPERM);
}

TEST_P(CtlErrors, EinvalOfExclusiveWinsOverEexist)
{
    int set = new_set(), counter = eventfd();
    ASSERT_EQ(add(set, counter, in_), 0);
    EXPECT_EQ(add(set, counter, in_ | rdhup_ | exclusive_), -EINVAL);
    EXPECT_EQ(add(set, counter, in_ | exclusive_), -EEXIST);
    EXPECT_EQ(mod(set, counter, in_ | exclusive_), -EINVAL);
    EXPECT_EQ(mod(set, eventfd(), in_ | exclusive_), -EINVAL) << "MOD refuses it before it looks";
}

TEST_P(CtlErrors, UnknownEventBitsAreIgnored)
{
    int set = new_set();
    Pair p = tcp();
    put(p.b, 1, p.a);
    ASSERT_EQ(add(set, p.a, in_ | 0x00800000u | 0x01000000u), 0);
    Events events = ready(set);
    ASSERT_EQ(events.size(), 1u);
    EXPECT_EQ(events[0].events, in_);
}

TEST_P(CtlErrors, AFailedAddLeavesNothingBehind)
{
    int set = new_set();
    Pair p = tcp();
    put(p.b, 1, p.a);
    EXPECT_EQ(add(set, p.a, in_ | once_ | exclusive_), -EINVAL);
    EXPECT_EQ(ready(set), Events());
    EXPECT_EQ(del(set, p.a), -ENOENT);
}

TEST_P(CtlErrors, ErrnoIsLeftAloneOnSuccess)
{
    int set = new_set(), counter = eventfd(1);
    errno = E2BIG;
    ASSERT_EQ(add(set, counter, in_), 0);
    EXPECT_EQ(errno, E2BIG);
    ASSERT_EQ(ready(set).size(), 1u);
    EXPECT_EQ(errno, E2BIG);
    ASSERT_EQ(mod(set, counter, 0), 0);
    ASSERT_EQ(ready(set).size(), 0u);
    ASSERT_EQ(del(set, counter), 0);
    EXPECT_EQ(errno, E2BIG);
}

/* ----------------------------------------------------------------- epoll_wait */

TEST_P(WaitErrors, BadSetIsEbadf)
{
    struct epoll_event event;
    EXPECT_EQ(e().wait_ms(closed_fd(), &event, 1, 0), -EBADF);
    EXPECT_EQ(e().wait_ms(-1, &event, 1, 0), -EBADF);
    EXPECT_EQ(e().wait_ms(1 << 30, &event, 1, 0), -EBADF);
}

TEST_P(WaitErrors, WhatIsNoSetIsEinval)
{
    struct epoll_event event;
    EXPECT_EQ(e().wait_ms(eventfd(), &event, 1, 0), -EINVAL);
    Pair p = tcp();
    EXPECT_EQ(e().wait_ms(p.a, &event, 1, 0), -EINVAL);
}

TEST_P(WaitErrors, MaxeventsMustBePositive)
{
    int set = new_set();
    struct epoll_event event;
    EXPECT_EQ(e().wait_ms(set, &event, 0, 0), -EINVAL);
    EXPECT_EQ(e().wait_ms(set, &event, -1, 0), -EINVAL);
    EXPECT_EQ(e().wait_ms(set, &event, INT32_MIN, 0), -EINVAL);
}

TEST_P(WaitErrors, MaxeventsHasALimit)
{
    /* On the heap: the kernel refuses an array that would reach beyond the
     * process's addresses, and the stack is near their end. */
    int set = new_set();
    auto event = std::make_unique<struct epoll_event>();
    int limit = (int)(INT32_MAX / sizeof(struct epoll_event));
    EXPECT_EQ(e().wait_ms(set, event.get(), INT32_MAX, 0), -EINVAL);
    EXPECT_EQ(e().wait_ms(set, event.get(), limit + 1, 0), -EINVAL);
    EXPECT_EQ(e().wait_ms(set, event.get(), limit, 0), 0);
}

TEST_P(WaitErrors, AHugeMaxeventsWritesOnlyWhatThereIs)
{
    int set = new_set();
    int counter = eventfd(1);
    ASSERT_EQ(add(set, counter, in_), 0);
    auto events = std::make_unique<struct epoll_event[]>(2);
    events[1].events = 0xdeadbeef;
    EXPECT_EQ(e().wait_ms(set, events.get(), 1000000, 0), 1);
    EXPECT_EQ(events[0].data.u64, (uint64_t)counter);
    EXPECT_EQ(events[1].events, 0xdeadbeef);
}

TEST_P(WaitErrors, ABadSetAndABadMaxeventsAreOneOfTheTwoErrors)
{
    /* Kernels differ: EINVAL first for long, EBADF first on 6.18. */
    struct epoll_event event;
    int result = e().wait_ms(closed_fd(), &event, 0, 0);
    EXPECT_TRUE(result == -EINVAL || result == -EBADF) << result;
    EXPECT_EQ(e().wait_ms(eventfd(), &event, 0, 0), -EINVAL);
}

TEST_P(WaitErrors, ABadArrayIsEfaultOnlyWhenThereIsAnEvent)
{
    int set = new_set();
    int counter = eventfd();
    ASSERT_EQ(add(set, counter, in_ | et_), 0);
    EXPECT_EQ(e().wait_ms(set, nullptr, 1, 0), 0);
    kick(counter);
    EXPECT_EQ(e().wait_ms(set, nullptr, 1, 0), -EFAULT);
    EXPECT_EQ(e().wait_ms(set, (struct epoll_event *)(uintptr_t)16, 1, 0), -EFAULT);
    /* And the event is not lost by it. */
    EXPECT_EQ(ready(set), (Events{{(uint64_t)counter, in_}}));
}

TEST_P(WaitErrors, ABadTimespecIsEinval)
{
    int set = new_set();
    struct epoll_event event;
    for (struct timespec bad : {timespec{0, -1}, timespec{0, 1000000000}, timespec{-1, 0}, timespec{1, -5}})
        EXPECT_EQ(e().wait(set, &event, 1, &bad, nullptr), -EINVAL) << bad.tv_sec << " " << bad.tv_nsec;
}

TEST_P(WaitErrors, ABadTimespecWinsOverABadSet)
{
    struct epoll_event event;
    struct timespec bad = {0, -1};
    EXPECT_EQ(e().wait(closed_fd(), &event, 1, &bad, nullptr), -EINVAL);
    EXPECT_EQ(e().wait(eventfd(), &event, 0, &bad, nullptr), -EINVAL);
}

TEST_P(WaitErrors, ABadTimespecWinsOverAReadyEvent)
{
    int set = new_set();
    ASSERT_EQ(add(set, eventfd(1), in_), 0);
    struct epoll_event event;
    struct timespec bad = {0, 2000000000};
    EXPECT_EQ(e().wait(set, &event, 1, &bad, nullptr), -EINVAL);
    EXPECT_EQ(ready(set).size(), 1u);
}

TEST_P(WaitErrors, AnEmptySetIsNoError)
{
    int set = new_set();
    EXPECT_EQ(ready(set), Events());
    EXPECT_EQ(ready(set), Events());
}
