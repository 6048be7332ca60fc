"""Python has no memory: in every operation of the package each allocation of Python's fails in turn.

Each must raise MemoryError (or succeed), leave no wrong allocator, keep the C structures whole, lose no block, and work
at the next try. In a process of its own, because what fails may be anything. Not tried is what crashes in NumPy itself:
`__array_interface__`, and so `owns` of an array.
"""

import re
import sys

import pytest
from conftest import run_python

pytest.importorskip("_testcapi", reason="this Python has no _testcapi, whose set_nomemory makes allocations fail")

SCRIPT = r"""
import gc, sys, warnings
import _testcapi
import numpy as np
import fastalloc as fa
from fastalloc import _binding

warnings.simplefilter("ignore")
operation = sys.argv[1]
MOST = 4000

arena = fa.Polynomial("8MiB", name="p")
witness = fa.Witness("1MiB", name="w")
manager = fa.Manager(pool_blocks=64, name="m")
source = np.arange(100)
sealed = fa.Witness("64KiB")
secret_block = sealed.alloc(100)
sealed.seal()


def one_array(): return arena.empty(100)
def zeros(): return arena.zeros((10, 10), np.uint8)
def copy(): return arena.array(source)
def block(): return arena.alloc(100)
def secret(): return witness.alloc(100)
def view(): return memoryview(arena.alloc(100))[10:20]
def as_array():
    return arena.alloc(800).array(np.uint64, (10, 10))
def manager_block():
    made = manager.malloc(100)
    manager.free(manager.realloc(made, 5000))
def calloc(): return manager.calloc(10, 10)
def large(): return manager.malloc(300_000)
def scope():
    with arena.scope() as inside:
        return inside.empty(10) + inside.ones(10)
def using():
    with fa.using_allocator(arena):
        return source * 2 + np.sqrt(source)
def using_manager():
    with fa.using_allocator(manager):
        return source * 3
def stats(): return arena.stats(), manager.stats()
def text(): return repr(arena), repr(manager), repr(arena.alloc(10))
def create():
    with fa.Arena("scratch", "1MiB") as made:
        return made.capacity
def create_manager():
    made = fa.Manager()
    made.close()
def arenas():
    with fa.Arenas(witness="64KiB", polynomial="1MiB", scratch="64KiB") as memory:
        memory.scratch.alloc(10)
def reset():
    arena.reset()
    arena.trim()
def refused():
    kept = arena.alloc(10)
    try:
        arena.reset()
    except fa.InUseError as error:
        return str(error)
def wrong():
    try:
        arena.alloc(-1)
    except fa.ArgumentError as error:
        return str(error)
def install():
    fa.install()
    kept = np.ones(1000)
    fa.uninstall()
    return kept
def install_arena():
    fa.install(arena)
    kept = np.ones(1000)
    fa.uninstall()
    return kept
def owns(): return arena.owns(arena.alloc(3))
def unsealed():
    with sealed.unsealed():
        secret_block.wipe()

run = globals()[operation]
run()
gc.collect()
gc.disable()
failures = done = 0
for number in range(MOST):
    kept = None
    _testcapi.set_nomemory(number, number + 1)
    try:
        kept = run()
        raised = False
    except MemoryError:
        raised = True
    except (RuntimeError, SystemError) as error:
        # What CPython says that forgets the MemoryError, for a thread's lock and for a frame.
        forgotten = ("can't allocate lock", "without exception set", "without setting an exception")
        assert any(words in str(error) for words in forgotten)
        raised = True
    finally:
        _testcapi.remove_mem_hooks()
    fa.uninstall()
    assert fa.get_allocator() is None, number
    del kept
    gc.collect()
    failures += raised
    assert _binding.arena_is_valid(arena._heap), number
    assert _binding.arena_is_valid(witness._heap), number
    assert _binding.manager_is_valid(manager._heap), number
    for allocator in (arena, witness, manager):
        assert allocator.stats().live == 0, (number, allocator)
    assert sealed.protection.sealed > 0, number
    arena.reset()
    done = 0 if raised else done + 1
    if done == 40:
        break
kept = run()
print(operation, number + 1, "tries", failures, "failures")
assert done == 40, "more allocations than were tried"
"""

NAMES = re.findall(r"^def (\w+)\(\)", SCRIPT, re.MULTILINE)


@pytest.mark.parametrize("operation", NAMES)
def test_every_python_allocation_fails_once(operation: str) -> None:
    if operation == "arenas" and sys.version_info >= (3, 12):
        pytest.skip(
            "CPython 3.12 and 3.13 crash without memory for a function with a closure, as contextlib.ExitStack has"
        )
    done = run_python(SCRIPT, operation)
    assert done.returncode == 0, done.stdout + done.stderr
    if operation not in {"one_array", "zeros", "reset", "block", "secret", "calloc", "large"}:
        assert " 0 failures" not in done.stdout
