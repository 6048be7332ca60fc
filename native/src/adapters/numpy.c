/*
 * adapters/numpy.c - NumPy's array data from an arena or a manager (NEP 49)
 *
 * NumPy asks its current handler (a capsule around a PyDataMem_Handler, kept in a context variable) for the data of every
 * array, and every array keeps the handler it was made with until its data is freed. So the capsule holds the Heap,
 * and NumPy holds the capsule: the memory stays as long as an array, or a view of it, does.
 *
 * Our capsules are links of a chain. A scope (`with using_allocator(a):`) makes its handler the current one and notes
 * in it what was current before (`outer`); leaving puts that back. As the chain hangs on the context variable, each thread,
 * task and context sees its own, and nothing is kept anywhere else:
 *
 *     current -> handler of b -> handler of a -> NumPy's default
 *                (entered 1)     (entered 1)
 *
 * A handler that nobody is inside of holds no `outer`, so an array keeps only its own arena.
 *
 * NumPy's headers are not used: its C API is a table of pointers in a capsule, the entries we take have had their places
 * since 1.22, and so one binary works with 1.26 and every 2.x.
 *
 * Setting the context variable is most of what a scope costs. Where CPython's own functions for it can be looked up (they are not
 * in its limited API) they are used on NumPy's variable, which spares the look at what was there before.
 */
#include "numpy.h"

#include "mem/base.h"

#include <stdio.h>
#include <string.h>

/* ---- NumPy's side ------------------------------------------------------------------------------------------------- */

/* Places in the table, and the first version of it (of NumPy 1.22) that has handlers. */
enum {
    NUMPY_FEATURE_VERSION = 211,
    NUMPY_SET_HANDLER = 304,
    NUMPY_GET_HANDLER = 305,
    NUMPY_DEFAULT_HANDLER = 306
};
#define NUMPY_FIRST_FEATURE 0xfU

static PyObject *(*set_handler)(PyObject *handler); /* null is the default; returns the one before */
static PyObject *(*get_handler)(void);
PyObject *fa_numpy_default, *fa_numpy_own;
void **fa_numpy_table;

/* NumPy's context variable of the current handler; null: only the two functions above. */
static PyObject *variable;
static PyObject *(*variable_set)(PyObject *variable, PyObject *value); /* returns a token */
static int (*variable_reset)(PyObject *variable, PyObject *token);

static void *numpy_table(void) {
    static const char *const names[] = {"numpy._core._multiarray_umath", "numpy.core._multiarray_umath"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        PyErr_Clear();
        PyObject *module = PyImport_ImportModule(names[i]);
        if (!module) continue;
        PyObject *capsule = PyObject_GetAttrString(module, "_ARRAY_API");
        void *table = capsule ? PyCapsule_GetPointer(capsule, NULL) : NULL;
        Py_XDECREF(capsule);
        Py_DECREF(module);
        return table;
    }
    return NULL;
}

/* Another try after Python had no memory: what stays current otherwise is a wrong allocator. Python may also set a context
 * variable, then have no memory for the token, and say that it failed. */
#define TRIES 4

FA_COLD static int make_current_after_all(PyObject *capsule) {
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    int failed = -1;
    for (int tries = 0; tries < TRIES && failed; tries++) {
        PyObject *now = get_handler();
        if (now != capsule) {
            Py_XDECREF(now);
            now = set_handler(capsule);
            failed = now ? 0 : -1;
        } else {
            failed = 0;
        }
        Py_XDECREF(now);
        PyErr_Clear();
    }
    if (failed) {
        PyErr_Restore(type, value, traceback);
    } else {
        Py_XDECREF(type);
        Py_XDECREF(value);
        Py_XDECREF(traceback);
    }
    return failed;
}

/* The variable that has changed when the handler has: it holds `probe`. New reference, or null. */
static PyObject *variable_that_holds(PyObject *probe) {
    PyObject *(*copy_current)(void);
    fa_python_look_up("PyContext_CopyCurrent", &copy_current);
    PyObject *context = copy_current ? copy_current() : NULL, *all = context ? PyObject_GetIter(context) : NULL, *found = NULL;
    for (PyObject *each; all && !found && (each = PyIter_Next(all)); Py_DECREF(each)) {
        PyObject *value = PyObject_GetItem(context, each);
        if (value == probe) found = Py_NewRef(each);
        Py_XDECREF(value);
    }
    Py_XDECREF(all);
    Py_XDECREF(context);
    return found;
}

static int find_variable(void) {
    int failed = 0;
    fa_python_look_up("PyContextVar_Set", &variable_set);
    fa_python_look_up("PyContextVar_Reset", &variable_reset);
    if (!variable_set || !variable_reset || variable) return 0;
    void *own = PyCapsule_GetPointer(fa_numpy_own, FA_NUMPY_CAPSULE);
    PyObject *probe = PyCapsule_New(own, FA_NUMPY_CAPSULE, NULL), *before = probe ? set_handler(probe) : NULL;
    if (before) {
        variable = variable_that_holds(probe);
        PyErr_Clear();
        failed = make_current_after_all(before);
    }
    Py_XDECREF(before);
    Py_XDECREF(probe);
    if (!failed) PyErr_Clear(); /* it goes without the variable */
    return failed;
}

int fa_numpy_ready(void) {
    if (FA_LIKELY(set_handler != NULL)) return 0;
    void **table = numpy_table();
    if (!table) return -1;
    unsigned (*feature_version)(void);
    memcpy(&feature_version, &table[NUMPY_FEATURE_VERSION], sizeof feature_version);
    if (feature_version() < NUMPY_FIRST_FEATURE) {
        PyErr_SetString(fa_UnsupportedError, "this NumPy has no data-allocation handlers; 1.22 was the first");
        return -1;
    }
    memcpy(&fa_numpy_default, table[NUMPY_DEFAULT_HANDLER], sizeof fa_numpy_default);
    if (!fa_numpy_own) {
        void *own = PyCapsule_GetPointer(fa_numpy_default, FA_NUMPY_CAPSULE);
        fa_numpy_own = own ? PyCapsule_New(own, FA_NUMPY_CAPSULE, NULL) : NULL;
        if (!fa_numpy_own) return -1;
    }
    memcpy(&get_handler, &table[NUMPY_GET_HANDLER], sizeof get_handler);
    memcpy(&set_handler, &table[NUMPY_SET_HANDLER], sizeof set_handler);
    fa_numpy_table = table;
    return find_variable();
}

/* ---- our handlers ------------------------------------------------------------------------------------------------- */

typedef struct handler {
    fa_numpy_handler numpy; /* first: what the capsule points at */
    fa_heap *heap;       /* null: the functions are those of `source` */
    PyObject *source;    /* another handler's capsule, that this one stands for */
    PyObject *allocator; /* the Arena or Manager, while entered; not if it is the one that keeps the capsule */
    PyObject *outer;     /* the capsule that was current before, while entered */
    size_t entered;      /* scopes that are open on it, in whatever contexts */
    bool lasting;        /* of set_allocator(): not a scope, ends with the scope around it */
    bool kept;           /* by its Arena or Manager, which it must not keep in turn: both would stay for ever */
} handler;

/*
 * The four functions. NumPy may call them without the GIL and while Python is shutting down: no Python object is
 * touched. `context` is a Heap, which the capsule holds. The size that free is given is not to be trusted, and not needed:
 * arenas of Python are tracked, and a tracked arena goes by its own record whatever size it is told.
 */
FA_HOT void *fa_numpy_malloc(void *context, size_t size) {
    const fa_heap *heap = context;
    if (heap->arena) return fa_arena_alloc_tracked(heap->arena, size, heap->array_alignment);
    return fa_aligned_alloc(heap->manager, heap->array_alignment, size);
}

void *fa_numpy_calloc(void *context, size_t count, size_t size) {
    const fa_heap *heap = context;
    if (size != 0 && count > SIZE_MAX / size) return NULL;
    if (heap->arena) return fa_arena_alloc_zeroed(heap->arena, count * size, heap->array_alignment);
    return fa_manager_alloc_zeroed(heap->manager, heap->array_alignment, count * size);
}

FA_HOT void fa_numpy_free(void *context, void *block, size_t size) {
    const fa_heap *heap = context;
    (void)size;
    if (!block) return;
    if (heap->arena) fa_arena_free(heap->arena, block, 0);
    else fa_free(heap->manager, block);
}

void *fa_numpy_realloc(void *context, void *block, size_t size) {
    const fa_heap *heap = context;
    if (!block) return fa_numpy_malloc(context, size);
    if (heap->arena) return fa_arena_realloc(heap->arena, block, 0, size, heap->array_alignment);
    fa_status status;
    return fa_manager_try_realloc(heap->manager, block, heap->array_alignment, size ? size : 1, &status);
}

static handler *ours(PyObject *capsule);

/* Lets go of a link of a chain. Not by recursion: a chain may be longer than the stack is deep. */
static void release_chain(PyObject *capsule) {
    while (capsule) {
        handler *own = ours(capsule);
        PyObject *next = NULL;
        if (own && fa_python_is_only_reference(capsule)) {
            next = own->outer;
            own->outer = NULL;
        }
        Py_DECREF(capsule);
        capsule = next;
    }
}

static void handler_free(handler *freed) {
    release_chain(freed->outer);
    Py_XDECREF(freed->allocator);
    Py_XDECREF(freed->source);
    Py_XDECREF(FA_OBJECT(freed->heap));
    PyMem_Free(freed);
}

static void handler_drop(PyObject *capsule) { handler_free(PyCapsule_GetPointer(capsule, FA_NUMPY_CAPSULE)); }

/* The handler in a capsule of ours. */
static handler *handler_in(PyObject *capsule) { return PyCapsule_GetPointer(capsule, FA_NUMPY_CAPSULE); }

/* Likewise; null if the capsule is not one of ours. */
static handler *ours(PyObject *capsule) {
    return PyCapsule_GetDestructor(capsule) == handler_drop ? handler_in(capsule) : NULL;
}

/* A capsule for the heap, or one that stands for `source`. Nobody is inside yet. */
static PyObject *handler_new(fa_heap *heap, PyObject *source) {
    handler *made = PyMem_Calloc(1, sizeof *made);
    if (!made) return PyErr_NoMemory();
    made->heap = (fa_heap *)Py_XNewRef(FA_OBJECT(heap));
    made->source = heap ? NULL : Py_XNewRef(source);
    if (heap) {
        snprintf(made->numpy.name, sizeof made->numpy.name, "fastalloc %s", heap->label);
        made->numpy.version = FA_NUMPY_HANDLER_VERSION;
        made->numpy.functions = (fa_numpy_functions){heap, fa_numpy_malloc, fa_numpy_calloc, fa_numpy_realloc, fa_numpy_free};
    } else {
        made->numpy = *(const fa_numpy_handler *)PyCapsule_GetPointer(source, FA_NUMPY_CAPSULE);
    }
    PyObject *capsule = PyCapsule_New(made, FA_NUMPY_CAPSULE, handler_drop);
    if (!capsule) handler_free(made);
    return capsule;
}

/* What a handler allocates from, for messages. */
static const char *handler_label(PyObject *capsule) {
    const handler *own = ours(capsule);
    if (own && own->heap) return own->heap->label;
    if (own && own->source) capsule = own->source;
    if (capsule == fa_numpy_own || (capsule == fa_numpy_default && !fa_installed)) return "NumPy's default allocator";
    if (capsule == fa_installed_capsule || (capsule == fa_numpy_default && fa_installed == fa_installed_allocator))
        return "the installed allocator";
    if (capsule == fa_numpy_default) return ((const fa_allocator *)(const void *)fa_installed)->label;
    return ((const fa_numpy_handler *)PyCapsule_GetPointer(capsule, FA_NUMPY_CAPSULE))->name;
}

/* Steals nothing; `outer` is what was current. */
static void handler_enter(handler *entered, PyObject *allocator, PyObject *outer) {
    if (entered->entered++ == 0) {
        fa_replace(&entered->outer, Py_NewRef(outer));
        fa_replace(&entered->allocator, entered->kept ? NULL : Py_XNewRef(allocator));
    }
}

void fa_numpy_let_go(fa_allocator *allocator, bool lives) {
    PyObject *capsule = allocator->capsule;
    if (!capsule) return;
    allocator->capsule = NULL;
    handler *own = handler_in(capsule);
    own->kept = false;
    if (own->entered && lives) fa_replace(&own->allocator, Py_NewRef(FA_OBJECT(allocator)));
    Py_DECREF(capsule);
}

static void handler_leave(handler *left) {
    if (left->entered == 0 || --left->entered > 0) return;
    PyObject *outer = left->outer, *allocator = left->allocator;
    left->outer = left->allocator = NULL;
    release_chain(outer);
    Py_XDECREF(allocator);
}

static int make_current(PyObject *capsule) {
    PyObject *before = variable && capsule ? variable_set(variable, capsule) : set_handler(capsule);
    if (FA_UNLIKELY(!before)) return make_current_after_all(capsule);
    Py_DECREF(before);
    return 0;
}

int fa_numpy_begin(fa_numpy_brief *brief, PyObject *capsule) {
    brief->token = NULL;
    brief->outer = get_handler(); /* asked for first: a failure may have set ours all the same */
    if (!brief->outer) return -1;
    if (variable) brief->token = variable_set(variable, capsule);
    if (FA_LIKELY(brief->token != NULL) || !(variable ? make_current_after_all(capsule) : make_current(capsule))) return 0;
    Py_CLEAR(brief->outer);
    return -1;
}

int fa_numpy_end(fa_numpy_brief *brief) {
    int failed = brief->token ? variable_reset(variable, brief->token) : make_current(brief->outer);
    if (FA_UNLIKELY(failed)) failed = make_current_after_all(brief->outer);
    Py_XDECREF(brief->token);
    Py_DECREF(brief->outer);
    return failed;
}

/* ---- what to allocate from ---------------------------------------------------------------------------------------- */

/*
 * The argument of using_allocator and set_allocator: an Arena or a Manager; None for NumPy's default; or an OtherAllocator,
 * which is somebody else's handler.
 */
typedef struct {
    PyObject_HEAD
    PyObject *capsule;
} other_allocator;

static PyTypeObject *other_type;
static PyTypeObject *using_type;

static bool is_allocator(PyObject *target) { return PyObject_TypeCheck(target, fa_allocator_type); }

static int check_target(PyObject *target) {
    if (target == Py_None || is_allocator(target) || PyObject_TypeCheck(target, other_type)) return 0;
    if (target == fa_installed_allocator) return 0;
    PyErr_Format(fa_ArgumentTypeError, "allocator: expected an Arena, a Manager or None, not %R",
                 (PyObject *)Py_TYPE(target));
    return -1;
}

PyObject *fa_numpy_capsule_of(fa_allocator *allocator) {
    for (;;) {
        fa_heap *heap = fa_allocator_heap(allocator);
        if (!heap) return NULL;
        if (FA_LIKELY(allocator->capsule != NULL)) return allocator->capsule;
        Py_INCREF(FA_OBJECT(heap));
        PyObject *capsule = handler_new(heap, NULL); /* may run the garbage collector, and so anything */
        bool still = allocator->heap == heap && !allocator->capsule;
        Py_DECREF(FA_OBJECT(heap));
        if (!capsule) return NULL;
        if (still) {
            handler_in(capsule)->kept = true;
            return allocator->capsule = capsule;
        }
        Py_DECREF(capsule);
    }
}

/* The capsule of a target that is neither an Arena nor a Manager. Borrowed. */
static PyObject *source_of(PyObject *target) {
    if (target == Py_None) return fa_numpy_own;
    return target == fa_installed_allocator ? fa_installed_capsule : ((other_allocator *)target)->capsule;
}

/* A capsule for the target that nobody is inside of. */
static PyObject *fresh_capsule(PyObject *target) {
    if (is_allocator(target)) {
        fa_heap *heap = fa_allocator_heap((fa_allocator *)target);
        return heap ? handler_new(heap, NULL) : NULL;
    }
    return handler_new(NULL, source_of(target));
}

/* Whether a handler allocates for the target; also from memory that the arena has since replaced. */
static bool is_for(const handler *own, PyObject *target) {
    if (is_allocator(target)) return own->heap && own->heap->lineage == ((fa_allocator *)target)->lineage;
    return own->source && own->source == source_of(target);
}

static bool in_chain(PyObject *capsule, PyObject *current) {
    for (const handler *own; current && (own = ours(current)); current = own->outer) {
        if (current == capsule) return true;
    }
    return false;
}

/*
 * The capsule to enter over `outer`: the arena's own, if nobody is inside of it, or others are but over the same; else a
 * new one. It may already be below in the chain, too, inherited from a context in which its scope has ended. New reference.
 */
static PyObject *capsule_over(PyObject *target, PyObject *outer) {
    if (!is_allocator(target)) return fresh_capsule(target);
    PyObject *capsule = fa_numpy_capsule_of((fa_allocator *)target);
    if (!capsule) return NULL;
    const handler *own = handler_in(capsule);
    bool free_to_use = own->entered ? own->outer == outer : !in_chain(capsule, outer);
    return free_to_use ? Py_NewRef(capsule) : fresh_capsule(target);
}

static int enter(PyObject *target) {
    if (fa_numpy_ready()) return -1;
    PyObject *outer = get_handler();
    if (!outer) return -1;
    PyObject *capsule = capsule_over(target, outer);
    int failed = -1;
    if (capsule) {
        handler_enter(handler_in(capsule), target, outer); /* before anything that may run Python code */
        failed = make_current(capsule);
        if (failed) handler_leave(handler_in(capsule));
        Py_DECREF(capsule);
    }
    Py_DECREF(outer);
    return failed;
}

/*
 * Rebuilds the links of the chain from `current` down to and without `end`, on top of `bottom`, and makes the topmost the
 * current one. Handlers of `old` are made anew for `heap`. New links, not changed ones: other threads and contexts may
 * have the same ones in their chains.
 */
static int rebuild(PyObject *current, PyObject *end, PyObject *bottom, fa_heap *old, fa_heap *heap) {
    if (current == end) return make_current(bottom);
    size_t depth = 0;
    for (PyObject *link = current; link != end; link = handler_in(link)->outer) depth++;
    PyObject **links = PyMem_Malloc(depth * sizeof *links);
    if (!links) return PyErr_NoMemory(), -1;
    size_t i = 0;
    for (PyObject *link = current; link != end; link = handler_in(link)->outer) links[i++] = Py_NewRef(link);

    PyObject *base = Py_NewRef(bottom);
    int failed = 0;
    for (i = depth; i-- > 0 && !failed;) {
        const handler *from = handler_in(links[i]);
        PyObject *made = handler_new(from->heap == old && heap ? heap : from->heap, from->source);
        if (!made) {
            failed = -1;
            break;
        }
        handler_in(made)->lasting = from->lasting;
        handler_enter(handler_in(made), from->allocator, base);
        fa_replace(&base, made);
    }
    if (!failed) failed = make_current(base);
    if (!failed) {
        for (i = 0; i < depth; i++) handler_leave(handler_in(links[i]));
    }
    for (i = 0; i < depth; i++) Py_DECREF(links[i]);
    PyMem_Free(links);
    Py_DECREF(base);
    return failed;
}

/* What set_allocator() made current inside a scope ends with the scope. */
static int leave_lasting(PyObject *current, PyObject *end, PyObject *outer) {
    if (make_current(outer)) return -1;
    Py_INCREF(current);
    while (current != end && handler_in(current)->outer) {
        PyObject *next = Py_NewRef(handler_in(current)->outer);
        handler_leave(handler_in(current));
        fa_replace(&current, next);
    }
    Py_DECREF(current);
    return 0;
}

/* The rest of leave(): somebody else's handler is on top. Whatever is found, no wrong allocator stays. */
FA_COLD static int leave_out_of_order(PyObject *target, const char *label, PyObject *current) {
    PyObject *link = current;
    PyObject *intruder = NULL; /* the topmost scope above ours */
    for (handler *own = ours(link); own && own->entered; own = ours(link)) {
        if (!own->lasting && is_for(own, target)) {
            PyObject *outer = Py_NewRef(own->outer);
            Py_INCREF(link);
            Py_XINCREF(intruder); /* which may be let go of below, and is named after that */
            int failed;
            if (!intruder) failed = leave_lasting(current, link, outer);
            else failed = rebuild(current, link, outer, NULL, NULL);
            if (!failed) handler_leave(own);
            if (!failed && intruder) {
                PyErr_Format(fa_ScopeError,
                             "the scope of %s ended inside the scope of %s: scopes must be left in the reverse order. The "
                             "scope of %s stays, as if the other had never been there",
                             label, handler_label(intruder), handler_label(intruder));
                failed = -1;
            }
            Py_XDECREF(intruder);
            Py_DECREF(link);
            Py_DECREF(outer);
            return failed;
        }
        if (!own->lasting && !intruder) intruder = link;
        link = own->outer;
    }
    const handler *top = ours(current);
    if (top && top->entered) {
        PyErr_Format(fa_ScopeError,
                     "the scope of %s was not entered in this thread or context, where the scope of %s is the innermost",
                     label, handler_label(current));
    } else if (current == fa_numpy_default) {
        PyErr_Format(fa_ScopeError, "the scope of %s was not entered in this thread or context, or %s was made current inside",
                     label, handler_label(current));
    } else {
        PyErr_Format(fa_ScopeError,
                     "at the end of the scope of %s, %s is NumPy's current allocator and not of fastalloc.using_allocator: "
                     "NumPy's default allocator is the current one now",
                     label, handler_label(current));
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        if (make_current(NULL)) PyErr_Clear();
        PyErr_Restore(type, value, traceback);
    }
    return -1;
}

static int leave(PyObject *target, const char *label) {
    if (fa_numpy_ready()) return -1;
    PyObject *current = get_handler();
    if (!current) return -1;
    handler *own = ours(current);
    int failed;
    if (FA_LIKELY(own && own->entered && !own->lasting && is_for(own, target))) {
        PyObject *outer = Py_NewRef(own->outer); /* setting it may run the garbage collector, and so other scopes' ends */
        failed = make_current(outer);
        if (!failed) handler_leave(own);
        Py_DECREF(outer);
    } else {
        failed = leave_out_of_order(target, label, current);
    }
    Py_DECREF(current);
    return failed;
}

int fa_numpy_replace_heap(fa_allocator *allocator, fa_heap *old, fa_heap *heap) {
    (void)allocator;
    if (!set_handler) return 0;
    if (fa_install_replace_heap(old, heap)) return -1;
    PyObject *current = get_handler();
    if (!current) return -1;
    PyObject *end = current; /* below the lowest link that is of the old heap */
    const handler *own;
    for (PyObject *link = current; (own = ours(link)) && own->entered; link = own->outer) {
        if (own->heap == old) end = own->outer;
    }
    int failed = 0;
    if (end != current) {
        PyObject *bottom = Py_NewRef(end);
        failed = rebuild(current, end, bottom, old, heap);
        Py_DECREF(bottom);
    }
    Py_DECREF(current);
    return failed;
}

/* The Python object for a capsule: None, an Arena, a Manager, an OtherAllocator. */
static PyObject *target_of(PyObject *capsule) {
    const handler *own = ours(capsule);
    if (own && own->allocator) return Py_NewRef(own->allocator);
    if (own && own->heap && own->heap->allocator) { /* kept by it, or inherited from a context where its scope has ended */
        PyObject *allocator = PyObject_CallObject(own->heap->allocator, NULL);
        if (allocator != Py_None) return allocator;
        Py_DECREF(allocator);
    }
    if (own && own->source) capsule = own->source;
    if (capsule == fa_numpy_own) Py_RETURN_NONE;
    if (capsule == fa_numpy_default) return Py_NewRef(fa_installed ? fa_installed : Py_None);
    if (capsule == fa_installed_capsule) return Py_NewRef(fa_installed_allocator);
    other_allocator *other = PyObject_New(other_allocator, other_type);
    if (other) other->capsule = Py_NewRef(capsule);
    return (PyObject *)other;
}

/* ---- OtherAllocator ----------------------------------------------------------------------------------------------- */

static void other_dealloc(PyObject *self) {
    Py_XDECREF(((other_allocator *)self)->capsule);
    fa_python_free(self);
}

static PyObject *other_get_name(PyObject *self, void *Py_UNUSED(closure)) {
    return PyUnicode_FromFormat("%s", handler_label(((other_allocator *)self)->capsule));
}

static PyObject *other_repr(PyObject *self) {
    return PyUnicode_FromFormat("<fastalloc.OtherAllocator '%s'>", handler_label(((other_allocator *)self)->capsule));
}

static PyGetSetDef other_getset[] = {{"name", other_get_name, NULL, "The handler's own name.", NULL},
                                     {NULL, NULL, NULL, NULL, NULL}};

static PyMethodDef other_methods[] = {{"__reduce__", fa_python_no_pickle, METH_NOARGS, NULL}, {NULL, NULL, 0, NULL}};

static PyType_Slot other_slots[] = {
    {Py_tp_dealloc, FA_SLOT(other_dealloc)},
    {Py_tp_repr, FA_SLOT(other_repr)},
    {Py_tp_getset, other_getset},
    {Py_tp_methods, other_methods},
    {Py_tp_doc, FA_DOC("A data handler of NumPy that is not of fastalloc, as get_allocator() found it.\n\n"
                "It can be given to set_allocator() and using_allocator().")},
    {0, NULL}};

static PyType_Spec other_spec = {"fastalloc.OtherAllocator", (int)sizeof(other_allocator), 0,
                                 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
                                 other_slots};

/* ---- using_allocator ---------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    PyObject *target;
} using_object;

static const char *target_label(PyObject *target) {
    if (is_allocator(target)) return ((fa_allocator *)target)->label;
    return handler_label(source_of(target));
}

static PyObject *using_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    static const char *names[] = {"allocator", NULL};
    PyObject *target;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O:using_allocator", (char **)names, &target)) return NULL;
    if (check_target(target)) return NULL;
    allocfunc allocate = FA_SLOT_OF(allocfunc, type, Py_tp_alloc);
    using_object *self = (using_object *)allocate(type, 0);
    if (self) self->target = Py_NewRef(target);
    return (PyObject *)self;
}

static int using_traverse(PyObject *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((using_object *)self)->target);
    return 0;
}

/* No tp_clear: a cycle goes through what Python code has put into an Arena, and is broken there. */
static void using_dealloc(PyObject *self) {
    PyObject_GC_UnTrack(self);
    Py_XDECREF(((using_object *)self)->target);
    fa_python_free(self);
}

static PyObject *using_enter(PyObject *self, PyObject *Py_UNUSED(unused)) {
    PyObject *target = ((using_object *)self)->target;
    return enter(target) ? NULL : Py_NewRef(target);
}

static PyObject *using_exit(PyObject *self, PyObject *const *Py_UNUSED(args), Py_ssize_t Py_UNUSED(count)) {
    PyObject *target = ((using_object *)self)->target;
    if (leave(target, target_label(target))) return NULL;
    Py_RETURN_NONE;
}

static PyObject *using_repr(PyObject *self) {
    return PyUnicode_FromFormat("fastalloc.using_allocator(%R)", ((using_object *)self)->target);
}

static PyMethodDef using_methods[] = {{"__enter__", using_enter, METH_NOARGS, NULL},
                                      {"__exit__", FA_METHOD(using_exit), METH_FASTCALL, NULL},
                                      {"__reduce__", fa_python_no_pickle, METH_NOARGS, NULL},
                                      {NULL, NULL, 0, NULL}};

static PyMemberDef using_members[] = {
    {"allocator", T_OBJECT, offsetof(using_object, target), READONLY, "what is current inside"}, {NULL, 0, 0, 0, NULL}};

static PyType_Slot using_slots[] = {
    {Py_tp_new, FA_SLOT(using_new)},
    {Py_tp_dealloc, FA_SLOT(using_dealloc)},
    {Py_tp_traverse, FA_SLOT(using_traverse)},
    {Py_tp_repr, FA_SLOT(using_repr)},
    {Py_tp_methods, using_methods},
    {Py_tp_members, using_members},
    {Py_tp_doc,
     FA_DOC("using_allocator(allocator)\n--\n\nA context manager: NumPy's array data comes from this allocator inside.\n\n"
     "Every array whose data NumPy allocates inside, temporaries included, is in the arena or manager. Arrays made before\n"
     "stay where they are; arrays made inside keep their memory alive after the end.\n\n"
     "The same object may be entered again, nested, and by several threads at once. New threads begin with NumPy's\n"
     "default; asyncio tasks and contextvars contexts inherit what is current where they are made. A generator that\n"
     "is suspended inside leaves its allocator to its caller until it goes on.\n\n"
     "If the arena's reset(retire=True) gives it new memory inside, the scope goes on there; scopes that are open in\n"
     "other threads go on in the old memory until they end. If the arena is closed inside, new arrays are a MemoryError.\n\n"
     "Parameters\n----------\nallocator : Arena, Manager or None\n    None is NumPy's own.\n\n"
     "Raises\n------\nArgumentTypeError\n    If it is none of these.\nClosedError\n    On entering, if it is closed.\n"
     "ScopeError\n    On leaving, if another scope was entered inside and not left (the message names both; the other\n"
     "    scope stays), or if this one was not entered in this thread or context.\n\n"
     "Notes\n-----\nEntering and leaving set a context variable once each: about a quarter of a microsecond together.")},
    {0, NULL}};

static PyType_Spec using_spec = {"fastalloc.using_allocator", (int)sizeof(using_object), 0,
                                 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE, using_slots};

/* ---- set_allocator, get_allocator --------------------------------------------------------------------------------- */

static PyObject *get_allocator(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused)) {
    if (fa_numpy_ready()) return NULL;
    PyObject *current = get_handler();
    if (!current) return NULL;
    PyObject *target = target_of(current);
    Py_DECREF(current);
    return target;
}

/* Takes the place of an earlier set_allocator at the same depth of scopes, and leaves the scopes in place. */
static PyObject *set_allocator(PyObject *Py_UNUSED(module), PyObject *target) {
    if (check_target(target) || fa_numpy_ready()) return NULL;
    PyObject *current = get_handler();
    if (!current) return NULL;
    PyObject *base = current;
    const handler *own;
    while ((own = ours(base)) && own->lasting && own->outer) base = own->outer;

    PyObject *capsule = NULL;
    bool in_scope = own && own->entered;
    if (in_scope || is_allocator(target)) {
        capsule = fresh_capsule(target);
        if (capsule) {
            handler_in(capsule)->lasting = true;
            handler_enter(handler_in(capsule), target, base);
        }
    } else {
        bool is_default = target == (fa_installed ? fa_installed : Py_None);
        capsule = Py_NewRef(is_default ? fa_numpy_default : source_of(target));
    }
    PyObject *before = capsule ? target_of(current) : NULL;
    if (before && make_current(capsule)) Py_CLEAR(before);
    if (before && base != current) handler_leave(handler_in(current));
    Py_XDECREF(capsule);
    Py_DECREF(current);
    return before;
}

static PyObject *leave_numpy(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused)) {
    if (!set_handler) Py_RETURN_NONE;
    PyObject *current = get_handler();
    if (!current) return NULL;
    int failed = ours(current) ? make_current(NULL) : 0;
    Py_DECREF(current);
    if (failed) return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"leave_numpy", leave_numpy, METH_NOARGS,
     "leave_numpy()\n--\n\nAt exit: if NumPy's current handler is ours, puts its default one back."},
    {"get_allocator", get_allocator, METH_NOARGS,
     "get_allocator()\n--\n\nWhat NumPy's array data comes from in this thread and context.\n\n"
     "Returns\n-------\nArena, Manager, None or OtherAllocator\n    None is NumPy's own allocator. Outside of all scopes it is what install() installed."},
    {"set_allocator", set_allocator, METH_O,
     "set_allocator(allocator, /)\n--\n\nLet NumPy's array data come from this allocator from now on.\n\n"
     "In this thread and context; inside a using_allocator scope, until that ends.\n\n"
     "Parameters\n----------\nallocator : Arena, Manager, None or OtherAllocator\n    None is NumPy's own.\n\n"
     "Returns\n-------\nArena, Manager, None or OtherAllocator\n    What it was before.\n\n"
     "Raises\n------\nArgumentTypeError\n    If it is none of these.\nClosedError\n    If it is closed."},
    {NULL, NULL, 0, NULL}};

int fa_python_add_numpy(PyObject *module) {
    if (fa_python_add_type(module, &other_type, &other_spec, NULL)) return -1;
    if (fa_python_add_type(module, &using_type, &using_spec, NULL)) return -1;
    if (fa_python_add_arrays(module)) return -1;
    if (fa_python_add_install(module)) return -1;
    return PyModule_AddFunctions(module, functions);
}
