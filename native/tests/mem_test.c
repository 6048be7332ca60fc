/*
 * mem_test.c - the building blocks by themselves: table, cache, pool, classes; small cases, all of them
 *
 * Where the state is small every state is tried, so these are proofs for that size. What holds for all sizes is proved in
 * native/prove.
 */
#include "faulty_os.h"
#include "heap/manager.h"
#include "mem/bump.h"
#include "mem/canary.h"
#include "mem/cache.h"
#include "mem/pool.h"
#include "mem/slabs.h"
#include "mem/table.h"
#include "mem/wipe.h"

/* ---- canaries ------------------------------------------------------------------------------------------------------ */

static int no_random(void *bytes, size_t size) {
    (void)bytes, (void)size;
    return ENOSYS;
}

TEST(a_canary_tells_every_changed_byte_at_every_length) {
    fa_canary secret, other;
    unsigned char memory[64];
    CHECK(fa_canary_draw(&secret, fa_os_platform()) == 0);
    const fa_canary canary = fa_canary_of(&secret, memory);
    for (size_t size = 0; size <= 40; size++) {
        memset(memory, 0, sizeof memory);
        fa_canary_fill(&canary, memory + 8, size);
        CHECK(is_zero(memory, 8) && is_zero(memory + 8 + size, sizeof memory - 8 - size));
        CHECK(fa_canary_holds(&canary, memory + 8, size));
        for (size_t i = 0; i < size; i++) {
            CHECK(memory[8 + i] != 0 && memory[8 + i] == memory[8 + i % FA_CANARY]);
            memory[8 + i] ^= 0x80;
            CHECK(!fa_canary_holds(&canary, memory + 8, size));
            memory[8 + i] ^= 0x80;
        }
    }
    other = fa_canary_of(&secret, memory + 16);
    CHECK(memcmp(&other, &canary, sizeof other) != 0);
    fa_os os = *fa_os_platform();
    os.random = no_random;
    CHECK(fa_canary_draw(&secret, &os) == ENOSYS);
}

TEST(every_byte_that_is_not_zero_is_found) {
    unsigned char memory[100] = {0};
    for (size_t size = 0; size <= sizeof memory; size++) {
        for (size_t i = 0; i < sizeof memory; i++) {
            memory[i] = 1;
            CHECK(fa_is_zero(memory, size) == (i >= size));
            memory[i] = 0;
        }
    }
}

/* ---- table: every way in which a few entries can collide ------------------------------------------------------------ */

/* An address whose home is the slot, found by asking: the `number`-th of its kind. A table of `slots` with nothing else in it
 * puts the entry into its home. */
static uintptr_t address_with_home(size_t home, size_t slots, size_t number) {
    fa_slot array[16];
    for (uintptr_t address = 32;; address += 32) {
        fa_table table = {.slots = array, .mask = slots - 1, .out = 1};
        memset(array, 0, sizeof array);
        fa_table_put_back(&table, (const void *)address, 1);
        if (array[home].address == address && number-- == 0) return address;
    }
}

/* Enters addresses with these homes, in this order, takes one out, and looks for all. */
static void try_homes(const size_t *homes, size_t count, size_t slots, uintptr_t addresses[16][8]) {
    for (size_t gone = 0; gone < count; gone++) {
        fa_slot array[16] = {{0, 0}};
        fa_table table = {.slots = array, .mask = slots - 1, .out = count};
        for (size_t i = 0; i < count; i++)
            fa_table_put_back(&table, (const void *)addresses[homes[i]][i], i + 1);
        CHECK(fa_table_is_valid(&table));
        fa_table_remove(&table, fa_table_find(&table, (const void *)addresses[homes[gone]][gone]));
        CHECK(fa_table_is_valid(&table) && table.count == count - 1);
        for (size_t i = 0; i < count; i++) {
            const fa_slot *slot = fa_table_find(&table, (const void *)addresses[homes[i]][i]);
            CHECK(i == gone ? slot == NULL : slot != NULL && slot->value == i + 1);
        }
    }
}

static void try_all_homes(size_t slots, size_t count) {
    static uintptr_t addresses[16][8];
    for (size_t home = 0; home < slots; home++)
        for (size_t i = 0; i < count; i++) addresses[home][i] = address_with_home(home, slots, i);
    size_t homes[8] = {0}, at = 0;
    while (at < count) {
        try_homes(homes, count, slots, addresses);
        for (at = 0; at < count && ++homes[at] == slots; at++) homes[at] = 0;
    }
}

TEST(a_table_of_8_slots_survives_every_removal) { try_all_homes(8, 4); }
TEST(a_table_of_16_slots_survives_every_removal) { try_all_homes(16, UNDER_VALGRIND ? 2 : UNDER_SANITIZER ? 3 : 4); }

TEST(a_table_keeps_the_room_of_an_entry_that_is_out) {
    const fa_os os = faulty_os(true);
    no_fault();
    fa_table table;
    fa_table_init(&table);
    for (size_t i = 1; i <= 127; i++) CHECK(fa_table_insert(&table, &os, (void *)(i * 4096), i));
    CHECK(fault.count[RESERVE] == 1);
    fa_table_take_out(&table, fa_table_find(&table, (void *)4096));
    CHECK(fa_table_find(&table, (void *)4096) == NULL && fa_table_known(&table) == 127);
    CHECK(fa_table_insert(&table, &os, (void *)(500 * 4096), 500) && fault.count[RESERVE] == 1);
    fault.kind = RESERVE;
    fault.after = 1;
    CHECK(!fa_table_insert(&table, &os, (void *)(501 * 4096), 501)); /* it would have to grow, and cannot */
    fa_table_put_back(&table, (void *)(502 * 4096), 1);
    CHECK(fa_table_is_valid(&table) && table.count == 128 && fa_table_find(&table, (void *)(502 * 4096))->value == 1);
    CHECK(fa_table_insert(&table, &os, (void *)(501 * 4096), 501) && fa_table_is_valid(&table));
    fa_table_destroy(&table, &os);
    CHECK(fault.mapped == 0);
}

/* ---- bump: every state of a cursor and a chunk in a small region ------------------------------------------------------ */

typedef struct bump_case {
    size_t limit, shared, cursor, end, spare, size, alignment, phase;
    bool current;
} bump_case;

/* A refill in this state: what it gives is aligned, inside, and nobody's; what is left of the chunk is apart from it. */
static void try_refill(const bump_case *at) {
    fa_bump bump = {.epoch = 7, .limit = at->limit, .chunk = at->spare, .cursor = at->shared};
    fa_chunk chunk = {.cursor = at->cursor, .end = at->end, .epoch = at->current ? 7 : 6};
    size_t offset = SIZE_MAX;
    if (!fa_bump_refill(&bump, &chunk, at->size, at->alignment, at->phase, &offset)) {
        CHECK(bump.cursor == at->shared && chunk.cursor == at->cursor && chunk.end == at->end);
        return;
    }
    const size_t end = offset + at->size;
    const bool ours = at->current && offset >= at->cursor, in_chunk = ours && end <= at->end;
    CHECK((offset + at->phase) % at->alignment == 0 && end <= at->limit);
    CHECK(in_chunk || offset >= at->shared || (ours && at->end == at->shared));
    CHECK(in_chunk || bump.cursor >= end);
    CHECK(bump.cursor >= at->shared && bump.cursor <= at->limit && chunk.cursor <= chunk.end);
    if (chunk.epoch != 7 || chunk.cursor == chunk.end) return;
    CHECK(chunk.end <= bump.cursor && (chunk.cursor >= end || chunk.end <= offset));
    CHECK(chunk.cursor >= (at->current && at->cursor < at->end ? at->cursor : at->shared));
}

/* All that the invariants of bump.h allow. */
TEST(every_refill_of_a_small_region_takes_what_is_nobodys) {
    const size_t most = UNDER_VALGRIND ? 2 : UNDER_SANITIZER ? 3 : 5;
    bump_case at;
    uint64_t tried = 0;
    for (at.limit = 0; at.limit <= most; at.limit++)
        for (at.shared = 0; at.shared <= at.limit; at.shared++)
            for (at.end = 0; at.end <= at.limit; at.end++)
                for (at.cursor = 0; at.cursor <= at.end; at.cursor++)
                    for (size_t rest = 0; rest < 2U * 6 * 8 * 3 * 4; rest++) {
                        at.current = rest % 2 == 1;
                        at.spare = rest / 2 % 6;
                        at.size = rest / 12 % 8 + 1;
                        at.alignment = (size_t)1 << rest / 96 % 3;
                        at.phase = rest / 288;
                        if (at.current && at.cursor < at.end && at.end > at.shared) continue;
                        try_refill(&at);
                        tried++;
                    }
    CHECK(tried > 1000);
}

/* ---- cache: cut, join, shrink --------------------------------------------------------------------------------------- */

static unsigned char *const ground = (unsigned char *)((uintptr_t)1 << 30); /* never touched */
static fa_cache cache;
static fa_evicted evicted;

static void new_cache(size_t limit) {
    memset(&cache, 0, sizeof cache);
    cache.limit = limit;
    evicted.count = 0;
}

static void put_at(size_t offset, size_t size) {
    fa_cache_put(&cache, ground + offset, size, 0, &evicted);
    CHECK(fa_cache_is_valid(&cache));
}

TEST(a_cut_takes_the_beginning_of_the_smallest_larger_block) {
    fa_cached taken;
    new_cache(1000);
    put_at(0, 300);
    put_at(1000, 200);
    put_at(2000, 100);
    CHECK(!fa_cache_cut(&cache, 300, &taken)); /* as large is not larger: that is for fa_cache_take */
    CHECK(fa_cache_cut(&cache, 100, &taken) && taken.address == ground + 1000 && taken.size == 100);
    CHECK(cache.bytes == 500 && cache.count == 3 && fa_cache_is_valid(&cache));
    CHECK(fa_cache_take(&cache, 100, 1, &taken) && taken.address == ground + 2000);
    CHECK(fa_cache_take(&cache, 100, 1, &taken) && taken.address == ground + 1100);
    CHECK(fa_cache_cut(&cache, 299, &taken) && cache.bytes == 1);
}

TEST(a_join_takes_both_neighbours_within_the_limit) {
    new_cache(1000);
    put_at(0, 100);
    put_at(150, 100);
    put_at(500, 100);
    void *address = ground + 100;
    size_t size = 50;
    fa_cache_join(&cache, &address, &size);
    CHECK(address == ground && size == 250 && cache.count == 1 && cache.bytes == 100 && fa_cache_is_valid(&cache));
    address = ground + 600;
    size = 950;
    fa_cache_join(&cache, &address, &size); /* 1050 would be more than the cache may hold */
    CHECK(address == ground + 600 && size == 950 && cache.count == 1);
    size = 2000;
    fa_cache_join(&cache, &address, &size);
    CHECK(size == 2000 && cache.count == 1);
    address = ground + 400;
    size = 99;
    fa_cache_join(&cache, &address, &size); /* near, but no neighbour */
    CHECK(size == 99 && cache.count == 1);
}

TEST(a_shrink_takes_the_end_of_the_oldest) {
    fa_cached tail;
    new_cache(1000);
    CHECK(!fa_cache_shrink(&cache, 1, &tail));
    put_at(0, 300);
    put_at(1000, 200);
    CHECK(!fa_cache_shrink(&cache, 300, &tail) && cache.bytes == 500);
    CHECK(fa_cache_shrink(&cache, 299, &tail) && tail.address == ground + 1 && tail.size == 299 && cache.bytes == 201);
    CHECK(fa_cache_is_valid(&cache));
}

TEST(a_cache_evicts_what_is_over_limit_age_or_number) {
    new_cache(1000);
    put_at(0, 1001);
    CHECK(evicted.count == 1 && evicted.entry[0].size == 1001 && cache.count == 0);
    put_at(0, 600);
    put_at(2000, 500);
    CHECK(evicted.count == 2 && evicted.entry[1].size == 600 && cache.bytes == 500);
    new_cache(SIZE_MAX);
    for (size_t i = 0; i <= FA_CACHE_ENTRIES; i++) put_at(i * 100, 10);
    CHECK(evicted.count == 1 && evicted.entry[0].address == ground && cache.count == FA_CACHE_ENTRIES);
    cache.age = 10;
    evicted.count = 0;
    fa_cache_purge(&cache, 9, SIZE_MAX, &evicted);
    CHECK(evicted.count == 0);
    fa_cache_purge(&cache, 10, SIZE_MAX, &evicted);
    CHECK(evicted.count == FA_CACHE_ENTRIES && cache.bytes == 0);
}

TEST(a_cache_prefers_the_best_fit_and_the_newest_of_equals) {
    fa_cached taken;
    new_cache(10000);
    put_at(0, 112);
    put_at(1000, 104);
    put_at(2000, 104);
    put_at(3000, 113); /* wastes more than an eighth of 100 */
    CHECK(fa_cache_take(&cache, 100, 1, &taken) && taken.address == ground + 2000);
    CHECK(fa_cache_take(&cache, 100, 1024, &taken) && taken.address == ground);
    CHECK(fa_cache_take(&cache, 100, 1, &taken) && taken.address == ground + 1000);
    CHECK(!fa_cache_take(&cache, 100, 1, &taken) && !fa_cache_take(&cache, SIZE_MAX, 1, &taken));
}

/* ---- pools and classes: every block of every class of a span ---------------------------------------------------------- */

TEST(every_offset_in_every_slab_finds_its_block) {
    static unsigned char blocks[1];
    for (uint32_t class = 0; class < FA_SLAB_CLASSES; class++) {
        const size_t size = fa_slab_size(class);
        fa_pool pool;
        fa_pool_init(&pool, size, FA_SPAN / size, blocks, NULL, NULL);
        /* What lies below the pool and above it is far from every index too. */
        for (size_t offset = 1; offset < 2 * FA_SPAN; offset++)
            CHECK(fa_pool_index(&pool, (const void *)((uintptr_t)blocks - offset)) >= pool.count);
        for (size_t offset = 0; offset < pool.bytes; offset++) {
            const size_t index = fa_pool_index(&pool, (const void *)((uintptr_t)blocks + offset));
            CHECK(offset % size == 0 ? index == offset / size : index >= pool.count);
        }
    }
}

TEST(every_size_has_the_smallest_class_that_holds_it) {
    for (size_t size = 0; size <= FA_SLAB_MAX; size++) {
        const uint32_t class = fa_slab_class(size);
        CHECK(class < FA_SLAB_CLASSES && size <= fa_slab_size(class));
        CHECK(class == 0 || size > fa_slab_size(class - 1));
    }
}

/* Whatever way a size is zeroed: all of it, and nothing next to it. */
TEST(small_wipes_zero_what_they_are_told_and_no_more) {
    static _Alignas(64) unsigned char around[1024];
    for (size_t size = 16; size <= 640; size += 16) {
        memset(around, 0xA5, sizeof around);
        if (fa_can_wipe_pair(size)) {
            fa_wipe_pair(around + 64 + 16, size);
            CHECK(is_zero(around + 80, size) && around[79] == 0xA5 && around[80 + size] == 0xA5);
            memset(around + 80, 0xA5, size);
        }
        fa_wipe_small(around + 80, size);
        CHECK(is_zero(around + 80, size) && around[79] == 0xA5 && around[80 + size] == 0xA5);
    }
}

/* ---- slabs: what magazines hold goes back ----------------------------------------------------------------------------- */

static void *slab_block(fa_slabs *slabs, size_t size) {
    const uint32_t class = fa_slab_class(size);
    CHECK(!fa_slabs_must_refill(slabs, class) || fa_slabs_refill(slabs, fa_os_platform(), class));
    unsigned char *block = fa_slabs_take(slabs, class, size);
    CHECK(is_zero(block, size));
    memset(block, 0xFF, size);
    return block;
}

static void slab_free(fa_slabs *slabs, void *block) {
    fa_slab_place place = {.number = 0};
    CHECK(fa_slabs_own(slabs, block) && fa_slabs_find(slabs, block, &place));
    if (fa_slabs_must_spill(slabs, place.class)) fa_slabs_spill(slabs, place.class);
    fa_slabs_give(slabs, place, block);
    CHECK(!fa_slabs_find(slabs, block, &place)); /* a second free is found, wherever the block waits */
}

TEST(a_trim_empties_magazines_and_gives_all_but_one_slab_of_a_class_back) {
    enum { BLOCKS = SIZE_MAX > UINT32_MAX ? 300 : 128 }; /* 16 MiB are for slabs where addresses are few */
    static fa_slabs slabs;
    static void *block[FA_SLAB_CLASSES][BLOCKS];
    fa_slabs_init(&slabs, 0);
    for (uint32_t class = 0; class < FA_SLAB_CLASSES; class++)
        for (size_t i = 0; i < BLOCKS; i++) block[class][i] = slab_block(&slabs, fa_slab_size(class));
    CHECK(fa_slabs_are_valid(&slabs));
    /* In another order than they came, so that a magazine has blocks of many slabs. */
    for (uint32_t class = 0; class < FA_SLAB_CLASSES; class++)
        for (size_t i = 0; i < BLOCKS; i++) slab_free(&slabs, block[class][i * 7 % BLOCKS]);
    CHECK(fa_slabs_are_valid(&slabs) && slabs.resident > FA_SLAB_CLASSES);
    const fa_status trimmed = fa_slabs_trim(&slabs, fa_os_platform(), 0);
    CHECK(trim_is_fine(trimmed) && fa_slabs_are_valid(&slabs));
    CHECK(trimmed != FA_OK || slabs.resident == FA_SLAB_CLASSES);
    for (uint32_t class = 0; class < FA_SLAB_CLASSES; class++) slab_free(&slabs, slab_block(&slabs, fa_slab_size(class)));
    fa_slabs_destroy(&slabs, fa_os_platform());
}

TEST(what_lies_behind_the_front_of_a_block_is_aligned_as_its_size_is) {
    static fa_slabs slabs;
    fa_slabs_init(&slabs, 16);
    for (uint32_t class = 0; class < FA_SLAB_CLASSES; class++) {
        const size_t size = fa_slab_size(class), alignment = size & -size;
        unsigned char *blocks[40];
        for (size_t i = 0; i < 40; i++) {
            blocks[i] = slab_block(&slabs, size);
            CHECK(is_aligned(blocks[i] + 16, alignment));
        }
        for (size_t i = 0; i < 40; i++) {
            fa_slab_place place;
            CHECK(!fa_slabs_find(&slabs, blocks[i] + 16, &place) || size == 16);
            CHECK(fa_slabs_find(&slabs, blocks[i], &place) && fa_slabs_size(&slabs, place) == size);
            CHECK(fa_pool_index(fa_slabs_pool(&slabs, place), blocks[i]) == fa_slabs_index(place));
            slab_free(&slabs, blocks[i]);
        }
    }
    CHECK(fa_slabs_are_valid(&slabs));
    fa_slabs_destroy(&slabs, fa_os_platform());
}

/* The newest freed block of a class is the next one used, whatever slab it is of, through a spill and a refill. */
TEST(magazines_hand_the_newest_block_out_first) {
    enum { BLOCKS = 200 };
    static fa_slabs slabs;
    static void *block[BLOCKS];
    fa_slabs_init(&slabs, 0);
    for (size_t i = 0; i < BLOCKS; i++) block[i] = slab_block(&slabs, 1024);
    for (size_t i = 1; i < FA_SPAN / 1024; i++) CHECK((unsigned char *)block[i] == (unsigned char *)block[i - 1] + 1024);
    for (size_t i = 0; i < BLOCKS; i++) slab_free(&slabs, block[i]);
    for (size_t i = 0; i < FA_MAGAZINE / 2; i++) CHECK(slab_block(&slabs, 1000) == block[BLOCKS - 1 - i]);
    CHECK(fa_slabs_are_valid(&slabs));
    fa_slabs_destroy(&slabs, fa_os_platform());
}

int main(int argc, char **argv) { return tap_main(argc, argv); }
