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
from pathlib import Path

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parent
INPUTS = 16  # unknowns of 64 bits that a proof may take
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


def build(file: Path, source: Path, rest: Path) -> Path:
    """A shared object of the proofs of a file, over the library's sources under `source`."""
    made = rest.with_name(f"{file.stem}.so")
    compile_with(source, "-shared", str(file), str(rest), "-o", str(made))
    return made


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
    for found in manager.found:
        broken = found.regs.eax == 0
        if found.solver.satisfiable([broken]):
            found.add_constraints(broken)
            return ", ".join(f"{found.solver.eval(value):#x}" for value in inputs[:11])
    return None


def refute(library: Path, file: Path, name: str) -> str | None:
    """A counterexample in any of the cases, or None: it is proved."""
    for each in range(cases(file, name)):
        counterexample = prove(library, name, each)
        if counterexample:
            return counterexample
    return None


def main(names: list[str]) -> int:
    chosen = {name: file for name, file in proofs().items() if not names or name in names}
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        rest = archive(directory)
        built = {file: build(file, NATIVE / "src", rest) for file in set(chosen.values())}
        for proof, file in chosen.items():
            begun = time.monotonic()
            counterexample = refute(built[file], file, proof)
            failed += counterexample is not None
            word = "proved " if counterexample is None else "REFUTED"
            print(f"{word} {proof} ({time.monotonic() - begun:.1f} s) {counterexample or ''}".rstrip(), flush=True)
        for proof, (changed, old, new) in mutations():
            if proof not in chosen:
                continue
            mutated = directory / "src"
            shutil.rmtree(mutated, ignore_errors=True)
            shutil.copytree(NATIVE / "src", mutated)
            text = (mutated / changed).read_text()
            assert text.count(old) == 1, f"{changed}: the mutation's text is there {text.count(old)} times: {old}"
            (mutated / changed).write_text(text.replace(old, new))
            begun = time.monotonic()
            counterexample = refute(build(chosen[proof], mutated, rest), chosen[proof], proof)
            failed += counterexample is None
            word = "MISSED " if counterexample is None else "caught "
            print(
                f"{word} {proof} ({time.monotonic() - begun:.1f} s): {changed}: {new or 'without ' + old}", flush=True
            )
            if counterexample:
                print(f"        with {counterexample}", flush=True)
    missing = chosen.keys() - {proof for proof, _ in mutations()}
    assert not missing, f"no mutation for {missing}"
    result = f"{failed} FAILED" if failed else "all hold, and every mutation was refuted"
    print(f"{len(chosen)} proofs: {result}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
