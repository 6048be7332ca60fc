/*
 * os/macos.c - the contract of os.h on macOS (10.12 and later), Intel and Apple silicon
 *
 *     reserve   mach_vm_map, inaccessible, aligned by the kernel          commit    mprotect(READ|WRITE)
 *     decommit  mach_vm_map over what is there                           remap     unsupported: the caller copies
 *     lock      mlock       protect  mprotect                            release   mach_vm_deallocate
 *     random    getentropy  map_huge superpages, on Intel                resident  mincore
 *     no_dump, wipe_on_fork, advise_huge, secret memory: unsupported
 *
 * What differs from Linux. Pages are 16 KiB on Apple silicon. MADV_FREE may leave or bring back old bytes and MADV_ZERO keeps
 * the pages, so a decommit puts new memory in the place of the old. A mapping that is not inherited (VM_INHERIT_NONE) is a
 * hole in the child, not zeros, so nothing is wiped on fork. No advice keeps memory out of a core dump.
 *
 * Compiled and linked in every cross build of this project, but not run on a machine of its authors: the workflow in
 * .github/ runs it.
 */
#ifndef _DARWIN_C_SOURCE
#define _DARWIN_C_SOURCE
#endif
#include "os.h"

#include <mach/mach_init.h>
#include <mach/mach_types.h>
#include <mach/vm_inherit.h>
#include <mach/vm_region.h>
#include <mach/vm_prot.h>
#include <mach/vm_statistics.h>
#include <malloc/malloc.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

/* From <mach/mach_vm.h>, which cross compilers lack. */
extern kern_return_t mach_vm_allocate(vm_map_t task, mach_vm_address_t *address, mach_vm_size_t size, int flags);
extern kern_return_t mach_vm_deallocate(vm_map_t task, mach_vm_address_t address, mach_vm_size_t size);
extern kern_return_t mach_vm_map(vm_map_t task, mach_vm_address_t *address, mach_vm_size_t size, mach_vm_offset_t mask,
                                 int flags, mem_entry_name_port_t object, memory_object_offset_t offset, boolean_t copy,
                                 vm_prot_t protection, vm_prot_t most_protection, vm_inherit_t inheritance);

extern kern_return_t mach_vm_region(vm_map_t task, mach_vm_address_t *address, mach_vm_size_t *size, vm_region_flavor_t flavor,
                                    vm_region_info_t info, mach_msg_type_number_t *count, mach_port_t *object);

#define ENTROPY_MOST ((size_t)256) /* of one getentropy */

/* Runs a call of the C library and turns its failure into an errno value, leaving the caller's errno alone. */
#define FA_CALL(expression)                                                                                            \
    do {                                                                                                               \
        int caller_errno = errno;                                                                                      \
        int result = (expression) == 0 ? 0 : errno;                                                                    \
        errno = caller_errno;                                                                                          \
        return result;                                                                                                 \
    } while (0)

static int error_of(kern_return_t result) {
    switch (result) {
    case KERN_SUCCESS: return 0;
    case KERN_NO_SPACE:
    case KERN_RESOURCE_SHORTAGE: return ENOMEM;
    case KERN_PROTECTION_FAILURE: return EACCES;
    case KERN_NOT_SUPPORTED: return FA_OS_UNSUPPORTED;
    default: return EINVAL;
    }
}

static size_t macos_page_size(void) { return (size_t)sysconf(_SC_PAGESIZE); }

static int macos_reserve(size_t size, size_t alignment, void **address) {
    mach_vm_address_t found = 0;
    kern_return_t result = mach_vm_map(mach_task_self(), &found, size, alignment - 1, VM_FLAGS_ANYWHERE, MACH_PORT_NULL, 0,
                                       false, VM_PROT_NONE, VM_PROT_READ | VM_PROT_WRITE, VM_INHERIT_COPY);
    if (result == KERN_SUCCESS) *address = (void *)(uintptr_t)found;
    return error_of(result);
}

static int macos_map_huge(size_t size, size_t huge_size, void **address) {
#if defined(__x86_64__) && defined(VM_FLAGS_SUPERPAGE_SIZE_2MB)
    if (huge_size != (size_t)2 << 20) return FA_OS_UNSUPPORTED;
    mach_vm_address_t found = 0;
    kern_return_t result =
        mach_vm_allocate(mach_task_self(), &found, size, VM_FLAGS_ANYWHERE | (int)VM_FLAGS_SUPERPAGE_SIZE_2MB);
    if (result == KERN_SUCCESS) *address = (void *)(uintptr_t)found;
    return error_of(result);
#else
    (void)size, (void)huge_size, (void)address;
    return FA_OS_UNSUPPORTED;
#endif
}

static int macos_release(void *address, size_t size) {
    return error_of(mach_vm_deallocate(mach_task_self(), (mach_vm_address_t)(uintptr_t)address, size));
}

static int macos_commit(void *address, size_t size) { FA_CALL(mprotect(address, size, PROT_READ | PROT_WRITE)); }

/* Piece by piece, each with what may be done with it, and in one step, so that no other mapping can come between. It would
 * replace locked memory, too: regions do not give that here. */
static int macos_decommit(void *address, size_t size) {
    mach_vm_address_t at = (mach_vm_address_t)(uintptr_t)address, end = at + size;
    while (at < end) {
        mach_vm_address_t found = at;
        mach_vm_size_t length = 0;
        vm_region_basic_info_data_64_t info;
        mach_msg_type_number_t count = VM_REGION_BASIC_INFO_COUNT_64;
        mach_port_t object = MACH_PORT_NULL;
        kern_return_t result = mach_vm_region(mach_task_self(), &found, &length, VM_REGION_BASIC_INFO_64,
                                              (vm_region_info_t)&info, &count, &object);
        if (result != KERN_SUCCESS || found > at) return EINVAL;
        mach_vm_address_t stop = found + length < end ? found + length : end;
        result = mach_vm_map(mach_task_self(), &at, stop - at, 0, VM_FLAGS_FIXED | VM_FLAGS_OVERWRITE, MACH_PORT_NULL, 0, false,
                             info.protection, VM_PROT_READ | VM_PROT_WRITE, VM_INHERIT_COPY);
        if (result != KERN_SUCCESS) return error_of(result);
        at = stop;
    }
    return 0;
}

static int macos_remap(void *address, size_t old_size, size_t new_size, void **moved) {
    (void)address, (void)old_size, (void)new_size, (void)moved;
    return FA_OS_UNSUPPORTED;
}

static int macos_protect(void *address, size_t size, fa_os_access access) {
    int flags = access == FA_OS_NONE ? PROT_NONE : access == FA_OS_READ ? PROT_READ : PROT_READ | PROT_WRITE;
    FA_CALL(mprotect(address, size, flags));
}

static int macos_lock(void *address, size_t size) { FA_CALL(mlock(address, size)); }

static int macos_unlock(void *address, size_t size) { FA_CALL(munlock(address, size)); }

static uint64_t macos_lock_limit(void) {
    struct rlimit limit;
    int caller_errno = errno;
    int error = getrlimit(RLIMIT_MEMLOCK, &limit);
    errno = caller_errno;
    if (error != 0) return 0;
    return limit.rlim_cur == RLIM_INFINITY ? UINT64_MAX : (uint64_t)limit.rlim_cur;
}

static int unsupported(void *address, size_t size) {
    (void)address, (void)size;
    return FA_OS_UNSUPPORTED;
}

static int macos_resident(void *address, size_t size, uint64_t *bytes) {
    char pages[4096]; /* one byte a page */
    size_t page = macos_page_size();
    int caller_errno = errno;
    int error = 0;
    *bytes = 0;
    for (size_t done = 0; done < size && error == 0;) {
        size_t step = sizeof pages * page;
        if (step > size - done) step = size - done;
        error = mincore((unsigned char *)address + done, step, pages) == 0 ? 0 : errno;
        for (size_t i = 0; error == 0 && i < step / page; i++) *bytes += (pages[i] & MINCORE_INCORE) != 0 ? page : 0;
        done += step;
    }
    errno = caller_errno;
    return error;
}

static int macos_at_fork(void (*prepare)(void), void (*parent)(void), void (*child)(void)) {
    return pthread_atfork(prepare, parent, child);
}

static int macos_random(void *bytes, size_t size) {
    int caller_errno = errno, error = 0;
    for (size_t done = 0; done < size && error == 0;) {
        size_t step = size - done < ENTROPY_MOST ? size - done : ENTROPY_MOST;
        error = getentropy((unsigned char *)bytes + done, step) == 0 ? 0 : errno;
        done += step;
    }
    errno = caller_errno;
    return error;
}

static int macos_make_exit_key(void (*ending)(void *), unsigned *key) {
    pthread_key_t made;
    int error = pthread_key_create(&made, ending);
    if (error == 0) *key = (unsigned)made;
    return error;
}

static int macos_set_exit_value(unsigned key, void *value) { return pthread_setspecific((pthread_key_t)key, value); }

static void *macos_exit_value(unsigned key) { return pthread_getspecific((pthread_key_t)key); }

/* No call makes the other threads execute a barrier. */
static int macos_fence_threads(bool prepare) {
    (void)prepare;
    return FA_OS_UNSUPPORTED;
}

static uint64_t macos_milliseconds(void) { return clock_gettime_nsec_np(CLOCK_MONOTONIC_RAW_APPROX) / 1000000; }

static void macos_yield(void) { (void)sched_yield(); }

static void *macos_heap_alloc(size_t size, size_t alignment) {
    if (alignment <= _Alignof(max_align_t)) return malloc(size);
    void *block = NULL;
    return posix_memalign(&block, alignment, size) == 0 ? block : NULL;
}

static void macos_heap_free(void *block) { free(block); }

static size_t macos_heap_usable(const void *block) { return malloc_size(block); }

static void macos_report(const char *text, size_t size) {
    while (size > 0) {
        ssize_t written = write(STDERR_FILENO, text, size);
        if (written <= 0) return; /* nowhere left to complain */
        text += written;
        size -= (size_t)written;
    }
}

static void macos_abort(void) { abort(); }

static const fa_os macos_os = {
    .name = "macos",
    .lazy_commit = true,
    .traps = true,
    .page_size = macos_page_size,
    .reserve = macos_reserve,
    .map_huge = macos_map_huge,
    .release = macos_release,
    .commit = macos_commit,
    .decommit = macos_decommit,
    .remap = macos_remap,
    .protect = macos_protect,
    .map_secret = unsupported,
    .unmap_secret = unsupported,
    .reserve_at = unsupported,
    .lock = macos_lock,
    .unlock = macos_unlock,
    .lock_limit = macos_lock_limit,
    .no_dump = unsupported,
    .wipe_on_fork = unsupported,
    .advise_huge = unsupported,
    .resident = macos_resident,
    .at_fork = macos_at_fork,
    .random = macos_random,
    .make_exit_key = macos_make_exit_key,
    .set_exit_value = macos_set_exit_value,
    .exit_value = macos_exit_value,
    .fence_threads = macos_fence_threads,
    .milliseconds = macos_milliseconds,
    .yield = macos_yield,
    .heap_alloc = macos_heap_alloc,
    .heap_free = macos_heap_free,
    .heap_usable = macos_heap_usable,
    .report = macos_report,
    .abort = macos_abort,
};

const fa_os *fa_os_platform(void) { return &macos_os; }
