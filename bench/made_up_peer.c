/* SPDX-License-Identifier: MIT
 *
 * A TCP connection whose peer is made up; what it is good for stands in made_up_peer.h.
 */
#include "made_up_peer.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define OWN 0x0a4d0001u  /* 10.77.0.1 */
#define PEER 0x0a4d0002u /* 10.77.0.2 */
#define OWN_PORT 7001
#define PEER_PORT 7002
#define FIRST_SENT 1000000u
#define FIRST_RECEIVED 2000000u

struct repair_option { /* struct tcp_repair_opt, tcp_repair_window: libc has them not everywhere */
    uint32_t code, value;
};
struct repair_window {
    uint32_t snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup;
};

/* -1, with what was refused and why. */
static int refused(struct made_up_peer *peer, const char *what)
{
    snprintf(peer->refused, sizeof peer->refused, "%s: %s", what, strerror(errno));
    return -1;
}

static int sh(struct made_up_peer *peer, const char *command)
{
    if (system(command) == 0)
        return 0;
    snprintf(peer->refused, sizeof peer->refused, "refused: %.200s", command);
    return -1;
}

static int make_network(struct made_up_peer *peer, unsigned mtu)
{
    char command[512];
    struct ifreq request;
    if (unshare(CLONE_NEWNET) != 0)
        return refused(peer, "unshare(CLONE_NEWNET)");
    snprintf(command, sizeof command,
             "ip link set lo up && ip link add ifb0 type ifb && ip link set ifb0 mtu %u up && "
             "ip addr add 10.77.0.1/32 dev ifb0 && ip route add 10.77.0.2 dev ifb0 initcwnd 4000 && "
             "sysctl -qw net.ipv4.tcp_slow_start_after_idle=0 net.ipv4.conf.all.rp_filter=0 "
             "net.ipv4.conf.default.rp_filter=0 net.ipv4.tcp_no_metrics_save=1",
             mtu);
    if (sh(peer, command) < 0)
        return -1;
    peer->tun = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    if (peer->tun < 0)
        return refused(peer, "/dev/net/tun");
    memset(&request, 0, sizeof request);
    request.ifr_flags = IFF_TUN | IFF_NO_PI;
    strcpy(request.ifr_name, "acks");
    if (ioctl(peer->tun, TUNSETIFF, &request) != 0)
        return refused(peer, "TUNSETIFF");
    return sh(peer, "ip link set acks up");
}

int made_up_connect(struct made_up_peer *peer, unsigned mtu)
{
    int on = 1, off = -1, queue, bytes = 16 << 20;
    uint32_t sequence;
    struct sockaddr_in own = {.sin_family = AF_INET, .sin_port = htons(OWN_PORT), .sin_addr.s_addr = htonl(OWN)};
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons(PEER_PORT), .sin_addr.s_addr = htonl(PEER)};
    struct repair_option options[] = {{2 /* MSS */, mtu - 40}, {3 /* window scale */, 10 | 10u << 16}};
    struct repair_window window = {FIRST_RECEIVED, 32u << 20, 32u << 20, 1u << 20, FIRST_RECEIVED};
    memset(peer, 0, sizeof *peer);
    peer->tun = peer->fd = -1;
    peer->sequence = FIRST_SENT;
    if (make_network(peer, mtu) < 0)
        return -1;
    int fd = peer->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &on, sizeof on) != 0)
        return refused(peer, "TCP_REPAIR");
    setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof bytes);
    if (bind(fd, (struct sockaddr *)&own, sizeof own) != 0)
        return refused(peer, "bind");
    for (queue = 1; queue <= 2; queue++) { /* TCP_RECV_QUEUE, TCP_SEND_QUEUE */
        sequence = queue == 1 ? FIRST_RECEIVED : FIRST_SENT;
        if (setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_QUEUE, &queue, sizeof queue) != 0 ||
            setsockopt(fd, IPPROTO_TCP, TCP_QUEUE_SEQ, &sequence, sizeof sequence) != 0)
            return refused(peer, "TCP_QUEUE_SEQ");
    }
    if (connect(fd, (struct sockaddr *)&there, sizeof there) != 0)
        return refused(peer, "connect");
    if (setsockopt(fd, IPPROTO_TCP, TCP_REPAIR_OPTIONS, options, sizeof options) != 0)
        return refused(peer, "TCP_REPAIR_OPTIONS");
    if (setsockopt(fd, IPPROTO_TCP, 29 /* TCP_REPAIR_WINDOW */, &window, sizeof window) != 0)
        return refused(peer, "TCP_REPAIR_WINDOW");
    if (setsockopt(fd, IPPROTO_TCP, TCP_REPAIR, &off, sizeof off) != 0) /* without a probe */
        return refused(peer, "the end of TCP_REPAIR");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return 0;
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

int made_up_acknowledge(struct made_up_peer *peer, uint32_t bytes)
{
    peer->sequence += bytes;
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
    packet.tcp.ack_seq = htonl(peer->sequence);
    packet.tcp.doff = 5;
    packet.tcp.ack = 1;
    packet.tcp.window = htons(32768);
    packet.tcp.check = folded(add_up(&packet.ip.saddr, 8, add_up(&packet.tcp, sizeof packet.tcp, IPPROTO_TCP + sizeof packet.tcp)));
    return write(peer->tun, &packet, sizeof packet) == sizeof packet ? 0 : refused(peer, "tun");
}
