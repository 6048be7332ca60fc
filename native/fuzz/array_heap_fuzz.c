/*
 * array_heap_fuzz.c - the heap behind install() against the model
 *
 * It cannot be destroyed, so its mappings are taken away at the end. Reservations above 64 MiB are refused: the ranges are
 * small enough then to be exhausted.
 */
#include "fuzz.h"

#include "heap/array_heap.h"

static size_t next_array_size(input *from) {
    const size_t size = next_size(from);
    return next_byte(from) % 4 == 0 ? size % 5000 * 512 : size;
}

static void check_all(fa_array_heap *heap, const model *blocks) {
    fa_numpy_stats stats;
    CHECK(fa_array_heap_is_valid(heap));
    fa_array_heap_get_stats(heap, &stats);
    CHECK(stats.arrays == blocks->count && stats.used >= model_bytes(blocks) && stats.peak >= stats.used);
    CHECK(stats.cache_hits <= stats.large && (ptrdiff_t)stats.reserved <= fault.mapped);
}

static void step(fa_array_heap *heap, model *blocks, input *from) {
    const uint8_t choice = next_byte(from);
    const size_t size = next_array_size(from);
    if (choice < 110) {
        if (blocks->count == FUZZ_BLOCKS) return;
        const bool zeroed = choice % 2 == 0;
        unsigned char *block = zeroed ? fa_array_heap_alloc_zeroed(heap, size) : fa_array_heap_alloc(heap, size);
        if (block == NULL) return;
        CHECK(fa_array_heap_usable_size(heap, block) >= size);
        if (zeroed) CHECK(reads_zero(block, size));
        model_add(blocks, block, size, 64);
    } else if (choice < 170) {
        if (blocks->count == 0) return;
        const model_block block = model_remove(blocks, size % blocks->count);
        CHECK(fa_array_heap_free(heap, block.address) == FA_OK);
        CHECK(fa_array_heap_usable_size(heap, block.address) == 0);
        if (choice % 4 == 0) CHECK(fa_array_heap_free(heap, block.address) != FA_OK);
    } else if (choice < 215) {
        if (blocks->count == 0) return;
        const size_t index = next_below(from, blocks->count);
        const model_block block = blocks->live[index];
        unsigned char *moved = fa_array_heap_realloc(heap, block.address, size);
        if (moved == NULL) {
            CHECK(size > block.size && holds(&block));
            return;
        }
        CHECK(moved_holds(&block, moved, size));
        blocks->live[index] = blocks->live[--blocks->count];
        model_add(blocks, moved, size, 64);
    } else if (choice < 225) {
        fa_array_heap_trim(heap, choice % 2 == 0);
    } else if (choice < 240) {
        fault.now += size % 4096;
    } else if (choice < 248) {
        fa_array_heap_configure(heap, size, next_byte(from) * 8U, choice % 2 == 0);
    } else {
        static char foreign[256];
        CHECK(fa_array_heap_free(heap, foreign) == FA_ERR_FOREIGN && fa_array_heap_usable_size(heap, foreign) == 0);
        CHECK(fa_array_heap_realloc(heap, foreign, 10) == NULL);
        if (blocks->count == 0) return;
        const model_block *block = &blocks->live[size % blocks->count];
        if (block->size <= 1 + size % 128) return;
        CHECK(fa_array_heap_free(heap, block->address + 1 + size % 128) != FA_OK);
        CHECK(fa_array_heap_usable_size(heap, block->address + 1 + size % 128) == 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static model blocks;
    input from = {data, data + size};
    const fa_os os = faulty_os(true);
    memset(&blocks, 0, sizeof blocks);
    next_fault(&from);
    fault.largest = 64 * MIB;
    fa_array_heap *heap = fa_array_heap_create(&os);
    CHECK(heap != NULL || fault.failed);
    if (heap == NULL) {
        CHECK(fault.mapped == 0);
        return 0;
    }
    fa_array_heap_configure(heap, (size_t)next_byte(&from) << 20, next_byte(&from) * 8U, next_byte(&from) % 2 == 0);
    for (size_t steps = 0; !is_over(&from); steps++) {
        step(heap, &blocks, &from);
        check_all(heap, &blocks);
        if (steps % 8 == 7) model_check(&blocks);
    }
    model_check(&blocks);
    while (blocks.count > 0) {
        const model_block block = model_remove(&blocks, blocks.count - 1);
        CHECK(fa_array_heap_free(heap, block.address) == FA_OK);
    }
    check_all(heap, &blocks);
    release_all_ranges();
    CHECK(fault.mapped == 0 && fault.blocks == 0);
    return 0;
}
