"""One operation on a secret, in a process of its own: `child.py ROW MODE FILE`. It tells its parent, and waits for it.

Modes: plain      the secret is in a witness arena, temporaries and results are where NumPy puts them
       arena      they are in the arena, too
       objects    likewise, and Python's objects are wiped when they are freed
       malloc     likewise, under a malloc that zeroes what is freed
"""

import gc
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
from operations import COUNT, OPERATIONS, WIDTH, Secret

import fastalloc as fa


def load(witness: fa.Witness, path: str) -> Secret:
    """The secret of the file, without a copy outside the arena."""
    block = witness.read(path)
    numbers = block.array("f8")
    long = witness.empty((84, COUNT), "f8")
    long[:] = numbers[:COUNT]
    swapped = witness.empty((84, COUNT), ">f8")
    swapped.view("f8")[:] = numbers[COUNT : 2 * COUNT]
    triangle = witness.zeros((13, 13), "f8", order="F")
    for column in range(13):
        triangle[: column + 1, column] = numbers[13 * column : 14 * column + 1]
    text = block.array(f"S{WIDTH}")[2 * 8 * COUNT // WIDTH :]
    return Secret(numbers[:COUNT], swapped.reshape(-1), long.reshape(-1), text, triangle)


def pause(word: str) -> None:
    """Tell the parent, which then looks at this process's memory, and wait for it."""
    os.write(1, f"{word}\n".encode())
    os.read(0, 1)


def mapping_of(address: int) -> str:
    """Where the arena is."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= address < end:
            return f"{start} {end}"
    raise LookupError


def main() -> None:
    """Run it."""
    row, mode, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    if mode in {"objects", "malloc"}:
        fa.wipe_freed_objects()
    witness = fa.Witness("32MiB")
    secret = load(witness, path)
    pause(mapping_of(secret.vector.ctypes.data))
    with np.errstate(all="ignore"), nullcontext() if mode == "plain" else fa.using_allocator(witness):
        OPERATIONS[row].run(secret)
    pause("done")
    OPERATIONS[row].cure()
    gc.collect()
    fa.wipe_stack("1MiB")
    pause("wiped")


main()
