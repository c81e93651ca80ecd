"""What a tool is, and the registry through which the agent calls one: arguments checked, failures made data."""

from __future__ import annotations

import asyncio
import functools
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
from pawand.wire import ToolCall, Usage

MAX_ERROR_CHARS = 4000
LONG_RESULT_BYTES = 256 * 1024

log = logging.getLogger(__name__)


Emit = Callable[[str], None]
"""Takes live output of a running call."""


class ToolContext(Struct, kw_only=True):
    """What a call may use. `seen` remembers the files that the session's model has read or written."""

    session_id: str
    workspace: Workspace
    sandbox: Sandbox
    bash_timeout_secs: int
    max_result_chars: int
    redactor: Redactor
    hops: int = 0
    """How many agents the user's message has come through."""
    seen: dict[str, Stamp] = field(default_factory=dict)
    call: Callable[[list[ToolCall], Emit], Awaitable[list[Outcome]]] | None = None
    """Makes calls for a call, under the same permissions; None within such a call."""
    spawn: Callable[[Assignment, Emit], Awaitable[Report]] | None = None
    """Has another agent do a part of the work; None for an agent that was started so."""


class JsonSchema(Struct, frozen=True):
    """Arguments that only a schema describes; `check` raises ToolError that says what is wrong with them."""

    parameters: dict[str, Any]
    check: Callable[[dict[str, Any]], None]


class Tool(Struct, frozen=True, kw_only=True):
    """`run(arguments, context, emit)` returns a JSON value; `{"success": false}` in it is a failure too.

    It is given a Struct of type `arguments`, or the arguments as they are where that is a JsonSchema.
    """

    name: str
    description: str
    arguments: type[Struct] | JsonSchema
    run: Callable[[Any, ToolContext, Emit], Awaitable[Any]]
    read_only: bool = False
    for_parents: bool = False
    """It starts agents, which those may not do in their turn."""

    @property
    def schema(self) -> dict[str, Any]:
        """As providers want it."""
        function = {"name": self.name, "description": self.description, "parameters": _parameters(self.arguments)}
        return {"type": "function", "function": function}


class Assignment(Struct, frozen=True, kw_only=True):
    """A part of an agent's work that another one does. `name` is what its watchers call it."""

    name: str
    prompt: str
    timeout_secs: float
    role: str = ""
    model: str | None = None
    read_only: bool = False
    """It gets the tools that change nothing."""


class Report(Struct, frozen=True, kw_only=True):
    """What came of an assignment; with an `error`, `result` is the last that was said."""

    id: str
    result: str
    error: str
    iterations: int
    tool_calls: int
    usage: Usage
    duration_ms: int


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
        self.schemas = [tool.schema for tool in self._tools.values()]
        self.characters = len(msgspec.json.encode(self.schemas))
        """How long they are for the model."""

    def extended(self, more: list[Tool]) -> Registry:
        """The same with more tools; of two of one name ours stays."""
        names = {tool.name for tool in self._tools.values()}
        return Registry([*self._tools.values(), *(t for t in more if t.name not in names)], self._redactor)

    def chosen(self, keep: Callable[[Tool], bool]) -> Registry:
        """Those of the tools that `keep` says yes to."""
        return Registry(filter(keep, self._tools.values()), self._redactor)

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
            if isinstance(tool.arguments, JsonSchema):
                tool.arguments.check(call.arguments)
                return call.arguments
            arguments = msgspec.convert(call.arguments, tool.arguments, strict=False)
            _refuse_unknown(call.arguments, tool.arguments)
            return arguments
        except (msgspec.ValidationError, ToolError) as error:
            expected = msgspec.json.encode(_parameters(tool.arguments)).decode()
            raise ToolError(f"wrong arguments for {call.name}: {error}. The schema is {expected}") from error

    async def run(self, call: ToolCall, arguments: Any, context: ToolContext, emit: Emit) -> Outcome:
        """Run a call whose arguments were parsed; every failure of the tool is an Outcome."""
        started = time.monotonic()
        try:
            result = await self._tools[call.name].run(arguments, context, emit)
            content = await self._content(result, context.max_result_chars)
        except ToolError as error:
            return self.failure(call, str(error), started)
        except Exception as error:  # a tool's bug must not end the turn: the model is told, the log has the rest
            log.exception("tool %s failed", call.name)
            return self.failure(call, f"internal error of the tool: {type(error).__name__}", started)
        success = not (isinstance(result, dict) and result.get("success") is False)
        return Outcome(call=call, content=content, success=success, duration_ms=_since(started))

    async def _content(self, result: Any, limit: int) -> Any:
        """Without secrets, and cut to the limit; a long result is worked on where it holds nobody up."""
        if len(msgspec.json.encode(result)) > LONG_RESULT_BYTES:
            return await asyncio.to_thread(lambda: output.fit(self._redactor.value(result), limit))
        return output.fit(self._redactor.value(result), limit)

    def failure(self, call: ToolCall, message: str, started: float | None = None) -> Outcome:
        error = output.clip(self._redactor.text(output.clean(message)), MAX_ERROR_CHARS)
        content = {"error": error, "tool": call.name}
        return Outcome(call=call, content=content, success=False, duration_ms=_since(started) if started else 0)


def _refuse_unknown(arguments: dict[str, Any], known: type[Struct]) -> None:
    """A misspelt argument must not make a tool run with the default of the one that was meant."""
    unknown = [name for name in arguments if name not in known.__struct_fields__]
    if unknown:
        raise ToolError(f"unknown: {', '.join(unknown)[:200]}")


def _since(started: float) -> int:
    return int((time.monotonic() - started) * 1000)


def _parameters(arguments: type[Struct] | JsonSchema) -> dict[str, Any]:
    return arguments.parameters if isinstance(arguments, JsonSchema) else _parameters_of(arguments)


@functools.cache  # asked for by every child agent
def _parameters_of(arguments: type[Struct]) -> dict[str, Any]:
    schema = msgspec.json.schema(arguments)
    parameters: dict[str, Any] = _inlined(schema["$defs"][arguments.__name__], schema["$defs"])
    return parameters


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """A schema that stands alone, since not every provider follows `$ref`, and without the names of our classes."""
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    is_object = schema.get("type") == "object"
    return {key: _inlined(value, definitions) for key, value in schema.items() if not (is_object and key == "title")}
