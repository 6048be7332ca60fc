/*
 * arena_fuzz.c - arenas of every kind against the model: what is allocated, marked, rewound, reset, trimmed, closed
 *
 * A second thread takes turns with the first, one at a time, so that chunks of two threads lie between each other and the
 * order is the input's.
 */
#include <pthread.h>

#include "fuzz.h"

#include "heap/arena.h"

/* ---- another thread, which does one thing when it is asked ---------------------------------------------------------- */

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    void (*work)(void *);
    void *argument;
    bool started;
} other = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static void *be_other(void *unused) {
    (void)unused;
    pthread_mutex_lock(&other.lock);
    for (;;) {
        while (other.work == NULL) pthread_cond_wait(&other.changed, &other.lock);
        other.work(other.argument);
        other.work = NULL;
        pthread_cond_broadcast(&other.changed);
    }
    return NULL;
}

static void run_on(bool another, void (*work)(void *), void *argument) {
    if (!another) {
        work(argument);
        return;
    }
    pthread_mutex_lock(&other.lock);
    if (!other.started) {
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, be_other, NULL) == 0);
        pthread_detach(thread);
        other.started = true;
    }
    other.work = work;
    other.argument = argument;
    pthread_cond_broadcast(&other.changed);
    while (other.work != NULL) pthread_cond_wait(&other.changed, &other.lock);
    pthread_mutex_unlock(&other.lock);
}

/* ---- the state ------------------------------------------------------------------------------------------------------ */

#define MARKS 12U
#define DEAD 8U

typedef struct mark_model {
    fa_mark mark;
    uint64_t seed; /* what has a greater one was made since */
    bool scope;
} mark_model;

typedef struct state {
    fa_arena *arena;
    fa_arena_kind kind;
    bool tracked, closed, secret, guarded;
    corruption_note note;
    model blocks;
    unsigned char *dead[DEAD]; /* where blocks were: freed, moved, rewound, reset */
    size_t dead_count;
    mark_model marks[MARKS];
    size_t mark_count;
    input from;
    uint8_t choice;
} state;

/* Without tracking or reuse the arena cannot know a block that is not the newest. */
static bool knows_blocks(const state *self) { return self->kind != FA_SCRATCH || self->tracked; }

static uint64_t since(const state *self, uint64_t seed, uint64_t *bytes) {
    uint64_t count = 0;
    *bytes = 0;
    for (size_t i = 0; i < self->blocks.count; i++) {
        if (self->blocks.live[i].seed <= seed) continue;
        count++;
        *bytes += self->blocks.live[i].size;
    }
    return count;
}

static void bury(state *self, unsigned char *address) { self->dead[self->dead_count++ % DEAD] = address; }

static void drop_since(state *self, uint64_t seed) {
    for (size_t i = self->blocks.count; i-- > 0;) {
        if (self->blocks.live[i].seed <= seed) continue;
        bury(self, self->blocks.live[i].address);
        self->blocks.live[i] = self->blocks.live[--self->blocks.count];
    }
}

/* Where a block was is none, unless one begins there again. */
static void try_the_dead(state *self) {
    unsigned char *dead = self->dead[next_below(&self->from, DEAD)];
    for (size_t i = 0; i < self->blocks.count; i++)
        if (self->blocks.live[i].address == dead) return;
    if (dead == NULL) return;
    CHECK(!fa_arena_is_live(self->arena, dead) && fa_arena_usable_size(self->arena, dead) == 0);
    CHECK(fa_arena_try_free(self->arena, dead) != FA_OK);
}

/* ---- operations ----------------------------------------------------------------------------------------------------- */

static void allocate(state *self) {
    const size_t size = next_size(&self->from), alignment = next_alignment(&self->from);
    const bool zeroed = self->choice % 2 == 0;
    unsigned char *block = NULL;
    if (self->blocks.count == FUZZ_BLOCKS) return;
    if (self->choice % 3 == 0) {
        void *made = NULL;
        const fa_status status = fa_arena_try_alloc(self->arena, size, alignment, zeroed, &made);
        CHECK(status == FA_OK || status == FA_ERR_NOMEM || status == FA_ERR_LOCK || status == FA_ERR_INVALID ||
              status == FA_ERR_STALE);
        CHECK((status == FA_OK) == (made != NULL));
        CHECK(status != FA_ERR_LOCK || fault.failed);
        CHECK(status != FA_ERR_INVALID || (alignment & (alignment - 1)) != 0 || alignment > (self->guarded ? 4096 : 2 * MIB));
        block = made;
    } else {
        block = zeroed ? fa_arena_alloc_zeroed(self->arena, size, alignment)
                       : fa_arena_alloc(self->arena, size, alignment);
    }
    if (block == NULL) return;
    CHECK(!self->closed || !self->tracked);
    CHECK((alignment & (alignment - 1)) == 0 && alignment <= (size_t)2 << 20);
    if (zeroed || self->kind == FA_WITNESS) CHECK(reads_zero(block, size));
    CHECK(fa_arena_owns(self->arena, block));
    CHECK(size == 0 || fa_arena_owns(self->arena, block + size - 1));
    if (knows_blocks(self)) {
        CHECK(fa_arena_usable_size(self->arena, block) >= size);
        CHECK(fa_arena_is_live(self->arena, block));
    }
    model_add(&self->blocks, block, size, alignment);
}

static void release(state *self) {
    if (self->blocks.count == 0) return;
    const model_block block = model_remove(&self->blocks, self->choice % 4 == 0 ? self->blocks.count - 1
                                                                                : next_below(&self->from, self->blocks.count));
    bury(self, block.address);
    if (self->choice % 3 == 0 && knows_blocks(self)) {
        CHECK(fa_arena_try_free(self->arena, block.address) == FA_OK);
        CHECK(!fa_arena_is_live(self->arena, block.address));
    } else {
        fa_arena_free(self->arena, block.address, block.size);
    }
}

static void resize(state *self) {
    const size_t size = next_size(&self->from), other_alignment = next_alignment(&self->from);
    if (self->blocks.count == 0) return;
    const size_t index = next_below(&self->from, self->blocks.count);
    const model_block block = self->blocks.live[index];
    const size_t alignment = self->choice % 4 == 0 ? other_alignment : block.alignment;
    unsigned char *moved = fa_arena_realloc(self->arena, block.address, block.size, size, alignment);
    if (moved == NULL) return;
    CHECK(moved_holds(&block, moved, size));
    self->blocks.live[index] = self->blocks.live[--self->blocks.count];
    model_add(&self->blocks, moved, size, alignment);
    if (moved != block.address) {
        bury(self, block.address);
        return;
    }
    /* In place: as old as it was, also for the marks. */
    self->blocks.live[self->blocks.count - 1].seed = block.seed;
    mark_block(&self->blocks.live[self->blocks.count - 1]);
}

static void misuse(state *self) {
    const size_t detail = next_size(&self->from) % 4096;
    const int before = self->note.count;
    CHECK(fa_arena_try_free(self->arena, &self->note) == FA_ERR_FOREIGN);
    if (!knows_blocks(self)) return;
    try_the_dead(self);
    if (self->blocks.count > 0) { /* the middle of a block */
        const model_block *block = &self->blocks.live[next_below(&self->from, self->blocks.count)];
        unsigned char *inside = block->address + 1 + detail % 64;
        if (inside < block->address + block->size) {
            CHECK(fa_arena_try_free(self->arena, inside) != FA_OK);
            CHECK(fa_arena_usable_size(self->arena, inside) == 0 && !fa_arena_is_live(self->arena, inside));
            fa_arena_free(self->arena, inside, 1);
            CHECK(self->note.count == before + 1 && is_one_line(self->note.message));
            CHECK(fa_arena_realloc(self->arena, inside, 1, 10, 1) == NULL);
            CHECK(self->note.count == before + 2);
        }
    }
    if (self->blocks.count > 0 && self->choice % 2 == 0) { /* twice */
        const model_block block = model_remove(&self->blocks, 0);
        fa_arena_free(self->arena, block.address, block.size);
        CHECK(fa_arena_try_free(self->arena, block.address) != FA_OK);
    }
}

static void take_mark(state *self) {
    if (self->mark_count == MARKS || (self->tracked && self->closed)) return;
    mark_model *made = &self->marks[self->mark_count];
    made->scope = self->tracked && self->choice % 2 == 0;
    made->mark = made->scope ? fa_arena_scope_enter(self->arena) : fa_arena_mark(self->arena);
    made->seed = self->blocks.next_seed;
    if (made->mark.serial != 0) self->mark_count++;
}

/* Leaves a scope, or rewinds; scopes and marks that nest in it are gone then, or wait for their blocks. */
static void go_back(state *self) {
    if (self->mark_count == 0) return;
    const size_t index = next_below(&self->from, self->mark_count);
    const mark_model at = self->marks[index];
    uint64_t expected_bytes, live, bytes, expected = since(self, at.seed, &expected_bytes);
    if (self->tracked) {
        const fa_status looked = fa_arena_live(self->arena, &at.mark, &live, &bytes);
        CHECK(looked == FA_ERR_STALE || (looked == FA_OK && live == expected && bytes == expected_bytes));
    }
    if (at.scope) {
        const fa_status status = fa_arena_scope_leave(self->arena, at.mark, &live, &bytes);
        CHECK(status == FA_OK || status == FA_ERR_STALE ||
              (status == FA_ERR_BUSY && live == expected && bytes == expected_bytes && live > 0));
        CHECK(status != FA_OK || expected == 0);
        memmove(&self->marks[index], &self->marks[index + 1], (self->mark_count - index - 1) * sizeof at);
        self->mark_count--;
        return;
    }
    const fa_status status = fa_arena_rewind(self->arena, at.mark);
    if (status == FA_ERR_STALE) { /* only marks inside scopes go without being rewound past */
        CHECK(self->tracked);
        memmove(&self->marks[index], &self->marks[index + 1], (self->mark_count - index - 1) * sizeof at);
        self->mark_count--;
        return;
    }
    CHECK(status == FA_OK || (status == FA_ERR_BUSY && self->tracked && expected > 0));
    CHECK(!self->tracked || expected == 0 || status == FA_ERR_BUSY);
    if (status != FA_OK) return;
    drop_since(self, at.seed);
    for (size_t i = index + 1; i < self->mark_count; i++) {
        if (self->marks[i].mark.serial == at.mark.serial) continue; /* two marks with nothing between them may be one */
        CHECK(fa_arena_rewind(self->arena, self->marks[i].mark) == FA_ERR_STALE);
    }
    self->mark_count = index + 1;
}

static void forget_all(state *self) {
    const bool wipe = self->choice % 2 == 0, busy = self->tracked && self->blocks.count > 0;
    const fa_status status = wipe ? fa_arena_wipe(self->arena) : fa_arena_reset(self->arena);
    CHECK(status == (busy && !wipe ? FA_ERR_BUSY : FA_OK));
    if (busy && !wipe) return;
    if (!busy) {
        drop_since(self, 0);
        self->mark_count = 0;
        return;
    }
    for (size_t i = 0; i < self->blocks.count; i++) {
        CHECK(reads_zero(self->blocks.live[i].address, self->blocks.live[i].size));
        mark_block(&self->blocks.live[i]);
    }
}

static void fork_here(state *self) {
    fa_arena_fork_prepare(self->arena);
    /* A child has nothing where secret memory was, and zeros, or nothing, in guarded blocks; here they would still be there. */
    if (self->choice % 2 == 0 || self->secret || self->guarded) fa_arena_fork_parent(self->arena);
    else fa_arena_fork_child(self->arena); /* as a child would, but the pages are the parent's */
}

/* Sealed, nothing is handed out and no block may be touched; what does not touch blocks goes on. */
static void seal_a_while(state *self) {
    if (!knows_blocks(self)) {
        CHECK(fa_arena_seal(self->arena, FA_SEAL_READ) == FA_ERR_INVALID);
        return;
    }
    fa_status status = fa_arena_seal(self->arena, self->choice % 2 == 0 ? FA_SEAL_READ : FA_SEAL_NONE);
    if (self->closed) CHECK(status == FA_ERR_STALE);
    else CHECK(status == FA_OK || (status == FA_ERR_NOMEM && fault.failed));
    if (status == FA_OK) {
        void *block = NULL;
        CHECK(fa_arena_try_alloc(self->arena, 10, 0, false, &block) != FA_OK && block == NULL);
        CHECK(fa_arena_is_valid(self->arena) && arena_stats(self->arena).live == self->blocks.count);
        if (self->kind == FA_WITNESS && self->blocks.count > 0 && next_byte(&self->from) % 2 == 0) {
            /* Opened for as long as it takes to zero the block; the pattern of a sealed block cannot be looked at. */
            const model_block gone = self->blocks.live[self->blocks.count - 1];
            status = fa_arena_try_free(self->arena, gone.address);
            CHECK(status == FA_OK || fault.failed);
            self->blocks.count -= status == FA_OK;
        }
    }
    while (!self->closed && fa_arena_unseal(self->arena) != FA_OK) {
        CHECK(fault.failed);
        fault.after = -1;
    }
}

static void close_it(state *self) {
    const bool first = !self->closed;
    fa_arena_close(self->arena);
    self->closed = true;
    if (self->kind != FA_WITNESS || !first) return;
    for (size_t i = 0; i < self->blocks.count; i++) {
        CHECK(reads_zero(self->blocks.live[i].address, self->blocks.live[i].size));
        mark_block(&self->blocks.live[i]);
    }
}

static void step(void *argument) {
    state *self = argument;
    uint64_t used_now;
    if (self->choice < 90) allocate(self);
    else if (self->choice < 140) release(self);
    else if (self->choice < 170) resize(self);
    else if (self->choice < 190) take_mark(self);
    else if (self->choice < 210) go_back(self);
    else if (self->choice < 220) misuse(self);
    else if (self->choice < 230) CHECK(fa_arena_trim(self->arena, next_size(&self->from)) == FA_OK || fault.failed);
    else if (self->choice < 240) forget_all(self);
    else if (self->choice < 246) fork_here(self);
    else if (self->choice < 250) seal_a_while(self);
    else if (self->choice < 252) CHECK(!knows_blocks(self) || fa_arena_restart_peak(self->arena, &used_now) >= used_now);
    else if (self->choice == 255) close_it(self);
}

static void check_all(state *self) {
    CHECK(fa_arena_is_valid(self->arena));
    const fa_arena_stats stats = arena_stats(self->arena);
    if (knows_blocks(self)) CHECK(stats.live == self->blocks.count && stats.requested == model_bytes(&self->blocks));
    CHECK(stats.allocated - stats.freed == stats.live);
    CHECK(stats.used <= stats.capacity && stats.peak >= stats.used && stats.used + stats.cached <= stats.capacity);
    CHECK(stats.fallback_bytes <= stats.requested || !knows_blocks(self));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const size_t capacities[] = {64 * KIB, 256 * KIB, MIB, 5000000};
    static const size_t alignments[] = {16, 64, 4096, 32};
    static state self;
    memset(&self, 0, sizeof self);
    self.from = (input){data, data + size};
    const uint8_t kinds = next_byte(&self.from), sizes = next_byte(&self.from), wants = next_byte(&self.from);
    const fa_os os = faulty_os(wants % 2 == 0);
    next_fault(&self.from);

    self.kind = all_kinds[kinds % 3];
    self.tracked = kinds / 3 % 2 == 1;
    fa_arena_options options = arena_options(self.kind, capacities[sizes % 4]);
    options.os = &os;
    options.flags = self.tracked ? FA_TRACKED : 0;
    options.alignment = alignments[sizes / 4 % 4];
    options.on_full = self.kind == FA_WITNESS || kinds / 6 % 2 == 0 ? FA_FULL_FAIL : FA_FULL_FALLBACK;
    options.name = sizes < 128 ? "fuzzed" : NULL;
    options.on_corruption = note_corruption;
    options.corruption_context = &self.note;
    options.lock = (fa_want)(wants / 2 % 3);
    options.guard_pages = (fa_want)(wants / 6 % 3);
    options.no_dump = options.wipe_on_fork = (fa_want)(wants / 18 % 3);
    options.huge_pages = (fa_huge_pages)(wants / 54 % 4);
    if (self.kind == FA_WITNESS && options.guard_pages != FA_OFF)
        options.guard = kinds / 12 % 2 == 1 ? FA_GUARD_BLOCKS : FA_GUARD_ENDS;
    self.guarded = options.guard == FA_GUARD_BLOCKS;
    if (self.kind == FA_WITNESS) options.secret_memory = (fa_want)(kinds / 24 % 3);
    self.secret = options.secret_memory != FA_OFF;
    fa_status status = FA_ERR_BUSY;
    self.arena = fa_arena_create(&options, &status);
    if (self.arena == NULL) {
        CHECK(fault.failed || options.secret_memory == FA_REQUIRE ||
              (options.huge_pages >= FA_HUGE_TLB_2M && options.guard_pages == FA_REQUIRE));
        CHECK(status == FA_ERR_NOMEM || status == FA_ERR_LOCK || status == FA_ERR_UNSUPPORTED ||
              status == FA_ERR_INVALID);
    }
    for (size_t steps = 0; self.arena != NULL && !is_over(&self.from); steps++) {
        const uint8_t thread = next_byte(&self.from);
        self.choice = next_byte(&self.from);
        run_on(thread % 4 == 3, step, &self);
        check_all(&self);
        if (steps % 8 == 7) model_check(&self.blocks);
    }
    model_check(&self.blocks);
    if (self.arena != NULL && knows_blocks(&self)) {
        while (self.blocks.count > 0) {
            const model_block block = model_remove(&self.blocks, self.blocks.count - 1);
            fa_arena_free(self.arena, block.address, block.size);
        }
        CHECK(arena_stats(self.arena).used == 0 || self.mark_count > 0);
        check_all(&self);
    }
    fa_arena_destroy(self.arena);
    CHECK(fault.mapped == 0 && fault.blocks == 0);
    return 0;
}
