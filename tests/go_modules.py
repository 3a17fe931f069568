"""Programs that are built from a Go module, once, into the cache of `tests/cluster/programs.py`, with the same Go.

A folder of this repository has the module's go.mod, which names the versions, and go.sum, which has the hashes. Uses
the standard library only.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tests.cluster.programs import Go, NoPrograms, cache_folder, go, only_one


class GoModule(NamedTuple):
    """`folder` has go.mod and go.sum; `module` is the Go module of `programs`, which are packages by the name of the
    program; two cores build each from nothing in about `minutes`."""

    name: str
    folder: Path
    module: str
    programs: Mapping[str, str]
    minutes: float

    def version(self) -> str:
        """The version of the module in go.mod, such as `v2.21.0`."""
        found = re.search(rf"{re.escape(self.module)} (v\S+)", (self.folder / "go.mod").read_text())
        if found is None:
            raise NoPrograms(f"{self.folder / 'go.mod'} does not require {self.module}")
        return found[1]

    def sources(self) -> Path:
        """The folder of the module in Go's module cache; downloaded if it is not there."""
        toolchain = go(cache_folder())
        command = [toolchain.path, "mod", "download", "-json", self.module]
        ran = subprocess.run(
            command, cwd=self.folder, env=toolchain.environ(), capture_output=True, text=True, check=False
        )
        answer = json.loads(ran.stdout or "{}")
        if "Dir" not in answer:
            raise NoPrograms(f"`go mod download {self.module}` failed: {answer.get('Error', '')} {ran.stderr}")
        return Path(answer["Dir"])

    def build(self) -> dict[str, Path]:
        """The path of each program; what is not there is built. Raises NoPrograms if that fails."""
        cache = cache_folder()
        toolchain = go(cache)
        into = self._built(toolchain)
        with only_one(cache):
            into.mkdir(parents=True, exist_ok=True)
            for name, package in self.programs.items():
                if not (into / name).exists():
                    self._build(toolchain, package, into / name)
        return {name: into / name for name in self.programs}

    def _built(self, toolchain: Go) -> Path:
        """The folder in the cache that has, or will have, the programs."""
        digest = hashlib.sha256()
        for name in ("go.mod", "go.sum"):
            digest.update((self.folder / name).read_bytes())
        digest.update(repr((toolchain.version, self.programs)).encode())
        return cache_folder() / f"{self.name}-{self.version()}-{digest.hexdigest()[:16]}"

    def _build(self, toolchain: Go, package: str, path: Path) -> None:
        print(
            f"Building {path.name} {self.version()} into {path.parent}: about {self.minutes:g} minutes with two cores, "
            "once",
            file=sys.stderr,
        )
        began = time.monotonic()
        part = path.with_suffix(".part")
        command = [toolchain.path, "build", "-ldflags=-s -w", "-o", str(part), package]
        ran = subprocess.run(command, cwd=self.folder, env=toolchain.environ(), stdout=sys.stderr, check=False)
        if ran.returncode:
            raise NoPrograms(f"`go build {package}` ended with {ran.returncode}; its output is above")
        part.replace(path)
        print(f"  {path.name}: built in {time.monotonic() - began:.0f} s", file=sys.stderr)
