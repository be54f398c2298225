/* SPDX-License-Identifier: MIT
 *
 * How the fake keeps its queues: exactly the layout that it tells in
 * rp_params, each map() handing out the same memory, so that whatever the
 * library reads at a wrong offset it reads wrong here as well. The shared words
 * are looked at through the ring's memory only, never through a side door.
 */
#include "fake_kernel.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace sim {

namespace {

constexpr unsigned all_setup_flags = (1u << 17) - 1;
constexpr unsigned all_enter_flags = (1u << 8) - 1;
constexpr uint32_t all_features = (1u << 18) - 1;
constexpr unsigned max_sq = 32768, max_cq = 65536;

/* Like the kernel's: 64 is not the first offset, nor do the words stand in the
 * order of the structure. */
constexpr uint32_t off_sq_head = 0, off_sq_tail = 64, off_cq_head = 128, off_cq_tail = 192, off_sq_mask = 256,
                   off_cq_mask = 260, off_sq_entries = 264, off_cq_entries = 268, off_sq_dropped = 272,
                   off_sq_flags = 276, off_cq_flags = 280, off_cq_overflow = 284, off_cqes = 320;

unsigned power_of_two(unsigned value)
{
    unsigned result = 1;
    while (result < value)
        result *= 2;
    return result;
}

uint64_t inode_of(int fd)
{
    struct stat status;
    return fstat(fd, &status) == 0 ? static_cast<uint64_t>(status.st_ino) : 0;
}

} // namespace

struct FakeKernel::Ring {
    unsigned flags = 0, sq_entries = 0, cq_entries = 0;
    uint32_t array_offset = 0;
    bool single_mmap = false;
    std::vector<uint64_t> rings, cq_ring, sqes; /* 64-bit words, for alignment */
    std::list<rp_sqe> pending;
    std::deque<rp_cqe> task_work, backlog;
    bool lost = false;  /* a completion: EBADR is due */
    bool woken = false; /* SQPOLL */
    uint64_t inode = 0;

    char *sq_base() { return reinterpret_cast<char *>(rings.data()); }
    char *cq_base() { return single_mmap ? sq_base() : reinterpret_cast<char *>(cq_ring.data()); }
    uint32_t &sq_word(uint32_t offset) { return *reinterpret_cast<uint32_t *>(sq_base() + offset); }
    uint32_t &cq_word(uint32_t offset) { return *reinterpret_cast<uint32_t *>(cq_base() + offset); }
    rp_cqe *cqes() { return reinterpret_cast<rp_cqe *>(cq_base() + off_cqes); }
    rp_sqe *sqe_at(unsigned i) { return reinterpret_cast<rp_sqe *>(sqes.data()) + i; }
    unsigned ready() { return cq_word(off_cq_tail) - cq_word(off_cq_head); }
    void update_flags()
    {
        uint32_t &word = sq_word(off_sq_flags);
        word &= ~(RP_SQ_TASKRUN | RP_SQ_CQ_OVERFLOW);
        if (!task_work.empty() && (flags & RP_SETUP_TASKRUN_FLAG))
            word |= RP_SQ_TASKRUN;
        if (!backlog.empty())
            word |= RP_SQ_CQ_OVERFLOW;
    }
};

FakeKernel *FakeKernel::current_;

FakeKernel::FakeKernel()
    : setup_flags(all_setup_flags), enter_flags(all_enter_flags), features(all_features), opcodes(RP_IORING_OP_LAST)
{
    if (current_)
        abort();
    static const struct rp_sys table = {
        table_setup, table_enter, table_register, table_map, table_unmap, table_pages,
    };
    previous_ = rp_sys;
    rp_sys = &table;
    current_ = this;
}

FakeKernel::FakeKernel(unsigned version) : FakeKernel()
{
    auto since = [version](unsigned release, unsigned &word, unsigned bits) {
        if (version < release)
            word &= ~bits;
    };
    since(606, setup_flags, RP_SETUP_NO_SQARRAY);
    since(605, setup_flags, RP_SETUP_NO_MMAP | RP_SETUP_REGISTERED_FD_ONLY);
    since(601, setup_flags, RP_SETUP_DEFER_TASKRUN);
    since(600, setup_flags, RP_SETUP_SINGLE_ISSUER);
    since(519, setup_flags, RP_SETUP_COOP_TASKRUN | RP_SETUP_TASKRUN_FLAG | RP_SETUP_SQE128 | RP_SETUP_CQE32);
    since(518, setup_flags, RP_SETUP_SUBMIT_ALL);
    since(510, setup_flags, RP_SETUP_R_DISABLED);
    since(506, setup_flags, RP_SETUP_CLAMP | RP_SETUP_ATTACH_WQ);
    since(505, setup_flags, RP_SETUP_CQSIZE);

    since(615, enter_flags, RP_ENTER_NO_IOWAIT);
    since(613, enter_flags, RP_ENTER_EXT_ARG_REG);
    since(612, enter_flags, RP_ENTER_ABS_TIMER);
    since(518, enter_flags, RP_ENTER_REGISTERED_RING);
    since(511, enter_flags, RP_ENTER_EXT_ARG);
    since(510, enter_flags, RP_ENTER_SQ_WAIT);

    since(615, features, RP_FEAT_NO_IOWAIT);
    since(614, features, RP_FEAT_RW_ATTR);
    since(612, features, RP_FEAT_MIN_TIMEOUT);
    since(610, features, RP_FEAT_RECVSEND_BUNDLE);
    since(603, features, RP_FEAT_REG_REG_RING);
    since(517, features, RP_FEAT_CQE_SKIP | RP_FEAT_LINKED_FILE);
    since(513, features, RP_FEAT_RSRC_TAGS);
    since(512, features, RP_FEAT_NATIVE_WORKERS);
    since(511, features, RP_FEAT_EXT_ARG | RP_FEAT_SQPOLL_NONFIXED);
    since(509, features, RP_FEAT_POLL_32BITS);
    since(507, features, RP_FEAT_FAST_POLL);
    since(506, features, RP_FEAT_RW_CUR_POS | RP_FEAT_CUR_PERSONALITY);
    since(505, features, RP_FEAT_NODROP | RP_FEAT_SUBMIT_STABLE);
    since(504, features, RP_FEAT_SINGLE_MMAP);

    static const struct {
        unsigned release, opcodes;
    } grown[] = {{618, 63}, {615, 62}, {611, 58}, {609, 56}, {607, 54}, {601, 49}, {600, 48}, {519, 47},
                 {515, 40}, {511, 37}, {507, 33}, {506, 30}, {505, 17}, {501, 9}};
    for (const auto &step : grown) {
        opcodes = step.opcodes;
        if (version >= step.release)
            break;
    }
    has_probe = version >= 506;
    has_ring_fds = version >= 518;
    submit_needs_empty_backlog = version < 600;
}

FakeKernel::~FakeKernel()
{
    rp_sys = previous_;
    current_ = nullptr;
}

bool FakeKernel::allocation_fails()
{
    allocations++;
    if (fail_allocation == 0 || --fail_allocation != 0)
        return false;
    allocation_failed = true;
    return true;
}

/* ------------------------------------------------------------------ set-up */

int FakeKernel::table_setup(unsigned entries, struct rp_params *params)
{
    return current_->setup(entries, params);
}

int FakeKernel::setup(unsigned entries, struct rp_params *params)
{
    SetupCall call;
    call.entries = entries;
    call.cq_entries = params->cq_entries;
    call.flags = params->flags;
    call.sq_thread_cpu = params->sq_thread_cpu;
    call.sq_thread_idle = params->sq_thread_idle;
    call.result = make_ring(call, params);
    setups.push_back(call);
    return call.result;
}

int FakeKernel::make_ring(SetupCall &call, struct rp_params *params)
{
    unsigned flags = call.flags, entries = call.entries;
    if (on_setup) {
        int answer = on_setup(call);
        if (answer < 0)
            return answer;
    }
    for (uint32_t word : params->resv)
        if (word)
            return -EINVAL;
    if (flags & ~setup_flags)
        return -EINVAL;
    const unsigned task = RP_SETUP_COOP_TASKRUN | RP_SETUP_TASKRUN_FLAG | RP_SETUP_DEFER_TASKRUN;
    if ((flags & RP_SETUP_SQPOLL) && (flags & task))
        return -EINVAL;
    if ((flags & RP_SETUP_TASKRUN_FLAG) && !(flags & (RP_SETUP_COOP_TASKRUN | RP_SETUP_DEFER_TASKRUN)))
        return -EINVAL;
    if ((flags & RP_SETUP_DEFER_TASKRUN) && !(flags & RP_SETUP_SINGLE_ISSUER))
        return -EINVAL;
    if ((flags & RP_SETUP_SQ_AFF) && !(flags & RP_SETUP_SQPOLL))
        return -EINVAL;
    if (entries == 0)
        return -EINVAL;
    if (entries > max_sq) {
        if (!(flags & RP_SETUP_CLAMP))
            return -EINVAL;
        entries = max_sq;
    }
    auto ring = std::make_shared<Ring>();
    ring->flags = flags;
    ring->sq_entries = power_of_two(entries);
    ring->cq_entries = 2 * ring->sq_entries;
    if (flags & RP_SETUP_CQSIZE) {
        unsigned cq = params->cq_entries;
        if (cq == 0)
            return -EINVAL;
        if (cq > max_cq) {
            if (!(flags & RP_SETUP_CLAMP))
                return -EINVAL;
            cq = max_cq;
        }
        ring->cq_entries = power_of_two(cq);
        if (ring->cq_entries < ring->sq_entries)
            return -EINVAL;
    }
    ring->single_mmap = (features & RP_FEAT_SINGLE_MMAP) != 0;
    size_t cq_size = off_cqes + ring->cq_entries * sizeof(rp_cqe);
    size_t array_size = flags & RP_SETUP_NO_SQARRAY ? 0 : ring->sq_entries * sizeof(uint32_t);
    ring->array_offset = flags & RP_SETUP_NO_SQARRAY ? 0 : static_cast<uint32_t>(ring->single_mmap ? cq_size : off_cqes);
    size_t sq_size = ring->single_mmap ? cq_size + array_size : off_cqes + array_size;
    size_t sqes_size = ring->sq_entries * sizeof(rp_sqe);
    if (sq_size + sqes_size + (ring->single_mmap ? 0 : cq_size) > memory_limit)
        return -ENOMEM;
    if (allocation_fails())
        return -ENOMEM;
    ring->rings.assign((sq_size + 7) / 8, 0);
    if (!ring->single_mmap)
        ring->cq_ring.assign((cq_size + 7) / 8, 0);
    ring->sqes.assign(sqes_size / 8, 0);
    ring->sq_word(off_sq_mask) = ring->sq_entries - 1;
    ring->sq_word(off_sq_entries) = ring->sq_entries;
    ring->cq_word(off_cq_mask) = ring->cq_entries - 1;
    ring->cq_word(off_cq_entries) = ring->cq_entries;
    for (unsigned i = 0; array_size && i < ring->sq_entries; i++)
        ring->sq_word(ring->array_offset + i * 4) = 0xdead; /* the library has to fill it */

    int fd = memfd_create("fake ring", MFD_CLOEXEC);
    if (fd < 0)
        return -errno;
    ring->inode = inode_of(fd);
    rings_[ring->inode] = ring;
    newest_ = ring->inode;

    params->sq_entries = ring->sq_entries;
    params->cq_entries = ring->cq_entries;
    params->features = features;
    params->sq_off = {};
    params->sq_off.head = off_sq_head;
    params->sq_off.tail = off_sq_tail;
    params->sq_off.ring_mask = off_sq_mask;
    params->sq_off.ring_entries = off_sq_entries;
    params->sq_off.flags = off_sq_flags;
    params->sq_off.dropped = off_sq_dropped;
    params->sq_off.array = ring->array_offset;
    params->cq_off = {};
    params->cq_off.head = off_cq_head;
    params->cq_off.tail = off_cq_tail;
    params->cq_off.ring_mask = off_cq_mask;
    params->cq_off.ring_entries = off_cq_entries;
    params->cq_off.overflow = off_cq_overflow;
    params->cq_off.cqes = off_cqes;
    params->cq_off.flags = off_cq_flags;
    return fd;
}

/* A ring is as open as any descriptor of its memory file. */
void FakeKernel::forget_closed()
{
    std::set<uint64_t> open_inodes;
    for (int fd = 0; fd < 2048; fd++)
        if (uint64_t inode = inode_of(fd))
            open_inodes.insert(inode);
    for (const auto &slot : registered_)
        open_inodes.insert(slot.second->inode);
    for (auto at = rings_.begin(); at != rings_.end();)
        at = open_inodes.count(at->first) ? std::next(at) : rings_.erase(at);
}

size_t FakeKernel::rings() const
{
    const_cast<FakeKernel *>(this)->forget_closed();
    return rings_.size();
}

size_t FakeKernel::mappings() const
{
    return mappings_.size();
}

size_t FakeKernel::pending() const
{
    size_t count = 0;
    for (const auto &ring : rings_)
        count += ring.second->pending.size();
    return count;
}

std::shared_ptr<FakeKernel::Ring> FakeKernel::ring_of(int fd)
{
    auto found = rings_.find(inode_of(fd));
    return found == rings_.end() ? nullptr : found->second;
}

std::shared_ptr<FakeKernel::Ring> FakeKernel::newest() const
{
    auto found = rings_.find(newest_);
    return found == rings_.end() ? nullptr : found->second;
}

/* ------------------------------------------------------------------ memory */

int FakeKernel::table_map(int fd, uint64_t offset, size_t length, void **ret_address)
{
    FakeKernel &kernel = *current_;
    auto ring = kernel.ring_of(fd);
    if (!ring)
        return -EBADF;
    std::vector<uint64_t> *memory;
    if (offset == RP_OFF_SQ_RING)
        memory = &ring->rings;
    else if (offset == RP_OFF_CQ_RING)
        memory = ring->single_mmap ? &ring->rings : &ring->cq_ring;
    else if (offset == RP_OFF_SQES)
        memory = &ring->sqes;
    else
        return -EINVAL;
    /* The kernel would map less too; the library would fault later. */
    if ((length + 7) / 8 != memory->size())
        return -EINVAL;
    if (kernel.allocation_fails())
        return -ENOMEM;
    kernel.mappings_.push_back({memory->data(), length});
    *ret_address = memory->data();
    return 0;
}

void FakeKernel::table_unmap(void *address, size_t length)
{
    if (!address)
        return;
    auto &mappings = current_->mappings_;
    for (auto at = mappings.begin(); at != mappings.end(); ++at)
        if (at->address == address && at->length == length) {
            mappings.erase(at);
            return;
        }
    abort(); /* never mapped, or of another length */
}

void *FakeKernel::table_pages(size_t length)
{
    if (current_->allocation_fails())
        return nullptr;
    return rp_sys_kernel.pages(length);
}

/* ------------------------------------------------------------- completions */

bool FakeKernel::to_queue(Ring &ring, const rp_cqe &cqe)
{
    if (ring.ready() == ring.cq_entries)
        return false;
    uint32_t tail = ring.cq_word(off_cq_tail);
    ring.cqes()[tail & (ring.cq_entries - 1)] = cqe;
    __atomic_store_n(&ring.cq_word(off_cq_tail), tail + 1, __ATOMIC_RELEASE);
    return true;
}

void FakeKernel::flush_backlog(Ring &ring)
{
    while (!ring.backlog.empty() && to_queue(ring, ring.backlog.front()))
        ring.backlog.pop_front();
    ring.update_flags();
}

void FakeKernel::post_to(Ring &ring, uint64_t user_data, int result, unsigned flags)
{
    rp_cqe cqe = {user_data, result, flags};
    if (!ring.backlog.empty() || !to_queue(ring, cqe)) {
        if ((features & RP_FEAT_NODROP) && !no_memory_for_overflow) {
            ring.backlog.push_back(cqe);
        } else {
            ring.cq_word(off_cq_overflow)++;
            ring.lost = (features & RP_FEAT_NODROP) != 0;
        }
    }
    ring.update_flags();
}

void FakeKernel::run_task_work(Ring &ring, unsigned min_complete)
{
    unsigned limit = min_complete > 20 ? min_complete : 20;
    while (!ring.task_work.empty() && limit-- > 0) {
        rp_cqe cqe = ring.task_work.front();
        ring.task_work.pop_front();
        post_to(ring, cqe.user_data, cqe.res, cqe.flags);
    }
    ring.update_flags();
}

void FakeKernel::post(uint64_t user_data, int result, unsigned flags)
{
    auto ring = newest();
    if (!ring)
        abort();
    if (ring->flags & RP_SETUP_DEFER_TASKRUN) {
        ring->task_work.push_back({user_data, result, flags});
        ring->update_flags();
    } else {
        post_to(*ring, user_data, result, flags);
    }
}

bool FakeKernel::complete(uint64_t user_data, int result, unsigned flags)
{
    auto ring = newest();
    if (!ring)
        return false;
    for (auto at = ring->pending.begin(); at != ring->pending.end(); ++at)
        if (at->user_data == user_data) {
            if (!(flags & RP_CQE_F_MORE))
                ring->pending.erase(at);
            post(user_data, result, flags);
            return true;
        }
    return false;
}

/* --------------------------------------------------------------- submission */

void FakeKernel::issue(Ring &ring, const rp_sqe &sqe)
{
    submitted.push_back(sqe);
    auto answer = [&](int result) {
        if (result >= 0 && (sqe.flags & RP_SQE_CQE_SKIP_SUCCESS))
            return;
        post_to(ring, sqe.user_data, result, 0);
    };
    if (sqe.opcode >= opcodes)
        return answer(-EINVAL);
    switch (sqe.opcode) {
    case RP_IORING_OP_NOP:
        return answer(0);
    case RP_IORING_OP_POLL_ADD:
        if (sqe.len && !(features & RP_FEAT_RSRC_TAGS)) /* multishot: 5.13 */
            return answer(-EINVAL);
        ring.pending.push_back(sqe);
        return;
    case RP_IORING_OP_POLL_REMOVE:
    case RP_IORING_OP_ASYNC_CANCEL:
        for (auto at = ring.pending.begin(); at != ring.pending.end(); ++at) {
            if (at->user_data != sqe.addr)
                continue;
            if (sqe.opcode == RP_IORING_OP_POLL_REMOVE && (sqe.len & RP_POLL_UPDATE_EVENTS)) {
                at->poll32_events = sqe.poll32_events;
            } else {
                uint64_t target = at->user_data;
                ring.pending.erase(at);
                post_to(ring, target, -ECANCELED, 0);
            }
            return answer(0);
        }
        return answer(-ENOENT);
    default: /* whatever it is, it waits until the test completes it */
        ring.pending.push_back(sqe);
        return;
    }
}

int FakeKernel::submit(Ring &ring, unsigned to_submit)
{
    if (submit_needs_empty_backlog && !ring.backlog.empty()) {
        flush_backlog(ring);
        if (!ring.backlog.empty())
            return -EBUSY;
    }
    unsigned limit = to_submit;
    if (!take_at_most.empty()) {
        limit = take_at_most.front() < limit ? take_at_most.front() : limit;
        take_at_most.pop_front();
        if (limit == 0)
            return -EAGAIN;
    }
    unsigned taken = 0;
    while (taken < limit) {
        uint32_t head = ring.sq_word(off_sq_head);
        if (head == __atomic_load_n(&ring.sq_word(off_sq_tail), __ATOMIC_ACQUIRE))
            break;
        unsigned index = head & (ring.sq_entries - 1);
        if (!(ring.flags & RP_SETUP_NO_SQARRAY))
            index = ring.sq_word(ring.array_offset + index * 4);
        ring.sq_word(off_sq_head) = head + 1;
        taken++;
        if (index >= ring.sq_entries) {
            ring.sq_word(off_sq_dropped)++;
            continue;
        }
        rp_sqe sqe = *ring.sqe_at(index);
        bool bad = sqe.opcode >= opcodes;
        issue(ring, sqe);
        if (bad && !(ring.flags & RP_SETUP_SUBMIT_ALL))
            break;
    }
    return static_cast<int>(taken);
}

void FakeKernel::run_sq_thread(bool then_sleep)
{
    auto ring = newest();
    if (!ring)
        abort();
    submit(*ring, UINT32_MAX);
    uint32_t &word = ring->sq_word(off_sq_flags);
    word = then_sleep ? word | RP_SQ_NEED_WAKEUP : word & ~RP_SQ_NEED_WAKEUP;
    ring->woken = false;
}

bool FakeKernel::sq_thread_woken() const
{
    auto ring = newest();
    return ring && ring->woken;
}

/* -------------------------------------------------------------------- enter */

int FakeKernel::table_enter(int fd, unsigned to_submit, unsigned min_complete, unsigned flags, const void *arg,
                            size_t arg_size)
{
    EnterCall call;
    call.fd = fd;
    call.to_submit = to_submit;
    call.min_complete = min_complete;
    call.flags = flags;
    call.has_arg = arg != nullptr;
    call.arg_size = arg_size;
    call.result = current_->enter(call, arg);
    current_->enters.push_back(call);
    return call.result;
}

int FakeKernel::enter(EnterCall &call, const void *arg)
{
    if (!enter_errors.empty()) {
        int error = enter_errors.front();
        enter_errors.pop_front();
        if (error < 0)
            return error;
    }
    if (call.flags & ~enter_flags)
        return -EINVAL;
    std::shared_ptr<Ring> ring;
    if (call.flags & RP_ENTER_REGISTERED_RING) {
        auto found = registered_.find(static_cast<unsigned>(call.fd));
        if (found == registered_.end())
            return -EBADF;
        ring = found->second;
    } else {
        ring = ring_of(call.fd);
    }
    if (!ring)
        return fcntl(call.fd, F_GETFD) < 0 ? -EBADF : -EOPNOTSUPP;

    int result = 0;
    if (ring->flags & RP_SETUP_SQPOLL) {
        uint32_t &word = ring->sq_word(off_sq_flags);
        if (call.flags & RP_ENTER_SQ_WAKEUP) {
            ring->woken = true;
            word &= ~RP_SQ_NEED_WAKEUP;
        }
        if ((call.flags & (RP_ENTER_SQ_WAIT | RP_ENTER_GETEVENTS)) && !(word & RP_SQ_NEED_WAKEUP))
            submit(*ring, UINT32_MAX); /* what the thread does meanwhile */
        result = static_cast<int>(call.to_submit);
    } else if (call.to_submit) {
        result = submit(*ring, call.to_submit);
        if (result != static_cast<int>(call.to_submit))
            return result;
    }
    if (!(call.flags & RP_ENTER_GETEVENTS))
        return result;

    int waited = 0;
    if (call.flags & RP_ENTER_EXT_ARG) {
        if (call.arg_size != sizeof(rp_getevents_arg))
            return result ? result : -EINVAL;
        rp_getevents_arg ext;
        memcpy(&ext, arg, sizeof(ext));
        call.has_sigmask = ext.sigmask != 0;
        if (call.has_sigmask && ext.sigmask_sz != RP_SIGSET_BYTES)
            waited = -EINVAL;
        if (ext.ts) {
            rp_timespec time;
            memcpy(&time, reinterpret_cast<const void *>(static_cast<uintptr_t>(ext.ts)), sizeof(time));
            call.timeout_ns = time.tv_sec * 1000000000 + time.tv_nsec;
        }
    } else if (arg) {
        call.has_sigmask = true;
        if (call.arg_size != RP_SIGSET_BYTES)
            waited = -EINVAL;
    }
    unsigned wanted = call.min_complete < ring->cq_entries ? call.min_complete : ring->cq_entries;
    while (waited == 0) {
        run_task_work(*ring, call.min_complete);
        flush_backlog(*ring);
        if (ring->lost) {
            ring->lost = false;
            waited = -EBADR;
        } else if (ring->ready() >= wanted) {
            break;
        } else if (on_idle && on_idle()) {
            continue;
        } else {
            /* As the kernel does: whoever has something to reap is not told why it came back. */
            waited = call.timeout_ns ? -ETIME : -EINTR;
            if (ring->ready() > 0)
                return result;
        }
    }
    return result ? result : waited;
}

/* ----------------------------------------------------------------- register */

int FakeKernel::table_register(int fd, unsigned opcode, const void *arg, unsigned nr_args)
{
    int result = current_->do_register(fd, opcode, arg, nr_args);
    current_->registers.emplace_back(opcode, result);
    return result;
}

int FakeKernel::do_register(int fd, unsigned opcode, const void *arg, unsigned nr_args)
{
    std::shared_ptr<Ring> ring;
    if (opcode & RP_REGISTER_USE_REGISTERED_RING) {
        auto found = registered_.find(static_cast<unsigned>(fd));
        if (!(features & RP_FEAT_REG_REG_RING))
            return -EINVAL;
        ring = found == registered_.end() ? nullptr : found->second;
        opcode &= ~RP_REGISTER_USE_REGISTERED_RING;
    } else {
        ring = ring_of(fd);
    }
    if (!ring)
        return -EBADF;
    switch (opcode) {
    case RP_REGISTER_PROBE: {
        if (!has_probe)
            return -EINVAL;
        if (nr_args > RP_PROBE_OPS)
            return -EINVAL;
        auto *probe = static_cast<rp_probe *>(const_cast<void *>(arg));
        unsigned count = opcodes < nr_args ? opcodes : nr_args;
        for (unsigned i = 0; i < count; i++) {
            probe->ops[i].op = static_cast<uint8_t>(i);
            probe->ops[i].flags = RP_OP_SUPPORTED;
        }
        probe->last_op = static_cast<uint8_t>(opcodes - 1);
        probe->ops_len = static_cast<uint8_t>(count);
        return 0;
    }
    case RP_REGISTER_RING_FDS: {
        if (!has_ring_fds)
            return -EINVAL;
        auto *update = static_cast<rp_rsrc_update *>(const_cast<void *>(arg));
        auto target = ring_of(static_cast<int>(update->data));
        if (!target)
            return -EBADF;
        for (unsigned slot = 0; slot < max_ring_fds; slot++)
            if (!registered_.count(slot)) {
                registered_[slot] = target;
                update->offset = slot;
                return 1;
            }
        return -EBUSY;
    }
    case RP_UNREGISTER_RING_FDS: {
        const auto *update = static_cast<const rp_rsrc_update *>(arg);
        if (update->resv || update->data)
            return -EINVAL;
        return registered_.erase(update->offset) ? 1 : -EINVAL;
    }
    default:
        return -EINVAL;
    }
}

/* ------------------------------------------------------------- FaultyKernel */

FaultyKernel *FaultyKernel::current_;

FaultyKernel::FaultyKernel(unsigned kinds, unsigned n, int error, unsigned times)
    : kinds_(kinds), n_(n), times_(times), error_(error)
{
    if (current_)
        abort();
    static const struct rp_sys table = {
        table_setup, table_enter, table_register, table_map, rp_sys_kernel.unmap, table_pages,
    };
    previous_ = rp_sys;
    rp_sys = &table;
    current_ = this;
}

FaultyKernel::~FaultyKernel()
{
    rp_sys = previous_;
    current_ = nullptr;
}

bool FaultyKernel::failed() const
{
    return n_ != 0 && calls >= n_;
}

bool FaultyKernel::fails(unsigned kind)
{
    if (!(kinds_ & kind))
        return false;
    calls++;
    return n_ != 0 && calls >= n_ && calls < n_ + times_;
}

int FaultyKernel::table_setup(unsigned entries, struct rp_params *params)
{
    return current_->fails(fault_setup) ? current_->error_ : rp_sys_kernel.uring_setup(entries, params);
}

int FaultyKernel::table_enter(int fd, unsigned to_submit, unsigned min_complete, unsigned flags, const void *arg,
                              size_t arg_size)
{
    return current_->fails(fault_enter)
               ? current_->error_
               : rp_sys_kernel.uring_enter(fd, to_submit, min_complete, flags, arg, arg_size);
}

int FaultyKernel::table_register(int fd, unsigned opcode, const void *arg, unsigned nr_args)
{
    return current_->fails(fault_register) ? current_->error_
                                           : rp_sys_kernel.uring_register(fd, opcode, arg, nr_args);
}

int FaultyKernel::table_map(int fd, uint64_t offset, size_t length, void **ret_address)
{
    return current_->fails(fault_map) ? current_->error_ : rp_sys_kernel.map(fd, offset, length, ret_address);
}

void *FaultyKernel::table_pages(size_t length)
{
    return current_->fails(fault_pages) ? nullptr : rp_sys_kernel.pages(length);
}

} // namespace sim
