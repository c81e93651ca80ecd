"""The document of a session: what the Rust program writes is read, kept and given back."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pawand.errors import BadRequestError
from pawand.sessions.model import Message, Session, check_id, is_id, new_id, parse_time, title_of, wire_time
from pawand.wire import ToolCall, ToolResult

RUST = Path(__file__).with_name("rust_session.json").read_bytes()  # facts 3, byte for byte


def document(**changes: Any) -> bytes:
    return json.dumps(json.loads(RUST) | changes, ensure_ascii=False).encode()


# --- the Rust program's document ------------------------------------------------------------------


def test_a_rust_session_is_read() -> None:
    session = Session.decode("file-name", RUST)
    assert (session.id, session.model, session.title) == ("file-name", "qwen/qwen3.5-122b-a10b", "Fix the test")
    assert session.created_at == datetime(2026, 4, 14, 12, 0, 0, 123456, UTC)
    assert session.updated_at == datetime(2026, 4, 14, 12, 5, 0, 123, UTC)
    question, call, result, answer = session.messages
    assert question == Message(role="user", content="Fix the test")
    assert call.tool_calls == [ToolCall("call_1", "read_file", {"path": "src/lib.rs"})]
    assert result.tool_result is not None
    assert (result.tool_result.tool_call_id, result.tool_result.success) == ("call_1", True)
    assert result.tool_result.content["lines_shown"] == 1
    assert answer == Message(role="assistant", content="Done.")
    assert session.summary().message_count == 4


def test_a_rust_session_is_written_back_byte_for_byte() -> None:
    assert Session.decode("3f9a1c2e", RUST).encode() == RUST


def test_unknown_fields_survive_with_their_order_and_kind() -> None:
    text = """{
  "zeta": {
    "é": "„ü“ \\u0000"
  },
  "id": "a",
  "model": "m",
  "created_at": "2026-04-14T12:00:00Z",
  "updated_at": "2026-04-14T12:00:00+02:00",
  "messages": [
    {
      "future": [
        1,
        1.0,
        18446744073709551615,
        123456789012345678901234567890
      ],
      "content": "x",
      "role": "user",
      "tool_calls": []
    }
  ],
  "branch_depth": 7,
  "last": null
}"""
    session = Session.decode("a", text.encode())
    assert session.encode() == text.encode()
    session.append(Message(role="assistant", content="y"))
    session.count_iteration(9)
    session.set_model("n")
    after = json.loads(session.encode())
    assert list(after) == [*json.loads(text), "iteration_count", "total_tokens"]
    assert after["messages"][0] == json.loads(text)["messages"][0]
    assert (after["zeta"], after["last"], after["model"]) == ({"é": "„ü“ \0"}, None, "n")


def test_appended_messages_are_stamped_and_always_have_tool_calls() -> None:
    session = Session.new("a", "m", title="T", pinned_model="p")
    session.append(Message(role="user", content="é\n"))
    session.append(Message(role="assistant", content="", tool_calls=[ToolCall("c", "bash", {"n": 3})]))
    session.append(Message(role="tool", content="3", tool_result=ToolResult("c", 3, success=False)))
    session.append(Message(role="assistant", content="", interrupted=True))
    stored = json.loads(session.encode())
    times = [message.pop("timestamp") for message in stored["messages"]]
    assert stored["messages"] == [
        {"role": "user", "content": "é\n", "tool_calls": []},
        {"role": "assistant", "content": "", "tool_calls": [{"id": "c", "name": "bash", "arguments": {"n": 3}}]},
        {
            "role": "tool",
            "content": "3",
            "tool_calls": [],
            "tool_result": {"tool_call_id": "c", "content": 3, "success": False},
        },
        {"role": "assistant", "content": "", "tool_calls": [], "interrupted": True},
    ]
    assert times == sorted(times)
    assert stored["updated_at"] == times[-1]
    assert [len(time) for time in times] == [len("2026-04-14T12:00:00.123456+00:00")] * 4
    again = Session.decode("a", session.encode())
    assert again.messages == session.messages
    assert (again.title, again.pinned_model) == ("T", "p")


def test_a_new_session_has_every_field_the_rust_program_requires() -> None:
    stored = json.loads(Session.new("a", "m").encode())
    assert list(stored) == list(json.loads(RUST))
    assert {key: stored[key] for key in ("tags", "notes", "labels", "parent_id", "branch_depth", "total_tokens")} == {
        "tags": [],
        "notes": "",
        "labels": [],
        "parent_id": None,
        "branch_depth": 0,
        "total_tokens": 0,
    }


@pytest.mark.parametrize("count", [0, 4, None, "x", 1.5])
def test_iterations_are_counted_on_whatever_was_there(count: Any) -> None:
    session = Session.decode("a", document(iteration_count=count))
    session.count_iteration(12)
    stored = json.loads(session.encode())
    assert (stored["iteration_count"], stored["total_tokens"]) == (5 if count == 4 else 1, 12)


# --- ids, titles, times ---------------------------------------------------------------------------


@pytest.mark.parametrize("id", ["a", "3f9a1c2e", "A-b_9", "a" * 128, pytest.param(new_id(), id="new")])
def test_good_ids(id: str) -> None:
    assert check_id(id) == id
    assert is_id(id)


@pytest.mark.parametrize(
    "id", ["", ".", "..", "a/b", "/a", "-a", "_a", "a" * 129, "é", "a\n", "..%2fx", "a.b", "a b", "a\0", "١"]
)
def test_bad_ids(id: str) -> None:
    assert not is_id(id)
    with pytest.raises(BadRequestError, match="bad session id: "):
        check_id(id)


@pytest.mark.parametrize(
    ("title", "contents", "expected"),
    [
        ("Mine", ["other"], "Mine"),
        (None, ["  fix\n the\ttest "], "fix the test"),
        ("", ["x"], "x"),
        (None, ["a" * 60], "a" * 60),
        (None, ["a" * 61], "a" * 59 + "…"),
        (None, [], ""),
    ],
)
def test_titles(title: str | None, contents: list[str], expected: str) -> None:
    messages = [Message(role="system", content="no"), *(Message(role="user", content=text) for text in contents)]
    assert title_of(title, messages) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-04-14T12:00:00.123456789+00:00", "2026-04-14T12:00:00.123456Z"),
        ("2026-04-14T12:00:00Z", "2026-04-14T12:00:00.000000Z"),
        ("2026-04-14T12:00:00.5+02:00", "2026-04-14T10:00:00.500000Z"),
        ("2026-04-14T12:00:00", "2026-04-14T12:00:00.000000Z"),
    ],
)
def test_times_are_utc_on_the_wire(text: str, expected: str) -> None:
    assert wire_time(parse_time(text)) == expected


# --- damage ---------------------------------------------------------------------------------------

DAMAGE = {
    "empty": b"",
    "cut": RUST[:-20],
    "twice": RUST + RUST,
    "not UTF-8": RUST.replace(b"Done.", b"\xff"),
    "byte order mark": b"\xef\xbb\xbf" + RUST,
    "a list": b"[]",
    "a number": b"NaN",
    "NaN inside": RUST.replace(b'"total_tokens": 57', b'"total_tokens": NaN'),
    "too big a number": RUST.replace(b'"total_tokens": 57', b'"total_tokens": 1e999'),
    "lone surrogate": RUST.replace(b"Done.", b"\\ud800"),
    "no messages": RUST.replace(b'"messages"', b'"other"'),
    "id is a number": document(id=1),
    "title is a number": document(title=1),
    "pinned model is a list": document(pinned_model=[]),
    "messages is null": document(messages=None),
    "unknown role": RUST.replace(b'"role": "tool"', b'"role": "robot"'),
    "content is null": RUST.replace(b'"content": "Done."', b'"content": null'),
    "calls are null": document(messages=[{"role": "user", "content": "", "tool_calls": None}]),
    "call without name": document(
        messages=[{"role": "user", "content": "", "tool_calls": [{"id": "a", "arguments": 1}]}]
    ),
    "no time": document(updated_at="yesterday"),
    "time is a number": document(created_at=3),
    "time out of range": document(created_at="9999-12-31T23:59:59-14:00"),
    "deep": document(x=1).replace(b'"x": 1', b'"x": ' + b"[" * 100_000 + b"]" * 100_000),
}


@pytest.mark.parametrize("data", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_a_value_error(data: bytes) -> None:
    assert data != RUST
    with pytest.raises(ValueError):
        Session.decode("a", data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """The Rust document with one value replaced, one key gone, or a stretch of bytes overwritten."""
    doc = json.loads(RUST)
    target = draw(st.sampled_from([doc, *doc["messages"], doc["messages"][1]["tool_calls"][0]]))
    key = draw(st.sampled_from(sorted(target)))
    match draw(st.sampled_from(["value", "key", "bytes"])):
        case "value":
            target[key] = draw(JSON)
        case "key":
            del target[key]
        case _:
            at = draw(st.integers(0, len(RUST)))
            return RUST[:at] + draw(st.binary(max_size=4)) + RUST[at + draw(st.integers(0, 9)) :]
    return json.dumps(doc).encode()


@settings(max_examples=300)
@given(data=st.binary(max_size=40) | mutated())
def test_whatever_is_read_can_be_shown_and_written_or_is_a_value_error(data: bytes) -> None:
    try:
        session = Session.decode("a", data)
    except ValueError:
        return
    assert session.summary().message_count == len(session.messages)
    assert Session.decode("a", session.encode()).encode() == session.encode()
