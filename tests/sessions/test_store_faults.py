"""The session store on a disk that is full, read-only or gone, and in a process without descriptors left."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from pawand.errors import NotFoundError, StartError, StorageError
from pawand.sessions.model import Message, Session
from pawand.sessions.store import SessionStore
from tests.disk import SmallDisk


def a_session(text: str) -> Session:
    session = Session.new("a", "m")
    session.append(Message(role="user", content=text))
    return session


def test_a_full_disk_leaves_the_old_file_whole_and_recovers(small_disk: SmallDisk) -> None:
    folder = small_disk.path / "s"
    store = SessionStore(folder)
    store.open()
    assert store.fault() is None
    store.save(a_session("old"))
    small_disk.fill()
    assert store.fault() == f"the disk of the session store {folder} is full"
    with pytest.raises(StorageError) as caught:
        store.save(a_session("new" * 10_000))
    assert caught.value.message == f"the session could not be saved: No space left on device ({folder})"
    assert sorted(file.name for file in folder.iterdir()) == [".lock", "a.json"]
    assert store.load("a").title == "old"
    small_disk.free()
    assert store.fault() is None
    store.save(a_session("new"))
    assert store.load("a").title == "new"
    store.close()


def test_a_full_disk_does_not_keep_a_daemon_from_starting(small_disk: SmallDisk) -> None:
    store = SessionStore(small_disk.path)
    store.open()
    store.save(a_session("old"))
    store.close()
    small_disk.fill()
    store.open()
    assert [row.title for row in store.list()] == ["old"]
    store.close()


def test_a_read_only_disk_is_told_and_recovers(small_disk: SmallDisk) -> None:
    folder = small_disk.path / "s"
    store = SessionStore(folder)
    store.open()
    store.save(a_session("old"))
    store.close()
    small_disk.remount("ro")
    assert store.fault() == f"the session store {folder} is not writable"
    with pytest.raises(StorageError, match="could not be saved: Read-only file system"):
        store.save(a_session("new"))
    with pytest.raises(StorageError, match="session a could not be deleted: Read-only file system"):
        store.delete("a")
    store.open()  # what is there can be read, and the health check tells the rest
    store.close()
    with pytest.raises(StartError, match="cannot be used: Read-only file system"):
        SessionStore(small_disk.path / "other").open()
    assert store.load("a").title == "old"
    small_disk.remount("rw")
    store.save(a_session("new"))
    assert store.load("a").title == "new"


def test_a_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    store = SessionStore(tmp_path / "s")
    store.open()
    shutil.rmtree(store.folder)
    assert store.fault() == f"the session store {store.folder} cannot be reached: No such file or directory"
    with pytest.raises(StorageError, match="could not be saved: No such file or directory"):
        store.save(a_session("x"))
    with pytest.raises(StorageError, match="cannot be listed: No such file or directory"):
        store.list()
    with pytest.raises(NotFoundError, match="no session a"):
        store.load("a")
    store.close()


@contextmanager
def no_descriptor_left() -> Iterator[list[int]]:
    """The descriptors that are in the way; close one to have one."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [os.open(os.devnull, os.O_RDONLY)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (held[0] + 1, before[1]))
    try:
        with suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        yield held
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        for descriptor in held:
            os.close(descriptor)


def test_without_descriptors_no_session_is_taken_for_damaged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = SessionStore(tmp_path / "s")
    store.open()
    store.save(a_session("whole"))
    os.utime(store.folder / "a.json", (0, 0))
    with no_descriptor_left() as held:
        with pytest.raises(StorageError, match="session a cannot be read: Too many open files"):
            store.load_or_none("a")
        os.close(held.pop())
        assert store.list() == []
    assert caplog.messages == ["left out of the listing: session a cannot be read: Too many open files"]
    assert [row.title for row in store.list()] == ["whole"]
    store.close()
