"""Three machines that C programs are built and run for here: this one, its 32-bit half, and WebAssembly.

Each comes with its compiler and its way to run what that makes; one that is not there says why.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TIMEOUT = 300  # seconds for one program, on a slow machine
CC = os.environ.get("CC", "cc")


@dataclass(frozen=True)
class Target:
    """A machine; programs are compiled and linked with `compiler` and `linking`, and run by `runner`."""

    name: str
    compiler: tuple[str, ...]
    linking: tuple[str, ...] = ("-pthread",)
    runner: tuple[str, ...] = ()
    missing: str = ""

    def compile(self, *arguments: str | Path) -> None:
        """Fails the test if the compiler says anything at all."""
        command = [*self.compiler, *map(str, arguments)]
        done = run(command)
        assert (done.returncode, done.stderr) == (0, ""), f"{' '.join(command)}\n{done.stdout}{done.stderr}"

    def run(self, program: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """What the program does, sees and prints."""
        return run([*self.runner, str(program), *map(str, arguments)])


def run(command: list[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    """A command of the system: not under what this Python process may have been started with."""
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    return subprocess.run(
        command, input=text, capture_output=True, text=True, env=environment, check=False, timeout=TIMEOUT
    )


@cache
def target(name: str) -> Target:
    """One of NAMES."""
    if name == "wasm":
        if importlib.util.find_spec("ziglang") is None or importlib.util.find_spec("wasmtime") is None:
            return Target(name, (), missing="ziglang and wasmtime are not installed: the extra `cross`")
        return Target(
            name,
            (sys.executable, "-m", "ziglang", "cc", "-target", "wasm32-wasi"),
            ("-Wl,-z,stack-size=1048576",),
            (sys.executable, str(Path(__file__).with_name("wasi.py"))),
        )
    # The note is gcc's about its own past.
    compiler = (CC, "-m32", "-Wno-psabi") if name == "32-bit" else (CC,)
    if shutil.which(CC) is None:
        return Target(name, (), missing="no C compiler")
    source = '#include <stdio.h>\nint main(void) { return puts("") == EOF; }\n'
    if run([*compiler, "-x", "c", "-", "-o", os.devnull], source).returncode != 0:
        return Target(name, (), missing=f"{' '.join(compiler)} makes no programs here (gcc-multilib)")
    return Target(name, compiler)


NAMES = ["64-bit", "32-bit", "wasm"]
