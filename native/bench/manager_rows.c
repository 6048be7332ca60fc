/*
 * manager_rows.c - what the manager promises: churn with zeroing, a million live blocks, realloc; and operation counts
 *
 * Zeroing is part of the manager's promise and not of malloc's, so a peer is measured twice: as it is, and with a memset
 * of the block before each free, which is what a program would have to do for the same promise (a little less: it clears
 * what was asked for, the manager all of the block).
 */
#include "bench.h"

/* The sizes and the order are the same for everybody. */
#define LIVE 4096
#define CHURN 20000
#define PLAN 65536

/* ---- churn ---------------------------------------------------------------------------------------------------------- */

typedef struct churn {
    uint32_t slot[PLAN], wanted[PLAN]; /* free this slot's block, allocate this size for it */
    unsigned char *block[LIVE];
    uint32_t size[LIVE];
    size_t position;
    fa_manager *manager;
    bool planned, filled;
} churn;

typedef enum churner { OURS, HARDENED, PEER, PEER_ZEROING, STACK, STACK_ZEROING } churner;
static limit_stack stack;

static inline unsigned char *churn_alloc(churn *self, churner who, uint32_t size) {
    unsigned char *block;
    if (who == OURS || who == HARDENED) block = fa_malloc(self->manager, size);
    else if (who == STACK || who == STACK_ZEROING) block = limit_stack_pop(&stack);
    else block = malloc(size);
    VERIFY(block != NULL);
    block[0] = block[size - 1] = (unsigned char)size;
    return block;
}

static inline void churn_free(churn *self, churner who, void *block, uint32_t size) {
    if (who == OURS || who == HARDENED) fa_free(self->manager, block);
    else if (who == STACK) limit_stack_push(&stack, block);
    else if (who == STACK_ZEROING) limit_stack_zero_push(&stack, block);
    else {
        if (who == PEER_ZEROING) limit_zero(block, size);
        free(block);
    }
}

static fa_manager *churn_manager(bool hardened) {
    fa_manager_options options;
    fa_manager_options_init(&options);
    if (hardened) options.flags |= FA_HARDENED;
    fa_manager *manager = fa_manager_create(&options, NULL);
    VERIFY(manager != NULL);
    return manager;
}

static void churn_plan(churn *self, bool mixed) {
    uint64_t random = 42;
    for (size_t i = 0; i < PLAN; i++) {
        self->slot[i] = (uint32_t)(random_next(&random) % LIVE);
        const uint64_t value = random_next(&random);
        if (!mixed) self->wanted[i] = (uint32_t)(1 + value % 128);
        else if (value % 100 == 0) self->wanted[i] = (uint32_t)(8 * KIB + (value >> 32) % (56 * KIB));
        else self->wanted[i] = (uint32_t)(1 + (value >> 32) % 1024);
    }
    self->planned = true;
}

/* Every live block holds what was written into it. */
static void churn_check(const churn *self) {
    for (size_t i = 0; i < LIVE; i++) {
        const unsigned char *block = self->block[i];
        VERIFY(block[0] == (unsigned char)self->size[i] && block[self->size[i] - 1] == (unsigned char)self->size[i]);
    }
}

/* Inlined into each contestant, with `who` a constant. */
static inline __attribute__((always_inline)) void churn_run(timing *time, churn *self, churner who, bool mixed) {
    if (!self->planned) churn_plan(self, mixed);
    if (!self->filled) {
        if (who == OURS || who == HARDENED) self->manager = churn_manager(who == HARDENED);
        for (size_t i = 0; i < LIVE; i++) self->block[i] = churn_alloc(self, who, self->size[i] = self->wanted[i]);
        self->filled = true;
    }
    timing_start(time);
    for (size_t i = 0; i < CHURN; i++) {
        const size_t at = (self->position + i) % PLAN;
        const uint32_t slot = self->slot[at], wanted = self->wanted[at];
        churn_free(self, who, self->block[slot], self->size[slot]);
        self->block[slot] = churn_alloc(self, who, self->size[slot] = wanted);
    }
    timing_stop(time);
    self->position += CHURN;
    churn_check(self);
    fa_manager_stats stats;
    if (who == OURS || who == HARDENED)
        VERIFY(fa_manager_get_stats(self->manager, &stats) == FA_OK && stats.live == LIVE);
    if (who == HARDENED) VERIFY(fa_manager_check(self->manager) == FA_OK);
}

#define CHURN_JOB(name, who, mixed)                                                                                    \
    static void name(timing *time) {                                                                                   \
        static churn self;                                                                                             \
        churn_run(time, &self, who, mixed);                                                                            \
    }
CHURN_JOB(churn_small_ours, OURS, false)
CHURN_JOB(churn_small_hardened, HARDENED, false)
CHURN_JOB(churn_small_peer, PEER, false)
CHURN_JOB(churn_small_peer_zeroing, PEER_ZEROING, false)
CHURN_JOB(churn_mixed_ours, OURS, true)
CHURN_JOB(churn_mixed_hardened, HARDENED, true)
CHURN_JOB(churn_mixed_peer, PEER, true)
CHURN_JOB(churn_mixed_peer_zeroing, PEER_ZEROING, true)

/* The limit: blocks of one size from a stack of pointers, with the zeroing and without. */
static void stack_fill(size_t block_size) {
    static bool filled;
    if (filled) return;
    filled = true;
    unsigned char *memory = map_pages(2 * LIVE * block_size, false);
    memset(memory, 1, 2 * LIVE * block_size);
    for (size_t i = 0; i < 2 * LIVE; i++) limit_stack_push(&stack, memory + i * block_size);
}
static void churn_small_limit(timing *time) {
    static churn self;
    stack_fill(128);
    churn_run(time, &self, STACK, false);
}
static void churn_small_limit_zeroing(timing *time) {
    static churn self;
    stack_fill(128);
    churn_run(time, &self, STACK_ZEROING, false);
}

/* What nobody who keeps the promise can avoid: a memset of each block that is freed, where it lies. */
static void churn_mixed_zeroing(timing *time) {
    static churn self;
    if (!self.planned) churn_plan(&self, true);
    if (!self.filled) {
        size_t bytes = 0;
        for (size_t i = 0; i < LIVE; i++) bytes += self.wanted[i];
        unsigned char *memory = map_pages(bytes, true);
        memset(memory, 1, bytes);
        for (size_t i = 0; i < LIVE; memory += self.wanted[i], i++) {
            self.block[i] = memory;
            self.size[i] = self.wanted[i];
        }
        self.filled = true;
    }
    timing_start(time);
    for (size_t i = 0; i < CHURN; i++) {
        const uint32_t slot = self.slot[(self.position + i) % PLAN];
        limit_zero(self.block[slot], self.size[slot]);
    }
    timing_stop(time);
    self.position += CHURN;
}

/* ---- one million live blocks of 32 bytes, far beyond the pool ---------------------------------------------------------- */

#define MANY ((size_t)1000000)

typedef enum part { ALLOCATE = 1, FREE = 2, TOTAL = 3 } part;
static words **many;

static void many_check(void) {
    for (size_t i = 0; i < MANY; i++) VERIFY(has_pattern(many[i], i));
}

static void many_begin(timing *time, part timed) {
    if (many == NULL) memset(many = map_pages(MANY * sizeof *many, false), 0, MANY * sizeof *many);
    if ((timed & ALLOCATE) != 0) timing_start(time);
}
static void many_middle(timing *time, part timed) {
    if ((timed & ALLOCATE) != 0) timing_stop(time);
    many_check();
    if ((timed & FREE) != 0) timing_start(time);
}

/* With one manager for all repetitions, as a peer has one heap, or a new one for each. */
static void many_ours(timing *time, part timed, bool new_one) {
    static fa_manager *manager;
    if (manager == NULL) VERIFY((manager = fa_manager_create(NULL, NULL)) != NULL);
    many_begin(time, timed);
    for (uint64_t i = 0; i < MANY; i++) {
        words *block = fa_malloc(manager, sizeof *block);
        VERIFY(block != NULL);
        *block = pattern(i);
        many[i] = block;
    }
    many_middle(time, timed);
    for (size_t i = 0; i < MANY; i++) fa_free(manager, many[i]);
    if ((timed & FREE) != 0) timing_stop(time);
    fa_manager_stats stats;
    VERIFY(fa_manager_get_stats(manager, &stats) == FA_OK && stats.live == 0 && stats.freed % MANY == 0);
    VERIFY(stats.pool_blocks < MANY && stats.fallbacks >= MANY - stats.pool_blocks);
    if (!new_one) return;
    fa_manager_destroy(manager);
    manager = NULL;
}

static void many_limit(timing *time, part timed) {
    static limit_bump bump;
    if (bump.begin == NULL) bump.cursor = bump.begin = map_pages(MANY * sizeof(words), true);
    many_begin(time, timed);
    for (uint64_t i = 0; i < MANY; i++) {
        words *block = limit_bump_alloc(&bump, sizeof *block);
        VERIFY(block != NULL);
        *block = pattern(i);
        many[i] = block;
    }
    many_middle(time, timed);
    for (size_t i = 0; i < MANY; i++) limit_zero(many[i], sizeof(words));
    if ((timed & FREE) != 0) timing_stop(time);
    limit_bump_release(&bump, bump.begin);
}

static void many_peer(timing *time, part timed, bool zeroing) {
    many_begin(time, timed);
    for (uint64_t i = 0; i < MANY; i++) {
        words *block = malloc(sizeof *block);
        VERIFY(block != NULL);
        *block = pattern(i);
        many[i] = block;
    }
    many_middle(time, timed);
    for (size_t i = 0; i < MANY; i++) {
        if (zeroing) limit_zero(many[i], sizeof(words));
        free(many[i]);
    }
    if ((timed & FREE) != 0) timing_stop(time);
}

#define MANY_JOBS(name, part)                                                                                          \
    static void many_ours_##name(timing *time) { many_ours(time, part, false); }                                       \
    static void many_new_##name(timing *time) { many_ours(time, part, true); }                                         \
    static void many_limit_##name(timing *time) { many_limit(time, part); }                                            \
    static void many_peer_##name(timing *time) { many_peer(time, part, false); }                                       \
    static void many_zero_##name(timing *time) { many_peer(time, part, true); }
MANY_JOBS(alloc, ALLOCATE)
MANY_JOBS(free, FREE)
MANY_JOBS(total, TOTAL)

/* ---- realloc from 64 MiB to 1 GiB in doublings, every byte written and checked; only the growth is timed ---------------- */

#define GROW_FROM (64 * MIB)
#define GROW_TO (1024 * MIB)

static uint64_t grow_word(size_t i) { return (i + 1) * 0x9E3779B97F4A7C15U; }

static void grow_fill(uint64_t *vector, size_t from, size_t to) {
    for (size_t i = from / 8; i < to / 8; i++) vector[i] = grow_word(i);
}
static void grow_check(const uint64_t *vector, size_t to) {
    uint64_t wrong = 0;
    for (size_t i = 0; i < to / 8; i++) wrong |= vector[i] ^ grow_word(i);
    VERIFY(wrong == 0);
}

typedef enum grower { GROW_OURS, GROW_COPY, GROW_PEER } grower;

static void grow(timing *time, grower who) {
    fa_manager *manager = NULL;
    if (who != GROW_PEER) VERIFY((manager = fa_manager_create(NULL, NULL)) != NULL);
    uint64_t *vector = who == GROW_PEER ? malloc(GROW_FROM) : fa_malloc(manager, GROW_FROM);
    VERIFY(vector != NULL);
    grow_fill(vector, 0, GROW_FROM);
    for (size_t size = GROW_FROM; size < GROW_TO; size *= 2) {
        uint64_t *moved;
        timing_start(time);
        if (who == GROW_OURS) moved = fa_realloc(manager, vector, 2 * size);
        else if (who == GROW_PEER) moved = realloc(vector, 2 * size);
        else {
            moved = fa_malloc(manager, 2 * size);
            VERIFY(moved != NULL);
            memcpy(opaque(moved), opaque(vector), size);
            fa_free(manager, vector);
        }
        timing_stop(time);
        VERIFY(moved != NULL);
        vector = moved;
        grow_check(vector, size);
        grow_fill(vector, size, 2 * size);
    }
    grow_check(vector, GROW_TO);
    if (who == GROW_PEER) free(vector);
    else fa_manager_destroy(manager);
}
static void grow_ours(timing *time) { grow(time, GROW_OURS); }
static void grow_copy(timing *time) { grow(time, GROW_COPY); }
static void grow_peer(timing *time) { grow(time, GROW_PEER); }

/* ---- counts: so many operations and nothing else that depends on their number --------------------------------------------- */

bool count_operations(const char *name, size_t count) {
    enum { HELD = 4096 };
    static void *block[HELD];
    const bool nothing = strcmp(name, "nothing") == 0, bump = strcmp(name, "bump") == 0;
    const bool small = strcmp(name, "malloc+free") == 0, slab = strcmp(name, "malloc+free, slabs") == 0;
    const size_t size = slab ? 200 : 32;
    if (nothing) {
        for (size_t i = 0; i < count; i++) limit_nothing(block, size);
    } else if (bump) {
        unsigned char *memory = map_pages((count + 1) * size, false);
        limit_bump state = {memory, memory};
        for (size_t i = 0; i < count; i++) VERIFY(limit_bump_alloc(&state, size) != NULL);
    } else if (strcmp(name, "arena") == 0) {
        fa_arena_options options;
        fa_arena_options_init(&options, FA_SCRATCH);
        options.capacity = (count + 1) * size;
        fa_arena *arena = fa_arena_create(&options, NULL);
        VERIFY(arena != NULL);
        for (size_t i = 0; i < count; i++) VERIFY(fa_arena_alloc(arena, size, 0) != NULL);
        fa_arena_destroy(arena);
    } else if (strcmp(name, "mapped, newest") == 0 || strcmp(name, "mapped, waiting") == 0) {
        /* The newest block, or one below another. */
        fa_arena_options options;
        fa_arena_options_init(&options, FA_POLYNOMIAL);
        options.flags = FA_TRACKED;
        fa_arena *arena = fa_arena_create(&options, NULL);
        VERIFY(arena != NULL && fa_arena_alloc(arena, 64, 64) != NULL);
        void *first = fa_arena_alloc(arena, 64, 64);
        if (strcmp(name, "mapped, waiting") == 0) {
            VERIFY(fa_arena_alloc(arena, 64, 64) != NULL);
            fa_arena_free(arena, first, 64);
        }
        for (size_t i = 0; i < count; i++) {
            VERIFY((first = fa_arena_alloc(arena, 64, 64)) != NULL);
            fa_arena_free(arena, first, 64);
        }
        fa_arena_destroy(arena);
    } else if (strcmp(name, "malloc") == 0 || small || slab) {
        fa_manager *manager = fa_manager_create(NULL, NULL);
        VERIFY(manager != NULL && count <= HELD);
        /* Twice, so that what is counted comes from the stack of freed blocks. */
        for (size_t i = 0; i < HELD; i++) VERIFY((block[i] = fa_malloc(manager, size)) != NULL);
        for (size_t i = 0; i < HELD; i++) fa_free(manager, block[HELD - 1 - i]);
        for (size_t i = 0; i < count; i++) VERIFY((block[i] = fa_malloc(manager, size)) != NULL);
        if (small || slab)
            for (size_t i = 0; i < count; i++) fa_free(manager, block[i]);
        /* Not destroyed: that would cost for each block that is live. */
    } else return false;
    return true;
}

/* ---- the rows ---------------------------------------------------------------------------------------------------------------- */

#define MANY_ROW(text, id_, part, ...)                                                                                 \
    {.name = "10^6 live blocks of 32 B beyond the pool: " text, .id = id_, .repeats = 2,                               \
     .jobs = {{"ours", many_ours_##part, false}, {"ours, new manager", many_new_##part, false},                        \
              {"limit", many_limit_##part, false}, {"", many_peer_##part, true}, {" + memset", many_zero_##part, true}}, \
     .targets = {__VA_ARGS__}}

const bench_row manager_rows[] = {
    {.name = "churn of 1-128 B, 4,096 live: free + malloc",
     .id = "churn",
     .operations = CHURN,
     .repeats = 15,
     .jobs = {{"ours", churn_small_ours, false},
              {"ours, hardened", churn_small_hardened, false},
              {"limit", churn_small_limit_zeroing, false},
              {"limit, no zeroing", churn_small_limit, false},
              {"", churn_small_peer, true},
              {" + memset", churn_small_peer_zeroing, true}},
     .targets = {{AT_MOST_TIMES, "ours", "mimalloc", 1}, {AT_MOST_TIMES, "ours", "mimalloc + memset", 1},
                 {AT_MOST_TIMES, "ours, hardened", "ours", 1.5}}},
    {.name = "churn of 1 B-1 KiB with 1 % of 8-64 KiB, 4,096 live: free + malloc",
     .id = "churn-mixed",
     .operations = CHURN,
     .repeats = 15,
     .jobs = {{"ours", churn_mixed_ours, false},
              {"ours, hardened", churn_mixed_hardened, false},
              {"limit", churn_mixed_zeroing, false},
              {"", churn_mixed_peer, true},
              {" + memset", churn_mixed_peer_zeroing, true}},
     .targets = {{AT_MOST_TIMES, "ours", "mimalloc", 1.3}, {AT_MOST_TIMES, "ours", "mimalloc + memset", 1.3},
                 {AT_MOST_TIMES, "ours, hardened", "ours", 1.5}}},
    MANY_ROW("malloc", "many-malloc", alloc, {AT_MOST_TIMES, "ours", "glibc", 1}),
    MANY_ROW("free", "many-free", free, {AT_MOST_TIMES, "ours", "glibc", 1}, {AT_MOST_TIMES, "ours", "glibc + memset", 1}),
    MANY_ROW("both", "many", total, {AT_MOST_TIMES, "ours", "glibc", 1}, {AT_MOST_TIMES, "ours", "glibc + memset", 1}),
    {.name = "realloc from 64 MiB to 1 GiB in doublings",
     .id = "grow",
     .rounds = 3,
     .jobs = {{"ours", grow_ours, false}, {"malloc + memcpy + free", grow_copy, false}, {"", grow_peer, true}},
     .targets = {{FASTER_TIMES, "ours", "malloc + memcpy + free", 10}}},
    {.name = NULL},
};
