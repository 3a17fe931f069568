"""List and watch: what the cache holds after any sequence of answers of the API server."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.kube.cache import (
    MAX_EVENT_BYTES,
    Change,
    LineBuffer,
    ObjectCache,
    UnreadableAnswer,
    decoder_of,
    status_message,
)
from agent.kube.errors import ApiFailed
from agent.kube.objects import InferencePool, Pod, PodView, pod_view

_POD = decoder_of(Pod)


def a_cache() -> ObjectCache[PodView]:
    return ObjectCache(lambda raw: pod_view(_POD(raw)))


def pod(name: str, version: int, ip: str = "10.0.0.1", **more: Any) -> dict[str, Any]:
    meta = {"name": name, "namespace": "ns", "uid": f"uid-{name}", "resourceVersion": str(version)}
    return {"kind": "Pod", "metadata": meta, "spec": {}, "status": {"podIP": ip, "phase": "Running"}, **more}


def page(*pods: dict[str, Any], version: str = "10", token: str = "") -> bytes:
    return orjson.dumps({"metadata": {"resourceVersion": version, "continue": token}, "items": list(pods)})


def add_page(cache: ObjectCache[Any], data: bytes) -> str:
    """Add the objects of a page; returns the token of the next."""
    items, token = cache.page(data)
    cache.add(items)
    return token


def event(kind: str, item: dict[str, Any]) -> bytes:
    return orjson.dumps({"type": kind, "object": item})


def listed(*pods: dict[str, Any]) -> ObjectCache[PodView]:
    cache = a_cache()
    cache.begin_list()
    assert add_page(cache, page(*pods)) == ""
    assert cache.end_list()
    return cache


def names(cache: ObjectCache[PodView]) -> list[str]:
    return sorted(name for _, name in cache.objects)


def test_the_pages_of_a_list_replace_the_objects_when_the_last_one_has_come() -> None:
    cache = listed(pod("old", 1))
    cache.begin_list()
    assert add_page(cache, page(pod("a", 2), version="20", token="next")) == "next"
    assert names(cache) == ["old"]
    assert add_page(cache, page(pod("b", 3), version="20")) == ""
    assert cache.end_list()
    assert (names(cache), cache.resource_version) == (["a", "b"], "20")


def test_a_list_that_stops_half_way_leaves_nothing_behind() -> None:
    cache = listed(pod("old", 1))
    cache.begin_list()
    add_page(cache, page(pod("a", 2), token="next"))
    cache.begin_list()
    add_page(cache, page(pod("b", 3)))
    cache.end_list()
    assert names(cache) == ["b"]


def test_a_list_without_a_change_is_none() -> None:
    cache = listed(pod("a", 1))
    cache.begin_list()
    add_page(cache, page(pod("a", 1), version="30"))
    assert not cache.end_list()
    assert cache.resource_version == "30"


def test_an_empty_list_empties_the_cache() -> None:
    cache = listed(pod("a", 1))
    cache.begin_list()
    add_page(cache, orjson.dumps({"metadata": {"resourceVersion": "11"}, "items": None}))
    assert cache.end_list()
    assert names(cache) == []


def test_events_add_change_and_remove_objects_and_move_the_version_on() -> None:
    cache = listed(pod("a", 1))
    assert cache.apply(event("ADDED", pod("b", 11))) is Change.OBJECTS
    assert cache.apply(event("MODIFIED", pod("a", 12, ip="10.0.0.9"))) is Change.OBJECTS
    assert cache.apply(event("MODIFIED", pod("a", 13, ip="10.0.0.9"))) is Change.NONE
    assert cache.apply(event("DELETED", pod("b", 14))) is Change.OBJECTS
    assert cache.apply(event("DELETED", pod("b", 15))) is Change.NONE
    assert cache.apply(event("BOOKMARK", {"metadata": {"resourceVersion": "99"}})) is Change.NONE
    assert (names(cache), cache.resource_version) == (["a"], "99")
    assert cache.objects["ns", "a"].ip == "10.0.0.9"


def test_an_expired_version_asks_for_a_list_and_keeps_the_objects() -> None:
    cache = listed(pod("a", 1))
    assert cache.apply(event("ERROR", {"kind": "Status", "code": 410, "reason": "Expired"})) is Change.RELIST
    assert (names(cache), cache.resource_version) == (["a"], "")


def test_another_error_of_the_server_is_raised_with_its_message() -> None:
    with pytest.raises(ApiFailed, match="500: etcd is away") as failed:
        listed().apply(event("ERROR", {"code": 500, "message": "etcd is away"}))
    assert failed.value.status == 500


@pytest.mark.parametrize(
    "line",
    [
        b'{"type":"ADDED","object":{"metadata":{"na',
        b"<html>",
        b'{"type":"ADDED","object":{"metadata":{"name":"a"}}}',
        b'{"type":"SOMETHING","object":{"metadata":{"name":"a","resourceVersion":"3"}}}',
        b'{"type":"ADDED"}',
        b"[]",
    ],
    ids=["half", "html", "no-version", "unknown-type", "no-object", "array"],
)
def test_bytes_that_are_no_event_are_refused_and_change_nothing(line: bytes) -> None:
    cache = listed(pod("a", 1))
    with pytest.raises(UnreadableAnswer):
        cache.apply(line)
    assert names(cache) == ["a"]


@pytest.mark.parametrize("data", [b"", b"null", b'{"items":[]}', b'{"metadata":{},"items":[]}', b"<html>"])
def test_bytes_that_are_no_list_are_refused(data: bytes) -> None:
    cache = listed(pod("a", 1))
    cache.begin_list()
    with pytest.raises(UnreadableAnswer):
        add_page(cache, data)
    assert names(cache) == ["a"]


def test_an_object_that_cannot_be_used_is_named_and_leaves_the_others() -> None:
    cache: ObjectCache[InferencePool] = ObjectCache(decoder_of(InferencePool))
    good = {
        "metadata": {"name": "good", "namespace": "ns"},
        "spec": {"selector": {"matchLabels": {"app": "x"}}, "targetPorts": [{"number": 8000}]},
    }
    bad = {"metadata": {"name": "bad", "namespace": "ns"}, "spec": {"selector": {"matchLabels": {"app": 7}}}}
    cache.begin_list()
    add_page(cache, page(good, bad))
    cache.end_list()
    assert list(cache.objects) == [("ns", "good")]
    (refused,) = cache.refused.values()
    assert refused.key == ("ns", "bad")
    assert "targetPorts" in refused.reason or "matchLabels" in refused.reason
    fixed = {**good, "metadata": {"name": "bad", "namespace": "ns", "resourceVersion": "12"}}
    assert cache.apply(event("MODIFIED", fixed)) is Change.OBJECTS
    assert cache.refused == {}


steps = st.lists(
    st.tuples(
        st.sampled_from(["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "list"]),
        st.sampled_from("abc"),
        st.integers(1, 3),
    ),
    max_size=30,
)


@given(script=steps)
def test_after_any_events_the_cache_holds_what_the_server_has(script: list[tuple[str, str, int]]) -> None:
    cache, version = listed(), 10
    server: dict[str, dict[str, Any]] = {}
    for what, name, ip in script:
        version += 1
        item = pod(name, version, f"10.0.0.{ip}")
        if what == "list":
            cache.begin_list()
            add_page(cache, page(*server.values(), version=str(version)))
            cache.end_list()
        elif what == "BOOKMARK":
            cache.apply(event(what, {"metadata": {"resourceVersion": str(version)}}))
        else:
            before = dict(cache.objects)
            change = cache.apply(event(what, item))
            server.pop(name, None)
            if what != "DELETED":
                server[name] = item
            assert (change is Change.OBJECTS) == (before != cache.objects)
        assert {name: view.ip for (_, name), view in cache.objects.items()} == {
            name: item["status"]["podIP"] for name, item in server.items()
        }
    assert cache.resource_version == str(version)


@given(data=st.binary(max_size=200))
def test_no_bytes_break_the_cache(data: bytes) -> None:
    cache = listed(pod("a", 1))
    with contextlib.suppress(UnreadableAnswer, ApiFailed):
        cache.apply(data)
    assert isinstance(status_message(data), str)


@given(
    lines=st.lists(st.binary(min_size=1, max_size=20).filter(lambda line: b"\n" not in line and line.strip())),
    cuts=st.data(),
)
def test_however_the_bytes_are_cut_the_lines_are_the_same(lines: list[bytes], cuts: st.DataObject) -> None:
    data, buffer, found = b"".join(line + b"\n" for line in lines), LineBuffer(), []
    while data:
        size = cuts.draw(st.integers(1, len(data)))
        found += buffer.feed(data[:size])
        data = data[size:]
    assert found == lines


def test_an_endless_line_is_refused() -> None:
    buffer = LineBuffer()
    assert buffer.feed(b"x" * MAX_EVENT_BYTES) == []
    with pytest.raises(UnreadableAnswer):
        buffer.feed(b"x")


def test_a_thousand_pods_are_decoded_without_their_other_fields() -> None:
    spec = {"containers": [{"name": "c", "env": [{"name": f"E{n}", "value": "v" * 50} for n in range(50)]}]}
    cache = listed(*(pod(f"p{number}", 1, spec=spec) for number in range(1000)))
    assert len(cache.objects) == 1000
    assert msgspec.json.encode(cache.objects["ns", "p1"]).count(b"E1") == 0
