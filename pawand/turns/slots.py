"""What the daemon keeps of the sessions that are in use, and when it forgets it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from pawand.agent.approvals import Approvals
from pawand.config import Limits
from pawand.tools.workspace import Stamp
from pawand.turns.log import EventLog
from pawand.turns.turn import Turn


class Slot:
    """What the daemon keeps of a session while it is in use."""

    def __init__(self, event_log: EventLog, approvals: Approvals) -> None:
        self.log = event_log
        self.approvals = approvals
        self.seen: dict[str, Stamp] = {}
        """The files that the session's model has read or written."""
        self.order = asyncio.Lock()
        """Held by whoever changes the session; it is given in the order in which it was asked for."""
        self.turns: list[Turn] = []
        """Those that have not ended, the running one first."""
        self.idle: asyncio.TimerHandle | None = None


class Slots(dict[str, Slot]):
    """Those in use, by the id of the session. `limits` returns those that count now."""

    def __init__(self, limits: Callable[[], Limits]) -> None:
        super().__init__()
        self._limits = limits
        self._granted: dict[str, Approvals] = {}
        """Of sessions without a slot: what a user allowed for the whole session outlives it."""

    def use(self, session_id: str) -> Slot:
        """The session's slot, made where there is none."""
        slot = self.get(session_id)
        if slot is None:
            approvals = self._granted.pop(session_id) if session_id in self._granted else Approvals()
            slot = self[session_id] = Slot(EventLog(self._limits().ring_bytes), approvals)
        if slot.idle is not None:
            slot.idle.cancel()
            slot.idle = None
        return slot

    @contextlib.asynccontextmanager
    async def alone(self, session_id: str) -> AsyncIterator[Slot]:
        """The session's slot while no turn of it runs and nobody else changes it."""
        while True:
            slot = self.use(session_id)
            async with slot.order:
                if self.get(session_id) is slot:  # else it was deleted while we waited
                    try:
                        yield slot
                    finally:
                        if self.get(session_id) is slot:
                            self._let_go_if_unused(session_id, slot)
                        elif slot.idle is not None:  # it was deleted just now
                            slot.idle.cancel()
                    return

    def _let_go_if_unused(self, session_id: str, slot: Slot) -> None:
        """At once where nothing was ever said in it; an id that anybody can make up must cost nothing."""
        unused = slot.log.last == 0 and not slot.turns and not slot.log.followed
        if unused:
            self._forget(session_id, slot)
        else:
            self.let_go_later(session_id, slot)

    def let_go_later(self, session_id: str, slot: Slot) -> None:
        """Forget an idle session's log after a while; a follower or a new turn keeps it."""
        if slot.idle is not None:
            slot.idle.cancel()
        loop = asyncio.get_running_loop()
        slot.idle = loop.call_later(self._limits().log_idle_secs, self._let_go, session_id, slot)

    def _let_go(self, session_id: str, slot: Slot) -> None:
        if slot.turns or slot.log.followed or slot.order.locked():
            self.let_go_later(session_id, slot)
        else:
            self._forget(session_id, slot)

    def _forget(self, session_id: str, slot: Slot) -> None:
        if self.get(session_id) is slot:
            del self[session_id]
            if slot.approvals.granted:
                self._granted[session_id] = slot.approvals
