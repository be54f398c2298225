/* SPDX-License-Identifier: MIT
 *
 * From which size a send that does not copy is cheaper: SEND against SEND_ZC, on one ring, in
 * turns, on one connection whose packets nobody copies (made_up_peer.h; root). The kernel's report (IORING_SEND_ZC_REPORT_USAGE) says whether it
 * copied.
 *
 *     zero-copy [--mtu=1500] [--rounds=1000] [--cold] [--library]
 *
 * Per size, the medians of: the send until its first completion; the acknowledgement, which
 * frees what was sent; with SEND_ZC, the notification. --cold: each send's bytes have left the
 * caches. --library: by ringpoll_send() and ringpoll_try_sendv_zc() on a set, with a wait after each,
 * which is where the memory is released. */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "cycles.h"
#include "made_up_peer.h"
#include "ring.h"
#include "ringpoll/ringpoll.h"
#include "send.h"

#define MOST (128u << 10)
#define COLD_BYTES (64u << 20)
#define ROUNDS_MOST 100000u

static _Noreturn void fail(const char *what)
{
    fprintf(stderr, "zero-copy: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static uint64_t median(uint64_t *values, unsigned count)
{
    qsort(values, count, sizeof *values, compare);
    return values[count / 2];
}

struct side {
    uint64_t send[ROUNDS_MOST], ack[ROUNDS_MOST], notification[ROUNDS_MOST], total[ROUNDS_MOST];
};

static void count_release(void *argument)
{
    ++*(unsigned *)argument;
}

static int make_set(int fd)
{
    struct ringpoll_options options = {.size = sizeof options, .flags = RINGPOLL_ADOPT | RINGPOLL_BATCH};
    struct epoll_event event = {.events = EPOLLIN};
    static const struct timespec now = {0, 0};
    int set = ringpoll_create(&options);
    ringpoll_fd_opened(fd, RINGPOLL_FD_TCP | RINGPOLL_FD_CONNECTED | RINGPOLL_FD_NONBLOCK);
    if (set < 0 || ringpoll_ctl(set, EPOLL_CTL_ADD, fd, &event) < 0 || ringpoll_wait(set, &event, 1, &now, NULL) != 0)
        fail("set");
    return set;
}

static void send_by_library(int set, struct made_up_peer *peer, const char *bytes, uint32_t size, bool zc,
                            struct side *side, unsigned slot)
{
    static const struct timespec now = {0, 0};
    struct iovec iov = {(void *)(uintptr_t)bytes, size};
    struct epoll_event event;
    unsigned released = 0;
    uint64_t begin = cycles_now();
    long sent = zc ? ringpoll_try_sendv_zc(peer->fd, &iov, 1, MSG_NOSIGNAL, count_release, &released)
                   : ringpoll_send(peer->fd, bytes, size, MSG_NOSIGNAL);
    uint64_t taken = cycles_now();
    if (sent != (long)size) {
        errno = sent < 0 && sent != RINGPOLL_PASS ? (int)-sent : EIO;
        fail("send");
    }
    if (made_up_acknowledge(peer, size) < 0)
        fail("acknowledgement");
    uint64_t acknowledged = cycles_now();
    do
        (void)ringpoll_wait(set, &event, 1, &now, NULL);
    while (zc && released == 0);
    uint64_t end = cycles_now();
    side->send[slot] = taken - begin;
    side->ack[slot] = acknowledged - taken;
    side->notification[slot] = end - acknowledged;
    side->total[slot] = end - begin;
}

int main(int argc, char **argv)
{
    static struct side sides[2];
    unsigned mtu = 1500, rounds = 1000;
    bool cold = false, library = false;
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--mtu=", 6) == 0)
            mtu = (unsigned)atoi(argv[i] + 6);
        else if (strncmp(argv[i], "--rounds=", 9) == 0)
            rounds = (unsigned)atoi(argv[i] + 9);
        else if (strcmp(argv[i], "--cold") == 0)
            cold = true;
        else if (strcmp(argv[i], "--library") == 0)
            library = true;
        else
            mtu = 0;
    }
    if (mtu < 576 || mtu > 65535 || rounds < 1 || rounds > ROUNDS_MOST) {
        fprintf(stderr, "usage: zero-copy [--mtu=1500] [--rounds=1000] [--cold] [--library]\n");
        return 2;
    }
    struct made_up_peer peer;
    if (made_up_connect(&peer, mtu) < 0) {
        fprintf(stderr, "zero-copy: %s\n", peer.refused);
        return 77;
    }
    int fd = peer.fd;
    char *bytes = mmap(NULL, COLD_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (bytes == MAP_FAILED)
        fail("mmap");
    memset(bytes, 'z', COLD_BYTES);
    struct rp_ring ring;
    struct rp_ring_options options = {.sq_entries = 8, .cq_entries = 64, .features = ~UINT64_C(0), .single_thread = true};
    errno = -rp_ring_init(&ring, &options);
    if (errno)
        fail("io_uring_setup");

    rp_send_zc_least = 1;
    int set = library ? make_set(fd) : -1;
    printf("MTU %u, %s bytes, %u rounds%s; " BENCH_CLOCK_UNIT "\n\n", mtu, cold ? "cold" : "warm", rounds,
           library ? ", by the library" : "");
    printf("| bytes | SEND | acknowledged | sum | SEND_ZC | acknowledged | notification | sum | SEND / SEND_ZC |\n"
           "|---|---|---|---|---|---|---|---|---|\n");
    static const unsigned char kibibytes[] = {1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128};
    for (unsigned i = 0; i < sizeof kibibytes; i++) {
        uint32_t size = kibibytes[i] * 1024u;
        unsigned copied = 0;
        size_t at = 0;
        for (unsigned round = 0; round < rounds + 20; round++) { /* the first ones warm up */
            unsigned slot = round < 20 ? 0 : round - 20;
            for (unsigned zc = 0; zc < 2; zc++) {
                struct side *side = &sides[zc];
                struct rp_cqe *cqe;
                at = cold ? (at + MOST) % COLD_BYTES : 0;
                if (library) {
                    send_by_library(set, &peer, bytes + at, size, zc, side, slot);
                    continue;
                }
                uint64_t begin = cycles_now();
                struct rp_sqe *sqe = rp_ring_get_sqe(&ring);
                sqe->opcode = zc ? RP_IORING_OP_SEND_ZC : RP_IORING_OP_SEND;
                sqe->fd = fd;
                sqe->ioprio = zc ? RP_SEND_ZC_REPORT_USAGE : 0;
                sqe->addr = (uint64_t)(uintptr_t)(bytes + at);
                sqe->len = size;
                sqe->op_flags = MSG_DONTWAIT | MSG_WAITALL | MSG_NOSIGNAL;
                sqe->user_data = 1;
                (void)rp_ring_enter(&ring, 0, NULL, NULL);
                cqe = rp_ring_peek(&ring);
                if (!cqe || cqe->res != (int)size) {
                    errno = cqe && cqe->res < 0 ? -cqe->res : EIO;
                    fail("send");
                }
                rp_ring_seen(&ring);
                uint64_t sent = cycles_now();
                if (made_up_acknowledge(&peer, size) < 0)
                    fail("acknowledgement");
                uint64_t acknowledged = cycles_now();
                if (zc) {
                    while (!(cqe = rp_ring_peek(&ring)))
                        (void)rp_ring_enter(&ring, 0, NULL, NULL);
                    if (!(cqe->flags & RP_CQE_F_NOTIF))
                        fail("no notification");
                    copied += ((uint32_t)cqe->res & RP_NOTIF_USAGE_ZC_COPIED) != 0;
                    rp_ring_seen(&ring);
                }
                uint64_t end = cycles_now();
                int left = -1;
                if (ioctl(fd, TIOCOUTQ, &left) != 0 || left != 0) {
                    fprintf(stderr, "zero-copy: %d bytes are not acknowledged\n", left);
                    return 1;
                }
                side->send[slot] = sent - begin;
                side->ack[slot] = acknowledged - sent;
                side->notification[slot] = end - acknowledged;
                side->total[slot] = zc ? end - begin : acknowledged - begin;
            }
        }
        uint64_t plain = median(sides[0].total, rounds), zero = median(sides[1].total, rounds);
        printf("| %u | %llu | %llu | %llu | %llu | %llu | %llu | %llu | %.2f%s |\n", size,
               (unsigned long long)median(sides[0].send, rounds), (unsigned long long)median(sides[0].ack, rounds),
               (unsigned long long)plain, (unsigned long long)median(sides[1].send, rounds),
               (unsigned long long)median(sides[1].ack, rounds),
               (unsigned long long)median(sides[1].notification, rounds), (unsigned long long)zero,
               (double)plain / (double)zero, copied ? " (copied)" : "");
        fflush(stdout);
    }
    return 0;
}
