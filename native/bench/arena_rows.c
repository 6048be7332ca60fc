/*
 * arena_rows.c - what arenas promise: bump, reset, warm and cold vectors, wipes, a prover's rhythm, marks
 *
 * Peers have no arenas: they do the same work with malloc, aligned_alloc and free, which is what a program would use
 * instead. The 32-byte blocks are written whole, by everybody.
 */
#include "bench.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/mman.h>

static fa_arena *arena_with(fa_arena_kind kind, size_t capacity, fa_huge_pages huge, bool huge_set) {
    fa_arena_options options;
    fa_arena_options_init(&options, kind);
    options.capacity = capacity;
    options.on_full = FA_FULL_FAIL;
    if (huge_set) options.huge_pages = huge;
    fa_arena *arena = fa_arena_create(&options, NULL);
    VERIFY(arena != NULL);
    return arena;
}
static fa_arena *arena_of(fa_arena_kind kind, size_t capacity) { return arena_with(kind, capacity, FA_HUGE_OFF, false); }

/* ---- 10,000 blocks of 32 bytes, each written, then all released ------------------------------------------------------ */

#define SMALL_COUNT 10000
#define SMALL_SIZE sizeof(words)

static words *small_blocks[2][SMALL_COUNT];

/* The work, by one thread from an arena. */
static inline void small_from_arena(fa_arena *arena) {
    for (uint64_t i = 0; i < SMALL_COUNT; i++) {
        words *block = fa_arena_alloc(arena, SMALL_SIZE, 0);
        VERIFY(block != NULL);
        *block = pattern(i);
    }
}

/* The same, untimed, looking at what came out. */
static void small_check_arena(fa_arena *arena) {
    for (uint64_t i = 0; i < SMALL_COUNT; i++) {
        words *block = fa_arena_alloc(arena, SMALL_SIZE, 0);
        VERIFY(block != NULL && ((uintptr_t)block & 15) == 0 && fa_arena_owns(arena, block));
        *block = pattern(i);
        small_blocks[0][i] = block;
    }
    for (uint64_t i = 0; i < SMALL_COUNT; i++) VERIFY(has_pattern(small_blocks[0][i], i));
    fa_arena_stats stats;
    VERIFY(fa_arena_get_stats(arena, &stats) == FA_OK && stats.live == SMALL_COUNT);
    VERIFY(fa_arena_reset(arena) == FA_OK);
    VERIFY(fa_arena_get_stats(arena, &stats) == FA_OK && stats.live == 0 && stats.requested == 0);
}

static void small_ours(timing *time) {
    static fa_arena *arena;
    if (arena == NULL) small_check_arena(arena = arena_of(FA_SCRATCH, MIB));
    timing_start(time);
    small_from_arena(arena);
    const fa_status status = fa_arena_reset(arena);
    timing_stop(time);
    VERIFY(status == FA_OK);
}

static inline void small_from_limit(limit_bump *bump) {
    for (uint64_t i = 0; i < SMALL_COUNT; i++) {
        words *block = limit_bump_alloc(bump, SMALL_SIZE);
        VERIFY(block != NULL);
        *block = pattern(i);
    }
}

static void small_limit(timing *time) {
    static limit_bump bump;
    if (bump.begin == NULL) bump.cursor = bump.begin = map_pages(MIB, false);
    timing_start(time);
    small_from_limit(&bump);
    unsigned char *end = bump.cursor;
    limit_bump_release(&bump, bump.begin);
    timing_stop(time);
    VERIFY(end == bump.begin + SMALL_COUNT * SMALL_SIZE);
    for (uint64_t i = 0; i < SMALL_COUNT; i++) VERIFY(has_pattern((words *)(void *)bump.begin + i, i));
}

static inline void small_malloc(words **blocks) {
    for (uint64_t i = 0; i < SMALL_COUNT; i++) {
        words *block = malloc(SMALL_SIZE);
        VERIFY(block != NULL);
        *block = pattern(i);
        blocks[i] = block;
    }
}
static inline void small_free(words **blocks) {
    for (size_t i = 0; i < SMALL_COUNT; i++) free(blocks[i]);
}

static void small_peer(timing *time) {
    static bool checked;
    if (!checked) {
        small_malloc(small_blocks[0]);
        for (uint64_t i = 0; i < SMALL_COUNT; i++) VERIFY(has_pattern(small_blocks[0][i], i));
        small_free(small_blocks[0]);
        checked = true;
    }
    timing_start(time);
    small_malloc(small_blocks[0]);
    small_free(small_blocks[0]);
    timing_stop(time);
}

/* ---- the same on two threads at once, from one arena ------------------------------------------------------------------
 *
 * Both are let go at the same moment and time themselves; the sample is the slower one's time. The release, which both
 * need to have ended for, is the first thread's and not in the time. "1 thread" is the same code with the other thread
 * asleep: what a thread's share of the work costs when nobody is in the way.
 */

static struct {
    void (*work)(int which);
    atomic_uint turn, arrived, done;
    uint64_t elapsed;
    pthread_t thread;
    bool started;
} second;

static void wait_for(atomic_uint *variable, unsigned value) {
    for (unsigned spins = 1; atomic_load_explicit(variable, memory_order_acquire) != value; spins++)
        if (spins % 4096 == 0) sched_yield();
}

static uint64_t timed(void (*work)(int), int which) {
    const uint64_t started = nanoseconds_now();
    work(which);
    return nanoseconds_now() - started;
}

static void *second_thread(void *context) {
    (void)context;
    for (unsigned turn = 1;; turn++) {
        wait_for(&second.turn, turn);
        atomic_store(&second.arrived, turn);
        second.elapsed = timed(second.work, 1);
        atomic_store_explicit(&second.done, turn, memory_order_release);
    }
    return NULL;
}

/* A process times only one kind of work, so the second thread's part of an arena stays its own. */
static void both(timing *time, void (*work)(int which)) {
    if (!second.started) {
        VERIFY(pthread_create(&second.thread, NULL, second_thread, NULL) == 0);
        second.started = true;
    }
    second.work = work;
    const unsigned turn = atomic_load(&second.turn) + 1;
    atomic_store(&second.turn, turn);
    wait_for(&second.arrived, turn);
    const uint64_t elapsed = timed(work, 0);
    wait_for(&second.done, turn);
    time->nanoseconds = elapsed > second.elapsed ? elapsed : second.elapsed;
}

static fa_arena *shared_arena;
static void pair_arena_work(int which) {
    (void)which;
    small_from_arena(shared_arena);
}
static void pair_arena(timing *time, bool two) {
    if (shared_arena == NULL) {
        shared_arena = arena_of(FA_SCRATCH, 64 * MIB); /* as by default */
        /* Resident, all of it: whose chunk lies where changes from turn to turn. */
        unsigned char *all = fa_arena_alloc(shared_arena, 2 * MIB, 0);
        VERIFY(all != NULL);
        memset(all, 0, 2 * MIB);
        VERIFY(fa_arena_reset(shared_arena) == FA_OK);
    }
    if (two) both(time, pair_arena_work);
    else time->nanoseconds = timed(pair_arena_work, 0);
    fa_arena_stats stats;
    VERIFY(fa_arena_get_stats(shared_arena, &stats) == FA_OK && stats.live == (two ? 2 : 1) * SMALL_COUNT);
    VERIFY(fa_arena_reset(shared_arena) == FA_OK);
}
static void pair_ours(timing *time) { pair_arena(time, true); }
static void pair_ours_alone(timing *time) { pair_arena(time, false); }

static limit_bump pair_bumps[2][8]; /* on cache lines of their own */
static void pair_limit_work(int which) { small_from_limit(&pair_bumps[which][4]); }
static void pair_limit_either(timing *time, bool two) {
    for (int i = 0; i < 2; i++) {
        limit_bump *bump = &pair_bumps[i][4];
        if (bump->begin == NULL) memset(bump->begin = map_pages(MIB, false), 0, MIB);
        bump->cursor = bump->begin;
    }
    if (two) both(time, pair_limit_work);
    else time->nanoseconds = timed(pair_limit_work, 0);
    VERIFY(has_pattern((words *)(void *)pair_bumps[two ? 1 : 0][4].begin + SMALL_COUNT - 1, SMALL_COUNT - 1));
}
static void pair_limit(timing *time) { pair_limit_either(time, true); }
static void pair_limit_alone(timing *time) { pair_limit_either(time, false); }

static void pair_malloc_work(int which) {
    small_malloc(small_blocks[which]);
    small_free(small_blocks[which]);
}
static void pair_peer(timing *time) { both(time, pair_malloc_work); }

/* ---- reset with 10^2 .. 10^7 live blocks ------------------------------------------------------------------------------- */

static void reset_after(timing *time, size_t count) {
    static fa_arena *arena;
    if (arena == NULL) arena = arena_of(FA_SCRATCH, 10000000 * (size_t)16 + MIB);
    for (size_t i = 0; i < count; i++) {
        size_t *block = fa_arena_alloc(arena, 16, 0);
        VERIFY(block != NULL);
        *block = i;
    }
    fa_arena_stats stats;
    VERIFY(fa_arena_get_stats(arena, &stats) == FA_OK && stats.live == count);
    timing_start(time);
    const fa_status status = fa_arena_reset(arena);
    timing_stop(time);
    VERIFY(status == FA_OK && fa_arena_get_stats(arena, &stats) == FA_OK && stats.live == 0);
}
static void reset_2(timing *time) { reset_after(time, 100); }
static void reset_3(timing *time) { reset_after(time, 1000); }
static void reset_4(timing *time) { reset_after(time, 10000); }
static void reset_5(timing *time) { reset_after(time, 100000); }
static void reset_6(timing *time) { reset_after(time, 1000000); }
static void reset_7(timing *time) { reset_after(time, 10000000); }

static void reset_peer(timing *time) {
    enum { COUNT = 1000000 };
    static size_t **blocks;
    if (blocks == NULL) blocks = map_pages(COUNT * sizeof *blocks, false);
    for (size_t i = 0; i < COUNT; i++) {
        blocks[i] = malloc(16);
        VERIFY(blocks[i] != NULL);
        *blocks[i] = i;
    }
    timing_start(time);
    for (size_t i = 0; i < COUNT; i++) free(blocks[i]);
    timing_stop(time);
}

/* ---- acquire, memset, release: warm -------------------------------------------------------------------------------------
 *
 * The limit is a memset of resident pages, huge ones where the kernel gives them. The same memset, of the C library, writes
 * for everybody.
 */

static bool is_all(const unsigned char *memory, size_t size, unsigned char value) {
    return memory[0] == value && memcmp(memory, memory + 1, size - 1) == 0;
}

static void warm_ours_size(timing *time, size_t size) {
    static fa_arena *arena;
    static size_t checked;
    if (arena == NULL) arena = arena_of(FA_POLYNOMIAL, 256 * MIB);
    if (checked != size) {
        unsigned char *vector = fa_arena_alloc(arena, size, 0);
        VERIFY(vector != NULL && ((uintptr_t)vector & 63) == 0);
        memset(opaque(vector), 7, size);
        VERIFY(is_all(vector, size, 7));
        fa_arena_free(arena, vector, size);
        checked = size;
    }
    timing_start(time);
    unsigned char *vector = fa_arena_alloc(arena, size, 0);
    VERIFY(vector != NULL);
    memset(opaque(vector), 1, size);
    VERIFY(vector[size - 1] == 1);
    fa_arena_free(arena, vector, size);
    timing_stop(time);
}

static void warm_limit_size(timing *time, size_t size) {
    static unsigned char *memory;
    static size_t warm;
    if (memory == NULL) memory = map_pages(256 * MIB, true);
    if (warm != size) memset(memory, 0, warm = size);
    timing_start(time);
    memset(opaque(memory), 1, size);
    VERIFY(memory[size - 1] == 1);
    timing_stop(time);
}

static void warm_peer_size(timing *time, size_t size) {
    timing_start(time);
    unsigned char *vector = aligned_alloc(64, size);
    VERIFY(vector != NULL && ((uintptr_t)vector & 63) == 0);
    memset(opaque(vector), 1, size);
    VERIFY(vector[size - 1] == 1);
    free(opaque(vector));
    timing_stop(time);
}

/* ---- the same, first touch: each turn is a new process -------------------------------------------------------------------
 *
 * Creation and destruction of the arena are in the time, as mmap and munmap are in the peers'.
 */

/* The kernel's reserved huge pages, if somebody has set /proc/sys/vm/nr_hugepages. */
static size_t free_huge_pages(void) {
    size_t pages = 0;
    FILE *file = fopen("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "r");
    if (file == NULL) return 0;
    if (fscanf(file, "%zu", &pages) != 1) pages = 0;
    fclose(file);
    return pages;
}

static void cold_ours_size(timing *time, size_t size, fa_huge_pages huge) {
    if (huge == FA_HUGE_TLB_2M && free_huge_pages() * 2 * MIB < size) {
        time->skipped = true;
        return;
    }
    timing_start(time);
    fa_arena *arena = arena_with(FA_POLYNOMIAL, size, huge, true);
    unsigned char *vector = fa_arena_alloc(arena, size, 0);
    VERIFY(vector != NULL);
    memset(opaque(vector), 1, size);
    const bool written = vector[0] == 1 && vector[size - 1] == 1;
    fa_protection protection;
    VERIFY(fa_arena_get_protection(arena, &protection) == FA_OK);
    fa_arena_free(arena, vector, size);
    fa_arena_destroy(arena);
    timing_stop(time);
    VERIFY(written);
    VERIFY(huge != FA_HUGE_TLB_2M || protection.reserved_huge >= size);
    VERIFY(huge != FA_HUGE_TRANSPARENT || protection.transparent_huge >= size);
}

static void cold_limit_size(timing *time, size_t size, bool huge) {
    timing_start(time);
    unsigned char *memory = map_pages(size, huge);
    memset(opaque(memory), 1, size);
    const bool written = memory[size - 1] == 1;
    unmap_pages(memory, size);
    timing_stop(time);
    VERIFY(written);
}

#define SIZED(mib)                                                                                                     \
    static void warm_ours_##mib(timing *time) { warm_ours_size(time, (mib) * MIB); }                                   \
    static void warm_limit_##mib(timing *time) { warm_limit_size(time, (mib) * MIB); }                                 \
    static void warm_peer_##mib(timing *time) { warm_peer_size(time, (mib) * MIB); }
#define SIZED_COLD(mib)                                                                                                \
    static void cold_ours_##mib(timing *time) { cold_ours_size(time, (mib) * MIB, FA_HUGE_TRANSPARENT); }              \
    static void cold_4k_##mib(timing *time) { cold_ours_size(time, (mib) * MIB, FA_HUGE_OFF); }                        \
    static void cold_tlb_##mib(timing *time) { cold_ours_size(time, (mib) * MIB, FA_HUGE_TLB_2M); }                    \
    static void cold_limit_##mib(timing *time) { cold_limit_size(time, (mib) * MIB, true); }                           \
    static void cold_limit_4k_##mib(timing *time) { cold_limit_size(time, (mib) * MIB, false); }                       \
    static void cold_peer_##mib(timing *time) { warm_peer_size(time, (mib) * MIB); }
SIZED(1) SIZED(4) SIZED(16) SIZED(64) SIZED(256)
SIZED_COLD(1) SIZED_COLD(4) SIZED_COLD(16) SIZED_COLD(64) SIZED_COLD(256)

/* ---- wipe of a witness arena of 128 MiB of which 1 KiB, 1 MiB, 64 MiB was used -----------------------------------------
 *
 * The limit is explicit_bzero of a block of another such arena: the same kind of pages, locked or not. Wipes of 1 KiB are
 * timed sixteen at a time, because the clock has steps of some tens of nanoseconds.
 */

#define WIPES 16
#define WIPE_CAPACITY (128 * MIB)

typedef struct wiped {
    fa_arena *arena;
    unsigned char *block;
} wiped;

static void wipe_prepare(wiped *arenas, size_t count, size_t used) {
    for (size_t i = 0; i < count; i++) {
        if (arenas[i].arena == NULL) arenas[i].arena = arena_of(FA_WITNESS, WIPE_CAPACITY);
        arenas[i].block = fa_arena_alloc(arenas[i].arena, used, 0);
        VERIFY(arenas[i].block != NULL);
        memset(opaque(arenas[i].block), 1, used);
    }
}

static void wipe_used(timing *time, size_t used, size_t count) {
    static wiped arenas[WIPES];
    wipe_prepare(arenas, count, used);
    fa_status status = FA_OK;
    timing_start(time);
    for (size_t i = 0; i < count; i++) status |= fa_arena_wipe(arenas[i].arena);
    timing_stop(time);
    VERIFY(status == FA_OK);
    for (size_t i = 0; i < count; i++) VERIFY(is_all(arenas[i].block, used, 0));
}

static void wipe_limit_used(timing *time, size_t used, size_t count) {
    static wiped arenas[WIPES];
    wipe_prepare(arenas, count, used);
    timing_start(time);
    for (size_t i = 0; i < count; i++) explicit_bzero(arenas[i].block, used);
    timing_stop(time);
    for (size_t i = 0; i < count; i++) {
        VERIFY(is_all(arenas[i].block, used, 0));
        VERIFY(fa_arena_reset(arenas[i].arena) == FA_OK);
    }
}

static void wipe_kib(timing *time) { wipe_used(time, KIB, WIPES); }
static void wipe_mib(timing *time) { wipe_used(time, MIB, 1); }
static void wipe_64_mib(timing *time) { wipe_used(time, 64 * MIB, 1); }
static void wipe_limit_kib(timing *time) { wipe_limit_used(time, KIB, WIPES); }
static void wipe_limit_mib(timing *time) { wipe_limit_used(time, MIB, 1); }
static void wipe_limit_64_mib(timing *time) { wipe_limit_used(time, 64 * MIB, 1); }

/* ---- a prover's rhythm ----------------------------------------------------------------------------------------------------
 *
 * Twenty rounds of vectors of 2^16 to 2^22 elements of 8 bytes, allocated and freed in mixed order, each page of each
 * written and read back. The time is that of all rounds, the faults those after the first round, the percentage what
 * was ever resident in the arena against the largest live set. A proof does the same every time; the second row does not.
 */

#define PROVER_ROUNDS 20
#define PROVER_SLOTS 10
#define PROVER_STEPS 48
#define PAGE 4096

typedef struct prover {
    fa_arena *arena; /* null: malloc */
    unsigned char *vector[PROVER_SLOTS];
    size_t size[PROVER_SLOTS], live, largest;
    uint64_t random;
} prover;

static void prover_make(prover *self, size_t slot) {
    const size_t size = (size_t)8 << (16 + random_next(&self->random) % 7);
    unsigned char *vector = self->arena != NULL ? fa_arena_alloc(self->arena, size, 0) : aligned_alloc(64, size);
    VERIFY(vector != NULL && ((uintptr_t)vector & 63) == 0);
    for (size_t i = 0; i < size; i += PAGE) memcpy(vector + i, &i, sizeof i);
    self->vector[slot] = vector;
    self->size[slot] = size;
    self->live += size;
    if (self->live > self->largest) self->largest = self->live;
}

static void prover_drop(prover *self, size_t slot) {
    unsigned char *vector = self->vector[slot];
    size_t size = self->size[slot];
    for (size_t i = 0; i < size; i += PAGE) VERIFY(memcmp(vector + i, &i, sizeof i) == 0);
    if (self->arena != NULL) fa_arena_free(self->arena, vector, size);
    else free(vector);
    self->vector[slot] = NULL;
    self->live -= size;
}

static void prover_round(prover *self) {
    for (size_t step = 0; step < PROVER_STEPS; step++) {
        const size_t slot = (size_t)(random_next(&self->random) % PROVER_SLOTS);
        if (self->vector[slot] == NULL) prover_make(self, slot);
        else prover_drop(self, slot);
    }
    for (size_t slot = 0; slot < PROVER_SLOTS; slot++)
        if (self->vector[slot] != NULL) prover_drop(self, slot);
}

static void prover_run(timing *time, fa_arena *arena, bool same) {
    prover self = {.arena = arena};
    timing faults = {0};
    const uint64_t started = nanoseconds_now();
    for (uint64_t round = 0; round < PROVER_ROUNDS; round++) {
        if (round == 1) timing_start(&faults);
        self.random = same ? 1 : round + 1;
        prover_round(&self);
    }
    timing_stop(&faults);
    time->nanoseconds = nanoseconds_now() - started;
    time->faults = faults.faults;
    if (arena == NULL) return;
    fa_arena_stats stats;
    VERIFY(fa_arena_get_stats(arena, &stats) == FA_OK && stats.live == 0 && stats.allocated > PROVER_ROUNDS);
    /* What the rounds left resident: `peak` would not show space that no later vector fitted into. */
    time->percent = stats.resident * 100 / self.largest;
}
static void prover_ours(timing *time) { prover_run(time, arena_of(FA_POLYNOMIAL, 1024 * MIB), true); }
static void prover_ours_other(timing *time) { prover_run(time, arena_of(FA_POLYNOMIAL, 1024 * MIB), false); }
static void prover_peer(timing *time) { prover_run(time, NULL, true); }
static void prover_peer_other(timing *time) { prover_run(time, NULL, false); }

/* ---- mark and rewind around 100 small allocations --------------------------------------------------------------------------- */

#define SCOPES 100
#define SCOPE_COUNT 100

static void mark_ours(timing *time) {
    static fa_arena *arena;
    if (arena == NULL) arena = arena_of(FA_SCRATCH, MIB);
    fa_status status = FA_OK;
    timing_start(time);
    for (size_t scope = 0; scope < SCOPES; scope++) {
        const fa_mark mark = fa_arena_mark(arena);
        for (uint64_t i = 0; i < SCOPE_COUNT; i++) {
            words *block = fa_arena_alloc(arena, SMALL_SIZE, 0);
            VERIFY(block != NULL);
            *block = pattern(i);
        }
        status |= fa_arena_rewind(arena, mark);
    }
    timing_stop(time);
    fa_arena_stats stats;
    VERIFY(status == FA_OK && fa_arena_get_stats(arena, &stats) == FA_OK && stats.live == 0);
    VERIFY(stats.allocated >= SCOPES * SCOPE_COUNT && stats.peak < 2 * SCOPE_COUNT * SMALL_SIZE);
}

static void mark_limit(timing *time) {
    static limit_bump bump;
    if (bump.begin == NULL) bump.cursor = bump.begin = map_pages(MIB, false);
    timing_start(time);
    for (size_t scope = 0; scope < SCOPES; scope++) {
        unsigned char *mark = bump.cursor;
        for (uint64_t i = 0; i < SCOPE_COUNT; i++) {
            words *block = limit_bump_alloc(&bump, SMALL_SIZE);
            VERIFY(block != NULL);
            *block = pattern(i);
        }
        limit_bump_release(&bump, mark);
    }
    timing_stop(time);
    VERIFY(bump.cursor == bump.begin);
}

static void mark_peer(timing *time) {
    timing_start(time);
    for (size_t scope = 0; scope < SCOPES; scope++) {
        for (uint64_t i = 0; i < SCOPE_COUNT; i++) {
            words *block = malloc(SMALL_SIZE);
            VERIFY(block != NULL);
            *block = pattern(i);
            small_blocks[0][i] = block;
        }
        for (size_t i = 0; i < SCOPE_COUNT; i++) free(small_blocks[0][i]);
    }
    timing_stop(time);
}

/* ---- the rows ------------------------------------------------------------------------------------------------------------------ */

#define WARM(mib, times)                                                                                               \
    {.name = #mib " MiB warm: acquire, memset, release", .id = "warm-" #mib, .repeats = times,                         \
     .jobs = {{"ours", warm_ours_##mib, false}, {"limit", warm_limit_##mib, false}, {"", warm_peer_##mib, true}},      \
     .targets = {{AT_MOST_TIMES, "ours", "limit", 1.08}, {AT_MOST_FAULTS, "ours", NULL, 0}}}
#define COLD_JOBS(mib)                                                                                                 \
    {{"ours", cold_ours_##mib, false},        {"ours, 4 KiB", cold_4k_##mib, false},                                   \
     {"ours, hugetlb", cold_tlb_##mib, false}, {"limit", cold_limit_##mib, false},                                     \
     {"limit, 4 KiB", cold_limit_4k_##mib, false}, {"", cold_peer_##mib, true}}
#define COLD(mib, ...)                                                                                                 \
    {.name = #mib " MiB cold: create, acquire, memset, release", .id = "cold-" #mib, .fresh = true,                    \
     .jobs = COLD_JOBS(mib), .targets = {__VA_ARGS__}}
#define WIPE(text, id_, job_, times, batch, slack)                                                                     \
    {.name = "wipe, " text " used of 128 MiB", .id = id_, .repeats = times, .operations = batch,                       \
     .jobs = {{"ours", wipe_##job_, false}, {"limit", wipe_limit_##job_, false}},                                      \
     .targets = {{AT_MOST_TIMES, "ours", "limit", slack}}}

const bench_row arena_rows[] = {
    {.name = "10,000 x 32 B from an arena, written, released",
     .id = "small",
     .repeats = 51,
     .jobs = {{"ours", small_ours, false}, {"limit", small_limit, false}, {"", small_peer, true}},
     .targets = {{AT_MOST_TIMES, "ours", "limit", 1.4}, {FASTER_TIMES, "ours", "glibc", 4}}},
    {.name = "the same on 2 threads at once, each, from one arena",
     .id = "threads",
     .repeats = 51,
     .jobs = {{"ours", pair_ours, false},
              {"ours, 1 thread", pair_ours_alone, false},
              {"limit", pair_limit, false},
              {"limit, 1 thread", pair_limit_alone, false},
              {"", pair_peer, true}},
     .targets = {{AT_MOST_TIMES, "ours", "ours, 1 thread", 1.25}}},
    {.name = "reset with 10^2 .. 10^7 live blocks (peers: free of 10^6)",
     .id = "reset",
     .repeats = 3,
     .jobs = {{"10^2", reset_2, false}, {"10^3", reset_3, false}, {"10^4", reset_4, false}, {"10^5", reset_5, false},
              {"10^6", reset_6, false}, {"10^7", reset_7, false}, {"", reset_peer, true}},
     .targets = {{AT_MOST_NS, "10^2", NULL, 1000}, {AT_MOST_NS, "10^3", NULL, 1000}, {AT_MOST_NS, "10^4", NULL, 1000},
                 {AT_MOST_NS, "10^5", NULL, 1000}, {AT_MOST_NS, "10^6", NULL, 1000}, {AT_MOST_NS, "10^7", NULL, 1000}}},
    WARM(1, 51), WARM(4, 25), WARM(16, 11), WARM(64, 5), WARM(256, 3),
    COLD(1, {NO_TARGET, NULL, NULL, 0}), COLD(4, {NO_TARGET, NULL, NULL, 0}),
    COLD(16, {FASTER_TIMES, "ours", "glibc", 2}), COLD(64, {FASTER_TIMES, "ours", "glibc", 2}),
    COLD(256, {FASTER_TIMES, "ours", "glibc", 2}),
    WIPE("1 KiB", "wipe-1k", kib, 101, WIPES, 1.05), WIPE("1 MiB", "wipe-1m", mib, 25, 1, 1.05),
    WIPE("64 MiB", "wipe-64m", 64_mib, 3, 1, 1.05),
    {.name = "a prover's rhythm: 20 rounds, every round the same",
     .id = "prover",
     .rounds = 5,
     .fresh = true,
     .jobs = {{"ours", prover_ours, false}, {"", prover_peer, true}},
     .targets = {{AT_MOST_FAULTS, "ours", NULL, 0}, {AT_MOST_PERCENT, "ours", NULL, 125}}},
    {.name = "a prover's rhythm: 20 rounds, every round another order",
     .id = "prover-random",
     .rounds = 5,
     .fresh = true,
     .jobs = {{"ours", prover_ours_other, false}, {"", prover_peer_other, true}},
     .targets = {{AT_MOST_FAULTS, "ours", NULL, 0}, {AT_MOST_PERCENT, "ours", NULL, 125}}},
    {.name = "mark, 100 x 32 B, rewind",
     .id = "mark",
     .operations = SCOPES,
     .repeats = 51,
     .jobs = {{"ours", mark_ours, false}, {"limit", mark_limit, false}, {"", mark_peer, true}},
     .targets = {{AT_MOST_TIMES, "ours", "limit", 1.2}}},
    {.name = NULL},
};
