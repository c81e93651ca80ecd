"""`/sessions`: list, create, show, delete, fork, follow, cancel, and the approvals that a session waits for."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from tornado.iostream import StreamClosedError

from pawand import wire
from pawand.errors import BadRequestError
from pawand.sessions import view
from pawand.sessions.model import check_id
from pawand.turns.manager import Followed
from pawand.web.base import BaseHandler
from pawand.web.sse import StreamHandler, resync


class SessionsHandler(BaseHandler):
    verbs = ("GET", "POST")

    async def get(self) -> None:
        turns = self.services.turns
        offset, limit = self._count("offset", 0), self._count("limit", None)
        rows = view.matching(await asyncio.to_thread(turns.store.list), self.get_query_argument("q", ""))
        rows = rows[offset:] if limit is None else rows[offset : (offset or 0) + limit]
        active = turns.active_sessions
        self.reply([view.summary(row, active=row.id in active) for row in rows])

    async def post(self) -> None:
        body = self.decode_body(wire.CreateSessionRequest)
        id = await self.services.turns.create(body.session_id, body.model, body.title)
        self.reply(wire.SessionCreated(id))

    def _count(self, name: str, default: int | None) -> int | None:
        text = self.get_query_argument(name, None)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise BadRequestError(f"`{name}` must be a whole number, not {text!r}")
        return int(text)


class OneSessionHandler(BaseHandler):
    """What concerns one session, which must exist."""

    async def check_exists(self, id: str) -> None:
        """Raises BadRequestError, NotFoundError or StorageError. One whose first turn has begun counts as there."""
        turns = self.services.turns
        if turns.active_turn(check_id(id)) is None:
            await asyncio.to_thread(turns.store.load, id)


class SessionHandler(BaseHandler):
    verbs = ("GET", "DELETE")

    async def get(self, id: str) -> None:
        seen = await self.services.turns.look_at(id)
        self.reply(view.detail(seen.session, active_turn=seen.active_turn, last_event_id=seen.last_event_id))

    async def delete(self, id: str) -> None:
        await self.services.turns.delete(id)
        self.set_status(204)
        self.finish()


class ForkHandler(BaseHandler):
    verbs = ("POST",)

    async def post(self, id: str) -> None:
        body = self.decode_body(wire.ForkRequest)
        self.reply(wire.SessionCreated(await self.services.turns.fork(id, body.message_index)))


class CancelHandler(OneSessionHandler):
    verbs = ("POST",)

    async def post(self, id: str) -> None:
        self.decode_body(dict)
        every = self.get_query_argument("all", None)
        if every not in (None, "1"):
            raise BadRequestError(f"`all` must be 1, not {every!r}; leave it out to cancel only the running turn")
        await self.check_exists(id)
        self.reply(wire.Cancelled(await self.services.turns.cancel(id, waiting_too=every == "1")))


class PermissionsHandler(OneSessionHandler):
    verbs = ("GET",)

    async def get(self, id: str) -> None:
        await self.check_exists(id)
        self.reply(self.services.turns.pending_approvals(id))


class PermissionHandler(OneSessionHandler):
    verbs = ("POST",)

    async def post(self, id: str, request_id: str) -> None:
        answer = self.decode_body(wire.PermissionAnswer)
        await self.check_exists(id)
        self.services.turns.answer_approval(id, request_id, answer.decision)
        self.reply(answer)


class EventsHandler(OneSessionHandler, StreamHandler):
    """The session's log from now on, or from where the client was."""

    verbs = ("GET",)

    async def get(self, id: str) -> None:
        turns = self.services.turns
        await self.check_exists(id)
        if turns.stopping:
            # An EventSource takes any answer but 200 for final; a broken connection makes it come back.
            self.close_connection()
            return
        followed = turns.follow(id)
        after = self.request.query_arguments.get("after", [b""])[-1].decode("utf-8", "replace")
        known = self.request.headers.get("Last-Event-ID") or after
        position, lost = _begin_at(followed, known)
        cursor = self.follow(followed.log, position)
        await self.pace.breathe()
        try:
            self.begin(resync(followed.log, position, lost, id) if lost else b"")
            await self.flush()
        except StreamClosedError:
            cursor.close()
        if self.request.method == "HEAD":
            cursor.close()
        await self.relay(cursor, end=lambda: followed.log.last if turns.stopping else None)
        if turns.stopping:
            with suppress(StreamClosedError):
                await self.finish()
            self.close_connection()


def _begin_at(followed: Followed, known: str) -> tuple[int, str]:
    """The first event to send, and why the client must re-read the session first, or an empty string."""
    log, running_from = followed.log, followed.running_from
    resumed = log.position(known) if known else None
    if resumed is not None:
        return resumed, ""
    lost = "the last event id is of another run of the daemon, or too old" if known else ""
    if running_from is None:
        return log.last + 1, lost
    if log.holds(running_from):
        return running_from, lost
    return log.last + 1, lost or "the beginning of the running turn is no longer held"
