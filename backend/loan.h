/* SPDX-License-Identifier: MIT
 *
 * Memory of the caller's that the kernel sends from without copying it
 * (ringpoll_try_sendv_zc): a loan lasts until the kernel says that it reads it no more,
 * which is when the peer has acknowledged the bytes, and outlives the call, the fd, the
 * watch, and, if need be, the set.
 *
 *   FREE ──submitted──→ ASKED ──first completion, bytes taken, MORE──→ READ ──notification──→ DUE ──released──→ FREE
 *                         ├─ bytes taken, and none to follow ──────────────────────────────↗
 *                         ├─ nothing taken, MORE ──→ VOID ──notification──→ FREE
 *                         └─ nothing taken, none to follow, or never given to the kernel ──→ FREE
 *
 * One enum, one step(). The call itself waits for the first completion (which comes inside
 * its enter, see send.h) and answers with it: so nothing is taken from a caller who is told
 * that nothing was. VOID: the memory is the caller's again, and only the op has yet to end.
 * Where that completion is lost, or the ring broke before it came, nobody knows what was
 * taken: the caller is told "all", the connection is broken (EIO), and the loan stays ASKED until
 * the notification ends it, or for good. Memory that may be read is leaked rather than
 * given back.
 *
 * Who owns what. A record is the process's: pages that never move and are recycled, under
 * rp_loan_lock (a leaf). Its op is its ring's. DUE ones stand in a list of the thread that
 * made them (rp_self.due), which alone reaps that ring, and are released by it, with nothing
 * locked, in its waits, in ringpoll_zc_reclaim(), and when it ends; once each.
 *
 * When a ring ends with loans in it, it *lingers*: ring and ops leave the set, which ends as
 * ever, and stay with the thread, which looks into them when it comes by; the last
 * notification ends them. A thread that ends, ends them too; what is yet out then, or in a
 * ring that broke, is never released. Nor is anything in a child of fork: the
 * child's copies are not what the kernel reads, and what releases mean may be
 * shared with the parent.
 *
 * The process ends as ever. But execve() cancels all that its thread has with the kernel, waits
 * for it, and cannot cancel a notification: it sleeps until the peers have acknowledged, and
 * spins instead once it was killed (6.18). Other threads, and children, exec at once. */
#ifndef RP_LOAN_H
#define RP_LOAN_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

struct rp_set;
struct rp_op;
struct rp_op_table;

enum rp_loan_state { RP_LOAN_FREE, RP_LOAN_ASKED, RP_LOAN_READ, RP_LOAN_VOID, RP_LOAN_DUE, RP_LOAN_STATES };

struct rp_loan {
    void (*release)(void *argument);
    void *argument;
    struct rp_loan *next; /* DUE: of its thread; FREE: free list */
    struct rp_loan_answer *answer; /* ASKED: the call's, which waits for it */
    int32_t fd;           /* what it was */
    uint8_t state;        /* enum rp_loan_state */
};
struct rp_loan_answer {
    bool known;
    int result; /* of the first completion */
};

/* ASKED; NULL: no memory. */
struct rp_loan *rp_loan_new(int fd, void (*release)(void *), void *argument, struct rp_loan_answer *answer);
/* ASKED, and the kernel has never seen it. Owner. */
void rp_loan_drop(struct rp_loan *loan);
/* A completion. `set`: whose ring that is, or NULL: one that lingers. Owner. */
void rp_loan_completed(struct rp_set *set, struct rp_op_table *ops, struct rp_op *op, int result, uint32_t flags);
/* The set's ring ends, and all else in it has: takes both along. False: no memory to
 * remember it by, so that its loans are never released. Owner. */
bool rp_loan_linger(struct rp_set *set);
/* Releases what is DUE of the calling thread, and looks into rings that linger. Nothing
 * locked. True: something was released. */
bool rp_loan_collect(void);
/* The calling thread ends, and its rings that linger with it: it waits a moment for them. */
void rp_loan_end_all(void);
/* One of their fds is in the way of the program's. */
bool rp_loan_vacate(int fd);
/* Their lock, around a fork; and in its child. */
void rp_loan_fork(bool begins);
void rp_loan_after_fork(void);
/* For stats: ops in rings that linger. */
unsigned rp_loan_lingering_ops(void);

#endif
