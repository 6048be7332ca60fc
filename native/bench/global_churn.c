/*
 * global_churn.c - work for malloc, whichever it is: a plain program, to be run with an allocator preloaded
 *
 *     LD_PRELOAD=libfastalloc-malloc.so global_churn ROW [SAMPLES]        global_churn --list
 *
 * One line of JSON for each sample:
 *
 *     {"row": "same-1", "ns": 6.1, "cpu": 6.0, "operations": 2000000, "faults": 3}
 *
 *     same-N      N threads, each 4,096 live blocks of 1-128 B: free one, allocate another
 *     mixed-N     the same with 1 B-1 KiB, and 1 % of 8-64 KiB
 *     cross-1     one thread allocates and writes, another frees: batches of 256 through a ring
 *     cross-2     two threads, each frees what the other has allocated
 *     bulk        a million blocks of 32 B, then all freed, in the order of allocation
 *     rhythm      two threads in step, rounds of vectors of 1-256 MiB, written and freed; a sample is a round
 *     shuffled    the same, each thread for itself and each round in another order
 *
 * ns is the time of one operation of a thread, a malloc and a free, on the wall clock; of a round, all of it. cpu is user and
 * system time of the process, likewise for one operation of one thread: on a machine that has other work, the figure to
 * compare. Faults are the minor faults of the process in the sample. Blocks are written when they are made and
 * checked before they are freed.
 */
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#define LIVE 4096U
#define CHURN_OPERATIONS 2000000U
#define CROSS_OPERATIONS 1000000U
#define BULK 1000000U
#define BATCH 256U
#define RING 16U
#define THREADS 2U
#define MIB ((size_t)1 << 20)

static void fail(const char *what) {
    fprintf(stderr, "global_churn: %s\n", what);
    exit(1);
}

static uint64_t next(uint64_t *state) { /* xorshift64 */
    uint64_t value = *state;
    value ^= value << 13;
    value ^= value >> 7;
    value ^= value << 17;
    return *state = value;
}

static double now(void) {
    struct timespec time;
    if (clock_gettime(CLOCK_MONOTONIC, &time) != 0) fail("no clock");
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

static struct rusage used(void) {
    struct rusage usage;
    if (getrusage(RUSAGE_SELF, &usage) != 0) fail("no resource usage");
    return usage;
}

static double nanoseconds(struct timeval time) { return (double)time.tv_sec * 1e9 + (double)time.tv_usec * 1e3; }

static double cpu(const struct rusage *usage) { return nanoseconds(usage->ru_utime) + nanoseconds(usage->ru_stime); }

/* A block carries its size at its beginning as far as it fits, and its last byte. */
static unsigned char *make(size_t size) {
    unsigned char *block = malloc(size);
    if (block == NULL) fail("out of memory");
    block[size - 1] = (unsigned char)size;
    block[0] = (unsigned char)size;
    return block;
}

static void end(unsigned char *block, size_t size) {
    if (block[0] != (unsigned char)size || block[size - 1] != (unsigned char)size) fail("a block was overwritten");
    free(block);
}

static void on_threads(unsigned count, void *(*run)(void *)) {
    pthread_t thread[THREADS];
    for (uintptr_t i = 0; i < count; i++)
        if (pthread_create(&thread[i], NULL, run, (void *)i) != 0) fail("no thread");
    for (unsigned i = 0; i < count; i++)
        if (pthread_join(thread[i], NULL) != 0) fail("a thread is lost");
}

/* ---- churn -------------------------------------------------------------------------------------------------------- */

typedef struct churn {
    unsigned char *block[LIVE];
    size_t size[LIVE];
    uint64_t random;
    bool mixed;
} churn;

static churn churns[THREADS];

static size_t churn_size(churn *state) {
    uint64_t random = next(&state->random);
    if (!state->mixed) return 1 + (size_t)(random >> 32) % 128;
    if ((random & 0x7F) != 0) return 1 + (size_t)(random >> 32) % 1024;
    return 8192 + (size_t)(random >> 32) % 57344;
}

static void churn_for(churn *state, unsigned operations) {
    for (unsigned i = 0; i < operations; i++) {
        unsigned at = (unsigned)(next(&state->random) % LIVE);
        if (state->block[at] != NULL) end(state->block[at], state->size[at]);
        state->size[at] = churn_size(state);
        state->block[at] = make(state->size[at]);
    }
}

static void *churn_thread(void *number) {
    churn_for(&churns[(uintptr_t)number], CHURN_OPERATIONS);
    return NULL;
}

static unsigned run_churn(unsigned threads) {
    if (threads == 1) churn_for(&churns[0], CHURN_OPERATIONS);
    else on_threads(threads, churn_thread);
    return CHURN_OPERATIONS;
}

static unsigned run_same_1(void) { return run_churn(1); }
static unsigned run_same_2(void) { return run_churn(2); }
static unsigned run_mixed(unsigned threads) {
    churns[0].mixed = churns[1].mixed = true;
    return run_churn(threads);
}
static unsigned run_mixed_1(void) { return run_mixed(1); }
static unsigned run_mixed_2(void) { return run_mixed(2); }

/* ---- blocks that change hands ------------------------------------------------------------------------------------- */

typedef struct ring {
    pthread_mutex_t lock;
    pthread_cond_t moved;
    unsigned made, taken; /* batches */
    unsigned char *block[RING][BATCH];
    size_t size[RING][BATCH];
} ring;

static ring rings[THREADS] = {{.lock = PTHREAD_MUTEX_INITIALIZER, .moved = PTHREAD_COND_INITIALIZER},
                              {.lock = PTHREAD_MUTEX_INITIALIZER, .moved = PTHREAD_COND_INITIALIZER}};

/* Waits until the ring has a place that is full, or empty; a waiter sleeps, so that it costs no processor time. */
static unsigned wait_for(ring *at, bool full) {
    pthread_mutex_lock(&at->lock);
    while (full ? at->made == at->taken : at->made - at->taken == RING) pthread_cond_wait(&at->moved, &at->lock);
    unsigned slot = (full ? at->taken : at->made) % RING;
    pthread_mutex_unlock(&at->lock);
    return slot;
}

/* Wakes the other side when half of the ring is there for it, or at the end. */
static void advance(ring *at, bool full, bool last) {
    pthread_mutex_lock(&at->lock);
    if (full) at->taken++;
    else at->made++;
    unsigned filled = at->made - at->taken;
    if (last || (full ? filled <= RING / 2 : filled >= RING / 2)) pthread_cond_signal(&at->moved);
    pthread_mutex_unlock(&at->lock);
}

static void fill(ring *to, uint64_t *random, bool last) {
    unsigned slot = wait_for(to, false);
    for (unsigned i = 0; i < BATCH; i++) {
        to->size[slot][i] = 1 + (size_t)(next(random) >> 32) % 128;
        to->block[slot][i] = make(to->size[slot][i]);
    }
    advance(to, false, last);
}

static void drain(ring *from, bool last) {
    unsigned slot = wait_for(from, true);
    for (unsigned i = 0; i < BATCH; i++) end(from->block[slot][i], from->size[slot][i]);
    advance(from, true, last);
}

#define BATCHES (CROSS_OPERATIONS / BATCH)

static void *cross_one_way(void *number) {
    uint64_t random = 88172645463325252U;
    for (unsigned i = 1; i <= BATCHES; i++) {
        if ((uintptr_t)number == 0) fill(&rings[0], &random, i == BATCHES);
        else drain(&rings[0], i == BATCHES);
    }
    return NULL;
}

/* Half a ring is filled, then as much is drained of the other's. */
static void *cross_both_ways(void *number) {
    unsigned self = (unsigned)(uintptr_t)number;
    uint64_t random = 88172645463325252U + self;
    for (unsigned done = 0; done < BATCHES; done += RING / 2) {
        for (unsigned i = 1; i <= RING / 2; i++) fill(&rings[self], &random, i == RING / 2);
        for (unsigned i = 1; i <= RING / 2; i++) drain(&rings[1 - self], i == RING / 2);
    }
    return NULL;
}

static unsigned run_cross_1(void) {
    on_threads(2, cross_one_way);
    return CROSS_OPERATIONS;
}
static unsigned run_cross_2(void) {
    on_threads(2, cross_both_ways);
    return CROSS_OPERATIONS;
}

/* ---- bulk --------------------------------------------------------------------------------------------------------- */

static unsigned char *bulk[BULK];

static unsigned run_bulk(void) {
    for (unsigned i = 0; i < BULK; i++) bulk[i] = make(32);
    for (unsigned i = 0; i < BULK; i++) end(bulk[i], 32);
    return BULK;
}

/* ---- the rhythm of a prover --------------------------------------------------------------------------------------- */

#define VECTORS 9U /* 1, 2, 4 ... 256 MiB */
#define HELD 2U

static uint64_t rhythm_random[THREADS] = {0x9E3779B97F4A7C15U, 0xD1342543DE82EF95U};

static bool in_step;
static pthread_barrier_t step;

/* Every size once, two at a time. */
static void *rhythm_thread(void *number) {
    uint64_t *random = &rhythm_random[(uintptr_t)number];
    size_t sizes[VECTORS];
    unsigned char *held[HELD] = {NULL};
    size_t held_size[HELD] = {0};
    for (unsigned i = 0; i < VECTORS; i++) sizes[i] = MIB << (in_step && number != NULL ? VECTORS - 1 - i : i);
    for (unsigned i = VECTORS - 1; i > 0 && !in_step; i--) {
        unsigned other = (unsigned)(next(random) % (i + 1));
        size_t size = sizes[i];
        sizes[i] = sizes[other];
        sizes[other] = size;
    }
    for (unsigned i = 0; i < VECTORS + HELD; i++) {
        unsigned at = i % HELD;
        if (held[at] != NULL) end(held[at], held_size[at]);
        held[at] = NULL;
        if (in_step) pthread_barrier_wait(&step);
        if (i >= VECTORS) continue;
        held_size[at] = sizes[i];
        held[at] = make(sizes[i]);
        memset(held[at] + 1, (int)i, sizes[i] - 2);
    }
    return NULL;
}

static unsigned run_rhythm(void) {
    in_step = true;
    if (pthread_barrier_init(&step, NULL, THREADS) != 0) fail("no barrier");
    on_threads(THREADS, rhythm_thread);
    if (pthread_barrier_destroy(&step) != 0) fail("the barrier is in use");
    return 1;
}
static unsigned run_shuffled(void) {
    on_threads(THREADS, rhythm_thread);
    return 1;
}

/* ---- rows --------------------------------------------------------------------------------------------------------- */

typedef struct row {
    const char *name;
    unsigned (*run)(void); /* how many operations each thread has done */
    unsigned threads;
    unsigned samples;
    bool warm; /* one sample first that is not shown */
} row;

static const row rows[] = {
    {"same-1", run_same_1, 1, 5, true},     {"same-2", run_same_2, 2, 5, true},     {"mixed-1", run_mixed_1, 1, 5, true},
    {"mixed-2", run_mixed_2, 2, 5, true},   {"cross-1", run_cross_1, 1, 5, true},   {"cross-2", run_cross_2, 2, 5, true},
    {"bulk", run_bulk, 1, 5, true},         {"rhythm", run_rhythm, 1, 6, false},    {"shuffled", run_shuffled, 1, 6, false},
};

int main(int argc, char **argv) {
    const row *chosen = NULL;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if (argc == 2 && strcmp(argv[1], "--list") == 0) printf("%s\n", rows[i].name);
        if (argc >= 2 && strcmp(argv[1], rows[i].name) == 0) chosen = &rows[i];
    }
    if (argc == 2 && strcmp(argv[1], "--list") == 0) return 0;
    if (chosen == NULL || argc > 3) {
        fprintf(stderr, "usage: %s --list | ROW [SAMPLES]\n", argv[0]);
        return 2;
    }
    unsigned samples = argc == 3 ? (unsigned)strtoul(argv[2], NULL, 10) : chosen->samples;
    for (unsigned i = 0; i < THREADS; i++) churns[i].random = 88172645463325252U + i;
    if (chosen->warm) (void)chosen->run();
    for (unsigned i = 0; i < samples; i++) {
        struct rusage before = used();
        double start = now();
        unsigned operations = chosen->run();
        double took = now() - start;
        struct rusage after = used();
        printf("{\"row\": \"%s\", \"ns\": %.3f, \"cpu\": %.3f, \"operations\": %u, \"faults\": %ld}\n", chosen->name,
               took / operations, (cpu(&after) - cpu(&before)) / operations / chosen->threads, operations,
               after.ru_minflt - before.ru_minflt);
        fflush(stdout);
    }
    return 0;
}
