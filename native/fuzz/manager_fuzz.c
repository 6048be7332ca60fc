/*
 * manager_fuzz.c - managers with pools and limits of every size against the model
 */
#include "fuzz.h"

#include "heap/manager.h"

typedef struct state {
    fa_manager *manager;
    size_t limit, large_size, cache_limit;
    bool closed, hardened;
    corruption_note note;
    model blocks;
    input from;
    uint8_t choice;
} state;

static unsigned char *make(state *self, size_t *size, size_t *alignment, bool *zeroed) {
    *zeroed = self->choice % 4 < 2;
    if (self->choice % 4 == 0) {
        const size_t count = next_byte(&self->from) % 7;
        unsigned char *block = fa_calloc(self->manager, count, *size);
        CHECK(block == NULL || count == 0 || *size <= SIZE_MAX / count);
        *size *= count;
        *alignment = 0;
        return block;
    }
    if (self->choice % 4 == 1) return fa_manager_alloc_zeroed(self->manager, *alignment == 0 ? 1 : *alignment, *size);
    if (*alignment != 0) return fa_aligned_alloc(self->manager, *alignment, *size);
    if (self->choice % 8 == 2) return fa_lua_alloc(self->manager, NULL, 5, *size);
    return fa_malloc(self->manager, *size);
}

static void allocate(state *self) {
    size_t size = next_size(&self->from), alignment = next_alignment(&self->from);
    bool zeroed;
    if (self->blocks.count == FUZZ_BLOCKS) return;
    unsigned char *block = make(self, &size, &alignment, &zeroed);
    if (block == NULL) return;
    CHECK(!self->closed && (alignment & (alignment - 1)) == 0 && alignment <= (size_t)2 << 20);
    if (zeroed) CHECK(reads_zero(block, size));
    CHECK(fa_owns(self->manager, block) && fa_usable_size(self->manager, block) >= size);
    model_add(&self->blocks, block, size, alignment);
}

static void release(state *self) {
    if (self->blocks.count == 0) return;
    const model_block block = model_remove(&self->blocks, next_below(&self->from, self->blocks.count));
    switch (self->choice % 4) {
    case 0: CHECK(fa_manager_try_free(self->manager, block.address) == FA_OK); break;
    case 1: CHECK(fa_realloc(self->manager, block.address, 0) == NULL); break;
    case 2: CHECK(fa_lua_alloc(self->manager, block.address, block.size, 0) == NULL); break;
    default: fa_free(self->manager, block.address);
    }
    CHECK(!fa_owns(self->manager, block.address) && fa_usable_size(self->manager, block.address) == 0);
}

static void resize(state *self) {
    const size_t size = next_size(&self->from), alignment = next_alignment(&self->from);
    if (self->blocks.count == 0) return;
    const size_t index = next_below(&self->from, self->blocks.count);
    const model_block block = self->blocks.live[index];
    const bool aligned = self->choice % 2 == 0;
    fa_status status = FA_OK;
    if (!aligned && size == 0) return;
    unsigned char *moved = aligned ? fa_manager_try_realloc(self->manager, block.address, alignment == 0 ? 1 : alignment,
                                                            size, &status)
                                   : fa_realloc(self->manager, block.address, size);
    CHECK(status == FA_OK || status == FA_ERR_NOMEM || status == FA_ERR_INVALID);
    if (moved == NULL) {
        CHECK(size > block.size || aligned); /* shrinking never fails, where the place has the alignment */
        CHECK(holds(&block));
        return;
    }
    CHECK(moved_holds(&block, moved, size));
    self->blocks.live[index] = self->blocks.live[--self->blocks.count];
    model_add(&self->blocks, moved, size, aligned ? alignment : 0);
}

/* A hardened block that had to stay where it is, because nothing could be had, keeps its old size. */
static bool may_stay(const state *self) { return self->hardened && (self->closed || fault.failed || fault.largest != 0); }

/* A byte of a canary: in front, or behind where no guard page may be. */
static void overrun(state *self) {
    const int before = self->note.count;
    const model_block block = model_remove(&self->blocks, 0);
    if (block.size == 0) {
        fa_free(self->manager, block.address);
        return;
    }
    const bool in_front = self->choice % 8 == 1;
    unsigned char *at = in_front ? block.address - 1 - next_byte(&self->from) % 16 : block.address + block.size;
    if (!in_front && (block.size % 16 == 0 || block.alignment > 16)) at = block.address - 1; /* behind it may be a guard page */
    *at ^= 0xFF;
    if (self->choice % 16 < 8) CHECK(fa_manager_check(self->manager) == FA_ERR_CORRUPT && self->note.count == before + 1);
    fa_free(self->manager, block.address);
    CHECK(self->note.count > before && strstr(self->note.message, "was overrun") != NULL);
    CHECK(fa_manager_check(self->manager) == FA_OK);
}

static void misuse(state *self) {
    const int before = self->note.count;
    CHECK(fa_manager_try_free(self->manager, &self->note) == FA_ERR_FOREIGN);
    fa_free(self->manager, &self->note);
    CHECK(self->note.count == before + 1 && is_one_line(self->note.message));
    CHECK(fa_realloc(self->manager, &self->note, 10) == NULL && self->note.count == before + 2);
    fa_free(self->manager, NULL);
    if (self->blocks.count > 0) {
        const model_block *block = &self->blocks.live[next_below(&self->from, self->blocks.count)];
        unsigned char *inside = block->address + 1 + next_byte(&self->from) % 100;
        if (inside < block->address + block->size) {
            CHECK(fa_manager_try_free(self->manager, inside) != FA_OK);
            CHECK(!fa_owns(self->manager, inside));
        }
    }
    if (self->hardened && !may_stay(self) && self->blocks.count > 0 && self->choice % 4 == 1) overrun(self);
    if (self->blocks.count > 0 && self->choice % 2 == 0) { /* twice */
        const model_block block = model_remove(&self->blocks, 0);
        fa_free(self->manager, block.address);
        CHECK(fa_manager_try_free(self->manager, block.address) != FA_OK);
    }
}

static void look(state *self) {
    char text[2000], half[100];
    uint64_t used_now;
    const fa_manager_stats stats = manager_stats(self->manager);
    const size_t length = fa_manager_stats_json(&stats, text, sizeof text);
    CHECK(length < sizeof text && strlen(text) == length && text[0] == '{' && text[length - 1] == '}');
    CHECK(fa_manager_stats_json(&stats, half, sizeof half) == length && strncmp(text, half, sizeof half - 1) == 0);
    CHECK(fa_manager_restart_peak(self->manager, &used_now) == stats.peak && used_now == stats.used);
}

static void step(state *self) {
    if (self->choice < 100) allocate(self);
    else if (self->choice < 160) release(self);
    else if (self->choice < 205) resize(self);
    else if (self->choice < 215) misuse(self);
    else if (self->choice < 230) CHECK(fa_manager_trim(self->manager, next_size(&self->from)) == FA_OK || fault.failed);
    else if (self->choice < 245) fault.now += next_byte(&self->from) * 16U;
    else if (self->choice < 250) look(self);
    else if (self->choice < 254) {
        fa_manager_fork_prepare(self->manager);
        if (self->choice % 2 == 0) fa_manager_fork_parent(self->manager);
        else fa_manager_fork_child(self->manager);
    } else if (self->choice == 255) {
        fa_manager_close(self->manager);
        self->closed = true;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const size_t block_sizes[] = {128, 16, 48, 8192}, pools[] = {0, 3, 40, 2000};
    static const size_t large_sizes[] = {64 * KIB, 8193, 20000, MIB}, limits[] = {0, 300000, 5000, 0};
    static const size_t caches[] = {2 * MIB, 0, 200000, 64 * MIB};
    static state self;
    memset(&self, 0, sizeof self);
    self.from = (input){data, data + size};
    const uint8_t pool = next_byte(&self.from), rest = next_byte(&self.from);
    const fa_os os = faulty_os(true);
    next_fault(&self.from);
    if (pool >= 128) fault.largest = MIB << (pool / 16 - 8); /* no room for slabs, or for less of them */

    fa_manager_options options;
    fa_manager_options_init(&options);
    options.os = &os;
    options.flags = pool / 16 % 2 == 0 ? FA_LOCKED : 0;
    self.hardened = pool % 16 == 15; /* block size and pool mean nothing to it */
    if (self.hardened) options.flags |= FA_HARDENED;
    options.block_size = block_sizes[pool % 4];
    options.pool_blocks = pools[pool / 4 % 4];
    options.large_size = self.large_size = large_sizes[rest % 4];
    options.limit = self.limit = limits[rest / 4 % 4];
    options.cache_limit = self.cache_limit = caches[rest / 16 % 4];
    options.cache_age = rest < 128 ? 1000 : 0;
    options.on_corruption = note_corruption;
    options.corruption_context = &self.note;
    fa_status status = FA_ERR_BUSY;
    self.manager = fa_manager_create(&options, &status);
    if (self.manager == NULL) {
        CHECK((fault.failed || fault.largest != 0) && (status == FA_ERR_NOMEM || (self.hardened && status == FA_ERR_UNSUPPORTED)));
        CHECK(fault.mapped == 0 && fault.blocks == 0);
        return 0;
    }
    uint64_t cached = 0;
    for (size_t steps = 0; !is_over(&self.from); steps++) {
        const int asked = fault.count[DECOMMIT];
        self.choice = next_byte(&self.from);
        step(&self);
        CHECK(fa_manager_is_valid(self.manager));
        const fa_manager_stats stats = manager_stats(self.manager);
        CHECK(stats.live == self.blocks.count && stats.requested >= model_bytes(&self.blocks));
        CHECK(stats.requested == model_bytes(&self.blocks) || may_stay(&self));
        CHECK(stats.allocated - stats.freed == stats.live && stats.used >= stats.requested && stats.peak >= stats.used);
        /* Above the limit is only what the system refuses to take back, and only a refusal makes it more. */
        const bool refused = fault.failed && fault.kind == DECOMMIT && fault.count[DECOMMIT] > asked;
        CHECK(stats.cached <= self.cache_limit || stats.cached <= cached || refused);
        cached = stats.cached;
        CHECK(self.limit == 0 || stats.requested <= self.limit);
        if (steps % 8 == 7) model_check(&self.blocks);
    }
    model_check(&self.blocks);
    while (self.blocks.count > 0 && size % 2 == 0) {
        const model_block block = model_remove(&self.blocks, self.blocks.count - 1);
        fa_free(self.manager, block.address);
    }
    CHECK(fa_manager_is_valid(self.manager));
    CHECK(fa_manager_check(self.manager) == (self.hardened ? FA_OK : FA_ERR_UNSUPPORTED));
    fa_manager_destroy(self.manager);
    CHECK(fault.mapped == 0 && fault.blocks == 0);
    return 0;
}
