"""Agents that an agent starts for parts of its work: what they begin with, and what their parent gets to see."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import msgspec

from pawand import wire
from pawand.agent.run import Finished, Item, Run, Target
from pawand.errors import PawandError
from pawand.sessions.model import Message, Session, new_id
from pawand.tools.base import Assignment, Report
from pawand.tools.output import clip

MAX_ITERATIONS = 20
ARGUMENT_CHARS = 160
CHILD = """\
You are working for another agent, which gave you one part of its task and sees only your last answer. You can ask \
nobody. Do the part, then answer with the result: what you found or changed, where (path:line), what you ran and what \
it said, and what is left open.\
"""
READ_ONLY = "You have tools to read and search only: change nothing."


def begin(parent: Run, assignment: Assignment, watch: Callable[[str], None]) -> Run:
    """A run with a conversation of its own, the parent's permissions, and no agents below it."""

    def emit(*items: Item) -> None:
        for item in items:
            if isinstance(item, wire.PermissionRequest | wire.PermissionResolved):
                parent.emit(item)
            elif line := _line(item):
                watch(f"[{assignment.name}] {line}\n")

    asked = [Target(parent.target.provider, assignment.model)] if assignment.model else []
    targets = [*asked, *parent.targets]
    session = Session.new(new_id(), targets[0].model)
    session.append(Message(role="user", content=assignment.prompt))
    tools = parent.tools.chosen(lambda tool: tool.read_only if assignment.read_only else not tool.for_parents)
    context = msgspec.structs.replace(parent.context, seen={})
    max_iterations = min(MAX_ITERATIONS, parent.max_iterations)
    run = Run(session, targets, tools, context, parent.approvals, emit, max_iterations)
    run.system = "\n\n".join(filter(None, (parent.system, assignment.role, CHILD, READ_ONLY * assignment.read_only)))
    return run


async def see_through(parent: Run, run: Run, assignment: Assignment, work: Awaitable[Finished]) -> Report:
    """Wait for a child. Its failures are data for the parent; what it used counts as the parent's."""
    started = time.monotonic()
    result = error = ""
    try:
        async with asyncio.timeout(assignment.timeout_secs):
            result = (await work).content
    except TimeoutError:
        error = f"not done after {assignment.timeout_secs:g} s; a longer timeout may be given"
    except PawandError as failure:
        error = failure.message
    finally:
        parent.spend(run.usage)
    return Report(
        id=run.session.id,
        result=_last_words(run) if error else result,
        error=error,
        iterations=run.counted_iterations,
        tool_calls=run.tool_calls,
        usage=run.usage,
        duration_ms=int((time.monotonic() - started) * 1000),
    )


async def keep_nothing() -> None:
    """A child's conversation is not stored: its parent's tool result holds what came of it."""


def _last_words(run: Run) -> str:
    return next((m.content for m in reversed(run.session.messages) if m.role == "assistant" and m.content), "")


def _line(item: Item) -> str:
    """What a child does, for those who watch its parent."""
    if isinstance(item, wire.ToolStart):
        return f"{item.name} {clip(msgspec.json.encode(item.arguments).decode(), ARGUMENT_CHARS)}"
    if isinstance(item, wire.ToolComplete) and not item.success:
        return f"{item.name} failed: {item.result_preview}"
    if isinstance(item, wire.Retry):
        return f"retry: {item.reason}"
    return ""
