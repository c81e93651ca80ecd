"""One connection to an MCP server, from its greeting to its end, in one task as the SDK asks for it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import pydantic
from mcp import ClientSession, MCPError
from mcp.client.session import IncomingMessage
from mcp.shared.jsonrpc_dispatcher import JSONRPCDispatcher
from mcp_types import (
    CONNECTION_CLOSED,
    CallToolRequest,
    CallToolRequestParams,
    CallToolResult,
    Implementation,
    PaginatedRequestParams,
    Tool,
    ToolListChangedNotification,
)

from pawand import __version__, config
from pawand.aio import Workers
from pawand.errors import ToolError
from pawand.tools.mcp import results, schemas, transport
from pawand.tools.mcp.schemas import Listed
from pawand.tools.output import clean
from pawand.tools.sandbox import Sandbox

MAX_TOOLS = 128
PROGRAM_SECS = 30.0  # npx fetches what it starts
HTTP_SECS = transport.CONNECT_SECS
_SESSION_LOST = "Session terminated"  # the SDK's word for a server that does not know our session any more

log = logging.getLogger(__name__)


class Connection:
    """Runs once: `run` lasts as long as the connection; `opened` is set once its tools are known.

    `checks` is where schemas are checked.
    """

    def __init__(self, name: str, settings: config.Mcp, sandbox: Sandbox, checks: Workers) -> None:
        self._name = name
        self._settings = settings
        self._sandbox = sandbox
        self._checks = checks
        self._link: transport.Link | None = None
        self._session: ClientSession | None = None
        self._dispatcher: JSONRPCDispatcher | None = None
        self._tools: list[Listed] = []
        self._changed = False
        self._listing: asyncio.Task[None] | None = None
        self._requests: set[asyncio.Task[CallToolResult]] = set()
        self.opened = asyncio.Event()
        self.noticed = False
        """Whether a call was told of the end."""
        self.limit = HTTP_SECS if settings.command is None else PROGRAM_SECS

    @property
    def works(self) -> bool:
        return self.opened.is_set() and self._link is not None and not self._link.ended.is_set()

    @property
    def reason(self) -> str:
        """Why it ended, as far as that is known."""
        return self._link.reason if self._link is not None else ""

    async def run(self) -> str:
        """Connect, and return when the connection has ended: the reason, empty when it was `close`d."""
        try:
            async with self._transport() as link:
                self._link = link
                client = Implementation(name="pawand", version=__version__)
                self._dispatcher = JSONRPCDispatcher(link.read, link.write)
                async with ClientSession(
                    dispatcher=self._dispatcher, message_handler=self._hear, client_info=client
                ) as session:
                    self._session = session
                    async with asyncio.timeout(self.limit):
                        await _greet(session)
                        await self._list()
                    self.opened.set()
                    await link.ended.wait()
        except Exception as error:  # noqa: BLE001 - whatever a server does to the SDK ends no more than its connection
            return self._explain(error)
        return link.reason

    def close(self) -> None:
        """End in good order: the program's input is closed, or the HTTP session given back."""
        self._end("")

    async def tools(self) -> list[Listed]:
        """What the server offers; asked anew where it said that this has changed."""
        if self._changed:
            if self._listing is None or self._listing.done():
                self._listing = asyncio.create_task(self._relist())
            await asyncio.wait([self._listing])
        return self._tools if self.works else []

    async def call(self, tool: str, arguments: dict[str, Any], seconds: float) -> Any:
        """The result as a JSON value. Raises ToolError for a failure, at once where the connection ends."""
        request = asyncio.create_task(self._request(tool, arguments))
        self._requests.add(request)
        request.add_done_callback(self._forget)
        try:
            # Not awaited once it is given up: the SDK may take seconds to tell a server that reads nothing.
            await asyncio.wait([request], timeout=seconds)
        finally:
            request.cancel()
        if not request.done():
            raise ToolError(f"the MCP server {self._name} did not answer within {seconds} s; the call was given up")
        try:
            return results.value(request.result())
        except MCPError as error:
            if error.message == _SESSION_LOST:
                self._end("it has forgotten the session")
            if not self.works:
                self.noticed = True
                raise ToolError(
                    f"the MCP server {self._name} has ended during the call; call again to start it anew"
                ) from error
            raise ToolError(f"the MCP server {self._name} refused the call: {error.message}") from error
        except pydantic.ValidationError as error:
            raise ToolError(f"the MCP server {self._name} answered what is no result of a tool") from error

    def _transport(self) -> AbstractAsyncContextManager[transport.Link]:
        if self._settings.command is None:
            return transport.http(self._settings)
        return transport.program(self._name, self._settings, self._sandbox)

    def _explain(self, error: BaseException) -> str:
        leaves = list(_leaves(error))
        # That the connection is closed says nothing where something else says why.
        error = next((leaf for leaf in leaves if not isinstance(leaf, MCPError)), leaves[0])
        if isinstance(error, TimeoutError):
            return f"it did not answer within {self.limit:g} s"
        if isinstance(error, pydantic.ValidationError):
            return "it does not speak MCP"
        if isinstance(error, MCPError) and error.code == CONNECTION_CLOSED and self.reason:
            return self.reason
        return str(error) or type(error).__name__

    def _end(self, reason: str) -> None:
        if self._link is not None:
            self._link.end(reason)

    async def _request(self, tool: str, arguments: dict[str, Any]) -> CallToolResult:
        """Not by the SDK's `call_tool`, which checks the answer with the server's own regular expressions."""
        assert self._session is not None
        whole = json.loads(clean(json.dumps(arguments, ensure_ascii=False)))  # models write lone surrogates
        request = CallToolRequest(params=CallToolRequestParams(name=tool, arguments=whole))
        return await self._session.send_request(request, CallToolResult)

    def _forget(self, request: asyncio.Task[CallToolResult]) -> None:
        self._requests.discard(request)
        if not request.cancelled():
            request.exception()  # taken note of: nobody may be left to ask

    async def _hear(self, message: IncomingMessage) -> None:
        if isinstance(message, ToolListChangedNotification):
            self._changed = True

    async def _relist(self) -> None:
        try:
            async with asyncio.timeout(self.limit):
                await self._list()
        except Exception as error:  # noqa: BLE001 - as in `run`
            self._end(self._explain(error))

    async def _page(self, session: ClientSession, cursor: str | None) -> tuple[list[Tool | Any], str | None]:
        """Some tools and where the next ones are. The SDK takes all of them or none; then they come as they are."""
        try:
            page = await session.list_tools(params=PaginatedRequestParams(cursor=cursor) if cursor else None)
        except pydantic.ValidationError:
            assert self._dispatcher is not None
            raw = await self._dispatcher.send_raw_request("tools/list", {"cursor": cursor} if cursor else None)
            if not isinstance(raw.get("tools"), list):
                raise
            following = raw.get("nextCursor")
            return raw["tools"], following if isinstance(following, str) else None
        return [*page.tools], page.next_cursor

    async def _list(self) -> None:
        self._changed = False
        assert self._session is not None
        found: list[Tool | Any] = []
        cursor: str | None = None
        for _ in range(MAX_TOOLS):
            tools, cursor = await self._page(self._session, cursor)
            found += tools
            if not cursor or len(found) > MAX_TOOLS:
                break
        if len(found) > MAX_TOOLS:
            log.warning("MCP server %s offers more than %d tools; the first ones are used", self._name, MAX_TOOLS)
        self._tools, refused = await self._checks.do(schemas.accept, found[:MAX_TOOLS])
        if refused:
            log.warning("MCP server %s: %d tools are not used; %s", self._name, len(refused), refused[0])


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


async def _greet(session: ClientSession) -> None:
    """The handshake that all servers know but those that know only what came after it."""
    try:
        await session.initialize()
    except MCPError as error:
        try:
            await session.discover()
        except MCPError:
            raise error from None
