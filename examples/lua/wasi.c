/*
 * wasi.c - what Lua 5.4.8 calls and WASI does not have
 *
 *     tmpfile, system      there are no temporary files and no processes: they fail, and io.tmpfile() and os.execute() say so
 *     __c_longjmp          the exception that longjmp throws; zig's C library only refers to it
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

FILE *tmpfile(void) {
    errno = ENOTSUP;
    return NULL;
}

int system(const char *command) {
    errno = ENOTSUP;
    return command == NULL ? 0 : -1;
}

__asm__(".globl __c_longjmp\n.tagtype __c_longjmp i32\n__c_longjmp:\n");
