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

typedef struct fa_strict fa_strict;

/* `limit` is at most 2^62. FA_ERR_UNSUPPORTED without random bytes: a canary that can be guessed is none. */
fa_status fa_strict_create(fa_strict **made, const fa_manager_options *options, const fa_reporter *reporter, int64_t limit);
void fa_strict_destroy(fa_strict *hardened);

/* As fa_manager_alloc_zeroed, and so on; the alignment is a power of two in its bounds. Damage goes to the reporter. */
void *fa_strict_alloc(fa_strict *hardened, size_t alignment, size_t size);
fa_status fa_strict_free(fa_strict *hardened, void *block);
void *fa_strict_realloc(fa_strict *hardened, void *block, size_t alignment, size_t size, fa_status *status);

/* What is wrong with a pointer that `call` refused. */
void fa_strict_report(fa_strict *hardened, const char *call, const void *pointer);

/* False if it is not a live block. */
bool fa_strict_size(fa_strict *hardened, const void *block, size_t *size);

fa_status fa_strict_check(fa_strict *hardened);
fa_status fa_strict_trim(fa_strict *hardened, size_t keep);
void fa_strict_get_stats(fa_strict *hardened, fa_manager_stats *stats);
void fa_strict_close(fa_strict *hardened);
uint64_t fa_strict_restart_peak(fa_strict *hardened, uint64_t *used_now);
void fa_strict_lock(fa_strict *hardened);
void fa_strict_unlock(fa_strict *hardened);
bool fa_strict_is_valid(fa_strict *hardened);

#endif
