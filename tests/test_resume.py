"""A stream that is cut and resumed, followed by many, or read by nobody, at a daemon in a process of its own."""

from __future__ import annotations

import random
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from tests import harness
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import OpenAIServer
from tests.harness import Frame, Stream, until

CUTS = 20
FOLLOWERS = 200


def long_turn(pause: float) -> list[fake.Reply]:
    """500 tokens, with tool calls after the first and the second hundred."""
    tokens = [f"t{n} " for n in range(500)]
    head = [fake.chunk({"role": "assistant", "content": ""})]

    def said(part: list[str]) -> list[bytes | float]:
        return [piece for token in part for piece in (pause, fake.chunk({"content": token}))]

    first = fake.calls(("bash", {"command": "echo one; sleep 0.2; echo two"}), ("list_directory", {"path": "."}))
    second = fake.calls(("write_file", {"path": "new.txt", "content": "text\n"}))
    return [
        fake.Reply([*head, *said(tokens[:100]), *first.parts]),
        fake.Reply([*head, *said(tokens[100:200]), *second.parts]),
        fake.Reply([*head, *said(tokens[200:]), fake.chunk({}, "stop"), fake.usage(), fake.DONE]),
    ]


@pytest.mark.slow
def test_a_stream_that_is_cut_twenty_times_joins_to_the_uncut_one(
    tmp_path: Path, upstream: OpenAIServer, env: dict[str, str]
) -> None:
    seed = random.randrange(10**9)
    chance = random.Random(seed)
    upstream.script = long_turn(pause=0.004)
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand:
        pawand.call("POST", "/sessions", {"session_id": "s"})
        submitted = pawand.call("POST", "/sessions/s/messages", {"message": "go"})[1]
        uncut = Stream(pawand.url, f"/sessions/s/events?after={submitted['last_event_id']}")
        reading = threading.Thread(target=uncut.read_until, args=("done",))
        reading.start()
        joined: list[Frame] = []
        last = submitted["last_event_id"]
        for _ in range(CUTS):
            part = Stream(pawand.url, f"/sessions/s/events?after={submitted['last_event_id']}", Last_Event_ID=last)
            part.read(chance.randrange(20, 2500))  # anywhere, in the middle of a frame too
            part.close()
            joined += part.frames
            last = joined[-1][0] if joined else last
        rest = Stream(pawand.url, "/sessions/s/events", Last_Event_ID=last)
        rest.read_until("done")
        joined += rest.frames
        reading.join(30)
        # someone who comes back after the end gets nothing twice
        late = Stream(pawand.url, "/sessions/s/events", Last_Event_ID=joined[-2][0])
        assert late.read_until("done") == [joined[-1][1:]]
        for stream in (uncut, rest, late):
            stream.close()
    assert joined == uncut.frames, f"seed {seed}"
    numbers = [int(id.rpartition("-")[2]) for id, _, _ in joined]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    events = [(name, data) for _, name, data in joined]
    assert harness.tokens(events) == "".join(f"t{n} " for n in range(500))
    assert [name for name, _ in events].count("tool_complete") == 3
    assert events[-1][1]["content"] == "".join(f"t{n} " for n in range(200, 500))


@pytest.mark.slow
def test_a_post_that_is_cut_and_sent_again_with_its_key_is_one_turn(
    tmp_path: Path, upstream: OpenAIServer, env: dict[str, str]
) -> None:
    upstream.script = [fake.text(*"abcdefghij", pause=0.1)]
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand:
        first = Stream(pawand.url, "/chat/stream", {"message": "go"}, Idempotency_Key="once")
        first.read_until("token", 2)
        first.close()
        again = Stream(pawand.url, "/chat/stream", {"message": "go"}, Idempotency_Key="once")
        events = again.read_rest()
        assert [name for name, _ in events] == ["start", *["token"] * 10, "done"]
        assert events[0] == first.events[0]
        assert len(upstream.requests) == 1
        assert len(pawand.call("GET", "/sessions")[1]) == 1


# --- many followers -------------------------------------------------------------------------------


def resident(pid: int) -> int:
    """Resident memory in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096


class Crowd:
    """Followers of one session, read by one thread."""

    def __init__(self, url: str, path: str, count: int) -> None:
        address = urlsplit(url)
        request = f"GET {path} HTTP/1.0\r\nHost: {address.netloc}\r\n\r\n".encode()  # HTTP/1.0: no chunks to take apart
        self.received = [bytearray() for _ in range(count)]
        self._sockets = []
        for _ in range(count):
            sock = socket.create_connection((address.hostname, address.port))
            sock.sendall(request)
            self._sockets.append(sock)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with selectors.DefaultSelector() as selector:
            for sock, received in zip(self._sockets, self.received, strict=True):
                selector.register(sock, selectors.EVENT_READ, received)
            while selector.get_map():
                for key, _ in selector.select():
                    data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                    key.data.extend(data)
                    if not data or b"event: done\n" in data or b"\nevent: done\n" in key.data[-4096:]:
                        selector.unregister(key.fileobj)

    def join(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()
        for sock in self._sockets:
            sock.close()


@contextmanager
def one_that_never_reads(url: str, path: str) -> Iterator[socket.socket]:
    address = urlsplit(url)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((address.hostname, address.port))
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode())
        yield sock


def timed_turn(pawand: harness.Process) -> float:
    began = time.monotonic()
    status, answer = pawand.call("POST", "/chat", {"message": "go", "session_id": "s"})
    assert (status, answer["finish_reason"]) == (200, "stop")
    return time.monotonic() - began


@pytest.mark.slow
def test_two_hundred_followers_get_everything_beside_one_that_never_reads(
    tmp_path: Path, upstream: OpenAIServer, env: dict[str, str]
) -> None:
    tokens = [f"token {n} " for n in range(500)]
    upstream.script = lambda _: fake.text(*tokens, pause=0.005)
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand:
        timed_turn(pawand)  # all is imported and warm
        alone = timed_turn(pawand)
        before = resident(pawand.process.pid)
        crowd = Crowd(pawand.url, "/sessions/s/events", FOLLOWERS)
        with one_that_never_reads(pawand.url, "/sessions/s/events"):
            until(lambda: all(crowd.received), "all followers are connected")
            together = timed_turn(pawand)
            crowd.join()
            after = resident(pawand.process.pid)
    bodies = [bytes(received).partition(b"\r\n\r\n")[2].decode() for received in crowd.received]
    events = harness.parse_events(bodies[0])
    assert harness.tokens(events) == "".join(tokens)
    assert [name for name, _ in events][-1] == "done"
    assert set(bodies) == {bodies[0]}
    assert after - before < 20_000_000
    assert together < 1.5 * alone


@pytest.mark.slow
def test_a_follower_that_never_reads_is_let_go_when_it_falls_behind(
    tmp_path: Path, upstream: OpenAIServer, env: dict[str, str]
) -> None:
    upstream.script = lambda _: fake.text(*["x" * 20_000] * 400, pause=0.004)
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand:
        pawand.call("POST", "/sessions", {"session_id": "s"})
        with one_that_never_reads(pawand.url, "/sessions/s/events") as sock:
            crowd = Crowd(pawand.url, "/sessions/s/events", 5)
            until(lambda: all(crowd.received), "the others are connected")
            reader = Stream(pawand.url, "/chat/stream", {"message": "go", "session_id": "s"})
            events = reader.read_rest()
            assert events[-1][1]["content"] == "x" * 8_000_000
            sock.settimeout(10)
            received = 0
            try:
                while data := sock.recv(65536):
                    received += len(data)
            except ConnectionResetError:
                pass
            assert received < 8_000_000
            crowd.join()
            for body in crowd.received:
                tokens = bytes(body).partition(b"\r\n\r\n")[2].partition(b"event: done")[0]
                assert tokens.count(b"x") == 8_000_000
        assert pawand.call("GET", "/health")[1]["active_turns"] == 0


def test_silence_is_broken_by_comments(tmp_path: Path, upstream: OpenAIServer, env: dict[str, str]) -> None:
    config = "[server]\nkeep_alive_secs = 0.2\n"
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env, config=config) as pawand:
        pawand.call("POST", "/sessions", {"session_id": "s"})
        stream = Stream(pawand.url, "/sessions/s/events")
        stream.read(len("retry: 2000\n\n" + ": keep-alive\n\n" * 3))
        assert stream.text == "retry: 2000\n\n" + ": keep-alive\n\n" * 3
        stream.close()


def test_a_cursor_that_is_none_gets_resync(tmp_path: Path, upstream: OpenAIServer, env: dict[str, str]) -> None:
    upstream.script = [fake.text("a")]
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand:
        turn = Stream(pawand.url, "/chat/stream", {"message": "go", "session_id": "s"})
        turn.read_rest()
        epoch = turn.frames[0][0].partition("-")[0]
        for cursor in (
            "x",
            "0123456789ab-1",
            f"{epoch}-99999",
            f"{epoch}--1",
            f"{epoch}-",
            f"{epoch}-1-2",
            "-",
            "é-1",
            "\0",
            "\udcff",
            "\u2028",
        ):
            stream = Stream(pawand.url, f"/sessions/s/events?after={quote(cursor, errors='surrogateescape')}")
            [(name, data)] = stream.read_until("resync")
            assert (name, data["session_id"]) == ("resync", "s"), cursor
            # whoever comes back with the id of the resync is in step
            assert stream.frames[0][0] == turn.frames[-1][0], cursor
            stream.close()


def test_a_turn_that_ends_between_resync_and_the_reading_is_not_shown_twice(
    tmp_path: Path, upstream: OpenAIServer, env: dict[str, str]
) -> None:
    upstream.script = [fake.text("a", "b", pause=0.2), fake.text("c")]
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand:
        turn = Stream(pawand.url, "/chat/stream", {"message": "one", "session_id": "s"})
        turn.read_until("token")
        running = pawand.call("GET", "/sessions/s")[1]
        assert running["active_turn"] == turn.events[0][1]["turn_id"]
        assert running["last_event_id"].endswith("-0")  # the turn's own events come again
        follower = Stream(pawand.url, "/sessions/s/events", Last_Event_ID="old-3")
        follower.read_until("resync")
        turn.read_rest()
        session = pawand.call("GET", "/sessions/s")[1]
        assert session["active_turn"] is None
        assert session["messages"][-1]["content"] == "ab"
        assert session["last_event_id"] == turn.frames[-1][0]
        pawand.call("POST", "/chat", {"message": "two", "session_id": "s"})
        follower.read_until("done", 2)
        known = int(session["last_event_id"].rpartition("-")[2])
        new = [name for id, name, _ in follower.frames if name != "resync" and int(id.rpartition("-")[2]) > known]
        assert new == ["start", "token", "done"]
        follower.close()
