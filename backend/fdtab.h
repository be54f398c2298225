/* SPDX-License-Identifier: MIT
 *
 * What the library knows of each fd number: what it is, whether anybody else
 * may hold the same file, which sets watch it, which set it names.
 *
 * Entries live in pages that are made on demand and never move or go away, so
 * that a look-up is two loads and needs no lock: an fd's flags are atomics, the
 * list of its watches is changed under rp_fdtab_lock (a leaf: nothing else is
 * locked while it is held).
 *
 * "Shared" is what decides between the fast and the exact: a file that only one
 * fd of this process refers to dies with its close, and nobody but the program
 * reads from it. A file that was duplicated, passed, or there when a child was
 * made (its epoch is then older than the process's) gets epoll's full meaning
 * by a registration in kernel epoll, at the latest at its close, and no read
 * proves it empty.
 */
#ifndef RP_FDTAB_H
#define RP_FDTAB_H

#include <stdbool.h>
#include <stdint.h>

#include "lock.h"

struct rp_set;
struct rp_watch;
struct rp_stream;

/* Beside RINGPOLL_FD_KIND, _CONNECTED and _NONBLOCK. */
#define RP_FD_KNOWN (1u << 8)    /* its birth was reported */
#define RP_FD_SHARED (1u << 9)
#define RP_FD_LEAVE (1u << 10)   /* kernel epoll for good */
#define RP_FD_INTERNAL (1u << 11) /* the library's own */
#define RP_FD_HINTED (1u << 12)  /* its reads are reported */
#define RP_FD_ALONG (1u << 13)   /* other threads, or other sets' owners, read it too */
#define RP_FD_PLAIN (1u << 14)   /* never adopt it (again) */
#define RP_FD_LISTENER (1u << 15) /* listens, and has an acceptor; see accept.h */
#define RP_FD_SHUT (1u << 16)    /* no more is to be written: no write is batched */
/* Zero-copy sends of this connection: not on this machine's own; one was made, and the kernel
 * has yet to say how; it did without copying; it copies, or they are not to be had. */
#define RP_FD_FAR (1u << 17)
#define RP_FD_ZC_ASKED (1u << 18)
#define RP_FD_ZC_GOOD (1u << 19)
#define RP_FD_ZC_COPIES (1u << 20)
#define RP_FD_ZC (RP_FD_FAR | RP_FD_ZC_ASKED | RP_FD_ZC_GOOD | RP_FD_ZC_COPIES)

struct rp_fd {
    struct rp_watch *watches; /* by next_of_fd; changed under rp_fdtab_lock */
    struct rp_set *set;       /* the set that it names, or NULL */
    struct rp_stream *stream; /* what was received for it, or NULL; see stream.h */
    uint32_t flags;
    uint32_t epoch; /* rp_fork_epoch at birth */
};

#define RP_FD_PAGE 1024u
#define RP_FD_PAGES 4096u /* 4 million fds; higher ones are unknown for ever */

extern struct rp_fd *rp_fd_pages[RP_FD_PAGES];
extern struct rp_lock rp_fdtab_lock;
extern uint32_t rp_fork_epoch;

/* The entry, or NULL where none was ever made. */
static inline struct rp_fd *rp_fd_peek(int fd)
{
    unsigned page = (unsigned)fd / RP_FD_PAGE;
    if (page >= RP_FD_PAGES)
        return NULL;
    struct rp_fd *entries = __atomic_load_n(&rp_fd_pages[page], __ATOMIC_ACQUIRE);
    return entries ? &entries[(unsigned)fd % RP_FD_PAGE] : NULL;
}
/* The same, making its page; NULL: no memory, or out of range. */
struct rp_fd *rp_fd_get(int fd);

static inline uint32_t rp_fd_flags(const struct rp_fd *entry)
{
    return RP_READ_ONCE(entry->flags);
}
static inline bool rp_fd_shared(const struct rp_fd *entry)
{
    return (rp_fd_flags(entry) & RP_FD_SHARED) || RP_READ_ONCE(entry->epoch) != RP_READ_ONCE(rp_fork_epoch);
}
void rp_fd_set_flags(struct rp_fd *entry, uint32_t on, uint32_t off);
/* A born fd: forgets what the number was. */
void rp_fd_opened(int fd, uint32_t flags);
void rp_fd_internal(int fd, bool on);

void rp_fd_link(struct rp_fd *entry, struct rp_watch *watch);
void rp_fd_unlink(struct rp_fd *entry, struct rp_watch *watch);
struct rp_watch *rp_fd_watch_of(struct rp_fd *entry, const struct rp_set *set);
/* The set of its watch number `at`, from 0; NULL behind the last. Whether it watches it
 * yet is asked again under that set's lock. */
struct rp_set *rp_fd_set_at(const struct rp_fd *entry, unsigned at);

#endif
