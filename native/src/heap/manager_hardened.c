/*
 * heap/manager_hardened.c - a manager that finds what a program does wrong (FA_HARDENED)
 *
 *     up to 8 KiB    | canary 16 | data ...... | canary to the end | canary 16 | data ...     slots of mem/slabs.h
 *     above          | closed .. | canary | data ............. | canary < 16 | closed |       a mapping of its own
 *     0 bytes        | closed ................................................. |            addresses, no memory
 *
 *     freed slot --> queue (first in, first out) --> shuffle (a random one leaves) --> its slab
 *     freed mapping --> closed, in the cache; the newest RESTING are not used --> decommitted, kept as addresses --> gone
 *
 * What is known of a block lies out of line: a slot's size in its slab, a mapping's in the table. So a free is checked against
 * that and a pointer that was never a block, was freed, or lies inside one is told apart by kind (classify). Canaries
 * around a block are looked at when it is freed, resized, checked and at the end. A freed slot is zero, and is
 * looked at before its next use: what is not zero was written by somebody who had freed it. A freed mapping is closed: who
 * touches it dies. Reading stale data is reading zeros.
 *
 * A block is as long as was asked for and not longer: fa_usable_size says exactly that. Its slot is reused QUEUE frees later at
 * the earliest. Not found: a write over both canaries into another block's data; a read past the end of a slot's data; a
 * write after free into a slot that is in use again.
 *
 * Invariants: headroom = limit - the sum of the sizes of live blocks. A slot is live (its size), resting (its room),
 * or its slab's; a slot that is not live is zero, all of it. A mapping's value in the table says all about it (unpack).
 * Thread rule: its own lock, or one thread; mappings are opened, closed and zeroed outside it. Reports come after it is
 * given back. Cost: docs/performance.md; above 8 KiB two system calls a block, and two of the kernel's 65,530 mappings.
 */
#include "manager_hardened.h"

#include "mem/cache.h"
#include "mem/canary.h"
#include "mem/lock.h"
#include "mem/pool.h"
#include "mem/slabs.h"
#include "mem/table.h"
#include "mem/wipe.h"

#include <string.h>

/* Slots that are freed wait so many frees, and then for a random one of so many. */
#define QUEUE 128U
#define SHUFFLE 128U
/* The newest freed mappings are not used again. */
#define RESTING 8U
/* Addresses of mappings that are kept when their memory is gone; more where addresses are plenty. */
#define GRAVES 32U
#define MAX_GRAVE ((size_t)(SIZE_MAX > UINT32_MAX ? (uint64_t)4 << 30 : (uint64_t)8 << 20))
/* Blocks without a byte. */
#define NOTHING_BLOCKS ((size_t)16384)
#define NOTHING_SIZE ((size_t)64)
#define NOTHING_CLASS FA_SLAB_CLASSES
/* Of canary behind a slot's data, at least. */
#define SLOT_REST ((size_t)8)
#define ALIGNMENT ((size_t)16)
#define HUGE_PAGE ((size_t)2 << 20)
#define LARGE_STEPS_LOG2 3

/* The first damage that was found under the lock, to be reported when it is given back. */
typedef struct damage {
    const void *address; /* null: none */
    fa_fault what;
} damage;

/* A freed block in quarantine: its number in its slabs, or among the blocks of nothing, plus 1; 0: no block. */
typedef struct waiting {
    uint32_t number_plus_1;
    uint32_t class;
} waiting;

struct fa_strict {
    fa_lock lock;
    bool locked, closed;
    int64_t limit, headroom; /* limit less the sum of the sizes of live blocks; below 0 only while a block moves */
    uint64_t used, peak, allocated, freed;
    fa_canary secret;
    uint64_t random;
    fa_slabs slabs;
    uint32_t queued;         /* where the next one goes, and the oldest is */
    waiting queue[QUEUE], shuffle[SHUFFLE];
    fa_pool nothing;         /* over memory that is never accessible */
    void *nothing_mapping;
    size_t nothing_mapped;
    bool nothing_failed;
    fa_table table;
    fa_cache cache;
    fa_cached grave[GRAVES];
    uint32_t graves;         /* as queued */
    uint64_t buried;         /* bytes */
    uint64_t fallbacks, large, cache_hits, failures;
    uint64_t large_open, large_mapped; /* bytes of live mappings: accessible, and in all */
    size_t page, guard, pad;
    const fa_os *os;
    const fa_reporter *reporter;
    size_t mapped;           /* bytes of this struct's own mapping */
};

void fa_strict_lock(fa_strict *self) {
    if (self->locked) fa_lock_take(&self->lock, self->os);
}

void fa_strict_unlock(fa_strict *self) {
    if (self->locked) fa_lock_give(&self->lock);
}

/* xorshift64*: which freed block is used next, not a secret that opens anything. */
static uint32_t random_below(fa_strict *self, uint32_t bound) {
    uint64_t x = self->random;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    self->random = x;
    return (uint32_t)((x * UINT64_C(0x2545F4914F6CDD1D) >> 32) * bound >> 32);
}

/* ---- accounts: the lock is held ------------------------------------------------------------------------------------ */

static bool allowed(const fa_strict *self, size_t more, size_t credit) {
    return !self->closed && more <= (size_t)PTRDIFF_MAX && (int64_t)more <= self->headroom + (int64_t)credit;
}

static void enter(fa_strict *self, size_t size, size_t room) {
    self->headroom -= (int64_t)size;
    self->used += room;
    self->allocated++;
    if (self->used > self->peak) self->peak = self->used;
}

static void leave(fa_strict *self, size_t size, size_t room) {
    self->headroom += (int64_t)size;
    self->used -= room;
    self->freed++;
}

/* ---- canaries and reports ------------------------------------------------------------------------------------------- */

static void note(damage *found, const void *address, fa_fault what) {
    if (found->address == NULL) *found = (damage){address, what};
}

static void set_canaries(const fa_strict *self, unsigned char *data, size_t size, const unsigned char *end) {
    const fa_canary canary = fa_canary_of(&self->secret, data);
    fa_canary_fill(&canary, data - FA_CANARY, FA_CANARY);
    fa_canary_fill(&canary, data + size, (size_t)(end - data) - size);
}

static void check_canaries(const fa_strict *self, const unsigned char *data, size_t size, const unsigned char *end,
                           damage *found) {
    const fa_canary canary = fa_canary_of(&self->secret, data);
    if (FA_UNLIKELY(!fa_canary_holds(&canary, data - FA_CANARY, FA_CANARY))) note(found, data, FA_FAULT_UNDERFLOW);
    if (FA_UNLIKELY(!fa_canary_holds(&canary, data + size, (size_t)(end - data) - size))) note(found, data, FA_FAULT_OVERFLOW);
}

FA_COLD static void report_damage(const fa_strict *self, const char *call, const damage *found) {
    fa_report_fault(self->reporter, call, found->what, found->address);
}

/* ---- slots ------------------------------------------------------------------------------------------------------------ */

/* No live block of a slot has this size, for its canaries need some of it. */
static uint16_t resting(size_t room) { return (uint16_t)room; } /* plus 1, as sizes are kept */

/* The class of slots for a block, or FA_SLAB_CLASSES. A slot's data is aligned as the slot's size is. */
static uint32_t slot_class(size_t alignment, size_t size) {
    if (size > FA_SLAB_MAX - FA_CANARY - SLOT_REST || alignment > FA_SLAB_MAX) return FA_SLAB_CLASSES;
    uint32_t class = fa_slab_class(fa_max(size + FA_CANARY + SLOT_REST, alignment));
    while (class < FA_SLAB_CLASSES && (fa_slab_size(class) & (alignment - 1)) != 0) class += 1;
    return class;
}

static bool in_slabs(const fa_strict *self, const void *address) {
    return fa_slabs_own(&self->slabs, (const unsigned char *)address - FA_CANARY);
}

/* The live block whose data begins there. */
static bool find_slot(const fa_strict *self, const void *address, fa_slab_place *place) {
    const unsigned char *slot = (const unsigned char *)address - FA_CANARY;
    return fa_slabs_find(&self->slabs, slot, place) &&
           self->slabs.sizes[place->number] != resting(self->slabs.kind[place->class].size);
}

static void *alloc_slot(fa_strict *self, uint32_t class, size_t size, damage *found) {
    fa_slabs *slabs = &self->slabs;
    if (FA_UNLIKELY(fa_slabs_must_refill(slabs, class)) && !fa_slabs_refill(slabs, self->os, class)) return NULL;
    unsigned char *slot = fa_slabs_take(slabs, class, size);
    size_t room = slabs->kind[class].size;
    if (FA_UNLIKELY(!fa_is_zero(slot, room))) {
        note(found, slot + FA_CANARY, FA_FAULT_WRITTEN);
        fa_wipe_small(slot, room);
    }
    set_canaries(self, slot + FA_CANARY, size, slot + room);
    enter(self, size, room);
    self->fallbacks++;
    return slot + FA_CANARY;
}

/* ---- blocks without a byte: addresses that nobody can touch ------------------------------------------------------------ */

FA_COLD static bool make_nothing(fa_strict *self) {
    const fa_os *os = self->os;
    size_t bytes = NOTHING_BLOCKS * NOTHING_SIZE, known, size;
    if (self->nothing_failed) return false;
    self->nothing_failed = true;
    if (!os->traps || !fa_align_up(bytes, self->page, &bytes)) return false;
    if (!fa_align_up(NOTHING_BLOCKS * (sizeof(uint32_t) + sizeof(uint16_t)), self->page, &known)) return false;
    size = bytes + known;
    void *address;
    if (os->reserve(size, self->page, &address) != 0) return false;
    unsigned char *base = address;
    if (os->commit(base + bytes, known) != 0) {
        (void)os->release(address, size);
        return false;
    }
    uint32_t *stack = (uint32_t *)(void *)(base + bytes);
    fa_pool_init(&self->nothing, NOTHING_SIZE, NOTHING_BLOCKS, base, (uint16_t *)(void *)(stack + NOTHING_BLOCKS), stack);
    self->nothing_mapping = address;
    self->nothing_mapped = size;
    return true;
}

static bool in_nothing(const fa_strict *self, const void *address) { return fa_pool_owns(&self->nothing, address); }

/* The live block of nothing that is there; or one as good as none, NOTHING_BLOCKS. */
static size_t find_nothing(const fa_strict *self, const void *address) {
    const fa_pool *pool = &self->nothing;
    size_t index = fa_pool_index(pool, address);
    return index < pool->count && pool->size_plus_1[index] == 1 ? index : NOTHING_BLOCKS;
}

static void *alloc_nothing(fa_strict *self) {
    if (self->nothing.count == 0 && !make_nothing(self)) return NULL;
    void *block = fa_pool_take(&self->nothing, 0);
    if (block != NULL) enter(self, 0, 0);
    return block;
}

/* ---- quarantine --------------------------------------------------------------------------------------------------------- */

/*
 * What was freed is named by its number: of a slot, what slabs call it; of a block of nothing, what follows those. It is
 * zero, and not yet to be used again. Another one may be used for it.
 */
static void rest(fa_strict *self, uint32_t number, uint32_t class) {
    waiting *place = &self->queue[self->queued], oldest = *place;
    *place = (waiting){number + 1, class};
    self->queued = (self->queued + 1) % QUEUE;
    if (oldest.number_plus_1 == 0) return;
    place = &self->shuffle[random_below(self, SHUFFLE)];
    waiting leaving = *place;
    *place = oldest;
    if (leaving.number_plus_1 == 0) return;
    if (leaving.class == NOTHING_CLASS) {
        fa_pool_give(&self->nothing, leaving.number_plus_1 - 1);
        return;
    }
    if (fa_slabs_must_spill(&self->slabs, leaving.class)) fa_slabs_spill(&self->slabs, leaving.class);
    fa_slabs_put(&self->slabs, (fa_slab_place){.number = leaving.number_plus_1 - 1, .class = leaving.class});
}

static void free_slot(fa_strict *self, fa_slab_place place, unsigned char *data, damage *found) {
    size_t room = self->slabs.kind[place.class].size, size = fa_slabs_size(&self->slabs, place);
    unsigned char *slot = data - FA_CANARY;
    check_canaries(self, data, size, slot + room, found);
    fa_wipe_small(slot, room);
    self->slabs.sizes[place.number] = resting(room);
    leave(self, size, room);
    rest(self, place.number, place.class);
}

static void free_nothing(fa_strict *self, size_t index) {
    self->nothing.size_plus_1[index] = resting(NOTHING_SIZE);
    leave(self, 0, 0);
    rest(self, (uint32_t)index, NOTHING_CLASS);
}

/* ---- mappings: blocks above 8 KiB, and those with a larger alignment ----------------------------------------------------- */

/*
 *     base ... guard | open, page-aligned: canary | data | canary to the page's end | guard ... base + total
 *      <---- lead --->                                     end >               <- tail ->
 *
 * A table value: size in 40 bits, pages of lead and of tail in 12 each. `open` and `end` follow from data and size.
 */
#define LEAD_SHIFT 40
#define TAIL_SHIFT 52
#define MAX_PAGES ((size_t)4095)
/* Of what a cached mapping is too large by: so that with an alignment of 2 MiB it is still less than MAX_PAGES. */
#define MAX_WASTE ((size_t)2048)
#define MAX_SIZE ((size_t)(SIZE_MAX > UINT32_MAX ? ((uint64_t)1 << LEAD_SHIFT) - ((uint64_t)1 << 37) : SIZE_MAX / 4))

typedef struct mapping {
    unsigned char *data;
    size_t size;
    unsigned char *open, *end;
    unsigned char *base;
    size_t total;
} mapping;

/* Where accessible memory ends for so many bytes at `data`. */
static unsigned char *end_of(const fa_strict *self, unsigned char *data, size_t size) {
    uintptr_t end = (uintptr_t)data + fa_max(size, 1) + self->pad;
    return data + (((end + self->page - 1) & ~(uintptr_t)(self->page - 1)) - (uintptr_t)data);
}

static unsigned char *open_of(const fa_strict *self, unsigned char *data) {
    uintptr_t first = (uintptr_t)data - FA_CANARY;
    return data - ((uintptr_t)data - (first & ~(uintptr_t)(self->page - 1)));
}

static uint64_t pack(const fa_strict *self, const mapping *block) {
    uint64_t lead = (size_t)(block->open - block->base) / self->page;
    uint64_t tail = (block->total - (size_t)(block->end - block->base)) / self->page;
    return (uint64_t)block->size | lead << LEAD_SHIFT | tail << TAIL_SHIFT;
}

static mapping unpack(const fa_strict *self, const fa_slot *slot) {
    mapping block = {.data = (unsigned char *)slot->address};
    block.size = (size_t)(slot->value & ((UINT64_C(1) << LEAD_SHIFT) - 1));
    block.open = open_of(self, block.data);
    block.end = end_of(self, block.data, block.size);
    block.base = block.open - (size_t)(slot->value >> LEAD_SHIFT & MAX_PAGES) * self->page;
    block.total = (size_t)(block.end - block.base) + (size_t)(slot->value >> TAIL_SHIFT) * self->page;
    return block;
}

static size_t accessible(const mapping *block) { return (size_t)(block->end - block->open); }

/* The bytes a mapping for this block needs; 0 if there can be none. In eighths of a power of two, so that the cache fits. */
static size_t mapping_size(const fa_strict *self, size_t alignment, size_t size) {
    if (size > MAX_SIZE) return 0;
    size_t step = (size_t)1 << (fa_log2(fa_max(size, 2) - 1) - fa_min(LARGE_STEPS_LOG2, fa_log2(fa_max(size, 2) - 1)));
    size_t unit = fa_max(fa_min(step, MAX_WASTE * self->page), self->page);
    size_t needed = fa_max(size, 1) + self->pad + FA_CANARY + alignment - 1, total;
    if (!fa_align_up(needed, unit, &total)) return 0;
    return total + 2 * self->guard;
}

/* Puts a block into a mapping, its end against the guard. */
static mapping place(const fa_strict *self, const fa_cached *where, size_t alignment, size_t size) {
    mapping block = {.size = size, .base = where->address, .total = where->size};
    unsigned char *end = block.base + block.total - self->guard;
    uintptr_t data = fa_align_down((uintptr_t)end - self->pad - fa_max(size, 1), alignment);
    block.data = end - ((uintptr_t)end - data);
    block.open = open_of(self, block.data);
    block.end = end_of(self, block.data, size);
    return block;
}

/* A random one of the cached mappings that fit and have rested. */
static bool take_rested(fa_strict *self, size_t total, fa_cached *taken) {
    fa_cache *cache = &self->cache;
    uint32_t rested = cache->count > RESTING ? cache->count - RESTING : 0, fit = 0;
    size_t most = total + fa_min(total / FA_CACHE_WASTE, MAX_WASTE / 2 * self->page);
    const fa_cached *chosen = NULL;
    for (const fa_cached *entry = cache->entry; entry < cache->entry + rested; entry++)
        if (entry->size >= total && entry->size <= most && random_below(self, ++fit) == 0) chosen = entry;
    if (chosen == NULL) return false;
    fa_cache_take_entry(cache, chosen, taken);
    return true;
}

/* What leaves the cache gives its memory back; its addresses are kept for a while. Nobody can touch them. */
static void bury(fa_strict *self, const fa_evicted *evicted) {
    const fa_os *os = self->os;
    for (uint32_t i = 0; i < evicted->count; i++) {
        fa_cached leaving = evicted->entry[i];
        bool keep = self->guard != 0 && os->lazy_commit && leaving.size <= MAX_GRAVE;
        if (keep && os->decommit(leaving.address, leaving.size) == 0) {
            fa_strict_lock(self);
            fa_cached *grave = &self->grave[self->graves], now = leaving;
            leaving = *grave;
            *grave = now;
            self->graves = (self->graves + 1) % GRAVES;
            self->buried += now.size;
            self->buried -= leaving.size; /* each by itself: the difference of two sizes has no 64 bits everywhere */
            fa_strict_unlock(self);
        }
        if (leaving.address != NULL) (void)os->release(leaving.address, leaving.size);
    }
}

/* Gives all those addresses back. */
static void empty_graves(fa_strict *self) {
    fa_cached leaving[GRAVES];
    fa_strict_lock(self);
    memcpy(leaving, self->grave, sizeof leaving);
    memset(self->grave, 0, sizeof self->grave);
    self->buried = 0;
    fa_strict_unlock(self);
    for (uint32_t i = 0; i < GRAVES; i++)
        if (leaving[i].address != NULL) (void)self->os->release(leaving[i].address, leaving[i].size);
}

static bool reserve(fa_strict *self, size_t total, fa_cached *where) {
    where->size = total;
    if (self->os->reserve(total, self->page, &where->address) == 0) return true;
    empty_graves(self);
    return self->os->reserve(total, self->page, &where->address) == 0;
}

static void *alloc_mapping(fa_strict *self, size_t alignment, size_t size, size_t credit) {
    const fa_os *os = self->os;
    size_t total = mapping_size(self, alignment, size);
    if (total == 0) return NULL;
    fa_cached where = {.address = NULL};
    fa_strict_lock(self);
    bool may = allowed(self, size, credit), hit = may && take_rested(self, total, &where);
    fa_strict_unlock(self);
    if (!may || (!hit && !reserve(self, total, &where))) return NULL;

    mapping block = place(self, &where, alignment, size);
    bool entered = false;
    if (os->commit(block.open, accessible(&block)) == 0) {
        if (!hit && accessible(&block) >= HUGE_PAGE) (void)os->advise_huge(block.open, accessible(&block)); /* a hint */
        set_canaries(self, block.data, size, block.end);
        fa_strict_lock(self);
        entered = allowed(self, size, credit) && fa_table_insert(&self->table, os, block.data, pack(self, &block));
        if (entered) {
            enter(self, size, accessible(&block));
            self->large_open += accessible(&block);
            self->large_mapped += block.total;
            self->large++;
            self->cache_hits += hit;
        }
        fa_strict_unlock(self);
    }
    if (entered) return block.data;
    (void)os->release(where.address, where.size); /* with canaries, and nothing else in it */
    return NULL;
}

/* Takes a live mapping out of the table; the lock is held. */
static void forget(fa_strict *self, fa_slot *slot, const mapping *block) {
    fa_table_remove(&self->table, slot);
    leave(self, block->size, accessible(block));
    self->large_open -= accessible(block);
    self->large_mapped -= block->total;
}

/* Zeroes, closes and caches what forget took out: outside the lock. */
static void retire(fa_strict *self, const mapping *block, damage *found) {
    fa_evicted evicted;
    evicted.count = 0;
    check_canaries(self, block->data, block->size, block->end, found);
    fa_secure_zero(block->data - FA_CANARY, (size_t)(block->end - block->data) + FA_CANARY);
    if (self->guard != 0 && self->os->protect(block->open, accessible(block), FA_OS_NONE) != 0) {
        (void)self->os->release(block->base, block->total); /* what cannot be closed is not kept */
        return;
    }
    uint64_t now = self->os->milliseconds();
    fa_strict_lock(self);
    fa_cache_put(&self->cache, block->base, block->total, now, &evicted);
    fa_strict_unlock(self);
    bury(self, &evicted);
}

/* ---- alloc, free, resize --------------------------------------------------------------------------------------------------- */

static void *alloc(fa_strict *self, size_t alignment, size_t size, size_t credit) {
    damage found = {.address = NULL};
    alignment = fa_max(alignment, ALIGNMENT);
    uint32_t class = slot_class(alignment, size);
    void *block = NULL;
    fa_strict_lock(self);
    if (FA_LIKELY(class < FA_SLAB_CLASSES && allowed(self, size, credit))) {
        if (FA_UNLIKELY(size == 0 && alignment <= NOTHING_SIZE)) block = alloc_nothing(self);
        if (FA_LIKELY(block == NULL)) block = alloc_slot(self, class, size, &found);
    }
    fa_strict_unlock(self);
    if (FA_UNLIKELY(found.address != NULL)) report_damage(self, "reuse", &found);
    if (FA_LIKELY(block != NULL)) return block;
    block = alloc_mapping(self, alignment, size, credit);
    if (block != NULL) return block;
    fa_strict_lock(self);
    self->failures++;
    fa_strict_unlock(self);
    return NULL;
}

FA_APART void *fa_strict_alloc(fa_strict *self, size_t alignment, size_t size) { return alloc(self, alignment, size, 0); }

FA_APART fa_status fa_strict_free(fa_strict *self, void *address) {
    fa_status status = FA_OK;
    damage found = {.address = NULL};
    fa_slab_place place;
    fa_slot *slot = NULL;
    mapping block;
    fa_strict_lock(self);
    if (FA_LIKELY(in_slabs(self, address))) {
        if (FA_LIKELY(find_slot(self, address, &place))) free_slot(self, place, address, &found);
        else status = FA_ERR_CORRUPT;
    } else if (in_nothing(self, address)) {
        size_t index = find_nothing(self, address);
        if (index < NOTHING_BLOCKS) free_nothing(self, index);
        else status = FA_ERR_CORRUPT;
    } else {
        slot = fa_table_find(&self->table, address);
        if (slot != NULL) {
            block = unpack(self, slot);
            forget(self, slot, &block);
        } else status = FA_ERR_FOREIGN;
    }
    fa_strict_unlock(self);
    if (slot != NULL) retire(self, &block, &found);
    if (FA_UNLIKELY(found.address != NULL)) report_damage(self, "free", &found);
    return status;
}

/* What is known of a live block; its canary ends at `end`. */
typedef struct known {
    size_t size;
    const unsigned char *end;
    uint16_t *size_plus_1; /* of a slot; null: a mapping, or nothing */
    size_t room;           /* of a slot */
    bool nothing;
} known;

/* The lock is held. */
static fa_status look_up(fa_strict *self, const void *address, known *block) {
    *block = (known){.end = address};
    if (in_slabs(self, address)) {
        fa_slab_place place;
        if (!find_slot(self, address, &place)) return FA_ERR_CORRUPT;
        block->size = fa_slabs_size(&self->slabs, place);
        block->size_plus_1 = &self->slabs.sizes[place.number];
        block->room = self->slabs.kind[place.class].size;
        block->end += block->room - FA_CANARY;
    } else if (in_nothing(self, address)) {
        if (find_nothing(self, address) == NOTHING_BLOCKS) return FA_ERR_CORRUPT;
        block->nothing = true;
    } else {
        const fa_slot *slot = fa_table_find(&self->table, address);
        if (slot == NULL) return FA_ERR_FOREIGN;
        const mapping found = unpack(self, slot);
        block->size = found.size;
        block->end = found.end;
    }
    return FA_OK;
}

bool fa_strict_size(fa_strict *self, const void *address, size_t *size) {
    known block;
    fa_strict_lock(self);
    bool is_live = look_up(self, address, &block) == FA_OK;
    fa_strict_unlock(self);
    *size = is_live ? block.size : 0;
    return is_live;
}

/* Whether the block would get as much room again: then it keeps its place. */
static bool stays(const fa_strict *self, const known *block, unsigned char *data, size_t alignment, size_t size) {
    if (((uintptr_t)data & (alignment - 1)) != 0) return false;
    if (block->nothing) return size == 0;
    if (block->size_plus_1 == NULL) return size > 0 && size <= MAX_SIZE && end_of(self, data, size) == block->end;
    uint32_t class = size > 0 ? slot_class(alignment, size) : FA_SLAB_CLASSES;
    return class < FA_SLAB_CLASSES && fa_slab_size(class) == block->room;
}

/* Changes the size in place; the lock is held. What is between the two sizes becomes zero: data or canary until now. */
static void resize(fa_strict *self, unsigned char *data, const known *block, size_t size) {
    size_t less = fa_min(size, block->size);
    if (block->nothing) return;
    fa_secure_zero(data + less, (size_t)(block->end - data) - less);
    self->headroom += (int64_t)block->size - (int64_t)size;
    if (block->size_plus_1 != NULL) {
        *block->size_plus_1 = (uint16_t)(size + 1);
    } else {
        fa_slot *slot = fa_table_find(&self->table, data);
        slot->value = slot->value >> LEAD_SHIFT << LEAD_SHIFT | (uint64_t)size;
    }
    set_canaries(self, data, size, block->end);
}

/* What is not larger never fails. A mapping, whose size says where it ends, keeps its size then. */
static void *shrink_here(fa_strict *self, unsigned char *data, size_t alignment, size_t size) {
    known block;
    if (((uintptr_t)data & (alignment - 1)) != 0) return NULL;
    fa_strict_lock(self);
    bool can = look_up(self, data, &block) == FA_OK && size <= block.size;
    if (can && block.size_plus_1 != NULL) resize(self, data, &block, size);
    else if (can) fa_secure_zero(data + size, block.size - size);
    fa_strict_unlock(self);
    return can ? data : NULL;
}

void *fa_strict_realloc(fa_strict *self, void *address, size_t alignment, size_t size, fa_status *status) {
    known block;
    damage found = {.address = NULL};
    alignment = fa_max(alignment, ALIGNMENT);
    fa_strict_lock(self);
    *status = look_up(self, address, &block);
    bool is_live = *status == FA_OK;
    if (is_live && !block.nothing) check_canaries(self, address, block.size, block.end, &found);
    bool in_place = is_live && stays(self, &block, address, alignment, size) && allowed(self, size, block.size);
    if (in_place) resize(self, address, &block, size);
    fa_strict_unlock(self);
    if (FA_UNLIKELY(found.address != NULL)) report_damage(self, "realloc", &found);
    if (!is_live || in_place) return is_live ? address : NULL;
    void *moved = alloc(self, alignment, size, block.size);
    if (moved == NULL) {
        moved = shrink_here(self, address, alignment, size);
        if (moved == NULL) *status = FA_ERR_NOMEM;
        return moved;
    }
    if (found.address != NULL) { /* reported; not again when it is freed */
        fa_strict_lock(self);
        if (look_up(self, address, &block) == FA_OK) set_canaries(self, address, block.size, block.end);
        fa_strict_unlock(self);
    }
    memcpy(moved, address, fa_min(size, block.size));
    *status = fa_strict_free(self, address);
    return moved;
}

/* ---- what is wrong with a pointer ------------------------------------------------------------------------------------------ */

static bool lies_in(const void *address, const void *base, size_t size) {
    return (uintptr_t)address - (uintptr_t)base < size;
}

/* Of a slot of some pool: the address is where one begins, or inside. */
static fa_fault classify_slot(const fa_pool *pool, const unsigned char *address) {
    size_t offset = (size_t)(address - pool->blocks), index = offset / pool->block_size;
    if (index >= pool->used) return FA_FAULT_NOT_LIVE; /* never handed out */
    bool is_live = fa_pool_is_live(pool, index) && pool->size_plus_1[index] != resting(pool->block_size);
    if (offset % pool->block_size == 0) return is_live ? FA_FAULT_NOT_LIVE : FA_FAULT_FREED; /* another thread's, by now */
    return is_live ? FA_FAULT_INSIDE : FA_FAULT_NOT_LIVE;
}

static fa_fault classify_mapping(const fa_strict *self, const void *address) {
    size_t position = 0;
    for (const fa_slot *slot = fa_table_next(&self->table, &position); slot != NULL;
         slot = fa_table_next(&self->table, &position)) {
        const mapping block = unpack(self, slot);
        if (lies_in(address, block.base, block.total)) return FA_FAULT_INSIDE;
    }
    for (uint32_t i = 0; i < self->cache.count; i++)
        if (lies_in(address, self->cache.entry[i].address, self->cache.entry[i].size)) return FA_FAULT_FREED;
    for (uint32_t i = 0; i < GRAVES; i++)
        if (lies_in(address, self->grave[i].address, self->grave[i].size)) return FA_FAULT_FREED;
    return FA_FAULT_FOREIGN;
}

static fa_fault classify(const fa_strict *self, const void *address) {
    if (fa_slabs_own(&self->slabs, address) && !in_slabs(self, address)) return FA_FAULT_NOT_LIVE; /* the first canary */
    if (in_slabs(self, address)) {
        const unsigned char *slot = (const unsigned char *)address - FA_CANARY;
        const fa_slab *slab = &self->slabs.slab[(size_t)(slot - self->slabs.base) >> FA_SPAN_LOG2];
        bool given_up = slab->pool.count == 0 && slab < self->slabs.slab + self->slabs.fresh;
        if (given_up) return FA_FAULT_FREED;
        return slab->pool.count == 0 ? FA_FAULT_NOT_LIVE : classify_slot(&slab->pool, slot);
    }
    return in_nothing(self, address) ? classify_slot(&self->nothing, address) : classify_mapping(self, address);
}

FA_COLD void fa_strict_report(fa_strict *self, const char *call, const void *pointer) {
    fa_strict_lock(self);
    fa_fault what = classify(self, pointer);
    fa_strict_unlock(self);
    fa_report_fault(self->reporter, call, what, pointer);
}

/* ---- looking at everything ------------------------------------------------------------------------------------------------- */

/* The slots of a span that are live have their canaries, all others are zero. */
static void check_slab(const fa_strict *self, const fa_pool *pool, damage *found) {
    for (uint32_t index = 0; index < pool->used && found->address == NULL; index++) {
        unsigned char *slot = pool->blocks + (size_t)index * pool->block_size, *end = slot + pool->block_size;
        if (fa_pool_is_live(pool, index) && pool->size_plus_1[index] != resting(pool->block_size))
            check_canaries(self, slot + FA_CANARY, fa_pool_size(pool, index), end, found);
        else if (!fa_is_zero(slot, pool->block_size)) note(found, slot + FA_CANARY, FA_FAULT_WRITTEN);
    }
}

/* A span without a slab: nobody knows any more where its blocks began. */
static void check_span(const fa_strict *self, uint32_t number, damage *found) {
    const unsigned char *at = self->slabs.base + ((size_t)(number - 1) << FA_SPAN_LOG2), *end = at + FA_SPAN;
    for (; at < end && found->address == NULL; at += ALIGNMENT)
        if (!fa_is_zero(at, ALIGNMENT)) note(found, at, FA_FAULT_WRITTEN);
}

static void check_empty_spans(const fa_strict *self, damage *found) {
    for (uint32_t number = self->slabs.empty; number != 0 && found->address == NULL; number = self->slabs.slab[number - 1].next)
        check_span(self, number, found);
}

static void check_all(const fa_strict *self, damage *found) {
    for (uint32_t span = 0; span < self->slabs.fresh; span++) check_slab(self, &self->slabs.slab[span].pool, found);
    check_empty_spans(self, found);
    size_t position = 0;
    for (const fa_slot *slot = fa_table_next(&self->table, &position); slot != NULL && found->address == NULL;
         slot = fa_table_next(&self->table, &position)) {
        const mapping block = unpack(self, slot);
        check_canaries(self, block.data, block.size, block.end, found);
    }
}

fa_status fa_strict_check(fa_strict *self) {
    damage found = {.address = NULL};
    fa_strict_lock(self);
    check_all(self, &found);
    fa_strict_unlock(self);
    if (found.address == NULL) return FA_OK;
    report_damage(self, "check", &found);
    return FA_ERR_CORRUPT;
}

/* What is given back cannot be looked at later. */
fa_status fa_strict_trim(fa_strict *self, size_t keep) {
    damage found = {.address = NULL};
    fa_evicted evicted;
    evicted.count = 0;
    uint64_t now = self->os->milliseconds();
    fa_strict_lock(self);
    (void)fa_slabs_trim(&self->slabs, self->os, SIZE_MAX); /* gives nothing back, but empties magazines, and so spans */
    check_empty_spans(self, &found);
    fa_cache_purge(&self->cache, now, keep, &evicted);
    fa_status status = fa_slabs_trim(&self->slabs, self->os, keep - self->cache.bytes);
    fa_strict_unlock(self);
    bury(self, &evicted);
    if (found.address != NULL) report_damage(self, "trim", &found);
    return status;
}

void fa_strict_get_stats(fa_strict *self, fa_manager_stats *stats) {
    fa_strict_lock(self);
    uint64_t slabs = (uint64_t)self->slabs.resident << FA_SPAN_LOG2, blocks = self->allocated - self->freed;
    *stats = (fa_manager_stats){
        .requested = (uint64_t)(self->limit - self->headroom),
        .used = self->used,
        .reserved = self->slabs.reserved_size + self->nothing_mapped + self->large_mapped + self->cache.bytes + self->buried +
                    self->table.mapped,
        .resident = slabs + self->large_open + self->cache.bytes,
        .cached = self->cache.bytes,
        .peak = self->peak,
        .live = blocks,
        .allocated = self->allocated,
        .freed = self->freed,
        .slab_bytes = slabs,
        .slab_live = blocks - fa_table_known(&self->table),
        .fallbacks = self->fallbacks,
        .large = self->large,
        .cache_hits = self->cache_hits,
        .failures = self->failures,
    };
    fa_strict_unlock(self);
}

uint64_t fa_strict_restart_peak(fa_strict *self, uint64_t *used_now) {
    fa_strict_lock(self);
    uint64_t peak = self->peak;
    *used_now = self->peak = self->used;
    fa_strict_unlock(self);
    return peak;
}

/* Adds what is live in a pool to `sum`, and what rests to `rested`. */
static void count_pool(const fa_pool *pool, size_t room, fa_manager_stats *sum, uint64_t *rested) {
    for (uint32_t index = 0; index < pool->used; index++) {
        if (!fa_pool_is_live(pool, index)) continue;
        if (pool->size_plus_1[index] == resting(pool->block_size)) {
            (*rested)++;
            continue;
        }
        sum->live++;
        sum->requested += fa_pool_size(pool, index);
        sum->used += room;
    }
}

bool fa_strict_is_valid(fa_strict *self) {
    fa_manager_stats sum = {.live = 0};
    uint64_t rested = 0, in_quarantine = 0, open = 0, mapped = 0, buried = 0;
    fa_strict_lock(self);
    bool valid = fa_slabs_are_valid(&self->slabs) && fa_pool_is_valid(&self->nothing, 0) && fa_table_is_valid(&self->table) &&
                 fa_cache_is_valid(&self->cache);
    for (uint32_t span = 0; span < self->slabs.fresh; span++)
        count_pool(&self->slabs.slab[span].pool, self->slabs.slab[span].pool.block_size, &sum, &rested);
    count_pool(&self->nothing, 0, &sum, &rested);
    for (uint32_t i = 0; i < QUEUE; i++) in_quarantine += self->queue[i].number_plus_1 != 0;
    for (uint32_t i = 0; i < SHUFFLE; i++) in_quarantine += self->shuffle[i].number_plus_1 != 0;
    for (uint32_t i = 0; i < GRAVES; i++) buried += self->grave[i].size;
    size_t position = 0;
    for (const fa_slot *slot = fa_table_next(&self->table, &position); slot != NULL;
         slot = fa_table_next(&self->table, &position)) {
        const mapping block = unpack(self, slot);
        sum.live++;
        sum.requested += block.size;
        open += accessible(&block);
        mapped += block.total;
        valid = valid && (size_t)(block.open - block.base) >= self->guard &&
                block.end + self->guard <= block.base + block.total;
    }
    valid = valid && sum.live == self->allocated - self->freed && sum.requested == (uint64_t)(self->limit - self->headroom) &&
            sum.used + open == self->used && open == self->large_open && mapped == self->large_mapped &&
            in_quarantine == rested && buried == self->buried && self->headroom >= 0 && self->used <= self->peak;
    fa_strict_unlock(self);
    return valid;
}

/* ---- beginning and end ----------------------------------------------------------------------------------------------------- */

fa_status fa_strict_create(fa_strict **made, const fa_manager_options *options, const fa_reporter *reporter, int64_t limit) {
    const fa_os *os = reporter->os;
    fa_strict start = {.os = os, .reporter = reporter, .limit = limit, .headroom = limit, .page = os->page_size()};
    void *memory;
    if (fa_canary_draw(&start.secret, os) != 0 || os->random(&start.random, sizeof start.random) != 0)
        return FA_ERR_UNSUPPORTED;
    start.random |= 1; /* an xorshift never leaves 0 */
    if (!fa_align_up(sizeof start, start.page, &start.mapped) || os->reserve(start.mapped, start.page, &memory) != 0)
        return FA_ERR_NOMEM;
    if (os->commit(memory, start.mapped) != 0) {
        (void)os->release(memory, start.mapped);
        return FA_ERR_NOMEM;
    }
    start.locked = (options->flags & FA_LOCKED) != 0;
    start.guard = os->traps ? start.page : 0;
    start.pad = os->traps ? 0 : FA_CANARY; /* no guard: at least so much of a canary */
    start.cache.limit = options->cache_limit;
    start.cache.age = options->cache_age;
    fa_slabs_init(&start.slabs, FA_CANARY);
    fa_table_init(&start.table);
    *made = memory;
    **made = start;
    return FA_OK;
}

void fa_strict_close(fa_strict *self) {
    fa_strict_lock(self);
    self->closed = true;
    fa_strict_unlock(self);
}

void fa_strict_destroy(fa_strict *self) {
    const fa_os *os = self->os;
    (void)fa_strict_check(self);
    size_t position = 0;
    for (const fa_slot *slot = fa_table_next(&self->table, &position); slot != NULL;
         slot = fa_table_next(&self->table, &position)) {
        const mapping block = unpack(self, slot);
        fa_secure_zero(block.data - FA_CANARY, (size_t)(block.end - block.data) + FA_CANARY);
        (void)os->release(block.base, block.total);
    }
    for (uint32_t i = 0; i < self->cache.count; i++)
        (void)os->release(self->cache.entry[i].address, self->cache.entry[i].size);
    empty_graves(self);
    if (self->nothing_mapping != NULL) (void)os->release(self->nothing_mapping, self->nothing_mapped);
    fa_table_destroy(&self->table, os);
    fa_slabs_destroy(&self->slabs, os);
    size_t mapped = self->mapped;
    fa_secure_zero(self, sizeof *self); /* its secret */
    (void)os->release(self, mapped);
}
