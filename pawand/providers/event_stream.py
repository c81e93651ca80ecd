"""Server-sent events from an upstream, cut out of the bytes as they come (WHATWG HTML 9.2)."""

from __future__ import annotations

import codecs

from pawand.errors import ProviderError

MAX_EVENT_BYTES = 16 * 1024 * 1024


class SseParser:
    """The data fields of an event stream, in bytes so that no character is cut (WHATWG HTML 9.2)."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._data: list[bytes] = []
        self._size = 0
        self._first = True

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of each event that `chunk` completes. Raises ProviderError for an event beyond all measure."""
        if self._first:
            chunk = chunk.removeprefix(codecs.BOM_UTF8)
            self._first = False
        self._size += len(chunk)
        if self._size > MAX_EVENT_BYTES:
            raise ProviderError(f"the provider sent an event of more than {MAX_EVENT_BYTES >> 20} MiB")
        self._pieces.append(chunk)
        if b"\n" not in chunk:
            return []
        *lines, rest = b"".join(self._pieces).split(b"\n")
        self._pieces = [rest]
        events: list[bytes] = []
        for line in lines:
            line = line.rstrip(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                events.append(b"\n".join(self._data))
                self._data = []
        if events:
            self._size = len(rest) + sum(map(len, self._data))
        return events

    @property
    def pending(self) -> bytes:
        """An event that the end of the stream left without its blank line."""
        lines = [*self._data]
        rest = b"".join(self._pieces)
        if rest.startswith(b"data:"):
            lines.append(rest[5:].strip())
        return b"\n".join(lines)
