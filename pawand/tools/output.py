"""The one policy for long text: what the model, the previews and the session get to see of it."""

from __future__ import annotations

from typing import Any

import msgspec

PREVIEW_CHARS = 200
MAX_LINE_CHARS = 300
HEAD_BYTES = 16 * 1024
TAIL_BYTES = 48 * 1024
_LEAST = 200  # a string is never cut below this when a result must shrink
_ASK = "ask for less at a time to see them"
_NOTE = 120  # room for the words that say how much is left out


class HeadTail:
    """Keeps the first 16 KiB and the last 48 KiB of a stream of bytes, however long it is."""

    def __init__(self) -> None:
        self._head = bytearray()
        self._tail = bytearray()
        self._total = 0

    def feed(self, data: bytes) -> None:
        self._total += len(data)
        room = HEAD_BYTES - len(self._head)
        self._head += data[:room]
        self._tail += data[room:] if room > 0 else data
        if len(self._tail) > 2 * TAIL_BYTES:
            del self._tail[:-TAIL_BYTES]

    @property
    def missing(self) -> int:
        """How many bytes are left out."""
        return max(0, self._total - len(self._head) - TAIL_BYTES)

    def text(self) -> str:
        """What was kept, as text; a note stands where something is missing."""
        tail = self._tail[-TAIL_BYTES:]
        missing = self.missing
        if not missing:
            return clean((self._head + tail).decode("utf-8", "replace"))
        head_text = self._head.decode("utf-8", "replace").rstrip("\ufffd")
        tail_text = tail.decode("utf-8", "replace").lstrip("\ufffd")
        return clean(f"{head_text}\n[… {missing} bytes left out …]\n{tail_text}")


def clean(text: str) -> str:
    """Text that every JSON reader takes: lone surrogates replaced, NUL shown."""
    if text.isascii() and "\0" not in text:
        return text
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\u2400")


def one_line(text: str) -> str:
    """A stranger's words for a line of the log: printable, and not long."""
    return "".join(c if c.isprintable() else " " for c in text[:MAX_LINE_CHARS])


def how_to_go_on(offset: int, shown: int, total: int) -> dict[str, str]:
    """The field `warning` of a text that is shown in part; nothing where all the rest was shown."""
    after = offset + shown
    if after < total:
        return {"warning": f"{total - after} more lines: go on with offset={after}"}
    return {"warning": f"the file has only {total} lines"} if offset > total else {}


def lines_of(text: str) -> list[str]:
    """Lines as editors and grep count them: a line feed ends one, and a carriage return before it is no part of it."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def clip(text: str, limit: int, hint: str = "") -> str:
    """At most about `limit` characters, cut at line ends from the middle, with a note that says so."""
    if len(text) <= limit:
        return text
    head_size, tail_size = limit * 2 // 3, limit // 3
    head, tail = text[:head_size], text[len(text) - tail_size :]
    head = head[: head.rfind("\n") + 1] or head
    tail = tail[tail.find("\n") + 1 :] or tail
    note = f"[… {len(text) - len(head) - len(tail)} characters left out{f'; {hint}' if hint else ''} …]"
    return f"{head}{'' if head.endswith(chr(10)) else chr(10)}{note}\n{tail}"


def fit(result: Any, limit: int) -> Any:
    """A tool's result in at most `limit` characters (500 or more), as a text or as JSON: its long parts are cut."""
    if _size(result) <= limit:
        return result
    fitted = _fit(_without_long_strings(result, limit), limit)
    return fitted if _size(fitted) <= limit else clip(msgspec.json.encode(fitted).decode(), limit - _NOTE, _ASK)


def _without_long_strings(value: Any, limit: int) -> Any:
    """First of all, since what follows weighs each part once for every level that it lies below."""
    if isinstance(value, str):
        return clip(value, limit, _ASK)
    if isinstance(value, list):
        return [_without_long_strings(item, limit) for item in value]
    if isinstance(value, dict):
        return {key: _without_long_strings(item, limit) for key, item in value.items()}
    return value


def _fit(value: Any, limit: int) -> Any:
    if _size(value) <= limit:
        return value
    if isinstance(value, str):
        return _fit_text(value, limit)
    if isinstance(value, list) and value:
        return _fit_list(value, limit)
    if isinstance(value, dict) and value:
        return _share(value, limit - sum(_size(key) + 2 for key in value) - 1)
    return value


def _fit_text(text: str, limit: int) -> str:
    if _size(text) <= _LEAST + _NOTE:
        return text
    characters = len(text)
    cut = text
    for _ in range(4):  # a character takes one to six bytes, and not the same number everywhere
        characters = max(_LEAST, int(characters * limit / _size(cut)) - _NOTE)
        cut = clip(text, characters, _ASK)
        if _size(cut) <= limit or characters == _LEAST:
            break
    return cut


def _fit_list(items: list[Any], limit: int) -> list[Any]:
    """The first items, as many as find room when the long ones are cut."""
    room = limit - _NOTE - 2
    keep = 0
    for item in items:
        room -= _least(item) + 1
        if room < 0:
            break
        keep += 1
    keep = max(keep, 1)
    note = [f"[… {len(items) - keep} more left out …]"] if keep < len(items) else []
    return [*_share(dict(enumerate(items[:keep])), limit - keep - 1 - _NOTE * len(note)).values(), *note]


def _least(value: Any) -> int:
    """How short it can be made."""
    size = _size(value)
    if isinstance(value, str):
        return min(size, _LEAST + _NOTE)
    if isinstance(value, dict):
        return sum(_size(key) + _least(item) + 2 for key, item in value.items()) + 1
    if isinstance(value, list) and value:
        return min(size, _least(value[0]) + _NOTE)
    return size


def _share(values: dict[Any, Any], room: int) -> dict[Any, Any]:
    """Each gets the same room; what the shorter ones do not need is for the longer ones."""
    fitted: dict[Any, Any] = {}
    for number, key in enumerate(sorted(values, key=lambda key: _size(values[key]))):
        fitted[key] = _fit(values[key], room // (len(values) - number))
        room -= _size(fitted[key])
    return {key: fitted[key] for key in values}


def _size(value: Any) -> int:
    return len(msgspec.json.encode(value))


def preview(result: Any) -> str:
    """The first characters of a result for people who watch: its main text, else its JSON."""
    text = result
    if isinstance(result, dict):
        text = next(
            (result[key] for key in ("error", "diff", "content", "stdout", "results") if result.get(key)), result
        )
    if isinstance(text, list) and all(isinstance(line, str) for line in text):
        text = "\n".join(text)
    if not isinstance(text, str):
        text = msgspec.json.encode(text).decode()
    return text if len(text) <= PREVIEW_CHARS else text[: PREVIEW_CHARS - 1] + "…"
