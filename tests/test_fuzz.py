"""The fuzz targets of native/fuzz on their corpus, under ASan: as it is, and with each system call failing.

`make fuzz SECONDS=60` lets libFuzzer look for more. The corpus reaches every branch of native/src/mem and heap that
fuzzing has reached; `native/fuzz/run --minimise` makes it anew.
"""

import subprocess
from pathlib import Path

import pytest
from test_native import NATIVE, PRESETS, SANITIZER_WORDS, build, run

TARGETS = sorted(path.name.removesuffix("_fuzz.c") for path in (NATIVE / "fuzz").glob("*_fuzz.c"))
PRESET = "asan" if "asan" in PRESETS else PRESETS[0]


def replay(target: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    corpus = NATIVE / "fuzz/corpus" / target
    assert len(list(corpus.iterdir())) >= 5
    program = build(PRESET).with_name("fuzz") / f"fuzz_{target}"
    done = run([str(program), *arguments, str(corpus)], timeout=600)
    report = "\n".join((done.stdout + done.stderr).splitlines()[-40:])
    assert not any(words in done.stderr for words in SANITIZER_WORDS), report
    assert done.returncode == 0, f"exit status {done.returncode}\n{report}"
    return done


@pytest.mark.parametrize("target", TARGETS)
def test_corpus(target: str) -> None:
    replay(target)


@pytest.mark.parametrize("target", TARGETS)
def test_corpus_with_every_fault(target: str) -> None:
    done = replay(target, "--faults", "1")
    runs = int(done.stdout.split()[-2])
    assert runs > 20 * len(list((NATIVE / "fuzz/corpus" / target).iterdir()))


@pytest.mark.parametrize("target", TARGETS)
def test_random_inputs(target: str) -> None:
    program = build(PRESET).with_name("fuzz") / f"fuzz_{target}"
    done = run([str(program), "--random", "1", "200"], timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]


def test_a_finding_ends_the_program(tmp_path: Path) -> None:
    """A replay that cannot fail would prove nothing: the model is told a lie and must notice."""
    source = tmp_path / "lie_fuzz.c"
    source.write_text(
        '#include "fuzz.h"\n'
        "int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {\n"
        "    static model all;\n"
        "    static unsigned char memory[64];\n"
        "    (void)data, (void)size;\n"
        "    model_add(&all, memory, 32, 0);\n"
        "    model_add(&all, memory + 16, 32, 0);\n"
        "    return 0;\n"
        "}\n"
    )
    program = tmp_path / "lie"
    where = [f"-I{NATIVE / part}" for part in ("", "src", "include", "fuzz")]
    sources = [str(source), str(NATIVE / "fuzz/replay.c"), str(NATIVE / "src/os/linux.c")]
    done = run(["cc", "-std=gnu11", "-O1", "-w", *where, *sources, "-pthread", "-o", str(program)])
    assert done.returncode == 0, done.stderr
    done = run([str(program), "--random", "1", "1"])
    assert done.returncode != 0
    assert "address + size <= other->address" in done.stderr
