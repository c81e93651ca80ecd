"""`Idempotency-Key`: the same request sent again meets the turn that it began the first time.

Kept in memory, per session; requests that name no session share one place of their own, since a client that was cut
off before the first answer does not know the session that was made for it.
"""

from __future__ import annotations

import hashlib
import time

import msgspec
from msgspec import Struct

from pawand.errors import BadRequestError, ConflictError
from pawand.turns.turn import Turn

KEPT_SECS = 600.0
MAX_KEPT = 1000
MAX_KEY_CHARS = 255


class Submission(Struct, frozen=True, kw_only=True):
    """A message as a client sent it; `session_id` is None where it named none."""

    session_id: str | None
    message: str
    model: str | None = None
    cancel_on_disconnect: bool = False
    hops: int = 0
    """How many agents it has come through."""


class _Kept(Struct, frozen=True):
    digest: bytes
    turn: Turn
    until: float

    @property
    def expired(self) -> bool:
        """Never while its turn runs."""
        return self.turn.ended and time.monotonic() > self.until


class Submissions:
    """What was submitted under which key, the oldest first."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str | None, str], _Kept] = {}

    def find(self, key: str, submission: Submission) -> Turn | None:
        """The turn that `submission` began before. Raises BadRequestError, or ConflictError for another body."""
        if not 0 < len(key) <= MAX_KEY_CHARS:
            raise BadRequestError(f"`Idempotency-Key` must have 1 to {MAX_KEY_CHARS} characters")
        self.expire()
        kept = self._kept.get((submission.session_id, key))
        if kept is None or kept.expired or (kept.turn.ended and not kept.turn.stored):
            return None  # a turn that left nothing behind may be tried again
        if kept.digest != _digest(submission):
            raise ConflictError("this `Idempotency-Key` was sent before with another body; use a new key")
        return kept.turn

    def keep(self, key: str, submission: Submission, turn: Turn) -> None:
        place = (submission.session_id, key)
        self._kept.pop(place, None)
        self._kept[place] = _Kept(_digest(submission), turn, time.monotonic() + KEPT_SECS)
        if len(self._kept) > MAX_KEPT:
            del self._kept[next(iter(self._kept))]

    def forget(self, session_id: str) -> None:
        """The session is gone, and with it what was said in it."""
        self._kept = {place: kept for place, kept in self._kept.items() if kept.turn.session_id != session_id}

    def expire(self) -> None:
        self._kept = {place: kept for place, kept in self._kept.items() if not kept.expired}


def _digest(submission: Submission) -> bytes:
    """Of what its sender wrote; the way that it took is no part of that."""
    written = msgspec.structs.replace(submission, hops=0)
    return hashlib.sha256(msgspec.json.encode(written)).digest()
