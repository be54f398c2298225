/* SPDX-License-Identifier: MIT
 *
 * Looks without a lock.
 *
 * Some values are written by whoever holds a lock, or by the one thread that
 * owns them, and looked at by others without it: a look must not cost what a
 * lock costs. Both sides go by these names, so that no compiler tears, repeats
 * or invents an access, and so that a race detector takes what is left for a
 * mistake. They order nothing (where a look leads on to other memory, the code
 * says ACQUIRE and RELEASE): whoever looks is right with the old value and with
 * the new one, or looks again under the lock.
 */
#ifndef RP_ONCE_H
#define RP_ONCE_H

#define RP_READ_ONCE(place) __atomic_load_n(&(place), __ATOMIC_RELAXED)
#define RP_WRITE_ONCE(place, value) __atomic_store_n(&(place), (value), __ATOMIC_RELAXED)
/* A counter with one writer at a time, which costs no locked instruction. Where
 * two write at once a count is lost, which statistics can bear. */
#define RP_COUNT(counter, by) RP_WRITE_ONCE(counter, RP_READ_ONCE(counter) + (by))

/* Where the straight line of what is done all day goes. */
#define RP_LIKELY(x) __builtin_expect(!!(x), 1)
#define RP_UNLIKELY(x) __builtin_expect(!!(x), 0)

#endif
