/*
 * support.h - what several test programs need: peeking, patterns, a noting corruption handler, random numbers
 */
#ifndef SUPPORT_H
#define SUPPORT_H

#include <stdatomic.h>
#include <stdint.h>

#include "fastalloc.h"
#include "os/os.h"
#include "tap.h"

#if defined(__SANITIZE_ADDRESS__)
#define UNDER_ASAN true
#else
#define UNDER_ASAN false
#endif
#if defined(__SANITIZE_THREAD__)
#define UNDER_TSAN true
#else
#define UNDER_TSAN false
#endif
#define UNDER_SANITIZER (UNDER_ASAN || UNDER_TSAN)
/* make test-valgrind sets this: everything takes thirty times as long. */
#define UNDER_VALGRIND (getenv("FASTALLOC_TEST_WRAPPER") != NULL)
/* Valgrind itself, and not what is only as slow. */
#define UNDER_MEMCHECK (UNDER_VALGRIND && strncmp(getenv("FASTALLOC_TEST_WRAPPER"), "valgrind", 8) == 0)
/* tests/cross.py sets it to this: slow, too, and the system is not quite what the emulator says. */
#define UNDER_EMULATOR (UNDER_VALGRIND && strcmp(getenv("FASTALLOC_TEST_WRAPPER"), "qemu") == 0)
#define NOT_UNDER_AN_EMULATOR SKIP_IF(UNDER_EMULATOR, "an emulator says yes to what it does not do")
#if defined(__wasm__)
#define HAS_THREADS false
#else
#define HAS_THREADS true
#endif
#define NO_THREADS "there are no threads here"

#define UNUSED __attribute__((unused))
#define KIB ((size_t)1 << 10)
#define MIB ((size_t)1 << 20)
#define TOP_BIT (SIZE_MAX / 2 + 1)
/* Sizes that no process gets: a part of all addresses where they have 64 bits, else nearly all of them. */
#define TOO_MUCH(part) (SIZE_MAX > UINT32_MAX ? TOP_BIT / (part) : SIZE_MAX - (part))

/* ---- memory that the test does not own any more ------------------------------------------------------------------ */

/* How many bytes differ from zero, read behind the sanitizers' backs: the block may have been freed. */
__attribute__((no_sanitize("address", "thread"), noinline, unused)) static size_t peek_nonzero(const void *memory,
                                                                                               size_t size) {
    const volatile unsigned char *bytes = memory;
    size_t count = 0;
    for (size_t i = 0; i < size; i++) count += bytes[i] != 0;
    return count;
}

/* ---- patterns ---------------------------------------------------------------------------------------------------- */

/* Eight bytes of the pattern, none of them zero. */
static inline uint64_t pattern_word(uint64_t seed, size_t index) {
    return (seed * 0x9E3779B97F4A7C15U + index * 0xD1342543DE82EF95U) | 0x0101010101010101U;
}

UNUSED static void fill(void *memory, size_t size, uint64_t seed) {
    unsigned char *bytes = memory;
    for (size_t i = 0; i < size; i += 8) {
        const uint64_t word = pattern_word(seed, i);
        memcpy(bytes + i, &word, size - i < 8 ? size - i : 8);
    }
}

UNUSED static bool is_filled(const void *memory, size_t size, uint64_t seed) {
    const unsigned char *bytes = memory;
    for (size_t i = 0; i < size; i += 8) {
        const uint64_t word = pattern_word(seed, i);
        if (memcmp(bytes + i, &word, size - i < 8 ? size - i : 8) != 0) return false;
    }
    return true;
}

UNUSED static bool is_zero(const void *memory, size_t size) {
    const unsigned char *bytes = memory;
    return size == 0 || (bytes[0] == 0 && memcmp(bytes, bytes + 1, size - 1) == 0);
}

UNUSED static bool is_aligned(const void *pointer, size_t alignment) {
    return ((uintptr_t)pointer & (alignment - 1)) == 0;
}

/* The distance between two blocks of one arena. */
UNUSED static ptrdiff_t offset_from(const void *base, const void *pointer) {
    return (ptrdiff_t)((uintptr_t)pointer - (uintptr_t)base);
}

/* ---- random numbers: the same on every machine ------------------------------------------------------------------- */

typedef struct random_source {
    uint64_t state;
} random_source;

UNUSED static uint64_t random_next(random_source *source) { /* splitmix64 */
    uint64_t value = source->state += 0x9E3779B97F4A7C15U;
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9U;
    value = (value ^ (value >> 27)) * 0x94D049BB133111EBU;
    return value ^ (value >> 31);
}

UNUSED static size_t random_below(random_source *source, size_t bound) { return (size_t)(random_next(source) % bound); }

/* ---- a corruption handler that notes instead of aborting ---------------------------------------------------------- */

typedef struct corruption_note {
    int count;
    char message[256];
} corruption_note;

UNUSED static void note_corruption(void *context, const char *message) {
    corruption_note *note = context;
    note->count++;
    snprintf(note->message, sizeof note->message, "%s", message);
}

/* What every message to a handler must be: one line, not empty, without its newline. */
UNUSED static bool is_one_line(const char *text) { return text[0] != '\0' && strchr(text, '\n') == NULL; }

/* ---- what this platform can do, asked of itself ------------------------------------------------------------------- */

/* Tries `call` on a page of its own. */
UNUSED static bool can(int (*call)(const fa_os *os, void *page, size_t size)) {
    const fa_os *os = fa_os_platform();
    const size_t size = os->page_size();
    void *page = NULL;
    CHECK(os->reserve(size, size, &page) == 0 && os->commit(page, size) == 0);
    const bool done = call(os, page, size) == 0;
    CHECK(os->release(page, size) == 0);
    return done;
}
UNUSED static int try_decommit(const fa_os *os, void *page, size_t size) { return os->decommit(page, size); }
UNUSED static int try_resident(const fa_os *os, void *page, size_t size) {
    uint64_t bytes;
    return os->resident(page, size, &bytes);
}
UNUSED static int try_remap(const fa_os *os, void *page, size_t size) { return os->remap(page, size, size, &page); }

/* What a trim should return that had something to give back, or not. */
UNUSED static bool trim_is_fine(fa_status status) {
    return status == FA_OK || (status == FA_ERR_UNSUPPORTED && !can(try_decommit));
}
#define NO_RESIDENCY "residency is not known here"
#define NO_DECOMMIT "memory cannot be given back here"

/* ---- short cuts --------------------------------------------------------------------------------------------------- */

UNUSED static fa_arena_options arena_options(fa_arena_kind kind, size_t capacity) {
    fa_arena_options options;
    fa_arena_options_init(&options, kind);
    options.capacity = capacity;
    return options;
}

UNUSED static fa_arena *arena_with(const fa_arena_options *options) {
    fa_status status = FA_ERR_UNSUPPORTED;
    fa_arena *arena = fa_arena_create(options, &status);
    CHECK(arena != NULL);
    CHECK(status == FA_OK);
    return arena;
}

/* An arena that fails when it is full. */
UNUSED static fa_arena *new_arena(fa_arena_kind kind, size_t capacity) {
    fa_arena_options options = arena_options(kind, capacity);
    options.on_full = FA_FULL_FAIL;
    return arena_with(&options);
}

UNUSED static fa_arena_stats arena_stats(const fa_arena *arena) {
    fa_arena_stats stats;
    memset(&stats, 0xA5, sizeof stats);
    CHECK(fa_arena_get_stats(arena, &stats) == FA_OK);
    return stats;
}

UNUSED static fa_protection arena_protection(const fa_arena *arena) {
    fa_protection protection;
    memset(&protection, 0xA5, sizeof protection);
    CHECK(fa_arena_get_protection(arena, &protection) == FA_OK);
    return protection;
}

UNUSED static fa_manager *manager_with(const fa_manager_options *options) {
    fa_status status = FA_ERR_UNSUPPORTED;
    fa_manager *manager = fa_manager_create(options, &status);
    CHECK(manager != NULL);
    CHECK(status == FA_OK);
    return manager;
}

UNUSED static fa_manager_stats manager_stats(const fa_manager *manager) {
    fa_manager_stats stats;
    memset(&stats, 0xA5, sizeof stats);
    CHECK(fa_manager_get_stats(manager, &stats) == FA_OK);
    return stats;
}

static const fa_arena_kind all_kinds[] = {FA_WITNESS, FA_POLYNOMIAL, FA_SCRATCH};
#define FOR_EACH_KIND(kind)                                                                                            \
    for (size_t kind##_index = 0; kind##_index < 3; kind##_index++)                                                    \
        for (fa_arena_kind kind = all_kinds[kind##_index], *once = &kind; once != NULL; once = NULL)

#endif
