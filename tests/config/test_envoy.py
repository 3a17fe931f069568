"""`envoy`: read with its defaults; what is wrong is refused with what to write."""

from __future__ import annotations

import pytest

from agent.app.vocabulary import VOCABULARY
from agent.config import parse
from agent.config.envoy import EnvoySection
from agent.config.nodes import BadConfig

HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\npools: [{endpoints: ['a:1']}]\n"


def envoy(written: str) -> EnvoySection:
    return parse(f"{HEAD}envoy: {{{written}}}\n", "x", VOCABULARY).envoy


def test_without_the_section_no_file_is_kept_and_no_response_is_retried() -> None:
    assert parse(HEAD, "x", VOCABULARY).envoy == EnvoySection("", retry_server_errors=False, retry_budget=20)


def test_every_option_of_the_section_is_read() -> None:
    written = "edsDirectory: /run/igw/endpoints, retryServerErrors: true, retryBudget: 7"
    assert envoy(written) == EnvoySection("/run/igw/endpoints", retry_server_errors=True, retry_budget=7)


def test_the_limits_of_a_proxy_are_read_and_0_is_no_extension_and_no_limit() -> None:
    found = envoy("messageTimeout: 1m, maxMessageTimeout: 0s, streamIdleTimeout: 0s")
    assert (found.message_timeout, found.max_message_timeout, found.stream_idle_timeout) == (60.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("written", "complaint"),
    [
        ("edsDirectory: []", "edsDirectory: a list is not a directory; write its path, such as /run/igw/endpoints"),
        ("edsDirectory:", "edsDirectory: empty is not a directory; write its path"),
        ('edsDirectory: "a\\nb"', "is not a directory; write its path"),
        ("messageTimeout: 0s", "messageTimeout: 0s is too short; write 200ms or more"),
        ("messageTimeout: 5", "messageTimeout: 5 has no unit; write 5s for seconds"),
        ("maxMessageTimeout: 2h", "maxMessageTimeout: 2h is too long; write 1h or less"),
        ("streamIdleTimeout: never", "streamIdleTimeout: 'never' is not a duration"),
        ("retryServerErrors: 5xx", "retryServerErrors: '5xx' is neither true nor false"),
        ("retryBudget: 0", "retryBudget: 0 is out of range; write a whole number from 1 to 100"),
        ("retryBudget: 101", "retryBudget: 101 is out of range"),
        ("edsdirectory: /x", "edsdirectory: unknown key; did you mean 'edsDirectory'?"),
    ],
)
def test_an_invalid_value_of_the_section_is_refused_with_what_to_write(written: str, complaint: str) -> None:
    with pytest.raises(BadConfig) as bad:
        envoy(written)
    assert complaint in "\n".join(bad.value.lines())
