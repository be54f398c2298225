/* SPDX-License-Identifier: MIT
 *
 * Where many datagrams are received by one recvmmsg(2): used by udp.c and tree_datagrams.c,
 * which are parts of two libraries and make that call by different names.
 *
 * What no large datagram needs is dense, so that few lines of the cache and few pages are
 * touched; the rest of one goes where memory is touched by nothing else.
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
#define TRAY_DENSE 2048u
/* What UDP can carry. AF_UNIX carries more where somebody has raised its buffers. */
#define TRAY_LARGEST 65536u
#define TRAY_OVERFLOW ((size_t)TRAY_SLOTS * (TRAY_LARGEST - TRAY_DENSE))

union peer {
    struct sockaddr any;
    struct sockaddr_in ip4;
    struct sockaddr_in6 ip6;
    struct sockaddr_un local;
};

struct tray {
    unsigned begin, end; /* of what has not been handed out */
    char *overflow;
    struct mmsghdr messages[TRAY_SLOTS];
    struct iovec parts[TRAY_SLOTS][2];
    union peer peers[TRAY_SLOTS];
    char dense[TRAY_SLOTS][TRAY_DENSE + 64]; /* powers of two would share a few sets of the cache */
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
        munmap(tray->overflow, TRAY_OVERFLOW);
    free(tray);
}

static inline struct tray *tray_new(void)
{
    struct tray *tray = calloc(1, sizeof *tray);
    char *overflow = tray ? mmap(NULL, TRAY_OVERFLOW, PROT_READ | PROT_WRITE,
                                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) : MAP_FAILED;
    if (overflow == MAP_FAILED) {
        free(tray);
        return NULL;
    }
    tray->overflow = overflow;
    for (unsigned i = 0; i < TRAY_SLOTS; i++) {
        tray->parts[i][0] = (struct iovec){tray->dense[i], TRAY_DENSE};
        tray->parts[i][1] = (struct iovec){overflow + (size_t)i * (TRAY_LARGEST - TRAY_DENSE), TRAY_LARGEST - TRAY_DENSE};
        tray->messages[i].msg_hdr = (struct msghdr){.msg_name = &tray->peers[i],
                                                    .msg_namelen = sizeof tray->peers[i],
                                                    .msg_iov = tray->parts[i],
                                                    .msg_iovlen = 2};
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
    if (__builtin_expect(fits > TRAY_DENSE, 0)) {
        memcpy(to, tray->dense[slot], TRAY_DENSE);
        memcpy((char *)to + TRAY_DENSE, tray->parts[slot][1].iov_base, fits - TRAY_DENSE);
    } else {
        memcpy(to, tray->dense[slot], fits);
    }
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
