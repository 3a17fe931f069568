"""Durations, sizes and addresses are read with their units and parts, and written back as they were read."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.config.addresses import Address, join_address, split_address
from agent.config.nodes import ScalarNode
from agent.config.values import Duration, InvalidValue, Size, show_duration, show_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("50ms", 0.05), ("1s", 1), ("1.5s", 1.5), ("1m30s", 90), ("2h", 7200), ("1h0m1s", 3601), ("500ms", 0.5)],
)
def test_a_duration_is_read_with_its_unit(text: str, seconds: float) -> None:
    assert Duration(0, 1e9).read(ScalarNode(1, text)) == pytest.approx(seconds)


@given(st.integers(0, 10**7))
def test_a_shown_duration_is_read_back_as_it_was(milliseconds: int) -> None:
    seconds = milliseconds / 1000
    assert Duration(0, 1e9).read(ScalarNode(1, show_duration(seconds))) == pytest.approx(seconds, rel=1e-5)


@pytest.mark.parametrize(
    ("text", "size"),
    [("16MiB", 1 << 24), ("16Mi", 1 << 24), ("1.5KiB", 1536), ("500KB", 500_000), ("4096", 4096), ("1 GiB", 1 << 30)],
)
def test_a_size_is_read_with_its_unit(text: str, size: int) -> None:
    assert Size(0, 1 << 40).read(ScalarNode(1, text)) == size


@given(st.integers(0, 1 << 36))
def test_a_shown_size_is_read_back_as_it_was(size: int) -> None:
    shown = show_size(size)
    assert Size(0, 1 << 40).read(ScalarNode(1, shown)) == pytest.approx(size, rel=1e-5)


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)), st.integers(1, 65535))
def test_every_ip_address_is_read_as_it_is(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> None:
    text = join_address(str(address), port)
    host, found = split_address(Address().read(ScalarNode(1, text)))
    assert (ipaddress.ip_address(host), found) == (address, port)


@given(st.text(max_size=30))
def test_any_text_is_an_address_or_an_invalid_value(text: str) -> None:
    try:
        host, port = split_address(text)
    except InvalidValue as invalid:
        message = str(invalid)
        assert "; write " in message
    else:
        assert host
        assert 0 <= port <= 65535


def test_a_host_name_is_read_in_lower_case() -> None:
    assert Address().read(ScalarNode(1, "Model-Server.example:80")) == "model-server.example:80"
