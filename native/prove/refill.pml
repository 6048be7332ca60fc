/*
 * refill.pml - chunks from a shared cursor, against release and trim: mem/bump.c, heap/bumped.c, trim in heap/arena.c
 *
 * Mirrors, step by step where a step is one atomic access:
 *     take      fa_arena_alloc: is my chunk of this epoch, is there room, move my cursor
 *     refill    fa_bump_refill: in the chunk, extend it where it stands, or a new one: one compare-and-swap
 *     retract   fa_bumped_retract: what is left of my chunk goes back to the shared cursor
 *     trim_top  trim_bump_top: takes [cursor, high) away from the others while its pages go
 *     release   fa_bumped_release: a new epoch, the cursor back; nobody allocates then
 *
 * Shown for THREADS threads and LIMIT granules: no granule is in two live blocks; a block promised to be zero is zero, so `high`
 * and `dirty` bound what was written; the cursor stays within the limit; no deadlock.
 * Not modelled: alignment, the size of blocks beyond one and two granules, weak memory (what orders the accesses in C
 * is the lock, and the compare-and-swap on the cursor: taking acquires what giving back released; ThreadSanitizer looks at that).
 *
 * Mutations: -DBUG=1 a store in place of the compare-and-swap of refill; 2 the epoch is not asked for; 3 retract raises `high`
 * only after giving the memory back; 4 trim_top does not take the range first; 5 forgets what was below the cursor.
 */
#ifndef BUG
#define BUG 0
#endif
#ifndef THREADS
#define THREADS 2
#endif
#define LIMIT 5
#define CHUNK 2     /* granules that a refill takes beyond what is asked */
#ifndef STEPS
#define STEPS 3     /* operations of each thread */
#endif

byte shared;        /* bump.cursor */
byte epoch = 1;
byte high;          /* arena.high: what lies above was never written, or is zero again */
byte lock;
byte inside;        /* threads in an operation that allocates: release waits until there are none */
bool releasing;

bit live[LIMIT];    /* the granule is in a block */
bit written[LIMIT];

typedef chunk { byte cursor, end, epoch, high };
chunk mine[THREADS];

inline take_lock() { atomic { lock == 0 -> lock = 1 } }
inline give_lock() { lock = 0 }
inline enter() { atomic { !releasing -> inside++ } }
inline leave() { inside-- }

/* `newest` is where my newest block of one granule ends. The user has [from, from + count) and writes it; `zeroed`: below `dirty` the arena has cleared it. */
inline use(from, count, zeroed, dirty) {
    d_step {
        i = from;
        do
        :: i < from + count ->
            assert(!live[i]);
            if
            :: zeroed && i < dirty -> written[i] = 0
            :: else -> skip
            fi;
            assert(!zeroed || !written[i]);
            live[i] = 1;
            written[i] = 1;
            i++
        :: else -> break
        od;
        i = 0;
        newest = (count == 1 -> from + 1 : 0)
    }
}

inline take() {
    enter();
#if BUG == 2
    if
    :: mine[me].cursor < mine[me].end ->
#else
    if
    :: mine[me].epoch == epoch && mine[me].cursor < mine[me].end ->
#endif
        start = mine[me].cursor;
        mine[me].cursor = start + 1;
        use(start, 1, 0, 0)
    :: else -> refill(1, 0)
    fi;
    leave()
}

inline refill(size, zeroed) {
    /* settle: a new epoch starts its counts afresh */
    if
    :: mine[me].epoch != epoch -> mine[me].high = 0
    :: else -> skip
    fi;
    done = 0;
    newest = 0;
    if
    :: mine[me].epoch == epoch && mine[me].cursor + size <= mine[me].end ->
        start = mine[me].cursor;
        mine[me].cursor = start + size;
        done = 1
    :: else -> seen = shared
    fi;
    do
    :: done != 0 -> break
    :: else ->
        topmost = (mine[me].epoch == epoch && mine[me].end == seen);
        start = (topmost -> mine[me].cursor : seen);
        if
        :: start + size > LIMIT -> done = 2
        :: else ->
            spare = (start + size + CHUNK > LIMIT -> LIMIT - start - size : CHUNK);
            if
#if BUG == 1
            :: true -> shared = start + size + spare; done = 1;
#else
            :: atomic { shared == seen -> shared = start + size + spare }; done = 1;
#endif
                mine[me].cursor = start + size;
                mine[me].end = start + size + spare;
                mine[me].epoch = epoch
#if BUG != 1
            :: atomic { shared != seen -> seen = shared }
#endif
            fi
        fi
    od;
    if
    :: done == 1 ->
        dirty = (high > mine[me].high -> high : mine[me].high);
        use(start, size, zeroed, dirty)
    :: else -> skip
    fi;
    done = 0
}

/* Frees the newest block of the chunk, if it is one granule and mine: fa_bumped_free. */
inline free_newest() {
    enter();
    if
    :: mine[me].epoch == epoch && newest > 0 && mine[me].cursor == newest ->
        if
        :: mine[me].cursor > mine[me].high -> mine[me].high = mine[me].cursor
        :: else -> skip
        fi;
        d_step { live[newest - 1] = 0; mine[me].cursor = newest - 1 }
    :: else -> skip
    fi;
    newest = 0;
    leave()
}

inline retract() {
    if
    :: mine[me].epoch == epoch ->
        start = mine[me].cursor;
        seen = mine[me].end;
#if BUG != 3
        take_lock();
        atomic { high = (high > mine[me].high -> high : mine[me].high); high = (high > start -> high : start) };
        give_lock();
#endif
        if
        :: atomic { shared == seen -> shared = start }; mine[me].end = start
        :: atomic { shared != seen }
        fi;
#if BUG == 3
        take_lock();
        atomic { high = (high > mine[me].high -> high : mine[me].high); high = (high > start -> high : start) };
        give_lock()
#endif
    :: else -> skip
    fi
}

inline decommit(from, to) {
    d_step {
        i = from;
        do
        :: i < to -> assert(!live[i]); written[i] = 0; i++
        :: else -> break
        od;
        i = 0
    }
}

inline trim() {
    enter();
    retract();
    take_lock();
    start = shared;
    top = high;
    if
    :: start < top ->
#if BUG == 4
        decommit(start, top);
        high = (high > start -> start : high)
#else
        if
        :: atomic { shared == start -> shared = top };
            decommit(start, top);
            if
            :: atomic { shared == top -> shared = start };
#if BUG == 5
                high = 0
#else
                high = (high > start -> start : high)
#endif
            :: atomic { shared != top }
            fi
        :: atomic { shared != start }
        fi
#endif
    :: else -> skip
    fi;
    give_lock();
    leave()
}

/* The caller knows that nobody allocates: the others wait outside. */
inline release() {
    atomic { !releasing && inside == 0 -> releasing = true };
    take_lock();
    high = (high > shared -> high : shared);
    d_step {
        i = 0;
        do
        :: i < LIMIT -> live[i] = 0; i++
        :: else -> break
        od;
        i = 0
    }
    epoch++;
    shared = 0;
    give_lock();
    releasing = false
}

proctype worker(byte me) {
    byte start, seen, spare, dirty, top, newest, done, steps, i;
    bool topmost;
    do
    :: steps == STEPS -> break
    :: else ->
        steps++;
        if
        :: take()
        :: enter(); refill(2, 1); leave()
        :: enter(); refill(1, 1); leave()
        :: free_newest()
        :: trim(); newest = 0
        :: release(); newest = 0
        fi;
        assert(shared <= LIMIT)
    od
}

init {
    byte n;
    atomic {
        n = 0;
        do
        :: n < THREADS -> run worker(n); n++
        :: else -> break
        od
    }
}
