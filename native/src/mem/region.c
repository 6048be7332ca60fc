/*
 * mem/region.c - reserved address space, guard pages, and a record of the protections that took effect
 *
 *     | guard | base ............ used ............ committed ............ capacity | guard |
 *
 * Creation reserves everything inaccessible and opens the middle, so the guards are what was never opened. Each
 * protection is applied by `protect`, which turns its result into an error or into a figure in the record: there is no
 * third way. Locking follows use, in steps, because the kernel touches what it locks and RLIMIT_MEMLOCK is small.
 * Thread rule and cost: see region.h.
 */
#include "region.h"

#include <string.h>

/* Locked memory grows by this much at a time: 16 pages, so a small secret costs 64 KiB of the limit and no more. */
#define FA_LOCK_STEP ((size_t)64 << 10)
#define FA_HUGE_2M ((size_t)2 << 20)
#define FA_HUGE_1G ((size_t)1 << 30)

/* The outcome of one protection: recorded in *bytes if it took effect, an error if it was required and did not. */
static fa_status outcome(fa_want want, int error, size_t size, uint64_t *bytes, fa_status failure) {
    if (error == 0) {
        *bytes = size;
        return FA_OK;
    }
    *bytes = 0;
    return want == FA_REQUIRE ? failure : FA_OK;
}

static fa_status map_reserved_huge(fa_region *region, size_t capacity, size_t huge_size) {
    size_t size;
    void *address;
    if (!fa_align_up(capacity, huge_size, &size)) return FA_ERR_NOMEM;
    if (region->os->map_huge(size, huge_size, &address) != 0) return FA_ERR_NOMEM;
    region->reserved = address;
    region->reserved_size = size;
    region->base = address;
    region->capacity = region->committed = size;
    region->page = huge_size;
    region->protection.reserved_huge = size;
    return FA_OK;
}

static fa_status reserve(fa_region *region, const fa_region_spec *spec) {
    const fa_os *os = region->os;
    size_t page = region->page;
    size_t alignment = fa_max(spec->alignment, page);
    size_t capacity;
    if (!fa_align_up(spec->capacity, page, &capacity)) return FA_ERR_NOMEM;
    /* The lower guard is as large as the alignment, so that base keeps it; all of it is inaccessible. */
    size_t guard = spec->guard_pages == FA_OFF || !os->traps ? 0 : page;
    size_t below = guard == 0 ? 0 : alignment;
    if (capacity > SIZE_MAX - below - guard) return FA_ERR_NOMEM;
    void *address;
    if (os->reserve(capacity + below + guard, alignment, &address) != 0) return FA_ERR_NOMEM;
    region->reserved = address;
    region->reserved_size = capacity + below + guard;
    region->base = (unsigned char *)address + below;
    region->capacity = capacity;
    region->protection.guarded = below + guard;
    if (!os->lazy_commit) return FA_OK;
    if (os->commit(region->base, capacity) != 0) return FA_ERR_NOMEM;
    region->committed = capacity;
    return FA_OK;
}

static fa_status protect(fa_region *region, const fa_region_spec *spec) {
    const fa_os *os = region->os;
    fa_protection *record = &region->protection;
    fa_status status = FA_OK;
    if (spec->no_dump != FA_OFF) {
        int error = os->no_dump(region->base, region->capacity);
        status = outcome(spec->no_dump, error, region->capacity, &record->no_dump, FA_ERR_UNSUPPORTED);
    }
    if (status == FA_OK && spec->wipe_on_fork != FA_OFF) {
        int error = os->wipe_on_fork(region->base, region->capacity);
        status = outcome(spec->wipe_on_fork, error, region->capacity, &record->wipe_on_fork, FA_ERR_UNSUPPORTED);
    }
    if (status == FA_OK && spec->huge_pages != FA_HUGE_OFF && record->reserved_huge == 0) {
        int error = os->advise_huge(region->base, region->capacity);
        status = outcome(FA_TRY, error, region->capacity, &record->transparent_huge, FA_ERR_UNSUPPORTED);
    }
    return status;
}

fa_status fa_region_create(fa_region *region, const fa_os *os, const fa_region_spec *spec) {
    memset(region, 0, sizeof *region);
    region->os = os;
    region->page = os->page_size();
    region->lock = spec->lock;
    region->protection.lock_limit = os->lock_limit();

    bool huge_2m = spec->huge_pages == FA_HUGE_TLB_2M, huge_1g = spec->huge_pages == FA_HUGE_TLB_1G;
    fa_status status = FA_ERR_NOMEM;
    /* Reserved huge pages leave no room for a guard: where one is required, they are not what is wanted most. */
    if ((huge_2m || huge_1g) && spec->guard_pages != FA_REQUIRE)
        status = map_reserved_huge(region, spec->capacity, huge_2m ? FA_HUGE_2M : FA_HUGE_1G);
    if (status != FA_OK) status = reserve(region, spec);
    if (status == FA_OK && spec->guard_pages == FA_REQUIRE && region->protection.guarded == 0)
        status = FA_ERR_UNSUPPORTED;
    if (status == FA_OK) status = protect(region, spec);
    if (status != FA_OK) fa_region_destroy(region);
    return status;
}

void fa_region_destroy(fa_region *region) {
    /* munmap unlocks; a release of what was reserved cannot fail (os.h). */
    if (region->reserved != NULL) (void)region->os->release(region->reserved, region->reserved_size);
    memset(region, 0, sizeof *region);
}

/* Locks [locked, end), or in one larger step if the limit allows it. */
static fa_status lock_more(fa_region *region, size_t end) {
    fa_protection *record = &region->protection;
    size_t step;
    if (!fa_align_up(end, fa_max(FA_LOCK_STEP, region->page), &step)) step = region->committed;
    step = fa_min(step, region->committed);
    if (step > record->lock_wanted) record->lock_wanted = step;
    if (region->lock_failed || step <= record->locked) return FA_OK;

    size_t start = (size_t)record->locked;
    int error = region->os->lock(region->base + start, step - start);
    if (error != 0) { /* the limit may still allow what is needed now */
        if (!fa_align_up(end, region->page, &step)) step = region->committed;
        error = step <= start ? 0 : region->os->lock(region->base + start, step - start);
    }
    if (error == 0) {
        record->locked = fa_max(start, step);
        return FA_OK;
    }
    if (region->lock == FA_REQUIRE) return FA_ERR_LOCK;
    region->lock_failed = true;
    return FA_OK;
}

FA_COLD fa_status fa_region_grow(fa_region *region, size_t end) {
    FA_ASSERT(end <= region->capacity);
    size_t whole;
    if (!fa_align_up(end, region->page, &whole)) return FA_ERR_NOMEM;
    if (whole > region->committed) {
        /* In doublings: a platform that charges for commits is asked log(n) times. */
        size_t target = fa_min(region->capacity, fa_max(whole, region->committed * 2));
        size_t start = region->committed;
        if (region->os->commit(region->base + start, target - start) != 0) {
            target = whole;
            if (region->os->commit(region->base + start, target - start) != 0) return FA_ERR_NOMEM;
        }
        region->committed = target;
    }
    if (region->lock != FA_OFF) {
        fa_status status = lock_more(region, whole);
        if (status != FA_OK) return status;
    }
    /* Up to here the next growth is a compare: all of what is committed, or the step that was locked (or tried). */
    if (region->lock == FA_OFF) region->used = region->committed;
    else if (region->lock == FA_REQUIRE)
        region->used = fa_min((size_t)region->protection.locked, region->committed);
    else if (fa_align_up(whole, FA_LOCK_STEP, &region->used)) region->used = fa_min(region->used, region->committed);
    return FA_OK;
}

fa_status fa_region_decommit(fa_region *region, size_t start, size_t end, size_t *given) {
    size_t first;
    if (!fa_align_up(start, region->page, &first)) return FA_OK;
    size_t last = fa_align_down(fa_min(end, region->committed), region->page);
    first = fa_max(first, fa_min((size_t)region->protection.locked, last));
    if (first >= last) return FA_OK;
    if (region->os->decommit(region->base + first, last - first) != 0) return FA_ERR_UNSUPPORTED;
    *given += last - first;
    return FA_OK;
}

fa_status fa_region_shrink(fa_region *region, size_t end) {
    fa_protection *record = &region->protection;
    size_t keep;
    if (!fa_align_up(end, region->page, &keep)) return FA_OK;
    if (record->locked > keep) {
        if (region->os->unlock(region->base + keep, (size_t)record->locked - keep) != 0) return FA_ERR_LOCK;
        record->locked = keep;
    }
    if (record->lock_wanted > keep) record->lock_wanted = keep;
    region->lock_failed = false;
    region->used = fa_min(region->used, region->lock == FA_OFF ? region->committed : keep);
    return FA_OK;
}

void fa_region_fork_child(fa_region *region) {
    if (region->lock == FA_OFF) return;
    size_t end = (size_t)region->protection.lock_wanted;
    region->protection.locked = 0;
    region->lock_failed = false;
    region->used = 0;
    /* The pages are zero in the child; a lock that cannot be had again shows in the record. */
    if (end > 0 && fa_region_grow(region, end) != FA_OK) region->used = 0;
}

uint64_t fa_region_resident(const fa_region *region, size_t end) {
    uint64_t bytes = 0;
    size_t size;
    if (!fa_align_up(end, region->os->page_size(), &size)) return 0;
    size = fa_min(size, region->committed);
    if (size == 0 || region->os->resident(region->base, size, &bytes) != 0) return 0;
    return bytes;
}

void fa_region_get_protection(const fa_region *region, fa_protection *protection) {
    *protection = region->protection;
}
