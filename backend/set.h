/* SPDX-License-Identifier: MIT
 *
 * The epoll-shaped object. What it is and who owns what stands in set.c.
 */
#ifndef RP_SET_H
#define RP_SET_H

#include "fdtab.h"
#include "lock.h"
#include "op.h"
#include "ring.h"
#include "ringpoll/ringpoll.h"
#include "watch.h"

struct rp_set {
    /* --- under `lock`; those marked * are looked at without it, see once.h */
    struct rp_lock lock;
    uint32_t engine; /* * RINGPOLL_ENGINE_*; only ever goes up */
    uint32_t reason;
    int error;
    uint32_t flags; /* RINGPOLL_* options */
    int identity;       /* lowest fd number that names the set; -1: ending */
    uint32_t names;     /* fd numbers that do */
    bool identity_foreign; /* a parent shares the identity's file */
    int hidden;         /* * kernel epoll of HOME_KERNEL watches, or -1 */
    int waiters;        /* threads inside a wait */
    bool owner_inside;  /* the owner is about to be, or is, inside a blocking enter */
    bool wake_sent;     /* the wake fd stands in `hidden` */
    bool zombie;        /* * engine KERNEL, but the owner has yet to end the ring */
    uint32_t demote_reason; /* asked of the owner; 0: not */
    uint32_t serviced;  /* futex: grows when the owner has seen to requests */
    struct rp_watch *watches; /* all */
    struct rp_watch *dirty; /* * */
    struct rp_watch *dirty_tail;
    unsigned ring_watches; /* HOME_RING records */
    unsigned leftovers; /* * engine KERNEL: records of disabled one-shots, see move_all() */
    bool ghosts;        /* `hidden` may have registrations whose number is closed */
    bool hidden_nested; /* * engine KERNEL: `hidden` stands in the identity, for the ghosts and what stays */
    bool inherited;     /* a fork's child has yet to make it its own */
    bool requests;      /* the owner shall flush, enter and say so (serviced) */
    struct rp_set *next_set;  /* all sets; under rp_sets_lock */
    bool in_use;            /* changed under `lock` and rp_sets_lock */
    /* --- the owner thread's */
    uint64_t owner;    /* * rp_self.id, 0: nobody yet. Written once, under `lock` */
    struct rp_ring ring;
    struct rp_op_table ops;
    struct rp_watch *ready_head, *ready_tail;
    unsigned ready_count;
    uint32_t wait_serial;
    bool in_company;    /* a wait has found that there are other threads */
    bool tells;         /* DEFER_TASKRUN and its flag: wake-ups run in our enters, and show before */
    bool hidden_armed, hidden_ready, hidden_first;
    struct rp_op *hidden_op;
    uint32_t unfit_kernel, unfit_total; /* events since the last look */
    struct rp_ring_options ring_options;
    struct ringpoll_stats stats; /* waits, events, kernel_waits: also by others, and without the lock */
};

extern struct rp_lock rp_sets_lock;
extern struct rp_set *rp_sets;
extern struct ringpoll_stats rp_stats_retired; /* sums of sets that have gone */
extern struct rp_set *rp_newest_set;

uint64_t rp_self_new_id(void);
static inline uint64_t rp_self_id(void)
{
    return rp_self.id ? rp_self.id : rp_self_new_id();
}

/* The set that the fd names, or NULL. */
static inline struct rp_set *rp_set_of(int epfd)
{
    struct rp_fd *entry = rp_fd_peek(epfd);
    return entry ? __atomic_load_n(&entry->set, __ATOMIC_ACQUIRE) : NULL;
}
static inline uint32_t rp_set_engine(const struct rp_set *set)
{
    return __atomic_load_n(&set->engine, __ATOMIC_ACQUIRE);
}
static inline bool rp_set_is_mine(const struct rp_set *set)
{
    return RP_READ_ONCE(set->owner) == rp_self.id && rp_self.id != 0;
}

/* All of these: set locked. */
void rp_set_demote(struct rp_set *set, uint32_t reason, int error);
/* Engine KERNEL: another process shall wait on the identity, where the nested
 * instance would be an event that it knows nothing of, or none once our fds have
 * gone. What can be moved out of it is. */
void rp_set_unnest(struct rp_set *set);
/* In a fork's child, before its first use of an inherited set. */
void rp_set_adopt_inherited(struct rp_set *set);
/* The fd of this watch is about to be closed. May drop and retake the lock. */
void rp_set_fd_closing(struct rp_set *set, struct rp_watch *watch, struct rp_fd *entry);
/* One name of the set is about to be closed; ends the set with the last. */
void rp_set_name_closing(struct rp_set *set, int fd);
/* Cancels all, waits for all, ends the ring. Owner thread. */
void rp_set_end_ring(struct rp_set *set);
/* After a fork, in the child. */
void rp_set_after_fork(struct rp_set *set);
void rp_set_forget_watch(struct rp_set *set, struct rp_watch *watch);
/* Ends what other threads left to this one. Nothing locked. */
void rp_set_end_zombies(void);
void rp_set_forget_kept_rings(void);
extern unsigned rp_zombies;
/* Forked unseen (by clone, say)? Then acts as the child's handler. */
void rp_process_check(void);
void rp_process_made_set(void);
/* What signal handlers left behind; nothing locked. */
void rp_process_deferred(void);
extern bool rp_process_no_rings;
/* Locks and unlocks as rp_lock(), and sees to deferred work. */
static inline void rp_set_lock(struct rp_set *set)
{
    rp_lock(&set->lock);
}
static inline void rp_set_unlock(struct rp_set *set)
{
    rp_unlock(&set->lock);
    if (rp_self.deferred && rp_self.locks_held == 0)
        rp_process_deferred();
}

/* ---- between the files of the set ----------------------------------------
 * set.c: the object and its records; owner.c: the ring and its thread; ctl.c,
 * wait.c, close.c: the calls; demote.c: to kernel epoll, and forks; stats.c.
 * Set locked, where nothing else is said. */
static inline bool rp_set_is_ending(const struct rp_set *set)
{
    return set->names == 0;
}
void rp_set_free(struct rp_set *set); /* everything has been cancelled, no name is left */
void rp_set_link_watch(struct rp_set *set, struct rp_watch *watch, struct rp_fd *entry);
void rp_set_undirty(struct rp_set *set, struct rp_watch *watch);
struct rp_watch *rp_set_find(struct rp_set *set, int fd);
int rp_set_make_hidden(struct rp_set *set);
void rp_set_close_hidden(struct rp_set *set);
int rp_set_kernel_ctl(struct rp_set *set, int epfd, int op, int fd, struct epoll_event *event);
/* owner.c */
#define RP_RING_NO_FD INT_MAX /* ring.fd of a ring that is registered, and has no number */
extern int rp_wake_fd;
extern struct rp_lock rp_wake_lock;    /* leaf: rp_wake_fd, the number of sets */
extern struct rp_lock rp_retired_lock; /* leaf: rp_stats_retired, rp_newest_set */
int rp_set_make_ring(struct rp_set *set);
/* The process has other threads from now on. Owner thread. */
void rp_set_has_company(struct rp_set *set);
/* Whether a ring can be had; it is kept for the first wait. Nothing locked. */
int rp_set_try_ring(struct rp_set *set);
int rp_ring_refusal(void); /* the errno, negative, of a kernel that gives no rings; 0: not known */
void rp_set_wake_owner(struct rp_set *set);
void rp_set_take_wake(struct rp_set *set);
void rp_set_say_serviced(struct rp_set *set);
bool rp_set_ask_owner(struct rp_set *set);
/* wait.c: enters without blocking, and reaps. 0, or a negative errno that means
 * that this ring is of no use any more. Owner thread. */
int rp_set_enter_and_reap(struct rp_set *set);
/* stats.c */
/* As the stats tell it: a set that has waited without anything for a ring in it is
 * on kernel epoll so far. */
uint32_t rp_stats_engine(const struct rp_set *set, uint32_t *ret_reason);
void rp_stats_add(struct ringpoll_stats *sum, const struct rp_set *set);

/* kernel epoll for this watch from now on; owner thread, or no owner; locked. */
int rp_set_move_to_kernel(struct rp_set *set, struct rp_watch *watch);
void rp_set_dirty(struct rp_set *set, struct rp_watch *watch);

#endif
