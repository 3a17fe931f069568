"""`pools[].scrape`: what is read, and what is refused."""

from __future__ import annotations

import pytest

from agent.app.vocabulary import VOCABULARY
from agent.config import parse
from agent.config.nodes import BadConfig
from agent.config.pools import PoolScrapeConfig

HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\npools:\n- endpoints: [127.0.0.1:1]\n"


def pool_scrape(written: str) -> PoolScrapeConfig:
    return parse(f"{HEAD}  scrape: {{{written}}}\n", "x", VOCABULARY).pools[0].scrape


def test_without_options_servers_are_scraped_over_plain_http() -> None:
    assert parse(HEAD, "x", VOCABULARY).pools[0].scrape == PoolScrapeConfig()
    assert (PoolScrapeConfig().scheme, PoolScrapeConfig().health_path) == ("http", None)


def test_every_option_is_read() -> None:
    written = (
        "scheme: https, caFile: /ca.pem, certFile: c.pem, keyFile: c.key, serverName: VLLM.example, tokenFile: /t, "
        "metricsPort: 9100, metricsPath: /m, healthPort: 81, healthPath: none"
    )
    assert pool_scrape(written) == PoolScrapeConfig(
        "https", "/ca.pem", "c.pem", "c.key", "vllm.example", insecure_skip_verify=False, token_file="/t",
        metrics_port=9100, metrics_path="/m", health_port=81, health_path="",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("written", "complaint"),
    [
        ("caFile: /ca.pem", "caFile: has no effect with scheme http; write scheme: https, or remove it"),
        ("insecureSkipVerify: true", "insecureSkipVerify: has no effect with scheme http"),
        ("scheme: https, certFile: c.pem", "certFile: needs keyFile; add it"),
        ("scheme: https, keyFile: c.key", "keyFile: needs certFile; add it"),
        ("scheme: https, insecureSkipVerify: true, caFile: x", "caFile: has no effect with insecureSkipVerify"),
        ("scheme: ftp", "scheme: 'ftp' is not valid; valid values: http, https"),
        ("healthPath: health", "healthPath: 'health' is not a path"),
        ("metricsPort: 70000", "metricsPort: 70000 is out of range"),
        ("scheme: https, serverName: 'a:b:c'", "serverName: 'a:b:c' is not a host; write a name such as vllm.example"),
        ("tokenFile: []", "tokenFile: a list is not a file; write its path"),
        ("tokenfile: /t", "tokenfile: unknown key; did you mean 'tokenFile'?"),
    ],
)
def test_an_invalid_option_is_refused_with_what_to_write(written: str, complaint: str) -> None:
    with pytest.raises(BadConfig) as bad:
        pool_scrape(written)
    assert f"pools[0].scrape.{complaint}" in "\n".join(bad.value.lines())
