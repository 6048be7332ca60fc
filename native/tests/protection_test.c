/*
 * protection_test.c - what a witness arena does besides allocating, seen from outside: by a fault, a fork, a limit
 *
 * A protection that this machine does not have is skipped by name, never taken for granted, and so is a test of fork, of
 * limits or of privileges where there are none.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>

#include "child.h"
#if HAS_FORK
#include <grp.h>
#include <sys/mman.h>
#include <sys/resource.h>
#endif
#include "heap/arena.h"
#include "heap/manager.h"
#include "os/os.h"
#include "support.h"

/* ---- zero when handed out, wiped when released -------------------------------------------------------------------- */

TEST(witness_blocks_are_zero_when_handed_out) {
    fa_arena *arena = new_arena(FA_WITNESS, 4 * MIB);
    random_source random = {1};
    for (size_t round = 0; round < 5; round++) {
        unsigned char *blocks[50];
        size_t sizes[50];
        for (size_t i = 0; i < 200; i++) {
            const size_t slot = i % 50;
            if (i >= 50) fa_arena_free(arena, blocks[slot], sizes[slot]);
            sizes[slot] = random_below(&random, 30000);
            blocks[slot] = fa_arena_alloc(arena, sizes[slot], 0);
            CHECK(blocks[slot] != NULL);
            const size_t usable = fa_arena_usable_size(arena, blocks[slot]);
            CHECK(is_zero(blocks[slot], usable));
            memset(blocks[slot], 0xFF, usable);
        }
        CHECK(fa_arena_reset(arena) == FA_OK);
    }
    fa_arena_destroy(arena);
}

TEST(a_freed_witness_block_is_wiped) {
    fa_arena *arena = new_arena(FA_WITNESS, MIB);
    unsigned char *low = fa_arena_alloc(arena, 1000, 0), *newest = fa_arena_alloc(arena, 1000, 0);
    const size_t usable = fa_arena_usable_size(arena, low);
    memset(low, 0xFF, usable);
    memset(newest, 0xFF, usable);
    fa_arena_free(arena, low, 1000);
    CHECK(peek_nonzero(low, usable) == 0 && peek_nonzero(newest, usable) == usable);
    fa_arena_free(arena, newest, 1000);
    CHECK(peek_nonzero(newest, usable) == 0);
    fa_arena_destroy(arena);
}

TEST(a_freed_witness_block_is_wiped_whatever_size_is_claimed) {
    fa_arena *arena = new_arena(FA_WITNESS, MIB);
    unsigned char *block = fa_arena_alloc(arena, 10000, 0), *above = fa_arena_alloc(arena, 64, 0);
    memset(block, 0xFF, 10000);
    memset(above, 0xFF, 64);
    fa_arena_free(arena, block, 16); /* NumPy was seen to give a wrong size */
    CHECK(peek_nonzero(block, 10000) == 0 && peek_nonzero(above, 64) == 64);
    CHECK(fa_arena_is_valid(arena));
    fa_arena_destroy(arena);
}

TEST(a_reset_witness_arena_is_wiped) {
    fa_arena *arena = new_arena(FA_WITNESS, MIB);
    unsigned char *block = fa_arena_alloc(arena, 100 * KIB, 0);
    memset(block, 0xFF, 100 * KIB);
    CHECK(fa_arena_reset(arena) == FA_OK);
    CHECK(peek_nonzero(block, 100 * KIB) == 0);
    fa_arena_destroy(arena);
}

TEST(a_rewound_witness_arena_is_wiped_above_the_mark) {
    fa_arena *arena = new_arena(FA_WITNESS, MIB);
    unsigned char *below = fa_arena_alloc(arena, 1000, 0);
    memset(below, 0xFF, 1000);
    const fa_mark mark = fa_arena_mark(arena);
    unsigned char *above = fa_arena_alloc(arena, 10000, 0);
    memset(above, 0xFF, 10000);
    CHECK(fa_arena_rewind(arena, mark) == FA_OK);
    CHECK(peek_nonzero(above, 10000) == 0 && peek_nonzero(below, 1000) == 1000);
    fa_arena_destroy(arena);
}

/* Above 32 KiB a block has whole pages, all of which may be used. */
TEST(what_a_large_witness_block_gives_back_when_it_grows_is_wiped) {
    fa_arena *arena = new_arena(FA_WITNESS, MIB);
    const size_t size = 32 * KIB + 1;
    unsigned char *block = fa_arena_alloc(arena, size, 0);
    const size_t usable = fa_arena_usable_size(arena, block);
    CHECK(usable >= size + KIB);
    fill(block, usable, 7);
    CHECK(fa_arena_alloc(arena, 64, 0) != NULL);
    CHECK(fa_arena_realloc(arena, block, size, size + 1, 0) == block);
    const size_t given = usable - fa_arena_usable_size(arena, block);
    CHECK(is_filled(block, size + 1, 7) && given > 0);
    CHECK(is_zero(block + usable - given, given));
    fa_arena_destroy(arena);
}

TEST(a_witness_block_that_shrinks_or_moves_leaves_zeros_behind) {
    fa_arena *arena = new_arena(FA_WITNESS, MIB);
    unsigned char *block = fa_arena_alloc(arena, 10000, 0);
    memset(block, 0xFF, 10000);
    unsigned char *shrunk = fa_arena_realloc(arena, block, 10000, 100, 0);
    CHECK(shrunk != NULL);
    CHECK(peek_nonzero(block + 128, 10000 - 128) == 0);
    unsigned char *above = fa_arena_alloc(arena, 5000, 0);
    CHECK(is_zero(above, 5000));
    unsigned char *moved = fa_arena_realloc(arena, shrunk, 100, 50000, 0);
    CHECK(moved != NULL && moved != shrunk && peek_nonzero(shrunk, 128) == 0);
    CHECK(peek_nonzero(moved, 100) == 100 && is_zero(moved + 100, 50000 - 100));
    CHECK(fa_arena_is_valid(arena));
    fa_arena_destroy(arena);
}

/* ---- guard pages ------------------------------------------------------------------------------------------------- */

static fa_arena *guarded_arena(fa_arena_kind kind) {
    SKIP_IF(!fa_os_platform()->traps, "there are no guard pages here");
    fa_arena_options options = arena_options(kind, 64 * KIB);
    options.guard_pages = FA_REQUIRE;
    options.on_full = FA_FULL_FAIL;
    options.lock = FA_OFF;
    return arena_with(&options);
}

static int write_byte(void *address) {
    *(volatile char *)address = 1;
    return 0;
}

static int read_byte(void *address) { return *(volatile char *)address == 0 ? 0 : 1; }

__attribute__((no_sanitize("address", "thread", "undefined"))) static bool dies(int (*access)(void *), void *address) {
    const child_end end = run_in_child(access, address);
    return end.signal == SIGSEGV || end.signal == SIGBUS;
}

TEST(overflow_and_underflow_hit_a_guard_page) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = guarded_arena(kind);
        const size_t capacity = (size_t)arena_stats(arena).capacity;
        char *block = fa_arena_alloc(arena, capacity, 0);
        CHECK(arena_protection(arena).guarded >= 8192);
        CHECK(!dies(write_byte, block) && !dies(write_byte, block + capacity - 1));
        CHECK(dies(write_byte, block - 1) && dies(read_byte, block - 1));
        CHECK(dies(write_byte, block - 4096) && dies(write_byte, block + capacity));
        CHECK(dies(read_byte, block + capacity) && dies(read_byte, block + capacity + 4095));
        fa_arena_destroy(arena);
    }
}

TEST(without_guard_pages_none_are_claimed) {
    fa_arena_options options = arena_options(FA_POLYNOMIAL, MIB);
    options.guard_pages = FA_OFF;
    fa_arena *arena = arena_with(&options);
    CHECK(arena_protection(arena).guarded == 0);
    fa_arena_destroy(arena);
}

/* ---- fork -------------------------------------------------------------------------------------------------------- */

typedef struct seen_block {
    fa_arena *arena;
    unsigned char *block;
    size_t size;
} seen_block;

static int all_bytes_are_zero(void *argument) {
    const seen_block *seen = argument;
    return is_zero(seen->block, seen->size) ? 0 : 1;
}

static int all_bytes_are_there(void *argument) {
    const seen_block *seen = argument;
    return is_filled(seen->block, seen->size, 1) ? 0 : 1;
}

TEST(a_forked_child_sees_zeros_and_the_parent_its_secret) {
    NOT_UNDER_AN_EMULATOR;
    fa_arena *arena = new_arena(FA_WITNESS, MIB);
    SKIP_IF(arena_protection(arena).wipe_on_fork == 0, "the kernel does not wipe on fork");
    seen_block seen = {arena, fa_arena_alloc(arena, 10000, 0), 10000};
    fill(seen.block, seen.size, 1);
    CHECK(run_in_child(all_bytes_are_zero, &seen).exit_status == 0);
    CHECK(is_filled(seen.block, seen.size, 1));
    fa_arena_destroy(arena);
}

TEST(other_arenas_are_inherited_by_a_child) {
    SKIP_IF(!HAS_FORK, NO_FORK);
    fa_arena *arena = new_arena(FA_POLYNOMIAL, MIB);
    seen_block seen = {arena, fa_arena_alloc(arena, 10000, 0), 10000};
    fill(seen.block, seen.size, 1);
    CHECK(run_in_child(all_bytes_are_there, &seen).exit_status == 0);
    fa_arena_destroy(arena);
}

static int go_on(void *argument) {
    seen_block *seen = argument;
    unsigned char *more = fa_arena_alloc(seen->arena, 5000, 0);
    CHECK(more != NULL);
    fill(more, 5000, 2);
    fa_arena_free(seen->arena, seen->block, seen->size);
    CHECK(is_filled(more, 5000, 2));
    CHECK(fa_arena_is_valid(seen->arena));
    fa_arena_destroy(seen->arena);
    return 0;
}

TEST(an_arena_goes_on_in_a_forked_child) {
    SKIP_IF(!HAS_FORK, NO_FORK);
    FOR_EACH_KIND(kind) {
        fa_arena *arena = new_arena(kind, MIB);
        seen_block seen = {arena, fa_arena_alloc(arena, 10000, 0), 10000};
        fill(seen.block, seen.size, 1);
        const child_end end = run_in_child(go_on, &seen);
        if (end.exit_status != 0) printf("# %s\n", end.errors);
        CHECK(end.exit_status == 0);
        CHECK(is_filled(seen.block, seen.size, 1) && arena_stats(arena).live == 1);
        fa_arena_destroy(arena);
    }
}

TEST(the_fork_hooks_hold_an_arena_still) {
#if HAS_FORK
    FOR_EACH_KIND(kind) {
        fa_arena_options options = arena_options(kind, MIB);
        options.flags = FA_TRACKED;
        fa_arena *arena = arena_with(&options);
        seen_block seen = {arena, fa_arena_alloc(arena, 10000, 0), 10000};
        fa_arena_fork_prepare(arena);
        const pid_t child = fork();
        if (child == 0) {
            fa_arena_fork_child(arena);
            _exit(go_on(&seen));
        }
        fa_arena_fork_parent(arena);
        int status = -1;
        CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
        fa_arena_free(arena, seen.block, seen.size);
        CHECK(fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
#else
    SKIP(NO_FORK);
#endif
}

TEST(the_fork_hooks_hold_a_manager_still) {
#if HAS_FORK
    fa_manager_options options;
    fa_manager_options_init(&options);
    options.flags = FA_LOCKED;
    fa_manager *manager = manager_with(&options);
    void *block = fa_malloc(manager, 100);
    fa_manager_fork_prepare(manager);
    const pid_t child = fork();
    if (child == 0) {
        fa_manager_fork_child(manager);
        fa_free(manager, block);
        const bool works = fa_malloc(manager, MIB) != NULL && fa_manager_is_valid(manager);
        fa_manager_destroy(manager);
        _exit(works ? 0 : 1);
    }
    fa_manager_fork_parent(manager);
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    fa_free(manager, block);
    fa_manager_destroy(manager);
#else
    SKIP(NO_FORK);
#endif
}

/* ---- locks ------------------------------------------------------------------------------------------------------- */

/* The sanitizers replace mlock by nothing at all. */
static bool mlock_is_real(void) {
    return fa_os_platform()->lock((void *)(uintptr_t)4096, 4096) != 0; /* nothing is mapped there */
}

TEST(a_witness_arena_says_what_it_locked) {
    fa_arena_options options = arena_options(FA_WITNESS, MIB);
    options.lock = FA_TRY;
    fa_arena *arena = arena_with(&options);
    memset(fa_arena_alloc(arena, 10000, 0), 1, 10000);
    const fa_protection protection = arena_protection(arena);
    CHECK(protection.lock_wanted >= 10000 && protection.locked <= protection.lock_wanted);
    CHECK(protection.locked == 0 || protection.locked >= 10000);
    fa_arena_destroy(arena);
}

TEST(an_unlocked_arena_locks_nothing) {
    fa_arena_options options = arena_options(FA_WITNESS, MIB);
    options.lock = FA_OFF;
    fa_arena *arena = arena_with(&options);
    memset(fa_arena_alloc(arena, 10000, 0), 1, 10000);
    CHECK(arena_protection(arena).locked == 0 && arena_protection(arena).lock_wanted == 0);
    fa_arena_destroy(arena);
}

#if HAS_FORK

/* Becomes somebody without privileges who may lock 64 KiB. */
static void give_up_privileges(void) {
    const struct rlimit limit = {64 * KIB, 64 * KIB};
    CHECK(setrlimit(RLIMIT_MEMLOCK, &limit) == 0);
    if (geteuid() != 0) return;
    CHECK(setgroups(0, NULL) == 0 && setgid(65534) == 0 && setuid(65534) == 0);
}

static int lock_try_beyond_the_limit(void *unused) {
    (void)unused;
    give_up_privileges();
    fa_arena_options options = arena_options(FA_WITNESS, MIB);
    options.lock = FA_TRY;
    fa_arena *arena = arena_with(&options);
    unsigned char *block = fa_arena_alloc(arena, 512 * KIB, 0);
    CHECK(block != NULL); /* tried, not required */
    fill(block, 512 * KIB, 1);
    const fa_protection protection = arena_protection(arena);
    CHECK(protection.lock_limit == 64 * KIB);
    CHECK(protection.lock_wanted >= 512 * KIB && protection.locked < protection.lock_wanted);
    fa_arena_destroy(arena);
    return 0;
}

static int lock_require_beyond_the_limit(void *unused) {
    (void)unused;
    give_up_privileges();
    fa_arena_options options = arena_options(FA_WITNESS, MIB);
    options.lock = FA_REQUIRE;
    fa_status status = FA_OK;
    fa_arena *arena = fa_arena_create(&options, &status);
    if (arena == NULL) {
        CHECK(status == FA_ERR_LOCK);
        return 0;
    }
    unsigned char *small = fa_arena_alloc(arena, 10000, 0);
    CHECK(small != NULL && arena_protection(arena).locked >= 10000);
    fill(small, 10000, 1);
    CHECK(fa_arena_alloc(arena, 512 * KIB, 0) == NULL); /* growth fails, visibly */
    CHECK(arena_stats(arena).failures == 1 && arena_stats(arena).live == 1 && is_filled(small, 10000, 1));
    CHECK(fa_arena_alloc(arena, 100, 0) != NULL); /* and what is locked can still be used */
    CHECK(fa_arena_is_valid(arena));
    fa_arena_destroy(arena);
    return 0;
}

static int lock_require_without_any_limit_left(void *unused) {
    (void)unused;
    give_up_privileges();
    const struct rlimit none = {0, 0};
    CHECK(setrlimit(RLIMIT_MEMLOCK, &none) == 0);
    fa_arena_options options = arena_options(FA_WITNESS, MIB);
    options.lock = FA_REQUIRE;
    fa_status status = FA_OK;
    fa_arena *arena = fa_arena_create(&options, &status);
    if (arena == NULL) {
        CHECK(status == FA_ERR_LOCK);
        return 0;
    }
    CHECK(fa_arena_alloc(arena, 1, 0) == NULL);
    fa_arena_destroy(arena);
    return 0;
}

#else

static int (*const lock_try_beyond_the_limit)(void *), (*const lock_require_beyond_the_limit)(void *);
static int (*const lock_require_without_any_limit_left)(void *), (*const create_beyond_the_address_space)(void *);

#endif

TEST(a_lock_that_is_tried_and_fails_shows_in_the_protection) {
    SKIP_IF(!mlock_is_real(), "the sanitizer replaces mlock");
    passes_in_child(lock_try_beyond_the_limit, NULL);
}

TEST(a_lock_that_is_required_and_fails_is_an_error) {
    SKIP_IF(!mlock_is_real(), "the sanitizer replaces mlock");
    passes_in_child(lock_require_beyond_the_limit, NULL);
    passes_in_child(lock_require_without_any_limit_left, NULL);
}

TEST(trim_unlocks_what_it_gives_back) {
    SKIP_IF(!mlock_is_real(), "the sanitizer replaces mlock");
    fa_arena_options options = arena_options(FA_WITNESS, 4 * MIB);
    options.lock = FA_TRY;
    fa_arena *arena = arena_with(&options);
    void *block = fa_arena_alloc(arena, 2 * MIB, 0);
    const uint64_t locked = arena_protection(arena).locked;
    SKIP_IF(locked < 2 * MIB, "this process may not lock 2 MiB");
    memset(block, 1, 2 * MIB);
    fa_arena_free(arena, block, 2 * MIB);
    CHECK(fa_arena_trim(arena, 0) == FA_OK);
    CHECK(arena_protection(arena).locked < MIB && arena_stats(arena).resident < MIB);
    CHECK(is_zero(fa_arena_alloc(arena, 2 * MIB, 0), 2 * MIB));
    CHECK(arena_protection(arena).locked >= 2 * MIB); /* and locks again what is used again */
    fa_arena_destroy(arena);
}

/* ---- core dumps, huge pages, address space ------------------------------------------------------------------------ */

/* The VmFlags line of the mapping that `address` lies in. */
static bool mapping_has_flag(const void *address, const char *flag) {
    FILE *maps = fopen("/proc/self/smaps", "r");
    if (maps == NULL) return false;
    char line[1024];
    bool inside = false, found = false;
    while (fgets(line, sizeof line, maps) != NULL && !found) {
        unsigned long long start = 0, end = 0;
        if (sscanf(line, "%llx-%llx ", &start, &end) == 2) {
            inside = (uintptr_t)address >= start && (uintptr_t)address < end;
        } else if (inside && strncmp(line, "VmFlags:", 8) == 0) {
            found = strstr(line, flag) != NULL;
        }
    }
    fclose(maps);
    return found;
}

TEST(the_kernel_agrees_with_the_record_of_protections) {
    NOT_UNDER_AN_EMULATOR;
    fa_arena_options options = arena_options(FA_WITNESS, MIB);
    options.lock = FA_TRY;
    fa_arena *arena = arena_with(&options);
    unsigned char *block = fa_arena_alloc(arena, 10000, 0);
    const fa_protection protection = arena_protection(arena);
    SKIP_IF(!mapping_has_flag(block, "rd"), "no /proc/self/smaps");
    CHECK((protection.no_dump > 0) == mapping_has_flag(block, " dd"));
    CHECK((protection.wipe_on_fork > 0) == mapping_has_flag(block, " wf"));
    if (mlock_is_real()) CHECK((protection.locked > 0) == mapping_has_flag(block, " lo"));
    CHECK(protection.no_dump == 0 || protection.no_dump >= arena_stats(arena).capacity);
    fa_arena_destroy(arena);
}

TEST(transparent_huge_pages_are_asked_for_on_an_aligned_region) {
    NOT_UNDER_AN_EMULATOR;
    fa_arena_options options = arena_options(FA_POLYNOMIAL, 8 * MIB);
    options.huge_pages = FA_HUGE_TRANSPARENT;
    fa_arena *arena = arena_with(&options);
    void *block = fa_arena_alloc(arena, 100, 0);
    CHECK(is_aligned(block, 2 * MIB)); /* the first block stands at the base */
    CHECK((arena_protection(arena).transparent_huge > 0) == mapping_has_flag(block, " hg"));
    CHECK(arena_protection(arena).reserved_huge == 0);
    fa_arena_destroy(arena);
}

TEST(without_huge_pages_none_are_asked_for) {
    fa_arena_options options = arena_options(FA_POLYNOMIAL, 8 * MIB);
    options.huge_pages = FA_HUGE_OFF;
    fa_arena *arena = arena_with(&options);
    CHECK(!mapping_has_flag(fa_arena_alloc(arena, 100, 0), " hg"));
    CHECK(arena_protection(arena).transparent_huge == 0 && arena_protection(arena).reserved_huge == 0);
    fa_arena_destroy(arena);
}

TEST(reserved_huge_pages_are_had_or_fall_back_visibly) {
    NOT_UNDER_AN_EMULATOR;
    const fa_huge_pages wanted[] = {FA_HUGE_TLB_2M, FA_HUGE_TLB_1G};
    FOR_EACH_KIND(kind) {
        for (size_t i = 0; i < 2; i++) {
            fa_arena_options options = arena_options(kind, 4 * MIB);
            options.huge_pages = wanted[i];
            fa_arena *arena = arena_with(&options);
            unsigned char *block = fa_arena_alloc(arena, MIB, 0);
            CHECK(block != NULL && is_aligned(block, 2 * MIB));
            const fa_protection protection = arena_protection(arena);
            CHECK(protection.reserved_huge == 0 || protection.transparent_huge == 0);
            if (protection.reserved_huge == 0) {
                CHECK((protection.transparent_huge > 0) == mapping_has_flag(block, " hg"));
            }
            fill(block, MIB, 1);
            CHECK(is_filled(block, MIB, 1) && fa_arena_is_valid(arena));
            CHECK(fa_arena_reset(arena) == FA_OK && trim_is_fine(fa_arena_trim(arena, 0)));
            CHECK(is_zero(fa_arena_alloc_zeroed(arena, MIB, 0), MIB));
            fa_arena_destroy(arena);
        }
    }
}

#if HAS_FORK
static int create_beyond_the_address_space(void *unused) {
    (void)unused;
    const struct rlimit limit = {256 * MIB, 256 * MIB};
    CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
    FOR_EACH_KIND(kind) {
        fa_arena_options options = arena_options(kind, 1024 * MIB);
        fa_status status = FA_OK;
        CHECK(fa_arena_create(&options, &status) == NULL && status == FA_ERR_NOMEM);
        options.capacity = 16 * MIB;
        options.lock = FA_OFF;
        fa_arena *arena = fa_arena_create(&options, &status);
        CHECK(arena != NULL && status == FA_OK);
        CHECK(fa_arena_alloc(arena, 512 * MIB, 0) == NULL); /* nor has malloc got it */
        CHECK(fa_arena_alloc(arena, MIB, 0) != NULL);
        fa_arena_destroy(arena);
    }
    fa_manager *manager = manager_with(NULL);
    unsigned char *block = fa_malloc(manager, 64 * MIB);
    CHECK(block != NULL);
    fill(block, 1000, 1);
    CHECK(fa_malloc(manager, 512 * MIB) == NULL && fa_realloc(manager, block, 512 * MIB) == NULL);
    CHECK(is_filled(block, 1000, 1) && fa_manager_is_valid(manager));
    fa_manager_destroy(manager);
    return 0;
}

#endif

TEST(an_address_space_limit_is_met_with_an_error) {
    NOT_UNDER_AN_EMULATOR;
    SKIP_IF(UNDER_SANITIZER, "a sanitizer needs the whole address space");
    passes_in_child(create_beyond_the_address_space, NULL);
}

int main(int argc, char **argv) { return tap_main(argc, argv); }
