"""The contract of every registered accelerator exporter; a new exporter is checked without a new test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent.accelerators import EXPORTERS, exporter
from agent.accelerators.device import Devices
from agent.accelerators.mapping import DeviceReader
from agent.accelerators.table import CARD_WIDE, COMBINED, DEVICE_SIGNALS, REFUSALS
from agent.engines import ENGINES
from agent.exposition.page import PageRefused
from agent.signals import SIGNALS

PAGES = Path(__file__).resolve().parents[1] / "recordings" / "accelerators"
GOLDEN = sorted(PAGES.glob("*/*.prom"))
EVERY_EXPORTER = pytest.mark.parametrize("name", sorted(EXPORTERS))
EVERY_PAGE = pytest.mark.parametrize("path", GOLDEN, ids=lambda path: f"{path.parent.name}/{path.stem}")


def reader(path: Path) -> DeviceReader:
    return DeviceReader(exporter(path.parent.name), "amd_" if path.stem.startswith("prefix") else "")


def plain(found: Devices) -> dict[str, Any]:
    """The content of a page, in the form of the JSON beside it."""
    devices = [
        {key: list(value) if isinstance(value, tuple) else value for key, value in device._asdict().items()}
        for device in found.devices
    ]
    return {
        "devices": [{key: value for key, value in each.items() if value not in ("", None, [])} for each in devices],
        "missing": list(found.missing),
        "refused": [list(refusal) for refusal in found.refused],
    }


@EVERY_EXPORTER
def test_every_signal_has_a_source_or_a_reason_why_it_has_none(name: str) -> None:
    table = exporter(name)
    assert table.name == name
    assert table.sources.keys() <= DEVICE_SIGNALS.keys()
    assert table.silent.keys() <= DEVICE_SIGNALS.keys() - table.sources.keys()
    for signal in DEVICE_SIGNALS:
        why = table.why_silent(signal)
        assert not why if signal in table.sources else len(why) > 10, signal


def test_device_signals_and_server_signals_have_distinct_names() -> None:
    assert not DEVICE_SIGNALS.keys() & SIGNALS.keys()
    assert COMBINED.keys() | CARD_WIDE.keys() == DEVICE_SIGNALS.keys()


def test_every_exporter_has_a_golden_page() -> None:
    assert {path.parent.name for path in GOLDEN} == EXPORTERS.keys()


@EVERY_EXPORTER
def test_every_source_is_on_some_golden_page(name: str) -> None:
    reported = {
        signal
        for path in GOLDEN
        if path.parent.name == name
        for device in reader(path).extract(path.read_bytes(), whole=True).devices
        for signal in device.values
    }
    assert reported == exporter(name).sources.keys()


@EVERY_PAGE
def test_repeated_reads_of_a_golden_page_give_the_recorded_devices(path: Path) -> None:
    expected = json.loads(path.with_suffix(".json").read_text())
    repeated = reader(path)
    for _ in range(3):
        assert plain(repeated.extract(path.read_bytes(), whole=True)) == expected


@EVERY_PAGE
def test_a_page_cut_anywhere_never_gives_a_wrong_value(path: Path) -> None:
    page = path.read_bytes()
    whole = {(device.id, device.pod): device for device in reader(path).extract(page, whole=True).devices}
    for cut in range(1, len(page), 7):
        try:
            found = reader(path).extract(page[:cut])
        except PageRefused as refused:
            assert refused.reason in {"truncated", "wrong_engine", "not_metrics", "empty"}  # noqa: PT017
            continue
        for device in found.devices:
            known = whole[device.id, device.pod]
            # A value on a later line may be missing, or come from a less preferred source; it is never another
            # device's.
            assert device.values.keys() <= known.values.keys()
            assert set(device.xids) <= set(known.xids)


@EVERY_EXPORTER
def test_a_page_of_another_program_is_refused(name: str) -> None:
    for page in (b"vllm:num_requests_running 1\n", b"# HELP node_load1 x\nnode_load1 3\n"):
        with pytest.raises(PageRefused) as refused:
            DeviceReader(exporter(name)).extract(page, whole=True)
        assert refused.value.reason == "wrong_engine"
        assert name in refused.value.detail
    with pytest.raises(PageRefused, match="not_metrics"):
        DeviceReader(exporter(name)).extract(b"hello, this is not a page\n", whole=True)


def test_no_exporter_has_the_name_of_an_engine() -> None:
    assert not EXPORTERS.keys() & ENGINES.keys()


def test_reasons_are_identifiers() -> None:
    assert all(reason.isidentifier() for reason in REFUSALS)
