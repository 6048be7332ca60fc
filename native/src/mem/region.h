/*
 * mem/region.h - reserved address space, guard pages, and a record of the protections that took effect
 *
 *     | guard | base ............ used ............ committed ............ capacity | guard |
 *               <-- secret --><-- locked ------->
 *
 * Two ways to use it. Whole: [0, used) is accessible, and locking follows it. By pages (spec.pages): nothing is
 * accessible but the ranges that are open, each locked by itself, so what is not open guards what is.
 *
 * Invariants: base is aligned as asked; used <= committed <= capacity; secret memory is a prefix, and locked; used whole,
 * everything in [0, locked) is locked; whatever was required of the spec holds for all of [0, used), or all that is
 * open. The record says what is true, never what was wished.
 * Thread rule: the owner's lock. Cost: create and destroy are a few system calls; use is a compare unless it grows.
 */
#ifndef FA_MEM_REGION_H
#define FA_MEM_REGION_H

#include "base.h"
#include "fastalloc.h"
#include "os/os.h"

typedef struct fa_region_spec {
    size_t capacity;
    size_t alignment; /* of base; at least a page is given */
    fa_huge_pages huge_pages;
    fa_want guard_pages;
    fa_want lock;
    fa_want no_dump;
    fa_want wipe_on_fork;
    fa_want secret_memory;
    fa_want pages; /* FA_TRY: if the platform cannot, the region is used whole */
} fa_region_spec;

typedef struct fa_region {
    const fa_os *os;
    unsigned char *base;
    size_t capacity;   /* usable bytes from base */
    size_t page;
    size_t used;       /* bytes from base that may be touched now */
    size_t committed;  /* bytes from base that are accessible */
    size_t secret;     /* bytes from base that are secret memory; no less than `committed` unless a try failed */
    fa_want lock, no_dump, wipe_on_fork, secret_memory;
    fa_want pages;     /* not FA_OFF: nothing is accessible but what is open */
    bool lock_failed;  /* a try failed: do not ask the kernel again at every growth */
    bool secret_failed;
    bool lost;         /* given up, or not to be had again in a forked child: nothing may be touched */
    size_t foreign;    /* bytes from base that somebody else took meanwhile */
    void *reserved;    /* the reservation, guards included */
    size_t reserved_size;
    fa_protection protection;
} fa_region;

/* Commits items [from, to) of an array in reserved memory. */
bool fa_commit_items(const fa_os *os, void *array, size_t item_size, size_t from, size_t to);

fa_status fa_region_create(fa_region *region, const fa_os *os, const fa_region_spec *spec);
void fa_region_destroy(fa_region *region);

/* Makes [0, end) usable; end <= capacity. */
fa_status fa_region_grow(fa_region *region, size_t end);
static inline fa_status fa_region_use(fa_region *region, size_t end) {
    return FA_LIKELY(end <= region->used) ? FA_OK : fa_region_grow(region, end);
}

/* Gives whole pages in [start, end) back to the system, unless they are locked; they read zero afterwards. Adds the
 * bytes given back to *given. */
fa_status fa_region_decommit(fa_region *region, size_t start, size_t end, size_t *given);

/* Unlocks and forgets what lies above `end`, so that it can be decommitted; it is locked again when used. */
fa_status fa_region_shrink(fa_region *region, size_t end);

/* By pages: opens [start, end), whole pages that are usable and have a closed one after them. *locked: by a call of its
 * own. FA_ERR_LOCK: they are open and must be closed again. FA_ERR_NOMEM: nothing has changed. */
fa_status fa_region_open(fa_region *region, size_t start, size_t end, bool *locked);

/* Makes what was opened inaccessible again, and unlocks it. False: that failed, and fa_region_mend has to do it. */
bool fa_region_close(fa_region *region, size_t start, size_t end, bool locked);

/* Closes pages that are not open but may be so after a failure; fa_region_recount says what is locked of what is open. */
bool fa_region_mend(fa_region *region, size_t start, size_t end);
void fa_region_recount(fa_region *region, uint64_t locked);

/* What may be done with whole pages that are usable; their contents, and locks, stay. */
fa_status fa_region_protect(fa_region *region, size_t start, size_t end, fa_os_access access);

/* The contents of [0, end) are given up without writing to them: of memory that cannot be opened any more. */
void fa_region_discard(fa_region *region, size_t end);

/* A forked child inherits no locks, and has no secret memory: it gets both, zero. By pages, all of them are closed. */
void fa_region_fork_child(fa_region *region);

/* Bytes of [0, end) in physical memory. Cost: a system call for every 16 MiB. */
uint64_t fa_region_resident(const fa_region *region, size_t end);
void fa_region_get_protection(const fa_region *region, fa_protection *protection);

#endif
