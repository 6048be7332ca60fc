/*
 * os/wasm.c - the contract of os.h in WebAssembly, over WASI's C library
 *
 *     linear memory   | program, stack, malloc | range | free | range |  malloc's own  | range | end
 *                                                  ^ next ----------------------------------^
 *
 * All memory is one array of bytes that can grow and never shrinks: what is reserved is readable and writable at once, and
 * what is released waits in a list for the next reservation, in the order of addresses, merged with its neighbours. A
 * free range's size and successor stand in its first bytes: nobody else owns them. What was used before is zeroed when it is
 * handed out again; what is new is zero as it comes, and not touched.
 *
 * What differs from the other platforms. There are no guard pages, and nothing can be protected, locked, given back to the host
 * or kept out of its dumps: FA_OS_UNSUPPORTED, and regions report no guards (traps is false). A page is the unit in which
 * ranges are carved; memory grows by 64 KiB. The host may back memory as it is touched, so committing is free. There is no
 * fork. Without threads the lock is never contended, and yield does nothing.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "os.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define PAGE ((size_t)4096)
#define WASM_PAGE_LOG2 16
#define ENTROPY_MOST ((size_t)256) /* of one getentropy */

/* At the beginning of a free range. */
typedef struct range {
    size_t size;
    uintptr_t zero;     /* from this address on all its bytes are zero, but for this struct */
    struct range *next; /* at a higher address, and not touching this one */
} range;

static range *first;
static atomic_flag held = ATOMIC_FLAG_INIT;

static void wasm_yield(void) { (void)sched_yield(); }

static void lock(void) {
    while (atomic_flag_test_and_set_explicit(&held, memory_order_acquire)) wasm_yield();
}
static void unlock(void) { atomic_flag_clear_explicit(&held, memory_order_release); }

static size_t wasm_page_size(void) { return PAGE; }

static uintptr_t end_of(const range *at) { return (uintptr_t)at + at->size; }

/* `below`, which ends where its successor begins, takes it in. */
static void merge_next(range *below) {
    range *above = below->next;
    const range was = *above;
    memset(above, 0, sizeof *above);
    if (was.zero > (uintptr_t)above || below->zero > (uintptr_t)above) below->zero = was.zero;
    below->size += was.size;
    below->next = was.next;
}

/* Puts [start, start + size) into the list; the lock is held. */
static void give(uintptr_t start, size_t size, uintptr_t zero) {
    range **link = &first, *below = NULL;
    while (*link != NULL && (uintptr_t)*link < start) {
        below = *link;
        link = &below->next;
    }
    range *made = (range *)start;
    *made = (range){.size = size, .zero = zero, .next = *link};
    *link = made;
    if (made->next != NULL && end_of(made) == (uintptr_t)made->next) merge_next(made);
    if (below != NULL && end_of(below) == start) merge_next(below);
}

/* Cuts an aligned piece out of a free range; the lock is held. */
static bool cut(range **link, size_t size, size_t alignment, uintptr_t *address, uintptr_t *zero) {
    range *from = *link;
    const range was = *from;
    uintptr_t start = (uintptr_t)from, end = start + was.size;
    uintptr_t aligned = (start + (alignment - 1)) & ~((uintptr_t)alignment - 1);
    if (aligned < start || aligned > end || end - aligned < size) return false;
    *link = was.next;
    memset(from, 0, sizeof *from);
    if (aligned > start) give(start, aligned - start, was.zero);
    if (end > aligned + size) give(aligned + size, end - aligned - size, was.zero);
    *address = aligned;
    *zero = was.zero;
    return true;
}

/* Makes the memory longer, so that an aligned piece fits at its end; the lock is held. */
static bool grow(size_t size, size_t alignment) {
    uint64_t end = (uint64_t)__builtin_wasm_memory_size(0) << WASM_PAGE_LOG2, start = end;
    for (const range *at = first; at != NULL; at = at->next)
        if (end_of(at) == end) start = (uintptr_t)at;
    uint64_t aligned = (start + (alignment - 1)) & ~((uint64_t)alignment - 1), wanted = aligned + size;
    if (wanted >= UINT32_MAX || wanted <= end) return false; /* the last page stays: no range ends at address 0 */
    uint64_t more = ((wanted - end - 1) >> WASM_PAGE_LOG2) + 1;
    size_t before = __builtin_wasm_memory_grow(0, (size_t)more);
    if (before == SIZE_MAX) return false;
    uintptr_t fresh = (uintptr_t)before << WASM_PAGE_LOG2;
    give(fresh, (size_t)more << WASM_PAGE_LOG2, fresh);
    return true;
}

static int wasm_reserve(size_t size, size_t alignment, void **address) {
    uintptr_t found = 0, zero = 0;
    lock();
    for (int tries = 0; tries < 2 && found == 0; tries++) {
        for (range **link = &first; *link != NULL && found == 0; link = &(*link)->next)
            if (cut(link, size, alignment, &found, &zero)) break;
        if (found == 0 && !grow(size, alignment)) break;
    }
    unlock();
    if (found == 0) return ENOMEM;
    size_t dirty = zero <= found ? 0 : zero - found;
    memset((void *)found, 0, dirty < size ? dirty : size);
    *address = (void *)found;
    return 0;
}

static int wasm_release(void *address, size_t size) {
    lock();
    give((uintptr_t)address, size, (uintptr_t)address + size);
    unlock();
    return 0;
}

static int wasm_commit(void *address, size_t size) {
    (void)address, (void)size;
    return 0;
}

static int unsupported(void *address, size_t size) {
    (void)address, (void)size;
    return FA_OS_UNSUPPORTED;
}

static int wasm_map_huge(size_t size, size_t huge_size, void **address) {
    (void)size, (void)huge_size, (void)address;
    return FA_OS_UNSUPPORTED;
}

static int wasm_remap(void *address, size_t old_size, size_t new_size, void **moved) {
    (void)address, (void)old_size, (void)new_size, (void)moved;
    return FA_OS_UNSUPPORTED;
}

static int wasm_protect(void *address, size_t size, fa_os_access access) {
    (void)address, (void)size, (void)access;
    return FA_OS_UNSUPPORTED;
}

static uint64_t wasm_lock_limit(void) { return 0; }

/* What the host has backed is not for a module to know. */
static int wasm_resident(void *address, size_t size, uint64_t *bytes) {
    (void)address, (void)size;
    *bytes = 0;
    return FA_OS_UNSUPPORTED;
}

/* No process is a copy of another: there is nothing to run the functions at. */
static int wasm_at_fork(void (*prepare)(void), void (*parent)(void), void (*child)(void)) {
    (void)prepare, (void)parent, (void)child;
    return 0;
}

static int wasm_random(void *bytes, size_t size) {
    int caller_errno = errno, error = 0;
    for (size_t done = 0; done < size && error == 0;) {
        size_t step = size - done < ENTROPY_MOST ? size - done : ENTROPY_MOST;
        error = getentropy((unsigned char *)bytes + done, step) == 0 ? 0 : errno;
        done += step;
    }
    errno = caller_errno;
    return error;
}

/* The one thread ends with the program; one key is all that anybody makes. */
static int wasm_make_exit_key(void (*ending)(void *), unsigned *key) {
    (void)ending;
    *key = 0;
    return 0;
}

static void *exit_value;

static int wasm_set_exit_value(unsigned key, void *value) {
    (void)key;
    exit_value = value;
    return 0;
}

static void *wasm_exit_value(unsigned key) {
    (void)key;
    return exit_value;
}

static int wasm_fence_threads(bool prepare) {
    (void)prepare;
    return 0; /* there are no others */
}

static uint64_t wasm_milliseconds(void) {
    struct timespec now;
    if (clock_gettime(CLOCK_MONOTONIC, &now) != 0) return 0;
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* What malloc gave stands right below the block. Not posix_memalign: a C library was seen whose large alignments are none. */
static void *wasm_heap_alloc(size_t size, size_t alignment) {
    if (alignment < _Alignof(max_align_t)) alignment = _Alignof(max_align_t);
    if (size > SIZE_MAX - alignment - sizeof(void *)) return NULL;
    void *given = malloc(size + alignment + sizeof(void *));
    if (given == NULL) return NULL;
    uintptr_t block = ((uintptr_t)given + sizeof(void *) + (alignment - 1)) & ~((uintptr_t)alignment - 1);
    ((void **)block)[-1] = given;
    return (void *)block;
}

static void wasm_heap_free(void *block) {
    if (block != NULL) free(((void **)block)[-1]);
}

static void wasm_report(const char *text, size_t size) {
    while (size > 0) {
        ssize_t written = write(STDERR_FILENO, text, size);
        if (written <= 0) return; /* nowhere left to complain */
        text += written;
        size -= (size_t)written;
    }
}

static void wasm_abort(void) { abort(); }

static const fa_os wasm_os = {
    .name = "wasm",
    .lazy_commit = true,
    .traps = false,
    .page_size = wasm_page_size,
    .reserve = wasm_reserve,
    .map_huge = wasm_map_huge,
    .release = wasm_release,
    .commit = wasm_commit,
    .decommit = unsupported,
    .remap = wasm_remap,
    .protect = wasm_protect,
    .map_secret = unsupported,
    .unmap_secret = unsupported,
    .reserve_at = unsupported,
    .lock = unsupported,
    .unlock = unsupported,
    .lock_limit = wasm_lock_limit,
    .no_dump = unsupported,
    .wipe_on_fork = unsupported,
    .advise_huge = unsupported,
    .resident = wasm_resident,
    .at_fork = wasm_at_fork,
    .random = wasm_random,
    .make_exit_key = wasm_make_exit_key,
    .set_exit_value = wasm_set_exit_value,
    .exit_value = wasm_exit_value,
    .fence_threads = wasm_fence_threads,
    .milliseconds = wasm_milliseconds,
    .yield = wasm_yield,
    .heap_alloc = wasm_heap_alloc,
    .heap_free = wasm_heap_free,
    .report = wasm_report,
    .abort = wasm_abort,
};

const fa_os *fa_os_platform(void) { return &wasm_os; }
