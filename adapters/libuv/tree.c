/* SPDX-License-Identifier: MIT
 *
 * A libuv that was configured --with-uring: what its source calls by name, beside the
 * shim that meets its calls of libc. See uv-tree.h.
 *
 * Who owns what: libuv keeps a write request, and counts its bytes in write_queue_size,
 * until its callback. The bytes themselves are the library's as soon as the write call
 * returned, and the kernel's once they are flushed. A program that finds
 * write_queue_size 0 may write to the fd by itself (uvloop does), so the callbacks wait
 * for the flush: one for all streams of a turn, since the first that asks flushes all.
 */
#include "preload.h"

#include <ringpoll/uv-tree.h>

const char rp_shim_inside_switch[] = "UV_USE_RINGPOLL";

int ringpoll_uv_tree_embed(int backend_fd)
{
    return rp_shim_watching() ? ringpoll_demote(backend_fd) : 0;
}

int ringpoll_uv_tree_written(int fd)
{
    if (!rp_shim.batches || !rp_shim_watching())
        return 0;
    ringpoll_flush();
    return ringpoll_fd_flush(fd);
}

/* Of this thread's loops. */
static __thread struct {
    unsigned count;
    int fds[32];
} stopped;

void ringpoll_uv_tree_give_up(int fd)
{
    ringpoll_fd_release(fd, 0);
}

void ringpoll_uv_tree_stopped(int fd)
{
    if (!rp_shim.adopts || !rp_shim_watching() || !ringpoll_fd_is_stream_on_ring(fd))
        return;
    if (stopped.count == sizeof stopped.fds / sizeof stopped.fds[0])
        ringpoll_uv_tree_give_up(stopped.fds[--stopped.count]);
    stopped.fds[stopped.count++] = fd;
}

int ringpoll_uv_tree_next_stopped(void)
{
    return stopped.count > 0 ? stopped.fds[--stopped.count] : -1;
}

long ringpoll_uv_tree_try_write(int fd, const struct iovec *iov, int count)
{
    bool batches = rp_shim.batches && rp_shim_watching();
    int error = batches ? ringpoll_fd_flush(fd) : 0;
    if (error < 0)
        return error;
    ssize_t result = rp_real.writev(fd, iov, count);
    if (result >= 0)
        return result;
    error = -errno;
    if (batches && error == -EAGAIN)
        ringpoll_fd_full(fd);
    return error;
}
