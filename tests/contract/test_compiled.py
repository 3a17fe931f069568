"""The compiled package behaves like the source: the tests of the compiled folders pass on it too."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import ROOT

COMPILED = ROOT / "out" / "compiled"
FOLDERS = ("engines", "ext_proc", "flow", "grpc", "http2", "pick", "prefix", "requests", "scrape", "serve", "state")
PROGRAM = """
import sys, pytest
from agent.__main__ import compiled
status = pytest.main(sys.argv[1:])
sys.exit(status or (0 if compiled() else "the checkout was tested"))
"""


def run(*command: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a program in the checkout, without the variables of an enclosing `make`."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "PYTHON"))}
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**environment, **more},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def package() -> Path:
    made = run("make", "wheel")
    assert made.returncode == 0, made.stdout
    return COMPILED


def python(package: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run Python with the compiled package first on its path, and without the working directory."""
    return run(sys.executable, *arguments, PYTHONSAFEPATH="1", PYTHONPATH=f"{package}{os.pathsep}{ROOT}")


def test_the_package_has_the_compiled_modules_of_setup_and_all_sources(package: Path) -> None:
    named = runpy.run_path(str(ROOT / "setup.py"))["compiled"]()
    libraries = {
        f"{Path(file.relative_to(package).parent, file.name.partition('.')[0])}.py"
        for file in package.glob("*/**/*.so")
    }
    assert libraries == set(named)
    for source in (ROOT / "agent").rglob("*.py"):
        assert (package / source.relative_to(ROOT)).read_bytes() == source.read_bytes()


def test_the_version_shows_whether_the_package_is_compiled(package: Path) -> None:
    assert re.fullmatch(r"igw \S+, compiled\n", python(package, "-m", "agent", "--version").stdout)
    assert "compiled" not in run(sys.executable, "-m", "agent", "--version").stdout


@pytest.mark.parametrize("folder", FOLDERS)
def test_compiled_code_passes_the_tests_of_its_source(folder: str, package: Path) -> None:
    options = ["-q", "-p", "no:cacheprovider", "-o", f"pythonpath={COMPILED.relative_to(ROOT)} ."]
    wanted = "not source and not vllm and not llamacpp"
    tested = python(package, "-c", PROGRAM, *options, "-m", wanted, f"tests/{folder}")
    assert tested.returncode == 0, tested.stdout[-8000:]
