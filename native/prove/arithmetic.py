"""Proves arithmetic.c for all inputs, on the compiled code, and refutes each of the mutations below.

    python native/prove/arithmetic.py [NAME ...]

Each PROOF is compiled (-O2, as users compile it) and run by angr with unknown inputs; on every path the solver is asked
whether a SHOW can fail. A mutation is one change of the library's sources; with it the proof must fail, with a counterexample.
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

# proof, file, what stands there once, what it becomes
MUTATIONS = [
    ("align_up", "mem/base.h", "if (value > SIZE_MAX - (alignment - 1)) return false;", ""),
    ("bump_take", "mem/bump.h", "last >= FA_GET(chunk->end) - cursor", "last > FA_GET(chunk->end) - cursor"),
    ("bump_take", "mem/bump.h", "last >= FA_GET(chunk->end) - cursor", "cursor + last >= FA_GET(chunk->end)"),
    ("bump_refill", "mem/bump.c", "if (size > bump->limit - start) return false;", "if (start + size > bump->limit) return false;"),
    ("bump_refill", "mem/bump.c", "bool topmost = current && chunk_end == shared;", "bool topmost = current;"),
    ("bump_refill", "mem/bump.h", "*offset = address - phase;", "*offset = fa_align_down(cursor, alignment);"),
    ("bump_extend", "mem/bump.c", "if (size > bump->limit - cursor) return false;", ""),
    ("bump_position", "mem/bump.c", "FA_GET(chunk->end) == shared ? FA_GET(chunk->cursor)", "true ? FA_GET(chunk->cursor)"),
    ("arena_rounding", "heap/arena.c", "(size - 1) | arena->granule_mask", "size | arena->granule_mask"),
    ("slab_classes", "mem/slabs.h", "unsigned top = fa_log2(size - 1);", "unsigned top = fa_log2(size);"),
    ("bins_are_in_order", "mem/blocks.c", "*row = top - FA_BIN_STEPS_LOG2 + 1;", "*row = top - FA_BIN_STEPS_LOG2;"),
    ("slots_are_apart", "mem/blocks.c", "(size_t)blocks->pages + page", "(size_t)blocks->pages + page - 1"),
    ("blocks_are_aligned", "mem/blocks.c", "uint64_t address = (uint64_t)index + blocks->phase;", "uint64_t address = (uint32_t)(index + blocks->phase);"),
    ("a_block_at_the_cursor_fits", "mem/blocks.c", "granules > blocks->granules - blocks->cursor", "blocks->cursor + granules > blocks->granules"),
    ("entries_know_the_size", "mem/blocks.c", "#define SLACK_BITS 13", "#define SLACK_BITS 11"),
    ("homes_are_in_the_table", "mem/table.c", "(address >> SLOT_LOG2 & 3)) & table->mask", "(address >> SLOT_LOG2 & 3 & table->mask))"),
    ("rooms_of_large_blocks", "heap/manager.c", ", MAX_SLACK + 1);", ", SIZE_MAX);"),
    ("rooms_of_fallback_blocks", "heap/manager.c", "#define FALLBACK_UNIT_LOG2 4", "#define FALLBACK_UNIT_LOG2 5"),
    ("metadata_parts_are_apart", "heap/arena.c", "if (size != 0 && count > (SIZE_MAX - *begin) / size) return false;", ""),
    ("regions_hold_what_was_asked", "mem/region.c", "if (capacity > SIZE_MAX - below - guard) return FA_ERR_NOMEM;", ""),
]  # fmt: skip


def proofs() -> dict[str, Path]:
    """The file of each proof."""
    found = {}
    for file in sorted(HERE.glob("*_proofs.c")):
        for name in re.findall(r"^PROOF\((\w+)\)", file.read_text(), re.MULTILINE):
            found[name] = file
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


def prove(library: Path, name: str) -> str | None:
    """None if it holds on every path, else a counterexample."""
    logging.disable(logging.CRITICAL)  # angr is talkative when it is imported, too
    import angr
    import claripy

    project = angr.Project(str(library), auto_load_libs=False)
    function = project.loader.find_symbol(f"prove_{name}")
    assert function is not None, f"no proof {name}"
    inputs = [claripy.BVS(f"in{i}", 64) for i in range(INPUTS)]
    state = project.factory.call_state(function.rebased_addr, 0x5000_0000, ret_addr=RETURN)
    state.options |= {angr.options.ZERO_FILL_UNCONSTRAINED_MEMORY, angr.options.ZERO_FILL_UNCONSTRAINED_REGISTERS}
    state.memory.map_region(0x5000_0000, 0x1000, 3)
    for i, value in enumerate(inputs):
        state.memory.store(0x5000_0000 + 8 * i, value, endness="Iend_LE")
    manager = project.factory.simulation_manager(state)
    manager.explore(find=RETURN, num_find=1 << 20)
    if os.environ.get("PROVE_PATHS"):
        print(name, len(manager.found), "paths", flush=True)
    assert not manager.errored, manager.errored[0].error
    assert not manager.active
    assert manager.found, "no path came to its end"
    for found in manager.found:
        result = found.regs.eax
        if found.solver.satisfiable([result == 0]):
            found.add_constraints(result == 0)
            return ", ".join(f"{found.solver.eval(value):#x}" for value in inputs[:10])
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
            counterexample = prove(built[file], proof)
            failed += counterexample is not None
            word = "proved " if counterexample is None else "REFUTED"
            print(f"{word} {proof} ({time.monotonic() - begun:.1f} s) {counterexample or ''}".rstrip(), flush=True)
        for proof, changed, old, new in MUTATIONS:
            if proof not in chosen:
                continue
            mutated = directory / "src"
            shutil.rmtree(mutated, ignore_errors=True)
            shutil.copytree(NATIVE / "src", mutated)
            text = (mutated / changed).read_text()
            assert text.count(old) == 1, f"{changed}: the mutation's text is there {text.count(old)} times: {old}"
            (mutated / changed).write_text(text.replace(old, new))
            begun = time.monotonic()
            counterexample = prove(build(chosen[proof], mutated, rest), proof)
            failed += counterexample is None
            word = "MISSED " if counterexample is None else "caught "
            print(f"{word} {proof} ({time.monotonic() - begun:.1f} s): {changed}: {new or 'without ' + old}", flush=True)
            if counterexample:
                print(f"        with {counterexample}", flush=True)
    missing = chosen.keys() - {proof for proof, *_ in MUTATIONS}
    assert not missing, f"no mutation for {missing}"
    result = f"{failed} FAILED" if failed else "all hold, and every mutation was refuted"
    print(f"{len(chosen)} proofs: {result}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
