"""List and watch over real connections, with the faults of an API server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agent.clock import SystemClock
from agent.kube import informer as module
from agent.kube.cache import ObjectCache, decoder_of
from agent.kube.client import KubeClient
from agent.kube.errors import NoCluster
from agent.kube.informer import PAGE_SIZE, Informer
from agent.kube.objects import Pod, PodView, pod_view
from tests.fakes.api_server import PODS, FakeApiServer, WatchStream, pod
from tests.waiting import eventually

_POD = decoder_of(Pod)


class Bench:
    """An informer of pods and its server."""

    def __init__(self, server: FakeApiServer, kubeconfig: str) -> None:
        self.server = server
        self.client = KubeClient(kubeconfig)
        self.executor = ThreadPoolExecutor(2)
        self.changes = 0
        self.cache: ObjectCache[PodView] = ObjectCache(lambda raw: pod_view(_POD(raw)))
        self.informer = Informer(
            self.client,
            self.cache,
            PODS,
            {"labelSelector": "app=llama"},
            SystemClock(),
            self.executor,
            self._changed,
        )
        self.task: asyncio.Task[None] | None = None

    def _changed(self) -> None:
        self.changes += 1

    def start(self) -> None:
        self.task = asyncio.get_running_loop().create_task(self.informer.run())

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait([self.task])
        self.executor.shutdown(wait=False, cancel_futures=True)
        self.client.close()

    def names(self) -> list[str]:
        return sorted(name for _, name in self.cache.objects)

    async def watching(self, number: int = 1) -> WatchStream:
        """The latest watch, once there were so many."""
        await eventually(lambda: len(self.server.watches) >= number)
        return self.server.watches[-1]


@pytest.fixture
async def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(module, "FIRST_BACKOFF_SECONDS", 0.01)
    server = FakeApiServer(pod("a"), pod("b"))
    await server.start()
    one = Bench(server, server.kubeconfig(tmp_path))
    yield one
    await one.stop()
    await server.stop()


async def test_a_list_is_read_in_pages_and_then_watched_from_its_version(bench: Bench) -> None:
    bench.server.collections[PODS] = [pod(f"p{number}") for number in range(2 * PAGE_SIZE + 1)]
    bench.start()
    watch = await bench.watching()
    assert len(bench.cache.objects) == 2 * PAGE_SIZE + 1
    assert [query.get("continue") for query in bench.server.lists] == [None, str(PAGE_SIZE), str(2 * PAGE_SIZE)]
    assert watch.query["resourceVersion"] == "10"
    assert watch.query["allowWatchBookmarks"] == "true"
    assert watch.query["labelSelector"] == "app=llama"
    assert bench.informer.status.synced
    assert set(bench.server.authorizations) == {"Bearer a-token"}


async def test_events_arrive_one_by_one_and_together(bench: Bench) -> None:
    bench.start()
    watch = await bench.watching()
    watch.event("ADDED", pod("c", 11))
    await eventually(lambda: bench.names() == ["a", "b", "c"])
    watch.event("DELETED", pod("a", 12))
    watch.event("DELETED", pod("b", 13))
    await eventually(lambda: bench.cache.resource_version == "13")
    assert bench.names() == ["c"]


async def test_a_watch_that_ends_is_resumed_without_a_list(bench: Bench) -> None:
    bench.start()
    watch = await bench.watching()
    watch.event("BOOKMARK", {"metadata": {"resourceVersion": "42"}})
    await eventually(lambda: bench.cache.resource_version == "42")
    watch.end()
    assert (await bench.watching(2)).query["resourceVersion"] == "42"
    assert len(bench.server.lists) == 1


async def test_half_an_event_is_dropped_and_sent_again_by_the_next_watch(bench: Bench) -> None:
    bench.start()
    watch = await bench.watching()
    watch.send(b'{"type":"ADDED","object":{"metadata":{"na')
    watch.abort()
    second = await bench.watching(2)
    assert second.query["resourceVersion"] == "10"
    second.event("ADDED", pod("c", 11))
    await eventually(lambda: bench.cache.resource_version == "11")
    assert bench.names() == ["a", "b", "c"]


@pytest.mark.parametrize("where", ["event", "answer"])
async def test_an_expired_version_leads_to_a_new_list(bench: Bench, where: str) -> None:
    bench.start()
    watch = await bench.watching()
    bench.server.collections[PODS] = [pod("z", 20)]
    bench.server.version = 20
    if where == "event":
        watch.event("ERROR", {"kind": "Status", "code": 410})
        watch.end()
    else:
        bench.server.expired = True
        watch.end()
    await eventually(lambda: bench.names() == ["z"])
    assert (await bench.watching(2)).query["resourceVersion"] == "20"


async def test_an_event_that_cannot_be_read_leads_to_a_new_list(bench: Bench) -> None:
    bench.start()
    watch = await bench.watching()
    watch.send(b"<html>proxy error</html>\n")
    watch.end()
    await eventually(lambda: len(bench.server.lists) == 2)
    assert bench.names() == ["a", "b"]


@pytest.mark.parametrize("status", [401, 403, 429, 500, 503])
async def test_while_the_server_refuses_the_last_objects_stay_and_the_status_says_so(bench: Bench, status: int) -> None:
    bench.start()
    watch = await bench.watching()
    bench.server.refuse = status
    watch.end()
    await eventually(lambda: bench.informer.status.failing.startswith(f"{status}: not now"))
    assert bench.names() == ["a", "b"]
    assert bench.informer.status.synced
    bench.server.refuse = None
    watch = await bench.watching(2)
    watch.event("BOOKMARK", {"metadata": {"resourceVersion": "50"}})
    await eventually(lambda: not bench.informer.status.failing)


async def test_a_kind_that_is_not_installed_is_missing(bench: Bench) -> None:
    bench.server.refuse = 404
    bench.start()
    await eventually(lambda: bench.informer.status.missing)
    assert not bench.informer.status.synced
    bench.server.refuse = None
    await bench.watching()
    assert not bench.informer.status.missing


async def test_a_server_that_is_gone_leaves_the_last_objects(bench: Bench) -> None:
    bench.start()
    await bench.watching()
    await bench.server.stop()
    await eventually(lambda: "refused" in bench.informer.status.failing.lower())
    assert bench.names() == ["a", "b"]


async def test_a_watch_that_goes_silent_is_ended_and_resumed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE_SECONDS", 0.1)
    bench.start()
    await bench.watching(2)
    assert bench.names() == ["a", "b"]


async def test_the_end_of_the_informer_ends_its_watch(bench: Bench) -> None:
    bench.start()
    watch = await bench.watching()
    assert bench.task is not None
    bench.task.cancel()
    await asyncio.wait([bench.task], timeout=5)
    assert bench.task.done()
    bench.executor.shutdown(wait=True)
    watch.closed.set()


async def test_without_a_cluster_the_error_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(NoCluster, match=r"kubernetes\.kubeconfig"):
        KubeClient()
    with pytest.raises(NoCluster, match="missing"):
        KubeClient(str(tmp_path / "missing"))
