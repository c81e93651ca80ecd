"""How the session store is, for all who ask: a disk that hangs costs one thread, not one a request."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

from pawand.sessions.store import SessionStore

STORE_SECS = 2.0
"""How long a look may take before the store counts as one that does not answer."""
AGAIN_SECS = 0.25
KEPT_SECS = 1.0
"""How long a store that was well counts as well, if nothing failed since: while many turns run, a look takes long."""


class StoreLook:
    """Looks when asked, and never twice at once: who comes meanwhile gets what comes of the look that runs."""

    def __init__(self, store: SessionStore, failures: Callable[[], int]) -> None:
        """`failures` counts what the store could not do."""
        self._store = store
        self._failures = failures
        self._look: asyncio.Task[str | None] | None = None
        self._began = -math.inf
        self._well: tuple[int, float] | None = None
        """The failures that there had been when a look began that found nothing, and when that was."""

    async def fault(self) -> str | None:
        """None, or why the next save would fail. While a look hangs the answer is there at once."""
        now, failures = time.monotonic(), self._failures()
        is_well = self._well is not None and self._well[0] == failures and now - self._well[1] < KEPT_SECS
        if self._look is None or (self._look.done() and (not is_well or now - self._began > AGAIN_SECS)):
            self._look = asyncio.create_task(self._see(failures, now))
            self._began = now
        if is_well:
            return None
        look = self._look  # by the time that we go on, somebody else may have begun another
        done, _ = await asyncio.wait([look], timeout=self._began + STORE_SECS - now)
        return look.result() if done else f"the session store {self._store.folder} does not answer"

    async def _see(self, failures: int, now: float) -> str | None:
        fault = await asyncio.to_thread(self._store.fault)
        self._well = None if fault else (failures, now)
        return fault
