/* SPDX-License-Identifier: MIT
 *
 * A part of src/unix/fs.c of a libuv that was configured --with-uring, which includes it
 * once, behind uv__fs_done(): file requests on their way to the ring and back. Which ones
 * those are tree_files.c knows.
 *
 * A request that the ring has is registered with its loop, as one of the thread pool's. Its
 * work_req is that of a work that is being done, so that uv_cancel() finds it busy, unless
 * the ring has yet to begin; `reserved` has its number there, or 0. What comes back undone
 * goes to the pool.
 */
#ifndef RINGPOLL_UV_TREE_FILES_H
#define RINGPOLL_UV_TREE_FILES_H

#include <ringpoll/ringpoll.h>

/* What is no read, or a large one, is mostly made by a kernel worker. A few of them cost
 * less than by the pool. Many make the kernel start many workers, which wait for each other,
 * and some here and some there cost the most: so where the loop has more requests of
 * whatever kind than this, they are the pool's. */
#define RINGPOLL_UV_TREE_FEW 16

static int ringpoll_uv_tree_is_small_read(const uv_fs_t* req) {
  size_t bytes;
  unsigned int i;

  if (req->fs_type != UV_FS_READ)
    return 0;
  bytes = 0;
  for (i = 0; i < req->nbufs && bytes <= 65536; i++)
    bytes += req->bufs[i].len;
  return bytes <= 65536;
}

static int ringpoll_uv_tree_takes(uv_loop_t* loop, uv_fs_t* req) {
  struct ringpoll_request request;
  uint64_t id;

  id = 0;
  memset(&request, 0, sizeof(request));
  switch (loop->flags & RINGPOLL_UV_TREE_ASKED ? UV_FS_UNKNOWN : req->fs_type) {
  case UV_FS_READ:
  case UV_FS_WRITE:
    request.operation = req->fs_type == UV_FS_READ ? RINGPOLL_REQUEST_READ
                                                   : RINGPOLL_REQUEST_WRITE;
    request.fd = req->file;
    request.iov = (const struct iovec*) req->bufs;
    request.count = req->nbufs;
    request.offset = req->off < 0 ? -1 : req->off;
    break;
  case UV_FS_OPEN:
    request.operation = RINGPOLL_REQUEST_OPEN;
    request.path = req->path;
    request.flags = req->flags | O_CLOEXEC;
    request.mode = req->mode;
    break;
  case UV_FS_CLOSE:
    request.operation = RINGPOLL_REQUEST_CLOSE;
    request.fd = req->file;
    break;
  case UV_FS_FSYNC:
  case UV_FS_FDATASYNC:
    request.operation = RINGPOLL_REQUEST_FSYNC;
    request.fd = req->file;
    request.flags = req->fs_type == UV_FS_FDATASYNC;
    break;
  case UV_FS_RENAME:
    request.operation = RINGPOLL_REQUEST_RENAME;
    request.path = req->path;
    request.second_path = req->new_path;
    break;
  case UV_FS_UNLINK:
    request.operation = RINGPOLL_REQUEST_UNLINK;
    request.path = req->path;
    break;
  default:
    break;
  }
  request.size = sizeof(request);
  request.user = req;
  request.data.fd = RINGPOLL_UV_TREE_FILES;
  /* A program that has filled the pool knows that what it asks for then waits, and can be
   * cancelled. So what names a path goes to the ring only where nothing else is going on,
   * and closes go the way of opens. */
  if ((request.path != NULL || req->fs_type == UV_FS_CLOSE) &&
      loop->active_reqs.count != 1)
    request.operation = 0;
  if (loop->active_reqs.count > RINGPOLL_UV_TREE_FEW &&
      !ringpoll_uv_tree_is_small_read(req))
    request.operation = 0;
  if (request.operation != 0 &&
      ringpoll_uv_tree_file_begin(loop->backend_fd, &request, &id)) {
    req->work_req.loop = loop;
    req->work_req.work = NULL;
    req->work_req.done = uv__fs_done;
    QUEUE_INIT(&req->work_req.wq);
  }
  memcpy(req->reserved, &id, sizeof(id));
  return id != 0;
}

/* A write that was cut short is gone on with, until it is done or the reason shows. That
 * is a full disk or a limit: nothing that would keep the loop. */
static void ringpoll_uv_tree_write_rest(uv_fs_t* req) {
  unsigned int nbufs;
  ssize_t result;
  uv_buf_t* bufs;

  bufs = req->bufs;
  nbufs = req->nbufs;
  result = req->result;
  do {
    if (req->off >= 0)
      req->off += result;
    req->nbufs = uv__fs_buf_offset(req->bufs, result);
    req->bufs += req->nbufs;
    nbufs -= req->nbufs;
    req->nbufs = nbufs;
    if (nbufs == 0)
      break;
    do
      result = uv__fs_write(req);
    while (result < 0 && errno == EINTR);
    if (result > 0)
      req->result += result;
  } while (result > 0);
  req->bufs = bufs;
}

static void ringpoll_uv_tree_finish(uv_fs_t* req, ssize_t result) {
  size_t asked;
  unsigned int i;

  if (result == UV__ERR(EOPNOTSUPP) ||
      (req->fs_type != UV_FS_CLOSE && (result == UV__ERR(EINTR) ||
                                       result == UV__ERR(EAGAIN) ||
                                       result == UV__ERR(ENOMEM)))) {
    uv__work_submit(req->loop,
                    &req->work_req,
                    UV__WORK_FAST_IO,
                    uv__fs_work,
                    uv__fs_done);
    return;
  }
  if (result == UV_ECANCELED) {
    uv__fs_done(&req->work_req, UV_ECANCELED);
    return;
  }
  req->result = result;
  switch (req->fs_type) {
  case UV_FS_WRITE:
    asked = 0;
    for (i = 0; i < req->nbufs; i++)
      asked += req->bufs[i].len;
    if (result > 0 && (size_t) result < asked)
      ringpoll_uv_tree_write_rest(req);
    /* Fall through. */
  case UV_FS_READ:
    if (req->bufs != req->bufsml)
      uv__free(req->bufs);
    req->bufs = NULL;
    req->nbufs = 0;
    break;
  case UV_FS_CLOSE:
    if (result == UV__ERR(EINTR) || result == UV__ERR(EINPROGRESS))
      req->result = 0;  /* It is closed. */
    break;
  default:
    break;
  }
  uv__fs_done(&req->work_req, 0);
}

void ringpoll_uv_tree_files_done(uv_loop_t* loop) {
  void* user;
  int64_t result;
  uv_fs_t* req;

  while (ringpoll_uv_tree_file_taken(loop->backend_fd, &user, &result)) {
    req = (uv_fs_t*) user;
    memset(req->reserved, 0, sizeof(uint64_t));
    ringpoll_uv_tree_finish(req, result);
  }
}

#endif
