"""What the agent does by its own judgement: shorten, turn to another model, notice that it goes round in circles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import harness
from tests.conftest import LogWatch
from tests.facts import check_facts
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import OpenAIServer
from tests.web.conftest import Fetch

NOTES = "You keep the notes"


def body(message: str = "hello", **more: Any) -> bytes:
    return json.dumps({"message": message, **more}).encode()


def is_for_notes(request: fake.Body) -> bool:
    return bool(request["messages"][0]["content"].startswith(NOTES))


def length(request: fake.Body) -> int:
    """In tokens, as a provider would count them."""
    return len(json.dumps(request["messages"])) // 4


def counted(reply: fake.Reply, request: fake.Body) -> fake.Reply:
    """The same with the usage that the request really had."""
    return fake.Reply([*reply.parts[:-2], fake.usage(length(request), 20), fake.DONE])


async def events(fetch: Fetch, message: str, **more: Any) -> list[harness.Event]:
    answer = await fetch("/chat/stream", body=body(message, **more))
    assert answer.code == 200
    return harness.parse_events(answer.body.decode())


# --- long conversations ---------------------------------------------------------------------------

GOAL = "Count the lines of all files, and end with the word FINISHED."


class LongTask:
    """A model with little room that reads a file in each of 60 iterations; it refuses what is too long for it."""

    def __init__(self, room: int, iterations: int = 60) -> None:
        self.room = room
        self.iterations = iterations
        self.read = 0
        self.notes: list[str] = []
        self.longest = 0

    def __call__(self, request: fake.Body) -> fake.Reply:
        assert length(request) < self.room, f"{length(request)} tokens"
        if is_for_notes(request):
            self.notes.append(request["messages"][1]["content"])
            return fake.text(f"Goal: count lines. State: {self.read} files read.")
        self.longest = max(self.longest, length(request))
        assert [m["content"] for m in request["messages"] if m["role"] == "user"] == [GOAL]
        if self.read == self.iterations:
            return fake.text("FINISHED")
        self.read += 1
        reply = fake.calls(("read_file", {"path": "text.txt", "offset": self.read}))
        return counted(reply, request)


@pytest.mark.settings(max_context_tokens=7000, max_tool_iterations=70)
@pytest.mark.gen_test(timeout=60)
async def test_a_task_of_sixty_iterations_outlives_a_small_context(
    fetch: Fetch, upstream: OpenAIServer, workspace: Path, state: Path
) -> None:
    (workspace / "text.txt").write_text("\n".join(f"line {n} of the file" for n in range(90)))
    upstream.script = model = LongTask(room=9000)
    found = await events(fetch, GOAL, session_id="long")
    name, done = found[-1]
    assert (name, done["content"], done["iterations"], done["tool_calls"]) == ("done", "FINISHED", 61, 60)
    assert len(model.notes) >= 2
    assert model.longest < 7000 + 1000  # what one iteration adds is known only after it
    assert GOAL in model.notes[0]
    assert "calls read_file" in model.notes[0]
    assert "State:" in model.notes[1], "the first summary is part of the second"
    stored = json.loads((state / "sessions" / "long.json").read_bytes())
    messages = stored["messages"]
    assert [m["role"] for m in messages].count("tool") == 60, "nothing is removed"
    summaries = [m for m in messages if m["role"] == "system"]
    assert len(summaries) == len(model.notes)
    assert "State:" in summaries[-1]["content"]
    check_facts(stored)
    shown = json.loads((await fetch("/sessions/long")).body)
    assert len(shown["messages"]) == len(messages)


@pytest.mark.settings(max_context_tokens=7000)
@pytest.mark.gen_test(timeout=30)
async def test_without_a_summary_what_was_called_is_listed(
    fetch: Fetch, upstream: OpenAIServer, workspace: Path
) -> None:
    (workspace / "text.txt").write_text("x" * 1900 + "\n" * 4)
    steps = iter(range(12))

    def reply(request: fake.Body) -> fake.Reply:
        if is_for_notes(request):
            return fake.refusal(401, "no notes")
        if (step := next(steps, None)) is None:
            return fake.text("done: " + request["messages"][0]["content"].partition("Calls that were made:")[2])
        return counted(fake.calls(("read_file", {"path": "text.txt", "limit": step + 1})), request)

    upstream.script = reply
    found = await events(fetch, GOAL, session_id="s")
    assert found[-1][0] == "done"
    assert 'read_file {"path":"text.txt","limit":1}' in found[-1][1]["content"]
    assert not [name for name, _ in found if name == "error"]


@pytest.mark.parametrize("code", ["context_length_exceeded", None])
@pytest.mark.gen_test(timeout=30)
async def test_a_conversation_that_the_provider_finds_too_long_is_shortened_once(
    fetch: Fetch, upstream: OpenAIServer, code: str | None
) -> None:
    for n in range(6):
        upstream.script = [fake.text(f"answer {n}")]
        upstream._next = 0
        await fetch("/chat", body=body(f"question {n}", session_id="s"))
    refusals = 0

    def reply(request: fake.Body) -> fake.Reply:
        nonlocal refusals
        if is_for_notes(request):
            return fake.text("Notes of five questions.")
        if len(request["messages"]) > 6:
            refusals += 1
            error = {"message": "This model's maximum context length is 4096 tokens.", "code": code}
            return fake.Reply([json.dumps({"error": error}).encode()], status=400, content_type="application/json")
        return fake.text(request["messages"][0]["content"][-24:])

    upstream.script = reply
    long = "x" * 90_000  # so that what is kept by its size is not all there is
    found = await events(fetch, f"the last one {long}", session_id="s")
    assert [name for name, _ in found] == ["start", "retry", "token", "done"]
    assert "maximum context length" in found[1][1]["reason"]
    assert found[-1][1]["content"] == "Notes of five questions."
    assert refusals == 1


@pytest.mark.gen_test(timeout=30)
async def test_a_single_message_that_is_too_long_is_the_provider_s_error(
    fetch: Fetch, upstream: OpenAIServer, log_watch: LogWatch
) -> None:
    log_watch.expect("too long")
    error = {"error": {"message": "too long", "code": "context_length_exceeded"}}
    reply = fake.Reply([json.dumps(error).encode()], status=400, content_type="application/json")
    upstream.script = [reply]
    found = await events(fetch, "x" * 1000)
    assert [name for name, _ in found] == ["start", "error"]
    assert found[-1][1]["code"] == "provider"
    assert len(upstream.requests) == 1


@pytest.mark.settings(max_context_tokens=4000, max_tool_iterations=12)
@pytest.mark.parametrize("what", ["goal", "prompt"])
@pytest.mark.gen_test(timeout=30)
async def test_what_stays_long_whatever_is_done_makes_no_summary_of_every_iteration(
    fetch: Fetch, upstream: OpenAIServer, workspace: Path, what: str
) -> None:
    (workspace / "a.txt").write_text("x\n" * 30)
    if what == "prompt":
        (workspace / "AGENTS.md").write_text("Be careful. " * 1600)
    steps = iter(range(10))
    notes = 0

    def reply(request: fake.Body) -> fake.Reply:
        nonlocal notes
        if is_for_notes(request):
            notes += 1
            return fake.text("notes")
        if (step := next(steps, None)) is None:
            return fake.text("done")
        return counted(fake.calls(("read_file", {"path": "a.txt", "offset": step})), request)

    upstream.script = reply
    found = await events(fetch, "look " * (4000 if what == "goal" else 1))
    assert found[-1][1]["content"] == "done"
    assert notes <= 2


@pytest.mark.settings(max_context_tokens=7000)
@pytest.mark.gen_test(timeout=30)
async def test_thoughts_that_are_not_sent_back_do_not_count(
    fetch: Fetch, upstream: OpenAIServer, workspace: Path
) -> None:
    steps = iter(range(4))

    def reply(request: fake.Body) -> fake.Reply:
        assert not is_for_notes(request)
        if (step := next(steps, None)) is None:
            return fake.text("done")
        parts = fake.calls(("list_directory", {"path": ".", "max_depth": step + 1})).parts
        return fake.Reply([*parts[:-2], fake.usage(length(request), 50_000), fake.DONE])

    upstream.script = reply
    assert (await events(fetch, "go"))[-1][1]["content"] == "done"


@pytest.mark.settings(max_context_tokens=7000)
@pytest.mark.gen_test(timeout=30)
async def test_a_provider_that_counts_no_prompt_is_not_believed(
    fetch: Fetch, upstream: OpenAIServer, workspace: Path
) -> None:
    (workspace / "a.txt").write_text("x" * 1900 + "\n" * 4)
    steps = iter(range(14))
    notes = 0

    def reply(request: fake.Body) -> fake.Reply:
        nonlocal notes
        assert length(request) < 12_000
        if is_for_notes(request):
            notes += 1
            return fake.text("notes")
        if (step := next(steps, None)) is None:
            return fake.text("done")
        parts = fake.calls(("read_file", {"path": "a.txt", "limit": step + 1})).parts
        return fake.Reply([*parts[:-2], fake.usage(0, 20), fake.DONE])

    upstream.script = reply
    await events(fetch, "go")
    assert notes >= 1


@pytest.mark.gen_test(timeout=30)
async def test_results_that_are_too_long_for_the_provider_are_clipped(
    fetch: Fetch, upstream: OpenAIServer, workspace: Path
) -> None:
    (workspace / "a.txt").write_text("some words\n" * 700)
    read = ("read_file", {"path": "a.txt"})

    def reply(request: fake.Body) -> fake.Reply:
        if is_for_notes(request):
            return fake.text("notes")
        if length(request) > 16_000:
            error = {"error": {"message": "too long", "code": "context_length_exceeded"}}
            return fake.Reply([json.dumps(error).encode()], status=400, content_type="application/json")
        if request["messages"][-1]["role"] == "user":
            return fake.calls(*[read] * 10)
        return fake.text(f"{sum('left out' in m['content'] for m in request['messages'] if m['role'] == 'tool')}")

    upstream.script = reply
    found = await events(fetch, "go")
    assert found[-1][0] == "done"
    assert found[-1][1]["content"] == "10"


@pytest.mark.gen_test(timeout=30)
async def test_what_an_empty_answer_showed_is_in_the_answer_that_follows_it(
    fetch: Fetch, upstream: OpenAIServer
) -> None:
    upstream.script = [fake.text("\n"), fake.text("ok")]
    found = await events(fetch, "go")
    assert harness.tokens(found) == found[-1][1]["content"] == "\nok"


# --- other models ---------------------------------------------------------------------------------


@pytest.mark.settings(max_retries=0, fallback_models=["second"])
@pytest.mark.gen_test(timeout=30)
async def test_a_turn_stays_with_the_model_that_answered(fetch: Fetch, upstream: OpenAIServer, state: Path) -> None:
    upstream.script = lambda request: (
        fake.refusal(503)
        if request["model"] != "second"
        else fake.calls(("list_directory", {}))
        if request["messages"][-1]["role"] == "user"
        else fake.text("done")
    )
    found = await events(fetch, "go", session_id="s")
    assert found[-1][1]["model"] == "second"
    assert [r["model"] for r in upstream.requests] == [harness.MODEL, "second", "second"]
    assert json.loads((state / "sessions" / "s.json").read_bytes())["model"] == "second"
    await events(fetch, "again", session_id="s")
    assert upstream.requests[3]["model"] == harness.MODEL, "a new turn begins with the configured one"


@pytest.mark.settings(max_retries=0, fallback_models=["second"])
@pytest.mark.parametrize(("status", "asked"), [(400, 2), (403, 2), (404, 2), (503, 2), (401, 1), (402, 1)])
@pytest.mark.gen_test(timeout=30)
async def test_another_model_is_asked_where_that_can_help(
    fetch: Fetch, upstream: OpenAIServer, log_watch: LogWatch, status: int, asked: int
) -> None:
    if asked == 1:
        log_watch.expect("turn failed")
    upstream.script = lambda request: fake.text("ok") if request["model"] == "second" else fake.refusal(status)
    found = await events(fetch, "go")
    assert len(upstream.requests) == asked
    assert found[-1][0] == ("done" if asked == 2 else "error")


@pytest.mark.settings(model="mistral-large")
@pytest.mark.gen_test(timeout=30)
async def test_mistral_gets_the_ids_it_wants(fetch: Fetch, upstream: OpenAIServer, workspace: Path) -> None:
    written = '[TOOL_CALLS][{"name": "list_directory", "arguments": {}}]'
    upstream.script = [fake.calls(("list_directory", {})), fake.text(written), fake.text("done")]
    found = await events(fetch, "go")
    assert found[-1][1]["content"] == "done"
    assert found[-1][1]["tool_calls"] == 2


@pytest.mark.gen_test(timeout=30)
async def test_a_tool_that_does_not_exist_does_not_spoil_the_session(fetch: Fetch, upstream: OpenAIServer) -> None:
    upstream.script = [fake.calls(("functions.read file\n", {})), fake.text("sorry"), fake.text("fine")]
    assert (await events(fetch, "go", session_id="s"))[-1][1]["content"] == "sorry"
    assert (await events(fetch, "again", session_id="s"))[-1][1]["content"] == "fine"


@pytest.mark.gen_test(timeout=30)
async def test_a_call_that_was_cut_off_is_told_as_such(fetch: Fetch, upstream: OpenAIServer) -> None:
    head = {"index": 0, "id": "c1", "function": {"name": "write_file", "arguments": '{"path": "a.txt", "content": "xx'}}
    upstream.script = [
        fake.Reply([fake.chunk({"tool_calls": [head]}), fake.chunk({}, "length"), fake.usage(), fake.DONE]),
        fake.text("I will write less."),
    ]
    await events(fetch, "go")
    assert "max_tokens" in upstream.requests[1]["messages"][-1]["content"]


@pytest.mark.parametrize("arguments", ["", "{"])
@pytest.mark.gen_test(timeout=30)
async def test_a_call_that_was_cut_off_before_its_arguments_does_not_run(
    fetch: Fetch, upstream: OpenAIServer, arguments: str
) -> None:
    """`list_directory` could do without any; the model was about to give it some."""
    heads = [{"index": at, "id": f"c{at}", "function": {"name": "list_directory", "arguments": text}}
             for at, text in enumerate(["{}", arguments])]  # fmt: skip
    upstream.script = [
        fake.Reply([fake.chunk({"tool_calls": heads}), fake.chunk({}, "length"), fake.usage(), fake.DONE]),
        fake.text("Again."),
    ]
    found = await events(fetch, "go")
    assert [data["id"] for name, data in found if name == "tool_start"] == ["c0"]
    assert "max_tokens" in upstream.requests[1]["messages"][-1]["content"]


# --- going round in circles -----------------------------------------------------------------------


@pytest.mark.gen_test(timeout=30)
async def test_the_third_identical_call_in_a_row_is_noted(fetch: Fetch, upstream: OpenAIServer) -> None:
    same = ("glob_search", {"pattern": "*.py"})
    upstream.script = [
        fake.calls(same),
        fake.calls(same),
        fake.calls(("glob_search", {"pattern": "*.rs"})),
        fake.calls(same, same, same),
        fake.text("done"),
    ]
    await fetch("/chat", body=body())
    results = [json.loads(m["content"]) for m in upstream.requests[-1]["messages"] if m["role"] == "tool"]
    assert ["advice" in result for result in results] == [False, False, False, False, False, True]
    assert "change your approach" in results[-1]["advice"]
    assert results[-1]["files"] == [], "the call was made all the same"


# --- thinking -------------------------------------------------------------------------------------


def thinking(*thoughts: str, then: str = "") -> fake.Reply:
    parts: list[bytes | float] = [fake.chunk({"reasoning_content": thought}) for thought in thoughts]
    parts += [fake.chunk({"content": then}), fake.chunk({}, "stop"), fake.usage(), fake.DONE]
    return fake.Reply(parts)


@pytest.mark.settings(thinking_budget=10, model="qwen-test")
@pytest.mark.gen_test(timeout=30)
async def test_a_model_that_thinks_over_its_budget_is_asked_not_to(fetch: Fetch, upstream: OpenAIServer) -> None:
    upstream.script = [thinking(*["hm " * 10] * 5, then="never"), fake.text("quick")]
    found = await events(fetch, "think")
    names = [name for name, _ in found]
    assert names.count("retry") == 1
    assert found[-1][1]["content"] == "quick"
    assert [r["chat_template_kwargs"]["thinking"] for r in upstream.requests] == [True, False]


@pytest.mark.settings(thinking_budget=10)
@pytest.mark.gen_test(timeout=30)
async def test_a_model_without_a_switch_thinks_as_it_likes(fetch: Fetch, upstream: OpenAIServer) -> None:
    upstream.script = [thinking(*["hm " * 10] * 5, then="at last")]
    found = await events(fetch, "think")
    assert found[-1][1]["content"] == "at last"


@pytest.mark.settings(model="deepseek-test")
@pytest.mark.gen_test(timeout=30)
async def test_thoughts_of_this_turn_go_back_to_models_that_want_them(fetch: Fetch, upstream: OpenAIServer) -> None:
    call = fake.calls(("list_directory", {}))
    upstream.script = [
        fake.Reply([fake.chunk({"reasoning_content": "I must look."}), *call.parts]),
        fake.text("empty"),
        fake.text("bye"),
    ]
    await fetch("/chat", body=body(session_id="s"))
    await fetch("/chat", body=body("and now?", session_id="s"))
    told = [m["reasoning_content"] for r in upstream.requests for m in r["messages"] if m.get("tool_calls")]
    assert told == ["I must look.", ""], "those of an earlier turn are not known any more"
