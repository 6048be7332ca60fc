"""Sizes and how they are written."""

import contextlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastalloc as fa
from fastalloc.units import MAX_SIZE, format_size, parse_alignment, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("17B", 17),
        ("64MiB", 64 << 20),
        ("64mib", 64 << 20),
        ("64MIB", 64 << 20),
        (" 64 MiB ", 64 << 20),
        ("1.5GiB", 3 << 29),
        ("10kB", 10_000),
        ("10KB", 10_000),
        ("10kb", 10_000),
        ("2 MB", 2_000_000),
        ("3GB", 3_000_000_000),
        ("1_000", 1000),
        ("0.5KiB", 512),
        ("7EiB", 7 << 60),
    ],
)
def test_texts(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", " ", "12XB", "MiB", "-1", "+1", "1e6", "0x10", "64M", "64Mb", "64Kib", "1.5.5kB", "1 2", "nan", "inf", "1,000",
     "٣", "1__0", "_1", "1_", ".5KiB", "9" * 1000, "1KiB\x00", "1.0001KiB", "0.3B", "8EiB", "9223372036854775808"],
)  # fmt: skip
def test_bad_texts(text: str) -> None:
    with pytest.raises(fa.ArgumentError, match=r"^capacity: "):
        parse_size(text, "capacity")


def test_the_message_names_argument_value_and_what_is_expected() -> None:
    with pytest.raises(fa.ArgumentError) as error:
        fa.Arena("scratch", "12XB")
    expected = "expected an int in bytes or a string such as '64MiB'"
    assert str(error.value) == f"capacity: '12XB' is not a size: {expected}"


@pytest.mark.parametrize("value", [-1, -(2**63), 2**63, 2**64, 10**1000, "8EiB"])
def test_out_of_range(value: int) -> None:
    with pytest.raises(fa.ArgumentError, match=r"^size: .*(too small|too large)"):
        parse_size(value)


@pytest.mark.parametrize(
    "value", [True, False, 1.0, float("nan"), None, b"64MiB", [64], object(), np.ones(2), np.array(1.5)]
)
def test_wrong_types(value: object) -> None:
    with pytest.raises(fa.ArgumentTypeError, match=r"^size: "):
        parse_size(value)  # type: ignore[arg-type]


def test_values_that_may_be_secret_are_not_shown() -> None:
    with pytest.raises(fa.ArgumentTypeError) as error:
        parse_size(b"hunter2")  # type: ignore[arg-type]
    assert "hunter2" not in str(error.value)
    with pytest.raises(fa.ArgumentError) as error_of_text:
        parse_size("x" * 5000)
    assert len(str(error_of_text.value)) < 200


def test_an_int_of_another_library() -> None:
    import numpy as np

    assert parse_size(np.int64(4096)) == 4096


@pytest.mark.parametrize("value", [0, 3, 48, 4 << 20, "3KiB"])
def test_bad_alignments(value: int) -> None:
    with pytest.raises(fa.ArgumentError, match=r"^alignment: .* power of two up to 2097152"):
        parse_alignment(value)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (1024**2 - 1, "1 MiB"),
        (-1536, "-1.5 KiB"),
        (2**63, "8 EiB"),
        (2**70, "1024 EiB"),
    ],
)
def test_format(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, MAX_SIZE))
def test_ints_are_what_they_are(size: int) -> None:
    assert parse_size(size) == parse_size(str(size)) == parse_size(f"{size} B") == size


@given(st.integers(-(2**70), 2**70))
def test_format_is_close(size: int) -> None:
    number, unit = format_size(abs(size)).split()
    factor = parse_size("1" + unit)
    assert abs(float(number) * factor - abs(size)) <= 0.051 * factor + 1e-9 * abs(size)


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_an_argument_error(text: str) -> None:
    with contextlib.suppress(fa.ArgumentError):
        assert 0 <= parse_size(text) <= MAX_SIZE


@given(st.integers(0, 2**20), st.sampled_from(["KiB", "MiB", "kB", "MB", "GiB"]))
def test_units_multiply(number: int, unit: str) -> None:
    assert parse_size(f"{number}{unit}") == number * parse_size("1" + unit)
