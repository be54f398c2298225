/* SPDX-License-Identifier: MIT
 *
 * From the ring to kernel epoll: one watch, or a set as a whole and for good;
 * and what a fork's child does with the set of its parent.
 */
#include "set.h"

#include <errno.h>
#include <string.h>
#include <sys/syscall.h>

static const struct timespec no_time = {0, 0};

/* Events that a set goes without a ring, the first time and at most: a ring that does not pay
 * costs a call in each of its first turns. */
#define AWAY_FIRST 16384u
#define AWAY_MOST (1u << 20)

/* ------------------------------------------------------- states and how to make them
 *
 * Kernel epoll knows more of a registration than its interest: an edge-triggered
 * one has, or has not, reported what there is; a one-shot one is enabled, or was
 * reported and is disabled. EPOLL_CTL_ADD makes the fresh state alone: enabled,
 * and reported if ready. The other two are made by letting the kernel report it,
 * to nobody, right after the ADD (`silent`, be_silent()). That takes a wait, which
 * takes others' events along. Those of watches are put back by MOD. An event that
 * nobody could put back must not be there: it is one of a registration whose number
 * is closed and whose file is not (or may be: two have the same data).
 *
 * So there are several places for the silent ones. The identity, if the kernel's list
 * of its registrations says that all in it are within reach (is_clear()). Else an
 * *annex* of which that is true, or a new one that holds them alone. It stands in the
 * identity, level-triggered, for as long as the set lives. Waits that meet its
 * mark look into it; rp_set_kernel_ctl() looks for fds there first. Only another
 * process that waits on the identity cannot know what the mark is: see rp_set_pass().
 *
 * The instance is made in any case: it is also the *witness* of what happens to the
 * silent ones until they are in their place. What had happened before it listens the
 * ring knows (catch_up()).
 *
 * A disabled one-shot is made to report by asking for everything. One that has
 * nothing to report at all (a pipe that was read to its bottom, a socket that is
 * full) becomes a stand-in: one-shot, without interest, with our mark for its
 * data. It can report an error or the end, once, which the wait throws away, and
 * then it is what it stands for. Where that could be seen (the set is demoted
 * because something else looks at it) and nobody else holds the file, no
 * registration is made, and the record remembers it (`leftovers`) until MOD, DEL
 * or close.
 *
 * A second report of an edge is better than none: whenever it is not certain
 * that nothing happened meanwhile, the edge is made anew.
 */

enum { SILENT_NOT, SILENT_WANTED, SILENT_DONE, SILENT_IN_VAIN };

static bool is_ready(int fd, uint32_t events)
{
    struct pollfd look = {.fd = fd, .events = (short)(events & 0xffffu)};
    return rp_sys_poll(&look, 1, &no_time) == 1 && !(look.revents & POLLNVAL);
}

/* The ring hears of all that the watch is for: a receive, or a poll that is not there
 * for OUT alone. */
static bool is_heard(const struct rp_watch *watch)
{
    return rp_stream_is_armed(watch->stream) ||
           (rp_watch_in_flight(watch) && !(watch->events & RP_POLL_BITS & ~watch->armed));
}

/* The edge-triggered watch has reported what there is. */
static bool is_spent_edge(const struct rp_watch *watch)
{
    return watch->home == RP_HOME_RING && rp_watch_is_edge(watch) && !(watch->events & EPOLLONESHOT) &&
           RP_READ_ONCE(watch->ready) == RP_READY_IDLE && is_heard(watch) && !watch->recheck;
}

/* A receive has ended, and the poll after it is yet to be armed: its look at the file
 * says whether that has changed since the last report. Owner. */
static void hear(struct rp_set *set, struct rp_watch *watch)
{
    if (!rp_watch_is_edge(watch) || watch->recheck || watch->deleted || watch->ready != RP_READY_IDLE ||
        is_heard(watch) || rp_stream_wanted(set, watch))
        return;
    int error = -EBUSY;
    for (int turn = 0; turn < 8 && error == -EBUSY; turn++) {
        error = rp_watch_arm(set, watch);
        if (rp_set_enter_and_reap(set) < 0)
            break;
    }
}

/* True: what has happened up to now stands in the records. Its owner can make a
 * ring tell. Others can see, while the owner is outside, that there is nothing to
 * tell, where the ring has a flag for that. */
static bool catch_up(struct rp_set *set)
{
    struct rp_ring *ring = &set->ring;
    bool mine = rp_set_is_mine(set);
    if (ring->fd < 0) /* nothing was reported yet */
        return true;
    if (set->owner_inside || (!mine && !(ring->features & RINGPOLL_FEATURE_TASKRUN_FLAG)))
        return false;
    ring->barren = 0;
    for (int turn = 0; mine && turn < 64; turn++)
        if (rp_set_enter_and_reap(set) < 0 || !rp_ring_wants_enter(ring) || rp_ring_is_up_in_vain(ring))
            break;
    return (!rp_ring_wants_enter(ring) || (mine && rp_ring_is_up_in_vain(ring))) && !rp_ring_peek(ring);
}

/* --------------------------------------------------------- what the kernel has */

struct registration {
    int fd;
    uint32_t events; /* of a disabled one: its flags alone */
    uint64_t data;
    uint64_t inode; /* 0: not known */
};

static uint64_t number_after(const char *line, const char *word, unsigned base)
{
    const char *at = strstr(line, word);
    uint64_t number = 0;
    if (!at)
        return 0;
    for (at += strlen(word); *at == ' '; at++)
        ;
    for (;; at++) {
        unsigned digit = *at >= '0' && *at <= '9' ? (unsigned)(*at - '0') : (unsigned)((*at | 32) - 'a' + 10);
        if (digit >= base)
            return number;
        number = number * base + digit;
    }
}

/* The kernel's list of what is registered. False: it cannot be read. */
static bool each_registration(int epfd, void (*see)(void *context, const struct registration *), void *context)
{
    char path[64] = "/proc/self/fdinfo/", text[4096], digits[12];
    size_t at = strlen(path), have = 0;
    int count = 0;
    do
        digits[count++] = (char)('0' + epfd % 10);
    while ((epfd /= 10) > 0);
    while (count > 0)
        path[at++] = digits[--count];
    path[at] = 0;
    long fd = rp_sys_call(SYS_openat, -100 /* AT_FDCWD */, (long)path, 02000000 /* O_CLOEXEC */, 0, 0, 0);
    if (fd < 0)
        return false;
    long got;
    while ((got = rp_sys_read((int)fd, text + have, sizeof text - 1 - have)) > 0) {
        have += (size_t)got;
        text[have] = 0;
        char *line = text, *end;
        while ((end = strchr(line, '\n')) != NULL) {
            *end = 0;
            struct registration one = {
                .fd = (int)number_after(line, "tfd:", 10),
                .events = (uint32_t)number_after(line, "events:", 16),
                .data = number_after(line, "data:", 16),
                .inode = number_after(line, "ino:", 16),
            };
            if (strstr(line, "tfd:"))
                see(context, &one);
            line = end + 1;
        }
        have = strlen(line);
        memmove(text, line, have);
        if (have == sizeof text - 1)
            have = 0;
    }
    rp_sys_close((int)fd);
    return true;
}

struct number {
    int fd;
    bool listed;
};

static void see_number(void *context, const struct registration *one)
{
    struct number *number = context;
    number->listed = number->listed || one->fd == number->fd;
}

/* The number may be another file's by now, whose registration nobody shall hear of:
 * it is tried only where the number is listed. */
bool rp_set_has_registered(struct rp_set *set, int epfd, int fd)
{
    struct number number = {fd, false};
    struct epoll_event nothing = {.events = EPOLLONESHOT, .data = rp_set_mark(set)};
    if (each_registration(epfd, see_number, &number) && !number.listed)
        return false;
    int result = rp_sys_epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &nothing);
    if (result == 0)
        rp_sys_epoll_ctl(epfd, EPOLL_CTL_DEL, fd, NULL);
    return result == -EEXIST;
}

/* ------------------------------------------------------------------ harvesting */

#define HARVEST 64u
#define FEW (4 * HARVEST)
/* What the kernel lists of a registration that can report. */
#define EVENT_BITS (RP_POLL_BITS | EPOLLERR | EPOLLHUP)

/* Watches by their data. */
struct by_data {
    struct rp_watch **slots;
    uint32_t mask;
};

static uint32_t first_slot(const struct by_data *table, uint64_t data)
{
    return (uint32_t)((data * UINT64_C(0x9e3779b97f4a7c15)) >> 32) & table->mask;
}

/* How many have this data; one of them, and the flags of all. */
static unsigned find_data(const struct by_data *table, uint64_t data, struct rp_watch **ret_one, uint32_t *ret_flags)
{
    unsigned count = 0;
    for (uint32_t at = first_slot(table, data); table->slots[at]; at = (at + 1) & table->mask)
        if (table->slots[at]->data.u64 == data) {
            *ret_one = table->slots[at];
            *ret_flags |= table->slots[at]->events;
            count++;
        }
    return count;
}

/* 0 is the identity, the others are annexes. */
static int place_fd(const struct rp_set *set, unsigned place)
{
    return place == 0 ? rp_set_kernel_fd(set) : set->annexes[place - 1];
}

/* All whose events a wait in that place would bring, and those that are to be silent.
 * `few`: room for a small table. */
static bool make_table(struct rp_set *set, unsigned place, struct by_data *ret_table, struct rp_watch *few[FEW])
{
    size_t watches = 0;
    memset(few, 0, FEW * sizeof few[0]);
    *ret_table = (struct by_data){few, FEW - 1};
    for (struct rp_watch *watch = set->watches; watch; watch = watch->next_of_set)
        watches++;
    while (watches * 2 > ret_table->mask)
        ret_table->mask = ret_table->mask * 2 + 1;
    if (ret_table->mask >= FEW && !(ret_table->slots = rp_sys_pages((ret_table->mask + (size_t)1) * sizeof few[0])))
        return false;
    for (struct rp_watch *watch = set->watches; watch; watch = watch->next_of_set) {
        watch->seen = false;
        if (watch->deleted || watch->disabled ||
            (watch->silent == SILENT_NOT && (watch->home != RP_HOME_KERNEL || watch->place != place)))
            continue;
        uint32_t at = first_slot(ret_table, watch->data.u64);
        while (ret_table->slots[at])
            at = (at + 1) & ret_table->mask;
        ret_table->slots[at] = watch;
    }
    return true;
}

static void free_table(struct by_data *table)
{
    if (table->mask >= FEW)
        rp_sys_pages_free(table->slots, (table->mask + (size_t)1) * sizeof table->slots[0]);
}

struct census {
    const struct by_data *table;
    bool clear;
};

static bool is_mark(epoll_data_t data)
{
    return data.ptr == &rp_wake_fd || data.ptr == &rp_annex_mark;
}

static void count_in(void *context, const struct registration *one)
{
    struct census *census = context;
    struct rp_watch *watch = NULL;
    uint32_t flags = 0;
    /* What is level-triggered comes again; what is disabled does not come. */
    if (!(one->events & (EPOLLET | EPOLLONESHOT)) || !(one->events & EVENT_BITS) ||
        is_mark((epoll_data_t){.u64 = one->data}))
        return;
    if (find_data(census->table, one->data, &watch, &flags) != 1 || watch->fd != one->fd ||
        watch->home != RP_HOME_KERNEL || watch->seen)
        census->clear = false;
    else
        watch->seen = true;
}

/* Whatever a wait in that place takes can be put back, or comes again. */
static bool is_clear(struct rp_set *set, unsigned place, const struct by_data *table)
{
    struct census census = {table, true};
    for (struct rp_watch *watch = set->watches; watch && census.clear; watch = watch->next_of_set) {
        struct rp_watch *one = NULL;
        uint32_t flags = 0;
        if (watch->silent != SILENT_NOT && !watch->disabled)
            census.clear = find_data(table, watch->data.u64, &one, &flags) == 1;
    }
    return census.clear && each_registration(place_fd(set, place), count_in, &census) && census.clear;
}

/* An event that the kernel takes for reported. */
static void sort_out(int epfd, const struct by_data *table, const struct epoll_event *got)
{
    struct rp_watch *watch = NULL;
    uint32_t flags = 0;

    if (is_mark(got->data) || find_data(table, got->data.u64, &watch, &flags) != 1)
        return;
    if (watch->silent == SILENT_WANTED) {
        watch->silent = SILENT_DONE;
        return;
    }
    if (!(flags & (EPOLLET | EPOLLONESHOT)))
        return; /* level-triggered: the kernel keeps it */
    struct epoll_event again = {.events = watch->events, .data = watch->data};
    if (watch->events & EPOLLEXCLUSIVE) {
        rp_sys_epoll_ctl(epfd, EPOLL_CTL_DEL, watch->fd, NULL);
        rp_sys_epoll_ctl(epfd, EPOLL_CTL_ADD, watch->fd, &again);
    } else {
        rp_sys_epoll_ctl(epfd, EPOLL_CTL_MOD, watch->fd, &again);
    }
}

/* Lets the kernel report what is to be silent. */
static void harvest(struct rp_set *set, int epfd, const struct by_data *table)
{
    struct epoll_event got[HARVEST];
    size_t watches = 0;
    for (struct rp_watch *watch = set->watches; watch; watch = watch->next_of_set)
        watches++;
    /* Ours came last, and level-triggered ones come again and again. */
    for (size_t turn = 0; turn < watches / HARVEST + 16; turn++) {
        int count = rp_sys_epoll_wait(epfd, got, HARVEST, &no_time, NULL);
        for (int i = 0; i < count; i++)
            sort_out(epfd, table, &got[i]);
        if (count < (int)HARVEST)
            break;
    }
}

/* ---------------------------------------------------------------- the moves */

/* It is the kernel's now. Its poll, if any, is cancelled with the owner's next wait,
 * and it is the owner who takes it out of the ready list: that may be in use, since
 * reads are reported without the lock. `told`: all that is there was reported, and it is
 * not level-triggered. */
static void moved(struct rp_set *set, struct rp_watch *watch, bool told)
{
    /* An adopted listener's queue, of which an edge has told. */
    told = told || (watch->kind == RP_KIND_LISTENER && rp_watch_is_edge(watch) && !watch->recheck &&
                     RP_READ_ONCE(watch->ready) == RP_READY_IDLE);
    set->stats.handovers++;
    RP_WRITE_ONCE(watch->home, RP_HOME_KERNEL);
    set->ring_watches--;
    watch->disabled = watch->recheck = watch->leaves = false;
    watch->silent = SILENT_NOT;
    watch->place = 0;
    if (set->ring.fd < 0 || rp_set_is_mine(set)) {
        rp_watch_to_idle(set, watch);
        watch->quiet = watch->single = false;
    }
    rp_left_note(set, watch);
    if (told)
        rp_left_told(watch);
    rp_set_dirty(set, watch);
}

/* The interest that gives a silent one, or a stand-in, its state. */
static struct epoll_event interest_of(struct rp_set *set, const struct rp_watch *watch)
{
    struct epoll_event event = {.events = watch->events, .data = watch->data};
    if (watch->disabled) {
        event.events = EPOLLONESHOT | (watch->silent == SILENT_NOT ? 0 : RP_POLL_BITS);
        event.data = rp_set_mark(set);
    }
    return event;
}

static int enter_at_once(struct rp_set *set, struct rp_watch *watch, bool told)
{
    struct epoll_event event = interest_of(set, watch);
    int error = rp_set_kernel_ctl(set, rp_set_kernel_fd(set), EPOLL_CTL_ADD, watch->fd, &event);
    if (error == 0)
        moved(set, watch, told);
    return error;
}

/* Registers it in the state that it has; where that takes a wait, `silent` says so,
 * and be_silent() does it. `known`: see catch_up(). */
static int enter_kernel(struct rp_set *set, struct rp_watch *watch, bool known)
{
    bool told = watch->disabled || (known && is_spent_edge(watch));
    if (told && is_ready(watch->fd, watch->disabled ? RP_POLL_BITS : watch->events)) {
        watch->silent = SILENT_WANTED;
        return 0;
    }
    return enter_at_once(set, watch, told);
}

/* The place that `instance` is from now on, or 0. */
static unsigned make_annex(struct rp_set *set, int *instance)
{
    struct epoll_event event = {.events = EPOLLIN, .data = {.ptr = &rp_annex_mark}};
    unsigned count = set->annex_count;
    if (count == RP_ANNEXES || (*instance = rp_sys_dup_high(*instance)) < 0 ||
        rp_sys_epoll_ctl(rp_set_kernel_fd(set), EPOLL_CTL_ADD, *instance, &event) < 0)
        return 0;
    rp_fd_internal(*instance, true);
    RP_WRITE_ONCE(set->marked, true);
    set->annexes[count] = *instance;
    RP_WRITE_ONCE(set->annex_count, count + 1);
    return count + 1;
}

/* An instance in which the silent ones are what they shall be. Or -1. */
static int make_witness(struct rp_set *set)
{
    struct epoll_event got[HARVEST];
    int witness = rp_sys_epoll_create1(EPOLL_CLOEXEC);
    if (witness < 0)
        return -1;
    for (struct rp_watch *watch = set->watches; watch; watch = watch->next_of_set) {
        struct epoll_event event = interest_of(set, watch);
        if (watch->silent == SILENT_NOT || rp_sys_epoll_ctl(witness, EPOLL_CTL_ADD, watch->fd, &event) == 0)
            continue;
        rp_sys_close(witness);
        return -1;
    }
    while (rp_sys_epoll_wait(witness, got, HARVEST, &no_time, NULL) == (int)HARVEST)
        ;
    return witness;
}

/* What has happened since to those that are in their place now. */
static void hear_witness(const struct by_data *table, int witness)
{
    struct epoll_event got[HARVEST];
    int count;
    do {
        count = rp_sys_epoll_wait(witness, got, HARVEST, &no_time, NULL);
        for (int i = 0; i < count; i++) {
            struct rp_watch *watch = NULL;
            uint32_t flags = 0;
            if (!is_mark(got[i].data) && find_data(table, got[i].data.u64, &watch, &flags) == 1 &&
                watch->silent == SILENT_DONE)
                watch->silent = SILENT_IN_VAIN;
        }
    } while (count == (int)HARVEST);
}

/* `passed`: another process shall look at the identity, and see no mark of ours. */
static int be_silent(struct rp_set *set, bool passed)
{
    struct rp_watch *few[FEW];
    struct by_data table;
    bool clear = false, tabled = false;
    unsigned place = 0, places = passed ? 1 : set->annex_count + 1, annex = 0;
    for (; place < places && !clear; place += !clear) {
        if (tabled)
            free_table(&table);
        tabled = make_table(set, place, &table, few);
        clear = tabled && is_clear(set, place, &table);
    }
    int witness = make_witness(set), error = 0;
    bool sure = witness >= 0 && catch_up(set);
    if (!clear) {
        annex = !passed && witness >= 0 ? make_annex(set, &witness) : 0;
        place = annex;
    }
    int epfd = place_fd(set, place);

    for (struct rp_watch *watch = set->watches; watch && !annex; watch = watch->next_of_set) {
        if (watch->silent == SILENT_NOT)
            continue;
        if (!clear)
            watch->silent = SILENT_NOT;
        if (!clear && passed && watch->disabled) {
            RP_COUNT(set->leftovers, 1);
            continue;
        }
        struct epoll_event event = interest_of(set, watch);
        set->stats.kernel_ctls++;
        int result = rp_sys_epoll_ctl(epfd, EPOLL_CTL_ADD, watch->fd, &event);
        if (result < 0) {
            watch->silent = SILENT_NOT;
            error = result;
        } else if (!clear) {
            moved(set, watch, watch->disabled);
        }
    }
    if (clear) {
        harvest(set, epfd, &table);
        if (witness >= 0)
            hear_witness(&table, witness);
    }
    for (struct rp_watch *watch = set->watches; watch; watch = watch->next_of_set) {
        if (watch->silent == SILENT_NOT)
            continue;
        bool told = watch->disabled || (sure && watch->ready == RP_READY_IDLE && is_heard(watch) &&
                                        watch->silent != SILENT_IN_VAIN);
        if (!told) {
            struct epoll_event again = {.events = watch->events, .data = watch->data};
            rp_sys_epoll_ctl(epfd, EPOLL_CTL_MOD, watch->fd, &again);
        }
        moved(set, watch, told);
        watch->place = (uint8_t)place;
    }
    if (tabled)
        free_table(&table);
    if (witness >= 0 && !annex)
        rp_sys_close(witness);
    return error;
}

int rp_set_move_to_kernel(struct rp_set *set, struct rp_watch *watch)
{
    if (watch->home == RP_HOME_KERNEL)
        return 0;
    if (watch->stream && rp_set_is_mine(set))
        rp_stream_end_receive(set, watch->stream);
    if (watch->kind == RP_KIND_LISTENER)
        rp_accept_end(set, watch->fd);
    else if (set->ring.fd >= 0 && rp_set_is_mine(set) && !set->owner_inside)
        hear(set, watch);
    bool known = is_spent_edge(watch) && catch_up(set);
    if (watch->home == RP_HOME_KERNEL || watch->deleted) /* that was in what we caught up with */
        return 0;
    int error = enter_kernel(set, watch, known);
    if (error == 0 && watch->silent != SILENT_NOT)
        error = be_silent(set, false);
    return error;
}

bool rp_set_leave_ring(struct rp_set *set, struct rp_watch *watch, bool closing)
{
    if (watch->deleted || watch->home != RP_HOME_RING || set->inherited)
        return false;
    if (rp_set_engine(set) == RINGPOLL_ENGINE_KERNEL) {
        /* A disabled one-shot of which there is the record alone. */
        struct epoll_event event = {.events = EPOLLONESHOT, .data = rp_set_mark(set)};
        if (watch->disabled && rp_set_kernel_ctl(set, set->identity, EPOLL_CTL_ADD, watch->fd, &event) == 0) {
            RP_COUNT(set->leftovers, -1u);
            moved(set, watch, true);
        }
        return false;
    }
    bool mine = set->ring.fd < 0 || rp_set_is_mine(set);
    if (!mine && set->owner_inside && !watch->leaves) {
        watch->leaves = true;
        rp_set_dirty(set, watch);
        (void)rp_set_ask_owner(set); /* if that was in vain, we shall do it ourselves */
        return true;
    }
    if (!mine && !closing && !catch_up(set)) {
        watch->leaves = true;
        rp_set_dirty(set, watch);
        return false;
    }
    rp_set_move_to_kernel(set, watch);
    if (!closing && rp_set_is_mine(set) && !set->owner_inside)
        rp_set_cancel(set, watch); /* the ring shall not be among those who hold the file */
    return false;
}

/* ------------------------------------------------------------------ the set */

/* Every watch of the ring goes where the others are. First those that must be
 * silent, so that the harvest finds little else. Another process shall see no mark
 * of ours: where that would take one, it does without. */
static void move_all(struct rp_set *set, bool known, bool passed)
{
    bool any_silent = false, stands_in = true;
    if (passed) {
        struct rp_watch *few[FEW];
        struct by_data table;
        bool tabled = make_table(set, 0, &table, few);
        stands_in = tabled && is_clear(set, 0, &table);
        if (tabled)
            free_table(&table);
        known = known && stands_in;
    }
    for (struct rp_watch *watch = set->watches; watch; watch = watch->next_of_set) {
        if (watch->deleted || watch->home != RP_HOME_RING || !(watch->disabled || (known && is_spent_edge(watch))))
            continue;
        struct rp_fd *entry = rp_fd_peek(watch->fd);
        bool alone = passed || !(entry && rp_fd_shared(entry));
        if (watch->disabled && (!stands_in || (alone && !is_ready(watch->fd, RP_POLL_BITS)))) {
            RP_COUNT(set->leftovers, 1);
            continue;
        }
        enter_kernel(set, watch, known);
        any_silent = any_silent || watch->silent != SILENT_NOT;
    }
    if (any_silent)
        (void)be_silent(set, passed);
    for (struct rp_watch *watch = set->watches; watch; watch = watch->next_of_set)
        if (!watch->deleted && !watch->disabled && watch->home == RP_HOME_RING)
            enter_kernel(set, watch, false);
}

void rp_set_demote(struct rp_set *set, uint32_t reason, int error)
{
    if (set->inherited)
        rp_set_adopt_inherited(set);
    uint32_t engine = rp_set_engine(set);
    if (engine == RINGPOLL_ENGINE_KERNEL)
        return;
    bool mine = engine == RINGPOLL_ENGINE_NEW || rp_set_is_mine(set);
    bool in_vain = false;
    if (!mine && set->owner_inside && set->demote_reason == RINGPOLL_REASON_NONE) {
        /* The owner knows what its ring knows. */
        set->demote_reason = reason;
        in_vain = !rp_set_ask_owner(set);
        set->demote_reason = RINGPOLL_REASON_NONE;
        if (rp_set_engine(set) == RINGPOLL_ENGINE_KERNEL)
            return;
    }
    if (set->accepts_armed)
        rp_accept_end_all(set);
    for (struct rp_watch *watch = set->watches; watch; watch = watch->next_of_set) {
        struct rp_fd *entry = watch->deleted || watch->fd < 0 ? NULL : rp_fd_peek(watch->fd);
        if (entry && rp_fd_flags(entry)) /* see ringpoll_ctl() */
            rp_fd_set_flags(entry, RP_FD_PLAIN, 0);
    }
    move_all(set, error == 0 && !in_vain && catch_up(set), reason == RINGPOLL_REASON_SHARED);
    set->reason = reason;
    set->error = error;
    set->stats.demotions++;
    bool ends_now = mine && !set->owner_inside;
    if (!ends_now) { /* before the engine: the owner looks at both without the lock */
        RP_WRITE_ONCE(set->zombie, true);
        __atomic_fetch_add(&rp_zombies, 1, __ATOMIC_RELAXED);
    }
    __atomic_store_n(&set->engine, RINGPOLL_ENGINE_KERNEL, __ATOMIC_RELEASE);
    if (ends_now) {
        rp_set_end_ring(set);
        rp_request_tell(set);
        rp_left_note_all(set);
        rp_set_forget_watches(set);
        if (set->waiters == 0)
            rp_set_close_hidden(set);
        return;
    }
    if (set->owner_inside) {
        if (mine)
            rp_set_wake_owner(set); /* a signal handler: the wait ends by itself */
        else
            rp_set_ask_owner(set);
    } else {
        rp_set_nudge(set); /* what it sleeps by is not where events come from now */
    }
}

bool rp_set_go_away(struct rp_set *set)
{
    for (const struct rp_watch *watch = set->watches; watch; watch = watch->next_of_set)
        if (watch->home == RP_HOME_RING && !watch->deleted && (watch->disabled || (watch->events & (EPOLLET | EPOLLONESHOT))))
            return false; /* more than a look finds */
    for (const struct rp_stream *stream = set->streams; stream; stream = stream->next)
        if (!rp_send_is_idle(&stream->send)) /* a peer that does not read: see rp_send_end() */
            return false;
    if (set->accepts_armed)
        rp_accept_end_all(set);
    bool all = true, any = false;
    for (struct rp_watch *watch = set->watches; watch; watch = watch->next_of_set) {
        if (watch->deleted || watch->home != RP_HOME_RING)
            continue;
        if (enter_at_once(set, watch, false) < 0) {
            all = false;
            continue;
        }
        watch->returns = any = true;
        set->returning++;
    }
    if (!all) { /* the ring goes on with those */
        (void)catch_up(set);
        return false;
    }
    rp_set_end_ring(set);
    __atomic_store_n(&set->engine, RINGPOLL_ENGINE_NEW, __ATOMIC_RELEASE);
    for (struct rp_watch *watch = set->watches, *next; watch; watch = next) {
        next = watch->next_of_set;
        rp_set_undirty(set, watch);
        rp_left_note(set, watch);
        if (watch->deleted)
            rp_set_forget_watch(set, watch);
    }
    if (!any && set->away_gap == 0) { /* the next one gets its ring at once, but not time and again */
        set->away_gap = AWAY_FIRST / 4;
    } else {
        set->away_gap = set->away_gap == 0 ? AWAY_FIRST : set->away_gap < AWAY_MOST ? set->away_gap * 4 : AWAY_MOST;
        set->away_for = set->away_gap;
    }
    set->stats.demotions++;
    if (set->waiters == 0) {
        rp_set_take_wake(set);
        rp_set_close_hidden(set);
    }
    return true;
}

struct annex_of {
    struct rp_set *set;
    int annex;
};

/* What is in an annex moves to the identity. */
static void leave_annex(void *context, const struct registration *one)
{
    struct annex_of *from = context;
    struct epoll_event event = {.events = one->events, .data = {.u64 = one->data}};
    if (rp_sys_epoll_ctl(from->annex, EPOLL_CTL_DEL, one->fd, NULL) == 0)
        rp_sys_epoll_ctl(rp_set_kernel_fd(from->set), EPOLL_CTL_ADD, one->fd, &event);
}

/* Another process waits on the identity, where it must meet no mark. So what lives in
 * annexes moves, its edges are reported once more, and numbers that are closed are not
 * heard of again. */
void rp_set_pass(struct rp_set *set)
{
    for (unsigned i = 0; i < set->annex_count; i++) {
        struct annex_of from = {set, set->annexes[i]};
        each_registration(from.annex, leave_annex, &from);
    }
    rp_set_close_annexes(set);
    if (!set->raised)
        return;
    rp_set_kernel_ctl(set, rp_set_kernel_fd(set), EPOLL_CTL_DEL, rp_wake_fd, NULL);
    set->raised = false;
}

int ringpoll_demote(int epfd)
{
    struct rp_set *set = rp_set_of(epfd);
    if (!set)
        return rp_sys_fcntl(epfd, 1 /* F_GETFD */, 0) < 0 ? -EBADF : -EINVAL;
    if (rp_set_engine(set) == RINGPOLL_ENGINE_KERNEL || rp_self.locks_held)
        return 0;
    rp_process_check();
    rp_set_lock(set);
    rp_set_demote(set, RINGPOLL_REASON_NESTED, 0);
    rp_set_unlock(set);
    return 0;
}

/* ---------------------------------------------------------------- children */

void rp_set_after_fork(struct rp_set *set)
{
    set->lock.word = 0;
    if (!set->in_use)
        return;
    uint32_t engine = rp_set_engine(set);
    if (set->ring.fd >= 0) {
        rp_fd_internal(set->ring.fd, false);
        rp_ring_abandon(&set->ring);
        memset(&set->ring, 0, sizeof set->ring);
        set->ring.fd = -1;
        rp_op_table_fini(&set->ops);
    }
    if (set->zombie) {
        RP_WRITE_ONCE(set->zombie, false);
        __atomic_fetch_sub(&rp_zombies, 1, __ATOMIC_RELAXED);
    }
    rp_stream_after_fork(set);
    set->accepts_armed = set->accepts_leaving = 0;
    rp_buffers_abandon(&set->buffers);
    rp_files_abandon(&set->files);
    rp_request_after_fork(set);
    set->loans = 0;
    for (struct rp_watch *watch = set->watches, *next; watch; watch = next) {
        next = watch->next_of_set;
        rp_watch_to_idle(set, watch);
        watch->op = NULL;
        watch->armed = 0;
        watch->armed_oneshot = watch->quiet = watch->single = false;
        if (watch->deleted || (engine == RINGPOLL_ENGINE_KERNEL && !watch->disabled && !watch->left))
            rp_set_forget_watch(set, watch);
    }
    set->left_told = false;
    rp_set_outer_after_fork(set);
    set->hidden_op = NULL;
    set->hidden_armed = set->hidden_ready = set->wake_sent = set->owner_inside = set->requests = false;
    set->raised = false;
    set->waiters = 0;
    set->serviced = 0;
    RP_WRITE_ONCE(set->owner, 0);
    if (engine != RINGPOLL_ENGINE_KERNEL)
        RP_WRITE_ONCE(set->inherited, true);
    else
        rp_set_close_hidden(set);
}

/* The identity's file is shared with the process that we were forked from: every
 * name gets a kernel epoll instance of our own. */
static bool replace_identity(struct rp_set *set)
{
    int fresh = rp_sys_epoll_create1(EPOLL_CLOEXEC);
    if (fresh < 0)
        return false;
    unsigned seen = 0;
    for (unsigned page = 0; page < RP_FD_PAGES && seen < set->names; page++) {
        struct rp_fd *entries = __atomic_load_n(&rp_fd_pages[page], __ATOMIC_ACQUIRE);
        if (!entries)
            continue;
        for (unsigned i = 0; i < RP_FD_PAGE; i++) {
            if (RP_READ_ONCE(entries[i].set) != set)
                continue;
            int name = (int)(page * RP_FD_PAGE + i);
            int cloexec = rp_sys_fcntl(name, 1 /* F_GETFD */, 0) & 1;
            rp_sys_dup3(fresh, name, cloexec ? EPOLL_CLOEXEC : 0);
            seen++;
        }
    }
    rp_sys_close(fresh);
    return true;
}

/* Disabled one-shots of the kernel's: only it knows. */
static void see_disabled(void *context, const struct registration *one)
{
    struct rp_set *set = context;
    if ((one->events & EPOLLONESHOT) && !(one->events & RP_POLL_BITS)) {
        struct rp_watch *watch = rp_set_find(set, one->fd);
        if (watch && !watch->deleted && watch->home == RP_HOME_KERNEL &&
            (watch->data.u64 == one->data || is_mark((epoll_data_t){.u64 = one->data})))
            watch->disabled = true;
    }
}

/* Of plain fds (see is_plain() in ctl.c) only the kernel knows. */
struct plain {
    struct rp_set *set;
    int from; /* our own number of the parent's identity, or -1 */
};

/* The number may be another file's by now: of one that was closed while somebody has its
 * file, or since the parent has registered it. A disabled one-shot becomes a stand-in, and
 * stays one in a child of the child. */
static void copy_plain(void *context, const struct registration *one)
{
    const struct plain *plain = context;
    struct epoll_event event = {.events = one->events, .data = {.u64 = one->data}};
    struct rp_watch *watch = rp_set_find(plain->set, one->fd);
    uint64_t inode = 0;
    if ((watch && !watch->deleted) || ringpoll_fd_is_internal(one->fd) ||
        (is_mark(event.data) && !(one->events & EPOLLONESHOT)) ||
        (one->inode && (rp_sys_fstat_inode(one->fd, &inode) < 0 || inode != one->inode)))
        return;
    if ((one->events & EPOLLONESHOT) && !(one->events & EVENT_BITS))
        event.data = rp_set_mark(plain->set);
    (void)rp_sys_epoll_ctl(plain->set->identity, EPOLL_CTL_ADD, one->fd, &event);
}

void rp_set_adopt_inherited(struct rp_set *set)
{
    RP_WRITE_ONCE(set->inherited, false);
    bool had_ring = rp_set_engine(set) == RINGPOLL_ENGINE_RING;
    bool any_silent = false;
    bool listed = each_registration(rp_set_kernel_fd(set), see_disabled, set);
    for (unsigned i = 0; i < set->annex_count; i++)
        each_registration(set->annexes[i], see_disabled, set);
    struct plain plain = {set, -1};
    if (set->flags & RINGPOLL_DECLARED)
        plain.from = listed ? rp_sys_fcntl(set->identity, 1030 /* F_DUPFD_CLOEXEC */, 3) : -1;
    bool replaced = (plain.from >= 0 || !(set->flags & RINGPOLL_DECLARED)) && replace_identity(set);
    rp_set_close_hidden(set);
    if (replaced && plain.from >= 0)
        each_registration(plain.from, copy_plain, &plain);
    if (plain.from >= 0)
        rp_sys_close(plain.from);
    if (replaced)
        rp_set_close_annexes(set);
    /* Without an instance of our own the parent's is used: as the kernel has it. */
    for (struct rp_watch *watch = set->watches; watch; watch = watch->next_of_set) {
        if (watch->home != RP_HOME_KERNEL)
            continue;
        if (replaced) {
            RP_WRITE_ONCE(watch->home, RP_HOME_RING); /* to be moved */
            set->ring_watches++;
            if (enter_kernel(set, watch, false) < 0)
                moved(set, watch, false);
            any_silent = any_silent || watch->silent != SILENT_NOT;
        }
        watch->disabled = false;
    }
    if (any_silent)
        (void)be_silent(set, false);
    if (had_ring) {
        __atomic_store_n(&set->engine, RINGPOLL_ENGINE_NEW, __ATOMIC_RELEASE);
        rp_set_demote(set, RINGPOLL_REASON_FORK, 0);
    }
}
