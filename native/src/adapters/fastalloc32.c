/*
 * adapters/fastalloc32.c - the five published names of fastalloc32
 *
 *     a program for fastalloc32 --> fastalloc32_malloc --> fa_malloc
 *
 * Real functions, not macros: programs declare them by hand. The manager they get has the defaults of
 * fa_manager_options_init, belongs to one thread, and reports corruption by aborting.
 */
#include "fastalloc32.h"

void *fastalloc32_create(void) { return fa_manager_create(NULL, NULL); }

void fastalloc32_destroy(void *manager) { fa_manager_destroy(manager); }

void *fastalloc32_malloc(void *manager, size_t size) { return fa_malloc(manager, size); }

void *fastalloc32_realloc(void *manager, void *block, size_t size) { return fa_realloc(manager, block, size); }

void fastalloc32_free(void *manager, void *block) { fa_free(manager, block); }
