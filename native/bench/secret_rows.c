/*
 * secret_rows.c - what a secret costs: allocated, written, wiped, freed, against libsodium's sodium_malloc and sodium_free
 *
 * The two promise different things, so there are two of ours. libsodium gives each secret pages of its own between guard
 * pages, and unmaps them; so does guard="block", which keeps them. A witness arena as it is by default packs secrets: guard
 * pages around all of them, one lock for all. Both lock, keep out of core dumps, and wipe; libsodium does not say
 * whether the lock took. It is loaded at run time; without it its columns are skipped.
 */
#include "bench.h"

#include <dlfcn.h>

#define SECRET_SIZE 64
#define ONE_COUNT 1000 /* one after the other: more, or the clock is measured */
#define LIVE_COUNT 1000 /* at once */

typedef struct secret_heap {
    void *(*take)(void);
    void (*give)(void *secret);
} secret_heap;

static fa_arena *arena;
static void *arena_take(void) { return fa_arena_alloc(arena, SECRET_SIZE, 0); }
static void arena_give(void *secret) { fa_arena_free(arena, secret, SECRET_SIZE); }

static void *(*sodium_malloc)(size_t size);
static void (*sodium_free)(void *secret);
static void *sodium_take(void) { return sodium_malloc(SECRET_SIZE); }

/* False if there is no libsodium here. */
static bool find_sodium(void) {
    static bool looked;
    if (looked) return sodium_malloc != NULL;
    looked = true;
    void *library = dlopen("libsodium.so.23", RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) library = dlopen("libsodium.so", RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) return false;
    int (*init)(void) = NULL;
    *(void **)&init = dlsym(library, "sodium_init");
    *(void **)&sodium_free = dlsym(library, "sodium_free");
    if (init == NULL || sodium_free == NULL || init() < 0) return false;
    *(void **)&sodium_malloc = dlsym(library, "sodium_malloc");
    return sodium_malloc != NULL;
}

static secret_heap ours(fa_guard guard) {
    static fa_arena *arenas[2];
    fa_arena_options options;
    fa_arena_options_init(&options, FA_WITNESS);
    options.guard = guard;
    if (arenas[guard] == NULL) arenas[guard] = fa_arena_create(&options, NULL);
    arena = arenas[guard];
    VERIFY(arena != NULL);
    return (secret_heap){arena_take, arena_give};
}

static void write_secret(unsigned char *secret, size_t number) {
    VERIFY(secret != NULL);
    memset(opaque(secret), (int)(number % 255) + 1, SECRET_SIZE);
}

/* One secret at a time. */
static void one(timing *time, secret_heap heap) {
    timing_start(time);
    for (size_t i = 0; i < ONE_COUNT; i++) {
        unsigned char *secret = heap.take();
        write_secret(secret, i);
        heap.give(secret);
    }
    timing_stop(time);
    if (heap.take != arena_take) return;
    unsigned char *again = heap.take();
    for (size_t i = 0; i < SECRET_SIZE; i++) VERIFY(again[i] == 0);
    heap.give(again);
}

/* All at once; freed in another order. */
static void live(timing *time, secret_heap heap) {
    static unsigned char *secrets[LIVE_COUNT];
    timing_start(time);
    for (size_t i = 0; i < LIVE_COUNT; i++) write_secret(secrets[i] = heap.take(), i);
    for (size_t i = 0; i < LIVE_COUNT; i++) heap.give(secrets[i * 7 % LIVE_COUNT]);
    timing_stop(time);
    if (heap.take != arena_take) return;
    fa_arena_stats stats;
    VERIFY(fa_arena_get_stats(arena, &stats) == FA_OK && stats.live == 0 && stats.peak >= (uint64_t)LIVE_COUNT * SECRET_SIZE);
}

static void one_ours(timing *time) { one(time, ours(FA_GUARD_ENDS)); }
static void one_guarded(timing *time) { one(time, ours(FA_GUARD_BLOCKS)); }
static void live_ours(timing *time) { live(time, ours(FA_GUARD_ENDS)); }
static void live_guarded(timing *time) { live(time, ours(FA_GUARD_BLOCKS)); }
static void one_sodium(timing *time) {
    if (find_sodium()) one(time, (secret_heap){sodium_take, sodium_free});
    else time->skipped = true;
}
static void live_sodium(timing *time) {
    if (find_sodium()) live(time, (secret_heap){sodium_take, sodium_free});
    else time->skipped = true;
}

/* What nobody can do without: the block from a stack, written and wiped. */
static void one_limit(timing *time) {
    static unsigned char block[SECRET_SIZE];
    static limit_stack stack = {.count = 1, .block = {block}};
    timing_start(time);
    for (size_t i = 0; i < ONE_COUNT; i++) {
        unsigned char *secret = limit_stack_pop(&stack);
        write_secret(secret, i);
        limit_zero(secret, SECRET_SIZE);
        limit_stack_push(&stack, secret);
    }
    timing_stop(time);
}

const bench_row secret_rows[] = {
    {.name = "a secret of 64 B: allocated, written, wiped, freed", .id = "secret", .operations = ONE_COUNT, .repeats = 5,
     .jobs = {{"ours", one_ours, false}, {"limit", one_limit, false}, {"guard=block", one_guarded, false},
              {"libsodium", one_sodium, false}},
     .targets = {{AT_MOST_NS, "ours", NULL, 200}, {FASTER_TIMES, "guard=block", "libsodium", 1}}},
    {.name = "1,000 such secrets at once, each", .id = "secrets-live", .operations = LIVE_COUNT, .repeats = 3,
     .jobs = {{"ours", live_ours, false}, {"guard=block", live_guarded, false}, {"libsodium", live_sodium, false}},
     .targets = {{AT_MOST_NS, "ours", NULL, 200}, {FASTER_TIMES, "guard=block", "libsodium", 1}}},
    {0}};
