"""How a turn's end is told to those who run the daemon: one line in the log, and its figures."""

from __future__ import annotations

import logging
from typing import Any

from pawand import wire
from pawand.metrics import Metrics

log = logging.getLogger(__name__)

_DONE = (
    "turn done session=%(session)s turn=%(turn)s model=%(model)s iterations=%(iterations)d tool_calls=%(tool_calls)d "
    "tokens=%(tokens)d first_token=%(first_token_secs).3fs total=%(total_secs).3fs"
)
_FAILED = (
    "turn failed session=%(session)s turn=%(turn)s model=%(model)s code=%(outcome)s total=%(total_secs).3fs: %(error)s"
)


def report(
    metrics: Metrics, outcome: wire.Done | wire.Failed, model: str, total_secs: float, first_token_secs: float | None
) -> None:
    """`first_token_secs` is None where not a word was said."""
    metrics.turn_ended(outcome, total_secs, first_token_secs)
    facts: dict[str, Any] = {
        "session": outcome.session_id,
        "turn": outcome.turn_id,
        "model": model,
        "total_secs": round(total_secs, 3),
    }
    if first_token_secs is not None:
        facts["first_token_secs"] = round(first_token_secs, 3)
    if isinstance(outcome, wire.Done):
        facts |= {
            "outcome": outcome.finish_reason,
            "iterations": outcome.iterations,
            "tool_calls": outcome.tool_calls,
            "tokens": outcome.usage.total_tokens,
        }
        log.info(_DONE, {"first_token_secs": total_secs, **facts}, extra={"facts": facts})
    else:
        facts["outcome"] = outcome.code
        level = logging.INFO if outcome.code in ("cancelled", "shutdown") else logging.WARNING
        log.log(level, _FAILED, {**facts, "error": outcome.message}, extra={"facts": facts})
