"""Fork, exit, subinterpreters, limits of the process: each in an interpreter of its own."""

import ctypes
import os
import sys
from pathlib import Path

import pytest
from conftest import run_python

import fastalloc as fa

START = "import os, sys, gc, threading, numpy as np, fastalloc as fa\n"


def run(script: str, code: int = 0, timeout: int = 120) -> tuple[str, str]:
    """What it printed on standard output and on standard error."""
    done = run_python(START + script, timeout=timeout)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout, done.stderr


def test_exit_with_everything_open() -> None:
    out, err = run("""
arenas = fa.Arenas("1MiB", "4MiB", "1MiB")
manager = fa.Manager()
fa.set_allocator(arenas.polynomial)
using = fa.using_allocator(arenas.witness); using.__enter__()
scope = arenas.scratch.scope(); scope.__enter__()
track = manager.track(); track.__enter__()
array = np.ones(1000); view = array[10:]
block = manager.malloc(100); memory = memoryview(block)
cycle = [arenas, array, block]; cycle.append(cycle)
sys.modules["keep_me"] = cycle
print("end")
""")
    assert (out, err) == ("end\n", "")


@pytest.mark.parametrize("ending", ["sys.exit(3)", "raise SystemExit(3)", "os._exit(3)"])
def test_other_ways_to_exit(ending: str) -> None:
    run(f"witness = fa.Witness('1MiB'); array = witness.ones(100)\n{ending}", code=3)


def test_exit_by_an_exception() -> None:
    _, err = run("witness = fa.Witness('1MiB'); array = witness.ones(100)\nraise KeyError('mine')", code=1)
    assert "KeyError: 'mine'" in err
    assert "fastalloc" not in err.replace("import os, sys, gc, threading, numpy as np, fastalloc as fa", "")


def test_exit_wipes_what_is_open_retired_or_forgotten() -> None:
    """An atexit function that runs after ours looks at the memory: arrays that are alive are zero."""
    out, _ = run_python(
        """
import atexit, sys
kept = []
def look():
    print([float(array.sum()) for array in kept], [arena.closed for arena in arenas])
atexit.register(look)
import numpy as np, fastalloc as fa
opened, retired, forgotten = (fa.Witness("64KiB") for _ in range(3))
kept += [arena.ones(10) for arena in (opened, retired, forgotten)]
kept.append(fa.Scratch("64KiB").ones(10))
retired.reset(retire=True)
arenas = [opened, retired]
del forgotten
fa.set_allocator(opened)
print(float(sum(array.sum() for array in kept)))
"""
    ).stdout.splitlines()
    assert out == "40.0"
    assert _ == "[0.0, 0.0, 0.0, 10.0] [True, True]"


def test_numpy_works_in_atexit_functions() -> None:
    out, _ = run("""
import atexit
witness = fa.Witness("64KiB")
fa.set_allocator(witness)
""")
    assert out == ""
    done = run_python(
        "import atexit; atexit.register(lambda: print(np.ones(3).sum()))\n"
        + START
        + "fa.set_allocator(fa.Scratch('64KiB'))"
    )
    assert (done.stdout, done.stderr) == ("3.0\n", "")


def test_arrays_that_die_during_shutdown() -> None:
    out, err = run("""
class Late:
    def __init__(self, array): self.array = array
    def __del__(self):
        self.array += 1
        self.array = None
arena = fa.Polynomial("1MiB")
late = [Late(arena.ones(100)) for _ in range(10)]
late.append(late)
sys.late = late
del late
print("end")
""")
    assert (out, err) == ("end\n", "")


def test_a_daemon_thread_allocates_until_the_end() -> None:
    run("""
arena, manager = fa.Polynomial("1MiB"), fa.Manager()
def work():
    with fa.using_allocator(arena):
        while True:
            try:
                np.ones(1000) + 1
                manager.malloc(100)
            except (MemoryError, fa.ClosedError):
                pass
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
import time; time.sleep(0.05)
""")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_fork() -> None:
    """A child sees its parent's arrays, but zeros in a witness arena; all go on to work in both."""
    out, _ = run("""
arenas = fa.Arenas("1MiB", "4MiB", "1MiB")
manager = fa.Manager()
secret, vector, temporary = (arena.full(1000, 7.0) for arena in arenas)
block = manager.malloc(64); memoryview(block)[:] = b"x" * 64
sys.stdout.flush()
child = os.fork()
if child == 0:
    wiped = arenas.witness.protection.wipe_on_fork > 0
    assert (secret == (0.0 if wiped else 7.0)).all(), "secret in the child"
    assert (vector == 7.0).all() and (temporary == 7.0).all() and bytes(block) == b"x" * 64
    for arena in arenas:
        with fa.using_allocator(arena):
            assert ((np.ones(1000) + 1) == 2).all()
    fresh = fa.Witness("64KiB")
    assert (fresh.full(10, 3.0) == 3.0).all()
    manager.realloc(block, 128); manager.free(block)
    del secret, vector, temporary
    assert all(arena.live == 0 for arena in arenas)
    for arena in arenas:
        arena.reset()
    sys.exit(0)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0
assert (secret == 7.0).all()
print("parent", [arena.live for arena in arenas])
""")
    assert out == "parent [1, 1, 1]\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore")
def test_fork_while_threads_allocate() -> None:
    """No lock is held in a child that nobody there would release."""
    rounds = 15
    out, _ = run(
        f"""
import warnings; warnings.simplefilter("ignore")
arena, witness, manager = fa.Polynomial("8MiB"), fa.Witness("1MiB"), fa.Manager(pool_blocks=16)
stop = False
def work():
    while not stop:
        for allocator in (arena, witness, manager):
            with fa.using_allocator(allocator):
                try:
                    np.ones(200) + 1
                except MemoryError:
                    pass
        block = manager.malloc(300); block = manager.realloc(block, 70000); block.free()
        with arena.scope():
            arena.alloc(100)
        fa.Scratch("64KiB").ones(10)
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads: thread.start()
for _ in range({rounds}):
    child = os.fork()
    if child == 0:
        for allocator in (arena, witness, manager):
            with fa.using_allocator(allocator):
                try:
                    np.ones(200) + 1
                except MemoryError:
                    pass
        manager.malloc(100).free()
        fa.Manager().malloc(5)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
stop = True
for thread in threads: thread.join()
print("end")
""",
        timeout=300,
    )
    assert out == "end\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_fork_in_a_finalizer_and_with_hooks_that_allocate() -> None:
    """Python code of others that runs around the fork may use arenas."""
    out, _ = run("""
arena, kept = fa.Polynomial("1MiB"), []
def hook():
    with fa.using_allocator(arena):
        kept.append(np.ones(100))
        kept[:] = kept[-1:]
    arena.reset(retire=True)
os.register_at_fork(before=hook, after_in_parent=hook, after_in_child=hook)
for _ in range(3):
    child = os.fork()
    if child == 0:
        os._exit(0 if (kept[0] == 1).all() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
print("end")
""")
    assert out == "end\n"


def test_multiprocessing_sends_copies() -> None:
    out, _ = run("""
import multiprocessing
context = multiprocessing.get_context("fork")
arena = fa.Scratch("1MiB")
array = arena.arange(10.0)
with context.Pool(2) as pool:
    print(pool.map(np.sum, [array, array * 2]))
""")
    assert out.replace("np.float64(", "").replace(")", "") == "[45.0, 90.0]\n"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS as Linux has it")
def test_rlimit_as() -> None:
    if os.environ.get("LD_PRELOAD"):
        pytest.skip("a sanitizer needs the address space")
    out, _ = run("""
import resource
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), -1))
small = fa.Scratch("1MiB")
array = small.ones(10)
for make in (lambda: fa.Polynomial("1GiB"), lambda: fa.Manager(10**7), lambda: fa.Arenas(polynomial="1GiB")):
    try:
        make()
    except fa.OutOfMemoryError as error:
        print(type(error).__name__)
try:
    fa.Manager().malloc("1GiB")
except fa.OutOfMemoryError as error:
    print(type(error).__name__)
assert (array == 1).all() and small.live == 1
""")
    assert out == "OutOfMemoryError\n" * 4


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_MEMLOCK as Linux has it")
def test_a_lock_that_is_required_and_refused() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs to become another user")
    if os.environ.get("LD_PRELOAD"):
        pytest.skip("a sanitizer makes mlock do nothing")
    out, _ = run("""
import resource
resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 << 10, 64 << 10))
os.setuid(65534)
tried = fa.Witness("16MiB")
array = tried.ones(1 << 20)
print(tried.protection.lock_limit, tried.protection.locked < tried.protection.lock_wanted)
try:
    required = fa.Witness("16MiB", lock="require")
    array = required.alloc("8MiB")
except fa.LockError as error:
    print("LockError", "65536" in str(error) or "RLIMIT_MEMLOCK" in str(error))
""")
    assert out == "65536 True\nLockError True\n"


def test_a_subinterpreter_is_refused() -> None:
    interpreters = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
    out, _ = run(f"""
import {interpreters} as interpreters
made = interpreters.create()
array = fa.Scratch("1MiB").ones(10)
code = '''
try:
    import fastalloc
except ImportError as error:
    print("ImportError", flush=True)
'''
result = (interpreters.exec if hasattr(interpreters, "exec") else interpreters.run_string)(made, code)
assert (array == 1).all()
""")
    assert out == "ImportError\n"


def test_without_numpy_it_still_makes_blocks() -> None:
    done = run_python("""
import sys
sys.modules["numpy"] = None
import fastalloc as fa
with fa.Manager() as manager, fa.Scratch("1MiB") as arena:
    manager.malloc(10).free()
    assert arena.owns(arena.alloc(10))
    try:
        arena.zeros(3)
    except ImportError:
        print("ImportError")
    try:
        fa.get_allocator()
    except ImportError:
        print("ImportError")
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "ImportError\nImportError\n", "")


def test_import_does_not_import_numpy() -> None:
    assert run_python("import sys, fastalloc; print('numpy' in sys.modules)").stdout == "False\n"


def test_the_package_says_where_its_c_files_are() -> None:
    header = Path(fa.get_include(), "fastalloc.h").read_text()
    assert f'#define FA_VERSION "{fa.__version__}"' in header
    assert Path(fa.get_include(), "fastalloc32.h").exists()
    library = ctypes.CDLL(fa.get_library())
    library.fa_version.restype = ctypes.c_char_p
    assert library.fa_version().decode() == fa.__version__
