/*
 * adapters/numpy.h - NumPy's array data from an arena or a manager (NEP 49)
 */
#ifndef FA_ADAPTERS_NUMPY_H
#define FA_ADAPTERS_NUMPY_H

#include "python.h"

#include "heap/array_heap.h"

/* ---- NumPy's side ------------------------------------------------------------------------------------------------- */

typedef struct {
    void *context;
    void *(*malloc)(void *context, size_t size);
    void *(*calloc)(void *context, size_t count, size_t size);
    void *(*realloc)(void *context, void *block, size_t size);
    void (*free)(void *context, void *block, size_t size);
} fa_numpy_functions;

/* PyDataMem_Handler, version 1. */
typedef struct {
    char name[127];
    uint8_t version;
    fa_numpy_functions functions;
} fa_numpy_handler;

#define FA_NUMPY_CAPSULE "mem_handler"
#define FA_NUMPY_HANDLER_VERSION 1

/* Imports NumPy, the first time it is needed. */
int fa_numpy_ready(void);

/* NumPy's functions and types by their numbers, once it is ready. */
extern void **fa_numpy_table;

/* NumPy's capsule of its default handler, whose handler install() replaces; and one of ours around NumPy's own handler. */
extern PyObject *fa_numpy_default, *fa_numpy_own;

/* The four functions of a handler over a Heap; `context` is the Heap. */
void *fa_numpy_malloc(void *context, size_t size);
void *fa_numpy_calloc(void *context, size_t count, size_t size);
void *fa_numpy_realloc(void *context, void *block, size_t size);
void fa_numpy_free(void *context, void *block, size_t size);

/* ---- install.c: the whole process --------------------------------------------------------------------------------- */

/* What NumPy's default handler allocates from: an Arena, a Manager, the InstalledAllocator, or null: NumPy's own. Borrowed. */
extern PyObject *fa_installed;

/* The one InstalledAllocator and a capsule of its handler, if install() has made it; or null. */
extern PyObject *fa_installed_allocator, *fa_installed_capsule;

/* As fa_numpy_replace_heap, for what is installed. */
int fa_install_replace_heap(fa_heap *old, fa_heap *heap);

/* Whether the data of an array that begins there is from what install() made. */
bool fa_install_owns(const void *address);

int fa_python_add_install(PyObject *module);

/* ---- numpy.c: scopes ---------------------------------------------------------------------------------------------- */

/* The allocator goes on in `heap`: scopes of it that are open in the current context move along. `old` may be null. */
int fa_numpy_replace_heap(fa_allocator *allocator, fa_heap *old, fa_heap *heap);

/* The capsule that an Arena or a Manager keeps for itself. Borrowed. */
PyObject *fa_numpy_capsule_of(fa_allocator *allocator);

/* Lets go of that capsule. If the allocator lives on, the scopes that are open with it keep it alive from now on. */
void fa_numpy_let_go(fa_allocator *allocator, bool lives);

/* Makes a handler the current one for one call of NumPy's, and then again what was. */
typedef struct {
    PyObject *outer, *token;
} fa_numpy_brief;
int fa_numpy_begin(fa_numpy_brief *brief, PyObject *capsule);
int fa_numpy_end(fa_numpy_brief *brief);

/* Adds using_allocator, set_allocator, get_allocator and OtherAllocator, and what is in the other two files. */
int fa_python_add_numpy(PyObject *module);

/* ---- arrays.c: NumPy's functions as methods of an arena ------------------------------------------------------------ */

/* Adds Routed. */
int fa_python_add_arrays(PyObject *module);

#endif
