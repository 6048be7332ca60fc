/*
 * mem/pages.c - runs of pages in one range of address space, that merge and are reused
 *
 *     bins       row = log2 of the length, step = the next three bits: eight to each power of two
 *     take       own bin (a few entries) -> next bin that surely fits -> cut, the rest goes back to its bin
 *     give       the record before and the one behind say what the neighbours are; merge; into the bin
 *
 * A merged run is as old as its pages are on the average: neither does one fresh page keep a gigabyte, nor one old page send
 * it away. Invariants, thread rule, cost: see pages.h.
 */
#include "pages.h"

#include <string.h>

#define STEPS_LOG2 3U
/* Entries of the own bin looked at before the next larger one is taken. */
#define BIN_SCAN 8
/* The range grows by this at first, then by an eighth of what it is, then by no more than this. */
#define STEP_MIN ((uint32_t)(((size_t)4 << 20) >> FA_PAGE_LOG2))
#define STEP_MAX ((uint32_t)(((size_t)64 << 20) >> FA_PAGE_LOG2))
#define HUGE_PAGE ((size_t)2 << 20)
/* Less is not worth having. */
#define RANGE_MIN ((size_t)4 << 20)

/* ---- bins --------------------------------------------------------------------------------------------------------- */

/* Lengths below 8 have a bin each in rows 0 to 2, in which the steps are the lengths themselves. */
static void bin_of(uint32_t length, uint32_t *row, uint32_t *step) {
    uint32_t log2 = fa_log2(length);
    *row = log2;
    *step = log2 >= STEPS_LOG2 ? length >> (log2 - STEPS_LOG2) & (FA_PAGES_STEPS - 1) : length & (FA_PAGES_STEPS - 1);
}

static fa_page_bins *bins_of(fa_pages *pages, uint8_t kind) {
    return kind == FA_RUN_RESIDENT ? &pages->resident : &pages->returned;
}

static void enter(fa_pages *pages, uint32_t first) {
    fa_run *run = &pages->run[first];
    fa_page_bins *bins = bins_of(pages, run->kind);
    uint32_t row, step;
    bin_of(run->length, &row, &step);
    run->prev = 0;
    run->next = bins->first[row][step];
    if (run->next != 0) pages->run[run->next].prev = first;
    bins->first[row][step] = first;
    bins->steps[row] |= (uint8_t)(1U << step);
    bins->rows |= 1U << row;
    bins->pages += run->length;
}

static void leave(fa_pages *pages, uint32_t first) {
    fa_run *run = &pages->run[first];
    fa_page_bins *bins = bins_of(pages, run->kind);
    uint32_t row, step;
    bin_of(run->length, &row, &step);
    if (run->next != 0) pages->run[run->next].prev = run->prev;
    if (run->prev != 0) pages->run[run->prev].next = run->next;
    else bins->first[row][step] = run->next;
    if (bins->first[row][step] == 0) bins->steps[row] &= (uint8_t)~(1U << step);
    if (bins->steps[row] == 0) bins->rows &= ~(1U << row);
    bins->pages -= run->length;
}

/* The first page of a run with at least `count` pages, or 0. */
static uint32_t find(const fa_pages *pages, const fa_page_bins *bins, uint32_t count) {
    uint32_t row, step;
    bin_of(count, &row, &step);
    uint32_t at = bins->first[row][step];
    for (int i = 0; at != 0 && i < BIN_SCAN; i++, at = pages->run[at].next)
        if (pages->run[at].length >= count) return at;
    uint32_t above = bins->steps[row] & ~((2U << step) - 1);
    if (above != 0) return bins->first[row][__builtin_ctz(above)];
    uint32_t rows = bins->rows & ~((2U << row) - 1);
    if (rows == 0) return 0;
    row = (uint32_t)__builtin_ctz(rows);
    return bins->first[row][__builtin_ctz(bins->steps[row])];
}

/* ---- records ------------------------------------------------------------------------------------------------------ */

static void mark(fa_pages *pages, uint32_t first, uint32_t length, fa_run_kind kind, uint32_t freed_at) {
    pages->run[first + length - 1].first = first;
    pages->run[first] = (fa_run){.first = first, .length = length, .freed_at = freed_at, .kind = (uint8_t)kind};
}

static bool is_free(const fa_pages *pages, uint32_t first, uint8_t kind) {
    return first >= pages->start && first < pages->fresh && pages->run[first].kind == kind;
}

/* The mean of two times, weighted by pages. */
static uint32_t mean_time(uint32_t a, uint32_t a_pages, uint32_t b, uint32_t b_pages) {
    int64_t later = (int32_t)(b - a);
    return a + (uint32_t)(later * (int64_t)b_pages / ((int64_t)a_pages + b_pages));
}

/* A run that is in no bin becomes free, with its neighbours of the same kind. */
static void join(fa_pages *pages, uint32_t first, uint32_t length, uint8_t kind, uint32_t freed_at) {
    uint32_t behind = first + length;
    if (is_free(pages, behind, kind)) {
        leave(pages, behind);
        fa_run *other = &pages->run[behind];
        freed_at = mean_time(freed_at, length, other->freed_at, other->length);
        length += other->length;
        other->kind = FA_RUN_NONE;
    }
    uint32_t before = first > pages->start ? pages->run[first - 1].first : 0;
    if (before != 0 && is_free(pages, before, kind)) {
        leave(pages, before);
        fa_run *other = &pages->run[before];
        freed_at = mean_time(other->freed_at, other->length, freed_at, length);
        pages->run[first].kind = FA_RUN_NONE;
        length += other->length;
        first = before;
    }
    mark(pages, first, length, (fa_run_kind)kind, freed_at);
    enter(pages, first);
}

/* ---- the range ---------------------------------------------------------------------------------------------------- */

static bool commit(const fa_pages *pages, unsigned char *from, unsigned char *to) {
    size_t page = pages->os->page_size();
    size_t start = fa_align_down((uintptr_t)from, page), end;
    if (!fa_align_up((uintptr_t)to, page, &end)) return false;
    return end <= start || pages->os->commit((void *)start, end - start) == 0;
}

/* Makes pages up to `end` usable, and what is known of them. */
FA_COLD static bool commit_to(fa_pages *pages, uint32_t end) {
    uint32_t from = pages->committed;
    if (end <= from) return true;
    uint32_t step = (end - pages->start) / 8;
    step = step < STEP_MIN ? STEP_MIN : step > STEP_MAX ? STEP_MAX : fa_pages_round(pages, step);
    uint32_t to = end - from > step ? end : pages->end - from > step ? from + step : pages->end;
    unsigned char *runs = (unsigned char *)pages->run, *bitmap = (unsigned char *)pages->bitmap;
    if (!commit(pages, pages->base + from, pages->base + to) ||
        !commit(pages, runs + (size_t)from * sizeof(fa_run), runs + (size_t)to * sizeof(fa_run)) ||
        !commit(pages, bitmap + (size_t)from * FA_PAGE_BITMAP, bitmap + (size_t)to * FA_PAGE_BITMAP) ||
        !commit(pages, fa_pages_address(pages, from), fa_pages_address(pages, to)))
        return false;
    if (pages->huge_pages)
        (void)pages->os->advise_huge(fa_pages_address(pages, from), (size_t)(to - from) << FA_PAGE_LOG2); /* a hint */
    pages->committed = to;
    atomic_store_explicit(&pages->reach, (size_t)to << FA_PAGE_LOG2, memory_order_relaxed);
    return true;
}

bool fa_pages_init(fa_pages *pages, const fa_os *os, size_t bytes) {
    memset(pages, 0, sizeof *pages);
    pages->os = os;
    void *address = NULL;
    size_t wanted = bytes;
    while (bytes >= RANGE_MIN && os->reserve(bytes, HUGE_PAGE, &address) != 0) bytes /= 4;
    if (bytes < RANGE_MIN) return false;
    if (bytes < wanted && bytes / 4 >= RANGE_MIN) {
        /* There is a limit, near: stacks, libraries and large blocks need most of what it leaves. */
        if (os->release(address, bytes) != 0) return false;
        bytes /= 4;
        if (os->reserve(bytes, HUGE_PAGE, &address) != 0) return false;
    }
    size_t page = fa_max(os->page_size(), FA_PAGE), count = bytes >> FA_PAGE_LOG2, runs, bitmap, start;
    if (!fa_align_up(count, page, &runs) || !fa_align_up(runs + count * sizeof(fa_run), page, &bitmap) ||
        !fa_align_up(bitmap + count * FA_PAGE_BITMAP, HUGE_PAGE, &start))
        return false;
    pages->base = address;
    pages->bytes = bytes;
    pages->run = (fa_run *)(void *)(pages->base + runs);
    pages->bitmap = (uint64_t *)(void *)(pages->base + bitmap);
    pages->start = pages->fresh = pages->committed = (uint32_t)(start >> FA_PAGE_LOG2);
    pages->end = (uint32_t)count;
    pages->grain = (uint32_t)(page >> FA_PAGE_LOG2);
    pages->reach = start;
    /* A fast path may look at the class byte of any address below the reach: those of the metadata exist, and are 0. */
    if (commit(pages, pages->base, pages->base + pages->start)) return true;
    fa_pages_destroy(pages);
    return false;
}

void fa_pages_destroy(fa_pages *pages) {
    if (pages->bytes != 0) (void)pages->os->release(pages->base, pages->bytes);
    memset(pages, 0, sizeof *pages);
}

/* ---- taking and giving -------------------------------------------------------------------------------------------- */

static uint32_t take_fresh(fa_pages *pages, uint32_t count, uint32_t alignment) {
    size_t first = fa_align_down((size_t)pages->fresh + (alignment - 1), alignment);
    if (first > pages->end || count > pages->end - first) return 0;
    uint32_t end = (uint32_t)first + count, before = pages->fresh;
    if (!commit_to(pages, end)) return 0;
    pages->fresh = end;
    pages->run[first].kind = FA_RUN_NONE;
    if (first > before) join(pages, before, (uint32_t)first - before, FA_RUN_RETURNED, 0);
    return (uint32_t)first;
}

uint32_t fa_pages_take(fa_pages *pages, uint32_t count, uint32_t alignment, fa_run_kind kind, bool *zero) {
    if (pages->bytes == 0 || count == 0 || count > pages->end / 2 || alignment > pages->end / 2) return 0;
    count = fa_pages_round(pages, count);
    if (alignment < pages->grain) alignment = pages->grain;
    /* Runs are at multiples of the grain anyway. */
    uint32_t room = count + (alignment - pages->grain), first = find(pages, &pages->resident, room);
    if (first == 0) first = find(pages, &pages->returned, room);
    *zero = true;
    if (first == 0) {
        first = take_fresh(pages, count, alignment);
        if (first == 0) return 0;
    } else {
        const fa_run found = pages->run[first];
        leave(pages, first);
        uint32_t before = (uint32_t)(fa_align_down((size_t)first + (alignment - 1), alignment) - first);
        uint32_t behind = found.length - before - count;
        pages->run[first].kind = FA_RUN_NONE;
        /* The neighbours on the other sides are of another kind or live: nothing merges. */
        if (before > 0) {
            mark(pages, first, before, (fa_run_kind)found.kind, found.freed_at);
            enter(pages, first);
        }
        first += before;
        if (behind > 0) {
            mark(pages, first + count, behind, (fa_run_kind)found.kind, found.freed_at);
            enter(pages, first + count);
        }
        if (found.kind == FA_RUN_RESIDENT) {
            *zero = false;
            pages->reused += count;
        }
    }
    mark(pages, first, count, kind, 0);
    if (kind == FA_RUN_SPAN)
        for (uint32_t page = 1; page < count; page++) pages->run[first + page].first = first;
    pages->live += count;
    return first;
}

void fa_pages_give(fa_pages *pages, uint32_t first, uint32_t now) {
    uint32_t length = pages->run[first].length;
    pages->live -= length;
    join(pages, first, length, FA_RUN_RESIDENT, now);
}

void fa_pages_shrink(fa_pages *pages, uint32_t first, uint32_t count, uint32_t now) {
    const fa_run run = pages->run[first];
    count = fa_pages_round(pages, count);
    if (count >= run.length) return;
    mark(pages, first, count, (fa_run_kind)run.kind, 0);
    pages->live -= run.length - count;
    join(pages, first + count, run.length - count, FA_RUN_RESIDENT, now);
}

bool fa_pages_extend(fa_pages *pages, uint32_t first, uint32_t count) {
    const fa_run run = pages->run[first];
    count = fa_pages_round(pages, count);
    if (count <= run.length) return true;
    uint32_t behind = first + run.length, more = count - run.length;
    if (behind == pages->fresh) {
        if (more > pages->end - behind || !commit_to(pages, behind + more)) return false;
        pages->fresh = behind + more;
    } else {
        uint8_t kind = pages->run[behind].kind;
        if ((kind != FA_RUN_RESIDENT && kind != FA_RUN_RETURNED) || pages->run[behind].length < more) return false;
        const fa_run other = pages->run[behind];
        leave(pages, behind);
        pages->run[behind].kind = FA_RUN_NONE;
        if (other.length > more) {
            mark(pages, behind + more, other.length - more, (fa_run_kind)kind, other.freed_at);
            enter(pages, behind + more);
        }
        if (kind == FA_RUN_RESIDENT) pages->reused += more;
    }
    mark(pages, first, count, (fa_run_kind)run.kind, 0);
    pages->live += more;
    return true;
}

/* ---- giving back -------------------------------------------------------------------------------------------------- */

uint32_t fa_pages_oldest(fa_pages *pages, uint32_t now, uint32_t age, uint32_t *scan) {
    const fa_page_bins *bins = &pages->resident;
    for (uint32_t rows = 0; rows < FA_PAGES_ROWS; rows++) {
        /* From the longest down, and round: a bounded scan gets everywhere. */
        uint32_t row = pages->cursor = (pages->cursor + FA_PAGES_ROWS - (rows > 0)) % FA_PAGES_ROWS;
        for (uint32_t step = 0; step < FA_PAGES_STEPS; step++) {
            for (uint32_t at = bins->first[row][step]; at != 0; at = pages->run[at].next) {
                if (now - pages->run[at].freed_at >= age) {
                    leave(pages, at);
                    pages->run[at].kind = FA_RUN_BUSY;
                    return at;
                }
                if (*scan == 0) return 0;
                --*scan;
            }
        }
    }
    return 0;
}

int fa_pages_decommit(const fa_pages *pages, uint32_t first) {
    return pages->os->decommit(fa_pages_address(pages, first), (size_t)pages->run[first].length << FA_PAGE_LOG2);
}

void fa_pages_settle(fa_pages *pages, uint32_t first, bool returned) {
    const fa_run run = pages->run[first];
    join(pages, first, run.length, returned ? FA_RUN_RETURNED : FA_RUN_RESIDENT, run.freed_at);
}

/* ---- validation --------------------------------------------------------------------------------------------------- */

static bool bins_are_valid(const fa_pages *pages, const fa_page_bins *bins, uint8_t kind, uint64_t *runs) {
    uint64_t sum = 0;
    for (uint32_t row = 0; row < FA_PAGES_ROWS; row++) {
        if (((bins->rows >> row & 1) != 0) != (bins->steps[row] != 0)) return false;
        for (uint32_t step = 0; step < FA_PAGES_STEPS; step++) {
            uint32_t prev = 0;
            if (((bins->steps[row] >> step & 1) != 0) != (bins->first[row][step] != 0)) return false;
            for (uint32_t at = bins->first[row][step]; at != 0; at = pages->run[at].next) {
                const fa_run *run = &pages->run[at];
                uint32_t own_row, own_step;
                bin_of(run->length, &own_row, &own_step);
                if (run->kind != kind || run->prev != prev || own_row != row || own_step != step) return false;
                sum += run->length;
                (*runs)++;
                prev = at;
            }
        }
    }
    return sum == bins->pages;
}

bool fa_pages_is_valid(const fa_pages *pages) {
    if (pages->bytes == 0) return true;
    uint64_t live = 0, free = 0, in_bins = 0;
    uint8_t before = FA_RUN_NONE;
    for (uint32_t at = pages->start; at < pages->fresh;) {
        const fa_run *run = &pages->run[at];
        if (run->first != at || run->length == 0 || run->length > pages->fresh - at || run->kind == FA_RUN_NONE) return false;
        if (pages->run[at + run->length - 1].first != at) return false;
        bool is_bin = run->kind == FA_RUN_RESIDENT || run->kind == FA_RUN_RETURNED;
        if (is_bin && before == run->kind) return false;
        free += is_bin;
        if (!is_bin && run->kind != FA_RUN_BUSY) live += run->length;
        for (uint32_t page = at; page < at + run->length; page++)
            if (pages->base[page] != 0 && (run->kind != FA_RUN_SPAN || pages->base[page] != run->class)) return false;
        before = run->kind;
        at += run->length;
    }
    return live == pages->live && bins_are_valid(pages, &pages->resident, FA_RUN_RESIDENT, &in_bins) &&
           bins_are_valid(pages, &pages->returned, FA_RUN_RETURNED, &in_bins) && free == in_bins;
}
