/*
 * bench.c - every row side by side: ours, the limit of the machine, and what a user would use instead
 *
 *     bench [--json FILE] [--rounds N] [--only PART-OF-A-NAME]
 *
 * A row is a job in several variants: `ours`, the `limit` (the cheapest code that could do the work) and `glibc`. The
 * variants of a row run in turn, round after round, so that a noisy machine is unfair to all of them alike; the table has
 * medians with minimum and maximum, and the ratio of our median to each other. A variant checks that what it timed
 * succeeded: a bench that measures failures exits 1.
 *
 * A promise in time (see `promise`) is checked against our minimum: what the code can do, not what the neighbours let it.
 * To add a row, write its functions and name them in `rows` at the end of this file.
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "fastalloc.h"

#define MAX_ROUNDS 101
#define KIB ((size_t)1 << 10)
#define MIB ((size_t)1 << 20)

/* ---- what a variant sees ------------------------------------------------------------------------------------------ */

typedef struct timing {
    uint64_t started;
    uint64_t nanoseconds;   /* between timing_start and timing_stop */
    uint64_t faults;
    uint64_t started_faults;
} timing;

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000U + (uint64_t)time.tv_nsec;
}

static uint64_t faults_so_far(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return (uint64_t)usage.ru_minflt;
}

static void timing_start(timing *self) {
    self->started_faults = faults_so_far();
    self->started = now();
}

static void timing_stop(timing *self) {
    self->nanoseconds += now() - self->started;
    self->faults += faults_so_far() - self->started_faults;
}

static const char *current_row;

#define VERIFY(condition)                                                                                              \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "bench: %s: line %d: not so: %s\n", current_row, __LINE__, #condition);                    \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

/* Keeps the compiler from seeing through a pointer, and from dropping the work done on it. */
static void *opaque(void *pointer) {
    __asm__ volatile("" : "+r"(pointer) : : "memory");
    return pointer;
}

static fa_arena *arena_of(fa_arena_kind kind, size_t capacity) {
    fa_arena_options options;
    fa_arena_options_init(&options, kind);
    options.capacity = capacity;
    options.on_full = FA_FULL_FAIL;
    fa_arena *arena = fa_arena_create(&options, NULL);
    VERIFY(arena != NULL);
    return arena;
}

/* ---- 10,000 blocks of 32 bytes, each written, then all released ---------------------------------------------------- */

#define SMALL_COUNT 10000
#define SMALL_SIZE 32

static void small_ours(timing *time) {
    static fa_arena *arena;
    if (arena == NULL) arena = arena_of(FA_SCRATCH, MIB);
    timing_start(time);
    for (uint64_t i = 0; i < SMALL_COUNT; i++) {
        uint64_t *block = fa_arena_alloc(arena, SMALL_SIZE, 0);
        VERIFY(block != NULL);
        *block = i;
    }
    const fa_status status = fa_arena_reset(arena);
    timing_stop(time);
    VERIFY(status == FA_OK);
}

static void small_limit(timing *time) {
    static unsigned char *memory;
    if (memory == NULL) memory = malloc(MIB);
    unsigned char *cursor = opaque(memory);
    timing_start(time);
    for (uint64_t i = 0; i < SMALL_COUNT; i++) {
        uint64_t *block = opaque(cursor);
        cursor += SMALL_SIZE;
        *block = i;
    }
    timing_stop(time);
    VERIFY(cursor == memory + SMALL_COUNT * SMALL_SIZE);
}

static void small_glibc(timing *time) {
    static void *blocks[SMALL_COUNT];
    timing_start(time);
    for (uint64_t i = 0; i < SMALL_COUNT; i++) {
        uint64_t *block = malloc(SMALL_SIZE);
        VERIFY(block != NULL);
        *block = i;
        blocks[i] = block;
    }
    for (size_t i = 0; i < SMALL_COUNT; i++) free(blocks[i]);
    timing_stop(time);
}

/* ---- one million live blocks of 32 bytes, far beyond the pool: only the frees are timed ----------------------------- */

#define MANY 1000000

static void **many_blocks(void) {
    static void **blocks;
    if (blocks == NULL) blocks = malloc(MANY * sizeof *blocks);
    VERIFY(blocks != NULL);
    return blocks;
}

static void many_ours(timing *time) {
    void **blocks = many_blocks();
    fa_manager *manager = fa_manager_create(NULL, NULL);
    for (size_t i = 0; i < MANY; i++) {
        blocks[i] = fa_malloc(manager, SMALL_SIZE);
        VERIFY(blocks[i] != NULL);
        memset(blocks[i], 1, SMALL_SIZE);
    }
    fa_manager_stats stats;
    VERIFY(fa_manager_get_stats(manager, &stats) == FA_OK && stats.live == MANY && stats.pool_blocks < MANY);
    timing_start(time);
    for (size_t i = 0; i < MANY; i++) fa_free(manager, blocks[i]);
    timing_stop(time);
    VERIFY(fa_manager_get_stats(manager, &stats) == FA_OK && stats.live == 0 && stats.freed == MANY);
    fa_manager_destroy(manager);
}

static void many_limit(timing *time) { /* wiping the blocks where they lie is the least that must be done */
    static unsigned char *memory;
    if (memory == NULL) memory = malloc(MANY * SMALL_SIZE);
    memset(memory, 1, MANY * SMALL_SIZE);
    timing_start(time);
    for (size_t i = 0; i < MANY; i++) memset(opaque(memory + i * SMALL_SIZE), 0, SMALL_SIZE);
    timing_stop(time);
}

static void many_glibc(timing *time) {
    void **blocks = many_blocks();
    for (size_t i = 0; i < MANY; i++) {
        blocks[i] = malloc(SMALL_SIZE);
        VERIFY(blocks[i] != NULL);
        memset(blocks[i], 1, SMALL_SIZE);
    }
    timing_start(time);
    for (size_t i = 0; i < MANY; i++) free(blocks[i]);
    timing_stop(time);
}

/* ---- reset with 10^2 and 10^7 live blocks --------------------------------------------------------------------------- */

static void reset_after(timing *time, size_t count) {
    static fa_arena *arena;
    if (arena == NULL) arena = arena_of(FA_SCRATCH, 10000000 * (size_t)16 + MIB);
    for (size_t i = 0; i < count; i++) VERIFY(fa_arena_alloc(arena, 16, 0) != NULL);
    timing_start(time);
    const fa_status status = fa_arena_reset(arena);
    timing_stop(time);
    fa_arena_stats stats;
    VERIFY(status == FA_OK && fa_arena_get_stats(arena, &stats) == FA_OK && stats.live == 0);
}

static void reset_few(timing *time) { reset_after(time, 100); }
static void reset_many(timing *time) { reset_after(time, 10000000); }

/* ---- wipe of a witness arena of 128 MiB of which 1 KiB, 1 MiB, 64 MiB was used -------------------------------------- */

static void wipe_used(timing *time, size_t used) {
    fa_arena *arena = arena_of(FA_WITNESS, 128 * MIB);
    memset(fa_arena_alloc(arena, used, 0), 1, used);
    timing_start(time);
    const fa_status status = fa_arena_wipe(arena);
    timing_stop(time);
    fa_arena_stats stats;
    VERIFY(status == FA_OK && fa_arena_get_stats(arena, &stats) == FA_OK && stats.wipes == 1);
    fa_arena_destroy(arena);
}

static void wipe_limit_used(timing *time, size_t used) {
    static unsigned char *memory;
    if (memory == NULL) memory = malloc(64 * MIB);
    memset(memory, 1, used);
    timing_start(time);
    explicit_bzero(memory, used);
    timing_stop(time);
    VERIFY(memory[0] == 0 && memory[used - 1] == 0);
}

static void wipe_kib(timing *time) { wipe_used(time, KIB); }
static void wipe_mib(timing *time) { wipe_used(time, MIB); }
static void wipe_64_mib(timing *time) { wipe_used(time, 64 * MIB); }
static void wipe_limit_kib(timing *time) { wipe_limit_used(time, KIB); }
static void wipe_limit_mib(timing *time) { wipe_limit_used(time, MIB); }
static void wipe_limit_64_mib(timing *time) { wipe_limit_used(time, 64 * MIB); }

/* ---- acquire, memset, release of 64 MiB, warm ----------------------------------------------------------------------- */

#define VECTOR (64 * MIB)

static void vector_ours(timing *time) {
    static fa_arena *arena;
    if (arena == NULL) {
        arena = arena_of(FA_POLYNOMIAL, VECTOR);
        memset(fa_arena_alloc(arena, VECTOR, 0), 0, VECTOR);
        VERIFY(fa_arena_reset(arena) == FA_OK);
    }
    timing_start(time);
    unsigned char *vector = fa_arena_alloc(arena, VECTOR, 0);
    VERIFY(vector != NULL);
    memset(opaque(vector), 1, VECTOR);
    fa_arena_free(arena, vector, VECTOR);
    timing_stop(time);
    VERIFY(vector[VECTOR - 1] == 1);
}

static void vector_limit(timing *time) {
    static unsigned char *vector;
    if (vector == NULL) {
        vector = aligned_alloc(2 * MIB, VECTOR);
        VERIFY(vector != NULL);
        memset(vector, 0, VECTOR);
    }
    timing_start(time);
    memset(opaque(vector), 1, VECTOR);
    timing_stop(time);
    VERIFY(vector[VECTOR - 1] == 1);
}

static void vector_glibc(timing *time) {
    timing_start(time);
    unsigned char *vector = aligned_alloc(64, VECTOR);
    VERIFY(vector != NULL);
    memset(opaque(vector), 1, VECTOR);
    const bool written = vector[VECTOR - 1] == 1;
    free(vector);
    timing_stop(time);
    VERIFY(written);
}

/* ---- the rows ------------------------------------------------------------------------------------------------------- */

typedef struct variant {
    const char *name;
    void (*run)(timing *time);
} variant;

#define VARIANTS 4

typedef struct row {
    const char *name;
    variant variants[VARIANTS]; /* the first is ours */
    uint64_t promise;           /* nanoseconds that our minimum must stay below; 0: none */
} row;

static const row rows[] = {
    {"10,000 x 32 B from an arena", {{"ours", small_ours}, {"limit", small_limit}, {"glibc", small_glibc}}, 0},
    {"free of 10^6 live blocks", {{"ours", many_ours}, {"limit", many_limit}, {"glibc", many_glibc}}, 50000000},
    {"reset of 10^7 live blocks", {{"10^7", reset_many}, {"10^2", reset_few}}, 0},
    {"wipe, 1 KiB used of 128 MiB", {{"ours", wipe_kib}, {"limit", wipe_limit_kib}}, 20000},
    {"wipe, 1 MiB used of 128 MiB", {{"ours", wipe_mib}, {"limit", wipe_limit_mib}}, 0},
    {"wipe, 64 MiB used of 128 MiB", {{"ours", wipe_64_mib}, {"limit", wipe_limit_64_mib}}, 0},
    {"64 MiB warm, memset", {{"ours", vector_ours}, {"limit", vector_limit}, {"glibc", vector_glibc}}, 0},
};
#define ROWS (sizeof rows / sizeof *rows)

/* ---- measuring and printing ------------------------------------------------------------------------------------------ */

typedef struct result {
    uint64_t median, minimum, maximum, faults;
} result;

static int compare(const void *a, const void *b) {
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* One round more than asked: the first warms up and is not counted. */
static void measure(const row *job, size_t rounds, result results[VARIANTS]) {
    static uint64_t samples[VARIANTS][MAX_ROUNDS], faults[VARIANTS][MAX_ROUNDS];
    current_row = job->name;
    for (size_t round = 0; round <= rounds; round++) {
        for (size_t i = 0; i < VARIANTS && job->variants[i].run != NULL; i++) {
            timing time = {0, 0, 0, 0};
            job->variants[i].run(&time);
            if (round == 0) continue;
            samples[i][round - 1] = time.nanoseconds;
            faults[i][round - 1] = time.faults;
        }
    }
    for (size_t i = 0; i < VARIANTS && job->variants[i].run != NULL; i++) {
        qsort(samples[i], rounds, sizeof(uint64_t), compare);
        qsort(faults[i], rounds, sizeof(uint64_t), compare);
        results[i] = (result){samples[i][rounds / 2], samples[i][0], samples[i][rounds - 1], faults[i][rounds / 2]};
    }
}

static void print_time(double nanoseconds) {
    if (nanoseconds >= 1e6) printf("%9.3f ms", nanoseconds / 1e6);
    else if (nanoseconds >= 1e3) printf("%9.3f us", nanoseconds / 1e3);
    else printf("%9.0f ns", nanoseconds);
}

static void print_row(const row *job, const result results[VARIANTS]) {
    printf("%s\n", job->name);
    for (size_t i = 0; i < VARIANTS && job->variants[i].run != NULL; i++) {
        printf("    %-8s", job->variants[i].name);
        print_time((double)results[i].median);
        printf("   min");
        print_time((double)results[i].minimum);
        printf("   max");
        print_time((double)results[i].maximum);
        printf("   %6" PRIu64 " faults", results[i].faults);
        if (i > 0) printf("   %s/%s %.2f", job->variants[0].name, job->variants[i].name,
                          (double)results[0].median / (double)results[i].median);
        printf("\n");
    }
    if (job->promise != 0) {
        printf("    promised: below ");
        print_time((double)job->promise);
        printf(": %s\n", results[0].minimum < job->promise ? "kept" : "NOT KEPT");
    }
    fflush(stdout);
}

static void write_json(FILE *file, const row *job, const result results[VARIANTS], bool first) {
    fprintf(file, "%s\n  {\"name\": \"%s\", \"promise_ns\": %" PRIu64 ", \"variants\": {", first ? "" : ",", job->name,
            job->promise);
    for (size_t i = 0; i < VARIANTS && job->variants[i].run != NULL; i++) {
        fprintf(file, "%s\"%s\": {\"median_ns\": %" PRIu64 ", \"min_ns\": %" PRIu64 ", \"max_ns\": %" PRIu64
                      ", \"faults\": %" PRIu64 "}",
                i == 0 ? "" : ", ", job->variants[i].name, results[i].median, results[i].minimum, results[i].maximum,
                results[i].faults);
    }
    fprintf(file, "}}");
}

int main(int argc, char **argv) {
    const char *json = NULL, *only = "";
    size_t rounds = 11;
    for (int i = 1; i < argc; i += 2) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (value != NULL && strcmp(argv[i], "--json") == 0) json = value;
        else if (value != NULL && strcmp(argv[i], "--only") == 0) only = value;
        else if (value != NULL && strcmp(argv[i], "--rounds") == 0) rounds = strtoul(value, NULL, 10);
        else rounds = 0;
    }
    if (rounds == 0 || rounds > MAX_ROUNDS) {
        fprintf(stderr, "usage: %s [--json FILE] [--rounds 1..%d] [--only PART-OF-A-NAME]\n", argv[0], MAX_ROUNDS);
        return 2;
    }
    FILE *file = json != NULL ? fopen(json, "w") : NULL;
    if (json != NULL && file == NULL) {
        perror(json);
        return 1;
    }
    if (file != NULL) fprintf(file, "{\"version\": \"%s\", \"rounds\": %zu, \"rows\": [", fa_version(), rounds);
    printf("fastalloc %s, %zu rounds; medians, and our median as a multiple of the others'\n\n", fa_version(), rounds);
    bool kept = true, first = true;
    for (size_t i = 0; i < ROWS; i++) {
        if (strstr(rows[i].name, only) == NULL) continue;
        result results[VARIANTS];
        measure(&rows[i], rounds, results);
        print_row(&rows[i], results);
        if (file != NULL) write_json(file, &rows[i], results, first);
        kept = kept && (rows[i].promise == 0 || results[0].minimum < rows[i].promise);
        first = false;
    }
    if (file != NULL) {
        fprintf(file, "\n]}\n");
        fclose(file);
    }
    return kept ? 0 : 1;
}
