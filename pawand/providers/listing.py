"""Which models a provider says it has: what of its answer is used, and how often it is asked."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable

import msgspec
from msgspec import Struct

from pawand.errors import ProviderError
from pawand.redact import Redactor
from pawand.wire import MAX_MODEL_CHARS, MODEL_PATTERN

MAX_BYTES = 4 * 1024 * 1024
MAX_MODELS = 2000
KEPT_SECS = 60.0
FAILED_SECS = 5.0
_NAME = re.compile(MODEL_PATTERN)


class Listing:
    """Asks at most once in KEPT_SECS, after a failure in FAILED_SECS, with one request for all who wait."""

    def __init__(self, ask: Callable[[], Awaitable[list[str]]]) -> None:
        self._ask = ask
        self._asking = asyncio.Lock()
        self._names: list[str] = []
        self._until = 0.0
        self._failure: ProviderError | None = None
        self._asked = 0

    async def names(self) -> list[str]:
        """Raises ProviderError, to all who waited for the same request."""
        seen = self._asked
        async with self._asking:
            if self._asked == seen and time.monotonic() >= self._until:
                await self._refresh()
            if self._failure is not None:
                raise self._failure
            return self._names

    async def _refresh(self) -> None:
        try:
            self._names, self._failure = await self._ask(), None
            self._until = time.monotonic() + KEPT_SECS
        except ProviderError as error:
            self._failure = error
            self._until = time.monotonic() + FAILED_SECS
        self._asked += 1


class _Row(Struct, frozen=True):
    id: str


class _Page(Struct, frozen=True):
    data: list[_Row]


def read(body: bytes | bytearray, redactor: Redactor) -> list[str]:
    """The names in an answer of `/models`, OpenAI's or a bare list, each once. Raises ValueError for what is none."""
    try:
        page = msgspec.json.decode(body, type=_Page | list[_Row])
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    rows = page.data if isinstance(page, _Page) else page
    names = (redactor.text(row.id) for row in rows)
    return [*dict.fromkeys(name for name in names if _is_name(name))][:MAX_MODELS]


def _is_name(name: str) -> bool:
    return len(name) <= MAX_MODEL_CHARS and _NAME.fullmatch(name) is not None
