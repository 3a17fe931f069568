"""Who may read the admin port, by `admin.auth`."""

from __future__ import annotations

from agent.app.component import CannotStart
from agent.clock import Clock
from agent.config.admin import KUBERNETES, TOKEN_FILE
from agent.config.config import Config
from agent.events import Hook
from agent.events.access import TokenFileProblem
from agent.kube.authn.access import Access
from agent.kube.authn.review_client import ReviewClient
from agent.kube.authn.static_tokens import StaticTokens, TokenFileUnusable
from agent.kube.cluster import Cluster
from agent.kube.errors import NoCluster
from agent.serve.http.access import PathAccess
from agent.serve.http.server import Authorize


class AdminAccess:
    """`authorize` is for the admin server; None where everybody may read."""

    def __init__(self, config: Config, cluster: Cluster, clock: Clock, hook: Hook) -> None:
        self.authorize: Authorize | None = None
        self._cluster: Cluster | None = None
        self._tokens: StaticTokens | None = None
        auth = config.admin.auth
        if auth.mode == KUBERNETES:
            self._cluster = cluster
            reviews = ReviewClient(cluster, auth.audiences, clock)
            self.authorize = PathAccess(Access(reviews, reviews, clock, hook))
        elif auth.mode == TOKEN_FILE:
            self._tokens = StaticTokens(auth.token_file, lambda problem: hook(TokenFileProblem(problem)))
            self.authorize = PathAccess(Access(self._tokens, None, clock, hook))

    async def start(self) -> None:
        """Read what decisions depend on. Raises CannotStart. An API server that does not answer yet is no reason."""
        try:
            if self._tokens is not None:
                self._tokens.load()
            if self._cluster is not None:
                await self._cluster.connect()
        except TokenFileUnusable as error:
            raise CannotStart(f"admin.auth.tokenFile: {error}") from error
        except NoCluster as error:
            raise CannotStart(f"admin.auth.mode: {KUBERNETES}: {error}; or write mode: {TOKEN_FILE}") from error
