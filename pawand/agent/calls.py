"""The tool calls of an answer: checked, permitted, run, and each answered by one result.

Read-only neighbours run at once, all others in their order. No tool outlives the turn that called it.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from pawand import wire
from pawand.agent.permissions import Permissions
from pawand.agent.run import Run
from pawand.aio import uninterrupted
from pawand.errors import ToolError
from pawand.sessions.model import Message, now, unfinished
from pawand.tools.base import Assignment, Emit, Outcome, Report, ToolContext
from pawand.wire import ToolCall, ToolResult

MAX_PARALLEL = 10
LEAST_RESULT_CHARS = 200
"""For each of many calls that one call makes: they share its room."""
ROW_CHARS = 60  # what is said around the result of one of them
CUT = "your answer reached its longest length (max_tokens) in the middle of this call: do it in smaller parts"
REPEATS = 3
REPEATED = (
    f"This is the same call with the same arguments {REPEATS} times in a row or more. It will not get better: "
    "change your approach, or finish and say what is missing."
)

Spawn = Callable[[Run, Assignment, Emit], Awaitable[Report]]
"""Runs a child agent for a call of the run."""


class Calls:
    """Runs the calls of all turns; what is remembered of one is in its Run."""

    def __init__(self, permissions: Permissions, permission_timeout_secs: float, spawn: Spawn) -> None:
        self._permissions = permissions
        self._permission_timeout_secs = permission_timeout_secs
        self._spawn = spawn

    async def run(self, run: Run, calls: list[ToolCall], *, cut: bool) -> None:
        """Run the calls of an answer, and store one result for each, in the order of the calls.

        `cut` says that the answer was cut off at `max_tokens`, and its last call with it.
        """
        results: dict[str, Message] = {}
        try:
            for group in _groups(run, calls):
                tasks = [
                    asyncio.create_task(self._run_call(run, call, results, cut=cut and _is_cut(call, last=calls[-1])))
                    for call in group
                ]
                try:
                    await asyncio.gather(*tasks)
                finally:
                    for task in tasks:
                        task.cancel()
                    await uninterrupted(asyncio.wait(tasks))  # no tool outlives its turn
        finally:
            for call in calls:
                run.session.append(results.get(call.id) or unfinished(call))
            run.tool_calls += len(results)

    async def _run_call(self, run: Run, call: ToolCall, results: dict[str, Message], *, cut: bool) -> None:
        repeated = run.repeats(call) >= REPEATS
        try:
            if cut:
                raise ToolError(CUT)
            arguments = await self._admit(run, call)
        except ToolError as error:
            outcome = run.tools.failure(call, error.message)
        else:
            run.emit(wire.ToolStart(name=call.name, id=call.id, arguments=call.arguments, iteration=run.iterations))
            outcome = await run.tools.run(
                call,
                arguments,
                self._context(run),
                lambda text: run.emit(wire.ToolOutput(id=call.id, content=text)),
            )
        results[call.id] = _result_message(outcome, REPEATED if repeated else "")
        run.emit(results[call.id])
        run.emit(
            wire.ToolComplete(
                name=call.name,
                success=outcome.success,
                duration_ms=outcome.duration_ms,
                result_preview=outcome.preview,
                id=call.id,
            )
        )

    async def _admit(self, run: Run, call: ToolCall) -> Any:
        """The checked arguments of a call that may run. Raises ToolError."""
        permission = self._permissions.of(call.name)
        if permission == "deny":
            raise ToolError(f"{call.name} is denied by [permissions]. Go on without it or tell the user.")
        arguments = run.tools.parse(call)
        if permission == "prompt":
            await run.approvals.ask(call, self._permission_timeout_secs, run.emit)
        return arguments

    def _context(self, run: Run) -> ToolContext:
        """For a call whose tool may make calls and start agents of its own: they pass the same checks."""
        return msgspec.structs.replace(
            run.context,
            call=functools.partial(self._run_inner, run),
            spawn=functools.partial(self._spawn, run),
        )

    async def _run_inner(self, run: Run, calls: list[ToolCall], emit: Emit) -> list[Outcome]:
        """The outcomes of calls that another call makes, in their order.

        They share its room. What one does not need is for those that come later.
        """

        async def run_one(call: ToolCall, context: ToolContext) -> Outcome:
            try:
                arguments = await self._admit(run, call)
            except ToolError as error:
                return run.tools.failure(call, error.message)
            return await run.tools.run(call, arguments, context, emit)

        outcomes: list[Outcome] = []
        left = run.context.max_result_chars - ROW_CHARS * (len(calls) + 1)
        for group in _groups(run, calls):
            room = max(LEAST_RESULT_CHARS, left // (len(calls) - len(outcomes)))
            context = msgspec.structs.replace(run.context, max_result_chars=room)
            async with asyncio.TaskGroup() as at_once:
                tasks = [at_once.create_task(run_one(call, context)) for call in group]
            done = [task.result() for task in tasks]
            left -= sum(len(msgspec.json.encode(outcome.content)) for outcome in done)
            outcomes += done
        return outcomes


def _is_cut(call: ToolCall, last: ToolCall) -> bool:
    """Whether a call of an answer that was cut off may lack its arguments, all or some of them."""
    return not isinstance(call.arguments, dict) or (call is last and not call.arguments)


def _groups(run: Run, calls: list[ToolCall]) -> list[list[ToolCall]]:
    """What may run at the same time: each of the others alone."""
    groups: list[list[ToolCall]] = []
    for call in calls:
        joins = (
            groups
            and len(groups[-1]) < MAX_PARALLEL
            and run.tools.is_read_only(call.name)
            and run.tools.is_read_only(groups[-1][0].name)
        )
        if joins:
            groups[-1].append(call)
        else:
            groups.append([call])
    return groups


def _result_message(outcome: Outcome, note: str) -> Message:
    content = outcome.content
    if note:
        content = {**content, "advice": note} if isinstance(content, dict) else {"result": content, "advice": note}
        outcome = msgspec.structs.replace(outcome, content=content)
    result = ToolResult(tool_call_id=outcome.call.id, content=content, success=outcome.success)
    return Message(role="tool", content=outcome.text, tool_result=result, timestamp=now())
