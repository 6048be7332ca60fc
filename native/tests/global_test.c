/*
 * global_test.c - the heap behind libfastalloc-malloc.so, linked: its functions by their own names, also under sanitizers
 *
 * The first test needs a process in which nothing was allocated yet, for the operating system is chosen then: it
 * forks a child for every fault, and its own process stays as it is.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <time.h>

#include "child.h"
#include "faulty_os.h"
#include "heap/global_parts.h"
#include "support.h"

#define SLOW (UNDER_SANITIZER || UNDER_VALGRIND)

static fa_global_stats stats_now(void) {
    fa_global_stats stats;
    fa_global_get_stats(&stats);
    return stats;
}

static fa_class_stats class_now(size_t size) {
    fa_class_stats stats;
    fa_global_get_class_stats(fa_global_class(size), &stats);
    return stats;
}

static void *got(void *block) {
    CHECK(block != NULL);
    return block;
}

static void sleep_for(unsigned milliseconds) {
    const struct timespec time = {milliseconds / 1000, (long)(milliseconds % 1000) * 1000000};
    nanosleep(&time, NULL);
}

static void with_decay(uint32_t milliseconds) {
    fa_global_options options;
    fa_global_options_init(&options);
    options.decay = milliseconds;
    fa_global_configure(&options);
}

static void *none(void *argument) { return argument; }

/* A heap for this thread exists, and nothing that another test has left, so that later figures are of the test's own doing. */
static void begin(void) {
    fa_global_options options;
    fa_global_options_init(&options);
    fa_global_configure(&options);
    fa_global_free(got(fa_global_alloc(1)));
    (void)fa_global_trim(true);
}

/* Runs on `count` threads at once, with their numbers. */
static void on_threads(unsigned count, void *(*run)(void *)) {
    pthread_t thread[64];
    CHECK(count <= 64);
    for (uintptr_t i = 0; i < count; i++) CHECK(pthread_create(&thread[i], NULL, run, (void *)i) == 0);
    for (unsigned i = 0; i < count; i++) CHECK(pthread_join(thread[i], NULL) == 0);
}

/* ---- every fault, first ------------------------------------------------------------------------------------------- */

/* A block of the size, or null as documented. */
static unsigned char *try_block(size_t size, uint64_t seed) {
    errno = 0;
    unsigned char *block = fa_global_alloc(size);
    if (block == NULL) CHECK(errno == ENOMEM);
    else fill(block, size, seed);
    return block;
}

static void *allocate_some(void *unused) {
    for (size_t size = 1; size < 100000; size = size * 3 + 1) fa_global_free(try_block(size, size));
    return unused;
}

static int use_heap(void *unused) {
    (void)unused;
    const fa_os os = faulty_os(fa_os_platform()->lazy_commit);
    fa_global_start(&os);
    enum { COUNT = 54 };
    unsigned char *block[COUNT];
    size_t size[COUNT];
    for (unsigned i = 0; i < COUNT; i++) {
        size[i] = i < 20 ? 1 + i * 97 : i < 40 ? 20000 + i * 3001 : ((size_t)i << 14) + i;
        block[i] = try_block(size[i], i);
    }
    for (unsigned i = 0; i < COUNT; i++) {
        if (block[i] == NULL) continue;
        const size_t larger = size[i] * 5 / 2;
        unsigned char *moved = fa_global_realloc(block[i], larger);
        if (moved != NULL) block[i] = moved;
        CHECK(is_filled(block[i], size[i], i));
        if (moved != NULL) CHECK(fa_global_usable_size(moved) >= larger);
        if (i % 2 == 0) {
            fa_global_free(block[i]);
            block[i] = NULL;
        }
    }
    fa_global_free(try_block(3 * MIB, 7));
    void *zeros = fa_global_alloc_zeroed(3, MIB);
    if (zeros != NULL) CHECK(is_zero(zeros, 3 * MIB));
    fa_global_free(zeros);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, allocate_some, NULL) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    (void)fa_global_trim(true);
    for (unsigned i = 0; i < COUNT; i++) {
        if (block[i] != NULL) CHECK(is_filled(block[i], size[i], i));
        fa_global_free(block[i]);
    }
    (void)fa_global_trim(true);
    CHECK(fa_global_is_valid());
    CHECK(stats_now().live == 0);
    return scenario_end();
}

TEST(every_fault_of_the_operating_system_is_survived) {
    SKIP_IF(fastalloc_malloc_stats.started, "the heap has begun: run this test alone, or first");
    CHECK(survive_every_fault(use_heap) >= 7);
}

/* ---- the beginning ------------------------------------------------------------------------------------------------ */

static pthread_barrier_t together;

static void *first_block(void *number) {
    pthread_barrier_wait(&together);
    unsigned char *block = got(fa_global_alloc(100 + (uintptr_t)number));
    fill(block, 100 + (uintptr_t)number, (uintptr_t)number);
    pthread_barrier_wait(&together);
    CHECK(is_filled(block, 100 + (uintptr_t)number, (uintptr_t)number));
    fa_global_free(block);
    return NULL;
}

TEST(many_threads_may_be_the_first) {
    CHECK(pthread_barrier_init(&together, NULL, 32) == 0);
    on_threads(32, first_block);
    CHECK(fa_global_is_valid());
}

TEST(before_the_beginning_nothing_is_known) {
    SKIP_IF(fastalloc_malloc_stats.started, "the heap has begun: run this test alone");
    int on_stack = 0;
    fa_global_free(NULL);
    CHECK(!fa_global_owns(&on_stack));
    CHECK(fa_global_usable_size(NULL) == 0);
    CHECK(stats_now().allocated == 0);
}

/* ---- sizes -------------------------------------------------------------------------------------------------------- */

TEST(the_class_of_a_size_is_the_smallest_that_holds_it) {
    CHECK(fa_global_class(0) == 1 && fa_global_class_size(1) == 16);
    CHECK(fa_global_class_size(FA_GLOBAL_CLASSES - 1) == FA_GLOBAL_SMALL);
    for (size_t size = 1; size <= FA_GLOBAL_SMALL; size++) {
        const uint32_t class = fa_global_class(size);
        const size_t room = fa_global_class_size(class);
        CHECK(class >= 1 && class < FA_GLOBAL_CLASSES && room >= size && room % 16 == 0);
        CHECK(class == 1 || fa_global_class_size(class - 1) < size);
        CHECK(size <= 128 || room - size <= size / 4);
    }
}

TEST(blocks_of_every_size_are_aligned_and_hold_what_is_written) {
    begin();
    enum { COUNT = 600 };
    static unsigned char *block[COUNT];
    static size_t size[COUNT];
    for (unsigned i = 0; i < COUNT; i++) {
        size[i] = i < 200 ? i : i < 500 ? (size_t)(i - 190) * 300 : (size_t)(i - 499) * 40000;
        block[i] = got(fa_global_alloc(size[i]));
        CHECK(is_aligned(block[i], 16) && fa_global_owns(block[i]));
        CHECK(fa_global_usable_size(block[i]) >= size[i] && fa_global_usable_size(block[i]) > 0);
        fill(block[i], fa_global_usable_size(block[i]), i);
    }
    CHECK(fa_global_is_valid());
    for (unsigned i = 0; i < COUNT; i++) {
        CHECK(is_filled(block[i], fa_global_usable_size(block[i]), i));
        fa_global_free(block[i]);
    }
    CHECK(fa_global_is_valid() && stats_now().live == 0);
}

TEST(every_alignment_is_kept) {
    for (size_t alignment = 1; alignment <= 8 * MIB; alignment *= 2) {
        void *block[40];
        for (size_t i = 0; i < 40; i++) {
            const size_t size = i < 20 ? i * i * 7 : i * i * 977;
            block[i] = got(fa_global_alloc_aligned(alignment, size));
            CHECK(is_aligned(block[i], alignment) && fa_global_usable_size(block[i]) >= size);
            fill(block[i], size, i);
        }
        for (size_t i = 0; i < 40; i++) {
            CHECK(is_filled(block[i], i < 20 ? i * i * 7 : i * i * 977, i));
            fa_global_free(block[i]);
        }
    }
    CHECK(fa_global_is_valid());
}

TEST(what_cannot_be_is_refused_with_enomem) {
    static const size_t sizes[] = {SIZE_MAX, SIZE_MAX - 4095, SIZE_MAX / 2, SIZE_MAX / 2 + 1, (size_t)PTRDIFF_MAX};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        errno = 0;
        CHECK(fa_global_alloc(sizes[i]) == NULL && errno == ENOMEM);
        errno = 0;
        CHECK(fa_global_alloc_aligned(4096, sizes[i]) == NULL && errno == ENOMEM);
        void *block = got(fa_global_alloc(100000));
        errno = 0;
        CHECK(fa_global_realloc(block, sizes[i]) == NULL && errno == ENOMEM);
        fa_global_free(block);
    }
    errno = 0;
    CHECK(fa_global_alloc_zeroed(SIZE_MAX / 2, 3) == NULL && errno == ENOMEM);
    errno = 0;
    CHECK(fa_global_alloc_aligned(SIZE_MAX / 2 + 1, 1) == NULL && errno == ENOMEM);
    CHECK(stats_now().failures >= 12 && fa_global_is_valid());
}

TEST(free_keeps_errno) {
    void *block[] = {fa_global_alloc(10), fa_global_alloc(100000), fa_global_alloc(5 * MIB), NULL};
    for (unsigned i = 0; i < 4; i++) {
        errno = 4711;
        fa_global_free(block[i]);
        CHECK(errno == 4711);
    }
    errno = 4711;
    (void)fa_global_trim(true);
    CHECK(errno == 4711);
}

TEST(zeroed_blocks_are_zero_wherever_they_come_from) {
    static const size_t sizes[] = {1, 100, 5000, 40000, 500000, 3 * MIB, 20 * MIB};
    for (unsigned round = 0; round < 4; round++) {
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
            unsigned char *block = got(fa_global_alloc_zeroed(1, sizes[i]));
            CHECK(is_zero(block, sizes[i]));
            memset(block, 0xEE, fa_global_usable_size(block));
            fa_global_free(block);
        }
        if (round == 2) (void)fa_global_trim(true);
    }
}

/* ---- realloc ------------------------------------------------------------------------------------------------------ */

TEST(realloc_keeps_the_contents_on_every_way) {
    begin();
    random_source random = {7};
    size_t size = 1;
    unsigned char *block = got(fa_global_alloc(size));
    fill(block, size, size);
    for (unsigned i = 0; i < 400; i++) {
        const unsigned scale = (unsigned)random_below(&random, SLOW ? 22 : 25);
        const size_t wanted = 1 + random_below(&random, (size_t)1 << scale);
        unsigned char *moved = got(fa_global_realloc(block, wanted));
        const size_t kept = size < wanted ? size : wanted;
        CHECK(is_filled(moved, kept & ~(size_t)7, size));
        CHECK(fa_global_usable_size(moved) >= wanted);
        size = wanted;
        block = moved;
        fill(block, size, size);
    }
    CHECK(stats_now().live == 1);
    CHECK(fa_global_realloc(block, 0) == NULL);
    CHECK(stats_now().live == 0 && fa_global_is_valid());
}

TEST(a_large_block_grows_by_moving_pages) {
    begin();
    unsigned char *block = got(fa_global_alloc(2 * MIB));
    fill(block, 2 * MIB, 1);
    const uint64_t moved = stats_now().moved;
    for (size_t size = 4 * MIB; size <= 64 * MIB; size *= 2) {
        block = got(fa_global_realloc(block, size));
        CHECK(is_filled(block, 2 * MIB, 1));
    }
    CHECK(stats_now().moved == moved + 5);
    fa_global_free(block);
}

TEST(growth_takes_cached_pages) {
    begin();
    void *cached = got(fa_global_alloc(8 * MIB));
    unsigned char *block = got(fa_global_alloc(4 * MIB));
    fill(block, 4 * MIB, 3);
    memset(cached, 1, 8 * MIB);
    fa_global_free(cached);
    const fa_global_stats before = stats_now();
    block = got(fa_global_realloc(block, 10 * MIB));
    CHECK(is_filled(block, 4 * MIB, 3));
    CHECK(stats_now().moved == before.moved + 1);
    CHECK(stats_now().large_cached + 6 * MIB == before.large_cached);
    fa_global_free(block);
    CHECK(fa_global_is_valid());
}

/* ---- large and medium blocks -------------------------------------------------------------------------------------- */

TEST(freed_large_blocks_stay_resident) {
    begin();
    unsigned char *block = got(fa_global_alloc(16 * MIB));
    memset(block, 1, 16 * MIB);
    fa_global_free(block);
    const fa_global_stats before = stats_now();
    CHECK(before.large_cached >= 16 * MIB && before.large_live == 0);
    unsigned char *again = got(fa_global_alloc(16 * MIB));
    CHECK(again == block && again[5 * MIB] == 1); /* the same pages */
    CHECK(stats_now().cache_hits == before.cache_hits + 1);
    fa_global_free(again);
    CHECK(fa_global_trim(true));
    CHECK(stats_now().large_cached == 0 && stats_now().returned >= before.returned + 16 * MIB);
}

TEST(large_blocks_are_put_together_of_cached_ones) {
    begin();
    SKIP_IF(fa_os_platform()->move == NULL, "this platform cannot move pages");
    enum { COUNT = 8 };
    unsigned char *block[COUNT];
    for (unsigned i = 0; i < COUNT; i++) memset(block[i] = got(fa_global_alloc(4 * MIB)), 1, 4 * MIB);
    for (unsigned i = 0; i < COUNT; i += 2) fa_global_free(block[i]); /* no two are neighbours */
    const fa_global_stats before = stats_now();
    unsigned char *whole = got(fa_global_alloc(16 * MIB));
    CHECK(stats_now().assembled == before.assembled + 1 && stats_now().large_cached == 0);
    for (size_t at = 0; at < 16 * MIB; at += 4096) CHECK(whole[at] == 1); /* not a page is new */
    fill(whole, 16 * MIB, 5);
    for (unsigned i = 1; i < COUNT; i += 2) CHECK(block[i][0] == 1 && block[i][4 * MIB - 1] == 1);
    CHECK(is_filled(whole, 16 * MIB, 5));
    fa_global_free(whole);
    unsigned char *zeros = got(fa_global_alloc_zeroed(17, MIB)); /* cached pages, and some that are new */
    CHECK(is_zero(zeros, 17 * MIB));
    fa_global_free(zeros);
    for (unsigned i = 1; i < COUNT; i += 2) fa_global_free(block[i]);
    CHECK(fa_global_is_valid());
}

TEST(the_cache_keeps_to_its_budget) {
    fa_global_options options;
    fa_global_options_init(&options);
    options.cache_limit = 8 * MIB;
    fa_global_configure(&options);
    void *block[8];
    for (unsigned i = 0; i < 8; i++) block[i] = got(fa_global_alloc(3 * MIB));
    for (unsigned i = 0; i < 8; i++) {
        fa_global_free(block[i]);
        CHECK(stats_now().large_cached <= 8 * MIB);
    }
    options.cache_limit = 0;
    fa_global_configure(&options);
    CHECK(stats_now().large_cached == 0 && fa_global_is_valid());
}

TEST(cached_blocks_go_when_small_ones_need_more_pages) {
    enum { COUNT = 3000, SIZE = 16000 };
    static void *block[COUNT];
    begin();
    fa_global_free(got(fa_global_alloc(32 * MIB)));
    CHECK(stats_now().large_cached == 32 * MIB);
    for (unsigned i = 0; i < COUNT; i++) {
        block[i] = got(fa_global_alloc(SIZE));
        if (i % 100 != 0) continue;
        const fa_global_stats now = stats_now();
        CHECK(now.resident <= now.peak + now.peak / 8 + MIB);
    }
    CHECK(stats_now().large_cached <= 8 * MIB && stats_now().returned >= 24 * MIB);
    for (unsigned i = 0; i < COUNT; i++) fa_global_free(block[i]);
    CHECK(fa_global_is_valid());
}

/* Small blocks and large ones, never both at once: neither cache may stand in the other's way for ever. */
TEST(free_pages_go_when_large_blocks_are_mapped_but_not_in_every_round) {
    enum { COUNT = 3000, SIZE = 16000, ROUNDS = 12 };
    static void *block[COUNT];
    uint64_t returned[ROUNDS];
    begin();
    for (unsigned round = 0; round < ROUNDS; round++) {
        for (unsigned i = 0; i < COUNT; i++) block[i] = got(fa_global_alloc(SIZE));
        for (unsigned i = 0; i < COUNT; i++) fa_global_free(block[i]);
        void *large = got(fa_global_alloc(32 * MIB));
        const fa_global_stats now = stats_now();
        if (round == 0) CHECK(now.returned >= 24 * MIB && now.resident <= now.peak + now.peak / 16 + 3 * MIB);
        fa_global_free(large);
        returned[round] = now.returned;
    }
    CHECK(returned[ROUNDS - 1] == returned[ROUNDS / 2]);
    CHECK(fa_global_is_valid());
}

TEST(unused_memory_goes_back_after_the_decay) {
    begin();
    with_decay(100);
    void *large = got(fa_global_alloc(24 * MIB)), *medium = got(fa_global_alloc(500000));
    memset(large, 1, 24 * MIB);
    memset(medium, 1, 500000);
    fa_global_free(large);
    fa_global_free(medium);
    CHECK(stats_now().cached >= 24 * MIB + 500000);
    for (unsigned i = 0; i < 100 && (stats_now().large_cached > 2 * MIB || stats_now().pages_cached >= 400000); i++) {
        sleep_for(20);
        fa_global_free(got(fa_global_alloc(MIB))); /* any allocation looks, now and then */
        fa_global_free(got(fa_global_alloc(40000)));
    }
    CHECK(stats_now().large_cached <= 2 * MIB && stats_now().pages_cached < 400000);
    CHECK(fa_global_is_valid());
}

TEST(medium_blocks_grow_and_shrink_where_they_stand) {
    begin();
    unsigned char *block = got(fa_global_alloc(600000));
    fill(block, 600000, 2);
    CHECK(fa_global_realloc(block, 200000) == block);
    CHECK(fa_global_usable_size(block) < 600000);
    CHECK(fa_global_realloc(block, 500000) == block); /* what was given back is still free */
    CHECK(is_filled(block, 200000, 2));
    CHECK(fa_global_is_valid());
    fa_global_free(block);
}

static int free_twice(void *block) {
    fa_global_free(block);
    fa_global_free(block);
    return 0;
}

TEST(a_medium_block_freed_twice_is_reported) {
    void *block = got(fa_global_alloc(100000));
    const child_end end = run_in_child(free_twice, block);
    fa_global_free(block);
    CHECK(end.signal == SIGABRT);
    CHECK(strstr(end.errors, "fastalloc: free of 0x") != NULL && strstr(end.errors, "not a live block of malloc") != NULL);
}

/* ---- spans -------------------------------------------------------------------------------------------------------- */

enum { ROWS = 3000 };
static unsigned char *rows[ROWS];

static int by_address(const void *a, const void *b) {
    const unsigned char *left = *(unsigned char *const *)a, *right = *(unsigned char *const *)b;
    return (left > right) - (left < right);
}

/* A span notices neighbours that come back together, whichever way they lie: all of them must be there in the end, and no other. */
TEST(neighbours_go_back_to_their_spans_in_any_order) {
    begin();
    /* 32: spans without a rest; 48: with one; 4096: few blocks in each, and the next span's are neighbours, too. */
    static const size_t sizes[] = {16, 32, 48, 112, 1024, 4096, 24576};
    for (unsigned i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        const unsigned count = sizes[i] <= 4096 ? 2999 : 101; /* a prime: every stride comes to all */
        const unsigned strides[] = {1, count - 1, 2, 7, 65};
        const uint64_t live = class_now(sizes[i]).live;
        for (unsigned order = 0; order < sizeof strides / sizeof strides[0]; order++) {
            for (unsigned j = 0; j < count; j++) rows[j] = got(fa_global_alloc(sizes[i]));
            qsort(rows, count, sizeof rows[0], by_address);
            for (unsigned j = 1; j < count; j++) CHECK(rows[j] - rows[j - 1] >= (ptrdiff_t)sizes[i]);
            for (unsigned j = 0; j < count; j++) {
                fa_global_free(rows[j * strides[order] % count]);
                if (j != count / 2) continue;
                (void)fa_global_trim(true);
                CHECK(fa_global_is_valid());
            }
            CHECK(class_now(sizes[i]).live == live);
            (void)fa_global_trim(true);
            CHECK(fa_global_is_valid() && (live > 0 || class_now(sizes[i]).spans == 0));
        }
    }
}

/* In a row with neighbours that are freed for the first time. */
static int free_one_again(void *unused) {
    fa_global_free(rows[500]);
    (void)fa_global_trim(true);
    for (unsigned i = 490; i < 510; i++) fa_global_free(rows[i]);
    (void)fa_global_trim(true);
    return unused != NULL;
}

TEST(a_small_block_freed_twice_is_reported_when_it_comes_back) {
    begin();
    for (unsigned i = 0; i < ROWS; i++) rows[i] = got(fa_global_alloc(64));
    qsort(rows, ROWS, sizeof rows[0], by_address);
    const child_end end = run_in_child(free_one_again, NULL);
    char line[64];
    snprintf(line, sizeof line, "free of 0x%zx,", (size_t)(uintptr_t)rows[500]);
    for (unsigned i = 0; i < ROWS; i++) fa_global_free(rows[i]);
    CHECK(end.signal == SIGABRT && strstr(end.errors, line) != NULL);
}

/* ---- statistics --------------------------------------------------------------------------------------------------- */

TEST(statistics_add_up) {
    begin();
    enum { COUNT = 3000 };
    static void *block[COUNT];
    const fa_global_stats before = stats_now();
    const fa_class_stats class_before = class_now(100);
    for (unsigned i = 0; i < COUNT; i++) block[i] = got(fa_global_alloc(100));
    CHECK(class_now(100).live == class_before.live + COUNT && class_now(100).size == 112);
    CHECK(class_now(100).allocated == class_before.allocated + COUNT);
    CHECK(stats_now().used == before.used + COUNT * 112 && stats_now().live == before.live + COUNT);
    for (unsigned i = 0; i < COUNT; i++) fa_global_free(block[i]);
    const fa_global_stats after = stats_now();
    CHECK(after.used == before.used && after.live == before.live && after.freed == before.freed + COUNT);
    CHECK(after.peak >= COUNT * 112 && after.held >= after.used && after.resident == after.held + after.cached);
    CHECK(fa_global_is_valid());
    (void)fa_global_trim(true);
    CHECK(class_now(100).cached == 0 && class_now(100).spans == 0);
    CHECK(fa_global_is_valid());
}

TEST(the_exported_root_has_the_documented_layout) {
    begin();
    const fa_global_root *root = &fastalloc_malloc_stats;
    CHECK(memcmp(root->magic, "fastalloc-stats", 16) == 0 && root->version == FA_ROOT_VERSION && root->started == 1);
    CHECK(root->counts_count * sizeof(size_t) == sizeof root->counts && root->classes == FA_GLOBAL_CLASSES);
    void *keep[100];
    for (unsigned i = 0; i < 100; i++) keep[i] = got(fa_global_alloc(64));
    const uint32_t class = fa_global_class(64);
    const fa_central_stats *central = (void *)((unsigned char *)root->central + (size_t)class * root->central_stride);
    size_t in_magazines = 0, allocated = central->allocated;
    for (unsigned char *heap = root->heaps; heap != NULL; heap = *(void **)(void *)heap) {
        const fa_bin *bin = (void *)(heap + root->heap_bins + (size_t)class * root->bin_stride);
        in_magazines += (size_t)(bin->top - bin->bottom);
        allocated += bin->allocated;
    }
    CHECK(central->size == 64 && central->taken - central->ready - in_magazines == class_now(64).live);
    CHECK(allocated == class_now(64).allocated && class_now(64).live >= 100);
    for (unsigned i = 0; i < 100; i++) fa_global_free(keep[i]);
}

static int use_large_pages(void *unused) {
    (void)unused;
    const fa_os os = faulty_os(fa_os_platform()->lazy_commit);
    no_fault();
    fault.page = 64 * KIB;
    fa_global_options options;
    fa_global_options_init(&options);
    options.huge_pages = true;
    fa_global_configure(&options);
    fa_global_start(&os);
    static unsigned char *block[400];
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < 400; i++) {
            const size_t size = (size_t)1 << (12 + (i + round) % 8); /* 50 MiB in all: the range grows in several steps */
            block[i] = got(i % 3 == 0 ? fa_global_realloc(block[i], size) : fa_global_alloc_zeroed(1, size));
            fill(block[i], size, i);
        }
        for (unsigned i = 0; i < 400; i++) {
            if (i % 3 != 0) fa_global_free(block[i]);
        }
        (void)fa_global_trim(true);
    }
    CHECK(fa_global_is_valid());
    return 0;
}

TEST(a_page_may_have_64_kib) {
    SKIP_IF(fastalloc_malloc_stats.started, "the heap has begun: run this test alone");
    passes_in_child(use_large_pages, NULL);
}

static uint64_t pretended_time;
static uint64_t pretend_time(void) { return pretended_time; }

/* Cached just before 32 bits of milliseconds are full. */
static int outlive_32_bits(void *unused) {
    (void)unused;
    fa_os os = *fa_os_platform();
    os.milliseconds = pretend_time;
    fa_global_start(&os);
    pretended_time += ((uint64_t)1 << 32) - 5000;
    fa_global_free(got(fa_global_alloc(3 * MIB)));
    CHECK(stats_now().large_cached >= 3 * MIB);
    pretended_time += 70000;
    CHECK(fa_global_trim(false));
    CHECK(stats_now().large_cached == 0);
    return 0;
}

TEST(cached_blocks_grow_old_after_49_days_too) {
    SKIP_IF(fastalloc_malloc_stats.started, "the heap has begun: run this test alone");
    passes_in_child(outlive_32_bits, NULL);
}

/* ---- zero on free, foreign pointers ------------------------------------------------------------------------------- */

TEST(zero_on_free_leaves_nothing) {
    fa_global_options options;
    fa_global_options_init(&options);
    options.zero_on_free = true;
    begin();
    fa_global_configure(&options);
    static const size_t sizes[] = {16, 100, 1000, 5000, 32768, 100000, 3 * MIB};
    for (unsigned round = 0; round < 3; round++) {
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
            unsigned char *block = got(fa_global_alloc(sizes[i]));
            fill(block, sizes[i], i);
            fa_global_free(block);
            CHECK(peek_nonzero(block, sizes[i]) == 0);
        }
    }
    unsigned char *block = got(fa_global_alloc(60000));
    memset(block, 1, 60000);
    CHECK(fa_global_realloc(block, 40000) == block);
    CHECK(peek_nonzero(block + 40000, 20000) == 0);
    unsigned char *moved = got(fa_global_realloc(block, 100));
    CHECK(peek_nonzero(block, 60000) == 0 && moved[99] == 1);
    fa_global_free(moved);
    fa_global_options_init(&options);
    fa_global_configure(&options);
    CHECK(fa_global_is_valid());
}

static atomic_int has_block, may_free;
static void *free_when_told(void *argument) {
    unsigned char *block = got(fa_global_alloc(100));
    memset(block, 1, 100);
    atomic_store(&has_block, 1);
    while (atomic_load(&may_free) == 0) sched_yield();
    fa_global_free(block);
    CHECK(peek_nonzero(block, 100) == 0);
    return argument;
}

TEST(zero_on_free_holds_for_threads_that_are_there_already) {
    pthread_t thread;
    fa_global_options options;
    fa_global_options_init(&options);
    options.zero_on_free = true;
    begin();
    CHECK(pthread_create(&thread, NULL, free_when_told, NULL) == 0);
    while (atomic_load(&has_block) == 0) sched_yield();
    fa_global_configure(&options);
    atomic_store(&may_free, 1);
    pthread_join(thread, NULL);
    fa_global_options_init(&options);
    fa_global_configure(&options);
    CHECK(fa_global_is_valid());
}

static int foreign_frees, foreign_reallocs;
static void count_free(void *block) {
    (void)block;
    foreign_frees++;
}
static void *count_realloc(void *block, size_t size) {
    (void)size;
    foreign_reallocs++;
    return block;
}
static size_t of_seven(void *block) {
    (void)block;
    return 7;
}

TEST(foreign_pointers_are_passed_on) {
    fa_global_options options;
    fa_global_options_init(&options);
    options.foreign_free = count_free;
    options.foreign_realloc = count_realloc;
    options.foreign_usable_size = of_seven;
    begin();
    fa_global_configure(&options);
    static unsigned char foreign[64];
    fa_global_free(foreign);
    CHECK(foreign_frees == 1 && fa_global_realloc(foreign, 9) == foreign && foreign_reallocs == 1);
    CHECK(fa_global_usable_size(foreign) == 7 && !fa_global_owns(foreign) && stats_now().foreign == 2);
    fa_global_options_init(&options);
    fa_global_configure(&options);
}

/* ---- threads ------------------------------------------------------------------------------------------------------ */

#define SLOTS 2048U

typedef struct note {
    size_t size;
    uint64_t seed;
} note;

static _Atomic(note *) slots[SLOTS];
static atomic_int running;

static void check_and_free(note *block) {
    if (block == NULL) return;
    CHECK(is_filled(block + 1, block->size - sizeof *block, block->seed));
    fa_global_free(block);
}

static note *make_note(random_source *random) {
    const size_t choice = random_below(random, 100), scale = choice < 80 ? 8 : choice < 97 ? 13 : choice < 99 ? 17 : 21;
    const size_t size = sizeof(note) + random_below(random, (size_t)1 << scale);
    note *block = choice % 7 == 0   ? fa_global_alloc_aligned((size_t)16 << (choice % 8), size)
                  : choice % 7 == 1 ? fa_global_alloc_zeroed(1, size)
                                    : fa_global_alloc(size);
    CHECK(block != NULL);
    block->size = size;
    block->seed = random_next(random);
    fill(block + 1, size - sizeof *block, block->seed);
    return block;
}

static void *pass_blocks(void *number) {
    random_source random = {(uintptr_t)number + 1};
    for (unsigned i = 0; i < (SLOW ? 100 : 500); i++)
        check_and_free(atomic_exchange(&slots[random_below(&random, SLOTS)], make_note(&random)));
    return NULL;
}

static void empty_slots(void) {
    for (unsigned i = 0; i < SLOTS; i++) check_and_free(atomic_exchange(&slots[i], NULL));
}

TEST(sixty_four_threads_pass_blocks_and_exit) {
    begin();
    for (unsigned round = 0; round < 3; round++) on_threads(64, pass_blocks);
    CHECK(fa_global_is_valid());
    empty_slots();
    CHECK(fa_global_is_valid());
    CHECK(stats_now().live == 0 && stats_now().threads == 1 && stats_now().heaps <= 65);
    (void)fa_global_trim(true);
    CHECK(stats_now().span_bytes == 0 && stats_now().cached == 0);
}

static void *one_block(void *argument) {
    fa_global_free(got(fa_global_alloc(1000)));
    return argument;
}

TEST(the_heap_of_a_thread_that_ends_is_adopted) {
    begin();
    on_threads(1, one_block);
    const uint64_t heaps = stats_now().heaps;
    for (unsigned i = 0; i < 50; i++) on_threads(1, one_block);
    CHECK(stats_now().heaps == heaps && stats_now().threads == 1);
    CHECK(class_now(1000).live == 0);
    on_threads(4, none); /* a thread that allocates nothing has none */
    CHECK(stats_now().heaps == heaps);
}

static pthread_key_t late_key;

static void free_late(void *block) {
    fa_global_free(block);
    void *other = fa_global_alloc(333); /* the heap of this thread may be gone by now */
    CHECK(other != NULL);
    fa_global_free(other);
}

static void *leaves_late(void *unused) {
    CHECK(pthread_setspecific(late_key, got(fa_global_alloc(333))) == 0);
    return unused;
}

TEST(a_thread_may_allocate_and_free_while_it_ends) {
    begin();
    CHECK(pthread_key_create(&late_key, free_late) == 0);
    on_threads(8, leaves_late);
    CHECK(class_now(333).live == 0 && fa_global_is_valid());
}

static void *sleeper(void *unused) {
    void *block[200];
    for (unsigned i = 0; i < 200; i++) block[i] = got(fa_global_alloc(2000));
    for (unsigned i = 0; i < 200; i++) fa_global_free(block[i]);
    pthread_barrier_wait(&together); /* the magazine is full */
    pthread_barrier_wait(&together); /* it was emptied */
    for (unsigned i = 0; i < 200; i++) fill(block[i] = got(fa_global_alloc(2000)), 2000, i);
    for (unsigned i = 0; i < 200; i++) {
        CHECK(is_filled(block[i], 2000, i));
        fa_global_free(block[i]);
    }
    return unused;
}

TEST(memory_of_idle_threads_comes_back) {
    begin();
    SKIP_IF(!fa_the_heap.fences, "this system has no fence for other threads");
    with_decay(50);
    CHECK(pthread_barrier_init(&together, NULL, 2) == 0);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, sleeper, NULL) == 0);
    pthread_barrier_wait(&together);
    CHECK(class_now(2000).cached > 10);
    const uint64_t stolen = stats_now().stolen;
    for (unsigned i = 0; i < 20; i++) {
        sleep_for(20);
        (void)fa_global_trim(false);
    }
    CHECK(class_now(2000).cached == 0 && class_now(2000).spans == 0);
    CHECK(stats_now().stolen > stolen && stats_now().threads == 2);
    pthread_barrier_wait(&together);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(fa_global_is_valid());
}

/* Every block is marked by its owner: one that was handed out twice would show. */
static void *keep_busy(void *number) {
    uintptr_t *block[24];
    const uintptr_t mark = (uintptr_t)number + 1;
    while (atomic_load(&running)) {
        for (unsigned i = 0; i < 24; i++) {
            block[i] = got(fa_global_alloc(48));
            block[i][0] = block[i][5] = mark * 100 + i;
        }
        for (unsigned i = 0; i < 24; i++) {
            CHECK(block[i][0] == mark * 100 + i && block[i][5] == mark * 100 + i);
            fa_global_free(block[i]);
        }
    }
    return NULL;
}

static void *steal_a_lot(void *number) {
    if (number != NULL) return keep_busy(number);
    for (unsigned i = 0; i < (SLOW ? 200 : 2000); i++) (void)fa_global_trim(true);
    atomic_store(&running, 0);
    return NULL;
}

TEST(a_thread_may_use_its_magazine_while_it_is_emptied) {
    begin();
    atomic_store(&running, 1);
    on_threads(4, steal_a_lot);
    CHECK(class_now(48).live == 0 && fa_global_is_valid());
}

/* ---- fork --------------------------------------------------------------------------------------------------------- */

static void *churn_until_told(void *number) {
    random_source random = {(uintptr_t)number + 77};
    while (atomic_load(&running)) check_and_free(atomic_exchange(&slots[random_below(&random, SLOTS)], make_note(&random)));
    return NULL;
}

static int live_in_child(void *unused) {
    (void)unused;
    fa_global_fork_child();
    CHECK(fa_global_is_valid());
    CHECK(stats_now().threads == 1);
    random_source random = {5};
    for (unsigned i = 0; i < 200; i++) check_and_free(atomic_exchange(&slots[random_below(&random, SLOTS)], make_note(&random)));
    if (!UNDER_SANITIZER) { /* sanitizers make no threads in such a child */
        atomic_store(&running, 0);
        const uint64_t heaps = stats_now().heaps;
        on_threads(3, pass_blocks);
        CHECK(stats_now().heaps == heaps); /* those of threads that are not here were adopted */
    }
    empty_slots();
    CHECK(fa_global_is_valid());
    return 0;
}

TEST(fork_with_other_threads_allocating) {
    begin();
    pthread_t thread[6];
    atomic_store(&running, 1);
    for (uintptr_t i = 0; i < 6; i++) CHECK(pthread_create(&thread[i], NULL, churn_until_told, (void *)i) == 0);
    while (stats_now().threads < 7) sleep_for(1);
    bool well = true;
    for (unsigned i = 0; i < (SLOW ? 4 : 8) && well; i++) {
        fa_global_fork_prepare();
        const child_end end = run_in_child(live_in_child, NULL);
        fa_global_fork_parent();
        well = end.exit_status == 0;
        if (!well) printf("# %d, signal %d: %s\n", end.exit_status, end.signal, end.errors);
    }
    atomic_store(&running, 0);
    for (unsigned i = 0; i < 6; i++) CHECK(pthread_join(thread[i], NULL) == 0);
    CHECK(well);
    empty_slots();
    CHECK(fa_global_is_valid());
}

static int look_for_busy_runs(void *unused) {
    (void)unused;
    fa_global_fork_child();
    const fa_pages *pages = &fa_the_heap.pages;
    for (uint32_t first = pages->start; first < pages->fresh; first += pages->run[first].length)
        CHECK(pages->run[first].kind != FA_RUN_BUSY);
    CHECK(fa_global_is_valid());
    return 0;
}

TEST(a_child_keeps_the_pages_that_another_thread_was_giving_back) {
    begin();
    fa_pages *pages = &fa_the_heap.pages;
    void *before = got(fa_global_alloc(300000)), *block = got(fa_global_alloc(500000)), *behind = got(fa_global_alloc(300000));
    fa_global_free(block);
    uint32_t scan = UINT32_MAX;
    const uint32_t first = fa_pages_oldest(pages, (uint32_t)fa_global_now(), 0, &scan);
    CHECK(first != 0);
    fa_global_free(before); /* neighbours that the child merges it with */
    fa_global_free(behind);
    fa_global_fork_prepare();
    const child_end end = run_in_child(look_for_busy_runs, NULL);
    fa_global_fork_parent();
    fa_pages_settle(pages, first, false);
    CHECK(end.exit_status == 0);
    (void)fa_global_trim(true);
    CHECK(fa_global_is_valid());
}

/* ---- runs of pages, on their own ---------------------------------------------------------------------------------- */

TEST(runs_of_pages_tile_the_range_whatever_is_done) {
    enum { COUNT = 64 };
    fa_pages pages;
    uint32_t run[COUNT] = {0};
    random_source random = {11};
    CHECK(fa_pages_init(&pages, fa_os_platform(), (size_t)64 << 20));
    for (unsigned i = 0; i < (SLOW ? 3000 : 30000); i++) {
        const size_t at = random_below(&random, COUNT), action = random_below(&random, 8);
        uint32_t length = 1 + (uint32_t)random_below(&random, (size_t)1 << random_below(&random, 9)), scan = 100;
        bool zero = false;
        if (run[at] == 0) {
            const uint32_t alignment = 1U << random_below(&random, 5);
            run[at] = fa_pages_take(&pages, length, alignment, FA_RUN_LIVE, &zero);
            if (run[at] == 0) continue;
            CHECK(run[at] % alignment == 0 && pages.run[run[at]].length == length);
            unsigned char *memory = fa_pages_address(&pages, run[at]);
            if (zero) CHECK(is_zero(memory, FA_PAGE));
            memset(memory, 1, FA_PAGE);
        } else if (action == 0) {
            fa_pages_shrink(&pages, run[at], length, i);
        } else if (action == 1) {
            const uint32_t more = pages.run[run[at]].length + length;
            if (fa_pages_extend(&pages, run[at], more)) CHECK(pages.run[run[at]].length == more);
        } else if (action == 2) {
            const uint32_t old = fa_pages_oldest(&pages, i, (uint32_t)random_below(&random, 500), &scan);
            if (old != 0) fa_pages_settle(&pages, old, fa_pages_decommit(&pages, old) == 0);
        } else {
            fa_pages_give(&pages, run[at], i);
            run[at] = 0;
        }
        if (i % 16 == 0) CHECK(fa_pages_is_valid(&pages));
    }
    for (unsigned i = 0; i < COUNT; i++)
        if (run[i] != 0) fa_pages_give(&pages, run[i], 0);
    CHECK(fa_pages_is_valid(&pages) && pages.live == 0);
    fa_pages_destroy(&pages);
}

int main(int argc, char **argv) { return tap_main(argc, argv); }
