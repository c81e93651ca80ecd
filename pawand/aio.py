"""What asyncio leaves to its users."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

_T = TypeVar("_T")
_P = ParamSpec("_P")


async def uninterrupted(work: Coroutine[Any, Any, _T]) -> _T:
    """Wait for `work` to its end, however often the caller is cancelled; a cancellation is raised after it."""
    task = asyncio.ensure_future(work)
    interruption: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            interruption = error
    try:
        if interruption is not None:
            task.exception()
            raise interruption
        return task.result()
    finally:
        del task, interruption  # else what is raised and this frame would have each other, and all that waits here


class Workers:
    """Threads of their own for work that blocks, begun in the order in which it came: what fills up the threads that
    everybody shares does not delay it."""

    def __init__(self, name: str, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def do(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """As `asyncio.to_thread`."""
        call = functools.partial(work, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self._executor, call)

    def close(self, *, give_up: bool = False) -> None:
        """Take no more work; what waits is done all the same, unless it is given up."""
        self._executor.shutdown(wait=False, cancel_futures=give_up)


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
        """From now on there are so many seconds, be it more or fewer than were left."""
        self._deadline = self._loop.time() + secs
        if self._timer is not None and self._timer.when() > self._deadline:
            self._timer.cancel()
            self._timer = None

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
            if self._barked and task.cancelling() - 1 <= cancelled:
                raise TimeoutError from None
            raise
        finally:
            self._waiting = None
            if self._barked:
                task.uncancel()

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
