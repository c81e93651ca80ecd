"""Connections: how many there may be, which one goes when one too many comes, and what happens when accept(2) fails.

A connection waits while it has no complete request: it is sending one, or idle after an answer. It is busy from there
to the end of the answer. Only those that wait are closed to make room, the one that has waited longest first.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import resource
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any, cast

from tornado.http1connection import HTTP1ServerConnection
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPConnection, HTTPHeaders, HTTPMessageDelegate, RequestStartLine, ResponseStartLine
from tornado.ioloop import IOLoop
from tornado.iostream import IOStream

from pawand.web import refusal

log = logging.getLogger(__name__)

DEFAULT_CONNECTIONS = 2048
SPARE_DESCRIPTORS = 64
"""What everything but connections gets: files, children's pipes, the upstream, refusals."""
HEAD_SECS = 30.0
BODY_SECS = 30.0
MAX_REFUSALS = 16
HOLD_SECS = 0.02
ACCEPTS_AT_ONCE = 16
"""Few, so that a client that has sent its request is read before many newer ones push it out."""
PAUSE_SECS = 0.5
UNREAD_SECS = 60.0
"""How long a client may leave what was sent to it unread or unacknowledged."""
QUIET_SECS = 60.0


def connection_limit(configured: int | None) -> int:
    """How many connections this process can serve; raises its soft descriptor limit where that is too low."""
    wanted = configured or DEFAULT_CONNECTIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * max(wanted, DEFAULT_CONNECTIONS)  # turns have an upstream, pipes and files each
    raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    if soft == resource.RLIM_INFINITY:
        return wanted
    if soft < raised:
        with suppress(OSError, ValueError):  # some systems have a lower limit than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    return max(1, min(wanted, soft - SPARE_DESCRIPTORS))


class Server(HTTPServer):
    """An HTTPServer (without TLS) that holds at most `max_connections` and never spins on a failing accept.

    Takes what HTTPServer takes.
    """

    def initialize(self, *args: Any, max_connections: int = DEFAULT_CONNECTIONS, **kwargs: Any) -> None:
        super().initialize(*args, **{"idle_connection_timeout": HEAD_SECS, "body_timeout": BODY_SECS, **kwargs})
        self._max_connections = max_connections
        self._waiting: dict[IOStream, bool] = {}
        """The longest wait first; whether an answer is owed: it has asked nothing yet, or is sending a request."""
        self._busy: set[IOStream] = set()
        self._changed = asyncio.Event()
        self._refusals: set[asyncio.Task[None]] = set()
        self._refusal = refusal.answer(max_connections)
        self._listeners: list[socket.socket] = []
        self._pause_end: object | None = None
        self._rations: defaultdict[str, _Ration] = defaultdict(_Ration)

    # --- accepting --------------------------------------------------------------------------------

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        self._unlisten()
        self._listeners += sockets
        self._listen()

    def stop(self) -> None:
        self._unlisten()
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        self.conn_params.no_keep_alive = True  # who asks from now on is told to connect anew
        super().stop()

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._waiting) + len(self._busy)

    async def all_asked(self) -> None:
        """Until all who have connected have sent a request; those that had an answer already need not."""
        while any(owed or _has_unread(stream) for stream, owed in self._waiting.items()):
            await self._change()

    async def all_answered(self) -> None:
        """Until no answer is under way, and no request that came is unread."""
        while self._busy or any(map(_has_unread, self._waiting)):
            await self._change()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def close_all_connections(self) -> None:
        await super().close_all_connections()
        if self._refusals:
            await asyncio.wait(self._refusals)

    def _listen(self) -> None:
        self._pause_end = None
        for listener in self._listeners:
            IOLoop.current().add_handler(listener, self._accept, IOLoop.READ)

    def _unlisten(self) -> None:
        if self._pause_end is not None:
            IOLoop.current().remove_timeout(self._pause_end)
        for listener in self._listeners:
            IOLoop.current().remove_handler(listener)

    def _accept(self, listener: socket.socket, _events: int) -> None:
        """In place of Tornado's handler, which lets errors out into the loop and is called again at once."""
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                connection, address = listener.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._pause(error)
                return
            self._admit(connection, address)

    def _pause(self, error: OSError) -> None:
        self._unlisten()
        self._pause_end = IOLoop.current().call_later(PAUSE_SECS, self._listen)
        name = errno.errorcode.get(error.errno or 0, "OSError")
        if counts := self._rations[name].count("failures"):
            log.warning(
                "no connection could be accepted: %s (%s, %d times since the last such line); with %d open, "
                "tried again every %s s",
                error.strerror,
                name,
                counts["failures"],
                self.connections,
                PAUSE_SECS,
            )

    def _admit(self, connection: socket.socket, address: Any) -> None:
        if self.connections >= self._max_connections:
            if not self._waiting:
                self._hold(connection, address)
                return
            self._close_longest_waiting()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNREAD_SECS * 1000))
        stream = IOStream(connection, max_buffer_size=self.max_buffer_size, read_chunk_size=self.read_chunk_size)
        self._waiting[stream] = True
        self.handle_stream(stream, address)

    def _close_longest_waiting(self) -> None:
        stream = next(iter(self._waiting))
        # Its descriptor is free at once; Tornado calls on_close a few turns of the loop later.
        del self._waiting[stream]
        stream.close()
        self._warn("closed")

    def _hold(self, connection: socket.socket, address: Any) -> None:
        if len(self._refusals) >= MAX_REFUSALS:
            self._warn("refused")
            connection.close()
            return
        task = asyncio.create_task(self._admit_or_refuse(connection, address))
        self._refusals.add(task)
        task.add_done_callback(self._refusals.discard)

    async def _admit_or_refuse(self, connection: socket.socket, address: Any) -> None:
        """Look once more: Tornado tells a little late that an answer is through, or its client gone."""
        await asyncio.sleep(HOLD_SECS)
        if self._waiting or len(self._busy) < self._max_connections:
            self._admit(connection, address)
        else:
            self._warn("refused")
            await refusal.send(connection, self._refusal)

    def _warn(self, what: str) -> None:
        if counts := self._rations["limit"].count(what):
            log.warning(
                "all %d connections are taken ([limits] connections); since the last such line: %d without a complete "
                "request closed to make room, %d new ones refused",
                self._max_connections,
                counts["closed"],
                counts["refused"],
            )

    # --- who waits --------------------------------------------------------------------------------

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        stream = cast(HTTP1ServerConnection, server_conn).stream
        if stream in self._busy:
            self._busy.remove(stream)
            self._waiting[stream] = False
            self._changed.set()
        inner = super().start_request(server_conn, request_conn)
        return _Watched(inner, lambda: self._on_head(stream), lambda: self._on_complete(stream))

    def _on_head(self, stream: IOStream) -> None:
        if stream in self._waiting:
            self._waiting[stream] = True

    def _on_complete(self, stream: IOStream) -> None:
        if stream in self._waiting:
            del self._waiting[stream]
            self._busy.add(stream)
            self._changed.set()

    def on_close(self, server_conn: object) -> None:
        stream = cast(HTTP1ServerConnection, server_conn).stream
        self._waiting.pop(stream, None)
        self._busy.discard(stream)
        self._changed.set()
        super().on_close(server_conn)


class _Watched(HTTPMessageDelegate):
    """Passes everything on, and tells when the head of the request, and all of it, is there."""

    def __init__(
        self, inner: HTTPMessageDelegate, on_head: Callable[[], None], on_complete: Callable[[], None]
    ) -> None:
        self._inner = inner
        self._on_head = on_head
        self._on_complete = on_complete

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        self._on_head()
        return self._inner.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        return self._inner.data_received(chunk)

    def finish(self) -> None:
        self._on_complete()
        self._inner.finish()

    def on_connection_close(self) -> None:
        self._inner.on_connection_close()


def _has_unread(stream: IOStream) -> bool:
    """Whether bytes have come that the loop has not got to."""
    try:
        return not stream.closed() and bool(stream.socket.recv(1, socket.MSG_PEEK))
    except OSError:  # nothing there, or the client has gone
        return False


class _Ration:
    """Turns a flood of events into one report a minute."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._next = -math.inf

    def count(self, what: str) -> Counter[str] | None:
        """Note an event; what happened since the last report when the next one is due."""
        self._counts[what] += 1
        now = time.monotonic()
        if now < self._next:
            return None
        self._next = now + QUIET_SECS
        counts, self._counts = self._counts, Counter()
        return counts
