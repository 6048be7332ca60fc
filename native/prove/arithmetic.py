"""Proves arithmetic.c for all inputs, on the compiled code, and refutes each of the mutations below.

    python native/prove/arithmetic.py [NAME ...]

Each PROOF is compiled (-O2, as users compile it) and run by angr with unknown inputs; on every path the solver is asked
whether a SHOW can fail. A mutation is one change of the library's sources, in the comment before the proof; with it the
proof must fail, with a counterexample.
"""

import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parent
INPUTS = 16  # unknowns of 64 bits that a proof may take
ALONE = 16  # of what a proof shows on a path, how many are asked one by one; the rest together
RETURN = 0xDEAD0000
MEMORY = 0x50000000


def proofs() -> dict[str, Path]:
    """The file of each proof."""
    found = {}
    for file in sorted(HERE.glob("*_proofs.c")):
        for name in re.findall(r"^PROOF\((\w+)\)", file.read_text(), re.MULTILINE):
            found[name] = file
    return found


Mutation = tuple[str, str, str]  # file, what stands there once, what it becomes


def mutations() -> list[tuple[str, Mutation]]:
    """By the name of the proof: those in the comment before it."""
    found = []
    for file in sorted(HERE.glob("*_proofs.c")):
        for comment, name in re.findall(
            r"^/\* Refuted by\n(.*?) \*/\nPROOF\((\w+)\)", file.read_text(), re.DOTALL | re.MULTILINE
        ):
            each = re.findall(r"^ \*   (\w+/\w+\.[ch])\n \*   - (.*)\n \*   \+(?: (.*))?$", comment, re.MULTILINE)
            assert each, f"{file}: {name}"
            found += [(name, mutation) for mutation in each]
    return found


FLAGS = ["-std=c11", "-O2", "-fPIC", "-fcf-protection=none", "-w", "-pthread", f"-I{NATIVE / 'include'}", f"-I{HERE}"]


def compile_with(source: Path, *arguments: str) -> None:
    subprocess.run([os.environ.get("CC", "cc"), *FLAGS, f"-I{source}", *arguments], check=True)


def archive(directory: Path) -> Path:
    """What the proofs call beyond the sources that they include."""
    for file in [*NATIVE.glob("src/mem/*.c"), *NATIVE.glob("src/heap/*.c"), NATIVE / "src/os/linux.c"]:
        compile_with(NATIVE / "src", "-c", str(file), "-o", str(directory / f"{file.stem}.o"))
    subprocess.run(["ar", "rcs", directory / "rest.a", *directory.glob("*.o")], check=True)
    return directory / "rest.a"


def build(file: Path, source: Path, rest: Path, made: Path) -> Path:
    """A shared object of the proofs of a file, over the library's sources under `source`."""
    compile_with(source, "-shared", str(file), str(rest), "-o", str(made))
    return made


def mutate(mutation: Mutation, source: Path) -> None:
    """The library's sources, with one change, under `source`."""
    changed, old, new = mutation
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(NATIVE / "src", source)
    text = (source / changed).read_text()
    assert text.count(old) == 1, f"{changed}: the mutation's text is there {text.count(old)} times: {old}"
    (source / changed).write_text(text.replace(old, new))


def cases(file: Path, name: str) -> int:
    """How many values its EACH goes through; 1 without one."""
    body = file.read_text().split(f"PROOF({name}) {{")[1].split("\n}\n")[0]
    each = re.search(r"EACH\((\d+)\)", body)
    return int(each[1]) if each else 1


def prove(library: Path, name: str, each: int) -> str | None:
    """None if it holds on every path, else a counterexample."""
    logging.disable(logging.CRITICAL)  # angr is talkative when it is imported, too
    import angr
    import claripy
    import z3

    project = angr.Project(str(library), auto_load_libs=False)
    function = project.loader.find_symbol(f"prove_{name}")
    assert function is not None, f"no proof {name}"
    inputs = [claripy.BVV(each, 64), *(claripy.BVS(f"in{i}", 64) for i in range(INPUTS))]
    state = project.factory.call_state(function.rebased_addr, MEMORY, ret_addr=RETURN)
    state.options |= {angr.options.ZERO_FILL_UNCONSTRAINED_MEMORY, angr.options.ZERO_FILL_UNCONSTRAINED_REGISTERS}
    state.memory.map_region(MEMORY, 0x1000, 3)
    for i, value in enumerate(inputs):
        state.memory.store(MEMORY + 8 * i, value, endness="Iend_LE")
    manager = project.factory.simulation_manager(state)
    manager.explore(find=RETURN, num_find=1 << 20)
    assert not manager.errored, manager.errored[0].error
    assert not manager.active
    assert manager.found, "no path came to its end"
    z3_of = claripy.backends.z3.convert
    for found in manager.found:
        shown = found.regs.rax
        for broken in [*(shown[bit] == 1 for bit in range(ALONE)), shown[63:ALONE] != 0]:
            # A solver of its own, for bit vectors alone: angr's, which keeps what it learned, may take a hundredfold.
            solver = z3.SolverFor("QF_BV")
            solver.add(*map(z3_of, [*found.solver.constraints, broken]))
            if solver.check() != z3.unsat:
                model = solver.model()
                values = [model.eval(z3_of(value), model_completion=True).as_long() for value in inputs[:11]]
                return ", ".join(f"{value:#x}" for value in values)
    return None


def refute(library: Path, file: Path, name: str) -> tuple[str | None, float]:
    """A counterexample in any of the cases, or None, it is proved; and the seconds it took."""
    begun = time.monotonic()
    counterexamples = (prove(library, name, each) for each in range(cases(file, name)))
    return next(filter(None, counterexamples), None), time.monotonic() - begun


def main(names: list[str]) -> int:
    chosen = {name: file for name, file in proofs().items() if not names or name in names}
    mutants = [(name, mutation) for name, mutation in mutations() if name in chosen]
    assert chosen.keys() == {name for name, _ in mutants}, "a proof without a mutation"
    failed = 0
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        directory = Path(name)
        rest = archive(directory)
        tasks = []
        for proof, file in chosen.items():
            library = directory / f"{file.stem}.so"
            build(file, NATIVE / "src", rest, library)
            tasks.append((library, file, proof))
        for i, (proof, mutation) in enumerate(mutants):
            mutate(mutation, directory / "src")
            library = directory / f"{i}.so"
            build(chosen[proof], directory / "src", rest, library)
            tasks.append((library, chosen[proof], proof))
        results = pool.map(refute, *zip(*tasks, strict=True))
        for proof in chosen:
            counterexample, seconds = next(results)
            failed += counterexample is not None
            word = "proved " if counterexample is None else "REFUTED"
            print(f"{word} {proof} ({seconds:.1f} s) {counterexample or ''}".rstrip(), flush=True)
        for proof, (changed, old, new) in mutants:
            counterexample, seconds = next(results)
            failed += counterexample is None
            word = "MISSED " if counterexample is None else "caught "
            print(f"{word} {proof} ({seconds:.1f} s): {changed}: {new or 'without ' + old}", flush=True)
            if counterexample:
                print(f"        with {counterexample}", flush=True)
    result = f"{failed} FAILED" if failed else "all hold, and every mutation was refuted"
    print(f"{len(chosen)} proofs: {result}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
