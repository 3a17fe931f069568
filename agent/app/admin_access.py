"""Who may read the admin port, by `admin.auth`."""

from __future__ import annotations

import contextlib
from importlib.util import find_spec

from agent.app.component import CannotStart
from agent.clock import Clock
from agent.config.admin import KUBERNETES, TOKEN_FILE
from agent.config.config import Config
from agent.events import Hook
from agent.events.access import TokenFileProblem
from agent.kube.authn.access import Access
from agent.kube.authn.certificate_name import BadBundle
from agent.kube.authn.identity import Trust
from agent.kube.authn.review_client import ReviewClient
from agent.kube.authn.static_tokens import StaticTokens, TokenFileUnusable
from agent.kube.cluster import Cluster
from agent.kube.errors import NoCluster
from agent.serve.http.access import PathAccess
from agent.serve.http.server import Authorize
from agent.serve.tls.files import Fingerprint, TlsProblem, fingerprint, read


class AdminAccess:
    """`authorize` is for the admin server; None where everybody may read."""

    def __init__(self, config: Config, cluster: Cluster, clock: Clock, hook: Hook) -> None:
        self.authorize: Authorize | None = None
        self._cluster: Cluster | None = None
        self._tokens: StaticTokens | None = None
        auth = config.admin.auth
        self._client_ca_file = config.admin.tls.client_ca_file
        self._trust_read = Trust()
        self._seen: Fingerprint | None = None
        if auth.mode == KUBERNETES:
            self._cluster = cluster
            reviews = ReviewClient(cluster, auth.audiences, clock)
            self.authorize = PathAccess(Access(reviews, reviews, clock, hook, self._trust))
        elif auth.mode == TOKEN_FILE:
            self._tokens = StaticTokens(auth.token_file, lambda problem: hook(TokenFileProblem(problem)))
            self.authorize = PathAccess(Access(self._tokens, None, clock, hook, self._trust))

    async def start(self) -> None:
        """Read what decisions depend on. Raises CannotStart. An API server that does not answer yet is no reason."""
        if self.authorize is not None and self._client_ca_file and find_spec("cryptography") is None:
            raise CannotStart(
                "admin.tls.clientCaFile with admin.auth: the package that verifies the certificates of clients is "
                "not installed; pip install 'inference-gateway-agent[tls]'"
            )
        try:
            if self._tokens is not None:
                self._tokens.load()
            if self._cluster is not None:
                await self._cluster.connect()
        except TokenFileUnusable as error:
            raise CannotStart(f"admin.auth.tokenFile: {error}") from error
        except NoCluster as error:
            raise CannotStart(f"admin.auth.mode: {KUBERNETES}: {error}; or write mode: {TOKEN_FILE}") from error

    def _trust(self) -> Trust:
        """The authorities of `admin.tls.clientCaFile`, read again when it changes. One that cannot be read leaves the
        last in effect, as it does for TLS, which reports it."""
        if not self._client_ca_file:
            return self._trust_read
        from agent.kube.authn.certificates import CaBundle

        found = fingerprint([self._client_ca_file])
        if found != self._seen:
            self._seen = found
            with contextlib.suppress(TlsProblem, BadBundle):
                self._trust_read = Trust(clients=CaBundle(read([self._client_ca_file])[0]))
        return self._trust_read
