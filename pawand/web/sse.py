"""Server-sent events: a handler is a cursor on a log; it writes all frames that are ready and flushes once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
from tornado.http1connection import HTTP1Connection
from tornado.iostream import StreamClosedError

from pawand import wire
from pawand.aio import Watchdog
from pawand.turns.log import Cursor, EventLog
from pawand.web.base import BaseHandler
from pawand.web.services import Services

RETRY = b"retry: 2000\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


class StreamHandler(BaseHandler):
    """A handler that follows a log until its end or the client's."""

    def initialize(self, services: Services) -> None:
        super().initialize(services)
        self.pace = services.pace
        self._keep_alive_secs = services.config.server.keep_alive_secs
        self._cursor: Cursor | None = None

    def begin(self, first: bytes = b"") -> None:
        """The headers and `first`, to go out with the next flush."""
        self.set_header("Content-Type", "text/event-stream; charset=utf-8")
        self.set_header("Cache-Control", "no-cache")
        self.set_header("X-Accel-Buffering", "no")
        self.write(RETRY + first)

    async def wait_for(self, event: asyncio.Event) -> None:
        """Keep the connection alive until `event`; raises StreamClosedError when the client has gone."""
        while not event.is_set():
            await self.flush()  # a client shall know at once that it is connected
            try:
                async with asyncio.timeout(self._keep_alive_secs):
                    await event.wait()
            except TimeoutError:
                self.write(KEEP_ALIVE)

    def follow(self, log: EventLog, position: int) -> Cursor:
        """Take a place in the log, which is kept for whoever has one; `relay` gives it back."""
        # A client that reads too slowly can come back with its last event id.
        self._cursor = log.follow(position, on_lost=self.close_connection)
        return self._cursor

    async def relay(self, cursor: Cursor, end: Callable[[], int | None]) -> None:
        """Write frames until number `end()` was written, the log has ended or the client has gone."""
        silence = Watchdog(self._keep_alive_secs)
        try:
            while not cursor.ended:
                last = end()
                if cursor.ready(last):
                    await self.pace.breathe()
                    self.write(cursor.take(end()))
                    await self.flush()
                    silence.feed(self._keep_alive_secs)
                    continue
                if last is not None and cursor.position > last:
                    return
                try:
                    await silence.wait(cursor.wait())
                except TimeoutError:
                    self.write(KEEP_ALIVE)
                    await self.flush()
                    silence.feed(self._keep_alive_secs)
        except StreamClosedError:
            pass
        finally:
            silence.close()
            cursor.close()
            self._cursor = None  # each has the other

    def on_connection_close(self) -> None:
        super().on_connection_close()
        if self._cursor is not None:
            self._cursor.close()

    def close_connection(self) -> None:
        connection = self.request.connection
        if isinstance(connection, HTTP1Connection):
            # Not connection.close(), which forgets who waits for a flush or for the news that the client has gone.
            connection.stream.close()


def resync(log: EventLog, position: int, reason: str, session_id: str) -> bytes:
    """A frame outside the log; its id makes a client that comes back go on at `position`."""
    data = msgspec.json.encode(wire.Resync(reason=reason, session_id=session_id))
    return b"id: %b-%d\nevent: resync\ndata: %b\n\n" % (log.epoch.encode(), position - 1, data)
