"""`igw emulate`: model servers that behave like vLLM, without GPU and weights."""

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
from agent.emulator.config import EmulatorConfig, InvalidEmulatorConfig, ModelSpec
from agent.emulator.process import measure
from agent.emulator.server import EmulatedServer

HELP = (
    "Run a model server that behaves like vLLM: the OpenAI API, /metrics with vLLM's families, continuous batching,\n"
    "a prefix cache, LoRA slots, a queue, and faults that can be set while it runs (docs/reference/emulator.md).\n"
    "It needs no GPU and no weights: answers are random words, times and metrics are those of the configured server."
)

_GROUPS = {
    "sizes": {
        "max_num_seqs": "maximum number of requests in the batch",
        "max_num_batched_tokens": "maximum number of tokens per step; longer prompts are prefilled in chunks",
        "num_blocks": "blocks of the KV cache, of which one is never used",
        "block_size": "tokens per block",
        "max_model_len": "maximum number of tokens of a prompt and its answer",
        "max_num_queued_reqs": "refuse requests (503) while this many wait (default: no limit)",
    },
    "speed": {
        "prefill_tokens_per_second": "prompt tokens computed per second",
        "step_seconds": "duration of a step without requests",
        "step_seconds_per_request": "added duration of a step for each request that decodes in it",
        "startup_seconds": "time from the start until the server listens",
    },
    "LoRA": {
        "max_loras": "maximum number of adapters in one batch; 0 disables LoRA",
        "lora_step_seconds": "added duration of a step in which a request uses an adapter",
        "lora_load_seconds": "time to load an adapter into a slot",
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
    """The flags of a server; they have the names of vLLM's flags where vLLM has one."""
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        type=_address,
        action="append",
        help="address of the server; port 0 selects a free one; repeat it to run several identical servers"
        " (default: 127.0.0.1:8000)",
    )
    defaults = ModelSpec()
    model = parser.add_argument_group("model")
    model.add_argument("--model", metavar="NAME", default=defaults.name, help="name served (default: %(default)s)")
    model.add_argument(
        "--lora", metavar="NAME", action="append", default=[], help="an adapter to serve; may be repeated"
    )
    model.add_argument("--seed", type=int, default=defaults.seed, help="seed of the answers (default: %(default)s)")
    model.add_argument(
        "--answer-tokens",
        metavar="N",
        type=int,
        default=defaults.answer_tokens,
        help="length at which an answer ends with `stop`, unless max_tokens is less or ignore_eos is set"
        " (default: %(default)s)",
    )
    model.add_argument(
        "--stream-interval",
        metavar="N",
        type=int,
        default=defaults.stream_interval,
        help="tokens per chunk of a stream (default: %(default)s)",
    )
    config_fields = {field.name: field for field in fields(EmulatorConfig)}
    for title, flags in _GROUPS.items():
        group = parser.add_argument_group(title)
        for name, text in flags.items():
            default = config_fields[name].default
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
        help=f"also serve the page of an accelerator exporter at {accelerators.PATH}: {', '.join(accelerators.KINDS)}"
        " (default: none)",
    )
    parser.add_argument(
        "--kv-cache-metrics", action="store_true", help="export the ages of KV blocks, as vLLM's flag does"
    )
    parser.add_argument(
        "--disable-log-stats", action="store_true", help="export no metric of the engine, as vLLM's flag does"
    )


def main(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM; exit status 0, 1 if an address cannot be bound, 2 if the flags are invalid."""
    logging.basicConfig(level=logging.WARNING, format="igw emulate: %(message)s")
    names = [name for flags in _GROUPS.values() for name in flags]
    try:
        config = EmulatorConfig(
            **{name: getattr(args, name) for name in (*names, "kv_cache_metrics", "disable_log_stats")}
        )
        model = ModelSpec(args.model, tuple(args.lora), args.seed, args.answer_tokens, args.stream_interval)
        model.check(config)
    except InvalidEmulatorConfig as error:
        print(f"igw emulate: {error}", file=sys.stderr)
        return EXIT_USAGE
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(args.listen or [("127.0.0.1", 8000)], config, model, args.accelerator))


async def _serve(addresses: list[tuple[str, int]], config: EmulatorConfig, model: ModelSpec, accelerator: str) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    clock = SystemClock()
    servers = [
        EmulatedServer(config, model, clock, die=lambda: os._exit(137), measure=measure, accelerator=accelerator)
        for _ in addresses
    ]
    async with asyncio.TaskGroup() as group:
        starts = [group.create_task(_start(server, *at)) for server, at in zip(servers, addresses, strict=True)]
        stopping = group.create_task(stop.wait())
        started = asyncio.gather(*starts, return_exceptions=True)
        await asyncio.wait((started, stopping), return_when=asyncio.FIRST_COMPLETED)
        failed = started.done() and not all(started.result())
        if not failed:
            await stopping
        for task in (*starts, stopping):
            task.cancel()
        await asyncio.gather(*(server.stop() for server in servers))
    return EXIT_PORT if failed else 0


async def _start(server: EmulatedServer, host: str, port: int) -> bool:
    shown = f"[{host}]" if ":" in host else host
    try:
        port = await server.start(host, port)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
        print(f"igw emulate: cannot listen on {shown}:{port}: {reason}", file=sys.stderr)
        return False
    config = server.config
    adapters = f", adapters {' '.join(server.adapters)}" if server.adapters else ""
    print(
        f"{server.model.name} on http://{shown}:{port}: {config.max_num_seqs} requests per batch, "
        f"{config.capacity} blocks of {config.block_size} tokens{adapters}",
        flush=True,
    )
    return True
