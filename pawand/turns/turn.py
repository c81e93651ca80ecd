"""One turn: from the user's message on disk to exactly one `done` or `error`, with the session saved before it."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import cast

from msgspec import Struct

from pawand import wire
from pawand.agent.approvals import Approvals
from pawand.agent.loop import Agent
from pawand.agent.run import Finished, Item
from pawand.aio import Workers, uninterrupted
from pawand.config import Limits
from pawand.errors import (
    CancelledTurnError,
    NotFoundError,
    PawandError,
    ShutdownError,
    StorageError,
    TurnError,
    TurnTimeoutError,
)
from pawand.event_loop import Pace
from pawand.metrics import Metrics
from pawand.providers.base import Provider
from pawand.redact import Redactor
from pawand.sessions.journal import Journal
from pawand.sessions.model import Message, Session
from pawand.sessions.store import SessionStore
from pawand.tools.base import ToolContext
from pawand.tools.workspace import Stamp
from pawand.turns.log import EventLog
from pawand.turns.report import report

log = logging.getLogger(__name__)


class Bench(Struct, frozen=True, kw_only=True):
    """What every turn of a daemon works with; replaced as a whole when the settings are read again."""

    agent: Agent
    provider: Provider
    store: SessionStore
    files: Workers
    """For what turns read and write of their sessions: what else needs a thread may take long, or hang."""
    metrics: Metrics
    redactor: Redactor
    pace: Pace
    limits: Limits
    new_context: Callable[[str, dict[str, Stamp], int], ToolContext]
    """From a session's id, the files that its model has seen, and the hops of the message."""
    default_model: str
    timeout_secs: float


class Turn:
    """A submitted message and what becomes of it. `outcome` is set when `wait` returns."""

    def __init__(
        self,
        session_id: str,
        message: Message,
        model: str | None,
        event_log: EventLog,
        *,
        written: Path | None = None,
        cancel_on_disconnect: bool = False,
        hops: int = 0,
    ) -> None:
        """`written` is the file of a message that was accepted before its time; such a one makes no session."""
        self.id = str(uuid.uuid4())
        self.session_id = session_id
        self.log = event_log
        self.hops = hops
        self.first: int | None = None
        """Number of the turn's `start` in the log."""
        self.last: int | None = None
        """Number of its terminal event."""
        self.outcome: wire.Done | wire.Failed | None = None
        self.error: PawandError | None = None
        """Why the outcome is Failed."""
        self.began = asyncio.Event()
        """Set at `start`."""
        self.stored = False
        """The user's message is on disk."""
        self._message: Message | None = message
        self._written = written
        self._asked_model = model
        self._cancel_on_disconnect = cancel_on_disconnect
        self._clients = 0
        self._session: Session | None = None
        self._journal: Journal | None = None
        self._ended = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._has_floor = False
        self._stop_reason: TurnError | None = None
        self._created = time.monotonic()
        self._first_token: float | None = None

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    async def wait(self) -> None:
        await self._ended.wait()

    def launched(self, task: asyncio.Task[None]) -> None:
        self._task = task

    def join(self) -> None:
        """A client waits for this turn."""
        self._clients += 1

    def leave(self) -> None:
        """A client has gone; some turns end with their last one."""
        self._clients -= 1
        if self._cancel_on_disconnect and self._clients == 0:
            self.stop(CancelledTurnError("the client went away, and it had asked to cancel the turn then"))

    def take_floor(self) -> bool:
        """The turn is the session's only one now; False where it was stopped while it waited."""
        self._has_floor = True
        return self._stop_reason is None

    def stop(self, reason: TurnError) -> None:
        """End the turn early; what it has so far is saved. One that waits ends when its time comes, so that the
        events of two turns never mix."""
        if self._stop_reason is None and not self.ended:
            self._stop_reason = reason
            if self._has_floor and self._task is not None:
                self._task.cancel()

    async def run(self, bench: Bench, context: ToolContext, approvals: Approvals) -> None:
        """Never raises: every failure becomes the turn's `error` event."""
        error: PawandError | None = None
        try:
            async with asyncio.timeout(bench.timeout_secs):
                session = await self._begin(bench)
                finished = await self._work(bench, session, context, approvals)
                await self._settle(bench, session)
                await bench.pace.breathe()
            self._succeed(bench, finished)
            bench.agent.remember(session, finished.content)
        except TimeoutError:
            error = TurnTimeoutError(f"the turn took more than {bench.timeout_secs:g} s (turn_timeout_secs)")
        except asyncio.CancelledError:
            error = self._stop_reason or CancelledTurnError("the turn was cancelled")
        except PawandError as failure:
            error = failure
        except Exception:  # a bug: the client gets its one terminal event, the log gets the traceback
            log.exception("turn %s of session %s failed", self.id, self.session_id)
            error = PawandError("internal error; the daemon's log has the details")
        self._has_floor = False  # nothing interrupts the end
        if error is not None:
            await self._fail(bench, error)
        self._end()

    async def abandon(self, bench: Bench) -> None:
        """End a turn that never ran."""
        self._has_floor = False
        await self._fail(bench, self._stop_reason or CancelledTurnError("the turn was cancelled"))
        self._end()

    def _end(self) -> None:
        self._session = self._message = None  # whoever keeps the turn for its outcome keeps no more
        self._ended.set()

    async def _begin(self, bench: Bench) -> Session:
        """Load or make the session, put the user's message on disk, and announce the turn."""
        message = self._message
        assert message is not None

        def store_message() -> Session:
            session = bench.store.load_or_none(self.session_id)
            if session is None and self._written is not None:
                raise NotFoundError(f"session {self.session_id} was deleted while the message waited")
            session = session or Session.new(self.session_id, bench.default_model)
            session.set_model(self._asked_model or session.pinned_model or bench.default_model)
            session.append(message)
            bench.store.save(session)
            self.stored = True
            self._session = session
            self._forget_file()
            self._journal = bench.store.open_journal(session)
            return session

        session = await uninterrupted(bench.files.do(store_message))
        await bench.pace.breathe()
        self._start(session.model)
        return session

    def _forget_file(self) -> None:
        if self._written is not None:
            with suppress(OSError):
                self._written.unlink()

    async def _work(self, bench: Bench, session: Session, context: ToolContext, approvals: Approvals) -> Finished:
        async def save() -> None:
            # A cancelled turn waits for its save: two saves of a session must never overlap.
            await uninterrupted(bench.files.do(bench.store.save, session))

        emit = functools.partial(self._emit, bench.metrics)
        finished = await bench.agent.run(session, context, approvals, emit, save)
        session.set_model(finished.model)
        return finished

    def _emit(self, metrics: Metrics, *items: Item) -> None:
        """Pass on what the agent says, kept before it is shown; what cannot be kept ends the turn and is not shown."""
        if not items or self._journal is None or isinstance(self._stop_reason, StorageError):
            return
        try:
            if isinstance(items[0], Message):
                self._journal.message(items[0])
                return
            events = cast(tuple[wire.Event, ...], items)
            if self._first_token is None and isinstance(events[0], wire.Token | wire.Thinking):
                self._first_token = time.monotonic()
            self.log.extend(events, self._journal.write)
            metrics.observe(events)
        except StorageError as error:
            self._stop_reason = error
            assert self._task is not None
            self._task.cancel()

    async def _settle(self, bench: Bench, session: Session) -> None:
        """The last save; a journal that it did not make needless stays for the next load."""
        journal, self._journal = self._journal, None
        await uninterrupted(bench.files.do(bench.store.settle, session, journal))

    def _start(self, model: str) -> None:
        start = wire.Start(session_id=self.session_id, turn_id=self.id, model=model)
        self.first = self.log.append(start)
        self.began.set()

    def _succeed(self, bench: Bench, finished: Finished) -> None:
        self.outcome = wire.Done(
            session_id=self.session_id,
            content=finished.content,
            iterations=finished.iterations,
            tool_calls=finished.tool_calls,
            turn_id=self.id,
            finish_reason=finished.finish_reason,
            usage=finished.usage,
            model=finished.model,
        )
        self.last = self.log.append(self.outcome)
        self._report(bench, self.outcome, finished.model)

    async def _fail(self, bench: Bench, error: PawandError) -> None:
        """Save what there is, and say why there is no more."""
        try:
            if self._session is None and isinstance(error, ShutdownError):
                await self._begin(bench)  # a message that waited may have been accepted with 202
            if self._session is not None:
                await self._settle(bench, self._session)
            elif isinstance(error, CancelledTurnError | NotFoundError):
                await bench.files.do(self._forget_file)
        except PawandError as failure:
            log.warning("session %s: %s", self.session_id, failure)
            bench.metrics.note_failure(failure)
            failure.forget_past()
        except Exception:  # the error that is reported is the first one
            log.exception("session %s could not be saved", self.session_id)
        self._append_failure(bench, error, self._session.model if self._session else bench.default_model)

    def _append_failure(self, bench: Bench, error: PawandError, model: str) -> None:
        error.forget_past()
        self.error = error
        bench.metrics.note_failure(error)
        if self.first is None:
            self._start(model)
        code = error.code if error.code in wire.TURN_CODES else "storage"  # a damaged file, say
        message = bench.redactor.text(error.message)
        self.outcome = wire.Failed(message=message, code=code, turn_id=self.id, session_id=self.session_id)
        self.last = self.log.append(self.outcome)
        self._report(bench, self.outcome, model)

    def _report(self, bench: Bench, outcome: wire.Done | wire.Failed, model: str) -> None:
        first_token_secs = None if self._first_token is None else self._first_token - self._created
        report(bench.metrics, outcome, model, time.monotonic() - self._created, first_token_secs)
