"""Whatever a session holds, what is sent obeys the strictest providers."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pawand.agent.history import (
    INTERRUPTED_RESULT,
    NO_ANSWER,
    NO_OUTPUT,
    RESUMED,
    estimate_tokens,
    to_messages,
    with_short_ids,
)
from pawand.sessions.model import Message
from pawand.wire import ToolCall, ToolResult

SYSTEM = {"role": "system", "content": "S"}


def user(text: str = "u") -> Message:
    return Message(role="user", content=text)


def assistant(text: str = "", *ids: str, arguments: Any = None) -> Message:
    calls = [ToolCall(id, "bash", {} if arguments is None else arguments) for id in ids]
    return Message(role="assistant", content=text, tool_calls=calls)


def result(id: str, text: str = "r") -> Message:
    return Message(role="tool", content=text, tool_result=ToolResult(id, text, success=True))


def calls(*ids: str, text: str | None = None, arguments: str = "{}") -> dict[str, Any]:
    sent: dict[str, Any] = {
        "role": "assistant",
        "tool_calls": [
            {"id": id, "type": "function", "function": {"name": "bash", "arguments": arguments}} for id in ids
        ],
    }
    return sent if text is None else sent | {"content": text}


def said(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": text}


def answer(id: str, text: str = "r") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "content": text}


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param([user()], [said("user", "u")], id="a question"),
        pytest.param(
            [user(), assistant("", "1", "2"), result("2", "b"), result("1", "a"), assistant("end")],
            [said("user", "u"), calls("1", "2"), answer("1", "a"), answer("2", "b"), said("assistant", "end")],
            id="results in the order of the calls",
        ),
        pytest.param(
            [user(), assistant("why", "1", "2"), result("1")],
            [said("user", "u"), calls("1", "2", text="why"), answer("1"), answer("2", INTERRUPTED_RESULT)],
            id="dangling call",
        ),
        pytest.param(
            [user(), assistant("", "1"), user("v")],
            [
                said("user", "u"),
                calls("1"),
                answer("1", INTERRUPTED_RESULT),
                said("assistant", NO_ANSWER),
                said("user", "v"),
            ],
            id="dangling call before a question",
        ),
        pytest.param(
            [user(), assistant("", "1"), assistant("late"), result("1")],
            [said("user", "u"), calls("1"), answer("1", INTERRUPTED_RESULT), said("assistant", "late")],
            id="a result that comes too late",
        ),
        pytest.param(
            [result("0"), user(), result("0"), assistant("", "1"), result("0"), result("1")],
            [said("user", "u"), calls("1"), answer("1")],
            id="orphan results",
        ),
        pytest.param(
            [user(), assistant("", "1", "1"), result("1", "first"), result("1", "second")],
            [said("user", "u"), calls("1"), answer("1", "first")],
            id="an id twice",
        ),
        pytest.param(
            [user(), assistant("", "1"), result("1", "a"), assistant("", "1"), result("1", "b")],
            [said("user", "u"), calls("1"), answer("1", "a"), calls("1"), answer("1", "b")],
            id="an id again",
        ),
        pytest.param(
            [user(), assistant("", "1"), result("1", " \n")],
            [said("user", "u"), calls("1"), answer("1", NO_OUTPUT)],
            id="an empty result",
        ),
        pytest.param(
            [user(" "), assistant("\n"), user("a"), assistant(""), user("b")],
            [said("user", "a"), said("assistant", NO_ANSWER), said("user", "b")],
            id="empty messages, an unanswered question",
        ),
        pytest.param(
            [assistant("hello"), assistant("again")],
            [said("user", RESUMED), said("assistant", "hello"), said("user", RESUMED), said("assistant", "again")],
            id="an assistant that talks to itself",
        ),
        pytest.param(
            [user(), assistant("", "1", arguments='{"path": "x')],
            [
                said("user", "u"),
                calls("1", arguments='{"text":"{\\"path\\": \\"x"}'),
                answer("1", INTERRUPTED_RESULT),
            ],
            id="arguments that are no JSON",
        ),
        pytest.param(
            [user(), assistant("", "1", arguments=[1, None])],
            [said("user", "u"), calls("1", arguments='{"text":[1,null]}'), answer("1", INTERRUPTED_RESULT)],
            id="arguments that are no object",
        ),
    ],
)
def test_histories(history: list[Message], expected: list[dict[str, Any]]) -> None:
    assert to_messages("S", history) == [SYSTEM, *expected]


def test_system_messages_of_a_history_are_merged_into_the_first() -> None:
    system = [Message(role="system", content=text) for text in ("one", " ", "two")]
    history = [system[0], user(), assistant("", "1"), system[1], system[2], result("1")]
    assert to_messages("S", history) == [said("system", "S\n\none\n\ntwo"), said("user", "u"), calls("1"), answer("1")]


def test_tokens_are_estimated_from_what_is_said_and_called() -> None:
    assert estimate_tokens([]) == 0
    assert estimate_tokens([user("x" * 1000)]) == 250
    assert estimate_tokens([assistant("", "1", arguments={"command": "x" * 1000})]) > 250


def summary(text: str, replaces: int) -> Message:
    return Message(role="system", content=text, replaces=replaces)


OLD = [user("goal"), assistant("", "1"), result("1"), assistant("", "2"), result("2")]


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        pytest.param(
            [*OLD, summary("sum", 3)],
            [said("user", "goal"), calls("2"), answer("2")],
            id="the goal stays although it was replaced",
        ),
        pytest.param(
            [*OLD, summary("sum", 5), user("next")],
            [said("user", "goal"), said("assistant", NO_ANSWER), said("user", "next")],
            id="all but the goal",
        ),
        pytest.param(
            [*OLD, assistant("done"), user("next"), assistant("", "3"), result("3"), summary("sum", 6)],
            [said("user", "next"), calls("3"), answer("3")],
            id="an older goal is in the summary alone",
        ),
        pytest.param(
            [*OLD, summary("old", 3), assistant("", "3"), result("3"), summary("sum", 6)],
            [said("user", "goal"), calls("3"), answer("3")],
            id="of two summaries the newer one counts",
        ),
    ],
)
def test_a_summary_stands_in_the_place_of_what_it_replaces(
    history: list[Message], expected: list[dict[str, Any]]
) -> None:
    assert to_messages("S", history) == [said("system", "S\n\nsum"), *expected]


@pytest.mark.parametrize("replaces", [-1, 0, 6, 10**9])
def test_a_summary_of_what_is_not_before_it_replaces_nothing(replaces: int) -> None:
    sent = to_messages("S", [*OLD, summary("sum", replaces)])
    assert sent == [said("system", "S\n\nsum"), *to_messages("S", OLD)[1:]]


def test_names_that_a_model_made_up_are_sent_as_names() -> None:
    def name(text: str) -> str:
        call = Message(role="assistant", content="", tool_calls=[ToolCall("1", text, {})])
        return str(to_messages("S", [user(), call])[2]["tool_calls"][0]["function"]["name"])

    assert [name(text) for text in ("functions.read file\n", "", "é", "x" * 100)] == [
        "functions_read_file_", "_", "_", "x" * 64,
    ]  # fmt: skip


def test_short_ids_are_the_same_in_call_and_result_every_time() -> None:
    history = [user(), assistant("", "call_1", "abcdefghi"), result("call_1"), result("abcdefghi")]
    first, second = (with_short_ids(to_messages("S", history)) for _ in range(2))
    assert first == second
    ids = [call["id"] for call in first[2]["tool_calls"]]
    assert ids[1] == "abcdefghi"
    assert ids == [message["tool_call_id"] for message in first[3:]]
    assert all(len(id) == 9 and id.isalnum() for id in ids)


def test_results_are_clipped_where_only_a_part_may_be_sent() -> None:
    sent = to_messages("S", [user("u" * 500), assistant("", "1"), result("1", "r" * 500)], result_chars=100)
    assert len(sent[1]["content"]) == 500
    assert len(sent[3]["content"]) < 200
    assert "left out" in sent[3]["content"]


def test_thoughts_go_back_only_where_they_are_wanted() -> None:
    [_, _, plain, _] = to_messages("S", [user(), assistant("", "1"), result("1")])
    assert "reasoning_content" not in plain
    [_, _, told, _] = to_messages("S", [user(), assistant("", "1"), result("1")], lambda message: "hm")
    assert told["reasoning_content"] == "hm"


# --- any history ----------------------------------------------------------------------------------

TEXTS = st.sampled_from(["", " ", "\n", "a", "b", "c d", "é"])
IDS = st.sampled_from(["1", "2", "3", ""])
ARGUMENTS = st.sampled_from([{}, {"path": "x", "n": 10**30}, '{"a": 1}', "[", None, 3, ["x"]])
CALLS = st.lists(st.builds(ToolCall, IDS, st.just("bash"), ARGUMENTS), max_size=3)
RESULTS = st.none() | st.builds(ToolResult, IDS, TEXTS, st.booleans())
MESSAGES = st.one_of(
    st.builds(Message, role=st.just("user"), content=TEXTS),
    st.builds(Message, role=st.just("assistant"), content=TEXTS, tool_calls=CALLS),
    st.builds(Message, role=st.just("tool"), content=TEXTS, tool_result=RESULTS),
    st.builds(
        Message,
        role=st.sampled_from(["system", "user", "assistant", "tool"]),
        content=TEXTS,
        tool_calls=CALLS,
        tool_result=RESULTS,
    ),
)
SUMMARIES = st.builds(Message, role=st.just("system"), content=TEXTS, replaces=st.integers(-1, 12))


def check_rules(sent: list[dict[str, Any]]) -> None:
    """What the strictest providers demand."""
    assert [message["role"] for message in sent].count("system") == 1
    assert sent[0]["role"] == "system"
    pending: list[str] = []
    previous = "system"
    for message in sent[1:]:
        role = message["role"]
        if role == "tool":
            assert message["tool_call_id"] == pending.pop(0)
        else:
            assert not pending
            assert role == ("assistant" if previous in ("user", "tool") else "user")
            pending = [call["id"] for call in message.get("tool_calls", [])]
            assert len(set(pending)) == len(pending)
            for call in message.get("tool_calls", []):
                assert isinstance(json.loads(call["function"]["arguments"]), dict)
        if "content" in message or not message.get("tool_calls"):
            assert message["content"].strip()
        assert message.get("tool_calls") != []
        previous = role
    assert not pending


@settings(max_examples=300)
@given(history=st.lists(MESSAGES, max_size=10))
def test_any_history_is_sent_by_the_rules_with_nothing_lost(history: list[Message]) -> None:
    before = deepcopy(history)
    sent = to_messages("S", history)
    check_rules(sent)
    assert history == before
    for role, filler in (("user", RESUMED), ("assistant", NO_ANSWER)):
        texts = [m["content"] for m in sent if m["role"] == role and m.get("content", filler) != filler]
        assert texts == [m.content for m in history if m.role == role and m.content.strip()]
    system = [m.content for m in history if m.role == "system" and m.content.strip()]
    assert sent[0]["content"] == "\n\n".join(["S", *system])
    assert sum(len(m.get("tool_calls", [])) for m in sent) == sum(
        len({call.id for call in m.tool_calls}) for m in history if m.role == "assistant"
    )


@settings(max_examples=300)
@given(history=st.lists(MESSAGES | SUMMARIES, max_size=12))
def test_any_history_with_summaries_is_sent_by_the_rules(history: list[Message]) -> None:
    check_rules(to_messages("S", history))
