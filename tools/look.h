/* SPDX-License-Identifier: MIT
 *
 * What `ringpoll stat` finds in other processes; how, stands in look.c.
 */
#ifndef TOOLS_LOOK_H
#define TOOLS_LOOK_H

#include <limits.h>

#include "anchor.h"
#include "command.h"
#include "set.h"

struct seen_set {
    uintptr_t address;
    struct rp_set copy;
    struct ringpoll_stats stats;
    uint64_t on_ring, on_kernel, adopted;
};
struct seen_fd {
    int fd, set; /* the fd that names the set; -1: none */
    const char *kind;
    bool on_ring, adopted;
    const char *why; /* not on the ring, or not adopted */
    uint32_t unread, unsent;
};
/* A process, or one of the libraries of a process that has two of them. */
struct subject {
    pid_t pid;
    char name[32], file[PATH_MAX];
    int mem;
    struct rp_anchor anchor;
    struct rp_fd *pages[RP_FD_PAGES]; /* theirs, as all pointers that were read */
    uint32_t epoch;
    bool whole; /* nothing had to be left out for want of memory or sense */
    struct seen_set *sets;
    struct seen_fd *fds;
    size_t set_count, fd_count;
    struct ringpoll_stats sum;
};
struct snapshot {
    double at, taken; /* seconds: of the clock on the wall, and of a steady one */
    struct subject **subjects;
    size_t count;
};

/* Of the process with this id or, with 0, of all that are called so. STATUS_OK;
 * else nothing is in it: STATUS_NO, or STATUS_REFUSED, after a sentence. `fds`: list
 * them, too; `quiet`: no sentence. */
int take_snapshot(struct snapshot *snapshot, pid_t pid, const char *name, bool fds, bool quiet);
void free_snapshot(struct snapshot *snapshot);

#endif
