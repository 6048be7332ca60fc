"""Interpreters that fastalloc is not for are told so: a free-threaded one, here a simulated one."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from conftest import run_python

ROOT = Path(__file__).resolve().parent.parent

PRETEND = """
import sys
sys.version = sys.version.replace(" (", " experimental free-threading build (", 1)
import fastalloc
"""


def test_a_free_threaded_interpreter_cannot_import_it() -> None:
    done = run_python(PRETEND)
    assert done.returncode == 1
    assert "ImportError: fastalloc needs a CPython with the GIL" in done.stderr


def test_a_free_threaded_interpreter_cannot_build_it(tmp_path: Path) -> None:
    if not (ROOT / "native").exists():
        pytest.skip("the sources are not here")
    # What sysconfig knows of an interpreter comes from a module; with another name of it, from ours.
    real = sysconfig._get_sysconfigdata_name()  # type: ignore[attr-defined]
    pretended = f"""
import importlib
build_time_vars = importlib.import_module("{real}").build_time_vars | {{"Py_GIL_DISABLED": 1}}
"""
    (tmp_path / "_pretended.py").write_text(pretended)
    environment = {name: value for name, value in os.environ.items() if name not in {"LD_PRELOAD", "PYTHONSAFEPATH"}}
    environment |= {"PYTHONPATH": str(tmp_path), "_PYTHON_SYSCONFIGDATA_NAME": "_pretended"}
    cmake = Path(sys.executable).with_name("cmake")
    options = ["-DSKBUILD=ON", f"-DPython_EXECUTABLE={sys.executable}"]
    done = subprocess.run(
        [cmake if cmake.exists() else "cmake", "-S", ROOT / "native", "-B", tmp_path / "build", *options],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"needs a CPython with the GIL, and {sys.executable} is a free-threaded build" in " ".join(
        done.stderr.split()
    )
