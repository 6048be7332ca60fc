/*
 * os/os.h - floor 0: what fastalloc asks of an operating system
 *
 *     heap  ->  mem  ->  fa_os { reserve, commit, ..., free }  ->  linux.c | macos.c | windows.c | wasm.c
 *
 * One struct of functions, one instance per platform, no state. Everything above reaches the system through the pointer
 * it was given, so a test can pass an instance whose n-th call fails.
 *
 * Contract
 *   - Functions return 0 or an errno value; they never set errno for the caller and never print.
 *   - Addresses and sizes are multiples of page_size() unless a function says otherwise; sizes are not 0.
 *   - What a platform cannot do returns FA_OS_UNSUPPORTED; it is never faked.
 *   - All functions may be called by any thread at any time.
 */
#ifndef FA_OS_H
#define FA_OS_H

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FA_OS_UNSUPPORTED ENOTSUP

typedef enum fa_os_access { FA_OS_NONE, FA_OS_READ, FA_OS_READ_WRITE } fa_os_access;

typedef struct fa_os {
    const char *name;

    /* True if committing reserved memory costs nothing until it is touched: regions then commit all of it at once. */
    bool lazy_commit;

    /* True if touching reserved memory that was not committed ends the program. Where it does not, there are no guard pages
     * and regions report none. */
    bool traps;

    size_t (*page_size)(void);

    /* Address space, inaccessible, aligned to `alignment` (a power of two; at least a page). Charged to no limit but
     * the address space itself. */
    int (*reserve)(size_t size, size_t alignment, void **address);

    /* Readable, writable, zero. `huge_size` bytes per page from the kernel's reserved pool, all of it or an error. */
    int (*map_huge)(size_t size, size_t huge_size, void **address);

    /* Gives a reservation (or a mapping) back, or committed whole pages of it, or of neighbours. Never fails for what was
     * reserved. */
    int (*release)(void *address, size_t size);

    /* Makes reserved memory readable and writable. It is zero the first time, and after a decommit. What is committed already
     * stays as it is. */
    int (*commit)(void *address, size_t size);

    /* Gives the pages back but keeps the addresses; they are zero when touched again. What may be
     * done with the pages stays. A failure leaves them as they were. Not for locked memory: what becomes of the lock differs. */
    int (*decommit)(void *address, size_t size);

    /* Resizes a committed reservation, moving its pages to another address if it must. The old range is gone; what is
     * new is zero. */
    int (*remap)(void *address, size_t old_size, size_t new_size, void **moved);

    /* Changes what may be done with committed (or secret) memory; its contents stay. */
    int (*protect)(void *address, size_t size, fa_os_access access);

    /* Reserved memory becomes readable, writable, zero and *secret*: locked, out of core dumps, out of the kernel's own
     * map and so out of a debugger's reach, and not in a forked child, which has nothing at these addresses. All of
     * it, or an error and the memory reserved as before. Not for lock, unlock, decommit, no_dump and wipe_on_fork. */
    int (*map_secret)(void *address, size_t size);

    /* Secret memory becomes reserved memory again, its contents gone. */
    int (*unmap_secret)(void *address, size_t size);

    /* Reserves exactly this range, or fails if anything is there: for a forked child, where secret memory was. */
    int (*reserve_at)(void *address, size_t size);

    /* Moves committed pages onto others, which vanish; the old range is gone. An error leaves both as they were, or, at the very
     * worst, both unusable. Null: the platform cannot, and the caller copies. */
    int (*move)(void *address, size_t size, void *to);

    int (*lock)(void *address, size_t size);
    int (*unlock)(void *address, size_t size);
    uint64_t (*lock_limit)(void); /* bytes that the process may lock; UINT64_MAX: no limit */

    int (*no_dump)(void *address, size_t size);
    int (*wipe_on_fork)(void *address, size_t size);
    int (*advise_huge)(void *address, size_t size);

    /* How many bytes of the range are in physical memory. */
    int (*resident)(void *address, size_t size, uint64_t *bytes);

    /* Registers functions for fork: nothing but the C library's own handlers runs between prepare and the others. */
    int (*at_fork)(void (*prepare)(void), void (*parent)(void), void (*child)(void));

    /* Any address and size: bytes that nobody can guess. */
    int (*random)(void *bytes, size_t size);

    /* A function that every thread runs when it ends, with the value it has set for the key, unless that is null. Setting a
     * value must not need memory from malloc in a thread that has few of them. */
    int (*make_exit_key)(void (*ending)(void *value), unsigned *key);
    int (*set_exit_value)(unsigned key, void *value);
    void *(*exit_value)(unsigned key); /* null until this thread has set one */

    /* Returns after every other thread of the process that is running has executed a full memory barrier. The first call
     * with `prepare` true must have succeeded. */
    int (*fence_threads)(bool prepare);

    uint64_t (*milliseconds)(void); /* a clock that never goes back */
    void (*yield)(void);

    /* The C library's heap: for blocks that fall back to it. `alignment` is a power of two. */
    void *(*heap_alloc)(size_t size, size_t alignment);
    void (*heap_free)(void *block);
    size_t (*heap_usable)(const void *block); /* bytes that the block has; null: the platform does not tell */

    /* One line to standard error without allocating, and the end of the process. */
    void (*report)(const char *text, size_t size);
    void (*abort)(void);
} fa_os;

/* The instance of the platform this was compiled for. */
const fa_os *fa_os_platform(void);

#endif
