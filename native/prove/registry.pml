/*
 * registry.pml - a lock of one byte, parts handed to threads on their first visit, and a fork: mem/lock.h, find_thread and
 * FOR_EACH_THREAD in heap/bumped.c, fa_arena_fork_* in heap/arena.c
 *
 * Mirrors: take and give of the lock; a thread's search for its part, and its making one; the last part, which all threads
 * beyond PARTS share under the lock; a reader that looks at all parts without the lock; a fork that holds the lock meanwhile.
 *
 * Shown for THREADS threads and PARTS parts: the lock excludes; no two threads have one part, and the shared one is used under
 * the lock; a part that a reader sees has an owner; what the child of a fork sees is whole, and its lock is free; no deadlock.
 * Not modelled: the spinning before a yield; weak memory (the count is released and acquired, the rest is under the lock).
 *
 * Mutations: -DBUG=1 the lock is tested, then set; 2 the count goes up before the part has its owner; 3 the search is without
 * the lock; 4 the shared part is used without the lock; 5 a fork does not take the lock.
 */
#ifndef BUG
#define BUG 0
#endif
#define THREADS 3
#define PARTS 1

bit held;
byte parts;                 /* arena.threads: released after the owner was written */
byte owner[PARTS];          /* thread + 1; 0: nobody */
byte using[PARTS + 1];      /* threads that bump in the part now; [PARTS] is the shared one */
byte inside;                /* threads in the locked section */
bit a, b;                   /* what the lock protects: equal when nobody is inside */

inline take_lock() {
#if BUG == 1
    held == 0;
    held = 1;
#else
    atomic { held == 0 -> held = 1 }
#endif
    inside++;
    assert(inside == 1)
}

inline give_lock() {
    inside--;
    held = 0
}

inline find_thread() {
#if BUG != 3
    take_lock();
#endif
    i = 0;
    do
    :: i < parts && owner[i] != me + 1 -> i++
    :: else -> break
    od;
    if
    :: i < parts -> part = i
    :: i >= parts && parts < PARTS ->
        part = parts;
#if BUG == 2
        parts = part + 1;
        owner[part] = me + 1
#else
        owner[part] = me + 1;
        parts = part + 1
#endif
    :: else -> part = PARTS
    fi;
    a = 1 - a;
    b = 1 - b;
#if BUG != 3
    give_lock()
#endif
}

inline bump_in_part() {
    if
    :: part == PARTS ->
#if BUG != 4
        take_lock();
#endif
        using[PARTS]++;
        assert(using[PARTS] == 1);
        using[PARTS]--;
#if BUG != 4
        give_lock()
#endif
    :: else ->
        using[part]++;
        assert(using[part] == 1);
        using[part]--
    fi
}

proctype worker(byte me) {
    byte i, part;
    find_thread();
    bump_in_part();
    find_thread(); /* it finds the same again */
    bump_in_part()
}

proctype reader() {
    byte i, count;
    count = parts;
    do
    :: i < count -> assert(owner[i] != 0); i++
    :: else -> break
    od
}

/* The child is a copy of the moment: its lock, and what it protects. */
proctype forker() {
    bit child_held, child_a, child_b;
#if BUG != 5
    take_lock();
#endif
    d_step { child_held = held; child_a = a; child_b = b }
#if BUG != 5
    give_lock();      /* the parent */
    child_held = 0;   /* the child: fa_arena_fork_child */
#endif
    assert(child_a == child_b);
    assert(child_held == 0)
}

init {
    byte n;
    atomic {
        n = 0;
        do
        :: n < THREADS -> run worker(n); n++
        :: else -> break
        od;
        run reader();
        run forker()
    }
}
