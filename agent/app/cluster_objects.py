"""The objects of the cluster that say something about pools, beside their endpoints, as one component.

    InferencePools, objectives, rewrites --informers--> merge --> objectives of each pool, conditions
    endpoints of the pools --------------------------> pods that two pools select
    problems: of these, of discovery, of exporters --> log, metrics, /v1/state, Kubernetes Events

Nothing here is on the path of a request, and no failure of it stops anything else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Final

from agent.app.object_problems import ObjectProblems
from agent.app.pool import Pool
from agent.app.tasks import Task, Tasks
from agent.config.config import Config
from agent.config.pools import PoolConfig
from agent.events import Hook
from agent.events.process import TaskFailed
from agent.kube.cluster import Cluster, own_namespace
from agent.kube.errors import NoCluster
from agent.kube.objectives import POOL_GROUP, POOL_KIND, Acceptance, merge
from agent.kube.objects import Key, ObjectRef
from agent.kube.pool_endpoints import POOL_NOT_FOUND, ObjectProblem
from agent.kube.recorder import EventRecorder
from agent.kube.rule_informers import RuleInformers
from agent.kube.shared_pods import LabelledPod, SelectingPool, shared_pods

GATHER_SECONDS: Final = 0.1  # changes within this time are applied together
# Comparing the pods of 5,000 endpoints with the selectors of their namespace takes some 10 ms.
SHARED_PODS_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 5.0  # between two tries to find a cluster's configuration

# Who finds problems: those of one do not replace those of another.
KUBERNETES: Final = "kubernetes"  # `PoolConfig.source` of pools whose servers are pods
OBJECTIVES: Final = "objectives"
SHARED_PODS: Final = "shared-pods"
EXPORTERS: Final = "accelerator-exporters"


class ClusterObjects:
    """Follows the objects of the namespaces of all pools with an InferencePool. `pools` returns those by name."""

    name = "kube-objects"

    def __init__(
        self,
        config: Config,
        cluster: Cluster,
        tasks: Tasks,
        hook: Hook,
        recorder: EventRecorder,
        pools: Callable[[], Mapping[str, Pool]],
    ) -> None:
        self._config = config
        self._cluster = cluster
        self._tasks = tasks
        self._hook = hook
        self._recorder = recorder
        self._pools = pools
        self._problems = ObjectProblems(hook, recorder)
        self._rules: dict[str, RuleInformers] = {}
        self._following: dict[str, Task] = {}
        self._writing: Task | None = None
        self._acceptances: dict[str, tuple[Acceptance, ...]] = {}  # by namespace
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._stopped = False
        self._own_namespace = ""

    # -- component -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to follow what the configuration needs; nothing connects to a cluster where it needs none."""
        self._stopped = False
        self._follow()

    async def apply(self, config: Config) -> None:
        """Other pools, other namespaces, or Events switched on or off."""
        kept = {(each.name, self._ref(each)) for each in config.pools}
        for settings in self._config.pools:
            ref = self._ref(settings)
            if (settings.name, ref) not in kept:
                if ref is not None:
                    self._recorder.forget(_reporter(settings.name), ref)
                for source in (SHARED_PODS, EXPORTERS):
                    self._problems.forget(source, _plain(settings.name))
        self._config = config
        self._follow()
        self._rules_changed()
        self.endpoints_changed()

    def readiness(self) -> list[str]:
        """Always ready: requests are picked without these objects."""
        return []

    async def stop(self, grace: float) -> None:
        """Follow and write nothing more."""
        self._stopped = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for task in (*self._following.values(), *([self._writing] if self._writing else ())):
            task.cancel()
        self._following.clear()
        self._rules.clear()
        self._writing = None

    # -- what others report --------------------------------------------------------------------------------------------

    def source_changed(self, pool: str, problems: Sequence[ObjectProblem]) -> None:
        """What is wrong with the source of a pool's endpoints; the pool has logged and counted it. An Event waits for
        the InferencePools of the namespace: `kubectl describe` selects Events by the uid of their object."""
        ref = next((self._ref(each) for each in self._config.pools if each.name == pool), None)
        rules = None if ref is None else self._rules.get(ref.namespace)
        names = None if rules is None else rules.pool_names()
        if ref is None or names is None:
            return
        if ref.name in names or all(problem.reason == POOL_NOT_FOUND for problem in problems):
            self._recorder.set_problems(_reporter(pool), self._with_uid(ref), problems)

    def exporters_changed(self, pool: str, problems: Sequence[ObjectProblem]) -> None:
        """What is wrong with the exporters of a pool's accelerators."""
        settings = next((each for each in self._config.pools if each.name == pool), None)
        if settings is not None:
            self._report_of_pool(EXPORTERS, settings, problems)

    def endpoints_changed(self) -> None:
        """The endpoints of some pool have changed."""
        if any(settings.source == KUBERNETES for settings in self._config.pools):
            self._later(SHARED_PODS, SHARED_PODS_SECONDS, self._compare_pods)

    # -- within --------------------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Follow the namespaces of the present configuration, and write where it has something to write about."""
        self._recorder.enabled = self._config.kubernetes.events
        in_cluster = any(each.source == KUBERNETES for each in self._config.pools)
        if in_cluster and self._writing is None:
            self._writing = self._tasks.run("kubernetes-events", self._recorder.run)
        self._recorder.wake()
        namespaces = {ref.namespace for ref in self._refs(self._config)}
        for namespace in self._following.keys() - namespaces:
            self._following.pop(namespace).cancel()
            self._rules.pop(namespace, None)
            self._acceptances.pop(namespace, None)
        for namespace in namespaces - self._following.keys():
            run = partial(self._run, namespace)
            self._following[namespace] = self._tasks.run(f"{OBJECTIVES}/{namespace}", run)

    async def _run(self, namespace: str) -> None:
        while True:
            try:
                client = await self._cluster.connect()
                break
            except NoCluster:  # discovery says so
                await asyncio.sleep(RETRY_SECONDS)
        rules = self._rules[namespace] = RuleInformers(self._cluster, client, namespace, self._rules_changed)
        await rules.run()

    def _rules_changed(self) -> None:
        self._later(OBJECTIVES, GATHER_SECONDS, self._apply_rules)

    def _later(self, name: str, seconds: float, call: Callable[[], None]) -> None:
        """Call it once after so many seconds, however often it is requested meanwhile."""

        def run() -> None:
            del self._timers[name]
            try:
                call()
            except Exception as error:  # noqa: BLE001  a defect here must not go unnoticed; the next change calls again
                self._hook(TaskFailed(f"{self.name}/{name}", repr(error), 0.0))

        if name not in self._timers and not self._stopped:
            self._timers[name] = asyncio.get_running_loop().call_later(seconds, run)

    def _apply_rules(self) -> None:
        """Hand the objectives to the pools, and what became of the objects to the recorder."""
        by_key = self._by_key()
        for namespace, rules in self._rules.items():
            objects, names = rules.objects(), rules.pool_names()
            if objects is None:
                continue
            self._problems.report(OBJECTIVES, ObjectRef("", "Namespace", "", namespace), rules.problems())
            served = [key for key in by_key if key[0] == namespace]
            merged = merge(served, {} if names is None else {namespace: names}, objects)
            self._acceptances[namespace] = merged.acceptances
            for key in served:
                for pool in by_key[key]:
                    pool.set_objectives(merged.pools[key])
        acceptances = [acceptance for found in self._acceptances.values() for acceptance in found]
        self._recorder.set_acceptances(acceptances)
        known = {acceptance.object.ref.anonymous for acceptance in acceptances}
        for acceptance in acceptances:
            problems = () if acceptance.problem is None else (acceptance.problem,)
            self._problems.report(OBJECTIVES, acceptance.object.ref, problems)
        for ref in self._problems.of_source(OBJECTIVES):
            gone_namespace = ref.kind == "Namespace" and ref.name not in self._rules
            if gone_namespace or (ref.kind != "Namespace" and ref not in known):
                self._problems.forget(OBJECTIVES, ref)
        for name, pool in self._pools().items():  # an InferencePool was created, or created again: its uid is known
            if pool.source is not None:
                self.source_changed(name, pool.source.problems)
        self.endpoints_changed()

    def _compare_pods(self) -> None:
        """Report the pods that several pools select."""
        pools: dict[str, SelectingPool] = {}
        refs: dict[str, ObjectRef] = {}
        for settings in self._config.pools:
            namespace = self._namespace(settings)
            if settings.selector and namespace:
                ref = _plain(settings.name)
                pools[str(ref)] = SelectingPool(str(ref), namespace, dict(settings.selector))
                refs[str(ref)] = ref
        for namespace, rules in self._rules.items():
            for name, found in (rules.pools() or {}).items():
                ref = ObjectRef(f"{POOL_GROUP}/v1", POOL_KIND, namespace, name, found.metadata.uid)
                pools[str(ref)] = SelectingPool(str(ref), namespace, found.spec.selector.match_labels)
                refs[str(ref)] = ref
        counts = Counter(pool.namespace for pool in pools.values())
        several = {namespace for namespace, count in counts.items() if count > 1}
        shared = shared_pods(pools.values(), self._pods_in(several)) if several else {}
        served: set[str] = set()
        for settings in self._config.pools:
            name = str(self._ref(settings) or _plain(settings.name))
            served.add(name)
            self._report_of_pool(SHARED_PODS, settings, [shared[name]] if name in shared else ())
        for name, ref in refs.items():
            if name not in served:
                self._problems.report(SHARED_PODS, ref, [shared[name]] if name in shared else ())
        for ref in self._problems.of_source(SHARED_PODS):
            if str(ref) not in refs or str(ref) in served:
                self._problems.forget(SHARED_PODS, ref)

    def _report_of_pool(self, found_by: str, settings: PoolConfig, problems: Sequence[ObjectProblem]) -> None:
        """Report about a pool of the agent: as problems of its source, where that is the cluster."""
        pool = self._pools().get(settings.name)
        if settings.source == KUBERNETES and pool is not None:
            pool.set_problems(found_by, problems)
        else:
            self._problems.report(found_by, _plain(settings.name), problems)

    def _pods_in(self, namespaces: Collection[str]) -> Iterator[LabelledPod]:
        """The pods of these namespaces behind the endpoints of all pools, each once."""
        seen: set[str] = set()
        for pool in self._pools().values():
            for endpoint in pool.endpoints.values():
                namespace, _, name = endpoint.pod.rpartition("/")
                if namespace in namespaces and endpoint.pod not in seen:
                    seen.add(endpoint.pod)
                    yield LabelledPod(namespace, name, dict(endpoint.labels))

    def _by_key(self) -> dict[Key, list[Pool]]:
        """The pools of the agent by their InferencePool."""
        found: dict[Key, list[Pool]] = {}
        known = self._pools()
        for settings in self._config.pools:
            ref = self._ref(settings)
            if ref is not None and settings.name in known:
                found.setdefault((ref.namespace, ref.name), []).append(known[settings.name])
        return found

    def _refs(self, config: Config) -> set[ObjectRef]:
        return {ref for settings in config.pools if (ref := self._ref(settings)) is not None}

    def _ref(self, settings: PoolConfig) -> ObjectRef | None:
        """The InferencePool of a pool, if it has one."""
        namespace = self._namespace(settings)
        if not settings.inference_pool or not namespace:
            return None
        return ObjectRef(f"{POOL_GROUP}/v1", POOL_KIND, namespace, settings.inference_pool)

    def _with_uid(self, ref: ObjectRef) -> ObjectRef:
        rules = self._rules.get(ref.namespace)
        found = ((rules.pools() if rules else None) or {}).get(ref.name)
        return ref if found is None else ref._replace(uid=found.metadata.uid)

    def _namespace(self, settings: PoolConfig) -> str:
        """The namespace of a pool's objects; empty outside a cluster where none is configured."""
        configured = settings.namespace or self._config.kubernetes.namespace
        if not configured and not self._own_namespace:
            with contextlib.suppress(NoCluster):
                self._own_namespace = own_namespace()
        return configured or self._own_namespace


def _reporter(pool: str) -> str:
    """Who reports about an InferencePool: two pools of the configuration may have the same."""
    return f"pool/{pool}"


def _plain(pool: str) -> ObjectRef:
    """A pool of the configuration that is no object of the API server."""
    return ObjectRef("", "Pool", "", pool)
