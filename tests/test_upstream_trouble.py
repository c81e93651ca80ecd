"""An upstream that misbehaves, and a daemon in a process of its own: the right events, never a traceback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import harness
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import OpenAIServer, Reply
from tests.harness import Stream

CONFIG = "first_event_timeout_secs = 0.5\nstall_timeout_secs = 0.5\n"
EMOJI = "Grüße 👩‍👩‍👧 and 🏳️‍🌈!"
WAVE = fake.chunk({"content": "hi 👋"}).replace(b"\\ud83d\\udc4b", "👋".encode())
HANG = 60.0


def single_bytes(reply: Reply) -> Reply:
    whole = b"".join(part for part in reply.parts if isinstance(part, bytes))
    return Reply([whole[n : n + 1] for n in range(len(whole))])


def raw_text(text: str) -> Reply:
    """An answer whose bytes are UTF-8 and not JSON escapes."""
    piece = b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}, ensure_ascii=False).encode()
    return Reply([piece + b"\n\n", fake.chunk({}, "stop"), fake.usage(), fake.DONE])


# What upstream replies, one after the other; the events, tokens joined; words of the error; the text.
CASES: dict[str, tuple[list[Reply], list[str], str, str]] = {
    "hangs before the first byte": ([Reply([HANG]), fake.text("ok")], ["start", "retry", "token", "done"], "", "ok"),
    "hangs in the middle": (
        [Reply([fake.chunk({"content": "half"}), HANG])],
        ["start", "token", "error"],
        "went silent",
        "half",
    ),
    "hangs behind comments": (
        [Reply([fake.chunk({"content": "half"}), *[piece for _ in range(40) for piece in (b": wait\n\n", 0.1)]])],
        ["start", "token", "error"],
        "went silent",
        "half",
    ),
    "cuts between tokens": ([Reply([fake.chunk({"content": "a"})], cut=True)], ["start", "token", "error"], "cut", "a"),
    "cuts in a token": (
        [Reply([fake.chunk({"content": "a"}), WAVE[: WAVE.index("👋".encode()) + 2]], cut=True)],
        ["start", "token", "error"],
        "cut",
        "a",
    ),
    "cuts before the first token once": (
        [Reply([], cut=True), fake.text("ok")],
        ["start", "retry", "token", "done"],
        "",
        "ok",
    ),
    "ends without an end": (
        [Reply([fake.chunk({"content": "a"})])],
        ["start", "token", "error"],
        "cut off",
        "a",
    ),
    "sends garbage": (
        [Reply([fake.chunk({"content": "a"}), b"data: \x00\xff{]\n\n"])],
        ["start", "token", "error"],
        "no chat completion",
        "a",
    ),
    "sends JSON of another kind": (
        [Reply([fake.chunk({"content": "a"}), b"data: [1, 2]\n\n"])],
        ["start", "token", "error"],
        "no chat completion",
        "a",
    ),
    "one byte a write with emoji": ([single_bytes(raw_text(EMOJI))], ["start", "token", "done"], "", EMOJI),
    "429 with Retry-After": (
        [fake.refusal(429, "slow down", Retry_After="1"), fake.text("ok")],
        ["start", "retry", "token", "done"],
        "",
        "ok",
    ),
    "500 thrice": (
        [*[fake.refusal(500, "oops")] * 3, fake.text("ok")],
        ["start", "retry", "retry", "retry", "token", "done"],
        "",
        "ok",
    ),
    "HTML with 200": (
        [Reply([b"<html><body>It works!</body></html>"], content_type="text/html")],
        ["start", "error"],
        "text/html instead of an event stream",
        "",
    ),
    "an error in the stream": (
        [Reply([fake.chunk({"content": "a"}), b'data: {"error": {"message": "out of memory", "code": 500}}\n\n'])],
        ["start", "token", "error"],
        "out of memory",
        "a",
    ),
    "an error with 200": (
        [Reply([b'{"error": {"message": "no such model", "code": 400}}'], content_type="application/json")],
        ["start", "error"],
        "no such model",
        "",
    ),
    "refuses": ([fake.refusal(400, "context too long")], ["start", "error"], "context too long", ""),
    "says nothing twice": ([fake.text(), fake.text()], ["start", "error"], "answered nothing", ""),
}


@pytest.fixture(scope="module")
def upstream() -> Iterator[OpenAIServer]:
    with OpenAIServer() as server:
        yield server


@pytest.fixture(scope="module")
def pawand(tmp_path_factory: pytest.TempPathFactory, upstream: OpenAIServer) -> Iterator[harness.Process]:
    place: Path = tmp_path_factory.mktemp("trouble")
    env = {"OPENAI_API_URL": upstream.url, "OPENAI_API_KEY": harness.API_KEY, "PAWAN_MODEL": harness.MODEL}
    with harness.serve(place / "w", place / "s", env=env, config=CONFIG) as process:
        yield process


def script(upstream: OpenAIServer, replies: list[Reply]) -> None:
    left = iter(replies)
    upstream.script = lambda _: next(left)


def merged(events: list[harness.Event]) -> list[str]:
    """The names, a run of tokens as one."""
    names = [name for name, _ in events]
    return [name for n, name in enumerate(names) if name != "token" or n == 0 or names[n - 1] != "token"]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_right_events(pawand: harness.Process, upstream: OpenAIServer, case: str) -> None:
    replies, names, words, text = CASES[case]
    session = case.replace(" ", "-")
    script(upstream, replies)
    events = Stream(pawand.url, "/chat/stream", {"message": "go", "session_id": session}).read_rest()
    assert merged(events) == names
    assert harness.tokens(events) == text
    last: dict[str, Any] = events[-1][1]
    if names[-1] == "error":
        assert words in last["message"]
        assert last["code"] == ("empty_answer" if "nothing" in words else "provider")
    else:
        assert last["content"] == text
    retries = [data["delay_ms"] for name, data in events if name == "retry"]
    expected = zip(retries, (1000, 2000, 4000), strict=False)
    assert all(0.8 * mean <= delay <= 1.2 * mean for delay, mean in expected)
    stored = [(m["role"], m["content"], m.get("interrupted", False)) for m in pawand.stored(session)]
    answer = [("assistant", text, names[-1] == "error")] if text else []
    assert stored == [("user", "go", False), *answer]
    # the next message works
    script(upstream, [fake.text("again")])
    status, answered = pawand.call("POST", "/chat", {"message": "go on", "session_id": session})
    assert (status, answered.get("content")) == (200, "again")
    assert "Traceback" not in pawand.log_text()


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case, (_, names, *_) in CASES.items() if names[-1] == "error"])
def test_never_a_200_with_an_apology(pawand: harness.Process, upstream: OpenAIServer, case: str) -> None:
    replies, _, words, _ = CASES[case]
    script(upstream, replies)
    status, answer = pawand.call("POST", "/chat", {"message": "go"})
    assert (status, set(answer)) == (500, {"error", "code"})
    assert words in answer["error"]
    assert "Traceback" not in pawand.log_text()
