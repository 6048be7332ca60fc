/*
 * heap/global.h - malloc for a whole process: the heap behind libfastalloc-malloc.so
 *
 *     size <= 32 KiB           magazine of the thread --- empty or full --> central --> spans of one class, in the range
 *     up to large_size         a run of pages of the range (mem/pages.h), resident until the decay
 *     above                    cache (mem/cache.h), shared by all threads --> the system's pages, known to a table
 *
 *     thread   bin[class]    | p p p p p . . . |      pointers, out of line: nothing is ever written into a block
 *                              ^bottom   ^top  ^limit
 *
 * malloc takes a pointer off the stack of its class, free puts one on: a dozen instructions, no lock, no atomic operation. The
 * class of a block is the class byte of its page, so a block may be freed on any thread: it is that thread's from then on.
 * Magazines are refilled from, and flushed to, the class's central in batches; a span whose blocks are all there is a run of
 * free pages again.
 *
 * Idle threads. Nobody but its thread moves `top`, yet others may raise `bottom`: the owner lowers top before it reads
 * bottom, a thief raises bottom, has a fence executed in every running thread (membarrier), and then reads top. Whoever is
 * second sees the other (heap/global.c has the proof). So what a magazine holds comes back once its bin has not changed for
 * the decay, however long its thread sleeps, and the fast path pays nothing. Where the system has no such fence, a
 * magazine is bounded, and comes back when its thread ends.
 *
 * Hardened, if the first allocation finds it asked for: every malloc and every free goes the slow way, to
 * heap/global_hardened.c, which checks what can be checked. Nothing of it is on the way of a heap that is not.
 *
 * Thread rule: everything may be called by any thread at any time, from the first instruction of the process to the last.
 * Nothing has to be initialised; nothing but memory from the operating system is used, and no lock of anybody else.
 *
 * ---- statistics from outside ----------------------------------------------------------------------------------------
 *
 * `fastalloc_malloc_stats` is exported. It, and all that it points to, has the layout below, so that another process can
 * read it through /proc/PID/mem: counters are summed by the reader, and cost their threads one addition in their own cache
 * line. Natural alignment, the byte order of the machine, pointers and counters of `pointer_size` bytes; nothing moves or is
 * unmapped.
 *
 *   1. magic and version as below; started == 0: no block was allocated yet, and the pointers are null.
 *   2. central: an array of `classes` structs, `central_stride` bytes each (fa_central_stats is what they begin with). Entry 0
 *      is no class.
 *   3. heaps: a list of thread heaps, newest first. Each begins with a pointer to the next; at `heap_bins` bytes from its
 *      start there are `classes` bins, `bin_stride` bytes each (fa_bin is the layout).
 *   4. of a class: blocks in magazines = sum over the heaps of (top - bottom) / pointer_size, 0 where top < bottom;
 *      live blocks = taken - ready - blocks in magazines; allocated so far = central.allocated + sum of bin.allocated.
 *   5. of all: live small blocks and bytes are the sums over the classes; medium and large ones are in `counts`.
 *
 * Read while the process runs, the figures are of slightly different moments: a difference may be off by a few blocks.
 */
#ifndef FA_HEAP_GLOBAL_H
#define FA_HEAP_GLOBAL_H

#include "fastalloc.h"

#include <stdatomic.h>

#define FA_GLOBAL_CLASSES 65U /* class 0 is none */
#define FA_GLOBAL_SMALL ((size_t)32 << 10)

/* Counted where a lock is held anyway. */
#define FA_GLOBAL_COUNTS(X)                                                                                            \
    X(peak, "bytes", "largest value of held so far")                                                                   \
    X(pages_live, "bytes", "of runs in use: spans, medium blocks and thread heaps")                                    \
    X(span_bytes, "bytes", "of spans, which hold the small blocks")                                                    \
    X(medium_live, "count", "live blocks that are runs of pages")                                                      \
    X(medium_bytes, "bytes", "of them")                                                                                \
    X(medium_allocated, "count", "of them since the start")                                                            \
    X(large_live, "count", "live blocks above large_size, or that did not fit in the range")                           \
    X(large_bytes, "bytes", "of them")                                                                                 \
    X(large_allocated, "count", "of them since the start")                                                             \
    X(large_cached, "bytes", "freed large blocks kept resident for reuse")                                             \
    X(cache_hits, "count", "large blocks served from the cache")                                                       \
    X(pages_cached, "bytes", "free runs kept resident for reuse")                                                      \
    X(pages_reused, "bytes", "of resident free runs handed out again: a page fault avoided for each page")             \
    X(large_reused, "bytes", "of cached large blocks handed out again: likewise")                                      \
    X(returned, "bytes", "given back to the system so far")                                                            \
    X(assembled, "count", "of them, put together from several cached ones by moving pages")                            \
    X(moved, "count", "reallocations that moved pages instead of copying bytes")                                       \
    X(stolen, "count", "blocks that were taken back from idle threads")                                                \
    X(fallbacks, "count", "blocks that were mapped one by one because the range was full")                             \
    X(foreign, "count", "pointers of other allocators that were passed on")                                            \
    X(failures, "count", "allocations refused")                                                                        \
    X(reserved, "bytes", "address space of the range, of live large blocks and of the cache")                          \
    X(heaps, "count", "thread heaps ever made, those that wait for a thread included")                                 \
    X(threads, "count", "threads that have a heap now")

/* What is summed when somebody asks. */
#define FA_GLOBAL_STATS(X)                                                                                             \
    X(used, "bytes", "held by live blocks, rounding included")                                                         \
    X(held, "bytes", "of spans, medium and large blocks and thread heaps: used, and what is free among it")            \
    X(cached, "bytes", "free and resident: runs of pages and large blocks")                                            \
    X(resident, "bytes", "estimate: held and cached")                                                                  \
    X(live, "count", "blocks allocated and not yet freed")                                                             \
    X(allocated, "count", "blocks allocated since the start")                                                          \
    X(freed, "count", "blocks freed since the start")                                                                  \
    FA_GLOBAL_COUNTS(X)

#define FA_STATS_FIELD(name, unit, doc) uint64_t name;
typedef struct fa_global_stats {
    FA_GLOBAL_STATS(FA_STATS_FIELD)
} fa_global_stats;
#undef FA_STATS_FIELD

typedef struct fa_class_stats {
    uint32_t size;      /* bytes of a block */
    uint64_t live;      /* blocks */
    uint64_t allocated; /* blocks since the start */
    uint64_t cached;    /* blocks in magazines and in the central: free, but not yet in a span */
    uint64_t spans;     /* bytes */
} fa_class_stats;

/* ---- what a reader from outside sees ------------------------------------------------------------------------------ */

#define FA_ROOT_MAGIC "fastalloc-stats"
#define FA_ROOT_VERSION 1U

typedef struct fa_bin {
    _Atomic(void **) top;    /* one past the newest free block; only its thread writes it */
    _Atomic(void **) bottom; /* the oldest free block; others may raise it */
    _Atomic(void **) limit;  /* from here on a free goes the slow way */
    atomic_size_t allocated;
} fa_bin;

typedef struct fa_central_stats {
    atomic_size_t taken;     /* blocks that are not in spans */
    atomic_size_t allocated; /* by threads that had no heap (any more) */
    atomic_size_t spans;     /* bytes */
    atomic_size_t ready;     /* blocks that wait here for a magazine */
    uint32_t size;                   /* bytes of a block */
} fa_central_stats;

#define FA_STATS_FIELD(name, unit, doc) atomic_size_t name;
typedef struct fa_global_counts {
    FA_GLOBAL_COUNTS(FA_STATS_FIELD)
} fa_global_counts;
#undef FA_STATS_FIELD

typedef struct fa_global_root {
    char magic[16];
    uint32_t version;
    uint32_t pointer_size;
    uint32_t classes, central_stride, heap_bins, bin_stride;
    atomic_uint_least32_t started;
    uint32_t counts_count; /* fields in `counts`, in the order of FA_GLOBAL_COUNTS */
    fa_global_counts counts;
    _Atomic(void *) central;
    _Atomic(void *) heaps;
} fa_global_root;

#if defined(__GNUC__) && !defined(_WIN32)
__attribute__((visibility("default")))
#endif
extern fa_global_root fastalloc_malloc_stats;

/* ---- settings ----------------------------------------------------------------------------------------------------- */

typedef struct fa_global_options {
    size_t struct_size;
    size_t large_size;  /* from here on blocks are mapped one by one: above 32 KiB, up to 1 GiB */
    size_t cache_limit; /* bytes of freed large blocks that stay resident */
    uint32_t decay;     /* milliseconds after which memory that nobody uses goes back to the system; 0: never */
    bool huge_pages;    /* ask for transparent ones */
    bool zero_on_free;  /* every byte of a block is zeroed when it is freed */
    bool hardened;      /* misuse ends the process with one line; looked at before the first allocation, never later */
    /* Pointers that this heap does not know. Null: they are ignored. */
    void (*foreign_free)(void *block);
    void *(*foreign_realloc)(void *block, size_t size);
    size_t (*foreign_usable_size)(void *block);
    /* Hardened: whether it belongs to somebody who is known, and may be passed on. Null: none does. */
    bool (*foreign_is_known)(const void *block);
} fa_global_options;

void fa_global_options_init(fa_global_options *options);

/* At any time; the values are checked by the caller. zero_on_free holds for what is freed from then on. */
void fa_global_configure(const fa_global_options *options);

/* Whoever defines it is asked for settings when the first block is allocated, which may be before any constructor. */
#if defined(__GNUC__)
__attribute__((weak))
#endif
void fa_global_before_first(fa_global_options *options);

/* Another operating system than this one, before the first allocation: for tests. */
void fa_global_start(const struct fa_os *os);

/* ---- malloc ------------------------------------------------------------------------------------------------------- */

/* As malloc and its kin: null and errno == ENOMEM if there is no memory. A size of 0 gives a block. */
void *fa_global_alloc(size_t size);
void *fa_global_alloc_zeroed(size_t count, size_t size);
void *fa_global_alloc_aligned(size_t alignment, size_t size); /* a power of two */
void *fa_global_realloc(void *block, size_t size);            /* size 0 frees, and is null */
void fa_global_free(void *block);                             /* errno is kept */
/* The size that was asked for: hardened, another one is an error; else nobody looks at it. */
void fa_global_free_sized(void *block, size_t size);
size_t fa_global_usable_size(const void *block);
bool fa_global_owns(const void *block);

/* ---- everything else ---------------------------------------------------------------------------------------------- */

/* Gives what nobody uses back to the system; only what is older than the decay unless `all`. True if something went. */
bool fa_global_trim(bool all);

/* From the first allocation on, or never. */
bool fa_global_is_hardened(void);
/* False if the system had no random numbers for it: canaries can be guessed then. */
bool fa_global_has_secret(void);

/* Hardened: looks at every block, live or free, and reports the first that was written to where it must not be. `call` is what
 * the report names. */
void fa_global_check(const char *call);

/* Hardened: reports an access to memory that this heap keeps closed; false if the address is no such. For handlers of
 * signals: takes no lock that it would wait for. */
bool fa_global_explain(const void *address);

/* Around fork, as pthread_atfork takes them. */
void fa_global_fork_prepare(void);
void fa_global_fork_parent(void);
void fa_global_fork_child(void);

void fa_global_get_stats(fa_global_stats *stats);
/* Of class 1 to FA_GLOBAL_CLASSES - 1. */
void fa_global_get_class_stats(uint32_t class, fa_class_stats *stats);

/* Recounts everything; no other thread may allocate meanwhile. */
bool fa_global_is_valid(void);

#endif
