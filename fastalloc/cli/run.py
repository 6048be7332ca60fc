"""``fastalloc run``: a Python program, unchanged, with NumPy's arrays in fastalloc."""

import argparse
import io
import os
import runpy
import sys
import types
from pathlib import Path

import fastalloc

__all__ = ["add_parser"]


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "run",
        help="run a Python program with NumPy's arrays in fastalloc",
        description="Run a script, or with -m a module, as Python would: as __main__, with its arguments in sys.argv. "
        "Its exit code is the program's.",
        usage="fastalloc run [--numpy] [--large-cache SIZE] [--decay SECONDS] (SCRIPT | -m MODULE) ...",
    )
    parser.add_argument("--numpy", action="store_true", help="install(): array data from fastalloc, process-wide")
    parser.add_argument("--large-cache", default="1GiB", metavar="SIZE", help="of install(); default: %(default)s")
    parser.add_argument(
        "--decay", default=10.0, type=float, metavar="SECONDS", help="of install(); default: %(default)s"
    )
    # All that follows is the program's: argparse must not look for options there.
    parser.add_argument("-m", dest="module", nargs=argparse.REMAINDER, metavar="MODULE ...", help="run a module")
    parser.add_argument("script", nargs=argparse.REMAINDER, metavar="SCRIPT ...", help="run a script")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the program; what it raises, SystemExit included, is the caller's to let through."""
    program: list[str] = options.script if options.module is None else options.module
    if not program:
        raise ValueError("run: no program; give a script, or -m and a module")
    if options.module is None and not Path(program[0]).is_file():
        raise ValueError(f"run: {program[0]}: no such file")
    if options.numpy:
        fastalloc.install(large_cache=options.large_cache, decay=options.decay)
        os.environ["FASTALLOC_NUMPY"] = "1"  # child processes that import fastalloc do likewise
    options.program_runs = True
    if options.module is not None:
        _run_module(program)
    else:
        _run_script(program)
    return 0


def _look_first_in(directory: Path) -> None:
    """Where the interpreter would look, in the place where it has put the directory of this command."""
    if not sys.flags.safe_path:
        sys.path[0] = str(directory)


def _run_module(program: list[str]) -> None:
    _look_first_in(Path.cwd())
    sys.argv[:] = program
    runpy.run_module(program[0], run_name="__main__", alter_sys=True)


def _run_script(program: list[str]) -> None:
    """As the interpreter does: the module stays in sys.modules, for pickle, threads and what runs at exit."""
    path = program[0]
    _look_first_in(Path(path).resolve().parent)
    sys.argv[:] = program
    with io.open_code(path) as file:
        code = compile(file.read(), path, "exec")
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=path, __builtins__=__builtins__, __spec__=None, __cached__=None)
    sys.modules["__main__"] = main
    exec(code, main.__dict__)  # noqa: S102 - what this command is for
