"""One control plane for the whole run, a namespace for each test, and its pods.

A test that uses the control plane is marked `cluster`, so that `-m 'not cluster'` leaves it out.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.cluster import programs
from tests.cluster.addresses import PodAddresses
from tests.cluster.control_plane import ControlPlane
from tests.cluster.pods import Pods
from tests.cluster.schemas import CRDS, manifests

_NAMESPACES = itertools.count(1)


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by mark
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "control_plane" in getattr(item, "fixturenames", ()):
            item.add_marker("cluster")


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A Kubernetes control plane that all tests share."""
    found = programs.find()
    if missing := [name for name in programs.PROGRAMS if name not in found]:
        pytest.fail(
            f"{', '.join(missing)} {programs.KUBERNETES} missing: `make control-plane` builds them", pytrace=False
        )
    running = ControlPlane(tmp_path_factory.mktemp("control-plane"), found)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def pod_addresses() -> Iterator[PodAddresses]:
    """Addresses that no other run on this machine uses."""
    addresses = PodAddresses()
    yield addresses
    addresses.close()


@pytest.fixture(scope="session")
def crds(control_plane: ControlPlane) -> list[str]:
    """The names of the CustomResourceDefinitions of deploy/crds, which the API server serves."""
    return [control_plane.install_crd(manifest) for manifest in manifests(CRDS)]


@pytest.fixture
def namespace(control_plane: ControlPlane) -> Iterator[str]:
    """A new namespace, which is deleted after the test."""
    name = f"test-{next(_NAMESPACES)}"
    control_plane.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    yield name
    control_plane.api.delete(f"/api/v1/namespaces/{name}")


@pytest.fixture
async def pods(control_plane: ControlPlane, namespace: str, pod_addresses: PodAddresses) -> AsyncIterator[Pods]:
    """The pods of the namespace, with scripted servers."""
    made = Pods(control_plane, namespace, pod_addresses)
    yield made
    await made.close()
