"""`OpenAIChat` against a real server: what comes out of every kind of stream."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import aclosing
from typing import Any

import pytest

from pawand.errors import ProviderError
from pawand.event_loop import Pace
from pawand.providers import answer, openai_chat
from pawand.providers.base import CompletionRequest, Finish, Item, Reasoning, Text
from pawand.providers.openai_chat import OpenAIChat
from pawand.redact import Redactor
from pawand.wire import Usage
from tests.fakes import openai_server as fake
from tests.fakes.openai_server import DONE, OpenAIServer, Reply, chunk

KEY = "sk-secret-0123456789"
MESSAGES = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]


TOOLS = [{"type": "function", "function": {"name": "one", "parameters": {"type": "object"}}}]


def ask(url: str, key: str | None = KEY, first: float = 5.0, stall: float = 5.0, **more: Any) -> list[Item]:
    """All items of one completion; `more` are fields of the request."""

    async def run() -> list[Item]:
        provider = OpenAIChat(
            url=url,
            key=key,
            redactor=Redactor([KEY]),
            pace=Pace(),
            first_event_secs=first,
            stall_secs=stall,
            options={"temperature": 0.5, "max_tokens": 7},
            reasoning=True,
        )
        try:
            request = CompletionRequest(**{"model": "qwen", "messages": MESSAGES, "tools": []} | more)
            async with aclosing(provider.stream(request)) as batches:
                return [item async for items in batches for item in items]
        finally:
            await provider.aclose()

    return asyncio.run(run())


def finish_of(upstream: OpenAIServer, *parts: bytes, content_type: str = "text/event-stream") -> Finish:
    upstream.script = lambda _: Reply(parts, content_type=content_type)
    last = ask(upstream.url)[-1]
    assert isinstance(last, Finish)
    return last


def call_delta(**fields: Any) -> bytes:
    return chunk({"tool_calls": [fields]})


def test_the_request_holds_what_was_configured(upstream: OpenAIServer) -> None:
    upstream.script = [fake.text("a", "b")]
    assert ask(upstream.url) == [
        Text("a"), Text("b"), Finish(reason="stop", tool_calls=[], usage=Usage(10, 5, 15))
    ]  # fmt: skip
    body = upstream.requests[0]
    assert (body["temperature"], body["max_tokens"], body["stream"]) == (0.5, 7, True)
    assert body["stream_options"] == {"include_usage": True}
    assert body["chat_template_kwargs"] == {"thinking": True, "enable_thinking": True}
    assert "tools" not in body
    assert upstream.headers[0]["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("model", ["gpt-5", "gpt-5-mini", "openai/gpt-5.1", "o3", "o4-mini-2025-04-16"])
def test_openai_s_reasoning_models_get_the_limit_alone(upstream: OpenAIServer, model: str) -> None:
    upstream.script = [fake.text("a")]
    ask(upstream.url, model=model)
    body = upstream.requests[0]
    assert body["max_completion_tokens"] == 7
    assert not {"temperature", "top_p", "max_tokens"} & body.keys()


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4.1-mini", "gpt-oss-120b", "olmo-3", "phi-o3"])
def test_other_models_get_the_sampling_settings(upstream: OpenAIServer, model: str) -> None:
    upstream.script = [fake.text("a")]
    ask(upstream.url, model=model)
    assert (upstream.requests[0]["temperature"], upstream.requests[0]["max_tokens"]) == (0.5, 7)


def test_an_answer_without_end_is_cut_off(upstream: OpenAIServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "MAX_ANSWER_BYTES", 2 * 1024 * 1024)
    upstream.script = [Reply([chunk({"content": "x" * 100_000})] * 50)]
    with pytest.raises(ProviderError, match="more than 2 MiB"):
        ask(upstream.url)


def test_a_request_may_do_without_thinking(upstream: OpenAIServer) -> None:
    upstream.script = [fake.text("a")]
    ask(upstream.url, thinking=False)
    assert upstream.requests[0]["chat_template_kwargs"] == {"thinking": False, "enable_thinking": False}


def test_without_a_key_no_authorization_is_sent(upstream: OpenAIServer) -> None:
    upstream.script = [fake.text("a")]
    ask(upstream.url, key=None)
    assert "authorization" not in upstream.headers[0]


CALLS: dict[str, tuple[list[bytes], list[tuple[str, Any]]]] = {
    "two calls, their pieces mixed": (
        [
            call_delta(index=0, id="a", function={"name": "one", "arguments": '{"x'}),
            call_delta(index=1, id="b", function={"name": "two", "arguments": ""}),
            call_delta(index=0, function={"arguments": '": 1}'}),
            call_delta(index=1, function={"arguments": '{"y": [2]}'}),
        ],
        [("one", {"x": 1}), ("two", {"y": [2]})],
    ),
    "no index, no id, one whole call a chunk": (
        [
            call_delta(function={"name": "one", "arguments": "{}"}),
            call_delta(function={"name": "two", "arguments": '{"a":1}'}),
        ],
        [("one", {}), ("two", {"a": 1})],
    ),
    "no index, pieces follow their head": (
        [
            call_delta(id="a", function={"name": "one", "arguments": '{"a"'}),
            call_delta(function={"arguments": ":1}"}),
        ],
        [("one", {"a": 1})],
    ),
    "index 0 for every call, new id": (
        [
            call_delta(index=0, id="a", function={"name": "one", "arguments": "{}"}),
            call_delta(index=0, id="b", function={"name": "two", "arguments": "{}"}),
        ],
        [("one", {}), ("two", {})],
    ),
    "index 0 for every call, new id, arguments apart": (
        [
            call_delta(index=0, id="a", function={"name": "one"}),
            call_delta(index=0, function={"arguments": '{"x":1}'}),
            call_delta(index=0, id="b", function={"name": "one"}),
            call_delta(index=0, function={"arguments": '{"x":2}'}),
        ],
        [("one", {"x": 1}), ("one", {"x": 2})],
    ),
    "index 0 for every call, no id": (
        [
            call_delta(index=0, function={"name": "one", "arguments": '{"x":1}'}),
            call_delta(index=0, function={"name": "two", "arguments": '{"x":2}'}),
        ],
        [("one", {"x": 1}), ("two", {"x": 2})],
    ),
    "the same id twice": (
        [
            call_delta(index=0, id="a", function={"name": "one", "arguments": "{}"}),
            call_delta(index=1, id="a", function={"name": "two", "arguments": "{}"}),
        ],
        [("one", {}), ("two", {})],
    ),
    "the head repeated in each chunk": (
        [
            call_delta(index=0, id="a", function={"name": "one", "arguments": '{"x"'}),
            call_delta(index=0, id="a", function={"name": "one", "arguments": ":1}"}),
        ],
        [("one", {"x": 1})],
    ),
    "no index, the head repeated in each chunk": (
        [
            call_delta(id="a", function={"name": "one", "arguments": '{"x"'}),
            call_delta(id="a", function={"name": "one", "arguments": ":1}"}),
        ],
        [("one", {"x": 1})],
    ),
    "no index, ids mixed": (
        [
            call_delta(id="a", function={"name": "one", "arguments": '{"x"'}),
            call_delta(id="b", function={"name": "two", "arguments": '{"y"'}),
            call_delta(id="a", function={"arguments": ":1}"}),
            call_delta(id="b", function={"arguments": ":2}"}),
        ],
        [("one", {"x": 1}), ("two", {"y": 2})],
    ),
    "arguments as an object": (
        [call_delta(index=0, id="a", function={"name": "one", "arguments": {"x": 1}})],
        [("one", {"x": 1})],
    ),
    "arguments nested beyond all measure": (
        [call_delta(index=0, id="a", function={"name": "one", "arguments": '{"x":' * 600 + "1" + "}" * 600})],
        [("one", '{"x":' * 600 + "1" + "}" * 600)],
    ),
    "no arguments": ([call_delta(index=0, id="a", function={"name": "one"})], [("one", {})]),
    "arguments that are no JSON": (
        [call_delta(index=0, id="a", function={"name": "one", "arguments": '{"x": '})],
        [("one", '{"x":')],
    ),
    "a lone surrogate in the arguments": (
        [call_delta(index=0, id="a", function={"name": "one", "arguments": '{"x": "a\\ud83d"}'})],
        [("one", {"x": "a?"})],
    ),
    "a lone surrogate in an object": (
        [call_delta(index=0, id="a", function={"name": "one", "arguments": {"\ud83dx": "a\ud83d"}})],
        [("one", {"?x": "a?"})],
    ),
    "a lone surrogate in what is no JSON": (
        [call_delta(index=0, id="a", function={"name": "one", "arguments": "not \ud83d json"})],
        [("one", "not ? json")],
    ),
    "thinking in the arguments": (
        [
            call_delta(index=0, id="a", function={"name": "one", "arguments": '<think>{"x"</think>{"x": '}),
            call_delta(index=0, function={"arguments": '<THINK>\\n2</think> "<think>y</think>"}'}),
        ],
        [("one", {"x": ""})],
    ),
    "thinking in a text that is JSON": (
        [call_delta(index=0, id="a", function={"name": "one", "arguments": '{"x": "<think>y</think>"}'})],
        [("one", {"x": "<think>y</think>"})],
    ),
    "thinking in the arguments that does not end": (
        [call_delta(index=0, id="a", function={"name": "one", "arguments": "<think>a</think>{<think>"})],
        [("one", "<think>a</think>{<think>")],
    ),
    "a name that is missing": ([call_delta(index=0, id="a", function={"arguments": "{}"})], []),
}


@pytest.mark.parametrize("kind", CALLS)
def test_tool_calls_of_every_shape(upstream: OpenAIServer, kind: str) -> None:
    parts, wanted = CALLS[kind]
    found = finish_of(upstream, *parts, chunk({}, "tool_calls"), DONE).tool_calls
    assert [(call.name, call.arguments) for call in found] == wanted
    assert all(call.id for call in found)
    assert len({call.id for call in found}) == len(found)


ENDS: dict[str, list[bytes]] = {
    "finish reason and [DONE]": [chunk({"content": "x"}, "stop"), DONE],
    "finish reason alone": [chunk({"content": "x"}, "stop")],
    "[DONE] alone": [chunk({"content": "x"}), DONE],
    "[DONE] without a blank line": [chunk({"content": "x"}), b"data: [DONE]"],
    "no space after the colon, CRLF, comments": [
        b": hello\r\n\r\n", chunk({"content": "x"}, "stop").replace(b"data: ", b"data:").replace(b"\n", b"\r\n"), DONE,
    ],
    "a last chunk without choices": [
        chunk({"content": "x"}, "stop"), b'data: {"choices": null}\n\n', DONE,
    ],
    "an event name before the data": [b"event: message\n" + chunk({"content": "x"}, "stop"), DONE],
}  # fmt: skip


@pytest.mark.parametrize("kind", ENDS)
def test_ways_to_end(upstream: OpenAIServer, kind: str) -> None:
    upstream.script = [Reply(ENDS[kind])]
    assert ask(upstream.url) == [Text("x"), Finish(reason="stop", tool_calls=[], usage=None)]


def test_half_a_character_waits_for_the_other_half(upstream: OpenAIServer) -> None:
    halves = [b'{"content": "a\\ud83e"}', b'{"content": "\\udd9cb"}', b'{"content": "c\\ud83e"}']
    events = [b'data: {"choices": [{"delta": %b}]}\n\n' % half for half in halves]
    upstream.script = [Reply([*events, chunk({}, "stop"), DONE])]
    assert ask(upstream.url)[:3] == [Text("a"), Text("🦜b"), Text("c")]


def test_counts_that_are_no_whole_numbers(upstream: OpenAIServer) -> None:
    last = chunk({"content": "x"}, "stop")
    for counts, wanted in (
        (b'{"prompt_tokens": 1.5, "completion_tokens": null, "total_tokens": 2.0}', Usage(1, 0, 2)),
        (b'{"prompt_tokens": 1e300, "completion_tokens": -3, "total_tokens": "x"}', Usage(0, 0, 0)),
        (b'{"prompt_tokens": Infinity, "completion_tokens": 4}', Usage(0, 4, 4)),
    ):
        assert finish_of(upstream, last, b'data: {"choices": [], "usage": %b}\n\n' % counts, DONE).usage == wanted


def test_a_byte_order_mark_is_passed_over(upstream: OpenAIServer) -> None:
    upstream.script = [Reply([b"\xef\xbb\xbf" + chunk({"content": "x"}, "stop"), DONE])]
    assert ask(upstream.url)[0] == Text("x")


def test_a_long_conversation_is_sent_as_it_is(upstream: OpenAIServer) -> None:
    upstream.script = [fake.text("a")]
    ask(upstream.url)
    assert upstream.requests[0]["messages"] == MESSAGES


def test_a_connection_cut_after_the_last_word_is_fine(upstream: OpenAIServer) -> None:
    upstream.script = [Reply([chunk({"content": "x"}, "length"), 0.2], cut=True)]
    assert ask(upstream.url) == [Text("x"), Finish(reason="length", tool_calls=[], usage=None)]


def test_a_server_that_does_not_stream(upstream: OpenAIServer) -> None:
    body = {"choices": [{"message": {"role": "assistant", "content": "whole"}, "finish_reason": "stop"}]}
    upstream.script = [Reply([json.dumps(body).encode()], content_type="application/json")]
    assert ask(upstream.url) == [Text("whole"), Finish(reason="stop", tool_calls=[], usage=None)]


def test_reasoning_under_both_names_and_content_in_parts(upstream: OpenAIServer) -> None:
    parts = [{"type": "thinking", "thinking": "t"}, {"type": "text", "text": "part"}]
    upstream.script = [
        Reply([chunk({"reasoning": "a"}), chunk({"reasoning_content": "b"}), chunk({"content": parts}, "stop"), DONE])
    ]
    assert ask(upstream.url)[:3] == [Reasoning("a"), Reasoning("b"), Text("part")]


CALL = '<tool_call>{"name": "one", "arguments": {"x": 1}}</tool_call>'


def test_thinking_and_calls_in_the_text(upstream: OpenAIServer) -> None:
    upstream.script = [fake.text(*f"<think>hm</think>\nSo: {CALL}")]
    *items, last = ask(upstream.url, tools=TOOLS)
    assert items == [*map(Reasoning, "hm"), *map(Text, "So: ")]
    assert isinstance(last, Finish)
    assert (last.reason, last.usage) == ("tool_calls", Usage(10, 5, 15))
    assert [(call.name, call.arguments) for call in last.tool_calls] == [("one", {"x": 1})]


def test_what_was_held_comes_before_the_end(upstream: OpenAIServer) -> None:
    upstream.script = [fake.text("a", "<tool_call>", '{"name": ')]
    assert ask(upstream.url, tools=TOOLS) == [
        Text("a"), Text('<tool_call>{"name": '), Finish(reason="stop", tool_calls=[], usage=Usage(10, 5, 15))
    ]  # fmt: skip


@pytest.mark.parametrize("more", [{"tools": []}, {"tools": TOOLS, "tool_choice": "none"}])
def test_calls_in_the_text_need_a_tool(upstream: OpenAIServer, more: dict[str, Any]) -> None:
    upstream.script = [fake.text(CALL)]
    assert ask(upstream.url, **more) == [Text(CALL), Finish(reason="stop", tool_calls=[], usage=Usage(10, 5, 15))]


def test_the_reason_of_a_cut_answer_stays(upstream: OpenAIServer) -> None:
    upstream.script = [fake.text(CALL, finish="length")]
    last = ask(upstream.url, tools=TOOLS)[-1]
    assert isinstance(last, Finish)
    assert (last.reason, len(last.tool_calls)) == ("length", 1)


def test_real_calls_win_over_those_in_the_text(upstream: OpenAIServer) -> None:
    real = call_delta(index=0, id="a", function={"name": "one", "arguments": "{}"})
    upstream.script = [Reply([chunk({"content": f"a{CALL}b"}), real, chunk({"content": CALL}, "tool_calls"), DONE])]
    *items, last = ask(upstream.url, tools=TOOLS)
    assert items == [Text("ab"), Text(CALL), Text(CALL)]
    assert isinstance(last, Finish)
    assert [(call.id, call.arguments) for call in last.tool_calls] == [("a", {})]


FAILURES: dict[str, tuple[Reply, bool, str]] = {
    "400": (fake.refusal(400, "too long"), False, "the provider answered 400: too long"),
    "401": (fake.refusal(401, f"{KEY} no"), False, "401 (the API key was refused): [redacted] no"),
    "404": (fake.refusal(404, "no model"), False, "404"),
    "408": (fake.refusal(408), True, "408"),
    "409": (fake.refusal(409), True, "409"),
    "429": (fake.refusal(429), True, "429 (rate limit)"),
    "500": (fake.refusal(500), True, "500"),
    "529": (fake.refusal(529), True, "529"),
    "a redirect": (Reply(status=302, headers={"Location": "http://127.0.0.1:9/"}), False, "302"),
    "500 in HTML": (Reply([b"<h1>oops</h1>"], status=502, content_type="text/html"), True, "502"),
    "HTML with 200": (Reply([b"<h1>login</h1>"], content_type="text/html"), False, "text/html"),
    "an error object with 200": (
        Reply([b'{"error": {"message": "bad"}}'], content_type="application/json"), True, "bad"
    ),
    "an error inside the stream": (Reply([b'data: {"error": "bad thing"}\n\n']), True, "bad thing"),
    "vLLM's error in the stream": (
        Reply([b'data: {"object": "error", "message": "too long", "code": 400}\n\n']), False, "too long"
    ),
    "vLLM's error with 200": (
        Reply([b'{"object": "error", "message": "busy", "code": 503}'], content_type="application/json"), True, "busy"
    ),
    "a long text with the key at its cut": (fake.refusal(400, "x" * 480 + KEY), False, "xxx"),
    "the key in the content type": (Reply([b"x"], content_type=f"text/{KEY}"), False, "text/[redacted]"),
    "detail of another kind": (
        Reply([b'{"detail": "wrong"}'], status=422, content_type="application/json"), False, "wrong"
    ),
    "nothing": (Reply(), True, "cut off before its end"),
    "garbage": (Reply([b"data: <<<\n\n"]), True, "no chat completion"),
    "garbage that holds the key": (Reply([f"data: {KEY}\n\n".encode()]), True, "[redacted]"),
    "deep": (Reply([b'data: {"choices": ' + b"[" * 100_000 + b"\n\n"]), True, "no chat completion"),
    "wrong types": (Reply([b'data: {"choices": [{"delta": 7}]}\n\n']), True, "no chat completion"),
    "cut": (Reply([chunk({"content": "x"})], cut=True), True, "cut the connection"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAILURES)
def test_failures_are_typed(upstream: OpenAIServer, kind: str) -> None:
    reply, retriable, words = FAILURES[kind]
    upstream.script = [reply]
    with pytest.raises(ProviderError) as caught:
        ask(upstream.url)
    assert words in caught.value.message
    assert caught.value.retriable is retriable
    assert "\n" not in caught.value.message
    assert KEY[:10] not in caught.value.message


def test_retry_after_is_read(upstream: OpenAIServer) -> None:
    upstream.script = [fake.refusal(429, Retry_After="7")]
    with pytest.raises(ProviderError) as caught:
        ask(upstream.url)
    assert (caught.value.status, caught.value.retry_after) == (429, 7.0)


@pytest.mark.parametrize(
    "parts",
    [[2.0], [b": ping\n\n", 0.1] * 20, [chunk({"content": "x"}), *[b": ping\n\n", 0.1] * 20]],
    ids=["silence", "comments alone", "comments after a token"],
)
def test_a_stall_is_an_error_that_keep_alives_do_not_hide(upstream: OpenAIServer, parts: list[bytes | float]) -> None:
    upstream.script = [Reply(parts)]
    with pytest.raises(ProviderError, match="went silent") as caught:
        ask(upstream.url, first=0.5, stall=0.5)
    assert caught.value.retriable
    assert upstream.hung_up.wait(5)


def test_patience_for_the_first_event_is_none_for_those_that_follow(upstream: OpenAIServer) -> None:
    upstream.script = [Reply([chunk({"content": "x"}), 30.0])]
    with pytest.raises(ProviderError, match="went silent"):
        ask(upstream.url, first=300, stall=0.3)
    assert upstream.hung_up.wait(5)


def test_a_server_that_keeps_the_connection_after_the_last_word_keeps_nobody(
    upstream: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai_chat, "LINGER_SECS", 0.3)
    upstream.script = [Reply([chunk({"content": "x"}), chunk({}, "stop"), 30.0])]
    assert ask(upstream.url, first=300, stall=300) == [Text("x"), Finish(reason="stop", tool_calls=[], usage=None)]
    assert upstream.hung_up.wait(5)


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ProviderError, match=f"cannot connect to http://127.0.0.1:{port}/v1") as caught:
        ask(f"http://127.0.0.1:{port}/v1")
    assert caught.value.retriable


TOO_LONG = [
    "This model's maximum context length is 8192 tokens. However, your messages resulted in 8545 tokens.",
    "This model's maximum context length is 4096 tokens. However, you requested 5000 output tokens and your prompt ...",
    "You passed 9000 input tokens, but the model's context length is only 8192 tokens",
    "The decoder prompt (length 9000) is longer than the maximum model length of 8192.",
    "The input (9000 tokens) is longer than the model's context length (8192 tokens).",
    "the request exceeds the available context size. try increasing the context size or enable context shift",
    "Requested tokens (2285) exceed context window of 2048",
    "Your input exceeds the context window of this model. Please adjust your input and try again.",
    "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
    "the input length exceeds the context length",
    "prompt too long; exceeded max context length by 17 tokens",
    "The number of tokens to keep from the initial prompt is greater than the context length",
    "prompt is too long: 213462 tokens > 200000 maximum",
    "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000",
    "Please reduce the length of the messages or completion.",
    "This model's maximum prompt length is 131072 but the request contains 537812 tokens.",
    "The input token count (1196265) exceeds the maximum number of tokens allowed (1048575).",
    "Input is too long for requested model.",
    "Your request exceeded model token limit: 262144 (requested: 300000)",
    "invalid params, context window exceeds limit (2013)",
    "Prompt exceeds max length",
    "Range of input length should be [1, 129024]",
    "context_length_exceeded",
]


@pytest.mark.parametrize("message", TOO_LONG)
@pytest.mark.parametrize("status", [200, 400, 422, 500])
def test_a_conversation_that_is_too_long(upstream: OpenAIServer, status: int, message: str) -> None:
    refused = json.dumps({"error": {"message": message}}).encode()
    upstream.script = [Reply([refused], status=status, content_type="application/json")]
    with pytest.raises(ProviderError) as caught:
        ask(upstream.url)
    assert (caught.value.context_length, caught.value.retriable) == (True, False)


JSON = "application/json"
KINDS: dict[str, tuple[Reply, bool]] = {
    "OpenAI's code": (
        Reply([b'{"error": {"message": "no", "code": "context_length_exceeded"}}'], status=400, content_type=JSON), True
    ),
    "llama.cpp's type, any status": (
        Reply([b'{"error": {"message": "no", "type": "exceed_context_size_error", "code": 503}}'], status=503,
              content_type=JSON), True
    ),
    "llama.cpp's type in the stream": (
        Reply([b'data: {"error": {"message": "no", "type": "exceed_context_size_error", "code": 500}}\n\n']), True
    ),
    "vLLM in the stream": (
        Reply([b'data: {"object": "error", "message": "maximum context length is 9", "code": 400}\n\n']), True
    ),
    "a bare text": (Reply([b'{"error": "prompt too long"}'], status=400, content_type=JSON), True),
    "413": (fake.refusal(413, "Request Entity Too Large"), True),
    "413 in HTML": (Reply([b"<h1>413</h1>"], status=413, content_type="text/html"), True),
    "too many at once": (fake.refusal(429, "reduce the length of the messages or wait"), False),
    "no room for the words": (fake.refusal(401, "maximum context length"), False),
    "another 400": (fake.refusal(400, "context is required: max_tokens is too large"), False),
    "another code": (
        Reply([b'{"error": {"message": "no", "code": ["context_length_exceeded"]}}'], status=400, content_type=JSON),
        False,
    ),
    "in the stream, a rate limit": (
        Reply([b'data: {"error": {"message": "maximum context length", "code": 429}}\n\n']), False
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_how_a_provider_says_too_long(upstream: OpenAIServer, kind: str) -> None:
    reply, too_long = KINDS[kind]
    upstream.script = [reply]
    with pytest.raises(ProviderError) as caught:
        ask(upstream.url)
    assert caught.value.context_length is too_long
    assert not (too_long and caught.value.retriable)
