"""The global allocator beside its peers: the same programs on each, preloaded, in turn.

    python asv_bench/global_bench.py [--only PART] [--rounds N] [--json FILE] [--peers a,b] [--list]

In each round every row's program runs once (start-up: some hundred times) on every allocator, one after the other,
beginning with another one each round; on ours a second time, hardened. What is compared is CPU time (user and
system), page faults and peak memory, as the kernel counts them; the wall clock of a machine with other work on it says
little. The table has our median of the rounds, each peer's, and the median of the rounds' ratios of ours to the peer's:
below 1 is better. A program that fails, or whose own check fails, ends the benchmark. Peers and programs that are not
installed are named and skipped.

The rows of a prover (halo2) need ezkl, in this Python or in the one that FASTALLOC_HALO2_PYTHON names.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import fastalloc

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ROOT / "tests" / "programs"
BUILT = ROOT / "build" / "release" / "bench"
sys.path.insert(0, str(PROGRAMS))

from inputs import QUERIES, history, numbers  # noqa: E402 - of tests/programs

LIBRARIES = {
    "jemalloc": "libjemalloc.so.2",
    "mimalloc": "libmimalloc.so.2",
    "tcmalloc": "libtcmalloc_minimal.so.4",
}
FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib")

HARDENED = "hardened"
"""Ours again, with FASTALLOC_HARDENED=1."""

Sample = dict[str, float]


def contestants(wanted: list[str]) -> dict[str, str]:
    """The name of each allocator, and its library; glibc's has none. Ours is first, then ours hardened."""
    ours = fastalloc.get_malloc_library()
    found = {"fastalloc": ours, HARDENED: f"{ours},FASTALLOC_HARDENED=1", "glibc": ""}
    for name, library in LIBRARIES.items():
        path = next((f"{folder}/{library}" for folder in FOLDERS if Path(folder, library).exists()), None)
        if path is None:
            print(f"{name}: {library} is not installed, skipped")
        else:
            found[name] = path
    return {name: path for name, path in found.items() if name == "fastalloc" or not wanted or name in wanted}


# ---- running ---------------------------------------------------------------------------------------------------------


class FailedError(Exception):
    """What was to be timed did not succeed."""


def run(library: str, command: list[str], directory: Path, times: int = 1) -> tuple[str, list[Sample]]:
    """The output of the program, and what each run cost it (native/bench/global_run.c).

    A setting may stand behind the library's name and a comma.
    """
    library, _, setting = library.partition(",")
    line = [str(BUILT / "global_run"), str(times), *([library] if library else []), "--", *command]
    unwanted = ("FASTALLOC_", "LD_PRELOAD", "MALLOC_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    if setting:
        environment.update([setting.split("=")])
    done = subprocess.run(line, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise FailedError(
            f"{' '.join(command)[:200]} on {library or 'glibc'}: {done.returncode}\n{done.stderr[-2000:]}"
        )
    costs = [json.loads(text) for text in done.stderr.splitlines() if text.startswith('{"wall"')]
    return done.stdout, costs


def lines_of_json(output: str) -> list[Sample]:
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def check(condition: object, what: str) -> None:
    if not condition:
        raise FailedError(what)


@dataclass(frozen=True)
class Target:
    """`metric` is to be at most `factor` times that of the peer (or of the best of them); alone, at most `factor`.

    Hardened, it is to be at most `factor` times what it is otherwise.
    """

    metric: str
    factor: float
    peer: str = ""

    def __str__(self) -> str:
        if self.peer == HARDENED:
            return f"hardened, {self.metric} at most {self.factor:g} x"
        against = f" x {self.peer}" if self.peer else ""
        return (
            f"{self.metric} at most {shown(self.metric, self.factor) if not self.peer else f'{self.factor:g}'}{against}"
        )


@dataclass(frozen=True)
class Row:
    """One program. `sample` runs it on a library in an empty directory and gives its metrics."""

    name: str
    sample: Callable[[str, Path], Sample]
    targets: tuple[Target, ...] = ()
    rounds: int = 5
    needs: Callable[[], str] = field(default=lambda: "")
    """Why it cannot run here, or nothing."""


# ---- provers ---------------------------------------------------------------------------------------------------------

HALO2_PYTHON = os.environ.get("FASTALLOC_HALO2_PYTHON", sys.executable)


def halo2_missing() -> str:
    done = subprocess.run([HALO2_PYTHON, "-c", "import ezkl"], capture_output=True, check=False)
    return "" if done.returncode == 0 else "ezkl is not installed (the extra `halo2`)"


def halo2(logrows: int, proofs: int) -> Callable[[str, Path], Sample]:
    """A warm proof: the last of some. The keys are made once, and kept in build/."""
    circuit = ROOT / "build" / f"halo2-{logrows}"
    program = [HALO2_PYTHON, "-P", str(ROOT / "examples/halo2.py"), str(circuit), "--logrows", str(logrows)]

    def sample(library: str, directory: Path) -> Sample:
        if not (circuit / "ready").exists():
            run("", [*program, "--proofs", "0"], directory)
        output, (whole,) = run(library, [*program, "--proofs", str(proofs)], directory)
        check(output.splitlines()[-1] == "verified", "a proof did not verify")
        warm = lines_of_json(output)[-1]
        return {
            "cpu": warm["user"] + warm["system"],
            "system": warm["system"],
            "faults": warm["faults"],
            "peak": whole["peak"],
        }

    return sample


def churn(row: str) -> Callable[[str, Path], Sample]:
    """Of native/bench/global_churn.c: the median of its samples, the first (of the rhythm: cold) one not counted."""

    def sample(library: str, directory: Path) -> Sample:
        output, (whole,) = run(library, [str(BUILT / "global_churn"), row], directory)
        samples = lines_of_json(output)[1:]
        check(samples, f"global_churn {row} printed nothing")
        found = {"ns": statistics.median(each.get("cpu", each["ns"]) for each in samples), "peak": whole["peak"]}
        if row == "rhythm":
            found = {"cpu": found["ns"] / 1e9, "peak": found["peak"]}
            found["faults"] = max(each["faults"] for each in samples)
        return found

    return sample


def python_work(name: str, rounds: int) -> Callable[[str, Path], Sample]:
    def sample(library: str, directory: Path) -> Sample:
        command = [sys.executable, "-P", str(ROOT / "asv_bench/global_work.py"), name, str(rounds)]
        output, (whole,) = run(library, command, directory)
        warm = lines_of_json(output)
        check(len(warm) == rounds - 1, f"{name} printed {len(warm)} lines")
        return {
            "cpu": statistics.median(each["user"] + each["system"] for each in warm),
            "faults": statistics.median(each["faults"] for each in warm),
            "peak": whole["peak"],
        }

    return sample


# ---- programs --------------------------------------------------------------------------------------------------------


def program(
    *command: str, prepare: Callable[[Path], object] | None = None, says: str = "", times: int = 1
) -> Callable[[str, Path], Sample]:
    def sample(library: str, directory: Path) -> Sample:
        if prepare is not None:
            prepare(directory)
        output, costs = run(library, list(command), directory, times)
        check(says in output, f"{command[0]} did not say {says!r}: {output[-200:]!r}")
        return {
            "cpu": sum(each["user"] + each["system"] for each in costs) / times,
            "faults": statistics.median(each["faults"] for each in costs),
            "peak": max(each["peak"] for each in costs),
        }

    return sample


def missing(*tools: str) -> Callable[[], str]:
    return lambda: ", ".join(f"{tool} is not installed" for tool in tools if shutil.which(tool) is None)


def sqlite_input(directory: Path) -> None:
    (directory / "numbers.csv").write_text(numbers(200_000))
    (directory / "queries").write_text(QUERIES)


def git_input(directory: Path) -> None:
    stream = history(300)
    for command, given in (("init -q -b main", ""), ("fast-import --quiet", stream), ("config gc.auto 0", "")):
        subprocess.run(["git", *command.split()], input=given, text=True, cwd=directory, check=True)


def rust_binary() -> str:
    """Compiled once."""
    path = ROOT / "build" / "global-bench-rust"
    if not path.exists():
        subprocess.run(["rustc", "-Copt-level=2", str(PROGRAMS / "work.rs"), "-o", str(path)], check=True)
    return str(path)


def rust(library: str, directory: Path) -> Sample:
    return program(rust_binary())(library, directory)


def redis(library: str, directory: Path) -> Sample:
    socket = directory / "socket"
    ask = f"redis-cli -s {socket}"
    steps = (
        f'redis-server --port 0 --unixsocket {socket} --save "" --appendonly no > log & server=$!',
        f"while ! {ask} ping > /dev/null 2>&1; do kill -0 $server; done",
        f"redis-benchmark -s {socket} -q -n 40000 -r 20000 -d 300 -P 16 -c 10 -t set,lpush,hset,zadd,sadd,get > quick",
        f"{ask} dbsize; {ask} shutdown nosave; wait $server; echo done",
    )
    return program("sh", "-c", "\n".join(steps), says="done")(library, directory)


GCC = f"gcc -std=c11 -O2 -fPIC -I{ROOT}/native/include -I{ROOT}/native/src -c {ROOT}/native/src/heap/arena.c -o arena.o"
PYTHON = """
import json, re, collections
data = {f"key{i}": [i, str(i) * (i % 20), {"nested": list(range(i % 10))}] for i in range(60_000)}
text = json.dumps(data)
assert json.loads(text) == data
words = collections.Counter(re.findall(r"\\w+", text))
print(sum(words.values()))
"""


def small(peak_of_best: float = 1.15) -> tuple[Target, ...]:
    return (Target("peak", peak_of_best, "best"), Target("cpu", 1.5, HARDENED))


HALO2_TARGETS = (
    Target("faults", 3000),
    Target("system", 0.10),
    Target("cpu", 0.97, "glibc"),
    Target("peak", 1.10, "tcmalloc"),
)
RHYTHM_TARGETS = (Target("faults", 0), Target("cpu", 0.2, "glibc"), Target("cpu", 0.2, "mimalloc"))
CHURN_TARGETS = (Target("ns", 1.1, "mimalloc"), Target("ns", 1.5, HARDENED))

ROWS = (
    Row("halo2-14", halo2(14, 3), (Target("peak", 1.15, "best"),), 3, halo2_missing),
    Row("halo2-16", halo2(16, 2), HALO2_TARGETS, 3, halo2_missing),
    Row("rhythm-c", churn("rhythm"), RHYTHM_TARGETS, 3),
    Row("rhythm-numpy", python_work("rounds", 4), RHYTHM_TARGETS, 3),
    Row("galois", python_work("galois", 4), (Target("faults", 0), Target("cpu", 1.0, "best"))),
    Row("churn same-1", churn("same-1"), CHURN_TARGETS),
    Row("churn same-2", churn("same-2"), CHURN_TARGETS),
    Row("churn mixed-1", churn("mixed-1"), CHURN_TARGETS),
    Row("churn mixed-2", churn("mixed-2"), CHURN_TARGETS),
    Row("churn cross-1", churn("cross-1"), CHURN_TARGETS),
    Row("churn cross-2", churn("cross-2"), CHURN_TARGETS),
    Row("churn bulk", churn("bulk"), CHURN_TARGETS),
    Row("start true", program("true", times=300), (Target("cpu", 1.02, "glibc"),), 9),
    Row("start python", program(sys.executable, "-SEc", "pass", times=20), (Target("cpu", 1.02, "glibc"),), 9),
    Row("python", program(sys.executable, "-c", PYTHON), small()),
    Row("node", program("node", str(PROGRAMS / "work.js")), small(), needs=missing("node")),
    Row("perl", program("perl", str(PROGRAMS / "work.pl")), small(), needs=missing("perl")),
    Row("lua", program("lua5.4", str(PROGRAMS / "work.lua")), small(), needs=missing("lua5.4")),
    Row("rust", rust, small(), needs=missing("rustc")),
    Row("sqlite", program("sh", "-c", "exec sqlite3 a.db < queries", prepare=sqlite_input, says="ok"), small(),
        needs=missing("sqlite3")),
    Row("git gc", program("git", "gc", "--aggressive", "--quiet", "--prune=now", prepare=git_input), small(),
        needs=missing("git")),
    Row("gcc", program(*GCC.split()), small(), needs=missing("gcc")),
    Row("redis", redis, small(), needs=missing("redis-server", "redis-benchmark")),
)  # fmt: skip


# ---- the table -------------------------------------------------------------------------------------------------------


def shown(metric: str, value: float) -> str:
    if metric == "peak":
        return f"{value / 2**20:.1f} MiB"
    if metric == "faults":
        return f"{value:,.0f}"
    if metric == "ns":
        return f"{value:.1f} ns"
    return f"{value:.3f} s" if value >= 0.1 else f"{value * 1e3:.2f} ms"


def ratio(ours: float, theirs: float) -> float:
    if theirs > 0:
        return ours / theirs
    return 1.0 if ours <= 0 else float("inf")


def measure(row: Row, libraries: dict[str, str], rounds: int) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = {name: [] for name in libraries}
    names = list(libraries)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            with tempfile.TemporaryDirectory(prefix="fastalloc-bench-") as directory:
                samples[name].append(row.sample(libraries[name], Path(directory)))
    return samples


def compare(samples: dict[str, list[Sample]]) -> dict[str, dict[str, tuple[float, float]]]:
    """Of each metric and allocator: the median, and the median of ours over it, round by round."""
    ours = samples["fastalloc"]
    return {
        metric: {
            name: (
                statistics.median(each[metric] for each in found),
                statistics.median(ratio(a[metric], b[metric]) for a, b in zip(ours, found, strict=True)),
            )
            for name, found in samples.items()
        }
        for metric in ours[0]
    }


def judge(target: Target, table: dict[str, dict[str, tuple[float, float]]]) -> tuple[bool, str]:
    values = table[target.metric]
    if not target.peer:
        reached = values["fastalloc"][0]
        return reached <= target.factor, shown(target.metric, reached)
    if target.peer == HARDENED:
        if HARDENED not in values:
            return True, "it was not run"
        cost = 1 / values[HARDENED][1]
        return cost <= target.factor, f"{cost:.2f} x"
    peers = {name: found for name, found in values.items() if name not in {"fastalloc", HARDENED}}
    name = min(peers, key=lambda each: peers[each][0], default="a peer") if target.peer == "best" else target.peer
    if name not in peers:
        return True, f"{name} was not run"
    met = peers[name][1] <= target.factor
    return met, f"{peers[name][1]:.2f} x" + (f" ({name})" if target.peer == "best" else "")


def report(row: Row, samples: dict[str, list[Sample]]) -> Iterator[str]:
    table = compare(samples)
    for metric, values in table.items():
        cells = [f"{row.name:14} {metric:7}{shown(metric, values['fastalloc'][0]):>12}"]
        cells += [
            f"{shown(metric, median):>12} {against:5.2f} x"
            for name, (median, against) in values.items()
            if name != "fastalloc"
        ]
        yield " ".join(cells)
    for target in row.targets:
        met, reached = judge(target, table)
        yield f"{'':14} {'met' if met else 'NOT MET'}: {target}: {reached}"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose name begins with one of these, with commas between")
    parser.add_argument("--rounds", type=int, default=0, help="instead of each row's own number")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peers", default="", help="only these, with commas between")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    rows = [row for row in ROWS if row.name.startswith(tuple(options.only.split(",")))]
    if not rows:
        parser.error(f"no row begins with {options.only}; there are: {', '.join(row.name for row in ROWS)}")
    if options.list:
        print("\n".join(row.name for row in rows))
        return 0
    libraries = contestants([name for name in options.peers.split(",") if name])
    print(f"{'row':14} {'':7}{'fastalloc':>12} " + " ".join(f"{name:>12} {'ours':>7}" for name in list(libraries)[1:]))
    results = {}
    for row in rows:
        reason = row.needs()
        if reason:
            print(f"{row.name:14} skipped: {reason}")
            continue
        try:
            samples = measure(row, libraries, options.rounds or row.rounds)
        except FailedError as failure:
            print(f"{row.name}: {failure}", file=sys.stderr)
            return 1
        results[row.name] = samples
        print("\n".join(report(row, samples)), flush=True)
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
