"""NumPy's arrays in a minute: plain, with GLIBC_TUNABLES, in a scope, installed, and the preallocated `out=` limit.

    python asv_bench/quick_numpy.py [--rounds N] [--json FILE] [ROW ...]

Plain, scope, installed and limit are interleaved in this process; what is shown is the median over the rounds of the
ratio to plain of the same round, or to the limit where there is one. What is no state of a process runs in child
processes, in turn with plain ones: glibc with tunables, numpy-allocator if it is installed, and the memory of the mixed
loop. Faults are page faults per call in the last round. Below 1 is faster than what is compared with.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
from benchmarks.numpy_rows import FUNCTIONS, ROWS, Call, mixed

import fastalloc as fa

TUNABLES = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=4294967296:glibc.malloc.top_pad=268435456"


def measure(call: Call, repeat: int) -> tuple[float, float]:
    """(seconds, page faults) per call."""
    faults, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
    for _ in range(repeat):
        call()
    end = time.perf_counter()
    return (end - start) / repeat, (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults) / repeat


def repeats(call: Call) -> int:
    """So many that it takes about 20 ms, three at the least unless they are slow."""
    call()
    once = max(measure(call, 1)[0], 1e-7)
    once = max(measure(call, min(1000, int(0.002 / once) + 1))[0], 1e-8)
    return max(1 if once > 0.1 else 3, int(0.02 / once))


def row(name: str, rounds: int) -> dict[str, float]:
    """The medians of one row."""
    call, limit = ROWS[name]()
    arena = fa.Polynomial("8GiB")
    fa.install()
    fa.uninstall()  # the calls stay hooked, as in any process that has installed once
    repeat = repeats(call)
    seconds: dict[str, list[float]] = {column: [] for column in ("plain", "scope", "installed", "limit")}
    faults: dict[str, float] = {}
    for _ in range(rounds):
        for column in ("plain", "scope", "installed", "limit"):
            function = limit if column == "limit" else call
            if function is None:
                continue
            if column == "installed":
                fa.install()
            with fa.using_allocator(arena) if column == "scope" else nullcontext():
                measure(function, max(1, repeat // 8))
                time_, faults[column] = measure(function, repeat)
            seconds[column].append(time_)
            if column == "installed":
                fa.uninstall()
    base = "limit" if limit else "plain"
    found = {
        column: statistics.median(a / b for a, b in zip(values, seconds[base], strict=True))
        for column, values in seconds.items()
        if values
    }
    found |= {f"{column} faults": value for column, value in faults.items()}
    found["base_ns"] = statistics.median(seconds[base]) * 1e9
    arena.close()
    fa.install()
    allocator = fa.get_allocator()
    assert isinstance(allocator, fa.InstalledAllocator)
    allocator.trim()
    fa.uninstall()
    return found


def in_turns(first: Call, second: Call, rounds: int) -> float:
    """The median of what `second` takes, relative to `first`."""
    repeat = repeats(first)
    turns = [(measure(first, repeat)[0], measure(second, repeat)[0]) for _ in range(rounds)]
    return statistics.median(b / a for a, b in turns)


class Nothing:
    """What a `with` costs by itself."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def functions(rounds: int) -> dict[str, float]:
    """The arena functions relative to NumPy's, and entering and leaving a scope relative to an empty `with`."""
    arena = fa.Polynomial("64MiB")
    found = {
        f"arena.{name}": in_turns(
            partial(getattr(np, name), *arguments), partial(getattr(arena, name), *arguments), rounds
        )
        for name, arguments in FUNCTIONS.items()
    }
    nothing, scope = Nothing(), fa.using_allocator(arena)

    def with_nothing() -> None:
        with nothing:
            pass

    def with_scope() -> None:
        with scope:
            pass

    return found | {"scope": in_turns(with_nothing, with_scope, rounds)}


def resident() -> int:
    """Bytes in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


# ---- child processes -------------------------------------------------------------------------------------------------


MEMORY = "memory"


def child(column: str, names: list[str]) -> dict[str, float]:
    """Seconds per call of each row under what is a state of the process; or, alone, the memory of the mixed loop."""
    if column == "installed":
        fa.install(decay=1.0)
    if column == "numpy-allocator":
        over_malloc()
    found = {}
    for name in names:
        call, _ = ROWS[name]()
        repeat = repeats(call)
        found[name] = min(measure(call, repeat)[0] for _ in range(7 if found_small(name) else 3))
        del call
    return found or memory()


def memory() -> dict[str, float]:
    """Of the mixed loop: the peak, and what is left of it after a while in which nothing happens."""
    start = resident()
    call, limit = mixed(1)
    for _ in range(3):
        call()
    del call, limit
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    time.sleep(2.4)
    return {"peak_rss": int(peak.split()[1]) * 1024, "left_rss": resident() - start}


KEPT: list[object] = []


def over_malloc() -> None:
    """numpy-allocator with the functions of the C library, from now on."""
    import ctypes

    import numpy_allocator

    library = ctypes.CDLL(None)
    functions = {f"_{name}_": library[name] for name in ("calloc", "free", "malloc", "realloc")}
    addresses = {name: ctypes.addressof(function) for name, function in functions.items()}
    made = numpy_allocator.type("over_malloc", (numpy_allocator.object,), addresses)
    type(made).__enter__(made)
    KEPT.extend([made, functions])


def children(column: str, names: list[str], rounds: int) -> dict[str, float]:
    """Medians of a column's children relative to those of plain ones, in turn."""
    results: dict[str, list[dict[str, float]]] = {"plain": [], column: []}
    for _ in range(rounds):
        for each, found in results.items():
            environment = dict(os.environ, GLIBC_TUNABLES=TUNABLES if each == "tunables" else "")
            command = [sys.executable, __file__, "--child", each, *names]
            ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            found.append(json.loads(ran.stdout))
    return {
        name: statistics.median(
            a[name] / max(b[name], 1e-9) for a, b in zip(results[column], results["plain"], strict=True)
        )
        if name != "left_rss"
        else statistics.median(a[name] for a in results[column]) / 2**20
        for name in results[column][0]
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("rows", nargs="*", help="beginnings of the names of rows; all unless given")
    options = parser.parse_args()
    names = [name for name in ROWS if not options.rows or any(name.startswith(row) for row in options.rows)]
    if options.child:
        print(json.dumps(child(options.child, names)))
        return
    if not names and options.rows != ["functions"]:
        parser.error(f"no row begins with {' or '.join(options.rows)}; there are: {', '.join(ROWS)}")
    results: dict[str, dict[str, float]] = {}
    print(f"{'row':28}{'base':>14}{'plain':>8}{'scope':>8}{'install':>8}   faults per call: plain, scope, install")
    for name in names:
        found = results[name] = row(name, max(3, options.rounds if found_small(name) else options.rounds // 2))
        counts = ", ".join(f"{found[f'{column} faults']:.0f}" for column in ("plain", "scope", "installed"))
        base = f"{found['base_ns']:,.0f} ns"
        print(
            f"{name:28}{base:>14}{found['plain']:8.2f}{found['scope']:8.2f}{found['installed']:8.2f}   {counts}",
            flush=True,
        )
    if not options.rows or "functions" in options.rows:
        print("\narena functions / NumPy's, and a scope / an empty `with`:")
        results["functions"] = functions(3 * options.rounds)
        for name, value in results["functions"].items():
            print(f"  {name:28}{value:8.2f}", flush=True)
    columns = ["tunables", "installed"] if names else []
    if names and importable("numpy_allocator"):
        columns.append("numpy-allocator")
    elif names:
        print("numpy-allocator: not installed")
    few = [name for name in names if "256 MiB" not in name and "512 MiB" not in name]
    for column in columns:
        found = results[f"child {column}"] = children(column, few, 3) | children(column, [MEMORY], 3)
        print(f"\nchild processes, {column} / plain:")
        for name, value in found.items():
            print(f"  {name:28}{value:8.2f}" + (" MiB" if name == "left_rss" else ""), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


def found_small(name: str) -> bool:
    """Whether many rounds of the row are cheap."""
    return name.startswith(("np.empty", "a+b"))


def importable(name: str) -> bool:
    """Whether a module is there."""
    import importlib.util

    return importlib.util.find_spec(name) is not None


if __name__ == "__main__":
    main()
