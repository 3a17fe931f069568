"""Scrapes of accelerator exporters, and the health of devices."""

from __future__ import annotations

from typing import NamedTuple

from agent.signals import Refusal


class DevicesRead(NamedTuple):
    """A page of an accelerator exporter was read; as `ScrapeDone`, for the exporter at an address."""

    source: str
    exporter: str
    at: float
    took: float
    size: int
    missing: tuple[str, ...]
    refused: tuple[Refusal, ...]


class DevicesFailed(NamedTuple):
    """An accelerator exporter brought no page. `reason` is one of `agent.scrape.reasons.REASONS`, or `client_error`."""

    source: str
    exporter: str
    at: float
    took: float
    reason: str
    detail: str


class DeviceHealthChanged(NamedTuple):
    """An accelerator fell sick (`reason` is one of `agent.accelerators.faults.FAULTS`), or is well (no reason)."""

    source: str
    exporter: str
    device: str
    reason: str
    detail: str
