/*
 * adapters/python_block.c - raw bytes for Python
 *
 * Two objects make a block. Memory owns the allocation and frees it when it dies; Block is the handle that people see.
 * A buffer of a Block points at the Memory, so a memoryview, its slices, and an array over it hold the Memory itself:
 * Block.free() only lets go of it, and whoever was not counted (NumPy takes the address of a memoryview and keeps just a
 * reference to what is below it) still has it.
 *
 * Block.array() gives its array a loan of the Memory to hold: it counts as a buffer until it dies, and unlike a memoryview,
 * whose release() anybody can call who finds it as the `base` of an array, it cannot be taken from the array.
 *
 * One consumer does not even hold the Memory: np.ndarray(shape, dtype, buffer=block) asks the Block for a buffer, releases it,
 * goes on to use the address and keeps a reference to the Block. It is known by the flags it asks with; from then
 * on the Block keeps its Memory for as long as it exists itself, freed or not.
 */
#include "python.h"

#include "mem/base.h"

#include <string.h>

typedef struct fa_memory {
    PyObject_HEAD
    fa_heap *heap;
    void *address;
    size_t size;
    size_t alignment;   /* as asked for */
    Py_ssize_t exports; /* buffers and loans that are held now */
    struct fa_memory *lender; /* of a loan: whose allocation it is; or null */
} fa_memory;

struct fa_block {
    PyObject_HEAD
    fa_memory *memory; /* null: freed */
    bool freed;        /* to the eyes of Python; `memory` may have to stay */
    bool grabbed;      /* somebody uses the address and holds only the Block */
    PyObject *weak_references;
};

static PyTypeObject *memory_type;
static PyTypeObject *block_type;

/* ---- Memory ------------------------------------------------------------------------------------------------------ */

static void memory_dealloc(PyObject *self) {
    fa_memory *memory = (fa_memory *)self;
    if (memory->lender) {
        memory->lender->exports--;
        Py_DECREF(FA_OBJECT(memory->lender));
    } else if (memory->address) {
        if (memory->heap->arena) fa_arena_free(memory->heap->arena, memory->address, memory->size);
        else fa_free(memory->heap->manager, memory->address);
    }
    Py_XDECREF(FA_OBJECT(memory->heap));
    fa_python_free(self);
}

static fa_status allocate(fa_heap *heap, size_t size, size_t alignment, bool zeroed, void **address) {
    if (heap->arena) return fa_arena_try_alloc(heap->arena, size, alignment, zeroed, address);
    if (alignment == 0) *address = zeroed ? fa_calloc(heap->manager, 1, size) : fa_malloc(heap->manager, size);
    else if (zeroed) *address = fa_manager_alloc_zeroed(heap->manager, alignment, size);
    else *address = fa_aligned_alloc(heap->manager, alignment, size);
    return *address ? FA_OK : FA_ERR_NOMEM;
}

/* The object first, then what it owns: nothing can come between the allocation and its owner. */
static fa_memory *memory_new(fa_heap *heap, size_t size, size_t alignment, bool zeroed) {
    if (heap->closed) {
        fa_heap_refused(heap, size, alignment, FA_ERR_STALE);
        return NULL;
    }
    fa_memory *memory = PyObject_New(fa_memory, memory_type);
    if (!memory) return NULL;
    Py_INCREF(FA_OBJECT(heap));
    memory->heap = heap;
    memory->address = NULL;
    memory->size = size;
    memory->alignment = alignment;
    memory->exports = 0;
    memory->lender = NULL;
    fa_status status;
    void *address = NULL;
    if (zeroed && size >= FA_LONG_WORK) {
        Py_BEGIN_ALLOW_THREADS
        status = allocate(heap, size, alignment, zeroed, &address);
        Py_END_ALLOW_THREADS
    } else {
        status = allocate(heap, size, alignment, zeroed, &address);
    }
    memory->address = address;
    if (status != FA_OK) {
        fa_heap_refused(heap, size, alignment, status);
        Py_DECREF(FA_OBJECT(memory));
        return NULL;
    }
    return memory;
}

static fa_memory *memory_lend(fa_memory *memory) {
    fa_memory *loan = PyObject_New(fa_memory, memory_type);
    if (!loan) return NULL;
    loan->heap = (fa_heap *)Py_NewRef(FA_OBJECT(memory->heap));
    loan->address = memory->address;
    loan->size = memory->size;
    loan->alignment = memory->alignment;
    loan->exports = 0;
    loan->lender = (fa_memory *)Py_NewRef(FA_OBJECT(memory));
    memory->exports++;
    return loan;
}

static int memory_getbuffer(PyObject *self, Py_buffer *view, int flags) {
    fa_memory *memory = (fa_memory *)self;
    if (PyBuffer_FillInfo(view, self, memory->address, (Py_ssize_t)memory->size, 0, flags)) return -1;
    memory->exports++;
    return 0;
}

static void memory_releasebuffer(PyObject *self, Py_buffer *Py_UNUSED(view)) { ((fa_memory *)self)->exports--; }

static PyObject *memory_repr(PyObject *self) {
    fa_memory *memory = (fa_memory *)self;
    return PyUnicode_FromFormat("<memory of a fastalloc.Block of %zu bytes in %s>", memory->size, memory->heap->label);
}

static PyMethodDef memory_methods[] = {{"__reduce__", fa_python_no_pickle, METH_NOARGS, NULL}, {NULL, NULL, 0, NULL}};

static PyType_Slot memory_slots[] = {{Py_tp_dealloc, FA_SLOT(memory_dealloc)},
                                     {Py_tp_repr, FA_SLOT(memory_repr)},
                                     {Py_tp_methods, memory_methods},
                                     {Py_bf_getbuffer, FA_SLOT(memory_getbuffer)},
                                     {Py_bf_releasebuffer, FA_SLOT(memory_releasebuffer)},
                                     {Py_tp_doc, FA_DOC("What the buffers of a Block point at.")},
                                     {0, NULL}};

static PyType_Spec memory_spec = {"fastalloc._native.Memory", (int)sizeof(fa_memory), 0,
                                  Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
                                  memory_slots};

/* ---- Block: what C calls ------------------------------------------------------------------------------------------ */

PyObject *fa_block_new(fa_heap *heap, size_t size, size_t alignment, bool zeroed) {
    fa_memory *memory = memory_new(heap, size, alignment, zeroed);
    if (!memory) return NULL;
    fa_block *block = PyObject_New(fa_block, block_type);
    if (!block) {
        Py_DECREF(FA_OBJECT(memory));
        return NULL;
    }
    block->memory = memory;
    block->freed = block->grabbed = false;
    block->weak_references = NULL;
    return (PyObject *)block;
}

static int check_not_freed(const fa_block *block) {
    if (!block->freed) return 0;
    PyErr_SetString(fa_FreedBlockError, "the block has been freed");
    return -1;
}

static int check_not_exported(const fa_block *block, const char *action) {
    Py_ssize_t exports = block->memory->exports;
    if (exports == 0) return 0;
    PyErr_Format(fa_InUseError, "cannot %s a block of %zu bytes: %zd %s of it %s still in use", action,
                 block->memory->size, exports, exports == 1 ? "buffer" : "buffers", exports == 1 ? "is" : "are");
    return -1;
}

int fa_block_check(fa_heap *heap, PyObject *object) {
    if (!PyObject_TypeCheck(object, block_type)) {
        PyErr_Format(fa_ArgumentTypeError, "block: expected a fastalloc.Block, not %R", Py_TYPE(object));
        return -1;
    }
    fa_block *block = (fa_block *)object;
    if (check_not_freed(block)) return -1;
    if (block->memory->heap == heap) return 0;
    PyErr_Format(fa_ForeignBlockError, "the block belongs to %s, not to %s", block->memory->heap->label, heap->label);
    return -1;
}

int fa_block_free(fa_block *block) {
    if (check_not_freed(block) || check_not_exported(block, "free")) return -1;
    block->freed = true;
    if (!block->grabbed) Py_CLEAR(block->memory);
    return 0;
}

/* The address may be in the hands of an array that holds only the Memory: then the Memory must stay what it is. */
static bool memory_is_only_ours(fa_memory *memory) { return fa_python_is_only_reference(FA_OBJECT(memory)); }

static int resize_by_copy(fa_block *block, size_t size) {
    fa_memory *old = block->memory;
    fa_memory *memory = memory_new(old->heap, size, old->alignment, false);
    if (!memory) return -1;
    memcpy(memory->address, old->address, size < old->size ? size : old->size);
    block->memory = memory;
    Py_DECREF(FA_OBJECT(old));
    return 0;
}

int fa_block_resize(fa_block *block, size_t size) {
    if (check_not_freed(block) || check_not_exported(block, "resize")) return -1;
    if (block->grabbed) {
        PyErr_SetString(fa_InUseError, "cannot resize a block that a NumPy array was made on with buffer=");
        return -1;
    }
    fa_memory *memory = block->memory;
    fa_heap *heap = memory->heap;
    if (heap->closed) {
        fa_heap_refused(heap, size, memory->alignment, FA_ERR_STALE);
        return -1;
    }
    /* Of an arena: by a class of both kinds. */
    if (heap->arena || !memory_is_only_ours(memory)) return resize_by_copy(block, size);
    /* A size of 0 would free the block. */
    fa_status status = FA_OK;
    size_t alignment = memory->alignment ? memory->alignment : FA_MIN_ALIGNMENT;
    void *moved = fa_manager_try_realloc(heap->manager, memory->address, alignment, size ? size : 1, &status);
    if (!moved) {
        fa_heap_refused(heap, size, memory->alignment, status);
        return -1;
    }
    memory->address = moved;
    memory->size = size;
    return 0;
}

/* ---- Block: the type ---------------------------------------------------------------------------------------------- */

static void block_dealloc(PyObject *self) {
    fa_block *block = (fa_block *)self;
    if (block->weak_references) PyObject_ClearWeakRefs(self);
    Py_XDECREF(FA_OBJECT(block->memory));
    fa_python_free(self);
}

static int block_getbuffer(PyObject *self, Py_buffer *view, int flags) {
    fa_block *block = (fa_block *)self;
    view->obj = NULL;
    if (check_not_freed(block)) return -1;
    if ((flags & ~PyBUF_WRITABLE) == PyBUF_ANY_CONTIGUOUS) block->grabbed = true;
    return memory_getbuffer((PyObject *)block->memory, view, flags);
}

/* Never called, since the buffers are the Memory's; it tells NumPy to hold them by a memoryview. */
static void block_releasebuffer(PyObject *Py_UNUSED(self), Py_buffer *Py_UNUSED(view)) {}

static Py_ssize_t block_length(PyObject *self) {
    const fa_block *block = (const fa_block *)self;
    return block->freed ? 0 : (Py_ssize_t)block->memory->size;
}

static PyObject *block_repr(PyObject *self) {
    const fa_block *block = (const fa_block *)self;
    if (block->freed) return PyUnicode_FromString("<fastalloc.Block, freed>");
    const fa_memory *memory = block->memory;
    return PyUnicode_FromFormat("<fastalloc.Block %zu %s in %s, %zd %s>", memory->size,
                                memory->size == 1 ? "byte" : "bytes", memory->heap->label, memory->exports,
                                memory->exports == 1 ? "export" : "exports");
}

static PyObject *block_free_method(PyObject *self, PyObject *Py_UNUSED(unused)) {
    if (fa_block_free((fa_block *)self)) return NULL;
    Py_RETURN_NONE;
}

/* Through a seal. A closed arena has none. */
static fa_status wipe(fa_memory *memory) {
    fa_arena *arena = memory->heap->arena;
    fa_status status = arena ? fa_arena_unsealed_begin(arena) : FA_ERR_STALE;
    if (status != FA_OK && status != FA_ERR_STALE) return status;
    fa_secure_zero(memory->address, memory->size);
    return status == FA_OK ? fa_arena_unsealed_end(arena) : FA_OK;
}

static PyObject *block_wipe(PyObject *self, PyObject *Py_UNUSED(unused)) {
    fa_block *block = (fa_block *)self;
    if (check_not_freed(block)) return NULL;
    fa_memory *memory = block->memory;
    fa_status status;
    if (memory->size < FA_LONG_WORK) {
        status = wipe(memory);
    } else {
        memory->exports++; /* nobody frees or moves it meanwhile */
        Py_INCREF(FA_OBJECT(memory));
        Py_BEGIN_ALLOW_THREADS
        status = wipe(memory);
        Py_END_ALLOW_THREADS
        memory->exports--;
        Py_DECREF(FA_OBJECT(memory));
    }
    if (status == FA_OK) Py_RETURN_NONE;
    return PyErr_Format(fa_OutOfMemoryError, "wipe: the system refuses to open the block's arena, or to seal it again");
}

static PyObject *block_enter(PyObject *self, PyObject *Py_UNUSED(unused)) {
    if (check_not_freed((fa_block *)self)) return NULL;
    return Py_NewRef(self);
}

/* An exception on its way is not replaced by InUseError: the memory goes with the last buffer. */
static PyObject *block_exit(PyObject *self, PyObject *args) {
    fa_block *block = (fa_block *)self;
    PyObject *type = Py_None, *value = Py_None, *traceback = Py_None;
    if (!PyArg_UnpackTuple(args, "__exit__", 0, 3, &type, &value, &traceback)) return NULL;
    if (!block->freed && fa_block_free(block)) {
        if (type == Py_None) return NULL;
        PyErr_Clear();
    }
    Py_RETURN_NONE;
}

/* The bytes of an item of a dtype that may lie in raw memory; 0 with the exception set. */
static size_t item_size(PyObject *dtype) {
    PyObject *has_object = PyObject_GetAttrString(dtype, "hasobject");
    if (!has_object) return 0;
    bool refused = has_object == Py_True;
    Py_DECREF(has_object);
    if (refused) {
        PyErr_Format(fa_ArgumentError, "dtype: %R holds Python objects, which cannot live in raw memory", dtype);
        return 0;
    }
    PyObject *size_object = PyObject_GetAttrString(dtype, "itemsize");
    if (!size_object) return 0;
    size_t size = PyLong_AsSize_t(size_object);
    Py_DECREF(size_object);
    if (size == (size_t)-1 && PyErr_Occurred()) return 0;
    if (size == 0) PyErr_Format(fa_ArgumentError, "dtype: an item of %R has no bytes", dtype);
    return size;
}

/* ndarray(shape, dtype, buffer=a loan of the block) checks that the shape fits, and keeps the loan. */
static PyObject *array_of(fa_block *block, PyObject *ndarray, PyObject *dtype, PyObject *shape) {
    size_t item = item_size(dtype);
    if (item == 0 || check_not_freed(block)) return NULL; /* a dtype may be anything and run any code */
    size_t size = block->memory->size;
    if (!shape && size % item != 0) {
        PyErr_Format(fa_ArgumentError, "dtype: a block of %zu bytes is not a whole number of %R", size, dtype);
        return NULL;
    }
    fa_memory *loan = memory_lend(block->memory);
    PyObject *positional = PyTuple_New(0), *named = NULL, *result = NULL;
    if (loan && shape) named = Py_BuildValue("{s:O,s:O,s:O}", "shape", shape, "dtype", dtype, "buffer", loan);
    else if (loan) named = Py_BuildValue("{s:n,s:O,s:O}", "shape", (Py_ssize_t)(size / item), "dtype", dtype, "buffer", loan);
    if (positional && named) result = PyObject_Call(ndarray, positional, named);
    if (!result && shape && (PyErr_ExceptionMatches(PyExc_TypeError) || PyErr_ExceptionMatches(PyExc_ValueError))) {
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        PyErr_Format(fa_ArgumentError, "shape: %R of %R does not fit in a block of %zu bytes (%S)", shape, dtype, size,
                     value ? value : Py_None);
        Py_XDECREF(FA_OBJECT(type));
        Py_XDECREF(value);
        Py_XDECREF(traceback);
    }
    Py_XDECREF(positional);
    Py_XDECREF(named);
    Py_XDECREF(FA_OBJECT(loan));
    return result;
}

/* array(dtype=uint8, shape=None) */
static PyObject *block_array(PyObject *self, PyObject *args, PyObject *keywords) {
    static const char *names[] = {"dtype", "shape", NULL};
    PyObject *dtype_like = NULL, *shape = NULL, *result = NULL;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "|OO:array", (char **)names, &dtype_like, &shape)) return NULL;
    if (shape == Py_None) shape = NULL;
    PyObject *numpy = PyImport_ImportModule("numpy");
    if (!numpy) return NULL;
    PyObject *dtype = dtype_like ? PyObject_CallMethod(numpy, "dtype", "(O)", dtype_like)
                                 : PyObject_CallMethod(numpy, "dtype", "s", "uint8");
    PyObject *ndarray = dtype ? PyObject_GetAttrString(numpy, "ndarray") : NULL;
    if (ndarray) result = array_of((fa_block *)self, ndarray, dtype, shape);
    Py_XDECREF(ndarray);
    Py_XDECREF(dtype);
    Py_DECREF(numpy);
    return result;
}

static PyObject *block_get_address(PyObject *self, void *Py_UNUSED(closure)) {
    const fa_block *block = (const fa_block *)self;
    if (check_not_freed(block)) return NULL;
    return PyLong_FromVoidPtr(block->memory->address);
}

static PyObject *block_get_nbytes(PyObject *self, void *Py_UNUSED(closure)) {
    return PyLong_FromSsize_t(block_length(self));
}

static PyObject *block_get_exports(PyObject *self, void *Py_UNUSED(closure)) {
    const fa_block *block = (const fa_block *)self;
    return PyLong_FromSsize_t(block->freed ? 0 : block->memory->exports);
}

static PyObject *block_get_freed(PyObject *self, void *Py_UNUSED(closure)) {
    return PyBool_FromLong(((const fa_block *)self)->freed);
}

static PyGetSetDef block_getset[] = {
    {"address", block_get_address, NULL, "Where the bytes are. Raises FreedBlockError.", NULL},
    {"nbytes", block_get_nbytes, NULL, "Size in bytes; 0 once freed.", NULL},
    {"exports", block_get_exports, NULL, "Buffers of the block (memoryviews, arrays) that are held now.", NULL},
    {"freed", block_get_freed, NULL, "Whether the block has been freed.", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyMemberDef block_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(fa_block, weak_references), READONLY, NULL}, {NULL, 0, 0, 0, NULL}};

static PyMethodDef block_methods[] = {
    {"free", block_free_method, METH_NOARGS,
     "free($self)\n--\n\nGive the memory back to the arena or manager, wiped if it is secret.\n\n"
     "Raises\n------\nInUseError\n    While buffers of the block are held; nothing is changed.\n"
     "FreedBlockError\n    If the block has been freed before."},
    {"wipe", block_wipe, METH_NOARGS,
     "wipe($self)\n--\n\nOverwrite every byte with zero, through a seal, too. Buffers of the block read zeros from then on.\n\n"
     "Raises\n------\nFreedBlockError\n    If the block has been freed.\n"
     "OutOfMemoryError\n    If the arena is sealed, and the system refuses to open or to seal it again."},
    {"array", FA_METHOD(block_array), METH_VARARGS | METH_KEYWORDS,
     "array($self, dtype='uint8', shape=None)\n--\n\nA writable NumPy array over the bytes, without a copy.\n\n"
     "Parameters\n----------\ndtype : dtype_like\n    Any that holds no Python objects.\n"
     "shape : int or tuple of int, optional\n    As many items as the block holds unless given.\n\n"
     "Raises\n------\nArgumentError\n    If the shape does not fit, or the block is not a whole number of items.\n"
     "FreedBlockError\n    If the block has been freed."},
    {"__enter__", block_enter, METH_NOARGS, NULL},
    {"__exit__", block_exit, METH_VARARGS, NULL},
    {"__reduce__", fa_python_no_pickle, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL}};

static PyType_Slot block_slots[] = {
    {Py_tp_dealloc, FA_SLOT(block_dealloc)},
    {Py_tp_repr, FA_SLOT(block_repr)},
    {Py_tp_getset, block_getset},
    {Py_tp_members, block_members},
    {Py_tp_methods, block_methods},
    {Py_sq_length, FA_SLOT(block_length)},
    {Py_bf_getbuffer, FA_SLOT(block_getbuffer)},
    {Py_bf_releasebuffer, FA_SLOT(block_releasebuffer)},
    {Py_tp_doc, FA_DOC("Raw bytes in an arena or a manager: a writable buffer of unsigned bytes.\n\n"
                "Made by Arena.alloc, Manager.malloc and the like. It keeps its arena or manager's memory alive, and is\n"
                "freed by free(), at the end of a `with` block, or when it is garbage. While memoryviews or arrays over\n"
                "it exist it cannot be freed. It cannot be pickled or copied: bytes(block) copies the contents.\n\n"
                "All methods may be called from any thread.\n\n"
                "Code that keeps an address and no reference is beyond any protection: ctypes pointers, an\n"
                "__array_interface__ made by hand, `array.data = block` of NumPy 1, and a memoryview that an array of\n"
                "np.frombuffer() has as its base, or ctypes in `_objects`, and that somebody releases by hand.")},
    {0, NULL}};

static PyType_Spec block_spec = {"fastalloc.Block", (int)sizeof(fa_block), 0,
                                 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
                                 block_slots};

int fa_python_add_block(PyObject *module) {
    if (fa_python_add_type(module, &memory_type, &memory_spec, NULL)) return -1;
    return fa_python_add_type(module, &block_type, &block_spec, NULL);
}
