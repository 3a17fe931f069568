"""Which pod is the accelerator exporter of a node."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.kube.exporter_pods import exporter_addresses
from agent.kube.objects import PodView


def a_pod(name: str, node: str = "n1", ip: str = "10.0.0.1", *, ready: bool = True, ending: bool = False) -> PodView:
    return PodView("gpu", name, f"uid-{name}", ip, node, ready, ending, {}, frozenset(), None)


def test_the_exporter_of_a_node_is_the_pod_there_at_the_configured_port() -> None:
    pods = [a_pod("a"), a_pod("b", "n2", "fd00::2")]
    assert exporter_addresses(pods, 9400) == {"n1": "10.0.0.1:9400", "n2": "[fd00::2]:9400"}


def test_a_pod_that_ends_or_has_no_address_or_no_node_is_no_exporter() -> None:
    assert exporter_addresses([a_pod("a", ending=True), a_pod("b", ip=""), a_pod("c", node="")], 9400) == {}


def test_of_two_pods_on_a_node_the_ready_one_counts_and_one_that_is_not_ready_is_better_than_none() -> None:
    old, new = a_pod("a", ready=False), a_pod("b", ip="10.0.0.2")
    assert exporter_addresses([old, new], 9400) == {"n1": "10.0.0.2:9400"}
    assert exporter_addresses([old], 9400) == {"n1": "10.0.0.1:9400"}


pods = st.lists(
    st.builds(
        a_pod,
        st.sampled_from("abcd"),
        st.sampled_from(["", "n1", "n2"]),
        st.sampled_from(["", "10.0.0.1", "10.0.0.2"]),
        ready=st.booleans(),
        ending=st.booleans(),
    ),
    unique_by=lambda pod: pod.name,
)


@given(pods)
def test_every_node_with_a_usable_pod_has_one_exporter_whatever_the_order(pods: list[PodView]) -> None:
    found = exporter_addresses(pods, 9400)
    assert found == exporter_addresses(reversed(pods), 9400)
    assert found.keys() == {pod.node for pod in pods if pod.node and pod.ip and not pod.terminating}
