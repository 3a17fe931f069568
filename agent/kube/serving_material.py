"""What a Secret holds of the agent's own serving CA, and when it is replaced.

The CA lives two years and is replaced half a year before its end; the server's certificate lives 90 days and is
replaced 45 days before. After a replacement the bundle has the old CA too, until that has expired, so that whoever
verifies accepts both.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from agent.serve.tls.authority import new_authority, server_names, signed_server
from agent.serve.tls.files import CertificatePair
from agent.serve.tls.validity import Malformed, first_certificate, validity

RENEW_AUTHORITY_SECONDS: Final = 180 * 86400.0  # before its end: longer than the life of a server's certificate
RENEW_SERVER_SECONDS: Final = 45 * 86400.0
MAX_AUTHORITIES: Final = 4  # in a bundle
_BLOCK: Final = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)
_KEYS: Final = ("ca.crt", "ca.key", "tls.crt", "tls.key")


class ServingMaterial(NamedTuple):
    """The authority, what verifies its certificates (PEM), and the certificate of the server."""

    authority: CertificatePair
    bundle: bytes
    server: CertificatePair


def material_of(data: Mapping[str, str]) -> ServingMaterial | None:
    """What the data of a Secret hold (base64); None where a part is missing or unreadable."""
    try:
        bundle, key, certificate, server_key = (base64.b64decode(data[name], validate=True) for name in _KEYS)
        for each in (bundle, certificate):
            validity(first_certificate(each))
    except (KeyError, binascii.Error, Malformed):
        return None
    found = _BLOCK.search(bundle)
    if found is None:
        return None
    return ServingMaterial(CertificatePair(found[0], key), bundle, CertificatePair(certificate, server_key))


def secret_data(material: ServingMaterial) -> dict[str, str]:
    """The data of the Secret. The first certificate of `ca.crt` is that of `ca.key`."""
    parts = (material.bundle, material.authority.key, material.server.certificate, material.server.key)
    return {name: base64.b64encode(part).decode() for name, part in zip(_KEYS, parts, strict=True)}


def renewed(material: ServingMaterial | None, names: Sequence[str], wall: float) -> ServingMaterial | None:
    """What replaces the material at `wall` (seconds since 1970); None while it may stay. Raises TlsProblem."""
    if material is None:
        authority = new_authority(wall)
        return ServingMaterial(authority, authority.certificate, signed_server(authority, names, wall))
    if _ends(material.authority.certificate) - wall < RENEW_AUTHORITY_SECONDS:
        authority = new_authority(wall)
        old = [each for each in _BLOCK.findall(material.bundle) if _ends(each) > wall][: MAX_AUTHORITIES - 1]
        bundle = b"".join(each if each.endswith(b"\n") else each + b"\n" for each in (authority.certificate, *old))
        return ServingMaterial(authority, bundle, signed_server(authority, names, wall))
    server = material.server.certificate
    if _ends(server) - wall < RENEW_SERVER_SECONDS or set(server_names(server)) != set(names):
        return material._replace(server=signed_server(material.authority, names, wall))
    return None


def _ends(certificate: bytes) -> float:
    return validity(first_certificate(certificate)).ends
