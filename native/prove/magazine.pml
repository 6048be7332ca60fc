/*
 * magazine.pml - a thread's magazine and the thief that empties it while its thread may wake up: heap/global.c, pop, push,
 * refill, gather, steal
 *
 * Mirrors: pop lowers top, then reads bottom; push writes the slot, then raises top; a pop that fails goes to refill, which takes
 * the lock, puts top right and looks again; steal, with the lock, raises bottom, has a fence executed in the owner's thread, reads top
 * again, and takes what is below both. The stores of the owner reach the thief late and in order, as on x86 (total store
 * order): `late` of them wait in the owner's store buffer, and the fence, the lock and time empty it.
 *
 * Shown for one owner, one thief and BLOCKS blocks: a block is in one place; none is taken twice, none is lost; no deadlock.
 * Not modelled: weaker machines than x86, where the compiler's fences and the acquire and release of `top` have to do more; a
 * magazine that is full and its growing, which happen under the lock.
 *
 * Mutations: -DBUG=1 no fence; 2 the thief does not read top again; 3 the owner reads bottom, then lowers top; 4 refill forgets
 * that the failed pop has lowered top; 5 the thief leaves bottom where it raised it to.
 */
#ifndef BUG
#define BUG 0
#endif
#ifndef BLOCKS
#define BLOCKS 3
#endif
#ifndef STEPS
#define STEPS 4   /* pops and pushes of the owner */
#endif
#define STEALS 2
#define LATE 2    /* stores that may wait */

mtype = { MAGAZINE, USER, CENTRAL };

mtype place[BLOCKS] = MAGAZINE;
byte slot[BLOCKS];          /* as memory has them; no two stores to one wait, for a push follows a pop's read */
byte top = BLOCKS;          /* as memory has it; slot + 1, so that a pop of an empty magazine does not go below 0 */
byte bottom;
bit held;
byte finished;
byte mine = BLOCKS;         /* top, as the owner sees it */

/* The store buffer: the values of top that wait, and with each the slot that a push wrote before it. */
byte late, late_top[LATE], late_slot[LATE], late_block[LATE];
#define NO_SLOT 255

inline drain_one() {
    d_step {
        if
        :: late_slot[0] != NO_SLOT -> slot[late_slot[0]] = late_block[0]
        :: else -> skip
        fi;
        top = late_top[0];
        late_top[0] = late_top[1];
        late_slot[0] = late_slot[1];
        late_block[0] = late_block[1];
        late--
    }
}
inline drain() {
    do
    :: late > 0 -> drain_one()
    :: else -> break
    od
}
inline store_top(at, block, value) {
    atomic {
        late < LATE;
        late_top[late] = value;
        late_slot[late] = at;
        late_block[late] = block;
        late++;
        mine = value
    }
}

active proctype time_passes() {
end:
    do
    :: atomic { late > 0 -> drain_one() }
    od
}

/* What the owner sees in a slot: its own store, be it late. */
inline read_slot(at) {
    d_step {
        block = slot[at];
        if
        :: late > 0 && late_slot[0] == at -> block = late_block[0]
        :: else -> skip
        fi;
        if
        :: late > 1 && late_slot[1] == at -> block = late_block[1]
        :: else -> skip
        fi
    }
}

inline hand_out() {
    d_step {
        assert(place[block] == MAGAZINE);
        place[block] = USER;
        has[block] = 1;
        held_by_user++
    }
}

inline refill(pending) {
    atomic { held == 0 -> held = 1; drain() } /* an exchange empties the buffer */
    d_step { /* gather: nobody else moves anything now */
        count = (mine + pending > bottom -> mine + pending - bottom : 0);
        i = 0;
        do
        :: i < count -> slot[i] = slot[bottom + i]; i++
        :: else -> break
        od;
        bottom = 0;
        i = 0;
        do
        :: count == 0 && i < BLOCKS && place[i] == CENTRAL -> slot[0] = i; place[i] = MAGAZINE; count = 1
        :: !(count == 0 && i < BLOCKS && place[i] == CENTRAL) && i < BLOCKS -> i++
        :: else -> break
        od;
        found = count > 0;
        if
        :: found -> count--; block = slot[count]
        :: else -> skip
        fi;
        mine = count;
        top = count
    }
    if
    :: found -> hand_out()
    :: else -> skip
    fi;
    held = 0
}

inline pop() {
#if BUG == 3
    seen = bottom;
    if
    :: mine == 0 -> refill(0)
    :: else ->
        store_top(NO_SLOT, 0, mine - 1);
#else
    if
    :: mine == 0 -> refill(0) /* as one below bottom: C lowers the pointer and puts it back */
    :: else ->
        store_top(NO_SLOT, 0, mine - 1);
        seen = bottom;
#endif
        if
        :: mine < seen ->
#if BUG == 4
            refill(0)
#else
            refill(1)
#endif
        :: else ->
            read_slot(mine);
            hand_out()
        fi
    fi
}

inline push() {
    d_step {
        i = 0;
        do
        :: i < BLOCKS && !has[i] -> i++
        :: else -> break
        od;
        block = i;
        has[i] = 0;
        held_by_user--;
        place[i] = MAGAZINE
    }
    store_top(mine, block, mine + 1)
}

proctype owner() {
    byte i, steps, seen, block, count, held_by_user;
    bit has[BLOCKS];
    bool found;
    do
    :: steps == STEPS -> break
    :: else ->
        steps++;
        if
        :: pop()
        :: held_by_user > 0 -> push()
        fi
    od;
    finished++
}

proctype thief() {
    byte from, to, now, steals, j;
    do
    :: steals == STEALS -> break
    :: else ->
        steals++;
        atomic { held == 0 -> held = 1 }
        from = bottom;
        to = top;
        if
        :: to > from ->
            bottom = to;
#if BUG != 1
            atomic { drain() }
#endif
#if BUG == 2
            now = to;
#else
            now = top;
#endif
            if
            :: now > to -> now = to
            :: else -> skip
            fi;
            if
            :: now < from -> now = from
            :: else -> skip
            fi;
            j = from;
            do
            :: j < now -> d_step { assert(place[slot[j]] == MAGAZINE); place[slot[j]] = CENTRAL; j++ }
            :: else -> break
            od;
#if BUG != 5
            bottom = now
#endif
        :: else -> skip
        fi;
        held = 0
    od;
    finished++
}

init {
    byte n, in_magazine;
    d_step { slot[1] = 1; slot[2] = 2; slot[BLOCKS - 1] = BLOCKS - 1 }
    atomic { run owner(); run thief() }
    /* At the end what is in the magazine is what it says. */
    (finished == 2 && late == 0);
    d_step {
        n = 0;
        do
        :: n < BLOCKS -> in_magazine = in_magazine + (place[n] == MAGAZINE -> 1 : 0); n++
        :: else -> break
        od;
        assert(in_magazine == (top > bottom -> top - bottom : 0))
    }
}
