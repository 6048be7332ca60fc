/*
 * heap/manager_hardened.h - what manager.c needs of a hardened manager
 *
 * A manager with FA_HARDENED keeps nothing of its own: pool, slabs and table stay empty, so every call ends on the cold way,
 * which asks for `hardened` and goes here. The normal hot path has no branch for it.
 */
#ifndef FA_HEAP_MANAGER_HARDENED_H
#define FA_HEAP_MANAGER_HARDENED_H

#include "fastalloc.h"
#include "report.h"

typedef struct fa_hardened fa_hardened;

/* `limit` is at most 2^62. FA_ERR_UNSUPPORTED without random bytes: a canary that can be guessed is none. */
fa_status fa_hardened_create(fa_hardened **made, const fa_manager_options *options, const fa_reporter *reporter, int64_t limit);
void fa_hardened_destroy(fa_hardened *hardened);

/* As fa_manager_alloc_zeroed, and so on; the alignment is a power of two in its bounds. Damage goes to the reporter. */
void *fa_hardened_alloc(fa_hardened *hardened, size_t alignment, size_t size);
fa_status fa_hardened_free(fa_hardened *hardened, void *block);
void *fa_hardened_realloc(fa_hardened *hardened, void *block, size_t alignment, size_t size, fa_status *status);

/* What is wrong with a pointer that `call` refused. */
void fa_hardened_report(fa_hardened *hardened, const char *call, const void *pointer);

/* False if it is not a live block. */
bool fa_hardened_size(fa_hardened *hardened, const void *block, size_t *size);

fa_status fa_hardened_check(fa_hardened *hardened);
fa_status fa_hardened_trim(fa_hardened *hardened, size_t keep);
void fa_hardened_get_stats(fa_hardened *hardened, fa_manager_stats *stats);
void fa_hardened_close(fa_hardened *hardened);
uint64_t fa_hardened_restart_peak(fa_hardened *hardened, uint64_t *used_now);
void fa_hardened_lock(fa_hardened *hardened);
void fa_hardened_unlock(fa_hardened *hardened);
bool fa_hardened_is_valid(fa_hardened *hardened);

#endif
