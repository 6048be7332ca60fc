/*
 * limit.c - the cheapest functions that could do the work
 *
 * An allocator behind a library boundary is a call, so the limit of one is a call too: a plain pointer bump that checks
 * nothing, counts nothing and belongs to one thread, in a shared library of its own, as fastalloc and its peers are. Written
 * into the loop of the benchmark it would be vectorised, at 0.3 ns a block: that is a memset with a pattern, not a limit
 * that an allocator could reach.
 */
#include "bench.h"

#define EXPORT __attribute__((visibility("default"), noinline))

EXPORT void *limit_bump_alloc(limit_bump *bump, size_t size) {
    unsigned char *block = bump->cursor;
    bump->cursor = block + ((size + 15) & ~(size_t)15);
    return block;
}

EXPORT void limit_bump_release(limit_bump *bump, unsigned char *to) { bump->cursor = to; }

EXPORT void *limit_stack_pop(limit_stack *stack) { return stack->block[--stack->count]; }

EXPORT void limit_stack_push(limit_stack *stack, void *block) { stack->block[stack->count++] = block; }

/* Four stores of 32 bytes, where the processor has them. Not a memset of constant size: gcc makes a `rep stos` of 128 bytes, which
 * takes three times as long. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
__attribute__((target_clones("avx", "default")))
#endif
EXPORT void limit_stack_zero_push(limit_stack *stack, void *block) {
    typedef long long quad __attribute__((vector_size(32), may_alias));
    volatile quad *at = block;
    at[0] = at[1] = at[2] = at[3] = (quad){0};
    stack->block[stack->count++] = block;
}

EXPORT void limit_zero(void *block, size_t size) {
    memset(block, 0, size);
    __asm__ volatile("" : : "r"(block) : "memory");
}

EXPORT void limit_nothing(void *context, size_t size) { __asm__ volatile("" : : "r"(context), "r"(size) : "memory"); }
