/*
 * start.pml - the first call of the global allocator, by several threads at once: begin, begin_once and ensure_begun in
 * heap/global.c, and a reader of the statistics, in this process or another (fastalloc_malloc_stats in heap/global.h)
 *
 * Mirrors: the load of `begun` before everything; the compare-and-swap by which one thread gets to begin; what `begin` writes,
 * part by part; the store of DONE; the waiting of the others; the two stores by which the statistics are published.
 *
 * Shown for THREADS threads of CALLS calls: the heap begins once; whoever is past ensure_begun finds all of it there, and as the one
 * thread left it; a reader that sees `started` sees the classes; all threads get through, the one that begins as well.
 * Not modelled: what other processors see when (DONE is released and acquired); a fork meanwhile: the second thread of
 * a program comes from pthread_create, which allocates, so whoever forks before that is alone.
 *
 * Mutations: -DBUG=1 `begun` is tested, then set; 2 a thread that finds another one beginning does not wait; 3 DONE is stored
 * before the classes are; 4 `begin` allocates; 5 `started` is stored before what it says is there.
 */
#ifndef BUG
#define BUG 0
#endif
#ifndef THREADS
#define THREADS 3
#endif
#ifndef CALLS
#define CALLS 2
#endif
#define CLASSES 2

#define NOT_YET 0
#define IN_PROGRESS 1
#define DONE 2

byte begun;
byte begins;                /* how often the heap began */
byte by;                    /* thread + 1 that wrote the last part */
bit options, pages, key;    /* parts that are there */
byte classes;
bit published, started;     /* fastalloc_malloc_stats.central is set; .started */

inline use() {
    assert(begins == 1 && by == first);
    assert(options && pages && classes == CLASSES && key && published && started)
}

inline begin() {
    begins++;
    by = _pid + 1;
    options = 1;
    pages = 1;
#if BUG == 4
    begun == DONE;          /* ensure_begun of the malloc inside: it waits for itself */
#endif
#if BUG == 3
    begun = DONE;
#endif
    classes = 1;
    classes = CLASSES;
    key = 1;
#if BUG == 5
    started = 1;
#endif
    published = 1;
    started = 1
}

inline begin_once() {
#if BUG == 1
    if
    :: begun == NOT_YET -> begun = IN_PROGRESS; won = 1
    :: else
    fi;
#else
    atomic {
        if
        :: begun == NOT_YET -> begun = IN_PROGRESS; won = 1
        :: else
        fi
    };
#endif
    if
    :: won ->
        first = _pid + 1;
        begin();
        begun = DONE;
        won = 0
    :: else
    fi;
#if BUG != 2
    begun == DONE
#endif
}

byte first;                 /* who won; written by nobody else */

proctype caller() {
    byte calls;
    bit won;
    do
    :: calls < CALLS ->
        if
        :: begun == DONE
        :: begun != DONE -> begin_once()
        fi;
        use();
        calls++
    :: else -> break
    od
}

proctype reader() {
    if
    :: started -> assert(published && classes == CLASSES)
    :: !started
    fi
}

init {
    byte i;
    atomic {
        do
        :: i < THREADS -> run caller(); i++
        :: else -> break
        od;
        run reader()
    }
}
