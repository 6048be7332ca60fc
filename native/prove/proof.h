/*
 * proof.h - how a proof is written; arithmetic.py runs them
 *
 *     PROOF(name) {
 *         const size_t value = ANY;        an unknown of 64 bits
 *         ASSUME(value > 0);               what callers promise
 *         ...                              calls of the library's own functions
 *         SHOW(result >= value);           what must hold, whatever the unknowns are
 *         PROVED;
 *     }
 *
 * A file of proofs includes the source it is about, so that static functions are in reach, and is compiled as users compile
 * (-O2): what is proved is the machine code, the compiler's reading of the source included. Each PROOF runs with unknown
 * inputs through angr, and on every path the solver is asked whether a SHOW can fail. arithmetic.py also makes the mutations
 * that stand before a proof (file, - what is there, + what it becomes), one at a time, and each must be refuted: a proof that
 * cannot fail proves nothing.
 */
#ifndef PROOF_H
#define PROOF_H

#include <stddef.h>
#include <stdint.h>

#define PROOF(name)                                                                                                    \
    uint64_t prove_##name(const uint64_t *in);                                                                         \
    static void about_##name(const uint64_t *in, uint64_t each, uint64_t *broken);                                     \
    uint64_t prove_##name(const uint64_t *in) {                                                                        \
        uint64_t broken = 0;                                                                                           \
        about_##name(in + 1, in[0], &broken);                                                                          \
        return broken;                                                                                                 \
    }                                                                                                                  \
    static void about_##name(const uint64_t *in, uint64_t each, uint64_t *broken)
#define ANY (*in++)
/* Each number below `count` in turn: a proof for few known values may be quick where one for an unknown is not. */
#define EACH(count) (each)
#define ASSUME(condition)                                                                                              \
    if (!(condition)) return
/* A bit, not a branch: each branch doubles the paths. A bit of its own, because the solver is asked for one at a time; with
 * more than 64 the first come round again. */
#define SHOW(condition) (*broken = (*broken << 1 | *broken >> 63) | !(condition))
#define PROVED return

#endif
