/*
 * adapters/residue.c - where pieces of a pattern lie in a buffer: the inner loop of fastalloc/residue.py
 *
 *     buffer    | word | word | word | word | ...     every 8th byte a word is looked up
 *     pattern   |....|                                in a table of all n - 7 words of the pattern, hashed
 *                |....|
 *                 |....|                              a hit is extended to both sides, as far as the two agree
 *
 * A run of 16 bytes contains an aligned word of 8, wherever it begins in the buffer and in the pattern: so looking at
 * the aligned words finds every piece that is long enough. Words of eight equal bytes are in every memory, and are not
 * entered.
 *
 * The pattern is compared where it lies and copied nowhere; the table holds places in it, and is zeroed at the end.
 * Thread rule: the GIL is released during the search; the caller keeps others from writing to both buffers. Cost: about
 * a nanosecond a word.
 */
#include "python.h"

#include "mem/base.h"

#include <stdlib.h>
#include <string.h>

#define WORD sizeof(uint64_t)
#define SHORTEST (2 * WORD)
#define LONGEST_PATTERN ((size_t)8192)
#define HASH_BITS 12
#define NOWHERE UINT16_MAX

typedef struct piece {
    size_t at, in_pattern, length;
} piece;

typedef struct search {
    const unsigned char *buffer, *pattern;
    size_t size, length, shortest;
    /* Places in the pattern by the hash of the word there; and for each, the next of the same hash. */
    uint16_t first[(size_t)1 << HASH_BITS], next[LONGEST_PATTERN];
    piece *found;
    size_t count, room;
} search;

static inline uint64_t word_at(const unsigned char *place) {
    uint64_t word;
    memcpy(&word, place, sizeof word);
    return word;
}

static inline size_t hash(uint64_t word) { return (size_t)(word * UINT64_C(0x9E3779B97F4A7C15) >> (64 - HASH_BITS)); }

static bool is_regular(uint64_t word) { return word == (word << 8 | word >> 56); }

static size_t enter_words(search *in) {
    size_t entered = 0;
    memset(in->first, 0xFF, sizeof in->first);
    for (size_t place = 0; place + WORD <= in->length; place++) {
        uint64_t word = word_at(in->pattern + place);
        if (is_regular(word)) continue;
        in->next[place] = in->first[hash(word)];
        in->first[hash(word)] = (uint16_t)place;
        entered++;
    }
    return entered;
}

static piece extend(const search *in, size_t at, size_t in_pattern) {
    size_t before = 0, after = WORD;
    while (before < fa_min(at, in_pattern) &&
           in->buffer[at - before - 1] == in->pattern[in_pattern - before - 1])
        before++;
    while (at + after < in->size && in_pattern + after < in->length &&
           in->buffer[at + after] == in->pattern[in_pattern + after])
        after++;
    return (piece){at - before, in_pattern - before, before + after};
}

static bool keep(search *in, piece piece) {
    if (in->count == in->room) {
        size_t room = in->room ? 2 * in->room : 64;
        struct piece *more = realloc(in->found, room * sizeof *more);
        if (!more) return false;
        in->found = more;
        in->room = room;
    }
    in->found[in->count++] = piece;
    return true;
}

/* The longest piece around the word at `at`, unless it is the one that was found last. */
FA_COLD static bool look_closer(search *in, size_t at, uint64_t word) {
    piece longest = {0};
    for (uint16_t place = in->first[hash(word)]; place != NOWHERE; place = in->next[place]) {
        if (word_at(in->pattern + place) != word) continue;
        piece one = extend(in, at, place);
        if (one.length > longest.length) longest = one;
    }
    if (longest.length < in->shortest) return true;
    const piece *last = in->count ? &in->found[in->count - 1] : NULL;
    return (last && last->at == longest.at && last->in_pattern == longest.in_pattern) || keep(in, longest);
}

static bool run(search *in) {
    for (size_t at = 0; at + WORD <= in->size; at += WORD) {
        uint64_t word = word_at(in->buffer + at);
        if (FA_UNLIKELY(in->first[hash(word)] != NOWHERE) && !look_closer(in, at, word)) return false;
    }
    return true;
}

static PyObject *list_of(const search *in) {
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list && i < in->count; i++) {
        piece one = in->found[i];
        PyObject *item =
            Py_BuildValue("(nnn)", (Py_ssize_t)one.at, (Py_ssize_t)one.in_pattern, (Py_ssize_t)one.length);
        if (!item || PyList_Append(list, item)) Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

/* (buffer, pattern, shortest) */
static PyObject *find_pieces(PyObject *Py_UNUSED(module), PyObject *args) {
    Py_buffer buffer, pattern;
    Py_ssize_t shortest;
    if (!PyArg_ParseTuple(args, "y*y*n", &buffer, &pattern, &shortest)) return NULL;
    PyObject *list = NULL;
    search in = {.buffer = buffer.buf, .size = (size_t)buffer.len};
    in.pattern = pattern.buf;
    in.length = (size_t)pattern.len;
    in.shortest = (size_t)shortest;
    if (shortest < (Py_ssize_t)SHORTEST || pattern.len < shortest || in.length > LONGEST_PATTERN) {
        PyErr_Format(fa_ArgumentError, "pattern: %zd bytes, and pieces of %zd, are not from %zu to %zu", pattern.len,
                     shortest, SHORTEST, LONGEST_PATTERN);
    } else if (enter_words(&in) == 0) {
        PyErr_SetString(fa_ArgumentError, "pattern: it is the same byte all along, as much of every memory is");
    } else {
        bool whole;
        Py_BEGIN_ALLOW_THREADS
        whole = run(&in);
        Py_END_ALLOW_THREADS
        list = whole ? list_of(&in) : PyErr_NoMemory();
    }
    fa_secure_zero(in.first, sizeof in.first);
    fa_secure_zero(in.next, sizeof in.next);
    free(in.found);
    PyBuffer_Release(&buffer);
    PyBuffer_Release(&pattern);
    return list;
}

/* Whose memory an address is in: the label of an arena or manager, or None. */
static PyObject *owner_of(PyObject *Py_UNUSED(module), PyObject *value) {
    void *address = PyLong_AsVoidPtr(value);
    if (PyErr_Occurred()) return NULL;
    const fa_heap *heap = fa_heap_owner(address);
    if (!heap) Py_RETURN_NONE;
    return PyUnicode_FromString(heap->label);
}

static PyMethodDef functions[] = {
    {"find_pieces", find_pieces, METH_VARARGS,
     "find_pieces(buffer, pattern, shortest, /)\n--\n\n"
     "(place in the buffer, place in the pattern, length) of every piece of the pattern."},
    {"owner_of", owner_of, METH_O, "owner_of(address, /)\n--\n\nThe label of the arena or manager it is in, or None."},
    {NULL, NULL, 0, NULL}};

int fa_python_add_residue(PyObject *module) { return PyModule_AddFunctions(module, functions); }
