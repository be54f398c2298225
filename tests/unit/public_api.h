/* SPDX-License-Identifier: MIT
 *
 * The public header with -Wshadow: struct ringpoll_probe beside the function of
 * that name is what g++ calls a hidden constructor (as with stat(2)).
 */
#ifndef TESTS_UNIT_PUBLIC_API_H
#define TESTS_UNIT_PUBLIC_API_H

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wshadow"
#include <ringpoll/ringpoll.h>
#pragma GCC diagnostic pop

constexpr uint64_t all_features = (UINT64_C(1) << RINGPOLL_FEATURE_COUNT) - 1;

/* Whether rings of this kernel receive for adopted sockets. */
inline bool kernel_adopts()
{
    struct ringpoll_probe probe = {};
    probe.size = sizeof probe;
    uint64_t needed = RINGPOLL_FEATURE_DEFER | RINGPOLL_FEATURE_BUF_RING | RINGPOLL_FEATURE_MULTISHOT_RECV;
    return ringpoll_get_probe(&probe) == 0 && (probe.usable & needed) == needed;
}

#endif
