/*
 * measured_test.c - what docs/performance.md promises, as counts: page faults, residency, peaks
 *
 * Times belong to the benchmark. A count is the same on a busy machine, so a change that loses one fails here.
 */
#if !defined(_WIN32) && !defined(__wasm__)
#include <sys/resource.h>
#endif

#include "support.h"

static uint64_t faults_so_far(void) {
#if defined(RUSAGE_SELF)
    struct rusage usage;
    CHECK(getrusage(RUSAGE_SELF, &usage) == 0);
    return (uint64_t)usage.ru_minflt + (uint64_t)usage.ru_majflt;
#else
    SKIP("page faults are not counted here");
    return 0;
#endif
}

/* The kernel moves pages when memory is short, which takes a fault or two. One of ours would come again in every round, of which there are more. */
#define NOISE 8
static bool no_faults_since(uint64_t before) {
    const uint64_t faults = faults_so_far() - before;
    if (faults > 0) printf("# %u page faults\n", (unsigned)faults);
    return faults <= NOISE;
}

/* Sanitizers have pages of their own for each of ours, and an emulator has pages for what it translated. */
static void need_own_faults(void) {
    SKIP_IF(UNDER_SANITIZER, "a sanitizer's shadow takes page faults too");
    SKIP_IF(UNDER_EMULATOR || UNDER_MEMCHECK, "an emulator takes page faults too");
}

TEST(warm_vectors_of_an_arena_take_no_page_fault) {
    need_own_faults();
    fa_arena *arena = new_arena(FA_POLYNOMIAL, 64 * MIB);
    for (size_t size = MIB; size <= 64 * MIB; size *= 4) {
        uint64_t before = 0;
        for (int round = 0; round < 20; round++) {
            if (round == 1) before = faults_so_far();
            unsigned char *vector = fa_arena_alloc(arena, size, 0);
            CHECK(vector != NULL && is_aligned(vector, 64));
            memset(vector, round, size);
            fa_arena_free(arena, vector, size);
        }
        CHECK(no_faults_since(before));
    }
    fa_arena_destroy(arena);
}

TEST(warm_large_blocks_of_a_manager_take_no_page_fault) {
    need_own_faults();
    fa_manager *manager = manager_with(NULL);
    for (size_t size = MIB; size <= 32 * MIB; size *= 2) {
        uint64_t before = 0;
        for (int round = 0; round < 20; round++) {
            if (round == 1) before = faults_so_far();
            unsigned char *block = fa_malloc(manager, size);
            CHECK(block != NULL);
            memset(block, 1, size);
            fa_free(manager, block);
        }
        CHECK(no_faults_since(before));
    }
    fa_manager_destroy(manager);
}

/* Blocks between slabs and large ones: freed in another order than they came, and resident. */
TEST(warm_runs_of_a_manager_take_no_page_fault) {
    SKIP_IF(SIZE_MAX <= UINT32_MAX, "addresses are too few for runs: malloc has these blocks");
    need_own_faults();
    enum { COUNT = 41 };
    fa_manager *manager = manager_with(NULL);
    uint64_t before = 0, resident = 0;
    for (int round = 0; round < 20; round++) {
        if (round == 1) before = faults_so_far();
        random_source source = {7};
        unsigned char *block[COUNT];
        for (size_t i = 0; i < COUNT; i++) {
            const size_t size = 8 * KIB + 1 + random_below(&source, 55 * KIB);
            block[i] = fa_malloc(manager, size);
            CHECK(block[i] != NULL);
            memset(block[i], 1, size);
        }
        for (size_t i = 0; i < COUNT; i++) fa_free(manager, block[i * 7 % COUNT]);
        if (round == 0) resident = manager_stats(manager).resident;
    }
    CHECK(no_faults_since(before) && manager_stats(manager).resident == resident);
    fa_manager_destroy(manager);
}

TEST(a_reset_round_of_small_blocks_takes_no_page_fault) {
    need_own_faults();
    fa_arena *arena = new_arena(FA_SCRATCH, MIB);
    uint64_t before = 0;
    for (int round = 0; round < 20; round++) {
        if (round == 1) before = faults_so_far();
        for (size_t i = 0; i < 10000; i++) {
            uint64_t *block = fa_arena_alloc(arena, 32, 0);
            CHECK(block != NULL);
            *block = i;
        }
        CHECK(fa_arena_reset(arena) == FA_OK);
    }
    CHECK(no_faults_since(before));
    fa_arena_destroy(arena);
}

/* A reset that visited blocks, or gave pages back, would touch memory or lose it. */
TEST(a_reset_keeps_every_page_and_touches_none) {
    NOT_UNDER_AN_EMULATOR;
    SKIP_IF(UNDER_SANITIZER, "ten million blocks");
    enum { BLOCKS = 10000000 };
    fa_arena *arena = new_arena(FA_SCRATCH, (size_t)BLOCKS * 16);
    for (size_t i = 0; i < BLOCKS; i++) CHECK(fa_arena_alloc(arena, 16, 0) != NULL);
    const uint64_t resident = arena_stats(arena).resident, before = faults_so_far();
    CHECK(resident <= 64 * KIB); /* nobody wrote into them */
    CHECK(fa_arena_reset(arena) == FA_OK);
    CHECK(no_faults_since(before) && arena_stats(arena).resident == resident && arena_stats(arena).live == 0);
    fa_arena_destroy(arena);
}

/* Zeroing what nobody had would touch it: the rest of a chunk, or the capacity. */
TEST(a_wipe_touches_no_page_that_was_not_used) {
    need_own_faults();
    fa_arena *arena = new_arena(FA_SCRATCH, 128 * MIB);
    uint64_t before = 0;
    for (int round = 0; round < 100; round++) {
        if (round == 1) before = faults_so_far();
        unsigned char *block = fa_arena_alloc(arena, KIB, 0);
        memset(block, 1, KIB);
        CHECK(fa_arena_wipe(arena) == FA_OK && is_zero(block, KIB));
    }
    CHECK(no_faults_since(before) && arena_stats(arena).resident <= 64 * KIB);
    fa_arena_destroy(arena);
}

/* Twenty rounds of vectors, allocated and freed in mixed order, the same in every round. */
TEST(a_provers_rounds_take_no_page_fault_after_the_first_and_no_more_memory_than_they_hold) {
    enum { SLOTS = 10, STEPS = 48, ROUNDS = 20, LEAST = 64 << 10 };
    fa_arena *arena = new_arena(FA_POLYNOMIAL, 128 * MIB);
    uint64_t before = 0;
    size_t live = 0, largest = 0;
    for (int round = 0; round < ROUNDS; round++) {
        if (round == 1) before = faults_so_far();
        random_source source = {7};
        unsigned char *vector[SLOTS] = {NULL};
        size_t size[SLOTS] = {0};
        for (int step = 0; step < STEPS + SLOTS; step++) {
            const size_t slot = step < STEPS ? random_below(&source, SLOTS) : (size_t)(step - STEPS);
            if (vector[slot] != NULL) {
                fa_arena_free(arena, vector[slot], size[slot]);
                vector[slot] = NULL;
                live -= size[slot];
            } else if (step < STEPS) {
                size[slot] = (size_t)LEAST << random_below(&source, 7);
                vector[slot] = fa_arena_alloc(arena, size[slot], 0);
                CHECK(vector[slot] != NULL);
                for (size_t i = 0; i < size[slot]; i += 4096) vector[slot][i] = 1;
                live += size[slot];
                if (live > largest) largest = live;
            }
        }
        CHECK(live == 0);
    }
    CHECK(UNDER_SANITIZER || no_faults_since(before));
    /* What is resident is all that was ever touched: `peak` would not show space that no later vector fitted into. */
    CHECK(arena_stats(arena).peak <= largest + largest / 4 && arena_stats(arena).resident <= largest + largest / 4);
    fa_arena_destroy(arena);
}

/* Growing moves pages: the bytes that were there are not touched. */
TEST(a_large_block_grows_without_a_page_fault_for_what_it_holds) {
    need_own_faults();
    fa_manager *manager = manager_with(NULL);
    const size_t size = 8 * MIB;
    unsigned char *block = fa_malloc(manager, size);
    CHECK(block != NULL);
    memset(block, 1, size);
    const uint64_t before = faults_so_far();
    unsigned char *moved = fa_realloc(manager, block, 4 * size);
    CHECK(moved != NULL && faults_so_far() - before < 16);
    CHECK(moved[0] == 1 && moved[size - 1] == 1 && moved[size] == 0);
    fa_free(manager, moved);
    fa_manager_destroy(manager);
}

/* Many zeros where there was something: pages that come when they are touched, not a memset. */
TEST(large_zeros_of_an_arena_are_not_there_until_they_are_touched) {
    need_own_faults();
    fa_arena *arena = new_arena(FA_POLYNOMIAL, 128 * MIB);
    const size_t size = 64 * MIB, step = 64 * KIB;
    CHECK(fa_arena_alloc(arena, 100 * KIB, 0) != NULL); /* so that it begins somewhere in a huge page */
    unsigned char *block = fa_arena_alloc(arena, size, 0);
    CHECK(block != NULL);
    memset(block, 1, size);
    fa_arena_free(arena, block, size);
    const uint64_t before = faults_so_far();
    CHECK(fa_arena_alloc_zeroed(arena, size, 0) == block);
    CHECK(faults_so_far() - before < 8 && arena_stats(arena).resident < 8 * MIB);
    for (size_t i = 0; i < size; i += step) CHECK(block[i] == 0 && block[i + step - 1] == 0);
    CHECK(is_zero(block, 4 * MIB) && is_zero(block + size - 4 * MIB, 4 * MIB));
    fa_arena_destroy(arena);
}

/* Only the cursor moves: the pages, the chunk and the counts are as they were at the mark. */
TEST(a_rewind_by_one_thread_takes_no_page_fault_and_counts_on) {
    need_own_faults();
    fa_arena *arena = new_arena(FA_SCRATCH, MIB);
    unsigned char *below = fa_arena_alloc(arena, 100, 0), *first = NULL;
    uint64_t before = 0;
    for (uint64_t round = 0; round < 100; round++) {
        if (round == 1) before = faults_so_far();
        const fa_mark mark = fa_arena_mark(arena);
        for (int i = 0; i < 100; i++) {
            unsigned char *block = fa_arena_alloc(arena, 32, 0);
            CHECK(block > below && (i > 0 || first == NULL || block == first));
            if (i == 0) first = block;
            *block = 1;
        }
        CHECK(arena_stats(arena).live == 101 && arena_stats(arena).requested == 3300);
        CHECK(fa_arena_rewind(arena, mark) == FA_OK);
        const fa_arena_stats stats = arena_stats(arena);
        CHECK(stats.live == 1 && stats.requested == 100 && stats.allocated == 1 + 100 * (round + 1));
        CHECK(stats.freed == 100 * (round + 1) && stats.used == 112 && stats.peak == 112 + 3200);
    }
    CHECK(no_faults_since(before));
    fa_arena_destroy(arena);
}

int main(int argc, char **argv) { return tap_main(argc, argv); }
