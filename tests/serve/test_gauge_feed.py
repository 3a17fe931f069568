"""One gauge set for all concurrent readers, as new as each request for it, published to every exporter."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from agent.events import Event
from agent.events.process import TaskFailed
from agent.serve.state.gauge_feed import GaugeFeed
from agent.serve.state.moment import Moment
from agent.signals import WAITING
from agent.state.snapshot import Snapshot
from exporters.catalog import pools
from exporters.gauge import GaugeSet
from tests.fakes.clock import ManualClock
from tests.fakes.views import snapshot, view
from tests.waiting import eventually


class RecordingExporter:
    """Keeps every set that was published."""

    name = "recording"

    def __init__(self) -> None:
        self.published: list[GaugeSet] = []

    def publish(self, gauges: GaugeSet) -> None:
        self.published.append(gauges)

    async def run(self) -> None:
        await asyncio.Event().wait()


class FeedRig:
    """A feed over one pool with `waiting` requests; while `open` is cleared, the making of a set does not end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = ManualClock(100.0)
        self.waiting = 1.0
        self.exporter = RecordingExporter()
        self.made = 0
        self.failing = False
        self.open = asyncio.Event()
        self.open.set()
        self.events: list[Event] = []
        self.feed = GaugeFeed(self._moment, self._snapshots, tuple, [self.exporter], self.events.append)

        async def held(call, *arguments):
            self.made += 1
            await self.open.wait()
            return call(*arguments)

        monkeypatch.setattr(asyncio, "to_thread", held)

    def _moment(self) -> Moment:
        return Moment(self.clock.now(), self.clock.wall(), self.clock.now())

    def _snapshots(self, now: float) -> Sequence[Snapshot]:
        if self.failing:
            raise ZeroDivisionError
        return [snapshot(view("a:1", {WAITING: self.waiting}, at=now))]


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> FeedRig:
    return FeedRig(monkeypatch)


def queue(gauges: GaugeSet) -> float:
    (value,) = (gauge.value for gauge in gauges.gauges if gauge.metric is pools.AVERAGE_QUEUE)
    return value


async def test_readers_that_come_together_and_the_exporters_get_the_same_object(rig: FeedRig) -> None:
    found = await asyncio.gather(*(rig.feed.latest() for _ in range(5)))
    assert rig.made == 1
    assert rig.exporter.published == [found[0].gauges]
    assert all(each.gauges is rig.exporter.published[0] for each in found)
    assert found[0].moment.now == found[0].gauges.at == 100.0


async def test_readers_that_come_while_a_set_is_made_share_the_next_one_which_is_newer_than_their_request(rig) -> None:
    rig.open.clear()
    first = asyncio.ensure_future(rig.feed.latest())
    await eventually(lambda: rig.made == 1)
    rig.waiting = 7.0
    rig.clock.advance(0.25)
    later = [asyncio.ensure_future(rig.feed.latest()) for _ in range(3)]
    rig.open.set()
    found = await asyncio.gather(*later)
    assert (queue((await first).gauges), (await first).moment.now) == (1.0, 100.0)
    assert {(queue(each.gauges), each.moment.now) for each in found} == {(7.0, 100.25)}
    assert rig.made == 2
    assert [gauges.at for gauges in rig.exporter.published] == [100.0, 100.25]


async def test_a_set_is_not_kept_for_a_later_reader_because_ages_move(rig: FeedRig) -> None:
    before = await rig.feed.latest()
    rig.clock.advance(1.0)
    after = await rig.feed.latest()
    assert after.gauges.at - before.gauges.at == 1.0


async def test_a_reader_that_leaves_does_not_stop_the_others(rig: FeedRig) -> None:
    rig.open.clear()
    leaving, staying = (asyncio.ensure_future(rig.feed.latest()) for _ in range(2))
    await eventually(lambda: rig.made == 1)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    rig.open.set()
    assert queue((await staying).gauges) == 1.0


async def test_a_failure_reaches_its_readers_and_the_next_set_is_made(rig: FeedRig) -> None:
    rig.failing = True
    with pytest.raises(ZeroDivisionError):
        await rig.feed.latest()
    assert rig.exporter.published == []
    rig.failing = False
    assert queue((await rig.feed.latest()).gauges) == 1.0


async def test_an_exporter_whose_publish_raises_is_counted_and_fails_no_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = FeedRig(monkeypatch)

    def broken(_: GaugeSet) -> None:
        raise ValueError("full")

    monkeypatch.setattr(rig.exporter, "publish", broken)
    assert (await rig.feed.latest()).gauges.gauges
    assert rig.events == [TaskFailed("exporter/recording", "publish: ValueError('full')", 0.0)]
