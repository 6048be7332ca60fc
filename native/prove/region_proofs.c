/*
 * region_proofs.c - mem/region.c: what is reserved
 */
#include "proof.h"

#include "mem/region.c"

static size_t reserved_size;
static int note_reserve(size_t size, size_t alignment, void **address) {
    reserved_size = size;
    *address = (void *)alignment; /* some address with the alignment */
    return 0;
}

/* Refuted by
 *   mem/region.c
 *   - if (capacity > SIZE_MAX - below - guard) return FA_ERR_NOMEM;
 *   +
 */
PROOF(regions_hold_what_was_asked) {
    static fa_os os;
    static fa_region region;
    const size_t capacity = ANY, page_log2 = ANY, alignment_log2 = ANY;
    const fa_want guard = (ANY & 1) != 0 ? FA_TRY : FA_OFF;
    ASSUME(page_log2 >= 12 && page_log2 <= 16 && alignment_log2 <= 21 && capacity > 0);
    const size_t page = (size_t)1 << page_log2, alignment = (size_t)1 << alignment_log2;
    const fa_region_spec spec = {.capacity = capacity, .alignment = alignment, .guard_pages = guard};
    os.traps = true;
    os.reserve = note_reserve;
    region.os = &os;
    region.page = page;
    if (reserve(&region, &spec) != FA_OK) {
        SHOW(capacity > SIZE_MAX - 3 * fa_max(page, alignment)); /* refused only what would wrap */
        PROVED;
    }
    const size_t start = (size_t)region.reserved, base = (size_t)region.base;
    SHOW(region.capacity >= capacity && region.capacity % page == 0 && base % alignment == 0 && base % page == 0);
    SHOW(region.reserved_size == reserved_size && base >= start && region.capacity <= reserved_size - (base - start));
    SHOW(guard == FA_OFF || (base - start >= page && reserved_size - (base - start) - region.capacity >= page));
    PROVED;
}
