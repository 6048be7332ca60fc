/*
 * mem/region.c - reserved address space, guard pages, and a record of the protections that took effect
 *
 *     | guard | base ............ used ............ committed ............ capacity | guard |
 *
 * Creation reserves everything inaccessible and opens the middle, so the guards are what was never opened. The result of
 * each protection becomes an error or a figure in the record: there is no third way. Locking follows use, in steps,
 * because the kernel touches what it locks and RLIMIT_MEMLOCK is small.
 *
 * By pages the middle stays closed too, and what is opened is locked by itself. With mprotect: MADV_GUARD_INSTALL would
 * not split the mapping, but the kernel refuses it in locked memory, and its guards are gone in a child that the
 * memory is wiped in (Linux 6.18).
 * Thread rule and cost: see region.h.
 */
#include "region.h"

#include <string.h>

/* Locked memory grows by this much at a time: 16 pages, so a small secret costs 64 KiB of the limit and no more. */
#define FA_LOCK_STEP ((size_t)64 << 10)
#define FA_HUGE_2M ((size_t)2 << 20)
#define FA_HUGE_1G ((size_t)1 << 30)

/* The outcome of one protection: added to *bytes if it took effect, an error if it was required and did not. */
static fa_status outcome(fa_want want, int error, size_t size, uint64_t *bytes, fa_status failure) {
    if (error == 0) *bytes += size;
    return error != 0 && want == FA_REQUIRE ? failure : FA_OK;
}

bool fa_commit_items(const fa_os *os, void *array, size_t item_size, size_t from, size_t to) {
    size_t page = os->page_size();
    uintptr_t start = fa_align_down((uintptr_t)array + from * item_size, page), end = (uintptr_t)array + to * item_size;
    return from == to || os->commit((void *)start, fa_align_down(end + (page - 1), page) - start) == 0;
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
    return FA_OK;
}

static fa_status advise(fa_region *region, size_t start, size_t end) {
    const fa_os *os = region->os;
    fa_protection *record = &region->protection;
    size_t size = end - start;
    fa_status status = FA_OK;
    if (region->no_dump != FA_OFF) {
        int error = os->no_dump(region->base + start, size);
        status = outcome(region->no_dump, error, size, &record->no_dump, FA_ERR_UNSUPPORTED);
    }
    if (status == FA_OK && region->wipe_on_fork != FA_OFF) {
        int error = os->wipe_on_fork(region->base + start, size);
        status = outcome(region->wipe_on_fork, error, size, &record->wipe_on_fork, FA_ERR_UNSUPPORTED);
    }
    return status;
}

/* ---- making it accessible -------------------------------------------------------------------------------------- */

/* By pages: what has just become accessible is closed. The first time is the time to find out that this cannot be. */
static fa_status close_new(fa_region *region, size_t end) {
    if (region->pages == FA_OFF) return FA_OK;
    int error = region->os->protect(region->base + region->committed, end - region->committed, FA_OS_NONE);
    if (error == 0) return FA_OK;
    if (region->committed > 0 || region->lost) return FA_ERR_NOMEM;
    if (region->pages == FA_REQUIRE) return FA_ERR_UNSUPPORTED;
    region->pages = FA_OFF;
    return FA_OK;
}

static fa_status extend_ordinary(fa_region *region, size_t end) {
    size_t start = region->committed;
    const fa_protection before = region->protection;
    if (region->os->commit(region->base + start, end - start) != 0) return FA_ERR_NOMEM;
    /* Advice is given to all of the region when it is made; where secret memory was to be, it comes with the commit. */
    fa_status status = region->secret_memory == FA_OFF ? FA_OK : advise(region, start, end);
    if (status == FA_OK) status = close_new(region, end);
    if (status == FA_OK) region->committed = end;
    else region->protection = before; /* it is asked for again with the next try, and then counts */
    return status;
}

static fa_status extend_secret(fa_region *region, size_t end) {
    fa_protection *record = &region->protection;
    size_t start = region->committed, size = end - start;
    int error = region->os->map_secret(region->base + start, size);
    fa_status status = error == 0 ? FA_OK : error == FA_OS_UNSUPPORTED ? FA_ERR_UNSUPPORTED : FA_ERR_LOCK;
    if (status == FA_OK) {
        status = close_new(region, end);
        if (status != FA_OK) (void)region->os->unmap_secret(region->base + start, size); /* as release */
    }
    if (status != FA_OK) {
        if (region->secret_memory == FA_REQUIRE) record->lock_wanted = record->locked + size;
        return status;
    }
    region->committed = region->secret = end;
    record->secret = record->no_fork = end;
    record->locked += size; /* secret memory always is */
    if (region->lock != FA_TRY || region->pages == FA_OFF) record->lock_wanted = record->locked;
    else record->lock_wanted += size;
    return FA_OK;
}

/* Makes [committed, whole) accessible, and more if that saves asking again soon. */
static fa_status extend(fa_region *region, size_t whole) {
    size_t committed = region->committed, target;
    if (region->secret_memory != FA_OFF && !region->secret_failed && committed == region->secret) {
        /* Locked in all its length: an eighth ahead of use, so that a limit is used up to that. */
        if (!fa_align_up(fa_max(whole, committed + committed / 8), FA_LOCK_STEP, &target)) target = whole;
        fa_status status = extend_secret(region, fa_min(region->capacity, target));
        if (status == FA_ERR_LOCK && target > whole) status = extend_secret(region, whole);
        if (status == FA_OK || region->secret_memory == FA_REQUIRE) return status;
        region->secret_failed = true;
    }
    /* In doublings: a platform that charges for commits is asked log(n) times. */
    target = fa_min(region->capacity, fa_max(whole, committed * 2));
    fa_status status = extend_ordinary(region, target);
    return status == FA_ERR_NOMEM ? extend_ordinary(region, whole) : status;
}

/* What a new region can use at once, and with it the answer whether the platform can do what was asked for. */
static fa_status begin(fa_region *region, const fa_region_spec *spec) {
    const fa_os *os = region->os;
    size_t first = fa_min(region->capacity, FA_LOCK_STEP);
    if (region->secret_memory != FA_OFF) {
        fa_status status = extend_secret(region, first);
        if (status == FA_ERR_LOCK) status = extend_secret(region, region->page);
        if (status == FA_OK || region->secret_memory == FA_REQUIRE) return status;
        region->secret_memory = FA_OFF; /* from now on like any other */
        region->protection.lock_wanted = 0;
    }
    fa_status status = FA_OK;
    if (region->committed == 0 && (os->lazy_commit || region->pages != FA_OFF))
        status = extend_ordinary(region, os->lazy_commit ? region->capacity : first);
    if (status == FA_OK) status = advise(region, 0, region->capacity);
    if (status == FA_OK && spec->huge_pages != FA_HUGE_OFF && region->protection.reserved_huge == 0) {
        int error = os->advise_huge(region->base, region->capacity);
        status = outcome(FA_TRY, error, region->capacity, &region->protection.transparent_huge, FA_ERR_UNSUPPORTED);
    }
    return status;
}

fa_status fa_region_create(fa_region *region, const fa_os *os, const fa_region_spec *spec) {
    memset(region, 0, sizeof *region);
    region->os = os;
    region->page = os->page_size();
    region->lock = spec->lock;
    region->no_dump = spec->no_dump;
    region->wipe_on_fork = spec->wipe_on_fork;
    region->secret_memory = spec->secret_memory;
    region->pages = spec->pages;

    bool huge_2m = spec->huge_pages == FA_HUGE_TLB_2M, huge_1g = spec->huge_pages == FA_HUGE_TLB_1G;
    fa_status status = FA_ERR_NOMEM;
    /* Reserved huge pages leave no room for a guard and are not secret: where those are asked for, they come first. */
    if ((huge_2m || huge_1g) && spec->guard_pages != FA_REQUIRE && spec->pages == FA_OFF && spec->secret_memory == FA_OFF)
        status = map_reserved_huge(region, spec->capacity, huge_2m ? FA_HUGE_2M : FA_HUGE_1G);
    if (status != FA_OK) status = reserve(region, spec);
    if (status == FA_OK && spec->guard_pages == FA_REQUIRE && region->protection.guarded == 0)
        status = FA_ERR_UNSUPPORTED;
    if (status == FA_OK) status = begin(region, spec);
    if (status != FA_OK) fa_region_destroy(region);
    return status;
}

void fa_region_destroy(fa_region *region) {
    const fa_os *os = region->os;
    unsigned char *start = region->reserved;
    /* munmap unlocks; a release of what was reserved cannot fail (os.h). */
    if (region->foreign > 0) {
        size_t below = (size_t)(region->base - start), ours = below + region->foreign;
        if (below > 0) (void)os->release(start, below);
        if (region->reserved_size > ours) (void)os->release(start + ours, region->reserved_size - ours);
    } else if (start != NULL) {
        (void)os->release(start, region->reserved_size);
    }
    memset(region, 0, sizeof *region);
}

/* A lock that failed may have taken in part. */
static int lock_range(fa_region *region, size_t start, size_t end) {
    int error = region->os->lock(region->base + start, end - start);
    if (error != 0) (void)region->os->unlock(region->base + start, end - start);
    return error;
}

/* Locks [locked, end), or in one larger step if the limit allows it. */
static fa_status lock_more(fa_region *region, size_t end) {
    fa_protection *record = &region->protection;
    size_t step, start = (size_t)record->locked;
    if (end <= start) return FA_OK;
    if (!fa_align_up(end, fa_max(FA_LOCK_STEP, region->page), &step)) step = region->committed;
    step = fa_min(step, region->committed);
    if (!region->lock_failed) {
        size_t locked = step;
        int error = lock_range(region, start, locked);
        if (error != 0 && end < step) { /* the limit may still allow what is needed now */
            locked = end;
            error = lock_range(region, start, locked);
        }
        if (error == 0) {
            record->locked = record->lock_wanted = locked;
            return FA_OK;
        }
        region->lock_failed = region->lock == FA_TRY;
    }
    record->lock_wanted = region->lock == FA_TRY ? fa_max((size_t)record->lock_wanted, step) : end;
    return region->lock == FA_TRY ? FA_OK : FA_ERR_LOCK;
}

FA_COLD fa_status fa_region_grow(fa_region *region, size_t end) {
    FA_ASSERT(end <= region->capacity);
    size_t whole;
    if (region->lost) return FA_ERR_STALE;
    if (!fa_align_up(end, region->page, &whole)) return FA_ERR_NOMEM;
    if (whole > region->committed) {
        fa_status status = extend(region, whole);
        if (status != FA_OK) return status;
    }
    region->used = region->committed;
    if (region->lock == FA_OFF || region->pages != FA_OFF) return FA_OK;
    fa_status status = lock_more(region, whole);
    /* Up to here the next growth is a compare: the step that was locked, or tried. */
    region->used = fa_min((size_t)region->protection.locked, region->committed);
    if (region->lock_failed && fa_align_up(whole, FA_LOCK_STEP, &region->used))
        region->used = fa_min(region->used, region->committed);
    return status;
}

/* Gives everything from `keep` on back to the reservation. */
static fa_status unmap_above(fa_region *region, size_t keep) {
    fa_protection *record = &region->protection;
    if (keep >= region->committed) return FA_OK;
    if (region->os->unmap_secret(region->base + keep, region->committed - keep) != 0) return FA_ERR_NOMEM;
    size_t secret = fa_min(region->secret, keep), ordinary = keep - secret;
    record->locked = region->pages == FA_OFF ? fa_min((size_t)record->locked, keep)
                                             : (size_t)record->locked - (region->secret - secret);
    record->lock_wanted = record->locked;
    record->no_dump = fa_min((size_t)record->no_dump, ordinary);
    record->wipe_on_fork = fa_min((size_t)record->wipe_on_fork, ordinary);
    record->sealed = fa_min((size_t)record->sealed, keep);
    region->secret = secret;
    record->secret = record->no_fork = secret;
    region->committed = keep;
    region->used = fa_min(region->used, keep);
    region->secret_failed = region->lock_failed = false;
    return FA_OK;
}

fa_status fa_region_decommit(fa_region *region, size_t start, size_t end, size_t *given) {
    size_t first;
    if (region->lost || !fa_align_up(start, region->page, &first)) return FA_OK;
    size_t last = fa_align_down(fa_min(end, region->committed), region->page);
    size_t kept = region->pages == FA_OFF ? (size_t)region->protection.locked : region->secret;
    first = fa_max(first, fa_min(kept, last));
    if (first >= last) return FA_OK;
    if (region->os->decommit(region->base + first, last - first) != 0) return FA_ERR_UNSUPPORTED;
    *given += last - first;
    return FA_OK;
}

fa_status fa_region_shrink(fa_region *region, size_t end) {
    fa_protection *record = &region->protection;
    size_t keep;
    if (region->lost || !fa_align_up(end, region->page, &keep)) return FA_OK;
    if (region->secret_memory != FA_OFF) return unmap_above(region, keep);
    if (region->pages != FA_OFF) { /* what is closed is not locked */
        region->lock_failed = false;
        return FA_OK;
    }
    if (record->locked > keep) {
        if (region->os->unlock(region->base + keep, (size_t)record->locked - keep) != 0) return FA_ERR_LOCK;
        record->locked = keep;
    }
    if (record->lock_wanted > keep) record->lock_wanted = keep;
    region->lock_failed = false;
    region->used = fa_min(region->used, region->lock == FA_OFF ? region->committed : keep);
    return FA_OK;
}

/* ---- by pages ---------------------------------------------------------------------------------------------------- */

fa_status fa_region_protect(fa_region *region, size_t start, size_t end, fa_os_access access) {
    int error = start < end ? region->os->protect(region->base + start, end - start, access) : 0;
    return error == 0 ? FA_OK : error == FA_OS_UNSUPPORTED ? FA_ERR_UNSUPPORTED : FA_ERR_NOMEM;
}

/* Bytes of [start, end) that have to be locked one by one: secret memory is locked as it is. */
static size_t to_lock(const fa_region *region, size_t start, size_t end) {
    if (region->lock == FA_OFF) return 0;
    return end - fa_min(end, fa_max(start, region->secret));
}

fa_status fa_region_open(fa_region *region, size_t start, size_t end, bool *locked) {
    fa_protection *record = &region->protection;
    size_t size = to_lock(region, start, end);
    *locked = false;
    if (fa_region_protect(region, start, end, FA_OS_READ_WRITE) != FA_OK) return FA_ERR_NOMEM;
    record->guarded_blocks += region->page;
    if (region->lock == FA_TRY) record->lock_wanted += size;
    else record->lock_wanted = record->locked + size;
    if (size == 0 || region->lock_failed) return FA_OK;
    if (lock_range(region, end - size, end) == 0) {
        record->locked += size;
        *locked = true;
        return FA_OK;
    }
    if (region->lock == FA_REQUIRE) return FA_ERR_LOCK;
    region->lock_failed = true;
    return FA_OK;
}

/* The last `size` bytes before `end`. */
static bool unlock_range(fa_region *region, size_t size, size_t end) {
    return size == 0 || region->os->unlock(region->base + (end - size), size) == 0;
}

bool fa_region_close(fa_region *region, size_t start, size_t end, bool locked) {
    fa_protection *record = &region->protection;
    size_t size = to_lock(region, start, end);
    record->guarded_blocks -= region->page;
    if (region->lock == FA_TRY) record->lock_wanted -= size;
    bool closed = fa_region_protect(region, start, end, FA_OS_NONE) == FA_OK;
    if (!locked) return closed;
    if (!unlock_range(region, size, end)) return false;
    record->locked -= size;
    region->lock_failed = false;
    if (region->lock == FA_REQUIRE) record->lock_wanted = record->locked;
    return closed;
}

bool fa_region_mend(fa_region *region, size_t start, size_t end) {
    end = fa_min(end, region->committed);
    if (start >= end) return true;
    bool closed = fa_region_protect(region, start, end, FA_OS_NONE) == FA_OK;
    return unlock_range(region, to_lock(region, start, end), end) && closed;
}

void fa_region_recount(fa_region *region, uint64_t locked) {
    region->protection.locked = region->secret + locked;
    region->lock_failed = false;
}

/* ---- the rest ---------------------------------------------------------------------------------------------------- */

void fa_region_discard(fa_region *region, size_t end) {
    size_t whole;
    if (region->lost || !fa_align_up(end, region->page, &whole)) return;
    whole = fa_min(whole, region->committed);
    region->lost = true;
    if (whole == 0) return;
    if (region->secret > 0) {
        (void)unmap_above(region, 0);
        return;
    }
    (void)region->os->unlock(region->base, whole); /* or the decommit fails */
    region->protection.locked = 0;
    (void)region->os->decommit(region->base, whole);
}

/* The place of the secret memory, which the child has not got, becomes secret, or ordinary, and zero. It is lost until then. */
static fa_status renew_secret(fa_region *region) {
    size_t secret = region->secret, committed = region->committed;
    region->lost = true;
    if (region->os->reserve_at(region->base, secret) != 0) {
        region->foreign = secret;
        return FA_ERR_NOMEM;
    }
    region->committed = region->secret = 0;
    region->secret_failed = false;
    region->protection.secret = region->protection.no_fork = 0;
    fa_status status = extend_secret(region, secret);
    if (status != FA_OK && region->secret_memory == FA_TRY) {
        region->secret_failed = true;
        status = extend_ordinary(region, secret);
    }
    region->committed = committed;
    region->lost = status != FA_OK;
    return status;
}

void fa_region_fork_child(fa_region *region) {
    fa_protection *record = &region->protection;
    size_t end = (size_t)record->lock_wanted;
    bool by_pages = region->pages != FA_OFF;
    record->locked = record->guarded_blocks = 0;
    if (by_pages) record->lock_wanted = 0;
    region->lock_failed = false;
    if (region->secret > 0 && renew_secret(region) != FA_OK) {
        record->secret = record->no_fork = record->lock_wanted = 0;
        region->secret = 0;
        return;
    }
    if (region->lock == FA_OFF || by_pages) return;
    region->used = 0;
    /* The pages are zero in the child; a lock that cannot be had again shows in the record. */
    if (end > 0 && fa_region_grow(region, fa_min(end, region->capacity)) != FA_OK) region->used = 0;
}

uint64_t fa_region_resident(const fa_region *region, size_t end) {
    uint64_t bytes = 0;
    size_t size;
    if (region->lost || !fa_align_up(end, region->os->page_size(), &size)) return 0;
    size = fa_min(size, region->committed);
    size_t secret = fa_min(size, region->secret); /* the kernel does not tell: what was handed out */
    if (size == secret || region->os->resident(region->base + secret, size - secret, &bytes) != 0) bytes = 0;
    return secret + bytes;
}

void fa_region_get_protection(const fa_region *region, fa_protection *protection) {
    *protection = region->protection;
    protection->lock_limit = region->os->lock_limit();
    protection->no_dump += region->secret; /* by its nature */
}
