"""Who runs when: turns of one session in order, sessions in parallel, all of them stoppable."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from msgspec import Struct

from pawand.config import Limits
from pawand.errors import (
    BadRequestError,
    BusyError,
    CancelledTurnError,
    ConflictError,
    ShutdownError,
    UnavailableError,
)
from pawand.providers.base import Provider
from pawand.sessions.model import Session, check_id, new_id
from pawand.sessions.store import SessionStore
from pawand.tools.base import ToolContext
from pawand.turns.log import EventLog
from pawand.turns.turn import Bench, Turn

BUSY_RETRY_SECS = 5
MAX_MODEL_CHARS = 256


class _Slot:
    """What the daemon keeps of a session while it is in use."""

    def __init__(self, event_log: EventLog, context: ToolContext) -> None:
        self.log = event_log
        self.context = context
        self.order = asyncio.Lock()
        """Held by whoever changes the session; it is given in the order in which it was asked for."""
        self.turns: list[Turn] = []
        """Those that have not ended, the running one first."""
        self.idle: asyncio.TimerHandle | None = None


class Followed(Struct, frozen=True):
    """A session's log for a follower, and where the running turn began in it."""

    log: EventLog
    running_from: int | None


class TurnManager:
    """The only door to sessions that change. `new_context` makes what a session's tools work with."""

    def __init__(
        self,
        bench: Bench,
        provider: Provider,
        limits: Limits,
        new_context: Callable[[str], ToolContext],
        forget_context: Callable[[str], None],
    ) -> None:
        self._bench = bench
        self._provider = provider
        self._limits = limits
        self._new_context = new_context
        self._forget_context = forget_context
        self._slots: dict[str, _Slot] = {}
        self._places = asyncio.Semaphore(limits.turns)
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    @property
    def store(self) -> SessionStore:
        return self._bench.store

    @property
    def active_turns(self) -> int:
        """Sessions with a turn that has not ended; those that wait behind it do not count."""
        return sum(1 for slot in self._slots.values() if slot.turns)

    def active_turn(self, session_id: str) -> str | None:
        slot = self._slots.get(session_id)
        return slot.turns[0].id if slot and slot.turns else None

    def submit(self, session_id: str | None, message: str, model: str | None) -> Turn:
        """Queue a message. Raises BadRequestError, BusyError or UnavailableError, and then nothing was saved."""
        if not message.strip():
            raise BadRequestError("`message` is blank: write what the agent should do")
        session_id = new_id() if session_id is None else check_id(session_id)
        model = self._checked_model(model)
        self._check_open()
        slot = self._slot(session_id)
        if len(slot.turns) > self._limits.queued_per_session:
            raise BusyError(f"session {session_id} has {len(slot.turns) - 1} messages waiting already", BUSY_RETRY_SECS)
        turn = Turn(session_id, message, model, slot.log)
        slot.turns.append(turn)
        task = asyncio.create_task(self._run(slot, turn), name=f"turn {turn.id}")
        turn.launched(task)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return turn

    async def create(self, session_id: str | None, model: str | None, title: str | None) -> str:
        """Store an empty session and return its id.

        Raises BadRequestError, ConflictError, UnavailableError or StorageError.
        """
        session_id = new_id() if session_id is None else check_id(session_id)
        model = self._checked_model(model)
        self._check_open()
        if self.active_turn(session_id) is not None:
            raise ConflictError(f"session {session_id} exists already")
        title = None if title is None else self._bench.redactor.text(title)
        session = Session.new(session_id, model or self._bench.default_model, title=title, pinned_model=model)
        async with self._alone(session_id):
            await asyncio.to_thread(self.store.create, session)
        return session_id

    async def delete(self, session_id: str) -> None:
        """Cancel its turns, running and queued, and remove it. Raises NotFoundError."""
        check_id(session_id)
        if session_id in self._slots:
            for turn in list(self._slots[session_id].turns):
                turn.stop(CancelledTurnError("the session was deleted"))
        async with self._alone(session_id) as slot:
            await asyncio.to_thread(self.store.delete, session_id)
            await asyncio.to_thread(self._forget_context, session_id)
            if not slot.turns:
                slot.log.close()
                self._slots.pop(session_id, None)

    def follow(self, session_id: str) -> Followed:
        """The log of an existing session (the caller has checked that it exists). Raises UnavailableError."""
        self._check_open()
        slot = self._slot(session_id)
        running = next((turn.first for turn in slot.turns), None)
        self._let_go_later(session_id, slot)
        return Followed(slot.log, running)

    async def shutdown(self) -> None:
        """Refuse new turns, end the running ones with what they have saved, close every log."""
        self._stopping = True
        for slot in self._slots.values():
            for turn in slot.turns:
                turn.stop(ShutdownError("pawand was stopped; send the message again when it is back"))
        if self._tasks:
            await asyncio.wait(self._tasks)
        for slot in self._slots.values():
            slot.log.close()
            if slot.idle is not None:
                slot.idle.cancel()

    # --- inside -----------------------------------------------------------------------------------

    def _checked_model(self, model: str | None) -> str | None:
        if model is None:
            return None
        if not model.strip() or len(model) > MAX_MODEL_CHARS or not model.isprintable():
            raise BadRequestError(
                f"`model` must be the name of a model, of at most {MAX_MODEL_CHARS} characters: "
                "leave it out to use the configured one"
            )
        refusal = self._provider.accepts_model(model)
        if refusal:
            raise BadRequestError(refusal)
        return self._bench.redactor.text(model)

    def _check_open(self) -> None:
        if self._stopping:
            raise UnavailableError("pawand is shutting down", BUSY_RETRY_SECS)

    def _slot(self, session_id: str) -> _Slot:
        slot = self._slots.get(session_id)
        if slot is None:
            event_log = EventLog(self._limits.ring_bytes)
            slot = self._slots[session_id] = _Slot(event_log, self._new_context(session_id))
        if slot.idle is not None:
            slot.idle.cancel()
            slot.idle = None
        return slot

    @contextlib.asynccontextmanager
    async def _alone(self, session_id: str) -> AsyncIterator[_Slot]:
        """The session's slot while no turn of it runs and nobody else changes it."""
        while True:
            slot = self._slot(session_id)
            async with slot.order:
                if self._slots.get(session_id) is slot:  # else it was deleted while we waited
                    try:
                        yield slot
                    finally:
                        self._let_go_if_unused(session_id, slot)
                    return

    async def _run(self, slot: _Slot, turn: Turn) -> None:
        try:
            async with slot.order:
                if turn.take_floor():
                    async with self._places:
                        await turn.run(self._bench, slot.context)
        except asyncio.CancelledError:
            pass  # only Turn.stop cancels; what is left to do is below
        finally:
            turn.abandon(self._bench)
            slot.turns.remove(turn)
            self._let_go_later(turn.session_id, slot)

    def _let_go_if_unused(self, session_id: str, slot: _Slot) -> None:
        """At once where nothing was ever said in it; an id that anybody can make up must cost nothing."""
        unused = slot.log.last == 0 and not slot.turns and not slot.log.followed
        if unused and self._slots.get(session_id) is slot:
            del self._slots[session_id]
        else:
            self._let_go_later(session_id, slot)

    def _let_go_later(self, session_id: str, slot: _Slot) -> None:
        """Forget an idle session's log after a while; a follower or a new turn keeps it."""
        if slot.idle is not None:
            slot.idle.cancel()
        loop = asyncio.get_running_loop()
        slot.idle = loop.call_later(self._limits.log_idle_secs, self._let_go, session_id, slot)

    def _let_go(self, session_id: str, slot: _Slot) -> None:
        if slot.turns or slot.log.followed or slot.order.locked():
            self._let_go_later(session_id, slot)
        elif self._slots.get(session_id) is slot:
            del self._slots[session_id]
