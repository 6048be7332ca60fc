"""Makes each goal, whatever became of the others, and ends with one line for each: python tests/all.py GOAL...

    test: passed in 5 min (1529 passed, 143 skipped; 1894 passed, 31 skipped)
    test-valgrind: passed in 4 s; valgrind could not be installed
    test-cross: FAILED in 31 min (1 failed, 17 passed, 2 skipped): tests/test_cross.py::test_target[s390x-linux-musl]
        s390x-linux-musl: built; 15 programs ran by qemu-s390x; 349 tests passed, FAILED: ...

What is in parentheses is pytest's; the reasons of what was skipped, and all else, stay in build/test-all/GOAL.log. The
exit status is 1 if a goal failed. MAKE in the environment is the make to use.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "build" / "test-all"

COUNTS = re.compile(r"^(?:=+ )?(\d+ (?:passed|failed|skipped|error|deselected|xfailed)\b.*) in [\d.]+s\b", re.MULTILINE)
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+\.py\b.*?)(?: - .*)?$", re.MULTILINE)
STOPPED = re.compile(r"^make.*?: \*\*\* (.*)$", re.MULTILINE)
ABSENT = re.compile(
    r"^(\S+ could not be installed): |^make \S+: (.*skipped, .*)", re.MULTILINE
)  # of tests/needs, goals
TARGET = re.compile(r"^(\S+(?: \w+)?: (?:not )?built[;:].*)$|^nox > \* (.*)$", re.MULTILINE)  # of tests/cross.py, nox


def run(command: list[str], log: Path) -> int:
    """The exit status; what it prints is shown as it comes, and kept."""
    with (
        log.open("wb") as file,
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process,
    ):
        assert process.stdout is not None
        while chunk := os.read(process.stdout.fileno(), 1 << 16):
            file.write(chunk)
            sys.stdout.buffer.write(chunk)
            sys.stdout.flush()
        return process.wait()


def summary(goal: str, status: int, seconds: float, output: str) -> str:
    """The line of a goal, and below it those of its targets, if it has some."""
    took = f"{seconds / 60:.0f} min" if seconds > 100 else f"{seconds:.0f} s"
    line = f"{goal}: {'FAILED' if status else 'passed'} in {took}"
    if counts := COUNTS.findall(output):
        line += f" ({'; '.join(counts)})"
    if status:
        failed = FAILED.findall(output) or STOPPED.findall(output) or [f"exit status {status}"]
        line += f": {', '.join(dict.fromkeys(failed))}"
    line = "; ".join([line, *dict.fromkeys(map("".join, ABSENT.findall(output)))])
    return "\n    ".join([line, *map("".join, TARGET.findall(output))])


def main(goals: list[str]) -> int:
    """0 if all passed."""
    LOGS.mkdir(parents=True, exist_ok=True)
    lines, worst = [], 0
    try:
        for goal in goals:
            begun, log = time.monotonic(), LOGS / f"{goal}.log"
            print(f"==== make {goal}", flush=True)
            status = run([os.environ.get("MAKE", "make"), "--no-print-directory", goal], log)
            worst = max(worst, status)
            lines.append(summary(goal, status, time.monotonic() - begun, log.read_text(errors="replace")))
    finally:
        print("\n".join([f"\n==== {len(lines)} of {len(goals)} goals made; logs in {LOGS.relative_to(ROOT)}", *lines]))
    return int(worst != 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
