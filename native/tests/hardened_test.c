/*
 * hardened_test.c - the hardened global heap, linked: what it finds, in which words, and that it finds nothing where nothing is
 *
 * Each misuse runs in a forked child, for a small, a medium and a large block.
 */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>

#include "child.h"
#include "faulty_os.h"
#include "heap/global_parts.h"
#include "support.h"

#define SLOW (UNDER_SANITIZER || UNDER_VALGRIND)

/* Not a multiple of 16, so that there is room between the end of a large one and its closed page; and multiples. The last is
 * closed itself when it is freed. */
static const size_t sizes[] = {24, 100, 5000, 32000, 100001, 3 * MIB + 5, 5 * MIB + 5};
static const size_t even_sizes[] = {100000, 3 * MIB, 5 * MIB};
#define COUNT(array) (sizeof(array) / sizeof(array)[0])

static unsigned char *got(void *block) {
    CHECK(block != NULL);
    return block;
}

/* ---- misuse ---------------------------------------------------------------------------------------------------------- */

/* As the messages print it, which is not how every C library prints a pointer. */
static void say_address(const void *pointer) { fprintf(stderr, "0x%" PRIxPTR "\n", (uintptr_t)pointer); }

typedef struct misuse {
    void (*run)(size_t size);
    size_t size;
} misuse;

/* Nothing that the compiler could see through. */
static void *volatile hidden;
static unsigned char *same(void *block) {
    hidden = block;
    return hidden;
}

/* A block that the test is going to misuse. */
static unsigned char *victim(size_t size) {
    unsigned char *block = got(fa_global_alloc(size));
    memset(block, 'a', size);
    say_address(block);
    return same(block);
}

static void double_free(size_t size) {
    unsigned char *block = victim(size);
    fa_global_free(block);
    fa_global_free(block);
}

static void double_free_later(size_t size) {
    unsigned char *block = victim(size);
    fa_global_free(block);
    for (int i = 0; i < 4; i++) fa_global_free(got(fa_global_alloc(size)));
    fa_global_free(block);
}

static void double_free_between(size_t size) {
    unsigned char *other = got(fa_global_alloc(size)), *block = victim(size);
    fa_global_free(block);
    fa_global_free(other);
    fa_global_free(block);
}

static void realloc_after_free(size_t size) {
    unsigned char *block = victim(size);
    fa_global_free(block);
    (void)fa_global_realloc(block, size + 1);
}

static void size_after_free(size_t size) {
    unsigned char *block = victim(size);
    fa_global_free(block);
    (void)fa_global_usable_size(block);
}

static void interior_free(size_t size) {
    unsigned char *block = got(fa_global_alloc(size));
    say_address(block + 16);
    fa_global_free(same(block + 16));
}

static void interior_realloc(size_t size) {
    unsigned char *block = got(fa_global_alloc(size));
    say_address(block + size / 2);
    (void)fa_global_realloc(same(block + size / 2), 10);
}

static void unaligned_free(size_t size) {
    unsigned char *block = got(fa_global_alloc(size));
    say_address(block + 1);
    fa_global_free(same(block + 1));
}

static void stack_free(size_t size) {
    unsigned char local[16] = {(unsigned char)size};
    say_address(local);
    fa_global_free(same(local));
}

static void static_realloc(size_t size) {
    static unsigned char memory[64];
    say_address(memory);
    (void)fa_global_realloc(same(memory), size);
}

static void wrong_size(size_t size) {
    unsigned char *block = victim(size);
    fa_global_free_sized(block, size + 1);
}

static void overflow_by_a_byte(size_t size) {
    unsigned char *block = victim(size);
    block[size] ^= 1;
    fa_global_free(block);
}

static void overflow_with_a_terminator(size_t size) {
    unsigned char *block = victim(size);
    block[size] = 0;
    fa_global_free(block);
}

static void overflow_and_realloc(size_t size) {
    unsigned char *block = victim(size);
    block[size] ^= 0x80;
    (void)fa_global_realloc(block, size + 1);
}

static void underflow_by_a_byte(size_t size) {
    unsigned char *block = victim(size);
    block[-1] ^= 1;
    fa_global_free(block);
}

static void underflow_by_words(size_t size) {
    unsigned char *block = victim(size);
    memset(same(block - 16), 0, 16);
    fa_global_free(block);
}

static void overflow_never_freed(size_t size) {
    unsigned char *block = victim(size);
    block[size] ^= 1;
    fa_global_check("check at exit");
}

static void write_after_free(size_t size) {
    unsigned char *block = victim(size);
    fa_global_free(block);
    block[size / 2] = 1;
    fa_global_check("check at exit");
}

static void write_after_free_and_reuse(size_t size) {
    unsigned char *block = victim(size);
    fa_global_free(block);
    block[0] = 1;
    for (int i = 0; i < 100000; i++) fa_global_free(got(fa_global_alloc(size)));
}

static int in_child(void *argument) {
    const misuse *what = argument;
    what->run(what->size);
    return 0;
}

/* The child first prints the address it will misuse. */
static void dies(void (*run)(size_t), size_t size, const char *function, const char *words) {
    misuse what = {run, size};
    const child_end end = run_in_child(in_child, &what);
    char address[32] = "", expected[512];
    CHECK(sscanf(end.errors, "%31s", address) == 1);
    snprintf(expected, sizeof expected, "%s\nfastalloc: %s of %s, which %s malloc\n", address, function, address, words);
    if (strcmp(end.errors, expected) != 0) printf("# %zu said: %s# not: %s", size, end.errors, expected);
    CHECK(strcmp(end.errors, expected) == 0);
    CHECK(end.signal == SIGABRT);
}

static void all_die(void (*run)(size_t), const char *function, const char *words) {
    for (unsigned i = 0; i < COUNT(sizes); i++) dies(run, sizes[i], function, words);
}

#define TWICE "was freed already (double free), in"
#define INSIDE "is inside a block of"
#define FOREIGN "does not belong to"
#define OVER "was overrun at its end, in"
#define UNDER "was overrun before its beginning, in"

TEST(a_double_free_dies) { all_die(double_free, "free", TWICE); }
TEST(a_double_free_after_others_dies) { all_die(double_free_later, "free", TWICE); }
TEST(a_double_free_with_another_between_dies) { all_die(double_free_between, "free", TWICE); }
TEST(a_realloc_of_a_freed_block_dies) { all_die(realloc_after_free, "realloc", TWICE); }
TEST(asking_for_the_size_of_a_freed_block_dies) { all_die(size_after_free, "malloc_usable_size", TWICE); }
TEST(a_free_inside_a_block_dies) { all_die(interior_free, "free", INSIDE); }
TEST(a_realloc_inside_a_block_dies) { all_die(interior_realloc, "realloc", INSIDE); }
TEST(an_unaligned_free_dies) { all_die(unaligned_free, "free", INSIDE); }
TEST(a_free_of_the_stack_dies) { all_die(stack_free, "free", FOREIGN); }
TEST(a_realloc_of_a_variable_dies) { all_die(static_realloc, "realloc", FOREIGN); }
TEST(a_free_with_another_size_dies) { all_die(wrong_size, "free", "has another size, in"); }
TEST(an_overflow_by_a_byte_dies) { all_die(overflow_by_a_byte, "free", OVER); }
TEST(a_terminator_too_many_dies) { all_die(overflow_with_a_terminator, "free", OVER); }
TEST(an_overflow_is_found_by_realloc) { all_die(overflow_and_realloc, "realloc", OVER); }
TEST(an_underflow_by_a_byte_dies) { all_die(underflow_by_a_byte, "free", UNDER); }
TEST(an_underflow_by_words_dies) { all_die(underflow_by_words, "free", UNDER); }
TEST(an_overflow_of_a_block_that_is_never_freed_is_found_at_exit) { all_die(overflow_never_freed, "check at exit", OVER); }

TEST(a_write_after_free_is_found_at_exit) {
    for (unsigned i = 0; i < 6; i++) dies(write_after_free, sizes[i], "check at exit", "was written to after it was freed, in");
}
TEST(a_write_after_free_is_found_at_reuse) {
    for (unsigned i = 0; i < 6; i++) dies(write_after_free_and_reuse, sizes[i], "reuse", "was written to after it was freed, in");
}

/* A block of no bytes: whoever writes to it overruns it. */
static void write_to_nothing(size_t size) {
    unsigned char *block = victim(size);
    block[0] ^= 1;
    fa_global_free(block);
}
TEST(a_write_to_a_block_of_no_bytes_dies) { dies(write_to_nothing, 0, "free", OVER); }

/* ---- pages that are closed --------------------------------------------------------------------------------------------- */

static void explain(int number, siginfo_t *what, void *context) {
    (void)number, (void)context;
    (void)fa_global_explain(what->si_addr);
    _exit(77);
}

static void explained(void) {
    struct sigaction action = {.sa_sigaction = explain, .sa_flags = SA_SIGINFO};
    CHECK(sigaction(SIGSEGV, &action, NULL) == 0);
}

static void touch_behind(size_t size) {
    explained();
    unsigned char *block = got(fa_global_alloc(size));
    say_address(block + size);
    same(block)[size] = 1;
}

static void touch_before(size_t size) {
    explained();
    const size_t page = fa_os_platform()->page_size();
    unsigned char *block = got(fa_global_alloc(size)), *guard = block - ((uintptr_t)block - 16) % page - 17;
    say_address(guard);
    same(guard)[0] = 1;
}

static void read_freed(size_t size) {
    explained();
    unsigned char *block = victim(size);
    fa_global_free(block);
    hidden = (void *)(uintptr_t)same(block)[0];
}

static void touch_null(size_t size) {
    explained();
    say_address((void *)8);
    same((void *)(uintptr_t)8)[0] = (unsigned char)size;
}

TEST(what_lies_around_a_large_block_is_closed) {
    for (unsigned i = 0; i < COUNT(even_sizes); i++) {
        dies(touch_behind, even_sizes[i], "access", "is past the end of a block of");
        dies(touch_before, even_sizes[i], "access", "is before the beginning of a block of");
    }
}
TEST(what_was_a_large_block_is_closed) { dies(read_freed, 5 * MIB, "access", "is in a freed block of"); }

/* Pages are given back before anybody else had the block. */
static void write_after_free_and_trim(size_t size) {
    unsigned char *block = victim(size);
    fa_global_free(block);
    block[size - 1] = 1;
    (void)fa_global_trim(true);
}
TEST(a_write_after_free_is_found_when_memory_is_given_back) {
    for (unsigned i = 0; i < 6; i++)
        dies(write_after_free_and_trim, sizes[i], "reuse", "was written to after it was freed, in");
}

/* A mapping serves smaller and larger blocks, with and without room to grow on: what was freed reads zero, and so does what is new. */
TEST(a_waiting_mapping_serves_other_sizes) {
    static const size_t lengths[] = {200000, 190000, 199999, 130000, 195000, 120000, 5 * MIB, 4700000, 3 * MIB, 2900000};
    unsigned char *held[COUNT(lengths)] = {NULL};
    for (unsigned i = 0; i < (SLOW ? 60 : 600); i++) {
        const unsigned at = i * 7 % COUNT(lengths);
        const size_t size = lengths[at], larger = size + size / (2 + i % 3) + i;
        fa_global_free(held[at]);
        held[at] = got(fa_global_alloc(size));
        CHECK(is_zero(held[at], size));
        memset(held[at], 'x', size);
        if (i % 2 == 0) continue;
        held[at] = got(fa_global_realloc(held[at], larger));
        CHECK(held[at][0] == 'x' && held[at][size - 1] == 'x' && is_zero(held[at] + size, larger - size));
        memset(held[at], 'y', larger);
        if (i % 4 == 1) held[at] = got(fa_global_realloc(held[at], size));
        fa_global_check("check");
    }
    for (unsigned i = 0; i < COUNT(lengths); i++) fa_global_free(held[i]);
    fa_global_check("check");
    CHECK(fa_global_is_valid());
}

TEST(what_is_nobodys_is_not_explained) {
    SKIP_IF(UNDER_MEMCHECK, "valgrind has its own word to say about that");
    misuse what = {touch_null, 1};
    const child_end end = run_in_child(in_child, &what);
    CHECK(end.exit_status == 77 && strcmp(end.errors, "0x8\n") == 0);
}

/* ---- no misuse ---------------------------------------------------------------------------------------------------------- */

static fa_global_stats stats_now(void) {
    fa_global_stats stats;
    fa_global_get_stats(&stats);
    return stats;
}

TEST(blocks_are_zero_and_exactly_as_large_as_asked_for) {
    for (size_t size = 0; size < (SLOW ? 70000 : 400000); size = size < 300 ? size + 1 : size * 9 / 8) {
        for (int twice = 0; twice < 2; twice++) {
            unsigned char *block = got(fa_global_alloc(size));
            CHECK(is_zero(block, size) && fa_global_usable_size(block) == size && fa_global_owns(block));
            fill(block, size, size);
            CHECK(is_filled(block, size, size));
            fa_global_free_sized(block, size);
            CHECK(!fa_global_owns(block));
        }
    }
    CHECK(fa_global_is_valid());
}

TEST(alignments_are_kept) {
    for (size_t alignment = 1; alignment <= 4 * MIB; alignment *= 2) {
        for (size_t size = 0; size < 200000; size = size * 3 + 5) {
            unsigned char *block = got(fa_global_alloc_aligned(alignment, size));
            CHECK((uintptr_t)block % alignment == 0 && is_zero(block, size));
            CHECK(fa_global_usable_size(block) == size);
            memset(block, 1, size);
            fa_global_free(block);
        }
    }
    (void)fa_global_trim(true);
    CHECK(fa_global_is_valid());
}

TEST(what_no_process_gets_is_refused) {
    errno = 0;
    CHECK(fa_global_alloc(SIZE_MAX) == NULL && errno == ENOMEM);
    CHECK(fa_global_alloc((size_t)PTRDIFF_MAX) == NULL && fa_global_alloc(TOO_MUCH(2)) == NULL);
    CHECK(fa_global_alloc_zeroed(SIZE_MAX / 2, 4) == NULL);
    CHECK(fa_global_alloc_aligned(MIB, SIZE_MAX - MIB) == NULL && fa_global_alloc_aligned(TOP_BIT / 2, 1) == NULL);
    unsigned char *block = got(fa_global_alloc(100));
    CHECK(fa_global_realloc(block, SIZE_MAX) == NULL && fa_global_realloc(block, (size_t)PTRDIFF_MAX) == NULL);
    fa_global_free(block);
    block = got(fa_global_alloc(MIB));
    CHECK(fa_global_realloc(block, SIZE_MAX) == NULL && fa_global_realloc(block, (size_t)PTRDIFF_MAX) == NULL);
    fa_global_free(block);
    CHECK(fa_global_is_valid());
}

TEST(a_freed_block_waits_for_others) {
    for (unsigned i = 0; i < 9; i++) {
        if (i % 3 == 2) (void)fa_global_trim(true); /* a thread's store is empty then, whatever was in it */
        unsigned char *first = got(fa_global_alloc(sizes[i % 3])), *other;
        const uint32_t waiting = fa_the_heap.central[fa_global_class(sizes[i % 3] + 8)].slots / 4;
        fa_global_free(first);
        for (uint32_t n = 0; n < waiting; n++) {
            other = got(fa_global_alloc(sizes[i % 3]));
            CHECK(other != first);
            fa_global_free(other);
        }
    }
}

TEST(nobody_knows_which_block_is_next) {
    enum { BLOCKS = 64 };
    unsigned char *block[BLOCKS];
    unsigned ascending = 0;
    for (int i = 0; i < BLOCKS; i++) block[i] = got(fa_global_alloc(48));
    for (int i = 1; i < BLOCKS; i++) ascending += block[i] > block[i - 1];
    CHECK(ascending > BLOCKS / 8 && ascending < BLOCKS - BLOCKS / 8);
    for (int i = 0; i < BLOCKS; i++) fa_global_free(block[i]);
}

/* What a block holds survives; what is new in it is zero. */
TEST(every_size_becomes_every_other) {
    static const size_t steps[] = {0,     1,     20,    22,    23,     24,     100,    1000,    1016,    1017,  8000,
                                   32760, 32761, 40000, 40016, 131072, 140000, 300000, 1 << 20, 3 << 20, 50000, 33000};
    for (unsigned i = 1; i < COUNT(steps); i++) {
        for (unsigned j = 1; j < COUNT(steps); j++) {
            unsigned char *block = got(fa_global_alloc(steps[i]));
            fill(block, steps[i], i);
            block = got(fa_global_realloc(block, steps[j]));
            const size_t kept = fa_min(steps[i], steps[j]);
            CHECK(is_filled(block, fa_align_down(kept, 8), i) && is_zero(block + kept, steps[j] - kept));
            CHECK(fa_global_usable_size(block) == steps[j]);
            fill(block, steps[j], j);
            fa_global_check("check");
            fa_global_free_sized(block, steps[j]);
        }
    }
    CHECK(fa_global_is_valid());
}

TEST(a_block_that_grows_by_little_is_not_copied_each_time) {
    const size_t step = 4096, end = SLOW ? 4 * MIB : 32 * MIB;
    unsigned char *block = got(fa_global_alloc(step));
    const uint64_t moved = stats_now().moved;
    for (size_t size = step; size < end; size += step) {
        block[size - 1] = (unsigned char)(size >> 12);
        block = got(fa_global_realloc(block, size + step));
        CHECK(block[size - 1] == (unsigned char)(size >> 12));
    }
    CHECK(stats_now().moved - moved < 20);
    fa_global_free(block);
}

TEST(a_large_block_that_nobody_touched_stays_out_of_memory) {
    uint64_t resident = 0;
    unsigned char *block = got(fa_global_alloc(64 * MIB));
    fa_global_free(block);
    CHECK(fa_os_platform()->resident((void *)fa_align_down((uintptr_t)block, 4096), 64 * MIB, &resident) == 0);
    CHECK(resident < MIB);
}

TEST(freed_memory_is_given_back) {
    enum { BLOCKS = 2000 };
    static unsigned char *block[BLOCKS];
    fa_global_free(got(fa_global_alloc(1))); /* this thread has a heap now */
    (void)fa_global_trim(true);
    const fa_global_stats before = stats_now();
    for (int i = 0; i < BLOCKS; i++) memset(block[i] = got(fa_global_alloc(1000)), 1, 1000);
    CHECK(stats_now().live == before.live + BLOCKS && stats_now().resident >= before.resident + BLOCKS * 1000);
    for (int i = 0; i < BLOCKS; i++) fa_global_free(block[i]);
    fa_global_free(got(fa_global_alloc(2 * MIB)));
    CHECK(stats_now().live == before.live);
    CHECK(fa_global_trim(true) && stats_now().resident <= before.resident + 64 * KIB);
    CHECK(fa_global_is_valid());
}

/* ---- threads and fork ----------------------------------------------------------------------------------------------------- */

enum { THREADS = 4, SHARED = 256 };
static _Atomic(unsigned char *) shared[SHARED];

static void end_block(unsigned char *block) {
    if (block == NULL) return;
    size_t size = fa_global_usable_size(block), filled;
    memcpy(&filled, block, sizeof filled);
    CHECK(filled == size && is_filled(block + 8, size - 8, size));
    fa_global_free_sized(block, size);
}

static void *exchange(void *number) {
    uint64_t random = (uintptr_t)number * 77 + 5;
    for (int i = 0; i < (SLOW ? 5000 : 60000); i++) {
        random = random * 6364136223846793005U + 1442695040888963407U;
        const unsigned draw = (unsigned)(random >> 33);
        const size_t size = 8 + (draw % 64 == 0 ? draw % 100000 : draw % 500);
        unsigned char *block = got(fa_global_alloc(size));
        CHECK(is_zero(block, size));
        memcpy(block, &size, sizeof size);
        fill(block + 8, size - 8, size);
        end_block(atomic_exchange(&shared[draw / 64 % SHARED], block));
    }
    return NULL;
}

static void exchange_on_threads(void) {
    pthread_t thread[THREADS];
    for (uintptr_t i = 0; i < THREADS; i++) CHECK(pthread_create(&thread[i], NULL, exchange, (void *)i) == 0);
    for (unsigned i = 0; i < THREADS; i++) CHECK(pthread_join(thread[i], NULL) == 0);
}

static void end_shared(void) {
    for (unsigned i = 0; i < SHARED; i++) end_block(atomic_exchange(&shared[i], NULL));
}

TEST(blocks_change_hands) {
    const uint64_t live = stats_now().live;
    exchange_on_threads();
    end_shared();
    fa_global_check("check");
    CHECK(stats_now().live == live && fa_global_is_valid());
}

/* Neighbours in a new span are armed at the same time. */
static void *use_new_spans(void *unused) {
    enum { BLOCKS = 2000 };
    unsigned char *block[BLOCKS];
    for (int round = 0; round < (SLOW ? 2 : 40); round++) {
        for (int i = 0; i < BLOCKS; i++) block[i] = got(fa_global_alloc(24));
        for (int i = 0; i < BLOCKS; i++) fa_global_free(block[i]);
    }
    return unused;
}

TEST(neighbours_are_armed_at_the_same_time) {
    for (int round = 0; round < (SLOW ? 2 : 20); round++) {
        pthread_t thread[THREADS];
        for (unsigned i = 0; i < THREADS; i++) CHECK(pthread_create(&thread[i], NULL, use_new_spans, NULL) == 0);
        for (unsigned i = 0; i < THREADS; i++) CHECK(pthread_join(thread[i], NULL) == 0);
        (void)fa_global_trim(true);
    }
    CHECK(fa_global_is_valid());
}

/* A process may end, and look at all blocks, while its threads give theirs other sizes. */
static atomic_bool resized;
static void *resize_blocks(void *unused) {
    unsigned char *small = got(fa_global_alloc(24)), *large = got(fa_global_alloc(200000));
    for (size_t i = 0; i < (SLOW ? 1000 : 5000); i++) {
        small = got(fa_global_realloc(small, 24 + i * 7 % 17));
        large = got(fa_global_realloc(large, i % 256 == 0 ? 3 * MIB : 150000 + i * 7919 % 100000));
    }
    fa_global_free(small);
    fa_global_free(large);
    resized = true;
    return unused;
}

TEST(blocks_may_be_looked_at_while_they_are_resized) {
    SKIP_IF(UNDER_TSAN, "small blocks are looked at without a lock, and again if they look wrong");
    pthread_t thread;
    resized = false;
    CHECK(pthread_create(&thread, NULL, resize_blocks, NULL) == 0);
    while (!resized) fa_global_check("check at exit");
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(fa_global_is_valid());
}

/* Nor need the heap be there: a thread begins it. */
static void *begin_the_heap(void *has_begun) {
    fa_global_start(fa_os_platform());
    atomic_store((atomic_bool *)has_begun, true);
    return NULL;
}

static int look_while_the_heap_begins(void *unused) {
    (void)unused;
    static atomic_bool has_begun;
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, begin_the_heap, &has_begun) == 0);
    while (!has_begun) {
        fa_global_check("check at exit");
        CHECK(!fa_global_explain(&thread) && !fa_global_owns(&thread));
    }
    CHECK(pthread_join(thread, NULL) == 0);
    return 0;
}

TEST(the_heap_may_be_looked_at_while_it_begins) {
    SKIP_IF(fastalloc_malloc_stats.started, "the heap has begun: run this test alone");
    const int rounds = UNDER_VALGRIND ? 3 : SLOW ? 100 : 1000;
    for (int i = 0; i < rounds; i++) passes_in_child(look_while_the_heap_begins, NULL);
}

static int exchange_in_child(void *unused) {
    (void)unused;
    if (!UNDER_TSAN) exchange_on_threads(); /* which cannot make threads in a child of a program that had some */
    end_shared();
    fa_global_check("check at exit");
    return fa_global_is_valid() ? 0 : 1;
}

TEST(a_child_of_a_busy_process_is_well) {
    SKIP_IF(UNDER_TSAN, "ThreadSanitizer ends children of programs with threads");
    pthread_t thread[THREADS];
    for (int round = 0; round < (SLOW ? 3 : 20); round++) {
        for (uintptr_t i = 0; i < THREADS; i++) CHECK(pthread_create(&thread[i], NULL, exchange, (void *)i) == 0);
        fa_global_fork_prepare();
        const pid_t child = fork();
        if (child == 0) {
            fa_global_fork_child();
            /* What was on its way between two hands is lost, so only the heap itself is looked at. */
            for (unsigned i = 0; i < SHARED; i++) shared[i] = NULL;
            for (int i = 0; i < 1000; i++) fa_global_free(got(fa_global_alloc((size_t)i * 37)));
            fa_global_check("check at exit");
            _exit(tap_failed ? 99 : 0);
        }
        fa_global_fork_parent();
        int status = 1;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
        for (unsigned i = 0; i < THREADS; i++) CHECK(pthread_join(thread[i], NULL) == 0);
    }
    end_shared();
    misuse unused = {NULL, 0};
    CHECK(run_in_child(exchange_in_child, &unused).exit_status == 0);
    CHECK(fa_global_is_valid());
}

/* Two threads free one block: whoever is second is told, at once. */
static pthread_barrier_t together;
static void *free_together(void *block) {
    pthread_barrier_wait(&together);
    fa_global_free(block);
    return NULL;
}

static void race(size_t size) {
    pthread_t thread[2];
    unsigned char *block = victim(size);
    CHECK(pthread_barrier_init(&together, NULL, 2) == 0);
    for (int i = 0; i < 2; i++) CHECK(pthread_create(&thread[i], NULL, free_together, block) == 0);
    for (int i = 0; i < 2; i++) CHECK(pthread_join(thread[i], NULL) == 0);
}

TEST(two_threads_that_free_one_block_die) {
    SKIP_IF(UNDER_TSAN, "ThreadSanitizer has its own word to say about that");
    for (int i = 0; i < (SLOW ? 3 : 20); i++) dies(race, 100, "free", TWICE);
}

/* ---- when the system refuses -------------------------------------------------------------------------------------------------- */

static unsigned char *try_block(size_t size, uint64_t seed) {
    errno = 0;
    unsigned char *block = fa_global_alloc(size);
    if (block == NULL) CHECK(errno == ENOMEM);
    else CHECK(is_zero(block, size));
    if (block != NULL) fill(block, size, seed);
    return block;
}

static int use_heap(void *unused) {
    (void)unused;
    const fa_os os = faulty_os(fa_os_platform()->lazy_commit);
    fa_global_start(&os);
    CHECK(fa_global_has_secret() == (fault.kind != RANDOM || fault.after > 0));
    enum { BLOCKS = 40 };
    unsigned char *block[BLOCKS];
    size_t size[BLOCKS];
    for (int round = 0; round < 2; round++) {
        for (unsigned i = 0; i < BLOCKS; i++) {
            size[i] = i < 20 ? 1 + i * 97 : i < 36 ? 20000 + i * 3001 : ((size_t)i << 14) + i;
            block[i] = try_block(size[i], i);
        }
        for (unsigned i = 0; i < BLOCKS; i++) {
            if (block[i] == NULL) continue;
            const size_t other = i % 3 == 0 ? size[i] * 3 / 4 + 1 : size[i] * 5 / 2;
            unsigned char *moved = fa_global_realloc(block[i], other);
            if (moved != NULL) {
                const size_t kept = fa_min(size[i], other);
                CHECK(is_zero(moved + kept, other - kept) && fa_global_usable_size(moved) == other);
                size[i] = kept;
                block[i] = moved;
            }
            CHECK(is_filled(block[i], fa_align_down(size[i], 8), i));
        }
        fa_global_check("check");
        CHECK(fa_global_is_valid());
        for (unsigned i = 0; i < BLOCKS; i++) fa_global_free(block[i]);
        (void)fa_global_trim(round == 0);
    }
    CHECK(fa_global_is_valid());
    CHECK(stats_now().live == 0);
    return scenario_end();
}

/* The records of large blocks, and what is asked of the system for those that grow by moving, with pages of 64 KiB. */
static int use_large_pages(void *unused) {
    (void)unused;
    const fa_os os = faulty_os(fa_os_platform()->lazy_commit);
    no_fault();
    fault.page = 64 * KIB;
    fa_global_start(&os);
    enum { BLOCKS = 1500 }; /* more than the first step of records has room for */
    static unsigned char *block[BLOCKS];
    for (unsigned i = 0; i < BLOCKS; i++) {
        block[i] = fa_global_alloc(40000 + i);
        CHECK(block[i] != NULL);
        block[i][0] = (unsigned char)i;
    }
    for (unsigned i = 0; i < 10; i++) CHECK((block[i] = fa_global_realloc(block[i], 3 * MIB + i * 100000)) != NULL);
    for (unsigned i = 0; i < BLOCKS; i++) {
        CHECK(block[i][0] == (unsigned char)i);
        fa_global_free(block[i]);
    }
    (void)fa_global_trim(true);
    CHECK(fa_global_is_valid() && stats_now().live == 0);
    return 0;
}

TEST(a_page_may_have_64_kib) {
    SKIP_IF(fastalloc_malloc_stats.started, "the heap has begun: run this test alone");
    passes_in_child(use_large_pages, NULL);
}

/* More pages belong to such a block than to what it grows to: they must not be moved where there is no room for them. */
static int grow_an_aligned_block(void *unused) {
    (void)unused;
    const fa_os os = faulty_os(fa_os_platform()->lazy_commit);
    no_fault();
    fa_global_start(&os);
    for (size_t alignment = MIB; alignment <= 8 * MIB; alignment *= 2) {
        for (size_t size = 100; size < MIB; size *= 3) {
            unsigned char *neighbour = got(fa_global_alloc(100000)), *block = got(fa_global_alloc_aligned(alignment, size));
            fill(neighbour, 100000, 1);
            fill(block, size, 2);
            block = got(fa_global_realloc(block, size * 2));
            CHECK(is_filled(block, fa_align_down(size, 8), 2) && is_filled(neighbour, 100000, 1));
            fa_global_check("check");
            fa_global_free(block);
        }
    }
    CHECK(fa_global_is_valid());
    return 0;
}

TEST(an_aligned_block_grows_where_there_is_room) {
    SKIP_IF(fastalloc_malloc_stats.started, "the heap has begun: run this test alone");
    passes_in_child(grow_an_aligned_block, NULL);
}

TEST(freed_large_blocks_stay_counted_while_small_blocks_grow) {
    enum { BLOCKS = 64 };
    static unsigned char *blocks[BLOCKS];
    fa_global_free(got(fa_global_alloc(3 * MIB)));
    const size_t cached = FA_COUNTED(large_cached), live = FA_COUNTED(pages_live);
    CHECK(cached >= 3 * MIB);
    for (size_t i = 0; i < BLOCKS; i++) blocks[i] = got(fa_global_alloc(8000));
    CHECK(FA_COUNTED(pages_live) > live && FA_COUNTED(large_cached) == cached);
    CHECK(fa_global_is_valid());
    for (size_t i = 0; i < BLOCKS; i++) fa_global_free(blocks[i]);
}

TEST(every_fault_of_the_operating_system_is_survived) {
    SKIP_IF(fastalloc_malloc_stats.started, "the heap has begun: run this test alone");
    CHECK(survive_every_fault(use_heap) >= 9);
}

int main(int argc, char **argv) {
    fa_global_options options;
    fa_global_options_init(&options);
    options.hardened = true;
    options.decay = 0;
    fa_global_configure(&options);
    return tap_main(argc, argv);
}
