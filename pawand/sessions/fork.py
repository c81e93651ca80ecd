"""A session made from the beginning of another."""

from __future__ import annotations

from pawand.errors import NotFoundError
from pawand.sessions.model import new_id
from pawand.sessions.store import SessionStore


def fork(store: SessionStore, id: str, message_index: int | None) -> str:
    """Copy session `id` up to and including a message (all of it without one), and return the copy's id.

    It is on disk then. What counts is what is stored, also while a turn runs. Blocks. Raises BadRequestError
    for a bad id, NotFoundError (a message that is not there, too) or StorageError.
    """
    session = store.load(id)
    held = len(session.messages)
    if message_index is not None and not 0 <= message_index < held:
        raise NotFoundError(
            f"session {id} has no message {message_index}: its {held} messages are numbered from 0; "
            "leave `message_index` out to take them all"
        )
    copy = session.fork(new_id(), held if message_index is None else message_index + 1)
    store.create(copy)
    return copy.id
