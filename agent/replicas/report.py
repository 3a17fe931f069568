"""The messages between replicas: hellos, and reports of what only their sender knows. Pure.

    client: ClientHello ──►                        JSON, fields may be added
                          ◄── ServerHello          JSON
    client: ClientProof ──►                        JSON
                          ◄── PeerReport, PeerReport, ...  MessagePack, arrays; another layout is another PROTOCOL,
                                                           except for fields with a default at the end of an array

The first report of a stream is `full`: it replaces what was known of the sender. The others have what happened since.
Every number is a whole one with a smallest and a largest value, so a report holds no NaN and nothing negative.
"""

from __future__ import annotations

import hmac
from array import array
from collections.abc import Sequence
from hashlib import sha256
from sys import byteorder
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Struct

# Replicas exchange reports where both have this number. It changes with the layout of a report. A field at the end of
# an array does not change it: a replica without the field ignores it, and one that gets none uses the default.
PROTOCOL: Final = 2
SERVICE: Final = "igw.replicas.v1.Replicas"
METHOD: Final = "Exchange"

MAX_HELLO_BYTES: Final = 16 << 10
MAX_REPORT_BYTES: Final = 8 << 20
MAX_POOLS: Final = 256
MAX_ENDPOINTS: Final = 20_000  # of a pool, in one report
MAX_REQUESTS: Final = 100_000  # of a pool in flight at one replica; more are not reported
MAX_WAITING: Final = 100_000_000  # requests that one replica holds for a pool
MAX_EVENTS: Final = 50_000  # of one kind, of a pool, in one report
MAX_CHAIN_BYTES: Final = 1 << 20  # of one prompt: 131,072 blocks
MAX_ID: Final = (1 << 63) - 1
MAX_SPANS: Final = 300  # of arrivals: an hour in steps of 15 s
MAX_SAMPLES: Final = 300  # of a level: a minute, twice a second
MAX_COUNT: Final = 1_000_000_000_000_000
NONCE_BYTES: Final = 16

_Name = Annotated[str, Meta(max_length=256)]
_Id = Annotated[int, Meta(ge=1, le=MAX_ID)]
_Place = Annotated[int, Meta(ge=0, lt=MAX_ENDPOINTS)]
_Tokens = Annotated[int, Meta(ge=0, le=100_000_000)]
_Milliseconds = Annotated[int, Meta(ge=0, le=86_400_000)]
_Blocks = Annotated[bytes, Meta(max_length=MAX_CHAIN_BYTES)]
_Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]


class BadReport(ValueError):
    """A message that a replica cannot have sent in good order; the text says what is wrong."""


class Hello(Struct):
    """What both sides send first. `instance` is another one after each start; `software` is the agent's version."""

    protocol: int
    instance: Annotated[str, Meta(min_length=1, max_length=64)]
    name: Annotated[str, Meta(max_length=128)] = ""
    software: Annotated[str, Meta(max_length=64)] = ""
    nonce: Annotated[str, Meta(max_length=64)] = ""
    proof: Annotated[str, Meta(max_length=128)] = ""


class ClientProof(Struct):
    """That the client knows the token; empty without one."""

    proof: Annotated[str, Meta(max_length=128)] = ""


class StartedRequest(Struct, array_like=True):
    """A request in flight. `endpoint` is its place in `PoolReport.endpoints`; `chain` are the blocks of its prompt."""

    id: _Id
    endpoint: _Place
    uncached_tokens: _Tokens
    hit_tokens: _Tokens
    age_ms: _Milliseconds
    chain: _Blocks


class MovedRequest(Struct, array_like=True):
    """A request in flight that is at another endpoint now."""

    id: _Id
    endpoint: _Place
    uncached_tokens: _Tokens
    chain: _Blocks


class SharedOutcome(Struct, array_like=True):
    """`times` results of this kind in a row, a key of `agent.requests.response.RESULTS`."""

    endpoint: _Place
    result: Annotated[str, Meta(max_length=32)]
    times: Annotated[int, Meta(ge=1, le=MAX_EVENTS)] = 1


class EndpointBlocks(Struct, array_like=True):
    """Blocks of prompts at an endpoint."""

    endpoint: _Place
    blocks: _Blocks


class Emptied(Struct, array_like=True):
    """An endpoint whose prefix cache is empty; `reason` is a key of `agent.state.endpoint.EMPTIED`."""

    endpoint: _Place
    reason: Annotated[str, Meta(max_length=32)]


class SharedRate(Struct, array_like=True):
    """What was learnt of an endpoint's prefill rate: thousandths of prefills, and of the sums that fade."""

    endpoint: _Place
    tokens: _Count
    milliseconds: _Count
    faded_prefills: _Count
    prefills: _Count


class SharedCapacity(Struct, array_like=True):
    """The envelope of a pool's capacity that the sender has learnt: millionths of requests per second, and its age."""

    millionths: _Count
    age_ms: _Count


class SharedSpan(Struct, array_like=True):
    """Arrivals counted from so long ago, for so long: thousandths of requests, which may have been taken back, and
    endpoint-milliseconds in which they were seen and due."""

    age_ms: _Milliseconds
    length_ms: _Milliseconds
    thousandths: Annotated[int, Meta(ge=-MAX_COUNT, le=MAX_COUNT)]
    seen_ms: _Count
    due_ms: _Count


class SharedSample(Struct, array_like=True):
    """A level so long ago, in millionths."""

    age_ms: _Milliseconds
    millionths: _Count


class SharedBatch(Struct, array_like=True):
    """What pages have shown of the batch of an endpoint, in requests; `started` in seconds since 1970."""

    endpoint: _Place
    started: _Count
    largest: _Count
    beside_queue: _Count
    times: _Count


class SharedHistory(Struct, array_like=True):
    """What the sender has seen of a pool's load: `agent.scaling.demand_history`. `loading` are ages in milliseconds."""

    arrivals: Annotated[list[SharedSpan], Meta(max_length=MAX_SPANS)] = []
    slots: Annotated[list[SharedSample], Meta(max_length=MAX_SAMPLES)] = []
    kv: Annotated[list[SharedSample], Meta(max_length=MAX_SAMPLES)] = []
    loading: Annotated[list[_Milliseconds], Meta(max_length=MAX_ENDPOINTS)] = []
    batches: Annotated[list[SharedBatch], Meta(max_length=MAX_ENDPOINTS)] = []


class SharedLogEntry(Struct, array_like=True):
    """An entry of the proxy's access log of a request that the sender has not picked: `agent.requests.response`."""

    request_id: _Name
    status: Annotated[int, Meta(ge=0, le=999)]
    broken: Annotated[str, Meta(max_length=32)]
    client_left: bool
    served: _Name
    attempts: Annotated[int, Meta(ge=1, le=1000)]
    retry_after: bool
    body_bytes: Annotated[int, Meta(ge=0, le=MAX_ID)]


class PoolReport(Struct, array_like=True):
    """One pool. `blocks` names how prompts become blocks: those of another way are not comparable.

    `in_flight` is the number of the sender's requests after this report; `logs` the open access log streams there.
    `withdrawn` are blocks that an endpoint did not prefill after all; `held` those that the endpoints hold by the
    sender's index, the oldest first, for a replica that has just started. `waiting` is the number of requests that flow
    control of the sender holds. `capacity` is what it has learnt; None: nothing, or in a report that is not full, what
    it was before.
    `history` is in the first report of a stream.
    """

    name: Annotated[str, Meta(min_length=1, max_length=63)]
    blocks: Annotated[str, Meta(max_length=64)]
    in_flight: Annotated[int, Meta(ge=0, le=MAX_REQUESTS)]
    logs: Annotated[int, Meta(ge=0, le=1_000_000)]
    endpoints: Annotated[list[_Name], Meta(max_length=MAX_ENDPOINTS)]
    started: Annotated[list[StartedRequest], Meta(max_length=MAX_REQUESTS)] = []
    moved: Annotated[list[MovedRequest], Meta(max_length=MAX_EVENTS)] = []
    ended: Annotated[list[_Id], Meta(max_length=MAX_REQUESTS)] = []
    outcomes: Annotated[list[SharedOutcome], Meta(max_length=MAX_EVENTS)] = []
    withdrawn: Annotated[list[EndpointBlocks], Meta(max_length=MAX_EVENTS)] = []
    emptied: Annotated[list[Emptied], Meta(max_length=MAX_EVENTS)] = []
    logged: Annotated[list[SharedLogEntry], Meta(max_length=MAX_EVENTS)] = []
    rates: Annotated[list[SharedRate], Meta(max_length=MAX_ENDPOINTS)] = []
    held: Annotated[list[EndpointBlocks], Meta(max_length=MAX_ENDPOINTS)] = []
    waiting: Annotated[int, Meta(ge=0, le=MAX_WAITING)] = 0
    capacity: SharedCapacity | None = None
    history: SharedHistory | None = None


class PeerReport(Struct, array_like=True):
    """`sequence` counts the reports of a stream from 0. `goodbye`: the sender stops, and nothing follows."""

    sequence: Annotated[int, Meta(ge=0, le=MAX_ID)]
    full: bool
    goodbye: bool = False
    pools: Annotated[list[PoolReport], Meta(max_length=MAX_POOLS)] = []


_json: Final = msgspec.json.Encoder().encode
_pack: Final = msgspec.msgpack.Encoder().encode
_hello: Final = msgspec.json.Decoder(Hello)
_proof: Final = msgspec.json.Decoder(ClientProof)
_report: Final = msgspec.msgpack.Decoder(PeerReport)


def encode_hello(message: Hello | ClientProof) -> bytes:
    """The bytes of a first message."""
    return _json(message)


def decode_hello(data: bytes) -> Hello:
    """Raises BadReport."""
    try:
        return _hello.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadReport(f"the hello is not valid: {error}") from error


def decode_proof(data: bytes) -> ClientProof:
    """Raises BadReport."""
    try:
        return _proof.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadReport(f"the proof is not valid: {error}") from error


def encode(report: PeerReport) -> bytes:
    """The bytes of a report."""
    return _pack(report)


def decode(data: bytes) -> PeerReport:
    """The report in `data`, with each value within its limits. Raises BadReport."""
    try:
        report = _report.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadReport(str(error)) from error
    for pool in report.pools:
        _check_places(pool)
    return report


def _check_places(pool: PoolReport) -> None:
    known = len(pool.endpoints)
    batches = [] if pool.history is None else pool.history.batches
    for rows in (pool.started, pool.moved, pool.outcomes, pool.withdrawn, pool.emptied, pool.rates, pool.held, batches):
        for row in rows:
            if row.endpoint >= known:
                raise BadReport(f"pool {pool.name}: endpoint number {row.endpoint} of {known}")
    chains = (
        *(started.chain for started in pool.started),
        *(moved.chain for moved in pool.moved),
        *(each.blocks for each in (*pool.withdrawn, *pool.held)),
    )
    for chain in chains:
        if len(chain) % 8:
            raise BadReport(f"pool {pool.name}: the blocks of a prompt have {len(chain)} bytes")


def pack_blocks(chain: Sequence[int]) -> bytes:
    """Block hashes as bytes, 8 for each, the lowest first; nothing where they are too many for a report."""
    if len(chain) * 8 > MAX_CHAIN_BYTES:
        return b""
    numbers = array("Q", chain)
    if byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def unpack_blocks(data: bytes) -> list[int]:
    """The hashes of `pack_blocks`."""
    numbers = array("Q")
    numbers.frombytes(data)
    if byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()


def prove(token: bytes, side: str, client_nonce: str, server_nonce: str) -> str:
    """The proof of one side, `client` or `server`, that it knows the token; empty for an empty token.

    HMAC-SHA-256 over the side and the nonces of both, so that neither the token nor an old proof is of use to one who
    reads the connection.
    """
    if not token:
        return ""
    text = f"{PROTOCOL}:{side}:{len(client_nonce)}:{client_nonce}:{server_nonce}"
    return hmac.new(token, text.encode(), sha256).hexdigest()


def proven(proof: str, token: bytes, side: str, client_nonce: str, server_nonce: str) -> bool:
    """Whether it is the proof of that side."""
    return hmac.compare_digest(proof.encode(), prove(token, side, client_nonce, server_nonce).encode())
