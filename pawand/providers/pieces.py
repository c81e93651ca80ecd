"""Text that comes in pieces, read as if it were there: each method waits for as much as it needs, and no more."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable
from typing import TypeVar

from pawand.providers.calls import MAX_DEPTH

T = TypeVar("T")
Reader = Generator[None, None, T]
"""Yields where it has to wait for the next piece."""

_SPACE = re.compile(r"[ \t\r\n]*")
_IN_STRING = re.compile(r'(?:[^"\\]++|\\.)*+', re.DOTALL)
_SCALAR = re.compile(r"[-+.0-9A-Za-z]*")
_SCALAR_START = frozenset("-0123456789tfn")
_VALUE = _SCALAR_START | frozenset('"[{')
_KEY = frozenset('"')
_FIRST_KEY = frozenset('"}')
_COLON = frozenset(":")
_AFTER = {"}": frozenset(",}"), "]": frozenset(",]")}


class Pieces:
    """Each character is looked at a bounded number of times, however the text is cut."""

    def __init__(self) -> None:
        self.text = ""
        """What is not taken yet begins at `at`."""
        self.at = 0
        self.ended = False
        self.taken: list[str] = []

    def add(self, text: str) -> None:
        self.text = self.text[self.at :] + text
        self.at = 0

    def more(self) -> Reader[bool]:
        """Whether anything follows."""
        if not self.ended:
            yield
        return not self.ended

    def take(self, end: int) -> None:
        self.taken.append(self.text[self.at : end])
        self.at = end

    def space(self) -> Reader[None]:
        """Takes white space."""
        yield from self._run(_SPACE)

    def next_of(self, options: Iterable[str]) -> Reader[str]:
        """The one of the options that follows, not taken; empty where none does."""
        while True:
            left = [option for option in options if self.text.startswith(option, self.at)]
            if left:
                return left[0]
            rest = len(self.text) - self.at
            options = [o for o in options if rest < len(o) and o.startswith(self.text[self.at :])]
            if not options or not (yield from self.more()):
                return ""

    def up_to(self, end: str) -> Reader[str | None]:
        """Takes all to the end of `end`; what stood before it, or None where it does not come."""
        first = len(self.taken)
        while (found := self.text.find(end, self.at)) < 0:
            self.take(max(self.at, len(self.text) - len(end) + 1))
            if not (yield from self.more()):
                return None
        self.take(found)
        before = "".join(self.taken[first:])
        self.take(found + len(end))
        return before

    def json(self) -> Reader[str | None]:
        """Takes an object or array, up to where it is whole or can be none; its text, or None."""
        first = len(self.taken)
        closers: list[str] = []
        wanted: frozenset[str] = frozenset("[{")
        while True:
            if self.at == len(self.text) or self.text[self.at].isspace():
                yield from self.space()
            if self.at == len(self.text) or self.text[self.at] not in wanted or len(closers) > MAX_DEPTH:
                return None
            character = self.text[self.at]
            if character in _SCALAR_START:
                yield from self._run(_SCALAR)
            else:
                self.take(self.at + 1)
            if character == '"' and not (yield from self._string()):
                return None
            if character in "{[":
                closers.append("}" if character == "{" else "]")
                wanted = _FIRST_KEY if character == "{" else _VALUE | {"]"}
            elif character == ",":
                wanted = _KEY if closers[-1] == "}" else _VALUE
            elif character == '"' and (wanted is _KEY or wanted is _FIRST_KEY):
                wanted = _COLON
            elif character == ":":
                wanted = _VALUE
            else:
                if character in "}]":
                    closers.pop()
                    if not closers:
                        return "".join(self.taken[first:])
                wanted = _AFTER[closers[-1]]

    def _string(self) -> Reader[bool]:
        """Takes the rest of a string; False where it does not end."""
        while True:
            yield from self._run(_IN_STRING)
            if self.text.startswith('"', self.at):
                self.take(self.at + 1)
                return True
            if not (yield from self.more()):  # a backslash stands alone
                return False

    def _run(self, pattern: re.Pattern[str]) -> Reader[None]:
        """Takes all that fits, be it nothing."""
        while True:
            found = pattern.match(self.text, self.at)
            assert found is not None
            self.take(found.end())
            if self.at < len(self.text) or not (yield from self.more()):
                return
