/* SPDX-License-Identifier: MIT
 *
 * libuv's streams and datagrams on a ring, under a libuv that knows nothing of it.
 *
 *     ringpoll_uv_tcp_t server;
 *     ringpoll_uv_tcp_init(loop, &server);     // the loop gets its ring
 *     ringpoll_uv_tcp_bind(&server, address, 0);
 *     ringpoll_uv_listen((ringpoll_uv_stream_t *)&server, 128, on_connection);
 *     uv_run(loop, UV_RUN_DEFAULT);
 *
 * Names, arguments, return values and callbacks are libuv's, with a prefix: what
 * uv_tcp_connect() does, ringpoll_uv_tcp_connect() does. Timers, signals, processes, files and
 * libuv's own handles live beside them on the same loop. Below, each loop has one set of
 * ringpoll.h: what is written in a turn goes out by one call, and what has come is taken by
 * one. Where there is no io_uring the same handles run on kernel epoll.
 *
 * Threads: as libuv. Everything about a loop is for the thread that runs it.
 *
 * Callbacks run from the loop alone, never inside a call; after a close callback none. Errors
 * are libuv's (UV_EAGAIN, …).
 *
 * Memory: handles and requests are the caller's, as in libuv: a handle until its close
 * callback, a request until its own. Their sizes are part of the ABI. `data` is the caller's,
 * `loop` and `handle` may be read, everything else is private. The buffers of a write stay the caller's
 * and unchanged until its callback; the array of uv_buf_t may go at once.
 *
 * The loop: a handle that is active and referenced, or has a request pending, keeps it alive
 * as in libuv; ours underneath do not. They, and one per open handle of ours, are seen by
 * uv_walk(), and are not to be closed there: ringpoll_uv_owns() knows them. With the last
 * close callback of our handles the set goes (unless ringpoll_uv_attach() holds it), and
 * uv_loop_close() answers as it would without us once uv_run() has returned: close all
 * handles, detach if attached, run the loop until nothing is left, uv_loop_close().
 *
 * The fd of a handle is the handle's: it may be looked at (ringpoll_uv_fileno(), getsockopt()),
 * not read, written, duplicated or closed: bytes are received before they are asked for.
 */
#ifndef RINGPOLL_UV_H
#define RINGPOLL_UV_H

#include <ringpoll/ringpoll.h>
#include <uv.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ------------------------------------------------------------------- loops */

/* Gives the loop a ring before its first handle of ours, and holds it there until
 * ringpoll_uv_detach(): each attach wants one. Not needed otherwise.
 * UV_EINVAL: `loop` is NULL; UV_EBUSY: another thread is running it; UV_EMFILE, UV_ENFILE,
 * UV_ENOMEM. With an error nothing has changed. */
RINGPOLL_API int ringpoll_uv_attach(uv_loop_t *loop);
/* Gives up one attach. With the last one, and no handle of ours open, the set ends at once;
 * what is left underneath closes when the loop runs. UV_EINVAL: not attached, or NULL;
 * UV_EBUSY: another thread is running it. */
RINGPOLL_API int ringpoll_uv_detach(uv_loop_t *loop);
/* The set of this loop, for ringpoll_get_stats() and nothing else. UV_EINVAL: it has none. */
RINGPOLL_API int ringpoll_uv_set(const uv_loop_t *loop);
/* 1: this handle of libuv's is one of this library's own, and is not for uv_close(). */
RINGPOLL_API int ringpoll_uv_owns(const uv_handle_t *handle);

/* ----------------------------------------------------------------- handles */

#define RINGPOLL_UV_HANDLE_FIELDS                                                                                  \
    void *data;                                                                                                    \
    uv_loop_t *loop;                                                                                               \
    void *inside;                                                                                                  \
    void *reserved[5];

typedef struct ringpoll_uv_handle_s { RINGPOLL_UV_HANDLE_FIELDS } ringpoll_uv_handle_t;
typedef struct ringpoll_uv_stream_s { RINGPOLL_UV_HANDLE_FIELDS } ringpoll_uv_stream_t;
typedef struct ringpoll_uv_tcp_s { RINGPOLL_UV_HANDLE_FIELDS } ringpoll_uv_tcp_t;
typedef struct ringpoll_uv_pipe_s { RINGPOLL_UV_HANDLE_FIELDS } ringpoll_uv_pipe_t;
typedef struct ringpoll_uv_udp_s { RINGPOLL_UV_HANDLE_FIELDS } ringpoll_uv_udp_t;

#define RINGPOLL_UV_REQUEST_FIELDS                                                                                 \
    void *inside[15];

typedef struct ringpoll_uv_connect_s {
    void *data;
    ringpoll_uv_stream_t *handle;
    RINGPOLL_UV_REQUEST_FIELDS
} ringpoll_uv_connect_t;
typedef struct ringpoll_uv_write_s {
    void *data;
    ringpoll_uv_stream_t *handle;
    RINGPOLL_UV_REQUEST_FIELDS
} ringpoll_uv_write_t;
typedef struct ringpoll_uv_shutdown_s {
    void *data;
    ringpoll_uv_stream_t *handle;
    RINGPOLL_UV_REQUEST_FIELDS
} ringpoll_uv_shutdown_t;

typedef void (*ringpoll_uv_close_cb)(ringpoll_uv_handle_t *handle);
typedef void (*ringpoll_uv_alloc_cb)(ringpoll_uv_handle_t *handle, size_t suggested_size, uv_buf_t *buf);
typedef void (*ringpoll_uv_read_cb)(ringpoll_uv_stream_t *stream, ssize_t nread, const uv_buf_t *buf);
typedef void (*ringpoll_uv_borrow_cb)(ringpoll_uv_stream_t *stream, ssize_t nread, struct ringpoll_buffer *buffer);
typedef void (*ringpoll_uv_connection_cb)(ringpoll_uv_stream_t *server, int status);
typedef void (*ringpoll_uv_connect_cb)(ringpoll_uv_connect_t *req, int status);
typedef void (*ringpoll_uv_write_cb)(ringpoll_uv_write_t *req, int status);
typedef void (*ringpoll_uv_shutdown_cb)(ringpoll_uv_shutdown_t *req, int status);

/* uv_close(), uv_is_active(), uv_is_closing(), uv_ref(), uv_unref(), uv_has_ref(), uv_fileno().
 * Bytes whose write callback has been called, or is due with status 0, still go out after a
 * close. Fds 0 to 2 stay open. */
RINGPOLL_API void ringpoll_uv_close(ringpoll_uv_handle_t *handle, ringpoll_uv_close_cb on_close);
RINGPOLL_API int ringpoll_uv_is_active(const ringpoll_uv_handle_t *handle);
RINGPOLL_API int ringpoll_uv_is_closing(const ringpoll_uv_handle_t *handle);
RINGPOLL_API void ringpoll_uv_ref(ringpoll_uv_handle_t *handle);
RINGPOLL_API void ringpoll_uv_unref(ringpoll_uv_handle_t *handle);
RINGPOLL_API int ringpoll_uv_has_ref(const ringpoll_uv_handle_t *handle);
RINGPOLL_API int ringpoll_uv_fileno(const ringpoll_uv_handle_t *handle, uv_os_fd_t *ret_fd);

/* ----------------------------------------------------------------- streams */

/* uv_listen() and its kin. A listener's connections are accepted by the ring, up to its
 * backlog; those that nobody asks for wait, as in the kernel's backlog. */
RINGPOLL_API int ringpoll_uv_listen(ringpoll_uv_stream_t *stream, int backlog, ringpoll_uv_connection_cb on_connection);
RINGPOLL_API int ringpoll_uv_accept(ringpoll_uv_stream_t *server, ringpoll_uv_stream_t *client);
RINGPOLL_API int ringpoll_uv_read_start(ringpoll_uv_stream_t *stream, ringpoll_uv_alloc_cb on_alloc,
                                        ringpoll_uv_read_cb on_read);
/* Reads without a copy, where the ring received the bytes. on_read's buffer is the library's
 * memory, lent: `length` bytes (that is nread) at `data`. The callee has it, copies the
 * struct where it wants to keep it, and gives it back once by ringpoll_return(), there or later, from
 * any thread, also when stream and loop are long gone. Lent buffers are missing from those that the
 * loop receives with. With UV_EOF or an error the buffer is NULL; nread is never 0. */
RINGPOLL_API int ringpoll_uv_read_start_borrowed(ringpoll_uv_stream_t *stream, ringpoll_uv_borrow_cb on_read);
RINGPOLL_API int ringpoll_uv_read_stop(ringpoll_uv_stream_t *stream);
/* An error that the kernel has to tell of a write that went out together with others is the
 * next call's, as if a larger send buffer had taken the bytes. */
RINGPOLL_API int ringpoll_uv_write(ringpoll_uv_write_t *req, ringpoll_uv_stream_t *stream, const uv_buf_t *bufs,
                                   unsigned nbufs, ringpoll_uv_write_cb on_written);
RINGPOLL_API int ringpoll_uv_try_write(ringpoll_uv_stream_t *stream, const uv_buf_t *bufs, unsigned nbufs);
RINGPOLL_API int ringpoll_uv_shutdown(ringpoll_uv_shutdown_t *req, ringpoll_uv_stream_t *stream,
                                      ringpoll_uv_shutdown_cb on_shutdown);
RINGPOLL_API int ringpoll_uv_is_readable(const ringpoll_uv_stream_t *stream);
RINGPOLL_API int ringpoll_uv_is_writable(const ringpoll_uv_stream_t *stream);
RINGPOLL_API size_t ringpoll_uv_stream_get_write_queue_size(const ringpoll_uv_stream_t *stream);

RINGPOLL_API int ringpoll_uv_tcp_init(uv_loop_t *loop, ringpoll_uv_tcp_t *tcp);
RINGPOLL_API int ringpoll_uv_tcp_open(ringpoll_uv_tcp_t *tcp, uv_os_sock_t fd);
RINGPOLL_API int ringpoll_uv_tcp_bind(ringpoll_uv_tcp_t *tcp, const struct sockaddr *address, unsigned flags);
RINGPOLL_API int ringpoll_uv_tcp_connect(ringpoll_uv_connect_t *req, ringpoll_uv_tcp_t *tcp,
                                         const struct sockaddr *address, ringpoll_uv_connect_cb on_connect);
RINGPOLL_API int ringpoll_uv_tcp_nodelay(ringpoll_uv_tcp_t *tcp, int enable);
RINGPOLL_API int ringpoll_uv_tcp_keepalive(ringpoll_uv_tcp_t *tcp, int enable, unsigned delay);
RINGPOLL_API int ringpoll_uv_tcp_getsockname(const ringpoll_uv_tcp_t *tcp, struct sockaddr *name, int *length);
RINGPOLL_API int ringpoll_uv_tcp_getpeername(const ringpoll_uv_tcp_t *tcp, struct sockaddr *name, int *length);
/* A reset for the peer. UV_EINVAL: a shutdown is pending. */
RINGPOLL_API int ringpoll_uv_tcp_close_reset(ringpoll_uv_tcp_t *tcp, ringpoll_uv_close_cb on_close);

/* AF_UNIX streams, and what else uv_pipe_open() takes. `ipc` must be 0: passing handles is
 * libuv's own. */
RINGPOLL_API int ringpoll_uv_pipe_init(uv_loop_t *loop, ringpoll_uv_pipe_t *pipe, int ipc);
RINGPOLL_API int ringpoll_uv_pipe_open(ringpoll_uv_pipe_t *pipe, uv_file fd);
RINGPOLL_API int ringpoll_uv_pipe_bind(ringpoll_uv_pipe_t *pipe, const char *name);
RINGPOLL_API void ringpoll_uv_pipe_connect(ringpoll_uv_connect_t *req, ringpoll_uv_pipe_t *pipe, const char *name,
                                           ringpoll_uv_connect_cb on_connect);
RINGPOLL_API int ringpoll_uv_pipe_getsockname(const ringpoll_uv_pipe_t *pipe, char *name, size_t *size);
RINGPOLL_API int ringpoll_uv_pipe_getpeername(const ringpoll_uv_pipe_t *pipe, char *name, size_t *size);

/* --------------------------------------------------------------- datagrams */

typedef struct ringpoll_uv_udp_send_s {
    void *data;
    ringpoll_uv_udp_t *handle;
    void *inside[32];
} ringpoll_uv_udp_send_t;

typedef void (*ringpoll_uv_udp_recv_cb)(ringpoll_uv_udp_t *udp, ssize_t nread, const uv_buf_t *buf,
                                        const struct sockaddr *address, unsigned flags);
typedef void (*ringpoll_uv_udp_send_cb)(ringpoll_uv_udp_send_t *req, int status);

/* uv_udp_*. Datagrams are received and sent many by one call; a send waits for the loop's
 * turn (or the close), not for its own. recv_cb is not called with 0 bytes and no address to say that
 * there is nothing. Flags: UV_UDP_IPV6ONLY, UV_UDP_REUSEADDR; UV_UDP_PARTIAL. */
RINGPOLL_API int ringpoll_uv_udp_init(uv_loop_t *loop, ringpoll_uv_udp_t *udp);
RINGPOLL_API int ringpoll_uv_udp_open(ringpoll_uv_udp_t *udp, uv_os_sock_t fd);
RINGPOLL_API int ringpoll_uv_udp_bind(ringpoll_uv_udp_t *udp, const struct sockaddr *address, unsigned flags);
RINGPOLL_API int ringpoll_uv_udp_connect(ringpoll_uv_udp_t *udp, const struct sockaddr *address);
RINGPOLL_API int ringpoll_uv_udp_send(ringpoll_uv_udp_send_t *req, ringpoll_uv_udp_t *udp, const uv_buf_t *bufs,
                                      unsigned nbufs, const struct sockaddr *address,
                                      ringpoll_uv_udp_send_cb on_sent);
RINGPOLL_API int ringpoll_uv_udp_try_send(ringpoll_uv_udp_t *udp, const uv_buf_t *bufs, unsigned nbufs,
                                          const struct sockaddr *address);
RINGPOLL_API int ringpoll_uv_udp_recv_start(ringpoll_uv_udp_t *udp, ringpoll_uv_alloc_cb on_alloc,
                                            ringpoll_uv_udp_recv_cb on_receive);
RINGPOLL_API int ringpoll_uv_udp_recv_stop(ringpoll_uv_udp_t *udp);
RINGPOLL_API int ringpoll_uv_udp_getsockname(const ringpoll_uv_udp_t *udp, struct sockaddr *name, int *length);
RINGPOLL_API int ringpoll_uv_udp_getpeername(const ringpoll_uv_udp_t *udp, struct sockaddr *name, int *length);
RINGPOLL_API size_t ringpoll_uv_udp_get_send_queue_size(const ringpoll_uv_udp_t *udp);
RINGPOLL_API size_t ringpoll_uv_udp_get_send_queue_count(const ringpoll_uv_udp_t *udp);

/* ------------------------------------------------------------------- files */

typedef struct ringpoll_uv_fs_s {
    void *data;
    uv_loop_t *loop;
    ssize_t result; /* when its callback is called: bytes, or a UV_E… */
    void *inside[20];
} ringpoll_uv_fs_t;

typedef void (*ringpoll_uv_fs_cb)(ringpoll_uv_fs_t *req);

/* uv_fs_read() and uv_fs_write(), by the ring where it can be had (see file requests in
 * ringpoll.h), by libuv's thread pool elsewhere, and inside the call where on_done is NULL
 * (and the result is returned). There is nothing to clean up after a request. The fd stays open, and the
 * bytes the kernel's, until the callback. */
RINGPOLL_API int ringpoll_uv_fs_read(uv_loop_t *loop, ringpoll_uv_fs_t *req, uv_file fd, const uv_buf_t *bufs,
                                     unsigned nbufs, int64_t offset, ringpoll_uv_fs_cb on_done);
RINGPOLL_API int ringpoll_uv_fs_write(uv_loop_t *loop, ringpoll_uv_fs_t *req, uv_file fd, const uv_buf_t *bufs,
                                      unsigned nbufs, int64_t offset, ringpoll_uv_fs_cb on_done);
/* uv_cancel(): 0, and the callback comes with UV_ECANCELED; UV_EBUSY: it has begun, or is over. */
RINGPOLL_API int ringpoll_uv_fs_cancel(ringpoll_uv_fs_t *req);

#ifdef __cplusplus
}
#endif

#endif
