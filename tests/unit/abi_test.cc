/* SPDX-License-Identifier: MIT
 *
 * abi.h against <linux/io_uring.h>, and the system call numbers.
 */
#include <sys/syscall.h>

#define KERNEL_HEADER "linux/io_uring.h"
#define SUITE AbiAgainstLinuxHeader
#include "abi_compare.h"

TEST(Abi, SystemCallsHaveTheirNumbers)
{
#ifdef SYS_io_uring_setup
    EXPECT_EQ(RP_SYS_IO_URING_SETUP, SYS_io_uring_setup);
    EXPECT_EQ(RP_SYS_IO_URING_ENTER, SYS_io_uring_enter);
    EXPECT_EQ(RP_SYS_IO_URING_REGISTER, SYS_io_uring_register);
#endif
    EXPECT_EQ(RP_SYS_IO_URING_SETUP, 425);
    EXPECT_EQ(RP_SYS_IO_URING_ENTER, 426);
    EXPECT_EQ(RP_SYS_IO_URING_REGISTER, 427);
}

TEST(Abi, PollWordKeepsTheLowHalfFirst)
{
    uint32_t word = rp_poll_word(0x20001);
    uint16_t low;
    memcpy(&low, &word, sizeof(low)); /* where the 16-bit poll_events once was */
    EXPECT_EQ(low, 1u);
    EXPECT_EQ(rp_poll_word(rp_poll_word(0x12345678)), 0x12345678u);
}
