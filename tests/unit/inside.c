/* SPDX-License-Identifier: MIT
 *
 * What a test sees of a set that the public interface does not show.
 */
#include "inside.h"

#include <sched.h>
#include <signal.h>

#include "fdtab.h"
#include "set.h"

unsigned inside_slots_used(int epfd)
{
    struct rp_set *set = rp_set_of(epfd);
    return set ? set->files.used : 0;
}

int inside_has_table(int epfd)
{
    struct rp_set *set = rp_set_of(epfd);
    return set && set->files.next != NULL;
}

int inside_has_slot(int fd)
{
    struct rp_fd *entry = rp_fd_peek(fd);
    return entry && entry->stream && entry->stream->slot != 0;
}

void inside_fill_table(int epfd, int fd)
{
    struct rp_set *set = rp_set_of(epfd);
    while (rp_files_fill(&set->files, &set->ring, fd))
        ;
}

static int to_raise, raised;

static int raising_enter(int fd, unsigned to_submit, unsigned min_complete, unsigned flags, const void *arg,
                         size_t arg_size)
{
    if (to_raise) {
        raised = raise(to_raise) == 0;
        to_raise = 0;
    }
    return rp_sys_kernel.uring_enter(fd, to_submit, min_complete, flags, arg, arg_size);
}

void inside_raise_in_next_enter(int epfd, int signal)
{
    static struct rp_sys raising;
    struct rp_set *set = rp_set_of(epfd);
    while (rp_ring_thread_is_awake(&set->ring))
        sched_yield();
    raising = rp_sys_kernel;
    raising.uring_enter = raising_enter;
    raised = 0;
    to_raise = signal;
    rp_sys = &raising;
}

int inside_raised(void)
{
    rp_sys = &rp_sys_kernel;
    return raised;
}
