"""install(): NumPy's data for the whole process. Each test is a process of its own: the change reaches everything."""

import textwrap
import time
from pathlib import Path

import pytest
from conftest import SANITIZED, run_python

START = """
import gc, os, sys, threading
import numpy as np
import fastalloc as fa
from fastalloc import _binding
"""
END = """
gc.collect()
assert _binding.installed_is_valid()
print("fine")
"""


def run(script: str, *, end: str = END) -> str:
    """Run the script in a fresh interpreter; it must end well and be silent on standard error."""
    ran = run_python(START + textwrap.dedent(script) + end)
    assert ran.returncode == 0, ran.stderr
    assert not ran.stderr
    assert ran.stdout.endswith("fine\n")
    return ran.stdout


# ---- on and off ------------------------------------------------------------------------------------------------------


def test_new_arrays_of_all_threads_are_routed_and_old_ones_stay() -> None:
    run("""
        from concurrent.futures import ThreadPoolExecutor
        old = np.ones(1000)
        pool = ThreadPoolExecutor(1)
        assert not pool.submit(lambda: fa.handles(np.ones(3))).result()
        installed = fa.install()
        assert isinstance(installed, fa.InstalledAllocator)
        assert fa.get_allocator() is installed
        assert fa.handles(np.ones(3)) and not fa.handles(old)
        assert pool.submit(lambda: fa.handles(np.ones(3))).result()
        found = []
        thread = threading.Thread(target=lambda: found.append(np.ones(3)))
        thread.start(); thread.join()
        assert fa.handles(found[0])
        fa.uninstall()
        assert fa.get_allocator() is None
        assert not fa.handles(np.ones(3))
        assert not pool.submit(lambda: fa.handles(np.ones(3))).result()
        assert fa.handles(found[0]) and found[0].sum() == 3
        del found[:]
    """)


def test_install_is_idempotent_and_uninstall_too() -> None:
    run("""
        fa.uninstall()
        assert fa.install() is fa.install() is fa.install(large_cache="1MiB", decay=None, huge_pages="off")
        assert fa.install(fa.get_allocator()) is fa.get_allocator()
        fa.uninstall(); fa.uninstall()
        assert fa.get_allocator() is None
        fa.install()
        assert fa.handles(np.ones(3))
    """)


def test_a_finalizer_that_uninstalls() -> None:
    """What was installed before goes while install() is still at work."""
    run("""
        class Mine(fa.Polynomial):
            def __del__(self):
                fa.uninstall()
        for what in (None, fa.Scratch("1MiB")):
            fa.install(Mine("1MiB"))
            installed = fa.install(what)
            assert installed is what or isinstance(installed, fa.InstalledAllocator)
            assert fa.get_allocator() is None
    """)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ("3", "ArgumentTypeError", "allocator: expected an Arena, a Manager or None"),
        ("large_cache='much'", "ArgumentError", "large_cache"),
        ("large_cache=-1", "ArgumentError", "large_cache"),
        ("decay=0", "ArgumentError", "decay: 0 is not between"),
        ("decay='1s'", "ArgumentTypeError", "decay: expected seconds or None"),
        ("huge_pages='hugetlb'", "ArgumentError", "huge_pages: 'hugetlb' is not one of 'off', 'transparent'"),
        ("huge_pages=['off']", "ArgumentTypeError", "huge_pages: expected one of 'off', 'transparent', not list"),
        ("huge_pages=None", "ArgumentTypeError", "huge_pages: expected 'off' or 'transparent', not None"),
        ("closed", "ClosedError", "is closed"),
    ],
)
def test_wrong_arguments_change_nothing(arguments: str, error: str, message: str) -> None:
    run(f"""
        closed = fa.Scratch("1MiB")
        closed.close()
        try:
            fa.install({arguments})
        except fa.{error} as error:
            assert {message!r} in str(error), error
        else:
            raise AssertionError
        assert fa.get_allocator() is None and not fa.handles(np.ones(3))
    """)


@pytest.mark.parametrize(
    "order", ["import numpy, fastalloc as fa", "import fastalloc as fa", "import fastalloc as fa, numpy"]
)
def test_order_of_imports(order: str) -> None:
    ran = run_python(
        f"{order}\nfa.install()\nimport numpy as np\nprint(fa.handles(np.ones(3)), fa.handles(np.zeros(10**7)))"
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "True True\n", "")


# ---- blocks ----------------------------------------------------------------------------------------------------------

SIZES = (0, 1, 63, 64, 65, 1023, 1024, 1025, 8191, 8192, 8193, 100_000, 2**19, 2**19 + 1, 5_000_000, 40_000_000)


def test_sizes_alignment_zeros_and_contents() -> None:
    run(f"""
        fa.install()
        for size in {SIZES}:
            for _ in range(3):
                arrays = [np.empty(size, np.uint8), np.zeros(size, np.uint8), np.full(size, 7, np.uint8)]
                assert not arrays[1].any() and (arrays[2] == 7).all()
                for number, array in enumerate(arrays):
                    assert fa.handles(array) and array.ctypes.data % 64 == 0
                    array[:] = 101 + number
                for number, array in enumerate(arrays):
                    assert (array == 101 + number).all()
        del array, arrays
        gc.collect()
        assert fa.numpy_stats().arrays == 0, fa.numpy_stats()
    """)


def test_resize_of_old_and_new_arrays() -> None:
    run(f"""
        sizes = {SIZES}
        old = np.arange(100, dtype=np.uint8)
        kept = np.arange(100, dtype=np.uint8)
        fa.install()
        def walk(array, path):
            expected = array.copy()
            for size in path:
                array.resize(size, refcheck=False)
                expected = np.concatenate([expected[:size], np.zeros(max(0, size - len(expected)), np.uint8)])
                assert np.array_equal(array, expected)
        walk(old, sizes + sizes[::-1])
        new = np.arange(100, dtype=np.uint8)
        walk(new, sizes[::-1] + sizes)
        assert not fa.handles(old) and fa.handles(new)
        fa.uninstall()
        walk(new, (3, 70_000, 3_000_000, 10))
        walk(old, (3, 70_000, 3_000_000, 10))
        assert kept.sum() == np.arange(100).sum()
    """)


def test_random_life_of_arrays() -> None:
    run("""
        import random
        rng = random.Random(1)
        live = []
        for step in range(20_000):
            if step % 500 == 0:
                (fa.install if step % 1000 == 0 else fa.uninstall)()
                assert _binding.installed_is_valid()
            if step % 3000 == 2999 and fa.get_allocator():
                fa.get_allocator().trim()
            if live and rng.random() < 0.5:
                array, mark = live.pop(rng.randrange(len(live)))
                assert (array == mark).all()
            else:
                size = int(2 ** rng.uniform(0, 21 if rng.random() < 0.02 else 14))
                mark = rng.randrange(256)
                live.append((np.full(size, mark, np.uint8), mark))
        for array, mark in live:
            assert (array == mark).all()
        del live, array
        gc.collect()
        fa.install()
        assert fa.numpy_stats().arrays == 0
        fa.get_allocator().trim()
        assert fa.numpy_stats().cached == 0
    """)


def test_tracemalloc_sees_the_arrays() -> None:
    run("""
        import tracemalloc
        fa.install()
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        array = np.ones(1_000_000)
        assert tracemalloc.get_traced_memory()[0] - before >= 8_000_000
        del array
        assert tracemalloc.get_traced_memory()[0] - before < 100_000
        tracemalloc.stop()
    """)


def test_stats() -> None:
    run("""
        assert fa.numpy_stats().arrays == 0
        fa.install()
        before = fa.numpy_stats()
        arrays = [np.ones(8), np.ones(100_000), np.ones(10_000_000)]
        change = fa.numpy_stats() - before
        assert change.arrays == 3 and change.used >= 80_800_064, change
        fa.uninstall()
        assert fa.numpy_stats().arrays == 3
        del arrays
        assert fa.numpy_stats().arrays == before.arrays
        arena = fa.install(fa.Polynomial("1MiB"))
        array = np.ones(8)
        assert isinstance(fa.numpy_stats(), fa.ArenaStats) and fa.numpy_stats().live == 1
    """)


def test_memory_goes_back_after_the_decay_and_the_budget_holds() -> None:
    run("""
        import time
        def resident():
            return int(open("/proc/self/statm").read().split()[1]) * 4096
        fa.install(decay=0.5, large_cache="64MiB")
        np.ones(10)
        start = resident()
        for size in (30, 20, 40, 10, 25):
            np.ones(size << 17)
        stats = fa.numpy_stats()
        assert stats.cached <= 64 << 20, stats
        arrays = [np.ones(1000) for _ in range(10_000)] + [np.ones(30_000) for _ in range(300)]
        del arrays
        for _ in range(8):
            time.sleep(0.3)
            fa.numpy_stats()
        assert resident() - start < 24 << 20, (resident() - start) >> 20
    """)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="there is no /proc/PID/status")
def test_an_idle_process_gives_back_too() -> None:
    """By a thread that is there while there is something to give back, in a forked child as well."""
    run("""
        import time, warnings
        def status(field):
            line, = (line for line in open("/proc/self/status") if line.startswith(field + ":"))
            return int(line.split()[1])
        def idle():  # touches no array
            end = time.monotonic() + 20
            while (status("VmRSS") - start > 8 << 10 or status("Threads") > threads) and time.monotonic() < end:
                time.sleep(0.05)
            assert status("VmRSS") - start <= 8 << 10, (status("VmRSS") - start) >> 10
            assert status("Threads") == threads
        def work():
            arrays = [np.ones(10_000_000)] + [np.ones(20_000) for _ in range(200)]
            assert fa.numpy_stats().used >= 112_000_000
            del arrays
            assert status("Threads") == threads + 1
        fa.install(decay=0.4)
        np.ones(100), np.ones(20_000)
        start, threads = status("VmRSS"), status("Threads")
        for _ in range(2):  # it comes again
            work()
            idle()
        work()
        warnings.simplefilter("ignore")  # newer Pythons warn when a process with threads forks
        child = os.fork()
        if not child:
            try:
                threads = status("Threads")
                work()
                idle()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        fa.uninstall()
        threads = 1  # those of BLAS ended at the fork
        idle()
    """)


def test_the_thread_of_the_decay_and_tracemalloc() -> None:
    run("""
        import time, tracemalloc
        fa.install(decay=0.08)
        for _ in range(20):  # a thread each time, made while it is traced
            tracemalloc.start()
            np.ones(1_000_000)
            tracemalloc.stop()
            time.sleep(0.15)
    """)


@pytest.mark.parametrize("last", ["pass", "fa.uninstall()", "threading.Thread(target=lambda: kept.clear()).start()"])
def test_the_end_of_the_interpreter_does_not_wait_for_the_decay(last: str) -> None:
    begin = time.monotonic()
    run(f"""
        fa.install(decay=0.1)
        kept = [np.ones(3_000_000) for _ in range(10)]
        del kept[5:]
        fa.install(decay=3600)
        kept.pop()
        {last}
    """)
    assert time.monotonic() - begin < 60


def test_without_decay_and_without_cache() -> None:
    run("""
        fa.install(decay=None)
        np.ones(10_000_000)
        assert fa.numpy_stats().cached >= 80_000_000
        fa.get_allocator().trim()
        assert fa.numpy_stats().cached == 0
        fa.install(large_cache=0)
        for size in (100_000, 1_000_000, 10_000_000):
            np.ones(size).resize(size * 2, refcheck=False)
        assert fa.numpy_stats().cached < 8 << 20
    """)


def test_without_address_space_numpys_own_functions_serve() -> None:
    run("""
        import resource
        used = int(open("/proc/self/statm").read().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (used + (40 << 20), resource.RLIM_INFINITY))
        fa.install()
        arrays = [np.ones(size) for size in (1, 1000, 10_000, 100_000)]
        try:
            np.ones(10**8)
        except MemoryError:
            pass
        else:
            raise AssertionError
        assert [array.sum() for array in arrays] == [1, 1000, 10_000, 100_000]
    """)


# ---- an arena or a manager -------------------------------------------------------------------------------------------

MAKERS = ["fa.Polynomial('64MiB')", "fa.Scratch('64MiB')", "fa.Witness('4MiB')", "fa.Manager()"]


@pytest.mark.parametrize("maker", MAKERS)
def test_of_an_arena_or_manager(maker: str) -> None:
    run(f"""
        old = np.ones(1000)
        arena = {maker}
        assert fa.install(arena) is arena is fa.get_allocator()
        arrays = [np.full(size, 3) for size in (1, 1000, 20_000)]
        assert all(arena.owns(array) for array in arrays)
        arrays[1].resize(5000, refcheck=False)
        assert arena.owns(arrays[1])
        fa.install()
        new = np.ones(1000)
        assert not arena.owns(new) and fa.handles(new)
        fa.uninstall()
        arrays[1].resize(7000, refcheck=False)     # moves to where new blocks come from
        assert arrays[1][:1000].sum() == 3000 and not arena.owns(arrays[1])
        assert arena.live == 2
        del arena
        gc.collect()
        assert [array[0] for array in arrays] == [3, 3, 3] and fa.handles(arrays[0])
        del arrays, old
    """)


def test_memory_that_was_installed_goes_with_its_last_array() -> None:
    run("""
        import weakref
        arena = fa.install(fa.Polynomial("8MiB"))
        memory = weakref.ref(arena._heap)
        kept, view = np.ones(1000), np.ones(1000)[10:]
        fa.uninstall()
        del arena, kept
        assert memory() is not None
        del view
        for _ in range(1000):
            if memory() is None:
                break
        assert memory() is None
    """)


def test_closing_and_retiring_what_is_installed() -> None:
    run("""
        arena = fa.install(fa.Polynomial("8MiB", on_full="fail"))
        array = np.ones(1000)
        arena.reset(retire=True)
        second = np.full(1000, 2.0)
        assert arena.owns(second) and not arena.owns(array)
        try:
            np.ones(2 << 20)
        except MemoryError:
            pass
        else:
            raise AssertionError
        arena.close()
        try:
            np.ones(1000)
        except MemoryError:
            pass
        else:
            raise AssertionError
        fa.uninstall()
        assert array.sum() == 1000 and second.sum() == 2000
        del array, second
    """)


# ---- scopes on top ---------------------------------------------------------------------------------------------------


def test_scopes_on_top() -> None:
    run("""
        before = fa.using_allocator(None)
        before.__enter__()
        installed = fa.install()
        assert fa.get_allocator() is None and not fa.handles(np.ones(3))
        before.__exit__(None, None, None)
        arena = fa.Polynomial("8MiB")
        with fa.using_allocator(arena):
            assert fa.get_allocator() is arena and arena.owns(np.ones(3))
            with fa.using_allocator(None):
                assert fa.get_allocator() is None and not fa.handles(np.ones(3))
            with fa.using_allocator(installed):
                assert fa.get_allocator() is installed
                array = np.ones(3)
                assert fa.handles(array) and not arena.owns(array)
            fa.uninstall()
            assert fa.get_allocator() is arena
            with fa.using_allocator(installed):
                assert fa.get_allocator() is installed and installed.owns(np.ones(3))
            fa.install()
        assert fa.get_allocator() is installed
        assert fa.set_allocator(None) is installed
        assert fa.get_allocator() is None and not fa.handles(np.ones(3))
        assert fa.set_allocator(installed) is None
        assert fa.get_allocator() is installed and fa.handles(np.ones(3))
        assert fa.set_allocator(arena) is installed
        assert fa.set_allocator(installed) is arena
    """)


def test_scopes_left_out_of_order() -> None:
    run("""
        installed = fa.install()
        one, two = fa.Polynomial("8MiB", name="one"), fa.Manager(name="two")
        outer, inner = fa.using_allocator(one), fa.using_allocator(two)
        outer.__enter__(); inner.__enter__()
        try:
            outer.__exit__(None, None, None)
        except fa.ScopeError as error:
            assert "'one'" in str(error) and "'two'" in str(error)
        else:
            raise AssertionError
        assert fa.get_allocator() is two
        inner.__exit__(None, None, None)
        assert fa.get_allocator() is installed and fa.handles(np.ones(3))
    """)


# ---- threads, fork, exit ---------------------------------------------------------------------------------------------


def test_thread_storm() -> None:
    run("""
        import contextlib, queue, random, time
        sys.setswitchinterval(1e-5)
        passed, errors = queue.Queue(), []
        end = time.monotonic() + 4
        def worker(seed):
            rng = random.Random(seed)
            mine = []
            try:
                while time.monotonic() < end:
                    mark = rng.randrange(1, 255)
                    array = np.full(int(2 ** rng.uniform(0, 22 if rng.random() < 0.02 else 13)), mark, np.uint8)
                    (mine.append if rng.random() < 0.5 else passed.put)((array, mark))
                    if mine and rng.random() < 0.4:
                        array, mark = mine.pop(rng.randrange(len(mine)))
                    else:
                        with contextlib.suppress(queue.Empty):
                            array, mark = passed.get_nowait()
                    assert (array == mark).all()
                    assert ((array + 1) == mark + 1).all()
                for array, mark in mine:
                    assert (array == mark).all()
            except BaseException as error:
                errors.append(error)
        threads = [threading.Thread(target=worker, args=(seed,)) for seed in range(6)]
        for thread in threads: thread.start()
        arena = fa.Polynomial("1GiB")
        while time.monotonic() < end - 0.2:
            for allocator in (None, arena, fa.uninstall):
                allocator() if allocator is fa.uninstall else fa.install(allocator)
                time.sleep(0.01)
                fa.numpy_stats()
        for thread in threads: thread.join()
        assert not errors, errors
        array = None
        while not passed.empty():
            array, mark = passed.get()
            assert (array == mark).all()
        del array, threads, worker
        fa.install()
        assert arena.live == 0
    """)


@pytest.mark.parametrize("decay", ["10.0", "0.08", "None"])
def test_fork(decay: str) -> None:
    """Beside threads that allocate, and with a decay beside one that comes and goes."""
    if SANITIZED and decay != "None":
        pytest.skip("gcc 12's AddressSanitizer forks with its locks as they are: one may be of a thread that ends")
    run(f"""
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        fa.install(decay={decay})
        arrays = [np.full(size, 5.0) for size in (1, 1000, 100_000, 1_000_000)]
        stop = threading.Event()
        def churn():
            while not stop.is_set():
                np.ones(100); np.ones(200_000)
        threads = [threading.Thread(target=churn) for _ in range(2)]
        for thread in threads: thread.start()
        for _ in range(20):
            child = os.fork()
            if child == 0:
                ok = all((array == 5).all() for array in arrays)
                arrays[2][:] = 6
                arrays[0].resize(50_000, refcheck=False)
                more = [np.ones(size) for size in (1, 1000, 300_000, 2_000_000)]
                ok = ok and _binding.installed_is_valid() and fa.handles(more[2])
                del arrays[:], more
                fa.uninstall(); np.ones(10); fa.install(decay={decay}); np.ones(10)
                os._exit(0 if ok else 1)
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        for thread in threads: thread.join()
        assert all((array == 5).all() for array in arrays)
    """)


@pytest.mark.parametrize("allocator", ["", *MAKERS])
def test_arrays_outlive_the_interpreter(allocator: str) -> None:
    run(
        f"""
        class Late:
            def __init__(self): self.array = np.ones(1000); self.large = np.ones(1_000_000 if {not allocator} else 1000)
            def __del__(self): self.array + 1; self.array.resize(3000, refcheck=False); np.zeros(10)
        import builtins, atexit, sys
        sys.late = builtins.late = Late()
        fa.install({allocator})
        sys.later = builtins.later = Late()
        atexit.register(lambda: np.ones(1000).sum())
        cycle = [np.ones(100)]
        cycle.append(cycle)
        thread = threading.Thread(target=lambda: [np.ones(1000).sum() for _ in iter(int, 1)], daemon=True)
        thread.start()
        """,
        end="\nprint('fine')\n",
    )


# ---- the command and the variable ------------------------------------------------------------------------------------


def test_the_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    script = "import fastalloc as fa, numpy as np; print(fa.handles(np.ones(3)))"
    for value, expected in (("1", "True\n"), ("0", "False\n"), ("", "False\n")):
        monkeypatch.setenv("FASTALLOC_NUMPY", value)
        ran = run_python(script)
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, expected, "")


# ---- what is not routed (docs/numpy.md) ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "routed"),
    [
        ("np.frombuffer(bytearray(800))", False),
        ("np.asarray(memoryview(bytearray(800)))", False),
        ("np.from_dlpack(np.frombuffer(bytearray(800)))", False),
        ("np.ctypeslib.as_array((ctypes.c_double * 100)())", False),
        ("np.memmap(tempfile.TemporaryFile(), np.uint8, shape=100)", False),
        ("np.array(np.frombuffer(bytearray(800)))", True),
        ("np.array(np.memmap(tempfile.TemporaryFile(), np.uint8, shape=100))", True),
        ("np.array([object(), 'text' * 100], object)", True),
        ("np.ones((10, 10))[2:].T", True),
        ("np.lib.stride_tricks.sliding_window_view(np.ones(100), 3)", True),
        ("np.resize(np.ones(3), 100)", True),
        ("np.ones(100).astype(float, copy=False)", True),
        ("pickle.loads(pickle.dumps(np.ones(1000)))", None),
        ("copy.deepcopy(np.ones(100))", True),
        ("np.add(np.ones(100), 1, out=np.empty(100))", True),
    ],
)
def test_what_is_routed_and_what_is_not(make: str, routed: bool | None) -> None:
    run(f"""
        import copy, ctypes, pickle, tempfile
        fa.install()
        array = {make}
        if {routed} is not None:
            assert fa.handles(array) is {routed}
        str(array)
    """)


def test_contents_and_workspaces_are_not_routed() -> None:
    run("""
        fa.install()
        def arrays_made(call):
            before = fa.numpy_stats()
            call()
            return (fa.numpy_stats() - before).arrays
        assert arrays_made(lambda: np.ones(1000).tobytes()) == 0
        assert arrays_made(lambda: np.ones(1000).tolist()) == 0
        kept = []
        assert arrays_made(lambda: kept.append(np.array([b"x" * 1000 for _ in range(100)], object))) == 1
        assert arrays_made(lambda: kept.append(np.ones(3)[0])) == 0
    """)
