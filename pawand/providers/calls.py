"""Tool calls as the agent gets them: put together from the pieces of a stream, their arguments made safe."""

from __future__ import annotations

import json
import re
import uuid
from typing import Any

import msgspec
from msgspec import Struct

from pawand.wire import ToolCall

MAX_DEPTH = 100
_THINK_TAG = re.compile(r"(?ai:<(/?)(think(?:ing)?)>)")


class Function(Struct):
    name: str | None = None
    arguments: Any = None


class CallDelta(Struct):
    index: int | None = None
    id: str | int | None = None
    function: Function | None = None


class Calls:
    """The calls of one answer; servers tell them apart by id, by index, or (one whole call a chunk) by neither."""

    def __init__(self) -> None:
        self._calls: list[_PartialCall] = []

    def add(self, delta: CallDelta) -> None:
        """Some servers repeat the head in every piece."""
        function = delta.function or Function()
        id = "" if delta.id is None else str(delta.id)
        call = self._known(id, delta, function)
        if call is None:
            call = _PartialCall(index=delta.index)
            self._calls.append(call)
        call.id = call.id or id
        if function.name and function.name != call.name:
            call.name += function.name
        if isinstance(function.arguments, str):
            call.arguments.append(function.arguments)
        elif function.arguments is not None:
            call.arguments.append(json.dumps(function.arguments))  # which takes lone surrogates

    def _known(self, id: str, delta: CallDelta, function: Function) -> _PartialCall | None:
        for call in self._calls:
            if id and call.id == id and delta.index in (None, call.index):
                return call
        for call in reversed(self._calls):
            if delta.index is not None and call.index == delta.index:
                other_id = id and call.id and id != call.id
                other_name = call.arguments and function.name != call.name
                return None if function.name and (other_id or other_name) else call
        continues = delta.index is None and not id and not function.name
        return self._calls[-1] if continues and self._calls else None

    def whole(self) -> list[ToolCall]:
        calls: dict[str, ToolCall] = {}
        for call in (partial.whole() for partial in self._calls if partial.name):
            if call.id in calls:  # some servers number the calls of every answer alike
                call = msgspec.structs.replace(call, id=new_call_id())
            calls[call.id] = call
        return list(calls.values())


class _PartialCall:
    def __init__(self, index: int | None) -> None:
        self.index = index
        self.id = ""
        self.name = ""
        self.arguments: list[str] = []

    def whole(self) -> ToolCall:
        return ToolCall(id=self.id or new_call_id(), name=self.name, arguments=parse_arguments("".join(self.arguments)))


def new_call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def parse_arguments(text: str) -> Any:
    """The JSON value; without the thinking that some models write into it; the text itself where it is no JSON."""
    text = whole(text).strip() or "{}"
    for candidate in (text, _without_thinking(text)):
        try:
            value = decode(candidate)
        except ValueError:
            continue
        if value is None:
            return {}
        return value if _depth(candidate) <= MAX_DEPTH else text
    return text


def whole(text: str) -> str:
    """Text without lone surrogates, which no file and no answer can hold."""
    return text.encode("utf-8", "replace").decode()


def decode(text: str) -> Any:
    """Any JSON, lone surrogates in it replaced. Raises ValueError for what is no JSON."""
    try:
        return msgspec.json.decode(json.dumps(json.loads(text), ensure_ascii=False).encode("utf-8", "replace"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _without_thinking(text: str) -> str:
    """Without `<think>…</think>`; a tag that has no partner stays."""
    kept: list[str] = []
    at = 0
    opened: re.Match[str] | None = None
    for tag in _THINK_TAG.finditer(text):
        if opened is None:
            opened = None if tag[1] else tag
        elif tag[1] and tag[2].lower() == opened[2].lower():
            kept.append(text[at : opened.start()])
            at, opened = tag.end(), None
    return "".join(kept) + text[at:]


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
