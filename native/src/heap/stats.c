/*
 * heap/stats.c - names for statuses, the version, and statistics as JSON, all from the lists of fastalloc.h
 *
 *     FA_ARENA_STATS(X)  ->  {"requested": 64, "used": 64, ...}
 *
 * Thread rule: pure functions. Cost: one snprintf a field.
 */
#include "fastalloc.h"

#include <inttypes.h>
#include <stdio.h>

typedef struct field {
    const char *name;
    uint64_t value;
} field;

static size_t json(const field *fields, size_t count, char *text, size_t size) {
    size_t length = 0;
    for (size_t i = 0; i < count; i++) {
        char *at = length < size ? text + length : NULL;
        size_t room = length < size ? size - length : 0;
        int wrote = snprintf(at, room, "%s\"%s\": %" PRIu64 "%s", i == 0 ? "{" : "", fields[i].name, fields[i].value,
                             i + 1 == count ? "}" : ", ");
        if (wrote > 0) length += (size_t)wrote;
    }
    return length;
}

#define FIELD(name, unit, doc) {#name, stats->name},

size_t fa_arena_stats_json(const fa_arena_stats *stats, char *text, size_t size) {
    const field fields[] = {FA_ARENA_STATS(FIELD)};
    return json(fields, sizeof fields / sizeof fields[0], text, size);
}

size_t fa_manager_stats_json(const fa_manager_stats *stats, char *text, size_t size) {
    const field fields[] = {FA_MANAGER_STATS(FIELD)};
    return json(fields, sizeof fields / sizeof fields[0], text, size);
}

const char *fa_status_string(fa_status status) {
    switch (status) {
    case FA_OK: return "ok";
    case FA_ERR_NOMEM: return "out of memory";
    case FA_ERR_INVALID: return "invalid argument";
    case FA_ERR_BUSY: return "live blocks are in the way";
    case FA_ERR_FOREIGN: return "the pointer does not belong here";
    case FA_ERR_STALE: return "the mark is stale";
    case FA_ERR_CORRUPT: return "not a live block";
    case FA_ERR_LOCK: return "memory could not be locked";
    case FA_ERR_UNSUPPORTED: return "not supported on this platform";
    case FA_ERR_SEALED: return "the arena is sealed";
    }
    return "unknown status";
}

const char *fa_version(void) { return FA_VERSION; }
