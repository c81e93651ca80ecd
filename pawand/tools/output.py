"""The one policy for long text: what the model, the previews and the session get to see of it."""

from __future__ import annotations

from typing import Any

import msgspec

PREVIEW_CHARS = 200
HEAD_BYTES = 16 * 1024
TAIL_BYTES = 48 * 1024
_LEAST = 200  # a string is never cut below this when a result must shrink


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

    def text(self) -> str:
        """What was kept, as text; a note stands where something is missing."""
        tail = self._tail[-TAIL_BYTES:]
        missing = self._total - len(self._head) - len(tail)
        if missing <= 0:
            return clean((self._head + tail).decode("utf-8", "replace"))
        head_text = self._head.decode("utf-8", "replace").rstrip("\ufffd")
        tail_text = tail.decode("utf-8", "replace").lstrip("\ufffd")
        return clean(f"{head_text}\n[… {missing} bytes left out …]\n{tail_text}")


def clean(text: str) -> str:
    """Text that every JSON reader takes: lone surrogates replaced, NUL shown."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\u2400")


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
    """A tool's result whose JSON has at most about `limit` characters: its longest strings and lists are cut."""
    for _ in range(8):
        size = len(msgspec.json.encode(result))
        if size <= limit:
            return result
        result = _shrink(result, size - limit)
    return clip(msgspec.json.encode(result).decode(), limit)


def _shrink(result: Any, excess: int) -> Any:
    if isinstance(result, str):
        size = len(msgspec.json.encode(result))  # of bytes, of which a character may take up to six
        return clip(result, max(_LEAST, int(len(result) * (1 - excess / size)) - 80))
    if isinstance(result, list) and len(result) > 1:
        keep = max(1, int(len(result) * (1 - excess / max(excess + 1, len(msgspec.json.encode(result))))) - 1)
        return [*result[:keep], f"[… {len(result) - keep} more left out …]"]
    if isinstance(result, dict) and result:
        longest = max(result, key=lambda key: len(msgspec.json.encode(result[key])))
        return {**result, longest: _shrink(result[longest], excess)}
    return result


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
