/*
 * consumer.c - a user's program: includes one header, links one library
 */
#include <fastalloc.h>
#include <stdio.h>
#include <string.h>

int main(void) {
    fa_arena_options options;
    fa_arena_options_init(&options, FA_POLYNOMIAL);
    options.capacity = (size_t)16 << 20;
    fa_arena *arena = fa_arena_create(&options, NULL);
    fa_manager *manager = fa_manager_create(NULL, NULL);
    if (arena == NULL || manager == NULL) return 1;
    uint32_t *vector = fa_arena_alloc_zeroed(arena, sizeof *vector << 20, 0);
    char *text = fa_malloc(manager, 32);
    if (vector == NULL || text == NULL || vector[12345] != 0) return 1;
    strcpy(text, fa_version());
    printf("fastalloc %s\n", text);
    fa_free(manager, text);
    fa_manager_destroy(manager);
    fa_arena_destroy(arena);
    return strcmp(fa_version(), FA_VERSION) == 0 ? 0 : 1;
}
