"""The rules of `.gitignore`, read as git reads them, and matched in a time that no rule can make explode."""

from __future__ import annotations

import re
from collections.abc import Iterable

from msgspec import Struct

MAX_RULE_CHARS = 4096  # as long as a path may be

_ANY_FOLDERS = None
_Part = str | re.Pattern[str] | None
"""What one name of a path must be, or `**` for any number of names."""

_TOKEN = re.compile(r"(?P<stars>\*+)|\\(?P<kept>.)|(?P<plain>[^*?\[\\])|[?\[]", re.DOTALL)
_ITEM = re.compile(r"\[:(?P<known>[^\]]*):\]|(?P<low>\\.|[^\\])(?:-(?P<high>\\.|[^\]\\]))?", re.DOTALL)
_KNOWN = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "blank": r" \t",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": r"\x21-\x7e",
    "lower": "a-z",
    "print": r"\x20-\x7e",
    "punct": r"\x21-\x2f\x3a-\x40\x5b-\x60\x7b-\x7e",
    "space": r" \t-\r",
    "upper": "A-Z",
    "xdigit": "0-9A-Fa-f",
}


class Rule(Struct, frozen=True):
    """A line that says what to leave out, or what to keep if it is `turned`."""

    parts: tuple[_Part, ...]
    turned: bool
    by_name: bool
    """It has one part, which may stand at any depth."""
    only_folders: bool

    def names(self, path: list[str], *, is_folder: bool) -> bool:
        """Whether it means this path below its own folder, given as names; not whether it means a folder above."""
        if self.only_folders and not is_folder:
            return False
        return _fits(self.parts[0], path[-1]) if self.by_name else _match(self.parts, path)


def verdict(rules: list[Rule], path: list[str], *, is_folder: bool) -> bool | None:
    """Whether the path is left out, by the last rule that names it; None where none does."""
    return next((not rule.turned for rule in reversed(rules) if rule.names(path, is_folder=is_folder)), None)


def parse(lines: Iterable[str]) -> list[Rule]:
    """Lines that mean nothing to git are passed over, and so are those that are longer than any path."""
    rules: list[Rule] = []
    for line in lines:
        text = _trimmed(line)
        if text and not text.startswith("#") and len(text) <= MAX_RULE_CHARS:
            try:
                rules.append(_rule(text))
            except _Senseless:
                continue
    return rules


class _Senseless(Exception):  # noqa: N818 (nothing is wrong with a line that names nothing)
    """A rule that can never match."""


def _trimmed(line: str) -> str:
    """Without the spaces at the end, but for one that a backslash keeps."""
    bare = line.rstrip(" ")
    kept = (len(bare) - len(bare.rstrip("\\"))) % 2 and bare != line
    return f"{bare} " if kept else bare


def _rule(text: str) -> Rule:
    turned = text.startswith("!")
    text = text.removeprefix("!")
    only_folders = text.endswith("/")
    text = text.removesuffix("/")
    by_name = "/" not in text
    parts = _parts(text.removeprefix("/"))
    if by_name and parts == [_ANY_FOLDERS]:
        parts = [re.compile(".*", re.DOTALL)]
    return Rule(tuple(parts), turned, by_name, only_folders)


def _parts(text: str) -> list[_Part]:
    parts: list[_Part] = []
    reading = _Reading()
    at = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            raise _Senseless  # a backslash with nothing behind it
        at = token.end()
        character = token["kept"] or token["plain"]
        if token["stars"]:
            reading.pieces.append("")
            reading.only_stars = len(token["stars"]) > 1
            reading.plain = None
        elif character == "/":
            parts.append(reading.part())
            reading = _Reading()
        elif character:
            reading.add(re.escape(character), character)
        elif token[0] == "?":
            reading.add(".")
        else:
            expression, at = _characters(text, at)
            reading.add(expression)
    return [*parts, reading.part()]


class _Reading:
    """A part of a rule, as far as it is read."""

    def __init__(self) -> None:
        self.pieces = [""]
        """Expressions, between each two of which there is a star."""
        self.plain: str | None = ""
        """The name that the part is, where it holds no expressions."""
        self.only_stars = False

    def add(self, expression: str, character: str | None = None) -> None:
        self.pieces[-1] += expression
        self.plain = None if self.plain is None or character is None else self.plain + character

    def part(self) -> _Part:
        if self.plain is not None:
            if not self.plain:
                raise _Senseless  # no name is empty
            return self.plain
        if self.only_stars and self.pieces == ["", ""]:
            return _ANY_FOLDERS
        # What a star has taken stays taken, so that there is one way to match. Said as fnmatch does it: atomic
        # groups have a mistake up to Python 3.11.4.
        first, *inner = self.pieces
        last = f".*{inner.pop()}" if inner else ""
        taken = (f"(?=(?P<g{number}>.*?{piece}))(?P=g{number})" for number, piece in enumerate(inner))
        return re.compile("".join([first, *taken, last]), re.DOTALL)


def _characters(text: str, at: int) -> tuple[str, int]:
    """The expression for what stands behind `[`, and where it ends."""
    turned = text[at : at + 1] in ("!", "^")
    at = first = at + turned
    items: list[str] = []
    while at == first or text[at : at + 1] != "]":  # as the first character it is one like others
        item = _ITEM.match(text, at)
        if item is None or item["known"] not in (None, *_KNOWN):
            raise _Senseless
        at = item.end()
        if item["known"] is not None:
            items.append(_KNOWN[item["known"]])
            continue
        low = item["low"][-1]
        high = max(low, (item["high"] or low)[-1])  # of a range the wrong way round git takes the first character
        items.append(f"{re.escape(low)}-{re.escape(high)}")
    return f"[{'^' if turned else ''}{''.join(items)}]", at + 1


def _fits(part: _Part, name: str) -> bool:
    if isinstance(part, str):
        return part == name
    return part is not None and part.fullmatch(name) is not None


def _match(parts: tuple[_Part, ...], path: list[str]) -> bool:
    reached = {0}  # how many names may be used up so far
    for number, part in enumerate(parts, 1):
        if part is _ANY_FOLDERS:
            least = min(reached) + (number == len(parts))  # at the end it stands for what is inside
            reached = set(range(least, len(path) + 1))
        else:
            reached = {at + 1 for at in reached if at < len(path) and _fits(part, path[at])}
        if not reached:
            return False
    return len(path) in reached
