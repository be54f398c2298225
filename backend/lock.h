/* SPDX-License-Identifier: MIT
 *
 * A three-state futex lock that costs no atomic instruction while the process
 * has one thread, and a per-thread count of locks held.
 *
 * The count is what makes the library usable from signal handlers: a handler
 * that finds it above zero has interrupted a critical section of its own thread
 * and must not lock; it leaves a note (rp_self.deferred), which the interrupted
 * code acts upon when it has unlocked. See set.c, "Signal handlers".
 */
#ifndef RP_LOCK_H
#define RP_LOCK_H

#include <stdbool.h>
#include <stdint.h>

#include "once.h"
#include "sys.h"

#if defined(__has_include)
#if __has_include(<sys/single_threaded.h>)
#include <sys/single_threaded.h>
#define RP_HAVE_SINGLE_THREADED 1
#endif
#endif

struct rp_lock {
    uint32_t word; /* 0 free, 1 held, 2 held and waited for */
};

struct rp_loan;

/* What the library keeps per thread. */
struct rp_thread {
    uint64_t id;           /* unique for ever, never 0 once rp_self_id() ran */
    int locks_held;
    unsigned batched;      /* sets of this thread that hold writes back, see send.h */
    bool forking;          /* all locks are held for a fork */
    bool forgets;          /* the fd that "closes" lives on, or is another's: leave its connection alone */
    volatile int deferred; /* a signal handler left work for us */
    bool to_collect, collects; /* rp_loan_collect() has something to do, or is doing it */
    struct rp_loan *due;   /* see loan.h */
};
extern __thread struct rp_thread rp_self;

static inline bool rp_single_threaded(void)
{
#ifdef RP_HAVE_SINGLE_THREADED
    return __libc_single_threaded;
#else
    return false;
#endif
}

void rp_lock_slow(struct rp_lock *lock);

static inline void rp_lock(struct rp_lock *lock)
{
    rp_self.locks_held++;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    if (RP_LIKELY(rp_single_threaded())) {
        lock->word = 1;
        return;
    }
    uint32_t expected = 0;
    if (!__atomic_compare_exchange_n(&lock->word, &expected, 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
        rp_lock_slow(lock);
}

static inline void rp_unlock(struct rp_lock *lock)
{
    if (RP_LIKELY(rp_single_threaded()))
        lock->word = 0;
    else if (__atomic_exchange_n(&lock->word, 0, __ATOMIC_RELEASE) == 2)
        rp_sys_futex_wake_all(&lock->word);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    rp_self.locks_held--;
}

#endif
