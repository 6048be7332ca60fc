/*
 * misuse.cpp - misuse.c with new and delete: one object, an array, an aligned one, one that may be null
 */
#include <cstddef>
#include <cstring>
#include <new>

#define TAKE
static const char *form;
static void *take(std::size_t size) {
    if (std::strcmp(form, "array") == 0) return ::operator new[](size);
    if (std::strcmp(form, "aligned") == 0) return ::operator new(size, std::align_val_t(64));
    if (std::strcmp(form, "nothrow") == 0) return ::operator new(size, std::nothrow);
    return ::operator new(size);
}

static void give(void *block) {
    if (std::strcmp(form, "array") == 0) ::operator delete[](block);
    else if (std::strcmp(form, "aligned") == 0) ::operator delete(block, std::align_val_t(64));
    else if (std::strcmp(form, "nothrow") == 0) ::operator delete(block, std::nothrow);
    else ::operator delete(block);
}

static int give_sized(void *block, std::size_t size) {
    if (std::strcmp(form, "array") == 0) ::operator delete[](block, size);
    else if (std::strcmp(form, "aligned") == 0) ::operator delete(block, size, std::align_val_t(64));
    else if (std::strcmp(form, "nothrow") == 0) return 4; /* it has none */
    else ::operator delete(block, size);
    return 0;
}

#include "misuse.c"
