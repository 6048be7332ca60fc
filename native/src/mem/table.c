/*
 * mem/table.c - a hash table from addresses to a 64-bit value
 *
 *     home(address) = 4 * mix(address / 128) + (address / 32) mod 4
 *
 * Four slots are a cache line. Blocks within 128 bytes of each other start in the same line, which halves the misses of a
 * program that frees in the order it allocated. See table.h for the rest.
 */
#include "table.h"

#include <string.h>

/* The first array: one page of slots. */
#define FIRST_SLOTS ((size_t)256)
#define LINE_LOG2 7
#define SLOT_LOG2 5

static size_t home_of(const fa_table *table, uintptr_t address) {
    uint64_t mixed = (uint64_t)(address >> LINE_LOG2) * UINT64_C(0x9E3779B97F4A7C15); /* 2^64 / golden ratio */
    mixed ^= mixed >> 32;
    return ((size_t)(mixed << 2) | (address >> SLOT_LOG2 & 3)) & table->mask;
}

static void place(fa_table *table, uintptr_t address, uint64_t value) {
    size_t index = home_of(table, address);
    while (table->slots[index].address != 0) index = (index + 1) & table->mask;
    table->slots[index] = (fa_slot){.address = address, .value = value};
}

FA_COLD static bool grow(fa_table *table, const fa_os *os) {
    size_t slots = table->slots == NULL ? FIRST_SLOTS : (table->mask + 1) * 2;
    if (slots > SIZE_MAX / sizeof(fa_slot)) return false;
    size_t page = os->page_size(), mapped;
    void *address;
    if (!fa_align_up(slots * sizeof(fa_slot), page, &mapped)) return false;
    if (os->reserve(mapped, page, &address) != 0) return false;
    if (os->commit(address, mapped) != 0) {
        (void)os->release(address, mapped);
        return false;
    }
    fa_table grown = {.slots = address, .mask = slots - 1, .count = table->count, .out = table->out, .mapped = mapped};
    for (size_t i = 0; table->slots != NULL && i <= table->mask; i++)
        if (table->slots[i].address != 0) place(&grown, table->slots[i].address, table->slots[i].value);
    fa_table_destroy(table, os);
    *table = grown;
    return true;
}

void fa_table_destroy(fa_table *table, const fa_os *os) {
    if (table->slots != NULL) (void)os->release(table->slots, table->mapped);
    fa_table_init(table);
}

bool fa_table_insert(fa_table *table, const fa_os *os, const void *address, uint64_t value) {
    FA_ASSERT(address != NULL && fa_table_find(table, address) == NULL);
    if (FA_UNLIKELY(table->slots == NULL || fa_table_known(table) >= (table->mask + 1) / 2) && !grow(table, os))
        return false;
    place(table, (uintptr_t)address, value);
    table->count++;
    return true;
}

void fa_table_take_out(fa_table *table, fa_slot *slot) {
    fa_table_remove(table, slot);
    table->out++;
}

void fa_table_put_back(fa_table *table, const void *address, uint64_t value) {
    FA_ASSERT(table->out > 0 && address != NULL && fa_table_find(table, address) == NULL);
    place(table, (uintptr_t)address, value);
    table->count++;
    table->out--;
}

fa_slot *fa_table_find(const fa_table *table, const void *address) {
    if (table->count == 0 || address == NULL) return NULL;
    size_t index = home_of(table, (uintptr_t)address);
    while (table->slots[index].address != 0) {
        if (table->slots[index].address == (uintptr_t)address) return &table->slots[index];
        index = (index + 1) & table->mask;
    }
    return NULL;
}

void fa_table_remove(fa_table *table, fa_slot *slot) {
    size_t hole = (size_t)(slot - table->slots);
    for (size_t index = (hole + 1) & table->mask; table->slots[index].address != 0;
         index = (index + 1) & table->mask) {
        size_t home = home_of(table, table->slots[index].address);
        /* The entry may fill the hole only if its home is not behind it: distances, round the end of the array. */
        if (((index - home) & table->mask) >= ((index - hole) & table->mask)) {
            table->slots[hole] = table->slots[index];
            hole = index;
        }
    }
    table->slots[hole] = (fa_slot){0};
    table->count--;
}

fa_slot *fa_table_next(const fa_table *table, size_t *position) {
    if (table->slots == NULL) return NULL;
    while (*position <= table->mask) {
        fa_slot *slot = &table->slots[(*position)++];
        if (slot->address != 0) return slot;
    }
    return NULL;
}

bool fa_table_is_valid(const fa_table *table) {
    size_t count = 0, position = 0;
    for (fa_slot *slot = fa_table_next(table, &position); slot != NULL; slot = fa_table_next(table, &position)) {
        if (fa_table_find(table, (const void *)slot->address) != slot) return false;
        count++;
    }
    return count == table->count && (table->slots == NULL || fa_table_known(table) <= (table->mask + 1) / 2);
}
