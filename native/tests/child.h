/*
 * child.h - run something in a forked child and see how it ends (POSIX)
 */
#ifndef CHILD_H
#define CHILD_H

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tap.h"

typedef struct child_end {
    int exit_status; /* -1 if a signal ended it */
    int signal;      /* 0 if it exited */
    char errors[4096];
} child_end;

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
        signal(SIGSEGV, SIG_DFL);
        signal(SIGBUS, SIG_DFL);
        signal(SIGABRT, SIG_DFL);
        const int result = run(argument);
        fflush(stdout);
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
    close(ends[0]);
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    if (WIFEXITED(status)) end.exit_status = WEXITSTATUS(status);
    if (WIFSIGNALED(status)) end.signal = WTERMSIG(status);
    return end;
}

#endif
