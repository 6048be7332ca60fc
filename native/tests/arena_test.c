/*
 * arena_test.c - what fastalloc.h promises of arenas, on one thread
 *
 * Protections (guard pages, locks, fork) are in protection_test.c, threads in arena_threads_test.c, random sequences
 * against a model in property_test.c, failing system calls in os_fault_test.c.
 */
#include "heap/arena.h"
#include "support.h"

#define FOURTH_OF_A_MIB (MIB / 4)

static const fa_arena_kind reusing_kinds[] = {FA_WITNESS, FA_POLYNOMIAL};
#define FOR_EACH_REUSING_KIND(kind)                                                                                    \
    for (size_t kind##_index = 0; kind##_index < 2; kind##_index++)                                                    \
        for (fa_arena_kind kind = reusing_kinds[kind##_index], *once = &kind; once != NULL; once = NULL)

/* ---- creation ---------------------------------------------------------------------------------------------------- */

TEST(defaults_of_each_kind_create) {
    FOR_EACH_KIND(kind) {
        fa_arena_options options;
        fa_arena_options_init(&options, kind);
        CHECK(options.struct_size == sizeof options);
        CHECK(options.kind == kind);
        options.capacity = MIB;
        fa_arena *arena = arena_with(&options);
        CHECK(fa_arena_is_valid(arena));
        CHECK(arena_stats(arena).capacity >= MIB);
        fa_arena_destroy(arena);
    }
}

TEST(defaults_are_those_documented) {
    fa_arena_options options;
    fa_arena_options_init(&options, FA_WITNESS);
    CHECK(options.on_full == FA_FULL_FAIL);
    CHECK(options.guard_pages != FA_OFF && options.lock != FA_OFF && options.no_dump != FA_OFF);
    CHECK(options.wipe_on_fork != FA_OFF);
    fa_arena_options_init(&options, FA_POLYNOMIAL);
    CHECK(options.on_full == FA_FULL_FALLBACK);
    CHECK(options.alignment == 64);
    CHECK(options.lock == FA_OFF);
    fa_arena_options_init(&options, FA_SCRATCH);
    CHECK(options.on_full == FA_FULL_FALLBACK);
    CHECK(options.lock == FA_OFF);
}

TEST(destroy_accepts_null) { fa_arena_destroy(NULL); }

TEST(create_works_without_a_status) {
    const fa_arena_options options = arena_options(FA_SCRATCH, MIB);
    fa_arena *arena = fa_arena_create(&options, NULL);
    CHECK(arena != NULL);
    fa_arena_destroy(arena);
    CHECK(fa_arena_create(NULL, NULL) == NULL);
}

TEST(capacity_is_rounded_up_to_whole_pages) {
    fa_arena *arena = new_arena(FA_POLYNOMIAL, 1);
    const uint64_t capacity = arena_stats(arena).capacity;
    CHECK(capacity >= 4096 && capacity % 4096 == 0);
    CHECK(fa_arena_alloc(arena, (size_t)capacity, 0) != NULL);
    fa_arena_destroy(arena);
}

static fa_status status_of(const fa_arena_options *options) {
    fa_status status = FA_OK;
    CHECK(fa_arena_create(options, &status) == NULL);
    return status;
}

TEST(null_options_are_invalid) { CHECK(status_of(NULL) == FA_ERR_INVALID); }

/* A test that every value of `field` in the list is refused. */
#define REFUSES(title, field, type, ...)                                                                               \
    TEST(option_##title##_is_validated) {                                                                              \
        static const type values[] = {__VA_ARGS__};                                                                    \
        FOR_EACH_KIND(kind) {                                                                                          \
            for (size_t i = 0; i < sizeof values / sizeof *values; i++) {                                              \
                fa_arena_options options = arena_options(kind, MIB);                                                   \
                options.field = values[i];                                                                             \
                CHECK(status_of(&options) == FA_ERR_INVALID);                                                          \
            }                                                                                                          \
        }                                                                                                              \
    }

REFUSES(struct_size, struct_size, size_t, 0, 1, sizeof(size_t), SIZE_MAX)
REFUSES(flags, flags, unsigned, FA_LOCKED, 4, 1U << 31)
REFUSES(capacity, capacity, size_t, 0)
REFUSES(alignment, alignment, size_t, 0, 1, 2, sizeof(void *), 24, 100, 4 * MIB, SIZE_MAX, TOP_BIT)
/* An int, so that a value outside the enum is not undefined before it reaches the library. */
#define REFUSES_ENUM(title, field)                                                                                     \
    TEST(option_##title##_is_validated) {                                                                              \
        static const int values[] = {-1, 17, INT32_MAX};                                                               \
        for (size_t i = 0; i < sizeof values / sizeof *values; i++) {                                                  \
            fa_arena_options options = arena_options(FA_POLYNOMIAL, MIB);                                              \
            memcpy(&options.field, &values[i], sizeof values[i]);                                                      \
            CHECK(status_of(&options) == FA_ERR_INVALID);                                                              \
        }                                                                                                              \
    }
REFUSES_ENUM(kind, kind)
REFUSES_ENUM(on_full, on_full)
REFUSES_ENUM(huge_pages, huge_pages)
REFUSES_ENUM(guard_pages, guard_pages)
REFUSES_ENUM(lock, lock)
REFUSES_ENUM(no_dump, no_dump)
REFUSES_ENUM(wipe_on_fork, wipe_on_fork)

TEST(a_witness_arena_refuses_to_fall_back) {
    fa_arena_options options = arena_options(FA_WITNESS, MIB);
    options.on_full = FA_FULL_FALLBACK;
    CHECK(status_of(&options) == FA_ERR_INVALID);
}

TEST(a_capacity_above_the_address_space_is_refused) {
    FOR_EACH_KIND(kind) {
        const size_t absurd[] = {SIZE_MAX, SIZE_MAX - 4096, TOO_MUCH(1), TOO_MUCH(1) - 1, TOO_MUCH(8)};
        for (size_t i = 0; i < sizeof absurd / sizeof *absurd; i++) {
            fa_arena_options options = arena_options(kind, absurd[i]);
            options.huge_pages = i % 2 == 0 ? FA_HUGE_OFF : FA_HUGE_TRANSPARENT;
            const fa_status status = status_of(&options);
            CHECK(status == FA_ERR_NOMEM || status == FA_ERR_INVALID);
        }
    }
}

TEST(a_name_is_copied_and_may_be_long) {
    char name[200];
    memset(name, 'n', sizeof name);
    name[sizeof name - 1] = '\0';
    corruption_note note = {0, ""};
    fa_arena_options options = arena_options(FA_POLYNOMIAL, MIB);
    options.name = name;
    options.on_corruption = note_corruption;
    options.corruption_context = &note;
    fa_arena *arena = arena_with(&options);
    memset(name, 'X', sizeof name - 1);
    int foreign = 0;
    fa_arena_free(arena, &foreign, sizeof foreign);
    CHECK(note.count == 1 && is_one_line(note.message));
    CHECK(strstr(note.message, "XX") == NULL);
    fa_arena_destroy(arena);
}

/* ---- blocks ------------------------------------------------------------------------------------------------------ */

TEST(blocks_are_aligned_by_default) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = new_arena(kind, 4 * MIB);
        fa_arena_options options;
        fa_arena_options_init(&options, kind);
        for (size_t size = 1; size < 3000; size += 7) {
            void *block = fa_arena_alloc(arena, size, 0);
            CHECK(block != NULL);
            CHECK(is_aligned(block, options.alignment));
            CHECK(is_aligned(block, 2 * sizeof(void *)));
        }
        CHECK(fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
}

TEST(every_power_of_two_up_to_2_mib_is_an_alignment) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = new_arena(kind, 64 * MIB);
        for (size_t alignment = 1; alignment <= 2 * MIB; alignment *= 2) {
            void *odd = fa_arena_alloc(arena, 24, 0); /* so that the cursor stands nowhere in particular */
            void *block = fa_arena_alloc(arena, 100, alignment);
            void *other = fa_arena_alloc_zeroed(arena, 100, alignment);
            CHECK(odd != NULL && block != NULL && other != NULL);
            CHECK(is_aligned(block, alignment) && is_aligned(other, alignment));
            CHECK(is_aligned(block, 2 * sizeof(void *)) && is_aligned(other, 2 * sizeof(void *)));
            fill(block, 100, alignment);
        }
        CHECK(fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
}

TEST(the_default_alignment_can_be_any_power_of_two_up_to_2_mib) {
    FOR_EACH_KIND(kind) {
        for (size_t alignment = 16; alignment <= 2 * MIB; alignment *= 2) {
            fa_arena_options options = arena_options(kind, 8 * MIB);
            options.alignment = alignment;
            options.on_full = FA_FULL_FAIL;
            fa_arena *arena = arena_with(&options);
            void *first = fa_arena_alloc(arena, 10, 0);
            void *second = fa_arena_alloc(arena, 10, 0);
            CHECK(first != NULL && second != NULL && first != second);
            CHECK(is_aligned(first, alignment) && is_aligned(second, alignment));
            fa_arena_destroy(arena);
        }
    }
}

TEST(bad_alignments_are_refused) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = new_arena(kind, 16 * MIB);
        const size_t bad[] = {3, 5, 24, 100, 4 * MIB, SIZE_MAX, TOP_BIT + 1, TOP_BIT};
        for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
            CHECK(fa_arena_alloc(arena, 16, bad[i]) == NULL);
            CHECK(fa_arena_alloc_zeroed(arena, 16, bad[i]) == NULL);
        }
        CHECK(arena_stats(arena).live == 0);
        CHECK(fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
}

TEST(size_zero_gives_distinct_blocks) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = new_arena(kind, MIB);
        void *blocks[20];
        for (size_t i = 0; i < 20; i++) {
            blocks[i] = i % 3 == 0 ? fa_arena_alloc(arena, 1, 0) : fa_arena_alloc(arena, 0, i % 2 == 0 ? 0 : 256);
            CHECK(blocks[i] != NULL);
            for (size_t j = 0; j < i; j++) CHECK(blocks[i] != blocks[j]);
        }
        for (size_t i = 0; i < 20; i++) fa_arena_free(arena, blocks[i], i % 3 == 0 ? 1 : 0);
        CHECK(fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
}

static const size_t absurd_sizes[] = {SIZE_MAX,           SIZE_MAX - 1,           SIZE_MAX - 63,  SIZE_MAX - 64,
                                      SIZE_MAX - 4095,    SIZE_MAX - 2 * 1048576, SIZE_MAX / 2,   SIZE_MAX / 2 + 1,
                                      TOO_MUCH(1),    TOO_MUCH(1) - 1,  TOO_MUCH(2)};

static void refuse_absurd_sizes(fa_arena_kind kind, fa_full_policy on_full) {
    fa_arena_options options = arena_options(kind, MIB);
    options.on_full = on_full;
    fa_arena *arena = arena_with(&options);
    void *before = fa_arena_alloc(arena, 100, 0);
    const uint64_t used = arena_stats(arena).used;
    uint64_t refused = 0;
    for (size_t i = 0; i < sizeof absurd_sizes / sizeof *absurd_sizes; i++) {
        for (size_t alignment = 0; alignment <= 2 * MIB; alignment = alignment == 0 ? 16 : alignment * 2) {
            CHECK(fa_arena_alloc(arena, absurd_sizes[i], alignment) == NULL);
            CHECK(fa_arena_alloc_zeroed(arena, absurd_sizes[i], alignment) == NULL);
            CHECK(fa_arena_realloc(arena, before, 100, absurd_sizes[i], alignment) == NULL);
            refused += 3;
        }
    }
    const fa_arena_stats stats = arena_stats(arena);
    CHECK(stats.failures == refused);
    CHECK(stats.live == 1 && stats.used == used && stats.requested == 100);
    CHECK(fa_arena_is_valid(arena));
    CHECK(fa_arena_alloc(arena, 100, 0) != NULL);
    fa_arena_destroy(arena);
}

TEST(absurd_sizes_are_refused) { FOR_EACH_KIND(kind) refuse_absurd_sizes(kind, FA_FULL_FAIL); }

TEST(absurd_sizes_are_refused_by_the_fallback_too) {
    refuse_absurd_sizes(FA_POLYNOMIAL, FA_FULL_FALLBACK);
    refuse_absurd_sizes(FA_SCRATCH, FA_FULL_FALLBACK);
}

TEST(blocks_keep_their_bytes_and_do_not_overlap) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = new_arena(kind, 8 * MIB);
        unsigned char *blocks[300];
        random_source random = {1};
        size_t sizes[300];
        for (size_t i = 0; i < 300; i++) {
            sizes[i] = random_below(&random, i % 10 == 0 ? 40000 : 600);
            blocks[i] = fa_arena_alloc(arena, sizes[i], 0);
            CHECK(blocks[i] != NULL);
            fill(blocks[i], sizes[i], i);
        }
        for (size_t i = 0; i < 300; i++) CHECK(is_filled(blocks[i], sizes[i], i));
        fa_arena_destroy(arena);
    }
}

TEST(blocks_may_be_larger_than_32_bits_can_say) {
    SKIP_IF(sizeof(size_t) < 8, "no size is larger");
    SKIP_IF(UNDER_SANITIZER || UNDER_EMULATOR, "gigabytes of addresses");
    SKIP_IF(!fa_os_platform()->lazy_commit, "gigabytes that would be charged");
    const size_t huge = (size_t)5 * 1024 * MIB;
    fa_arena *arena = new_arena(FA_POLYNOMIAL, 3 * huge);
    unsigned char *low = fa_arena_alloc(arena, huge + 5, 0), *high = fa_arena_alloc(arena, huge, 0);
    CHECK(low != NULL && high != NULL && (size_t)(high - low) >= huge);
    low[huge] = 1;
    high[huge - 1] = 2;
    CHECK(arena_stats(arena).requested == 2 * (uint64_t)huge + 5 && fa_arena_usable_size(arena, low) >= huge + 5);
    CHECK(fa_arena_alloc(arena, huge, 0) == NULL);
    fa_arena_free(arena, low, huge + 5);
    CHECK(fa_arena_alloc(arena, huge / 2, 0) == low && fa_arena_is_valid(arena));
    fa_arena_destroy(arena);
}

TEST(a_scratch_arena_counts_what_32_bits_cannot_say) {
    SKIP_IF(sizeof(size_t) < 8, "no size is larger");
    SKIP_IF(UNDER_EMULATOR, "gigabytes of addresses");
    SKIP_IF(!fa_os_platform()->lazy_commit, "gigabytes that would be charged");
    const size_t huge = (size_t)5 * 1024 * MIB, part = 1024 * MIB;
    fa_arena *arena = new_arena(FA_SCRATCH, 3 * huge);
    const fa_mark mark = fa_arena_mark(arena);
    void *block = fa_arena_alloc(arena, huge, 0);
    fa_arena_free(arena, block, huge); /* its place is the thread's own now */
    CHECK(fa_arena_alloc(arena, huge, 0) == block);
    CHECK(arena_stats(arena).live == 1 && arena_stats(arena).requested == huge && arena_stats(arena).allocated == 2);
    CHECK(fa_arena_realloc(arena, block, huge, 100, 0) == block && fa_arena_alloc(arena, huge, 0) != NULL);
    CHECK(arena_stats(arena).live == 2 && arena_stats(arena).requested == huge + 100);
    CHECK(fa_arena_rewind(arena, mark) == FA_OK);
    for (size_t i = 0; i < 6; i++) CHECK(fa_arena_alloc(arena, part, 0) != NULL);
    CHECK(arena_stats(arena).live == 6 && arena_stats(arena).requested == 6 * part);
    CHECK(fa_arena_is_valid(arena));
    fa_arena_destroy(arena);
}

TEST(a_full_arena_fails_and_goes_on) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = new_arena(kind, FOURTH_OF_A_MIB);
        CHECK(fa_arena_alloc(arena, FOURTH_OF_A_MIB + 4096, 0) == NULL);
        void *all = fa_arena_alloc(arena, FOURTH_OF_A_MIB, 0);
        CHECK(all != NULL);
        CHECK(fa_arena_alloc(arena, 1, 0) == NULL);
        CHECK(arena_stats(arena).failures == 2);
        fa_arena_free(arena, all, FOURTH_OF_A_MIB);
        CHECK(fa_arena_alloc(arena, FOURTH_OF_A_MIB, 0) == all);
        CHECK(fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
}

TEST(the_capacity_is_reached_exactly_by_small_blocks) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = new_arena(kind, FOURTH_OF_A_MIB);
        fa_arena_options options;
        fa_arena_options_init(&options, kind);
        const size_t size = options.alignment;
        for (size_t i = 0; i < FOURTH_OF_A_MIB / size; i++) CHECK(fa_arena_alloc(arena, size, 0) != NULL);
        CHECK(fa_arena_alloc(arena, 1, 0) == NULL);
        CHECK(arena_stats(arena).used == FOURTH_OF_A_MIB);
        fa_arena_destroy(arena);
    }
}

TEST(the_same_sequence_gives_the_same_offsets) {
    FOR_EACH_KIND(kind) {
        ptrdiff_t offsets[2][400];
        for (size_t run = 0; run < 2; run++) {
            fa_arena *arena = new_arena(kind, 16 * MIB);
            random_source random = {7};
            void *base = fa_arena_alloc(arena, 1, 0);
            void *kept[400];
            size_t sizes[400];
            for (size_t i = 0; i < 400; i++) {
                sizes[i] = random_below(&random, 20000);
                kept[i] = fa_arena_alloc(arena, sizes[i], (size_t)16 << random_below(&random, 6));
                CHECK(kept[i] != NULL);
                offsets[run][i] = offset_from(base, kept[i]);
                if (i % 3 == 2) {
                    const size_t victim = i - random_below(&random, 3);
                    fa_arena_free(arena, kept[victim], sizes[victim]);
                }
            }
            fa_arena_destroy(arena);
        }
        for (size_t i = 0; i < 400; i++) CHECK(offsets[0][i] == offsets[1][i]);
    }
}

TEST(usable_size_covers_what_was_asked_for) {
    FOR_EACH_REUSING_KIND(kind) {
        fa_arena *arena = new_arena(kind, MIB);
        for (size_t size = 0; size < 2000; size += 13) {
            unsigned char *block = fa_arena_alloc(arena, size, 0);
            const size_t usable = fa_arena_usable_size(arena, block);
            CHECK(usable >= size);
            fill(block, usable, size); /* all of it may be used */
        }
        int foreign = 0;
        CHECK(fa_arena_usable_size(arena, &foreign) == 0);
        CHECK(fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
}

TEST(owns_knows_inside_from_outside) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = new_arena(kind, MIB), *other = new_arena(kind, MIB);
        unsigned char *block = fa_arena_alloc(arena, 1000, 0);
        int local = 0;
        CHECK(fa_arena_owns(arena, block) && fa_arena_owns(arena, block + 999));
        CHECK(!fa_arena_owns(other, block));
        CHECK(!fa_arena_owns(arena, &local) && !fa_arena_owns(arena, NULL));
        CHECK(!fa_arena_owns(arena, block - 1)); /* the first block: below it is not the arena's */
        CHECK(!fa_arena_owns(arena, block + arena_stats(arena).capacity));
        fa_arena_destroy(arena);
        fa_arena_destroy(other);
    }
}

/* ---- zeroing ----------------------------------------------------------------------------------------------------- */

TEST(alloc_zeroed_is_zero_on_dirty_memory) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = new_arena(kind, MIB);
        for (size_t round = 0; round < 4; round++) {
            unsigned char *dirty = fa_arena_alloc(arena, 100 * KIB, 0);
            memset(dirty, 0xFF, 100 * KIB);
            fa_arena_reset(arena);
            for (size_t size = 1; size < 60 * KIB; size *= 3) {
                unsigned char *zeroed = fa_arena_alloc_zeroed(arena, size, 0);
                CHECK(zeroed != NULL && is_zero(zeroed, size));
                memset(zeroed, 0xFF, size);
                fa_arena_free(arena, zeroed, size);
                unsigned char *again = fa_arena_alloc_zeroed(arena, size, 0);
                CHECK(again != NULL && is_zero(again, size));
            }
            fa_arena_reset(arena);
        }
        fa_arena_destroy(arena);
    }
}

TEST(alloc_zeroed_is_zero_across_the_edge_of_used_memory) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = new_arena(kind, MIB);
        unsigned char *dirty = fa_arena_alloc(arena, 10000, 0);
        memset(dirty, 0xFF, 10000);
        fa_arena_free(arena, dirty, 10000);
        unsigned char *zeroed = fa_arena_alloc_zeroed(arena, 50000, 0);
        CHECK(zeroed == dirty && is_zero(zeroed, 50000));
        fa_arena_destroy(arena);
    }
}

TEST(fallback_blocks_can_be_zeroed) {
    fa_arena_options options = arena_options(FA_SCRATCH, 4096);
    options.on_full = FA_FULL_FALLBACK;
    fa_arena *arena = arena_with(&options);
    for (size_t i = 0; i < 20; i++) {
        unsigned char *block = fa_arena_alloc_zeroed(arena, 10000, 0);
        CHECK(block != NULL && is_zero(block, 10000));
        memset(block, 0xFF, 10000);
        fa_arena_free(arena, block, 10000);
    }
    fa_arena_destroy(arena);
}

/* ---- reuse ------------------------------------------------------------------------------------------------------- */

TEST(free_accepts_null) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = new_arena(kind, MIB);
        fa_arena_free(arena, NULL, 0);
        fa_arena_free(arena, NULL, 100);
        CHECK(arena_stats(arena).freed == 0);
        fa_arena_destroy(arena);
    }
}

TEST(freeing_the_newest_block_moves_the_cursor_back) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = new_arena(kind, MIB);
        void *first = fa_arena_alloc(arena, 100, 0);
        void *second = fa_arena_alloc(arena, 1000, 0);
        const uint64_t used = arena_stats(arena).used;
        fa_arena_free(arena, second, 1000);
        CHECK(arena_stats(arena).used < used);
        CHECK(fa_arena_alloc(arena, 20, 0) == second); /* whatever the size */
        fa_arena_free(arena, second, 20);
        CHECK(fa_arena_alloc(arena, 3000, 0) == second);
        CHECK(first != NULL && fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
}

TEST(freeing_in_stack_order_returns_to_the_start) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = new_arena(kind, MIB);
        void *blocks[50];
        for (size_t i = 0; i < 50; i++) blocks[i] = fa_arena_alloc(arena, 10 * i, 0);
        for (size_t i = 50; i-- > 0;) fa_arena_free(arena, blocks[i], 10 * i);
        CHECK(arena_stats(arena).used == 0);
        CHECK(arena_stats(arena).live == 0);
        CHECK(fa_arena_alloc(arena, 5, 0) == blocks[0]);
        fa_arena_destroy(arena);
    }
}

TEST(a_freed_block_is_handed_out_again) {
    FOR_EACH_REUSING_KIND(kind) {
        fa_arena *arena = new_arena(kind, 16 * MIB);
        for (size_t size = 1; size <= 4 * MIB; size = size * 3 + 1) {
            void *block = fa_arena_alloc(arena, size, 0);
            void *barrier = fa_arena_alloc(arena, 1, 0);
            CHECK(block != NULL && barrier != NULL);
            fa_arena_free(arena, block, size);
            CHECK(fa_arena_alloc(arena, size, 0) == block);
            fa_arena_reset(arena);
        }
        fa_arena_destroy(arena);
    }
}

TEST(freed_neighbours_merge_in_every_order) {
    static const int orders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    FOR_EACH_REUSING_KIND(kind) {
        for (size_t order = 0; order < 6; order++) {
            fa_arena *arena = new_arena(kind, MIB);
            void *blocks[3];
            void *below = fa_arena_alloc(arena, 64, 0);
            for (size_t i = 0; i < 3; i++) blocks[i] = fa_arena_alloc(arena, 6400, 0);
            void *above = fa_arena_alloc(arena, 64, 0);
            CHECK(below != NULL && above != NULL);
            for (size_t i = 0; i < 3; i++) {
                fa_arena_free(arena, blocks[orders[order][i]], 6400);
                CHECK(fa_arena_is_valid(arena));
            }
            CHECK(fa_arena_alloc(arena, 3 * 6400, 0) == blocks[0]); /* all three, as one */
            CHECK(fa_arena_is_valid(arena));
            fa_arena_destroy(arena);
        }
    }
}

TEST(a_part_of_a_freed_block_is_reused_and_the_rest_too) {
    FOR_EACH_REUSING_KIND(kind) {
        fa_arena *arena = new_arena(kind, MIB);
        unsigned char *big = fa_arena_alloc(arena, 64 * KIB, 0);
        void *above = fa_arena_alloc(arena, 64, 0);
        CHECK(above != NULL);
        fa_arena_free(arena, big, 64 * KIB);
        for (size_t i = 0; i < 64; i++) {
            unsigned char *piece = fa_arena_alloc(arena, KIB, 0);
            CHECK(piece >= big && piece + KIB <= big + 64 * KIB);
        }
        CHECK(fa_arena_alloc(arena, KIB, 0) > above);
        CHECK(fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
}

TEST(freeing_the_last_live_block_rewinds_to_the_start) {
    FOR_EACH_REUSING_KIND(kind) {
        fa_arena *arena = new_arena(kind, MIB);
        void *blocks[5];
        const size_t order[5] = {3, 0, 4, 2, 1};
        for (size_t i = 0; i < 5; i++) blocks[i] = fa_arena_alloc(arena, 1000 + 100 * i, 0);
        for (size_t i = 0; i < 5; i++) fa_arena_free(arena, blocks[order[i]], 1000 + 100 * order[i]);
        CHECK(arena_stats(arena).used == 0);
        CHECK(arena_stats(arena).cached == 0);
        CHECK(fa_arena_alloc(arena, 900 * KIB, 0) == blocks[0]);
        fa_arena_destroy(arena);
    }
}

TEST(reuse_goes_on_for_hours_within_the_capacity) {
    FOR_EACH_REUSING_KIND(kind) {
        fa_arena *arena = new_arena(kind, 4 * MIB);
        struct {
            void *block;
            size_t size;
        } live[16];
        memset(live, 0, sizeof live);
        random_source random = {3};
        for (size_t i = 0; i < 50000; i++) { /* 16 live blocks of at most 64 KiB: a quarter of the capacity */
            const size_t slot = random_below(&random, 16);
            fa_arena_free(arena, live[slot].block, live[slot].size);
            live[slot].size = (size_t)1 << random_below(&random, 17);
            live[slot].block = fa_arena_alloc(arena, live[slot].size, 0);
            CHECK(live[slot].block != NULL);
        }
        CHECK(arena_stats(arena).failures == 0);
        CHECK(fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
}

TEST(a_reused_block_keeps_its_alignment) {
    FOR_EACH_REUSING_KIND(kind) {
        fa_arena *arena = new_arena(kind, 32 * MIB);
        void *hole = fa_arena_alloc(arena, 5 * MIB, 0);
        void *above = fa_arena_alloc(arena, 1, 0);
        CHECK(hole != NULL && above != NULL);
        fa_arena_free(arena, hole, 5 * MIB);
        for (size_t alignment = 2 * MIB; alignment >= 64; alignment /= 2) {
            void *block = fa_arena_alloc(arena, 3000, alignment);
            CHECK(block != NULL && is_aligned(block, alignment));
            CHECK(fa_arena_is_valid(arena));
        }
        fa_arena_destroy(arena);
    }
}

/* Small blocks that are freed wait for one of their size; whoever needs the room otherwise gets it. */
TEST(small_freed_blocks_wait_for_their_size_and_merge_before_the_arena_grows) {
    fa_arena *arena = new_arena(FA_POLYNOMIAL, MIB);
    unsigned char *block[10];
    for (int i = 0; i < 10; i++) CHECK((block[i] = fa_arena_alloc(arena, 64, 0)) != NULL);
    fa_arena_free(arena, block[3], 64);
    fa_arena_free(arena, block[5], 64);
    CHECK(arena_stats(arena).cached == 128 && arena_stats(arena).used == 8 * 64 && arena_stats(arena).live == 8);
    CHECK(fa_arena_alloc(arena, 50, 0) == block[5] && fa_arena_usable_size(arena, block[5]) == 64);
    CHECK(fa_arena_alloc(arena, 64, 0) == block[3] && arena_stats(arena).cached == 0 && arena_stats(arena).requested == 626);
    for (int i = 0; i < 8; i++) fa_arena_free(arena, block[i], 64);
    CHECK(fa_arena_is_valid(arena) && arena_stats(arena).cached == 8 * 64);
    CHECK(fa_arena_alloc(arena, 8 * 64, 0) == block[0] && arena_stats(arena).cached == 0);
    CHECK(fa_arena_is_valid(arena) && arena_stats(arena).used == 10 * 64 && arena_stats(arena).peak == 10 * 64);
    fa_arena_destroy(arena);
}

TEST(what_is_made_after_a_mark_never_lies_below_it) {
    fa_arena *arena = new_arena(FA_POLYNOMIAL, MIB);
    unsigned char *below[3], *inside;
    for (int i = 0; i < 3; i++) CHECK((below[i] = fa_arena_alloc(arena, 64, 0)) != NULL);
    fa_arena_free(arena, below[1], 64);
    const fa_mark mark = fa_arena_mark(arena);
    CHECK((inside = fa_arena_alloc(arena, 64, 0)) > below[2]);
    unsigned char *second = fa_arena_alloc(arena, 64, 0), *third = fa_arena_alloc(arena, 64, 0);
    fa_arena_free(arena, inside, 64);
    CHECK(fa_arena_is_valid(arena) && fa_arena_alloc(arena, 64, 0) == inside);
    fa_arena_free(arena, second, 64);
    CHECK(fa_arena_rewind(arena, mark) == FA_OK && fa_arena_is_valid(arena) && arena_stats(arena).live == 2);
    CHECK(fa_arena_alloc(arena, 64, 0) == inside && fa_arena_alloc(arena, 64, 0) == second);
    CHECK(fa_arena_alloc(arena, 64, 0) == third && fa_arena_is_valid(arena));
    fa_arena_destroy(arena);
}

TEST(a_double_free_of_a_small_block_that_waits_is_reported) {
    corruption_note note = {0, ""};
    fa_arena_options options = arena_options(FA_POLYNOMIAL, MIB);
    options.on_corruption = note_corruption;
    options.corruption_context = &note;
    fa_arena *arena = arena_with(&options);
    unsigned char *first = fa_arena_alloc(arena, 64, 0);
    CHECK(first != NULL && fa_arena_alloc(arena, 64, 0) != NULL);
    fa_arena_free(arena, first, 64);
    fa_arena_free(arena, first, 64);
    CHECK(note.count == 1 && fa_arena_usable_size(arena, first) == 0 && fa_arena_is_valid(arena));
    fa_arena_destroy(arena);
}

TEST(a_tracked_scratch_arena_reuses_too) {
    fa_arena_options options = arena_options(FA_SCRATCH, MIB);
    options.flags = FA_TRACKED;
    fa_arena *arena = arena_with(&options);
    void *first = fa_arena_alloc(arena, 1000, 0);
    void *second = fa_arena_alloc(arena, 1000, 0);
    fa_arena_free(arena, first, 1000);
    CHECK(fa_arena_alloc(arena, 1000, 0) == first);
    CHECK(second != NULL && fa_arena_is_valid(arena));
    fa_arena_destroy(arena);
}

/* ---- corruption -------------------------------------------------------------------------------------------------- */

static fa_arena *noting_arena(fa_arena_kind kind, corruption_note *note) {
    fa_arena_options options = arena_options(kind, MIB);
    options.on_full = FA_FULL_FAIL;
    options.on_corruption = note_corruption;
    options.corruption_context = note;
    options.name = "noting";
    return arena_with(&options);
}

TEST(a_double_free_is_reported_and_does_nothing) {
    FOR_EACH_REUSING_KIND(kind) {
        corruption_note note = {0, ""};
        fa_arena *arena = noting_arena(kind, &note);
        void *below = fa_arena_alloc(arena, 100, 0), *block = fa_arena_alloc(arena, 100, 0);
        void *above = fa_arena_alloc(arena, 100, 0);
        fa_arena_free(arena, block, 100);
        CHECK(note.count == 0);
        fa_arena_free(arena, block, 100);
        CHECK(note.count == 1 && is_one_line(note.message));
        CHECK(arena_stats(arena).live == 2);
        fa_arena_free(arena, above, 100); /* the newest: the cursor goes back */
        fa_arena_free(arena, above, 100);
        CHECK(note.count == 2);
        fa_arena_free(arena, below, 100);
        fa_arena_free(arena, below, 100);
        CHECK(note.count == 3);
        CHECK(arena_stats(arena).live == 0 && arena_stats(arena).freed == 3);
        CHECK(fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
}

TEST(foreign_and_interior_pointers_are_reported_and_do_nothing) {
    FOR_EACH_REUSING_KIND(kind) {
        corruption_note note = {0, ""};
        fa_arena *arena = noting_arena(kind, &note), *other = new_arena(kind, MIB);
        unsigned char *block = fa_arena_alloc(arena, 1000, 0);
        unsigned char *stranger = fa_arena_alloc(other, 1000, 0);
        int local = 0;
        fill(block, 1000, 1);
        fa_arena_free(arena, block + 1, 999);
        fa_arena_free(arena, block + 64, 936);
        fa_arena_free(arena, block + 512 * KIB, 64); /* never handed out */
        fa_arena_free(arena, stranger, 1000);
        fa_arena_free(arena, &local, sizeof local);
        CHECK(note.count == 5 && is_one_line(note.message));
        CHECK(fa_arena_realloc(arena, block + 64, 100, 5000, 0) == NULL);
        CHECK(fa_arena_realloc(arena, stranger, 1000, 5000, 0) == NULL);
        CHECK(note.count == 7);
        CHECK(arena_stats(arena).live == 1 && is_filled(block, 1000, 1));
        CHECK(fa_arena_is_valid(arena) && fa_arena_is_valid(other));
        fa_arena_destroy(arena);
        fa_arena_destroy(other);
    }
}

TEST(what_a_rewind_has_released_is_no_block_inside_a_new_one) {
    static const fa_arena_kind kinds[] = {FA_POLYNOMIAL, FA_WITNESS};
    for (size_t i = 0; i < 2; i++) {
        corruption_note note = {0, ""};
        fa_arena *arena = noting_arena(kinds[i], &note);
        CHECK(fa_arena_alloc(arena, 64, 0) != NULL);
        const fa_mark mark = fa_arena_mark(arena);
        void *released[20];
        for (size_t j = 0; j < 20; j++) {
            if (j == 10) CHECK(fa_arena_mark(arena).serial != mark.serial);
            released[j] = fa_arena_alloc(arena, 64, 0);
        }
        CHECK(fa_arena_rewind(arena, mark) == FA_OK);
        unsigned char *block = fa_arena_alloc(arena, 4096, 0);
        CHECK(block == released[0]);
        for (size_t j = 1; j < 20; j++) {
            CHECK(fa_arena_usable_size(arena, released[j]) == 0);
            fa_arena_free(arena, released[j], 64);
            CHECK(note.count == (int)j);
        }
        CHECK(arena_stats(arena).live == 2 && fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
}

TEST(a_message_names_the_arena) {
    corruption_note note = {0, ""};
    fa_arena *arena = noting_arena(FA_POLYNOMIAL, &note);
    int local = 0;
    fa_arena_free(arena, &local, sizeof local);
    CHECK(strstr(note.message, "noting") != NULL);
    fa_arena_destroy(arena);
}

/* ---- realloc ----------------------------------------------------------------------------------------------------- */

TEST(realloc_of_null_allocates) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = new_arena(kind, MIB);
        void *block = fa_arena_realloc(arena, NULL, 0, 500, 0);
        CHECK(block != NULL && arena_stats(arena).live == 1);
        fa_arena_destroy(arena);
    }
}

TEST(realloc_grows_and_shrinks_the_newest_block_in_place) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = new_arena(kind, MIB);
        void *below = fa_arena_alloc(arena, 100, 0);
        unsigned char *block = fa_arena_alloc(arena, 100, 0);
        fill(block, 100, 1);
        CHECK(fa_arena_realloc(arena, block, 100, 100000, 0) == block);
        CHECK(is_filled(block, 100, 1));
        fill(block, 100000, 2);
        CHECK(fa_arena_realloc(arena, block, 100000, 50, 0) == block);
        CHECK(is_filled(block, 50, 2));
        CHECK(below != NULL && arena_stats(arena).live == 2);
        CHECK(arena_stats(arena).requested == 150);
        CHECK(fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
}

TEST(realloc_moves_with_all_bytes_when_it_cannot_grow) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = new_arena(kind, MIB);
        unsigned char *block = fa_arena_alloc(arena, 1000, 0);
        void *above = fa_arena_alloc(arena, 100, 0);
        fill(block, 1000, 5);
        unsigned char *moved = fa_arena_realloc(arena, block, 1000, 10000, 0);
        CHECK(above != NULL && moved != NULL && moved != block);
        CHECK(is_filled(moved, 1000, 5));
        CHECK(arena_stats(arena).live == (kind == FA_SCRATCH ? 3U : 2U)); /* there the old one waits for the reset */
        CHECK(fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
}

TEST(realloc_grows_into_a_freed_neighbour_or_moves) {
    FOR_EACH_REUSING_KIND(kind) {
        fa_arena *arena = new_arena(kind, MIB);
        unsigned char *block = fa_arena_alloc(arena, 640, 0);
        void *neighbour = fa_arena_alloc(arena, 6400, 0), *above = fa_arena_alloc(arena, 64, 0);
        fill(block, 640, 9);
        fa_arena_free(arena, neighbour, 6400);
        unsigned char *grown = fa_arena_realloc(arena, block, 640, 5000, 0);
        CHECK(above != NULL && grown != NULL && is_filled(grown, 640, 9));
        fill(grown, 5000, 10);
        CHECK(is_zero(&grown[0], 0) && fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
}

TEST(a_failed_realloc_leaves_the_block) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = new_arena(kind, FOURTH_OF_A_MIB);
        unsigned char *block = fa_arena_alloc(arena, 1000, 0);
        fill(block, 1000, 3);
        CHECK(fa_arena_realloc(arena, block, 1000, FOURTH_OF_A_MIB + 1, 0) == NULL);
        CHECK(fa_arena_realloc(arena, block, 1000, 2000, 3) == NULL);
        CHECK(is_filled(block, 1000, 3) && arena_stats(arena).live == 1);
        CHECK(arena_stats(arena).requested == 1000);
        CHECK(fa_arena_realloc(arena, block, 1000, 2000, 0) == block);
        CHECK(fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
}

TEST(realloc_can_raise_the_alignment) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = new_arena(kind, 16 * MIB);
        CHECK(fa_arena_alloc(arena, 64, 0) != NULL);
        unsigned char *block = fa_arena_alloc(arena, 1000, 0);
        fill(block, 1000, 4);
        for (size_t alignment = 64; alignment <= 2 * MIB; alignment *= 4) {
            block = fa_arena_realloc(arena, block, 1000, 1000, alignment);
            CHECK(block != NULL && is_aligned(block, alignment) && is_filled(block, 1000, 4));
        }
        CHECK(fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
}

TEST(realloc_carries_blocks_into_and_out_of_the_fallback) {
    fa_arena_options options = arena_options(FA_POLYNOMIAL, 64 * KIB);
    options.on_full = FA_FULL_FALLBACK;
    fa_arena *arena = arena_with(&options);
    unsigned char *block = fa_arena_alloc(arena, 1000, 0);
    fill(block, 1000, 6);
    block = fa_arena_realloc(arena, block, 1000, 200 * KIB, 0);
    CHECK(block != NULL && is_filled(block, 1000, 6));
    CHECK(arena_stats(arena).fallbacks == 1 && arena_stats(arena).live == 1);
    fill(block, 200 * KIB, 7);
    block = fa_arena_realloc(arena, block, 200 * KIB, 300 * KIB, 0);
    CHECK(block != NULL && is_filled(block, 200 * KIB, 7));
    block = fa_arena_realloc(arena, block, 300 * KIB, 500, 0);
    CHECK(block != NULL && is_filled(block, 500, 7));
    CHECK(arena_stats(arena).live == 1 && arena_stats(arena).requested == 500);
    fa_arena_free(arena, block, 500);
    CHECK(arena_stats(arena).live == 0 && arena_stats(arena).fallback_bytes == 0);
    CHECK(fa_arena_is_valid(arena));
    fa_arena_destroy(arena);
}

/* ---- marks ------------------------------------------------------------------------------------------------------- */

TEST(a_rewind_returns_to_the_mark) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = new_arena(kind, MIB);
        unsigned char *before = fa_arena_alloc(arena, 100, 0);
        fill(before, 100, 1);
        const uint64_t used = arena_stats(arena).used;
        const fa_mark mark = fa_arena_mark(arena);
        void *inside = fa_arena_alloc(arena, 1000, 0);
        for (size_t i = 0; i < 100; i++) CHECK(fa_arena_alloc(arena, 50 * i, 0) != NULL);
        for (size_t round = 0; round < 3; round++) { /* any number of times */
            CHECK(fa_arena_rewind(arena, mark) == FA_OK);
            CHECK(arena_stats(arena).used == used && arena_stats(arena).live == 1);
            CHECK(fa_arena_alloc(arena, 500, 0) == inside);
        }
        CHECK(is_filled(before, 100, 1));
        CHECK(arena_stats(arena).rewinds == 3);
        CHECK(fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
}

TEST(marks_nest) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = new_arena(kind, MIB);
        fa_mark marks[10];
        void *firsts[10];
        for (size_t i = 0; i < 10; i++) {
            marks[i] = fa_arena_mark(arena);
            firsts[i] = fa_arena_alloc(arena, 300 + i, 0);
        }
        for (size_t i = 10; i-- > 0;) {
            CHECK(fa_arena_rewind(arena, marks[i]) == FA_OK);
            CHECK(fa_arena_alloc(arena, 10, 0) == firsts[i]);
            CHECK(fa_arena_is_valid(arena));
        }
        fa_arena_destroy(arena);
    }
}

TEST(rewinding_out_of_order_makes_the_inner_mark_stale) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = new_arena(kind, MIB);
        CHECK(fa_arena_alloc(arena, 100, 0) != NULL);
        const fa_mark outer = fa_arena_mark(arena);
        CHECK(fa_arena_alloc(arena, 100, 0) != NULL);
        const fa_mark inner = fa_arena_mark(arena);
        CHECK(fa_arena_alloc(arena, 100, 0) != NULL);
        CHECK(fa_arena_rewind(arena, outer) == FA_OK);
        unsigned char *kept = fa_arena_alloc(arena, 5000, 0);
        fill(kept, 5000, 1);
        const fa_arena_stats before = arena_stats(arena);
        CHECK(fa_arena_rewind(arena, inner) == FA_ERR_STALE);
        const fa_arena_stats after = arena_stats(arena);
        CHECK(after.used == before.used && after.live == before.live && after.rewinds == before.rewinds);
        CHECK(is_filled(kept, 5000, 1));
        CHECK(fa_arena_rewind(arena, outer) == FA_OK);
        CHECK(fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
}

TEST(a_reset_makes_marks_stale) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = new_arena(kind, MIB);
        CHECK(fa_arena_alloc(arena, 100, 0) != NULL);
        const fa_mark mark = fa_arena_mark(arena);
        CHECK(fa_arena_reset(arena) == FA_OK);
        CHECK(fa_arena_rewind(arena, mark) == FA_ERR_STALE);
        CHECK(fa_arena_alloc(arena, 10000, 0) != NULL);
        CHECK(fa_arena_rewind(arena, mark) == FA_ERR_STALE);
        CHECK(arena_stats(arena).live == 1 && arena_stats(arena).rewinds == 0);
        fa_arena_destroy(arena);
    }
}

TEST(a_wipe_makes_marks_stale) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = new_arena(kind, MIB);
        CHECK(fa_arena_alloc(arena, 100, 0) != NULL);
        const fa_mark mark = fa_arena_mark(arena);
        CHECK(fa_arena_wipe(arena) == FA_OK);
        CHECK(fa_arena_rewind(arena, mark) == FA_ERR_STALE);
        fa_arena_destroy(arena);
    }
}

TEST(a_mark_that_never_was_is_refused) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = new_arena(kind, MIB);
        unsigned char *block = fa_arena_alloc(arena, 1000, 0);
        fill(block, 1000, 1);
        const fa_mark invented[] = {{UINT64_MAX, UINT64_MAX}, {0, UINT64_MAX}, {UINT64_MAX, 0}, {12345, 67890}};
        for (size_t i = 0; i < sizeof invented / sizeof *invented; i++) {
            CHECK(fa_arena_rewind(arena, invented[i]) == FA_ERR_STALE);
        }
        CHECK(arena_stats(arena).live == 1 && is_filled(block, 1000, 1));
        CHECK(fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
}

TEST(while_a_mark_is_outstanding_what_is_below_stays_apart) {
    FOR_EACH_REUSING_KIND(kind) {
        fa_arena *arena = new_arena(kind, MIB);
        void *low = fa_arena_alloc(arena, 1000, 0);
        unsigned char *kept = fa_arena_alloc(arena, 1000, 0);
        fill(kept, 1000, 2);
        const fa_mark mark = fa_arena_mark(arena);
        fa_arena_free(arena, low, 1000);
        unsigned char *inside = fa_arena_alloc(arena, 1000, 0);
        CHECK(inside > kept); /* not in the hole below the mark: a rewind to it must be able to drop it */
        CHECK(fa_arena_rewind(arena, mark) == FA_OK);
        CHECK(is_filled(kept, 1000, 2));
        CHECK(fa_arena_is_valid(arena));
        fa_arena_reset(arena);
        CHECK(fa_arena_alloc(arena, 1000, 0) == low);
        fa_arena_destroy(arena);
    }
}

TEST(freeing_below_a_mark_never_moves_the_cursor_below_it) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = new_arena(kind, MIB);
        void *first = fa_arena_alloc(arena, 1000, 0), *second = fa_arena_alloc(arena, 1000, 0);
        const fa_mark mark = fa_arena_mark(arena);
        fa_arena_free(arena, second, 1000); /* the newest block, but the mark stands above it */
        unsigned char *inside = fa_arena_alloc(arena, 5000, 0);
        CHECK(first != NULL && inside != NULL);
        fill(inside, 5000, 1);
        CHECK(fa_arena_rewind(arena, mark) == FA_OK);
        unsigned char *again = fa_arena_alloc(arena, 5000, 0);
        CHECK(again == inside);
        CHECK(fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
}

TEST(blocks_freed_inside_a_mark_are_reused_inside_it) {
    FOR_EACH_REUSING_KIND(kind) {
        fa_arena *arena = new_arena(kind, MIB);
        CHECK(fa_arena_alloc(arena, 100, 0) != NULL);
        const fa_mark mark = fa_arena_mark(arena);
        void *block = fa_arena_alloc(arena, 1000, 0), *above = fa_arena_alloc(arena, 1000, 0);
        fa_arena_free(arena, block, 1000);
        CHECK(fa_arena_alloc(arena, 1000, 0) == block);
        CHECK(above != NULL && fa_arena_rewind(arena, mark) == FA_OK);
        CHECK(arena_stats(arena).live == 1);
        CHECK(fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
}

TEST(a_rewind_frees_fallback_blocks_made_since) {
    fa_arena_options options = arena_options(FA_SCRATCH, 64 * KIB);
    fa_arena *arena = arena_with(&options);
    unsigned char *before = fa_arena_alloc(arena, 100 * KIB, 0);
    fill(before, 100 * KIB, 1);
    const fa_mark mark = fa_arena_mark(arena);
    for (size_t i = 0; i < 10; i++) CHECK(fa_arena_alloc(arena, 100 * KIB, 0) != NULL);
    CHECK(arena_stats(arena).fallback_bytes == 1100 * KIB);
    CHECK(fa_arena_rewind(arena, mark) == FA_OK);
    CHECK(arena_stats(arena).fallback_bytes == 100 * KIB);
    CHECK(arena_stats(arena).live == 1 && is_filled(before, 100 * KIB, 1));
    CHECK(fa_arena_is_valid(arena));
    fa_arena_destroy(arena);
}

/* ---- reset, wipe, trim -------------------------------------------------------------------------------------------- */

TEST(a_reset_releases_everything) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = new_arena(kind, 4 * MIB);
        void *first = NULL;
        for (uint64_t round = 1; round <= 5; round++) {
            for (size_t i = 0; i < 1000; i++) {
                void *block = fa_arena_alloc(arena, i, 0);
                CHECK(block != NULL);
                if (i == 0 && first == NULL) first = block;
                if (i == 0) CHECK(block == first);
            }
            CHECK(fa_arena_reset(arena) == FA_OK);
            const fa_arena_stats stats = arena_stats(arena);
            CHECK(stats.live == 0 && stats.used == 0 && stats.requested == 0);
            CHECK(stats.allocated == 1000 * round && stats.freed == 1000 * round && stats.resets == round);
            CHECK(fa_arena_is_valid(arena));
        }
        fa_arena_destroy(arena);
    }
}

TEST(pages_stay_resident_across_a_reset) {
    SKIP_IF(!can(try_resident), NO_RESIDENCY);
    FOR_EACH_KIND(kind) {
        fa_arena *arena = new_arena(kind, 4 * MIB);
        memset(fa_arena_alloc(arena, 2 * MIB, 0), 1, 2 * MIB);
        CHECK(fa_arena_reset(arena) == FA_OK);
        CHECK(arena_stats(arena).resident >= 2 * MIB);
        fa_arena_destroy(arena);
    }
}

TEST(a_tracked_arena_refuses_to_release_live_blocks) {
    FOR_EACH_KIND(kind) {
        fa_arena_options options = arena_options(kind, MIB);
        options.flags = FA_TRACKED;
        fa_arena *arena = arena_with(&options);
        const fa_mark mark = fa_arena_mark(arena);
        unsigned char *block = fa_arena_alloc(arena, 1000, 0);
        fill(block, 1000, 1);
        CHECK(fa_arena_reset(arena) == FA_ERR_BUSY);
        CHECK(fa_arena_rewind(arena, mark) == FA_ERR_BUSY);
        CHECK(is_filled(block, 1000, 1));
        CHECK(arena_stats(arena).live == 1 && arena_stats(arena).resets == 0 && arena_stats(arena).rewinds == 0);
        fa_arena_free(arena, block, 1000);
        CHECK(fa_arena_rewind(arena, mark) == FA_OK);
        CHECK(fa_arena_reset(arena) == FA_OK);
        CHECK(fa_arena_rewind(arena, mark) == FA_ERR_STALE);
        CHECK(fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
}

TEST(a_tracked_rewind_minds_only_blocks_made_since) {
    FOR_EACH_KIND(kind) {
        fa_arena_options options = arena_options(kind, MIB);
        options.flags = FA_TRACKED;
        fa_arena *arena = arena_with(&options);
        unsigned char *before = fa_arena_alloc(arena, 1000, 0);
        fill(before, 1000, 1);
        const fa_mark mark = fa_arena_mark(arena);
        void *inside = fa_arena_alloc(arena, 1000, 0);
        CHECK(fa_arena_rewind(arena, mark) == FA_ERR_BUSY);
        fa_arena_free(arena, inside, 1000);
        CHECK(fa_arena_rewind(arena, mark) == FA_OK);
        CHECK(is_filled(before, 1000, 1) && arena_stats(arena).live == 1);
        CHECK(fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
}

TEST(a_wipe_zeroes_every_byte_ever_handed_out) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = new_arena(kind, 4 * MIB);
        unsigned char *base = fa_arena_alloc(arena, 100, 0);
        memset(base, 0xFF, 100);
        size_t reach = 0;
        random_source random = {11};
        for (size_t i = 0; i < 200; i++) {
            const size_t size = random_below(&random, 10000);
            unsigned char *block = fa_arena_alloc(arena, size, 0);
            CHECK(block != NULL);
            memset(block, 0xFF, size);
            const size_t end = (size_t)offset_from(base, block) + size;
            if (end > reach) reach = end;
            if (i % 2 == 0) fa_arena_free(arena, block, size);
            if (i == 100) CHECK(fa_arena_reset(arena) == FA_OK); /* what was used before counts as well */
        }
        CHECK(fa_arena_wipe(arena) == FA_OK);
        CHECK(peek_nonzero(base, reach) == 0);
        const fa_arena_stats stats = arena_stats(arena);
        CHECK(stats.wipes == 1 && stats.live == 0 && stats.used == 0);
        CHECK(fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
}

TEST(a_wipe_of_a_tracked_arena_zeroes_live_blocks_and_keeps_them) {
    FOR_EACH_KIND(kind) {
        fa_arena_options options = arena_options(kind, MIB);
        options.flags = FA_TRACKED;
        fa_arena *arena = arena_with(&options);
        unsigned char *block = fa_arena_alloc(arena, 10000, 0);
        memset(block, 0xFF, 10000);
        CHECK(fa_arena_wipe(arena) == FA_OK);
        CHECK(is_zero(block, 10000));
        CHECK(arena_stats(arena).live == 1 && arena_stats(arena).wipes == 1);
        CHECK(fa_arena_is_live(arena, block));
        fa_arena_free(arena, block, 10000);
        CHECK(fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
}

TEST(a_wipe_zeroes_live_fallback_blocks) {
    fa_arena_options options = arena_options(FA_SCRATCH, 64 * KIB);
    options.flags = FA_TRACKED;
    fa_arena *arena = arena_with(&options);
    unsigned char *block = fa_arena_alloc(arena, 100 * KIB, 0);
    memset(block, 0xFF, 100 * KIB);
    CHECK(fa_arena_wipe(arena) == FA_OK);
    CHECK(is_zero(block, 100 * KIB));
    fa_arena_destroy(arena);
}

TEST(alloc_zeroed_after_a_wipe_is_zero_without_being_touched) {
    fa_arena *arena = new_arena(FA_POLYNOMIAL, 4 * MIB);
    memset(fa_arena_alloc(arena, MIB, 0), 0xFF, MIB);
    CHECK(fa_arena_wipe(arena) == FA_OK);
    CHECK(is_zero(fa_arena_alloc_zeroed(arena, 2 * MIB, 0), 2 * MIB));
    fa_arena_destroy(arena);
}

TEST(trim_gives_the_pages_of_free_memory_back) {
    SKIP_IF(!can(try_decommit), NO_DECOMMIT);
    FOR_EACH_KIND(kind) {
        fa_arena_options options = arena_options(kind, 16 * MIB);
        options.lock = FA_OFF;
        fa_arena *arena = arena_with(&options);
        unsigned char *kept = fa_arena_alloc(arena, 100000, 0);
        unsigned char *freed = fa_arena_alloc(arena, 8 * MIB, 0);
        fill(kept, 100000, 1);
        memset(freed, 1, 8 * MIB);
        fa_arena_free(arena, freed, 8 * MIB);
        CHECK(arena_stats(arena).resident >= 8 * MIB);
        CHECK(fa_arena_trim(arena, 4 * MIB) == FA_OK);
        const uint64_t resident = arena_stats(arena).resident;
        CHECK(resident >= 3 * MIB && resident <= 5 * MIB);
        CHECK(fa_arena_trim(arena, 0) == FA_OK);
        CHECK(arena_stats(arena).resident <= MIB);
        CHECK(is_filled(kept, 100000, 1));
        freed = fa_arena_alloc_zeroed(arena, 8 * MIB, 0);
        CHECK(freed != NULL && is_zero(freed, 8 * MIB));
        CHECK(fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
}

TEST(trim_gives_holes_back_too) {
    SKIP_IF(!can(try_decommit), NO_DECOMMIT);
    FOR_EACH_REUSING_KIND(kind) {
        fa_arena_options options = arena_options(kind, 16 * MIB);
        options.lock = FA_OFF;
        fa_arena *arena = arena_with(&options);
        unsigned char *hole = fa_arena_alloc(arena, 8 * MIB, 0);
        unsigned char *above = fa_arena_alloc(arena, 1000, 0);
        memset(hole, 1, 8 * MIB);
        fill(above, 1000, 2);
        fa_arena_free(arena, hole, 8 * MIB);
        CHECK(fa_arena_trim(arena, 0) == FA_OK);
        CHECK(arena_stats(arena).resident <= MIB);
        CHECK(is_filled(above, 1000, 2));
        unsigned char *again = fa_arena_alloc_zeroed(arena, 8 * MIB, 0);
        CHECK(again == hole && is_zero(again, 8 * MIB));
        CHECK(fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
}

/* ---- fallback ---------------------------------------------------------------------------------------------------- */

TEST(a_full_arena_falls_back_to_malloc_and_counts_it) {
    const fa_arena_kind kinds[] = {FA_POLYNOMIAL, FA_SCRATCH};
    for (size_t i = 0; i < 2; i++) {
        fa_arena_options options = arena_options(kinds[i], 64 * KIB);
        fa_arena *arena = arena_with(&options);
        CHECK(fa_arena_alloc(arena, 64 * KIB, 0) != NULL);
        unsigned char *blocks[50];
        uint64_t bytes = 0;
        for (size_t n = 0; n < 50; n++) {
            const size_t alignment = (size_t)16 << n % 10;
            blocks[n] = fa_arena_alloc(arena, 100 * n, alignment);
            CHECK(blocks[n] != NULL && is_aligned(blocks[n], alignment));
            CHECK(fa_arena_owns(arena, blocks[n]));
            CHECK(n == 0 || fa_arena_owns(arena, blocks[n] + 100 * n - 1));
            fill(blocks[n], 100 * n, n);
            bytes += 100 * n;
        }
        CHECK(arena_stats(arena).fallbacks == 50 && arena_stats(arena).fallback_bytes == bytes);
        CHECK(arena_stats(arena).live == 51 && arena_stats(arena).failures == 0);
        for (size_t n = 0; n < 50; n += 2) {
            CHECK(is_filled(blocks[n], 100 * n, n));
            fa_arena_free(arena, blocks[n], 100 * n);
            bytes -= 100 * n;
        }
        CHECK(arena_stats(arena).fallback_bytes == bytes && arena_stats(arena).live == 26);
        CHECK(fa_arena_is_valid(arena));
        CHECK(fa_arena_reset(arena) == FA_OK); /* LeakSanitizer sees whether the rest dies here */
        CHECK(arena_stats(arena).fallback_bytes == 0 && arena_stats(arena).live == 0);
        CHECK(!fa_arena_owns(arena, blocks[1]));
        CHECK(fa_arena_alloc(arena, 100 * KIB, 0) != NULL); /* and this one with the arena */
        fa_arena_destroy(arena);
    }
}

TEST(a_freed_fallback_block_is_not_owned_any_more) {
    fa_arena_options options = arena_options(FA_POLYNOMIAL, 64 * KIB);
    corruption_note note = {0, ""};
    options.on_corruption = note_corruption;
    options.corruption_context = &note;
    fa_arena *arena = arena_with(&options);
    void *block = fa_arena_alloc(arena, 100 * KIB, 0);
    CHECK(fa_arena_usable_size(arena, block) >= 100 * KIB);
    fa_arena_free(arena, block, 100 * KIB);
    CHECK(!fa_arena_owns(arena, block));
    fa_arena_free(arena, block, 100 * KIB);
    CHECK(note.count == 1);
    fa_arena_destroy(arena);
}

/* ---- statistics -------------------------------------------------------------------------------------------------- */

TEST(stats_add_up) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = new_arena(kind, 8 * MIB);
        random_source random = {5};
        void *blocks[200];
        size_t sizes[200];
        uint64_t requested = 0, live = 0, peak = 0;
        for (size_t i = 0; i < 200; i++) {
            sizes[i] = random_below(&random, 5000);
            blocks[i] = fa_arena_alloc(arena, sizes[i], 0);
            requested += sizes[i];
            live++;
            const fa_arena_stats stats = arena_stats(arena);
            CHECK(stats.requested == requested && stats.live == live);
            CHECK(stats.allocated == i + 1 && stats.allocated - stats.freed == stats.live);
            CHECK(stats.used >= stats.requested && stats.used <= stats.capacity);
            if (stats.used > peak) peak = stats.used;
            CHECK(stats.peak == peak);
        }
        for (size_t i = 200; i-- > 0;) { /* in stack order, so that scratch frees as well */
            fa_arena_free(arena, blocks[i], sizes[i]);
            requested -= sizes[i];
            live--;
            const fa_arena_stats stats = arena_stats(arena);
            CHECK(stats.requested == requested && stats.live == live);
            CHECK(stats.allocated - stats.freed == stats.live && stats.peak == peak);
        }
        const fa_arena_stats stats = arena_stats(arena);
        CHECK(stats.used == 0 && stats.fallbacks == 0 && stats.failures == 0);
        CHECK(stats.reserved >= stats.capacity && stats.resident <= stats.reserved);
        fa_arena_destroy(arena);
    }
}

TEST(freed_bytes_that_wait_for_reuse_are_cached) {
    FOR_EACH_REUSING_KIND(kind) {
        fa_arena *arena = new_arena(kind, MIB);
        void *hole = fa_arena_alloc(arena, 64 * KIB, 0), *above = fa_arena_alloc(arena, 64, 0);
        CHECK(above != NULL && arena_stats(arena).cached == 0);
        const uint64_t used = arena_stats(arena).used;
        fa_arena_free(arena, hole, 64 * KIB);
        CHECK(arena_stats(arena).cached == 64 * KIB);
        CHECK(arena_stats(arena).used == used - 64 * KIB);
        fa_arena_destroy(arena);
    }
}

TEST(stats_json_is_one_line_and_counts_like_snprintf) {
    fa_arena *arena = new_arena(FA_POLYNOMIAL, MIB);
    CHECK(fa_arena_alloc(arena, 1234, 0) != NULL);
    const fa_arena_stats stats = arena_stats(arena);
    char text[2048], small[10];
    const size_t length = fa_arena_stats_json(&stats, text, sizeof text);
    CHECK(length == strlen(text) && length < sizeof text);
    CHECK(text[0] == '{' && text[length - 1] == '}' && strchr(text, '\n') == NULL);
    CHECK(strstr(text, "\"requested\"") != NULL && strstr(text, "1234") != NULL);
#define HAS_FIELD(name, unit, doc) CHECK(strstr(text, "\"" #name "\"") != NULL);
    FA_ARENA_STATS(HAS_FIELD)
#undef HAS_FIELD
    CHECK(fa_arena_stats_json(&stats, NULL, 0) == length);
    CHECK(fa_arena_stats_json(&stats, small, sizeof small) == length);
    CHECK(strlen(small) == sizeof small - 1 && memcmp(small, text, sizeof small - 1) == 0);
    fa_arena_destroy(arena);
}

TEST(failures_are_counted) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = new_arena(kind, 64 * KIB);
        CHECK(fa_arena_alloc(arena, MIB, 0) == NULL);
        CHECK(fa_arena_alloc(arena, SIZE_MAX, 0) == NULL);
        CHECK(fa_arena_alloc(arena, 16, 3) == NULL);
        CHECK(arena_stats(arena).failures == 3);
        fa_arena_destroy(arena);
    }
}

/* ---- what the adapters need (heap/arena.h) ----------------------------------------------------------------------- */

static fa_arena *tracked_arena(fa_arena_kind kind) {
    fa_arena_options options = arena_options(kind, MIB);
    options.flags = FA_TRACKED;
    return arena_with(&options);
}

TEST(an_empty_scope_ends_at_once) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = tracked_arena(kind);
        CHECK(fa_arena_alloc(arena, 100, 0) != NULL);
        const uint64_t used = arena_stats(arena).used;
        const fa_mark mark = fa_arena_scope_enter(arena);
        void *block = fa_arena_alloc(arena, 1000, 0);
        fa_arena_free(arena, block, 1000);
        uint64_t live = 99, bytes = 99;
        CHECK(fa_arena_scope_leave(arena, mark, &live, &bytes) == FA_OK);
        CHECK(live == 0 && bytes == 0 && arena_stats(arena).used == used);
        CHECK(fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
}

TEST(a_scope_with_live_blocks_ends_when_the_last_dies) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = tracked_arena(kind);
        CHECK(fa_arena_alloc(arena, 100, 0) != NULL);
        const uint64_t used = arena_stats(arena).used;
        const fa_mark mark = fa_arena_scope_enter(arena);
        void *first = fa_arena_alloc(arena, 1000, 0), *second = fa_arena_alloc(arena, 500, 0);
        void *third = fa_arena_alloc(arena, 300, 0);
        fa_arena_free(arena, second, 500);
        uint64_t live = 0, bytes = 0;
        CHECK(fa_arena_scope_leave(arena, mark, &live, &bytes) == FA_ERR_BUSY);
        CHECK(live == 2 && bytes == 1300);
        fa_arena_free(arena, first, 1000);
        CHECK(arena_stats(arena).used > used);
        fa_arena_free(arena, third, 300);
        CHECK(arena_stats(arena).used == used);
        CHECK(fa_arena_alloc(arena, 10, 0) == first);
        CHECK(fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
}

TEST(scopes_may_be_left_in_any_order) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = tracked_arena(kind);
        uint64_t live = 0, bytes = 0;
        const fa_mark outer = fa_arena_scope_enter(arena);
        unsigned char *in_outer = fa_arena_alloc(arena, 100, 0);
        const fa_mark inner = fa_arena_scope_enter(arena);
        unsigned char *in_inner = fa_arena_alloc(arena, 200, 0);
        fill(in_outer, 100, 1);
        fill(in_inner, 200, 2);
        CHECK(fa_arena_scope_leave(arena, outer, &live, &bytes) == FA_ERR_BUSY);
        CHECK(live == 2 && bytes == 300);
        CHECK(fa_arena_scope_leave(arena, inner, &live, &bytes) == FA_ERR_BUSY);
        CHECK(live == 1 && bytes == 200);
        CHECK(is_filled(in_outer, 100, 1) && is_filled(in_inner, 200, 2));
        fa_arena_free(arena, in_outer, 100);
        CHECK(is_filled(in_inner, 200, 2) && fa_arena_is_valid(arena));
        fa_arena_free(arena, in_inner, 200);
        CHECK(arena_stats(arena).used == 0);
        CHECK(fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
}

TEST(a_scope_that_was_ended_is_stale) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = tracked_arena(kind);
        uint64_t live = 0, bytes = 0;
        const fa_mark scope = fa_arena_scope_enter(arena);
        CHECK(fa_arena_reset(arena) == FA_OK);
        CHECK(fa_arena_scope_leave(arena, scope, &live, &bytes) == FA_ERR_STALE);
        const fa_mark mark = fa_arena_mark(arena);
        const fa_mark inside = fa_arena_scope_enter(arena);
        CHECK(fa_arena_rewind(arena, mark) == FA_OK);
        CHECK(fa_arena_scope_leave(arena, inside, &live, &bytes) == FA_ERR_STALE);
        const fa_mark last = fa_arena_scope_enter(arena);
        CHECK(fa_arena_scope_leave(arena, last, &live, &bytes) == FA_OK);
        CHECK(fa_arena_scope_leave(arena, last, &live, &bytes) == FA_ERR_STALE);
        CHECK(fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
}

TEST(a_thousand_scopes_nest) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = tracked_arena(kind);
        fa_mark scopes[1000];
        void *blocks[1000];
        uint64_t live = 0, bytes = 0;
        for (size_t i = 0; i < 1000; i++) {
            scopes[i] = fa_arena_scope_enter(arena);
            blocks[i] = fa_arena_alloc(arena, 10, 0);
        }
        for (size_t i = 0; i < 1000; i += 2) { /* oldest first, every other one */
            CHECK(fa_arena_scope_leave(arena, scopes[i], &live, &bytes) == FA_ERR_BUSY);
            CHECK(live == 1000 - i);
        }
        for (size_t i = 1000; i-- > 0;) fa_arena_free(arena, blocks[i], 10);
        CHECK(fa_arena_is_valid(arena));
        CHECK(arena_stats(arena).live == 0);
        fa_arena_destroy(arena);
    }
}

TEST(live_counts_blocks_and_bytes) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = tracked_arena(kind);
        uint64_t live = 9, bytes = 9;
        CHECK(fa_arena_live(arena, NULL, &live, &bytes) == FA_OK && live == 0 && bytes == 0);
        void *first = fa_arena_alloc(arena, 100, 0);
        const fa_mark mark = fa_arena_mark(arena);
        void *second = fa_arena_alloc(arena, 23, 0);
        CHECK(fa_arena_live(arena, NULL, &live, &bytes) == FA_OK && live == 2 && bytes == 123);
        CHECK(fa_arena_live(arena, &mark, &live, &bytes) == FA_OK && live == 1 && bytes == 23);
        CHECK(fa_arena_is_live(arena, first) && fa_arena_is_live(arena, second));
        CHECK(!fa_arena_is_live(arena, (char *)first + 16));
        fa_arena_free(arena, second, 23);
        CHECK(!fa_arena_is_live(arena, second));
        CHECK(fa_arena_live(arena, &mark, &live, &bytes) == FA_OK && live == 0 && bytes == 0);
        fa_arena_destroy(arena);
    }
}

TEST(a_closed_arena_refuses_allocations_and_takes_frees) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = tracked_arena(kind);
        unsigned char *block = fa_arena_alloc(arena, 1000, 0);
        fill(block, 1000, 1);
        fa_arena_close(arena);
        fa_arena_close(arena);
        CHECK(fa_arena_alloc(arena, 1, 0) == NULL);
        CHECK(fa_arena_alloc_zeroed(arena, 1, 0) == NULL);
        CHECK(fa_arena_realloc(arena, NULL, 0, 1, 0) == NULL);
        CHECK(kind == FA_WITNESS ? is_zero(block, 1000) : is_filled(block, 1000, 1));
        fa_arena_free(arena, block, 1000);
        CHECK(arena_stats(arena).live == 0);
        CHECK(fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
}

TEST(the_peak_can_be_measured_again) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = tracked_arena(kind);
        void *big = fa_arena_alloc(arena, 100 * KIB, 0);
        fa_arena_free(arena, big, 100 * KIB);
        void *small = fa_arena_alloc(arena, 640, 0);
        uint64_t used_now = 0;
        CHECK(fa_arena_restart_peak(arena, &used_now) == 100 * KIB);
        CHECK(used_now == 640 && arena_stats(arena).peak == 640);
        CHECK(small != NULL && fa_arena_alloc(arena, 640, 0) != NULL);
        CHECK(arena_stats(arena).peak == 1280);
        fa_arena_destroy(arena);
    }
}

/* ---- the rest ---------------------------------------------------------------------------------------------------- */

TEST(every_status_has_a_name_of_its_own) {
    for (int status = FA_OK; status <= FA_ERR_UNSUPPORTED; status++) {
        const char *text = fa_status_string((fa_status)status);
        CHECK(text != NULL && is_one_line(text));
        for (int other = FA_OK; other < status; other++) {
            CHECK(strcmp(text, fa_status_string((fa_status)other)) != 0);
        }
    }
    CHECK(fa_status_string((fa_status)12) != NULL); /* 12: the widest value that the enum's bits can hold is 15 */
}

TEST(the_version_is_that_of_the_header) { CHECK(strcmp(fa_version(), FA_VERSION) == 0); }

TEST(secure_zero_zeroes_exactly_its_bytes) {
    unsigned char bytes[1000];
    for (size_t start = 0; start < 70; start++) {
        for (size_t size = 0; size < 300; size += 23) {
            memset(bytes, 0xFF, sizeof bytes);
            fa_secure_zero(bytes + start, size);
            CHECK(is_zero(bytes + start, size));
            for (size_t i = 0; i < sizeof bytes; i++) CHECK((bytes[i] == 0) == (i >= start && i < start + size));
        }
    }
    fa_secure_zero(NULL, 0);
}

TEST(a_mark_is_above_the_fallback_blocks_before_it) {
    FOR_EACH_KIND(kind) {
        if (kind == FA_WITNESS) continue; /* never falls back */
        const fa_arena_options options = arena_options(kind, 64 * KIB);
        fa_arena *arena = arena_with(&options);
        const fa_mark below = fa_arena_mark(arena);
        unsigned char *block = fa_arena_alloc(arena, MIB, 0);
        fill(block, MIB, 1);
        const fa_mark above = fa_arena_mark(arena);
        CHECK(fa_arena_alloc(arena, MIB, 0) != NULL);
        CHECK(fa_arena_rewind(arena, above) == FA_OK);
        CHECK(fa_arena_owns(arena, block) && is_filled(block, MIB, 1));
        CHECK(arena_stats(arena).live == 1 && arena_stats(arena).fallback_bytes == MIB);
        CHECK(fa_arena_rewind(arena, below) == FA_OK && arena_stats(arena).fallback_bytes == 0);
        for (size_t i = 0; i < 10000; i++) { /* more often than there are levels */
            CHECK(fa_arena_rewind(arena, fa_arena_mark(arena)) == FA_OK && fa_arena_alloc(arena, 100 * KIB, 0) != NULL);
            CHECK(fa_arena_rewind(arena, below) == FA_OK);
        }
        CHECK(fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
}

TEST(fallback_blocks_freed_after_a_mark_are_not_counted_after_the_rewind) {
    const fa_arena_options options = arena_options(FA_SCRATCH, 64 * KIB);
    fa_arena *arena = arena_with(&options);
    void *first = fa_arena_alloc(arena, MIB, 0), *second = fa_arena_alloc(arena, 2 * MIB, 0);
    CHECK(fa_arena_alloc(arena, 100, 0) != NULL);
    const fa_mark mark = fa_arena_mark(arena);
    fa_arena_free(arena, first, MIB);
    CHECK(fa_arena_alloc(arena, 100, 0) != NULL && fa_arena_alloc(arena, MIB, 0) != NULL);
    CHECK(fa_arena_rewind(arena, mark) == FA_OK);
    const fa_arena_stats left = arena_stats(arena);
    CHECK(left.live == 2 && left.requested == 2 * MIB + 100 && left.allocated == 5);
    fa_arena_free(arena, second, 2 * MIB);
    CHECK(arena_stats(arena).live == 1 && arena_stats(arena).requested == 100);
    CHECK(fa_arena_rewind(arena, mark) == FA_OK && arena_stats(arena).live == 1);
    fa_arena_destroy(arena);
}

int main(int argc, char **argv) { return tap_main(argc, argv); }
