"""A pytest plugin (`-p numpy_installed`, with tests/ in PYTHONPATH): NumPy's own tests with fastalloc under them.

FASTALLOC_TEST_UNDER=install   process-wide (the default)
FASTALLOC_TEST_UNDER=scope     inside using_allocator of a polynomial arena
FASTALLOC_TEST_UNDER=plain     neither: what fails here is not our doing
"""

import os

import numpy as np
import pytest

import fastalloc as fa
from fastalloc import _binding

UNDER = os.environ.get("FASTALLOC_TEST_UNDER", "install")

# NumPy's tests of its own hook look at what is current without a scope, and at the hook's own names.
OF_THE_HOOK = {"install": (), "plain": (), "scope": ("test_mem_policy.py",)}

ARENA = fa.Polynomial("8GiB") if UNDER == "scope" else None

# NumPy 1.26 takes an input and an output that lie side by side for overlapping (`nomemoverlap`), and log10 of eight
# numbers then goes another way, with another last bit. Blocks of malloc never lie side by side.
BIT_BY_BIT = "test_core.py::TestUfuncs::test_testUfuncRegression"

if UNDER == "install":
    fa.install()
    assert fa.handles(np.ones(3))


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    if UNDER != "scope" or pyfuncitem.path.name in OF_THE_HOOK[UNDER]:
        return (yield)
    with fa.using_allocator(ARENA):
        return (yield)


def pytest_collection_modifyitems(items):
    if UNDER == "plain" or np.lib.NumpyVersion(np.__version__) >= "2.0.0":
        return
    for item in items:
        if item.nodeid.endswith(BIT_BY_BIT):
            item.add_marker(pytest.mark.xfail(reason="side by side is no overlap", strict=False))


def pytest_sessionfinish(session, exitstatus):
    assert _binding.installed_is_valid()
    if UNDER == "install":
        stats = fa.numpy_stats()
        assert stats.peak > 0
        print(f"\nfastalloc: {stats.as_dict()}")
