"""One control plane with a real KEDA for the whole run."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.cluster.conftest import control_plane, namespace, pod_addresses
from tests.cluster.control_plane import ControlPlane
from tests.keda.operator import RunningKeda
from tests.keda.programs import KEDA

__all__ = ["control_plane", "namespace", "pod_addresses"]


@pytest.fixture(scope="session")
def keda(
    control_plane: ControlPlane,
    tmp_path_factory: pytest.TempPathFactory,
    free_ports: Callable[[int], list[int]],
) -> Iterator[RunningKeda]:
    """A KEDA whose API is available."""
    folder = tmp_path_factory.mktemp("keda")
    running = RunningKeda(control_plane, KEDA.build(), KEDA.sources(), folder, free_ports(4))
    try:
        running.available()
        yield running
    finally:
        running.stop()
