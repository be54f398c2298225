/* SPDX-License-Identifier: MIT
 *
 * The counters, which live in each set, added up; and words for what they say.
 */
#include "set.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "anchor.h"

struct ringpoll_stats rp_stats_retired;
struct rp_lock rp_retired_lock;

uint32_t rp_stats_engine(const struct rp_set *set, uint32_t *ret_reason)
{
    if (set->engine == RINGPOLL_ENGINE_NEW && RP_READ_ONCE(set->stats.waits) > 0) {
        *ret_reason = RINGPOLL_REASON_UNFIT; /* there was nothing in it for a ring */
        return RINGPOLL_ENGINE_KERNEL;
    }
    *ret_reason = set->reason;
    return set->engine;
}

void rp_stats_add(struct ringpoll_stats *sum, const struct rp_set *set)
{
    uint32_t reason;
    /* (A closed set whose owner has yet to end its ring has no reason.) */
    if (rp_stats_engine(set, &reason) == RINGPOLL_ENGINE_KERNEL && reason != RINGPOLL_REASON_NONE) {
        sum->kernel_sets[0]++;
        sum->kernel_sets[reason]++;
    }
    sum->sets_made++;
    sum->rings_made += set->stats.rings_made;
    sum->waits += RP_READ_ONCE(set->stats.waits) + RP_READ_ONCE(set->plain_waits);
    sum->events += RP_READ_ONCE(set->stats.events) + RP_READ_ONCE(set->plain_events);
    sum->enters += set->stats.enters + RP_READ_ONCE(set->ring.enters);
    sum->rechecks += RP_READ_ONCE(set->stats.rechecks);
    sum->rechecked_fds += RP_READ_ONCE(set->stats.rechecked_fds);
    sum->kernel_waits += RP_READ_ONCE(set->stats.kernel_waits) + RP_READ_ONCE(set->plain_waits);
    sum->kernel_ctls += RP_READ_ONCE(set->stats.kernel_ctls) + RP_READ_ONCE(set->plain_ctls);
    sum->sqes += set->stats.sqes + RP_READ_ONCE(set->ring.sqes_submitted);
    sum->cqes += set->stats.cqes + set->ring.cqes_reaped;
    sum->cancels_on_close += set->stats.cancels_on_close;
    sum->handovers += set->stats.handovers;
    sum->stale_cqes += set->stats.stale_cqes + set->ops.stale;
    sum->rearms += set->stats.rearms;
    sum->cq_overflows += set->stats.cq_overflows + RP_READ_ONCE(set->ring.overflows);
    sum->demotions += set->stats.demotions;
    sum->adopted += set->stats.adopted;
    sum->adoptions += set->stats.adoptions;
    sum->received += set->stats.received;
    sum->receives_ended += set->stats.receives_ended;
    sum->starved += set->stats.starved;
    sum->calls_saved += set->stats.calls_saved;
    sum->sends_batched += set->stats.sends_batched;
    sum->accepting += set->stats.accepting;
    sum->listeners_adopted += set->stats.listeners_adopted;
    sum->accepted += set->stats.accepted;
    sum->requests += set->stats.requests;
    sum->requests_at_once += set->stats.requests_at_once;
    sum->sends_zc += set->stats.sends_zc;
    sum->sends_zc_copied += set->stats.sends_zc_copied;
    sum->ops_in_flight += rp_op_busy(&set->ops);
    sum->polls_armed += set->ops.count[RP_OP_QUEUED] + set->ops.count[RP_OP_INFLIGHT];
}

int ringpoll_count_plain(int epfd, unsigned waits, unsigned events, unsigned ctls, int added)
{
    struct rp_set *set = rp_set_of(epfd);
    if (!set || !(set->flags & RINGPOLL_DECLARED))
        return !set && rp_sys_fcntl(epfd, 1 /* F_GETFD */, 0) < 0 ? -EBADF : -EINVAL;
    if (rp_self.locks_held)
        return -EBUSY;
    rp_set_lock(set);
    RP_COUNT(set->stats.waits, waits);
    RP_COUNT(set->stats.kernel_waits, waits);
    RP_COUNT(set->stats.events, events);
    RP_COUNT(set->stats.kernel_ctls, ctls);
    uint32_t plain = RP_READ_ONCE(set->plain);
    RP_WRITE_ONCE(set->plain, added < 0 && plain < -(uint32_t)added ? 0 : plain + (uint32_t)added);
    rp_set_unlock(set);
    return 0;
}

int ringpoll_get_stats(int epfd, struct ringpoll_stats *stats)
{
    _Static_assert(RINGPOLL_REASON_SHARED < RINGPOLL_REASON_SLOTS, "each reason has its slot");
    struct ringpoll_stats sum = {.size = sizeof sum};
    uint32_t size = stats->size;
    if (size < 16 || size > sizeof sum)
        return -EINVAL;
    if (rp_self.locks_held) /* a signal handler inside our own critical section */
        return -EBUSY;
    if (epfd != -1) {
        struct rp_set *set = rp_set_of(epfd);
        if (!set)
            return rp_sys_fcntl(epfd, 1 /* F_GETFD */, 0) < 0 ? -EBADF : -EINVAL;
        rp_set_lock(set);
        rp_stats_add(&sum, set);
        sum.engine = rp_stats_engine(set, &sum.reason);
        sum.error = set->error;
        sum.sets = 1;
        sum.rings = set->ring.fd >= 0;
        for (struct rp_watch *watch = set->watches; watch; watch = watch->next_of_set)
            if (!watch->deleted)
                *(watch->home == RP_HOME_RING ? &sum.watches_ring : &sum.watches_kernel) += 1;
        sum.watches_kernel += RP_READ_ONCE(set->plain);
        rp_set_unlock(set);
    } else {
        rp_lock(&rp_sets_lock);
        rp_lock(&rp_retired_lock);
        sum = rp_stats_retired;
        const struct rp_set *newest = rp_newest_set;
        rp_unlock(&rp_retired_lock);
        for (struct rp_set *set = rp_sets; set; set = set->next_set) {
            rp_lock(&set->lock);
            if (set->in_use) {
                rp_stats_add(&sum, set);
                if (set == newest) {
                    sum.engine = rp_stats_engine(set, &sum.reason);
                    sum.error = set->error;
                }
                sum.sets++;
                sum.rings += set->ring.fd >= 0;
                for (struct rp_watch *watch = set->watches; watch; watch = watch->next_of_set)
                    if (!watch->deleted)
                        *(watch->home == RP_HOME_RING ? &sum.watches_ring : &sum.watches_kernel) += 1;
                sum.watches_kernel += RP_READ_ONCE(set->plain);
            }
            rp_unlock(&set->lock);
        }
        rp_unlock(&rp_sets_lock);
        sum.ops_in_flight += rp_loan_lingering_ops();
    }
    memcpy(stats, &sum, size);
    stats->size = size;
    return 0;
}

const char *ringpoll_reason_text(uint32_t reason)
{
    static const char *const texts[] = {
        [RINGPOLL_REASON_NONE] = "none",
        [RINGPOLL_REASON_ASKED] = "kernel epoll was asked for",
        [RINGPOLL_REASON_NO_RING] = "the kernel gives no ring",
        [RINGPOLL_REASON_OLD_KERNEL] = "this kernel's rings interrupt other calls (no DEFER_TASKRUN)",
        [RINGPOLL_REASON_NESTED] = "the epoll fd is watched by another epoll, poll or select",
        [RINGPOLL_REASON_WAITERS] = "more than one thread waits",
        [RINGPOLL_REASON_FORK] = "inherited from the parent process",
        [RINGPOLL_REASON_RESTRICTED] = "io_uring was forbidden (seccomp filter or credentials)",
        [RINGPOLL_REASON_UNFIT] = "its fds are better served by kernel epoll",
        [RINGPOLL_REASON_SHARED] = "the epoll fd was passed on or survives exec",
    };
    return reason < sizeof texts / sizeof texts[0] ? texts[reason] : "unknown";
}

const char *ringpoll_engine_text(uint32_t engine)
{
    static const char *const texts[] = {
        [RINGPOLL_ENGINE_NEW] = "new",
        [RINGPOLL_ENGINE_RING] = "ring",
        [RINGPOLL_ENGINE_KERNEL] = "kernel epoll",
    };
    return engine < sizeof texts / sizeof texts[0] ? texts[engine] : "unknown";
}

/* ------------------------------------------------------------------ anchor */

#define TEXT_OF(number) #number
#define VERSION_TEXT(major, minor, patch) TEXT_OF(major) "." TEXT_OF(minor) "." TEXT_OF(patch)
#define SET(member) offsetof(struct rp_set, member)
#define WATCH(member) offsetof(struct rp_watch, member)
#define STREAM(member) offsetof(struct rp_stream, member)

/* `used`: nothing in here refers to it but the note below. */
__attribute__((used)) const struct rp_anchor rp_anchor = {
    .magic = RP_ANCHOR_MAGIC,
    .version = VERSION_TEXT(RINGPOLL_VERSION_MAJOR, RINGPOLL_VERSION_MINOR, RINGPOLL_VERSION_PATCH),
    .size = sizeof(struct rp_anchor),
    .layout = {
        sizeof(void *), sizeof(struct rp_set), sizeof(struct rp_watch), sizeof(struct rp_stream),
        sizeof(struct rp_fd), sizeof(struct ringpoll_stats), RP_FD_PAGE, RP_FD_PAGES, RINGPOLL_REASON_SLOTS,
        RP_OP_STATES, RP_STREAM_STATES, RP_SEND_STATES,
        SET(engine), SET(reason), SET(error), SET(flags), SET(identity), SET(inherited), SET(zombie),
        SET(buffers.made), SET(buffers.given), SET(buffers.target), SET(alone_left), SET(no_streams),
        SET(next_set), SET(in_use), SET(tells), SET(stats), SET(ops.count), SET(ops.stale),
        SET(ring.fd), SET(ring.enters), SET(ring.sqes_submitted), SET(ring.cqes_reaped), SET(ring.overflows),
        WATCH(set), WATCH(events), WATCH(fd), WATCH(home), WATCH(deleted), WATCH(dirty), WATCH(next_of_fd),
        WATCH(adopt_in), WATCH(adopt_gap), WATCH(empty), WATCH(kind),
        STREAM(fd), STREAM(set), STREAM(state), STREAM(bytes), STREAM(error), STREAM(ended), STREAM(send.length),
        STREAM(send.rest_length), offsetof(struct rp_fd, stream),
        RP_FD_KNOWN | RP_FD_SHARED | RP_FD_LEAVE | RP_FD_INTERNAL, RP_FD_ALONG, RP_FD_PLAIN,
    },
    .self = &rp_anchor,
    .sets = &rp_sets,
    .retired = &rp_stats_retired,
    .fd_pages = rp_fd_pages,
    .fork_epoch = &rp_fork_epoch,
};
_Static_assert(sizeof(struct rp_set) <= UINT16_MAX, "fits the anchor's layout");
_Static_assert(sizeof RP_ANCHOR_NOTE == 9, "as the note says");

/* A distance, so that the note needs no relocation and stays in read-only memory. */
__asm__(".pushsection .note.ringpoll, \"a\", %note\n"
        ".balign 4\n"
        ".long 9, 4, 1\n" /* name and desc bytes, type */
        ".asciz \"" RP_ANCHOR_NOTE "\"\n"
        ".balign 4\n"
        ".long rp_anchor - .\n"
        ".popsection\n");
