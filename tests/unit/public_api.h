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

#endif
