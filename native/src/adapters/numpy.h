/*
 * adapters/numpy.h - NumPy's array data from an arena or a manager (NEP 49)
 */
#ifndef FA_ADAPTERS_NUMPY_H
#define FA_ADAPTERS_NUMPY_H

#include "python.h"

/* The allocator goes on in `heap`: scopes of it that are open in the current context move along. `old` may be null. */
int fa_numpy_replace_heap(fa_allocator *allocator, fa_heap *old, fa_heap *heap);

/* Adds using_allocator, set_allocator, get_allocator, OtherAllocator and Routed. */
int fa_python_add_numpy(PyObject *module);

#endif
