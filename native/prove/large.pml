/*
 * large.pml - large blocks of a locked manager: allocated, freed into the cache, evicted, moved: heap/manager.c
 *
 * Mirrors, one section of the lock after the other, with the system's calls and the wipes between them:
 *     allocate   alloc_large: allowed? -> cache -> else the system's pages -> allowed? and room in the table -> entered
 *     free       free_slow and retire: out of the table -> wiped -> into the cache, which may put another block out -> released
 *     move       move_pages: taken out of the table, its room kept -> remapped to another address -> put back
 *
 * Shown for THREADS threads, ADDRESSES addresses and a table of SLOTS: a block has one owner; an address is in the table once; what is
 * cached is clean, so that what is handed out is zero; the limit holds; a block that moves is never lost; nothing leaks.
 * Not modelled: sizes (every block counts 1), fallback blocks, which take the same way with malloc for the cache.
 *
 * Mutations: -DBUG=1 the limit is asked once, before the system (with -DLIMIT=1); 2 the table does not keep the room of a block that moves (a
 * bug that was there); 3 cached, then wiped; 4 the entry stays in the table while the pages move; 5 released before it is out
 * of the cache.
 */
#ifndef BUG
#define BUG 0
#endif
#ifndef THREADS
#define THREADS 2
#endif
#define ADDRESSES 4
#ifndef SLOTS
#define SLOTS 1
#endif
#ifndef LIMIT
#define LIMIT 2
#endif
#ifndef STEPS
#define STEPS 3
#endif
#define NONE ADDRESSES

mtype = { UNMAPPED, FLYING, LIVE, CACHED };

bit held;
mtype place[ADDRESSES] = UNMAPPED;
byte entries[ADDRESSES];  /* how often the address is in the table */
bit dirty[ADDRESSES];
byte entered, out;        /* entries of the table; entries taken out, whose room is kept */
byte requested;
byte cached = NONE;       /* a cache of one block */

inline take_lock() { atomic { held == 0 -> held = 1 } }
inline give_lock() { held = 0 }

/* The system's pages: any address that is not mapped, zero; or none. */
inline map() {
    atomic {
        if
        :: place[0] == UNMAPPED -> at = 0
        :: place[1] == UNMAPPED -> at = 1
        :: place[2] == UNMAPPED -> at = 2
        :: place[3] == UNMAPPED -> at = 3
        :: else -> at = NONE
        fi;
        if
        :: at != NONE -> place[at] = FLYING; dirty[at] = 0
        :: else -> skip
        fi
    }
}

inline unmap(address) {
    atomic { assert(place[address] == FLYING); place[address] = UNMAPPED }
}

inline insert(address) {
    d_step {
        entries[address]++;
        entered++;
        assert(entries[address] == 1)
    }
}

inline allocate() {
    at = NONE;
    take_lock();
    may = (requested < LIMIT);
    if
    :: may && cached != NONE -> at = cached; cached = NONE; place[at] = FLYING
    :: else -> skip
    fi;
    give_lock();
    if
    :: may && at == NONE -> map()
    :: else -> skip
    fi;
    if
    :: at != NONE ->
        take_lock();
#if BUG == 1
        if
        :: entered + out < SLOTS ->
#else
        if
        :: requested < LIMIT && entered + out < SLOTS -> /* a table that cannot grow */
#endif
            insert(at);
            requested++;
            place[at] = LIVE;
            mine = at
        :: else -> skip
        fi;
        assert(requested <= LIMIT);
        give_lock();
        if
        :: mine == at -> assert(!dirty[at]); dirty[at] = 1
        :: else -> unmap(at)
        fi
    :: else -> skip
    fi
}

inline give_back() {
    take_lock();
    assert(entries[mine] == 1);
    d_step { entries[mine] = 0; entered--; requested--; place[mine] = FLYING }
    give_lock();
#if BUG != 3
    dirty[mine] = 0; /* outside the lock: it is nobody's but ours */
#endif
    take_lock();
    at = cached;
#if BUG == 5
    if
    :: at != NONE -> place[at] = UNMAPPED
    :: else -> skip
    fi;
    give_lock();
    take_lock();
#endif
    cached = mine;
    place[mine] = CACHED;
#if BUG != 5
    if
    :: at != NONE -> place[at] = FLYING
    :: else -> skip
    fi;
#endif
    give_lock();
#if BUG == 3
    dirty[mine] = 0;
#endif
#if BUG != 5
    if
    :: at != NONE -> unmap(at)
    :: else -> skip
    fi;
#endif
    mine = NONE
}

/* To another address, or, if the system refuses, to the same. */
inline move_pages() {
    take_lock();
#if BUG != 4
    d_step {
        entries[mine]--;
        entered--;
#if BUG != 2
        out++
#else
        skip
#endif
    }
#endif
    give_lock();
    place[mine] = FLYING;
    map();
    if
    :: at != NONE -> dirty[at] = dirty[mine]; unmap(mine)
    :: else -> at = mine
    fi;
    take_lock();
#if BUG == 4
    d_step { entries[mine]--; entered-- }
    insert(at);
#else
#if BUG != 2
    out--;
#endif
    assert(entered + out < SLOTS); /* or it is lost */
    insert(at);
#endif
    place[at] = LIVE;
    give_lock();
    mine = at
}

proctype worker() {
    byte at, mine = NONE, steps;
    bool may;
    do
    :: steps == STEPS -> break
    :: else ->
        steps++;
        if
        :: mine == NONE -> allocate()
        :: mine != NONE -> give_back()
        :: mine != NONE -> move_pages()
        fi
    od;
    if
    :: mine != NONE -> give_back()
    :: else -> skip
    fi
}

init {
    byte n;
    atomic {
        n = 0;
        do
        :: n < THREADS -> run worker(); n++
        :: else -> break
        od
    }
    _nr_pr == 1; /* all are done: what is mapped is in the cache */
    assert(requested == 0 && entered == 0 && out == 0);
    n = 0;
    do
    :: n < ADDRESSES -> assert(place[n] == UNMAPPED || (place[n] == CACHED && cached == n)); n++
    :: else -> break
    od
}
