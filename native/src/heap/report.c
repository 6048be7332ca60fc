/*
 * heap/report.c - what happens when a program is found to be corrupt
 *
 *     "fastalloc: free of 0x7f0012345680, which is not a live block of arena 'witness'"
 *     "fastalloc: free of 0x7f0012345680, which was overrun at its end, in arena 'witness'"
 *
 * Thread rule: any; state is on the stack. Cost: cold.
 */
#include "report.h"

#include "mem/base.h"

typedef struct message {
    char line[160];
    size_t length;
} message;

static void add(message *text, const char *words) {
    while (*words != '\0' && text->length < sizeof text->line - 2) text->line[text->length++] = *words++;
}

static void add_hex(message *text, uintptr_t value) {
    char digits[2 * sizeof value + 1];
    size_t at = sizeof digits - 1;
    digits[at] = '\0';
    do {
        digits[--at] = "0123456789abcdef"[value & 15];
        value >>= 4;
    } while (value != 0);
    add(text, "0x");
    add(text, &digits[at]);
}

static void report(const fa_reporter *reporter, const char *call, const void *pointer, const char *fault) {
    message text = {.length = 0};
    add(&text, "fastalloc: ");
    add(&text, call);
    add(&text, " of ");
    add_hex(&text, (uintptr_t)pointer);
    add(&text, fault);
    add(&text, reporter->heap);
    if (reporter->name[0] != '\0') {
        add(&text, " '");
        add(&text, reporter->name);
        add(&text, "'");
    }
    if (reporter->handler != NULL) {
        text.line[text.length] = '\0';
        reporter->handler(reporter->context, text.line);
        return;
    }
    text.line[text.length++] = '\n';
    reporter->os->report(text.line, text.length);
    reporter->os->abort();
}

FA_COLD void fa_report_fault(const fa_reporter *reporter, const char *call, fa_fault fault, const void *pointer) {
    static const char *const words[] = {
        [FA_FAULT_NOT_LIVE] = ", which is not a live block of ",
        [FA_FAULT_FOREIGN] = ", which does not belong to ",
        [FA_FAULT_FREED] = ", which was freed already (double free), in ",
        [FA_FAULT_INSIDE] = ", which is inside a block of ",
        [FA_FAULT_OVERFLOW] = ", which was overrun at its end, in ",
        [FA_FAULT_UNDERFLOW] = ", which was overrun before its beginning, in ",
        [FA_FAULT_WRITTEN] = ", which was written to after it was freed, in ",
        [FA_FAULT_SIZE] = ", which has another size, in ",
        [FA_FAULT_PAST] = ", which is past the end of a block of ",
        [FA_FAULT_AHEAD] = ", which is before the beginning of a block of ",
        [FA_FAULT_GONE] = ", which is in a freed block of ",
    };
    report(reporter, call, pointer, words[fault]);
}

FA_COLD void fa_report(const fa_reporter *reporter, const char *call, fa_status status, const void *pointer) {
    fa_report_fault(reporter, call, status == FA_ERR_FOREIGN ? FA_FAULT_FOREIGN : FA_FAULT_NOT_LIVE, pointer);
}

FA_COLD void fa_report_damage(const fa_reporter *reporter, const char *call, const void *pointer, bool after) {
    fa_report_fault(reporter, call, after ? FA_FAULT_OVERFLOW : FA_FAULT_UNDERFLOW, pointer);
}
