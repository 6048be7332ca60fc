/*
 * adapters/arrays.c - NumPy's functions as methods of an arena or a manager
 *
 *     arena.empty(8) --> Routed --> number arrays, nothing unusual asked --> quick: data from the heap, an array around it
 *                              \--> all else: NumPy's function, while the arena's handler is the current one
 *
 * The long way is right for whatever NumPy's function takes. But it changes NumPy's context variable and changes it back, which
 * costs more than np.empty itself. The quick ways make what such a call mostly is, an array of numbers of a given shape,
 * with NumPy's own constructor around data that is already there, and then give the array what NumPy gives it: the handler
 * that frees the data, and the flag that the data is its own. Both are members of NumPy's public struct of an array; that they
 * are where they should be is looked up once, on an array of NumPy's, and tracemalloc is told by CPython's own function for
 * it. Without either there is only the long way.
 *
 * A quick way either does all that NumPy's function would do or nothing: null without an exception is "ask NumPy".
 *
 * Thread rule: the GIL. Cost: the quick ways 0.1 to 1.1 x NumPy's function, the long one a sixth of a microsecond on top.
 */
#include "numpy.h"

#include "mem/base.h"

#include <limits.h>
#include <string.h>

/* ---- arrays, as NumPy has them ------------------------------------------------------------------------------------- */

/* Numbers of functions and types in its table. */
enum {
    NUMPY_ARRAY_TYPE = 2,
    NUMPY_DESCR_FROM_TYPE = 45,
    NUMPY_NEW_FROM_DESCR = 94,
    NUMPY_DESCR_CONVERTER = 174
};

enum { NUMBER_OF_LONG = 7, NUMBER_OF_DOUBLE = 12 };
enum { C_CONTIGUOUS = 1, F_CONTIGUOUS = 2, OWNS_DATA = 4, ALIGNED = 0x100, WRITEABLE = 0x400 };

/* How a dtype begins, in every version. */
typedef struct {
    PyObject_HEAD
    PyTypeObject *type;
    char kind, letter, byte_order, flags;
    int number;
} numpy_descr;

typedef struct {
    PyObject_HEAD
    void *data;
    int dimensions;
    Py_ssize_t *shape, *strides;
    PyObject *base;
    numpy_descr *descr;
    int flags;
    PyObject *weak_references;
    void *buffer_info;
    PyObject *handler;
} numpy_array;

static PyTypeObject *array_type;
static PyObject *(*new_from_descr)(PyTypeObject *type, PyObject *descr, int dimensions, const Py_ssize_t *shape,
                                   const Py_ssize_t *strides, void *data, int flags, PyObject *like); /* steals `descr` */
static int (*descr_converter)(PyObject *object, numpy_descr **descr);
static PyObject *float64, *integer; /* dtypes: of floats, of ints */
/* CPython's; not in its limited API. */
static int (*trace_malloc)(unsigned domain, uintptr_t address, size_t size);
static PyObject *(*vectorcall_any)(PyObject *callable, PyObject *const *args, size_t count, PyObject *names);
static bool quick_enough; /* the struct is as above */

/* NumPy's number of itself in tracemalloc. */
#define NUMPY_TRACE_DOMAIN 389047U
/* Above this many bytes NumPy copies without the GIL: the long way. */
#define QUICK_COPY ((size_t)64 << 10)
#define MAX_DIMENSIONS 32

static bool is_array(PyObject *object) { return PyObject_TypeCheck(object, array_type); }
static bool is_plain_array(PyObject *object) { return Py_TYPE(object) == array_type; }

/* Bytes of a number in the machine's byte order; 0 of all else. By NumPy's numbers of types. */
static size_t number_size(const numpy_descr *descr) {
    static const uint8_t sizes[] = {1, sizeof(char), sizeof(char), sizeof(short), sizeof(short), sizeof(int), sizeof(int),
                                    sizeof(long), sizeof(long), sizeof(long long), sizeof(long long), sizeof(float),
                                    sizeof(double), sizeof(long double), 2 * sizeof(float), 2 * sizeof(double),
                                    2 * sizeof(long double)};
    if (descr->byte_order != '=' && descr->byte_order != '|') return 0;
    return descr->number >= 0 && (size_t)descr->number < sizeof sizes ? sizes[descr->number] : 0;
}

/* Whether an array of NumPy's looks as we think. */
static bool struct_is_known(void) {
    const Py_ssize_t shape[] = {3, 5};
    bool known = false;
    PyObject *object = new_from_descr(array_type, Py_NewRef(float64), 2, shape, NULL, NULL, 0, NULL);
    PyObject *handler = object ? PyObject_GetAttrString(object, "data") : NULL; /* a memoryview: buffer_info is in use */
    if (handler) {
        const numpy_array *array = (const numpy_array *)(const void *)object;
        known = array->dimensions == 2 && array->shape[1] == 5 && array->strides[0] == 5 * (Py_ssize_t)sizeof(double) &&
                array->flags == (C_CONTIGUOUS | OWNS_DATA | ALIGNED | WRITEABLE) && !array->base && !array->weak_references &&
                (PyObject *)array->descr == float64 && number_size(array->descr) == sizeof(double) && array->handler &&
                PyCapsule_IsValid(array->handler, FA_NUMPY_CAPSULE);
    }
    Py_XDECREF(handler);
    Py_XDECREF(object);
    return known;
}

static int ready(void) {
    if (FA_LIKELY(array_type != NULL)) return 0;
    if (fa_numpy_ready()) return -1;
    PyObject *(*descr_from_type)(int number);
    memcpy(&descr_from_type, &fa_numpy_table[NUMPY_DESCR_FROM_TYPE], sizeof descr_from_type);
    memcpy(&new_from_descr, &fa_numpy_table[NUMPY_NEW_FROM_DESCR], sizeof new_from_descr);
    memcpy(&descr_converter, &fa_numpy_table[NUMPY_DESCR_CONVERTER], sizeof descr_converter);
    fa_python_look_up("PyTraceMalloc_Track", &trace_malloc);
    fa_python_look_up("PyObject_Vectorcall", &vectorcall_any);
    if (!float64) float64 = descr_from_type(NUMBER_OF_DOUBLE);
    if (!integer) integer = descr_from_type(NUMBER_OF_LONG);
    if (!float64 || !integer) return -1;
    array_type = fa_numpy_table[NUMPY_ARRAY_TYPE];
    quick_enough = trace_malloc && struct_is_known();
    PyErr_Clear();
    return 0;
}

/* ---- the quick ways ------------------------------------------------------------------------------------------------ */

/* Arguments in a row, the names of the last ones in a tuple, as vectorcall has them. */
typedef struct {
    PyObject *const *args;
    Py_ssize_t count;
    PyObject *names;
} row;

/* Null without an exception: ask NumPy. With `refused` the heap had no room, and NumPy shall say so. */
typedef PyObject *(*quick_way)(fa_allocator *allocator, const row *of, bool *refused);

/* An array of numbers whose data is not initialised or zero, in C order unless `order` is F_CONTIGUOUS. */
static PyObject *make(fa_allocator *allocator, numpy_descr *descr, int dimensions, const Py_ssize_t *shape, int order,
                      bool zeroed, bool *refused) {
    size_t size = number_size(descr);
    if (size == 0) return NULL;
    for (int i = 0; i < dimensions; i++) {
        if (shape[i] <= 0 || (size_t)shape[i] > (size_t)PTRDIFF_MAX / size) return NULL;
        size *= (size_t)shape[i];
    }
    PyObject *capsule = fa_numpy_capsule_of(allocator);
    if (!capsule) return NULL;
    fa_heap *heap = allocator->heap;
    void *data = zeroed ? fa_numpy_calloc(heap, 1, size) : fa_numpy_malloc(heap, size);
    if (FA_UNLIKELY(!data)) {
        *refused = true;
        return NULL;
    }
    Py_INCREF(capsule); /* and so the heap: what follows may run the garbage collector */
    PyObject *object = new_from_descr(array_type, Py_NewRef(FA_OBJECT(descr)), dimensions, shape, NULL, data,
                                      order | ALIGNED | WRITEABLE, NULL);
    if (FA_UNLIKELY(!object)) {
        fa_numpy_free(heap, data, size);
        Py_DECREF(capsule);
        return NULL;
    }
    numpy_array *array = (numpy_array *)object;
    array->handler = capsule;
    array->flags |= OWNS_DATA;
    (void)trace_malloc(NUMPY_TRACE_DOMAIN, (uintptr_t)data, size);
    return object;
}

/* The dimensions of a shape that is an int or a tuple of them; -1: ask NumPy. */
static int dimensions_of(PyObject *shape, Py_ssize_t *sizes) {
    if (PyLong_CheckExact(shape)) {
        sizes[0] = PyLong_AsSsize_t(shape);
        if (FA_LIKELY(sizes[0] >= 0)) return 1;
    } else if (PyTuple_CheckExact(shape) && PyTuple_Size(shape) <= MAX_DIMENSIONS) {
        int count = (int)PyTuple_Size(shape);
        for (int i = 0; i < count; i++) {
            PyObject *size = PyTuple_GetItem(shape, i);
            sizes[i] = PyLong_CheckExact(size) ? PyLong_AsSsize_t(size) : -1;
            if (sizes[i] < 0) count = -1;
        }
        if (count >= 0) return count;
    }
    PyErr_Clear();
    return -1;
}

/* (shape, dtype=float, order="C") */
static PyObject *empty_or_zeros(fa_allocator *allocator, const row *of, bool zeroed, bool *refused) {
    static const char *const known[] = {"shape", "dtype", "order"};
    PyObject *value[] = {NULL, NULL, NULL};
    if (of->count > 3) return NULL;
    for (Py_ssize_t i = 0; i < of->count; i++) value[i] = of->args[i];
    Py_ssize_t named = of->names ? PyTuple_Size(of->names) : 0;
    for (Py_ssize_t i = 0; i < named; i++) {
        int at = 0;
        while (at < 3 && PyUnicode_CompareWithASCIIString(PyTuple_GetItem(of->names, i), known[at]) != 0) at++;
        if (at == 3 || value[at]) return NULL;
        value[at] = of->args[of->count + i];
    }
    Py_ssize_t shape[MAX_DIMENSIONS];
    int dimensions = value[0] ? dimensions_of(value[0], shape) : -1, order = C_CONTIGUOUS;
    if (dimensions < 0) return NULL;
    if (value[2]) {
        if (!PyUnicode_Check(value[2])) return NULL;
        if (PyUnicode_CompareWithASCIIString(value[2], "F") == 0) order = F_CONTIGUOUS;
        else if (PyUnicode_CompareWithASCIIString(value[2], "C") != 0) return NULL;
    }
    if (!value[1] || value[1] == Py_None)
        return make(allocator, (numpy_descr *)float64, dimensions, shape, order, zeroed, refused);
    numpy_descr *descr = NULL;
    if (!descr_converter(value[1], &descr)) return NULL;
    PyObject *made = make(allocator, descr, dimensions, shape, order, zeroed, refused);
    Py_DECREF(FA_OBJECT(descr));
    return made;
}

static PyObject *quick_empty(fa_allocator *allocator, const row *of, bool *refused) {
    return empty_or_zeros(allocator, of, false, refused);
}

static PyObject *quick_zeros(fa_allocator *allocator, const row *of, bool *refused) {
    return empty_or_zeros(allocator, of, true, refused);
}

/* The only argument, if it is an array of no subclass, and in one of the two orders; else null. */
static numpy_array *only_array(const row *of) {
    if (of->count != 1 || of->names || !is_plain_array(of->args[0])) return NULL;
    numpy_array *array = (numpy_array *)of->args[0];
    return array->flags & (C_CONTIGUOUS | F_CONTIGUOUS) ? array : NULL;
}

static PyObject *make_like(fa_allocator *allocator, const numpy_array *like, bool zeroed, bool *refused) {
    int order = like->flags & C_CONTIGUOUS ? C_CONTIGUOUS : F_CONTIGUOUS;
    return make(allocator, like->descr, like->dimensions, like->shape, order, zeroed, refused);
}

static PyObject *quick_empty_like(fa_allocator *allocator, const row *of, bool *refused) {
    const numpy_array *like = only_array(of);
    return like ? make_like(allocator, like, false, refused) : NULL;
}

static PyObject *quick_zeros_like(fa_allocator *allocator, const row *of, bool *refused) {
    const numpy_array *like = only_array(of);
    return like ? make_like(allocator, like, true, refused) : NULL;
}

static PyObject *quick_copy(fa_allocator *allocator, const row *of, bool *refused) {
    const numpy_array *from = only_array(of);
    size_t size = from ? number_size(from->descr) : 0;
    for (int i = 0; size > 0 && i < from->dimensions; i++) {
        if ((size_t)from->shape[i] > QUICK_COPY / size) return NULL;
        size *= (size_t)from->shape[i];
    }
    PyObject *made = size > 0 ? make_like(allocator, from, false, refused) : NULL;
    if (made) memcpy(((numpy_array *)made)->data, from->data, size);
    return made;
}

/* Whether the data of an array, or of what it is a view of, is the allocator's. */
static bool lies_in(fa_allocator *allocator, PyObject *array) {
    fa_heap *heap = allocator->heap;
    if (!heap) return false;
    for (PyObject *base; (base = ((numpy_array *)array)->base) != NULL && is_array(base);) array = base;
    const void *data = ((numpy_array *)array)->data;
    return heap->arena ? fa_arena_owns(heap->arena, data) : fa_owns(heap->manager, data);
}

#if LONG_MAX > INT_MAX /* else NumPy's own choice of an integer differs from version to version */
#define WHOLE_NUMBERS 1
#else
#define WHOLE_NUMBERS 0
#endif

static PyObject *make_row(fa_allocator *allocator, PyObject *descr, Py_ssize_t count, bool *refused) {
    return make(allocator, (numpy_descr *)descr, 1, &count, C_CONTIGUOUS, false, refused);
}

/* A list or tuple of floats, or of ints that fit: what array() is given if not an array. */
static PyObject *quick_numbers(fa_allocator *allocator, const row *of, bool *refused) {
    PyObject *list = of->args[0], *(*item)(PyObject *, Py_ssize_t) = PyList_CheckExact(list) ? PyList_GetItem : PyTuple_GetItem;
    Py_ssize_t count = PySequence_Size(list);
    PyTypeObject *type = count > 0 ? Py_TYPE(item(list, 0)) : NULL;
    bool whole = type == &PyLong_Type;
    if (!(whole && WHOLE_NUMBERS) && type != &PyFloat_Type) return NULL;
    for (Py_ssize_t i = 1; i < count; i++) {
        if (Py_TYPE(item(list, i)) != type) return NULL;
    }
    PyObject *made = make_row(allocator, whole ? integer : float64, count, refused);
    if (!made) return NULL;
    void *data = ((numpy_array *)made)->data;
    for (Py_ssize_t i = 0; i < count; i++) { /* no Python code runs in here */
        if (whole) ((long *)data)[i] = PyLong_AsLong(item(list, i));
        else ((double *)data)[i] = PyFloat_AsDouble(item(list, i));
    }
    if (FA_LIKELY(!PyErr_Occurred())) return made;
    PyErr_Clear(); /* too large */
    Py_DECREF(made);
    return NULL;
}

static PyObject *quick_array(fa_allocator *allocator, const row *of, bool *refused) {
    if (of->count != 1 || of->names) return NULL;
    if (PyList_CheckExact(of->args[0]) || PyTuple_CheckExact(of->args[0])) return quick_numbers(allocator, of, refused);
    return quick_copy(allocator, of, refused);
}

static PyObject *quick_asarray(fa_allocator *allocator, const row *of, bool *refused) {
    if (of->count == 1 && !of->names && is_plain_array(of->args[0]) && lies_in(allocator, of->args[0]))
        return Py_NewRef(of->args[0]);
    return quick_array(allocator, of, refused);
}

/* (stop), (start, stop), (start, stop, step): small ints. */
static PyObject *quick_arange(fa_allocator *allocator, const row *of, bool *refused) {
    long long value[] = {0, 0, 1}, most = 1 << 30;
    if (!WHOLE_NUMBERS || of->names || of->count < 1 || of->count > 3) return NULL;
    for (Py_ssize_t i = 0; i < of->count; i++) {
        if (!PyLong_CheckExact(of->args[i])) return NULL;
        int overflow;
        value[of->count == 1 ? 1 : i] = PyLong_AsLongLongAndOverflow(of->args[i], &overflow);
        if (overflow) return NULL;
    }
    long long start = value[0], stop = value[1], step = value[2];
    if (start < -most || start > most || stop < -most || stop > most || step < 1 || step > most || stop <= start) return NULL;
    long long count = (stop - start + step - 1) / step;
    if ((size_t)count > QUICK_COPY / sizeof(long)) return NULL;
    PyObject *made = make_row(allocator, integer, (Py_ssize_t)count, refused);
    if (!made) return NULL;
    long *data = ((numpy_array *)made)->data;
    for (long long i = 0; i < count; i++) data[i] = (long)(start + i * step);
    return made;
}

/* Up to where NumPy fills with the GIL, of floats or ints. */
static PyObject *make_full(fa_allocator *allocator, PyObject *descr, PyObject *shape, double number, long integral,
                           bool *refused) {
    Py_ssize_t sizes[MAX_DIMENSIONS], count = 1;
    int dimensions = dimensions_of(shape, sizes);
    if (dimensions < 0) return NULL;
    for (int i = 0; i < dimensions; i++) {
        if (sizes[i] == 0 || (size_t)sizes[i] > QUICK_COPY / sizeof(double) / (size_t)count) return NULL;
        count *= sizes[i];
    }
    PyObject *made = make(allocator, (numpy_descr *)descr, dimensions, sizes, C_CONTIGUOUS, false, refused);
    void *data = made ? ((numpy_array *)made)->data : NULL;
    for (Py_ssize_t i = 0; made && i < count; i++) {
        if (descr == float64) ((double *)data)[i] = number;
        else ((long *)data)[i] = integral;
    }
    return made;
}

/* (shape) */
static PyObject *quick_ones(fa_allocator *allocator, const row *of, bool *refused) {
    return of->count == 1 && !of->names ? make_full(allocator, float64, of->args[0], 1, 1, refused) : NULL;
}

/* (shape, value) */
static PyObject *quick_full(fa_allocator *allocator, const row *of, bool *refused) {
    if (of->count != 2 || of->names) return NULL;
    PyObject *value = of->args[1];
    if (PyFloat_CheckExact(value))
        return make_full(allocator, float64, of->args[0], PyFloat_AsDouble(value), 0, refused);
    if (!WHOLE_NUMBERS || !PyLong_CheckExact(value)) return NULL;
    int overflow;
    long integral = PyLong_AsLongAndOverflow(value, &overflow);
    return overflow ? NULL : make_full(allocator, integer, of->args[0], 0, integral, refused);
}

static quick_way quick_way_of(PyObject *name) {
    static const struct {
        const char *name;
        quick_way way;
    } ways[] = {{"empty", quick_empty},     {"zeros", quick_zeros},           {"ones", quick_ones},
                {"full", quick_full},       {"empty_like", quick_empty_like}, {"zeros_like", quick_zeros_like},
                {"array", quick_array},     {"asarray", quick_asarray},       {"copy", quick_copy},
                {"arange", quick_arange}};
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        if (PyUnicode_CompareWithASCIIString(name, ways[i].name) == 0) return ways[i].way;
    }
    return NULL;
}

/* ---- the long way -------------------------------------------------------------------------------------------------- */

/* Calls without a tuple of arguments. CPython has them since 3.9, its limited API since 3.12: the first is the name of a bit
 * of a type's flags, the second of a bit in the number of arguments. */
#define HAVE_VECTORCALL (1UL << 11)
#define ARGUMENTS_OFFSET ((size_t)1 << (8 * sizeof(size_t) - 1))
typedef PyObject *(*vectorcall)(PyObject *callable, PyObject *const *args, size_t count, PyObject *names);
typedef PyObject *(*fastcall)(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names);

/*
 * A method descriptor: `arena.empty(8)` calls the Routed with (arena, 8), which calls numpy.empty(8) with the arena's handler
 * as the current one. It looks at the arena each time, so it keeps nothing alive.
 */
typedef struct {
    PyObject_HEAD
    vectorcall call;
    PyObject *name;
    PyObject *function; /* null until first used: NumPy is imported then */
    fastcall direct;    /* the C function of `function`, and what it is a method of; or null */
    PyObject *direct_self;
    quick_way quick;    /* or null */
    bool owned;         /* a result that lies elsewhere is copied */
    bool view;          /* the function allocates no data: it is called as it is */
} routed_object;

static PyTypeObject *routed_type;

/* Borrowed. */
static PyObject *routed_function(routed_object *routed) {
    if (FA_LIKELY(routed->function != NULL)) return routed->function;
    PyObject *numpy = PyImport_ImportModule("numpy");
    if (!numpy) return NULL;
    PyObject *function = PyObject_GetAttr(numpy, routed->name);
    Py_DECREF(numpy);
    if (function && PyCFunction_Check(function) && PyCFunction_GetFlags(function) == (METH_FASTCALL | METH_KEYWORDS)) {
        PyCFunction direct = PyCFunction_GetFunction(function);
        memcpy(&routed->direct, &direct, sizeof routed->direct);
        routed->direct_self = PyCFunction_GetSelf(function); /* lives as long as the function */
    }
    return routed->function = function;
}

/* NumPy's MemoryError says what it could not allocate; ours, from it, says where. */
FA_COLD static void explain_memory_error(fa_allocator *allocator) {
    PyObject *type, *cause, *traceback;
    PyErr_Fetch(&type, &cause, &traceback);
    PyErr_NormalizeException(&type, &cause, &traceback);
    if (allocator->heap) fa_heap_refused_array(allocator->heap, cause);
    else PyErr_Format(fa_OutOfMemoryError, "%s: %S", allocator->label, cause);
    PyObject *new_type, *error, *new_traceback;
    PyErr_Fetch(&new_type, &error, &new_traceback);
    PyErr_NormalizeException(&new_type, &error, &new_traceback);
    if (cause && error && PyObject_TypeCheck(error, (PyTypeObject *)PyExc_BaseException)) {
        if (traceback) PyException_SetTraceback(cause, traceback);
        PyException_SetCause(error, Py_NewRef(cause));
    }
    Py_XDECREF(FA_OBJECT(type));
    Py_XDECREF(cause);
    Py_XDECREF(traceback);
    PyErr_Restore(new_type, error, new_traceback);
}

/* The same with a tuple and a dict. */
static PyObject *call_with_tuple(PyObject *function, const row *of) {
    PyObject *positional = PyTuple_New(of->count), *keywords = of->names ? PyDict_New() : NULL;
    bool failed = !positional || (of->names && !keywords);
    for (Py_ssize_t i = 0; i < of->count && !failed; i++)
        failed = PyTuple_SetItem(positional, i, Py_NewRef(of->args[i])) != 0;
    Py_ssize_t named = of->names ? PyTuple_Size(of->names) : 0;
    for (Py_ssize_t i = 0; i < named && !failed; i++)
        failed = PyDict_SetItem(keywords, PyTuple_GetItem(of->names, i), of->args[of->count + i]) != 0;
    PyObject *result = failed ? NULL : PyObject_Call(function, positional, keywords);
    Py_XDECREF(positional);
    Py_XDECREF(keywords);
    return result;
}

static PyObject *call_numpy(routed_object *routed, const row *of) {
    PyObject *function = routed_function(routed);
    if (!function) return NULL;
    if (routed->direct) return routed->direct(routed->direct_self, of->args, of->count, of->names);
    if (vectorcall_any) return vectorcall_any(function, of->args, (size_t)of->count, of->names);
    return call_with_tuple(function, of);
}

static PyObject *call_inside(fa_allocator *allocator, PyObject *capsule, routed_object *routed, const row *of) {
    fa_numpy_brief brief;
    if (!capsule) return NULL;
    Py_INCREF(capsule); /* fa_numpy_begin may run the garbage collector, and so a finalizer that closes the allocator */
    if (fa_numpy_begin(&brief, capsule)) {
        Py_DECREF(capsule);
        return NULL;
    }
    PyObject *result = call_numpy(routed, of);
    if (FA_LIKELY(result != NULL)) {
        if (fa_numpy_end(&brief)) Py_CLEAR(result);
    } else {
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        if (fa_numpy_end(&brief)) PyErr_Clear();
        PyErr_Restore(type, value, traceback);
        if (PyErr_ExceptionMatches(PyExc_MemoryError) && !PyErr_ExceptionMatches(fa_OutOfMemoryError)) {
            explain_memory_error(allocator);
        }
    }
    Py_DECREF(capsule);
    return result;
}

/* A handler that has no memory: what the heap refused already is not asked for again, and NumPy says what it was. */
static void *refuse_malloc(void *Py_UNUSED(context), size_t Py_UNUSED(size)) { return NULL; }
static void *refuse_calloc(void *Py_UNUSED(context), size_t Py_UNUSED(count), size_t Py_UNUSED(size)) { return NULL; }
static void *refuse_realloc(void *Py_UNUSED(context), void *Py_UNUSED(block), size_t Py_UNUSED(size)) { return NULL; }
static void refuse_free(void *Py_UNUSED(context), void *Py_UNUSED(block), size_t Py_UNUSED(size)) {}

FA_COLD static PyObject *call_refused(fa_allocator *allocator, routed_object *routed, const row *of) {
    static fa_numpy_handler refusing = {"fastalloc, refusing", FA_NUMPY_HANDLER_VERSION,
                                        {NULL, refuse_malloc, refuse_calloc, refuse_realloc, refuse_free}};
    PyObject *capsule = PyCapsule_New(&refusing, FA_NUMPY_CAPSULE, NULL);
    PyObject *result = call_inside(allocator, capsule, routed, of);
    Py_XDECREF(capsule);
    return result;
}

/* Of asarray(): what was there already, elsewhere, is copied; not with copy=False. Steals `result`. */
static PyObject *take_in(fa_allocator *allocator, PyObject *result, const row *of) {
    static routed_object *array;
    if (!is_array(result) || lies_in(allocator, result)) return result;
    PyObject *copied = NULL;
    Py_ssize_t named = of->names ? PyTuple_Size(of->names) : 0;
    for (Py_ssize_t i = 0; i < named; i++) {
        if (of->args[of->count + i] != Py_False) continue;
        if (PyUnicode_CompareWithASCIIString(PyTuple_GetItem(of->names, i), "copy") != 0) continue;
        PyErr_Format(PyExc_ValueError, "copy: it is not in the memory of %s, and copy=False", allocator->label);
        Py_DECREF(result);
        return NULL;
    }
    if (!array) array = (routed_object *)PyObject_CallFunction((PyObject *)routed_type, "s", "array");
    if (array) copied = call_inside(allocator, fa_numpy_capsule_of(allocator), array, &(row){&result, 1, NULL});
    Py_DECREF(result);
    return copied;
}

/* ---- Routed -------------------------------------------------------------------------------------------------------- */

static PyObject *routed_vectorcall(PyObject *self, PyObject *const *args, size_t count_and_flag, PyObject *names) {
    routed_object *routed = (routed_object *)self;
    Py_ssize_t count = (Py_ssize_t)(count_and_flag & ~ARGUMENTS_OFFSET);
    if (FA_UNLIKELY(ready())) return NULL;
    if (FA_UNLIKELY(count == 0 || !PyObject_TypeCheck(args[0], fa_allocator_type))) {
        PyErr_Format(PyExc_TypeError, "%U() is a method of an Arena or a Manager", routed->name);
        return NULL;
    }
    fa_allocator *allocator = (fa_allocator *)args[0];
    row of = {args + 1, count - 1, names};
    if (FA_LIKELY(routed->quick && quick_enough)) {
        bool refused = false;
        PyObject *made = routed->quick(allocator, &of, &refused);
        if (FA_LIKELY(made || PyErr_Occurred())) return made;
        if (refused) return call_refused(allocator, routed, &of);
    }
    if (routed->view) return call_numpy(routed, &of);
    PyObject *result = call_inside(allocator, fa_numpy_capsule_of(allocator), routed, &of);
    return FA_UNLIKELY(routed->owned && result) ? take_in(allocator, result, &of) : result;
}

static PyObject *routed_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    static const char *names[] = {"name", "owned", "view", NULL};
    PyObject *name;
    int owned = 0, view = 0;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "U|$pp:Routed", (char **)names, &name, &owned, &view)) return NULL;
    allocfunc allocate = FA_SLOT_OF(allocfunc, type, Py_tp_alloc);
    routed_object *self = (routed_object *)allocate(type, 0);
    if (!self) return NULL;
    self->call = routed_vectorcall;
    self->name = Py_NewRef(name);
    self->quick = quick_way_of(name);
    self->owned = owned;
    self->view = view;
    return (PyObject *)self;
}

static int routed_traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((routed_object *)self)->function);
    return 0;
}

static int routed_clear(PyObject *self) {
    Py_CLEAR(((routed_object *)self)->function);
    return 0;
}

static void routed_dealloc(PyObject *self) {
    PyObject_GC_UnTrack(self);
    routed_clear(self);
    Py_XDECREF(((routed_object *)self)->name);
    fa_python_free(self);
}

/* For callers that have a tuple and a dict. */
static PyObject *routed_call(PyObject *self, PyObject *args, PyObject *keywords) {
    Py_ssize_t count = PyTuple_Size(args), named = keywords ? PyDict_Size(keywords) : 0;
    PyObject **all = PyMem_Malloc((size_t)(count + named + 1) * sizeof *all), *names = named ? PyTuple_New(named) : NULL;
    PyObject *result = NULL;
    if (all && (names || !named)) {
        for (Py_ssize_t i = 0; i < count; i++) all[i] = PyTuple_GetItem(args, i);
        PyObject *name, *value;
        Py_ssize_t position = 0, i = 0;
        bool texts = true; /* Python does not look at what __call__ is given as ** */
        for (; i < named && PyDict_Next(keywords, &position, &name, &value); i++) {
            all[count + i] = value;
            PyTuple_SetItem(names, i, Py_NewRef(name));
            texts = texts && PyUnicode_Check(name);
        }
        if (texts) result = routed_vectorcall(self, all, (size_t)count, names);
        else PyErr_SetString(PyExc_TypeError, "keywords must be strings");
    } else if (!PyErr_Occurred()) {
        PyErr_NoMemory();
    }
    Py_XDECREF(names);
    PyMem_Free(all);
    return result;
}

static PyObject *method_type; /* types.MethodType */

static PyObject *routed_get(PyObject *self, PyObject *object, PyObject *Py_UNUSED(type)) {
    if (!object || object == Py_None) return Py_NewRef(self);
    return PyObject_CallFunctionObjArgs(method_type, self, object, NULL);
}

static PyObject *routed_repr(PyObject *self) {
    return PyUnicode_FromFormat("<numpy.%U as a method of an allocator>", ((routed_object *)self)->name);
}

static PyObject *routed_get_doc(PyObject *self, void *Py_UNUSED(closure)) {
    routed_object *routed = (routed_object *)self;
    PyObject *function = routed_function(routed);
    PyObject *doc = function ? PyObject_GetAttrString(function, "__doc__") : NULL;
    if (!doc) return NULL;
    PyObject *all = PyUnicode_FromFormat("numpy.%U, with its data in this allocator's memory.\n\n%S", routed->name, doc);
    Py_DECREF(doc);
    return all;
}

static PyGetSetDef routed_getset[] = {{"__doc__", routed_get_doc, NULL, NULL, NULL},
                                      {NULL, NULL, NULL, NULL, NULL}};

static PyMemberDef routed_members[] = {{"__name__", T_OBJECT, offsetof(routed_object, name), READONLY, NULL},
                                       {"__vectorcalloffset__", T_PYSSIZET, offsetof(routed_object, call), READONLY, NULL},
                                       {NULL, 0, 0, 0, NULL}};

static PyType_Slot routed_slots[] = {{Py_tp_new, FA_SLOT(routed_new)},
                                     {Py_tp_dealloc, FA_SLOT(routed_dealloc)},
                                     {Py_tp_traverse, FA_SLOT(routed_traverse)},
                                     {Py_tp_clear, FA_SLOT(routed_clear)},
                                     {Py_tp_call, FA_SLOT(routed_call)},
                                     {Py_tp_descr_get, FA_SLOT(routed_get)},
                                     {Py_tp_repr, FA_SLOT(routed_repr)},
                                     {Py_tp_getset, routed_getset},
                                     {Py_tp_members, routed_members},
                                     {0, NULL}};

static PyType_Spec routed_spec = {"fastalloc._native.Routed", (int)sizeof(routed_object), 0,
                                  Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_METHOD_DESCRIPTOR |
                                      Py_TPFLAGS_IMMUTABLETYPE | HAVE_VECTORCALL,
                                  routed_slots};


int fa_python_add_arrays(PyObject *module) {
    if (!method_type) {
        PyObject *types = PyImport_ImportModule("types");
        if (!types) return -1;
        method_type = PyObject_GetAttrString(types, "MethodType");
        Py_DECREF(types);
        if (!method_type) return -1;
    }
    return fa_python_add_type(module, &routed_type, &routed_spec, NULL);
}
