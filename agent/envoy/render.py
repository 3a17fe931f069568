"""Our settings -> Envoy's bootstrap configuration, as plain data (Envoy reads it as JSON or YAML).

One cluster per pool, one listener per way in. A request's endpoint comes as metadata `envoy.lb` from the picker alone
(`override_host`); the header of the same name is taken off whatever a client sends, before any filter or route sees it.
An endpoint that the cluster does not hold, and a request without a pick (`round_robin`, or a picker that is down and
`failure_mode` open), go to the fallback policy, round robin.

Each value here that is not Envoy's default has its reason beside it; `docs/envoy.md` tells the same to operators.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from enum import Enum
from typing import Any, Final, NamedTuple

from agent.requests.rejections import PICKER_UNAVAILABLE, error_type, proxy_replies

Data = dict[str, Any]

DESTINATION: Final = "x-gateway-destination-endpoint"

_TYPE: Final = "type.googleapis.com/envoy.extensions."
_UNLIMITED: Final = 1_000_000  # Envoy's default of 1,024 requests is one busy hour of long answers
_BUFFER_SLACK: Final = 1 << 20  # a body one byte over our limit must still fit, so that the 413 is ours
_MESSAGE_TIMEOUT_SECONDS: Final = 5.0  # the default of 0.2 s is less than one pause of a busy machine
_SILENCE_SECONDS: Final = 900.0  # a long prompt in a long queue is silent until its first token


class Way(Enum):
    """How a listener finds the endpoint of a request."""

    BUFFERED = "buffered"  # the picker sees the body in one message: the default, cheapest at the end of a request
    FULL_DUPLEX = "full_duplex"  # the picker sees the body in chunks and sends it back: what gateways of the field do
    ROUND_ROBIN = "round_robin"  # no picker


class FailureMode(Enum):
    """What happens to requests while the picker is down: `close` answers 503, `open` goes on round robin."""

    CLOSE = "close"
    OPEN = "open"


class Pool(NamedTuple):
    """One cluster: its name, its endpoints (`ip:port`, IPv6 in brackets), and its picker's `host:port`, if any.

    `reports`: its picker wants the load reports that come with answers.
    """

    name: str
    endpoints: tuple[str, ...]
    picker: str = ""
    reports: bool = False


class Listener(NamedTuple):
    """One way in: its name, its address (`ip:port`; port 0 takes a free one), the pool behind it, and how to pick."""

    name: str
    address: str
    pool: str
    way: Way = Way.BUFFERED


class Settings(NamedTuple):
    """All of an Envoy. `max_body` in bytes is the picker's own limit; `admin` must be an address of loopback."""

    pools: tuple[Pool, ...]
    listeners: tuple[Listener, ...]
    admin: str = "127.0.0.1:0"
    max_body: int = 16 << 20
    failure_mode: FailureMode = FailureMode.CLOSE
    message_timeout: float = _MESSAGE_TIMEOUT_SECONDS
    silence: float = _SILENCE_SECONDS


def bootstrap(settings: Settings) -> Data:
    """Envoy's bootstrap. Raises ValueError with what to change where the settings cannot work."""
    pools = {pool.name: pool for pool in settings.pools}
    if len(pools) < len(settings.pools):
        raise ValueError("two pools have the same name: give each its own")
    for listener in settings.listeners:
        if listener.pool not in pools:
            raise ValueError(f"listener {listener.name}: no pool {listener.pool!r}, choose of {', '.join(pools)}")
        if listener.way is not Way.ROUND_ROBIN and not pools[listener.pool].picker:
            raise ValueError(f"listener {listener.name}: pool {listener.pool} has no picker: use way round_robin")
    host, _ = _host_and_port(settings.admin)
    if not ipaddress.ip_address(host).is_loopback:
        raise ValueError(f"admin {settings.admin}: whoever reaches it can stop Envoy; use 127.0.0.1")
    clusters = [cluster for pool in settings.pools for cluster in _clusters(pool, settings.message_timeout)]
    return {
        "admin": {"address": _address(settings.admin)},
        "static_resources": {
            "listeners": [
                _listener(listener, settings, reports=pools[listener.pool].reports) for listener in settings.listeners
            ],
            "clusters": clusters,
        },
    }


def picker_cluster(pool: str) -> str:
    """The name of the cluster in which Envoy holds the picker of this pool."""
    return f"{pool}-picker"


def _listener(listener: Listener, settings: Settings, *, reports: bool) -> Data:
    filters = []
    if listener.way is not Way.ROUND_ROBIN:
        filters.append(_named("envoy.filters.http.ext_proc", _ext_proc(listener, settings, reports=reports)))
    filters.append(_named("envoy.filters.http.router", _typed("filters.http.router.v3.Router")))
    manager = _typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=listener.name,
        # Before routes and filters: a client's own choice of endpoint is worth nothing here.
        early_header_mutation_extensions=[
            _named(
                "envoy.http.early_header_mutation.header_mutation",
                _typed(
                    "http.early_header_mutation.header_mutation.v3.HeaderMutation", mutations=[{"remove": DESTINATION}]
                ),
            )
        ],
        local_reply_config={"mappers": list(_local_replies(settings.max_body))},
        route_config={
            "name": listener.name,
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [_route(listener.pool)]}],
        },
        http_filters=filters,
        stream_idle_timeout=_seconds(settings.silence),
        request_headers_timeout=_seconds(10.0),  # nobody may hold a connection by never finishing its headers
        common_http_protocol_options={"idle_timeout": _seconds(3600.0)},
        # The request id of a client is kept, so that it can be found in its own logs and in ours.
        preserve_external_request_id=True,
    )
    return {
        "name": listener.name,
        "address": _address(listener.address),
        # A second Envoy on this port shall fail to start, not take half of the connections without a word.
        "enable_reuse_port": False,
        # Of each connection, and so of each request's body: at the default of 1 MiB Envoy itself refuses long prompts.
        "per_connection_buffer_limit_bytes": settings.max_body + _BUFFER_SLACK,
        "filter_chains": [{"filters": [_named("envoy.filters.network.http_connection_manager", manager)]}],
    }


def _route(pool: str) -> Data:
    return {
        "match": {"prefix": "/"},
        "route": {
            "cluster": pool,
            "timeout": "0s",  # an answer may stream for as long as it does not fall silent
            # Safe for any request: the server has not seen it.
            "retry_policy": {
                "retry_on": "connect-failure,refused-stream",
                "num_retries": 1,
                "retry_host_predicate": [
                    _named(
                        "envoy.retry_host_predicates.previous_hosts",
                        _typed("retry.host.previous_hosts.v3.PreviousHostsPredicate"),
                    )
                ],
                "host_selection_retry_max_attempts": 5,
            },
        },
    }


def _ext_proc(listener: Listener, settings: Settings, *, reports: bool) -> Data:
    # Envoy keeps the stream open until the response ends, which is how the picker learns that it did: with a buffered
    # body even where every response phase is skipped, in full duplex only if the trailers are still to come.
    mode = {
        "request_header_mode": "SEND",
        "request_body_mode": "BUFFERED",
        "request_trailer_mode": "SKIP",
        "response_header_mode": "SKIP",
        "response_body_mode": "NONE",
        "response_trailer_mode": "SKIP",
    }
    if listener.way is Way.FULL_DUPLEX:
        mode |= {
            "request_body_mode": "FULL_DUPLEX_STREAMED",
            "request_trailer_mode": "SEND",  # full duplex demands it
            "response_trailer_mode": "SEND",
        }
    attributes = {}
    if reports:
        mode["response_header_mode"] = "SEND"  # where load reports are
        attributes["response_attributes"] = ["upstream.address"]  # a retry may have been answered by another endpoint
    return _typed(
        "filters.http.ext_proc.v3.ExternalProcessor",
        # No time-out of the stream: it lasts as long as the answer.
        grpc_service={"envoy_grpc": {"cluster_name": picker_cluster(listener.pool)}},
        failure_mode_allow=settings.failure_mode is FailureMode.OPEN,
        processing_mode=mode,
        **attributes,
        message_timeout=_seconds(settings.message_timeout),
        # Without these Envoy drops the pick, and keeps the hint of a subset to itself.
        metadata_options={
            "forwarding_namespaces": {"untyped": ["envoy.lb", "envoy.lb.subset_hint"]},
            "receiving_namespaces": {"untyped": ["envoy.lb"]},
        },
    )


def _clusters(pool: Pool, patience: float) -> Iterable[Data]:
    for endpoint in pool.endpoints:
        host, _ = _host_and_port(endpoint)
        if not _is_ip(host):
            raise ValueError(f"pool {pool.name}: endpoint {endpoint}: use its IP address, by which the picker names it")
    round_robin = _named(
        "envoy.load_balancing_policies.round_robin", _typed("load_balancing_policies.round_robin.v3.RoundRobin")
    )
    override = _typed(
        "load_balancing_policies.override_host.v3.OverrideHost",
        override_host_sources=[{"metadata": {"key": "envoy.lb", "path": [{"key": DESTINATION}]}}],
        fallback_policy={"policies": [{"typed_extension_config": round_robin}]},
    )
    yield {
        "name": pool.name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": _assignment(pool.name, pool.endpoints),
        "load_balancing_policy": {
            "policies": [{"typed_extension_config": _named("envoy.load_balancing_policies.override_host", override)}]
        },
        "circuit_breakers": _no_limits(),
        "typed_extension_protocol_options": _http({"http_protocol_options": {}}, idle=4.0),
    }
    if pool.picker:
        host, _ = _host_and_port(pool.picker)
        name = picker_cluster(pool.name)
        yield {
            "name": name,
            "type": "STATIC" if _is_ip(host) else "STRICT_DNS",
            "connect_timeout": "1s",
            "load_assignment": _assignment(name, (pool.picker,)),
            "circuit_breakers": _no_limits(),
            "typed_extension_protocol_options": _http(
                # A picker that fell silent is noticed once, not at each request's time-out; in full duplex, where Envoy
                # has no time-out of messages, it is noticed by this alone.
                {
                    "http2_protocol_options": {
                        "connection_keepalive": {"interval": _seconds(2 * patience), "timeout": _seconds(patience)}
                    }
                }
            ),
        }


def _http(protocol: Data, idle: float | None = None) -> Data:
    options: Data = {"explicit_http_config": protocol}
    if idle is not None:
        # Below the 5 s after which uvicorn, and so most model servers, close a silent connection: else the two cross,
        # and a request dies on a connection that was just closed.
        options["common_http_protocol_options"] = {"idle_timeout": _seconds(idle)}
    typed = {"@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions", **options}
    return {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": typed}


def _no_limits() -> Data:
    names = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
    return {"thresholds": [dict.fromkeys(names, _UNLIMITED)]}


def _local_replies(max_body: int) -> Iterable[Data]:
    """Envoy's own errors as OpenAI errors; the first that matches applies. The picker's answers stay as they are."""
    for reply in proxy_replies(max_body):
        unless = "" if reply is PICKER_UNAVAILABLE else "!response.code_details.contains('endpoint_picker_') && "
        condition = f"{unless}({reply.condition})" if unless else reply.condition
        cel = {"@type": f"{_TYPE}access_loggers.filters.cel.v3.ExpressionFilter", "expression": condition}
        kind = error_type(reply.status)
        error = {"message": reply.message, "type": kind, "param": None, "code": reply.code}
        mapped: Data = {
            "filter": {"extension_filter": _named("envoy.access_loggers.extension_filters.cel", cel)},
            "body_format_override": {"content_type": "application/json", "json_format": {"error": error}},
        }
        if reply.replaces_status:
            mapped["status_code"] = reply.status
        if reply.retry_after:
            mapped["headers_to_add"] = [{"header": {"key": "retry-after", "value": str(reply.retry_after)}}]
        yield mapped


def _assignment(cluster: str, addresses: Iterable[str]) -> Data:
    endpoints = [{"endpoint": {"address": _address(address)}} for address in addresses]
    return {"cluster_name": cluster, "endpoints": [{"lb_endpoints": endpoints}]}


def _typed(kind: str, **fields: Any) -> Data:
    return {"@type": _TYPE + kind, **fields}


def _named(name: str, typed_config: Data) -> Data:
    return {"name": name, "typed_config": typed_config}


def _address(text: str) -> Data:
    host, port = _host_and_port(text)
    return {"socket_address": {"address": host, "port_value": port}}


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{text!r} is no address: write host:port, or [address]:port for IPv6")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _seconds(seconds: float) -> str:
    """As protobuf's JSON writes a duration."""
    return f"{seconds:g}s"
