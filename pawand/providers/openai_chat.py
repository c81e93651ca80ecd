"""Any server that speaks OpenAI's chat completions API, read as a raw stream with one typed decode per event.

The SDK builds the request and keeps the connections; its objects per chunk would cost most of a turn's CPU.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, closing
from typing import Any, cast

import aiohttp
import httpx2
import msgspec
import openai

from pawand.aio import Watchdog
from pawand.errors import ProviderError
from pawand.event_loop import Pace
from pawand.providers import listing
from pawand.providers.answer import MAX_SAMPLE_CHARS, Answer
from pawand.providers.base import CompletionRequest, Item
from pawand.providers.catalog import sampling, thinking_switch
from pawand.providers.event_stream import SseParser
from pawand.providers.failures import failure_of
from pawand.redact import Redactor

CONNECT_TIMEOUT_SECS = 30.0
LISTING_SECS = 5.0
EVENTS_AT_ONCE = 64  # of what came in one piece: the loop looks at others before it goes on
LINGER_SECS = 5.0  # how long the usage chunk and [DONE] may follow the finish reason
_HINTS = {
    401: "the API key was refused",
    403: "the API key may not use this model",
    404: "the model or the address does not exist there",
    429: "rate limit",
}


class OpenAIChat:
    """A Provider over HTTP. `options` are how its models shall answer: `max_tokens`, `temperature`, `top_p`.

    `first_event_secs` and `stall_secs` are counted between events, so that keep-alive comments hide no stall.
    """

    def __init__(
        self,
        *,
        url: str,
        key: str | None,
        redactor: Redactor,
        pace: Pace,
        first_event_secs: float,
        stall_secs: float,
        options: Mapping[str, Any],
        reasoning: bool,
    ) -> None:
        self._url = url
        self._redactor = redactor
        self._pace = pace
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

    async def aclose(self) -> None:
        await self._client.close()

    async def stream(self, request: CompletionRequest) -> AsyncGenerator[list[Item], None]:
        """Yield the items of one completion as they come, a Finish last. Raises ProviderError for every failure."""
        with closing(Answer(self._redactor, request)) as answer:
            try:
                async with aclosing(self._events(request, answer)) as events:
                    async for data in events:
                        items, failure = answer.read(data)
                        if items:
                            yield items
                        if failure is not None:
                            raise failure
            except (openai.OpenAIError, httpx2.HTTPError, aiohttp.ClientError, OSError) as error:
                if not answer.finished:  # what breaks after the model's last word is of no interest
                    raise classify(error, self._url, self._redactor) from error
            yield answer.finish()

    async def models(self) -> list[str]:
        """The names of the models that the server says it has. Raises ProviderError."""
        try:
            async with asyncio.timeout(LISTING_SECS):
                async with self._client.models.with_streaming_response.list(extra_headers=self._headers) as response:
                    body = bytearray()
                    async for chunk in response.iter_bytes():
                        body += chunk
                        if len(body) > listing.MAX_BYTES:
                            raise ProviderError(f"the list of models of {self._url} is longer than can be read")
            return await asyncio.to_thread(listing.read, body, self._redactor)
        except TimeoutError as error:
            raise ProviderError(f"{self._url} did not say within {LISTING_SECS:g} s which models it has") from error
        except ValueError as error:
            raise ProviderError(f"{self._url} answered with no list of models: {error}") from error
        except (openai.OpenAIError, httpx2.HTTPError, aiohttp.ClientError, OSError) as error:
            raise classify(error, self._url, self._redactor) from error

    async def _events(self, request: CompletionRequest, answer: Answer) -> AsyncGenerator[list[bytes], None]:
        """The data of server-sent events, those that came together at once; the body where it is plain JSON."""
        await self._pace.breathe()
        watchdog = Watchdog(self._first_event_secs)
        try:
            response = await watchdog.wait(self._post(request))
        except BaseException:
            watchdog.close()
            raise
        try:
            kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind == "application/json":
                yield [await watchdog.wait(response.aread())]
                return
            if kind != "text/event-stream":
                kind = self._redactor.log(kind)[:MAX_SAMPLE_CHARS] or "no content type"
                raise ProviderError(
                    f"{self._url} answered with {kind} instead of an event stream: "
                    "is base_url the address of a chat completions API?"
                )
            parser = SseParser()
            chunks = response.aiter_bytes()
            while not answer.complete:
                chunk = await watchdog.wait(anext(chunks, None))
                if chunk is None:
                    break
                events = parser.feed(chunk)
                for at in range(0, len(events), EVENTS_AT_ONCE):
                    yield events[at : at + EVENTS_AT_ONCE]
                    watchdog.feed(LINGER_SECS if answer.finished else self._stall_secs)
                    await self._pace.breathe()  # what comes meanwhile is read at once
            if parser.pending:
                yield [parser.pending]
        finally:
            watchdog.close()
            await response.aclose()

    async def _post(self, request: CompletionRequest) -> httpx2.Response:
        """Send the request and wait for the head of the answer. The SDK would walk through the body, slowly."""
        response = await self._client.post(
            "/chat/completions",
            cast_to=httpx2.Response,
            content=msgspec.json.encode(self._fields(request)),
            options={"headers": self._headers},
            stream=True,
            stream_cls=openai.AsyncStream[Any],
        )
        return cast(httpx2.Response, response)  # as `cast_to` says; the type of `post` knows of streams only

    def _fields(self, request: CompletionRequest) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "model": request.model,
            "messages": request.messages,
            "stream": True,
            **sampling(request.model, self._options),
            **thinking_switch(request.model, wanted=self._reasoning and request.thinking),
            "stream_options": {"include_usage": True},
        }
        if request.tools:
            fields["tools"] = request.tools
            if request.tool_choice:
                fields["tool_choice"] = request.tool_choice
        return fields


def classify(error: Exception, url: str, redactor: Redactor) -> ProviderError:
    """Every way a request can fail, told apart by type and status, not by text (but for one: failures.py)."""
    if isinstance(error, openai.APIStatusError):
        status = error.status_code
        hint = _HINTS.get(status, "")
        return failure_of(
            error.body if error.body is not None else error.response.reason_phrase,
            status,
            redactor,
            f"the provider answered {status}{f' ({hint})' if hint else ''}",
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
