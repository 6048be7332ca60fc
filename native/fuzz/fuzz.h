/*
 * fuzz.h - what the fuzz targets share: bytes in, decisions out, and a reference model of live blocks
 *
 *     input   | configuration | operation, arguments | operation, arguments | ...
 *
 * A target is LLVMFuzzerTestOneInput: libFuzzer calls it with what it mutates (make fuzz), replay.c with the files of the
 * corpus (make test). Every byte string is a valid program: reading past the end gives zeros and ends it. The configuration
 * says, among other things, which call to the operating system fails (tests/faulty_os.h), and the clock moves only when the
 * input says so: an input does the same each time.
 *
 * The model is a list of blocks that is too simple to be wrong. A block that overlaps another, is not aligned, or whose bytes
 * change without its owner, stops the program; so does an object that recounts itself and finds a mistake.
 */
#ifndef FUZZ_H
#define FUZZ_H

#include <stdio.h>
#include <stdlib.h>

/* A check that fails ends the process, where libFuzzer and replay.c see it: tap.h is for test programs. */
#define TAP_H
#define CHECK(condition) ((condition) ? (void)0 : fuzz_stop(#condition, __FILE__, __LINE__))
_Noreturn static void fuzz_stop(const char *text, const char *file, int line) {
    fprintf(stderr, "%s:%d: %s\n", file, line, text);
    abort();
}

#include <stdbool.h>
#include <string.h>

#include "tests/faulty_os.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* ---- bytes in ----------------------------------------------------------------------------------------------------- */

typedef struct input {
    const uint8_t *at, *end;
} input;

static inline bool is_over(const input *from) { return from->at == from->end; }
static inline uint8_t next_byte(input *from) { return is_over(from) ? 0 : *from->at++; }
static inline size_t next_below(input *from, size_t bound) { return next_byte(from) % bound; }

/* A size that is often small, often near a power of two, sometimes absurd. */
static inline size_t next_size(input *from) {
    const uint8_t kind = next_byte(from), detail = next_byte(from);
    if (kind < 100) return detail;
    if (kind < 160) return (size_t)detail << (kind % 8);
    if (kind < 250) return ((size_t)1 << (kind % 20)) + detail - 128; /* may wrap: then it is absurd */
    if (kind < 253) return (size_t)detail << (kind - 236); /* up to 16 MiB */
    return SIZE_MAX - detail;
}

static inline size_t next_alignment(input *from) {
    const uint8_t detail = next_byte(from);
    if (detail < 128) return 0;
    return detail < 240 ? (size_t)1 << (detail % 23) : detail; /* up to 4 MiB, and what is no power of two */
}

/* replay.c may say which call fails, whatever the input says: kind (-1: as the input says), how many succeed first, for ever. */
int fuzz_fault[3] = {-1, 0, 0};
extern const int fuzz_fault_kinds;
const int fuzz_fault_kinds = CALLS;
bool fuzz_fault_was_hit(void);
bool fuzz_fault_was_hit(void) { return fault.failed; }

/* Which call fails, if any. */
static inline void next_fault(input *from) {
    const uint8_t kind = next_byte(from), after = next_byte(from);
    no_fault();
    if (fuzz_fault[0] >= 0) {
        fault.kind = (call)fuzz_fault[0];
        fault.after = fuzz_fault[1];
        fault.for_ever = fuzz_fault[2] != 0;
        return;
    }
    if (kind % 32 >= CALLS) return;
    fault.kind = (call)(kind % 32);
    fault.after = after % 64;
    fault.for_ever = after >= 128;
}

/* ---- the model ---------------------------------------------------------------------------------------------------- */

#define FUZZ_BLOCKS 64U
/* Bytes at both ends of a block that hold its pattern: the middle of a large one is left alone. */
#define FUZZ_ENDS 512U

typedef struct model_block {
    unsigned char *address;
    size_t size;
    size_t alignment;
    uint64_t seed; /* greater than that of every older block */
} model_block;

typedef struct model {
    model_block live[FUZZ_BLOCKS];
    size_t count;
    uint64_t next_seed;
} model;

static inline bool holds(const model_block *block) {
    if (block->size <= 2 * FUZZ_ENDS) return is_filled(block->address, block->size, block->seed);
    return is_filled(block->address, FUZZ_ENDS, block->seed) &&
           is_filled(block->address + block->size - FUZZ_ENDS, FUZZ_ENDS, block->seed + 1);
}

static inline void mark_block(const model_block *block) {
    if (block->size <= 2 * FUZZ_ENDS) {
        fill(block->address, block->size, block->seed);
    } else {
        fill(block->address, FUZZ_ENDS, block->seed);
        fill(block->address + block->size - FUZZ_ENDS, FUZZ_ENDS, block->seed + 1);
    }
}

/* Whether the first bytes of a block that was moved to `moved` with another size are there. */
static inline bool moved_holds(const model_block *block, const void *moved, size_t size) {
    const size_t both = size < block->size ? size : block->size;
    const size_t held = block->size <= 2 * FUZZ_ENDS ? block->size : FUZZ_ENDS;
    return is_filled(moved, both < held ? both : held, block->seed);
}

/* Both ends of memory that is promised to be zero; the middle is what FUZZ_ENDS leaves out above. */
static inline bool reads_zero(const unsigned char *memory, size_t size) {
    if (size <= 4 * FUZZ_ENDS) return is_zero(memory, size);
    return is_zero(memory, 2 * FUZZ_ENDS) && is_zero(memory + size - 2 * FUZZ_ENDS, 2 * FUZZ_ENDS);
}

static inline void model_add(model *all, unsigned char *address, size_t size, size_t alignment) {
    CHECK(all->count < FUZZ_BLOCKS);
    CHECK(is_aligned(address, alignment < 2 * sizeof(void *) ? 2 * sizeof(void *) : alignment));
    for (size_t i = 0; i < all->count; i++) {
        const model_block *other = &all->live[i];
        CHECK(address != other->address);
        CHECK(address + size <= other->address || other->address + other->size <= address);
    }
    all->live[all->count] = (model_block){address, size, alignment, all->next_seed += 2};
    mark_block(&all->live[all->count++]);
}

static inline model_block model_remove(model *all, size_t index) {
    const model_block block = all->live[index];
    CHECK(holds(&block));
    all->live[index] = all->live[--all->count];
    return block;
}

static inline void model_check(const model *all) {
    for (size_t i = 0; i < all->count; i++) CHECK(holds(&all->live[i]));
}

static inline uint64_t model_bytes(const model *all) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < all->count; i++) bytes += all->live[i].size;
    return bytes;
}

#endif
