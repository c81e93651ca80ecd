"""How the session store is, for all who ask at the same time: a disk that hangs costs one thread, not one a request."""

from __future__ import annotations

import asyncio

from pawand.sessions.store import SessionStore

STORE_SECS = 2.0
"""How long a look may take before the store counts as one that does not answer."""


class StoreLook:
    """Looks when asked, and never twice at once: who comes meanwhile gets what comes of the look that runs."""

    def __init__(self, store: SessionStore) -> None:
        self._store = store
        self._look: asyncio.Task[str | None] | None = None
        self._deadline = 0.0

    async def fault(self) -> str | None:
        """None, or why the next save would fail. While a look hangs the answer is there at once."""
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(asyncio.to_thread(self._store.fault))
            self._deadline = asyncio.get_running_loop().time() + STORE_SECS
        look = self._look  # by the time that we go on, somebody else may have begun another
        done, _ = await asyncio.wait([look], timeout=self._deadline - asyncio.get_running_loop().time())
        return look.result() if done else f"the session store {self._store.folder} does not answer"
