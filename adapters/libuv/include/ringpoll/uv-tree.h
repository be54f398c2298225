/* SPDX-License-Identifier: MIT
 *
 * What a libuv that was configured --with-uring calls (`ringpoll integrate libuv`), and
 * nobody else: libringpoll-uv-tree.a is inside its libuv.so.1 and shows none of this.
 *
 * libuv's calls of epoll, sockets and files are met by the shim inside the same archive.
 * These functions are for what a program may do beside libuv: wait for its backend fd,
 * write to a stream's fd itself once libuv says that all is written; and for datagrams. Any thread that may
 * use the loop may call them. Errors are negative errno values, which libuv's are.
 */
#ifndef RINGPOLL_UV_TREE_H
#define RINGPOLL_UV_TREE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct iovec;
struct ringpoll_request;
struct uv_loop_s;
struct msghdr;
struct mmsghdr;

/* In uv_loop_t.flags: UV_LOOP_EPOLL was asked for. */
#define RINGPOLL_UV_TREE_EPOLL 0x20000000u
/* In uv_loop_t.flags: uv_backend_fd() was called. Some only look at the number (uvloop);
 * who waits for it does so while uv_run() does not run. So when that returns, the loop's
 * epoll fd becomes what it looks like: */
#define RINGPOLL_UV_TREE_ASKED 0x40000000u
/* a kernel epoll instance with all registrations, for good. 0, or -EBADF. */
int ringpoll_uv_tree_embed(int backend_fd);
/* Before the callbacks of writes run: 0, all that was written to the fd is the kernel's;
 * -EAGAIN, some of it waits until its peer takes more (POLLOUT is reported then). */
int ringpoll_uv_tree_written(int fd);
/* writev(2) past all batching, behind what was written before; never blocks for that. */
long ringpoll_uv_tree_try_write(int fd, const struct iovec *iov, int count);

/* File requests; src/unix/fs.c makes use of them in uv-tree-files.h. The fd in the event by
 * which a wait tells that results are there: */
#define RINGPOLL_UV_TREE_FILES (-2)
/* 1: the ring has it, and until ringpoll_uv_tree_file_taken() has given `user` back what the
 * request names is its. 0: it is to be made by other means. */
int ringpoll_uv_tree_file_begin(int backend_fd, const struct ringpoll_request *request, uint64_t *ret_id);
/* 1: it will be given back with -ECANCELED. 0: it has begun, or is none of the ring's. */
int ringpoll_uv_tree_file_cancel(int backend_fd, uint64_t id);
/* One that is done, or 0. A result of -EOPNOTSUPP: nothing was done, see ringpoll.h. */
int ringpoll_uv_tree_file_taken(int backend_fd, void **ret_user, int64_t *ret_result);
/* libuv's own: takes them all, and calls back. */
void ringpoll_uv_tree_files_done(struct uv_loop_s *loop);
/* uv_read_stop(): a program may read the stream's fd itself from now on, so that the ring
 * has to leave it alone. It does, unless reading starts again before the loop waits: that
 * asks for each of these fds (-1: no more), and has those given up that are not read. */
void ringpoll_uv_tree_stopped(int fd);
int ringpoll_uv_tree_next_stopped(void);
void ringpoll_uv_tree_give_up(int fd);

/* Datagrams: many are taken by one call, and handed out one by one. Each uv_udp_t has an
 * inbox, NULL until it first receives; what has come and is not handed out when recv_cb
 * stops the handle waits there until it starts again. One thread at a time. */
struct ringpoll_uv_tree_inbox;
#define RINGPOLL_UV_TREE_DATAGRAMS 64
/* Before the calls of recvmsg for one wake-up: how many they may be, `plain` where they are
 * libuv's own. */
int ringpoll_uv_tree_receives(struct ringpoll_uv_tree_inbox **inbox, int fd, unsigned loop_flags, int plain);
/* recvmsg(2), with -1 and errno: one name, one buffer. */
long ringpoll_uv_tree_receive(struct ringpoll_uv_tree_inbox *inbox, int fd, struct msghdr *message);
/* The same where the handle asked for recvmmsg(2): how many of its slots to offer; the call,
 * with -1 and errno. */
unsigned ringpoll_uv_tree_slots(struct ringpoll_uv_tree_inbox **inbox, int fd, unsigned loop_flags, unsigned most);
int ringpoll_uv_tree_receive_many(struct ringpoll_uv_tree_inbox *inbox, int fd, struct mmsghdr *messages, unsigned count);
/* sendmmsg(2), with -1 and errno. */
int ringpoll_uv_tree_send_many(int fd, struct mmsghdr *messages, unsigned count);
/* After either: whether any are left. */
int ringpoll_uv_tree_received(struct ringpoll_uv_tree_inbox *inbox);
/* Whether any are left, at another time. */
int ringpoll_uv_tree_unread(const struct ringpoll_uv_tree_inbox *inbox);
/* The handle is closed. */
void ringpoll_uv_tree_inbox_free(struct ringpoll_uv_tree_inbox **inbox);

#ifdef __cplusplus
}
#endif

#endif
