/* SPDX-License-Identifier: MIT
 *
 * One io_uring: set-up, submission, waiting.
 *
 * Ownership. A ring belongs to the thread that made it, and every function here
 * is called by that thread alone (with SINGLE_ISSUER the kernel insists on it:
 * EEXIST). So the library's side of the queues needs no lock, and the only
 * barriers are those between this thread and the kernel, which is this same
 * thread inside io_uring_enter, except under SQPOLL, where it is another one. What
 * others look at while this thread is inside an enter, sqe_head and the counters,
 * and may change, enter_fd, goes by once.h.
 *
 * Submission. SQEs are filled at sqe_tail and become visible to the kernel in
 * rp_ring_enter(), not before. Until they are taken (sqe_head), they may still
 * be changed in place. Without SQPOLL that is what the kernel reports in
 * *sq_head; with it, what was published counts as taken, since the kernel's
 * thread may be reading it, and *sq_head only says when the room is free again.
 *
 * Set-up. The newest flag is given up first. A kernel that does not know a flag
 * knows none that is younger, so this finds the best set in as many steps as
 * there are flags to lose:
 *
 *   NO_SQARRAY (6.6) · DEFER_TASKRUN (6.1) → COOP_TASKRUN · SINGLE_ISSUER (6.0) ·
 *   COOP_TASKRUN, TASKRUN_FLAG (5.19) · SUBMIT_ALL (5.18) · CLAMP (5.6) ·
 *   CQSIZE (5.5) · plain (5.1)
 *
 * Losing the CQ's size or the clamp costs nothing but size: the numbers are
 * clamped here too. SQPOLL, where it was asked for, is never given up silently:
 * what the kernel says to it is the answer.
 *
 * Features that are no set-up flag are told by the features word and by the
 * opcodes that were merged in the same release. That is enough to choose how to
 * arm a poll; whether each really works is what probe.c tries.
 */
#include "ring.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

#include "once.h"
#include "ringpoll/ringpoll.h"
#include "sys.h"

#define MAX_SQ_ENTRIES 32768u
#define MAX_CQ_ENTRIES 65536u
#define MIN_SQ_ENTRIES 8u  /* below, ENOMEM is final */
#define MIN_CQ_ENTRIES 16u

static bool has(uint64_t features, uint64_t feature)
{
    return (features & feature) == feature;
}

/* ---------------------------------------------------------------- the ladder */

static unsigned first_rung(const struct rp_ring_options *options)
{
    uint64_t features = options->features;
    unsigned flags = 0;
    if (has(features, RINGPOLL_FEATURE_NO_SQARRAY))
        flags |= RP_SETUP_NO_SQARRAY;
    if (has(features, RINGPOLL_FEATURE_SUBMIT_ALL))
        flags |= RP_SETUP_SUBMIT_ALL;
    if (has(features, RINGPOLL_FEATURE_CLAMP))
        flags |= RP_SETUP_CLAMP;
    if (has(features, RINGPOLL_FEATURE_CQSIZE))
        flags |= RP_SETUP_CQSIZE;
    if (has(features, RINGPOLL_FEATURE_SINGLE_ISSUER))
        flags |= RP_SETUP_SINGLE_ISSUER;
    if (options->sqpoll && has(features, RINGPOLL_FEATURE_SQPOLL)) {
        /* Task work runs in the kernel's thread: DEFER and COOP are refused. */
        flags |= RP_SETUP_SQPOLL;
        if (options->sq_aff)
            flags |= RP_SETUP_SQ_AFF;
        return flags;
    }
    if (has(features, RINGPOLL_FEATURE_DEFER | RINGPOLL_FEATURE_SINGLE_ISSUER))
        flags |= RP_SETUP_DEFER_TASKRUN;
    else if (has(features, RINGPOLL_FEATURE_COOP))
        flags |= RP_SETUP_COOP_TASKRUN;
    if (has(features, RINGPOLL_FEATURE_TASKRUN_FLAG) && (flags & (RP_SETUP_DEFER_TASKRUN | RP_SETUP_COOP_TASKRUN)))
        flags |= RP_SETUP_TASKRUN_FLAG; /* only valid beside one of the two */
    return flags;
}

/* One step down; false at the bottom. */
static bool next_rung(unsigned *flags, const struct rp_ring_options *options)
{
    static const unsigned by_age[] = {
        RP_SETUP_NO_SQARRAY,
        RP_SETUP_DEFER_TASKRUN,
        RP_SETUP_SINGLE_ISSUER,
        RP_SETUP_COOP_TASKRUN | RP_SETUP_TASKRUN_FLAG,
        RP_SETUP_SUBMIT_ALL,
        RP_SETUP_CLAMP,
        RP_SETUP_CQSIZE,
    };
    for (unsigned i = 0; i < sizeof(by_age) / sizeof(by_age[0]); i++) {
        if (!(*flags & by_age[i]))
            continue;
        *flags &= ~by_age[i];
        if (by_age[i] == RP_SETUP_DEFER_TASKRUN) {
            if (has(options->features, RINGPOLL_FEATURE_COOP))
                *flags |= RP_SETUP_COOP_TASKRUN;
            else
                *flags &= ~RP_SETUP_TASKRUN_FLAG;
        }
        return true;
    }
    return false;
}

/* --------------------------------------------------------------- what came out */

static bool supports(const struct rp_probe *probe, enum rp_opcode opcode)
{
    return (unsigned)opcode < probe->ops_len && (probe->ops[opcode].flags & RP_OP_SUPPORTED);
}

static uint64_t features_of(const struct rp_ring *ring)
{
    static const struct {
        unsigned flag;
        uint64_t feature;
    } by_flag[] = {
        {RP_SETUP_DEFER_TASKRUN, RINGPOLL_FEATURE_DEFER},   {RP_SETUP_SINGLE_ISSUER, RINGPOLL_FEATURE_SINGLE_ISSUER},
        {RP_SETUP_COOP_TASKRUN, RINGPOLL_FEATURE_COOP},     {RP_SETUP_TASKRUN_FLAG, RINGPOLL_FEATURE_TASKRUN_FLAG},
        {RP_SETUP_SUBMIT_ALL, RINGPOLL_FEATURE_SUBMIT_ALL}, {RP_SETUP_CQSIZE, RINGPOLL_FEATURE_CQSIZE},
        {RP_SETUP_CLAMP, RINGPOLL_FEATURE_CLAMP},           {RP_SETUP_SQPOLL, RINGPOLL_FEATURE_SQPOLL},
        {RP_SETUP_NO_SQARRAY, RINGPOLL_FEATURE_NO_SQARRAY},
    };
    static const struct {
        unsigned feature_bit;
        uint64_t features;
    } by_word[] = {
        {RP_FEAT_NODROP, RINGPOLL_FEATURE_NODROP},
        {RP_FEAT_EXT_ARG, RINGPOLL_FEATURE_EXT_ARG},
        /* RSRC_TAGS, multishot polls and their updates all came with 5.13. */
        {RP_FEAT_RSRC_TAGS, RINGPOLL_FEATURE_MULTISHOT_POLL | RINGPOLL_FEATURE_POLL_UPDATE},
        {RP_FEAT_CQE_SKIP, RINGPOLL_FEATURE_CQE_SKIP},
        {RP_FEAT_MIN_TIMEOUT, RINGPOLL_FEATURE_ABS_TIMER}, /* both 6.12 */
        {RP_FEAT_RECVSEND_BUNDLE, RINGPOLL_FEATURE_RECV_BUNDLE},
        {RP_FEAT_NO_IOWAIT, RINGPOLL_FEATURE_NO_IOWAIT},
    };
    static const struct {
        enum rp_opcode opcode;
        uint64_t features;
    } by_opcode[] = {
        {RP_IORING_OP_SOCKET, RINGPOLL_FEATURE_CANCEL_FD | RINGPOLL_FEATURE_MULTISHOT_ACCEPT |
                                  RINGPOLL_FEATURE_BUF_RING | RINGPOLL_FEATURE_SPARSE_FILES}, /* 5.19 */
        {RP_IORING_OP_SEND_ZC,
         RINGPOLL_FEATURE_SYNC_CANCEL | RINGPOLL_FEATURE_MULTISHOT_RECV}, /* 6.0 */
        {RP_IORING_OP_SENDMSG_ZC, RINGPOLL_FEATURE_SEND_ZC}, /* 6.1; its report is 6.2's, see send.c */
        {RP_IORING_OP_READ_MULTISHOT, RINGPOLL_FEATURE_READ_MULTISHOT},
        {RP_IORING_OP_FTRUNCATE, RINGPOLL_FEATURE_NAPI}, /* 6.9 */
    };
    uint64_t features = RINGPOLL_FEATURE_URING;
    for (unsigned i = 0; i < sizeof(by_flag) / sizeof(by_flag[0]); i++)
        if (ring->setup_flags & by_flag[i].flag)
            features |= by_flag[i].feature;
    for (unsigned i = 0; i < sizeof(by_word) / sizeof(by_word[0]); i++)
        if (ring->kernel_features & by_word[i].feature_bit)
            features |= by_word[i].features;
    /* REGISTER_PROBE came with 5.6; without it none of these is there. */
    struct rp_probe probe;
    memset(&probe, 0, sizeof(probe));
    if (rp_sys->uring_register(ring->fd, RP_REGISTER_PROBE, &probe, RP_PROBE_OPS) == 0) {
        for (unsigned i = 0; i < sizeof(by_opcode) / sizeof(by_opcode[0]); i++)
            if (supports(&probe, by_opcode[i].opcode))
                features |= by_opcode[i].features;
        /* Resizing has no mark of its own; it came with 6.13, NO_IOWAIT after. */
        if (has(features, RINGPOLL_FEATURE_NO_IOWAIT | RINGPOLL_FEATURE_DEFER))
            features |= RINGPOLL_FEATURE_RESIZE;
    }
    return features;
}

static void *at(void *map, uint32_t offset)
{
    return (char *)map + offset;
}

static int map_queues(struct rp_ring *ring, const struct rp_params *params)
{
    size_t sq_size = params->sq_off.array + params->sq_entries * sizeof(uint32_t);
    size_t cq_size = params->cq_off.cqes + params->cq_entries * sizeof(struct rp_cqe);
    bool single = (params->features & RP_FEAT_SINGLE_MMAP) != 0;
    if (single && cq_size > sq_size)
        sq_size = cq_size;

    int result = rp_sys->map(ring->fd, RP_OFF_SQ_RING, sq_size, &ring->map_sq);
    if (result < 0)
        return result;
    ring->map_sq_size = sq_size;
    void *cq = ring->map_sq;
    if (!single) {
        result = rp_sys->map(ring->fd, RP_OFF_CQ_RING, cq_size, &ring->map_cq);
        if (result < 0)
            return result;
        ring->map_cq_size = cq_size;
        cq = ring->map_cq;
    }
    size_t sqes_size = params->sq_entries * sizeof(struct rp_sqe);
    result = rp_sys->map(ring->fd, RP_OFF_SQES, sqes_size, &ring->map_sqes);
    if (result < 0)
        return result;
    ring->map_sqes_size = sqes_size;

    ring->sq_head = at(ring->map_sq, params->sq_off.head);
    ring->sq_tail = at(ring->map_sq, params->sq_off.tail);
    ring->sq_flags = at(ring->map_sq, params->sq_off.flags);
    ring->sqes = ring->map_sqes;
    ring->sq_entries = params->sq_entries;
    ring->sq_mask = params->sq_entries - 1;
    ring->cq_head = at(cq, params->cq_off.head);
    ring->cq_tail = at(cq, params->cq_off.tail);
    ring->cq_overflow = at(cq, params->cq_off.overflow);
    ring->cqes = at(cq, params->cq_off.cqes);
    ring->cq_entries = params->cq_entries;
    ring->cq_mask = params->cq_entries - 1;
    ring->sqe_head = ring->sqe_tail = *ring->sq_tail;
    ring->cq_next = *ring->cq_head;
    if (ring->setup_flags & RP_SETUP_DEFER_TASKRUN)
        ring->cq_held_max = ring->cq_entries / 4 < 256 ? ring->cq_entries / 4 : 256;
    if (!(ring->setup_flags & RP_SETUP_NO_SQARRAY)) {
        /* The indirection of old: position i names SQE i, for good. */
        ring->sq_array = at(ring->map_sq, params->sq_off.array);
        for (uint32_t i = 0; i < ring->sq_entries; i++)
            ring->sq_array[i] = i;
    }
    return 0;
}

static void unmap_queues(struct rp_ring *ring)
{
    rp_sys->unmap(ring->map_sqes, ring->map_sqes_size);
    rp_sys->unmap(ring->map_cq, ring->map_cq_size);
    rp_sys->unmap(ring->map_sq, ring->map_sq_size);
}

static void make_empty(struct rp_ring *ring)
{
    memset(ring, 0, sizeof(*ring));
    ring->fd = ring->enter_fd = -1;
}

/* One registered slot per thread and ring, 16 per thread (EBUSY beyond). It
 * spares each enter an atomic get and put of the ring's file; what it costs:
 * an idle thread that holds it keeps a closed ring alive.
 * So only while there is no other thread that could close it. */
void rp_ring_register_fd(struct rp_ring *ring)
{
    struct rp_rsrc_update update = {.offset = ~0u, .data = (uint64_t)ring->fd};
    if (rp_sys->uring_register(ring->fd, RP_REGISTER_RING_FDS, &update, 1) != 1)
        return;
    ring->enter_fd = (int)update.offset;
    ring->enter_flags |= RP_ENTER_REGISTERED_RING;
    ring->features |= RINGPOLL_FEATURE_REGISTERED_RING;
}

/* A ring that is registered can be named by that alone (6.3); one that has a number
 * of its own is named by it, on any kernel. */
int rp_ring_register(struct rp_ring *ring, unsigned opcode, const void *arg, unsigned count)
{
    if ((ring->enter_flags & RP_ENTER_REGISTERED_RING) && ring->fd == INT_MAX)
        return rp_sys->uring_register(ring->enter_fd, opcode | RP_REGISTER_USE_REGISTERED_RING, arg, count);
    return rp_sys->uring_register(ring->fd, opcode, arg, count);
}

void rp_ring_unregister_fd(struct rp_ring *ring)
{
    if (!(ring->enter_flags & RP_ENTER_REGISTERED_RING))
        return;
    struct rp_rsrc_update update = {.offset = (uint32_t)ring->enter_fd};
    /* It can only fail for a thread that never registered; the plain fd works for
     * all. Without one, before 6.3, the slot is given up when the thread ends. */
    if (ring->fd != RP_RING_NO_FD)
        (void)rp_sys->uring_register(ring->fd, RP_UNREGISTER_RING_FDS, &update, 1);
    else if (ring->kernel_features & RP_FEAT_REG_REG_RING)
        (void)rp_sys->uring_register(ring->enter_fd, RP_UNREGISTER_RING_FDS | RP_REGISTER_USE_REGISTERED_RING,
                                     &update, 1);
    ring->enter_fd = ring->fd;
    ring->enter_flags &= ~RP_ENTER_REGISTERED_RING;
    ring->features &= ~RINGPOLL_FEATURE_REGISTERED_RING;
}

/* One attempt at a given size: 0, or -errno with nothing left behind. *flags is
 * where the ladder stands, so that the next size begins there. */
static int make(struct rp_ring *ring, const struct rp_ring_options *options, unsigned *flags, unsigned sq_entries,
                unsigned cq_entries)
{
    struct rp_params params;
    int fd;
    for (;;) {
        memset(&params, 0, sizeof(params));
        params.flags = *flags;
        if (*flags & RP_SETUP_CQSIZE)
            params.cq_entries = cq_entries;
        if (*flags & RP_SETUP_SQPOLL) {
            params.sq_thread_idle = options->sq_thread_idle_ms;
            params.sq_thread_cpu = *flags & RP_SETUP_SQ_AFF ? options->sq_thread_cpu : 0;
        }
        fd = rp_sys->uring_setup(sq_entries, &params);
        if (fd != -EINVAL || !next_rung(flags, options))
            break;
    }
    if (fd < 0)
        return fd;
    fd = rp_sys_dup_high(fd);
    if (fd < 0)
        return fd;

    make_empty(ring);
    ring->fd = ring->enter_fd = fd;
    ring->setup_flags = *flags;
    ring->kernel_features = params.features;
    /* Before 5.11 the kernel's thread only knows registered files. */
    int result = (*flags & RP_SETUP_SQPOLL) && !(params.features & RP_FEAT_SQPOLL_NONFIXED) ? -EINVAL : 0;
    if (result == 0)
        result = map_queues(ring, &params);
    if (result < 0) {
        unmap_queues(ring);
        rp_sys_close(fd);
        make_empty(ring);
        return result;
    }
    ring->features = features_of(ring) & options->features;
    if (has(ring->features, RINGPOLL_FEATURE_NO_IOWAIT))
        ring->enter_flags |= RP_ENTER_NO_IOWAIT; /* an idle loop is idle, not waiting for a disk */
    if (options->single_thread && has(options->features, RINGPOLL_FEATURE_REGISTERED_RING))
        rp_ring_register_fd(ring);
    return 0;
}

int rp_ring_init(struct rp_ring *ring, const struct rp_ring_options *options)
{
    make_empty(ring);
    if (!has(options->features, RINGPOLL_FEATURE_URING))
        return -ENOSYS; /* masked: as a kernel without it would say */
    unsigned sq_entries = options->sq_entries ? options->sq_entries : 1;
    if (options->sqpoll && sq_entries < 2)
        sq_entries = 2; /* room for a fence */
    if (sq_entries > MAX_SQ_ENTRIES)
        sq_entries = MAX_SQ_ENTRIES;
    unsigned cq_entries = options->cq_entries > sq_entries ? options->cq_entries : sq_entries;
    if (cq_entries > MAX_CQ_ENTRIES)
        cq_entries = MAX_CQ_ENTRIES;

    unsigned flags = first_rung(options);
    for (;;) {
        int result = make(ring, options, &flags, sq_entries, cq_entries);
        /* ENOMEM: no memory, or up to 5.11 RLIMIT_MEMLOCK; EAGAIN is what mmap
         * makes of that limit when the process locks its future mappings. */
        bool memory = result == -ENOMEM || (result == -EAGAIN && !(flags & RP_SETUP_SQPOLL));
        if (!memory || (sq_entries <= MIN_SQ_ENTRIES && cq_entries <= MIN_CQ_ENTRIES))
            return result;
        if (sq_entries > MIN_SQ_ENTRIES)
            sq_entries /= 2;
        if (cq_entries > MIN_CQ_ENTRIES)
            cq_entries /= 2;
        if (cq_entries < sq_entries)
            cq_entries = sq_entries;
    }
}

void rp_ring_fini(struct rp_ring *ring)
{
    if (!ring || ring->fd < 0)
        return;
    rp_ring_unregister_fd(ring);
    unmap_queues(ring);
    rp_sys_close(ring->fd);
    make_empty(ring);
}

void rp_ring_abandon(struct rp_ring *ring)
{
    if (ring->fd < 0)
        return;
    /* The mappings stayed with the parent (MADV_DONTFORK), and so did the
     * registered slot; only the number was inherited. */
    rp_sys_close(ring->fd);
    make_empty(ring);
}

/* --------------------------------------------------------------- submission */

/* Two NOPs, the second linked to the first. The kernel's thread takes SQEs, then
 * runs the work that is due, first come, first served (tctx->task_list). A linked
 * request becomes such work when its predecessor is done: behind what the SQEs
 * before the first made, and behind every wake-up that came before it. */
bool rp_ring_fence(struct rp_ring *ring, uint64_t user_data)
{
    struct rp_sqe *first = rp_ring_get_sqe(ring);
    if (!first)
        return false;
    first->opcode = RP_IORING_OP_NOP; /* alone it makes the SQ full, which can be waited for */
    struct rp_sqe *second = rp_ring_get_sqe(ring);
    if (!second)
        return false;
    second->opcode = RP_IORING_OP_NOP;
    first->flags = RP_SQE_IO_LINK;
    if (ring->features & RINGPOLL_FEATURE_CQE_SKIP)
        first->flags |= RP_SQE_CQE_SKIP_SUCCESS;
    second->user_data = user_data;
    return true;
}

/* What io_uring_enter answers, and what it means here:
 *
 *   EINTR      a signal came while waiting; nothing was submitted by this call
 *   ETIME      the time is over; the same
 *   EAGAIN     no memory for a request; SQEs stay queued. Reap, then again
 *   EBUSY      completions are backlogged in the kernel and it will not take
 *              more (before 6.0), or the CQ must be emptied first. Reap, again
 *   EBADR      a completion was lost: no memory to keep it in when the CQ was
 *              full. Nobody can say which; whoever owns the ring gives it up
 *   EEXIST     SINGLE_ISSUER, and this is not the issuer: another thread or a
 *              forked child. The library's locks rule it out
 *   EBADFD     the ring was made disabled; never by us
 *   ENXIO      the ring is being torn down
 *   EBADF, EOPNOTSUPP  the number is closed, or not a ring: somebody closed our fd
 *   EOWNERDEAD SQPOLL: the kernel's thread is gone
 *   EPERM      a filter that came after the ring
 *   EFAULT     timeout or mask unreadable: the caller's pointer
 *   EINVAL     a flag the kernel does not know, or tv_nsec out of range
 *
 * They are all passed on: what to do is the set's business. */
static int enter_once(struct rp_ring *ring, unsigned to_submit, unsigned min_complete, unsigned flags,
                      const struct timespec *timeout, const sigset_t *sigmask)
{
    bool waits = min_complete > 0;
    int fd = RP_READ_ONCE(ring->enter_fd);
    RP_COUNT(ring->enters, 1);
    min_complete += rp_ring_held(ring); /* these the kernel counts, see rp_ring_seen() */
    if (!waits || (!timeout && !sigmask))
        return rp_sys->uring_enter(fd, to_submit, min_complete, flags, NULL, 0);
    if (!timeout) /* the mask alone needs no structure, nor EXT_ARG */
        return rp_sys->uring_enter(fd, to_submit, min_complete, flags, sigmask, RP_SIGSET_BYTES);
    struct rp_timespec time = {timeout->tv_sec, timeout->tv_nsec};
    struct rp_getevents_arg arg = {
        .sigmask = (uint64_t)(uintptr_t)sigmask,
        .sigmask_sz = RP_SIGSET_BYTES,
        .ts = (uint64_t)(uintptr_t)&time,
    };
    return rp_sys->uring_enter(fd, to_submit, min_complete, flags | RP_ENTER_EXT_ARG, &arg, sizeof(arg));
}

/* The kernel's thread takes what is published by itself. A call is needed when
 * it sleeps, when the SQ has no room for the next SQE, when completions are
 * held back, and to wait. */
static int enter_sqpoll(struct rp_ring *ring, unsigned min_complete, const struct timespec *timeout,
                        const sigset_t *sigmask)
{
    unsigned published = ring->sqe_tail - ring->sqe_head;
    unsigned flags = 0;
    if (published) {
        __atomic_store_n(ring->sq_tail, ring->sqe_tail, __ATOMIC_RELEASE);
        RP_WRITE_ONCE(ring->sqe_head, ring->sqe_tail);
        RP_COUNT(ring->sqes_submitted, published);
    }
    /* The thread says NEED_WAKEUP, then looks at the tail once more; we move the
     * tail, then look at its word. One of the two sees the other. */
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    uint32_t state = __atomic_load_n(ring->sq_flags, __ATOMIC_RELAXED);
    uint32_t waiting = ring->sqe_tail - __atomic_load_n(ring->sq_head, __ATOMIC_ACQUIRE);
    if ((state & RP_SQ_NEED_WAKEUP) && waiting > 0) /* wake-ups of files wake it by themselves */
        flags |= RP_ENTER_SQ_WAKEUP;
    if (waiting >= ring->sq_entries)
        flags |= RP_ENTER_SQ_WAIT;
    if (state & RP_SQ_CQ_OVERFLOW) {
        RP_COUNT(ring->overflows, 1);
        flags |= RP_ENTER_GETEVENTS;
    }
    uint32_t ready = __atomic_load_n(ring->cq_tail, __ATOMIC_ACQUIRE) - ring->cq_next;
    if (min_complete > ready)
        flags |= RP_ENTER_GETEVENTS;
    if (flags == 0)
        return (int)published;
    /* The kernel answers to_submit where it has nothing worse to say, and then
     * hides EINTR and ETIME; with 0 it tells them. What was published is
     * submitted whatever it says. */
    int result = enter_once(ring, 0, flags & RP_ENTER_GETEVENTS ? min_complete : 0, ring->enter_flags | flags, timeout,
                            sigmask);
    if (result < 0 && published == 0)
        return result;
    return (int)published;
}

static __attribute__((noinline)) int submit(struct rp_ring *ring, unsigned min_complete, unsigned flags,
                                            const struct timespec *timeout, const sigset_t *sigmask)
{
    unsigned to_submit = ring->sqe_tail - ring->sqe_head;
    __atomic_store_n(ring->sq_tail, ring->sqe_tail, __ATOMIC_RELEASE);
    int taken = 0;
    for (;;) {
        int result = enter_once(ring, to_submit, min_complete, flags, timeout, sigmask);
        /* Its own word on how far it got: an error can hide it. */
        uint32_t head = __atomic_load_n(ring->sq_head, __ATOMIC_ACQUIRE);
        unsigned step = head - ring->sqe_head;
        RP_WRITE_ONCE(ring->sqe_head, head);
        RP_COUNT(ring->sqes_submitted, step);
        taken += (int)step;
        to_submit = ring->sqe_tail - head;
        if (result < 0)
            return taken ? taken : result;
        /* Without SUBMIT_ALL an SQE that fails ends the batch, and the wait with
         * it; short of memory, the kernel takes what it can. Then go on. */
        if (to_submit == 0 || step == 0)
            return taken;
    }
}

int rp_ring_enter(struct rp_ring *ring, unsigned min_complete, const struct timespec *timeout,
                  const sigset_t *sigmask)
{
    if (RP_UNLIKELY(ring->setup_flags & RP_SETUP_SQPOLL))
        return enter_sqpoll(ring, min_complete, timeout, sigmask);
    if (RP_UNLIKELY(__atomic_load_n(ring->sq_flags, __ATOMIC_RELAXED) & RP_SQ_CQ_OVERFLOW))
        RP_COUNT(ring->overflows, 1);
    unsigned flags = ring->enter_flags | RP_ENTER_GETEVENTS;
    if (ring->sqe_tail != ring->sqe_head)
        return submit(ring, min_complete, flags, timeout, sigmask);
    return enter_once(ring, 0, min_complete, flags, timeout, sigmask);
}
