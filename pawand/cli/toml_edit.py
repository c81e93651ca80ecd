"""One value put into the text of a TOML file; everything else in it stays as it is, to the byte."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from datetime import date, time
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_COMMENTED_HEADER = re.compile(r"\s*#\s*\[[^\[\]]+\]\s*(#.*)?$")


def put(text: str, path: Sequence[str], value: str) -> str:
    """`text` with `value`, which is TOML, at the key `path`.

    A new key stands below the comment that shows it as an example, else at the end of its table. Raises ValueError for
    text that is no TOML, and where the key cannot be put without changing more.
    """
    wanted = changed(tomllib.loads(text), path, value)
    crlf = "\r\n" in text and "\n" not in text.replace("\r\n", "")
    plain = text.replace("\r\n", "\n") if crlf else text
    missing_end = bool(plain) and not plain.endswith("\n")
    for made in _attempts(plain + "\n" * missing_end, path, value):
        if missing_end:
            made = made.removesuffix("\n").removesuffix("\r")
        made = made.replace("\n", "\r\n") if crlf else made
        if _holds(made, wanted):
            return made
    raise ValueError("the key cannot be put there without changing more than that")


def as_toml(text: str, kind: Any) -> str:
    """What a user typed for a setting of type `kind`: TOML where it can be read so, else text.

    A number, truth value or date where text is wanted is text.
    """
    import msgspec
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        made = tomlkit.value(text.strip()).as_string()
        found = tomllib.loads(f"value = {made}")["value"]
    except (TOMLKitError, ValueError, RecursionError):
        return inline(text)
    if isinstance(found, str | list | dict):
        return made
    for value, toml in ((found, made), (text, inline(text))):
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError:
            continue
        return toml
    return made


def changed(values: dict[str, Any], path: Sequence[str], value: str) -> dict[str, Any]:
    """A copy of `values` with `value`, which is TOML, at `path`. Raises ValueError where no table is in the way."""
    made = copy.deepcopy(values)
    table = made
    for number, name in enumerate(path[:-1], 1):
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise ValueError(f"`{dotted(path[:number])}` is no table")  # noqa: TRY004 - the file's fault, not a type's
    table[path[-1]] = tomllib.loads(f"value = {value}")["value"]
    return made


def dotted(path: Sequence[str]) -> str:
    return ".".join(name if _BARE.fullmatch(name) else inline(name) for name in path)


def inline(value: Any) -> str:
    """A value of a TOML document as TOML in one line."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, dict):
        pairs = ", ".join(f"{dotted([name])} = {inline(inner)}" for name, inner in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(inline, value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    return value.isoformat() if isinstance(value, date | time) else str(value)


def _holds(text: str, wanted: dict[str, Any]) -> bool:
    try:
        return _comparable(tomllib.loads(text)) == _comparable(wanted)
    except ValueError:
        return False


def _comparable(values: dict[str, Any]) -> str:
    """For which `nan` is `nan`, and 1 neither 1.0 nor true."""
    return json.dumps(values, sort_keys=True, default=repr)


def _attempts(text: str, path: Sequence[str], value: str) -> Iterator[str]:
    """The ways to do it, the nicest first; those that break something are for the caller to sort out."""
    if _is_there(tomllib.loads(text), path):
        yield _replaced(text, path, value)
        return
    lines = [f"{line}\n" for line in text.split("\n")[:-1]]
    name = path[-1]
    for begin, end in _bodies(lines, path[:-1]):
        for place in _places(lines, begin, end, rf"#\s*{re.escape(dotted([name]))}\s*="):
            yield _inserted(lines, place, f"{dotted([name])} = {value}")
    if len(path) > 1:
        blank = "\n" if text.strip() and not text.endswith("\n\n") else ""
        yield f"{text}{blank}[{dotted(path[:-1])}]\n{dotted([name])} = {value}\n"
    for depth in reversed(range(len(path) - 1)):
        sibling = re.compile(rf"\s*{re.escape(dotted([path[depth]]))}\s*\.")
        for begin, end in _bodies(lines, path[:depth]):
            places = [number + 1 for number in range(begin, end) if sibling.match(lines[number])]
            for place in reversed(places):
                yield _inserted(lines, place, f"{dotted(path[depth:])} = {value}")
    yield _replaced(text, path, value)


def _is_there(values: Any, path: Sequence[str]) -> bool:
    for name in path:
        if not isinstance(values, dict) or name not in values:
            return False
        values = values[name]
    return True


def _replaced(text: str, path: Sequence[str], value: str) -> str:
    """By tomlkit, for values that are there and for tables in one line; what it cannot do comes out as it was."""
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(text)
        if tomlkit.dumps(document) != text:  # lists of tables that do not stand together, say
            return text
        table: Any = document
        for name in path[:-1]:
            if name not in table:
                table[name] = tomlkit.inline_table()
            table = table[name]
        table[path[-1]] = tomlkit.value(value)
        return tomlkit.dumps(document)
    except (TOMLKitError, ValueError, TypeError, KeyError, AttributeError, IndexError):  # its own slips included
        return text


def _bodies(lines: Sequence[str], table: Sequence[str]) -> Iterator[tuple[int, int]]:
    """First line and end of what looks like the body of a table; a text of many lines may look so too."""
    headers = [number for number, line in enumerate(lines) if line.lstrip().startswith("[")]
    starts = [number + 1 for number in headers if table and _header(lines[number]) == list(table)]
    for begin in starts if table else [0]:
        yield begin, next((number for number in headers if number >= begin), len(lines))


def _header(line: str) -> list[str] | None:
    try:
        found: Any = tomllib.loads(line)
    except ValueError:
        return None
    path = []
    while isinstance(found, dict) and found:
        [(name, found)] = found.items()
        path.append(name)
    return path if found == {} else None


def _places(lines: Sequence[str], begin: int, end: int, example: str) -> Iterator[int]:
    """Where a line may be put into a body: below its example, below the last value, at the top."""
    own = next((n for n in range(begin, end) if _COMMENTED_HEADER.match(lines[n])), end)
    yield from (n + 1 for n in range(begin, own) if re.match(rf"\s*{example}", lines[n]))
    last = [n + 1 for n in range(begin, end) if lines[n].strip() and not lines[n].lstrip().startswith("#")]
    yield from last[-1:]
    if begin == 0:
        heading = next((n for n in range(end) if not lines[n].lstrip().startswith("#")), end)
        if heading == len(lines) or not lines[heading].strip():
            yield heading  # what is said at the top of the file stays there
    yield begin


def _inserted(lines: Sequence[str], place: int, line: str) -> str:
    above = lines[place - 1] if place else ""
    indent = "" if above.lstrip().startswith("[") else above[: len(above) - len(above.lstrip(" \t"))]
    return "".join([*lines[:place], f"{indent}{line}\n", *lines[place:]])
