/*
 * table_fuzz.c - mem/table.h against an array of pairs
 *
 * Addresses come from a few hundred, close together and far apart, so that runs of occupied slots form, wrap round the end of
 * the array, and are cut in the middle.
 */
#include "fuzz.h"

#include "mem/table.h"

#define PAIRS 400U

static struct {
    uintptr_t address;
    uint64_t value;
} pair[PAIRS];
static size_t pairs;

static size_t position_of(uintptr_t address) {
    size_t i = 0;
    while (i < pairs && pair[i].address != address) i++;
    return i;
}

static uintptr_t next_address(input *from) {
    const uintptr_t detail = next_byte(from);
    switch (detail % 4) {
    case 0: return 16 * (detail + 1);
    case 1: return ((uintptr_t)1 << 20) + 4096 * detail;
    case 2: return ((uintptr_t)next_byte(from) << 30) + 16 * detail;
    default: return ~(uintptr_t)0 - 15 - 128 * detail;
    }
}

static void check_walk(const fa_table *table) {
    size_t position = 0, seen = 0;
    for (const fa_slot *slot = fa_table_next(table, &position); slot != NULL; slot = fa_table_next(table, &position)) {
        const size_t found = position_of(slot->address);
        CHECK(found < pairs && pair[found].value == slot->value);
        seen++;
    }
    CHECK(seen == pairs && table->count == pairs);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input from = {data, data + size};
    const fa_os os = faulty_os(true);
    next_fault(&from);
    fa_table table;
    fa_table_init(&table);
    pairs = 0;
    uint64_t next_value = 1;
    while (!is_over(&from)) {
        const uint8_t choice = next_byte(&from);
        const uintptr_t address = next_address(&from);
        fa_slot *slot = fa_table_find(&table, (const void *)address);
        const size_t known = position_of(address);
        CHECK((slot != NULL) == (known < pairs));
        CHECK(slot == NULL || slot->value == pair[known].value);
        if (slot == NULL && choice < 160 && pairs < PAIRS) {
            const bool entered = fa_table_insert(&table, &os, (const void *)address, next_value);
            CHECK(entered || fault.failed);
            if (!entered) continue;
            pair[pairs].address = address;
            pair[pairs++].value = next_value++;
        } else if (slot != NULL && choice < 100) {
            slot->value = pair[known].value = next_value++;
        } else if (slot != NULL && choice < 200) {
            fa_table_remove(&table, slot);
            pair[known] = pair[--pairs];
        } else if (choice >= 250) {
            check_walk(&table);
        }
        CHECK(fa_table_find(&table, NULL) == NULL);
        CHECK(fa_table_is_valid(&table));
    }
    check_walk(&table);
    fa_table_destroy(&table, &os);
    CHECK(fault.mapped == 0 && table.count == 0);
    return 0;
}
