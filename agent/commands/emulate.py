"""`igw emulate`: model servers that behave like vLLM, without a GPU and without weights."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from dataclasses import fields

import uvloop

from agent.clock import SystemClock
from agent.emulator import accelerators
from agent.emulator.process import measure
from agent.emulator.server import ModelServer
from agent.emulator.settings import BadSettings, Model, Settings

HELP = (
    "Run a model server that behaves like vLLM: the OpenAI API, /metrics with vLLM's families, continuous batching,\n"
    "a prefix cache, LoRA slots, a queue, and faults that can be switched on while it runs (see docs/emulator.md).\n"
    "No GPU and no weights: the answers are noise, their times and the metrics are those of the configured server."
)

_GROUPS = {
    "sizes": {
        "max_num_seqs": "most requests in the batch",
        "max_num_batched_tokens": "most tokens read and written in one step; longer prompts are read in chunks",
        "num_blocks": "blocks of the KV cache; one of them is never used",
        "block_size": "tokens in a block",
        "max_model_len": "most tokens of a prompt and its answer together",
        "max_num_queued_reqs": "refuse requests (503) when so many wait (default: no limit)",
    },
    "speed": {
        "prefill_tokens_per_second": "prompt tokens read in a second",
        "step_seconds": "what every step costs",
        "step_seconds_per_request": "what a step costs more for each request that writes a token in it",
        "startup_seconds": "how long after its start the server opens its port",
    },
    "LoRA": {
        "max_loras": "adapters that fit into one batch; 0 is no LoRA",
        "lora_step_seconds": "what a step costs more when a request of it uses an adapter",
        "lora_load_seconds": "what bringing an adapter into a slot costs",
    },
}
EXIT_USAGE = 2
EXIT_PORT = 1


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT, such as 127.0.0.1:8000 or [::1]:8000")
    return host.removeprefix("[").removesuffix("]"), int(port)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of a server; the names are vLLM's where vLLM has the setting."""
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        type=_address,
        action="append",
        help="address of the server; port 0 takes a free one; give it more than once for more servers alike"
        " (default: 127.0.0.1:8000)",
    )
    known = Model()
    model = parser.add_argument_group("model")
    model.add_argument("--model", metavar="NAME", default=known.name, help="name served (default: %(default)s)")
    model.add_argument(
        "--lora", metavar="NAME", action="append", default=[], help="an adapter that is served too; may be repeated"
    )
    model.add_argument("--seed", type=int, default=known.seed, help="what the answers depend on (default: %(default)s)")
    model.add_argument(
        "--answer-tokens",
        metavar="N",
        type=int,
        default=known.answer_tokens,
        help="where the model stops by itself, unless max_tokens is less or ignore_eos is set (default: %(default)s)",
    )
    model.add_argument(
        "--stream-interval",
        metavar="N",
        type=int,
        default=known.stream_interval,
        help="tokens in one chunk of a stream (default: %(default)s)",
    )
    defaults = {field.name: field for field in fields(Settings)}
    for title, flags in _GROUPS.items():
        group = parser.add_argument_group(title)
        for name, text in flags.items():
            default = defaults[name].default
            group.add_argument(
                f"--{name.replace('_', '-')}",
                metavar="SECONDS" if name.endswith("seconds") or "step_seconds" in name else "N",
                type=float if isinstance(default, float) else int,
                default=default,
                help=text if "(default" in text else f"{text} (default: %(default)s)",
            )
    parser.add_argument(
        "--accelerator",
        metavar="KIND",
        choices=accelerators.KINDS,
        default="",
        help=f"serve the page of an accelerator exporter too, as {accelerators.PATH}: {', '.join(accelerators.KINDS)}"
        " (default: none)",
    )
    parser.add_argument(
        "--kv-cache-metrics", action="store_true", help="export the ages of blocks, as vLLM's flag does"
    )


def main(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM. 0 then; 1 if an address cannot be had; 2 if the settings make no server."""
    logging.basicConfig(level=logging.WARNING, format="igw emulate: %(message)s")
    names = [name for flags in _GROUPS.values() for name in flags]
    try:
        settings = Settings(
            **{name: getattr(args, name) for name in names} | {"kv_cache_metrics": args.kv_cache_metrics}
        )
        model = Model(args.model, tuple(args.lora), args.seed, args.answer_tokens, args.stream_interval)
        model.check(settings)
    except BadSettings as bad:
        print(f"igw emulate: {bad}", file=sys.stderr)
        return EXIT_USAGE
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(args.listen or [("127.0.0.1", 8000)], settings, model, args.accelerator))


async def _serve(addresses: list[tuple[str, int]], settings: Settings, model: Model, accelerator: str) -> int:
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, over.set)
    clock = SystemClock()
    servers = [
        ModelServer(settings, model, clock, die=lambda: os._exit(137), measure=measure, accelerator=accelerator)
        for _ in addresses
    ]
    async with asyncio.TaskGroup() as group:
        starts = [group.create_task(_start(server, *at)) for server, at in zip(servers, addresses, strict=True)]
        stopping = group.create_task(over.wait())
        started = asyncio.gather(*starts, return_exceptions=True)
        await asyncio.wait((started, stopping), return_when=asyncio.FIRST_COMPLETED)
        failed = started.done() and not all(started.result())
        if not failed:
            await stopping
        for task in (*starts, stopping):
            task.cancel()
        await asyncio.gather(*(server.stop() for server in servers))
    return EXIT_PORT if failed else 0


async def _start(server: ModelServer, host: str, port: int) -> bool:
    shown = f"[{host}]" if ":" in host else host
    try:
        port = await server.start(host, port)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
        print(f"igw emulate: cannot listen on {shown}:{port}: {reason}", file=sys.stderr)
        return False
    settings = server.settings
    adapters = f", adapters {' '.join(server.adapters)}" if server.adapters else ""
    print(
        f"{server.model.name} on http://{shown}:{port}: {settings.max_num_seqs} requests a batch, "
        f"{settings.capacity} blocks of {settings.block_size} tokens{adapters}",
        flush=True,
    )
    return True
