"""Asking a peer that answers well, badly, or not at all: what comes of it, who sees what, and that nothing is left."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
import subprocess
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pawand import config, wire
from pawand.errors import PeerError
from pawand.peers import asking
from pawand.peers.aegis import AegisFile
from pawand.peers.asking import Asking
from pawand.peers.directory import Directory
from pawand.tools.ask_agent import Answer
from tests import harness
from tests.conftest import LogWatch
from tests.tools.conftest import reached

TOKEN = "a-token-of-the-peer-0123456789"
STREAM = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\r\nretry: 2000\n\n"


def event(name: str, /, **data: Any) -> bytes:
    return f"id: e-1\nevent: {name}\ndata: {json.dumps(data)}\n\n".encode()


def done(content: str = "42", **more: Any) -> bytes:
    return event("done", **{"content": content, "session_id": "s-1", "finish_reason": "stop", **more})


def stream(*parts: bytes | float) -> list[bytes | float]:
    return [STREAM.encode(), *parts]


def status(code: int, body: Any, *headers: str) -> list[bytes | float]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {code} X", f"Content-Length: {len(data)}", *headers]
    return ["\r\n".join([*lines, "", ""]).encode() + data]


@dataclass(repr=False)
class Peer:
    """A scripted peer on loopback: sends `parts`, or pauses for that many seconds, and closes the connection."""

    parts: Sequence[bytes | float]
    port: int = 0
    heads: list[str] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    open: int = 0
    gone: float | None = None
    """When a client was found to have gone."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heads.append(head)
            length = int(next(line for line in head.splitlines() if line.startswith("Content-Length")).split()[1])
            self.bodies.append(json.loads(await reader.readexactly(length)))
            for part in self.parts:
                if isinstance(part, bytes):
                    writer.write(part)
                    await writer.drain()
                    continue
                with suppress(TimeoutError):
                    assert await asyncio.wait_for(reader.read(1), part) == b""
                    self.gone = time.monotonic()
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            self.gone = time.monotonic()
        finally:
            writer.close()
            self.open -= 1


@asynccontextmanager
async def peer(*parts: bytes | float) -> AsyncGenerator[Peer, None]:
    """Scripted, and left by everybody at the end."""
    made = Peer(parts)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
        await reached(lambda: not made.open)
    finally:
        server.close()
        await server.wait_closed()


def asker(port: int, token: str | None = TOKEN, address: str = "127.0.0.1:{}") -> Asking:
    return Asking({"b": config.Peer(address=address.format(port), token=token)}, Directory("pawan@a", AegisFile([])))


def ask(
    *parts: bytes | float, token: str | None = TOKEN, address: str = "127.0.0.1:{}"
) -> tuple[Answer | str, str, Peer]:
    """The answer, or the error's words; what was watched; and the peer."""
    seen: list[str] = []

    async def main() -> tuple[Answer | str, Peer]:
        async with peer(*parts) as made:
            try:
                return await asker(made.port, token, address).ask("b", "What?", 3, seen.append), made
            except PeerError as error:
                return error.message, made

    with harness.no_blocking():
        outcome, made = asyncio.run(main())
    return outcome, "".join(seen), made


@pytest.fixture(autouse=True)
def _watch(log_watch: LogWatch) -> LogWatch:
    return log_watch


def test_the_question_is_sent_as_the_contract_wants_it() -> None:
    outcome, _, made = ask(*stream(done()))
    assert outcome == Answer("b", "42", "s-1", "stop")
    [head] = made.heads
    lines = head.rstrip().split("\r\n")
    assert lines[0] == "POST /chat/stream HTTP/1.1"
    assert f"Host: 127.0.0.1:{made.port}" in lines
    assert f"Authorization: Bearer {TOKEN}" in lines
    assert "Pawan-Hops: 3" in lines
    assert "Content-Type: application/json" in lines
    assert made.bodies == [{"message": "What?", "session_id": None, "model": None, "on_disconnect": "cancel"}]


def test_without_a_token_none_is_sent_and_a_path_is_kept() -> None:
    _, _, made = ask(*stream(done()), token=None, address="http://127.0.0.1:{}/pawan/")
    assert "Authorization" not in made.heads[0]
    assert made.heads[0].startswith("POST /pawan/chat/stream HTTP/1.1\r\n")


def test_what_it_says_and_does_is_seen() -> None:
    outcome, seen, _ = ask(
        *stream(
            event("start", session_id="s-1", turn_id="t", model="m"),
            event("thinking", content="secret thoughts", iteration=1),
            event("token", content="I look", iteration=1),
            event("tool_start", name="bash", id="1", arguments={"command": "ls"}, iteration=1),
            event("tool_output", id="1", content="not this"),
            event("tool_complete", name="bash", success=True, duration_ms=1, result_preview="fine", id="1"),
            event("tool_complete", name="grep", success=False, duration_ms=1, result_preview="no\nsuch", id="2"),
            event("permission_request", id="3", tool="bash", summary="bash rm", arguments={}, expires_at="x"),
            event("retry", attempt=1, delay_ms=5, reason="busy", model="m"),
            event("unknown", anything=1),
            event("token", content="4", iteration=2),
            event("token", content="2", iteration=2),
            done(),
        )
    )
    assert outcome == Answer("b", "42", "s-1", "stop")
    assert seen == (
        'I look\n▸ bash {"command":"ls"}\n✗ grep: no such\n\n? waits for approval there: bash rm\n\n↻ busy\n42'
    )


def test_a_stream_in_single_bytes_and_with_other_line_ends_is_understood() -> None:
    data = (event("token", content="héé", iteration=1) + done("héé")).replace(b"\n", b"\r\n")
    outcome, seen, _ = ask(*stream(b": comment\n\n", *(data[at : at + 1] for at in range(len(data)))))
    assert (outcome, seen) == (Answer("b", "héé", "s-1", "stop"), "héé")


def test_a_chunked_answer_of_another_program_is_understood() -> None:
    body = event("token", content="hi") + event("done", session_id="r", content="hi", iterations=1, tool_calls=0)
    head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    outcome, _, _ = ask(head.encode(), b"%x\r\n%b\r\n" % (len(body), body), 30.0)
    assert outcome == Answer("b", "hi", "r", "stop")


WRONG = [
    (status(401, {"error": "x", "code": "unauthorized"}), "`[peers.b] token` must be the token in the token file of"),
    (status(421, {"error": "x", "code": "host_not_allowed"}), "`[server] allowed_hosts` there"),
    (status(429, {"error": "wait\na bit", "code": "busy"}), "refused (status 429, busy): wait a bit"),
    (status(503, {"error": "shutting down", "code": "unavailable"}), "refused (status 503, unavailable)"),
    (status(302, b"", "Location: http://127.0.0.1:1/"), "redirect (302), which is not followed"),
    (status(308, b"", "Location: /chat/stream2"), "redirect (308), which is not followed"),
    (status(200, {"content": "hello"}, "Content-Type: application/json"), "is no pawand (status 200)"),
    (status(404, b"<html>"), "is no pawand (status 404)"),
    (status(500, b"[" * 60_000), "is no pawand (status 500)"),
    (status(200, b"x" * 300_000, "Content-Type: text/html"), "is no pawand (status 200)"),
    ([b"SSH-2.0-OpenSSH_9\r\n\r\n"], "closed the connection, or sent what is no HTTP"),
    ([], "closed the connection, or sent what is no HTTP"),
    ([b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000], "closed the connection, or sent what is no HTTP"),
    (stream(), "broke off before its answer was complete"),
    (stream(event("token", content="a"), b"event: done\ndata: {"), "broke off before its answer was complete"),
    (stream(event("error", message="no key", code="provider")), "did not come to an answer: no key (provider)"),
    (stream(event("error", message=3)), "did not come to an answer:  ()"),
    (stream(b"event: token\ndata: {nonsense}\n\n"), "sent what is no pawan's answer: an event without the data"),
    (stream(b"event: token\ndata: " + b"[" * 100_000 + b"\n\n"), "an event without the data it should have"),
    (stream(b"event: token\ndata: \xff\xfe\n\n"), "an event without the data it should have"),
    (stream(event("done", content=["x"], session_id="s")), "an event without the data it should have"),
    (stream(event("done", session_id="s")), "an event without the data it should have"),
]


@pytest.mark.parametrize(("parts", "expected"), WRONG, ids=[expected[:40] for _, expected in WRONG])
def test_what_goes_wrong_is_told(parts: list[bytes | float], expected: str) -> None:
    outcome, _, made = ask(*parts)
    assert isinstance(outcome, str)
    assert expected in outcome
    assert outcome.startswith(f"b at http://127.0.0.1:{made.port} ")
    assert TOKEN not in outcome
    assert len(made.heads) == 1


def test_without_a_token_it_is_said_that_none_is_set() -> None:
    outcome, _, _ = ask(*status(401, {"error": "x", "code": "unauthorized"}), token=None)
    assert "`[peers.b] token` (none is set) must be" in str(outcome)


@pytest.mark.parametrize("line", [b"data: " + b"x" * 65_530 + b"\n", b"x" * 65_536, b": comment\n" * 7000])
def test_a_flood_is_cut_off(line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "MAX_EVENT_BYTES", 256 * 1024)
    monkeypatch.setattr(asking, "MAX_STREAM_BYTES", 1024 * 1024)
    outcome, _, made = ask(*stream(b"event: token\n", *[line] * 2000))
    assert "sent what is no pawan's answer: it is too long" in str(outcome)
    assert made.gone is not None


def test_an_endless_refusal_is_cut_off() -> None:
    outcome, _, made = ask(b"HTTP/1.1 500 X\r\n\r\n", *[b"x" * 65_536] * 2000)
    assert "is no pawand (status 500)" in str(outcome)
    assert made.gone is not None


def test_silence_is_given_up_but_comments_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "SILENCE_SECS", 0.4)
    beats: list[bytes | float] = [0.1, b": keep-alive\n\n"]
    outcome, _, made = ask(*stream(*beats * 8, done()))
    assert isinstance(outcome, Answer)
    for parts in ([30.0], stream(event("token", content="a"), 30.0)):
        outcome, _, made = ask(*parts)
        assert outcome == "b went silent for 0.4 s; it was given up"
        assert made.gone is not None


def test_nobody_there_is_told() -> None:
    async def main(address: str, port: int) -> str:
        with pytest.raises(PeerError) as failed:
            await asker(port, address=address).ask("b", "x", 1, print)
        return failed.value.message

    async def refused() -> str:
        async with peer() as made:
            port = made.port
        return await main("127.0.0.1:{}", port)

    assert "Connection refused" in asyncio.run(refused())
    assert asyncio.run(main("no-such-host.invalid:{}", 1)).startswith("b cannot be reached at http://no-such-host")
    assert asyncio.run(main("{}" + "a" * 70 + "..b", 1)).startswith("b cannot be reached at http://1aaa")


def test_a_connection_that_is_not_taken_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "CONNECT_SECS", 0.3)

    async def main() -> None:
        async with peer(30.0) as made:  # it speaks no TLS, and says nothing
            with pytest.raises(PeerError, match=r"cannot be reached at https://.*: no answer in 0.3 s"):
                await asker(made.port, address="https://127.0.0.1:{}").ask("b", "x", 1, print)

    asyncio.run(main())


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Of localhost, with its key in the same file; only who is told trusts it."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    file = tmp_path / "both.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    command += f" -addext subjectAltName=DNS:localhost -keyout {file} -out {tmp_path}/certificate.pem"
    subprocess.run(command.split(), check=True, capture_output=True)
    file.write_text(file.read_text() + (tmp_path / "certificate.pem").read_text())
    return file


@pytest.mark.parametrize("trusted", [True, False])
def test_https_is_spoken_with_a_certificate_that_is_trusted(
    certificate: Path, monkeypatch: pytest.MonkeyPatch, log_watch: LogWatch, trusted: bool
) -> None:
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    else:
        log_watch.expect("certificate verify failed")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    async def main() -> tuple[Answer | str, list[str]]:
        made = Peer(stream(done()))
        server = await asyncio.start_server(made.serve, "127.0.0.1", 0, ssl=context)
        made.port = server.sockets[0].getsockname()[1]
        try:
            return await asker(made.port, address="https://localhost:{}").ask("b", "x", 1, print), made.heads
        except PeerError as error:
            return error.message, made.heads
        finally:
            await reached(lambda: not made.open)
            server.close()
            await server.wait_closed()

    with harness.no_blocking():
        outcome, heads = asyncio.run(main())
    if trusted:
        assert outcome == Answer("b", "42", "s-1", "stop")
    else:
        assert "b cannot be reached at https://localhost" in str(outcome)
        assert "certificate verify failed" in str(outcome)
        assert heads == []


def test_a_cancelled_question_closes_the_connection_at_once() -> None:
    async def main(*parts: bytes | float, begun: Callable[[Peer, list[str]], Any]) -> float:
        seen: list[str] = []
        async with peer(*parts) as made:
            asked = asyncio.create_task(asker(made.port).ask("b", "x", 1, seen.append))
            await reached(lambda: begun(made, seen))
            asked.cancel()
            cancelled = time.monotonic()
            with pytest.raises(asyncio.CancelledError):
                await asked
            await reached(lambda: made.gone is not None)
            assert made.gone is not None
            return made.gone - cancelled

    with harness.no_blocking():
        silent = asyncio.run(main(60.0, begun=lambda made, _: made.bodies))
        speaking = asyncio.run(main(*stream(event("token", content="a"), 60.0), begun=lambda _, seen: seen))
    assert silent < 1
    assert speaking < 1


def test_the_rows_of_the_directory_count(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> tuple[Answer, list[str]]:
        async with peer(*stream(done())) as made:
            directory = Directory("pawan@a", AegisFile([]))
            source = "mdns"

            async def peers() -> list[wire.Peer]:
                row = wire.Peer(name="c", agent_id="pawan@c", ip="127.0.0.1", groups=[], port=made.port, source=source)
                return [row]

            monkeypatch.setattr(directory, "peers", peers)
            with pytest.raises(PeerError, match="token is not sent"):
                await Asking({"c": config.Peer(token=TOKEN)}, directory).ask("c", "x", 1, print)
            assert made.heads == []
            source = "aegis+mdns"
            answer = await Asking({}, directory).ask("C", "x", 1, lambda text: None)
            return answer, made.heads

    answer, [head] = asyncio.run(main())
    assert answer.content == "42"
    assert "Authorization" not in head
