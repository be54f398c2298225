/* SPDX-License-Identifier: MIT
 *
 * The clock of the bench: the processor's time stamp counter, read so that what
 * stands before it has happened and what stands after has not begun. It ticks
 * at a constant rate, whatever the core's frequency is at the moment; that is
 * no harm, since two sides are compared that take turns within milliseconds.
 */
#ifndef BENCH_CYCLES_H
#define BENCH_CYCLES_H

#include <stdint.h>
#include <time.h>

#if defined(__x86_64__) || defined(__i386__)
#define BENCH_CLOCK_UNIT "cycles"
static inline uint64_t cycles_now(void)
{
    uint32_t low, high;
    __asm__ volatile("lfence\n\trdtsc\n\tlfence" : "=a"(low), "=d"(high) : : "memory");
    return (uint64_t)high << 32 | low;
}
#elif defined(__aarch64__)
#define BENCH_CLOCK_UNIT "timer ticks"
static inline uint64_t cycles_now(void)
{
    uint64_t ticks;
    __asm__ volatile("isb\n\tmrs %0, cntvct_el0\n\tisb" : "=r"(ticks) : : "memory");
    return ticks;
}
#else
#define BENCH_CLOCK_UNIT "ns"
static inline uint64_t cycles_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}
#endif

static inline uint64_t wall_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

#endif
