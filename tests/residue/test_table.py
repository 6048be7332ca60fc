"""The table of docs/secrets.md: the program that makes it works, and the page has its rows."""

from pathlib import Path

import pytest
from conftest import scans_memory
from operations import OPERATIONS
from table import BEGIN, END, HEADERS, PAGE, make_secret, measure

rows = {operation.name: number for number, operation in enumerate(OPERATIONS)}


def committed() -> list[list[str]]:
    text = PAGE.read_text().split(BEGIN)[1].split(END)[0]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.strip().splitlines()]


def test_the_page_has_the_rows_of_the_program() -> None:
    header, _, *body = committed()
    assert header == list(HEADERS)
    assert [cells[0] for cells in body] == list(rows), "make residue-table"
    for cells in body:
        assert len(cells) == len(HEADERS)
        assert cells[2] == "clean" or cells[-1], f"{cells[0]}: no workaround"
        assert cells[-1] != "none", cells[0]


@scans_memory
@pytest.mark.parametrize(
    ("name", "arena", "objects", "at_last"),
    [
        ("arithmetic on 16,128 numbers", "clean", "clean", "clean"),
        ("sum of swapped numbers", "malloc", "clean", "clean"),
        ("`tolist`, one item, of text", "other memory", "clean", "clean"),
        ("`lexsort`", "malloc", "malloc", "clean"),
    ],
)
def test_a_few_rows(name: str, arena: str, objects: str, at_last: str, tmp_path: Path) -> None:
    """One that is clean in an arena, and one for each of the ways to become so."""
    path = tmp_path / "secret"
    make_secret(path)
    cells = dict(zip(HEADERS, measure(rows[name], path), strict=True))
    assert cells["plain"] != "clean"
    # What is not promised to be clean may be written over by chance, as `lexsort`'s memory is on Python 3.12.
    for header, expected in zip(HEADERS[2:4], (arena, objects), strict=True):
        assert cells[header].startswith((expected, "clean")), (header, cells)
    assert cells[HEADERS[5]] == at_last
