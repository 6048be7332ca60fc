/*
 * child.h - run something in a forked child and see how it ends
 *
 * Windows has no fork: there the function runs in the test's own process, and what would have ended a child (a fault, abort)
 * is caught. What it allocated is lost, and what it changed stays changed: tests of fork itself look at HAS_FORK.
 * WebAssembly cannot catch what ends a program: there the test is skipped.
 */
#ifndef CHILD_H
#define CHILD_H

#include "tap.h"

#if defined(_WIN32)
#define HAS_FORK false
#include <fcntl.h>
#include <io.h>
#include <setjmp.h>
#include <signal.h>
#include <windows.h>
#elif defined(__wasm__)
#define HAS_FORK false
#define SIGABRT 6
#define SIGSEGV 11
#define SIGBUS 7
#else
#define HAS_FORK true
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
#endif
#define NO_FORK "there is no fork here"

/* Counts of lines, which only exit writes: a child ends otherwise. */
#if defined(FA_COVERAGE)
void __gcov_dump(void);
static inline void write_counts(void) { __gcov_dump(); }
#else
static inline void write_counts(void) {}
#endif

typedef struct child_end {
    int exit_status; /* -1 if a signal ended it */
    int signal;      /* 0 if it exited */
    char errors[4096];
} child_end;

#if defined(_WIN32)

#define SIGBUS SIGSEGV
static jmp_buf child_died;
static volatile int child_signal;

static void child_abort(int number) {
    child_signal = number;
    longjmp(child_died, 1);
}
static void child_fault(void) { child_abort(SIGSEGV); }

/* The program goes on in child_fault, as if it had called it: leaving from here would keep the system's locks. */
static LONG CALLBACK child_catch(EXCEPTION_POINTERS *what) {
    if (what->ExceptionRecord->ExceptionCode != EXCEPTION_ACCESS_VIOLATION) return EXCEPTION_CONTINUE_SEARCH;
    what->ContextRecord->Rsp = (what->ContextRecord->Rsp & ~(DWORD64)15) - 8 - 128;
    what->ContextRecord->Rip = (DWORD64)(uintptr_t)child_fault;
    return EXCEPTION_CONTINUE_EXECUTION;
}

/* Standard error goes to a file meanwhile: the C library's, and the one that WriteFile is given. */
__attribute__((unused)) static child_end run_in_child(int (*run)(void *), void *argument) {
    static child_end end;
    static void *handler;
    static int saved, file;
    static HANDLE errors;
    static char name[MAX_PATH], directory[MAX_PATH];
    end = (child_end){-1, 0, ""};
    CHECK(GetTempPathA(sizeof directory, directory) > 0 && GetTempFileNameA(directory, "fa", 0, name) != 0);
    file = _open(name, _O_RDWR | _O_TRUNC | _O_BINARY | _O_TEMPORARY);
    CHECK(file >= 0);
    fflush(stderr);
    saved = _dup(2);
    errors = GetStdHandle(STD_ERROR_HANDLE);
    _dup2(file, 2);
    SetStdHandle(STD_ERROR_HANDLE, (HANDLE)_get_osfhandle(file));
    handler = AddVectoredExceptionHandler(1, child_catch);
    signal(SIGABRT, child_abort);
    child_signal = 0;
    /* Null: no frames are unwound, for there is no way from the faulty instruction to here that could be. */
    if (_setjmp(child_died, NULL) == 0) end.exit_status = run(argument);
    end.signal = child_signal;
    signal(SIGABRT, SIG_DFL);
    RemoveVectoredExceptionHandler(handler);
    fflush(stderr);
    SetStdHandle(STD_ERROR_HANDLE, errors);
    _dup2(saved, 2);
    _close(saved);
    _lseek(file, 0, SEEK_SET);
    const int read = _read(file, end.errors, sizeof end.errors - 1);
    size_t length = 0;
    for (int i = 0; i < read; i++)
        if (end.errors[i] != '\r') end.errors[length++] = end.errors[i];
    end.errors[length] = '\0';
    _close(file);
    return end;
}

#elif defined(__wasm__)

__attribute__((unused)) static child_end run_in_child(int (*run)(void *), void *argument) {
    (void)run, (void)argument;
    tap_skip("nothing can be caught that ends the program");
    return (child_end){-1, 0, ""};
}

#else

#if defined(FA_COVERAGE)
static void count_and_die(int number) {
    signal(number, SIG_DFL);
    write_counts();
    raise(number);
}
#define CHILD_DEATH count_and_die
#else
#define CHILD_DEATH SIG_DFL
#endif

/* `run` returns the exit status of the child. Its standard error is caught; the sanitizers' signal handlers are off. */
__attribute__((unused)) static child_end run_in_child(int (*run)(void *), void *argument) {
    child_end end = {-1, 0, ""};
    int ends[2];
    fflush(stdout);
    CHECK(pipe(ends) == 0);
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        tap_is_running = false;
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        close(ends[1]);
        setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
        signal(SIGSEGV, CHILD_DEATH);
        signal(SIGBUS, CHILD_DEATH);
        signal(SIGABRT, CHILD_DEATH);
        const int result = run(argument);
        fflush(stdout);
        write_counts();
        _exit(tap_failed ? 99 : result);
    }
    close(ends[1]);
    size_t length = 0;
    for (;;) {
        const ssize_t got = read(ends[0], end.errors + length, sizeof end.errors - 1 - length);
        if (got <= 0) break;
        length += (size_t)got;
    }
    end.errors[length] = '\0';
    char *of_qemu = strstr(end.errors, "qemu: "); /* which adds a line when its program dies */
    if (of_qemu != NULL) *of_qemu = '\0';
    close(ends[0]);
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    if (WIFEXITED(status)) end.exit_status = WEXITSTATUS(status);
    if (WIFSIGNALED(status)) end.signal = WTERMSIG(status);
    return end;
}

#endif

/* All of a test, in a process of its own. */
static inline void passes_in_child(int (*run)(void *), void *argument) {
    SKIP_IF(!HAS_FORK, NO_FORK);
    const child_end end = run_in_child(run, argument);
    if (end.exit_status != 0) printf("# exit %d, signal %d: %s\n", end.exit_status, end.signal, end.errors);
    CHECK(end.exit_status == 0);
}

#endif
