"""The CPU cost of receiving a page plain or compressed, and of detecting that it equals the previous one.

    .venv/bin/python -m tests.bench.bench_pages [--rounds 7] [--times 300] [--json]

The first table: CPU microseconds of the client to receive a page from a loopback socket, plain and with gzip as in
prometheus_client, and of the server to compress it. The second: to read a page with the layout of the previous one, to
learn a new layout, and to detect a page equal to the previous one by comparison and by checksum. Below it is the number
of recorded scrapes that equal the previous one. Pages and loads are those of tests/recordings.

Protobuf is not measured: no recorded server offers it, whatever the Accept header (vLLM 0.32.0 and llama.cpp).
"""

from __future__ import annotations

import argparse
import gzip
import json
import socket
import sys
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

from agent.engines import engine
from agent.engines.mapping import Extractor
from tests.bench.table import Column, Table

RECORDINGS = Path(__file__).resolve().parents[1] / "recordings"
PAGES = RECORDINGS / "pages"
RECORDED = (
    ("vllm", "load_base_seqs4_blocks100"),
    ("sglang", "written_0_5_23_two_ranks"),
    ("tgi", "written_reference"),
    ("llamacpp", "idle"),
)
_BUFFER_BYTES = 128 << 10
_GZIP = 16 + zlib.MAX_WBITS


class LoopbackSender:
    """A loopback connection over which a thread sends a body repeatedly."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._ours = socket.create_connection(listener.getsockname())
            self._theirs, _ = listener.accept()
        self._buffer = bytearray(_BUFFER_BYTES)

    def receive_us(self, body: bytes, times: int, then: Callable[[memoryview], object]) -> float:
        """CPU microseconds of this thread to receive the body once and process it with `then`."""
        sender = threading.Thread(target=self._send, args=(body, times))
        sender.start()
        view = memoryview(self._buffer)
        spent = 0.0
        for _ in range(times):
            # The page is complete before it is read, as with many endpoints: one wake-up per page.
            self._ours.recv(len(body), socket.MSG_PEEK | socket.MSG_WAITALL)
            start = time.thread_time()
            got = 0
            while got < len(body):
                got += self._ours.recv_into(view[got:])
            then(view[:got])
            spent += time.thread_time() - start
            self._ours.send(b".")
        sender.join()
        return spent / times * 1e6

    def close(self) -> None:
        """Close both ends."""
        self._ours.close()
        self._theirs.close()

    def _send(self, body: bytes, times: int) -> None:
        for _ in range(times):
            self._theirs.sendall(body)
            self._theirs.recv(1)


class EncodingCost(NamedTuple):
    """A page plain and compressed: bytes, CPU microseconds to receive it, and those of the server to compress it."""

    page: str
    identity_bytes: int
    identity_us: float
    gzip_bytes: int
    gzip_us: float
    server_us: float


class ComparisonCost(NamedTuple):
    """CPU microseconds for a page of `size` bytes: `compare` and `checksum` of an equal page, `differs` of another."""

    page: str
    size: int
    read: float
    learn: float
    compare: float
    differs: float
    checksum: float


def encoding(name: str, page: bytes, rounds: int, times: int) -> EncodingCost:
    """A row of the first table; plain and compressed alternate."""
    packed = gzip.compress(page)
    sender = LoopbackSender()
    plain, unpacked = [], []
    try:
        for _ in range(rounds):
            plain.append(sender.receive_us(page, times, bytes))
            unpacked.append(sender.receive_us(packed, times, lambda body: zlib.decompress(body, _GZIP)))
    finally:
        sender.close()
    server = _us(lambda: gzip.compress(page), rounds, max(1, times // 30))
    return EncodingCost(name, len(page), median(plain), len(packed), median(unpacked), server)


def unchanged(name: str, page: bytes, rounds: int, times: int) -> ComparisonCost:
    """A row of the second table."""
    table = engine(name.partition(" ")[0])
    extractor, again = Extractor(table), bytes(bytearray(page))
    # In `other` the first number differs, as the garbage collector counts at the head of a Python server's page do.
    at = page.index(b"\n", page.index(b"\n# TYPE") + 1 if b"\n# TYPE" in page else 0) + 1
    end = page.index(b"\n", at)
    other = page[: end - 1] + b"8" + page[end:]
    return ComparisonCost(
        name,
        len(page),
        _us(lambda: extractor.extract(page, whole=True), rounds, times),
        _us(lambda: Extractor(table).extract(page, whole=True), rounds, max(1, times // 30)),
        _us(lambda: page == again, rounds, times),
        _us(lambda: page == other, rounds, times),
        _us(lambda: zlib.crc32(page), rounds, times),
    )


def repeated() -> tuple[int, int]:
    """(recorded scrapes whose summary equals that of the previous scrape, scrapes with a previous one).

    Pages with different summaries differ.
    """
    equal = total = 0
    for path in sorted((RECORDINGS / "vllm_loads").glob("*.scrapes.jsonl")):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        summaries = [{key: value for key, value in line.items() if key not in {"t", "scrape_s"}} for line in lines]
        equal += sum(previous == current for previous, current in pairwise(summaries))
        total += len(summaries) - 1
    return equal, total


def _us(call: Callable[[], object], rounds: int, times: int) -> float:
    """CPU microseconds of one call: the median of several rounds."""
    found = []
    for _ in range(rounds):
        start = time.process_time()
        for _ in range(times):
            call()
        found.append((time.process_time() - start) / times * 1e6)
    return median(found)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the tables; always 0."""
    parser = argparse.ArgumentParser(prog="bench_pages", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--rounds", type=int, default=7, help="number of rounds; each figure is their median (default 7)"
    )
    parser.add_argument("--times", type=int, default=300, help="calls per round (default 300)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead of tables")
    args = parser.parse_args(argv)
    pages = [(f"{name} {page}", (PAGES / name / f"{page}.prom").read_bytes()) for name, page in RECORDED]
    encodings, found = [], []
    if not args.json:
        print("Plain or compressed: CPU us of the client, and of the server that compresses\n")
        head = [Column("page", 34), *(Column(title, 10, ".0f") for title in ("bytes", "gzip bytes"))]
        table = Table([*head, *(Column(title, 8, ".1f") for title in ("plain us", "gzip us", "server"))])
    for name, page in pages:
        row = encoding(name, page, args.rounds, args.times)
        encodings.append(row)
        if not args.json:
            table.row(row.page, row.identity_bytes, row.gzip_bytes, row.identity_us, row.gzip_us, row.server_us)
    if not args.json:
        print("\nEqual to the previous page: CPU us\n")
        titles = ("read", "learn", "compare", "differs", "checksum")
        table = Table([Column("page", 34), Column("bytes", 10, ".0f"), *(Column(title, 8, ".2f") for title in titles)])
    for name, page in pages:
        figures = unchanged(name, page, args.rounds, args.times)
        found.append(figures)
        if not args.json:
            table.row(*figures)
    equal, total = repeated()
    if args.json:
        tables = {"encoding": [row._asdict() for row in encodings], "unchanged": [row._asdict() for row in found]}
        print(json.dumps({**tables, "repeated": {"alike": equal, "of": total}}))
    else:
        print(f"\n{equal} of {total} scrapes of the recorded loads equal the previous one")
    return 0


if __name__ == "__main__":
    sys.exit(main())
