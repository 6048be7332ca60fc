/*
 * replay.c - runs a fuzz target on files, or on all files of a directory: what libFuzzer does with a corpus, without libFuzzer
 *
 *     fuzz_arena FILE|DIRECTORY ...
 *     fuzz_arena --faults STEP FILE|DIRECTORY ...   each with every call to the system failing in turn (or each STEP-th)
 *     fuzz_arena --random SEED COUNT                inputs out of thin air, where there is no libFuzzer
 */
#include <dirent.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* fuzz.h */
extern int fuzz_fault[3];
bool fuzz_fault_was_hit(void);
extern const int fuzz_fault_kinds;

#define LONGEST ((size_t)1 << 16)

static int fault_step; /* 0: as the inputs say */
static unsigned long runs;

static void run(const uint8_t *bytes, size_t size) {
    (void)LLVMFuzzerTestOneInput(bytes, size);
    runs++;
    for (int kind = 0; fault_step > 0 && kind < fuzz_fault_kinds; kind++) {
        for (int for_ever = 0; for_ever < 2; for_ever++) {
            bool hit = true;
            for (int after = for_ever; hit; after += fault_step) {
                fuzz_fault[0] = kind;
                fuzz_fault[1] = after;
                fuzz_fault[2] = for_ever;
                (void)LLVMFuzzerTestOneInput(bytes, size);
                runs++;
                hit = fuzz_fault_was_hit();
            }
        }
    }
    fuzz_fault[0] = -1;
}

static int run_file(const char *path) {
    static uint8_t bytes[LONGEST];
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        perror(path);
        return 1;
    }
    const size_t size = fread(bytes, 1, sizeof bytes, file);
    fclose(file);
    uint8_t *exact = malloc(size == 0 ? 1 : size); /* so that a sanitizer sees a read past the end */
    if (exact == NULL) return 1;
    memcpy(exact, bytes, size);
    printf("%s\n", path);
    fflush(stdout);
    run(exact, size);
    free(exact);
    return 0;
}

static int run_directory(const char *path) {
    DIR *directory = opendir(path);
    int failed = 0, count = 0;
    if (directory == NULL) {
        perror(path);
        return 1;
    }
    for (const struct dirent *entry = readdir(directory); entry != NULL; entry = readdir(directory)) {
        char name[4096];
        if (entry->d_name[0] == '.') continue;
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        failed |= run_file(name);
        count++;
    }
    closedir(directory);
    if (count == 0) fprintf(stderr, "%s: no inputs\n", path);
    return failed | (count == 0);
}

static int run_random(uint64_t seed, unsigned long count) {
    static uint8_t bytes[2048];
    for (unsigned long number = 0; number < count; number++) {
        uint64_t state = seed + number * 0x9E3779B97F4A7C15U;
        for (size_t i = 0; i < sizeof bytes; i++) {
            state = state * 6364136223846793005U + 1442695040888963407U;
            bytes[i] = (uint8_t)(state >> 56);
        }
        run(bytes, sizeof bytes);
    }
    return 0;
}

int main(int argc, char **argv) {
    int failed = argc < 2;
    if (argc == 4 && strcmp(argv[1], "--random") == 0)
        return run_random(strtoull(argv[2], NULL, 0), strtoul(argv[3], NULL, 0));
    const bool faults = argc > 3 && strcmp(argv[1], "--faults") == 0;
    if (faults) fault_step = atoi(argv[2]);
    for (int i = faults ? 3 : 1; i < argc; i++) {
        struct stat status;
        const int is_directory = stat(argv[i], &status) == 0 && S_ISDIR(status.st_mode);
        failed |= is_directory ? run_directory(argv[i]) : run_file(argv[i]);
    }
    printf("%lu runs\n", runs);
    return failed;
}
