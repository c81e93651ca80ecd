"""Finds the brace that closes a block, past those in strings and comments as far as that goes without a parser."""

from __future__ import annotations

import re

MAX_CHARS = 1024 * 1024

_MARK = re.compile(r'"""|["\'`{}]|(?<![\w:])//|/\*|(?<!\S)\#\s|\br\#+"')
_TO_LINE_END = re.compile(r"[^\n]*")
_QUOTED = {mark: re.compile(rf"(?:\\.|[^{mark}\\\n])*{mark}?", re.DOTALL) for mark in "\"'"}
_RUST_CHARACTER = re.compile(r"(?:\\[^'\n]+|[^'\\\n])'")
_CLOSING = {"/*": "*/", '"""': '"""', "`": "`"}


class _Lexer:
    """Goes through a text from brace to brace."""

    def __init__(self, text: str, at: int, *, rust: bool) -> None:
        self._text = text
        self._at = at
        self._limit = min(len(text), at + MAX_CHARS)
        self._rust = rust  # where 'a is a lifetime
        self._open: set[str] = set()  # what does not close any more

    def next(self) -> int | None:
        """Where the next brace stands."""
        while mark := _MARK.search(self._text, self._at, self._limit):
            self._at = mark.end()
            if mark[0] in "{}":
                return mark.start()
            self._pass(mark[0])
        return None

    def _pass(self, mark: str) -> None:
        if mark == "//" or mark.startswith("#"):
            self._at = self._end(_TO_LINE_END, self._at - (mark[-1] == "\n"))
        elif mark == "'" and self._rust:
            self._at = self._end(_RUST_CHARACTER, self._at)
        elif mark in _QUOTED:
            self._at = self._end(_QUOTED[mark], self._at)
        elif mark not in self._open:
            closing = _CLOSING.get(mark, '"' + "#" * mark.count("#"))
            end = self._text.find(closing, self._at, self._limit)
            if end == -1:
                self._open.add(mark)
            else:
                self._at = end + len(closing)

    def _end(self, pattern: re.Pattern[str], at: int) -> int:
        found = pattern.match(self._text, at, self._limit)
        return found.end() if found else at


def closing(text: str, line_start: int, brace: int, path: str) -> int | None:
    """Where the brace stands that closes the one at `brace`; None without one, or if that is no brace of the code."""
    lexer = _Lexer(text, line_start, rust=path.endswith(".rs"))
    at = lexer.next()
    while at is not None and at < brace:
        at = lexer.next()
    if at != brace:
        return None
    depth = 1
    while depth:
        at = lexer.next()
        if at is None:
            return None
        depth += 1 if text[at] == "{" else -1
    return at
