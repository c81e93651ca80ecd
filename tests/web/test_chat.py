"""`/chat`, `/chat/stream` and `/sessions/{id}/events`: what a turn does, says and leaves behind."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from tornado.httpserver import HTTPServer

from pawand.daemon import Parts
from pawand.sessions.model import Session
from pawand.turns.submissions import Submission
from tests import harness
from tests.conftest import LogWatch
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import OpenAIServer
from tests.web.conftest import Fetch


def sent(session_id: str, message: str) -> Submission:
    return Submission(session_id=session_id, message=message)


def body(message: str = "hello", **more: Any) -> bytes:
    return json.dumps({"message": message, **more}).encode()


@pytest.mark.gen_test
async def test_chat_answers_with_the_fields_of_the_contract(fetch: Fetch, upstream: OpenAIServer) -> None:
    upstream.script = [fake.text("Hello", ", ", "world")]
    answer = await fetch("/chat", body=body(session_id="s1"))
    assert answer.code == 200
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    found = json.loads(answer.body)
    assert found.pop("turn_id")
    assert found == {
        "session_id": "s1",
        "content": "Hello, world",
        "iterations": 1,
        "tool_calls": 0,
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
        "model": harness.MODEL,
    }


@pytest.mark.gen_test(timeout=30)
async def test_a_turn_with_tools_streams_its_events_in_order_and_changes_the_file(
    fetch: Fetch, upstream: OpenAIServer, workspace: Path, state: Path
) -> None:
    (workspace / "greeting.txt").write_text("hello wrld\nbye\n")
    upstream.script = [
        fake.calls(("list_directory", {"path": "."}), ("read_file", {"path": "greeting.txt"}), say="Let me look. "),
        fake.calls(("edit_file", {"path": "greeting.txt", "old_string": "wrld", "new_string": "world"})),
        fake.calls(("bash", {"command": "cat greeting.txt; pwd"})),
        fake.text("Fixed", " it", "."),
    ]
    answer = await fetch("/chat/stream", body=body("fix the typo", session_id="fix"))
    assert answer.code == 200
    assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert answer.body.startswith(b"retry: 2000\n\n")
    frames = harness.parse_frames(answer.body.decode())
    events = [(name, data) for _, name, data in frames]
    names = [name for name, _ in events]
    assert [name for name in names if name != "tool_output"] == [
        "start",
        "token",
        "tool_start",
        "tool_start",
        "tool_complete",
        "tool_complete",
        "tool_start",
        "tool_complete",
        "tool_start",
        "tool_complete",
        "token",
        "token",
        "token",
        "done",
    ]
    epochs = {id.rpartition("-")[0] for id, _, _ in frames}
    assert len(epochs) == 1
    assert [int(id.rpartition("-")[2]) for id, _, _ in frames] == list(range(1, len(frames) + 1))
    start = events[0][1]
    assert start["session_id"] == "fix"
    assert start["model"] == harness.MODEL
    completed = [data for name, data in events if name == "tool_complete"]
    assert all(data["success"] for data in completed)
    assert {data["name"] for data in completed[:2]} == {"list_directory", "read_file"}
    assert "+hello world" in completed[2]["result_preview"]
    output = "".join(data["content"] for name, data in events if name == "tool_output")
    assert output == f"hello world\nbye\n{workspace}\n"
    done = events[-1][1]
    assert done["content"] == "Fixed it."
    assert (done["iterations"], done["tool_calls"], done["finish_reason"]) == (4, 4, "stop")
    assert done["turn_id"] == start["turn_id"]
    assert (workspace / "greeting.txt").read_text() == "hello world\nbye\n"

    stored = json.loads((state / "sessions" / "fix.json").read_bytes())
    assert [m["role"] for m in stored["messages"]] == [
        "user", "assistant", "tool", "tool", "assistant", "tool", "assistant", "tool", "assistant",
    ]  # fmt: skip
    assert stored["messages"][0]["content"] == "fix the typo"
    assert stored["messages"][1]["content"] == "Let me look. "
    assert [c["name"] for c in stored["messages"][1]["tool_calls"]] == ["list_directory", "read_file"]
    assert stored["messages"][2]["tool_result"]["tool_call_id"] == stored["messages"][1]["tool_calls"][0]["id"]
    assert all(isinstance(m["content"], str) and isinstance(m["tool_calls"], list) for m in stored["messages"])
    for key in ("id", "model", "created_at", "updated_at", "total_tokens", "iteration_count", "tags", "notes"):
        assert key in stored
    assert stored["id"] == "fix"
    # what the second request told the model of the first one's tools
    sent = upstream.requests[1]["messages"]
    assert [m["role"] for m in sent] == ["system", "user", "assistant", "tool", "tool"]
    assert "hello wrld" in sent[4]["content"]


@pytest.mark.gen_test
async def test_chat_after_stream_continues_the_same_session(fetch: Fetch, upstream: OpenAIServer) -> None:
    upstream.script = [fake.text("one"), fake.text("two"), fake.text("three")]
    first = await fetch("/chat/stream", body=body("first"))
    session = harness.parse_events(first.body.decode())[0][1]["session_id"]
    second = json.loads((await fetch("/chat", body=body("second", session_id=session))).body)
    await fetch("/api/chat", body=body("third", session_id=session))
    assert second["session_id"] == session
    contents = [m["content"] for m in upstream.requests[2]["messages"][1:]]
    assert contents == ["first", "one", "second", "two", "third"]


@pytest.mark.gen_test(timeout=30)
async def test_twenty_sessions_at_once_each_get_their_own_tokens(fetch: Fetch, upstream: OpenAIServer) -> None:
    def reply(request: fake.Body) -> fake.Reply:
        name = request["messages"][-1]["content"]
        return fake.text(*(f"{name}:{n} " for n in range(30)), pause=0.005)

    upstream.script = reply
    answers = await asyncio.gather(*(fetch("/chat/stream", body=body(f"m{n}", session_id=f"s{n}")) for n in range(20)))
    for n, answer in enumerate(answers):
        events = harness.parse_events(answer.body.decode())
        assert harness.tokens(events) == "".join(f"m{n}:{i} " for i in range(30))
        assert events[-1][0] == "done"
        assert {data["session_id"] for name, data in events if "session_id" in data} == {f"s{n}"}


@pytest.mark.gen_test
async def test_messages_to_one_session_run_one_after_the_other(fetch: Fetch, upstream: OpenAIServer) -> None:
    upstream.script = lambda request: fake.text("re:", request["messages"][-1]["content"], pause=0.02)
    answers = await asyncio.gather(*(fetch("/chat/stream", body=body(f"m{n}", session_id="one")) for n in range(5)))
    for n, answer in enumerate(answers):
        events = harness.parse_events(answer.body.decode())
        assert [name for name, _ in events] == ["start", "token", "token", "done"]
        assert harness.tokens(events) == f"re:m{n}"
    session = json.loads((await fetch("/sessions/one")).body)
    asked = [r["messages"][-1]["content"] for r in upstream.requests]
    assert sorted(asked) == [f"m{n}" for n in range(5)]
    assert [m["content"] for m in session["messages"]] == [text for name in asked for text in (name, f"re:{name}")]


@pytest.mark.gen_test
async def test_messages_run_in_the_order_in_which_they_came(parts: Parts, upstream: OpenAIServer) -> None:
    upstream.script = lambda request: fake.text("ok", pause=0.01)
    turns = [parts.services.turns.submit(sent("one", f"m{n}")) for n in range(10)]
    await asyncio.gather(*(turn.wait() for turn in turns))
    assert [r["messages"][-1]["content"] for r in upstream.requests] == [f"m{n}" for n in range(10)]


@pytest.mark.gen_test
@pytest.mark.settings(limits__queued_per_session=1)
async def test_a_full_queue_is_429_and_saves_nothing(fetch: Fetch, upstream: OpenAIServer, parts: Parts) -> None:
    upstream.script = lambda request: fake.text("ok", pause=0.5)
    turns = parts.services.turns
    running = [turns.submit(sent("q", "first")), turns.submit(sent("q", "second"))]
    answer = await fetch("/chat", body=body("third", session_id="q"))
    assert answer.code == 429
    assert answer.headers["Retry-After"] == "5"
    assert json.loads(answer.body)["code"] == "busy"
    for turn in running:
        await turn.wait()
    assert [r["messages"][-1]["content"] for r in upstream.requests] == ["first", "second"]


@pytest.mark.gen_test
async def test_a_client_that_leaves_does_not_stop_the_turn(
    http_server: HTTPServer, upstream: OpenAIServer, http_port: int
) -> None:
    upstream.script = [fake.text(*"abcdefghij", pause=0.03)]
    reader, writer = await asyncio.open_connection("127.0.0.1", http_port)
    content = body("go", session_id="left")
    writer.write(
        b"POST /chat/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(content), content)
    )
    seen = await reader.readuntil(b'"content":"b"')
    id = seen.rpartition(b"id: ")[2].split(b"\n")[0].decode()
    writer.close()
    session = await follow_until_done(http_port, "left", {"Last-Event-ID": id})
    assert harness.tokens(session) == "cdefghij"
    assert session[-1][1]["content"] == "abcdefghij"


async def follow_until_done(port: int, session: str, headers: dict[str, str], query: str = "") -> list[harness.Event]:
    """The events of `/events` up to the first terminal one; then the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [f"GET /sessions/{session}/events{query} HTTP/1.0", "Host: 127.0.0.1", *map(": ".join, headers.items())]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    received = b""
    async with asyncio.timeout(10):
        while b"event: done" not in received and b"event: error" not in received:
            frame = await reader.readuntil(b"\n\n")
            received += frame
    writer.close()
    return harness.parse_events(received.decode())


@pytest.mark.gen_test
async def test_events_without_a_cursor_begin_at_the_running_turns_start(
    fetch: Fetch, upstream: OpenAIServer, parts: Parts, http_port: int
) -> None:
    upstream.script = [fake.text("old"), fake.text(*"abcdef", pause=0.03)]
    await fetch("/chat", body=body("one", session_id="s"))
    turn = parts.services.turns.submit(sent("s", "two"))
    await turn.began.wait()
    events = await follow_until_done(http_port, "s", {})
    assert events[0] == ("start", {"session_id": "s", "turn_id": turn.id, "model": harness.MODEL})
    assert harness.tokens(events) == "abcdef"


@pytest.mark.gen_test
@pytest.mark.parametrize("known", ["deadbeef-3", "nonsense", "-", "0", "%C3%A9"])
async def test_a_cursor_of_another_epoch_gets_resync_first(
    http_server: HTTPServer, upstream: OpenAIServer, parts: Parts, http_port: int, known: str
) -> None:
    upstream.script = [fake.text(*"abc", pause=0.05)]
    turn = parts.services.turns.submit(sent("s", "go"))
    await turn.began.wait()
    events = await follow_until_done(http_port, "s", {}, query=f"?after={known}")
    assert events[0][0] == "resync"
    assert events[0][1]["session_id"] == "s"
    assert harness.tokens(events) == "abc"


@pytest.mark.gen_test
@pytest.mark.settings(server__keep_alive_secs=0.05)
async def test_silence_is_filled_with_comments(fetch: Fetch, upstream: OpenAIServer) -> None:
    upstream.script = [fake.Reply([fake.chunk({"content": "a"}), 0.4, fake.chunk({"content": "b"}, "stop"), fake.DONE])]
    answer = await fetch("/chat/stream", body=body())
    assert answer.body.count(b": keep-alive\n\n") >= 2
    assert harness.tokens(harness.parse_events(answer.body.decode())) == "ab"


FAILURES: dict[str, tuple[list[fake.Reply], str]] = {
    "bad request": ([fake.refusal(400, "context too long")], "context too long"),
    "unauthorized": ([fake.refusal(401, "bad key")], "API key was refused"),
    "html with 200": ([fake.Reply([b"<html>"], content_type="text/html")], "text/html"),
    "error in the stream": (
        [fake.Reply([fake.chunk({"content": "x"}), b'data: {"error":{"message":"boom"}}\n\n'])],
        "boom",
    ),
    "cut in the middle": ([fake.Reply([fake.chunk({"content": "x"})], cut=True)], "cut"),
    "no end": ([fake.Reply([fake.chunk({"content": "x"})])], "cut off"),
    "garbage": ([fake.Reply([fake.chunk({"content": "x"}), b"data: {nonsense\n\n"])], "no chat completion"),
}


@pytest.mark.gen_test
@pytest.mark.parametrize("kind", FAILURES)
async def test_an_upstream_failure_is_a_500_and_an_error_event(
    fetch: Fetch, upstream: OpenAIServer, log_watch: LogWatch, kind: str
) -> None:
    replies, words = FAILURES[kind]
    upstream.script = replies * 2
    log_watch.expect("turn failed")
    answer = await fetch("/chat", body=body(session_id="f"))
    assert answer.code == 500
    error = json.loads(answer.body)
    assert words in error["error"]
    assert error["code"] == "provider"
    streamed = harness.parse_events((await fetch("/chat/stream", body=body(session_id="f"))).body.decode())
    assert streamed[0][0] == "start"
    assert streamed[-1][0] == "error"
    assert words in streamed[-1][1]["message"]
    assert streamed[-1][1]["code"] == "provider"
    assert [name for name, _ in streamed].count("error") == 1


@pytest.mark.gen_test
@pytest.mark.settings(max_retries=2)
async def test_trouble_before_the_first_token_is_retried(fetch: Fetch, upstream: OpenAIServer) -> None:
    upstream.script = [
        fake.refusal(429, "slow down", Retry_After="0"),
        fake.refusal(503, Retry_After="0"),
        fake.text("ok"),
    ]
    events = harness.parse_events((await fetch("/chat/stream", body=body())).body.decode())
    assert [name for name, _ in events] == ["start", "retry", "retry", "token", "done"]
    assert [data["attempt"] for name, data in events if name == "retry"] == [1, 2]
    assert "429" in events[1][1]["reason"]


@pytest.mark.gen_test
@pytest.mark.settings(max_retries=0, fallback_models=["second"])
async def test_the_fallback_model_answers_when_the_first_does_not(fetch: Fetch, upstream: OpenAIServer) -> None:
    upstream.script = [fake.refusal(500), fake.text("from second")]
    answer = json.loads((await fetch("/chat", body=body(session_id="s"))).body)
    assert answer["content"] == "from second"
    assert answer["model"] == "second"
    assert [r["model"] for r in upstream.requests] == [harness.MODEL, "second"]
    assert json.loads((await fetch("/sessions/s")).body)["model"] == "second"


@pytest.mark.gen_test
async def test_an_answer_in_single_bytes_with_emoji_arrives_whole(fetch: Fetch, upstream: OpenAIServer) -> None:
    words = ["héllo ", "🦜🌶️", " — ", "日本語"]
    parts: list[bytes | float] = [bytes([byte]) for part in fake.text(*words).parts for byte in part]  # type: ignore[union-attr]
    upstream.script = [fake.Reply(parts)]
    answer = json.loads((await fetch("/chat", body=body())).body)
    assert answer["content"] == "".join(words)


@pytest.mark.gen_test
async def test_a_lone_surrogate_from_upstream_is_replaced(fetch: Fetch, upstream: OpenAIServer) -> None:
    chunk = b'data: {"choices":[{"index":0,"delta":{"content":"a\\ud83e"},"finish_reason":null}]}\n\n'
    upstream.script = [fake.Reply([chunk, fake.chunk({"content": "b"}, "stop"), fake.DONE])]
    answer = json.loads((await fetch("/chat", body=body())).body)
    assert answer["content"] == "a?b"


@pytest.mark.gen_test
async def test_lone_surrogates_anywhere_do_not_end_the_turn(fetch: Fetch, upstream: OpenAIServer) -> None:
    call = b'{"index":0,"id":"\\ud800i","function":{"name":"\\udfffn","arguments":"{}"}}'
    named = b'data: {"choices":[{"delta":{"tool_calls":[%b]},"finish_reason":"\\ud801"}]}\n\n' % call
    last = b'data: {"choices":[{"delta":{"content":"ok"},"finish_reason":"\\ud802"}]}\n\n'
    upstream.script = [fake.Reply([named, fake.DONE]), fake.Reply([last, fake.DONE])]
    answer = await fetch("/chat", body=body(session_id="odd"))
    assert answer.code == 200
    assert (json.loads(answer.body)["content"], json.loads(answer.body)["finish_reason"]) == ("ok", "?")
    assert len(json.loads((await fetch("/sessions/odd")).body)["messages"]) == 4


@pytest.mark.gen_test
@pytest.mark.settings(turn_timeout_secs=0.3)
async def test_a_save_that_outlasts_its_turn_is_waited_for(
    fetch: Fetch,
    upstream: OpenAIServer,
    parts: Parts,
    state: Path,
    monkeypatch: pytest.MonkeyPatch,
    log_watch: LogWatch,
) -> None:
    store, saves = parts.services.turns.store, []
    save = store.save

    def slow_save(session: Session) -> None:
        saves.append("begin")
        time.sleep(0.5)
        save(session)
        saves.append("end")

    monkeypatch.setattr(store, "save", slow_save)  # a slow disk
    upstream.script = lambda _: fake.text("ok")
    turn = parts.services.turns.submit(sent("slow", "go"))
    await asyncio.sleep(0.35)
    assert (await fetch("/sessions/slow", method="DELETE")).code == 204
    await turn.wait()
    assert saves == ["begin", "end"] * (len(saves) // 2)
    assert list((state / "sessions").glob("*.json")) == []


@pytest.mark.gen_test
async def test_reasoning_is_thinking_and_never_a_token(fetch: Fetch, upstream: OpenAIServer) -> None:
    upstream.script = [
        fake.Reply([fake.chunk({"reasoning_content": "hmm"}), fake.chunk({"content": "42"}, "stop"), fake.DONE])
    ]
    events = harness.parse_events((await fetch("/chat/stream", body=body())).body.decode())
    assert [name for name, _ in events] == ["start", "thinking", "token", "done"]
    assert events[1][1] == {"content": "hmm", "iteration": 1}
    assert events[-1][1]["content"] == "42"


@pytest.mark.gen_test
async def test_an_empty_answer_is_asked_for_again_and_then_an_error(
    fetch: Fetch, upstream: OpenAIServer, log_watch: LogWatch
) -> None:
    upstream.script = [fake.text(), fake.text("here"), fake.text(), fake.text()]
    assert json.loads((await fetch("/chat", body=body(session_id="e"))).body)["content"] == "here"
    log_watch.expect("code=empty_answer")
    answer = await fetch("/chat", body=body(session_id="e"))
    assert (answer.code, json.loads(answer.body)["code"]) == (500, "empty_answer")


@pytest.mark.gen_test
async def test_length_is_reported(fetch: Fetch, upstream: OpenAIServer) -> None:
    upstream.script = [fake.text("cut sho", finish="length")]
    assert json.loads((await fetch("/chat", body=body())).body)["finish_reason"] == "length"


@pytest.mark.gen_test
@pytest.mark.settings(max_tool_iterations=2)
async def test_a_turn_out_of_iterations_ends_with_a_last_answer(fetch: Fetch, upstream: OpenAIServer) -> None:
    look = fake.calls(("list_directory", {"path": "."}))
    upstream.script = [look, look, fake.text("what I have")]
    answer = json.loads((await fetch("/chat", body=body())).body)
    assert answer["content"] == "what I have"
    assert (answer["finish_reason"], answer["iterations"], answer["tool_calls"]) == ("max_iterations", 2, 2)
    assert upstream.requests[-1]["tool_choice"] == "none"


@pytest.mark.gen_test
async def test_wrong_arguments_are_told_to_the_model(fetch: Fetch, upstream: OpenAIServer) -> None:
    upstream.script = [
        fake.calls(("read_file", {"file": "x"}), ("no_such_tool", {}), ("bash", {"command": 7, "timeout_secs": "x"})),
        fake.text("sorry"),
    ]
    events = harness.parse_events((await fetch("/chat/stream", body=body())).body.decode())
    assert [name for name, _ in events] == ["start", "tool_complete", "tool_complete", "tool_complete", "token", "done"]
    assert not any(data["success"] for name, data in events if name == "tool_complete")
    results = [m["content"] for m in upstream.requests[1]["messages"] if m["role"] == "tool"]
    assert "`path`" in results[0]
    assert "there is no tool no_such_tool" in results[1]
    assert "timeout_secs" in results[2] or "command" in results[2]


@pytest.mark.gen_test
async def test_arguments_that_are_no_json_are_told_to_the_model(fetch: Fetch, upstream: OpenAIServer) -> None:
    call = {"index": 0, "id": "c1", "function": {"name": "bash", "arguments": '{"command": '}}
    upstream.script = [fake.Reply([fake.chunk({"tool_calls": [call]}, "tool_calls"), fake.DONE]), fake.text("ok")]
    answer = json.loads((await fetch("/chat", body=body())).body)
    assert answer["content"] == "ok"
    assert "must be a JSON object" in upstream.requests[1]["messages"][-1]["content"]


@pytest.mark.gen_test
@pytest.mark.settings(permissions={"bash": "deny", "write_*": "deny"})
async def test_denied_tools_do_not_start(fetch: Fetch, upstream: OpenAIServer, workspace: Path) -> None:
    upstream.script = [
        fake.calls(("bash", {"command": "touch a"}), ("write_file", {"path": "b", "content": ""})),
        fake.text("ok"),
    ]
    events = harness.parse_events((await fetch("/chat/stream", body=body())).body.decode())
    assert [name for name, _ in events] == ["start", "tool_complete", "tool_complete", "token", "done"]
    results = [m["content"] for m in upstream.requests[1]["messages"] if m["role"] == "tool"]
    assert all("denied by [permissions]" in result for result in results)
    assert os.listdir(workspace) == []


@pytest.mark.gen_test
async def test_the_key_is_in_no_event_and_no_session(fetch: Fetch, upstream: OpenAIServer, state: Path) -> None:
    key = harness.API_KEY
    upstream.script = [
        fake.calls(("bash", {"command": f"echo {key}; env; cat /proc/*/environ"}), say=f"the key {key[:5]}"),
        fake.text("it is ", key[:9], key[9:], "!"),
    ]
    answer = await fetch("/chat/stream", body=body(f"my key is {key}", session_id="k"))
    assert upstream.headers[0]["authorization"] == f"Bearer {key}"
    assert key.encode() not in answer.body
    assert harness.parse_events(answer.body.decode())[-1][1]["content"] == "it is [redacted]!"
    stored = (state / "sessions" / "k.json").read_bytes()
    assert key.encode() not in stored
    assert b"OPENAI_API_KEY" not in stored
    assert all(key not in json.dumps(r) for r in upstream.requests)


@pytest.mark.gen_test
async def test_the_key_is_masked_in_odd_places_too(
    fetch: Fetch, upstream: OpenAIServer, state: Path, workspace: Path, log_watch: LogWatch
) -> None:
    key = harness.API_KEY
    (workspace / "long").write_text("x" * (16 * 1024 - 10) + key + "y" * 100_000)
    named = {"index": 0, "id": key, "function": {"name": f"tool_{key}", "arguments": "{}"}}
    upstream.script = [
        fake.Reply([fake.chunk({"tool_calls": [named]}, f"because_{key}"), fake.DONE]),
        fake.calls(("bash", {"command": "cat long; echo -n yes"})),
        fake.text("ok"),
    ]
    answer = await fetch("/chat/stream", body=body(session_id="odd"))
    created = {"session_id": "titled", "title": f"about {key}", "model": f"m-{key}"}
    assert (await fetch("/sessions", body=json.dumps(created).encode())).code == 200
    events = harness.parse_events(answer.body.decode())
    assert events[-1][1]["content"] == "ok"
    assert [data["content"] for name, data in events if name == "tool_output"][-1].endswith("yyyyes")
    for text in (answer.body.decode(), *(file.read_text() for file in (state / "sessions").glob("*.json"))):
        assert key[:12] not in text


@pytest.mark.gen_test
async def test_all_output_of_a_short_command_is_passed_on(fetch: Fetch, upstream: OpenAIServer) -> None:
    upstream.script = [fake.calls(("bash", {"command": "echo -n s; echo -n sk >&2"})), fake.text("ok")]
    events = harness.parse_events((await fetch("/chat/stream", body=body())).body.decode())
    output = [data["content"] for name, data in events if name == "tool_output"]
    assert sorted("".join(output)) == ["k", "s", "s"]
    assert all(output)


@pytest.mark.gen_test
@pytest.mark.parametrize("model", ["m\n2026 INFO forged", "\x1b[2J", "m" * 257, " "])
async def test_a_model_that_is_no_name_is_refused(fetch: Fetch, model: str) -> None:
    for path in ("/chat", "/sessions"):
        answer = await fetch(path, body=body(model=model))
        assert (answer.code, json.loads(answer.body)["code"]) == (400, "bad_request")


@pytest.mark.gen_test
@pytest.mark.settings(limits__turns=1, server__keep_alive_secs=0.1)
async def test_a_turn_that_waits_for_a_place_keeps_its_client(
    fetch: Fetch, upstream: OpenAIServer, parts: Parts
) -> None:
    upstream.script = [fake.text("slow", " one", pause=0.8), fake.text("next")]
    first = parts.services.turns.submit(sent("first", "go"))
    await first.began.wait()
    answer = await fetch("/chat/stream", body=body(session_id="second"))
    assert answer.body.startswith(b"retry: 2000\n\n: keep-alive\n\n")
    assert harness.tokens(harness.parse_events(answer.body.decode())) == "next"
    assert first.ended


@pytest.mark.gen_test
async def test_creating_a_session_that_is_busy_is_refused_at_once(
    fetch: Fetch, upstream: OpenAIServer, parts: Parts
) -> None:
    upstream.script = [fake.text("a", "b", pause=0.3)]
    turn = parts.services.turns.submit(sent("busy", "go"))
    answer = await fetch("/sessions", body=b'{"session_id": "busy"}')
    assert (answer.code, json.loads(answer.body)["code"]) == (409, "conflict")
    assert not turn.ended
    await turn.wait()
    assert (await fetch("/sessions", body=b'{"session_id": "busy"}')).code == 409


@pytest.mark.gen_test
async def test_deletes_and_new_messages_at_once_never_mix_two_turns(
    fetch: Fetch, upstream: OpenAIServer, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = parts.services.turns.store
    delete = store.delete

    def slow_delete(id: str) -> None:
        time.sleep(0.1)
        delete(id)

    monkeypatch.setattr(store, "delete", slow_delete)  # a slow disk
    upstream.script = lambda request: fake.text(request["messages"][-1]["content"], "!", pause=0.05)
    await fetch("/chat", body=body("zero", session_id="x"))
    removals = [asyncio.ensure_future(parts.services.turns.delete("x")) for _ in range(3)]
    await removals[0]
    turns = [parts.services.turns.submit(sent("x", message)) for message in ("one", "two")]
    await asyncio.gather(*removals, *(turn.wait() for turn in turns), return_exceptions=True)
    later = await fetch("/chat", body=body("three", session_id="x"))
    assert later.code == 200
    assert [turn.error for turn in turns] == [None, None]
    assert [m["content"] for m in upstream.requests[2]["messages"][-3:]] == ["one", "one!", "two"]
    stored = [m["content"] for m in json.loads((await fetch("/sessions/x")).body)["messages"]]
    assert stored in (["three", "three!"], ["one", "one!", "two", "two!", "three", "three!"])


@pytest.mark.gen_test
async def test_unknown_sessions_leave_nothing_in_memory(fetch: Fetch, parts: Parts) -> None:
    for number in range(50):
        assert (await fetch(f"/sessions/none{number}", method="DELETE")).code == 404
    assert parts.services.turns._slots == {}


@pytest.mark.gen_test
async def test_the_model_of_a_request_counts_for_its_turn_alone(fetch: Fetch, upstream: OpenAIServer) -> None:
    upstream.script = lambda _: fake.text("ok")
    await fetch("/sessions", body=b'{"session_id": "pinned", "model": "mine", "title": "Mine"}')
    models = []
    for extra in ({}, {"model": "other"}, {}):
        await fetch("/chat", body=body(session_id="pinned", **extra))
        models.append(json.loads((await fetch("/sessions/pinned")).body)["model"])
    assert [r["model"] for r in upstream.requests] == models == ["mine", "other", "mine"]


@pytest.mark.gen_test
async def test_deleting_a_session_ends_its_turn_and_keeps_it_deleted(
    fetch: Fetch, upstream: OpenAIServer, parts: Parts, state: Path
) -> None:
    upstream.script = [fake.text(*"abcdefghijklmnop", pause=0.1)]
    turn = parts.services.turns.submit(sent("gone", "go"))
    await turn.began.wait()
    cursor = turn.log.follow(turn.log.last + 1, on_lost=lambda: None)
    await cursor.wait()  # a token has come, so the upstream is connected
    cursor.close()
    assert (await fetch("/sessions/gone", method="DELETE")).code == 204
    await turn.wait()
    assert turn.error is not None
    assert turn.error.code == "cancelled"
    assert await asyncio.to_thread(upstream.hung_up.wait, 5)
    assert (await fetch("/sessions/gone")).code == 404
    assert list((state / "sessions").glob("*.json")) == []
