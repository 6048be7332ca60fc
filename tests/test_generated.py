"""Files that build_ffi.py makes of the C headers, and that are kept in the repository, are fresh."""

import importlib.util
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C preprocessor")
@pytest.mark.parametrize("name", ["_fields.py", "_native.pyi"])
def test_generated_files_are_fresh(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_PRELOAD", raising=False)  # a sanitizer of ours has no business in the compiler
    spec = importlib.util.spec_from_file_location("build_ffi", ROOT / "build_ffi.py")
    assert spec is not None
    assert spec.loader is not None
    build_ffi = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build_ffi)
    written = (ROOT / "fastalloc" / name).read_text()
    assert written == build_ffi.GENERATED[name](), "run: python build_ffi.py --stubs"
