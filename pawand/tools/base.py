"""What a tool is, and the registry through which the agent calls one: arguments checked, failures made data."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec
from msgspec import Struct, field

from pawand.errors import ToolError
from pawand.redact import Redactor
from pawand.tools import output
from pawand.tools.sandbox import Sandbox
from pawand.tools.workspace import Stamp, Workspace
from pawand.wire import ToolCall

MAX_ERROR_CHARS = 4000

log = logging.getLogger(__name__)


class ToolContext(Struct, kw_only=True):
    """What a call may use. `seen` remembers the files that the session's model has read or written."""

    session_id: str
    workspace: Workspace
    sandbox: Sandbox
    bash_timeout_secs: int
    max_result_chars: int
    redactor: Redactor
    seen: dict[str, Stamp] = field(default_factory=dict)


Emit = Callable[[str], None]
"""Takes live output of a running call."""


class Tool(Struct, frozen=True, kw_only=True):
    """`run(arguments, context, emit)` returns a JSON value; `{"success": false}` in it is a failure too."""

    name: str
    description: str
    arguments: type[Struct]
    run: Callable[[Any, ToolContext, Emit], Awaitable[Any]]
    read_only: bool = False


class Outcome(Struct, frozen=True, kw_only=True):
    """A finished call. `content` fits the result limit and holds no secret."""

    call: ToolCall
    content: Any
    success: bool
    duration_ms: int

    @property
    def text(self) -> str:
        """What the model reads."""
        return self.content if isinstance(self.content, str) else msgspec.json.encode(self.content).decode()

    @property
    def preview(self) -> str:
        return output.preview(self.content)


class Registry:
    """The tools of an agent, in the order in which the model is told of them."""

    def __init__(self, tools: Iterable[Tool], redactor: Redactor) -> None:
        self._tools: dict[str, Tool] = {tool.name: tool for tool in tools}
        self._redactor = redactor
        self.schemas = [_schema(tool) for tool in self._tools.values()]

    def is_read_only(self, name: str) -> bool:
        tool = self._tools.get(name)
        return tool is not None and tool.read_only

    def parse(self, call: ToolCall) -> Any:
        """The checked arguments. Raises ToolError that tells the model what was expected."""
        tool = self._tools.get(call.name)
        if tool is None:
            raise ToolError(f"there is no tool {call.name}; there are: {', '.join(self._tools)}")
        if not isinstance(call.arguments, dict):
            raise ToolError(f"the arguments of {call.name} must be a JSON object, not {str(call.arguments)[:200]!r}")
        try:
            return msgspec.convert(call.arguments, tool.arguments, strict=False)
        except msgspec.ValidationError as error:
            expected = msgspec.json.encode(_parameters(tool)).decode()
            raise ToolError(f"wrong arguments for {call.name}: {error}. The schema is {expected}") from error

    async def run(self, call: ToolCall, arguments: Any, context: ToolContext, emit: Emit) -> Outcome:
        """Run a call whose arguments were parsed; every failure of the tool is an Outcome."""
        started = time.monotonic()
        try:
            result = await self._tools[call.name].run(arguments, context, emit)
            content = output.fit(self._redactor.value(result), context.max_result_chars)
        except ToolError as error:
            return self.failure(call, str(error), started)
        except Exception as error:  # a tool's bug must not end the turn: the model is told, the log has the rest
            log.exception("tool %s failed", call.name)
            return self.failure(call, f"internal error of the tool: {type(error).__name__}", started)
        success = not (isinstance(result, dict) and result.get("success") is False)
        return Outcome(call=call, content=content, success=success, duration_ms=_since(started))

    def failure(self, call: ToolCall, message: str, started: float | None = None) -> Outcome:
        error = output.clip(self._redactor.text(output.clean(message)), MAX_ERROR_CHARS)
        content = {"error": error, "tool": call.name}
        return Outcome(call=call, content=content, success=False, duration_ms=_since(started) if started else 0)


def _since(started: float) -> int:
    return int((time.monotonic() - started) * 1000)


def _parameters(tool: Tool) -> dict[str, Any]:
    schema = msgspec.json.schema(tool.arguments)
    parameters: dict[str, Any] = schema["$defs"][tool.arguments.__name__]
    return {key: value for key, value in parameters.items() if key != "title"}


def _schema(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": _parameters(tool)}
    return {"type": "function", "function": function}
