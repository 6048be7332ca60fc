/*
 * lua_test.c - Lua 5.4 with a manager as its allocator, running real scripts
 */
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>

#include "heap/manager.h"
#include "support.h"

/* Strings, tables, closures, coroutines, garbage: what a script does to an allocator. Returns a number to check. */
static const char script[] =
    "local words, count = {}, 0\n"
    "for i = 1, 20000 do\n"
    "    local word = string.format('%x', i * 2654435761 % 65536)\n"
    "    words[word] = (words[word] or 0) + 1\n"
    "    count = count + #word\n"
    "end\n"
    "local keys = {}\n"
    "for word in pairs(words) do keys[#keys + 1] = word end\n"
    "table.sort(keys)\n"
    "local text = table.concat(keys, ',')\n"
    "local function primes(limit)\n"
    "    return coroutine.wrap(function()\n"
    "        local composite = {}\n"
    "        for i = 2, limit do\n"
    "            if not composite[i] then\n"
    "                coroutine.yield(i)\n"
    "                for j = i * i, limit, i do composite[j] = true end\n"
    "            end\n"
    "        end\n"
    "    end)\n"
    "end\n"
    "local sum = 0\n"
    "for prime in primes(10000) do sum = sum + prime end\n"
    "local big = string.rep('x', 1 << 20)\n"
    "assert(#text > 0 and #big == 1048576 and big:reverse() == big)\n"
    "for i = 1, 200 do local garbage = {i, tostring(i), function() return i end} end\n"
    "collectgarbage()\n"
    "return sum\n";

/* As `pool_blocks`: a hardened manager. */
#define HARDENED SIZE_MAX

static fa_manager *manager_of(size_t limit, size_t pool_blocks) {
    fa_manager_options options;
    fa_manager_options_init(&options);
    options.limit = limit;
    if (pool_blocks == HARDENED) options.flags = FA_HARDENED;
    options.pool_blocks = pool_blocks;
    return manager_with(&options);
}

TEST(a_real_script_runs_and_nothing_is_left) {
    const size_t pools[] = {8192, 50, 0, HARDENED};
    for (size_t i = 0; i < 4; i++) {
        fa_manager *manager = manager_of(0, pools[i]);
        lua_State *lua = lua_newstate(fa_lua_alloc, manager);
        CHECK(lua != NULL);
        luaL_openlibs(lua);
        const int failed = luaL_dostring(lua, script);
        if (failed) printf("# %s\n", lua_tostring(lua, -1));
        CHECK(!failed && lua_tointeger(lua, -1) == 5736396); /* the sum of the primes below 10,000 */
        CHECK(manager_stats(manager).live > 100 && manager_stats(manager).failures == 0);
        CHECK(fa_manager_is_valid(manager));
        lua_close(lua);
        const fa_manager_stats stats = manager_stats(manager);
        CHECK(stats.live == 0 && stats.requested == 0 && stats.allocated == stats.freed);
        CHECK(fa_manager_is_valid(manager));
        fa_manager_destroy(manager);
    }
}

static void agrees_with_lua(size_t pool_blocks) {
    fa_manager *manager = manager_of(0, pool_blocks);
    lua_State *lua = lua_newstate(fa_lua_alloc, manager);
    luaL_openlibs(lua);
    CHECK(!luaL_dostring(lua, script));
    const uint64_t lua_bytes = (uint64_t)lua_gc(lua, LUA_GCCOUNT) * 1024 + (uint64_t)lua_gc(lua, LUA_GCCOUNTB);
    CHECK(manager_stats(manager).requested == lua_bytes);
    lua_close(lua);
    fa_manager_destroy(manager);
}

TEST(lua_agrees_on_how_much_memory_it_has) { agrees_with_lua(8192); }
TEST(lua_agrees_on_how_much_memory_it_has_hardened) { agrees_with_lua(HARDENED); }

static void runs_out_of_memory(size_t pool_blocks) {
    fa_manager *manager = manager_of(MIB, pool_blocks);
    lua_State *lua = lua_newstate(fa_lua_alloc, manager);
    CHECK(lua != NULL);
    luaL_openlibs(lua);
    CHECK(luaL_loadstring(lua, "local t = {} while true do t[#t + 1] = string.rep('x', 1000) .. #t end") == LUA_OK);
    CHECK(lua_pcall(lua, 0, 0, 0) == LUA_ERRMEM);
    CHECK(strcmp(lua_tostring(lua, -1), "not enough memory") == 0);
    CHECK(manager_stats(manager).requested <= MIB && manager_stats(manager).failures > 0);
    lua_settop(lua, 0);
    lua_gc(lua, LUA_GCCOLLECT);
    CHECK(!luaL_dostring(lua, "return 6 * 7") && lua_tointeger(lua, -1) == 42); /* the state goes on */
    CHECK(fa_manager_is_valid(manager));
    lua_close(lua);
    CHECK(manager_stats(manager).live == 0);
    fa_manager_destroy(manager);
}

TEST(a_limit_gives_luas_own_not_enough_memory) { runs_out_of_memory(8192); }
TEST(a_limit_gives_luas_own_not_enough_memory_hardened) { runs_out_of_memory(HARDENED); }

TEST(a_state_that_does_not_fit_is_not_created) {
    fa_manager *manager = manager_of(100, 8192);
    CHECK(lua_newstate(fa_lua_alloc, manager) == NULL);
    CHECK(manager_stats(manager).live == 0);
    fa_manager_destroy(manager);
}

TEST(a_state_dies_with_its_manager) { /* LeakSanitizer is the judge */
    fa_manager *manager = manager_of(0, 100);
    lua_State *lua = lua_newstate(fa_lua_alloc, manager);
    luaL_openlibs(lua);
    CHECK(!luaL_dostring(lua, script));
    fa_manager_destroy(manager); /* without lua_close */
}

int main(int argc, char **argv) { return tap_main(argc, argv); }
