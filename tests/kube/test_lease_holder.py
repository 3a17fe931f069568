"""The holder of a Lease on simulated time, with an API server that the test lets answer or not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from agent.events import Event
from agent.events.leases import LeaseChanged, LeaseFailed
from agent.kube.errors import ApiFailed, NoCluster, NotHeld, Unreachable
from agent.kube.lease import LeaseRequest
from agent.kube.lease_holder import LeaseHolder, LeaseName
from tests.fakes.simulated import SimulatedLoop
from tests.kube.test_lease import LeaseServer, released

pytestmark = pytest.mark.simulated
LEASES = "/apis/coordination.k8s.io/v1/namespaces/ns/leases"


def passing(seconds: float) -> asyncio.Future[None]:
    """Simulated time."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimulatedLoop)
    passed: asyncio.Future[None] = loop.create_future()
    loop.call_later(seconds, passed.set_result, None)
    return passed


class LoopClock:
    """The simulated time of the event loop, plus `pause`: what passed while the process did not run."""

    def __init__(self) -> None:
        self.pause = 0.0

    def now(self) -> float:
        return asyncio.get_running_loop().time() + self.pause

    def wall(self) -> float:
        return 1_790_000_000.0 + self.now()

    def cpu(self) -> float:
        return 0.0


class SimulatedCluster:
    """Stands for `Cluster` and its client: a Lease, and other objects. `answers` is cleared to silence it."""

    def __init__(self) -> None:
        self.leases = LeaseServer()
        released(self.leases)
        self.answers = asyncio.Event()
        self.answers.set()
        self.connected = True
        self.error: Exception | None = None
        self.written: list[str] = []
        self.requests: list[tuple[str, str, float]] = []
        self.before_send: Callable[[], None] = lambda: None

    async def connect(self) -> SimulatedCluster:
        if not self.connected:
            raise NoCluster("no API server: nowhere")
        return self

    async def run(self, call: Callable[..., Any], *arguments: object) -> Any:
        """A thread begins when the server answers."""
        await passing(0.01)
        self.before_send()
        result = call(*arguments)
        await self.answers.wait()
        return result

    def send_within(self, seconds: float, method: str, path: str, body: bytes, content_type: str = "") -> bytes:
        self.requests.append((method, path, seconds))
        if self.error is not None:
            raise self.error
        if not path.startswith(LEASES):
            self.written.append(path)
            return b"{}"
        status, data = self.leases.answer(LeaseRequest(method, body))
        if status >= 400:
            raise ApiFailed(status, "no")
        return data


class Bench:
    """A holder that runs."""

    def __init__(self, cluster: SimulatedCluster, seed: int = 1) -> None:
        self.cluster = cluster
        self.clock = LoopClock()
        self.events: list[Event] = []
        name = LeaseName("ns", "agent", 15)
        found: Any = cluster
        self.holder = LeaseHolder(name, found, self.clock, self.events.append, Random(seed))
        self.task = asyncio.get_running_loop().create_task(self.holder.run())

    def changes(self) -> list[LeaseChanged]:
        return [event for event in self.events if isinstance(event, LeaseChanged)]

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})
        await self.holder.release()


async def test_it_holds_the_lease_writes_and_releases_it_to_the_next() -> None:
    cluster = SimulatedCluster()
    first = Bench(cluster)
    await passing(1.0)
    second = Bench(cluster, 2)
    await passing(60.0)
    assert first.holder.held()
    assert not second.holder.held()
    assert await first.holder.send("POST", "/events", b"{}") == b"{}"
    with pytest.raises(NotHeld, match="does not hold the Lease ns/agent"):
        await second.holder.send("POST", "/conditions", b"{}")
    assert cluster.written == ["/events"]
    await first.stop()
    assert not first.holder.held()
    await passing(3.0)
    assert second.holder.held()
    assert [(event.held, event.released) for event in first.changes()] == [(True, False), (False, True)]
    assert second.changes()[-1].held
    await second.stop()


async def test_a_candidate_that_never_held_it_reports_its_end_too() -> None:
    cluster = SimulatedCluster()
    first = Bench(cluster)
    await passing(1.0)
    second = Bench(cluster, 2)
    await passing(10.0)
    await second.stop()
    assert [(event.held, event.released) for event in second.changes()] == [(False, False), (False, True)]
    assert first.holder.held()
    await first.stop()


async def test_the_right_ends_while_the_api_server_is_silent_and_the_change_is_published_then() -> None:
    cluster = SimulatedCluster()
    bench = Bench(cluster)
    await passing(1.0)
    cluster.answers.clear()
    await passing(10.5)
    assert not bench.holder.held()
    assert bench.changes()[-1] == LeaseChanged("ns/agent", held=False, holder="", released=False)
    assert [event.reason for event in bench.events if isinstance(event, LeaseFailed)] == ["unreachable"]
    assert {seconds for _, path, seconds in cluster.requests if path.startswith(LEASES)} == {4.0}
    cluster.answers.set()
    await passing(6.0)
    assert bench.holder.held()
    await bench.stop()


async def test_a_process_that_was_paused_writes_nothing_before_it_has_renewed() -> None:
    cluster = SimulatedCluster()
    bench = Bench(cluster)
    await passing(1.0)
    bench.clock.pause = 11.0
    assert not bench.holder.held()
    with pytest.raises(NotHeld):
        await bench.holder.send("POST", "/events", b"{}")
    assert cluster.written == []
    await passing(5.0)
    assert bench.holder.held()
    await bench.stop()


async def test_the_right_is_checked_in_the_thread_that_sends() -> None:
    """The pause falls between the decision to write and the sending."""
    cluster = SimulatedCluster()
    bench = Bench(cluster)
    await passing(1.0)

    def pause() -> None:
        bench.clock.pause = 11.0

    assert bench.holder.held()
    cluster.before_send = pause
    with pytest.raises(NotHeld):
        await bench.holder.send("POST", "/events", b"{}")
    assert cluster.written == []
    cluster.before_send = lambda: None
    await bench.stop()


async def test_a_release_waits_for_the_write_under_way_even_of_a_caller_that_is_gone() -> None:
    cluster = SimulatedCluster()
    bench = Bench(cluster)
    await passing(1.0)
    cluster.answers.clear()
    write = asyncio.ensure_future(bench.holder.send("POST", "/events", b"{}"))
    await passing(0.1)
    write.cancel()
    stopping = asyncio.ensure_future(bench.stop())
    await passing(0.5)
    assert not stopping.done()
    assert not bench.holder.held()
    holder = cluster.leases.lease
    assert holder is not None
    assert holder["spec"]["holderIdentity"] == bench.holder.identity
    cluster.answers.set()
    await stopping
    assert cluster.leases.lease is not None
    assert cluster.leases.lease["spec"]["holderIdentity"] == ""


async def test_a_write_that_does_not_end_leaves_the_lease_to_lapse() -> None:
    cluster = SimulatedCluster()
    bench = Bench(cluster)
    await passing(1.0)
    cluster.answers.clear()
    write = asyncio.ensure_future(bench.holder.send("POST", "/events", b"{}"))
    await passing(0.1)
    await bench.stop()
    assert cluster.leases.lease is not None
    assert cluster.leases.lease["spec"]["holderIdentity"] == bench.holder.identity
    cluster.answers.set()
    await write


async def test_a_release_that_is_under_way_with_a_renewal_uses_its_version() -> None:
    cluster = SimulatedCluster()
    bench = Bench(cluster)
    await passing(2.0)
    cluster.answers.clear()
    await passing(0.2)  # a renewal was sent and not answered
    stopping = asyncio.ensure_future(bench.stop())
    await passing(0.1)
    cluster.answers.set()
    await stopping
    assert cluster.leases.lease is not None
    assert cluster.leases.lease["spec"]["holderIdentity"] == ""


@pytest.mark.parametrize("error", [ApiFailed(403, "forbidden"), Unreachable("refused")])
async def test_a_release_that_fails_is_reported_and_ends(error: Exception) -> None:
    cluster = SimulatedCluster()
    bench = Bench(cluster)
    await passing(1.0)
    cluster.error = error
    await bench.stop()
    assert bench.events[-1] == LeaseFailed("ns/agent", "not_released", f"it lapses by itself: {error}")


async def test_without_rights_the_remedy_is_reported_and_nothing_is_written() -> None:
    cluster = SimulatedCluster()
    cluster.error = ApiFailed(403, "leases is forbidden")
    bench = Bench(cluster)
    await passing(60.0)
    assert not bench.holder.held()
    failed = [event for event in bench.events if isinstance(event, LeaseFailed)]
    assert failed[0].reason == "forbidden"
    assert "get, create and update leases in namespace ns" in failed[0].detail
    assert len(failed) < 10
    await bench.stop()


async def test_without_a_cluster_it_waits_for_one() -> None:
    cluster = SimulatedCluster()
    cluster.connected = False
    bench = Bench(cluster)
    await passing(6.0)
    assert [event.reason for event in bench.events if isinstance(event, LeaseFailed)] == ["no_cluster"] * 2
    cluster.connected = True
    await passing(6.0)
    assert bench.holder.held()
    await bench.stop()
