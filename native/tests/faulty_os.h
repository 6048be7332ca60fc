/*
 * faulty_os.h - an operating system that keeps books, and whose n-th call of one kind fails
 *
 *     heap  ->  faulty os  ->  real os          fault.kind, fault.after: which call fails
 *                  |                            fault.count[kind]: how many there were
 *                  `-- every range mapped, every block of the C heap
 *
 * What is released must have been mapped, and at the end of a scenario nothing may be left. The clock stands still unless a
 * test moves it. One thread only.
 */
#ifndef FAULTY_OS_H
#define FAULTY_OS_H

#include <stddef.h>

#include "os/os.h"
#include "support.h"

typedef enum call {
    RESERVE, MAP_HUGE, COMMIT, DECOMMIT, REMAP, LOCK, UNLOCK, NO_DUMP, WIPE_ON_FORK, ADVISE_HUGE, RESIDENT, HEAP_ALLOC,
    PROTECT, MAP_SECRET, UNMAP_SECRET, RANDOM, MOVE, CALLS,
    RELEASE = CALLS, FENCE, EXIT_KEY, ALL_CALLS /* these fail for the global heap only: what an arena cannot release is lost */
} call;

static const char *const call_names[ALL_CALLS] = {"reserve", "map_huge", "commit", "decommit", "remap", "lock", "unlock",
                                              "no_dump", "wipe_on_fork", "advise_huge", "resident", "heap_alloc",
                                              "protect", "map_secret", "unmap_secret", "random", "move",
                                              "release", "fence_threads", "make_exit_key"};

typedef struct mapped_range {
    uintptr_t start, end;
} mapped_range;
#define MAX_RANGES 8192

static struct {
    call kind;         /* the kind that fails */
    int after;         /* how many of it succeed first; < 0: none fails */
    bool failed;
    bool for_ever;     /* not once, but from then on */
    int count[ALL_CALLS];
    size_t largest;    /* reservations above it are refused; 0: none is */
    uint64_t now;      /* milliseconds */
    size_t committed;  /* bytes that were committed */
    ptrdiff_t mapped;  /* bytes reserved and not released */
    ptrdiff_t blocks;  /* of the C heap */
    size_t ranges;
    mapped_range range[MAX_RANGES];
    size_t page;       /* larger than the system's, to see who asks for parts of one; 0: as the system's */
} fault;

static const fa_os *real;

/* Counts afresh; nothing fails. */
UNUSED static void no_fault(void) {
    memset(&fault, 0, offsetof(__typeof__(fault), mapped));
    fault.after = -1;
}

static bool fails(call kind) {
    const int number = fault.count[kind]++;
    if (fault.after < 0 || fault.kind != kind) return false;
    if (number != fault.after && !(fault.for_ever && number > fault.after)) return false;
    fault.failed = true;
    return true;
}

static void book_mapped(const void *address, size_t size) {
    CHECK(fault.ranges < MAX_RANGES);
    fault.range[fault.ranges++] = (mapped_range){(uintptr_t)address, (uintptr_t)address + size};
    fault.mapped += (ptrdiff_t)size;
}

static size_t f_page_size(void) { return fault.page != 0 ? fault.page : real->page_size(); }

/* What the contract asks for. */
static void check_whole(const void *address, size_t size) {
    CHECK(size > 0 && (((uintptr_t)address | size) & (f_page_size() - 1)) == 0);
}

static bool is_booked(const void *address, size_t size) {
    const uintptr_t start = (uintptr_t)address, end = start + size;
    size_t found = 0;
    for (size_t i = 0; i < fault.ranges; i++) {
        const mapped_range at = fault.range[i];
        if (at.end > start && at.start < end) found += (at.end < end ? at.end : end) - (at.start > start ? at.start : start);
    }
    return found == size;
}

/* A range may be released in parts, and neighbouring ones at once: what is released must lie in what is mapped. */
static void book_released(const void *address, size_t size) {
    const uintptr_t start = (uintptr_t)address, end = start + size;
    size_t found = 0;
    for (size_t i = 0; i < fault.ranges; i++) {
        mapped_range at = fault.range[i];
        if (at.end <= start || at.start >= end) continue;
        const mapped_range below = {at.start, start}, above = {end, at.end};
        found += (at.end < end ? at.end : end) - (at.start > start ? at.start : start);
        fault.range[i] = fault.range[--fault.ranges];
        i--;
        if (below.start < below.end) fault.range[fault.ranges++] = below;
        if (above.start < above.end) fault.range[fault.ranges++] = above;
    }
    CHECK(found == size);
    fault.mapped -= (ptrdiff_t)size;
}

static int f_reserve(size_t size, size_t alignment, void **address) {
    check_whole((void *)(alignment & (f_page_size() - 1)), size);
    if (fails(RESERVE) || (fault.largest != 0 && size > fault.largest)) return ENOMEM;
    const int error = real->reserve(size, alignment, address);
    if (error == 0) book_mapped(*address, size);
    return error;
}
static int f_map_huge(size_t size, size_t huge_size, void **address) {
    if (fails(MAP_HUGE)) return ENOMEM;
    const int error = real->map_huge(size, huge_size, address);
    if (error == 0) book_mapped(*address, size);
    return error;
}
static int f_release(void *address, size_t size) {
    check_whole(address, size);
    if (fails(RELEASE)) return ENOMEM;
    const int error = real->release(address, size);
    if (error == 0) book_released(address, size);
    return error;
}
/* The system's own is aligned to its own pages only. */
static int remap_by_copy(void *address, size_t old_size, size_t new_size, void **moved) {
    const int error = real->reserve(new_size, fault.page, moved);
    if (error != 0) return error;
    CHECK(real->commit(*moved, new_size) == 0);
    memcpy(*moved, address, old_size < new_size ? old_size : new_size);
    return real->release(address, old_size);
}
static int f_remap(void *address, size_t old_size, size_t new_size, void **moved) {
    check_whole(address, old_size);
    check_whole(address, new_size);
    if (fails(REMAP)) return ENOMEM;
    const int error = fault.page != 0 ? remap_by_copy(address, old_size, new_size, moved)
                                      : real->remap(address, old_size, new_size, moved);
    if (error == 0) {
        book_released(address, old_size);
        book_mapped(*moved, new_size);
    }
    return error;
}
static int f_move(void *address, size_t size, void *to) {
    check_whole(address, size);
    check_whole(to, size);
    CHECK(is_booked(address, size) && is_booked(to, size));
    if (fails(MOVE)) return EFAULT;
    const int error = real->move(address, size, to);
    if (error == 0) book_released(address, size); /* the destination was mapped, and is */
    return error;
}
static int f_commit(void *address, size_t size) {
    check_whole(address, size);
    if (fails(COMMIT)) return ENOMEM;
    fault.committed += size;
    return real->commit(address, size);
}
static int f_decommit(void *address, size_t size) {
    check_whole(address, size);
    return fails(DECOMMIT) ? EINVAL : real->decommit(address, size);
}
static int f_lock(void *address, size_t size) {
    check_whole(address, size);
    return fails(LOCK) ? ENOMEM : real->lock(address, size);
}
static int f_unlock(void *address, size_t size) {
    check_whole(address, size);
    return fails(UNLOCK) ? ENOMEM : real->unlock(address, size);
}
static int f_no_dump(void *address, size_t size) {
    check_whole(address, size);
    return fails(NO_DUMP) ? EINVAL : real->no_dump(address, size);
}
static int f_wipe_on_fork(void *address, size_t size) {
    check_whole(address, size);
    return fails(WIPE_ON_FORK) ? EINVAL : real->wipe_on_fork(address, size);
}
static int f_advise_huge(void *address, size_t size) {
    check_whole(address, size);
    return fails(ADVISE_HUGE) ? EINVAL : real->advise_huge(address, size);
}
static int f_resident(void *address, size_t size, uint64_t *bytes) {
    check_whole(address, size);
    return fails(RESIDENT) ? EAGAIN : real->resident(address, size, bytes);
}
static int f_protect(void *address, size_t size, fa_os_access access) {
    check_whole(address, size);
    return fails(PROTECT) ? ENOMEM : real->protect(address, size, access);
}
static int f_map_secret(void *address, size_t size) {
    check_whole(address, size);
    return fails(MAP_SECRET) ? EAGAIN : real->map_secret(address, size);
}
static int f_unmap_secret(void *address, size_t size) {
    check_whole(address, size);
    return fails(UNMAP_SECRET) ? ENOMEM : real->unmap_secret(address, size);
}
/* The same bytes in every run. */
static int f_random(void *bytes, size_t size) {
    if (fails(RANDOM)) return EIO;
    fill(bytes, size, (uint64_t)fault.count[RANDOM]);
    return 0;
}
static int f_fence_threads(bool prepare) { return fails(FENCE) ? EPERM : real->fence_threads(prepare); }
static int f_make_exit_key(void (*ending)(void *), unsigned *key) {
    return fails(EXIT_KEY) ? EAGAIN : real->make_exit_key(ending, key);
}
static uint64_t f_milliseconds(void) { return fault.now; }
static void *f_heap_alloc(size_t size, size_t alignment) {
    if (fails(HEAP_ALLOC)) return NULL;
    void *block = real->heap_alloc(size, alignment);
    fault.blocks += block != NULL;
    return block;
}
static void f_heap_free(void *block) {
    fault.blocks -= block != NULL;
    real->heap_free(block);
}

static fa_os faulty_os(bool lazy_commit) {
    real = fa_os_platform();
    fa_os os = *real;
    os.name = "faulty";
    os.lazy_commit = lazy_commit;
    os.page_size = f_page_size;
    os.reserve = f_reserve;
    os.map_huge = f_map_huge;
    os.release = f_release;
    os.commit = f_commit;
    os.decommit = f_decommit;
    os.remap = f_remap;
    if (os.move != NULL) os.move = f_move;
    os.lock = f_lock;
    os.unlock = f_unlock;
    os.no_dump = f_no_dump;
    os.wipe_on_fork = f_wipe_on_fork;
    os.advise_huge = f_advise_huge;
    os.resident = f_resident;
    os.protect = f_protect;
    os.map_secret = f_map_secret;
    os.unmap_secret = f_unmap_secret;
    os.random = f_random;
    os.fence_threads = f_fence_threads;
    os.make_exit_key = f_make_exit_key;
    os.milliseconds = f_milliseconds;
    os.heap_alloc = f_heap_alloc;
    os.heap_free = f_heap_free;
    return os;
}

/* For what cannot be destroyed (the heap for arrays): takes all its mappings away. */
UNUSED static void release_all_ranges(void) {
    while (fault.ranges > 0) {
        const mapped_range last = fault.range[fault.ranges - 1];
        (void)f_release((void *)last.start, last.end - last.start);
    }
}

typedef void scenario(const fa_os *os);

/* One thread has no races: under ThreadSanitizer, and where all is slow, a few of the faults are enough. */
#define NEXT_FAULT(after) (UNDER_MEMCHECK ? 20 + 3 * (after) : UNDER_TSAN || UNDER_VALGRIND ? 17 : 1)
#define MOST_FAULTS 2000

/* Runs the scenario with the n-th call of each kind failing, once and for ever, for every n until none is left. */
UNUSED static void run_with_every_fault(scenario *run, bool lazy_commit) {
    const fa_os os = faulty_os(lazy_commit);
    no_fault();
    run(&os);
    CHECK(fault.mapped == 0 && fault.blocks == 0);
    for (int kind = 0; kind < CALLS; kind++) {
        for (int for_ever = 0; for_ever < 2; for_ever++) {
            for (int after = 0;; after += NEXT_FAULT(after)) {
                CHECK(after < MOST_FAULTS); /* or the scenario is too long to be tested whole */
                no_fault();
                fault.kind = (call)kind;
                fault.after = after;
                fault.for_ever = for_ever != 0;
                run(&os);
                if (fault.mapped != 0 || fault.blocks != 0) {
                    printf("# %s number %d failing%s: %td bytes mapped and %td blocks were lost\n", call_names[kind],
                           after + 1, for_ever ? " for ever" : "", fault.mapped, fault.blocks);
                }
                CHECK(fault.mapped == 0 && fault.blocks == 0);
                if (!fault.failed) break;
            }
        }
    }
}

/*
 * For the global heap, of which a process has one: a child for each fault. The scenario starts the heap with what faulty_os()
 * gives, and returns what scenario_end() says. Returns how many kinds of calls it made.
 */
#define NO_FAULT 42 /* so many calls are not made */
UNUSED static int scenario_end(void) { return fault.failed ? 0 : NO_FAULT; }

#if defined(CHILD_H)
UNUSED static int survive_every_fault(int (*run)(void *)) {
    int kinds = 0;
    for (int kind = 0; kind < ALL_CALLS; kind++) {
        for (int for_ever = 0; for_ever < 2; for_ever++) {
            int after = 0;
            for (bool reached = true; reached; after += (UNDER_SANITIZER || UNDER_VALGRIND ? 15 : 1) + after / 2) {
                no_fault();
                fault.kind = (call)kind;
                fault.after = after;
                fault.for_ever = for_ever == 1;
                const child_end end = run_in_child(run, NULL);
                const bool well = end.signal == 0 && (end.exit_status == 0 || end.exit_status == NO_FAULT);
                if (!well) printf("# %s, call %d: signal %d\n%s\n", call_names[kind], after, end.signal, end.errors);
                CHECK(well);
                reached = end.exit_status == 0 && after < 60;
                kinds += reached && after == 0 && for_ever == 0;
            }
        }
    }
    return kinds;
}
#endif

#endif
