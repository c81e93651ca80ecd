"""Messages that were accepted and wait for their turn: each in a file of its own, so that a crash loses none.

`<id>.<time>.waiting` lies beside the session from the moment the message is accepted until it is in the session.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from pawand.errors import StorageError
from pawand.sessions.model import Message, Session, is_id

SUFFIX = ".waiting"


def keep(folder: Path, id: str, message: Message) -> Path:
    """Write `message` down; as with the journal, into the system's hands. Raises StorageError."""
    path = folder / f"{id}.{time.time_ns():020}{SUFFIX}"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.write(descriptor, msgspec.json.encode(message) + b"\n")
        finally:
            os.close(descriptor)
    except OSError as error:
        raise StorageError(f"the message could not be saved: {error.strerror} ({folder})") from error
    return path


def left(folder: Path) -> Iterator[tuple[str, list[Path]]]:
    """(session, its files, the oldest first) of all that a crash left."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        id = path.name.partition(".")[0]
        if is_id(id):
            found.setdefault(id, []).append(path)
    yield from found.items()


def add(session: Session, files: list[Path], *, turn_cut: bool) -> None:
    """Append what waits. Raises OSError. A file that a crash cut was never accepted.

    `turn_cut` says whether a turn was cut off: if none was, the first of those that wait may have got into the session
    just before the crash.
    """
    for number, path in enumerate(files):
        try:
            message = msgspec.json.decode(path.read_bytes(), type=Message)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        last = session.messages[-1] if session.messages else None
        there = last is not None and (last.role, last.content) == ("user", message.content)
        if turn_cut or number or not there:
            session.append(message)
