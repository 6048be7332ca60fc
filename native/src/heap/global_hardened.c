/*
 * heap/global_hardened.c - the global heap when misuse has to end the process: what stands around blocks, and who may free them
 *
 *     span     | fence ..... W | data .......... slack W | data ... slack W | 0 0 0 0 0 0 0 W | ...     W: a word of canary
 *     states   | -             | live, its size          | live, its size   | free            | ...     out of line
 *
 *     vault    | oldest first: nobody's yet | free: any of them is the next |        of a thread, for each class
 *
 *     large    | closed | canary, data ............ slack | closed |          freed: | closed | 0 0 0 0 0 0 | closed |
 *
 * Small blocks. Each ends in eight bytes that only this process can know; what its class leaves between the size that was asked
 * for and these is filled with a byte of them. A free looks at both, and at the word before the block: an overflow
 * and an underflow. The state of a block, two bytes in a table of its own, says whether it is live and how large: a second free, a
 * pointer into a block, or a wrong size is found by looking there. What is freed is zeroed, and must still be zero when it is handed
 * out again, or when its span goes: nobody reads what was there before, and who writes to it is found. Meanwhile it waits until
 * a number of others of its class were freed, and then for a draw.
 *
 * Large blocks (above 32 KiB) have a mapping each, their end at a page that is closed, if their size and alignment are multiples of
 * 16; the rest is canary. Freed ones keep their pages, zeroed, and serve others when some others, or 32 MiB, were freed after them.
 * From 4 MiB on they are closed as a whole meanwhile. Smaller ones must still be zero, like small blocks: to close and open
 * pages costs more than to read them, and with threads several times that. When the kernel has no mappings left, blocks do without
 * closed pages: canaries stand there.
 *
 * Invariants: a word of canary is written once, by whoever is the first to use its block or the one behind; states are FRESH
 * (never used, zero), FREE (zero but for the word), BUSY (on its way between two), or the size + LIVE. A large block is in the
 * table, or held, or on its way.
 * Thread rule: any. A thread's heap is its own, or locked, while its vault changes; the lock here is held while a large block changes hands,
 * none while a block is looked at, so a fork finds nothing half done but blocks that are BUSY. Reports are made without a lock,
 * but that of a span that goes: with those of whoever gives it back.
 * Cost: a malloc and a free read and write the whole block once; one atomic operation; from 4 MiB on, two system calls.
 */
#include "global_parts.h"

#include "mem/canary.h"
#include "mem/region.h"
#include "report.h"

#define WORD sizeof(uint64_t)
/* Small: with the word, what the largest class holds. */
#define SMALL_MAX (FA_GLOBAL_SMALL - WORD)
/* States of a span begin at a multiple of these; they are committed, and so are records of large blocks, in steps. */
#define STATES_UNIT 8U
#define STATES_STEP ((size_t)256 << 10)
#define RECORDS_MAX ((uint32_t)1 << 20)
#define RECORDS_STEP ((uint32_t)1 << 10)
/* Of a vault, this part waits in the end. So many are fetched when there are few left to draw from: not more, so that what is
 * allocated together lies together. */
#define QUEUED 4
#define FETCHED 16U
#define FEW 8U
/* Freed large blocks that are remembered, and after how many later ones, or how many bytes, one may be used again. */
#define HELD 256U
#define HELD_BACK 8U
#define HELD_BACK_BYTES ((size_t)32 << 20)
/* A freed mapping may be larger than what is asked for by this part of it. */
#define HELD_WASTE 8
/* Freed blocks of this size are closed as a whole. */
#define CLOSED_MIN ((size_t)4 << 20)
/* From here on pages move when a block grows, and it gets addresses to grow on. */
#define MOVED_MIN ((size_t)1 << 20)
/* No system has smaller pages. */
#define PAGE_LEAST ((uintptr_t)4096)
/* Of a freed block of this size it is asked which pages were ever used. */
#define SPARSE_MIN ((size_t)1 << 20)

enum { FRESH, FREE, BUSY, LIVE };

typedef _Atomic uint16_t state;

typedef enum fate { UNUSED, ON_ITS_WAY, IN_USE, WAITING } fate;

typedef struct big {
    unsigned char *map; /* all of it, closed pages included */
    size_t length;
    unsigned char *open, *close; /* what may be touched */
    unsigned char *data;
    size_t size;
    uint64_t freed_at;  /* milliseconds */
    size_t freed_bytes; /* of large blocks, all there were until this one */
    uint32_t next;      /* of those that are unused */
    uint8_t fate;
    bool closed;        /* of one that waits: nothing of it may be touched */
} big;

/* Blocks of these sizes are zeroed and looked at in as many steps of 16 bytes as the largest of them has. */
#define STEPPED_MIN 32U
#define STEPPED_MAX 144U
#define STEPS (STEPPED_MAX / 16)

/* Of a class. */
typedef struct shape {
    uint32_t size, reciprocal; /* as in its central, which others write to */
    uint16_t slots;            /* of a vault */
    uint8_t waiting;           /* of these, how many are not drawn from */
    uint8_t class;
    uint8_t step[STEPS];       /* where steps begin; the last ones all at the end */
} shape;

static struct {
    fa_canary secret;
    bool is_secret;
    shape shapes[FA_GLOBAL_CLASSES];
    state *states;         /* at the end of the range; the first unit is nobody's */
    fa_lock states_lock;   /* for the next three */
    uint32_t states_used;  /* units */
    size_t states_usable;  /* bytes that are committed */
    uint32_t states_free[FA_GLOBAL_CLASSES]; /* the first unit of what a span left, where the next one is; 0: none */

    fa_lock lock;          /* for all that is below */
    fa_table table;        /* the data of those in use: index in bigs */
    big *bigs;
    uint32_t most, count, used, unused; /* records: all; usable; ever used; the first of those that are not used any more, + 1 */
    uint32_t held[HELD], held_count; /* oldest first */
    size_t held_length[HELD];        /* of their mappings: looked for here, so that records are left in peace */
    size_t held_bytes, freed_bytes;
    uint32_t draw;
} hard;

#define LOAD(place) atomic_load_explicit(&(place), memory_order_relaxed)
#define STORE(place, value) atomic_store_explicit(&(place), (value), memory_order_relaxed)

FA_COLD static void report(const char *call, fa_fault fault, const void *block) {
    const fa_reporter reporter = {.os = fa_the_heap.os, .heap = "malloc", .name = ""};
    fa_report_fault(&reporter, call, fault, block);
}

static inline bool is_stepped(const shape *form) { return form->size - STEPPED_MIN <= STEPPED_MAX - STEPPED_MIN; }

/* ---- the beginning ------------------------------------------------------------------------------------------------- */

void fa_hardened_begin(void) {
    const fa_os *os = fa_the_heap.os;
    fa_pages *pages = &fa_the_heap.pages;
    hard.is_secret = fa_canary_draw(&hard.secret, os) == 0;
    if (!hard.is_secret) /* where things lie, and when, is all there is */
        hard.secret = (fa_canary){{(uintptr_t)&os * 0xD1342543DE82EF95U, (uintptr_t)pages->base ^ os->milliseconds() << 40}};
    for (uint32_t class = 1; class < FA_GLOBAL_CLASSES; class++) {
        const fa_central *central = &fa_the_heap.central[class];
        shape *form = &hard.shapes[class];
        *form = (shape){.size = central->stats.size, .reciprocal = central->reciprocal, .slots = (uint16_t)central->slots,
                        .waiting = (uint8_t)(central->slots / QUEUED), .class = (uint8_t)class};
        for (uint32_t i = 0; i < STEPS && is_stepped(form); i++)
            form->step[i] = (uint8_t)fa_min((size_t)i * sizeof(fa_pair), form->size - WORD - sizeof(fa_pair));
    }
    if (pages->bytes == 0) return;
    pages->end -= pages->end / 8; /* states: two bytes for every 16 of the rest */
    hard.states = fa_pages_address(pages, pages->end);
    hard.states_used = 1;
}

bool fa_global_is_hardened(void) { return fa_is_hardened(); }
bool fa_global_has_secret(void) { return hard.is_secret; }

/* ---- states -------------------------------------------------------------------------------------------------------- */

typedef struct spot {
    state *state; /* null: no block of a span */
    unsigned char *start;
    const shape *form;
    size_t offset; /* of the pointer, from start */
} spot;

/* A span is not free: where the time of that would be, its states are. */
static inline state *states_of(const fa_run *span) { return hard.states + (size_t)span->freed_at * STATES_UNIT; }

/* The small block at, or around, a pointer. */
static inline spot find_spot(const void *pointer) {
    spot found = {.state = NULL};
    const fa_pages *pages = &fa_the_heap.pages;
    if (FA_UNLIKELY(!fa_is_in_range(pointer))) return found;
    uint32_t page = fa_pages_of(pages, pointer), first = pages->run[page].first;
    const fa_run *run = &pages->run[first];
    if (FA_UNLIKELY(run->kind != FA_RUN_SPAN || page - first >= run->length)) return found;
    const shape *form = &hard.shapes[run->class];
    unsigned char *start = fa_pages_address(pages, first);
    size_t offset = (size_t)((const unsigned char *)pointer - start);
    uint32_t index = (uint32_t)((uint64_t)offset * form->reciprocal >> 32);
    if (FA_UNLIKELY(index == 0 || index >= run->blocks)) return found;
    found.state = states_of(run) + index;
    found.start = start + (size_t)index * form->size;
    found.form = form;
    found.offset = offset - (size_t)index * form->size;
    return found;
}

/* The same for what is known to be one. */
static inline spot spot_of(unsigned char *block, uint32_t class) {
    const fa_pages *pages = &fa_the_heap.pages;
    const shape *form = &hard.shapes[class];
    uint32_t first = pages->run[fa_pages_of(pages, block)].first;
    size_t offset = (size_t)(block - (unsigned char *)fa_pages_address(pages, first));
    uint32_t index = (uint32_t)((uint64_t)offset * form->reciprocal >> 32);
    return (spot){.state = states_of(&pages->run[first]) + index, .start = block, .form = form};
}

/* Units for a span of the class, or 0. All are FRESH. */
static uint32_t take_states(uint32_t class, uint32_t blocks) {
    const fa_os *os = fa_the_heap.os;
    size_t need, end, all = fa_the_heap.pages.bytes - ((size_t)fa_the_heap.pages.end << FA_PAGE_LOG2);
    fa_lock_take(&hard.states_lock, os);
    uint32_t unit = hard.states_free[class], units = (blocks + STATES_UNIT - 1) / STATES_UNIT;
    state *first = hard.states + (size_t)unit * STATES_UNIT;
    need = ((size_t)hard.states_used + units) * STATES_UNIT * sizeof(state);
    if (unit != 0) {
        memcpy(&hard.states_free[class], (void *)first, sizeof unit);
        memset((void *)first, 0, sizeof unit);
    } else if (need <= all && fa_align_up(need, STATES_STEP, &end)) {
        end = fa_min(end, all);
        unsigned char *from = (unsigned char *)hard.states + hard.states_usable;
        bool usable = end <= hard.states_usable || os->commit(from, end - hard.states_usable) == 0;
        if (usable) {
            unit = hard.states_used;
            hard.states_used += units;
            hard.states_usable = fa_max(end, hard.states_usable);
        }
    }
    fa_lock_give(&hard.states_lock);
    return unit;
}

static void give_states(uint32_t unit, uint32_t class, uint32_t blocks) {
    state *first = hard.states + (size_t)unit * STATES_UNIT;
    memset((void *)first, 0, blocks * sizeof(state));
    fa_lock_take(&hard.states_lock, fa_the_heap.os);
    memcpy((void *)first, &hard.states_free[class], sizeof unit);
    hard.states_free[class] = unit;
    fa_lock_give(&hard.states_lock);
}

bool fa_hardened_span(uint32_t first, uint32_t class, uint32_t blocks, bool zero) {
    fa_run *run = &fa_the_heap.pages.run[first];
    run->freed_at = take_states(class, blocks);
    if (run->freed_at == 0) return false;
    if (!zero) memset(fa_pages_address(&fa_the_heap.pages, first), 0, (size_t)run->length << FA_PAGE_LOG2);
    return true;
}

/* ---- the words and the slack of a small block ----------------------------------------------------------------------- */

typedef _Atomic uint64_t word;

static inline word *word_at(unsigned char *block, uint32_t size) { return (word *)(void *)(block + size - WORD); }
static inline bool has_word(unsigned char *block, uint32_t size, const fa_canary *canary) {
    return LOAD(*word_at(block, size)) == canary->word[1];
}
static inline fa_canary canary_of(const unsigned char *block) { return fa_canary_of(&hard.secret, block); }

/* One byte, sixteen times: it does not matter where a store begins. */
static inline fa_pair slack_of(const fa_canary *canary) {
    const uint64_t eight = (canary->word[0] & 0xFF) * 0x0101010101010101U;
    return (fa_pair){eight, eight};
}

/*
 * Sizes follow no pattern, and a loop whose end cannot be foreseen costs more than what it does. So the last 16 bytes before the word
 * are seen through a mask, all at once; and blocks of some lines are looked at, and zeroed, in as many steps as the
 * largest of them needs, the last ones at the same place.
 */

/* All bits of the last `count` bytes, up to 16. */
static inline fa_pair last_bytes(size_t count) {
    static const unsigned char bytes[2 * sizeof(fa_pair)] = {
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255};
    return fa_load_pair(bytes + count);
}

/* The word is not touched. A block of 16 bytes has no more than eight before it. */
static inline void fill_slack(const spot *at, size_t size, fa_pair pattern) {
    unsigned char *end = at->start + at->form->size - WORD;
    size_t slack = at->form->size - WORD - size;
    fa_pair mask = last_bytes(fa_min(slack, sizeof mask)), new;
    if (FA_UNLIKELY(at->form->size < STEPPED_MIN)) {
        uint64_t low = (fa_load_word(end - WORD) & ~mask[1]) | (pattern[1] & mask[1]);
        memcpy(end - WORD, &low, WORD);
        return;
    }
    new = (fa_load_pair(end - sizeof new) & ~mask) | (pattern & mask);
    memcpy(end - sizeof new, &new, sizeof new);
    for (size_t done = sizeof new; done < slack; done += sizeof new)
        memcpy(end - fa_min(done + sizeof new, slack), &pattern, sizeof new);
}

static inline bool slack_holds(const spot *at, size_t size, fa_pair pattern) {
    const unsigned char *end = at->start + at->form->size - WORD;
    size_t slack = at->form->size - WORD - size;
    fa_pair mask = last_bytes(fa_min(slack, sizeof mask)), damage;
    if (FA_UNLIKELY(at->form->size < STEPPED_MIN)) return ((fa_load_word(end - WORD) ^ pattern[1]) & mask[1]) == 0;
    damage = (fa_load_pair(end - sizeof damage) ^ pattern) & mask;
    for (size_t done = sizeof damage; done < slack; done += sizeof damage)
        damage |= fa_load_pair(end - fa_min(done + sizeof damage, slack)) ^ pattern;
    return (damage[0] | damage[1]) == 0;
}

/* All but the word. */
static inline bool is_clear(const spot *at) {
    const shape *form = at->form;
    fa_pair found = {0, 0};
    if (FA_UNLIKELY(!is_stepped(form))) return fa_is_zero(at->start, form->size - WORD);
    for (size_t i = 0; i < STEPS; i++) found |= fa_load_pair(at->start + form->step[i]);
    return (found[0] | found[1]) == 0;
}

static inline void clear(const spot *at) {
    const shape *form = at->form;
    if (FA_UNLIKELY(!is_stepped(form))) {
        memset(at->start, 0, form->size - WORD);
        return;
    }
    for (size_t i = 0; i < STEPS; i++) memset(at->start + form->step[i], 0, sizeof(fa_pair));
}

static inline bool is_intact(const spot *at, size_t size, const fa_canary *canary) {
    return has_word(at->start, at->form->size, canary) && slack_holds(at, size, slack_of(canary));
}

static inline bool is_intact_before(const spot *at) {
    unsigned char *before = at->start - at->form->size;
    const fa_canary canary = canary_of(before);
    return has_word(before, at->form->size, &canary);
}

static inline bool is_untouched(const spot *at, const fa_canary *canary) {
    return is_clear(at) && has_word(at->start, at->form->size, canary);
}

/* A block that is used for the first time, or the one before it, has no word yet. */
FA_COLD static void give_words(const spot *at) {
    unsigned char *block = at->start, *before = block - at->form->size;
    word *own = word_at(block, at->form->size);
    /* A page that is read first is faulted in twice: the one of the word is written to. */
    if (((uintptr_t)block ^ (uintptr_t)own) >= PAGE_LEAST && atomic_exchange_explicit((atomic_uchar *)block, 0, memory_order_relaxed) != 0)
        report("reuse", FA_FAULT_WRITTEN, block);
    /* Whoever sees that a block is not fresh sees its word. */
    STORE(*own, canary_of(block).word[1]);
    if (atomic_load_explicit(&at->state[-1], memory_order_acquire) == FRESH)
        STORE(*word_at(before, at->form->size), canary_of(before).word[1]);
}

/* Makes a free block a live one. */
static inline void *arm(unsigned char *block, uint32_t class, size_t size) {
    const spot at = spot_of(block, class);
    const fa_canary canary = canary_of(block);
    if (FA_UNLIKELY(LOAD(*at.state) == FRESH)) give_words(&at);
    atomic_store_explicit(at.state, BUSY, memory_order_release);
    if (FA_UNLIKELY(!is_untouched(&at, &canary))) report("reuse", FA_FAULT_WRITTEN, block);
    fill_slack(&at, size, slack_of(&canary));
    atomic_store_explicit(at.state, (uint16_t)(size + LIVE), memory_order_release);
    return block;
}

/* ---- vaults --------------------------------------------------------------------------------------------------------- */

/* A number below `count`. */
static inline uint32_t drawn_from(fa_heap *heap, uint32_t count) {
    heap->random = heap->random * 6364136223846793005U + 1442695040888963407U;
    return (uint32_t)((heap->random >> 32) * count >> 32);
}

/*
 * Only its thread uses a vault, but for the rare look of others. So the thread says that it is there, and looks whether it is to stay
 * away; whoever wants it to says so, has a fence executed in every running thread, and waits until it is not there. Whoever
 * is second sees the other: a lock that costs its owner no atomic operation. Without such fences the lock itself is taken.
 */
FA_COLD static void enter_locked(fa_heap *heap) {
    atomic_store_explicit(&heap->busy, 0, memory_order_release);
    fa_lock_take(&heap->lock, fa_the_heap.os);
    heap->locked = true;
}

static inline void enter_vault(fa_heap *heap) {
    STORE(heap->busy, 1);
    atomic_signal_fence(memory_order_seq_cst);
    if (FA_UNLIKELY(atomic_load_explicit(&heap->halted, memory_order_acquire) != 0)) enter_locked(heap);
}

static inline void leave_vault(fa_heap *heap) {
    if (FA_LIKELY(!heap->locked)) {
        atomic_store_explicit(&heap->busy, 0, memory_order_release);
    } else {
        heap->locked = false;
        fa_lock_give(&heap->lock);
    }
}

bool fa_hardened_halt(fa_heap *heap) {
    if (!LOAD(fa_the_heap.fences)) return true; /* it always takes the lock */
    STORE(heap->halted, 1);
    if (fa_the_heap.os->fence_threads(false) != 0) {
        fa_hardened_resume(heap);
        return false;
    }
    while (atomic_load_explicit(&heap->busy, memory_order_acquire) != 0) fa_the_heap.os->yield();
    return true;
}

void fa_hardened_resume(fa_heap *heap) {
    atomic_store_explicit(&heap->halted, LOAD(fa_the_heap.fences) ? 0 : 1, memory_order_release);
}

/* How many blocks are in a vault. Whoever looked in meanwhile may have taken some, the oldest first. */
static inline uint32_t count_vault(fa_heap *heap, uint32_t class) {
    const fa_bin *bin = &heap->bin[class];
    void **start = heap->start[class];
    uint32_t count = FA_LIKELY(LOAD(bin->bottom) == start) ? (uint32_t)(LOAD(bin->top) - start) : fa_global_gather(heap, class, 0);
    if (FA_UNLIKELY(heap->waits[class] > count)) {
        heap->waits[class] = (uint8_t)count;
        heap->queue[class] = 0;
    }
    return count;
}

/* Some that may be drawn. How many there are in the vault now. */
FA_COLD static uint32_t fetch(fa_heap *heap, uint32_t class, uint32_t count) {
    uint32_t waits = heap->waits[class], room = hard.shapes[class].slots - waits;
    if (count == 0) heap->random ^= hard.secret.word[0];
    return count + fa_global_take_blocks(class, heap->start[class] + count, (room < FETCHED ? room : FETCHED) - (count - waits));
}

/* The last one is the next to go. */
static inline void *draw_next(fa_heap *heap, void **start, uint32_t waits, uint32_t count) {
    uint32_t index = waits + drawn_from(heap, count - waits);
    void *next = start[index];
    start[index] = start[count - 1];
    return start[count - 1] = next;
}

/* Some free block of the class, or null. Which one comes after it is drawn already, so that it is in the cache by then. */
static inline unsigned char *draw(fa_heap *heap, uint32_t class) {
    fa_bin *bin = &heap->bin[class];
    unsigned char *block = NULL;
    enter_vault(heap);
    void **start = heap->start[class];
    uint32_t count = count_vault(heap, class), waits = heap->waits[class];
    bool few = count - waits < FEW;
    if (FA_UNLIKELY(few)) {
        count = fetch(heap, class, count);
        if (count == waits) waits = 0; /* there is no memory */
        if (count > waits) (void)draw_next(heap, start, waits, count);
    }
    if (FA_LIKELY(count > 0)) {
        block = start[--count];
        STORE(bin->top, start + count);
        STORE(bin->allocated, LOAD(bin->allocated) + 1);
        if (FA_LIKELY(count > waits)) {
            const unsigned char *next = draw_next(heap, start, waits, count);
            __builtin_prefetch(next, 1);
            __builtin_prefetch(next + hard.shapes[class].size - WORD, 1);
        }
    }
    leave_vault(heap);
    if (FA_UNLIKELY(few)) fa_global_now_and_then();
    return block;
}

/* Takes the place of the one that has waited longest, once as many wait as are to. */
static inline void put_away(fa_heap *heap, const shape *form, void *block) {
    const uint32_t class = form->class;
    fa_bin *bin = &heap->bin[class];
    bool full;
    enter_vault(heap);
    void **start = heap->start[class];
    uint32_t count = count_vault(heap, class), waits = heap->waits[class];
    full = count == form->slots;
    if (FA_UNLIKELY(full)) {
        uint32_t gone = (form->slots - waits) / 2;
        count -= gone;
        fa_global_give_blocks(class, start + count, gone);
    }
    uint32_t at = waits;
    if (FA_LIKELY(waits == form->waiting)) {
        at = heap->queue[class];
        heap->queue[class] = (uint8_t)(at + 1 == waits ? 0 : at + 1);
    } else {
        heap->waits[class] = (uint8_t)++waits;
    }
    void *oldest = start[at];
    start[at] = block;
    if (FA_LIKELY(count > waits)) { /* the last one stays the last */
        start[count] = start[count - 1];
        start[count - 1] = oldest;
    } else if (at != count) {
        start[count] = oldest;
    }
    atomic_store_explicit(&bin->top, start + count + 1, memory_order_release);
    leave_vault(heap);
    if (FA_UNLIKELY(full)) fa_global_now_and_then();
}

static void *alloc_small(fa_heap *heap, size_t size, size_t alignment) {
    uint32_t class = fa_global_class(size + WORD);
    if (FA_UNLIKELY(alignment > 16)) {
        while (class < FA_GLOBAL_CLASSES && hard.shapes[class].size % alignment != 0) class++;
        if (class == FA_GLOBAL_CLASSES) return NULL;
    }
    void *block = FA_LIKELY(heap != NULL) ? draw(heap, class) : NULL;
    if (FA_UNLIKELY(block == NULL)) {
        if (fa_global_take_blocks(class, &block, 1) == 0) return NULL;
        atomic_fetch_add_explicit(&fa_the_heap.central[class].stats.allocated, 1, memory_order_relaxed);
    }
    return arm(block, class, size);
}

/* What a pointer is that no block begins at. */
FA_COLD static void refuse(const char *call, const void *pointer, const spot *at) {
    report(call, at->state != NULL && at->offset != 0 && LOAD(*at->state) >= LIVE ? FA_FAULT_INSIDE : FA_FAULT_NOT_LIVE, pointer);
}

/* Why a block cannot be freed. Somebody else may have done so while it was looked at. */
FA_COLD static void refuse_free(const spot *at, size_t size, uint16_t before) {
    uint16_t now = LOAD(*at->state);
    const fa_canary canary = canary_of(at->start);
    fa_fault fault = now == FRESH                                                ? FA_FAULT_NOT_LIVE
                     : before < LIVE || now < LIVE                                ? FA_FAULT_FREED
                     : size != FA_ANY_SIZE && size != (size_t)before - LIVE       ? FA_FAULT_SIZE
                     : !is_intact(at, (size_t)before - LIVE, &canary)             ? FA_FAULT_OVERFLOW
                     : !is_intact_before(at)                                      ? FA_FAULT_UNDERFLOW
                                                                                  : FA_FAULT_FREED;
    report("free", fault, at->start);
}

/* All is looked at before the state changes: what that waits for is in the cache then. */
static inline void free_small(fa_heap *heap, const spot *at, size_t size) {
    unsigned char *block = at->start;
    const fa_canary canary = canary_of(block);
    uint16_t before = LOAD(*at->state);
    size_t own_size = (size_t)before - LIVE;
    if (FA_UNLIKELY(before < LIVE || (size != FA_ANY_SIZE && size != own_size) || !is_intact(at, own_size, &canary) ||
                    !is_intact_before(at) ||
                    !atomic_compare_exchange_strong_explicit(at->state, &before, BUSY, memory_order_acquire, memory_order_relaxed))) {
        refuse_free(at, size, before);
        return;
    }
    clear(at);
    atomic_store_explicit(at->state, FREE, memory_order_release);
    void *freed = block;
    if (FA_LIKELY(heap != NULL)) put_away(heap, at->form, block);
    else fa_global_give_blocks(at->form->class, &freed, 1);
}

/* ---- large blocks; with the lock ------------------------------------------------------------------------------------- */

static void lock(void) { fa_lock_take(&hard.lock, fa_the_heap.os); }
static void unlock(void) {
    STORE(FA_COUNTS->large_cached, hard.held_bytes);
    fa_lock_give(&hard.lock);
}

static big *big_of(const void *data) {
    const fa_slot *slot = fa_table_find(&hard.table, data);
    return slot == NULL ? NULL : &hard.bigs[slot->value];
}

static bool make_records(void) {
    const fa_os *os = fa_the_heap.os;
    void *memory;
    for (uint32_t most = RECORDS_MAX; hard.bigs == NULL; most /= 4) {
        if (most < RECORDS_STEP) return false;
        if (os->reserve(most * sizeof(big), os->page_size(), &memory) != 0) continue;
        hard.bigs = memory;
        hard.most = most;
    }
    if (hard.count == hard.most || !fa_commit_items(os, hard.bigs, sizeof(big), hard.count, hard.count + RECORDS_STEP)) return false;
    hard.count += RECORDS_STEP;
    return true;
}

static big *new_record(void) {
    uint32_t index = hard.unused;
    if (index != 0) hard.unused = hard.bigs[index - 1].next;
    else if (hard.used < hard.count || make_records()) index = ++hard.used;
    else return NULL;
    hard.bigs[index - 1] = (big){.fate = ON_ITS_WAY};
    return &hard.bigs[index - 1];
}

static void forget_record(big *one) {
    one->fate = UNUSED;
    one->next = hard.unused;
    hard.unused = (uint32_t)(one - hard.bigs) + 1;
}

static big *take_held(uint32_t at) {
    big *one = &hard.bigs[hard.held[at]];
    hard.held_count--;
    memmove(&hard.held[at], &hard.held[at + 1], (hard.held_count - at) * sizeof hard.held[0]);
    memmove(&hard.held_length[at], &hard.held_length[at + 1], (hard.held_count - at) * sizeof hard.held_length[0]);
    hard.held_bytes -= (size_t)(one->close - one->open);
    one->fate = ON_ITS_WAY;
    return one;
}

/* A mapping that has waited long enough and ends at the alignment: of several the first after a place that changes. */
static big *find_held(size_t length, size_t alignment) {
    hard.draw = hard.draw * 1664525U + 1013904223U;
    const uint32_t first = (uint32_t)((uint64_t)hard.draw * hard.held_count >> 32);
    for (uint32_t i = 0; i < hard.held_count; i++) {
        uint32_t at = first + i < hard.held_count ? first + i : first + i - hard.held_count;
        if (hard.held_length[at] < length || hard.held_length[at] - length > length / HELD_WASTE) continue;
        const big *one = &hard.bigs[hard.held[at]];
        if (at + HELD_BACK >= hard.held_count && hard.freed_bytes - one->freed_bytes < HELD_BACK_BYTES) continue;
        if (((uintptr_t)one->map + one->length - fa_the_heap.os->page_size()) % alignment == 0) return take_held(at);
    }
    return NULL;
}

/* ---- large blocks; without --------------------------------------------------------------------------------------------- */

static void release_big(big *one) {
    (void)fa_the_heap.os->release(one->map, one->length);
    FA_UNCOUNT(reserved, one->length);
    FA_COUNT(returned, (size_t)(one->close - one->open));
    lock();
    forget_record(one);
    unlock();
}

static bool is_clean(const big *one) { return one->closed || fa_is_zero(one->open, (size_t)(one->close - one->open)); }

/* What was open while it waited is zero still. */
static void look_at_waiting(const big *one) {
    if (FA_UNLIKELY(!is_clean(one))) report("reuse", FA_FAULT_WRITTEN, one->data);
}

/* Held blocks that are too many, too much, or too old, go. True if one did. */
static bool release_held(uint64_t now, uint32_t most, size_t bytes, uint32_t age) {
    bool any = false;
    for (;;) {
        lock();
        const big *oldest = hard.held_count > 0 ? &hard.bigs[hard.held[0]] : NULL;
        bool goes = oldest != NULL && (hard.held_count > most || hard.held_bytes > bytes || (age != 0 && now - oldest->freed_at >= age));
        big *gone = goes ? take_held(0) : NULL;
        unlock();
        if (gone == NULL) return any;
        look_at_waiting(gone);
        release_big(gone);
        any = true;
    }
}

/* Canary from where it may be touched to the data, and behind it. */
static void surround(const big *one) {
    const fa_canary canary = fa_canary_of(&hard.secret, one->data);
    fa_canary_fill(&canary, one->open, (size_t)(one->data - one->open));
    fa_canary_fill(&canary, one->data + one->size, (size_t)(one->close - one->data) - one->size);
}

static bool damage_of(const big *one, fa_fault *fault) {
    const fa_canary canary = fa_canary_of(&hard.secret, one->data);
    bool after = !fa_canary_holds(&canary, one->data + one->size, (size_t)(one->close - one->data) - one->size);
    *fault = after ? FA_FAULT_OVERFLOW : FA_FAULT_UNDERFLOW;
    return after || !fa_canary_holds(&canary, one->open, (size_t)(one->data - one->open));
}

static bool commit(unsigned char *from, const unsigned char *to) {
    return to <= from || fa_the_heap.os->commit(from, (size_t)(to - from)) == 0;
}

/* Opens from `open` to `close`, or what is closed of it; what is open behind it is closed, what is before it stays, for canaries. */
static bool open_range(const big *one, unsigned char *open, unsigned char *close) {
    if (one->open == one->close) return commit(open, close);
    if (close < one->close && fa_the_heap.os->protect(close, (size_t)(one->close - close), FA_OS_NONE) != 0) return false;
    return commit(open, one->open) && commit(one->close, close);
}

/* If the kernel refuses, all of it is open. */
static bool open_big(big *one, unsigned char *open, unsigned char *close) {
    bool opened = open_range(one, open, close) || (release_held(0, 0, 0, 0) && open_range(one, open, close));
    one->open = one->open == one->close || open < one->open ? open : one->open;
    one->close = close;
    if (opened) return true;
    one->open = one->map;
    one->close = one->map + one->length;
    return commit(one->open, one->close);
}

static bool map_big(big *one, size_t length, size_t alignment) {
    const fa_os *os = fa_the_heap.os;
    void *memory;
    if (os->reserve(length, alignment, &memory) != 0 &&
        (!release_held(0, 0, 0, 0) || os->reserve(length, alignment, &memory) != 0))
        return false;
    one->map = memory;
    one->length = length;
    FA_COUNT(reserved, length);
    return true;
}

/* What is ready becomes somebody's. */
static void *enter(big *one) {
    size_t room = (size_t)(one->close - one->open);
    lock();
    bool entered = fa_table_insert(&hard.table, fa_the_heap.os, one->data, (uint64_t)(one - hard.bigs));
    if (entered) one->fate = IN_USE;
    unlock();
    if (!entered) {
        release_big(one);
        return NULL;
    }
    FA_COUNT(large_bytes, room);
    FA_COUNT(large_live, 1);
    fa_global_note_peak();
    return one->data;
}

/* With `spare` more bytes of addresses, closed, to grow on. */
static void *alloc_big(size_t size, size_t alignment, size_t spare) {
    size_t page = fa_the_heap.os->page_size(), rounded, room, length;
    size_t edge = fa_max(alignment, page); /* of the mapping, and closed before the data */
    if (!fa_align_up(size, fa_max(alignment, FA_CANARY), &rounded) || !fa_align_up(rounded, page, &room) ||
        __builtin_add_overflow(room, spare = fa_align_down(spare, page), &room))
        return NULL;
    size_t step = (size_t)1 << (fa_log2(room | 1) - fa_min(fa_log2(room | 1), 4)); /* so that freed ones fit others */
    if (__builtin_add_overflow(room, page, &room) || !fa_align_up(room, fa_max(step, edge), &room) ||
        __builtin_add_overflow(room, edge + page, &length))
        return NULL;
    lock();
    big *one = find_held(length, edge);
    bool reused = one != NULL;
    if (one == NULL) one = new_record();
    unlock();
    if (one == NULL) return NULL;
    if (!reused && !map_big(one, length, edge)) {
        lock();
        forget_record(one);
        unlock();
        return NULL;
    }
    if (reused) look_at_waiting(one);
    if (one->closed) one->close = one->open;
    unsigned char *end = one->map + one->length - page - spare;
    one->data = end - rounded;
    one->size = size;
    unsigned char *open = (unsigned char *)fa_align_down((uintptr_t)one->data - FA_CANARY, page);
    if (!open_big(one, open, end)) {
        release_big(one);
        return NULL;
    }
    surround(one);
    if (reused) {
        FA_COUNT(cache_hits, 1);
        FA_COUNT(large_reused, (size_t)(end - one->open));
    }
    FA_COUNT(large_allocated, 1);
    fa_global_now_and_then();
    return enter(one);
}

/* All zero, and closed. False: it cannot be. */
static bool close_big(big *one) {
    const fa_os *os = fa_the_heap.os;
    size_t room = (size_t)(one->close - one->open);
    uint64_t resident = room;
    if (one->open == one->map) return false; /* it had no closed pages */
    one->closed = room >= CLOSED_MIN;
    if (room >= SPARSE_MIN) (void)os->resident(one->open, room, &resident);
    if (resident < room / 2) {
        if (os->decommit(one->open, room) != 0) return false;
        one->closed = true; /* a look would make pages */
    } else {
        memset(one->open, 0, room);
    }
    return !one->closed || os->protect(one->open, room, FA_OS_NONE) == 0;
}

/* False if no large block begins there. */
static bool free_big(void *block, size_t size) {
    fa_fault fault;
    lock();
    fa_slot *slot = fa_table_find(&hard.table, block);
    big *one = slot == NULL ? NULL : &hard.bigs[slot->value];
    if (one != NULL) {
        one->fate = ON_ITS_WAY;
        fa_table_remove(&hard.table, slot);
    }
    unlock();
    if (one == NULL) return false;
    if (size != FA_ANY_SIZE && size != one->size) report("free", FA_FAULT_SIZE, block);
    if (damage_of(one, &fault)) report("free", fault, block);
    size_t room = (size_t)(one->close - one->open), limit = fa_the_options.cache_limit;
    FA_UNCOUNT(large_bytes, room);
    FA_UNCOUNT(large_live, 1);
    if (room > limit || !close_big(one)) {
        release_big(one);
        return true;
    }
    (void)release_held(0, HELD - 1, limit - room, 0);
    lock();
    bool held = hard.held_count < HELD;
    if (held) {
        one->fate = WAITING;
        one->freed_at = fa_global_now();
        one->freed_bytes = hard.freed_bytes;
        hard.held_length[hard.held_count] = one->length;
        hard.held[hard.held_count++] = (uint32_t)(one - hard.bigs);
        hard.held_bytes += room;
    }
    hard.freed_bytes += room;
    unlock();
    if (!held) release_big(one);
    return true;
}

/* ---- another size for a large block ------------------------------------------------------------------------------------ */

/* Record, canary and open pages change one by one: who looks at all blocks leaves one alone that is on its way. */
static void set_fate(big *one, fate now) {
    lock();
    one->fate = (uint8_t)now;
    unlock();
}

/* Others look for addresses in records while the lock is theirs. */
static void resize(big *one, size_t size, unsigned char *close) {
    size_t room = (size_t)(close - one->open);
    FA_COUNT(large_bytes, room - (size_t)(one->close - one->open));
    fa_global_note_peak();
    lock();
    one->size = size;
    one->close = close;
    unlock();
}

static size_t rounded_up(uintptr_t address) {
    size_t rounded, page = fa_the_heap.os->page_size();
    return fa_align_up(address, page, &rounded) ? rounded - address : 0;
}

/* Where it stands: what is between the old and the new end is zero, and what is behind is canary. */
static bool resize_in_place(big *one, size_t size) {
    const fa_os *os = fa_the_heap.os;
    unsigned char *end = one->data + one->size, *limit = one->map + one->length - os->page_size();
    if (one->open == one->map || size > (size_t)(limit - one->data)) return false;
    unsigned char *new_end = one->data + size, *close = new_end + rounded_up((uintptr_t)new_end), *old = one->close;
    if (close > old) {
        if (os->commit(old, (size_t)(close - old)) != 0) return false;
    } else if (close < old) {
        if (os->protect(close, (size_t)(old - close), FA_OS_NONE) != 0) return false;
        if (os->decommit(close, (size_t)(old - close)) != 0 && os->commit(close, (size_t)(old - close)) == 0) return false;
    }
    unsigned char *dirty = size < one->size ? new_end : end;
    if (dirty < close && dirty < old) memset(dirty, 0, (size_t)((close < old ? close : old) - dirty));
    resize(one, size, close);
    surround(one);
    return true;
}

/* Its pages go to a mapping that has addresses to grow on. Null: nothing has changed. */
static void *move_pages(big *one, size_t size) {
    const fa_os *os = fa_the_heap.os;
    size_t page = os->page_size(), room = (size_t)(one->close - one->open), phase = (size_t)(one->data - one->open), length;
    if (os->move == NULL || one->open == one->map || room < MOVED_MIN || size > SIZE_MAX / 4) return NULL;
    if (size < (size_t)(one->close - one->data)) return NULL; /* an alignment took more pages than there would be room for */
    if (!fa_align_up(phase + size + size / 2, page, &length)) return NULL;
    length += 2 * page;
    lock();
    big *other = new_record();
    unlock();
    if (other == NULL) return NULL;
    if (!map_big(other, length, page)) {
        lock();
        forget_record(other);
        unlock();
        return NULL;
    }
    unsigned char *open = other->map + page, *data = open + phase, *close = data + size;
    close += rounded_up((uintptr_t)close);
    other->data = data;
    other->size = size;
    if (os->commit(open, (size_t)(close - open)) != 0) {
        other->open = other->close = open;
        release_big(other);
        return NULL;
    }
    other->open = open;
    other->close = close;
    lock();
    fa_slot *slot = fa_table_find(&hard.table, one->data);
    fa_table_take_out(&hard.table, slot);
    unlock();
    bool moved = os->move(one->open, room, open) == 0;
    lock();
    const big *now = moved ? other : one;
    fa_table_put_back(&hard.table, now->data, (uint64_t)(now - hard.bigs));
    unlock();
    if (!moved) {
        release_big(other);
        return NULL;
    }
    memset(data + one->size, 0, (size_t)(one->close - one->data) - one->size); /* it was canary */
    surround(other);
    set_fate(other, IN_USE);
    FA_COUNT(large_bytes, (size_t)(close - open) - room);
    FA_COUNT(moved, 1);
    fa_global_note_peak();
    (void)os->release(one->map, (size_t)(one->open - one->map));
    (void)os->release(one->close, one->length - (size_t)(one->close - one->map));
    FA_UNCOUNT(reserved, one->length);
    lock();
    forget_record(one);
    unlock();
    return data;
}

/* ---- pointers that no block begins at ------------------------------------------------------------------------------------ */

/* With the lock, or when all is lost: the mapping around an address. */
static const big *around(const void *address) {
    for (uint32_t i = 0; i < hard.used; i++) {
        const big *one = &hard.bigs[i];
        if ((one->fate == IN_USE || one->fate == WAITING) && (uintptr_t)address - (uintptr_t)one->map < one->length) return one;
    }
    return NULL;
}

/* True if it is known to be somebody else's; else it is reported. */
FA_COLD static bool is_foreign(const char *call, const void *block, const spot *at) {
    if (at->state != NULL || fa_is_in_range(block)) {
        refuse(call, block, at);
        return false;
    }
    lock();
    const big *one = around(block);
    fa_fault fault = one == NULL                                        ? FA_FAULT_FOREIGN
                     : one->fate == WAITING && one->data == block ? FA_FAULT_FREED
                     : one->fate == IN_USE                             ? FA_FAULT_INSIDE
                                                                       : FA_FAULT_NOT_LIVE;
    unlock();
    bool known = one == NULL && fa_the_options.foreign_is_known != NULL && fa_the_options.foreign_is_known(block);
    if (known) FA_COUNT(foreign, 1);
    else report(call, fault, block);
    return known;
}

/* A signal may have interrupted whoever holds the lock. */
static bool take_soon(fa_lock *one) {
    for (int tries = 0; atomic_exchange_explicit(&one->held, 1, memory_order_acquire) != 0; tries++) {
        if (tries == 1000) return false;
        fa_the_heap.os->yield();
    }
    return true;
}

bool fa_global_explain(const void *address) {
    if (!fa_is_hardened()) return false;
    if (!take_soon(&hard.lock)) return false;
    const big *one = around(address);
    bool freed = one != NULL && one->fate == WAITING, before = one != NULL && (uintptr_t)address < (uintptr_t)one->data;
    fa_lock_give(&hard.lock);
    if (one != NULL) report("access", freed ? FA_FAULT_GONE : before ? FA_FAULT_AHEAD : FA_FAULT_PAST, address);
    return one != NULL;
}

/* ---- the ways in ---------------------------------------------------------------------------------------------------------- */

FA_HOT void *fa_hardened_alloc(fa_heap *heap, size_t size, size_t alignment) {
    void *block = NULL;
    if (FA_LIKELY(size <= SMALL_MAX && alignment <= FA_PAGE)) {
        block = alloc_small(heap, size, alignment);
        if (FA_LIKELY(block != NULL)) return block;
        FA_COUNT(fallbacks, 1);
    }
    block = alloc_big(size, fa_max(alignment, FA_CANARY), 0);
    return block != NULL ? block : fa_global_no_memory();
}

FA_HOT void fa_hardened_free(fa_heap *heap, void *block, size_t size) {
    const spot at = find_spot(block);
    if (FA_LIKELY(at.state != NULL && at.offset == 0)) {
        free_small(heap, &at, size);
    } else if (!free_big(block, size) && is_foreign("free", block, &at) && fa_the_options.foreign_free != NULL) {
        fa_the_options.foreign_free(block);
    }
}

/* The size of a live block. False if there is none, and that was said. */
static bool find_live(const char *call, const void *block, const spot *at, size_t *size) {
    uint16_t now = at->state != NULL && at->offset == 0 ? LOAD(*at->state) : FRESH;
    *size = (size_t)now - LIVE;
    if (now >= LIVE) return true;
    if (now != FRESH) {
        report(call, FA_FAULT_FREED, block);
        return false;
    }
    lock();
    const big *one = big_of(block);
    if (one != NULL) *size = one->size;
    unlock();
    return one != NULL;
}

size_t fa_hardened_usable_size(const void *block) {
    size_t size;
    const spot at = find_spot(block);
    if (find_live("malloc_usable_size", block, &at, &size)) return size;
    if (!is_foreign("malloc_usable_size", block, &at) || fa_the_options.foreign_usable_size == NULL) return 0;
    return fa_the_options.foreign_usable_size((void *)(uintptr_t)block);
}

bool fa_hardened_owns(const void *block) {
    const spot at = find_spot(block);
    lock();
    bool is_big = big_of(block) != NULL;
    unlock();
    return is_big || (at.state != NULL && at.offset == 0 && LOAD(*at.state) >= LIVE);
}

static bool resize_small(const spot *at, size_t old_size, size_t size) {
    if (size > SMALL_MAX || fa_global_class(size + WORD) != at->form->class) return false;
    const fa_canary canary = canary_of(at->start);
    unsigned char *end = at->start + at->form->size - WORD;
    /* Whoever looks at all blocks leaves it alone meanwhile. */
    (void)atomic_exchange_explicit(at->state, BUSY, memory_order_acquire);
    memset(at->start + fa_min(old_size, size), 0, (size_t)(end - at->start) - fa_min(old_size, size));
    fill_slack(at, size, slack_of(&canary));
    atomic_store_explicit(at->state, (uint16_t)(size + LIVE), memory_order_release);
    return true;
}

void *fa_hardened_realloc(fa_heap *heap, void *block, size_t size) {
    const spot at = find_spot(block);
    size_t old_size;
    fa_fault fault;
    if (!find_live("realloc", block, &at, &old_size)) {
        bool known = is_foreign("realloc", block, &at) && fa_the_options.foreign_realloc != NULL;
        return known ? fa_the_options.foreign_realloc(block, size) : fa_global_no_memory();
    }
    if (size > PTRDIFF_MAX) return fa_global_no_memory();
    if (at.state != NULL) {
        const fa_canary canary = canary_of(at.start);
        if (FA_UNLIKELY(!is_intact(&at, old_size, &canary))) report("realloc", FA_FAULT_OVERFLOW, block);
        if (FA_UNLIKELY(!is_intact_before(&at))) report("realloc", FA_FAULT_UNDERFLOW, block);
        if (resize_small(&at, old_size, size)) return block;
    } else {
        lock();
        big *one = big_of(block);
        one->fate = ON_ITS_WAY;
        unlock();
        if (damage_of(one, &fault)) report("realloc", fault, block);
        /* It stays where it fits, unless it wastes half. */
        bool stays = size > SMALL_MAX && size > old_size / 2 && resize_in_place(one, size);
        void *moved = !stays && size > old_size ? move_pages(one, size) : NULL;
        if (moved != NULL) return moved;
        set_fate(one, IN_USE);
        if (stays) return block;
    }
    bool grows = at.state == NULL && size > old_size; /* and will again */
    void *moved = grows ? alloc_big(size, FA_CANARY, size / 2) : NULL;
    if (moved == NULL) moved = fa_hardened_alloc(heap, size, 1);
    if (moved == NULL) return NULL;
    memcpy(moved, block, fa_min(old_size, size));
    fa_hardened_free(heap, block, old_size);
    return moved;
}

void fa_hardened_purge(uint64_t now, bool all) {
    (void)release_held(now, all ? 0 : HELD, all ? 0 : fa_the_options.cache_limit, fa_the_options.decay);
}

/* ---- looking at everything --------------------------------------------------------------------------------------------------- */

/* A block that others use meanwhile may look wrong; one that is, looks wrong again. */
static bool is_wrong(const spot *at, fa_fault *fault) {
    const fa_canary canary = canary_of(at->start);
    for (int look = 0; look < 3; look++) {
        uint16_t now = atomic_load_explicit(at->state, memory_order_acquire);
        bool wrong = false;
        if (now == FREE) {
            *fault = FA_FAULT_WRITTEN;
            wrong = !is_untouched(at, &canary);
        } else if (now >= LIVE) {
            bool after = !is_intact(at, (size_t)now - LIVE, &canary);
            *fault = after ? FA_FAULT_OVERFLOW : FA_FAULT_UNDERFLOW;
            wrong = after || !is_intact_before(at);
        }
        if (!wrong || LOAD(*at->state) != now) return false;
    }
    return true;
}

/* The first block of a span that is wrong, or null. */
static const unsigned char *first_wrong(uint32_t first, fa_fault *fault) {
    const fa_pages *pages = &fa_the_heap.pages;
    const fa_run *run = &pages->run[first];
    const shape *form = &hard.shapes[run->class];
    state *states = states_of(run);
    for (uint32_t index = 1; index < run->blocks && run->freed_at != 0; index++) {
        if (LOAD(states[index]) == FRESH) continue;
        spot at = {.state = &states[index], .start = (unsigned char *)fa_pages_address(pages, first) + (size_t)index * form->size,
                   .form = form};
        if (is_wrong(&at, fault)) return at.start;
    }
    return NULL;
}

void fa_hardened_drop(uint32_t first) {
    fa_fault fault;
    const fa_run *run = &fa_the_heap.pages.run[first];
    const unsigned char *wrong = first_wrong(first, &fault);
    if (wrong != NULL) report("reuse", fault, wrong);
    give_states(run->freed_at, run->class, run->blocks);
}

static bool is_big_wrong(const big *one, fa_fault *fault) {
    if (one->fate == IN_USE) return damage_of(one, fault);
    *fault = FA_FAULT_WRITTEN;
    return one->fate == WAITING && !is_clean(one);
}

void fa_global_check(const char *call) {
    fa_fault fault = FA_FAULT_NOT_LIVE;
    const void *wrong = NULL;
    const fa_pages *pages = &fa_the_heap.pages;
    if (!fa_has_begun() || !fa_is_hardened()) return;
    /* A signal handler that ends the process may have interrupted malloc: better no look than no end. */
    if (take_soon(&fa_the_heap.pages_lock)) {
        for (uint32_t first = pages->start; first < pages->fresh && wrong == NULL; first += pages->run[first].length)
            if (pages->run[first].kind == FA_RUN_SPAN) wrong = first_wrong(first, &fault);
        fa_lock_give(&fa_the_heap.pages_lock);
    }
    if (wrong == NULL && take_soon(&hard.lock)) {
        for (uint32_t i = 0; i < hard.used && wrong == NULL; i++)
            if (is_big_wrong(&hard.bigs[i], &fault)) wrong = hard.bigs[i].data;
        fa_lock_give(&hard.lock);
    }
    if (wrong != NULL) report(call, fault, wrong);
}

bool fa_hardened_is_valid(void) {
    size_t live = 0, held = 0, bytes = 0, held_bytes = 0, unused = 0;
    for (uint32_t i = 0; i < hard.used; i++) {
        const big *one = &hard.bigs[i];
        size_t room = (size_t)(one->close - one->open);
        unused += one->fate == UNUSED;
        live += one->fate == IN_USE;
        held += one->fate == WAITING;
        if (one->fate == IN_USE) bytes += room;
        if (one->fate == WAITING) held_bytes += room;
        if (one->fate == IN_USE && big_of(one->data) != one) return false;
    }
    for (uint32_t next = hard.unused; next != 0; next = hard.bigs[next - 1].next) unused--;
    return unused == 0 && fa_table_is_valid(&hard.table) && hard.table.count == live && held == hard.held_count &&
           held_bytes == hard.held_bytes && live == FA_COUNTED(large_live) && bytes == FA_COUNTED(large_bytes) &&
           held_bytes == FA_COUNTED(large_cached);
}

void fa_hardened_fork_prepare(void) {
    fa_lock_take(&hard.states_lock, fa_the_heap.os);
    fa_lock_take(&hard.lock, fa_the_heap.os);
}

void fa_hardened_fork_parent(void) {
    fa_lock_give(&hard.lock);
    fa_lock_give(&hard.states_lock);
}
