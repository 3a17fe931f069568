"""The sections `extProc.tls` and `admin.tls`, and what the rendered Envoy needs for them."""

from __future__ import annotations

import pytest

from agent.app.vocabulary import VOCABULARY
from agent.config import parse
from agent.config.config import Config
from agent.config.nodes import BadConfig

POOL = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\npools: [{endpoints: ['a:1']}]\n"


def read(more: str) -> Config:
    return parse(POOL + more, "x", VOCABULARY)


def test_without_a_certificate_the_ports_speak_plaintext():
    config = read("")
    assert not config.ext_proc.tls.enabled
    assert not config.admin.tls.enabled


def test_both_ports_have_the_same_options():
    text = "{certFile: c.pem, keyFile: c.key, clientCaFile: ca.pem, clientCertificate: optional, minVersion: TLSv1.3}"
    config = read(f"extProc: {{tls: {text}}}\nadmin: {{tls: {text}}}")
    assert config.ext_proc.tls == config.admin.tls
    assert config.admin.tls.enabled
    assert (config.admin.tls.client_certificate, config.admin.tls.min_version) == ("optional", "TLSv1.3")
    assert read("admin: {tls: {selfSigned: true}}").admin.tls.enabled


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ("extProc: {tls: {certFile: c.pem}}", "extProc.tls.certFile: needs keyFile; add it"),
        ("admin: {tls: {keyFile: c.key}}", "admin.tls.keyFile: needs certFile; add it"),
        (
            "admin: {tls: {selfSigned: true, certFile: c.pem, keyFile: c.key}}",
            "admin.tls.selfSigned: the certificate is that of certFile already; remove one of the two",
        ),
        (
            "extProc: {tls: {clientCaFile: ca.pem}}",
            "extProc.tls.clientCaFile: has no effect without a certificate; write certFile and keyFile, or selfSigned",
        ),
        ("extProc: {tls: {minVersion: TLSv1.3}}", "extProc.tls.minVersion: has no effect without a certificate"),
        ("extProc: {tls: {selfSigned: true, minVersion: TLSv1.1}}", "'TLSv1.1' is not valid; did you mean 'TLSv1."),
        ("extProc: {tls: {selfSigned: true, minVersion: 1.2}}", "'1.2' is not valid"),
        ("envoy: {pickerCaFile: ca.pem}", "envoy.pickerCaFile: has no effect without extProc.tls"),
        (
            "extProc: {tls: {selfSigned: true}}\nenvoy: {pickerKeyFile: c.key}",
            "envoy.pickerKeyFile: needs pickerCertFile; add it",
        ),
    ],
)
def test_options_that_do_not_fit_together_are_refused_with_what_to_write(more: str, problem: str):
    with pytest.raises(BadConfig) as bad:
        read(more)
    assert problem in "\n".join(bad.value.lines())
