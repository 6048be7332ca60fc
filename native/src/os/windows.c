/*
 * os/windows.c - the contract of os.h on Windows (7 and later)
 *
 *     reserve   VirtualAlloc(MEM_RESERVE), again at an aligned address    commit    VirtualAlloc(MEM_COMMIT): charged at once
 *     decommit  zeros, MEM_RESET, out of the working set                 remap     unsupported: the caller copies
 *     lock      VirtualLock, raising the working set's minimum           protect   VirtualProtect
 *     random    RtlGenRandom      fence_threads  FlushProcessWriteBuffers  map_huge  VirtualAlloc(MEM_LARGE_PAGES)
 *     no_dump, wipe_on_fork, advise_huge, secret memory: unsupported; there is no fork
 *
 * What differs from the other platforms. A commit is charged against memory and page file whether it is touched or not, so
 * regions and their maps commit as they are used (lazy_commit is false). Address space comes and goes in whole reservations:
 * of one that is released in part, the rest of the addresses stays reserved until its last part is released.
 */
#ifndef _WIN32_WINNT
#define _WIN32_WINNT 0x0601
#endif
#define WIN32_LEAN_AND_MEAN
#include "os.h"

#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <windows.h>

#include <psapi.h>

/* RtlGenRandom, which has no header of its own; it needs no handle and no initialisation. */
BOOLEAN NTAPI SystemFunction036(PVOID bytes, ULONG size);

/* Another thread may take an address between two calls; so often in a row it does not. */
#define RESERVE_TRIES 64

/* Of the calls that are made here. */
static int error_of(DWORD error) {
    switch (error) {
    case ERROR_SUCCESS: return 0;
    case ERROR_INVALID_PARAMETER:
    case ERROR_INVALID_ADDRESS:
    case ERROR_NOT_LOCKED: return EINVAL;
    case ERROR_PRIVILEGE_NOT_HELD:
    case ERROR_ACCESS_DENIED: return EPERM;
    case ERROR_NOT_SUPPORTED:
    case ERROR_CALL_NOT_IMPLEMENTED: return FA_OS_UNSUPPORTED;
    default: return ENOMEM; /* ERROR_NOT_ENOUGH_MEMORY, ERROR_COMMITMENT_LIMIT, ERROR_WORKING_SET_QUOTA ... */
    }
}

static int result_of(BOOL done) { return done ? 0 : error_of(GetLastError()); }

static size_t windows_page_size(void) {
    SYSTEM_INFO info;
    GetSystemInfo(&info);
    return info.dwPageSize;
}

/* Reservations begin at multiples of 64 KiB. For more, one that is large enough shows where an aligned one may be. */
static int windows_reserve(size_t size, size_t alignment, void **address) {
    if (size > SIZE_MAX - alignment) return ENOMEM;
    for (int tries = 0; tries < RESERVE_TRIES; tries++) {
        void *found = VirtualAlloc(NULL, size, MEM_RESERVE, PAGE_NOACCESS);
        if (found == NULL) return error_of(GetLastError());
        if (((uintptr_t)found & (alignment - 1)) != 0) {
            (void)VirtualFree(found, 0, MEM_RELEASE);
            found = VirtualAlloc(NULL, size + alignment, MEM_RESERVE, PAGE_NOACCESS);
            if (found == NULL) return error_of(GetLastError());
            (void)VirtualFree(found, 0, MEM_RELEASE);
            uintptr_t aligned = ((uintptr_t)found + (alignment - 1)) & ~((uintptr_t)alignment - 1);
            found = VirtualAlloc((void *)aligned, size, MEM_RESERVE, PAGE_NOACCESS);
        }
        *address = found;
        if (found != NULL) return 0;
    }
    return ENOMEM;
}

static int windows_map_huge(size_t size, size_t huge_size, void **address) {
    /* The privilege "Lock pages in memory" is the user's to have and the program's to enable: a library does not. */
    if (GetLargePageMinimum() != huge_size) return FA_OS_UNSUPPORTED;
    *address = VirtualAlloc(NULL, size, MEM_RESERVE | MEM_COMMIT | MEM_LARGE_PAGES, PAGE_READWRITE);
    return *address != NULL ? 0 : error_of(GetLastError());
}

/* Whether any page of the reservation that begins at `base` is committed. */
static bool is_in_use(const void *base) {
    const unsigned char *at = base;
    MEMORY_BASIC_INFORMATION info;
    while (VirtualQuery(at, &info, sizeof info) == sizeof info && info.AllocationBase == base) {
        if (info.State == MEM_COMMIT) return true;
        at = (const unsigned char *)info.BaseAddress + info.RegionSize;
    }
    return false;
}

/* The part of [address, end) that lies in one reservation: gives it back, and with the last part the reservation. */
static int release_part(unsigned char *address, unsigned char *end, unsigned char **next) {
    static SRWLOCK lock = SRWLOCK_INIT; /* or two threads that release the last two parts would both see the other's */
    MEMORY_BASIC_INFORMATION info;
    if (VirtualQuery(address, &info, sizeof info) != sizeof info || info.State == MEM_FREE) return EINVAL;
    unsigned char *base = info.AllocationBase, *at = address;
    while (at < end && VirtualQuery(at, &info, sizeof info) == sizeof info && info.AllocationBase == base)
        at = (unsigned char *)info.BaseAddress + info.RegionSize;
    bool to_its_end = at <= end;
    *next = at < end ? at : end;
    if (base == address && to_its_end && !(VirtualQuery(at, &info, sizeof info) == sizeof info && info.AllocationBase == base))
        return result_of(VirtualFree(base, 0, MEM_RELEASE));
    AcquireSRWLockExclusive(&lock);
    int error = result_of(VirtualFree(address, (size_t)(*next - address), MEM_DECOMMIT));
    if (error == 0 && !is_in_use(base)) error = result_of(VirtualFree(base, 0, MEM_RELEASE));
    ReleaseSRWLockExclusive(&lock);
    return error;
}

static int windows_release(void *address, size_t size) {
    unsigned char *at = address, *end = at + size;
    int error = 0;
    while (at < end && error == 0) error = release_part(at, end, &at);
    return error;
}

static int windows_commit(void *address, size_t size) {
    return VirtualAlloc(address, size, MEM_COMMIT, PAGE_READWRITE) != NULL ? 0 : error_of(GetLastError());
}

/*
 * The commit charge is kept: a page that was decommitted might not be had again, and the contract says that the addresses stay
 * readable. What was reset reads as it was left or as zeros: both are zeros. VirtualUnlock of what is not locked
 * takes it out of the working set; it would unlock what is, and so locked memory must not be given here.
 */
static int decommit_part(unsigned char *address, size_t size, DWORD protection) {
    DWORD before;
    bool closed = protection != PAGE_READWRITE;
    if (closed && !VirtualProtect(address, size, PAGE_READWRITE, &before)) return error_of(GetLastError());
    memset(address, 0, size);
    int error = VirtualAlloc(address, size, MEM_RESET, PAGE_READWRITE) != NULL ? 0 : error_of(GetLastError());
    if (closed && !VirtualProtect(address, size, protection, &before) && error == 0) error = error_of(GetLastError());
    (void)VirtualUnlock(address, size);
    return error;
}

static int windows_decommit(void *address, size_t size) {
    unsigned char *at = address, *end = at + size;
    int error = 0;
    while (at < end && error == 0) { /* pieces that may be used in the same way, and may go on being used so */
        MEMORY_BASIC_INFORMATION info;
        if (VirtualQuery(at, &info, sizeof info) != sizeof info || info.State != MEM_COMMIT) return EINVAL;
        unsigned char *stop = (unsigned char *)info.BaseAddress + info.RegionSize;
        if (stop > end) stop = end;
        error = decommit_part(at, (size_t)(stop - at), info.Protect);
        at = stop;
    }
    return error;
}

static int windows_remap(void *address, size_t old_size, size_t new_size, void **moved) {
    (void)address, (void)old_size, (void)new_size, (void)moved;
    return FA_OS_UNSUPPORTED;
}

static int windows_protect(void *address, size_t size, fa_os_access access) {
    DWORD before, after = access == FA_OS_NONE ? PAGE_NOACCESS : access == FA_OS_READ ? PAGE_READONLY : PAGE_READWRITE;
    return result_of(VirtualProtect(address, size, after, &before));
}

/* What a process may lock is bounded by the minimum of its working set, 200 KiB at first, which it may raise itself. */
static int windows_lock(void *address, size_t size) {
    int error = result_of(VirtualLock(address, size));
    if (error != ENOMEM) return error;
    SIZE_T least, most;
    HANDLE process = GetCurrentProcess();
    if (!GetProcessWorkingSetSize(process, &least, &most) || size > SIZE_MAX / 4 || least > SIZE_MAX / 4) return error;
    SIZE_T raised = least + size + (SIZE_T)(16 * windows_page_size()); /* a few for what is locked already */
    if (!SetProcessWorkingSetSize(process, raised, most > raised ? most : raised * 2)) return error;
    return result_of(VirtualLock(address, size));
}

static int windows_unlock(void *address, size_t size) { return result_of(VirtualUnlock(address, size)); }

static uint64_t windows_lock_limit(void) {
    SIZE_T least, most;
    return GetProcessWorkingSetSize(GetCurrentProcess(), &least, &most) ? (uint64_t)least : 0;
}

/* Crash dumps take all of a process or only stacks; WerRegisterExcludedMemoryBlock is heeded by error reports alone. */
static int unsupported(void *address, size_t size) {
    (void)address, (void)size;
    return FA_OS_UNSUPPORTED;
}

static int windows_resident(void *address, size_t size, uint64_t *bytes) {
    PSAPI_WORKING_SET_EX_INFORMATION pages[512];
    const size_t most = sizeof pages / sizeof *pages, page = windows_page_size();
    unsigned char *at = address, *end = at + size;
    *bytes = 0;
    while (at < end) {
        size_t count = (size_t)(end - at) / page < most ? (size_t)(end - at) / page : most;
        for (size_t i = 0; i < count; i++) pages[i].VirtualAddress = at + i * page;
        if (!K32QueryWorkingSetEx(GetCurrentProcess(), pages, (DWORD)(count * sizeof *pages)))
            return error_of(GetLastError());
        for (size_t i = 0; i < count; i++) *bytes += pages[i].VirtualAttributes.Valid ? page : 0;
        at += count * page;
    }
    return 0;
}

/* No process is a copy of another: there is nothing to run the functions at. */
static int windows_at_fork(void (*prepare)(void), void (*parent)(void), void (*child)(void)) {
    (void)prepare, (void)parent, (void)child;
    return 0;
}

static int windows_random(void *bytes, size_t size) {
    for (size_t done = 0; done < size;) {
        ULONG step = size - done < (1U << 20) ? (ULONG)(size - done) : 1U << 20;
        if (!SystemFunction036((unsigned char *)bytes + done, step)) return EIO;
        done += step;
    }
    return 0;
}

/* Fibers' keys: their function is run when a thread ends, too. */
static int windows_make_exit_key(void (*ending)(void *), unsigned *key) {
    DWORD made = FlsAlloc((PFLS_CALLBACK_FUNCTION)(void (*)(void))ending);
    if (made == FLS_OUT_OF_INDEXES) return ENOMEM;
    *key = made;
    return 0;
}

static int windows_set_exit_value(unsigned key, void *value) { return result_of(FlsSetValue(key, value)); }

static void *windows_exit_value(unsigned key) { return FlsGetValue(key); }

static int windows_fence_threads(bool prepare) {
    if (!prepare) FlushProcessWriteBuffers();
    return 0;
}

static uint64_t windows_milliseconds(void) { return GetTickCount64(); }

static void windows_yield(void) { (void)SwitchToThread(); }

/* Not malloc: what free would be given does not say how it was aligned. */
static void *windows_heap_alloc(size_t size, size_t alignment) {
    return _aligned_malloc(size, alignment > 2 * sizeof(void *) ? alignment : 2 * sizeof(void *));
}

static void windows_heap_free(void *block) { _aligned_free(block); }

static void windows_report(const char *text, size_t size) {
    HANDLE errors = GetStdHandle(STD_ERROR_HANDLE);
    DWORD written;
    (void)WriteFile(errors, text, (DWORD)size, &written, NULL); /* nowhere left to complain */
}

static void windows_abort(void) { abort(); }

static const fa_os windows_os = {
    .name = "windows",
    .lazy_commit = false,
    .traps = true,
    .page_size = windows_page_size,
    .reserve = windows_reserve,
    .map_huge = windows_map_huge,
    .release = windows_release,
    .commit = windows_commit,
    .decommit = windows_decommit,
    .remap = windows_remap,
    .protect = windows_protect,
    .map_secret = unsupported,
    .unmap_secret = unsupported,
    .reserve_at = unsupported,
    .lock = windows_lock,
    .unlock = windows_unlock,
    .lock_limit = windows_lock_limit,
    .no_dump = unsupported,
    .wipe_on_fork = unsupported,
    .advise_huge = unsupported,
    .resident = windows_resident,
    .at_fork = windows_at_fork,
    .random = windows_random,
    .make_exit_key = windows_make_exit_key,
    .set_exit_value = windows_set_exit_value,
    .exit_value = windows_exit_value,
    .fence_threads = windows_fence_threads,
    .milliseconds = windows_milliseconds,
    .yield = windows_yield,
    .heap_alloc = windows_heap_alloc,
    .heap_free = windows_heap_free,
    .report = windows_report,
    .abort = windows_abort,
};

const fa_os *fa_os_platform(void) { return &windows_os; }
