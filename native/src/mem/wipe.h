/*
 * mem/wipe.h - zeroing that no compiler removes
 *
 * fa_secure_zero, declared in fastalloc.h, takes the platform's own wipe: memset_s, SecureZeroMemory, explicit_bzero, else
 * memset behind a barrier that makes the bytes observable, else a volatile loop.
 * fa_wipe_small is for pool blocks: the same promise, inlined, for addresses and sizes that are multiples of 16.
 */
#ifndef FA_MEM_WIPE_H
#define FA_MEM_WIPE_H

#include "base.h"
#include "fastalloc.h"

#include <string.h>

/* Up to here a few stores beat the call of a memset. */
#define FA_WIPE_INLINE 256

static inline void fa_wipe_small(void *memory, size_t size) {
#if defined(__GNUC__)
    if (size <= FA_WIPE_INLINE) {
        /* Volatile: neither removed nor turned into a memset. */
        typedef long long pair __attribute__((vector_size(16), may_alias));
        const pair zero = {0, 0};
        volatile pair *at = memory, *end = at + size / sizeof zero;
        for (; end - at >= 4; at += 4) at[0] = at[1] = at[2] = at[3] = zero;
        for (; at < end; at++) *at = zero;
        return;
    }
    memset(memory, 0, size);
    __asm__ __volatile__("" : : "r"(memory) : "memory");
#else
    fa_secure_zero(memory, size);
#endif
}

#endif
