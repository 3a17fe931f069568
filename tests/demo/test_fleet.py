"""Where the demo listens, and what its Envoy is told."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import yaml

from agent.demo.fleet import HOST, CannotStart, Ports, envoy_settings
from agent.envoy.render import bootstrap

DEPLOYED = Path(__file__).resolve().parents[2] / "deploy" / "envoy" / "demo.yaml"
DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "demo.md"


def everything(ports: Ports) -> list[int]:
    return [port for _, port in ports.named(with_servers=True)]


def test_the_configuration_that_is_deployed_is_the_one_that_the_demo_uses() -> None:
    ports = Ports()
    ours = bootstrap(envoy_settings(ports, [f"{HOST}:{port}" for port in ports.servers]))
    assert yaml.safe_load(DEPLOYED.read_text(encoding="utf-8")) == ours


def test_the_default_ports_are_all_different_and_documented() -> None:
    ports = everything(Ports())
    assert len(set(ports)) == len(ports) == 9
    text = DOCUMENT.read_text(encoding="utf-8")
    for port in ports:
        assert f"| {port}" in text or 8001 <= port <= 8004


def test_a_base_moves_all_ports_to_nine_in_a_row() -> None:
    assert sorted(everything(Ports.base(20_000))) == list(range(20_000, 20_009))


@pytest.mark.parametrize("base", [-1, 65_530])
def test_a_base_without_room_for_nine_ports_is_refused(base: int) -> None:
    with pytest.raises(CannotStart, match=f"--port-base {base}"):
        Ports.base(base)


def test_free_ports_are_free_and_different() -> None:
    ports = Ports.base(0)
    assert len(set(everything(ports))) == 9
    ports.check(with_servers=True)


def test_every_taken_port_is_named_and_what_to_do() -> None:
    ports = Ports.base(0)
    with socket.socket() as one, socket.socket() as other:
        one.bind((HOST, ports.picker))
        other.bind((HOST, ports.servers[2]))
        one.listen()
        other.listen()
        with pytest.raises(CannotStart) as refused:
            ports.check(with_servers=True)
        with pytest.raises(CannotStart, match=r"^Envoy's listener with the picker 127.0.0.1:\d+ is in use"):
            ports.check(with_servers=False)
    said = str(refused.value)
    assert f"Envoy's listener with the picker {HOST}:{ports.picker}, " in said
    assert f"emulated server 3 {HOST}:{ports.servers[2]} are in use" in said
    assert "--port-base" in said
