/* SPDX-License-Identifier: MIT
 *
 * A part of src/unix/fs.c of a libuv that was configured --with-uring, which includes it
 * once, behind uv__fs_done(): file requests on their way to the ring and back. Which ones
 * those are tree_files.c knows.
 *
 * A request that the ring has is registered with its loop, as one of the thread pool's. Its
 * work_req is that of a work that is being done, so that uv_cancel() finds it busy, unless
 * the ring has yet to begin. What comes back undone goes to the pool.
 */
#ifndef RINGPOLL_UV_TREE_FILES_H
#define RINGPOLL_UV_TREE_FILES_H

static int ringpoll_uv_tree_takes(uv_loop_t* loop, uv_fs_t* req) {
  uint64_t id = 0;

  if (req->fs_type == UV_FS_READ &&
      !(loop->flags & RINGPOLL_UV_TREE_ASKED) &&
      ringpoll_uv_tree_file_read(loop->backend_fd,
                                 req->file,
                                 (const struct iovec*) req->bufs,
                                 req->nbufs,
                                 req->off,
                                 req,
                                 &id)) {
    req->work_req.loop = loop;
    req->work_req.work = NULL;
    req->work_req.done = uv__fs_done;
    QUEUE_INIT(&req->work_req.wq);
  }
  memcpy(req->reserved, &id, sizeof(id));
  return id != 0;
}

void ringpoll_uv_tree_files_done(uv_loop_t* loop) {
  void* user;
  int64_t result;
  uv_fs_t* req;

  while (ringpoll_uv_tree_file_taken(loop->backend_fd, &user, &result)) {
    req = (uv_fs_t*) user;
    memset(req->reserved, 0, sizeof(uint64_t));
    switch (result) {
    case UV_ECANCELED:
      uv__fs_done(&req->work_req, UV_ECANCELED);
      break;
    case UV__ERR(EAGAIN):
    case UV__ERR(EINTR):
    case UV__ERR(ENOMEM):
    case UV__ERR(EOPNOTSUPP):
      uv__work_submit(loop,
                      &req->work_req,
                      UV__WORK_FAST_IO,
                      uv__fs_work,
                      uv__fs_done);
      break;
    default:
      if (req->bufs != req->bufsml)
        uv__free(req->bufs);
      req->bufs = NULL;
      req->nbufs = 0;
      req->result = result;
      uv__fs_done(&req->work_req, 0);
    }
  }
}

#endif
