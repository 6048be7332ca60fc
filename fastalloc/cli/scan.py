"""``fastalloc scan``: where copies of a secret lie in the memory of a running process."""

import argparse
import dataclasses
import json
from typing import Any

from fastalloc.residue import find_residue

from .live import reading

__all__ = ["add_parser"]


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "scan",
        help="search a process's memory for copies of a secret",
        description="List where the bytes of a file, or pieces of 16 bytes or more of them, lie in the readable memory "
        "of a process: the mapping, the offset in it, its kind, and how many bytes agree. Never the bytes.",
        epilog="Exit code: 0 if there is no copy, 1 if there is, 2 if the search could not be made.",
    )
    parser.add_argument("pid", type=int, metavar="PID", help="the process; it takes the right to trace it")
    parser.add_argument("--pattern-file", required=True, metavar="F", help="the secret: 16 to 4096 bytes")
    parser.add_argument(
        "--int",
        dest="as_int",
        action="store_true",
        help="it is an integer: also in reverse order, and as Python's digits",
    )
    parser.add_argument("--json", action="store_true", help="one line of JSON for each place")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    with reading(options.pid):
        found = find_residue(options.pattern_file, pid=options.pid, as_int=options.as_int)
    for residue in found:
        print(json.dumps(dataclasses.asdict(residue)) if options.json else residue)
    if not options.json:
        copies = "1 copy" if len(found) == 1 else f"{len(found) or 'no'} copies"
        print(f"{copies} in the readable memory of process {options.pid}")
    return 1 if found else 0
