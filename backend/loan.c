/* SPDX-License-Identifier: MIT
 *
 * Memory lent to the kernel; states and ownership stand in loan.h.
 */
#include "set.h"

#include <errno.h>
#include <string.h>

#define PAGE_BYTES 4096u
#define PER_PAGE ((PAGE_BYTES - sizeof(void *)) / sizeof(struct rp_loan))

struct page {
    struct page *next;
    struct rp_loan loans[];
};

/* A ring that lingers. */
struct lingering {
    struct lingering *next;
    uint64_t owner; /* rp_self.id; 0: not in use */
    struct rp_ring ring;
    struct rp_op_table ops;
    struct rp_ring_options options;
    unsigned loans;
};

static struct rp_lock loan_lock; /* before rp_fdtab_lock: records, the list of rings, and their fds */
static struct page *pages;
static struct rp_loan *free_loans;
static struct lingering *lingering; /* never unlinked */

static const uint8_t edges[RP_LOAN_STATES] = {
    [RP_LOAN_FREE] = 1u << RP_LOAN_ASKED,
    [RP_LOAN_ASKED] = 1u << RP_LOAN_READ | 1u << RP_LOAN_VOID | 1u << RP_LOAN_DUE | 1u << RP_LOAN_FREE,
    [RP_LOAN_READ] = 1u << RP_LOAN_DUE,
    [RP_LOAN_VOID] = 1u << RP_LOAN_FREE,
    [RP_LOAN_DUE] = 1u << RP_LOAN_FREE,
};

static void step(struct rp_loan *loan, enum rp_loan_state to)
{
    bool legal = (edges[loan->state] >> to & 1u) != 0;
    assert(legal);
    if (!legal)
        return;
    loan->state = (uint8_t)to;
    if (to == RP_LOAN_DUE) {
        /* A signal handler of this thread may do the same meanwhile. */
        struct rp_loan *first = RP_READ_ONCE(rp_self.due);
        do
            loan->next = first;
        while (!__atomic_compare_exchange_n(&rp_self.due, &first, loan, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
        rp_self.to_collect = true;
    } else if (to == RP_LOAN_FREE) {
        rp_lock(&loan_lock);
        loan->release = NULL;
        loan->next = free_loans;
        free_loans = loan;
        rp_unlock(&loan_lock);
    }
}

static void put_in_order(struct page *page)
{
    for (unsigned i = 0; i < PER_PAGE; i++) {
        page->loans[i] = (struct rp_loan){0};
        page->loans[i].next = free_loans;
        free_loans = &page->loans[i];
    }
}

struct rp_loan *rp_loan_new(int fd, void (*release)(void *), void *argument, struct rp_loan_answer *answer)
{
    rp_lock(&loan_lock);
    if (!free_loans) {
        struct page *page = rp_sys_pages(PAGE_BYTES);
        if (page) {
            page->next = pages;
            pages = page;
            put_in_order(page);
        }
    }
    struct rp_loan *loan = free_loans;
    if (loan)
        free_loans = loan->next;
    rp_unlock(&loan_lock);
    if (!loan)
        return NULL;
    *loan = (struct rp_loan){.release = release, .argument = argument, .answer = answer, .fd = fd};
    step(loan, RP_LOAN_ASKED);
    return loan;
}

void rp_loan_drop(struct rp_loan *loan)
{
    step(loan, RP_LOAN_FREE);
}

void rp_loan_completed(struct rp_set *set, struct rp_op_table *ops, struct rp_op *op, int result, uint32_t flags)
{
    struct rp_loan *loan = op->owner;
    bool last = !(flags & RP_CQE_F_MORE);
    if (flags & RP_CQE_F_NOTIF) {
        struct rp_fd *entry = rp_fd_peek(loan->fd);
        if (set && loan->state == RP_LOAN_READ)
            rp_send_zc_told(set, loan->fd, ((uint32_t)result & RP_NOTIF_USAGE_ZC_COPIED) != 0);
        else if (!set && entry && (rp_fd_flags(entry) & RP_FD_ZC_ASKED)) /* whoever has it now may ask again */
            rp_fd_set_flags(entry, 0, RP_FD_ZC_ASKED);
    } else if (loan->state == RP_LOAN_ASKED) {
        bool taken = result > 0 || !loan->answer; /* the caller was told so */
        if (loan->answer)
            *loan->answer = (struct rp_loan_answer){true, result};
        loan->answer = NULL;
        if (!last)
            step(loan, taken ? RP_LOAN_READ : RP_LOAN_VOID);
        else if (!taken)
            step(loan, RP_LOAN_FREE);
    }
    if (!last) {
        if (op->state == RP_OP_QUEUED)
            rp_op_step(ops, op, RP_OP_INFLIGHT);
        return;
    }
    if (loan->state == RP_LOAN_READ || loan->state == RP_LOAN_ASKED)
        step(loan, RP_LOAN_DUE);
    else if (loan->state == RP_LOAN_VOID)
        step(loan, RP_LOAN_FREE);
    rp_op_end(ops, op);
    if (set)
        set->loans--;
}

/* ------------------------------------------------------------ rings that linger */

bool rp_loan_linger(struct rp_set *set)
{
    rp_lock(&loan_lock);
    struct lingering *one = lingering;
    while (one && one->owner)
        one = one->next;
    if (!one && (one = rp_sys_pages(sizeof *one)) != NULL) {
        one->next = lingering;
        lingering = one;
    }
    if (one) {
        one->owner = rp_self_id();
        one->ring = set->ring;
        one->ring.enters = one->ring.sqes_submitted = one->ring.cqes_reaped = one->ring.overflows = 0;
        one->ops = set->ops;
        one->options = set->ring_options;
        one->loans = set->loans;
        rp_op_table_init(&set->ops);
        rp_self.to_collect = true;
    }
    rp_unlock(&loan_lock);
    set->loans = 0;
    return one != NULL;
}

static void end(struct lingering *one, bool keeps)
{
    rp_lock(&loan_lock);
    if (!keeps || one->loans > 0 || rp_op_busy(&one->ops) > 0 || !rp_set_keep_ring(&one->ring, &one->options, false)) {
        if (one->ring.fd != RP_RING_NO_FD)
            rp_fd_internal(one->ring.fd, false);
        rp_ring_fini(&one->ring);
    }
    rp_op_table_fini(&one->ops);
    __atomic_store_n(&one->owner, 0, __ATOMIC_RELEASE);
    rp_unlock(&loan_lock);
}

/* Takes what has come. False: it is over, or of no use any more. */
static bool look(struct lingering *one)
{
    struct rp_cqe *cqe;
    if (RP_READ_ONCE(rp_process_no_rings)) /* a filter may kill who asks */
        return false;
    rp_lock(&loan_lock); /* another thread may want the ring's number */
    int entered = rp_ring_enter(&one->ring, 0, NULL, NULL);
    rp_unlock(&loan_lock);
    while ((cqe = rp_ring_peek(&one->ring)) != NULL) {
        uint64_t user_data = cqe->user_data;
        int result = cqe->res;
        uint32_t flags = cqe->flags;
        rp_ring_seen(&one->ring);
        struct rp_op *op = rp_op_find(&one->ops, user_data);
        if (!op)
            continue;
        if (op->kind == RP_OP_LOAN) {
            rp_loan_completed(NULL, &one->ops, op, result, flags);
            one->loans -= !(flags & RP_CQE_F_MORE);
        } else if (!(flags & RP_CQE_F_MORE)) {
            rp_op_end(&one->ops, op);
        }
    }
    bool broken = entered < 0 && entered != -EINTR && entered != -ETIME && entered != -EBUSY && entered != -EAGAIN &&
                  entered != -EBADR;
    return one->loans > 0 && !broken;
}

/* True: some linger yet. */
static bool look_at_all(void)
{
    bool any = false;
    for (struct lingering *one = __atomic_load_n(&lingering, __ATOMIC_ACQUIRE); one; one = one->next) {
        if (__atomic_load_n(&one->owner, __ATOMIC_RELAXED) != rp_self.id || rp_self.id == 0)
            continue;
        if (look(one))
            any = true;
        else
            end(one, true);
    }
    return any;
}

static bool release_due(void)
{
    struct rp_loan *loan, *next, *in_order = NULL;
    for (loan = __atomic_exchange_n(&rp_self.due, NULL, __ATOMIC_RELAXED); loan; loan = next) {
        next = loan->next;
        loan->next = in_order;
        in_order = loan;
    }
    for (loan = in_order; loan; loan = next) {
        next = loan->next;
        void (*release)(void *) = loan->release;
        void *argument = loan->argument;
        step(loan, RP_LOAN_FREE);
        release(argument);
    }
    return in_order != NULL;
}

bool rp_loan_collect(void)
{
    if (rp_self.locks_held || rp_self.collects)
        return false;
    rp_process_check(); /* a child has none of that memory */
    rp_self.collects = true;
    rp_self.to_collect = false;
    if (look_at_all())
        rp_self.to_collect = true;
    bool released = release_due();
    rp_self.collects = false;
    return released;
}

void rp_loan_end_all(void)
{
    static const struct timespec a_moment = {0, 100000000};
    (void)ringpoll_zc_reclaim(&a_moment);
    for (struct lingering *one = __atomic_load_n(&lingering, __ATOMIC_ACQUIRE); one; one = one->next)
        if (__atomic_load_n(&one->owner, __ATOMIC_RELAXED) == rp_self.id && rp_self.id != 0) {
            end(one, false);
        }
}

bool rp_loan_vacate(int fd)
{
    bool moved = false;
    rp_lock(&loan_lock);
    for (struct lingering *one = lingering; one && !moved; one = one->next) {
        if (!one->owner || one->ring.fd != fd)
            continue;
        bool enters_by_it = one->ring.enter_fd == fd;
        moved = rp_set_move_fd(&one->ring.fd, fd);
        if (moved && enters_by_it)
            RP_WRITE_ONCE(one->ring.enter_fd, one->ring.fd);
    }
    rp_unlock(&loan_lock);
    return moved;
}

void rp_loan_fork(bool begins)
{
    if (begins)
        rp_lock(&loan_lock);
    else
        rp_unlock(&loan_lock);
}

void rp_loan_after_fork(void)
{
    loan_lock.word = 0;
    for (struct lingering *one = lingering; one; one = one->next) {
        if (!one->owner)
            continue;
        if (one->ring.fd != RP_RING_NO_FD)
            rp_fd_internal(one->ring.fd, false);
        rp_ring_abandon(&one->ring);
        rp_op_table_fini(&one->ops);
        one->owner = 0;
    }
    rp_self.due = NULL;
    rp_self.to_collect = rp_self.collects = false;
    free_loans = NULL;
    for (struct page *page = pages; page; page = page->next)
        put_in_order(page);
}

unsigned rp_loan_lingering_ops(void)
{
    unsigned count = 0;
    rp_lock(&loan_lock);
    for (struct lingering *one = lingering; one; one = one->next)
        if (one->owner)
            count += rp_op_busy(&one->ops);
    rp_unlock(&loan_lock);
    return count;
}

/* ------------------------------------------------------------------------ calls */

/* What the kernel has of this thread's, in rings of sets and in those that linger. */
static unsigned count_mine(void)
{
    unsigned count = 0;
    rp_lock(&rp_sets_lock);
    for (struct rp_set *set = rp_sets; set; set = set->next_set) {
        rp_lock(&set->lock);
        if (set->in_use && set->loans > 0 && rp_set_is_mine(set)) {
            if (!set->owner_inside && set->ring.fd >= 0 && !RP_READ_ONCE(rp_process_no_rings))
                (void)rp_set_enter_and_reap(set);
            count += set->loans;
        }
        rp_unlock(&set->lock);
    }
    rp_unlock(&rp_sets_lock);
    rp_lock(&loan_lock);
    for (struct lingering *one = lingering; one; one = one->next)
        if (one->owner == rp_self.id)
            count += one->loans;
    rp_unlock(&loan_lock);
    return count;
}

int ringpoll_zc_reclaim(const struct timespec *timeout)
{
    static const struct timespec short_time = {0, 1000000};
    if (rp_self.locks_held || rp_self.id == 0)
        return 0;
    rp_process_check();
    uint64_t now = rp_sys_now_ns();
    uint64_t until = timeout ? now + (uint64_t)timeout->tv_sec * 1000000000u + (uint64_t)timeout->tv_nsec : UINT64_MAX;
    for (;;) {
        rp_self.to_collect = true;
        (void)rp_loan_collect();
        unsigned left = count_mine();
        if (rp_self.to_collect)
            (void)rp_loan_collect();
        if (left == 0 || (now = rp_sys_now_ns()) >= until)
            return (int)left;
        const struct timespec rest = {0, until - now < 1000000 ? (long)(until - now) : short_time.tv_nsec};
        (void)rp_sys_poll(NULL, 0, &rest);
    }
}
