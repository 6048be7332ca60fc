/*
 * mem/pages.h - runs of pages in one range of address space, that merge and are reused
 *
 *     range    | class bytes | run records | bitmaps | live | span | free | live |  free, given back | not used yet ...
 *               <-------- of all pages below -------> <-- what is handed out                          ^ fresh
 *
 * A page is 8 KiB here, whatever the system's is. A run is a row of pages with one record, out of line, at the index of its
 * first page. Freed runs merge with free neighbours of the same kind: those that are resident, and those that were given
 * back to the system and read zero. A request takes the best fit of the resident, then of the others, then pages that were
 * never used. So resident memory is reused before any fault is taken, and memory that is given back costs nothing.
 *
 * For the heap above, which keeps blocks of one size in runs ("spans"): a class byte for every page, the only thing that its
 * free has to look at, and 64 bytes of bitmap for every page, one bit for each 16 bytes.
 *
 * The range is reserved once; it, and what is known of it, is committed in steps as it is used.
 *
 * Invariants (fa_pages_is_valid recounts them): runs tile [start, fresh); no two free neighbours are of the same kind; each
 * free run is in the bin of its length; the counts of pages are the sums over the runs. Class bytes are 0 but in spans, whose owner sets them.
 * Thread rule: the owner's lock. Cost: O(1), the scan of a bin bounded.
 */
#ifndef FA_MEM_PAGES_H
#define FA_MEM_PAGES_H

#include "base.h"
#include "os/os.h"

#include <stdatomic.h>

#define FA_PAGE_LOG2 13
#define FA_PAGE ((size_t)1 << FA_PAGE_LOG2)
/* Of the bitmap, for each page. */
#define FA_PAGE_BITMAP (FA_PAGE / 16 / 8)

typedef enum fa_run_kind {
    FA_RUN_NONE,     /* not the first page of a run */
    FA_RUN_RESIDENT, /* free, its pages may be in memory */
    FA_RUN_RETURNED, /* free, zero, not in memory */
    FA_RUN_BUSY,     /* taken out of the bins by fa_pages_oldest */
    FA_RUN_LIVE,     /* one block */
    FA_RUN_SPAN,     /* blocks of one class */
    FA_RUN_OWN       /* of the heap itself */
} fa_run_kind;

typedef struct fa_run {
    uint32_t first;      /* where the run begins: at its first and last page, and at every page of a span */
    uint32_t length;     /* pages */
    uint32_t next, prev; /* first page of the neighbours in the bin; 0: none. Of a live run: the owner's */
    uint32_t freed_at;   /* milliseconds, wrapping */
    uint16_t free;       /* of a span: blocks that are here, and in all */
    uint16_t blocks;
    uint16_t hint;       /* of a span: no free block below this word of its bitmap */
    uint8_t kind;
    uint8_t class;       /* of a span */
} fa_run;

#define FA_PAGES_ROWS 28U
#define FA_PAGES_STEPS 8U

typedef struct fa_page_bins {
    uint32_t rows;                                     /* bit r: some bin of row r holds something */
    uint8_t steps[FA_PAGES_ROWS];                      /* bit s: bin [r][s] holds something */
    uint32_t first[FA_PAGES_ROWS][FA_PAGES_STEPS];     /* first page of the newest run; 0: none */
    uint64_t pages;
} fa_page_bins;

typedef struct fa_pages {
    const fa_os *os;
    unsigned char *base;   /* page 0; the class bytes */
    size_t bytes;          /* of the range; 0: there is none */
    fa_run *run;
    uint64_t *bitmap;      /* FA_PAGE_BITMAP / 8 words for each page */
    atomic_size_t reach;   /* bytes from base that are committed: below it every address has a class byte */
    uint32_t start, fresh, committed, end; /* pages: first usable; first never used; first not committed; all */
    uint32_t grain;        /* runs are multiples of it, at multiples of it: a page of the system, or 1 */
    bool huge_pages;
    uint64_t live;         /* pages in runs that are not free */
    uint64_t reused;       /* resident pages that were handed out again */
    uint32_t cursor;       /* row at which the search for old runs goes on */
    fa_page_bins resident, returned;
} fa_pages;

/* Reserves at most `bytes`, a power of two, and less where a limit refuses it. False if there is no address space. */
bool fa_pages_init(fa_pages *pages, const fa_os *os, size_t bytes);
void fa_pages_destroy(fa_pages *pages);

/* The first page of a run of `count` pages, aligned to `alignment` of them (a power of two), or 0. *zero: every byte is. */
uint32_t fa_pages_take(fa_pages *pages, uint32_t count, uint32_t alignment, fa_run_kind kind, bool *zero);

/* Frees a run that was taken. Its class bytes and its bitmap must be zero again. */
void fa_pages_give(fa_pages *pages, uint32_t first, uint32_t now);

/* Gives all but the first `count` pages of a run back, or adds free ones behind it. */
void fa_pages_shrink(fa_pages *pages, uint32_t first, uint32_t count, uint32_t now);
bool fa_pages_extend(fa_pages *pages, uint32_t first, uint32_t count);

/* Some resident free run that has been free for `age` milliseconds, out of its bin, or 0. After giving its memory back
 * without the lock (or not: `returned` false), the owner settles it. *scan runs are looked at, and subtracted. */
uint32_t fa_pages_oldest(fa_pages *pages, uint32_t now, uint32_t age, uint32_t *scan);
int fa_pages_decommit(const fa_pages *pages, uint32_t first);
void fa_pages_settle(fa_pages *pages, uint32_t first, bool returned);

static inline void *fa_pages_address(const fa_pages *pages, uint32_t page) {
    return pages->base + ((size_t)page << FA_PAGE_LOG2);
}

/* A count of pages as runs have it. */
static inline uint32_t fa_pages_round(const fa_pages *pages, uint32_t count) {
    return (count + (pages->grain - 1)) & ~(pages->grain - 1);
}

/* The page of an address in the range. */
static inline uint32_t fa_pages_of(const fa_pages *pages, const void *address) {
    return (uint32_t)(((uintptr_t)address - (uintptr_t)pages->base) >> FA_PAGE_LOG2);
}

bool fa_pages_is_valid(const fa_pages *pages);

#endif
