"""libfastalloc-malloc.so, preloaded: into programs of the system, Python, and programs of C and C++ compiled here."""

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from test_native import NATIVE, build

COMPILERS = {".c": "cc", ".cpp": "c++"}


@cache
def library() -> Path:
    return build("release").parent / "libfastalloc-malloc.so"


def run(*command: str | Path, preload: Path | None = None, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command with the library preloaded and FASTALLOC_<NAME> set."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FASTALLOC_")}
    # The interpreter may itself be run under a preloaded sanitizer.
    environment = {name: value for name, value in environment.items() if name not in {"LD_PRELOAD", "PYTHONMALLOC"}}
    environment |= {f"FASTALLOC_{name}": value for name, value in settings.items()} | {
        "LD_PRELOAD": str(preload or library())
    }
    return subprocess.run(
        [str(part) for part in command], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def ran(*command: str | Path, **settings: str) -> str:
    done = run(*command, **settings)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    assert done.stderr == ""
    return done.stdout


def reported(path: Path, *command: str | Path, **settings: str) -> dict[str, int]:
    ran(*command, REPORT=str(path), **settings)
    report: dict[str, int] = json.loads(path.read_text())
    return report


def compiled(path: Path, source: str, *flags: str) -> Path:
    compiler = shutil.which(COMPILERS[path.suffix])
    if compiler is None:
        pytest.skip(f"{COMPILERS[path.suffix]} is not installed")
    path.write_text(source)
    program = path.with_suffix("")
    subprocess.run([compiler, "-O1", "-pthread", str(path), "-o", str(program), *flags], check=True)
    return program


C_PROGRAM = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(x) do { if (!(x)) { fprintf(stderr, "%d: %s\n", __LINE__, #x); exit(1); } } while (0)

void *__libc_malloc(size_t size);
/* the C library has them not yet */
__attribute__((weak)) extern void free_sized(void *block, size_t size);
__attribute__((weak)) extern void free_aligned_sized(void *block, size_t alignment, size_t size);

static int early; /* a constructor may come before anything else */
__attribute__((constructor)) static void first(void) {
    char *p = malloc(100);
    strcpy(p, "early");
    early = p[0];
    free(p);
}

static void *thread(void *argument) {
    for (int i = 0; i < 1000; i++) { char *p = malloc(i); if (i) p[i - 1] = 1; free(p); }
    return argument;
}

int main(void) {
    volatile size_t huge = SIZE_MAX, many = SIZE_MAX / 2;
    void *p = NULL;
    CHECK(early == 'e');
    CHECK(malloc(huge) == NULL && errno == ENOMEM);
    CHECK(calloc(many, 4) == NULL && reallocarray(NULL, many, 4) == NULL && pvalloc(huge) == NULL && errno == ENOMEM);
    CHECK(posix_memalign(&p, 3, 8) == EINVAL && posix_memalign(&p, 2, 8) == EINVAL && p == NULL);
    errno = 99;
    CHECK(posix_memalign(&p, 64, huge - 100) == ENOMEM && p == NULL && errno == 99);
    CHECK(posix_memalign(&p, 4096, 10) == 0 && (uintptr_t)p % 4096 == 0);
    free_aligned_sized(p, 4096, 10);
    CHECK((p = aligned_alloc(256, 512)) != NULL && (uintptr_t)p % 256 == 0);
    free(p);
    CHECK(aligned_alloc(24, 48) == NULL && errno == EINVAL);
    CHECK((p = memalign(33, 5)) != NULL && (uintptr_t)p % 64 == 0);
    free(p);
    CHECK((p = valloc(1)) != NULL && (uintptr_t)p % 4096 == 0 && malloc_usable_size(p) >= 1);
    free(p);
    CHECK((p = pvalloc(1)) != NULL && malloc_usable_size(p) >= 4096);
    free(p);
    void *a = malloc(0), *b = malloc(0);
    CHECK(a != NULL && b != NULL && a != b);
    free(a);
    free_sized(b, 0);
    CHECK(realloc(malloc(10), 0) == NULL);
    CHECK(malloc_usable_size(NULL) == 0);
    /* the C library's own blocks are its own */
    char *foreign = __libc_malloc(100);
    strcpy(foreign, "foreign");
    CHECK(malloc_usable_size(foreign) >= 100 && malloc_usable_size(foreign) < 200);
    CHECK((foreign = realloc(foreign, 5000)) != NULL && strcmp(foreign, "foreign") == 0);
    free(foreign);
    for (int i = 0; i < 100; i++) {
        pthread_t t;
        CHECK(pthread_create(&t, NULL, thread, NULL) == 0);
        if (i % 10 == 0) {
            pid_t child = fork();
            if (child == 0) {
                pthread_t other;
                CHECK(pthread_create(&other, NULL, thread, NULL) == 0 && pthread_join(other, NULL) == 0);
                _exit(0);
            }
            int status;
            CHECK(waitpid(child, &status, 0) == child && status == 0);
        }
        pthread_join(t, NULL);
    }
    CHECK(mallopt(M_MMAP_THRESHOLD, 1) == 1);
    struct mallinfo2 info = mallinfo2();
    CHECK(info.uordblks > 0 && info.arena >= 65536);
    p = malloc(8 << 20);
    memset(p, 1, 8 << 20);
    free(p);
    CHECK(malloc_trim(0) == 1);
    CHECK(malloc_info(0, stdout) == 0 && malloc_info(1, stdout) == EINVAL);
    puts("well");
    return 0;
}
"""

CPLUSPLUS_PROGRAM = r"""
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#define CHECK(x) do { if (!(x)) { std::fprintf(stderr, "%d: %s\n", __LINE__, #x); std::exit(1); } } while (0)

struct alignas(256) Wide { char bytes[300]; };
static int asked;
static std::size_t volatile huge = SIZE_MAX / 4;

int main() {
    for (int form = 0; form < 2; form++) {
        try {
            if (form == 0) delete[] new char[huge];
            else ::operator delete(::operator new(huge, std::align_val_t(128)), std::align_val_t(128));
            CHECK(false);
        } catch (const std::bad_alloc &) {
        }
    }
    CHECK(new (std::nothrow) char[huge] == nullptr);
    std::set_new_handler([] { if (++asked == 3) std::set_new_handler(nullptr); });
    try { delete[] new char[huge]; CHECK(false); } catch (const std::bad_alloc &) {}
    CHECK(asked == 3);
    std::set_new_handler([] { throw std::runtime_error("mine"); }); /* through C */
    try { delete[] new char[huge]; CHECK(false); } catch (const std::runtime_error &e) { CHECK(e.what()[0] == 'm'); }
    static int thrown = 0;
    std::set_new_handler([] { thrown++; throw std::bad_alloc(); });
    CHECK(new (std::nothrow) char[huge] == nullptr && thrown == 1); /* caught */
    CHECK(::operator new(huge, std::align_val_t(128), std::nothrow) == nullptr && thrown == 2);
    asked = 0;
    std::set_new_handler([] { if (++asked == 3) std::set_new_handler(nullptr); });
    CHECK(::operator new(huge, std::nothrow) == nullptr && asked == 3);
    for (int i = 0; i < 100; i++) {
        std::unique_ptr<Wide> one(new Wide);
        std::unique_ptr<Wide[]> some(new Wide[3]);
        CHECK(reinterpret_cast<std::uintptr_t>(one.get()) % 256 == 0);
        CHECK(reinterpret_cast<std::uintptr_t>(some.get()) % 256 == 0);
        Wide *quiet = new (std::nothrow) Wide;
        delete quiet;
        int *n = new (std::nothrow) int[10];
        delete[] n;
    }
    std::vector<std::thread> threads;
    std::map<int, std::string> words[8];
    for (int t = 0; t < 8; t++)
        threads.emplace_back([&, t] { for (int i = 0; i < 5000; i++) words[t][i] = std::string(i % 200, 'x'); });
    for (auto &thread : threads) thread.join();
    for (auto &map : words) CHECK(map.size() == 5000 && map[150].size() == 150);
    std::puts("well");
}
"""


def test_all_of_malloc(tmp_path: Path) -> None:
    program = compiled(tmp_path / "program.c", C_PROGRAM, "-fno-builtin", "-Wno-deprecated-declarations")
    assert ran(program).endswith("well\n")
    assert ran(program, ZERO_ON_FREE="1", DECAY="0.01").endswith("well\n")


def test_every_form_of_new_and_delete(tmp_path: Path) -> None:
    program = compiled(tmp_path / "program.cpp", CPLUSPLUS_PROGRAM, "-std=c++17", "-O0")  # none is left out
    report = reported(tmp_path / "report", program)
    assert report["allocated"] > 40_000  # its own, not the C library's
    assert report["failures"] >= 7


@pytest.mark.parametrize("command", [["/bin/ls", "-l", "/"], ["/bin/true"], ["sh", "-c", "echo a | cat | sort"]])
def test_programs_of_the_system(command: list[str]) -> None:
    done = run(*command)
    assert (done.returncode, done.stderr) == (0, "")


PYTHON_PROGRAM = """
import ctypes, gc, json, multiprocessing, os, sqlite3, subprocess, sys, threading
import numpy as np

def work():
    words = [bytes(n % 3000) for n in range(20000)]
    assert sum(map(len, words)) > 0

def child(queue):
    work()
    queue.put(os.getpid())

if __name__ == "__main__":
    threads = [threading.Thread(target=work) for _ in range(8)]
    [thread.start() for thread in threads]
    for _ in range(10):  # while they run
        if (pid := os.fork()) == 0:
            work()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
    [thread.join() for thread in threads]
    queue = multiprocessing.get_context("fork").SimpleQueue()
    process = multiprocessing.get_context("fork").Process(target=child, args=(queue,))
    process.start()
    assert queue.get() == process.pid
    process.join()
    assert subprocess.run([sys.executable, "-c", "print(6)"], capture_output=True, check=True).stdout == b"6\\n"
    base = sqlite3.connect(":memory:")
    base.execute("create table t (a)")
    base.executemany("insert into t values (?)", [(str(n),) for n in range(20000)])
    assert base.execute("select count(*) from t").fetchone() == (20000,)
    for _ in range(20):
        a = np.ones(1 << 20)
        assert float((a * 3 + a).sum()) == 4 << 20
    base.close()
    print("well")
"""


def test_python_with_threads_and_forks(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PYTHON_PROGRAM)
    # Python 3.12 warns of a fork while threads run, which is what is tested here.
    command = (sys.executable, "-X", "dev", "-W", "ignore::DeprecationWarning", program)
    for settings in (
        {},
        {"DECAY": "0.01", "HUGE_PAGES": "transparent"},
        {"LARGE_SIZE": "64KiB", "LARGE_CACHE": "1MiB"},
    ):
        report = reported(tmp_path / "report", *command, **settings)
        assert report["allocated"] > 10_000
        assert report["foreign"] == 0


def test_the_heap_of_a_thread_by_key(tmp_path: Path) -> None:
    """As on macOS, where a thread-local variable would call malloc."""
    sources = [NATIVE / "src" / "adapters" / "malloc.c", NATIVE / "src" / "os" / "linux.c"]
    for pattern in ("heap/global*.c", "heap/report.c", "mem/*.c"):
        sources += sorted((NATIVE / "src").glob(pattern))
    shared = tmp_path / "by-key.so"
    flags = (
        f"-std=c11 -O1 -fPIC -shared -fno-builtin -fvisibility=hidden -DFA_OWN_BY_KEY -I{NATIVE}/include -I{NATIVE}/src"
    )
    subprocess.run(["cc", *flags.split(), *map(str, sources), "-o", str(shared), "-ldl", "-pthread"], check=True)
    program = tmp_path / "program.py"
    program.write_text(PYTHON_PROGRAM)
    done = run(
        sys.executable, "-W", "ignore::DeprecationWarning", program, preload=shared, REPORT=str(tmp_path / "report")
    )
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads((tmp_path / "report").read_text())
    assert report["allocated"] > 10_000
    assert 2 <= report["heaps"] <= 20  # those of threads that have ended serve others
    assert report["foreign"] == 0


# ---- what is kept resident -------------------------------------------------------------------------------------------

ROUNDS = """
import os, resource
os.environ["NUMPY_MADVISE_HUGEPAGE"] = "0"
import numpy as np
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for round in range(4):
    before = faults()
    for size in (1, 40, 3, 17, 8):
        np.full(size << 17, 1.0)
    print(faults() - before)
"""


def test_rounds_of_vectors_fault_once() -> None:
    first, *others = map(int, ran(sys.executable, "-c", ROUNDS).split())
    assert first > 5_000
    assert max(others) < 300


def test_without_a_cache_every_round_faults() -> None:
    assert min(map(int, ran(sys.executable, "-c", ROUNDS, LARGE_CACHE="0").split())) > 5_000


# ---- settings and reports --------------------------------------------------------------------------------------------


def test_the_report_is_json(tmp_path: Path) -> None:
    report = reported(tmp_path / "report", sys.executable, "-c", "x = [bytes(1000) for _ in range(1000)]; del x")
    assert report["allocated"] == report["freed"] + report["live"]
    assert report["resident"] == report["held"] + report["cached"]
    assert report["peak"] >= report["used"]
    classes = report["classes"]
    assert (
        sum(one["allocated"] for one in classes) + report["medium_allocated"] + report["large_allocated"]
        == (report["allocated"])
    )
    assert sum(one["spans"] for one in classes) == report["span_bytes"]
    assert [one["size"] for one in classes[:3]] == [16, 32, 48]


def test_a_program_that_never_allocates_has_no_heap_hardened_or_not(tmp_path: Path) -> None:
    for hardened in "01":
        report = reported(tmp_path / "report", "true", HARDENED=hardened)
        assert report["heaps"] == report["reserved"] == 0


def test_each_process_has_its_report(tmp_path: Path) -> None:
    program = "import os, sys; pid = os.fork(); pid or sys.exit(0); os.waitpid(pid, 0); print(os.getpid(), pid)"
    processes = ran(sys.executable, "-c", program, REPORT=str(tmp_path / "report-%p")).split()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"report-{process}" for process in processes)
    for process in processes:
        assert json.loads((tmp_path / f"report-{process}").read_text())["process"] == int(process)


def test_the_table_reaches_a_closed_standard_error() -> None:
    done = run("/bin/ls", STATS="1")  # ls closes its standard error before it is done
    assert done.returncode == 0
    assert re.search(r"^fastalloc: process \d+$", done.stderr, re.MULTILINE)
    assert re.search(r"^ +allocated +[1-9]\d* +count: ", done.stderr, re.MULTILINE)


def test_the_table_of_a_process_that_may_open_few_files() -> None:
    done = run("sh", "-c", "ulimit -n 20; exec /bin/true", STATS="1")
    assert re.search(r"^fastalloc: process \d+$", done.stderr, re.MULTILINE)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or platform.machine() != "x86_64", reason="a name of old glibc's")
def test_a_program_of_before_glibc_2_26(tmp_path: Path) -> None:
    source = r"""
        #include <stdlib.h>
        __asm__(".symver old_free, cfree@GLIBC_2.2.5");
        extern void old_free(void *);
        int main(void) {
            for (size_t size = 1; size < 5000000; size *= 3) old_free(malloc(size));
            return 0;
        }
    """
    report = reported(tmp_path / "report", compiled(tmp_path / "program.c", source, "-w"))
    assert report["freed"] >= 15


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LARGE_CACHE", "much"),
        ("LARGE_CACHE", "99999999999999999999"),
        ("LARGE_SIZE", "32KiB"),
        ("LARGE_SIZE", "2GiB"),
        ("DECAY", "-1"),
        ("DECAY", "soon"),
        ("DECAY", "nan"),
        ("HUGE_PAGES", "on"),
        ("ZERO_ON_FREE", "yes"),
        ("STATS", "2"),
    ],
)
def test_a_bad_setting_is_told_in_one_line(name: str, value: str) -> None:
    done = run("/bin/true", **{name: value})
    assert done.returncode == 0
    assert re.fullmatch(rf"fastalloc: FASTALLOC_{name}={value}: .*; the default is used\n", done.stderr)


def test_sizes_are_whole_numbers() -> None:
    assert "expected whole bytes, such as 4GiB" in run("/bin/true", LARGE_CACHE="1.5GiB").stderr


def test_good_settings_are_silent() -> None:
    for settings in ({"LARGE_CACHE": "64 MiB"}, {"LARGE_CACHE": "0"}, {"DECAY": "0"}, {"DECAY": "0.5"}, {"STATS": "0"}):
        assert ran("/bin/true", **settings) == ""
    assert ran("/bin/true", HUGE_PAGES="off", LARGE_SIZE="33KiB", ZERO_ON_FREE="0") == ""


def test_a_limit_of_address_space_is_lived_with(tmp_path: Path) -> None:
    program = "x = [bytes(n) for n in range(5000)]; y = bytes(30 << 20); print(len(x))"
    limited = f"ulimit -v 1000000; exec {sys.executable} -c '{program}'"
    report = reported(tmp_path / "report", "sh", "-c", limited)
    assert report["reserved"] < 1 << 30
    assert report["failures"] == 0


def test_what_is_exported_is_known() -> None:
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed")
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", library()], capture_output=True, text=True, check=True
    ).stdout
    names = set(re.findall(r" [TDB] (\w+)$", listed, re.MULTILINE))
    c = {name for name in names if not name.startswith("_Z")}
    assert c == {
        "malloc", "free", "calloc", "realloc", "reallocarray", "free_sized", "free_aligned_sized", "posix_memalign",
        "aligned_alloc", "memalign", "valloc", "pvalloc", "malloc_usable_size", "malloc_trim", "mallopt", "mallinfo",
        "mallinfo2", "malloc_info", "malloc_stats", "cfree", "fastalloc_malloc_stats",
    }  # fmt: skip
    operators = names - c
    assert len([name for name in operators if name.startswith(("_Znw", "_Zna"))]) == 8
    assert len([name for name in operators if name.startswith(("_Zdl", "_Zda"))]) == 12


def test_a_double_free_of_a_run_of_pages_ends_the_process(tmp_path: Path) -> None:
    source = "#include <stdlib.h>\nint main(void) { void *volatile p = malloc(100000); free(p); free(p); return 0; }"
    done = run(compiled(tmp_path / "program.c", source, "-w"))
    assert done.returncode == -signal.SIGABRT
    assert re.fullmatch(r"fastalloc: free of 0x[0-9a-f]+, which is not a live block of malloc\n", done.stderr)
