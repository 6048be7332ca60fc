"""The examples in docstrings."""

import doctest
import importlib
import pkgutil

import pytest

import fastalloc

MODULES = ["fastalloc"] + [
    f"fastalloc.{module.name}"
    for module in pkgutil.iter_modules(fastalloc.__path__)
    if not module.ispkg and module.name.isidentifier()  # libfastalloc-malloc.so is no module
]


@pytest.mark.parametrize("name", [name for name in MODULES if name != "fastalloc._native"])
def test_examples(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(found) >= 5
