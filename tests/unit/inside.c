/* SPDX-License-Identifier: MIT
 *
 * What a test sees of a set that the public interface does not show.
 */
#include "inside.h"

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
