/*
 * wiped.c - secrets in a database, and what is left of them in memory when it is closed
 *
 *     wiped [--default] [--pause] DATABASE FILE
 *
 * The bytes of FILE go into a thousand rows of DATABASE (":memory:", or a path), into an index, through sorts, joins and
 * string functions. Then the database is closed. SQLite's memory comes from a manager, which zeroes all that is freed; with
 * --default it comes from where SQLite takes it by itself, for comparison. What the queries print is the same.
 *
 * --pause prints a word and waits for a line of input at three moments, for a debugger or tests/test_examples.py to look at
 * the process's memory: "running", the database open; "closed"; "destroyed", without the manager.
 */
#include "fa_sqlite.h"

#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Deeper than SQLite's C code goes here; it leaves bytes of what it works on in its frames. */
#define STACK_USED ((size_t)256 << 10)

static void pause_at(bool pause, const char *moment) {
    if (!pause) return;
    printf("%s\n", moment);
    fflush(stdout);
    for (int c = getchar(); c != '\n' && c != EOF;) c = getchar();
}

__attribute__((noinline)) static void scrub_stack(void) {
    unsigned char below[STACK_USED];
    fa_secure_zero(below, sizeof below);
}

static int print_row(void *unused, int count, char **values, char **names) {
    (void)unused;
    for (int i = 0; i < count; i++) printf("%s=%s%c", names[i], values[i], i + 1 < count ? ' ' : '\n');
    return 0;
}

/* A thousand rows that hold the secret, in different lengths. */
static int insert_rows(sqlite3 *database, const char *secret, int size) {
    sqlite3_stmt *insert;
    int result = sqlite3_prepare_v2(database, "INSERT INTO held VALUES (?1, ?2 || ?1, upper(?2))", -1, &insert, NULL);
    for (int i = 0; result == SQLITE_OK && i < 1000; i++) {
        sqlite3_bind_int(insert, 1, i);
        sqlite3_bind_text(insert, 2, secret, size, SQLITE_STATIC);
        result = sqlite3_step(insert) == SQLITE_DONE ? sqlite3_reset(insert) : sqlite3_errcode(database);
    }
    sqlite3_finalize(insert);
    return result;
}

static int work(sqlite3 *database, const char *secret, int size) {
    static const char *const steps[] = {
        "CREATE INDEX by_name ON held (name, number)",
        "SELECT count(*) AS rows, count(DISTINCT name) AS names, sum(length(name)) AS letters FROM held",
        "SELECT count(*) AS pairs FROM held AS a JOIN held AS b ON a.name = b.name AND substr(a.loud, 3) = substr(b.loud, 3)",
        "SELECT length(group_concat(name, ';')) AS joined FROM (SELECT name FROM held ORDER BY loud, name DESC)",
        "UPDATE held SET loud = replace(loud, 'A', 'aa') WHERE number % 2",
        "DELETE FROM held WHERE number % 3 = 0",
        "SELECT count(*) AS rows, sum(length(loud)) AS letters FROM held WHERE name LIKE '%9'",
        "COMMIT",
    };
    int result = sqlite3_exec(database, "BEGIN; CREATE TABLE held (number INTEGER, name TEXT, loud TEXT)", NULL, NULL, NULL);
    if (result == SQLITE_OK) result = insert_rows(database, secret, size);
    for (size_t i = 0; result == SQLITE_OK && i < sizeof steps / sizeof *steps; i++)
        result = sqlite3_exec(database, steps[i], print_row, NULL, NULL);
    return result;
}

static int run(const char *path, const char *secret_file, bool pause) {
    char secret[1024];
    FILE *file = fopen(secret_file, "rb");
    if (file == NULL) {
        perror(secret_file);
        return SQLITE_CANTOPEN;
    }
    setvbuf(file, NULL, _IONBF, 0); /* a buffer would keep a copy */
    const int size = (int)fread(secret, 1, sizeof secret, file);
    fclose(file);

    sqlite3 *database;
    int result = sqlite3_open(path, &database);
    if (result == SQLITE_OK) result = work(database, secret, size);
    if (result != SQLITE_OK) fprintf(stderr, "%s: %s\n", path, sqlite3_errmsg(database));
    pause_at(pause, "running");
    sqlite3_close(database);
    sqlite3_shutdown();
    fa_secure_zero(secret, sizeof secret);
    return result;
}

int main(int argc, char **argv) {
    bool pause = false, by_default = false;
    int i = 1;
    for (; i < argc && strncmp(argv[i], "--", 2) == 0; i++) {
        if (strcmp(argv[i], "--pause") == 0) pause = true;
        else if (strcmp(argv[i], "--default") == 0) by_default = true;
        else break;
    }
    if (argc - i != 2) {
        fprintf(stderr, "usage: wiped [--default] [--pause] DATABASE FILE\n");
        return 2;
    }
    fa_manager *manager = by_default ? NULL : fa_manager_create(NULL, NULL);
    if (!by_default && (manager == NULL || fa_sqlite_use(manager) != SQLITE_OK)) {
        fprintf(stderr, "wiped: SQLite does not take the manager\n");
        return 1;
    }
    const int result = run(argv[i], argv[i + 1], pause);
    scrub_stack();
    pause_at(pause, "closed");
    fa_manager_destroy(manager);
    pause_at(pause, "destroyed");
    return result == SQLITE_OK ? 0 : 1;
}
