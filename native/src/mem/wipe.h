/*
 * mem/wipe.h - zeroing that no compiler removes
 *
 * fa_secure_zero, declared in fastalloc.h, takes the platform's own wipe: memset_s, SecureZeroMemory, explicit_bzero, else
 * memset behind a barrier that makes the bytes observable, else a volatile loop.
 * fa_wipe_small is for pool blocks: the same promise, inlined, for addresses and sizes that are multiples of 16. Where the
 * processor has 32-byte stores they halve the stores, which are what a block of 128 bytes costs; asked at run time, for the
 * library is compiled for every processor.
 */
#ifndef FA_MEM_WIPE_H
#define FA_MEM_WIPE_H

#include "base.h"
#include "fastalloc.h"

/* Up to here a few stores beat the call of a memset. */
#define FA_WIPE_INLINE 256

/* What asks is in gcc's own library; that of other compilers does not have it everywhere. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FA_HAS_WIDE_STORES() __builtin_cpu_supports("avx")
/* All vector registers, because vzeroupper changes them. */
#define FA_WIDE_CLOBBERS                                                                                               \
    "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",  \
        "xmm12", "xmm13", "xmm14", "xmm15"
#else
#define FA_HAS_WIDE_STORES() false
#endif

/* The first and the last 64 bytes, which are all: no branch. */
static inline bool fa_can_wipe_pair(size_t size) { return size >= 64 && size <= 128 && FA_HAS_WIDE_STORES(); }
static inline void fa_wipe_pair(void *memory, size_t size) {
#if defined(FA_WIDE_CLOBBERS)
    __asm__ volatile("vpxor %%xmm0, %%xmm0, %%xmm0\n\t"
                     "vmovdqu %%ymm0, (%0)\n\t"
                     "vmovdqu %%ymm0, 32(%0)\n\t"
                     "vmovdqu %%ymm0, (%1)\n\t"
                     "vmovdqu %%ymm0, 32(%1)\n\t"
                     "vzeroupper"
                     :
                     : "r"(memory), "r"((unsigned char *)memory + size - 64)
                     : FA_WIDE_CLOBBERS);
#else
    fa_secure_zero(memory, size);
#endif
}

#if defined(FA_WIDE_CLOBBERS)
/* 32 bytes at a time and the last 32 once more; size >= 32. */
static inline void fa_wipe_wide(void *memory, size_t size) {
    unsigned char *at = memory, *last = at + (size - 32);
    __asm__ volatile("vpxor %%xmm0, %%xmm0, %%xmm0\n\t"
                     "1:\n\t"
                     "vmovdqu %%ymm0, (%0)\n\t"
                     "add $32, %0\n\t"
                     "cmp %1, %0\n\t"
                     "jb 1b\n\t"
                     "vmovdqu %%ymm0, (%1)\n\t"
                     "vzeroupper"
                     : "+r"(at)
                     : "r"(last)
                     : FA_WIDE_CLOBBERS);
}
#endif

static inline void fa_wipe_small(void *memory, size_t size) {
#if defined(__GNUC__)
    if (FA_LIKELY(size <= FA_WIPE_INLINE)) {
#if defined(FA_WIDE_CLOBBERS)
        if (FA_LIKELY(size >= 32 && FA_HAS_WIDE_STORES())) {
            fa_wipe_wide(memory, size);
            return;
        }
#endif
        /* Volatile: neither removed nor turned into a memset. */
        typedef long long pair __attribute__((vector_size(16), may_alias));
        const pair zero = {0, 0};
        volatile pair *at = memory, *end = at + size / sizeof zero;
        for (; end - at >= 4; at += 4) at[0] = at[1] = at[2] = at[3] = zero;
        for (; at < end; at++) *at = zero;
        return;
    }
#endif
    fa_secure_zero(memory, size);
}

#endif
