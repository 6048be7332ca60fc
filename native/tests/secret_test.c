/*
 * secret_test.c - guard pages after blocks, canaries, seals, secret memory: seen from outside by a fault, a signal, a fork
 *
 * What this machine does not have is skipped by name: fork, limits, pages that can be protected.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define _FILE_OFFSET_BITS 64 /* addresses in /proc/self/mem, also of 32 bits */
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>

#include "child.h"
#if HAS_FORK
#include <fcntl.h>
#include <grp.h>
#endif
#include "heap/arena.h"
#include "os/os.h"
#include "support.h"

#define PAGE ((size_t)fa_os_platform()->page_size())

/* The sanitizers replace mlock by nothing at all. */
static bool mlock_is_real(void) {
    return fa_os_platform()->lock((void *)(uintptr_t)4096, 4096) != 0; /* nothing is mapped there */
}

static int write_byte(void *address) {
    *(volatile unsigned char *)address = 1;
    return 0;
}

static int read_byte(void *address) { return *(volatile unsigned char *)address == 0 ? 0 : 1; }

static bool dies(int (*access)(void *), void *address) {
    const child_end end = run_in_child(access, address);
    return end.signal == SIGSEGV || end.signal == SIGBUS;
}

/* Becomes somebody without privileges who may lock so many bytes. */
static void may_lock(size_t bytes) {
#if HAS_FORK
    const struct rlimit limit = {bytes, bytes};
    CHECK(setrlimit(RLIMIT_MEMLOCK, &limit) == 0);
    if (geteuid() != 0) return;
    CHECK(setgroups(0, NULL) == 0 && setgid(65534) == 0 && setuid(65534) == 0);
#else
    (void)bytes; /* only children call it */
#endif
}

static int try_protect(const fa_os *os, void *page, size_t size) { return os->protect(page, size, FA_OS_READ); }
static int try_no_dump(const fa_os *os, void *page, size_t size) { return os->no_dump(page, size); }
static int try_wipe_on_fork(const fa_os *os, void *page, size_t size) { return os->wipe_on_fork(page, size); }
#define NO_PROTECTION "pages cannot be protected here"

static corruption_note noted;

static fa_arena_options guarded_options(size_t capacity) {
    SKIP_IF(!fa_os_platform()->traps, "there are no guard pages here");
    fa_arena_options options = arena_options(FA_WITNESS, capacity);
    options.guard = FA_GUARD_BLOCKS;
    options.name = "keys";
    return options;
}

/* Notes what is reported. */
static fa_arena *guarded_arena(size_t capacity) {
    fa_arena_options options = guarded_options(capacity);
    memset(&noted, 0, sizeof noted);
    options.on_corruption = note_corruption;
    options.corruption_context = &noted;
    return arena_with(&options);
}

TEST(a_guarded_block_has_the_least_alignment_of_all_blocks) {
    fa_arena *arena = guarded_arena(MIB);
    for (size_t alignment = 1; alignment <= 16; alignment *= 2) {
        unsigned char *block = fa_arena_alloc(arena, 33, alignment);
        CHECK(is_aligned(block, 2 * sizeof(void *)));
        block = fa_arena_realloc(arena, block, 33, 49, alignment);
        CHECK(is_aligned(block, 2 * sizeof(void *)));
    }
    fa_arena_destroy(arena);
}

/* ---- a guard page after every block ------------------------------------------------------------------------------- */

TEST(a_guarded_block_ends_at_a_guard_page) {
    fa_arena *arena = guarded_arena(4 * MIB);
    static const size_t sizes[] = {0, 1, 15, 16, 17, 32, 64, 100, 4064, 4079, 4080, 4081, 4095, 4096, 4097, 8192, 50000};
    for (size_t alignment = 16; alignment <= PAGE; alignment *= 4) {
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            const size_t size = sizes[i], end = ((size > 0 ? size : 1) + alignment - 1) / alignment * alignment;
            unsigned char *block = fa_arena_alloc(arena, size, alignment);
            CHECK(block != NULL && is_aligned(block, alignment) && is_aligned(block + end, PAGE));
            CHECK(is_zero(block, size) && fa_arena_usable_size(arena, block) == size);
            CHECK(fa_arena_is_live(arena, block) && !fa_arena_is_live(arena, block + 16));
            memset(block, 0xFF, size);
            CHECK(fa_arena_is_valid(arena));
            if (i % 4 == 0) CHECK(dies(write_byte, block + end) && dies(read_byte, block + end + PAGE - 1));
            if (i % 2 == 0) fa_arena_free(arena, block, size);
        }
    }
    CHECK(noted.count == 0);
    fa_arena_destroy(arena);
    CHECK(noted.count == 0);
}

TEST(a_freed_guarded_block_dies_when_touched) {
    fa_arena *arena = guarded_arena(MIB);
    unsigned char *low = fa_arena_alloc(arena, 100, 0), *block = fa_arena_alloc(arena, 100, 0);
    CHECK(!dies(write_byte, block));
    fa_arena_free(arena, low, 100);
    CHECK(dies(read_byte, low) && !dies(write_byte, block));
    fa_arena_free(arena, block, 100);
    CHECK(dies(read_byte, block) && dies(write_byte, block));
    CHECK(arena_protection(arena).guarded_blocks == 0);
    fa_arena_destroy(arena);
}

TEST(a_guarded_block_is_zero_when_it_is_handed_out_again) {
    fa_arena *arena = guarded_arena(MIB);
    for (size_t round = 0; round < 4; round++) {
        unsigned char *blocks[20];
        for (size_t i = 0; i < 20; i++) {
            const size_t size = (i * 1237 + round * 401) % 12000;
            blocks[i] = fa_arena_alloc(arena, size, 0);
            CHECK(is_zero(blocks[i], size));
            memset(blocks[i], 0xFF, size);
        }
        if (round == 3) CHECK(fa_arena_reset(arena) == FA_OK);
        else
            for (size_t i = 0; i < 20; i++) fa_arena_free(arena, blocks[(i * 7) % 20], 0);
        CHECK(fa_arena_is_valid(arena) && arena_stats(arena).live == 0 && arena_stats(arena).used == 0);
    }
    CHECK(noted.count == 0);
    fa_arena_destroy(arena);
}

TEST(a_guarded_arena_locks_the_pages_of_live_blocks) {
    SKIP_IF(!mlock_is_real(), "the sanitizer replaces mlock");
    fa_arena *arena = guarded_arena(MIB);
    CHECK(arena_protection(arena).locked == 0);
    void *small = fa_arena_alloc(arena, 32, 0), *large = fa_arena_alloc(arena, 3 * PAGE, 0);
    const fa_protection protection = arena_protection(arena);
    SKIP_IF(protection.locked == 0, "this process may lock nothing");
    CHECK(protection.locked == 5 * PAGE && protection.lock_wanted == 5 * PAGE); /* the large one and a page for its canary */
    CHECK(protection.guarded_blocks == 2 * PAGE);
    fa_arena_free(arena, large, 0);
    CHECK(arena_protection(arena).locked == PAGE && arena_protection(arena).lock_wanted == PAGE);
    CHECK(arena_stats(arena).locked == PAGE && arena_stats(arena).lock_limit == fa_os_platform()->lock_limit());
    fa_arena_free(arena, small, 0);
    CHECK(arena_protection(arena).locked == 0 && arena_protection(arena).guarded_blocks == 0);
    fa_arena_destroy(arena);
}

typedef struct model_block {
    unsigned char *address;
    size_t size;
    uint64_t seed;
} model_block;

TEST(a_guarded_arena_keeps_every_block_whatever_is_done) {
    fa_arena *arena = guarded_arena(8 * MIB);
    random_source random = {7};
    enum { COUNT = 60 };
    model_block blocks[COUNT] = {{0}};
    uint64_t seed = 0, bytes = 0, live = 0;
    for (size_t step = 0; step < (UNDER_SANITIZER || UNDER_VALGRIND ? 1000 : 6000); step++) {
        model_block *block = &blocks[random_below(&random, COUNT)];
        const size_t alignment = (size_t)16 << random_below(&random, 4);
        const size_t size = random_below(&random, random_below(&random, 4) == 0 ? 20000 : 200);
        if (block->address == NULL) {
            block->address = fa_arena_alloc(arena, size, alignment);
            CHECK(block->address != NULL && is_aligned(block->address, alignment) && is_zero(block->address, size));
            block->size = size;
            live++;
            bytes += size;
        } else if (random_below(&random, 2) == 0) {
            CHECK(is_filled(block->address, block->size, block->seed));
            unsigned char *moved = fa_arena_realloc(arena, block->address, block->size, size, alignment);
            CHECK(moved != NULL && is_filled(moved, size < block->size ? size & ~(size_t)7 : block->size, block->seed));
            if (size > block->size) CHECK(is_zero(moved + block->size, size - block->size));
            bytes = bytes - block->size + size;
            *block = (model_block){moved, size, 0};
        } else {
            CHECK(is_filled(block->address, block->size, block->seed));
            fa_arena_free(arena, block->address, block->size);
            live--;
            bytes -= block->size;
            block->address = NULL;
        }
        if (block->address != NULL) {
            block->seed = ++seed;
            fill(block->address, block->size, block->seed);
        }
        if (step % 50 == 0) CHECK(fa_arena_is_valid(arena) && fa_arena_trim(arena, random_below(&random, MIB)) == FA_OK);
        const fa_arena_stats stats = arena_stats(arena);
        CHECK(stats.live == live && stats.requested == bytes && noted.count == 0);
        CHECK(arena_protection(arena).guarded_blocks == live * PAGE);
    }
    fa_arena_destroy(arena);
    CHECK(noted.count == 0);
}

TEST(marks_work_in_a_guarded_arena) {
    fa_arena *arena = guarded_arena(MIB);
    unsigned char *below = fa_arena_alloc(arena, 100, 0);
    fill(below, 100, 1);
    const fa_mark mark = fa_arena_mark(arena);
    unsigned char *above = fa_arena_alloc(arena, 5000, 0);
    memset(above, 1, 5000);
    CHECK(fa_arena_rewind(arena, mark) == FA_OK);
    CHECK(is_filled(below, 100, 1) && dies(read_byte, above) && arena_stats(arena).requested == 100);
    unsigned char *again = fa_arena_alloc(arena, 5000, 0);
    CHECK(again == above && is_zero(again, 5000) && fa_arena_is_valid(arena));
    fa_arena_destroy(arena);
    CHECK(noted.count == 0);
}

TEST(a_guarded_arena_that_is_full_says_so) {
    fa_arena_options options = guarded_options(10 * PAGE);
    fa_arena *arena = arena_with(&options);
    CHECK(fa_arena_last_refusal(arena) == FA_OK);
    for (size_t i = 0; i < 5; i++) CHECK(fa_arena_alloc(arena, 100, 0) != NULL); /* two pages each */
    CHECK(fa_arena_alloc(arena, 1, 0) == NULL && fa_arena_last_refusal(arena) == FA_ERR_NOMEM);
    CHECK(fa_arena_reset(arena) == FA_OK);
    CHECK(fa_arena_alloc(arena, SIZE_MAX, 0) == NULL && fa_arena_alloc(arena, SIZE_MAX - 20, 0) == NULL);
    CHECK(fa_arena_alloc(arena, 1, 2 * PAGE) == NULL && fa_arena_last_refusal(arena) == FA_ERR_INVALID);
    CHECK(fa_arena_alloc(arena, 9 * PAGE - 16, 0) != NULL);
    fa_arena_destroy(arena);
}

TEST(only_a_witness_arena_has_guarded_blocks_and_secret_memory) {
    SKIP_IF(!fa_os_platform()->traps, "there are no guard pages here");
    FOR_EACH_KIND(kind) {
        fa_status status = FA_OK;
        fa_arena_options options = arena_options(kind, MIB);
        options.guard = FA_GUARD_BLOCKS;
        fa_arena *arena = fa_arena_create(&options, &status);
        CHECK((arena != NULL) == (kind == FA_WITNESS) && (arena != NULL || status == FA_ERR_INVALID));
        fa_arena_destroy(arena);
        options.guard_pages = FA_OFF;
        CHECK(fa_arena_create(&options, &status) == NULL && status == FA_ERR_INVALID);
        options = arena_options(kind, MIB);
        options.secret_memory = FA_TRY;
        arena = fa_arena_create(&options, &status);
        CHECK((arena != NULL) == (kind == FA_WITNESS) && (arena != NULL || status == FA_ERR_INVALID));
        fa_arena_destroy(arena);
    }
    fa_arena_options options = guarded_options(MIB);
    options.alignment = 2 * PAGE;
    CHECK(fa_arena_create(&options, NULL) == NULL);
}

/* Each live block splits the kernel's mapping; their number is limited. */
TEST(a_guarded_arena_survives_the_limit_of_mappings) {
    SKIP_IF(UNDER_SANITIZER || UNDER_VALGRIND, "tens of thousands of mappings");
    SKIP_IF(strcmp(fa_os_platform()->name, "linux") != 0, "there is no limit of mappings here");
    fa_arena_options options = guarded_options((size_t)600 << 20);
    options.lock = FA_OFF;
    fa_arena *arena = arena_with(&options);
    unsigned char *block, *last = NULL;
    size_t count = 0;
    for (; count < 70000 && (block = fa_arena_alloc(arena, 32, 0)) != NULL; count++) last = block;
    SKIP_IF(count == 70000, "this system allows more than 130,000 mappings");
    CHECK(count > 1000 && fa_arena_last_refusal(arena) == FA_ERR_NOMEM && arena_stats(arena).live == count);
    fa_arena_free(arena, last, 32);
    CHECK(fa_arena_alloc(arena, 32, 0) == last && is_zero(last, 32));
    CHECK(fa_arena_reset(arena) == FA_OK && fa_arena_alloc(arena, 32, 0) != NULL);
    fa_arena_destroy(arena);
}

/* ---- canaries ------------------------------------------------------------------------------------------------------ */

/* The next call that looks at canaries says this. */
static void reports(const char *call, const unsigned char *block, bool after) {
    char expected[256];
    snprintf(expected, sizeof expected, "fastalloc: %s of 0x%" PRIxPTR ", which was overrun %s, in arena 'keys'", call,
             (uintptr_t)block, after ? "at its end" : "before its beginning");
    if (strcmp(noted.message, expected) != 0) printf("# %s\n# instead of: %s\n", noted.message, expected);
    CHECK(noted.count == 1 && strcmp(noted.message, expected) == 0);
    noted.count = 0;
}

/* A block of 100 bytes at 16: 12 bytes of canary behind it. */
static unsigned char *damaged_block(fa_arena *arena, bool after) {
    unsigned char *block = fa_arena_alloc(arena, 100, 16);
    block[after ? 100 : -1] ^= 0x10;
    return block;
}

TEST(every_byte_of_a_canary_counts) {
    fa_arena *arena = guarded_arena(MIB);
    for (ptrdiff_t at = -16; at < 112; at++) {
        if (at == 0) at = 100;
        unsigned char *block = fa_arena_alloc(arena, 100, 16);
        CHECK(block[at] != 0); /* or a terminator too many would not show */
        block[at] = 0;
        fa_arena_free(arena, block, 100);
        reports("free", block, at > 0);
        CHECK(arena_stats(arena).live == 0); /* wiped and freed all the same */
    }
    fa_arena_destroy(arena);
}

TEST(canaries_differ_by_address_and_by_arena) {
    fa_arena *arena = guarded_arena(MIB), *other = guarded_arena(MIB);
    unsigned char *a = fa_arena_alloc(arena, 64, 16), *b = fa_arena_alloc(arena, 64, 16);
    unsigned char *c = fa_arena_alloc(other, 64, 16);
    CHECK(memcmp(a - 16, b - 16, 16) != 0 && memcmp(a - 16, c - 16, 16) != 0);
    memcpy(b - 16, a - 16, 16); /* an overrun that copies a canary is one */
    fa_arena_free(arena, b, 64);
    reports("free", b, false);
    fa_arena_destroy(other);
    fa_arena_destroy(arena);
}

TEST(every_way_out_of_an_arena_looks_at_the_canaries) {
    for (int after = 0; after < 2; after++) {
        fa_arena *arena = guarded_arena(MIB);
        const fa_mark mark = fa_arena_mark(arena);
        unsigned char *block = damaged_block(arena, after);
        CHECK(fa_arena_rewind(arena, mark) == FA_OK);
        reports("rewind", block, after);

        block = damaged_block(arena, after);
        CHECK(fa_arena_reset(arena) == FA_OK);
        reports("reset", block, after);

        block = damaged_block(arena, after);
        CHECK(fa_arena_wipe(arena) == FA_OK);
        reports("wipe", block, after);

        block = damaged_block(arena, after);
        block = fa_arena_realloc(arena, block, 100, 102, 16); /* in place, and the canary is whole again */
        reports("realloc", block, after);
        CHECK(block[101] == 0);
        fa_arena_free(arena, block, 102);
        CHECK(noted.count == 0);

        block = damaged_block(arena, after);
        unsigned char *moved = fa_arena_realloc(arena, block, 100, 5000, 16);
        CHECK(moved != NULL && moved != block && noted.count == 2); /* by realloc, and by the free of the old place */
        noted.count = 0;

        block = damaged_block(arena, after);
        fa_arena_close(arena);
        reports("close", block, after);
        CHECK(peek_nonzero(block, 100) == 0);
        fa_arena_destroy(arena);

        arena = guarded_arena(MIB);
        block = damaged_block(arena, after);
        fa_arena_destroy(arena);
        reports("close", block, after);
    }
}

static int underrun_then_free(void *block) {
    fa_arena_options options = guarded_options(MIB);
    fa_arena *arena = arena_with(&options);
    (void)block;
    unsigned char *own = fa_arena_alloc(arena, 32, 0);
    own[-1] ^= 1;
    fa_arena_free(arena, own, 32);
    return 0;
}

TEST(a_broken_canary_aborts_and_names_the_arena) {
    const child_end end = run_in_child(underrun_then_free, NULL);
    CHECK(end.signal == SIGABRT);
    CHECK(strncmp(end.errors, "fastalloc: free of 0x", 21) == 0);
    CHECK(strstr(end.errors, ", which was overrun before its beginning, in arena 'keys'\n") != NULL);
}

TEST(a_bad_free_in_a_guarded_arena_is_reported) {
    fa_arena *arena = guarded_arena(MIB);
    unsigned char *block = fa_arena_alloc(arena, 5000, 0), *other = fa_arena_alloc(arena, 64, 0);
    static const ptrdiff_t wrong[] = {-32, -16, -1, 1, 16, 100, 4096};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        fa_arena_free(arena, block + wrong[i], 5000);
        CHECK(noted.count == 1 && strstr(noted.message, "not a live block") != NULL);
        noted.count = 0;
    }
    fa_arena_free(arena, other, 64);
    fa_arena_free(arena, other, 64);
    CHECK(noted.count == 1 && fa_arena_is_valid(arena) && arena_stats(arena).live == 1);
    fa_arena_destroy(arena);
}

/* ---- seals --------------------------------------------------------------------------------------------------------- */

typedef struct sealed_way {
    const char *name;
    fa_arena_kind kind;
    fa_guard guard;
    fa_want secret_memory;
} sealed_way;

static const sealed_way sealed_ways[] = {
    {"witness", FA_WITNESS, FA_GUARD_ENDS, FA_OFF},
    {"polynomial", FA_POLYNOMIAL, FA_GUARD_ENDS, FA_OFF},
    {"guarded", FA_WITNESS, FA_GUARD_BLOCKS, FA_OFF},
    {"secret", FA_WITNESS, FA_GUARD_ENDS, FA_TRY},
    {"secret and guarded", FA_WITNESS, FA_GUARD_BLOCKS, FA_TRY},
};
#define FOR_EACH_WAY(way) for (const sealed_way *way = sealed_ways; way < sealed_ways + 5; way++)

static fa_arena *arena_of(const sealed_way *way, unsigned flags) {
    SKIP_IF(!can(try_protect), NO_PROTECTION);
    fa_arena_options options = arena_options(way->kind, MIB);
    options.guard = way->guard;
    options.secret_memory = way->secret_memory;
    options.flags = flags;
    options.on_full = FA_FULL_FAIL;
    return arena_with(&options);
}

TEST(a_touched_sealed_page_kills_the_process) {
    FOR_EACH_WAY(way) {
        if (way->secret_memory != FA_OFF) continue; /* a child has not got it: every touch of it there dies */
        fa_arena *arena = arena_of(way, 0);
        unsigned char *block = fa_arena_alloc(arena, 100, 0), *large = fa_arena_alloc(arena, 100000, 0);
        fill(large, 100000, 1);
        CHECK(!dies(write_byte, block) && arena_protection(arena).sealed == 0);
        CHECK(fa_arena_seal(arena, FA_SEAL_READ) == FA_OK);
        CHECK(!dies(read_byte, block) && dies(write_byte, block) && dies(write_byte, large + 50000));
        CHECK(is_filled(large, 100000, 1) && arena_protection(arena).sealed >= 100100);
        CHECK(fa_arena_seal(arena, FA_SEAL_NONE) == FA_OK);
        CHECK(dies(read_byte, block) && dies(write_byte, block) && dies(read_byte, large + 99999));
        CHECK(fa_arena_unseal(arena) == FA_OK && arena_protection(arena).sealed == 0);
        CHECK(!dies(write_byte, block) && is_filled(large, 100000, 1));
        fa_arena_destroy(arena);
    }
}

#if HAS_FORK
static bool segfaulted;
static sigjmp_buf after_segfault;
static void on_segfault(int number) {
    (void)number;
    segfaulted = true;
    siglongjmp(after_segfault, 1);
}

/* Like dies(), in this process. */
__attribute__((no_sanitize("address", "undefined"))) static bool faults(int (*access)(void *), void *address) {
    struct sigaction action = {.sa_handler = on_segfault}, before, before_bus;
    sigaction(SIGSEGV, &action, &before);
    sigaction(SIGBUS, &action, &before_bus);
    segfaulted = false;
    if (sigsetjmp(after_segfault, 1) == 0) (void)access(address);
    sigaction(SIGSEGV, &before, NULL);
    sigaction(SIGBUS, &before_bus, NULL);
    return segfaulted;
}
#else
static bool faults(int (*access)(void *), void *address) { return dies(access, address); }
#endif

TEST(a_sealed_arena_faults_in_its_own_process_too) {
    FOR_EACH_WAY(way) {
        fa_arena *arena = arena_of(way, 0);
        unsigned char *block = fa_arena_alloc(arena, 5000, 0);
        fill(block, 5000, 1);
        CHECK(!faults(write_byte, block + 100) && (fill(block, 5000, 1), true));
        CHECK(fa_arena_seal(arena, FA_SEAL_READ) == FA_OK);
        CHECK(faults(write_byte, block) && !faults(read_byte, block));
        CHECK(fa_arena_seal(arena, FA_SEAL_NONE) == FA_OK);
        CHECK(faults(write_byte, block) && faults(read_byte, block + 4999));
        CHECK(fa_arena_unseal(arena) == FA_OK && is_filled(block, 5000, 1));
        fa_arena_destroy(arena);
    }
}

TEST(a_sealed_arena_hands_nothing_out) {
    FOR_EACH_WAY(way) {
        fa_arena *arena = arena_of(way, 0);
        unsigned char *block = fa_arena_alloc(arena, 1000, 0);
        CHECK(fa_arena_seal(arena, FA_SEAL_READ) == FA_OK);
        const uint64_t failures = arena_stats(arena).failures;
        CHECK(fa_arena_alloc(arena, 1, 0) == NULL && fa_arena_last_refusal(arena) == FA_ERR_SEALED);
        CHECK(fa_arena_alloc_zeroed(arena, 1, 0) == NULL);
        CHECK(fa_arena_realloc(arena, block, 1000, 10, 0) == NULL && fa_arena_realloc(arena, block, 1000, 9000, 0) == NULL);
        CHECK(arena_stats(arena).failures == failures + 4 && arena_stats(arena).fallbacks == 0);
        CHECK(fa_arena_usable_size(arena, block) >= 1000 && fa_arena_owns(arena, block) && fa_arena_is_valid(arena));
        CHECK(fa_arena_trim(arena, 0) == FA_OK && fa_arena_mark(arena).serial > 0);
        CHECK(fa_arena_unseal(arena) == FA_OK && fa_arena_alloc(arena, 1, 0) != NULL);
        fa_arena_destroy(arena);
    }
}

TEST(a_block_freed_in_a_sealed_arena_is_wiped) {
    FOR_EACH_WAY(way) {
        for (fa_seal how = FA_SEAL_READ; how <= FA_SEAL_NONE; how++) {
            fa_arena *arena = arena_of(way, FA_TRACKED);
            unsigned char *block = fa_arena_alloc(arena, 100, 0), *other = fa_arena_alloc(arena, 100, 0);
            unsigned char *large = fa_arena_alloc(arena, 50000, 0), *last = fa_arena_alloc(arena, 100, 0);
            fill(block, 100, 1);
            fill(other, 100, 2);
            fill(large, 50000, 3);
            CHECK(fa_arena_seal(arena, how) == FA_OK);
            fa_arena_free(arena, block, 100);
            fa_arena_free(arena, large, 50000);
            CHECK(arena_stats(arena).live == 2 && faults(write_byte, other) && faults(write_byte, last));
            CHECK(faults(read_byte, other) == (how == FA_SEAL_NONE));
            CHECK(fa_arena_reset(arena) == FA_ERR_BUSY); /* that is as ever */
            CHECK(fa_arena_unseal(arena) == FA_OK && is_filled(other, 100, 2));
            if (way->kind == FA_WITNESS && way->guard == FA_GUARD_ENDS)
                CHECK(peek_nonzero(block, 100) == 0 && peek_nonzero(large, 50000) == 0);
            if (way->kind == FA_WITNESS) CHECK(is_zero(fa_arena_alloc(arena, 50000, 0), 50000));
            CHECK(fa_arena_is_valid(arena));
            fa_arena_destroy(arena);
        }
    }
}

TEST(reset_rewind_and_wipe_go_through_a_seal) {
    FOR_EACH_WAY(way) {
        fa_arena *arena = arena_of(way, 0);
        unsigned char *below = fa_arena_alloc(arena, 100, 0);
        fill(below, 100, 1);
        const fa_mark mark = fa_arena_mark(arena);
        unsigned char *block = fa_arena_alloc(arena, 30000, 0);
        fill(block, 30000, 2);
        CHECK(fa_arena_seal(arena, FA_SEAL_NONE) == FA_OK);
        CHECK(fa_arena_rewind(arena, mark) == FA_OK && arena_stats(arena).live == 1);
        CHECK(faults(read_byte, below));
        CHECK(fa_arena_unseal(arena) == FA_OK && is_filled(below, 100, 1));
        block = fa_arena_alloc_zeroed(arena, 30000, 0);
        CHECK(is_zero(block, 30000));
        fill(block, 30000, 2);
        CHECK(fa_arena_seal(arena, FA_SEAL_READ) == FA_OK);
        CHECK(fa_arena_reset(arena) == FA_OK && arena_stats(arena).live == 0);
        CHECK(fa_arena_unseal(arena) == FA_OK && is_zero(fa_arena_alloc_zeroed(arena, 60000, 0), 60000));
        block = fa_arena_alloc(arena, 30000, 0);
        fill(block, 30000, 2);
        CHECK(fa_arena_seal(arena, FA_SEAL_NONE) == FA_OK);
        CHECK(fa_arena_wipe(arena) == FA_OK && arena_stats(arena).wipes == 1);
        CHECK(fa_arena_unseal(arena) == FA_OK && is_zero(fa_arena_alloc(arena, 90000, 0), 90000) == true);
        fa_arena_destroy(arena);

        arena = arena_of(way, FA_TRACKED);
        block = fa_arena_alloc(arena, 30000, 0);
        fill(block, 30000, 2);
        CHECK(fa_arena_seal(arena, FA_SEAL_NONE) == FA_OK && fa_arena_wipe(arena) == FA_OK);
        CHECK(faults(read_byte, block)); /* it lives on, sealed as before */
        CHECK(fa_arena_unseal(arena) == FA_OK && is_zero(block, 30000));
        fa_arena_free(arena, block, 30000);
        fa_arena_destroy(arena);
    }
}

TEST(a_closed_arena_is_not_sealed_and_is_zero) {
    FOR_EACH_WAY(way) {
        fa_arena *arena = arena_of(way, FA_TRACKED);
        unsigned char *block = fa_arena_alloc(arena, 30000, 0);
        fill(block, 30000, 2);
        CHECK(fa_arena_seal(arena, FA_SEAL_NONE) == FA_OK);
        fa_arena_close(arena);
        CHECK(way->kind == FA_WITNESS ? is_zero(block, 30000) : is_filled(block, 30000, 2));
        CHECK(arena_protection(arena).sealed == 0);
        CHECK(fa_arena_seal(arena, FA_SEAL_NONE) == FA_ERR_STALE && fa_arena_unsealed_begin(arena) == FA_ERR_STALE);
        fa_arena_free(arena, block, 30000);
        CHECK(fa_arena_is_valid(arena) && arena_stats(arena).live == 0);
        fa_arena_destroy(arena);
    }
}

TEST(unsealing_nests_and_counts) {
    FOR_EACH_WAY(way) {
        fa_arena *arena = arena_of(way, 0);
        unsigned char *block = fa_arena_alloc(arena, 100, 0);
        CHECK(fa_arena_unsealed_end(arena) == FA_ERR_INVALID);
        CHECK(fa_arena_seal(arena, FA_SEAL_NONE) == FA_OK);
        CHECK(fa_arena_unsealed_begin(arena) == FA_OK && fa_arena_unsealed_begin(arena) == FA_OK);
        fill(block, 100, 1);
        CHECK(fa_arena_alloc(arena, 100, 0) != NULL);
        CHECK(fa_arena_unsealed_end(arena) == FA_OK && is_filled(block, 100, 1));
        CHECK(fa_arena_unsealed_end(arena) == FA_OK && faults(read_byte, block));
        CHECK(fa_arena_unsealed_end(arena) == FA_ERR_INVALID && faults(read_byte, block));
        /* What is asked for meanwhile holds after the last end. */
        CHECK(fa_arena_unsealed_begin(arena) == FA_OK && fa_arena_seal(arena, FA_SEAL_READ) == FA_OK);
        CHECK(!faults(write_byte, block) && fa_arena_get_seal(arena) == FA_SEAL_READ);
        CHECK(fa_arena_unsealed_end(arena) == FA_OK && !faults(read_byte, block) && faults(write_byte, block));
        CHECK(fa_arena_unsealed_begin(arena) == FA_OK && fa_arena_unseal(arena) == FA_OK);
        CHECK(fa_arena_unsealed_end(arena) == FA_OK && !faults(write_byte, block));
        fa_arena_destroy(arena);
    }
}

TEST(what_cannot_be_sealed_says_so) {
    fa_arena *scratch = new_arena(FA_SCRATCH, MIB);
    CHECK(fa_arena_seal(scratch, FA_SEAL_NONE) == FA_ERR_INVALID && fa_arena_unsealed_begin(scratch) == FA_ERR_INVALID);
    fa_arena_destroy(scratch);
    fa_arena *arena = new_arena(FA_WITNESS, MIB);
    CHECK(fa_arena_seal(arena, (fa_seal)17) == FA_ERR_INVALID);
    fa_arena_destroy(arena);
}

/* Threads that free while others seal: a large block is zeroed outside the lock. */
static void *free_blocks(void *argument) {
    fa_arena *arena = argument;
    for (size_t i = 0; i < (UNDER_SANITIZER || UNDER_VALGRIND ? 200 : 1000); i++)
        fa_arena_free(arena, fa_arena_alloc(arena, i % 2 == 0 ? 300000 : 100, 0), 0);
    return NULL;
}
static void *seal_and_unseal(void *argument) {
    fa_arena *arena = argument;
    for (size_t i = 0; i < (UNDER_SANITIZER || UNDER_VALGRIND ? 200 : 1000); i++) {
        CHECK(fa_arena_seal(arena, i % 2 == 0 ? FA_SEAL_READ : FA_SEAL_NONE) == FA_OK);
        if (i % 3 == 0) CHECK(fa_arena_unseal(arena) == FA_OK);
        CHECK(fa_arena_unsealed_begin(arena) == FA_OK);
        CHECK(fa_arena_unsealed_end(arena) == FA_OK);
    }
    return NULL;
}

TEST(threads_may_free_while_others_seal) {
    FOR_EACH_WAY(way) {
        fa_arena *arena = arena_of(way, FA_TRACKED);
        pthread_t threads[4];
        for (size_t i = 0; i < 4; i++) {
            void *(*run)(void *) = i < 2 ? free_blocks : seal_and_unseal;
            CHECK(pthread_create(&threads[i], NULL, run, arena) == 0);
        }
        for (size_t i = 0; i < 4; i++) CHECK(pthread_join(threads[i], NULL) == 0);
        CHECK(fa_arena_is_valid(arena) && arena_stats(arena).live == 0);
        CHECK(fa_arena_unseal(arena) == FA_OK);
        CHECK(fa_arena_alloc(arena, 100, 0) != NULL);
        fa_arena_destroy(arena);
    }
}

/* ---- fork ---------------------------------------------------------------------------------------------------------- */

typedef struct seen_block {
    fa_arena *arena;
    unsigned char *block;
    size_t size;
    fa_os *os; /* of the arena, if the child is to change it */
} seen_block;

/* The same arena in the child: what lived is zero, can be freed, and the arena goes on. */
static int goes_on(void *argument) {
    seen_block *seen = argument;
    CHECK(arena_stats(seen->arena).live == 1);
    const fa_protection protection = arena_protection(seen->arena);
    CHECK(is_zero(seen->block, seen->size));
    CHECK(protection.locked == protection.lock_wanted || !mlock_is_real());
    fill(seen->block, seen->size, 3);
    unsigned char *more = fa_arena_alloc(seen->arena, 5000, 0);
    CHECK(more != NULL && is_zero(more, 5000));
    fill(more, 5000, 2);
    fa_arena_free(seen->arena, seen->block, seen->size);
    CHECK(is_filled(more, 5000, 2) && fa_arena_is_valid(seen->arena) && noted.count == 0);
    fa_arena_destroy(seen->arena);
    CHECK(noted.count == 0);
    return 0;
}

static int frees_first(void *argument) { /* no other call has told the arena that it is in a child */
    seen_block *seen = argument;
    fa_arena_free(seen->arena, seen->block, seen->size);
    CHECK(noted.count == 0 && arena_stats(seen->arena).live == 0);
    return 0;
}

static int destroys_first(void *argument) {
    fa_arena_destroy(((seen_block *)argument)->arena);
    return noted.count;
}

static int trims_first(void *argument) {
    seen_block *seen = argument;
    CHECK(fa_arena_trim(seen->arena, 0) == FA_OK && is_zero(seen->block, seen->size));
    return goes_on(argument);
}

static int uses_a_fresh_arena(void *argument) {
    const seen_block *seen = argument;
    fa_arena *fresh = new_arena(FA_WITNESS, MIB);
    unsigned char *block = fa_arena_alloc(fresh, 1000, 0);
    CHECK(block != NULL && is_zero(block, 1000));
    fill(block, 1000, 4);
    fa_arena_destroy(fresh);
    return seen->arena == NULL;
}

TEST(a_forked_child_goes_on_with_any_witness_arena) {
    NOT_UNDER_AN_EMULATOR;
    FOR_EACH_WAY(way) {
        if (way->kind != FA_WITNESS) continue;
        memset(&noted, 0, sizeof noted);
        fa_arena_options options = arena_options(way->kind, MIB);
        options.guard = way->guard;
        options.secret_memory = way->secret_memory;
        options.on_corruption = note_corruption;
        options.corruption_context = &noted;
        fa_arena *arena = arena_with(&options);
        const fa_protection protection = arena_protection(arena);
        SKIP_IF(protection.wipe_on_fork + protection.no_fork == 0, "the kernel does not wipe on fork");
        seen_block seen = {arena, fa_arena_alloc(arena, 10000, 0), 10000, NULL};
        fill(seen.block, seen.size, 1);
        passes_in_child(goes_on, &seen);
        passes_in_child(frees_first, &seen);
        passes_in_child(destroys_first, &seen);
        passes_in_child(trims_first, &seen);
        passes_in_child(uses_a_fresh_arena, &seen);

#if HAS_FORK
        fa_arena_fork_prepare(arena); /* with the hooks, as Python has them */
        const pid_t child = fork();
        if (child == 0) {
            fa_arena_fork_child(arena);
            _exit(is_zero(seen.block, seen.size) ? goes_on(&seen) : 1);
        }
        fa_arena_fork_parent(arena);
        int status = -1;
        CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
#endif
        CHECK(is_filled(seen.block, seen.size, 1) && fa_arena_is_valid(arena));
        fa_arena_free(arena, seen.block, seen.size);
        fa_arena_destroy(arena);
        CHECK(noted.count == 0);
    }
}

static int sealed_in_child(void *argument) {
    seen_block *seen = argument;
    CHECK(fa_arena_alloc(seen->arena, 1, 0) == NULL && fa_arena_last_refusal(seen->arena) == FA_ERR_SEALED);
    CHECK(faults(read_byte, seen->block));
    CHECK(fa_arena_unseal(seen->arena) == FA_OK);
    return goes_on(argument);
}

TEST(a_sealed_arena_is_sealed_in_a_forked_child) {
    NOT_UNDER_AN_EMULATOR;
    FOR_EACH_WAY(way) {
        if (way->kind != FA_WITNESS) continue;
        fa_arena *arena = arena_of(way, 0);
        SKIP_IF(arena_protection(arena).wipe_on_fork + arena_protection(arena).no_fork == 0, "no wipe on fork");
        seen_block seen = {arena, fa_arena_alloc(arena, 10000, 0), 10000, NULL};
        fill(seen.block, seen.size, 1);
        CHECK(fa_arena_seal(arena, FA_SEAL_NONE) == FA_OK);
        passes_in_child(sealed_in_child, &seen);
        CHECK(fa_arena_unseal(arena) == FA_OK && is_filled(seen.block, seen.size, 1));
        fa_arena_destroy(arena);
    }
}

/* ---- secret memory --------------------------------------------------------------------------------------------------- */

static bool has_secret_memory(void) {
    fa_arena_options options = arena_options(FA_WITNESS, MIB);
    options.secret_memory = FA_REQUIRE;
    fa_arena *arena = fa_arena_create(&options, NULL);
    fa_arena_destroy(arena);
    return arena != NULL;
}

static fa_arena *secret_arena(size_t capacity, fa_want want) {
    fa_arena_options options = arena_options(FA_WITNESS, capacity);
    options.secret_memory = want;
    return arena_with(&options);
}

/* What a debugger does. */
static bool can_be_read_from_outside(const void *address, size_t size) {
#if HAS_FORK
    const int memory = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);
    CHECK(memory >= 0);
    unsigned char bytes[64];
    const ssize_t got = pread(memory, bytes, size, (off_t)(uintptr_t)address);
    close(memory);
    return got == (ssize_t)size;
#else
    return address != NULL && size > 0;
#endif
}

TEST(secret_memory_cannot_be_read_from_outside) {
    SKIP_IF(!has_secret_memory(), "no memfd_secret");
    fa_arena *open_one = new_arena(FA_WITNESS, MIB), *arena = secret_arena(MIB, FA_REQUIRE);
    unsigned char *plain = fa_arena_alloc(open_one, 64, 0), *block = fa_arena_alloc(arena, 64, 0);
    fill(plain, 64, 1);
    fill(block, 64, 1);
    CHECK(can_be_read_from_outside(plain, 64) && !can_be_read_from_outside(block, 64));
    const fa_protection protection = arena_protection(arena);
    CHECK(protection.secret >= 64 && protection.secret <= 64 * KIB && protection.no_fork == protection.secret);
    CHECK(protection.no_dump >= protection.secret && protection.locked >= protection.secret);
    CHECK(protection.wipe_on_fork == 0 && is_filled(block, 64, 1));
    fa_arena_destroy(open_one);
    fa_arena_destroy(arena);
}

TEST(secret_memory_is_not_in_a_forked_child) {
    SKIP_IF(!has_secret_memory(), "no memfd_secret");
    fa_arena *arena = secret_arena(MIB, FA_REQUIRE);
    CHECK(dies(read_byte, fa_arena_alloc(arena, 64, 0)));
    fa_arena_destroy(arena);
}

TEST(secret_memory_grows_and_is_given_back) {
    SKIP_IF(!has_secret_memory(), "no memfd_secret");
    fa_arena *arena = secret_arena(4 * MIB, FA_REQUIRE);
    unsigned char *small = fa_arena_alloc(arena, 100, 0);
    fill(small, 100, 1);
    unsigned char *large = fa_arena_alloc(arena, 2 * MIB, 0);
    CHECK(large != NULL && is_zero(large, 2 * MIB));
    fill(large, 2 * MIB, 2);
    fa_protection protection = arena_protection(arena);
    CHECK(protection.secret >= 2 * MIB + 100 && protection.secret <= 3 * MIB && arena_stats(arena).resident > 2 * MIB);
    fa_arena_free(arena, large, 2 * MIB);
    CHECK(peek_nonzero(large, 2 * MIB) == 0 && fa_arena_trim(arena, 0) == FA_OK);
    protection = arena_protection(arena);
    CHECK(protection.secret <= 64 * KIB && protection.locked == protection.secret && is_filled(small, 100, 1));
    CHECK(faults(read_byte, large));
    large = fa_arena_alloc(arena, 2 * MIB, 0);
    CHECK(large != NULL && is_zero(large, 2 * MIB) && !can_be_read_from_outside(large + MIB, 64));
    fa_arena_free(arena, large, 2 * MIB);
    CHECK(fa_arena_seal(arena, FA_SEAL_NONE) == FA_OK && fa_arena_trim(arena, 0) == FA_OK);
    protection = arena_protection(arena);
    CHECK(protection.sealed == protection.secret && fa_arena_unseal(arena) == FA_OK && is_filled(small, 100, 1));
    CHECK(fa_arena_is_valid(arena));
    fa_arena_destroy(arena);
}

static int require_secret_beyond_the_limit(void *unused) {
    (void)unused;
    may_lock(64 * KIB);
    fa_arena *arena = secret_arena(MIB, FA_REQUIRE);
    unsigned char *small = fa_arena_alloc(arena, 10000, 0);
    CHECK(small != NULL);
    fill(small, 10000, 1);
    CHECK(fa_arena_alloc(arena, 512 * KIB, 0) == NULL && fa_arena_last_refusal(arena) == FA_ERR_LOCK);
    const fa_protection protection = arena_protection(arena);
    CHECK(protection.lock_limit == 64 * KIB && protection.secret == 64 * KIB && protection.locked == 64 * KIB);
    CHECK(protection.lock_wanted >= 512 * KIB + 10000 && is_filled(small, 10000, 1) && fa_arena_is_valid(arena));
    CHECK(fa_arena_alloc(arena, 1000, 0) != NULL);
    fa_arena_destroy(arena);
    return 0;
}

static int try_secret_beyond_the_limit(void *unused) {
    (void)unused;
    may_lock(64 * KIB);
    fa_arena *arena = secret_arena(MIB, FA_TRY);
    unsigned char *small = fa_arena_alloc(arena, 10000, 0), *large = fa_arena_alloc(arena, 512 * KIB, 0);
    CHECK(small != NULL && large != NULL && is_zero(large, 512 * KIB));
    fill(large, 512 * KIB, 1);
    fa_protection protection = arena_protection(arena);
    CHECK(protection.secret == 64 * KIB && (protection.locked == 64 * KIB || !mlock_is_real()));
    CHECK(protection.lock_wanted >= 512 * KIB + 10000);
    /* What is not secret has the other protections, as far as they go. */
    CHECK(protection.wipe_on_fork >= 448 * KIB && protection.no_dump >= 512 * KIB);
    fa_arena_free(arena, large, 512 * KIB);
    CHECK(fa_arena_trim(arena, 0) == FA_OK);
    CHECK(arena_protection(arena).wipe_on_fork == 0 && is_zero(fa_arena_alloc(arena, 512 * KIB, 0), 512 * KIB));
    CHECK(fa_arena_is_valid(arena));
    fa_arena_destroy(arena);
    return 0;
}

TEST(secret_memory_beyond_the_limit_is_an_error_or_told) {
    SKIP_IF(!has_secret_memory(), "no memfd_secret");
    passes_in_child(require_secret_beyond_the_limit, NULL);
    passes_in_child(try_secret_beyond_the_limit, NULL);
}

static int no_secret(void *address, size_t size) {
    (void)address;
    (void)size;
    return FA_OS_UNSUPPORTED;
}

TEST(a_platform_without_secret_memory_says_so) {
    fa_os os = *fa_os_platform();
    os.map_secret = no_secret;
    fa_arena_options options = arena_options(FA_WITNESS, MIB);
    options.os = &os;
    options.secret_memory = FA_REQUIRE;
    fa_status status = FA_OK;
    CHECK(fa_arena_create(&options, &status) == NULL && status == FA_ERR_UNSUPPORTED);
    options.secret_memory = FA_TRY;
    fa_arena *arena = arena_with(&options);
    CHECK(fa_arena_alloc(arena, 100, 0) != NULL);
    const fa_protection protection = arena_protection(arena);
    CHECK(protection.secret == 0 && protection.no_fork == 0);
    CHECK((protection.no_dump > 0) == can(try_no_dump) && (protection.wipe_on_fork > 0) == can(try_wipe_on_fork));
    fa_arena_destroy(arena);
}

TEST(more_secret_memory_than_a_file_can_have_is_refused) {
    const fa_os *os = fa_os_platform();
    void *half = NULL;
    SKIP_IF(SIZE_MAX > UINT32_MAX || !os->traps || os->reserve(TOP_BIT, PAGE, &half) != 0, "addresses are plenty, or too few");
    errno = 0;
    CHECK(os->map_secret(half, TOP_BIT) != 0 && os->release(half, TOP_BIT) == 0);
}

/* Somebody else's memory, in the child, where the secret was. */
static int finds_its_place_taken(void *argument) {
    seen_block *seen = argument;
    unsigned char *place = seen->block - ((uintptr_t)seen->block & (PAGE - 1));
    unsigned char *taken = place;
    CHECK(fa_os_platform()->reserve_at(place, PAGE) == 0 && fa_os_platform()->commit(place, PAGE) == 0);
    memset(taken, 7, PAGE);
    fa_arena_free(seen->arena, seen->block, seen->size);
    CHECK(arena_stats(seen->arena).live == 0);
    CHECK(fa_arena_alloc(seen->arena, 100, 0) == NULL && fa_arena_last_refusal(seen->arena) == FA_ERR_STALE);
    CHECK(fa_arena_trim(seen->arena, 0) == FA_OK && fa_arena_wipe(seen->arena) == FA_OK);
    CHECK(fa_arena_reset(seen->arena) == FA_OK);
    fa_arena_destroy(seen->arena);
    for (size_t i = 0; i < PAGE; i++) CHECK(taken[i] == 7);
    return 0;
}

TEST(a_child_that_cannot_have_the_place_of_secret_memory_leaves_it_alone) {
    SKIP_IF(!has_secret_memory(), "no memfd_secret");
    for (int guarded = 0; guarded < 2; guarded++) {
        fa_arena_options options = arena_options(FA_WITNESS, MIB);
        options.secret_memory = FA_REQUIRE;
        options.guard = guarded ? FA_GUARD_BLOCKS : FA_GUARD_ENDS;
        fa_arena *arena = arena_with(&options);
        seen_block seen = {arena, fa_arena_alloc(arena, 1000, 0), 1000, NULL};
        passes_in_child(finds_its_place_taken, &seen);
        fa_arena_destroy(arena);
    }
}

/* Readable by the system, which reports what is not and does not die. */
static bool is_readable(const void *memory) {
#if HAS_FORK
    int ends[2];
    CHECK(pipe(ends) == 0);
    const bool was_read = write(ends[1], memory, 1) == 1;
    CHECK(close(ends[0]) == 0 && close(ends[1]) == 0);
    return was_read;
#else
    return memory != NULL; /* only children call it */
#endif
}

static int refuse_once(void *address, size_t size, fa_os_access access) {
    static bool refused;
    if (refused) return fa_os_platform()->protect(address, size, access);
    refused = true;
    return ENOMEM;
}

static int is_refused_a_closed_page_once(void *argument) {
    seen_block *seen = argument;
    seen->os->protect = refuse_once;
    unsigned char *block = fa_arena_alloc(seen->arena, 100, 0);
    CHECK(block != NULL && is_readable(block + 111) && !is_readable(block + 112)); /* the rounding, and the guard */
    CHECK(is_zero(seen->block, seen->size) && !is_readable(seen->block + 112));
    CHECK(arena_protection(seen->arena).guarded_blocks == 2 * PAGE);
    return 0;
}

TEST(guards_are_closed_again_in_a_child) {
    SKIP_IF(!has_secret_memory(), "no memfd_secret");
    for (fa_want want = FA_TRY; want <= FA_REQUIRE; want++) {
        fa_os os = *fa_os_platform();
        fa_arena_options options = guarded_options(MIB);
        options.os = &os;
        options.guard_pages = want;
        options.secret_memory = FA_TRY;
        fa_arena *arena = arena_with(&options);
        seen_block seen = {arena, fa_arena_alloc(arena, 100, 0), 100, &os};
        memset(seen.block, 1, 100);
        passes_in_child(is_refused_a_closed_page_once, &seen);
        fa_arena_destroy(arena);
    }
}

/* ---- locks ----------------------------------------------------------------------------------------------------------- */

TEST(ten_thousand_small_secrets_lock_little_more_than_their_bytes) {
    SKIP_IF(!mlock_is_real(), "the sanitizer replaces mlock");
    static const size_t sizes[] = {16, 32, 48, 64, 100, 256};
    for (size_t i = 0; i < 6; i++) {
        fa_arena *arena = new_arena(FA_WITNESS, 8 * MIB);
        for (size_t n = 0; n < 10000; n++) CHECK(fa_arena_alloc(arena, sizes[i], 0) != NULL);
        const fa_protection protection = arena_protection(arena);
        CHECK(protection.lock_wanted <= 2 * 10000 * sizes[i]);
        if (protection.locked < protection.lock_wanted) printf("# this process may not lock %zu bytes\n", 10000 * sizes[i]);
        fa_arena_destroy(arena);
    }
}

static int guarded_locks_beyond_the_limit(void *unused) {
    (void)unused;
    may_lock(64 * KIB);
    for (fa_want want = FA_TRY; want <= FA_REQUIRE; want++) {
        fa_arena_options options = guarded_options(MIB);
        options.lock = want;
        fa_arena *arena = arena_with(&options);
        size_t count = 0;
        void *first = NULL, *block;
        for (; count < 40 && (block = fa_arena_alloc(arena, 100, 0)) != NULL; count++)
            if (count == 0) first = block;
        const fa_protection protection = arena_protection(arena);
        CHECK(protection.locked == 64 * KIB && protection.lock_limit == 64 * KIB);
        if (want == FA_TRY) {
            CHECK(count == 40 && protection.lock_wanted == 40 * PAGE);
        } else {
            CHECK(count == 64 * KIB / PAGE && protection.lock_wanted == 64 * KIB + PAGE);
            CHECK(fa_arena_last_refusal(arena) == FA_ERR_LOCK && protection.guarded_blocks == count * PAGE);
        }
        fa_arena_free(arena, first, 100);
        CHECK(arena_protection(arena).locked == 64 * KIB - PAGE);
        CHECK(fa_arena_alloc(arena, 100, 0) != NULL && arena_protection(arena).locked == 64 * KIB);
        CHECK(fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
    return 0;
}

TEST(a_guarded_arena_tells_what_it_could_not_lock) {
    SKIP_IF(!mlock_is_real(), "the sanitizer replaces mlock");
    passes_in_child(guarded_locks_beyond_the_limit, NULL);
}

int main(int argc, char **argv) { return tap_main(argc, argv); }
