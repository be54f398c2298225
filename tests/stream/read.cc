/* SPDX-License-Identifier: MIT
 *
 * Reads: of all kinds and sizes, with every flag, and the calls that tell what a
 * read would find.
 */
#include "stream.h"

using namespace support;

STREAM(Read, ALL_SHAPES);
STREAM(Unread, ALL_SHAPES);
STREAM(Blocking, LEVEL_SHAPES);

extern "C" {
ssize_t __read_chk(int fd, void *buffer, size_t length, size_t size);
ssize_t __recv_chk(int fd, void *buffer, size_t length, size_t size, int flags);
ssize_t __recvfrom_chk(int fd, void *buffer, size_t length, size_t size, int flags, struct sockaddr *address,
                       socklen_t *address_length);
}

namespace {

/* Every way to read; results as R() gives them. */
struct Call {
    const char *name;
    std::function<long(int, char *, size_t)> read;
};

long by_readv(int fd, char *to, size_t length)
{
    size_t first = length / 3, second = length / 2 - first;
    struct iovec iov[] = {{to, first}, {to, 0}, {to + first, second}, {to + first + second, length - first - second}};
    return R(readv(fd, iov, 4));
}

long by_recvmsg(int fd, char *to, size_t length)
{
    size_t first = length / 4;
    struct iovec iov[] = {{to, first}, {to + first, length - first}};
    char control[64];
    struct msghdr message = {};
    message.msg_iov = iov;
    message.msg_iovlen = 2;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    message.msg_flags = 0x7777;
    long result = R(recvmsg(fd, &message, 0));
    if (result >= 0) {
        EXPECT_EQ(message.msg_controllen, 0u);
        EXPECT_EQ(message.msg_flags, 0);
    }
    return result;
}

long by_recvmmsg(int fd, char *to, size_t length)
{
    struct iovec iov = {to, length};
    struct mmsghdr messages[1] = {};
    messages[0].msg_hdr.msg_iov = &iov;
    messages[0].msg_hdr.msg_iovlen = 1;
    long result = R(recvmmsg(fd, messages, 1, 0, nullptr));
    return result == 1 ? (long)messages[0].msg_len : result;
}

/* For arguments that the compiler would refuse. */
int volatile_of(int value)
{
    volatile int at = value;
    return at;
}

const Call calls[] = {
    {"read", [](int fd, char *to, size_t length) { return R(read(fd, to, length)); }},
    {"__read_chk", [](int fd, char *to, size_t length) { return R(__read_chk(fd, to, length, length)); }},
    {"recv", [](int fd, char *to, size_t length) { return R(recv(fd, to, length, 0)); }},
    {"recv DONTWAIT", [](int fd, char *to, size_t length) { return R(recv(fd, to, length, MSG_DONTWAIT)); }},
    {"recv NOSIGNAL", [](int fd, char *to, size_t length) { return R(recv(fd, to, length, MSG_NOSIGNAL)); }},
    {"__recv_chk", [](int fd, char *to, size_t length) { return R(__recv_chk(fd, to, length, length, 0)); }},
    {"recvfrom", [](int fd, char *to, size_t length) { return R(recvfrom(fd, to, length, 0, nullptr, nullptr)); }},
    {"__recvfrom_chk",
     [](int fd, char *to, size_t length) { return R(__recvfrom_chk(fd, to, length, length, 0, nullptr, nullptr)); }},
    {"readv", by_readv},
    {"recvmsg", by_recvmsg},
    {"recvmmsg", by_recvmmsg},
    {"syscall read", [](int fd, char *to, size_t length) { return R(syscall(SYS_read, fd, to, length)); }},
    {"syscall recvfrom",
     [](int fd, char *to, size_t length) { return R(syscall(SYS_recvfrom, fd, to, length, 0, nullptr, nullptr)); }},
};

} // namespace

TEST_P(Read, EveryCallTakesWhatIsThereAndNoMore)
{
    begin();
    for (const Call &call : calls)
        FOR_EVERYWHERE(where)
        {
            SCOPED_TRACE(call.name);
            place(100, where);
            memset(bytes_, 0x55, 300);
            EXPECT_BYTES(call.read(a_, bytes_, 250), 100);
            for (int i = 100; i < 300; i++)
                ASSERT_EQ(bytes_[i], 0x55) << "wrote beyond what it read, at " << i;
            EXPECT_EQ(call.read(a_, bytes_, 250), -EAGAIN);
            EXPECT_EQ(state(), 0u);
            rearm();
        }
}

TEST_P(Read, EveryCallTakesPartAndLeavesTheRest)
{
    begin();
    for (const Call &call : calls)
        FOR_EVERYWHERE(where)
        {
            SCOPED_TRACE(call.name);
            place(1000, where);
            EXPECT_BYTES(call.read(a_, bytes_, 1), 1);
            EXPECT_EQ(state(), in_);
            EXPECT_BYTES(call.read(a_, bytes_, 499), 499);
            EXPECT_BYTES(call.read(a_, bytes_, 250), 250);
            EXPECT_EQ(state(), in_);
            EXPECT_BYTES(call.read(a_, bytes_, 250), 250);
            EXPECT_EQ(call.read(a_, bytes_, 250), -EAGAIN);
            EXPECT_EQ(state(), 0u);
            rearm();
        }
}

TEST_P(Read, ManySmallMessagesAreOneStream)
{
    begin();
    FOR_EVERYWHERE(where)
    {
        for (int i = 0; i < 40; i++)
            place(7, where);
        EXPECT_BYTES(R(read(a_, bytes_, 100)), 100);
        EXPECT_BYTES(R(read(a_, bytes_, 1000)), 180);
        EXPECT_EQ(R(read(a_, bytes_, 1)), -EAGAIN);
        rearm();
    }
}

TEST_P(Read, LengthZero)
{
    begin();
    EXPECT_EQ(R(read(a_, bytes_, 0)), 0);
    EXPECT_EQ(R(recv(a_, bytes_, 0, 0)), -EAGAIN);
    struct iovec nothing[2] = {{bytes_, 0}, {nullptr, 0}};
    EXPECT_EQ(R(readv(a_, nothing, 2)), 0);
    EXPECT_EQ(R(readv(a_, nothing, 0)), 0);
    EXPECT_EQ(R(readv(a_, nothing, volatile_of(-1))), -EINVAL);
    FOR_EVERYWHERE(where)
    {
        place(10, where);
        EXPECT_EQ(R(read(a_, bytes_, 0)), 0);
        EXPECT_EQ(R(recv(a_, bytes_, 0, 0)), 0);
        EXPECT_EQ(R(recv(a_, bytes_, 0, MSG_PEEK)), 0);
        EXPECT_EQ(R(readv(a_, nothing, 2)), 0);
        EXPECT_EQ(R(readv(a_, nothing, 0)), 0);
        EXPECT_BYTES(R(read(a_, bytes_, 20)), 10);
        EXPECT_EQ(R(read(a_, bytes_, 20)), -EAGAIN);
        rearm();
    }
}

TEST_P(Read, BadArguments)
{
    begin();
    FOR_EVERYWHERE(where)
    {
        place(10, where);
        struct iovec vector = {bytes_, 5};
        EXPECT_EQ(R(readv(a_, &vector, volatile_of(1025))), -EINVAL);
        EXPECT_EQ(R(readv(a_, &vector, volatile_of(-3))), -EINVAL);
        struct iovec too_long[2] = {{bytes_, 5}, {bytes_, ~(size_t)0}};
        EXPECT_EQ(R(readv(a_, too_long, 2)), -EINVAL);
        struct msghdr message = {};
        message.msg_iov = &vector;
        message.msg_iovlen = 1025;
        EXPECT_EQ(R(recvmsg(a_, &message, 0)), -EMSGSIZE);
        EXPECT_BYTES(R(read(a_, bytes_, 20)), 10);
        rearm();
    }
}

TEST_P(Read, PeekLeavesEverything)
{
    begin();
    FOR_EVERYWHERE(where)
    {
        place(100, where);
        for (size_t count : {1, 30, 50, 100, 1000}) {
            memset(bytes_, 0, 1000);
            EXPECT_EQ(R(recv(a_, bytes_, count, MSG_PEEK)), (long)std::min<size_t>(count, 100));
            EXPECT_TRUE(coming(std::min<size_t>(count, 100)) == std::string(bytes_, std::min<size_t>(count, 100)));
        }
        EXPECT_EQ(state(), in_);
        EXPECT_BYTES(R(read(a_, bytes_, 40)), 40);
        EXPECT_EQ(R(recv(a_, bytes_, 1000, MSG_PEEK | MSG_DONTWAIT)), 60);
        EXPECT_TRUE(coming(60) == std::string(bytes_, 60));
        struct iovec iov[] = {{bytes_, 10}, {bytes_ + 10, 20}};
        struct msghdr message = {};
        message.msg_iov = iov;
        message.msg_iovlen = 2;
        EXPECT_EQ(R(recvmsg(a_, &message, MSG_PEEK)), 30);
        EXPECT_TRUE(coming(30) == std::string(bytes_, 30));
        EXPECT_BYTES(R(read(a_, bytes_, 1000)), 60);
        EXPECT_EQ(R(recv(a_, bytes_, 1, MSG_PEEK)), -EAGAIN);
        EXPECT_EQ(state(), 0u);
        rearm();
    }
}

TEST_P(Read, TruncThrowsBytesOfTcpAway)
{
    begin();
    FOR_EVERYWHERE(where)
    {
        place(100, where);
        memset(bytes_, 0x55, 100);
        if (tcp()) {
            EXPECT_EQ(R(recv(a_, bytes_, 30, MSG_TRUNC)), 30);
            expected(30);
            EXPECT_EQ(bytes_[0], 0x55);
            EXPECT_EQ(R(recv(a_, nullptr, 30, MSG_TRUNC)), 30);
            expected(30);
            EXPECT_EQ(R(recv(a_, bytes_, 1000, MSG_TRUNC | MSG_PEEK)), 40);
            EXPECT_EQ(bytes_[0], 0x55);
            EXPECT_EQ(R(recv(a_, bytes_, 1000, MSG_TRUNC)), 40);
            expected(40);
            EXPECT_EQ(bytes_[0], 0x55);
        } else {
            EXPECT_BYTES(R(recv(a_, bytes_, 30, MSG_TRUNC)), 30);
            EXPECT_BYTES(R(recv(a_, bytes_, 1000, MSG_TRUNC)), 70);
        }
        EXPECT_EQ(R(recv(a_, bytes_, 1000, MSG_TRUNC)), -EAGAIN);
        rearm();
    }
}

TEST_P(Read, WaitallWithoutBlockingTakesWhatIsThere)
{
    begin();
    EXPECT_EQ(R(recv(a_, bytes_, 10, MSG_WAITALL)), -EAGAIN);
    FOR_EVERYWHERE(where)
    {
        place(100, where);
        EXPECT_BYTES(R(recv(a_, bytes_, 40, MSG_WAITALL)), 40);
        EXPECT_BYTES(R(recv(a_, bytes_, 100, MSG_WAITALL)), 60);
        EXPECT_EQ(R(recv(a_, bytes_, 10, MSG_WAITALL)), -EAGAIN);
        rearm();
    }
}

TEST_P(Read, SourceAddress)
{
    begin();
    FOR_EVERYWHERE(where)
    {
        place(30, where);
        struct sockaddr_storage address;
        memset(&address, 0x55, sizeof address);
        socklen_t length = sizeof address;
        EXPECT_BYTES(R(recvfrom(a_, bytes_, 10, 0, (struct sockaddr *)&address, &length)), 10);
        EXPECT_EQ(length, 0u);
        EXPECT_EQ(((char *)&address)[0], 0x55);
        struct iovec vector = {bytes_, 10};
        struct msghdr message = {};
        message.msg_iov = &vector;
        message.msg_iovlen = 1;
        message.msg_name = &address;
        message.msg_namelen = sizeof address;
        EXPECT_BYTES(R(recvmsg(a_, &message, 0)), 10);
        EXPECT_EQ(message.msg_namelen, 0u);
        EXPECT_EQ(((char *)&address)[0], 0x55);
        EXPECT_BYTES(R(recvfrom(a_, bytes_, 100, 0, nullptr, nullptr)), 10);
        rearm();
    }
}

TEST_P(Read, RecvmmsgFillsSeveral)
{
    begin();
    FOR_EVERYWHERE(where)
    {
        place(50, where);
        char pieces[4][20];
        struct iovec iov[4];
        struct mmsghdr messages[4] = {};
        for (int i = 0; i < 4; i++) {
            iov[i] = {pieces[i], 20};
            messages[i].msg_hdr.msg_iov = &iov[i];
            messages[i].msg_hdr.msg_iovlen = 1;
        }
        EXPECT_EQ(R(recvmmsg(a_, messages, 4, 0, nullptr)), 3);
        EXPECT_EQ(messages[0].msg_len, 20u);
        EXPECT_EQ(messages[1].msg_len, 20u);
        EXPECT_EQ(messages[2].msg_len, 10u);
        EXPECT_TRUE(std::string(pieces[0], 20) == expected(20));
        EXPECT_TRUE(std::string(pieces[1], 20) == expected(20));
        EXPECT_TRUE(std::string(pieces[2], 10) == expected(10));
        EXPECT_EQ(R(recvmmsg(a_, messages, 4, 0, nullptr)), -EAGAIN);
        rearm();
    }
}

TEST_P(Blocking, RecvmmsgWaitsForAllOrForOne)
{
    for (int flags : {0, (int)MSG_WAITFORONE})
        FOR_EVERYWHERE(where)
        {
            begin();
            set_blocking(true);
            place(30, where);
            char pieces[4][20];
            struct iovec iov[4];
            struct mmsghdr messages[4] = {};
            for (int i = 0; i < 4; i++) {
                iov[i] = {pieces[i], 20};
                messages[i].msg_hdr.msg_iov = &iov[i];
                messages[i].msg_hdr.msg_iovlen = 1;
            }
            pid_t owner = this_thread();
            Worker writer([&] {
                for (int i = 0; i < 2 && flags == 0; i++) {
                    until_it_sleeps(owner);
                    std::string text = text_of(sent_, 5);
                    sent_ += 5;
                    ASSERT_EQ(write(b_, text.data(), 5), 5);
                }
            });
            long count = R(recvmmsg(a_, messages, 4, flags, nullptr));
            writer.join();
            EXPECT_EQ(count, flags ? 2 : 4);
            unsigned lengths[] = {20, 10, 5, 5};
            for (int i = 0; i < (flags ? 2 : 4); i++) {
                EXPECT_EQ(messages[i].msg_len, lengths[i]);
                EXPECT_TRUE(std::string(pieces[i], lengths[i]) == expected(lengths[i]));
            }
            EXPECT_EQ(R(recv(a_, bytes_, 10, MSG_DONTWAIT)), -EAGAIN);
        }
}

/* ----------------------------------------------------------- what is there */

TEST_P(Unread, FionreadCounts)
{
    begin();
    int count = -1;
    EXPECT_EQ(R(ioctl(a_, FIONREAD, &count)), 0);
    EXPECT_EQ(count, 0);
    FOR_EVERYWHERE(where)
    {
        place(5000, where);
        EXPECT_EQ(R(ioctl(a_, FIONREAD, &count)), 0);
        EXPECT_EQ(count, 5000);
        EXPECT_EQ(R(ioctl(a_, SIOCINQ, &count)), 0);
        EXPECT_EQ(count, 5000);
        EXPECT_BYTES(R(read(a_, bytes_, 1999)), 1999);
        EXPECT_EQ(R(ioctl(a_, FIONREAD, &count)), 0);
        EXPECT_EQ(count, 3001);
        send(10);
        EXPECT_EQ(R(ioctl(a_, FIONREAD, &count)), 0);
        EXPECT_EQ(count, 3011);
        EXPECT_EQ(R(recv(a_, bytes_, 10, MSG_PEEK)), 10);
        EXPECT_EQ(R(ioctl(a_, FIONREAD, &count)), 0);
        EXPECT_EQ(count, 3011);
        EXPECT_EQ(drain(), -EAGAIN);
        EXPECT_EQ(R(ioctl(a_, FIONREAD, &count)), 0);
        EXPECT_EQ(count, 0);
        rearm();
    }
}

TEST_P(Unread, SiocoutqCountsWhatThePeerHasNotTaken)
{
    begin(in_);
    int before = -1, after = -1;
    EXPECT_EQ(R(ioctl(a_, SIOCOUTQ, &before)), 0);
    EXPECT_EQ(before, 0);
    ASSERT_EQ(write(a_, bytes_, 1000), 1000);
    EXPECT_EQ(R(ioctl(a_, SIOCOUTQ, &after)), 0);
    if (!tcp()) { /* TCP's have been acknowledged, or not */
        EXPECT_GT(after, 0);
    }
    ASSERT_EQ(past::unread(b_), 1000);
    ASSERT_EQ(read(b_, bytes_, 2000), 1000);
    while (after != 0)
        ASSERT_EQ(R(ioctl(a_, SIOCOUTQ, &after)), 0);
}

/* ------------------------------------------------------------ blocking fds */

TEST_P(Blocking, AReadTakesWhatIsThereAtOnce)
{
    begin();
    set_blocking(true);
    for (const Call &call : calls)
        FOR_EVERYWHERE(where)
        {
            SCOPED_TRACE(call.name);
            place(100, where);
            EXPECT_BYTES(call.read(a_, bytes_, 30), 30);
            EXPECT_BYTES(call.read(a_, bytes_, 300), 70);
        }
    EXPECT_EQ(R(recv(a_, bytes_, 10, MSG_DONTWAIT)), -EAGAIN);
}

TEST_P(Blocking, AReadWaitsForBytes)
{
    for (const Call &call : calls) {
        SCOPED_TRACE(call.name);
        if (strstr(call.name, "DONTWAIT") != nullptr)
            continue;
        begin();
        set_blocking(true);
        long result = 0;
        Worker reader([&] { result = call.read(a_, bytes_, 100); });
        EXPECT_TRUE(reader.sleeps());
        send(30);
        reader.join();
        EXPECT_BYTES(result, 30);
        set_blocking(false);
        EXPECT_EQ(R(read(a_, bytes_, 10)), -EAGAIN);
        send(10);
        EXPECT_EQ(wait(20000), in_);
        EXPECT_BYTES(R(read(a_, bytes_, 10)), 10);
    }
}

TEST_P(Blocking, TheOwnersReadWaitsForBytes)
{
    begin();
    set_blocking(true);
    pid_t owner = this_thread();
    for (int round = 0; round < 20; round++) {
        Worker writer([&] {
            until_it_sleeps(owner);
            std::string text = text_of(sent_, 30);
            sent_ += 30;
            ASSERT_EQ(write(b_, text.data(), 30), 30);
        });
        EXPECT_BYTES(R(read(a_, bytes_, 100)), 30);
        writer.join();
        send(3);
        EXPECT_EQ(wait(20000), in_);
        EXPECT_EQ(R(recv(a_, bytes_, 10, MSG_DONTWAIT)), 3);
        expected(3);
    }
}

TEST_P(Blocking, WaitallWaitsForAll)
{
    FOR_EVERYWHERE(where)
    {
        begin();
        set_blocking(true);
        place(50, where);
        long result = 0;
        pid_t owner = this_thread();
        Worker writer([&] {
            until_it_sleeps(owner);
            std::string text = text_of(sent_, 60);
            sent_ += 60;
            ASSERT_EQ(write(b_, text.data(), 20), 20);
            until_it_sleeps(owner);
            ASSERT_EQ(write(b_, text.data() + 20, 40), 40);
        });
        result = R(recv(a_, bytes_, 100, MSG_WAITALL));
        writer.join();
        EXPECT_BYTES(result, 100);
        EXPECT_BYTES(R(recv(a_, bytes_, 100, MSG_DONTWAIT)), 10);
    }
}

TEST_P(Blocking, WaitallEndsWithTheStream)
{
    FOR_EVERYWHERE(where)
    {
        begin();
        set_blocking(true);
        place(50, where);
        ASSERT_EQ(shutdown(b_, SHUT_WR), 0);
        EXPECT_BYTES(R(recv(a_, bytes_, 100, MSG_WAITALL)), 50);
        EXPECT_EQ(R(recv(a_, bytes_, 100, MSG_WAITALL)), 0);
        EXPECT_EQ(R(read(a_, bytes_, 100)), 0);
    }
}

TEST_P(Blocking, AReceiveTimeoutIsKept)
{
    begin();
    set_blocking(true);
    struct timeval timeout = {0, 20000};
    ASSERT_EQ(setsockopt(a_, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout), 0);
    FOR_EVERYWHERE(where)
    {
        int64_t before = now_ns();
        EXPECT_EQ(R(read(a_, bytes_, 100)), -EAGAIN);
        EXPECT_GE(now_ns() - before, 15000000);
        place(50, where);
        EXPECT_BYTES(R(read(a_, bytes_, 20)), 20);
        before = now_ns();
        EXPECT_BYTES(R(recv(a_, bytes_, 100, MSG_WAITALL)), 30);
        EXPECT_GE(now_ns() - before, 15000000);
    }
}

TEST_P(Blocking, FionbioDoesTheSame)
{
    begin();
    int off = 0, on = 1;
    FOR_EVERYWHERE(where)
    {
        ASSERT_EQ(ioctl(a_, FIONBIO, &off), 0);
        blocking_ = true;
        place(50, where);
        EXPECT_BYTES(R(read(a_, bytes_, 100)), 50);
        ASSERT_EQ(ioctl(a_, FIONBIO, &on), 0);
        blocking_ = false;
        EXPECT_EQ(R(read(a_, bytes_, 100)), -EAGAIN);
    }
}
