/*
 * heap/manager.h - what the adapters need of a manager beyond fastalloc.h
 *
 * Everything here is for floor 3. None of it is exported from the shared library.
 */
#ifndef FA_HEAP_MANAGER_H
#define FA_HEAP_MANAGER_H

#include "fastalloc.h"

/* As fa_free and fa_realloc, but a bad pointer is an answer, not a call of the corruption handler:
 * FA_ERR_FOREIGN for a pointer that was never here, FA_ERR_CORRUPT for a freed or interior one. */
fa_status fa_manager_try_free(fa_manager *manager, void *block);
void *fa_manager_try_realloc(fa_manager *manager, void *block, size_t alignment, size_t size, fa_status *status);

/* Zeroed memory with an alignment. */
void *fa_manager_alloc_zeroed(fa_manager *manager, size_t alignment, size_t size);

/* From now on every allocation fails. Blocks may still be freed. Idempotent. */
void fa_manager_close(fa_manager *manager);

/* Starts a new measurement of the peak: returns the peak so far and sets it to what is used now. */
uint64_t fa_manager_restart_peak(fa_manager *manager, uint64_t *used_now);

/* Holds a locked manager still while another thread forks. */
void fa_manager_fork_prepare(fa_manager *manager);
void fa_manager_fork_parent(fa_manager *manager);
void fa_manager_fork_child(fa_manager *manager);

/* Recounts everything that can be recounted; false if an invariant is broken. For tests: O(blocks). */
bool fa_manager_is_valid(const fa_manager *manager);

#endif
