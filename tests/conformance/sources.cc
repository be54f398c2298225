/* SPDX-License-Identifier: MIT
 *
 * What can be watched: every kind of file that has a poll, with all that it can
 * say. The bits are the kernel's own answers, so each body is short and exact.
 */
#include <pty.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "conformance.h"

using namespace support;

CONFORMANCE(Tcp);
CONFORMANCE(Unix);
CONFORMANCE(Datagram);
CONFORMANCE(Pipe);
CONFORMANCE(Eventfd);
CONFORMANCE(Timerfd);
CONFORMANCE(OtherFiles);
CONFORMANCE(Listener);
CONFORMANCE(Connect);
CONFORMANCE(Urgent);

/* ------------------------------------------------------------------------ TCP */

TEST_P(Tcp, HalfCloseIsInAndRdhup)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_ | out_ | rdhup_), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, out_}}));
    ASSERT_EQ(e().shutdown(p.b, SHUT_WR), 0);
    ASSERT_TRUE(settle(p.a, POLLRDHUP));
    for (int i = 0; i < 3; i++)
        EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_ | out_ | rdhup_}}));
    char byte;
    EXPECT_EQ(e().read(p.a, &byte, 1), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_ | out_ | rdhup_}})) << "the end stays readable";
}

TEST_P(Tcp, HalfCloseIsInAloneWithoutRdhup)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_EQ(ready(set), Events());
    ASSERT_EQ(e().shutdown(p.b, SHUT_WR), 0);
    ASSERT_TRUE(settle(p.a, POLLRDHUP));
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
}

TEST_P(Tcp, HangUpNeedsBothDirections)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_ | rdhup_), 0);
    ASSERT_EQ(e().shutdown(p.a, SHUT_WR), 0);
    EXPECT_EQ(ready(set), Events());
    ASSERT_EQ(e().shutdown(p.b, SHUT_WR), 0);
    ASSERT_TRUE(settle(p.a, POLLHUP));
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_ | rdhup_ | hup_}}));
}

TEST_P(Tcp, OwnShutdownOfReadingIsInAndRdhup)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_ | rdhup_), 0);
    EXPECT_EQ(ready(set), Events());
    ASSERT_EQ(e().shutdown(p.a, SHUT_RD), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_ | rdhup_}}));
}

TEST_P(Tcp, OwnShutdownOfBothIsHangUp)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_ | rdhup_), 0);
    EXPECT_EQ(ready(set), Events());
    ASSERT_EQ(e().shutdown(p.a, SHUT_RDWR), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_ | rdhup_ | hup_}}));
}

TEST_P(Tcp, ResetIsErrorAndHangUp)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_ | out_ | rdhup_), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, out_}}));
    reset(p.b);
    ASSERT_TRUE(settle(p.a, POLLERR | POLLHUP));
    for (int i = 0; i < 3; i++)
        EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_ | out_ | rdhup_ | err_ | hup_}}));
    char byte;
    EXPECT_EQ(e().read(p.a, &byte, 1), -ECONNRESET);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_ | out_ | rdhup_ | hup_}})) << "the error is spent";
}

TEST_P(Tcp, ResetAfterData)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    put(p.b, 10, p.a);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    reset(p.b);
    ASSERT_TRUE(settle(p.a, POLLERR));
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_ | err_ | hup_}}));
}

TEST_P(Tcp, CloseWithUnreadDataResetsThePeer)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    ASSERT_EQ(add(set, p.b, in_), 0);
    put(p.a, 10, p.b);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.b, in_}}));
    ASSERT_EQ(e().close(p.b), 0);
    ASSERT_TRUE(settle(p.a, POLLERR));
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_ | err_ | hup_}}));
}

TEST_P(Tcp, DataAndItsEndTogether)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_ | rdhup_), 0);
    EXPECT_EQ(ready(set), Events());
    put(p.b, 10, -1);
    ASSERT_EQ(e().close(p.b), 0);
    ASSERT_TRUE(settle(p.a, POLLRDHUP));
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_ | rdhup_}}));
    char bytes[100];
    EXPECT_EQ(e().read(p.a, bytes, sizeof bytes), 10) << "a short read, and yet not drained";
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_ | rdhup_}}));
    EXPECT_EQ(e().read(p.a, bytes, sizeof bytes), 0);
}

TEST_P(Tcp, TheEndAfterAShortReadIsSeenWithoutRdhup)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_EQ(ready(set), Events());
    put(p.b, 10, -1);
    ASSERT_EQ(e().close(p.b), 0);
    ASSERT_TRUE(settle(p.a, POLLRDHUP));
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    char bytes[100];
    EXPECT_EQ(e().read(p.a, bytes, sizeof bytes), 10);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
}

TEST_P(Tcp, TheEndBetweenTheReportAndTheShortReadIsSeen)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    put(p.b, 10, p.a);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    ASSERT_EQ(e().close(p.b), 0);
    ASSERT_TRUE(settle(p.a, POLLRDHUP));
    char bytes[100];
    EXPECT_EQ(e().read(p.a, bytes, sizeof bytes), 10);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
}

TEST_P(Tcp, WriteAfterThePeerHasGoneIsErrorAndHangUp)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_ | rdhup_), 0);
    ASSERT_EQ(e().close(p.b), 0);
    ASSERT_TRUE(settle(p.a, POLLRDHUP));
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_ | rdhup_}}));
    ASSERT_EQ(e().send(p.a, "x", 1, 0), 1);
    ASSERT_TRUE(settle(p.a, POLLERR));
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_ | rdhup_ | err_ | hup_}}));
}

TEST_P(Tcp, LowWaterMarkHoldsTheReportBack)
{
    int set = new_set();
    Pair p = tcp();
    int mark = 100;
    ASSERT_EQ(setsockopt(p.a, SOL_SOCKET, SO_RCVLOWAT, &mark, sizeof mark), 0);
    ASSERT_EQ(add(set, p.a, in_), 0);
    char bytes[99] = {};
    ASSERT_EQ(e().write(p.b, bytes, 99), 99);
    EXPECT_EQ(ready(set), Events());
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    ASSERT_EQ(e().read(p.a, bytes, 50), 50);
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Tcp, ABlockingSocketIsReportedAlike)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(e().set_nonblock(p.a, false), 0);
    ASSERT_EQ(add(set, p.a, in_), 0);
    char bytes[100];
    for (int i = 0; i < 20; i++) {
        put(p.b, 10, p.a);
        EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
        ASSERT_EQ(e().read(p.a, bytes, sizeof bytes), 10);
        EXPECT_EQ(ready(set), Events()) << "a report now would block the reader for ever";
    }
}

TEST_P(Tcp, ABlockingSocketWhoseDataWasTakenIsNotReported)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(e().set_nonblock(p.a, false), 0);
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_EQ(ready(set), Events());
    char bytes[100];
    for (int i = 0; i < 20; i++) {
        put(p.b, 10, p.a);
        ASSERT_EQ(e().read(p.a, bytes, 10), 10);
        EXPECT_EQ(ready(set), Events());
    }
}

TEST_P(Tcp, APeekTakesNothing)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    put(p.b, 10, p.a);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    char bytes[100];
    ASSERT_EQ(e().recv(p.a, bytes, sizeof bytes, MSG_PEEK), 10);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    ASSERT_EQ(e().recv(p.a, bytes, sizeof bytes, 0), 10);
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Tcp, BothEndsInOneSet)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    ASSERT_EQ(add(set, p.b, in_), 0);
    put(p.a, 1, p.b);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.b, in_}}));
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(set).size(), 2u);
    drain(p.b);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
}

TEST_P(Tcp, OneSocketInTwoSets)
{
    int first = new_set(), second = new_set();
    Pair p = tcp();
    ASSERT_EQ(add_as(first, p.a, in_, 1), 0);
    ASSERT_EQ(add_as(second, p.a, in_ | out_, 2), 0);
    EXPECT_EQ(ready(first), Events());
    EXPECT_EQ(ready(second), (Events{{2, out_}}));
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(first), (Events{{1, in_}}));
    EXPECT_EQ(ready(second), (Events{{2, in_ | out_}}));
    drain(p.a);
    EXPECT_EQ(ready(first), Events());
    EXPECT_EQ(ready(second), (Events{{2, out_}}));
    ASSERT_EQ(del(first, p.a), 0);
    put(p.b, 1, p.a);
    EXPECT_EQ(ready(first), Events());
    EXPECT_EQ(ready(second), (Events{{2, in_ | out_}}));
    ASSERT_EQ(e().close(p.a), 0);
    EXPECT_EQ(ready(second), Events());
}

/* ----------------------------------------------------------------------- UNIX */

TEST_P(Unix, HalfCloseIsInAndRdhup)
{
    int set = new_set();
    Pair p = unix_stream();
    ASSERT_EQ(add(set, p.a, in_ | rdhup_), 0);
    EXPECT_EQ(ready(set), Events());
    ASSERT_EQ(e().shutdown(p.b, SHUT_WR), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_ | rdhup_}}));
}

TEST_P(Unix, CloseIsHangUpAtOnce)
{
    int set = new_set();
    Pair p = unix_stream();
    ASSERT_EQ(add(set, p.a, in_ | out_ | rdhup_), 0);
    ASSERT_EQ(add(set, p.b, in_ | out_ | rdhup_), 0);
    EXPECT_EQ(ready(set).size(), 2u);
    ASSERT_EQ(e().close(p.b), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_ | out_ | rdhup_ | hup_}}));
}

TEST_P(Unix, CloseWithUnreadDataIsAnErrorToo)
{
    int set = new_set();
    Pair p = unix_stream();
    ASSERT_EQ(add(set, p.a, in_ | rdhup_), 0);
    ASSERT_EQ(add(set, p.b, in_), 0);
    put(p.a, 1, p.b);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.b, in_}}));
    ASSERT_EQ(e().close(p.b), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_ | rdhup_ | hup_ | err_}}));
}

TEST_P(Unix, DataThenCloseIsBoth)
{
    int set = new_set();
    Pair p = unix_stream();
    ASSERT_EQ(add(set, p.a, in_), 0);
    put(p.b, 10, p.a);
    ASSERT_EQ(e().close(p.b), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_ | hup_}}));
    char bytes[100];
    ASSERT_EQ(e().read(p.a, bytes, sizeof bytes), 10);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_ | hup_}}));
}

TEST_P(Unix, AShortReadAtAPassedFdDoesNotMeanDrained)
{
    /* A read ends with the message that carries an fd. */
    int set = new_set();
    Pair p = unix_stream();
    ASSERT_EQ(add(set, p.a, in_), 0);
    put(p.b, 10, p.a);
    ASSERT_EQ(e().send_fd(p.b, eventfd(), "abc", 3), 3);
    put(p.b, 10, p.a);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    char bytes[100];
    ASSERT_EQ(e().read(p.a, bytes, sizeof bytes), 13);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    ASSERT_EQ(e().read(p.a, bytes, sizeof bytes), 10);
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Unix, APassedFdArrivesAndCanBeWatched)
{
    int set = new_set();
    Pair p = unix_stream(), q = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    ASSERT_EQ(e().send_fd(p.b, q.a, "abc", 3), 3);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    char bytes[100];
    int received = -1;
    ASSERT_EQ(e().recv_fd(p.a, bytes, sizeof bytes, &received), 3);
    ASSERT_GE(received, 0);
    EXPECT_EQ(ready(set), Events());
    ASSERT_EQ(add(set, received, in_), 0);
    put(q.b, 1, received);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)received, in_}}));
    ASSERT_EQ(e().close(received), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)received, in_}})) << "the file lives on in the first fd";
    ASSERT_EQ(e().close(q.a), 0);
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Unix, ALargeTransferArrivesWholeByLevels)
{
    int set = new_set();
    Pair p = unix_stream();
    ASSERT_EQ(add(set, p.a, in_), 0);
    ASSERT_EQ(add(set, p.b, out_), 0);
    std::vector<char> bytes(70000, 'y');
    size_t sent = 0, got = 0, total = 8u << 20;
    while (got < total) {
        for (auto &event : next(set)) {
            if (event.data == (uint64_t)p.b) {
                ssize_t count = e().write(p.b, bytes.data(), std::min(bytes.size(), total - sent));
                if (count > 0)
                    sent += (size_t)count;
                if (sent == total)
                    del(set, p.b);
            } else {
                ssize_t count = e().read(p.a, bytes.data(), 30000);
                ASSERT_GT(count, 0) << "reported and not readable";
                got += (size_t)count;
            }
        }
    }
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Unix, ASequencedPacketSocketIsReportedAlike)
{
    int set = new_set(), fds[2];
    ASSERT_EQ(e().socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, fds), 0);
    ASSERT_EQ(add(set, fds[0], in_ | rdhup_), 0);
    put(fds[1], 10, fds[0]);
    put(fds[1], 10, fds[0]);
    char bytes[100];
    EXPECT_EQ(ready(set), (Events{{(uint64_t)fds[0], in_}}));
    ASSERT_EQ(e().read(fds[0], bytes, sizeof bytes), 10);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)fds[0], in_}}));
    ASSERT_EQ(e().read(fds[0], bytes, sizeof bytes), 10);
    EXPECT_EQ(ready(set), Events());
    ASSERT_EQ(e().close(fds[1]), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)fds[0], in_ | rdhup_ | hup_}}));
}

TEST_P(Unix, AnUnconnectedStreamIsHangUpAndWritable)
{
    int set = new_set();
    int fd = e().socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC);
    ASSERT_EQ(add(set, fd, in_ | out_), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)fd, out_ | hup_}}));
}

TEST_P(Unix, AListenerReportsAConnection)
{
    int set = new_set();
    int listening = e().socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC);
    struct sockaddr_un address = {};
    address.sun_family = AF_UNIX; /* autobind: no file */
    ASSERT_EQ(::bind(listening, (struct sockaddr *)&address, sizeof(sa_family_t)), 0);
    ASSERT_EQ(e().listen(listening, 5), 0);
    socklen_t length = sizeof address;
    ASSERT_EQ(getsockname(listening, (struct sockaddr *)&address, &length), 0);
    ASSERT_EQ(add(set, listening, in_), 0);
    EXPECT_EQ(ready(set), Events());
    int client = e().socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC);
    ASSERT_EQ(e().connect(client, (struct sockaddr *)&address, length), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)listening, in_}}));
    EXPECT_EQ(ready(set), (Events{{(uint64_t)listening, in_}}));
    int served = e().accept(listening);
    ASSERT_GE(served, 0);
    EXPECT_EQ(ready(set), Events());
    ASSERT_EQ(add(set, served, in_), 0);
    put(client, 3, served);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)served, in_}}));
}

/* ------------------------------------------------------------------ datagrams */

TEST_P(Datagram, EachIsReportedUntilItIsRead)
{
    int set = new_set();
    Pair p = udp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_EQ(ready(set), Events());
    put(p.b, 10, p.a);
    put(p.b, 10, p.a);
    char bytes[100];
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    ASSERT_EQ(e().read(p.a, bytes, sizeof bytes), 10);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}})) << "a short read of a datagram proves nothing";
    ASSERT_EQ(e().read(p.a, bytes, sizeof bytes), 10);
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Datagram, AnEdgeComesWithEachOne)
{
    int set = new_set();
    Pair p = udp();
    ASSERT_EQ(add(set, p.a, in_ | et_), 0);
    for (int i = 0; i < 5; i++) {
        put(p.b, 1, p.a);
        EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
        EXPECT_EQ(ready(set), Events());
    }
}

TEST_P(Datagram, AnEmptyOneIsReadable)
{
    int set = new_set();
    Pair p = udp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    ASSERT_EQ(e().send(p.b, "", 0, 0), 0);
    ASSERT_TRUE(settle(p.a, POLLIN));
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    char byte;
    ASSERT_EQ(e().recv(p.a, &byte, 1, 0), 0);
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Datagram, ARefusedPortIsAnError)
{
    int set = new_set();
    Pair p = udp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    ASSERT_EQ(e().close(p.b), 0);
    ASSERT_EQ(e().send(p.a, "x", 1, 0), 1);
    ASSERT_TRUE(settle(p.a, POLLERR));
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, err_}}));
    char byte;
    EXPECT_EQ(e().recv(p.a, &byte, 1, 0), -ECONNREFUSED);
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Datagram, OfUnixIsWritableWhileThereIsRoom)
{
    int set = new_set();
    Pair p = unix_datagram();
    ASSERT_EQ(add(set, p.a, out_), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, out_}}));
    char bytes[100] = {};
    while (e().write(p.a, bytes, sizeof bytes) > 0)
        ;
    EXPECT_EQ(ready(set), Events());
    drain(p.b);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, out_}}));
}

TEST_P(Datagram, APortIsFreeAtOnceAfterItsSocketIsClosed)
{
    int set = new_set();
    Pair p = udp();
    struct sockaddr_in address;
    socklen_t length = sizeof address;
    ASSERT_EQ(getsockname(p.a, (struct sockaddr *)&address, &length), 0);
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_EQ(ready(set), Events());
    ASSERT_EQ(e().close(p.a), 0);
    int again = e().socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC);
    EXPECT_EQ(::bind(again, (struct sockaddr *)&address, length), 0) << strerrorname_np(errno);
}

/* ---------------------------------------------------------------------- pipes */

TEST_P(Pipe, IsReadableWhileThereIsData)
{
    int set = new_set();
    Pair p = pipe();
    ASSERT_EQ(add(set, p.a, in_), 0);
    EXPECT_EQ(ready(set), Events());
    put(p.b, 10, p.a);
    for (int i = 0; i < 3; i++)
        EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    drain(p.a);
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Pipe, AReaderSeesTheWriterGo)
{
    int set = new_set();
    Pair p = pipe();
    ASSERT_EQ(add(set, p.a, in_), 0);
    ASSERT_EQ(add(set, p.b, out_), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.b, out_}}));
    put(p.b, 10, p.a);
    ASSERT_EQ(e().close(p.b), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_ | hup_}}));
    drain(p.a);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, hup_}}));
}

TEST_P(Pipe, AWriterSeesTheReaderGo)
{
    int set = new_set();
    Pair p = pipe();
    ASSERT_EQ(add(set, p.b, out_), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.b, out_}}));
    ASSERT_EQ(e().close(p.a), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.b, out_ | err_}}));
}

TEST_P(Pipe, AWriterWithoutInterestSeesTheReaderGo)
{
    int set = new_set();
    Pair p = pipe();
    ASSERT_EQ(add(set, p.b, et_), 0);
    EXPECT_EQ(ready(set), Events());
    ASSERT_EQ(e().close(p.a), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.b, err_}}));
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Pipe, IsWritableAgainAfterAWholePageIsFree)
{
    int set = new_set();
    Pair p = pipe();
    ASSERT_EQ(add(set, p.b, out_), 0);
    fill(p.b);
    EXPECT_EQ(ready(set), Events());
    char bytes[4096];
    ASSERT_EQ(e().read(p.a, bytes, 100), 100);
    EXPECT_EQ(ready(set), Events());
    ASSERT_EQ(e().read(p.a, bytes, 3996), 3996);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.b, out_}}));
}

TEST_P(Pipe, AFifoAndItsSecondWriter)
{
    char path[] = "/tmp/conformance.fifo.XXXXXX";
    ASSERT_NE(mkdtemp(path), nullptr);
    std::string name = std::string(path) + "/fifo";
    ASSERT_EQ(mkfifo(name.c_str(), 0600), 0);
    int set = new_set();
    int reader = e().open(name.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    ASSERT_EQ(add(set, reader, in_), 0);
    EXPECT_EQ(ready(set), Events()) << "no writer yet is no hang-up";
    int writer = e().open(name.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    ASSERT_GE(writer, 0);
    EXPECT_EQ(ready(set), Events());
    put(writer, 3, reader);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)reader, in_}}));
    drain(reader);
    ASSERT_EQ(e().close(writer), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)reader, hup_}}));
    writer = e().open(name.c_str(), O_WRONLY | O_NONBLOCK | O_CLOEXEC);
    EXPECT_EQ(ready(set), Events()) << "the hang-up ends with the next writer";
    put(writer, 3, reader);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)reader, in_}}));
    unlink(name.c_str());
    rmdir(path);
}

TEST_P(Pipe, AnEdgeIsNotRenewedByReading)
{
    int set = new_set();
    Pair p = pipe();
    ASSERT_EQ(add(set, p.a, in_ | et_), 0);
    put(p.b, 100, p.a);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    char bytes[10];
    ASSERT_EQ(e().read(p.a, bytes, 10), 10);
    EXPECT_EQ(ready(set), Events());
}

/* -------------------------------------------------------------------- eventfd */

TEST_P(Eventfd, IsReadableWhileTheCountIsPositive)
{
    int set = new_set();
    int counter = eventfd();
    ASSERT_EQ(add(set, counter, in_), 0);
    EXPECT_EQ(ready(set), Events());
    kick(counter, 3);
    for (int i = 0; i < 3; i++)
        EXPECT_EQ(ready(set), (Events{{(uint64_t)counter, in_}}));
    EXPECT_EQ(take(counter), 3u);
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Eventfd, ASemaphoreIsReadableUntilItIsEmpty)
{
    int set = new_set();
    int counter = eventfd(3, EFD_NONBLOCK | EFD_CLOEXEC | EFD_SEMAPHORE);
    ASSERT_EQ(add(set, counter, in_), 0);
    for (int i = 0; i < 3; i++) {
        EXPECT_EQ(ready(set), (Events{{(uint64_t)counter, in_}}));
        EXPECT_EQ(take(counter), 1u);
    }
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Eventfd, IsNotWritableWhenFull)
{
    int set = new_set();
    int counter = eventfd();
    ASSERT_EQ(add(set, counter, in_ | out_), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)counter, out_}}));
    kick(counter, UINT64_MAX - 1);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)counter, in_}}));
    take(counter);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)counter, out_}}));
}

TEST_P(Eventfd, ReadBeforeTheWaitIsForgotten)
{
    int set = new_set();
    int counter = eventfd();
    ASSERT_EQ(add(set, counter, in_), 0);
    EXPECT_EQ(ready(set), Events());
    for (int i = 0; i < 10; i++) {
        kick(counter);
        EXPECT_EQ(take(counter), 1u);
        EXPECT_EQ(ready(set), Events());
    }
}

TEST_P(Eventfd, WakesFromAnotherThreadAThousandTimes)
{
    int set = new_set();
    int there = eventfd(), back = eventfd(0, EFD_CLOEXEC);
    ASSERT_EQ(add(set, there, in_), 0);
    Waiter waiter([&] {
        for (int i = 0; i < 1000; i++) {
            Events events = next(set);
            if (events != Events{{(uint64_t)there, in_}})
                return events;
            take(there);
            kick(back);
        }
        return Events();
    });
    for (int i = 0; i < 1000 && !waiter.done(); i++) {
        kick(there);
        uint64_t value;
        ASSERT_TRUE(settle(back, POLLIN));
        ASSERT_EQ(e().read(back, &value, sizeof value), 8);
    }
    EXPECT_EQ(waiter.result(), Events());
}

/* -------------------------------------------------------------------- timerfd */

TEST_P(Timerfd, WakesWhenItExpiresAndIsQuietAfterTheRead)
{
    int set = new_set();
    int timer = e().timerfd(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    ASSERT_EQ(add(set, timer, in_), 0);
    EXPECT_EQ(ready(set), Events());
    struct itimerspec when = {{0, 0}, {0, 5000000}};
    int64_t start = now_ns();
    ASSERT_EQ(timerfd_settime(timer, 0, &when, nullptr), 0);
    EXPECT_EQ(next(set), (Events{{(uint64_t)timer, in_}}));
    EXPECT_GE(now_ns() - start, 5000000);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)timer, in_}}));
    EXPECT_EQ(take(timer), 1u);
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Timerfd, RepeatsAsEdges)
{
    int set = new_set();
    int timer = e().timerfd(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    ASSERT_EQ(add(set, timer, in_ | et_), 0);
    struct itimerspec when = {{0, 1000000}, {0, 1000000}};
    ASSERT_EQ(timerfd_settime(timer, 0, &when, nullptr), 0);
    for (int i = 0; i < 5; i++) {
        EXPECT_EQ(next(set), (Events{{(uint64_t)timer, in_}}));
        EXPECT_GT(take(timer), 0u);
    }
}

TEST_P(Timerfd, DisarmedBeforeTheWaitIsForgotten)
{
    int set = new_set();
    int timer = e().timerfd(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    ASSERT_EQ(add(set, timer, in_), 0);
    EXPECT_EQ(ready(set), Events());
    struct itimerspec when = {{0, 0}, {0, 1}}, never = {};
    ASSERT_EQ(timerfd_settime(timer, 0, &when, nullptr), 0);
    ASSERT_TRUE(settle(timer, POLLIN));
    ASSERT_EQ(timerfd_settime(timer, 0, &never, nullptr), 0);
    EXPECT_EQ(ready(set), Events());
}

/* ---------------------------------------------------------------- other files */

TEST_P(OtherFiles, ASignalfdReportsAPendingSignal)
{
    sigset_t mask, before;
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &mask, &before);
    int set = new_set();
    int signals = e().signalfd(&mask, SFD_NONBLOCK | SFD_CLOEXEC);
    ASSERT_EQ(add(set, signals, in_), 0);
    EXPECT_EQ(ready(set), Events());
    pthread_kill(pthread_self(), SIGUSR2);
    EXPECT_EQ(next(set), (Events{{(uint64_t)signals, in_}}));
    EXPECT_EQ(ready(set), (Events{{(uint64_t)signals, in_}}));
    struct signalfd_siginfo info;
    ASSERT_EQ(e().read(signals, &info, sizeof info), (ssize_t)sizeof info);
    EXPECT_EQ(info.ssi_signo, (uint32_t)SIGUSR2);
    EXPECT_EQ(ready(set), Events());
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

TEST_P(OtherFiles, AnInotifyReportsAChange)
{
    char path[] = "/tmp/conformance.inotify.XXXXXX";
    ASSERT_NE(mkdtemp(path), nullptr);
    int set = new_set();
    int watch = e().inotify(IN_NONBLOCK | IN_CLOEXEC);
    ASSERT_GE(inotify_add_watch(watch, path, IN_CREATE), 0);
    ASSERT_EQ(add(set, watch, in_), 0);
    EXPECT_EQ(ready(set), Events());
    std::string name = std::string(path) + "/x";
    int file = e().open(name.c_str(), O_CREAT | O_RDWR | O_CLOEXEC);
    EXPECT_EQ(next(set), (Events{{(uint64_t)watch, in_}}));
    char bytes[1000];
    ASSERT_GT(e().read(watch, bytes, sizeof bytes), 0);
    EXPECT_EQ(ready(set), Events());
    e().close(file);
    unlink(name.c_str());
    rmdir(path);
}

TEST_P(OtherFiles, APtyReportsBothSidesAndTheHangUp)
{
    int set = new_set();
    int master = e().open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    if (master < 0)
        GTEST_SKIP() << "no pseudo-terminals here";
    ASSERT_EQ(unlockpt(master), 0);
    char name[100];
    ASSERT_EQ(ptsname_r(master, name, sizeof name), 0);
    int slave = e().open(name, O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    ASSERT_GE(slave, 0);
    struct termios raw;
    ASSERT_EQ(tcgetattr(slave, &raw), 0);
    cfmakeraw(&raw);
    ASSERT_EQ(tcsetattr(slave, TCSANOW, &raw), 0);
    ASSERT_EQ(add(set, master, in_), 0);
    ASSERT_EQ(add(set, slave, in_), 0);
    EXPECT_EQ(ready(set), Events());
    put(master, 3, slave);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)slave, in_}}));
    drain(slave);
    put(slave, 3, master);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)master, in_}}));
    drain(master);
    EXPECT_EQ(ready(set), Events());
    ASSERT_EQ(e().close(slave), 0);
    ASSERT_TRUE(settle(master, POLLHUP));
    Events events = ready(set);
    ASSERT_EQ(events.size(), 1u);
    EXPECT_EQ(events[0].events & hup_, hup_);
}

TEST_P(OtherFiles, APidfdReportsTheEndOfItsProcess)
{
    int set = new_set();
    int gate[2];
    ASSERT_EQ(::pipe(gate), 0);
    pid_t child = e().fork();
    if (child == 0) {
        char byte;
        ::close(gate[1]);
        if (::read(gate[0], &byte, 1) != 0)
            _exit(2);
        _exit(0);
    }
    ::close(gate[0]);
    int pidfd = (int)syscall(SYS_pidfd_open, child, 0);
    ASSERT_GE(pidfd, 0);
    ASSERT_EQ(add(set, pidfd, in_), 0);
    EXPECT_EQ(ready(set), Events());
    ::close(gate[1]);
    Events events = next(set);
    ASSERT_EQ(events.size(), 1u);
    EXPECT_EQ(events[0].events & in_, in_);
    EXPECT_EQ(waitpid(child, nullptr, 0), child);
    ASSERT_EQ(e().close(pidfd), 0);
}

TEST_P(OtherFiles, UrandomIsAlwaysReady)
{
    int set = new_set();
    int fd = e().open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    ASSERT_GE(fd, 0);
    int result = add(set, fd, in_);
    if (result == -EPERM)
        GTEST_SKIP() << "no poll on this kernel";
    ASSERT_EQ(result, 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)fd, in_}}));
}

/* ------------------------------------------------------------------ listeners */

TEST_P(Listener, ReportsUntilTheQueueIsEmpty)
{
    int set = new_set();
    struct sockaddr_in address;
    int listening = listener(&address);
    ASSERT_EQ(add(set, listening, in_), 0);
    EXPECT_EQ(ready(set), Events());
    connected_to(address);
    connected_to(address);
    ASSERT_TRUE(settle(listening, POLLIN));
    EXPECT_EQ(ready(set), (Events{{(uint64_t)listening, in_}}));
    ASSERT_GE(e().accept(listening), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)listening, in_}}));
    ASSERT_GE(e().accept(listening), 0);
    EXPECT_EQ(ready(set), Events());
    EXPECT_EQ(e().accept(listening), -EAGAIN);
}

TEST_P(Listener, AnEdgeComesWithEachConnection)
{
    int set = new_set();
    struct sockaddr_in address;
    int listening = listener(&address);
    ASSERT_EQ(add(set, listening, in_ | et_), 0);
    for (int i = 0; i < 5; i++) {
        connected_to(address);
        ASSERT_TRUE(settle(listening, POLLIN));
        EXPECT_EQ(next(set), (Events{{(uint64_t)listening, in_}}));
        EXPECT_EQ(ready(set), Events());
    }
}

TEST_P(Listener, ThatBecomesOneWhileItIsWatched)
{
    int set = new_set();
    int fd = e().socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC);
    ASSERT_EQ(add(set, fd, in_), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)fd, hup_}})) << "a socket that is nothing yet";
    struct sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ASSERT_EQ(::bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    ASSERT_EQ(e().listen(fd, 5), 0);
    EXPECT_EQ(ready(set), Events());
    socklen_t length = sizeof address;
    ASSERT_EQ(getsockname(fd, (struct sockaddr *)&address, &length), 0);
    connected_to(address);
    ASSERT_TRUE(settle(fd, POLLIN));
    EXPECT_EQ(ready(set), (Events{{(uint64_t)fd, in_}}));
}

TEST_P(Listener, PortIsFreeAtOnceAfterItIsClosed)
{
    int set = new_set();
    for (int i = 0; i < 10; i++) {
        struct sockaddr_in address;
        int listening = listener(&address);
        ASSERT_EQ(add(set, listening, in_), 0);
        EXPECT_EQ(ready(set), Events());
        ASSERT_EQ(e().close(listening), 0);
        int again = e().socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC);
        ASSERT_EQ(::bind(again, (struct sockaddr *)&address, sizeof address), 0) << strerrorname_np(errno);
        ASSERT_EQ(e().listen(again, 1), 0) << strerrorname_np(errno);
        ASSERT_EQ(e().close(again), 0);
    }
}

TEST_P(Listener, PortIsFreeAtOnceAfterTheSetIsClosedFirst)
{
    struct sockaddr_in address;
    int set = new_set(), listening = listener(&address);
    ASSERT_EQ(add(set, listening, in_), 0);
    EXPECT_EQ(ready(set), Events());
    ASSERT_EQ(e().close(set), 0);
    ASSERT_EQ(e().close(listening), 0);
    int again = e().socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC);
    ASSERT_EQ(::bind(again, (struct sockaddr *)&address, sizeof address), 0) << strerrorname_np(errno);
    ASSERT_EQ(e().listen(again, 1), 0) << strerrorname_np(errno);
}

TEST_P(Listener, RefusesConnectionsTheMomentItIsClosed)
{
    int set = new_set();
    struct sockaddr_in address;
    int listening = listener(&address);
    ASSERT_EQ(add(set, listening, in_), 0);
    EXPECT_EQ(ready(set), Events());
    ASSERT_EQ(e().close(listening), 0);
    int client = e().socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC);
    EXPECT_EQ(e().connect(client, (struct sockaddr *)&address, sizeof address), -ECONNREFUSED);
}

TEST_P(Listener, AcceptedSocketsAreWatchedAtOnce)
{
    int set = new_set();
    struct sockaddr_in address;
    int listening = listener(&address);
    ASSERT_EQ(add(set, listening, in_), 0);
    for (int i = 0; i < 20; i++) {
        int client = connected_to(address);
        put(client, 4, -1);
        EXPECT_EQ(next(set), (Events{{(uint64_t)listening, in_}}));
        int served = e().accept(listening);
        ASSERT_GE(served, 0);
        ASSERT_EQ(add(set, served, in_ | rdhup_), 0);
        ASSERT_TRUE(settle(served, POLLIN));
        EXPECT_EQ(ready(set), (Events{{(uint64_t)served, in_}}));
        EXPECT_EQ(drain(served), 4u);
        ASSERT_EQ(e().close(client), 0);
        ASSERT_TRUE(settle(served, POLLRDHUP));
        EXPECT_EQ(ready(set), (Events{{(uint64_t)served, in_ | rdhup_}}));
        ASSERT_EQ(e().close(served), 0);
        EXPECT_EQ(ready(set), Events());
    }
}

/* -------------------------------------------------------------------- connect */

TEST_P(Connect, SuccessIsWritable)
{
    int set = new_set();
    struct sockaddr_in address;
    int listening = listener(&address);
    int fd = e().socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC);
    int result = e().connect(fd, (struct sockaddr *)&address, sizeof address);
    ASSERT_TRUE(result == 0 || result == -EINPROGRESS);
    ASSERT_EQ(add(set, fd, in_ | out_ | rdhup_), 0);
    EXPECT_EQ(next(set), (Events{{(uint64_t)fd, out_}}));
    ASSERT_GE(e().accept(listening), 0);
}

TEST_P(Connect, RefusalIsErrorAndHangUp)
{
    int set = new_set();
    struct sockaddr_in address;
    e().close(listener(&address));
    int fd = e().socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC);
    int result = e().connect(fd, (struct sockaddr *)&address, sizeof address);
    if (result == -ECONNREFUSED)
        GTEST_SKIP() << "refused within the call";
    ASSERT_EQ(result, -EINPROGRESS);
    ASSERT_EQ(add(set, fd, out_), 0);
    EXPECT_EQ(next(set), (Events{{(uint64_t)fd, out_ | err_ | hup_}}));
    int error = 0;
    socklen_t length = sizeof error;
    ASSERT_EQ(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length), 0);
    EXPECT_EQ(error, ECONNREFUSED);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)fd, out_ | hup_}}));
}

TEST_P(Connect, ASocketThatIsNotConnectedIsWritableAndHangUp)
{
    int set = new_set();
    int fd = e().socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC);
    ASSERT_EQ(add(set, fd, in_ | out_ | rdhup_), 0);
    for (int i = 0; i < 3; i++)
        EXPECT_EQ(ready(set), (Events{{(uint64_t)fd, out_ | hup_}}));
}

TEST_P(Connect, WatchedBeforeTheConnect)
{
    int set = new_set();
    struct sockaddr_in address;
    int listening = listener(&address);
    int fd = e().socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC);
    ASSERT_EQ(add(set, fd, out_ | et_), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)fd, out_ | hup_}}));
    EXPECT_EQ(ready(set), Events());
    int result = e().connect(fd, (struct sockaddr *)&address, sizeof address);
    ASSERT_TRUE(result == 0 || result == -EINPROGRESS);
    EXPECT_EQ(next(set), (Events{{(uint64_t)fd, out_}}));
    int served = e().accept(listening);
    ASSERT_GE(served, 0);
    ASSERT_EQ(mod(set, fd, in_), 0);
    put(served, 1, fd);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)fd, in_}}));
}

TEST_P(Connect, WatchedWithLevelsBeforeTheConnect)
{
    int set = new_set();
    struct sockaddr_in address;
    int listening = listener(&address);
    int fd = e().socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC);
    ASSERT_EQ(add(set, fd, in_), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)fd, hup_}}));
    int result = e().connect(fd, (struct sockaddr *)&address, sizeof address);
    ASSERT_TRUE(result == 0 || result == -EINPROGRESS);
    ASSERT_TRUE(settle(fd, POLLOUT));
    EXPECT_EQ(ready(set), Events());
    int served = e().accept(listening);
    put(served, 1, fd);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)fd, in_}}));
}

/* ---------------------------------------------------------------- urgent data */

TEST_P(Urgent, IsPri)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, pri_), 0);
    EXPECT_EQ(ready(set), Events());
    ASSERT_EQ(e().send(p.b, "!", 1, MSG_OOB), 1);
    ASSERT_TRUE(settle(p.a, POLLPRI));
    for (int i = 0; i < 3; i++)
        EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, pri_}}));
    char byte;
    ASSERT_EQ(e().recv(p.a, &byte, 1, MSG_OOB), 1);
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Urgent, IsAnEdge)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_ | pri_ | et_), 0);
    EXPECT_EQ(ready(set), Events());
    ASSERT_EQ(e().send(p.b, "!", 1, MSG_OOB), 1);
    ASSERT_TRUE(settle(p.a, POLLPRI));
    Events events = ready(set);
    ASSERT_EQ(events.size(), 1u);
    EXPECT_EQ(events[0].events & pri_, pri_);
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Urgent, DataBehindTheMarkIsStillReportedAfterAShortRead)
{
    /* A read stops at the mark: short, and yet there is more. */
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_), 0);
    put(p.b, 10, p.a);
    ASSERT_EQ(e().send(p.b, "!", 1, MSG_OOB), 1);
    ASSERT_TRUE(settle(p.a, POLLPRI));
    put(p.b, 10, p.a);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    char bytes[100];
    ASSERT_EQ(e().read(p.a, bytes, sizeof bytes), 10);
    for (int i = 0; i < 3; i++)
        EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_}}));
    ASSERT_EQ(e().read(p.a, bytes, sizeof bytes), 10);
    EXPECT_EQ(ready(set), Events());
}

TEST_P(Urgent, WithInAndPriTogether)
{
    int set = new_set();
    Pair p = tcp();
    ASSERT_EQ(add(set, p.a, in_ | pri_ | out_), 0);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, out_}}));
    put(p.b, 10, p.a);
    ASSERT_EQ(e().send(p.b, "!", 1, MSG_OOB), 1);
    ASSERT_TRUE(settle(p.a, POLLPRI));
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_ | pri_ | out_}}));
    char bytes[100];
    ASSERT_EQ(e().read(p.a, bytes, sizeof bytes), 10);
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, pri_ | out_}}));
}

TEST_P(Urgent, InlineIsOrdinaryData)
{
    int set = new_set();
    Pair p = tcp();
    int on = 1;
    ASSERT_EQ(setsockopt(p.a, SOL_SOCKET, SO_OOBINLINE, &on, sizeof on), 0);
    ASSERT_EQ(add(set, p.a, in_ | pri_), 0);
    put(p.b, 10, p.a);
    ASSERT_EQ(e().send(p.b, "!", 1, MSG_OOB), 1);
    ASSERT_TRUE(settle(p.a, POLLPRI));
    EXPECT_EQ(ready(set), (Events{{(uint64_t)p.a, in_ | pri_}}));
    char bytes[100];
    ASSERT_EQ(e().read(p.a, bytes, sizeof bytes), 10);
    Events events = ready(set);
    ASSERT_EQ(events.size(), 1u);
    EXPECT_EQ(events[0].events & in_, in_);
    ASSERT_EQ(e().read(p.a, bytes, sizeof bytes), 1);
    EXPECT_EQ(ready(set), Events());
}
