"""The version of the agent, as it names itself to others."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def software() -> str:
    """The version of the installed package; empty where it is not installed."""
    try:
        return version("inference-gateway-agent")[:64]
    except PackageNotFoundError:
        return ""
