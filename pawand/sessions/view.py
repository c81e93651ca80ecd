"""Sessions as the contract shows them: `wire` structs from the stored ones."""

from __future__ import annotations

from msgspec import UNSET

from pawand import wire
from pawand.sessions.model import Message, Session, Summary, parse_time, wire_time


def matching(rows: list[Summary], words: str) -> list[Summary]:
    """Those with `words` in title or id; upper and lower case are the same."""
    words = words.casefold()
    return [row for row in rows if words in row.title.casefold() or words in row.id.casefold()] if words else rows


def summary(row: Summary, *, active: bool) -> wire.SessionSummary:
    return wire.SessionSummary(
        id=row.id,
        model=row.model,
        created_at=row.created_at,
        updated_at=row.updated_at,
        message_count=row.message_count,
        title=row.title,
        active=active,
    )


def detail(session: Session, *, active_turn: str | None, last_event_id: str | None) -> wire.SessionDetail:
    return wire.SessionDetail(
        id=session.id,
        model=session.model,
        created_at=wire_time(session.created_at),
        updated_at=wire_time(session.updated_at),
        messages=[_message(message, wire_time(session.updated_at)) for message in session.messages],
        title=session.title,
        active_turn=active_turn,
        last_event_id=last_event_id,
    )


def _message(message: Message, fallback_time: str) -> wire.Message:
    return wire.Message(
        role=message.role,
        content=message.content,
        timestamp=_timestamp(message.timestamp) or fallback_time,
        tool_calls=message.tool_calls or UNSET,
        tool_result=message.tool_result or UNSET,
        interrupted=message.interrupted or UNSET,
    )


def _timestamp(text: str | None) -> str | None:
    """None for a time that is missing or none."""
    try:
        return wire_time(parse_time(text)) if text else None
    except ValueError:
        return None
