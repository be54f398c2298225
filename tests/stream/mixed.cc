/* SPDX-License-Identifier: MIT
 *
 * What the random driver found: short stories of several calls, each of which went
 * wrong once.
 */
#include "stream.h"

#include <sys/mman.h>

using namespace support;

STREAM(Mixed, ALL_SHAPES);
STREAM(MixedEdge, {true, et_}, {false, et_});
STREAM(MixedLevel, LEVEL_SHAPES);
STREAM(MixedTcp, {true, 0});
STREAM(MixedUnix, {false, 0});

namespace {
/* One message of `text` with one eventfd of value `value`. */
void pass(int over, const std::string &text, unsigned value)
{
    int fd = eventfd(value, EFD_CLOEXEC | EFD_NONBLOCK);
    alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof fd)] = {};
    struct iovec iov = {(void *)text.data(), text.size()};
    struct msghdr message = {};
    message.msg_iov = &iov;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    EXPECT_EQ(sendmsg(over, &message, 0), (ssize_t)text.size());
    close(fd);
}

/* The value of the eventfd that came, 0 if none did; *ret_result: recvmsg's. */
uint64_t take_passed(int fd, char *to, size_t length, int flags, long *ret_result)
{
    alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(int))];
    struct iovec iov = {to, length};
    struct msghdr message = {};
    message.msg_iov = &iov;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    *ret_result = R(recvmsg(fd, &message, flags));
    if (*ret_result < 0 || CMSG_FIRSTHDR(&message) == nullptr)
        return 0;
    int got;
    uint64_t value = 0;
    memcpy(&got, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof got);
    EXPECT_EQ(fcntl(got, F_GETFD), flags & MSG_CMSG_CLOEXEC ? FD_CLOEXEC : 0);
    struct pollfd look = {got, POLLIN, 0};
    if (past::poll(&look, 1, 0) == 1 && !(flags & MSG_PEEK)) {
        EXPECT_EQ(read(got, &value, sizeof value), (ssize_t)sizeof value);
    }
    close(got);
    return flags & MSG_PEEK ? 1 : value;
}
} // namespace

TEST_P(MixedLevel, OutIsReportedInEveryWaitFromTheFirst)
{
    for (int round = 0; round < 3; round++) {
        end();
        int fds[2];
        set_ = own(epoll_create1(EPOLL_CLOEXEC));
        connect_pair(fds);
        a_ = fds[0];
        b_ = fds[1];
        sent_ = taken_ = 0;
        struct epoll_event event = {};
        event.events = events_ = in_ | out_;
        event.data.fd = a_;
        ASSERT_EQ(epoll_ctl(set_, EPOLL_CTL_ADD, a_, &event), 0);
        for (int i = 0; i < 30; i++) {
            send(31);
            EXPECT_EQ(wait(), in_ | out_) << i;
            EXPECT_BYTES(R(read(a_, bytes_, 1000)), 31);
            EXPECT_EQ(wait(), out_) << i;
        }
    }
}

TEST_P(Mixed, APeekSeesTheQueueAndWhatTheKernelHas)
{
    begin();
    for (int how = 0; how < 2; how++) {
        place(5000, Where::both);
        if (how == 1) { /* any moment of giving back */
            struct pollfd look = {a_, POLLIN, 0};
            EXPECT_EQ(R(poll(&look, 1, 0)), 1);
        }
        memset(bytes_, 0, 6000);
        EXPECT_EQ(R(recv(a_, bytes_, 10000, MSG_PEEK)), 5000);
        EXPECT_TRUE(coming(5000) == std::string(bytes_, 5000));
        EXPECT_EQ(R(recv(a_, bytes_, 10000, MSG_PEEK | MSG_WAITALL)), 5000);
        EXPECT_BYTES(R(read(a_, bytes_, 10000)), 5000);
        rearm();
    }
}

TEST_P(MixedUnix, APeekWithTruncAsWell)
{
    begin();
    place(20000, Where::library);
    send(1000);
    EXPECT_EQ(R(recv(a_, bytes_, 65536, MSG_PEEK | MSG_TRUNC)), 21000);
    EXPECT_TRUE(coming(21000) == std::string(bytes_, 21000));
    EXPECT_BYTES(R(recv(a_, bytes_, 65536, MSG_TRUNC)), 21000);
}

TEST_P(MixedUnix, APeekGetsDuplicatesOfPassedFds)
{
    begin();
    FOR_EVERYWHERE(where)
    {
        for (int flags : {0, (int)MSG_CMSG_CLOEXEC}) {
            adopt();
            pass(b_, text_of(sent_, 100), 7);
            sent_ += 100;
            if (where != Where::kernel) {
                EXPECT_EQ(wait(20000), in_);
            }
            long result;
            EXPECT_EQ(take_passed(a_, bytes_, 40, MSG_PEEK | flags, &result), 1u);
            EXPECT_EQ(result, 40);
            EXPECT_EQ(take_passed(a_, bytes_, 0, MSG_PEEK | flags, &result), 1u);
            EXPECT_EQ(result, 0);
            EXPECT_EQ(R(recv(a_, bytes_, 40, MSG_PEEK)), 40);
            EXPECT_EQ(take_passed(a_, bytes_, 40, flags, &result), 7u);
            EXPECT_BYTES(result, 40);
            EXPECT_EQ(take_passed(a_, bytes_, 1000, flags, &result), 0u);
            EXPECT_BYTES(result, 60);
        }
    }
}

TEST_P(MixedUnix, PassedFdsComeEvenWithNoByte)
{
    begin();
    for (bool wait_first : {false, true}) {
        adopt();
        pass(b_, text_of(sent_, 10), 5);
        sent_ += 10;
        if (wait_first) {
            EXPECT_EQ(wait(20000), in_);
        }
        long result;
        EXPECT_EQ(take_passed(a_, bytes_, 0, 0, &result), 5u);
        EXPECT_EQ(result, 0);
        EXPECT_EQ(take_passed(a_, bytes_, 100, 0, &result), 0u);
        EXPECT_BYTES(result, 10);
    }
}

TEST_P(MixedUnix, ALongMessageWithAnFdIsOneRead)
{
    begin();
    for (bool wait_first : {false, true}) {
        adopt();
        pass(b_, text_of(sent_, 9000), 9);
        sent_ += 9000;
        if (wait_first) {
            EXPECT_EQ(wait(20000), in_);
            EXPECT_EQ(wait(), in_);
        }
        long result;
        EXPECT_EQ(take_passed(a_, bytes_, 65536, 0, &result), 9u);
        EXPECT_BYTES(result, 9000);
    }
}

/* docs/design.md: fds are told with the first byte of what was received together. */
TEST_P(MixedUnix, AnFdThatFollowsUnreadBytes)
{
    begin();
    adopt();
    send(100);
    pass(b_, text_of(sent_, 50), 3);
    sent_ += 50;
    EXPECT_EQ(wait(20000), in_);
    long result;
    uint64_t value = take_passed(a_, bytes_, 60, 0, &result);
    EXPECT_BYTES(result, 60);
    EXPECT_TRUE(value == 0 || adopts()) << "the kernel gives it with a byte of its own message";
    if (value == 0) {
        value = take_passed(a_, bytes_, 1000, 0, &result);
        EXPECT_BYTES(result, 90);
    } else {
        EXPECT_EQ(take_passed(a_, bytes_, 1000, 0, &result), 0u);
        EXPECT_BYTES(result, 90);
    }
    EXPECT_EQ(value, 3u);
}

/* docs/design.md, known differences: the urgent mark. Who waits for PRI is answered as by the kernel. */
TEST_P(MixedTcp, AnUrgentByte)
{
    for (bool waits_for_it : {false, true}) {
        begin();
        if (waits_for_it) {
            modify(in_ | EPOLLPRI);
            EXPECT_EQ(wait(), 0u);
        }
        std::string text = text_of(sent_, 20);
        ASSERT_EQ(::send(b_, text.data(), 10, 0), 10);
        ASSERT_EQ(::send(b_, "!", 1, MSG_OOB), 1);
        ASSERT_EQ(::send(b_, text.data() + 10, 10, 0), 10);
        sent_ += 21;
        arrived();
        sent_--;
        EXPECT_EQ(wait(20000), waits_for_it ? in_ | EPOLLPRI : in_);
        bool differs = adopts() && !waits_for_it;
        if (!differs) {
            EXPECT_EQ(R(recv(a_, bytes_, 1, MSG_OOB)), 1);
            EXPECT_EQ(bytes_[0], '!');
            EXPECT_BYTES(R(read(a_, bytes_, 100)), 10);
            EXPECT_BYTES(R(read(a_, bytes_, 100)), 10);
        } else {
            EXPECT_LT(R(recv(a_, bytes_, 1, MSG_OOB)), 0);
            std::string all;
            for (long count; (count = R(read(a_, bytes_, 100))) > 0;)
                all.append(bytes_, (size_t)count);
            EXPECT_TRUE(all == expected(20)) << "the stream itself is whole";
        }
        EXPECT_EQ(R(read(a_, bytes_, 100)), -EAGAIN);
    }
}

/* docs/design.md, known differences: the number that the bytes came for has them. */
TEST_P(MixedLevel, ADuplicateReadsWhatIsInTheKernel)
{
    FOR_EVERYWHERE(where)
    {
        begin();
        place(100, where);
        int copy = own(dup(a_));
        if (where == Where::kernel || !adopts_this()) {
            EXPECT_BYTES(R(read(copy, bytes_, 60)), 60);
            EXPECT_BYTES(R(read(a_, bytes_, 100)), 40);
        } else {
            EXPECT_BYTES(R(read(a_, bytes_, 1000)), 100);
        }
        EXPECT_EQ(R(read(copy, bytes_, 100)), -EAGAIN);
        send(50);
        EXPECT_BYTES(R(read(copy, bytes_, 20)), 20);
        EXPECT_BYTES(R(read(a_, bytes_, 100)), 30);
    }
}

/* docs/design.md, known differences: batched, the error is the next call's. */
TEST_P(MixedUnix, AWriteOfATurnOfManyToAPeerThatHasGone)
{
    begin();
    int company = own(eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK));
    struct epoll_event event = {};
    event.events = in_;
    event.data.fd = company;
    ASSERT_EQ(epoll_ctl(set_, EPOLL_CTL_ADD, company, &event), 0);
    for (int i = 0; i < 10; i++) {
        send(10);
        EXPECT_EQ(wait(20000), in_);
        EXPECT_EQ(drain(), -EAGAIN);
    }
    send(10);
    EXPECT_EQ(wait(20000), in_);
    ASSERT_EQ(close_now(b_), 0);
    long first = R(::send(a_, "x", 1, MSG_NOSIGNAL));
    EXPECT_TRUE(first == -EPIPE || (adopts_this() && first == 1)) << first;
    EXPECT_EQ(wait(20000), in_ | hup_);
    EXPECT_EQ(R(::send(a_, "x", 1, MSG_NOSIGNAL)), -EPIPE);
    EXPECT_BYTES(R(read(a_, bytes_, 100)), 10);
    EXPECT_EQ(R(read(a_, bytes_, 100)), 0);
}

TEST_P(MixedTcp, RecvmmsgTellsAnErrorFirst)
{
    for (int waits : {0, 1}) {
        begin();
        place(5000, Where::library);
        reset(b_);
        end_arrived(true);
        if (waits) {
            EXPECT_EQ(wait(20000), in_ | err_ | hup_);
        }
        struct iovec iov = {bytes_, 5000};
        struct mmsghdr messages[2] = {};
        messages[0].msg_hdr.msg_iov = messages[1].msg_hdr.msg_iov = &iov;
        messages[0].msg_hdr.msg_iovlen = messages[1].msg_hdr.msg_iovlen = 1;
        EXPECT_EQ(R(recvmmsg(a_, messages, 2, 0, nullptr)), -ECONNRESET);
        EXPECT_BYTES(R(read(a_, bytes_, 10000)), 5000);
        EXPECT_EQ(R(read(a_, bytes_, 10000)), 0);
    }
}

/* A read that gives bytes does not take the error that comes behind them. */
TEST_P(MixedTcp, AnErrorBehindBytesStays)
{
    for (int flags : {0, (int)MSG_PEEK, (int)MSG_WAITALL}) {
        begin();
        place(300, Where::library);
        struct pollfd look = {a_, POLLIN, 0};
        EXPECT_EQ(R(poll(&look, 1, 0)), 1); /* plain reads from here on */
        reset(b_);
        end_arrived(true);
        EXPECT_EQ(R(recv(a_, bytes_, 1000, flags)), 300);
        if (flags & MSG_PEEK) {
            EXPECT_EQ(R(read(a_, bytes_, 1000)), 300);
        }
        EXPECT_EQ(wait(20000), in_ | err_ | hup_);
        EXPECT_EQ(R(read(a_, bytes_, 1000)), -ECONNRESET);
        EXPECT_EQ(wait(20000), in_ | hup_);
        EXPECT_EQ(R(read(a_, bytes_, 1000)), 0);
    }
}

/* The read finds the error behind the bytes and keeps it, while a poll is about to
 * report the file as it is without. */
TEST_P(MixedTcp, AnErrorThatAReadTookAlongIsInTheNextEvent)
{
    begin();
    place(1, Where::library);
    EXPECT_EQ(wait(20000), in_);
    modify(in_ | et_);
    EXPECT_EQ(wait(20000), in_);
    reset(b_);
    end_arrived(true);
    EXPECT_EQ(R(read(a_, bytes_, 1000)), 1);
    EXPECT_EQ(wait(20000), in_ | err_ | hup_);
    EXPECT_EQ(R(read(a_, bytes_, 1000)), -ECONNRESET);
    EXPECT_EQ(R(read(a_, bytes_, 1000)), 0);
}

TEST_P(MixedTcp, AWaitallThatBlocksKeepsTheErrorBehindItsBytes)
{
    begin();
    set_blocking(true);
    place(300, Where::library);
    pid_t reader = this_thread();
    Worker worker([&] {
        until_it_sleeps(reader);
        struct linger at_once = {1, 0};
        setsockopt(b_, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
        close_now(b_);
    });
    EXPECT_EQ(R(recv(a_, bytes_, 1000, MSG_WAITALL)), 300);
    worker.join();
    EXPECT_EQ(R(recv(a_, bytes_, 1000, MSG_DONTWAIT)), -ECONNRESET);
    EXPECT_EQ(R(recv(a_, bytes_, 1000, MSG_DONTWAIT)), 0);
}

/* Somebody else reads, and the next bytes come while others are ready, too. */
TEST_P(Mixed, AfterAnotherThreadsReadTheNextBytesAreReportedAtOnce)
{
    for (int round = 0; round < 5; round++) {
        begin();
        int company = own(eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK));
        struct epoll_event event = {};
        event.events = in_;
        event.data.fd = company;
        ASSERT_EQ(epoll_ctl(set_, EPOLL_CTL_ADD, company, &event), 0);
        send(68);
        EXPECT_EQ(wait(20000), in_);
        EXPECT_EQ(drain(), -EAGAIN);
        rearm();
        Worker other([&] { EXPECT_EQ(R(read(a_, bytes_, 100)), -EAGAIN); });
        other.join();
        send(70);
        EXPECT_EQ(wait(), in_) << "with an eventfd that is always ready";
        EXPECT_EQ(drain(), -EAGAIN);
    }
}

TEST_P(Mixed, AnotherThreadsReadTakesTheQueueAndTheKernelsRest)
{
    for (int round = 0; round < 5; round++) {
        begin();
        place(101, Where::both);
        Worker other([&] { EXPECT_BYTES(R(recv(a_, bytes_, 5000, MSG_NOSIGNAL)), 101); });
        other.join();
        EXPECT_EQ(R(read(a_, bytes_, 5000)), -EAGAIN);
    }
}

TEST_P(MixedEdge, AnEndIsReportedOnce)
{
    for (int how : {SHUT_WR, SHUT_RDWR}) {
        begin(in_ | out_ | rdhup_);
        EXPECT_EQ(wait() & ~out_, 0u);
        EXPECT_EQ(R(::shutdown(how == SHUT_WR ? b_ : a_, how)), 0);
        if (how == SHUT_WR)
            end_arrived();
        uint32_t bits = wait(20000);
        EXPECT_EQ(bits & (in_ | rdhup_), in_ | rdhup_);
        for (int i = 0; i < 4; i++)
            EXPECT_EQ(wait(), 0u) << "again, wait " << i;
    }
}

TEST_P(MixedEdge, AnEndThatAPollToldIsNotToldAgainByAReceive)
{
    for (int i = 0; i < 4; i++) {
        begin(in_);
        if (!tcp())
            continue;
        struct pollfd look = {a_, POLLIN, 0};
        EXPECT_EQ(R(poll(&look, 1, 0)), 0); /* not adopted for a while */
        EXPECT_EQ(wait(), 0u);
        send(1000);
        ASSERT_EQ(R(::shutdown(a_, SHUT_RD)), 0);
        EXPECT_EQ(wait(20000), in_);
        EXPECT_BYTES(R(recv(a_, bytes_, 65536, 0)), 1000);
        for (int turn = 0; turn < 4; turn++)
            EXPECT_EQ(wait(), 0u) << "again, wait " << turn;
    }
}

TEST_P(MixedEdge, AShutdownOfReadsTellsOfBytesAndTheirEndOnceMore)
{
    for (int i = 0; i < 4; i++) {
        begin(in_);
        send(7);
        EXPECT_EQ(wait(20000), in_);
        ASSERT_EQ(::shutdown(b_, SHUT_WR), 0);
        end_arrived();
        EXPECT_EQ(wait(20000), in_);
        EXPECT_EQ(wait(), 0u);
        ASSERT_EQ(R(::shutdown(a_, SHUT_RD)), 0);
        EXPECT_EQ(wait(20000), in_);
        EXPECT_EQ(wait(), 0u) << "again";
        EXPECT_BYTES(R(recv(a_, bytes_, 65536, 0)), 7);
        EXPECT_EQ(R(recv(a_, bytes_, 65536, 0)), 0);
    }
}

TEST_P(MixedEdge, BytesThatComeAsPriIsAskedForAreReportedOnce)
{
    for (int i = 0; i < 4; i++) {
        begin(in_);
        send(1);
        EXPECT_EQ(wait(20000), in_);
        modify(in_ | EPOLLPRI); /* not adopted any more */
        send(100);
        EXPECT_EQ(wait(20000), in_);
        for (int turn = 0; turn < 3; turn++)
            EXPECT_EQ(wait(), 0u) << "again, wait " << turn;
        EXPECT_EQ(drain(), -EAGAIN);
    }
}

TEST_P(MixedEdge, BytesDoNotWakeWhoWaitsForOutAlone)
{
    if (!tcp())
        return; /* wakes for OUT whenever its peer takes a byte */
    begin(in_);
    modify(out_);
    EXPECT_EQ(wait(20000), out_);
    send(1);
    for (int i = 0; i < 4; i++)
        EXPECT_EQ(wait(), 0u) << "wait " << i;
    modify(in_);
    EXPECT_EQ(wait(20000), in_);
    EXPECT_EQ(drain(), -EAGAIN);
}

TEST_P(MixedEdge, OutIsReportedOnceWhereAnotherIsBusy)
{
    if (!tcp())
        return;
    /* Adopted while something of another socket is on its way. */
    for (int round = 0; round < 8; round++) {
        begin(in_ | out_);
        int fds[2];
        connect_pair(fds);
        struct epoll_event event = {};
        event.events = in_ | out_ | rdhup_;
        event.data.fd = fds[0];
        ASSERT_EQ(epoll_ctl(set_, EPOLL_CTL_ADD, fds[0], &event), 0);
        struct pollfd look = {a_, POLLIN, 0};
        EXPECT_EQ(R(poll(&look, 1, 0)), 0);
        for (int i = 0; i < 12; i++) {
            send(1);
            EXPECT_EQ(wait(20000), in_ | out_) << i;
            EXPECT_EQ(drain(), -EAGAIN);
            EXPECT_EQ(write(fds[1], "x", 1), 1);
            EXPECT_EQ(wait(), 0u) << i;
            EXPECT_EQ(wait(), 0u) << i;
        }
    }
}

TEST_P(MixedEdge, AnEndIsReportedOnceWhereAnotherIsBusy)
{
    for (int round = 0; round < 8; round++) {
        begin(in_ | out_ | rdhup_);
        int fds[2];
        connect_pair(fds);
        struct epoll_event event = {};
        event.events = in_;
        event.data.fd = fds[0];
        ASSERT_EQ(epoll_ctl(set_, EPOLL_CTL_ADD, fds[0], &event), 0);
        EXPECT_EQ(wait(), 0u);
        ASSERT_EQ(::shutdown(b_, SHUT_WR), 0);
        end_arrived();
        EXPECT_EQ(wait(20000), in_ | out_ | rdhup_);
        EXPECT_EQ(write(fds[1], "x", 1), 1);
        for (int i = 0; i < 3; i++)
            EXPECT_EQ(wait(), 0u) << i;
    }
}

TEST_P(MixedEdge, AForkDoesNotTellOutAgain)
{
    if (!tcp())
        return;
    begin(in_ | out_ | rdhup_);
    send(57);
    EXPECT_EQ(wait(20000), in_ | out_);
    pid_t child = fork();
    if (child == 0)
        _exit(0);
    EXPECT_TRUE(child_is_content(child));
    for (int i = 0; i < 3; i++)
        EXPECT_EQ(wait(), 0u) << i;
    EXPECT_EQ(drain(), -EAGAIN);
}

TEST_P(Mixed, AWriteAfterTheShutdownIsRefusedAtOnce)
{
    begin(in_ | rdhup_);
    int company = own(eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK));
    struct epoll_event event = {};
    event.events = in_;
    event.data.fd = company;
    ASSERT_EQ(epoll_ctl(set_, EPOLL_CTL_ADD, company, &event), 0);
    for (int i = 0; i < 10; i++) { /* turns of two events: a profile that batches does */
        send(10);
        wait(20000);
        EXPECT_EQ(drain(), -EAGAIN);
        EXPECT_EQ(R(write(a_, "x", 1)), 1);
        rearm();
    }
    send(10);
    EXPECT_EQ(wait(20000), in_);
    EXPECT_EQ(R(::shutdown(a_, SHUT_WR)), 0);
    EXPECT_EQ(R(write(a_, "refused", 7)), -EPIPE);
    EXPECT_EQ(R(::send(a_, "refused", 7, MSG_NOSIGNAL)), -EPIPE);
    EXPECT_EQ(read(b_, bytes_, 100), 10);
    EXPECT_EQ(read(b_, bytes_, 100), 0);
}

TEST_P(MixedUnix, WritevOfNothingIsNothingEvenToAPeerThatHasGone)
{
    begin();
    ASSERT_EQ(close_now(b_), 0);
    struct iovec nothing[2] = {{bytes_, 0}, {nullptr, 0}};
    EXPECT_EQ(R(writev(a_, nothing, 2)), 0);
    EXPECT_EQ(R(write(a_, bytes_, 0)), -EPIPE);
}

/* The bytes of one end, by a child that has the socket to itself from then on. */
TEST_P(Mixed, AChildGoesOnWithTheSocketAndReadsAllOfIt)
{
    FOR_EVERYWHERE(where)
    {
        begin();
        place(3000, where);
        int go[2];
        ASSERT_EQ(pipe2(go, O_CLOEXEC), 0);
        std::string text = coming(3000);
        pid_t child = fork();
        if (child == 0) {
            char byte;
            IN_CHILD(read(go[0], &byte, 1) == 1);
            size_t got = 0;
            for (ssize_t count; got < 3000 && (count = read(a_, bytes_ + got, 4000)) > 0;)
                got += (size_t)count;
            IN_CHILD(got == 3000 && memcmp(bytes_, text.data(), 3000) == 0);
            IN_CHILD(write(a_, "done", 4) == 4);
            _exit(0);
        }
        ASSERT_EQ(close_now(a_), 0);
        EXPECT_EQ(write(go[1], "x", 1), 1);
        EXPECT_TRUE(child_is_content(child));
        close(go[0]);
        close(go[1]);
        EXPECT_EQ(read(b_, bytes_, 10), 4);
        EXPECT_EQ(read(b_, bytes_, 10), 0);
    }
}

TEST_P(MixedTcp, BytesAfterTheEndOfReadingAreReportedTogetherWithIt)
{
    for (uint32_t trigger : {0u, et_}) {
        for (bool before : {false, true}) {
            end();
            int fds[2];
            set_ = own(epoll_create1(EPOLL_CLOEXEC));
            connect_pair(fds);
            a_ = fds[0];
            b_ = fds[1];
            sent_ = taken_ = 0;
            struct epoll_event event = {};
            event.events = events_ = in_ | rdhup_ | trigger;
            event.data.fd = a_;
            ASSERT_EQ(before ? ::shutdown(a_, SHUT_RD) : 0, 0);
            ASSERT_EQ(epoll_ctl(set_, EPOLL_CTL_ADD, a_, &event), 0);
            ASSERT_EQ(before ? 0 : ::shutdown(a_, SHUT_RD), 0);
            for (int i = 0; i < 8; i++) {
                send(20);
                EXPECT_EQ(wait(20000), in_ | rdhup_) << i << trigger;
                EXPECT_BYTES(R(recv(a_, bytes_, 1000, 0)), 20);
            }
        }
    }
}

TEST_P(Mixed, ASecondSetHearsAtOnceOfBytesThatAreInTheLibrary)
{
    for (uint32_t trigger : {0u, et_, once_}) {
        begin(in_ | out_ | rdhup_);
        wait();
        rearm();
        send(10);
        EXPECT_NE(wait(20000), 0u);
        int second = own(epoll_create1(EPOLL_CLOEXEC));
        struct epoll_event event = {};
        event.events = in_ | out_ | trigger;
        ASSERT_EQ(R(epoll_ctl(second, EPOLL_CTL_ADD, a_, &event)), 0);
        event.events = 0;
        EXPECT_EQ(epoll_wait(second, &event, 1, 0), 1);
        EXPECT_EQ(event.events, in_ | out_) << trigger;
        EXPECT_BYTES(R(recv(a_, bytes_, 1000, 0)), 10);
    }
}

TEST_P(MixedTcp, AWriteOfNothingTakesTheErrorOfAReset)
{
    for (int how = 0; how < 5; how++) { /* but a writev of nothing */
        begin();
        send(100);
        EXPECT_EQ(wait(20000), in_);
        reset(b_);
        end_arrived(true);
        EXPECT_NE(wait(20000), 0u);
        struct iovec nothing[3] = {{bytes_, 0}, {bytes_, 0}, {bytes_, 0}};
        struct msghdr message = {};
        message.msg_iov = nothing;
        message.msg_iovlen = 3;
        long result = how == 0   ? R(write(a_, bytes_, 0))
                      : how == 1 ? R(::send(a_, bytes_, 0, MSG_NOSIGNAL))
                      : how == 2 ? R(sendmsg(a_, &message, MSG_NOSIGNAL))
                      : how == 3 ? R(writev(a_, nothing, 3))
                                 : 0;
        EXPECT_EQ(result, how < 3 ? -ECONNRESET : 0) << how;
        EXPECT_EQ(R(::send(a_, bytes_, 1, MSG_NOSIGNAL)), how < 3 ? -EPIPE : -ECONNRESET) << how;
    }
}

TEST_P(MixedEdge, OutOfAnAfUnixSocketIsReportedAtMostOnceMoreAtAnAdoptionAndNeverLess)
{
    if (tcp())
        return;
    for (int round = 0; round < 8; round++) {
        begin(in_ | out_ | rdhup_);
        int fds[2], more = 0;
        connect_pair(fds);
        struct epoll_event event = {};
        event.events = in_ | out_ | rdhup_ | et_;
        event.data.fd = fds[0];
        ASSERT_EQ(epoll_ctl(set_, EPOLL_CTL_ADD, fds[0], &event), 0);
        struct pollfd look = {a_, POLLIN, 0};
        EXPECT_EQ(R(poll(&look, 1, 0)), 0); /* not adopted for a while */
        wait();
        for (int i = 0; i < 12; i++) {
            send(1);
            EXPECT_EQ(write(fds[1], "x", 1), 1);
            EXPECT_EQ(wait(20000), in_ | out_) << i;
            EXPECT_EQ(drain(), -EAGAIN);
            for (int turn = 0; turn < 2; turn++) {
                EXPECT_EQ(write(fds[1], "x", 1), 1);
                uint32_t bits = wait();
                more += bits != 0;
                EXPECT_EQ(bits & ~out_, 0u);
            }
        }
        EXPECT_LE(more, adopts_this() ? 1 : 0) << round;
    }
}

/* A splice takes what a wake-up told of, on a socket that was drained and is not adopted. */
TEST_P(MixedUnix, WhatWasSplicedAwayIsNotReported)
{
    int set = own(epoll_create1(EPOLL_CLOEXEC)), fds[2], ends[2];
    ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0);
    ASSERT_EQ(pipe2(ends, O_NONBLOCK | O_CLOEXEC), 0);
    for (int fd : {fds[0], fds[1], ends[0], ends[1]})
        own(fd);
    struct epoll_event event = {};
    event.events = in_;
    event.data.fd = fds[0];
    ASSERT_EQ(epoll_ctl(set, EPOLL_CTL_ADD, fds[0], &event), 0);
    for (int i = 0; i < 3; i++) {
        ASSERT_EQ(write(fds[1], "x", 1), 1);
        ASSERT_EQ(epoll_wait(set, &event, 1, 20000), 1);
        ASSERT_EQ(read(fds[0], bytes_, 100), 1);
        EXPECT_EQ(epoll_wait(set, &event, 1, 0), 0);
        ASSERT_EQ(write(fds[1], "x", 1), 1);
        ASSERT_EQ(splice(fds[0], nullptr, ends[1], nullptr, 100, SPLICE_F_NONBLOCK), 1);
        EXPECT_EQ(epoll_wait(set, &event, 1, 0), 0) << i;
    }
}

TEST_P(MixedEdge, BytesAfterTheEndOfReadingAreAnEdgeOfTheirOwn)
{
    if (!tcp())
        return; /* nobody can write any more */
    for (int i = 0; i < 4; i++) {
        begin(i < 2 ? in_ : in_ | rdhup_);
        ASSERT_EQ(::shutdown(a_, SHUT_RD), 0);
        EXPECT_EQ(wait(20000) & in_, in_);
        for (int more = 0; more < 3; more++) {
            send(64);
            EXPECT_EQ(wait(20000) & in_, in_) << i;
            EXPECT_EQ(wait(), 0u) << i;
            if (i % 2) {
                EXPECT_BYTES(R(recv(a_, bytes_, 64, 0)), 64);
            }
        }
    }
}

TEST_P(MixedTcp, ACloseByAnotherThreadOfWhatTwoSetsWatchResetsThePeerOfUnreadBytes)
{
    FOR_EVERYWHERE(where)
    {
        begin();
        place(30, where);
        int second = own(epoll_create1(EPOLL_CLOEXEC));
        struct epoll_event event = {}, got = {};
        event.events = in_;
        ASSERT_EQ(epoll_ctl(second, EPOLL_CTL_ADD, a_, &event), 0);
        EXPECT_EQ(epoll_wait(second, &got, 1, 20000), 1);
        Worker closer([&] { EXPECT_EQ(close_now(a_), 0); });
        ASSERT_TRUE(closer.join());
        struct pollfd look = {b_, POLLIN | POLLRDHUP, 0};
        ASSERT_EQ(past::poll(&look, 1, 20000), 1) << "no end";
        EXPECT_EQ(R(read(b_, bytes_, 10)), -ECONNRESET);
        EXPECT_EQ(R(read(b_, bytes_, 10)), 0);
    }
}

/* It is nested, so that what it has to say is an edge of another's. */
TEST_P(Mixed, ASecondSetThatDoesNotAskForBytesIsNotReadyForThem)
{
    for (uint32_t asks : {rdhup_, rdhup_ | once_, in_ | rdhup_}) {
        begin();
        place(64, Where::library);
        int second = own(epoll_create1(EPOLL_CLOEXEC)), outer = own(epoll_create1(EPOLL_CLOEXEC));
        struct epoll_event event = {};
        event.events = in_ | et_;
        ASSERT_EQ(epoll_ctl(outer, EPOLL_CTL_ADD, second, &event), 0);
        event.events = asks;
        ASSERT_EQ(epoll_ctl(second, EPOLL_CTL_ADD, a_, &event), 0);
        EXPECT_EQ(epoll_wait(outer, &event, 1, 0), asks & in_ ? 1 : 0) << asks;
        event.events = in_ | rdhup_;
        ASSERT_EQ(epoll_ctl(second, EPOLL_CTL_MOD, a_, &event), 0);
        EXPECT_EQ(epoll_wait(outer, &event, 1, 0), asks & in_ ? 0 : 1) << asks;
        EXPECT_BYTES(R(read(a_, bytes_, 100)), 64);
        EXPECT_EQ(epoll_wait(second, &event, 1, 0), 0);
    }
}

/* The peer has gone, which a one-shot has told of together with the bytes: that was its shot. */
TEST_P(MixedUnix, AOneShotOfADuplicateReportsBytesAndTheEndOnce)
{
    for (int room : {1, 8}) {
        begin();
        place(2, Where::library);
        ASSERT_EQ(close_now(b_), 0);
        int copy = own(dup(a_));
        struct epoll_event event = {}, events[8];
        event.events = in_ | EPOLLPRI | once_;
        event.data.fd = copy;
        ASSERT_EQ(epoll_ctl(set_, EPOLL_CTL_ADD, copy, &event), 0);
        for (int again = 0; again < 3; again++) {
            int told = 0;
            for (int i = 0; i < 10; i++)
                for (int count = epoll_wait(set_, events, room, 0); count > 0; count--)
                    if (events[count - 1].data.fd == copy) {
                        EXPECT_EQ(events[count - 1].events, in_ | hup_);
                        told++;
                    }
            EXPECT_EQ(told, 1) << "room for " << room << ", time " << again;
            ASSERT_EQ(epoll_ctl(set_, EPOLL_CTL_MOD, copy, &event), 0);
        }
        EXPECT_BYTES(R(read(a_, bytes_, 100)), 2);
    }
}

TEST_P(Mixed, ANestedSetIsNotReadyForBytesThatWereRead)
{
    for (bool closes : {false, true}) {
        begin();
        place(64, Where::library);
        int outer = own(epoll_create1(EPOLL_CLOEXEC));
        struct epoll_event event = {};
        event.events = in_;
        ASSERT_EQ(epoll_ctl(outer, EPOLL_CTL_ADD, set_, &event), 0);
        if (closes) {
            ASSERT_EQ(close_now(a_), 0);
        } else {
            EXPECT_BYTES(R(read(a_, bytes_, 100)), 64);
        }
        EXPECT_EQ(epoll_wait(outer, &event, 1, 0), 0);
    }
}

TEST_P(Mixed, AddedOnceMoreToASecondSetItTellsOfItsBytesOnceMore)
{
    begin();
    place(64, Where::library);
    int second = own(epoll_create1(EPOLL_CLOEXEC));
    for (uint32_t events : {in_ | once_, in_ | out_, in_ | rdhup_ | et_, in_ | et_}) {
        struct epoll_event event = {};
        event.events = events;
        ASSERT_EQ(epoll_ctl(second, EPOLL_CTL_ADD, a_, &event), 0);
        EXPECT_EQ(epoll_wait(second, &event, 1, 20000), 1);
        EXPECT_EQ(event.events, events & (in_ | out_));
        ASSERT_EQ(epoll_ctl(second, EPOLL_CTL_DEL, a_, nullptr), 0);
    }
    EXPECT_BYTES(R(read(a_, bytes_, 100)), 64);
}

TEST_P(MixedTcp, AnErrorThatAnEdgeHasToldIsNotToldAgainByAMove)
{
    for (uint32_t events : {0u, in_, in_ | out_}) {
        begin();
        struct epoll_event event = {};
        event.events = events | et_;
        event.data.fd = a_;
        ASSERT_EQ(epoll_ctl(set_, EPOLL_CTL_MOD, a_, &event), 0);
        wait();
        reset(b_);
        end_arrived(true);
        EXPECT_EQ(wait(20000), events | err_ | hup_);
        int pair[2];
        ASSERT_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
        own(pair[0]);
        own(pair[1]);
        alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof a_)] = {};
        struct iovec iov = {bytes_, 1};
        struct msghdr message = {};
        message.msg_iov = &iov;
        message.msg_iovlen = 1;
        message.msg_control = control;
        message.msg_controllen = sizeof control;
        CMSG_FIRSTHDR(&message)->cmsg_level = SOL_SOCKET;
        CMSG_FIRSTHDR(&message)->cmsg_type = SCM_RIGHTS;
        CMSG_FIRSTHDR(&message)->cmsg_len = CMSG_LEN(sizeof a_);
        memcpy(CMSG_DATA(CMSG_FIRSTHDR(&message)), &a_, sizeof a_);
        ASSERT_EQ(sendmsg(pair[0], &message, 0), 1);
        EXPECT_EQ(wait(), 0u) << events;
    }
}

TEST_P(MixedEdge, AnEventTellsOfAllThereIsThoughBytesWereToldOfBefore)
{
    for (bool elsewhere : {false, true}) {
        begin(in_ | out_);
        wait();
        place(64, Where::library);
        int other = own(epoll_create1(EPOLL_CLOEXEC));
        struct epoll_event event = {};
        event.events = in_ | out_ | et_;
        ASSERT_EQ(epoll_ctl(other, EPOLL_CTL_ADD, elsewhere ? a_ : set_, &event), 0);
        int set = elsewhere ? other : set_;
        if (elsewhere) {
            EXPECT_EQ(epoll_wait(set, &event, 1, 0), 1);
            EXPECT_EQ(event.events, in_ | out_);
        }
        EXPECT_EQ(epoll_wait(set, &event, 1, 0), 0);
        ASSERT_EQ(::shutdown(a_, SHUT_WR), 0);
        EXPECT_EQ(epoll_wait(set, &event, 1, 0), 1) << elsewhere;
        EXPECT_EQ(event.events, in_ | out_) << elsewhere;
        EXPECT_EQ(epoll_wait(set, &event, 1, 0), 0) << elsewhere << " " << event.events;
        EXPECT_BYTES(R(read(a_, bytes_, 100)), 64);
    }
}

TEST_P(MixedLevel, WithRoomForOneEachNumberOfASocketWithBytesHasItsTurn)
{
    begin();
    place(64, Where::library);
    std::vector<int> told(4, 0);
    for (int i = 0; i < 3; i++) {
        int copy = own(dup(a_));
        struct epoll_event event = {};
        event.events = in_;
        event.data.u64 = 1000u + (unsigned)i;
        ASSERT_EQ(epoll_ctl(set_, EPOLL_CTL_ADD, copy, &event), 0);
    }
    for (int i = 0; i < 24; i++) {
        struct epoll_event event;
        ASSERT_EQ(epoll_wait(set_, &event, 1, 0), 1);
        told[event.data.u64 >= 1000 ? event.data.u64 - 1000 : 3]++;
    }
    for (int i = 0; i < 4; i++)
        EXPECT_GE(told[(size_t)i], 3) << i;
    EXPECT_BYTES(R(read(a_, bytes_, 100)), 64);
}

/* Two sets; what the first received the second hears of, a one-shot anew with each MOD. */
TEST_P(MixedUnix, AOneShotOfASecondSetHearsAgainOfBytesThatTheFirstHas)
{
    begin(in_ | out_);
    place(64, Where::library);
    int second = own(epoll_create1(EPOLL_CLOEXEC));
    struct epoll_event event = {};
    event.events = in_ | out_ | once_;
    event.data.u32 = 1;
    ASSERT_EQ(epoll_ctl(second, EPOLL_CTL_ADD, a_, &event), 0);
    for (uint32_t wanted : {in_ | out_, in_, in_ | rdhup_}) {
        ASSERT_EQ(epoll_wait(second, &event, 1, 20000), 1);
        EXPECT_EQ(event.events, wanted & ~rdhup_);
        EXPECT_EQ(epoll_wait(second, &event, 1, 0), 0) << "one-shot";
        event.events = (wanted == in_ ? in_ | rdhup_ : in_) | once_;
        ASSERT_EQ(epoll_ctl(second, EPOLL_CTL_MOD, a_, &event), 0);
    }
    EXPECT_BYTES(R(read(a_, bytes_, 100)), 64);
}
