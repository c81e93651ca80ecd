"""The server under more connections than it may have, clients that never finish, and a full table of descriptors."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tornado.httputil import HTTPServerRequest
from tornado.ioloop import IOLoop
from tornado.web import Application, RequestHandler, stream_request_body

from pawand.web import refusal
from pawand.web import server as module
from pawand.web.server import Server
from tests.conftest import LogWatch

HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
HALF_A_HEAD = b"GET /health HTTP/1.1\r\nHost: local"
HALF_A_BODY = (
    b'POST /sessions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{"'
)
EVENTS = b"GET /sessions/s/events HTTP/1.1\r\nHost: localhost\r\n\r\n"
AT_THE_LIMIT = "([limits] connections)"


class Client:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, request: bytes = HEALTH) -> int:
        """Send and read one answer with a Content-Length; its status."""
        self.writer.write(request)
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
        await self.reader.readexactly(int(fields["Content-Length"]))
        await server_turns()
        return int(head.split()[1])

    async def leave(self) -> None:
        self.writer.close()
        await server_turns()

    async def rest(self) -> bytes:
        """All until the server closes (a reset is a close too), then leave."""
        received = b""
        try:
            while chunk := await self.reader.read(65536):
                received += chunk
        except ConnectionResetError:
            pass
        await self.leave()
        return received


async def server_turns() -> None:
    """The server is in our loop: some turns of it, and it has noticed a close and waits for its next request."""
    for _ in range(10):
        await asyncio.sleep(0)


Start = Callable[..., int]
Connect = Callable[..., Awaitable[Client]]


@pytest.fixture
def start(io_loop: IOLoop, app: Application) -> Iterator[Start]:
    """`start(max_connections, …)`: the port of a running server, of our application unless another is given."""
    servers: list[Server] = []

    def run(max_connections: int, application: Any = app, **options: Any) -> int:
        listener = listen()
        servers.append(Server(application, max_connections=max_connections, **options))
        servers[-1].add_socket(listener)
        return int(listener.getsockname()[1])

    yield run
    for server in servers:
        server.stop()
        io_loop.run_sync(server.close_all_connections, timeout=10)


@pytest.fixture
def connect(io_loop: IOLoop, start: Start) -> Iterator[Connect]:
    """`await connect(port, what to send)`; all are closed at the end, before the server."""
    clients: list[Client] = []

    async def open_one(port: int, data: bytes = b"") -> Client:
        clients.append(Client(*await asyncio.open_connection("127.0.0.1", port)))
        clients[-1].writer.write(data)
        return clients[-1]

    async def close_all() -> None:
        for client in clients:
            client.writer.close()
        await asyncio.sleep(0)

    yield open_one
    io_loop.run_sync(close_all)


def listen(kind: type[socket.socket] = socket.socket) -> Any:
    listener = kind(socket.AF_INET, socket.SOCK_STREAM)
    listener.setblocking(False)
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    return listener


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to be in 10 s")


async def follow(port: int, connect: Connect) -> Client:
    """A client with an open stream."""
    maker = await connect(port)
    body = b'{"session_id": "s"}'
    head = b"POST /sessions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    assert await maker.ask(head % len(body) + body) == 200
    await maker.leave()
    stream = await connect(port, EVENTS)
    assert (await stream.reader.readline()).startswith(b"HTTP/1.1 200")
    return stream


# --- who goes -------------------------------------------------------------------------------------


@pytest.mark.gen_test
@pytest.mark.parametrize("half", [HALF_A_HEAD, HALF_A_BODY, b""], ids=["head", "body", "silent"])
async def test_the_one_that_has_been_incomplete_the_longest_makes_room(
    start: Start, connect: Connect, log_watch: LogWatch, half: bytes
) -> None:
    log_watch.expect(AT_THE_LIMIT)
    port = start(3)
    first = await connect(port, half)
    others = [await connect(port, HALF_A_HEAD) for _ in range(2)]
    newcomer = await connect(port)
    assert await newcomer.ask() == 200
    assert await first.rest() == b""
    for other in others:
        assert await other.ask(b"host\r\n\r\n") == 200


@pytest.mark.gen_test
async def test_an_idle_connection_makes_room_and_its_wait_counts_from_its_last_answer(
    start: Start, connect: Connect, log_watch: LogWatch
) -> None:
    log_watch.expect(AT_THE_LIMIT)
    port = start(2)
    older, younger = await connect(port), await connect(port)
    for client in (older, younger, older):
        assert await client.ask() == 200
    assert await (await connect(port)).ask() == 200
    assert await younger.rest() == b""
    assert await older.ask() == 200


@pytest.mark.gen_test
async def test_a_stream_survives_everything_that_comes_after_it(
    start: Start, connect: Connect, log_watch: LogWatch
) -> None:
    log_watch.expect(AT_THE_LIMIT)
    port = start(2)
    stream = await follow(port, connect)
    for _ in range(50):
        await connect(port, HALF_A_HEAD)
    assert await (await connect(port)).ask() == 200
    assert not stream.reader.at_eof()
    assert [AT_THE_LIMIT in line for line in log_watch.lines] == [True], "one line, however many went"


@pytest.mark.gen_test
async def test_within_the_limit_nobody_is_closed(start: Start, connect: Connect) -> None:
    port = start(20)
    clients = [await connect(port, HALF_A_HEAD) for _ in range(20)]
    for client in clients:
        assert await client.ask(b"host\r\n\r\n") == 200


@pytest.mark.gen_test
async def test_connections_that_ended_make_room_by_themselves(start: Start, connect: Connect) -> None:
    port = start(2)
    for _ in range(10):
        for sent in (HALF_A_HEAD, HALF_A_BODY, EVENTS, b""):
            await (await connect(port, sent)).leave()
        parting = await connect(port)
        assert await parting.ask(HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")) == 200
        assert await parting.rest() == b""


# --- nobody can go --------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_where_all_are_busy_a_newcomer_is_told_and_there_is_room_again_when_one_ends(
    start: Start, connect: Connect, log_watch: LogWatch
) -> None:
    log_watch.expect(AT_THE_LIMIT)
    port = start(1)
    stream = await follow(port, connect)
    head, _, body = (await (await connect(port, HEALTH)).rest()).partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "HTTP/1.1 503 Service Unavailable"
    for field in ("Retry-After: 5", "Connection: close", "Content-Type: application/json; charset=utf-8"):
        assert field in lines
    assert f"Content-Length: {len(body)}" in lines
    answer = json.loads(body)
    assert sorted(answer) == ["code", "error"]
    assert answer["code"] == "unavailable"
    assert "[limits] connections" in answer["error"]
    assert not stream.reader.at_eof()
    await stream.leave()
    assert await (await connect(port)).ask() == 200


@pytest.mark.gen_test
async def test_a_refused_client_that_is_still_sending_sees_the_answer(
    start: Start, connect: Connect, log_watch: LogWatch
) -> None:
    log_watch.expect(AT_THE_LIMIT)
    port = start(1)
    await follow(port, connect)
    size = 4 * 1024 * 1024
    head = b"POST /chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    client = await connect(port, head % size)
    for _ in range(size // 65536):
        client.writer.write(b"x" * 65536)
        await client.writer.drain()
    assert b'"code":"unavailable"' in await client.reader.read()


@pytest.mark.gen_test
async def test_refusals_wait_a_second_for_the_silent_and_are_bounded(
    start: Start, connect: Connect, log_watch: LogWatch
) -> None:
    log_watch.expect(AT_THE_LIMIT)
    port = start(1)
    await follow(port, connect)
    silent = [asyncio.create_task((await connect(port)).rest()) for _ in range(module.MAX_REFUSALS - 1)]
    assert (await (await connect(port, HEALTH)).rest()).startswith(b"HTTP/1.1 503 ")
    assert not any(task.done() for task in silent)
    silent.append(asyncio.create_task((await connect(port)).rest()))
    beyond = [await connect(port) for _ in range(4)]
    assert [await client.rest() for client in beyond] == [b""] * 4
    assert not any(task.done() for task in silent)
    begun = time.monotonic()
    assert all(answer.startswith(b"HTTP/1.1 503 ") for answer in await asyncio.gather(*silent))
    assert time.monotonic() - begun < 2 * refusal.REFUSAL_SECS


@pytest.mark.gen_test
async def test_the_warning_comes_once_in_a_while_and_counts(
    start: Start, connect: Connect, log_watch: LogWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_watch.expect(AT_THE_LIMIT)
    monkeypatch.setattr(module, "QUIET_SECS", 0.3)
    port = start(7)
    opened = 0
    while len(log_watch.lines) < 2:
        await connect(port, HALF_A_HEAD)
        opened += 1
        await asyncio.sleep(0.01)
        assert opened < 1000
    first, second = log_watch.lines
    assert "all 7 connections" in first
    assert " 1 without a complete request" in first
    assert f" {opened - 8} without a complete request" in second
    assert " 0 new ones" in second


# --- clients that never finish --------------------------------------------------------------------


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("half", "timeout"),
    [(HALF_A_HEAD, "idle_connection_timeout"), (HALF_A_BODY, "body_timeout")],
    ids=["head", "body"],
)
async def test_a_request_that_dribbles_is_cut_off(start: Start, connect: Connect, half: bytes, timeout: str) -> None:
    long_body = half.replace(b"Content-Length: 9", b"Content-Length: 9000")
    client = await connect(start(10, **{timeout: 0.3}), long_body)
    begun = time.monotonic()
    ended = asyncio.create_task(client.rest())
    for _ in range(500):
        if ended.done():
            break
        client.writer.write(b"x")
        await asyncio.wait([ended], timeout=0.02)
    assert ended.result() == b""
    assert time.monotonic() - begun > 0.2


def test_a_request_has_thirty_seconds_for_its_head_and_its_body(app: Application) -> None:
    parameters = Server(app, max_connections=1).conn_params
    assert (parameters.header_timeout, parameters.body_timeout) == (30.0, 30.0)


# --- what handlers see ----------------------------------------------------------------------------


class Seen:
    """What a handler was told."""

    def __init__(self) -> None:
        self.pieces = 0
        self.bytes = 0
        self.closed = 0
        self.gate = asyncio.Event()
        """Each piece of the body waits here."""


def spy(seen: Seen) -> Application:
    @stream_request_body
    class Spy(RequestHandler):
        async def data_received(self, chunk: bytes) -> None:
            seen.pieces += 1
            await seen.gate.wait()
            seen.bytes += len(chunk)

        async def post(self) -> None:
            self.write(b"the begin of an answer")
            await self.flush()
            await asyncio.Event().wait()

        def on_connection_close(self) -> None:
            super().on_connection_close()
            seen.closed += 1

    return Application([("/", Spy)])


POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 300000\r\n\r\n"


@pytest.mark.gen_test
async def test_a_handler_that_is_slow_with_a_piece_of_the_body_gets_no_other(start: Start, connect: Connect) -> None:
    seen = Seen()
    client = await connect(start(5, spy(seen)), POST + b"x" * 300_000)
    await until(lambda: seen.pieces > 0)
    await asyncio.sleep(0.1)  # more would come now
    assert (seen.pieces, seen.bytes) == (1, 0)
    seen.gate.set()
    assert (await client.reader.readline()).startswith(b"HTTP/1.1 200")
    assert seen.pieces > 1
    assert seen.bytes == 300_000


@pytest.mark.gen_test
@pytest.mark.parametrize("sent", [100, 300_000], ids=["in the body", "in the answer"])
async def test_a_handler_learns_once_that_its_client_has_gone(start: Start, connect: Connect, sent: int) -> None:
    seen = Seen()
    seen.gate.set()
    client = await connect(start(5, spy(seen)), POST + b"x" * sent)
    await until(lambda: seen.bytes == sent)
    await server_turns()
    assert seen.closed == 0
    await client.leave()
    await until(lambda: seen.closed > 0)
    await server_turns()
    assert seen.closed == 1


@pytest.mark.gen_test
async def test_a_handler_learns_that_its_client_was_closed_to_make_room(
    start: Start, connect: Connect, log_watch: LogWatch
) -> None:
    log_watch.expect(AT_THE_LIMIT)
    seen = Seen()
    seen.gate.set()
    port = start(1, spy(seen))
    await connect(port, POST + b"x" * 100)
    await until(lambda: seen.bytes == 100)
    await connect(port)
    await until(lambda: seen.closed == 1)


@pytest.mark.gen_test
async def test_a_handler_that_breaks_gives_its_connection_back(
    start: Start, connect: Connect, log_watch: LogWatch
) -> None:
    def broken(_: HTTPServerRequest) -> None:
        raise RuntimeError("a bug")

    log_watch.expect("Uncaught exception")
    port = start(1, broken)
    for _ in range(3):
        assert await (await connect(port, HEALTH)).rest() == b""


# --- the end, and descriptors ---------------------------------------------------------------------


@pytest.mark.gen_test
async def test_all_connections_can_be_closed(app: Application, connect: Connect) -> None:
    listener = listen()
    port = int(listener.getsockname()[1])
    server = Server(app, max_connections=10)
    server.add_socket(listener)
    stream = await follow(port, connect)
    half, idle = await connect(port, HALF_A_HEAD), await connect(port)
    await idle.ask()
    server.stop()
    server.stop()
    await server.close_all_connections()
    await asyncio.gather(stream.rest(), half.rest(), idle.rest())
    with pytest.raises(ConnectionRefusedError):
        await connect(port)


class CountingListener(socket.socket):
    calls = 0

    def accept(self) -> tuple[socket.socket, Any]:
        self.calls += 1
        return super().accept()


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Whatever is opened in the block fails with EMFILE."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.gen_test
async def test_without_descriptors_accepting_pauses_warns_once_and_recovers(
    app: Application, log_watch: LogWatch
) -> None:
    log_watch.expect("EMFILE")
    listener = listen(CountingListener)
    server = Server(app, max_connections=10)
    server.add_socket(listener)
    sock = socket.socket()
    sock.setblocking(False)
    begun = time.monotonic()
    with no_descriptors():
        await asyncio.get_running_loop().sock_connect(sock, listener.getsockname())
        await until(lambda: listener.calls >= 3)
    assert time.monotonic() - begun > 1.5 * module.PAUSE_SECS, "it spins"
    assert len(log_watch.lines) == 1, log_watch.lines
    client = Client(*await asyncio.open_connection(sock=sock))
    assert await client.ask() == 200
    await client.leave()
    server.stop()
    await server.close_all_connections()


@pytest.mark.gen_test
async def test_a_server_can_be_stopped_in_a_pause(app: Application, log_watch: LogWatch) -> None:
    log_watch.expect("EMFILE")
    listener = listen()
    server = Server(app, max_connections=10)
    server.add_socket(listener)
    with socket.socket() as sock, no_descriptors():
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, listener.getsockname())
        await until(lambda: bool(log_watch.lines))
        server.stop()
        assert listener.fileno() == -1
    await asyncio.sleep(module.PAUSE_SECS + 0.1)  # a timer that was forgotten would raise now


LIMITS = """
import resource, sys
soft, hard, configured = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
from pawand.web.server import connection_limit
print(connection_limit(configured or None), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(
    ("soft", "hard", "configured", "connections", "raised"),
    [
        (1024, 8192, 0, 2048, 4096),
        (1024, 2000, 0, 1936, 2000),
        (256, 256, 0, 192, 256),
        (256, 256, 100, 100, 256),
        (256, 256, 500, 192, 256),
        (5000, 8192, 0, 2048, 5000),
        (1024, 8192, 10, 10, 4096),
        (1024, 8192, 3000, 3000, 6000),
        (1024, 4096, 9000, 4032, 4096),
        (50, 50, 0, 1, 50),
    ],
)
def test_the_limit_fits_the_descriptors(soft: int, hard: int, configured: int, connections: int, raised: int) -> None:
    command = [sys.executable, "-c", LIMITS, str(soft), str(hard), str(configured)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert child.stdout.split() == [str(connections), str(raised), str(hard)], child.stderr
