"""The section `replicas`: what is required, and what each combination that is not valid is answered with."""

from __future__ import annotations

import pytest

from agent.app.vocabulary import VOCABULARY
from agent.config import parse
from agent.config.config import Config
from agent.config.nodes import BadConfig

HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\npools: [{endpoints: ['10.0.0.1:8000']}]\n"
TWO = "peers: ['127.0.0.1:9003', '127.0.0.2:9003']"


def read(section: str, more: str = "") -> Config:
    return parse(f"{HEAD}replicas: {{{section}}}\n{more}", "igw.yaml", VOCABULARY)


@pytest.mark.parametrize(
    "section",
    [
        f"address: '127.0.0.1:9003', {TWO}",
        f"address: 'localhost:9003', {TWO}",
        f"address: '0.0.0.0:9003', {TWO}, tokenFile: token",
        "address: '10.0.1.1:9003', service: 'igw.llm.svc:9003', caFile: ca.pem, certFile: c.pem, keyFile: c.key",
    ],
)
def test_a_valid_section_is_read(section: str) -> None:
    assert read(section).replicas.enabled


def test_without_the_section_the_agent_is_alone() -> None:
    assert not parse(HEAD, "igw.yaml", VOCABULARY).replicas.enabled


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        (TWO, "it has no effect without replicas.address; write where this agent serves its peers"),
        ("address: '127.0.0.1:9003'", "no replica is known; write replicas.peers: [HOST:PORT, ...]"),
        (f"address: '127.0.0.1:9003', {TWO}, service: 'igw.llm:9003'", "replicas.peers lists the replicas already"),
        (f"address: '0.0.0.0:9003', {TWO}", "0.0.0.0:9003 is not a loopback address, so others may report there"),
        (f"address: '10.0.1.1:9003', {TWO}", "write replicas.tokenFile: a file with a secret, or replicas.caFile"),
        (f"address: '127.0.0.1:9003', {TWO}, caFile: ca.pem", "write replicas.certFile, replicas.keyFile as well"),
        (f"address: '127.0.0.1:9003', {TWO}, serverName: igw.example", "it has no effect without TLS"),
        (f"address: '127.0.0.1:9002', {TWO}", "127.0.0.1:9002 is also pools[0].extProcAddress; write another port"),
        ("address: '127.0.0.1:9003', peers: ['a:1', 'a:1']", "'a:1' is listed twice; keep one"),
        ("address: '127.0.0.1:9003', peers: 'a:1'", "where a list is expected; write it as [10.0.1.1:9003"),
        (f"address: '127.0.0.1:9003', {TWO}, staleAfter: 100ms", "1.5s"),
    ],
)
def test_what_is_wrong_is_said_with_the_remedy(section: str, problem: str) -> None:
    with pytest.raises(BadConfig) as bad:
        read(section)
    assert problem in "\n".join(bad.value.lines())


def test_picker_hosts_are_hosts_without_ports() -> None:
    assert parse(f"{HEAD}envoy: {{pickerHosts: [10.0.1.1, IGW.example]}}", "x", VOCABULARY).envoy.picker_hosts == (
        "10.0.1.1",
        "igw.example",
    )
    with pytest.raises(BadConfig, match="is not a host"):
        parse(f"{HEAD}envoy: {{pickerHosts: ['10.0.1.1:9002']}}", "x", VOCABULARY)
