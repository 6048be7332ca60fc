/*
 * manager_hardened_test.c - what a hardened manager prevents, and what it says: each misuse for blocks of every kind
 *
 * A misuse runs in a child of its own, without a handler. It first prints the address that the one line of the message
 * must name; where there is no line, a touch of closed memory must have killed it.
 */
#include <inttypes.h>

#include "child.h"
#include "heap/manager.h"
#include "support.h"

/* In the slots of slabs, and a mapping of its own. */
static const size_t sizes[] = {1, 24, 100, 3000, 8000, 9000, 100000, 3 * MIB};
#define SIZES (sizeof sizes / sizeof *sizes)
/* From here on a block has a mapping of its own, and is closed when it is freed. */
#define MAPPED(size) ((size) > 8 * KIB - 24)

static fa_manager *hardened_with(unsigned flags, corruption_note *note) {
    fa_manager_options options;
    fa_manager_options_init(&options);
    options.flags = FA_HARDENED | flags;
    options.on_corruption = note != NULL ? note_corruption : NULL;
    options.corruption_context = note;
    return manager_with(&options);
}

/* ---- misuses ------------------------------------------------------------------------------------------------------ */

typedef struct crime {
    fa_manager *manager;
    size_t size;
    unsigned char *block;
} crime;

static void *volatile other; /* or the compiler sees the misuse and warns */

/* As the messages print it, which is not how every C library prints a pointer. */
static void say_address(const void *pointer) {
    fprintf(stderr, "0x%" PRIxPTR "\n", (uintptr_t)pointer);
    fflush(stderr);
}

static void free_twice(const crime *at) {
    say_address(at->block);
    fa_free(at->manager, at->block);
    fa_free(at->manager, at->block);
}
static void free_twice_with_others_between(const crime *at) {
    say_address(at->block);
    fa_free(at->manager, at->block);
    for (size_t i = 0; i < 6; i++) fa_free(at->manager, fa_malloc(at->manager, at->size));
    fa_free(at->manager, at->block);
}
/* The next block of the size must not be at its place, or it would be the one that is freed. */
static void free_twice_with_a_new_one_between(const crime *at) {
    say_address(at->block);
    fa_free(at->manager, at->block);
    for (size_t i = 0; i < 6; i++) fa_malloc(at->manager, at->size);
    fa_free(at->manager, at->block);
}
static void free_twice_much_later(const crime *at) {
    say_address(at->block);
    fa_free(at->manager, at->block);
    for (size_t i = 0; i < 100; i++) fa_free(at->manager, fa_malloc(at->manager, 50));
    fa_free(at->manager, at->block);
}
static void resize_what_is_free(const crime *at) {
    say_address(at->block);
    fa_free(at->manager, at->block);
    (void)fa_realloc(at->manager, at->block, at->size + 1);
}
static void free_inside(const crime *at) {
    say_address(at->block + 16);
    fa_free(at->manager, at->block + 16);
}
static void free_before(const crime *at) {
    say_address(at->block - 16);
    fa_free(at->manager, at->block - 16);
}
static void free_unaligned(const crime *at) {
    say_address(at->block + 1);
    fa_free(at->manager, at->block + 1);
}
static void resize_inside(const crime *at) {
    say_address(at->block + 16);
    (void)fa_realloc(at->manager, at->block + 16, 10);
}
static void free_of_the_stack(const crime *at) {
    char local[64] = "";
    other = local;
    say_address(other);
    fa_free(at->manager, other);
}
static void free_of_malloc(const crime *at) {
    void *volatile foreign = malloc(at->size);
    say_address(foreign);
    fa_free(at->manager, foreign);
}
static void free_of_another_manager(const crime *at) {
    void *block = fa_malloc(hardened_with(0, NULL), at->size);
    say_address(block);
    fa_free(at->manager, block);
}
static void free_of_a_number(const crime *at) {
    other = (void *)(uintptr_t)0x12345670;
    say_address(other);
    fa_free(at->manager, other);
}
static void resize_foreign(const crime *at) {
    void *volatile foreign = malloc(at->size);
    say_address(foreign);
    (void)fa_realloc(at->manager, foreign, 10);
}
static void write_one_behind(const crime *at) {
    say_address(at->block);
    ((volatile unsigned char *)at->block)[at->size] ^= 0xFF;
    fa_free(at->manager, at->block);
}
static void write_a_terminator_behind(const crime *at) {
    say_address(at->block);
    ((volatile unsigned char *)at->block)[at->size] = 0;
    fa_free(at->manager, at->block);
}
static void copy_too_much(const crime *at) {
    static const unsigned char much[200] = "what somebody sent";
    const size_t extra = 150;
    say_address(at->block);
    unsigned char *volatile block = at->block; /* or _FORTIFY_SOURCE of a compiler that sees the size */
    memcpy(block + at->size, much, extra);
    fa_free(at->manager, at->block);
}
static void resize_after_writing_behind(const crime *at) {
    say_address(at->block);
    ((volatile unsigned char *)at->block)[at->size] ^= 0xFF;
    (void)fa_realloc(at->manager, at->block, at->size + 100);
}
static void check_after_writing_behind(const crime *at) {
    say_address(at->block);
    ((volatile unsigned char *)at->block)[at->size] ^= 0xFF;
    (void)fa_manager_check(at->manager);
}
static void end_after_writing_behind(const crime *at) {
    say_address(at->block);
    ((volatile unsigned char *)at->block)[at->size] ^= 0xFF;
    fa_manager_destroy(at->manager);
}
static void write_before(const crime *at) {
    say_address(at->block);
    ((volatile unsigned char *)at->block)[-1] ^= 0xFF;
    fa_free(at->manager, at->block);
}
static void write_far_before(const crime *at) {
    say_address(at->block);
    ((volatile unsigned char *)at->block)[-16] ^= 0xFF;
    fa_free(at->manager, at->block);
}
static void check_after_write_to_freed(const crime *at) {
    say_address(at->block);
    fa_free(at->manager, at->block);
    ((volatile unsigned char *)at->block)[at->size / 2] = 1;
    (void)fa_manager_check(at->manager);
}
static void reuse_after_write_to_freed(const crime *at) {
    say_address(at->block);
    fa_free(at->manager, at->block);
    ((volatile unsigned char *)at->block)[at->size - 1] = 1;
    for (size_t i = 0; i < 20000; i++) fa_free(at->manager, fa_malloc(at->manager, at->size));
}
static void read_freed(const crime *at) {
    say_address(at->block);
    memset(at->block, 0x55, at->size);
    fa_free(at->manager, at->block);
    if (peek_nonzero(at->block, at->size) == 0) fprintf(stderr, "only zeros\n");
}

typedef struct trial {
    void (*misuse)(const crime *);
    size_t size;
} trial;

static int commit_it(void *argument) {
    const trial *self = argument;
    crime at = {hardened_with(self->size % 2 == 0 ? FA_LOCKED : 0, NULL), self->size, NULL};
    at.block = fa_malloc(at.manager, at.size);
    fa_malloc(at.manager, at.size);
    memset(at.block, 0x77, at.size);
    self->misuse(&at);
    return 0;
}

/* What is said after the address, which stands for the @; null: nothing, for it died of a touch. */
static void convict(void (*misuse)(const crime *), size_t size, const char *message) {
    trial self = {misuse, size};
    const child_end end = run_in_child(commit_it, &self);
    char address[32] = "", expected[256];
    CHECK(sscanf(end.errors, "%31s", address) == 1);
    if (message == NULL) {
        snprintf(expected, sizeof expected, "%s\n", address);
    } else {
        const char *place = strchr(message, '@');
        snprintf(expected, sizeof expected, "%s\n%.*s%s%s\n", address, (int)(place - message), message, address, place + 1);
    }
    const bool ended = message == NULL ? end.signal == SIGSEGV || end.signal == SIGBUS : end.signal == SIGABRT;
    if (!ended || strcmp(end.errors, expected) != 0)
        printf("# size %zu, signal %d, said: %s# not: %s", size, end.signal, end.errors, expected);
    CHECK(strcmp(end.errors, expected) == 0);
    CHECK(ended);
}

/* The same words for every size. */
static void convict_all(void (*misuse)(const crime *), const char *message) {
    for (size_t i = 0; i < SIZES; i++) convict(misuse, sizes[i], message);
}

/* Mappings are closed when they are freed: who touches one dies at once. */
static void convict_touch_of_freed(void (*misuse)(const crime *), const char *message) {
    for (size_t i = 0; i < SIZES; i++) convict(misuse, sizes[i], MAPPED(sizes[i]) ? NULL : message);
}

/* A guard page stands where the data ends if its size is a multiple of 16, else a few bytes of canary are between. */
static void convict_overrun(void (*misuse)(const crime *), size_t by, const char *message) {
    for (size_t i = 0; i < SIZES; i++)
        convict(misuse, sizes[i], MAPPED(sizes[i]) && sizes[i] % 16 + by > 16 * (sizes[i] % 16 != 0) ? NULL : message);
}

#define TWICE "fastalloc: free of @, which was freed already (double free), in manager"
#define INSIDE "fastalloc: free of @, which is inside a block of manager"
#define FOREIGN "fastalloc: free of @, which does not belong to manager"
#define OVERRUN(call) "fastalloc: " call " of @, which was overrun at its end, in manager"
#define UNDERRUN "fastalloc: free of @, which was overrun before its beginning, in manager"
#define WRITTEN(call) "fastalloc: " call " of @, which was written to after it was freed, in manager"

TEST(a_double_free_is_named) { convict_all(free_twice, TWICE); }
TEST(a_delayed_double_free_is_named) { convict_all(free_twice_with_others_between, TWICE); }
TEST(a_double_free_much_later_is_named) { convict_all(free_twice_much_later, TWICE); }
TEST(an_interleaved_double_free_is_named) { convict_all(free_twice_with_a_new_one_between, TWICE); }
TEST(a_realloc_of_a_freed_block_is_named) {
    convict_all(resize_what_is_free, "fastalloc: realloc of @, which was freed already (double free), in manager");
}
TEST(an_interior_free_is_named) {
    for (size_t i = 1; i < SIZES; i++) convict(free_inside, sizes[i], INSIDE); /* a block of 1 B has no such place */
}
TEST(an_unaligned_free_is_named) { convict_all(free_unaligned, INSIDE); }
TEST(an_interior_realloc_is_named) {
    for (size_t i = 1; i < SIZES; i++)
        convict(resize_inside, sizes[i], "fastalloc: realloc of @, which is inside a block of manager");
}
TEST(a_free_of_what_is_before_a_block_is_refused) {
    for (size_t i = 0; i < SIZES; i++)
        convict(free_before, sizes[i], MAPPED(sizes[i]) ? INSIDE : "fastalloc: free of @, which is not a live block of manager");
}
TEST(a_free_of_the_stack_is_named) { convict_all(free_of_the_stack, FOREIGN); }
TEST(a_free_of_a_block_of_malloc_is_named) { convict_all(free_of_malloc, FOREIGN); }
TEST(a_free_of_another_managers_block_is_named) { convict_all(free_of_another_manager, FOREIGN); }
TEST(a_free_of_a_number_is_named) { convict_all(free_of_a_number, FOREIGN); }
TEST(a_realloc_of_a_foreign_block_is_named) {
    convict_all(resize_foreign, "fastalloc: realloc of @, which does not belong to manager");
}
TEST(an_overflow_by_one_byte_is_found) { convict_overrun(write_one_behind, 1, OVERRUN("free")); }
TEST(an_overflow_by_a_terminator_is_found) { convict_overrun(write_a_terminator_behind, 1, OVERRUN("free")); }
TEST(an_overflow_by_a_memcpy_is_found) { convict_overrun(copy_too_much, 150, OVERRUN("free")); }
TEST(an_overflow_is_found_by_realloc) { convict_overrun(resize_after_writing_behind, 1, OVERRUN("realloc")); }
TEST(an_overflow_is_found_by_a_check) { convict_overrun(check_after_writing_behind, 1, OVERRUN("check")); }
TEST(an_overflow_is_found_at_the_end) { convict_overrun(end_after_writing_behind, 1, OVERRUN("check")); }
TEST(an_underflow_by_one_byte_is_found) { convict_all(write_before, UNDERRUN); }
TEST(an_underflow_by_16_bytes_is_found) { convict_all(write_far_before, UNDERRUN); }
TEST(a_write_after_free_is_found_by_a_check) { convict_touch_of_freed(check_after_write_to_freed, WRITTEN("check")); }
TEST(a_write_after_free_is_found_before_reuse) { convict_touch_of_freed(reuse_after_write_to_freed, WRITTEN("reuse")); }

TEST(a_freed_block_reads_zero_or_not_at_all) {
    for (size_t i = 0; i < SIZES; i++) {
        trial self = {read_freed, sizes[i]};
        const child_end end = run_in_child(commit_it, &self);
        if (MAPPED(sizes[i])) CHECK(end.signal == SIGSEGV || end.signal == SIGBUS);
        else CHECK(end.exit_status == 0 && strstr(end.errors, "only zeros") != NULL);
    }
}

static int read_nothing(void *block) { return *(volatile unsigned char *)block; }
static int write_nothing(void *block) { return *(volatile unsigned char *)block = 1; }

TEST(a_block_of_no_bytes_cannot_be_touched) {
    SKIP_IF(!fa_os_platform()->traps, "nothing can be closed here");
    fa_manager *manager = hardened_with(0, NULL);
    void *blocks[] = {fa_malloc(manager, 0), fa_calloc(manager, 0, 100), fa_aligned_alloc(manager, 64, 0)};
    for (size_t i = 0; i < 3; i++) {
        CHECK(blocks[i] != NULL && fa_owns(manager, blocks[i]) && fa_usable_size(manager, blocks[i]) == 0);
        child_end end = run_in_child(read_nothing, blocks[i]);
        CHECK(end.signal == SIGSEGV || end.signal == SIGBUS);
        end = run_in_child(write_nothing, blocks[i]);
        CHECK(end.signal == SIGSEGV || end.signal == SIGBUS);
    }
    CHECK(blocks[0] != blocks[1] && blocks[1] != blocks[2]);
    for (size_t i = 0; i < 3; i++) fa_free(manager, blocks[i]);
    CHECK(fa_manager_is_valid(manager) && manager_stats(manager).live == 0);
    fa_manager_destroy(manager);
}

TEST(more_blocks_of_no_bytes_than_there_are_addresses_for) {
    corruption_note note = {0, ""};
    fa_manager *manager = hardened_with(0, &note);
    enum { COUNT = 17000 };
    static unsigned char *blocks[COUNT];
    for (size_t i = 0; i < COUNT; i++) CHECK((blocks[i] = fa_malloc(manager, 0)) != NULL);
    CHECK(fa_manager_is_valid(manager) && manager_stats(manager).live == COUNT && manager_stats(manager).requested == 0);
    blocks[COUNT - 1][0] ^= 0xFF; /* the last ones have a slot, with canaries and no more */
    for (size_t i = 0; i < COUNT; i++) fa_free(manager, blocks[i]);
    CHECK(note.count == 1 && strstr(note.message, "overrun at its end") != NULL);
    fa_free(manager, blocks[0]);
    CHECK(note.count == 2 && strstr(note.message, "double free") != NULL);
    fa_free(manager, blocks[0] + 8); /* in a slot where nothing can be closed; its slab may be gone */
    CHECK(note.count == 3 && strstr(note.message, fa_os_platform()->traps ? "not a live block" : "fastalloc: free of") != NULL);
    CHECK(fa_realloc(manager, fa_malloc(manager, 0), 100) != NULL && manager_stats(manager).live == 1);
    CHECK(fa_manager_is_valid(manager));
    fa_manager_destroy(manager);
}

TEST(absurd_sizes_are_refused_without_harm) {
    fa_manager *manager = hardened_with(0, NULL);
    unsigned char *small = fa_malloc(manager, 100), *large = fa_malloc(manager, MIB);
    fill(small, 100, 1);
    fill(large, MIB, 2);
    const size_t absurd[] = {SIZE_MAX, SIZE_MAX - 1, SIZE_MAX - 4096, SIZE_MAX / 2, TOP_BIT, TOO_MUCH(1), TOO_MUCH(2)};
    for (size_t i = 0; i < sizeof absurd / sizeof *absurd; i++) {
        CHECK(fa_malloc(manager, absurd[i]) == NULL && fa_calloc(manager, absurd[i], 2) == NULL);
        CHECK(fa_aligned_alloc(manager, 2 * MIB, absurd[i]) == NULL);
        CHECK(fa_realloc(manager, small, absurd[i]) == NULL && fa_realloc(manager, large, absurd[i]) == NULL);
    }
    CHECK(fa_calloc(manager, SIZE_MAX / 16 + 2, 16) == NULL);
    CHECK(is_filled(small, 100, 1) && is_filled(large, MIB, 2));
    CHECK(manager_stats(manager).failures == 5 * sizeof absurd / sizeof *absurd + 1 && manager_stats(manager).live == 2);
    CHECK(fa_manager_check(manager) == FA_OK && fa_manager_is_valid(manager));
    fa_manager_destroy(manager);
}

/* ---- a program that goes on ---------------------------------------------------------------------------------------- */

TEST(a_handler_that_returns_leaves_a_whole_manager) {
    for (size_t i = 0; i < SIZES; i++) {
        const size_t size = sizes[i] % 16 == 0 ? sizes[i] - 1 : sizes[i];
        corruption_note note = {0, ""};
        fa_manager *manager = hardened_with(0, &note);
        unsigned char *block = fa_malloc(manager, size), *neighbour = fa_malloc(manager, size);
        fill(neighbour, size, 5);
        block[size] ^= 0xFF;
        CHECK(fa_manager_check(manager) == FA_ERR_CORRUPT && note.count == 1 && is_one_line(note.message));
        unsigned char *moved = fa_realloc(manager, block, 3 * size);
        CHECK(moved != NULL && note.count == 2);
        CHECK(fa_manager_check(manager) == FA_OK && note.count == 2); /* told once, then mended */
        fa_free(manager, moved);
        block = fa_malloc(manager, size);
        block[-3] ^= 0xFF;
        fa_free(manager, block); /* is freed, and zero, all the same */
        CHECK(note.count == 3 && strstr(note.message, "before its beginning") != NULL);
        CHECK(!fa_owns(manager, block) && fa_manager_try_free(manager, block) != FA_OK);
        if (!MAPPED(size)) {
            CHECK(is_zero(block, size));
            block[size - 1] = 9;
            CHECK(fa_manager_check(manager) == FA_ERR_CORRUPT && strstr(note.message, "after it was freed") != NULL);
            block[size - 1] = 0;
        }
        CHECK(is_filled(neighbour, size, 5) && fa_manager_check(manager) == FA_OK && fa_manager_is_valid(manager));
        CHECK(manager_stats(manager).live == 1);
        fa_manager_destroy(manager);
    }
}

/* The slot is handed out clean, and the old owner's bytes are nobody's. */
TEST(what_was_written_after_free_is_gone_when_the_slot_is_used_again) {
    corruption_note note = {0, ""};
    fa_manager *manager = hardened_with(0, &note);
    unsigned char *block = fa_malloc(manager, 100), *found = NULL;
    fa_free(manager, block);
    memset(block, 0x66, 100);
    for (size_t i = 0; i < 100000 && found == NULL; i++) {
        unsigned char *next = fa_malloc(manager, 100);
        CHECK(is_zero(next, 100));
        if (next == block) found = next;
        else fa_free(manager, next);
    }
    CHECK(found != NULL && note.count == 1 && strstr(note.message, "reuse of") != NULL);
    CHECK(fa_manager_check(manager) == FA_OK);
    fa_manager_destroy(manager);
}

TEST(a_write_after_free_is_found_before_a_trim_hides_it) {
    SKIP_IF(!can(try_decommit), NO_DECOMMIT);
    corruption_note note = {0, ""};
    fa_manager *manager = hardened_with(0, &note);
    enum { COUNT = 3000 };
    static unsigned char *blocks[COUNT];
    for (size_t i = 0; i < COUNT; i++) blocks[i] = fa_malloc(manager, 1000);
    for (size_t i = 0; i < COUNT; i++) fa_free(manager, blocks[i]);
    CHECK(fa_manager_trim(manager, SIZE_MAX) == FA_OK && note.count == 0);
    blocks[20][7] = 1; /* all blocks of its slab have left the quarantine by now */
    CHECK(fa_manager_trim(manager, 0) == FA_OK);
    CHECK(note.count == 1 && strstr(note.message, "trim of") != NULL && strstr(note.message, "after it was freed") != NULL);
    CHECK(fa_manager_is_valid(manager) && fa_manager_check(manager) == FA_OK);
    CHECK(fa_manager_try_free(manager, blocks[20]) == FA_ERR_CORRUPT);
    fa_free(manager, blocks[20]);
    CHECK(note.count == 2 && strstr(note.message, "double free") != NULL);
    fa_manager_destroy(manager);
}

/* The quarantine has given them back long since, and some of their slabs wait for nothing but the blocks of a magazine. */
TEST(a_write_after_free_is_found_in_a_slab_that_the_trim_itself_empties) {
    SKIP_IF(!can(try_decommit), NO_DECOMMIT);
    corruption_note note = {0, ""};
    fa_manager *manager = hardened_with(0, &note);
    enum { COUNT = 64, OTHERS = 2500 };
    for (int victim = 0; victim < COUNT; victim += UNDER_VALGRIND ? 16 : 1) {
        unsigned char *blocks[COUNT];
        for (size_t i = 0; i < COUNT; i++) blocks[i] = fa_malloc(manager, 8000);
        for (size_t i = 0; i < COUNT; i++) fa_free(manager, blocks[i]);
        for (size_t i = 0; i < OTHERS; i++) fa_free(manager, fa_malloc(manager, 1));
        note.count = 0;
        blocks[victim][7] = 1;
        CHECK(fa_manager_trim(manager, 0) == FA_OK);
        if (note.count == 0) CHECK(fa_manager_check(manager) == FA_ERR_CORRUPT);
        CHECK(note.count == 1);
        blocks[victim][7] = 0;
    }
    fa_manager_destroy(manager);
}

/* ---- reuse ----------------------------------------------------------------------------------------------------------- */

TEST(a_freed_slot_rests_for_128_frees_at_least) {
    fa_manager *manager = hardened_with(0, NULL);
    for (size_t round = 0; round < 20; round++) {
        void *block = fa_malloc(manager, 64);
        fa_free(manager, block);
        for (size_t i = 0; i < 128; i++) {
            void *next = fa_malloc(manager, 64);
            CHECK(next != block);
            fa_free(manager, next);
        }
    }
    fa_manager_destroy(manager);
}

TEST(a_freed_mapping_rests_while_8_others_are_freed) {
    fa_manager *manager = hardened_with(0, NULL);
    for (size_t round = 0; round < 20; round++) {
        void *block = fa_malloc(manager, 100000);
        fa_free(manager, block);
        for (size_t i = 0; i < 8; i++) {
            void *next = fa_malloc(manager, 100000);
            CHECK(next != block);
            fa_free(manager, next);
        }
    }
    CHECK(manager_stats(manager).cache_hits > 100);
    fa_manager_destroy(manager);
}

TEST(the_order_of_reuse_is_random) {
    size_t same = 0;
    enum { COUNT = 400 };
    ptrdiff_t order[2][COUNT];
    for (size_t run = 0; run < 2; run++) {
        fa_manager *manager = hardened_with(0, NULL);
        const void *first = fa_malloc(manager, 64);
        for (size_t i = 0; i < COUNT; i++) {
            void *block = fa_malloc(manager, 64);
            order[run][i] = offset_from(first, block);
            fa_free(manager, block);
        }
        fa_manager_destroy(manager);
    }
    for (size_t i = 300; i < COUNT; i++) same += order[0][i] == order[1][i];
    CHECK(same < 50); /* of 100 */
}

TEST(canaries_differ_between_managers_and_blocks) {
    unsigned char canary[4][16];
    fa_manager *managers[2] = {hardened_with(0, NULL), hardened_with(0, NULL)};
    for (size_t i = 0; i < 4; i++) memcpy(canary[i], (unsigned char *)fa_malloc(managers[i / 2], 50) - 16, 16);
    for (size_t i = 0; i < 4; i++)
        for (size_t j = 0; j < i; j++) CHECK(memcmp(canary[i], canary[j], 16) != 0);
    fa_manager_destroy(managers[0]);
    fa_manager_destroy(managers[1]);
}

/* ---- what every manager promises ------------------------------------------------------------------------------------ */

TEST(hardened_blocks_have_exactly_the_size_asked_for) {
    fa_manager *manager = hardened_with(0, NULL);
    for (size_t size = 0; size < 40000; size += size < 300 ? 1 : 397) {
        unsigned char *block = fa_malloc(manager, size);
        CHECK(block != NULL && is_aligned(block, 16) && fa_usable_size(manager, block) == size && is_zero(block, size));
        fill(block, size, size);
        CHECK(is_filled(block, size, size));
        if (size % 3 != 0) fa_free(manager, block);
    }
    CHECK(fa_manager_check(manager) == FA_OK && fa_manager_is_valid(manager));
    fa_manager_destroy(manager);
}

TEST(hardened_blocks_are_aligned_up_to_2_mib) {
    fa_manager *manager = hardened_with(0, NULL);
    for (size_t alignment = 1; alignment <= 2 * MIB; alignment *= 2) {
        for (size_t i = 0; i < SIZES; i++) {
            unsigned char *block = fa_aligned_alloc(manager, alignment, sizes[i]);
            CHECK(block != NULL && is_aligned(block, alignment) && fa_usable_size(manager, block) == sizes[i]);
            fill(block, sizes[i], alignment);
            fa_status status = FA_ERR_STALE;
            block = fa_manager_try_realloc(manager, block, alignment, sizes[i] + 1000, &status);
            CHECK(status == FA_OK && is_aligned(block, alignment) && is_filled(block, sizes[i], alignment));
            if (i % 2 == 0) fa_free(manager, block);
        }
        CHECK(fa_manager_check(manager) == FA_OK && fa_manager_is_valid(manager));
    }
    fa_manager_destroy(manager);
}

TEST(hardened_realloc_keeps_the_bytes_from_every_size_to_every_size) {
    fa_manager *manager = hardened_with(0, NULL);
    static const size_t some[] = {0, 1, 16, 17, 24, 100, 104, 105, 3000, 3010, 8168, 8169, 9000, 9100, 100000, 100004, MIB};
    enum { SOME = sizeof some / sizeof *some };
    for (size_t from = 0; from < SOME; from++) {
        for (size_t to = 1; to < SOME; to++) {
            unsigned char *block = fa_malloc(manager, some[from]);
            fill(block, some[from], from);
            block = fa_realloc(manager, block, some[to]);
            const size_t both = some[from] < some[to] ? some[from] : some[to];
            CHECK(block != NULL && is_filled(block, both, from) && is_zero(block + both, some[to] - both));
            CHECK(fa_usable_size(manager, block) == some[to]);
            CHECK(manager_stats(manager).live == 1 && manager_stats(manager).requested == some[to]);
            CHECK(fa_manager_check(manager) == FA_OK && fa_manager_is_valid(manager));
            fa_free(manager, block);
        }
    }
    CHECK(fa_realloc(manager, fa_malloc(manager, 10), 0) == NULL && manager_stats(manager).live == 0);
    fa_manager_destroy(manager);
}

TEST(a_hardened_limit_is_exact) {
    fa_manager_options options;
    fa_manager_options_init(&options);
    options.flags = FA_HARDENED;
    options.limit = 200000;
    fa_manager *manager = manager_with(&options);
    void *block = fa_malloc(manager, 150000);
    CHECK(block != NULL && fa_malloc(manager, 50001) == NULL && fa_realloc(manager, block, 200001) == NULL);
    void *rest = fa_malloc(manager, 50000);
    CHECK(rest != NULL && fa_malloc(manager, 1) == NULL);
    CHECK(fa_malloc(manager, 0) != NULL);
    fa_free(manager, rest);
    block = fa_realloc(manager, block, 200000);
    CHECK(block != NULL && manager_stats(manager).requested == 200000 && manager_stats(manager).failures == 3);
    fa_manager_destroy(manager);
}

TEST(a_closed_hardened_manager_takes_frees_and_shrinks) {
    fa_manager *manager = hardened_with(0, NULL);
    unsigned char *blocks[SIZES];
    for (size_t i = 0; i < SIZES; i++) fill(blocks[i] = fa_malloc(manager, sizes[i]), sizes[i], i);
    fa_manager_close(manager);
    for (size_t i = 0; i < SIZES; i++) {
        CHECK(fa_malloc(manager, sizes[i]) == NULL && fa_realloc(manager, blocks[i], sizes[i] + 1) == NULL);
        const size_t half = sizes[i] / 2 + 1; /* 1 of 1 */
        CHECK(fa_realloc(manager, blocks[i], half) == blocks[i] && is_filled(blocks[i], half, i));
    }
    CHECK(fa_manager_check(manager) == FA_OK && fa_manager_is_valid(manager));
    for (size_t i = 0; i < SIZES; i++) fa_free(manager, blocks[i]);
    CHECK(manager_stats(manager).live == 0 && manager_stats(manager).requested == 0);
    fa_manager_destroy(manager);
}

TEST(the_hardened_cache_keeps_to_its_limit_and_is_trimmed) {
    fa_manager_options options;
    fa_manager_options_init(&options);
    options.flags = FA_HARDENED;
    options.cache_limit = 3 * MIB;
    fa_manager *manager = manager_with(&options);
    void *blocks[16];
    for (size_t i = 0; i < 16; i++) memset(blocks[i] = fa_malloc(manager, (i + 1) * 200 * KIB), 1, 200 * KIB);
    for (size_t i = 0; i < 16; i++) {
        fa_free(manager, blocks[i]);
        CHECK(manager_stats(manager).cached <= 3 * MIB && fa_manager_is_valid(manager));
    }
    const bool addresses_rest = fa_os_platform()->traps && fa_os_platform()->lazy_commit;
    CHECK(manager_stats(manager).cached > 0 && (!addresses_rest || manager_stats(manager).reserved > 10 * MIB));
    CHECK(trim_is_fine(fa_manager_trim(manager, 0)) && manager_stats(manager).cached == 0);
    for (size_t i = 0; i < 16; i++) CHECK(fa_manager_try_free(manager, blocks[i]) != FA_OK);
    CHECK(fa_manager_is_valid(manager));
    uint64_t used_now = 9;
    CHECK(fa_manager_restart_peak(manager, &used_now) > 20 * MIB && used_now == 0 && manager_stats(manager).peak == 0);
    fa_manager_destroy(manager);
}

TEST(only_hardened_managers_are_checked) {
    fa_manager *manager = manager_with(NULL);
    CHECK(fa_manager_check(manager) == FA_ERR_UNSUPPORTED);
    fa_manager_destroy(manager);
}

int main(int argc, char **argv) { return tap_main(argc, argv); }
