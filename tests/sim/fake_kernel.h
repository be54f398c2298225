/* SPDX-License-Identifier: MIT
 *
 * A kernel to test against, behind the table of sys.h. Two of them:
 *
 * FakeKernel is an io_uring in user space, over plain memory: queues, overflow
 * list, deferred task work, armed polls, one call at a time and no clock. A test
 * says which flags and opcodes it knows (so it can be any release since 5.1),
 * what the next calls answer, and when something becomes ready. It never
 * blocks: a wait that nothing can end asks on_idle, and answers EINTR when that
 * has nothing either. Its ring fds are real descriptors (of empty memory files),
 * so dup, close and their errors are the real ones.
 *
 * FaultyKernel is the real kernel with a countdown: the n-th call of a kind
 * fails. With it, code above the ring is taken through every error that an
 * allocation or an enter can give, n = 1, 2, … until nothing fails any more.
 *
 * Both put themselves into rp_sys while they live; one at a time, made and used
 * by one thread.
 */
#ifndef TESTS_SIM_FAKE_KERNEL_H
#define TESTS_SIM_FAKE_KERNEL_H

#include <cstdint>
#include <deque>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

extern "C" {
#include "abi.h"
#include "sys.h"
}

namespace sim {

/* What one io_uring_enter was asked. */
struct EnterCall {
    int fd = -1;
    unsigned to_submit = 0, min_complete = 0, flags = 0;
    bool has_arg = false;
    size_t arg_size = 0;
    std::optional<int64_t> timeout_ns;
    bool has_sigmask = false;
    int result = 0;
};

struct SetupCall {
    unsigned entries = 0, cq_entries = 0, flags = 0, sq_thread_cpu = 0, sq_thread_idle = 0;
    int result = 0;
};

class FakeKernel {
public:
    /* Knows everything; `version` as 510, 601, …: what that release knows. */
    FakeKernel();
    explicit FakeKernel(unsigned version);
    ~FakeKernel();
    FakeKernel(const FakeKernel &) = delete;
    FakeKernel &operator=(const FakeKernel &) = delete;

    /* ---- what it knows */
    unsigned setup_flags;    /* others: EINVAL */
    unsigned enter_flags;    /* others: EINVAL */
    uint32_t features;       /* RP_FEAT_* */
    unsigned opcodes;        /* this many */
    bool has_probe = true;   /* REGISTER_PROBE */
    bool has_ring_fds = true;
    unsigned max_ring_fds = 16;

    /* ---- what goes wrong */
    std::function<int(const SetupCall &)> on_setup;      /* negative: the answer */
    size_t memory_limit = SIZE_MAX;                      /* bytes of queues; above: ENOMEM */
    unsigned fail_allocation = 0;  /* the n-th from now of set-up, map and pages: ENOMEM */
    bool allocation_failed = false; /* it came to that */
    std::deque<int> enter_errors;  /* the next enters answer these, and do nothing; 0: goes on */
    std::deque<unsigned> take_at_most; /* the next submitting enters take so many */
    bool submit_needs_empty_backlog = false; /* EBUSY while completions are held back (before 6.0) */
    bool no_memory_for_overflow = false; /* what does not fit the CQ is lost: EBADR */
    std::function<bool()> on_idle; /* a wait would block: true when something was done about it */

    /* ---- what happens */
    /* A poll (or other pending request) with this user_data completes. With
     * DEFER_TASKRUN as task work of the next enter. False: none is pending. */
    bool complete(uint64_t user_data, int result, unsigned flags = 0);
    /* Any completion at all, asked for or not. */
    void post(uint64_t user_data, int result, unsigned flags = 0);
    /* SQPOLL: the kernel's thread takes what was published, then sleeps. */
    void run_sq_thread(bool then_sleep);
    bool sq_thread_woken() const;

    /* ---- what was seen */
    std::vector<SetupCall> setups;
    std::vector<EnterCall> enters;
    std::vector<std::pair<unsigned, int>> registers; /* opcode, result */
    std::vector<rp_sqe> submitted;
    size_t pending() const;      /* requests in flight */
    size_t rings() const;        /* whose fd is open */
    size_t mappings() const;
    unsigned ring_fds() const { return static_cast<unsigned>(registered_.size()); }
    unsigned allocations = 0;    /* so far */

private:
    struct Ring;
    struct Mapping {
        void *address;
        size_t length;
    };

    static int table_setup(unsigned entries, struct rp_params *params);
    static int table_enter(int fd, unsigned to_submit, unsigned min_complete, unsigned flags, const void *arg,
                           size_t arg_size);
    static int table_register(int fd, unsigned opcode, const void *arg, unsigned nr_args);
    static int table_map(int fd, uint64_t offset, size_t length, void **ret_address);
    static void table_unmap(void *address, size_t length);
    static void *table_pages(size_t length);

    int setup(unsigned entries, struct rp_params *params);
    int make_ring(SetupCall &call, struct rp_params *params);
    int enter(EnterCall &call, const void *arg);
    int do_register(int fd, unsigned opcode, const void *arg, unsigned nr_args);
    int submit(Ring &ring, unsigned to_submit);
    void issue(Ring &ring, const rp_sqe &sqe);
    void post_to(Ring &ring, uint64_t user_data, int result, unsigned flags);
    bool to_queue(Ring &ring, const rp_cqe &cqe);
    void flush_backlog(Ring &ring);
    void run_task_work(Ring &ring, unsigned min_complete);
    bool allocation_fails();
    std::shared_ptr<Ring> ring_of(int fd);
    std::shared_ptr<Ring> newest() const;
    void forget_closed();

    std::map<uint64_t, std::shared_ptr<Ring>> rings_; /* by inode of their memory file */
    std::map<unsigned, std::shared_ptr<Ring>> registered_;
    std::vector<Mapping> mappings_;
    uint64_t newest_ = 0;
    static FakeKernel *current_;
    const struct rp_sys *previous_;
};

/* Which calls a FaultyKernel counts. */
enum Fault : unsigned {
    fault_setup = 1,
    fault_map = 2,
    fault_pages = 4,
    fault_enter = 8,
    fault_register = 16,
    fault_allocations = fault_setup | fault_map | fault_pages,
};

class FaultyKernel {
public:
    /* The n-th call from now of these kinds answers `error` (pages: no memory),
     * and so do the `times` - 1 after it. 0: none. */
    FaultyKernel(unsigned kinds, unsigned n, int error, unsigned times = 1);
    ~FaultyKernel();
    FaultyKernel(const FaultyKernel &) = delete;
    FaultyKernel &operator=(const FaultyKernel &) = delete;

    unsigned calls = 0;  /* counted so far */
    bool failed() const; /* it came to that */

private:
    static int table_setup(unsigned entries, struct rp_params *params);
    static int table_enter(int fd, unsigned to_submit, unsigned min_complete, unsigned flags, const void *arg,
                           size_t arg_size);
    static int table_register(int fd, unsigned opcode, const void *arg, unsigned nr_args);
    static int table_map(int fd, uint64_t offset, size_t length, void **ret_address);
    static void *table_pages(size_t length);
    bool fails(unsigned kind);

    unsigned kinds_, n_, times_;
    int error_;
    static FaultyKernel *current_;
    const struct rp_sys *previous_;
};

} // namespace sim

#endif
