"""A long mixed run of all parts at once: `make soak MINUTES=10`.

Threads use arenas, scopes, the manager, NumPy in an arena and in the whole process, and malloc (which `make soak` has
preloaded), each in rounds of random size, while the main thread looks once a second. At the end:

- resident memory is flat: its slope over the second half of the run, by least squares, is below SLOPE;
- counters balance: what was allocated is freed or alive, and nothing is alive when all is dropped;
- page faults do not grow: the last quarter of the run has no more of them than the second, but for FAULTS.
"""

import argparse
import gc
import os
import random
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy as np

import fastalloc as fa

MIB = 1 << 20
SLOPE = 4 * MIB
"""Bytes a minute that resident memory may seem to grow by: the caches fill and empty at random."""
FAULTS = 1.5


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - once a second, without garbage
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def in_arena(dice: random.Random, arena: fa.Arena) -> None:
    """Arrays that live for a while, freed in any order."""
    alive = [arena.full(dice.randrange(1, 4000), 7, np.uint64) for _ in range(20)]
    dice.shuffle(alive)
    while alive:
        array = alive.pop()
        if array[-1] != 7:
            raise AssertionError("the contents of an array changed")
    block = arena.alloc(dice.randrange(1, 9000))
    block.wipe()
    block.free()


def in_scope(dice: random.Random, arena: fa.Arena) -> None:
    """Temporaries of NumPy, and a rewind."""
    with arena.scope() as scratch, fa.using_allocator(scratch):
        values = np.arange(dice.randrange(10, 20_000), dtype=np.float64)
        total = float((values * 2 + 1).sum())
    if total != len(values) ** 2:
        raise AssertionError("a sum is wrong")
    del values


def in_manager(dice: random.Random, manager: fa.Manager) -> None:
    """Blocks that grow and shrink."""
    alive = [manager.malloc(dice.choice([16, 100, 500, 9000, 100_000])) for _ in range(50)]
    for block in alive[::2]:
        manager.realloc(block, dice.randrange(1, 50_000))
    for block in alive:
        manager.free(block)


def in_process(dice: random.Random, _: object) -> None:
    """Arrays of install(), and Python objects."""
    vector = np.ones(dice.randrange(1, 2 * MIB // 8))
    if (vector + vector)[0] != 2:
        raise AssertionError("a sum is wrong")
    text = [str(number) * 3 for number in range(dice.randrange(2000))]
    if text and not text[-1]:
        raise AssertionError("a string is empty")


def children() -> None:
    """A fork that uses what the parent made, and a process of its own."""
    child = os.fork()
    if child == 0:
        os._exit(0 if np.ones(1000).sum() == 1000 and fa.Witness("64KiB").ones(3).sum() == 3 else 1)
    if os.waitpid(child, 0)[1] != 0:
        raise AssertionError("a child failed")
    subprocess.run([sys.executable, "-S", "-c", "pass"], check=True)


def slope(seconds: list[float], values: list[int]) -> float:
    """By least squares, a minute."""
    return float(np.polyfit(seconds, values, 1)[0]) * 60


def main() -> int:
    """Run; 0 if all held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    length = parser.parse_args().minutes * 60
    fa.install(large_cache="64MiB", decay=2)
    witness, polynomial = fa.Witness("8MiB"), fa.Polynomial("64MiB")
    scratch, manager = fa.Scratch("16MiB"), fa.Manager(cache="16MiB", cache_age=2)
    hardened = fa.Manager(cache="16MiB", cache_age=2, hardened=True, name="hardened")
    heaps = (witness, polynomial, scratch, manager, hardened)
    stop, rounds, errors = threading.Event(), [0] * 6, []

    def work(number: int, part: Callable[[random.Random, object], None], heap: object) -> None:
        dice = random.Random(number)
        try:
            while not stop.is_set():
                part(dice, heap)
                rounds[number] += 1
        except BaseException as error:  # noqa: BLE001 - the main thread reports it
            errors.append(error)

    jobs = [(in_arena, witness), (in_arena, polynomial), (in_scope, scratch), (in_manager, manager), (in_process, None)]
    jobs.append((in_manager, hardened))
    threads = [threading.Thread(target=work, args=(number, *job)) for number, job in enumerate(jobs)]
    begin = time.monotonic()
    for thread in threads:
        thread.start()
    seconds, memory, faults = [], [], []
    while time.monotonic() - begin < length and not errors:
        time.sleep(min(1.0, length / 40))
        children()
        for heap in (witness, polynomial, manager, hardened):
            heap.trim(MIB) if len(seconds) % 30 == 29 else heap.stats()
        seconds.append(time.monotonic() - begin)
        memory.append(resident())
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
    stop.set()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    gc.collect()

    half, quarter = len(seconds) // 2, len(seconds) // 4
    growth = slope(seconds[half:], memory[half:])
    early, late = faults[2 * quarter] - faults[quarter], faults[-1] - faults[-1 - quarter]
    print(f"{sum(rounds):,} rounds {rounds} in {seconds[-1]:.0f} s; resident {memory[half] >> 20} MiB at half time,")
    print(f"{memory[-1] >> 20} MiB at the end, slope {growth / MIB:+.2f} MiB a minute;")
    print(f"page faults {early:,} in the second quarter, {late:,} in the last")
    hardened.check()
    bad = [f"{heap!r}: live" for heap in heaps if heap.live != 0]
    for heap in heaps:
        stats = heap.stats()
        if stats.allocated != stats.freed or stats.used != 0:
            bad.append(f"{heap!r}: {stats.allocated} allocated, {stats.freed} freed, {stats.used} bytes used")
    if min(rounds) == 0:
        bad.append("a thread did nothing")
    if growth > SLOPE:
        bad.append(f"resident memory grows by {growth / MIB:.1f} MiB a minute")
    if late > early * FAULTS + 2000:
        bad.append("page faults grow")
    for line in bad:
        print(f"FAILED: {line}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
