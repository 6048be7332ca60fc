"""Every misuse, small, medium and large, in every form of C and C++, under FASTALLOC_HARDENED=1: signal and text."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from misuses import ABORTED, FORMS, MISUSES, PREVENTED, SIZES, Misuse, Outcome, compiled, expected, outcome
from test_native import build

NO_SIZED_FREE = "nothrow"  # there is no operator delete(void *, size_t, nothrow_t)


@cache
def hardened() -> dict[str, str]:
    return {"LD_PRELOAD": str(build("release").parent / "libfastalloc-malloc.so"), "FASTALLOC_HARDENED": "1"}


@pytest.fixture(scope="session")
def program_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def make(language: str) -> Path:
        program = compiled(tmp_path_factory.mktemp("misuse"), language)
        if program is None:
            pytest.skip(f"there is no compiler for {language}")
        return program

    return make


def check(misuse: Misuse, size: int, form: str, found: Outcome) -> None:
    where = f"{misuse.name} of {size} bytes ({form})"
    if misuse.name == "free_with_another_size" and form == NO_SIZED_FREE:
        assert found.kind == "none", where
        return
    line = expected(misuse, size, form, found.address)
    assert found.said == line, where
    assert found.code == (ABORTED if line else PREVENTED), where


@pytest.mark.parametrize("language", FORMS)
@pytest.mark.parametrize("misuse", MISUSES, ids=lambda misuse: misuse.name)
def test_misuse_ends_the_process_with_one_line(
    misuse: Misuse, language: str, program_of: Callable[[str], Path]
) -> None:
    program = program_of(language)
    for form in FORMS[language]:
        for size in SIZES:
            check(misuse, size, form, outcome(program, misuse.name, size, form, hardened()))


def test_the_page_has_a_row_for_each() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "malloc.md").read_text()
    for misuse in MISUSES:
        assert f"| {misuse.words} |" in page
