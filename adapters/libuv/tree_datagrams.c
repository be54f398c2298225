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
 *
 * A handle that asked for recvmmsg(2) itself (UV_UDP_RECVMMSG, named does) brings its own
 * slots, and stays RESTING. Its inbox knows how many of them are worth being offered, and
 * whether the second call of a wake-up, which mostly says EAGAIN, is.
 */
#include "preload.h"

#include "tray.h"

#include <ringpoll/uv-tree.h>

#include <assert.h>

/* No more by one wake-up: others have a turn then. */
#define AT_MOST RINGPOLL_UV_TREE_DATAGRAMS
_Static_assert(AT_MOST == TRAY_SLOTS, "one tray is one wake-up");
#define FIRST_BATCH 8u
/* Of a handle that brings slots of its own. */
#define FEWEST_SLOTS 4u
#define VAIN_ENOUGH 8u
#define TRY_EACH 16u

enum state { RESTING, RECEIVING };

struct ringpoll_uv_tree_inbox {
    enum state state;
    struct tray *tray; /* RECEIVING: the thread's */
    bool plain;    /* one at a time, for good */
    bool drained;  /* by this wake-up: what came last was all that there was */
    unsigned in_vain, left_out; /* calls after that one: in a row that brought nothing; not made */
    unsigned left; /* that may be asked of the kernel before the end */
    unsigned batch;
    unsigned slots; /* of its own that are offered; 0: all */
    unsigned forks;
    struct letter *first, **last;
};

static __thread struct {
    struct tray *tray;
    struct ringpoll_uv_tree_inbox *owner; /* NULL: nobody receives */
} own;
static pthread_key_t tray_key;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static bool can_batch;
static unsigned forks; /* written by a child that has one thread */

static void forked(void)
{
    forks++;
}

static void free_own_tray(void *tray)
{
    tray_free(tray);
    own.tray = NULL;
}

static void prepare(void)
{
    can_batch = pthread_key_create(&tray_key, free_own_tray) == 0 &&
                pthread_atfork(NULL, NULL, forked) == 0;
}

static bool have_tray(void)
{
    pthread_once(&once, prepare);
    if (own.tray || !can_batch)
        return own.tray != NULL;
    struct tray *tray = tray_new();
    if (tray && pthread_setspecific(tray_key, tray) != 0) {
        tray_free(tray);
        tray = NULL;
    }
    own.tray = tray;
    return tray != NULL;
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
    if (own.owner == inbox) {
        inbox->tray->begin = inbox->tray->end;
    } else { /* another thread's, which the child does not have */
        inbox->state = RESTING;
        inbox->tray = NULL;
    }
}

/* What is left of the tray goes to the list. Without memory for it, it is lost, as it
 * would be in a kernel that has none. */
static void end(struct ringpoll_uv_tree_inbox *inbox)
{
    struct tray *tray = inbox->tray;
    assert(inbox->state == RECEIVING && own.owner == inbox);
    for (; tray->begin < tray->end; tray->begin++) {
        struct letter *letter = tray_letter(tray, tray->begin);
        inbox->plain = true;
        if (letter == NULL)
            continue;
        *inbox->last = letter;
        inbox->last = &letter->next;
    }
    own.owner = NULL;
    inbox->tray = NULL;
    inbox->state = RESTING;
}

static struct ringpoll_uv_tree_inbox *inbox_of(struct ringpoll_uv_tree_inbox **inbox, int fd, unsigned loop_flags)
{
    if (*inbox == NULL && rp_shim_watching() && !(loop_flags & RINGPOLL_UV_TREE_EPOLL))
        *inbox = make_inbox(fd);
    return *inbox;
}

int ringpoll_uv_tree_receives(struct ringpoll_uv_tree_inbox **inbox, int fd, unsigned loop_flags, int plain)
{
    struct ringpoll_uv_tree_inbox *mine = inbox_of(inbox, fd, loop_flags);
    if (mine == NULL)
        return plain;
    know_fork(mine);
    assert(mine->state == RESTING);
    if (mine->plain || (loop_flags & RINGPOLL_UV_TREE_EPOLL) || RP_SHIM_IS(restricted))
        return plain;
    if (!have_tray() || own.owner != NULL)
        return plain;
    own.owner = mine;
    mine->tray = own.tray;
    mine->state = RECEIVING;
    mine->left = AT_MOST;
    return AT_MOST;
}

/* What came last was all that there was. A second call may find what came meanwhile, if the
 * callbacks took long and the peers are busy; it is left out where it has been in vain for
 * some time, but for a try now and then. */
static bool knows_eagain(struct ringpoll_uv_tree_inbox *inbox)
{
    return inbox->drained && inbox->in_vain >= VAIN_ENOUGH && ++inbox->left_out % TRY_EACH != 0;
}

static int ask(struct ringpoll_uv_tree_inbox *inbox, int fd, struct mmsghdr *messages, unsigned count)
{
    if (count == 0 || knows_eagain(inbox)) {
        errno = EAGAIN;
        return -1;
    }
    int got = (int)rp_real.syscall(SYS_recvmmsg, fd, messages, count, MSG_DONTWAIT, NULL); /* it does not block */
    if (inbox->drained)
        inbox->in_vain = got > 0 ? 0 : inbox->in_vain + (inbox->in_vain < VAIN_ENOUGH);
    if (got > 0) {
        inbox->drained = (unsigned)got < count;
        return got;
    }
    if (got == 0)
        errno = EAGAIN;
    if (errno == ENOSYS || errno == EPERM) /* a filter that lets recvmsg pass and does not know this */
        inbox->plain = true;
    return -1;
}

/* The tray is empty: fills it. False with errno set. */
static bool fetch(struct ringpoll_uv_tree_inbox *inbox, int fd)
{
    unsigned count = inbox->batch < inbox->left ? inbox->batch : inbox->left;
    int got = ask(inbox, fd, tray_offer(inbox->tray), count);
    if (got < 0)
        return false;
    if (!inbox->drained && inbox->batch < AT_MOST)
        inbox->batch *= 2;
    tray_took(inbox->tray, (unsigned)got);
    inbox->left -= (unsigned)got;
    return true;
}

/* libuv's name is a sockaddr_storage. */
static inline long addressed(struct msghdr *message, const union peer *peer, socklen_t peer_length, size_t fits,
                             bool cut)
{
    if (LIKELY(peer_length == sizeof peer->ip4)) /* one load and one store */
        memcpy(message->msg_name, peer, sizeof peer->ip4);
    else
        memcpy(message->msg_name, peer, peer_length);
    message->msg_namelen = peer_length;
    message->msg_controllen = 0;
    message->msg_flags = cut ? MSG_TRUNC : 0;
    return (long)fits;
}

static long hand_out_letter(struct ringpoll_uv_tree_inbox *inbox, struct msghdr *message)
{
    struct letter *letter = inbox->first;
    size_t room = message->msg_iov->iov_len, fits = letter->length < room ? letter->length : room;
    memcpy(message->msg_iov->iov_base, letter->bytes, fits);
    long result = addressed(message, &letter->peer, letter->peer_length, fits, fits < letter->length);
    inbox->first = letter->next;
    if (inbox->first == NULL)
        inbox->last = &inbox->first;
    free(letter);
    return result;
}

long ringpoll_uv_tree_receive(struct ringpoll_uv_tree_inbox *inbox, int fd, struct msghdr *message)
{
    if (inbox == NULL)
        return recvmsg(fd, message, 0);
    know_fork(inbox);
    if (UNLIKELY(inbox->first != NULL))
        return hand_out_letter(inbox, message);
    struct tray *tray = inbox->tray;
    if (tray == NULL)
        return recvmsg(fd, message, 0);
    if (tray->begin == tray->end && !fetch(inbox, fd))
        return inbox->plain ? recvmsg(fd, message, 0) : -1;
    unsigned i = tray->begin++;
    const struct mmsghdr *from = &tray->messages[i];
    if (UNLIKELY(from->msg_len > TRAY_SMALL)) /* large ones gain nothing, and touch much memory */
        inbox->batch = FIRST_BATCH;
    size_t fits = tray_copy(tray, i, message->msg_iov->iov_base, message->msg_iov->iov_len);
    return addressed(message, &tray->peers[i], from->msg_hdr.msg_namelen, fits, fits < from->msg_len);
}

unsigned ringpoll_uv_tree_slots(struct ringpoll_uv_tree_inbox **inbox, int fd, unsigned loop_flags, unsigned most)
{
    const struct ringpoll_uv_tree_inbox *mine = inbox_of(inbox, fd, loop_flags);
    return mine != NULL && mine->slots != 0 && mine->slots < most ? mine->slots : most;
}

int ringpoll_uv_tree_receive_many(struct ringpoll_uv_tree_inbox *inbox, int fd, struct mmsghdr *messages, unsigned count)
{
    if (inbox == NULL || inbox->plain)
        return recvmmsg(fd, messages, count, 0, NULL);
    int got = ask(inbox, fd, messages, count);
    if (got > 0 && (unsigned)got == count)
        inbox->slots = count * 2;
    else if (got > 0 && (unsigned)got * 4 < count)
        inbox->slots = count / 2 > FEWEST_SLOTS ? count / 2 : FEWEST_SLOTS;
    return got;
}

int ringpoll_uv_tree_send_many(int fd, struct mmsghdr *messages, unsigned count)
{
    rp_shim_flush();
    if (count != 1 || !rp_shim_watching())
        return sendmmsg(fd, messages, count, 0);
    return rp_real.syscall(SYS_sendmsg, fd, &messages->msg_hdr, 0) < 0 ? -1 : 1;
}

int ringpoll_uv_tree_received(struct ringpoll_uv_tree_inbox *inbox)
{
    if (inbox == NULL)
        return 0;
    know_fork(inbox);
    if (inbox->state == RECEIVING)
        end(inbox);
    inbox->drained = false;
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
        mine->tray->begin = mine->tray->end;
        end(mine);
    }
    drop_letters(mine);
    free(mine);
    *inbox = NULL;
}
