"""`/chat`, `/chat/stream` and `/sessions/{id}/messages`: submit a message; the first two then read its turn."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from tornado.iostream import StreamClosedError

from pawand import wire
from pawand.turns.submissions import Submission
from pawand.turns.turn import Turn
from pawand.web.base import BaseHandler
from pawand.web.sessions import OneSessionHandler
from pawand.web.sse import StreamHandler, resync

STATUS_SECS = 1.0


class TurnHandler(BaseHandler):
    """A handler whose connection counts for its turn: `on_disconnect` in the request says what its end means."""

    turn: Turn | None = None

    def submit(self) -> Turn:
        body = self.decode_body(wire.ChatRequest)
        submission = Submission(
            session_id=body.session_id,
            message=body.message,
            model=body.model,
            cancel_on_disconnect=body.on_disconnect == "cancel",
            hops=self.hops,
        )
        self.turn = self.services.turns.submit(submission, self.idempotency_key)
        self.turn.join()
        return self.turn

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self._leave()

    def on_finish(self) -> None:
        self._leave()  # a handler that ends with its connection is not always told that this was closed

    def _leave(self) -> None:
        turn, self.turn = self.turn, None
        if turn is not None:
            turn.leave()


class ChatHandler(TurnHandler):
    verbs = ("POST",)

    async def post(self) -> None:
        turn = self.submit()
        await turn.wait()
        if turn.error is not None:
            raise turn.error
        assert isinstance(turn.outcome, wire.Done)
        done = turn.outcome
        self.reply(
            wire.ChatAnswer(
                session_id=done.session_id,
                content=done.content,
                iterations=done.iterations,
                tool_calls=done.tool_calls,
                turn_id=done.turn_id,
                finish_reason=done.finish_reason,
                usage=done.usage,
                model=done.model,
            )
        )


class ChatStreamHandler(TurnHandler, StreamHandler):
    verbs = ("POST",)
    method_hint = (
        " An EventSource cannot POST: use fetch and read the body's stream, or POST here and follow the session "
        "with new EventSource('/sessions/{id}/events')."
    )

    async def post(self) -> None:
        await self.pace.breathe()
        turn = self.submit()
        with suppress(TimeoutError):  # a turn that must wait begins with comments
            async with asyncio.timeout(STATUS_SECS):
                await turn.began.wait()
        if turn.error is not None and not turn.stored:
            raise turn.error  # nothing was sent yet, so the status can still tell
        try:
            self.begin()
            await self.wait_for(turn.began)
        except StreamClosedError:
            return
        assert turn.first is not None
        if turn.log.holds(turn.first):
            await self.relay(self.follow(turn.log, turn.first), end=lambda: turn.last)
        else:
            await self._relay_rest(turn)

    async def _relay_rest(self, turn: Turn) -> None:
        """A turn that was begun by an earlier request, and whose beginning is no longer held."""
        position = turn.log.last + 1 if turn.last is None else turn.last
        cursor = self.follow(turn.log, position) if turn.log.holds(position) else None
        first = resync(turn.log, position, "the beginning of the turn is no longer held", turn.session_id)
        if cursor is None and turn.outcome is not None:
            first += turn.log.frame(turn.outcome, position)
        with suppress(StreamClosedError):
            self.write(first)
            await self.flush()
        if cursor is not None:
            await self.relay(cursor, end=lambda: turn.last)


class MessagesHandler(OneSessionHandler):
    verbs = ("POST",)

    async def post(self, id: str) -> None:
        body = self.decode_body(wire.SubmitRequest)
        turns, key = self.services.turns, self.idempotency_key
        submission = Submission(session_id=id, message=body.message, model=body.model, hops=self.hops)
        turn = turns.known(submission, key)
        if turn is None:
            await self.check_exists(id)
            turn = turns.submit(submission, key, accept=True)
        before = turn.log.last if turn.first is None else turn.first - 1
        self.set_status(202)
        self.reply(
            wire.Submitted(session_id=id, turn_id=turn.id, last_event_id=turn.log.id_of(before)),
        )
