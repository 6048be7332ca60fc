/*
 * adapters/install.c - NumPy's array data for the whole process
 *
 * Arrays point at the capsule of the handler they were made with, nearly all of them at the one of NumPy's default handler.
 * install() changes what that capsule points at. So it reaches every thread and context at once, and the arrays that are
 * there already, too:
 *
 *     array -> capsule -> NumPy's own handler | on: from the array heap | routed: from an arena or manager | off
 *                          before                  `- these three are ours; free and realloc are the same in each -'
 *
 * Once changed the capsule never goes back to NumPy's own handler, because blocks of ours may live for ever. free and realloc
 * ask whose a block is (the size that free is given is only passed on to NumPy's own function, for its own blocks), and
 * uninstall() means that new blocks come from NumPy's own functions.
 *
 * The functions are called with the GIL held, as those they replace. They touch no Python object: arrays
 * die after the interpreter's end, too. What they use is static or is never freed. The memory of an arena that was installed
 * goes after the last array in it, by a call that the main thread makes soon.
 *
 * While there is freed memory that the decay will give back, and only then, a thread looks after it: it sleeps, takes the GIL,
 * gives back what is old, and ends when nothing is left, so an idle process does not keep its cache.
 */
#include "numpy.h"

#include "mem/base.h"
#include "os/os.h"

#include <string.h>

PyObject *fa_installed, *fa_installed_allocator, *fa_installed_capsule;

static fa_array_heap *array_heap;  /* from the first install() of it on */
static fa_numpy_functions own;     /* NumPy's */
static fa_numpy_handler on, routed, off;

/* Where blocks of install(arena) live. One that is replaced stays until its last block is freed. */
typedef struct route {
    fa_heap *heap;
    size_t live;
    struct route *next;
} route;

static route *routes; /* the one in use first, while `routed` is */

/* ---- NumPy's four functions --------------------------------------------------------------------------------------- */

FA_COLD static void *own_malloc(size_t size) { return own.malloc(own.context, size); }

FA_HOT static void *on_malloc(void *Py_UNUSED(context), size_t size) {
    void *block = fa_array_heap_alloc(array_heap, size);
    return FA_LIKELY(block != NULL) ? block : own_malloc(size);
}

static void *on_calloc(void *Py_UNUSED(context), size_t count, size_t size) {
    if (size != 0 && count > SIZE_MAX / size) return NULL;
    void *block = fa_array_heap_alloc_zeroed(array_heap, count * size);
    return block ? block : own.calloc(own.context, count, size);
}

static void *routed_malloc(void *Py_UNUSED(context), size_t size) {
    void *block = fa_numpy_malloc(routes->heap, size);
    routes->live += block != NULL;
    return block;
}

static void *routed_calloc(void *Py_UNUSED(context), size_t count, size_t size) {
    void *block = fa_numpy_calloc(routes->heap, count, size);
    routes->live += block != NULL;
    return block;
}

static void *off_malloc(void *Py_UNUSED(context), size_t size) { return own.malloc(own.context, size); }
static void *off_calloc(void *Py_UNUSED(context), size_t count, size_t size) {
    return own.calloc(own.context, count, size);
}

/* Bytes that may be used at a block of the route; 0 if it has no such block. */
static size_t usable_in(const route *at, const void *block) {
    if (at->live == 0) return 0;
    return at->heap->arena ? fa_arena_usable_size(at->heap->arena, block) : fa_usable_size(at->heap->manager, block);
}

static route *find_route(const void *block, size_t *usable) {
    for (route *at = routes; at; at = at->next) {
        *usable = usable_in(at, block);
        if (*usable > 0) return at;
    }
    return NULL;
}

static bool is_in_use(const route *of) {
    return of == routes && fa_installed && fa_installed != fa_installed_allocator;
}

static void drop_routes_later(void);

/* A block that is not of the array heap; or a double free in it, of which nothing good can come. */
FA_COLD static void free_other(void *block, size_t size, fa_status status) {
    static const char message[] = "fastalloc: NumPy freed an array's data twice, or at a wrong address\n";
    if (!block) return;
    if (status == FA_ERR_CORRUPT) {
        fa_os_platform()->report(message, sizeof message - 1);
        fa_os_platform()->abort();
    }
    size_t usable;
    route *of = find_route(block, &usable);
    if (of) {
        fa_numpy_free(of->heap, block, size);
        if (--of->live == 0 && !is_in_use(of)) drop_routes_later();
    } else {
        own.free(own.context, block, size);
    }
}

FA_HOT static void any_free(void *Py_UNUSED(context), void *block, size_t size) {
    fa_status status = array_heap ? fa_array_heap_free(array_heap, block) : FA_ERR_FOREIGN;
    if (FA_UNLIKELY(status != FA_OK)) free_other(block, size, status);
}

/* Into whatever new blocks come from now. */
static void *move(void *context, void *block, size_t usable, size_t size) {
    const fa_numpy_handler *now = PyCapsule_GetPointer(fa_numpy_default, FA_NUMPY_CAPSULE);
    void *moved = now->functions.malloc(context, size);
    if (!moved) return NULL;
    memcpy(moved, block, fa_min(usable, size));
    any_free(context, block, usable);
    return moved;
}

static void *any_realloc(void *context, void *block, size_t size) {
    const fa_numpy_handler *now = PyCapsule_GetPointer(fa_numpy_default, FA_NUMPY_CAPSULE);
    if (!block) return now->functions.malloc(context, size);
    size_t usable = array_heap ? fa_array_heap_usable_size(array_heap, block) : 0;
    if (usable > 0) {
        void *moved = fa_array_heap_realloc(array_heap, block, size);
        return moved ? moved : move(context, block, usable, size);
    }
    route *of = find_route(block, &usable);
    if (!of) return own.realloc(own.context, block, size);
    if (now == &routed && of == routes) return fa_numpy_realloc(of->heap, block, size);
    return move(context, block, usable, size);
}

static fa_numpy_handler handler_with(void *(*allocate)(void *, size_t), void *(*zeroed)(void *, size_t, size_t)) {
    fa_numpy_handler made = *(const fa_numpy_handler *)PyCapsule_GetPointer(fa_numpy_own, FA_NUMPY_CAPSULE);
    made.functions = (fa_numpy_functions){NULL, allocate, zeroed, any_realloc, any_free};
    return made; /* under NumPy's name: its tests, and others, look at it */
}

/* ---- on and off: with the GIL ------------------------------------------------------------------------------------- */

static int point_at(fa_numpy_handler *handler, PyObject *installed) {
    if (PyCapsule_SetPointer(fa_numpy_default, handler)) return -1;
    PyObject *before = fa_installed;
    fa_installed = Py_XNewRef(installed);
    Py_XDECREF(before);
    return 0;
}

static int ready(void) {
    if (fa_numpy_ready()) return -1;
    if (own.malloc) return 0;
    const fa_numpy_handler *found = PyCapsule_GetPointer(fa_numpy_own, FA_NUMPY_CAPSULE);
    if (!found) return -1;
    if (found->version != FA_NUMPY_HANDLER_VERSION) {
        PyErr_Format(fa_UnsupportedError, "NumPy's default handler is of version %d, and known is %d", found->version,
                     FA_NUMPY_HANDLER_VERSION);
        return -1;
    }
    on = handler_with(on_malloc, on_calloc);
    routed = handler_with(routed_malloc, routed_calloc);
    off = handler_with(off_malloc, off_calloc);
    own = found->functions;
    return 0;
}

/* Routes that are not in use and hold no block. */
static void drop_routes(void) {
    for (route **at = &routes; *at;) {
        route *unused = *at;
        if (is_in_use(unused) || unused->live > 0) {
            at = &unused->next;
            continue;
        }
        *at = unused->next;
        fa_heap *heap = unused->heap;
        PyMem_Free(unused);
        Py_DECREF(FA_OBJECT(heap)); /* may run Python code: nothing is half done */
        at = &routes;
    }
}

/* Makes the route to the heap the first one. */
static int use_route(fa_heap *heap) {
    for (route **at = &routes; *at; at = &(*at)->next) {
        route *found = *at;
        if (found->heap != heap) continue;
        *at = found->next;
        found->next = routes;
        routes = found;
        return 0;
    }
    route *made = PyMem_Calloc(1, sizeof *made);
    if (!made) return PyErr_NoMemory(), -1;
    made->heap = (fa_heap *)Py_NewRef(FA_OBJECT(heap));
    made->next = routes;
    routes = made;
    return 0;
}

int fa_install_replace_heap(fa_heap *old, fa_heap *heap) {
    if (!fa_installed || fa_installed == fa_installed_allocator || routes->heap != old) return 0;
    if (use_route(heap)) return -1;
    drop_routes();
    return 0;
}

bool fa_install_owns(const void *address) { return array_heap && fa_array_heap_usable_size(array_heap, address) > 0; }

/* ---- the thread of the decay: all under the GIL but where it is said ------------------------------------------------- */

static struct {
    bool running, never;           /* never: the interpreter ends, or there is no thread to be had */
    uint32_t decay;                /* milliseconds; 0: there is none */
    PyThread_type_lock bell, done; /* the thread waits for `bell`, rung at exit; holds `done` */
    void (*delete_state)(void);    /* PyThreadState_DeleteCurrent, which the limited API leaves out */
} watch;

/* How often it looks, in parts of the decay, and the least time between, in milliseconds. */
#define WATCH_PARTS 4
#define WATCH_LEAST 20U
/* CPython's PYTHREAD_INVALID_THREAD_ID, which its limited API leaves out. */
#define NO_THREAD ((unsigned long)-1)

static uint32_t watch_pause(void) { return (uint32_t)fa_max(watch.decay / WATCH_PARTS, WATCH_LEAST); }

/* The thread, without the GIL. Its state was made by who started it: PyGILState_Ensure would make one without the GIL, and that
 * crashes if tracemalloc is stopped meanwhile (before CPython 3.12.9 and 3.13.2). */
static void watch_spare(void *own_state) {
    PyThreadState *state = own_state;
    PyEval_AcquireThread(state);
    PyThread_type_lock bell = watch.bell, done = watch.done;
    bool rung = false;
    while (!rung && watch.decay != 0 && fa_array_heap_has_spare(array_heap)) {
        PY_TIMEOUT_T pause = (PY_TIMEOUT_T)watch_pause() * 1000;
        PyEval_ReleaseThread(state);
        rung = PyThread_acquire_lock_timed(bell, pause, 0) == PY_LOCK_ACQUIRED;
        PyEval_AcquireThread(state);
        fa_array_heap_trim(array_heap, false);
    }
    watch.running = false;
    PyThreadState_Clear(state);
    watch.delete_state(); /* and lets go of the GIL */
    PyThread_release_lock(done);
}

static void watch_fork_child(void) {
    watch.running = false;
    watch.bell = watch.done = NULL; /* in whatever state they were: new ones are made */
}

static int drop_routes_now(void *Py_UNUSED(unused)) {
    drop_routes();
    return 0;
}

/* Here an array is freed: no Python object may be touched. If there is no room for the call, the next one of install() does it. */
static void drop_routes_later(void) {
    if (!watch.never) (void)Py_AddPendingCall(drop_routes_now, NULL);
}

/* Called when something was freed that the decay will give back. */
static void watch_begin(void) {
    if (FA_LIKELY(watch.running || watch.never || watch.decay == 0)) return;
    if (!watch.bell) {
        watch.bell = PyThread_allocate_lock();
        watch.done = PyThread_allocate_lock();
        fa_python_look_up("PyThreadState_DeleteCurrent", &watch.delete_state);
        watch.never = !watch.bell || !watch.done || !watch.delete_state;
        if (watch.never) return;
        (void)PyThread_acquire_lock(watch.bell, WAIT_LOCK);
    }
    PyThreadState *state = PyThreadState_New(PyInterpreterState_Get());
    if (!state) return;
    (void)PyThread_acquire_lock(watch.done, WAIT_LOCK); /* one that has just ended lets go of it at once, without the GIL */
    watch.running = PyThread_start_new_thread(watch_spare, state) != NO_THREAD;
    watch.never = !watch.running;
    if (watch.running) return;
    PyThread_release_lock(watch.done);
    PyThreadState_Clear(state);
    PyThreadState_Delete(state);
}

/* At exit: no thread of ours may ask for the GIL of an interpreter that is gone. */
static void watch_end(void) {
    watch.never = true;
    if (!watch.running) return;
    PyThread_type_lock done = watch.done;
    PyThread_release_lock(watch.bell);
    Py_BEGIN_ALLOW_THREADS
    (void)PyThread_acquire_lock(done, WAIT_LOCK);
    Py_END_ALLOW_THREADS
}

/* ---- InstalledAllocator ------------------------------------------------------------------------------------------- */

static PyTypeObject *installed_type;

static PyObject *installed_repr(PyObject *self) {
    return PyUnicode_FromString(self == fa_installed ? "<fastalloc.InstalledAllocator>"
                                                     : "<fastalloc.InstalledAllocator, not installed>");
}

static PyObject *installed_trim(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(unused)) {
    fa_array_heap_trim(array_heap, true);
    Py_RETURN_NONE;
}

static PyObject *installed_owns(PyObject *Py_UNUSED(self), PyObject *array) {
    Py_buffer view;
    if (PyObject_GetBuffer(array, &view, PyBUF_FULL_RO)) return NULL;
    bool owned = fa_install_owns(view.buf);
    PyBuffer_Release(&view);
    return PyBool_FromLong(owned);
}

static PyMethodDef installed_methods[] = {
    {"trim", installed_trim, METH_NOARGS,
     "trim($self)\n--\n\nGive all memory that no array uses back to the system."},
    {"owns", installed_owns, METH_O,
     "owns($self, array, /)\n--\n\nWhether the array's first byte is the beginning of a block of this allocator."},
    {"__reduce__", fa_python_no_pickle, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL}};

static PyType_Slot installed_slots[] = {
    {Py_tp_repr, FA_SLOT(installed_repr)},
    {Py_tp_methods, installed_methods},
    {Py_tp_doc, FA_DOC("What install() installs unless it is given an Arena or a Manager. There is one in a process.\n\n"
                "It can be given to using_allocator() and set_allocator().")},
    {0, NULL}};

static PyType_Spec installed_spec = {"fastalloc.InstalledAllocator", (int)sizeof(PyObject), 0,
                                     Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
                                     installed_slots};

/* The heap, its object, its handler's capsule. */
static int make_array_heap(void) {
    if (!array_heap) {
        array_heap = fa_array_heap_create(fa_os_platform());
        if (!array_heap) return PyErr_NoMemory(), -1;
        int error = fa_os_platform()->at_fork(NULL, NULL, watch_fork_child);
        if (error == 0 || error == FA_OS_UNSUPPORTED) fa_array_heap_on_spare(array_heap, watch_begin);
    }
    if (!fa_installed_allocator) fa_installed_allocator = (PyObject *)PyObject_New(PyObject, installed_type);
    if (!fa_installed_allocator) return -1;
    if (!fa_installed_capsule) fa_installed_capsule = PyCapsule_New(&on, FA_NUMPY_CAPSULE, NULL);
    return fa_installed_capsule ? 0 : -1;
}

/* ---- functions ---------------------------------------------------------------------------------------------------- */

/* (None, cache_limit, decay, huge_pages) or (allocator, ...) */
static PyObject *install(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *allocator;
    unsigned long long cache_limit;
    unsigned decay;
    int huge_pages;
    if (!PyArg_ParseTuple(args, "OKIp", &allocator, &cache_limit, &decay, &huge_pages)) return NULL;
    if (ready()) return NULL;
    int failed;
    if (allocator == Py_None || allocator == fa_installed_allocator) {
        if (make_array_heap()) return NULL;
        allocator = fa_installed_allocator;
        fa_array_heap_configure(array_heap, (size_t)cache_limit, decay, huge_pages);
        watch.decay = decay;
        if (fa_array_heap_has_spare(array_heap)) watch_begin();
        failed = point_at(&on, allocator);
    } else if (PyObject_TypeCheck(allocator, fa_allocator_type)) {
        fa_heap *heap = fa_allocator_heap((fa_allocator *)allocator);
        failed = !heap || use_route(heap) || point_at(&routed, allocator);
    } else {
        PyErr_Format(fa_ArgumentTypeError, "allocator: expected an Arena, a Manager or None, not %R",
                     (PyObject *)Py_TYPE(allocator));
        return NULL;
    }
    if (failed) return NULL;
    drop_routes();
    return Py_NewRef(allocator); /* not fa_installed: a finalizer of what was installed before may have changed that */
}

static PyObject *uninstall(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused)) {
    if (fa_installed && point_at(&off, NULL)) return NULL;
    drop_routes();
    Py_RETURN_NONE;
}

/* At exit: arenas and managers refuse new blocks from now on; what else is installed may stay. */
static PyObject *leave_install(PyObject *module, PyObject *unused) {
    watch_end();
    if (fa_installed == fa_installed_allocator) Py_RETURN_NONE;
    return uninstall(module, unused);
}

static PyObject *numpy_stats(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused)) {
    fa_numpy_stats stats = {0};
    drop_routes();
    if (array_heap) {
        fa_array_heap_trim(array_heap, false);
        fa_array_heap_get_stats(array_heap, &stats);
    }
    PyObject *made = PyDict_New();
    if (!made) return NULL;
#define FIELD(field, unit, doc)                                                                                        \
    {                                                                                                                  \
        PyObject *value = PyLong_FromUnsignedLongLong(stats.field);                                                    \
        if (!value || PyDict_SetItemString(made, #field, value)) Py_CLEAR(made);                                       \
        Py_XDECREF(value);                                                                                             \
        if (!made) return NULL;                                                                                        \
    }
    FA_NUMPY_STATS(FIELD)
#undef FIELD
    return made;
}

static PyObject *installed(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused)) {
    return Py_NewRef(fa_installed ? fa_installed : Py_None);
}

static PyObject *installed_is_valid(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(unused)) {
    return PyBool_FromLong(!array_heap || fa_array_heap_is_valid(array_heap));
}

static PyMethodDef functions[] = {
    {"install", install, METH_VARARGS,
     "install(allocator, cache_limit, decay, huge_pages, /)\n--\n\nSee fastalloc.install."},
    {"uninstall", uninstall, METH_NOARGS,
     "uninstall()\n--\n\nLet new arrays come from NumPy's own functions again, in the whole process.\n\n"
     "Arrays that are alive stay where they are. Without an install() before, it does nothing."},
    {"leave_install", leave_install, METH_NOARGS, "leave_install()\n--\n\nAt exit: uninstalls an Arena or a Manager."},
    {"numpy_stats", numpy_stats, METH_NOARGS, "numpy_stats()\n--\n\nfa_numpy_stats, as a dict."},
    {"installed", installed, METH_NOARGS, "installed()\n--\n\nAn Arena, a Manager, the InstalledAllocator or None."},
    {"installed_is_valid", installed_is_valid, METH_NOARGS, "installed_is_valid()\n--\n\nFor tests."},
    {NULL, NULL, 0, NULL}};

int fa_python_add_install(PyObject *module) {
    if (fa_python_add_type(module, &installed_type, &installed_spec, NULL)) return -1;
    return PyModule_AddFunctions(module, functions);
}
