"""Questions to the user: a call that `[permissions]` says to prompt for waits here for somebody's decision."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from msgspec import UNSET, Struct

from pawand import wire
from pawand.errors import NotFoundError, ToolError
from pawand.sessions.model import wire_time
from pawand.wire import ToolCall

VALUE_CHARS = 100
SUMMARY_CHARS = 300


class _Question(Struct, frozen=True):
    request: wire.PermissionRequest
    answer: asyncio.Future[wire.Decision]


class Approvals:
    """Those of one session. Whoever follows it may answer; the first answer counts."""

    def __init__(self) -> None:
        self._allowed: set[str] = set()
        self._open: dict[str, _Question] = {}

    @property
    def granted(self) -> bool:
        """Whether a tool was allowed for the whole session."""
        return bool(self._allowed)

    @property
    def pending(self) -> list[wire.PermissionRequest]:
        return [question.request for question in self._open.values() if not question.answer.done()]

    async def ask(self, call: ToolCall, timeout_secs: float, emit: Callable[[wire.Event], None]) -> None:
        """Return where the call may run. Raises ToolError where the answer is no, or none came in time."""
        if call.name in self._allowed:
            return
        expires = datetime.now(UTC) + timedelta(seconds=timeout_secs)
        request = wire.PermissionRequest(
            id=str(uuid.uuid4()),
            tool=call.name,
            summary=_summary(call),
            arguments=call.arguments,
            expires_at=wire_time(expires),
        )
        answer: asyncio.Future[wire.Decision] = asyncio.get_running_loop().create_future()
        self._open[request.id] = _Question(request, answer)
        emit(request)
        try:
            await asyncio.wait([answer], timeout=timeout_secs)
        except asyncio.CancelledError:
            emit(wire.PermissionResolved(id=request.id, decision="deny", reason="cancelled"))
            raise
        finally:
            del self._open[request.id]
        expired = not answer.done()
        decision: wire.Decision = "deny" if expired else answer.result()
        emit(wire.PermissionResolved(id=request.id, decision=decision, reason="expired" if expired else UNSET))
        if expired:
            raise ToolError(f"nobody approved {call.name} within {timeout_secs:g} s. Go on without it.")
        if decision == "deny":
            raise ToolError(f"the user denied this call of {call.name}. Do not repeat it; go on without it.")

    def answer(self, request_id: str, decision: wire.Decision) -> None:
        """Raises NotFoundError for a question that is not open (any more)."""
        question = self._open.get(request_id)
        if question is None or question.answer.done():
            raise NotFoundError("no such request is pending: it was answered, it expired, or its turn has ended")
        question.answer.set_result(decision)
        if decision == "allow_session":
            tool = question.request.tool
            self._allowed.add(tool)
            for other in self._open.values():
                if other.request.tool == tool and not other.answer.done():
                    other.answer.set_result(decision)


def _summary(call: ToolCall) -> str:
    """The call in one line, `bash command=make test`, which says where lines end and how much it leaves out."""
    values = call.arguments if isinstance(call.arguments, dict) else {"arguments": call.arguments}
    words = [call.name, *(f"{name}={_cut(str(value), VALUE_CHARS)}" for name, value in values.items())]
    return _cut(" ".join(words), SUMMARY_CHARS)


def _cut(text: str, limit: int) -> str:
    left_out = len(text) - limit
    text = " ⏎ ".join(text[:limit].splitlines())
    return f"{text}… (+{left_out} characters)" if left_out > 0 else text
