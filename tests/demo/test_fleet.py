"""The ports of the demo, and the configuration of its Envoy."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import yaml

from agent.demo.fleet import HOST, FleetNotStarted, FleetPorts, envoy_config
from agent.envoy.render import bootstrap

DEPLOYED = Path(__file__).resolve().parents[2] / "deploy" / "envoy" / "demo.yaml"
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "reference" / "demo.md"


def all_ports(ports: FleetPorts) -> list[int]:
    return [port for _, port in ports.named(with_servers=True)]


def test_the_shipped_configuration_is_the_one_that_the_demo_uses() -> None:
    ports = FleetPorts()
    ours = bootstrap(envoy_config(ports, [f"{HOST}:{port}" for port in ports.servers]))
    assert yaml.safe_load(DEPLOYED.read_text(encoding="utf-8")) == ours


def test_the_default_ports_are_all_different_and_documented() -> None:
    ports = all_ports(FleetPorts())
    assert len(set(ports)) == len(ports) == 9
    text = DOCUMENT.read_text(encoding="utf-8")
    for port in ports:
        assert f"| {port}" in text or 8001 <= port <= 8004


def test_a_port_base_gives_nine_consecutive_ports() -> None:
    assert sorted(all_ports(FleetPorts.base(20_000))) == list(range(20_000, 20_009))


@pytest.mark.parametrize("base", [-1, 65_530])
def test_a_port_base_too_high_for_nine_ports_is_refused(base: int) -> None:
    with pytest.raises(FleetNotStarted, match=f"--port-base {base}"):
        FleetPorts.base(base)


def test_free_ports_are_free_and_different() -> None:
    ports = FleetPorts.base(0)
    assert len(set(all_ports(ports))) == 9
    ports.check(with_servers=True)


def test_every_port_in_use_is_named_with_a_remedy() -> None:
    ports = FleetPorts.base(0)
    with socket.socket() as first, socket.socket() as second:
        first.bind((HOST, ports.picker))
        second.bind((HOST, ports.servers[2]))
        first.listen()
        second.listen()
        with pytest.raises(FleetNotStarted) as refused:
            ports.check(with_servers=True)
        with pytest.raises(FleetNotStarted, match=r"^Envoy's listener with the picker 127.0.0.1:\d+ is in use"):
            ports.check(with_servers=False)
    message = str(refused.value)
    assert f"Envoy's listener with the picker {HOST}:{ports.picker}, " in message
    assert f"emulated server 3 {HOST}:{ports.servers[2]} are in use" in message
    assert "--port-base" in message
