/* SPDX-License-Identifier: MIT
 *
 * Reads and writes of files. The ring makes them, without a thread:
 *
 *   submitted ──the set's event──→ result ──callback
 *       └──no ring for it──→ libuv's own request, on its pool ──→ result ──callback
 *
 * A request that is pending keeps the loop alive and holds its state. Its array of buffers is a
 * copy of ours, the bytes are the caller's.
 */
#include "inside.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define FEW_BUFS 4
#define TAKE 64

enum fs_state { FS_OVER, FS_RING, FS_POOL };

struct fs_request { /* is a ringpoll_uv_fs_t */
    void *data;
    uv_loop_t *user;
    ssize_t result;
    ringpoll_uv_fs_cb on_done;
    struct uv_state *loop;
    uv_buf_t *bufs;
    uint64_t id; /* FS_RING */
    uv_fs_t *pool; /* FS_POOL */
    int64_t offset;
    uint32_t count;
    int32_t fd;
    uint8_t state, writes;
    uv_buf_t few[FEW_BUFS];
};
_Static_assert(sizeof(struct fs_request) <= sizeof(ringpoll_uv_fs_t), "a file request has room");

static void finish(struct fs_request *request, ssize_t result)
{
    struct uv_state *state = request->loop;
    request->state = FS_OVER;
    request->result = result;
    if (request->bufs != request->few)
        free(request->bufs);
    request->bufs = request->few;
    state_keep(state, false);
    request->on_done((ringpoll_uv_fs_t *)request);
    state_put(state);
}

static void on_pool_done(uv_fs_t *pool)
{
    struct fs_request *request = pool->data;
    ssize_t result = pool->result;
    uv_fs_req_cleanup(pool);
    free(pool);
    request->pool = NULL;
    finish(request, result);
}

static int to_pool(struct fs_request *request)
{
    uv_fs_t *pool = calloc(1, sizeof *pool);
    if (!pool)
        return UV_ENOMEM;
    pool->data = request;
    int error = (request->writes ? uv_fs_write : uv_fs_read)(request->user, pool, request->fd, request->bufs,
                                                             request->count, request->offset, on_pool_done);
    if (error < 0) {
        free(pool);
        return error;
    }
    request->pool = pool;
    request->state = FS_POOL;
    return 0;
}

static int to_ring(struct fs_request *request)
{
    struct ringpoll_request submitted = {
        .size = sizeof submitted,
        .operation = request->writes ? RINGPOLL_REQUEST_WRITE : RINGPOLL_REQUEST_READ,
        .fd = request->fd,
        .count = request->count,
        .iov = (const struct iovec *)request->bufs,
        .offset = request->offset < 0 ? -1 : request->offset,
        .user = request,
        .data.ptr = request->loop,
    };
    int error = ringpoll_request_submit(request->loop->set, &submitted, &request->id);
    if (error == 0)
        request->state = FS_RING;
    return error;
}

void fs_event(struct uv_state *state)
{
    struct ringpoll_completion done[TAKE];
    int count = ringpoll_request_take(state->set, done, TAKE);
    for (int i = 0; i < count; i++) {
        struct fs_request *request = done[i].user;
        int error = done[i].result == -ENOTSUP ? to_pool(request) : 0;
        if (done[i].result != -ENOTSUP || error < 0)
            finish(request, error < 0 ? error : (ssize_t)done[i].result);
    }
}

static int make_now(struct fs_request *request, const uv_buf_t *bufs, unsigned nbufs)
{
    uv_fs_t pool;
    int result = (request->writes ? uv_fs_write : uv_fs_read)(request->user, &pool, request->fd, bufs, nbufs,
                                                              request->offset, NULL);
    uv_fs_req_cleanup(&pool);
    request->result = result;
    return result;
}

static int begin(uv_loop_t *loop, ringpoll_uv_fs_t *req, uv_file fd, const uv_buf_t *bufs, unsigned nbufs,
                 int64_t offset, ringpoll_uv_fs_cb on_done, bool writes)
{
    struct fs_request *request = (struct fs_request *)req;
    if (!bufs || nbufs == 0)
        return UV_EINVAL;
    request->user = loop;
    request->on_done = on_done;
    request->fd = fd;
    request->offset = offset;
    request->count = nbufs;
    request->writes = writes;
    request->state = FS_OVER;
    request->pool = NULL;
    if (!on_done)
        return make_now(request, bufs, nbufs);
    request->bufs = nbufs <= FEW_BUFS ? request->few : malloc(nbufs * sizeof *bufs);
    if (!request->bufs)
        return UV_ENOMEM;
    memcpy(request->bufs, bufs, nbufs * sizeof *bufs);
    int error = state_get(loop, &request->loop);
    if (error == 0) {
        state_keep(request->loop, true);
        if (to_ring(request) < 0)
            error = to_pool(request);
        if (error == 0) {
            state_touch(request->loop);
            return 0;
        }
        state_keep(request->loop, false);
        state_put(request->loop);
    }
    if (request->bufs != request->few)
        free(request->bufs);
    return error;
}

int ringpoll_uv_fs_read(uv_loop_t *loop, ringpoll_uv_fs_t *req, uv_file fd, const uv_buf_t *bufs, unsigned nbufs,
                        int64_t offset, ringpoll_uv_fs_cb on_done)
{
    return begin(loop, req, fd, bufs, nbufs, offset, on_done, false);
}

int ringpoll_uv_fs_write(uv_loop_t *loop, ringpoll_uv_fs_t *req, uv_file fd, const uv_buf_t *bufs, unsigned nbufs,
                         int64_t offset, ringpoll_uv_fs_cb on_done)
{
    return begin(loop, req, fd, bufs, nbufs, offset, on_done, true);
}

int ringpoll_uv_fs_cancel(ringpoll_uv_fs_t *req)
{
    struct fs_request *request = (struct fs_request *)req;
    if (request->state == FS_POOL)
        return uv_cancel((uv_req_t *)request->pool);
    if (request->state != FS_RING)
        return UV_EBUSY;
    int error = ringpoll_request_cancel(request->loop->set, request->id, RINGPOLL_REQUEST_UNSTARTED);
    state_touch(request->loop);
    return error == 0 ? 0 : UV_EBUSY;
}
