"""Whole lines of a text: where they stand, how they end, and which of them an anchor means."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from pawand.errors import ToolError
from pawand.tools.changes import nearest
from pawand.tools.diffs import Edit
from pawand.tools.output import lines_of

MAX_PLACES = 10
_MARK = "\ufeff"  # of the byte order; it stands before the first line and is no part of it


class Line(Struct, frozen=True):
    """`number` counts from 1; the text goes from `start` to before `end`; `ending` is its newline, if it has one."""

    number: int
    start: int
    end: int
    ending: str


def new_lines(content: str | list[str]) -> list[str]:
    """The lines of a new text, without their endings; a list has one at least for each of its elements."""
    if isinstance(content, str):
        return lines_of(content)
    return [line for text in content for line in lines_of(text) or [""]]


class Lines:
    """The lines of a text, by number."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._first = len(_MARK) if text.startswith(_MARK) else 0
        self._starts = [self._first]
        at = text.find("\n")
        while at != -1:
            self._starts.append(at + 1)
            at = text.find("\n", at + 1)
        if self._starts[-1] == len(text):
            self._starts.pop()

    def __len__(self) -> int:
        return len(self._starts)

    def line(self, number: int) -> Line:
        start = self._starts[number - 1]
        behind = self._starts[number] if number < len(self) else len(self._text)
        whole = self._text[start:behind]
        ending = "\r\n" if whole.endswith("\r\n") else "\n" if whole.endswith("\n") else ""
        return Line(number, start, behind - len(ending), ending)

    def ending_near(self, number: int, content: str | list[str]) -> str:
        """How a new line beside this one ends: as this one, else as the one before, else as in the new text."""
        for near in (number, number - 1):
            if 1 <= near <= len(self) and (ending := self.line(near).ending):
                return ending
        text = content if isinstance(content, str) else "".join(content)
        return "\r\n" if "\r\n" in text else "\n"

    def replace(self, first: int, last: int, content: str | list[str]) -> Edit:
        """New lines for those from `first` to `last`; each ends as the one in whose place it comes."""
        new = new_lines(content)
        if first == 1 and self._first and new:
            new[0] = new[0].removeprefix(_MARK)  # as read_file shows it
        start, stop = self.line(first).start, self.line(last)
        beside = self.ending_near(last, content)
        endings = [self.line(min(first + at, last)).ending or beside for at in range(len(new))]
        if endings and not stop.ending:
            endings[-1] = ""
        return Edit(start, stop.end + len(stop.ending), "".join(map(str.__add__, new, endings)))

    def insert_after(self, number: int, content: str | list[str]) -> Edit:
        """New lines behind a line, or at the beginning for 0; a newline that misses at the end stays missing."""
        ending = self.ending_near(number, content)
        new = new_lines(content)
        if not number:
            return Edit(self._first, self._first, "".join(f"{line}{ending}" for line in new))
        line = self.line(number)
        at = line.end + len(line.ending)
        if line.ending:
            return Edit(at, at, "".join(f"{text}{ending}" for text in new))
        return Edit(at, at, "".join(f"{ending}{text}" for text in new))


def find_anchor(text: str, anchor: str, path: str) -> tuple[int, int]:
    """(first, last) line that are the anchor: exactly, else but for white space, else but for case too.

    Raises ToolError where none is or several are.
    """
    if text.startswith(_MARK):
        text, anchor = text.removeprefix(_MARK), anchor.removeprefix(_MARK)
    wanted = lines_of(anchor)
    if not anchor.strip():
        raise ToolError("anchor_text is blank: give a line that stands once in the file")
    lines = lines_of(text)
    for same in (str, _squeezed, _folded):
        places = _places(lines, wanted, same)
        if len(places) == 1:
            return places[0], places[0] + len(wanted) - 1
        if places:
            numbers = ", ".join(map(str, places[:MAX_PLACES])) + (", …" if len(places) > MAX_PLACES else "")
            raise ToolError(
                f"anchor_text stands more than once in {path}, on lines {numbers}: "
                "give several lines that together stand there once"
            )
    raise ToolError(f"anchor_text is no whole line of {path}.{nearest(text, anchor)}")


def _places(lines: list[str], wanted: list[str], same: Callable[[str], str]) -> list[int]:
    """The numbers of the lines on which the wanted ones begin, one more than are told at most."""
    hay = "\n".join(["", *map(same, lines), ""])
    needle = "\n".join(["", *map(same, wanted), ""])
    places: list[int] = []
    number = 1
    counted = 0
    at = hay.find(needle)
    while at != -1 and len(places) <= MAX_PLACES:
        number += hay.count("\n", counted, at)
        counted = at
        places.append(number)
        at = hay.find(needle, at + 1)
    return places


def _squeezed(line: str) -> str:
    return " ".join(line.split())


def _folded(line: str) -> str:
    return _squeezed(line).casefold()
