"""`POST /chat` and `POST /chat/stream`: submit a message, then read its turn from the log."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from tornado.iostream import StreamClosedError

from pawand import wire
from pawand.turns.turn import Turn
from pawand.web.base import BaseHandler
from pawand.web.sse import StreamHandler

STATUS_SECS = 1.0


class ChatHandler(BaseHandler):
    verbs = ("POST",)

    async def post(self) -> None:
        turn = submit(self)
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


class ChatStreamHandler(StreamHandler):
    verbs = ("POST",)
    method_hint = (
        " An EventSource cannot POST: use fetch and read the body's stream, or POST here and follow the session "
        "with new EventSource('/sessions/{id}/events')."
    )

    async def post(self) -> None:
        turn = submit(self)
        with suppress(TimeoutError):  # a turn that must wait begins with comments
            async with asyncio.timeout(STATUS_SECS):
                await turn.began.wait()
        if turn.error is not None and not turn.stored:
            raise turn.error  # nothing was sent yet, so the status can still tell
        try:
            await self.begin()
            await self.wait_for(turn.began)
        except StreamClosedError:
            return
        assert turn.first is not None
        await self.relay(self.follow(turn.log, turn.first), end=lambda: turn.last)


def submit(handler: BaseHandler) -> Turn:
    body = handler.decode_body(wire.ChatRequest)
    return handler.services.turns.submit(body.session_id, body.message, body.model)
