"""What the reports between replicas cost: CPU of the sender and of the receiver at a rate of requests.

    make bench-peers [ARGS='--requests 1000 --seconds 10 --blocks 32']

The two replicas are processes of their own with the agent's service, publisher and peers on uvloop, over loopback. The
sender makes the events of requests that end after a second, in bursts of what arrives within 5 ms; the receiver applies
them to a routing state and an index. A run without requests gives the cost of heartbeats and of the event loop, which
is subtracted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections import deque
from typing import NamedTuple

import uvloop

from agent.clock import SystemClock
from agent.events import ignore
from agent.prefix.index import PrefixIndex
from agent.replicas.client import PeerAccess
from agent.replicas.peer_part import PoolTarget
from agent.replicas.peers import Peers
from agent.replicas.service import OwnIdentity, PoolKnowledge, ReplicaService
from agent.requests.outcomes import Outcomes
from agent.requests.response import OK
from agent.serve.grpc.listener import GrpcListener
from agent.serve.grpc.router import GrpcRouter
from agent.state.store import RoutingStore

ENDPOINTS = tuple(f"10.0.0.{number}:8000" for number in range(1, 21))
BURST_SECONDS = 0.005
ANSWER_SECONDS = 1.0
LEAD_SECONDS = 1.0  # until the stream is open


class PeerCost(NamedTuple):
    """CPU in cores of both sides at `requests` per second, and what one request costs each of them."""

    requests: int
    sender_cores: float
    receiver_cores: float

    @property
    def sender_us(self) -> float:
        """CPU microseconds of the sender for each request."""
        return self.sender_cores / self.requests * 1e6

    @property
    def receiver_us(self) -> float:
        """CPU microseconds of the receiver for each request."""
        return self.receiver_cores / self.requests * 1e6


def measure(requests: int = 1_000, seconds: float = 10.0, blocks: int = 32) -> PeerCost:
    """The cost of the reports of `requests` per second whose prompts have `blocks` blocks."""
    busy, idle = _run(requests, seconds, blocks), _run(0, seconds, blocks)
    return PeerCost(requests, busy["sender"] - idle["sender"], busy["receiver"] - idle["receiver"])


def _run(requests: int, seconds: float, blocks: int) -> dict[str, float]:
    """CPU in cores of the sender and of the receiver."""
    command = [sys.executable, "-m", "tests.bench.bench_peers", "--seconds", str(seconds), "--blocks", str(blocks)]
    sender = subprocess.Popen(
        [*command, "--requests", str(requests), "--side", "sender"], stdout=subprocess.PIPE, text=True
    )
    assert sender.stdout is not None
    port = sender.stdout.readline().strip()
    receiver = subprocess.Popen([*command, "--side", "receiver", "--port", port], stdout=subprocess.PIPE, text=True)
    found = {}
    for name, process in (("sender", sender), ("receiver", receiver)):
        output, _ = process.communicate(timeout=seconds + 30)
        found[name] = float(json.loads(output.strip().splitlines()[-1])["cores"])
    return found


async def _cpu(seconds: float) -> float:
    """CPU in cores of this process over the next `seconds`."""
    at, used = time.monotonic(), time.process_time()
    await asyncio.sleep(seconds)
    return (time.process_time() - used) / (time.monotonic() - at)


async def _send(requests: int, seconds: float, blocks: int) -> None:
    clock = SystemClock()
    service = ReplicaService(OwnIdentity("sender", "sender", ""), lambda: b"", clock.now, ignore, lambda: None)
    publisher = service.publishers.add("bench", "", PoolKnowledge(dict, lambda _: {}))
    listener = GrpcListener(GrpcRouter((service,), lambda *_: None), lambda _: None)
    print(await listener.listen("127.0.0.1", 0), flush=True)
    service.start()
    while not service.listeners:  # noqa: ASYNC110  the receiver has no event here
        await asyncio.sleep(0.05)

    async def load() -> None:
        running: deque[tuple[float, int]] = deque()
        began, number = clock.now(), 0
        while True:
            await asyncio.sleep(BURST_SECONDS)
            now = clock.now()
            while number < (now - began) * requests:
                number += 1
                chain = tuple(hash((number // 4, block)) & (2**64 - 1) for block in range(blocks))
                publisher.started(number, ENDPOINTS[number % len(ENDPOINTS)], 1_000.0, 1_000.0, chain, now)
                running.append((now + ANSWER_SECONDS, number))
            while running and running[0][0] <= now:
                _, ended = running.popleft()
                publisher.ended(ended)
                publisher.outcome(ENDPOINTS[ended % len(ENDPOINTS)], OK)

    sending = asyncio.create_task(load())
    await asyncio.sleep(LEAD_SECONDS)
    print(json.dumps({"cores": await _cpu(seconds)}), flush=True)
    sending.cancel()
    await asyncio.sleep(LEAD_SECONDS)
    service.stop()
    await listener.close()


async def _receive(port: int, seconds: float) -> None:
    clock = SystemClock()
    index = PrefixIndex()
    store = RoutingStore("bench", stale_after=3.0, prefix=index)
    store.set_endpoints(dict.fromkeys(ENDPOINTS, "vllm"), clock.now())
    target = PoolTarget(store, index, Outcomes(store, index, ignore), "")
    peers = Peers(
        OwnIdentity("receiver", "receiver", ""), PeerAccess(), lambda: b"", {"bench": target}.get, 3.0, clock, ignore
    )
    peers.set_addresses([f"127.0.0.1:{port}"])
    await asyncio.sleep(LEAD_SECONDS)
    cores = await _cpu(seconds)
    assert peers.views()[0].state == "reporting", peers.views()
    print(json.dumps({"cores": cores}), flush=True)
    await peers.stop()


def main(arguments: list[str] | None = None) -> int:
    """Print the cost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--requests", type=int, default=1_000, help="requests per second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--blocks", type=int, default=32, help="blocks of 64 tokens in a prompt")
    parser.add_argument("--side", choices=("sender", "receiver"), help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.side == "sender":
        uvloop.run(_send(args.requests, args.seconds, args.blocks))
    elif args.side == "receiver":
        uvloop.run(_receive(args.port, args.seconds))
    else:
        cost = measure(args.requests, args.seconds, args.blocks)
        print(
            f"{cost.requests:,} requests/s of {args.blocks} blocks: sender {cost.sender_cores:.3f} cores "
            f"({cost.sender_us:.0f} us a request), receiver {cost.receiver_cores:.3f} cores "
            f"({cost.receiver_us:.0f} us a request)"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
