"""``fastalloc run``: a program, unchanged, in fastalloc. Two forms, told apart by ``--``.

fastalloc run [options] -- PROGRAM ...           any program: the library is preloaded (preload.py)
fastalloc run [options] SCRIPT | -m MODULE ...   Python code, run in this process, with Python's own extras
"""

import argparse
import importlib.util
import io
import os
import runpy
import sys
import types
from pathlib import Path

import fastalloc
from fastalloc.errors import ArgumentError

from . import preload

__all__ = ["add_parser"]

_SCRIPT_ONLY = ("--numpy", "--wipe-objects")


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "run",
        help="run a program in fastalloc: all of its malloc, or NumPy's arrays and Python's objects of a script",
        description="With `--`, any program: all that it gets from malloc comes from fastalloc, which is preloaded "
        "into it and into what it starts. Without, a Python script, or with -m a module, as Python would run it: as "
        "__main__, with its arguments in sys.argv. Signals and exit codes are the program's.",
        epilog="SIZE is a number of bytes, or one with a unit: 64MiB, 1.5GiB. Exit code: the program's; 127 if it is "
        "not found, 126 if it cannot be run in fastalloc, 2 for bad arguments. See docs/malloc.md and docs/numpy.md.",
        usage="fastalloc run [options] -- PROGRAM ...\n"
        "       fastalloc run [--numpy] [--large-cache SIZE] [--decay SECONDS] [--wipe-objects]\n"
        "           (SCRIPT | -m MODULE) ...",
    )
    preload.add_options(parser.add_argument_group("for programs (--large-cache and --decay: with --numpy, too)"))
    scripts = parser.add_argument_group("for scripts")
    scripts.add_argument("--numpy", action="store_true", help="install(): array data from fastalloc, process-wide")
    scripts.add_argument("--wipe-objects", action="store_true", help="wipe_freed_objects(): zero objects when freed")
    # All that follows is the program's: argparse must not look for options there.
    scripts.add_argument("-m", dest="module", nargs=argparse.REMAINDER, metavar="MODULE ...", help="run a module")
    parser.add_argument("program", nargs=argparse.REMAINDER, metavar="[--] PROGRAM ...", help="what to run")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the program; what it raises, SystemExit included, is the caller's to let through."""
    if options.module is None and options.program[:1] == ["--"]:
        _refuse(options, _SCRIPT_ONLY, "goes with a script: without `--`, as in fastalloc run --numpy prove.py")
        if len(options.program) == 1:
            raise ValueError("no program after `--`")
        return preload.run(options.program[1:], options)
    only = tuple(option.name for option in preload.OPTIONS if not option.script)
    _refuse(options, only, "goes with a program: after `--`, as in fastalloc run --arena-stats -- python prove.py")
    if not options.numpy:
        budgets = tuple(option.name for option in preload.OPTIONS if option.script)
        _refuse(options, budgets, "goes with --numpy, or with a program: after `--`")
    # argparse ends -m's arguments at a `--`, Python does not.
    return _run_python(options, [*(options.module or ()), *options.program])


def _refuse(options: argparse.Namespace, names: tuple[str, ...], why: str) -> None:
    for name in names:
        if getattr(options, name.removeprefix("--").replace("-", "_")):
            raise ArgumentError(f"{name} {why}")


def _run_python(options: argparse.Namespace, program: list[str]) -> int:
    if not program:
        raise ValueError("no program; give a script, or -m and a module, or `--` and any program")
    if options.module is None and not Path(program[0]).is_file():
        if Path(program[0]).exists():
            raise ValueError(f"{program[0]}: is not a file")
        other = f"; for a program: fastalloc run -- {program[0]}" if "/" not in program[0] else ""
        raise ValueError(f"{program[0]}: no such file{other}")
    if options.module is not None:
        _look_first_in(Path.cwd())
        if importlib.util.find_spec(program[0].partition(".")[0]) is None:
            raise ValueError(f"-m {program[0]}: no such module")
    if options.wipe_objects:
        fastalloc.wipe_freed_objects()
        os.environ["FASTALLOC_WIPE_OBJECTS"] = "1"  # child processes that import fastalloc do likewise
    if options.numpy:
        _install(options)
    options.program_runs = True
    if options.module is not None:
        _run_module(program)
    else:
        _run_script(program)
    return 0


def _install(options: argparse.Namespace) -> None:
    budgets = {}
    if options.large_cache is not None:
        budgets["large_cache"] = options.large_cache
    if options.decay is not None:
        budgets["decay"] = preload.seconds(options.decay, "--decay")
    fastalloc.install(**budgets)
    os.environ["FASTALLOC_NUMPY"] = "1"  # child processes that import fastalloc do likewise


def _look_first_in(directory: Path) -> None:
    """Where the interpreter would look, in the place where it has put the directory of this command."""
    if not sys.flags.safe_path:
        sys.path[0] = str(directory)


def _run_module(program: list[str]) -> None:
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
