"""How messages reach an MCP server and come from it: the pipes of a program in the sandbox, or HTTP.

What comes is a stranger's. Whatever is too long, or more than we can answer, ends the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import anyio
import httpx2
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCError, JSONRPCRequest, JSONRPCResponse, jsonrpc_message_adapter

from pawand import config
from pawand.aio import uninterrupted
from pawand.tools import output
from pawand.tools.sandbox import Sandbox

MAX_BYTES = 16 * 1024 * 1024
HTTP_BYTES = 4 * 1024 * 1024  # decoded by the SDK before we see how many parts there are
MAX_FRAME_BYTES = 512 * 1024
MAX_PARTS = 5000  # more would hold up the event loop while the SDK checks them
MAX_UNANSWERED = 256
READ_BYTES = 64 * 1024
THREAD_BYTES = 256 * 1024  # a longer message would hold up the event loop while it is decoded
LAST_WORDS_SECS = 0.5
LINES_AT_ONCE = 100
LAST_WORDS_BYTES = 4096
CONNECT_SECS = 10.0
TOO_MANY_PARTS = "it sent an answer of too many parts"
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


class Broken(Exception):  # noqa: N818 - it names what became of the connection
    """The server did what ends its connection."""


class Link:
    """Both directions of a connection as the SDK takes them, and its end."""

    def __init__(self) -> None:
        self._incoming, self.read = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        self.write, self._outgoing = anyio.create_memory_object_stream[SessionMessage](0)
        self.ended = asyncio.Event()
        self.reason = ""
        self._unanswered = 0

    def end(self, reason: str) -> None:
        """The first reason counts. Whoever waits for an answer is told at once."""
        if not self.ended.is_set():
            self.reason = reason
            self.ended.set()
            self._incoming.close()

    def close(self) -> None:
        for stream in (self._incoming, self.read, self.write, self._outgoing):
            stream.close()

    async def deliver(self, message: SessionMessage | Exception) -> None:
        """Hand on what the server sent. Raises Broken for what nobody could answer or read."""
        if isinstance(message, SessionMessage) and isinstance(message.message, JSONRPCRequest):
            self._unanswered += 1
            if self._unanswered > MAX_UNANSWERED:
                raise Broken("it asks faster than it reads our answers")
        if isinstance(message, SessionMessage) and isinstance(message.message, JSONRPCResponse):
            parts = (len(part) for part in message.message.result.values() if isinstance(part, list))
            if max(parts, default=0) > MAX_PARTS:
                raise Broken(TOO_MANY_PARTS)
        await self._incoming.send(message)

    async def outgoing(self) -> AsyncIterator[SessionMessage]:
        async for message in self._outgoing:
            yield message
            if isinstance(message.message, JSONRPCResponse | JSONRPCError):
                self._unanswered -= 1

    async def carry(self, work: Coroutine[Any, Any, None], reason: str) -> None:
        """One direction's work; with its end the link ends."""
        try:
            await work
        except Broken as error:
            reason = str(error)
        except (OSError, ValueError, anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass  # a broken pipe, a message that cannot be written: there is no way to go on
        self.end(reason)


# --- a program ------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def program(name: str, settings: config.Mcp, sandbox: Sandbox) -> AsyncIterator[Link]:
    """Start the server's program; at the end of the block it is dead. Raises ToolError where it cannot be started."""
    assert settings.command is not None
    start = sandbox.start(
        [settings.command, *settings.args],
        session_id=f".mcp-{name}",  # no session is called so
        stdin=True,
        network=settings.network,
        env=settings.env,
        sandboxed=settings.sandbox,
    )
    async with start as process:
        link, words = Link(), _LastWords()
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        hearing = asyncio.create_task(words.drain(process.stderr))
        pumps = [
            asyncio.create_task(link.carry(_read_lines(process.stdout, link), "it ended")),
            asyncio.create_task(link.carry(_write_lines(process.stdin, link), "it reads no more")),
        ]
        try:
            yield link
        finally:
            link.close()
            if link.reason:
                await asyncio.wait([hearing], timeout=LAST_WORDS_SECS)
                link.reason = f"{link.reason}: {words.text}" if words.text else link.reason
            await uninterrupted(_cancel([hearing, *pumps]))  # the pipes are read by whoever ends the program


async def _read_lines(stream: asyncio.StreamReader, link: Link) -> None:
    """Each line is a message; one that is none (many servers log there) is passed over."""
    buffer = bytearray()
    while data := await stream.read(READ_BYTES):
        *lines, rest = data.split(b"\n")
        for number, line in enumerate(lines, 1):
            if number % LINES_AT_ONCE == 0:
                await asyncio.sleep(0)  # lines that are no messages wait for nothing
            buffer += line
            if buffer.strip():
                await _take(bytes(buffer), link)
            buffer.clear()
        buffer += rest
        if len(buffer) > MAX_BYTES:
            raise Broken(f"it wrote a line of more than {MAX_BYTES >> 20} MiB")


async def _take(line: bytes, link: Link) -> None:
    message = await asyncio.to_thread(_decode_long, line) if len(line) > THREAD_BYTES else _decode(line)
    if message is not None:
        await link.deliver(message)


def _decode_long(line: bytes) -> SessionMessage | None:
    """A long message is a long text. One of many small parts takes 50 times its length, and seconds."""
    frame = at = 0
    for string in _STRING.finditer(line):
        frame += string.start() - at
        at = string.end()
        if frame > MAX_FRAME_BYTES:
            raise Broken(TOO_MANY_PARTS)
    if frame + len(line) - at > MAX_FRAME_BYTES:
        raise Broken(TOO_MANY_PARTS)
    return _decode(line)


def _decode(line: bytes) -> SessionMessage | None:
    text = line.decode("utf-8", "replace")
    try:
        return SessionMessage(jsonrpc_message_adapter.validate_json(text, by_name=False))
    except ValueError:
        pass
    try:  # JavaScript writes lone surrogates, which JSON proper does not have
        text = output.clean(json.dumps(json.loads(text), ensure_ascii=False))
        return SessionMessage(jsonrpc_message_adapter.validate_json(text, by_name=False))
    except (ValueError, RecursionError):
        return None


async def _write_lines(stream: asyncio.StreamWriter, link: Link) -> None:
    async for message in link.outgoing():
        text = message.message.model_dump_json(by_alias=True, exclude_unset=True)
        stream.write(text.encode() + b"\n")
        await stream.drain()


class _LastWords:
    """What a program that fails says last on its stderr; the rest is dropped."""

    def __init__(self) -> None:
        self._tail = b""

    async def drain(self, stream: asyncio.StreamReader) -> None:
        while data := await stream.read(READ_BYTES):
            self._tail = (self._tail + data)[-LAST_WORDS_BYTES:]

    @property
    def text(self) -> str:
        lines = output.clean(self._tail.decode("utf-8", "replace")).split("\n")
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# --- HTTP -----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def http(settings: config.Mcp) -> AsyncIterator[Link]:
    """Speak streamable HTTP; whatever goes wrong below ends the block with an exception."""
    assert settings.url is not None
    client = await asyncio.to_thread(  # it reads the certificates
        httpx2.AsyncClient,
        headers={"Accept-Encoding": "identity", **settings.headers},
        timeout=httpx2.Timeout(CONNECT_SECS, read=None),  # a call has its own limit
        event_hooks={"response": [_refuse_tricks]},
    )
    async with (
        client,
        streamable_http_client(settings.url, http_client=client, max_sse_event_size=HTTP_BYTES) as (read, write),
    ):
        link = Link()
        pumps = [
            asyncio.create_task(link.carry(_pump_in(read, link), "the connection ended")),
            asyncio.create_task(link.carry(_pump_out(write.send, link), "the connection ended")),
        ]
        try:
            yield link
        finally:
            link.close()
            await _cancel(pumps)


async def _pump_in(stream: AsyncIterable[SessionMessage | Exception], link: Link) -> None:
    async for message in stream:
        await link.deliver(message)


async def _pump_out(send: Callable[[SessionMessage], Awaitable[None]], link: Link) -> None:
    async for message in link.outgoing():
        await send(message)


async def _refuse_tricks(response: httpx2.Response) -> None:
    """Other places, packed bodies, and long ones; a stream of events may be long, each of its events not."""
    if response.is_redirect:
        raise Broken(f"it answers with a redirect ({response.status_code}); set the url that it leads to")
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Broken("it packs its answers though it was asked not to")
    if not response.headers.get("Content-Type", "").lower().startswith("text/event-stream"):
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _Bounded(response.stream)


class _Bounded(httpx2.AsyncByteStream):
    """A body that breaks off where it gets too long."""

    def __init__(self, body: httpx2.AsyncByteStream) -> None:
        self._body = body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for data in self._body:
            size += len(data)
            if size > HTTP_BYTES:
                raise Broken(f"it sent an answer of more than {HTTP_BYTES >> 20} MiB")
            yield data

    async def aclose(self) -> None:
        await self._body.aclose()
