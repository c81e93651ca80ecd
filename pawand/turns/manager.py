"""Who runs when: turns of one session in order, sessions in parallel, all of them stoppable."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable

from msgspec import Struct

from pawand import wire
from pawand.agent.approvals import Approvals
from pawand.errors import (
    BadRequestError,
    BusyError,
    CancelledTurnError,
    ConflictError,
    ShutdownError,
    UnavailableError,
)
from pawand.sessions.fork import fork
from pawand.sessions.model import Message, Session, check_id, new_id
from pawand.sessions.store import SessionStore
from pawand.tools.output import clean
from pawand.turns.log import EventLog
from pawand.turns.slots import Slot, Slots
from pawand.turns.submissions import KEPT_SECS, Submission, Submissions
from pawand.turns.turn import Bench, Turn

BUSY_RETRY_SECS = 5
_MODEL = re.compile(wire.MODEL_PATTERN)


class Followed(Struct, frozen=True):
    """A session's log for a follower, and where the running turn began in it."""

    log: EventLog
    running_from: int | None


class Seen(Struct, frozen=True):
    """A session as it was at one moment of its log.

    All events up to `last_event_id` are in it; of the turn that runs, which begins after them, some may be.
    """

    session: Session
    active_turn: str | None
    last_event_id: str | None


class TurnManager:
    """The only door to sessions that change. `forget_context` drops what a session's tools left outside of it."""

    def __init__(self, bench: Bench, forget_context: Callable[[str], None]) -> None:
        self.bench = bench
        """Of the turns that begin from now on."""
        self.stopping = False
        self._forget_context = forget_context
        self._slots = Slots(lambda: self.bench.limits)
        self._submissions = Submissions()
        self._places = asyncio.Semaphore(bench.limits.turns)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def store(self) -> SessionStore:
        return self.bench.store

    @property
    def active_sessions(self) -> set[str]:
        """Those with a turn that has not ended."""
        return {id for id, slot in self._slots.items() if slot.turns}

    @property
    def active_turns(self) -> int:
        """How many run or wait for their place; those that wait behind another of their session do not count."""
        return len(self.active_sessions)

    @property
    def busy(self) -> bool:
        """Whether any turn has not ended."""
        return bool(self._tasks)

    @property
    def queued_turns(self) -> int:
        """Those that wait behind another of their session."""
        return sum(max(0, len(slot.turns) - 1) for slot in self._slots.values())

    @property
    def followers(self) -> int:
        """Open event streams."""
        return sum(slot.log.followers for slot in self._slots.values())

    def active_turn(self, session_id: str) -> str | None:
        slot = self._slots.get(session_id)
        return slot.turns[0].id if slot and slot.turns else None

    def submit(self, submission: Submission, key: str | None = None, *, accept: bool = False) -> Turn:
        """Queue a message, or find the turn of the one that was sent before under the same idempotency key.

        With `accept` the caller will not wait: the message is written down at once, and makes no session. Raises
        BadRequestError, ConflictError, BusyError, UnavailableError or StorageError, and then nothing was saved.
        """
        known = self.known(submission, key)
        if known is not None:
            return known
        session_id = submission.session_id or new_id()
        model = self._checked_model(submission.model)
        self._check_open()
        ahead = len(self._slots[session_id].turns) if session_id in self._slots else 0
        if ahead > self.bench.limits.queued_per_session:
            raise BusyError(f"session {session_id} has {ahead - 1} messages waiting already", BUSY_RETRY_SECS)
        message = Message(role="user", content=self.bench.redactor.text(clean(submission.message)))
        written = self.store.keep_waiting(session_id, message) if accept else None
        slot = self._slots.use(session_id)
        turn = Turn(
            session_id,
            message,
            model,
            slot.log,
            written=written,
            cancel_on_disconnect=submission.cancel_on_disconnect,
            hops=submission.hops,
        )
        if key is not None:
            self._submissions.keep(key, submission, turn)
            asyncio.get_running_loop().call_later(KEPT_SECS + 1, self._submissions.expire)
        slot.turns.append(turn)
        task = asyncio.create_task(self._run(slot, turn), name=f"turn {turn.id}")
        turn.launched(task)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return turn

    def known(self, submission: Submission, key: str | None) -> Turn | None:
        """The turn of a message that was sent before. Raises BadRequestError or ConflictError."""
        if not submission.message.strip():
            raise BadRequestError("`message` is blank: write what the agent should do")
        if submission.session_id is not None:
            check_id(submission.session_id)
        self._checked_model(submission.model)
        return None if key is None else self._submissions.find(key, submission)

    async def create(self, session_id: str | None, model: str | None, title: str | None) -> str:
        """Store an empty session and return its id.

        Raises BadRequestError, ConflictError, UnavailableError or StorageError.
        """
        session_id = new_id() if session_id is None else check_id(session_id)
        model = self._checked_model(model)
        self._check_open()
        if self.active_turn(session_id) is not None:
            raise ConflictError(f"session {session_id} exists already")
        title = None if title is None else self.bench.redactor.text(title)
        session = Session.new(session_id, model or self.bench.default_model, title=title, pinned_model=model)
        async with self._slots.alone(session_id):
            await asyncio.to_thread(self.store.create, session)
        return session_id

    async def fork(self, session_id: str, message_index: int | None) -> str:
        """Store a copy of a session's messages up to one of them and return its id.

        Raises BadRequestError, NotFoundError, UnavailableError or StorageError.
        """
        self._check_open()
        return await asyncio.to_thread(fork, self.store, session_id, message_index)

    async def cancel(self, session_id: str, *, waiting_too: bool) -> bool:
        """End the running turn of a session, and those that wait behind it; whether one was cancelled.

        Returns when they have ended: upstream closed, tools dead, what they had saved.
        """
        slot = self._slots.get(session_id)
        turns = [] if slot is None else slot.turns[:] if waiting_too else slot.turns[:1]
        for turn in turns:
            turn.stop(CancelledTurnError("the turn was cancelled; what was said and done until then is saved"))
        for turn in turns:
            await turn.wait()
        return any(isinstance(turn.error, CancelledTurnError) for turn in turns)

    def pending_approvals(self, session_id: str) -> list[wire.PermissionRequest]:
        slot = self._slots.get(session_id)
        return [] if slot is None else slot.approvals.pending

    def answer_approval(self, session_id: str, request_id: str, decision: wire.Decision) -> None:
        """Raises NotFoundError for a request that is not pending."""
        slot = self._slots.get(session_id)
        (Approvals() if slot is None else slot.approvals).answer(request_id, decision)

    async def delete(self, session_id: str) -> None:
        """Cancel its turns, running and queued, and remove it. Raises NotFoundError."""
        check_id(session_id)
        if session_id in self._slots:
            for turn in list(self._slots[session_id].turns):
                turn.stop(CancelledTurnError("the session was deleted"))
        async with self._slots.alone(session_id) as slot:
            self._submissions.forget(session_id)
            slot.approvals, slot.seen = Approvals(), {}
            await asyncio.to_thread(self._forget_context, session_id)
            await asyncio.to_thread(self.store.delete, session_id)
            if not slot.turns:
                slot.log.close()
                self._slots.pop(session_id, None)

    async def look_at(self, session_id: str) -> Seen:
        """Raises BadRequestError, NotFoundError or StorageError."""
        while True:
            before = self._moment(session_id)
            session = await asyncio.to_thread(self.store.load, session_id)
            if self._moment(session_id) == before:  # else a turn began or ended while the file was read
                return Seen(session, *before)

    def follow(self, session_id: str) -> Followed:
        """The log of an existing session (the caller has checked that it exists)."""
        slot = self._slots.use(session_id)
        running = next((turn.first for turn in slot.turns), None)
        self._slots.let_go_later(session_id, slot)
        return Followed(slot.log, running)

    async def shutdown(self, grace_secs: float = 0.0) -> None:
        """Refuse new turns, give the others some time, end those that are left with what they have saved."""
        self.stopping = True
        for slot in self._slots.values():
            slot.log.wake()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace_secs)
        for slot in self._slots.values():
            for turn in slot.turns:
                turn.stop(ShutdownError("pawand was stopped; what was said and done until then is saved"))
        if self._tasks:
            await asyncio.wait(self._tasks)
        for slot in self._slots.values():
            slot.log.close()
            if slot.idle is not None:
                slot.idle.cancel()

    # --- inside -----------------------------------------------------------------------------------

    def _moment(self, session_id: str) -> tuple[str | None, str | None]:
        """The turn that runs, and the last event before it."""
        slot = self._slots.get(session_id)
        if slot is None:
            return None, None
        turn = slot.turns[0] if slot.turns else None
        before = slot.log.last if turn is None or turn.first is None else turn.first - 1
        return turn.id if turn else None, slot.log.id_of(before)

    def _checked_model(self, model: str | None) -> str | None:
        if model is None:
            return None
        if len(model) > wire.MAX_MODEL_CHARS or not _MODEL.fullmatch(model):
            raise BadRequestError(
                f"`model` must be the name of a model, of at most {wire.MAX_MODEL_CHARS} characters: "
                "leave it out to use the configured one"
            )
        refusal = self.bench.provider.accepts_model(model)
        if refusal:
            raise BadRequestError(refusal)
        return self.bench.redactor.text(model)

    def _check_open(self) -> None:
        """Raises UnavailableError while the daemon stops."""
        if self.stopping:
            raise UnavailableError("pawand is shutting down", BUSY_RETRY_SECS)

    async def _run(self, slot: Slot, turn: Turn) -> None:
        async with slot.order:
            try:
                with contextlib.suppress(asyncio.CancelledError):  # only Turn.stop cancels
                    if turn.take_floor():
                        async with self._places:
                            context = self.bench.new_context(turn.session_id, slot.seen, turn.hops)
                            await turn.run(self.bench, context, slot.approvals)
                if not turn.ended:
                    await turn.abandon(self.bench)
            finally:
                slot.turns.remove(turn)
        self._slots.let_go_later(turn.session_id, slot)
