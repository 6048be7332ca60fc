"""What all tests of the Python package share."""

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fastalloc as fa
from fastalloc import _binding

MAKERS: dict[str, Callable[[], fa.Arena | fa.Manager]] = {
    "witness": lambda: fa.Witness("1MiB", name="w"),
    "polynomial": lambda: fa.Polynomial("8MiB", name="p"),
    "scratch": lambda: fa.Scratch("8MiB", name="s"),
    "manager": lambda: fa.Manager(pool_blocks=64, name="m"),
}
# tests/asan/run: in this process and in those it starts.
SANITIZED = "asan" in os.environ.get("LD_PRELOAD", "")
scans_memory = pytest.mark.skipif(
    not Path("/proc/self/mem").exists() or SANITIZED,
    reason="there is no /proc/PID/mem, or a sanitizer that maps terabytes",
)
ARENAS = ("witness", "polynomial", "scratch")

# A shell ignores SIGINT in what it puts into the background, and the programs that tests interrupt would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def is_valid(allocator: fa.Arena | fa.Manager) -> bool:
    """Whether the C structures of an open allocator are whole."""
    if isinstance(allocator, fa.Arena):
        return _binding.arena_is_valid(allocator._heap)
    return _binding.manager_is_valid(allocator._heap)


def make_block(allocator: fa.Arena | fa.Manager, size: int) -> fa.Block:
    return allocator.alloc(size) if isinstance(allocator, fa.Arena) else allocator.malloc(size)


def run_python(script: str, *arguments: str, timeout: int = 120) -> subprocess.CompletedProcess[str]:
    """The script in a fresh interpreter, with this environment (so also under a sanitizer)."""
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


@pytest.fixture(params=list(MAKERS))
def allocator(request: pytest.FixtureRequest) -> Iterator[fa.Arena | fa.Manager]:
    """Each arena and the manager; at the end it is whole, and nothing of the test is left in NumPy."""
    made = MAKERS[request.param]()
    yield made
    assert fa.get_allocator() is None
    if not made.closed:
        assert is_valid(made)
        made.close()


@pytest.fixture(params=ARENAS)
def arena(request: pytest.FixtureRequest) -> Iterator[fa.Arena]:
    made = MAKERS[request.param]()
    assert isinstance(made, fa.Arena)
    yield made
    assert fa.get_allocator() is None
    if not made.closed:
        assert is_valid(made)
        made.close()


def pytest_collection_finish() -> None:
    """What the imports made (a JIT compiler, for one) is there to stay: no later collection needs to walk it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _no_garbage() -> Iterator[None]:
    """Cycles of one test do not show up in the next."""
    yield
    gc.collect()
