/*
 * global_run.c - runs a program some times on a preloaded malloc, and says what each run cost
 *
 *     global_run TIMES [LIBRARY] -- PROGRAM ARGUMENTS...
 *
 * For each run a line of JSON on stderr: wall, user and system seconds, page faults, peak resident bytes. The program keeps
 * stdin and stdout. A program that fails ends the runs with its exit code.
 *
 * Why not from Python: the kernel counts a child's peak from before it becomes the program, so it is never below its
 * parent's memory. This parent has none to speak of. The loader preloads only into the program.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double seconds(struct timeval time) { return (double)time.tv_sec + (double)time.tv_usec * 1e-6; }

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

int main(int argc, char **argv) {
    char *const *program = argv + (argc > 2 && strcmp(argv[2], "--") == 0 ? 3 : 4);
    char *end;
    long times = argc > 3 ? strtol(argv[1], &end, 10) : 0;
    if (times < 1 || *end != '\0' || program >= argv + argc) {
        fputs("usage: global_run TIMES [LIBRARY] -- PROGRAM ARGUMENTS...\n", stderr);
        return 2;
    }
    for (long n = 0; n < times; n++) {
        double start = now();
        pid_t child = vfork();
        if (child == 0) {
            if (program == argv + 4) setenv("LD_PRELOAD", argv[2], 1); /* our own copy is not needed again */
            execvp(program[0], program);
            _exit(127);
        }
        int status = 0;
        struct rusage usage;
        if (child < 0 || wait4(child, &status, 0, &usage) != child) {
            perror("global_run");
            return 1;
        }
        double wall = now() - start;
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
            fprintf(stderr, "global_run: %s: status %#x\n", program[0], (unsigned)status);
            return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        }
        fprintf(stderr, "{\"wall\": %.6f, \"user\": %.6f, \"system\": %.6f, \"faults\": %ld, \"peak\": %lld}\n", wall,
                seconds(usage.ru_utime), seconds(usage.ru_stime), usage.ru_minflt + usage.ru_majflt,
                (long long)usage.ru_maxrss * 1024);
    }
    return 0;
}
