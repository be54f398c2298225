/* SPDX-License-Identifier: MIT
 *
 * File requests; states, ownership and policy stand in request.h.
 */
#include "set.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#ifndef SYS_preadv2
#define SYS_preadv2 (-1) /* ENOSYS */
#endif
#define NOWAIT 8 /* RWF_NOWAIT */
#define RESTARTS_FIRST 512 /* ERESTARTSYS and its kin, which no caller is to see */
#define RESTARTS_LAST 516
#define IOV_MOST 1024u
#define MOST_BYTES 0x7ffff000u /* of one read or write, as the kernel has it */

uint64_t rp_request_patience_ns = 10000000000;

static const uint8_t edges[RP_REQUEST_STATES] = {
    [RP_REQUEST_FREE] = 1u << RP_REQUEST_QUEUED,
    [RP_REQUEST_QUEUED] = 1u << RP_REQUEST_INFLIGHT | 1u << RP_REQUEST_DONE,
    [RP_REQUEST_INFLIGHT] = 1u << RP_REQUEST_CANCELING | 1u << RP_REQUEST_DONE,
    [RP_REQUEST_CANCELING] = 1u << RP_REQUEST_DONE,
    [RP_REQUEST_DONE] = 1u << RP_REQUEST_FREE,
};

static void append(struct rp_requests *all, struct rp_request *request)
{
    struct rp_request *last = all->last[request->state];
    request->next = NULL;
    request->before = last;
    *(last ? &last->next : &all->first[request->state]) = request;
    all->last[request->state] = request;
    all->count[request->state]++;
}

/* ------------------------------------------------------ the current position */

static bool is_on_disk(struct rp_request *request)
{
    unsigned mode = 0;
    if (request->place == RP_REQUEST_UNKNOWN)
        request->place = rp_sys_fstat_mode(request->fd, &mode) == 0 && !S_ISREG(mode) && !S_ISBLK(mode)
                             ? RP_REQUEST_ELSEWHERE
                             : RP_REQUEST_DISK;
    return request->place == RP_REQUEST_DISK;
}

/* One in flight may be at the same position. */
static bool has_to_wait(const struct rp_requests *all, struct rp_request *request)
{
    for (struct rp_request *other = all->at_position; other; other = other->next_at_position)
        if (other->fd == request->fd || (is_on_disk(other) && is_on_disk(request)))
            return true;
    return false;
}

static bool leave_position(struct rp_requests *all, const struct rp_request *request)
{
    struct rp_request **link = &all->at_position;
    while (*link && *link != request)
        link = &(*link)->next_at_position;
    if (!*link)
        return false;
    *link = request->next_at_position;
    return true;
}

static void step(struct rp_set *set, struct rp_request *request, enum rp_request_state to)
{
    struct rp_requests *all = &set->requested;
    bool legal = (edges[request->state] >> to & 1u) != 0;
    assert(legal);
    if (!legal)
        return;
    *(request->before ? &request->before->next : &all->first[request->state]) = request->next;
    *(request->next ? &request->next->before : &all->last[request->state]) = request->before;
    all->count[request->state]--;
    bool was_at_position = to == RP_REQUEST_DONE && leave_position(all, request);
    if (to == RP_REQUEST_FREE)
        request->generation++;
    request->state = (uint8_t)to;
    append(all, request);
    if (to == RP_REQUEST_QUEUED || was_at_position)
        set->request_queued = true;
    if (all->count[RP_REQUEST_QUEUED] == 0)
        set->request_queued = all->lost;
    RP_WRITE_ONCE(set->request_done, all->count[RP_REQUEST_DONE] > 0);
}

static void finish(struct rp_set *set, struct rp_request *request, int64_t result)
{
    request->result = result;
    request->op = NULL;
    step(set, request, RP_REQUEST_DONE);
}

/* What was read at the current position is read: nobody else can. */
static bool has_moved(const struct rp_request *request)
{
    return request->offset < 0 && request->had > 0;
}

/* Without the kernel's word. */
static void give_up(struct rp_set *set, struct rp_request *request, int error)
{
    finish(set, request, has_moved(request) ? (int64_t)request->had : error);
}

static bool grow(struct rp_set *set)
{
    struct rp_requests *all = &set->requested;
    if (!all->pages && !(all->pages = rp_sys_pages(RP_REQUEST_PAGES * sizeof(*all->pages))))
        return false;
    if (all->pages_used == RP_REQUEST_PAGES)
        return false;
    struct rp_request *page = rp_sys_pages(RP_REQUEST_PAGE * sizeof *page);
    if (!page)
        return false;
    for (uint32_t i = 0; i < RP_REQUEST_PAGE; i++) {
        page[i].slot = all->pages_used * RP_REQUEST_PAGE + i;
        page[i].generation = 1;
        append(all, &page[i]);
    }
    all->pages[all->pages_used++] = page;
    set->any_requests = true;
    return true;
}

static uint64_t id_of(const struct rp_request *request)
{
    return (uint64_t)request->generation << 32 | request->slot;
}

static struct rp_request *find(const struct rp_requests *all, uint64_t id)
{
    uint32_t slot = (uint32_t)id;
    if (slot / RP_REQUEST_PAGE >= all->pages_used)
        return NULL;
    struct rp_request *request = &all->pages[slot / RP_REQUEST_PAGE][slot % RP_REQUEST_PAGE];
    return request->state != RP_REQUEST_FREE && request->generation == id >> 32 ? request : NULL;
}

/* ------------------------------------------------------------ to the kernel */

static long read_now(const struct rp_request *request, const struct iovec *iov, uint32_t count)
{
    uint64_t at = (uint64_t)request->offset + (request->offset >= 0 ? request->had : 0);
    long high = sizeof(long) == 8 ? 0 : (long)(at >> 32);
    return rp_sys_call(SYS_preadv2, request->fd, (long)iov, (long)count, (long)at, high, NOWAIT);
}

/* True: it is read as far as a read would have, which is to its end, or to the file's, and
 * of a pipe or a terminal what is there. What was read of several pieces is read again by the
 * ring, so that they are not counted here. */
static bool is_read_now(struct rp_request *request, int64_t *ret_result)
{
    if (request->count > 1) {
        long got = read_now(request, request->iov, request->count);
        *ret_result = got;
        return got == 0 || (got > 0 && (uint64_t)got == request->bytes);
    }
    while (request->had < request->bytes) {
        struct iovec rest = {(char *)request->iov->iov_base + request->had, request->bytes - request->had};
        long got = read_now(request, &rest, 1);
        if (got < 0 && (request->had == 0 || is_on_disk(request)))
            return false;
        if (got <= 0)
            break;
        request->had += (uint64_t)got;
        if ((uint64_t)got < rest.iov_len && request->offset < 0 && !is_on_disk(request))
            break;
    }
    *ret_result = (int64_t)request->had;
    return request->bytes > 0;
}

static void fill_in(struct rp_sqe *sqe, const struct rp_request *request)
{
    bool writes = request->operation == RINGPOLL_REQUEST_WRITE;
    sqe->fd = request->fd;
    switch (request->operation) {
    case RINGPOLL_REQUEST_READ:
    case RINGPOLL_REQUEST_WRITE:
        if (request->count == 1) {
            sqe->opcode = writes ? RP_IORING_OP_WRITE : RP_IORING_OP_READ;
            sqe->addr = (uint64_t)(uintptr_t)request->iov->iov_base + request->had;
            sqe->len = (uint32_t)(request->bytes - request->had);
        } else {
            sqe->opcode = writes ? RP_IORING_OP_WRITEV : RP_IORING_OP_READV;
            sqe->addr = (uint64_t)(uintptr_t)request->iov;
            sqe->len = request->count;
        }
        sqe->off = (uint64_t)request->offset + (request->offset >= 0 ? request->had : 0);
        sqe->flags = request->bytes > RP_REQUEST_INLINE ? RP_SQE_ASYNC : 0;
        break;
    case RINGPOLL_REQUEST_OPEN:
        sqe->opcode = RP_IORING_OP_OPENAT;
        sqe->fd = AT_FDCWD;
        sqe->addr = (uint64_t)(uintptr_t)request->path;
        sqe->op_flags = request->flags;
        sqe->len = request->mode;
        sqe->flags = RP_SQE_ASYNC;
        break;
    case RINGPOLL_REQUEST_CLOSE:
        sqe->opcode = RP_IORING_OP_CLOSE;
        break;
    case RINGPOLL_REQUEST_FSYNC:
        sqe->opcode = RP_IORING_OP_FSYNC;
        sqe->op_flags = request->flags; /* IORING_FSYNC_DATASYNC is 1 */
        break;
    case RINGPOLL_REQUEST_RENAME:
        sqe->opcode = RP_IORING_OP_RENAMEAT;
        sqe->fd = AT_FDCWD;
        sqe->len = (uint32_t)AT_FDCWD;
        sqe->addr = (uint64_t)(uintptr_t)request->path;
        sqe->off = (uint64_t)(uintptr_t)request->second_path;
        break;
    case RINGPOLL_REQUEST_UNLINK:
        sqe->opcode = RP_IORING_OP_UNLINKAT;
        sqe->fd = AT_FDCWD;
        sqe->addr = (uint64_t)(uintptr_t)request->path;
        break;
    }
}

static int fill(struct rp_set *set, struct rp_request *request)
{
    struct rp_sqe *sqe = rp_ring_get_sqe(&set->ring);
    if (!sqe)
        return -EBUSY;
    struct rp_op *op = rp_op_new(&set->ops, RP_OP_REQUEST, request);
    if (!op) {
        sqe->opcode = RP_IORING_OP_NOP;
        return -ENOMEM;
    }
    fill_in(sqe, request);
    sqe->user_data = rp_op_user_data(&set->ops, op);
    request->op = op;
    if (request->offset < 0) {
        request->next_at_position = set->requested.at_position;
        set->requested.at_position = request;
    }
    step(set, request, RP_REQUEST_INFLIGHT);
    return 0;
}

int rp_request_flush(struct rp_set *set)
{
    struct rp_requests *all = &set->requested;
    bool few = all->count[RP_REQUEST_QUEUED] <= RP_REQUEST_FEW;
    uint64_t bytes = 0;
    unsigned full = 0;
    bool passed_over = false; /* one at the current position, which no later one may overtake */

    if (all->lost)
        return -EBADR;
    set->request_queued = false;
    for (struct rp_request *request = all->first[RP_REQUEST_QUEUED], *next; request; request = next) {
        next = request->next;
        bool is_large = request->bytes > RP_REQUEST_INLINE;
        int64_t result;
        if (request->offset < 0 && (passed_over || has_to_wait(all, request)))
            continue;
        if (!is_large) {
            if (bytes >= RP_REQUEST_TURN) {
                passed_over = passed_over || request->offset < 0;
                set->request_queued = true;
                continue;
            }
            bytes += request->bytes;
        }
        if (request->operation == RINGPOLL_REQUEST_READ && !is_large && (few || request->offset < 0) && is_read_now(request, &result)) {
            set->stats.requests_at_once++;
            finish(set, request, result);
            continue;
        }
        int error = fill(set, request);
        if (error == -EBUSY) {
            if (full++ == 64) { /* another turn, then */
                set->request_queued = true;
                break;
            }
            if ((error = rp_set_enter_and_reap(set)) < 0)
                return error;
            next = all->first[RP_REQUEST_QUEUED]; /* all of what went before is gone, or waits for its turn */
            passed_over = false;
        } else if (error < 0) {
            give_up(set, request, -ENOTSUP);
        }
    }
    return all->lost ? -EBADR : 0;
}

void rp_request_completed(struct rp_set *set, struct rp_op *op, int result)
{
    struct rp_request *request = op->owner;
    int64_t told = result;
    rp_op_step(&set->ops, op, RP_OP_FREE);
    /* A worker that our cancel has interrupted says it as a system call does. A close is one all
     * the same. */
    bool interrupted = result == -EINTR || (result <= -RESTARTS_FIRST && result >= -RESTARTS_LAST);
    if (interrupted && request->operation == RINGPOLL_REQUEST_CLOSE)
        result = told = -EINTR;
    else if (interrupted && request->state == RP_REQUEST_CANCELING)
        result = told = -ECANCELED;
    if (result == -ECANCELED && !request->asked)
        told = -ENOTSUP; /* the library's own cancel, or the kernel's: nothing was done */
    if (request->operation == RINGPOLL_REQUEST_CLOSE && result == -EOPNOTSUPP)
        told = -EIO; /* a file system's word; it is closed all the same */
    if (request->had > 0)
        told = (int64_t)request->had + (result > 0 ? result : 0);
    finish(set, request, told);
}

/* Its completion will say whether that was in time. -EBUSY: the SQ is full. */
static int cancel(struct rp_set *set, struct rp_request *request)
{
    if (!rp_op_cancel(&set->ops, &set->ring, request->op, RP_OP_CANCELING))
        return -EBUSY;
    step(set, request, RP_REQUEST_CANCELING);
    return 0;
}

bool rp_request_is_under_way(const struct rp_set *set)
{
    return set->requested.count[RP_REQUEST_INFLIGHT] + set->requested.count[RP_REQUEST_CANCELING] > 0;
}

void rp_request_lost_one(struct rp_set *set)
{
    struct rp_requests *all = &set->requested;
    if (all->count[RP_REQUEST_INFLIGHT] + all->count[RP_REQUEST_CANCELING] > 0)
        all->lost = set->request_queued = true; /* to be found by the next flush */
}

void rp_request_end_all(struct rp_set *set)
{
    static const struct timespec short_time = {0, 1000000};
    struct rp_requests *all = &set->requested;
    if (!set->any_requests)
        return;
    while (all->first[RP_REQUEST_QUEUED])
        give_up(set, all->first[RP_REQUEST_QUEUED], -ENOTSUP);
    /* Of a lost completion the kernel knows nothing, and of a read that waits for its page
     * neither: there is no asking, and a CQE held back hides ETIME. */
    uint64_t deadline = 0;
    while (all->first[RP_REQUEST_INFLIGHT] || all->first[RP_REQUEST_CANCELING]) {
        while (all->first[RP_REQUEST_INFLIGHT] && cancel(set, all->first[RP_REQUEST_INFLIGHT]) == 0)
            ;
        int error = rp_set_enter_and_reap(set);
        if (error < 0 && error != -EAGAIN)
            break;
        uint64_t now = rp_sys_now_ns(), left = rp_request_patience_ns;
        if (!all->lost && error == 0)
            deadline = 0;
        else if (deadline == 0)
            deadline = now + left;
        else if (now >= deadline)
            break;
        else
            left = deadline - now;
        if (error == -EAGAIN) { /* no memory, for now */
            (void)rp_sys_poll(NULL, 0, &short_time);
            continue;
        }
        if (all->first[RP_REQUEST_INFLIGHT] || !all->first[RP_REQUEST_CANCELING])
            continue;
        const struct timespec patience = {(time_t)(left / 1000000000), (long)(left % 1000000000)};
        error = rp_ring_enter(&set->ring, 1, all->lost ? &patience : NULL, NULL);
        if (error == -EBADR)
            all->lost = true;
        else if (error < 0 && error != -EINTR && error != -ETIME && error != -EAGAIN && error != -EBUSY)
            break;
    }
    /* A ring that answers no more: it is closed next, which ends what it has. Nobody may
     * have it before that, so that the ops stay. */
    for (unsigned state = RP_REQUEST_INFLIGHT; state <= RP_REQUEST_CANCELING; state++)
        while (all->first[state]) {
            rp_op_step(&set->ops, all->first[state]->op, RP_OP_ORPHANED);
            give_up(set, all->first[state], -EIO);
        }
    all->lost = set->request_queued = false;
}

void rp_request_tell(struct rp_set *set)
{
    set->requested.told = set->request_done && rp_set_engine(set) == RINGPOLL_ENGINE_KERNEL &&
                          set->reason != RINGPOLL_REASON_SHARED && !rp_set_is_ending(set);
    if (set->requested.told)
        rp_set_raise(set);
    else
        rp_set_lower(set);
}

void rp_request_after_fork(struct rp_set *set)
{
    struct rp_requests *all = &set->requested;
    all->told = all->lost = false;
    for (unsigned state = RP_REQUEST_QUEUED; state <= RP_REQUEST_CANCELING; state++)
        while (all->first[state])
            finish(set, all->first[state], -ECANCELED);
}

void rp_request_free_all(struct rp_set *set)
{
    struct rp_requests *all = &set->requested;
    for (uint32_t page = 0; page < all->pages_used; page++)
        rp_sys_pages_free(all->pages[page], RP_REQUEST_PAGE * sizeof(struct rp_request));
    if (all->pages)
        rp_sys_pages_free(all->pages, RP_REQUEST_PAGES * sizeof(*all->pages));
    memset(all, 0, sizeof *all);
    set->any_requests = set->request_queued = false;
    RP_WRITE_ONCE(set->request_done, false);
}

/* --------------------------------------------------------------------- calls */

static int find_set(int epfd, struct rp_set **ret_set)
{
    *ret_set = rp_set_of(epfd);
    return *ret_set ? 0 : rp_sys_fcntl(epfd, 1 /* F_GETFD */, 0) < 0 ? -EBADF : -EINVAL;
}

static bool takes_requests(const struct rp_set *set)
{
    uint32_t engine = rp_set_engine(set);
    if (set->inherited || rp_set_is_ending(set) || RP_READ_ONCE(rp_process_no_rings) ||
        (set->flags & RINGPOLL_SQPOLL))
        return false;
    if (engine == RINGPOLL_ENGINE_NEW)
        return set->waiters == 0 && (!set->sleeper || set->sleeper == rp_self.id);
    return engine == RINGPOLL_ENGINE_RING && set->tells && rp_set_is_mine(set) && !set->owner_inside;
}

static bool is_right(const struct ringpoll_request *asked, uint64_t *ret_bytes)
{
    if (asked->size != sizeof *asked || asked->reserved != 0)
        return false;
    switch (asked->operation) {
    case RINGPOLL_REQUEST_READ:
    case RINGPOLL_REQUEST_WRITE:
        if (asked->offset < -1 || asked->count == 0 || asked->count > IOV_MOST)
            return false;
        for (uint32_t i = 0; i < asked->count; i++) {
            if (asked->iov[i].iov_len > SSIZE_MAX - *ret_bytes)
                return false;
            *ret_bytes += asked->iov[i].iov_len;
        }
        return true;
    case RINGPOLL_REQUEST_OPEN:
    case RINGPOLL_REQUEST_CLOSE:
    case RINGPOLL_REQUEST_RENAME:
    case RINGPOLL_REQUEST_UNLINK:
        return true;
    case RINGPOLL_REQUEST_FSYNC:
        return asked->flags <= 1;
    default:
        return false;
    }
}

int ringpoll_request_submit(int epfd, const struct ringpoll_request *asked, uint64_t *ret_id)
{
    struct rp_set *set;
    int error = find_set(epfd, &set);
    if (error < 0)
        return error;
    uint64_t bytes = 0;
    if (!is_right(asked, &bytes))
        return -EINVAL;
    bool transfers = asked->operation <= RINGPOLL_REQUEST_WRITE;
    /* Several pieces at the current position: what preadv2 has read of them moved it. */
    if (transfers && asked->count > 1 && asked->offset < 0)
        return -ENOTSUP;
    if (rp_self.locks_held)
        return -ENOTSUP;
    rp_process_check();
    if (asked->operation == RINGPOLL_REQUEST_CLOSE) {
        if (!takes_requests(set) || ringpoll_fd_is_internal(asked->fd) || rp_set_of(asked->fd))
            return -ENOTSUP;
        ringpoll_fd_closing(asked->fd);
    }
    rp_set_lock(set);
    struct rp_requests *all = &set->requested;
    if (!takes_requests(set) || (!all->first[RP_REQUEST_FREE] && !grow(set))) {
        rp_set_unlock(set);
        return -ENOTSUP;
    }
    struct rp_request *request = all->first[RP_REQUEST_FREE];
    request->fd = asked->fd;
    request->iov = asked->iov;
    request->count = asked->count;
    request->offset = transfers ? asked->offset : 0;
    request->path = asked->path;
    request->second_path = asked->second_path;
    request->flags = asked->flags;
    request->mode = asked->mode;
    request->user = asked->user;
    request->bytes = bytes > MOST_BYTES ? MOST_BYTES : bytes;
    request->had = 0;
    request->operation = (uint8_t)asked->operation;
    request->asked = false;
    request->place = RP_REQUEST_UNKNOWN;
    all->data = asked->data;
    step(set, request, RP_REQUEST_QUEUED);
    set->stats.requests++;
    if (ret_id)
        *ret_id = id_of(request);
    rp_set_unlock(set);
    return 0;
}

int ringpoll_request_cancel(int epfd, uint64_t id, uint32_t flags)
{
    struct rp_set *set;
    int error = find_set(epfd, &set);
    if (error < 0)
        return error;
    if (flags & ~RINGPOLL_REQUEST_UNSTARTED)
        return -EINVAL;
    if (rp_self.locks_held)
        return -EBUSY;
    rp_process_check();
    rp_set_lock(set);
    struct rp_request *request = find(&set->requested, id);
    if (!request) {
        error = -ENOENT;
    } else if (request->state == RP_REQUEST_QUEUED) {
        bool begun = has_moved(request);
        if (begun)
            error = -EBUSY;
        if (!begun || !(flags & RINGPOLL_REQUEST_UNSTARTED)) {
            request->asked = true;
            give_up(set, request, -ECANCELED);
        }
    } else if (request->state != RP_REQUEST_INFLIGHT || (flags & RINGPOLL_REQUEST_UNSTARTED) ||
               !rp_set_is_mine(set) || set->owner_inside) {
        error = -EBUSY;
    } else {
        request->asked = true;
        if (cancel(set, request) < 0)
            error = rp_set_enter_and_reap(set) == 0 && request->state == RP_REQUEST_INFLIGHT ? cancel(set, request) : 0;
        error = error == 0 ? -EINPROGRESS : -EBUSY;
    }
    rp_set_unlock(set);
    return error;
}

int ringpoll_request_take(int epfd, struct ringpoll_completion *completions, int max)
{
    struct rp_set *set;
    int error = find_set(epfd, &set), count = 0;
    if (error < 0)
        return error;
    if (!RP_READ_ONCE(set->request_done) || rp_self.locks_held)
        return 0;
    rp_process_check();
    rp_set_lock(set);
    struct rp_request *request;
    for (; count < max && (request = set->requested.first[RP_REQUEST_DONE]) != NULL; count++) {
        completions[count].user = request->user;
        completions[count].result = request->result;
        step(set, request, RP_REQUEST_FREE);
    }
    if (set->requested.told)
        rp_request_tell(set);
    rp_set_unlock(set);
    return count;
}
