/*
 * os_fault_test.c - every call to the operating system fails once: each ends in a documented error, and nothing is lost
 *
 * The instance passed in the options counts what it does and fails the n-th call of one kind. For every kind and every
 * n a scenario runs to its end; what was reserved must have been released, and what was allocated freed.
 */
#include "faulty_os.h"
#include "heap/arena.h"
#include "heap/manager.h"
#include "mem/region.h"

/* ---- arenas ------------------------------------------------------------------------------------------------------ */

static void use_arena(const fa_os *os, fa_arena_kind kind, unsigned flags, fa_want want) {
    fa_arena_options options = arena_options(kind, 256 * KIB);
    options.os = os;
    options.flags = flags;
    options.lock = want;
    options.guard_pages = options.no_dump = options.wipe_on_fork = want;
    options.huge_pages = kind == FA_POLYNOMIAL ? FA_HUGE_TLB_2M : FA_HUGE_OFF;
    if (kind == FA_POLYNOMIAL) options.guard_pages = FA_TRY;
    fa_status status = FA_OK;
    fa_arena *arena = fa_arena_create(&options, &status);
    if (arena == NULL) {
        CHECK(fault.failed);
        CHECK(status == FA_ERR_NOMEM || status == FA_ERR_LOCK || status == FA_ERR_UNSUPPORTED);
        return;
    }
    CHECK(status == FA_OK);
    unsigned char *blocks[40];
    size_t sizes[40], live = 0;
    for (size_t i = 0; i < 40; i++) {
        sizes[i] = i % 10 == 9 ? 150 * KIB : 1000 * i;
        blocks[i] = fa_arena_alloc(arena, sizes[i], 0);
        if (blocks[i] != NULL) fill(blocks[i], sizes[i], i);
        live += blocks[i] != NULL;
        CHECK(fa_arena_is_valid(arena));
        CHECK(arena_stats(arena).live == live || (kind == FA_SCRATCH && flags == 0)); /* there, what moved is still counted */
        if (i % 3 == 2 && blocks[i - 1] != NULL) {
            unsigned char *moved = fa_arena_realloc(arena, blocks[i - 1], sizes[i - 1], 2 * sizes[i - 1], 0);
            if (moved != NULL) {
                blocks[i - 1] = moved;
                sizes[i - 1] *= 2;
                CHECK(is_filled(moved, sizes[i - 1] / 2, i - 1));
                fill(moved, sizes[i - 1], i - 1);
            }
            CHECK(is_filled(blocks[i - 1], sizes[i - 1], i - 1));
        }
    }
    for (size_t i = 0; i < 40; i++) {
        if (blocks[i] == NULL) continue;
        CHECK(is_filled(blocks[i], sizes[i], i));
        fa_arena_free(arena, blocks[i], sizes[i]);
        if (i % 8 == 0) {
            status = fa_arena_trim(arena, 0);
            CHECK(trim_is_fine(status) || fault.failed);
            CHECK(fa_arena_is_valid(arena));
        }
    }
    CHECK(arena_stats(arena).live == 0 || (kind == FA_SCRATCH && flags == 0));
    CHECK(fa_arena_reset(arena) == FA_OK);
    unsigned char *zeroed = fa_arena_alloc_zeroed(arena, 5000, 0);
    CHECK(zeroed == NULL ? fault.failed : is_zero(zeroed, 5000));
    CHECK(fa_arena_is_valid(arena));
    fa_arena_destroy(arena);
}

/* Whether the platform has all that a witness arena can require. */
static bool can_have(fa_want want) {
    fa_arena_options options = arena_options(FA_WITNESS, 64 * KIB);
    options.lock = options.guard_pages = options.no_dump = options.wipe_on_fork = want;
    fa_status status = FA_OK;
    fa_arena_destroy(fa_arena_create(&options, &status));
    return status != FA_ERR_UNSUPPORTED;
}

#define ARENA_SCENARIO(name, kind, flags, want)                                                                        \
    static void name##_scenario(const fa_os *os) {                                                                     \
        SKIP_IF(!can_have(want), "a protection that is required does not exist here");                                 \
        use_arena(os, kind, flags, want);                                                                              \
    }                                                                                                                  \
    TEST(name##_survives_every_fault) { run_with_every_fault(name##_scenario, true); }                                 \
    TEST(name##_survives_every_fault_where_commits_cost) { run_with_every_fault(name##_scenario, false); }

ARENA_SCENARIO(a_witness_arena_that_tries, FA_WITNESS, 0, FA_TRY)
ARENA_SCENARIO(a_witness_arena_that_requires, FA_WITNESS, FA_TRACKED, FA_REQUIRE)
ARENA_SCENARIO(a_polynomial_arena, FA_POLYNOMIAL, 0, FA_OFF)
ARENA_SCENARIO(a_tracked_polynomial_arena, FA_POLYNOMIAL, FA_TRACKED, FA_TRY)
ARENA_SCENARIO(a_scratch_arena, FA_SCRATCH, 0, FA_OFF)
ARENA_SCENARIO(a_tracked_scratch_arena, FA_SCRATCH, FA_TRACKED, FA_OFF)

/* ---- secrets: guards after blocks, seals, secret memory --------------------------------------------------------------- */

enum { SECRETS = 12 };

/* Bytes that this process has locked, as the kernel counts them; the sanitizers lock nothing. */
static uint64_t locked_in_fact(void) {
    unsigned long long kib = 0;
    char line[256];
    FILE *status = fopen("/proc/self/status", "r");
    if (status == NULL || UNDER_SANITIZER || strcmp(real->name, "linux") != 0) return UINT64_MAX;
    while (fgets(line, sizeof line, status) != NULL && sscanf(line, "VmLck: %llu", &kib) != 1) {}
    fclose(status);
    return kib * 1024;
}

/* What is required holds, what was tried and failed shows, and no lock is claimed that is not there. */
static void check_secret_protection(const fa_arena *arena, const fa_arena_options *options, size_t live) {
    const fa_protection protection = arena_protection(arena);
    CHECK(options->guard_pages != FA_REQUIRE || options->guard == FA_GUARD_ENDS ||
          protection.guarded_blocks == live * real->page_size());
    CHECK(options->secret_memory != FA_REQUIRE || protection.secret > 0);
    CHECK(options->lock != FA_REQUIRE || protection.locked >= arena_stats(arena).requested);
    CHECK(fault.failed || protection.locked == protection.lock_wanted);
    const uint64_t locked = locked_in_fact();
    CHECK(fault.failed ? protection.locked <= locked : protection.locked == locked || locked == UINT64_MAX);
}

static void use_secrets(const fa_os *os, fa_guard guard, fa_want secret_memory, fa_want want) {
    SKIP_IF(!real->traps || !can_have(want), "a protection that is required does not exist here");
    fa_arena_options options = arena_options(FA_WITNESS, 512 * KIB);
    options.os = os;
    options.guard = guard;
    options.secret_memory = secret_memory;
    options.guard_pages = options.lock = options.no_dump = options.wipe_on_fork = want;
    fa_status status = FA_OK;
    fa_arena *arena = fa_arena_create(&options, &status);
    if (arena == NULL) {
        CHECK(fault.failed && want == FA_REQUIRE ? status != FA_OK : status == FA_ERR_NOMEM);
        CHECK(status == FA_ERR_NOMEM || status == FA_ERR_LOCK || status == FA_ERR_UNSUPPORTED);
        return;
    }
    unsigned char *blocks[SECRETS] = {NULL};
    size_t live = 0;
    for (size_t i = 0; i < SECRETS; i++) {
        const size_t size = 700 * i;
        blocks[i] = fa_arena_alloc(arena, size, 0);
        CHECK(blocks[i] != NULL || (fault.failed && fa_arena_last_refusal(arena) != FA_OK));
        if (blocks[i] == NULL) continue;
        CHECK(is_zero(blocks[i], size));
        fill(blocks[i], size, i);
        live++;
        check_secret_protection(arena, &options, live);
    }
    status = fa_arena_seal(arena, FA_SEAL_NONE);
    CHECK(status == FA_OK ? live == 0 || arena_protection(arena).sealed > 0 : fault.failed);
    if (status != FA_OK) CHECK(arena_protection(arena).sealed == 0);
    for (size_t i = 0; i < SECRETS; i += 3) { /* through the seal, if there is one */
        if (blocks[i] == NULL) continue;
        fa_arena_free(arena, blocks[i], 0);
        if (fa_arena_is_live(arena, blocks[i])) CHECK(fault.failed); /* it could not be opened, so it was not freed */
        else blocks[i] = NULL;
    }
    status = fa_arena_unseal(arena);
    if (status != FA_OK) {
        CHECK(fault.failed);
        status = fa_arena_unseal(arena);
    }
    if (status == FA_OK) {
        for (size_t i = 0; i < SECRETS; i++) CHECK(blocks[i] == NULL || is_filled(blocks[i], 700 * i, i));
        status = fa_arena_seal(arena, FA_SEAL_READ);
        CHECK(status == FA_OK || fault.failed);
        status = fa_arena_unsealed_begin(arena);
        if (status == FA_OK) {
            for (size_t i = 0; i < SECRETS; i++) fill(blocks[i], blocks[i] == NULL ? 0 : 700 * i, i + 1);
            status = fa_arena_unsealed_end(arena);
            CHECK(status == FA_OK || (fault.failed && arena_protection(arena).sealed == 0));
        }
    }
    status = fa_arena_reset(arena);
    CHECK(status == FA_OK || fault.failed);
    if (status == FA_OK) CHECK(arena_stats(arena).live == 0 && arena_protection(arena).guarded_blocks == 0);
    CHECK(arena_protection(arena).locked <= locked_in_fact());
    status = fa_arena_trim(arena, 0);
    CHECK(status == FA_OK || fault.failed);
    if (fa_arena_unseal(arena) == FA_OK) {
        unsigned char *last = fa_arena_alloc(arena, 100000, 0);
        CHECK(last != NULL ? is_zero(last, 100000) : fault.failed);
        if (last != NULL) fill(last, 100000, 1);
        status = fa_arena_seal(arena, FA_SEAL_NONE);
        CHECK(status == FA_OK || fault.failed);
    }
    CHECK(fa_arena_is_valid(arena));
    fa_arena_destroy(arena);
}

#define SECRET_SCENARIO(name, guard, secret_memory, want)                                                              \
    static void name##_scenario(const fa_os *os) { use_secrets(os, guard, secret_memory, want); }                      \
    TEST(name##_survive_every_fault) { run_with_every_fault(name##_scenario, true); }                                  \
    TEST(name##_survive_every_fault_where_commits_cost) { run_with_every_fault(name##_scenario, false); }

SECRET_SCENARIO(sealed_secrets_that_try, FA_GUARD_ENDS, FA_OFF, FA_TRY)
SECRET_SCENARIO(sealed_secrets_that_require, FA_GUARD_ENDS, FA_OFF, FA_REQUIRE)
SECRET_SCENARIO(guarded_secrets_that_try, FA_GUARD_BLOCKS, FA_OFF, FA_TRY)
SECRET_SCENARIO(guarded_secrets_that_require, FA_GUARD_BLOCKS, FA_OFF, FA_REQUIRE)
SECRET_SCENARIO(secret_secrets_that_try, FA_GUARD_ENDS, FA_TRY, FA_TRY)
SECRET_SCENARIO(secret_and_guarded_secrets_that_try, FA_GUARD_BLOCKS, FA_TRY, FA_TRY)

/* A kernel without memfd_secret cannot be required to have it. */
static bool has_secret_memory(void) {
    fa_arena_options options = arena_options(FA_WITNESS, MIB);
    options.secret_memory = FA_REQUIRE;
    fa_arena *arena = fa_arena_create(&options, NULL);
    fa_arena_destroy(arena);
    return arena != NULL;
}

static void required_secret_scenario(const fa_os *os) { use_secrets(os, FA_GUARD_ENDS, FA_REQUIRE, FA_REQUIRE); }
static void required_guarded_secret_scenario(const fa_os *os) {
    use_secrets(os, FA_GUARD_BLOCKS, FA_REQUIRE, FA_REQUIRE);
}

TEST(secret_memory_that_is_required_survives_every_fault) {
    SKIP_IF(!has_secret_memory(), "no memfd_secret");
    run_with_every_fault(required_secret_scenario, true);
    run_with_every_fault(required_guarded_secret_scenario, true);
}

/* Secret memory is refused from some time on; then the advice about ordinary memory is, once. */
TEST(a_protection_that_was_asked_for_twice_counts_once) {
    SKIP_IF(!has_secret_memory(), "no memfd_secret");
    const fa_os os = faulty_os(true);
    no_fault();
    const fa_region_spec spec = {.capacity = MIB, .no_dump = FA_TRY, .wipe_on_fork = FA_REQUIRE, .secret_memory = FA_TRY};
    fa_region region;
    CHECK(fa_region_create(&region, &os, &spec) == FA_OK);
    if (region.secret == 0) {
        fa_region_destroy(&region);
        SKIP("no memfd_secret");
    }
    no_fault();
    fault.kind = MAP_SECRET;
    fault.after = 0;
    fault.for_ever = true;
    CHECK(fa_region_use(&region, region.secret + 1) == FA_OK);
    no_fault();
    fault.kind = WIPE_ON_FORK;
    fault.after = 0;
    const size_t committed = region.committed;
    CHECK(fa_region_use(&region, committed + 1) == FA_ERR_UNSUPPORTED && region.committed == committed);
    for (size_t i = 0; i < 2; i++) {
        CHECK(region.protection.no_dump == region.committed - region.secret);
        CHECK(region.protection.wipe_on_fork == region.committed - region.secret);
        CHECK(fa_region_use(&region, committed + 1) == FA_OK && region.committed > committed);
    }
    fa_region_destroy(&region);
    CHECK(fault.mapped == 0);
}

static void scopes_scenario(const fa_os *os) {
    fa_arena_options options = arena_options(FA_SCRATCH, 64 * KIB);
    options.os = os;
    options.flags = FA_TRACKED;
    fa_arena *arena = fa_arena_create(&options, NULL);
    if (arena == NULL) return;
    fa_mark scopes[100];
    void *blocks[100];
    for (size_t i = 0; i < 100; i++) {
        scopes[i] = fa_arena_scope_enter(arena);
        blocks[i] = fa_arena_alloc(arena, 2000, 0);
        CHECK(fa_arena_is_valid(arena));
    }
    for (size_t i = 0; i < 100; i++) {
        uint64_t live = 0, bytes = 0;
        const fa_status status = fa_arena_scope_leave(arena, scopes[i], &live, &bytes);
        CHECK(status == FA_OK || status == FA_ERR_BUSY || (status == FA_ERR_STALE && fault.failed));
        fa_arena_free(arena, blocks[i], 2000);
        CHECK(fa_arena_is_valid(arena));
    }
    CHECK(arena_stats(arena).live == 0);
    fa_arena_destroy(arena);
}

TEST(scopes_survive_every_fault) { run_with_every_fault(scopes_scenario, true); }
TEST(scopes_survive_every_fault_where_commits_cost) { run_with_every_fault(scopes_scenario, false); }

/* The hot path takes from a chunk without asking whether it is usable: so a chunk that could not be made so must not stay. */
TEST(what_could_not_be_committed_is_never_handed_out) {
    const fa_os os = faulty_os(false);
    for (int after = 0; after < 3; after++) {
        no_fault();
        fa_arena_options options = arena_options(FA_SCRATCH, MIB);
        options.os = &os;
        options.on_full = FA_FULL_FAIL;
        fa_arena *arena = arena_with(&options);
        fault.kind = COMMIT;
        fault.for_ever = true;
        for (size_t round = 0; round < 3; round++) {
            fault.after = fault.count[COMMIT] + after;
            unsigned char *newest = NULL;
            size_t size = 100, count = 0;
            for (size_t i = 0; i < 3000; i++) {
                unsigned char *block = fa_arena_alloc(arena, i == 50 ? 70000 : size, 0);
                if (block == NULL) continue;
                fill(block, i == 50 ? 70000 : size, i);
                if (i != 50) newest = block;
                count++;
                CHECK(fa_arena_is_valid(arena) && arena_stats(arena).live == count);
            }
            unsigned char *moved = newest == NULL ? NULL : fa_arena_realloc(arena, newest, size, 900000, 0);
            CHECK(moved == NULL);
            for (size_t i = 0; i < 100; i++) {
                unsigned char *block = fa_arena_alloc(arena, 16, 0);
                if (block != NULL) fill(block, 16, i);
            }
            CHECK(fa_arena_is_valid(arena));
            CHECK(round == 1 ? fa_arena_reset(arena) == FA_OK : fa_arena_wipe(arena) == FA_OK);
        }
        no_fault(); /* and when the system has memory again, all of the arena is there */
        CHECK(fa_arena_alloc(arena, MIB, 0) != NULL && fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
}

/* In a forked child whose pages the system does not open again: what was in them is not there to stay. */
TEST(guarded_blocks_that_a_child_cannot_open_are_given_up) {
    const fa_os os = faulty_os(true);
    no_fault();
    fa_arena_options options = arena_options(FA_WITNESS, MIB);
    options.os = &os;
    options.guard = FA_GUARD_BLOCKS;
    options.wipe_on_fork = FA_OFF;
    options.lock = FA_OFF;
    fa_arena *arena = arena_with(&options);
    unsigned char *blocks[3];
    for (size_t i = 0; i < 3; i++) {
        blocks[i] = fa_arena_alloc(arena, 100, 0);
        fill(blocks[i], 100, i);
    }
    fault.kind = PROTECT;
    fault.after = fault.count[PROTECT];
    fault.for_ever = true;
    fault.count[COMMIT] = 0;
    fa_arena_fork_prepare(arena);
    fa_arena_fork_child(arena); /* here, where the pages are still open and can be looked at */
    fa_arena_close(arena);
    if (fault.failed)
        for (size_t i = 0; i < 3; i++) CHECK(peek_nonzero(blocks[i], 100) == 0);
    fa_arena_destroy(arena);
    CHECK(fault.mapped == 0);
}

/* Pages that were not given back, because they are locked or the system refused, still hold what was in them. */
TEST(zeroed_memory_is_zero_after_a_trim_that_gave_nothing_back) {
    const fa_os os = faulty_os(true);
    for (int locked = 0; locked < 2; locked++) {
        for (call kind = 0; kind < CALLS; kind++) {
            no_fault();
            fa_arena_options options = arena_options(FA_SCRATCH, MIB);
            options.os = &os;
            options.lock = locked ? FA_TRY : FA_OFF;
            fa_arena *arena = arena_with(&options);
            unsigned char *block = fa_arena_alloc(arena, 500000, 0);
            fill(block, 500000, 1);
            fault.kind = kind;
            fault.after = fault.count[kind];
            fault.for_ever = true;
            CHECK(fa_arena_reset(arena) == FA_OK);
            const fa_status status = fa_arena_trim(arena, 0);
            CHECK(trim_is_fine(status) || fault.failed);
            fault.after = -1;
            for (size_t i = 0; i < 5; i++) CHECK(is_zero(fa_arena_alloc_zeroed(arena, 90000, 0), 90000));
            CHECK(fa_arena_is_valid(arena));
            fa_arena_destroy(arena);
        }
    }
}

/* ---- managers ---------------------------------------------------------------------------------------------------- */

static void run_manager(const fa_os *os, unsigned flags) {
    static const size_t sizes[] = {32, 128, 1000, 70 * KIB, 200 * KIB, 500 * KIB, 100, 20000};
    enum { MOST = 24 };
    const size_t count = (flags & FA_HARDENED) != 0 ? MOST / 2 : MOST; /* with many more calls */
    fa_manager_options options;
    fa_manager_options_init(&options);
    options.os = os;
    options.pool_blocks = 4;
    options.cache_limit = 600 * KIB;
    options.flags = FA_LOCKED | flags;
    fa_status status = FA_OK;
    fa_manager *manager = fa_manager_create(&options, &status);
    if (manager == NULL) {
        CHECK(fault.failed && status == (fault.kind == RANDOM ? FA_ERR_UNSUPPORTED : FA_ERR_NOMEM));
        return;
    }
    unsigned char *blocks[MOST];
    size_t held[MOST], live = 0;
    for (size_t round = 0; round < 2; round++) {
        for (size_t i = 0; i < count; i++) {
            held[i] = sizes[(i + round) % 8];
            blocks[i] = i % 5 == 0   ? fa_calloc(manager, 1, held[i])
                        : i % 7 == 0 ? fa_aligned_alloc(manager, 4096, held[i])
                                     : fa_malloc(manager, held[i]);
            CHECK(blocks[i] != NULL || fault.failed);
            if (blocks[i] != NULL) fill(blocks[i], held[i], i);
            live += blocks[i] != NULL;
            CHECK(fa_manager_is_valid(manager) && manager_stats(manager).live == live);
        }
        for (size_t i = 0; i < count; i++) {
            if (blocks[i] == NULL) continue;
            const size_t size = sizes[(i * 5 + 3) % 8];
            unsigned char *moved = fa_realloc(manager, blocks[i], size);
            CHECK(moved != NULL || fault.failed);
            if (moved != NULL) {
                CHECK(is_filled(moved, size < held[i] ? size : held[i], i));
                blocks[i] = moved;
                held[i] = size;
                fill(moved, size, i);
            }
            CHECK(is_filled(blocks[i], held[i], i) && fa_manager_is_valid(manager));
        }
        for (size_t i = 0; i < count; i++) {
            if (blocks[i] == NULL) continue;
            CHECK(is_filled(blocks[i], held[i], i));
            if (round == 1 && i % 2 == 0) continue; /* left to destroy */
            fa_free(manager, blocks[i]);
            live--;
        }
        CHECK(manager_stats(manager).live == live);
        status = fa_manager_trim(manager, 100 * KIB);
        CHECK(status == FA_OK || fault.failed);
    }
    fa_manager_destroy(manager);
}

static void manager_scenario(const fa_os *os) { run_manager(os, 0); }
static void hardened_scenario(const fa_os *os) { run_manager(os, FA_HARDENED); }

TEST(a_hardened_manager_survives_every_fault) { run_with_every_fault(hardened_scenario, true); }
TEST(a_hardened_manager_survives_every_fault_where_commits_cost) { run_with_every_fault(hardened_scenario, false); }
TEST(a_manager_survives_every_fault) { run_with_every_fault(manager_scenario, true); }
TEST(a_manager_survives_every_fault_where_commits_cost) { run_with_every_fault(manager_scenario, false); }

/* Of one mapping, and of several (what may be done with the pages differs), which older kernels cannot move at once. */
TEST(pages_are_moved_or_stay) {
    const fa_os *os = fa_os_platform();
    SKIP_IF(os->move == NULL, "pages cannot be moved here");
    const size_t page = os->page_size(), size = 8 * page;
    for (int several = 0; several < 2; several++) {
        void *from, *to;
        CHECK(os->reserve(size, page, &from) == 0 && os->commit(from, size) == 0);
        CHECK(os->reserve(size, page, &to) == 0 && os->commit(to, size) == 0);
        fill(from, size, 1);
        if (several) CHECK(os->protect((char *)from + 2 * page, page, FA_OS_READ) == 0);
        errno = 77;
        const int error = os->move(from, size, to);
        CHECK(errno == 77 && (several || error == 0) && is_filled(error == 0 ? to : from, size, 1));
        if (error != 0) CHECK(is_zero(to, size) && os->release(from, size) == 0);
        CHECK(os->release(to, size) == 0);
    }
}

/* A manager whose large block moves its pages while another thread (here: the system) fills the table. */
static struct {
    fa_manager *manager;
    void *block[200];
    size_t count;
} crowd;

static int remap_in_a_crowd(void *address, size_t old_size, size_t new_size, void **moved) {
    while (crowd.count < 127) crowd.block[crowd.count++] = fa_malloc(crowd.manager, 70 * KIB);
    fault.kind = RESERVE; /* from now on the table cannot grow */
    fault.after = 0;
    fault.for_ever = true;
    return f_remap(address, old_size, new_size, moved);
}

TEST(a_block_that_moves_its_pages_keeps_its_place_in_a_full_table) {
    SKIP_IF(!can(try_remap), "pages cannot be moved here");
    fa_os os = faulty_os(true);
    no_fault();
    os.remap = remap_in_a_crowd;
    fa_manager_options options;
    fa_manager_options_init(&options);
    options.os = &os;
    options.flags = FA_LOCKED;
    fa_manager *manager = crowd.manager = manager_with(&options);
    unsigned char *first = fa_malloc(manager, 70 * KIB), *block = fa_malloc(manager, 100 * KIB);
    for (crowd.count = 0; crowd.count < 126; crowd.count++) crowd.block[crowd.count] = fa_malloc(manager, 70 * KIB);
    fill(block, 100 * KIB, 1);
    unsigned char *moved = fa_realloc(manager, block, 300 * KIB);
    CHECK(moved != NULL && fa_owns(manager, moved) && is_filled(moved, 100 * KIB, 1));
    CHECK(fa_manager_is_valid(manager) && manager_stats(manager).live == 129);
    fa_free(manager, moved);
    fa_free(manager, first);
    while (crowd.count > 0) fa_free(manager, crowd.block[--crowd.count]);
    CHECK(manager_stats(manager).live == 0 && fa_manager_is_valid(manager));
    fa_manager_destroy(manager);
    CHECK(fault.mapped == 0 && fault.blocks == 0);
}

TEST(a_realloc_to_the_same_size_never_fails) {
    const fa_os os = faulty_os(true);
    no_fault();
    fa_manager_options options;
    fa_manager_options_init(&options);
    options.os = &os;
    fa_manager *manager = manager_with(&options);
    static const size_t sizes[] = {100, 1000, 20000, 200 * KIB};
    unsigned char *blocks[4];
    fa_free(manager, fa_malloc(manager, 208 * KIB)); /* a cached block that is more than 200 KiB need */
    for (size_t i = 0; i < 4; i++) blocks[i] = fa_malloc(manager, sizes[i]);
    for (int closed = 0; closed < 2; closed++) {
        for (call kind = 0; kind < CALLS; kind++) {
            no_fault();
            fault.kind = kind;
            fault.after = 0;
            fault.for_ever = true;
            for (size_t i = 0; i < 4; i++) CHECK(fa_realloc(manager, blocks[i], sizes[i]) == blocks[i]);
        }
        fa_manager_close(manager);
    }
    CHECK(fa_manager_is_valid(manager));
    fa_manager_destroy(manager);
}

/* ---- how often the system is asked: rows that speed could lose silently --------------------------------------------- */

/* ---- what is asked of the system, and what it is told ---------------------------------------------------------------- */

static fa_os counting_os(bool lazy_commit) {
    no_fault();
    return faulty_os(lazy_commit);
}

/* Bytes that the system refused to take back are not zero. */
TEST(a_trim_that_fails_forgets_nothing) {
    FOR_EACH_KIND(kind) {
        const fa_os os = counting_os(true);
        fa_arena_options options = arena_options(kind, MIB);
        options.os = &os;
        options.lock = FA_OFF;
        fa_arena *arena = arena_with(&options);
        memset(fa_arena_alloc(arena, 500000, 0), 0xFF, 500000);
        CHECK(fa_arena_reset(arena) == FA_OK);
        fault.kind = DECOMMIT;
        fault.after = fault.count[DECOMMIT];
        fault.for_ever = true;
        CHECK(fa_arena_trim(arena, 0) == FA_ERR_UNSUPPORTED && fault.failed);
        CHECK(is_zero(fa_arena_alloc_zeroed(arena, 400000, 0), 400000));
        fa_arena_destroy(arena);
    }
}

/* Where memory is charged when it is committed, only what is used is: of blocks, of their map, of levels, of slabs. */
TEST(memory_is_committed_as_it_is_used) {
    const size_t large = sizeof(void *) >= 8 ? 1024 * MIB : 256 * MIB;
    FOR_EACH_KIND(kind) {
        const fa_os os = counting_os(false);
        fa_arena_options options = arena_options(kind, large);
        options.os = &os;
        options.lock = FA_OFF;
        fa_arena *arena = arena_with(&options);
        CHECK(fault.committed <= MIB);
        for (size_t i = 0; i < 100; i++) fill(fa_arena_alloc(arena, 10000, 0), 10000, i);
        CHECK(fault.committed <= 8 * MIB && fa_arena_is_valid(arena));
        fill(fa_arena_alloc(arena, 20 * MIB, 0), 20 * MIB, 1);
        CHECK(fault.committed <= 80 * MIB && fa_arena_is_valid(arena));
        for (size_t i = 0; i < 200; i++) { /* a level each */
            CHECK(fa_arena_mark(arena).serial != 0);
            fill(fa_arena_alloc(arena, 100, 0), 100, i);
        }
        CHECK(fault.committed <= 81 * MIB && fa_arena_is_valid(arena));
        fa_arena_destroy(arena);
    }
    const fa_os os = counting_os(false);
    fa_manager_options options;
    fa_manager_options_init(&options);
    options.os = &os;
    options.pool_blocks = 100;
    fa_manager *manager = manager_with(&options);
    void *last = NULL;
    for (size_t i = 0; i < 3000; i++) last = fa_malloc(manager, 1000);
    CHECK(fault.committed <= 8 * MIB && fa_manager_is_valid(manager));
    CHECK(fa_owns(manager, last) && !fa_owns(manager, (unsigned char *)last + 8 * MIB)); /* beyond what there is */
    fa_manager_destroy(manager);
}

/* No more address space than a process with few of them can spare. */
TEST(reservations_are_scaled_to_the_pointer) {
    SKIP_IF(sizeof(void *) >= 8, "64-bit addresses are plenty");
    FOR_EACH_KIND(kind) {
        const fa_os os = counting_os(true);
        fa_arena_options options;
        fa_arena_options_init(&options, kind);
        options.os = &os;
        fa_arena *arena = arena_with(&options);
        CHECK(fault.mapped <= (ptrdiff_t)(options.capacity + 24 * MIB));
        fa_arena_destroy(arena);
    }
    const fa_os os = counting_os(true);
    fa_manager_options options;
    fa_manager_options_init(&options);
    options.os = &os;
    fa_manager *manager = manager_with(&options);
    CHECK(fa_malloc(manager, 1000) != NULL && fault.mapped <= (ptrdiff_t)(32 * MIB));
    fa_manager_destroy(manager);
}

/* Arenas until there are no addresses left: an error, everything as it was, and the addresses come back. */
TEST(addresses_run_out_with_an_error) {
    SKIP_IF(sizeof(void *) >= 8, "64-bit addresses do not run out");
    enum { MOST = 64 };
    fa_arena *arenas[MOST];
    for (size_t round = 0; round < 2; round++) {
        size_t count = 0;
        for (; count < MOST; count++) {
            fa_arena_options options = arena_options(FA_POLYNOMIAL, 128 * MIB);
            fa_status status = FA_OK;
            arenas[count] = fa_arena_create(&options, &status);
            if (arenas[count] == NULL) CHECK(status == FA_ERR_NOMEM);
            if (arenas[count] == NULL) break;
            fill(fa_arena_alloc(arenas[count], 10000, 0), 10000, count);
        }
        CHECK(count >= 4 && count < MOST);
        fa_manager *manager = fa_manager_create(NULL, NULL); /* with what is left, or not */
        if (manager != NULL) {
            void *block = fa_malloc(manager, 200 * MIB);
            CHECK(block == NULL && fa_manager_is_valid(manager));
            fa_manager_destroy(manager);
        }
        for (size_t i = 0; i < count; i++) {
            CHECK(fa_arena_is_valid(arenas[i]) && arena_stats(arenas[i]).live == 1);
            fa_arena_destroy(arenas[i]);
        }
    }
}

TEST(a_page_may_have_64_kib) {
    SKIP_IF(!fa_os_platform()->traps, "pages have 64 KiB here, and are never closed");
    for (int lazy = 0; lazy < 2; lazy++) {
        const fa_os os = faulty_os(lazy != 0);
        no_fault();
        fault.page = 64 * KIB;
        FOR_EACH_KIND(kind) {
            use_arena(&os, kind, 0, FA_TRY);
            use_arena(&os, kind, FA_TRACKED, FA_TRY);
        }
        for (int secret = 0; secret < 2; secret++) {
            fa_arena_options options = arena_options(FA_WITNESS, 4 * MIB);
            options.os = &os;
            options.guard = FA_GUARD_BLOCKS;
            options.guard_pages = FA_TRY;
            options.secret_memory = secret ? FA_TRY : FA_OFF;
            fa_arena *arena = arena_with(&options);
            void *block = fa_arena_alloc(arena, 100, 0), *other = fa_arena_alloc(arena, 100000, 0);
            CHECK(block != NULL && other != NULL && fa_arena_is_valid(arena));
            (void)fa_arena_seal(arena, FA_SEAL_NONE); /* or the platform cannot */
            fa_arena_free(arena, other, 100000);
            CHECK(fa_arena_unseal(arena) == FA_OK && trim_is_fine(fa_arena_trim(arena, 0)));
            fa_arena_destroy(arena);
        }
        manager_scenario(&os);
        hardened_scenario(&os);
        fault.page = 0;
        CHECK(fault.mapped == 0 && fault.blocks == 0);
    }
}

TEST(a_reset_asks_the_system_for_nothing) {
    const fa_os os = faulty_os(true);
    FOR_EACH_KIND(kind) {
        no_fault();
        fa_arena_options options = arena_options(kind, 4 * MIB);
        options.os = &os;
        fa_arena *arena = arena_with(&options);
        for (size_t round = 0; round < 10; round++) {
            for (size_t i = 0; i < 1000; i++) CHECK(fa_arena_alloc(arena, 1000, 0) != NULL);
            if (round == 0) memset(fault.count, 0, sizeof fault.count);
            CHECK(fa_arena_reset(arena) == FA_OK);
        }
        for (int kind_of_call = 0; kind_of_call < CALLS; kind_of_call++) {
            if (kind_of_call == HEAP_ALLOC && kind == FA_WITNESS) continue; /* its block map may grow */
            CHECK(fault.count[kind_of_call] == 0);
        }
        fa_arena_destroy(arena);
    }
}

TEST(a_warm_manager_asks_the_system_for_nothing) {
    const fa_os os = faulty_os(true);
    no_fault();
    fa_manager_options options;
    fa_manager_options_init(&options);
    options.os = &os;
    fa_manager *manager = manager_with(&options);
    for (size_t round = 0; round < 10; round++) {
        for (size_t size = 16; size <= 8 * MIB; size *= 2) {
            if (size <= 128 || size >= 64 * KIB) fa_free(manager, fa_malloc(manager, size));
        }
        if (round == 0) memset(fault.count, 0, sizeof fault.count);
    }
    for (int kind = 0; kind < CALLS; kind++) CHECK(fault.count[kind] == 0);
    fa_manager_destroy(manager);
}

int main(int argc, char **argv) { return tap_main(argc, argv); }
