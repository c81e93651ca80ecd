"""The clients of a benchmark, in a process of their own: `python -m bench.client`, which is told and tells in lines.

A task as JSON; it prints `ready` once it has connected; any line makes it begin. When the clock has stopped it prints
`ended`, and only then looks at what came, and prints its Result.
"""

from __future__ import annotations

import asyncio
import select
import socket
import sys
import time
from typing import Any

import msgspec
from msgspec import Struct

from bench import answers
from bench.answers import Piece
from bench.upstream import Plan

TIMEOUT_SECS = 120.0
AFTER_SECS = 0.2  # for what a follower may be sent after its last event: nothing
_FIRST = b'"content":"w0-'
_LAST = b"\r\n0\r\n\r\n"


class Turns(Struct, tag=True, frozen=True, kw_only=True):
    """`each` turns one after the other on each of `parallel` connections; `sessions` are theirs, else new ones."""

    port: int
    plan: Plan
    parallel: int = 1
    each: int = 1
    bare: bool = False
    sessions: list[str] | None = None


class Pings(Struct, tag=True, frozen=True, kw_only=True):
    """GETs of a path one after the other, `pause` seconds between, until `count` were answered or a line comes.

    An answer that is a list must have `rows` elements.
    """

    port: int
    path: str
    pause: float = 0.0
    count: int = sys.maxsize
    rows: int | None = None


class Followers(Struct, tag=True, frozen=True, kw_only=True):
    """One turn of a session that `count` clients follow."""

    port: int
    plan: Plan
    session: str
    count: int


Task = Turns | Pings | Followers


class Result(Struct, frozen=True, kw_only=True):
    """All in seconds; `cpu` is what this process used."""

    cpu: float
    wall: float = 0.0
    firsts: list[float] = []
    """To the first token of each turn."""
    wholes: list[float] = []
    """To the end of each turn, or of each answer."""
    delays: list[float] = []
    """From the upstream's write of each token to its arrival, where it was paced."""


def request(method: str, path: str, body: Any = None) -> bytes:
    data = b"" if body is None else msgspec.json.encode(body)
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n"
    if data:
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    return head.encode() + b"\r\n" + data


class _Stream(asyncio.Protocol):
    """A connection: sends a request and collects its answer, chunk by chunk, to its end."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.first = 0.0
        self._end = b""
        self._tail = b""
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.begun = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def send(self, data: bytes, end: bytes = _LAST) -> None:
        self.pieces, self.first, self._end, self._tail = [], 0.0, end, b""
        self.ended = asyncio.get_running_loop().create_future()
        self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self.pieces.append((now, data))
        self.begun.set()
        window = self._tail + data
        if not self.first and _FIRST in window:
            self.first = now
        if self._end in window and not self.ended.done():
            self.ended.set_result(None)
        self._tail = window[-max(len(self._end), len(_FIRST)) :]

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_exception(ConnectionError(f"the server hung up: {b''.join(d for _, d in self.pieces)!r}"))

    @property
    def data(self) -> bytes:
        return b"".join(data for _, data in self.pieces)


async def _connect(port: int) -> _Stream:
    _, stream = await asyncio.get_running_loop().create_connection(_Stream, "127.0.0.1", port)
    return stream


async def _turns(task: Turns) -> Result:
    streams = [await _connect(task.port) for _ in range(task.parallel)]
    firsts: list[float] = []
    wholes: list[float] = []
    done: list[list[Piece]] = []

    async def run(stream: _Stream, session: str | None) -> None:
        body = {"message": "Count.", "model": task.plan.model} | ({"session_id": session} if session else {})
        asked = request("POST", "/chat/stream", body)
        for _ in range(task.each):
            began = time.monotonic()
            stream.send(asked)
            await stream.ended
            wholes.append(time.monotonic() - began)
            if not stream.first:
                raise answers.WrongAnswerError(f"no first token: {stream.data[:300]!r}")
            firsts.append(stream.first - began)
            done.append(stream.pieces)

    sessions: list[str | None] = [*task.sessions] if task.sessions else [None] * task.parallel
    _wait_for_go()
    began, cpu = time.monotonic(), time.process_time()
    await asyncio.gather(*(run(stream, session) for stream, session in zip(streams, sessions, strict=True)))
    wall, cpu = time.monotonic() - began, time.process_time() - cpu
    _say("ended")
    for pieces in done:
        answers.check(answers.unchunked(b"".join(data for _, data in pieces)), task.plan, bare=task.bare)
    delays = [delay for pieces in done for delay in answers.delays(pieces)] if task.plan.rate else []
    return Result(wall=wall, cpu=cpu, firsts=firsts, wholes=wholes, delays=delays)


async def _followers(task: Followers) -> Result:
    end = b'},"model":"%b"}\n\n' % task.plan.model.encode()  # of `done`, after its usage

    async def follow() -> _Stream:
        stream = await _connect(task.port)
        stream.send(request("GET", f"/sessions/{task.session}/events"), end)
        await stream.begun.wait()
        return stream

    streams = await asyncio.gather(*(follow() for _ in range(task.count)))
    speaker = await _connect(task.port)
    _wait_for_go()
    began, cpu = time.monotonic(), time.process_time()
    body = {"session_id": task.session, "message": "Count.", "model": task.plan.model}
    speaker.send(request("POST", "/chat/stream", body))
    await asyncio.gather(speaker.ended, *(stream.ended for stream in streams))
    result = Result(wall=time.monotonic() - began, cpu=time.process_time() - cpu)
    _say("ended")
    await asyncio.sleep(AFTER_SECS)
    said = answers.unchunked(speaker.data)
    answers.check(said, task.plan, bare=False)
    for stream in streams:
        if answers.unchunked(stream.data) != said:
            raise answers.WrongAnswerError("a follower was sent something else")
    return result


def _pings(task: Pings) -> Result:
    asked = request("GET", task.path)
    wholes: list[float] = []
    bodies: list[bytes] = []
    told = False
    with socket.create_connection(("127.0.0.1", task.port), TIMEOUT_SECS) as connection:
        _wait_for_go()
        cpu = time.process_time()
        while not told and len(wholes) < task.count:
            began = time.monotonic()
            connection.sendall(asked)
            bodies.append(_read_answer(connection))
            wholes.append(time.monotonic() - began)
            told = bool(select.select([sys.stdin], [], [], task.pause)[0])
    cpu = time.process_time() - cpu
    _say("ended")
    for body in bodies:
        if task.rows is not None and len(msgspec.json.decode(body, type=list[Any])) != task.rows:
            raise answers.WrongAnswerError(f"not {task.rows} rows: {body[:300]!r}")
    return Result(cpu=cpu, wholes=wholes)


def _read_answer(connection: socket.socket) -> bytes:
    """The body. Raises WrongAnswerError for any status but 200."""
    data = connection.recv(1 << 20)
    head, _, body = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise answers.WrongAnswerError(data[:300].decode("latin-1"))
    pieces = [body]
    left = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]) - len(body)
    while left:
        data = connection.recv(1 << 20)
        if not data:
            raise ConnectionError("the server hung up")
        pieces.append(data)
        left -= len(data)
    return b"".join(pieces)


def _wait_for_go() -> None:
    _say("ready")
    sys.stdin.readline()


def _say(line: str) -> None:
    print(line, flush=True)


async def _run(task: Turns | Followers) -> Result:
    async with asyncio.timeout(TIMEOUT_SECS):
        return await (_turns(task) if isinstance(task, Turns) else _followers(task))


def _main() -> None:
    task = msgspec.json.decode(sys.stdin.readline(), type=Task)
    result = _pings(task) if isinstance(task, Pings) else asyncio.run(_run(task))
    _say(msgspec.json.encode(result).decode())


if __name__ == "__main__":
    _main()
