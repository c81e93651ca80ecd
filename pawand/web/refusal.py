"""The answer to a connection that is one too many, given without an HTTP server."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

import msgspec

from pawand import __version__, wire
from pawand.errors import UnavailableError

REFUSAL_SECS = 1.0
RETRY_SECS = 5


def answer(limit: int) -> bytes:
    """What a client is told that finds all `limit` connections taken."""
    message = (
        f"all {limit} connections are taken: try again in some seconds, end streams that nobody reads, "
        "or raise [limits] connections"
    )
    body = msgspec.json.encode(wire.Error(message, UnavailableError.code))
    head = (
        "HTTP/1.1 503 Service Unavailable",
        f"Server: pawand/{__version__}",
        "Content-Type: application/json; charset=utf-8",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        f"Retry-After: {RETRY_SECS}",
        "Connection: close",
    )
    return "\r\n".join([*head, "", ""]).encode() + body


async def send(connection: socket.socket, answer: bytes) -> None:
    """Send `answer` when the head of a request has come, or none comes, and close."""
    reader, writer = await asyncio.open_connection(sock=connection)
    try:
        with suppress(TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            async with asyncio.timeout(REFUSAL_SECS):
                await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.write_eof()
        # The rest is read too: a close on top of unread bytes is a reset, which can overtake the answer.
        async with asyncio.timeout(REFUSAL_SECS):
            while await reader.read(65536):
                pass
    except OSError:
        pass  # the client has gone, or does not go (TimeoutError)
    finally:
        writer.transport.abort()
