"""Every misuse of memory of misuse.c and misuse.cpp, what the hardened allocator says, and the table of docs/malloc.md.

python tests/misuse/misuses.py                      print the table: each misuse on every allocator that is installed
python tests/misuse/misuses.py --write              put it into docs/malloc.md (half a minute)
python tests/misuse/misuses.py --peer NAME=LIBRARY  with another allocator, to be preloaded; may be repeated
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "malloc.md"
BEGIN, END = "<!-- made by tests/misuse: begin -->", "<!-- made by tests/misuse: end -->"

# Medium blocks have closed pages around them; large ones are closed themselves when they are freed.
SMALL, MEDIUM, LARGE = (9, 24, 100, 5000), (33_001, 100_000), (1 << 22, 5_242_885)
SIZES = SMALL + MEDIUM + LARGE
FORMS = {
    "c": ("malloc", "calloc", "realloc", "aligned"),
    "cpp": ("object", "array", "aligned", "nothrow"),
}
PREVENTED, NOT_HERE = 3, 4

TWICE = "{call} of {address}, which was freed already (double free), in malloc"
INSIDE = "{call} of {address}, which is inside a block of malloc"
FOREIGN = "{call} of {address}, which does not belong to malloc"
SIZE = "{call} of {address}, which has another size, in malloc"
OVERRUN = "{call} of {address}, which was overrun at its end, in malloc"
UNDERRUN = "{call} of {address}, which was overrun before its beginning, in malloc"
WRITTEN = "{call} of {address}, which was written to after it was freed, in malloc"
PAST = "access of {past}, which is past the end of a block of malloc"
GONE = "access of {gone}, which is in a freed block of malloc"
NOTHING = ""


@dataclass(frozen=True)
class Misuse:
    """One way to misuse a block; the line for small blocks, and the one at a closed page."""

    name: str
    line: str
    call: str = "free"
    large: str | None = None
    offset: int | None = None  # of the access to a freed block; None: half of the size

    @property
    def words(self) -> str:
        """For the table."""
        return self.name.replace("_", " ")


MISUSES = (
    Misuse("double_free", TWICE),
    Misuse("double_free_later", TWICE),
    Misuse("double_free_interleaved", TWICE),
    Misuse("free_of_a_number", FOREIGN),
    Misuse("free_inside", INSIDE),
    Misuse("free_unaligned", INSIDE),
    Misuse("free_of_a_mapping", FOREIGN),
    Misuse("free_of_the_stack", FOREIGN),
    Misuse("free_of_a_variable", FOREIGN),
    Misuse("free_with_another_size", SIZE),
    Misuse("realloc_of_freed", TWICE, call="realloc"),
    Misuse("size_of_freed", TWICE, call="malloc_usable_size"),
    Misuse("overflow_by_a_byte", OVERRUN, large=PAST),
    Misuse("overflow_by_a_terminator", OVERRUN, large=PAST),
    Misuse("overflow_by_memcpy", OVERRUN, large=PAST),
    Misuse("overflow_and_no_free", OVERRUN, call="check at exit", large=PAST),
    Misuse("underflow_by_a_byte", UNDERRUN),
    Misuse("underflow_by_memset", UNDERRUN),
    Misuse("write_after_free", WRITTEN, call="check at exit", large=GONE),
    Misuse("write_after_free_and_reuse", WRITTEN, call="reuse", large=GONE, offset=0),
    Misuse("write_to_nothing", OVERRUN),
    Misuse("read_after_free", NOTHING, large=GONE, offset=32),
    Misuse("read_of_what_was_there", NOTHING),
    Misuse("absurd_size", NOTHING),
    Misuse("executable", NOTHING),
)


@dataclass(frozen=True)
class Outcome:
    """How a program ended that misused a block."""

    code: int  # as subprocess has it: negative for a signal
    address: str  # as the program printed it
    said: str

    @property
    def kind(self) -> str:
        """`told`: the allocator said what was wrong; `died` without a word; `prevented`; `silent`; or `none` here."""
        if self.code < 0:
            return "told" if self.said else "died"
        return {0: "silent", PREVENTED: "prevented", NOT_HERE: "none"}.get(self.code, f"status {self.code}")


def compiled(directory: Path, language: str) -> Path | None:
    """The program of a language, or None without a compiler."""
    compiler = shutil.which({"c": "cc", "cpp": "c++"}[language])
    if compiler is None:
        return None
    program = directory / f"misuse-{language}"
    flags = ("-std=c++17",) if language == "cpp" else ()
    source = HERE / f"misuse.{language}"
    subprocess.run([compiler, "-O1", "-w", "-fno-builtin", *flags, str(source), "-o", str(program)], check=True)
    return program


def outcome(program: Path, way: str, size: int, form: str, environment: dict[str, str]) -> Outcome:
    """Run the program once."""
    unwanted = ("FASTALLOC_", "LD_PRELOAD", "MALLOC_", "ASAN_", "MIMALLOC_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    done = subprocess.run(
        [str(program), way, str(size), form],
        env=clean | environment,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        check=False,
    )
    return Outcome(done.returncode, done.stdout.strip(), done.stderr)


def is_past(misuse: Misuse, size: int, form: str) -> bool:
    """Whether the write reaches the closed page: it begins at the next multiple of 16, or of 64 if aligned."""
    behind = -size % (64 if form == "aligned" else 16)
    return misuse.name == "overflow_by_memcpy" or behind == 0


def expected(misuse: Misuse, size: int, form: str, address: str) -> str:
    """What the hardened allocator says, to the letter; empty if the misuse comes to nothing."""
    line = misuse.line
    if misuse.large == GONE and size >= LARGE[0]:
        line = GONE
    elif misuse.large == PAST and size > SMALL[-1] and is_past(misuse, size, form):
        line = PAST
    if not line:
        return ""
    begin = int(address, 16)
    gone = begin + (size // 2 if misuse.offset is None else misuse.offset)
    past = begin + size + -(begin + size) % 4096
    return "fastalloc: " + line.format(call=misuse.call, address=address, gone=hex(gone), past=hex(past)) + "\n"


# ---- the table -------------------------------------------------------------------------------------------------------

SYMBOLS = {"told": "**told**", "died": "died", "prevented": "prevented", "silent": "silent", "none": "-"}
LIBRARIES = {
    "mimalloc": "libmimalloc.so.2",
    "jemalloc": "libjemalloc.so.2",
    "tcmalloc": "libtcmalloc_minimal.so.4",
}
FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib")


def contestants(peers: list[str]) -> dict[str, dict[str, str]]:
    """Each allocator's environment."""
    import fastalloc  # the tests find their library otherwise

    ours = fastalloc.get_malloc_library()
    found = {
        "hardened": {"LD_PRELOAD": ours, "FASTALLOC_HARDENED": "1"},
        "fastalloc": {"LD_PRELOAD": ours},
        "glibc": {},
    }
    for name, library in LIBRARIES.items():
        path = next((f"{folder}/{library}" for folder in FOLDERS if Path(folder, library).exists()), None)
        if path is None:
            print(f"{name}: {library} is not installed, skipped", file=sys.stderr)
        else:
            found[name] = {"LD_PRELOAD": path}
    for peer in peers:
        name, _, library = peer.partition("=")
        if not Path(library).is_file():  # the loader would say so and run the C library's
            sys.exit(f"misuses.py: --peer {peer}: {library or 'nothing after ='} is not a file")
        found[name] = {"LD_PRELOAD": library}
    return found


def cell(kinds: Counter[str]) -> str:
    """Of all sizes and forms: the one thing that happened, or how often each."""
    if len(kinds) == 1:
        return SYMBOLS.get(next(iter(kinds)), next(iter(kinds)))
    return ", ".join(
        f"{SYMBOLS.get(kind, kind)} {count}" for kind, count in sorted(kinds.items(), key=lambda kind: -kind[1])
    )


def rows(programs: list[tuple[Path, str]], environments: dict[str, dict[str, str]]) -> Iterator[str]:
    yield f"| misuse | {' | '.join(environments)} |"
    yield "|---" * (len(environments) + 1) + "|"
    totals: dict[str, Counter[str]] = {name: Counter() for name in environments}
    for misuse in MISUSES:
        cells = []
        for name, environment in environments.items():
            kinds: Counter[str] = Counter()
            for program, language in programs:
                for form in FORMS[language]:
                    for size in SIZES:
                        kinds[outcome(program, misuse.name, size, form, environment).kind] += 1
            kinds.pop("none", None)
            totals[name] += kinds
            cells.append(cell(kinds) if kinds else SYMBOLS["none"])
        yield f"| {misuse.words} | {' | '.join(cells)} |"
    share = (f"{kinds['silent']} of {kinds.total()}" for kinds in totals.values())
    yield f"| all that went through in silence | {' | '.join(share)} |"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=LIBRARY")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="fastalloc-misuse-") as directory:
        made = [(compiled(Path(directory), language), language) for language in FORMS]
        programs = [(program, language) for program, language in made if program is not None]
        table = "\n".join(rows(programs, contestants(options.peer)))
    print(table)
    if options.write:
        text = PAGE.read_text()
        before, rest = text.split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}")
    return 0


ABORTED = -signal.SIGABRT

if __name__ == "__main__":
    sys.exit(main())
