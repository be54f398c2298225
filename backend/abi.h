/* SPDX-License-Identifier: MIT
 *
 * The kernel's io_uring interface in our own words: numbers, flags and
 * structures as Linux has them (up to 6.18), so that the library builds on any
 * machine, however old its kernel headers, and uses whatever the kernel under
 * it turns out to have. <linux/io_uring.h> is needed nowhere.
 *
 * Nothing here is a choice. Each value is the kernel's, names differ only in
 * their prefix (IORING_SETUP_… is RP_SETUP_…, IOSQE_… is RP_SQE_…; opcodes keep
 * the full RP_IORING_OP_…, because RP_OP_… are op.h's own states). Sizes and
 * offsets are asserted below, and a unit test compares every value with the
 * system's header as far as that goes.
 */
#ifndef RP_ABI_H
#define RP_ABI_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define RP_STATIC_ASSERT(condition) static_assert(condition, #condition)
#else
#define RP_STATIC_ASSERT(condition) _Static_assert(condition, #condition)
#endif

/* ------------------------------------------------------------ system calls
 * The same on every architecture but alpha. */
#define RP_SYS_IO_URING_SETUP 425
#define RP_SYS_IO_URING_ENTER 426
#define RP_SYS_IO_URING_REGISTER 427

/* mmap offsets of a ring's fd */
#define RP_OFF_SQ_RING UINT64_C(0)
#define RP_OFF_CQ_RING UINT64_C(0x8000000)
#define RP_OFF_SQES UINT64_C(0x10000000)

/* ------------------------------------------------------------------ set-up */
#define RP_SETUP_IOPOLL (1u << 0)
#define RP_SETUP_SQPOLL (1u << 1)
#define RP_SETUP_SQ_AFF (1u << 2)
#define RP_SETUP_CQSIZE (1u << 3)
#define RP_SETUP_CLAMP (1u << 4)
#define RP_SETUP_ATTACH_WQ (1u << 5)
#define RP_SETUP_R_DISABLED (1u << 6)
#define RP_SETUP_SUBMIT_ALL (1u << 7)
#define RP_SETUP_COOP_TASKRUN (1u << 8)
#define RP_SETUP_TASKRUN_FLAG (1u << 9)
#define RP_SETUP_SQE128 (1u << 10)
#define RP_SETUP_CQE32 (1u << 11)
#define RP_SETUP_SINGLE_ISSUER (1u << 12)
#define RP_SETUP_DEFER_TASKRUN (1u << 13)
#define RP_SETUP_NO_MMAP (1u << 14)
#define RP_SETUP_REGISTERED_FD_ONLY (1u << 15)
#define RP_SETUP_NO_SQARRAY (1u << 16)

struct rp_sq_offsets {
    uint32_t head, tail, ring_mask, ring_entries, flags, dropped, array, resv1;
    uint64_t user_addr;
};
struct rp_cq_offsets {
    uint32_t head, tail, ring_mask, ring_entries, overflow, cqes, flags, resv1;
    uint64_t user_addr;
};
struct rp_params {
    uint32_t sq_entries, cq_entries, flags, sq_thread_cpu, sq_thread_idle, features, wq_fd, resv[3];
    struct rp_sq_offsets sq_off;
    struct rp_cq_offsets cq_off;
};
RP_STATIC_ASSERT(sizeof(struct rp_sq_offsets) == 40);
RP_STATIC_ASSERT(sizeof(struct rp_cq_offsets) == 40);
RP_STATIC_ASSERT(sizeof(struct rp_params) == 120);
RP_STATIC_ASSERT(offsetof(struct rp_params, sq_off) == 40);
RP_STATIC_ASSERT(offsetof(struct rp_params, cq_off) == 80);

#define RP_FEAT_SINGLE_MMAP (1u << 0)
#define RP_FEAT_NODROP (1u << 1)
#define RP_FEAT_SUBMIT_STABLE (1u << 2)
#define RP_FEAT_RW_CUR_POS (1u << 3)
#define RP_FEAT_CUR_PERSONALITY (1u << 4)
#define RP_FEAT_FAST_POLL (1u << 5)
#define RP_FEAT_POLL_32BITS (1u << 6)
#define RP_FEAT_SQPOLL_NONFIXED (1u << 7)
#define RP_FEAT_EXT_ARG (1u << 8)
#define RP_FEAT_NATIVE_WORKERS (1u << 9)
#define RP_FEAT_RSRC_TAGS (1u << 10)
#define RP_FEAT_CQE_SKIP (1u << 11)
#define RP_FEAT_LINKED_FILE (1u << 12)
#define RP_FEAT_REG_REG_RING (1u << 13)
#define RP_FEAT_RECVSEND_BUNDLE (1u << 14)
#define RP_FEAT_MIN_TIMEOUT (1u << 15)
#define RP_FEAT_RW_ATTR (1u << 16)
#define RP_FEAT_NO_IOWAIT (1u << 17)

/* The SQ's flags word, written by the kernel. */
#define RP_SQ_NEED_WAKEUP (1u << 0)
#define RP_SQ_CQ_OVERFLOW (1u << 1)
#define RP_SQ_TASKRUN (1u << 2)
/* The CQ's, written by us. */
#define RP_CQ_EVENTFD_DISABLED (1u << 0)

/* ------------------------------------------------------------------- enter */
#define RP_ENTER_GETEVENTS (1u << 0)
#define RP_ENTER_SQ_WAKEUP (1u << 1)
#define RP_ENTER_SQ_WAIT (1u << 2)
#define RP_ENTER_EXT_ARG (1u << 3)
#define RP_ENTER_REGISTERED_RING (1u << 4)
#define RP_ENTER_ABS_TIMER (1u << 5)
#define RP_ENTER_EXT_ARG_REG (1u << 6)
#define RP_ENTER_NO_IOWAIT (1u << 7)

/* 64-bit on every architecture, unlike struct timespec. */
struct rp_timespec {
    int64_t tv_sec;
    int64_t tv_nsec; /* the kernel's long long */
};
struct rp_getevents_arg {
    uint64_t sigmask;
    uint32_t sigmask_sz;
    uint32_t min_wait_usec;
    uint64_t ts;
};
RP_STATIC_ASSERT(sizeof(struct rp_timespec) == 16);
RP_STATIC_ASSERT(sizeof(struct rp_getevents_arg) == 24);
RP_STATIC_ASSERT(offsetof(struct rp_getevents_arg, ts) == 16);

/* sizeof(sigset_t) as the kernel has it; libc's is larger, with the same bits first. */
#if defined(__mips__)
#define RP_SIGSET_BYTES 16u
#else
#define RP_SIGSET_BYTES 8u
#endif

/* ----------------------------------------------------------------- opcodes */
enum rp_opcode {
    RP_IORING_OP_NOP = 0,
    RP_IORING_OP_READV = 1,
    RP_IORING_OP_WRITEV = 2,
    RP_IORING_OP_FSYNC = 3,
    RP_IORING_OP_READ_FIXED = 4,
    RP_IORING_OP_WRITE_FIXED = 5,
    RP_IORING_OP_POLL_ADD = 6,
    RP_IORING_OP_POLL_REMOVE = 7,
    RP_IORING_OP_SYNC_FILE_RANGE = 8,
    RP_IORING_OP_SENDMSG = 9,
    RP_IORING_OP_RECVMSG = 10,
    RP_IORING_OP_TIMEOUT = 11,
    RP_IORING_OP_TIMEOUT_REMOVE = 12,
    RP_IORING_OP_ACCEPT = 13,
    RP_IORING_OP_ASYNC_CANCEL = 14,
    RP_IORING_OP_LINK_TIMEOUT = 15,
    RP_IORING_OP_CONNECT = 16,
    RP_IORING_OP_FALLOCATE = 17,
    RP_IORING_OP_OPENAT = 18,
    RP_IORING_OP_CLOSE = 19,
    RP_IORING_OP_FILES_UPDATE = 20,
    RP_IORING_OP_STATX = 21,
    RP_IORING_OP_READ = 22,
    RP_IORING_OP_WRITE = 23,
    RP_IORING_OP_FADVISE = 24,
    RP_IORING_OP_MADVISE = 25,
    RP_IORING_OP_SEND = 26,
    RP_IORING_OP_RECV = 27,
    RP_IORING_OP_OPENAT2 = 28,
    RP_IORING_OP_EPOLL_CTL = 29,
    RP_IORING_OP_SPLICE = 30,
    RP_IORING_OP_PROVIDE_BUFFERS = 31,
    RP_IORING_OP_REMOVE_BUFFERS = 32,
    RP_IORING_OP_TEE = 33,
    RP_IORING_OP_SHUTDOWN = 34,
    RP_IORING_OP_RENAMEAT = 35,
    RP_IORING_OP_UNLINKAT = 36,
    RP_IORING_OP_MKDIRAT = 37,
    RP_IORING_OP_SYMLINKAT = 38,
    RP_IORING_OP_LINKAT = 39,
    RP_IORING_OP_MSG_RING = 40,
    RP_IORING_OP_FSETXATTR = 41,
    RP_IORING_OP_SETXATTR = 42,
    RP_IORING_OP_FGETXATTR = 43,
    RP_IORING_OP_GETXATTR = 44,
    RP_IORING_OP_SOCKET = 45,
    RP_IORING_OP_URING_CMD = 46,
    RP_IORING_OP_SEND_ZC = 47,
    RP_IORING_OP_SENDMSG_ZC = 48,
    RP_IORING_OP_READ_MULTISHOT = 49,
    RP_IORING_OP_WAITID = 50,
    RP_IORING_OP_FUTEX_WAIT = 51,
    RP_IORING_OP_FUTEX_WAKE = 52,
    RP_IORING_OP_FUTEX_WAITV = 53,
    RP_IORING_OP_FIXED_FD_INSTALL = 54,
    RP_IORING_OP_FTRUNCATE = 55,
    RP_IORING_OP_BIND = 56,
    RP_IORING_OP_LISTEN = 57,
    RP_IORING_OP_RECV_ZC = 58,
    RP_IORING_OP_EPOLL_WAIT = 59,
    RP_IORING_OP_READV_FIXED = 60,
    RP_IORING_OP_WRITEV_FIXED = 61,
    RP_IORING_OP_PIPE = 62,
    RP_IORING_OP_LAST = 63 /* of Linux 6.18 */
};

/* --------------------------------------------------------------------- SQE */
struct rp_sqe {
    uint8_t opcode;
    uint8_t flags; /* RP_SQE_* */
    uint16_t ioprio; /* accept and send/recv flags too */
    int32_t fd;
    union {
        uint64_t off;
        uint64_t addr2;
        struct {
            uint32_t cmd_op;
            uint32_t pad1;
        };
    };
    union {
        uint64_t addr;
        uint64_t splice_off_in;
        struct {
            uint32_t level; /* URING_CMD, RP_SOCKET_GETSOCKOPT */
            uint32_t optname;
        };
    };
    uint32_t len; /* poll: RP_POLL_ADD_*, RP_POLL_UPDATE_* */
    union {
        uint32_t rw_flags;
        uint32_t fsync_flags;
        uint32_t poll32_events; /* by rp_poll_word() */
        uint32_t msg_flags;
        uint32_t timeout_flags;
        uint32_t accept_flags;
        uint32_t cancel_flags;
        uint32_t open_flags;
        uint32_t statx_flags;
        uint32_t msg_ring_flags;
        uint32_t op_flags;
    };
    uint64_t user_data;
    union {
        uint16_t buf_index;
        uint16_t buf_group;
    };
    uint16_t personality;
    union {
        int32_t splice_fd_in;
        uint32_t file_index;
        uint32_t optlen; /* multishot receive: bytes after which it ends; GETSOCKOPT: of what is at addr3 */
        struct {
            uint16_t addr_len;
            uint16_t pad3;
        };
    };
    uint64_t addr3;
    uint64_t pad2;
};
RP_STATIC_ASSERT(sizeof(struct rp_sqe) == 64);
RP_STATIC_ASSERT(offsetof(struct rp_sqe, ioprio) == 2);
RP_STATIC_ASSERT(offsetof(struct rp_sqe, fd) == 4);
RP_STATIC_ASSERT(offsetof(struct rp_sqe, off) == 8);
RP_STATIC_ASSERT(offsetof(struct rp_sqe, addr) == 16);
RP_STATIC_ASSERT(offsetof(struct rp_sqe, level) == 16);
RP_STATIC_ASSERT(offsetof(struct rp_sqe, optname) == 20);
RP_STATIC_ASSERT(offsetof(struct rp_sqe, len) == 24);
RP_STATIC_ASSERT(offsetof(struct rp_sqe, poll32_events) == 28);
RP_STATIC_ASSERT(offsetof(struct rp_sqe, user_data) == 32);
RP_STATIC_ASSERT(offsetof(struct rp_sqe, buf_group) == 40);
RP_STATIC_ASSERT(offsetof(struct rp_sqe, personality) == 42);
RP_STATIC_ASSERT(offsetof(struct rp_sqe, file_index) == 44);
RP_STATIC_ASSERT(offsetof(struct rp_sqe, optlen) == 44);
RP_STATIC_ASSERT(offsetof(struct rp_sqe, addr3) == 48);

#define RP_SQE_FIXED_FILE (1u << 0)
#define RP_SQE_IO_DRAIN (1u << 1)
#define RP_SQE_IO_LINK (1u << 2)
#define RP_SQE_IO_HARDLINK (1u << 3)
#define RP_SQE_ASYNC (1u << 4)
#define RP_SQE_BUFFER_SELECT (1u << 5)
#define RP_SQE_CQE_SKIP_SUCCESS (1u << 6)

/* POLL_ADD and POLL_REMOVE: sqe->len. (ADD_LEVEL never worked: EINVAL since 6.0.) */
#define RP_POLL_ADD_MULTI (1u << 0)
#define RP_POLL_UPDATE_EVENTS (1u << 1)
#define RP_POLL_UPDATE_USER_DATA (1u << 2)
#define RP_POLL_ADD_LEVEL (1u << 3)
/* sqe->poll32_events: the two halves of the word are swapped on big-endian
 * machines, where the field once was the 16-bit poll_events. */
static inline uint32_t rp_poll_word(uint32_t events)
{
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    return (events << 16) | (events >> 16);
#else
    return events;
#endif
}

/* ACCEPT: sqe->ioprio */
#define RP_ACCEPT_MULTISHOT (1u << 0)
#define RP_ACCEPT_DONTWAIT (1u << 1)
#define RP_ACCEPT_POLL_FIRST (1u << 2)
/* SEND, RECV and their kin: sqe->ioprio */
#define RP_RECVSEND_POLL_FIRST (1u << 0)
#define RP_RECV_MULTISHOT (1u << 1)
#define RP_RECVSEND_FIXED_BUF (1u << 2)
#define RP_SEND_ZC_REPORT_USAGE (1u << 3)
#define RP_RECVSEND_BUNDLE (1u << 4)
#define RP_SEND_VECTORIZED (1u << 5)
#define RP_NOTIF_USAGE_ZC_COPIED (1u << 31)
/* URING_CMD of a socket: sqe->cmd_op (6.7; SOL_SOCKET alone) */
#define RP_SOCKET_GETSOCKOPT 2u
/* ASYNC_CANCEL: sqe->cancel_flags; SYNC_CANCEL: flags */
#define RP_ASYNC_CANCEL_ALL (1u << 0)
#define RP_ASYNC_CANCEL_FD (1u << 1)
#define RP_ASYNC_CANCEL_ANY (1u << 2)
#define RP_ASYNC_CANCEL_FD_FIXED (1u << 3)
#define RP_ASYNC_CANCEL_USERDATA (1u << 4)
#define RP_ASYNC_CANCEL_OP (1u << 5)
/* TIMEOUT: sqe->timeout_flags */
#define RP_TIMEOUT_ABS (1u << 0)
#define RP_TIMEOUT_UPDATE (1u << 1)
#define RP_TIMEOUT_BOOTTIME (1u << 2)
#define RP_TIMEOUT_REALTIME (1u << 3)
#define RP_LINK_TIMEOUT_UPDATE (1u << 4)
#define RP_TIMEOUT_ETIME_SUCCESS (1u << 5)
#define RP_TIMEOUT_MULTISHOT (1u << 6)
/* sqe->file_index: let the kernel choose a slot */
#define RP_FILE_INDEX_ALLOC (~0u)

/* --------------------------------------------------------------------- CQE */
struct rp_cqe {
    uint64_t user_data;
    int32_t res;
    uint32_t flags; /* RP_CQE_F_*; buffer id above RP_CQE_BUFFER_SHIFT */
};
RP_STATIC_ASSERT(sizeof(struct rp_cqe) == 16);
RP_STATIC_ASSERT(offsetof(struct rp_cqe, res) == 8);
RP_STATIC_ASSERT(offsetof(struct rp_cqe, flags) == 12);

#define RP_CQE_F_BUFFER (1u << 0)
#define RP_CQE_F_MORE (1u << 1)
#define RP_CQE_F_SOCK_NONEMPTY (1u << 2)
#define RP_CQE_F_NOTIF (1u << 3)
#define RP_CQE_F_BUF_MORE (1u << 4)
#define RP_CQE_BUFFER_SHIFT 16

/* ---------------------------------------------------------------- register */
enum rp_register {
    RP_REGISTER_BUFFERS = 0,
    RP_UNREGISTER_BUFFERS = 1,
    RP_REGISTER_FILES = 2,
    RP_UNREGISTER_FILES = 3,
    RP_REGISTER_EVENTFD = 4,
    RP_UNREGISTER_EVENTFD = 5,
    RP_REGISTER_FILES_UPDATE = 6,
    RP_REGISTER_EVENTFD_ASYNC = 7,
    RP_REGISTER_PROBE = 8,
    RP_REGISTER_PERSONALITY = 9,
    RP_UNREGISTER_PERSONALITY = 10,
    RP_REGISTER_RESTRICTIONS = 11,
    RP_REGISTER_ENABLE_RINGS = 12,
    RP_REGISTER_FILES2 = 13,
    RP_REGISTER_FILES_UPDATE2 = 14,
    RP_REGISTER_BUFFERS2 = 15,
    RP_REGISTER_BUFFERS_UPDATE = 16,
    RP_REGISTER_IOWQ_AFF = 17,
    RP_UNREGISTER_IOWQ_AFF = 18,
    RP_REGISTER_IOWQ_MAX_WORKERS = 19,
    RP_REGISTER_RING_FDS = 20,
    RP_UNREGISTER_RING_FDS = 21,
    RP_REGISTER_PBUF_RING = 22,
    RP_UNREGISTER_PBUF_RING = 23,
    RP_REGISTER_SYNC_CANCEL = 24,
    RP_REGISTER_FILE_ALLOC_RANGE = 25,
    RP_REGISTER_PBUF_STATUS = 26,
    RP_REGISTER_NAPI = 27,
    RP_UNREGISTER_NAPI = 28,
    RP_REGISTER_CLOCK = 29,
    RP_REGISTER_CLONE_BUFFERS = 30,
    RP_REGISTER_SEND_MSG_RING = 31,
    RP_REGISTER_ZCRX_IFQ = 32,
    RP_REGISTER_RESIZE_RINGS = 33, /* argument: struct rp_params */
    RP_REGISTER_MEM_REGION = 34
};
/* Or-ed to the opcode: the fd is a registered ring's index (FEAT_REG_REG_RING). */
#define RP_REGISTER_USE_REGISTERED_RING (1u << 31)

/* Files: RP_REGISTER_FILES takes an array of int32_t; a sparse table and
 * updates take these. */
struct rp_rsrc_register {
    uint32_t nr;
    uint32_t flags; /* RP_RSRC_REGISTER_SPARSE */
    uint64_t resv2;
    uint64_t data;
    uint64_t tags;
};
#define RP_RSRC_REGISTER_SPARSE (1u << 0)
#define RP_REGISTER_FILES_SKIP (-2)
/* Files to update, and ring fds (offset ~0u: any slot; data: the fd). */
struct rp_rsrc_update {
    uint32_t offset;
    uint32_t resv;
    uint64_t data;
};
struct rp_rsrc_update2 {
    uint32_t offset;
    uint32_t resv;
    uint64_t data;
    uint64_t tags;
    uint32_t nr;
    uint32_t resv2;
};
struct rp_file_index_range {
    uint32_t off;
    uint32_t len;
    uint64_t resv;
};
RP_STATIC_ASSERT(sizeof(struct rp_rsrc_register) == 32);
RP_STATIC_ASSERT(sizeof(struct rp_rsrc_update) == 16);
RP_STATIC_ASSERT(sizeof(struct rp_rsrc_update2) == 32);
RP_STATIC_ASSERT(sizeof(struct rp_file_index_range) == 16);

/* Provided buffers: a ring of 16-byte entries, the tail laid over the last two
 * bytes of the first. */
struct rp_buf {
    uint64_t addr;
    uint32_t len;
    uint16_t bid;
    uint16_t tail; /* of entry 0 only; unused in the others */
};
struct rp_buf_ring {
    struct rp_buf bufs[1]; /* as many as were registered */
};
struct rp_buf_reg {
    uint64_t ring_addr;
    uint32_t ring_entries;
    uint16_t bgid;
    uint16_t flags;
    uint64_t resv[3];
};
RP_STATIC_ASSERT(sizeof(struct rp_buf) == 16);
RP_STATIC_ASSERT(offsetof(struct rp_buf, bid) == 12);
RP_STATIC_ASSERT(offsetof(struct rp_buf, tail) == 14);
RP_STATIC_ASSERT(sizeof(struct rp_buf_reg) == 40);
RP_STATIC_ASSERT(offsetof(struct rp_buf_reg, bgid) == 12);

struct rp_probe_op {
    uint8_t op;
    uint8_t resv;
    uint16_t flags; /* RP_OP_SUPPORTED */
    uint32_t resv2;
};
#define RP_OP_SUPPORTED (1u << 0)
#define RP_PROBE_OPS 256u
struct rp_probe {
    uint8_t last_op;
    uint8_t ops_len;
    uint16_t resv;
    uint32_t resv2[3];
    struct rp_probe_op ops[RP_PROBE_OPS]; /* the kernel's has no length */
};
RP_STATIC_ASSERT(sizeof(struct rp_probe_op) == 8);
RP_STATIC_ASSERT(offsetof(struct rp_probe, ops) == 16);

struct rp_sync_cancel_reg {
    uint64_t addr; /* user_data to match */
    int32_t fd;
    uint32_t flags;             /* RP_ASYNC_CANCEL_* */
    struct rp_timespec timeout; /* -1, -1: for ever */
    uint8_t opcode;
    uint8_t pad[7];
    uint64_t pad2[3];
};
RP_STATIC_ASSERT(sizeof(struct rp_sync_cancel_reg) == 64);
RP_STATIC_ASSERT(offsetof(struct rp_sync_cancel_reg, timeout) == 16);

struct rp_restriction {
    uint16_t opcode; /* RP_RESTRICTION_* */
    uint8_t operand; /* register opcode, SQE opcode or SQE flags */
    uint8_t resv;
    uint32_t resv2[3];
};
RP_STATIC_ASSERT(sizeof(struct rp_restriction) == 16);
enum rp_restriction_opcode {
    RP_RESTRICTION_REGISTER_OP = 0,
    RP_RESTRICTION_SQE_OP = 1,
    RP_RESTRICTION_SQE_FLAGS_ALLOWED = 2,
    RP_RESTRICTION_SQE_FLAGS_REQUIRED = 3
};

struct rp_napi {
    uint32_t busy_poll_to_us;
    uint8_t prefer_busy_poll;
    uint8_t opcode;
    uint8_t pad[2];
    uint32_t op_param;
    uint32_t resv;
};
RP_STATIC_ASSERT(sizeof(struct rp_napi) == 16);

/* In front of what a multishot RECVMSG delivers. */
struct rp_recvmsg_out {
    uint32_t namelen;
    uint32_t controllen;
    uint32_t payloadlen;
    uint32_t flags;
};
RP_STATIC_ASSERT(sizeof(struct rp_recvmsg_out) == 16);

#endif
