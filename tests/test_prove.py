"""`make prove`, as tests: the models with spin, the address arithmetic with angr. Skipped by name without them."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

PROVE = Path(__file__).resolve().parent.parent / "native/prove"


def run(script: str, *names: str) -> str:
    done = subprocess.run(
        [sys.executable, PROVE / script, *names], capture_output=True, text=True, timeout=3600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("spin") is None, reason="spin is not installed")
@pytest.mark.parametrize("model", ["magazine"])
def test_models(model: str) -> None:
    """A quick one; `make prove` checks all."""
    output = run("models.py", model)
    assert "all hold, and every mutation was found" in output
    assert output.count("found ") == 5


@pytest.mark.skipif(
    importlib.util.find_spec("angr") is None, reason="angr is not installed: pip install 'fastalloc[prove]'"
)
@pytest.mark.parametrize("proof", ["align_up", "slab_classes", "rooms_of_large_blocks"])
def test_arithmetic(proof: str) -> None:
    """Some; `make prove` proves all."""
    assert "all hold, and every mutation was refuted" in run("arithmetic.py", proof)


@pytest.fixture(scope="module")
def arithmetic() -> ModuleType:
    spec = importlib.util.spec_from_file_location("arithmetic", PROVE / "arithmetic.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("file", sorted(PROVE.glob("*_proofs.c")), ids=lambda file: file.stem)
def test_the_proofs_are_about_the_sources_as_they_are(arithmetic: ModuleType, file: Path, tmp_path: Path) -> None:
    arithmetic.compile_with(PROVE.parent / "src", "-c", str(file), "-o", str(tmp_path / "proofs.o"))


def test_every_proof_and_model_has_a_mutation(arithmetic: ModuleType) -> None:
    assert arithmetic.proofs().keys() == {name for name, _ in arithmetic.mutations()}
    for _, (file, old, _) in arithmetic.mutations():
        assert (PROVE.parent / "src" / file).read_text().count(old) == 1, f"{file}: {old}"
    for model in PROVE.glob("*.pml"):
        assert f'"{model.stem}"' in (PROVE / "models.py").read_text()
