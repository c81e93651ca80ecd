"""What asyncio leaves to its users."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import Any, TypeVar

_T = TypeVar("_T")


async def uninterrupted(work: Coroutine[Any, Any, _T]) -> _T:
    """Wait for `work` to its end, however often the caller is cancelled; a cancellation is raised after it."""
    task = asyncio.ensure_future(work)
    interruption: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            interruption = error
    if interruption is not None:
        task.exception()
        raise interruption
    return task.result()


class Watchdog:
    """A time limit for many short waits of one task: `asyncio.timeout` would set a timer for each of them.

    It is fed as things happen, and closed in the end.
    """

    def __init__(self, secs: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + secs
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: asyncio.Task[Any] | None = None
        self._barked = False

    def feed(self, secs: float) -> None:
        """From now on there are so many seconds."""
        self._deadline = self._loop.time() + secs

    async def wait(self, work: Awaitable[_T]) -> _T:
        """Its result. Raises TimeoutError when the deadline passes before."""
        task = self._waiting = asyncio.current_task()
        assert task is not None
        self._barked = False
        cancelled = task.cancelling()
        if self._timer is None:
            self._timer = self._loop.call_at(self._deadline, self._look)
        try:
            return await work
        except asyncio.CancelledError:
            if self._barked and task.uncancel() <= cancelled:
                raise TimeoutError from None
            raise
        finally:
            self._waiting = None

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        self._timer = None
        if self._waiting is None:
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._look)
        else:
            self._barked = True
            self._waiting.cancel()
