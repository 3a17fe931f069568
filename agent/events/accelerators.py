"""Scrapes of accelerator exporters, and the health of devices."""

from __future__ import annotations

from typing import NamedTuple

from agent.signals import RefusedValue


class DevicesRead(NamedTuple):
    """A page of an accelerator exporter was read; the fields are those of `ScrapeDone`."""

    source: str
    exporter: str
    at: float
    took: float
    size: int
    missing: tuple[str, ...]
    refused: tuple[RefusedValue, ...]


class DevicesFailed(NamedTuple):
    """A scrape of an accelerator exporter failed: one of `agent.scrape.reasons.REASONS`, or `client_error`."""

    source: str
    exporter: str
    at: float
    took: float
    reason: str
    detail: str


class DeviceHealthChanged(NamedTuple):
    """An accelerator became unhealthy (`reason`, one of `agent.accelerators.faults.FAULTS`) or healthy (no reason)."""

    source: str
    exporter: str
    device: str
    reason: str
    detail: str


class DeviceLost(NamedTuple):
    """An accelerator that an endpoint was seen with left the exporter's page, or is on it without its pod (`lost`); or
    it is back, or known to be no longer the endpoint's."""

    source: str
    exporter: str
    pool: str
    address: str
    device: str
    lost: bool
