"""A content-encoding is undone within a bound, and anything else is one of three named errors."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from agent.requests.unpack import ENCODINGS, BodyTooLarge, MalformedBody, UnknownEncoding, label, unpack

LIMIT = 1 << 20


def bare_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "identity": bytes,
}
encodings = st.sampled_from(list(PACK))


@given(data=st.binary(max_size=2000), names=st.lists(encodings, max_size=3))
def test_what_was_packed_is_unpacked_in_the_opposite_order(data: bytes, names: list[str]) -> None:
    packed = data
    for name in names:
        packed = PACK[name](packed)
    assert unpack(packed, ", ".join(names), LIMIT) == data


@given(data=st.binary(max_size=2000))
def test_deflate_may_lack_the_wrapper_of_zlib(data: bytes) -> None:
    assert unpack(bare_deflate(data), "deflate", LIMIT) == data


@given(
    data=st.binary(max_size=300),
    encoding=st.text(max_size=20) | st.lists(encodings).map(",".join),
    limit=st.integers(0, 400),
)
@example(data=b"", encoding="zstd", limit=10)
@example(data=b"x\x9c", encoding="deflate", limit=10)
def test_any_bytes_are_unpacked_or_one_of_three_errors(data: bytes, encoding: str, limit: int) -> None:
    try:
        out = unpack(data, encoding, limit)
    except (UnknownEncoding, MalformedBody, BodyTooLarge):
        return
    assert len(out) <= max(limit, len(data))


@given(data=st.binary(min_size=1, max_size=500), limit=st.integers(0, 600), name=encodings.filter("identity".__ne__))
def test_the_limit_is_that_of_the_unpacked_body(data: bytes, limit: int, name: str) -> None:
    packed = PACK[name](data)
    if len(data) <= limit:
        assert unpack(packed, name, limit) == data
    else:
        with pytest.raises(BodyTooLarge):
            unpack(packed, name, limit)


@pytest.mark.parametrize("name", ["gzip", "deflate", "zstd"])
def test_a_bomb_takes_no_more_memory_than_the_limit(name: str) -> None:
    bomb = PACK[name](bytes(256 << 20))
    assert len(bomb) < LIMIT
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLarge):
            unpack(bomb, name, LIMIT)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * LIMIT


def test_a_bomb_in_a_bomb_is_stopped_at_the_first() -> None:
    with pytest.raises(BodyTooLarge):
        unpack(gzip.compress(gzip.compress(bytes(64 << 20)) * 10), "gzip, gzip", LIMIT)


def test_members_of_a_gzip_file_are_one_body_and_their_number_is_bounded() -> None:
    assert unpack(gzip.compress(b"one ") + gzip.compress(b"two"), "gzip", LIMIT) == b"one two"
    with pytest.raises(MalformedBody, match="members"):
        unpack(gzip.compress(b"") * 1000, "gzip", LIMIT)


@pytest.mark.parametrize("name", ["gzip", "deflate"])
def test_a_body_that_is_cut_off_is_malformed(name: str) -> None:
    with pytest.raises(MalformedBody, match="cut off"):
        unpack(PACK[name](b"a body of some length")[:-3], name, LIMIT)


@pytest.mark.parametrize("encoding", ["br", "compress", "gzip, br", "gzip,gzip,gzip,gzip"])
def test_an_encoding_that_is_not_undone_is_named(encoding: str) -> None:
    with pytest.raises(UnknownEncoding):
        unpack(gzip.compress(b"x"), encoding, LIMIT)


def test_a_zstd_window_over_the_limit_of_its_rfc_is_malformed() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=25, enable_ldm=True)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()  # without a content size
    packed = packer.compress(bytes(range(256)) * 256 * 1024) + packer.flush()
    with pytest.raises(MalformedBody):
        unpack(packed, "zstd", 1 << 30)


@given(st.text(max_size=30))
def test_labels_of_metrics_are_bounded(encoding: str) -> None:
    assert label(encoding) in ENCODINGS
    assert label(" GZIP ") == "gzip"
