/*
 * heap/report.h - what happens when a program is found to be corrupt
 *
 * One line that names the fault, the address and the heap goes to the handler of the options, or to standard error,
 * followed by abort. Nothing is allocated and no formatting library is called: the heap may be in any state.
 */
#ifndef FA_HEAP_REPORT_H
#define FA_HEAP_REPORT_H

#include "fastalloc.h"
#include "os/os.h"

typedef struct fa_reporter {
    const fa_os *os;
    fa_corruption_handler handler; /* null: report and abort */
    void *context;
    const char *heap;              /* "arena", "manager" */
    const char *name;              /* of this one; may be empty */
} fa_reporter;

/* `call` is what was called: "free", "realloc". `status` is FA_ERR_CORRUPT (freed, interior) or FA_ERR_FOREIGN. Returns if the handler does. */
void fa_report(const fa_reporter *reporter, const char *call, fa_status status, const void *pointer);

/* The canary before or after a block was overwritten; likewise. */
void fa_report_damage(const fa_reporter *reporter, const char *call, const void *pointer, bool after);

/* What hardened heaps tell apart. */
typedef enum fa_fault {
    FA_FAULT_NOT_LIVE,  /* no live block begins there */
    FA_FAULT_FOREIGN,   /* nothing of this heap is there */
    FA_FAULT_FREED,     /* a double free */
    FA_FAULT_INSIDE,    /* not where the block begins */
    FA_FAULT_OVERFLOW,  /* written to behind its end */
    FA_FAULT_UNDERFLOW, /* written to before its beginning */
    FA_FAULT_WRITTEN,   /* written to after it was freed */
    FA_FAULT_SIZE,      /* freed with a size that is not its own */
    FA_FAULT_PAST,      /* the address itself: closed, behind a block */
    FA_FAULT_AHEAD,     /* closed, before a block */
    FA_FAULT_GONE       /* closed, in a block that was freed */
} fa_fault;

void fa_report_fault(const fa_reporter *reporter, const char *call, fa_fault fault, const void *pointer);

#endif
