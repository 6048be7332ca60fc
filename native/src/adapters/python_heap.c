/*
 * adapters/python_heap.c - the owner of one fa_arena or fa_manager
 *
 * Made by create_arena() and create_manager() from the address of an options struct that _binding.py filled in. The
 * C call and the object that owns its result are one step here, so that no exception can come between them.
 */
#include "numpy.h"

#include "mem/lock.h"
#include "os/os.h"

#include <stdio.h>
#include <string.h>

/* A cache line: what vector code wants of an array. */
#define FA_ARRAY_ALIGNMENT ((size_t)64)

static PyTypeObject *heap_type;
static uint64_t last_serial;

/* Every heap. Changed under both the GIL and this lock; read under either. fork takes the lock without the GIL. */
static fa_heap *heaps;
static fa_lock heaps_lock;

static void heaps_link(fa_heap *heap) {
    fa_lock_take(&heaps_lock, fa_os_platform());
    heap->next = heaps;
    if (heaps) heaps->previous = heap;
    heaps = heap;
    fa_lock_give(&heaps_lock);
}

static void heaps_unlink(fa_heap *heap) {
    fa_lock_take(&heaps_lock, fa_os_platform());
    if (heap->previous) heap->previous->next = heap->next;
    else heaps = heap->next;
    if (heap->next) heap->next->previous = heap->previous;
    fa_lock_give(&heaps_lock);
}

static fa_heap *heap_new(const char *label) {
    fa_heap *heap = PyObject_New(fa_heap, heap_type);
    if (!heap) return NULL;
    memset((char *)heap + sizeof(PyObject), 0, sizeof *heap - sizeof(PyObject));
    heap->serial = heap->lineage = ++last_serial;
    size_t length = strlen(label);
    if (length >= sizeof heap->label) { /* cut between characters of UTF-8 */
        length = sizeof heap->label - 1;
        while (length > 0 && ((unsigned char)label[length] & 0xC0) == 0x80) length--;
    }
    memcpy(heap->label, label, length);
    return heap;
}

static void heap_dealloc(PyObject *self) {
    fa_heap *heap = (fa_heap *)self;
    if (heap->arena || heap->manager) heaps_unlink(heap); /* before anything that runs Python code */
    if (heap->weak_references) PyObject_ClearWeakRefs(self);
    fa_arena_destroy(heap->arena);
    fa_manager_destroy(heap->manager);
    Py_XDECREF(heap->allocator);
    fa_python_free(self);
}

/* (address of options, label, serial of the heap it succeeds or 0): a Heap, or the fa_status of the failure. */
static PyObject *heap_create(PyObject *args, bool is_arena) {
    PyObject *address = NULL;
    const char *label = NULL;
    unsigned long long lineage = 0;
    if (!PyArg_ParseTuple(args, "OsK", &address, &label, &lineage)) return NULL;
    const void *options = PyLong_AsVoidPtr(address);
    if (PyErr_Occurred()) return NULL;

    fa_heap *heap = heap_new(label);
    if (!heap) return NULL;
    if (lineage) heap->lineage = lineage;
    fa_status status = FA_OK;
    heap->array_alignment = FA_ARRAY_ALIGNMENT;
    Py_BEGIN_ALLOW_THREADS
    if (is_arena) heap->arena = fa_arena_create(options, &status);
    else heap->manager = fa_manager_create(options, &status);
    Py_END_ALLOW_THREADS
    if (!heap->arena && !heap->manager) {
        Py_DECREF(FA_OBJECT(heap));
        return PyLong_FromLong(status);
    }
    if (is_arena) {
        size_t alignment = ((const fa_arena_options *)options)->alignment;
        if (alignment > FA_ARRAY_ALIGNMENT) heap->array_alignment = alignment;
    } else {
        heap->limit = ((const fa_manager_options *)options)->limit;
    }
    heaps_link(heap);
    return (PyObject *)heap;
}

static PyObject *create_arena(PyObject *Py_UNUSED(module), PyObject *args) { return heap_create(args, true); }
static PyObject *create_manager(PyObject *Py_UNUSED(module), PyObject *args) { return heap_create(args, false); }

fa_heap *fa_heap_check(PyObject *object) {
    if (PyObject_TypeCheck(object, heap_type)) return (fa_heap *)object;
    PyErr_Format(PyExc_TypeError, "expected a Heap, not %R", (PyObject *)Py_TYPE(object));
    return NULL;
}

static void heap_close(fa_heap *heap) {
    heap->closed = true;
    Py_INCREF(FA_OBJECT(heap));
    Py_BEGIN_ALLOW_THREADS
    if (heap->arena) fa_arena_close(heap->arena);
    else fa_manager_close(heap->manager);
    Py_END_ALLOW_THREADS
    Py_DECREF(FA_OBJECT(heap));
}

static PyObject *heap_close_method(PyObject *self, PyObject *Py_UNUSED(unused)) {
    heap_close((fa_heap *)self);
    Py_RETURN_NONE;
}

/* At exit: whoever still allocates gets an error from now on, and every secret is zero. */
static PyObject *close_all(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused)) {
    fa_heap *heap = heaps;
    Py_XINCREF(FA_OBJECT(heap));
    while (heap) {
        if (!heap->closed) heap_close(heap);
        fa_heap *next = heap->next; /* read with the GIL, after close() let it go: `heap` is still linked */
        Py_XINCREF(FA_OBJECT(next));
        Py_DECREF(FA_OBJECT(heap));
        heap = next;
    }
    Py_RETURN_NONE;
}

const fa_heap *fa_heap_owner(const void *address) {
    for (const fa_heap *heap = heaps; heap; heap = heap->next) {
        if (heap->arena ? fa_arena_owns(heap->arena, address) : fa_owns(heap->manager, address)) return heap;
    }
    return NULL;
}

bool fa_heap_any_owns(const void *address) { return fa_heap_owner(address) || fa_install_owns(address); }

/* With the figures as attributes. */
static void set_lock_error(fa_heap *heap, PyObject *what) {
    fa_protection protection = {0};
    if (!what) return;
    fa_arena_get_protection(heap->arena, &protection);
    char limit[64] = "any number";
    if (protection.lock_limit != UINT64_MAX)
        snprintf(limit, sizeof limit, "%llu", (unsigned long long)protection.lock_limit);
    PyObject *message = PyUnicode_FromFormat(
        "%s: %U cannot be locked in RAM: of the arena %llu bytes are locked and %llu are wanted, and the process may lock"
        " %s (RLIMIT_MEMLOCK)", heap->label, what, (unsigned long long)protection.locked,
        (unsigned long long)protection.lock_wanted, limit);
    Py_DECREF(what);
    PyObject *error = message ? PyObject_CallFunctionObjArgs(fa_LockError, message, NULL) : NULL;
    Py_XDECREF(message);
    if (!error) return;
    const struct { const char *name; uint64_t value; } figures[] = {
        {"limit", protection.lock_limit}, {"locked", protection.locked}, {"wanted", protection.lock_wanted}};
    for (size_t i = 0; i < 3; i++) {
        PyObject *value = PyLong_FromUnsignedLongLong(figures[i].value);
        if (!value || PyObject_SetAttrString(error, figures[i].name, value)) PyErr_Clear(); /* the message has it */
        Py_XDECREF(value);
    }
    PyErr_SetObject(fa_LockError, error);
    Py_DECREF(error);
}

static void set_sealed_error(fa_heap *heap) {
    PyErr_Format(fa_SealedError, "%s is sealed: unseal(), or `with ...unsealed()`, before anything is allocated or resized",
                 heap->label);
}

typedef struct room {
    char text[160];
} room;

/* What there was, for those who were refused. */
static room room_of(const fa_heap *heap) {
    room said;
    if (heap->arena) {
        fa_arena_stats stats = {0};
        fa_arena_get_stats(heap->arena, &stats);
        snprintf(said.text, sizeof said.text, "%llu of its capacity of %llu bytes are used", (unsigned long long)stats.used,
                 (unsigned long long)stats.capacity);
    } else {
        fa_manager_stats stats = {0};
        fa_manager_get_stats(heap->manager, &stats);
        int length = snprintf(said.text, sizeof said.text, "%llu bytes are live in it", (unsigned long long)stats.requested);
        if (heap->limit != 0) snprintf(said.text + length, sizeof said.text - (size_t)length, ", and its limit is %zu", heap->limit);
    }
    return said;
}

void fa_heap_refused_array(fa_heap *heap, PyObject *cause) {
    fa_status status = heap->arena ? fa_arena_last_refusal(heap->arena) : FA_OK;
    if (status == FA_ERR_LOCK) set_lock_error(heap, PyUnicode_FromString("an array"));
    else if (status == FA_ERR_SEALED) set_sealed_error(heap);
    else PyErr_Format(fa_OutOfMemoryError, "%s: %S: %s", heap->label, cause, room_of(heap).text);
}

void fa_heap_refused(fa_heap *heap, size_t size, size_t alignment, fa_status status) {
    if (heap->closed || status == FA_ERR_STALE) {
        PyErr_Format(fa_ClosedError, "%s is closed", heap->label);
        return;
    }
    char aligned[48] = "";
    if (alignment > FA_ARRAY_ALIGNMENT) snprintf(aligned, sizeof aligned, " aligned to %zu", alignment);
    if (status == FA_ERR_LOCK) {
        set_lock_error(heap, PyUnicode_FromFormat("%zu bytes%s", size, aligned));
    } else if (status == FA_ERR_SEALED) {
        set_sealed_error(heap);
    } else if (status == FA_ERR_INVALID) {
        PyErr_Format(fa_ArgumentError, "%s: %zu bytes%s cannot be allocated", heap->label, size, aligned);
    } else {
        PyErr_Format(fa_OutOfMemoryError, "%s: no %s for %zu bytes%s: %s", heap->label, heap->arena ? "room" : "memory", size,
                     aligned, room_of(heap).text);
    }
}

/* ---- the type --------------------------------------------------------------------------------------------------- */

static PyObject *address_or_error(fa_heap *heap, void *address, const char *kind) {
    if (address) return PyLong_FromVoidPtr(address);
    PyErr_Format(fa_ArgumentTypeError, "%s is no %s", heap->label, kind);
    return NULL;
}

static PyObject *heap_get_arena(PyObject *self, void *Py_UNUSED(closure)) {
    return address_or_error((fa_heap *)self, ((fa_heap *)self)->arena, "arena");
}

static PyObject *heap_get_manager(PyObject *self, void *Py_UNUSED(closure)) {
    return address_or_error((fa_heap *)self, ((fa_heap *)self)->manager, "manager");
}

static PyObject *heap_get_closed(PyObject *self, void *Py_UNUSED(closure)) {
    return PyBool_FromLong(((fa_heap *)self)->closed);
}

static PyObject *heap_repr(PyObject *self) {
    fa_heap *heap = (fa_heap *)self;
    return PyUnicode_FromFormat("<memory of %s%s>", heap->label, heap->closed ? ", closed" : "");
}

static PyGetSetDef heap_getset[] = {
    {"arena", heap_get_arena, NULL, "address of the fa_arena: for `lib`, while the Heap is referenced", NULL},
    {"manager", heap_get_manager, NULL, "likewise of the fa_manager; ArgumentTypeError if it is the other", NULL},
    {"closed", heap_get_closed, NULL, "whether new allocations are refused", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyMemberDef heap_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(fa_heap, weak_references), READONLY, NULL},
    {"serial", T_ULONGLONG, offsetof(fa_heap, serial), READONLY, "different for each heap of the process"},
    {"lineage", T_ULONGLONG, offsetof(fa_heap, lineage), READONLY, "the same for all heaps of one Arena"},
    {NULL, 0, 0, 0, NULL}};

static PyMethodDef heap_methods[] = {
    {"close", heap_close_method, METH_NOARGS, "Refuses new allocations; zeroes a witness arena."},
    {"__reduce__", fa_python_no_pickle, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL}};

static PyType_Slot heap_slots[] = {{Py_tp_dealloc, FA_SLOT(heap_dealloc)},
                                   {Py_tp_repr, FA_SLOT(heap_repr)},
                                   {Py_tp_getset, heap_getset},
                                   {Py_tp_members, heap_members},
                                   {Py_tp_methods, heap_methods},
                                   {Py_tp_doc, FA_DOC("The owner of an arena's or a manager's memory.")},
                                   {0, NULL}};

static PyType_Spec heap_spec = {"fastalloc._native.Heap", (int)sizeof(fa_heap), 0,
                                Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
                                heap_slots};

static PyMethodDef heap_functions[] = {
    {"create_arena", create_arena, METH_VARARGS,
     "create_arena(options, label, lineage, /)\n--\n\nA Heap from the address of an fa_arena_options, or an fa_status."},
    {"create_manager", create_manager, METH_VARARGS,
     "create_manager(options, label, lineage, /)\n--\n\nA Heap from the address of an fa_manager_options, or an fa_status."},
    {"close_all", close_all, METH_NOARGS, "close_all()\n--\n\nCloses every heap of the process."},
    {NULL, NULL, 0, NULL}};

/* ---- fork: without the GIL, no Python object is touched ----------------------------------------------------------- */

/*
 * In fork itself and not in os.register_at_fork: between the hooks of the latter Python code runs (other hooks; in the
 * child the clearing of the other threads' contexts) that may free arrays, and would wait for ever for the locks held here.
 */
static void fork_prepare(void) {
    fa_lock_take(&heaps_lock, fa_os_platform());
    for (fa_heap *heap = heaps; heap; heap = heap->next) {
        if (heap->arena) fa_arena_fork_prepare(heap->arena);
        else fa_manager_fork_prepare(heap->manager);
    }
}

static void fork_parent(void) {
    for (fa_heap *heap = heaps; heap; heap = heap->next) {
        if (heap->arena) fa_arena_fork_parent(heap->arena);
        else fa_manager_fork_parent(heap->manager);
    }
    fa_lock_give(&heaps_lock);
}

static void fork_child(void) {
    for (fa_heap *heap = heaps; heap; heap = heap->next) {
        if (heap->arena) fa_arena_fork_child(heap->arena);
        else fa_manager_fork_child(heap->manager);
    }
    fa_lock_give(&heaps_lock);
}

int fa_python_add_heap(PyObject *module) {
    bool first = !heap_type;
    if (fa_python_add_type(module, &heap_type, &heap_spec, NULL)) return -1;
    if (PyModule_AddFunctions(module, heap_functions)) return -1;
    int error = first ? fa_os_platform()->at_fork(fork_prepare, fork_parent, fork_child) : 0;
    if (error == 0 || error == FA_OS_UNSUPPORTED) return 0; /* a platform without fork needs no care */
    PyErr_SetString(PyExc_MemoryError, "the functions that keep memory whole across fork cannot be registered");
    return -1;
}
