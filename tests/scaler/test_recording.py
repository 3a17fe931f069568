"""What a real KEDA sent, replayed into the service: `tests/recordings/keda/README.md` says how it was recorded."""

from __future__ import annotations

import base64
import json
from collections import Counter
from pathlib import Path
from typing import Any, Final

import hpack
import pytest
from hyperframe.frame import DataFrame, Frame, HeadersFrame

from agent.events import Event
from agent.events.keda import OK, ScalerCalled
from agent.scaling.served_metrics import WithheldMetric
from agent.serve.grpc.router import GrpcRouter
from agent.serve.http2.connection import Connection
from agent.serve.keda.messages import RPCS, SERVICE, parse
from agent.serve.keda.service import ExternalScalerService
from tests.fakes.clock import ManualClock
from tests.fakes.http2_client import grpc_connection
from tests.processes import ROOT
from tests.scaler.calls import ScriptedMetrics, ScriptedPools

RECORDINGS: Final = sorted((ROOT / "tests" / "recordings" / "keda").glob("*.jsonl"))
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class ReplayedCall:
    """One call of a recording: its method, the messages of the service, and its status if it has ended."""

    def __init__(self, rpc: str) -> None:
        self.rpc = rpc
        self.messages: list[Any] = []
        self.status = ""


class ReplayedConnection:
    """One connection of a recording, at a service of today."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._requests: Any = hpack.Decoder()
        self._responses: Any = hpack.Decoder()
        self._sent, self._received = b"", b""
        self.calls: dict[int, ReplayedCall] = {}

    def receive(self, data: bytes) -> None:
        """Bytes of KEDA."""
        self._sent += data
        self._sent = self._sent.removeprefix(PREFACE)
        self._sent, frames = frames_of(self._sent)
        for frame in frames:
            if isinstance(frame, HeadersFrame):
                path = dict(self._requests.decode(frame.data))[":path"]
                assert path.startswith(f"/{SERVICE}/")
                self.calls[frame.stream_id] = ReplayedCall(path.rpartition("/")[2])
        self._connection.receive(data)
        self.collect()

    def collect(self) -> None:
        """What the service has sent."""
        self._received += self._connection.outgoing()
        self._received, frames = frames_of(self._received)
        for frame in frames:
            call = self.calls.get(frame.stream_id)
            if isinstance(frame, HeadersFrame):
                fields = dict(self._responses.decode(frame.data))
                assert call is not None
                call.status = fields.get("grpc-status", call.status)
            elif isinstance(frame, DataFrame) and frame.data:
                assert call is not None
                assert len(frame.data) == 5 + int.from_bytes(frame.data[1:5], "big")  # one message in one frame
                call.messages.append(parse(RPCS[call.rpc].response, frame.data[5:]))


def frames_of(data: bytes) -> tuple[bytes, list[Frame]]:
    """The whole frames at the start, and what is left."""
    frames: list[Frame] = []
    while len(data) >= 9:
        frame, length = Frame.parse_frame_header(memoryview(data[:9]))
        if len(data) < 9 + length:
            break
        frame.parse_body(memoryview(data[9 : 9 + length]))
        frames.append(frame)
        data = data[9 + length :]
    return data, frames


class Replay:
    """A recording at a service whose pool `chat` is empty."""

    def __init__(self, path: Path) -> None:
        about, *rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        assert about["program"] == "keda-operator"
        self.reads = [(row["connection"], base64.b64decode(row["sent"])) for row in rows]
        self.pools, self.metrics = ScriptedPools("chat"), ScriptedMetrics()
        self.metrics.external["chat", "igw_flow_held_requests"] = 0.0
        self.metrics.external["chat", "igw_pool_running_requests"] = 2.5
        self.events: list[Event] = []
        self.service = ExternalScalerService(self.pools, self.metrics, 15.0, ManualClock().now, self.events.append)
        self._failures: list[str] = []
        self._router = GrpcRouter((self.service,), lambda path, error: self._failures.append(f"{path}: {error!r}"))
        self.connections: dict[int, ReplayedConnection] = {}

    def run(self) -> None:
        """Send all that KEDA sent."""
        for number, data in self.reads:
            if number not in self.connections:
                self.connections[number] = ReplayedConnection(grpc_connection(self._router))
            self.connections[number].receive(data)
        assert self._failures == []

    @property
    def calls(self) -> list[ReplayedCall]:
        return [call for connection in self.connections.values() for call in connection.calls.values()]

    def of(self, rpc: str) -> list[ReplayedCall]:
        found = [call for call in self.calls if call.rpc == rpc]
        assert found, rpc
        return found


@pytest.fixture(params=RECORDINGS, ids=lambda path: path.stem)
async def replay(request: pytest.FixtureRequest) -> Replay:
    return Replay(request.param)


def test_there_is_a_recording() -> None:
    assert RECORDINGS


async def test_each_call_of_keda_is_answered_with_its_metric_and_target(replay: Replay) -> None:
    replay.run()
    assert {call.rpc for call in replay.calls} == RPCS.keys()
    targets = {"igw_flow_held_requests": 8.0, "igw_pool_running_requests": 1.0}
    values = {"igw_flow_held_requests": 0.0, "igw_pool_running_requests": 2.5}
    for call in (*replay.of("GetMetricSpec"), *replay.of("StreamMetricSpec")):
        ((spec,),) = (message.metricSpecs for message in call.messages)
        assert spec.targetSizeFloat == targets[spec.metricName]
    for call in replay.of("GetMetrics"):
        ((value,),) = (message.metricValues for message in call.messages)
        assert value.metricValueFloat == values[value.metricName]
    for call in replay.of("IsActive"):
        assert [message.result for message in call.messages] == [False]
    for call in replay.calls:
        assert call.status == ("" if RPCS[call.rpc].streaming else "0")
    results = Counter(event.result for event in replay.events if isinstance(event, ScalerCalled))
    assert results == {OK: len(replay.calls)}


async def test_the_streams_of_keda_are_sent_that_a_request_is_held(replay: Replay) -> None:
    replay.run()
    open_streams = len(replay.service._streams)
    replay.pools.waiting["chat"] = 1
    replay.service.wake("chat")
    replay.service._woken()
    for connection in replay.connections.values():
        connection.collect()
    active = [call for call in replay.of("StreamIsActive") if [each.result for each in call.messages] == [False, True]]
    assert len(active) == open_streams


async def test_a_withheld_value_ends_the_call_of_keda_with_unavailable(replay: Replay) -> None:
    for name in ("igw_flow_held_requests", "igw_pool_running_requests"):
        replay.metrics.external["chat", name] = WithheldMetric("none_fresh")
    replay.run()
    assert {(call.status, len(call.messages)) for call in replay.of("GetMetrics")} == {("14", 0)}
