"""Thinking and tool calls that a model writes into the text of its answer, as items of their own.

The text is read by one generator that waits for each chunk. What may be the beginning of a marker is held back; what
began like a call and is none is given out as it was, so that the text given out and the markup taken make up the whole.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import StringIO
from itertools import groupby
from operator import itemgetter
from typing import Any

from pawand.providers.base import Reasoning, Text
from pawand.providers.calls import decode, new_call_id, parse_arguments, whole
from pawand.providers.code_text import CodeText
from pawand.providers.pieces import Pieces, Reader
from pawand.wire import ToolCall

_CALL, _CALL_END, _CALLS = "<tool_call>", "</tool_call>", "[TOOL_CALLS]"
_GAPS = ("{", " {", "[ARGS]{", "[ARGS] {", "[CALL_ID]")  # between the name of a listed call and its arguments
_TAIL = r"|(?P<tail>[<\[][/A-Za-z_]{0,12}\Z)"
_MARKER = re.compile(rf"(?ai:<(?P<slash>/?)(?P<think>think(?:ing)?)>)|{_CALL}|\[TOOL_CALLS\]{_TAIL}")
_THINK_END = {name: re.compile(rf"(?ai:</{name}>){_TAIL}") for name in ("think", "thinking")}
_MARKERS = ("<think>", "</think>", "<thinking>", "</thinking>", _CALL, _CALLS.lower())
_BEGINNINGS = frozenset(marker[:length] for marker in _MARKERS for length in range(1, len(marker)))

Part = Text | Reasoning


class Markup:
    """Reads one answer. `tools` are those of the request: only they can be called.

    Thinking counts at the start of the answer or of a line or after other thinking, calls anywhere, neither in code.
    """

    def __init__(self, tools: Sequence[dict[str, Any]]) -> None:
        functions = [tool.get("function") or {} for tool in tools]
        self._tools = {function["name"]: function.get("parameters") or {} for function in functions}
        self.calls: list[ToolCall] = []
        self._call_texts: list[str] = []
        self._code = CodeText()
        self._unread = StringIO()  # text given out that `_code` has not seen: most answers need it never
        self._began = False
        self._talks = False  # a `<think>` was given out as text, so the next `</think>` belongs to it
        self._pieces = Pieces()
        self._parts: list[tuple[type[Part], str]] = []
        self._plain: type[Part] | None = None  # what text without a marker is; None where something is held back
        self._machine = self._read()
        next(self._machine)

    def feed(self, text: str) -> list[Part]:
        if self._plain is not None and "<" not in text and "[" not in text:
            if self._plain is Text:
                self._unread.write(text)
            return [self._plain(text)] if text else []
        self._pieces.add(text)
        next(self._machine)
        return self._given()

    def end(self) -> list[Part]:
        """What was held back; `calls` are whole then."""
        self._pieces.ended = True
        next(self._machine, None)
        return self._given()

    def close(self) -> None:
        """For an answer that may have no end: what reads it would be kept, and keep all of this."""
        self._machine.close()

    def give_up_calls(self) -> list[Part]:
        """The answer has calls that are no markup: what was taken for calls is text after all."""
        texts, self._call_texts, self.calls, self._tools = self._call_texts, [], [], {}
        return [Text("".join(texts))] if texts else []

    def _given(self) -> list[Part]:
        parts, self._parts = self._parts, []
        return [kind("".join(text for _, text in group)) for kind, group in groupby(parts, key=itemgetter(0))]

    def _give(self, kind: type[Part], text: str) -> None:
        if text:
            self._parts.append((kind, text))
            if kind is Text:
                self._unread.write(text)

    def _give_up_to(self, kind: type[Part], end: int) -> None:
        self._give(kind, self._pieces.text[self._pieces.at : end])
        self._pieces.at = end

    # --- text and thinking ------------------------------------------------------------------------

    def _read(self) -> Reader[None]:
        while marker := (yield from self._next(Text, _MARKER)):
            self._code.read(self._unread.getvalue())
            self._unread = StringIO()
            self._began = self._began or not self._code.blank
            counts = not self._code.inside
            if counts and marker["think"] and not marker["slash"] and self._code.fresh:
                self._pieces.at = marker.end()
                yield from self._think(marker["think"].lower())
            elif counts and marker["slash"] and not self._talks:
                self._pieces.at = marker.end()
                self._code.restart()
            elif counts and marker["think"] is None and self._tools:
                yield from self._call(marker)
            else:
                self._talks = not marker["slash"] if counts and marker["think"] else self._talks
                self._give_up_to(Text, marker.end())

    def _next(self, kind: type[Part], pattern: re.Pattern[str]) -> Reader[re.Match[str] | None]:
        """Gives out text up to a marker, which is not taken; None at the end."""
        pieces = self._pieces
        while True:
            found = pattern.search(pieces.text, pieces.at)
            if found and found["tail"] is None:
                self._give_up_to(kind, found.start())
                return found
            held = found is not None and found[0].lower() in _BEGINNINGS
            self._give_up_to(kind, found.start() if found and held else len(pieces.text))
            self._plain = None if held else kind
            more = yield from pieces.more()
            self._plain = None
            if not more:
                self._give_up_to(kind, len(pieces.text))
                return None

    def _think(self, name: str) -> Reader[None]:
        end = yield from self._next(Reasoning, _THINK_END[name])
        if end is not None:
            self._pieces.at = end.end()
            self._code.restart()
            if not self._began:
                yield from self._pieces.space()
                self._pieces.taken.clear()

    # --- calls ------------------------------------------------------------------------------------

    def _call(self, marker: re.Match[str]) -> Reader[None]:
        self._pieces.take(marker.end())
        yield from self._pieces.space()
        yield from self._tagged() if marker[0] == _CALL else self._listed()
        self._give(Text, "".join(self._pieces.taken))  # what made no call
        self._pieces.taken.clear()

    def _tagged(self) -> Reader[None]:
        """`{"name": …, "arguments": …}` or `<function=…>…</function>`, then the end of the tag or of the answer."""
        pieces = self._pieces
        if (yield from pieces.next_of(("{", "<function="))) == "{":
            text = yield from pieces.json()
            calls = self._parsed(text and f"[{text}]")
        else:
            calls = yield from self._function()
        if not calls:
            return
        yield from pieces.space()
        found = yield from pieces.next_of((_CALL_END, _CALL))
        if found == _CALL_END or (pieces.ended and _CALL_END.startswith(pieces.text[pieces.at :])):
            pieces.take(min(len(pieces.text), pieces.at + len(_CALL_END)))
        elif found != _CALL:
            return
        self._accept(calls)

    def _listed(self) -> Reader[None]:
        """`[{"name": …, "arguments": …}, …]`, or `name{…}`, `name[ARGS]{…}`, `name[CALL_ID]…[ARGS]{…}` repeated."""
        pieces = self._pieces
        if (yield from pieces.next_of("[")):
            self._accept(self._parsed((yield from pieces.json())))
            return
        heads = {name + gap: name for name in self._tools for gap in _GAPS}
        while head := (yield from pieces.next_of(heads)):
            pieces.take(pieces.at + len(head) - 1)
            if head.endswith("]") and (yield from pieces.up_to("[ARGS]")) is None:
                return
            yield from pieces.space()
            text = yield from pieces.json()
            arguments = _value(text)
            if arguments is None:
                return
            self._accept([(heads[head], arguments)])
            yield from pieces.space()

    def _function(self) -> Reader[list[tuple[str, Any]]]:
        """The call, or nothing. Values stand as they are, between two line ends."""
        pieces = self._pieces
        heads = {f"<function={name}>": name for name in self._tools}
        head = yield from pieces.next_of(heads)
        if not head:
            return []
        pieces.take(pieces.at + len(head))
        arguments: dict[str, Any] = {}
        while True:
            yield from pieces.space()
            found = yield from pieces.next_of(("<parameter=", "</function>"))
            pieces.take(pieces.at + len(found))
            if found != "<parameter=":
                return [(heads[head], arguments)] if found else []
            key = yield from pieces.up_to(">")
            value = yield from pieces.up_to("</parameter>")
            if key is None or value is None:
                return []
            key, value = whole(key), whole(value)
            arguments[key] = self._typed(heads[head], key, value.removeprefix("\n").removesuffix("\n"))

    def _typed(self, name: str, key: str, value: str) -> Any:
        """Text where the tool takes text there, JSON where it takes something else."""
        schema = (self._tools.get(name, {}).get("properties") or {}).get(key) or {}
        if "string" in _types(schema):
            return value
        try:
            return decode(value)
        except ValueError:
            return value

    def _parsed(self, text: str | None) -> list[tuple[str, Any]]:
        """The calls of a JSON array; nothing where one of them cannot be."""
        calls = []
        for call in _value(text) or []:
            if not isinstance(call, dict) or not isinstance(call.get("name"), str):
                return []
            arguments = call.get("arguments") or call.get("parameters") or {}
            calls.append((call["name"], parse_arguments(arguments) if isinstance(arguments, str) else arguments))
        return calls

    def _accept(self, calls: list[tuple[str, Any]]) -> None:
        """Make calls of what was taken, if all are of known tools."""
        if calls and all(name in self._tools for name, _ in calls):
            self.calls += [ToolCall(id=new_call_id(), name=name, arguments=arguments) for name, arguments in calls]
            self._call_texts.append("".join(self._pieces.taken))
            self._pieces.taken.clear()
            self._code.restart()


def _value(text: str | None) -> Any:
    """What the JSON says; None where it is none."""
    try:
        return None if text is None else decode(text)
    except ValueError:
        return None


def _types(schema: dict[str, Any]) -> list[str]:
    """The JSON types that a schema names."""
    named = schema.get("type") or []
    return [named] if isinstance(named, str) else [*named, *(t for s in schema.get("anyOf") or [] for t in _types(s))]
