/* SPDX-License-Identifier: MIT
 *
 * For the layers that change what goes into the kernel: a request that does nothing and
 * completes with a result of choice.
 */
#ifndef TESTS_UNIT_NOP_H
#define TESTS_UNIT_NOP_H

#include <string.h>

extern "C" {
#include "abi.h"
}

constexpr uint32_t inject_result = 1; /* IORING_NOP_INJECT_RESULT, 6.9 */

inline void turn_into_nop(struct rp_sqe *sqe, int result)
{
    uint64_t user_data = sqe->user_data;
    memset(sqe, 0, sizeof *sqe);
    sqe->opcode = RP_IORING_OP_NOP;
    sqe->op_flags = inject_result;
    sqe->len = (uint32_t)result;
    sqe->user_data = user_data;
}

#endif
