"""The API server over HTTP: the only importer of the `kubernetes` client, imported when an agent first needs it
(`agent.kube.cluster`), because the import takes a second and the client is an optional dependency.

The official client finds the server, its certificate authority and the credentials (in the cluster, or in a
kubeconfig), reads rotated tokens again and keeps connections. Its models are not used: they cost a hundred times the
decoding of the fields that are read, and hold the interpreter for it. All calls here block; `agent.kube.informer` makes
them in threads of its own.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

from kubernetes import config as kube_config
from kubernetes.client import ApiClient, Configuration
from kubernetes.config.config_exception import ConfigException
from urllib3.exceptions import HTTPError, ProtocolError, ReadTimeoutError
from urllib3.util import Timeout

from agent.kube.cache import status_message
from agent.kube.errors import ApiFailed, NoCluster, Unreachable

CONNECT_SECONDS: Final = 5.0
READ_SECONDS: Final = 15.0  # of a response that is no watch
_USER_AGENT: Final = "inference-gateway-agent"
# A peer that is gone without having closed the connection is noticed after 20 seconds, also in a silent watch.
_KEEPALIVE: Final = [
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
        if hasattr(socket, name)
    ),
]
MAX_RETRY_AFTER_SECONDS: Final = 300.0


class WatchResponse:
    """An open watch."""

    def __init__(self, response: Any) -> None:
        self._response = response

    def read(self) -> bytes:
        """The next bytes, waiting for them; empty at the end of the watch. Raises Unreachable."""
        try:
            data: bytes = self._response.read1(1 << 16)
        except ReadTimeoutError as error:
            raise Unreachable("the watch is silent: no event and no bookmark; it is taken for dead") from error
        except ProtocolError as error:
            raise Unreachable("the connection was closed in the middle of a watch") from error
        except (HTTPError, OSError) as error:
            raise Unreachable(_cause(error)) from error
        return data

    def close(self) -> None:
        """End the watch; a `read` in another thread returns or raises."""
        with contextlib.suppress(HTTPError, OSError, ValueError, RuntimeError):
            self._response.shutdown()  # `close` alone waits for the lock of a read in another thread
        self._response.close()


class KubeClient:
    """The API server of the cluster that the agent runs in, or of a kubeconfig."""

    def __init__(self, kubeconfig: str = "") -> None:
        """`kubeconfig`: a file; empty for the cluster that the agent runs in. Raises NoCluster."""
        self._kubeconfig = kubeconfig
        configuration = _configuration(kubeconfig)
        configuration.connection_pool_maxsize = 128  # each watch holds one, two for each pool
        configuration.socket_options = _KEEPALIVE
        self._configuration = configuration
        self._client = ApiClient(configuration)
        self._pool = self._client.rest_client.pool_manager
        self.server: str = configuration.host

    def get(self, path: str, parameters: Mapping[str, str]) -> bytes:
        """The body of a successful answer. Raises ApiFailed for another status, Unreachable without an answer."""
        return self._send("GET", path, parameters, None)

    def send(self, method: str, path: str, body: bytes, content_type: str = "application/json") -> bytes:
        """The answer to a POST, PUT or PATCH; as `get`."""
        return self._send(method, path, {}, body, content_type)

    def send_within(
        self, seconds: float, method: str, path: str, body: bytes, content_type: str = "application/json"
    ) -> bytes:
        """As `send`, and without a body for GET. The API server gives the request up after these seconds, and so does
        the client, which sends it once."""
        return self._send(method, path, {"timeout": f"{seconds:g}s"}, body or None, content_type, seconds)

    def watch(self, path: str, parameters: Mapping[str, str], silence: float) -> WatchResponse:
        """Begin a watch whose `read` waits at most `silence` seconds. Raises as `get`."""
        response = self._request("GET", path, {**parameters, "watch": "1"}, None, "", silence)
        if response.status != 200:
            try:
                raise self._failed(response, response.read(1 << 16))
            finally:
                response.close()
        return WatchResponse(response)

    def close(self) -> None:
        """Close all connections."""
        self._pool.clear()

    # -- within --------------------------------------------------------------------------------------------------------

    def _send(
        self,
        method: str,
        path: str,
        parameters: Mapping[str, str],
        body: bytes | None,
        content_type: str = "",
        seconds: float | None = None,
    ) -> bytes:
        response = self._request(method, path, parameters, body, content_type, READ_SECONDS, seconds)
        try:
            data: bytes = response.read()
        except (HTTPError, OSError) as error:
            raise Unreachable(_cause(error)) from error
        finally:
            response.release_conn()
        if not 200 <= response.status < 300:
            raise self._failed(response, data)
        return data

    def _request(
        self,
        method: str,
        path: str,
        parameters: Mapping[str, str],
        body: bytes | None,
        content_type: str,
        read_seconds: float,
        seconds: float | None = None,
    ) -> Any:
        """The response. One that the API server refuses with 401 is sent again where the token has been replaced,
        unless it has to end within `seconds`."""
        headers = {"Accept": "application/json", "User-Agent": _USER_AGENT}
        if content_type and body is not None:
            headers["Content-Type"] = content_type
        query = f"{'&' if '?' in path else '?'}{urlencode(parameters)}" if parameters else ""
        timeout = Timeout(connect=CONNECT_SECONDS, read=read_seconds, total=seconds)
        token = self._token()
        while True:
            if token:
                headers["Authorization"] = token
            try:
                response = self._pool.request(
                    method,
                    f"{self.server}{path}{query}",
                    headers=headers,
                    body=body,
                    preload_content=False,
                    retries=False,
                    timeout=timeout,
                )
                if response.status != 401 or not (renewed := self._renewed(token)) or seconds is not None:
                    return response
                response.drain_conn()
            except (HTTPError, OSError) as error:
                raise Unreachable(_cause(error)) from error
            token = renewed

    def _token(self) -> str:
        """The header of the present token; empty where there is none. Raises Unreachable."""
        try:
            return self._configuration.get_api_key_with_prefix("BearerToken", "authorization") or ""
        except (ConfigException, OSError) as error:
            raise Unreachable(f"the token cannot be read: {error}") from error

    def _renewed(self, refused: str) -> str:
        """The token that has replaced the one that was refused; empty where none has. The library reads the token of a
        pod again each minute, and that of a kubeconfig never."""
        token = self._token()
        if token == refused:
            with contextlib.suppress(NoCluster):
                self._configuration = _configuration(self._kubeconfig)
            token = self._token()
        return "" if token == refused else token

    def _failed(self, response: Any, data: bytes) -> ApiFailed:
        """The error of a response; `Retry-After` in seconds is limited to MAX_RETRY_AFTER_SECONDS."""
        text = response.headers.get("Retry-After", "")
        seconds = min(float(text), MAX_RETRY_AFTER_SECONDS) if text.isascii() and text.isdecimal() else None
        message = status_message(data)
        if response.status == 401:
            token = f"that {self._kubeconfig} names" if self._kubeconfig else "of the agent's ServiceAccount"
            message += f": the API server does not accept the token {token}; replace it, it is read again at each try"
        return ApiFailed(response.status, message, seconds)


def _configuration(kubeconfig: str) -> Configuration:
    """What the file, or else the pod, says now. Raises NoCluster."""
    configuration = Configuration()
    try:
        if kubeconfig:
            kube_config.load_kube_config(kubeconfig, client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            kube_config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    except (ConfigException, OSError) as error:
        where = kubeconfig or "the service account of the pod"
        raise NoCluster(f"no API server: {where}: {error}; set kubernetes.kubeconfig outside a cluster") from error
    return configuration


def _cause(error: BaseException) -> str:
    """The innermost cause, which says more than urllib3's wrappers."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return f"{type(error).__name__}: {error}"[:300]
