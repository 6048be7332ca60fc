/*
 * preload.c - a shared object that puts a program's SQLite into a fastalloc heap, the program unchanged
 *
 *     LD_PRELOAD=./sqlite-fastalloc.so sqlite3 ledger.db
 *
 * Its constructor runs before main, and so before SQLite is first used. With FASTALLOC_SQLITE_STATS set, one line of JSON
 * goes to standard error at exit.
 */
#include "fa_sqlite.h"

#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>

static fa_manager *manager;

__attribute__((constructor)) static void begin(void) {
    fa_manager_options options;
    fa_manager_options_init(&options);
    options.flags = FA_LOCKED;
    manager = fa_manager_create(&options, NULL);
    if (manager == NULL || fa_sqlite_use(manager) != SQLITE_OK) {
        fprintf(stderr, "sqlite-fastalloc: SQLite keeps its own allocator\n");
        fa_manager_destroy(manager);
        manager = NULL;
    }
}

__attribute__((destructor)) static void end(void) {
    if (manager == NULL || getenv("FASTALLOC_SQLITE_STATS") == NULL) return;
    fa_manager_stats stats;
    char text[1024];
    (void)fa_manager_get_stats(manager, &stats);
    (void)fa_manager_stats_json(&stats, text, sizeof text);
    fprintf(stderr, "%s\n", text);
}
