/* SPDX-License-Identifier: MIT
 *
 * In-flight operation slots.
 *
 *   FREE → QUEUED → INFLIGHT → CANCELING → FREE
 *                      └→ FREE      (final completion)
 *   QUEUED may end at once (→ FREE): its SQE was never handed over, or its completion came
 *   before anybody had looked whether it was.
 *   An op whose owner has gone is ORPHANED: the same as CANCELING, but its
 *   completion is dropped.  QUEUED | INFLIGHT | CANCELING → ORPHANED → FREE.
 *
 * The set owns an op from QUEUED to its final completion (no F_MORE). user_data
 * is generation | slot | kind, never a pointer: a completion whose generation
 * is not the slot's is stale, is counted and dropped. rp_op_new(), rp_op_step() and
 * rp_op_end() make every edge and assert that it is one of the above.
 */
#ifndef RP_OP_H
#define RP_OP_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct rp_ring;

enum rp_op_state { RP_OP_FREE, RP_OP_QUEUED, RP_OP_INFLIGHT, RP_OP_CANCELING, RP_OP_ORPHANED, RP_OP_STATES };

enum rp_op_kind {
    RP_OP_NONE = 0, /* completions that nobody wants: cancels, updates */
    RP_OP_POLL,     /* owner: struct rp_watch */
    RP_OP_RECV,     /* owner: struct rp_stream */
    RP_OP_SEND,     /* owner: struct rp_stream; a send, or the poll of a blocked one */
    RP_OP_ACCEPT,   /* owner: struct rp_acceptor */
    RP_OP_REQUEST,  /* owner: struct rp_request */
    RP_OP_LOAN,     /* owner: struct rp_loan */
    RP_OP_KERNEL,   /* the set's identity; owner: struct rp_set */
    RP_OP_FENCE,    /* no slot: its number stands in its place, see rp_ring_fence() */
    RP_OP_TEST,     /* unit tests */
};

struct rp_op {
    void *owner;        /* NULL when ORPHANED or FREE */
    uint32_t generation; /* 24 bits used; never 0 */
    uint32_t next_free;
    uint32_t slot;      /* its number in the table */
    uint8_t state;      /* enum rp_op_state */
    uint8_t kind;       /* enum rp_op_kind */
} __attribute__((aligned(32))); /* never in two cache lines */

struct rp_op_table {
    struct rp_op **pages; /* each of RP_OP_PAGE slots; slots never move */
    uint32_t pages_used, pages_capacity;
    uint32_t free_head;   /* slot + 1, 0: none */
    uint32_t count[RP_OP_STATES];
    uint64_t stale;
    uint32_t fence_passed; /* the last that completed */
};
#define RP_OP_PAGE 256u

void rp_op_table_init(struct rp_op_table *table);
void rp_op_table_fini(struct rp_op_table *table);
extern const uint8_t rp_op_edges[RP_OP_STATES];
bool rp_op_grow(struct rp_op_table *table);
static inline struct rp_op *rp_op_at(const struct rp_op_table *table, uint32_t slot)
{
    return &table->pages[slot / RP_OP_PAGE][slot % RP_OP_PAGE];
}
/* Every edge is made here, with the two that are hot apart: out of FREE by rp_op_new(), into
 * it by rp_op_end(). */
static inline void rp_op_end(struct rp_op_table *table, struct rp_op *op)
{
    bool legal = op->state != RP_OP_FREE;
    assert(legal);
    if (!legal) /* built with NDEBUG: a table that stays whole is worth more than the step */
        return;
    table->count[op->state]--;
    table->count[RP_OP_FREE]++;
    op->state = RP_OP_FREE;
    op->owner = NULL;
    op->generation = op->generation == 0xffffffu ? 1 : op->generation + 1;
    op->next_free = table->free_head;
    table->free_head = op->slot + 1;
}
static inline void rp_op_step(struct rp_op_table *table, struct rp_op *op, enum rp_op_state to)
{
    bool legal = (unsigned)to < RP_OP_STATES && op->state != RP_OP_FREE && (rp_op_edges[op->state] >> to & 1u);
    assert(legal);
    if (!legal)
        return;
    if (to == RP_OP_FREE) {
        rp_op_end(table, op);
        return;
    }
    table->count[op->state]--;
    table->count[to]++;
    op->state = (uint8_t)to;
    if (to == RP_OP_ORPHANED)
        op->owner = NULL;
}
/* A slot in state QUEUED, or NULL (no memory). */
static inline struct rp_op *rp_op_new(struct rp_op_table *table, enum rp_op_kind kind, void *owner)
{
    assert(kind != RP_OP_NONE && kind != RP_OP_FENCE);
    if (table->free_head == 0 && !rp_op_grow(table))
        return NULL;
    struct rp_op *op = rp_op_at(table, table->free_head - 1);
    assert(op->state == RP_OP_FREE);
    table->free_head = op->next_free;
    table->count[RP_OP_FREE]--;
    table->count[RP_OP_QUEUED]++;
    op->state = RP_OP_QUEUED;
    op->kind = (uint8_t)kind;
    op->owner = owner;
    return op;
}
static inline uint64_t rp_op_user_data(const struct rp_op_table *table, const struct rp_op *op)
{
    (void)table;
    return (uint64_t)op->generation << 40 | (uint64_t)op->slot << 8 | op->kind;
}
static inline uint64_t rp_op_fence_user_data(uint32_t number)
{
    return (uint64_t)number << 8 | RP_OP_FENCE;
}
/* The op that this user_data names, or NULL when it is stale (counted), of kind
 * NONE (not counted) or a fence (noted). */
struct rp_op *rp_op_find_slowly(struct rp_op_table *table, uint64_t user_data);
/* The op, or NULL where that is not one in use, and nothing else. */
static inline struct rp_op *rp_op_peek(const struct rp_op_table *table, uint64_t user_data)
{
    uint32_t slot = (uint32_t)(user_data >> 8);
    if (slot / RP_OP_PAGE < table->pages_used) {
        struct rp_op *op = &table->pages[slot / RP_OP_PAGE][slot % RP_OP_PAGE];
        if (op->generation == user_data >> 40 && op->kind == (uint8_t)user_data && op->state != RP_OP_FREE)
            return op;
    }
    return NULL;
}
static inline struct rp_op *rp_op_find(struct rp_op_table *table, uint64_t user_data)
{
    struct rp_op *op = rp_op_peek(table, user_data);
    return op ? op : rp_op_find_slowly(table, user_data);
}
/* Queues its cancel, and the op is CANCELING or ORPHANED (`to`); its own completion ends it.
 * False: the SQ is full, nothing was done. */
bool rp_op_cancel(struct rp_op_table *table, struct rp_ring *ring, struct rp_op *op, enum rp_op_state to);
/* Ops in any state but FREE. */
uint32_t rp_op_busy(const struct rp_op_table *table);

#endif
