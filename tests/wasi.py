"""Runs a WebAssembly program under wasmtime, with this directory and what its arguments name in reach.

    python tests/wasi.py [--find FILE] PROGRAM ARGUMENT...

With --find, 16-byte pieces of FILE are looked for in the program's whole memory when it has ended, and the last line of
the output is the number of places that hold one.
"""

import sys
from pathlib import Path

import wasmtime

PIECE = 16


def run(program: str, arguments: list[str]) -> tuple[int, bytes]:
    """Its exit status, and its memory then."""
    configuration = wasmtime.Config()
    configuration.wasm_exceptions = True
    engine = wasmtime.Engine(configuration)
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    store = wasmtime.Store(engine)
    wasi = wasmtime.WasiConfig()
    wasi.inherit_stdin()
    wasi.inherit_stdout()
    wasi.inherit_stderr()
    wasi.inherit_env()
    wasi.argv = [program, *arguments]
    named = {str(Path(argument).parent) for argument in arguments if Path(argument).is_absolute()}
    for directory in {".", *named}:
        wasi.preopen_dir(directory, directory)
    store.set_wasi(wasi)
    instance = linker.instantiate(store, wasmtime.Module.from_file(engine, program))
    exports = instance.exports(store)
    status = 0
    try:
        exports["_start"](store)
    except wasmtime.ExitTrap as end:
        status = end.code
    return status, bytes(exports["memory"].read(store, 0, exports["memory"].data_len(store)))


def main() -> int:
    """The command line."""
    arguments = sys.argv[1:]
    wanted = b""
    if arguments[0] == "--find":
        wanted = Path(arguments[1]).read_bytes()
        arguments = arguments[2:]
    status, memory = run(arguments[0], arguments[1:])
    if wanted:
        print(sum(memory.count(wanted[at : at + PIECE]) for at in range(0, len(wanted) - PIECE + 1, PIECE)))
    return status


if __name__ == "__main__":
    sys.exit(main())
