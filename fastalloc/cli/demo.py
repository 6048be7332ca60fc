"""``fastalloc demo``: a zero-knowledge proof of a secret, on plain NumPy and in arenas, side by side.

The proof on plain NumPy runs in a process of its own (`serve`), because it leaves copies of the secret in ordinary
memory, and this process is searched for such copies at the end. The two take turns, so that both see the same machine.
"""

import argparse
import hashlib
import importlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastalloc as fa

ROUNDS = 2**16
PROOFS = 3
Progress = Callable[[str, float], None]


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "demo",
        help="prove and verify a STARK on plain NumPy and in arenas, and compare",
        description="Prove in zero knowledge, on plain NumPy and in arenas in turn, that a secret leads to a public "
        "output (examples/stark.py); verify the proof; then search this process's memory for copies of the secret. It "
        "needs the extra `demo`: pip install 'fastalloc[demo]'.",
        epilog="Exit code: 0, 1 if the two proofs differ, 2 for bad arguments.",
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help="a power of two (default: %(default)s)")
    parser.add_argument(
        "--proofs", type=int, default=PROOFS, metavar="K", help="warm proofs each (default: %(default)s)"
    )
    parser.add_argument("--secret-file", metavar="F", help="32 bytes of secret (default: a new one, then deleted)")
    parser.set_defaults(run=_run)


@dataclass(frozen=True)
class _Proof:
    """What one proof cost: ``seconds`` of wall time, ``faults`` of pages, and the hash of its bytes."""

    seconds: float
    faults: int
    digest: str


def _stark() -> Any:
    return importlib.import_module("fastalloc.examples.stark")


def _measure(prove: Callable[[], bytes]) -> tuple[_Proof, bytes]:
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    proof = prove()
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF)
    faults = after.ru_minflt + after.ru_majflt - before.ru_minflt - before.ru_majflt
    return _Proof(seconds, faults, hashlib.sha256(proof).hexdigest()), proof


# --- The process on plain NumPy ----------------------------------------------------------------------------------


def serve(secret_file: str, patterns_file: str, rounds: int) -> None:
    """Prove once for each line on stdin; answer with lines of JSON. Leave what to search for in `patterns_file`."""
    stark = _stark()
    secret = stark.read_secret(secret_file)
    patterns = Path(patterns_file)
    patterns.touch(0o600, exist_ok=False)
    patterns.write_bytes(Path(secret_file).read_bytes() + secret.tobytes() + secret.astype("<u8").tobytes())

    def say(**message: Any) -> None:
        print(json.dumps(message), flush=True)

    for _ in sys.stdin:
        cost, _proof = _measure(lambda: stark.prove(secret, rounds, None, lambda *step: say(step=step)))
        say(cost=vars(cost))


@contextmanager
def _plain_prover(secret_file: Path, patterns_file: Path, rounds: int) -> Iterator[Callable[[Progress], _Proof]]:
    program = "import sys; from fastalloc.cli.demo import serve; serve(*sys.argv[1:3], int(sys.argv[3]))"
    command = [sys.executable, "-P", "-c", program, str(secret_file), str(patterns_file), str(rounds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        stdin, stdout = process.stdin, process.stdout
        if stdin is None or stdout is None:  # never: both were asked for
            raise ChildProcessError

        def prove(progress: Progress) -> _Proof:
            stdin.write("prove\n")
            stdin.flush()
            for line in stdout:
                message = json.loads(line)
                if "cost" in message:
                    return _Proof(**message["cost"])
                progress(*message["step"])
            raise ChildProcessError(f"the prover on plain NumPy ended with exit code {process.wait()}")

        yield prove
        stdin.close()


# --- The demo ----------------------------------------------------------------------------------------------------


def _make_secret(path: Path) -> None:
    """Write 32 random bytes, in a process of its own: here they would be a Python object."""
    program = "import os, secrets, sys; os.write(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "
    subprocess.run([sys.executable, "-c", program + "secrets.token_bytes(32))", str(path)], check=True)


class _Bar:
    """A progress bar over all proofs of both provers, on a terminal only."""

    def __init__(self, proofs: int) -> None:
        self._proofs, self._done = proofs, 0
        self._shown = sys.stderr.isatty()

    def stage(self, prover: str) -> Progress:
        def progress(stage: str, fraction: float) -> None:
            if self._shown:
                total = (self._done + fraction) / self._proofs
                line = f"[{'#' * round(30 * total):30}] {total:4.0%}  {prover}: {stage}"
                print(f"\r{line:78.78}", end="", file=sys.stderr, flush=True)

        return progress

    def step(self) -> None:
        self._done += 1
        if self._shown and self._done == self._proofs:
            print(f"\r{'':78}\r", end="", file=sys.stderr, flush=True)


def _run(options: argparse.Namespace) -> int:
    if options.proofs < 1:
        raise ValueError(f"--proofs must be at least 1, not {options.proofs}")
    with tempfile.TemporaryDirectory(prefix="fastalloc-") as name:
        directory = Path(name)
        secret_file = Path(options.secret_file) if options.secret_file else directory / "secret"
        if not options.secret_file:
            _make_secret(secret_file)
        return _compare(secret_file, directory / "patterns", options.rounds, options.proofs)


def _compare(secret_file: Path, patterns_file: Path, rounds: int, proofs: int) -> int:
    stark = _stark()
    bar = _Bar(2 * (proofs + 1))
    plain: list[_Proof] = []
    arenas: list[_Proof] = []
    with fa.Arenas(**stark.arena_sizes(rounds)) as memory:

        def prove_in_arenas(progress: Progress) -> tuple[_Proof, bytes]:
            secret = stark.read_secret(str(secret_file), memory)
            return _measure(lambda: stark.prove(secret, rounds, memory, progress))

        public = stark.public_output(stark.read_secret(str(secret_file), memory), rounds, memory)
        with _plain_prover(secret_file, patterns_file, rounds) as prove_plain:
            for _ in range(proofs + 1):  # the first of each warms up: compilation, and memory never touched before
                plain.append(prove_plain(bar.stage("plain NumPy")))
                bar.step()
                cost, proof = prove_in_arenas(bar.stage("arenas"))
                arenas.append(cost)
                bar.step()
        stats = memory.stats()
        protection = memory.witness.protection
    stark.verify(public, proof)
    same = len({cost.digest for cost in plain + arenas}) == 1
    _report(plain, arenas, rounds, len(proof), stark.soundness(rounds))
    print(f"\n{stats}\n\nwitness: {protection}")
    print(f"\nproof: verified; {'identical' if same else 'DIFFERENT'} bytes from both")
    _report_residue(fa.find_residue(patterns_file))
    return 0 if same else 1


def _report(plain: list[_Proof], arenas: list[_Proof], rounds: int, size: int, bits: Any) -> None:
    print(
        f"STARK of {rounds} rounds: a proof of {size} bytes, soundness {bits.proved:.0f} bits proved, "
        f"{bits.conjectured:.0f} conjectured\n"
    )
    print(f"{'median of ' + str(len(plain) - 1) + ' warm proofs':24}{'plain NumPy':>14}{'arenas':>14}{'ratio':>9}")
    for label, field, form in (("prove, seconds", "seconds", ".2f"), ("page faults", "faults", ",d")):
        a, b = (statistics.median(getattr(cost, field) for cost in costs[1:]) for costs in (plain, arenas))
        number = int if form == ",d" else float
        print(f"{label:24}{number(a):>14{form}}{number(b):>14{form}}{b / max(a, 1e-9):>9.3f}")


def _report_residue(residue: list[fa.Residue]) -> None:
    if not residue:
        print("secret: after close(), no copy of it in this process's readable memory")
    for found in residue:
        print(f"secret: a copy REMAINS: {found}")
