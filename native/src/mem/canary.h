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

/* The eight bytes that stand `position` bytes from where the canary begins. */
static inline uint64_t fa_canary_word(const fa_canary *canary, size_t position) {
    unsigned char bytes[2 * FA_CANARY];
    uint64_t word;
    memcpy(bytes, canary, FA_CANARY);
    memcpy(bytes + FA_CANARY, canary, FA_CANARY);
    memcpy(&word, bytes + position % FA_CANARY, sizeof word);
    return word;
}

/* What is left at the end is done with a word that overlaps what was done before, where there are eight bytes. */
static inline void fa_canary_fill(const fa_canary *canary, void *memory, size_t size) {
    unsigned char *at = memory;
    size_t done = 0;
    for (; size - done >= FA_CANARY; done += FA_CANARY) memcpy(at + done, canary, FA_CANARY);
    if (size - done >= 8) memcpy(at + done, &canary->word[0], 8), done += 8;
    if (done == size) return;
    if (size < 8) {
        memcpy(at, canary, size);
        return;
    }
    const uint64_t last = fa_canary_word(canary, size - 8);
    memcpy(at + size - 8, &last, 8);
}

/* True if the bytes are what fa_canary_fill put there. */
static inline bool fa_canary_holds(const fa_canary *canary, const void *memory, size_t size) {
    const unsigned char *at = memory;
    uint64_t word[2], damage = 0;
    size_t done = 0;
    for (; size - done >= FA_CANARY; done += FA_CANARY) {
        memcpy(word, at + done, FA_CANARY);
        damage |= (word[0] ^ canary->word[0]) | (word[1] ^ canary->word[1]);
    }
    if (size - done >= 8) {
        memcpy(word, at + done, 8);
        damage |= word[0] ^ canary->word[0];
        done += 8;
    }
    if (done == size) return damage == 0;
    if (size < 8) return memcmp(at, canary, size) == 0;
    memcpy(word, at + size - 8, 8);
    return (damage | (word[0] ^ fa_canary_word(canary, size - 8))) == 0;
}

static inline uint64_t fa_load_word(const unsigned char *at) {
    uint64_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

/* Sixteen bytes that may stand anywhere; compilers make one register of them where there is one. */
typedef uint64_t fa_pair __attribute__((vector_size(16)));

static inline fa_pair fa_load_pair(const unsigned char *at) {
    fa_pair pair;
    memcpy(&pair, at, sizeof pair);
    return pair;
}

/* True if every byte is 0. What is left at the end is seen with some that were seen before. */
static inline bool fa_is_zero(const void *memory, size_t size) {
    const unsigned char *at = memory, *end = at + size;
    fa_pair found = {0, 0}, also = {0, 0};
    if (size < sizeof found) {
        unsigned char bytes = 0;
        while (at < end) bytes |= *at++;
        return bytes == 0;
    }
    for (; end - at >= 64; at += 64) {
        found |= fa_load_pair(at) | fa_load_pair(at + 16);
        also |= fa_load_pair(at + 32) | fa_load_pair(at + 48);
    }
    for (; end - at >= 16; at += 16) found |= fa_load_pair(at);
    found |= also | fa_load_pair(end - 16);
    return (found[0] | found[1]) == 0;
}

#endif
