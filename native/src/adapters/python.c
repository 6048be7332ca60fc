/*
 * adapters/python.c - the Python module fastalloc._native
 *
 * cffi generates the module, with `ffi` and `lib` in it; PyInit__native here makes it and adds the types and functions that
 * are too hot, or too closely bound to the life of memory, for a cffi call: Heap (python_heap.c), Block
 * (python_block.c), NumPy's hook (numpy.c) and functions (arrays.c), and in this file the base types of Arena and Manager and the two
 * context managers of an arena, scope() and unsealed().
 */
#include "python.h"

#include "mem/base.h"
#include "numpy.h"
#include "os/os.h"

#include <stdio.h>
#include <string.h>

#if !defined(_WIN32)
#include <dlfcn.h>
#endif

#define FA_PYTHON_ERROR(name) PyObject *fa_##name;
FA_PYTHON_ERRORS(FA_PYTHON_ERROR)
#undef FA_PYTHON_ERROR

PyTypeObject *fa_allocator_type;
static PyTypeObject *arena_type;
static PyTypeObject *manager_type;
static PyTypeObject *scope_type;
static PyTypeObject *unsealed_type;
static PyObject *parse_size;      /* fastalloc.units */
static PyObject *parse_alignment;

/* ---- for all files ------------------------------------------------------------------------------------------------ */

void fa_python_free(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = FA_SLOT_OF(freefunc, type, Py_tp_free);
    release(self);
    Py_DECREF(FA_OBJECT(type));
}

void fa_python_look_up(const char *name, void *function) {
#if defined(_WIN32)
    (void)name;
    void *found = NULL;
#else
    void *found = dlsym(RTLD_DEFAULT, name);
#endif
    memcpy(function, &found, sizeof found); /* ISO C has no cast from an object to a function */
}

PyObject *fa_python_no_pickle(PyObject *self, PyObject *Py_UNUSED(unused)) {
    PyErr_Format(PyExc_TypeError, "%R cannot be pickled or copied", self);
    return NULL;
}

int fa_python_add_type(PyObject *module, PyTypeObject **type, PyType_Spec *spec, PyTypeObject *base) {
    if (!*type) *type = (PyTypeObject *)PyType_FromSpecWithBases(spec, (PyObject *)base);
    return *type ? PyModule_AddType(module, *type) : -1;
}

static int python_number(PyObject *parser, PyObject *value, const char *name, size_t *number) {
    PyObject *parsed = PyObject_CallFunction(parser, "Os", value, name);
    if (!parsed) return -1;
    *number = PyLong_AsSize_t(parsed);
    Py_DECREF(parsed);
    return *number == (size_t)-1 && PyErr_Occurred() ? -1 : 0;
}

int fa_python_size(PyObject *value, const char *name, size_t *size) {
    if (PyLong_CheckExact(value)) {
        Py_ssize_t plain = PyLong_AsSsize_t(value);
        if (plain >= 0) {
            *size = (size_t)plain;
            return 0;
        }
        PyErr_Clear();
    }
    return python_number(parse_size, value, name, size);
}

int fa_python_alignment(PyObject *value, size_t *alignment) {
    *alignment = 0;
    if (!value || value == Py_None) return 0;
    return python_number(parse_alignment, value, "alignment", alignment);
}

/* ---- what Arena and Manager share --------------------------------------------------------------------------------- */

fa_heap *fa_allocator_heap(fa_allocator *allocator) {
    if (allocator->heap && !allocator->heap->closed) return allocator->heap;
    if (allocator->label[0]) PyErr_Format(fa_ClosedError, "%s is closed", allocator->label);
    else PyErr_Format(fa_ClosedError, "%R was never opened: its __init__ has not run", (PyObject *)Py_TYPE(FA_OBJECT(allocator)));
    return NULL;
}

static void allocator_let_go(fa_allocator *allocator, bool lives) {
    fa_heap *heap = allocator->heap;
    allocator->heap = NULL;
    if (heap) Py_CLEAR(heap->allocator);
    fa_numpy_let_go(allocator, lives);
    Py_XDECREF(FA_OBJECT(heap));
}

static void allocator_dealloc(PyObject *self) {
    allocator_let_go((fa_allocator *)self, false);
    fa_python_free(self);
}

/* adopt(heap): goes on in this heap. What lives in the one before keeps it. */
static PyObject *allocator_adopt(PyObject *self, PyObject *heap_object) {
    fa_allocator *allocator = (fa_allocator *)self;
    fa_heap *heap = fa_heap_check(heap_object);
    if (!heap) return NULL;
    if (PyObject_TypeCheck(self, arena_type) != (heap->arena != NULL)) {
        PyErr_Format(PyExc_TypeError, "%s is not for %R", heap->label, (PyObject *)Py_TYPE(self));
        return NULL;
    }
    PyObject *reference = PyWeakref_NewRef(self, NULL); /* may run the garbage collector, and so anything */
    if (!reference) return NULL;
    /* One that succeeds another is refused if that was closed meanwhile: it must not open again. */
    if (heap->lineage != heap->serial && !fa_allocator_heap(allocator)) {
        Py_DECREF(reference);
        return NULL;
    }
    fa_heap *old = allocator->heap;
    fa_replace(&heap->allocator, reference);
    Py_INCREF(FA_OBJECT(heap));
    allocator->heap = heap;
    allocator->lineage = heap->lineage;
    memcpy(allocator->label, heap->label, sizeof allocator->label);
    fa_numpy_let_go(allocator, true);
    if (old) Py_CLEAR(old->allocator);
    int failed = old && fa_numpy_replace_heap(allocator, old, heap);
    Py_XDECREF(FA_OBJECT(old));
    if (failed) return NULL;
    Py_RETURN_NONE;
}

static PyObject *allocator_release(PyObject *self, PyObject *Py_UNUSED(unused)) {
    allocator_let_go((fa_allocator *)self, true);
    Py_RETURN_NONE;
}

static PyObject *allocator_get_heap(PyObject *self, void *Py_UNUSED(closure)) {
    fa_heap *heap = fa_allocator_heap((fa_allocator *)self);
    return heap ? Py_NewRef(FA_OBJECT(heap)) : NULL;
}

static PyObject *allocator_get_memory(PyObject *self, void *Py_UNUSED(closure)) {
    fa_heap *heap = ((fa_allocator *)self)->heap;
    return Py_NewRef(heap ? (PyObject *)heap : Py_None);
}

static PyObject *allocator_get_label(PyObject *self, void *Py_UNUSED(closure)) {
    return PyUnicode_FromFormat("%s", ((fa_allocator *)self)->label);
}

static PyObject *allocator_get_closed(PyObject *self, void *Py_UNUSED(closure)) {
    fa_heap *heap = ((fa_allocator *)self)->heap;
    return PyBool_FromLong(!heap || heap->closed);
}

static PyGetSetDef allocator_getset[] = {
    {"closed", allocator_get_closed, NULL, "Whether close() has been called (or the interpreter is exiting).", NULL},
    {"_heap", allocator_get_heap, NULL, "The Heap; raises ClosedError.", NULL},
    {"_memory", allocator_get_memory, NULL, "The Heap, closed or not, or None once it was let go.", NULL},
    {"_label", allocator_get_label, NULL, "As in messages.", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyMethodDef allocator_methods[] = {
    {"_adopt", allocator_adopt, METH_O, "_adopt($self, heap, /)\n--\n\nAllocate from this Heap from now on."},
    {"_release", allocator_release, METH_NOARGS, "_release($self)\n--\n\nLet go of the Heap."},
    {"__reduce__", fa_python_no_pickle, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL}};

static PyType_Slot allocator_slots[] = {{Py_tp_dealloc, FA_SLOT(allocator_dealloc)},
                                        {Py_tp_getset, allocator_getset},
                                        {Py_tp_methods, allocator_methods},
                                        {Py_tp_doc, FA_DOC("What arenas and managers have in common.")},
                                        {0, NULL}};

static PyType_Spec allocator_spec = {"fastalloc._native.Allocator", (int)sizeof(fa_allocator), 0,
                                     Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE,
                                     allocator_slots};

/* A block from the heap that the allocator has now; the heap is held in case another thread closes it meanwhile. */
static PyObject *allocator_block(PyObject *self, size_t size, size_t alignment, bool zeroed) {
    fa_heap *heap = fa_allocator_heap((fa_allocator *)self);
    if (!heap) return NULL;
    Py_INCREF(FA_OBJECT(heap));
    PyObject *block = fa_block_new(heap, size, alignment, zeroed);
    Py_DECREF(FA_OBJECT(heap));
    return block;
}

static int count_arguments(const char *name, Py_ssize_t given, Py_ssize_t wanted) {
    if (given == wanted) return 0;
    PyErr_Format(PyExc_TypeError, "%s() takes exactly %zd %s (%zd given)", name, wanted,
                 wanted == 1 ? "argument" : "arguments", given);
    return -1;
}

/* ---- Arena -------------------------------------------------------------------------------------------------------- */

/* alloc(nbytes, alignment=None, *, zeroed=False) */
static PyObject *arena_alloc(PyObject *self, PyObject *const *args, Py_ssize_t positional, PyObject *names) {
    PyObject *size_value = positional > 0 ? args[0] : NULL;
    PyObject *alignment_value = positional > 1 ? args[1] : NULL;
    PyObject *zeroed_value = NULL;
    if (positional > 2) return count_arguments("alloc", positional, 2), NULL;
    Py_ssize_t named = names ? PyTuple_Size(names) : 0;
    for (Py_ssize_t i = 0; i < named; i++) {
        PyObject *name = PyTuple_GetItem(names, i);
        PyObject **slot = PyUnicode_CompareWithASCIIString(name, "nbytes") == 0      ? &size_value
                          : PyUnicode_CompareWithASCIIString(name, "alignment") == 0 ? &alignment_value
                          : PyUnicode_CompareWithASCIIString(name, "zeroed") == 0    ? &zeroed_value
                                                                                     : NULL;
        if (!slot || *slot) {
            PyErr_Format(PyExc_TypeError,
                         slot ? "alloc() got multiple values for argument %R" : "alloc() got an unexpected argument %R",
                         name);
            return NULL;
        }
        *slot = args[positional + i];
    }
    if (!size_value) return PyErr_SetString(PyExc_TypeError, "alloc() needs the argument 'nbytes'"), NULL;
    size_t size, alignment;
    if (fa_python_size(size_value, "nbytes", &size) || fa_python_alignment(alignment_value, &alignment)) return NULL;
    int zeroed = zeroed_value ? PyObject_IsTrue(zeroed_value) : 0;
    if (zeroed < 0) return NULL;
    return allocator_block(self, size, alignment, zeroed);
}

static PyObject *arena_scope(PyObject *self, PyObject *args, PyObject *keywords);

static PyMethodDef arena_methods[] = {
    {"alloc", FA_METHOD(arena_alloc), METH_FASTCALL | METH_KEYWORDS,
     "alloc($self, nbytes, alignment=None, *, zeroed=False)\n--\n\nRaw bytes in the arena.\n\n"
     "Parameters\n----------\nnbytes : int or str\n    Size in bytes, or such as '64KiB'. 0 is allowed.\n"
     "alignment : int or str, optional\n    A power of two up to 2 MiB; the arena's own unless given.\n"
     "zeroed : bool\n    Whether the bytes must be zero. Those of a witness arena always are; else they may hold what was\n"
     "    freed before.\n\n"
     "Returns\n-------\nBlock\n\n"
     "Raises\n------\nArgumentError\n    If the size or the alignment is out of range.\n"
     "OutOfMemoryError\n    If the arena has no room (and does not fall back to malloc).\n"
     "ClosedError\n    If the arena is closed.\n\n"
     "Notes\n-----\nAny thread may call it. One short lock; about a quarter of a microsecond."},
    {"scope", FA_METHOD(arena_scope), METH_VARARGS | METH_KEYWORDS,
     "scope($self, strict=False)\n--\n\nA context manager that releases what is allocated inside it.\n\n"
     "`with arena.scope() as a:` marks the arena, gives the arena, and at its end rewinds to the mark. If arrays or blocks\n"
     "made inside are still alive then, the rewind waits until the last of them dies, and a ResourceWarning says how\n"
     "many there are; with strict=True, InUseError is raised instead (and the rewind waits all the same). An exception\n"
     "that leaves the block is never replaced.\n\n"
     "Scopes nest, and may be left in any order. A scope belongs to the arena, not to a thread: what another thread\n"
     "allocates meanwhile is inside too.\n\n"
     "Parameters\n----------\nstrict : bool\n    Raise InUseError rather than warn.\n\n"
     "Notes\n-----\nEntering and leaving cost one short lock each, whatever was allocated."},
    {NULL, NULL, 0, NULL}};

static PyType_Slot arena_slots[] = {
    {Py_tp_methods, arena_methods}, {Py_tp_doc, FA_DOC("The part of Arena that is C.")}, {0, NULL}};

static PyType_Spec arena_spec = {"fastalloc._native.ArenaBase", (int)sizeof(fa_allocator), 0,
                                 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE, arena_slots};

/* ---- Manager ------------------------------------------------------------------------------------------------------ */

static PyObject *manager_malloc(PyObject *self, PyObject *value) {
    size_t size;
    if (fa_python_size(value, "size", &size)) return NULL;
    return allocator_block(self, size, 0, false);
}

static PyObject *manager_calloc(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    size_t count, size;
    if (count_arguments("calloc", given, 2)) return NULL;
    if (fa_python_size(args[0], "count", &count) || fa_python_size(args[1], "size", &size)) return NULL;
    if (size != 0 && count > (size_t)PY_SSIZE_T_MAX / size) {
        PyErr_Format(fa_ArgumentError, "count: %zu blocks of %zu bytes are more than the address space", count, size);
        return NULL;
    }
    return allocator_block(self, count * size, 0, true);
}

static PyObject *manager_aligned_alloc(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    size_t alignment, size;
    if (count_arguments("aligned_alloc", given, 2)) return NULL;
    if (fa_python_alignment(args[0], &alignment) || fa_python_size(args[1], "size", &size)) return NULL;
    return allocator_block(self, size, alignment, false);
}

static PyObject *manager_realloc(PyObject *self, PyObject *const *args, Py_ssize_t given) {
    size_t size;
    if (count_arguments("realloc", given, 2) || fa_python_size(args[1], "size", &size)) return NULL;
    fa_heap *heap = fa_allocator_heap((fa_allocator *)self);
    if (!heap || fa_block_check(heap, args[0]) || fa_block_resize((fa_block *)args[0], size)) return NULL;
    return Py_NewRef(args[0]);
}

static PyObject *manager_free(PyObject *self, PyObject *block) {
    fa_allocator *manager = (fa_allocator *)self;
    /* After close() blocks may still be freed; whether they are this manager's, only its heap can say. */
    fa_heap *heap = manager->heap ? manager->heap : fa_allocator_heap(manager);
    if (!heap || fa_block_check(heap, block) || fa_block_free((fa_block *)block)) return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef manager_methods[] = {
    {"malloc", manager_malloc, METH_O,
     "malloc($self, size, /)\n--\n\nA block of `size` bytes (an int, or such as '4KiB').\n\n"
     "Raises\n------\nArgumentError\n    If the size is out of range.\n"
     "OutOfMemoryError\n    If the system has no memory, or the manager's `limit` is reached.\n"
     "ClosedError\n    If the manager is closed."},
    {"calloc", FA_METHOD(manager_calloc), METH_FASTCALL,
     "calloc($self, count, size, /)\n--\n\nA block of `count` times `size` bytes, all zero.\n\n"
     "Raises\n------\nArgumentError\n    If a number, or the product, is out of range.\n"
     "OutOfMemoryError, ClosedError\n    As malloc."},
    {"aligned_alloc", FA_METHOD(manager_aligned_alloc), METH_FASTCALL,
     "aligned_alloc($self, alignment, size, /)\n--\n\nA block whose address is a multiple of `alignment`.\n\n"
     "Raises\n------\nArgumentError\n    If the alignment is not a power of two up to 2 MiB, or the size is out of range.\n"
     "OutOfMemoryError, ClosedError\n    As malloc."},
    {"realloc", FA_METHOD(manager_realloc), METH_FASTCALL,
     "realloc($self, block, size, /)\n--\n\nResize a block; its contents stay, up to the smaller size.\n\n"
     "Returns\n-------\nBlock\n    The same object. Its address may have changed.\n\n"
     "Raises\n------\nInUseError\n    While buffers of the block are held.\n"
     "ForeignBlockError\n    If the block is of another manager or of an arena.\n"
     "FreedBlockError\n    If the block has been freed.\n"
     "ArgumentError, OutOfMemoryError, ClosedError\n    As malloc. After any exception the block is as it was."},
    {"free", manager_free, METH_O,
     "free($self, block, /)\n--\n\nZero the block and give it back: block.free(), checked to be this manager's.\n\n"
     "Raises\n------\nInUseError\n    While buffers of the block are held.\n"
     "ForeignBlockError\n    If the block is of another manager or of an arena.\n"
     "FreedBlockError\n    If the block has been freed before.\n"
     "ClosedError\n    If the manager is closed; block.free() goes on to work."},
    {NULL, NULL, 0, NULL}};

static PyType_Slot manager_slots[] = {
    {Py_tp_methods, manager_methods}, {Py_tp_doc, FA_DOC("The part of Manager that is C.")}, {0, NULL}};

static PyType_Spec manager_spec = {"fastalloc._native.ManagerBase", (int)sizeof(fa_allocator), 0,
                                   Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE, manager_slots};

/* ---- the scope of an arena ---------------------------------------------------------------------------------------- */

typedef struct arena_scope {
    PyObject_HEAD
    fa_allocator *arena;
    fa_heap *heap; /* while it is open */
    fa_mark mark;
    bool strict;
} arena_scope_object;

static PyObject *arena_scope(PyObject *self, PyObject *args, PyObject *keywords) {
    static const char *names[] = {"strict", NULL};
    int strict = 0;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "|p:scope", (char **)names, &strict)) return NULL;
    if (!fa_allocator_heap((fa_allocator *)self)) return NULL;
    arena_scope_object *scope = PyObject_GC_New(arena_scope_object, scope_type);
    if (!scope) return NULL;
    scope->arena = (fa_allocator *)Py_NewRef(self);
    scope->heap = NULL;
    scope->strict = strict;
    PyObject_GC_Track(scope);
    return (PyObject *)scope;
}

static int scope_traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((arena_scope_object *)self)->arena);
    return 0;
}

/* An abandoned scope (a generator that was never finished) is left, not forgotten. */
static void scope_leave_silently(arena_scope_object *scope) {
    fa_heap *heap = scope->heap;
    if (!heap) return;
    scope->heap = NULL;
    uint64_t live = 0, bytes = 0;
    fa_arena_scope_leave(heap->arena, scope->mark, &live, &bytes);
    Py_DECREF(FA_OBJECT(heap));
}

/* No tp_clear: a cycle goes through what Python code has put into an Arena, and is broken there. */
static void scope_dealloc(PyObject *self) {
    PyObject_GC_UnTrack(self);
    scope_leave_silently((arena_scope_object *)self);
    Py_DECREF(FA_OBJECT(((arena_scope_object *)self)->arena));
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_Del(self);
    Py_DECREF(FA_OBJECT(type));
}

static PyObject *scope_enter(PyObject *self, PyObject *Py_UNUSED(unused)) {
    arena_scope_object *scope = (arena_scope_object *)self;
    if (scope->heap) {
        PyErr_Format(fa_ScopeError, "this scope of %s is open already: every `with` needs a scope() of its own",
                     scope->arena->label);
        return NULL;
    }
    fa_heap *heap = fa_allocator_heap(scope->arena);
    if (!heap) return NULL;
    if (!heap->arena) return PyErr_Format(PyExc_TypeError, "%s has no scopes", heap->label); /* a class of both kinds */
    Py_INCREF(FA_OBJECT(heap));
    scope->mark = fa_arena_scope_enter(heap->arena);
    if (scope->mark.serial == 0) {
        if (heap->closed) PyErr_Format(fa_ClosedError, "%s is closed", heap->label);
        else PyErr_Format(fa_ScopeError, "%s: too many marks and scopes are open in it", heap->label);
        Py_DECREF(FA_OBJECT(heap));
        return NULL;
    }
    scope->heap = heap;
    return Py_NewRef(FA_OBJECT(scope->arena));
}

static PyObject *scope_exit(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    arena_scope_object *scope = (arena_scope_object *)self;
    if (count > 3) return PyErr_Format(PyExc_TypeError, "__exit__() takes at most 3 arguments (%zd given)", count);
    bool raised = count > 0 && args[0] != Py_None;
    fa_heap *heap = scope->heap;
    if (!heap) {
        PyErr_Format(fa_ScopeError, "this scope of %s is not open", scope->arena->label);
        return NULL;
    }
    scope->heap = NULL;
    uint64_t live = 0, bytes = 0;
    fa_status status = fa_arena_scope_leave(heap->arena, scope->mark, &live, &bytes);
    int failed = 0;
    /* FA_ERR_STALE: a reset or rewind inside has ended the scope already. With an exception on its way the frames in
     * its traceback hold the arrays; it matters more than that. */
    if (status == FA_ERR_BUSY && !raised) {
        const char *what = live == 1 ? "array or block" : "arrays or blocks";
        unsigned long long count = live, size = bytes;
        if (scope->strict) {
            PyErr_Format(fa_InUseError, "scope of %s: %llu %s of %llu bytes made inside it are still alive",
                         heap->label, count, what, size);
            failed = 1;
        } else {
            failed = PyErr_WarnFormat(PyExc_ResourceWarning, 1,
                                      "scope of %s: %llu %s of %llu bytes made inside it are still alive; their memory "
                                      "is released when the last of them dies",
                                      heap->label, count, what, size);
        }
    }
    Py_DECREF(FA_OBJECT(heap));
    if (failed) return NULL;
    Py_RETURN_NONE;
}

static PyObject *scope_repr(PyObject *self) {
    const arena_scope_object *scope = (const arena_scope_object *)self;
    return PyUnicode_FromFormat("<scope of %s, %s%s>", scope->arena->label, scope->heap ? "open" : "not open",
                                scope->strict ? ", strict" : "");
}

static PyMethodDef scope_methods[] = {{"__enter__", scope_enter, METH_NOARGS, NULL},
                                      {"__exit__", FA_METHOD(scope_exit), METH_FASTCALL, NULL},
                                      {"__reduce__", fa_python_no_pickle, METH_NOARGS, NULL},
                                      {NULL, NULL, 0, NULL}};

static PyType_Slot scope_slots[] = {{Py_tp_dealloc, FA_SLOT(scope_dealloc)},
                                    {Py_tp_traverse, FA_SLOT(scope_traverse)},
                                    {Py_tp_repr, FA_SLOT(scope_repr)},
                                    {Py_tp_methods, scope_methods},
                                    {Py_tp_doc, FA_DOC("What Arena.scope() returns.")},
                                    {0, NULL}};

static PyType_Spec scope_spec = {"fastalloc._native.ArenaScope", (int)sizeof(arena_scope_object), 0,
                                 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION |
                                     Py_TPFLAGS_IMMUTABLETYPE,
                                 scope_slots};

/* ---- an arena that is unsealed for a while -------------------------------------------------------------------------- */

/* In C, so that no signal's exception can come between the opening and the `with` that closes. */
typedef struct unsealed {
    PyObject_HEAD
    fa_allocator *arena;
    PyObject *open; /* a list: the Heap it has opened for each `with` it is in */
} unsealed_object;

static PyObject *unsealed_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    static const char *names[] = {"arena", NULL};
    PyObject *arena;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O!:Unsealed", (char **)names, arena_type, &arena)) return NULL;
    allocfunc allocate = FA_SLOT_OF(allocfunc, type, Py_tp_alloc);
    unsealed_object *self = (unsealed_object *)allocate(type, 0);
    if (!self) return NULL;
    self->arena = (fa_allocator *)Py_NewRef(arena);
    self->open = PyList_New(0);
    if (!self->open) Py_CLEAR(self);
    return (PyObject *)self;
}

static int unsealed_traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((unsealed_object *)self)->arena);
    return 0;
}

/* The Heap that was opened last, which is not noted any more, or null without an exception. New reference. */
static fa_heap *unsealed_pop(unsealed_object *unsealed) {
    Py_ssize_t last = PyList_Size(unsealed->open) - 1;
    if (last < 0) return NULL;
    PyObject *heap = Py_NewRef(PyList_GetItem(unsealed->open, last));
    if (PyList_SetSlice(unsealed->open, last, last + 1, NULL)) PyErr_Clear(); /* a list can always be made shorter */
    return (fa_heap *)heap;
}

/* Seals what an abandoned one has left open. No tp_clear: see the scope. */
static void unsealed_dealloc(PyObject *self) {
    unsealed_object *unsealed = (unsealed_object *)self;
    PyObject_GC_UnTrack(self);
    for (fa_heap *heap; unsealed->open && (heap = unsealed_pop(unsealed)) != NULL;) {
        (void)fa_arena_unsealed_end(heap->arena);
        Py_DECREF(FA_OBJECT(heap));
    }
    Py_XDECREF(unsealed->open);
    Py_XDECREF(FA_OBJECT(unsealed->arena));
    fa_python_free(self);
}

static PyObject *seal_refused(const fa_allocator *arena, fa_status status, const char *action) {
    if (status == FA_ERR_STALE) return PyErr_Format(fa_ClosedError, "%s is closed", arena->label);
    return PyErr_Format(fa_OutOfMemoryError, "%s: the system refuses to %s its pages: %s", arena->label, action,
                        fa_status_string(status));
}

static PyObject *unsealed_enter(PyObject *self, PyObject *Py_UNUSED(unused)) {
    unsealed_object *unsealed = (unsealed_object *)self;
    fa_heap *heap = fa_allocator_heap(unsealed->arena);
    if (!heap) return NULL;
    if (!heap->arena) return PyErr_Format(PyExc_TypeError, "%s has no seal", heap->label); /* a class of both kinds */
    if (PyList_Append(unsealed->open, FA_OBJECT(heap))) return NULL;
    Py_INCREF(FA_OBJECT(heap));
    fa_status status;
    Py_BEGIN_ALLOW_THREADS
    status = fa_arena_unsealed_begin(heap->arena);
    Py_END_ALLOW_THREADS
    if (status != FA_OK) Py_XDECREF(FA_OBJECT(unsealed_pop(unsealed)));
    Py_DECREF(FA_OBJECT(heap));
    if (status != FA_OK) return seal_refused(unsealed->arena, status, "unseal");
    return Py_NewRef(FA_OBJECT(unsealed->arena));
}

static PyObject *unsealed_exit(PyObject *self, PyObject *const *Py_UNUSED(args), Py_ssize_t Py_UNUSED(count)) {
    unsealed_object *unsealed = (unsealed_object *)self;
    fa_heap *heap = unsealed_pop(unsealed);
    if (!heap) return PyErr_Format(fa_ScopeError, "%s was not opened by this unsealed()", unsealed->arena->label);
    fa_status status;
    Py_BEGIN_ALLOW_THREADS
    status = fa_arena_unsealed_end(heap->arena);
    Py_END_ALLOW_THREADS
    Py_DECREF(FA_OBJECT(heap));
    if (status != FA_OK) return seal_refused(unsealed->arena, status, "seal");
    Py_RETURN_NONE;
}

static PyMethodDef unsealed_methods[] = {{"__enter__", unsealed_enter, METH_NOARGS, NULL},
                                         {"__exit__", FA_METHOD(unsealed_exit), METH_FASTCALL, NULL},
                                         {"__reduce__", fa_python_no_pickle, METH_NOARGS, NULL},
                                         {NULL, NULL, 0, NULL}};

static PyType_Slot unsealed_slots[] = {{Py_tp_new, FA_SLOT(unsealed_new)},
                                       {Py_tp_dealloc, FA_SLOT(unsealed_dealloc)},
                                       {Py_tp_traverse, FA_SLOT(unsealed_traverse)},
                                       {Py_tp_methods, unsealed_methods},
                                       {Py_tp_doc, FA_DOC("What Arena.unsealed() returns.")},
                                       {0, NULL}};

static PyType_Spec unsealed_spec = {"fastalloc._native.Unsealed", (int)sizeof(unsealed_object), 0,
                                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE, unsealed_slots};

/* ---- functions ---------------------------------------------------------------------------------------------------- */

/* Where the data of a buffer begins; strided ones too. */
static PyObject *address_of(PyObject *Py_UNUSED(module), PyObject *object) {
    Py_buffer view;
    if (PyObject_GetBuffer(object, &view, PyBUF_FULL_RO)) return NULL;
    PyObject *address = PyLong_FromVoidPtr(view.buf);
    PyBuffer_Release(&view);
    return address;
}

static PyObject *any_owns(PyObject *Py_UNUSED(module), PyObject *value) {
    void *address = PyLong_AsVoidPtr(value);
    if (PyErr_Occurred()) return NULL;
    return PyBool_FromLong(fa_heap_any_owns(address));
}

static PyObject *secure_zero(PyObject *Py_UNUSED(module), PyObject *object) {
    Py_buffer view;
    if (PyObject_GetBuffer(object, &view, PyBUF_WRITABLE | PyBUF_ANY_CONTIGUOUS | PyBUF_FORMAT)) return NULL;
    if (view.len < (Py_ssize_t)FA_LONG_WORK) {
        fa_secure_zero(view.buf, (size_t)view.len);
    } else {
        Py_BEGIN_ALLOW_THREADS
        fa_secure_zero(view.buf, (size_t)view.len);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&view);
    Py_RETURN_NONE;
}

static PyObject *fill_random(PyObject *Py_UNUSED(module), PyObject *object) {
    Py_buffer view;
    if (PyObject_GetBuffer(object, &view, PyBUF_WRITABLE)) return NULL;
    int error = view.len > 0 ? fa_os_platform()->random(view.buf, (size_t)view.len) : 0;
    PyBuffer_Release(&view);
    if (error == 0) Py_RETURN_NONE;
    errno = error;
    return PyErr_SetFromErrno(PyExc_OSError);
}

/* The dead part of the stack is overwritten frame by frame: what follows the call keeps it from becoming a loop. */
#define STACK_FRAME ((size_t)16 << 10)

FA_APART static void wipe_below(size_t size) {
    unsigned char frame[STACK_FRAME];
    fa_secure_zero(frame, sizeof frame);
    if (size > STACK_FRAME) wipe_below(size - STACK_FRAME);
    fa_secure_zero(frame, 1);
}

/* The registers that memcpy and its like work with hold what they copied last: here, zeros. */
FA_APART static void wipe_vector_registers(void) {
    unsigned char from[1024] = {0}, to[1024];
    for (volatile size_t size = sizeof from; size > 0; size /= 2) memmove(to, from, size);
    fa_secure_zero(to, sizeof to);
}

static PyObject *wipe_stack(PyObject *Py_UNUSED(module), PyObject *value) {
    size_t size;
    if (fa_python_size(value, "nbytes", &size)) return NULL;
    wipe_vector_registers();
    wipe_below(size);
    Py_RETURN_NONE;
}

/* Python may hand the module to another interpreter without calling PyInit__native again, so _binding.py asks, too. */
static PyObject *refuse_subinterpreters(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused)) {
    if (PyInterpreterState_GetID(PyInterpreterState_Get()) == 0) Py_RETURN_NONE;
    PyErr_SetString(PyExc_ImportError, "fastalloc works in the main interpreter only, as NumPy does");
    return NULL;
}

static PyMethodDef functions[] = {
    {"refuse_subinterpreters", refuse_subinterpreters, METH_NOARGS,
     "refuse_subinterpreters()\n--\n\nRaises ImportError in any but the main interpreter."},
    {"address_of", address_of, METH_O, "address_of(buffer, /)\n--\n\nThe address of a buffer's first item."},
    {"any_owns", any_owns, METH_O, "any_owns(address, /)\n--\n\nWhether the address is in a live heap."},
    {"fill_random", fill_random, METH_O, "fill_random(buffer, /)\n--\n\nRandom bytes, from the kernel into the buffer."},
    {"wipe_stack", wipe_stack, METH_O, "wipe_stack(nbytes, /)\n--\n\nZero the unused part of this thread's stack."},
    {"secure_zero", secure_zero, METH_O, "secure_zero(buffer, /)\n--\n\nZero a writable contiguous buffer."},
    {NULL, NULL, 0, NULL}};

/* ---- the module --------------------------------------------------------------------------------------------------- */

static int take_from(const char *module_name, const char *name, PyObject **place) {
    PyObject *module = PyImport_ImportModule(module_name);
    if (!module) return -1;
    fa_replace(place, PyObject_GetAttrString(module, name));
    Py_DECREF(module);
    return *place ? 0 : -1;
}

static int add_everything(PyObject *module) {
#define FA_PYTHON_ERROR(name)                                                                                          \
    if (take_from("fastalloc.errors", #name, &fa_##name)) return -1;
    FA_PYTHON_ERRORS(FA_PYTHON_ERROR)
#undef FA_PYTHON_ERROR
    if (take_from("fastalloc.units", "parse_size", &parse_size)) return -1;
    if (take_from("fastalloc.units", "parse_alignment", &parse_alignment)) return -1;

    if (fa_python_add_heap(module) || fa_python_add_block(module)) return -1;
    if (fa_python_add_type(module, &fa_allocator_type, &allocator_spec, NULL)) return -1;
    if (fa_python_add_type(module, &arena_type, &arena_spec, fa_allocator_type)) return -1;
    if (fa_python_add_type(module, &manager_type, &manager_spec, fa_allocator_type)) return -1;
    if (fa_python_add_type(module, &scope_type, &scope_spec, NULL)) return -1;
    if (fa_python_add_type(module, &unsealed_type, &unsealed_spec, NULL)) return -1;
    if (PyModule_AddFunctions(module, functions)) return -1;
    if (fa_python_add_wipe_objects(module) || fa_python_add_residue(module)) return -1;
    return fa_python_add_numpy(module);
}

PyMODINIT_FUNC PyInit__native(void) {
    PyObject *main_interpreter = refuse_subinterpreters(NULL, NULL);
    if (!main_interpreter) return NULL;
    Py_DECREF(main_interpreter);
    PyObject *module = fa_python_cffi_module();
    if (module && add_everything(module)) Py_CLEAR(module);
    return module;
}
