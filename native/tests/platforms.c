/*
 * platforms.c - what this platform protects, found out by asking for it: a row of docs/platforms.md on each line
 *
 * Run by `python tests/cross.py --platforms`, which makes the table of what it prints for each target.
 */
#include "child.h"
#include "os/os.h"
#include "support.h"

static void row(const char *name, const char *value) { printf("%s\t%s\n", name, value); }
static void row_if(const char *name, bool has) { row(name, has ? "yes" : "no"); }

static int try_protect(const fa_os *os, void *page, size_t size) { return os->protect(page, size, FA_OS_NONE); }
static int try_random(const fa_os *os, void *page, size_t size) { return os->random(page, size); }

static const char *reserved_huge_pages(void) {
    void *mapped = NULL;
    const size_t size = 2 * MIB;
    const int error = fa_os_platform()->map_huge(size, size, &mapped);
    if (error == 0) (void)fa_os_platform()->release(mapped, size);
    return error == FA_OS_UNSUPPORTED ? "no" : "if the system has some";
}

TEST(what_this_platform_has) {
    fa_arena_options options = arena_options(FA_WITNESS, MIB);
    options.guard_pages = options.lock = options.no_dump = options.wipe_on_fork = FA_TRY;
    fa_arena *arena = arena_with(&options);
    unsigned char *block = fa_arena_alloc(arena, 1000, 0);
    fill(block, 1000, 1);
    const fa_protection got = arena_protection(arena);
    row_if("guard pages at both ends", got.guarded > 0);
    options.guard = FA_GUARD_BLOCKS;
    options.guard_pages = FA_REQUIRE;
    fa_arena *guarded = fa_arena_create(&options, NULL);
    row_if("a guard page after every block", guarded != NULL);
    fa_arena_destroy(guarded);
    row_if("sealed: read-only or inaccessible", can(try_protect) && fa_arena_seal(arena, FA_SEAL_NONE) == FA_OK &&
                                                  fa_arena_unseal(arena) == FA_OK);
    row_if("locked in RAM", got.locked > 0);
    row_if("out of core dumps", got.no_dump > 0);
    row("zero in a forked child", HAS_FORK ? got.wipe_on_fork > 0 ? "yes" : "no" : "there is no fork");
    options = arena_options(FA_WITNESS, MIB);
    options.secret_memory = FA_REQUIRE;
    fa_arena *secret = fa_arena_create(&options, NULL);
    row_if("out of a debugger's reach (secret memory)", secret != NULL);
    fa_arena_destroy(secret);
    fa_arena_free(arena, block, 1000);
    row_if("zero after it is freed", peek_nonzero(block, 1000) == 0);
    fa_arena_destroy(arena);

    row_if("random numbers for canaries", can(try_random));
    options = arena_options(FA_POLYNOMIAL, 8 * MIB);
    fa_arena *vectors = arena_with(&options);
    row_if("huge pages on demand", arena_protection(vectors).transparent_huge > 0);
    fa_arena_destroy(vectors);
    row("reserved huge pages", reserved_huge_pages());
    row("memory is charged", fa_os_platform()->lazy_commit ? "when touched" : "when committed, as it is used");
    row_if("pages are given back by trim", can(try_decommit));
    row_if("large blocks grow by moving pages", can(try_remap));
    row_if("resident bytes are known", can(try_resident));
    row_if("threads", HAS_THREADS);
}

int main(int argc, char **argv) { return tap_main(argc, argv); }
