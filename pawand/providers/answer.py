"""One answer of a chat completions server, put together from its chunks: text, reasoning, tool calls, usage."""

from __future__ import annotations

import json
import uuid
from typing import Any

import msgspec
from msgspec import Struct

from pawand.errors import ProviderError
from pawand.providers.base import Finish, Item, Reasoning, Text
from pawand.redact import Redactor
from pawand.wire import ToolCall, Usage

MAX_ERROR_CHARS = 500
MAX_SAMPLE_CHARS = 80
MAX_DEPTH = 100
MAX_COUNT = 2**53
RETRIABLE = frozenset({408, 409, 429})
"""Statuses below 500 after which the same request may succeed."""


class _Function(Struct):
    name: str | None = None
    arguments: Any = None


class _CallDelta(Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(Struct):
    content: str | list[Any] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_CallDelta] | None = None


class _Choice(Struct):
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: str | None = None


class _Usage(Struct):
    prompt_tokens: Any = None
    completion_tokens: Any = None
    total_tokens: Any = None


class _Chunk(Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None
    object: Any = None
    message: Any = None
    code: Any = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class Answer:
    """Collects what is known only at the end of a completion."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._finish_reason: str | None = None
        self._usage: Usage | None = None
        self._calls: list[_PartialCall] = []
        self._half = ""
        self.complete = False
        """The server said that nothing more follows."""

    @property
    def finished(self) -> bool:
        """The model has ended its answer; usage may follow."""
        return self._finish_reason is not None or self.complete

    def read(self, data: bytes) -> list[Item]:
        if data == b"[DONE]":
            self.complete = True
            return []
        try:
            chunk = _parse(data)
        except ValueError as error:
            sample = self._redactor.log(data[:MAX_ERROR_CHARS].decode("utf-8", "replace"))[:MAX_SAMPLE_CHARS]
            raise ProviderError(f"the provider sent no chat completion but {sample!r}", retriable=True) from error
        if chunk.error or chunk.object == "error":
            raise self._reported(chunk)
        if chunk.usage is not None:
            usage = chunk.usage
            prompt, completion = _count(usage.prompt_tokens), _count(usage.completion_tokens)
            self._usage = Usage(prompt, completion, _count(usage.total_tokens) or prompt + completion)
        items: list[Item] = []
        for choice in (chunk.choices or [])[:1]:
            self._finish_reason = choice.finish_reason or self._finish_reason
            delta = choice.delta or choice.message
            if delta is None:
                continue
            reasoning = delta.reasoning_content or delta.reasoning
            if reasoning:
                items.append(Reasoning(reasoning))
            if delta.content:
                items.append(Text(self._whole(delta.content)))
            for call in delta.tool_calls or ():
                self._add_call(call)
        return items

    def _reported(self, chunk: _Chunk) -> ProviderError:
        """An error that came in place of an answer (`{"error": …}`, or vLLM's `{"object": "error", …}`)."""
        error = chunk.error or {"message": chunk.message}
        code = error.get("code", chunk.code) if isinstance(error, dict) else chunk.code
        final = isinstance(code, int) and 400 <= code < 500 and code not in RETRIABLE
        return ProviderError(f"the provider reported: {detail_of(error, self._redactor)}", retriable=not final)

    def _whole(self, content: str | list[Any]) -> str:
        """The text; half a surrogate pair at its end waits for the other half in the next chunk."""
        text = self._half + (content if isinstance(content, str) else _joined(content))
        self._half = ""
        if not text.isascii():
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
            if "\ud800" <= text[-1:] <= "\udbff":
                text, self._half = text[:-1], text[-1]
        return text

    def _add_call(self, delta: _CallDelta) -> None:
        """Servers tell calls apart by id, by index, or (one whole call a chunk) by neither; some repeat the head."""
        function = delta.function or _Function()
        call = self._known_call(delta, function)
        if call is None:
            call = _PartialCall(index=delta.index)
            self._calls.append(call)
        call.id = call.id or delta.id or ""
        if function.name and function.name != call.name:
            call.name += function.name
        if isinstance(function.arguments, str):
            call.arguments.append(function.arguments)
        elif function.arguments is not None:
            call.arguments.append(msgspec.json.encode(function.arguments).decode())

    def _known_call(self, delta: _CallDelta, function: _Function) -> _PartialCall | None:
        for call in self._calls:
            if delta.id and call.id == delta.id and delta.index in (None, call.index):
                return call
        for call in reversed(self._calls):
            if delta.index is not None and call.index == delta.index:
                other_id = delta.id and call.id and delta.id != call.id
                other_name = call.arguments and function.name != call.name
                return None if function.name and (other_id or other_name) else call
        continues = delta.index is None and not delta.id and not function.name
        return self._calls[-1] if continues and self._calls else None

    def finish(self) -> Finish:
        """Raises ProviderError where the stream was cut before its end."""
        if not self.finished:
            raise ProviderError("the provider's answer was cut off before its end", retriable=True)
        calls: dict[str, ToolCall] = {}
        for call in (partial.whole() for partial in self._calls if partial.name):
            if call.id in calls:  # some servers number the calls of every answer alike
                call = msgspec.structs.replace(call, id=_new_call_id())
            calls[call.id] = call
        return Finish(reason=self._finish_reason or "stop", tool_calls=list(calls.values()), usage=self._usage)


class _PartialCall:
    def __init__(self, index: int | None) -> None:
        self.index = index
        self.id = ""
        self.name = ""
        self.arguments: list[str] = []

    def whole(self) -> ToolCall:
        text = "".join(self.arguments).strip() or "{}"
        try:
            arguments = msgspec.json.decode(_without_surrogates(text))
        except ValueError:
            arguments = text
        if _depth(text) > MAX_DEPTH:
            arguments = text
        return ToolCall(id=self.id or _new_call_id(), name=self.name, arguments=arguments)


def _depth(text: str) -> int:
    """How deep brackets are nested, those inside of strings included: more than enough of a guess."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return 0
    deepest = depth = 0
    for character in text:
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest


def _count(value: Any) -> int:
    """A number of tokens; 0 for what cannot be one."""
    return int(value) if isinstance(value, int | float) and 0 <= value < MAX_COUNT else 0


def _new_call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def _parse(data: bytes) -> _Chunk:
    """Raises ValueError for what is no chunk."""
    try:
        return _decode_chunk(data)
    except (ValueError, RecursionError):
        pass
    try:
        # Lone surrogates, which msgspec refuses: some tokenizers emit them for half a character.
        return msgspec.convert(json.loads(data.decode("utf-8", "replace")), _Chunk)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _without_surrogates(text: str) -> bytes:
    """The same JSON with lone surrogates replaced."""
    try:
        return json.dumps(json.loads(text), ensure_ascii=False).encode("utf-8", "replace")
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _joined(parts: list[Any]) -> str:
    return "".join(part.get("text") or "" for part in parts if isinstance(part, dict) and part.get("type") == "text")


def detail_of(error: Any, redactor: Redactor) -> str:
    """The human part of an error body: `error.message`, `detail`, `message`, or all of it."""
    for key in ("error", "message", "detail"):
        if isinstance(error, dict) and error.get(key):
            return detail_of(error[key], redactor)
    text = error if isinstance(error, str) else msgspec.json.encode(error).decode()
    return redactor.log(" ".join(text.split()))[:MAX_ERROR_CHARS]
