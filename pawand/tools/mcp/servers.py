"""The MCP servers of the settings: started when a turn first needs their tools, and again when they have ended."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pawand import config
from pawand.aio import Workers
from pawand.errors import ToolError
from pawand.redact import Redactor
from pawand.tools import output
from pawand.tools.base import Emit, Tool, ToolContext
from pawand.tools.sandbox import Sandbox

if TYPE_CHECKING:
    from pawand.tools.mcp.connection import Connection
    from pawand.tools.mcp.schemas import Listed

FIRST_PAUSE_SECS = 1.0
LONGEST_PAUSE_SECS = 300.0
STEADY_SECS = 60.0  # what lasted so long was no failure to start
CLOSE_SECS = 1.5
_SECRET_WORDS = re.compile(
    r"(?i)(?:.*[_-])?(?:(?:api)?key|pat|token|secret|password|passwd|pwd|dsn|authorization|cookie|credentials?)(?:[_-].*)?"
)
_USER_INFO = re.compile(r"://[^/@\s]*:([^/@\s]+)@")

log = logging.getLogger(__name__)


class McpServers:
    """All enabled servers. Making it starts and imports nothing."""

    def __init__(
        self,
        settings: dict[str, config.Mcp],
        sandbox: Sandbox,
        redactor: Redactor,
        former: McpServers | None = None,
    ) -> None:
        """`former` ran by other settings: what they say alike of a server goes on."""
        old = {server.name: server for server in former._servers} if former is not None else {}
        self._servers: list[_Server] = [
            old[name] if name in old and old[name].settings == server else _Server(name, server, sandbox, redactor)
            for name, server in settings.items()
            if server.enabled
        ]
        for server in settings.values():
            redactor.learn(_secrets(server))
        self._missing = False

    async def tools(self) -> list[Tool]:
        """The tools of the servers that run; those that do not are started first, all at the same time.

        Waits no longer than a server may take to connect. A server that failed is left alone for a while.
        """
        if not self._servers or self._missing:
            return []
        try:
            await asyncio.to_thread(_load)
        except ImportError as error:
            self._missing = True
            log.warning("MCP servers are not used: %s; run: pip install 'pawand[mcp]'", error)
            return []
        from pawand.tools.mcp import schemas

        listings = await asyncio.gather(*(server.tools() for server in self._servers))
        servers = {server.name: server for server in self._servers}
        named = schemas.named((server.name, tools) for server, tools in zip(self._servers, listings, strict=True))
        return [_tool(name, servers[server], listed) for name, server, listed in named]

    async def aclose(self, heir: McpServers | None = None) -> None:
        """End all servers but those that `heir` took over; none starts again."""
        kept = heir._servers if heir is not None else []
        await asyncio.gather(*(server.aclose() for server in self._servers if server not in kept))


def _load() -> Callable[[str, config.Mcp, Sandbox, Workers], Connection]:
    """Import the SDK (0.8 s; it blocks) and tell its loggers that what they report is reported by us."""
    from pawand.tools.mcp.connection import Connection

    for name in ("mcp", "client", "httpx2"):  # "client" is the name of the SDK's session
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return Connection


def _secrets(server: config.Mcp) -> list[str]:
    """What reaches the server under a name that speaks of a secret, and the passwords in addresses."""
    values = {**server.env, **server.headers}
    found = [value for name, value in values.items() if _SECRET_WORDS.fullmatch(name)]
    found += [value.partition(" ")[2] for name, value in server.headers.items() if name.lower() == "authorization"]
    return found + [password for value in [*values.values(), *server.args] for password in _USER_INFO.findall(value)]


def _tool(name: str, server: _Server, listed: Listed) -> Tool:
    async def run(arguments: dict[str, Any], context: ToolContext, emit: Emit) -> Any:
        return await server.call(listed.name, arguments, context.bash_timeout_secs)

    return Tool(name=name, description=listed.description, arguments=listed.arguments, run=run)


class _Server:
    """One server through all its connections."""

    def __init__(self, name: str, settings: config.Mcp, sandbox: Sandbox, redactor: Redactor) -> None:
        self.name = name
        self.settings = settings
        self._sandbox = sandbox
        self._redactor = redactor
        # A check goes on when it is given up. So this server has one thread for all its connections, the next check
        # waits for the last, and those that read and save files stay free.
        self._checks = Workers(f"mcp-{name}", 1)
        self._connection: Connection | None = None
        self._owner: asyncio.Task[None] | None = None
        self._failures = 0
        self._not_before = 0.0
        self._reason = ""
        self._closed = False

    async def tools(self) -> list[Listed]:
        connection = await self._connected()
        return await connection.tools() if connection is not None else []

    async def call(self, tool: str, arguments: dict[str, Any], seconds: float) -> Any:
        """Raises ToolError, also where the server has ended; the next call then starts it again."""
        connection = self._connection
        if connection is not None and connection.opened.is_set() and not connection.works and not connection.noticed:
            connection.noticed = True
            raise ToolError(f"the MCP server {self.name} has ended since it was last used; call again to start it anew")
        connection = await self._connected()
        if self._closed:
            raise ToolError(f"the MCP server {self.name} was stopped: the settings have changed. Go on without it.")
        if connection is None:
            wait = max(1, round(self._not_before - time.monotonic()))
            reason = self._reason or "it has not started yet"
            raise ToolError(f"the MCP server {self.name} does not run ({reason}); it may be tried again in {wait} s")
        return await connection.call(tool, arguments, seconds)

    async def aclose(self) -> None:
        self._closed = True
        self._checks.close(give_up=True)
        if self._owner is None:
            return
        if self._connection is not None and self._connection.works:
            self._connection.close()
            await asyncio.wait([self._owner], timeout=CLOSE_SECS)
        self._owner.cancel()
        await asyncio.wait([self._owner])

    async def _connected(self) -> Connection | None:
        """A connection that works, made where there is none and there may be; None after the limit at the latest."""
        connection = self._connection
        if connection is not None and not connection.works and self._owner is not None and connection.opened.is_set():
            await asyncio.wait([self._owner], timeout=connection.limit)  # the one that ended is being cleared away
        if self._owner is None or self._owner.done():
            if self._closed or time.monotonic() < self._not_before:
                return None
            self._connection = _load()(self.name, self.settings, self._sandbox, self._checks)
            self._owner = asyncio.create_task(self._own(self._connection))
        connection = self._connection
        assert connection is not None
        if not connection.opened.is_set():
            opening = asyncio.create_task(connection.opened.wait())
            await asyncio.wait([opening, self._owner], timeout=connection.limit, return_when=asyncio.FIRST_COMPLETED)
            opening.cancel()
        return connection if connection.works else None

    async def _own(self, connection: Connection) -> None:
        """The life of one connection, and what follows from its end."""
        started = time.monotonic()
        reason = await connection.run()
        if self._closed:
            return
        opened = connection.opened.is_set()
        lasted = time.monotonic() - started
        self._reason = output.one_line(self._redactor.log(reason))
        if opened and lasted > STEADY_SECS:
            self._failures = 0
        self._failures += 1
        # One that keeps each turn waiting until the limit is left alone for longer.
        first = max(FIRST_PAUSE_SECS, 0.0 if opened else 2 * lasted)
        pause = min(first * 2.0 ** min(self._failures - 1, 30), LONGEST_PAUSE_SECS)
        if opened and self._failures == 1:
            pause = 0.0
        self._not_before = time.monotonic() + pause
        log.warning("MCP server %s %s: %s", self.name, "has ended" if opened else "could not be started", self._reason)
