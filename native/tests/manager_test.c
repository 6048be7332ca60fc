/*
 * manager_test.c - what fastalloc.h promises of managers
 */
#include "child.h"
#include "heap/manager.h"

#include <pthread.h>
#include <time.h>

#include "support.h"

/* One size for each way a block can be had: the pool, malloc (too big for the pool), the kernel. */
static const size_t sizes[] = {1,       16,      32,        127,     128,     129,          1000,        4096,
                               20000,   65535,   65536,     65537,   100000,  MIB - 1,      MIB,         MIB + 1,
                               3 * MIB, 5 * MIB, 5 * MIB + 7, 8 * MIB};
#define SIZES (sizeof sizes / sizeof *sizes)
/* Valgrind takes thirty times as long. */
#define SIZE_STEP (UNDER_VALGRIND ? 4U : 1U)

static fa_manager_options manager_options(void) {
    fa_manager_options options;
    fa_manager_options_init(&options);
    return options;
}

static fa_manager *noting_manager(corruption_note *note) {
    fa_manager_options options = manager_options();
    options.on_corruption = note_corruption;
    options.corruption_context = note;
    return manager_with(&options);
}

/* ---- creation ---------------------------------------------------------------------------------------------------- */

TEST(defaults_are_those_documented) {
    const fa_manager_options options = manager_options();
    CHECK(options.struct_size == sizeof options);
    CHECK(options.block_size == 128 && options.pool_blocks == 8192);
    CHECK(options.large_size == 64 * KIB && options.cache_limit == 64 * MIB && options.cache_age == 10000);
    CHECK(options.limit == 0 && options.flags == 0);
}

TEST(null_options_are_the_defaults) {
    fa_manager *manager = manager_with(NULL);
    CHECK(manager_stats(manager).pool_blocks == 8192);
    CHECK(fa_manager_is_valid(manager));
    fa_manager_destroy(manager);
    fa_manager_destroy(NULL);
}

static void refuse(const fa_manager_options *options) {
    fa_status status = FA_OK;
    CHECK(fa_manager_create(options, &status) == NULL);
    CHECK(status == FA_ERR_INVALID);
    CHECK(fa_manager_create(options, NULL) == NULL);
}

#define REFUSES(title, field, type, ...)                                                                               \
    TEST(option_##title##_is_validated) {                                                                              \
        static const type values[] = {__VA_ARGS__};                                                                    \
        for (size_t i = 0; i < sizeof values / sizeof *values; i++) {                                                  \
            fa_manager_options options = manager_options();                                                            \
            options.field = values[i];                                                                                 \
            refuse(&options);                                                                                          \
        }                                                                                                              \
    }
REFUSES(struct_size, struct_size, size_t, 0, 1, sizeof(size_t), SIZE_MAX)
REFUSES(flags, flags, unsigned, FA_TRACKED, 8, 1U << 31)
REFUSES(block_size, block_size, size_t, 1, 8, 15, 24, 100, 8 * KIB + 16, SIZE_MAX, TOP_BIT)

TEST(an_absurd_pool_is_refused) {
    const size_t absurd[] = {SIZE_MAX, SIZE_MAX / 128, SIZE_MAX / 128 + 1, TOO_MUCH(64), TOO_MUCH(128)};
    for (size_t i = 0; i < sizeof absurd / sizeof *absurd; i++) {
        fa_manager_options options = manager_options();
        options.pool_blocks = absurd[i];
        fa_status status = FA_OK;
        CHECK(fa_manager_create(&options, &status) == NULL);
        CHECK(status == FA_ERR_INVALID || status == FA_ERR_NOMEM);
    }
}

TEST(a_manager_without_a_pool_works) {
    fa_manager_options options = manager_options();
    options.pool_blocks = 0;
    fa_manager *manager = manager_with(&options);
    void *block = fa_malloc(manager, 10);
    CHECK(block != NULL && manager_stats(manager).pool_live == 0 && manager_stats(manager).fallbacks == 1);
    fa_free(manager, block);
    CHECK(fa_manager_is_valid(manager));
    fa_manager_destroy(manager);
}

TEST(other_block_sizes_work) {
    for (size_t block_size = 16; block_size <= 8 * KIB; block_size *= 2) {
        fa_manager_options options = manager_options();
        options.block_size = block_size;
        options.pool_blocks = 10;
        fa_manager *manager = manager_with(&options);
        void *blocks[12];
        for (size_t i = 0; i < 12; i++) {
            blocks[i] = fa_malloc(manager, block_size);
            CHECK(blocks[i] != NULL && is_aligned(blocks[i], 2 * sizeof(void *)));
            fill(blocks[i], block_size, i);
        }
        CHECK(manager_stats(manager).pool_live == 10 && manager_stats(manager).pool_blocks == 10);
        for (size_t i = 0; i < 12; i++) {
            CHECK(is_filled(blocks[i], block_size, i));
            fa_free(manager, blocks[i]);
        }
        CHECK(fa_manager_is_valid(manager));
        fa_manager_destroy(manager);
    }
}

/* ---- blocks ------------------------------------------------------------------------------------------------------ */

TEST(blocks_of_every_size_keep_their_bytes) {
    fa_manager *manager = manager_with(NULL);
    unsigned char *blocks[SIZES];
    for (size_t i = 0; i < SIZES; i++) {
        blocks[i] = fa_malloc(manager, sizes[i]);
        CHECK(blocks[i] != NULL && is_aligned(blocks[i], 2 * sizeof(void *)));
        CHECK(fa_usable_size(manager, blocks[i]) >= sizes[i]);
        CHECK(fa_owns(manager, blocks[i]));
        fill(blocks[i], sizes[i], i);
        CHECK(fa_manager_is_valid(manager));
    }
    for (size_t i = 0; i < SIZES; i++) CHECK(is_filled(blocks[i], sizes[i], i));
    for (size_t i = 0; i < SIZES; i++) fa_free(manager, blocks[i]);
    CHECK(manager_stats(manager).live == 0 && fa_manager_is_valid(manager));
    fa_manager_destroy(manager);
}

TEST(all_of_the_usable_size_may_be_used) {
    fa_manager *manager = manager_with(NULL);
    unsigned char *blocks[SIZES];
    for (size_t i = 0; i < SIZES; i++) {
        blocks[i] = fa_malloc(manager, sizes[i]);
        fill(blocks[i], fa_usable_size(manager, blocks[i]), i);
    }
    for (size_t i = 0; i < SIZES; i++) {
        const size_t usable = fa_usable_size(manager, blocks[i]);
        CHECK(is_filled(blocks[i], usable, i));
        blocks[i] = fa_realloc(manager, blocks[i], 2 * sizes[i]);
        CHECK(blocks[i] != NULL && is_filled(blocks[i], usable < 2 * sizes[i] ? usable : 2 * sizes[i], i));
    }
    for (size_t i = 0; i < SIZES; i++) fa_free(manager, blocks[i]);
    CHECK(fa_manager_is_valid(manager));
    fa_manager_destroy(manager);
}

TEST(size_zero_gives_distinct_blocks) {
    fa_manager *manager = manager_with(NULL);
    void *blocks[4] = {fa_malloc(manager, 0), fa_calloc(manager, 0, 8), fa_calloc(manager, 8, 0),
                       fa_aligned_alloc(manager, 64, 0)};
    for (size_t i = 0; i < 4; i++) {
        CHECK(blocks[i] != NULL && fa_owns(manager, blocks[i]));
        for (size_t j = 0; j < i; j++) CHECK(blocks[i] != blocks[j]);
    }
    for (size_t i = 0; i < 4; i++) fa_free(manager, blocks[i]);
    CHECK(manager_stats(manager).live == 0);
    fa_manager_destroy(manager);
}

TEST(absurd_sizes_are_refused) {
    fa_manager *manager = manager_with(NULL);
    const size_t absurd[] = {SIZE_MAX, SIZE_MAX - 1, SIZE_MAX - 4096, SIZE_MAX / 2, SIZE_MAX / 2 + 1,
                             TOO_MUCH(1), TOO_MUCH(1) - 1, TOO_MUCH(2)};
    unsigned char *block = fa_malloc(manager, 100);
    unsigned char *large = fa_malloc(manager, MIB);
    fill(block, 100, 1);
    fill(large, MIB, 2);
    uint64_t refused = 0;
    for (size_t i = 0; i < sizeof absurd / sizeof *absurd; i++) {
        CHECK(fa_malloc(manager, absurd[i]) == NULL);
        CHECK(fa_calloc(manager, 1, absurd[i]) == NULL);
        CHECK(fa_calloc(manager, absurd[i], 1) == NULL);
        CHECK(fa_calloc(manager, absurd[i], absurd[i]) == NULL);
        CHECK(fa_aligned_alloc(manager, 2 * MIB, absurd[i]) == NULL);
        CHECK(fa_realloc(manager, block, absurd[i]) == NULL);
        CHECK(fa_realloc(manager, large, absurd[i]) == NULL);
        refused += 7;
    }
    CHECK(is_filled(block, 100, 1) && is_filled(large, MIB, 2));
    CHECK(manager_stats(manager).failures == refused && manager_stats(manager).live == 2);
    CHECK(fa_manager_is_valid(manager));
    fa_manager_destroy(manager);
}

TEST(calloc_checks_the_product) {
    fa_manager *manager = manager_with(NULL);
    CHECK(fa_calloc(manager, SIZE_MAX / 2 + 1, 2) == NULL); /* wraps to 0 */
    CHECK(fa_calloc(manager, SIZE_MAX / 16 + 2, 16) == NULL); /* wraps to 16 */
    CHECK(fa_calloc(manager, 2, SIZE_MAX / 2 + 2) == NULL);
    CHECK(manager_stats(manager).failures == 3 && manager_stats(manager).live == 0);
    fa_manager_destroy(manager);
}

TEST(calloc_is_zero_on_dirty_memory) {
    fa_manager *manager = manager_with(NULL);
    for (size_t round = 0; round < 3; round++) {
        for (size_t i = 0; i < SIZES; i++) {
            unsigned char *dirty = fa_malloc(manager, sizes[i]);
            memset(dirty, 0xFF, sizes[i]);
            fa_free(manager, dirty);
            unsigned char *zeroed = fa_calloc(manager, 1, sizes[i]);
            CHECK(zeroed != NULL && is_zero(zeroed, sizes[i]));
            memset(zeroed, 0xFF, sizes[i]);
            fa_free(manager, zeroed);
        }
    }
    fa_manager_destroy(manager);
}

TEST(aligned_alloc_aligns_up_to_2_mib) {
    fa_manager *manager = manager_with(NULL);
    for (size_t alignment = 1; alignment <= 2 * MIB; alignment *= 2) {
        for (size_t i = 0; i < SIZES; i += 3 * SIZE_STEP) {
            unsigned char *block = fa_aligned_alloc(manager, alignment, sizes[i]);
            CHECK(block != NULL && is_aligned(block, alignment) && is_aligned(block, 2 * sizeof(void *)));
            fill(block, sizes[i], alignment);
            block = fa_realloc(manager, block, sizes[i] + 1000);
            CHECK(block != NULL && is_filled(block, sizes[i], alignment));
            fa_free(manager, block);
        }
        CHECK(fa_manager_is_valid(manager));
    }
    const size_t bad[] = {0, 3, 24, 4 * MIB, SIZE_MAX, TOP_BIT};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) CHECK(fa_aligned_alloc(manager, bad[i], 100) == NULL);
    CHECK(manager_stats(manager).live == 0);
    fa_manager_destroy(manager);
}

TEST(the_pool_gives_the_last_freed_block_first) {
    fa_manager *manager = manager_with(NULL);
    void *blocks[10];
    for (size_t i = 0; i < 10; i++) blocks[i] = fa_malloc(manager, 50);
    for (size_t i = 0; i < 10; i++) fa_free(manager, blocks[i]);
    for (size_t i = 10; i-- > 0;) CHECK(fa_malloc(manager, 90) == blocks[i]);
    fa_manager_destroy(manager);
}

TEST(an_exhausted_pool_falls_back) {
    fa_manager_options options = manager_options();
    options.pool_blocks = 100;
    fa_manager *manager = manager_with(&options);
    void *blocks[250];
    for (size_t i = 0; i < 250; i++) {
        blocks[i] = fa_malloc(manager, 32);
        CHECK(blocks[i] != NULL);
        fill(blocks[i], 32, i);
    }
    CHECK(manager_stats(manager).pool_live == 100 && manager_stats(manager).fallbacks == 150);
    for (size_t i = 0; i < 250; i++) {
        CHECK(is_filled(blocks[i], 32, i));
        fa_free(manager, blocks[i]);
    }
    CHECK(manager_stats(manager).pool_live == 0 && manager_stats(manager).live == 0);
    CHECK(fa_manager_is_valid(manager));
    fa_manager_destroy(manager);
}

TEST(a_hundred_thousand_live_blocks_are_freed_in_any_order) {
    fa_manager *manager = manager_with(NULL);
    const size_t count = UNDER_VALGRIND ? 5000 : 100000;
    void **blocks = malloc(count * sizeof *blocks);
    random_source random = {2};
    for (size_t i = 0; i < count; i++) {
        blocks[i] = fa_malloc(manager, 32);
        CHECK(blocks[i] != NULL);
    }
    for (size_t i = count; i-- > 1;) {
        const size_t other = random_below(&random, i + 1);
        void *swap = blocks[i];
        blocks[i] = blocks[other];
        blocks[other] = swap;
    }
    CHECK(fa_manager_is_valid(manager));
    for (size_t i = 0; i < count; i++) fa_free(manager, blocks[i]);
    CHECK(manager_stats(manager).live == 0 && manager_stats(manager).freed == count);
    CHECK(fa_manager_is_valid(manager));
    free(blocks);
    fa_manager_destroy(manager);
}

TEST(two_managers_share_nothing) {
    fa_manager *one = manager_with(NULL), *two = manager_with(NULL);
    for (size_t i = 0; i < SIZES; i++) {
        void *block = fa_malloc(one, sizes[i]);
        CHECK(fa_owns(one, block) && !fa_owns(two, block));
        CHECK(fa_usable_size(two, block) == 0);
        CHECK(fa_manager_try_free(two, block) == FA_ERR_FOREIGN);
        fa_free(one, block);
    }
    CHECK(manager_stats(two).allocated == 0);
    fa_manager_destroy(one);
    fa_manager_destroy(two);
}

/* ---- zeroing ----------------------------------------------------------------------------------------------------- */

TEST(pool_blocks_are_zeroed_when_freed) {
    fa_manager *manager = manager_with(NULL);
    unsigned char *block = fa_malloc(manager, 128);
    memset(block, 0xFF, 128);
    fa_free(manager, block);
    CHECK(peek_nonzero(block, 128) == 0);
    fa_manager_destroy(manager);
}

TEST(bytes_beyond_what_was_asked_for_are_zeroed_too) {
    fa_manager *manager = manager_with(NULL);
    unsigned char *block = fa_malloc(manager, 10);
    memset(block, 0xFF, fa_usable_size(manager, block));
    fa_free(manager, block);
    CHECK(peek_nonzero(block, 128) == 0);
    fa_manager_destroy(manager);
}

TEST(a_block_that_moves_leaves_zeros_behind) {
    fa_manager *manager = manager_with(NULL);
    unsigned char *block = fa_malloc(manager, 100);
    memset(block, 0xFF, 100);
    CHECK(fa_realloc(manager, block, 10000) != block);
    CHECK(peek_nonzero(block, 128) == 0);
    fa_manager_destroy(manager);
}

TEST(large_blocks_are_zeroed_before_they_are_cached) {
    fa_manager *manager = manager_with(NULL);
    unsigned char *block = fa_malloc(manager, MIB);
    memset(block, 0xFF, MIB);
    fa_free(manager, block);
    CHECK(manager_stats(manager).cached >= MIB);
    CHECK(peek_nonzero(block, MIB) == 0);
    fa_manager_destroy(manager);
}

/* ---- realloc: every transition ----------------------------------------------------------------------------------- */

TEST(realloc_keeps_the_bytes_from_every_size_to_every_size) {
    fa_manager *manager = manager_with(NULL);
    for (size_t from = 0; from < SIZES; from += SIZE_STEP) {
        for (size_t to = 0; to < SIZES; to += SIZE_STEP) {
            unsigned char *block = fa_malloc(manager, sizes[from]);
            fill(block, sizes[from], from);
            block = fa_realloc(manager, block, sizes[to]);
            CHECK(block != NULL);
            CHECK(is_filled(block, sizes[from] < sizes[to] ? sizes[from] : sizes[to], from));
            CHECK(fa_usable_size(manager, block) >= sizes[to]);
            CHECK(manager_stats(manager).live == 1 && manager_stats(manager).requested == sizes[to]);
            fill(block, sizes[to], to);
            fa_free(manager, block);
        }
        CHECK(fa_manager_is_valid(manager));
    }
    CHECK(manager_stats(manager).live == 0);
    fa_manager_destroy(manager);
}

TEST(realloc_of_null_allocates_and_to_zero_frees) {
    fa_manager *manager = manager_with(NULL);
    for (size_t i = 0; i < SIZES; i++) {
        void *block = fa_realloc(manager, NULL, sizes[i]);
        CHECK(block != NULL && manager_stats(manager).live == 1);
        CHECK(fa_realloc(manager, block, 0) == NULL);
        CHECK(manager_stats(manager).live == 0 && !fa_owns(manager, block));
    }
    CHECK(manager_stats(manager).failures == 0);
    fa_manager_destroy(manager);
}

TEST(large_blocks_grow_by_moving_pages) {
    fa_manager *manager = manager_with(NULL);
    unsigned char *block = fa_malloc(manager, MIB);
    fill(block, MIB, 1);
    for (size_t size = 2 * MIB; size <= 64 * MIB; size *= 2) {
        block = fa_realloc(manager, block, size);
        CHECK(block != NULL && is_filled(block, MIB, 1));
        block[size - 1] = 7;
    }
    CHECK(manager_stats(manager).moved >= 1 || !can(try_remap));
    for (size_t size = 32 * MIB; size >= MIB; size /= 2) {
        block = fa_realloc(manager, block, size);
        CHECK(block != NULL && is_filled(block, MIB, 1));
    }
    CHECK(fa_manager_is_valid(manager));
    fa_free(manager, block);
    fa_manager_destroy(manager);
}

TEST(what_a_large_block_grows_by_holds_no_old_secrets) {
    fa_manager *manager = manager_with(NULL);
    unsigned char *old = fa_malloc(manager, 4 * MIB);
    memset(old, 0xFF, 4 * MIB);
    fa_free(manager, old);
    unsigned char *block = fa_malloc(manager, MIB);
    CHECK(is_zero(block, MIB)); /* freed blocks were zeroed, fresh pages are */
    block = fa_realloc(manager, block, 4 * MIB);
    CHECK(block != NULL && is_zero(block, 4 * MIB));
    fa_manager_destroy(manager);
}

/* ---- runs of pages: blocks between slabs and large ones ------------------------------------------------------------ */

#define RUNS_ARE_HERE() SKIP_IF(SIZE_MAX <= UINT32_MAX, "addresses are too few for runs: malloc has these blocks")

static uint64_t clock_now;
static uint64_t read_clock(void) { return clock_now; }

TEST(blocks_between_slabs_and_large_ones_are_runs_of_pages) {
    RUNS_ARE_HERE();
    fa_manager *manager = manager_with(NULL);
    unsigned char *block[16];
    for (size_t i = 0; i < 16; i++) {
        const size_t size = 8 * KIB + 1 + i * 3000;
        block[i] = fa_malloc(manager, size);
        CHECK(block[i] != NULL && is_zero(block[i], size) && fa_usable_size(manager, block[i]) == size);
        fill(block[i], size, i);
    }
    fa_manager_stats stats = manager_stats(manager);
    CHECK(stats.run_live == 16 && stats.fallbacks == 16 && stats.run_bytes >= stats.requested && stats.cached == 0);
    for (size_t i = 0; i < 16; i++) {
        CHECK(is_filled(block[i], 8 * KIB + 1 + i * 3000, i));
        fa_free(manager, block[i]);
        CHECK(fa_manager_is_valid(manager));
    }
    CHECK(manager_stats(manager).run_live == 0 && manager_stats(manager).cached == stats.run_bytes);
    CHECK(peek_nonzero(block[0], (size_t)stats.run_bytes) == 0);
    CHECK(fa_manager_trim(manager, 16 * KIB) == FA_OK && manager_stats(manager).cached <= 16 * KIB);
    CHECK(fa_manager_trim(manager, 0) == FA_OK && manager_stats(manager).cached == 0);
    CHECK(is_zero(fa_malloc(manager, 50000), 50000) && fa_manager_is_valid(manager));
    fa_manager_destroy(manager);
}

TEST(runs_grow_and_shrink_where_they_are) {
    RUNS_ARE_HERE();
    fa_manager *manager = manager_with(NULL);
    unsigned char *block = fa_malloc(manager, 60000), *behind = fa_malloc(manager, 9000);
    fill(block, 60000, 1);
    CHECK(fa_realloc(manager, block, 20000) == block && fa_usable_size(manager, block) == 20000);
    unsigned char *between = fa_malloc(manager, 20000); /* in the pages that were given up */
    CHECK(between > block && between < behind && is_zero(between, 20000));
    fa_free(manager, between);
    CHECK(fa_realloc(manager, block, 50000) == block && is_filled(block, 20000, 1) && is_zero(block + 20000, 30000));
    unsigned char *moved = fa_realloc(manager, block, 65000);
    CHECK(moved != NULL && is_filled(moved, 20000, 1) && fa_manager_is_valid(manager));
    CHECK(manager_stats(manager).live == 2 && manager_stats(manager).requested == 65000 + 9000);
    fa_free(manager, moved);
    fa_free(manager, behind);
    CHECK(manager_stats(manager).run_live == 0 && fa_manager_is_valid(manager));
    fa_manager_destroy(manager);
}

TEST(freed_runs_stay_within_the_budget_and_the_age_of_the_cache) {
    RUNS_ARE_HERE();
    fa_os os = *fa_os_platform();
    os.milliseconds = read_clock;
    fa_manager_options options = manager_options();
    options.os = &os;
    options.cache_limit = MIB;
    options.cache_age = 1000;
    fa_manager *manager = manager_with(&options);
    void *block[64], *large = fa_malloc(manager, 512 * KIB);
    fa_free(manager, large);
    CHECK(manager_stats(manager).cached == 512 * KIB);
    for (size_t i = 0; i < 64; i++) block[i] = fa_malloc(manager, 40000);
    for (size_t i = 0; i < 64; i++) {
        fa_free(manager, block[i]);
        CHECK(manager_stats(manager).cached <= MIB && fa_manager_is_valid(manager));
    }
    CHECK(manager_stats(manager).cached > 0);
    clock_now += 1001;
    fa_free(manager, fa_malloc(manager, 40000)); /* which is young */
    CHECK(manager_stats(manager).cached <= MIB / 2 && fa_manager_is_valid(manager));
    clock_now += 1001;
    fa_free(manager, fa_malloc(manager, 9000));
    CHECK(manager_stats(manager).cached <= 40 * KIB);
    fa_manager_destroy(manager);
}

TEST(what_is_no_run_is_not_freed) {
    RUNS_ARE_HERE();
    fa_manager *manager = manager_with(NULL);
    unsigned char *block = fa_malloc(manager, 30000);
    CHECK(fa_manager_try_free(manager, block + 8 * KIB) == FA_ERR_CORRUPT);
    CHECK(fa_manager_try_free(manager, block + 16) == FA_ERR_CORRUPT);
    CHECK(fa_manager_try_free(manager, block + MIB) == FA_ERR_CORRUPT && !fa_owns(manager, block + MIB));
    CHECK(fa_manager_try_free(manager, block) == FA_OK && fa_manager_try_free(manager, block) == FA_ERR_CORRUPT);
    fa_manager_destroy(manager);
}

/* Where a limit on addresses refuses runs, malloc has their blocks. */
static int reserve_little(size_t size, size_t alignment, void **address) {
    return size <= MIB ? fa_os_platform()->reserve(size, alignment, address) : ENOMEM;
}

TEST(without_addresses_for_runs_malloc_has_their_blocks) {
    fa_os os = *fa_os_platform();
    os.reserve = reserve_little;
    fa_manager_options options = manager_options();
    options.os = &os;
    options.pool_blocks = 100;
    fa_manager *manager = manager_with(&options);
    unsigned char *block = fa_malloc(manager, 30000);
    fill(block, 30000, 1);
    block = fa_realloc(manager, block, 60000);
    CHECK(block != NULL && is_filled(block, 30000, 1) && manager_stats(manager).run_live == 0);
    CHECK(manager_stats(manager).live == 1 && fa_manager_is_valid(manager));
    fa_free(manager, block);
    CHECK(fa_manager_try_free(manager, block) == FA_ERR_FOREIGN);
    fa_manager_destroy(manager);
}

/* ---- corruption -------------------------------------------------------------------------------------------------- */

TEST(a_double_free_is_reported_for_every_size) {
    corruption_note note = {0, ""};
    fa_manager *manager = noting_manager(&note);
    for (size_t i = 0; i < SIZES; i++) {
        void *block = fa_malloc(manager, sizes[i]);
        fa_free(manager, block);
        CHECK(note.count == (int)i);
        fa_free(manager, block);
        CHECK(note.count == (int)i + 1 && is_one_line(note.message));
        CHECK(manager_stats(manager).live == 0 && manager_stats(manager).freed == i + 1);
    }
    CHECK(fa_manager_is_valid(manager));
    fa_manager_destroy(manager);
}

TEST(a_double_free_in_a_pool_hands_no_block_out_twice) {
    corruption_note note = {0, ""};
    fa_manager *manager = noting_manager(&note);
    void *one = fa_malloc(manager, 32), *two = fa_malloc(manager, 32);
    fa_free(manager, one);
    fa_free(manager, two);
    fa_free(manager, one);
    CHECK(note.count == 1);
    void *a = fa_malloc(manager, 32), *b = fa_malloc(manager, 32), *c = fa_malloc(manager, 32);
    CHECK(a != b && b != c && a != c);
    fa_manager_destroy(manager);
}

TEST(foreign_pointers_are_reported) {
    corruption_note note = {0, ""};
    fa_manager *manager = noting_manager(&note);
    int local = 0;
    void *stranger = malloc(100);
    fa_free(manager, &local);
    fa_free(manager, stranger);
    CHECK(note.count == 2 && is_one_line(note.message));
    CHECK(fa_realloc(manager, stranger, 1000) == NULL);
    CHECK(fa_realloc(manager, &local, 0) == NULL);
    CHECK(note.count == 4);
    CHECK(!fa_owns(manager, stranger) && fa_usable_size(manager, stranger) == 0);
    CHECK(fa_manager_is_valid(manager));
    free(stranger);
    fa_manager_destroy(manager);
}

TEST(interior_pointers_are_reported_for_every_size) {
    corruption_note note = {0, ""};
    fa_manager *manager = noting_manager(&note);
    int reports = 0;
    for (size_t i = 1; i < SIZES; i++) { /* a block of 16 bytes and more */
        unsigned char *block = fa_malloc(manager, sizes[i]);
        fill(block, sizes[i], i);
        const size_t inside[] = {1, 8, sizes[i] / 2, sizes[i] - 1};
        for (size_t j = 0; j < sizeof inside / sizeof *inside; j++) {
            fa_free(manager, block + inside[j]);
            CHECK(fa_realloc(manager, block + inside[j], 500) == NULL);
            reports += 2;
            CHECK(note.count == reports);
            CHECK(!fa_owns(manager, block + inside[j]) && fa_usable_size(manager, block + inside[j]) == 0);
        }
        CHECK(is_filled(block, sizes[i], i));
        fa_free(manager, block);
    }
    CHECK(fa_manager_is_valid(manager));
    fa_manager_destroy(manager);
}

TEST(try_free_answers_instead_of_reporting) {
    corruption_note note = {0, ""};
    fa_manager *manager = noting_manager(&note);
    int local = 0;
    unsigned char *pooled = fa_malloc(manager, 100), *middle = fa_malloc(manager, 5000), *large = fa_malloc(manager, MIB);
    CHECK(fa_manager_try_free(manager, &local) == FA_ERR_FOREIGN);
    CHECK(fa_manager_try_free(manager, pooled + 8) == FA_ERR_CORRUPT);
    CHECK(fa_manager_try_free(manager, pooled) == FA_OK);
    CHECK(fa_manager_try_free(manager, pooled) == FA_ERR_CORRUPT);
    CHECK(fa_manager_try_free(manager, middle) == FA_OK);
    CHECK(fa_manager_try_free(manager, middle) != FA_OK);
    CHECK(fa_manager_try_free(manager, large) == FA_OK);
    CHECK(fa_manager_try_free(manager, large) != FA_OK);
    fa_status status = FA_OK;
    CHECK(fa_manager_try_realloc(manager, &local, 16, 100, &status) == NULL && status == FA_ERR_FOREIGN);
    CHECK(fa_manager_try_realloc(manager, pooled, 16, 100, &status) == NULL && status == FA_ERR_CORRUPT);
    CHECK(note.count == 0 && fa_manager_is_valid(manager));
    fa_manager_destroy(manager);
}

TEST(try_realloc_keeps_an_alignment) {
    fa_manager *manager = manager_with(NULL);
    for (size_t i = 0; i < SIZES; i++) {
        fa_status status = FA_ERR_INVALID;
        unsigned char *block = fa_aligned_alloc(manager, 4096, 100);
        fill(block, 100, i);
        block = fa_manager_try_realloc(manager, block, 4096, sizes[i], &status);
        CHECK(block != NULL && status == FA_OK && is_aligned(block, 4096));
        CHECK(is_filled(block, sizes[i] < 100 ? sizes[i] : 100, i));
        fa_free(manager, block);
    }
    CHECK(fa_manager_is_valid(manager));
    fa_manager_destroy(manager);
}

TEST(alloc_zeroed_is_aligned_and_zero) {
    fa_manager *manager = manager_with(NULL);
    for (size_t round = 0; round < 2; round++) {
        for (size_t i = 0; i < SIZES; i++) {
            for (size_t alignment = 16; alignment <= 2 * MIB; alignment *= 8) {
                unsigned char *block = fa_manager_alloc_zeroed(manager, alignment, sizes[i]);
                CHECK(block != NULL && is_aligned(block, alignment) && is_zero(block, sizes[i]));
                memset(block, 0xFF, sizes[i]);
                fa_free(manager, block);
            }
        }
    }
    fa_manager_destroy(manager);
}

/* ---- limit ------------------------------------------------------------------------------------------------------- */

TEST(the_limit_is_exact) {
    fa_manager_options options = manager_options();
    options.limit = 1000;
    fa_manager *manager = manager_with(&options);
    void *first = fa_malloc(manager, 600);
    CHECK(first != NULL);
    CHECK(fa_malloc(manager, 401) == NULL);
    void *second = fa_malloc(manager, 400);
    CHECK(second != NULL && manager_stats(manager).requested == 1000);
    CHECK(fa_malloc(manager, 1) == NULL && fa_calloc(manager, 1, 1) == NULL);
    CHECK(fa_aligned_alloc(manager, 64, 1) == NULL);
    fa_free(manager, second);
    CHECK(fa_malloc(manager, 400) != NULL);
    CHECK(manager_stats(manager).failures == 4);
    fa_manager_destroy(manager);
}

TEST(realloc_minds_the_limit_and_leaves_the_block) {
    fa_manager_options options = manager_options();
    options.limit = 1000;
    fa_manager *manager = manager_with(&options);
    unsigned char *block = fa_malloc(manager, 600);
    fill(block, 600, 1);
    CHECK(fa_realloc(manager, block, 1001) == NULL);
    CHECK(is_filled(block, 600, 1) && manager_stats(manager).requested == 600);
    block = fa_realloc(manager, block, 1000); /* old and new together never count */
    CHECK(block != NULL && is_filled(block, 600, 1));
    block = fa_realloc(manager, block, 10);
    CHECK(block != NULL && fa_malloc(manager, 990) != NULL && fa_malloc(manager, 1) == NULL);
    CHECK(fa_manager_is_valid(manager));
    fa_manager_destroy(manager);
}

TEST(the_limit_holds_for_large_blocks) {
    fa_manager_options options = manager_options();
    options.limit = 3 * MIB;
    fa_manager *manager = manager_with(&options);
    void *block = fa_malloc(manager, 2 * MIB);
    CHECK(block != NULL && fa_malloc(manager, MIB + 1) == NULL);
    fa_free(manager, block);
    CHECK(fa_malloc(manager, 3 * MIB) != NULL); /* what is cached does not count */
    fa_manager_destroy(manager);
}

/* ---- cache ------------------------------------------------------------------------------------------------------- */

TEST(a_freed_large_block_is_served_from_the_cache) {
    fa_manager *manager = manager_with(NULL);
    void *block = fa_malloc(manager, 2 * MIB);
    fa_free(manager, block);
    CHECK(manager_stats(manager).cached >= 2 * MIB && manager_stats(manager).cache_hits == 0);
    CHECK(fa_malloc(manager, 2 * MIB) == block);
    CHECK(manager_stats(manager).cache_hits == 1 && manager_stats(manager).cached == 0);
    CHECK(manager_stats(manager).large == 2);
    fa_manager_destroy(manager);
}

TEST(the_cache_keeps_to_its_limit) {
    fa_manager_options options = manager_options();
    options.cache_limit = 4 * MIB;
    fa_manager *manager = manager_with(&options);
    void *blocks[10];
    for (size_t i = 0; i < 10; i++) blocks[i] = fa_malloc(manager, MIB);
    for (size_t i = 0; i < 10; i++) {
        fa_free(manager, blocks[i]);
        CHECK(manager_stats(manager).cached <= 4 * MIB);
    }
    CHECK(manager_stats(manager).cached >= 3 * MIB);
    fa_free(manager, fa_malloc(manager, 64 * MIB));
    CHECK(manager_stats(manager).cached <= 4 * MIB);
    CHECK(fa_manager_is_valid(manager));
    fa_manager_destroy(manager);
}

TEST(a_cache_of_nothing_keeps_nothing) {
    fa_manager_options options = manager_options();
    options.cache_limit = 0;
    fa_manager *manager = manager_with(&options);
    fa_free(manager, fa_malloc(manager, MIB));
    CHECK(manager_stats(manager).cached == 0);
    fa_manager_destroy(manager);
}

TEST(a_block_that_shrinks_in_place_keeps_to_the_limit_of_the_cache) {
    fa_manager_options options = manager_options();
    options.large_size = MIB;
    options.cache_limit = 200000;
    fa_manager *manager = manager_with(&options);
    unsigned char *block = fa_malloc(manager, 900000);
    fill(block, 900000, 1);
    block = fa_realloc(manager, block, 10000);
    CHECK(block != NULL && is_filled(block, 10000, 1));
    CHECK(manager_stats(manager).cached <= 200000 || !can(try_decommit));
    CHECK(fa_manager_is_valid(manager));
    fa_manager_destroy(manager);
}

TEST(trim_empties_the_cache_but_for_what_to_keep) {
    fa_manager *manager = manager_with(NULL);
    void *blocks[10];
    for (size_t i = 0; i < 10; i++) blocks[i] = fa_malloc(manager, MIB);
    for (size_t i = 0; i < 10; i++) fa_free(manager, blocks[i]);
    CHECK(manager_stats(manager).cached >= 10 * MIB);
    CHECK(trim_is_fine(fa_manager_trim(manager, 5 * MIB + 1)));
    CHECK(manager_stats(manager).cached <= 5 * MIB + 1 && manager_stats(manager).cached >= 4 * MIB);
    CHECK(trim_is_fine(fa_manager_trim(manager, 0)));
    CHECK(manager_stats(manager).cached == 0);
    CHECK(fa_manager_is_valid(manager));
    fa_manager_destroy(manager);
}

TEST(cached_blocks_age) {
    fa_manager_options options = manager_options();
    options.cache_age = 20;
    fa_manager *manager = manager_with(&options);
    fa_free(manager, fa_malloc(manager, 8 * MIB));
    CHECK(manager_stats(manager).cached >= 8 * MIB);
    nanosleep(&(struct timespec){0, 60000000}, NULL);
    fa_free(manager, fa_malloc(manager, 128 * KIB));
    CHECK(manager_stats(manager).cached < MIB);
    fa_manager_destroy(manager);
}

/* ---- statistics and the end -------------------------------------------------------------------------------------- */

TEST(stats_add_up) {
    fa_manager *manager = manager_with(NULL);
    void *blocks[SIZES];
    uint64_t requested = 0, peak = 0;
    for (size_t i = 0; i < SIZES; i++) {
        blocks[i] = fa_malloc(manager, sizes[i]);
        requested += sizes[i];
        const fa_manager_stats stats = manager_stats(manager);
        CHECK(stats.requested == requested && stats.used >= requested && stats.live == i + 1);
        CHECK(stats.pool_live + (stats.fallbacks + stats.large) == i + 1);
        if (stats.used > peak) peak = stats.used;
        CHECK(stats.peak == peak && stats.reserved >= stats.used - requested);
    }
    for (size_t i = 0; i < SIZES; i++) {
        fa_free(manager, blocks[i]);
        requested -= sizes[i];
        CHECK(manager_stats(manager).requested == requested);
    }
    const fa_manager_stats stats = manager_stats(manager);
    CHECK(stats.used == 0 && stats.live == 0 && stats.allocated == SIZES && stats.freed == SIZES);
    CHECK(stats.peak == peak && stats.failures == 0);
    fa_manager_destroy(manager);
}

TEST(stats_json_is_one_line_and_counts_like_snprintf) {
    fa_manager *manager = manager_with(NULL);
    CHECK(fa_malloc(manager, 4321) != NULL);
    const fa_manager_stats stats = manager_stats(manager);
    char text[2048], small[2];
    const size_t length = fa_manager_stats_json(&stats, text, sizeof text);
    CHECK(length == strlen(text) && text[0] == '{' && text[length - 1] == '}' && strchr(text, '\n') == NULL);
#define HAS_FIELD(name, unit, doc) CHECK(strstr(text, "\"" #name "\"") != NULL);
    FA_MANAGER_STATS(HAS_FIELD)
#undef HAS_FIELD
    CHECK(strstr(text, "4321") != NULL);
    CHECK(fa_manager_stats_json(&stats, NULL, 0) == length);
    CHECK(fa_manager_stats_json(&stats, small, 1) == length && small[0] == '\0');
    fa_manager_destroy(manager);
}

TEST(the_peak_can_be_measured_again) {
    fa_manager *manager = manager_with(NULL);
    fa_free(manager, fa_malloc(manager, MIB));
    uint64_t used_now = 99;
    CHECK(fa_manager_restart_peak(manager, &used_now) >= MIB);
    CHECK(used_now == 0 && manager_stats(manager).peak == 0);
    CHECK(fa_malloc(manager, 128) != NULL && manager_stats(manager).peak == 128);
    fa_manager_destroy(manager);
}

TEST(destroy_takes_live_blocks_with_it) { /* LeakSanitizer is the judge */
    fa_manager *manager = manager_with(NULL);
    for (size_t i = 0; i < SIZES; i++) memset(fa_malloc(manager, sizes[i]), 1, sizes[i]);
    fa_manager_destroy(manager);
}

TEST(a_closed_manager_refuses_allocations_and_takes_frees) {
    fa_manager *manager = manager_with(NULL);
    void *blocks[SIZES];
    for (size_t i = 0; i < SIZES; i++) blocks[i] = fa_malloc(manager, sizes[i]);
    fa_manager_close(manager);
    fa_manager_close(manager);
    CHECK(fa_malloc(manager, 1) == NULL && fa_calloc(manager, 1, 1) == NULL);
    CHECK(fa_aligned_alloc(manager, 64, 1) == NULL && fa_realloc(manager, NULL, 1) == NULL);
    CHECK(fa_malloc(manager, MIB) == NULL);
    for (size_t i = 0; i < SIZES; i++) fa_free(manager, blocks[i]);
    CHECK(manager_stats(manager).live == 0 && fa_manager_is_valid(manager));
    fa_manager_destroy(manager);
}

TEST(free_accepts_null) {
    corruption_note note = {0, ""};
    fa_manager *manager = noting_manager(&note);
    fa_free(manager, NULL);
    CHECK(note.count == 0 && manager_stats(manager).freed == 0);
    CHECK(!fa_owns(manager, NULL) && fa_usable_size(manager, NULL) == 0);
    fa_manager_destroy(manager);
}

TEST(json_has_counters_of_64_bits) {
    fa_manager_stats stats = {.requested = UINT64_C(5000000000), .allocated = UINT64_MAX};
    char text[2000];
    CHECK(fa_manager_stats_json(&stats, text, sizeof text) < sizeof text);
    CHECK(strstr(text, "\"requested\": 5000000000,") != NULL);
    CHECK(strstr(text, "\"allocated\": 18446744073709551615,") != NULL);
}

/* ---- threads ----------------------------------------------------------------------------------------------------- */

#define THREADS 8
#define PER_THREAD 64

typedef struct shared_slots {
    fa_manager *manager;
    pthread_mutex_t lock;
    struct {
        void *block;
        size_t size;
        uint64_t seed;
    } slots[PER_THREAD];
} shared_slots;

typedef struct worker {
    shared_slots *shared;
    uint64_t seed;
    uint64_t errors;
} worker;

/* Each step swaps a new block for whatever is in a shared slot, so most blocks are freed on another thread. */
static void *churn(void *argument) {
    worker *self = argument;
    shared_slots *shared = self->shared;
    random_source random = {self->seed};
    for (size_t step = 0; step < (UNDER_VALGRIND ? 200 : 3000); step++) {
        size_t size = random_below(&random, step % 50 == 0 ? 200 * KIB : 400);
        uint64_t seed = random_next(&random);
        void *block = fa_malloc(shared->manager, size);
        if (block != NULL && step % 3 == 0) {
            size *= 2;
            block = fa_realloc(shared->manager, block, size);
        }
        if (block == NULL && size != 0) self->errors++;
        if (block != NULL) fill(block, size, seed);
        const size_t slot = random_below(&random, PER_THREAD);
        pthread_mutex_lock(&shared->lock);
        void *old = shared->slots[slot].block;
        const size_t old_size = shared->slots[slot].size;
        const uint64_t old_seed = shared->slots[slot].seed;
        shared->slots[slot].block = block;
        shared->slots[slot].size = size;
        shared->slots[slot].seed = seed;
        pthread_mutex_unlock(&shared->lock);
        if (old != NULL && !is_filled(old, old_size, old_seed)) self->errors++;
        fa_free(shared->manager, old);
        if (step % 500 == 0) {
            fa_manager_stats stats;
            if (fa_manager_get_stats(shared->manager, &stats) != FA_OK) self->errors++;
            if (fa_manager_trim(shared->manager, MIB) != FA_OK) self->errors++;
        }
    }
    return NULL;
}

TEST(a_locked_manager_serves_many_threads) {
    SKIP_IF(!HAS_THREADS, NO_THREADS);
    fa_manager_options options = manager_options();
    options.flags = FA_LOCKED;
    options.pool_blocks = 200;
    options.cache_age = 1;
    shared_slots shared = {.manager = manager_with(&options)};
    pthread_mutex_init(&shared.lock, NULL);
    pthread_t threads[THREADS];
    worker workers[THREADS];
    for (size_t i = 0; i < THREADS; i++) {
        workers[i] = (worker){&shared, i, 0};
        CHECK(pthread_create(&threads[i], NULL, churn, &workers[i]) == 0);
    }
    uint64_t errors = 0;
    for (size_t i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        errors += workers[i].errors;
    }
    CHECK(errors == 0);
    CHECK(fa_manager_is_valid(shared.manager));
    for (size_t i = 0; i < PER_THREAD; i++) fa_free(shared.manager, shared.slots[i].block);
    CHECK(manager_stats(shared.manager).live == 0);
    CHECK(manager_stats(shared.manager).allocated == manager_stats(shared.manager).freed);
    pthread_mutex_destroy(&shared.lock);
    fa_manager_destroy(shared.manager);
}

/* In a child that never frees them: a free would zero a quarter of a terabyte. */
static int know_huge_blocks(void *argument) {
    (void)argument;
    fa_manager *manager = fa_manager_create(NULL, NULL);
    for (unsigned log2 = 36; log2 < 40; log2++) {
        const size_t size = ((size_t)1 << log2) + 1;
        void *block = fa_malloc(manager, size);
        if (block == NULL) return 2;
        if (fa_usable_size(manager, block) != size || !fa_manager_is_valid(manager)) return 1;
    }
    return 0;
}

TEST(the_size_of_a_huge_block_is_known_exactly) {
    SKIP_IF(sizeof(void *) < 8 || UNDER_SANITIZER || UNDER_VALGRIND, "no room for blocks of 512 GiB");
    const child_end end = run_in_child(know_huge_blocks, NULL);
    SKIP_IF(end.exit_status == 2, "the system reserves no 512 GiB");
    CHECK(end.exit_status == 0);
}

int main(int argc, char **argv) { return tap_main(argc, argv); }
