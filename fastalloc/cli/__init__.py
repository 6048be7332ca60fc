"""The ``fastalloc`` command."""

import argparse
from collections.abc import Sequence

from fastalloc import FastallocError, __version__

from . import demo, live, run, scan

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, 1 if what was asked for failed, 2 for bad arguments."""
    parser = argparse.ArgumentParser(prog="fastalloc", description="Memory for provers.")
    parser.add_argument("--version", action="version", version=f"fastalloc {__version__}")
    commands = parser.add_subparsers(title="commands", required=True)
    demo.add_parser(commands)
    run.add_parser(commands)
    live.add_parser(commands)
    scan.add_parser(commands)
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except (FastallocError, ImportError, OSError, ValueError) as error:
        if getattr(options, "program_runs", False):  # of the program that `run` runs: it is not ours to explain
            raise
        parser.exit(2, f"fastalloc: {error}\n")
