/*
 * adapters/wipe_objects.c - Python objects, zeroed when they are freed (PEP 445)
 *
 *     PyObject_Malloc, PyMem_Malloc   <= 8 KiB   slabs (mem/slabs.h): a range of its own, metadata out of line
 *     (called with the GIL)           <  1 MiB   malloc, the size known to a table (mem/table.h)
 *                                     >= 1 MiB   a manager (heap/manager.h): pages that stay resident, and are moved
 *     free, realloc of either                    not ours: a block from before, which the allocator before us gets
 *
 *     PyMem_RawMalloc (any thread)               the C library's malloc, as before; free zeroes all it gave
 *
 * CPython lets a program put a layer on its allocators at any time, but not replace them: blocks from before are there,
 * and it frees some of its own raw blocks around whatever is installed. So the raw domain is wrapped: every block stays
 * one of malloc, whose size malloc_usable_size tells, and free only zeroes it first; blocks from before too, and those
 * that Python's own small-object allocator passes down (above 512 bytes). The two other domains know their blocks by the
 * address, and pass those from before on.
 *
 * A realloc that moves zeroes the old place, one that shrinks zeroes what is cut off; one that grows gets room to grow
 * on, because lists and strings grow again and every move is paid twice. The layer is never switched off: a block of
 * ours in the hands of another allocator would be the end of the process. So the state is static and is never freed.
 *
 * Invariants: what is free was zeroed, all that was ever asked for of it; a live block of ours is in one of slabs, table
 * and manager.
 * Thread rule: the GIL for mem and obj, hence one GIL: with a second interpreter, or in a free-threaded build, it is not
 * switched on, and a second interpreter that is made later ends the process with a message. The raw functions have no state but `before`, which
 * is written before they are installed; a thread that sees half of the old and half of the new is served right by both.
 * Cost: an allocation and a free take as many instructions as with Python's own, plus the zeroing.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "python.h"

#include "heap/manager.h"
#include "mem/base.h"
#include "mem/slabs.h"
#include "mem/table.h"
#include "os/os.h"

#include <string.h>

#if !defined(_WIN32)
#include <dlfcn.h>
#endif

/* ---- what CPython has beyond the limited API ---------------------------------------------------------------------- */

enum domain { RAW, MEM, OBJ, DOMAINS };

/* PyMemAllocatorEx. */
typedef struct allocator {
    void *context;
    void *(*malloc)(void *context, size_t size);
    void *(*calloc)(void *context, size_t count, size_t size);
    void *(*realloc)(void *context, void *block, size_t size);
    void (*free)(void *context, void *block);
} allocator;

typedef void allocator_function(int domain, allocator *functions);
typedef PyThreadState *thread_function(void);
typedef PyInterpreterState *first_function(void);
typedef PyInterpreterState *next_function(PyInterpreterState *interpreter);

static allocator before[DOMAINS];
static bool installed;

/* ---- mem and obj: with the GIL ------------------------------------------------------------------------------------ */

/* Spans that become empty before a trim, and what a trim keeps; and an eighth of the resident ones, for both. */
#define TRIM_AFTER 64U

/* Blocks of which malloc keeps pages resident, and copying is cheaper than moving pages. */
#define LARGE ((size_t)1 << 20)

static const fa_os *os;
static fa_slabs slabs;     /* initialised when it is switched on */
static fa_table table;      /* blocks of malloc, with their sizes */
static fa_manager *manager; /* from LARGE on, and when there is no address space for slabs */
static uint32_t trimmed_at; /* slabs that had been given up at the last trim */
static PyInterpreterState *main_interpreter;
static thread_function *this_thread;

FA_COLD static void end(const char *message) {
    os->report(message, strlen(message));
    os->abort();
}

FA_COLD static void corrupt(void) {
    end("fastalloc: Python freed an object's memory twice, or at a wrong address\n");
}

/* fastalloc/objects.py refuses them before they are made; what C code makes all the same is found with its first slab. */
static void check_interpreter(void) {
    PyThreadState *thread = this_thread();
    if (thread && PyThreadState_GetInterpreter(thread) != main_interpreter)
        end("fastalloc: a subinterpreter was made after wipe_freed_objects(), which works in one interpreter only\n");
}

/* `room` bytes of malloc, of which `size` are asked for. */
static void *table_alloc(size_t size, size_t room) {
    void *block = os->heap_alloc(room, FA_MIN_ALIGNMENT);
    if (block == NULL || fa_table_insert(&table, os, block, size)) return block;
    os->heap_free(block);
    return NULL;
}

static void table_free(fa_slot *slot, void *block) {
    fa_secure_zero(block, (size_t)slot->value);
    fa_table_remove(&table, slot);
    os->heap_free(block);
}

FA_APART static void *alloc_beyond(size_t size, size_t spare) {
    if (size > FA_SLAB_MAX) return size < LARGE ? table_alloc(size, size + spare) : fa_malloc(manager, size);
    check_interpreter();
    uint32_t class = fa_slab_class(size);
    return fa_slabs_refill(&slabs, os, class) ? fa_slabs_take(&slabs, class, size) : fa_malloc(manager, size);
}

FA_HOT static void *object_malloc(void *Py_UNUSED(context), size_t size) {
    if (FA_LIKELY(size <= FA_SLAB_MAX)) {
        uint32_t class = fa_slab_class(size);
        if (FA_LIKELY(!fa_slabs_must_refill(&slabs, class))) return fa_slabs_take(&slabs, class, size);
    }
    return alloc_beyond(size, 0);
}

/* Blocks of slabs and manager are zero. */
static void *object_calloc(void *context, size_t count, size_t size) {
    if (size != 0 && count > (size_t)PY_SSIZE_T_MAX / size) return NULL;
    size *= count;
    void *block = object_malloc(context, size);
    if (block != NULL && size > FA_SLAB_MAX && size < LARGE) memset(block, 0, size);
    return block;
}

/* A magazine is full. */
FA_APART static void spill(uint32_t class) {
    fa_slabs_spill(&slabs, class);
    if (slabs.emptied - trimmed_at < TRIM_AFTER + slabs.resident / 8) return;
    trimmed_at = slabs.emptied;
    size_t keep = (size_t)(TRIM_AFTER + slabs.resident / 8) * FA_SPAN;
    (void)fa_slabs_trim(&slabs, os, keep); /* what cannot be given back stays */
}

FA_APART static void free_beyond(const allocator *mine, void *block) {
    if (block == NULL) return;
    if (fa_slabs_own(&slabs, block)) corrupt();
    fa_slot *slot = fa_table_find(&table, block);
    if (slot != NULL) table_free(slot, block);
    else if (fa_manager_try_free(manager, block) != FA_OK) mine->free(mine->context, block);
}

FA_HOT static void object_free(void *context, void *block) {
    fa_slab_place place;
    if (FA_UNLIKELY(!fa_slabs_own(&slabs, block) || !fa_slabs_find(&slabs, block, &place))) {
        free_beyond(context, block);
        return;
    }
    if (FA_UNLIKELY(fa_slabs_must_spill(&slabs, place.class))) spill(place.class);
    fa_slabs_give(&slabs, place, block);
}

/* To another block; one that grows may do so again. */
static void *move(void *context, void *block, size_t old_size, size_t size) {
    size_t spare = size > old_size ? size / 4 : 0;
    void *moved = size > FA_SLAB_MAX ? alloc_beyond(size, spare) : object_malloc(context, size);
    if (moved == NULL) return NULL;
    memcpy(moved, block, fa_min(old_size, size));
    object_free(context, block);
    return moved;
}

/* What is cut off of a block that stays where it is becomes zero. */
static void cut(void *block, size_t old_size, size_t size) {
    if (size < old_size) fa_secure_zero((unsigned char *)block + size, old_size - size);
}

static void *slab_realloc(void *context, void *block, size_t size) {
    fa_slab_place place;
    if (!fa_slabs_find(&slabs, block, &place)) corrupt();
    size_t old_size = fa_slabs_size(&slabs, place);
    if (size > FA_SLAB_MAX || fa_slab_class(size) != place.class) return move(context, block, old_size, size);
    cut(block, old_size, size);
    slabs.sizes[place.number] = (uint16_t)(size + 1);
    return block;
}

static void *table_realloc(void *context, fa_slot *slot, void *block, size_t size) {
    size_t old_size = (size_t)slot->value, usable = os->heap_usable(block);
    if (size > usable || size < usable / 2) return move(context, block, old_size, size);
    cut(block, old_size, size);
    slot->value = size;
    return block;
}

static void *object_realloc(void *context, void *block, size_t size) {
    const allocator *mine = context;
    if (block == NULL) return object_malloc(context, size);
    if (fa_slabs_own(&slabs, block)) return slab_realloc(context, block, size);
    fa_slot *slot = fa_table_find(&table, block);
    if (slot != NULL) return table_realloc(context, slot, block, size);
    size_t usable = fa_usable_size(manager, block);
    if (usable == 0) return mine->realloc(mine->context, block, size);
    return size >= LARGE ? fa_realloc(manager, block, size) : move(context, block, usable, size);
}

/* ---- raw: any thread, no state ------------------------------------------------------------------------------------ */

static void *raw_malloc(void *Py_UNUSED(context), size_t size) { return before[RAW].malloc(before[RAW].context, size); }

static void *raw_calloc(void *Py_UNUSED(context), size_t count, size_t size) {
    return before[RAW].calloc(before[RAW].context, count, size);
}

static void raw_free(void *Py_UNUSED(context), void *block) {
    if (block == NULL) return;
    fa_secure_zero(block, os->heap_usable(block));
    before[RAW].free(before[RAW].context, block);
}

/* The C library's realloc may free the old place as it is, so it is not called. */
static void *raw_realloc(void *context, void *block, size_t size) {
    if (block == NULL) return raw_malloc(context, size);
    size_t usable = os->heap_usable(block);
    if (size <= usable && size >= usable / 2) {
        fa_secure_zero((unsigned char *)block + size, usable - size);
        return block;
    }
    void *moved = raw_malloc(context, size);
    if (moved == NULL) return NULL;
    memcpy(moved, block, fa_min(usable, size));
    raw_free(context, block);
    return moved;
}

/* ---- switching on ------------------------------------------------------------------------------------------------- */

static int refuse(const char *reason) {
    PyErr_Format(fa_UnsupportedError, "wipe_freed_objects: %s", reason);
    return -1;
}

/* The library at an address, or null: it has none, or the platform does not tell. */
static const void *library_at(const void *address) {
#if defined(_WIN32)
    (void)address;
    return NULL;
#else
    Dl_info info;
    return dladdr(address, &info) ? info.dli_fbase : NULL;
#endif
}

/* Whether CPython's debug hooks are installed; they overwrite what is freed themselves, and know of no usable size. */
static bool is_debug(const allocator *raw) { return raw->context != NULL; }

/* Whether the raw functions are CPython's own, over malloc. */
static bool is_pythons_own(const allocator *raw) {
    void *python, *address;
    fa_python_look_up("PyMem_RawMalloc", &python);
    memcpy(&address, &raw->malloc, sizeof address);
    const void *library = library_at(address);
    return python != NULL && library != NULL && library == library_at(python);
}

static int check_interpreters(void) {
    first_function *first;
    next_function *next;
    fa_python_look_up("PyInterpreterState_Head", &first);
    fa_python_look_up("PyInterpreterState_Next", &next);
    if (!first || !next) return refuse("this Python does not tell how many interpreters it has");
    if (next(first())) return refuse("there is a subinterpreter; it works in one interpreter only");
    return 0;
}

static int switch_on(void) {
    allocator_function *get, *set;
    fa_python_look_up("PyMem_GetAllocator", &get);
    fa_python_look_up("PyMem_SetAllocator", &set);
    if (!get || !set) return refuse("PyMem_SetAllocator cannot be found here");
    os = fa_os_platform();
    if (!os->heap_usable) return refuse("this platform does not tell how large a block of malloc is");
    if (check_interpreters()) return -1;
    for (int domain = 0; domain < DOMAINS; domain++) get(domain, &before[domain]);
    if (!is_pythons_own(&before[RAW])) return refuse("another program has replaced Python's raw allocator");

    fa_manager_options options;
    fa_manager_options_init(&options);
    options.pool_blocks = 0;
    options.large_size = LARGE;
    if (!manager) manager = fa_manager_create(&options, NULL);
    if (!manager) return PyErr_NoMemory(), -1;
    fa_slabs_init(&slabs, 0);
    fa_python_look_up("PyThreadState_GetUnchecked", &this_thread);
    if (!this_thread) fa_python_look_up("_PyThreadState_UncheckedGet", &this_thread); /* before 3.13 */
    if (!this_thread) return refuse("this Python does not tell in which interpreter it is");
    main_interpreter = PyInterpreterState_Get();

    /* The context stays what it was: see the thread rule. */
    allocator raw = {before[RAW].context, raw_malloc, raw_calloc, raw_realloc, raw_free};
    if (!is_debug(&before[RAW])) set(RAW, &raw);
    for (int domain = MEM; domain < DOMAINS; domain++) {
        allocator objects = {&before[domain], object_malloc, object_calloc, object_realloc, object_free};
        set(domain, &objects);
    }
    return 0;
}

static PyObject *wipe_freed_objects(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused)) {
    if (!installed && switch_on()) return NULL;
    installed = true;
    Py_RETURN_NONE;
}

static PyObject *wipes_freed_objects(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused)) {
    return PyBool_FromLong(installed);
}

static PyObject *freed_objects_are_valid(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused)) {
    if (!installed) Py_RETURN_TRUE;
    return PyBool_FromLong(fa_slabs_are_valid(&slabs) && fa_table_is_valid(&table) && fa_manager_is_valid(manager));
}

static PyMethodDef functions[] = {
    {"wipe_freed_objects", wipe_freed_objects, METH_NOARGS,
     "wipe_freed_objects()\n--\n\nSee fastalloc.wipe_freed_objects."},
    {"wipes_freed_objects", wipes_freed_objects, METH_NOARGS,
     "wipes_freed_objects()\n--\n\nWhether wipe_freed_objects() has been called."},
    {"freed_objects_are_valid", freed_objects_are_valid, METH_NOARGS, "freed_objects_are_valid()\n--\n\nFor tests."},
    {NULL, NULL, 0, NULL}};

int fa_python_add_wipe_objects(PyObject *module) { return PyModule_AddFunctions(module, functions); }
