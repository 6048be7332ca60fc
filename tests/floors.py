"""The floors of the house: a file uses only its own floor and those below it.

native/src   os < mem < heap < adapters, by #include lines; heap and adapters may include fastalloc.h
fastalloc/   by import statements, see PYTHON_FLOORS; only _binding imports _native

`python tests/floors.py` prints every violation and exits 1 if there is one.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

NATIVE_FLOORS = ["os", "mem", "heap", "adapters"]
PUBLIC_HEADERS = {"fastalloc.h", "fastalloc32.h"}
# mem shares the public header's vocabulary (fa_status, the options' enums); the operating system knows nothing of it.
MAY_INCLUDE_PUBLIC = {"mem", "heap", "adapters"}

PYTHON_FLOORS = [
    {"errors", "units", "_fields"},
    {"_binding"},
    {"stats"},
    {"block", "arrays", "intake"},
    {"arena", "manager", "allocator"},
    {"process", "objects", "residue"},
    {"__init__"},
    {"cli"},
]
EXTENSION = "_native"


def native_violations(source: Path) -> Iterator[str]:
    """Violations in native/src: `source` is that directory."""
    for path in sorted(source.rglob("*.[ch]")):
        floor = path.relative_to(source).parts[0]
        if floor not in NATIVE_FLOORS:
            yield f"{path.relative_to(source)}: no floor has this name"
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            included = re.match(r'\s*#\s*include\s*"([^"]+)"', line)
            if not included:
                continue
            where, name = f"{path.relative_to(source)}:{number}", included[1]
            if name in PUBLIC_HEADERS:
                if floor not in MAY_INCLUDE_PUBLIC:
                    yield f"{where}: {floor} includes {name}"
                continue
            other = name.split("/")[0] if "/" in name else floor
            if other not in NATIVE_FLOORS or not (source / (name if "/" in name else f"{floor}/{name}")).exists():
                yield f"{where}: {name} is not a file of native/src, named from there"
            elif NATIVE_FLOORS.index(other) > NATIVE_FLOORS.index(floor):
                yield f"{where}: {floor} includes {name}, of the floor {other} above it"


def imports(path: Path, package: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of each import of the package's own modules; "__init__" is the package itself."""
    relative = path.relative_to(package).with_suffix("")
    home = ["fastalloc", *relative.parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        if isinstance(node, ast.Import):
            found = [alias.name.split(".") for alias in node.names]
        else:
            start = home[: len(home) - node.level + 1] if node.level else []
            module = start + (node.module.split(".") if node.module else [])
            found = [module]
            if module == ["fastalloc"]:
                found = [[*module, alias.name] for alias in node.names]
        for parts in found:
            if parts[0] != "fastalloc":
                continue
            name = parts[1] if len(parts) > 1 else "__init__"
            known = name == EXTENSION or any(name in floor for floor in PYTHON_FLOORS)
            yield node.lineno, name if known or (package / f"{name}.py").exists() else "__init__"


def python_violations(package: Path) -> Iterator[str]:
    """Violations in the package: `package` is the directory fastalloc/."""
    heights = {name: height for height, names in enumerate(PYTHON_FLOORS) for name in names}
    for path in sorted(package.rglob("*.py")):
        relative = path.relative_to(package)
        own = relative.parts[0].removesuffix(".py")
        if own not in heights:
            yield f"{relative}: not in the list of floors (PYTHON_FLOORS of tests/floors.py)"
            continue
        for line, name in imports(path, package):
            if name == EXTENSION:
                if own != "_binding":
                    yield f"{relative}:{line}: imports {EXTENSION}, which only _binding may"
            elif name not in heights:
                yield f"{relative}:{line}: {name} is not in the list of floors"
            elif heights[name] > heights[own]:
                yield f"{relative}:{line}: {own} imports {name}, of a floor above it"


def violations(root: Path) -> list[str]:
    """All violations in the repository."""
    return [
        *(f"native/src/{text}" for text in native_violations(root / "native" / "src")),
        *(f"fastalloc/{text}" for text in python_violations(root / "fastalloc")),
    ]


if __name__ == "__main__":
    found = violations(Path(__file__).resolve().parent.parent)
    print("\n".join(found) or "floors: every file uses only its own floor and those below it")
    sys.exit(bool(found))
