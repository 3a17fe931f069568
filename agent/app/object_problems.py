"""What is wrong with objects, on its way to the log, the metrics and the recorder."""

from __future__ import annotations

from collections.abc import Sequence

from agent.events import Hook
from agent.events.kubernetes import ObjectProblemFound, ObjectProblemSolved
from agent.kube.objects import ObjectRef
from agent.kube.pool_endpoints import ObjectProblem
from agent.kube.recorder import EventRecorder


class ObjectProblems:
    """The problems of each object by their source. An event of `agent.events.kubernetes` tells when one begins and when
    it ends; the recorder gets those of objects of the API server, which have an `api_version`."""

    def __init__(self, hook: Hook, recorder: EventRecorder) -> None:
        self._hook = hook
        self._recorder = recorder
        self._reported: dict[tuple[str, ObjectRef], tuple[ObjectProblem, ...]] = {}

    def report(self, source: str, ref: ObjectRef, problems: Sequence[ObjectProblem]) -> None:
        """Replace what a source reports about an object."""
        self._emit(source, ref, tuple(problems))
        if ref.api_version:
            self._recorder.set_problems(source, ref, problems)

    def forget(self, source: str, ref: ObjectRef) -> None:
        """The source has nothing to do with the object any more, or it was deleted."""
        self._emit(source, ref, ())
        if ref.api_version:
            self._recorder.forget(source, ref)

    def of_source(self, source: str) -> list[ObjectRef]:
        """The objects with a problem that the source has reported."""
        return [ref for reporter, ref in self._reported if reporter == source]

    def _emit(self, source: str, ref: ObjectRef, problems: tuple[ObjectProblem, ...]) -> None:
        key = (source, ref.anonymous)
        before = {each.reason: each.message for each in reversed(self._reported.pop(key, ()))}
        after = {each.reason: each.message for each in reversed(problems)}
        if problems:
            self._reported[key] = problems
        for reason, message in after.items():
            if reason not in before:
                self._hook(ObjectProblemFound(ref.kind, str(ref), reason, message))
        for reason in before.keys() - after.keys():
            self._hook(ObjectProblemSolved(ref.kind, str(ref), reason))
