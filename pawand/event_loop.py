"""How long the event loop keeps everybody waiting: measured, and kept short where much work comes at once."""

from __future__ import annotations

import asyncio
import math
import os
import select
import selectors
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable

SLICE_SECS = 0.000125
MAX_EVENTS = 8
TICK_SECS = 0.02
AWAKE_SECS = 1.0
HOLD_SECS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)


class Pace:
    """Keeps the passes of one event loop short, however many streams have work at the same time.

    All that pass on what comes in share one. After a slice of their work in a pass the loop looks at everybody else;
    they go on in the order in which they came, as many in each pass as fit into a slice.
    """

    def __init__(self) -> None:
        self._began: float | None = None
        """When the first piece of work of this pass was let in."""
        self._pieces = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._counting = False

    async def breathe(self) -> None:
        """Call it before each piece of work; it waits where this pass has had enough."""
        if self._waiting or (self._began is not None and time.monotonic() - self._began > SLICE_SECS):
            place = asyncio.get_running_loop().create_future()
            self._waiting.append(place)
            await place
        self._pieces += 1
        if self._began is None:
            self._began = time.monotonic()
            self._count_again()

    def _count_again(self) -> None:
        if not self._counting:
            self._counting = True
            asyncio.get_running_loop().call_soon(self._next_pass)

    def _next_pass(self) -> None:
        """Let in as many as fit, by what a piece of work took in the last pass."""
        self._counting = False
        spent = SLICE_SECS if self._began is None else time.monotonic() - self._began
        fits = int(SLICE_SECS / max(spent, 1e-6) * self._pieces)
        room = max(1, min(fits, 2 * self._pieces))  # the next pieces may be dearer than the last
        self._began, self._pieces = None, 0
        while self._waiting and room:
            place = self._waiting.popleft()
            if not place.done():  # cancelled
                place.set_result(None)
                room -= 1
        if self._waiting:
            self._count_again()


class HoldWatch(selectors.EpollSelector):
    """The selector of an event loop that measures how long each pass of the loop keeps everybody waiting.

    A pass begins when something was there to do: when select returned, or before, when its time was over and the thread
    did not get the interpreter or a processor. Therefore that time is short while the loop is `busy`, and for a second
    after each event. A pass gets a bounded number of events: the kernel keeps the others for the next, in their order.
    """

    def __init__(self) -> None:
        super().__init__()
        self._epoll = select.epoll.fromfd(os.dup(self.fileno()))  # the same one, to be asked for less at once
        self._began = self._awake = time.monotonic()
        self.busy: Callable[[], bool] = lambda: False
        """Whether there is work under way that brings no events, in threads say."""
        self.longest = 0.0
        self.total = 0.0
        self.counts = [0] * (len(HOLD_SECS) + 1)
        """Passes of up to HOLD_SECS[i] seconds each; the last ones are longer than all of those."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ended = time.monotonic()
        held = ended - self._began
        self.counts[bisect_left(HOLD_SECS, held)] += 1
        self.total += held
        self.longest = max(self.longest, held)
        if ended - self._awake < AWAKE_SECS or self.busy():
            timeout = TICK_SECS if timeout is None else min(timeout, TICK_SECS)
        timeout = None if timeout is None else math.ceil(1000 * max(timeout, 0)) / 1000  # epoll knows milliseconds
        events = self._epoll.poll(timeout, MAX_EVENTS)
        self._began = time.monotonic()
        if events:
            self._awake = self._began
        if timeout is not None:
            self._began = min(self._began, ended + timeout)
        keys = self.get_map()
        # One that was closed while a child still has it stays with the kernel, though nobody waits for it any more.
        found = ((keys.get(descriptor), _mask(event)) for descriptor, event in events)
        return [(key, mask & key.events) for key, mask in found if key is not None]

    def close(self) -> None:
        self._epoll.close()
        super().close()


def _mask(event: int) -> int:
    """What `selectors` calls it; an error or the end of a connection is both."""
    reads = selectors.EVENT_READ if event & ~select.EPOLLOUT else 0
    return reads | (selectors.EVENT_WRITE if event & ~select.EPOLLIN else 0)
