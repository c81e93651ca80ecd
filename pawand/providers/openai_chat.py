"""Any server that speaks OpenAI's chat completions API, read as a raw stream with one typed decode per event.

The SDK builds the request and keeps the connections; its objects per chunk would cost most of a turn's CPU.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import aiohttp
import httpx2
import msgspec
import openai
from msgspec import Struct

from pawand.errors import ProviderError
from pawand.providers.base import CompletionRequest, Finish, Item, Reasoning, Text
from pawand.providers.catalog import thinking_switch
from pawand.redact import Redactor
from pawand.wire import ToolCall, Usage

CONNECT_TIMEOUT_SECS = 30.0
LINGER_SECS = 5.0  # how long the usage chunk and [DONE] may follow the finish reason
MAX_EVENT_BYTES = 16 * 1024 * 1024
MAX_ERROR_CHARS = 500
MAX_SAMPLE_CHARS = 80
MAX_DEPTH = 100
MAX_COUNT = 2**53
RETRIABLE = frozenset({408, 409, 429})
_HINTS = {
    401: "the API key was refused",
    403: "the API key may not use this model",
    404: "the model or the address does not exist there",
    429: "rate limit",
}


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


class OpenAIChat:
    """A Provider over HTTP. `options` are further request fields, the same for every request.

    `first_event_secs` and `stall_secs` are counted between events, so that keep-alive comments hide no stall.
    """

    def __init__(
        self,
        *,
        url: str,
        key: str | None,
        redactor: Redactor,
        first_event_secs: float,
        stall_secs: float,
        options: Mapping[str, Any],
        reasoning: bool,
    ) -> None:
        self._url = url
        self._redactor = redactor
        self._first_event_secs = first_event_secs
        self._stall_secs = stall_secs
        self._options = options
        self._reasoning = reasoning
        self._headers: Any = {} if key else {"Authorization": openai.Omit()}
        self._client = openai.AsyncOpenAI(
            base_url=url,
            api_key=key or "none",  # the SDK insists on one; the header is left out
            max_retries=0,
            http_client=openai.DefaultAioHttpClient(
                # Silence is judged by event, below; the transport's own read timeout would end a slow first token.
                timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT_SECS),
                follow_redirects=False,
            ),
        )
        self._client.organization = self._client.project = None  # from the environment, meant for OpenAI alone
        _ = self._client.chat.completions.with_streaming_response  # imported here, not in the first request

    async def aclose(self) -> None:
        await self._client.close()

    async def stream(self, request: CompletionRequest) -> AsyncGenerator[Item, None]:
        """Yield the items of one completion, a Finish last. Raises ProviderError for every failure."""
        answer = _Answer(self._redactor)
        try:
            async with aclosing(self._events(request, answer)) as events:
                async for data in events:
                    for item in answer.read(data):
                        yield item
        except (openai.OpenAIError, httpx2.HTTPError, aiohttp.ClientError, OSError) as error:
            if not answer.finished:  # what breaks after the model's last word is of no interest
                raise classify(error, self._url, self._redactor) from error
        yield answer.finish()

    async def _events(self, request: CompletionRequest, answer: _Answer) -> AsyncGenerator[bytes, None]:
        """The data of each server-sent event; the whole body where the server answered plain JSON."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._first_event_secs
        manager = self._client.chat.completions.with_streaming_response.create(
            model=request.model,
            messages=[],  # the SDK would walk through them, slowly: they go into the body as they are
            stream=True,
            extra_headers=self._headers,
            extra_body=self._fields(request),
        )
        async with asyncio.timeout_at(deadline):
            response = await manager.__aenter__()
        try:
            kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind == "application/json":
                async with asyncio.timeout_at(deadline):
                    body = await response.read()
                yield body
                return
            if kind != "text/event-stream":
                kind = self._redactor.log(kind)[:MAX_SAMPLE_CHARS] or "no content type"
                raise ProviderError(
                    f"{self._url} answered with {kind} instead of an event stream: "
                    "is base_url the address of a chat completions API?"
                )
            parser = SseParser()
            chunks = response.iter_bytes()
            while not answer.complete:
                async with asyncio.timeout_at(deadline):
                    chunk = await anext(chunks, None)
                if chunk is None:
                    break
                for data in parser.feed(chunk):
                    yield data
                    deadline = clock() + (LINGER_SECS if answer.finished else self._stall_secs)
            if parser.pending:
                yield parser.pending
        finally:
            await manager.__aexit__(None, None, None)

    def _fields(self, request: CompletionRequest) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "messages": request.messages,
            **self._options,
            **thinking_switch(request.model, wanted=self._reasoning),
            "stream_options": {"include_usage": True},
        }
        if request.tools:
            fields["tools"] = request.tools
            if request.tool_choice:
                fields["tool_choice"] = request.tool_choice
        return fields


class SseParser:
    """The data fields of an event stream, in bytes so that no character is cut (WHATWG HTML 9.2)."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._data: list[bytes] = []
        self._size = 0
        self._first = True

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of each event that `chunk` completes. Raises ProviderError for an event beyond all measure."""
        if self._first:
            chunk = chunk.removeprefix(codecs.BOM_UTF8)
            self._first = False
        self._size += len(chunk)
        if self._size > MAX_EVENT_BYTES:
            raise ProviderError(f"the provider sent an event of more than {MAX_EVENT_BYTES >> 20} MiB")
        self._pieces.append(chunk)
        if b"\n" not in chunk:
            return []
        *lines, rest = b"".join(self._pieces).split(b"\n")
        self._pieces = [rest]
        events: list[bytes] = []
        for line in lines:
            line = line.rstrip(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data = []
        if events:
            self._size = len(rest) + sum(map(len, self._data))
        return events

    @property
    def pending(self) -> bytes:
        """An event that the end of the stream left without its blank line."""
        lines = [*self._data]
        rest = b"".join(self._pieces)
        if rest.startswith(b"data:"):
            lines.append(rest[5:].strip())
        return b"\n".join(lines)


class _Answer:
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
        return ProviderError(f"the provider reported: {_detail(error, self._redactor)}", retriable=not final)

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


def _detail(error: Any, redactor: Redactor) -> str:
    """The human part of an error body: `error.message`, `detail`, `message`, or all of it."""
    for key in ("error", "message", "detail"):
        if isinstance(error, dict) and error.get(key):
            return _detail(error[key], redactor)
    text = error if isinstance(error, str) else msgspec.json.encode(error).decode()
    return redactor.log(" ".join(text.split()))[:MAX_ERROR_CHARS]


def classify(error: Exception, url: str, redactor: Redactor) -> ProviderError:
    """Every way a request can fail, told apart by type and status, never by text."""
    if isinstance(error, openai.APIStatusError):
        status = error.status_code
        hint = _HINTS.get(status, "")
        detail = _detail(error.body if error.body is not None else error.response.reason_phrase, redactor)
        return ProviderError(
            f"the provider answered {status}{f' ({hint})' if hint else ''}: {detail}",
            retriable=status in RETRIABLE or status >= 500,
            status=status,
            retry_after=_retry_after(error.response.headers),
        )
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, aiohttp.ClientConnectorError | httpx2.ConnectError | ConnectionRefusedError):
            return ProviderError(f"cannot connect to {url}: is the server up and the address right?", retriable=True)
        if isinstance(cause, aiohttp.ClientPayloadError | httpx2.ReadError | aiohttp.ServerDisconnectedError):
            return ProviderError(f"{url} cut the connection in the middle of its answer", retriable=True)
        cause = cause.__cause__
    if isinstance(error, TimeoutError | openai.APITimeoutError | httpx2.TimeoutException):
        return ProviderError(f"{url} went silent (see first_event_timeout_secs, stall_timeout_secs)", retriable=True)
    return ProviderError(
        f"the request to {url} failed: {redactor.log(str(error)) or type(error).__name__}", retriable=True
    )


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds from `Retry-After` (RFC 9110 10.2.3); its date form is left to our own back-off."""
    try:
        return max(0.0, float(headers.get("retry-after", "")))
    except ValueError:
        return None
