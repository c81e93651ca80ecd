"""Turns apart from their answers: submitted, cancelled, repeated, left alone by their clients."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders
from tornado.iostream import IOStream
from tornado.tcpclient import TCPClient

from pawand.daemon import Parts
from tests import harness
from tests.conftest import LogWatch
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import OpenAIServer
from tests.web.conftest import Fetch, until


def body(message: str = "hello", **more: Any) -> bytes:
    return json.dumps({"message": message, **more}).encode()


async def connect(port: int, path: str, content: bytes, **headers: str) -> IOStream:
    """A POST whose answer is left to read."""
    stream = await TCPClient().connect("127.0.0.1", port)
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    head += "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    await stream.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    return stream


# --- POST /sessions/{id}/messages -----------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_message_is_accepted_and_its_events_follow_from_the_given_id(
    fetch: Fetch, upstream: OpenAIServer
) -> None:
    upstream.script = [fake.text("one"), fake.text("two")]
    await fetch("/chat", body=body(session_id="s"))
    answer = await fetch("/sessions/s/messages", body=body("again"))
    assert answer.code == 202
    submitted = json.loads(answer.body)
    assert set(submitted) == {"session_id", "turn_id", "last_event_id"}
    assert submitted["session_id"] == "s"
    assert submitted["last_event_id"].endswith("-3")
    seen: list[bytes] = []
    follower = asyncio.ensure_future(
        fetch(f"/sessions/s/events?after={submitted['last_event_id']}", streaming_callback=seen.append)
    )
    await until(lambda: b"event: done" in b"".join(seen), "the end of the turn")
    events = harness.parse_events(b"".join(seen).decode())
    assert [name for name, _ in events] == ["start", "token", "done"]
    assert events[0][1]["turn_id"] == submitted["turn_id"]
    assert events[2][1]["content"] == "two"
    await fetch("/sessions/s", method="DELETE")
    await follower


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("path", "content", "status"),
    [
        ("/sessions/none/messages", b'{"message": "x"}', 404),
        ("/sessions/-x/messages", b'{"message": "x"}', 400),
        ("/sessions/s/messages", b'{"message": " "}', 400),
        ("/sessions/s/messages", b"{}", 400),
        ("/sessions/s/messages", b'{"message": "x", "model": ""}', 400),
        ("/sessions/s/messages", b"nonsense", 400),
    ],
)
async def test_bad_messages(fetch: Fetch, upstream: OpenAIServer, path: str, content: bytes, status: int) -> None:
    await fetch("/sessions", body=b'{"session_id": "s"}')
    answer = await fetch(path, body=content)
    assert (answer.code, set(json.loads(answer.body))) == (status, {"error", "code"})
    assert upstream.requests == []


@pytest.mark.gen_test
@pytest.mark.settings(limits__queued_per_session=1)
async def test_a_full_queue_refuses_messages_too(fetch: Fetch, upstream: OpenAIServer) -> None:
    upstream.script = lambda _: fake.text("a", "b", pause=0.2)
    await fetch("/sessions", body=b'{"session_id": "s"}')
    codes = [(await fetch("/sessions/s/messages", body=body(f"m{n}"))).code for n in range(3)]
    assert codes == [202, 202, 429]
    await fetch("/sessions/s/cancel?all=1", body=b"")


@pytest.mark.gen_test
@pytest.mark.settings(limits__queued_per_session=0)
async def test_without_a_queue_one_message_runs(fetch: Fetch, upstream: OpenAIServer) -> None:
    upstream.script = [fake.text("a", "b", pause=0.3)]
    first = asyncio.ensure_future(fetch("/chat", body=body(session_id="s")))
    await until(lambda: upstream.requests, "the turn asks")
    assert (await fetch("/chat", body=body(session_id="s"))).code == 429
    assert (await first).code == 200


# --- cancel ---------------------------------------------------------------------------------------


@pytest.mark.gen_test(timeout=30)
async def test_cancel_closes_the_upstream_and_keeps_what_was_said(
    fetch: Fetch, upstream: OpenAIServer, state: Path
) -> None:
    upstream.script = [fake.text(*"abcdefghij", pause=0.3), fake.text("more")]
    seen: list[bytes] = []
    turn = asyncio.ensure_future(fetch("/chat/stream", body=body(session_id="s"), streaming_callback=seen.append))
    await until(lambda: b'"content":"c"' in b"".join(seen), "three tokens")
    began = time.monotonic()
    answer = await fetch("/sessions/s/cancel", body=b"")
    assert json.loads(answer.body) == {"cancelled": True}
    assert time.monotonic() - began < 1
    await until(upstream.hung_up.is_set, "the upstream's connection closed")
    await turn
    events = harness.parse_events(b"".join(seen).decode())
    assert events[-1][0] == "error"
    assert events[-1][1]["code"] == "cancelled"
    stored = json.loads((state / "sessions" / "s.json").read_bytes())["messages"]
    assert stored[-1]["content"] == harness.tokens(events)
    assert stored[-1]["interrupted"] is True
    assert (await fetch("/chat", body=body("go on", session_id="s"))).code == 200


@pytest.mark.gen_test(timeout=30)
@pytest.mark.parametrize(
    "mode", [pytest.param("auto"), pytest.param("off", marks=pytest.mark.settings(sandbox__mode="off"))]
)
async def test_cancel_ends_the_whole_tree_of_a_tool_and_keeps_finished_results(
    fetch: Fetch, upstream: OpenAIServer, workspace: Path, state: Path, mode: str
) -> None:
    stubborn = "trap '' TERM; (setsid nohup bash -c 'trap \"\" TERM; while :; do touch alive; sleep 0.05; done' &) ; "
    upstream.script = [
        fake.calls(("bash", {"command": "echo first"}), ("bash", {"command": stubborn + "while :; do sleep 0.1; done"}))
    ]
    turn = asyncio.ensure_future(fetch("/chat", body=body(session_id="s")))
    await until((workspace / "alive").exists, "the command runs")
    began = time.monotonic()
    await fetch("/sessions/s/cancel", body=b"")
    assert time.monotonic() - began < 1
    os.remove(workspace / "alive")
    await asyncio.sleep(0.3)  # several of its rounds
    assert not (workspace / "alive").exists()
    answer = await turn
    assert (answer.code, json.loads(answer.body)["code"]) == (409, "cancelled")
    messages = json.loads((state / "sessions" / "s.json").read_bytes())["messages"]
    assert [m["role"] for m in messages] == ["user", "assistant", "tool", "tool"]
    assert messages[2]["tool_result"]["content"]["stdout"] == "first\n"
    assert messages[3]["tool_result"]["success"] is False
    assert "interrupted" in messages[3]["content"]


@pytest.mark.gen_test
async def test_cancel_ends_the_running_turn_and_the_next_one_goes_on(fetch: Fetch, upstream: OpenAIServer) -> None:
    upstream.script = [fake.text(*"abcdef", pause=0.3), fake.text("second")]
    first = asyncio.ensure_future(fetch("/chat", body=body("one", session_id="s")))
    await until(lambda: upstream.requests, "the first turn asks")
    second = asyncio.ensure_future(fetch("/chat", body=body("two", session_id="s")))
    await until(lambda: len(upstream.requests) == 1, "one turn at a time")
    assert json.loads((await fetch("/sessions/s/cancel", body=b"")).body) == {"cancelled": True}
    assert (await first).code == 409
    assert json.loads((await second).body)["content"] == "second"


@pytest.mark.gen_test
async def test_cancel_all_ends_those_that_wait_as_well(fetch: Fetch, upstream: OpenAIServer, parts: Parts) -> None:
    upstream.script = [fake.text(*"abcdef", pause=0.3)]
    turns = [asyncio.ensure_future(fetch("/chat", body=body(f"m{n}", session_id="s"))) for n in range(4)]
    await until(lambda: len(parts.services.turns._slots["s"].turns) == 4 if parts.services.turns._slots else False, "4")
    await until(lambda: upstream.requests, "the first turn asks")
    assert json.loads((await fetch("/sessions/s/cancel?all=1", body=b"")).body) == {"cancelled": True}
    assert [(await turn).code for turn in turns] == [409] * 4
    messages = json.loads((await fetch("/sessions/s")).body)["messages"]
    assert [m["role"] for m in messages if m["role"] == "user"] == ["user"]  # of the one that ran
    assert len(upstream.requests) == 1


@pytest.mark.gen_test
async def test_cancel_where_nothing_runs(fetch: Fetch, upstream: OpenAIServer) -> None:
    upstream.script = [fake.text("ok")]
    await fetch("/chat", body=body(session_id="s"))
    for path in ("/sessions/s/cancel", "/sessions/s/cancel?all=1", "/api/sessions/s/cancel"):
        assert json.loads((await fetch(path, body=b"")).body) == {"cancelled": False}
    assert (await fetch("/sessions/none/cancel", body=b"")).code == 404
    assert (await fetch("/sessions/-/cancel", body=b"")).code == 400
    assert (await fetch("/sessions/s/cancel", body=b"nonsense")).code == 400
    assert (await fetch("/sessions/s/cancel")).code == 405


@pytest.mark.gen_test
@pytest.mark.settings(limits__turns=1)
async def test_a_turn_that_waits_for_a_place_can_be_cancelled(
    fetch: Fetch, upstream: OpenAIServer, parts: Parts
) -> None:
    upstream.script = [fake.text(*"abcdef", pause=0.3)]
    first = asyncio.ensure_future(fetch("/chat", body=body(session_id="one")))
    await until(lambda: upstream.requests, "the first turn asks")
    second = asyncio.ensure_future(fetch("/chat", body=body(session_id="two")))
    await until(lambda: parts.services.turns.active_turns == 2, "the second waits")
    assert json.loads((await fetch("/sessions/two/cancel", body=b"")).body) == {"cancelled": True}
    assert (await second).code == 409
    await fetch("/sessions/one/cancel", body=b"")
    await first


@pytest.mark.gen_test
async def test_what_takes_up_the_common_threads_stops_no_turn_that_runs(
    http_server: HTTPServer, http_port: int, upstream: OpenAIServer, state: Path
) -> None:
    """A workspace on a server that is gone, say: turns that begin wait for it, those that run end and can be ended."""

    async def post(path: str, content: bytes = b"") -> dict[str, Any]:  # without a thread to look up the address
        reader, writer = await asyncio.open_connection("127.0.0.1", http_port)
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        answer = await reader.read()
        writer.close()
        return dict(json.loads(answer.partition(b"\r\n\r\n")[2]))

    upstream.script = [fake.text("a", "b", pause=0.2), fake.text("never", pause=60), fake.text("late")]
    ends = asyncio.create_task(post("/chat", body(session_id="ends")))
    await until(lambda: len(upstream.requests) == 1, "the first asks")
    is_cancelled = asyncio.create_task(post("/chat", body(session_id="cancelled")))
    await until(lambda: len(upstream.requests) == 2, "the second asks")
    await post("/sessions/cancelled/messages", body("waits behind it"))
    back = threading.Event()
    hung = [asyncio.get_running_loop().run_in_executor(None, back.wait, 20) for _ in range(100)]
    try:
        begins = asyncio.create_task(post("/chat", body(session_id="begins")))
        assert (await ends)["content"] == "ab"
        assert await post("/sessions/cancelled/cancel?all=1") == {"cancelled": True}
        assert (await is_cancelled)["code"] == "cancelled"
        await until((state / "sessions" / "begins.json").exists, "the message is stored")
        for id, said in (("ends", ["ab"]), ("cancelled", []), ("begins", [])):
            messages = json.loads((state / "sessions" / f"{id}.json").read_bytes())["messages"]
            assert [message["content"] for message in messages] == ["hello", *said]
        assert len(upstream.requests) == 2
    finally:
        back.set()
    assert (await begins)["content"] == "late"
    await asyncio.gather(*hung)


# --- on_disconnect --------------------------------------------------------------------------------


@pytest.mark.gen_test
@pytest.mark.parametrize("path", ["/chat", "/chat/stream"])
async def test_a_turn_that_shall_end_with_its_client_does(
    fetch: Fetch, http_server: HTTPServer, http_port: int, upstream: OpenAIServer, path: str
) -> None:
    upstream.script = [fake.text(*"abcdefghij", pause=0.3)]
    stream = await connect(http_port, path, body(session_id="s", on_disconnect="cancel"))
    await until(lambda: upstream.requests, "the turn asks")
    stream.close()
    await until(upstream.hung_up.is_set, "the upstream's connection closed")
    shown = {"active_turn": "?"}
    for _ in range(200):
        shown = json.loads((await fetch("/sessions/s")).body)
        if shown["active_turn"] is None:
            break
        await asyncio.sleep(0.01)
    assert shown["active_turn"] is None


@pytest.mark.gen_test
async def test_by_default_it_goes_on(
    fetch: Fetch, http_server: HTTPServer, http_port: int, upstream: OpenAIServer
) -> None:
    upstream.script = [fake.text("a", "b", "c", pause=0.1)]
    stream = await connect(http_port, "/chat", body(session_id="s"))
    await until(lambda: upstream.requests, "the turn asks")
    stream.close()
    for _ in range(300):
        shown = json.loads((await fetch("/sessions/s")).body)
        if len(shown["messages"]) == 2 and shown["active_turn"] is None:
            break
        await asyncio.sleep(0.01)
    assert shown["messages"][1]["content"] == "abc"


@pytest.mark.gen_test
async def test_it_ends_with_its_last_client(
    fetch: Fetch, http_server: HTTPServer, http_port: int, upstream: OpenAIServer, parts: Parts
) -> None:
    upstream.script = [fake.text("a", "b", "c", pause=0.2)]
    content = body(session_id="s", on_disconnect="cancel")
    first = await connect(http_port, "/chat", content, Idempotency_Key="k")
    await until(lambda: upstream.requests, "the turn asks")
    second = asyncio.ensure_future(fetch("/chat", body=content, headers={"Idempotency-Key": "k"}))
    [turn] = parts.services.turns._slots["s"].turns
    await until(lambda: turn._clients == 2, "both clients are there")
    first.close()
    assert json.loads((await second).body)["content"] == "abc"


@pytest.mark.gen_test
async def test_on_disconnect_takes_two_words(fetch: Fetch) -> None:
    answer = await fetch("/chat", body=body(on_disconnect="explode"))
    assert answer.code == 400
    assert "it takes 'continue' or 'cancel'" in json.loads(answer.body)["error"]


@pytest.mark.gen_test(timeout=30)
@pytest.mark.settings(limits__ring_bytes=65536)
@pytest.mark.parametrize(
    ("method", "path", "pause", "outcome"),
    [
        ("POST", "/chat/stream", 0.003, "cancelled"),
        ("POST", "/chat/stream", 0.0, "cancelled"),  # so fast that the handler sleeps when it is left behind
        ("GET", "/sessions/s/events", 0.003, None),
    ],
)
async def test_a_client_that_reads_nothing_is_let_go_for_good(
    fetch: Fetch,
    http_server: HTTPServer,
    http_port: int,
    upstream: OpenAIServer,
    parts: Parts,
    method: str,
    path: str,
    pause: float,
    outcome: str | None,
) -> None:
    """Its handler ends, and for the turn it is a client that has gone."""
    upstream.script = [fake.text(*["x" * 20_000] * 400, pause=pause)]
    await fetch("/sessions", body=b'{"session_id": "s"}')
    stream = await TCPClient().connect("127.0.0.1", http_port, max_buffer_size=1024)
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    content = body(session_id="s", on_disconnect="cancel") if method == "POST" else b""
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    await stream.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    turns = parts.services.turns
    if method == "GET":
        await until(lambda: turns._slots and turns._slots["s"].log.followed, "it follows")
        await fetch("/sessions/s/messages", body=body())

    def last() -> bytes:
        log = turns._slots["s"].log if "s" in turns._slots else None
        return log.take(log.last, None)[0] if log is not None and log.last else b""

    await until(lambda: b"event: done\n" in last() or b"event: error\n" in last(), "the turn ends", 25)
    assert (outcome is not None) == (b'"code":"cancelled"' in last())
    await until(lambda: not turns._slots["s"].log.followed, "nobody follows")
    names = [task.get_coro().__qualname__ for task in asyncio.all_tasks()]  # type: ignore[union-attr]
    assert "RequestHandler._execute" not in names
    stream.close()


# --- Idempotency-Key ------------------------------------------------------------------------------


@pytest.mark.gen_test
@pytest.mark.parametrize("session", ["s", None])
async def test_the_same_request_again_meets_the_first_turn(
    fetch: Fetch, upstream: OpenAIServer, session: str | None
) -> None:
    upstream.script = [fake.text("a", "b", pause=0.1)]
    content = body(session_id=session)
    headers = {"Idempotency-Key": "key-1"}
    answers = await asyncio.gather(*(fetch("/chat", body=content, headers=headers) for _ in range(3)))
    streamed = await fetch("/chat/stream", body=content, headers=headers)
    assert len(upstream.requests) == 1
    found = [json.loads(answer.body) for answer in answers]
    assert found[0]["content"] == "ab"
    assert found[1:] == found[:1] * 2
    events = harness.parse_events(streamed.body.decode())
    assert [name for name, _ in events] == ["start", "token", "token", "done"]
    assert events[0][1]["turn_id"] == found[0]["turn_id"]
    shown = json.loads((await fetch(f"/sessions/{found[0]['session_id']}")).body)
    assert len(shown["messages"]) == 2
    assert len(json.loads((await fetch("/sessions")).body)) == 1


@pytest.mark.gen_test
async def test_the_same_key_with_another_body_is_refused_and_in_another_session_it_is_another(
    fetch: Fetch, upstream: OpenAIServer
) -> None:
    upstream.script = lambda _: fake.text("ok")
    headers = {"Idempotency-Key": "k"}
    assert (await fetch("/chat", body=body("a", session_id="s"), headers=headers)).code == 200
    for changed in (body("b", session_id="s"), body("a", session_id="s", model="m")):
        answer = await fetch("/chat", body=changed, headers=headers)
        assert (answer.code, json.loads(answer.body)["code"]) == (409, "conflict")
    assert (await fetch("/chat", body=body("b", session_id="t"), headers=headers)).code == 200
    assert len(upstream.requests) == 2


@pytest.mark.gen_test
async def test_messages_and_chat_share_their_keys(fetch: Fetch, upstream: OpenAIServer) -> None:
    upstream.script = [fake.text("ok")]
    await fetch("/sessions", body=b'{"session_id": "s"}')
    headers = {"Idempotency-Key": "k"}
    first = json.loads((await fetch("/sessions/s/messages", body=body("a"), headers=headers)).body)
    again = json.loads((await fetch("/sessions/s/messages", body=body("a"), headers=headers)).body)
    assert again["turn_id"] == first["turn_id"]
    answer = json.loads((await fetch("/chat", body=body("a", session_id="s"), headers=headers)).body)
    assert answer["turn_id"] == first["turn_id"]
    late = json.loads((await fetch("/sessions/s/messages", body=body("a"), headers=headers)).body)
    assert late == first
    assert len(upstream.requests) == 1


@pytest.mark.gen_test
@pytest.mark.settings(limits__ring_bytes=65536)
async def test_a_turn_whose_beginning_is_gone_begins_with_resync(fetch: Fetch, upstream: OpenAIServer) -> None:
    upstream.script = [fake.text(*["x" * 4000] * 40)]
    content = body(session_id="s")
    headers = {"Idempotency-Key": "k"}
    answer = json.loads((await fetch("/chat", body=content, headers=headers)).body)
    frames = harness.parse_frames((await fetch("/chat/stream", body=content, headers=headers)).body.decode())
    assert [name for _, name, _ in frames] == ["resync", "done"]
    assert frames[1][2]["content"] == answer["content"] == "x" * 160_000
    assert int(frames[0][0].rpartition("-")[2]) + 1 == int(frames[1][0].rpartition("-")[2])


@pytest.mark.gen_test
async def test_a_deleted_session_takes_its_keys_with_it(fetch: Fetch, upstream: OpenAIServer) -> None:
    upstream.script = [fake.text("one"), fake.text("two")]
    headers = {"Idempotency-Key": "k"}
    await fetch("/chat", body=body(session_id="s"), headers=headers)
    await fetch("/sessions/s", method="DELETE")
    answer = await fetch("/chat", body=body(session_id="s"), headers=headers)
    assert json.loads(answer.body)["content"] == "two"


@pytest.mark.gen_test
async def test_a_turn_that_failed_before_it_saved_anything_may_be_tried_again(
    fetch: Fetch, upstream: OpenAIServer, state: Path, log_watch: Any
) -> None:
    log_watch.expect("turn failed")
    upstream.script = [fake.text("now")]
    file = state / "sessions" / "s.json"
    file.write_bytes(b"{")
    headers = {"Idempotency-Key": "k"}
    assert (await fetch("/chat", body=body(session_id="s"), headers=headers)).code == 503
    file.unlink()
    assert (await fetch("/chat", body=body(session_id="s"), headers=headers)).code == 200


@pytest.mark.gen_test
async def test_two_keys_are_none(fetch: Fetch) -> None:
    headers = HTTPHeaders({"Content-Type": "application/json"})
    for key in ("a", "b"):
        headers.add("Idempotency-Key", key)
    answer = await fetch("/chat", method="POST", body=body(), headers=headers)
    assert (answer.code, json.loads(answer.body)["code"]) == (400, "bad_request")


@pytest.mark.gen_test
@pytest.mark.parametrize("key", ["", "x" * 256])
async def test_a_key_has_a_length(fetch: Fetch, key: str) -> None:
    answer = await fetch("/chat", body=body(), headers={"Idempotency-Key": key})
    assert (answer.code, json.loads(answer.body)["code"]) == (400, "bad_request")


@pytest.mark.gen_test
async def test_a_turn_that_is_kept_for_its_key_keeps_no_session(
    fetch: Fetch, upstream: OpenAIServer, parts: Parts
) -> None:
    upstream.script = [fake.text("ok")]
    await fetch("/chat", body=body("x" * 1000, session_id="s"), headers={"Idempotency-Key": "k"})
    [kept] = parts.services.turns._submissions._kept.values()
    assert (kept.turn._session, kept.turn._message) == (None, None)
    assert kept.turn.outcome is not None


# --- DELETE ---------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_a_message_to_a_session_that_is_being_deleted_does_not_bring_it_back(
    fetch: Fetch, upstream: OpenAIServer, parts: Parts, workspace: Path, state: Path, log_watch: LogWatch
) -> None:
    log_watch.expect("was deleted while the message waited")
    command = "trap '' TERM; touch alive; while :; do sleep 0.1; done"  # takes half a second to end
    upstream.script = [fake.calls(("bash", {"command": command}))]
    running = asyncio.ensure_future(fetch("/chat", body=body(session_id="s")))
    await until((workspace / "alive").exists, "the command runs")
    deleting = asyncio.ensure_future(fetch("/sessions/s", method="DELETE"))
    turns = parts.services.turns
    await until(lambda: turns._slots["s"].turns[0]._stop_reason, "the turn is being stopped")
    accepted = await fetch("/sessions/s/messages", body=body("late"))
    assert accepted.code == 202
    late = turns._slots["s"].turns[-1]
    assert (await deleting).code == 204
    assert (await running).code == 409
    await late.wait()
    assert late.error is not None
    assert "was deleted while the message waited" in late.error.message
    assert os.listdir(state / "sessions") == [".lock"]
    assert (await fetch("/sessions/s")).code == 404


@pytest.mark.gen_test(timeout=30)
async def test_a_tool_never_outlives_its_turn_however_often_it_is_stopped(
    fetch: Fetch, upstream: OpenAIServer, parts: Parts, workspace: Path
) -> None:
    command = "trap '' TERM; touch alive; while :; do touch alive; sleep 0.02; done"
    upstream.script = [fake.calls(("bash", {"command": command}))]
    running = asyncio.ensure_future(fetch("/chat", body=body(session_id="s")))
    await until((workspace / "alive").exists, "the command runs")
    [turn] = parts.services.turns._slots["s"].turns
    assert turn._task is not None
    for _ in range(3):
        turn._task.cancel()
        await asyncio.sleep(0.05)
    await running
    (workspace / "alive").unlink()
    await asyncio.sleep(0.2)
    assert not (workspace / "alive").exists()


# --- how many at once -----------------------------------------------------------------------------


@pytest.mark.gen_test
@pytest.mark.settings(limits__turns=2)
async def test_only_so_many_turns_run_at_once_and_the_next_waits(fetch: Fetch, upstream: OpenAIServer) -> None:
    running = most = 0

    def script(_: Any) -> fake.Reply:
        return fake.text("a", "b", pause=0.1)

    upstream.script = script
    turns = [asyncio.ensure_future(fetch("/chat", body=body(session_id=f"s{n}"))) for n in range(5)]
    while not all(turn.done() for turn in turns):
        running = len(upstream.requests) - sum(turn.done() for turn in turns)
        most = max(most, running)
        await asyncio.sleep(0.01)
    assert [turn.result().code for turn in turns] == [200] * 5
    assert most == 2


# --- garbage --------------------------------------------------------------------------------------


@pytest.mark.gen_test
async def test_what_is_over_leaves_nothing_for_a_collection(
    fetch: Fetch, http_port: int, upstream: OpenAIServer, workspace: Path, log_watch: LogWatch
) -> None:
    """Full collections hold the event loop, and are rare."""
    log_watch.expect("the API key was refused")
    log_watch.expect("in the middle of its answer")
    (workspace / "a.txt").write_text("text")
    answers = {
        "say": fake.text("a", "b"),
        "read": fake.calls(("read_file", {"path": "a.txt"})),
        "refuse": fake.refusal(401),
        "cut": fake.Reply([fake.chunk({"content": "half of"})], cut=True),
        "wait": fake.Reply([60.0]),
        "stall": fake.Reply([fake.chunk({"content": "a"}), fake.chunk({"content": "<thin"}), 60.0]),
    }
    upstream.script = lambda asked: answers.get(asked["messages"][-1]["content"], fake.text("it was read"))

    async def running(message: str) -> asyncio.Task[Any]:
        asked = len(upstream.requests)
        turn = asyncio.create_task(fetch("/chat", body=body(message, session_id="s")))
        await until(lambda: len(upstream.requests) > asked, "it asks")
        return turn

    async def cancel(message: str) -> None:
        turn = await running(message)
        follower = await TCPClient().connect("127.0.0.1", http_port)
        await follower.write(b"GET /sessions/s/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await follower.read_until(b"event: token" if message == "stall" else b"event: start")
        follower.close()
        await fetch("/sessions/s/cancel", body=b"")
        await turn

    async def one_of_each() -> None:
        await fetch("/chat", body=body("say", session_id="s"))
        await fetch("/chat/stream", body=body("read", session_id="s"))
        await fetch("/chat", body=body("refuse", session_id="s"))
        await fetch("/chat/stream", body=body("cut", session_id="s"))
        await cancel("wait")
        await cancel("stall")
        for path in ("/health", "/sessions", "/sessions/s", "/nothing"):
            await fetch(path)
        turn = await running("wait")
        await fetch("/sessions/s", method="DELETE")
        await turn

    def alive() -> Counter[str]:
        return Counter(name for name in map(str, map(type, gc.get_objects())) if name.startswith("<class 'pawand."))

    await one_of_each()  # once for what is kept from then on
    gc.collect()
    gc.disable()
    try:
        before = alive()
        await one_of_each()
        await until(lambda: not alive() - before, f"all of it goes: {alive() - before}")
    finally:
        gc.enable()
