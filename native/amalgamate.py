"""Writes the library as two files that a C project drops in and compiles with its own: fastalloc.c and fastalloc.h.

    python native/amalgamate.py DIRECTORY            make amalgamation: into build/amalgamation

    include/*.h ------------------------------------------------> fastalloc.h   both public headers
    src/os/*.c, src/mem/*.c, src/heap/*.c, src/adapters/*.c ----> fastalloc.c   floor by floor, comments and all

A source is taken as a linker takes an object from an archive: because it defines a public function, or one that is
called by what is taken already. So Python's adapters stay behind, and a new source needs no entry here. Of src/os all
files are taken, each for its platform. Headers stand before the first source that includes them, without guards.

Two things that separate files keep apart meet in one:

    static names     one that two files have gets its file's name in front: lock() of manager.c becomes manager_lock()
    macros           those of a .c file end with it; feature-test macros come before everything

What the files share among themselves, and no user calls, becomes static too (FA_PRIVATE).
"""

import re
import sys
from itertools import chain
from pathlib import Path

NATIVE = Path(__file__).resolve().parent
SOURCE = NATIVE / "src"
INCLUDE = NATIVE / "include"
PUBLIC = ["fastalloc.h", "fastalloc32.h"]
FLOORS = ["os", "mem", "heap", "adapters"]
PLATFORMS = {
    "linux": "defined(__linux__)",
    "macos": "defined(__APPLE__)",
    "wasm": "defined(__wasm__)",
    "windows": "defined(_WIN32)",
}

HEAD = """\
/*
 * fastalloc.c - fastalloc {version}, all of it in one file; fastalloc.h is its header
 *
 *     cc -c fastalloc.c          C11; link with the threads library where that is not part of the C library
 *
 * Made by native/amalgamate.py from native/src of the repository. Change it there: each part below begins with the name
 * of its source, and sources that have a name in common carry their file's name in front of it here.
 *
 * MIT or Apache-2.0, as you like. The first is:
 *
{license}
 */
"""
PRIVATE = """\
#include "fastalloc.h"

/* What no user calls is static. The library's own tests do call it: they define FA_INTERNALS. */
#if defined(FA_INTERNALS)
#define FA_PRIVATE
#define FA_EXTERN extern
#elif defined(__GNUC__)
#define FA_PRIVATE static __attribute__((unused))
#define FA_EXTERN static
#else
#define FA_PRIVATE static
#define FA_EXTERN static
#endif
#if defined(__clang__) /* which calls an inline function unused if it stands in a source and not in a header */
#pragma clang diagnostic ignored "-Wunused-function"
#endif
"""

VERSION = re.findall(r'#define FA_VERSION "([^"]+)"', (INCLUDE / "fastalloc.h").read_text())[0]
LICENSE = "\n".join(f" * {line}".rstrip() for line in (NATIVE.parent / "LICENSE-MIT").read_text().splitlines())
PLATFORM_FILES = [SOURCE / "os" / f"{name}.c" for name in PLATFORMS]

TOKEN = re.compile(r"""(?s)/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[A-Za-z_]\w*""")
# All of these begin with a line. The first two match nothing: they find the place, and in group 1 the name.
PROTOTYPE = re.compile(r"(?m)^(?!static|typedef|extern|return)(?=[A-Za-z_][\w *]*?[ *](\w+)\([^;{}]*\);)")
DEFINITION = re.compile(r"(?m)^(?!static|typedef|extern|return)(?=[A-Za-z_][\w *]*?[ *](\w+)\([^;{}]*\)\s*\{)")
STATIC = re.compile(
    r"(?m)^(?:FA_\w+ |__attribute__\(\(.*\)\) )*static [^=;({]*?(\w+)(?:\[[^\n]*\])?(?: FA_TLS)?\s*[=;(]"
)
EXTERN = re.compile(r"(?m)^extern (?=[^(\n]*?(\w+)(?:\[[^\n]*\])?(?: FA_TLS)?;)")
TYPE = re.compile(r"(?m)^(?:typedef )?(struct|union|enum) (\w+) \{([^}]*)\}")
MACRO = re.compile(r"(?m)^#define (\w+)")
FEATURE = re.compile(r"(?m)^#define (_\w+)([^\n]*)\n")
INCLUDED = re.compile(r'(?m)^#include (?:"([^"]+)"|<([^>]+)>)[^\n]*\n')


class AmalgamationError(Exception):
    """The sources do what one file cannot hold."""


def code(text: str) -> str:
    """Without comments and strings."""
    return TOKEN.sub(lambda token: " " if token[0][0] in "/\"'" else token[0], text)


def public() -> set[str]:
    """The functions that a user calls."""
    text = "".join((INCLUDE / header).read_text() for header in PUBLIC)
    return set(re.findall(r"(?m)^FA_API [^;]*?(\w+)\(", text))


def used(text: str) -> set[str]:
    """The identifiers of a file, but for those that it only declares."""
    return set(re.findall(r"[A-Za-z_]\w*", re.sub(PROTOTYPE.pattern + r"[^;]*;", "", code(text))))


def own_names(text: str) -> set[str]:
    """What a file has to itself: static functions and data, types, enumerators."""
    plain = code(text)
    found = set(STATIC.findall(plain))
    for kind in TYPE.finditer(plain):
        found.add(kind[2])
        if kind[1] == "enum":
            found.update(re.findall(r"(\w+)\s*(?:=[^,]*)?(?:,|$)", kind[3].strip()))
    return found


def resolve(name: str, includer: Path) -> Path:
    """The header of ours that an #include names."""
    for folder in (SOURCE, includer.parent, INCLUDE):
        if (folder / name).exists():
            return folder / name
    raise AmalgamationError(f"{includer}: {name} is no header of native/")


def headers(path: Path) -> list[Path]:
    """The internal headers that a file reaches, each after those that it includes itself."""
    found: dict[Path, None] = {}
    for name, _ in INCLUDED.findall(path.read_text()):
        if name and (header := resolve(name, path)).parent != INCLUDE:
            found |= dict.fromkeys([*headers(header), header])
    return list(found)


def needed() -> list[Path]:
    """The sources in the order of the floors: those that define what is public, and what they call."""
    candidates = [path for floor in FLOORS for path in sorted((SOURCE / floor).glob("*.c"))]
    # Only names of ours: the preload shim defines malloc, and no call of that is for it.
    defines = {
        path: set(re.findall(r"\bfa\w*", " ".join(DEFINITION.findall(code(path.read_text()))))) for path in candidates
    }
    wanted, taken = public(), set[Path]()
    while new := {path for path in candidates if path not in taken and defines[path] & wanted}:
        taken |= new
        wanted |= {name for path in new for file in (path, *headers(path)) for name in used(file.read_text())}
    if missing := public().difference(*(defines[path] for path in taken)):
        raise AmalgamationError(f"in a public header and in no source: {', '.join(sorted(missing))}")
    return [path for path in candidates if path in taken]


def rename(text: str, changes: dict[str, str]) -> str:
    """Identifiers by others, but not members of structs, and nothing in comments and strings."""
    bodies = [(body.start(), body.end()) for body in re.finditer(r"(?ms)^(?:typedef )?struct \w+ \{.*?^\}", text)]

    def replace(token: re.Match[str]) -> str:
        before, after = text[: token.start()][-2:], text[token.end() :][:1]
        declared = after in ";,[:)" and any(start < token.start() < end for start, end in bodies)
        accessed = before == "->" or before.endswith(".")
        return token[0] if declared or accessed else changes.get(token[0], token[0])

    return TOKEN.sub(replace, text)


def unclashed(sources: list[Path]) -> dict[Path, str]:
    """Each source's text, a name of its own changed where another file that is compiled with it has the same."""
    own = {path: own_names(path.read_text()) for path in dict.fromkeys([*sources, *chain(*map(headers, sources))])}
    texts = {}
    for path in sources:
        together = [other for other in own if other != path and {other.parent.name, path.parent.name} != {"os"}]
        clashes = own[path].intersection(chain(*(own[other] for other in together)))
        texts[path] = rename(path.read_text(), {name: f"{path.stem}_{name}" for name in clashes})
    return texts


class Amalgam:
    """fastalloc.c as it is made."""

    def __init__(self) -> None:
        self.sources = needed()
        self.texts = unclashed(self.sources)
        self.done: set[Path] = set()
        self.system: set[str] = set()
        # What is declared in an internal header is shared among the sources, and with nobody else.
        shared = "".join(code(header.read_text()) for header in dict.fromkeys(chain(*map(headers, self.sources))))
        self.functions = set(PROTOTYPE.findall(shared))
        self.data = set(EXTERN.findall(shared))

    def c_file(self) -> str:
        """All of it."""
        platforms = [path for path in self.sources if path.parent.name == "os"]
        parts = [HEAD.format(version=VERSION, license=LICENSE), self.features(), PRIVATE]
        parts += [self.headers_of(path) for path in platforms]
        for path in platforms:
            parts.append(f"#{'if' if path == platforms[0] else 'elif'} {PLATFORMS[path.stem]}\n\n" + self.source(path))
        parts.append(f'#else\n#error "fastalloc is for {", ".join(path.stem for path in platforms)}"\n#endif\n')
        parts += [self.headers_of(path) + self.source(path) for path in self.sources if path not in platforms]
        return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"

    def features(self) -> str:
        """Feature-test macros, taken out of the sources: the system's headers look at them once."""
        lines = []
        for path in self.sources:
            for name, value in FEATURE.findall(self.texts[path]):
                condition = f"!defined({name})"
                if path in PLATFORM_FILES:
                    condition = f"{PLATFORMS[path.stem]} && {condition}"
                lines.append(f"#if {condition}\n#define {name}{value}\n#endif\n")
            bare = re.sub(r"(?m)^#ifndef (_\w+)\n#define \1\n#endif\n", "", self.texts[path])
            self.texts[path] = FEATURE.sub("", bare)
        return "".join(dict.fromkeys(lines))

    def headers_of(self, path: Path) -> str:
        """The headers that no part before this one had, without their guards."""
        new = [header for header in headers(path) if header not in self.done]
        self.done.update(new)
        texts = (
            re.sub(r"(?ms)^#ifndef (\w+)\n#define \1\n(.*)^#endif\n$", r"\2", header.read_text()) for header in new
        )
        return "".join(self.part(header, text) for header, text in zip(new, texts, strict=True))

    def source(self, path: Path) -> str:
        """A source, up to the end of its macros."""
        macros = dict.fromkeys(MACRO.findall(self.texts[path]))
        return self.part(path, self.texts[path]) + "".join(f"#undef {name}\n" for name in macros) + "\n"

    def part(self, path: Path, text: str) -> str:
        """The text of a file under its name, what is shared made private, and nothing included twice."""
        text = EXTERN.sub("FA_EXTERN ", text)
        for pattern in (PROTOTYPE, DEFINITION):
            text = pattern.sub(lambda match: "FA_PRIVATE " if match[1] in self.functions else "", text)
        for name in self.data:
            text = re.sub(rf"(?m)^(?=(?:_Thread_local |const )*\w+ {name}\b)", "FA_PRIVATE ", text)
        depth, lines = 0, []
        for line in text.splitlines(keepends=True):
            depth += line.startswith("#if") - line.startswith("#endif")
            if included := INCLUDED.match(line):
                if included[1] or included[2] in self.system:
                    continue
                if depth == 0 and path.suffix == ".h":
                    self.system.add(included[2])
            lines.append(line)
        return f"/* ---- {path.relative_to(NATIVE)} ".ljust(116, "-") + " */\n\n" + "".join(lines)


def h_file() -> str:
    """The public headers, one after the other."""
    texts = [re.sub(r'(?m)^#include "[^"]*"\n\n?', "", (INCLUDE / name).read_text()) for name in PUBLIC]
    return "\n".join(texts)


def main(directory: Path) -> None:
    """Write both files."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "fastalloc.c").write_text(Amalgam().c_file())
    (directory / "fastalloc.h").write_text(h_file())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python native/amalgamate.py DIRECTORY")
    main(Path(sys.argv[1]))
