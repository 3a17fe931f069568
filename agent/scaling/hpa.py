"""The published formula of the Kubernetes HPA (autoscaling/v2), to simulate what it does with a number.

Sources: the documentation of HorizontalPodAutoscaler and the defaults of kube-controller-manager 1.37. At each sync the
controller compares a metric with its target, keeps the replicas within the tolerance, takes the highest (scale-down) or
lowest (scale-up) recommendation of the stabilisation window, and limits the change by the policies of `behavior`.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final, NamedTuple

DEFAULT_TOLERANCE: Final = 0.1
PERCENT: Final = "Percent"
PODS: Final = "Pods"
# A ceiling is taken of quotients of floating-point numbers.
_ROUNDING: Final = 1e-9


class Policy(NamedTuple):
    """A limit of `behavior`: so many pods, or per cent of the pods, in `period` seconds."""

    kind: str
    value: float
    period: float


class Direction(NamedTuple):
    """`behavior.scaleUp` or `scaleDown`: tolerance, stabilisation window in seconds, and policies, of which the one
    that allows the largest change counts. Without policies there is no limit."""

    tolerance: float
    window: float
    policies: tuple[Policy, ...]


class HpaSettings(NamedTuple):
    """The spec of one HPA; the defaults are those of Kubernetes."""

    minimum: int = 1
    maximum: int = 1_000_000
    up: Direction = Direction(DEFAULT_TOLERANCE, 0.0, (Policy(PERCENT, 100.0, 15.0), Policy(PODS, 4.0, 15.0)))
    down: Direction = Direction(DEFAULT_TOLERANCE, 300.0, (Policy(PERCENT, 100.0, 15.0),))

    def with_tolerances(self, up: float, down: float) -> HpaSettings:
        """The same with these tolerances."""
        return self._replace(up=self.up._replace(tolerance=up), down=self.down._replace(tolerance=down))


def average_value(total: float, target: float, current: int, settings: HpaSettings) -> int:
    """The replicas for an External or Object metric with an AverageValue target: total / target, rounded up; `current`
    while the ratio to them is within the tolerance. From 0 replicas the tolerance does not count."""
    if current > 0 and _tolerated(total / target / current, settings):
        return current
    return math.ceil(total / target - _ROUNDING)


def pods_average(total: float, reporting: int, missing: int, target: float, current: int, settings: HpaSettings) -> int:
    """The replicas for a Pods metric: `total` is the sum over the `reporting` pods, and `missing` pods run without a
    value. Missing pods count as 0 when that scales up and as the target when it scales down; where they reverse the
    direction, or leave the ratio within the tolerance, nothing changes. Without any value nothing changes."""
    if reporting == 0:
        return current
    ratio = total / reporting / target
    if missing == 0:
        return current if _tolerated(ratio, settings) else math.ceil(ratio * reporting - _ROUNDING)
    if _tolerated(ratio, settings):
        return current
    pods = reporting + missing
    with_missing = total / pods / target if ratio > 1 else (total + missing * target) / pods / target
    if _tolerated(with_missing, settings) or (ratio > 1) != (with_missing > 1):
        return current
    wanted = math.ceil(with_missing * pods - _ROUNDING)
    if (with_missing < 1 and wanted > current) or (with_missing > 1 and wanted < current):
        return current
    return wanted


def _tolerated(ratio: float, settings: HpaSettings) -> bool:
    return 1.0 - settings.down.tolerance - _ROUNDING <= ratio <= 1.0 + settings.up.tolerance + _ROUNDING


class Hpa:
    """One HPA over time: its recommendations and its changes. `sync` is called in order of time."""

    def __init__(self, settings: HpaSettings) -> None:
        self.settings = settings
        self._recommended: deque[tuple[float, int]] = deque()
        self._changes: deque[tuple[float, int]] = deque()
        spans = [policy.period for side in (settings.up, settings.down) for policy in side.policies]
        self._longest_period = max(spans, default=0.0)

    def sync(self, now: float, current: int, recommended: int) -> int:
        """The replicas that the target is scaled to, for a recommendation by the metrics."""
        settings = self.settings
        wanted = min(max(self._stable(now, current, recommended), settings.minimum), settings.maximum)
        wanted = self._limited(now, current, wanted)
        if wanted != current:
            self._changes.append((now, wanted - current))
        return wanted

    def _stable(self, now: float, current: int, recommended: int) -> int:
        found = self._recommended
        up, down = self.settings.up.window, self.settings.down.window
        while found and found[0][0] < now - max(up, down):
            found.popleft()
        found.append((now, recommended))
        if recommended > current:
            return max(current, min(each for at, each in found if at >= now - up))
        if recommended < current:
            return min(current, max(each for at, each in found if at >= now - down))
        return current

    def _limited(self, now: float, current: int, wanted: int) -> int:
        while self._changes and self._changes[0][0] <= now - self._longest_period:
            self._changes.popleft()
        up = wanted > current
        policies = (self.settings.up if up else self.settings.down).policies
        if wanted == current or not policies:
            return wanted
        limits = []
        for policy in policies:
            done = sum(by for at, by in self._changes if at > now - policy.period and (by > 0) == up)
            begin = current - done
            part = begin * policy.value / 100 if policy.kind == PERCENT else policy.value
            limits.append(math.ceil(begin + part - _ROUNDING) if up else math.floor(begin - part + _ROUNDING))
        return min(wanted, max(current, *limits)) if up else max(wanted, min(current, *limits))
