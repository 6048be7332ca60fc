/*
 * heap/secret.c - what a seal, a fork and a wipe do to an arena that holds secrets
 *
 *     seal asked for ──┐                          ┌── pages: inaccessible | read-only | open
 *     _begin, _end ────┴─> settle, under the lock ┘
 *
 *     fork:   | arena | levels | entries | links | alive |     `alive` is a page that reads 0 in a forked child: whoever
 *                                                              comes first there puts the arena right
 *
 * Invariants: `sealed` is what the pages are, `seal` what was asked for; they differ while somebody has the arena
 * unsealed, or after the system refused. If it refuses in the middle, and to go back as well, the arena is `torn`: nothing
 * is claimed of the pages, they are opened before each use, and the next seal or unseal does it all again. Nobody
 * writes to pages without the lock unless `wiping` says that they must stay open.
 * Thread rule: the lock is held but where it says otherwise. Cost: a system call for a seal or a wipe through one.
 */
#include "arena_parts.h"

static fa_os_access access_of(fa_seal seal) {
    return seal == FA_SEAL_OFF ? FA_OS_READ_WRITE : seal == FA_SEAL_READ ? FA_OS_READ : FA_OS_NONE;
}

static fa_status set_access(fa_arena *arena, fa_seal seal, uint64_t *bytes) {
    if (arena->guarded) return fa_guarded_protect(arena, access_of(seal), bytes);
    *bytes = arena->region.committed;
    return fa_region_protect(&arena->region, 0, arena->region.committed, access_of(seal));
}

static void note_care(fa_arena *arena) {
    arena->careful = arena->closed || arena->kind == FA_WITNESS || arena->sealed != FA_SEAL_OFF;
}

/* Makes the pages what they should be now. May give the lock back for a while. */
static fa_status settle(fa_arena *arena) {
    while (arena->wiping > 0) { /* a large block, outside the lock */
        unlock(arena);
        arena->os->yield();
        lock(arena);
    }
    fa_seal seal = arena->unsealers > 0 || arena->closed ? FA_SEAL_OFF : arena->seal;
    if ((seal == arena->sealed && !arena->torn) || arena->region.lost) return FA_OK;
    uint64_t bytes;
    fa_status status = set_access(arena, seal, &bytes);
    if (status != FA_OK) {
        if (arena->torn || set_access(arena, arena->sealed, &bytes) != FA_OK) {
            fa_secret_tear(arena);
            arena->sealed = FA_SEAL_NONE;
        }
        note_care(arena);
        return status;
    }
    arena->torn = false;
    arena->sealed = seal;
    arena->region.protection.sealed = seal == FA_SEAL_OFF ? 0 : bytes;
    note_care(arena);
    return FA_OK;
}

fa_status fa_arena_seal(fa_arena *arena, fa_seal how) {
    if (!arena->mapped || (how != FA_SEAL_OFF && how != FA_SEAL_READ && how != FA_SEAL_NONE)) return FA_ERR_INVALID;
    lock(arena);
    fa_secret_enter(arena);
    fa_status status = arena->closed ? FA_ERR_STALE : FA_OK;
    if (status == FA_OK) {
        fa_seal before = arena->seal;
        arena->seal = how;
        status = settle(arena);
        if (status != FA_OK) arena->seal = before;
    }
    unlock(arena);
    return status;
}

fa_status fa_arena_unseal(fa_arena *arena) { return fa_arena_seal(arena, FA_SEAL_OFF); }

fa_status fa_arena_unsealed_begin(fa_arena *arena) {
    if (!arena->mapped) return FA_ERR_INVALID;
    lock(arena);
    fa_secret_enter(arena);
    fa_status status = arena->closed ? FA_ERR_STALE : FA_OK;
    if (status == FA_OK) {
        arena->unsealers++;
        status = settle(arena);
        if (status != FA_OK) arena->unsealers--;
    }
    unlock(arena);
    return status;
}

fa_status fa_arena_unsealed_end(fa_arena *arena) {
    lock(arena);
    fa_secret_enter(arena);
    fa_status status = arena->unsealers > 0 ? FA_OK : FA_ERR_INVALID;
    if (status == FA_OK) {
        arena->unsealers--;
        status = settle(arena);
    }
    unlock(arena);
    return status;
}

fa_seal fa_arena_get_seal(const fa_arena *arena) {
    lock(arena);
    fa_seal seal = arena->seal;
    unlock(arena);
    return seal;
}

/* ---- before anything else ---------------------------------------------------------------------------------------- */

FA_COLD void fa_secret_adopt(fa_arena *arena) {
    *arena->alive = 1;
    arena->wiping = 0; /* by threads that are not here */
    fa_seal sealed = arena->sealed;
    /* What is inaccessible cannot be locked. */
    if (sealed != FA_SEAL_OFF && arena->region.secret == 0 && !arena->guarded)
        (void)fa_region_protect(&arena->region, 0, arena->region.committed, FA_OS_READ_WRITE);
    fa_region_fork_child(&arena->region);
    if (arena->guarded && !arena->region.lost) fa_guarded_fork_child(arena);
    if (arena->region.lost) { /* nothing can be had from it, and nothing in it may be touched */
        arena->closed = arena->careful = true;
        return;
    }
    if (sealed == FA_SEAL_OFF) return;
    if (arena->torn || set_access(arena, sealed, &arena->region.protection.sealed) != FA_OK) fa_secret_tear(arena);
}

fa_status fa_secret_ready(fa_arena *arena) {
    fa_secret_enter(arena);
    if (arena->closed) return FA_ERR_STALE;
    return arena->sealed == FA_SEAL_OFF ? FA_OK : FA_ERR_SEALED;
}

/* ---- wiping ------------------------------------------------------------------------------------------------------ */

/* Whole pages around [start, end). */
static fa_status set_range(fa_arena *arena, size_t start, size_t end, fa_seal seal) {
    size_t page = arena->region.page, last;
    if (!fa_align_up(end, page, &last)) last = arena->region.committed;
    return fa_region_protect(&arena->region, fa_align_down(start, page), fa_min(last, arena->region.committed),
                             access_of(seal));
}

fa_status fa_secret_wipe(fa_arena *arena, size_t start, size_t end) {
    if (start >= end || arena->region.lost) return FA_OK;
    fa_seal sealed = arena->sealed;
    if (sealed != FA_SEAL_OFF) {
        fa_status status = set_range(arena, start, end, FA_SEAL_OFF);
        if (status != FA_OK) return status;
    }
    fa_secure_zero(at_offset(arena, start), end - start);
    if (sealed != FA_SEAL_OFF && set_range(arena, start, end, sealed) != FA_OK) fa_secret_tear(arena);
    return FA_OK;
}

fa_status fa_secret_end(fa_arena *arena) {
    arena->closed = true;
    fa_status status = settle(arena);
    if (status != FA_OK) status = settle(arena); /* nobody will try again */
    note_care(arena);
    return status;
}
