/*
 * adapters/malloc.c - libfastalloc-malloc.so: malloc and its kin, and C++ new and delete, by the names of the C library
 *
 *     LD_PRELOAD=libfastalloc-malloc.so program                   or  fastalloc run -- program
 *     DYLD_INSERT_LIBRARIES=libfastalloc-malloc.dylib program         on macOS
 *
 *     FASTALLOC_LARGE_CACHE   bytes of freed large blocks that stay resident          4GiB (32-bit: 256MiB)
 *     FASTALLOC_LARGE_SIZE    from this size on blocks are mapped one by one          1MiB
 *     FASTALLOC_DECAY         seconds after which unused memory is given back; 0: never    60
 *     FASTALLOC_HUGE_PAGES    off or transparent                                      off
 *     FASTALLOC_ZERO_ON_FREE  1: every byte of a block is zeroed when it is freed      0
 *     FASTALLOC_HARDENED      1: misuse of memory ends the process with one line     0
 *     FASTALLOC_STATS         1: a table on standard error at exit                     0
 *     FASTALLOC_REPORT        a file for the same as JSON at exit; %p is the process's number
 *
 * Bytes are a whole number, with or without KiB, MiB, GiB or TiB. A value that is none of these is told in one line, and the
 * default is used. A process that runs with the rights of another user reads nothing.
 *
 * The heap works from the first call on, whatever has been initialised by then; whether it is hardened is looked up in that
 * call, the other settings, fork handlers and the report are of a constructor and a destructor. Pointers that the heap does
 * not know go to the C library, by names that reach it without a look-up; hardened, those that it can have given. Operators
 * that fail throw std::bad_alloc with the C++ library's own function, found when it is needed: this library is C, and no C++
 * program is without it.
 *
 * macOS binds names to libraries: there the functions have names of their own, and a table tells the loader what they stand
 * for. It changes the calls of every other library and none of ours; C++'s operators call malloc. Blocks of zones stay the
 * system's. Compiled and linked, but not run, by its authors.
 *
 * Thread rule: any function on any thread at any time. Cost: heap/global.h.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "heap/global.h"
#include "mem/base.h"
#include "os/os.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#if defined(__APPLE__)
#include <crt_externs.h>
#include <malloc/malloc.h>
#else
#include <malloc.h>
#endif
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#if defined(__APPLE__)
#define EXPORT static
#define NAME(name) our_##name
#else
#define EXPORT __attribute__((visibility("default")))
#define NAME(name) name
#endif

/* ---- C ------------------------------------------------------------------------------------------------------------ */

EXPORT void *NAME(malloc)(size_t size) { return fa_global_alloc(size); }
EXPORT void NAME(free)(void *block) { fa_global_free(block); }
EXPORT void *NAME(calloc)(size_t count, size_t size) { return fa_global_alloc_zeroed(count, size); }
EXPORT void *NAME(realloc)(void *block, size_t size) { return fa_global_realloc(block, size); }

EXPORT int NAME(posix_memalign)(void **block, size_t alignment, size_t size) {
    if (!fa_is_power_of_two(alignment) || alignment % sizeof(void *) != 0) return EINVAL;
    int caller_errno = errno;
    void *made = fa_global_alloc_aligned(alignment, size);
    errno = caller_errno;
    if (made == NULL) return ENOMEM;
    *block = made;
    return 0;
}

EXPORT void *NAME(aligned_alloc)(size_t alignment, size_t size) {
    if (!fa_is_power_of_two(alignment)) {
        errno = EINVAL;
        return NULL;
    }
    return fa_global_alloc_aligned(alignment, size);
}

static size_t page_size(void) { return (size_t)sysconf(_SC_PAGESIZE); }

EXPORT void *NAME(valloc)(size_t size);
EXPORT void *NAME(valloc)(size_t size) { return fa_global_alloc_aligned(page_size(), size); }

#if !defined(__APPLE__)
/* Not every C library has these, or declares them. */
EXPORT int malloc_trim(size_t pad);
EXPORT int mallopt(int parameter, int value);
EXPORT int malloc_info(int options, FILE *stream);
EXPORT void malloc_stats(void);
EXPORT void *pvalloc(size_t size);
EXPORT void cfree(void *block);

/* glibc has it for programs linked before 2.26: it would be given our blocks. */
EXPORT void cfree(void *block) { fa_global_free(block); }

EXPORT void *reallocarray(void *block, size_t count, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes)) {
        errno = ENOMEM;
        return NULL;
    }
    return fa_global_realloc(block, bytes);
}

/* C23. The sizes are the caller's promise; the heap knows better, and looks at them if it is hardened. */
EXPORT void free_sized(void *block, size_t size);
EXPORT void free_sized(void *block, size_t size) { fa_global_free_sized(block, size); }
EXPORT void free_aligned_sized(void *block, size_t alignment, size_t size);
EXPORT void free_aligned_sized(void *block, size_t alignment, size_t size) {
    (void)alignment;
    fa_global_free_sized(block, size);
}

/* As the C library's: the next power of two will do. */
EXPORT void *memalign(size_t alignment, size_t size) {
    if (alignment > SIZE_MAX / 2 + 1) {
        errno = EINVAL;
        return NULL;
    }
    size_t power = 1;
    while (power < alignment) power *= 2;
    return fa_global_alloc_aligned(power, size);
}

EXPORT void *pvalloc(size_t size) {
    size_t whole;
    if (!fa_align_up(fa_max(size, 1), page_size(), &whole)) {
        errno = ENOMEM;
        return NULL;
    }
    return fa_global_alloc_aligned(page_size(), whole);
}

EXPORT size_t malloc_usable_size(void *block) { return fa_global_usable_size(block); }
EXPORT int malloc_trim(size_t pad) {
    (void)pad;
    return fa_global_trim(true);
}

/* Every parameter is of the C library's own heap. */
EXPORT int mallopt(int parameter, int value) {
    (void)parameter;
    (void)value;
    return 1;
}

#if defined(__GLIBC__) && (__GLIBC__ > 2 || __GLIBC_MINOR__ >= 33)
EXPORT struct mallinfo2 mallinfo2(void) {
    fa_global_stats stats;
    fa_global_get_stats(&stats);
    return (struct mallinfo2){
        .arena = (size_t)(stats.pages_live + stats.pages_cached),
        .hblks = (size_t)stats.large_live,
        .hblkhd = (size_t)stats.large_bytes,
        .usmblks = (size_t)stats.peak,
        .uordblks = (size_t)stats.used,
        .fordblks = (size_t)(stats.resident - stats.used),
        .keepcost = (size_t)stats.cached,
    };
}

static int to_int(size_t value) { return (int)(unsigned)value; } /* it wraps, as documented */

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
EXPORT struct mallinfo mallinfo(void) {
    const struct mallinfo2 wide = mallinfo2();
    return (struct mallinfo){
        .arena = to_int(wide.arena),
        .hblks = to_int(wide.hblks),
        .hblkhd = to_int(wide.hblkhd),
        .usmblks = to_int(wide.usmblks),
        .uordblks = to_int(wide.uordblks),
        .fordblks = to_int(wide.fordblks),
        .keepcost = to_int(wide.keepcost),
    };
}
#pragma GCC diagnostic pop
#endif

/* ---- C++ ---------------------------------------------------------------------------------------------------------- */

/* size_t in mangled names. */
#if defined(__LP64__)
#define Z "m"
#else
#define Z "j"
#endif

typedef void (*new_handler)(void);

/* A function of the C++ library of this process, be it loaded for all or only for some; never one of ours. */
static void *of_cplusplus(const char *name) {
    static const char *const libraries[] = {"libstdc++.so.6", "libc++.so.1", "libc++abi.so.1"};
    void *found = dlsym(RTLD_NEXT, name);
    if (found == NULL && strncmp(name, "_Znw", 4) != 0) found = dlsym(RTLD_DEFAULT, name); /* of the program itself */
    for (size_t i = 0; found == NULL && i < sizeof libraries / sizeof libraries[0]; i++) {
        void *library = dlopen(libraries[i], RTLD_LAZY | RTLD_NOLOAD);
        if (library != NULL) found = dlsym(library, name);
    }
    return found;
}

static new_handler current_handler(void) {
    new_handler (*get_handler)(void);
    *(void **)&get_handler = of_cplusplus("_ZSt15get_new_handlerv");
    return get_handler == NULL ? NULL : get_handler();
}

/* There is no memory: asks the handler to make some, or throws. Returns if it is worth another try. */
FA_COLD static void make_room(void) {
    void (*throw_bad_alloc)(void);
    new_handler handler = current_handler();
    if (handler != NULL) {
        handler();
        return;
    }
    *(void **)&throw_bad_alloc = of_cplusplus("_ZSt17__throw_bad_allocv");
    if (throw_bad_alloc != NULL) throw_bad_alloc();
    static const char line[] = "fastalloc: operator new: out of memory, and no C++ library to throw std::bad_alloc\n";
    fa_os_platform()->report(line, sizeof line - 1);
    abort();
}

/*
 * The form that does not throw, with a handler that may: the C++ library's own operator calls the one that throws, which is
 * ours again, and catches, which C cannot.
 */
FA_COLD static void *new_caught(size_t alignment, size_t size, const void *tag) {
    void *(*plain)(size_t, const void *);
    void *(*aligned)(size_t, size_t, const void *);
    if (current_handler() == NULL) return NULL;
    *(void **)&plain = of_cplusplus("_Znw" Z "RKSt9nothrow_t");
    *(void **)&aligned = of_cplusplus("_Znw" Z "St11align_val_tRKSt9nothrow_t");
    if (alignment == 1) return plain == NULL ? NULL : plain(size, tag);
    return aligned == NULL ? NULL : aligned(size, alignment, tag);
}

FA_COLD static void *new_again(size_t alignment, size_t size) {
    for (;;) {
        make_room();
        void *block = fa_global_alloc_aligned(alignment, size);
        if (block != NULL) return block;
    }
}

/* `tag` is that of the form that does not throw; null: it throws. */
static inline void *new_block(size_t size, const void *tag) {
    void *block = fa_global_alloc(size);
    if (FA_LIKELY(block != NULL)) return block;
    return tag != NULL ? new_caught(1, size, tag) : new_again(1, size);
}

static inline void *new_aligned(size_t size, size_t alignment, const void *tag) {
    void *block = fa_is_power_of_two(alignment) ? fa_global_alloc_aligned(alignment, size) : NULL;
    if (FA_LIKELY(block != NULL)) return block;
    return tag != NULL ? new_caught(alignment, size, tag) : new_again(alignment, size);
}

/* Names that are only the assembler's. */
#define NEW(name, mangled, parameters, call)                                                                           \
    EXPORT void *name parameters __asm__(mangled);                                                                     \
    void *name parameters { return call; }
#define DELETE(name, mangled, parameters)                                                                              \
    EXPORT void name parameters __asm__(mangled);                                                                      \
    void name parameters { fa_global_free(block); }
#define DELETE_SIZED(name, mangled, parameters)                                                                        \
    EXPORT void name parameters __asm__(mangled);                                                                      \
    void name parameters { fa_global_free_sized(block, size); }
#define IGNORED __attribute__((unused))

NEW(new_one, "_Znw" Z, (size_t size), new_block(size, NULL))
NEW(new_array, "_Zna" Z, (size_t size), new_block(size, NULL))
NEW(new_one_nothrow, "_Znw" Z "RKSt9nothrow_t", (size_t size, const void *tag), new_block(size, tag))
NEW(new_array_nothrow, "_Zna" Z "RKSt9nothrow_t", (size_t size, const void *tag), new_block(size, tag))
NEW(new_one_aligned, "_Znw" Z "St11align_val_t", (size_t size, size_t alignment), new_aligned(size, alignment, NULL))
NEW(new_array_aligned, "_Zna" Z "St11align_val_t", (size_t size, size_t alignment), new_aligned(size, alignment, NULL))
NEW(new_one_aligned_nothrow, "_Znw" Z "St11align_val_tRKSt9nothrow_t",
    (size_t size, size_t alignment, const void *tag), new_aligned(size, alignment, tag))
NEW(new_array_aligned_nothrow, "_Zna" Z "St11align_val_tRKSt9nothrow_t",
    (size_t size, size_t alignment, const void *tag), new_aligned(size, alignment, tag))

DELETE(delete_one, "_ZdlPv", (void *block))
DELETE(delete_array, "_ZdaPv", (void *block))
DELETE(delete_one_nothrow, "_ZdlPvRKSt9nothrow_t", (void *block, const void *tag IGNORED))
DELETE(delete_array_nothrow, "_ZdaPvRKSt9nothrow_t", (void *block, const void *tag IGNORED))
DELETE_SIZED(delete_one_sized, "_ZdlPv" Z, (void *block, size_t size))
DELETE_SIZED(delete_array_sized, "_ZdaPv" Z, (void *block, size_t size))
DELETE(delete_one_aligned, "_ZdlPvSt11align_val_t", (void *block, size_t alignment IGNORED))
DELETE(delete_array_aligned, "_ZdaPvSt11align_val_t", (void *block, size_t alignment IGNORED))
DELETE_SIZED(delete_one_sized_aligned, "_ZdlPv" Z "St11align_val_t", (void *block, size_t size, size_t alignment IGNORED))
DELETE_SIZED(delete_array_sized_aligned, "_ZdaPv" Z "St11align_val_t",
             (void *block, size_t size, size_t alignment IGNORED))
DELETE(delete_one_aligned_nothrow, "_ZdlPvSt11align_val_tRKSt9nothrow_t",
       (void *block, size_t alignment IGNORED, const void *tag IGNORED))
DELETE(delete_array_aligned_nothrow, "_ZdaPvSt11align_val_tRKSt9nothrow_t",
       (void *block, size_t alignment IGNORED, const void *tag IGNORED))

#else
/* ---- macOS ---------------------------------------------------------------------------------------------------------- */

static void *our_realloc_some(void *block, size_t size) { return our_realloc(block, fa_max(size, 1)); } /* 0: the smallest */

static void *our_reallocf(void *block, size_t size) {
    void *moved = our_realloc_some(block, size);
    if (moved == NULL) our_free(block);
    return moved;
}

static size_t our_malloc_size(const void *block) { return fa_global_usable_size(block); }

/* Who has a zone may ask it for what is ours: strings of the C library, say. */
static malloc_zone_t *our_malloc_zone_from_ptr(const void *block) {
    return fa_global_owns(block) ? malloc_default_zone() : malloc_zone_from_ptr(block);
}

static void our_malloc_zone_free(malloc_zone_t *zone, void *block) {
    if (fa_global_owns(block)) fa_global_free(block);
    else malloc_zone_free(zone, block);
}

static void *our_malloc_zone_realloc(malloc_zone_t *zone, void *block, size_t size) {
    return fa_global_owns(block) ? our_realloc_some(block, size) : malloc_zone_realloc(zone, block, size);
}

typedef struct interposing {
    void (*replacement)(void);
    void (*original)(void);
} interposing;

#define IN_PLACE_OF(name, ours) {(void (*)(void))(ours), (void (*)(void))(name)}
__attribute__((used, section("__DATA,__interpose"))) static const interposing table[] = {
    IN_PLACE_OF(malloc, our_malloc),
    IN_PLACE_OF(calloc, our_calloc),
    IN_PLACE_OF(realloc, our_realloc_some),
    IN_PLACE_OF(reallocf, our_reallocf),
    IN_PLACE_OF(free, our_free),
    IN_PLACE_OF(posix_memalign, our_posix_memalign),
    IN_PLACE_OF(aligned_alloc, our_aligned_alloc),
    IN_PLACE_OF(valloc, our_valloc),
    IN_PLACE_OF(malloc_size, our_malloc_size),
    IN_PLACE_OF(malloc_zone_from_ptr, our_malloc_zone_from_ptr),
    IN_PLACE_OF(malloc_zone_free, our_malloc_zone_free),
    IN_PLACE_OF(malloc_zone_realloc, our_malloc_zone_realloc),
};
#endif

/* ---- what belongs to others --------------------------------------------------------------------------------------- */

#if defined(__GLIBC__)
extern void __libc_free(void *block);
extern void *__libc_realloc(void *block, size_t size);
#define LIBC_FREE __libc_free
#define LIBC_REALLOC __libc_realloc
#elif defined(__APPLE__)
#define LIBC_FREE free /* the table is not for our own calls */
#define LIBC_REALLOC realloc
#else
#define LIBC_FREE NULL
#define LIBC_REALLOC NULL
#endif

static size_t libc_usable_size(void *block) {
#if defined(__APPLE__)
    return malloc_size(block);
#else
    size_t (*next)(void *);
    *(void **)&next = dlsym(RTLD_NEXT, "malloc_usable_size");
    return next == NULL ? 0 : next(block);
#endif
}

/* Of a process with its own user's rights only. */
static const char *variable(const char *name) {
#if defined(__APPLE__)
    return issetugid() ? NULL : getenv(name);
#else
    return secure_getenv(name);
#endif
}

#if defined(__APPLE__)
static bool is_of_libc(const void *block) { return malloc_zone_from_ptr(block) != NULL; }
#else
/* Where the program break was before anybody allocated: what lies between it and the break is the C library's heap, for
 * this one takes nothing from there. */
static uintptr_t first_break;

static bool is_of_libc(const void *block) {
    return first_break != 0 && (uintptr_t)block >= first_break && (uintptr_t)block < (uintptr_t)sbrk(0);
}
#endif

/* ---- settings ----------------------------------------------------------------------------------------------------- */

static char report_name[4096]; /* a copy: programs that set their title write over their environment */
static char report_path[4096]; /* the same with %p replaced */

static struct {
    bool wanted;
    pid_t process;
    int table;          /* a copy of standard error: programs close theirs before they are done; -1: no table */
    const char *report; /* report_name, or null: no report */
} at_exit = {.table = -1};

static void complain(const char *name, const char *value, const char *expected) {
    char line[256];
    int length = snprintf(line, sizeof line, "fastalloc: %s=%.80s: %s; the default is used\n", name, value, expected);
    if (length > 0) fa_os_platform()->report(line, fa_min((size_t)length, sizeof line - 1));
}

/* "4GiB", "512 MiB", "65536": bytes. */
static bool read_size(const char *text, uint64_t *size) {
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    uint64_t value = 0;
    if (*text < '0' || *text > '9') return false;
    for (; *text >= '0' && *text <= '9'; text++)
        if (__builtin_mul_overflow(value, 10, &value) || __builtin_add_overflow(value, (uint64_t)(*text - '0'), &value))
            return false;
    while (*text == ' ') text++;
    for (unsigned i = 0; i < sizeof units / sizeof units[0]; i++) {
        if (strcmp(text, units[i]) != 0) continue;
        *size = value << (10 * i);
        return *size >> (10 * i) == value;
    }
    *size = value;
    return *text == '\0';
}

static void size_setting(const char *name, size_t least, size_t most, size_t *setting, const char *expected) {
    const char *text = variable(name);
    uint64_t size = 0;
    if (text == NULL) return;
    if (read_size(text, &size) && size >= least && size <= most) *setting = (size_t)size;
    else complain(name, text, expected);
}

static bool flag_setting(const char *name) {
    const char *text = variable(name);
    if (text == NULL || strcmp(text, "") == 0 || strcmp(text, "0") == 0) return false;
    if (strcmp(text, "1") != 0) complain(name, text, "expected 0 or 1");
    return strcmp(text, "1") == 0;
}

/* The longest time that 32 bits of milliseconds hold, and still tell old from new. */
#define DECAY_MAX 1000000.0

static void decay_setting(uint32_t *milliseconds) {
    static const char name[] = "FASTALLOC_DECAY";
    const char *text = variable(name);
    if (text == NULL) return;
    char *end;
    double seconds = strtod(text, &end);
    if (end != text && *end == '\0' && seconds >= 0 && seconds <= DECAY_MAX) *milliseconds = (uint32_t)(seconds * 1000);
    else complain(name, text, "expected seconds, from 0 (never) to 1000000");
}

static void huge_setting(bool *huge_pages) {
    static const char name[] = "FASTALLOC_HUGE_PAGES";
    const char *text = variable(name);
    if (text == NULL || strcmp(text, "off") == 0) return;
    if (strcmp(text, "transparent") == 0) *huge_pages = true;
    else complain(name, text, "expected off or transparent");
}

/* With "%p" replaced by the process's number. */
static bool find_report_path(char *path, size_t size) {
    size_t at = 0;
    for (const char *text = at_exit.report; *text != '\0'; text++) {
        int wrote = text[0] == '%' && text[1] == 'p' ? snprintf(path + at, size - at, "%ld", (long)getpid()) : -1;
        if (wrote >= 0) {
            at += (size_t)wrote;
            text++;
        } else if (at < size) {
            path[at++] = *text;
        }
        if (at >= size) return false;
    }
    path[at] = '\0';
    return true;
}

/* Most programs have none of them: these need not pay for more than this. */
static bool has_settings(void) {
    static const char prefix[] = "FASTALLOC_";
#if defined(__APPLE__)
    char *const *entry = *_NSGetEnviron();
#else
    char *const *entry = environ;
#endif
    for (; entry != NULL && *entry != NULL; entry++)
        if (**entry == 'F' && strncmp(*entry, prefix, sizeof prefix - 1) == 0) return true;
    return false;
}

/* Before any constructor, perhaps: it may not allocate. */
void fa_global_before_first(fa_global_options *options) {
    const char *text = has_settings() ? variable("FASTALLOC_HARDENED") : NULL;
    if (text == NULL || strcmp(text, "1") != 0) return;
    options->hardened = true;
#if !defined(__APPLE__)
    first_break = (uintptr_t)sbrk(0);
#endif
    options->foreign_free = LIBC_FREE;
    options->foreign_realloc = LIBC_REALLOC;
    options->foreign_is_known = is_of_libc;
}

/* The address that was touched is all there is to tell: what cannot be explained happens again, and ends the process. */
static void touched(int number, siginfo_t *what, void *context) {
    (void)context;
    if (what->si_code <= 0) (void)raise(number); /* somebody has sent it */
    else (void)fa_global_explain(what->si_addr);
}

/* Only a program that does not look after the signal itself is told what it has touched. */
static void explain_faults(void) {
    struct sigaction action = {.sa_sigaction = touched, .sa_flags = SA_SIGINFO | SA_ONSTACK | (int)SA_RESETHAND}, before;
    (void)sigemptyset(&action.sa_mask);
    if (sigaction(SIGSEGV, NULL, &before) == 0 && (before.sa_flags & SA_SIGINFO) == 0 && before.sa_handler == SIG_DFL)
        (void)sigaction(SIGSEGV, &action, NULL);
}

FA_COLD static void read_settings(fa_global_options *options) {
    size_setting("FASTALLOC_LARGE_CACHE", 0, SIZE_MAX / 2, &options->cache_limit, "expected whole bytes, such as 4GiB or 1536MiB");
    size_setting("FASTALLOC_LARGE_SIZE", FA_GLOBAL_SMALL + 1, (size_t)1 << 30, &options->large_size,
                 "expected whole bytes, such as 2MiB, above 32KiB and up to 1GiB");
    decay_setting(&options->decay);
    huge_setting(&options->huge_pages);
    options->zero_on_free = flag_setting("FASTALLOC_ZERO_ON_FREE");
    options->hardened = flag_setting("FASTALLOC_HARDENED");

    const char *report = variable("FASTALLOC_REPORT");
    if (report != NULL && report[0] == '\0') report = NULL;
    if (report != NULL && strlen(report) < sizeof report_name) at_exit.report = strcpy(report_name, report);
    else if (report != NULL) complain("FASTALLOC_REPORT", report, "expected the name of a file");
    if (flag_setting("FASTALLOC_STATS")) {
        at_exit.table = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 100); /* out of the way of what a program counts on */
        if (at_exit.table < 0) at_exit.table = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 0); /* so many may not be open */
    }
    at_exit.wanted = at_exit.table >= 0 || at_exit.report != NULL || options->hardened;
    if (at_exit.wanted) at_exit.process = getpid();
}

__attribute__((constructor(101))) static void process_begins(void) {
    fa_global_options options;
    fa_global_options_init(&options);
    options.foreign_free = LIBC_FREE;
    options.foreign_realloc = LIBC_REALLOC;
    options.foreign_usable_size = libc_usable_size;
    options.foreign_is_known = is_of_libc;
    if (has_settings()) read_settings(&options);
    fa_global_configure(&options);

    /* First of all to be registered: prepare runs last, the others run first, so other handlers may allocate. */
    (void)fa_os_platform()->at_fork(fa_global_fork_prepare, fa_global_fork_parent, fa_global_fork_child);
    if (options.hardened) {
        static const char late[] = "fastalloc: FASTALLOC_HARDENED=1 was not there when the first block was allocated\n";
        static const char open[] = "fastalloc: FASTALLOC_HARDENED=1 has no random numbers: its canaries can be guessed\n";
        /* A heap that has not begun will be hardened, with a secret if the system has one: many programs never allocate. */
        const bool begun = atomic_load(&fastalloc_malloc_stats.started) != 0;
        unsigned char any;
        if (!begun || fa_global_is_hardened()) explain_faults();
        else fa_os_platform()->report(late, sizeof late - 1);
        if (begun ? fa_global_is_hardened() && !fa_global_has_secret() : fa_os_platform()->random(&any, sizeof any) != 0)
            fa_os_platform()->report(open, sizeof open - 1);
    }
}

/* ---- the report --------------------------------------------------------------------------------------------------- */

typedef struct text {
    char bytes[32768]; /* more than all of it takes */
    size_t length;
} text;

__attribute__((format(printf, 2, 3))) static void add(text *to, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    size_t room = sizeof to->bytes - to->length;
    int wrote = vsnprintf(to->bytes + to->length, room, format, arguments);
    va_end(arguments);
    if (wrote > 0) to->length += fa_min((size_t)wrote, room - 1);
}

static void write_all(int file, const text *from) {
    for (size_t at = 0; at < from->length;) {
        ssize_t wrote = write(file, from->bytes + at, from->length - at);
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote <= 0) return; /* nowhere to complain */
        at += (size_t)wrote;
    }
}

static uint64_t peak_resident(void) {
    struct rusage usage;
#if defined(__APPLE__)
    const uint64_t unit = 1;
#else
    const uint64_t unit = 1024;
#endif
    return getrusage(RUSAGE_SELF, &usage) == 0 ? (uint64_t)usage.ru_maxrss * unit : 0;
}

static uint64_t page_faults(void) {
    struct rusage usage;
    return getrusage(RUSAGE_SELF, &usage) == 0 ? (uint64_t)usage.ru_minflt : 0;
}

static void add_json(text *to) {
    fa_global_stats stats;
    fa_global_get_stats(&stats);
    add(to, "{\"process\": %ld, \"version\": \"" FA_VERSION "\", \"peak_resident\": %" PRIu64 ", \"page_faults\": %" PRIu64
            ", \"faults_avoided\": %" PRIu64,
        (long)getpid(), peak_resident(), page_faults(), (stats.pages_reused + stats.large_reused) / page_size());
#define FIELD(name, unit, doc) add(to, ", \"" #name "\": %" PRIu64, stats.name);
    FA_GLOBAL_STATS(FIELD)
#undef FIELD
    add(to, ", \"classes\": [");
    for (uint32_t class = 1; class < FA_GLOBAL_CLASSES; class++) {
        fa_class_stats one;
        fa_global_get_class_stats(class, &one);
        add(to, "%s{\"size\": %" PRIu32 ", \"live\": %" PRIu64 ", \"allocated\": %" PRIu64 ", \"cached\": %" PRIu64
                ", \"spans\": %" PRIu64 "}",
            class == 1 ? "" : ", ", one.size, one.live, one.allocated, one.cached, one.spans);
    }
    add(to, "]}\n");
}

static void add_table(text *to) {
    fa_global_stats stats;
    fa_global_get_stats(&stats);
    add(to, "fastalloc: process %ld\n", (long)getpid());
    add(to, "%16s  %-20" PRIu64 " count: pages of resident memory handed out again\n", "faults_avoided",
        (stats.pages_reused + stats.large_reused) / page_size());
#define FIELD(name, unit, doc) add(to, "%16s  %-20" PRIu64 " %s: %s\n", #name, stats.name, unit, doc);
    FA_GLOBAL_STATS(FIELD)
#undef FIELD
    add(to, "%16s %14s %14s %12s %14s\n", "block size", "live", "allocated", "cached", "span bytes");
    for (uint32_t class = 1; class < FA_GLOBAL_CLASSES; class++) {
        fa_class_stats one;
        fa_global_get_class_stats(class, &one);
        if (one.allocated == 0) continue;
        add(to, "%16" PRIu32 " %14" PRIu64 " %14" PRIu64 " %12" PRIu64 " %14" PRIu64 "\n", one.size, one.live,
            one.allocated, one.cached, one.spans);
    }
}

static text output; /* not of the heap that it tells about */

#if !defined(__APPLE__)
EXPORT int malloc_info(int options, FILE *stream) {
    if (options != 0) return EINVAL;
    fa_global_stats stats;
    fa_global_get_stats(&stats);
    fprintf(stream, "<malloc version=\"fastalloc-" FA_VERSION "\">\n");
#define FIELD(name, unit, doc) fprintf(stream, "<" #name " unit=\"%s\">%" PRIu64 "</" #name ">\n", unit, stats.name);
    FA_GLOBAL_STATS(FIELD)
#undef FIELD
    return fprintf(stream, "</malloc>\n") < 0 ? -1 : 0;
}

EXPORT void malloc_stats(void) {
    output.length = 0;
    add_table(&output);
    write_all(STDERR_FILENO, &output);
}
#endif

__attribute__((destructor(101))) static void process_ends(void) {
    if (!at_exit.wanted) return;
    if (fa_global_is_hardened()) fa_global_check("check at exit");
    /* A forked child tells only what has a place of its own. */
    bool is_child = getpid() != at_exit.process;
    if (at_exit.table >= 0 && !is_child) {
        output.length = 0;
        add_table(&output);
        write_all(at_exit.table, &output);
    }
    if (at_exit.report == NULL || (is_child && strstr(at_exit.report, "%p") == NULL)) return;
    if (!find_report_path(report_path, sizeof report_path)) return;
    int file = open(report_path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (file < 0) {
        complain("FASTALLOC_REPORT", report_path, "it cannot be written");
        return;
    }
    output.length = 0;
    add_json(&output);
    write_all(file, &output);
    (void)close(file);
}
