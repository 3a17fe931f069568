"""From pods to endpoints: who is a destination, the ranks of a pod, and what is wrong with a selection."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agent.engine_specs import ENGINE_LABELS
from agent.kube.objects import Key, PodView, Workload, ports_of
from agent.kube.pool_endpoints import PodEndpoints, PoolSelection, SelectedEndpoints, endpoints_of

POOL = PoolSelection("InferencePool ns/llama", "ns", {"app": "llama"}, (8000,))


def a_pod(name: str = "a", **more: Any) -> PodView:
    fields: dict[str, Any] = {
        "namespace": "ns",
        "name": name,
        "uid": f"uid-{name}",
        "ip": f"10.0.0.{ord(name[0]) - 96}",
        "node": "n1",
        "ready": True,
        "terminating": False,
        "labels": {"app": "llama"},
        "declared_ports": frozenset(),
        "active_ports": None,
    }
    return PodView(**{**fields, **more})


def select(*pods: PodView, pool: PoolSelection = POOL) -> SelectedEndpoints:
    return endpoints_of(pool, pods, "vllm", ENGINE_LABELS, frozenset({"vllm", "sglang"}))


def reasons(found: SelectedEndpoints) -> list[str]:
    return [problem.reason for problem in found.problems]


def test_a_ready_pod_with_the_labels_is_an_endpoint_with_its_node_pod_and_uid() -> None:
    found = select(a_pod())
    (endpoint,) = found.endpoints.values()
    assert (endpoint.address, endpoint.engine, endpoint.node, endpoint.pod) == ("10.0.0.1:8000", "vllm", "n1", "ns/a")
    assert found.uids == {"10.0.0.1:8000": "uid-a"}
    assert found.problems == ()


def test_pods_that_are_no_destination_have_no_endpoint() -> None:
    assert not select(a_pod(ready=False)).endpoints
    assert not select(a_pod(ip="")).endpoints
    assert not select(a_pod(terminating=True)).endpoints
    assert not select(a_pod(labels={"app": "llama", "llm-d.ai/role": "prefill"})).endpoints
    assert not select(a_pod(namespace="other")).endpoints
    assert not select(a_pod(labels={"app": "gemma"})).endpoints
    assert select(a_pod(labels={"app": "llama", "llm-d.ai/role": "decode"})).endpoints
    assert select(a_pod(labels={"app": "llama", "llm-d.ai/role": "both"})).endpoints


def test_several_target_ports_are_ranks_which_the_annotation_limits() -> None:
    pool = POOL._replace(target_ports=(8000, 8001, 8002))
    pods = (a_pod("a"), a_pod("b", active_ports=frozenset({8001})))
    assert list(select(*pods, pool=pool).endpoints) == [
        "10.0.0.1:8000",
        "10.0.0.1:8001",
        "10.0.0.1:8002",
        "10.0.0.2:8001",
    ]
    none = select(a_pod("a", active_ports=frozenset({1})), pool=pool)
    assert (none.endpoints, reasons(none)) == ({}, ["NoActivePort"])


def test_an_ipv6_pod_has_brackets_and_a_label_names_the_engine() -> None:
    (endpoint,) = select(a_pod(ip="fd00::1", labels={"app": "llama", ENGINE_LABELS[0]: "sglang"})).endpoints.values()
    assert (endpoint.address, endpoint.engine) == ("[fd00::1]:8000", "sglang")


def test_an_unknown_engine_is_named_and_the_pools_engine_is_used() -> None:
    found = select(a_pod(labels={"app": "llama", ENGINE_LABELS[0]: "vlm"}))
    assert [endpoint.engine for endpoint in found.endpoints.values()] == ["vllm"]
    assert reasons(found) == ["UnknownEngine"]
    assert "ns/a names the engine 'vlm'" in found.problems[0].message


def test_a_selector_that_matches_nothing_is_named_with_its_labels() -> None:
    found = select(a_pod(labels={"app": "gemma"}))
    assert reasons(found) == ["NoMatchingPods"]
    assert "app=llama" in found.problems[0].message
    assert "InferencePool ns/llama" in found.problems[0].message


def test_a_pool_whose_pods_are_not_ready_says_so() -> None:
    assert reasons(select(a_pod(ready=False))) == ["NoReadyPods"]


def test_a_target_port_that_no_container_declares_is_named_and_used() -> None:
    found = select(a_pod(declared_ports=frozenset({9000})))
    assert (list(found.endpoints), reasons(found)) == (["10.0.0.1:8000"], ["TargetPortNotDeclared"])
    assert reasons(select(a_pod(declared_ports=frozenset({8000, 9000})))) == []


def test_ports_of_an_annotation_are_read_as_far_as_they_are_ports() -> None:
    assert ports_of("8000, 8001,x,,0,70000,-1,８０") == {8000, 8001}


pods = st.lists(
    st.builds(
        a_pod,
        st.sampled_from("abcdef"),
        ready=st.booleans(),
        terminating=st.booleans(),
        ip=st.sampled_from(["", "10.0.0.1", "10.0.0.2", "fd00::1"]),
        labels=st.sampled_from([{"app": "llama"}, {"app": "llama", "llm-d.ai/role": "prefill"}, {}]),
        active_ports=st.sampled_from([None, frozenset(), frozenset({8001})]),
    ),
    max_size=6,
)


@given(pods=pods, ports=st.sampled_from([(8000,), (8000, 8001)]))
def test_every_endpoint_belongs_to_a_destination_and_the_order_of_pods_does_not_matter(
    pods: list[PodView], ports: tuple[int, ...]
) -> None:
    pool = POOL._replace(target_ports=ports)
    pods = list({pod.key: pod for pod in pods}.values())
    found = select(*pods, pool=pool)
    assert found == select(*reversed(pods), pool=pool)
    alive = {f"ns/{pod.name}" for pod in pods if pod.ready and pod.ip and not pod.terminating}
    assert {endpoint.pod for endpoint in found.endpoints.values()} <= alive
    assert found.uids.keys() == found.endpoints.keys()
    assert bool(found.endpoints) or bool(found.problems)


any_pod = st.builds(
    lambda name, ip, ready, ports, app: a_pod(
        name, ip=ip, ready=ready, active_ports=ports, labels={"app": app}, uid=f"uid-{name}-{ip}"
    ),
    st.sampled_from("abcd"),
    st.sampled_from(["10.0.0.1", "10.0.0.2", ""]),
    st.booleans(),
    st.sampled_from([None, frozenset({8001}), frozenset({1})]),
    st.sampled_from(["llama", "gemma"]),
)


@given(st.lists(st.tuples(any_pod, st.booleans()), max_size=30))
def test_endpoints_that_are_kept_pod_by_pod_are_those_of_all_pods_at_once(changes: list[tuple[PodView, bool]]) -> None:
    pool = POOL._replace(target_ports=(8000, 8001))
    kept = PodEndpoints(pool, "vllm", ENGINE_LABELS, frozenset({"vllm"}))
    now: dict[Key, PodView] = {}
    for pod, deleted in changes:
        if deleted:
            now.pop(pod.key, None)
        else:
            now[pod.key] = pod
        kept.update(pod.key, now.get(pod.key))
        assert kept.selected() == endpoints_of(pool, now.values(), "vllm", ENGINE_LABELS, frozenset({"vllm"}))


def test_of_two_pods_with_one_address_the_last_by_name_counts_until_it_is_gone() -> None:
    kept = PodEndpoints(POOL, "vllm", ENGINE_LABELS, frozenset({"vllm"}))
    for name in "ba":
        kept.update(("ns", name), a_pod(name, ip="10.0.0.9"))
    assert kept.selected().uids == {"10.0.0.9:8000": "uid-b"}
    kept.update(("ns", "b"), None)
    assert kept.selected().uids == {"10.0.0.9:8000": "uid-a"}


def test_a_pool_has_the_workloads_of_its_pods_ready_or_not_and_remembers_one_that_is_scaled_to_zero() -> None:
    one, other = Workload("Deployment", "one"), Workload("Deployment", "other")
    pods = PodEndpoints(POOL, "vllm", ENGINE_LABELS, frozenset({"vllm"}))
    pods.update(("ns", "a"), a_pod("a", workloads=(one,)))
    pods.update(("ns", "b"), a_pod("b", workloads=(other,), ready=False))
    assert pods.selected().workloads == {one, other}
    pods.update(("ns", "b"), None)
    assert pods.selected().workloads == {one}
    pods.update(("ns", "a"), None)
    assert pods.selected().workloads == {one}
    pods.update(("ns", "b"), a_pod("b", workloads=(other,)))
    assert pods.selected().workloads == {other}
    pods.update(("ns", "c"), a_pod("c", labels={"app": "gemma"}, workloads=(one,)))
    assert pods.selected().workloads == {other}
