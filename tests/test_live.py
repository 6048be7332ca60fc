"""``fastalloc stats PID``: a process read from outside says what it says of itself."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastalloc as fa
from fastalloc.cli import main
from fastalloc.cli.live import read_process

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is no /proc")

# Allocates what is known, tells it when it is done, and again for each line it is sent; `storm` goes on all the time.
PROGRAM = """
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static char buffer[1024];
static void *kept[2000];
static void *storm(void *unused) {
    (void)unused;
    for (unsigned i = 0;; i++) { void *p = malloc(1 + i % 3000); memset(p, 1, 1 + i % 3000); free(p); }
    return NULL;
}
static void *helper(void *unused) {
    (void)unused;
    for (int i = 1000; i < 1500; i++) kept[i] = malloc(100);
    return NULL;
}
int main(int argc, char **argv) {
    setvbuf(stdout, buffer, _IOLBF, sizeof buffer);
    setvbuf(stdin, NULL, _IONBF, 0);
    pthread_t thread;
    for (int i = 0; i < 1000; i++) kept[i] = malloc(100);
    if (pthread_create(&thread, NULL, helper, NULL) != 0 || pthread_join(thread, NULL) != 0) return 1;
    for (int i = 1500; i < 1503; i++) memset(kept[i] = malloc(5 << 20), 1, 5 << 20);
    for (int i = 1510; i < 1512; i++) kept[i] = malloc(100 << 10);
    if (argc > 1 && strcmp(argv[1], "storm") == 0)
        for (int i = 0; i < 2; i++) if (pthread_create(&thread, NULL, storm, NULL) != 0) return 1;
    puts("ready");
    getchar();
    for (int i = 0; i < 750; i++) free(kept[i]);
    free(kept[1500]);
    puts("ready");
    getchar();
    return 0;
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("cc is not installed")
    path = tmp_path_factory.mktemp("live") / "program"
    command = [compiler, "-x", "c", "-", "-o", str(path), "-pthread", "-fno-builtin-malloc", "-fno-builtin-free"]
    subprocess.run(command, input=PROGRAM, text=True, check=True)
    return path


class Process:
    """The program, running."""

    def __init__(self, path: Path, *arguments: str, report: Path | None = None, library: str | None = None) -> None:
        environment = {"LD_PRELOAD": library or fa.get_malloc_library()}
        if report is not None:
            environment["FASTALLOC_REPORT"] = str(report)
        self.process = subprocess.Popen([path, *arguments], stdin=-1, stdout=-1, text=True, env=environment)
        self.pid = self.process.pid
        self.wait_ready()

    def wait_ready(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def send(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()


@pytest.fixture
def processes() -> Iterator[list[Process]]:
    started: list[Process] = []
    yield started
    for each in started:
        each.process.kill()
        each.process.communicate()


def live(pid: int, size: int) -> int:
    """Live blocks of the class that serves this size."""
    _, sizes = read_process(pid)
    return next(each.live for each in sizes if each.size >= size)


def test_blocks_of_all_kinds_are_counted(program: Path, processes: list[Process], tmp_path: Path) -> None:
    process = Process(program, report=tmp_path / "report.json")
    processes.append(process)
    before, _ = read_process(process.pid)
    assert live(process.pid, 100) in range(1500, 1510)  # of two threads, one of which has ended
    assert (before.large_live, before.medium_live) == (3, 2)
    assert before.large_bytes >= 15 << 20
    assert before.used >= 15 << 20
    assert before.heaps >= 2
    process.send()
    process.wait_ready()
    after, sizes = read_process(process.pid)
    assert live(process.pid, 100) in range(750, 760)
    assert (after.large_live, after.medium_live) == (2, 2)
    assert after.large_cached >= 5 << 20
    assert after.allocated == before.allocated
    assert after.freed == before.freed + 751
    # What it says of itself when it ends, a moment later.
    process.send()
    assert process.process.wait(20) == 0
    told = json.loads((tmp_path / "report.json").read_text())
    mine = after.as_dict()
    differences = {name: (mine[name], told[name]) for name in mine if abs(mine[name] - told[name]) > 0.01 * told[name]}
    assert differences == {}
    assert [each.allocated for each in sizes if each.allocated] == [
        each["allocated"] for each in told["classes"] if each["allocated"]
    ]


def test_a_process_in_full_work_is_read_again_and_again(program: Path, processes: list[Process]) -> None:
    process = Process(program, "storm")
    processes.append(process)
    last = 0
    for _ in range(30):
        stats, _sizes = read_process(process.pid)
        assert stats.allocated >= last
        assert 1500 <= live(process.pid, 100) <= 1600
        last = stats.allocated
    assert process.process.poll() is None


def test_the_command(program: Path, processes: list[Process], capsys: pytest.CaptureFixture[str]) -> None:
    process = Process(program)
    processes.append(process)
    assert main(["stats", str(process.pid)]) == 0
    table = capsys.readouterr().out
    assert "large_live" in table
    assert "112 B" in table
    assert main(["stats", str(process.pid), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["process"] == process.pid
    assert record["large_live"] == 3


def test_watching_ends_with_the_program(program: Path, processes: list[Process]) -> None:
    process = Process(program)
    processes.append(process)
    command = [sys.executable, "-m", "fastalloc.cli", "stats", str(process.pid), "--json", "--watch", "0.05"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        assert json.loads(watch.stdout.readline())["large_live"] == 3
        process.send()
        deadline = time.monotonic() + 20
        while json.loads(watch.stdout.readline())["large_live"] != 2:
            assert time.monotonic() < deadline
        process.process.kill()
        process.process.wait()
        watch.stdout.read()
        assert watch.wait(20) == 0


def test_a_library_that_was_replaced(program: Path, processes: list[Process], tmp_path: Path) -> None:
    """After an update the file of the running program is gone, and another is at its place."""
    copy = tmp_path / "libfastalloc-malloc.so"
    shutil.copy(fa.get_malloc_library(), copy)
    process = Process(program, library=str(copy))
    processes.append(process)
    copy.unlink()
    copy.write_bytes(b"another")
    if os.getuid() == 0:  # else /proc/PID/map_files is not ours to read
        assert read_process(process.pid)[0].large_live == 3


def test_processes_that_cannot_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    for pid, message in ((os.getpid(), "does not use libfastalloc-malloc"), (2**22 + 5, "there is none")):
        with pytest.raises(SystemExit) as exit_:
            main(["stats", str(pid)])
        assert exit_.value.code == 2
        assert message in capsys.readouterr().err


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody who may not")
def test_processes_of_others(program: Path, processes: list[Process]) -> None:
    process = Process(program)
    processes.append(process)
    reader = (
        "import os, sys; from fastalloc.cli import live; os.setuid(65534)\n"
        "try: live.read_process(int(sys.argv[1]))\n"
        "except live.NotReadableError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", reader, str(process.pid)], capture_output=True, text=True, check=True)
    assert "not allowed to read its memory" in done.stdout
