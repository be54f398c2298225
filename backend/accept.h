/* SPDX-License-Identifier: MIT
 *
 * Completion translation: a listener whose connections the ring accepts before the
 * program asks for them (RINGPOLL_ACCEPT).
 *
 * A listener is *adopted* when a multishot accept stands in for its registration in
 * kernel epoll. The connections wait in the acceptor's queue, and accept is answered
 * from there, exactly as the kernel would have: in their order, the queue first and
 * the kernel's backlog behind it, with EAGAIN without a system call only while the
 * accept is with the kernel, the CQ is empty and TASKRUN is clear (see stream.h: a
 * DEFER_TASKRUN ring accepts nothing but inside its owner's own enter).
 *
 *   LEARNING ──armed──→ ARMED ──its last completion (error, CQ full)──→ LEARNING
 *                         │ └──the owner cancels──→ CANCELING ──the last one──→ LEARNING
 *                         └──not the owner, or not now──→ LEAVING ──its cancel goes out──↗
 *
 * LEARNING: kernel epoll has the listener, and the program's plain accepts tell what it
 * asks for: which flags, whether the peer's address. What is queued is served first.
 * An acceptor begins with listen() and ends with the close of the listener.
 *
 * How much may be queued? One enter takes all that the kernel's backlog has, so the
 * bound is the program's own: the number that it gave to listen(). A listener is
 * adopted only while so many fds are free beyond the numbers in use, so that the ring
 * never brings the program to EMFILE, and it is given up, for longer each time, when
 * the program leaves the queue alone for some turns or more than RP_ACCEPT_QUEUED stand
 * in it from one turn to the next. The fds in the queue are the library's own: a close loop passes them by, dup2
 * onto one of them makes it move.
 *
 * Who owns a connection? The acceptor, from its completion until accept hands it out;
 * then it is the program's, born as by a plain accept. A listener that is closed resets
 * what stands in its queue, as the kernel does with its backlog. A fork's child closes
 * its copies: the parent goes on to serve them. While a child may exec with them they
 * are close-on-exec, whatever the program asked for.
 *
 * An error of accept ends it, and leaves the rest to kernel epoll and a plain call,
 * which meets the same error. ECONNABORTED alone has taken a connection along: it is
 * queued like one.
 *
 * Never adopted: a listener whose birth was not seen, that is shared (dup, a child, a
 * passed fd), in two sets, blocking, with EXCLUSIVE, ONESHOT or WAKEUP, or accepted
 * from by a thread that does not own the ring. All of these give it up for good.
 *
 * Under the lock of the acceptor's set; one that belongs to none has a set of its own
 * kind, the limbo. They stand in one table and are found by fd; RP_FD_LISTENER of the fd
 * says that there is one. Records are recycled, never given back: lock, then compare.
 */
#ifndef RP_ACCEPT_H
#define RP_ACCEPT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "op.h"

struct rp_set;
struct rp_watch;
struct rp_fd;

/* So many connections may stand in a queue from one turn to the next. */
#define RP_ACCEPT_QUEUED 64u

enum rp_acceptor_state { RP_ACCEPTOR_FREE, RP_ACCEPTOR_LEARNING, RP_ACCEPTOR_ARMED, RP_ACCEPTOR_LEAVING,
                         RP_ACCEPTOR_CANCELING, RP_ACCEPTOR_STATES };

struct rp_connection {
    int fd;         /* or the negative errno of an accept that took a connection along */
    bool cloexec;   /* close-on-exec was set meanwhile */
    bool shared;    /* it stood in the queue when a child was made */
};

union rp_peer_name {
    uint16_t family; /* 0: there was no answer */
    unsigned char bytes[28]; /* struct sockaddr_in6 */
};

struct rp_acceptor {
    /* What others look at before they have the lock: changed by one store each. */
    struct rp_set *set;
    int fd, alias;          /* alias: a duplicate that goes on with the queue; -1: none */
    uint8_t state;          /* enum rp_acceptor_state */
    bool closed;            /* its fd is: whatever comes is reset */
    uint32_t head, tail;    /* of the queue; run freely */
    /* Memory that stays when the record is used again. */
    struct rp_connection *queue;
    uint32_t room;          /* a power of two */
    union rp_peer_name *names; /* of `asked`; NULL: not made */
    /* From here on a new one begins with zeroes. */
    uint8_t held;           /* callers that hold on to it while it may end */
    struct rp_op *op;       /* the accept; NULL when LEARNING */
    bool drained;           /* the last plain accept found nothing */
    uint32_t kind;          /* RINGPOLL_FD_TCP or RINGPOLL_FD_UNIX */
    uint32_t sqe_at;        /* the SQE's position, to take it back while it is QUEUED */
    int flags, wanted_flags; /* what the accept was armed with, what the program asks for */
    bool with_address, wants_address; /* the same */
    uint16_t adopt_in, adopt_gap; /* plain accepts to go until it is adopted, see put_off() */
    uint32_t backlog, highest, limit; /* of listen(); fd number seen; of fds */
    uint32_t taken, taken_before; /* by the program: all, and until the last wait */
    uint32_t idle_turns;    /* waits since, with something queued */
    /* Where the kernel puts the peer's address: that of the last that came, which stands
     * at `addressed` in the queue, if it is known at all. */
    struct sockaddr_storage address;
    unsigned address_length, known_length;
    unsigned inet_length;   /* of a TCP listener's addresses, once known */
    uint32_t addressed, in_enter;
    /* Those of the others the ring is asked for, all in one enter: for so many from here on in
     * the queue. What it had no answer for has no family. */
    uint32_t asked_from, asked;
    uint64_t came_at;       /* enters of the ring when it came */
};

/* ---- the owner, in a wait; set locked */

/* Whether this watch (of kernel epoll, and dirty) should be adopted now. */
bool rp_accept_wanted(const struct rp_set *set, const struct rp_watch *watch);
/* The watch leaves kernel epoll, and the accept is queued. 0; -EBUSY: the SQ is full,
 * enter and call again; another errno: it stays where it is. */
int rp_accept_arm(struct rp_set *set, struct rp_watch *watch);
/* The same as rp_watch_arm() for a listener that is, or was, adopted. */
int rp_accept_rearm(struct rp_set *set, struct rp_watch *watch);
void rp_accept_completed(struct rp_set *set, struct rp_op *op, int result, uint32_t flags);
/* Cancels for LEAVING ones; -EBUSY: the SQ is full. */
int rp_accept_flush_leaving(struct rp_set *set);
/* At the begin of each wait: programs that stop accepting. */
void rp_accept_turn(struct rp_set *set);
/* What an adopted listener has to report is known without a look. False: not adopted. */
bool rp_accept_decides(struct rp_set *set, struct rp_watch *watch);

/* ---- any thread; set locked */

/* Leaves and returns when the accept is over, or (not the owner) when what it brought
 * is queued and it can bring no more. May drop and retake the lock. */
void rp_accept_end(struct rp_set *set, int fd);
void rp_accept_end_all(struct rp_set *set);
/* The watch goes; the queue stays. */
void rp_accept_unwatch(struct rp_set *set, struct rp_watch *watch);
/* The set goes. */
void rp_accept_to_limbo(struct rp_set *set);
/* A child will be made that has all fds (`cloexec`: and may exec with them). */
void rp_accept_share_all(struct rp_set *set, bool cloexec);
/* The process ends: what is queued is reset. */
void rp_accept_drop_all(struct rp_set *set);

/* ---- any thread; nothing locked */

/* What poll would say beside what the kernel says. Also with a set locked. */
uint32_t rp_accept_bits(int fd);
/* Adopted, as far as can be told without a lock. */
bool rp_accept_is_armed(int fd);
/* ringpoll_fd_release() of a listener. */
void rp_accept_release(int fd, bool for_good);
/* The fd is about to be closed: no accept holds it, and the queue is reset or, where a
 * duplicate is known, goes on with that. */
void rp_accept_closing(int fd);
void rp_accept_duplicated(int from, int to);
/* The program wants this number, which a queued connection has: 0, or -EBUSY. */
int rp_accept_vacate(int fd);
/* In a fork's child: what is queued is the parent's. */
void rp_accept_after_fork(void);
enum rp_accept_fork { RP_ACCEPT_FORK_PREPARE, RP_ACCEPT_FORK_PARENT };
void rp_accept_limbo_fork(enum rp_accept_fork when);

#endif
