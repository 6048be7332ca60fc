"""The cffi definition of fastalloc._native.

    python -m cffi.gen_src exec-python build_ffi.py OUT.c     the module's C source (CMake does this)
    python build_ffi.py --stubs                               the two generated files of the package, see below

Nothing of the C interface is written here: the cdef is what the C preprocessor ($CC, else cc) makes of the headers with
FA_CDEF defined. From the same headers come two files that are kept in the repository so that people and type
checkers can read them; a test fails when they are not what --stubs would write:

    fastalloc/_fields.py      the statistics: a dataclass per X-macro list of fastalloc.h
    fastalloc/_native.pyi     the module, as mypy sees it: `lib` from the cdef, the C types from adapters/python.pyi
"""

import argparse
import builtins
import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent
INCLUDE_DIRS = [ROOT / "native" / "include", ROOT / "native" / "src"]
LINE_LENGTH = 120
HEADERS = ["fastalloc.h", "heap/arena.h", "heap/array_heap.h", "heap/manager.h"]

# cffi makes a PyInit__native; renamed, it is called by the PyInit__native of adapters/python.c, which adds the C types.
PREAMBLE = "\n".join([f'#include "{header}"' for header in HEADERS] + ["#define PyInit__native fa_python_cffi_module"])


def preprocess(source: str) -> str:
    """What the C preprocessor makes of `source`, with the project's headers in reach."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    command = [*compiler, "-E", "-P", "-DFA_CDEF", *(f"-I{path}" for path in INCLUDE_DIRS), "-x", "c", "-"]
    return subprocess.run(command, input=source, capture_output=True, text=True, check=True).stdout


def cdef() -> str:
    """The C declarations of the public header and of those that the adapters use."""
    return preprocess("".join(f'#include "{header}"\n' for header in HEADERS))


# ---- generated files -------------------------------------------------------------------------------------------------


def statistics() -> dict[str, list[tuple[str, str, str]]]:
    """(name, unit, description) of each field, for each X-macro list."""
    lists = {
        "ArenaFields": "FA_ARENA_STATS",
        "ManagerFields": "FA_MANAGER_STATS",
        "MallocFields": "FA_GLOBAL_STATS",
        "NumpyFields": "FA_NUMPY_STATS",
        "ProtectionFields": "FA_PROTECTION",
    }
    source = '#include "heap/array_heap.h"\n#include "heap/global.h"\n#define ROW(name, unit, doc) @ROW name unit doc\n'
    source += "".join(f"@LIST {name}\n{macro}(ROW)\n" for name, macro in lists.items())
    found: dict[str, list[tuple[str, str, str]]] = {}
    for token in re.finditer(r'@LIST (\w+)|@ROW (\w+) "([^"]*)" "([^"]*)"', preprocess(source)):
        if token[1]:
            rows = found.setdefault(token[1], [])
        else:
            rows.append((token[2], token[3], token[4]))
    return found


def fields_module() -> str:
    """The text of fastalloc/_fields.py."""
    lines = [
        '"""The fields of the statistics. Generated from native/include/fastalloc.h by build_ffi.py --stubs."""',
        "",
        "from dataclasses import dataclass",
    ]
    for name, rows in statistics().items():
        lines += [
            "",
            "",
            "@dataclass(frozen=True, slots=True)",
            f"class {name}:",
            '    """A record of C, as it is."""',
            "",
        ]
        for field, unit, doc in rows:
            text = f'"""Bytes: {doc}."""' if unit == "bytes" else f'"""{doc.capitalize()}."""'
            wrapped = textwrap.wrap(text, LINE_LENGTH - 4, break_long_words=False)
            lines += [f"    {field}: int", *(f"    {line}" for line in wrapped)]
        lines += ["", "", f"{constant(name)} = {{"]
        lines += [f'    "{field}": "{unit}",' for field, unit, _ in rows]
        lines += ["}"]
    return "\n".join(lines) + "\n"


def constant(name: str) -> str:
    """ARENA_UNITS for ArenaFields."""
    return name.removesuffix("Fields").upper() + "_UNITS"


def python_type(c_type: str) -> str:
    """How cffi hands a C type to Python."""
    words = c_type.replace("const ", "").strip()
    if "*" in words or words == "fa_mark":
        return "CData"
    if words in {"void", "bool"}:
        return {"void": "None", "bool": "bool"}[words]
    return "int"


def native_stub() -> str:
    """The text of fastalloc/_native.pyi."""
    types = (ROOT / "native" / "src" / "adapters" / "python.pyi").read_text()
    declarations = cdef()
    lines = ["", "class Lib:"]
    for body in re.findall(r"typedef enum \w+ \{([^}]*)\}", declarations):
        names = re.findall(r"\b(FA_\w+)", body)
        lines += [f"    {name}: Final[int]" for name in names]
    flat = re.sub(r"\s+", " ", declarations)
    for result, name, arguments in re.findall(
        r"(?:^|[;}]) ?([\w ]+?[ *]+)(fa_\w+)\(([^()]*)\);", ";" + flat.replace("; ", ";;")
    ):
        parameters = []
        for argument in arguments.split(","):
            if argument.strip() == "void":
                continue
            kind, parameter = re.fullmatch(r"\s*(.*?[ *])(\w+)\s*", argument).groups()  # type: ignore[union-attr]
            shadow = "_" if hasattr(builtins, parameter) else ""
            parameters.append(f"{parameter}{shadow}: {python_type(kind)}")
        inside = ", ".join(["self", *parameters, "/"] if parameters else ["self"])
        line = f"    def {name}({inside}) -> {python_type(result)}: ..."
        if len(line) <= LINE_LENGTH:
            lines.append(line)
        else:
            lines += [f"    def {name}(", f"        {inside}", f"    ) -> {python_type(result)}: ..."]
    lines += ["", "lib: Lib", "ffi: FFI"]
    return types + "\n".join(lines) + "\n"


GENERATED = {"_fields.py": fields_module, "_native.pyi": native_stub}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stubs", action="store_true", help="write the generated files into fastalloc/")
    parser.add_argument("--cdef", action="store_true", help="print the cdef")
    options = parser.parse_args()
    if options.cdef:
        print(cdef())
    if options.stubs:
        for name, make in GENERATED.items():
            (ROOT / "fastalloc" / name).write_text(make())
    return 0


def ffibuilder() -> object:
    """What cffi.gen_src asks for."""
    from cffi import FFI

    builder = FFI()
    builder.cdef(cdef())
    builder.set_source("fastalloc._native", PREAMBLE)
    return builder


if __name__ == "__main__":
    sys.exit(main())
