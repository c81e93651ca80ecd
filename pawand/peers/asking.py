"""Asks another agent: a turn of the peer's, by its `/chat/stream`, read as it comes.

A client of its own on Tornado's connection, since Tornado's client cannot close one: a turn that is cancelled here must
end there at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec
from tornado.http1connection import HTTP1Connection, HTTP1ConnectionParameters
from tornado.httputil import HTTPHeaders, HTTPMessageDelegate, RequestStartLine, ResponseStartLine
from tornado.iostream import IOStream, StreamClosedError
from tornado.tcpclient import TCPClient

from pawand import config, wire
from pawand.errors import PeerError
from pawand.peers.addresses import Place, find
from pawand.peers.directory import Directory
from pawand.tools.ask_agent import Answer
from pawand.tools.output import clip, one_line

CONNECT_SECS = 5.0
SILENCE_SECS = 60.0  # a pawand sends a comment every 15 s
MAX_HEADER_BYTES = 32 * 1024
MAX_ERROR_BYTES = 64 * 1024
MAX_EVENT_BYTES = 4 * 1024 * 1024
MAX_STREAM_BYTES = 256 * 1024 * 1024  # live output of commands, ten times a second for half an hour, is less
ARGUMENT_CHARS = 160

Watch = Callable[[str], None]


class Asking:
    """Asks the peers of the settings and of the directory."""

    def __init__(self, configured: Mapping[str, config.Peer], directory: Directory) -> None:
        self._configured = configured
        self._directory = directory

    async def ask(self, name: str, message: str, hops: int, watch: Watch) -> Answer:
        """The answer of peer `name`; `watch` gets its words, and a line for each thing that it does. Raises PeerError.

        A caller that is cancelled takes the peer's turn with it.
        """
        place = find(name, self._configured, await self._directory.peers())
        stream = await _connect(place)
        try:
            return await _converse(stream, place, message, hops, watch)
        finally:
            stream.close()


async def _connect(place: Place) -> IOStream:
    """Raises PeerError."""
    address = urlsplit(place.url)
    assert address.hostname is not None
    encrypted = address.scheme == "https"
    port = address.port or (443 if encrypted else 80)
    context = await asyncio.to_thread(ssl.create_default_context) if encrypted else None  # it reads files
    try:
        async with asyncio.timeout(CONNECT_SECS):
            stream = await TCPClient().connect(address.hostname, port, max_buffer_size=MAX_EVENT_BYTES)
            stream.set_nodelay(True)
            return await _encrypt(stream, context, address.hostname) if context is not None else stream
    except TimeoutError as error:
        raise PeerError(f"{place.name} cannot be reached at {place.url}: no answer in {CONNECT_SECS:g} s") from error
    except (OSError, UnicodeError) as error:
        real = error.real_error if isinstance(error, StreamClosedError) and error.real_error else error
        reason = getattr(real, "strerror", None) or str(real) or type(real).__name__
        raise PeerError(f"{place.name} cannot be reached at {place.url}: {one_line(reason)}") from error


async def _encrypt(stream: IOStream, context: ssl.SSLContext, host: str) -> IOStream:
    """The same connection with TLS; closed where that does not come about."""
    connection = stream.socket
    try:
        return await stream.start_tls(False, context, host)
    except BaseException:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)  # whoever has the socket now sees its end
        raise


async def _converse(stream: IOStream, place: Place, message: str, hops: int, watch: Watch) -> Answer:
    body = msgspec.json.encode(wire.ChatRequest(message=message, on_disconnect="cancel"))
    limits = HTTP1ConnectionParameters(
        no_keep_alive=True, max_header_size=MAX_HEADER_BYTES, max_body_size=2 * MAX_STREAM_BYTES
    )
    connection = HTTP1Connection(stream, is_client=True, params=limits)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(SILENCE_SECS) as silence:

            def on_data() -> None:
                if not silence.expired():
                    silence.reschedule(loop.time() + SILENCE_SECS)

            listener = _Listener(place, watch, on_data, hang_up=stream.close)
            with contextlib.suppress(StreamClosedError):
                start = RequestStartLine("POST", f"{urlsplit(place.url).path}/chat/stream", "HTTP/1.1")
                connection.write_headers(start, _headers(place, hops, body))
                connection.write(body)
                connection.finish()
                await connection.read_response(listener)
    except TimeoutError as error:
        raise PeerError(f"{place.name} went silent for {SILENCE_SECS:g} s; it was given up") from error
    return listener.result()


def _headers(place: Place, hops: int, body: bytes) -> HTTPHeaders:
    # A zone, as in fe80::1%eth0, means nothing to the other side.
    host = urlsplit(place.url).netloc.partition("%")
    headers = HTTPHeaders(
        {
            "Host": host[0] + (f"]{host[2].partition(']')[2]}" if host[1] else ""),
            "Accept": "text/event-stream",
            "Connection": "close",
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Pawan-Hops": str(hops),
            "User-Agent": "pawand",
        }
    )
    if place.token is not None:
        headers["Authorization"] = f"Bearer {place.token}"
    return headers


class _Done(msgspec.Struct):
    content: str
    session_id: str
    finish_reason: str = "stop"  # other programs that speak the contract do not send it


class _Listener(HTTPMessageDelegate):
    """Hears a peer's answer; `hang_up` is called when all that matters was said. Nothing here raises but `result`."""

    def __init__(self, place: Place, watch: Watch, on_data: Callable[[], None], hang_up: Callable[[], None]) -> None:
        self._place = place
        self._watch = watch
        self._on_data = on_data
        self._hang_up = hang_up
        self._status = 0
        self._is_stream = False
        self._refusal = bytearray()
        self._events = _Events()
        self._outcome: Answer | PeerError | None = None

    def result(self) -> Answer:
        """Raises PeerError."""
        if isinstance(self._outcome, Answer):
            return self._outcome
        if self._outcome is not None:
            raise self._outcome
        if not self._status:
            raise self._error("closed the connection, or sent what is no HTTP: is a pawand there?")
        if not self._is_stream:
            raise self._refused()
        raise self._error("broke off before its answer was complete")

    def headers_received(self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders) -> None:
        self._on_data()
        assert isinstance(start_line, ResponseStartLine)
        self._status = start_line.code
        kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
        self._is_stream = self._status == 200 and kind == "text/event-stream"

    def data_received(self, chunk: bytes) -> None:
        self._on_data()
        if self._outcome is not None:
            return
        if not self._is_stream:
            self._refusal += chunk
            if len(self._refusal) > MAX_ERROR_BYTES:
                self._hang_up()
            return
        try:
            for name, data in self._events.feed(chunk):
                self._take(name, data)
        except _StrangeError as error:
            self._end(self._error(f"sent what is no pawan's answer: {error}"))

    def _take(self, name: str, data: bytes) -> None:
        if self._outcome is not None or name not in _NOTES:
            return
        event = _decode(data, dict[str, Any])
        self._watch(_NOTES[name](event))
        if name == "done":
            done = _decode(data, _Done)
            self._end(Answer(self._place.name, done.content, done.session_id, done.finish_reason))
        elif name == "error":
            self._end(self._error(f"did not come to an answer: {_text(event, 'message')} ({_text(event, 'code')})"))

    def _end(self, outcome: Answer | PeerError) -> None:
        self._outcome = outcome
        self._hang_up()

    def _error(self, what: str) -> PeerError:
        return PeerError(f"{self._place.name} at {self._place.url} {what}")

    def _refused(self) -> PeerError:
        if 300 <= self._status < 400:
            return self._error(f"answers with a redirect ({self._status}), which is not followed: set its real address")
        try:
            answer = msgspec.json.decode(bytes(self._refusal), type=wire.Error)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return self._error(f"is no pawand (status {self._status}): is the address right?")
        hint = self._place.hint(answer.code) or one_line(answer.error)
        return self._error(f"refused (status {self._status}, {one_line(answer.code)}): {hint}")


def _text(event: dict[str, Any], key: str) -> str:
    value = event.get(key)
    return value if isinstance(value, str) else ""


def _call(event: dict[str, Any]) -> str:
    arguments = msgspec.json.encode(event.get("arguments")).decode()
    return f"\n▸ {one_line(_text(event, 'name'))} {clip(arguments, ARGUMENT_CHARS)}\n"


def _failed_call(event: dict[str, Any]) -> str:
    if event.get("success"):
        return ""
    return f"✗ {one_line(_text(event, 'name'))}: {one_line(_text(event, 'result_preview'))}\n"


_NOTES: dict[str, Callable[[dict[str, Any]], str]] = {
    "token": lambda event: _text(event, "content"),
    "tool_start": _call,
    "tool_complete": _failed_call,
    "permission_request": lambda event: f"\n? waits for approval there: {one_line(_text(event, 'summary'))}\n",
    "retry": lambda event: f"\n↻ {one_line(_text(event, 'reason'))}\n",
    "done": lambda event: "",
    "error": lambda event: "",
}
"""The events that matter here, and what of them is for those who watch."""


class _StrangeError(Exception):
    """What came is no event stream of ours."""


def _decode(data: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _StrangeError("an event without the data it should have") from error


class _Events:
    """Cuts (name, data) of each event out of a stream's bytes (WHATWG HTML 9.2)."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._searched = 0
        self._total = 0
        self._name = ""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[tuple[str, bytes]]:
        """Raises _StrangeError for an event, or a stream, beyond all measure."""
        self._total += len(chunk)
        self._rest += chunk
        while (end := self._rest.find(b"\n", self._searched)) >= 0:
            line = bytes(self._rest[:end]).rstrip(b"\r")
            del self._rest[: end + 1]
            self._searched = 0
            if line:
                self._field(line)
                continue
            if self._data:
                yield self._name, b"\n".join(self._data)
            self._name, self._data, self._size = "", [], 0
        self._searched = len(self._rest)
        if self._size + len(self._rest) > MAX_EVENT_BYTES or self._total > MAX_STREAM_BYTES:
            raise _StrangeError("it is too long")

    def _field(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"event":
            self._name = value.decode("utf-8", "replace")
        elif field == b"data":
            self._data.append(value)
            self._size += len(value) + 1
