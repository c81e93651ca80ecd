"""The tools that MCP servers list: which are taken, what they are called here, how their arguments are checked."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jsonschema
import msgspec
from jsonschema.protocols import Validator
from jsonschema.validators import extend, validator_for
from mcp_types import Tool
from msgspec import Struct
from referencing import Registry

from pawand.errors import ToolError
from pawand.tools.base import JsonSchema
from pawand.tools.output import clean

CHECK_SECS = 0.025  # the event loop waits, and for the step that has begun: up to as long again
MAX_DESCRIPTION_CHARS = 2000
MAX_MESSAGE_CHARS = 500
MAX_NAME_CHARS = 64
MAX_SCHEMA_BYTES = 64 * 1024
MAX_SCHEMAS_BYTES = 256 * 1024
MAX_STEPS = 400_000  # 256 KiB of ordinary schemas make 160,000, in about a second
_HASH_CHARS = 8
_LEFT_OUT = ("pattern", "patternProperties", "unevaluatedItems", "unevaluatedProperties", "uniqueItems")
_WIDE = re.compile(r"[^\x00-\x7f]|\\[uUN]")  # what makes one class of characters take a millisecond to compile
_WIDE_STEPS = 200

_Keyword = Callable[[Validator, Any, Any, Any], Any]


class Listed(Struct, frozen=True, kw_only=True):
    """A server's tool that may be offered; `name` is the server's word for it."""

    name: str
    description: str
    arguments: JsonSchema


def accept(tools: list[Tool | Any]) -> tuple[list[Listed], list[str]]:
    """What can be offered of a server's tools, and why each of the others cannot. Blocks."""
    accepted: dict[str, Listed] = {}
    refused = []
    room = _Room()
    for item in tools:
        try:
            tool = item if isinstance(item, Tool) else Tool.model_validate(item, by_name=False)
        except ValueError:
            refused.append(f"{str(item)[:MAX_NAME_CHARS]}: it is no description of a tool")
            continue
        fault = "it is listed twice" if tool.name in accepted else _fault(tool, room)
        if fault:
            refused.append(f"{clean(tool.name)[:MAX_NAME_CHARS]!r}: {fault}")
            continue
        description = clean(tool.description or tool.title or tool.name)
        if len(description) > MAX_DESCRIPTION_CHARS:
            description = description[:MAX_DESCRIPTION_CHARS] + "…"
        arguments = JsonSchema(tool.input_schema, checker(tool.input_schema))
        accepted[tool.name] = Listed(name=tool.name, description=description, arguments=arguments)
    return list(accepted.values()), refused


class _GaveUpError(Exception):
    """The schema asks for more than there is time."""


class _Room:
    """What the schemas of one server may still use up. All is taken before the work that it stands for."""

    def __init__(self) -> None:
        self.bytes = MAX_SCHEMAS_BYTES
        self.steps = MAX_STEPS

    def spend(self, steps: int = 1) -> None:
        if steps > self.steps:
            raise _GaveUpError
        self.steps -= steps


def _fault(tool: Tool, room: _Room) -> str | None:
    """Why a tool cannot be offered; None where it can."""
    schema = tool.input_schema
    if schema.get("type") != "object":
        return "its schema is not one of an object"
    try:
        size = len(msgspec.json.encode(schema))
        if size > MAX_SCHEMA_BYTES:
            return f"its schema is larger than {MAX_SCHEMA_BYTES >> 10} KiB"
        room.bytes -= size
        if room.bytes < 0:
            return f"the schemas before it fill {MAX_SCHEMAS_BYTES >> 10} KiB"
        kind = validator_for(schema, default=jsonschema.Draft202012Validator)
        words = {**kind.VALIDATORS, "uniqueItems": _unique, "format": _format(room)}
        wrong = next(_bounded(kind, words, room.spend)(kind.META_SCHEMA).iter_errors(schema), None)
    except _GaveUpError:
        return "its schema, with those before it, takes too long to check"
    except Exception as error:  # noqa: BLE001 - whatever a stranger's schema does to the library costs this one tool
        return f"its schema is none: {type(error).__name__}"
    return f"its schema is none: {clean(wrong.message)[:200]}" if wrong is not None else None


def _unique(validator: Validator, value: Any, instance: Any, schema: Any) -> Iterator[jsonschema.ValidationError]:
    """`uniqueItems` by what the items are as text. The library compares each with all others if they are no strings."""
    if not value or not isinstance(instance, list):
        return
    if len({msgspec.json.encode(item, order="sorted") for item in instance}) < len(instance):
        yield jsonschema.ValidationError(f"{instance!r} has non-unique elements")


def _format(room: _Room) -> _Keyword:
    """`format` for regular expressions alone: providers refuse a tool with one that is none."""

    def check(validator: Validator, value: Any, instance: Any, schema: Any) -> Iterator[jsonschema.ValidationError]:
        if value != "regex" or not isinstance(instance, str):
            return
        room.spend(len(instance) * _WIDE_STEPS if _WIDE.search(instance) else len(instance) // 2)
        try:
            re.compile(instance)
        except re.error:
            yield jsonschema.ValidationError(f"{instance!r} is not a 'regex'")

    return check


# --- arguments ------------------------------------------------------------------------------------


def checker(schema: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """A check by everything in the schema that takes bounded time; the rest is for the server to find.

    Left out are regular expressions, one of which can take for ever, the comparison of all items with all others, and
    what comes after CHECK_SECS: a few lines of references make billions of steps, and a step may compare the whole
    schema. It is the time that counts, since steps cost what a stranger likes; that of this thread, so that the answer
    is not another one where the machine is busy.
    """
    end = 0.0

    def step() -> None:
        if time.thread_time() > end:
            raise _GaveUpError

    kind = validator_for(schema, default=jsonschema.Draft202012Validator)
    words: dict[str, Any] = {**kind.VALIDATORS, **dict.fromkeys(_LEFT_OUT, _skip)}
    words["additionalProperties"] = _additional(kind.VALIDATORS["additionalProperties"])
    kind = _bounded(kind, words, step)

    def check(arguments: dict[str, Any]) -> None:
        nonlocal end
        end = time.thread_time() + CHECK_SECS
        validator = kind(schema, registry=Registry())  # an empty one: no reference is fetched from the network
        try:
            error = next(validator.iter_errors(arguments), None)
        except Exception:  # noqa: BLE001 - whatever a stranger's schema does to the library: the server has the last word
            return
        if error is not None:
            raise ToolError(f"{clean(error.message)[:MAX_MESSAGE_CHARS]} (at {error.json_path})")

    return check


def _bounded(kind: Any, words: dict[str, Any], step: Callable[[], None]) -> Any:
    """The kind of validator with these keywords, which calls `step` before each and wherever it goes deeper.

    It stays what it is below a `$schema` within a schema. The library goes over to its own kind there, which leaves
    nothing out and counts nothing.
    """
    kind = extend(kind, {word: _counted(keyword, step) for word, keyword in words.items()})
    evolve = kind.evolve

    def stay(validator: Any, **changes: Any) -> Validator:
        step()
        schema = changes.get("schema", validator.schema)
        if isinstance(schema, dict) and "$schema" in schema:
            changes["schema"] = {word: value for word, value in schema.items() if word != "$schema"}
        evolved: Validator = evolve(validator, **changes)
        return evolved

    kind.evolve = stay
    return kind


def _skip(validator: Validator, value: Any, instance: Any, schema: Any) -> None:
    return None


def _counted(keyword: _Keyword, step: Callable[[], None]) -> _Keyword:
    def check(validator: Validator, value: Any, instance: Any, schema: Any) -> Any:
        step()
        return keyword(validator, value, instance, schema)

    return check


def _additional(keyword: _Keyword) -> _Keyword:
    """Which properties are additional depends on regular expressions where there are any."""

    def check(validator: Validator, value: Any, instance: Any, schema: Any) -> Any:
        return None if "patternProperties" in schema else keyword(validator, value, instance, schema)

    return check


# --- names ----------------------------------------------------------------------------------------


def named(listings: Iterable[tuple[str, list[Listed]]]) -> Iterator[tuple[str, str, Listed]]:
    """(name here, server, tool) of every tool: `mcp_<server>_<tool>` with what no provider takes replaced.

    Of tools that would be called alike the one whose own name needed no change, else the first, has the name; the
    others end in a hash of theirs. So what a server lists besides takes no name from a tool that [permissions] names.
    """
    taken: set[str] = set()
    for server, tools in listings:
        for tool in sorted(tools, key=lambda tool: _short(server, tool) != _full(server, tool)):
            name = _short(server, tool)
            if name in taken:
                digest = hashlib.sha256(f"{server}/{tool.name}".encode()).hexdigest()[:_HASH_CHARS]
                name = f"{name[: MAX_NAME_CHARS - _HASH_CHARS - 1]}_{digest}"
            if name not in taken:
                taken.add(name)
                yield name, server, tool


def _full(server: str, tool: Listed) -> str:
    return f"mcp_{server}_{tool.name}"


def _short(server: str, tool: Listed) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", _full(server, tool))[:MAX_NAME_CHARS]
