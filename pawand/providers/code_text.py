"""Which parts of an answer's text are code (CommonMark 4.5, 6.1): markup there is talked about, not meant."""

from __future__ import annotations

import re

# Before a fence: indentation, quotes, one list item.
_OPENING = re.compile(r"(?:\A|\n)[ \t>]*(?:(?:[-*+]|[0-9]{1,9}[.)])[ \t]+)?(`{3,}|~{3,})|`+")
_CLOSING = r"\n[ \t>]*%s{%d,}[ \t\r]*(?=\n)"
_LINE_OR_TICKS = re.compile(r"\n|`+")


class CodeText:
    """Follows the text; where it stands is asked only between two pieces, and a piece may not end in backticks."""

    def __init__(self) -> None:
        self._fence = ""
        self._first_line = False
        self._ticks = 0
        self.blank = True
        """Nothing but white space since the start."""
        self._ends_line = False

    @property
    def inside(self) -> bool:
        return bool(self._fence or self._ticks)

    @property
    def fresh(self) -> bool:
        """At the start, but for white space, or of a line."""
        return self.blank or self._ends_line

    def restart(self) -> None:
        """What follows stands as at the start of an answer."""
        self.blank = True

    def read(self, text: str) -> None:
        if not text:
            return
        self.blank = self.blank and text.isspace()
        self._ends_line = text.endswith("\n")
        at: int | None = 0
        while at is not None:
            if self._first_line:
                at = self._read_first_line(text, at)
            elif self._fence:
                at = self._read_fenced(text, at)
            else:
                at = self._read_prose(text, at)

    def _read_first_line(self, text: str, at: int) -> int | None:
        """A backtick there means that the fence was none but inline code."""
        found = _LINE_OR_TICKS.search(text, at)
        while found and found[0] != "\n" and self._fence[0] == "~":
            found = _LINE_OR_TICKS.search(text, found.end())
        if found is None:
            return None
        self._first_line = False
        if found[0] != "\n":
            self._ticks, self._fence = len(self._fence), ""
        return found.start()

    def _read_fenced(self, text: str, at: int) -> int | None:
        found = re.compile(_CLOSING % (self._fence[0], len(self._fence))).search(text, at)
        if found is None:
            return None
        self._fence = ""
        return found.end()

    def _read_prose(self, text: str, at: int) -> int | None:
        """Inline code is taken to end with its line, so that a stray backtick hides nothing below."""
        found = (_LINE_OR_TICKS if self._ticks else _OPENING).search(text, at)
        if found is None:
            return None
        if not self._ticks:
            self._fence = found[1] or ""
            self._first_line = bool(self._fence)
            self._ticks = 0 if self._fence else len(found[0])
        elif found[0] == "\n":
            self._ticks = 0
            return found.start()
        elif len(found[0]) == self._ticks:
            self._ticks = 0
        return found.end()
