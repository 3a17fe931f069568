"""The section `metricsApi`: what is valid, and what each combination that is not valid is answered with."""

from __future__ import annotations

import pytest

from agent.app.vocabulary import VOCABULARY
from agent.config import parse
from agent.config.config import Config
from agent.config.nodes import BadConfig

HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\npools: [{endpoints: ['10.0.0.1:8000']}]\n"


def read(section: str) -> Config:
    return parse(f"{HEAD}metricsApi: {{{section}}}\n", "igw.yaml", VOCABULARY)


@pytest.mark.parametrize(
    "section",
    [
        "address: '0.0.0.0:6443'",
        "address: '0.0.0.0:6443', certFile: c.pem, keyFile: k.pem, maxAge: 5s, minCoverage: 0.5",
        "address: '127.0.0.1:6443', auth: none",
        "address: '0.0.0.0:6443', external: false",
        "address: '0.0.0.0:6443', service: igw-metrics",
    ],
)
def test_a_valid_section_is_read(section: str) -> None:
    assert read(section).metrics_api.enabled


def test_without_an_address_nothing_is_served() -> None:
    assert not parse(HEAD, "igw.yaml", VOCABULARY).metrics_api.enabled


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ("custom: true", "it has no effect without metricsApi.address; write where the API server reaches the agent"),
        ("address: '0.0.0.0:6443', custom: false, external: false", "both APIs are switched off; write custom: true"),
        ("address: '0.0.0.0:6443', certFile: c.pem", "it needs metricsApi.keyFile; write both, or none of them"),
        (
            "address: '0.0.0.0:6443', certFile: c.pem, keyFile: k.pem, service: igw",
            "metricsApi.certFile has the certificate; keep one of the two",
        ),
        ("address: '0.0.0.0:6443', auth: none", "0.0.0.0:6443 is not loopback, so that others could read the metrics"),
        ("address: '127.0.0.1:9002'", "127.0.0.1:9002 is also pools[0].extProcAddress; write another port"),
        ("address: '0.0.0.0:6443', minCoverage: 1.5", "metricsApi.minCoverage"),
        ("address: '0.0.0.0:6443', maxAge: 0s", "metricsApi.maxAge"),
    ],
)
def test_what_is_wrong_is_said_with_the_remedy(section: str, problem: str) -> None:
    with pytest.raises(BadConfig) as bad:
        read(section)
    assert problem in "\n".join(bad.value.lines())


def test_the_limits_of_values_apply_to_keda_without_the_metrics_apis() -> None:
    text = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nkeda: {address: '127.0.0.1:9800'}\n"
    limits = parse(f"{text}metricsApi: {{maxAge: 5s, minCoverage: 0.5}}\n", "igw.yaml").metrics_api
    assert (limits.max_age, limits.min_coverage) == (5.0, 0.5)
    with pytest.raises(BadConfig, match=r"metricsApi\.custom: it has no effect without metricsApi\.address"):
        parse(f"{text}metricsApi: {{maxAge: 5s, custom: true}}\n", "igw.yaml")
