/*
 * fa_sqlite.h - SQLite in the heap of a fastalloc manager
 */
#ifndef FA_SQLITE_H
#define FA_SQLITE_H

#include <fastalloc.h>

/*
 * All that SQLite allocates from now on comes from `manager`: pages, rows, statements, zeroed before they are freed. To be
 * called before anything else of SQLite, or after sqlite3_shutdown(); the manager must stay until then, and be FA_LOCKED if
 * several threads use SQLite. A limit of the manager becomes SQLITE_NOMEM. Returns a result code of SQLite.
 */
int fa_sqlite_use(fa_manager *manager);

#endif
