/* SPDX-License-Identifier: MIT
 *
 * Batched sends of adopted sockets: what the program writes in a turn goes out
 * with its next wait, in one enter.
 *
 * Bytes are copied, in the order of the writes, into the set's *arena*, a piece of
 * memory that is empty between two turns; a stream's bytes of a turn are one slice
 * of it. Each slice becomes one SEND, always MSG_DONTWAIT | MSG_WAITALL: it ends
 * inside the enter that submits it, whole (and then says nothing,
 * IOSQE_CQE_SKIP_SUCCESS), short or failed (and then says so). What did not go out
 * moves to memory of the stream's own, the *rest*, and waits for POLLOUT. A stream
 * that has bytes anywhere takes every write behind them: nothing overtakes.
 *
 *   IDLE ──written──→ BATCHED ──enter──→ SENDING ──whole──→ IDLE
 *    ↑ └─direct send, full──→ BLOCKED ←──short──┘
 *    └──writable, nothing left──┘ └──writable──→ BATCHED (the rest, and what comes behind it)
 *   IDLE ──zero-copy send──→ LENDING ──whole, refused──→ IDLE
 *                               └──short──→ BLOCKED
 *
 * When exactly is nothing kept back? Before the owner's every enter that waits,
 * before any call that can block or tell (ringpoll_flush(), which the shim calls),
 * before a write that is not batched (causality), and in a turn that had only one
 * event the write is made at once.
 *
 * A write is refused (EAGAIN) when limit bytes wait, and EPOLLOUT tells when there
 * is room again. An error of a send is the next call's, as with TCP; EPIPE needs
 * no keeping, the next call finds it by itself, signal included.
 *
 * A zero-copy send (ringpoll_try_sendv_zc()) names the caller's memory. It begins with nothing
 * of the stream's waiting, is one SEND_ZC or SENDMSG_ZC in an enter of its own call, MSG_DONTWAIT |
 * MSG_WAITALL as the others, and the call answers with its first completion: so it is a
 * write that is made at once, as that of a big piece always is, and what the kernel did not
 * take is the caller's to write again when there is room. Nothing is sent by other means
 * while a stream is LENDING. What lives on is the loan of the memory alone (loan.h).
 *
 * Which are made so: of TCP connections to other machines, from rp_send_zc_least bytes on
 * (measured, docs/results/zero-copy-2026-11-26.md), while the kernel has not said of the
 * connection that it copies: before its first word there is one at a time. After some
 * connections of which it said so, the set does without for a while.
 *
 * All under the lock of the stream's set; SENDING and LENDING only inside an enter. */
#ifndef RP_SEND_H
#define RP_SEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct rp_set;
struct rp_stream;
struct rp_op;

enum rp_send_state { RP_SEND_IDLE, RP_SEND_BATCHED, RP_SEND_SENDING, RP_SEND_BLOCKED, RP_SEND_LENDING, RP_SEND_STATES };

struct rp_send { /* a part of rp_stream */
    uint8_t state;        /* enum rp_send_state */
    bool was_blocked;     /* the kernel was full: tell the program when there is room */
    bool half_closed;     /* the peer will send no more: BLOCKED polls tell of it, too */
    bool has_room;        /* BLOCKED, with a poll that has yet to be cancelled: it told of room */
    uint32_t sqe_at, asked; /* SENDING: where its SQE is, and its length */
    uint32_t at, length;  /* the slice of the arena */
    uint32_t rest_at, rest_length;
    unsigned char *rest;  /* of set->send_limit bytes; NULL: none */
    struct rp_op *op;     /* SENDING: the send; BLOCKED: the poll */
    struct rp_stream *next; /* in set->batched */
};

/* The arena of a set. */
struct rp_arena {
    unsigned char *bytes; /* NULL: not made */
    uint32_t used, size;
};

static inline bool rp_send_is_idle(const struct rp_send *send)
{
    return send->state == RP_SEND_IDLE;
}
static inline uint32_t rp_send_waiting(const struct rp_send *send)
{
    return send->length + send->rest_length;
}
/* Queues a SEND for every BATCHED stream. -EBUSY: the SQ is full. Owner. */
int rp_send_submit(struct rp_set *set);
/* An enter has taken them: those that said nothing went out whole. */
void rp_send_settle(struct rp_set *set);
/* A completion of a send that was short or failed, or of the poll of a BLOCKED one. */
void rp_send_completed(struct rp_set *set, struct rp_op *op, int result, uint32_t flags);
/* IDLE → BLOCKED: the program waits for room, or was not told that there is. Owner. */
void rp_send_expect_room(struct rp_set *set, struct rp_stream *stream);
/* The polls of BLOCKED streams that found no room in the SQ. Owner. */
void rp_send_poll_all(struct rp_set *set);
/* Sends all that is batched now. Owner. */
int rp_send_flush(struct rp_set *set);
/* Sends what this stream has by plain calls; where `wait`, for some seconds. True:
 * all of it went. Any thread. */
bool rp_send_drain(struct rp_set *set, struct rp_stream *stream, bool wait);
/* Lets go of the stream's slot in the table of files (files.h), if it has one. Owner. */
void rp_send_clear_slot(struct rp_set *set, struct rp_stream *stream);
extern uint64_t rp_send_last_wait_ns; /* those seconds; tests have less */
/* Bytes that the program was promised cannot go out, or those that came are lost: both
 * ends shall see a connection that broke, and never one with a hole in it. */
void rp_send_break_connection(struct rp_stream *stream, int error);
/* The ring goes: drains, and where the peer takes no more, breaks the connection
 * (ETIMEDOUT), since what the program writes next must not follow a gap. */
void rp_send_end(struct rp_set *set, struct rp_stream *stream);
/* Drops everything: its fd is closed, or the ring goes. */
void rp_send_forget(struct rp_set *set, struct rp_stream *stream);
void rp_send_arena_free(struct rp_set *set);
/* The kernel's word on a zero-copy send of this fd's, or of another that had the number. Owner. */
void rp_send_zc_told(struct rp_set *set, int fd, bool copied);
extern size_t rp_send_zc_least; /* tests have others */
/* Tests: also on loopback, and, EVER, whatever the kernel says. */
enum rp_send_zc_trial { RP_SEND_ZC_AS_DUE, RP_SEND_ZC_ANYWHERE, RP_SEND_ZC_EVER };
extern enum rp_send_zc_trial rp_send_zc_trial;
/* In a fork's child. */
void rp_send_after_fork(struct rp_send *send);

#endif
