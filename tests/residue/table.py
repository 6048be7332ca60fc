"""The table of docs/secrets.md: what NumPy's operations leave of a secret outside the witness arena.

python tests/residue/table.py             print it (about two minutes)
python tests/residue/table.py --write     put it into docs/secrets.md
python tests/residue/table.py sort fft    only the rows with these words
"""

import argparse
import collections
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from operations import COUNT, OPERATIONS, WIDTH

import fastalloc as fa

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "secrets.md"
BEGIN, END = "<!-- made by tests/residue: begin -->", "<!-- made by tests/residue: end -->"
MODES = ("plain", "arena", "objects", "malloc")
HEADERS = (
    "operation",
    "plain",
    "in `using_allocator(witness)`",
    "and `wipe_freed_objects()`",
    "and `wipe_stack()`, `gc.collect()`, the workaround",
    "and `fastalloc run --zero-on-free`",
    "workaround",
)
KINDS = {"heap": "malloc", "anonymous": "other memory"}


def make_secret(path: Path) -> None:
    """Random numbers between 1 and 2, sorted; the same in the other byte order; and text: 4096 bytes in all."""
    numbers = np.sort(1 + np.frombuffer(os.urandom(8 * COUNT), np.uint64) / 2**64)
    assert len(set(numbers)) == COUNT
    text = os.urandom((4096 - 16 * COUNT) // 2).hex().encode()
    path.write_bytes(numbers.tobytes() + numbers.byteswap().tobytes() + text)
    assert path.stat().st_size == 4096
    assert len(text) % WIDTH == 0


def search(pid: int, path: Path, start: int, end: int) -> str:
    """What lies outside of [start, end)."""
    found = fa.find_residue(path, pid=pid)
    kinds = collections.Counter(KINDS.get(one.kind, one.kind) for one in found if not start <= one.address < end)
    if len(found) == sum(kinds.values()):
        raise AssertionError("the secret itself was not found: the search proves nothing")
    return ", ".join(f"{kind}: {count}" for kind, count in sorted(kinds.items())) or "clean"


def run(row: int, mode: str, path: Path) -> tuple[str, str]:
    """What an operation leaves in a mode; and after the workaround, gc.collect() and wipe_stack()."""
    command = [sys.executable, str(HERE / "child.py"), str(row), mode, str(path)]
    # The child's neighbour operations.py is found whatever keeps ./fastalloc from being imported.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    if mode == "malloc":
        environment |= {"LD_PRELOAD": fa.get_malloc_library(), "FASTALLOC_ZERO_ON_FREE": "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdin is not None
        assert child.stdout is not None

        def step() -> str:
            """What the child says next; it waits then."""
            said = child.stdout.readline().decode().strip()  # type: ignore[union-attr]
            if not said:
                raise ChildProcessError(f"{OPERATIONS[row].name}, {mode}: exit code {child.wait()}")
            return said

        def go_on() -> None:
            child.stdin.write(b"\n")  # type: ignore[union-attr]
            child.stdin.flush()  # type: ignore[union-attr]

        start, end = map(int, step().split())
        before = search(child.pid, path, start, end)
        if before != "clean":
            raise AssertionError(f"{OPERATIONS[row].name}, {mode}: already before it there is {before}")
        go_on()
        step()
        after = search(child.pid, path, start, end)
        go_on()
        step()
        wiped = search(child.pid, path, start, end)
        go_on()
    return after, wiped


def measure(row: int, path: Path) -> list[str]:
    """The cells of a row."""
    plain, arena, objects, malloc = (run(row, mode, path) for mode in MODES)
    operation = OPERATIONS[row]
    workarounds = [
        ("", arena[0] == "clean"),
        ("`wipe_stack()`", only_stack(arena[0])),
        ("`wipe_freed_objects()`", objects[0] == "clean"),
        ("`wipe_freed_objects()`, `wipe_stack()`", only_stack(objects[0]) and not operation.workaround),
        (operation.workaround, bool(operation.workaround)),
        ("none", True),
    ]
    workaround = next(text for text, helps in workarounds if helps)
    return [operation.name, plain[0], arena[0], *objects, malloc[1], workaround]


def only_stack(cell: str) -> bool:
    """Whether nothing is left but on the stack."""
    return all(place.startswith("stack") for place in cell.split(", "))


def lines(rows: Iterable[list[str]]) -> list[str]:
    """The table, in Markdown."""
    table = ["| " + " | ".join(HEADERS) + " |", "|" + "---|" * len(HEADERS)]
    return table + ["| " + " | ".join(cells) + " |" for cells in rows]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into docs/secrets.md")
    parser.add_argument("words", nargs="*", help="only rows with one of these in their names")
    options = parser.parse_args()
    chosen = [
        row
        for row, operation in enumerate(OPERATIONS)
        if not options.words or any(word in operation.name for word in options.words)
    ]
    with TemporaryDirectory() as directory:
        path = Path(directory) / "secret"
        make_secret(path)
        rows = []
        for row in chosen:
            rows.append(measure(row, path))
            print("| " + " | ".join(rows[-1]) + " |", flush=True)
    if options.write and not options.words:
        before, rest = PAGE.read_text().split(BEGIN)
        PAGE.write_text("\n".join([before + BEGIN, "", *lines(rows), "", END]) + rest.split(END)[1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
