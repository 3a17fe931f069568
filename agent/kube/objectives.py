"""InferenceObjectives (the priority of requests that name one) and InferenceModelRewrites (the model that replaces the
one in a request): from the objects of both API groups to what applies to each pool, and what is wrong with each. Pure.

    objects of llm-d.ai                        pool -> objective -> priority
    objects of inference.networking.x-k8s.io   ---> merged ---> pool -> rules of rewrites, in order
    InferencePools of the namespace            object -> accepted, or its problem

* Both kinds moved from inference.networking.x-k8s.io to llm-d.ai. Where both groups have an object of the same kind,
  namespace and name, the one of llm-d.ai is used, whatever is in it; the other has no effect.
* `poolRef.group` is by default that of the object's own CRD: `llm-d.ai` in the new one, in which there is no
  InferencePool. It means the same pool as `inference.networking.k8s.io`.
* Of the rules of a pool, those for certain models come before those for all; then the rule of the oldest object comes
  first, of equally old ones by name, then the first within an object.
* The CRD binds an objective to no model. The annotation `llm-d.ai/models` of an InferenceObjective does: names of
  models, separated by commas. Of several objects that name a model, the oldest one has it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Final, NamedTuple

import msgspec
from msgspec import Meta, Raw, Struct

from agent.kube.objects import Key, ObjectMeta, ObjectRef
from agent.kube.pool_endpoints import ObjectProblem

POOL_GROUP: Final = "inference.networking.k8s.io"
POOL_KIND: Final = "InferencePool"
NEW_GROUP: Final = "llm-d.ai"
OLD_GROUP: Final = "inference.networking.x-k8s.io"
GROUPS: Final = (NEW_GROUP, OLD_GROUP)  # the first one wins
VERSION: Final = "v1alpha2"
OBJECTIVE: Final = "InferenceObjective"
REWRITE: Final = "InferenceModelRewrite"
PLURALS: Final[Mapping[str, str]] = {OBJECTIVE: "inferenceobjectives", REWRITE: "inferencemodelrewrites"}

ACCEPTED: Final = "Accepted"  # type of the condition, and its reason where the object is used
PENDING: Final = "Pending"
INVALID: Final = "InvalidObject"
POOL_MISSING: Final = "PoolNotFound"
INVALID_POOL_REF: Final = "InvalidPoolRef"
SUPERSEDED: Final = "Superseded"

MODELS: Final = "llm-d.ai/models"  # the annotation
_LISTED: Final = 5  # models in a message

_SAME_POOL_GROUPS: Final = (None, POOL_GROUP, NEW_GROUP)

_Int32 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]


class PoolRef(Struct, frozen=True, gc=False):
    """The pool to which an object belongs, in its own namespace."""

    name: str
    group: str | None = None
    kind: str | None = None


class _ObjectiveSpec(Struct, rename="camel", frozen=True, gc=False):
    pool_ref: PoolRef
    priority: _Int32 | None = None


class _Model(Struct, frozen=True, gc=False):
    value: str
    type: str = "Exact"


class _Match(Struct, frozen=True, gc=False):
    model: _Model


class _Target(Struct, rename="camel", frozen=True, gc=False):
    model_rewrite: str
    weight: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None


class _Rule(Struct, frozen=True, gc=False):
    targets: list[_Target] = []
    matches: list[_Match] | None = None


class _RewriteSpec(Struct, rename="camel", frozen=True, gc=False):
    pool_ref: PoolRef
    rules: list[_Rule]


class Condition(Struct, rename="camel", frozen=True, gc=False):
    """A condition in an object's status."""

    type: str
    status: str = ""
    reason: str = ""
    message: str = ""
    observed_generation: int = 0
    last_transition_time: str = ""


class _Status(Struct, frozen=True, gc=False):
    conditions: list[Condition] | None = None


class _Object(Struct, frozen=True, gc=False):
    metadata: ObjectMeta
    spec: Raw = Raw(b"{}")
    status: Raw = Raw(b"{}")


class RewriteTarget(NamedTuple):
    """A model that replaces the requested one, for its weight's part of the sum of the rule's weights."""

    model: str
    weight: int


class RewriteRule(NamedTuple):
    """Replaces the `models`, or every model where there are none. `source`: namespace and name of its object."""

    models: frozenset[str]
    targets: tuple[RewriteTarget, ...]
    source: Key


class RuleObject(NamedTuple):
    """One InferenceObjective or InferenceModelRewrite, as far as it matters. `problem` says what is wrong with it by
    itself, empty where nothing is; `priority` and `rules` are only used without one. `accepted` is the condition that
    its status has now; `deleting`: it has been deleted, and a finalizer keeps it. `models` are those to which the
    objective is bound."""

    ref: ObjectRef
    resource_version: str
    generation: int
    created: str
    pool: PoolRef | None
    priority: int
    rules: tuple[RewriteRule, ...]
    problem: str
    accepted: Condition | None
    deleting: bool = False
    models: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        """Namespace and name."""
        return self.ref.namespace, self.ref.name

    @property
    def group(self) -> str:
        """Its API group."""
        return self.ref.api_version.partition("/")[0]


_OBJECTS: Final = msgspec.json.Decoder(_Object)
_STATUS: Final = msgspec.json.Decoder(_Status)
_OBJECTIVES: Final = msgspec.json.Decoder(_ObjectiveSpec)
_REWRITES: Final = msgspec.json.Decoder(_RewriteSpec)


def decode(group: str, kind: str, raw: Raw) -> RuleObject:
    """An object of `kind` from its JSON. One whose spec cannot be used is an object with a problem; `ValidationError`
    is raised only for one without metadata."""
    found = _OBJECTS.decode(raw)
    meta = found.metadata
    ref = ObjectRef(f"{group}/{VERSION}", kind, meta.namespace, meta.name, meta.uid)
    pool: PoolRef | None = None
    priority, problem = 0, ""
    rules: tuple[RewriteRule, ...] = ()
    try:
        if kind == OBJECTIVE:
            objective = _OBJECTIVES.decode(found.spec)
            pool, priority = objective.pool_ref, objective.priority or 0
        else:
            rewrite = _REWRITES.decode(found.spec)
            pool = rewrite.pool_ref
            rules = tuple(_rule(index, rule, (meta.namespace, meta.name)) for index, rule in enumerate(rewrite.rules))
    except msgspec.ValidationError as error:
        problem = str(error)
        pool = pool or _pool_of(found.spec)
    return RuleObject(
        ref,
        meta.resource_version,
        meta.generation,
        meta.creation_timestamp,
        pool,
        priority,
        rules,
        problem,
        _accepted(found.status),
        meta.deletion_timestamp is not None,
        _bound_models(meta) if kind == OBJECTIVE else (),
    )


def _bound_models(meta: ObjectMeta) -> tuple[str, ...]:
    """The models in the annotation, each once, in the order in which they are written."""
    text = (meta.annotations or {}).get(MODELS, "")
    return tuple(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))


class _OnlyPool(Struct, rename="camel", frozen=True, gc=False):
    pool_ref: PoolRef


def _pool_of(spec: Raw) -> PoolRef | None:
    """The pool of a spec that is otherwise invalid."""
    try:
        return msgspec.json.decode(spec, type=_OnlyPool).pool_ref
    except msgspec.ValidationError:
        return None


def _accepted(status: Raw) -> Condition | None:
    try:
        conditions = _STATUS.decode(status).conditions or ()
    except msgspec.ValidationError:  # written by someone else; it is replaced
        return None
    return next((each for each in conditions if each.type == ACCEPTED), None)


def _rule(index: int, rule: _Rule, source: Key) -> RewriteRule:
    """The rule. Raises ValidationError for what the schema of the CRD lets pass."""
    where = f"rules[{index}]"
    if not rule.targets:
        raise msgspec.ValidationError(f"{where} has no targets")
    weights = [target.weight for target in rule.targets if target.weight is not None]
    if weights and len(weights) < len(rule.targets):
        raise msgspec.ValidationError(f"{where}: some targets have a weight and others none")
    for match in rule.matches or ():
        if match.model.type != "Exact":
            raise msgspec.ValidationError(f"{where}: a match of the type {match.model.type!r}; Exact is the only one")
    targets = tuple(RewriteTarget(target.model_rewrite, target.weight or 1) for target in rule.targets)
    return RewriteRule(frozenset(match.model.value for match in rule.matches or ()), targets, source)


# -- what applies to a pool --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PoolObjectives:
    """What the objects of the API server say about the requests to a pool. `priorities` are by the name of the
    objective; `rewrites` are in the order in which they apply; `models` has the objective that a model is bound to."""

    priorities: Mapping[str, int] = field(default_factory=dict)
    rewrites: tuple[RewriteRule, ...] = ()
    models: Mapping[str, str] = field(default_factory=dict)

    def priority(self, objective: str) -> int | None:
        """The priority of requests that name this objective; None where there is no such objective."""
        return self.priorities.get(objective)

    def rewrite(self, model: str) -> RewriteRule | None:
        """The rule for requests of this model."""
        return next((rule for rule in self.rewrites if not rule.models or model in rule.models), None)


NO_OBJECTIVES: Final = PoolObjectives()


class Acceptance(NamedTuple):
    """What became of an object that concerns a pool of the agent: its problem, or None where it is used. `released`:
    the agent has nothing to do with it any more, although its condition has the problem that its pool is missing."""

    object: RuleObject
    problem: ObjectProblem | None
    released: bool = False


class Merged(NamedTuple):
    """What applies to each pool of the agent, and what became of each object that concerns one of them."""

    pools: Mapping[Key, PoolObjectives]
    acceptances: tuple[Acceptance, ...]


def merge(pools: Collection[Key], existing: Mapping[str, Collection[str]], objects: Iterable[RuleObject]) -> Merged:
    """`pools` are the InferencePools that the agent serves; `existing` has the names of all InferencePools of each
    namespace in which they are known: in another one, no pool counts as missing."""
    served = frozenset(pools)
    found = sorted((each for each in objects if not each.deleting), key=_order)
    winners = {(each.ref.kind, *each.key) for each in found if each.group == NEW_GROUP}
    acceptances: list[Acceptance] = []
    priorities: dict[Key, dict[str, int]] = {key: {} for key in served}
    rules: dict[Key, list[RewriteRule]] = {key: [] for key in served}
    models: dict[Key, dict[str, str]] = {key: {} for key in served}
    for each in found:
        acceptance = _acceptance(each, served, existing, winners)
        if acceptance is None:
            continue
        acceptances.append(acceptance)
        if acceptance.problem is None and not acceptance.released and each.pool is not None:
            pool = (each.ref.namespace, each.pool.name)
            if each.ref.kind == OBJECTIVE:
                priorities[pool][each.ref.name] = each.priority
                for model in each.models:
                    models[pool].setdefault(model, each.ref.name)  # the oldest object comes first
            else:
                rules[pool] += each.rules
    return Merged(
        {
            key: PoolObjectives(
                priorities[key],
                tuple(sorted(rules[key], key=lambda rule: not rule.models)),  # stable: older rules stay before others
                models[key],
            )
            for key in served
        },
        tuple(acceptances),
    )


def _order(each: RuleObject) -> tuple[str, str, Key, str]:
    """The oldest first. The timestamps of the API server have one form, which sorts by time."""
    return each.ref.kind, each.created, each.key, each.group


def _acceptance(
    each: RuleObject,
    served: frozenset[Key],
    existing: Mapping[str, Collection[str]],
    winners: Collection[tuple[str, str, str]],
) -> Acceptance | None:
    """None for an object that concerns no pool of the agent, and no pool that is missing."""
    pool, namespace = each.pool, each.ref.namespace
    if pool is None:  # its pool cannot be read, so no pool reports it
        return Acceptance(each, _invalid(each))
    concerns = (namespace, pool.name) in served
    refers = pool.group in _SAME_POOL_GROUPS and pool.kind in (None, POOL_KIND)
    missing = refers and namespace in existing and pool.name not in existing[namespace]
    if not concerns and not missing:
        released = refers and each.accepted is not None and each.accepted.reason == POOL_MISSING
        return Acceptance(each, None, released=True) if released else None
    if each.group != NEW_GROUP and (each.ref.kind, *each.key) in winners:
        return Acceptance(each, _superseded(each))
    if each.problem:
        return Acceptance(each, _invalid(each))
    if not refers:
        return Acceptance(each, _other_kind(each, pool))
    if missing:
        return Acceptance(each, _missing(each, pool))
    return Acceptance(each, None)


def _superseded(each: RuleObject) -> ObjectProblem:
    return ObjectProblem(
        SUPERSEDED,
        f"{each.ref} of {OLD_GROUP} has no effect: the {each.ref.kind} of {NEW_GROUP} with the same name is used; "
        "delete this one",
    )


def _invalid(each: RuleObject) -> ObjectProblem:
    return ObjectProblem(
        INVALID,
        f"{each.ref} has no effect: {each.problem}; correct its spec",
    )


def _other_kind(each: RuleObject, pool: PoolRef) -> ObjectProblem:
    what = "/".join(part for part in (pool.group, pool.kind, pool.name) if part)
    return ObjectProblem(
        INVALID_POOL_REF,
        f"{each.ref} has no effect: its poolRef is {what}, and the pool is an {POOL_KIND} of {POOL_GROUP}; correct "
        "group and kind of its poolRef",
    )


def _missing(each: RuleObject, pool: PoolRef) -> ObjectProblem:
    return ObjectProblem(
        POOL_MISSING,
        f"{each.ref} has no effect: {POOL_KIND} {each.ref.namespace}/{pool.name} does not exist; create it, or correct "
        "poolRef.name",
    )


def accepted_message(acceptance: Acceptance) -> str:
    """The message of the condition of an object that is used."""
    each = acceptance.object
    pool = f"{POOL_KIND} {each.ref.namespace}/{each.pool.name if each.pool else ''}"
    if each.ref.kind == OBJECTIVE:
        bound = f", and those for {_listed(each.models)} that name none," if each.models else ""
        return f"requests to {pool} that name it{bound} have the priority {each.priority}"
    return f"its {len(each.rules)} rules apply to requests to {pool}"


def _listed(models: Sequence[str]) -> str:
    """The first few of these names."""
    return ", ".join(models) if len(models) <= _LISTED else f"{', '.join(models[:_LISTED])} and others"
