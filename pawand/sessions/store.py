"""The folder of sessions: reads, atomic saves, the listing and the lock that makes one daemon its owner.

Every function here blocks; callers on the event loop go through `asyncio.to_thread`. Reads never move files.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import threading
import time
from pathlib import Path

from pawand.errors import ConflictError, NotFoundError, StorageError, UnavailableError
from pawand.sessions import disk, journal, lock, waiting
from pawand.sessions.journal import Journal
from pawand.sessions.model import Message, Session, Summary, check_id, is_id

log = logging.getLogger(__name__)

RETRY_READ_SECS = 0.1  # the Rust program does not save atomically
SETTLED_SECS = 5.0  # a damaged file younger than this may be one that is being written
_SUFFIX = ".json"
_NOT_A_FILE = frozenset({errno.ELOOP, errno.ENXIO})  # a link, a socket

_Row = tuple[tuple[int, int], Summary | None]
"""((mtime in ns, size), what the listing shows or None for a file that is no session)."""


class DamagedError(NotFoundError):
    """A file is in the session's place that cannot be read as one."""


class SessionStore:
    """Sessions as `<folder>/<id>.json`, files 0600 in a folder 0700."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._summaries: dict[str, _Row] = {}
        self._journals: set[str] = set()
        """Sessions whose journal a turn is writing."""
        self._listing = threading.Lock()
        self._lock: int | None = None

    @property
    def folder(self) -> Path:
        return self._folder

    # --- ownership --------------------------------------------------------------------------------

    def open(self) -> None:
        """Become the owner, sweep what a crash left, and put what it cut off into the sessions.

        Raises StartError naming who holds the store.
        """
        self._lock = lock.acquire(self._folder / ".lock", f"the session store {self._folder}")
        with contextlib.suppress(OSError):
            self._folder.chmod(0o700)  # another program may have made it for all to read
        for leftover in self._folder.glob(f"{disk.TEMPORARY}*"):
            with contextlib.suppress(OSError):
                leftover.unlink()
        journals = {path.stem for path in self._folder.glob(f"*{journal.SUFFIX}") if is_id(path.stem)}
        for id in sorted(journals | waiting.left(self._folder)):
            self._recover(id)

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def fault(self) -> str | None:
        """None, or why the next save would fail; it writes nothing."""
        try:
            space = os.statvfs(self._folder)
        except OSError as error:
            return f"the session store {self._folder} cannot be reached: {error.strerror}"
        if not os.access(self._folder, os.W_OK | os.X_OK):
            return f"the session store {self._folder} is not writable"
        if (space.f_bfree if os.geteuid() == 0 else space.f_bavail) == 0:
            return f"the disk of the session store {self._folder} is full"
        return None

    # --- one session ------------------------------------------------------------------------------

    def load(self, id: str) -> Session:
        """The session with all that readers saw of turns that have ended, however they ended.

        Raises NotFoundError, its subclass DamagedError, or StorageError.
        """
        check_id(id)
        running = id in self._journals
        try:
            session = self._read(id)
        except DamagedError:
            time.sleep(RETRY_READ_SECS)
            session = self._read(id)
        try:
            if not running:
                self._fold(session)
        except (OSError, ValueError) as error:
            log.warning("the journal of session %s cannot be read: %s", id, error)
        if not running and id in self._journals:
            return self._read(id)  # a turn has begun meanwhile, and saved what an old journal held before
        return session

    def stored(self, id: str) -> Session:
        """As its file has it, whatever a journal holds besides. Raises like `load`."""
        return self._read(check_id(id))

    def load_or_none(self, id: str) -> Session | None:
        """For whoever is about to write: None where there is no session, a damaged file moved aside.

        Raises UnavailableError while the damaged file may still be in the middle of somebody's write.
        """
        try:
            return self.load(id)
        except DamagedError as error:
            self._move_aside(id, error)
            return None
        except NotFoundError:
            return None

    def create(self, session: Session) -> None:
        """Save a session that must not exist yet. Raises ConflictError."""
        if self.load_or_none(session.id) is not None:
            raise ConflictError(f"session {session.id} exists already")
        self.save(session)
        with contextlib.suppress(OSError):
            self._journal_path(session.id).unlink()  # of a session of that name that another program deleted

    def save(self, session: Session) -> None:
        """Atomic: a reader sees the old file or the new one, after a crash too. Raises StorageError."""
        data = session.encode()
        try:
            disk.replace(self._path(session.id), data)
        except OSError as error:
            raise StorageError(f"the session could not be saved: {error.strerror} ({self._folder})") from error

    def open_journal(self, session: Session) -> Journal:
        """Begin the journal of the turn whose user message was saved last. Raises StorageError."""
        path = self._journal_path(session.id)
        self._journals.add(session.id)
        try:
            with contextlib.suppress(OSError):
                if not stat.S_ISREG(path.lstat().st_mode):
                    path.rename(disk.aside(path))
            return Journal(path, session)
        except StorageError:
            self._journals.discard(session.id)
            raise

    def settle(self, session: Session, made: Journal | None) -> None:
        """The last save of a turn, which makes its journal needless. Raises StorageError; then the journal stays."""
        try:
            self.save(session)
        finally:
            if made is not None:
                made.close()
            self._journals.discard(session.id)
        with contextlib.suppress(OSError):  # one that stays holds nothing new
            self._journal_path(session.id).unlink()

    def keep_waiting(self, id: str, message: Message) -> Path:
        """Write down an accepted message, in a file to remove once it is in the session. Raises StorageError."""
        return waiting.keep(self._folder, id, message)

    def delete(self, id: str) -> None:
        """Raises NotFoundError; a damaged file counts as there."""
        check_id(id)
        try:
            self._path(id).unlink()
            self._drop_leftovers(id)
            disk.sync(self._folder)
        except (FileNotFoundError, IsADirectoryError) as error:
            raise NotFoundError(f"no session {id}") from error
        except OSError as error:
            raise StorageError(f"session {id} could not be deleted: {error.strerror}") from error

    # --- what a turn left behind ------------------------------------------------------------------

    def _fold(self, session: Session) -> None:
        """Add what a left journal holds. Raises OSError, ValueError."""
        try:
            data = disk.read(self._journal_path(session.id))
        except FileNotFoundError:
            return
        if session.id not in self._journals:  # else a turn has begun meanwhile, and this is its own
            journal.fold(session, data)

    def _drop_leftovers(self, id: str) -> None:
        for path in (self._journal_path(id), *waiting.files(self._folder, id)):
            with contextlib.suppress(OSError):
                path.unlink()

    def _recover(self, id: str) -> None:
        """Put a journal and the messages that waited into their session for good.

        They go with a session that was deleted, and are kept where it cannot be saved.
        """
        path = self._journal_path(id)
        try:
            session = self._read(id)
            before = len(session.messages)
            cut = path.exists()
            try:
                self._fold(session)
            except ValueError as error:
                aside = path.rename(disk.aside(path))
                log.warning("the journal of session %s cannot be read: %s; moved aside to %s", id, error, aside.name)
            waiting.add(session, waiting.files(self._folder, id), turn_cut=cut)
            if len(session.messages) > before:
                self.save(session)
                log.info("session %s: recovered what its last turn had said and done, and what waited", id)
            self._drop_leftovers(id)
        except DamagedError as error:
            log.warning("the last turn of session %s stays in %s: %s", id, path.name, error)
        except NotFoundError:
            self._drop_leftovers(id)
        except (StorageError, OSError) as error:
            log.warning("the last turn of session %s is not recovered yet: %s", id, error)

    # --- all of them ------------------------------------------------------------------------------

    def list(self) -> list[Summary]:
        """Newest `updated_at` first. Only files that changed since the last call are parsed. Raises StorageError."""
        with self._listing:
            try:
                with os.scandir(self._folder) as entries:
                    stamped = {
                        (id := entry.name.removesuffix(_SUFFIX)): self._row(id, entry)
                        for entry in entries
                        if entry.name.endswith(_SUFFIX)
                    }
            except OSError as error:
                raise StorageError(f"the sessions cannot be listed: {error.strerror} ({self._folder})") from error
            self._summaries = {id: row for id, row in stamped.items() if row is not None}
            rows = [summary for _, summary in self._summaries.values() if summary is not None]
        return sorted(rows, key=lambda row: row.updated_at, reverse=True)

    def _row(self, id: str, entry: os.DirEntry[str]) -> _Row | None:
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return None
        stamp = (status.st_mtime_ns, status.st_size)
        known = self._summaries.get(id)
        if known is not None and known[0] == stamp:
            return known
        try:
            return stamp, self._parse_summary(id)
        except StorageError as error:  # not the file's fault, so it is tried again next time
            log.warning("left out of the listing: %s", error)
            return None

    def _parse_summary(self, id: str) -> Summary | None:
        if not is_id(id):
            log.warning("skipped %s in %s: its name is no session id", id + _SUFFIX, self._folder)
            return None
        try:
            return self._read(id).summary()
        except NotFoundError as error:
            log.warning("left out of the listing: %s", error)
            return None

    # --- files ------------------------------------------------------------------------------------

    def _path(self, id: str) -> Path:
        return self._folder / f"{id}{_SUFFIX}"

    def _journal_path(self, id: str) -> Path:
        return self._folder / f"{id}{journal.SUFFIX}"

    def _read(self, id: str) -> Session:
        try:
            data = disk.read(self._path(id))
        except FileNotFoundError as error:
            raise NotFoundError(f"no session {id}") from error
        except OSError as error:
            kind = DamagedError if error.errno in _NOT_A_FILE else StorageError
            raise kind(f"session {id} cannot be read: {error.strerror}") from error
        try:
            return Session.decode(id, data)
        except ValueError as error:
            raise DamagedError(f"session {id} cannot be read: {error}") from error

    def _move_aside(self, id: str, error: DamagedError) -> None:
        path = self._path(id)
        aside = disk.aside(path)
        try:
            age = time.time() - path.lstat().st_mtime
            if abs(age) < SETTLED_SECS:  # a clock that was set back does not keep it here for ever
                raise UnavailableError(
                    f"{error}; it may be being written, try again in a moment", int(SETTLED_SECS)
                ) from error
            path.rename(aside)
            with contextlib.suppress(FileNotFoundError):
                self._journal_path(id).rename(disk.aside(self._journal_path(id)))
        except OSError as failure:
            raise StorageError(f"{error}, nor moved aside: {failure.strerror}") from failure
        log.warning("%s; moved aside to %s", error, aside.name)
