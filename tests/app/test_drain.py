"""A stop of the agent harms no request: streams in progress end with OK, and the process with status 0."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import grpc.aio

from tests.app.live import document, servers
from tests.fakes.ext_proc import send_request
from tests.processes import Processes
from tests.waiting import eventually


async def test_a_stop_ends_the_streams_in_progress_with_ok(tmp_path: Path, processes: Processes) -> None:
    path = tmp_path / "igw.yaml"
    async with servers(1) as (one,):
        path.write_text(document([one.address]))
        agent = processes.start([sys.executable, "-m", "agent", "run", "--config", path])
        await eventually(lambda: "ext_proc on" in agent.output(), within=40)
        picker = next(line for line in agent.output().splitlines() if "ext_proc on" in line)
        async with grpc.aio.insecure_channel(picker.split("ext_proc on ")[1].split(",")[0]) as channel:
            conversations = [await send_request(channel, f"r{number}") for number in range(3)]
            assert {picked for _, picked in conversations} == {one.address}
            agent.signal(signal.SIGTERM)
            for conversation, _ in conversations:
                assert await asyncio.wait_for(conversation.read(), 20) is grpc.aio.EOF
                assert await conversation.code() is grpc.StatusCode.OK
        await eventually(lambda: not agent.running(), within=40)
        assert agent.wait() == 0
        assert "3 requests in flight continue undisturbed" in agent.output()
