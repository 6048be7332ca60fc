/*
 * mem/wipe.h - zeroing that no compiler removes
 *
 * fa_secure_zero, declared in fastalloc.h, takes the platform's own wipe: memset_s, SecureZeroMemory, explicit_bzero, else
 * memset behind a barrier that makes the bytes observable, else a volatile loop.
 * fa_wipe_small is for pool blocks: the same promise, inlined, for sizes that are multiples of 16.
 */
#ifndef FA_MEM_WIPE_H
#define FA_MEM_WIPE_H

#include "base.h"

#include <string.h>

void fa_secure_zero(void *memory, size_t size);

static inline void fa_wipe_small(void *memory, size_t size) {
#if defined(__GNUC__)
    memset(memory, 0, size);
    __asm__ __volatile__("" : : "r"(memory) : "memory");
#else
    fa_secure_zero(memory, size);
#endif
}

#endif
