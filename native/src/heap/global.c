/*
 * heap/global.c - malloc for a whole process
 *
 *     malloc ---> bin of the thread ---- empty: refill ----> central: ready blocks ---- none ----> spans of the class
 *     free  ---->        "         ----- full: flush ----->          "          ---- too many ----> their bitmaps
 *
 * A span is a run of pages (mem/pages.h) whose free blocks are the ones in its bitmap. What is in a magazine, or ready in a
 * central, is not in a bitmap: a span counts it as taken. A span with all its bits set is a free run again.
 *
 * The magazine of an idle thread is emptied from below, while the thread may wake up and use it:
 *
 *     owner, pop                          thief, with the lock of the heap
 *     (1) top = top - 1                   (a) bottom = all that there is
 *         -- compiler barrier --              -- fence in all threads --
 *     (2) top < bottom? slow: lock        (b) mine: what is below both top and the new bottom
 *     (3) block = *top                    (c) bottom = what is mine not, at the latest top
 *
 * The fence falls between two instructions of the owner. If (2) is before it, (1) is visible at (b), and the thief leaves the
 * block alone. If (2) is after it, the owner sees (a), takes the lock, and looks again when the thief is done. A push only
 * writes above top: the thief leaves that alone, too. A pop that has failed leaves top one too low until its slow
 * way puts it right, under the lock; a thief that sees it so takes one block less.
 *
 * fork. Prepare takes every lock, so nothing is on its way between two places; a thread that was in the middle of (1) to (3)
 * may lose the child one block. The heaps of the threads that do not exist in the child wait, filled, for the child's threads.
 *
 * Invariants, thread rule: global.h. Cost: malloc and free some fifteen instructions; every 16th to 128th a lock and a
 * copy of that many pointers.
 */
#include "global_parts.h"

#include "mem/wipe.h"
#include "report.h"

#include <errno.h>
#include <string.h>

/* Spans hold as many blocks as waste an eighth at most, and eight at least. */
#define SPAN_PAGES_MIN 4U
#define SPAN_BLOCKS_MIN 8U
#define SPAN_WASTE 8
#define READY_BYTES ((size_t)256 << 10)
/* Slow ways between two looks at the clock. */
#define TICKS 64U
/* How often, in parts of the decay, old memory is looked for, and what a look may do. */
#define TRIM_PARTS 8
#define TRIM_SCAN 4096U
#define TRIM_BYTES ((size_t)256 << 20)
/* Free pages may make the process this much larger than it has been while large blocks are mapped. */
#define SPARE_PART 16

#define RANGE_BYTES (sizeof(void *) >= 8 ? (size_t)1 << (sizeof(void *) * 5) : (size_t)512 << 20)
#define MAX_BLOCK ((size_t)PTRDIFF_MAX)

fa_global_root fastalloc_malloc_stats = {
    .magic = FA_ROOT_MAGIC,
    .version = FA_ROOT_VERSION,
    .pointer_size = sizeof(void *),
    .classes = FA_GLOBAL_CLASSES,
    .central_stride = sizeof(fa_central),
    .heap_bins = offsetof(fa_heap, bin),
    .bin_stride = sizeof(fa_bin),
    .counts_count = sizeof(fa_global_counts) / sizeof(atomic_size_t),
};

fa_global fa_the_heap;
#define global fa_the_heap

#define DEFAULTS                                                                                                       \
    {                                                                                                                  \
        .struct_size = sizeof(fa_global_options),                                                                      \
        .large_size = (size_t)1 << 20,                                                                                 \
        .cache_limit = sizeof(void *) >= 8 ? (size_t)1 << 32 : (size_t)256 << 20,                                      \
        .decay = 60000,                                                                                                \
    }
fa_global_options fa_the_options = DEFAULTS;

/* What threads have that have no heap: yet, or any more. Every pop and every push there goes the slow way. */
#define ALWAYS_SLOW {.bottom = (void **)UINTPTR_MAX}
#define TEN_SLOW ALWAYS_SLOW, ALWAYS_SLOW, ALWAYS_SLOW, ALWAYS_SLOW, ALWAYS_SLOW, ALWAYS_SLOW, ALWAYS_SLOW, ALWAYS_SLOW, ALWAYS_SLOW, ALWAYS_SLOW
/* As much of a heap as the fast paths touch: so a process that only starts has one page of variables. */
static struct {
    FA_HEAP_FRONT
} nobody = {.bin = {TEN_SLOW, TEN_SLOW, TEN_SLOW, TEN_SLOW, TEN_SLOW, TEN_SLOW, ALWAYS_SLOW, ALWAYS_SLOW, ALWAYS_SLOW, ALWAYS_SLOW, ALWAYS_SLOW}};
#define NO_HEAP ((fa_heap *)(void *)&nobody)

enum { NOT_YET, IN_PROGRESS, DONE };
static atomic_int begun;

static fa_heap *blank_of(fa_heap *heap);
static inline fa_heap *facing(fa_heap *heap) { return fa_is_hardened() ? blank_of(heap) : heap; }

/*
 * The heap of this thread. Where thread-local variables are made by malloc at their first use (macOS), it is the value of the
 * exit key: some nanoseconds more, and no memory.
 */
#if defined(__APPLE__)
#define FA_OWN_BY_KEY 1
#endif
#if !defined(FA_OWN_BY_KEY)
static _Thread_local fa_heap *own FA_TLS = NO_HEAP;
static _Thread_local bool ended FA_TLS; /* this thread has had a heap: it gets no other */

static inline bool has_ended(void) { return ended; }

/* Without a key the heap stays when the thread is gone, and is emptied as idle. Setting may allocate: there is a heap now. */
static bool set_own(fa_heap *heap) {
    own = facing(heap);
    if (global.has_key) (void)global.os->set_exit_value(global.key, heap);
    return true;
}

/* False if it has been told before. */
static bool end_own(const void *value) {
    (void)value;
    own = NO_HEAP;
    ended = true;
    return true;
}
#else
#define own own_by_key()
static unsigned char the_end; /* its address is the value of a thread that has ended */

static void *key_value(void) {
    bool is_known = atomic_load_explicit(&begun, memory_order_acquire) == DONE && global.has_key;
    return is_known ? global.os->exit_value(global.key) : NULL;
}

static fa_heap *own_by_key(void) {
    void *value = key_value();
    return value != NULL && value != &the_end ? facing(value) : NO_HEAP;
}

static bool has_ended(void) { return !global.has_key || key_value() == &the_end; }
static bool set_own(fa_heap *heap) { return global.os->set_exit_value(global.key, heap) == 0; }

/* A value that is set while a thread ends ends once more. */
static bool end_own(const void *value) {
    (void)global.os->set_exit_value(global.key, &the_end);
    return value != &the_end;
}
#endif

/* Waiting blocks, LIFO; a class's own lock. */
static void *ready[FA_GLOBAL_CLASSES][FA_READY_MAX];

#define LINEAR(i)                                                                                                      \
    ((i) <= 1 ? 1 : (i) <= 16 ? (i) : (i) <= 32 ? 16 + ((i)-15) / 2 : 24 + ((i)-29) / 4)
#define LINEAR8(i) LINEAR(i), LINEAR(i + 1), LINEAR(i + 2), LINEAR(i + 3), LINEAR(i + 4), LINEAR(i + 5), LINEAR(i + 6), LINEAR(i + 7)
const uint8_t fa_linear_class[FA_LINEAR_MAX / 16 + 1] = {LINEAR8(0),  LINEAR8(8),  LINEAR8(16), LINEAR8(24), LINEAR8(32),
                                                         LINEAR8(40), LINEAR8(48), LINEAR8(56), LINEAR(64)};

#define LOAD(place) atomic_load_explicit(&(place), memory_order_relaxed)
#define STORE(place, value) atomic_store_explicit(&(place), (value), memory_order_relaxed)
/* Of a counter that only one thread, or the holder of a lock, writes. */
#define ADD(place, amount) STORE(place, LOAD(place) + (size_t)(amount))

/* Of a counter that only this thread writes: in one instruction. What a compiler makes of the other form costs 4 % of a malloc. */
static inline void count_one(atomic_size_t *counter) {
#if defined(__x86_64__) && defined(__LP64__) && !defined(__SANITIZE_THREAD__)
    __asm__("addq $1, %0" : "+m"(*counter));
#else
    ADD(*counter, 1);
#endif
}

static void *out_of_memory(void) {
    FA_COUNT(failures, 1);
    errno = ENOMEM;
    return NULL;
}

void *fa_global_no_memory(void) { return out_of_memory(); }

FA_COLD static void corrupt(const void *block) {
    const fa_reporter reporter = {.os = global.os, .heap = "malloc", .name = ""};
    fa_report(&reporter, "free", FA_ERR_CORRUPT, block);
}

/* ---- the beginning ------------------------------------------------------------------------------------------------ */

static void thread_ends(void *heap);
static void apply_options(void);

void fa_global_options_init(fa_global_options *options) {
    *options = (fa_global_options)DEFAULTS;
}

static void begin(const fa_os *os) {
    if (fa_global_before_first != NULL) fa_global_before_first(&fa_the_options);
    global.os = os;
    STORE(global.hardened, fa_the_options.hardened);
    global.started_at = os->milliseconds();
    (void)fa_pages_init(&global.pages, os, RANGE_BYTES); /* without a range every block is mapped */
    fa_table_init(&global.large.table);
    apply_options();
    uint32_t slots = FA_GLOBAL_CLASSES * (FA_NURSERY + FA_SECOND);
    for (uint32_t class = 1; class < FA_GLOBAL_CLASSES; class++) {
        fa_central *central = &global.central[class];
        uint32_t size = fa_global_class_size(class);
        central->stats.size = size;
        central->reciprocal = (uint32_t)((((uint64_t)1 << 32) + size - 1) / size);
        central->slots = (uint32_t)fa_max(fa_min(FA_MAGAZINE_BYTES / size, FA_MAGAZINE_MAX), FA_MAGAZINE_MIN);
        if (fa_is_hardened()) central->slots = (uint32_t)fa_max(fa_min(FA_VAULT_BYTES / size, FA_MAGAZINE_MAX), FA_VAULT_MIN);
        central->slots_at = slots;
        central->ready_max = (uint32_t)fa_max(fa_min(READY_BYTES / size, FA_READY_MAX), FA_MAGAZINE_MIN);
        if (fa_is_hardened() || central->slots > FA_SECOND) slots += central->slots;
    }
    global.central[0].slots_at = slots; /* all of them */
    if (fa_is_hardened()) fa_hardened_begin();
    STORE(global.fences, os->fence_threads != NULL && os->fence_threads(true) == 0);
    global.has_key = os->make_exit_key != NULL && os->make_exit_key(thread_ends, &global.key) == 0;
    FA_COUNT(reserved, global.pages.bytes);
    STORE(fastalloc_malloc_stats.central, global.central);
    atomic_store_explicit(&fastalloc_malloc_stats.started, 1, memory_order_release);
}

/* No lock, and nothing in `begin` allocates: a second thread only waits until the first is through. */
FA_COLD static void begin_once(const fa_os *os) {
    int seen = NOT_YET;
    if (atomic_compare_exchange_strong(&begun, &seen, IN_PROGRESS)) {
        begin(os);
        atomic_store_explicit(&begun, DONE, memory_order_release);
    }
    while (atomic_load_explicit(&begun, memory_order_acquire) != DONE) os->yield();
}

static inline void ensure_begun(void) {
    if (FA_UNLIKELY(atomic_load_explicit(&begun, memory_order_acquire) != DONE)) begin_once(fa_os_platform());
}

void fa_global_start(const fa_os *os) { begin_once(os); }

uint64_t fa_global_now(void) { return global.os->milliseconds() - global.started_at; }

void fa_global_note_peak(void) {
    size_t held = FA_COUNTED(pages_live) + FA_COUNTED(large_bytes);
    if (held > FA_COUNTED(peak)) STORE(FA_COUNTS->peak, held); /* of two at once one may be missed, by little */
}

/* ---- pages -------------------------------------------------------------------------------------------------------- */

/* With the lock of the pages. */
static void count_pages(void) {
    STORE(FA_COUNTS->pages_live, (size_t)global.pages.live << FA_PAGE_LOG2);
    STORE(FA_COUNTS->pages_cached, (size_t)global.pages.resident.pages << FA_PAGE_LOG2);
    STORE(FA_COUNTS->pages_reused, (size_t)global.pages.reused << FA_PAGE_LOG2);
    fa_global_note_peak();
}

static uint32_t take_pages(uint32_t count, uint32_t alignment, fa_run_kind kind, bool *zero) {
    fa_lock_take(&global.pages_lock, global.os);
    uint64_t reused = global.pages.reused;
    uint32_t first = fa_pages_take(&global.pages, count, alignment, kind, zero);
    bool grown = global.pages.reused == reused;
    if (first != 0 && kind == FA_RUN_LIVE) {
        FA_COUNT(medium_bytes, (size_t)global.pages.run[first].length << FA_PAGE_LOG2);
        FA_COUNT(medium_live, 1);
        FA_COUNT(medium_allocated, 1);
    }
    count_pages();
    fa_lock_give(&global.pages_lock);
    if (grown && !fa_is_hardened() && FA_COUNTED(large_cached) > 0) fa_large_make_way();
    return first;
}

static void give_pages(uint32_t first) {
    fa_lock_take(&global.pages_lock, global.os);
    if (global.pages.run[first].kind == FA_RUN_LIVE) {
        FA_UNCOUNT(medium_bytes, (size_t)global.pages.run[first].length << FA_PAGE_LOG2);
        FA_UNCOUNT(medium_live, 1);
    }
    fa_pages_give(&global.pages, first, (uint32_t)fa_global_now());
    count_pages();
    fa_lock_give(&global.pages_lock);
}

/* ---- spans; with the lock of their central ------------------------------------------------------------------------ */

static inline uint64_t *bitmap_of(uint32_t first) { return global.pages.bitmap + (size_t)first * (FA_PAGE_BITMAP / 8); }

static void append_span(fa_central *central, uint32_t first) {
    fa_run *span = &global.pages.run[first];
    span->next = 0;
    span->prev = central->last;
    if (central->last != 0) global.pages.run[central->last].next = first;
    else central->first = first;
    central->last = first;
}

static void remove_span(fa_central *central, uint32_t first) {
    const fa_run *span = &global.pages.run[first];
    if (span->next != 0) global.pages.run[span->next].prev = span->prev;
    else central->last = span->prev;
    if (span->prev != 0) global.pages.run[span->prev].next = span->next;
    else central->first = span->next;
}

static void size_spans(fa_central *central) {
    uint32_t size = central->stats.size;
    central->fence = fa_is_hardened() ? 1 : 0;
    size_t pages = fa_max((SPAN_BLOCKS_MIN * (1 + central->fence) * size + FA_PAGE - 1) >> FA_PAGE_LOG2, SPAN_PAGES_MIN);
    while ((pages << FA_PAGE_LOG2) % size > (pages << FA_PAGE_LOG2) / SPAN_WASTE) pages++;
    central->pages = fa_pages_round(&global.pages, (uint32_t)pages);
    central->blocks = (uint32_t)(((size_t)central->pages << FA_PAGE_LOG2) / size);
}

FA_COLD static uint32_t make_span(fa_central *central, uint32_t class) {
    bool zero;
    if (central->pages == 0) {
        if (global.pages.bytes == 0) return 0;
        size_spans(central);
    }
    uint32_t first = take_pages(central->pages, 1, FA_RUN_SPAN, &zero);
    if (first == 0) return 0;
    if (fa_is_hardened() && !fa_hardened_span(first, class, central->blocks, zero)) {
        give_pages(first);
        return 0;
    }
    fa_run *span = &global.pages.run[first];
    span->class = (uint8_t)class;
    span->blocks = (uint16_t)central->blocks;
    span->free = (uint16_t)(central->blocks - central->fence);
    span->hint = 0;
    uint64_t *bitmap = bitmap_of(first);
    memset(bitmap, 0xFF, central->blocks / 64 * sizeof *bitmap);
    if (central->blocks % 64 != 0) bitmap[central->blocks / 64] = ((uint64_t)1 << central->blocks % 64) - 1;
    bitmap[0] &= ~(uint64_t)central->fence;
    /* Hardened: no class byte, so that every free is that of no small block, and looked at. */
    if (!fa_is_hardened()) memset(global.pages.base + first, (int)class, span->length);
    append_span(central, first);
    ADD(central->stats.spans, (size_t)span->length << FA_PAGE_LOG2);
    FA_COUNT(span_bytes, (size_t)span->length << FA_PAGE_LOG2);
    return first;
}

/* All its blocks are here. */
static void drop_span(fa_central *central, uint32_t first) {
    const fa_run *span = &global.pages.run[first];
    size_t bytes = (size_t)span->length << FA_PAGE_LOG2;
    remove_span(central, first);
    if (fa_is_hardened()) fa_hardened_drop(first);
    memset(global.pages.base + first, 0, span->length);
    memset(bitmap_of(first), 0, (size_t)(span->blocks + 63U) / 64 * sizeof(uint64_t));
    ADD(central->stats.spans, -bytes);
    FA_UNCOUNT(span_bytes, bytes);
    give_pages(first);
}

/* The lowest `count` bits, of 1 to 64. */
static inline uint64_t ones(uint32_t count) { return UINT64_MAX >> (64 - count); }

static inline uint32_t row_of_ones(uint64_t bits) { return ~bits == 0 ? 64 : (uint32_t)__builtin_ctzll(~bits); }

/* At most `want` blocks of one span, the lowest last: it is the first to be popped. Free ones mostly lie in rows. */
static uint32_t take_from_span(fa_central *central, uint32_t first, void **blocks, uint32_t want) {
    fa_run *span = &global.pages.run[first];
    uint64_t *bitmap = bitmap_of(first);
    const size_t size = central->stats.size;
    unsigned char *start = fa_pages_address(&global.pages, first);
    uint32_t count = want < span->free ? want : span->free, word = span->hint, at = count;
    while (at > 0) {
        uint64_t bits = bitmap[word];
        while (bits != 0 && at > 0) {
            uint32_t bit = (uint32_t)__builtin_ctzll(bits), row = (uint32_t)fa_min(row_of_ones(bits >> bit), at);
            unsigned char *block = start + ((size_t)word * 64 + bit) * size;
            at -= row;
            for (uint32_t i = row; i > 0; i--, block += size) blocks[at + i - 1] = block;
            bits &= ~(ones(row) << bit);
        }
        bitmap[word] = bits;
        if (bits == 0) word++;
    }
    span->hint = (uint16_t)word;
    span->free = (uint16_t)(span->free - count);
    if (span->free == 0) remove_span(central, first);
    return count;
}

/* How many blocks, from the first on, lie side by side and have their bits in one word of the bitmap; `*bit`, that of the first,
 * becomes the lowest. Upwards no more than `above`. */
static inline uint32_t row_of_neighbours(void *const *block, void *const *end, size_t size, uint32_t above, uint32_t *bit) {
    if (end - block == 1) return 1;
    size_t step = (uintptr_t)block[1] - (uintptr_t)block[0];
    if (step != size && step != 0 - size) return 1;
    uint32_t row = 1, most = (uint32_t)fa_min((size_t)(end - block), step == size ? fa_min(64 - *bit, above) : *bit + 1);
    while (row < most && (uintptr_t)block[row] - (uintptr_t)block[row - 1] == step) row++;
    if (step != size) *bit -= row - 1;
    return row;
}

/* Neighbours mostly come together, upwards or downwards: a span is looked up when it changes, and a word of its bitmap, too. */
static void give_to_spans(fa_central *central, void *const *blocks, uint32_t count) {
    const size_t size = central->stats.size;
    const uint32_t reciprocal = central->reciprocal;
    const unsigned char *start = NULL;
    fa_run *span = NULL;
    uint64_t *bitmap = NULL;
    size_t bytes = 0; /* of the span; 0: there is none, or it is gone */
    uint32_t first = 0, row;
    for (void *const *block = blocks, *const *end = blocks + count; block < end; block += row) {
        size_t offset = (uintptr_t)*block - (uintptr_t)start;
        if (offset >= bytes) {
            first = global.pages.run[fa_pages_of(&global.pages, *block)].first;
            span = &global.pages.run[first];
            start = fa_pages_address(&global.pages, first);
            bytes = (size_t)span->length << FA_PAGE_LOG2;
            bitmap = bitmap_of(first);
            offset = (uintptr_t)*block - (uintptr_t)start;
        }
        uint32_t index = (uint32_t)((uint64_t)offset * reciprocal >> 32), word = index / 64, bit = index % 64;
        row = 1;
        if (FA_UNLIKELY(index >= span->blocks || index * size != offset)) {
            corrupt(*block);
            continue;
        }
        row = row_of_neighbours(block, end, size, span->blocks - index, &bit);
        uint64_t bits = ones(row) << bit, twice = bitmap[word] & bits;
        if (FA_UNLIKELY(twice != 0)) {
            corrupt(start + ((size_t)word * 64 + (uint32_t)__builtin_ctzll(twice)) * size);
            continue;
        }
        bitmap[word] |= bits;
        if (word < span->hint) span->hint = (uint16_t)word;
        if (FA_UNLIKELY(span->free == 0)) append_span(central, first);
        span->free = (uint16_t)(span->free + row);
        if (FA_UNLIKELY(span->free == span->blocks - central->fence)) {
            drop_span(central, first);
            bytes = 0;
        }
    }
    ADD(central->stats.taken, -(size_t)count);
}

/* ---- centrals ----------------------------------------------------------------------------------------------------- */

/* At most `want` blocks, at least one unless there is no memory. */
static uint32_t take_blocks(uint32_t class, void **blocks, uint32_t want) {
    fa_central *central = &global.central[class];
    fa_lock_take(&central->lock, global.os);
    size_t waiting = LOAD(central->stats.ready);
    uint32_t count = waiting < want ? (uint32_t)waiting : want;
    if (count > 0) {
        memcpy(blocks, &ready[class][waiting - count], count * sizeof *blocks);
        STORE(central->stats.ready, waiting - count);
    } else {
        while (count < want) {
            uint32_t first = central->first;
            if (first == 0 && count > 0) break;
            if (first == 0) first = make_span(central, class);
            if (first == 0) break;
            count += take_from_span(central, first, blocks + count, want - count);
        }
        ADD(central->stats.taken, count);
    }
    fa_lock_give(&central->lock);
    return count;
}

static void give_blocks(uint32_t class, void *const *blocks, uint32_t count) {
    fa_central *central = &global.central[class];
    fa_lock_take(&central->lock, global.os);
    size_t waiting = LOAD(central->stats.ready);
    uint32_t room = central->ready_max - (uint32_t)waiting, some = count < room ? count : room;
    memcpy(&ready[class][waiting], blocks, some * sizeof *blocks);
    STORE(central->stats.ready, waiting + some);
    if (some < count) give_to_spans(central, blocks + some, count - some);
    fa_lock_give(&central->lock);
}

/* What waits goes to the spans; only if nothing has moved since the last look, unless `all`. */
static void settle_central(uint32_t class, bool all) {
    fa_central *central = &global.central[class];
    fa_lock_take(&central->lock, global.os);
    size_t waiting = LOAD(central->stats.ready), seen = waiting + LOAD(central->stats.taken) * FA_READY_MAX;
    if (waiting > 0 && (all || seen == central->seen)) {
        STORE(central->stats.ready, 0);
        give_to_spans(central, ready[class], (uint32_t)waiting);
    }
    central->seen = seen;
    fa_lock_give(&central->lock);
}

uint32_t fa_global_take_blocks(uint32_t class, void **blocks, uint32_t want) { return take_blocks(class, blocks, want); }
void fa_global_give_blocks(uint32_t class, void *const *blocks, uint32_t count) { give_blocks(class, blocks, count); }

/* ---- thread heaps ------------------------------------------------------------------------------------------------- */

static void reset_bin(fa_heap *heap, uint32_t class, void **start, uint32_t slots) {
    fa_bin *bin = &heap->bin[class];
    heap->start[class] = start;
    heap->full[class] = start + slots;
    STORE(bin->top, start);
    STORE(bin->bottom, start);
    STORE(bin->limit, LOAD(global.zero_on_free) ? NULL : start + slots);
}

/* Hardened: behind a heap stand bins in which every pop and every push goes the slow way. The thread's fast path sees these;
 * `next` is the heap. */
static fa_heap *blank_of(fa_heap *heap) {
    size_t size;
    (void)fa_align_up(sizeof(fa_heap) + global.central[0].slots_at * sizeof(void *), FA_CACHE_LINE, &size);
    return (fa_heap *)(void *)((unsigned char *)heap + size);
}

static void make_blank(fa_heap *heap) {
    fa_heap *blank = blank_of(heap);
    memset(blank, 0, offsetof(fa_heap, magazine));
    blank->next = heap;
    for (uint32_t class = 0; class < FA_GLOBAL_CLASSES; class++) STORE(blank->bin[class].bottom, (void **)UINTPTR_MAX);
    heap->random = (uint64_t)(uintptr_t)heap | 1;
    fa_hardened_resume(heap);
}

/* The heap of this thread, or null. */
static inline fa_heap *mine(void) {
    fa_heap *heap = own;
    return heap == NO_HEAP ? NULL : fa_is_hardened() ? heap->next : heap;
}

static fa_heap *make_heap(void) {
    bool zero;
    size_t size = sizeof(fa_heap) + global.central[0].slots_at * sizeof(void *);
    if (fa_is_hardened()) size += sizeof(fa_heap) + FA_CACHE_LINE;
    uint32_t first = take_pages((uint32_t)((size + FA_PAGE - 1) >> FA_PAGE_LOG2), 1, FA_RUN_OWN, &zero);
    if (first == 0) return NULL;
    fa_heap *heap = fa_pages_address(&global.pages, first);
    if (!zero) memset(heap, 0, sizeof *heap);
    heap->grown_to = FA_GLOBAL_CLASSES * FA_NURSERY;
    /* Class 0 is that of pages without a class: frees there go the slow way, and no allocation asks for it. */
    for (uint32_t class = 1; class < FA_GLOBAL_CLASSES; class++)
        reset_bin(heap, class, heap->magazine + (size_t)class * FA_NURSERY, (uint32_t)fa_min(global.central[class].slots, FA_NURSERY));
    for (uint32_t class = 1; class < FA_GLOBAL_CLASSES && fa_is_hardened(); class++)
        reset_bin(heap, class, heap->magazine + global.central[class].slots_at, global.central[class].slots);
    if (fa_is_hardened()) make_blank(heap);
    heap->next = LOAD(fastalloc_malloc_stats.heaps);
    atomic_store_explicit(&fastalloc_malloc_stats.heaps, heap, memory_order_release);
    FA_COUNT(heaps, 1);
    return heap;
}

/* It waits for a thread. */
static void set_idle(fa_heap *heap) {
    fa_lock_take(&global.heaps_lock, global.os);
    heap->in_use = false;
    heap->next_idle = global.idle;
    global.idle = heap;
    fa_lock_give(&global.heaps_lock);
}

/* A heap for this thread, a waiting one or a new one, or null: it has ended, or there is no memory. */
FA_COLD static fa_heap *find_heap(void) {
    ensure_begun();
    if (has_ended()) return NULL;
    fa_lock_take(&global.heaps_lock, global.os);
    fa_heap *heap = global.idle;
    if (heap != NULL) global.idle = heap->next_idle;
    else heap = make_heap();
    if (heap != NULL) heap->in_use = true;
    fa_lock_give(&global.heaps_lock);
    if (heap == NULL) return NULL;
    if (!set_own(heap)) {
        set_idle(heap);
        return NULL;
    }
    FA_COUNT(threads, 1);
    return heap;
}

static inline fa_heap *own_heap(void) { return FA_LIKELY(own != NO_HEAP) ? own : find_heap(); }

/* The blocks of a bin in the order of freeing, from `start` on; with the lock of the heap, and by the owner, or when there is none. */
static uint32_t gather(fa_heap *heap, uint32_t class, uint32_t pending) {
    fa_bin *bin = &heap->bin[class];
    void **start = heap->start[class], **bottom = LOAD(bin->bottom), **top = LOAD(bin->top) + pending;
    uint32_t count = top > bottom ? (uint32_t)(top - bottom) : 0;
    if (bottom != start) memmove(start, bottom, count * sizeof *start);
    STORE(bin->bottom, start);
    STORE(bin->top, start + count);
    return count;
}

uint32_t fa_global_gather(fa_heap *heap, uint32_t class, uint32_t pending) { return gather(heap, class, pending); }

/* A magazine that is used a lot becomes larger. */
static void grow_magazine(fa_heap *heap, uint32_t class) {
    const fa_central *central = &global.central[class];
    void **start = heap->start[class], **to = start;
    uint32_t slots = (uint32_t)(heap->full[class] - start), more = (uint32_t)fa_min(slots * 2, central->slots);
    if (slots == central->slots) return;
    if (slots <= FA_NURSERY) {
        to = heap->magazine + heap->grown_to;
        heap->grown_to += (uint32_t)fa_min(central->slots, FA_SECOND);
    } else if (more > FA_SECOND) {
        to = heap->magazine + central->slots_at;
    }
    uint32_t count = (uint32_t)(LOAD(heap->bin[class].top) - start);
    if (start != to) memcpy(to, start, count * sizeof *start);
    reset_bin(heap, class, to, more);
    STORE(heap->bin[class].top, to + count);
}

/* Its oldest half, or all, goes to the central. */
static void flush(fa_heap *heap, uint32_t class, bool all) {
    uint32_t count = gather(heap, class, 0), gone = all ? count : (count + 1) / 2;
    void **start = heap->start[class];
    if (gone > 0) give_blocks(class, start, gone);
    memmove(start, start + gone, (count - gone) * sizeof *start);
    STORE(heap->bin[class].top, start + (count - gone));
}

static void thread_ends(void *memory) {
    if (!end_own(memory)) return;
    fa_heap *heap = memory;
    fa_lock_take(&heap->lock, global.os);
    for (uint32_t class = 1; class < FA_GLOBAL_CLASSES; class++) flush(heap, class, true);
    fa_lock_give(&heap->lock);
    set_idle(heap);
    FA_UNCOUNT(threads, 1);
}

static void now_and_then(void) {
    uint32_t decay = fa_the_options.decay;
    if (decay != 0 && (size_t)fa_global_now() - LOAD(global.trimmed_at) >= decay / TRIM_PARTS + 1) (void)fa_global_trim(false);
}

void fa_global_now_and_then(void) { now_and_then(); }

/* ---- small blocks, the slow way ----------------------------------------------------------------------------------- */

/* A small block without a magazine, for threads that have none: at worst, mapped. */
FA_COLD static void *alloc_direct(uint32_t class) {
    void *block;
    if (take_blocks(class, &block, 1) == 1) {
        atomic_fetch_add_explicit(&global.central[class].stats.allocated, 1, memory_order_relaxed);
        return block;
    }
    FA_COUNT(fallbacks, 1);
    block = fa_large_alloc(fa_global_class_size(class), FA_PAGE, false);
    return block != NULL ? block : out_of_memory();
}

FA_COLD static void *refill(fa_heap *heap, uint32_t class) {
    fa_bin *bin = &heap->bin[class];
    void *block = NULL;
    bool tick;
    fa_lock_take(&heap->lock, global.os);
    uint32_t count = gather(heap, class, 1); /* the pop has failed: one back. More, if a thief was here. */
    void **start = heap->start[class];
    if (count == 0) {
        uint32_t slots = (uint32_t)(heap->full[class] - start);
        count = take_blocks(class, start, (slots + 1) / 2);
        STORE(bin->top, start + count);
        grow_magazine(heap, class);
        start = heap->start[class];
    }
    if (count > 0) {
        block = start[count - 1];
        STORE(bin->top, start + (count - 1));
        ADD(bin->allocated, 1);
    }
    tick = heap->ticks++ % TICKS == 0;
    fa_lock_give(&heap->lock);
    if (tick) now_and_then();
    return block != NULL ? block : alloc_direct(class);
}

static inline void *pop(fa_heap *heap, uint32_t class) {
    fa_bin *bin = &heap->bin[class];
    void **top = (void **)((uintptr_t)LOAD(bin->top) - sizeof *top); /* as a number: of nobody it is null */
    STORE(bin->top, top);
    atomic_signal_fence(memory_order_seq_cst); /* see the essay: (1) before (2) */
    if (FA_UNLIKELY(top < LOAD(bin->bottom))) return NULL;
    count_one(&bin->allocated);
    return *top;
}

/* The class is the size's, or a higher one that the alignment asks for. */
FA_APART static void *alloc_slow(size_t size, uint32_t class, size_t alignment) {
    fa_heap *heap = own;
    if (FA_UNLIKELY(fa_is_hardened())) return fa_hardened_alloc(heap != NO_HEAP ? heap->next : find_heap(), size, alignment);
    if (FA_UNLIKELY(heap == NO_HEAP)) {
        heap = find_heap();
        if (FA_UNLIKELY(fa_is_hardened())) return fa_hardened_alloc(heap, size, alignment); /* that was the first block */
        if (heap == NULL) return alloc_direct(class);
        void *block = pop(heap, class);
        if (block != NULL) return block;
    }
    return refill(heap, class);
}

/* True if the block is in the bin now. */
static inline bool push(fa_bin *bin, void *block) {
    void **top = LOAD(bin->top);
    if (FA_UNLIKELY(top >= LOAD(bin->limit))) return false;
    *top = block;
    atomic_store_explicit(&bin->top, top + 1, memory_order_release); /* a thief that sees it sees the block */
    return true;
}

FA_APART static void free_slow(void *block, uint32_t class) {
    fa_heap *heap = own_heap();
    if (LOAD(global.zero_on_free)) fa_secure_zero(block, global.central[class].stats.size);
    if (heap == NULL) {
        give_blocks(class, &block, 1);
        return;
    }
    fa_lock_take(&heap->lock, global.os);
    if (LOAD(heap->bin[class].top) >= heap->full[class]) {
        uint32_t count = gather(heap, class, 0);
        if (heap->start[class] + count >= heap->full[class]) grow_magazine(heap, class);
        if (heap->start[class] + count >= heap->full[class]) flush(heap, class, false);
    }
    fa_bin *bin = &heap->bin[class];
    void **top = LOAD(bin->top);
    *top = block;
    STORE(bin->limit, LOAD(global.zero_on_free) ? NULL : heap->full[class]);
    atomic_store_explicit(&bin->top, top + 1, memory_order_release);
    bool tick = heap->ticks++ % TICKS == 0;
    fa_lock_give(&heap->lock);
    if (tick) now_and_then();
}

/* ---- medium blocks ------------------------------------------------------------------------------------------------ */

static uint32_t pages_for(size_t size) { return (uint32_t)((size + FA_PAGE - 1) >> FA_PAGE_LOG2); }

/* The rare sizes between a thread's magazines and the mapped ones, or what has a large alignment. */
static void *alloc_medium(size_t size, size_t alignment, bool zeroed) {
    bool zero;
    now_and_then();
    uint32_t first = take_pages(pages_for(size), (uint32_t)fa_max(alignment >> FA_PAGE_LOG2, 1), FA_RUN_LIVE, &zero);
    if (first == 0) return NULL;
    void *block = fa_pages_address(&global.pages, first);
    if (zeroed && !zero) memset(block, 0, size);
    return block;
}

FA_APART static void free_medium(void *block) {
    uint32_t first = fa_pages_of(&global.pages, block);
    const fa_run *run = &global.pages.run[first];
    if (run->kind != FA_RUN_LIVE || block != fa_pages_address(&global.pages, first)) {
        corrupt(block);
        return;
    }
    if (LOAD(global.zero_on_free)) fa_secure_zero(block, (size_t)run->length << FA_PAGE_LOG2);
    give_pages(first);
    now_and_then();
}

/* Where it stands, or not at all. */
static bool resize_medium(void *block, size_t size) {
    uint32_t first = fa_pages_of(&global.pages, block), count = pages_for(size);
    size_t before = (size_t)global.pages.run[first].length << FA_PAGE_LOG2;
    if (size < before && LOAD(global.zero_on_free)) fa_secure_zero((unsigned char *)block + size, before - size);
    bool done = true;
    fa_lock_take(&global.pages_lock, global.os);
    if (count <= global.pages.run[first].length) fa_pages_shrink(&global.pages, first, count, (uint32_t)fa_global_now());
    else done = fa_pages_extend(&global.pages, first, count);
    size_t after = (size_t)global.pages.run[first].length << FA_PAGE_LOG2;
    FA_COUNT(medium_bytes, after - before);
    count_pages();
    fa_lock_give(&global.pages_lock);
    return done;
}

/* ---- the ways in -------------------------------------------------------------------------------------------------- */

/* Any size and alignment that a class does not serve. */
FA_COLD static void *alloc_big(size_t size, size_t alignment, bool zeroed) {
    ensure_begun();
    if (size > MAX_BLOCK || alignment > MAX_BLOCK / 2) return out_of_memory();
    if (FA_UNLIKELY(fa_is_hardened())) return fa_hardened_alloc(mine(), size, alignment);
    size = fa_max(size, 1);
    void *block = NULL;
    if (size < LOAD(global.large_size) && alignment <= FA_MAX_ALIGNMENT) {
        block = alloc_medium(size, alignment, zeroed);
        if (block == NULL) FA_COUNT(fallbacks, 1);
    }
    if (block == NULL) {
        block = fa_large_alloc(size, alignment, zeroed);
        now_and_then();
    }
    return block != NULL ? block : out_of_memory();
}

static inline void *alloc_class(size_t size, uint32_t class, size_t alignment) {
    void *block = pop(own, class);
    return FA_LIKELY(block != NULL) ? block : alloc_slow(size, class, alignment);
}

FA_APART static void *alloc_beyond(size_t size) {
    return size > FA_GLOBAL_SMALL ? alloc_big(size, 1, false) : alloc_class(size, fa_global_class(size), 1);
}

FA_HOT void *fa_global_alloc(size_t size) {
    if (FA_UNLIKELY(size > FA_LINEAR_MAX)) return alloc_beyond(size);
    return alloc_class(size, fa_linear_class[(size + 15) / 16], 1);
}

void *fa_global_alloc_zeroed(size_t count, size_t size) {
    size_t bytes;
    if (FA_UNLIKELY(__builtin_mul_overflow(count, size, &bytes))) return out_of_memory();
    if (bytes > FA_GLOBAL_SMALL) return alloc_big(bytes, 1, true);
    void *block = fa_global_alloc(bytes);
    if (FA_LIKELY(block != NULL)) memset(block, 0, bytes);
    return block;
}

void *fa_global_alloc_aligned(size_t alignment, size_t size) {
    if (alignment <= 16) return fa_global_alloc(size);
    size_t bytes;
    if (!fa_align_up(size + (size == 0), alignment, &bytes)) return out_of_memory();
    if (bytes <= FA_GLOBAL_SMALL && alignment <= FA_PAGE) {
        /* Spans begin at a page: a class of multiples of the alignment has only aligned blocks. A power of two is one. */
        uint32_t class = fa_global_class(bytes);
        while (fa_global_class_size(class) % alignment != 0) class++;
        return alloc_class(size, class, alignment);
    }
    return alloc_big(size, alignment, false);
}

FA_COLD static void free_medium_or_large(void *block) {
    if (fa_is_in_range(block)) {
        free_medium(block);
    } else if (fa_large_free(block)) {
        now_and_then();
    } else {
        FA_COUNT(foreign, 1);
        if (fa_the_options.foreign_free != NULL) fa_the_options.foreign_free(block);
    }
}

FA_APART static void free_beyond(void *block, size_t size) {
    if (block == NULL) return;
    ensure_begun();
    if (!fa_is_hardened()) free_medium_or_large(block);
    else fa_hardened_free(FA_LIKELY(own != NO_HEAP) ? own->next : find_heap(), block, size);
}

/* `size` is for those who are beyond. */
static inline void free_any(void *block, size_t size) {
    size_t offset = (uintptr_t)block - (uintptr_t)global.pages.base;
    if (FA_UNLIKELY(offset >= LOAD(global.pages.reach))) {
        free_beyond(block, size);
        return;
    }
    uint32_t class = global.pages.base[offset >> FA_PAGE_LOG2];
    /* Bin 0 takes nothing: what is no small block goes the slow way by the same test as what finds no room. */
    if (FA_LIKELY(push(&own->bin[class], block))) return;
    if (class == 0) free_beyond(block, size);
    else free_slow(block, class);
}

FA_HOT void fa_global_free(void *block) { free_any(block, FA_ANY_SIZE); }
FA_HOT void fa_global_free_sized(void *block, size_t size) { free_any(block, size); }

bool fa_global_owns(const void *block) {
    if (!fa_has_begun()) return false;
    return fa_is_hardened() ? fa_hardened_owns(block) : fa_is_in_range(block) || fa_large_usable_size(block) != 0;
}

/* Of a block that is not small, or hardened. */
FA_COLD static size_t usable_size_beyond(const void *block) {
    ensure_begun();
    if (fa_is_hardened()) return fa_hardened_usable_size(block);
    if (fa_is_in_range(block)) {
        const fa_run *run = &global.pages.run[fa_pages_of(&global.pages, block)];
        return run->kind == FA_RUN_LIVE ? (size_t)run->length << FA_PAGE_LOG2 : 0;
    }
    size_t room = fa_large_usable_size(block);
    if (room != 0 || fa_the_options.foreign_usable_size == NULL) return room;
    return fa_the_options.foreign_usable_size((void *)(uintptr_t)block);
}

size_t fa_global_usable_size(const void *block) {
    if (block == NULL) return 0;
    uint32_t class = fa_is_in_range(block) ? global.pages.base[fa_pages_of(&global.pages, block)] : 0;
    return class != 0 ? fa_global_class_size(class) : usable_size_beyond(block);
}

/* Moves to another block by copying. */
static void *copy_to_new(void *block, size_t old_size, size_t size) {
    void *moved = fa_global_alloc(size);
    if (moved == NULL) return NULL;
    memcpy(moved, block, fa_min(old_size, size));
    fa_global_free(block);
    return moved;
}

FA_COLD static void *realloc_large(void *block, size_t size) {
    ensure_begun();
    if (fa_is_hardened()) return fa_hardened_realloc(mine(), block, size);
    size_t room = fa_large_usable_size(block);
    if (room == 0) {
        FA_COUNT(foreign, 1);
        return fa_the_options.foreign_realloc != NULL ? fa_the_options.foreign_realloc(block, size) : out_of_memory();
    }
    if (size > MAX_BLOCK) return out_of_memory();
    void *moved = size >= LOAD(global.large_size) ? fa_large_realloc(block, room, size) : NULL;
    return moved != NULL ? moved : copy_to_new(block, room, size);
}

void *fa_global_realloc(void *block, size_t size) {
    if (block == NULL) return fa_global_alloc(size);
    if (size == 0) {
        fa_global_free(block);
        return NULL;
    }
    if (!fa_is_in_range(block)) return realloc_large(block, size);
    uint32_t class = global.pages.base[fa_pages_of(&global.pages, block)];
    if (class == 0 && fa_is_hardened()) return fa_hardened_realloc(mine(), block, size);
    size_t room = fa_global_usable_size(block);
    if (room == 0) {
        corrupt(block);
        return out_of_memory();
    }
    if (class != 0) {
        /* It stays where it fits, unless it wastes half. */
        if (size <= room && (size > room / 2 || fa_global_class(size) == class)) return block;
    } else if (size > FA_GLOBAL_SMALL && size < LOAD(global.large_size) && resize_medium(block, size)) {
        return block;
    }
    return copy_to_new(block, room, size);
}

/* ---- giving back -------------------------------------------------------------------------------------------------- */

static fa_heap *all_heaps(void) { return atomic_load_explicit(&fastalloc_malloc_stats.heaps, memory_order_acquire); }

/* True if the bin has not changed since the last look. */
static bool is_idle(fa_heap *heap, uint32_t class) {
    fa_seen now = {LOAD(heap->bin[class].top), LOAD(heap->bin[class].allocated)}, before = heap->seen[class];
    heap->seen[class] = now;
    return now.top == before.top && now.allocated == before.allocated;
}

/* What idle bins of a heap hold goes to the centrals: the thief of the essay. */
static void steal(fa_heap *heap, bool all) {
    void **from[FA_GLOBAL_CLASSES], **to[FA_GLOBAL_CLASSES];
    bool any = false;
    fa_lock_take(&heap->lock, global.os);
    if (fa_is_hardened() && !fa_hardened_halt(heap)) {
        fa_lock_give(&heap->lock);
        return;
    }
    for (uint32_t class = 1; class < FA_GLOBAL_CLASSES; class++) {
        fa_bin *bin = &heap->bin[class];
        bool idle = is_idle(heap, class);
        from[class] = LOAD(bin->bottom);
        to[class] = atomic_load_explicit(&bin->top, memory_order_acquire);
        if ((!idle && !all) || to[class] <= from[class]) to[class] = NULL;
        else any = true;
        if (to[class] != NULL) STORE(bin->bottom, to[class]);
    }
    bool fenced = any && global.os->fence_threads(false) == 0;
    for (uint32_t class = 1; class < FA_GLOBAL_CLASSES && any; class++) {
        fa_bin *bin = &heap->bin[class];
        if (to[class] == NULL) continue;
        void **top = atomic_load_explicit(&bin->top, memory_order_acquire);
        if (top > to[class]) top = to[class];
        /* Without the fence nothing can be taken; a bottom that was too high for a moment does no harm. */
        if (!fenced || top < from[class]) top = from[class];
        if (top > from[class]) {
            give_blocks(class, from[class], (uint32_t)(top - from[class]));
            FA_COUNT(stolen, top - from[class]);
        }
        STORE(bin->bottom, top);
    }
    if (fa_is_hardened()) fa_hardened_resume(heap);
    fa_lock_give(&heap->lock);
}

static void steal_from_idle(bool all) {
    if (!LOAD(global.fences)) return;
    for (fa_heap *heap = all_heaps(); heap != NULL; heap = heap->next) steal(heap, all);
}

/* Free runs that are older than `age`, until `bytes` are given back or `scan` runs were looked at. */
static size_t return_pages(uint32_t age, size_t bytes, uint32_t scan) {
    size_t returned = 0;
    while (returned < bytes) {
        fa_lock_take(&global.pages_lock, global.os);
        uint32_t first = fa_pages_oldest(&global.pages, (uint32_t)fa_global_now(), age, &scan);
        fa_lock_give(&global.pages_lock);
        if (first == 0) break;
        bool done = fa_pages_decommit(&global.pages, first) == 0; /* without the lock: it takes milliseconds */
        size_t length = (size_t)global.pages.run[first].length << FA_PAGE_LOG2;
        fa_lock_take(&global.pages_lock, global.os);
        fa_pages_settle(&global.pages, first, done);
        count_pages();
        fa_lock_give(&global.pages_lock);
        if (!done) break;
        returned += length;
    }
    FA_COUNT(returned, returned);
    return returned;
}

/* As many bytes in all as the process ever held at once: if small and large blocks take turns, both caches stay in the end. */
void fa_global_make_way(size_t room) {
    size_t held = FA_COUNTED(pages_live) + FA_COUNTED(large_bytes) + room, peak = fa_max(FA_COUNTED(peak), held);
    size_t bound = peak + peak / SPARE_PART, need = held + FA_COUNTED(pages_cached), gone = LOAD(global.made_way);
    if (need <= bound || gone >= peak) return;
    gone = return_pages(0, fa_min(need - bound, peak - gone), TRIM_SCAN);
    atomic_fetch_add_explicit(&global.made_way, gone, memory_order_relaxed);
}

bool fa_global_trim(bool all) {
    ensure_begun();
    const uint64_t now = fa_global_now();
    STORE(global.trimmed_at, (size_t)now);
    if (atomic_exchange_explicit(&global.trim_lock.held, 1, memory_order_acquire) != 0) {
        if (!all) return false; /* somebody is at it */
        fa_lock_wait(&global.trim_lock, global.os);
    }
    if (all || (size_t)now - LOAD(global.scavenged_at) >= fa_the_options.decay) {
        STORE(global.scavenged_at, (size_t)now);
        fa_heap *heap = mine();
        if (heap != NULL && all) {
            fa_lock_take(&heap->lock, global.os);
            for (uint32_t class = 1; class < FA_GLOBAL_CLASSES; class++) flush(heap, class, true);
            fa_lock_give(&heap->lock);
        }
        steal_from_idle(all);
        for (uint32_t class = 1; class < FA_GLOBAL_CLASSES; class++) settle_central(class, all);
    }
    size_t cached = FA_COUNTED(large_cached);
    if (fa_is_hardened()) fa_hardened_purge(now, all);
    else fa_large_purge(now, all ? 0 : SIZE_MAX);
    size_t pages = all ? return_pages(0, SIZE_MAX, UINT32_MAX) : return_pages(fa_the_options.decay, TRIM_BYTES, TRIM_SCAN);
    bool went = pages > 0 || FA_COUNTED(large_cached) < cached;
    fa_lock_give(&global.trim_lock);
    return went;
}

/* ---- settings and fork -------------------------------------------------------------------------------------------- */

static void apply_options(void) {
    const fa_global_options *options = &fa_the_options;
    STORE(global.large_size, options->large_size);
    STORE(global.zero_on_free, options->zero_on_free);
    global.pages.huge_pages = options->huge_pages;
    if (!fa_is_hardened()) fa_large_configure(options->cache_limit, options->decay, options->huge_pages);
    /* Every free is looked at from here on: in heaps that are still to come as well. */
    fa_lock_take(&global.heaps_lock, global.os);
    for (fa_heap *heap = all_heaps(); options->zero_on_free && heap != NULL; heap = heap->next) {
        fa_lock_take(&heap->lock, global.os);
        for (uint32_t class = 1; class < FA_GLOBAL_CLASSES; class++) STORE(heap->bin[class].limit, NULL);
        fa_lock_give(&heap->lock);
    }
    fa_lock_give(&global.heaps_lock);
}

void fa_global_configure(const fa_global_options *options) {
    fa_the_options = *options;
    if (atomic_load_explicit(&begun, memory_order_acquire) == NOT_YET) return; /* the beginning applies them */
    ensure_begun();
    apply_options();
}

void fa_global_fork_prepare(void) {
    ensure_begun();
    fa_lock_take(&global.trim_lock, global.os);
    fa_lock_take(&global.heaps_lock, global.os);
    for (fa_heap *heap = all_heaps(); heap != NULL; heap = heap->next) {
        fa_lock_take(&heap->lock, global.os);
        if (fa_is_hardened()) (void)fa_hardened_halt(heap);
    }
    for (uint32_t class = 1; class < FA_GLOBAL_CLASSES; class++) fa_lock_take(&global.central[class].lock, global.os);
    fa_lock_take(&global.pages_lock, global.os);
    fa_lock_take(&global.large.lock, global.os);
    if (fa_is_hardened()) fa_hardened_fork_prepare();
}

void fa_global_fork_parent(void) {
    if (fa_is_hardened()) fa_hardened_fork_parent();
    fa_lock_give(&global.large.lock);
    fa_lock_give(&global.pages_lock);
    for (uint32_t class = 1; class < FA_GLOBAL_CLASSES; class++) fa_lock_give(&global.central[class].lock);
    for (fa_heap *heap = all_heaps(); heap != NULL; heap = heap->next) {
        if (fa_is_hardened()) fa_hardened_resume(heap);
        fa_lock_give(&heap->lock);
    }
    fa_lock_give(&global.heaps_lock);
    fa_lock_give(&global.trim_lock);
}

void fa_global_fork_child(void) {
    /* The threads of these heaps do not exist here. What they hold serves the threads that the child makes. */
    for (fa_heap *heap = all_heaps(); heap != NULL; heap = heap->next) {
        if (heap == mine() || !heap->in_use) continue;
        for (uint32_t class = 1; class < FA_GLOBAL_CLASSES; class++) (void)gather(heap, class, 0);
        heap->in_use = false;
        heap->next_idle = global.idle;
        global.idle = heap;
        FA_UNCOUNT(threads, 1);
    }
    /* Runs that one of them was giving back, without the lock. A run that merges leaves its length where it began. */
    for (uint32_t first = global.pages.start; first < global.pages.fresh; first += global.pages.run[first].length)
        if (global.pages.run[first].kind == FA_RUN_BUSY) fa_pages_settle(&global.pages, first, false);
    count_pages();
    if (LOAD(global.fences)) STORE(global.fences, global.os->fence_threads(true) == 0);
    fa_global_fork_parent();
}
