"""Live output of a call, for those who watch: as it comes, but never so much that it becomes a flood."""

from __future__ import annotations

import asyncio

from pawand.tools.base import Emit
from pawand.tools.output import clean

INTERVAL_SECS = 0.1
MAX_CHARS = 4096
LEFT_OUT = "[…]\n"


class Live:
    """Passes output on as it comes, at most ten times a second and MAX_CHARS each time."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._text = ""
        self._timer: asyncio.TimerHandle | None = None

    def feed(self, text: str) -> None:
        self._text += text
        if len(self._text) > MAX_CHARS:
            self._text = LEFT_OUT + self._text[-MAX_CHARS:]
        if self._timer is None:
            self._pass_on()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._text:
            self._emit(clean(self._text))

    def _pass_on(self) -> None:
        self._timer = None
        if self._text:
            self._emit(clean(self._text))
            self._text = ""
            self._timer = asyncio.get_running_loop().call_later(INTERVAL_SECS, self._pass_on)
