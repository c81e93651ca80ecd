"""`batch` and child agents: calls within a call, under the same permissions, with what the user must see of them."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from pawand.daemon import Parts
from tests import harness
from tests.conftest import LogWatch
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import OpenAIServer
from tests.web.conftest import Fetch, until

CHILD = "You are working for another agent"


def body(message: str = "parent", **more: Any) -> bytes:
    return json.dumps({"message": message, **more}).encode()


def is_child(request: fake.Body) -> bool:
    return CHILD in request["messages"][0]["content"]


def task_of(request: fake.Body) -> str:
    messages: list[dict[str, Any]] = request["messages"]
    return next(str(m["content"]) for m in messages if m["role"] == "user")


def offered(request: fake.Body) -> set[str]:
    return {tool["function"]["name"] for tool in request.get("tools", [])}


async def events(fetch: Fetch, **more: Any) -> list[harness.Event]:
    answer = await fetch("/chat/stream", body=body(**more))
    assert answer.code == 200
    return harness.parse_events(answer.body.decode())


def last_result(upstream: OpenAIServer) -> Any:
    """What the parent's model was told in its last request."""
    request = [r for r in upstream.requests if not is_child(r)][-1]
    return json.loads(request["messages"][-1]["content"])


# --- batch ----------------------------------------------------------------------------------------


@pytest.mark.gen_test(timeout=30)
async def test_a_batch_runs_its_calls_in_order_and_answers_each(
    fetch: Fetch, upstream: OpenAIServer, workspace: Path
) -> None:
    inner: list[dict[str, Any]] = [
        {"tool": "write_file", "input": {"path": "a.txt", "content": "one\n"}},
        {"tool": "append_file", "parameters": {"path": "a.txt", "content": "two\n"}},
        {"tool": "read_file", "path": "a.txt"},
        {"tool": "read_file", "input": {"path": "missing.txt"}},
        {"tool": "read_file", "input": {"pat": "a.txt"}},
        {"tool": "no_such_tool", "input": {}},
        {"tool": "batch", "input": {"calls": [{"tool": "read_file", "path": "a.txt"}]}},
        {"tool": "spawn_agent", "input": {"prompt": "x"}},
    ]
    upstream.script = [fake.calls(("batch", {"calls": inner})), fake.text("done")]
    found = await events(fetch)
    result = last_result(upstream)
    assert (workspace / "a.txt").read_text() == "one\ntwo\n"
    assert [row["tool"] for row in result["results"]] == [call["tool"] for call in inner]
    assert [row["success"] for row in result["results"]] == [True, True, True, *[False] * 5]
    assert (result["success"], result["succeeded"], result["failed"]) == (False, 3, 5)
    errors = [row["result"]["error"] for row in result["results"][3:]]
    assert "does not exist" in errors[0]
    assert "wrong arguments" in errors[1]
    assert "there is no tool" in errors[2]
    assert "no other batch" in errors[3]
    assert "may start none" in errors[4]
    assert "2\ttwo" in result["results"][2]["result"]["content"]
    assert [name for name, _ in found].count("tool_start") == 1


@pytest.mark.parametrize(
    "call",
    [
        {"tool": "read_file", "input": {"path": "a.txt"}},
        {"tool": "read_file", "parameters": {"path": "a.txt"}},
        {"tool": "read_file", "arguments": {"path": "a.txt"}},
        {"tool": "read_file", "args": {"path": "a.txt"}, "description": "look"},
        {"tool": "read_file", "path": "a.txt"},
    ],
    ids=json.dumps,
)
@pytest.mark.gen_test(timeout=30)
async def test_a_call_of_a_batch_may_be_written_in_many_ways(
    fetch: Fetch, upstream: OpenAIServer, workspace: Path, call: dict[str, Any]
) -> None:
    (workspace / "a.txt").write_text("hello\n")
    upstream.script = [fake.calls(("batch", {"calls": [call]})), fake.text("done")]
    await events(fetch)
    assert "hello" in last_result(upstream)["results"][0]["result"]["content"]


@pytest.mark.gen_test(timeout=30)
async def test_no_call_of_a_batch_runs_with_defaults_in_place_of_what_it_was_given(
    fetch: Fetch, upstream: OpenAIServer, workspace: Path
) -> None:
    inner = [{"tool": "git_stash", "input": {"action": "list"}, "timeout": 5}, {"tool": "git_stash", "actoin": "list"}]
    upstream.script = [fake.calls(("batch", {"calls": inner})), fake.text("done")]
    await events(fetch)
    errors = [row["result"]["error"] for row in last_result(upstream)["results"]]
    assert all("wrong arguments for git_stash: unknown" in error for error in errors)


@pytest.mark.gen_test(timeout=30)
async def test_no_result_of_a_batch_is_lost_to_a_long_one(
    fetch: Fetch, upstream: OpenAIServer, workspace: Path
) -> None:
    (workspace / "big.txt").write_text("some words of text\n" * 1000)
    inner = [{"tool": "read_file", "path": "big.txt"}] * 3
    inner += [{"tool": "append_file", "path": "small.txt", "content": f"{n}\n"} for n in range(22)]
    upstream.script = [fake.calls(("batch", {"calls": inner})), fake.text("done")]
    await events(fetch)
    result = last_result(upstream)
    assert len(result["results"]) == 25
    assert all(row["success"] for row in result["results"])
    assert (workspace / "small.txt").read_text() == "".join(f"{n}\n" for n in range(22))


@pytest.mark.parametrize(("short", "long", "least"), [(0, 25, 2), (21, 4, 12), (0, 4, 55), (25, 0, 0)])
@pytest.mark.gen_test(timeout=30)
async def test_files_that_are_read_in_a_batch_share_its_room(
    fetch: Fetch, upstream: OpenAIServer, workspace: Path, short: int, long: int, least: int
) -> None:
    (workspace / "short.txt").write_text("one\ntwo\n")
    (workspace / "long.txt").write_text("some words of text\n" * 1000)
    inner = [{"tool": "read_file", "path": f"{name}.txt"} for name in ["short"] * short + ["long"] * long]
    upstream.script = [fake.calls(("batch", {"calls": inner})), fake.text("done")]
    await events(fetch)
    rows = [row["result"] for row in last_result(upstream)["results"]]
    assert len(rows) == short + long
    assert all(row["content"].count("\n") + 1 == row["lines_shown"] for row in rows), "lines were cut out"
    assert all(row["lines_shown"] == 2 for row in rows[:short])
    assert all(row["lines_shown"] >= least for row in rows[short:])


@pytest.mark.parametrize(
    ("calls", "part"),
    [
        pytest.param([], "length >= 1", id="none"),
        pytest.param([{"tool": "list_directory"}] * 26, "length <= 25", id="too many"),
        pytest.param([{"input": {}}], "names no tool", id="no name"),
        pytest.param([{"tool": 3}], "names no tool", id="a name that is none"),
        pytest.param(["list_directory"], "object", id="no object"),
    ],
)
@pytest.mark.gen_test(timeout=30)
async def test_a_batch_that_is_none_is_refused(
    fetch: Fetch, upstream: OpenAIServer, calls: list[Any], part: str
) -> None:
    upstream.script = [fake.calls(("batch", {"calls": calls})), fake.text("done")]
    await events(fetch)
    assert part in last_result(upstream)["error"]


@pytest.mark.settings(permissions={"bash": "deny", "write_file": "prompt"})
@pytest.mark.gen_test(timeout=30)
async def test_no_batch_gets_round_the_permissions(
    fetch: Fetch, upstream: OpenAIServer, workspace: Path, parts: Parts
) -> None:
    inner: list[dict[str, Any]] = [
        {"tool": "bash", "input": {"command": "touch denied"}},
        {"tool": "write_file", "input": {"path": "asked", "content": "x"}},
    ]
    upstream.script = [fake.calls(("batch", {"calls": inner})), fake.text("done")]
    answer = asyncio.ensure_future(fetch("/chat/stream", body=body(session_id="s")))
    await until(lambda: parts.services.turns.pending_approvals("s"), "a question")
    [question] = parts.services.turns.pending_approvals("s")
    assert (question.tool, question.arguments["path"]) == ("write_file", "asked")
    await fetch(f"/sessions/s/permissions/{question.id}", body=b'{"decision": "deny"}')
    found = harness.parse_events((await answer).body.decode())
    assert [name for name, _ in found if name.startswith("permission")] == ["permission_request", "permission_resolved"]
    rows = last_result(upstream)["results"]
    assert "is denied by [permissions]" in rows[0]["result"]["error"]
    assert "the user denied" in rows[1]["result"]["error"]
    assert not list(workspace.iterdir())


@pytest.mark.gen_test(timeout=30)
async def test_reading_calls_of_a_batch_run_side_by_side(fetch: Fetch, upstream: OpenAIServer, workspace: Path) -> None:
    (workspace / "a").write_text("x\n")
    inner = [{"tool": "grep_search", "input": {"pattern": "x"}} for _ in range(10)]
    upstream.script = [fake.calls(("batch", {"calls": inner})), fake.text("done")]
    await events(fetch)
    result = last_result(upstream)
    assert result["succeeded"] == 10
    assert all(row["result"]["count"] == 1 for row in result["results"])


# --- child agents ---------------------------------------------------------------------------------


@pytest.mark.gen_test(timeout=30)
async def test_a_child_works_with_the_same_tools_and_reports(
    fetch: Fetch, upstream: OpenAIServer, workspace: Path, state: Path
) -> None:
    def reply(request: fake.Body) -> fake.Reply:
        if not is_child(request):
            start = fake.calls(("spawn_agent", {"prompt": "write child.txt"}), say="I delegate. ")
            return start if request["messages"][-1]["role"] == "user" else fake.text("all done")
        if request["messages"][-1]["role"] == "user":
            return fake.calls(("write_file", {"path": "child.txt", "content": "hi\n"}), say="Now I write. ")
        return fake.text("I wrote child.txt.")

    upstream.script = reply
    found = await events(fetch, session_id="s")
    assert (workspace / "child.txt").read_text() == "hi\n"
    result = last_result(upstream)
    assert result["success"] is True
    assert result["result"] == "I wrote child.txt."
    assert (result["attempt"], result["total_attempts"]) == (1, 1)
    assert (result["iterations"], result["tool_calls"]) == (2, 1)
    assert result["usage"] == {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30}
    [first, *_] = [r for r in upstream.requests if is_child(r)]
    assert [m["role"] for m in first["messages"]] == ["system", "user"], "it does not see its parent's conversation"
    assert not offered(first) & {"spawn_agent", "spawn_agents", "task"}
    names = [name for name, _ in found]
    assert names == ["start", "token", "tool_start", "tool_output", "tool_complete", "token", "done"]
    assert found[3][1]["content"] == '[agent] write_file {"path":"child.txt","content":"hi\\n"}\n'
    done = found[-1][1]
    assert done["content"] == "all done"
    assert (done["iterations"], done["tool_calls"]) == (2, 1)
    assert done["usage"]["total_tokens"] == 60, "a child's tokens are its parent's"
    stored = json.loads((state / "sessions" / "s.json").read_bytes())
    assert [m["role"] for m in stored["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert [p.name for p in (state / "sessions").glob("*.json")] == ["s.json"]


@pytest.mark.gen_test(timeout=30)
async def test_children_run_side_by_side_four_at_a_time(fetch: Fetch, upstream: OpenAIServer) -> None:
    def reply(request: fake.Body) -> fake.Reply:
        if is_child(request):
            return fake.text(f"{task_of(request)} done", pause=0.2)
        start = fake.calls(("spawn_agents", {"tasks": [{"prompt": f"part {n}"} for n in range(8)]}))
        return start if request["messages"][-1]["role"] == "user" else fake.text("done")

    upstream.script = reply
    began = time.monotonic()
    await events(fetch)
    took = time.monotonic() - began
    result = last_result(upstream)
    assert [row["result"] for row in result["results"]] == [f"part {n} done" for n in range(8)]
    assert (result["total_tasks"], result["succeeded"], result["failed"]) == (8, 8, 0)
    assert 0.4 <= took < 1.4, "two rounds of four, not eight"


@pytest.mark.gen_test(timeout=30)
async def test_roles_that_only_read_get_no_tool_that_changes(fetch: Fetch, upstream: OpenAIServer) -> None:
    roles = ["explore", "plan", "reviewer", "librarian", "task", "designer"]

    def reply(request: fake.Body) -> fake.Reply:
        if is_child(request):
            return fake.text(f"done: {task_of(request)}")
        tasks = [{"agent": role, "assignment": role} for role in roles]
        start = fake.calls(("task", {"tasks": tasks, "context": "Shared words."}))
        return start if request["messages"][-1]["role"] == "user" else fake.text("done")

    upstream.script = reply
    await events(fetch)
    result = last_result(upstream)
    assert [(row["agent"], row["status"]) for row in result["results"]] == [(role, "completed") for role in roles]
    assert result["results"][0]["result"] == "done: Shared words.\n\nexplore"
    changing = {"bash", "write_file", "edit_file", "git_commit", "git_checkout", "batch"}
    for request in filter(is_child, upstream.requests):
        role = task_of(request).rpartition("\n")[2]
        assert "read_file" in offered(request)
        assert offered(request) & changing == (changing if role in ("task", "designer") else set())


@pytest.mark.parametrize(
    ("tool", "arguments", "part"),
    [
        ("task", {}, "give agent and assignment"),
        ("task", {"agent": "plan"}, "give agent and assignment"),
        ("task", {"agent": "wizard", "assignment": "x"}, "Invalid enum value"),
        ("task", {"agent": "plan", "assignment": "x", "tasks": [{"agent": "plan", "assignment": "x"}]}, "either"),
        ("task", {"tasks": [{"agent": "plan", "assignment": "x"}] * 9}, "length <= 8"),
        ("spawn_agents", {"tasks": []}, "length >= 1"),
        ("spawn_agent", {"prompt": ""}, "length >= 1"),
        ("spawn_agent", {"prompt": "x", "workspace": "../.."}, "leads out"),
        ("spawn_agent", {"prompt": "x", "workspace": "none"}, "does not exist"),
        ("spawn_agent", {"prompt": "x", "retries": 3}, "<= 2"),
        ("spawn_agent", {"prompt": "x", "timeout": 0}, ">= 1"),
    ],
)
@pytest.mark.gen_test(timeout=30)
async def test_wrong_assignments_are_told(
    fetch: Fetch, upstream: OpenAIServer, tool: str, arguments: dict[str, Any], part: str
) -> None:
    upstream.script = [fake.calls((tool, arguments)), fake.text("done")]
    await events(fetch)
    assert part in last_result(upstream)["error"]
    assert len(upstream.requests) == 2, "no child was started"


@pytest.mark.settings(max_retries=0)
@pytest.mark.gen_test(timeout=30)
async def test_a_child_that_fails_is_its_parent_s_data(fetch: Fetch, upstream: OpenAIServer) -> None:
    failures = 2

    def reply(request: fake.Body) -> fake.Reply:
        nonlocal failures
        if is_child(request):
            failures -= 1
            return fake.refusal(500, "child trouble") if failures >= 0 else fake.text("third time lucky")
        start = fake.calls(("spawn_agent", {"prompt": "x", "retries": 2}))
        return start if request["messages"][-1]["role"] == "user" else fake.text("done")

    upstream.script = reply
    found = await events(fetch)
    result = last_result(upstream)
    assert (result["success"], result["attempt"], result["total_attempts"]) == (True, 3, 3)
    assert result["result"] == "third time lucky"
    failures = 9
    found = await events(fetch)
    result = last_result(upstream)
    assert (result["success"], result["attempt"]) == (False, 3)
    assert "child trouble" in result["error"]
    assert found[-1][0] == "done"


@pytest.mark.settings(max_retries=0, fallback_models=["second"])
@pytest.mark.gen_test(timeout=30)
async def test_a_child_asks_the_model_that_its_parent_turned_to(fetch: Fetch, upstream: OpenAIServer) -> None:
    def reply(request: fake.Body) -> fake.Reply:
        if request["model"] != "second":
            return fake.refusal(503)
        if is_child(request):
            return fake.text("from the second")
        start = fake.calls(("spawn_agent", {"prompt": "x"}))
        return start if request["messages"][-1]["role"] == "user" else fake.text("done")

    upstream.script = reply
    await events(fetch)
    assert last_result(upstream)["result"] == "from the second"
    assert [r["model"] for r in upstream.requests] == [harness.MODEL, "second", "second", "second"]


@pytest.mark.gen_test(timeout=30)
async def test_long_results_of_children_share_the_room(fetch: Fetch, upstream: OpenAIServer) -> None:
    def reply(request: fake.Body) -> fake.Reply:
        if is_child(request):
            return fake.text(f"{task_of(request)}: " + "words and words\n" * 500)
        start = fake.calls(("spawn_agents", {"tasks": [{"prompt": f"part {n}"} for n in range(8)]}))
        return start if request["messages"][-1]["role"] == "user" else fake.text("done")

    upstream.script = reply
    await events(fetch)
    rows = last_result(upstream)["results"]
    assert [row["result"].partition(":")[0] for row in rows] == [f"part {n}" for n in range(8)]
    assert all("left out" in row["result"] for row in rows)


@pytest.mark.settings(permissions={"bash": "prompt"})
@pytest.mark.gen_test(timeout=30)
async def test_a_question_of_a_child_whose_time_is_over_is_resolved(
    fetch: Fetch, upstream: OpenAIServer, parts: Parts
) -> None:
    def reply(request: fake.Body) -> fake.Reply:
        if is_child(request):
            return fake.calls(("bash", {"command": "true"}))
        start = fake.calls(("spawn_agent", {"prompt": "x", "timeout": 1}))
        return start if request["messages"][-1]["role"] == "user" else fake.text("done")

    upstream.script = reply
    found = await events(fetch, session_id="s")
    [asked] = [data for name, data in found if name == "permission_request"]
    [resolved] = [data for name, data in found if name == "permission_resolved"]
    assert resolved == {"id": asked["id"], "decision": "deny", "reason": "cancelled"}
    assert parts.services.turns.pending_approvals("s") == []


@pytest.mark.gen_test(timeout=30)
async def test_a_child_has_its_own_time(fetch: Fetch, upstream: OpenAIServer) -> None:
    def reply(request: fake.Body) -> fake.Reply:
        if is_child(request):
            return fake.text("thinking ", "about ", "it", pause=0.7)
        start = fake.calls(("spawn_agent", {"prompt": "x", "timeout": 1}))
        return start if request["messages"][-1]["role"] == "user" else fake.text("done")

    upstream.script = reply
    await events(fetch)
    result = last_result(upstream)
    assert result["success"] is False
    assert "not done after 1 s" in result["error"]
    assert result["result"].strip() == "thinking", "what it had said is kept"
    assert upstream.hung_up.is_set()


@pytest.mark.settings(max_tool_iterations=3)
@pytest.mark.gen_test(timeout=30)
async def test_a_child_has_its_own_iterations(fetch: Fetch, upstream: OpenAIServer) -> None:
    def reply(request: fake.Body) -> fake.Reply:
        if not is_child(request):
            start = fake.calls(("spawn_agent", {"prompt": "x"}))
            return start if request["messages"][-1]["role"] == "user" else fake.text("done")
        if request.get("tool_choice") == "none":
            return fake.text("out of calls")
        return fake.calls(("list_directory", {"path": ".", "max_depth": len(request["messages"])}))

    upstream.script = reply
    found = await events(fetch)
    result = last_result(upstream)
    assert (result["result"], result["iterations"], result["tool_calls"]) == ("out of calls", 3, 3)
    assert found[-1][1]["iterations"] == 2


@pytest.mark.settings(permissions={"bash": "prompt"})
@pytest.mark.gen_test(timeout=30)
async def test_a_child_s_calls_are_asked_for_in_its_parent_s_stream(
    fetch: Fetch, upstream: OpenAIServer, parts: Parts, workspace: Path
) -> None:
    def reply(request: fake.Body) -> fake.Reply:
        if not is_child(request):
            start = fake.calls(("spawn_agent", {"prompt": "x"}))
            return start if request["messages"][-1]["role"] == "user" else fake.text("done")
        if request["messages"][-1]["role"] == "user":
            return fake.calls(("bash", {"command": "echo yes > allowed"}))
        return fake.text("ran it")

    upstream.script = reply
    answer = asyncio.ensure_future(fetch("/chat/stream", body=body(session_id="s")))
    await until(lambda: parts.services.turns.pending_approvals("s"), "a question")
    [question] = parts.services.turns.pending_approvals("s")
    await fetch(f"/sessions/s/permissions/{question.id}", body=b'{"decision": "allow"}')
    found = harness.parse_events((await answer).body.decode())
    assert [name for name, _ in found if name.startswith("permission")] == ["permission_request", "permission_resolved"]
    assert (workspace / "allowed").read_text() == "yes\n"


@pytest.mark.gen_test(timeout=30)
async def test_cancel_reaches_a_child_and_what_it_runs(
    fetch: Fetch, upstream: OpenAIServer, workspace: Path, log_watch: LogWatch
) -> None:
    def reply(request: fake.Body) -> fake.Reply:
        if not is_child(request):
            return fake.calls(("spawn_agents", {"tasks": [{"prompt": "sleep"}, {"prompt": "talk"}]}))
        if task_of(request) == "sleep":
            return fake.calls(("bash", {"command": "echo $$ > pid; sleep 987; touch survived"}))
        return fake.text("on ", "and ", "on", pause=5)

    upstream.script = reply
    answer = asyncio.ensure_future(fetch("/chat/stream", body=body(session_id="s")))
    await until(lambda: (workspace / "pid").exists() and len(upstream.requests) == 3, "both children at work")
    began = time.monotonic()
    cancelled = await fetch("/sessions/s/cancel", method="POST", body=b"")
    assert time.monotonic() - began < 1.5
    assert json.loads(cancelled.body) == {"cancelled": True}
    found = harness.parse_events((await answer).body.decode())
    assert found[-1][1]["code"] == "cancelled"
    await until(upstream.hung_up.is_set, "the other child's upstream was closed")
    assert not (workspace / "survived").exists()
    shown = json.loads((await fetch("/sessions/s")).body)["messages"]
    assert [m["role"] for m in shown] == ["user", "assistant", "tool"]
    assert "interrupted" in shown[-1]["content"]
