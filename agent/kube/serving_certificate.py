"""The agent's own serving CA for aggregated APIs: one Secret, written by the holder of the Lease, read by all replicas.

    Secret (watched) --> the certificate that this replica serves
    holder ----------> caBundle of the APIServices first, then the Secret: no certificate is served that is not trusted

An APIService that leads to another Service has another owner: it is reported and left alone.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

import msgspec
from msgspec import Struct

from agent.clock import Clock
from agent.kube.cache import ObjectCache, decoder_of
from agent.kube.cluster import Cluster
from agent.kube.errors import ApiFailed, NoCluster, NotHeld, Unreachable
from agent.kube.objects import ObjectMeta
from agent.kube.serving_material import ServingMaterial, material_of, renewed, secret_data
from agent.serve.tls.files import CertificatePair, TlsProblem

CHECK_SECONDS: Final = 30.0
API_SERVICES: Final = "/apis/apiregistration.k8s.io/v1/apiservices"
MERGE: Final = "application/merge-patch+json"
# Who owns these APIs in many clusters, by the name of the Service, and what to do then.
KNOWN_OWNERS: Final = {
    "keda-operator-metrics-apiserver": "KEDA",
    "keda-metrics-apiserver": "KEDA",
    "prometheus-adapter": "prometheus-adapter",
    "custom-metrics-stackdriver-adapter": "the stackdriver adapter",
}
SWITCHES: Final = {"custom.metrics.k8s.io": "custom", "external.metrics.k8s.io": "external"}


class SendsWrites(Protocol):
    """Writes that only the holder of the Lease does."""

    async def __call__(self, method: str, path: str, body: bytes, content_type: str = ...) -> bytes:
        """Send a write. Raises NotHeld, ApiFailed, Unreachable, NoCluster."""
        ...


class ServingPlace(NamedTuple):
    """The Secret, the Service that it is for, both in one namespace, and the names of the APIServices."""

    namespace: str
    secret: str
    service: str
    api_services: Sequence[str]

    @property
    def names(self) -> tuple[str, ...]:
        """The names in the certificate."""
        return (f"{self.service}.{self.namespace}.svc", f"{self.service}.{self.namespace}.svc.cluster.local")


class Secret(Struct, rename="camel"):
    """A Secret."""

    metadata: ObjectMeta
    data: dict[str, str] | None = None


class _ServiceReference(Struct):
    namespace: str = ""
    name: str = ""


class _ApiServiceSpec(Struct, rename="camel"):
    service: _ServiceReference | None = None
    ca_bundle: str | None = None


class _ApiService(Struct):
    spec: _ApiServiceSpec


_API_SERVICE: Final = msgspec.json.Decoder(_ApiService)


class ServingCertificate:
    """Keeps the certificate. `use` is called with each certificate that this replica is to serve, `report` with each
    sentence about what is wrong."""

    def __init__(
        self,
        cluster: Cluster,
        clock: Clock,
        place: ServingPlace,
        send: SendsWrites,
        held: Callable[[], bool],
        use: Callable[[CertificatePair], None],
        report: Callable[[str], None],
    ) -> None:
        self._cluster = cluster
        self._clock = clock
        self._place = place
        self._send = send
        self._held = held
        self._use = use
        self._report = report
        self._cache = ObjectCache(decoder_of(Secret))
        self._changed = asyncio.Event()
        self._served: CertificatePair | None = None

    async def run(self) -> None:
        """Keep the certificate until it is cancelled. Raises NoCluster."""
        client = await self._cluster.connect()
        path = f"/api/v1/namespaces/{self._place.namespace}/secrets"
        selectors = {"fieldSelector": f"metadata.name={self._place.secret}"}
        informer = self._cluster.informer(client, self._cache, path, selectors, self._changed.set)
        async with asyncio.TaskGroup() as group:
            group.create_task(informer.run())
            group.create_task(self._follow(lambda: informer.status.synced))

    async def _follow(self, synced: Callable[[], bool]) -> None:
        while True:
            self._changed.clear()
            if synced():
                await self._keep()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CHECK_SECONDS if self._served else 1.0):
                    await self._changed.wait()

    async def _keep(self) -> None:
        """Serve what the Secret holds; as the holder of the Lease, write what has to change."""
        place = self._place
        secret = self._cache.objects.get((place.namespace, place.secret))
        material = None if secret is None else material_of(secret.data or {})
        if material is not None and material.server != self._served:
            try:
                self._use(material.server)
                self._served = material.server
            except TlsProblem as problem:
                self._report(f"Secret {place.namespace}/{place.secret}: {problem}")
                material = None
        if not self._held():
            return
        try:
            new = renewed(material, place.names, self._clock.wall())
            trusted = new or material
            if trusted is not None:
                await self._inject(trusted)
            if new is not None:
                await self._write(new, "" if secret is None else secret.metadata.resource_version)
        except NotHeld:
            return
        except (ApiFailed, Unreachable, NoCluster, TlsProblem) as error:
            self._report(f"the serving CA in Secret {place.namespace}/{place.secret} cannot be kept: {error}")

    async def _write(self, material: ServingMaterial, version: str) -> None:
        """Make the Secret, or replace the one of this version."""
        place = self._place
        metadata = {"name": place.secret, "namespace": place.namespace}
        document = {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "data": secret_data(material)}
        path = f"/api/v1/namespaces/{place.namespace}/secrets"
        if version:
            metadata["resourceVersion"] = version
            await self._send("PUT", f"{path}/{place.secret}", msgspec.json.encode({**document, "metadata": metadata}))
        else:
            await self._send("POST", path, msgspec.json.encode({**document, "metadata": metadata}))

    async def _inject(self, material: ServingMaterial) -> None:
        """Write the bundle into the APIServices that lead to the agent."""
        bundle = base64.b64encode(material.bundle).decode()
        for name in self._place.api_services:
            spec = await self._spec(name)
            if spec is None:
                continue
            if spec.ca_bundle != bundle:
                patch = {"spec": {"caBundle": bundle, "insecureSkipTLSVerify": False}}
                await self._send("PATCH", f"{API_SERVICES}/{name}", msgspec.json.encode(patch), MERGE)

    async def _spec(self, name: str) -> _ApiServiceSpec | None:
        """The APIService's spec; None, reported, where it does not exist or leads elsewhere."""
        group = name.partition(".")[2]
        client = await self._cluster.connect()
        try:
            answer: bytes = await self._cluster.run(client.get, f"{API_SERVICES}/{name}", {})
            spec = _API_SERVICE.decode(answer).spec
        except ApiFailed as error:
            if error.status != 404:
                raise
            folder = f"deploy/kubernetes/metrics-api-{SWITCHES.get(group, group)}"
            self._report(f"APIService {name} does not exist, so that no autoscaler reads it; apply {folder}")
            return None
        except msgspec.DecodeError as error:
            raise Unreachable(f"APIService {name} cannot be read: {error}") from error
        found = spec.service or _ServiceReference("", "none")
        if (found.namespace, found.name) == (self._place.namespace, self._place.service):
            return spec
        owner = KNOWN_OWNERS.get(found.name, "another adapter")
        switch = SWITCHES.get(group, group)
        self._report(
            f"APIService {name} belongs to {owner} (Service {found.namespace}/{found.name}); write "
            f"metricsApi.{switch}: false and leave out deploy/kubernetes/metrics-api-{switch}, or remove {owner} first"
        )
        return None
