"""One answer of the model: asked for, passed on as it comes, and asked for again where that can help."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import aclosing
from io import StringIO
from typing import Any

from msgspec import Struct

from pawand import wire
from pawand.agent import history
from pawand.agent.run import Run, Sink, Target
from pawand.errors import EmptyAnswerError, ProviderError
from pawand.providers.base import CompletionRequest, Finish, Reasoning, Text
from pawand.providers.catalog import thinking_switch, wants_reasoning, wants_short_ids
from pawand.redact import Redactor
from pawand.sessions.model import Message
from pawand.tools.output import clean
from pawand.wire import ToolCall

MAX_RETRY_SECS = 60.0
FIRST_RETRY_SECS = 1.0
WRAP_UP = "You have used all your tool calls. Answer now, without tools: what is done, what is not, what comes next."

Messages = Callable[[Target], list[dict[str, Any]]]
"""What a model is sent: not all of them take the same."""


class Answer:
    """What has come so far. A list of its pieces would be walked through by every collection of garbage."""

    def __init__(self) -> None:
        self.blank = ""
        """What an answer before, that was empty, showed nevertheless."""
        self.said = StringIO()
        self.thoughts = StringIO()
        self.tool_calls: list[ToolCall] = []
        self.finish_reason = "stop"
        self.usage: wire.Usage | None = None

    @property
    def text(self) -> str:
        return self.blank + self.said.getvalue()

    @property
    def seen(self) -> bool:
        """Whether any of it was."""
        return self.said.tell() > 0

    @property
    def empty(self) -> bool:
        return not self.text.strip() and not self.tool_calls


class Patience(Struct, frozen=True, kw_only=True):
    """How long an answer is tried for, and how long a model may think before it gives one (0: as it likes)."""

    max_retries: int
    thinking_budget: int


class Completions:
    """Asks the models of a run in turn until one has answered."""

    def __init__(self, patience: Patience, redactor: Redactor) -> None:
        self._patience = patience
        self._redactor = redactor

    async def ask(self, run: Run) -> Answer:
        """An iteration's answer, stored in the session; an empty one is asked for once more. Raises TurnError."""

        def messages(target: Target) -> list[dict[str, Any]]:
            thoughts = run.thoughts_on if wants_reasoning(target.model) else history.no_thoughts
            extra = [Message(role="user", content=WRAP_UP)] if run.wraps_up else []
            messages = history.to_messages(run.system, [*run.session.messages, *extra], thoughts, run.result_chars)
            return history.with_short_ids(messages) if wants_short_ids(target.model) else messages

        blank = ""  # what an empty answer showed is a part of the iteration's text
        for _ in range(2):
            answer = Answer()
            try:
                await self.stream(run, answer, messages, run.emit, with_tools=True)
            except BaseException:
                if answer.text.strip():
                    run.session.append(Message(role="assistant", content=answer.text, interrupted=True))
                raise
            run.count(answer.usage)
            answer.blank = blank
            blank = answer.text
            if not answer.empty:
                message = Message(role="assistant", content=answer.text, tool_calls=answer.tool_calls)
                run.add(message, answer.thoughts.getvalue())
            if not answer.empty or run.wraps_up:
                return answer
        if answer.finish_reason == "length":
            raise EmptyAnswerError("the model used up its tokens without an answer, twice: raise max_tokens")
        raise EmptyAnswerError("the model answered nothing, twice; try again or choose another model")

    async def stream(self, run: Run, answer: Answer, messages: Messages, emit: Sink, *, with_tools: bool) -> None:
        """Fill `answer` as it comes, with retries, and then other models, as long as no word of it was seen."""
        attempt = 0
        while True:
            request = CompletionRequest(
                model=run.target.model,
                messages=messages(run.target),
                tools=run.tools.schemas if with_tools else [],
                tool_choice="none" if run.wraps_up and with_tools else None,
                thinking=run.thinks,
            )
            answer.thoughts = StringIO()
            try:
                await self._attempt(run, answer, request, emit)
                return
            except _ThinksTooLongError as error:
                run.thinks, delay, reason = False, 0.0, error.message
            except ProviderError as error:
                if answer.seen:
                    error.context_length = False  # a part of the answer was seen, so it cannot be asked for anew
                if answer.seen or error.context_length:
                    raise
                attempt += 1
                delay, reason = 0.0, error.message
                if error.retriable and attempt <= self._patience.max_retries:
                    delay = _delay(attempt, error.retry_after)
                elif run.turn_away(from_provider=_is_of_provider(error)):
                    attempt = 0
                else:
                    raise
            emit(wire.Retry(attempt=max(attempt, 1), delay_ms=int(delay * 1000), reason=reason, model=run.target.model))
            await asyncio.sleep(delay)

    async def _attempt(self, run: Run, answer: Answer, request: CompletionRequest, emit: Sink) -> None:
        said, thought = self._redactor.stream(), self._redactor.stream()
        room = self._room_for_thoughts(request)
        events: list[wire.Event] = []

        def say(text: str) -> None:
            if text:
                answer.said.write(text)
                events.append(wire.Token(content=text, iteration=run.iterations))

        def think(text: str) -> None:
            if text:
                answer.thoughts.write(text)
                events.append(wire.Thinking(content=text, iteration=run.iterations))

        def tell() -> None:
            emit(*events)
            events.clear()

        async with aclosing(run.target.provider.stream(request)) as batches:
            async for items in batches:
                for item in items:
                    if isinstance(item, Text):
                        say(said.feed(clean(item.text)))
                    elif isinstance(item, Reasoning):
                        think(thought.feed(clean(item.text)))
                        room -= len(item.text)
                        if room < 0 and not answer.text.strip():
                            tell()
                            raise _ThinksTooLongError(self._patience.thinking_budget)
                    else:
                        self._finish(answer, item, with_calls=request.tool_choice != "none")
                tell()
        think(thought.flush())
        say(said.flush())
        tell()

    def _room_for_thoughts(self, request: CompletionRequest) -> float:
        """In characters; without end for a model that cannot be told not to think."""
        budget = self._patience.thinking_budget
        bounded = budget and request.thinking and thinking_switch(request.model, wanted=False)
        return budget * history.CHARS_PER_TOKEN if bounded else float("inf")

    def _finish(self, answer: Answer, item: Finish, *, with_calls: bool) -> None:
        redactor = self._redactor
        answer.finish_reason = redactor.text(clean(item.reason))
        answer.usage = item.usage
        if with_calls:
            answer.tool_calls = [
                ToolCall(redactor.text(clean(call.id)), redactor.text(clean(call.name)), redactor.value(call.arguments))
                for call in item.tool_calls
            ]


def _is_of_provider(error: ProviderError) -> bool:
    """Whether every model of the same provider would fail like this: no key, a wrong one, no credit."""
    return error.status in (401, 402) or (error.status is None and not error.retriable)


class _ThinksTooLongError(Exception):
    def __init__(self, budget: int) -> None:
        self.message = f"the model thought for more than {budget} tokens (thinking_budget); it is asked not to think"
        super().__init__(self.message)


def _delay(attempt: int, asked: float | None) -> float:
    """Seconds to wait: what the upstream asked for, else 1, 2, 4 … with ±20 % jitter; never over a minute."""
    if asked is not None:
        return min(asked, MAX_RETRY_SECS)
    return min(FIRST_RETRY_SECS * 2.0 ** (attempt - 1) * random.uniform(0.8, 1.2), MAX_RETRY_SECS)  # noqa: S311
