"""One answer of a chat completions server, put together from its chunks: text, reasoning, tool calls, usage."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from msgspec import Struct

from pawand.errors import ProviderError
from pawand.providers.base import CompletionRequest, Finish, Item, Reasoning
from pawand.providers.calls import CallDelta, Calls
from pawand.providers.failures import MAX_ERROR_CHARS, failure_of
from pawand.providers.markup import Markup
from pawand.redact import Redactor
from pawand.wire import Usage

MAX_SAMPLE_CHARS = 80
MAX_ANSWER_BYTES = 64 * 1024 * 1024  # more than any model writes, each token in a chunk of its own
MAX_COUNT = 2**53
_COUNTED = ("prompt", "completion", "total")


class _Delta(Struct):
    content: str | list[Any] | None = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: list[CallDelta] | None = None


class _Choice(Struct):
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(Struct):
    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None
    object: Any = None
    message: Any = None
    type: Any = None
    code: Any = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode


class Answer:
    """Reads the chunks of a completion, and collects what is known only at its end."""

    def __init__(self, redactor: Redactor, request: CompletionRequest) -> None:
        self._redactor = redactor
        self._finish_reason: str | None = None
        self._usage: Usage | None = None
        self._calls = Calls()
        self._markup = Markup([] if request.tool_choice == "none" else request.tools)
        self._half = ""
        self._size = 0
        self.complete = False
        """The server said that nothing more follows."""

    @property
    def finished(self) -> bool:
        """The model has ended its answer; usage may follow."""
        return self._finish_reason is not None or self.complete

    def read(self, events: list[bytes]) -> tuple[list[Item], ProviderError | None]:
        """What the events say, up to the first that says something else than an answer."""
        items: list[Item] = []
        try:
            for data in events:
                items += self._read(data)
        except ProviderError as error:
            return items, error
        return items, None

    def _read(self, data: bytes) -> list[Item]:
        if data == b"[DONE]":
            self.complete = True
            return []
        self._size += len(data)
        if self._size > MAX_ANSWER_BYTES:
            raise ProviderError(f"the provider's answer has more than {MAX_ANSWER_BYTES >> 20} MiB and no end")
        try:
            chunk = _parse(data)
        except ValueError as error:
            sample = self._redactor.log(data[:MAX_ERROR_CHARS].decode("utf-8", "replace"))[:MAX_SAMPLE_CHARS]
            raise ProviderError(f"the provider sent no chat completion but {sample!r}", retriable=True) from error
        if chunk.error or chunk.object == "error":
            raise self._reported(chunk)
        if isinstance(chunk.usage, dict):
            prompt, completion, total = (_count(chunk.usage.get(f"{part}_tokens")) for part in _COUNTED)
            self._usage = Usage(prompt, completion, total or prompt + completion)
        items: list[Item] = []
        for choice in (chunk.choices or [])[:1]:
            self._finish_reason = choice.finish_reason or self._finish_reason
            delta = choice.delta or choice.message
            if delta is None:
                continue
            reasoning = delta.reasoning_content or delta.reasoning
            if reasoning and isinstance(reasoning, str):
                items.append(Reasoning(reasoning))
            if delta.content:
                items += self._markup.feed(self._whole(delta.content))
            for call in delta.tool_calls or ():
                items += self._markup.give_up_calls()
                self._calls.add(call)
        return items

    def _reported(self, chunk: _Chunk) -> ProviderError:
        """An error that came in place of an answer (`{"error": …}`, or vLLM's `{"object": "error", …}`)."""
        error = chunk.error or {"message": chunk.message, "type": chunk.type}
        code = error.get("code", chunk.code) if isinstance(error, dict) else chunk.code
        status = code if isinstance(code, int) and 400 <= code < 600 else None
        return failure_of(error, status, self._redactor, "the provider reported")

    def _whole(self, content: str | list[Any]) -> str:
        """The text; half a surrogate pair at its end waits for the other half in the next chunk."""
        text = self._half + (content if isinstance(content, str) else _joined(content))
        self._half = ""
        if not text.isascii():
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
            if "\ud800" <= text[-1:] <= "\udbff":
                text, self._half = text[:-1], text[-1]
        return text

    def close(self) -> None:
        self._markup.close()

    def finish(self) -> list[Item]:
        """What was held back, then the Finish. Raises ProviderError where the stream was cut before its end."""
        if not self.finished:
            raise ProviderError("the provider's answer was cut off before its end", retriable=True)
        items: list[Item] = [*self._markup.end()]
        reason, calls = self._finish_reason or "stop", self._calls.whole()
        if self._markup.calls:
            calls = self._markup.calls
            reason = "tool_calls" if reason == "stop" else reason
        return [*items, Finish(reason=reason, tool_calls=calls, usage=self._usage)]


def _count(value: Any) -> int:
    """A number of tokens; 0 for what cannot be one."""
    return int(value) if isinstance(value, int | float) and 0 <= value < MAX_COUNT else 0


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


def _joined(parts: list[Any]) -> str:
    texts = (part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text")
    return "".join(text for text in texts if isinstance(text, str))
