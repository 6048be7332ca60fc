"""A slice of NumPy's own tests with fastalloc under them; `make test-numpy` runs them all."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

CORE = "numpy._core" if hasattr(np, "_core") else "numpy.core"


@pytest.mark.parametrize(
    ("under", "modules"),
    [
        ("install", ["test_multiarray", "test_mem_policy", "test_mem_overlap"]),
        ("scope", ["test_indexing", "test_nditer"]),
    ],
)
def test_a_slice_of_numpys_tests(under: str, modules: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "numpy_installed", "-p", "no:cacheprovider"]
    command += [
        "-c",
        os.devnull,
        "-W",
        "ignore",
        "-m",
        "not slow",
        "--pyargs",
        *(f"{CORE}.tests.{name}" for name in modules),
    ]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = {
        **os.environ,
        "FASTALLOC_TEST_UNDER": under,
        "PATH": path,
        "PYTHONPATH": str(Path(__file__).parent),
        "PYTHONSAFEPATH": "1",
    }
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False, env=environment, cwd=tmp_path
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
