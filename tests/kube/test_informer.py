"""List and watch over real connections, with the faults of an API server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from threading import Event, current_thread

import pytest

from agent.clock import SystemClock
from agent.kube import informer as module
from agent.kube.cache import ObjectCache, decoder_of
from agent.kube.client import KubeClient
from agent.kube.errors import NoCluster
from agent.kube.informer import PAGE_SIZE, Informer
from agent.kube.objects import Pod, PodView, pod_view
from agent.kube.threads import DaemonThreads
from tests.fakes.api_server import PODS, FakeApiServer, WatchStream, pod
from tests.waiting import eventually

_POD = decoder_of(Pod)


class Bench:
    """An informer of pods and its server."""

    def __init__(self, server: FakeApiServer, kubeconfig: str) -> None:
        self.server = server
        self.client = KubeClient(kubeconfig)
        self.executor = DaemonThreads("test")
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
        self.executor.shutdown()
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
    monkeypatch.setattr(module, "MAX_BACKOFF_SECONDS", 0.1)
    monkeypatch.setattr(module, "SHORTEST_WATCH_SECONDS", 0.0)
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


async def test_a_server_that_says_when_to_retry_is_not_called_before(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)
        if seconds > 1:
            await asyncio.Event().wait()

    bench.server.refuse, bench.server.refuse_headers = 429, "Retry-After: 30\r\n"
    monkeypatch.setattr(asyncio, "sleep", sleep)
    bench.start()
    await eventually(lambda: bool(waits))
    assert 30 < waits[-1] < 31
    assert bench.server.requests == 1


async def test_watches_that_end_at_once_are_spaced_with_a_growing_back_off(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHORTEST_WATCH_SECONDS", 60.0)
    waits: list[float] = []
    sleep = asyncio.sleep

    async def record(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", record)
    bench.start()
    for number in range(1, 5):
        (await bench.watching(number)).end()
    await bench.watching(5)
    backoffs = [seconds for seconds in waits if seconds]
    assert [0.005 * 2**number <= wait <= 0.01 * 2**number for number, wait in enumerate(backoffs)] == [True] * 4


async def test_the_time_of_the_last_answer_is_that_before_the_failure(bench: Bench) -> None:
    bench.start()
    watch = await bench.watching()
    watch.event("BOOKMARK", {"metadata": {"resourceVersion": "42"}})
    await eventually(lambda: bench.cache.resource_version == "42")
    before = SystemClock().now()
    bench.server.refuse = 500
    watch.end()
    await eventually(lambda: bench.informer.status.failing)
    assert bench.informer.status.since <= before
    assert bench.informer.status.code == 500


def test_a_call_that_does_not_return_does_not_keep_the_process_alive() -> None:
    script = (
        "import threading; from agent.kube.threads import DaemonThreads; threads = DaemonThreads('t'); "
        "assert threads.submit(sum, [1, 2]).result() == 3; "
        "threads.submit(threading.Event().wait); threads.shutdown()"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=30, check=False).returncode == 0


async def test_there_are_as_many_threads_as_calls_at_one_time() -> None:
    threads = DaemonThreads("t")
    ends = [Event() for _ in range(3)]
    calls = [threads.submit(end.wait) for end in ends]
    for end, call in zip(ends, calls, strict=True):
        end.set()
        await asyncio.wrap_future(call)
    assert await asyncio.wrap_future(threads.submit(lambda: current_thread().name)) in {"t-1", "t-2", "t-3"}
    threads.shutdown()
    with pytest.raises(RuntimeError, match="closed"):
        threads.submit(sum, [])


async def test_the_end_of_the_informer_ends_its_watch(bench: Bench) -> None:
    bench.start()
    watch = await bench.watching()
    assert bench.task is not None
    bench.task.cancel()
    await asyncio.wait([bench.task], timeout=5)
    assert bench.task.done()
    watch.closed.set()


async def test_without_a_cluster_the_error_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(NoCluster, match=r"kubernetes\.kubeconfig"):
        KubeClient()
    with pytest.raises(NoCluster, match="missing"):
        KubeClient(str(tmp_path / "missing"))
