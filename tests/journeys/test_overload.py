"""More than two servers can do, at once, through a real Envoy, by the clients of the openai package."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import openai
import pytest

from agent.clock import SystemClock
from agent.envoy import process
from agent.envoy.render import PickMode
from agent.requests.control_headers import OBJECTIVE
from tests.journeys.bad_input.fleet import IGW, MODEL, MODES, Counts
from tests.journeys.test_rolling_restart import rendered
from tests.processes import Processes

PRIORITIES = {"batch": -1, "standard": 0, "interactive": 10}
EACH = 12  # chats of each priority, all sent at once
# A server answers four at a time, each in about a second: 36 chats take five seconds.
SERVER = ["--max-num-seqs", "4", "--prefill-tokens-per-second", "4000", "--step-seconds", "0.02"]
ANSWER_TOKENS = 40
ATTEMPTS = 3  # of openai-python by default


class Chat(NamedTuple):
    """One chat of a client: its objective, and the headers of its last response; `error` is empty for an answer."""

    objective: str
    error: str
    headers: Any


class Client:
    """Chats through Envoy by openai-python with its own retries. `first_tokens` are the objectives of the answered ones
    in the order of their first tokens; `attempts` are the requests by objective, `early` those that came back before
    the time that the response before had named. `refusals` are the headers of all refusals by objective."""

    def __init__(self, port: int) -> None:
        self._clock = SystemClock()
        self._not_before: dict[str, float] = {}
        self.first_tokens: list[str] = []
        self.attempts: dict[str, int] = dict.fromkeys(PRIORITIES, 0)
        self.early = 0
        self.refusals: dict[str, list[Any]] = {name: [] for name in PRIORITIES}
        http = openai.DefaultAsyncHttpxClient(
            timeout=60, event_hooks={"request": [self._sent], "response": [self._answered]}
        )
        self.openai = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", http_client=http)

    async def chat(self, objective: str, number: int) -> Chat:
        words = f"{objective} {number} " * 60
        messages: Any = [{"role": "user", "content": words}]
        headers = {OBJECTIVE: objective, "x-test-chat": f"{objective}-{number}"}
        try:
            stream = await self.openai.chat.completions.create(
                model=MODEL, messages=messages, max_tokens=ANSWER_TOKENS, stream=True, extra_headers=headers
            )
        except openai.APIStatusError as error:
            code = error.body.get("code") if isinstance(error.body, dict) else None
            return Chat(objective, str(code), error.response.headers)
        first = True
        async for chunk in stream:
            if first and chunk.choices:
                self.first_tokens.append(objective)
                first = False
        return Chat(objective, "", stream.response.headers)

    async def all_at_once(self) -> Sequence[Chat]:
        chats = [self.chat(objective, number) for number in range(EACH) for objective in PRIORITIES]
        return await asyncio.gather(*chats)

    async def _sent(self, request: Any) -> None:
        name = request.headers["x-test-chat"]
        self.attempts[request.headers[OBJECTIVE]] += 1
        self.early += self._clock.now() < self._not_before.get(name, 0.0)

    async def _answered(self, response: Any) -> None:
        if response.status_code != 200:
            sent = response.request.headers
            self.refusals[sent[OBJECTIVE]].append(response.headers)
            self._not_before[sent["x-test-chat"]] = self._clock.now() + float(response.headers["retry-after"])

    def last(self, objective: str) -> float:
        """Where the last first token of an objective comes in the order of all, from 0 to 1."""
        place = max(place for place, name in enumerate(self.first_tokens) if name == objective)
        return place / (len(self.first_tokens) - 1)


async def overload(
    folder: Path, processes: Processes, port: int, mode: PickMode, *, enabled: bool
) -> tuple[Client, Sequence[Chat], Counts, Any]:
    """All chats at once; the clients, their chats, and then the agent's metrics and `/v1/picks`."""
    emulator = processes.start([*IGW, "emulate", *["--listen", "127.0.0.1:0"] * 2, *SERVER])
    await asyncio.to_thread(emulator.wait_for, r"(?s)on http://.*on http://.*\n")
    document = {
        "apiVersion": "llm-d.ai/v1alpha1",
        "kind": "EndpointPickerConfig",
        "admin": {"address": "127.0.0.1:0"},
        "scrape": {"interval": "50ms"},
        "flowControl": {
            "enabled": enabled,
            "trustHeaders": "all",
            "priorityBands": [{"priority": -1, "defaultRequestTTL": "1s"}],
            "saturationDetector": {"slots": 4},
        },
        "objectives": [{"name": name, "priority": priority} for name, priority in PRIORITIES.items()],
        "pools": [
            {
                "name": "pool",
                "extProcAddress": f"127.0.0.1:{port}",
                "endpoints": re.findall(r"on http://(\S+): ", emulator.output()),
            }
        ],
    }
    file = folder / "igw.yaml"
    file.write_text(json.dumps(document))
    agent = processes.start([*IGW, "run", "--config", file])
    admin = (await asyncio.to_thread(agent.wait_for, r"admin: (http://\S+)"))[1]
    envoy = await process.start(rendered(file, mode), folder / "envoy", concurrency=1)
    try:
        (gateway,) = envoy.ports.values()
        client = Client(gateway)
        chats = await client.all_at_once()
        await client.openai.close()
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{admin}/metrics") as answer:
                counts = Counts(await answer.text())
            async with session.get(f"{admin}/v1/picks") as answer:
                return client, chats, counts, await answer.json()
    finally:
        await envoy.stop()


@pytest.mark.parametrize("mode", MODES, ids=[mode.value for mode in MODES])
async def test_the_highest_priority_is_served_first_and_only_a_negative_one_is_refused(
    tmp_path: Path, processes: Processes, free_ports: Callable[[int], list[int]], mode: PickMode
) -> None:
    (port,) = free_ports(1)
    client, chats, counts, picks = await overload(tmp_path, processes, port, mode, enabled=True)
    assert {chat.objective for chat in chats if chat.error} <= {"batch"}
    assert client.first_tokens.count("interactive") == client.first_tokens.count("standard") == EACH
    assert client.last("interactive") < client.last("standard")
    assert client.last("interactive") < 0.7

    # Each refusal has its reason under both names, and a time to come back, which openai-python keeps.
    refused = client.refusals["batch"]
    assert refused
    for headers in refused:
        assert headers["x-llm-d-request-dropped-reason"] in {"rejected-saturated", "rejected-ttl-expired"}
        assert headers["x-gateway-request-dropped-reason"] == headers["x-llm-d-request-dropped-reason"]
        assert 1 <= int(headers["retry-after"]) <= 120
    assert {chat.error for chat in chats if chat.error} <= {"overloaded", "queue_timeout"}
    assert client.early == 0
    assert client.refusals["interactive"] == client.refusals["standard"] == []
    assert client.attempts["interactive"] == client.attempts["standard"] == EACH
    assert client.attempts["batch"] <= ATTEMPTS * EACH

    # What waited says for how long, to its client, in /v1/picks and in the metrics; what was refused is counted.
    answered = [chat for chat in chats if not chat.error]
    waited = [chat for chat in answered if "x-llm-d-flow-queue-duration-ms" in chat.headers]
    assert len(waited) > EACH
    assert all(int(chat.headers["x-llm-d-flow-queue-duration-ms"]) > 0 for chat in waited)
    assert any(pick["waited_seconds"] > 0 and pick["dispatched"] for pick in picks["picks"])
    outcomes = counts.by("outcome", "igw_flow_requests_total", priority="-1")
    assert outcomes.get("shed", 0) + outcomes.get("expired", 0) == len(refused)


async def test_without_flow_control_a_priority_means_nothing(
    tmp_path: Path, processes: Processes, free_ports: Callable[[int], list[int]]
) -> None:
    (port,) = free_ports(1)
    client, chats, _, _ = await overload(tmp_path, processes, port, PickMode.BUFFERED, enabled=False)
    assert [chat.error for chat in chats if chat.error] == []
    assert client.last("interactive") > 0.8
    assert not any("x-llm-d-flow-queue-duration-ms" in chat.headers for chat in chats)
