/* SPDX-License-Identifier: MIT
 *
 * The epoll-shaped object. What it is and who owns what stands in set.c.
 */
#ifndef RP_SET_H
#define RP_SET_H

#include "accept.h"
#include "buffers.h"
#include "fdtab.h"
#include "files.h"
#include "left.h"
#include "loan.h"
#include "lock.h"
#include "op.h"
#include "request.h"
#include "ring.h"
#include "ringpoll/ringpoll.h"
#include "send.h"
#include "stream.h"
#include "watch.h"

#define RP_ANNEXES 16

#define RP_UNFIT_FIRST_WINDOW 256u

struct rp_set {
    struct rp_lock lock;
    /* --- of the place, not of the set that has it: these outlive it */
    uint32_t serviced;  /* futex: grows when the owner has seen to requests */
    struct rp_set *next_set;  /* all sets; under rp_sets_lock */
    bool in_use;        /* changed under `lock` and rp_sets_lock */
    /* --- of whatever kind (see below), what every turn and every read touches: with the
     * lock, one cache line */
    uint32_t engine;    /* locked; * RINGPOLL_ENGINE_*; goes up only, but for rp_set_go_away() */
    uint32_t flags;     /* RINGPOLL_* options; never changes */
    uint32_t wait_serial;                     /* the owner's */
    struct rp_watch *ready_head, *ready_tail; /* the owner's */
    uint64_t owner;     /* * rp_self.id, 0: nobody yet. Written with each ring, under `lock` */
    unsigned ready_count;                     /* the owner's */
    bool tells;         /* the owner's; DEFER_TASKRUN and its flag: wake-ups run in our enters, and show before */
    bool owner_inside;  /* locked; the owner is about to be, or is, inside a blocking enter */
    bool hidden_armed, hidden_ready;          /* the owner's */
    /* --- under `lock`; those marked * are looked at without it, see once.h */
    /* What a turn of the owner begins with, where there is any of it: see rp_set_is_at_rest(). */
    struct rp_watch *dirty; /* * */
    struct rp_stream *leaving; /* those whose cancel has yet to go out */
    struct rp_stream *batched, *sending; /* see send.h */
    unsigned accepts_armed, accepts_leaving; /* listeners: adopted, of which to be cancelled */
    union {
        struct {
            bool requests;      /* the owner shall flush, enter and say so (serviced) */
            bool wake_sent;     /* the owner is being woken */
            bool unpolled;      /* a BLOCKED stream has no poll yet */
            bool any_requests, request_queued; /* there were some ever; some may begin, see request.h */
            bool request_done;  /* * */
            bool zombie;        /* * engine KERNEL, but the owner has yet to end the ring */
            bool inherited;     /* * a fork's child has yet to make it its own */
        };
        uint64_t unusual;       /* all of these at a look */
    };
    bool in_company;    /* the owner's; a wait has found that there are other threads */
    bool hidden_first;  /* the owner's */
    unsigned turn_events; /* of the last wait */
    int waiters;        /* threads inside a wait */
    uint32_t names;     /* fd numbers that name it */
    /* With these three lines, all that calls for plain fds touch. */
    struct rp_watch *left, *left_tail; /* *, see left.h */
    uint64_t sleeper;   /* locked; rp_self.id of the thread that sleeps by ringpoll_sleep_fd(), or has just woken; 0 */
    uint32_t plain;     /* * registered in the identity, without a record: see is_plain() in ctl.c */
    uint32_t returning; /* watches with `returns` */
    uint32_t away_for;  /* events to go without a ring, see rp_set_go_away() */
    unsigned ring_watches; /* HOME_RING records */
    unsigned annex_count; /* * see demote.c */
    bool marked;        /* * there was a registration of our own in the identity, see rp_set_mark() */
    bool left_last;     /* in the next turn they come behind what the kernel says */
    bool left_told;     /* the wake fd stands in the identity, for them */
    bool raised;        /* the wake fd stands in the identity */
    bool handed_back;   /* a receive has ended without a word, and the poll after it has yet to look */
    bool plainly;       /* a wait has seen to all that is; the next may be a plain one, see wait.c */
    uint16_t plain_waits, plain_ctls; /* *; not yet in `stats`, see rp_set_count_plain() */
    uint32_t plain_events; /* * */
    int identity;       /* lowest fd number that names the set; -1: ending */
    int hidden;         /* * the library's own number of the identity's file, or -1 */
    uint32_t away_gap;  /* `away_for` of the last time */
    uint32_t reason;
    int error;
    uint32_t closed_in_handler; /* * of the names, closed while the lock could not be had */
    struct rp_watch *dirty_tail;
    struct rp_watch *watches; /* all */
    struct rp_stream *streams; /* all */
    uint32_t demote_reason; /* the owner is asked to demote it; 0: not */
    unsigned leftovers; /* * engine KERNEL: records of disabled one-shots, see demote.c */
    int annexes[RP_ANNEXES]; /* kernel epoll instances in the identity, see demote.c */
    unsigned annex_first; /* whose turn it is */
    struct rp_buffers buffers;
    struct rp_files files;
    struct rp_requests requested;
    uint32_t buffer_count, stream_bytes; /* options */
    struct rp_arena arena;
    uint32_t send_limit;
    unsigned loans;     /* the owner's; ops that stand for one, see loan.h */
    /* Zero-copy sends, see send.c: sockets in a row of which the kernel says that it copies; so
     * many that could be made so are not; how many the next time. */
    uint32_t zc_copied_row, zc_pause, zc_gap;
    /* Whether receives pay, see rp_stream_judge(): of the last turns, those that had
     * one event; what they saved; turns to go without. */
    uint32_t judged, judged_single, judged_mods, alone_left, alone_gap;
    bool no_streams, no_accepts, no_names; /* this ring cannot */
    /* --- the owner thread's */
    struct rp_ring ring;
    struct rp_op_table ops;
    uint32_t fence; /* SQPOLL: the last that was queued */
    bool edge_ended;    /* !tells: a full CQ ended the poll of an edge-triggered watch */
    struct rp_op *hidden_op;
    int outer;          /* the eventfd that an outer loop sleeps by, or -1: see outer.c. Others write to it, locked */
    bool outer_registered; /* with this ring */
    uint32_t unfit_kernel, unfit_total; /* events since the last judgement */
    uint32_t unfit_window;              /* that many make the next one, see wait.c */
    struct rp_ring_options ring_options;
    uint64_t judged_saved;
    uint64_t outer_enters; /* enters of the ring when it was last emptied */
    struct ringpoll_stats stats; /* waits, events, kernel_waits: also by others, and without the lock */
} __attribute__((aligned(64)));

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

/* ---- the ready list, where it is hot; elsewhere rp_watch_to_ready() and _to_idle(). Owner. */

static inline void rp_ready_add(struct rp_set *set, struct rp_watch *watch)
{
    struct rp_watch *tail = set->ready_tail;
    watch->next_ready = NULL;
    watch->prev_ready = tail;
    *(tail ? &tail->next_ready : &set->ready_head) = watch;
    set->ready_tail = watch;
    set->ready_count++;
}
static inline void rp_ready_remove(struct rp_set *set, struct rp_watch *watch)
{
    struct rp_watch *next = watch->next_ready, *before = watch->prev_ready;
    *(before ? &before->next_ready : &set->ready_head) = next;
    *(next ? &next->prev_ready : &set->ready_tail) = before;
    set->ready_count--;
}

static inline uint32_t rp_stream_bits(const struct rp_stream *stream)
{
    if (!stream)
        return 0;
    uint32_t bits = stream->head ? EPOLLIN | EPOLLRDNORM : 0;
    if (stream->error)
        bits |= EPOLLIN | EPOLLRDNORM | EPOLLERR | EPOLLHUP | EPOLLRDHUP;
    if ((stream->set->flags & RINGPOLL_BATCH) && stream->state == RP_STREAM_ARMED &&
        stream->send.state != RP_SEND_BLOCKED)
        bits |= EPOLLOUT | EPOLLWRNORM;
    return bits;
}

/* A call on the stream was answered without the kernel, and for that so many bytes were
 * copied; see stream.h. Locked. */
static inline void rp_stream_saved(struct rp_set *set, struct rp_stream *stream, uint32_t copied)
{
    set->stats.calls_saved++;
    stream->gain += (int32_t)rp_stream_worth(stream->is_unix) - (int32_t)copied;
    if (stream->gain > RP_STREAM_GAIN_MOST) {
        stream->gain = RP_STREAM_GAIN_MOST;
        stream->pays = true;
    }
}

/* All of these: set locked. */
void rp_set_demote(struct rp_set *set, uint32_t reason, int error);
/* Engine KERNEL: another process shall wait on the identity, and see nothing of ours
 * in it. */
void rp_set_pass(struct rp_set *set);
/* In a fork's child, before its first use of an inherited set. */
void rp_set_adopt_inherited(struct rp_set *set);
/* The fd of this watch is about to be closed. May drop and retake the lock. */
void rp_set_fd_closing(struct rp_set *set, struct rp_watch *watch, struct rp_fd *entry);
/* The same of a stream without a watch. */
void rp_set_stream_closing(struct rp_set *set, struct rp_stream *stream, const struct rp_fd *entry);
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
extern uint32_t *rp_process_alive;
void rp_process_become_child(void);
static inline void rp_process_check(void)
{
    uint32_t *page = __atomic_load_n(&rp_process_alive, __ATOMIC_ACQUIRE);
    if (RP_UNLIKELY(page && RP_READ_ONCE(*page) == 0))
        rp_process_become_child();
}
void rp_process_made_set(void);
/* What signal handlers left behind; nothing locked. */
void rp_process_deferred(void);
extern bool rp_process_no_rings;
extern uint32_t rp_process_credentials; /* grows when they change */
/* Locks and unlocks as rp_lock(), and sees to deferred work. */
static inline void rp_set_lock(struct rp_set *set)
{
    rp_lock(&set->lock);
}
static inline void rp_set_unlock(struct rp_set *set)
{
    rp_unlock(&set->lock);
    if (RP_UNLIKELY(rp_self.deferred && rp_self.locks_held == 0))
        rp_process_deferred();
}

/* ---- between the files of the set ----------------------------------------
 * set.c: the object and its records; owner.c: the ring and its thread; ctl.c,
 * wait.c, close.c: the calls; demote.c: to kernel epoll, and forks; stats.c.
 * Set locked, where nothing else is said. */
extern int rp_wake_fd;
static inline bool rp_set_is_ending(const struct rp_set *set)
{
    return set->names == 0;
}
void rp_set_free(struct rp_set *set); /* everything has been cancelled, no name is left */
void rp_set_link_watch(struct rp_set *set, struct rp_watch *watch, struct rp_fd *entry);
void rp_set_undirty(struct rp_set *set, struct rp_watch *watch);
/* Nobody but the owner, if there is one, may know of it: who is not the owner must
 * not forget the others, but leaves them, deleted and dirty, to the owner's next wait. */
static inline bool rp_set_may_forget(const struct rp_set *set, const struct rp_watch *watch)
{
    return set->ring.fd < 0 || (!watch->op && rp_set_is_mine(set)) ||
           (!watch->op && !watch->dirty && watch->home == RP_HOME_KERNEL &&
            RP_READ_ONCE(watch->ready) == RP_READY_IDLE);
}
/* Engine KERNEL, no ring: all records but those of `leftovers`. */
void rp_set_forget_watches(struct rp_set *set);
struct rp_watch *rp_set_find(struct rp_set *set, int fd);
int rp_set_make_hidden(struct rp_set *set);
void rp_set_close_hidden(struct rp_set *set);
/* Where it is registered already, in an annex, or else in `epfd`, the identity. */
int rp_set_kernel_ctl(struct rp_set *set, int epfd, int op, int fd, struct epoll_event *event);
static inline int rp_set_kernel_fd(const struct rp_set *set)
{
    return set->hidden >= 0 ? set->hidden : set->identity;
}
/* What the library itself registers in the identity has this for its data, and
 * is not for the program's eyes. */
static inline epoll_data_t rp_set_mark(struct rp_set *set)
{
    RP_WRITE_ONCE(set->marked, true);
    return (epoll_data_t){.ptr = &rp_wake_fd};
}
/* An annex has this for its data in the identity. */
extern char rp_annex_mark;
void rp_set_close_annexes(struct rp_set *set);
/* This very file, under this number. */
bool rp_set_has_registered(struct rp_set *set, int epfd, int fd);
/* owner.c */
extern struct rp_lock rp_wake_lock;    /* leaf: rp_wake_fd, the number of sets */
extern struct rp_lock rp_retired_lock; /* leaf: rp_stats_retired, rp_newest_set */
int rp_set_make_ring(struct rp_set *set);
/* The process has other threads from now on. Owner thread. */
void rp_set_has_company(struct rp_set *set);
/* Whether a ring can be had; it is kept for the first wait. Nothing locked. */
int rp_set_try_ring(struct rp_set *set);
int rp_ring_refusal(void); /* the errno, negative, of a kernel that gives no rings; 0: not known */
/* For the thread's next set: true, and it is no more the caller's. It must be empty. */
bool rp_set_keep_ring(struct rp_ring *ring, const struct rp_ring_options *options, bool with_fd);
/* close.c: to another number, where it is this one. */
bool rp_set_move_fd(int *at, int number);
void rp_set_raise(struct rp_set *set);
void rp_set_lower(struct rp_set *set);
void rp_set_wake_owner(struct rp_set *set);
void rp_set_take_wake(struct rp_set *set);
void rp_set_say_serviced(struct rp_set *set);
bool rp_set_ask_owner(struct rp_set *set);
/* outer.c: the owner may be asleep in another loop: it is woken. */
void rp_set_nudge(struct rp_set *set);
/* The ring is about to end, or the set. */
void rp_set_end_outer(struct rp_set *set, bool for_good);
void rp_set_outer_after_fork(struct rp_set *set);
/* wait.c: enters without blocking, and reaps: what had happened before is in the
 * lists after it (of a ring that tells, as much of it as one enter runs). 0, or a
 * negative errno that means that this ring is of no use any more. Owner thread. */
int rp_set_enter_and_reap(struct rp_set *set);
/* The commonest turn of all has nothing to do before the ring is slept on, or what is ready
 * is looked at. Owner. */
static inline bool rp_set_is_at_rest(const struct rp_set *set)
{
    return !set->dirty && !set->leaving && !set->batched && set->accepts_leaving == 0 &&
           !(set->requests | set->wake_sent | set->unpolled | set->request_queued) && (set->hidden_armed | set->hidden_ready);
}
/* It is of no use any more, with that: the set is on kernel epoll after this. Owner thread,
 * outside of a blocking enter; frees watches. */
void rp_set_give_up_ring(struct rp_set *set, int error);
/* The same until no canceled poll is left, so that no file is held. */
int rp_set_await_orphans(struct rp_set *set, int turns);
/* What plain calls have counted, into the stats: now and then, since that is a line of
 * cache more. */
static inline void rp_set_count_plain(struct rp_set *set)
{
    RP_COUNT(set->stats.waits, RP_READ_ONCE(set->plain_waits));
    RP_COUNT(set->stats.kernel_waits, RP_READ_ONCE(set->plain_waits));
    RP_COUNT(set->stats.events, RP_READ_ONCE(set->plain_events));
    RP_COUNT(set->stats.kernel_ctls, RP_READ_ONCE(set->plain_ctls));
    RP_WRITE_ONCE(set->plain_waits, 0);
    RP_WRITE_ONCE(set->plain_ctls, 0);
    RP_WRITE_ONCE(set->plain_events, 0);
}
/* stats.c */
/* As the stats tell it: a set that has waited without anything for a ring in it is
 * on kernel epoll so far. */
uint32_t rp_stats_engine(const struct rp_set *set, uint32_t *ret_reason);
void rp_stats_add(struct ringpoll_stats *sum, const struct rp_set *set);

/* demote.c: of a RINGPOLL_DECLARED set, in its owner's hands: RING → NEW. Its watches go to
 * kernel epoll, and come back with the next ring: that is made when `away_for` events have
 * come; the first time with the next watch where there were none. False: not now. */
bool rp_set_go_away(struct rp_set *set);
/* ctl.c: there is a ring again. */
void rp_set_return_watches(struct rp_set *set);
/* Is this fd one that the ring serves as epoll would? *ret_kind only when so. */
bool rp_set_fits_ring(const struct rp_set *set, int fd, uint32_t events, uint8_t *ret_kind);
/* demote.c: kernel epoll for this watch from now on, in the state that it has. */
int rp_set_move_to_kernel(struct rp_set *set, struct rp_watch *watch);
/* The same for a watch whose file is, or may be, somebody else's too: by the one who
 * can do it best, which is the owner, and at once only if its fd is closing. True:
 * the lock was dropped and retaken, look again. */
bool rp_set_leave_ring(struct rp_set *set, struct rp_watch *watch, bool closing);
/* close.c: cancels its poll and returns when the ring has let go of its file. Owner.
 * Whether the ring had it. */
bool rp_set_cancel(struct rp_set *set, struct rp_watch *watch);
void rp_set_dirty(struct rp_set *set, struct rp_watch *watch);

#endif
