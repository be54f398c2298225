/* SPDX-License-Identifier: MIT
 *
 * Datagrams of a libuv that was configured --with-uring: many by one call, handed out one
 * by one as libuv's own loop asks for them. See uv-tree.h.
 *
 * Why recvmmsg(2) and no operation of the ring. One that is armed on a bound socket keeps
 * a killed process's port for milliseconds, so nothing may be in flight while the loop
 * sleeps; and one that is not armed (a multishot RECVMSG with MSG_DONTWAIT, which drains
 * the socket where it is submitted) was measured dearer: per datagram, of 64 that wait,
 * recvmsg(2) takes 930 to 1120 cycles, that 800 to 1170, recvmmsg(2) 670 to 830. Of
 * sends, 64 SENDMSGs of one enter cost what 64 calls do, and sendmmsg(2) saves 400 each:
 * libuv has that already, for 20 at a time.
 *
 * An inbox belongs to a handle, which keeps the pointer; it is made when the handle first
 * receives. A datagram that the kernel has given is in one of two places:
 *
 *   in the thread's tray   between RECEIVING's begin and end, that is while libuv's loop
 *                          calls alloc_cb and recv_cb; one inbox has the tray at a time
 *   on the inbox's list    if recv_cb stopped the handle (or alloc_cb had no room) before
 *                          all of the tray were handed out; delivered first when it
 *                          receives again, gone when it is closed
 *
 *                    begins, tray free                     all handed out, or put away
 *   RESTING ------------------------------> RECEIVING ------------------------------> RESTING
 *      \------- tray taken, or PLAIN ------> (libuv's own recvmsg, bytes of the list first)
 *
 * A tray is a thread's, since its memory is to be warm; a loop that runs inside of
 * another's callback finds it taken and reads one at a time. A handle that left something
 * behind is PLAIN for good: it stops in its callback by design, and whoever else has the
 * socket is to have the rest. For the same reason the first batches are small.
 *
 * A child of fork has what its parent had received, and leaves it to its parent.
 */
#include "preload.h"

#include <ringpoll/uv-tree.h>

#include <assert.h>
#include <string.h>
#include <sys/mman.h>

/* No more by one wake-up: others have a turn then. */
#define AT_MOST RINGPOLL_UV_TREE_DATAGRAMS
#define FIRST_BATCH 8u
/* What no large datagram needs is dense; the rest of one, up to what UDP can carry, goes
 * where memory is touched by nothing else. */
#define DENSE 2048u
#define LARGEST 65536u
/* With one line between: powers of two would share a few sets of the cache. */
#define APART (DENSE + 64u)

struct tray {
    struct ringpoll_uv_tree_inbox *owner; /* NULL: nobody receives */
    unsigned begin, end;                  /* of what has not been handed out */
    char *overflow;
    struct mmsghdr messages[AT_MOST];
    struct iovec parts[AT_MOST][2];
    struct sockaddr_in6 peers[AT_MOST]; /* AF_INET's is smaller */
    char dense[AT_MOST][APART];
};

struct letter {
    struct letter *next;
    struct sockaddr_in6 peer;
    socklen_t peer_length;
    unsigned length;
    char bytes[];
};

enum state { RESTING, RECEIVING };

struct ringpoll_uv_tree_inbox {
    enum state state;
    bool plain;    /* one at a time, for good */
    bool drained;  /* the tray's batch was all that there was: EAGAIN is known */
    unsigned left; /* that may be asked of the kernel before the end */
    unsigned batch;
    unsigned forks;
    struct letter *first, **last;
};

static __thread struct tray *tray;
static pthread_key_t tray_key;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static bool can_batch;
static unsigned forks; /* written by a child that has one thread */

static void forked(void)
{
    forks++;
}

static void free_tray(void *mine)
{
    munmap(((struct tray *)mine)->overflow, (size_t)AT_MOST * (LARGEST - DENSE));
    free(mine);
    tray = NULL;
}

static void prepare(void)
{
    can_batch = RP_LATE(recvmmsg) && pthread_key_create(&tray_key, free_tray) == 0 &&
                pthread_atfork(NULL, NULL, forked) == 0;
}

static struct tray *make_tray(void)
{
    size_t size = (size_t)AT_MOST * (LARGEST - DENSE);
    struct tray *mine = calloc(1, sizeof *mine);
    char *overflow = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mine == NULL || overflow == MAP_FAILED || pthread_setspecific(tray_key, mine) != 0) {
        if (overflow != MAP_FAILED)
            munmap(overflow, size);
        free(mine);
        return NULL;
    }
    mine->overflow = overflow;
    for (unsigned i = 0; i < AT_MOST; i++) {
        mine->parts[i][0] = (struct iovec){mine->dense[i], DENSE};
        mine->parts[i][1] = (struct iovec){overflow + (size_t)i * (LARGEST - DENSE), LARGEST - DENSE};
        mine->messages[i].msg_hdr = (struct msghdr){.msg_name = &mine->peers[i], .msg_iov = mine->parts[i], .msg_iovlen = 2};
    }
    return mine;
}

/* Only UDP's are known to fit. */
static bool is_udp(int fd)
{
    int domain = 0, protocol = 0;
    socklen_t length = sizeof domain;
    if (rp_real.getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &length) != 0)
        return false;
    length = sizeof protocol;
    return (domain == AF_INET || domain == AF_INET6) &&
           rp_real.getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &length) == 0 && protocol == IPPROTO_UDP;
}

static struct ringpoll_uv_tree_inbox *make_inbox(int fd)
{
    struct ringpoll_uv_tree_inbox *inbox = calloc(1, sizeof *inbox);
    if (inbox != NULL) {
        inbox->plain = !is_udp(fd);
        inbox->batch = FIRST_BATCH;
        inbox->forks = forks;
        inbox->last = &inbox->first;
    }
    return inbox;
}

static void drop_letters(struct ringpoll_uv_tree_inbox *inbox)
{
    for (struct letter *letter; (letter = inbox->first) != NULL;) {
        inbox->first = letter->next;
        free(letter);
    }
    inbox->last = &inbox->first;
}

/* What a child has of its parent's, its parent hands out. */
static void know_fork(struct ringpoll_uv_tree_inbox *inbox)
{
    if (LIKELY(inbox->forks == forks))
        return;
    inbox->forks = forks;
    drop_letters(inbox);
    if (inbox->state != RECEIVING)
        return;
    if (tray != NULL && tray->owner == inbox)
        tray->begin = tray->end;
    else
        inbox->state = RESTING; /* another thread's, which the child does not have */
}

/* What is left of the tray goes to the list. Without memory for it, it is lost, as it
 * would be in a kernel that has none. */
static void end(struct ringpoll_uv_tree_inbox *inbox)
{
    assert(inbox->state == RECEIVING && tray->owner == inbox);
    for (; tray->begin < tray->end; tray->begin++) {
        const struct mmsghdr *message = &tray->messages[tray->begin];
        struct letter *letter = malloc(sizeof *letter + message->msg_len);
        inbox->plain = true;
        if (letter == NULL)
            continue;
        unsigned dense = message->msg_len < DENSE ? message->msg_len : DENSE;
        letter->next = NULL;
        letter->peer = tray->peers[tray->begin];
        letter->peer_length = message->msg_hdr.msg_namelen;
        letter->length = message->msg_len;
        memcpy(letter->bytes, tray->dense[tray->begin], dense);
        memcpy(letter->bytes + dense, tray->parts[tray->begin][1].iov_base, message->msg_len - dense);
        *inbox->last = letter;
        inbox->last = &letter->next;
    }
    tray->owner = NULL;
    inbox->state = RESTING;
}

int ringpoll_uv_tree_receives(struct ringpoll_uv_tree_inbox **inbox, int fd, unsigned loop_flags, int plain)
{
    if (*inbox == NULL) {
        if (!rp_shim_watching() || (loop_flags & RINGPOLL_UV_TREE_EPOLL))
            return plain;
        *inbox = make_inbox(fd);
        if (*inbox == NULL)
            return plain;
    }
    struct ringpoll_uv_tree_inbox *mine = *inbox;
    know_fork(mine);
    assert(mine->state == RESTING);
    if (mine->plain || (loop_flags & RINGPOLL_UV_TREE_EPOLL) || RP_SHIM_IS(restricted))
        return plain;
    pthread_once(&once, prepare);
    if (tray == NULL && can_batch)
        tray = make_tray();
    if (tray == NULL || tray->owner != NULL)
        return plain;
    tray->owner = mine;
    tray->begin = tray->end = 0;
    mine->state = RECEIVING;
    mine->drained = false;
    mine->left = AT_MOST;
    return AT_MOST;
}

/* The tray is empty: fills it. False with errno set. */
static bool fetch(struct ringpoll_uv_tree_inbox *inbox, int fd)
{
    unsigned count = inbox->batch < inbox->left ? inbox->batch : inbox->left;
    if (inbox->drained || count == 0) {
        errno = EAGAIN;
        return false;
    }
    for (unsigned i = 0; i < count; i++)
        tray->messages[i].msg_hdr.msg_namelen = sizeof tray->peers[i];
    int got = rp_real.recvmmsg(fd, tray->messages, count, MSG_DONTWAIT, NULL);
    if (got <= 0) {
        if (got == 0)
            errno = EAGAIN;
        if (errno == ENOSYS || errno == EPERM) /* a filter that lets recvmsg pass and does not know this */
            inbox->plain = true;
        return false;
    }
    tray->begin = 0;
    tray->end = (unsigned)got;
    inbox->left -= (unsigned)got;
    inbox->drained = (unsigned)got < count;
    if (!inbox->drained && inbox->batch < AT_MOST)
        inbox->batch *= 2;
    return true;
}

/* libuv's name is a sockaddr_storage. */
static ssize_t hand_out(struct msghdr *message, const char *bytes, unsigned length, const void *rest,
                        const struct sockaddr_in6 *peer, socklen_t peer_length)
{
    const struct iovec *buffer = message->msg_iov;
    unsigned dense = rest != NULL && length > DENSE ? DENSE : length;
    size_t fits = length < buffer->iov_len ? length : buffer->iov_len;
    memcpy(buffer->iov_base, bytes, dense < fits ? dense : fits);
    if (UNLIKELY(fits > dense))
        memcpy((char *)buffer->iov_base + dense, rest, fits - dense);
    if (LIKELY(peer_length == sizeof(struct sockaddr_in))) /* one load and one store */
        memcpy(message->msg_name, peer, sizeof(struct sockaddr_in));
    else
        memcpy(message->msg_name, peer, peer_length);
    message->msg_namelen = peer_length;
    message->msg_controllen = 0;
    message->msg_flags = fits < length ? MSG_TRUNC : 0;
    return (ssize_t)fits;
}

long ringpoll_uv_tree_receive(struct ringpoll_uv_tree_inbox *inbox, int fd, struct msghdr *message)
{
    if (inbox == NULL)
        return recvmsg(fd, message, 0);
    know_fork(inbox);
    if (UNLIKELY(inbox->first != NULL)) {
        struct letter *letter = inbox->first;
        ssize_t length = hand_out(message, letter->bytes, letter->length, NULL, &letter->peer, letter->peer_length);
        inbox->first = letter->next;
        if (inbox->first == NULL)
            inbox->last = &inbox->first;
        free(letter);
        return length;
    }
    if (inbox->state == RESTING)
        return recvmsg(fd, message, 0);
    if (tray->begin == tray->end && !fetch(inbox, fd))
        return inbox->plain ? recvmsg(fd, message, 0) : -1;
    unsigned i = tray->begin++;
    const struct mmsghdr *from = &tray->messages[i];
    if (UNLIKELY(from->msg_len > DENSE)) /* large ones gain nothing, and touch much memory */
        inbox->batch = FIRST_BATCH;
    return hand_out(message, tray->dense[i], from->msg_len, tray->parts[i][1].iov_base, &tray->peers[i],
                    from->msg_hdr.msg_namelen);
}

int ringpoll_uv_tree_received(struct ringpoll_uv_tree_inbox *inbox)
{
    if (inbox == NULL)
        return 0;
    know_fork(inbox);
    if (inbox->state == RECEIVING)
        end(inbox);
    return inbox->first != NULL;
}

int ringpoll_uv_tree_unread(const struct ringpoll_uv_tree_inbox *inbox)
{
    return inbox != NULL && inbox->first != NULL && inbox->forks == forks;
}

void ringpoll_uv_tree_inbox_free(struct ringpoll_uv_tree_inbox **inbox)
{
    struct ringpoll_uv_tree_inbox *mine = *inbox;
    if (mine == NULL)
        return;
    if (mine->state == RECEIVING) {
        tray->begin = tray->end;
        end(mine);
    }
    drop_letters(mine);
    free(mine);
    *inbox = NULL;
}
