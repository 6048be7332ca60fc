/*
 * limited.c - runs Lua 5.4 scripts, each in a heap of its own that has a limit and leaves nothing behind
 *
 *     limited [--limit BYTES] [--secret FILE] [--pause] SCRIPT...
 *
 *     SCRIPT --> lua_State --> fa_lua_alloc --> fa_manager { .limit = BYTES }
 *
 * A script that asks for more than the limit gets Lua's own "not enough memory", and the next one starts afresh. The
 * bytes of FILE are the global `secret` of each script. When a state is closed, all that it ever held has been zeroed; what
 * Lua's C code left on the stack is zeroed here, as no allocator can do it.
 *
 * --pause prints a word and waits for a line of input at three moments: "running", with the script done and its state
 * still open; "closed", without the state; "destroyed", without the manager. A debugger, or tests/test_examples.py, can
 * then look through the process's memory.
 *
 * Exit status: 0 if every script succeeded, 1 if one failed, 2 for bad arguments.
 */
#include <errno.h>
#include <fastalloc.h>
#include <inttypes.h>
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* As deep as Lua's C code goes here: 200 nested C calls at most (LUAI_MAXCCALLS), of a few hundred bytes or one luaL_Buffer. */
#define STACK_USED ((size_t)256 << 10)

typedef struct arguments {
    size_t limit;
    const char *secret_file;
    bool pause;
} arguments;

typedef struct job {
    const char *script;
    const char *secret;
    size_t secret_size;
} job;

static void pause_at(const arguments *given, const char *moment) {
    if (!given->pause) return;
    printf("%s\n", moment);
    fflush(stdout);
    for (int c = getchar(); c != '\n' && c != EOF;) c = getchar();
}

/* The calling function's own frame is above what this zeroes. */
#if defined(__GNUC__)
__attribute__((noinline))
#endif
static void
scrub_stack(void) {
    unsigned char below[STACK_USED];
    fa_secure_zero(below, sizeof below);
}

/* The file's bytes in a block of the manager, or null. Unbuffered: a buffer of the C library would keep a copy. */
static char *read_secret(fa_manager *manager, const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) return NULL;
    char *secret = NULL;
    setvbuf(file, NULL, _IONBF, 0);
    if (fseek(file, 0, SEEK_END) == 0) {
        const long end = ftell(file);
        if (end >= 0 && fseek(file, 0, SEEK_SET) == 0) {
            *size = (size_t)end;
            secret = fa_malloc(manager, *size);
            if (secret != NULL && fread(secret, 1, *size, file) != *size) {
                fa_free(manager, secret);
                secret = NULL;
            }
        }
    }
    fclose(file);
    return secret;
}

/* Any of this may run out of memory, so all of it is called in protected mode. */
static int run(lua_State *lua) {
    const job *given = lua_touserdata(lua, 1);
    luaL_openlibs(lua);
    if (given->secret != NULL) {
        lua_pushlstring(lua, given->secret, given->secret_size);
        lua_setglobal(lua, "secret");
    }
    if (luaL_loadfile(lua, given->script) != LUA_OK) return lua_error(lua);
    lua_call(lua, 0, 0);
    return 0;
}

/* Whether the script succeeded; what went wrong is printed. */
static bool run_script(const arguments *given, fa_manager *manager, const char *script) {
    job todo = {.script = script};
    if (given->secret_file != NULL) {
        todo.secret = read_secret(manager, given->secret_file, &todo.secret_size);
        if (todo.secret == NULL) {
            fprintf(stderr, "%s: cannot be read, or does not fit into the limit\n", given->secret_file);
            return false;
        }
    }
    lua_State *lua = lua_newstate(fa_lua_alloc, manager);
    if (lua == NULL) {
        fprintf(stderr, "%s: not even a Lua state fits into %zu bytes\n", script, given->limit);
        fa_free(manager, (char *)(uintptr_t)todo.secret);
        return false;
    }
    lua_pushcfunction(lua, run); /* neither of these allocates */
    lua_pushlightuserdata(lua, &todo);
    const bool succeeded = lua_pcall(lua, 1, 0, 0) == LUA_OK;
    if (!succeeded) {
        const char *message = lua_type(lua, -1) == LUA_TSTRING ? lua_tostring(lua, -1) : "an error without a message";
        fprintf(stderr, "%s: %s\n", script, message);
    }
    pause_at(given, "running");
    lua_close(lua);
    fa_free(manager, (char *)(uintptr_t)todo.secret);
    return succeeded;
}

static bool run_in_a_heap(const arguments *given, const char *script) {
    fa_manager_options options;
    fa_status status;
    fa_manager_options_init(&options);
    options.limit = given->limit;
    fa_manager *manager = fa_manager_create(&options, &status);
    if (manager == NULL) {
        fprintf(stderr, "%s: no heap: %s\n", script, fa_status_string(status));
        return false;
    }
    const bool succeeded = run_script(given, manager, script);
    scrub_stack();
    pause_at(given, "closed");

    fa_manager_stats stats;
    (void)fa_manager_get_stats(manager, &stats);
    printf("%s: %s; %" PRIu64 " blocks, %" PRIu64 " refused, %" PRIu64 " left\n", script,
           succeeded ? "succeeded" : "failed", stats.allocated, stats.failures, stats.live);
    fa_manager_destroy(manager);
    pause_at(given, "destroyed");
    return succeeded;
}

static int usage(void) {
    fprintf(stderr, "usage: limited [--limit BYTES] [--secret FILE] [--pause] SCRIPT...\n");
    return 2;
}

static bool parse_size(const char *text, size_t *size) {
    char *end;
    errno = 0;
    const unsigned long long value = strtoull(text, &end, 10);
    *size = (size_t)value;
    return errno == 0 && end != text && *end == '\0' && text[0] != '-' && value > 0 && value <= SIZE_MAX;
}

int main(int argc, char **argv) {
    arguments given = {.limit = (size_t)16 << 20};
    int i = 1;
    for (; i < argc && strncmp(argv[i], "--", 2) == 0; i++) {
        if (strcmp(argv[i], "--pause") == 0) {
            given.pause = true;
        } else if (strcmp(argv[i], "--secret") == 0 && i + 1 < argc) {
            given.secret_file = argv[++i];
        } else if (strcmp(argv[i], "--limit") == 0 && i + 1 < argc && parse_size(argv[i + 1], &given.limit)) {
            i++;
        } else {
            return usage();
        }
    }
    if (i == argc) return usage();
    bool succeeded = true;
    for (; i < argc; i++) succeeded = run_in_a_heap(&given, argv[i]) && succeeded;
    return succeeded ? 0 : 1;
}
