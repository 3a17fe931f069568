"""One stream from a peer, over grpc.aio, which is imported when the first one is opened."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import Any, Final, NamedTuple

from agent.replicas.report import (
    MAX_REPORT_BYTES,
    METHOD,
    NONCE_BYTES,
    PROTOCOL,
    SERVICE,
    BadReport,
    ClientProof,
    Hello,
    PeerReport,
    decode,
    decode_hello,
    encode_hello,
    prove,
    proven,
)
from agent.replicas.service import OwnIdentity

CONNECT_SECONDS: Final = 3.0  # for the connection and both hellos


class PeerProblem(Exception):
    """A peer cannot be followed; `reason` is a key of `agent.state.replicas.REASONS`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class PeerAccess(NamedTuple):
    """How peers are reached: without TLS where `ca_file` is empty. The files are read for each connection, so that a
    renewed certificate is used. `server_name`: the name in the certificates of the peers, where it is not their
    host."""

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    server_name: str = ""


class PeerStream:
    """One stream from the replica at an address. Every method raises PeerProblem."""

    def __init__(self, address: str, transport: PeerAccess) -> None:
        self._address = address
        self._transport = transport
        self._channel: Any = None
        self._call: Any = None

    async def greet(self, own: OwnIdentity, token: bytes) -> Hello:
        """Open the stream and exchange hellos and proofs; returns the peer's hello."""
        import grpc.aio  # 20 MB and threads that a replica without peers does not need

        nonce = secrets.token_hex(NONCE_BYTES)
        try:
            self._channel = channel = self._open(grpc)
            self._call = call = channel.stream_stream(f"/{SERVICE}/{METHOD}")()
            async with asyncio.timeout(CONNECT_SECONDS):
                await call.write(encode_hello(Hello(PROTOCOL, own.instance, own.name, own.software, nonce)))
                hello = decode_hello(await self._read(grpc))
            if proof := _checked(hello, own, token, nonce):
                await call.write(encode_hello(proof))
        except TimeoutError:
            raise PeerProblem("timeout", f"no answer within {CONNECT_SECONDS:g} s") from None
        except OSError as error:
            raise PeerProblem("unauthenticated", f"the TLS files cannot be read: {error}") from error
        except (PeerProblem, BadReport):
            raise
        except Exception as error:  # what grpc.aio raises on a call that has ended depends on the moment
            raise await self._problem(grpc, error) from error
        return hello

    async def report(self, within: float) -> PeerReport:
        """The next report. PeerProblem `timeout` where none arrives in time; BadReport for one that is not valid."""
        import grpc.aio

        try:
            async with asyncio.timeout(within):
                data = await self._read(grpc)
        except TimeoutError:
            raise PeerProblem("timeout", f"no report within {within:g} s") from None
        except (PeerProblem, BadReport):
            raise
        except Exception as error:  # as above
            raise await self._problem(grpc, error) from error
        return decode(data)

    async def close(self) -> None:
        """Give up the stream and its connection."""
        if self._call is not None:
            self._call.cancel()
        if self._channel is not None:
            await self._channel.close()

    # -- within ------------------------------------------------------------------------------------------------------

    def _open(self, grpc: Any) -> Any:
        options: list[tuple[str, int | str]] = [
            ("grpc.max_receive_message_length", MAX_REPORT_BYTES),
            ("grpc.use_local_subchannel_pool", 1),  # no memory of failed connections: the caller spaces its tries
            ("grpc.enable_http_proxy", 0),
        ]
        tls = self._transport
        if not tls.ca_file:
            return grpc.aio.insecure_channel(self._address, options=options)
        if tls.server_name:
            options.append(("grpc.ssl_target_name_override", tls.server_name))
        key, chain = (Path(name).read_bytes() if name else None for name in (tls.key_file, tls.cert_file))
        credentials = grpc.ssl_channel_credentials(Path(tls.ca_file).read_bytes(), key, chain)
        return grpc.aio.secure_channel(self._address, credentials, options=options)

    async def _read(self, grpc: Any) -> bytes:
        data = await self._call.read()
        if data is grpc.aio.EOF:
            raise await self._problem(grpc, None)
        found: bytes = data
        return found

    async def _problem(self, grpc: Any, error: Exception | None) -> PeerProblem:
        """What the end of the call means."""
        if self._call is None:
            return PeerProblem("unreachable", repr(error))
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                code, details = await self._call.code(), await self._call.details()
        except TimeoutError:
            return PeerProblem("unreachable", repr(error))
        codes = grpc.StatusCode
        reasons = {
            codes.FAILED_PRECONDITION: "version",
            codes.UNAUTHENTICATED: "unauthenticated",
            codes.PERMISSION_DENIED: "unauthenticated",
            codes.UNIMPLEMENTED: "version",
            codes.INVALID_ARGUMENT: "malformed",
            codes.RESOURCE_EXHAUSTED: "too_many",
        }
        reason = reasons.get(code, "unreachable")
        if code is codes.RESOURCE_EXHAUSTED and "larger than max" in (details or ""):
            reason = "too_large"
        if code is codes.UNAVAILABLE and "Ssl handshake" in (details or ""):
            reason = "unauthenticated"
        return PeerProblem(reason, details or f"the stream ended ({code.name}{f', {error!r}' if error else ''})")


def _checked(hello: Hello, own: OwnIdentity, token: bytes, nonce: str) -> ClientProof | None:
    """The answer to a peer's hello; None to this replica's own. Raises PeerProblem."""
    if hello.protocol != PROTOCOL:
        detail = f"it has protocol {hello.protocol} ({hello.software}), this replica {PROTOCOL}: run one version"
        raise PeerProblem("version", detail)
    if hello.instance == own.instance:
        return None
    if not proven(hello.proof, token, "server", nonce, hello.nonce):
        raise PeerProblem("unauthenticated", "its token is another one; give all replicas the same")
    return ClientProof(prove(token, "client", nonce, hello.nonce))
