/*
 * fa_sqlite.c - a manager as SQLite's memory allocation methods
 *
 *     sqlite3_malloc --> sqlite3_mem_methods --> fa_malloc
 *
 * SQLite hands its methods no context, so the manager is a static here: SQLite has one heap for a process anyway. Sizes are
 * ints, never 0, and below 2^31.
 */
#include "fa_sqlite.h"

#include <sqlite3.h>

static fa_manager *heap;

static void *heap_malloc(int size) { return fa_malloc(heap, (size_t)size); }
static void heap_free(void *block) { fa_free(heap, block); }
static void *heap_realloc(void *block, int size) { return fa_realloc(heap, block, (size_t)size); }
static int heap_size(void *block) { return block == NULL ? 0 : (int)fa_usable_size(heap, block); }
/* What a request will get: SQLite counts by it. All that the manager hands out is a multiple of 16. */
static int heap_roundup(int size) { return (int)(((unsigned)size + 15) & ~15U); }

static int heap_init(void *context) {
    (void)context;
    return SQLITE_OK;
}

static void heap_shutdown(void *context) { (void)context; }

int fa_sqlite_use(fa_manager *manager) {
    static const sqlite3_mem_methods methods = {heap_malloc, heap_free, heap_realloc, heap_size,
                                                heap_roundup, heap_init, heap_shutdown, NULL};
    heap = manager;
    return sqlite3_config(SQLITE_CONFIG_MALLOC, &methods);
}
