"""`[permissions] prompt`: asked on the stream, listed, answered by whoever follows, denied when nobody does."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pawand.daemon import Parts
from tests import harness
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import OpenAIServer
from tests.web.conftest import Fetch, until

PROMPTS = {"write_file": "prompt", "read_file": "prompt"}


def write(*names: str) -> fake.Reply:
    return fake.calls(*(("write_file", {"path": name, "content": "x"}) for name in names))


async def begin(fetch: Fetch, session: str = "s") -> asyncio.Future[list[harness.Event]]:
    """A turn that runs, as the future of its events; its session exists by then."""
    body = json.dumps({"message": "go", "session_id": session}).encode()

    async def read() -> list[harness.Event]:
        return harness.parse_events((await fetch("/chat/stream", body=body)).body.decode())

    return asyncio.ensure_future(read())


async def pending(fetch: Fetch, count: int = 1, session: str = "s") -> list[dict[str, Any]]:
    for _ in range(400):
        answer = await fetch(f"/sessions/{session}/permissions")
        found: list[dict[str, Any]] = json.loads(answer.body) if answer.code == 200 else []
        if len(found) >= count:
            return found
        await asyncio.sleep(0.01)
    raise AssertionError("nothing was asked")


async def decide(fetch: Fetch, request: str, decision: str, session: str = "s") -> tuple[int, Any]:
    body = json.dumps({"decision": decision}).encode()
    answer = await fetch(f"/sessions/{session}/permissions/{request}", body=body)
    return answer.code, json.loads(answer.body)


@pytest.mark.gen_test
@pytest.mark.settings(permissions=PROMPTS)
async def test_an_allowed_call_runs_after_the_answer(fetch: Fetch, upstream: OpenAIServer, workspace: Path) -> None:
    upstream.script = [write("a.txt"), fake.text("done")]
    turn = await begin(fetch)
    [asked] = await pending(fetch)
    assert not (workspace / "a.txt").exists()
    assert (asked["tool"], asked["arguments"]) == ("write_file", {"path": "a.txt", "content": "x"})
    assert asked["summary"] == "write_file path=a.txt content=x"
    left = (datetime.fromisoformat(asked["expires_at"]) - datetime.now(UTC)).total_seconds()
    assert 100 < left < 120
    assert await decide(fetch, asked["id"], "allow") == (200, {"decision": "allow"})
    events = await turn
    assert [name for name, _ in events] == [
        "start", "permission_request", "permission_resolved", "tool_start", "tool_complete", "token", "done",
    ]  # fmt: skip
    assert events[1][1] == asked
    assert events[2][1] == {"id": asked["id"], "decision": "allow"}
    assert (workspace / "a.txt").read_text() == "x"
    assert await decide(fetch, asked["id"], "deny") == (404, {"error": events_gone(), "code": "not_found"})
    assert json.loads((await fetch("/sessions/s/permissions")).body) == []


def events_gone() -> str:
    return "no such request is pending: it was answered, it expired, or its turn has ended"


@pytest.mark.gen_test
@pytest.mark.settings(permissions=PROMPTS)
async def test_a_denied_call_does_not_run_and_the_model_is_told(
    fetch: Fetch, upstream: OpenAIServer, workspace: Path
) -> None:
    upstream.script = [write("a.txt"), fake.text("I could not")]
    turn = await begin(fetch)
    [asked] = await pending(fetch)
    assert (await decide(fetch, asked["id"], "deny"))[0] == 200
    events = await turn
    assert [name for name, _ in events] == [
        "start", "permission_request", "permission_resolved", "tool_complete", "token", "done",
    ]  # fmt: skip
    assert events[3][1]["success"] is False
    assert "the user denied" in upstream.requests[1]["messages"][-1]["content"]
    assert list(workspace.iterdir()) == []


@pytest.mark.gen_test
@pytest.mark.settings(permissions=PROMPTS, permission_timeout_secs=0.1)
async def test_what_nobody_answers_is_denied(fetch: Fetch, upstream: OpenAIServer, workspace: Path) -> None:
    upstream.script = [write("a.txt"), fake.text("nobody was there")]
    events = await (await begin(fetch))
    asked, resolved = events[1][1], events[2][1]
    assert resolved == {"id": asked["id"], "decision": "deny", "reason": "expired"}
    assert "nobody approved write_file within 0.1 s" in upstream.requests[1]["messages"][-1]["content"]
    assert list(workspace.iterdir()) == []


@pytest.mark.gen_test
@pytest.mark.settings(permissions=PROMPTS, limits__log_idle_secs=0.05)
async def test_allow_session_is_not_asked_again_in_that_session_alone(
    fetch: Fetch, upstream: OpenAIServer, parts: Parts, workspace: Path
) -> None:
    upstream.script = [write("a"), fake.text("1"), write("b"), fake.text("2"), write("c"), fake.text("3")]
    turn = await begin(fetch)
    [asked] = await pending(fetch)
    await decide(fetch, asked["id"], "allow_session")
    await turn
    for _ in range(200):  # the answer outlives the log of an idle session
        if not parts.services.turns._slots:
            break
        await asyncio.sleep(0.02)
    assert parts.services.turns._slots == {}
    names = [name for name, _ in await (await begin(fetch))]
    assert "permission_request" not in names
    assert (workspace / "b").exists()
    other = await begin(fetch, "other")
    [asked] = await pending(fetch, session="other")
    await decide(fetch, asked["id"], "deny", "other")
    await other
    assert not (workspace / "c").exists()


@pytest.mark.gen_test
@pytest.mark.settings(permissions=PROMPTS)
async def test_allow_session_answers_the_calls_that_wait_beside_it(fetch: Fetch, upstream: OpenAIServer) -> None:
    calls = [("read_file", {"path": f"{n}.txt"}) for n in range(3)]
    upstream.script = [fake.calls(*calls), fake.text("ok")]
    turn = await begin(fetch)
    asked = await pending(fetch, 3)
    assert len({row["id"] for row in asked}) == 3
    await decide(fetch, asked[1]["id"], "allow_session")
    events = await turn
    assert [data["decision"] for name, data in events if name == "permission_resolved"] == ["allow_session"] * 3


@pytest.mark.gen_test
@pytest.mark.settings(permissions=PROMPTS)
async def test_wrong_arguments_are_not_asked_about(fetch: Fetch, upstream: OpenAIServer) -> None:
    upstream.script = [fake.calls(("write_file", {"path": 1})), fake.text("ok")]
    names = [name for name, _ in await (await begin(fetch))]
    assert names == ["start", "tool_complete", "token", "done"]


@pytest.mark.gen_test
@pytest.mark.settings(permissions=PROMPTS)
async def test_it_is_still_answerable_after_a_reconnect(fetch: Fetch, upstream: OpenAIServer, workspace: Path) -> None:
    upstream.script = [write("a.txt"), fake.text("done")]
    await fetch("/sessions", body=b'{"session_id": "s"}')
    answer = json.loads((await fetch("/sessions/s/messages", body=b'{"message": "go"}')).body)
    await pending(fetch)
    seen: list[bytes] = []
    # nobody was connected when it was asked; a late client follows from the start and finds it in the stream
    follower = asyncio.ensure_future(
        fetch(f"/sessions/s/events?after={answer['last_event_id']}", streaming_callback=seen.append, request_timeout=5)
    )
    await until(lambda: b"permission_request" in b"".join(seen), "the question in the stream")
    request = dict(harness.parse_events(b"".join(seen).decode()))["permission_request"]
    assert (await decide(fetch, request["id"], "allow"))[0] == 200
    await until(lambda: b"event: done" in b"".join(seen), "the end of the turn")
    await fetch("/sessions/s", method="DELETE")
    await follower
    assert (workspace / "a.txt").exists()


@pytest.mark.gen_test
@pytest.mark.settings(permissions=PROMPTS)
async def test_cancelling_a_turn_withdraws_its_question(fetch: Fetch, upstream: OpenAIServer) -> None:
    upstream.script = [write("a.txt")]
    turn = await begin(fetch)
    [asked] = await pending(fetch)
    answer = await fetch("/sessions/s/cancel", body=b"")
    assert json.loads(answer.body) == {"cancelled": True}
    assert (await turn)[-1][1]["code"] == "cancelled"
    assert json.loads((await fetch("/sessions/s/permissions")).body) == []
    assert (await decide(fetch, asked["id"], "allow"))[0] == 404


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/sessions/s/permissions/none", b'{"decision": "allow"}', 404),
        ("/sessions/s/permissions/none", b'{"decision": "perhaps"}', 400),
        ("/sessions/s/permissions/none", b"{}", 400),
        ("/sessions/s/permissions/none", b"[", 400),
        ("/sessions/none/permissions/none", b'{"decision": "allow"}', 404),
        ("/sessions/-/permissions/none", b'{"decision": "allow"}', 400),
    ],
)
async def test_bad_answers(fetch: Fetch, path: str, body: bytes, status: int) -> None:
    await fetch("/sessions", body=b'{"session_id": "s"}')
    answer = await fetch(path, body=body)
    assert answer.code == status
    assert set(json.loads(answer.body)) == {"error", "code"}


@pytest.mark.gen_test
async def test_the_list_of_a_session_that_does_not_exist_is_404(fetch: Fetch) -> None:
    assert (await fetch("/sessions/none/permissions")).code == 404
    assert (await fetch("/sessions/-/permissions")).code == 400
