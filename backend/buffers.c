/* SPDX-License-Identifier: MIT */
#include "buffers.h"

#include <errno.h>
#include <string.h>

#include "abi.h"
#include "sys.h"

#define FIRST_TARGET 32u

/* ------------------------------------------------------------------- pool */

static size_t page_up(size_t bytes)
{
    return (bytes + 4095u) & ~(size_t)4095;
}

static struct rp_pool *pool_new(uint32_t count)
{
    size_t table = page_up(sizeof(struct rp_pool) + count * sizeof(struct rp_segment));
    size_t mapped = table + page_up((size_t)count * RP_BUFFER_STRIDE);
    struct rp_pool *pool = rp_sys_pages(mapped);
    if (!pool)
        return NULL;
    pool->references = 1;
    pool->count = count;
    pool->mapped = mapped;
    pool->segments = (struct rp_segment *)(pool + 1);
    pool->data = (unsigned char *)pool + table;
    return pool;
}

void rp_pool_get(struct rp_pool *pool)
{
    __atomic_fetch_add(&pool->references, 1, __ATOMIC_RELAXED);
}

/* Lone ones of the usual size that came back. */
#define LONE_KEPT 8u
#define LONE_BYTES 65536u
static struct rp_pool *lone_kept[LONE_KEPT];

static bool keep_lone(struct rp_pool *pool)
{
    if (pool->count > 0 || pool->mapped != LONE_BYTES + 4096u)
        return false;
    for (unsigned i = 0; i < LONE_KEPT; i++) {
        struct rp_pool *none = NULL;
        if (__atomic_compare_exchange_n(&lone_kept[i], &none, pool, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED))
            return true;
    }
    return false;
}

struct rp_pool *rp_pool_lone(size_t bytes, size_t *ret_room)
{
    struct rp_pool *pool = NULL;
    size_t room = bytes <= LONE_BYTES ? LONE_BYTES : page_up(bytes);
    for (unsigned i = 0; i < LONE_KEPT && !pool && room == LONE_BYTES; i++)
        if (__atomic_load_n(&lone_kept[i], __ATOMIC_RELAXED))
            pool = __atomic_exchange_n(&lone_kept[i], NULL, __ATOMIC_ACQUIRE);
    if (!pool && bytes <= SIZE_MAX / 2)
        pool = rp_sys_pages(room + 4096u);
    if (!pool)
        return NULL;
    pool->references = 1;
    pool->mapped = room + 4096u;
    pool->data = (unsigned char *)pool + 4096u;
    *ret_room = room;
    return pool;
}

void rp_pool_put(struct rp_pool *pool)
{
    if (__atomic_sub_fetch(&pool->references, 1, __ATOMIC_ACQ_REL) == 0 && !keep_lone(pool))
        rp_sys_pages_free(pool, pool->mapped);
}

void rp_pool_return(struct rp_pool *pool, uint32_t number)
{
    if (pool->count == 0) {
        rp_pool_put(pool);
        return;
    }
    struct rp_segment *segment = &pool->segments[number];
    if (pool->owner == rp_self.id && rp_self.locks_held == 0) {
        rp_self.locks_held++; /* a signal handler that comes in between takes the other way */
        __atomic_signal_fence(__ATOMIC_SEQ_CST);
        segment->next = (uint16_t)pool->returned_here;
        pool->returned_here = number + 1;
        __atomic_signal_fence(__ATOMIC_SEQ_CST);
        rp_self.locks_held--;
    } else {
        rp_lock(&pool->lock);
        segment->next = (uint16_t)pool->returned;
        __atomic_store_n(&pool->returned, number + 1, __ATOMIC_RELAXED);
        rp_unlock(&pool->lock);
    }
    rp_pool_put(pool);
}

/* ---------------------------------------------------------------- buffers */

/* FREE → KERNEL, up to `target`; where `more`, those that were never used, too. */
static void top_up(struct rp_buffers *buffers, bool more)
{
    struct rp_pool *pool = buffers->pool;
    struct rp_buf_ring *ring = buffers->ring;
    uint16_t tail = buffers->tail;
    for (; buffers->given < buffers->target; buffers->given++, tail++) {
        struct rp_buf *entry = &ring->bufs[tail & buffers->mask];
        uint32_t number;
        if (buffers->free_head) {
            number = buffers->free_head - 1u;
            buffers->free_head = pool->segments[number].next;
        } else if (more && buffers->made < pool->count) {
            number = buffers->made++;
        } else {
            break;
        }
        entry->addr = (uint64_t)(uintptr_t)rp_pool_bytes(pool, number);
        entry->len = RP_BUFFER_STRIDE;
        entry->bid = (uint16_t)number;
    }
    buffers->tail = tail;
    __atomic_store_n(&ring->bufs[0].tail, tail, __ATOMIC_RELEASE); /* the kernel reads what stands before it */
}

int rp_buffers_init(struct rp_buffers *buffers, struct rp_ring *ring, uint32_t count)
{
    memset(buffers, 0, sizeof *buffers);
    size_t ring_bytes = page_up(count * sizeof(struct rp_buf));
    struct rp_buf_ring *entries = rp_sys_pages(ring_bytes);
    struct rp_pool *pool = entries ? pool_new(count) : NULL;
    int error = -ENOMEM;
    if (pool) {
        struct rp_buf_reg reg = {
            .ring_addr = (uint64_t)(uintptr_t)entries,
            .ring_entries = count,
            .bgid = RP_BUFFERS_GROUP,
        };
        error = rp_ring_register(ring, RP_REGISTER_PBUF_RING, &reg, 1);
    }
    if (error < 0) {
        if (pool)
            rp_pool_put(pool);
        if (entries)
            rp_sys_pages_free(entries, ring_bytes);
        return error;
    }
    pool->owner = rp_self.id;
    buffers->pool = pool;
    buffers->ring = entries;
    buffers->ring_bytes = ring_bytes;
    buffers->mask = count - 1;
    buffers->target = count < FIRST_TARGET ? count : FIRST_TARGET;
    top_up(buffers, true);
    return 0;
}

static void forget(struct rp_buffers *buffers)
{
    if (!buffers->pool)
        return;
    rp_sys_pages_free(buffers->ring, buffers->ring_bytes);
    rp_pool_put(buffers->pool);
    memset(buffers, 0, sizeof *buffers);
}

void rp_buffers_fini(struct rp_buffers *buffers, struct rp_ring *ring)
{
    if (!buffers->pool)
        return;
    struct rp_buf_reg reg = {.bgid = RP_BUFFERS_GROUP};
    (void)rp_ring_register(ring, RP_UNREGISTER_PBUF_RING, &reg, 1);
    forget(buffers);
}

void rp_buffers_abandon(struct rp_buffers *buffers)
{
    forget(buffers);
}

static void recycle_all(struct rp_buffers *buffers, struct rp_pool *pool, uint32_t next)
{
    while (next) {
        uint32_t number = next - 1;
        next = pool->segments[number].next;
        rp_buffers_recycle(buffers, pool, number);
    }
}

static void collect(struct rp_buffers *buffers)
{
    struct rp_pool *pool = buffers->pool;
    if (pool->returned_here && pool->owner == rp_self.id) {
        uint32_t here = pool->returned_here;
        pool->returned_here = 0;
        recycle_all(buffers, pool, here);
    }
    if (!__atomic_load_n(&pool->returned, __ATOMIC_RELAXED))
        return;
    rp_lock(&pool->lock);
    uint32_t next = pool->returned;
    __atomic_store_n(&pool->returned, 0, __ATOMIC_RELAXED);
    rp_unlock(&pool->lock);
    recycle_all(buffers, pool, next);
}

void rp_buffers_refill_at_length(struct rp_buffers *buffers)
{
    collect(buffers);
    top_up(buffers, false);
}

bool rp_buffers_starved(struct rp_buffers *buffers)
{
    collect(buffers);
    if (buffers->target < buffers->pool->count)
        buffers->target++;
    top_up(buffers, true);
    return buffers->given > 0;
}
