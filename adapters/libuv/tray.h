/* SPDX-License-Identifier: MIT
 *
 * Where many datagrams are received by one recvmmsg(2): used by udp.c and tree_datagrams.c,
 * which are parts of two libraries and make that call by different names.
 *
 * A slot has room for the largest there is, in memory that is touched where one came only:
 * one piece, since the kernel takes some 15 cycles more for a datagram in two (measured: in
 * 2950, of an echo), and slots begin at different lines of a page, which would share a few
 * sets of the cache otherwise.
 *
 *   tray_offer()    all slots are empty, for the call; then it, with MSG_DONTWAIT
 *   tray_took(got)  slots begin to end hold datagrams, which are the tray's
 *   tray_copy(i)    one goes to the program; tray_letter(i): one is kept, on the heap
 */
#ifndef RP_UV_TRAY_H
#define RP_UV_TRAY_H

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <netinet/in.h>

#define TRAY_SLOTS 64u
#define TRAY_SMALL 2048u
/* What UDP can carry. AF_UNIX carries more where somebody has raised its buffers. */
#define TRAY_LARGEST 65536u
#define TRAY_STRIDE ((size_t)TRAY_LARGEST + 64)
#define TRAY_BYTES (TRAY_SLOTS * TRAY_STRIDE)

union peer {
    struct sockaddr any;
    struct sockaddr_in ip4;
    struct sockaddr_in6 ip6;
    struct sockaddr_un local;
};

struct tray {
    unsigned begin, end; /* of what has not been handed out */
    char *bytes; /* TRAY_BYTES */
    struct mmsghdr messages[TRAY_SLOTS];
    struct iovec parts[TRAY_SLOTS];
    union peer peers[TRAY_SLOTS];
};

struct letter { /* received, not taken yet */
    struct letter *next;
    union peer peer;
    socklen_t peer_length;
    size_t length;
    bool cut; /* by us: it was larger than TRAY_LARGEST */
    char bytes[];
};

static inline void tray_free(struct tray *tray)
{
    if (tray)
        munmap(tray->bytes, TRAY_BYTES);
    free(tray);
}

static inline struct tray *tray_new(void)
{
    struct tray *tray = calloc(1, sizeof *tray);
    void *bytes = tray ? mmap(NULL, TRAY_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
                       : MAP_FAILED;
    if (bytes == MAP_FAILED) {
        free(tray);
        return NULL;
    }
    tray->bytes = bytes;
    for (unsigned i = 0; i < TRAY_SLOTS; i++) {
        tray->parts[i] = (struct iovec){tray->bytes + i * TRAY_STRIDE, TRAY_LARGEST};
        tray->messages[i].msg_hdr = (struct msghdr){.msg_name = &tray->peers[i],
                                                    .msg_namelen = sizeof tray->peers[i],
                                                    .msg_iov = &tray->parts[i],
                                                    .msg_iovlen = 1};
    }
    return tray;
}

static inline struct mmsghdr *tray_offer(struct tray *tray)
{
    for (unsigned i = 0; i < tray->end; i++) /* the kernel wrote there */
        tray->messages[i].msg_hdr.msg_namelen = sizeof tray->peers[i];
    tray->begin = tray->end = 0;
    return tray->messages;
}

static inline void tray_took(struct tray *tray, unsigned count)
{
    tray->end = count;
}

static inline bool tray_is_cut(const struct tray *tray, unsigned slot)
{
    return (tray->messages[slot].msg_hdr.msg_flags & MSG_TRUNC) != 0;
}

/* As much as there is room for. */
static inline size_t tray_copy(const struct tray *tray, unsigned slot, void *to, size_t room)
{
    size_t length = tray->messages[slot].msg_len;
    size_t fits = length < room ? length : room;
    memcpy(to, tray->parts[slot].iov_base, fits);
    return fits;
}

/* A copy of its own, to be freed; NULL where there is no memory for one. */
static inline struct letter *tray_letter(const struct tray *tray, unsigned slot)
{
    size_t length = tray->messages[slot].msg_len;
    struct letter *letter = malloc(sizeof *letter + length);
    if (!letter)
        return NULL;
    letter->next = NULL;
    letter->peer_length = tray->messages[slot].msg_hdr.msg_namelen;
    letter->peer = tray->peers[slot];
    letter->length = tray_copy(tray, slot, letter->bytes, length);
    letter->cut = tray_is_cut(tray, slot);
    return letter;
}

#endif
