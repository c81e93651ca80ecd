"""`kill -9` at any moment of a turn: what a client had received is in the session after the next start."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests import harness
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import OpenAIServer
from tests.harness import Stream, until

KILLS = 30


def turn_with_tools(request: dict[str, Any]) -> fake.Reply:
    """Tokens, a tool, tokens, two tools of which one is slow, tokens: by how many results the turn has so far."""
    messages = request["messages"]
    asked = max(n for n, message in enumerate(messages) if message["role"] == "user")
    results = sum(message["role"] == "tool" for message in messages[asked:])
    if messages[asked]["content"] == "are you well?":
        return fake.text("I am.")
    words = [f"{results}.{n} " for n in range(30)]
    head: list[bytes | float] = [0.02, fake.chunk({"role": "assistant", "content": ""})]
    said: list[bytes | float] = [piece for word in words for piece in (0.005, fake.chunk({"content": word}))]
    ends = {
        0: fake.calls(("bash", {"command": "echo one > one.txt; echo first"})).parts,
        1: fake.calls(("bash", {"command": "echo second"}), ("bash", {"command": "sleep 0.3; echo third"})).parts,
        3: [fake.chunk({}, "stop"), fake.usage(), fake.DONE],
    }
    return fake.Reply([*head, *said, *ends[results]])


def whole_turn(pawand: harness.Process) -> float:
    """How long it takes."""
    began = time.monotonic()
    status, answer = pawand.call("POST", "/chat", {"message": "go", "session_id": "measure"})
    assert (status, answer["iterations"], answer["tool_calls"]) == (200, 3, 3)
    return time.monotonic() - began


def texts(messages: list[dict[str, Any]]) -> str:
    return "".join(m["content"] for m in messages if m["role"] == "assistant")


def check(seen: list[harness.Event], stored: list[dict[str, Any]]) -> None:
    """What the client saw of the turn is in its session."""
    if not stored:  # killed before the message was on disk, so nothing was shown of it
        assert seen == []
        return
    assert stored[0]["role"] == "user"
    assert stored[0]["content"] == "go"
    assert texts(stored).startswith(harness.tokens(seen))
    ended = any(name == "done" for name, _ in seen)
    last_text = next((m for m in reversed(stored) if m["role"] == "assistant"), None)
    if harness.tokens(seen) and not ended and last_text is not None and last_text["tool_calls"] == []:
        whole = "".join(f"3.{n} " for n in range(30))
        assert last_text.get("interrupted", False) is (last_text["content"] != whole)
    results = [m["tool_result"] for m in stored if m["role"] == "tool"]
    calls = [call["id"] for m in stored if m["role"] == "assistant" for call in m["tool_calls"]]
    assert [result["tool_call_id"] for result in results] == calls  # none dangling; ids come again in each iteration
    completed = [data for name, data in seen if name == "tool_complete"]
    for data, result in zip(completed, results, strict=False):
        assert result["content"]["stdout"].strip() == data["result_preview"].strip()


def follow(url: str, session: str, seen: list[harness.Event]) -> None:
    """Fill `seen` with all that a client gets before its daemon is killed."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        seen += Stream(url, "/chat/stream", {"message": "go", "session_id": session}).read_rest()


def stored_or_none(pawand: harness.Process, session: str) -> list[dict[str, Any]]:
    return pawand.stored(session) if (pawand.state / "sessions" / f"{session}.json").exists() else []


def kill_while_it_starts(workspace: Path, state: Path, env: dict[str, str], seconds: float) -> None:
    """In the middle of the recovery, perhaps."""
    environ = harness.environment(Path(os.environ["HOME"]), state, **env)
    command = [str(harness.COMMAND), "serve", "--workspace", str(workspace), "--port", "0"]
    with subprocess.Popen(command, env=environ, stderr=subprocess.DEVNULL) as child:
        time.sleep(seconds)
        child.kill()


@pytest.mark.slow
def test_thirty_kills_lose_nothing_that_was_seen(tmp_path: Path, upstream: OpenAIServer, env: dict[str, str]) -> None:
    seed = random.randrange(10**9)
    chance = random.Random(seed)
    upstream.script = turn_with_tools
    workspace, state = tmp_path / "w", tmp_path / "s"
    with harness.serve(workspace, state, env=env) as pawand:
        whole_turn(pawand)  # the first one waits for imports
        length = whole_turn(pawand)
    seen: list[harness.Event] = []
    for kill in range(KILLS):
        session = f"s{kill}"
        with harness.serve(workspace, state, env=env) as pawand:
            if kill:  # the one before
                stored = stored_or_none(pawand, f"s{kill - 1}")
                try:
                    check(seen, stored)
                except AssertionError as error:
                    raise AssertionError(f"seed {seed}, kill {kill}: {error}\n{seen}\n{stored}") from error
                answer = pawand.call("POST", "/chat", {"message": "are you well?", "session_id": f"s{kill - 1}"})
                assert (answer[0], answer[1].get("content")) == (200, "I am."), answer
            else:
                pawand.call("POST", "/chat", {"message": "are you well?", "session_id": "warm"})
            seen = []
            reading = threading.Thread(target=follow, args=(pawand.url, session, seen))
            reading.start()
            time.sleep(chance.uniform(0, length) if kill % 3 else chance.uniform(0, 0.03))
            pawand.kill()
            reading.join(20)
        if kill % 3 == 0:
            kill_while_it_starts(workspace, state, env, chance.uniform(0.1, 0.35))
    with harness.serve(workspace, state, env=env) as pawand:
        check(seen, stored_or_none(pawand, f"s{KILLS - 1}"))
        assert not list((state / "sessions").glob("*.journal"))
        assert not list((state / "sessions").glob("*corrupt*"))


def test_the_tools_of_a_killed_daemon_end_with_it(tmp_path: Path, upstream: OpenAIServer, env: dict[str, str]) -> None:
    upstream.script = [fake.calls(("bash", {"command": "while :; do touch alive; sleep 0.05; done"}))]
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand:
        stream = Stream(pawand.url, "/chat/stream", {"message": "go", "session_id": "s"})
        until((pawand.workspace / "alive").exists, "the command runs")
        pawand.kill()
        stream.read_rest()

    def silent() -> bool:
        (pawand.workspace / "alive").unlink(missing_ok=True)
        time.sleep(0.2)
        return not (pawand.workspace / "alive").exists()

    until(silent, "the command ended")
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand:
        [user, call, result] = pawand.stored("s")
        assert (user["role"], call["role"], result["role"]) == ("user", "assistant", "tool")
        assert "interrupted before it finished" in result["content"]


def test_messages_that_were_accepted_survive(tmp_path: Path, upstream: OpenAIServer, env: dict[str, str]) -> None:
    """One runs, two wait behind it, and one of another session waits for a place."""
    upstream.script = [fake.text(*"abcdef", pause=0.3), fake.text("so it is")]
    config = "[limits]\nturns = 1\n"
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env, config=config) as pawand:
        for session in ("s", "t"):
            pawand.call("POST", "/sessions", {"session_id": session})
        for message in ("one", "two", "two"):
            assert pawand.call("POST", "/sessions/s/messages", {"message": message})[0] == 202
        stream = Stream(pawand.url, "/sessions/s/events")
        stream.read_until("token", 2)
        assert pawand.call("POST", "/sessions/t/messages", {"message": "elsewhere"})[0] == 202
        pawand.kill()
        stream.read_rest()
    for _ in range(2):
        with harness.serve(tmp_path / "w", tmp_path / "s", env=env, config=config) as pawand:
            [one, partial, *waited] = pawand.stored("s")
            assert (one["content"], partial["interrupted"]) == ("one", True)
            assert [(m["role"], m["content"]) for m in waited] == [("user", "two"), ("user", "two")]
            assert [m["content"] for m in pawand.stored("t")] == ["elsewhere"]
            assert not list((tmp_path / "s" / "sessions").glob("*.waiting"))
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env, config=config) as pawand:
        assert pawand.call("POST", "/chat", {"message": "three", "session_id": "s"})[1]["content"] == "so it is"


@pytest.mark.parametrize("how", ["end", "cancel", "delete", "stop"])
def test_accepted_messages_leave_no_files(
    tmp_path: Path, upstream: OpenAIServer, env: dict[str, str], how: str
) -> None:
    upstream.script = [fake.text("a", "b", pause=0.2), fake.text("c")]
    sessions = tmp_path / "s" / "sessions"
    config = "[server]\ndrain_secs = 0\n"
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env, config=config) as pawand:
        pawand.call("POST", "/sessions", {"session_id": "s"})
        for message in ("one", "two"):
            pawand.call("POST", "/sessions/s/messages", {"message": message})
        until(lambda: upstream.requests, "the first turn asks")
        assert len(list(sessions.glob("s.*.waiting"))) == 1
        match how:
            case "end":
                until(lambda: pawand.call("GET", "/sessions/s")[1]["active_turn"] is None, "the turns end")
            case "cancel":
                pawand.call("POST", "/sessions/s/cancel?all=1")
            case "delete":
                pawand.call("DELETE", "/sessions/s")
                until(lambda: not list(sessions.glob("s*")), "all is gone")
    assert [file.name for file in sessions.iterdir()] in ([".lock"], ["s.json", ".lock"], [".lock", "s.json"])
    if how != "delete":
        stored = [message["content"] for message in pawand.stored("s") if message["role"] == "user"]
        assert stored == (["one"] if how == "cancel" else ["one", "two"])


@pytest.mark.parametrize(
    ("last", "found", "expected"),
    [
        ("go", ["go"], ["go"]),  # it got into the session just before the crash
        ("go", ["go", "go"], ["go", "go"]),
        ("go", ["on"], ["go", "on"]),
        ("go", [b'{"role": "us'], ["go"]),
        ("go", [b"", b"\xff", "on"], ["go", "on"]),
    ],
)
def test_what_waits_is_added_once(
    tmp_path: Path, env: dict[str, str], last: str, found: list[str | bytes], expected: list[str]
) -> None:
    sessions = tmp_path / "s" / "sessions"
    sessions.mkdir(parents=True)
    (sessions / "s.json").write_text(json.dumps(SESSION).replace("go", last))
    for number, content in enumerate(found):
        data = content if isinstance(content, bytes) else json.dumps({"role": "user", "content": content}).encode()
        (sessions / f"s.{number:020}.waiting").write_bytes(data)
    (sessions / "gone.00000000000000000001.waiting").write_text('{"role": "user", "content": "x"}')
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand:
        assert [message["content"] for message in pawand.stored("s")] == expected
        assert pawand.call("GET", "/sessions/gone")[0] == 404
    assert not list(sessions.glob("*.waiting"))


def test_a_browser_tab_that_comes_back_after_a_crash_gets_resync(
    tmp_path: Path, upstream: OpenAIServer, env: dict[str, str]
) -> None:
    upstream.script = [fake.text(*"abcdef", pause=0.2), fake.text("second")]
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand:
        stream = Stream(pawand.url, "/chat/stream", {"message": "one", "session_id": "s"})
        stream.read_until("token", 2)
        pawand.kill()
        stream.read_rest()
    last = stream.frames[-1][0]
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand:
        again = Stream(pawand.url, "/sessions/s/events", Last_Event_ID=last)
        assert [name for name, _ in again.read_until("resync")] == ["resync"]
        shown = pawand.call("GET", "/sessions/s")[1]["messages"]
        assert [(m["role"], m.get("interrupted", False)) for m in shown] == [("user", False), ("assistant", True)]
        assert shown[1]["content"].startswith("ab")
        pawand.call("POST", "/chat", {"message": "two", "session_id": "s"})
        assert [name for name, _ in again.read_until("done")] == ["resync", "start", "token", "done"]
        again.close()


# --- journals that are found ----------------------------------------------------------------------


def frame(name: str, data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


SESSION = {
    "id": "s", "model": "m", "created_at": "2026-04-14T12:00:00.000000+00:00",
    "updated_at": "2026-04-14T12:00:00.000000+00:00", "messages": [{"role": "user", "content": "go", "tool_calls": []}],
    "total_tokens": 0, "iteration_count": 0,
}  # fmt: skip
OPENING = frame("opening", {"at": 0, "message": {"role": "user", "content": "go"}})
TOKENS = frame("token", {"content": "a", "iteration": 1}) + frame("token", {"content": "b", "iteration": 1})


# What the journal holds, what it adds to the session, and whether it is put aside.
JOURNALS: dict[str, tuple[bytes, list[tuple[str, str, bool]], bool]] = {
    "empty": (b"", [], False),
    "opened": (OPENING, [], False),
    "opening-cut": (OPENING[:-1], [], False),
    "tokens": (OPENING + TOKENS, [("assistant", "ab", True)], False),
    "tokens-cut": (OPENING + TOKENS[:-3], [("assistant", "a", True)], False),
    "nul-bytes": (OPENING + b"\0" * 4096, [], False),
    "whole-answer": (
        OPENING + TOKENS + frame("message", {"role": "assistant", "content": "ab"}),
        [("assistant", "ab", False)],
        False,
    ),
    "session-changed": (
        frame("opening", {"at": 7, "message": {"role": "user", "content": "elsewhere"}}) + TOKENS,
        [("user", "elsewhere", False), ("assistant", "ab", True)],
        False,
    ),
    "garbage": (b"garbage\n\n", [], True),
    "no-opening": (TOKENS, [], True),
    "bad-token": (OPENING + b"event: token\ndata: {\n\n", [], True),
    "bad-message": (OPENING + b'event: message\ndata: {"role": "robot"}\n\n', [], True),
    "not-utf-8": (OPENING + b"event: token\ndata: \xff\n\n", [], True),
}


def test_whatever_a_journal_holds_the_daemon_starts(tmp_path: Path, env: dict[str, str]) -> None:
    sessions = tmp_path / "s" / "sessions"
    sessions.mkdir(parents=True)
    for name, (journal, _, _) in JOURNALS.items():
        (sessions / f"{name}.json").write_text(json.dumps(SESSION))
        (sessions / f"{name}.journal").write_bytes(journal)
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand:
        for name, (journal, added, aside) in JOURNALS.items():
            stored = pawand.stored(name)
            assert [(m["role"], m["content"], m.get("interrupted", False)) for m in stored[1:]] == added, name
            assert len(pawand.call("GET", f"/sessions/{name}")[1]["messages"]) == 1 + len(added), name
            left = list(sessions.glob(f"{name}.journal*"))
            assert [file.name.rpartition("-")[0] for file in left] == [f"{name}.journal.corrupt"] * aside
            assert [file.read_bytes() for file in left] == [journal] * aside


def test_a_journal_whose_session_was_deleted_goes_with_it(tmp_path: Path, env: dict[str, str]) -> None:
    sessions = tmp_path / "s" / "sessions"
    sessions.mkdir(parents=True)
    (sessions / "s.journal").write_bytes(OPENING + TOKENS)
    (sessions / "no session.journal").write_bytes(OPENING)
    with harness.serve(tmp_path / "w", tmp_path / "s", env=env) as pawand:
        assert pawand.call("GET", "/sessions/s")[0] == 404
    assert [file.name for file in sessions.glob("*.journal")] == ["no session.journal"]
