/*
 * heap/arena.h - what the adapters need of an arena beyond fastalloc.h
 *
 * Everything here is for floor 3. None of it is exported from the shared library.
 */
#ifndef FA_HEAP_ARENA_H
#define FA_HEAP_ARENA_H

#include "fastalloc.h"

/* As fa_arena_alloc and fa_arena_alloc_zeroed, with the reason of a failure: FA_ERR_NOMEM (full), FA_ERR_LOCK,
 * FA_ERR_INVALID (alignment), FA_ERR_STALE (the arena is closed). */
fa_status fa_arena_try_alloc(fa_arena *arena, size_t size, size_t alignment, bool zeroed, void **block);

/* As fa_arena_alloc of an arena that is no untracked scratch arena, and has no thread's chunk to look for. */
void *fa_arena_alloc_tracked(fa_arena *arena, size_t size, size_t alignment);

/* As fa_arena_free, but a bad pointer is an answer, not a call of the corruption handler. */
fa_status fa_arena_try_free(fa_arena *arena, void *block);

/*
 * Scopes: marks that may be left in any order and with live blocks inside. Leaving rewinds at once if no block made
 * since entering is live; otherwise returns FA_ERR_BUSY, says how many blocks and how many bytes they asked for, and
 * the rewind happens by itself when the last of them is freed. A scope that a reset or rewind has already ended is
 * FA_ERR_STALE. Entering a closed arena, or more than 4,095 marks and scopes deep, gives a mark whose serial is 0.
 * Tracked arenas only. Cost: one short lock each.
 */
fa_mark fa_arena_scope_enter(fa_arena *arena);
fa_status fa_arena_scope_leave(fa_arena *arena, fa_mark mark, uint64_t *live, uint64_t *bytes);

/* Live blocks, and the bytes they asked for, of the arena (mark null) or made since the mark. Tracked arenas only. */
fa_status fa_arena_live(const fa_arena *arena, const fa_mark *mark, uint64_t *live, uint64_t *bytes);

/* Whether `block` is the start of a live block. Not for untracked scratch arenas. */
bool fa_arena_is_live(const fa_arena *arena, const void *block);

/* From now on every allocation fails; a witness arena is zeroed at once, its live blocks included. Blocks may still be
 * freed. Idempotent. Not for untracked scratch arenas, whose threads would not hear of it. */
void fa_arena_close(fa_arena *arena);

/* What was asked for with fa_arena_seal. */
fa_seal fa_arena_get_seal(const fa_arena *arena);

/* `used` and `peak` of the statistics, without the system call that looks what is resident. */
void fa_arena_usage(const fa_arena *arena, uint64_t *used, uint64_t *peak);

/* Starts a new measurement of the peak: returns the peak so far and sets it to what is used now. Not for untracked scratch
 * arenas, which know the peak since the last release. */
uint64_t fa_arena_restart_peak(fa_arena *arena, uint64_t *used_now);

/* Holds the arena still while another thread forks, and puts it right in the child: locks are not inherited, and a
 * witness arena's blocks read zero there. */
void fa_arena_fork_prepare(fa_arena *arena);
void fa_arena_fork_parent(fa_arena *arena);
void fa_arena_fork_child(fa_arena *arena);

/* Recounts everything that can be recounted; false if an invariant is broken. For tests: O(blocks). */
bool fa_arena_is_valid(const fa_arena *arena);

#endif
