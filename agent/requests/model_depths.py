"""How many requests are held for which model, so that a report of them does not cost a look at each request."""

from __future__ import annotations

from agent.flow.report import ModelDepth
from agent.flow.request import FlowRequest


class ModelDepths:
    """Counts held requests by priority, caller and model; `requested` is the model that the client named, empty where
    it is the same."""

    def __init__(self) -> None:
        self._counts: dict[tuple[int, str, str, str], list[int]] = {}

    def add(self, request: FlowRequest, model: str, requested: str) -> None:
        """A request is held."""
        key = (request.priority, request.flow_name, model, requested)
        count = self._counts.get(key)
        if count is None:
            count = self._counts[key] = [0, 0]
        count[0] += 1
        count[1] += request.size

    def remove(self, request: FlowRequest, model: str, requested: str) -> None:
        """A request that was added is not held any more."""
        key = (request.priority, request.flow_name, model, requested)
        count = self._counts[key]
        count[0] -= 1
        count[1] -= request.size
        if not count[0]:
            del self._counts[key]

    def rows(self) -> tuple[ModelDepth, ...]:
        """What is held now."""
        return tuple(
            ModelDepth(priority, caller, model, requested or model, requests, size)
            for (priority, caller, model, requested), (requests, size) in self._counts.items()
        )
