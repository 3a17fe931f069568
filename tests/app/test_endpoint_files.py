"""The agent keeps a file of each pool's endpoints for Envoy, and picks no endpoint that Envoy does not have yet."""

from __future__ import annotations

import asyncio
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest

from agent.app import endpoint_files
from agent.app.endpoint_files import EndpointFiles
from agent.config import from_flags
from agent.envoy.endpoints import addresses_of
from agent.envoy.endpoints import document as eds_document
from agent.events import ignore
from agent.events.process import Reloaded, TaskFailed
from tests.app.live import Live, document, running, servers
from tests.fakes.clock import ManualClock
from tests.fakes.ext_proc import finish
from tests.processes import Processes
from tests.waiting import eventually


def with_files(endpoints: list[str], directory: Path, more: str = "") -> str:
    return document(endpoints, f"envoy: {{edsDirectory: '{directory}'}}\n{more}")


def in_file(directory: Path, pool: str = "default") -> frozenset[str]:
    return addresses_of((directory / f"{pool}.eds.json").read_text(encoding="utf-8", errors="replace"))


def of_task(live: Live, pool: str = "default") -> list[TaskFailed]:
    return [event for event in live.recorder.of(TaskFailed) if event.task == f"endpoint-files/{pool}"]


def a_file(path: Path) -> Path:
    path.write_text("")
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [("missing", "does not exist; create it"), ("file", "is not a directory"), ("/proc", "cannot be written to")],
)
def test_a_directory_that_cannot_be_used_stops_the_start_with_what_to_change(
    tmp_path: Path, processes: Processes, name: str, message: str
) -> None:
    a_file(tmp_path / "file")
    directory = Path(name) if name.startswith("/") else tmp_path / name
    process = processes.start(
        [sys.executable, "-m", "agent", "run", "--endpoints", "127.0.0.1:1", "--eds-directory", directory]
    )
    assert process.wait() == 1
    assert process.output().startswith(f"igw: envoy.edsDirectory {directory} {message}")


def test_a_directory_that_can_be_used_is_left_as_it_is(tmp_path: Path) -> None:
    config = from_flags(["127.0.0.1:1"], eds_directory=str(tmp_path))
    asyncio.run(EndpointFiles(config, ManualClock(), ignore).start())
    assert list(tmp_path.iterdir()) == []


async def test_endpoints_of_a_reload_are_written_before_they_are_picked_and_removed_ones_leave_later(
    tmp_path: Path,
) -> None:
    path, directory = tmp_path / "igw.yaml", tmp_path / "eds"
    directory.mkdir()
    async with servers(3) as (one, two, three):
        path.write_text(with_files([one.address, two.address], directory))
        async with running(path, healthy=2) as live:
            assert in_file(directory) == {one.address, two.address}
            path.write_text(with_files([two.address, three.address], directory))
            await eventually(lambda: in_file(directory) == {one.address, two.address, three.address})
            assert three.requests == []  # not even scraped
            assert set(live.healthy()) == {two.address}  # a removed endpoint is not picked from now on
            await eventually(lambda: set(live.healthy()) == {two.address, three.address})
            assert in_file(directory) == {one.address, two.address, three.address}
            await eventually(lambda: in_file(directory) == {two.address, three.address})
            assert sorted(file.name for file in directory.iterdir()) == ["default.eds.json"]


async def test_a_file_is_replaced_only_where_its_text_changes(tmp_path: Path) -> None:
    path, directory = tmp_path / "igw.yaml", tmp_path / "eds"
    directory.mkdir()
    async with servers(1) as (one,):
        path.write_text(with_files([one.address], directory))
        async with running(path, healthy=1) as live:
            before = (directory / "default.eds.json").stat()
            path.write_text(with_files([one.address], directory, "scrape: {interval: 200ms}\n"))
            await eventually(lambda: live.recorder.of(Reloaded))
        async with running(path, healthy=1):
            after = (directory / "default.eds.json").stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


async def test_names_are_written_as_their_addresses_and_follow_dns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, directory = tmp_path / "igw.yaml", tmp_path / "eds"
    directory.mkdir()
    answers = ["127.0.0.1"]

    async def look_up(self: Any, host: str, port: int, **_: Any) -> list[Any]:
        if not answers:
            raise OSError("no such name")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in answers]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", look_up)
    async with servers(1) as (one,):
        path.write_text(with_files([f"vllm.example:{one.port}"], directory))
        async with running(path, healthy=1) as live:
            assert in_file(directory) == {one.address}
            answers.append("127.0.0.2")
            await eventually(lambda: in_file(directory) == {one.address, f"127.0.0.2:{one.port}"})
            answers.clear()  # a look-up that fails keeps the last addresses
            path.write_text(with_files([f"vllm.example:{one.port}", "nowhere.example:1"], directory))
            await eventually(lambda: live.recorder.of(Reloaded))
            assert in_file(directory) == {one.address, f"127.0.0.2:{one.port}"}


async def test_the_file_of_a_removed_pool_is_emptied_when_its_requests_are_decided(tmp_path: Path) -> None:
    path, directory = tmp_path / "igw.yaml", tmp_path / "eds"
    directory.mkdir()
    async with servers(2) as (one, two):
        fields = yaml.safe_load(with_files([one.address], directory))
        fields["pools"].append({"name": "code", "extProcAddress": "127.0.0.1:0", "endpoints": [two.address]})
        path.write_text(yaml.safe_dump(fields))
        async with running(path, healthy=1):
            assert in_file(directory, "code") == {two.address}
            path.write_text(with_files([one.address], directory))
            await eventually(lambda: in_file(directory, "code") == frozenset())
            assert (directory / "code.eds.json").read_text() == eds_document("code", ())
            assert in_file(directory) == {one.address}
        assert in_file(directory) == {one.address}  # an Envoy may start before the agent does


async def test_a_file_that_another_program_changes_or_deletes_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_files, "CHECK_SECONDS", 0.05)
    path, directory = tmp_path / "igw.yaml", tmp_path / "eds"
    directory.mkdir()
    file = directory / "default.eds.json"
    async with servers(1) as (one,):
        path.write_text(with_files([one.address], directory))
        async with running(path, healthy=1):
            for harm in (file.unlink, lambda: file.write_text("{"), lambda: file.write_bytes(b"\xff\xfe")):
                harm()
                await eventually(lambda: file.exists() and in_file(directory) == {one.address})
                assert file.read_text() == eds_document("default", [one.address])


async def test_while_a_file_cannot_be_written_known_endpoints_are_served_and_new_ones_wait(tmp_path: Path) -> None:
    path, directory = tmp_path / "igw.yaml", tmp_path / "eds"
    directory.mkdir()
    async with servers(3) as (one, two, three):
        path.write_text(with_files([one.address, two.address], directory))
        async with running(path, healthy=2) as live:
            directory.rename(tmp_path / "away")
            path.write_text(with_files([two.address, three.address], directory))
            await eventually(lambda: set(live.healthy()) == {two.address})
            assert three.requests == []
            assert "default.eds.json cannot be written: No such file or directory" in of_task(live)[0].detail
            page = generate_latest(live.recorder.registry).decode()
            assert 'igw_task_failures_total{task="endpoint-files/default"}' in page
            assert live.agent.readiness() == []
            conversation, picked = await live.send_request()
            assert picked == two.address
            await finish(conversation)
            (tmp_path / "away").rename(directory)
            await eventually(lambda: set(live.healthy()) == {two.address, three.address})
            await eventually(lambda: in_file(directory) == {two.address, three.address})


async def test_an_agent_that_starts_again_keeps_what_envoy_has_until_it_has_its_own(tmp_path: Path) -> None:
    path, directory = tmp_path / "igw.yaml", tmp_path / "eds"
    directory.mkdir()
    async with servers(2) as (one, two):
        (directory / "default.eds.json").write_text(eds_document("default", [one.address]))
        path.write_text(with_files([two.address], directory))
        async with running(path, healthy=1) as live:
            assert set(live.healthy()) == {two.address}
            assert in_file(directory) == {one.address, two.address}
            await eventually(lambda: in_file(directory) == {two.address})
