/* SPDX-License-Identifier: MIT
 *
 * File requests of a libuv that was configured --with-uring: which of them the ring takes.
 *
 * Those that cost less by it, of regular files: read, write, open, close, fsync, fdatasync,
 * rename, unlink. Others cost as much there, or more, or were not measured, and stay on
 * libuv's thread pool (docs/results/libuv-files-2026-11-26.md).
 *
 * What an fd is is looked up once in LOOKS requests. It may be another file's meanwhile,
 * closed by the program itself, unseen: its requests are made as well, by the ring or by the
 * pool, since a read by the ring is one of any file.
 *
 * Who owns what: libuv keeps the request, and its copy of the uv_buf_t, until
 * ringpoll_uv_tree_file_taken() has given it back; the bytes are its caller's. What the ring
 * gives back undone, libuv gives to its pool.
 */
#include "preload.h"

#include <sys/stat.h>

#include <ringpoll/uv-tree.h>

#define LOOKS 64u
#define SLOTS 256u

/* fd + 1, whether it is fit, how often that holds yet: one word, for any thread. */
static uint64_t known[SLOTS];
#define FIT (1u << 16)

static bool look_at(int fd)
{
    struct stat status;
    if (fstat(fd, &status) < 0 || !S_ISREG(status.st_mode))
        return false;
    /* Around the cache a read that is tried waits for the device. */
    int flags = rp_real.fcntl(fd, F_GETFL);
    return flags >= 0 && !(flags & O_DIRECT);
}

static bool is_fit(int fd)
{
    if (fd < 0)
        return false;
    uint64_t *slot = &known[(unsigned)fd % SLOTS];
    uint64_t word = __atomic_load_n(slot, __ATOMIC_RELAXED);
    if (word >> 32 != (uint64_t)fd + 1 || (word & (FIT - 1)) == 0) {
        int error = errno;
        word = ((uint64_t)fd + 1) << 32 | (look_at(fd) ? FIT : 0) | LOOKS;
        errno = error;
    }
    __atomic_store_n(slot, word - 1, __ATOMIC_RELAXED);
    return (word & FIT) != 0;
}

int ringpoll_uv_tree_file_begin(int backend_fd, const struct ringpoll_request *request, uint64_t *ret_id)
{
    if (!rp_shim_watching())
        return 0;
    bool by_path = request->path != NULL;
    if (!by_path && !is_fit(request->fd))
        return 0;
    if (request->operation == RINGPOLL_REQUEST_CLOSE)
        __atomic_store_n(&known[(unsigned)request->fd % SLOTS], 0, __ATOMIC_RELAXED);
    return ringpoll_request_submit(backend_fd, request, ret_id) == 0;
}

int ringpoll_uv_tree_file_cancel(int backend_fd, uint64_t id)
{
    return id != 0 && rp_shim_watching() &&
           ringpoll_request_cancel(backend_fd, id, RINGPOLL_REQUEST_UNSTARTED) == 0;
}

int ringpoll_uv_tree_file_taken(int backend_fd, void **ret_user, int64_t *ret_result)
{
    struct ringpoll_completion one;
    if (!rp_shim_watching() || ringpoll_request_take(backend_fd, &one, 1) != 1)
        return 0;
    *ret_user = one.user;
    *ret_result = one.result;
    return 1;
}
