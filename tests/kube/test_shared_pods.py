"""Pods that several pools select are named at each of the pools."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.kube.shared_pods import LabelledPod, SelectingPool, shared_pods

LLAMA = SelectingPool("InferencePool ns/llama", "ns", {"app": "llama"})
GPU = SelectingPool("InferencePool ns/gpu", "ns", {"tier": "gpu"})
BOTH = LabelledPod("ns", "a", {"app": "llama", "tier": "gpu"})


def test_both_pools_name_the_pod_the_other_pool_and_the_remedy() -> None:
    found = shared_pods([LLAMA, GPU], [BOTH, LabelledPod("ns", "b", {"app": "llama"})])
    assert {owner: problem.reason for owner, problem in found.items()} == {
        LLAMA.source: "PodInTwoPools",
        GPU.source: "PodInTwoPools",
    }
    assert found[LLAMA.source].message == (
        "InferencePool ns/llama and InferencePool ns/gpu both select pod ns/a; change the selector of one of the "
        "pools, or the labels of the pod"
    )
    assert "InferencePool ns/gpu and InferencePool ns/llama both" in found[GPU.source].message


def test_many_shared_pods_are_one_problem_with_their_number() -> None:
    found = shared_pods([LLAMA, GPU], [BOTH._replace(name=name) for name in "cab"])
    assert "pod ns/a, and 2 more pods" in found[LLAMA.source].message


def test_pools_of_two_namespaces_share_no_pod() -> None:
    assert shared_pods([LLAMA, GPU._replace(namespace="other")], [BOTH]) == {}


labels = st.dictionaries(st.sampled_from("xy"), st.sampled_from("12"))
pools = st.lists(st.builds(SelectingPool, st.sampled_from("ABC"), st.sampled_from(["n", "m"]), labels), max_size=3)
pods = st.lists(
    st.builds(LabelledPod, st.sampled_from(["n", "m"]), st.sampled_from("pqr"), labels),
    unique_by=lambda pod: (pod.namespace, pod.name),
)


@given(pools, pods)
def test_a_pool_has_the_problem_exactly_when_another_pool_selects_one_of_its_pods(
    pools: list[SelectingPool], pods: list[LabelledPod]
) -> None:
    found = shared_pods(pools, pods)
    expected = {
        one.source
        for pod in pods
        for one in pools
        for other in pools
        if one.source != other.source and one.selects(pod) and other.selects(pod)
    }
    assert found.keys() == expected
    assert found == shared_pods(reversed(pools), reversed(pods))
