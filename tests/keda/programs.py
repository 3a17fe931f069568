"""Finds the operator and the metrics adapter of KEDA, or builds them: `python -m tests.keda.programs`.

They are built from the Go module in this folder (go.mod names the version, go.sum the hashes) into the cache of
`tests/cluster/programs.py`, with the same Go: about 20 minutes of two cores, once, and 2 GB of memory. Prints the path
of each program, one per line. Uses the standard library only.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from tests.cluster.programs import Go, NoPrograms, cache_folder, go, only_one

HERE: Final = Path(__file__).resolve().parent
MODULE: Final = "github.com/kedacore/keda/v2"
PROGRAMS: Final = {"keda-operator": f"{MODULE}/cmd/operator", "keda-adapter": f"{MODULE}/cmd/adapter"}


def version() -> str:
    """The version of KEDA in go.mod, such as `v2.21.0`."""
    found = re.search(rf"{re.escape(MODULE)} (v\S+)", (HERE / "go.mod").read_text())
    if found is None:
        raise NoPrograms(f"go.mod does not require {MODULE}")
    return found[1]


def module_folder() -> Path:
    """The folder of the module in Go's module cache, which has the CustomResourceDefinitions and the protocol file;
    downloaded if it is not there."""
    toolchain = go(cache_folder())
    command = [toolchain.path, "mod", "download", "-json", MODULE]
    ran = subprocess.run(command, cwd=HERE, env=toolchain.environ(), capture_output=True, text=True, check=False)
    answer = json.loads(ran.stdout or "{}")
    if "Dir" not in answer:
        raise NoPrograms(f"`go mod download {MODULE}` failed: {answer.get('Error', '')} {ran.stderr}")
    return Path(answer["Dir"])


def folder(toolchain: Go) -> Path:
    """The folder in the cache that has, or will have, the programs."""
    digest = hashlib.sha256()
    for name in ("go.mod", "go.sum"):
        digest.update((HERE / name).read_bytes())
    digest.update(repr((toolchain.version, PROGRAMS)).encode())
    return cache_folder() / f"keda-{version()}-{digest.hexdigest()[:16]}"


def build() -> dict[str, Path]:
    """The path of each program; what is not there is built. Raises NoPrograms if that fails."""
    cache = cache_folder()
    toolchain = go(cache)
    into = folder(toolchain)
    with only_one(cache):
        into.mkdir(parents=True, exist_ok=True)
        for name, package in PROGRAMS.items():
            if not (into / name).exists():
                _build(toolchain, package, into / name)
    return {name: into / name for name in PROGRAMS}


def _build(toolchain: Go, package: str, path: Path) -> None:
    print(
        f"Building {path.name} {version()} into {path.parent}: about 10 minutes with two cores, once", file=sys.stderr
    )
    began = time.monotonic()
    part = path.with_suffix(".part")
    command = [toolchain.path, "build", "-ldflags=-s -w", "-o", str(part), package]
    ran = subprocess.run(command, cwd=HERE, env=toolchain.environ(), stdout=sys.stderr, check=False)
    if ran.returncode:
        raise NoPrograms(f"`go build {package}` ended with {ran.returncode}; its output is above")
    part.replace(path)
    print(f"  {path.name}: built in {time.monotonic() - began:.0f} s", file=sys.stderr)


def main() -> int:
    try:
        for path in build().values():
            print(path)
    except NoPrograms as error:
        print(f"KEDA for the tests: {error}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
