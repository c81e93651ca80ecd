"""Sessions to begin with: files as the daemon writes them, as many and as long as a benchmark needs."""

from __future__ import annotations

from pathlib import Path

from pawand.sessions.model import Message, Session

MESSAGE_CHARS = 60
"""So short that a conversation of 5,000 messages stays below the default `max_context_tokens`."""


def conversation(id: str, messages: int) -> Session:
    """Questions and answers in turn."""
    session = Session.new(id, "bench")
    for number in range(messages):
        text = f"This is message {number} of the conversation. ".ljust(MESSAGE_CHARS, "x")
        session.append(Message(role="assistant" if number % 2 else "user", content=text))
    return session


def store(home: Path, count: int, messages: int, *, prefix: str) -> list[str]:
    """Put `count` sessions into the home's store; their ids."""
    folder = home / ".pawan" / "sessions"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    data = conversation("x", messages).encode()
    ids = [f"{prefix}-{number}" for number in range(count)]
    for id in ids:
        (folder / f"{id}.json").write_bytes(data)
    return ids
