"""The ``fastalloc`` command."""

import argparse
import os
import sys
from collections.abc import Sequence

from fastalloc import FastallocError, __version__

from . import demo, live, run, scan

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, 1 if what was asked for failed, 2 for bad arguments; of `run`, the program's."""
    parser = argparse.ArgumentParser(
        prog="fastalloc",
        description="Memory for provers and other cryptographic programs.",
        epilog="fastalloc COMMAND --help says what a command does, and its exit codes.",
    )
    parser.add_argument("--version", action="version", version=f"fastalloc {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    demo.add_parser(commands)
    run.add_parser(commands)
    live.add_parser(commands)
    scan.add_parser(commands)
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except (FastallocError, ImportError, OSError, ValueError, KeyboardInterrupt) as error:
        if getattr(options, "program_runs", False):  # of the program that `run` runs: it is not ours to explain
            raise
        if isinstance(error, KeyboardInterrupt):
            return 130  # as a shell says of what SIGINT has ended
        if isinstance(error, BrokenPipeError):  # who reads our output has enough of it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        parser.exit(2, f"fastalloc {options.command}: {_in_words(error)}\n")


def _in_words(error: BaseException) -> str:
    """As other commands say it: of an error of the system the file, and no number."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)
