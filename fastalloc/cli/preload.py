"""``fastalloc run ... -- program``: any program, unchanged, with its malloc in fastalloc.

The library is preloaded and this process becomes the program (exec), so that signals, exit codes and the terminal are
the program's. Before that, it is looked at: what the loader would refuse or silently ignore gets a message here.
"""

import argparse
import os
import shlex
import shutil
import signal
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import fastalloc
from fastalloc.errors import ArgumentError, FastallocError
from fastalloc.units import milliseconds, parse_size

from .elf import Elf, read_elf

__all__ = ["OPTIONS", "NotRunnableError", "Option", "add_options", "environment", "run", "seconds"]

_MACOS = sys.platform == "darwin"
_PRELOAD = "DYLD_INSERT_LIBRARIES" if _MACOS else "LD_PRELOAD"


# --- Options -----------------------------------------------------------------------------------------------------


# The limits of the library (native/src/adapters/malloc.c).
_LARGE_SIZES = ((32 << 10) + 1, 1 << 30)
_LONGEST_DECAY = 1_000_000


def _size(text: str, name: str) -> str:
    return str(parse_size(text, name, maximum=sys.maxsize))


def _large_size(text: str, name: str) -> str:
    return str(parse_size(text, name, *_LARGE_SIZES))


def seconds(text: str, name: str) -> float:
    """A number of seconds, within the limits of `milliseconds`."""
    try:
        value = float(text)
    except ValueError:
        raise ArgumentError(f"{name}: {text!r} is not a number of seconds") from None
    milliseconds(value, name)
    return value


def _decay(text: str, name: str) -> str:
    if text.strip() == "0":
        return "0"  # never
    value = seconds(text, name)
    if value > _LONGEST_DECAY:
        raise ArgumentError(f"{name}: {text} is more than {_LONGEST_DECAY} seconds (0: never given back)")
    return f"{max(value, 0.001):.3f}".rstrip("0").rstrip(".")


def _file(text: str, name: str) -> str:
    path = Path(text).absolute()  # the program may change its directory
    if not path.parent.is_dir():
        raise ArgumentError(f"{name}: {path.parent}: no such directory")
    return str(path)


def _word(text: str, _name: str) -> str:
    return text


@dataclass(frozen=True)
class Option:
    """One option of the command, and the variable by which the library is told.

    ``script`` says that the form for scripts has it too. Without a `metavar` it is a switch.
    """

    name: str
    variable: str
    help: str
    metavar: str | None = None
    choices: tuple[str, ...] | None = None
    check: Callable[[str, str], str] = _word
    script: bool = False

    @property
    def attribute(self) -> str:
        """Of argparse's namespace."""
        return self.name.removeprefix("--").replace("-", "_")


# docs/malloc.md explains them; a test compares.
OPTIONS = (
    Option("--arena-stats", "FASTALLOC_STATS", "print a table of statistics at exit, on stderr"),
    Option(
        "--report", "FASTALLOC_REPORT", "write statistics at exit, as JSON; %%p is the process id", "FILE", check=_file
    ),
    Option(
        "--large-cache",
        "FASTALLOC_LARGE_CACHE",
        "freed large blocks kept resident (default: 4GiB; with --numpy 1GiB)",
        "SIZE",
        check=_size,
        script=True,
    ),
    Option(
        "--decay",
        "FASTALLOC_DECAY",
        "age at which they are given back (default: 60, 0 is never; with --numpy 10)",
        "SECONDS",
        check=_decay,
        script=True,
    ),
    Option(
        "--large-size",
        "FASTALLOC_LARGE_SIZE",
        "from this size a block is large (default: 1MiB)",
        "SIZE",
        check=_large_size,
    ),
    Option(
        "--huge-pages",
        "FASTALLOC_HUGE_PAGES",
        "what large blocks ask of the kernel (default: off)",
        metavar="off|transparent",
        choices=("off", "transparent"),
    ),
    Option("--zero-on-free", "FASTALLOC_ZERO_ON_FREE", "zero every block when it is freed"),
    Option("--hardened", "FASTALLOC_HARDENED", "end the program, with one line, when it misuses memory"),
)


def add_options(parser: argparse._ActionsContainer) -> None:
    """Add them; what is not given is None."""
    for option in OPTIONS:
        if option.metavar is None:
            parser.add_argument(option.name, action="store_const", const="1", help=option.help)
        else:
            parser.add_argument(option.name, metavar=option.metavar, choices=option.choices, help=option.help)


def environment(options: argparse.Namespace, library: str, inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment of the program: what was inherited, the options, and the library before others to preload.

    Raises
    ------
    ArgumentError
        If an option's value is wrong, or the library does not know the option.

    """
    result = dict(inherited)
    known = Path(library).read_bytes()  # an option that the library ignores would be a promise that nobody keeps
    for option in OPTIONS:
        value = getattr(options, option.attribute)
        if value is not None:
            result[option.variable] = option.check(value, option.name)
            if option.variable.encode() not in known:
                raise ArgumentError(f"{option.name}: {library} does not know {option.variable}")
    separators = ":" if _MACOS else ": "
    if any(separator in library for separator in separators):
        raise ArgumentError(
            f"{library}: {_PRELOAD} cannot name a path with a space or a colon; install fastalloc elsewhere"
        )
    before = result.get(_PRELOAD, "").translate(str.maketrans(" ", ":") if " " in separators else {}).split(":")
    result[_PRELOAD] = ":".join([library, *(entry for entry in before if entry not in {"", library})])
    return result


# --- What stands in the way --------------------------------------------------------------------------------------


class NotRunnableError(FastallocError, OSError):
    """The program cannot be run, or not on fastalloc. ``code`` is a shell's: 127 if it was not found, else 126."""

    def __init__(self, message: str, code: int = 126) -> None:
        super().__init__(message)
        self.code = code


_SANITIZERS = {"asan": "Address", "tsan": "Thread", "msan": "Memory", "lsan": "Leak", "hwasan": "HWAddress"}
_SYMBOLS = ("malloc", *(f"__{name}_init" for name in _SANITIZERS))
_LOADERS = ("ld-", "ld.so", "ld64.so")
_SCRIPTS_DEEP = 5  # as the kernel's limit


def _find(command: str) -> str:
    """The file that the command names, as execvp would find it."""
    if not command:
        raise NotRunnableError("the command is empty", 127)
    if "/" in command:
        path: str | None = command
    else:
        path = shutil.which(command)
        if path is None:
            places = os.get_exec_path()
            there = next((place for place in places if (Path(place) / command).is_file()), None)
            if there is not None:
                raise NotRunnableError(f"{Path(there) / command}: not executable (no x permission)")
            here = f"; did you mean ./{command}?" if Path(command).is_file() else ""
            raise NotRunnableError(f"{command}: command not found in PATH{here}", 127)
    found = Path(str(path))
    if not found.exists():
        raise NotRunnableError(f"{command}: no such file", 127)
    if found.is_dir():
        raise NotRunnableError(f"{command}: is a directory")
    if not os.access(found, os.X_OK):
        python = f"; for a Python script: fastalloc run -- python {command}" if found.suffix == ".py" else ""
        raise NotRunnableError(f"{command}: not executable (no x permission){python}")
    return str(found)


def _interpreter(line: bytes, script: str) -> Iterator[str]:
    """What a script's first line runs: the interpreter, and what env, if it is that, will look for."""
    words = os.fsdecode(line[2:]).strip().split(None, 1)
    if not words:
        raise NotRunnableError(f"{script}: its #! line names no interpreter")
    yield words[0]
    if Path(words[0]).name == "env" and len(words) == 2:
        arguments = shlex.split(words[1].removeprefix("-S").strip()) if words[1].startswith("-S") else [words[1]]
        command = next((word for word in arguments if "=" not in word), "-")
        if not command.startswith("-"):
            yield command


def _binaries(path: str, why: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """The binaries that running this file runs, each with words on how it came to it."""
    with Path(path).open("rb") as file:
        line = file.readline(256)
    if not line.startswith(b"#!"):
        yield path, why
        return
    if depth == _SCRIPTS_DEEP:
        raise NotRunnableError(f"{path}: interpreters that are scripts themselves, more than {_SCRIPTS_DEEP} deep")
    for command in _interpreter(line, path):
        try:
            found = _find(command)
        except NotRunnableError as error:
            raise NotRunnableError(f"{path}: its #! line wants {command}: {error}", error.code) from None
        yield from _binaries(found, f" (the interpreter of {path})", depth + 1)


def _check_system() -> None:
    if not hasattr(os, "fork"):
        raise NotRunnableError(f"no library can be preloaded on {sys.platform}; the form for scripts works")


def _check_rights(path: str, why: str) -> None:
    status = Path(path).stat()
    kind = ""
    if status.st_mode & stat.S_ISUID and status.st_uid != os.getuid():
        kind = "setuid"
    elif status.st_mode & stat.S_ISGID and status.st_mode & stat.S_IXGRP and status.st_gid != os.getgid():
        kind = "setgid"
    elif os.getuid() != 0 and hasattr(os, "getxattr"):
        try:
            os.getxattr(path, "security.capability")
            kind = "given capabilities"
        except OSError:  # it has none, or the file system has no such attributes
            kind = ""
    if kind:
        raise NotRunnableError(
            f"{path}{why}: is {kind}: the loader ignores {_PRELOAD} for such programs; run it as its owner"
        )


def _check_elf(path: str, why: str, elf: Elf, library: Elf) -> None:
    where = f"{path}{why}"
    if elf.processor != library.processor:
        raise NotRunnableError(f"{where}: is for {elf.processor}; the library is for {library.processor}")
    if elf.interpreter is None:
        if Path(path).resolve().name.startswith(_LOADERS):
            return  # the loader itself, which preloads into what it loads
        raise NotRunnableError(f"{where}: is statically linked: there is no loader that could preload a library")
    for name, title in _SANITIZERS.items():
        if f"__{name}_init" in elf.symbols or any(needed.startswith(f"lib{name}.so") for needed in elf.needed):
            raise NotRunnableError(
                f"{where}: is built with {title}Sanitizer, which has to be the allocator: run it without fastalloc"
            )
    if "musl" in Path(elf.interpreter).name and any(needed.startswith("libc.so.6") for needed in library.needed):
        raise NotRunnableError(f"{where}: is for the C library musl; the library is for glibc")
    if not Path(elf.interpreter).exists():
        raise NotRunnableError(f"{where}: its loader {elf.interpreter} is not installed")
    if "malloc" in elf.symbols and elf.symbols["malloc"].defined:
        raise NotRunnableError(f"{where}: brings its own malloc, which comes before any that is preloaded")


def _check(path: str, library: str) -> None:
    """Raise NotRunnableError if what the file runs would not run, or would not be served."""
    if _MACOS:
        if Path(path).resolve().parts[1] in {"bin", "sbin", "System"} or str(Path(path).resolve()).startswith(
            "/usr/bin/"
        ):
            raise NotRunnableError(f"{path}: System Integrity Protection ignores {_PRELOAD} for programs of the system")
        return
    ours = read_elf(library)
    if ours is None:
        raise NotRunnableError(f"{library}: is not an ELF library")
    for binary, why in _binaries(path):
        _check_rights(binary, why)
        elf = read_elf(binary, _SYMBOLS)
        if elf is None:
            raise NotRunnableError(f"{binary}{why}: is neither an ELF program nor a script with a #! line")
        _check_elf(binary, why, elf, ours)


def _check_preloaded(entries: str) -> None:
    for entry in entries.replace(" ", ":").split(":"):
        for name in _SANITIZERS:
            if Path(entry).name.startswith((f"lib{name}.so", f"libclang_rt.{name}")):
                raise NotRunnableError(f"{_PRELOAD} holds {entry}: a sanitizer has to be the allocator itself")


# --- Running -----------------------------------------------------------------------------------------------------


def _inherited() -> dict[str, str]:
    """The environment as it was given to this process. Python may have added LC_CTYPE to it (PEP 538)."""
    inherited = dict(os.environ)
    try:
        given = Path("/proc/self/environ").read_bytes().split(b"\0")
    except OSError:
        return inherited
    if not any(entry.startswith(b"LC_CTYPE=") for entry in given):
        inherited.pop("LC_CTYPE", None)
    return inherited


def run(program: Sequence[str], options: argparse.Namespace) -> int:
    """Become the program. Returns only if that cannot be: then the message has been printed.

    Raises
    ------
    ArgumentError
        If an option's value is wrong.
    FileNotFoundError
        If the library was not built.

    """
    library = fastalloc.get_malloc_library()
    given = environment(options, library, _inherited())
    try:
        _check_system()
        path = _find(program[0])
        _check_preloaded(given[_PRELOAD])
        _check(path, library)
        for name in ("SIGPIPE", "SIGXFSZ"):  # Python ignores them, and what is ignored stays so
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        os.execve(path, list(program), given)  # noqa: S606 - what this command is for
    except NotRunnableError as error:
        print(f"fastalloc run: {error}", file=sys.stderr)
        return error.code
    except OSError as error:
        print(f"fastalloc run: {program[0]}: {error.strerror}", file=sys.stderr)
        return 126
