"""The admin port as a component."""

from __future__ import annotations

from agent.app.admin_access import AdminAccess
from agent.app.certificates import load
from agent.app.component import CannotStart
from agent.app.listen import check_address
from agent.config.addresses import join_address, split_address
from agent.config.config import Config
from agent.serve.admin.server import AdminServer
from agent.serve.http.server import CannotListen
from agent.serve.tls.server import ServerTls


class AdminPort:
    """Runs an AdminServer; `address` is where it listens, once it is started."""

    name = "admin"

    def __init__(self, config: Config, server: AdminServer, access: AdminAccess, tls: ServerTls | None = None) -> None:
        self.address = ""
        self._tls = tls
        self._configured = config.admin.address
        self._server = server
        self._access = access

    async def start(self) -> None:
        """Listen."""
        check_address(self._configured, "admin address", "--admin-address or admin.address")
        await self._access.start()
        if self._tls is not None:
            load(self._tls)
        try:
            port = await self._server.start()
        except CannotListen as error:  # another program took the address since it was checked
            raise CannotStart(str(error)) from error
        self.address = join_address(split_address(self._configured)[0], port)

    async def apply(self, config: Config) -> None:
        """Nothing: every option of the port needs a restart."""

    def readiness(self) -> list[str]:
        """Always ready."""
        return []

    async def stop(self, grace: float) -> None:
        """Disconnect the watchers, finish the responses under way, close."""
        await self._server.stop()
