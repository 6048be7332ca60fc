/*
 * fastalloc32_published_test.c - a program as fastalloc32's documentation tells people to write it: no header of ours,
 * the five functions declared by hand
 */
#include <stddef.h>
#include <stdint.h>

#include "tap.h"

extern void *fastalloc32_create(void);
extern void fastalloc32_destroy(void *manager);
extern void *fastalloc32_malloc(void *manager, size_t size);
extern void *fastalloc32_realloc(void *manager, void *ptr, size_t size);
extern void fastalloc32_free(void *manager, void *ptr);

TEST(the_published_program_runs) {
    void *manager = fastalloc32_create();
    CHECK(manager != NULL);
    char *text = fastalloc32_malloc(manager, 64);
    CHECK(text != NULL);
    strcpy(text, "thirty-two bytes are enough for anybody");
    text = fastalloc32_realloc(manager, text, 4096);
    CHECK(text != NULL && strcmp(text, "thirty-two bytes are enough for anybody") == 0);
    text = fastalloc32_realloc(manager, text, 40);
    CHECK(text != NULL && strcmp(text, "thirty-two bytes are enough for anybody") == 0);
    fastalloc32_free(manager, text);
    fastalloc32_destroy(manager);
}

TEST(many_small_objects_outgrow_the_pool) {
    void *manager = fastalloc32_create();
    enum { COUNT = 50000 };
    uint32_t **objects = malloc(COUNT * sizeof *objects);
    for (uint32_t i = 0; i < COUNT; i++) {
        objects[i] = fastalloc32_malloc(manager, 32);
        CHECK(objects[i] != NULL);
        objects[i][0] = i;
        objects[i][7] = ~i;
    }
    for (uint32_t i = 0; i < COUNT; i++) {
        CHECK(objects[i][0] == i && objects[i][7] == ~i);
        fastalloc32_free(manager, objects[i]);
    }
    free(objects);
    fastalloc32_destroy(manager);
}

int main(int argc, char **argv) { return tap_main(argc, argv); }
