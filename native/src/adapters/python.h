/*
 * adapters/python.h - the Python objects, as the C files of the module see each other
 *
 *     Arena, Manager ──┐                     (Python classes over ArenaBase and ManagerBase, python.c)
 *     Block ─ Memory ──┼──>  Heap  ──>  fa_arena or fa_manager
 *     NumPy's capsule ─┘                     (numpy.c)
 *
 * A Heap owns one fa_arena or fa_manager and destroys it when its last reference goes. Everything that lives in the
 * memory holds such a reference, so memory is never unmapped under it:
 *
 *   Memory     one allocation; what buffers and memoryviews point at. It is freed when nobody holds it any more
 *   Block      the handle of a Memory that Python code sees
 *   capsule    NumPy's handler; NumPy keeps it as long as any array made with it, views included
 *
 * All reference counts are Python's own and change under the GIL only. Functions that NumPy or fork may call without
 * the GIL touch no Python object: they are in numpy.c (the handler) and at the end of python_heap.c (fork).
 *
 * Types are static: the module refuses to be imported by a subinterpreter.
 */
#ifndef FA_ADAPTERS_PYTHON_H
#define FA_ADAPTERS_PYTHON_H

#if !defined(Py_LIMITED_API) || Py_LIMITED_API + 0 < 0x030B0000
#error "compile with -DPy_LIMITED_API=0x030B0000: the buffer slots are in the stable ABI from CPython 3.11 on"
#endif
#include <Python.h>
#include <structmember.h>

#include "fastalloc.h"
#include "heap/arena.h"
#include "heap/manager.h"

#include <stdbool.h>
#include <stdint.h>

/* Function pointers in the void * of a PyType_Slot, as Python wants them and ISO C does not; a text there; and back. */
#define FA_SLOT(function) (__extension__(void *)(function))
#define FA_DOC(text) ((void *)(text))
#define FA_SLOT_OF(function_type, type, slot) (__extension__(function_type) PyType_GetSlot(type, slot))
#define FA_METHOD(function) ((PyCFunction)(void (*)(void))(function))

/* Any of the object structs below, for the functions of Python. */
#define FA_OBJECT(object) ((PyObject *)(object))

/* Whether nobody else has a reference. Newer Pythons keep flags in the upper half of the count. */
static inline bool fa_python_is_only_reference(PyObject *object) { return (uint32_t)Py_REFCNT(object) == 1; }

/* Steals `object`. */
static inline void fa_replace(PyObject **place, PyObject *object) {
    PyObject *old = *place;
    *place = object;
    Py_XDECREF(old);
}

/* Longest label kept, as in "polynomial arena 'quotients'". */
#define FA_LABEL_SIZE 96

/* Above this many bytes, work that grows with the size runs without the GIL. */
#define FA_LONG_WORK ((size_t)256 << 10)

/* ---- python_heap.c: owning -------------------------------------------------------------------------------------- */

typedef struct fa_heap {
    PyObject_HEAD
    fa_arena *arena; /* one of the two is null */
    fa_manager *manager;
    size_t array_alignment; /* of NumPy's blocks: a cache line at least */
    size_t limit;           /* of a manager: bytes that its live blocks may ask for; 0: no limit */
    uint64_t serial;        /* no two heaps of a process have the same */
    uint64_t lineage;       /* the serial of the heap that reset(retire=True) first replaced */
    bool closed;
    PyObject *allocator; /* weak reference to the Arena or Manager that allocates from it now, or null */
    PyObject *weak_references;
    struct fa_heap *previous, *next; /* all heaps, for fork and for exit */
    char label[FA_LABEL_SIZE];
} fa_heap;

/* The arena or manager behind an Arena or Manager; what python.c's two base types have in common. */
typedef struct fa_allocator {
    PyObject_HEAD
    fa_heap *heap;     /* null before it is adopted and after close() */
    PyObject *capsule; /* NumPy's handler for heap, made when first needed */
    uint64_t lineage;
    char label[FA_LABEL_SIZE];
} fa_allocator;

/* Null, with TypeError set, if it is no Heap. Borrowed. */
fa_heap *fa_heap_check(PyObject *object);

/* Null, with ClosedError set, if the allocator is closed. Borrowed. */
fa_heap *fa_allocator_heap(fa_allocator *allocator);

/* The exception for a refused allocation: OutOfMemoryError, LockError, SealedError, ClosedError. */
void fa_heap_refused(fa_heap *heap, size_t size, size_t alignment, fa_status status);

/* Likewise, for what NumPy could not allocate in the heap, which `cause` says: what the heap refused last. */
void fa_heap_refused_array(fa_heap *heap, PyObject *cause);

/* The heap in whose memory the address lies: of a live block, or in an arena where a block may be. Borrowed, or null. */
const fa_heap *fa_heap_owner(const void *address);

/* Whether there is one, or it is an array's of install(). */
bool fa_heap_any_owns(const void *address);

int fa_python_add_heap(PyObject *module);

/* ---- python_block.c: blocks ------------------------------------------------------------------------------------- */

typedef struct fa_block fa_block;

/* A new Block of `size` bytes; alignment 0 is the heap's default. */
PyObject *fa_block_new(fa_heap *heap, size_t size, size_t alignment, bool zeroed);

/* Whether it is a Block, of this heap, not freed; else -1 with the exception set. */
int fa_block_check(fa_heap *heap, PyObject *object);
int fa_block_free(fa_block *block);
int fa_block_resize(fa_block *block, size_t size);

int fa_python_add_block(PyObject *module);

/* ---- python.c: the module --------------------------------------------------------------------------------------- */

/* The classes of fastalloc/errors.py that C raises. */
#define FA_PYTHON_ERRORS(X)                                                                                            \
    X(ArgumentError)                                                                                                   \
    X(ArgumentTypeError)                                                                                               \
    X(ClosedError)                                                                                                     \
    X(CorruptionError)                                                                                                 \
    X(ForeignBlockError)                                                                                               \
    X(FreedBlockError)                                                                                                 \
    X(InUseError)                                                                                                      \
    X(LockError)                                                                                                       \
    X(OutOfMemoryError)                                                                                                \
    X(ScopeError)                                                                                                      \
    X(SealedError)                                                                                                     \
    X(UnsupportedError)

#define FA_PYTHON_ERROR(name) extern PyObject *fa_##name;
FA_PYTHON_ERRORS(FA_PYTHON_ERROR)
#undef FA_PYTHON_ERROR

extern PyTypeObject *fa_allocator_type; /* the base of both */

/* A size in bytes from an int or a string such as "64MiB" (fastalloc/units.py); -1 with ArgumentError. */
int fa_python_size(PyObject *value, const char *name, size_t *size);

/* A power of two up to 2 MiB; None and null are 0, the default. */
int fa_python_alignment(PyObject *value, size_t *alignment);

/* Makes the type, if it is not yet made, and adds it to the module under the last part of its name. */
int fa_python_add_type(PyObject *module, PyTypeObject **type, PyType_Spec *spec, PyTypeObject *base);

/* Sets a pointer to a function of CPython that is not in its limited API; null where it cannot be looked up. */
void fa_python_look_up(const char *name, void *function);

/* Frees the object itself, at the end of a tp_dealloc. */
void fa_python_free(PyObject *self);

/* A __reduce__ that refuses. */
PyObject *fa_python_no_pickle(PyObject *self, PyObject *unused);

/* wipe_objects.c: the layer on Python's allocators. */
int fa_python_add_wipe_objects(PyObject *module);

/* residue.c: searching memory for pieces of a secret. */
int fa_python_add_residue(PyObject *module);

/* build_ffi.py renames cffi's own initialisation to this. */
PyObject *fa_python_cffi_module(void);

PyMODINIT_FUNC PyInit__native(void);

#endif
