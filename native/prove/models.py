"""Checks the models of the lock-free parts with spin, and that each of their mutations is found.

    python native/prove/models.py [NAME ...]

A model stands beside this file as NAME.pml and says which C it mirrors. Each run of spin looks at every order in which
the steps of its threads can happen, within the bounds of the model.
"""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent

# model: the bounds in which it must hold, and for each mutation the bounds in which it must be found
RUNS: dict[str, tuple[list[str], dict[int, str]]] = {
    "refill": (["", "-DTHREADS=3 -DSTEPS=1"], {1: "", 2: "", 3: "", 4: "", 5: ""}),
    "magazine": (["", "-DSTEPS=6 -DBLOCKS=4"], {1: "", 2: "", 3: "", 4: "", 5: ""}),
    "registry": ([""], {1: "", 2: "", 3: "", 4: "", 5: ""}),
    "start": (["", "-DTHREADS=5 -DCALLS=1"], {1: "", 2: "", 3: "", 4: "", 5: ""}),
    "large": (
        ["", "-DLIMIT=1 -DSLOTS=2", "-DSLOTS=2"],
        {1: "-DLIMIT=1 -DSLOTS=2", 2: "", 3: "", 4: "-DSLOTS=2", 5: ""},
    ),
}


def check(model: str, options: str) -> tuple[bool, str]:
    """Whether the model holds, and in how many states or why not."""
    with tempfile.TemporaryDirectory() as directory:
        shutil.copy(HERE / f"{model}.pml", directory)

        def run(*command: str) -> str:
            done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        run("spin", *options.split(), "-a", f"{model}.pml")
        run("cc", "-O2", "-w", "-DSAFETY", "-DCOLLAPSE", "-DMEMLIM=4000", "-o", "pan", "pan.c")
        output = run("./pan", "-m1000000")
    states = re.search(r"(\d+) states, stored", output)
    errors = re.search(r"errors: (\d+)", output)
    assert states, output
    assert errors, output
    assert "max search depth too small" not in output, output
    assert "out of memory" not in output, output
    found = re.search(r"^pan:1: (.*)$", output, re.MULTILINE)
    return errors[1] == "0", found[1] if found else f"{states[1]} states"


def main(names: list[str]) -> int:
    failed = 0
    for model, (bounds, mutations) in RUNS.items():
        if names and model not in names:
            continue
        for options in bounds:
            begun = time.monotonic()
            holds, why = check(model, options)
            failed += not holds
            print(
                f"{'holds ' if holds else 'BROKEN'} {model} {options}: {why} ({time.monotonic() - begun:.1f} s)",
                flush=True,
            )
        for bug, options in mutations.items():
            holds, why = check(model, f"-DBUG={bug} {options}")
            failed += holds
            print(f"{'MISSED' if holds else 'found '} {model} -DBUG={bug} {options}: {why}", flush=True)
    print(f"models: {f'{failed} FAILED' if failed else 'all hold, and every mutation was found'}")
    return 1 if failed else 0


if __name__ == "__main__":
    if shutil.which("spin") is None:
        sys.exit("models.py: spin is not installed (apt install spin)")
    sys.exit(main(sys.argv[1:]))
