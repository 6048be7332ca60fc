"""The examples in docstrings."""

import doctest
import importlib
import pkgutil
from typing import Any

import pytest
from conftest import scans_memory

import fastalloc

MODULES = ["fastalloc"] + [
    f"fastalloc.{module.name}"
    for module in pkgutil.iter_modules(fastalloc.__path__)
    if not module.ispkg and module.name.isidentifier()  # libfastalloc-malloc.so is no module
]


def marked(name: str) -> Any:
    return pytest.param(name, marks=scans_memory) if name == "fastalloc.residue" else name


@pytest.mark.parametrize("name", [marked(name) for name in MODULES if name != "fastalloc._native"])
def test_examples(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(found) >= 5
