/*
 * array_heap_test.c - the heap behind install(): sizes, reuse, decay, misuse, every failing call
 */
#include "heap/array_heap.h"
#include "faulty_os.h"

static fa_array_heap *new_heap(const fa_os *os, size_t cache_limit, uint32_t decay) {
    fa_array_heap *heap = fa_array_heap_create(os);
    CHECK(heap != NULL);
    fa_array_heap_configure(heap, cache_limit, decay, true);
    return heap;
}

static fa_numpy_stats heap_stats(fa_array_heap *heap) {
    fa_numpy_stats stats;
    fa_array_heap_get_stats(heap, &stats);
    return stats;
}

static void end_heap(fa_array_heap *heap) {
    CHECK(fa_array_heap_is_valid(heap));
    release_all_ranges();
    CHECK(fault.mapped == 0 && fault.blocks == 0);
}

TEST(array_blocks_are_aligned_distinct_and_large_enough) {
    const fa_os os = faulty_os(true);
    no_fault();
    fa_array_heap *heap = new_heap(&os, 64 * MIB, 1000);
    for (size_t size = 0; size < 600 * KIB; size += 1 + size / 7) {
        unsigned char *one = fa_array_heap_alloc(heap, size), *two = fa_array_heap_alloc_zeroed(heap, size);
        CHECK(one != NULL && two != NULL && one != two && is_aligned(one, 64) && is_aligned(two, 64));
        CHECK(fa_array_heap_usable_size(heap, one) >= size && fa_array_heap_usable_size(heap, two) >= size);
        CHECK(fa_array_heap_usable_size(heap, one) <= size + size / 4 + 4096);
        CHECK(is_zero(two, size));
        fill(one, size, 1);
        fill(two, size, 2);
        CHECK(is_filled(one, size, 1));
        CHECK(fa_array_heap_free(heap, one) == FA_OK && fa_array_heap_free(heap, two) == FA_OK);
    }
    CHECK(heap_stats(heap).arrays == 0 && heap_stats(heap).used == 0);
    end_heap(heap);
}

TEST(array_heap_reuses_the_newest_and_keeps_pages) {
    SKIP_IF(!can(try_remap) || UNDER_MEMCHECK, "reservations may be neighbours here, and cached blocks join");
    const fa_os os = faulty_os(true);
    no_fault();
    fa_array_heap *heap = new_heap(&os, 64 * MIB, 1000);
    for (size_t size = 64; size <= 16 * MIB; size *= 4) {
        void *block = fa_array_heap_alloc(heap, size);
        CHECK(fa_array_heap_free(heap, block) == FA_OK);
        CHECK(fa_array_heap_alloc(heap, size) == block);
        CHECK(fa_array_heap_free(heap, block) == FA_OK);
    }
    CHECK(heap_stats(heap).cache_hits > 0 && fault.count[DECOMMIT] == 0);
    end_heap(heap);
}

TEST(array_heap_gives_back_what_is_older_than_the_decay) {
    SKIP_IF(!can(try_decommit), NO_DECOMMIT);
    const fa_os os = faulty_os(true);
    no_fault();
    fa_array_heap *heap = new_heap(&os, 64 * MIB, 1000);
    void *blocks[400];
    for (size_t i = 0; i < 400; i++) blocks[i] = fa_array_heap_alloc(heap, 4096 * (i % 40 + 1));
    void *large = fa_array_heap_alloc(heap, 3 * MIB);
    for (size_t i = 0; i < 400; i++) CHECK(fa_array_heap_free(heap, blocks[i]) == FA_OK);
    CHECK(fa_array_heap_free(heap, large) == FA_OK);
    CHECK(heap_stats(heap).cached >= 3 * MIB);
    fa_array_heap_trim(heap, false);
    CHECK(heap_stats(heap).cached >= 3 * MIB); /* not old enough */
    fault.now += 1001;
    fa_array_heap_trim(heap, false);
    fault.now += 1001;
    fa_array_heap_trim(heap, false);
    CHECK(heap_stats(heap).cached == 0 && fault.count[DECOMMIT] > 0);
    end_heap(heap);
}

static unsigned spare_calls;
static void note_spare(void) { spare_calls++; }

TEST(array_heap_says_when_there_is_something_to_give_back) {
    SKIP_IF(!can(try_decommit), NO_DECOMMIT);
    const fa_os os = faulty_os(true);
    no_fault();
    fa_array_heap *heap = new_heap(&os, 64 * MIB, 1000);
    fa_array_heap_on_spare(heap, note_spare);
    spare_calls = 0;
    void *small = fa_array_heap_alloc(heap, 100), *large = fa_array_heap_alloc(heap, MIB), *medium[64];
    CHECK(fa_array_heap_free(heap, small) == FA_OK);
    CHECK(spare_calls == 0 && !fa_array_heap_has_spare(heap)); /* the last span of a class stays */
    CHECK(fa_array_heap_free(heap, large) == FA_OK);
    CHECK(spare_calls == 1 && fa_array_heap_has_spare(heap));
    fa_array_heap_trim(heap, false);
    CHECK(fa_array_heap_has_spare(heap));
    fa_array_heap_trim(heap, true);
    CHECK(!fa_array_heap_has_spare(heap));
    for (size_t i = 0; i < 64; i++) medium[i] = fa_array_heap_alloc(heap, 200 * KIB);
    spare_calls = 0;
    for (size_t i = 0; i < 64; i++) CHECK(fa_array_heap_free(heap, medium[i]) == FA_OK);
    CHECK(spare_calls > 0 && fa_array_heap_has_spare(heap));
    end_heap(heap);
}

TEST(array_heap_finds_double_interior_and_foreign_frees) {
    const fa_os os = faulty_os(true);
    no_fault();
    fa_array_heap *heap = new_heap(&os, 64 * MIB, 0);
    static const size_t sizes[] = {64, 5000, 100 * KIB, MIB};
    static char foreign[64];
    for (size_t i = 0; i < 4; i++) {
        unsigned char *block = fa_array_heap_alloc(heap, sizes[i]);
        CHECK(fa_array_heap_free(heap, block + 16) != FA_OK && fa_array_heap_usable_size(heap, block + 16) == 0);
        CHECK(fa_array_heap_realloc(heap, block + 16, 10) == NULL);
        CHECK(fa_array_heap_free(heap, block) == FA_OK);
        CHECK(fa_array_heap_free(heap, block) == (sizes[i] == MIB ? FA_ERR_FOREIGN : FA_ERR_CORRUPT));
    }
    CHECK(fa_array_heap_free(heap, foreign) == FA_ERR_FOREIGN && fa_array_heap_free(heap, NULL) == FA_ERR_FOREIGN);
    end_heap(heap);
}

TEST(array_heap_realloc_keeps_the_bytes) {
    const fa_os os = faulty_os(true);
    no_fault();
    fa_array_heap *heap = new_heap(&os, 64 * MIB, 0);
    static const size_t sizes[] = {10, 64, 1000, 9000, 300 * KIB, 5 * MIB, 300 * KIB, 12 * MIB, 9 * MIB, 8000, 70, 0, 20};
    size_t size = sizes[0];
    unsigned char *block = fa_array_heap_alloc(heap, size);
    fill(block, size, 3);
    for (size_t i = 1; i < sizeof sizes / sizeof sizes[0]; i++) {
        block = fa_array_heap_realloc(heap, block, sizes[i]);
        CHECK(block != NULL && is_filled(block, size < sizes[i] ? size : sizes[i], 3));
        size = sizes[i];
        fill(block, size, 3);
        CHECK(fa_array_heap_is_valid(heap) && heap_stats(heap).arrays == 1);
    }
    CHECK(heap_stats(heap).moved > 0 || !can(try_remap));
    CHECK(fa_array_heap_realloc(heap, block, SIZE_MAX) == NULL && is_filled(block, size, 3));
    CHECK(fa_array_heap_free(heap, block) == FA_OK);
    end_heap(heap);
}

TEST(array_heap_refuses_absurd_sizes) {
    const fa_os os = faulty_os(true);
    no_fault();
    fa_array_heap *heap = new_heap(&os, 64 * MIB, 0);
    CHECK(fa_array_heap_alloc(heap, SIZE_MAX) == NULL && fa_array_heap_alloc_zeroed(heap, SIZE_MAX / 2) == NULL);
    CHECK(heap_stats(heap).fallbacks == 2);
    end_heap(heap);
}

/* Without address space for the ranges, small blocks are refused and NumPy's own functions serve them. */
TEST(array_heap_without_ranges_refuses_small_blocks) {
    const fa_os os = faulty_os(true);
    no_fault();
    fault.largest = 8 * MIB;
    fa_array_heap *heap = new_heap(&os, 64 * MIB, 0);
    CHECK(fa_array_heap_alloc(heap, 100) == NULL && fa_array_heap_alloc(heap, 20000) == NULL);
    void *large = fa_array_heap_alloc(heap, MIB);
    CHECK(large != NULL && heap_stats(heap).fallbacks == 2);
    CHECK(fa_array_heap_realloc(heap, large, 100) == large); /* there is nowhere else, and it is large enough */
    CHECK(fa_array_heap_free(heap, large) == FA_OK);
    end_heap(heap);
}

static void use_array_heap(const fa_os *os) {
    static const size_t sizes[] = {64, 100, 2000, 8 * KIB, 30000, 256 * KIB, 500 * KIB, 5 * MIB, 70};
    enum { COUNT = 27 };
    fault.largest = 64 * MIB;
    fa_array_heap *heap = fa_array_heap_create(os);
    if (heap == NULL) {
        CHECK(fault.failed);
        return;
    }
    fa_array_heap_configure(heap, 8 * MIB, 50, true);
    unsigned char *blocks[COUNT];
    size_t held[COUNT], live = 0;
    for (size_t i = 0; i < COUNT; i++) {
        held[i] = sizes[i % 9];
        blocks[i] = i % 3 == 0 ? fa_array_heap_alloc_zeroed(heap, held[i]) : fa_array_heap_alloc(heap, held[i]);
        CHECK(blocks[i] != NULL || fault.failed);
        if (blocks[i] != NULL) fill(blocks[i], fa_array_heap_usable_size(heap, blocks[i]) < 4096 ? held[i] : 4096, i);
        live += blocks[i] != NULL;
    }
    CHECK(fa_array_heap_is_valid(heap) && heap_stats(heap).arrays == live);
    for (size_t i = 0; i < COUNT; i++) {
        if (blocks[i] == NULL) continue;
        const size_t size = sizes[(i * 5 + 3) % 9], both = size < held[i] ? size : held[i];
        unsigned char *moved = fa_array_heap_realloc(heap, blocks[i], size);
        CHECK(moved != NULL || fault.failed);
        if (moved != NULL) blocks[i] = moved;
        CHECK(is_filled(blocks[i], both < 4096 ? both : 4096, i));
        CHECK(fa_array_heap_is_valid(heap) && heap_stats(heap).arrays == live);
        fault.now += 10;
    }
    for (size_t i = 0; i < COUNT; i++) {
        if (blocks[i] != NULL) CHECK(fa_array_heap_free(heap, blocks[i]) == FA_OK);
        fault.now += 10;
    }
    CHECK(fa_array_heap_is_valid(heap) && heap_stats(heap).arrays == 0 && heap_stats(heap).used == 0);
    fa_array_heap_trim(heap, true);
    CHECK(heap_stats(heap).cached == 0 || fault.failed || !can(try_decommit));
    CHECK(fa_array_heap_is_valid(heap));
    release_all_ranges();
}

TEST(the_array_heap_survives_every_fault) { run_with_every_fault(use_array_heap, true); }

int main(int argc, char **argv) { return tap_main(argc, argv); }
