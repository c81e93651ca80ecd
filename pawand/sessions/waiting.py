"""Messages that were accepted and wait for their turn: each in a file of its own, so that a crash loses none.

`<id>.<time>.waiting` lies beside the session from the moment the message is accepted until it is in the session.
"""

from __future__ import annotations

import os
import time
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


def files(folder: Path, id: str) -> list[Path]:
    """Those of a session, the oldest first."""
    return sorted(folder.glob(f"{id}.*{SUFFIX}"))


def left(folder: Path) -> set[str]:
    """The sessions that have such files."""
    return {id for path in folder.glob(f"*{SUFFIX}") if is_id(id := path.name.partition(".")[0])}


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
