"""How long an idempotency key counts."""

from __future__ import annotations

import time

import pytest

from pawand.sessions.model import Message
from pawand.turns.log import EventLog
from pawand.turns.submissions import MAX_KEPT, Submission, Submissions
from pawand.turns.turn import Turn

ASKED = Submission(session_id="s", message="m")


def turn(*, ended: bool) -> Turn:
    made = Turn("s", Message(role="user", content="m"), None, EventLog(1000))
    if ended:
        made.stored = True
        made._ended.set()
    return made


def test_ten_minutes_from_the_first_request(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, first = Submissions(), turn(ended=True)
    kept.keep("k", ASKED, first)
    now = time.monotonic()
    for passed, expected in ((0, first), (599, first), (601, None)):
        monkeypatch.setattr(time, "monotonic", lambda passed=passed: now + passed)
        assert kept.find("k", ASKED) is expected


def test_as_long_as_the_turn_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, first = Submissions(), turn(ended=False)
    kept.keep("k", ASKED, first)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 6000)
    assert kept.find("k", ASKED) is first


def test_the_oldest_goes_when_there_are_too_many() -> None:
    kept = Submissions()
    turns = [turn(ended=True) for _ in range(MAX_KEPT + 1)]
    for number, made in enumerate(turns):
        kept.keep(f"k{number}", ASKED, made)
    assert kept.find("k0", ASKED) is None
    assert kept.find("k1", ASKED) is turns[1]
