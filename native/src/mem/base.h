/*
 * mem/base.h - the few words every floor above the system uses
 *
 * Checked arithmetic, alignment, branch hints, assertions. Assertions come in two levels: FA_ASSERT is compiled with
 * FA_DEBUG only; the *_is_valid functions, which recount whole structures, are called by tests.
 */
#ifndef FA_MEM_BASE_H
#define FA_MEM_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define FA_HOT __attribute__((hot))
#define FA_COLD __attribute__((cold, noinline))
/* Warm, but its registers must not be saved on the way that is hotter. */
#define FA_APART __attribute__((noinline))
#define FA_LIKELY(condition) __builtin_expect(!!(condition), 1)
#define FA_UNLIKELY(condition) __builtin_expect(!!(condition), 0)
#else
#define FA_HOT
#define FA_COLD
#define FA_APART
#define FA_LIKELY(condition) (condition)
#define FA_UNLIKELY(condition) (condition)
#endif

/* A thread's variables are one instruction away, even in a shared library: glibc keeps room in the static block for such
 * small ones in libraries that are loaded late. Other C libraries do not. */
#if defined(__GLIBC__)
#define FA_TLS __attribute__((tls_model("initial-exec")))
#else
#define FA_TLS
#endif

#if defined(FA_DEBUG)
#include <assert.h>
#define FA_ASSERT(condition) assert(condition)
#else
#define FA_ASSERT(condition) ((void)0)
#endif

/* The alignment every block has: two pointers. */
#define FA_MIN_ALIGNMENT (2 * sizeof(void *))
/* The largest alignment that may be asked for: a huge page. */
#define FA_MAX_ALIGNMENT ((size_t)2 << 20)

static inline bool fa_is_power_of_two(size_t value) { return value != 0 && (value & (value - 1)) == 0; }

static inline size_t fa_align_down(size_t value, size_t alignment) { return value & ~(alignment - 1); }

/* `value` rounded up to `alignment`, or false if that would wrap. */
static inline bool fa_align_up(size_t value, size_t alignment, size_t *aligned) {
    if (value > SIZE_MAX - (alignment - 1)) return false;
    *aligned = fa_align_down(value + (alignment - 1), alignment);
    return true;
}

static inline size_t fa_min(size_t a, size_t b) { return a < b ? a : b; }
static inline size_t fa_max(size_t a, size_t b) { return a > b ? a : b; }

/* Position of the highest set bit; `value` is not 0. */
static inline unsigned fa_log2(uint64_t value) {
#if defined(__GNUC__)
    return 63U - (unsigned)__builtin_clzll(value);
#else
    unsigned position = 0;
    while (value >>= 1) position++;
    return position;
#endif
}

#endif
