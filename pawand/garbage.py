"""Collections of garbage in a process whose event loop must not be held: the full ones wait for a quiet moment.

Neither turns nor followers leave cycles behind, so there is little to collect, and it can wait.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOOK_SECS = 1.0
LONGEST_SECS = 600.0
LONGEST_START_SECS = 10.0
_NEVER = 2**30


@contextmanager
def none_meanwhile() -> Iterator[None]:
    """For a start, of ten seconds at most: what is made in the block is no garbage, and stays for good. No collection
    looks at it again."""
    gc.disable()
    limit = asyncio.get_running_loop().call_later(LONGEST_START_SECS, gc.enable)
    try:
        yield
    finally:
        limit.cancel()
        gc.freeze()
        gc.enable()


async def collect_when_quiet(busy: Callable[[], bool]) -> None:
    """Until cancelled: a full collection about where Python would make one, but not while `busy`, for ten minutes at
    most."""
    young, middle, full = gc.get_threshold()
    gc.set_threshold(young, middle, _NEVER)
    last = time.monotonic()
    try:
        while True:
            await asyncio.sleep(LOOK_SECS)
            due = gc.isenabled() and gc.get_count()[2] > full
            if due and (not busy() or time.monotonic() - last > LONGEST_SECS):
                gc.collect()
                last = time.monotonic()
    finally:
        gc.set_threshold(young, middle, full)
