"""Engines from the configuration: a table made of metric specifications.

An entry with a name of its own reads the signals that it names, and its samples tell its pages from others. An entry
with the name of an engine that is built in comes before that engine's own names: what it leaves out is read as always.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from agent.engine_specs import EngineSpec, MetricSpec
from agent.engines import ENGINES, engine
from agent.engines.table import Combine, Engine, Source
from agent.signals import (
    BLOCK_SIZE,
    HISTOGRAMS,
    KV_USAGE,
    LORA_MAX,
    LORA_RUNNING,
    LORA_WAITING,
    MODEL_LOADED,
    SIGNALS,
    SLOTS_USAGE,
    START_TIME,
)

_COMBINE: Final[Mapping[str, Combine]] = {
    KV_USAGE: Combine.MEAN_BY_BLOCKS,
    SLOTS_USAGE: Combine.MEAN_BY_BLOCKS,
    BLOCK_SIZE: Combine.SAME,
    LORA_MAX: Combine.NEWEST,
    LORA_RUNNING: Combine.NEWEST,
    LORA_WAITING: Combine.NEWEST,
    START_TIME: Combine.LATEST,
    MODEL_LOADED: Combine.LEAST,
}
# How servers call the label that tells their engines apart.
_RANK: Final = ("engine", "dp_rank")


def tables(specs: Iterable[EngineSpec]) -> dict[str, Engine]:
    """The tables of configured engines, by name."""
    return {spec.name: custom(spec) for spec in specs}


def custom(spec: EngineSpec) -> Engine:
    """The table of one configured engine."""
    made: dict[str, tuple[Source, ...]] = {}
    for metric in spec.metrics:
        made[metric.signal] = (*made.get(metric.signal, ()), _source(metric))
    samples = tuple(dict.fromkeys(metric.sample for metric in spec.metrics))
    if spec.name in ENGINES:
        built_in = engine(spec.name)
        return Engine(
            name=spec.name,
            marks=(*built_in.marks, *samples),
            sources={
                signal: (*made.get(signal, ()), *built_in.sources.get(signal, ()))
                for signal in SIGNALS
                if signal in made or signal in built_in.sources
            },
            silent={signal: why for signal, why in built_in.silent.items() if signal not in made},
            health_path=built_in.health_path,
            models_path=built_in.models_path,
            answers_in_turn=built_in.answers_in_turn,
            reports=built_in.reports,
            page_path=built_in.page_path,
            ports=built_in.ports,
            rank=built_in.rank,
            copies=built_in.copies,
            unlike=built_in.unlike,
            histograms=built_in.histograms,
            hint=built_in.hint,
        )
    return Engine(
        name=spec.name,
        marks=samples,
        sources=made,
        silent={
            signal: f"engineConfigs has no source of it for {spec.name}"
            for signal in (*SIGNALS, *HISTOGRAMS)
            if signal not in made
        },
        health_path=None,
        models_path="/v1/models",
        rank=_RANK,
        hint="are these the names in engineConfigs?",
    )


def _source(metric: MetricSpec) -> Source:
    label = metric.label or None
    combine = _COMBINE.get(metric.signal, Combine.SUM)
    if combine is Combine.NEWEST and label is None:  # a plain number, and no label of an info sample
        combine = Combine.SAME
    return Source(metric.sample, combine, dict(metric.where), label)
