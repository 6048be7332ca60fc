/*
 * arena_threads_test.c - one arena, many threads: disjoint blocks, chunks that go stale at a reset, frees on any thread
 *
 * Worth most under ThreadSanitizer.
 */
#include <pthread.h>
#include <sched.h>

#include "heap/arena.h"
#include "support.h"

#define THREADS 8

typedef struct gate { /* a barrier that exists on every platform with pthreads */
    pthread_mutex_t lock;
    pthread_cond_t opened;
    size_t members, waiting, rounds;
} gate;

static void gate_pass(gate *self) {
    pthread_mutex_lock(&self->lock);
    const size_t round = self->rounds;
    if (++self->waiting == self->members) {
        self->waiting = 0;
        self->rounds++;
        pthread_cond_broadcast(&self->opened);
    } else {
        while (self->rounds == round) pthread_cond_wait(&self->opened, &self->lock);
    }
    pthread_mutex_unlock(&self->lock);
}

typedef struct team {
    fa_arena *arena;
    gate gate;
    fa_arena_kind kind;
} team;

typedef struct worker {
    team *team;
    size_t index;
    uint64_t errors;
} worker;

/* Runs `work` on all threads and returns the sum of their errors. */
static uint64_t run_team(fa_arena *arena, fa_arena_kind kind, void *(*work)(void *)) {
    SKIP_IF(!HAS_THREADS, NO_THREADS);
    team all = {.arena = arena, .kind = kind, .gate = {.members = THREADS}};
    pthread_mutex_init(&all.gate.lock, NULL);
    pthread_cond_init(&all.gate.opened, NULL);
    pthread_t threads[THREADS];
    worker workers[THREADS];
    for (size_t i = 0; i < THREADS; i++) {
        workers[i] = (worker){&all, i, 0};
        CHECK(pthread_create(&threads[i], NULL, work, &workers[i]) == 0);
    }
    uint64_t errors = 0;
    for (size_t i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        errors += workers[i].errors;
    }
    pthread_mutex_destroy(&all.gate.lock);
    pthread_cond_destroy(&all.gate.opened);
    return errors;
}

#define BLOCKS 400

static void *fill_and_verify(void *argument) {
    worker *self = argument;
    random_source random = {self->index};
    unsigned char *blocks[BLOCKS];
    size_t sizes[BLOCKS];
    for (size_t round = 0; round < 10; round++) {
        for (size_t i = 0; i < BLOCKS; i++) {
            sizes[i] = random_below(&random, i % 40 == 0 ? 20000 : 200);
            blocks[i] = i % 5 == 0 ? fa_arena_alloc_zeroed(self->team->arena, sizes[i], 0)
                                   : fa_arena_alloc(self->team->arena, sizes[i], 0);
            if (blocks[i] == NULL) {
                self->errors++;
                sizes[i] = 0;
                continue;
            }
            if (i % 5 == 0 && !is_zero(blocks[i], sizes[i])) self->errors++;
            fill(blocks[i], sizes[i], self->index * BLOCKS + i);
        }
        for (size_t i = 0; i < BLOCKS; i++) {
            if (!is_filled(blocks[i], sizes[i], self->index * BLOCKS + i)) self->errors++;
        }
        gate_pass(&self->team->gate);
        if (self->index == round % THREADS && fa_arena_reset(self->team->arena) != FA_OK) self->errors++;
        gate_pass(&self->team->gate);
    }
    return NULL;
}

TEST(threads_get_disjoint_blocks_and_resets_make_chunks_stale) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = new_arena(kind, 32 * MIB);
        CHECK(run_team(arena, kind, fill_and_verify) == 0);
        const fa_arena_stats stats = arena_stats(arena);
        CHECK(stats.live == 0 && stats.resets == 10 && stats.allocated == 10 * THREADS * BLOCKS);
        CHECK(fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
}

static void *churn(void *argument) {
    worker *self = argument;
    random_source random = {100 + self->index};
    unsigned char *blocks[32] = {NULL};
    size_t sizes[32] = {0};
    for (size_t step = 0; step < (UNDER_VALGRIND ? 300 : 3000); step++) {
        const size_t slot = random_below(&random, 32);
        if (blocks[slot] != NULL && !is_filled(blocks[slot], sizes[slot], slot)) self->errors++;
        if (step % 4 == 0 && blocks[slot] != NULL) {
            const size_t size = random_below(&random, 3000);
            unsigned char *moved = fa_arena_realloc(self->team->arena, blocks[slot], sizes[slot], size, 0);
            if (moved == NULL) {
                self->errors++;
                continue;
            }
            if (!is_filled(moved, size < sizes[slot] ? size : sizes[slot], slot)) self->errors++;
            blocks[slot] = moved;
            sizes[slot] = size;
        } else {
            fa_arena_free(self->team->arena, blocks[slot], sizes[slot]);
            sizes[slot] = random_below(&random, 2000);
            blocks[slot] = fa_arena_alloc(self->team->arena, sizes[slot], 0);
            if (blocks[slot] == NULL) {
                self->errors++;
                sizes[slot] = 0;
                continue;
            }
        }
        fill(blocks[slot], sizes[slot], slot);
        if (step % 200 == 0) {
            fa_arena_stats stats;
            if (fa_arena_get_stats(self->team->arena, &stats) != FA_OK || stats.live == 0) self->errors++;
            if (fa_arena_trim(self->team->arena, 64 * KIB) != FA_OK) self->errors++;
        }
    }
    for (size_t i = 0; i < 32; i++) fa_arena_free(self->team->arena, blocks[i], sizes[i]);
    return NULL;
}

TEST(threads_free_and_reuse_in_any_order) {
    FOR_EACH_KIND(kind) {
        fa_arena_options options = arena_options(kind, 32 * MIB);
        options.flags = FA_TRACKED;
        options.on_full = FA_FULL_FAIL;
        fa_arena *arena = arena_with(&options);
        CHECK(run_team(arena, kind, churn) == 0);
        CHECK(arena_stats(arena).live == 0 && arena_stats(arena).used == 0);
        CHECK(fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
}

TEST(threads_free_and_reuse_in_an_untracked_arena) {
    fa_arena *arena = new_arena(FA_POLYNOMIAL, 32 * MIB);
    CHECK(run_team(arena, FA_POLYNOMIAL, churn) == 0);
    CHECK(arena_stats(arena).live == 0 && fa_arena_is_valid(arena));
    fa_arena_destroy(arena);
    arena = new_arena(FA_SCRATCH, 512 * MIB); /* keeps what is not freed in stack order */
    CHECK(run_team(arena, FA_SCRATCH, churn) == 0);
    CHECK(fa_arena_is_valid(arena));
    fa_arena_destroy(arena);
}

static void *overflow(void *argument) {
    worker *self = argument;
    for (size_t i = 0; i < 2000; i++) {
        unsigned char *block = fa_arena_alloc(self->team->arena, 100, 0);
        if (block == NULL) {
            self->errors++; /* the arena falls back, so this is malloc failing */
            continue;
        }
        fill(block, 100, self->index);
        if (i % 3 == 0) fa_arena_free(self->team->arena, block, 100);
    }
    return NULL;
}

TEST(threads_overflow_into_the_fallback_together) {
    const fa_arena_kind kinds[] = {FA_POLYNOMIAL, FA_SCRATCH};
    for (size_t i = 0; i < 2; i++) {
        const fa_arena_options options = arena_options(kinds[i], 256 * KIB);
        fa_arena *arena = arena_with(&options);
        CHECK(run_team(arena, kinds[i], overflow) == 0);
        const fa_arena_stats stats = arena_stats(arena);
        CHECK(stats.fallbacks > 0 && stats.allocated == 2000 * THREADS && stats.failures == 0);
        CHECK(fa_arena_is_valid(arena));
        CHECK(fa_arena_reset(arena) == FA_OK && arena_stats(arena).fallback_bytes == 0);
        fa_arena_destroy(arena);
    }
}

static void *exhaust(void *argument) {
    worker *self = argument;
    for (;;) {
        unsigned char *block = fa_arena_alloc(self->team->arena, 1000, 0);
        if (block == NULL) return NULL;
        fill(block, 1000, self->index);
    }
}

TEST(threads_exhaust_an_arena_without_waste) {
    FOR_EACH_KIND(kind) {
        fa_arena *arena = new_arena(kind, 16 * MIB);
        CHECK(run_team(arena, kind, exhaust) == 0);
        const fa_arena_stats stats = arena_stats(arena);
        CHECK(stats.failures == THREADS);
        CHECK(stats.allocated >= (16 * MIB - THREADS * MIB) / 1024); /* a chunk per thread may be left over, not more */
        CHECK(fa_arena_reset(arena) == FA_OK);
        CHECK(fa_arena_alloc(arena, 16 * MIB, 0) != NULL);
        fa_arena_destroy(arena);
    }
}

TEST(one_thread_after_another_sees_one_layout) {
    fa_arena *arena = new_arena(FA_SCRATCH, MIB);
    unsigned char *first = fa_arena_alloc(arena, 100, 0);
    CHECK(fa_arena_reset(arena) == FA_OK);
    CHECK(run_team(arena, FA_SCRATCH, fill_and_verify) != UINT64_MAX); /* chunks of threads that are gone */
    CHECK(fa_arena_reset(arena) == FA_OK);
    CHECK(fa_arena_alloc(arena, 100, 0) == first);
    CHECK(fa_arena_alloc(arena, MIB / 2, 0) != NULL);
    CHECK(fa_arena_is_valid(arena));
    fa_arena_destroy(arena);
}

typedef struct lone_worker {
    fa_arena *arena;
    void *block;
} lone_worker;

/* Two threads give their chunks back, the upper one first: the cursor goes below a chunk of which nothing is left. */
static void *allocate_and_wait_for_the_trim(void *argument) {
    team *both = argument;
    CHECK(fa_arena_alloc(both->arena, 249, 0) != NULL);
    for (size_t i = 0; i < 2; i++) gate_pass(&both->gate);
    CHECK(fa_arena_trim(both->arena, 0) == FA_OK);
    return NULL;
}

TEST(trims_of_two_threads_leave_their_chunks_apart) {
    SKIP_IF(!HAS_THREADS, NO_THREADS);
    fa_arena *arena = new_arena(FA_SCRATCH, 64 * KIB);
    team both = {.arena = arena, .gate = {.members = 2}};
    pthread_t thread;
    pthread_mutex_init(&both.gate.lock, NULL);
    pthread_cond_init(&both.gate.opened, NULL);
    CHECK(pthread_create(&thread, NULL, allocate_and_wait_for_the_trim, &both) == 0);
    gate_pass(&both.gate);
    void *block = fa_arena_alloc(arena, 2156, 0);
    fa_arena_free(arena, block, 2156);
    CHECK(fa_arena_trim(arena, 0) == FA_OK);
    gate_pass(&both.gate);
    pthread_join(thread, NULL);
    CHECK(fa_arena_is_valid(arena));
    const fa_arena_stats stats = arena_stats(arena);
    CHECK(stats.live >= 1 && stats.used == 256);
    unsigned char *mine = fa_arena_alloc(arena, 100, 0), *next = fa_arena_alloc(arena, 100, 0);
    CHECK(mine != NULL && next == mine + 112 && fa_arena_is_valid(arena));
    fa_arena_destroy(arena);
    pthread_mutex_destroy(&both.gate.lock);
    pthread_cond_destroy(&both.gate.opened);
}

static void *allocate_once(void *argument) {
    lone_worker *self = argument;
    self->block = fa_arena_alloc(self->arena, 100, 0);
    return NULL;
}

TEST(threads_and_arenas_come_and_go) {
    SKIP_IF(!HAS_THREADS, NO_THREADS);
    for (size_t round = 0; round < 200; round++) {
        fa_arena *arenas[4];
        for (size_t i = 0; i < 4; i++) arenas[i] = new_arena(FA_SCRATCH, MIB);
        for (size_t i = 0; i < 4; i++) {
            lone_worker other = {arenas[i], NULL};
            pthread_t thread;
            void *mine = fa_arena_alloc(arenas[i], 100, 0);
            CHECK(pthread_create(&thread, NULL, allocate_once, &other) == 0);
            pthread_join(thread, NULL);
            CHECK(mine != NULL && other.block != NULL && mine != other.block);
            CHECK(arena_stats(arenas[i]).live == 2);
        }
        for (size_t i = 0; i < 4; i++) fa_arena_destroy(arenas[(i + round) % 4]);
    }
}

/* Each thread has a chunk of its own, far above those before it, and leaves most of it unused. */
TEST(a_wipe_zeroes_the_blocks_of_every_thread) {
    SKIP_IF(!HAS_THREADS, NO_THREADS);
    enum { OTHERS = 5 };
    fa_arena *arena = new_arena(FA_SCRATCH, 64 * MIB);
    for (size_t round = 0; round < 3; round++) {
        unsigned char *blocks[OTHERS + 1];
        for (size_t i = 0; i < OTHERS; i++) {
            lone_worker other = {arena, NULL};
            pthread_t thread;
            CHECK(pthread_create(&thread, NULL, allocate_once, &other) == 0);
            pthread_join(thread, NULL);
            blocks[i] = other.block;
            if (i == round) blocks[OTHERS] = fa_arena_alloc(arena, 100, 0); /* not always the topmost chunk */
        }
        for (size_t i = 0; i <= OTHERS; i++) memset(blocks[i], 0xFF, 100);
        CHECK(fa_arena_wipe(arena) == FA_OK);
        for (size_t i = 0; i <= OTHERS; i++) CHECK(is_zero(blocks[i], 100));
    }
    fa_arena_destroy(arena);
}

/* Nothing but the arena's own cursor orders what the two threads do. */
static atomic_bool is_given;
static void *use_and_give_back(void *argument) {
    fa_arena *arena = argument;
    void *block = fa_arena_alloc(arena, 100 * KIB, 0);
    memset(block, 7, 100 * KIB);
    fa_arena_free(arena, block, 100 * KIB);
    (void)fa_arena_trim(arena, SIZE_MAX);
    atomic_store_explicit(&is_given, true, memory_order_relaxed);
    return NULL;
}

TEST(memory_that_another_thread_gave_back_is_seen_as_it_left_it) {
    SKIP_IF(!HAS_THREADS, NO_THREADS);
    fa_arena *arena = new_arena(FA_SCRATCH, 64 * MIB);
    CHECK(fa_arena_alloc(arena, 64, 0) != NULL);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, use_and_give_back, arena) == 0);
    while (!atomic_load_explicit(&is_given, memory_order_relaxed)) sched_yield();
    unsigned char *block = fa_arena_alloc_zeroed(arena, 700 * KIB, 0); /* this thread's chunk, and the other's behind it */
    CHECK(block != NULL && is_zero(block, 700 * KIB));
    pthread_join(thread, NULL);
    fa_arena_destroy(arena);
}

static void *allocate_and_free(void *argument) {
    for (size_t i = 0; i < (UNDER_VALGRIND ? 100 : 20000); i++) fa_arena_free(argument, fa_arena_alloc(argument, 16, 0), 16);
    return NULL;
}

TEST(one_thread_frees_while_another_makes_marks) {
    SKIP_IF(!HAS_THREADS, NO_THREADS);
    fa_arena *arena = new_arena(FA_SCRATCH, MIB);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, allocate_and_free, arena) == 0);
    for (size_t i = 0; i < 1000; i++) CHECK(fa_arena_alloc(arena, 16, 0) != NULL && fa_arena_mark(arena).serial != 0);
    pthread_join(thread, NULL);
    CHECK(arena_stats(arena).live >= 1000 && fa_arena_is_valid(arena)); /* what lies below a mark is not taken back */
    fa_arena_destroy(arena);
}

static atomic_bool is_done;
static void *allocate_millions(void *argument) {
    worker *self = argument;
    for (size_t i = 0; i < (UNDER_VALGRIND ? 1000 : 8000000); i++)
        if (fa_arena_alloc(self->team->arena, 16, 0) == NULL) self->errors++;
    atomic_store(&is_done, true);
    return NULL;
}

TEST(no_more_blocks_live_than_were_allocated) {
    SKIP_IF(!HAS_THREADS, NO_THREADS);
    fa_arena *arena = new_arena(FA_SCRATCH, 256 * MIB);
    team one = {.arena = arena};
    worker self = {&one, 0, 0};
    pthread_t thread;
    uint64_t wrong = 0;
    CHECK(pthread_create(&thread, NULL, allocate_millions, &self) == 0);
    while (!atomic_load(&is_done)) wrong += arena_stats(arena).freed != 0;
    pthread_join(thread, NULL);
    CHECK(self.errors == 0 && wrong == 0);
    fa_arena_destroy(arena);
}

/* What a thread took back of a large block cannot go to the others when one of them is above it. */
TEST(a_large_place_below_another_threads_chunk_is_counted) {
    SKIP_IF(!HAS_THREADS, NO_THREADS);
    SKIP_IF(sizeof(size_t) < 8 || UNDER_EMULATOR, "gigabytes of addresses");
    SKIP_IF(!fa_os_platform()->lazy_commit, "gigabytes that would be charged");
    const size_t huge = (size_t)5 * 1024 * MIB;
    fa_arena *arena = new_arena(FA_SCRATCH, 2 * huge);
    void *block = fa_arena_alloc(arena, huge, 0);
    lone_worker other = {arena, NULL};
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, allocate_once, &other) == 0);
    pthread_join(thread, NULL);
    fa_arena_free(arena, block, huge);
    CHECK(fa_arena_alloc(arena, 64, 0) == block && fa_arena_alloc(arena, huge - 64, 0) != NULL);
    const fa_arena_stats stats = arena_stats(arena);
    CHECK(stats.live == 3 && stats.requested == huge + 100 && stats.used < huge + 2 * MIB);
    fa_arena_destroy(arena);
}

int main(int argc, char **argv) { return tap_main(argc, argv); }
