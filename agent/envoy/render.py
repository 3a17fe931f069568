"""Renders Envoy's bootstrap configuration as plain data (Envoy reads it as JSON or YAML).

One cluster per pool, with its endpoints or the file in which the agent keeps them, and one listener per pick mode.
Envoy takes a request's endpoint only from the metadata `envoy.lb` of the picker (`override_host`). The header of the
same name is removed from client requests before any filter or route. A request without a pick (`round_robin`, or a
picker that is down with `failure_mode` open), or with an endpoint that is not in the cluster, is routed by the fallback
policy, round robin.

Each value that differs from Envoy's default has its reason beside it; docs/reference/envoy.md lists them for operators.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any, Final, NamedTuple

from agent.config.envoy import MAX_MESSAGE_TIMEOUT_SECONDS, MESSAGE_TIMEOUT_SECONDS, STREAM_IDLE_SECONDS
from agent.envoy.endpoints import assignment, eds_cluster, host_and_port, socket_address
from agent.envoy.usage import usage_filter
from agent.requests.control_headers import CONTROL_HEADERS, TERMS, names
from agent.requests.exchange_text import FORMAT, TAG
from agent.requests.rejections import PICKER_UNAVAILABLE, WAITED_HEADER, error_type, proxy_replies

Data = dict[str, Any]

DESTINATION: Final = "x-gateway-destination-endpoint"
# Attributes of a response that the picker reads: the endpoint that answered, how Envoy came to the response, the tries.
SERVED: Final = "upstream.address"
DETAILS: Final = "response.code_details"
ATTEMPTS: Final = "upstream.request_attempt_count"

_TYPE: Final = "type.googleapis.com/envoy.extensions."
_UNLIMITED: Final = 1_000_000  # Envoy's default of 1,024 also limits the streams that are open
_BUFFER_SLACK: Final = 1 << 20  # a body just over `max_body` must reach the picker, which answers 413
# Detects a picker that does not respond at all, also in full duplex, where a message has no time limit, and for
# requests that are held, whose limit was extended. A picker that is only busy answers a PING before it reads a message.
_KEEPALIVE_SECONDS: Final = 10.0
_KEEPALIVE_TIMEOUT_SECONDS: Final = 5.0
# Envoy's default of 1 s is long for a server that fails at once; a batch of 0.1 s costs the agent less than a message
# for each request.
_LOG_FLUSH_SECONDS: Final = 0.1
_PICKER_RETRIES: Final = 30  # with the back-off below, about 7 s: the restart of an agent
_RETRY_BUDGET_PERCENT: Final = 20.0  # Envoy's default
# At most half: Envoy's load balancing uses all hosts, ejected or not, where fewer than half are healthy.
MAX_EJECTION_PERCENT: Final = 50


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

    The endpoints are not used where the configuration has a directory of files with them. `reports`: its picker reads
    the load reports (ORCA) in response headers. `replicas`: the `host:port` of further pickers; the name of one stands
    for all its addresses.
    """

    name: str
    endpoints: tuple[str, ...]
    picker: str = ""
    reports: bool = False
    replicas: tuple[str, ...] = ()


class EnvoyListener(NamedTuple):
    """A listener: its name, its address (`ip:port`; port 0 selects a free one), its pool, and how it picks."""

    name: str
    address: str
    pool: str
    mode: PickMode = PickMode.BUFFERED


class PickerTls(NamedTuple):
    """TLS of the connections to the pickers, with files on Envoy's machine. Without `ca_file` every certificate is
    accepted; `server_name`: empty for the host of the picker's address."""

    ca_file: str = ""
    server_name: str = ""
    cert_file: str = ""
    key_file: str = ""


class EnvoyConfig(NamedTuple):
    """The configuration of one Envoy. `max_body` is the picker's limit in bytes; `admin` must be a loopback address.

    `eds_directory`: where the agent keeps the endpoints of the pools (`agent.envoy.endpoints`). `retry_server_errors`:
    retry 500, 502 and 504 as well, at most `retry_budget` percent of a pool's requests at a time. `picker_retries`: of
    a connection to the picker, with `FailureMode.CLOSE`. `max_ejection_percent`: of a pool's endpoints at a time.
    `picker_tls`: None for plaintext. `untrusted_headers` are removed from what clients send, so that only what comes
    after in Envoy may set them: by default those of the terms of a request (agent.requests.control_headers). `usage`:
    Envoy reads the token usage of responses for the access log. Times in
    seconds: a message to the picker has `message_timeout`, which the picker may extend to `max_message_timeout` (0: not
    at all); a connection to it gets a PING each `keepalive`, and ends without an answer within `keepalive_timeout`.
    """

    pools: tuple[EnvoyPool, ...]
    listeners: tuple[EnvoyListener, ...]
    admin: str = "127.0.0.1:0"
    max_body: int = 16 << 20
    failure_mode: FailureMode = FailureMode.CLOSE
    message_timeout: float = MESSAGE_TIMEOUT_SECONDS
    max_message_timeout: float = MAX_MESSAGE_TIMEOUT_SECONDS
    stream_idle_timeout: float = STREAM_IDLE_SECONDS
    keepalive: float = _KEEPALIVE_SECONDS
    keepalive_timeout: float = _KEEPALIVE_TIMEOUT_SECONDS
    responses: ResponseSource = ResponseSource.ACCESS_LOG
    eds_directory: str = ""
    retry_server_errors: bool = False
    retry_budget: float = _RETRY_BUDGET_PERCENT
    picker_retries: int = _PICKER_RETRIES
    max_ejection_percent: int = MAX_EJECTION_PERCENT
    picker_tls: PickerTls | None = None
    untrusted_headers: tuple[str, ...] = TERMS
    usage: bool = True


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
    host, _ = host_and_port(config.admin)
    if not ipaddress.ip_address(host).is_loopback:
        raise ValueError(f"admin {config.admin}: clients of this address can stop Envoy; use 127.0.0.1")
    clusters = [cluster for pool in config.pools for cluster in _clusters(pool, config)]
    return {
        **_node(config),
        "admin": {"address": socket_address(config.admin)},
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
    filters: list[Data] = []
    if _reads_usage(listener, config):
        filters.append(usage_filter())
    if listener.mode is not PickMode.ROUND_ROBIN:
        filters.append(_named("envoy.filters.http.ext_proc", _ext_proc(listener, config, reports=reports)))
    filters.append(_named("envoy.filters.http.router", _typed("filters.http.router.v3.Router")))
    manager = _typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=listener.name,
        # Before routes and filters: a client must not choose its endpoint, nor its priority.
        early_header_mutation_extensions=[
            _named(
                "envoy.http.early_header_mutation.header_mutation",
                _typed(
                    "http.early_header_mutation.header_mutation.v3.HeaderMutation",
                    mutations=[{"remove": name} for name in (DESTINATION, *config.untrusted_headers)],
                ),
            )
        ],
        **_http_1(listener.pool),
        local_reply_config={"mappers": list(_local_replies(config.max_body))},
        route_config={
            "name": listener.name,
            # After all filters, also where there is no picker or it is down: a model server would believe the client.
            "request_headers_to_remove": list(names(CONTROL_HEADERS)),
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": list(_routes(listener, config))}],
            **({} if listener.mode is PickMode.ROUND_ROBIN else _WAITED),
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
        "address": socket_address(listener.address),
        # A second Envoy on this port must fail to start instead of silently taking half of the connections.
        "enable_reuse_port": False,
        # Also limits a buffered request body: with the default of 1 MiB Envoy refuses long prompts.
        "per_connection_buffer_limit_bytes": config.max_body + _BUFFER_SLACK,
        "filter_chains": [{"filters": [_named("envoy.filters.network.http_connection_manager", manager)]}],
    }


def _node(config: EnvoyConfig) -> Data:
    """Envoy's name for itself, which every dynamic source of configuration requires."""
    return {"node": {"id": "envoy", "cluster": "igw"}} if config.eds_directory else {}


def _http_1(host: str) -> Data:
    """HTTP/1.0 clients, such as nginx with its default `proxy_http_version`; `host` where they send none."""
    return {"http_protocol_options": {"accept_http_10": True, "default_host_for_http_10": host}}


# How long a request was held, of the picker's metadata: the picker needs no message for the response. A request that
# was not held has no value, and gets no header.
_WAITED: Final[Data] = {
    "response_headers_to_add": [
        {
            "header": {"key": WAITED_HEADER, "value": f"%DYNAMIC_METADATA(envoy.lb:{WAITED_HEADER})%"},
            "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
        }
    ]
}


def _routes(listener: EnvoyListener, config: EnvoyConfig) -> Iterable[Data]:
    action = {
        "cluster": listener.pool,
        "timeout": "0s",  # the duration of a response is limited by `stream_idle_timeout` only
        "retry_policy": _retry_policy(config),
    }
    yield _websocket_route(listener, action, config.responses)
    yield {"match": {"prefix": "/"}, "route": action}


def _reads_usage(listener: EnvoyListener, config: EnvoyConfig) -> bool:
    """Whether the access log of the listener has the token usage."""
    logged = listener.mode is not PickMode.ROUND_ROBIN and config.responses is ResponseSource.ACCESS_LOG
    return config.usage and logged


def _websocket_route(listener: EnvoyListener, action: Data, responses: ResponseSource) -> Data:
    """WebSocket upgrades on any path, such as /v1/realtime: the endpoint is picked at the headers, as no body ends."""
    found = {"name": "upgrade", "string_match": {"exact": "websocket", "ignore_case": True}}
    route: Data = {
        "match": {"prefix": "/", "headers": [found]},
        "route": {**action, "upgrade_configs": [{"upgrade_type": "websocket"}]},
    }
    if listener.mode is not PickMode.ROUND_ROBIN:
        override = _typed(
            "filters.http.ext_proc.v3.ExtProcPerRoute",
            overrides={
                "processing_mode": {
                    "request_header_mode": "SEND",
                    "request_body_mode": "NONE",
                    "request_trailer_mode": "SKIP",
                    "response_header_mode": "SEND" if responses is ResponseSource.RESPONSE_HEADERS else "SKIP",
                    "response_body_mode": "NONE",
                    # Otherwise Envoy ends the stream at the pick, and the picker learns the end of the request from it.
                    "response_trailer_mode": "SEND",
                }
            },
        )
        route["typed_per_filter_config"] = {"envoy.filters.http.ext_proc": override}
    return route


def _retry_policy(config: EnvoyConfig) -> Data:
    """One retry at another endpoint: the next of the pick's list, else one that round robin selects."""
    # `reset` is a connection that ends before the response headers: the client has received nothing, and has no part in
    # the choice of the server, so it cannot depend on which one answers. `reset-before-request` would not retry a
    # request that was sent on a connection which the server was closing.
    policy: Data = {"retry_on": "connect-failure,refused-stream,reset"}
    if config.retry_server_errors:
        # Not 503: a full queue answers 503, and a retry would add load to a pool that has too much.
        policy = {
            "retry_on": "connect-failure,refused-stream,reset,retriable-status-codes",
            "retriable_status_codes": [500, 502, 504],
        }
    return {
        **policy,
        "num_retries": 1,
        "retry_host_predicate": [
            _named(
                "envoy.retry_host_predicates.previous_hosts",
                _typed("retry.host.previous_hosts.v3.PreviousHostsPredicate"),
            )
        ],
        "host_selection_retry_max_attempts": 5,
    }


def _outlier_detection(config: EnvoyConfig) -> Data:
    """Ejects an endpoint to which Envoy cannot connect, and for no response.

    The agent takes an endpoint out for its responses, because it can distinguish a full queue from a failure. An
    ejected endpoint is still used for a pick that names it: ejection affects only what round robin selects.
    """
    return {
        "split_external_local_origin_errors": True,
        "consecutive_local_origin_failure": 3,
        "enforcing_consecutive_local_origin_failure": 100,
        "interval": "1s",  # of the check whether an ejection is over
        "base_ejection_time": "10s",
        "max_ejection_time": "60s",
        "max_ejection_percent": config.max_ejection_percent,
        "always_eject_one_host": False,
        "enforcing_consecutive_5xx": 0,  # a full queue answers 503
        "enforcing_consecutive_gateway_failure": 0,
        "enforcing_success_rate": 0,
        "enforcing_local_origin_success_rate": 0,
        "enforcing_failure_percentage": 0,
        "enforcing_failure_percentage_local_origin": 0,
    }


def _picker_retry_policy(config: EnvoyConfig) -> Data:
    """Retries of the connection to the picker, so that a restart of the agent delays requests and fails none.

    With `FailureMode.OPEN` only one: such a request is routed round robin instead of waiting.
    """
    retries = min(1, config.picker_retries) if config.failure_mode is FailureMode.OPEN else config.picker_retries
    if retries == 0:
        return {}
    return {
        "retry_policy": {
            # Not `reset`: an agent that accepts connections and does not respond is detected by a reset, after seconds.
            "retry_on": "connect-failure,refused-stream,unavailable",
            "num_retries": retries,
            "retry_back_off": {"base_interval": "0.1s", "max_interval": "0.5s"},
        }
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
        grpc_service={
            "envoy_grpc": {"cluster_name": picker_cluster(listener.pool)},
            **_picker_retry_policy(config),
        },
        failure_mode_allow=config.failure_mode is FailureMode.OPEN,
        processing_mode=mode,
        **attributes,
        message_timeout=_seconds(config.message_timeout),
        max_message_timeout=_seconds(config.max_message_timeout),
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
                "custom_tags": [{"tag": TAG, "value": FORMAT}],
            },
            # Tells a full queue from a failure.
            additional_response_headers_to_log=["retry-after"],
        ),
    )


def _endpoints(pool: EnvoyPool, config: EnvoyConfig) -> Data:
    """Where the cluster's endpoints come from. Raises ValueError for a host name that Envoy would not resolve."""
    if config.eds_directory:
        return eds_cluster(pool.name, config.eds_directory)
    for endpoint in pool.endpoints:
        host, _ = host_and_port(endpoint)
        if not _is_ip(host):
            raise ValueError(
                f"pool {pool.name}: endpoint {endpoint}: use its IP address, as the picker does, "
                "or set envoy.edsDirectory, where the agent writes the addresses of names"
            )
    return {"type": "STATIC", "load_assignment": assignment(pool.name, pool.endpoints)}


def _clusters(pool: EnvoyPool, config: EnvoyConfig) -> Iterable[Data]:
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
        "connect_timeout": "1s",
        **_endpoints(pool, config),
        "load_balancing_policy": {
            "policies": [{"typed_extension_config": _named("envoy.load_balancing_policies.override_host", override)}]
        },
        "outlier_detection": _outlier_detection(config),
        "circuit_breakers": _pool_limits(config),
        "typed_extension_protocol_options": _http({"http_protocol_options": {}}, idle=4.0),
    }
    if pool.picker:
        pickers = (pool.picker, *pool.replicas)
        named = [picker for picker in pickers if not _is_ip(host_and_port(picker)[0])]
        name = picker_cluster(pool.name)
        yield {
            "name": name,
            "type": "STRICT_DNS" if named else "STATIC",
            "connect_timeout": "1s",
            "load_assignment": assignment(name, pickers),
            **_picker_tls([host_and_port(picker)[0] for picker in pickers], config.picker_tls),
            **(_picker_health() if len(pickers) > 1 or named else {}),
            "circuit_breakers": _no_limits(),
            "typed_extension_protocol_options": _http(
                {
                    "http2_protocol_options": {
                        "connection_keepalive": {
                            "interval": _seconds(config.keepalive),
                            "timeout": _seconds(config.keepalive_timeout),
                        }
                    }
                }
            ),
        }


def _picker_tls(hosts: Sequence[str], tls: PickerTls | None) -> Data:
    """The transport of the connections to the pickers at these hosts, for their calls and for the access log. Without a
    name for all of them, a certificate has to be of one of the hosts."""
    if tls is None:
        return {}
    names = [tls.server_name] if tls.server_name else list(dict.fromkeys(hosts))
    common: Data = {
        "alpn_protocols": ["h2"],
        "tls_params": {"tls_maximum_protocol_version": "TLSv1_3"},  # the default of a client may be TLS 1.2
    }
    if tls.ca_file:
        common["validation_context"] = {
            "trusted_ca": {"filename": tls.ca_file},
            "match_typed_subject_alt_names": [
                {"san_type": "IP_ADDRESS" if _is_ip(name) else "DNS", "matcher": {"exact": name}} for name in names
            ],
        }
    if tls.cert_file:
        common["tls_certificates"] = [
            {"certificate_chain": {"filename": tls.cert_file}, "private_key": {"filename": tls.key_file}}
        ]
    context = _typed(
        "transport_sockets.tls.v3.UpstreamTlsContext",
        # An IP address is no SNI (RFC 6066, section 3), and a cluster has one for all its hosts.
        **({} if len(names) > 1 or _is_ip(names[0]) else {"sni": names[0]}),
        common_tls_context=common,
    )
    return {"transport_socket": _named("envoy.transport_sockets.tls", context)}


def _picker_health() -> Data:
    """Health checks of several pickers: one that stops or starts answers NOT_SERVING, and gets no new requests. Until a
    check has seen it, the retries of the ext_proc filter go to another one."""
    return {
        "health_checks": [
            {
                "timeout": "1s",
                "interval": "1s",
                "no_traffic_interval": "1s",  # Envoy's default of 60 s would find a picker that has started after that
                "unhealthy_threshold": 1,
                "healthy_threshold": 1,
                "grpc_health_check": {"service_name": "readiness"},
            }
        ],
        # Envoy's default of 50 % would send requests to two pickers that are down as well, where one of three is up.
        "common_lb_config": {"healthy_panic_threshold": {"value": 1}},
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


def _pool_limits(config: EnvoyConfig) -> Data:
    """No limits, but for retries where responses are retried: a pool that fails must not receive everything twice."""
    limits = _no_limits()
    if config.retry_server_errors:
        (threshold,) = limits["thresholds"]
        threshold["retry_budget"] = {
            "budget_percent": {"value": config.retry_budget},
            "min_retry_concurrency": 3,
        }
    return limits


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


def _typed(kind: str, **fields: Any) -> Data:
    return {"@type": _TYPE + kind, **fields}


def _named(name: str, typed_config: Data) -> Data:
    return {"name": name, "typed_config": typed_config}


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _seconds(seconds: float) -> str:
    """A duration in protobuf's JSON format."""
    return f"{seconds:g}s"
