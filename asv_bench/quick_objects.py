"""What wipe_freed_objects() costs: the loops of benchmarks/bench_wipe_objects.py, with and without, in turns.

    python asv_bench/quick_objects.py [--rounds N]

Each round starts a process without and one with the layer, one after the other, each of which times every loop (the
least of many calls, 50 ms a loop). Shown is the median over the rounds of the ratio of the two of a round, and the
least and the largest. 1.05 is 5 % slower.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import time

from benchmarks.bench_wipe_objects import LOOPS

import fastalloc as fa


def child(objects: str) -> None:
    """Time every loop; JSON on stdout."""
    if objects == "wiped":
        fa.wipe_freed_objects()
    seconds = {}
    for name, loop in LOOPS.items():
        expected, best, end = loop(), math.inf, time.perf_counter() + 0.05
        while time.perf_counter() < end:
            start = time.perf_counter()
            result = loop()
            best = min(best, time.perf_counter() - start)
            if result != expected:
                raise AssertionError(name)
        seconds[name] = best
    print(json.dumps(seconds))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--child", choices=["plain", "wiped"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child)
        return
    ratios: dict[str, list[float]] = {name: [] for name in LOOPS}
    plain: dict[str, list[float]] = {name: [] for name in LOOPS}
    for number in range(options.rounds):
        found = {}
        for objects in ("plain", "wiped") if number % 2 == 0 else ("wiped", "plain"):
            command = [sys.executable, __file__, "--child", objects]
            found[objects] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        for name in LOOPS:
            ratios[name].append(found["wiped"][name] / found["plain"][name])
            plain[name].append(found["plain"][name])
    print(f"{'loop':12} {'plain, ms':>10} {'ratio':>7} {'least':>7} {'largest':>8}")
    for name, values in ratios.items():
        middle = statistics.median(values)
        print(f"{name:12} {min(plain[name]) * 1e3:10.2f} {middle:7.3f} {min(values):7.3f} {max(values):8.3f}")
    usual = [statistics.median(values) for name, values in ratios.items() if name != "large bytes"]
    print(f"geometric mean without the last: {statistics.geometric_mean(usual):.3f}")


if __name__ == "__main__":
    main()
