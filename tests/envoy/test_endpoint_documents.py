"""The file of a pool's endpoints: the same text for the same addresses, and readable by Envoy."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from agent.config.addresses import join_address, split_address
from agent.envoy.endpoints import addresses_of, document, file_name, host_and_port

hosts = st.ip_addresses().map(str)
some = st.lists(st.tuples(hosts, st.integers(1, 65535)).map(lambda pair: join_address(*pair)), max_size=8, unique=True)


@given(addresses=some, data=st.data())
def test_the_text_is_the_same_for_every_order_and_reads_back(addresses: list[str], data: st.DataObject) -> None:
    text = document("pool", addresses)
    assert document("pool", data.draw(st.permutations(addresses))) == text
    assert addresses_of(text) == frozenset(addresses)


@given(
    text=st.text()
    | st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["resources", "endpoints", "lb_endpoints", "endpoint", "address"]) | st.text(), inner
            )
        ),
    ).map(json.dumps)
)
def test_any_other_text_has_no_addresses(text: str) -> None:
    assert addresses_of(text) == frozenset()


def test_text_that_is_nested_too_deep_has_no_addresses() -> None:
    assert addresses_of("[" * 100_000) == frozenset()


@given(host=hosts, port=st.integers(0, 65535))
def test_an_address_is_split_as_the_configuration_splits_it(host: str, port: int) -> None:
    text = join_address(host, port)
    assert host_and_port(text) == split_address(text)


def test_the_name_of_a_file_is_the_pools_with_the_end_that_envoy_knows() -> None:
    assert file_name("chat") == "chat.eds.json"
