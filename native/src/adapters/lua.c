/*
 * adapters/lua.c - a manager as Lua's allocator
 *
 *     lua_newstate(fa_lua_alloc, manager)
 *
 * Lua's contract (lua_Alloc in the manual): new_size 0 frees and returns null; a null block allocates, and old_size then
 * is a type tag, not a size; shrinking must not fail. fa_realloc keeps a block where it is when it cannot move it to
 * a smaller place, so the last point holds. A manager with a `limit` makes Lua raise its own "not enough memory".
 */
#include "fastalloc.h"

void *fa_lua_alloc(void *manager, void *block, size_t old_size, size_t new_size) {
    (void)old_size;
    if (new_size == 0) {
        fa_free(manager, block);
        return NULL;
    }
    return fa_realloc(manager, block, new_size);
}
