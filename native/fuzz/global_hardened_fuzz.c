/*
 * global_hardened_fuzz.c - global_fuzz.c on a hardened heap: whatever a program without misuse does, nothing is found
 */
#define HARDENED true
#include "global_fuzz.c"
