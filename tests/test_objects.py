"""wipe_freed_objects(): a layer on Python's allocators that zeroes what is freed.

It cannot be switched off, so each test runs in a process of its own; secrets are looked for from here, outside.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import run_python, scans_memory

import fastalloc as fa

PRELUDE = """
import array, gc, io, os, sys, threading
import fastalloc as fa
from fastalloc import _binding
if sys.argv[1] == "on": fa.wipe_freed_objects()
def read():
    "The secret, as the bytes that open() makes"
    with open(sys.argv[3], "rb") as file: return file.read()
def number(): return int.from_bytes(read(), "big")
def text(): return read().hex()
def spread():
    "The secret's bytes, each on its own: no object holds two of them"
    return list(read())
exec(sys.argv[2])
gc.collect()
fa.wipe_stack()
assert _binding.freed_objects_are_valid()
print("ready", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def pattern_file(tmp_path: Path) -> Path:
    path = tmp_path / "pattern"
    path.write_bytes(os.urandom(48))
    return path


def residue(code: str, pattern_file: Path, switch: str = "on") -> list[fa.Residue]:
    """What a process that runs this code has of the secret when it is done with it."""
    command = [sys.executable, "-c", PRELUDE, switch, code, str(pattern_file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            secret = pattern_file.read_bytes()
            found = fa.find_residue(pattern_file, pid=process.pid, as_int=True)
            return found + fa.find_residue(secret.hex().encode(), pid=process.pid)
        finally:
            process.stdin.write("\n")
            process.stdin.close()
            assert process.wait() == 0


# Code that has held the secret in a Python object of a kind, and frees it.
HOLDERS = {
    "bytes": "s = read(); del s",
    "int": "s = number(); del s",
    "str": "s = text(); del s",
    "bytearray": "s = bytearray(read()); del s",
    "bytearray that grew": "s = bytearray(read()); s.extend(bytes(1 << 16)); s.extend(bytes(1 << 20)); del s",
    "bytearray that shrank": "s = bytearray(bytes(10000)) + read(); del s[:9990]; s.clear(); del s",
    "large bytes": "s = bytes(20000) + read(); del s",
    "huge bytes": "s = bytes(3 << 20) + read(); del s",
    "huge list": "s = [read()] * 300000; s.append(0); s *= 2; del s",
    "dict": "s = {read(): text() for _ in range(3)}; s.update({i: i for i in range(1000)}); del s",
    "set": "s = {read(), text(), number()}; del s",
    "tuple": "s = (read(), (number(),)); del s",
    "str by concatenation": "s = ''\nfor c in text(): s += c\ndel s",
    "BytesIO": "s = io.BytesIO(); s.write(read()); s.write(bytes(100000)); s.close(); del s",
    "array": "s = array.array('Q', read()); s.extend(range(10000)); del s",
    "slices": "s = read(); t = [s[i:] for i in range(16)]; del s, t",
    "formatting": "s = f'{number():x} {text()!r}'; del s",
    "arithmetic": "s = number(); t = s * 3 // 3 ^ 1 << 400; del s, t",
    "exception": "try: raise ValueError(read())\nexcept ValueError as e: pass",
    "slots": "C = type('C', (), {'__slots__': ('a',)}); s = C(); s.a = read(); del s",
    "generator": "def g():\n  s = read(); yield 1; yield s\nh = g(); next(h); del h",
    "threads": "t = [threading.Thread(target=lambda: (read(), text(), number())) for _ in range(4)]\n"
    "[x.start() for x in t]; [x.join() for x in t]; del t",
}


@scans_memory
def test_nothing_is_left_of_freed_objects(pattern_file: Path) -> None:
    if residue("\n".join(HOLDERS.values()), pattern_file):
        left = {name: [str(one) for one in residue(code, pattern_file)] for name, code in HOLDERS.items()}
        assert {name: places for name, places in left.items() if places} == {}
        raise AssertionError("each holder for itself leaves nothing, but all in a row do")


@scans_memory
def test_without_it_the_secrets_are_there(pattern_file: Path) -> None:
    """Else the test above would prove nothing."""
    everything = "\n".join(HOLDERS.values())
    kinds = {one.form for one in residue(everything, pattern_file, "off")}
    assert "as it is" in kinds


@scans_memory
def test_an_object_that_is_alive_is_found(pattern_file: Path) -> None:
    assert {one.form for one in residue("s = read(); n = number()", pattern_file)} == {"as it is", "reversed digits"}


@scans_memory
def test_large_objects_from_before_are_wiped_too(pattern_file: Path) -> None:
    """They come from malloc, whose blocks tell their size; small ones are left to Python's own allocator."""
    code = "s = bytearray(10000)\nopen(sys.argv[3], 'rb', buffering=0).readinto(memoryview(s)[5000:])\n"
    assert residue(code + "fa.wipe_freed_objects(); del s", pattern_file, "off") == []
    assert residue(code + "del s", pattern_file, "off") != []


# ---- that programs run as before -------------------------------------------------------------------------------------

# A program that makes, resizes and frees all sorts of things, and knows what must come out.
WORK = """
import gc, json, pickle, random, re, sys
def work(seed=1, rounds=3):
    rng = random.Random(seed)
    kept = {}
    for _ in range(rounds):
        for i in range(1000):
            size = int(2 ** rng.uniform(0, 14))
            kept[rng.randrange(200)] = [bytes([i % 256]) * size, str(i) * (size // 4), i << size, bytearray(size)]
            victim = kept.get(rng.randrange(200))
            if victim:
                victim[3].extend(b"x" * rng.randrange(3000))
                del victim[3][: rng.randrange(len(victim[3]) + 1)]
                assert victim[0] == victim[0][:1] * len(victim[0])
                assert not victim[3].strip(b"\\0x"), "somebody else's bytes"
        numbers = [i for i in range(30000)]
        assert sum(numbers) == 449985000 and sum(numbers[::7]) == sum(range(0, 30000, 7))
        data = {str(i): [i, float(i), None, {"k": "v" * (i % 50)}] for i in range(500)}
        assert json.loads(json.dumps(data)) == data and pickle.loads(pickle.dumps(data)) == data
        assert bytes(1 << 21) == bytes(1 << 20) * 2 and not any(bytearray(70000))
        assert len(re.sub("(a+)(b)", r"\\2\\1", "aaab" * 20000)) == 80000
        gc.collect()
"""
CHECK = "import fastalloc as fa\nfrom fastalloc import _binding\n"
VALID = "\nassert _binding.freed_objects_are_valid()\nprint('fine')\n"


def works(script: str, **environment: str) -> str:
    """Its standard error, if it has worked."""
    env = {**os.environ, **environment}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False, env=env
    )
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr
    return done.stderr


def test_a_program_runs_as_before() -> None:
    assert works(CHECK + WORK + "work(1)\nfa.wipe_freed_objects()\nfa.wipe_freed_objects()\nwork(2)\n" + VALID) == ""


@pytest.mark.parametrize("allocator", ["malloc", "debug", "malloc_debug", "pymalloc_debug"])
def test_over_other_allocators_of_python(allocator: str) -> None:
    """PYTHONMALLOC=debug overwrites what is freed itself; the raw domain is then left to it."""
    assert (
        works(CHECK + WORK + "work(1, 1)\nfa.wipe_freed_objects()\nwork(2, 1)\n" + VALID, PYTHONMALLOC=allocator) == ""
    )


def test_from_the_environment() -> None:
    script = CHECK + "assert _binding.wipes_freed_objects()" + VALID
    assert works(script, FASTALLOC_WIPE_OBJECTS="1") == ""


def test_threads() -> None:
    script = """
import threading
fa.wipe_freed_objects()
threads = [threading.Thread(target=work, args=(i, 1)) for i in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
    assert works(CHECK + WORK + script + VALID) == ""


def test_switched_on_while_threads_use_the_raw_allocator() -> None:
    """Raw blocks are made and freed without the GIL: by the threads' own locks, by paths in system calls."""
    script = """
import os, threading, time
stop = False
def churn():
    while not stop:
        threading.Lock(); os.path.exists("/tmp/" + "x" * 200); os.listdir("/")
threads = [threading.Thread(target=churn) for _ in range(4)]
for thread in threads: thread.start()
time.sleep(0.05)
fa.wipe_freed_objects()
work(3, 1)
stop = True
for thread in threads: thread.join()
"""
    assert works(CHECK + WORK + script + VALID) == ""


def test_numpy_and_fork() -> None:
    script = """
import os, threading, warnings
import numpy as np
warnings.simplefilter("ignore", DeprecationWarning)  # of fork in a process with threads
fa.wipe_freed_objects()
arrays = [np.arange(i) for i in range(1000)]
stop = False
def keep_busy():  # to the end: a thread that ends may leave a lock of gcc 12's AddressSanitizer to a child
    while not stop: work(1, 1)
busy = threading.Thread(target=keep_busy)
busy.start()
for _ in range(5):
    child = os.fork()
    if child == 0:
        work(5, 1)
        assert sum(int(a.sum()) for a in arrays) == 166167000
        assert _binding.freed_objects_are_valid()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
stop = True
busy.join()
"""
    assert works(CHECK + WORK + script + VALID) == ""


def test_subprocess_and_multiprocessing() -> None:
    script = """
import multiprocessing, subprocess, sys
fa.wipe_freed_objects()
assert subprocess.run([sys.executable, "-c", "print(5)"], capture_output=True).stdout == b"5\\n"
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map(len, [b"x" * i for i in range(1000)]) == list(range(1000))
"""
    assert works(CHECK + WORK + script + VALID) == ""


def test_tracemalloc_after() -> None:
    script = """
import tracemalloc
fa.wipe_freed_objects()
for _ in range(2):
    tracemalloc.start(5)
    held = [bytes(1000) for _ in range(1000)]
    current, peak = tracemalloc.get_traced_memory()
    assert 1_000_000 < current < 2_000_000, current
    work(1, 1)
    assert tracemalloc.take_snapshot().statistics("lineno")
    tracemalloc.stop()
    work(1, 1)
"""
    assert works(CHECK + WORK + script + VALID) == ""


@pytest.mark.parametrize("start", ["tracemalloc.start(7)", ""])
def test_tracemalloc_before(start: str) -> None:
    """It is stopped and started again, so that stopping it later does not take the layer away."""
    script = f"""
import tracemalloc
{start}
assert tracemalloc.is_tracing()
early = [bytes(1000) for _ in range(1000)]
fa.wipe_freed_objects()
assert tracemalloc.is_tracing() and tracemalloc.get_traceback_limit() == 7
held = [bytes(1000) for _ in range(1000)]
current, peak = tracemalloc.get_traced_memory()
assert 1_000_000 < current < 2_000_000, current
work(1, 1)
tracemalloc.stop()
del early
work(1, 1)
"""
    assert works(CHECK + WORK + script + VALID, **({} if start else {"PYTHONTRACEMALLOC": "7"})) == ""


def test_tracemalloc_is_on_to_the_end() -> None:
    assert works(CHECK + WORK + "fa.wipe_freed_objects()\nwork(1, 1)\n" + VALID, PYTHONTRACEMALLOC="3") == ""


@pytest.mark.parametrize("order", ["before", "after"])
def test_faulthandler(order: str) -> None:
    """Both of its ways: on a fatal signal, and from its own thread.

    That thread reads the frames of the others without the GIL and with every signal blocked. If they run meanwhile the
    process may end in silence, with or without fastalloc (github.com/python/cpython/issues/131580): here they stand.
    """
    on, handler = "fa.wipe_freed_objects()\n", "faulthandler.enable()\n"
    script = (
        CHECK
        + WORK
        + "import ctypes, faulthandler, select\n"
        + (on + handler if order == "after" else handler + on)
        + (
            "work(1, 1)\n"
            "faulthandler.dump_traceback_later(0.01)\nselect.select([0], [], [], 60)\n"
            "faulthandler.cancel_dump_traceback_later()\nwork(2, 1)\n"
            "faulthandler.disable(); faulthandler.enable()\n"
            "def here(): ctypes.string_at(0)\nhere()\n"
        )
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script], stdin=pipe, stderr=pipe, text=True) as process:
        assert process.stderr is not None
        dump = []
        for line in process.stderr:
            dump.append(line)
            if "in <module>" in line:
                break
        assert "".join(dump).startswith("Timeout (0:00:00.01"), dump
        _, fatal = process.communicate("go", timeout=120)
    assert process.returncode != 0
    assert "Fatal Python error: Segmentation fault" in fatal
    assert "in here" in fatal


def test_the_end_of_the_process_is_clean() -> None:
    script = """
import atexit, sys, threading, weakref
fa.wipe_freed_objects()
class Late:
    def __del__(self): work(1, 1)
late = Late(); late.me = late
sys.late = Late()
atexit.register(work, 2, 1)
threading.Thread(target=lambda: work(3, 1)).start()
threading.Thread(target=lambda: [work(4, 1) for _ in range(10000)], daemon=True).start()
"""
    assert works(CHECK + WORK + script + VALID) == ""


def test_a_subinterpreter_is_refused_then() -> None:
    script = """
import sys
interpreters = __import__("_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters")
fa.wipe_freed_objects()
for _ in range(2):
    try:
        interpreters.create()
    except fa.UnsupportedError as error:
        assert "wipe_freed_objects() has been called" in str(error)
    else:
        raise AssertionError
work(1, 1)
"""
    assert works(CHECK + WORK + script + VALID) == ""


def test_a_subinterpreter_that_c_code_makes_is_the_end() -> None:
    done = run_python("import ctypes, fastalloc as fa\nfa.wipe_freed_objects()\nctypes.pythonapi.Py_NewInterpreter()")
    assert done.returncode != 0
    assert "fastalloc: a subinterpreter was made after wipe_freed_objects(), which works in one" in done.stderr


def test_it_is_refused_with_a_subinterpreter() -> None:
    script = """
import sys
interpreters = __import__("_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters")
made = interpreters.create()
try:
    fa.wipe_freed_objects()
except fa.UnsupportedError as error:
    assert "there is a subinterpreter" in str(error)
else:
    raise AssertionError
assert not _binding.wipes_freed_objects()
interpreters.destroy(made)
fa.wipe_freed_objects()
work(1, 1)
"""
    assert works(CHECK + WORK + script + VALID) == ""


@pytest.mark.parametrize(
    ("pretend", "message"),
    [
        ("import sys; sys.implementation.name = 'other'", "other has no allocators"),
        ("import sysconfig; sysconfig.get_config_vars()['Py_GIL_DISABLED'] = 1", "free-threaded"),
    ],
)
def test_it_is_refused_on_other_pythons(pretend: str, message: str) -> None:
    script = f"""
{pretend}
try:
    fa.wipe_freed_objects()
except fa.UnsupportedError as error:
    assert {message!r} in str(error)
else:
    raise AssertionError
assert not _binding.wipes_freed_objects()
"""
    assert works(CHECK + script + VALID) == ""


def test_memory_is_given_back() -> None:
    script = """
import os
def resident(): return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20
fa.wipe_freed_objects()
before = resident()
for _ in range(3):
    held = [bytes(100) for _ in range(1_000_000)]
    grown = resident()
    assert grown > before + 100, (before, grown)
    del held
    after = resident()
assert after < before + (grown - before) * 0.45, (before, grown, after)
"""
    assert works(CHECK + script + VALID) == ""


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[[str], subprocess.CompletedProcess[str]]]:
    def run(code: str) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "program.py"
        path.write_text(code)
        command = [sys.executable, "-m", "fastalloc.cli", "run", "--wipe-objects", str(path)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    return run


def test_the_command(program: Callable[[str], subprocess.CompletedProcess[str]]) -> None:
    code = "from fastalloc import _binding\nassert _binding.wipes_freed_objects()\n"
    child = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {code!r}], check=True)\n"
    done = program(WORK + code + child + "work(1, 1)\nprint('done'); sys.exit(3)")
    assert (done.returncode, done.stdout, done.stderr) == (3, "done\n", "")
