"""Events, as immutable values: the pure core emits them, and a hook turns them into metrics and log lines.

No pure module holds a logger or a counter. A hook must be cheap, must not raise and must not block.
"""

from __future__ import annotations

from collections.abc import Callable

from agent.events.accelerators import DeviceHealthChanged, DeviceLost, DevicesFailed, DevicesRead
from agent.events.access import AccessChecked, TokenFileProblem
from agent.events.discovery import SourceProblemFound, SourceProblemSolved
from agent.events.flow import DispatchRun, FlowDecided, HeldAtZero, RequestHeld, RequestSubmitted
from agent.events.keda import PoolActivated, ScalerCalled, ScalerStreams
from agent.events.kubernetes import (
    KubernetesWriteFailed,
    KubernetesWritten,
    ObjectProblemFound,
    ObjectProblemSolved,
)
from agent.events.leases import LeaseChanged, LeaseFailed
from agent.events.metrics_api import MetricsAccessChecked, MetricsApiProblem, MetricsRead
from agent.events.objectives import FlowHeaderIgnored, UnknownObjective
from agent.events.process import Reloaded, TaskFailed, WatcherDropped
from agent.events.replicas import PeerChanged, PeerFailed, PeerRefused, PeersCounted
from agent.events.requests import (
    Abandoned,
    Completed,
    EncodedBody,
    Ended,
    EndpointEjected,
    NotFollowed,
    Picked,
    Refused,
    Reported,
    Responded,
    StreamBroken,
    UnknownLogEntry,
    Unreported,
)
from agent.events.scraping import (
    BudgetChanged,
    BudgetExceeded,
    CacheEmptied,
    HealthChanged,
    HealthPathFailed,
    ScrapeDone,
    ScrapeFailed,
    ScrapesPaced,
    ServerRestarted,
)
from agent.events.tls import CertificateInvalid, CertificateLoaded, CertificateNotLoaded, HandshakeFailed

Event = (
    ScrapeDone
    | ScrapeFailed
    | DevicesRead
    | DevicesFailed
    | DeviceHealthChanged
    | DeviceLost
    | HealthPathFailed
    | HealthChanged
    | ServerRestarted
    | CacheEmptied
    | EncodedBody
    | Picked
    | Refused
    | Reported
    | Responded
    | Completed
    | UnknownLogEntry
    | Unreported
    | NotFollowed
    | EndpointEjected
    | Ended
    | Abandoned
    | StreamBroken
    | RequestHeld
    | FlowDecided
    | HeldAtZero
    | FlowHeaderIgnored
    | UnknownObjective
    | RequestSubmitted
    | DispatchRun
    | ScalerCalled
    | PoolActivated
    | ScalerStreams
    | KubernetesWritten
    | KubernetesWriteFailed
    | ObjectProblemFound
    | ObjectProblemSolved
    | SourceProblemFound
    | SourceProblemSolved
    | Reloaded
    | ScrapesPaced
    | BudgetChanged
    | BudgetExceeded
    | TaskFailed
    | LeaseChanged
    | LeaseFailed
    | WatcherDropped
    | AccessChecked
    | TokenFileProblem
    | MetricsRead
    | MetricsAccessChecked
    | MetricsApiProblem
    | PeerChanged
    | PeerFailed
    | PeerRefused
    | PeersCounted
    | CertificateLoaded
    | CertificateNotLoaded
    | CertificateInvalid
    | HandshakeFailed
)
Hook = Callable[[Event], None]


def ignore(event: Event) -> None:
    """A hook that does nothing."""
