"""`POST /sessions/{id}/fork`: a conversation that goes on from the middle of another."""

from __future__ import annotations

import asyncio
import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from pawand.agent import history
from pawand.daemon import Parts
from pawand.sessions.model import Session
from tests import harness
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import OpenAIServer
from tests.web.conftest import Fetch, until

CREATED = "2026-04-14T12:00:00.123456789+00:00"
UPDATED = "2026-04-14T12:05:00.000123456+00:00"


def user(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": text, "tool_calls": [], **more}


def assistant(text: str, *calls: str, **more: Any) -> dict[str, Any]:
    made = [{"id": id, "name": "bash", "arguments": {"command": id}} for id in calls]
    return {"role": "assistant", "content": text, "tool_calls": made, **more}


def result(id: str) -> dict[str, Any]:
    return {
        "role": "tool",
        "content": f"did {id}",
        "tool_calls": [],
        "tool_result": {"tool_call_id": id, "content": {"stdout": id}, "success": True},
    }


CONVERSATION = [
    user("Fix the test", mood="calm"),
    assistant("", "c1", "c2"),
    result("c1"),
    result("c2"),
    assistant("Fixed."),
    user("And now?"),
    assistant("Nothing."),
]


def store(state: Path, id: str, messages: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    """A session's file as the Rust program or we would have written it."""
    document = {"id": id, "model": "m", "created_at": CREATED, "updated_at": UPDATED, "messages": messages, **more}
    (state / "sessions" / f"{id}.json").write_text(json.dumps(document))
    return document


def stored(state: Path, id: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((state / "sessions" / f"{id}.json").read_bytes())
    return found


async def fork(fetch: Fetch, id: str, **body: Any) -> str:
    answer = await fetch(f"/sessions/{id}/fork", body=json.dumps(body).encode())
    assert answer.code == 200, answer.body
    found = json.loads(answer.body)
    assert list(found) == ["session_id"]
    return str(found["session_id"])


@pytest.mark.gen_test
async def test_a_fork_is_a_copy_with_a_name_of_its_own(fetch: Fetch, parts: Parts, state: Path) -> None:
    more = {"title": "Mine", "pinned_model": "m2", "tags": ["a"], "future": {"x": [1]}, "labels": [{"name": "l"}]}
    document = store(state, "s", CONVERSATION, **more)
    before = (state / "sessions" / "s.json").read_bytes()
    answer = await fetch("/sessions/s/fork", method="POST", body=b"", headers={"Content-Type": "text/plain"})
    assert answer.code == 200
    id = json.loads(answer.body)["session_id"]
    assert uuid.UUID(id).version == 4
    made = stored(state, id)
    assert (state / "sessions" / f"{id}.json").stat().st_mode & 0o777 == 0o600
    changed = {"id", "created_at", "updated_at"}
    assert {key: value for key, value in made.items() if key not in changed} == {
        key: value for key, value in document.items() if key not in changed
    }
    assert made["id"] == id
    assert made["created_at"] == made["updated_at"] > UPDATED
    assert (state / "sessions" / "s.json").read_bytes() == before
    [first, second] = json.loads((await fetch("/sessions")).body)
    assert (first["id"], second["id"]) == (id, "s")
    assert (first["title"], first["message_count"], first["active"]) == ("Mine", 7, False)


@pytest.mark.gen_test
@pytest.mark.parametrize("index", range(len(CONVERSATION)))
async def test_a_fork_holds_the_messages_up_to_the_one_that_was_named(
    fetch: Fetch, parts: Parts, state: Path, index: int
) -> None:
    labels = [{"name": "begin", "message_index": 0}, {"name": "here", "message_index": 3}, {"name": "none"}]
    store(state, "s", CONVERSATION, labels=labels)
    id = await fork(fetch, "s", message_index=index, unknown="ignored")
    assert stored(state, id)["messages"] == CONVERSATION[: index + 1]
    assert [label["name"] for label in stored(state, id)["labels"]] == ["begin", *["here"] * (index >= 3), "none"]
    shown = json.loads((await fetch(f"/sessions/{id}")).body)["messages"]
    source = json.loads((await fetch("/sessions/s")).body)["messages"]
    assert [m["content"] for m in shown] == [m["content"] for m in source[: index + 1]]


@pytest.mark.gen_test
async def test_the_empty_session_has_an_empty_fork(fetch: Fetch, state: Path) -> None:
    await fetch("/sessions", body=b'{"session_id": "s", "title": "T"}')
    id = await fork(fetch, "s")
    assert (stored(state, id)["messages"], stored(state, id)["title"]) == ([], "T")
    assert (await fetch("/sessions/s/fork", body=b'{"message_index": 0}')).code == 404


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("path", "content", "status", "words"),
    [
        ("/sessions/s/fork", b'{"message_index": 7}', 404, "its 7 messages are numbered from 0"),
        ("/sessions/s/fork", b'{"message_index": 99999999999999999999}', 404, ""),
        ("/sessions/s/fork", b'{"message_index": 7.0}', 404, "its 7 messages are numbered from 0"),
        ("/sessions/s/fork", b'{"message_index": 1e400}', 400, "Expected `int"),
        ("/sessions/s/fork", b'{"message_index": -1}', 400, ">= 0"),
        ("/sessions/s/fork", b'{"message_index": "1"}', 400, "Expected `int"),
        ("/sessions/s/fork", b'{"message_index": 1.5}', 400, "Expected `int"),
        ("/sessions/s/fork", b'{"message_index": true}', 400, "Expected `int"),
        ("/sessions/s/fork", b'{"message_index": [1]}', 400, "Expected `int"),
        ("/sessions/s/fork", b"[]", 400, "Expected `object`"),
        ("/sessions/s/fork", b"{", 400, "not valid JSON"),
        ("/sessions/-s/fork", b"{}", 400, "bad session id"),
        ("/sessions/none/fork", b"{}", 404, "no session none"),
        ("/sessions/broken/fork", b"{}", 404, "cannot be read"),
    ],
)
async def test_bad_forks(
    fetch: Fetch, parts: Parts, state: Path, path: str, content: bytes, status: int, words: str
) -> None:
    store(state, "s", CONVERSATION)
    (state / "sessions" / "broken.json").write_text("{")
    answer = await fetch(path, body=content)
    found = json.loads(answer.body)
    assert (answer.code, set(found)) == (status, {"error", "code"})
    assert words in found["error"]
    assert sorted(file.stem for file in (state / "sessions").glob("*.json")) == ["broken", "s"]


@pytest.mark.gen_test
async def test_null_is_as_good_as_nothing(fetch: Fetch, parts: Parts, state: Path) -> None:
    store(state, "s", CONVERSATION)
    assert stored(state, await fork(fetch, "s", message_index=None))["messages"] == CONVERSATION


@pytest.mark.gen_test
async def test_a_fork_of_another_media_type_is_refused(fetch: Fetch, parts: Parts, state: Path) -> None:
    store(state, "s", CONVERSATION)
    assert (await fetch("/sessions/s/fork", body=b"{}", headers={"Content-Type": "text/plain"})).code == 415
    assert (await fetch("/sessions/s/fork")).code == 405
    assert (await fetch("/api/sessions/s/fork", body=b"{}")).code == 200


@pytest.mark.gen_test
async def test_a_fork_goes_its_own_way(fetch: Fetch, upstream: OpenAIServer, state: Path) -> None:
    upstream.script = [fake.text("one"), fake.text("two"), fake.text("three")]
    await fetch("/chat", body=b'{"session_id": "s", "message": "first"}')
    id = await fork(fetch, "s", message_index=0)
    await fetch("/chat", body=json.dumps({"session_id": id, "message": "second"}).encode())
    await fetch("/chat", body=b'{"session_id": "s", "message": "third"}')
    assert [m["content"] for m in stored(state, id)["messages"]] == ["first", "second", "two"]
    assert [m["content"] for m in stored(state, "s")["messages"]] == ["first", "one", "third", "three"]


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("index", "results"),
    [(1, [history.INTERRUPTED_RESULT, history.INTERRUPTED_RESULT]), (2, ["did c1", history.INTERRUPTED_RESULT])],
)
async def test_a_fork_between_a_call_and_its_result_can_be_continued(
    fetch: Fetch, upstream: OpenAIServer, state: Path, index: int, results: list[str]
) -> None:
    store(state, "s", CONVERSATION)
    upstream.script = [fake.text("going on")]
    id = await fork(fetch, "s", message_index=index)
    answer = await fetch("/chat", body=json.dumps({"session_id": id, "message": "go on"}).encode())
    assert (answer.code, json.loads(answer.body)["content"]) == (200, "going on")
    sent = upstream.requests[-1]["messages"]  # which the scripted server has checked by the strict rules
    assert [m["content"] for m in sent if m["role"] == "tool"] == results


SUMMED_UP = [
    user("goal"),
    assistant("a1"),
    user("u2"),
    assistant("a2"),
    {"role": "system", "content": "first summary", "tool_calls": [], "replaces": 2},
    user("u3"),
    assistant("a3"),
    {"role": "system", "content": "second summary", "tool_calls": [], "replaces": 5},
    assistant("a4"),
]


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("index", "seen"),
    [
        (3, ["goal", "a1", "u2", "a2"]),
        (4, ["first summary", "u2", "a2"]),
        (6, ["first summary", "u2", "a2", "u3", "a3"]),
        (7, ["second summary", "u3", "a3"]),
        (8, ["second summary", "u3", "a3", "a4"]),
    ],
)
async def test_a_summary_still_stands_for_what_it_stood_for(
    fetch: Fetch, parts: Parts, state: Path, index: int, seen: list[str]
) -> None:
    store(state, "s", SUMMED_UP)
    id = await fork(fetch, "s", message_index=index)
    copied = Session.decode(id, (state / "sessions" / f"{id}.json").read_bytes())
    assert [message.content for message in history.visible(copied.messages)] == seen


@pytest.mark.gen_test(timeout=30)
async def test_a_session_whose_turn_runs_is_forked_as_it_is_stored(
    fetch: Fetch, upstream: OpenAIServer, state: Path
) -> None:
    upstream.script = [fake.calls(("bash", {"command": "echo one"})), fake.text(*"abcdefgh", pause=0.3)]
    seen: list[bytes] = []
    turn = asyncio.ensure_future(
        fetch("/chat/stream", body=b'{"session_id": "s", "message": "hi"}', streaming_callback=seen.append)
    )
    await until(lambda: b'"content":"b"' in b"".join(seen), "the second answer began")
    id = await fork(fetch, "s")
    assert [m["role"] for m in stored(state, id)["messages"]] == ["user", "assistant", "tool"]
    assert not turn.done()
    shown = json.loads((await fetch(f"/sessions/{id}")).body)
    assert shown["active_turn"] is None
    await turn
    assert harness.parse_events(b"".join(seen).decode())[-1][0] == "done"
    assert [m["role"] for m in stored(state, "s")["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert len(stored(state, id)["messages"]) == 3


@pytest.mark.gen_test(timeout=60)
async def test_forks_and_a_delete_at_once_leave_only_whole_sessions(fetch: Fetch, parts: Parts, state: Path) -> None:
    for round in range(5):
        name = f"s{round}"
        store(state, name, CONVERSATION * 50)
        requests = [fetch(f"/sessions/{name}/fork", body=b"{}") for _ in range(8)]
        requests.insert(4, fetch(f"/sessions/{name}", method="DELETE"))
        answers = await asyncio.gather(*requests)
        assert answers.pop(4).code == 204
        assert {answer.code for answer in answers} <= {200, 404}
        assert not (state / "sessions" / f"{name}.json").exists()
        for answer in answers:
            if answer.code == 200:
                id = json.loads(answer.body)["session_id"]
                assert stored(state, id)["messages"] == CONVERSATION * 50
        made = [json.loads(answer.body)["session_id"] for answer in answers if answer.code == 200]
        assert len(set(made)) == len(made)


@pytest.mark.gen_test
async def test_no_fork_while_the_daemon_stops(fetch: Fetch, parts: Parts, state: Path) -> None:
    store(state, "s", CONVERSATION)
    parts.services.turns.stopping = True
    answer = await fetch("/sessions/s/fork", body=b"{}")
    assert (answer.code, json.loads(answer.body)["code"]) == (503, "unavailable")
    assert [file.stem for file in (state / "sessions").glob("*.json")] == ["s"]
