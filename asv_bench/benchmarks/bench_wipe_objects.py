"""wipe_freed_objects(): loops in the manner of pyperformance, with Python's own allocators and with the layer on them.

It cannot be switched off, so each runs in a process of its own, as asv does it. `asv_bench/quick_objects.py` gives the
ratios, from interleaved processes.
"""

import hashlib
import heapq
import json
import pickle
import random
import re
import struct
from collections.abc import Callable

import fastalloc as fa


class _Node:
    __slots__ = ("key", "left", "right")

    def __init__(self, key: int) -> None:
        self.key, self.left, self.right = key, None, None


def trees() -> int:
    """Small objects with slots: a binary search tree, and a walk with generators."""

    def walk(node):
        if node is not None:
            yield from walk(node.left)
            yield node.key
            yield from walk(node.right)

    rng = random.Random(1)
    root = _Node(500)
    for _ in range(1000):
        key, node = rng.randrange(1000), root
        while True:
            side = "left" if key < node.key else "right"
            below = getattr(node, side)
            if below is None:
                setattr(node, side, _Node(key))
                break
            node = below
    return sum(walk(root))


def floats() -> float:
    """Bodies under gravity: floats by the million."""
    bodies = [[float(i), i * 0.5, i * 0.25, 0.0, 0.0, 0.0, 1.0 + i] for i in range(5)]
    for _ in range(60):
        for i, a in enumerate(bodies):
            for b in bodies[i + 1 :]:
                dx, dy, dz = a[0] - b[0], a[1] - b[1], a[2] - b[2]
                force = 0.001 / ((dx * dx + dy * dy + dz * dz) ** 1.5)
                for axis, d in ((3, dx), (4, dy), (5, dz)):
                    a[axis] -= d * b[6] * force
                    b[axis] += d * a[6] * force
        for body in bodies:
            body[0] += 0.001 * body[3]
            body[1] += 0.001 * body[4]
            body[2] += 0.001 * body[5]
    return bodies[0][0]


def digits() -> int:
    """Digits of pi with big ints."""
    q, r, t, i, found = 1, 180, 60, 2, 0
    while found < 150:
        u, y = 3 * (3 * i + 1) * (3 * i + 2), (q * (27 * i - 12) + 5 * r) // (5 * t)
        q, r, t, i = 10 * q * i * (2 * i - 1), 10 * u * (q * (5 * i - 2) + r - y * t), t * u, i + 1
        found += 1
    return y


_DATA = {f"key{i}": [i, str(i) * 3, {"none": None, "half": i * 0.5}] for i in range(300)}


def json_() -> object:
    """Text, dicts and lists."""
    return json.loads(json.dumps(_DATA))


def pickle_() -> object:
    """Likewise, as bytes."""
    return pickle.loads(pickle.dumps(_DATA))


_TEXT = " ".join(f"word{i % 97} {i} user{i}@example.org" for i in range(400))


def regex() -> int:
    """Matches and replacements."""
    return len(re.findall(r"(\w+)@(\w+)", _TEXT)) + len(re.sub(r"(\d+) (\w+)", r"\2-\1", _TEXT))


def words() -> int:
    """Strings: split, count, format, join."""
    counts: dict[str, int] = {}
    for word in _TEXT.split():
        counts[word] = counts.get(word, 0) + 1
    lines = [f"{word:>20}: {count:5d}" for word, count in sorted(counts.items())]
    return len("\n".join(lines).upper().encode())


def queue() -> int:
    """Tuples and lists: a heap queue."""
    heap: list[tuple[int, str]] = []
    for i in range(1500):
        heapq.heappush(heap, (i * 7919 % 1009, str(i)))
    done = [heapq.heappop(heap) for _ in range(len(heap))]
    return sum(len(set(done[i : i + 10])) for i in range(0, 1500, 10))


def packets() -> bytes:
    """Bytes of a few hundred: packing, slicing, hashing."""
    digest = hashlib.sha256()
    for i in range(300):
        packet = struct.pack(">IHH", i, i & 255, 300) + bytes([i & 255]) * 300
        head, body = packet[:8], bytearray(packet[8:])
        body[0:4] = head[:4]
        digest.update(bytes(body))
    return digest.digest()


def calls() -> int:
    """Functions, closures, exceptions."""

    def ackermann(m: int, n: int) -> int:
        if m == 0:
            return n + 1
        return ackermann(m - 1, 1 if n == 0 else ackermann(m, n - 1))

    def refuse(*args: int, **kwargs: int) -> None:
        raise KeyError(args[0] + len(kwargs))

    total = ackermann(2, 9)
    for i in range(500):
        try:
            refuse(i, key=i)
        except KeyError as error:
            total += error.args[0]
    return total


def large_bytes() -> int:
    """Nothing but bytes of 20 and 40 KB, made and freed: the price of zeroing as it is. No such program is known."""
    return sum(len(block + block) for block in (bytes(20000) for _ in range(300)))


LOOPS: dict[str, Callable[[], object]] = {
    "trees": trees,
    "floats": floats,
    "digits": digits,
    "json": json_,
    "pickle": pickle_,
    "regex": regex,
    "words": words,
    "queue": queue,
    "packets": packets,
    "calls": calls,
    "large bytes": large_bytes,
}


class WipedObjects:
    """Each loop, plain and wiped."""

    params = [list(LOOPS), ["plain", "wiped"]]
    param_names = ["loop", "objects"]

    def setup(self, loop: str, objects: str) -> None:
        if objects == "wiped":
            fa.wipe_freed_objects()
        self.run = LOOPS[loop]
        self.expected = self.run()

    def time_loop(self, loop: str, objects: str) -> None:
        if self.run() != self.expected:
            raise AssertionError
