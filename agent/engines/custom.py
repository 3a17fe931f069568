"""Engines from the configuration: a table built from metric specifications.

An entry with a new name reads the signals that it names, and its samples identify its pages. An entry with the name of
a built-in engine goes before that engine's own sources; signals that it does not name are read as before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from agent.engine_specs import EngineSpec, MetricSpec
from agent.engines import ENGINES, engine
from agent.engines.table import Engine, SeriesCombination, SignalSource
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

_COMBINE: Final[Mapping[str, SeriesCombination]] = {
    KV_USAGE: SeriesCombination.MEAN_BY_BLOCKS,
    SLOTS_USAGE: SeriesCombination.MEAN_BY_BLOCKS,
    BLOCK_SIZE: SeriesCombination.SAME,
    LORA_MAX: SeriesCombination.NEWEST,
    LORA_RUNNING: SeriesCombination.NEWEST,
    LORA_WAITING: SeriesCombination.NEWEST,
    START_TIME: SeriesCombination.MAX,
    MODEL_LOADED: SeriesCombination.MIN,
}
# Labels that servers use to identify their engines.
_RANK_LABELS: Final = ("engine", "dp_rank")


def tables(specs: Iterable[EngineSpec]) -> dict[str, Engine]:
    """The tables of configured engines, by name."""
    return {spec.name: custom(spec) for spec in specs}


def custom(spec: EngineSpec) -> Engine:
    """The table of one configured engine."""
    made: dict[str, tuple[SignalSource, ...]] = {}
    for metric in spec.metrics:
        made[metric.signal] = (*made.get(metric.signal, ()), _source(metric))
    samples = tuple(dict.fromkeys(metric.sample for metric in spec.metrics))
    if spec.name in ENGINES:
        built_in = engine(spec.name)
        return replace(
            built_in,
            prefixes=(*built_in.prefixes, *samples),
            sources={
                signal: (*made.get(signal, ()), *built_in.sources.get(signal, ()))
                for signal in SIGNALS
                if signal in made or signal in built_in.sources
            },
        )
    return Engine(
        name=spec.name,
        prefixes=samples,
        sources=made,
        silent={
            signal: f"engineConfigs has no source of it for {spec.name}"
            for signal in (*SIGNALS, *HISTOGRAMS)
            if signal not in made
        },
        health_path=None,
        models_path="/v1/models",
        rank_labels=_RANK_LABELS,
        hint="are these the names in engineConfigs?",
    )


def _source(metric: MetricSpec) -> SignalSource:
    label = metric.label or None
    combine = _COMBINE.get(metric.signal, SeriesCombination.SUM)
    if combine is SeriesCombination.NEWEST and label is None:  # a plain number instead of a label of an info sample
        combine = SeriesCombination.SAME
    return SignalSource(metric.sample, combine, dict(metric.where), label, any_part=True)
