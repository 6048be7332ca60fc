/*
 * tap.h - the whole test framework
 *
 *     TEST(an_arena_hands_out_aligned_blocks) {
 *         CHECK(block != NULL);
 *     }
 *     int main(int argc, char **argv) { return tap_main(argc, argv); }
 *
 * A program prints TAP, one line per TEST. `--list` names them, `--only NAME` runs one of them; tests/test_native.py
 * makes each a test of pytest by finding the word TEST at the start of a line.
 *
 * A CHECK that fails ends its test. On a thread of the test's own it is noted and the thread goes on.
 *
 * WebAssembly has no longjmp: there what ends a test early ends the program, after its line. Run one at a time (--only).
 */
#ifndef TAP_H
#define TAP_H

#if !defined(__wasm__)
#include <setjmp.h>
#endif
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct tap_case {
    const char *name;
    void (*run)(void);
    struct tap_case *next;
} tap_case;

static tap_case *tap_first, **tap_last = &tap_first;
static volatile bool tap_failed;
static const char *volatile tap_skip_reason;
static const tap_case *tap_current;
static int tap_number;
static _Thread_local bool tap_is_running; /* on this thread: may it jump to tap_end? */

static void tap_register(tap_case *new_case) {
    *tap_last = new_case;
    tap_last = &new_case->next;
}

static void tap_print(void) {
    printf("%sok %d - %s", tap_failed ? "not " : "", tap_number, tap_current->name);
    if (tap_skip_reason != NULL) printf(" # SKIP %s", tap_skip_reason);
    printf("\n");
    fflush(stdout);
}

#if defined(__wasm__)
static bool tap_begins(void) { return true; }
static void tap_leave(void) {
    tap_print();
    exit(tap_failed ? 1 : 0);
}
#else
static jmp_buf tap_end;
#define tap_begins() (setjmp(tap_end) == 0)
static void tap_leave(void) { longjmp(tap_end, 1); }
#endif

static void tap_check(bool condition, const char *text, const char *file, int line) {
    if (condition) return;
    printf("# %s:%d: %s\n", file, line, text);
    fflush(stdout);
    tap_failed = true;
    if (tap_is_running) tap_leave();
}

__attribute__((unused)) static void tap_skip(const char *reason) {
    tap_skip_reason = reason;
    tap_leave();
}

#define CHECK(condition) tap_check((condition), #condition, __FILE__, __LINE__)
#define SKIP(reason) tap_skip(reason)
#define SKIP_IF(condition, reason)                                                                                     \
    do {                                                                                                               \
        if (condition) tap_skip(reason);                                                                               \
    } while (0)

#define TEST(title)                                                                                                    \
    static void test_##title(void);                                                                                    \
    __attribute__((constructor)) static void tap_register_##title(void) {                                              \
        static tap_case this_case = {#title, test_##title, NULL};                                                      \
        tap_register(&this_case);                                                                                      \
    }                                                                                                                  \
    static void test_##title(void)

static bool tap_run(const tap_case *one, int number) {
    tap_failed = false;
    tap_skip_reason = NULL;
    tap_current = one;
    tap_number = number;
    tap_is_running = true;
    if (tap_begins()) one->run();
    tap_is_running = false;
    tap_print();
    return !tap_failed;
}

static int tap_main(int argc, char **argv) {
    const char *only = argc == 3 && strcmp(argv[1], "--only") == 0 ? argv[2] : NULL;
    const bool list = argc == 2 && strcmp(argv[1], "--list") == 0;
    if (argc > 1 && only == NULL && !list) {
        fprintf(stderr, "usage: %s [--list | --only NAME]\n", argv[0]);
        return 2;
    }
    int count = 0;
    bool passed = true;
    for (const tap_case *one = tap_first; one != NULL; one = one->next) {
        if (only != NULL && strcmp(only, one->name) != 0) continue;
        count++;
        if (list) {
            printf("%s\n", one->name);
        } else {
            passed &= tap_run(one, count);
        }
    }
    if (!list) printf("1..%d\n", count);
    return passed && count > 0 ? 0 : 1;
}

#endif
