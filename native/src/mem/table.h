/*
 * mem/table.h - a hash table from addresses to a 64-bit value, away from the blocks it knows
 *
 *     slot   | address | value | address | value | 0 | 0 | address | value | ...
 *
 * Open addressing with linear probing, load at most 1/2, backward-shift delete (Knuth, TAOCP vol. 3, 6.4, algorithm R):
 * no tombstones, so a table that empties is as fast as a new one. Neighbouring addresses share a cache line of slots, so
 * blocks freed in order are found in order. Grows by doubling into a second array; the memory is the system's pages.
 *
 * Invariants: every entry is reachable from its home slot without crossing an empty one; count + out <= slots / 2.
 * Thread rule: the owner's lock. Cost: O(1) expected; a growth moves all entries, O(1) amortised.
 */
#ifndef FA_MEM_TABLE_H
#define FA_MEM_TABLE_H

#include "base.h"
#include "os/os.h"

typedef struct fa_slot {
    uintptr_t address; /* 0: empty */
    uint64_t value;
} fa_slot;

typedef struct fa_table {
    fa_slot *slots;
    size_t mask; /* slots - 1; a power of two of them */
    size_t count;
    size_t out;    /* taken out, to be put back */
    size_t mapped; /* bytes */
} fa_table;

/* An empty table owns nothing until the first insert. */
static inline void fa_table_init(fa_table *table) { *table = (fa_table){0}; }
void fa_table_destroy(fa_table *table, const fa_os *os);

/* `address` is not null and not in the table. False if there is no memory; the table is then unchanged. */
bool fa_table_insert(fa_table *table, const fa_os *os, const void *address, uint64_t value);

/* The entry, valid until the next insert or remove, or null. */
fa_slot *fa_table_find(const fa_table *table, const void *address);

void fa_table_remove(fa_table *table, fa_slot *slot);

/* For an entry whose address is about to change: takes it out and keeps its room, so that putting it back cannot fail,
 * whatever others insert meanwhile. */
void fa_table_take_out(fa_table *table, fa_slot *slot);
void fa_table_put_back(fa_table *table, const void *address, uint64_t value);

/* Entries, those that are out included. */
static inline size_t fa_table_known(const fa_table *table) { return table->count + table->out; }

/* Some entry at or after *position in slot order, or null; *position moves past it. Removal during such a walk may show
 * an entry twice or move one past it: remove, then look at the same position again. */
fa_slot *fa_table_next(const fa_table *table, size_t *position);

bool fa_table_is_valid(const fa_table *table);

#endif
