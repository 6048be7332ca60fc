/*
 * global_fuzz.c - malloc for a whole process against the model
 *
 * There is one of it, and it lives on from input to input: every input frees what it made and gives all back. A second
 * thread takes turns with the first, and new ones come and go, so blocks are freed where they were not made.
 * global_hardened_fuzz.c is the same with HARDENED.
 */
#include <pthread.h>

#include "fuzz.h"

#include "heap/global.h"

#ifndef HARDENED
#define HARDENED false
#endif

static fa_os os;
static model blocks;
static input from;

static void step(uint8_t choice) {
    const size_t size = next_size(&from);
    if (choice < 110) {
        if (blocks.count == FUZZ_BLOCKS) return;
        const size_t alignment = choice < 30 ? (size_t)1 << next_below(&from, 24) : 0;
        const bool zeroed = choice % 3 == 0 && alignment == 0;
        unsigned char *block = alignment != 0 ? fa_global_alloc_aligned(alignment, size)
                               : zeroed       ? fa_global_alloc_zeroed(1 + choice % 2, size)
                                              : fa_global_alloc(size);
        if (block == NULL) return;
        const size_t asked = zeroed ? size * (1 + choice % 2) : size;
        CHECK(fa_global_owns(block) && fa_global_usable_size(block) >= asked);
        if (zeroed) CHECK(reads_zero(block, asked));
        model_add(&blocks, block, asked, alignment);
    } else if (choice < 180) {
        if (blocks.count == 0) return;
        const model_block block = model_remove(&blocks, size % blocks.count);
        if (choice % 8 == 0) CHECK(fa_global_realloc(block.address, 0) == NULL);
        else fa_global_free(block.address);
    } else if (choice < 220) {
        if (blocks.count == 0 || size == 0) return;
        const size_t index = next_below(&from, blocks.count);
        const model_block block = blocks.live[index];
        unsigned char *moved = fa_global_realloc(block.address, size);
        if (moved == NULL) {
            CHECK(holds(&block));
            return;
        }
        CHECK(moved_holds(&block, moved, size));
        blocks.live[index] = blocks.live[--blocks.count];
        model_add(&blocks, moved, size, 0);
    } else if (choice < 228) {
        (void)fa_global_trim(choice % 2 == 0);
    } else if (choice < 240) {
        fault.now += size % 8192;
    } else if (choice < 246) {
        fa_global_options options;
        fa_global_options_init(&options);
        options.large_size = 32 * KIB + 1 + size % (4 * MIB);
        options.cache_limit = size % (32 * MIB);
        options.decay = next_byte(&from) * 16U;
        options.huge_pages = choice % 2 == 0;
        options.zero_on_free = choice % 3 == 0;
        fa_global_configure(&options);
    } else if (choice < 250) {
        fa_global_fork_prepare();
        fa_global_fork_parent();
    } else {
        static char foreign[64];
        CHECK(!fa_global_owns(foreign));
        if (!HARDENED) { /* where these are misuses, which end the process */
            CHECK(fa_global_usable_size(foreign) == 0);
            fa_global_free(foreign);
        }
        fa_global_free(NULL);
        CHECK(fa_global_usable_size(NULL) == 0);
    }
}

static void *step_on_a_thread(void *choice) {
    step(*(uint8_t *)choice);
    return NULL;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static bool started;
    from = (input){data, data + size};
    const uint64_t now = fault.now;
    next_fault(&from);
    fault.now = now;
    if (!started) {
        const int after = fault.after;
        fault.after = -1;
        os = faulty_os(true);
        fa_global_options options;
        fa_global_options_init(&options);
        options.hardened = HARDENED;
        fa_global_configure(&options);
        fa_global_start(&os);
        CHECK(fa_global_is_hardened() == HARDENED);
        fault.after = after;
        started = true;
    }
    fa_global_stats before, stats;
    fa_global_get_stats(&before);
    for (size_t steps = 0; !is_over(&from); steps++) {
        uint8_t thread = next_byte(&from), choice = next_byte(&from);
        if (thread % 8 == 7) {
            pthread_t other;
            CHECK(pthread_create(&other, NULL, step_on_a_thread, &choice) == 0);
            pthread_join(other, NULL);
        } else {
            step(choice);
        }
        fa_global_get_stats(&stats);
        CHECK(stats.live == before.live + blocks.count && stats.allocated - stats.freed == stats.live);
        CHECK(stats.used >= model_bytes(&blocks) && stats.held >= stats.used);
        if (steps % 4 == 3) CHECK(fa_global_is_valid());
        if (steps % 8 == 7) model_check(&blocks);
    }
    while (blocks.count > 0) {
        const model_block block = model_remove(&blocks, blocks.count - 1);
        fa_global_free(block.address);
    }
    CHECK(fa_global_is_valid());
    fault.after = -1;
    (void)fa_global_trim(true);
    fa_global_get_stats(&stats);
    CHECK(stats.live == before.live && fa_global_is_valid());
    return 0;
}
