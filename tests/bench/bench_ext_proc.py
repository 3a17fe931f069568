"""The CPU cost of a request for the agent, compared with a bare grpc.aio server that returns constants.

    .venv/bin/python -m tests.bench.bench_ext_proc [--seconds 2] [--rounds 3] [--json]

Four pairs of rows, all behind one Envoy. The first: CPU time of the picker process per 2 kB chat request with 32 in
flight, for `igw run` with its default profile and four endpoints and for the bare server, in both modes; the bar is a
ratio of 1.5. The second: CPU time of the agent per request whose response streams 500 chunks, over that with one chunk
at the same rate; the bar is 1.2. The third: the first, with Envoy reporting what became of each request, by its access
log and by response headers, over the same without reports. The fourth: the first, with Envoy connected by TLS, over the
same without. The last two have no bar.

Compared runs are interleaved, and each figure is the median of its rounds. CPU time is that of the process as the
kernel counts it, without nginx, wrk, Envoy and the streaming server. Needs nginx and wrk.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import grpc.aio
import orjson
import uvloop
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from agent.envoy import process
from agent.envoy.render import EnvoyConfig, EnvoyListener, EnvoyPool, PickerTls, PickMode, ResponseSource, bootstrap
from agent.serve.ext_proc.actions import Phase, Route
from agent.serve.ext_proc.messages import CONTINUE, RouteCache, streamed
from agent.serve.ext_proc.server import SERVICE
from tests.bench.machine_speed import MachineSpeed
from tests.bench.programs import ROOT, BenchProgram, answers, free_ports, listens, prepare_process, program

MODES = (PickMode.BUFFERED, PickMode.FULL_DUPLEX)
PICKERS = ("agent", "bare")
REPORTS = {"agent-log": ResponseSource.ACCESS_LOG, "agent-headers": ResponseSource.RESPONSE_HEADERS}
TLS = "agent-tls"
ENDPOINTS = 4
IN_FLIGHT = 32
STREAMS_PER_SECOND = 20
CHUNKS = (1, 500)
BAR_REQUEST, BAR_STREAM = 1.5, 1.2
_BUFFERED = 2  # ProcessingMode.BUFFERED


class Figure(NamedTuple):
    """Median CPU microseconds per request, and median requests per round."""

    cpu_us: float
    requests: int


# -- the bare server --------------------------------------------------------------------------------------------------


async def serve_bare(port: int, destination: str) -> None:
    """A minimal picker on grpc.aio: prebuilt responses, and messages parsed only where a body is sent back."""
    prebuilt = RouteCache()
    routes = {
        phase: prebuilt.route(Route(phase, destination, (), ()))
        for phase in (Phase.REQUEST_HEADERS, Phase.REQUEST_BODY)
    }

    async def process_stream(_: Any, context: Any) -> None:
        first = pb.ProcessingRequest.FromString(await context.read())
        if first.protocol_config.request_body_mode == _BUFFERED:
            await context.write(CONTINUE[Phase.REQUEST_HEADERS])
            await context.read()
            await context.write(routes[Phase.REQUEST_BODY])
        else:
            chunks = []
            while True:
                chunk = pb.ProcessingRequest.FromString(await context.read()).request_body
                chunks.append(chunk.body)
                if chunk.end_of_stream:
                    break
            await context.write(routes[Phase.REQUEST_HEADERS])
            await context.write(streamed(Phase.REQUEST_BODY, b"".join(chunks), end_of_stream=True))
        while await context.read() is not grpc.aio.EOF:
            pass

    server = grpc.aio.server()
    handler = grpc.stream_stream_rpc_method_handler(process_stream)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Process": handler}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


# -- the server that streams ------------------------------------------------------------------------------------------


async def serve_streams(port: int, page: bytes) -> None:
    """A model server that streams as many chunks as the request's max_tokens, each written separately."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET"):
                    body = page if b"/metrics" in head else b'{"object":"list","data":[{"id":"m"}]}'
                    writer.write(
                        b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: %d\r\n\r\n" % len(body) + body
                    )
                    continue
                if b"chunked" in head.lower():
                    body = await reader.readuntil(b"0\r\n\r\n")
                else:
                    body = await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
                chunks = int(body.split(b'"max_tokens":')[1].split(b"}")[0])
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                )
                for _ in range(chunks):
                    writer.write(b"d\r\ndata: token\n\n\r\n")
                    await writer.drain()
                    await asyncio.sleep(0.001)  # a shorter pause would send them together
                writer.write(b"0\r\n\r\n")

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    await server.serve_forever()


# -- starting and measuring -------------------------------------------------------------------------------------------


class BenchProcesses:
    """The processes of the bench, in one folder."""

    def __init__(self, folder: Path, stack: contextlib.AsyncExitStack) -> None:
        self.folder = folder
        self._stack = stack
        self._logs = 0

    def start(self, *args: str | Path) -> BenchProgram:
        self._logs += 1
        started = BenchProgram(args, self.folder / f"{self._logs}.log")
        self._stack.callback(started.stop)
        return started

    def start_this_module(self, *args: str) -> BenchProgram:
        return self.start(sys.executable, "-m", "tests.bench.bench_ext_proc", *args)


def recorded_page() -> bytes:
    """A recorded page of a real model server."""
    pages = sorted((ROOT / "tests" / "recordings").rglob("*.prom"), key=lambda path: path.stat().st_size)
    return pages[-1].read_bytes() if pages else b"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 0\n"


def bodies() -> list[bytes]:
    """256 chat requests of 2 kB with 16 different system prompts."""
    requests = []
    for number in range(256):
        system = (
            f"You are assistant {number % 16}. "
            + "Answer briefly, truthfully and in the language of the question. " * 20
        )
        messages = [{"role": "system", "content": system}, {"role": "user", "content": f"Question {number}? " * 35}]
        requests.append(orjson.dumps({"model": "m", "messages": messages, "max_tokens": 16}))
    return requests


def nginx_conf(ports: list[int]) -> str:
    models, chat = '{"object":"list","data":[{"id":"m"}]}', '{"id":"c","object":"chat.completion","choices":[]}'
    servers = "\n".join(
        f"""server {{
            listen 127.0.0.1:{port};
            location /metrics {{ default_type text/plain; try_files /page.prom =404; }}
            location /v1/models {{ default_type application/json; return 200 '{models}'; }}
            location / {{ default_type application/json; return 200 '{chat}'; }}
        }}"""
        for port in ports
    )
    return f"""
    daemon off; master_process off; pid nginx.pid; error_log stderr crit;
    events {{ worker_connections 1024; }}
    http {{ access_log off; root .; keepalive_requests 1000000000; client_max_body_size 64m; {servers} }}
    """


def tls_config(endpoints: tuple[str, ...], picker: str, admin: str) -> str:
    """The agent's configuration with TLS of the picker port."""
    document = {
        "apiVersion": "llm-d.ai/v1alpha1",
        "kind": "EndpointPickerConfig",
        "pools": [{"endpoints": list(endpoints), "extProcAddress": picker}],
        "extProc": {"tls": {"selfSigned": True}},
        "admin": {"address": admin},
    }
    return json.dumps(document)


def wrk_script(path: Path) -> None:
    texts = ",\n".join(json.dumps(body.decode()) for body in bodies())
    path.write_text(
        f"""local bodies = {{ {texts} }}
local requests, at = {{}}, 0
init = function(args)
  local headers = {{ ["content-type"] = "application/json" }}
  for i, body in ipairs(bodies) do requests[i] = wrk.format("POST", "/v1/chat/completions", headers, body) end
end
request = function() at = at % #requests + 1; return requests[at] end
done = function(summary, latency, r)
  local e = summary.errors
  print(string.format("RESULT %d %d", summary.requests, e.connect + e.read + e.write + e.status + e.timeout))
end
"""
    )


async def wrk(port: int, script: Path, seconds: float) -> int:
    """The number of answered requests; exit the bench if one failed."""
    command = [program("wrk") or "wrk", "-t1", f"-c{IN_FLIGHT}", f"-d{max(1, round(seconds))}s", "-s", str(script)]
    run = await asyncio.create_subprocess_exec(
        *process.kill_with_parent([*command, f"http://127.0.0.1:{port}"]),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await run.communicate()
    result = [line for line in out.decode().splitlines() if line.startswith("RESULT")]
    if not result or result[0].split()[2] != "0":
        sys.exit(f"requests failed:\n{out.decode()}")
    return int(result[0].split()[1])


async def read_streams(port: int, chunks: int, seconds: float) -> int:
    """Start streams at STREAMS_PER_SECOND and read them to their end; their number."""
    body = orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 1900}], "max_tokens": chunks})
    request = b"POST /v1/chat/completions HTTP/1.1\r\nhost: b\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    pieces = 0

    async def read_stream() -> None:
        nonlocal pieces
        reader, writer = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            sys.exit(f"a stream failed: {head!r}")
        tail = b""
        while not tail.endswith(b"0\r\n\r\n"):
            data = await reader.read(65536)
            pieces += 1
            tail = (tail + data)[-16:]
        idle.append((reader, writer))

    loop = asyncio.get_running_loop()
    start, count = loop.time(), round(STREAMS_PER_SECOND * seconds)
    async with asyncio.TaskGroup() as streams:
        for number in range(count):
            await asyncio.sleep(max(0.0, start + number / STREAMS_PER_SECOND - loop.time()))
            streams.create_task(read_stream())
    for _, writer in idle:
        writer.close()
    if pieces < count * chunks / 4:
        sys.exit(
            f"the responses arrived in {pieces / count:.0f} pieces instead of {chunks}: the measurement is invalid"
        )
    return count


# -- the bench --------------------------------------------------------------------------------------------------------


async def bench(seconds: float, rounds: int, speed: MachineSpeed) -> dict[str, Any]:
    """All figures by mode and picker."""
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="igw bench ")))
        programs = BenchProcesses(folder, stack)
        upstream = free_ports(ENDPOINTS + 1)
        names = (*PICKERS, "agent-streams", *REPORTS, TLS)
        pickers = dict(zip(names, free_ports(len(names)), strict=True))
        admins = dict(zip(names, free_ports(len(names)), strict=True))
        (folder / "page.prom").write_bytes(recorded_page())
        (folder / "nginx.conf").write_text(nginx_conf(upstream[:ENDPOINTS]))
        nginx = programs.start("nginx", "-p", folder, "-c", folder / "nginx.conf", "-e", "stderr")
        streams = programs.start_this_module("--serve-streams", str(upstream[-1]))
        addresses = tuple(f"127.0.0.1:{port}" for port in upstream)
        flat, streaming = addresses[:ENDPOINTS], addresses[ENDPOINTS:]

        nginx.wait_until(lambda: listens(upstream[0]))
        streams.wait_until(lambda: listens(upstream[-1]))

        def agent(name: str, endpoints: tuple[str, ...]) -> BenchProgram:
            admin = admins[name]
            picker = f"127.0.0.1:{pickers[name]}"
            command = [sys.executable, "-m", "agent", "run"]
            if name == TLS:
                (folder / "tls.yaml").write_text(tls_config(endpoints, picker, f"127.0.0.1:{admin}"))
                command += ["--config", str(folder / "tls.yaml")]
            else:
                command += ["--endpoints", ",".join(endpoints)]
                command += ["--ext-proc-address", picker, "--admin-address", f"127.0.0.1:{admin}"]
            started = programs.start(*command)
            started.wait_until(lambda: answers(f"http://127.0.0.1:{admin}/readyz"))
            return started

        measured = {
            "agent": agent("agent", flat),
            "bare": programs.start_this_module("--serve-bare", str(pickers["bare"]), "--destination", flat[0]),
            "agent-streams": agent("agent-streams", streaming),
            **{name: agent(name, flat) for name in (*REPORTS, TLS)},
        }
        measured["bare"].wait_until(lambda: listens(pickers["bare"]))
        config: dict[str, Any] = {}
        for name in names:
            pool = EnvoyPool(name, streaming if name == "agent-streams" else flat, f"127.0.0.1:{pickers[name]}")
            listeners = tuple(EnvoyListener(f"{name} {mode.value}", "127.0.0.1:0", name, mode) for mode in MODES)
            source = REPORTS.get(name, ResponseSource.NONE)
            tls = PickerTls() if name == TLS else None
            own = bootstrap(EnvoyConfig((pool,), listeners, responses=source, picker_tls=tls))
            if not config:
                config = own
                continue
            for kind, resources in own["static_resources"].items():
                config["static_resources"][kind] += resources
        envoy = await process.start(config, folder / "envoy")
        stack.push_async_callback(envoy.stop)
        script = folder / "load.lua"
        wrk_script(script)

        async def measure(name: str, run: Any) -> tuple[float, int]:
            before = measured[name].cpu_seconds()
            requests = await run
            return (measured[name].cpu_seconds() - before) * 1e6 / requests, requests

        for mode in MODES:
            for name in (*PICKERS, *REPORTS, TLS):
                await wrk(envoy.ports[f"{name} {mode.value}"], script, 1)
        requests: dict[tuple[str, str], list[tuple[float, int]]] = {}
        streamed_runs: dict[tuple[str, int], list[tuple[float, int]]] = {}
        for _ in range(rounds):
            speed.sample()
            for mode in MODES:
                for name in (*PICKERS, *REPORTS, TLS):
                    run = wrk(envoy.ports[f"{name} {mode.value}"], script, seconds)
                    requests.setdefault((mode.value, name), []).append(await measure(name, run))
                for chunks in CHUNKS:
                    stream = read_streams(envoy.ports[f"agent-streams {mode.value}"], chunks, seconds)
                    streamed_runs.setdefault((mode.value, chunks), []).append(await measure("agent-streams", stream))
    return {"requests": _medians(requests), "streams": _medians(streamed_runs)}


def _medians(runs: dict[Any, list[tuple[float, int]]]) -> dict[Any, Figure]:
    return {
        key: Figure(statistics.median(cpu for cpu, _ in one), int(statistics.median(count for _, count in one)))
        for key, one in runs.items()
    }


def rows(figures: dict[str, Any], seconds: float) -> Iterator[dict[str, Any]]:
    """The rows of the table: what, its cost, what it is compared with, the ratio, the bar."""
    for mode in (mode.value for mode in MODES):
        ours, bare = figures["requests"][mode, "agent"], figures["requests"][mode, "bare"]
        yield {
            "what": f"2 kB request, {mode}, {IN_FLIGHT} in flight",
            "ours_us": ours.cpu_us,
            "beside": "bare grpc.aio, constant answer",
            "beside_us": bare.cpu_us,
            "ratio": ours.cpu_us / bare.cpu_us,
            "bar": BAR_REQUEST,
            "rate": ours.requests / max(1, round(seconds)),
        }
    for mode in (mode.value for mode in MODES):
        one, many = (figures["streams"][mode, chunks] for chunks in CHUNKS)
        yield {
            "what": f"answer of {CHUNKS[1]} chunks, {mode}",
            "ours_us": many.cpu_us,
            "beside": "answer of one chunk, same rate",
            "beside_us": one.cpu_us,
            "ratio": many.cpu_us / one.cpu_us,
            "bar": BAR_STREAM,
            "rate": many.requests / seconds,
        }
    for mode in (mode.value for mode in MODES):
        plain = figures["requests"][mode, "agent"]
        compared = {name: (source.value, "without reports of responses") for name, source in REPORTS.items()}
        for name, (what, beside) in {**compared, TLS: ("TLS", "plaintext")}.items():
            reported = figures["requests"][mode, name]
            yield {
                "what": f"the same, {mode}, {what}",
                "ours_us": reported.cpu_us,
                "beside": beside,
                "beside_us": plain.cpu_us,
                "ratio": reported.cpu_us / plain.cpu_us,
                "bar": None,
                "rate": reported.requests / max(1, round(seconds)),
            }


def main(arguments: list[str] | None = None) -> int:
    """Print the table; always 0, also for a missed bar."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one run")
    parser.add_argument("--rounds", type=int, default=3, help="number of runs")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--serve-bare", type=int, metavar="PORT", help=argparse.SUPPRESS)
    parser.add_argument("--destination", default="", help=argparse.SUPPRESS)
    parser.add_argument("--serve-streams", type=int, metavar="PORT", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.serve_bare is not None:
        uvloop.run(serve_bare(args.serve_bare, args.destination))
        return 0
    if args.serve_streams is not None:
        uvloop.run(serve_streams(args.serve_streams, recorded_page()))
        return 0
    prepare_process()
    start = time.monotonic()
    speed = MachineSpeed()
    found = list(rows(asyncio.run(bench(args.seconds, args.rounds, speed)), args.seconds))
    if args.json:
        print(json.dumps(found, indent=1))
        return 0
    print(f"{'CPU of the picker per request':<42}{'us':>8}  {'beside':<32}{'us':>8}{'ratio':>8}{'bar':>6}{'req/s':>8}")
    for row in found:
        limit = row["bar"]
        verdict = "" if limit is None else "met" if row["ratio"] <= limit else "MISSED"
        print(
            f"{row['what']:<42}{row['ours_us']:>8.0f}  {row['beside']:<32}{row['beside_us']:>8.0f}"
            f"{row['ratio']:>8.2f}{'-' if limit is None else f'{limit:.1f}':>6}{row['rate']:>8.0f}  {verdict}"
        )
    print(f"median of {args.rounds} interleaved runs of {args.seconds:g} s; {time.monotonic() - start:.0f} s in all")
    print(speed.summary())
    return 0


if __name__ == "__main__":
    sys.exit(main())
