"""What a client accepts."""

from __future__ import annotations

import pytest

from agent.serve.metrics_api.media_types import accepts_gzip, accepts_json


@pytest.mark.parametrize(
    ("accept", "accepted"),
    [
        ("", True),
        ("*/*", True),
        ("application/json", True),
        ("application/json, */*", True),
        ("application/vnd.kubernetes.protobuf,application/json", True),
        ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", True),
        ("application/json;q=0.5", True),
        ("APPLICATION/JSON ; charset=utf-8", True),
        ("application/vnd.kubernetes.protobuf", False),
        ("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList", False),
        ("application/json;q=0, text/plain", False),
        ("text/html", False),
    ],
)
def test_plain_json_is_served_to_those_who_accept_it(accept, accepted):
    assert accepts_json(accept) is accepted


@pytest.mark.parametrize(
    ("accept", "accepted"),
    [
        ("gzip", True),
        ("deflate, gzip;q=1.0", True),
        ("gzip;q=0", False),
        ("gzip; q=0.0", False),
        ("br", False),
        ("", False),
    ],
)
def test_gzip_is_sent_to_those_who_list_it(accept, accepted):
    assert accepts_gzip(accept) is accepted
