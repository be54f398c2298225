/* SPDX-License-Identifier: MIT
 *
 * abi.h against a header of the system: included by one file per such header,
 * with KERNEL_HEADER and SUITE defined.
 *
 * Which names an older header lacks cannot be asked of the preprocessor, since
 * many are enumerators. So the header is included in a namespace, inside one
 * that has a stand-in for every name: a look-up finds the header's, or else the
 * stand-in, which says "missing".
 */
#include <gtest/gtest.h>
#include <stddef.h>
#include <stdint.h>

#include <linux/fs.h>
#include <linux/time_types.h>
#include <linux/types.h>

#include "abi.h"

namespace system_header {

constexpr unsigned long long missing = 0xfeedfacecafebeefull;
#define VALUE(ours, theirs) constexpr unsigned long long theirs = missing;
#include "abi_values.inc"
#undef VALUE

namespace inner {
#include KERNEL_HEADER

struct Value {
    const char *name;
    unsigned long long ours, theirs;
};
/* 32-bit words: -2 and ~0u arrive in different widths. */
constexpr unsigned long long word(unsigned long long value)
{
    return value == missing ? missing : value & 0xffffffffull;
}
static const Value values[] = {
#define VALUE(ours, theirs) \
    {#ours, word(static_cast<unsigned long long>(ours)), word(static_cast<unsigned long long>(theirs))},
#include "abi_values.inc"
#undef VALUE
};

} // namespace inner
} // namespace system_header

namespace kernel = system_header::inner;

TEST(SUITE, EveryValueIsTheKernels)
{
    unsigned compared = 0;
    std::string newer;
    for (const auto &value : kernel::values) {
        if (value.theirs == system_header::missing) {
            newer += std::string(" ") + value.name;
            continue;
        }
        EXPECT_EQ(value.ours, value.theirs) << value.name;
        compared++;
    }
    RecordProperty("compared", static_cast<int>(compared));
    if (!newer.empty())
        std::cout << "not in " KERNEL_HEADER ", so not compared:" << newer << "\n";
    EXPECT_GE(compared, 140u) << "the header is older than 5.19, or the comparison is broken";
}

#define SAME_SIZE(ours, theirs) EXPECT_EQ(sizeof(struct ours), sizeof(kernel::theirs))
#define SAME_PLACE(ours, our_field, theirs, their_field) \
    do { \
        EXPECT_EQ(offsetof(struct ours, our_field), offsetof(kernel::theirs, their_field)); \
        EXPECT_EQ(sizeof(ours::our_field), sizeof(kernel::theirs::their_field)); \
    } while (0)
#define SAME(ours, theirs, field) SAME_PLACE(ours, field, theirs, field)

TEST(SUITE, EveryStructureIsTheKernels)
{
    SAME_SIZE(rp_sqe, io_uring_sqe);
    SAME(rp_sqe, io_uring_sqe, opcode);
    SAME(rp_sqe, io_uring_sqe, flags);
    SAME(rp_sqe, io_uring_sqe, ioprio);
    SAME(rp_sqe, io_uring_sqe, fd);
    SAME(rp_sqe, io_uring_sqe, off);
    SAME(rp_sqe, io_uring_sqe, addr2);
    SAME(rp_sqe, io_uring_sqe, cmd_op);
    SAME(rp_sqe, io_uring_sqe, addr);
    SAME(rp_sqe, io_uring_sqe, splice_off_in);
    SAME(rp_sqe, io_uring_sqe, len);
    SAME(rp_sqe, io_uring_sqe, rw_flags);
    SAME(rp_sqe, io_uring_sqe, poll32_events);
    SAME(rp_sqe, io_uring_sqe, msg_flags);
    SAME(rp_sqe, io_uring_sqe, timeout_flags);
    SAME(rp_sqe, io_uring_sqe, accept_flags);
    SAME(rp_sqe, io_uring_sqe, cancel_flags);
    SAME(rp_sqe, io_uring_sqe, open_flags);
    SAME(rp_sqe, io_uring_sqe, statx_flags);
    SAME(rp_sqe, io_uring_sqe, msg_ring_flags);
    SAME(rp_sqe, io_uring_sqe, user_data);
    SAME(rp_sqe, io_uring_sqe, buf_index);
    SAME(rp_sqe, io_uring_sqe, buf_group);
    SAME(rp_sqe, io_uring_sqe, personality);
    SAME(rp_sqe, io_uring_sqe, splice_fd_in);
    SAME(rp_sqe, io_uring_sqe, file_index);
    SAME(rp_sqe, io_uring_sqe, addr_len);
    SAME(rp_sqe, io_uring_sqe, addr3);

    SAME(rp_cqe, io_uring_cqe, user_data);
    SAME(rp_cqe, io_uring_cqe, res);
    SAME(rp_cqe, io_uring_cqe, flags);
    EXPECT_EQ(sizeof(rp_cqe), offsetof(kernel::io_uring_cqe, big_cqe));

    SAME_SIZE(rp_params, io_uring_params);
    SAME(rp_params, io_uring_params, sq_entries);
    SAME(rp_params, io_uring_params, cq_entries);
    SAME(rp_params, io_uring_params, flags);
    SAME(rp_params, io_uring_params, sq_thread_cpu);
    SAME(rp_params, io_uring_params, sq_thread_idle);
    SAME(rp_params, io_uring_params, features);
    SAME(rp_params, io_uring_params, wq_fd);
    SAME(rp_params, io_uring_params, sq_off);
    SAME(rp_params, io_uring_params, cq_off);
    SAME(rp_sq_offsets, io_sqring_offsets, head);
    SAME(rp_sq_offsets, io_sqring_offsets, tail);
    SAME(rp_sq_offsets, io_sqring_offsets, ring_mask);
    SAME(rp_sq_offsets, io_sqring_offsets, ring_entries);
    SAME(rp_sq_offsets, io_sqring_offsets, flags);
    SAME(rp_sq_offsets, io_sqring_offsets, dropped);
    SAME(rp_sq_offsets, io_sqring_offsets, array);
    SAME(rp_cq_offsets, io_cqring_offsets, head);
    SAME(rp_cq_offsets, io_cqring_offsets, tail);
    SAME(rp_cq_offsets, io_cqring_offsets, ring_mask);
    SAME(rp_cq_offsets, io_cqring_offsets, ring_entries);
    SAME(rp_cq_offsets, io_cqring_offsets, overflow);
    SAME(rp_cq_offsets, io_cqring_offsets, cqes);
    SAME(rp_cq_offsets, io_cqring_offsets, flags);

    SAME_SIZE(rp_getevents_arg, io_uring_getevents_arg);
    SAME(rp_getevents_arg, io_uring_getevents_arg, sigmask);
    SAME(rp_getevents_arg, io_uring_getevents_arg, sigmask_sz);
    SAME(rp_getevents_arg, io_uring_getevents_arg, ts);
    EXPECT_EQ(sizeof(rp_timespec), sizeof(__kernel_timespec));
    EXPECT_EQ(offsetof(rp_timespec, tv_nsec), offsetof(__kernel_timespec, tv_nsec));

    SAME_SIZE(rp_rsrc_register, io_uring_rsrc_register);
    SAME(rp_rsrc_register, io_uring_rsrc_register, nr);
    SAME(rp_rsrc_register, io_uring_rsrc_register, flags);
    SAME(rp_rsrc_register, io_uring_rsrc_register, data);
    SAME(rp_rsrc_register, io_uring_rsrc_register, tags);
    SAME_SIZE(rp_rsrc_update, io_uring_rsrc_update);
    SAME(rp_rsrc_update, io_uring_rsrc_update, offset);
    SAME(rp_rsrc_update, io_uring_rsrc_update, data);
    SAME_SIZE(rp_rsrc_update2, io_uring_rsrc_update2);
    SAME(rp_rsrc_update2, io_uring_rsrc_update2, data);
    SAME(rp_rsrc_update2, io_uring_rsrc_update2, tags);
    SAME(rp_rsrc_update2, io_uring_rsrc_update2, nr);
    SAME_SIZE(rp_file_index_range, io_uring_file_index_range);

    SAME_SIZE(rp_buf, io_uring_buf);
    SAME(rp_buf, io_uring_buf, addr);
    SAME(rp_buf, io_uring_buf, len);
    SAME(rp_buf, io_uring_buf, bid);
    SAME_PLACE(rp_buf, tail, io_uring_buf_ring, tail);
    SAME_SIZE(rp_buf_reg, io_uring_buf_reg);
    SAME(rp_buf_reg, io_uring_buf_reg, ring_addr);
    SAME(rp_buf_reg, io_uring_buf_reg, ring_entries);
    SAME(rp_buf_reg, io_uring_buf_reg, bgid);

    SAME_SIZE(rp_probe_op, io_uring_probe_op);
    SAME(rp_probe_op, io_uring_probe_op, flags);
    SAME(rp_probe, io_uring_probe, last_op);
    SAME(rp_probe, io_uring_probe, ops_len);
    EXPECT_EQ(offsetof(rp_probe, ops), sizeof(kernel::io_uring_probe));

    SAME_SIZE(rp_sync_cancel_reg, io_uring_sync_cancel_reg);
    SAME(rp_sync_cancel_reg, io_uring_sync_cancel_reg, addr);
    SAME(rp_sync_cancel_reg, io_uring_sync_cancel_reg, fd);
    SAME(rp_sync_cancel_reg, io_uring_sync_cancel_reg, flags);
    SAME(rp_sync_cancel_reg, io_uring_sync_cancel_reg, timeout);
    SAME_SIZE(rp_restriction, io_uring_restriction);
    SAME(rp_restriction, io_uring_restriction, opcode);
    SAME_PLACE(rp_restriction, operand, io_uring_restriction, sqe_op);
    SAME_SIZE(rp_recvmsg_out, io_uring_recvmsg_out);
}
