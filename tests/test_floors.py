"""The repository keeps to its floors, and the checker sees it when it does not."""

from pathlib import Path

import floors
import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_the_repository_keeps_to_its_floors() -> None:
    assert floors.violations(ROOT) == []


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A small house that is in order."""
    files = {
        "native/src/os/os.h": "#include <stddef.h>\n",
        "native/src/mem/bump.h": '#include "os/os.h"\n#include "bump_parts.h"\n',
        "native/src/mem/bump_parts.h": "",
        "native/src/heap/arena.c": '#include "fastalloc.h"\n#include "mem/bump.h"\n',
        "native/src/adapters/lua.c": '#include "heap/arena.c"\n#include "fastalloc.h"\n',
        "fastalloc/__init__.py": "from fastalloc.arena import Arena\nfrom fastalloc import errors\n",
        "fastalloc/errors.py": "import sys\n",
        "fastalloc/_binding.py": "from fastalloc._native import lib\nfrom . import errors\n",
        "fastalloc/arena.py": "from ._binding import call\nfrom fastalloc.errors import Error\n",
        "fastalloc/cli/__init__.py": "import fastalloc as fa\nfrom fastalloc.arena import Arena\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert floors.violations(tmp_path) == []
    return tmp_path


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("native/src/os/os.h", '#include "mem/bump.h"', "os includes mem/bump.h, of the floor mem above it"),
        ("native/src/os/os.h", '#include "fastalloc.h"', "os includes fastalloc.h"),
        ("native/src/mem/bump.h", '#  include "heap/arena.c"', "mem includes heap/arena.c, of the floor heap above it"),
        ("native/src/heap/arena.c", '#include "adapters/lua.c"', "heap includes adapters/lua.c"),
        ("native/src/heap/arena.c", '#include "../adapters/lua.c"', "is not a file of native/src, named from there"),
        ("native/src/new/new.c", "", "no floor has this name"),
        ("fastalloc/errors.py", "from . import _binding", "errors imports _binding, of a floor above it"),
        ("fastalloc/_binding.py", "from .arena import Arena", "_binding imports arena, of a floor above it"),
        ("fastalloc/arena.py", "from . import _native", "imports _native, which only _binding may"),
        ("fastalloc/arena.py", "import fastalloc._native as native", "imports _native, which only _binding may"),
        ("fastalloc/arena.py", "def late():\n    import fastalloc", "arena imports __init__, of a floor above it"),
        ("fastalloc/__init__.py", "from .cli import main", "__init__ imports cli, of a floor above it"),
        ("fastalloc/new.py", "", "not in the list of floors"),
    ],
)
def test_a_violation_is_found(house: Path, file: str, line: str, message: str) -> None:
    path = house / file
    path.parent.mkdir(exist_ok=True)
    path.write_text((path.read_text() if path.exists() else "") + line + "\n")
    (found,) = floors.violations(house)
    assert message in found
    assert found.startswith(file)
