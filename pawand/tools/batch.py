"""`batch`: several calls in one, each under its own permission."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from msgspec import Meta, Struct

from pawand.errors import ToolError
from pawand.tools.base import Emit, Outcome, Tool, ToolContext
from pawand.wire import ToolCall

MAX_CALLS = 25

_EXAMPLE = '{"tool": "read_file", "input": {"path": "README.md"}}'
_WRAPPERS = ("input", "parameters", "arguments", "args")


class Batch(Struct):
    calls: Annotated[
        list[dict[str, Any]],
        Meta(min_length=1, max_length=MAX_CALLS, description=f"Each a tool's name and its arguments: {_EXAMPLE}"),
    ]


async def batch(args: Batch, context: ToolContext, emit: Emit) -> dict[str, Any]:
    """Returns `{success, succeeded, failed, results: [{tool, success, result}]}` in the order of the calls."""
    if context.call is None:
        raise ToolError("a batch may hold no other batch: make the calls one by one")
    outcomes = await context.call([_call(number, call) for number, call in enumerate(args.calls, 1)], emit)
    succeeded = sum(outcome.success for outcome in outcomes)
    return {
        "success": succeeded == len(outcomes),
        "succeeded": succeeded,
        "failed": len(outcomes) - succeeded,
        "results": [_row(outcome) for outcome in outcomes],
    }


def _call(number: int, call: dict[str, Any]) -> ToolCall:
    """From `{tool, input}` under any of its names, or `{tool, …arguments}`: models write all of these."""
    tool = call.get("tool")
    if not isinstance(tool, str):
        raise ToolError(f"call {number} names no tool; each call must look like {_EXAMPLE}")
    arguments: Any = {name: value for name, value in call.items() if name != "tool"}
    wrapped = [name for name in _WRAPPERS if isinstance(arguments.get(name), dict)]
    if len(wrapped) == 1 and arguments.keys() <= {*wrapped, "description"}:
        arguments = arguments[wrapped[0]]
    return ToolCall(id=uuid.uuid4().hex, name=tool, arguments=arguments)


def _row(outcome: Outcome) -> dict[str, Any]:
    return {"tool": outcome.call.name, "success": outcome.success, "result": outcome.content}


BATCH = Tool(
    name="batch",
    description=(
        f"Make up to {MAX_CALLS} calls of other tools at once. Use it for many small independent calls, such as "
        "reading several files. Calls that change something run in their order, those that only read side by side."
    ),
    arguments=Batch,
    run=batch,
)
