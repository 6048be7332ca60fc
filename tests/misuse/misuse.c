/*
 * misuse.c - a program that misuses one block of memory, in one way; misuse.cpp is the same with C++'s operators
 *
 *     misuse WAY SIZE FORM
 *
 * It prints the address that it is about to misuse, misuses it, and ends as a program would that did not notice. Exit status 0: it
 * went through in silence. 3: nothing came of it (refused, zero, not executable). 4: this way does not exist here. Whatever else
 * happens is the allocator's doing.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { SILENT = 0, USAGE = 2, PREVENTED = 3, NOT_HERE = 4 };

#ifndef TAKE
static const char *form;
#endif
static void *volatile hidden; /* nothing that the compiler could see through */

static unsigned char *same(void *block) {
    hidden = block;
    return (unsigned char *)hidden;
}

#ifndef TAKE
/* The C library has it not yet. */
__attribute__((weak)) extern void free_sized(void *block, size_t size);

static void *take(size_t size) {
    void *block = NULL;
    if (strcmp(form, "calloc") == 0) return calloc(1, size);
    if (strcmp(form, "realloc") == 0 && size > 0) return realloc(malloc(1), size);
    if (strcmp(form, "aligned") == 0) return posix_memalign(&block, 64, size) == 0 ? block : NULL;
    return malloc(size);
}
static void give(void *block) { free(block); }
static int give_sized(void *block, size_t size) {
    if (free_sized == NULL) return NOT_HERE;
    free_sized(block, size);
    return SILENT;
}
#endif

static void say(const void *address) {
    printf("0x%lx\n", (unsigned long)(uintptr_t)address);
    fflush(stdout);
}

static unsigned char *block_of(size_t size) {
    unsigned char *block = same(take(size));
    if (block == NULL) exit(1);
    memset(block, 'a', size);
    return block;
}

static unsigned char *victim(size_t size) {
    unsigned char *block = block_of(size);
    say(block);
    return block;
}

/* ---- frees ----------------------------------------------------------------------------------------------------------- */

static int double_free(size_t size) {
    unsigned char *block = victim(size);
    give(block);
    give(same(block));
    return SILENT;
}

static int double_free_later(size_t size) {
    unsigned char *others[16], *block = victim(size);
    give(block);
    for (int i = 0; i < 16; i++) others[i] = block_of(size + (size_t)i % 3);
    for (int i = 0; i < 16; i++) give(others[i]);
    give(same(block));
    return SILENT;
}

static int double_free_interleaved(size_t size) {
    unsigned char *other = block_of(size), *block = victim(size);
    give(block);
    give(other);
    give(same(block));
    return SILENT;
}

static int free_of_a_number(size_t size) {
    unsigned char *other = block_of(size);
    say((void *)0x12340);
    give(same((void *)0x12340));
    give(other);
    return SILENT;
}

static int free_inside(size_t size) {
    unsigned char *block = block_of(size);
    say(block + 8);
    give(same(block + 8));
    return SILENT;
}

static int free_unaligned(size_t size) {
    unsigned char *block = block_of(size);
    say(block + 1);
    give(same(block + 1));
    return SILENT;
}

static int free_of_a_mapping(size_t size) {
    unsigned char *other = block_of(size);
    void *mapped = mmap(NULL, size + 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return 1;
    say((unsigned char *)mapped + 4096);
    give(same((unsigned char *)mapped + 4096));
    give(other);
    return SILENT;
}

static int free_of_the_stack(size_t size) {
    unsigned char local[256] __attribute__((aligned(16))) = {(unsigned char)size}, *other = block_of(size);
    say(local + 32);
    give(same(local + 32));
    give(other);
    return SILENT;
}

static int free_of_a_variable(size_t size) {
    static unsigned char variable[256] __attribute__((aligned(16)));
    unsigned char *other = block_of(size);
    say(variable + 32);
    give(same(variable + 32));
    give(other);
    return SILENT;
}

static int free_with_another_size(size_t size) {
    unsigned char *block = victim(size);
    return give_sized(block, size + 1);
}

static int realloc_of_freed(size_t size) {
    unsigned char *block = victim(size);
    give(block);
    hidden = realloc(same(block), size + 1);
    return SILENT;
}

static int size_of_freed(size_t size) {
    unsigned char *block = victim(size);
    give(block);
    return malloc_usable_size(same(block)) == 0 ? PREVENTED : SILENT;
}

/* ---- writes ---------------------------------------------------------------------------------------------------------- */

static int overflow_by_a_byte(size_t size) {
    unsigned char *block = victim(size);
    block[size] ^= 0x55;
    give(block);
    return SILENT;
}

static int overflow_by_a_terminator(size_t size) {
    unsigned char *block = victim(size);
    block[size] = 0;
    give(block);
    return SILENT;
}

static int overflow_by_memcpy(size_t size) {
    static const unsigned char text[64] = "far more than there is room for, and then some of it";
    unsigned char *block = victim(size);
    memcpy(same(block + size), text, sizeof text);
    give(block);
    return SILENT;
}

static int overflow_and_no_free(size_t size) {
    unsigned char *block = victim(size);
    block[size] ^= 0x55;
    return SILENT;
}

static int underflow_by_a_byte(size_t size) {
    unsigned char *block = victim(size);
    same(block - 1)[0] ^= 0x55;
    give(block);
    return SILENT;
}

static int underflow_by_memset(size_t size) {
    unsigned char *block = victim(size);
    memset(same(block - 16), 0x55, 16);
    give(block);
    return SILENT;
}

static int write_after_free(size_t size) {
    unsigned char *block = victim(size);
    give(block);
    same(block)[size / 2] = 0x55;
    return SILENT;
}

static int write_after_free_and_reuse(size_t size) {
    unsigned char *block = victim(size);
    give(block);
    same(block)[0] = 0x55;
    for (int i = 0; i < 3000; i++) give(block_of(size));
    return SILENT;
}

static int write_to_nothing(size_t size) {
    unsigned char *block = victim(0);
    (void)size;
    block[0] ^= 0x55;
    give(block);
    return SILENT;
}

/* ---- reads ----------------------------------------------------------------------------------------------------------- */

static int is_stale(const unsigned char *block, size_t size) {
    for (size_t i = 32; i < size; i++) /* what lies before it may be the allocator's */
        if (block[i] == 'a') return SILENT;
    return PREVENTED;
}

static int read_after_free(size_t size) {
    unsigned char *block = victim(size);
    give(block);
    return is_stale(same(block), size);
}

static int read_of_what_was_there(size_t size) {
    unsigned char *blocks[600];
    int result = PREVENTED, count = size > 10000 ? 30 : 600;
    say(NULL);
    for (int i = 0; i < count; i++) {
        give(block_of(size));
        blocks[i] = same(take(size));
        if (blocks[i] == NULL) return 1;
        if (is_stale(blocks[i], size) == SILENT) result = SILENT;
        if (i % 2 == 0 || size > 100000) give(blocks[i]);
    }
    return result;
}

/* ---- the rest -------------------------------------------------------------------------------------------------------- */

static int absurd_size(size_t size) {
    volatile size_t absurd = SIZE_MAX - size, half = SIZE_MAX / 2 + 2, too_large = (size_t)PTRDIFF_MAX;
    say(NULL);
    if (malloc(absurd) != NULL || malloc(too_large) != NULL || calloc(half, 2) != NULL) return SILENT;
    if (realloc(malloc(size), absurd) != NULL || reallocarray(NULL, half, 2) != NULL) return SILENT;
    return memalign(64, absurd) == NULL ? PREVENTED : SILENT;
}

static int executable(size_t size) {
    unsigned char *block = victim(size);
    char line[512], may[8];
    unsigned long begin, end;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps != NULL && fgets(line, sizeof line, maps) != NULL)
        if (sscanf(line, "%lx-%lx %7s", &begin, &end, may) == 3 && (uintptr_t)block >= begin && (uintptr_t)block < end)
            return strchr(may, 'x') == NULL ? PREVENTED : SILENT;
    return 1;
}

static const struct {
    const char *name;
    int (*run)(size_t size);
} ways[] = {
#define WAY(name) {#name, name}
    WAY(double_free), WAY(double_free_later), WAY(double_free_interleaved), WAY(free_of_a_number), WAY(free_inside),
    WAY(free_unaligned), WAY(free_of_a_mapping), WAY(free_of_the_stack), WAY(free_of_a_variable),
    WAY(free_with_another_size), WAY(realloc_of_freed), WAY(size_of_freed), WAY(overflow_by_a_byte),
    WAY(overflow_by_a_terminator), WAY(overflow_by_memcpy), WAY(overflow_and_no_free), WAY(underflow_by_a_byte),
    WAY(underflow_by_memset), WAY(write_after_free), WAY(write_after_free_and_reuse), WAY(write_to_nothing),
    WAY(read_after_free), WAY(read_of_what_was_there), WAY(absurd_size), WAY(executable),
};

int main(int argc, char **argv) {
    form = argc == 4 ? argv[3] : "";
    for (size_t i = 0; argc == 4 && i < sizeof ways / sizeof ways[0]; i++)
        if (strcmp(ways[i].name, argv[1]) == 0) return ways[i].run((size_t)strtoul(argv[2], NULL, 10));
    fprintf(stderr, "usage: misuse WAY SIZE FORM\n");
    return USAGE;
}
