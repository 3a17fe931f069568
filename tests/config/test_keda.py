"""The section `keda`: an address of its own, and TLS only with it."""

from __future__ import annotations

import pytest

from agent.app.vocabulary import VOCABULARY
from agent.config import parse
from agent.config.config import Config
from agent.config.nodes import BadConfig

HEAD = (
    "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nadmin: {address: '127.0.0.1:9090'}\n"
    "pools:\n- endpoints: ['127.0.0.1:8001']\n  extProcAddress: 127.0.0.1:9002\n"
)


def read(section: str) -> Config:
    return parse(f"{HEAD}{section}", "igw.yaml", VOCABULARY)


def test_without_an_address_there_is_no_external_scaler() -> None:
    assert not read("").keda.enabled
    assert read("keda: {address: '0.0.0.0:9800', tls: {selfSigned: true}}\n").keda.tls.enabled


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("keda: {tls: {selfSigned: true}}", "it has no effect without keda.address; write where KEDA finds the agent"),
        ("keda: {address: '127.0.0.1:9002'}", "127.0.0.1:9002 is also pools[0].extProcAddress, and the port for KEDA"),
        ("keda: {address: '0.0.0.0:9090'}", "0.0.0.0:9090 is also admin.address, and the port for KEDA is one of its"),
        ("keda: {address: '127.0.0.1:9800', tls: {certFile: c.pem}}", "keda.tls.certFile"),
        ("keda: {address: here}", "keda.address"),
    ],
)
def test_what_is_not_valid_is_refused_with_what_to_write(section: str, message: str) -> None:
    with pytest.raises(BadConfig) as refused:
        read(section)
    assert message in "\n".join(refused.value.lines())
