/* SPDX-License-Identifier: MIT
 *
 * ringpoll: epoll's calls, carried by io_uring.
 *
 * A *set* looks like an epoll instance and is named by a file descriptor that
 * really is one (the identity): it can be duplicated, passed, nested and
 * polled like any other epoll fd. Underneath, one io_uring carries the polls of
 * those fds that it serves exactly as epoll does; a kernel epoll instance
 * serves the rest, and all of them where there is no io_uring.
 *
 * Conventions, for every function here unless it says otherwise:
 *  - Errors are negative errno values; errno itself is left alone. Where epoll
 *    has the same call, the value is the one that epoll gives.
 *  - Nothing is printed, no callback runs (but those of ringpoll_try_sendv_zc()), no signal
 *    disposition changes.
 *  - Any thread may call any function at any time. Exactly one thread should
 *    wait on a set: the first that does so owns its ring. When another one
 *    waits too, the set moves to kernel epoll for good, losing no event.
 *  - No function keeps a pointer that it was given, but for requests and zero-copy sends.
 *
 * Who tells the library what: io_uring holds a reference on a file while a
 * poll on it is in flight, so a close that the library does not see leaves the
 * peer without its FIN. A program that uses this header itself closes watched
 * fds by ringpoll_close() (or takes them out by EPOLL_CTL_DEL and calls
 * ringpoll_fd_closing() first). The LD_PRELOAD shim does so for any program.
 */
#ifndef RINGPOLL_RINGPOLL_H
#define RINGPOLL_RINGPOLL_H

#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define RINGPOLL_API __attribute__((visibility("default")))
#else
#define RINGPOLL_API
#endif

#define RINGPOLL_VERSION_MAJOR 0
#define RINGPOLL_VERSION_MINOR 1
#define RINGPOLL_VERSION_PATCH 0

/* The version of the library that is loaded, as "0.1.0". Static storage. */
RINGPOLL_API const char *ringpoll_version(void);

/* ---------------------------------------------------------------- options */

/* The identity fd is close-on-exec, as by EPOLL_CLOEXEC. */
#define RINGPOLL_CLOEXEC (1u << 0)
/* Never a ring: the set is a kernel epoll instance and nothing else. */
#define RINGPOLL_KERNEL (1u << 1)
/* ringpoll_create() fails (with the kernel's errno) where no ring can be had,
 * instead of making a set that runs on kernel epoll. */
#define RINGPOLL_REQUIRE (1u << 2)
/* The caller reports every fd's birth, duplication and close by the
 * ringpoll_fd_ functions. A known fd then costs no system call in
 * ringpoll_ctl(); one that was never reported is served by kernel epoll. */
#define RINGPOLL_TRACKED (1u << 3)
/* Accept a ring without IORING_SETUP_DEFER_TASKRUN (Linux before 6.1). There a
 * poll that fires makes other blocking calls of the thread that owns the ring
 * return EINTR, so only a program that expects that should ask for it.
 * Without this flag such kernels serve the set by kernel epoll. */
#define RINGPOLL_ANY_RING (1u << 4)
/* A kernel thread submits and polls (IORING_SETUP_SQPOLL). It spins for
 * sq_thread_idle_ms and keeps the credentials of the ring's creator; on most
 * machines it costs more than it saves, since each wait first sees to it that the
 * thread has come up with what has happened. No call of the program is
 * interrupted by it. Implies RINGPOLL_ANY_RING. */
#define RINGPOLL_SQPOLL (1u << 5)
/* With RINGPOLL_SQPOLL: bind that thread to sq_thread_cpu. */
#define RINGPOLL_SQ_AFF (1u << 6)
/* Receives by the ring: connected stream sockets of the set are *adopted*, their
 * bytes received into buffers of the library before the program asks for them.
 * The caller makes every call on its sockets by the functions under "adopted
 * sockets" below. Implies RINGPOLL_TRACKED. Without DEFER_TASKRUN, buffer rings and
 * multishot receives (before Linux 6.1) nothing is adopted. */
#define RINGPOLL_ADOPT (1u << 7)
/* Sends of adopted sockets are batched: they go out with the owner's next wait, or
 * by ringpoll_flush(), which the caller calls before anything that can block, or
 * that tells somebody else. Implies RINGPOLL_ADOPT. */
#define RINGPOLL_BATCH (1u << 8)
/* Accepts by the ring: listeners of the set whose connections the program takes by
 * ringpoll_try_accept() are adopted, see there. Implies RINGPOLL_ADOPT. Without
 * multishot accepts (before Linux 5.19) none is. */
#define RINGPOLL_ACCEPT (1u << 9)
/* Busy adopted sockets, up to 1024, get a slot in the ring's table of files, and
 * batched sends name that instead of the fd. Implies RINGPOLL_BATCH. On the machines
 * measured so far it gained nothing. Without sparse tables (Linux 5.19) it is ignored. */
#define RINGPOLL_FIXED_FILES (1u << 10)
/* With RINGPOLL_ADOPT and its kin: only what the caller declares (RINGPOLL_FD_DECLARED)
 * is on the ring, and adopted. The set is not RINGPOLL_TRACKED then: of all other fds
 * nothing need be reported, they are kernel epoll's, and read and written by plain calls.
 * There is a ring while there are declared fds; where the others are the busy ones the set
 * leaves it for a while. */
#define RINGPOLL_DECLARED (1u << 11)

struct ringpoll_options {
    uint32_t size;              /* sizeof(struct ringpoll_options) */
    uint32_t flags;             /* RINGPOLL_*; an unknown bit is -EINVAL */
    uint32_t sq_entries;        /* 0: 256. At most 32768 */
    uint32_t cq_entries;        /* 0: 4096. At least sq_entries, at most 65536 */
    uint32_t sq_thread_cpu;     /* with RINGPOLL_SQ_AFF */
    uint32_t sq_thread_idle_ms; /* with RINGPOLL_SQPOLL; 0: 1000 */
    uint64_t masked_features;   /* bits of RINGPOLL_FEATURE_* to do without,
                                   beside those of $RINGPOLL_MASK */
    uint32_t buffers;           /* with RINGPOLL_ADOPT: buffers of 5 KiB that the
                                   set's unread bytes may take, a power of two from
                                   8 to 32768; 0: 512 */
    uint32_t stream_bytes;      /* with RINGPOLL_ADOPT: a socket with so many unread
                                   bytes is given back to plain reads for a while;
                                   0: 8192 */
    uint32_t send_bytes;        /* with RINGPOLL_BATCH: so many bytes may wait per
                                   socket, at most 16 MiB; 0: 65536 */
    uint32_t reserved;          /* 0 */
};

/* ------------------------------------------------------------------- sets */

/* Makes a set and returns its identity fd, which the caller owns and ends by
 * ringpoll_close(). `options` may be NULL (all zero). No ring is made yet: the
 * first wait makes it, in the thread that waits.
 * -EINVAL: options->size is 0 or larger than this library knows with non-zero
 * bytes beyond, an unknown flag, or a number out of range; -EMFILE, -ENFILE,
 * -ENOMEM as epoll_create1(); with RINGPOLL_REQUIRE also what io_uring_setup()
 * answered. Needs no kernel feature. */
RINGPOLL_API int ringpoll_create(const struct ringpoll_options *options);

/* epoll_ctl(2): the same operations, flags and errors. `epfd` may be any
 * kernel epoll fd too, and is then passed on. The change takes effect at once
 * as seen by the program; the kernel hears of it with the next wait, so adding,
 * removing and adding one fd between two waits costs nothing. */
RINGPOLL_API int ringpoll_ctl(int epfd, int op, int fd, struct epoll_event *event);

/* epoll_pwait2(2): returns the number of events, 0 at the timeout, or a
 * negative errno. `timeout` NULL waits for ever; `sigmask` NULL leaves the
 * signal mask alone. Like epoll's it is never restarted after a signal: EINTR.
 * Where IORING_FEAT_EXT_ARG is missing (before 5.11) the set is kernel epoll. */
RINGPOLL_API int ringpoll_wait(int epfd, struct epoll_event *events, int maxevents,
                               const struct timespec *timeout, const sigset_t *sigmask);

/* For a set inside another loop, which sleeps by its own means. The thread that waits on
 * the set calls it right before that sleep, behind a wait with a zero timeout. It returns
 * an fd of the library, to be polled for reading, level-triggered, as `epfd` itself always is
 * meanwhile: one of them is, or becomes, readable when a wait may have something to report (or for no
 * reason at all). `woken` tells whether one has been seen readable since the last call. -EAGAIN:
 * something is there, or to be done: wait with a zero timeout first. On a ring the fd is an
 * eventfd, which stays the same; on kernel epoll it is `epfd` itself, and so for good. What
 * the thread changes between this call and its sleep is not heard of before the next wait.
 * Needs DEFER_TASKRUN and its flag (Linux 6.1), or the set moves to kernel epoll.
 * -EBADF: not open; -EINVAL: not a set. */
RINGPOLL_API int ringpoll_sleep_fd(int epfd, int woken);

/* A RINGPOLL_DECLARED set in a process that has declared no fd is the kernel epoll instance
 * that `epfd` names: its user may call epoll_wait(2) and epoll_ctl(2) on it directly until the
 * first is declared, and the ones above from then on. Here it tells how often it did, for the
 * statistics, and how many fds were added less those removed. Any thread. -EBADF: not open;
 * -EINVAL: no such set; -EBUSY: inside a signal handler that has interrupted the library. */
RINGPOLL_API int ringpoll_count_plain(int epfd, unsigned waits, unsigned events, unsigned ctls, int added);

/* Moves a set to kernel epoll for good, losing no event: from then on the
 * identity fd can be nested in, or polled by, anything. -EBADF: not open;
 * -EINVAL: not a set. */
RINGPOLL_API int ringpoll_demote(int epfd);

/* close(2) for any fd: tells the library (ringpoll_fd_closing) and closes. A
 * set whose identity has no other duplicate ends with it. */
RINGPOLL_API int ringpoll_close(int fd);

/* ------------------------------------------------------- the life of an fd
 *
 * What the program does to its fds, as far as the library must know. They are
 * async-signal-safe, return nothing and never fail: in doubt the library
 * serves the fd by kernel epoll. An fd that no set watches costs one table
 * look-up. The set of an fd that was duplicated, inherited by a child or passed
 * to another process keeps epoll's meaning: at the latest when such an fd is
 * closed, its registration moves to kernel epoll and lives on as long as the file
 * does. */

#define RINGPOLL_FD_OTHER 0u     /* anything else: kernel epoll */
#define RINGPOLL_FD_TCP 1u       /* AF_INET or AF_INET6 stream socket */
#define RINGPOLL_FD_UNIX 2u      /* AF_UNIX stream socket */
#define RINGPOLL_FD_PIPE 3u      /* pipe or FIFO */
#define RINGPOLL_FD_EVENTFD 4u   /* eventfd without EFD_SEMAPHORE */
#define RINGPOLL_FD_KIND 0x0fu   /* mask of the above */
#define RINGPOLL_FD_CONNECTED (1u << 4) /* connected, or connecting */
#define RINGPOLL_FD_NONBLOCK (1u << 5)  /* O_NONBLOCK is set */
/* A set with RINGPOLL_DECLARED may adopt it: until ringpoll_fd_closing() the caller makes
 * every call on it by the functions under "adopted sockets". To be said before it is added: what
 * was added undeclared stays kernel epoll's in that set until it is deleted there. */
#define RINGPOLL_FD_DECLARED (1u << 6)

/* `fd` has just been made; nobody else has it. A set is told of its own
 * identity by ringpoll_create(). */
RINGPOLL_API void ringpoll_fd_opened(int fd, uint32_t kind_and_flags);
/* connect(2) on it succeeded or is in progress. */
RINGPOLL_API void ringpoll_fd_connected(int fd);
/* O_NONBLOCK was switched on (1) or off (0). */
RINGPOLL_API void ringpoll_fd_nonblock(int fd, int on);
/* `fd` will be closed by the next call, or replaced by dup2 or dup3. Returns
 * when no poll of the calling process holds it any more. */
RINGPOLL_API void ringpoll_fd_closing(int fd);
/* `fd` leaves the library, and may live on: the same, but its connection is left alone.
 * Where another thread owns the ring and is busy outside its wait, a poll holds the
 * file until that thread waits. */
RINGPOLL_API void ringpoll_fd_forget(int fd);
/* The same for all of first..last, both included, except the library's own. */
RINGPOLL_API void ringpoll_fd_closing_range(unsigned first, unsigned last);
/* `to` is a duplicate of `from` (dup, dup2, dup3, F_DUPFD). */
RINGPOLL_API void ringpoll_fd_duplicated(int from, int to);
/* Another process may have it from now on (SCM_RIGHTS), or the library may
 * miss what is done to it. */
RINGPOLL_API void ringpoll_fd_shared(int fd);
/* The same for every fd that stands in this message (SCM_RIGHTS), before it is sent,
 * or after it was received. ringpoll_sendmsg() and ringpoll_recvmsg() do so. */
RINGPOLL_API void ringpoll_fds_shared(const struct msghdr *message);
/* It will be closed, or used, in ways that nobody reports (fdopen), or is a
 * listener now: kernel epoll serves it for good. */
RINGPOLL_API void ringpoll_fd_leave(int fd);
/* A read of any kind took place: `asked` bytes were wanted and `result` is
 * their number or a negative errno. A hint: it spares the library a look at an
 * fd that was seen drained. Report all reads of an fd, or none. Only for reads without flags beyond MSG_DONTWAIT
 * and MSG_NOSIGNAL; report others with `asked` 0. */
RINGPOLL_API void ringpoll_fd_read(int fd, size_t asked, long result);
/* 1: `fd` belongs to the library (a ring, a number of its own for a set): a close
 * loop must leave it alone. 0: it does not. */
RINGPOLL_API int ringpoll_fd_is_internal(int fd);
/* The program is about to make `fd` its own by dup2 or dup3: if the library has
 * it, the library moves elsewhere. 0; -EBUSY where that cannot be done now. */
RINGPOLL_API int ringpoll_fd_vacate(int fd);
/* 1: `fd` is a stream socket (kind TCP or UNIX) that a ring polls, so that
 * recv(2) and send(2) without flags do what read(2) and write(2) do. 0: not so, or
 * not known. */
RINGPOLL_API int ringpoll_fd_is_stream_on_ring(int fd);
/* 1: `fd` is a set's identity, or a duplicate of one. 0: it is not. */
RINGPOLL_API int ringpoll_fd_is_set(int fd);

/* -------------------------------------------------------- adopted sockets
 *
 * A set made with RINGPOLL_ADOPT takes bytes out of its sockets before the
 * program reads. So every read, and whatever else depends on what is unread, asks
 * the library first. The try functions answer like the system call of their name:
 * a number of bytes, 0 at the end of file, a negative errno; or RINGPOLL_PASS,
 * which means that the library has nothing of this fd and the caller shall make
 * the call itself (and may report it by ringpoll_fd_read). They never block, but
 * for MSG_WAITALL on a blocking fd. The functions without "try" make the system
 * call, too, and report it: they stand for the call of their name on any fd, known
 * to the library or not, with a negative errno where that has -1. They are no
 * cancellation points.
 *
 * Any thread may call them. The thread that waits on the set is answered from the
 * queue; when another one reads, the socket is given back to the kernel for good.
 * A signal handler that interrupts the library gets -EAGAIN (-EINTR on a blocking
 * fd). */

#define RINGPOLL_PASS ((long)-4096)

RINGPOLL_API long ringpoll_read(int fd, void *buffer, size_t length);
RINGPOLL_API long ringpoll_readv(int fd, const struct iovec *iov, int count);
RINGPOLL_API long ringpoll_recv(int fd, void *buffer, size_t length, int flags);
RINGPOLL_API long ringpoll_recvmsg(int fd, struct msghdr *message, int flags);
RINGPOLL_API long ringpoll_write(int fd, const void *buffer, size_t length);
RINGPOLL_API long ringpoll_writev(int fd, const struct iovec *iov, int count);
RINGPOLL_API long ringpoll_send(int fd, const void *buffer, size_t length, int flags);
RINGPOLL_API long ringpoll_sendmsg(int fd, const struct msghdr *message, int flags);

RINGPOLL_API long ringpoll_try_recv(int fd, void *buffer, size_t length, int flags);
RINGPOLL_API long ringpoll_try_readv(int fd, const struct iovec *iov, int count);
RINGPOLL_API long ringpoll_try_recvmsg(int fd, struct msghdr *message, int flags);
/* Received bytes without a copy: the library's own buffer, lent until
 * ringpoll_return(), which any thread may call, also when the socket and its set
 * are long gone. A lent buffer is missing from the set's `buffers`. ringpoll_borrow
 * answers like ringpoll_try_recv (with MSG_DONTWAIT or 0 as flags): the number of
 * bytes at ret_buffer->data, -EAGAIN, another negative errno, or RINGPOLL_PASS: read
 * by yourself. Passed fds that came with the bytes are closed. */
struct ringpoll_buffer {
    void *data;    /* the caller may write to it */
    size_t length;
    void *pool;    /* the library's */
    uint32_t number, reserved;
};
RINGPOLL_API long ringpoll_borrow(int fd, struct ringpoll_buffer *ret_buffer, int flags);
RINGPOLL_API void ringpoll_return(struct ringpoll_buffer *buffer);
/* A buffer like a borrowed one, of `length` bytes or more, for what RINGPOLL_PASS tells the
 * caller to read by itself: so that all bytes can be handed on, and given back, alike.
 * 0 or -ENOMEM. Any thread. */
RINGPOLL_API int ringpoll_buffer_new(size_t length, struct ringpoll_buffer *ret_buffer);
/* The same by the buffer's `pool` and any address in its bytes, for who has room for no
 * more. Once per buffer. */
RINGPOLL_API void ringpoll_return_at(void *pool, const void *address);
/* Writes. Without RINGPOLL_BATCH they only tell of an error that a receive of the
 * library took away; with it, the bytes are taken as a kernel's send buffer takes
 * them: a later error is the next call's. */
RINGPOLL_API long ringpoll_try_send(int fd, const void *buffer, size_t length, int flags);
RINGPOLL_API long ringpoll_try_sendv(int fd, const struct iovec *iov, int count, int flags);
/* A zero-copy send: the kernel sends from the caller's memory, which stays as it is until the
 * peer has acknowledged the bytes. Answers as sendmsg(2) with MSG_DONTWAIT: how many bytes it
 * has taken, behind all that was written before, maybe not all (EPOLLOUT tells when there is
 * room), or a negative errno, or RINGPOLL_PASS: not so, send by other means, as ever. Only
 * where bytes were taken is the memory lent (all that `iov` names; the array itself is not
 * kept), and `release(argument)` then called, once, when the kernel reads it no more: in the
 * thread that sent it, inside a later ringpoll_wait(), of whatever set, or
 * ringpoll_zc_reclaim(), or when that thread ends, also where the fd, the watch and the set are
 * long gone. A wait of a RINGPOLL_DECLARED set in which that happens does not sleep on: it
 * returns what there is, maybe 0 before its time. The function may use its memory and the
 * functions of this section, but not wait on or close a set. Memory is never released where the kernel's word is lost (a ring that broke, io_uring
 * forbidden meanwhile, a thread that ended), nor, of what its parent sent, in a child of fork.
 * `flags`: MSG_DONTWAIT, MSG_NOSIGNAL.
 *
 * RINGPOLL_PASS from another thread than the one that waits on the set; unless the fd is a connected
 * TCP socket (RINGPOLL_FD_TCP, RINGPOLL_FD_CONNECTED), non-blocking, watched by that set alone
 * and on its ring; below ringpoll_zc_least(); on loopback, and to an address of the socket's own;
 * on a connection of which the kernel has said that it copies, or has yet to say what it did
 * with the first; for want of memory that may be locked (RLIMIT_MEMLOCK). Needs a ring with
 * DEFER_TASKRUN and SEND_ZC with its report (Linux 6.2). */
RINGPOLL_API long ringpoll_try_sendv_zc(int fd, const struct iovec *iov, int count, int flags,
                                        void (*release)(void *argument), void *argument);
/* From so many bytes on it is worth a try now; SIZE_MAX: it is not. Two system calls the first
 * time, none after that. */
RINGPOLL_API size_t ringpoll_zc_least(int fd);
/* Releases what is due of the calling thread's, and waits for more, up to `timeout` (NULL: for
 * ever). Returns how many of its sends the kernel has yet to let go of. */
RINGPOLL_API int ringpoll_zc_reclaim(const struct timespec *timeout);
/* Sends all that the calling thread's sets hold back. A few instructions when there
 * is nothing. Returns how many sockets of the process have bytes left that were taken from
 * the program, and that their peers have no room for: ringpoll_fd_flush() tells which. */
RINGPOLL_API int ringpoll_flush(void);
/* The same for one fd, before a call that writes to it by other means: 0, or -EAGAIN
 * where its peer does not take what waits (on a blocking fd after five seconds). */
RINGPOLL_API int ringpoll_fd_flush(int fd);
/* shutdown(2) will be called with this `how`. Where no more will be written, as
 * ringpoll_fd_flush, but it waits for the peer, up to five seconds, whatever O_NONBLOCK
 * says. Where no more will be read, as ringpoll_fd_release. Edges are made anew, as
 * shutdown(2) makes them. */
RINGPOLL_API void ringpoll_fd_shutdown(int fd, int how);
/* A write by other means found its socket full: EPOLLOUT is reported when there is
 * room. */
RINGPOLL_API void ringpoll_fd_full(int fd);
/* 1: O_NONBLOCK is known to be set. */
RINGPOLL_API int ringpoll_fd_is_nonblock(int fd);
/* FIONREAD: 0: nothing known; 1: *ret_bytes wait in the library, and what the
 * kernel has comes on top; 2: *ret_bytes is all there is. */
RINGPOLL_API int ringpoll_try_unread(int fd, int *ret_bytes);
/* The error (a positive errno) that the next call on this socket would have
 * returned, and SO_ERROR; forgotten by this call. 0: ask the kernel. */
RINGPOLL_API int ringpoll_try_error(int fd);
/* What poll(2) has to report beside what the kernel says: EPOLL bits. Call
 * ringpoll_fd_release() first. */
RINGPOLL_API uint32_t ringpoll_fd_pending(int fd);
/* Something will be done to the socket that the functions here do not cover: when
 * this returns, the ring receives nothing for it. What was received already is
 * still returned by the try functions first. With `for_good` it is never adopted
 * again, otherwise after a while. */
RINGPOLL_API void ringpoll_fd_release(int fd, int for_good);

/* ------------------------------------------------------- adopted listeners
 *
 * A set made with RINGPOLL_ACCEPT takes connections out of the backlog before the
 * program accepts them. The caller reports listen() and each accept that it makes
 * itself, asks ringpoll_try_accept() first, and calls ringpoll_fd_release() before
 * poll(2), shutdown(2) and whatever else these functions do not cover. Only a listener
 * that is non-blocking, in one set, level- or edge-triggered without EPOLLEXCLUSIVE,
 * and that nobody else may have (no duplicate, no child) is adopted. A connection that
 * waits in the library has an fd number already; ringpoll_fd_is_internal() says so. */

/* listen(2) succeeded, with this backlog. Instead of ringpoll_fd_leave(). */
RINGPOLL_API void ringpoll_fd_listening(int fd, int backlog);
/* accept4(2) was called on it with these flags, and with room for the peer's address or
 * not; `result` is the new fd or a negative errno. The caller reports the new fd by
 * ringpoll_fd_opened(). */
RINGPOLL_API void ringpoll_fd_accepted(int fd, int result, int flags, int with_address);
/* accept4(2), from the queue: the new fd, whose birth is known, or a negative errno.
 * RINGPOLL_PASS: make the call, and report it. Never blocks. */
RINGPOLL_API long ringpoll_try_accept(int fd, struct sockaddr *address, socklen_t *length, int flags);
/* Both, and what has to be reported: accept4(2) of any fd, with a negative errno where
 * that has -1. No cancellation point. */
RINGPOLL_API long ringpoll_accept(int fd, struct sockaddr *address, socklen_t *length, int flags);

/* ---------------------------------------------------------- file requests
 *
 * Reads and writes of files, and a few other calls that may wait for a disk, which the
 * set's ring makes while the program goes on. They begin with the next ringpoll_wait(), all
 * of them together, and what is cached is read inside that. When some are done,
 * ringpoll_wait() reports one event, EPOLLIN with the `data` of the last request, and
 * ringpoll_request_take() gives the results. Meant for regular files and block devices
 * without O_DIRECT (with it, a read may be waited for in ringpoll_wait()); others are read
 * as by a blocking read.
 *
 * What is asked for in one turn and is above 64 KiB is copied by a kernel worker, and of
 * what is not about 1 MiB is read in one wait; the rest comes in the next ones.
 *
 * The thread that waits on the set submits and cancels; before the first wait of all any
 * thread may. Without a ring that has DEFER_TASKRUN (Linux before 6.1), with
 * RINGPOLL_SQPOLL, on a set that is on kernel epoll, and from other threads nothing is
 * taken: -ENOTSUP, and the caller reads by other means. */

#define RINGPOLL_REQUEST_READ 1u   /* fd, iov, count, offset */
#define RINGPOLL_REQUEST_WRITE 2u  /* the same */
#define RINGPOLL_REQUEST_OPEN 3u   /* path, flags and mode as of open(2) */
#define RINGPOLL_REQUEST_CLOSE 4u  /* fd, no set's; as by ringpoll_close() */
#define RINGPOLL_REQUEST_FSYNC 5u  /* fd; flags 1: as fdatasync(2) */
#define RINGPOLL_REQUEST_RENAME 6u /* path becomes second_path */
#define RINGPOLL_REQUEST_UNLINK 7u /* path */

struct ringpoll_request {
    uint32_t size;      /* sizeof(struct ringpoll_request) */
    uint32_t operation; /* RINGPOLL_REQUEST_* */
    int32_t fd;
    uint32_t count;     /* of pieces, 1 to 1024 */
    const struct iovec *iov;
    int64_t offset;     /* -1: the file's current position; then `count` must be 1 */
    void *user;         /* comes back with the result */
    epoll_data_t data;  /* of the event by which waits tell; the last request's counts */
    const char *path, *second_path;
    uint32_t flags, mode;
    uint64_t reserved;  /* 0 */
};

struct ringpoll_completion {
    void *user;
    int64_t result; /* as of the system call, or a negative errno */
};

/* Takes a request. The array `iov`, the bytes that it names and the paths are the
 * library's, and the kernel's, until the result was taken. The fd must not be closed before that, either. 0, and *ret_id (which may be NULL) for
 * ringpoll_request_cancel(); -EINVAL: a size, an operation, a count or an offset that is
 * not one; -ENOTSUP: see above, and no memory; -EBADF, -EINVAL: no set. */
RINGPOLL_API int ringpoll_request_submit(int epfd, const struct ringpoll_request *request, uint64_t *ret_id);

/* Only a request that the kernel has not been given yet. */
#define RINGPOLL_REQUEST_UNSTARTED (1u << 0)

/* 0: its result is -ECANCELED, nothing was read or written. -EINPROGRESS: the kernel was
 * asked, and the result tells whether in time. -EBUSY: it is done or, with
 * RINGPOLL_REQUEST_UNSTARTED, from another thread, or with a part read at the current
 * position, has begun. -ENOENT: there is no such request, or its result was
 * taken. In each case the result comes, if one was to come. */
RINGPOLL_API int ringpoll_request_cancel(int epfd, uint64_t id, uint32_t flags);

/* Up to `max` results, in the order in which they came; returns their number, 0 for none.
 * Any thread. A result of -ENOTSUP: nothing was done, since there is no ring (any more):
 * read by other means. -EIO may also say that the kernel gave no answer, and that it is not
 * known what was done. When a set leaves its ring it cancels, and waits for, all that the
 * kernel has; when the thread that waits on it closes it, too, and results that nobody
 * took are forgotten. Where another thread closes it, that is done when its owner comes by.
 * In a child of fork the results are -ECANCELED. */
RINGPOLL_API int ringpoll_request_take(int epfd, struct ringpoll_completion *completions, int max);

/* ------------------------------------------------------------ the process */

/* Around fork(2), in the forking thread: prepare before, then parent in the
 * parent and child in the child. A child never touches its parent's rings: its
 * first use of an inherited set makes a private one on kernel epoll. */
RINGPOLL_API void ringpoll_fork_prepare(void);
RINGPOLL_API void ringpoll_fork_parent(void);
RINGPOLL_API void ringpoll_fork_child(void);
/* A child was, or will be, made that has all fds for a while and that the three
 * calls above do not cover (vfork, posix_spawn). */
RINGPOLL_API void ringpoll_fork_elsewhere(void);
/* This process will exec: sets whose identity survives it move to kernel
 * epoll. A thread with zero-copy sends that the kernel has yet to let go of should not: in it
 * execve(2) waits until the peers have acknowledged all, and SIGKILL does not end that (Linux
 * 6.18). Where ringpoll_zc_reclaim() says that some are out, another thread execs at once. */
RINGPOLL_API void ringpoll_exec_prepare(void);
/* io_uring may be forbidden from now on, or must not keep today's credentials:
 * with `for_good` every ring of the process is given up (its set moves to kernel
 * epoll at the latest with its next call) and no new one is made; without, only
 * rings whose kernel thread keeps credentials (RINGPOLL_SQPOLL) are. Call it
 * before prctl(PR_SET_SECCOMP), seccomp() and the set*id calls. */
RINGPOLL_API void ringpoll_process_restricted(int for_good);
/* Cancels everything in flight of the rings that the calling thread owns, so
 * that files are free the moment the process is gone. For exit handlers. */
RINGPOLL_API void ringpoll_process_exiting(void);

/* ------------------------------------------------------------------ probe */

#define RINGPOLL_FEATURE_URING (UINT64_C(1) << 0)            /* io_uring_setup works */
#define RINGPOLL_FEATURE_DEFER (UINT64_C(1) << 1)            /* DEFER_TASKRUN, 6.1 */
#define RINGPOLL_FEATURE_SINGLE_ISSUER (UINT64_C(1) << 2)    /* 6.0 */
#define RINGPOLL_FEATURE_COOP (UINT64_C(1) << 3)             /* COOP_TASKRUN, 5.19 */
#define RINGPOLL_FEATURE_TASKRUN_FLAG (UINT64_C(1) << 4)     /* 5.19 */
#define RINGPOLL_FEATURE_SUBMIT_ALL (UINT64_C(1) << 5)       /* 5.18 */
#define RINGPOLL_FEATURE_CQSIZE (UINT64_C(1) << 6)           /* 5.5 */
#define RINGPOLL_FEATURE_CLAMP (UINT64_C(1) << 7)            /* 5.6 */
#define RINGPOLL_FEATURE_SQPOLL (UINT64_C(1) << 8)           /* 5.1; unprivileged 5.11 */
#define RINGPOLL_FEATURE_NO_SQARRAY (UINT64_C(1) << 9)       /* 6.6 */
#define RINGPOLL_FEATURE_EXT_ARG (UINT64_C(1) << 10)         /* 5.11 */
#define RINGPOLL_FEATURE_NODROP (UINT64_C(1) << 11)          /* 5.5 */
#define RINGPOLL_FEATURE_REGISTERED_RING (UINT64_C(1) << 12) /* 5.18 */
#define RINGPOLL_FEATURE_MULTISHOT_POLL (UINT64_C(1) << 13)  /* 5.13 */
#define RINGPOLL_FEATURE_POLL_UPDATE (UINT64_C(1) << 14)     /* 5.13 */
#define RINGPOLL_FEATURE_CQE_SKIP (UINT64_C(1) << 15)        /* 5.17 */
#define RINGPOLL_FEATURE_CANCEL_FD (UINT64_C(1) << 16)       /* 5.19 */
#define RINGPOLL_FEATURE_SYNC_CANCEL (UINT64_C(1) << 17)     /* 6.0 */
#define RINGPOLL_FEATURE_MULTISHOT_ACCEPT (UINT64_C(1) << 18) /* 5.19 */
#define RINGPOLL_FEATURE_BUF_RING (UINT64_C(1) << 19)        /* 5.19 */
#define RINGPOLL_FEATURE_MULTISHOT_RECV (UINT64_C(1) << 20)  /* 6.0 */
#define RINGPOLL_FEATURE_SPARSE_FILES (UINT64_C(1) << 21)    /* 5.19 */
#define RINGPOLL_FEATURE_SEND_ZC (UINT64_C(1) << 22)         /* with a report of copies, 6.2 */
#define RINGPOLL_FEATURE_NO_IOWAIT (UINT64_C(1) << 23)       /* 6.15 */
#define RINGPOLL_FEATURE_ABS_TIMER (UINT64_C(1) << 24)       /* 6.12 */
#define RINGPOLL_FEATURE_READ_MULTISHOT (UINT64_C(1) << 25)  /* 6.7 */
#define RINGPOLL_FEATURE_RECV_BUNDLE (UINT64_C(1) << 26)     /* 6.10 */
#define RINGPOLL_FEATURE_NAPI (UINT64_C(1) << 27)            /* 6.9 */
#define RINGPOLL_FEATURE_RESIZE (UINT64_C(1) << 28)          /* 6.13 */
#define RINGPOLL_FEATURE_RECV_END (UINT64_C(1) << 29)        /* 7.0, and fixed stable kernels */
#define RINGPOLL_FEATURE_COUNT 30

/* The name of feature bit `index`, as in $RINGPOLL_MASK after "no-" and in
 * `ringpoll probe` ("defer", "multishot-poll", …). Static storage; NULL when
 * index >= RINGPOLL_FEATURE_COUNT. */
RINGPOLL_API const char *ringpoll_feature_name(unsigned index);

/* Reads a mask: words "no-NAME", or "as-6.1", "as-5.19", "as-5.13", "as-5.10"
 * (all that those kernels lack), separated by commas; "" is no mask. 0, or
 * -EINVAL with *ret_bad_word at the word's begin and *ret_bad_length its length
 * (either may be NULL). *ret_mask is untouched on failure. */
RINGPOLL_API int ringpoll_mask_parse(const char *text, uint64_t *ret_mask, const char **ret_bad_word,
                                     size_t *ret_bad_length);

/* Why a "no" is a no. */
#define RINGPOLL_KNOB_NONE 0u
#define RINGPOLL_KNOB_KERNEL 1u  /* the kernel is older, or built without it */
#define RINGPOLL_KNOB_SYSCTL 2u  /* kernel.io_uring_disabled */
#define RINGPOLL_KNOB_SECCOMP 3u /* a seccomp filter */
#define RINGPOLL_KNOB_MEMLOCK 4u /* RLIMIT_MEMLOCK */
#define RINGPOLL_KNOB_MASK 5u    /* $RINGPOLL_MASK, or the options */
#define RINGPOLL_KNOB_FILES 6u   /* RLIMIT_NOFILE */
#define RINGPOLL_KNOB_BUILD 7u   /* built --without-uring */

struct ringpoll_probe {
    uint32_t size;      /* in: sizeof(struct ringpoll_probe) */
    int32_t error;      /* 0, or the negative errno of io_uring_setup() */
    uint32_t knob;      /* RINGPOLL_KNOB_*: what explains the error */
    uint32_t reserved;
    uint64_t kernel;    /* features that the kernel has (found by trying) */
    uint64_t masked;    /* features taken away by $RINGPOLL_MASK */
    uint64_t usable;    /* kernel & ~masked, and what they depend on */
    int32_t feature_error[64]; /* per feature bit: 0, or why not */
};

/* Finds out by trying (it makes and ends small rings; some milliseconds, and
 * for some tens more a blocking call of this thread may return EINTR).
 * 0; -EINVAL: size. A kernel without io_uring is an answer, not a failure. */
RINGPOLL_API int ringpoll_get_probe(struct ringpoll_probe *probe);

/* ------------------------------------------------------------------ stats */

#define RINGPOLL_ENGINE_NEW 0u /* nobody has waited yet */
#define RINGPOLL_ENGINE_RING 1u
#define RINGPOLL_ENGINE_KERNEL 2u

#define RINGPOLL_REASON_NONE 0u
#define RINGPOLL_REASON_ASKED 1u      /* RINGPOLL_KERNEL, RINGPOLL=off */
#define RINGPOLL_REASON_NO_RING 2u    /* the kernel said no: see `error` */
#define RINGPOLL_REASON_OLD_KERNEL 3u /* a ring without DEFER_TASKRUN */
#define RINGPOLL_REASON_NESTED 4u     /* watched by another epoll, poll or select; ringpoll_demote() */
#define RINGPOLL_REASON_WAITERS 5u    /* a second thread waits */
#define RINGPOLL_REASON_FORK 6u       /* inherited from the parent */
#define RINGPOLL_REASON_RESTRICTED 7u /* seccomp or changed credentials */
#define RINGPOLL_REASON_UNFIT 8u      /* its fds are better served by kernel epoll: most of them, for
                                         good, or all of them so far */
#define RINGPOLL_REASON_SHARED 9u     /* the identity was passed, or survives exec */
#define RINGPOLL_REASON_SLOTS 16u     /* room for reasons to come */

/* A short English phrase for a RINGPOLL_REASON_*, RINGPOLL_KNOB_* or
 * RINGPOLL_ENGINE_*. Static storage, never NULL. */
RINGPOLL_API const char *ringpoll_reason_text(uint32_t reason);
RINGPOLL_API const char *ringpoll_knob_text(uint32_t knob);
RINGPOLL_API const char *ringpoll_engine_text(uint32_t engine);

struct ringpoll_stats {
    uint32_t size;   /* in: sizeof(struct ringpoll_stats) */
    uint32_t engine; /* RINGPOLL_ENGINE_* (of a single set) */
    uint32_t reason; /* why it is not RING */
    int32_t error;   /* with RINGPOLL_REASON_NO_RING: negative errno */
    uint64_t sets, rings;              /* now */
    uint64_t sets_made, rings_made;    /* ever */
    uint64_t waits;                    /* calls of wait */
    uint64_t events;                   /* delivered */
    uint64_t enters;                   /* io_uring_enter calls */
    uint64_t rechecks;                 /* poll(2) calls to re-check */
    uint64_t rechecked_fds;            /* fds in them */
    uint64_t kernel_waits;             /* epoll_wait calls on a kernel instance */
    uint64_t kernel_ctls;              /* epoll_ctl calls on a kernel instance */
    uint64_t sqes;                     /* submitted */
    uint64_t cqes;                     /* reaped */
    uint64_t polls_armed;              /* now */
    uint64_t watches_ring;             /* now, served by the ring */
    uint64_t watches_kernel;           /* now, served by kernel epoll */
    uint64_t cancels_on_close;         /* closes that had to cancel first */
    uint64_t handovers;                /* registrations moved ring → kernel epoll */
    uint64_t stale_cqes;               /* completions of forgotten operations */
    uint64_t rearms;                   /* polls armed again after they ended */
    uint64_t cq_overflows;
    uint64_t ops_in_flight;            /* now; 0 when nothing is held */
    uint64_t demotions;                /* sets that left their ring, or never got one */
    /* Sets that are, or were at their end, on kernel epoll: by RINGPOLL_REASON_*,
     * and [0] all of them. */
    uint64_t kernel_sets[RINGPOLL_REASON_SLOTS];
    uint64_t adopted;                  /* sockets, now */
    uint64_t adoptions;                /* ever */
    uint64_t received;                 /* completions that brought bytes */
    uint64_t receives_ended;           /* receives that ended by themselves */
    uint64_t starved;                  /* those that found no buffer */
    uint64_t calls_saved;              /* calls that were answered without the kernel */
    uint64_t sends_batched;
    uint64_t accepting;                /* adopted listeners, now */
    uint64_t listeners_adopted;        /* ever, and anew */
    uint64_t accepted;                 /* connections that the ring accepted */
    uint64_t requests;                 /* file requests that were taken */
    uint64_t requests_at_once;         /* of them, reads of cached bytes without a submission */
    uint64_t sends_zc;                 /* sends of ringpoll_try_sendv_zc() */
    uint64_t sends_zc_copied;          /* of them, those of which the kernel says that it copied */
};

/* Counters of one set, or, with epfd -1, of the whole process (engine, reason
 * and error then tell of the newest set). 0; -EBADF, -EINVAL as above; -EBUSY from
 * a signal handler that interrupted the library. */
RINGPOLL_API int ringpoll_get_stats(int epfd, struct ringpoll_stats *stats);

#ifdef __cplusplus
}
#endif

#endif
