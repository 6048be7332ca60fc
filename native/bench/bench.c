/*
 * bench.c - every row side by side: ours, the limit of the machine, and what a user would use instead
 *
 *     bench [--json FILE] [--rounds N] [--only PART-OF-AN-ID] [--list]
 *     bench --count NAME N
 *
 * Each contestant is a process of this program: ours and the limits in one, and one for each malloc, which is preloaded
 * into it. That is how a user gets these allocators, thread-local storage and all; loaded beside each other into one
 * process, in namespaces of their own, they would share its heap, its pages and their bad luck, and some do not survive
 * it. The parent gives each in turn the word to take its sample, and waits, so only one runs at a time, and rounds are
 * interleaved: a noisy machine is unfair to all alike. A sample is the median of the row's repetitions in that turn,
 * after one that does not count; the table has the medians of samples, with minimum and maximum.
 *
 * A job checks that what it timed succeeded: a bench that measured a failure exits 1. What is not installed is named and
 * skipped. Targets that are not met are printed, and change the exit status only with --strict.
 * To add a row, write its jobs and name them at the end of arena_rows.c, manager_rows.c or secret_rows.c.
 */
#define _GNU_SOURCE
#include "bench.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_ROUNDS 101
#define MAX_REPEATS 101
#define MAX_COLUMNS 16
#define LENGTH(array) (sizeof(array) / sizeof *(array))

static const bench_row *const row_tables[] = {arena_rows, manager_rows, secret_rows};

/* ---- what jobs use --------------------------------------------------------------------------------------------------- */

static const char *current_row = "";

uint64_t nanoseconds_now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000U + (uint64_t)time.tv_nsec;
}

static uint64_t faults_so_far(void) {
    struct rusage usage;
    getrusage(RUSAGE_THREAD, &usage);
    return (uint64_t)usage.ru_minflt + (uint64_t)usage.ru_majflt;
}

void timing_start(timing *self) {
    self->started_faults = faults_so_far();
    self->started = nanoseconds_now();
}

void timing_stop(timing *self) {
    self->nanoseconds += nanoseconds_now() - self->started;
    self->faults += faults_so_far() - self->started_faults;
}

_Noreturn void bench_fail(const char *file, int line, const char *condition) {
    fprintf(stderr, "bench: %s: %s:%d: not so: %s\n", current_row, file, line, condition);
    exit(1);
}

void *map_pages(size_t size, bool huge) {
    const size_t alignment = huge ? 2 * MIB : 0;
    unsigned char *pages = mmap(NULL, size + alignment, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                                -1, 0);
    VERIFY(pages != MAP_FAILED);
    if (!huge) return pages;
    const size_t above = (size_t)(-(uintptr_t)pages & (alignment - 1));
    if (above > 0) munmap(pages, above);
    if (above < alignment) munmap(pages + above + size, alignment - above);
    madvise(pages + above, size, MADV_HUGEPAGE);
    return pages + above;
}

void unmap_pages(void *pages, size_t size) { VERIFY(munmap(pages, size) == 0); }

/* ---- a contestant: takes a sample whenever it is told to -------------------------------------------------------------- */

typedef struct order {
    uint32_t table, row, job;
} order;

typedef struct sample {
    double nanoseconds; /* for one operation */
    uint64_t faults, most_faults, percent;
    bool skipped;
} sample;

static int compare(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, size_t count) {
    qsort(values, count, sizeof *values, compare);
    return count % 2 != 0 ? values[count / 2] : (values[count / 2 - 1] + values[count / 2]) / 2;
}

static sample take_sample(const bench_row *row, const bench_job *job) {
    static double times[MAX_REPEATS], faults[MAX_REPEATS];
    const size_t repeats = row->repeats == 0 ? 1 : row->repeats;
    const size_t operations = row->operations == 0 ? 1 : row->operations;
    sample result = {0};
    current_row = row->name;
    for (size_t repeat = row->fresh ? 1 : 0; repeat <= repeats; repeat++) {
        timing time = {0};
        job->run(&time);
        if (time.skipped) return (sample){.skipped = true};
        if (repeat == 0) continue;
        times[repeat - 1] = (double)time.nanoseconds / (double)operations;
        faults[repeat - 1] = (double)time.faults;
        if (time.faults > result.most_faults) result.most_faults = time.faults;
        if (time.percent > result.percent) result.percent = time.percent;
    }
    result.nanoseconds = median(times, repeats);
    result.faults = (uint64_t)median(faults, repeats);
    return result;
}

#define ORDERS 3 /* the file descriptors of a contestant */
#define SAMPLES 4
#define MESSAGES 5

/* Says whose malloc it has, then obeys. */
static int contestant(void) {
    Dl_info info;
    void *(*function)(size_t) = malloc;
    void *address;
    memcpy(&address, &function, sizeof address);
    char library[256] = "";
    char *path = dladdr(address, &info) != 0 ? realpath(info.dli_fname, NULL) : NULL;
    if (path != NULL) snprintf(library, sizeof library, "%s", strrchr(path, '/') + 1);
    free(path);
    dup2(MESSAGES, STDERR_FILENO);
    if (write(SAMPLES, library, sizeof library) != sizeof library) return 1;
    order next;
    while (read(ORDERS, &next, sizeof next) == sizeof next) {
        const bench_row *row = &row_tables[next.table][next.row];
        const sample result = take_sample(row, &row->jobs[next.job]);
        if (write(SAMPLES, &result, sizeof result) != sizeof result) return 1;
    }
    return 0;
}

/* ---- the parent's side of a contestant ---------------------------------------------------------------------------------- */

typedef struct bench_peer {
    const char *name;
    const char *library[4]; /* sonames to try; none: the C library's own */
    const char *preload;    /* the one that was found */
    char loaded[256];       /* what the dynamic linker made of it */
    bool present;
    pid_t process;
    int orders, samples;
} bench_peer;

static bench_peer peers[] = {
    {.name = "ours"},
    {.name = "glibc"},
    {.name = "jemalloc", .library = {"libjemalloc.so.2"}},
    {.name = "mimalloc", .library = {"libmimalloc.so.2", "libmimalloc.so.3", "libmimalloc.so.2.0", "libmimalloc.so"}},
    {.name = "tcmalloc", .library = {"libtcmalloc_minimal.so.4", "libtcmalloc.so.4"}},
};
#define OURS_PEER 0
#define FIRST_MALLOC 1

static void peer_start(bench_peer *self) {
    int orders[2], samples[2];
    VERIFY(pipe(orders) == 0 && pipe(samples) == 0);
    fflush(NULL);
    self->process = fork();
    VERIFY(self->process >= 0);
    if (self->process == 0) {
        /* Away from the numbers that they are going to have. The linker's complaints are nobody's business. */
        const int from = fcntl(orders[0], F_DUPFD, 64), to = fcntl(samples[1], F_DUPFD, 64);
        const int messages = fcntl(STDERR_FILENO, F_DUPFD, 64), silence = open("/dev/null", O_WRONLY);
        dup2(silence, STDERR_FILENO);
        dup2(from, ORDERS);
        dup2(to, SAMPLES);
        dup2(messages, MESSAGES);
        for (int file = MESSAGES + 1; file < 128; file++) close(file);
        if (self->preload != NULL) setenv("LD_PRELOAD", self->preload, 1);
        else unsetenv("LD_PRELOAD");
        execl("/proc/self/exe", "bench", "--contestant", (char *)NULL);
        _exit(127);
    }
    close(orders[0]);
    close(samples[1]);
    self->orders = orders[1];
    self->samples = samples[0];
    VERIFY(read(self->samples, self->loaded, sizeof self->loaded) == sizeof self->loaded);
}

static void peer_stop(bench_peer *self) {
    if (self->process == 0) return;
    close(self->orders);
    close(self->samples);
    int status;
    VERIFY(waitpid(self->process, &status, 0) == self->process && status == 0);
    self->process = 0;
}

static sample peer_sample(bench_peer *self, order next, bool fresh) {
    sample result;
    if (fresh) peer_stop(self);
    if (self->process == 0) peer_start(self);
    if (write(self->orders, &next, sizeof next) != sizeof next ||
        read(self->samples, &result, sizeof result) != sizeof result) {
        fprintf(stderr, "bench: %s: %s failed\n", row_tables[next.table][next.row].name, self->name);
        exit(1);
    }
    if (fresh) peer_stop(self);
    return result;
}

/* Finds the first of its libraries that the dynamic linker finds, by preloading it and asking whose malloc that gave. */
static void peer_find(bench_peer *self) {
    for (size_t i = 0; i < LENGTH(self->library) && !self->present; i++) {
        self->preload = self->library[i];
        if (i > 0 && self->preload == NULL) break;
        peer_start(self);
        const bool wants_preload = self->preload != NULL;
        self->present = !wants_preload || strstr(self->loaded, self->name) != NULL;
        peer_stop(self);
    }
}

/* ---- one row ------------------------------------------------------------------------------------------------------------- */

typedef struct column {
    char name[64];
    uint32_t job;
    bench_peer *peer;
    double samples[MAX_ROUNDS], faults[MAX_ROUNDS];
    size_t count;
    double median, minimum, maximum, median_faults;
    uint64_t most_faults, percent;
    bool skipped;
} column;

static column columns[MAX_COLUMNS];
static size_t column_count;

static void add_column(const char *first, const char *second, uint32_t job, bench_peer *peer) {
    VERIFY(column_count < MAX_COLUMNS);
    column *new_one = &columns[column_count++];
    *new_one = (column){.job = job, .peer = peer};
    snprintf(new_one->name, sizeof new_one->name, "%s%s", first, second);
}

static void make_columns(const bench_row *row) {
    column_count = 0;
    for (uint32_t job = 0; job < MAX_JOBS && row->jobs[job].run != NULL; job++) {
        if (!row->jobs[job].peer) {
            add_column(row->jobs[job].name, "", job, &peers[OURS_PEER]);
            continue;
        }
        for (size_t i = FIRST_MALLOC; i < LENGTH(peers); i++)
            if (peers[i].present) add_column(peers[i].name, row->jobs[job].name, job, &peers[i]);
    }
}

static void measure(uint32_t table, uint32_t index, size_t rounds) {
    const bench_row *row = &row_tables[table][index];
    make_columns(row);
    for (size_t round = 0; round < rounds; round++) {
        for (size_t i = 0; i < column_count; i++) {
            column *one = &columns[(round + i) % column_count]; /* nobody is always the first */
            if (one->skipped) continue;
            const sample result = peer_sample(one->peer, (order){table, index, one->job}, row->fresh);
            one->skipped = result.skipped;
            one->samples[one->count] = result.nanoseconds;
            one->faults[one->count++] = (double)result.faults;
            if (result.most_faults > one->most_faults) one->most_faults = result.most_faults;
            if (result.percent > one->percent) one->percent = result.percent;
        }
    }
    for (size_t i = 0; i < column_count; i++) {
        column *one = &columns[i];
        if (one->skipped) continue;
        one->median = median(one->samples, one->count);
        one->minimum = one->samples[0];
        one->maximum = one->samples[one->count - 1];
        one->median_faults = median(one->faults, one->count);
    }
    /* The next row finds every heap as a new program would. */
    for (size_t i = 0; i < LENGTH(peers); i++) peer_stop(&peers[i]);
}

static const column *column_named(const char *name) {
    for (size_t i = 0; i < column_count; i++)
        if (strcmp(columns[i].name, name) == 0 && !columns[i].skipped) return &columns[i];
    return NULL;
}

/* ---- targets ---------------------------------------------------------------------------------------------------------------- */

typedef struct verdict {
    char text[320];
    double value;
    bool known, met;
} verdict;

static verdict judge(const bench_target *target) {
    verdict result = {.known = false};
    const column *of = column_named(target->of), *other = target->other != NULL ? column_named(target->other) : NULL;
    if (of == NULL || (target->other != NULL && other == NULL)) {
        snprintf(result.text, sizeof result.text, "%s is not here: skipped", target->other != NULL ? target->other : target->of);
        return result;
    }
    result.known = true;
    const double bound = target->bound;
    switch (target->kind) {
    case AT_MOST_TIMES:
        result.value = of->median / other->median;
        snprintf(result.text, sizeof result.text, "%s at most %.2f x %s: %.2f x", of->name, bound, other->name, result.value);
        break;
    case FASTER_TIMES:
        result.value = other->median / of->median;
        snprintf(result.text, sizeof result.text, "%s at least %.1f x faster than %s: %.1f x", of->name, bound, other->name,
                 result.value);
        break;
    case AT_MOST_NS:
        result.value = of->median;
        snprintf(result.text, sizeof result.text, "%s at most %.0f ns: %.0f ns", of->name, bound, result.value);
        break;
    case AT_MOST_FAULTS:
        result.value = (double)of->most_faults;
        snprintf(result.text, sizeof result.text, "%s at most %.0f page faults: %.0f", of->name, bound, result.value);
        break;
    case AT_MOST_PERCENT:
        result.value = (double)of->percent;
        snprintf(result.text, sizeof result.text, "%s: resident at most %.0f %% of the largest live set: %.0f %%", of->name,
                 bound, result.value);
        break;
    case NO_TARGET: break;
    }
    result.met = target->kind == FASTER_TIMES ? result.value >= bound : result.value <= bound;
    if (!result.met && bound != 0) {
        const double off = target->kind == FASTER_TIMES ? bound / result.value : result.value / bound;
        const size_t length = strlen(result.text);
        snprintf(result.text + length, sizeof result.text - length, " (off by %.0f %%)", (off - 1) * 100);
    }
    return result;
}

/* ---- printing ----------------------------------------------------------------------------------------------------------------- */

static void print_time(double nanoseconds) {
    if (nanoseconds >= 1e6) printf("  %8.2f ms", nanoseconds / 1e6);
    else if (nanoseconds >= 1e3) printf("  %8.2f us", nanoseconds / 1e3);
    else printf("  %8.2f ns", nanoseconds);
}

static void print_row(const bench_row *row, size_t rounds) {
    printf("%s\n    %zu rounds%21s %10s  %11s  %11s %9s  ours is\n", row->name, rounds, "", "median", "min", "max", "faults");
    for (size_t i = 0; i < column_count; i++) {
        const column *one = &columns[i];
        printf("    %-22s", one->name);
        if (one->skipped) {
            printf("  skipped: there is none here\n");
            continue;
        }
        print_time(one->median);
        print_time(one->minimum);
        print_time(one->maximum);
        printf(" %9.0f", one->median_faults);
        if (i > 0 && columns[0].median > 0) printf("  %.2f x", columns[0].median / one->median);
        printf("\n");
    }
    for (size_t i = 0; i < MAX_TARGETS && row->targets[i].kind != NO_TARGET; i++) {
        const verdict result = judge(&row->targets[i]);
        printf("    %-8s %s\n", !result.known ? "-" : result.met ? "met" : "NOT MET", result.text);
    }
    printf("\n");
    fflush(stdout);
}

static void write_json(FILE *file, const bench_row *row, bool first) {
    fprintf(file, "%s\n  {\"id\": \"%s\", \"name\": \"%s\", \"columns\": [", first ? "" : ",", row->id, row->name);
    for (size_t i = 0; i < column_count; i++) {
        const column *one = &columns[i];
        fprintf(file, "%s\n    {\"name\": \"%s\", ", i == 0 ? "" : ",", one->name);
        if (one->skipped) {
            fprintf(file, "\"skipped\": true}");
            continue;
        }
        fprintf(file, "\"median_ns\": %.3f, \"min_ns\": %.3f, \"max_ns\": %.3f, \"faults\": %.0f, \"most_faults\": %" PRIu64,
                one->median, one->minimum, one->maximum, one->median_faults, one->most_faults);
        if (one->percent != 0) fprintf(file, ", \"percent\": %" PRIu64, one->percent);
        fprintf(file, "}");
    }
    fprintf(file, "],\n   \"targets\": [");
    for (size_t i = 0; i < MAX_TARGETS && row->targets[i].kind != NO_TARGET; i++) {
        const verdict result = judge(&row->targets[i]);
        fprintf(file, "%s\n    {\"text\": \"%s\", \"bound\": %g, \"value\": %.4f, \"met\": %s}", i == 0 ? "" : ",", result.text,
                row->targets[i].bound, result.value, !result.known ? "null" : result.met ? "true" : "false");
    }
    fprintf(file, "]}");
}

/* ---- the program ---------------------------------------------------------------------------------------------------------------- */

typedef struct arguments {
    const char *json, *only;
    size_t rounds;
    bool strict, list;
} arguments;

static bool parse(int argc, char **argv, arguments *given) {
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(argv[i], "--strict") == 0) given->strict = true;
        else if (strcmp(argv[i], "--list") == 0) given->list = true;
        else if (value == NULL) return false;
        else if (strcmp(argv[i], "--json") == 0) given->json = argv[++i];
        else if (strcmp(argv[i], "--only") == 0) given->only = argv[++i];
        else if (strcmp(argv[i], "--rounds") == 0) given->rounds = strtoul(argv[++i], NULL, 10);
        else return false;
    }
    return given->rounds >= 1 && given->rounds <= MAX_ROUNDS;
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "--contestant") == 0) return contestant();
    if (argc == 4 && strcmp(argv[1], "--count") == 0) {
        if (count_operations(argv[2], strtoul(argv[3], NULL, 10))) return 0;
        fprintf(stderr, "bench: nothing to count is called %s\n", argv[2]);
        return 2;
    }
    arguments given = {.only = "", .rounds = 11};
    if (!parse(argc, argv, &given)) {
        fprintf(stderr,
                "usage: %s [--json FILE] [--rounds 1..%d] [--only PART-OF-AN-ID] [--strict] [--list]\n"
                "       %s --count nothing|bump|arena|malloc|malloc+free|'malloc+free, slabs' N\n",
                argv[0], MAX_ROUNDS, argv[0]);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    FILE *file = given.json != NULL ? fopen(given.json, "w") : NULL;
    if (given.json != NULL && file == NULL) {
        perror(given.json);
        return 1;
    }
    if (!given.list) {
        printf("fastalloc %s; times are for one repetition of the work that the row names, and \"ours is\" our median as a\n"
               "multiple of the other's\n", fa_version());
        for (size_t i = 0; i < LENGTH(peers); i++) {
            peer_find(&peers[i]);
            if (i >= FIRST_MALLOC) printf("    %-10s %s\n", peers[i].name, peers[i].present ? peers[i].loaded : "skipped: not installed");
        }
        printf("\n");
    }
    if (file != NULL) fprintf(file, "{\"version\": \"%s\", \"rounds\": %zu, \"rows\": [", fa_version(), given.rounds);
    size_t met = 0, unmet = 0, skipped = 0;
    bool first = true;
    for (uint32_t table = 0; table < LENGTH(row_tables); table++) {
        for (uint32_t i = 0; row_tables[table][i].name != NULL; i++) {
            const bench_row *row = &row_tables[table][i];
            if (strstr(row->id, given.only) == NULL) continue;
            if (given.list) {
                printf("%-16s %s\n", row->id, row->name);
                continue;
            }
            const size_t rounds = row->rounds != 0 && row->rounds < given.rounds ? row->rounds : given.rounds;
            measure(table, i, rounds);
            print_row(row, rounds);
            if (file != NULL) write_json(file, row, first);
            first = false;
            for (size_t t = 0; t < MAX_TARGETS && row->targets[t].kind != NO_TARGET; t++) {
                const verdict result = judge(&row->targets[t]);
                if (!result.known) skipped++;
                else if (result.met) met++;
                else unmet++;
            }
        }
    }
    if (!given.list) printf("targets: %zu met, %zu not met, %zu skipped\n", met, unmet, skipped);
    if (file != NULL) {
        fprintf(file, "\n]}\n");
        if (fclose(file) != 0) {
            perror(given.json);
            return 1;
        }
    }
    return given.strict && unmet > 0 ? 1 : 0;
}
