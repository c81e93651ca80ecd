"""The journal of a running turn: what its readers saw, in the operating system's hands before they saw it.

`<id>.journal` lies beside the session from the turn's first save to its last. It holds the frames of the event log as
they are, and between them, as frames that no reader gets, the messages that the session will hold at its next save.
A journal that is found although no turn runs is what a crash or a full disk left: `fold` puts it into the session.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from pawand.errors import StorageError
from pawand.sessions import disk
from pawand.sessions.model import Message, Session, unfinished

SUFFIX = ".journal"
_OPENING, _MESSAGE, _TOKEN = b"opening", b"message", b"token"


class _Opening(Struct, frozen=True):
    """The first frame: the turn's user message, and its place among the session's messages."""

    at: int
    message: Message


class _Token(Struct, frozen=True):
    content: str


class Journal:
    """Written by one turn, on the event loop: a write reaches the page cache, not the disk, and takes microseconds."""

    def __init__(self, path: Path, session: Session) -> None:
        """Begin anew, with the session's last message as the turn's first. Blocks. Raises StorageError."""
        self._path = path
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            self._descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            raise _fault(error, path) from error
        try:
            self._frame(_OPENING, _Opening(len(session.messages) - 1, session.messages[-1]))
        except StorageError:
            self.close()
            raise

    def write(self, frame: bytes) -> None:
        """Add a frame of the event log. Raises StorageError."""
        try:
            disk.write(self._descriptor, frame)
        except OSError as error:
            raise _fault(error, self._path) from error

    def message(self, message: Message) -> None:
        """Add a message that the session has now, or, for a tool's result, will have. Raises StorageError."""
        self._frame(_MESSAGE, message)

    def close(self) -> None:
        os.close(self._descriptor)

    def _frame(self, name: bytes, data: Struct) -> None:
        self.write(b"event: %b\ndata: %b\n\n" % (name, msgspec.json.encode(data)))


def fold(session: Session, data: bytes) -> None:
    """Add to `session` what the journal `data` has and it lacks.

    Raises ValueError (or a subclass) for what is no journal. A frame that was cut off at the end counts as not written.
    """
    try:
        at, messages = _replay(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    for message in _missing(session.messages, at, messages):
        session.append(message)


def _missing(held: list[Message], at: int, messages: list[Message]) -> list[Message]:
    """Those of a turn's messages that the session does not hold.

    They are those from the first difference on: another program may have gone on with the session meanwhile. Where it
    holds just these already, further down, they were folded before.
    """
    known = list(map(_key, held))
    keys = list(map(_key, messages))
    same = 0
    while same < len(keys) and known[at + same : at + same + 1] == keys[same : same + 1]:
        same += 1
    rest = keys[same:]
    if any(known[start : start + len(rest)] == rest for start in range(same, len(known))):
        return []
    return messages[same:]


def _key(message: Message) -> tuple[str, str, str, list[str]]:
    """What no program changes when it saves a session of another."""
    result = message.tool_result
    return message.role, message.content, result.tool_call_id if result else "", [c.id for c in message.tool_calls]


def _replay(data: bytes) -> tuple[int, list[Message]]:
    """The place of the turn's first message and all its messages, each call answered, the unfinished answer last."""
    frames = _frames(data)
    first = next(frames, None)
    if first is None:
        return 0, []
    if first[0] != _OPENING:
        raise ValueError("it does not begin like a journal")
    opening = msgspec.json.decode(first[1], type=_Opening)
    messages = [opening.message]
    results: dict[str, Message] = {}
    text: list[str] = []
    for name, body in frames:
        if name == _TOKEN:
            text.append(msgspec.json.decode(body, type=_Token).content)
        elif name == _MESSAGE:
            message = msgspec.json.decode(body, type=Message)
            if message.tool_result is not None:
                results[message.tool_result.tool_call_id] = message
            else:
                messages += [*_answers(messages[-1], results), message]
                results, text = {}, []  # some providers number the calls of each answer from nought
    messages += _answers(messages[-1], results)
    if "".join(text).strip():
        messages.append(Message(role="assistant", content="".join(text), interrupted=True))
    return opening.at, messages


def _frames(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(name, data) of each whole frame."""
    for frame in data.split(b"\n\n")[:-1]:
        fields = dict(line.partition(b": ")[::2] for line in frame.split(b"\n"))
        yield fields.get(b"event", b""), fields.get(b"data", b"")


def _answers(message: Message, results: dict[str, Message]) -> list[Message]:
    """The results of a message's tool calls in the order of the calls, as the agent stores them."""
    return [results.get(call.id) or unfinished(call) for call in message.tool_calls]


def _fault(error: OSError, path: Path) -> StorageError:
    return StorageError(f"the turn's journal could not be written: {error.strerror} ({path.parent})")
