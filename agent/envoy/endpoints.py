"""The endpoints of a pool as Envoy reads them: within its configuration, or in a file that it watches.

The file is a discovery response with one `ClusterLoadAssignment`, as Envoy's filesystem subscription expects it
(https://www.envoyproxy.io/docs/envoy/v1.40.0/api-docs/xds_protocol). Envoy reads it again when a file is renamed into
its directory, and not when it is written in place.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import lru_cache
from textwrap import indent
from typing import Any, Final

Data = dict[str, Any]

_ASSIGNMENT: Final = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"


def file_name(pool: str) -> str:
    """The name of the pool's file within the directory. Envoy knows the format by its end."""
    return f"{pool}.eds.json"


def document(pool: str, addresses: Iterable[str]) -> str:
    """The text of the pool's file, the same for every order of the addresses (`ip:port`)."""
    resource = {"@type": _ASSIGNMENT, **assignment(pool, ())}
    empty = json.dumps({"resources": [resource]}, indent=1) + "\n"
    listed = ",\n".join(map(_entry, sorted(addresses)))
    return empty.replace('"lb_endpoints": []', f'"lb_endpoints": [\n{listed}\n     ]') if listed else empty


@lru_cache(maxsize=1 << 16)
def _entry(address: str) -> str:
    """The lines of one endpoint. Kept, because a change of one endpoint writes the lines of all others again: 5,000 of
    them would take 0.2 s."""
    return indent(json.dumps({"endpoint": {"address": socket_address(address)}}, indent=1), " " * 6)


def addresses_of(text: str) -> frozenset[str]:
    """The addresses in the text of such a file; none in any other text."""
    try:
        (resource,) = json.loads(text)["resources"]
        found = [
            endpoint["endpoint"]["address"]["socket_address"]
            for locality in resource["endpoints"]
            for endpoint in locality["lb_endpoints"]
        ]
        return frozenset(_text(each["address"], each["port_value"]) for each in found)
    except (ValueError, LookupError, TypeError, RecursionError):
        return frozenset()


def eds_cluster(pool: str, directory: str) -> Data:
    """The fields of a cluster whose endpoints are in the pool's file in this directory."""
    # The directory is watched, so that a rename is noticed also where the file is a link (a mounted ConfigMap).
    source = {
        "path": f"{directory.rstrip('/') or ''}/{file_name(pool)}",
        "watched_directory": {"path": directory},
    }
    return {
        "type": "EDS",
        "eds_cluster_config": {"eds_config": {"resource_api_version": "V3", "path_config_source": source}},
    }


def assignment(cluster: str, addresses: Iterable[str]) -> Data:
    """The endpoints of a cluster. Raises ValueError for an address without a port."""
    endpoints = [{"endpoint": {"address": socket_address(address)}} for address in addresses]
    return {"cluster_name": cluster, "endpoints": [{"lb_endpoints": endpoints}]}


def socket_address(text: str) -> Data:
    """Envoy's form of `host:port`. Raises ValueError."""
    host, port = host_and_port(text)
    return {"socket_address": {"address": host, "port_value": port}}


def host_and_port(text: str) -> tuple[str, int]:
    """Host (IPv6 without brackets) and port. Raises ValueError."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{text!r} is not host:port, or [address]:port for IPv6")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _text(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
