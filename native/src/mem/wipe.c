/*
 * mem/wipe.c - zeroing that no compiler removes
 *
 *     fa_secure_zero -> memset_s | SecureZeroMemory | explicit_bzero | memset + barrier | volatile loop
 *
 * The first that the platform has. Each is documented never to be optimised away; the barrier tells the compiler that
 * somebody may read the bytes after the memset. It clears memory, not registers, caches of the kernel, or copies.
 * Any thread; O(size).
 */
#define __STDC_WANT_LIB_EXT1__ 1
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE
#endif
#include "wipe.h"

#include <string.h>

#if defined(_WIN32)
#include <windows.h>
#endif

void fa_secure_zero(void *memory, size_t size) {
    if (size == 0) return;
#if defined(_WIN32)
    SecureZeroMemory(memory, size);
#elif defined(__APPLE__)
    (void)memset_s(memory, size, 0, size);
#elif defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 25)
    explicit_bzero(memory, size);
#elif defined(__GNUC__)
    memset(memory, 0, size);
    __asm__ __volatile__("" : : "r"(memory) : "memory");
#else
    volatile unsigned char *bytes = memory;
    while (size-- > 0) *bytes++ = 0;
#endif
}
