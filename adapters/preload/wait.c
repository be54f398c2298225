/* SPDX-License-Identifier: MIT
 *
 * epoll's own calls.
 *
 * Cancellation. epoll_wait is a cancellation point, and the library's wait is a
 * raw system call that pthread_cancel knows nothing of: glibc marks the thread
 * as cancelled and, for a thread that is not in one of libc's own waits, sends
 * no signal (since 2.41 it always does). Making the thread cancellable at any
 * instruction meanwhile would tear it out of the library with locks held. So the
 * wait stays deferred, and pthread_cancel is interposed: after the real one it
 * looks up whether that thread is waiting here, and if so sends it glibc's own
 * SIGCANCEL, whose handler finds nothing to do for a deferred thread and
 * returns. The wait comes back with EINTR, and pthread_testcancel() acts.
 *
 * The signal may hit before the thread has gone to sleep, and would be lost:
 * it is sent again and again until the waiter has said that it is awake. One
 * word per waiting thread holds this handshake:
 *
 *   IDLE ─ waiter, before it looks whether it is cancelled → WAITING
 *   WAITING ─ waiter, awake → IDLE
 *   WAITING ─ canceller → POKED ─ waiter, awake → AWAKE ─ canceller → IDLE
 *
 * The waiter leaves AWAKE only by the canceller's hand, so no late signal can
 * interrupt what it does next. A process with one thread skips all of this.
 */
#include "preload.h"

/* ----------------------------------------------------------- cancellation */

enum { CANCEL_IDLE, CANCEL_WAITING, CANCEL_POKED, CANCEL_AWAKE };
#define GLIBC_SIGCANCEL 32
#define SLOTS 512

enum { SLOT_FREE, SLOT_BEING_TAKEN, SLOT_TAKEN };

struct slot {
    uint32_t state;
    uint32_t taken; /* SLOT_TAKEN: `thread` and `tid` are there */
    pthread_t thread;
    pid_t tid;
} __attribute__((aligned(64)));

static struct slot slots[SLOTS];
static __thread struct slot *own_slot;
static pthread_key_t slot_key;

static void slot_give_back(void *at)
{
    struct slot *slot = at;
    own_slot = NULL;
    __atomic_store_n(&slot->taken, SLOT_FREE, __ATOMIC_RELEASE);
}

bool rp_shim_wait_start(void)
{
    return pthread_key_create(&slot_key, slot_give_back) == 0;
}

/* Only the forking thread lives in the child. */
void rp_shim_wait_forked(void)
{
    for (unsigned i = 0; i < SLOTS; i++) {
        slots[i].state = CANCEL_IDLE;
        if (&slots[i] != own_slot)
            slots[i].taken = SLOT_FREE;
    }
    if (own_slot)
        own_slot->tid = (pid_t)rp_raw(SYS_gettid, 0, 0, 0, 0, 0, 0);
}

static struct slot *slot_take(void)
{
    if (!RP_SHIM_IS(can_cancel))
        return NULL;
    for (unsigned i = 0; i < SLOTS; i++) {
        struct slot *slot = &slots[i];
        uint32_t free = SLOT_FREE;
        if (__atomic_load_n(&slot->taken, __ATOMIC_RELAXED) != SLOT_FREE ||
            !__atomic_compare_exchange_n(&slot->taken, &free, SLOT_BEING_TAKEN, false, __ATOMIC_ACQ_REL,
                                         __ATOMIC_RELAXED))
            continue;
        if (pthread_setspecific(slot_key, slot)) {
            __atomic_store_n(&slot->taken, SLOT_FREE, __ATOMIC_RELEASE);
            return NULL;
        }
        slot->thread = pthread_self();
        slot->tid = (pid_t)rp_raw(SYS_gettid, 0, 0, 0, 0, 0, 0);
        __atomic_store_n(&slot->taken, SLOT_TAKEN, __ATOMIC_RELEASE);
        own_slot = slot;
        return slot;
    }
    return NULL; /* cancelled at the next entry only */
}

/* True if a canceller had to be shaken off. */
static bool slot_leave(struct slot *slot)
{
    uint32_t waiting = CANCEL_WAITING;
    if (LIKELY(__atomic_compare_exchange_n(&slot->state, &waiting, CANCEL_IDLE, false, __ATOMIC_ACQ_REL,
                                           __ATOMIC_ACQUIRE)))
        return false;
    uint32_t poked = CANCEL_POKED;
    __atomic_compare_exchange_n(&slot->state, &poked, CANCEL_AWAKE, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    while (__atomic_load_n(&slot->state, __ATOMIC_ACQUIRE) == CANCEL_AWAKE)
        rp_raw(SYS_sched_yield, 0, 0, 0, 0, 0, 0);
    return true;
}

static void slot_leave_unwinding(void *slot)
{
    slot_leave(slot);
}

static __attribute__((noinline)) int wait_with_threads(int epfd, struct epoll_event *events, int max, const struct timespec *timeout,
                             const sigset_t *mask)
{
    struct slot *slot = own_slot ? own_slot : slot_take();
    /* Not IDLE: a signal handler that waits inside a wait. */
    if (!slot || __atomic_load_n(&slot->state, __ATOMIC_RELAXED) != CANCEL_IDLE) {
        pthread_testcancel();
        return ringpoll_wait(epfd, events, max, timeout, mask);
    }
    for (;;) {
        /* Before the look at the cancelled mark, and seen so by the canceller,
         * which writes the mark before it looks here. */
        __atomic_exchange_n(&slot->state, CANCEL_WAITING, __ATOMIC_SEQ_CST);
        pthread_cleanup_push(slot_leave_unwinding, slot);
        pthread_testcancel();
        pthread_cleanup_pop(0);
        int result = ringpoll_wait(epfd, events, max, timeout, mask);
        bool poked = slot_leave(slot);
        if (LIKELY(result != -EINTR))
            return result;
        pthread_testcancel();
        /* Cancelled, but this thread has that switched off, so it must not
         * notice. With a timeout it gets an EINTR that epoll would not have
         * given: the time that went by is not known. */
        if (!poked || timeout)
            return result;
    }
}

static void poke(pthread_t thread)
{
    for (unsigned i = 0; i < SLOTS; i++) {
        struct slot *slot = &slots[i];
        uint32_t waiting = CANCEL_WAITING;
        if (__atomic_load_n(&slot->taken, __ATOMIC_ACQUIRE) != SLOT_TAKEN || !pthread_equal(slot->thread, thread) ||
            !__atomic_compare_exchange_n(&slot->state, &waiting, CANCEL_POKED, false, __ATOMIC_SEQ_CST,
                                         __ATOMIC_SEQ_CST))
            continue;
        long pid = rp_raw(SYS_getpid, 0, 0, 0, 0, 0, 0);
        struct timespec pause = {0, 50000};
        /* The limit is for a waiter that left by longjmp from a handler. */
        for (int tries = 0; tries < 2000 && __atomic_load_n(&slot->state, __ATOMIC_ACQUIRE) == CANCEL_POKED; tries++) {
            rp_raw(SYS_tgkill, pid, slot->tid, GLIBC_SIGCANCEL, 0, 0, 0);
            if (tries < 20)
                rp_raw(SYS_sched_yield, 0, 0, 0, 0, 0, 0);
            else
                rp_raw(SYS_nanosleep, (long)&pause, 0, 0, 0, 0, 0);
        }
        __atomic_store_n(&slot->state, CANCEL_IDLE, __ATOMIC_RELEASE);
        return;
    }
}

EXPORT int pthread_cancel(pthread_t thread)
{
    if (!RP_LATE(pthread_cancel))
        return ENOSYS;
    RP_SHIM_SET(any_cancel, true);
    int result = rp_real.pthread_cancel(thread);
#ifdef __GLIBC__
    if (result == 0 && rp_shim_watching() && !pthread_equal(thread, pthread_self()))
        poke(thread);
#endif
    return result;
}

/* ------------------------------------------------------------------ calls */

int rp_shim_epoll_create(int flags)
{
    if (flags & ~EPOLL_CLOEXEC)
        return rp_fail(EINVAL);
    struct ringpoll_options options = {
        .size = sizeof options,
        .flags = RINGPOLL_TRACKED | (rp_shim.adopts ? RINGPOLL_ADOPT : 0) | (rp_shim.batches ? RINGPOLL_BATCH : 0) |
                 (rp_shim.accepts ? RINGPOLL_ACCEPT : 0) | (flags & EPOLL_CLOEXEC ? RINGPOLL_CLOEXEC : 0),
    };
    /* Asked for once per process: it makes a ring to see whether it can. */
    bool require = RP_SHIM_IS(require) && !RP_SHIM_IS(made_epoll) && !RP_SHIM_IS(restricted);
    if (require)
        options.flags |= RINGPOLL_REQUIRE;
    int fd = ringpoll_create(&options);
    if (fd < 0 && require) {
        int error = fd;
        options.flags &= ~RINGPOLL_REQUIRE;
        fd = ringpoll_create(&options);
        if (fd >= 0)
            rp_report_no_ring(error);
    }
    if (fd < 0)
        return rp_fail(-fd);
    RP_SHIM_SET(made_epoll, true);
    RP_SHIM_SET(any_set, true);
    return fd;
}

EXPORT int epoll_create1(int flags)
{
    if (!rp_shim_awake()) {
        if (rp_shim_vfork_owner == 0)
            RP_SHIM_SET(made_epoll, true);
        return rp_real.epoll_create1(flags);
    }
    return rp_shim_epoll_create(flags);
}

EXPORT int epoll_create(int size)
{
    return size <= 0 ? rp_fail(EINVAL) : epoll_create1(0);
}

int rp_shim_epoll_ctl(int epfd, int op, int fd, struct epoll_event *event)
{
    /* A set inside another one (or inside any epoll instance) must be what it
     * looks like. */
    if (op == EPOLL_CTL_ADD && UNLIKELY(ringpoll_fd_is_set(fd)) && epfd != fd)
        ringpoll_demote(fd);
    return (int)rp_answer(ringpoll_ctl(epfd, op, fd, event));
}

EXPORT int epoll_ctl(int epfd, int op, int fd, struct epoll_event *event)
{
    if (UNLIKELY(!rp_shim_watching()))
        return rp_real.epoll_ctl(epfd, op, fd, event);
    return rp_shim_epoll_ctl(epfd, op, fd, event);
}

/* The hottest path there is: one turn of the program's loop. */
static inline __attribute__((always_inline)) int wait_for(int epfd, struct epoll_event *events, int max,
                                                          const struct timespec *timeout, const sigset_t *mask)
{
    int result;
    if (LIKELY(rp_shim_single_threaded())) {
        if (UNLIKELY(RP_SHIM_IS(any_cancel))) /* of itself, who else */
            pthread_testcancel();
        result = ringpoll_wait(epfd, events, max, timeout, mask);
    } else {
        result = wait_with_threads(epfd, events, max, timeout, mask);
    }
    return (int)rp_answer(result);
}

EXPORT int epoll_wait(int epfd, struct epoll_event *events, int max, int timeout)
{
    if (UNLIKELY(!rp_shim_watching()))
        return RP_LATE(epoll_wait) ? rp_real.epoll_wait(epfd, events, max, timeout)
                                   : rp_real.epoll_pwait(epfd, events, max, timeout, NULL);
    struct timespec storage;
    return wait_for(epfd, events, max, rp_shim_milliseconds(timeout, &storage), NULL);
}

EXPORT int epoll_pwait(int epfd, struct epoll_event *events, int max, int timeout, const sigset_t *mask)
{
    if (UNLIKELY(!rp_shim_watching()))
        return rp_real.epoll_pwait(epfd, events, max, timeout, mask);
    struct timespec storage;
    return wait_for(epfd, events, max, rp_shim_milliseconds(timeout, &storage), mask);
}

EXPORT int epoll_pwait2(int epfd, struct epoll_event *events, int max, const struct timespec *timeout,
                        const sigset_t *mask)
{
    if (UNLIKELY(!rp_shim_watching()))
        return rp_real.epoll_pwait2(epfd, events, max, timeout, mask);
    return wait_for(epfd, events, max, timeout, mask);
}
