/*
 * bench.h - what a row is, what a job sees, and the limits
 *
 *     row      one line of work, as several contestants do it, and what ours must reach
 *     job      one contestant's way to do it: sets itself up on its first call, then times one repetition
 *     ours     runs in a process of its own, with the limits
 *     peer     runs once in each process that has glibc's, jemalloc's, mimalloc's, tcmalloc's malloc (bench.c)
 */
#ifndef BENCH_H
#define BENCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fastalloc.h"

#define KIB ((size_t)1 << 10)
#define MIB ((size_t)1 << 20)

/* ---- one repetition ----------------------------------------------------------------------------------------------- */

typedef struct timing {
    uint64_t started, started_faults;
    uint64_t nanoseconds, faults; /* between timing_start and timing_stop */
    uint64_t percent;             /* what else a row measures; 0: nothing */
    bool skipped;                 /* this cannot be had here */
} timing;

void timing_start(timing *self);
void timing_stop(timing *self);
uint64_t nanoseconds_now(void);

/* A job that timed a failure must not go on. */
_Noreturn void bench_fail(const char *file, int line, const char *condition);
#define VERIFY(condition) ((condition) ? (void)0 : bench_fail(__FILE__, __LINE__, #condition))

/* Keeps the compiler from seeing through a pointer, and from dropping the work done on it. */
static inline void *opaque(void *pointer) {
    __asm__ volatile("" : "+r"(pointer) : : "memory");
    return pointer;
}

/* ---- rows ---------------------------------------------------------------------------------------------------------- */

#define MAX_JOBS 8
#define MAX_TARGETS 8

typedef struct bench_job {
    const char *name;          /* "ours", "limit", ...; of a peer's job: what follows the peer's name, or "" */
    void (*run)(timing *time);
    bool peer;
} bench_job;

/* Ours must be ... the other one's median; or, with no other, a number. */
typedef enum target_kind {
    NO_TARGET,
    AT_MOST_TIMES,  /* at most `bound` x the median of `other` */
    FASTER_TIMES,   /* at least `bound` x faster than the median of `other` */
    AT_MOST_NS,     /* at most `bound` nanoseconds, in the median */
    AT_MOST_FAULTS, /* at most `bound` page faults in any repetition */
    AT_MOST_PERCENT
} target_kind;

typedef struct bench_target {
    target_kind kind;
    const char *of, *other; /* columns */
    double bound;
} bench_target;

typedef struct bench_row {
    const char *name, *id;
    size_t operations;   /* in one repetition; times are shown for one; 0: 1 */
    size_t repeats;      /* in one turn of a contestant, whose sample is their median; 0: 1 */
    size_t rounds;       /* at the most; 0: as many as asked for */
    bool fresh;          /* a new process for each turn, and no repetition before that is not counted */
    bench_job jobs[MAX_JOBS];
    bench_target targets[MAX_TARGETS];
} bench_row;

extern const bench_row arena_rows[], manager_rows[], secret_rows[]; /* each ends with a row without a name */

/* bench --count NAME N: does N operations, for a tool that counts instructions; false if there is no such name. */
bool count_operations(const char *name, size_t count);

/* ---- what rows share ------------------------------------------------------------------------------------------------ */

typedef struct words {
    uint64_t word[4];
} words; /* a block of 32 bytes, all of it written */

static inline words pattern(uint64_t i) { return (words){{i, ~i, i + 1, i * 3}}; }
static inline bool has_pattern(const words *block, uint64_t i) {
    const words expected = pattern(i);
    return memcmp(block, &expected, sizeof expected) == 0;
}

static inline uint64_t random_next(uint64_t *state) { /* splitmix64 */
    uint64_t value = *state += 0x9E3779B97F4A7C15U;
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9U;
    value = (value ^ (value >> 27)) * 0x94D049BB133111EBU;
    return value ^ (value >> 31);
}

/* Fresh pages that are nobody's heap; huge: asks for transparent huge pages, aligned to them. */
void *map_pages(size_t size, bool huge);
void unmap_pages(void *pages, size_t size);

/* ---- the limits: limit.c, in a shared library of its own ------------------------------------------------------------ */

typedef struct limit_bump {
    unsigned char *cursor, *begin;
} limit_bump;
void *limit_bump_alloc(limit_bump *bump, size_t size);
void limit_bump_release(limit_bump *bump, unsigned char *to);

typedef struct limit_stack {
    size_t count;
    void *block[8192];
} limit_stack;
void *limit_stack_pop(limit_stack *stack);
void limit_stack_push(limit_stack *stack, void *block);
void limit_stack_zero_push(limit_stack *stack, void *block);
void limit_zero(void *block, size_t size);
void limit_nothing(void *context, size_t size);

#endif
