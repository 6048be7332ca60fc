/*
 * death_test.c - what happens when a corrupt program has no handler: one line, exactly worded, and SIGABRT
 */
#include <ctype.h>
#include <inttypes.h>

#include "child.h"
#include "support.h"

/* As the messages print it, which is not how every C library prints a pointer. */
static void say_address(const void *pointer) { fprintf(stderr, "0x%" PRIxPTR "\n", (uintptr_t)pointer); }

static int arena_double_free(void *unused) {
    (void)unused;
    fa_arena_options options = arena_options(FA_POLYNOMIAL, MIB);
    options.name = "vectors";
    fa_arena *arena = arena_with(&options);
    void *block = fa_arena_alloc(arena, 100, 0), *above = fa_arena_alloc(arena, 100, 0);
    say_address(block);
    fa_arena_free(arena, block, 100);
    fa_arena_free(arena, block, 100);
    return above != NULL ? 0 : 1;
}

static int arena_interior_free(void *unused) {
    (void)unused;
    fa_arena_options options = arena_options(FA_WITNESS, MIB);
    options.name = "keys";
    fa_arena *arena = arena_with(&options);
    unsigned char *block = fa_arena_alloc(arena, 1000, 0);
    say_address(block + 64);
    fa_arena_free(arena, block + 64, 100);
    return 0;
}

static int arena_foreign_free(void *unused) {
    (void)unused;
    fa_arena_options options = arena_options(FA_POLYNOMIAL, MIB);
    options.name = "vectors";
    fa_arena *arena = arena_with(&options);
    int local = 0;
    void *volatile foreign = &local; /* or link-time optimisation sees the misuse and warns */
    say_address(foreign);
    fa_arena_free(arena, foreign, sizeof local);
    return 0;
}

static int arena_foreign_realloc(void *unused) {
    (void)unused;
    fa_arena_options options = arena_options(FA_POLYNOMIAL, MIB);
    options.name = "vectors";
    fa_arena *arena = arena_with(&options);
    int local = 0;
    void *volatile foreign = &local; /* or link-time optimisation sees the misuse and warns */
    say_address(foreign);
    (void)fa_arena_realloc(arena, foreign, sizeof local, 100, 0);
    return 0;
}

static int manager_double_free(void *unused) {
    (void)unused;
    fa_manager *manager = manager_with(NULL);
    void *block = fa_malloc(manager, 32);
    say_address(block);
    fa_free(manager, block);
    fa_free(manager, block);
    return 0;
}

static int manager_interior_free(void *unused) {
    (void)unused;
    fa_manager *manager = manager_with(NULL);
    unsigned char *block = fa_malloc(manager, 100);
    say_address(block + 16);
    fa_free(manager, block + 16);
    return 0;
}

static int manager_foreign_free(void *unused) {
    (void)unused;
    fa_manager *manager = manager_with(NULL);
    int local = 0;
    void *volatile foreign = &local; /* or link-time optimisation sees the misuse and warns */
    say_address(foreign);
    fa_free(manager, foreign);
    return 0;
}

static int manager_foreign_realloc(void *unused) {
    (void)unused;
    fa_manager *manager = manager_with(NULL);
    int local = 0;
    void *volatile foreign = &local; /* or link-time optimisation sees the misuse and warns */
    say_address(foreign);
    (void)fa_realloc(manager, foreign, 100);
    return 0;
}

/* The child first prints the address it will misuse; `words` has %s in its place. */
static void dies_saying(int (*run)(void *), const char *before, const char *after) {
    const child_end end = run_in_child(run, NULL);
    char address[32] = "", expected[512];
    CHECK(sscanf(end.errors, "%31s", address) == 1);
    snprintf(expected, sizeof expected, "%s\n%s%s%s\n", address, before, address, after);
    if (strcmp(end.errors, expected) != 0) printf("# said: %s# not: %s", end.errors, expected);
    CHECK(strcmp(end.errors, expected) == 0);
    CHECK(end.signal == SIGABRT);
}

#define NOT_LIVE ", which is not a live block of "
#define NOT_OURS ", which does not belong to "

TEST(a_double_free_in_an_arena_aborts) {
    dies_saying(arena_double_free, "fastalloc: free of ", NOT_LIVE "arena 'vectors'");
}
TEST(a_free_of_an_interior_pointer_in_an_arena_aborts) {
    dies_saying(arena_interior_free, "fastalloc: free of ", NOT_LIVE "arena 'keys'");
}
TEST(a_free_of_a_foreign_pointer_in_an_arena_aborts) {
    dies_saying(arena_foreign_free, "fastalloc: free of ", NOT_OURS "arena 'vectors'");
}
TEST(a_realloc_of_a_foreign_pointer_in_an_arena_aborts) {
    dies_saying(arena_foreign_realloc, "fastalloc: realloc of ", NOT_OURS "arena 'vectors'");
}
TEST(a_double_free_in_a_manager_aborts) { dies_saying(manager_double_free, "fastalloc: free of ", NOT_LIVE "manager"); }
TEST(a_free_of_an_interior_pointer_in_a_manager_aborts) {
    dies_saying(manager_interior_free, "fastalloc: free of ", NOT_LIVE "manager");
}
TEST(a_free_of_a_foreign_pointer_in_a_manager_aborts) {
    dies_saying(manager_foreign_free, "fastalloc: free of ", NOT_OURS "manager");
}
TEST(a_realloc_of_a_foreign_pointer_in_a_manager_aborts) {
    dies_saying(manager_foreign_realloc, "fastalloc: realloc of ", NOT_OURS "manager");
}

int main(int argc, char **argv) { return tap_main(argc, argv); }
