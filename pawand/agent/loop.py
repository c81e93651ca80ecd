"""The agent loop: ask the provider, run the tools it calls, ask again until it answers.

It reads and appends to a Session and yields events; it knows neither HTTP nor the event log. Whatever ends it, the
session holds what was said and done until then, with every tool call answered. A Message that it yields is one that
must survive a crash: the session holds it, or, for a tool's result, will hold it when all calls are through.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing

from msgspec import Struct

from pawand import wire
from pawand.agent import history, prompt
from pawand.agent.approvals import Approvals
from pawand.agent.permissions import Permissions
from pawand.aio import uninterrupted
from pawand.errors import EmptyAnswerError, ProviderError, ToolError
from pawand.providers.base import CompletionRequest, Finish, Provider, Reasoning, Text
from pawand.redact import Redactor
from pawand.sessions.model import Message, Session, now, unfinished
from pawand.tools.base import Outcome, Registry, ToolContext
from pawand.tools.output import clean
from pawand.wire import ToolCall, ToolResult

MAX_PARALLEL = 10
MAX_RETRY_SECS = 60.0
FIRST_RETRY_SECS = 1.0
WRAP_UP = "You have used all your tool calls. Answer now, without tools: what is done, what is not, what comes next."


class AgentSettings(Struct, frozen=True, kw_only=True):
    max_iterations: int
    max_retries: int
    permission_timeout_secs: float
    fallback_models: list[str]
    system_prompt: str | None
    tiny: bool
    """A model that can use no tools."""


class Finished(Struct, frozen=True, kw_only=True):
    """The last thing a run yields."""

    content: str
    iterations: int
    tool_calls: int
    finish_reason: str
    usage: wire.Usage
    model: str


Item = wire.Event | Message
Save = Callable[[], Awaitable[None]]


class Agent:
    """Runs turns; holds nothing between them, so one serves all sessions."""

    def __init__(
        self, settings: AgentSettings, provider: Provider, tools: Registry, permissions: Permissions, redactor: Redactor
    ) -> None:
        self._settings = settings
        self._provider = provider
        self._tools = tools
        self._permissions = permissions
        self._redactor = redactor

    async def run(
        self, session: Session, model: str, context: ToolContext, approvals: Approvals, save: Save
    ) -> AsyncGenerator[Item | Finished, None]:
        """Answer the session's last user message. Raises TurnError; `save` is awaited after each iteration."""
        turn = _Turn(session, model, context, approvals)
        turn.system = await prompt.build(context.workspace, base=self._settings.system_prompt, tiny=self._settings.tiny)
        while True:
            answer = _Answer()
            turn.iterations += 1
            last = turn.iterations > self._settings.max_iterations
            async with aclosing(self._ask(turn, answer, last=last)) as events:
                async for event in events:
                    yield event
            if not answer.tool_calls:
                if answer.message is not None:
                    yield answer.message
                break
            async with aclosing(self._run_tools(turn, answer)) as items:
                async for item in items:
                    yield item
            await save()
        yield Finished(
            content=answer.text,
            iterations=min(turn.iterations, self._settings.max_iterations),
            tool_calls=turn.tool_calls,
            finish_reason="max_iterations" if last else answer.finish_reason,
            usage=turn.usage,
            model=turn.model,
        )

    # --- asking -----------------------------------------------------------------------------------

    async def _ask(self, turn: _Turn, answer: _Answer, *, last: bool) -> AsyncGenerator[wire.Event, None]:
        """One iteration's answer, stored in the session; an empty one is asked for once more."""
        for attempt in (1, 2):
            try:
                async with aclosing(self._stream(turn, answer, last=last)) as events:
                    async for event in events:
                        yield event
            except BaseException:
                if answer.text.strip():
                    turn.session.append(Message(role="assistant", content=answer.text, interrupted=True))
                raise
            if answer.text.strip() or answer.tool_calls or last:
                break
            if attempt == 2:
                raise EmptyAnswerError("the model answered nothing, twice; try again or choose another model")
        if answer.text.strip() or answer.tool_calls:
            message = Message(role="assistant", content=answer.text, tool_calls=answer.tool_calls)
            answer.message = turn.session.append(message)

    async def _stream(self, turn: _Turn, answer: _Answer, *, last: bool) -> AsyncGenerator[wire.Event, None]:
        """The answer's events, with retries, and then fallback models, as long as nothing of it was seen."""
        models = self._models(turn.model)
        turn.model = next(models)
        attempt = 0
        while True:
            try:
                async with aclosing(self._attempt(turn, answer, last=last)) as events:
                    async for event in events:
                        yield event
                return
            except ProviderError as error:
                if answer.started or not (error.retriable or error.status == 404):
                    raise
                attempt += 1
                if error.retriable and attempt <= self._settings.max_retries:
                    delay = _delay(attempt, error.retry_after)
                else:
                    following = next(models, None)
                    if following is None:
                        raise
                    turn.model, attempt, delay = following, 0, 0.0
                yield wire.Retry(
                    attempt=max(attempt, 1), delay_ms=int(delay * 1000), reason=error.message, model=turn.model
                )
            await asyncio.sleep(delay)

    def _models(self, first: str) -> Iterator[str]:
        yield first
        yield from (model for model in self._settings.fallback_models if model != first)

    async def _attempt(self, turn: _Turn, answer: _Answer, *, last: bool) -> AsyncGenerator[wire.Event, None]:
        extra = [Message(role="user", content=WRAP_UP)] if last else []
        messages = history.to_messages(turn.system, [*turn.session.messages, *extra])
        request = CompletionRequest(
            model=turn.model,
            messages=messages,
            tools=[] if self._settings.tiny else self._tools.schemas,
            tool_choice="none" if last else None,
        )
        text, thinking = self._redactor.stream(), self._redactor.stream()
        async with aclosing(self._provider.stream(request)) as items:
            async for item in items:
                if isinstance(item, Text):
                    answer.started = True
                    if shown := text.feed(clean(item.text)):
                        answer.pieces.append(shown)
                        yield wire.Token(content=shown, iteration=turn.iterations)
                elif isinstance(item, Reasoning):
                    answer.started = True
                    if shown := thinking.feed(clean(item.text)):
                        yield wire.Thinking(content=shown, iteration=turn.iterations)
                else:
                    answer.finish(item, self._redactor, with_tools=not last)
        if held := thinking.flush():
            yield wire.Thinking(content=held, iteration=turn.iterations)
        if held := text.flush():
            answer.pieces.append(held)
            yield wire.Token(content=held, iteration=turn.iterations)
        turn.count(answer.usage or wire.Usage(total_tokens=history.estimate_tokens(messages)))

    # --- tools ------------------------------------------------------------------------------------

    async def _run_tools(self, turn: _Turn, answer: _Answer) -> AsyncGenerator[Item, None]:
        """Run the calls, read-only neighbours at once, and store one result for each, in the order of the calls."""
        results: dict[str, Message] = {}
        assert answer.message is not None
        try:
            yield answer.message
            for batch in self._batches(answer.tool_calls):
                async with aclosing(self._run_batch(turn, batch, results)) as events:
                    async for event in events:
                        yield event
        finally:
            for call in answer.tool_calls:
                turn.session.append(results.get(call.id) or unfinished(call))
            turn.tool_calls += len(results)

    def _batches(self, calls: list[ToolCall]) -> list[list[ToolCall]]:
        batches: list[list[ToolCall]] = []
        for call in calls:
            joins = (
                batches
                and len(batches[-1]) < MAX_PARALLEL
                and self._tools.is_read_only(call.name)
                and self._tools.is_read_only(batches[-1][0].name)
            )
            if joins:
                batches[-1].append(call)
            else:
                batches.append([call])
        return batches

    async def _run_batch(
        self, turn: _Turn, batch: list[ToolCall], results: dict[str, Message]
    ) -> AsyncGenerator[Item, None]:
        """Events and results of all calls of the batch as they come."""
        events: asyncio.Queue[Item | None] = asyncio.Queue()

        async def run_all() -> None:
            try:
                await asyncio.gather(*(self._run_call(turn, call, results, events.put_nowait) for call in batch))
            finally:
                events.put_nowait(None)

        task = asyncio.create_task(run_all())
        try:
            while (event := await events.get()) is not None:
                yield event
            await task
        finally:
            task.cancel()
            await uninterrupted(asyncio.wait([task]))  # no tool outlives its turn

    async def _run_call(
        self, turn: _Turn, call: ToolCall, results: dict[str, Message], emit: Callable[[Item], None]
    ) -> None:
        def emit_output(text: str) -> None:
            emit(wire.ToolOutput(id=call.id, content=text))

        permission = self._permissions.of(call.name)
        try:
            if permission == "deny":
                raise ToolError(f"{call.name} is denied by [permissions]. Go on without it or tell the user.")
            arguments = self._tools.parse(call)
            if permission == "prompt":
                await turn.approvals.ask(call, self._settings.permission_timeout_secs, emit)
        except ToolError as error:
            outcome = self._tools.failure(call, error.message)
        else:
            emit(wire.ToolStart(name=call.name, id=call.id, arguments=call.arguments, iteration=turn.iterations))
            outcome = await self._tools.run(call, arguments, turn.context, emit_output)
        results[call.id] = _result_message(outcome)
        emit(results[call.id])
        emit(
            wire.ToolComplete(
                name=call.name,
                success=outcome.success,
                duration_ms=outcome.duration_ms,
                result_preview=outcome.preview,
                id=call.id,
            )
        )


class _Turn:
    """What one run keeps between its iterations."""

    def __init__(self, session: Session, model: str, context: ToolContext, approvals: Approvals) -> None:
        self.session = session
        self.model = model
        self.context = context
        self.approvals = approvals
        self.system = ""
        self.iterations = 0
        self.tool_calls = 0
        self.usage = wire.Usage()

    def count(self, usage: wire.Usage) -> None:
        self.session.count_iteration(usage.total_tokens)
        self.usage = wire.Usage(
            prompt_tokens=self.usage.prompt_tokens + usage.prompt_tokens,
            completion_tokens=self.usage.completion_tokens + usage.completion_tokens,
            total_tokens=self.usage.total_tokens + usage.total_tokens,
        )


class _Answer:
    """What one iteration has brought so far."""

    def __init__(self) -> None:
        self.started = False
        self.pieces: list[str] = []
        self.tool_calls: list[ToolCall] = []
        self.finish_reason = "stop"
        self.usage: wire.Usage | None = None
        self.message: Message | None = None
        """As the session keeps it, once it is whole."""

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def finish(self, item: Finish, redactor: Redactor, *, with_tools: bool) -> None:
        self.finish_reason = redactor.text(clean(item.reason))
        self.usage = item.usage
        if with_tools:
            self.tool_calls = [
                ToolCall(redactor.text(clean(call.id)), redactor.text(clean(call.name)), redactor.value(call.arguments))
                for call in item.tool_calls
            ]


def _result_message(outcome: Outcome) -> Message:
    result = ToolResult(tool_call_id=outcome.call.id, content=outcome.content, success=outcome.success)
    return Message(role="tool", content=outcome.text, tool_result=result, timestamp=now())


def _delay(attempt: int, asked: float | None) -> float:
    """Seconds to wait: what the upstream asked for, else 1, 2, 4 … with ±20 % jitter; never over a minute."""
    if asked is not None:
        return min(asked, MAX_RETRY_SECS)
    return min(FIRST_RETRY_SECS * 2.0 ** (attempt - 1) * random.uniform(0.8, 1.2), MAX_RETRY_SECS)  # noqa: S311
