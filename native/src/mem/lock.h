/*
 * mem/lock.h - a lock for sections of a few dozen instructions
 *
 * One byte: 0 free, 1 held. Taking it uncontended is one atomic exchange, giving it back one plain store. A waiter
 * spins a little, then yields the processor each turn, because the holder may have been preempted. No section holds it
 * across a system call but the rare growth of a region. Not fair; not recursive; after fork the child must set it free.
 */
#ifndef FA_MEM_LOCK_H
#define FA_MEM_LOCK_H

#include "base.h"
#include "os/os.h"

#include <stdatomic.h>

typedef struct fa_lock {
    atomic_uchar held;
} fa_lock;

#if defined(__x86_64__) || defined(__i386__)
#define FA_PAUSE() __builtin_ia32_pause()
#else
#define FA_PAUSE() ((void)0)
#endif

/* Spins before each yield: about a microsecond, longer than any section that was not preempted. */
#define FA_LOCK_SPINS 200

FA_COLD static void fa_lock_wait(fa_lock *lock, const fa_os *os) {
    do {
        for (int i = 0; i < FA_LOCK_SPINS && atomic_load_explicit(&lock->held, memory_order_relaxed); i++) FA_PAUSE();
        if (atomic_load_explicit(&lock->held, memory_order_relaxed)) os->yield();
    } while (atomic_exchange_explicit(&lock->held, 1, memory_order_acquire));
}

static inline void fa_lock_take(fa_lock *lock, const fa_os *os) {
    if (FA_UNLIKELY(atomic_exchange_explicit(&lock->held, 1, memory_order_acquire))) fa_lock_wait(lock, os);
}

static inline void fa_lock_give(fa_lock *lock) { atomic_store_explicit(&lock->held, 0, memory_order_release); }

#endif
