/*
 * mem/canary.h - bytes around a block that tell when somebody writes where nothing is his
 *
 *     | data ............. | c a n a r y c a n a r y c | next
 *
 * A canary is 16 bytes of two secret words and of the address it belongs to, repeated to any length: one copied from
 * elsewhere is none. No byte is 0: a terminator too many, the most common overrun, always shows. Any other single byte is the right
 * one by chance in one case of 128.
 * And zeros, of which freed memory is made where it is checked before it is used again.
 *
 * Thread rule: the owner's; the secret is written once. Cost: a multiplication; 16 bytes to a step of filling or checking.
 */
#ifndef FA_MEM_CANARY_H
#define FA_MEM_CANARY_H

#include "base.h"
#include "os/os.h"

#include <string.h>

#define FA_CANARY ((size_t)16)

/* A secret, or the canary of an address. */
typedef struct fa_canary {
    uint64_t word[2];
} fa_canary;

/* A secret that nobody can guess, or the error of the system. */
static inline int fa_canary_draw(fa_canary *secret, const fa_os *os) { return os->random(secret, sizeof *secret); }

static inline fa_canary fa_canary_of(const fa_canary *secret, const void *address) {
    const uint64_t no_zeros = 0x0101010101010101U;
    uint64_t place = (uint64_t)(uintptr_t)address * 0x9E3779B97F4A7C15U;
    return (fa_canary){{(secret->word[0] ^ place) | no_zeros, (secret->word[1] + place) | no_zeros}};
}

static inline void fa_canary_fill(const fa_canary *canary, void *memory, size_t size) {
    unsigned char *at = memory;
    for (; size >= FA_CANARY; at += FA_CANARY, size -= FA_CANARY) memcpy(at, canary, FA_CANARY);
    if ((size & 8) != 0) memcpy(at, &canary->word[0], 8);
    const unsigned char *rest = (const unsigned char *)canary + (size & 8);
    at += size & 8;
    for (size_t i = 0; i < (size & 7); i++) at[i] = rest[i];
}

/* True if the bytes are what fa_canary_fill put there. */
static inline bool fa_canary_holds(const fa_canary *canary, const void *memory, size_t size) {
    const unsigned char *at = memory;
    uint64_t word[2], damage = 0;
    for (; size >= FA_CANARY; at += FA_CANARY, size -= FA_CANARY) {
        memcpy(word, at, FA_CANARY);
        damage |= (word[0] ^ canary->word[0]) | (word[1] ^ canary->word[1]);
    }
    if ((size & 8) != 0) {
        memcpy(word, at, 8);
        damage |= word[0] ^ canary->word[0];
    }
    const unsigned char *rest = (const unsigned char *)canary + (size & 8);
    at += size & 8;
    for (size_t i = 0; i < (size & 7); i++) damage |= (uint64_t)(at[i] ^ rest[i]);
    return damage == 0;
}

static inline uint64_t fa_load_word(const unsigned char *at) {
    uint64_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

/* True if every byte is 0. */
static inline bool fa_is_zero(const void *memory, size_t size) {
    const unsigned char *at = memory;
    uint64_t found = 0;
    for (; size >= 32; at += 32, size -= 32)
        found |= fa_load_word(at) | fa_load_word(at + 8) | fa_load_word(at + 16) | fa_load_word(at + 24);
    for (; size >= 8; at += 8, size -= 8) found |= fa_load_word(at);
    for (; size > 0; at++, size--) found |= *at;
    return found == 0;
}

#endif
