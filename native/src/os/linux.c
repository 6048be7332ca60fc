/*
 * os/linux.c - the contract of os.h on Linux
 *
 *     reserve   mmap(PROT_NONE, MAP_NORESERVE), cut to the alignment     commit    mprotect(READ|WRITE)
 *     decommit  madvise(DONTNEED)                                        remap     mremap(MAYMOVE)
 *     move      mremap(MAYMOVE, FIXED)                                   fence_threads  membarrier(PRIVATE_EXPEDITED)
 *     lock      mlock       no_dump  madvise(DONTDUMP)                   wipe_on_fork  madvise(WIPEONFORK)
 *     protect   mprotect    random   getrandom                           map_secret    memfd_secret, DONTFORK
 *
 * Private anonymous memory only, so that a decommit leaves zeros and WIPEONFORK is allowed. MAP_NORESERVE: an arena's
 * capacity is address space; under vm.overcommit_memory = 2 the kernel charges it all the same, and a large capacity
 * may then be refused.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "os.h"

#include <fcntl.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef MAP_HUGE_SHIFT
#define MAP_HUGE_SHIFT 26
#endif
#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif
#ifndef SYS_memfd_secret /* the same on every architecture that has it */
#define SYS_memfd_secret 447
#endif

/* Runs a system call and turns its failure into an errno value, leaving the caller's errno alone. */
#define FA_CALL(expression)                                                                                            \
    do {                                                                                                               \
        int caller_errno = errno;                                                                                      \
        int result = (expression) == 0 ? 0 : errno;                                                                    \
        errno = caller_errno;                                                                                          \
        return result;                                                                                                 \
    } while (0)

static size_t linux_page_size(void) { return (size_t)sysconf(_SC_PAGESIZE); }

static int map(size_t size, int protection, int flags, void **address) {
    int caller_errno = errno;
    void *mapped = mmap(NULL, size, protection, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    int result = mapped == MAP_FAILED ? errno : 0;
    errno = caller_errno;
    *address = result == 0 ? mapped : NULL;
    return result;
}

static int linux_release(void *address, size_t size) { FA_CALL(munmap(address, size)); }

static int linux_reserve(size_t size, size_t alignment, void **address) {
    size_t page = linux_page_size();
    size_t spare = alignment > page ? alignment - page : 0;
    if (size > SIZE_MAX - spare) return ENOMEM;
    void *mapped;
    int error = map(size + spare, PROT_NONE, MAP_NORESERVE, &mapped);
    if (error != 0) return error;
    uintptr_t start = ((uintptr_t)mapped + (alignment - 1)) & ~((uintptr_t)alignment - 1);
    size_t before = start - (uintptr_t)mapped;
    size_t after = spare - before;
    unsigned char *aligned = (unsigned char *)mapped + before;
    if (before > 0) error = linux_release(mapped, before);
    if (error == 0 && after > 0) error = linux_release(aligned + size, after);
    if (error != 0) {
        (void)linux_release(mapped, size + spare); /* the first error is the one to tell */
        return error;
    }
    *address = aligned;
    return 0;
}

static int linux_map_huge(size_t size, size_t huge_size, void **address) {
    int log2 = __builtin_ctzll((unsigned long long)huge_size);
    return map(size, PROT_READ | PROT_WRITE, MAP_HUGETLB | (int)((unsigned)log2 << MAP_HUGE_SHIFT), address);
}

static int linux_commit(void *address, size_t size) { FA_CALL(mprotect(address, size, PROT_READ | PROT_WRITE)); }

static int linux_decommit(void *address, size_t size) { FA_CALL(madvise(address, size, MADV_DONTNEED)); }

static int linux_remap(void *address, size_t old_size, size_t new_size, void **moved) {
    int caller_errno = errno;
    void *result = mremap(address, old_size, new_size, MREMAP_MAYMOVE);
    int error = result == MAP_FAILED ? errno : 0;
    errno = caller_errno;
    if (error == 0) *moved = result;
    return error;
}

static int linux_protect(void *address, size_t size, fa_os_access access) {
    int flags = access == FA_OS_NONE ? PROT_NONE : access == FA_OS_READ ? PROT_READ : PROT_READ | PROT_WRITE;
    FA_CALL(mprotect(address, size, flags));
}

/* Maps over what is there: inaccessible again, and charged to nothing. */
static int linux_unmap_secret(void *address, size_t size) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED;
    FA_CALL(mmap(address, size, PROT_NONE, flags, -1, 0) == MAP_FAILED);
}

static int linux_reserve_at(void *address, size_t size) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
    int caller_errno = errno;
    void *mapped = mmap(address, size, PROT_NONE, flags, -1, 0);
    int error = mapped == MAP_FAILED ? errno : 0;
    if (error == 0 && mapped != address) { /* kernels before 4.17 take the address for a hint */
        (void)munmap(mapped, size);
        error = EEXIST;
    }
    errno = caller_errno;
    return error;
}

/*
 * A file for each piece: the mapping keeps it, so no descriptor stays open for others to inherit or to close. Mapped
 * elsewhere and then moved: a MAP_FIXED that the limit forbids was seen to leave a hole where the reservation had been.
 * A child that another thread forks meanwhile has the file, or the first mapping: nothing makes those private from birth, and
 * a lock that fork handlers take would have to come after all those that are held here (docs/secrets.md).
 */
static int linux_map_secret(void *address, size_t size) {
    int caller_errno = errno, error = 0;
    void *mapped = MAP_FAILED;
    if (size > PTRDIFF_MAX) return ENOMEM; /* than which off_t may have no more bits */
    int file = (int)syscall(SYS_memfd_secret, O_CLOEXEC);
    if (file >= 0 && ftruncate(file, (off_t)size) == 0)
        mapped = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (mapped == MAP_FAILED) {
        error = errno == ENOSYS ? FA_OS_UNSUPPORTED : errno;
    } else if (madvise(mapped, size, MADV_DONTFORK) != 0 || /* shared with a child is not secret */
               mremap(mapped, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, address) == MAP_FAILED) {
        error = errno;
        (void)munmap(mapped, size); /* the first error is the one to tell */
        (void)linux_reserve_at(address, size);
    }
    if (file >= 0) (void)close(file);
    errno = caller_errno;
    return error;
}

/* Whether this kernel moves several mappings at once, as Linux does from 6.17 on. Asked once, with two pages of our own. */
static bool moves_several(void) {
    static _Atomic int known; /* 1: yes, 2: no */
    if (known == 0) {
        size_t page = linux_page_size();
        char *pair = mmap(NULL, 4 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (pair == MAP_FAILED) return false;
        bool two = mprotect(pair, page, PROT_READ | PROT_WRITE) == 0;
        bool moved = two && mremap(pair, 2 * page, 2 * page, MREMAP_MAYMOVE | MREMAP_FIXED, pair + 2 * page) != MAP_FAILED;
        (void)munmap(moved ? pair + 2 * page : pair, 2 * page); /* the other two have gone with the move, or the attempt */
        if (!two) (void)munmap(pair + 2 * page, 2 * page);
        else known = moved ? 1 : 2;
    }
    return known == 1;
}

/* Asks it to grow over the main stack, which changes nothing: the errors differ. */
static bool is_one_mapping(void *address, size_t size) {
    size_t page = linux_page_size();
    uintptr_t start = (uintptr_t)address, stack = getauxval(AT_RANDOM) & ~(uintptr_t)(page - 1);
    return stack > start && mremap(address, size, stack - start + page, 0) == MAP_FAILED && errno != EFAULT;
}

/*
 * Older kernels refuse to move several mappings, but have unmapped the destination by then: a hole, in which another thread may
 * map something before it is closed. So it is not tried there.
 */
static int linux_move(void *address, size_t size, void *to) {
    int caller_errno = errno, error = EFAULT;
    if (is_one_mapping(address, size) || moves_several()) {
        error = mremap(address, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED ? errno : 0;
        if (error != 0) /* out of memory: the destination may be gone all the same */
            (void)mmap(to, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
    }
    errno = caller_errno;
    return error;
}

static int linux_lock(void *address, size_t size) { FA_CALL(mlock(address, size)); }

static int linux_unlock(void *address, size_t size) { FA_CALL(munlock(address, size)); }

static uint64_t linux_lock_limit(void) {
    struct rlimit limit;
    int caller_errno = errno;
    int error = getrlimit(RLIMIT_MEMLOCK, &limit);
    errno = caller_errno;
    if (error != 0) return 0;
    return limit.rlim_cur == RLIM_INFINITY ? UINT64_MAX : (uint64_t)limit.rlim_cur;
}

static int linux_no_dump(void *address, size_t size) { FA_CALL(madvise(address, size, MADV_DONTDUMP)); }

static int linux_wipe_on_fork(void *address, size_t size) { FA_CALL(madvise(address, size, MADV_WIPEONFORK)); }

static int linux_advise_huge(void *address, size_t size) { FA_CALL(madvise(address, size, MADV_HUGEPAGE)); }

static int linux_resident(void *address, size_t size, uint64_t *bytes) {
    unsigned char pages[4096]; /* one byte a page: 16 MiB of 4 KiB pages a call */
    size_t page = linux_page_size();
    int caller_errno = errno;
    int error = 0;
    *bytes = 0;
    for (size_t done = 0; done < size && error == 0;) {
        size_t step = sizeof pages * page;
        if (step > size - done) step = size - done;
        error = mincore((unsigned char *)address + done, step, pages) == 0 ? 0 : errno;
        for (size_t i = 0; error == 0 && i < step / page; i++) *bytes += (pages[i] & 1) ? page : 0;
        done += step;
    }
    errno = caller_errno;
    return error;
}

static int linux_at_fork(void (*prepare)(void), void (*parent)(void), void (*child)(void)) {
    return pthread_atfork(prepare, parent, child);
}

static int linux_random(void *bytes, size_t size) {
    int caller_errno = errno, error = 0;
    for (size_t done = 0; done < size && error == 0;) {
        ssize_t got = getrandom((unsigned char *)bytes + done, size - done, 0);
        if (got > 0) done += (size_t)got;
        else if (errno != EINTR) error = errno;
    }
    errno = caller_errno;
    return error;
}

static int linux_make_exit_key(void (*ending)(void *), unsigned *key) {
    pthread_key_t made;
    int error = pthread_key_create(&made, ending);
    if (error == 0) *key = (unsigned)made;
    return error;
}

static int linux_set_exit_value(unsigned key, void *value) { return pthread_setspecific((pthread_key_t)key, value); }

static void *linux_exit_value(unsigned key) { return pthread_getspecific((pthread_key_t)key); }

/* linux/membarrier.h */
#define PRIVATE_EXPEDITED (1 << 3)
#define REGISTER_PRIVATE_EXPEDITED (1 << 4)

static int linux_fence_threads(bool prepare) {
#if defined(SYS_membarrier)
    FA_CALL(syscall(SYS_membarrier, prepare ? REGISTER_PRIVATE_EXPEDITED : PRIVATE_EXPEDITED, 0));
#else
    (void)prepare;
    return FA_OS_UNSUPPORTED;
#endif
}

static uint64_t linux_milliseconds(void) {
    struct timespec now;
    if (clock_gettime(CLOCK_MONOTONIC_COARSE, &now) != 0) return 0;
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static void linux_yield(void) { (void)sched_yield(); }

static void *linux_heap_alloc(size_t size, size_t alignment) {
    if (alignment <= _Alignof(max_align_t)) return malloc(size);
    void *block = NULL;
    return posix_memalign(&block, alignment, size) == 0 ? block : NULL;
}

static void linux_heap_free(void *block) { free(block); }

static size_t linux_heap_usable(const void *block) { return malloc_usable_size((void *)(uintptr_t)block); }

static void linux_report(const char *text, size_t size) {
    while (size > 0) {
        ssize_t written = write(STDERR_FILENO, text, size);
        if (written <= 0) return; /* nowhere left to complain */
        text += written;
        size -= (size_t)written;
    }
}

static void linux_abort(void) { abort(); }

static const fa_os linux_os = {
    .name = "linux",
    .lazy_commit = true,
    .traps = true,
    .page_size = linux_page_size,
    .reserve = linux_reserve,
    .map_huge = linux_map_huge,
    .release = linux_release,
    .commit = linux_commit,
    .decommit = linux_decommit,
    .remap = linux_remap,
    .move = linux_move,
    .protect = linux_protect,
    .map_secret = linux_map_secret,
    .unmap_secret = linux_unmap_secret,
    .reserve_at = linux_reserve_at,
    .lock = linux_lock,
    .unlock = linux_unlock,
    .lock_limit = linux_lock_limit,
    .no_dump = linux_no_dump,
    .wipe_on_fork = linux_wipe_on_fork,
    .advise_huge = linux_advise_huge,
    .resident = linux_resident,
    .at_fork = linux_at_fork,
    .random = linux_random,
    .make_exit_key = linux_make_exit_key,
    .set_exit_value = linux_set_exit_value,
    .exit_value = linux_exit_value,
    .fence_threads = linux_fence_threads,
    .milliseconds = linux_milliseconds,
    .yield = linux_yield,
    .heap_alloc = linux_heap_alloc,
    .heap_free = linux_heap_free,
    .heap_usable = linux_heap_usable,
    .report = linux_report,
    .abort = linux_abort,
};

const fa_os *fa_os_platform(void) { return &linux_os; }
