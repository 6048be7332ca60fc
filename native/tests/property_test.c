/*
 * property_test.c - long random sequences, each step checked against a model that is too simple to be wrong
 *
 * The model is a list of live blocks and the seed of the pattern that fills each of them. A block that overlaps another,
 * or that is handed out twice, breaks a pattern; after every step the heap recounts itself (*_is_valid).
 */
#include "heap/arena.h"
#include "heap/manager.h"
#include "support.h"

#define SLOTS 48
/* The sanitizers are slow; the same seeds run at full length in a plain build. */
#define STEPS (UNDER_SANITIZER || UNDER_VALGRIND ? 800 : 3000)
#define SEEDS (UNDER_VALGRIND ? 1U : UNDER_SANITIZER ? 4 : 20)

typedef struct model_block {
    unsigned char *address;
    size_t size;
    size_t alignment;
    uint64_t seed;
} model_block;

typedef struct model {
    model_block live[SLOTS];
    size_t count;
    uint64_t next_seed;
} model;

static uint64_t model_requested(const model *all) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < all->count; i++) bytes += all->live[i].size;
    return bytes;
}

static void model_add(model *all, unsigned char *address, size_t size, size_t alignment) {
    for (size_t i = 0; i < all->count; i++) {
        const model_block *other = &all->live[i];
        CHECK(address != other->address);
        CHECK(address + size <= other->address || other->address + other->size <= address);
    }
    CHECK(is_aligned(address, alignment < 2 * sizeof(void *) ? 2 * sizeof(void *) : alignment));
    all->live[all->count++] = (model_block){address, size, alignment, ++all->next_seed};
    fill(address, size, all->next_seed);
}

static model_block model_remove(model *all, size_t index) {
    const model_block block = all->live[index];
    CHECK(is_filled(block.address, block.size, block.seed));
    all->live[index] = all->live[--all->count];
    return block;
}

static void model_check(const model *all) {
    for (size_t i = 0; i < all->count; i++) CHECK(is_filled(all->live[i].address, all->live[i].size, all->live[i].seed));
}

/* Mostly small, sometimes large, often the same as before. */
static size_t random_size(random_source *random, size_t largest) {
    switch (random_below(random, 8)) {
    case 0: return 0;
    case 1: return (size_t)1 << random_below(random, 12);
    case 2: return random_below(random, largest);
    case 3: return 4096 * (1 + random_below(random, 8));
    default: return random_below(random, 700);
    }
}

static size_t random_alignment(random_source *random) {
    return random_below(random, 4) != 0 ? 0 : (size_t)1 << random_below(random, 14);
}

/* ---- arenas ------------------------------------------------------------------------------------------------------ */

typedef struct arena_model {
    fa_arena *arena;
    fa_arena_kind kind;
    bool tracked;
    bool use_marks;
    model blocks;
    struct {
        fa_mark mark;
        uint64_t seed; /* of the newest block when it was taken: what has a greater one was made since */
    } marks[8];
    size_t mark_count;
} arena_model;

/* Without tracking or reuse the arena cannot know a block that is not the newest. */
static bool knows_blocks(const arena_model *self) { return self->kind != FA_SCRATCH || self->tracked; }

static void arena_allocate(arena_model *self, random_source *random) {
    if (self->blocks.count == SLOTS) return;
    const size_t size = random_size(random, 60000), alignment = random_alignment(random);
    const bool zeroed = random_below(random, 3) == 0;
    unsigned char *block = zeroed ? fa_arena_alloc_zeroed(self->arena, size, alignment)
                                  : fa_arena_alloc(self->arena, size, alignment);
    if (block == NULL) return;
    if (zeroed || self->kind == FA_WITNESS) CHECK(is_zero(block, size));
    CHECK(fa_arena_owns(self->arena, block));
    if (knows_blocks(self)) CHECK(fa_arena_usable_size(self->arena, block) >= size);
    model_add(&self->blocks, block, size, alignment);
}

static void arena_release(arena_model *self, random_source *random) {
    if (self->blocks.count == 0) return;
    const model_block block = model_remove(&self->blocks, random_below(random, self->blocks.count));
    fa_arena_free(self->arena, block.address, block.size);
}

static void arena_resize(arena_model *self, random_source *random) {
    if (self->blocks.count == 0) return;
    const size_t index = random_below(random, self->blocks.count);
    const model_block block = self->blocks.live[index];
    const size_t size = random_size(random, 60000);
    unsigned char *moved = fa_arena_realloc(self->arena, block.address, block.size, size, block.alignment);
    if (moved == NULL) return;
    CHECK(is_filled(moved, block.size < size ? block.size : size, block.seed));
    self->blocks.live[index] = self->blocks.live[--self->blocks.count];
    model_add(&self->blocks, moved, size, block.alignment);
    if (moved == block.address) { /* in place: as old as it was, also for the marks */
        self->blocks.live[self->blocks.count - 1].seed = block.seed;
        fill(moved, size, block.seed);
    }
}

static void arena_take_mark(arena_model *self) {
    if (!self->use_marks || self->mark_count == 8) return;
    self->marks[self->mark_count].mark = fa_arena_mark(self->arena);
    self->marks[self->mark_count++].seed = self->blocks.next_seed;
}

static void arena_rewind(arena_model *self, random_source *random) {
    if (self->mark_count == 0) return;
    const size_t index = random_below(random, self->mark_count);
    const uint64_t seed = self->marks[index].seed;
    size_t since = 0;
    for (size_t i = 0; i < self->blocks.count; i++) since += self->blocks.live[i].seed > seed;
    const fa_status status = fa_arena_rewind(self->arena, self->marks[index].mark);
    if (self->tracked && since > 0) {
        CHECK(status == FA_ERR_BUSY);
        return;
    }
    CHECK(status == FA_OK);
    for (size_t i = self->blocks.count; i-- > 0;) {
        if (self->blocks.live[i].seed > seed) self->blocks.live[i] = self->blocks.live[--self->blocks.count];
    }
    for (size_t i = index + 1; i < self->mark_count; i++) {
        /* Two marks with nothing between them may be one. */
        if (self->marks[i].mark.serial == self->marks[index].mark.serial) continue;
        CHECK(fa_arena_rewind(self->arena, self->marks[i].mark) == FA_ERR_STALE);
    }
    self->mark_count = index + 1;
}

static void arena_reset_or_wipe(arena_model *self, random_source *random) {
    const bool wipe = random_below(random, 2) == 0;
    const bool busy = self->tracked && self->blocks.count > 0;
    const fa_status status = wipe ? fa_arena_wipe(self->arena) : fa_arena_reset(self->arena);
    CHECK(status == (busy && !wipe ? FA_ERR_BUSY : FA_OK));
    if (busy && !wipe) return;
    if (busy) {
        for (size_t i = 0; i < self->blocks.count; i++) {
            CHECK(is_zero(self->blocks.live[i].address, self->blocks.live[i].size));
            fill(self->blocks.live[i].address, self->blocks.live[i].size, self->blocks.live[i].seed);
        }
        return; /* marks live on: nothing was released */
    }
    self->blocks.count = 0;
    self->mark_count = 0;
}

static void arena_step(arena_model *self, random_source *random) {
    const size_t choice = random_below(random, 100);
    if (choice < 50) {
        arena_allocate(self, random);
    } else if (choice < 80) {
        arena_release(self, random);
    } else if (choice < 90) {
        arena_resize(self, random);
    } else if (choice < 94) {
        arena_take_mark(self);
    } else if (choice < 97) {
        arena_rewind(self, random);
    } else if (choice < 98) {
        arena_reset_or_wipe(self, random);
    } else {
        CHECK(trim_is_fine(fa_arena_trim(self->arena, random_below(random, 100000))));
    }
}

static void run_arena(fa_arena_kind kind, unsigned flags, fa_full_policy on_full, bool use_marks) {
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        fa_arena_options options = arena_options(kind, 768 * KIB);
        options.flags = flags;
        options.on_full = on_full;
        arena_model self = {.arena = arena_with(&options), .kind = kind, .use_marks = use_marks};
        self.tracked = flags == FA_TRACKED;
        random_source random = {seed};
        for (size_t step = 0; step < STEPS; step++) {
            arena_step(&self, &random);
            const bool valid = fa_arena_is_valid(self.arena);
            if (!valid) printf("# seed %d, step %d\n", (int)seed, (int)step);
            CHECK(valid);
            const fa_arena_stats stats = arena_stats(self.arena);
            if (knows_blocks(&self)) {
                CHECK(stats.live == self.blocks.count);
                CHECK(stats.requested == model_requested(&self.blocks));
            }
            CHECK(stats.allocated - stats.freed == stats.live);
            CHECK(stats.used <= stats.capacity && stats.peak >= stats.used);
            if (step % 50 == 0) model_check(&self.blocks);
        }
        model_check(&self.blocks);
        fa_arena_destroy(self.arena);
    }
}

TEST(witness_arenas_hold_against_the_model) { run_arena(FA_WITNESS, 0, FA_FULL_FAIL, false); }
TEST(polynomial_arenas_hold_against_the_model) { run_arena(FA_POLYNOMIAL, 0, FA_FULL_FAIL, false); }
TEST(scratch_arenas_hold_against_the_model) { run_arena(FA_SCRATCH, 0, FA_FULL_FAIL, false); }
TEST(arenas_with_fallback_hold_against_the_model) {
    run_arena(FA_POLYNOMIAL, 0, FA_FULL_FALLBACK, false);
    run_arena(FA_SCRATCH, 0, FA_FULL_FALLBACK, false);
}
TEST(witness_arenas_with_marks_hold_against_the_model) { run_arena(FA_WITNESS, 0, FA_FULL_FAIL, true); }
TEST(polynomial_arenas_with_marks_hold_against_the_model) { run_arena(FA_POLYNOMIAL, 0, FA_FULL_FALLBACK, true); }
TEST(scratch_arenas_with_marks_hold_against_the_model) { run_arena(FA_SCRATCH, 0, FA_FULL_FALLBACK, true); }
TEST(tracked_witness_arenas_hold_against_the_model) { run_arena(FA_WITNESS, FA_TRACKED, FA_FULL_FAIL, true); }
TEST(tracked_polynomial_arenas_hold_against_the_model) { run_arena(FA_POLYNOMIAL, FA_TRACKED, FA_FULL_FALLBACK, true); }
TEST(tracked_scratch_arenas_hold_against_the_model) { run_arena(FA_SCRATCH, FA_TRACKED, FA_FULL_FALLBACK, true); }

/* ---- scopes: left in any order, with live blocks, against a model of which blocks lie in which scope ---------------- */

#define SCOPES 12

static void run_scopes(fa_arena_kind kind, uint64_t seed) {
    fa_arena_options options = arena_options(kind, 768 * KIB);
    options.flags = FA_TRACKED;
    fa_arena *arena = arena_with(&options);
    model blocks = {.count = 0};
    struct {
        fa_mark mark;
        uint64_t seed;
    } scopes[SCOPES];
    size_t count = 0;
    random_source random = {seed};
    for (size_t step = 0; step < STEPS; step++) {
        const size_t choice = random_below(&random, 100);
        if (choice < 45 && blocks.count < SLOTS) {
            const size_t size = random_size(&random, 30000), alignment = random_alignment(&random);
            unsigned char *block = fa_arena_alloc(arena, size, alignment);
            if (block != NULL) model_add(&blocks, block, size, alignment);
        } else if (choice < 85 && blocks.count > 0) {
            const model_block block = model_remove(&blocks, random_below(&random, blocks.count));
            fa_arena_free(arena, block.address, block.size);
        } else if (choice < 92 && count < SCOPES) {
            scopes[count].mark = fa_arena_scope_enter(arena);
            scopes[count++].seed = blocks.next_seed;
        } else if (count > 0) {
            const size_t index = random_below(&random, 3) != 0 ? count - 1 : random_below(&random, count);
            uint64_t since = 0, bytes_since = 0, live = 0, bytes = 0;
            for (size_t i = 0; i < blocks.count; i++) {
                if (blocks.live[i].seed <= scopes[index].seed) continue;
                since++;
                bytes_since += blocks.live[i].size;
            }
            const fa_status status = fa_arena_scope_leave(arena, scopes[index].mark, &live, &bytes);
            if (status == FA_ERR_BUSY) {
                CHECK(since > 0 && live == since && bytes == bytes_since);
            } else {
                CHECK(since == 0 && (status == FA_OK || status == FA_ERR_STALE));
            }
            for (size_t i = index; i + 1 < count; i++) scopes[i] = scopes[i + 1];
            count--;
        }
        CHECK(fa_arena_is_valid(arena));
        CHECK(arena_stats(arena).live == blocks.count);
        if (step % 50 == 0) model_check(&blocks);
    }
    while (count > 0) {
        uint64_t live = 0, bytes = 0;
        (void)fa_arena_scope_leave(arena, scopes[--count].mark, &live, &bytes);
    }
    while (blocks.count > 0) {
        const model_block block = model_remove(&blocks, random_below(&random, blocks.count));
        fa_arena_free(arena, block.address, block.size);
    }
    CHECK(arena_stats(arena).used == 0);
    CHECK(fa_arena_reset(arena) == FA_OK);
    fa_arena_destroy(arena);
}

TEST(scopes_hold_against_the_model) {
    FOR_EACH_KIND(kind) {
        for (uint64_t seed = 1; seed <= SEEDS; seed++) run_scopes(kind, seed);
    }
}

/* ---- managers ---------------------------------------------------------------------------------------------------- */

static void manager_step(fa_manager *manager, model *blocks, random_source *random) {
    const size_t choice = random_below(random, 100);
    const size_t size = random_size(random, random_below(random, 20) == 0 ? 600000 : 3000);
    const size_t alignment = random_alignment(random);
    if (choice < 45 && blocks->count < SLOTS) {
        const bool zeroed = random_below(random, 3) == 0;
        unsigned char *block = zeroed           ? fa_calloc(manager, 1, size)
                               : alignment == 0 ? fa_malloc(manager, size)
                                                : fa_aligned_alloc(manager, alignment, size);
        if (block == NULL) return;
        if (zeroed) CHECK(is_zero(block, size));
        CHECK(fa_owns(manager, block) && fa_usable_size(manager, block) >= size);
        model_add(blocks, block, size, zeroed ? 0 : alignment);
    } else if (choice < 75 && blocks->count > 0) {
        const model_block block = model_remove(blocks, random_below(random, blocks->count));
        fa_free(manager, block.address);
        CHECK(!fa_owns(manager, block.address));
    } else if (choice < 95 && blocks->count > 0 && size > 0) {
        const size_t index = random_below(random, blocks->count);
        const model_block block = blocks->live[index];
        unsigned char *moved = fa_realloc(manager, block.address, size);
        if (moved == NULL) return;
        CHECK(is_filled(moved, block.size < size ? block.size : size, block.seed));
        blocks->live[index] = blocks->live[--blocks->count];
        model_add(blocks, moved, size, 0);
    } else if (choice >= 98) {
        CHECK(trim_is_fine(fa_manager_trim(manager, random_below(random, 1000000))));
    }
}

static void run_manager(size_t pool_blocks, size_t limit, unsigned flags) {
    for (uint64_t seed = 1; seed <= SEEDS; seed++) {
        fa_manager_options options;
        fa_manager_options_init(&options);
        options.pool_blocks = pool_blocks;
        options.limit = limit;
        options.flags = flags;
        options.cache_limit = 2 * MIB;
        options.cache_age = 1;
        fa_manager *manager = manager_with(&options);
        model blocks = {.count = 0};
        random_source random = {seed};
        for (size_t step = 0; step < STEPS; step++) {
            manager_step(manager, &blocks, &random);
            const bool valid = fa_manager_is_valid(manager);
            if (!valid) printf("# seed %d, step %d\n", (int)seed, (int)step);
            CHECK(valid);
            const fa_manager_stats stats = manager_stats(manager);
            CHECK(stats.live == blocks.count && stats.requested == model_requested(&blocks));
            CHECK(stats.allocated - stats.freed == stats.live && stats.used >= stats.requested);
            CHECK(stats.cached <= 2 * MIB && (limit == 0 || stats.requested <= limit));
            if (step % 50 != 0) continue;
            model_check(&blocks);
            if ((flags & FA_HARDENED) != 0) CHECK(fa_manager_check(manager) == FA_OK);
        }
        model_check(&blocks);
        fa_manager_destroy(manager);
    }
}

TEST(managers_hold_against_the_model) { run_manager(8192, 0, 0); }
TEST(managers_with_a_small_pool_hold_against_the_model) { run_manager(8, 0, FA_LOCKED); }
TEST(managers_without_a_pool_hold_against_the_model) { run_manager(0, 0, 0); }
TEST(hardened_managers_hold_against_the_model) { run_manager(8192, 0, FA_HARDENED); }
TEST(hardened_managers_with_a_limit_hold_against_the_model) { run_manager(0, 300000, FA_HARDENED | FA_LOCKED); }
TEST(managers_with_a_limit_hold_against_the_model) { run_manager(16, 300000, 0); }

int main(int argc, char **argv) { return tap_main(argc, argv); }
