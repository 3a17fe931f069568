"""Renders Envoy's bootstrap configuration as plain data (Envoy reads it as JSON or YAML).

One cluster per pool, one listener per pick mode. Envoy takes a request's endpoint only from the metadata `envoy.lb` of
the picker (`override_host`). The header of the same name is removed from client requests before any filter or route.
A request without a pick (`round_robin`, or a picker that is down with `failure_mode` open), or with an endpoint that is
not in the cluster, is routed by the fallback policy, round robin.

Each value that differs from Envoy's default has its reason beside it; docs/reference/envoy.md lists them for operators.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from enum import Enum
from typing import Any, Final, NamedTuple

from agent.requests.rejections import PICKER_UNAVAILABLE, error_type, proxy_replies

Data = dict[str, Any]

DESTINATION: Final = "x-gateway-destination-endpoint"
# Attributes of a response that the picker reads: the endpoint that answered, how Envoy came to the response, the tries.
SERVED: Final = "upstream.address"
DETAILS: Final = "response.code_details"
ATTEMPTS: Final = "upstream.request_attempt_count"

_TYPE: Final = "type.googleapis.com/envoy.extensions."
_UNLIMITED: Final = 1_000_000  # Envoy's default of 1,024 also limits the streams that are open
_BUFFER_SLACK: Final = 1 << 20  # a body just over `max_body` must reach the picker, which answers 413
_MESSAGE_TIMEOUT_SECONDS: Final = 5.0  # Envoy's default of 0.2 s is shorter than a pause of a busy machine
# Envoy's default of 1 s is long for a server that fails at once; a batch of 0.1 s costs the agent less than a message
# for each request.
_LOG_FLUSH_SECONDS: Final = 0.1
_STREAM_IDLE_SECONDS: Final = 900.0  # a long prompt in a long queue sends nothing until its first token


class PickMode(Enum):
    """How a listener selects the endpoint of a request."""

    BUFFERED = "buffered"  # the picker gets the body in one message (default)
    FULL_DUPLEX = "full_duplex"  # the picker gets the body in chunks and sends it back, as Gateway API gateways do
    ROUND_ROBIN = "round_robin"  # no picker


class ResponseSource(Enum):
    """How the picker learns what became of its picks."""

    ACCESS_LOG = "access-log"  # entries of Envoy's gRPC access log, in batches (default)
    RESPONSE_HEADERS = "response-headers"  # one more ext_proc message per request, before the response begins
    NONE = "none"  # not at all: endpoints that fail are not ejected


class FailureMode(Enum):
    """What Envoy does while the picker is down: `close` answers 503, `open` routes round robin."""

    CLOSE = "close"
    OPEN = "open"


class EnvoyPool(NamedTuple):
    """One cluster: its name, its endpoints (`ip:port`, IPv6 in brackets), and its picker's `host:port`, if any.

    `reports`: its picker reads the load reports (ORCA) in response headers.
    """

    name: str
    endpoints: tuple[str, ...]
    picker: str = ""
    reports: bool = False


class EnvoyListener(NamedTuple):
    """A listener: its name, its address (`ip:port`; port 0 selects a free one), its pool, and how it picks."""

    name: str
    address: str
    pool: str
    mode: PickMode = PickMode.BUFFERED


class EnvoyConfig(NamedTuple):
    """The configuration of one Envoy. `max_body` is the picker's limit in bytes; `admin` must be a loopback address."""

    pools: tuple[EnvoyPool, ...]
    listeners: tuple[EnvoyListener, ...]
    admin: str = "127.0.0.1:0"
    max_body: int = 16 << 20
    failure_mode: FailureMode = FailureMode.CLOSE
    message_timeout: float = _MESSAGE_TIMEOUT_SECONDS
    stream_idle_timeout: float = _STREAM_IDLE_SECONDS
    responses: ResponseSource = ResponseSource.ACCESS_LOG


def bootstrap(config: EnvoyConfig) -> Data:
    """Envoy's bootstrap. Raises ValueError, with what to change, if the configuration is invalid."""
    pools = {pool.name: pool for pool in config.pools}
    if len(pools) < len(config.pools):
        raise ValueError("two pools have the same name: give each a unique name")
    for listener in config.listeners:
        if listener.pool not in pools:
            raise ValueError(f"listener {listener.name}: no pool {listener.pool!r}; choose from {', '.join(pools)}")
        if listener.mode is not PickMode.ROUND_ROBIN and not pools[listener.pool].picker:
            raise ValueError(f"listener {listener.name}: pool {listener.pool} has no picker: use mode round_robin")
    host, _ = _host_and_port(config.admin)
    if not ipaddress.ip_address(host).is_loopback:
        raise ValueError(f"admin {config.admin}: clients of this address can stop Envoy; use 127.0.0.1")
    clusters = [cluster for pool in config.pools for cluster in _clusters(pool, config.message_timeout)]
    return {
        "admin": {"address": _address(config.admin)},
        "static_resources": {
            "listeners": [
                _listener(listener, config, reports=pools[listener.pool].reports) for listener in config.listeners
            ],
            "clusters": clusters,
        },
    }


def picker_cluster(pool: str) -> str:
    """The name of the cluster of this pool's picker."""
    return f"{pool}-picker"


def _listener(listener: EnvoyListener, config: EnvoyConfig, *, reports: bool) -> Data:
    filters = []
    if listener.mode is not PickMode.ROUND_ROBIN:
        filters.append(_named("envoy.filters.http.ext_proc", _ext_proc(listener, config, reports=reports)))
    filters.append(_named("envoy.filters.http.router", _typed("filters.http.router.v3.Router")))
    manager = _typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=listener.name,
        # Before routes and filters: a client must not choose its endpoint.
        early_header_mutation_extensions=[
            _named(
                "envoy.http.early_header_mutation.header_mutation",
                _typed(
                    "http.early_header_mutation.header_mutation.v3.HeaderMutation", mutations=[{"remove": DESTINATION}]
                ),
            )
        ],
        local_reply_config={"mappers": list(_local_replies(config.max_body))},
        route_config={
            "name": listener.name,
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [_route(listener.pool)]}],
        },
        http_filters=filters,
        stream_idle_timeout=_seconds(config.stream_idle_timeout),
        request_headers_timeout=_seconds(10.0),  # limits connections whose headers never end
        common_http_protocol_options={"idle_timeout": _seconds(3600.0)},
        # Keep the client's request id, so that it is the same in all logs.
        preserve_external_request_id=True,
    )
    if listener.mode is not PickMode.ROUND_ROBIN and config.responses is ResponseSource.ACCESS_LOG:
        manager["access_log"] = [_access_log(listener.pool)]
    return {
        "name": listener.name,
        "address": _address(listener.address),
        # A second Envoy on this port must fail to start instead of silently taking half of the connections.
        "enable_reuse_port": False,
        # Also limits a buffered request body: with the default of 1 MiB Envoy refuses long prompts.
        "per_connection_buffer_limit_bytes": config.max_body + _BUFFER_SLACK,
        "filter_chains": [{"filters": [_named("envoy.filters.network.http_connection_manager", manager)]}],
    }


def _route(pool: str) -> Data:
    return {
        "match": {"prefix": "/"},
        "route": {
            "cluster": pool,
            "timeout": "0s",  # the duration of a response is limited by `stream_idle_timeout` only
            # Safe for any request: the server has not received it.
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


def _ext_proc(listener: EnvoyListener, config: EnvoyConfig, *, reports: bool) -> Data:
    # The picker learns the end of the response from the end of the stream. With a buffered body Envoy keeps the stream
    # open until then although it skips every response phase; in full duplex only if response trailers are sent.
    mode = {
        "request_header_mode": "SEND",
        "request_body_mode": "BUFFERED",
        "request_trailer_mode": "SKIP",
        "response_header_mode": "SKIP",
        "response_body_mode": "NONE",
        "response_trailer_mode": "SKIP",
    }
    if listener.mode is PickMode.FULL_DUPLEX:
        mode |= {
            "request_body_mode": "FULL_DUPLEX_STREAMED",
            "request_trailer_mode": "SEND",  # required by full duplex
            "response_trailer_mode": "SEND",
        }
    attributes = {}
    if reports or config.responses is ResponseSource.RESPONSE_HEADERS:
        mode["response_header_mode"] = "SEND"  # load reports are response headers
        # After a retry, another endpoint may have answered; and Envoy's own 503 must not count as a server's.
        attributes["response_attributes"] = [SERVED, DETAILS, ATTEMPTS]
    return _typed(
        "filters.http.ext_proc.v3.ExternalProcessor",
        # No timeout of the stream: it lasts as long as the response.
        grpc_service={"envoy_grpc": {"cluster_name": picker_cluster(listener.pool)}},
        failure_mode_allow=config.failure_mode is FailureMode.OPEN,
        processing_mode=mode,
        **attributes,
        message_timeout=_seconds(config.message_timeout),
        # Without these Envoy ignores the pick and does not send the subset hint.
        metadata_options={
            "forwarding_namespaces": {"untyped": ["envoy.lb", "envoy.lb.subset_hint"]},
            "receiving_namespaces": {"untyped": ["envoy.lb"]},
        },
    )


def _access_log(pool: str) -> Data:
    """Sends an entry for each request to the picker when it is over."""
    return _named(
        "envoy.access_loggers.http_grpc",
        _typed(
            "access_loggers.grpc.v3.HttpGrpcAccessLogConfig",
            common_config={
                "log_name": pool,
                "transport_api_version": "V3",
                "grpc_service": {"envoy_grpc": {"cluster_name": picker_cluster(pool)}},
                "buffer_flush_interval": _seconds(_LOG_FLUSH_SECONDS),
            },
            # Tells a full queue from a failure.
            additional_response_headers_to_log=["retry-after"],
        ),
    )


def _clusters(pool: EnvoyPool, message_timeout: float) -> Iterable[Data]:
    for endpoint in pool.endpoints:
        host, _ = _host_and_port(endpoint)
        if not _is_ip(host):
            raise ValueError(f"pool {pool.name}: endpoint {endpoint}: use its IP address, as the picker does")
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
                # Detects an unresponsive picker once, not by the timeout of each request. In full duplex Envoy has no
                # message timeout, so this is the only detection.
                {
                    "http2_protocol_options": {
                        "connection_keepalive": {
                            "interval": _seconds(2 * message_timeout),
                            "timeout": _seconds(message_timeout),
                        }
                    }
                }
            ),
        }


def _http(protocol: Data, idle: float | None = None) -> Data:
    options: Data = {"explicit_http_config": protocol}
    if idle is not None:
        # Below the 5 s after which uvicorn, and so most model servers, close an idle connection: otherwise a request
        # may be sent on a connection that the server is closing.
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
        raise ValueError(f"{text!r} is not host:port, or [address]:port for IPv6")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _seconds(seconds: float) -> str:
    """A duration in protobuf's JSON format."""
    return f"{seconds:g}s"
