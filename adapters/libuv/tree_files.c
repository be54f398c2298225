/* SPDX-License-Identifier: MIT
 *
 * File requests of a libuv that was configured --with-uring: which of them the ring takes.
 *
 * Only reads, of regular files, up to LARGEST bytes, where the file system can say that it
 * would have to wait (RWF_NOWAIT). All else is cheaper, or as cheap, on libuv's thread pool:
 * the kernel would give it to a thread of its own (docs/results/libuv-files-2026-11-26.md).
 *
 * What an fd is is looked up once in LOOKS requests. It may be another file's meanwhile,
 * closed by the program itself, unseen: then its reads are made as well, and no worse than
 * at another's cost, since a read by the ring is one of any file.
 *
 * Who owns what: libuv keeps the request, and its copy of the uv_buf_t, until
 * ringpoll_uv_tree_file_taken() has given it back; the bytes are its caller's. What the ring
 * gives back undone, libuv gives to its pool.
 */
#include "preload.h"

#include <sys/stat.h>

#include <ringpoll/uv-tree.h>

#ifndef RWF_NOWAIT
#define RWF_NOWAIT 8
#endif
#define LARGEST 65536u
#define LOOKS 64u
#define SLOTS 256u

/* fd + 1, whether it is fit, how often that holds yet: one word, for any thread. */
static uint64_t known[SLOTS];
#define FIT (1u << 16)

static bool look_at(int fd)
{
    struct stat status;
    char byte;
    struct iovec one = {&byte, 1};
    int flags;
    if (fstat(fd, &status) < 0 || !S_ISREG(status.st_mode))
        return false;
    /* Around the cache each read waits for the device. */
    if ((flags = rp_real.fcntl(fd, F_GETFL)) < 0 || (flags & O_DIRECT))
        return false;
    return preadv2(fd, &one, 1, 0, RWF_NOWAIT) >= 0 || errno == EAGAIN;
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

int ringpoll_uv_tree_file_read(int backend_fd, int fd, const struct iovec *iov, unsigned count, int64_t offset,
                               void *user, uint64_t *ret_id)
{
    size_t bytes = 0;
    if (!rp_shim_watching())
        return 0;
    for (unsigned i = 0; i < count && bytes <= LARGEST; i++)
        bytes += iov[i].iov_len < LARGEST ? iov[i].iov_len : LARGEST + 1;
    if (bytes > LARGEST || !is_fit(fd))
        return 0;
    struct ringpoll_request request = {
        .size = sizeof request,
        .operation = RINGPOLL_REQUEST_READ,
        .fd = fd,
        .count = count,
        .iov = iov,
        .offset = offset < 0 ? -1 : offset,
        .user = user,
        .data = {.fd = RINGPOLL_UV_TREE_FILES},
    };
    return ringpoll_request_submit(backend_fd, &request, ret_id) == 0;
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
