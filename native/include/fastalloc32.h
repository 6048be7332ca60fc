/*
 * fastalloc32.h - the five published names of fastalloc32, over a fastalloc manager
 *
 * A program written for fastalloc32 relinks with -lfastalloc unchanged, whether it includes this header or, as its
 * documentation says, declares the five functions itself. What differs: nothing exits the process (create returns
 * null), every byte is zeroed before it is freed, and a double free or a foreign pointer is reported instead of
 * corrupting the pool.
 */
#ifndef FASTALLOC32_H
#define FASTALLOC32_H

#include "fastalloc.h"

#if defined(__cplusplus)
extern "C" {
#endif

FA_API void *fastalloc32_create(void);
FA_API void fastalloc32_destroy(void *manager);
FA_API void *fastalloc32_malloc(void *manager, size_t size);
FA_API void *fastalloc32_realloc(void *manager, void *block, size_t size);
FA_API void fastalloc32_free(void *manager, void *block);

#if defined(__cplusplus)
}
#endif
#endif
