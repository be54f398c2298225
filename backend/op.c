/* SPDX-License-Identifier: MIT
 *
 * Slots for operations in flight; the states and who owns what stand in op.h.
 *
 * Invariants:
 *  - A slot's address never changes, and its memory lives as long as the table:
 *    a completion that comes late finds a slot, if only to see that it is stale.
 *  - A generation belongs to one life of a slot. It changes on the step to FREE,
 *    so whatever the kernel still says about the last life does not match.
 *    The generation is 24 bits wide and never 0: no user_data of an op is 0.
 *  - count[] sums up to the number of slots; FREE ones stand in the free list,
 *    the last freed first (it is the one in the cache).
 *
 * Memory comes in pages from the kernel, not from malloc: the table may grow
 * inside a program's malloc replacement or signal handler.
 */
#include "op.h"

#include <assert.h>
#include <string.h>

#include "ring.h"
#include "ringpoll/ringpoll.h"
#include "sys.h"

/* generation | slot | kind in 24, 32 and 8 bits. */
#define KIND_BITS 8
#define SLOT_BITS 32
#define PAGE_BYTES (RP_OP_PAGE * sizeof(struct rp_op))
#define FIRST_CAPACITY 512u /* one 4 KiB page of pointers: 131072 slots */

const uint8_t rp_op_edges[RP_OP_STATES] = {
    [RP_OP_FREE] = 1u << RP_OP_QUEUED,
    [RP_OP_QUEUED] = 1u << RP_OP_INFLIGHT | 1u << RP_OP_ORPHANED | 1u << RP_OP_FREE,
    [RP_OP_INFLIGHT] = 1u << RP_OP_CANCELING | 1u << RP_OP_ORPHANED | 1u << RP_OP_FREE,
    [RP_OP_CANCELING] = 1u << RP_OP_ORPHANED | 1u << RP_OP_FREE,
    [RP_OP_ORPHANED] = 1u << RP_OP_FREE,
};

void rp_op_table_init(struct rp_op_table *table)
{
    memset(table, 0, sizeof(*table));
}

void rp_op_table_fini(struct rp_op_table *table)
{
    if (!table)
        return;
    for (uint32_t page = 0; page < table->pages_used; page++)
        rp_sys_pages_free(table->pages[page], PAGE_BYTES);
    if (table->pages)
        rp_sys_pages_free(table->pages, table->pages_capacity * sizeof(*table->pages));
    rp_op_table_init(table);
}

bool rp_op_grow(struct rp_op_table *table)
{
    if (table->pages_used == table->pages_capacity) {
        uint32_t capacity = table->pages_capacity ? table->pages_capacity * 2 : FIRST_CAPACITY;
        struct rp_op **pages = rp_sys_pages(capacity * sizeof(*pages));
        if (!pages)
            return false;
        if (table->pages) {
            memcpy(pages, table->pages, table->pages_used * sizeof(*pages));
            rp_sys_pages_free(table->pages, table->pages_capacity * sizeof(*pages));
        }
        table->pages = pages;
        table->pages_capacity = capacity;
    }
    struct rp_op *ops = rp_sys_pages(PAGE_BYTES);
    if (!ops)
        return false;
    uint32_t first = table->pages_used * RP_OP_PAGE;
    for (uint32_t i = 0; i < RP_OP_PAGE; i++) {
        ops[i].slot = first + i;
        ops[i].generation = 1;
        ops[i].next_free = i + 1 < RP_OP_PAGE ? first + i + 2 : 0;
    }
    table->pages[table->pages_used++] = ops;
    table->free_head = first + 1;
    table->count[RP_OP_FREE] += RP_OP_PAGE;
    return true;
}

struct rp_op *rp_op_find_slowly(struct rp_op_table *table, uint64_t user_data)
{
    if ((uint8_t)user_data == RP_OP_NONE)
        return NULL;
    uint32_t slot = (uint32_t)(user_data >> KIND_BITS);
    if ((uint8_t)user_data == RP_OP_FENCE) {
        table->fence_passed = slot;
        return NULL;
    }
    if (slot / RP_OP_PAGE < table->pages_used) {
        struct rp_op *op = rp_op_at(table, slot);
        /* A FREE op's generation has never been handed out, but its number could be guessed. */
        if (op->generation == user_data >> (SLOT_BITS + KIND_BITS) && op->kind == (uint8_t)user_data &&
            op->state != RP_OP_FREE)
            return op;
    }
    table->stale++;
    return NULL;
}

bool rp_op_cancel(struct rp_op_table *table, struct rp_ring *ring, struct rp_op *op, enum rp_op_state to)
{
    struct rp_sqe *sqe = rp_ring_get_sqe(ring);
    if (!sqe)
        return false;
    if (op->state == RP_OP_QUEUED)
        rp_op_step(table, op, RP_OP_INFLIGHT);
    sqe->opcode = RP_IORING_OP_ASYNC_CANCEL;
    sqe->fd = -1;
    sqe->addr = rp_op_user_data(table, op);
    if (ring->features & RINGPOLL_FEATURE_CQE_SKIP)
        sqe->flags = RP_SQE_CQE_SKIP_SUCCESS;
    rp_op_step(table, op, to);
    return true;
}

uint32_t rp_op_busy(const struct rp_op_table *table)
{
    return table->count[RP_OP_QUEUED] + table->count[RP_OP_INFLIGHT] + table->count[RP_OP_CANCELING] +
           table->count[RP_OP_ORPHANED];
}
