"""`/v1/scaling`: the demand with everything that determined it; valid by the schema whatever it contains."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agent.scaling.demand_gauges import DemandReport
from agent.scaling.learnt_capacity import UNKNOWN_CAPACITY, Capacity
from agent.serve.state import documents, scaling_documents
from agent.serve.state.moment import Moment
from tests.fakes.demands import SETTINGS, demand_report
from tests.fakes.schema import check


def document(*reports: DemandReport, now: float = 0.0) -> Any:
    made = json.loads(documents.encode(scaling_documents.scaling(reports, Moment(now, 1.7e9, now))))
    check(made, "Scaling")
    return made


def test_a_decision_has_its_number_its_needs_and_its_inputs():
    (pool,) = document(demand_report(), now=2.0)["pools"]
    assert (pool["replicas"], pool["driver"], pool["partial"], pool["withheld"]) == (5.0, "rate", False, "")
    assert pool["age_seconds"] == 2.0
    assert [need["name"] for need in pool["needs"]] == ["rate", "slots", "kv_cache", "backlog"]
    assert pool["inputs"]["capacity_source"] == "learnt"
    assert pool["inputs"]["capacity_age_seconds"] == 62.0
    assert pool["inputs"]["coverage"] == 1.0
    assert [each["seconds_ago"] for each in pool["past"]] == [17.0, 2.0]


def test_a_withheld_demand_has_its_reason_and_no_number():
    (pool,) = document(demand_report(replicas=None))["pools"]
    assert (pool["replicas"], pool["driver"], pool["withheld"]) == (None, "withheld", "never_known")
    assert pool["detail"]
    (pool,) = document(demand_report(), now=60.0)["pools"]
    assert (pool["replicas"], pool["withheld"]) == (None, "stale")


def test_a_pool_without_a_decision_is_listed():
    (pool,) = document(DemandReport("pool", SETTINGS, None))["pools"]
    assert (pool["inputs"], pool["past"], pool["withheld"]) == (None, [], "never_known")


@given(
    st.floats(0, 1e6),
    st.floats(0, 1),
    st.none() | st.floats(0, 1e6),
    st.none() | st.floats(1e-3, 1e5),
    st.lists(st.text(max_size=20), max_size=3),
)
def test_any_decision_is_valid_by_the_schema(replicas, seen, slots, capacity, peers):
    made = document(
        demand_report(
            "pool\ud800",
            replicas=replicas,
            ready=replicas,
            seen=replicas * seen,
            slots=slots,
            capacity=Capacity(capacity, "declared" if capacity else UNKNOWN_CAPACITY),
            expected=None,
            unknown_peers=tuple(peers),
        )
    )
    assert made["pools"][0]["inputs"]["current_replicas"] == replicas
