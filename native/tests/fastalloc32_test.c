/*
 * fastalloc32_test.c - the five names through our header, next to the manager they stand on
 */
#include "fastalloc32.h"

#include "support.h"

TEST(the_five_names_are_a_manager) {
    void *manager = fastalloc32_create();
    CHECK(manager != NULL);
    void *block = fastalloc32_malloc(manager, 100);
    CHECK(fa_owns(manager, block) && fa_usable_size(manager, block) >= 100);
    CHECK(manager_stats(manager).live == 1);
    block = fastalloc32_realloc(manager, block, 100000);
    CHECK(manager_stats(manager).requested == 100000);
    fastalloc32_free(manager, block);
    CHECK(manager_stats(manager).live == 0);
    fastalloc32_destroy(manager);
}

TEST(edges_are_those_of_malloc) {
    void *manager = fastalloc32_create();
    fastalloc32_free(manager, NULL);
    void *block = fastalloc32_realloc(manager, NULL, 10);
    CHECK(block != NULL && fastalloc32_realloc(manager, block, 0) == NULL);
    CHECK(fastalloc32_malloc(manager, SIZE_MAX) == NULL);
    CHECK(fastalloc32_malloc(manager, 0) != NULL);
    fastalloc32_destroy(manager);
    fastalloc32_destroy(NULL);
}

TEST(pool_blocks_are_wiped_unlike_the_original) {
    void *manager = fastalloc32_create();
    unsigned char *block = fastalloc32_malloc(manager, 64);
    memset(block, 0xFF, 64);
    fastalloc32_free(manager, block);
    CHECK(peek_nonzero(block, 64) == 0);
    fastalloc32_destroy(manager);
}

int main(int argc, char **argv) { return tap_main(argc, argv); }
