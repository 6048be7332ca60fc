/*
 * stress_test.c - everything at once, from 8 to 64 threads: alloc, free on another thread, reset, statistics, trim, fork
 *
 * Worth most under ThreadSanitizer. Blocks pass between threads through a box of slots, so most are freed where they were not
 * made. FASTALLOC_TEST_LONG=1 makes it thirty times as long.
 *
 * The global allocator is decided on once in a process: of its two tests, the second that one process runs is skipped. It has
 * no reset; its threads end and leave their heaps to others instead.
 */
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "heap/arena.h"
#include "heap/manager.h"
#include "support.h"

#if defined(FA_HAS_GLOBAL)
#include "heap/global.h"
#endif

#define MOST_THREADS 64
#define BOXES 256
#define LONG (getenv("FASTALLOC_TEST_LONG") != NULL)
#define STEPS ((UNDER_VALGRIND ? 100U : UNDER_SANITIZER ? 400U : 2000U) * (LONG ? 30 : 1))

typedef struct parcel {
    unsigned char *address;
    size_t size;
    uint64_t seed;
} parcel;

typedef struct arena_or_manager {
    fa_arena *arena;     /* null: the manager */
    fa_manager *manager; /* null: the global allocator */
    bool tracked;
} arena_or_manager;

static struct {
    arena_or_manager heap;
    pthread_mutex_t lock; /* of the boxes */
    parcel box[BOXES];
    /* Readers allocate, a writer resets: the caller of an untracked reset knows that nobody allocates. */
    pthread_rwlock_t phase;
    _Atomic uint64_t errors, resets, forks;
} team;

#if defined(FA_HAS_GLOBAL)
/* Of its interface the part that its fellows have too. */
static void *global_alloc(size_t size, bool zeroed) {
    return zeroed ? fa_global_alloc_zeroed(1, size) : fa_global_alloc(size);
}
static void global_free(void *block) { fa_global_free(block); }
static uint64_t global_live(void) {
    fa_global_stats stats;
    fa_global_get_stats(&stats);
    return stats.live;
}
static void global_trim(size_t keep) { (void)fa_global_trim(keep % 2 == 0); }
static bool global_is_whole(void) {
    fa_global_check("check");
    return fa_global_is_valid();
}
/* In the child of a fork large blocks of a hardened heap may be on their way for ever: they are lost, and no more. */
static bool global_child_is_whole(void) {
    fa_global_check("check");
    return fa_global_is_hardened() || fa_global_is_valid();
}
static void global_fork(int when) {
    if (when == 0) fa_global_fork_prepare();
    else if (when == 1) fa_global_fork_parent();
    else fa_global_fork_child();
}
#else
static void *global_alloc(size_t size, bool zeroed) { return (void)size, (void)zeroed, NULL; }
static void global_free(void *block) { (void)block; }
static uint64_t global_live(void) { return 0; }
static void global_trim(size_t keep) { (void)keep; }
static bool global_is_whole(void) { return true; }
static bool global_child_is_whole(void) { return true; }
static void global_fork(int when) { (void)when; }
#endif

static void *heap_alloc(size_t size, bool zeroed) {
    if (team.heap.arena != NULL)
        return zeroed ? fa_arena_alloc_zeroed(team.heap.arena, size, 0) : fa_arena_alloc(team.heap.arena, size, 0);
    if (team.heap.manager == NULL) return global_alloc(size, zeroed);
    return zeroed ? fa_calloc(team.heap.manager, 1, size) : fa_malloc(team.heap.manager, size);
}

static void heap_free(parcel block) {
    if (!is_filled(block.address, block.size, block.seed)) team.errors++;
    if (team.heap.arena != NULL) fa_arena_free(team.heap.arena, block.address, block.size);
    else if (team.heap.manager != NULL) fa_free(team.heap.manager, block.address);
    else global_free(block.address);
}

/* Puts a parcel into a box and gets what was there. */
static parcel swap(size_t box, parcel put) {
    pthread_mutex_lock(&team.lock);
    const parcel got = team.box[box];
    team.box[box] = put;
    pthread_mutex_unlock(&team.lock);
    return got;
}

static void make_and_pass_on(random_source *random) {
    const size_t size = random_below(random, 20) == 0 ? random_below(random, 90000) : random_below(random, 600);
    const bool zeroed = random_below(random, 4) == 0;
    parcel block = {heap_alloc(size, zeroed), size, random_next(random)};
    if (block.address == NULL) return;
    if (zeroed && !is_zero(block.address, size)) team.errors++;
    fill(block.address, size, block.seed);
    const parcel old = swap(random_below(random, BOXES), block);
    if (old.address != NULL) heap_free(old);
}

static void empty_boxes(bool forget) {
    for (size_t box = 0; box < BOXES; box++) {
        const parcel block = swap(box, (parcel){NULL, 0, 0});
        if (block.address != NULL && !forget) heap_free(block);
    }
}

static void look(void) {
    if (team.heap.arena != NULL) {
        fa_arena_stats stats;
        if (fa_arena_get_stats(team.heap.arena, &stats) != FA_OK || stats.used > stats.capacity) team.errors++;
    } else if (team.heap.manager == NULL) {
        if (global_live() > (uint64_t)1 << 40) team.errors++;
    } else {
        fa_manager_stats stats;
        if (fa_manager_get_stats(team.heap.manager, &stats) != FA_OK || stats.freed > stats.allocated) team.errors++;
    }
}

static void trim(size_t keep) {
    if (team.heap.arena == NULL && team.heap.manager == NULL) {
        global_trim(keep);
        return;
    }
    const fa_status status = team.heap.arena != NULL ? fa_arena_trim(team.heap.arena, keep)
                                                     : fa_manager_trim(team.heap.manager, keep);
    if (status != FA_OK) team.errors++;
}

static bool is_whole(void) {
    if (team.heap.arena == NULL && team.heap.manager == NULL) return global_is_whole();
    return team.heap.arena != NULL ? fa_arena_is_valid(team.heap.arena) : fa_manager_is_valid(team.heap.manager);
}

/* The child, in which only this thread lives on, finds a heap that is whole and works. */
static void fork_here(void) {
    const fa_arena *arena = team.heap.arena;
    if (arena != NULL) fa_arena_fork_prepare(team.heap.arena);
    else if (team.heap.manager != NULL) fa_manager_fork_prepare(team.heap.manager);
    else global_fork(0);
    const pid_t child = fork();
    if (child == 0) {
        if (arena != NULL) fa_arena_fork_child(team.heap.arena);
        else if (team.heap.manager != NULL) fa_manager_fork_child(team.heap.manager);
        else global_fork(2);
        bool good = team.heap.arena != NULL     ? !team.heap.tracked || is_whole()
                    : team.heap.manager != NULL ? is_whole()
                                                : global_child_is_whole();
        for (size_t i = 0; i < 20 && good; i++) {
            parcel block = {heap_alloc(100 * i, false), 100 * i, i};
            good = block.address != NULL;
            if (good) fill(block.address, block.size, block.seed);
            if (good) heap_free(block);
        }
        _exit(good && team.errors == 0 ? 0 : 1);
    }
    if (arena != NULL) fa_arena_fork_parent(team.heap.arena);
    else if (team.heap.manager != NULL) fa_manager_fork_parent(team.heap.manager);
    else global_fork(1);
    int status = -1;
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0) team.errors++;
    team.forks++;
}

static void reset_all(void) {
    if (team.heap.arena == NULL) return;
    pthread_rwlock_unlock(&team.phase);
    pthread_rwlock_wrlock(&team.phase);
    empty_boxes(!team.heap.tracked);
    if (fa_arena_reset(team.heap.arena) != FA_OK || !is_whole()) team.errors++;
    team.resets++;
    pthread_rwlock_unlock(&team.phase);
    pthread_rwlock_rdlock(&team.phase);
}

static void *work(void *number) {
    random_source random = {(uint64_t)(uintptr_t)number};
    pthread_rwlock_rdlock(&team.phase);
    for (size_t step = 0; step < STEPS; step++) {
        const size_t choice = random_below(&random, 1000);
        if (choice < 700) {
            make_and_pass_on(&random);
        } else if (choice < 950) {
            const parcel block = swap(random_below(&random, BOXES), (parcel){NULL, 0, 0});
            if (block.address != NULL) heap_free(block);
        } else if (choice < 980) {
            look();
        } else if (choice < 994) {
            trim(random_below(&random, MIB));
        } else if (choice < 998) {
            reset_all();
        } else if (step % 4 == 0) {
            fork_here();
        }
        if (step % 16 == 0) { /* a writer may come in */
            pthread_rwlock_unlock(&team.phase);
            pthread_rwlock_rdlock(&team.phase);
        }
    }
    pthread_rwlock_unlock(&team.phase);
    return NULL;
}

static void run_teams(arena_or_manager heap) {
    for (size_t threads = 8; threads <= (UNDER_VALGRIND ? 8 : MOST_THREADS); threads *= LONG ? 2 : 8) {
        memset(&team, 0, sizeof team);
        team.heap = heap;
        pthread_mutex_init(&team.lock, NULL);
        pthread_rwlock_init(&team.phase, NULL);
        pthread_t thread[MOST_THREADS];
        for (size_t i = 0; i < threads; i++) {
            const int failed = pthread_create(&thread[i], NULL, work, (void *)(uintptr_t)(i + 1));
            if (failed) threads = i; /* the others are enough */
            CHECK(threads > 0);
        }
        for (size_t i = 0; i < threads; i++) pthread_join(thread[i], NULL);
        CHECK(team.errors == 0);
        empty_boxes(false);
        CHECK(is_whole());
        if (heap.arena != NULL && !heap.tracked) CHECK(fa_arena_reset(heap.arena) == FA_OK);
        const uint64_t live = heap.arena != NULL     ? arena_stats(heap.arena).live
                              : heap.manager != NULL ? manager_stats(heap.manager).live
                                                     : global_live();
        CHECK(live == 0);
        pthread_mutex_destroy(&team.lock);
        pthread_rwlock_destroy(&team.phase);
    }
}

static void run_arena(fa_arena_kind kind, unsigned flags) {
    fa_arena_options options = arena_options(kind, 64 * MIB);
    options.flags = flags;
    fa_arena *arena = arena_with(&options);
    run_teams((arena_or_manager){.arena = arena, .tracked = flags == FA_TRACKED});
    fa_arena_destroy(arena);
}

TEST(stress_of_a_scratch_arena) { run_arena(FA_SCRATCH, 0); }
TEST(stress_of_a_tracked_scratch_arena) { run_arena(FA_SCRATCH, FA_TRACKED); }
TEST(stress_of_a_polynomial_arena) { run_arena(FA_POLYNOMIAL, 0); }
TEST(stress_of_a_witness_arena) { run_arena(FA_WITNESS, FA_TRACKED); }
static void run_manager(unsigned flags) {
    fa_manager_options options;
    fa_manager_options_init(&options);
    options.flags = FA_LOCKED | flags;
    options.pool_blocks = 512;
    options.cache_limit = 2 * MIB;
    fa_manager *manager = manager_with(&options);
    run_teams((arena_or_manager){.manager = manager});
    fa_manager_destroy(manager);
}
TEST(stress_of_a_locked_manager) { run_manager(0); }
TEST(stress_of_a_hardened_manager) { run_manager(FA_HARDENED); }

#if defined(FA_HAS_GLOBAL)
static bool want_hardened;
void fa_global_before_first(fa_global_options *options) {
    options->hardened = want_hardened;
    options->cache_limit = 4 * MIB;
}

static void run_global(bool hardened) {
    want_hardened = hardened;
    global_free(global_alloc(1, false));
    SKIP_IF(fa_global_is_hardened() != hardened, "this process has decided otherwise");
    run_teams((arena_or_manager){.arena = NULL});
}
TEST(stress_of_the_global_allocator) { run_global(false); }
TEST(stress_of_the_hardened_global_allocator) { run_global(true); }
#endif

int main(int argc, char **argv) { return tap_main(argc, argv); }
