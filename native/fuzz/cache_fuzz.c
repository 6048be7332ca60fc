/*
 * cache_fuzz.c - mem/cache.h against a map of the pages it may hold
 *
 * The blocks are page ranges of an address space that does not exist: the cache never touches what it keeps. Each page is
 * the owner's, the cache's, or gone; every call must move pages between the three and lose none.
 */
#include "fuzz.h"

#include "mem/cache.h"

#define PAGE ((size_t)4096)
#define PAGES 600U
#define FIRST ((uintptr_t)1 << 32)

enum place { GONE, OURS, CACHED };

static unsigned char place[PAGES];

static size_t pages_in(enum place where) {
    size_t count = 0;
    for (size_t i = 0; i < PAGES; i++) count += place[i] == where;
    return count;
}

static void move(const void *address, size_t size, enum place from, enum place to) {
    const uintptr_t start = (uintptr_t)address;
    CHECK(start >= FIRST && start % PAGE == 0 && size % PAGE == 0 && size > 0);
    for (size_t page = (start - FIRST) / PAGE, end = page + size / PAGE; page < end; page++) {
        CHECK(page < PAGES && place[page] == from);
        place[page] = (unsigned char)to;
    }
}

static fa_evicted evicted;

static void move_evicted(enum place from) {
    for (uint32_t i = 0; i < evicted.count; i++) move(evicted.entry[i].address, evicted.entry[i].size, from, GONE);
    evicted.count = 0;
}

/* A free run of pages for a new block, from a page on. */
static size_t run_at(size_t page, size_t most) {
    size_t length = 0;
    while (length < most && page + length < PAGES && place[page + length] == GONE) length++;
    return length;
}

static void put(fa_cache *cache, void *address, size_t size, uint64_t now, bool join) {
    if (join) {
        const size_t before = size;
        fa_cache_join(cache, &address, &size);
        CHECK(size >= before && (size == before || size <= cache->limit));
        /* What it took is the owner's now. */
        for (size_t page = ((uintptr_t)address - FIRST) / PAGE, end = page + size / PAGE; page < end; page++) {
            CHECK(page < PAGES && place[page] != GONE);
            place[page] = OURS;
        }
    }
    move(address, size, OURS, CACHED);
    fa_cache_put(cache, address, size, now, &evicted);
    move_evicted(CACHED);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static fa_cache cache;
    input from = {data, data + size};
    uint64_t now = 1000;
    memset(&cache, 0, sizeof cache);
    memset(place, GONE, sizeof place);
    evicted.count = 0;
    cache.limit = next_byte(&from) * PAGE * 3;
    cache.age = next_byte(&from);
    while (!is_over(&from)) {
        const uint8_t choice = next_byte(&from), detail = next_byte(&from);
        const size_t wanted = (detail % 24 + 1U) * PAGE;
        fa_cached taken = {.address = NULL};
        now += choice % 3;
        if (choice < 110) {
            const size_t page = (size_t)next_byte(&from) * 5 % PAGES, pages = run_at(page, detail % 24 + 1U);
            if (pages == 0) continue;
            void *address = (void *)(FIRST + page * PAGE);
            move(address, pages * PAGE, GONE, OURS);
            put(&cache, address, pages * PAGE, now, choice < 50);
        } else if (choice < 160) {
            const size_t alignment = PAGE << detail % 5;
            if (!fa_cache_take(&cache, wanted, alignment, &taken)) continue;
            CHECK(taken.size >= wanted && taken.size <= wanted + wanted / FA_CACHE_WASTE);
            CHECK(is_aligned(taken.address, alignment));
            move(taken.address, taken.size, CACHED, GONE);
        } else if (choice < 200) {
            if (!fa_cache_cut(&cache, wanted, &taken)) continue;
            CHECK(taken.size == wanted);
            move(taken.address, taken.size, CACHED, GONE);
        } else if (choice < 220) {
            const size_t before = cache.bytes;
            if (!fa_cache_shrink(&cache, wanted, &taken)) continue;
            CHECK(taken.size == wanted && cache.bytes == before - wanted);
            move(taken.address, taken.size, CACHED, GONE);
        } else if (choice < 240) {
            fa_cache_purge(&cache, now, detail * PAGE, &evicted);
            CHECK(cache.bytes <= detail * PAGE);
            move_evicted(CACHED);
        } else if (choice < 250) {
            now += detail;
        } else { /* sizes that cannot be */
            CHECK(!fa_cache_take(&cache, SIZE_MAX - detail, PAGE, &taken));
            CHECK(!fa_cache_cut(&cache, SIZE_MAX - detail, &taken));
            CHECK(!fa_cache_shrink(&cache, SIZE_MAX - detail, &taken));
        }
        CHECK(fa_cache_is_valid(&cache));
        CHECK(cache.bytes == pages_in(CACHED) * PAGE);
    }
    fa_cache_purge(&cache, now, 0, &evicted);
    move_evicted(CACHED);
    CHECK(cache.count == 0 && pages_in(CACHED) == 0);
    return 0;
}
