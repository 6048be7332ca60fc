/*
 * manager_proofs.c - heap/manager.c: the room of a block, and what the table remembers of it
 */
#include "proof.h"

#include "heap/manager.c"

static size_t any_page;
static size_t page_size(void) { return any_page; }

/* Refuted by
 *   heap/manager.c
 *   - , MAX_SLACK + 1);
 *   + , SIZE_MAX);
 */
PROOF(rooms_of_large_blocks) {
    static fa_os os;
    static fa_manager manager;
    const size_t size = ANY, page_log2 = ANY;
    ASSUME(page_log2 >= 12 && page_log2 <= 16 && size > 0);
    any_page = (size_t)1 << page_log2;
    os.page_size = page_size;
    manager.os = &os;
    const size_t room = large_room(&manager, size);
    if (room == 0) {
        SHOW(size > MAX_LARGE);
        PROVED;
    }
    SHOW(room >= size && room % any_page == 0 && room % 4096 == 0);
    const manager_block block = {.kind = LARGE, .room = room, .size = size}, known = unpack(pack(block));
    SHOW(known.kind == LARGE && known.room == room && known.size == size);
    PROVED;
}

/* Refuted by
 *   heap/manager.c
 *   - #define FALLBACK_UNIT_LOG2 4
 *   + #define FALLBACK_UNIT_LOG2 5
 */
PROOF(rooms_of_fallback_blocks) {
    const size_t size = ANY;
    ASSUME(size < MAX_LARGE_SIZE);
    const size_t room = fallback_room(size);
    SHOW(room >= size && room > 0 && room - size <= 16 && room % 16 == 0);
    const manager_block block = {.kind = FALLBACK, .room = room, .size = size}, known = unpack(pack(block));
    SHOW(known.kind == FALLBACK && known.room == room && known.size == size);
    PROVED;
}
