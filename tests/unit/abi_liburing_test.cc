/* SPDX-License-Identifier: MIT
 *
 * abi.h against liburing's copy of the kernel's header, which may be newer, or
 * older, than the system's.
 */
#define KERNEL_HEADER "liburing/io_uring.h"
#define SUITE AbiAgainstLiburing
#include "abi_compare.h"
