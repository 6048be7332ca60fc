/*
 * mem/region.h - reserved address space, guard pages, and a record of the protections that took effect
 *
 *     | guard | base ............ used ............ committed ............ capacity | guard |
 *               <-- locked ------------>
 *
 * Invariants: base is aligned as asked; used <= committed <= capacity; everything in [0, locked) is locked; whatever was
 * required of the spec holds for all of [0, used). The record says what is true, never what was wished.
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
} fa_region_spec;

typedef struct fa_region {
    const fa_os *os;
    unsigned char *base;
    size_t capacity;   /* usable bytes from base */
    size_t page;
    size_t used;       /* bytes from base that may be touched now */
    size_t committed;  /* bytes from base that are accessible */
    fa_want lock;
    bool lock_failed;  /* a try failed: do not ask the kernel again at every growth */
    void *reserved;    /* the reservation, guards included */
    size_t reserved_size;
    fa_protection protection;
} fa_region;

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

/* A forked child inherits no locks. */
void fa_region_fork_child(fa_region *region);

/* Bytes of [0, end) in physical memory. Cost: a system call for every 16 MiB. */
uint64_t fa_region_resident(const fa_region *region, size_t end);
void fa_region_get_protection(const fa_region *region, fa_protection *protection);

#endif
