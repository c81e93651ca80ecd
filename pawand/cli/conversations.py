"""Where `pawand sessions` finds the conversations: through the daemon that runs, else straight in its folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, urlencode

from pawand import paths
from pawand.cli.common import Context, note
from pawand.client import Client

if TYPE_CHECKING:
    from pawand.sessions.store import SessionStore

Row = dict[str, Any]


class Conversations(Protocol):
    """All raise PawandError."""

    def list(self, limit: int | None, query: str | None) -> list[Row]:
        """As `GET /sessions`."""

    def show(self, id: str) -> Row:
        """As `GET /sessions/{id}`."""

    def delete(self, id: str) -> None: ...

    def fork(self, id: str, message: int | None) -> str:
        """The id of the copy."""


@contextmanager
def reach(context: Context, *, change: bool = False) -> Iterator[Conversations]:
    """Where no daemon runs, `change` makes us the owner of the folder meanwhile."""
    if context.runs_here:
        yield _Daemon(context.client())
        return
    store = _store()
    if change:
        store.open()
    try:
        yield _Folder(store)
    finally:
        store.close()


def stored(id: str) -> bytes:
    """The document of a session in the folder of this machine, as it is saved. Raises PawandError."""
    return _store().stored(id).encode()


def _store() -> SessionStore:
    from pawand import config
    from pawand.sessions.store import SessionStore

    return SessionStore(config.sessions_folder(config.load(Path.cwd(), {}).config, paths.state_dir()))


class _Daemon:
    def __init__(self, client: Client) -> None:
        self._client = client

    def list(self, limit: int | None, query: str | None) -> list[Row]:
        asked = urlencode({k: v for k, v in {"limit": limit, "q": query}.items() if v is not None}, errors="replace")
        fields = ("id", "updated_at", "message_count", "title", "active")
        return self._client.get_list(f"/sessions?{asked}" if asked else "/sessions", *fields)

    def show(self, id: str) -> Row:
        session = self._client.get(_path(id), "id", "model", "updated_at", "title", "active_turn", "messages")
        self._client.rows(session["messages"], "role", "content", "timestamp")
        return session

    def delete(self, id: str) -> None:
        self._client.delete(_path(id))

    def fork(self, id: str, message: int | None) -> str:
        body = {} if message is None else {"message_index": message}
        return str(self._client.post(f"{_path(id)}/fork", body, "session_id")["session_id"])


class _Folder:
    def __init__(self, store: SessionStore) -> None:
        self._store = store

    def list(self, limit: int | None, query: str | None) -> list[Row]:
        import msgspec

        from pawand.sessions import view

        if not self._store.folder.is_dir():
            return []
        rows = view.matching(self._store.list(), query or "")
        found: list[Row] = msgspec.to_builtins([view.summary(row, active=False) for row in rows[:limit]])
        return found

    def show(self, id: str) -> Row:
        import msgspec

        from pawand.sessions import journal, view

        session = self._store.load(id)
        if (self._store.folder / f"{id}{journal.SUFFIX}").exists():
            note("a turn was cut off here; the next start of pawand puts what is known of it into the session's file")
        found: Row = msgspec.to_builtins(view.detail(session, active_turn=None, last_event_id=None))
        return found

    def delete(self, id: str) -> None:
        self._store.delete(id)

    def fork(self, id: str, message: int | None) -> str:
        from pawand.sessions.fork import fork

        return fork(self._store, id, message)


def _path(id: str) -> str:
    return f"/sessions/{quote(id, safe='', errors='replace')}"
