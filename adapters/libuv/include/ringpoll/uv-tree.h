/* SPDX-License-Identifier: MIT
 *
 * What a libuv that was configured --with-uring calls (`ringpoll integrate libuv`), and
 * nobody else: libringpoll-uv-tree.a is inside its libuv.so.1 and shows none of this.
 *
 * libuv's calls of epoll, sockets and files are met by the shim inside the same archive.
 * These functions are for what a program may do beside libuv: wait for its backend fd,
 * write to a stream's fd itself once libuv says that all is written, read it or pass it
 * on when libuv reads no more. Any thread that may use the loop may call them. Errors
 * are negative errno values, which libuv's are.
 */
#ifndef RINGPOLL_UV_TREE_H
#define RINGPOLL_UV_TREE_H

#ifdef __cplusplus
extern "C" {
#endif

struct iovec;

/* In uv_loop_t.flags: uv_backend_fd() was called. Some only look at the number (uvloop);
 * who waits for it does so while uv_run() does not run. So when that returns, the loop's
 * epoll fd becomes what it looks like: */
#define RINGPOLL_UV_TREE_ASKED 0x40000000u
/* a kernel epoll instance with all registrations, for good. 0, or -EBADF. */
int ringpoll_uv_tree_embed(int backend_fd);
/* The loop wants no more events of this stream, for now: what comes behind this stays in
 * the kernel, for whoever has the fd. What was received before is still the stream's. */
void ringpoll_uv_tree_read_stopped(int backend_fd, int fd);
/* Before the callbacks of writes run: 0, all that was written to the fd is the kernel's;
 * -EAGAIN, some of it waits until its peer takes more (POLLOUT is reported then). */
int ringpoll_uv_tree_written(int fd);
/* writev(2) past all batching, behind what was written before; never blocks for that. */
long ringpoll_uv_tree_try_write(int fd, const struct iovec *iov, int count);

#ifdef __cplusplus
}
#endif

#endif
