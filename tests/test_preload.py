"""``fastalloc run -- program``: what the program sees of it, and what is said when it cannot be."""

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import fastalloc as fa
from fastalloc.cli import main
from fastalloc.cli.elf import read_elf
from fastalloc.cli.preload import OPTIONS, NotRunnableError, _check_preloaded

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = fa.get_malloc_library()

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes as Linux shows them")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "fastalloc.cli", "run", *arguments]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {name: value for name, value in os.environ.items() if not name.startswith(("FASTALLOC_", "LD_PRELOAD"))}
    given |= environment
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=60, check=False, env=given)


def compiled(path: Path, source: str, *flags: str) -> str:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("cc is not installed")
    done = subprocess.run(
        [compiler, "-x", "c", "-", "-o", path, *flags], input=source, text=True, capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"cc {' '.join(flags)} does not work here: {done.stderr.splitlines()[-1:]}")
    return str(path)


# ---- what the program sees -------------------------------------------------------------------------------------------


def test_the_library_is_in_the_program_and_in_what_it_starts() -> None:
    for program in (["cat", "/proc/self/maps"], ["sh", "-c", "cat /proc/self/maps; true"]):
        ran = run("--", *program)
        assert (ran.returncode, ran.stderr) == (0, "")
        assert os.path.realpath(LIBRARY) in ran.stdout or LIBRARY in ran.stdout


def test_arguments_are_the_programs() -> None:
    ran = run("--", "printf", "%s|", "--report", "-m", "--", "-h", "")
    assert (ran.returncode, ran.stdout) == (0, "--report|-m|--|-h||")


def test_the_process_becomes_the_program() -> None:
    with subprocess.Popen(command("--", "sh", "-c", "echo $$; read wait"), stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) == process.pid
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == -signal.SIGTERM


@pytest.mark.parametrize("code", [0, 1, 3, 126, 127, 255])
def test_exit_codes_pass_through(code: int) -> None:
    ran = run("--", "sh", "-c", f"exit {code}")
    assert (ran.returncode, ran.stderr) == (code, "")


def test_signals_have_their_default_actions() -> None:
    """Python ignores SIGPIPE; a program that inherited that would see errors where others end."""
    grep = shutil.which("grep")
    assert grep is not None
    plain = subprocess.run(
        [grep, "-E", "^Sig(Ign|Blk)", "/proc/self/status"], capture_output=True, text=True, check=True
    )
    ran = run("--", grep, "-E", "^Sig(Ign|Blk)", "/proc/self/status")
    # The whole path: Python 3.13 then starts both by posix_spawn, which leaves two signals of glibc ignored.
    assert ran.stdout == plain.stdout


def test_the_environment_is_what_was_given_and_what_was_asked_for(tmp_path: Path) -> None:
    program = tmp_path / "environment"
    program.write_text("#!/bin/sh\nexec env -0\n")
    program.chmod(0o755)
    given = {"PATH": os.environ["PATH"], "HOME": "/", "LC_ALL": "", "LD_PRELOAD": "", "A": "b=c"}
    options = ("--large-cache", "1.5GiB", "--decay", "2.50", "--report", "r.json", "--arena-stats")
    done = subprocess.run(
        command(*options, "--", str(program)), capture_output=True, text=True, env=given, cwd=tmp_path, check=True
    )
    seen = dict(line.split("=", 1) for line in done.stdout.split("\0") if line)
    for shell in ("PWD", "OLDPWD", "_", "SHLVL"):
        seen.pop(shell, None)
    assert seen == given | {
        "LD_PRELOAD": LIBRARY,
        "FASTALLOC_LARGE_CACHE": str(3 << 29),
        "FASTALLOC_DECAY": "2.5",
        "FASTALLOC_REPORT": str(tmp_path / "r.json"),
        "FASTALLOC_STATS": "1",
    }


def test_what_is_preloaded_already_stays_behind_the_library() -> None:
    other = ctypes_free_library()
    ran = run("--", "printenv", "LD_PRELOAD", LD_PRELOAD=f"{other} {LIBRARY}")
    assert (ran.returncode, ran.stdout) == (0, f"{LIBRARY}:{other}\n")


def ctypes_free_library() -> str:
    """Any library that does nothing when it is preloaded."""
    elf = read_elf(sys.executable)
    assert elf is not None
    assert elf.interpreter is not None
    ran = subprocess.run([elf.interpreter, "--list", sys.executable], capture_output=True, text=True, check=True)
    return next(path for path in re.findall(r"=> (/\S+)", ran.stdout) if "/libm.so" in path)


def test_options_given_twice_and_variables_that_are_there() -> None:
    options = ("--large-size", "64KiB", "--large-size", "128KiB")
    program = ("printenv", "FASTALLOC_LARGE_SIZE", "FASTALLOC_DECAY")
    ran = run(*options, "--", *program, FASTALLOC_LARGE_SIZE="7", FASTALLOC_DECAY="3")
    assert ran.stdout.split() == [str(128 << 10), "3"]


# ---- what is said when it cannot be ----------------------------------------------------------------------------------


Refuse = Callable[..., None]


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refuse:
    """The command refuses the program with a code and a message; in this process, which must not become the program."""

    def execve(*arguments: object) -> None:
        raise AssertionError(f"would run {arguments[:2]}")

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.delenv("LD_PRELOAD", raising=False)

    def check(program: str, code: int, message: str) -> None:
        assert main(["run", "--", program]) == code
        seen = capsys.readouterr()
        assert seen.out == ""
        assert re.fullmatch(rf"fastalloc run: {message}\n", seen.err), seen.err

    return check


@pytest.fixture
def true(tmp_path: Path) -> Path:
    """A program of our own, to be changed."""
    copy = tmp_path / "copy-of-true"
    shutil.copy(os.path.realpath(shutil.which("true") or "/bin/true"), copy)
    return copy


def test_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuse: Refuse) -> None:
    monkeypatch.chdir(tmp_path)
    refuse("no-such-command", 127, "no-such-command: command not found in PATH")
    refuse("/no/such/file", 127, "/no/such/file: no such file")
    refuse("", 127, "the command is empty")
    (tmp_path / "here").touch(0o755)
    refuse("here", 127, r"here: command not found in PATH; did you mean \./here\?")


def test_not_executable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuse: Refuse) -> None:
    script = tmp_path / "prove.py"
    script.write_text("print(1)\n")
    refuse(str(script), 126, r"\S+/prove.py: not executable \(no x permission\); .* run -- python \S+/prove.py")
    refuse(str(tmp_path), 126, r"\S+: is a directory")
    monkeypatch.setenv("PATH", str(tmp_path))
    refuse("prove.py", 126, r"\S+/prove.py: not executable \(no x permission\)")


def test_neither_program_nor_script(tmp_path: Path, refuse: Refuse) -> None:
    for name, content in (("text", b"echo hello\n"), ("nothing", b""), ("damaged", b"\x7fELF\x02\x01")):
        path = tmp_path / name
        path.write_bytes(content)
        path.chmod(0o755)
        refuse(str(path), 126, rf"\S+/{name}: is neither an ELF program nor a script with a #! line")


def test_scripts_are_followed_to_their_interpreters(tmp_path: Path, refuse: Refuse) -> None:
    def script(name: str, first: str) -> str:
        path = tmp_path / name
        path.write_text(f"{first}\necho ran\n")
        path.chmod(0o755)
        return str(path)

    assert run("--", script("good", "#!/bin/sh")).stdout == "ran\n"
    assert run("--", script("by-env", "#!/usr/bin/env sh")).stdout == "ran\n"
    assert run("--", script("by-env-S", "#!/usr/bin/env -S A=b sh -e")).stdout == "ran\n"
    refuse(script("gone", "#!/no/such/sh -e"), 127, r"\S+/gone: its #! line wants /no/such/sh: \S+ no such file")
    refuse(script("env", "#!/usr/bin/env no-such"), 127, r"\S+/env: its #! line wants no-such: .*not found.*")
    refuse(script("empty", "#!"), 126, r"\S+/empty: its #! line names no interpreter")
    refuse(script("itself", f"#!{tmp_path}/itself"), 126, r".*itself: interpreters that are scripts .* 5 deep")
    static = compiled(tmp_path / "static", "int main(void) { return 0; }", "-static")
    refuse(
        script("to-static", f"#!{static}"),
        126,
        r"\S+ \(the interpreter of \S+/to-static\): is statically .*",
    )


def test_static_programs(tmp_path: Path, refuse: Refuse) -> None:
    for flag in ("-static", "-static-pie"):
        program = compiled(tmp_path / "static", "int main(void) { return 0; }", flag)
        refuse(program, 126, r"\S+/static: is statically linked: there is no loader .*")


@pytest.mark.parametrize(("flag", "title"), [("address", "Address"), ("thread", "Thread")])
def test_sanitized_programs(tmp_path: Path, flag: str, title: str, refuse: Refuse) -> None:
    program = compiled(tmp_path / "sanitized", "int main(void) { return 0; }", f"-fsanitize={flag}")
    refuse(program, 126, rf"\S+: is built with {title}Sanitizer, .*")


def test_a_sanitizer_that_is_preloaded() -> None:
    # libasan itself would stop the command before it could speak; the name is what is looked at.
    with pytest.raises(NotRunnableError, match=r"holds /usr/lib/libasan\.so\.8: a sanitizer"):
        _check_preloaded("/lib/libm.so.6 /usr/lib/libasan.so.8")
    _check_preloaded("/lib/libm.so.6:/lib/x.so")


def test_programs_with_their_own_malloc(tmp_path: Path, refuse: Refuse) -> None:
    source = "#include <stddef.h>\nvoid *malloc(size_t n) { (void)n; return NULL; }\nint main(void) { return 0; }"
    program = compiled(tmp_path / "own", source, "-rdynamic", "-fno-builtin")
    refuse(program, 126, r"\S+/own: brings its own malloc, which comes before any that is preloaded")


def patched(path: Path, at: int, value: bytes) -> str:
    data = bytearray(path.read_bytes())
    data[at : at + len(value)] = value
    path.write_bytes(data)
    return str(path)


def test_programs_for_other_processors(true: Path, refuse: Refuse) -> None:
    here = read_elf(true)
    assert here is not None
    assert here.processor.endswith("64 bits"), "the patches below are for 64 bits"
    refuse(patched(true, 18, b"\x16\x00"), 126, rf"\S+: is for s390x, 64 bits; .* is for {here.processor}")


def test_programs_with_tables_beyond_all_addresses(true: Path, refuse: Refuse) -> None:
    for at in (32, 40):  # where program headers and sections are
        program = patched(true, at, b"\xff" * 8)
        assert read_elf(program) is None
    refuse(program, 126, r"\S+: is neither an ELF program nor a script with a #! line")


def test_programs_of_32_bits(tmp_path: Path, refuse: Refuse) -> None:
    header = b"\x7fELF\x01\x01\x01" + bytes(9) + b"\x02\x00\x03\x00\x01\x00\x00\x00" + bytes(28)
    program = tmp_path / "small"
    program.write_bytes(header)
    program.chmod(0o755)
    refuse(str(program), 126, r"\S+: is for x86, 32 bits; the library is for .*, 64 bits")


def test_programs_without_their_loader(true: Path, refuse: Refuse) -> None:
    elf = read_elf(true)
    assert elf is not None
    assert elf.interpreter is not None
    at = true.read_bytes().index(elf.interpreter.encode())
    refuse(patched(true, at, b"/gone"), 126, r"\S+: its loader /gone\S* is not installed")
    refuse(patched(true, at, b"/l/musl\0"), 126, r"\S+: is for the C library musl; the library is for glibc")


def test_the_loader_itself_may_run() -> None:
    elf = read_elf(sys.executable)
    assert elf is not None
    assert elf.interpreter is not None
    maps = run("--", elf.interpreter, shutil.which("cat") or "cat", "/proc/self/maps")
    assert os.path.realpath(LIBRARY) in maps.stdout or LIBRARY in maps.stdout


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to somebody else")
def test_setuid_programs(true: Path, refuse: Refuse) -> None:
    os.chown(true, 65534, 65534)
    true.chmod(0o755 | stat.S_ISUID)
    refuse(str(true), 126, r"\S+: is setuid: the loader ignores LD_PRELOAD for such programs; .*")
    true.chmod(0o755 | stat.S_ISGID)
    refuse(str(true), 126, r"\S+: is setgid: .*")
    os.chown(true, os.getuid(), os.getgid())
    true.chmod(0o755 | stat.S_ISUID)
    assert run("--", str(true)).returncode == 0  # its owner runs it: nothing is gained, and nothing ignored


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--"], "fastalloc run: no program after `--`"),
        (["--large-cache", "4 pounds", "--", "true"], "--large-cache: '4 pounds' is not a size"),
        (["--large-cache", "-1", "--", "true"], "--large-cache: '-1' is not a size"),
        (["--large-size", "2GiB", "--", "true"], "--large-size: '2GiB' is too large: at most 1073741824"),
        (["--large-size", "32KiB", "--", "true"], "--large-size: '32KiB' is too small: at least 32769"),
        (["--decay", "2e6", "--", "true"], "--decay: 2e6 is more than 1000000 seconds"),
        (["--decay", "soon", "--", "true"], "--decay: 'soon' is not a number of seconds"),
        (["--decay", "-1", "--", "true"], "--decay: -1.0 is not between"),
        (["--decay", "nan", "--", "true"], "--decay: nan is not between"),
        (["--huge-pages", "vast", "--", "true"], "invalid choice: 'vast'"),
        (["--report", "/no/such/place/r.json", "--", "true"], "--report: /no/such/place: no such directory"),
        (["--numpy", "--", "true"], "--numpy goes with a script"),
        (["--hardened", "prove.py"], "--hardened goes with a program: after `--`"),
        (["--report", "r.json", "-m", "this"], "--report goes with a program: after `--`"),
        (["cat"], "cat: no such file; for a program: fastalloc run -- cat"),
        (["/"], "fastalloc run: /: is not a file"),
        (["-m", "no_such_module"], "fastalloc run: -m no_such_module: no such module"),
        (["--large-cache", "1GiB", "prove.py"], "--large-cache goes with --numpy, or with a program: after `--`"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["run", *arguments])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


# ---- one table -------------------------------------------------------------------------------------------------------


def test_the_documented_table_is_the_commands() -> None:
    rows = re.findall(
        r"^\| `(--[\w-]+)(?: ([^`]+))?` \| `(FASTALLOC_\w+)(?:=([^`]+))?` \|",
        (ROOT / "docs" / "malloc.md").read_text(), re.MULTILINE,
    )  # fmt: skip
    assert [(name, variable) for name, _, variable, _ in rows] == [(option.name, option.variable) for option in OPTIONS]
    for (_, metavar, _, value), option in zip(rows, OPTIONS, strict=True):
        assert metavar == ("\\|".join(option.choices) if option.choices else option.metavar or "")
        assert value == ("" if option.metavar else "1")


def test_the_library_reads_nothing_that_the_table_does_not_have() -> None:
    source = (ROOT / "native" / "src" / "adapters" / "malloc.c").read_text()
    read = set(re.findall(r'"(FASTALLOC_[A-Z_]+)"', source))
    assert (
        {"FASTALLOC_REPORT", "FASTALLOC_DECAY", "FASTALLOC_LARGE_CACHE"} <= read <= {each.variable for each in OPTIONS}
    )


def test_an_option_that_the_library_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "libfastalloc-malloc.so"
    other.write_bytes(Path(LIBRARY).read_bytes().replace(b"FASTALLOC_ZERO_ON_FREE", b"FASTALLOC_SOMETHINGOLD"))
    monkeypatch.setattr(fa, "get_malloc_library", lambda: str(other))
    with pytest.raises(SystemExit) as exit_:
        main(["run", "--zero-on-free", "--", "true"])
    assert exit_.value.code == 2
    assert f"--zero-on-free: {other} does not know FASTALLOC_ZERO_ON_FREE" in capsys.readouterr().err


def test_the_library_understands_what_the_command_tells_it(tmp_path: Path) -> None:
    """Options at their limits: the library has nothing to complain of."""
    most = str(sys.maxsize)
    for cache, large, decay, pages in (("0", "32769", "0", "off"), (most, "1GiB", "1e6", "transparent")):
        options = ["--large-cache", cache, "--large-size", large, "--decay", decay, "--huge-pages", pages]
        ran = run(*options, "--report", str(tmp_path / "%p.json"), "--zero-on-free", "--", "true")
        assert (ran.returncode, ran.stderr) == (0, "")
    assert len(list(tmp_path.iterdir())) == 2
