/* SPDX-License-Identifier: MIT */
#include "fdtab.h"

#include "ringpoll/ringpoll.h"
#include "watch.h"

struct rp_fd *rp_fd_pages[RP_FD_PAGES];
struct rp_lock rp_fdtab_lock;
uint32_t rp_fork_epoch = 1;
__thread struct rp_thread rp_self;

void rp_lock_slow(struct rp_lock *lock)
{
    for (int spin = 0; spin < 100; spin++) {
        uint32_t expected = 0;
        if (__atomic_compare_exchange_n(&lock->word, &expected, 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
            return;
    }
    while (__atomic_exchange_n(&lock->word, 2, __ATOMIC_ACQUIRE) != 0)
        rp_sys_futex_wait(&lock->word, 2);
}

struct rp_fd *rp_fd_get(int fd)
{
    struct rp_fd *entry = rp_fd_peek(fd);
    unsigned page = (unsigned)fd / RP_FD_PAGE;
    if (entry || fd < 0 || page >= RP_FD_PAGES)
        return entry;
    struct rp_fd *made = rp_sys_pages(sizeof(struct rp_fd) * RP_FD_PAGE);
    if (!made)
        return NULL;
    struct rp_fd *none = NULL;
    if (!__atomic_compare_exchange_n(&rp_fd_pages[page], &none, made, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        rp_sys_pages_free(made, sizeof(struct rp_fd) * RP_FD_PAGE);
    return rp_fd_peek(fd);
}

void rp_fd_set_flags(struct rp_fd *entry, uint32_t on, uint32_t off)
{
    uint32_t was = rp_fd_flags(entry);
    if ((was | on) == was && (was & off) == 0)
        return;
    if (on)
        __atomic_fetch_or(&entry->flags, on, __ATOMIC_RELAXED);
    if (off)
        __atomic_fetch_and(&entry->flags, ~off, __ATOMIC_RELAXED);
}

void rp_fd_opened(int fd, uint32_t flags)
{
    struct rp_fd *entry = rp_fd_get(fd);
    if (!entry)
        return;
    RP_WRITE_ONCE(entry->epoch, RP_READ_ONCE(rp_fork_epoch));
    __atomic_store_n(&entry->flags, flags, __ATOMIC_RELEASE);
}

void rp_fd_internal(int fd, bool on)
{
    if (fd >= 0)
        rp_fd_opened(fd, on ? RP_FD_INTERNAL : 0);
}

void rp_fd_link(struct rp_fd *entry, struct rp_watch *watch)
{
    rp_lock(&rp_fdtab_lock);
    RP_WRITE_ONCE(watch->next_of_fd, entry->watches);
    __atomic_store_n(&entry->watches, watch, __ATOMIC_RELEASE);
    rp_unlock(&rp_fdtab_lock);
}

void rp_fd_unlink(struct rp_fd *entry, struct rp_watch *watch)
{
    rp_lock(&rp_fdtab_lock);
    struct rp_watch **at = &entry->watches;
    while (*at && *at != watch)
        at = &(*at)->next_of_fd;
    if (*at)
        __atomic_store_n(at, watch->next_of_fd, __ATOMIC_RELEASE);
    rp_unlock(&rp_fdtab_lock);
}

struct rp_watch *rp_fd_watch_of(struct rp_fd *entry, const struct rp_set *set)
{
    struct rp_watch *watch = entry ? __atomic_load_n(&entry->watches, __ATOMIC_ACQUIRE) : NULL;
    /* What is ours comes and goes under our set's lock, which the caller has. */
    if (!watch || __atomic_load_n(&watch->set, __ATOMIC_ACQUIRE) == set)
        return watch;
    rp_lock(&rp_fdtab_lock);
    watch = entry->watches;
    while (watch && watch->set != set)
        watch = watch->next_of_fd;
    rp_unlock(&rp_fdtab_lock);
    return watch;
}

struct rp_set *rp_fd_set_at(const struct rp_fd *entry, unsigned at)
{
    rp_lock(&rp_fdtab_lock);
    const struct rp_watch *watch = entry->watches;
    for (; watch && at > 0; at--)
        watch = watch->next_of_fd;
    struct rp_set *set = watch ? watch->set : NULL;
    rp_unlock(&rp_fdtab_lock);
    return set;
}
