"""How a pool's servers are reached: what is read, and what cannot be."""

from __future__ import annotations

import pytest

from agent.app.vocabulary import WORDS
from agent.config import BadConfig, Reach, parse

HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\npools:\n- endpoints: [127.0.0.1:1]\n"


def reach(said: str) -> Reach:
    return parse(f"{HEAD}  scrape: {{{said}}}\n", "x", WORDS).pools[0].reach


def test_a_pool_is_reached_plainly_where_nothing_is_said() -> None:
    assert parse(HEAD, "x", WORDS).pools[0].reach == Reach()
    assert (Reach().scheme, Reach().health_path) == ("http", None)


def test_all_that_can_be_said_is_read() -> None:
    said = (
        "scheme: https, caFile: /ca.pem, certFile: c.pem, keyFile: c.key, serverName: VLLM.example, tokenFile: /t, "
        "metricsPort: 9100, metricsPath: /m, healthPort: 81, healthPath: none"
    )
    assert reach(said) == Reach(
        "https", "/ca.pem", "c.pem", "c.key", "vllm.example", insecure_skip_verify=False, token_file="/t",
        metrics_port=9100, metrics_path="/m", health_port=81, health_path="",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        ("caFile: /ca.pem", "caFile: has no meaning over http; write scheme: https, or remove it"),
        ("insecureSkipVerify: true", "insecureSkipVerify: has no meaning over http"),
        ("scheme: https, certFile: c.pem", "certFile: stands alone; write keyFile beside it"),
        ("scheme: https, keyFile: c.key", "keyFile: stands alone; write certFile beside it"),
        ("scheme: https, insecureSkipVerify: true, caFile: x", "caFile: nothing is verified with insecureSkipVerify"),
        ("scheme: ftp", "scheme: 'ftp' is not known here; valid are: http, https"),
        ("healthPath: health", "healthPath: 'health' is not a path"),
        ("metricsPort: 70000", "metricsPort: 70000 is out of range"),
        ("scheme: https, serverName: 'a:b:c'", "serverName: 'a:b:c' is no host; write a name such as vllm.example"),
        ("tokenFile: []", "tokenFile: a list is no file; write its path"),
        ("tokenfile: /t", "tokenfile: unknown key; did you mean 'tokenFile'?"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_write(said: str, complaint: str) -> None:
    with pytest.raises(BadConfig) as bad:
        reach(said)
    assert f"pools[0].scrape.{complaint}" in "\n".join(bad.value.lines())
