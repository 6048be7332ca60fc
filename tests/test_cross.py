"""Other machines: each target of tests/cross.py is a test, skipped by name where it cannot be run.

`make test-cross` installs the compiler and the runners and sets FASTALLOC_TEST_CROSS; without it nothing here is built,
because the first build of a target takes a minute.
"""

import os

import cross
import pytest

asked = pytest.mark.skipif(
    "FASTALLOC_TEST_CROSS" not in os.environ, reason="make test-cross builds and runs the other targets"
)


@asked
@pytest.mark.parametrize("target", cross.TARGETS, ids=str)
def test_target(target: cross.Target, capfd: pytest.CaptureFixture[str]) -> None:
    outcome = cross.check(target)
    with capfd.disabled():
        print(f"\n{outcome}")
    if not outcome.built and cross.zig() is None:
        pytest.skip(str(outcome))
    assert outcome.ok, f"{outcome}\n{outcome.output}"
    if outcome.problem:
        pytest.skip(str(outcome))
    assert outcome.programs > 5
    assert outcome.passed > 20


@asked
@pytest.mark.parametrize("column", cross.COLUMNS)
def test_the_table_of_protections_is_what_the_program_prints(column: str) -> None:
    target = cross.COLUMNS[column]
    reason = cross.build(target.triple) or cross.absent(target)
    if reason:
        pytest.skip(reason.splitlines()[0])
    assert cross.printed(target) == cross.documented()[column]
