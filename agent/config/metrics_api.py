"""`metricsApi`: the custom and external metrics APIs of Kubernetes, which autoscalers read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from agent.config.addresses import Address
from agent.config.options import option
from agent.config.values import Boolean, Duration, FilePath, Number, ObjectName, OneOf

KUBERNETES: Final = "kubernetes"
NO_AUTH: Final = "none"


@dataclass(frozen=True, slots=True)
class MetricsApiConfig:
    """The metrics APIs. Without `address` they are not served."""

    address: str = option(
        Address(any_port=True),
        "serves the APIs over TLS, for the aggregation layer of the API server",
        "",
        unset="none: the APIs are not served",
        live=False,
    )
    custom: bool = option(
        Boolean(), "serve custom.metrics.k8s.io (metrics of pods and of InferencePools)", default=True, live=False
    )
    external: bool = option(Boolean(), "serve external.metrics.k8s.io", default=True, live=False)
    max_age: float = option(
        Duration(0.1, 600), "an older value is withheld, from KEDA as well, whatever its source", 15.0
    )
    min_coverage: float = option(
        Number(0, 1),
        "the part of the selected pods, or of a pool's endpoints, that has to have a fresh value: below it the whole "
        "list, sum or mean is withheld",
        0.8,
    )
    auth: str = option(
        OneOf((KUBERNETES, NO_AUTH)),
        "who may read: whom the API server vouches for and allows (front proxy, client certificate, TokenReview, "
        "SubjectAccessReview); on loopback, everybody",
        KUBERNETES,
        live=False,
    )
    cert_file: str = option(
        FilePath(), "the port's certificate (PEM)", "", unset="one that the agent signs itself", live=False
    )
    key_file: str = option(FilePath(), "the key of the certificate (PEM, not encrypted)", "", unset="none", live=False)

    service: str = option(
        ObjectName("Service"),
        "the Service of the APIServices, in the namespace of the Lease: with it the agent keeps a CA of its own in the "
        "Secret `SERVICE-ca`, renews the port's certificate, and writes the CA into the APIServices",
        "",
        unset="none",
        live=False,
    )

    @property
    def own_authority(self) -> bool:
        """Whether the agent keeps a serving CA of its own."""
        return self.enabled and bool(self.service)

    @property
    def enabled(self) -> bool:
        """Whether an API is served."""
        return bool(self.address) and (self.custom or self.external)
