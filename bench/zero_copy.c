/* SPDX-License-Identifier: MIT
 *
 * From which size a send that does not copy is cheaper: SEND against SEND_ZC, on one ring, in
 * turns, on one connection whose packets nobody copies. No such path is to be had between
 * two sockets of one machine, so the peer is made up, in a network namespace of our own
 * (root): the connection is put into being established by TCP_REPAIR, its packets leave
 * by an `ifb` device, which drops what nobody redirected to it, and its acknowledgements are
 * written into a `tun` device. The kernel's report (IORING_SEND_ZC_REPORT_USAGE) says whether it
 * copied.
 *
 *     zero-copy [--mtu=1500] [--rounds=1000] [--cold]
 *
 * Per size, the medians of: the send until its first completion; the acknowledgement, which
 * frees what was sent; with SEND_ZC, the notification. --cold: each send's bytes have left the
 * caches. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cycles.h"
#include "ring.h"
#include "ringpoll/ringpoll.h"

#define OWN 0x0a4d0001u  /* 10.77.0.1 */
#define PEER 0x0a4d0002u /* 10.77.0.2 */
#define OWN_PORT 7001
#define PEER_PORT 7002
#define FIRST_SENT 1000000u
#define FIRST_RECEIVED 2000000u
#define MOST (128u << 10)
#define COLD_BYTES (64u << 20)
#define ROUNDS_MOST 100000u

struct repair_option { /* struct tcp_repair_opt, tcp_repair_window: libc has them not everywhere */
    uint32_t code, value;
};
struct repair_window {
    uint32_t snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup;
};

static _Noreturn void fail(const char *what)
{
    fprintf(stderr, "zero-copy: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void sh(const char *command)
{
    if (system(command) != 0) {
        fprintf(stderr, "zero-copy: refused: %s\n", command);
        exit(77);
    }
}

static void make_network(unsigned mtu)
{
    char command[512];
    if (unshare(CLONE_NEWNET) != 0)
        fail("unshare(CLONE_NEWNET)");
    snprintf(command, sizeof command,
             "ip link set lo up && ip link add ifb0 type ifb && ip link set ifb0 mtu %u up && "
             "ip addr add 10.77.0.1/32 dev ifb0 && ip route add 10.77.0.2 dev ifb0 initcwnd 4000 && "
             "sysctl -qw net.ipv4.tcp_slow_start_after_idle=0 net.ipv4.conf.all.rp_filter=0 "
             "net.ipv4.conf.default.rp_filter=0 net.ipv4.tcp_no_metrics_save=1",
             mtu);
    sh(command);
}

static int make_tun(void)
{
    struct ifreq request;
    int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        fail("/dev/net/tun");
    memset(&request, 0, sizeof request);
    request.ifr_flags = IFF_TUN | IFF_NO_PI;
    strcpy(request.ifr_name, "acks");
    if (ioctl(fd, TUNSETIFF, &request) != 0)
        fail("TUNSETIFF");
    sh("ip link set acks up");
    return fd;
}

static int make_connection(unsigned mtu)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    int on = 1, off = -1, queue, bytes = 16 << 20;
    uint32_t sequence;
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_port = htons(OWN_PORT), .sin_addr.s_addr = htonl(OWN)};
    struct sockaddr_in peer = {.sin_family = AF_INET, .sin_port = htons(PEER_PORT), .sin_addr.s_addr = htonl(PEER)};
    struct repair_option options[] = {{2 /* MSS */, mtu - 40}, {3 /* window scale */, 10 | 10u << 16}};
    struct repair_window window = {FIRST_RECEIVED, 32u << 20, 32u << 20, 1u << 20, FIRST_RECEIVED};
    if (setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &on, sizeof on) != 0)
        fail("TCP_REPAIR");
    setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof bytes);
    if (bind(fd, (struct sockaddr *)&own, sizeof own) != 0)
        fail("bind");
    for (queue = 1; queue <= 2; queue++) { /* TCP_RECV_QUEUE, TCP_SEND_QUEUE */
        sequence = queue == 1 ? FIRST_RECEIVED : FIRST_SENT;
        if (setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, &queue, sizeof queue) != 0 ||
            setsockopt(fd, IPPROTO_TCP, TCP_QUEUE_SEQ, &sequence, sizeof sequence) != 0)
            fail("TCP_QUEUE_SEQ");
    }
    if (connect(fd, (struct sockaddr *)&peer, sizeof peer) != 0)
        fail("connect");
    if (setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_OPTIONS, options, sizeof options) != 0)
        fail("TCP_REPAIR_OPTIONS");
    if (setsockopt(fd, IPPROTO_TCP, 29 /* TCP_REPAIR_WINDOW */, &window, sizeof window) != 0)
        fail("TCP_REPAIR_WINDOW");
    if (setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &off, sizeof off) != 0) /* without a probe */
        fail("TCP_REPAIR");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

static uint32_t add_up(const void *bytes, size_t length, uint32_t sum)
{
    const uint8_t *at = bytes;
    for (size_t i = 0; i + 1 < length; i += 2)
        sum += (uint32_t)at[i] << 8 | at[i + 1];
    return sum;
}

static uint16_t folded(uint32_t sum)
{
    while (sum >> 16)
        sum = (sum & 0xffffu) + (sum >> 16);
    return htons((uint16_t)~sum);
}

/* The peer's: all up to there has arrived. */
static void acknowledge(int tun, uint32_t sequence)
{
    struct {
        struct iphdr ip;
        struct tcphdr tcp;
    } packet;
    memset(&packet, 0, sizeof packet);
    packet.ip.version = 4;
    packet.ip.ihl = 5;
    packet.ip.tot_len = htons(sizeof packet);
    packet.ip.ttl = 64;
    packet.ip.protocol = IPPROTO_TCP;
    packet.ip.saddr = htonl(PEER);
    packet.ip.daddr = htonl(OWN);
    packet.ip.check = folded(add_up(&packet.ip, sizeof packet.ip, 0));
    packet.tcp.source = htons(PEER_PORT);
    packet.tcp.dest = htons(OWN_PORT);
    packet.tcp.seq = htonl(FIRST_RECEIVED);
    packet.tcp.ack_seq = htonl(sequence);
    packet.tcp.doff = 5;
    packet.tcp.ack = 1;
    packet.tcp.window = htons(32768);
    packet.tcp.check = folded(add_up(&packet.ip.saddr, 8, add_up(&packet.tcp, sizeof packet.tcp, IPPROTO_TCP + sizeof packet.tcp)));
    if (write(tun, &packet, sizeof packet) != sizeof packet)
        fail("tun");
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

int main(int argc, char **argv)
{
    static struct side sides[2];
    unsigned mtu = 1500, rounds = 1000;
    bool cold = false;
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--mtu=", 6) == 0)
            mtu = (unsigned)atoi(argv[i] + 6);
        else if (strncmp(argv[i], "--rounds=", 9) == 0)
            rounds = (unsigned)atoi(argv[i] + 9);
        else if (strcmp(argv[i], "--cold") == 0)
            cold = true;
        else
            mtu = 0;
    }
    if (mtu < 576 || mtu > 65535 || rounds < 1 || rounds > ROUNDS_MOST) {
        fprintf(stderr, "usage: zero-copy [--mtu=1500] [--rounds=1000] [--cold]\n");
        return 2;
    }
    make_network(mtu);
    int tun = make_tun(), fd = make_connection(mtu);
    uint32_t sequence = FIRST_SENT;
    char *bytes = mmap(NULL, COLD_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (bytes == MAP_FAILED)
        fail("mmap");
    memset(bytes, 'z', COLD_BYTES);
    struct rp_ring ring;
    struct rp_ring_options options = {.sq_entries = 8, .cq_entries = 64, .features = ~UINT64_C(0), .single_thread = true};
    errno = -rp_ring_init(&ring, &options);
    if (errno)
        fail("io_uring_setup");

    printf("MTU %u, %s bytes, %u rounds; " BENCH_CLOCK_UNIT "\n\n", mtu, cold ? "cold" : "warm", rounds);
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
                sequence += size;
                acknowledge(tun, sequence);
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
