"""Interpreters, a compiler, databases, a version control system, and a binary of another language."""

import hashlib
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fastalloc.cli.live import read_process

from .conftest import HERE, ROOT, Carried, clean_environment, preloaded, read_reports, tool
from .inputs import QUERIES, history, numbers

EITHER_WAY = pytest.mark.parametrize("options", [(), ("--hardened",)], ids=["", "hardened"])
"""As it is, and where misuse would end the program: it has none."""


def test_node(carry: Carried) -> None:
    carry(tool("node"), HERE / "work.js", blocks=10_000)


def test_perl(carry: Carried) -> None:
    carry(tool("perl"), HERE / "work.pl", blocks=100_000)


def test_lua(carry: Carried) -> None:
    carry(tool("lua5.4"), HERE / "work.lua", blocks=500_000)


@pytest.mark.long
def test_ruby(carry: Carried) -> None:
    program = (
        "t = {}; 200_000.times { |i| t[i % 5000] = [i.to_s * (i % 50), i] }; GC.start; puts t.to_a.join.sum, t.size"
    )
    carry(tool("ruby"), "-e", program, blocks=10_000)


@EITHER_WAY
def test_a_rust_binary_with_threads(carry: Carried, compiled: Callable[..., Path], options: tuple[str, ...]) -> None:
    program = compiled("work.rs", tool("rustc"), "-Copt-level=1", "-Cdebuginfo=0")
    ours = carry(program, blocks=100_000, options=options)
    assert ours.reports[0]["heaps"] >= 8


# ---- SQLite ----------------------------------------------------------------------------------------------------------


@EITHER_WAY
def test_sqlite(carry: Carried, options: tuple[str, ...]) -> None:
    def prepare(directory: Path) -> None:
        (directory / "numbers.csv").write_text(numbers(100_000))

    ours = carry(tool("sqlite3"), "import.db", stdin=QUERIES, prepare=prepare, blocks=100_000, options=options)
    assert ours.output.splitlines()[-1] == "ok"


# ---- git -------------------------------------------------------------------------------------------------------------


def test_git_gc(carry: Carried) -> None:
    git, stream = tool("git"), history(150)
    settings = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "HOME": os.devnull}

    def prepare(directory: Path) -> None:
        for command, given in (
            ("init -q -b main", None),
            ("fast-import --quiet", stream),
            ("reset -q --hard main", None),
        ):
            environment = clean_environment(settings)
            subprocess.run([git, *command.split()], input=given, text=True, cwd=directory, env=environment, check=True)

    steps = (
        "git gc --aggressive --quiet --prune=now && git fsck --full --strict",
        "git log --stat | sha256sum && git rev-list --objects --all",
    )
    ours = carry("sh", "-ec", " && ".join(steps), prepare=prepare, environment=settings, blocks=50_000)
    assert len(ours.output.splitlines()) > 500


# ---- gcc -------------------------------------------------------------------------------------------------------------


def objects(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.rglob("*.o"))}


def compile_project(
    carry: Carried, tmp_path: Path, sources: list[Path], blocks: int, options: tuple[str, ...] = ()
) -> None:
    flags = f"-std=c11 -O2 -fPIC -pthread -I{ROOT}/native/include -I{ROOT}/native/src"
    steps = " && ".join(f"{tool('gcc')} {flags} -c {source} -o {source.stem}.o" for source in sources)
    carry("sh", "-ec", f"{steps} && sha256sum *.o", blocks=blocks, timeout=300, options=options)
    plain, ours = (objects(tmp_path / name) for name in ("plain", "fastalloc"))
    assert len(plain) == len(sources)
    assert ours == plain


@EITHER_WAY
def test_gcc_compiles_a_file_of_this_project(carry: Carried, tmp_path: Path, options: tuple[str, ...]) -> None:
    compile_project(carry, tmp_path, [ROOT / "native/src/heap/arena.c"], blocks=20_000, options=options)


@pytest.mark.long
def test_gcc_compiles_this_project(carry: Carried, tmp_path: Path) -> None:
    sources = [path for floor in ("mem", "heap") for path in sorted((ROOT / "native/src" / floor).glob("*.c"))]
    compile_project(carry, tmp_path, sources, blocks=500_000)


# ---- redis -----------------------------------------------------------------------------------------------------------


@contextmanager
def redis(command: list[str], directory: Path, port: int) -> Iterator[Callable[..., str]]:
    """A server on the loopback interface that ends with the block; yields redis-cli."""
    client = tool("redis-cli", "redis-tools")

    def ask(*words: str, stdin: str | None = None) -> str:
        line = [client, "-h", "127.0.0.1", "-p", str(port), *words]
        return subprocess.run(line, input=stdin, capture_output=True, text=True, timeout=60, check=True).stdout

    with subprocess.Popen(command, cwd=directory, env=clean_environment(), stdout=subprocess.PIPE, text=True) as server:
        try:
            for _ in range(200):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert server.poll() is None, server.stdout.read() if server.stdout else ""
                time.sleep(0.05)
            yield ask
            server.send_signal(signal.SIGTERM)  # it saves, and leaves by exit()
            assert server.wait(60) == 0
        finally:
            server.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_redis(tmp_path: Path) -> None:
    server, benchmark = tool("redis-server", "redis-server"), tool("redis-benchmark", "redis-tools")
    lines = (
        f"SET key:{i} {'v' * (i * 7 % 900)}x\nRPUSH list:{i % 50} {'e' * (i % 90)}x\n"
        f"HSET hash:{i % 100} f{i} {i}\nZADD zset {i} m{i * 31 % 5000}\n"
        for i in range(4000)
    )
    load = "".join(lines)
    digests = []
    for name in ("plain", "fastalloc"):
        directory, reports, port = tmp_path / name, tmp_path / f"{name} reports", free_port()
        directory.mkdir()
        reports.mkdir()
        options = f"--port {port} --bind 127.0.0.1 --dir {directory} --enable-debug-command yes --io-threads 2"
        command = [server, *options.split(), "--appendonly", "yes"]
        if name == "fastalloc":
            command = preloaded(*command, reports=reports)
        with redis(command, directory, port) as ask:
            assert ask(stdin=load).count("ERR") == 0
            digests.append(ask("debug", "digest"))
            tests = "set,get,lpush,rpop,hset,spop,zadd,lrange_100,mset"
            quick = f"-h 127.0.0.1 -p {port} -q -n 1000 -c 20 -P 8 -r 20000 -d 200 -t {tests}"
            done = subprocess.run([benchmark, *quick.split()], capture_output=True, text=True, timeout=100, check=True)
            assert len(re.findall(r"requests per second", done.stdout)) >= 9, done.stdout
            if name == "fastalloc":  # it overwrites its environment: the report's name has to survive that
                stats, _ = read_process(int(re.findall(r"process_id:(\d+)", ask("info", "server"))[0]))
                assert stats.allocated > 100_000
                assert stats.live > 20_000
            ask("bgrewriteaof")  # a fork, while it works on
            for _ in range(300):
                if "aof_rewrite_in_progress:0" in ask("info", "persistence"):
                    break
                time.sleep(0.05)
            assert "aof_last_bgrewrite_status:ok" in ask("info", "persistence")
            ask("flushall")
            assert ask("dbsize").strip() == "0"
    assert digests[0] == digests[1]
    (report,) = [report for report in read_reports(reports) if report["allocated"] > stats.allocated]
    assert report["failures"] == 0
